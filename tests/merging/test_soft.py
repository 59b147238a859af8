"""Soft protection: the constraint as a price, with weights read off what the tasks share."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import Apgd, merge, soft_projector

SOFTNESS = Apgd().softness


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def literal(tau: np.ndarray, softness: float) -> np.ndarray:
    """W by its definition: the eigenvalues of E = Σ ττᵀ/‖τ‖² one by one."""
    moved = [one for one in tau if np.linalg.norm(one) > 0]
    energy = sum(one @ one.T / np.linalg.norm(one) ** 2 for one in moved)
    values, vectors = np.linalg.eigh(energy)
    return sum(
        value / (value + softness * values.sum()) * np.outer(vector, vector)
        for value, vector in zip(values, vectors.T, strict=True)
    )


def close(one: Tensor, other: Tensor, within: float = 1e-10) -> None:
    torch.testing.assert_close(one, other, rtol=within, atol=within * float(other.abs().max()))


def free_of(method: Apgd) -> Apgd:
    return dataclasses.replace(method, protect=0.0)


@pytest.mark.parametrize("shape", [(3, 12, 12), (3, 9, 16), (4, 17, 6), (1, 5, 7)])
@pytest.mark.parametrize("softness", [0.01, SOFTNESS, 3.0])
def test_it_is_its_definition(shape: tuple[int, int, int], softness: float) -> None:
    tau = draw(*shape)
    close(soft_projector(tau, softness), torch.from_numpy(literal(tau.numpy(), softness)))


def test_a_direction_that_holds_a_share_of_softness_is_half_protected() -> None:
    tau = torch.zeros(2, 3, 4, dtype=torch.float64)
    tau[:, 0, 0] = math.sqrt(0.25)
    tau[0, 1, 1] = tau[1, 2, 1] = math.sqrt(0.75)
    # A quarter of the energy of both tasks lies in the first direction, three quarters of one task's in each other.
    close(soft_projector(tau, 0.25).diagonal(), torch.tensor([0.5, 0.6, 0.6], dtype=torch.float64))


@given(st.integers(1, 4), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99), st.floats(1e-3, 1e3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_its_eigenvalues_lie_between_none_and_all(
    tasks: int, out: int, columns: int, seed: int, softness: float, idle: bool
) -> None:
    tau = draw(tasks, out, columns, seed=seed)
    if idle:
        tau[0] = 0
    found = soft_projector(tau, softness)
    assert torch.equal(found, found.mT)
    values = torch.linalg.eigvalsh(found)
    assert float(values.min()) > -1e-12
    assert float(values.max()) <= 1 / (1 + softness) + 1e-12


def test_neither_the_length_of_a_task_vector_nor_an_idle_task_nor_their_order_matters() -> None:
    tau = draw(3, 8, 11)
    found = soft_projector(tau, SOFTNESS)
    close(soft_projector(tau * torch.tensor([1.0, 1e3, 1e-3], dtype=torch.float64)[:, None, None], SOFTNESS), found)
    close(soft_projector(torch.cat([tau, torch.zeros_like(tau[:1])]), SOFTNESS), found)
    close(soft_projector(tau.flip(0), SOFTNESS), found)


def test_it_turns_with_the_output_directions() -> None:
    tau = draw(3, 8, 11)
    turn = torch.linalg.qr(draw(8, 8, seed=5)).Q
    close(soft_projector(turn @ tau, SOFTNESS), turn @ soft_projector(tau, SOFTNESS) @ turn.mT)


def test_a_small_change_of_the_task_vectors_is_a_small_change_of_it() -> None:
    tau = draw(3, 8, 11)
    away = soft_projector(tau + 1e-6 * draw(3, 8, 11, seed=7), SOFTNESS) - soft_projector(tau, SOFTNESS)
    assert 0 < float(away.norm()) < 1e-5


def test_in_float32_it_is_as_good_as_in_float64() -> None:
    tau = draw(4, 60, 40)
    tau[1] *= 1e-6
    away = soft_projector(tau.float(), 1e-3).double() - soft_projector(tau, 1e-3)
    assert float(away.abs().max()) < 1e-4


def test_where_nothing_moved_nothing_is_protected() -> None:
    assert not soft_projector(torch.zeros(2, 4, 5), SOFTNESS).any()
    assert not Apgd(protect="auto")(torch.zeros(2, 4, 5)).matrix.any()


# In the method


@pytest.mark.parametrize("solver", ["exact", "descent"])
@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
@pytest.mark.parametrize("shape", [(3, 8, 11), (3, 12, 7)])
def test_it_minimises_the_price_beside_the_distance_from_the_free_solution(
    shape: tuple[int, int, int], granularity: str, solver: str
) -> None:
    tau = draw(*shape)
    method = Apgd(granularity=granularity, solver=solver, protect="auto", flatten=0.0, steps=30)
    free, solved = free_of(method).solve(tau), method.solve(tau)

    def price(update: Tensor) -> Tensor:
        away = update - solved.start
        shared = sum((one.mT @ away).square().sum() / one.square().sum() for one in tau)
        return (update - free.update).square().sum() + shared / (SOFTNESS * len(tau))

    here = solved.update.clone().requires_grad_()
    (slope,) = torch.autograd.grad(price(here), here)
    (before,) = torch.autograd.grad(price(there := free.update.clone().requires_grad_()), there)
    assert float(before.norm()) > 0
    assert float(slope.norm()) < 1e-10 * float(before.norm())
    assert solved.path == free.path
    assert solved.basis.shape == (shape[1], 0)


def test_much_softness_is_the_free_solution_and_little_of_it_holds_what_is_shared() -> None:
    tau = draw(3, 8, 11)
    method = Apgd(protect="auto", flatten=0.0)
    free = free_of(method).solve(tau)
    close(dataclasses.replace(method, softness=1e3).solve(tau).update, free.update, 1e-2)
    # Every output direction is used by some task here: with no softness nothing may leave S.
    close(dataclasses.replace(method, softness=1e-3).solve(tau).update, free.start, 5e-2)


def test_an_idle_task_changes_nothing_of_it() -> None:
    tau = draw(3, 8, 11)
    idle = torch.cat([tau[:1], torch.zeros_like(tau[:1]), tau[1:]])
    method = Apgd(protect="auto")
    close(method(idle).matrix, method(tau).matrix)
    assert method(idle).facts["protected"] == pytest.approx(method(tau).facts["protected"])


@pytest.mark.parametrize("granularity", ["row", "full"])
def test_the_audit_says_how_much_it_amounts_to_and_what_it_lets_through(granularity: str) -> None:
    tau = draw(3, 8, 11)
    method = Apgd(granularity=granularity, protect="auto", flatten=0.0)
    facts, solved = method(tau).facts, method.solve(tau)
    weights = literal(tau.numpy(), SOFTNESS)
    assert facts["protected"] == pytest.approx(np.trace(weights) / 8)
    moved = weights @ (solved.update - solved.start).numpy()
    expected = np.linalg.norm(moved) / np.linalg.norm(weights @ solved.start.numpy())
    assert facts["leak"] == pytest.approx(expected)
    assert 0 < facts["leak"] < free_leak(method, tau, weights)
    free = free_of(method)(tau).facts
    # Held back, it leaves more of the surrogate; how far the solver went is told of what it solved.
    assert free["objective_solved"] < facts["objective_solved"] < facts["objective_before"]
    assert facts["gradient_left"] == free["gradient_left"]


def free_leak(method: Apgd, tau: Tensor, weights: np.ndarray) -> float:
    solved = free_of(method).solve(tau)
    moved = weights @ (solved.update - solved.start).numpy()
    return float(np.linalg.norm(moved) / np.linalg.norm(weights @ solved.start.numpy()))


def test_auto_is_soft_through_a_merge_too() -> None:
    base = {"a.weight": draw(6, 9, dtype=torch.float32)}
    experts = {
        name: {"a.weight": base["a.weight"] + 0.1 * draw(6, 9, seed=k, dtype=torch.float32)}
        for k, name in enumerate(("ada", "ben"), 1)
    }
    auto, soft = (merge(base, experts, "apgd", protect=word) for word in ("auto", "soft"))
    assert torch.equal(auto.state_dict["a.weight"], soft.state_dict["a.weight"])
    assert not torch.equal(auto.state_dict["a.weight"], merge(base, experts, "apgd").state_dict["a.weight"])
    assert "protected" in auto.audit.rows[0].facts


@pytest.mark.parametrize("softness", [0, -1, 1e-4, 2e3, math.nan, "much", None, True])
def test_a_softness_that_is_none_is_refused(softness: object) -> None:
    with pytest.raises(MergeError, match=r"^method 'apgd' has softness = .*\.$"):
        Apgd(protect="auto", softness=softness)
