"""Figures of how a layer is solved, from numbers that are quick to make and titles as they are. Also a program."""

from __future__ import annotations

import hashlib
from functools import cache

import torch
from torch import Tensor

from apgd_teach.data import TASKS
from apgd_teach.evaluate import Score, Scores
from apgd_teach.figures.arrival import Arrival, draw_arrival, measure_arrival
from apgd_teach.figures.descent import DescentPaths, draw_descent, measure_descent
from apgd_teach.figures.laboratory import (
    SETTINGS,
    GapClosed,
    LaboratoryPlane,
    draw_gap_closed,
    draw_laboratory,
    measure_gap_closed,
    measure_laboratory,
)
from apgd_teach.figures.ranks import (
    RankSweep,
    Sharing,
    SubspaceAngles,
    draw_angles,
    draw_rank,
    draw_sharing,
    measure_angles,
    measure_rank,
    measure_sharing,
)
from apgd_teach.figures.residuals import Residuals, draw_residual, measure_residuals
from apgd_teach.figures.style import png
from apgd_teach.merging import StateDict, make_laboratory

TITLES = {name: task.title for name, task in TASKS.items()}
NAMES = list(TITLES)
LONGEST = max(TITLES.values(), key=len)


def taus(tasks: int = 3, out: int = 12, in_: int = 20, seed: int = 0) -> Tensor:
    """Random task vectors that share something, of the length that fine-tuning makes."""
    draws = torch.Generator().manual_seed(seed)
    return 0.02 * torch.randn(tasks, out, in_, generator=draws) + 0.01 * torch.randn(out, in_, generator=draws)


def network(tasks: int = 3) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base of two layers, and experts of it."""
    draws = torch.Generator().manual_seed(7)
    base = {
        "layer1.weight": torch.randn(24, 18, generator=draws),
        "layer1.bias": torch.zeros(24),
        "layer2.weight": torch.randn(16, 24, generator=draws),
    }
    return base, {
        name: {key: one + 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()}
        for name in NAMES[:tasks]
    }


def score(state: StateDict) -> Scores:
    """As many of a thousand images right as the state dict lies near to each expert: a number that depends on it."""
    _, experts = network()
    scores = {}
    for name, expert in experts.items():
        far = sum(float((state[key] - expert[key]).square().sum()) for key in state) ** 0.5
        right = torch.arange(1000) < 1000 / (1 + 0.1 * far)
        scores[name] = Score(right, torch.zeros(1000))
    return scores


def accuracy(update: Tensor) -> float:
    return 100 - 50 * float(update.norm())


@cache
def plane(seed: int = 0) -> LaboratoryPlane:
    return measure_laboratory(make_laboratory(out=1, in_=2, seed=seed), steps=20)


@cache
def closed() -> GapClosed:
    return measure_gap_closed(range(6))


@cache
def paths(granularity: str = "row", protect: float = 1 / 6, scored: bool = False) -> DescentPaths:
    return measure_descent(
        taus(),
        granularity=granularity,
        protect=protect,
        steps=30,
        accuracy=accuracy if scored else None,
        at=(0, 10, 30, 100),
    )


@cache
def arrival() -> Arrival:
    return measure_arrival(make_laboratory(n_tasks=3))


@cache
def residuals(size: int = 64, protect: float = 0.0) -> Residuals:
    return measure_residuals(taus(), (LONGEST, "b", "c"), size=size, protect={"a share": protect})


@cache
def sweep() -> RankSweep:
    return measure_rank(*network(), score, titles=TITLES, flatten=0.0)


@cache
def angles() -> SubspaceAngles:
    one, other = taus(2, 48, 40)
    return measure_angles(one, other, (LONGEST, TITLES[NAMES[1]]), ranks=(1, 2, 4, 8, 16, 40))


@cache
def sharing() -> dict[str, Sharing]:
    return {"layer1.weight": measure_sharing(taus(8, 48, 40)), "few.weight": measure_sharing(taus(3, 6, 4))}


DRAWN_SOLVER = {
    **{
        f"laboratory {seed}, {n} steps": (plane, draw_laboratory, (seed,), {"steps": n})
        for seed in (0, 2, 5)
        for n in (0, 3, 20)
    },
    **{f"gap closed, {one}": (closed, draw_gap_closed, (), {"setting": one}) for one in SETTINGS},
    "descent, row": (paths, draw_descent, (), {"step": 0}),
    "descent, full": (paths, draw_descent, ("full",), {"step": 30}),
    "descent, layer, nothing protected": (paths, draw_descent, ("layer", 0.0), {"step": 7}),
    "descent with accuracies": (paths, draw_descent, ("row", 1 / 6, True), {"step": 12}),
    "arrival": (arrival, draw_arrival, (), {}),
    "residual": (residuals, draw_residual, (), {"task": LONGEST}),
    "residual in blocks": (residuals, draw_residual, (5, 0.25), {"task": LONGEST}),
    "rank, nothing": (sweep, draw_rank, (), {"share": 0.0}),
    "rank, 1/6": (sweep, draw_rank, (), {"share": 1 / 6}),
    "rank, all": (sweep, draw_rank, (), {"share": 1.0}),
    "angles, 1": (angles, draw_angles, (), {"rank": 1}),
    "angles, 16": (angles, draw_angles, (), {"rank": 16}),
    "angles, 40": (angles, draw_angles, (), {"rank": 40}),
    "sharing": (sharing, draw_sharing, (), {"layer": "layer1.weight"}),
    "sharing, nothing to keep": (sharing, draw_sharing, (), {"layer": "few.weight"}),
}
"""By name: what measures (kept, so that nothing is measured twice), what draws, and the arguments of both."""


def drawing(name: str):
    measure, draw, arguments, parameter = DRAWN_SOLVER[name]
    return draw(measure(*arguments), **parameter)


if __name__ == "__main__":
    for one in DRAWN_SOLVER:
        print(one, hashlib.sha256(png(drawing(one).figure)).hexdigest())
