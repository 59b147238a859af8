"""Methods over several training seeds: how far each is from a reference, seed by seed, and what the mean is worth."""

from __future__ import annotations

import math

from matplotlib.lines import Line2D

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, MARKERS, figure, styled
from apgd_teach.trials import Trials

__all__ = ["draw_over_seeds"]

_GREY = COLORS[7]
_KINDS = (COLORS[0], COLORS[1], COLORS[3], COLORS[4], COLORS[5])


def draw_over_seeds(trials: Trials, reference: str = "average", *, title: str = "") -> Drawing:
    """Methods one below the other: a mark for every seed, and the mean with its 95 % interval over the seeds.

    Args:
        trials: of several seeds.
        reference: what they are held against: a method's label, "base" or "experts".
        title: what was compared, above the picture.

    Raises:
        ApgdTeachError: there is no other method, or no such reference.

    Lesson: 07.
    """
    data_used = {label: used for label, used in trials.data_used.items() if label != reference}
    if not data_used:
        raise ApgdTeachError("no method was compared with the reference; give at least one more.")
    held = trials.accuracies(reference)
    means = {label: trials.against(label, reference) for label in data_used}
    labels = [label for label in trials.ranking() if label in means]
    kinds = sorted(set(data_used.values()), key=lambda kind: (kind != "none", kind))
    color = {label: _KINDS[kinds.index(data_used[label]) % len(_KINDS)] for label in labels}
    with styled():
        drawn, (axes,) = figure(width=8.4, height=2.0 + 0.36 * len(labels))
        axes.axvline(0, color=_GREY, linestyle=(0, (5, 1)))
        for row, label in enumerate(labels):
            mean = means[label]
            known = not math.isnan(mean.margin)
            axes.errorbar(
                mean.points,
                row + 0.12,
                xerr=mean.margin if known else None,
                color=color[label],
                marker=MARKERS[1],
                linestyle="",
                capsize=3,
                markersize=6,
            )
            for place, (accuracy, other) in enumerate(zip(trials.accuracies(label), held, strict=True)):
                axes.plot(
                    accuracy - other,
                    row - 0.22,
                    marker=_seed_mark(place),
                    color=color[label],
                    fillstyle="none",
                    linestyle="",
                    markersize=6,
                )
        handles = [
            Line2D([], [], color=_GREY, linestyle=(0, (5, 1)), label=reference),
            Line2D([], [], color="black", marker=MARKERS[1], linestyle="-", markersize=6, label="mean, 95 % interval"),
            *(
                Line2D(
                    [],
                    [],
                    color="black",
                    marker=_seed_mark(place),
                    fillstyle="none",
                    linestyle="",
                    label=f"seed {seed}",
                )
                for place, seed in enumerate(trials.seeds)
            ),
        ]
        axes.set_yticks(range(len(labels)), [f"{label}  (data: {data_used[label]})" for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.6)
        axes.set_xlabel(f"mean accuracy less that of {reference} (points), paired by seed")
        axes.set_title(title or f"Methods against {reference}")
        drawn.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    verdicts = [mean.verdict for mean in means.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("better", "worse", "no difference seen")}
    ahead, behind = (
        [label for label in labels if round(means[label].points - means[labels[end]].points, 9) == 0] for end in (0, -1)
    )
    return Drawing(
        drawn,
        f"{title + ': over' if title else 'Over'} {len(trials.seeds)} seeds and against {reference}, "
        f"{_stand(ahead)} highest with {means[ahead[0]]} points and {_stand(behind)} lowest with "
        f"{means[behind[-1]]}. By the intervals over seeds {counts['better']} of {len(labels)} are better, "
        f"{counts['worse']} worse, and for {counts['no difference seen']} no difference is seen.",
        {f"{label} (points)": means[label].points for label in labels},
    )


def _seed_mark(place: int) -> str:
    # The square is the mean's.
    marks = [mark for mark in MARKERS if mark != MARKERS[1]]
    return marks[place % len(marks)]


def _stand(labels: list[str]) -> str:
    return f"{' and '.join(labels)} {'stands' if len(labels) == 1 else 'stand'}"
