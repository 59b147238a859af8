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
from apgd_teach.figures.arrival import draw_arrival, measure_arrival
from apgd_teach.figures.bills import measure_bill
from apgd_teach.figures.descent import draw_descent, layer_accuracy, measure_descent
from apgd_teach.figures.drawing import Drawing, show
from apgd_teach.figures.forecasts import forecast_table, measure_forecasts
from apgd_teach.figures.gaps import (
    draw_along,
    draw_estimate,
    draw_heat,
    estimated_gaps,
    gap_along,
    gradient_cosines,
    loss_gradients,
    measure_estimates,
    measure_heat,
    merged_layers,
    spearman,
)
from apgd_teach.figures.interference import draw_interference, draw_pairs, measure_pairs, pairwise_interference
from apgd_teach.figures.kept import measure_side_by_side
from apgd_teach.figures.laboratory import (
    draw_gap_closed,
    draw_laboratory,
    laboratory_along,
    measure_gap_closed,
    measure_laboratory,
    measure_overestimates,
)
from apgd_teach.figures.merges import draw_comparison, draw_paths, draw_planes
from apgd_teach.figures.mistakes import draw_confusion, draw_examples, find_mistakes
from apgd_teach.figures.outcomes import constraint_table, gap_closed, largest_fact, outcome_table, timed_merges
from apgd_teach.figures.panels import Panel, Slider, panel
from apgd_teach.figures.protection import (
    choices_table,
    measure_choices,
    measure_kept,
    measure_moved,
    measure_prices,
    measure_way,
)
from apgd_teach.figures.ranks import (
    draw_angles,
    draw_rank,
    draw_sharing,
    measure_angles,
    measure_rank,
    measure_sharing,
)
from apgd_teach.figures.residuals import draw_residual, measure_residuals
from apgd_teach.figures.seeds import draw_over_seeds
from apgd_teach.figures.shared import (
    layer_vectors,
    measure_firmness,
    measure_held,
    measure_overlaps,
)
from apgd_teach.figures.sizes import draw_sizes, measure_sizes
from apgd_teach.figures.steps import descended, draw_steps, measure_steps
from apgd_teach.figures.surrogates import measure_surrogates
from apgd_teach.figures.sweeps import draw_methods, draw_sweep, draw_tradeoff, sweep
from apgd_teach.figures.ways import Situation, draw_ways

__all__ = [
    "Drawing",
    "Panel",
    "Situation",
    "Slider",
    "choices_table",
    "constraint_table",
    "cosine_matrix",
    "descended",
    "draw_along",
    "draw_angles",
    "draw_arrival",
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
    "draw_sizes",
    "draw_spectra",
    "draw_steps",
    "draw_sweep",
    "draw_tasks",
    "draw_tradeoff",
    "draw_ways",
    "estimated_gaps",
    "find_mistakes",
    "forecast_table",
    "gap_along",
    "gap_closed",
    "gradient_cosines",
    "laboratory_along",
    "largest_fact",
    "layer_accuracy",
    "layer_norms",
    "layer_vectors",
    "loss_gradients",
    "measure_angles",
    "measure_arrival",
    "measure_bill",
    "measure_choices",
    "measure_descent",
    "measure_estimates",
    "measure_firmness",
    "measure_forecasts",
    "measure_gap_closed",
    "measure_heat",
    "measure_held",
    "measure_kept",
    "measure_laboratory",
    "measure_moved",
    "measure_overestimates",
    "measure_overlaps",
    "measure_pairs",
    "measure_prices",
    "measure_rank",
    "measure_residuals",
    "measure_sharing",
    "measure_side_by_side",
    "measure_sizes",
    "measure_steps",
    "measure_surrogates",
    "measure_way",
    "merged_layers",
    "outcome_table",
    "pairwise_interference",
    "panel",
    "show",
    "spearman",
    "spectra",
    "sweep",
    "timed_merges",
]
