"""The page on figures shows programs, which are run as they stand, and names what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apgd_teach import evaluate, figures, landscape, trials

PAGE = Path(__file__).parents[2] / "docs" / "figures.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", TEXT, flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_of_the_page_on_figures_run(block: str) -> None:
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})


def test_the_page_names_every_figure_and_nothing_else() -> None:
    listed = set(re.findall(r"`(\w+)`", TEXT.partition("## What there is")[2].partition("`compare` is in")[0]))
    for name in listed:
        assert any(hasattr(room, name) for room in (figures, evaluate, landscape, trials)), name
    assert {name for name in figures.__all__ if name.startswith("draw_")} <= listed
