"""Exercises of lesson 08: the statistics of all tasks together, and whether two subspaces are the same."""

from __future__ import annotations

import torch
from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["POOLED", "PROBLEMS", "SUBSPACES"]


def _basis(out: int, k: int, seed: int) -> Tensor:
    return torch.linalg.qr(normal(out, k, seed=seed)).Q


POOLED = Problem(
    name="08.1",
    question=(
        "Write `pooled(means, variances)`: mean and variance, per channel, of the images of all tasks together, as a "
        "pair of tensors (channel,). `means` and `variances` are (task, channel): what each task's images have by "
        "themselves, each variance around that task's own mean; every task has equally many images, so many that it "
        "does not matter whether a variance is divided by n or n − 1."
    ),
    stub="def pooled(means, variances):\n    ...\n",
    code=(
        "def pooled(means, variances):\n"
        "    return means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)\n"
    ),
    cases=[
        {"means": normal(3, 4, seed=1, scale=2.0), "variances": normal(3, 4, seed=2).square() + 0.3},
        # One task far from the others.
        {"means": torch.tensor([[0.0], [0.0], [9.0], [1.0]]), "variances": torch.tensor([[1.0], [2.0], [0.5], [1.5]])},
    ],
    wrong=[
        Wrong(
            lambda means, variances: (means.mean(dim=0), variances.mean(dim=0)),
            "the variance is the mean of the tasks' own: what the tasks' *means* differ by is missing. This is what "
            "averaging the experts' statistics does.",
        ),
        Wrong(
            lambda means, variances: (means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0)),
            "PyTorch's `var` divides by T − 1 here, as if the tasks were drawn from many. These T tasks are all there "
            "are: `correction=0`.",
        ),
        Wrong(
            lambda means, variances: (means.mean(dim=0), means.var(dim=0, correction=0)),
            "only the spread of the tasks' means is there; that of the images inside each task is missing.",
        ),
        Wrong(
            lambda means, variances: (
                means.mean(dim=0),
                variances.sqrt().mean(dim=0).square() + means.var(dim=0, correction=0),
            ),
            "standard deviations are averaged and squared. Variances add up, standard deviations do not.",
        ),
        Wrong(
            lambda means, variances: (means.mean(dim=0), variances.mean(dim=0) + means.square().mean(dim=0)),
            "this is the mean square, not the variance: the square of the mean of all is still in it.",
        ),
        Wrong(
            lambda means, variances: (means.sum(dim=0), variances.sum(dim=0)),
            "sums of the tasks' numbers. Every image counts once, so means are averaged.",
        ),
        Wrong(
            lambda means, variances: (means.mean(dim=1), variances.mean(dim=1) + means.var(dim=1, correction=0)),
            "you averaged over channels, `dim=1`. Each channel has a statistic of its own; the tasks are `dim=0`.",
        ),
        Wrong(
            lambda means, variances: (
                means.mean(dim=0),
                (variances.mean(dim=0) + means.var(dim=0, correction=0)).sqrt(),
            ),
            "the second one is a standard deviation. Asked for is the variance.",
        ),
    ],
    hints=[
        "An image's distance from the mean of all has two parts: from its own task's mean, and that mean's from the "
        "mean of all.",
        "The two parts are uncorrelated, so the variance is the mean of the tasks' variances and the variance of "
        "their means, added.",
        "`means.mean(dim=0), variances.mean(dim=0) + means.var(dim=0, correction=0)`.",
    ],
)

_U, _W = _basis(6, 2, 5), _basis(6, 2, 6)
_TURN = torch.linalg.qr(normal(2, 2, seed=7)).Q


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one @ one.mT - other @ other.mT).norm())


SUBSPACES = Problem(
    name="08.2",
    question=(
        "Write `apart(one, other)`: how far apart two subspaces are, as the Frobenius norm of the difference of their "
        "projectors. `one` and `other` (out, k) are orthonormal bases, and two bases of the same subspace must come "
        "out 0 apart."
    ),
    stub="def apart(one, other):\n    ...\n",
    code="def apart(one, other):\n    return float((one @ one.T - other @ other.T).norm())\n",
    cases=[
        {"one": _U, "other": _U @ _TURN},
        {"one": _U, "other": _W},
        {"one": torch.eye(5)[:, :2], "other": torch.eye(5)[:, 2:4]},
    ],
    wrong=[
        Wrong(
            lambda one, other: float((one - other).norm()),
            "this compares the bases. A subspace has many: another machine may turn a basis or change its signs and "
            "mean the same subspace.",
        ),
        Wrong(
            lambda one, other: float((one.mT @ one - other.mT @ other).norm()),
            "UᵀU is the identity for every orthonormal basis, so this is 0 for any two subspaces. The projector is "
            "U Uᵀ.",
        ),
        Wrong(
            lambda one, other: float((one.abs() - other.abs()).norm()),
            "magnitudes undo a change of signs, but not a turn inside the subspace.",
        ),
        Wrong(
            lambda one, other: float((one @ one.mT - other @ other.mT).square().sum()),
            "this is the square of the norm.",
        ),
        Wrong(
            lambda one, other: float((one.mT @ other).norm()),
            "this grows with what the two have in *common*: it is √k for one and the same subspace.",
        ),
        Wrong(
            lambda one, other: float((one @ one.mT).norm() - (other @ other.mT).norm()),
            "every projector onto k directions has the length √k, so this difference of lengths is always 0. Take the "
            "length of the difference.",
        ),
        Wrong(
            lambda one, other: float(torch.linalg.matrix_norm(one @ one.mT - other @ other.mT, 2)),
            "this is the spectral norm, the largest angle alone. Asked for is the Frobenius norm.",
        ),
    ],
    hints=[
        "A projector U Uᵀ is the same for every orthonormal basis U of a subspace.",
        "`.norm()` of a matrix is its Frobenius norm.",
        "`float((one @ one.T - other @ other.T).norm())`.",
    ],
)


PROBLEMS = (POOLED, SUBSPACES)
