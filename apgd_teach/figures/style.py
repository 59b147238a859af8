"""One look for every figure, and the one way to show it: a picture with its words."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["COLORS", "LINES", "MARKERS", "Drawing", "figure", "look", "png", "show", "styled"]

# Okabe and Ito's colours: told apart under the common colour-vision deficiencies. Markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))

_RC: dict[Any, Any] = {
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "axes.facecolor": "white",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "grid.color": "#E4E4E4",
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "lines.linewidth": 1.8,
}


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside this block to draw in the course's look; the reader's own settings neither matter nor change."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_RC)
        yield


def look(i: int) -> dict[str, Any]:
    """Colour, line and marker of the i-th of several: past the last colour, lines and markers shift by one."""
    shifted = i + i // len(COLORS)
    return {
        "color": COLORS[i % len(COLORS)],
        "linestyle": LINES[shifted % len(LINES)],
        "marker": MARKERS[shifted % len(MARKERS)],
    }


def figure(rows: int = 1, columns: int = 1, width: float = 9.0, height: float = 4.0) -> tuple[Figure, list[Axes]]:
    """A figure outside pyplot, so that nothing is shown twice or kept open, and its axes in reading order."""
    made = Figure(figsize=(width, height), layout="constrained")
    axes = made.subplots(rows, columns, squeeze=False)
    return made, [one for row in axes for one in row]


def png(drawn: Figure) -> bytes:
    """A figure as PNG, the same bytes for the same drawing (no date or version inside)."""
    stream = io.BytesIO()
    with styled():
        drawn.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


@dataclass(frozen=True)
class Drawing:
    """What a figure is at given parameters: a picture, and what it shows in words.

    Attributes:
        figure: the picture, made with `figure` inside `styled`.
        words: one or two sentences with the numbers that matter: what screen readers read out, and what stands where
            there is no picture.
        numbers: what changes with the parameters, by name and unit ("mean accuracy (%)"): a row of the table that
            stands for the figure in text.

    Raises:
        ValueError: `words` is empty.
    """

    figure: Figure
    words: str
    numbers: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise ValueError("a figure needs words for those who cannot see it: give it a sentence")


def show(drawn: Figure | Drawing, alt: str = "") -> None:
    """Put a figure into the notebook; where there is none, in a plain terminal, its words.

    Args:
        drawn: the figure, or a drawing, which has words of its own.
        alt: of a figure, what it shows, in words: read out by screen readers, and shown where there is no picture.

    Raises:
        ValueError: there are no words.
    """
    from IPython import get_ipython
    from IPython.display import display

    drawing = drawn if isinstance(drawn, Drawing) else Drawing(drawn, alt)
    drawn, alt = drawing.figure, drawing.words
    if get_ipython() is None:
        # IPython would print the picture itself, as a hundred thousand letters.
        display(alt)
        return
    picture = base64.b64encode(png(drawn)).decode("ascii")
    display({"image/png": picture, "text/plain": alt}, metadata={"image/png": {"alt": alt}}, raw=True)
