"""Exercises of lesson 01: how alike two task vectors are, and in how few directions one of them lies."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["COSINE", "ENERGY", "PROBLEMS"]


def _state(seed: int, scale: float) -> dict[str, Tensor]:
    # Layers of very different lengths: a mean over layers is not the cosine of the whole. One of them is a bias.
    return {
        "first": normal(2, 3, seed=seed, scale=scale),
        "bias": normal(3, seed=seed + 20),
        "second": normal(4, 2, seed=seed + 50),
    }


def _flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([state[key].flatten() for key in sorted(state)])


def _matrices(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: one for key, one in state.items() if one.ndim >= 2}


def _cosine(one: Tensor, other: Tensor) -> Tensor:
    return one.flatten() @ other.flatten() / (one.norm() * other.norm())


COSINE = Problem(
    name="01.1",
    question=(
        "Write `cosine(one, other)`: the cosine of the angle between two task vectors, all layers together. "
        "Both are state dicts with the same names, in whatever order; return one number."
    ),
    stub="def cosine(one, other):\n    ...\n",
    code=(
        "import torch\n\n\n"
        "def cosine(one, other):\n"
        "    a = torch.cat([one[key].flatten() for key in one])\n"
        "    b = torch.cat([other[key].flatten() for key in one])\n"
        "    return float(a @ b / (a.norm() * b.norm()))\n"
    ),
    cases=[
        {"one": _state(1, 3.0), "other": _state(2, 0.2)},
        # The same names in another order.
        {"one": _state(3, 0.5), "other": dict(reversed(_state(4, 5.0).items()))},
    ],
    wrong=[
        Wrong(
            lambda one, other: sum(_cosine(one[key], other[key]) for key in one) / len(one),
            "this is the mean of the layers' cosines: a short layer counts as much as a long one. Put all numbers into "
            "one vector first.",
        ),
        Wrong(
            lambda one, other: float(_flat(one) @ _flat(other)),
            "this is the inner product. It grows with the lengths; divide by both of them.",
        ),
        Wrong(
            lambda one, other: float(_flat(one) @ _flat(other) / (_flat(one).norm() * _flat(other).norm()) ** 2),
            "the lengths are squared: the cosine divides by each of them once.",
        ),
        Wrong(
            lambda one, other: float((_flat(one) - _flat(other)).norm()),
            "this is the distance between the two. The cosine does not ask how long they are.",
        ),
        Wrong(
            lambda one, other: abs(float(_cosine(_flat(one), _flat(other)))),
            "the sign is lost: two vectors that point against each other have a cosine below zero.",
        ),
        Wrong(
            lambda one, other: float(_cosine(_flat(_matrices(one)), _flat(_matrices(other)))),
            "only the matrices are in it: biases are layers as well.",
        ),
        Wrong(
            lambda one, other: 1 - _cosine(_flat(one), _flat(other)),
            "this is a distance, 1 − cos: asked for is the cosine itself, 1 for vectors that point the same way.",
        ),
        Wrong(
            lambda one, other: _cosine(_flat(one), _flat(other)).acos(),
            "this is the angle. Asked for is its cosine.",
        ),
        Wrong(
            lambda one, other: _cosine(_flat(one), _flat(other)).square(),
            "it is squared: the sign is lost, and small cosines become smaller.",
        ),
        Wrong(
            lambda one, other: _cosine(
                *(torch.cat([tensor.flatten() for tensor in each.values()]) for each in (one, other))
            ),
            "layers are put together by their order. The two may list their tensors in another order: go by the names.",
        ),
    ],
    hints=[
        "A state dict is one long vector, cut into tensors: `torch.cat([one[key].flatten() for key in …])`. Use one "
        "order of the names for both.",
        "The inner product, divided by both lengths.",
        "`a @ b / (a.norm() * b.norm())`.",
    ],
)


def _values(matrix: Tensor) -> Tensor:
    return torch.linalg.svdvals(matrix)


ENERGY = Problem(
    name="01.2",
    question=(
        "Write `energy(matrix, first)`: the share of the energy $\\sum_k s_k^2$ of a matrix that its "
        "`first` largest singular values carry, between 0 and 1. `matrix` is one layer of a task vector."
    ),
    stub="def energy(matrix, first):\n    ...\n",
    code=(
        "import torch\n\n\n"
        "def energy(matrix, first):\n"
        "    squares = torch.linalg.svdvals(matrix).square()\n"
        "    return float(squares[:first].sum() / squares.sum())\n"
    ),
    cases=[{"matrix": normal(5, 4, seed=7), "first": 2}, {"matrix": normal(3, 7, seed=8), "first": 1}],
    wrong=[
        Wrong(
            lambda matrix, first: float(_values(matrix)[:first].sum() / _values(matrix).sum()),
            "this adds up the singular values themselves. Energy is the sum of their *squares*.",
        ),
        Wrong(
            lambda matrix, first: float(_values(matrix)[:first].square().sum()),
            "this is the energy of the first directions, not its share of the whole.",
        ),
        Wrong(
            lambda matrix, first: float(_values(matrix)[first:].square().sum() / _values(matrix).square().sum()),
            "this is what the first directions leave over.",
        ),
        Wrong(
            lambda matrix, first: float(_values(matrix)[-first:].square().sum() / _values(matrix).square().sum()),
            "these are the smallest singular values: they come largest first.",
        ),
        Wrong(
            lambda matrix, first: 100 * float(_values(matrix)[:first].square().sum() / _values(matrix).square().sum()),
            "this is in per cent; a share lies between 0 and 1.",
        ),
        Wrong(
            lambda matrix, first: float(_values(matrix)[:first].norm() / _values(matrix).norm()),
            "this is a ratio of lengths. Energy is in squares: square it.",
        ),
        Wrong(
            lambda matrix, first: float(_values(matrix)[: first + 1].square().sum() / _values(matrix).square().sum()),
            "this is one direction too many: `s[:first]` are the first ones, without the one at `first`.",
        ),
    ],
    hints=[
        "`torch.linalg.svdvals(τ)` gives the singular values, largest first.",
        "Square them, then divide the sum of the first by the sum of all.",
        "`squares[:first].sum() / squares.sum()`.",
    ],
)


PROBLEMS = (COSINE, ENERGY)
