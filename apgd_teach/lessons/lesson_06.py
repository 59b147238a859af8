"""Exercises of lesson 06: what descent makes small, and a step of it that leaves the shared subspace alone."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["GRADIENT", "LEAK", "PROBLEMS", "STEP"]


def _rows(task_vectors: Tensor, update: Tensor) -> Tensor:
    """The residual's diagonals, shape (task, out, 1)."""
    return (task_vectors * (update - task_vectors)).sum(dim=2, keepdim=True)


GRADIENT = Problem(
    name="06.1",
    question=(
        "Write `row_gradient(task_vectors, update)`: the gradient in M of $\\frac12 \\sum_j \\lVert\\operatorname{diag}"
        " R_j\\rVert^2$, where $(\\operatorname{diag} R_j)_o = \\langle\\tau_{jo}, M_o - \\tau_{jo}\\rangle$ "
        "for output unit o. `task_vectors` is (task, out, in), M is (out, in); return (out, in)."
    ),
    stub="def row_gradient(task_vectors, update):\n    ...\n",
    code=(
        "def row_gradient(task_vectors, update):\n"
        "    residual = (task_vectors * (update - task_vectors)).sum(dim=2, keepdim=True)\n"
        "    return (residual * task_vectors).sum(dim=0)\n"
    ),
    cases=[
        {"task_vectors": normal(3, 2, 4, seed=1), "update": normal(2, 4, seed=2)},
        {"task_vectors": normal(4, 5, 3, seed=3), "update": normal(5, 3, seed=4)},
    ],
    wrong=[
        Wrong(
            lambda task_vectors, update: (_rows(task_vectors, update).sum(dim=1, keepdim=True) * task_vectors).sum(
                dim=0
            ),
            "one number per task is used for the whole layer: that is the gradient of (tr R)², granularity `layer`. "
            "`row` has a number per output unit.",
        ),
        Wrong(
            lambda task_vectors, update: ((update - task_vectors) @ task_vectors.mT @ task_vectors).sum(dim=0),
            "the whole residual is used, R τ: that is granularity `full`. `row` keeps the diagonal of R only.",
        ),
        Wrong(
            lambda task_vectors, update: -(_rows(task_vectors, update) * task_vectors).sum(dim=0),
            "the sign is turned round: a step against this gradient would make the residuals larger.",
        ),
        Wrong(
            lambda task_vectors, update: (_rows(task_vectors, update) * (update - task_vectors)).sum(dim=0),
            "each residual must multiply what M is multiplied by in it: τ, not M − τ.",
        ),
        Wrong(
            lambda task_vectors, update: (_rows(task_vectors, update) * task_vectors).mean(dim=0),
            "a mean over the tasks where a sum is asked for.",
        ),
        Wrong(
            lambda task_vectors, update: _rows(task_vectors, update).squeeze(2),
            "these are the residuals themselves, (task, out). The gradient has the shape of M.",
        ),
        Wrong(
            lambda task_vectors, update: 2 * (_rows(task_vectors, update) * task_vectors).sum(dim=0),
            "it is twice too large: the ½ in Q takes the 2 of the square away.",
        ),
        Wrong(
            lambda task_vectors, update: (_rows(task_vectors, update) * task_vectors).sum(dim=0) / 2,
            "it is half of it: the ½ in Q has taken the 2 of the square away already.",
        ),
        Wrong(
            lambda task_vectors, update: ((task_vectors * update).sum(dim=2, keepdim=True) * task_vectors).sum(dim=0),
            "the residual is ⟨τ, M − τ⟩, row by row; here τ has not been taken off M.",
        ),
        Wrong(
            lambda task_vectors, update: (
                (task_vectors * (update - task_vectors)).sum(dim=2, keepdim=True) * task_vectors
            ),
            "these are the tasks' own gradients, one each. Q adds the tasks up, and so does its gradient: shape "
            "(out, in).",
        ),
    ],
    hints=[
        "First the residuals, (task, out): add τ times M − τ up over the inputs.",
        "The derivative of ½ r² is r times the derivative of r; and r depends on row o of M through τ's row o.",
        "`residual = (τ * (M − τ)).sum(dim=2, keepdim=True)`, then `(residual * τ).sum(dim=0)`.",
    ],
)


def _inside(basis: Tensor, matrix: Tensor) -> Tensor:
    return basis @ (basis.mT @ matrix)


STEP = Problem(
    name="06.2",
    question=(
        "Write `projected_step(update, gradient, basis, rate)`: one step of descent, M − α·(the gradient "
        "without its part in the shared subspace). U (out, k) is an orthonormal basis of that subspace. M's "
        "own part in the subspace must stay what it is."
    ),
    stub="def projected_step(update, gradient, basis, rate):\n    ...\n",
    code=(
        "def projected_step(update, gradient, basis, rate):\n"
        "    free = gradient - basis @ (basis.T @ gradient)\n"
        "    return update - rate * free\n"
    ),
    cases=[
        {
            "update": normal(size, size, seed=size),
            "gradient": normal(size, size, seed=size + 1),
            "basis": torch.linalg.qr(normal(size, 2, seed=size + 2)).Q,
            "rate": rate,
        }
        for size, rate in ((5, 0.3), (6, 0.05))
    ],
    wrong=[
        Wrong(
            lambda update, gradient, basis, rate: update - rate * gradient,
            "the gradient goes in whole: this step moves what the tasks share.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - rate * _inside(basis, gradient),
            "this moves *only* what the tasks share: the gradient was projected into the subspace and not off it.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update + rate * (gradient - _inside(basis, gradient)),
            "this climbs: descent goes against the gradient.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - rate * gradient - _inside(basis, update - rate * gradient),
            "here the new M itself is projected: its part in the shared subspace becomes zero, where it should "
            "stay what it was. Project the gradient, not M.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - (gradient - _inside(basis, gradient)),
            "the rate is not used.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - rate * (gradient - (gradient @ basis) @ basis.mT),
            "P stands on the right here, and acts on the inputs. The basis is of the outputs: P belongs on the left.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: -rate * (gradient - basis @ (basis.T @ gradient)),
            "this is the step alone. Asked for is the new M: the old one and the step.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - rate * gradient + basis @ (basis.T @ gradient),
            "the shared part is put back without the rate, and the step took it away with the rate.",
        ),
        Wrong(
            lambda update, gradient, basis, rate: update - rate * (gradient - 2 * basis @ (basis.T @ gradient)),
            "this is a reflection: the shared part of the gradient is turned round, not removed.",
        ),
    ],
    hints=[
        "Two lines: what of the gradient is free, and a step against it.",
        "Exercise 05.3 was the first line, with every direction held whole: (I − P) ∇ = ∇ − U (Uᵀ ∇).",
        "`update - rate * (gradient - basis @ (basis.T @ gradient))`.",
    ],
)


LEAK = Problem(
    name="06.3",
    question=(
        "Write `leak(update, start, basis)`: how much of what was to stay has moved, "
        "$\\lVert P(M - S)\\rVert / \\lVert PS\\rVert$ with $P = UU^\\top$. `update` is M, `start` is S, `basis` the "
        "orthonormal U "
        "(out, k); return one number."
    ),
    stub="def leak(update, start, basis):\n    ...\n",
    code=(
        "def leak(update, start, basis):\n"
        "    return float((basis.T @ (update - start)).norm() / (basis.T @ start).norm())\n"
    ),
    cases=[
        {
            "update": normal(size, 4, seed=size),
            "start": normal(size, 4, seed=size + 1),
            "basis": torch.linalg.qr(normal(size, 2, seed=size + 2)).Q,
        }
        for size in (5, 7)
    ],
    wrong=[
        Wrong(
            lambda update, start, basis: float((update - start).norm() / start.norm()),
            "this is how far M went in all directions. Only the shared ones were to stay.",
        ),
        Wrong(
            lambda update, start, basis: float(
                (update - start - _inside(basis, update - start)).norm() / (start - _inside(basis, start)).norm()
            ),
            "this is what moved *outside* the shared subspace, where it may.",
        ),
        Wrong(
            lambda update, start, basis: float(_inside(basis, update - start).norm() / start.norm()),
            "it is divided by the whole of S. Of S, only the protected part can leak: ‖PS‖.",
        ),
        Wrong(
            lambda update, start, basis: float((basis.mT @ update).norm() / (basis.mT @ start).norm()),
            "this compares M with S. A leak is what *changed*: M − S.",
        ),
        Wrong(
            lambda update, start, basis: float(((basis.mT @ (update - start)).norm() / (basis.mT @ start).norm()) ** 2),
            "this is squared: a share of the energy, where a share of the length is asked for.",
        ),
        Wrong(
            lambda update, start, basis: float((update - start).norm() / (basis.mT @ start).norm()),
            "the numerator is not projected: what moved outside the shared subspace counts too. P takes M − S as well.",
        ),
        Wrong(
            lambda update, start, basis: float((_inside(basis, update) - start).norm() / _inside(basis, start).norm()),
            "a bracket is missing: P takes the whole of M − S, and not M alone.",
        ),
        Wrong(
            lambda update, start, basis: 100 * float((basis.mT @ (update - start)).norm() / (basis.mT @ start).norm()),
            "this is in per cent; asked for is the ratio itself.",
        ),
        Wrong(
            lambda update, start, basis: float((basis.T @ (update - start)).norm()),
            "this is how much has moved. Asked for is how much *of what was to stay*: divide by ‖PS‖.",
        ),
        Wrong(
            lambda update, start, basis: float((basis.T @ (update - start)).norm() / (update - start).norm()),
            "this is the share of the way that went into the subspace. Asked for is the share of ‖PS‖ that moved.",
        ),
        Wrong(
            lambda update, start, basis: float((basis.T @ (update - start)).norm() / (basis.T @ update).norm()),
            "it is divided by what lies there now, ‖PM‖. What was to stay is ‖PS‖.",
        ),
        Wrong(
            lambda update, start, basis: (
                abs(float((basis.T @ update).norm() - (basis.T @ start).norm())) / float((basis.T @ start).norm())
            ),
            "these are lengths compared. What turned without getting longer has moved, too: take the difference "
            "first, then its length.",
        ),
    ],
    hints=[
        "What changed, and of that what lies in the shared subspace?",
        "‖P X‖ = ‖Uᵀ X‖, since U's columns are orthonormal.",
        "`(basis.T @ (update - start)).norm() / (basis.T @ start).norm()`.",
    ],
)


PROBLEMS = (GRADIENT, STEP, LEAK)
