"""The quadratic laboratory: the way of descent over the true loss, and how much of the gap each merge closes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import median

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from numpy.typing import NDArray
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.descent import check_share, walk
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.gaps import Along
from apgd_teach.figures.style import COLORS, MARKERS, figure, styled
from apgd_teach.merging import Laboratory, make_laboratory, projector
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.objective import objective
from apgd_teach.tables import Table

__all__ = [
    "SETTINGS",
    "TRAINED",
    "GapClosed",
    "LaboratoryPlane",
    "Overestimates",
    "draw_gap_closed",
    "draw_laboratory",
    "laboratory_along",
    "measure_gap_closed",
    "measure_laboratory",
    "measure_overestimates",
]

SETTINGS: dict[str, dict[str, object]] = {
    "as it is": {},
    "trained for ever": {"steps": None},
    "nothing in common": {"steps": None, "random_hessian": True},
}
"""Arguments of `make_laboratory`, by name. In the last two the task vectors do not know what matters to the tasks."""

TRAINED: dict[str, int | None] = {
    "1 step": 1,
    "2 steps": 2,
    "3 steps": 3,
    "5 steps": 5,
    "10 steps": 10,
    "ever": None,
}
"""How long an expert may have been trained: steps of gradient descent, None for until nothing changes."""

NEAR = 14
"""How far a name is from the middle of its point, in points; where it had to go farther a line leads there."""

Point = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class LaboratoryPlane:
    """A laboratory of two weights, seen from above.

    Attributes:
        granularity: of the surrogate that descent minimised.
        x, y: the first and the second weight over the grid.
        loss: Σⱼ Lⱼ over the grid, shape (y, x), in half squared errors.
        places: by name ("base", "expert of task 0", …, "average", "S", "optimum"), where it lies.
        gaps: the total gap there, Σⱼ Lⱼ(W) − Lⱼ(θⱼ), in half squared errors.
        closed: the share of the base's total gap that is closed there.
        path: where descent stands after every step, from S = step 0 on.
        path_gaps, path_closed: the same of every point of the path.
    """

    granularity: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    loss: Tensor
    places: dict[str, Point]
    gaps: dict[str, float]
    closed: dict[str, float]
    path: tuple[Point, ...]
    path_gaps: tuple[float, ...]
    path_closed: tuple[float, ...]


def measure_laboratory(
    laboratory: Laboratory, *, granularity: str = "row", steps: int = 60, points: int = 81
) -> LaboratoryPlane:
    """The true total loss around base, experts and optimum, and the way that descent takes without knowing it.

    With one output unit there is no subspace to protect: nothing is.

    Args:
        laboratory: one of two weights, as from `make_laboratory(out=1, in_=2)`.
        granularity: of the surrogate ("full" with p = 2). With one output unit all ask for the same; how long their
            steps are differs.
        steps: how many steps of descent.
        points: of the grid, along each side.

    Raises:
        ApgdTeachError: the laboratory has more or fewer than two weights, or a number is too small; `MergeError`, one
            of its kinds: there is no such granularity.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 04, 06.
    """
    if laboratory.initial.numel() != 2:
        raise ApgdTeachError(
            f"this laboratory has weights of shape {tuple(laboratory.initial.shape)}, and a plane has two; make one "
            "with make_laboratory(out=1, in_=2)."
        )
    if steps < 1 or points < 2:
        raise ApgdTeachError(f"steps is {steps} and points {points}; give at least 1 step and 2 points.")
    taus = laboratory.task_vectors
    solved = Apgd(granularity=granularity, protect=0.0, power=2.0, flatten=0.0).solve(taus)
    quadratic = objective(taus, granularity, power=2.0)
    way = laboratory.initial + torch.stack(list(islice(walk(quadratic, solved.start, solved.basis), steps + 1)))
    weights = {
        "base": laboratory.initial,
        **{f"expert of {name}": one["weight"] for name, one in laboratory.experts.items()},
        "average": laboratory.average(),
        "S": laboratory.initial + solved.start,
        "optimum": laboratory.optimum(),
    }
    every = torch.cat([torch.stack(list(weights.values())), way]).flatten(1)
    low, high = every.amin(0), every.amax(0)
    # Room on all sides, and the shape of the figure, so that distances are true in it.
    middle, half = (low + high) / 2, 0.66 * (high - low).clamp_min(1e-9)
    half = torch.maximum(half, torch.stack([1.3 * half[1], half[0] / 1.3]))
    x, y = (torch.linspace(float(m - h), float(m + h), points).double() for m, h in zip(middle, half, strict=True))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(points, points, *laboratory.initial.shape)
    loss = torch.stack([laboratory.loss(task, grid) for task in range(laboratory.n_tasks)]).sum(dim=0)
    return LaboratoryPlane(
        granularity=granularity,
        x=tuple(x.tolist()),
        y=tuple(y.tolist()),
        loss=loss,
        places={name: _point(one) for name, one in weights.items()},
        gaps={name: float(laboratory.total_gap(one)) for name, one in weights.items()},
        closed={name: float(laboratory.gap_closed(one)) for name, one in weights.items()},
        path=tuple(_point(one) for one in way),
        path_gaps=tuple(laboratory.total_gap(way).tolist()),
        path_closed=tuple(laboratory.gap_closed(way).tolist()),
    )


def laboratory_along(
    laboratory: Laboratory, weight: Tensor, *, points: int = 11, end: str = "the merged network"
) -> Along:
    """As `gap_along`, where gap, slope and curvature are known in closed form: for `draw_along`.

    Args:
        laboratory: of any shape.
        weight: W = θ₀ + M at the end of the way, shape (out, in).
        points: how many weights, both ends included; at least 2.
        end: what W is, in words.

    Raises:
        ApgdTeachError: fewer than two points.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    if points < 2:
        raise ApgdTeachError(f"a line has two ends, so points must be at least 2, not {points}.")
    update = weight - laboratory.initial
    steps = tuple(i / (points - 1) for i in range(points))
    way = laboratory.initial + torch.tensor(steps, dtype=torch.float64)[:, None, None] * update
    names, tasks = list(laboratory.experts), range(laboratory.n_tasks)
    slopes = [float((laboratory.gradient(task, laboratory.initial) * update).sum()) for task in tasks]
    curvatures = [float(((update @ laboratory.covariances[task]) * update).sum()) for task in tasks]
    return Along(
        titles={name: name for name in names},
        steps=steps,
        gaps={name: tuple(laboratory.gap(task, way).tolist()) for task, name in enumerate(names)},
        slopes=dict(zip(names, slopes, strict=True)),
        curvatures=dict(zip(names, curvatures, strict=True)),
        end=end,
        unit="half squared errors",
    )


@dataclass(frozen=True)
class Overestimates:
    """The base's own gap in laboratories of two weights: its first-order estimate as a multiple of the true one.

    Attributes:
        ratios: by how long the experts were trained, in words, a ratio per task.

    Lesson: 04.
    """

    ratios: dict[str, tuple[float, ...]]

    def table(self) -> Table:
        """One row per laboratory, one column per task."""
        tasks = len(next(iter(self.ratios.values())))
        return Table(
            ("expert trained for", *(f"task {task}" for task in range(tasks))),
            [(name, *each) for name, each in self.ratios.items()],
            digits=3,
            caption="The base's own gap: first-order estimate as a multiple of the true one",
        )


def measure_overestimates(
    trained: Mapping[str, int | None] = TRAINED, *, n_tasks: int = 2, seed: int = 0
) -> Overestimates:
    """By what factor the straight line misses the base's gap, the longer an expert was trained.

    Args:
        trained: by what to call it, steps of gradient descent; None for training for ever.
        n_tasks: of each laboratory, whose weights have the shape (1, 2).
        seed: of the laboratories, which have the same tasks.

    Raises:
        ApgdTeachError: there is nothing to measure, or experts that did not move have no gap to estimate.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    if not trained or 0 in trained.values():
        raise ApgdTeachError("give at least one number of steps, each from 1 on, or None for training for ever.")
    ratios = {}
    for name, steps in trained.items():
        one = make_laboratory(n_tasks, 1, 2, distance=1.0, seed=seed, steps=steps)
        gaps = torch.stack([one.gap(task, one.initial) for task in range(n_tasks)])
        ratios[name] = tuple((one.first_order_gap(one.initial) / gaps).tolist())
    return Overestimates(ratios)


def _point(weight: Tensor) -> Point:
    first, second = weight.flatten().tolist()
    return first, second


def draw_laboratory(measured: LaboratoryPlane, *, steps: int) -> Drawing:
    """The true total loss, the known points in it, and the way of descent up to a step.

    Args:
        measured: from `measure_laboratory`.
        steps: how many steps descent has taken, 0 (M = S) to as many as were measured.

    Raises:
        ApgdTeachError: there is no such step.

    Lesson: 04, 06.
    """
    last = len(measured.path) - 1
    if isinstance(steps, bool) or not isinstance(steps, int) or not 0 <= steps <= last:
        raise ApgdTeachError(f"there is no step {steps!r} here; give a whole number from 0 to {last}.")
    with styled():
        drawn, (axes,) = figure(width=7.4, height=5.8)
        loss = measured.loss.numpy()
        # Equal steps of its logarithm show the valley; levels have to rise, also where nothing slopes.
        lowest = max(float(loss.min()), 1e-9 * float(loss.max()), 1e-30)
        levels = np.geomspace(lowest, max(float(np.quantile(loss, 0.97)), 1.001 * lowest), 11)
        axes.contourf(measured.x, measured.y, loss, levels=levels, cmap="viridis_r", extend="both", alpha=0.55)
        lines = axes.contour(measured.x, measured.y, loss, levels=levels[1::2], colors="#444444", linewidths=0.6)
        numbers = axes.clabel(lines, fmt="%.2g", fontsize=8)
        axes.plot(*zip(*measured.path, strict=True), color="black", linewidth=1, linestyle=":")
        axes.plot(
            *zip(*measured.path[: steps + 1], strict=True),
            color=COLORS[1],
            linestyle="-",
            linewidth=2.2,
            marker=".",
            markersize=6,
        )
        marked = {**measured.places, "M": measured.path[steps]}
        for name, (x, y) in marked.items():
            # As in the other figures: the base is a circle, an expert a triangle, what was merged a square.
            kind, color = {
                "base": ("o", "white"),
                "average": ("s", COLORS[0]),
                "S": ("D", COLORS[4]),
                "optimum": ("*", "white"),
                "M": ("s", COLORS[1]),
            }.get(name, ("^", "white"))
            size = 15 if kind == "*" else 9
            axes.plot(x, y, kind, color=color, markeredgecolor="black", markersize=size, linestyle="")
        axes.set_xlim(measured.x[0], measured.x[-1])
        axes.set_ylim(measured.y[0], measured.y[-1])
        axes.set_aspect("equal")
        axes.grid(False)
        axes.set_xlabel("first weight")
        axes.set_ylabel("second weight")
        axes.set_title(f"Total loss of the tasks, and {steps} of {last} steps of descent")
        _name(axes, marked, measured.path, numbers)
        return Drawing(drawn, _plane_words(measured, steps), _plane_numbers(measured, steps))


def _name(axes: Axes, marked: Mapping[str, Point], path: Sequence[Point], numbers: Sequence[Text]) -> None:
    """Write names beside points so that none lies on another or on a point; with a line where it had to go far.

    Args:
        axes: with everything else in it.
        marked: by name, where each point lies; the last is the one that moves along the path.
        path: of descent, all of it: names of points that stay are to stay as well, whatever step is shown.
        numbers: of the contours: those that come to lie under a name are taken away.
    """
    drawn = axes.figure
    # Where the axes are is known once the layout is made.
    drawn.draw_without_rendering()  # type: ignore[union-attr]
    scale = drawn.dpi / 72
    frame = axes.get_window_extent()
    points = axes.transData.transform(list(marked.values()))
    way = axes.transData.transform(path)
    # The first steps are long: points between them stand for the line.
    between = (way[:-1, None] + np.linspace(0, 1, 6)[None, :, None] * np.diff(way, axis=0)[:, None]).reshape(-1, 2)
    taken = np.concatenate([_boxes(points, 16 * scale, 16 * scale), _boxes(between, 8 * scale, 8 * scale)])
    weights = np.concatenate([np.full(len(points), 5.0), np.full(len(between), 1.0)])
    weights[len(points) - 1] = 0.0
    named = np.empty((0, 4))
    turns = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    far, angle = (one.ravel() for one in np.meshgrid((NEAR, 22, 32, 44, 58, 74), turns, indexing="ij"))
    for own, name in enumerate(marked):
        if own == len(marked) - 1:
            weights[own] = 5.0
        width, height = (6.3 * len(name) + 6) * scale, 16 * scale
        aside = np.stack(
            [np.cos(angle) * (far * scale + width / 2), np.sin(angle) * (far * scale + height / 2)], axis=1
        )
        boxes = _boxes(points[own] + aside, width, height)
        inside = _shared(boxes, np.array([[frame.x0, frame.y0, frame.x1, frame.y1]]))[:, 0]
        # Nearer to another point than to its own, a name would be taken for that one's.
        reach = np.stack([_distance(boxes, point) for point in points], axis=1)
        others = np.delete(reach, [own, len(marked) - 1], axis=1).min(axis=1, initial=np.inf)
        # A line from a name to its point crosses no other name: the box that holds both is kept free of them.
        reached = np.where((far > NEAR)[:, None], _around(boxes, points[own]), boxes)
        cost = (
            _shared(boxes, taken) @ weights
            + _shared(reached, named).sum(axis=1) * 5
            + 10 * (width * height - inside)
            + far * scale
        )
        cost += 20 * np.maximum(reach[:, own] - others, 0)
        best = int(cost.argmin())
        named = np.concatenate([named, reached[best : best + 1]])
        axes.annotate(
            name,
            marked[name],
            xytext=tuple(aside[best] / scale),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.9, "linewidth": 0},
            arrowprops={"arrowstyle": "-", "color": "black", "linewidth": 0.8} if far[best] > NEAR else None,
            # Or the layout would move the axes away from where they were looked at.
        ).set_in_layout(False)
        for number in numbers:
            if number.get_visible():
                extent = number.get_window_extent()
                number.set_visible(not extent.overlaps(Bbox.from_extents(*boxes[best])))


def _boxes(centres: Floats, width: float, height: float) -> Floats:
    """Boxes (left, bottom, right, top) around centres (box, 2), in pixels."""
    half = np.array([width, height]) / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _around(boxes: Floats, point: Floats) -> Floats:
    """The smallest boxes around boxes (box, 4) and a point (2,)."""
    return np.concatenate([np.minimum(boxes[:, :2], point), np.maximum(boxes[:, 2:], point)], axis=1)


def _shared(some: Floats, others: Floats) -> Floats:
    """The areas that boxes (box, 4) and others (other, 4) share, shape (box, other), in square pixels."""
    one, other = some[:, None], others[None]
    sides = np.minimum(one[..., 2:], other[..., 2:]) - np.maximum(one[..., :2], other[..., :2])
    return np.asarray(np.clip(sides, 0, None).prod(axis=-1))


def _distance(boxes: Floats, point: Floats) -> Floats:
    """From each box (box, 4) to a point (2,), in pixels; 0 where it lies inside."""
    outside = np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0)
    return np.asarray(np.hypot(outside[:, 0], outside[:, 1]))


def _plane_words(measured: LaboratoryPlane, steps: int) -> str:
    gaps, closed = measured.gaps, measured.closed
    return (
        f"After {steps} of {len(measured.path) - 1} steps of descent the total gap is "
        f"{_number(measured.path_gaps[steps])} and {_percent(measured.path_closed[steps])} of the base's is closed. At "
        f"the average it is {_number(gaps['average'])} ({_percent(closed['average'])} closed), at the optimum, which "
        f"no merge without data knows, {_number(gaps['optimum'])} ({_percent(closed['optimum'])} closed)."
    )


def _plane_numbers(measured: LaboratoryPlane, steps: int) -> dict[str, object]:
    numbers: dict[str, object] = {
        "steps": steps,
        "total gap at M (half squared error)": measured.path_gaps[steps],
        "share of the base's gap closed, M (%)": 100 * measured.path_closed[steps],
    }
    for name in ("average", "optimum"):
        numbers[f"total gap at the {name} (half squared error)"] = measured.gaps[name]
        numbers[f"share of the base's gap closed, {name} (%)"] = 100 * measured.closed[name]
    return numbers


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _percent(share: float) -> str:
    # What is nearly all is not all.
    return f"{100 * share:.{1 if 0.99 < share < 1 else 0}f} %".replace("-", "−")


@dataclass(frozen=True)
class GapClosed:
    """How much of the base's gap each merge closes, over many laboratories.

    Attributes:
        shares: by setting (`SETTINGS`), by merge, a share per seed; in the order in which they are drawn.
        seeds: of the laboratories.
        protected: k, how many output directions the projected ones protect.
        out: of how many.
    """

    shares: dict[str, dict[str, tuple[float, ...]]]
    seeds: tuple[int, ...]
    protected: int
    out: int

    def ahead(self, setting: str) -> int:
        """In how many draws `full` closes more than the average."""
        found = self.shares[setting]
        return sum(full > plain for full, plain in zip(found["full"], found["average"], strict=True))

    def medians(self, setting: str) -> dict[str, float]:
        """By merge the median share over the draws."""
        return {name: median(each) for name, each in self.shares[setting].items()}


def measure_gap_closed(
    seeds: Sequence[int] = range(20), *, n_tasks: int = 2, out: int = 16, in_: int = 16, protect: float = 1 / 6
) -> GapClosed:
    """Solve laboratories of every setting exactly and ask the true loss what came of it.

    "full (projected)" is `full` with the shared subspace protected, and "projected optimum" the best that any merge
    under that constraint can reach; "optimum" is the best of all. Both optima use the covariances, which no merge has.

    Args:
        seeds: one laboratory each, the same seeds for every setting.
        n_tasks, out, in_: of the laboratories.
        protect: share of min(out, in) that the projected ones protect.

    Raises:
        ApgdTeachError: there is no seed; `MergeError`, one of its kinds: a laboratory or share that is none.

    Lesson: 04, 06.
    """
    check_share(protect)
    if not len(seeds):
        raise ApgdTeachError("there is no seed to draw a laboratory from; give at least one.")
    shares: dict[str, dict[str, tuple[float, ...]]] = {}
    protected = 0
    for setting, arguments in SETTINGS.items():
        closed: dict[str, list[float]] = {}
        for seed in seeds:
            laboratory = make_laboratory(n_tasks, out, in_, seed=seed, **arguments)  # type: ignore[arg-type]
            taus = laboratory.task_vectors
            exact = {"power": 2.0, "filter": "cutoff", "flatten": 0.0}
            row = Apgd(granularity="row", protect=0.0, **exact).solve(taus)  # type: ignore[arg-type]
            full = Apgd(granularity="full", protect=0.0, **exact).solve(taus)  # type: ignore[arg-type]
            held = Apgd(granularity="full", protect=protect, **exact).solve(taus)  # type: ignore[arg-type]
            protected = held.basis.shape[1]
            for name, weight in {
                "average": laboratory.average(),
                "row": laboratory.initial + row.update,
                "full": laboratory.initial + full.update,
                "full (projected)": laboratory.initial + held.update,
                "projected optimum": laboratory.projected_optimum(projector(held.basis), held.start),
                "optimum": laboratory.optimum(),
            }.items():
                closed.setdefault(name, []).append(float(laboratory.gap_closed(weight)))
        shares[setting] = {name: tuple(each) for name, each in closed.items()}
    return GapClosed(shares, tuple(seeds), protected, out)


def draw_gap_closed(measured: GapClosed, *, setting: str) -> Drawing:
    """The share of the base's gap that each merge closes: a dot per laboratory, a bar at the median.

    Args:
        measured: from `measure_gap_closed`.
        setting: one of `SETTINGS`.

    Raises:
        ApgdTeachError: there is no such setting.

    Lesson: 04, 06.
    """
    if setting not in measured.shares:
        raise ApgdTeachError(f"there is no setting '{setting}'; there are: {', '.join(measured.shares)}.")
    found = measured.shares[setting]
    middle = measured.medians(setting)
    with styled():
        drawn, (axes,) = figure(width=8.4, height=4.2)
        count = len(measured.seeds)
        # One above the other in the order of the seeds, so that no dot hides another and a seed can be followed.
        aside = [0.5 * (i / (count - 1) - 0.5) if count > 1 else 0.0 for i in range(count)]
        for i, (name, each) in enumerate(found.items()):
            axes.plot(
                [100 * one for one in each],
                [i + one for one in aside],
                color=COLORS[i],
                marker=MARKERS[i],
                markersize=4.5,
                linestyle="",
                alpha=0.75,
            )
            axes.plot(
                [100 * middle[name]] * 2, [i - 0.36, i + 0.36], color="black", linestyle="-", linewidth=2.5, zorder=1.9
            )
        for value, style in ((0, "--"), (100, ":")):
            axes.axvline(value, color="#7A7A7A", linewidth=1.2, linestyle=style)
        least = 100 * min(min(each) for each in found.values())
        axes.set_xlim(min(-5, least - 5), max(105, 100 * max(max(each) for each in found.values()) + 3))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.set_yticks(range(len(found)), list(found))
        axes.set_xlabel("share of the base's gap closed (%)\n0: as the base; 100: as every task's own expert")
        axes.set_title(f"Setting '{setting}': {count} draws, bar at the median")
        ahead = measured.ahead(setting)
        words = (
            f"Setting '{setting}', {count} draws: the median share of the base's gap that is closed is "
            + ", ".join(f"{_percent(value)} for {name}" for name, value in middle.items())
            + f" (projected: {measured.protected} of {measured.out} directions protected). Full closes more than the "
            f"average in {ahead} of {count} draws."
        )
        numbers: dict[str, object] = {f"median share closed, {name} (%)": 100 * value for name, value in middle.items()}
        numbers["draws in which full closes more than the average"] = ahead
        return Drawing(drawn, words, numbers)
