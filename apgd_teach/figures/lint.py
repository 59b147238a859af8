"""What can be seen to be wrong with a figure: colours that some cannot tell apart, letters that are too small."""

from __future__ import annotations

import os
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.collections import Collection
from matplotlib.colors import Colormap, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from apgd_teach.course.profiles import VISIT
from apgd_teach.errors import FigureError
from apgd_teach.figures.style import COLORS, MAPS, SMALLEST

__all__ = ["look_over", "refuse"]


def refuse(drawn: Figure) -> None:
    """Raise where a figure of a run that the runner looks at (`VISIT`) has something that is forbidden.

    Raises:
        FigureError: one sentence for each of `look_over`.
    """
    problems = look_over(drawn) if os.environ.get(VISIT) else []
    if problems:
        raise FigureError(" ".join(problems))


def look_over(drawn: Figure) -> list[str]:
    """One sentence for each thing in a figure that the course's look forbids.

    The figure is laid out for it, since ticks have no text before. Looked at: the size of every text that is shown;
    colours of texts, lines, marks, arrows and areas, each of which is one of `COLORS` or a grey; colour maps, which are
    `MAPS`. What a picture of images shows is its own affair.

    Args:
        drawn: the figure.
    """
    drawn.draw_without_rendering()
    problems = []
    small = [one for one in _of(drawn, Text) if one.get_text().strip() and one.get_fontsize() < SMALLEST]
    if small:
        problems.append(
            f"'{small[0].get_text()}' is written in {small[0].get_fontsize():g} points; take {SMALLEST:g} or more."
        )
    known = {one.lower() for one in COLORS}
    other = sorted({one for one in _colours(drawn) if one not in known and not _grey(one)})
    if other:
        problems.append(f"{', '.join(other)} is no colour of the course; take one of figures.style.COLORS, or a grey.")
    maps = sorted({one.name for one in _maps(drawn) if not _own(one)})
    if maps:
        problems.append(f"'{', '.join(maps)}' is no colour map of the course; take one of: {', '.join(MAPS)}.")
    return problems


def _of(drawn: Figure, kind: type) -> list:
    return [one for one in drawn.findobj(kind) if one.get_visible()]


def _colours(drawn: Figure) -> set[str]:
    found: list = []
    for line in _of(drawn, Line2D):
        found += [line.get_color(), line.get_gapcolor()] if line.get_linestyle() not in _NOTHING else []
        if line.get_marker() not in _NOTHING:
            found += [line.get_markerfacecolor(), line.get_markeredgecolor()]
            found += [line.get_markerfacecoloralt()] if line.get_fillstyle() in _HALVES else []
    patches = _of(drawn, Patch)
    for text in _of(drawn, Text):
        if text.get_text().strip():
            found.append(text.get_color())
        patches += [one for one in (text.get_bbox_patch(), getattr(text, "arrow_patch", None)) if one is not None]
    for patch in patches:
        found += [patch.get_facecolor(), patch.get_edgecolor()]
    for marks in _of(drawn, Collection):
        # What has its colours from a map is looked at as a map; contours in one colour have a map of that colour.
        found += [*marks.get_facecolor(), *marks.get_edgecolor()] if marks.get_array() is None else []
    for coloured in _mapped(drawn):
        if coloured.get_cmap().name not in colormaps:
            found += list(getattr(coloured.get_cmap(), "colors", []))
    solid = (to_rgba(one) for one in found if one is not None and str(one).lower() not in ("none", "auto"))
    return {to_hex(one).lower() for one in solid if one[3] > 0}


_NOTHING = ("None", "none", "", " ", None)
_HALVES = ("left", "right", "top", "bottom")


def _grey(colour: str) -> bool:
    return colour[1:3] == colour[3:5] == colour[5:7]


def _mapped(drawn: Figure) -> list[Any]:
    """What has numbers and a colour map for them: pictures and areas."""
    every: list[Any] = drawn.findobj(lambda one: isinstance(one, ScalarMappable))
    return [one for one in every if one.get_visible() and one.get_array() is not None and one.get_array().ndim < 3]


def _maps(drawn: Figure) -> list[Colormap]:
    """Their maps that have a name; a list of colours is looked at as colours."""
    return [one.get_cmap() for one in _mapped(drawn) if one.get_cmap().name in colormaps]


def _own(one: Colormap) -> bool:
    # Not the name alone: anybody can call a map "viridis".
    return one.name in MAPS and bool((one(range(256)) == colormaps[one.name](range(256))).all())
