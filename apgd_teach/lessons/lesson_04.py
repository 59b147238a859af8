"""Exercises of lesson 04: the first-order estimate of the gap."""

from __future__ import annotations

from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["ESTIMATE", "PROBLEMS", "SURROGATE"]


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
    code=(
        "def estimated_gap(task_vectors, update):\n"
        "    return -(task_vectors * (update - task_vectors)).sum(dim=(1, 2))\n"
    ),
    cases=[
        {"task_vectors": normal(3, 2, 4, seed=1), "update": normal(2, 4, seed=2)},
        {"task_vectors": normal(4, 3, 2, seed=3), "update": normal(3, 2, seed=4)},
        # M went further along the first task's vector than its expert did: that estimate is below zero.
        {"task_vectors": normal(2, 2, 3, seed=5), "update": 2 * normal(2, 2, 3, seed=5)[0]},
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
        Wrong(
            lambda task_vectors, update: _inner(-task_vectors, update + task_vectors),
            "this is −⟨τ, M + τ⟩. The gap is measured from the task's own expert: M − τ.",
        ),
        Wrong(
            lambda task_vectors, update: _inner(task_vectors, task_vectors - update).abs(),
            "the sign is lost: where the merge goes further along τ than the expert, the estimate is below zero.",
        ),
        Wrong(
            lambda task_vectors, update: -_inner(update - task_vectors, update.expand_as(task_vectors)),
            "M stands in place of the gradient here. It is −τ that does.",
        ),
        Wrong(
            lambda task_vectors, update: _inner(task_vectors, task_vectors),
            "this is ‖τ‖², the estimate at the base. The merged update M is not used.",
        ),
    ],
    hints=[
        "⟨A, B⟩ of two matrices is the sum of the products of their entries.",
        "How does M differ from what task j's own expert did? `update - task_vectors`.",
        "`-(task_vectors * (update - task_vectors)).sum(dim=(1, 2))`.",
    ],
)


SURROGATE = Problem(
    name="04.2",
    question=(
        "Write `row_surrogate(task_vector, update)`: $\\lVert\\operatorname{diag} R\\rVert^2$ of one task, with "
        "$R = (M - \\tau)\\tau^\\top$. Both are (out, in); return one number."
    ),
    stub="def row_surrogate(task_vector, update):\n    ...\n",
    code=(
        "def row_surrogate(task_vector, update):\n"
        "    return float(((update - task_vector) * task_vector).sum(dim=1).square().sum())\n"
    ),
    cases=[
        {"task_vector": normal(3, 3, seed=6), "update": normal(3, 3, seed=7)},
        {"task_vector": normal(4, 4, seed=8), "update": normal(4, 4, seed=9)},
    ],
    wrong=[
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * task_vector).sum().square()),
            "this is (tr R)², one number for the whole layer, where rows may cancel each other. Square every row's "
            "number first, then add up.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) @ task_vector.mT).square().sum()),
            "this is ‖R‖², all of the residual. Asked for is its diagonal.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * task_vector).square().sum()),
            "every entry is squared before it is added up: a row's number is the *sum* of the products, and may cancel "
            "within the row.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * task_vector).sum(dim=0).square().sum()),
            "this adds up over the outputs: (M − τ)ᵀτ instead of (M − τ)τᵀ. A row belongs to an output unit.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * task_vector).sum(dim=1).norm()),
            "this is the length of the diagonal; its square is asked for.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * update).sum(dim=1).square().sum()),
            "this is the diagonal of (M − τ)Mᵀ. In the residual it is the task vector that stands on the right.",
        ),
        Wrong(
            lambda task_vector, update: float(((update - task_vector) * task_vector).sum(dim=1).square().mean()),
            "a mean where a sum is asked for.",
        ),
        Wrong(
            lambda task_vector, update: float((update * task_vector).sum(dim=1).square().sum()),
            "this measures M from the base. The residual measures it from the expert: M − τ.",
        ),
        Wrong(
            lambda task_vector, update: float((update - task_vector).square().sum()),
            "this is the squared distance to the expert. The residual asks only for what τ's own rows can see of it: "
            "times τᵀ.",
        ),
        Wrong(
            lambda task_vector, update: ((update - task_vector) * task_vector).sum(dim=1).square(),
            "these are the squares, one per row. Asked for is their sum.",
        ),
    ],
    hints=[
        "The diagonal of A Bᵀ holds the row-wise inner products of A and B.",
        "`((M − τ) * τ).sum(dim=1)` is the diagonal.",
        "Square it, add it up.",
    ],
)


PROBLEMS = (ESTIMATE, SURROGATE)
