"""Projected gradient descent: its path is the spectral formula's, never climbs, and ends at the exact solution."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.merging.descent import descend, largest_curvature, off
from apgd_teach.merging.exact import conjugate_gradients, full_solution, spectral_filter
from apgd_teach.merging.objective import Full, objective
from apgd_teach.merging.subspace import shared_basis

GRANULARITIES = ("layer", "row", "full")
SHAPES = [(3, 4, 5), (3, 5, 4), (2, 4, 4), (1, 3, 6), (4, 6, 2), (2, 1, 4), (2, 4, 1)]
granularities = pytest.mark.parametrize("granularity", GRANULARITIES)
shapes = pytest.mark.parametrize("shape", SHAPES)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def problem(shape: tuple[int, int, int], keep: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """τ, a start S, and U of a protected subspace."""
    tau = draw(*shape, seed=seed)
    start = 0.3 * tau.sum(dim=0)
    return tau, start, torch.linalg.qr(draw(shape[1], min(keep, shape[1]), seed=seed + 7)).Q


def never_rises(path, tolerance: float = 1e-12) -> None:
    surrogates = [step.surrogate for step in path]
    slack = tolerance * max(map(abs, surrogates), default=0)
    assert all(after <= before + slack for before, after in pairwise(surrogates))


def close(found: Tensor, expected: Tensor | np.ndarray, tolerance: float = 1e-9) -> None:
    expected = torch.as_tensor(expected)
    assert found.shape == expected.shape
    scale = max(1.0, float(expected.abs().max()))
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=0, atol=tolerance * scale)


# Each step


@granularities
@shapes
def test_descent_is_its_loop(shape, granularity: str) -> None:
    """Method.md §2.4: Δ ← Δ − α (I − P)∇, by hand in numpy, with the gradient of each granularity written out."""
    tau, start, basis = problem(shape, 1)
    found, path = descend(objective(tau, granularity), start, basis, 7, rate=0.01)
    t, update = tau.numpy(), start.numpy().copy()
    complement = np.eye(shape[1]) - basis.numpy() @ basis.numpy().T
    for _ in range(7):
        gradient = np.zeros_like(update)
        for one in t:
            residual = (update - one) @ one.T
            weight = {"layer": np.trace(residual), "row": np.diag(np.diag(residual)), "full": residual}[granularity]
            scale = 1 / (one**2).sum() if granularity == "full" else 1.0
            gradient += scale * (weight * one if granularity == "layer" else weight @ one)
        update = update - 0.01 * complement @ gradient
    close(found, update)
    assert len(path) == 8


@pytest.mark.parametrize("power", [1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 5, 60])
@shapes
def test_its_state_after_n_steps_is_the_spectral_formula(shape, steps: int, power: float) -> None:
    """For `full`: M = S + (I − P)(B − S·G)·(1 − (1 − αe)ⁿ)/e."""
    tau, start, basis = problem(shape, 2)
    quadratic = objective(tau, "full", power=power)
    assert isinstance(quadratic, Full)
    gram, target, s, u = (one.numpy() for one in (quadratic.gram, quadratic.target, start, basis))
    values, vectors = np.linalg.eigh(gram)
    rate = 0.9 / values.max()
    f = np.array([(1 - (1 - rate * e) ** steps) / e if abs(e) > 1e-12 else steps * rate for e in values])
    expected = s + (np.eye(len(u)) - u @ u.T) @ (target - s @ gram) @ vectors @ np.diag(f) @ vectors.T
    close(descend(quadratic, start, basis, steps, rate=float(rate))[0], expected)


@pytest.mark.parametrize("time", [0.5, 3.0, 20.0])
def test_in_steps_that_become_fine_it_is_the_time_filter(time: float) -> None:
    tau, start, basis = problem((3, 5, 6), 2)
    quadratic = objective(tau, "full")
    values = torch.linalg.eigvalsh(quadratic.gram)
    exact = full_solution(quadratic, start, basis, "time", time)
    errors = []
    for steps in (500, 1000, 2000):
        found, _ = descend(quadratic, start, basis, steps, rate=time / float(values.mean()) / steps)
        errors.append(float((found - exact).norm() / exact.norm()))
    assert errors[-1] < 0.005
    for coarse, fine in pairwise(errors):
        assert fine == pytest.approx(coarse / 2, rel=0.1)  # Euler's error halves with the step


def test_time_is_counted_in_units_of_the_mean_eigenvalue() -> None:
    values = torch.tensor([0.5, 1.0, 1.5], dtype=torch.float64)
    close(spectral_filter(values, "time", 2.0), -torch.expm1(-2 * values) / values)
    close(spectral_filter(10 * values, "time", 2.0), -torch.expm1(-2 * values) / (10 * values))


# What it promises


@granularities
@pytest.mark.parametrize("keep", [0, 1, 2])
@shapes
def test_the_surrogate_never_rises_and_the_constraint_holds_at_every_step(shape, granularity, keep) -> None:
    tau, start, basis = problem(shape, keep)
    found, path = descend(objective(tau, granularity), start, basis, 100)
    never_rises(path)
    assert float((basis.mT @ (found - start)).norm()) < 1e-12 * float(found.norm())
    assert all(step.leak < 1e-24 for step in path if step.moved > 1e-9)


@granularities
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("short", [1e-3, 0.1])
def test_units_of_very_different_lengths_in_float32_do_not_make_it_rise(granularity: str, seed: int, short) -> None:
    torch.manual_seed(seed)
    tau = 0.01 * torch.randn(8, 64, 64) * torch.where(torch.rand(64) < 0.8, short, 1.0)[:, None]
    start, basis = tau.mean(dim=0), shared_basis(tau, 11)
    quadratic = objective(tau, granularity)
    found, path = descend(quadratic, start, basis, 400)
    nothing = 2 * float(quadratic.value(torch.zeros_like(start)))
    for one, following in pairwise(path):
        assert following.surrogate <= one.surrogate + 1e-6 * nothing
    assert float((basis.mT @ (found - start)).norm()) < 1e-4 * float((basis.mT @ start).norm())


def test_rounding_takes_no_surrogate_below_zero() -> None:
    tau = torch.randn(1, 12, 20, generator=torch.Generator().manual_seed(0))
    _, path = descend(objective(tau, "full"), tau[0], tau.new_zeros(12, 0), 20)
    assert min(step.surrogate for step in path) >= 0


spectra = st.lists(st.floats(-6, 3), min_size=2, max_size=5)


@given(spectra, st.integers(0, 999), st.integers(0, 2))
@settings(deadline=None, max_examples=40)
def test_it_never_climbs_whatever_the_spectrum(exponents: list[float], seed: int, keep: int) -> None:
    # Tasks whose curvatures and whose shares in the first gradient are decades apart.
    columns = len(exponents)
    sizes = torch.tensor([10.0**one for one in exponents], dtype=torch.float64)
    turn = torch.linalg.qr(draw(columns, columns, seed=seed)).Q
    gram = (turn * sizes) @ turn.mT
    wish = draw(4, columns, seed=seed + 1) * torch.tensor([10.0**-one for one in exponents]).double() @ turn.mT
    target = wish @ gram
    constant = (target * wish).sum()
    basis = torch.linalg.qr(draw(4, keep, seed=seed)).Q
    _, path = descend(Full(gram, target, constant), torch.zeros_like(target), basis, 60)
    never_rises(path, 1e-9)


@pytest.mark.parametrize("hidden", [1e-4, 1e-6, 1e-9, 1e-15])
def test_a_steep_direction_that_the_first_gradient_hardly_sees_does_not_make_it_climb(hidden: float) -> None:
    # Power iteration from (1, hidden) sees a curvature of 1, and stops; a step of 1 along the other grows ninefold.
    gram = torch.diag(torch.tensor([1.0, 10.0], dtype=torch.float64))
    wish = torch.tensor([[1.0, hidden / 10]], dtype=torch.float64)
    target = wish @ gram
    quadratic = Full(gram, target, (target * wish).sum())
    nothing = torch.zeros(1, 2, dtype=torch.float64)
    basis = nothing.mT[:1, :0]
    assert largest_curvature(quadratic.curvature, basis, quadratic.gradient(nothing)) < 9.9 or hidden > 1e-5
    found, path = descend(quadratic, nothing, basis, 400)
    never_rises(path)
    close(found, wish, 1e-8)
    climbing = descend(quadratic, nothing, basis, 30, rate=1 / 1.01)[1]
    assert climbing[-1].surrogate > climbing[0].surrogate


def test_a_rate_of_ones_own_is_kept_even_where_it_diverges() -> None:
    tau, start, basis = problem((2, 4, 5), 0)
    steep = float(torch.linalg.eigvalsh(objective(tau, "full").gram).max())
    _, path = descend(objective(tau, "full"), start, basis, 50, rate=2.5 / steep)
    assert path[-1].surrogate > 100 * path[0].surrogate


@granularities
@pytest.mark.parametrize("keep", [0, 2])
def test_on_well_conditioned_problems_it_arrives_at_the_exact_solution(granularity: str, keep: int) -> None:
    tau, start, basis = problem((4, 6, 3), keep)
    if granularity != "full":
        tau, start, basis = problem((2, 5, 12), keep)
    quadratic = objective(tau, granularity)
    exact = (
        full_solution(quadratic, start, basis, "cutoff", 0.0)
        if isinstance(quadratic, Full)
        else conjugate_gradients(quadratic, start, basis, tolerance=1e-13, steps=500)[0]
    )
    found, path = descend(quadratic, start, basis, 1500)
    close(found, exact, 1e-6)
    never_rises(path)
    assert float((exact - start).norm()) > 0.1


@pytest.mark.parametrize("keep", [0, 2])
@granularities
def test_power_iteration_finds_the_largest_curvature_within_the_complement(granularity: str, keep: int) -> None:
    tau, start, basis = problem((3, 4, 5), keep)
    quadratic = objective(tau, granularity)
    columns = []
    for k in range(20):
        unit = torch.zeros(20, dtype=torch.float64)
        unit[k] = 1
        columns.append(off(basis, quadratic.curvature(off(basis, unit.reshape(4, 5)))).ravel())
    exact = float(torch.linalg.eigvalsh(torch.stack(columns)).max())
    found = largest_curvature(quadratic.curvature, basis, quadratic.gradient(start))
    assert 0.99 * exact < found <= 1.0101 * exact


# Its path


def test_the_path_says_the_surrogate_how_far_it_went_and_that_nothing_leaked() -> None:
    tau, start, basis = problem((3, 4, 5), 1)
    quadratic = objective(tau, "row")
    found, path = descend(quadratic, start, basis, 9)
    assert len(path) == 10
    assert path[0].surrogate == pytest.approx(2 * float(quadratic.value(start)))
    assert path[0].moved == 0
    assert path[0].leak == 0
    assert path[-1].surrogate == pytest.approx(2 * float(quadratic.value(found)))
    assert path[-1].moved == pytest.approx(float((found - start).norm()))
    assert path[-1].leak < 1e-24
    again, shorter = descend(quadratic, start, basis, 4)
    assert shorter[1:] == path[1:5]
    assert float((again - start).norm()) == pytest.approx(path[4].moved)


def test_no_steps_change_nothing() -> None:
    tau, start, basis = problem((3, 4, 5), 1)
    found, path = descend(objective(tau, "full"), start, basis, 0)
    assert torch.equal(found, start)
    assert len(path) == 1


@granularities
def test_where_there_is_nothing_to_do_it_stays(granularity: str) -> None:
    tau, _, basis = problem((1, 4, 5), 1)
    close(descend(objective(tau, granularity), tau[0], basis, 20)[0], tau[0], 1e-12)
    nothing = torch.zeros_like(tau)
    assert torch.equal(descend(objective(nothing, granularity), nothing[0], basis, 5)[0], nothing[0])


@granularities
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_where_everything_is_protected_what_rounding_leaves_is_not_followed(granularity: str, dtype) -> None:
    for seed in range(5):
        tau, start, _ = problem((3, 4, 5), 0, seed)
        basis = torch.linalg.qr(draw(4, 4, seed=seed + 3)).Q.to(dtype)
        tau, start = tau.to(dtype), start.to(dtype)
        quadratic = objective(tau, granularity)
        assert torch.equal(descend(quadratic, start, basis, 30)[0], start)
        if isinstance(quadratic, Full):
            found = full_solution(quadratic, start, basis, "cutoff", 0.0)
            close(found, start, 1e3 * torch.finfo(dtype).eps)
        else:
            assert torch.equal(conjugate_gradients(quadratic, start, basis)[0], start)


@granularities
@pytest.mark.parametrize("scale", [1e-9, 1e-5, 1e5])
def test_in_float32_neither_short_nor_long_task_vectors_stay_where_they_are(granularity: str, scale: float) -> None:
    tau, start, basis = (one.float() for one in problem((3, 12, 15), 2))
    one, _ = descend(objective(tau, granularity), start, basis, 40)
    other, _ = descend(objective(scale * tau, granularity), scale * start, basis, 40)
    assert float((one - start).norm()) > 0.1 * float(start.norm())
    torch.testing.assert_close(other / scale, one, rtol=0, atol=1e-4 * float(one.abs().max()))


@granularities
def test_float32_follows_float64(granularity: str) -> None:
    tau, start, basis = problem((4, 24, 32), 4)
    exact, _ = descend(objective(tau, granularity), start, basis, 50)
    single, path = descend(objective(tau.float(), granularity), start.float(), basis.float(), 50)
    assert float((single.double() - exact).norm() / exact.norm()) < 1e-4
    never_rises(path, 1e-5)
    assert path[-1].leak < 1e-10


def test_inputs_stay_as_they_are() -> None:
    tau, start, basis = problem((3, 4, 5), 1)
    before = tau.clone(), start.clone(), basis.clone()
    for granularity in GRANULARITIES:
        found, _ = descend(objective(tau, granularity), start, basis, 3)
        found.zero_()
    for one, other in zip((tau, start, basis), before, strict=True):
        assert torch.equal(one, other)
