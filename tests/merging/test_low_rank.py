"""A merge in fewer numbers: nearest products, what they hold, and the way back."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge, merge_files, open_checkpoint
from apgd_teach.merging.low_rank import LowRank, low_rank

State = dict[str, Tensor]


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base() -> State:
    return {
        "a.weight": drawn(30, 20, seed=0),
        "a.bias": drawn(30, seed=1),
        "conv.weight": drawn(12, 6, 3, 3, seed=2),
        "tall.weight": drawn(50, 8, seed=3),
        "same.weight": drawn(9, 9, seed=4),
        "steps": torch.tensor(7),
    }


@pytest.fixture
def changed(base: State) -> State:
    """Every matrix by a product of two directions, and the bias."""
    moved = dict(base)
    for place, name in enumerate(("a.weight", "conv.weight", "tall.weight")):
        out, width = base[name].flatten(1).shape
        product = drawn(out, 2, seed=10 + place) @ drawn(2, width, seed=20 + place)
        moved[name] = base[name] + 0.1 * product.reshape(base[name].shape)
    moved["a.bias"] = base["a.bias"] + 1
    return moved


def test_what_has_low_rank_comes_back_as_it_was(base: State, changed: State) -> None:
    made = low_rank(base, changed, energy=1.0)
    assert {row.name: row.rank for row in made.rows} == {
        "a.weight": 2,
        "a.bias": None,
        "conv.weight": 2,
        "tall.weight": 2,
    }
    for name, tensor in made.state_dict(base).items():
        torch.testing.assert_close(tensor, changed[name], atol=1e-6, rtol=1e-5)
    assert made.numbers == 2 * (30 + 20) + 2 * (12 + 54) + 2 * (50 + 8) + 30
    assert made.full == 30 * 20 + 12 * 54 + 50 * 8 + 30
    assert str(made.table()).startswith(f"{made.numbers:,} numbers in place of {made.full:,}")


@settings(max_examples=25, deadline=None)
@given(out=st.integers(2, 24), width=st.integers(2, 24), energy=st.floats(0.05, 0.98), seed=st.integers(0, 10_000))
def test_it_is_the_truncated_svd_with_the_smallest_rank_that_holds_the_energy(
    out: int, width: int, energy: float, seed: int
) -> None:
    update = drawn(out, width, seed=seed)
    zero = {"w.weight": torch.zeros(out, width)}
    made = low_rank(zero, {"w.weight": update}, energy=energy)
    (row,) = made.rows
    squares = torch.linalg.svdvals(update.double()).square()
    held = squares.cumsum(0) / squares.sum()
    rank = 1 + int((held < energy).sum())
    if rank * (out + width) >= out * width:
        assert row.rank is None
        assert row.energy == 1.0
        return
    assert row.rank == rank
    assert row.energy == pytest.approx(float(held[rank - 1]), abs=1e-6)
    left = update - made.state_dict(zero)["w.weight"]
    assert float(left.double().square().sum()) == pytest.approx(float(squares[rank:].sum()), rel=1e-4, abs=1e-6)


def test_a_share_of_the_numbers_is_spent_where_it_holds_most(base: State) -> None:
    """No other choice of as many numbers holds more: compared with the same share of each layer's own numbers."""
    draw = {name: (10.0 if name == "a.weight" else 0.1) for name in ("a.weight", "conv.weight", "tall.weight")}
    moved = {
        **base,
        **{name: base[name] + size * drawn(*base[name].shape, seed=30) for name, size in draw.items()},
    }
    made = low_rank(base, moved, share=0.3)
    full = sum(base[name].numel() for name in draw)
    assert made.numbers <= 0.3 * full
    ranks = {row.name: row.rank for row in made.rows}
    assert ranks["a.weight"] >= 5
    assert ranks["conv.weight"] == ranks["tall.weight"] == 0
    assert set(made.factors) == {"a.weight"}
    assert torch.equal(made.state_dict(base)["conv.weight"], base["conv.weight"])

    def lost(one: LowRank, names: Iterable[str] = draw) -> float:
        back = one.state_dict(base)
        return math.sqrt(sum(float((back[name] - moved[name]).square().sum()) for name in names))

    each = [low_rank({name: base[name]}, {name: moved[name]}, share=0.3) for name in draw]
    assert sum(one.numbers for one in each) <= 0.3 * full
    apart = math.sqrt(sum(lost(one, [name]) ** 2 for one, name in zip(each, draw, strict=True)))
    assert lost(made) < apart
    assert low_rank(base, moved, share=1.0).numbers <= full


def test_it_is_saved_as_an_adapter_and_read_as_an_expert(base: State, changed: State, tmp_path: Path) -> None:
    state = {name: one for name, one in base.items() if name != "steps"}
    save_file(state, tmp_path / "base.safetensors")
    save_file({name: changed[name] for name in state}, tmp_path / "changed.safetensors")
    made = low_rank(
        open_checkpoint(tmp_path / "base.safetensors"), open_checkpoint(tmp_path / "changed.safetensors"), energy=1.0
    )
    folder = made.save(tmp_path / "small")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["base.safetensors", "changed.safetensors", "small"]
    merge_files(tmp_path / "base.safetensors", {"small": folder}, tmp_path / "back.safetensors", progress=False)
    back = open_checkpoint(tmp_path / "back.safetensors")
    for name in state:
        torch.testing.assert_close(back.read(name), changed[name], atol=1e-6, rtol=1e-5)
    half = sum(path.stat().st_size for path in made.save(tmp_path / "half", dtype=torch.bfloat16).iterdir())
    assert half < sum(path.stat().st_size for path in folder.iterdir())
    with pytest.raises(MergeError, match="is there already; give a new folder"):
        made.save(folder)
    with pytest.raises(MergeError, match="cannot be made"):
        made.save(tmp_path / "nowhere" / "small")


def test_peft_itself_reads_what_is_saved(tmp_path: Path) -> None:
    """Imported here, which takes seconds: nothing else of this file needs it."""
    import peft

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(16, 24), nn.GELU(), nn.Linear(24, 16, bias=False), nn.Conv2d(6, 12, 3))
    base = {name: one.clone() for name, one in net.state_dict().items()}
    moved = {name: one + 0.1 * torch.randn_like(one) if one.ndim > 1 else one for name, one in base.items()}
    made = low_rank(base, moved, energy=0.6)
    made.save(tmp_path / "small")
    loaded = peft.PeftModel.from_pretrained(net, tmp_path / "small").merge_and_unload().state_dict()
    assert {row.rank for row in made.rows} != {None}
    for name, tensor in made.state_dict(base).items():
        torch.testing.assert_close(loaded[name], tensor, atol=1e-6, rtol=1e-5)


def test_a_flattened_merge_needs_more_than_an_average(base: State) -> None:
    """Equal singular values are what low rank cannot have: said in the notes of lesson 09, and so it should be true."""
    experts = {
        name: {
            key: one + 0.1 * drawn(*one.shape, seed=50 + place) if one.ndim > 1 else one for key, one in base.items()
        }
        for place, name in enumerate("abc")
    }
    ranks = {}
    for method in ("average", "iso_c"):
        made = low_rank(base, merge(base, experts, method).state_dict, energy=0.5)
        ranks[method] = {row.name: row.rank for row in made.rows}["a.weight"]
    assert ranks["average"] < ranks["iso_c"]


@pytest.mark.parametrize(
    ("change", "options", "says"),
    [
        ({}, {}, "takes either energy or share"),
        ({}, {"energy": 0.5, "share": 0.5}, "takes either energy or share"),
        ({}, {"energy": 0.0}, "energy"),
        ({}, {"share": 1.5}, "share"),
        ({"a.weight": torch.zeros(3, 3)}, {"energy": 0.5}, "tensor 'a.weight' has the shape"),
        ({"more.weight": torch.zeros(3, 3)}, {"energy": 0.5}, "tensor 'more.weight' is in the changed model alone"),
        ({"a.bias": torch.full((30,), torch.nan)}, {"energy": 0.5}, "tensor 'a.bias' holds NaN or infinity"),
        ({"steps": torch.tensor(8)}, {"energy": 0.5}, "tensor 'steps' holds integers that changed"),
    ],
)
def test_what_cannot_be_is_one_sentence(base: State, change: State, options: dict, says: str) -> None:
    with pytest.raises(MergeError, match=says):
        low_rank(base, {**base, **change}, **options)


def test_nothing_changed_is_nothing_to_save(base: State, tmp_path: Path) -> None:
    made = low_rank(base, base, energy=0.5)
    assert made.rows == ()
    with pytest.raises(MergeError, match="there is nothing to keep: the two models are the same"):
        made.save(tmp_path / "small")


def test_the_energy_of_all_counts_every_tensor_by_its_length(base: State) -> None:
    moved = {**base, "a.weight": base["a.weight"] + 1.0, "conv.weight": base["conv.weight"] + 2.0}
    made = low_rank(base, moved, energy=0.99)
    squares = {name: float((moved[name] - base[name]).square().sum()) for name in ("a.weight", "conv.weight")}
    assert {row.name: row.square for row in made.rows} == pytest.approx(squares)
    by_hand = sum(row.energy * squares[row.name] for row in made.rows) / sum(squares.values())
    assert made.energy == pytest.approx(by_hand)
    assert made.energy >= 0.99 - 1e-6
