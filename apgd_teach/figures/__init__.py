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
from apgd_teach.figures.merges import draw_comparison, draw_paths, draw_planes
from apgd_teach.figures.style import show

__all__ = [
    "cosine_matrix",
    "draw_comparison",
    "draw_cosines",
    "draw_norms",
    "draw_paths",
    "draw_planes",
    "draw_spectra",
    "draw_tasks",
    "layer_norms",
    "show",
    "spectra",
]
