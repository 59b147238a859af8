"""The exact solutions, held against least squares problems written out with Kronecker products, entry by entry."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import Apgd, exact
from apgd_teach.merging.exact import conjugate_gradients, full_solution, minimise, row_solution, spectral_filter
from apgd_teach.merging.objective import objective
from apgd_teach.merging.subspace import left_vectors, shared_basis
from apgd_teach.merging.surrogate import surrogate

SHAPES = [(3, 4, 5), (3, 5, 4), (2, 4, 4), (2, 2, 6), (4, 6, 2), (2, 1, 4), (2, 4, 1), (5, 3, 3)]
shapes = pytest.mark.parametrize("shape", SHAPES)
protected = pytest.mark.parametrize("keep", [0, 1, 2])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(shape: tuple[int, int, int], keep: int) -> tuple[Tensor, Tensor, Tensor]:
    """τ, a start S in the tasks' span, and U of a protected subspace that is not special to τ."""
    tau = draw(*shape) * torch.arange(1.0, shape[0] + 1)[:, None, None]
    start = (torch.linspace(0.1, 0.4, shape[0], dtype=torch.float64)[:, None, None] * tau).sum(dim=0)
    return tau, start, torch.linalg.qr(draw(shape[1], min(keep, shape[1]), seed=9)).Q


def equations(tau: np.ndarray, granularity: str) -> tuple[np.ndarray, np.ndarray]:
    """The surrogate as ‖A vec(M) − b‖², vec row by row: one equation per number that is to vanish.

    Rⱼ = (M − τⱼ)τⱼᵀ is vec(Rⱼ) = (I ⊗ τⱼ)(vec M − vec τⱼ); `row` takes the rows of the diagonal of it, `layer` their
    sum, `full` all of them divided by ‖τⱼ‖.
    """
    rows, right = [], []
    for one in tau:
        out = len(one)
        whole = np.kron(np.eye(out), one)
        diagonal = whole[[k * out + k for k in range(out)]]
        if granularity == "layer":
            some = diagonal.sum(axis=0, keepdims=True)
        elif granularity == "row":
            some = diagonal
        else:
            some = whole / np.sqrt((one**2).sum())
        rows.append(some)
        right.append(some @ one.ravel())
    return np.concatenate(rows), np.concatenate(right)


def literal_solution(tau: np.ndarray, granularity: str, start: np.ndarray, basis: np.ndarray) -> np.ndarray:
    """argmin ‖A vec(M) − b‖² under P(M − S) = 0, and of all of those the nearest to S.

    M = S + NX with N an orthonormal basis of the complement: X is the shortest least squares solution of
    A (N ⊗ I) x = b − A vec(S), which is numpy's.
    """
    a, b = equations(tau, granularity)
    complement = np.linalg.qr(basis, mode="complete")[0][:, basis.shape[1] :]
    free = np.kron(complement, np.eye(start.shape[1]))
    found = np.linalg.lstsq(a @ free, b - a @ start.ravel(), rcond=1e-12)[0]
    return start + (free @ found).reshape(start.shape)


def close(found: Tensor, expected: np.ndarray | Tensor, tolerance: float = 1e-8) -> None:
    expected = np.asarray(expected)
    assert tuple(found.shape) == expected.shape
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
@shapes
def test_the_equations_of_these_tests_are_the_surrogate(shape, granularity: str) -> None:
    tau, update, _ = problem(shape, 0)
    a, b = equations(tau.numpy(), granularity)
    found = ((a @ update.numpy().ravel() - b) ** 2).sum()
    assert 2 * float(objective(tau, granularity).value(update)) == pytest.approx(found, rel=1e-9)


# Conjugate gradients


@protected
@pytest.mark.parametrize("granularity", ["layer", "row"])
@shapes
def test_conjugate_gradients_find_the_constrained_minimiser_nearest_to_the_start(shape, granularity, keep) -> None:
    tau, start, basis = problem(shape, keep)
    found, taken = conjugate_gradients(objective(tau, granularity), start, basis, tolerance=1e-12, steps=2000)
    close(found, literal_solution(tau.numpy(), granularity, start.numpy(), basis.numpy()), 1e-6)
    if keep:
        close(basis.mT @ found, basis.mT @ start, 1e-9)
    assert taken < 2000


@pytest.mark.parametrize("granularity", ["layer", "row"])
def test_protection_does_not_commute_with_row_and_layer(granularity: str) -> None:
    # Which is why there is no closed form: the free solution, projected afterwards, is another and a worse one.
    tau, start, basis = problem((3, 5, 6), 2)
    quadratic = objective(tau, granularity)
    found, _ = conjugate_gradients(quadratic, start, basis, tolerance=1e-12, steps=500)
    free, _ = conjugate_gradients(quadratic, start, basis[:, :0], tolerance=1e-12, steps=500)
    afterwards = start + (free - start) - basis @ (basis.mT @ (free - start))
    assert float((found - afterwards).norm()) > 1e-3 * float(found.norm())
    assert float(quadratic.value(found)) < float(quadratic.value(afterwards))


def test_without_protection_every_row_is_a_small_problem_of_its_own() -> None:
    # Method.md §3: per row a T × T solve. Where T ≤ in, every number of `row` vanishes.
    tau, start, basis = problem((3, 4, 6), 0)
    found, _ = conjugate_gradients(objective(tau, "row"), start, basis, tolerance=1e-12, steps=500)
    for o in range(4):
        rows = tau[:, o]
        missing = rows.square().sum(dim=1) - rows @ start[o]
        close(found[o], start[o] + rows.mT @ torch.linalg.solve(rows @ rows.mT, missing), 1e-7)
    assert float(objective(tau, "row").value(found)) < 1e-15


def test_layer_needs_as_many_steps_as_there_are_tasks() -> None:
    for tasks in (1, 2, 4):
        tau, start, basis = problem((tasks, 5, 6), 1)
        _, taken = conjugate_gradients(objective(tau, "layer"), start, basis, tolerance=1e-10, steps=50)
        assert taken == tasks


def test_it_ends_at_the_tolerance_or_after_the_steps_whichever_comes_first() -> None:
    tau, start, basis = problem((4, 8, 9), 2)
    quadratic = objective(tau, "row")

    def steepness(update: Tensor) -> float:
        gradient = quadratic.gradient(update)
        return float((gradient - basis @ (basis.mT @ gradient)).norm())

    taken = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        found, steps = conjugate_gradients(quadratic, start, basis, tolerance=tolerance, steps=500)
        assert steepness(found) <= 1.001 * tolerance * steepness(start)
        taken.append(steps)
    assert taken[0] < taken[1] < taken[2]
    assert conjugate_gradients(quadratic, start, basis, tolerance=1e-12, steps=3)[1] == 3
    assert torch.equal(conjugate_gradients(quadratic, start, basis, steps=0)[0], start)


@pytest.mark.parametrize("granularity", ["layer", "row"])
def test_where_there_is_nothing_to_do_nothing_is_done(granularity: str) -> None:
    tau, _, basis = problem((1, 3, 4), 1)
    found, taken = conjugate_gradients(objective(tau, granularity), tau[0], basis)
    assert torch.equal(found, tau[0])
    assert taken == 0
    nothing = torch.zeros_like(tau)
    assert torch.equal(conjugate_gradients(objective(nothing, granularity), nothing[0], basis)[0], nothing[0])
    everything = torch.eye(3, dtype=torch.float64)
    kept, _ = conjugate_gradients(objective(tau, granularity), 0.3 * tau[0], everything)
    close(kept, 0.3 * tau[0])


# Rows, by their equations, and what is done where they are of no use


def hand_over(monkeypatch: pytest.MonkeyPatch) -> list[torch.dtype]:
    """The precision of every `conjugate_gradients` that `minimise` goes on with."""
    calls: list[torch.dtype] = []

    def counted(quadratic: object, start: Tensor, *given: object, **settings: object) -> tuple[Tensor, int]:
        calls.append(start.dtype)
        return conjugate_gradients(quadratic, start, *given, **settings)

    monkeypatch.setattr(exact, "conjugate_gradients", counted)
    return calls


@protected
@pytest.mark.parametrize("granularity", ["layer", "row"])
@shapes
def test_it_is_the_constrained_minimiser_nearest_to_the_start(shape, granularity: str, keep: int) -> None:
    # Shapes with T > in, and with so much protected that not every equation can be met, are among them.
    tau, start, basis = problem(shape, keep)
    found, _ = minimise(objective(tau, granularity), start, basis, tolerance=1e-11)
    close(found, literal_solution(tau.numpy(), granularity, start.numpy(), basis.numpy()), 1e-6)
    if keep:
        close(basis.mT @ found, basis.mT @ start, 1e-9)


def contradicting(tau: Tensor) -> Tensor:
    tau[1, 2] = 2 * tau[0, 2]
    return tau


def agreeing(tau: Tensor) -> Tensor:
    tau[1, 2] = tau[0, 2]
    return tau


def without_a_row(tau: Tensor) -> Tensor:
    tau[:, 1] = 0
    tau[0, 3] = 0
    return tau


@pytest.mark.parametrize(("change", "handed_over"), [(contradicting, True), (agreeing, False), (without_a_row, False)])
@protected
def test_experts_that_agree_contradict_each_other_or_are_silent_in_a_unit(
    monkeypatch, change, handed_over: bool, keep: int
) -> None:
    calls = hand_over(monkeypatch)
    tau, _, basis = problem((3, 5, 7), keep)
    tau = change(tau.clone())
    start = tau.mean(dim=0)
    found, _ = minimise(objective(tau, "row"), start, basis, tolerance=1e-9)
    close(found, literal_solution(tau.numpy(), "row", start.numpy(), basis.numpy()), 1e-5)
    assert bool(calls) == handed_over
    assert (float(objective(tau, "row").value(found)) > 1e-3) == handed_over


def test_with_nothing_protected_rows_take_one_step_or_two() -> None:
    # One T × T solve per row; the little on the diagonal may cost another step.
    tau, start, basis = problem((4, 12, 20), 0)
    found, taken = row_solution(objective(tau, "row"), start, basis)
    assert taken <= 2
    for o in range(12):
        rows = tau[:, o]
        missing = rows.square().sum(dim=1) - rows @ start[o]
        close(found[o], start[o] + rows.mT @ torch.linalg.solve(rows @ rows.mT, missing), 1e-3)


def test_rows_end_where_every_task_has_what_it_asks_for_or_after_the_steps(monkeypatch) -> None:
    calls = hand_over(monkeypatch)
    tau, start, basis = problem((4, 40, 50), 12)
    quadratic = objective(tau, "row")

    def short(update: Tensor) -> float:
        return float((quadratic.residual(update).norm(dim=0) / quadratic.squares.norm(dim=0)).max())

    taken = []
    for tolerance in (1e-1, 1e-3, 1e-6):
        found, steps = row_solution(quadratic, start, basis, tolerance=tolerance)
        assert short(found) <= 1.001 * tolerance
        taken.append(steps)
    assert taken[0] < taken[1] < taken[2]
    assert taken[2] < conjugate_gradients(quadratic, start, basis, tolerance=1e-6)[1]
    assert row_solution(quadratic, start, basis, tolerance=1e-6, steps=1)[1] == 1
    assert short(minimise(quadratic, start, basis)[0]) < 1e-6
    assert not calls


@pytest.mark.parametrize("keep", [0, 2])
def test_short_tasks_are_solved_as_well_as_long_ones(keep: int) -> None:
    tau, _, basis = problem((4, 12, 20), keep)
    tau = tau * torch.tensor([1.0, 0.1, 0.01, 0.001])[:, None, None]
    start = tau.mean(dim=0)
    found, _ = minimise(objective(tau, "row"), start, basis)
    assert float((surrogate(tau, found, "row") / surrogate(tau, torch.zeros_like(start), "row")).max()) < 1e-10


def test_where_there_is_nothing_to_minimise(monkeypatch) -> None:
    calls = hand_over(monkeypatch)
    tau, _, basis = problem((1, 3, 4), 1)
    found, taken = minimise(objective(tau, "row"), tau[0], basis)
    close(found, tau[0], 1e-12)
    assert taken == 0
    nothing = torch.zeros_like(tau)
    assert torch.equal(minimise(objective(nothing, "row"), nothing[0], basis)[0], nothing[0])
    assert not calls
    # All protected: no equation can be met, and the start is the answer.
    close(minimise(objective(tau, "row"), 0.3 * tau[0], torch.eye(3, dtype=torch.float64))[0], 0.3 * tau[0])


@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1.0, 1e5])
@pytest.mark.parametrize("shape", [(4, 32, 48), (4, 48, 32)])
def test_rows_in_float32_are_good_to_three_digits_at_every_length(monkeypatch, scale: float, shape) -> None:
    calls = hand_over(monkeypatch)
    tau, start, basis = problem(shape, 5)
    exactly, _ = minimise(objective(tau, "row"), start, basis, tolerance=1e-9)
    short = [one.float() for one in (scale * tau, scale * start, basis)]
    single, _ = minimise(objective(short[0], "row"), *short[1:])
    assert float((single.double() / scale - exactly).norm() / exactly.norm()) < 1e-3
    assert not calls


UNEVEN = {
    "log-normal": lambda n: torch.exp(torch.randn(n)),
    "two decades": lambda n: 10 ** (2 * torch.rand(n)),
    "two lengths": lambda n: torch.where(torch.rand(n) < 0.8, 1e-3, 1.0),
}


@pytest.mark.parametrize("granularity", ["layer", "row"])
@pytest.mark.parametrize("lengths", list(UNEVEN))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_units_of_very_different_lengths_are_solved_in_float32_too(lengths: str, seed: int, granularity: str) -> None:
    # Almost all of the long rows is protected: what is left is ill-conditioned, and float32 alone diverged here.
    torch.manual_seed(seed)
    tau = 0.01 * torch.randn(8, 64, 64) * UNEVEN[lengths](64)[:, None]
    start, basis = tau.mean(dim=0), shared_basis(tau, 11)
    found, _ = minimise(objective(tau, granularity), start, basis)
    exactly = objective(tau.double(), granularity)
    assert found.dtype == torch.float32
    assert float(exactly.value(found.double())) < 1e-6 * float(exactly.value(start.double()))
    assert float((basis.mT @ (found - start)).norm()) < 1e-4 * float((basis.mT @ start).norm())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_long_way_of_rows_ends_in_float32_and_moves_nothing_that_is_to_stay(monkeypatch, seed: int) -> None:
    calls = hand_over(monkeypatch)
    draws = torch.Generator().manual_seed(seed)
    tau = 0.01 * torch.randn(8, 64, 100, generator=draws) * 10 ** (2 * torch.rand(64, 1, generator=draws))
    start, basis = tau.mean(dim=0), shared_basis(tau, 11)
    found, taken = minimise(objective(tau, "row"), start, basis)
    assert 50 < taken < 300
    assert not calls
    assert float((basis.mT @ (found - start)).norm()) < 1e-5 * float((basis.mT @ start).norm())


# The closed form


@protected
@shapes
def test_the_closed_form_is_the_constrained_minimiser(shape, keep: int) -> None:
    tau, start, basis = problem(shape, keep)
    quadratic = objective(tau, "full")
    found = full_solution(quadratic, start, basis, "cutoff", 0.0)
    close(found, literal_solution(tau.numpy(), "full", start.numpy(), basis.numpy()), 1e-7)
    # Method.md §3 words it as M = P·S + (I − P)·B·G⁺.
    inverse = np.linalg.pinv(quadratic.gram.numpy(), rcond=1e-12)
    p = (basis @ basis.mT).numpy()
    close(found, p @ start.numpy() + (np.eye(len(p)) - p) @ quadratic.target.numpy() @ inverse, 1e-7)


@pytest.mark.parametrize("shape", [(3, 4, 5), (3, 5, 4), (4, 6, 2)])
def test_with_nothing_protected_and_no_filter_it_solves_the_normal_equations(shape) -> None:
    tau, start, basis = problem(shape, 0)
    quadratic = objective(tau, "full")
    found = full_solution(quadratic, start, basis, "cutoff", 0.0)
    close(found, np.linalg.solve(quadratic.gram.numpy(), quadratic.target.numpy().T).T)
    elsewhere = full_solution(quadratic, torch.zeros_like(start), basis, "cutoff", 0.0)
    close(elsewhere, found)  # where it starts does not matter then


@pytest.mark.parametrize(("kind", "strength"), [("cutoff", 0.0), ("cutoff", 0.2), ("time", 1.5)])
@pytest.mark.parametrize(("power", "top"), [(1.0, None), (0.0, 2), (3.0, 1)])
def test_every_weight_and_filter_is_m_plus_the_filtered_gradient(kind, strength, power, top) -> None:
    tau, start, basis = problem((3, 5, 4), 1)
    quadratic = objective(tau, "full", power=power, top=top)
    gram, b, s = (one.numpy() for one in (quadratic.gram, quadratic.target, start))
    values, vectors = np.linalg.eigh(gram)
    if kind == "cutoff":
        f = np.array([1 / e if e > max(strength, 1e-12) * values.max() else 0.0 for e in values])
    else:
        f = np.array([(1 - np.exp(-strength * e / values.mean())) / e for e in values])
    p = (basis @ basis.mT).numpy()
    expected = s + (np.eye(5) - p) @ (b - s @ gram) @ vectors @ np.diag(f) @ vectors.T
    close(full_solution(quadratic, start, basis, kind, strength), expected)


def test_directions_that_are_cut_off_stay_where_they_were() -> None:
    tau, start, basis = problem((2, 4, 6), 0)
    quadratic = objective(tau, "full")
    values, vectors = torch.linalg.eigh(quadratic.gram)
    found = full_solution(quadratic, start, basis, "cutoff", 0.3)
    weak = vectors[:, values <= 0.3 * values.max()]
    assert 0 < weak.shape[1] < 6
    close(found @ weak, start @ weak)
    strong = vectors[:, values > 0.3 * values.max()]
    close(quadratic.gradient(found) @ strong, torch.zeros(4, strong.shape[1]))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("axis", [0, 1])
def test_inputs_and_units_that_never_moved_do_not_stop_a_decomposition(seed: int, axis: int) -> None:
    # LAPACK's eigendecomposition in float32 gives up on many rows of exact zeros.
    torch.manual_seed(seed)
    still = (torch.rand(256) >= 0.8).float()
    tau = 0.01 * torch.randn(4, 256, 256) * (still if axis else still[:, None])
    for settings in ({}, {"protect": "auto"}, {"protect": "energy"}, {"granularity": "row", "protect": 1 / 6}):
        for matrix in (Apgd(**settings)(tau).matrix, Apgd(**settings)(tau.mT.contiguous()).matrix):
            assert bool(matrix.isfinite().all())
    values, vectors = left_vectors(tau[0])[::-1]
    # As far as a Gram matrix in float32 can tell a singular value from nothing.
    close(values, torch.linalg.svdvals(tau[0].double()), 1e-3)
    close((vectors * values) @ (vectors.mT @ tau[0] / values.clamp_min(1e-30)[:, None]), tau[0], 1e-4)


# Filters


@pytest.mark.parametrize("strength", [0.0, 1e-3, 0.25, 0.999])
def test_the_cutoff_is_one_over_e_or_nothing(strength: float) -> None:
    values = torch.tensor([0.0, 1e-18, 1e-4, 0.5, 1.9, 2.0], dtype=torch.float64)
    expected = [1 / e if e > 2 * max(strength, 1e-14) else 0.0 for e in values.tolist()]
    close(spectral_filter(values, "cutoff", strength), np.array(expected))


@pytest.mark.parametrize("strength", [0.0, 1e-9, 0.1, 3.0, 1e6])
def test_the_time_filter_is_its_equation_down_to_zero(strength: float) -> None:
    values = torch.tensor([0.0, 1e-300, 1e-12, 1e-4, 0.5, 2.0], dtype=torch.float64)
    mean = float(values.mean())
    found = spectral_filter(values, "time", strength)
    for e, f in zip(values.tolist(), found.tolist(), strict=True):
        expected = strength / mean if e < 1e-200 else -np.expm1(-strength * e / mean) / e
        assert f == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_the_time_filter_becomes_one_over_e_in_the_end_and_begins_with_nothing() -> None:
    values = torch.tensor([0.1, 1.0, 2.0], dtype=torch.float64)
    close(spectral_filter(values, "time", 1e4), 1 / values)
    close(spectral_filter(values, "time", 0.0), torch.zeros(3))


@pytest.mark.parametrize("kind", ["cutoff", "time"])
def test_no_eigenvalue_no_inverse(kind: str) -> None:
    assert spectral_filter(torch.zeros(4), kind, 0.5).tolist() == [0, 0, 0, 0]


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(MergeError, match=r"^there is no filter 'ridge'; use one of: cutoff, time\.$"):
        spectral_filter(torch.ones(2), "ridge", 1.0)


# Precision, and length


@pytest.mark.parametrize("shape", [(4, 32, 48), (4, 48, 32)])
def test_float32_is_good_to_three_digits(shape) -> None:
    tau, start, basis = problem(shape, 5)

    def error(found: Tensor, exact: Tensor) -> float:
        return float((found.double() - exact).norm() / exact.norm())

    for granularity in ("layer", "row"):
        exact, single = (
            conjugate_gradients(objective(t, granularity), s, u, tolerance=1e-5, steps=200)[0]
            for t, s, u in ((tau, start, basis), (tau.float(), start.float(), basis.float()))
        )
        assert error(single, exact) < 1e-3
    for kind, strength in (("cutoff", 1e-3), ("time", 3.0)):
        exact, single = (
            full_solution(objective(t, "full", power=1.0), s, u, kind, strength)
            for t, s, u in ((tau, start, basis), (tau.float(), start.float(), basis.float()))
        )
        assert error(single, exact) < 1e-4


@pytest.mark.parametrize("granularity", ["layer", "row"])
@pytest.mark.parametrize("scale", [1e-9, 1e-6, 1e5])
def test_in_float32_neither_short_nor_long_task_vectors_go_unsolved(granularity: str, scale: float) -> None:
    # Gradients are of third order in τ: squares of them would be zero, or infinite.
    tau, start, basis = (one.float() for one in problem((3, 16, 20), 2))
    one, _ = conjugate_gradients(objective(tau, granularity), start, basis, tolerance=1e-4, steps=100)
    other, _ = conjugate_gradients(objective(scale * tau, granularity), scale * start, basis, tolerance=1e-4, steps=100)
    assert float((one - start).norm()) > 0.1 * float(start.norm())
    torch.testing.assert_close(other / scale, one, rtol=0, atol=2e-3 * float(one.abs().max()))


def test_inputs_stay_as_they_are() -> None:
    tau, start, basis = problem((3, 4, 5), 1)
    before = start.clone(), basis.clone()
    for granularity in ("layer", "row"):
        conjugate_gradients(objective(tau, granularity), start, basis)
        minimise(objective(tau, granularity), start, basis)
    full_solution(objective(tau, "full"), start, basis, "time", 1.0)
    assert torch.equal(start, before[0])
    assert torch.equal(basis, before[1])


# Few tasks in a wide layer: G is decomposed by way of its factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "strength"), [("time", 3.0), ("time", 100.0), ("cutoff", 1e-3), ("cutoff", 0.0)])
@pytest.mark.parametrize(("power", "top"), [(2.0, None), (1.5, None), (2.0, 3)])
def test_the_way_by_the_factor_leads_to_the_same_answer(dtype, kind: str, strength: float, power: float, top) -> None:
    tau, start, basis = problem((3, 7, 40), 2)
    exact = replace(objective(tau, "full", power=power, top=top), factor=None)
    quadratic = objective(tau.to(dtype), "full", power=power, top=top)
    assert quadratic.factor is not None
    near = 1e-4 if dtype == torch.float32 else 1e-9
    close(quadratic.factor @ quadratic.factor.mT, exact.gram, near)
    found = full_solution(quadratic, start.to(dtype), basis.to(dtype), kind, strength)
    assert found.dtype == dtype
    close(found, full_solution(exact, start, basis, kind, strength), near)


def test_there_is_a_factor_only_where_it_is_the_shorter_way() -> None:
    assert objective(draw(3, 7, 40), "full").factor.shape == (40, 21)
    assert objective(draw(3, 7, 21), "full").factor is None
    assert objective(draw(3, 7, 40), "full", top=4).factor.shape == (40, 12)
    assert objective(draw(8, 7, 40), "full").factor is None


@pytest.mark.parametrize("kind", ["time", "cutoff"])
def test_tasks_that_agree_or_did_not_move_leave_the_factor_without_rank(kind: str) -> None:
    one = draw(4, 30)
    start = one / 2
    for tau in (torch.stack([one, one]), torch.stack([one, torch.zeros_like(one)]), torch.zeros(2, 4, 30).double()):
        quadratic = objective(tau, "full")
        found = full_solution(quadratic, start, draw(4, 0), kind, 1e-3)
        close(found, full_solution(replace(quadratic, factor=None), start, draw(4, 0), kind, 1e-3), 1e-9)
