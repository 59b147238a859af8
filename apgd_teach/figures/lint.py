"""What can be seen to be wrong with a figure: colours that some cannot tell apart, letters that are too small."""

from __future__ import annotations

import os

from matplotlib.collections import Collection
from matplotlib.colors import Colormap, to_hex, to_rgba
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
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

    Looked at: the size of every text that is shown; colours of lines, marks and areas, each of which is one of `COLORS`
    or a grey; colour maps of pictures and areas, which are `MAPS`.

    Args:
        drawn: the figure, drawn or not.
    """
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
    maps = sorted({one.name for one in _maps(drawn)} - set(MAPS))
    if maps:
        problems.append(f"'{', '.join(maps)}' is no colour map of the course; take one of: {', '.join(MAPS)}.")
    return problems


def _of(drawn: Figure, kind: type) -> list:
    return [one for one in drawn.findobj(kind) if one.get_visible()]


def _colours(drawn: Figure) -> set[str]:
    found: list = []
    for line in _of(drawn, Line2D):
        found += [line.get_color()] if line.get_linestyle() not in ("None", "", " ") else []
        found += [line.get_markerfacecolor(), line.get_markeredgecolor()] if line.get_marker() not in _NO_MARK else []
    for patch in _of(drawn, Patch):
        found += [patch.get_facecolor(), patch.get_edgecolor()]
    for marks in _of(drawn, Collection):
        # What has its colours from a map is looked at as a map; contours in one colour have a map of that colour.
        own = marks.get_array() is None
        listed = getattr(marks.get_cmap(), "colors", []) if not own and marks.get_cmap().name == _LISTED else []
        found += [*marks.get_facecolor(), *marks.get_edgecolor()] if own else list(listed)
    found += [text.get_color() for text in _of(drawn, Text) if text.get_text().strip()]
    solid = (to_rgba(one) for one in found if not (isinstance(one, str) and one.lower() in ("none", "auto")))
    return {to_hex(one).lower() for one in solid if one[3] > 0}


_NO_MARK = ("None", "", " ", None)
_LISTED = "unnamed"


def _grey(colour: str) -> bool:
    return colour[1:3] == colour[3:5] == colour[5:7]


def _maps(drawn: Figure) -> list[Colormap]:
    pictures = [one for one in _of(drawn, AxesImage) if one.get_array() is not None and one.get_array().ndim == 2]
    areas = [one for one in _of(drawn, Collection) if one.get_array() is not None]
    return [one.get_cmap() for one in (*pictures, *areas) if one.get_cmap().name != _LISTED]
