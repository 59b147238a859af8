"""The page on merging shows programs; they are run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apgd_teach.merging import METHODS

PAGE = Path(__file__).parents[2] / "docs" / "merging.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS)
def test_the_examples_of_the_page_on_merging_run(block: str) -> None:
    exec(compile(block, str(PAGE), "exec", dont_inherit=True), {"__name__": "__main__"})


def test_the_page_shows_what_it_promises() -> None:
    assert len(BLOCKS) == 5


def test_the_page_lists_every_method() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert listed == list(METHODS)
