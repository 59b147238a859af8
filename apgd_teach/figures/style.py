"""One look for every figure."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

__all__ = [
    "COLORS",
    "LINES",
    "MAPS",
    "MARKERS",
    "SMALLEST",
    "figure",
    "look",
    "png",
    "styled",
]

# Okabe and Ito's colours: told apart under the common colour-vision deficiencies. Markers differ as well.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7A7A7A")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (6, 2, 1, 2)))

MAPS = ("viridis", "viridis_r", "cividis", "RdBu", "RdBu_r", "gray", "gray_r")
"""Colour maps whose lightness says what their colour says; the blue and red of the diverging one stay apart."""
SMALLEST = 8.0
"""Points of the smallest letters: still read on a projector."""

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
    # Lines that say nothing of their look differ in colour and in shape all the same.
    "axes.prop_cycle": cycler(color=COLORS) + cycler(linestyle=LINES),
}


DRAWING = threading.RLock()
"""Held by the thread that draws."""


@contextmanager
def styled() -> Iterator[None]:
    """Draw inside this block to draw in the course's look; the reader's own settings neither matter nor change.

    Matplotlib's settings are one for all threads, and JupyterLab may ask for a panel's picture in another thread than
    the one that runs a cell: one of them draws at a time.
    """
    with DRAWING, mpl.rc_context():
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
    """A figure as PNG, the same bytes for the same drawing (no date or version inside).

    `savefig` lays a figure out in a first drawing and renders it in a second one. Here the one that renders lays out as
    well, which takes two thirds of the time; what comes out is the same, pixel by pixel.
    """
    stream = io.BytesIO()
    with styled():
        canvas = FigureCanvasAgg(drawn)
        canvas.draw()
        Image.fromarray(np.asarray(canvas.buffer_rgba())).save(stream, "PNG", dpi=(drawn.dpi, drawn.dpi))
    return stream.getvalue()
