from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from apgd_teach.merging.threshold import kept, mask, thresholds

SMALLEST = float(np.finfo(np.float32).smallest_subnormal)
LARGEST = float(np.finfo(np.float32).max)

numbers = st.one_of(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(-100 * SMALLEST, 100 * SMALLEST, width=32),
    st.integers(-3, 3).map(float),  # zeros and ties
)


def found(layers: list[Tensor], share: float) -> np.ndarray:
    names = [str(place) for place in range(len(layers))]
    return thresholds(names, lambda name: layers[int(name)], share, len(layers[0])).numpy()


def sorted_out(layers: list[Tensor], share: float) -> np.ndarray:
    """The same by sorting: |τ| of a task in one row, and of it the entry of the published rank."""
    flat = np.concatenate([one.to(torch.float32).numpy().reshape(len(one), -1) for one in layers], axis=1)
    size = flat.shape[1]
    rank = max(1, size - int(size * share))
    return np.partition(np.abs(flat), rank - 1, axis=1)[:, rank - 1]


def same_bits(one: np.ndarray, other: np.ndarray) -> bool:
    return one.dtype == other.dtype == np.float32 and one.tobytes() == other.tobytes()


# The threshold


@settings(deadline=None)
@given(
    rows=st.integers(1, 30).flatmap(lambda size: st.lists(st.lists(numbers, min_size=size, max_size=size), min_size=1)),
    share=st.floats(0.001, 1),
    cut=st.integers(0, 30),
)
@example(rows=[[0.0, -0.0, SMALLEST, -2 * SMALLEST]], share=0.5, cut=2)
@example(rows=[[LARGEST, -LARGEST, 1.0], [0.0, 0.0, 0.0]], share=0.34, cut=1)
def test_the_threshold_is_bit_for_bit_what_sorting_finds(rows: list[list[float]], share: float, cut: int) -> None:
    whole = torch.tensor(rows, dtype=torch.float32).unsqueeze(1)
    layers = [part for part in (whole[..., :cut], whole[..., cut:]) if part.numel()]
    assert same_bits(found(layers, share), sorted_out(layers, share))


@pytest.mark.parametrize("size", [1, 2, 3, 49, 1000])
def test_shares_at_their_ends_keep_one_or_all(size: int) -> None:
    values = torch.randn(2, 1, size, generator=torch.Generator().manual_seed(size))
    for share in (1 / size, 1e-9, 1 - 1e-9, 1.0):
        assert same_bits(found([values], share), sorted_out([values], share))
    assert (values.abs() >= torch.from_numpy(found([values], 1.0))[:, None, None]).all()
    assert torch.equal(torch.from_numpy(found([values], 1e-9)), values.abs().amax(dim=(1, 2)))


def test_the_rank_is_as_published() -> None:
    assert [kept(share, 10) for share in (0.01, 0.1, 0.29, 0.3, 0.999, 1.0)] == [10, 9, 8, 7, 1, 1]


@pytest.mark.parametrize("share", [0.2, 0.3, 0.77])
def test_without_ties_one_more_than_the_share_is_kept_of_each_task(share: float) -> None:
    draws = torch.Generator().manual_seed(0)
    layers = [torch.randn(3, *shape, generator=draws) for shape in ((4, 9), (1, 5), (30, 2))]
    at = torch.from_numpy(found(layers, share))
    counts = sum((one.abs() >= at[:, None, None]).sum(dim=(1, 2)) for one in layers)
    assert counts.tolist() == [int(101 * share) + 1] * 3


def test_values_that_differ_in_their_last_bits_only_are_told_apart() -> None:
    # All of them fall into one interval of the first pass: the second has to do the work.
    values = (torch.arange(1000, dtype=torch.int32) + 0x3F800000).view(torch.float32)
    shuffled = values[torch.randperm(1000, generator=torch.Generator().manual_seed(1))].reshape(1, 20, 50)
    assert found([shuffled[:, :7], shuffled[:, 7:]], 0.25).item() == values[749].item()


def test_each_task_has_its_own_threshold_and_its_own_interval() -> None:
    values = torch.randn(4, 30, 30, generator=torch.Generator().manual_seed(2)) * torch.tensor(
        [1e-38, 1e-3, 1.0, 1e30]
    ).reshape(4, 1, 1)
    assert same_bits(found([values], 0.3), sorted_out([values], 0.3))


def test_it_lies_over_all_layers_together_and_not_in_each() -> None:
    small, large = torch.full((1, 10, 10), 0.1), torch.full((1, 5, 10), 5.0)
    assert found([small, large], 0.3).item() == 5.0
    assert found([small, large], 0.4).item() == pytest.approx(0.1)
    assert same_bits(found([small, large], 0.3), found([large, small], 0.3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_precisions_are_rounded_to_float32(dtype: torch.dtype) -> None:
    layers = [torch.randn(2, 8, 9, generator=torch.Generator().manual_seed(3), dtype=torch.float64).to(dtype)]
    assert same_bits(found(layers, 0.3), sorted_out(layers, 0.3))


def test_tensors_that_do_not_lie_in_a_row_are_read_by_place() -> None:
    values = torch.randn(9, 8, 3, generator=torch.Generator().manual_seed(4)).permute(2, 1, 0)
    assert same_bits(found([values], 0.3), sorted_out([values.contiguous()], 0.3))


def test_no_layer_has_a_threshold_of_zero() -> None:
    assert thresholds([], lambda name: torch.ones(1), 0.3, 2).tolist() == [0.0, 0.0]


def test_each_layer_is_read_twice_and_left_as_it_was() -> None:
    layers = {"a": -torch.ones(2, 3, 3), "b": torch.ones(2, 1, 4)}
    read, ticks = [], []

    def reading(name: str) -> Tensor:
        read.append(name)
        return layers[name]

    thresholds(layers, reading, 0.5, 2, lambda: ticks.append(0))
    assert read == ["a", "b", "a", "b"]
    assert len(ticks) == 4
    assert torch.equal(layers["a"], -torch.ones(2, 3, 3))


# What is kept


def test_on_its_own_a_layer_is_trimmed_by_the_same_rule() -> None:
    values = torch.randint(-4, 5, (3, 6, 7), generator=torch.Generator().manual_seed(5)).float()
    for share in (0.01, 0.2, 0.5, 1.0):
        at = torch.from_numpy(found([values], share))
        assert torch.equal(mask(values, share), mask(values, share, at))
        assert torch.equal(mask(values, share), values.abs() >= at[:, None, None])


def test_ties_at_the_threshold_are_all_kept() -> None:
    values = torch.tensor([[[3.0, -2.0, 2.0, 2.0, 1.0]]])
    assert mask(values, 0.2).tolist() == [[[True, True, True, True, False]]]


def test_the_entry_at_the_threshold_is_kept_in_double_precision_too() -> None:
    # 0.1 is below the float32 next to it: compared as it is, it would fall below its own threshold.
    values = torch.tensor([[[0.1, 0.05, 0.01]]], dtype=torch.float64)
    at = torch.from_numpy(found([values], 0.3))
    assert float(at) > 0.1
    assert mask(values, 0.3, at).tolist() == mask(values, 0.3).tolist() == [[[True, False, False]]]
