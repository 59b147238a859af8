from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), flags=re.M | re.S)


# The one that asks for the full tier needs a network; the entry of a list is not a program.
@pytest.mark.parametrize("block", [b for b in BLOCKS if "full" not in b and not b.startswith(" ")])
def test_the_examples_of_the_page_on_data_run(block: str) -> None:
    exec(compile(block, str(PAGE), "exec"), {})


def test_the_page_shows_at_least_two_examples_that_run() -> None:
    assert len([b for b in BLOCKS if "full" not in b and not b.startswith(" ")]) == 3
