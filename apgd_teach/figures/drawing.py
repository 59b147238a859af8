"""A figure with its words, and the one way to show it."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from apgd_teach.figures.lint import refuse
from apgd_teach.figures.style import png

__all__ = ["Drawing", "show"]


@dataclass(frozen=True)
class Drawing:
    """What a figure is at given parameters: a picture, and what it shows in words.

    Attributes:
        figure: the picture, made with `figure` inside `styled`.
        words: one or two sentences with the numbers that matter: what screen readers read out, and what stands where
            there is no picture.
        numbers: what changes with the parameters, by name and unit ("mean accuracy (%)"): a row of the table that
            stands for the figure in text.
        photo: whether it shows images, whose light and dark a dark page must leave as they are.

    Raises:
        ValueError: `words` is empty.
    """

    figure: Figure
    words: str
    numbers: Mapping[str, object] = field(default_factory=dict)
    photo: bool = False

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise ValueError("a figure needs words for those who cannot see it: give it a sentence")


def notes(drawing: Drawing) -> dict[str, object]:
    """What is noted beside the PNG of a drawing: its words, and whether it shows images (only where it does)."""
    return {"alt": drawing.words, **({"photo": True} if drawing.photo else {})}


def show(drawn: Figure | Drawing, alt: str = "") -> None:
    """Put a figure into the notebook; where there is none, in a plain terminal, its words.

    Args:
        drawn: the figure, or a drawing, which has words of its own.
        alt: of a figure, what it shows, in words: read out by screen readers, and shown where there is no picture.

    Raises:
        ValueError: there are no words.
        FigureError: the runner looks on, and the figure breaks the rules of `lint.look_over`.
    """
    from IPython import get_ipython
    from IPython.display import display

    drawing = drawn if isinstance(drawn, Drawing) else Drawing(drawn, alt)
    drawn, alt = drawing.figure, drawing.words
    refuse(drawn)
    if get_ipython() is None:
        # IPython would print the picture itself, as a hundred thousand letters.
        display(alt)
        return
    picture = base64.b64encode(png(drawn)).decode("ascii")
    display({"image/png": picture, "text/plain": alt}, metadata={"image/png": notes(drawing)}, raw=True)
