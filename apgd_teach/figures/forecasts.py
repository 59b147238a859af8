"""What the estimate of the gap foretells of several merges and of the order of their tasks, and what came of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.gaps import Estimates, spearman
from apgd_teach.merging.audit import LONG_STEP
from apgd_teach.tables import Table

__all__ = ["Forecast", "by_luck", "forecast_table", "measure_forecasts"]

_MOST = 9
"""So many numbers have 362,880 orders, which are all looked at."""


def by_luck(one: Sequence[float], other: Sequence[float]) -> float:
    """The share of all orders that agree with `other` at least as well as `one` does, by `spearman`.

    What a rank correlation over few numbers is worth: the chance that an order drawn blindly has one as high.

    Args:
        one, other: as many numbers each, at most nine.

    Returns:
        from 0 to 1; NaN where the rank correlation is not defined.

    Raises:
        ApgdTeachError: there are more numbers than nine, so too many orders to look at all of them.

    Lesson: 04.
    """
    if len(one) > _MOST:
        raise ApgdTeachError(f"{len(one)} numbers have too many orders to look at all of them; give at most {_MOST}.")
    found = spearman(one, other)
    if math.isnan(found):
        return math.nan
    ranks, fixed = (_ranks(line) for line in (one, other))
    # Ranks and their squares add up to the same in every order: the sum of products alone says which agrees better.
    return float((np.array(list(permutations(ranks))) @ fixed >= ranks @ fixed - 1e-9).mean())


def _ranks(line: Sequence[float]) -> np.ndarray:
    """Ranks from ½; equal numbers share the mean of theirs."""
    values = np.asarray(line, dtype=float)
    return np.asarray((values < values[:, None]).sum(axis=1) + (values == values[:, None]).sum(axis=1) / 2)


@dataclass(frozen=True)
class Forecast:
    """A merge, by what was known of it without data and by what was measured.

    Attributes:
        step: the largest ‖M‖/‖θ₀‖ of a merged layer.
        estimate: what is left of the estimate without data, tasks added up, as a share of the base's.
        gap: the same of the measured gap.
        gaps: the rank correlation over the tasks of estimated and measured gaps.
        gaps_by_luck: the share of all orders of the tasks that do as well.
        changes: the rank correlation of what the merge changes for each task: the gap less the base's.
        changes_by_luck: the share of all orders that do as well.

    Lesson: 04.
    """

    step: float
    estimate: float
    gap: float
    gaps: float
    gaps_by_luck: float
    changes: float
    changes_by_luck: float

    @property
    def warned(self) -> bool:
        """Whether the merge's audit warns of a long step."""
        return self.step > LONG_STEP

    @property
    def worse(self) -> bool:
        """Whether the gap became larger than the base's."""
        return self.gap > 1


def measure_forecasts(estimates: Estimates) -> dict[str, Forecast]:
    """Hold what the estimate says of each merge and of its tasks against what was measured.

    Args:
        estimates: what `estimated_gaps` gave, of at most nine tasks.

    Returns:
        by label, without the base.

    Raises:
        ApgdTeachError: there are more tasks.

    Lesson: 04.
    """

    def left(of: Mapping[str, Mapping[str, float]], label: str) -> float:
        return sum(of[label].values()) / sum(of["base"].values())

    found = {}
    for label, measured in estimates.measured.items():
        if label == "base":
            continue
        gaps = (list(estimates.data_free[label].values()), list(measured.values()))
        changes = estimates.changes(label)
        found[label] = Forecast(
            step=estimates.steps[label],
            estimate=left(estimates.data_free, label),
            gap=left(estimates.measured, label),
            gaps=spearman(*gaps),
            gaps_by_luck=by_luck(*gaps),
            changes=spearman(*changes),
            changes_by_luck=by_luck(*changes),
        )
    return found


def forecast_table(forecasts: Mapping[str, Forecast]) -> Table:
    """What was foretold of each merge and of its tasks, beside what was measured.

    Args:
        forecasts: by what to call the merge.

    Lesson: 04.
    """

    def order(value: float, luck: float) -> str:
        return "–" if math.isnan(value) else f"{value:.2f} ({100 * luck:.1f} %)".replace("-", "−")

    return Table(
        ("merge", "longest step %", "estimate left %", "gap left %", "order of the gaps", "order of the changes"),
        [
            (
                label,
                round(100 * one.step),
                round(100 * one.estimate),
                round(100 * one.gap),
                order(one.gaps, one.gaps_by_luck),
                order(one.changes, one.changes_by_luck),
            )
            for label, one in forecasts.items()
        ],
        caption="What the estimate without data says of each merge, and what was measured",
        note=f"Longest step: ‖M‖/‖θ₀‖ of a merged layer; the audit warns above {LONG_STEP:.0%}. Left: of the base's "
        "own, tasks added up. Orders: rank correlation over the tasks of estimate and measurement; in brackets the "
        "share of all orders that do as well.",
    )
