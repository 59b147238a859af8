"""Pictures of the course: each is a function of its parameters, with words for those who cannot see it.

What a figure needs is measured by one function and drawn by another; `panel` puts sliders on the second.
"""

from apgd_teach.figures.anatomy import (
    cosine_matrix,
    draw_cosines,
    draw_norms,
    draw_spectra,
    draw_tasks,
    layer_norms,
    spectra,
)
from apgd_teach.figures.descent import draw_descent, measure_descent
from apgd_teach.figures.drawing import Drawing, show
from apgd_teach.figures.gaps import (
    draw_along,
    draw_estimate,
    draw_heat,
    estimated_gaps,
    gap_along,
    loss_gradients,
    measure_heat,
    spearman,
)
from apgd_teach.figures.interference import draw_interference, draw_pairs, measure_pairs, pairwise_interference
from apgd_teach.figures.laboratory import (
    draw_gap_closed,
    draw_laboratory,
    laboratory_along,
    measure_gap_closed,
    measure_laboratory,
)
from apgd_teach.figures.merges import draw_comparison, draw_paths, draw_planes
from apgd_teach.figures.mistakes import draw_confusion, draw_examples, find_mistakes
from apgd_teach.figures.panels import Panel, Slider, panel
from apgd_teach.figures.ranks import (
    draw_angles,
    draw_rank,
    draw_sharing,
    measure_angles,
    measure_rank,
    measure_sharing,
)
from apgd_teach.figures.residuals import draw_residual, measure_residuals
from apgd_teach.figures.seeds import draw_over_seeds, over_seeds
from apgd_teach.figures.steps import draw_steps, measure_steps
from apgd_teach.figures.sweeps import draw_methods, draw_sweep, draw_tradeoff, sweep

__all__ = [
    "Drawing",
    "Panel",
    "Slider",
    "cosine_matrix",
    "draw_along",
    "draw_angles",
    "draw_comparison",
    "draw_confusion",
    "draw_cosines",
    "draw_descent",
    "draw_estimate",
    "draw_examples",
    "draw_gap_closed",
    "draw_heat",
    "draw_interference",
    "draw_laboratory",
    "draw_methods",
    "draw_norms",
    "draw_over_seeds",
    "draw_pairs",
    "draw_paths",
    "draw_planes",
    "draw_rank",
    "draw_residual",
    "draw_sharing",
    "draw_spectra",
    "draw_steps",
    "draw_sweep",
    "draw_tasks",
    "draw_tradeoff",
    "estimated_gaps",
    "find_mistakes",
    "gap_along",
    "laboratory_along",
    "layer_norms",
    "loss_gradients",
    "measure_angles",
    "measure_descent",
    "measure_gap_closed",
    "measure_heat",
    "measure_laboratory",
    "measure_pairs",
    "measure_rank",
    "measure_residuals",
    "measure_sharing",
    "measure_steps",
    "over_seeds",
    "pairwise_interference",
    "panel",
    "show",
    "spearman",
    "spectra",
    "sweep",
]
