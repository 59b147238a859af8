"""Exercises of lesson 03: one coefficient for all, one for each, and what trimming keeps."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["ARITHMETIC", "COEFFICIENTS", "PROBLEMS", "TRIM"]


def _vectors(seed: int) -> Tensor:
    """τ (task=3, out=2, in=4), of lengths that differ."""
    return normal(3, 2, 4, seed=seed) * torch.tensor([0.5, 1.0, 2.0])[:, None, None]


_BASES = [normal(2, 4, seed=20 + seed) for seed in range(2)]
_EXPERTS = [[_BASES[seed] + tau for tau in _vectors(seed)] for seed in range(2)]


ARITHMETIC = Problem(
    name="03.1",
    question=(
        "Write `task_arithmetic(base, experts, coefficient)` for one layer: "
        "$\\theta_0 + \\lambda \\sum_i (\\theta_i - \\theta_0)$. `base` is a matrix, `experts` a list of matrices."
    ),
    stub="def task_arithmetic(base, experts, coefficient):\n    ...\n",
    code=(
        "def task_arithmetic(base, experts, coefficient):\n"
        "    return base + coefficient * sum(expert - base for expert in experts)\n"
    ),
    # λ is never 1/T or 1: there several mistakes give the right answer.
    cases=[{"base": _BASES[seed], "experts": _EXPERTS[seed], "coefficient": (0.4, 0.7)[seed]} for seed in range(2)],
    wrong=[
        Wrong(
            lambda base, experts, coefficient: base + coefficient * sum(experts) - base,
            "a bracket is missing: the base has to be taken off *every* expert, before λ, not once at the end.",
        ),
        Wrong(
            lambda base, experts, coefficient: base + coefficient * sum(experts),
            "these are the experts' weights, not their task vectors: the base is in each of them.",
        ),
        Wrong(
            lambda base, experts, coefficient: coefficient * sum(one - base for one in experts),
            "this is the step alone. The merged network is the base *plus* the step.",
        ),
        Wrong(
            lambda base, experts, coefficient: base + coefficient * sum(one - base for one in experts) / len(experts),
            "a mean where a sum is asked for: here λ = 1 would be the average, and it should be λ = 1/T.",
        ),
        Wrong(
            lambda base, experts, coefficient: base - coefficient * sum(one - base for one in experts),
            "the sign is turned round: this walks away from the experts, and unlearns.",
        ),
        Wrong(
            lambda base, experts, coefficient: base + sum(one - base for one in experts),
            "λ is not used.",
        ),
        Wrong(
            lambda base, experts, coefficient: coefficient * (base + sum(expert - base for expert in experts)),
            "λ scales the base as well. A bracket is misplaced: λ belongs to the sum of the task vectors alone.",
        ),
        Wrong(
            lambda base, experts, coefficient: base + coefficient * (sum(experts) - base),
            "the base is taken off once, where it is in each of the T experts: take it off *every* one of them.",
        ),
        Wrong(
            lambda base, experts, coefficient: base + coefficient * (experts[-1] - base),
            "this is the last expert alone; is something overwritten in a loop where it should be added up?",
        ),
    ],
    hints=[
        "One expert first: what is its task vector, and what is λ times it?",
        "Add up the task vectors, multiply by λ, add the base.",
        "`base + coefficient * sum(expert - base for expert in experts)`.",
    ],
)


def _lengths(task_vectors: Tensor) -> Tensor:
    return task_vectors.flatten(1).norm(dim=1)


COEFFICIENTS = Problem(
    name="03.2",
    question=(
        "Write `task_aware(task_vectors, eta)`: one coefficient per task in this layer, "
        "$\\lambda_i = \\eta / \\lVert\\tau_i\\rVert$ with the Frobenius norm. `task_vectors` has the shape "
        "(task, out, in); return a tensor of shape (task,)."
    ),
    stub="def task_aware(task_vectors, eta):\n    ...\n",
    code=("def task_aware(task_vectors, eta):\n    return eta / task_vectors.flatten(1).norm(dim=1)\n"),
    cases=[{"task_vectors": _vectors(2), "eta": 0.3}, {"task_vectors": _vectors(3)[:2], "eta": 0.07}],
    wrong=[
        Wrong(
            lambda task_vectors, eta: eta / _lengths(task_vectors).square(),
            "this divides by the *square* of the norm: a task vector twice as long would count half as much as it "
            "should. With ‖τ‖ every λᵢτᵢ has the length η.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.norm(),
            "this is one number for all tasks, from the length of all of them together. Each task has its own.",
        ),
        Wrong(
            lambda task_vectors, eta: eta * _lengths(task_vectors),
            "it multiplies by the norm: long task vectors would drown the short ones even more.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.flatten(1).abs().sum(dim=1),
            "this is the sum of the magnitudes. The Frobenius norm is the root of the sum of *squares*.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.norm(dim=2),
            "this is a coefficient per task *and row*. The norm goes over the whole matrix of a task.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / torch.linalg.matrix_norm(task_vectors, ord=2),
            "this is the spectral norm, the largest singular value. The Frobenius norm counts all of them.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.flatten(1).norm(dim=1) / len(task_vectors),
            "it is divided by the number of tasks as well. Nothing in η/‖τ‖ asks how many there are.",
        ),
        Wrong(
            lambda task_vectors, eta: 1 / task_vectors.flatten(1).norm(dim=1),
            "η is not used.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.norm(dim=(1, 2)) / (1 / task_vectors.norm(dim=(1, 2))).sum(),
            "the coefficients have been made to add up to η. Each is η/‖τ‖, whatever the others are.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.square().mean(dim=(1, 2)).sqrt(),
            "this is the root of the *mean* square. The norm adds the squares up: a large layer is longer than a "
            "small one.",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.norm(dim=(1, 2), keepdim=True) * task_vectors,
            "these are the scaled task vectors. Asked for are the coefficients alone, shape (task,).",
        ),
        Wrong(
            lambda task_vectors, eta: eta / task_vectors.norm(dim=1),
            "this is a coefficient per task *and column*. The norm goes over both sides of the matrix: `dim=(1, 2)`.",
        ),
    ],
    hints=[
        "How long is one task vector, as a matrix: `task_vectors[0].norm()`?",
        "`flatten(1)` makes a row per task; `norm(dim=1)` is the length of each row.",
        "`eta / task_vectors.flatten(1).norm(dim=1)`.",
    ],
)


def _kept(task_vector: Tensor, share: float, by: Tensor, largest: bool = True, count: int | None = None) -> Tensor:
    count = round(share * task_vector.numel()) if count is None else count
    places = by.flatten().topk(count, largest=largest).indices
    mask = torch.zeros(task_vector.numel(), dtype=torch.bool)
    mask[places] = True
    return torch.where(mask.reshape(task_vector.shape), task_vector, 0.0)


TRIM = Problem(
    name="03.3",
    question=(
        "Write `trim(task_vector, share)`: keep the given share of the entries, those of the largest "
        "magnitude, and set all others to zero. The share times the number of entries is a whole number."
    ),
    stub="def trim(task_vector, share):\n    ...\n",
    code=(
        "def trim(task_vector, share):\n"
        "    count = round(share * task_vector.numel())\n"
        "    least = task_vector.abs().flatten().topk(count).values.min()\n"
        "    return task_vector * (task_vector.abs() >= least)\n"
    ),
    cases=[
        {"task_vector": normal(4, 5, seed=7), "share": 0.3},
        {"task_vector": normal(5, 4, seed=8) - 0.3, "share": 0.2},
        # 0.29 · 100 is a little less than 29 on a computer.
        {"task_vector": normal(10, 10, seed=9), "share": 0.29},
    ],
    wrong=[
        Wrong(
            lambda task_vector, share: _kept(task_vector, share, task_vector),
            "it keeps the largest *values*. A large negative entry moves the network as far as a positive one: go by "
            "the magnitude.",
        ),
        Wrong(
            lambda task_vector, share: _kept(task_vector, share, task_vector.abs(), largest=False),
            "it keeps the smallest entries and throws the largest away.",
        ),
        Wrong(
            lambda task_vector, share: _kept(task_vector, 1 - share, task_vector.abs()),
            "it throws the share away and keeps the rest.",
        ),
        Wrong(
            lambda task_vector, share: _kept(task_vector, share, task_vector.abs()).abs(),
            "the right entries are kept, without their signs.",
        ),
        Wrong(
            lambda task_vector, share: _kept(
                task_vector, share, task_vector.abs(), count=int(share * task_vector.numel())
            ),
            "one entry too few is kept where the share is 0.29 of 100: on a computer 0.29 · 100 is a little less than "
            "29, and `int` cuts off. Take `round`.",
        ),
        Wrong(
            lambda task_vector, share: (_kept(task_vector, share, task_vector.abs()) != 0).float(),
            "this is the mask. What is asked for are the entries themselves, and zeros between them.",
        ),
        Wrong(
            lambda task_vector, share: task_vector * (task_vector.abs() >= share * task_vector.abs().max()),
            "the threshold is a share of the largest magnitude. The share is of the *number* of entries.",
        ),
        Wrong(
            lambda task_vector, share: _kept(task_vector, share, task_vector.abs()) / share,
            "what is kept has been scaled up. Trimming leaves it as it is; scaling belongs to DARE, which drops at "
            "random.",
        ),
        Wrong(
            lambda task_vector, share: torch.stack([_kept(row, share, row.abs()) for row in task_vector]),
            "each row keeps its own share. The largest entries of the whole matrix stay, wherever they are.",
        ),
    ],
    hints=[
        "How many entries are kept: `round(share * task_vector.numel())`. How large must one be? Look at the "
        "magnitudes alone.",
        "`x.flatten().topk(k).values` are the k largest numbers of a tensor.",
        "The least magnitude that is kept is `task_vector.abs().flatten().topk(count).values.min()`.",
    ],
)


PROBLEMS = (ARITHMETIC, COEFFICIENTS, TRIM)
