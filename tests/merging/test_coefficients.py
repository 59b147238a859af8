"""λ from the lengths of the task vectors: the median rule, the published constant, and what neither may do."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import TaskArithmetic, TaskAware, merge
from apgd_teach.merging.coefficients import task_aware


def of_lengths(*lengths: float, out: int = 2, columns: int = 3) -> Tensor:
    """Task vectors from normal draws, each as long as it is said."""
    draws = torch.Generator().manual_seed(0)
    tau = torch.randn(len(lengths), out, columns, generator=draws, dtype=torch.float64)
    return tau / tau.flatten(1).norm(dim=1)[:, None, None] * torch.tensor(lengths, dtype=torch.float64)[:, None, None]


def literal(tau: np.ndarray, coefficient: float) -> list[float]:
    """Method.md §2.6, with Python's own median."""
    lengths = [float(np.sqrt((one**2).sum())) for one in tau]
    there = [length for length in lengths if length > 0]
    if not there:
        return [0.0] * len(lengths)
    eta = coefficient * statistics.median(there)
    return [min(1.0, eta / length) if length > 0 else 0.0 for length in lengths]


lengths = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=6)


@given(lengths, st.floats(0, 2))
@settings(deadline=None, max_examples=100)
def test_the_median_rule_is_its_equation(sizes: list[float], coefficient: float) -> None:
    tau = of_lengths(*sizes)
    # Numbers below 1e-300 have too few digits left for a relative tolerance.
    expected = literal(tau.numpy(), coefficient)
    np.testing.assert_allclose(task_aware(tau, coefficient), expected, rtol=1e-12, atol=1e-300)


def test_the_middle_one_of_an_odd_number_and_the_mean_of_the_middle_two_of_an_even_one() -> None:
    assert task_aware(of_lengths(1, 2, 4), 0.5).tolist() == pytest.approx([1, 0.5, 0.25])
    assert task_aware(of_lengths(1, 2, 4, 8), 0.5).tolist() == pytest.approx([1, 0.75, 0.375, 0.1875])
    assert task_aware(of_lengths(5), 0.3).tolist() == pytest.approx([0.3])


def test_no_coefficient_is_above_one_however_short_a_task_vector_is() -> None:
    assert task_aware(of_lengths(1, 1, 0.001), 0.3).tolist() == pytest.approx([0.3, 0.3, 1])


def test_zero_task_vectors_get_nothing_and_take_nothing() -> None:
    assert task_aware(of_lengths(1, 0, 2, 4), 0.5).tolist() == pytest.approx([1, 0, 0.5, 0.25])
    assert task_aware(of_lengths(0, 0), 0.5).tolist() == [0, 0]
    assert task_aware(of_lengths(0, 3), eta=0.07).tolist() == pytest.approx([0, 0.07 / 3])
    assert task_aware(torch.zeros(2, 3, 4), eta=0.07).tolist() == [0, 0]


@given(st.lists(st.floats(0.1, 10), min_size=3, max_size=6), st.floats(0.1, 1), st.booleans())
@settings(deadline=None, max_examples=40)
def test_a_zero_task_vector_more_moves_nobody_elses_coefficient(sizes, coefficient: float, first: bool) -> None:
    alone = task_aware(of_lengths(*sizes), coefficient)
    tau = of_lengths(*sizes)
    nothing = torch.zeros_like(tau[:1])
    together = task_aware(torch.cat([nothing, tau] if first else [tau, nothing]), coefficient)
    assert torch.equal(together[1:] if first else together[:-1], alone)


@given(lengths, st.floats(0.01, 100), st.floats(0.01, 1))
@settings(deadline=None, max_examples=40)
def test_for_a_fixed_eta_scaling_a_task_vector_changes_its_coefficient_and_not_their_product(
    sizes: list[float], scale: float, eta: float
) -> None:
    tau = of_lengths(*sizes)
    before, after = (task_aware(one, eta=eta)[:, None, None] * one for one in (tau, scale * tau))
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)
    if any(sizes) and abs(scale - 1) > 0.01:
        assert not torch.allclose(task_aware(scale * tau, eta=eta), task_aware(tau, eta=eta), rtol=1e-3)


@given(lengths, st.floats(0.01, 100))
@settings(deadline=None, max_examples=40)
def test_with_the_median_rule_scaling_all_of_them_leaves_the_coefficients(sizes: list[float], scale: float) -> None:
    tau = of_lengths(*sizes)
    torch.testing.assert_close(task_aware(scale * tau, 0.3), task_aware(tau, 0.3), rtol=1e-9, atol=0)


def test_a_given_eta_is_not_capped_and_the_coefficient_not_looked_at() -> None:
    tau = of_lengths(0.01, 1)
    for coefficient in (0.1, 0.9):
        assert task_aware(tau, coefficient, eta=0.07).tolist() == pytest.approx([7, 0.07])


def test_float32_is_as_good_as_its_digits() -> None:
    tau = of_lengths(0.2, 0.3, 0.5, 0.9, out=40, columns=50)
    torch.testing.assert_close(task_aware(tau.float(), 0.3).double(), task_aware(tau, 0.3), rtol=1e-6, atol=0)


def test_task_aware_adds_up_what_its_coefficients_say_and_tells_the_audit() -> None:
    tau = of_lengths(1, 2, 4)
    found = TaskAware(coefficient=0.5)(tau)
    torch.testing.assert_close(found.matrix, tau[0] + 0.5 * tau[1] + 0.25 * tau[2])
    assert found.facts["coefficients"] == pytest.approx((1, 0.5, 0.25))


def test_of_equally_long_task_vectors_task_aware_is_task_arithmetic() -> None:
    tau = of_lengths(3, 3, 3)
    torch.testing.assert_close(TaskAware(coefficient=0.4)(tau).matrix, TaskArithmetic(coefficient=0.4)(tau).matrix)


def test_the_lengths_are_those_of_the_layer_and_not_of_the_network(base, experts) -> None:
    longer = {name: {**state, "conv.weight": 3 * state["conv.weight"]} for name, state in experts.items()}
    kept = {**base, "conv.weight": 3 * base["conv.weight"]}
    one, other = (
        merge(start, states, "task_aware", coefficient=0.3).audit.rows
        for start, states in ((base, experts), (kept, longer))
    )
    for before, after in zip(one, other, strict=True):
        if "coefficients" in before.facts:
            assert after.facts["coefficients"] == pytest.approx(before.facts["coefficients"], rel=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "0.3", None, True])
def test_a_coefficient_that_is_no_number_is_refused(value) -> None:
    with pytest.raises(MergeError, match=r"^method 'task_aware' has coefficient = .*; give a finite number\.$"):
        TaskAware(coefficient=value)
