"""Where descent arrives in the laboratory, in which the best M inside the constraint is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.descent import check_share
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.steps import step_axis
from apgd_teach.figures.style import COLORS, LINES, figure, look, styled
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.descent import descend
from apgd_teach.merging.laboratory import Laboratory
from apgd_teach.merging.objective import Full, Objective, objective
from apgd_teach.merging.statedict import norm
from apgd_teach.merging.subspace import projector
from apgd_teach.tables import Table

__all__ = ["TRUE", "Arrival", "draw_arrival", "measure_arrival"]

TRUE = "true losses"
"""What no merge has: followed, it must lead to the projected optimum."""


@dataclass(frozen=True)
class Arrival:
    """Descent inside the constraint P(M − S) = 0, by what it follows: the true losses, or a surrogate of their gaps.

    Attributes:
        steps: after how many was looked, from 0 on.
        distance: by what was followed, the distance to the projected optimum, in per cent of that of S.
        closed: by what was followed, how much of the base's total gap is closed, in per cent: of the true gap.
        best: how much of it the projected optimum closes, in per cent: no M inside the constraint closes more.
    """

    steps: tuple[int, ...]
    distance: dict[str, tuple[float, ...]]
    closed: dict[str, tuple[float, ...]]
    best: float

    def peak(self, name: str) -> tuple[float, int]:
        """The most of the gap that a way closes, in per cent, and after how many steps."""
        place = max(range(len(self.steps)), key=self.closed[name].__getitem__)
        return self.closed[name][place], self.steps[place]

    def table(self) -> Table:
        """A row for each number of steps, and one for the projected optimum."""
        rows: list[tuple[object, ...]] = [
            (step, *(one[i] for one in self.distance.values()), *(one[i] for one in self.closed.values()))
            for i, step in enumerate(self.steps)
        ]
        rows.append(("projected optimum", *(0.0 for _ in self.distance), *(self.best for _ in self.closed)))
        return Table(
            (
                "steps",
                *(f"{name}: distance %" for name in self.distance),
                *(f"{name}: gap closed %" for name in self.closed),
            ),
            rows,
            caption="In the laboratory: descent inside the constraint, by what it follows",
            note="Distance to the projected optimum, 100 % at S (0 steps). Gap closed: 0 % at the base, 100 % where "
            "the gaps add up to zero.",
        )


def measure_arrival(
    laboratory: Laboratory, *, protect: float = 1 / 6, steps: Sequence[int] = (3, 10, 30, 100, 300, 1000)
) -> Arrival:
    """Walk from S by projected descent on the true losses, on `row` and on `full`.

    Args:
        laboratory: from `make_laboratory`.
        protect: share of r = min(out, in) that is protected, 0 to 1.
        steps: after how many to look; 0, which is S, is added.

    Raises:
        ApgdTeachError: there is no number of steps or one that is no whole number from 1, S is the projected optimum
            already, or a share that `Apgd` refuses (`MergeError`, one of its kinds).

    Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    if not steps or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in steps):
        raise ApgdTeachError(f"the steps are {steps!r}; give whole numbers from 1.")
    check_share(protect)
    taus = laboratory.task_vectors
    begun = Apgd(protect=protect, flatten=0.0).solve(taus)
    goal = laboratory.projected_optimum(projector(begun.basis), begun.start) - laboratory.initial
    away = norm(begun.start - goal)
    if not away > 1e-9 * norm(goal):
        raise ApgdTeachError(
            "S is the projected optimum already, so there is no way to walk; protect less, or take a laboratory with "
            "more tasks."
        )
    followed: dict[str, Objective] = {TRUE: _true_losses(laboratory)}
    followed.update({name: objective(taus, name) for name in ("row", "full")})
    every = tuple(sorted({0, *steps}))
    reached = {
        name: [descend(quadratic, begun.start, begun.basis, count)[0] for count in every]
        for name, quadratic in followed.items()
    }

    def closed(update: Tensor) -> float:
        return 100 * float(laboratory.gap_closed(laboratory.initial + update))

    return Arrival(
        steps=every,
        distance={name: tuple(100 * norm(one - goal) / away for one in way) for name, way in reached.items()},
        closed={name: tuple(closed(one) for one in way) for name, way in reached.items()},
        best=closed(goal),
    )


def _true_losses(laboratory: Laboratory) -> Full:
    """Σⱼ Lⱼ(θ₀ + M): its gradient M ΣCⱼ − Σ(Wⱼ − θ₀)Cⱼ is the sum of the tasks' own."""
    moves = laboratory.targets - laboratory.initial
    pulls = moves @ laboratory.covariances
    return Full(laboratory.covariances.sum(dim=0), pulls.sum(dim=0), (pulls * moves).sum())


def draw_arrival(measured: Arrival) -> Drawing:
    """Distance to the projected optimum, and how much of the true gap is closed, over the number of steps.

    Args:
        measured: from `measure_arrival`.

    Lesson: 06.
    """
    with styled():
        drawn, axes = figure(1, 2, width=9.0, height=3.6)
        panels = (
            (axes[0], "Distance to the projected optimum", "% of that of S", measured.distance),
            (axes[1], "True gap closed", "% of the base's", measured.closed),
        )
        for place, title, label, values in panels:
            step_axis(place, measured.steps[1], measured.steps[-1])
            for i, (name, line) in enumerate(values.items()):
                place.plot(measured.steps, line, label=f"descent on {name}", **look(i))
            place.set_title(title)
            place.set_ylabel(label)
        axes[0].set_ylim(bottom=-4)
        axes[1].axhline(measured.best, color=COLORS[7], linestyle=LINES[4], label="projected optimum")
        drawn.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return Drawing(drawn, _words(measured), _numbers(measured))


def _words(measured: Arrival) -> str:
    parts = []
    for name in measured.distance:
        most, when = measured.peak(name)
        parts.append(
            f"descent on {name} is {measured.distance[name][-1]:.3g} % of the distance of S away from the projected "
            f"optimum and closes {measured.closed[name][-1]:.1f} % of the base's gap (the most on the way: "
            f"{most:.1f} % after {when:,} steps)"
        )
    return f"After {measured.steps[-1]:,} steps {'; '.join(parts)}. The projected optimum closes {measured.best:.1f} %."


def _numbers(measured: Arrival) -> dict[str, object]:
    numbers: dict[str, object] = {}
    for name in measured.distance:
        numbers[f"distance at the end, {name} (%)"] = measured.distance[name][-1]
        numbers[f"gap closed at the end, {name} (%)"] = measured.closed[name][-1]
    return numbers
