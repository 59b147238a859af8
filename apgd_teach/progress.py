"""Progress as text: bars and sentences on standard output, gone from the page once they have served."""

from __future__ import annotations

import os
import sys

from tqdm import tqdm

__all__ = ["bar", "say", "wanted"]


def wanted(progress: bool) -> bool:
    """Should progress be shown? tqdm's own switch, TQDM_DISABLE, overrules the caller: builds of the course set it."""
    return progress and os.environ.get("TQDM_DISABLE", "0") in ("", "0")


def bar(total: int, unit: str, description: str = "", progress: bool = True) -> tqdm:
    """A bar that disappears when done: a stored notebook must not show "0 %"."""
    return tqdm(
        total=total,
        unit=unit,
        desc=description or None,
        leave=False,
        mininterval=0.5,
        disable=not wanted(progress),
        file=sys.stdout,
    )


def say(sentence: str, progress: bool = True) -> None:
    """One sentence on a line of its own, above the bar if one is running."""
    if wanted(progress):
        tqdm.write(sentence, file=sys.stdout)
