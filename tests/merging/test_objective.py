"""The quadratic that each granularity stands for: value, gradient and curvature against their equations in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import surrogate, weights
from apgd_teach.merging.objective import Full, PerLayer, PerRow, objective

GRANULARITIES = ("layer", "row", "full")
SHAPES = [(3, 3, 5), (3, 5, 3), (2, 4, 4), (1, 2, 3), (2, 1, 4), (2, 4, 1)]
# Exponent of the singular values, and how many directions of each task count.
FULLS = [(2.0, None), (2.0, 2), (1.0, None), (1.0, 1), (0.0, None), (0.0, 2), (0.5, 2), (3.0, None), (2.0, 99)]
shapes = pytest.mark.parametrize("shape", SHAPES)
fulls = pytest.mark.parametrize(("power", "top"), FULLS)


def layer(shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Task vectors of different lengths and an update, from normal draws in float64."""
    draws = torch.Generator().manual_seed(seed)
    tau = torch.randn(shape, generator=draws, dtype=torch.float64) * torch.arange(1.0, shape[0] + 1)[:, None, None]
    return tau, torch.randn(shape[1:], generator=draws, dtype=torch.float64)


def literal_residual(tau: np.ndarray, update: np.ndarray) -> np.ndarray:
    return (update - tau) @ tau.T


def literal_full(tau: np.ndarray, update: np.ndarray, power: float, top: int | None) -> float:
    """Method.md §4C: Σⱼ ‖(M − τⱼ) Vⱼ Sⱼ^{p/2}‖² / Σₖ sⱼₖᵖ, direction by direction."""
    total = 0.0
    for one in tau:
        _, values, right = np.linalg.svd(one, full_matrices=False)
        some = range(len(values) if top is None else min(top, len(values)))
        above = sum(values[k] ** power * float((((update - one) @ right[k]) ** 2).sum()) for k in some)
        total += above / sum(values[k] ** power for k in some)
    return total


def literal(tau: np.ndarray, update: np.ndarray, granularity: str, power: float = 2.0, top: int | None = None) -> float:
    if granularity == "full":
        return literal_full(tau, update, power, top)
    residuals = [literal_residual(one, update) for one in tau]
    if granularity == "layer":
        return sum(float(np.trace(one)) ** 2 for one in residuals)
    return sum(float(one[k, k]) ** 2 for one in residuals for k in range(len(one)))


def slopes(function, update: np.ndarray) -> np.ndarray:
    """The gradient of a quadratic by central differences, which are exact for one."""
    found = np.zeros_like(update)
    for place in np.ndindex(update.shape):
        step = np.zeros_like(update)
        step[place] = 0.5
        found[place] = function(update + step) - function(update - step)
    return found


def close(found: Tensor, expected: np.ndarray | float, tolerance: float = 1e-9) -> None:
    expected = np.asarray(expected)
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(
        found.numpy(), expected, rtol=0, atol=tolerance * max(1.0, float(np.abs(expected).max()))
    )


@pytest.mark.parametrize("granularity", GRANULARITIES)
@shapes
def test_value_gradient_and_curvature_are_those_of_half_the_surrogate(shape, granularity: str) -> None:
    tau, update = layer(shape)
    quadratic, t, m = objective(tau, granularity), tau.numpy(), update.numpy()
    close(2 * quadratic.value(update), literal(t, m, granularity))
    close(2 * quadratic.gradient(update), slopes(lambda at: literal(t, at, granularity), m))
    # A gradient is affine: its change along D is the curvature of D.
    direction = layer(shape, 1)[1].numpy()
    there, here = (slopes(lambda at: literal(t, at, granularity), one) for one in (m + direction, m))
    close(2 * quadratic.curvature(torch.from_numpy(direction)), there - here)


@fulls
@shapes
def test_the_whole_residual_may_be_weighted_by_a_power_and_cut_to_the_first_directions(shape, power, top) -> None:
    tau, update = layer(shape)
    quadratic, t, m = objective(tau, "full", power=power, top=top), tau.numpy(), update.numpy()
    close(2 * quadratic.value(update), literal_full(t, m, power, top))
    close(2 * quadratic.gradient(update), slopes(lambda at: literal_full(t, at, power, top), m))
    direction = layer(shape, 1)[1].numpy()
    there, here = (slopes(lambda at: literal_full(t, at, power, top), one) for one in (m + direction, m))
    close(2 * quadratic.curvature(torch.from_numpy(direction)), there - here)


@shapes
def test_the_gradient_of_full_is_m_g_minus_b(shape) -> None:
    # Method.md §3: G = Σ wⱼτⱼᵀτⱼ, B = Σ wⱼτⱼτⱼᵀτⱼ, wⱼ = 1/‖τⱼ‖².
    tau, update = layer(shape)
    quadratic = objective(tau, "full")
    assert isinstance(quadratic, Full)
    gram, target = np.zeros((shape[2], shape[2])), np.zeros(shape[1:])
    for one in tau.numpy():
        weight = 1 / (one**2).sum()
        gram += weight * one.T @ one
        target += weight * one @ one.T @ one
    close(quadratic.gram, gram)
    close(quadratic.target, target)
    close(quadratic.gradient(update), update.numpy() @ gram - target)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@shapes
def test_the_value_is_half_of_what_the_surrogates_of_the_audit_add_up_to(shape, granularity: str) -> None:
    tau, update = layer(shape)
    total = float((weights(tau, granularity) * surrogate(tau, update, granularity)).sum())
    assert 2 * float(objective(tau, granularity).value(update)) == pytest.approx(total, rel=1e-9)


def test_a_power_of_two_computed_by_singular_vectors_is_the_short_way_through_the_products() -> None:
    for shape in ((3, 4, 6), (3, 6, 4)):
        tau, _ = layer(shape)
        one, other = objective(tau, "full"), objective(tau, "full", top=4)
        close(one.gram, other.gram.numpy())
        close(one.target, other.target.numpy())
        close(one.constant, float(other.constant))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize(("power", "top"), [(2.0, None), (1.0, None), (0.0, 1)])
def test_a_zero_task_vector_adds_nothing(granularity: str, power: float, top: int | None) -> None:
    tau, update = layer((2, 3, 4))
    with_zero = torch.cat([tau[:1], torch.zeros_like(tau[:1]), tau[1:]])
    one, other = (objective(some, granularity, power=power, top=top) for some in (tau, with_zero))
    close(other.value(update), float(one.value(update)))
    close(other.gradient(update), one.gradient(update).numpy())
    nothing = objective(torch.zeros_like(tau), granularity, power=power, top=top)
    assert float(nothing.value(update)) == 0
    assert not nothing.gradient(update).any()


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0, 3.0])
@pytest.mark.parametrize("shape", [(2, 6, 9), (2, 9, 6)])
def test_directions_that_a_task_has_not_have_no_weight_even_for_the_power_zero(shape, power: float) -> None:
    draws = torch.Generator().manual_seed(0)
    tau = torch.randn(2, shape[1], 2, generator=draws, dtype=torch.float64)
    tau = tau @ torch.randn(2, 2, shape[2], generator=draws, dtype=torch.float64)
    quadratic = objective(tau, "full", power=power)
    assert int((torch.linalg.eigvalsh(quadratic.gram) > 1e-6).sum()) == 4
    # Each task's weights add up to one.
    assert float(quadratic.gram.trace()) == pytest.approx(2)


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 5), st.integers(0, 999), st.sampled_from(FULLS))
@settings(deadline=None, max_examples=40)
def test_every_quadratic_is_convex_and_its_three_faces_agree(tasks, out, columns, seed, kind) -> None:
    tau, update = layer((tasks, out, columns), seed)
    step = layer((tasks, out, columns), seed + 1)[1]
    for granularity in GRANULARITIES:
        quadratic = objective(tau, granularity, power=kind[0], top=kind[1])
        curved = float((step * quadratic.curvature(step)).sum())
        assert curved >= -1e-9
        expected = float(quadratic.value(update) + (step * quadratic.gradient(update)).sum()) + curved / 2
        assert float(quadratic.value(update + step)) == pytest.approx(expected, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("power", [0.5, 2.0, 8.0])
@pytest.mark.parametrize("scale", [1e-9, 1e-4, 1e4])
def test_high_powers_of_short_and_long_task_vectors_do_not_leave_float32(power: float, scale: float) -> None:
    tau = layer((3, 8, 6))[0].float()
    one, other = (objective(some, "full", power=power, top=5) for some in (tau, scale * tau))
    torch.testing.assert_close(other.gram, one.gram, rtol=0, atol=1e-5)
    torch.testing.assert_close(other.target / scale, one.target, rtol=0, atol=1e-5 * float(one.target.abs().max()))


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(4, 48, 96), (4, 96, 48)])
def test_float32_is_good_to_four_digits(shape, granularity: str) -> None:
    tau, update = layer(shape)
    for power in (1.0, 2.0):
        exact, single = (objective(one, granularity, power=power) for one in (tau, tau.float()))
        expected = exact.gradient(update)
        error = (single.gradient(update.float()).double() - expected).norm() / expected.norm()
        assert float(error) < 1e-5
        assert float(single.value(update.float())) == pytest.approx(float(exact.value(update)), rel=1e-4)


def test_each_granularity_has_its_class_and_no_other_word_has_one() -> None:
    tau, _ = layer((2, 3, 4))
    kinds = [type(objective(tau, granularity)) for granularity in GRANULARITIES]
    assert kinds == [PerLayer, PerRow, Full]
    with pytest.raises(MergeError, match=r"^there is no granularity 'column'; use one of: layer, row, full\.$"):
        objective(tau, "column")


def test_inputs_stay_as_they_are() -> None:
    tau, update = layer((2, 3, 4))
    before = tau.clone(), update.clone()
    for granularity in GRANULARITIES:
        for power in (1.0, 2.0):
            quadratic = objective(tau, granularity, power=power)
            quadratic.value(update)
            quadratic.gradient(update)
            quadratic.curvature(update)
    assert torch.equal(tau, before[0])
    assert torch.equal(update, before[1])
