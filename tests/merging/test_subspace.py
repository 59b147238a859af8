"""The shared subspace: its equation in numpy, orthonormal bases whatever the spectrum, and angles between subspaces."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import principal_angles, projector, shared_basis
from apgd_teach.merging.subspace import eigh_in_place, left_vectors, overflows, right_vectors

# (task, out, in): square, wide, tall, more tasks than directions, one task, one row, one column.
SHAPES = [(3, 9, 9), (3, 8, 14), (3, 14, 8), (2, 30, 6), (7, 5, 4), (1, 6, 8), (2, 1, 5), (3, 7, 1)]
shapes = pytest.mark.parametrize("shape", SHAPES)


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def low_rank(out: int, columns: int, rank: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return draw(out, rank, seed=seed, dtype=dtype) @ draw(rank, columns, seed=seed + 50, dtype=dtype)


def orthonormal(out: int, k: int, seed: int = 0) -> Tensor:
    return torch.linalg.qr(draw(out, k, seed=seed)).Q


def literal_projector(tau: np.ndarray, keep: int, per_task: int, weighted: bool) -> np.ndarray:
    """Method.md §2.5 with numpy's SVDs: of each task some left singular vectors, of all of them together the first."""
    side_by_side = []
    for one in tau:
        left, values, _ = np.linalg.svd(one, full_matrices=False)
        for k in range(min(per_task, len(values))):
            length = values[k] / np.sqrt((one**2).sum()) if weighted else 1.0
            side_by_side.append(length * left[:, k])
    left = np.linalg.svd(np.stack(side_by_side, axis=1), full_matrices=False)[0]
    return left[:, :keep] @ left[:, :keep].T


def close(found: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    torch.testing.assert_close(
        found.to(expected.dtype), expected, rtol=0, atol=tolerance * max(1, expected.abs().max())
    )


def is_orthonormal(basis: Tensor, tolerance: float) -> None:
    eye = torch.eye(basis.shape[1], dtype=basis.dtype)
    torch.testing.assert_close(basis.mT @ basis, eye, rtol=0, atol=tolerance)


# The shared basis


@pytest.mark.parametrize("basis", ["published", "weighted"])
@pytest.mark.parametrize("per_task", [None, 1, 2])
@pytest.mark.parametrize("shape", [(3, 9, 9), (3, 8, 14), (3, 14, 8), (2, 30, 6), (5, 12, 24), (5, 24, 12)])
def test_the_shared_basis_is_its_equation(shape, per_task: int | None, basis: str) -> None:
    tau = draw(*shape) * torch.arange(1.0, shape[0] + 1)[:, None, None]
    size = min(shape[1:])
    count = size // shape[0] if per_task is None else per_task
    for keep in {1, size // 6, size // 3} - {0}:
        found = shared_basis(tau, keep, per_task=per_task, basis=basis)
        keep = min(keep, count * shape[0])
        assert found.shape == (shape[1], keep)
        close(projector(found), literal_projector(tau.numpy(), keep, count, basis == "weighted"))


def test_the_two_bases_are_not_the_same() -> None:
    tau = draw(3, 12, 12)
    one, other = (projector(shared_basis(tau, 2, basis=basis)) for basis in ("published", "weighted"))
    assert float((one - other).norm()) > 0.1


def test_published_vectors_count_alike_and_weighted_ones_as_long_as_they_are_in_their_task() -> None:
    # Task 1 writes into e₁ (length 10) and e₂ (length 1); task 2 into e₁ + a little, so e₁ is shared by both.
    tau = torch.zeros(2, 4, 4, dtype=torch.float64)
    tau[0, 0, 0], tau[0, 1, 1], tau[1, 2, 0], tau[1, 1, 1] = 10, 1, 10, 1
    published = shared_basis(tau, 1, per_task=2)
    assert published[:, 0].abs().tolist() == pytest.approx([0, 1, 0, 0])  # e₂ is what both have
    weighted = shared_basis(tau, 1, per_task=2, basis="weighted")
    assert float(weighted[1, 0].abs()) < 1e-9  # and it is weak in both
    scaled = shared_basis(torch.stack([1000 * tau[0], tau[1]]), 1, per_task=2, basis="weighted")
    close(projector(scaled) * torch.tensor([0.0, 1, 0, 1]).double(), torch.zeros(4, 4, dtype=torch.float64))


def test_a_task_is_weighed_by_its_own_length_and_not_by_that_of_others() -> None:
    tau = draw(3, 8, 10)
    longer = tau * torch.tensor([1.0, 1000.0, 0.001])[:, None, None]
    for basis in ("published", "weighted"):
        close(projector(shared_basis(longer, 3, basis=basis)), projector(shared_basis(tau, 3, basis=basis)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("difference", [1.0, 1e-1, 1e-2, 1e-3, 1e-4, 0.0])
@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (40, 40)])
def test_tasks_that_nearly_agree_have_an_orthonormal_basis_all_the_same(shape, difference: float, dtype) -> None:
    one = draw(1, *shape, dtype=dtype)
    tau = torch.cat([one, one + difference * draw(1, *shape, seed=1, dtype=dtype)])
    found = shared_basis(tau, 40)
    is_orthonormal(found, 20 * torch.finfo(dtype).eps)
    assert 20 <= found.shape[1] <= 40
    # What both tasks have is in it.
    inside = left_vectors(one[0])[0][:, :20]
    close(projector(found) @ inside, inside, 0.02 if dtype == torch.float32 else 1e-4)


@pytest.mark.parametrize("basis", ["published", "weighted"])
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
def test_of_one_task_the_strongest_directions_come_first(shape, basis: str) -> None:
    # All of length one, they would come out of a second decomposition in any order and mixture.
    tau = draw(1, *shape)
    for keep in (1, 3):
        first = np.linalg.svd(tau[0].numpy())[0][:, :keep]
        close(projector(shared_basis(tau, keep, basis=basis)), first @ first.T)


@shapes
def test_there_are_never_more_directions_than_the_tasks_have(shape) -> None:
    tau = draw(*shape)
    tasks, size = shape[0], min(shape[1:])
    count = max(1, size // tasks)
    for keep in (0, 1, size, 10 * size):
        found = shared_basis(tau, keep)
        assert found.shape == (shape[1], min(keep, tasks * count, shape[1]))
        is_orthonormal(found, 1e-12)


def test_nothing_is_invented_for_tasks_that_have_no_direction_there() -> None:
    tau = torch.stack([low_rank(10, 8, 1, seed=1), torch.zeros(10, 8, dtype=torch.float64), low_rank(10, 8, 1, seed=2)])
    for matrices in (tau, tau.mT):
        for basis in ("published", "weighted"):
            found = shared_basis(matrices, 6, per_task=4, basis=basis)
            assert found.shape[1] == 2
            inside = torch.cat(list(matrices), dim=1)
            close(projector(found) @ inside, inside)
    assert shared_basis(torch.zeros(3, 5, 4), 2).shape == (5, 0)


@pytest.mark.parametrize("rank", [1, 10, 100])
@pytest.mark.parametrize("shape", [(300, 150), (150, 300), (200, 200)])
def test_in_float32_what_is_left_of_a_zero_is_no_direction(shape, rank: int) -> None:
    tau = torch.stack([low_rank(*shape, rank, seed=seed, dtype=torch.float32) for seed in range(2)])
    found = shared_basis(tau, min(shape), per_task=min(shape))
    there = min(2 * rank, *shape)
    assert there - 1 <= found.shape[1] <= there  # of two hundred directions, one may be next to nothing
    is_orthonormal(found, 1e-5)


def test_an_unknown_basis_is_refused() -> None:
    with pytest.raises(MergeError, match=r"^there is no basis 'sum'; use one of: published, weighted\.$"):
        shared_basis(draw(2, 3, 4), 1, basis="sum")


def test_a_projector_projects() -> None:
    basis = orthonormal(6, 2)
    found = projector(basis)
    close(found @ found, found)
    close(found, found.mT)
    assert float(found.trace()) == pytest.approx(2)
    close(projector(basis[:, :0]), torch.zeros(6, 6, dtype=torch.float64))


# Singular vectors from the smaller Gram side


@shapes
def test_left_vectors_are_those_of_an_svd(shape) -> None:
    matrices = draw(*shape)
    vectors, values = left_vectors(matrices)
    assert vectors.shape == (shape[0], shape[1], min(shape[1:]))
    for matrix, u, s in zip(matrices.numpy(), vectors, values, strict=True):
        left, expected, _ = np.linalg.svd(matrix, full_matrices=False)
        close(s, expected)
        for k in range(len(expected)):  # a vector is known up to its sign
            close(torch.outer(u[:, k], u[:, k]), np.outer(left[:, k], left[:, k]), 1e-7)
        is_orthonormal(u, 1e-7)


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (3, 7, 4)])
@pytest.mark.parametrize("count", [0, 1, 3, 99])
def test_the_first_left_vectors_alone_are_the_first_of_all(shape, count: int) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    everything, values = left_vectors(matrix)
    some, same = left_vectors(matrix, count)
    assert torch.equal(same, values)
    assert some.shape == everything[..., :count].shape
    assert torch.allclose(some, everything[..., :count])


@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (7, 7)])
@pytest.mark.parametrize("rank", [0, 1, 4])
def test_of_a_matrix_of_low_rank_the_directions_that_are_there_come_first(shape, rank: int) -> None:
    matrix = low_rank(*shape, rank) if rank else torch.zeros(shape, dtype=torch.float64)
    vectors, values = left_vectors(matrix)
    left, expected, _ = np.linalg.svd(matrix.numpy(), full_matrices=False)
    close(values, expected, 1e-6)
    close(projector(vectors[:, :rank]), left[:, :rank] @ left[:, :rank].T)
    assert torch.isfinite(vectors).all()
    if shape[0] > shape[1]:
        assert not vectors[:, rank:].any()  # zero columns, as the docstring says
    else:
        is_orthonormal(vectors, 1e-12)


@shapes
def test_right_vectors_are_the_left_ones_of_the_transposed(shape) -> None:
    matrix = draw(*shape)[0]
    vectors, values = right_vectors(matrix)
    _, expected, right = np.linalg.svd(matrix.numpy(), full_matrices=False)
    close(values, expected)
    for k in range(len(expected)):
        close(torch.outer(vectors[:, k], vectors[:, k]), np.outer(right[k], right[k]), 1e-7)


@pytest.mark.parametrize("shape", [(96, 64), (64, 96)])
def test_the_shared_subspace_in_float32_is_that_in_float64(shape) -> None:
    tau = draw(4, *shape)
    exact, single = (projector(shared_basis(one, 10)) for one in (tau, tau.float()))
    close(single.double(), exact, 1e-4)


# Angles


def test_the_angles_of_known_subspaces() -> None:
    e = torch.eye(5, dtype=torch.float64)
    slope = math.radians(30)
    tilted = torch.stack([math.cos(slope) * e[0] + math.sin(slope) * e[2], e[1]], dim=1)
    assert principal_angles(e[:, :2], e[:, :2]).tolist() == pytest.approx([0, 0], abs=1e-7)
    assert principal_angles(e[:, :2], e[:, 2:4]).tolist() == pytest.approx([90, 90])
    assert principal_angles(e[:, :2], tilted).tolist() == pytest.approx([0, 30], abs=1e-7)
    assert principal_angles(tilted, e[:, :3]).tolist() == pytest.approx([0, 0], abs=1e-6)
    assert principal_angles(e[:, 1:3], e[:, 2:]).tolist() == pytest.approx([0, 90], abs=1e-7)
    assert principal_angles(e[:, :0], e[:, :2]).shape == (0,)


@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 1, 44.999, 45, 45.001, 89.999, 90 - 1e-6, 90])
def test_tiny_angles_and_angles_near_a_right_one_keep_their_digits(degrees: float) -> None:
    angle = math.radians(degrees)
    one = orthonormal(6, 3)
    other = (math.cos(angle) * one[:, :1] + math.sin(angle) * one[:, 1:2]).double()
    found = float(principal_angles(one[:, :1], other)[0])
    assert found == pytest.approx(degrees, rel=1e-6, abs=1e-12)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_angles_do_not_depend_on_which_comes_first_or_on_the_bases(k: int, other_k: int, seed: int) -> None:
    one, other = orthonormal(7, k, seed), orthonormal(7, other_k, seed + 1)
    angles = principal_angles(one, other)
    assert angles.shape == (min(k, other_k),)
    assert (angles.diff() >= -1e-6).all()
    assert ((angles >= 0) & (angles <= 90)).all()
    close(principal_angles(other, one), angles, 1e-8)
    close(principal_angles(one @ orthonormal(k, k, seed + 2), other), angles, 1e-5)
    # The squared cosines add up to what the projectors have in common.
    shared = float((projector(one) * projector(other)).sum())
    assert float(torch.deg2rad(angles).cos().square().sum()) == pytest.approx(shared, abs=1e-9)


# What no decomposition takes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, 1e10])
def test_infinity_nan_and_what_would_become_infinite_are_seen(value: float) -> None:
    tau = torch.ones(2, 3, 4)
    assert not overflows(tau)
    assert not overflows(tau * 0)
    tau[1, 2, 3] = value
    assert overflows(tau)


def test_inputs_stay_as_they_are() -> None:
    tau = draw(3, 6, 8)
    before = tau.clone()
    for basis in ("published", "weighted"):
        shared_basis(tau, 2, basis=basis)
    left_vectors(tau)
    right_vectors(tau)
    assert torch.equal(tau, before)


@pytest.mark.parametrize("kind", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 7), (3, 5, 5), (300, 300)])
def test_a_decomposition_in_place_is_the_decomposition(shape: tuple[int, ...], kind: torch.dtype) -> None:
    matrix = draw(*shape, dtype=kind)
    gram = matrix @ matrix.mT
    before, expected = gram.clone(), torch.linalg.eigh(gram)
    values, vectors = eigh_in_place(gram)
    assert vectors.data_ptr() == gram.data_ptr(), "it takes no memory of its own"
    # Of a product that is symmetric but for rounding, another triangle is looked at.
    size = float(before.abs().max()) * torch.finfo(kind).eps * shape[-1]
    for found, wanted in ((values, expected[0]), ((vectors * values.unsqueeze(-2)) @ vectors.mT, before)):
        torch.testing.assert_close(found, wanted, rtol=0, atol=10 * size)
    turned = vectors.mT @ vectors
    torch.testing.assert_close(turned, torch.eye(shape[-1], dtype=kind).expand_as(turned), rtol=0, atol=10 * size)
