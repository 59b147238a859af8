"""Exercises of lesson 04: the first-order estimate of the gap."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["ESTIMATE", "PROBLEMS"]


def _normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _inner(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum(dim=(1, 2))


ESTIMATE = Problem(
    name="04.1",
    question=(
        "Write `estimated_gap(task_vectors, update)`: the first-order estimate of each task's gap in one layer, "
        "$\\langle\\nabla L_j(\\theta_0), M - \\tau_j\\rangle$ with $-\\tau_j$ in place of the gradient that "
        "nobody has. `task_vectors` is (task, out, in), the merged update M is (out, in); return a tensor of "
        "shape (task,)."
    ),
    stub="def estimated_gap(task_vectors, update):\n    ...\n",
    solution=(
        "def estimated_gap(task_vectors, update):\n"
        "    return -(task_vectors * (update - task_vectors)).sum(dim=(1, 2))\n"
    ),
    cases=[
        {"task_vectors": _normal(3, 2, 4, seed=1), "update": _normal(2, 4, seed=2)},
        {"task_vectors": _normal(4, 3, 2, seed=3), "update": _normal(3, 2, seed=4)},
        # M went further along the first task's vector than its expert did: that estimate is below zero.
        {"task_vectors": _normal(2, 2, 3, seed=5), "update": 2 * _normal(2, 2, 3, seed=5)[0]},
    ],
    wrong=[
        Wrong(
            lambda task_vectors, update: _inner(task_vectors, update - task_vectors),
            "the sign is turned round: fine-tuning went *down* the gradient, so −τ stands for it. At the base, M "
            "= 0, the estimate must be ‖τ‖², a gap above zero.",
        ),
        Wrong(
            lambda task_vectors, update: -_inner(task_vectors, update.expand_as(task_vectors)),
            "this is measured from the base. The gap is measured from the task's own expert: M − τ, not M.",
        ),
        Wrong(
            lambda task_vectors, update: -(task_vectors * (update - task_vectors)).sum(),
            "this is one number for all tasks together. Each task has its own estimate.",
        ),
        Wrong(
            lambda task_vectors, update: -(task_vectors * (update - task_vectors)).sum(dim=2),
            "this is one number per task *and row*: the residual's diagonal, with its sign turned. The estimate adds "
            "the rows up.",
        ),
        Wrong(
            lambda task_vectors, update: _inner(update - task_vectors, update - task_vectors),
            "this is the squared distance to the expert: it knows no direction, and a step that helps the task counts "
            "as much as one that harms it.",
        ),
        Wrong(
            lambda task_vectors, update: -(task_vectors * (update - task_vectors)).mean(dim=(1, 2)),
            "a mean where a sum is asked for: ⟨ , ⟩ adds the products of all entries up.",
        ),
    ],
    hints=[
        "⟨A, B⟩ of two matrices is the sum of the products of their entries.",
        "How does M differ from what task j's own expert did? `update - task_vectors`.",
        "`-(task_vectors * (update - task_vectors)).sum(dim=(1, 2))`.",
    ],
)


PROBLEMS = (ESTIMATE,)
