"""Pictures of the course: each is a function of its parameters, with words for those who cannot see it."""

from apgd_teach.figures.anatomy import (
    cosine_matrix,
    draw_cosines,
    draw_norms,
    draw_spectra,
    draw_tasks,
    layer_norms,
    spectra,
)
from apgd_teach.figures.drawing import Drawing, show
from apgd_teach.figures.merges import draw_comparison, draw_paths, draw_planes
from apgd_teach.figures.panels import Panel, Slider, panel

__all__ = [
    "Drawing",
    "Panel",
    "Slider",
    "cosine_matrix",
    "draw_comparison",
    "draw_cosines",
    "draw_norms",
    "draw_paths",
    "draw_planes",
    "draw_spectra",
    "draw_tasks",
    "layer_norms",
    "panel",
    "show",
    "spectra",
]
