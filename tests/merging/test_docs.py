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
    assert len(BLOCKS) == 6


def test_the_page_lists_every_method() -> None:
    listed = re.findall(r"^\| `(\w+)` \|", PAGE.read_text(encoding="utf-8"), flags=re.M)
    assert listed == list(METHODS)


def test_the_page_shows_all_that_a_method_of_ones_own_may_have() -> None:
    whole = next(block for block in BLOCKS if "thresholds" in block)
    assert all(part in whole for part in ("trim", "layer: Layer", "Update(", "others", "mask("))
    page = PAGE.read_text(encoding="utf-8")
    assert "torch.enable_grad()" in page
    assert "transposed convolution" in page
