"""Exercises of lesson 05: a basis, what several tasks share, and what a projector leaves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong, same

__all__ = ["BASIS", "COMPLEMENT", "PROBLEMS", "SHARED"]


def _projector(basis: Tensor) -> Tensor:
    return basis @ basis.mT


def _as_good(found: object, expected: object, arguments: Mapping[str, object]) -> bool:
    """A basis is as good as another of the same subspace, if it is orthonormal."""
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or found.shape != expected.shape:
        return False
    found, expected = found.double(), expected.double()
    eye = torch.eye(found.shape[1], dtype=found.dtype)
    return same(found.mT @ found, eye) and same(_projector(found), _projector(expected))


def _left(matrix: Tensor, count: int) -> Tensor:
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :count]


BASIS = Problem(
    name="05.1",
    question=(
        "Write `output_basis(task_vector, count)`: an orthonormal basis of the first `count` directions of "
        "the *outputs* that a task vector (out, in) writes into, its left singular vectors of the largest singular "
        "values, as the columns of a matrix (out, count). Any orthonormal basis of the same subspace will do."
    ),
    stub="def output_basis(task_vector, count):\n    ...\n",
    code=(
        "import torch\n\n\n"
        "def output_basis(task_vector, count):\n"
        "    U, S, Vh = torch.linalg.svd(task_vector, full_matrices=False)\n"
        "    return U[:, :count]\n"
    ),
    # Neither square nor of one shape: U and V cannot be mistaken for each other.
    cases=[{"task_vector": normal(5, 3, seed=1), "count": 2}, {"task_vector": normal(4, 6, seed=2), "count": 3}],
    equal=_as_good,
    wrong=[
        Wrong(
            lambda task_vector, count: torch.linalg.svd(task_vector, full_matrices=False).Vh[:count].mT,
            "these are right singular vectors, V: directions of the *inputs*. The outputs' are the left ones, U.",
        ),
        Wrong(
            lambda task_vector, count: torch.linalg.svd(task_vector, full_matrices=False).U[:count],
            "these are the first rows of U. A singular vector is a *column* of U.",
        ),
        Wrong(
            lambda task_vector, count: torch.linalg.svd(task_vector, full_matrices=False).U[:, -count:],
            "these are the last directions, the shortest ones. Singular values come longest first.",
        ),
        Wrong(
            lambda task_vector, count: _left(task_vector, count) * torch.linalg.svdvals(task_vector)[:count],
            "each column is as long as its singular value. In a basis that can be projected with, all have length one.",
        ),
        Wrong(
            lambda task_vector, count: task_vector[:, :count],
            "these are columns of τ itself: neither orthonormal nor the ones that matter most.",
        ),
    ],
    hints=[
        "`torch.linalg.svd(τ, full_matrices=False)` gives U, the singular values, and Vᵀ.",
        "τ x lies in the outputs, and U's columns are the directions that it is made of.",
        "`U[:, :count]`.",
    ],
)


SHARED = Problem(
    name="05.2",
    question=(
        "Write `shared_basis(task_vectors, per_task, keep)`: of each τ (out, in) take the first `per_task` "
        "left singular vectors, put them side by side, and return the first `keep` left singular vectors of "
        "*that*, shape (out, keep): the directions that many tasks write into come first."
    ),
    stub="def shared_basis(task_vectors, per_task, keep):\n    ...\n",
    code=(
        "import torch\n\n\n"
        "def shared_basis(task_vectors, per_task, keep):\n"
        "    firsts = [torch.linalg.svd(tau, full_matrices=False).U[:, :per_task] for tau in task_vectors]\n"
        "    return torch.linalg.svd(torch.cat(firsts, dim=1), full_matrices=False).U[:, :keep]\n"
    ),
    cases=[
        {"task_vectors": normal(3, 6, 5, seed=3), "per_task": 2, "keep": 3},
        {"task_vectors": normal(3, 7, 9, seed=4), "per_task": 3, "keep": 4},
    ],
    equal=_as_good,
    wrong=[
        Wrong(
            lambda task_vectors, per_task, keep: torch.cat([_left(one, per_task) for one in task_vectors], dim=1)[
                :, :keep
            ],
            "these are the tasks' vectors side by side, cut off. Vectors of different tasks are not at right "
            "angles, so this is no orthonormal basis, and the last tasks have no say. One more SVD, of all of "
            "them together.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: _left(torch.cat(list(task_vectors), dim=1), keep),
            "here the task vectors themselves stand side by side: the longest of them decides alone. Take each task's "
            "singular vectors first, all of length one.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: _left(task_vectors.sum(dim=0), keep),
            "the task vectors are added up first: what two tasks want in opposite directions cancels, though both use "
            "the direction.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: torch.linalg.svd(
                torch.cat([_left(one, per_task) for one in task_vectors], dim=1), full_matrices=False
            ).U[:, -keep:],
            "these are the last directions, which the fewest tasks share.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: torch.linalg.qr(
                torch.cat([_left(one, per_task) for one in task_vectors], dim=1)
            ).Q[:, :keep],
            "it is orthonormal, but in the order of the tasks: the first task's directions come first, shared or not. "
            "An SVD puts those first that many tasks have in common.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: _left(
                torch.cat([_left(one, per_task) * torch.linalg.svdvals(one)[:per_task] for one in task_vectors], dim=1),
                keep,
            ),
            "each column counts by its singular value here, so the longest directions decide. Every direction counts "
            "as one.",
        ),
        Wrong(
            lambda task_vectors, per_task, keep: _left(
                torch.stack([_left(one, per_task) for one in task_vectors]).reshape(task_vectors.shape[1], -1), keep
            ),
            "`reshape` mixes the rows of different tasks. Put the tasks' columns beside each other: `torch.cat(…, "
            "dim=1)`.",
        ),
    ],
    hints=[
        "Two steps: an SVD for each task, then one of all their vectors together.",
        "`torch.cat([...], dim=1)` puts columns side by side.",
        "Of the result, again the first columns of U.",
    ],
)


COMPLEMENT = Problem(
    name="05.3",
    question=(
        "Write `off_the_shared(matrix, basis, hold)`: what is left of a matrix (out, in), the way that a merge goes, "
        "when the shared subspace is protected. Its orthonormal basis U is (out, k); `hold` (k,) says of each of its "
        "directions which share is taken away: 1 all of it, a wall; 0 nothing; in between, a soft protection."
    ),
    stub="def off_the_shared(matrix, basis, hold):\n    ...\n",
    code=(
        "def off_the_shared(matrix, basis, hold):\n    return matrix - basis @ (hold[:, None] * (basis.T @ matrix))\n"
    ),
    # Square, so that P on the wrong side is a wrong answer and not an error.
    cases=[
        {
            "matrix": normal(5, 5, seed=5),
            "basis": torch.linalg.qr(normal(5, 2, seed=6)).Q,
            "hold": torch.tensor([1.0, 0.25]),
        },
        {
            "matrix": normal(6, 6, seed=7),
            "basis": torch.linalg.qr(normal(6, 3, seed=8)).Q,
            "hold": torch.tensor([0.75, 0.0, 0.5]),
        },
    ],
    wrong=[
        Wrong(
            lambda matrix, basis, hold: basis @ (hold[:, None] * (basis.mT @ matrix)),
            "this is the part that is *held*. Asked for is what is left when that is taken away from the matrix.",
        ),
        Wrong(
            lambda matrix, basis, hold: basis @ (basis.mT @ matrix),
            "this is the whole part *inside* the shared subspace: P X, projected into it. Asked for is what is left "
            "when the held share of that is taken away.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix - basis @ (basis.mT @ matrix),
            "every direction is taken away whole: that is the wall, (I − P) X. Here each is held by its own share, "
            "`hold`.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix - basis @ ((1 - hold)[:, None] * (basis.mT @ matrix)),
            "1 and 0 are exchanged: a share of 1 means that nothing of that direction is left.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix + basis @ (hold[:, None] * (basis.mT @ matrix)),
            "the held part is added a second time, where it should be taken away.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix - ((matrix @ basis) * hold) @ basis.mT,
            "P stands on the right here, and acts on the inputs. The basis is of the outputs: P belongs on the left.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix - (basis * hold) @ ((basis * hold).mT @ matrix),
            "each share counts twice, as its square: it belongs to one of the two factors of U Uᵀ only.",
        ),
        Wrong(
            lambda matrix, basis, hold: hold[:, None] * (basis.mT @ matrix),
            "these are the coordinates in the shared subspace, k rows of them, and no longer a matrix of this layer.",
        ),
        Wrong(
            lambda matrix, basis, hold: matrix - basis @ (basis.mT @ matrix) * hold.mean(),
            "one share for all directions, their mean. Each direction has its own.",
        ),
    ],
    hints=[
        "Uᵀ X (k, in) are the coordinates in the subspace: one row per direction. Scale each row by its "
        "share, turn it back into outputs with U, and take it away.",
        "`hold[:, None]` is (k, 1), and multiplies row by row.",
        "`matrix - basis @ (hold[:, None] * (basis.T @ matrix))`.",
    ],
)


PROBLEMS = (BASIS, SHARED, COMPLEMENT)
