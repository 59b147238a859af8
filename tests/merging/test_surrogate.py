"""The Taylor estimate and the surrogates of the gap: their definitions, their order, their gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from apgd_teach.errors import MergeError
from apgd_teach.merging import residual, surrogate, taylor_gap, taylor_gap_with_gradient, weights

GRANULARITIES = ("layer", "row", "full")
SHAPES = [(3, 2, 5), (3, 5, 2), (2, 4, 4), (1, 1, 3), (2, 3, 1)]
"""(task, out, in): wide, tall, square, and one row or column. `full` takes another way for the tall ones."""


def layer(n_tasks: int, out: int, in_: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Task vectors and an update from normal draws, in float64."""
    draws = torch.Generator().manual_seed(seed)
    tau = torch.randn(n_tasks, out, in_, generator=draws, dtype=torch.float64)
    return tau, torch.randn(out, in_, generator=draws, dtype=torch.float64)


layers = st.builds(layer, st.integers(1, 4), st.integers(1, 6), st.integers(1, 6), st.integers(0, 10_000))


@pytest.mark.parametrize("shape", SHAPES)
def test_the_definitions_agree_with_a_literal_transcription(shape: tuple[int, int, int]) -> None:
    tau, update = layer(*shape)
    t, m = tau.numpy(), update.numpy()
    n_tasks, out, in_ = shape
    literal = np.zeros((n_tasks, out, out))
    for j in range(n_tasks):
        for row in range(out):
            for column in range(out):
                literal[j, row, column] = sum((m[row, k] - t[j, row, k]) * t[j, column, k] for k in range(in_))
    expected = {
        "layer": [np.trace(r) ** 2 for r in literal],
        "row": [sum(r[i, i] ** 2 for i in range(out)) for r in literal],
        "full": [(r**2).sum() for r in literal],
    }
    np.testing.assert_allclose(residual(tau, update), literal, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(taylor_gap(tau, update), [-np.trace(r) for r in literal], rtol=1e-12, atol=1e-12)
    for granularity, values in expected.items():
        np.testing.assert_allclose(surrogate(tau, update, granularity), values, rtol=1e-11, atol=1e-12)


@given(layers)
def test_each_granularity_bounds_the_one_before_it(drawn: tuple[Tensor, Tensor]) -> None:
    tau, update = drawn
    d = tau.shape[1]
    by_layer, by_row, full = (surrogate(tau, update, one) for one in GRANULARITIES)
    assert (by_layer <= d * by_row * (1 + 1e-12)).all()
    assert (by_row <= full * (1 + 1e-12) + 1e-12).all()


def test_the_bounds_are_tight_where_all_rows_miss_by_the_same_and_rows_share_no_input() -> None:
    # With τ = I and M = 3 I the residual is 2 I: a trace of 2d, d equal entries, nothing off the diagonal.
    d = 4
    tau, update = torch.eye(d)[None], 3 * torch.eye(d)
    assert surrogate(tau, update, "layer").item() == 4 * d * d
    assert surrogate(tau, update, "row").item() == 4 * d
    assert surrogate(tau, update, "full").item() == 4 * d


def test_a_coarser_granularity_overlooks_what_cancels() -> None:
    # One row too far and one too short by as much: `layer` is content. Two rows exchanged: `row` is content.
    tau = torch.eye(2)[None]
    beside = torch.diag(torch.tensor([2.0, 0.0]))
    crossed = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert [surrogate(tau, beside, one).item() for one in GRANULARITIES] == [0, 2, 2]
    assert [surrogate(tau, crossed, one).item() for one in GRANULARITIES] == [0, 0, 2]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_gradients_are_the_closed_formulas(shape: tuple[int, int, int], granularity: str) -> None:
    tau, update = layer(*shape)
    update.requires_grad_()
    w = weights(tau, granularity)
    (w * surrogate(tau, update, granularity)).sum().backward()
    expected = torch.zeros_like(tau[0])
    for j, r in enumerate(residual(tau, update.detach())):
        factor = {"layer": r.trace() * torch.eye(len(r), dtype=r.dtype), "row": torch.diag(r.diagonal()), "full": r}[
            granularity
        ]
        expected += 2 * w[j] * factor @ tau[j]
    torch.testing.assert_close(update.grad, expected, rtol=1e-10, atol=1e-12)


@given(layers)
def test_the_estimate_is_linear_in_the_update_from_the_squared_norm_at_the_base_to_zero_at_the_expert(
    drawn: tuple[Tensor, Tensor],
) -> None:
    tau, update = drawn
    squares = tau.square().sum(dim=(1, 2))
    torch.testing.assert_close(taylor_gap(tau, torch.zeros_like(update)), squares)
    for j, expert in enumerate(tau):
        assert taylor_gap(tau, expert)[j] == 0
        assert taylor_gap(tau, 2 * expert)[j] <= 0
    half = (taylor_gap(tau, update) + squares) / 2
    torch.testing.assert_close(taylor_gap(tau, update / 2), half)


def test_the_data_free_estimate_is_the_true_one_where_the_task_vector_is_one_gradient_step() -> None:
    gradients, update = layer(3, 4, 5)
    tau = -0.1 * gradients
    torch.testing.assert_close(0.1 * taylor_gap_with_gradient(gradients, tau, update), taylor_gap(tau, update))
    by_hand = [float((gradients[j] * (update - tau[j])).sum()) for j in range(3)]
    np.testing.assert_allclose(taylor_gap_with_gradient(gradients, tau, update), by_hand)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", SHAPES)
def test_the_surrogate_of_an_expert_at_itself_is_zero_and_never_negative(
    shape: tuple[int, int, int], granularity: str
) -> None:
    tau = layer(*shape)[0].float()
    for j, expert in enumerate(tau):
        assert surrogate(tau, expert, granularity)[j] == 0
        assert (surrogate(tau, expert + 1e-6, granularity) >= 0).all()


def test_a_full_surrogate_that_rounding_takes_below_zero_is_zero() -> None:
    # Inputs of the tasks in subspaces of their own, in float32 and turned: the sum of the task vectors suits them all.
    for seed in range(10):
        draws, _ = layer(2, 40, 20, seed)
        turn = torch.linalg.qr(draws[1, :20]).Q
        tau = torch.stack([draws[0, :, :10] @ turn[:10], draws[1, :, 10:] @ turn[10:]]).float()
        values = surrogate(tau, tau.sum(dim=0), "full")
        assert (values >= 0).all()
        assert (values <= 1e-7 * tau.square().sum() ** 2).all()


class Largest(TorchDispatchMode):
    """Notes the size of the largest tensor that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.size = max(self.size, result.numel())
        return result


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(3, 4, 90), (3, 90, 4)])
def test_nothing_larger_than_the_layer_is_held(shape: tuple[int, int, int], granularity: str) -> None:
    tau, update = layer(*shape)
    with Largest() as largest:
        surrogate(tau, update, granularity)
    assert largest.size == update.numel()


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_zero_task_vector_counts_for_nothing(granularity: str) -> None:
    tau, update = layer(3, 4, 2)
    tau[1] = 0
    assert surrogate(tau, update, granularity)[1] == 0
    assert weights(tau, granularity)[1] == 0
    assert taylor_gap(tau, update)[1] == 0
    # So short that its square is zero in float32: weighed by 1/0 it would turn the total into NaN.
    short = torch.cat([tau[:1], 1e-30 * tau[2:]]).float()
    total = weights(short, granularity) @ surrogate(short, update.float(), granularity)
    assert torch.isfinite(total)


def test_weights_are_the_inverse_squared_norm_for_full_and_one_for_the_others() -> None:
    tau = torch.stack([torch.full((2, 2), 0.5), torch.full((2, 2), 2.0)])
    assert weights(tau, "full").tolist() == [1, 1 / 16]
    assert weights(tau, "row").tolist() == weights(tau, "layer").tolist() == [1, 1]


@given(layers, st.floats(0.01, 100))
def test_the_weighted_full_surrogate_grows_with_the_square_of_the_scale_and_the_others_with_the_fourth_power(
    drawn: tuple[Tensor, Tensor], scale: float
) -> None:
    tau, update = drawn
    for granularity, power in (("layer", 4), ("row", 4), ("full", 2)):
        small = weights(tau, granularity) * surrogate(tau, update, granularity)
        large = weights(scale * tau, granularity) * surrogate(scale * tau, scale * update, granularity)
        torch.testing.assert_close(large, scale**power * small, rtol=1e-6, atol=1e-9 * scale**power)


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shape", [(3, 32, 128), (3, 128, 32)])
def test_float32_is_good_to_five_digits(shape: tuple[int, int, int], granularity: str) -> None:
    tau, _ = layer(*shape)
    exact = surrogate(tau, tau.mean(dim=0), granularity)
    single = surrogate(tau.float(), tau.mean(dim=0).float(), granularity)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=1e-5, atol=0)


def test_the_order_of_the_tasks_is_the_order_of_the_numbers() -> None:
    tau, update = layer(3, 4, 5)
    for granularity in GRANULARITIES:
        swapped = surrogate(tau.flip(0), update, granularity)
        torch.testing.assert_close(swapped, surrogate(tau, update, granularity).flip(0))


def test_inputs_stay_as_they_are() -> None:
    tau, update = layer(2, 5, 3)
    before = tau.clone(), update.clone()
    for granularity in GRANULARITIES:
        surrogate(tau, update, granularity)
        weights(tau, granularity)
    residual(tau, update)
    taylor_gap(tau, update)
    assert torch.equal(tau, before[0])
    assert torch.equal(update, before[1])


@pytest.mark.parametrize("granularity", ["column", "Full", ""])
def test_an_unknown_granularity_is_refused_in_one_sentence(granularity: str) -> None:
    tau, update = layer(2, 3, 4)
    with pytest.raises(MergeError, match=r"no granularity '.*'; use one of: layer, row, full\.$"):
        surrogate(tau, update, granularity)
    with pytest.raises(MergeError, match="no granularity"):
        weights(tau, granularity)


def test_shapes_that_would_broadcast_are_refused() -> None:
    tau, update = layer(2, 3, 4)
    for wrong in (update[:1], update.mT, tau, update[0, 0]):
        with pytest.raises(MergeError, match=r"\(task, out, in\) and \(out, in\)"):
            surrogate(tau, wrong, "row")
    with pytest.raises(MergeError, match=r"out, in·kh·kw"):
        taylor_gap(tau.reshape(2, 3, 2, 2), update.reshape(3, 2, 2))
    with pytest.raises(MergeError, match="one gradient per task"):
        taylor_gap_with_gradient(tau[:1], tau, update)
    for wrong in (tau[0], tau[0, 0], tau[0, 0, 0]):
        with pytest.raises(MergeError, match="task, out, in"):
            weights(wrong, "full")
