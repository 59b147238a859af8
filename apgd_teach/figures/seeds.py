"""Methods over several training seeds: how far each is from a reference, seed by seed, and what the mean is worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from matplotlib.lines import Line2D

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Difference
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, MARKERS, figure, styled

__all__ = ["OverSeeds", "draw_over_seeds", "over_seeds"]

_GREY = COLORS[7]
_KINDS = (COLORS[0], COLORS[1], COLORS[3], COLORS[4], COLORS[5])

Interval = Callable[[Sequence[float], Sequence[float]], tuple[float, float]]
"""From two lists of numbers, seed by seed: the mean of their differences and half of its 95 % interval."""


@dataclass(frozen=True)
class OverSeeds:
    """How far methods are from one of them, or from a bound, in mean accuracy over the tasks.

    Attributes:
        reference: what they are held against.
        seeds: one comparison each.
        differences: by label, the difference of mean accuracy from the reference at every seed, in points.
        means: by label, the mean over the seeds and half of its 95 % interval.
        data_used: by label, what data the method used.

    Lesson: 07.
    """

    reference: str
    seeds: tuple[int, ...]
    differences: dict[str, tuple[float, ...]]
    means: dict[str, Difference]
    data_used: dict[str, str]


def over_seeds(compared: Mapping[int, Comparison], reference: str, interval: Interval) -> OverSeeds:
    """Hold every method against one of them, paired by seed.

    Args:
        compared: by seed, what `compare` gave; the same methods at each.
        reference: a method's label, "base" or "experts".
        interval: what an interval is: from the accuracies of one method and of the reference, seed by seed, the mean
            difference and half of its width.

    Raises:
        ApgdTeachError: there are fewer than two seeds, they compare different methods, or the reference is not there.

    Lesson: 07.
    """
    if len(compared) < 2:
        raise ApgdTeachError(f"{len(compared)} seeds say nothing about the next one; give two comparisons or more.")
    first = next(iter(compared.values()))
    for seed, one in compared.items():
        if set(one.merged) != set(first.merged):
            odd = sorted(set(one.merged) ^ set(first.merged))
            raise ApgdTeachError(f"'{odd[0]}' was not compared at every seed (look at {seed}); compare the same ones.")
    known = [*first.merged, "base", "experts"]
    if reference not in known:
        raise ApgdTeachError(f"nothing called '{reference}' was compared; there are: {', '.join(known)}.")
    held = [one.average(reference) for one in compared.values()]
    differences, means = {}, {}
    for label in first.merged:
        if label == reference:
            continue
        accuracies = [one.average(label) for one in compared.values()]
        differences[label] = tuple(a - b for a, b in zip(accuracies, held, strict=True))
        points, margin = interval(accuracies, held)
        means[label] = Difference(float(points), float(margin))
    return OverSeeds(
        reference, tuple(compared), differences, means, {label: first.data_used[label] for label in differences}
    )


def draw_over_seeds(measured: OverSeeds, *, title: str = "") -> Drawing:
    """Methods one below the other: a mark for every seed, and the mean with its 95 % interval over the seeds.

    Args:
        measured: what `over_seeds` gave.
        title: what was compared, above the picture.

    Raises:
        ApgdTeachError: there is no method.

    Lesson: 07.
    """
    if not measured.means:
        raise ApgdTeachError("no method was compared with the reference; give at least one more.")
    labels = sorted(measured.means, key=lambda label: (-measured.means[label].points, label))
    kinds = sorted(set(measured.data_used.values()), key=lambda kind: (kind != "none", kind))
    color = {label: _KINDS[kinds.index(measured.data_used[label]) % len(_KINDS)] for label in labels}
    with styled():
        drawn, (axes,) = figure(width=8.4, height=2.0 + 0.36 * len(labels))
        axes.axvline(0, color=_GREY, linestyle=(0, (5, 1)))
        for row, label in enumerate(labels):
            mean = measured.means[label]
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
            for place, points in enumerate(measured.differences[label]):
                axes.plot(
                    points,
                    row - 0.22,
                    marker=_seed_mark(place),
                    color=color[label],
                    fillstyle="none",
                    linestyle="",
                    markersize=6,
                )
        handles = [
            Line2D([], [], color=_GREY, linestyle=(0, (5, 1)), label=measured.reference),
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
                for place, seed in enumerate(measured.seeds)
            ),
        ]
        axes.set_yticks(range(len(labels)), [f"{label}  (data: {measured.data_used[label]})" for label in labels])
        axes.set_ylim(len(labels) - 0.5, -0.6)
        axes.set_xlabel(f"mean accuracy less that of {measured.reference} (points), paired by seed")
        axes.set_title(title or f"Methods against {measured.reference}")
        drawn.legend(handles=handles, loc="outside lower center", ncols=min(5, len(handles)))
    verdicts = [mean.verdict for mean in measured.means.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("better", "worse", "no difference seen")}
    ahead, behind = labels[0], labels[-1]
    return Drawing(
        drawn,
        f"{title + ': over' if title else 'Over'} {len(measured.seeds)} seeds and against {measured.reference}, "
        f"{ahead} stands highest with {measured.means[ahead]} points and {behind} lowest with "
        f"{measured.means[behind]}. By the intervals over seeds {counts['better']} of {len(labels)} are better, "
        f"{counts['worse']} worse, and for {counts['no difference seen']} no difference is seen.",
        {f"{label} (points)": measured.means[label].points for label in labels},
    )


def _seed_mark(place: int) -> str:
    # The square is the mean's.
    marks = [mark for mark in MARKERS if mark != MARKERS[1]]
    return marks[place % len(marks)]
