"""Exercises of lesson 10: a method of one's own, and how often one of many ideas wins by chance."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["CHANCE", "PROBLEMS", "SAME_LENGTH"]


def _lengths(tau: Tensor) -> Tensor:
    return tau.flatten(1).norm(dim=1)


_TAU = normal(3, 4, 5, seed=3) * torch.tensor([0.2, 1.0, 4.0]).reshape(3, 1, 1)

SAME_LENGTH = Problem(
    name="10.1",
    question=(
        "Write `same_length(tau)`: the update of one layer in which every task counts by its direction alone, M = ℓ · "
        "mean over i of τᵢ / ‖τᵢ‖, where ℓ is the mean of all ‖τᵢ‖, so that the step stays about as long as before. "
        "`tau` is (task, out, in), no τᵢ is zero, ‖·‖ is the Frobenius norm; the result is (out, in)."
    ),
    stub="def same_length(tau):\n    ...\n",
    code=(
        "def same_length(tau):\n"
        "    lengths = tau.flatten(1).norm(dim=1).reshape(-1, 1, 1)\n"
        "    return lengths.mean() * (tau / lengths).mean(dim=0)\n"
    ),
    cases=[{"tau": _TAU}, {"tau": normal(2, 3, 2, seed=4)}],
    wrong=[
        Wrong(
            lambda tau: (tau / _lengths(tau).reshape(-1, 1, 1)).mean(dim=0),
            "ℓ is missing: directions of length 1 are averaged, and the step has nothing to do any more with how far "
            "the experts went.",
        ),
        Wrong(
            lambda tau: _lengths(tau).mean() * (tau / _lengths(tau).reshape(-1, 1, 1)).sum(dim=0),
            "there is a sum where a mean belongs, over the tasks or in ℓ: this step is T times as long.",
        ),
        Wrong(
            lambda tau: tau.mean(dim=0),
            "this is the average: each task counts by its length as well. (Dividing all of them by one number, and "
            "multiplying by it again, changes no task's share.)",
        ),
        Wrong(
            lambda tau: _lengths(tau).mean() * (tau / _lengths(tau).square().reshape(-1, 1, 1)).mean(dim=0),
            "you divided by ‖τ‖², the square: now the *shortest* task vector decides.",
        ),
        Wrong(
            lambda tau: tau.norm(dim=2, keepdim=True).mean() * (tau / tau.norm(dim=2, keepdim=True)).mean(dim=0),
            "every *row* got the same length. ‖τᵢ‖ is the length of a task's whole matrix: `tau.flatten(1)`.",
        ),
        Wrong(
            lambda tau: _lengths(tau).mean() * (tau / tau.abs().amax(dim=(1, 2), keepdim=True)).mean(dim=0),
            "you divided by the largest entry. ‖τᵢ‖ is the root of the sum of all squares.",
        ),
    ],
    hints=[
        "`tau.flatten(1)` is (task, everything else), and `.norm(dim=1)` of it one length for each task.",
        "To divide (task, out, in) by (task,), the lengths need two more axes: `.reshape(-1, 1, 1)`.",
        "`lengths.mean() * (tau / lengths).mean(dim=0)`.",
    ],
)

CHANCE = Problem(
    name="10.2",
    question=(
        "Write `by_chance(n)`: you try n ideas that in truth change nothing. Each is called better where its whole "
        "95 % interval lies above zero, and worse where it lies below; each of the two happens by chance to one idea "
        "in forty. How likely is it, as a number from 0 to 1, that at least one of the n is called *better*? Take the "
        "ideas to be independent."
    ),
    stub="def by_chance(n):\n    ...\n",
    code="def by_chance(n):\n    return 1 - (1 - 0.025) ** n\n",
    cases=[{"n": 1}, {"n": 5}, {"n": 60}],
    wrong=[
        Wrong(
            lambda n: 0.025 * n,
            "shares are added up, which counts twice what happens to two ideas at once: for 60 ideas it is above 1.",
        ),
        Wrong(
            lambda n: 1 - 0.95**n,
            "one interval in twenty misses the truth, but half of these say *worse*: it is one in forty for *better*.",
        ),
        Wrong(
            lambda n: 0.025**n,
            "this is the chance that *all* of them are called better.",
        ),
        Wrong(
            lambda n: 0.975**n,
            "this is the chance that *none* is called better.",
        ),
        Wrong(
            lambda n: 0.05 * n,
            "shares are added up, and those that say *worse* are among them.",
        ),
        Wrong(
            lambda n: 100 * (1 - 0.975**n),
            "this is per cent. Asked for is a number from 0 to 1.",
        ),
    ],
    hints=[
        "The opposite is easier: that none of the n is called better.",
        "One idea is *not* called better in 39 of 40 cases; n independent ones in `(39 / 40) ** n`.",
        "`1 - (1 - 0.025) ** n`.",
    ],
)


PROBLEMS = (SAME_LENGTH, CHANCE)
