"""What tasks share, in numbers: known answers on task vectors that were built to share something or nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.shared import (
    inside,
    layer_vectors,
    measure_firmness,
    measure_held,
    measure_overlaps,
    overlap,
    shuffled,
    sixth,
    turned,
)

EYE = torch.eye(12)


def writes(*directions: int, columns: int = 20, seed: int = 0) -> Tensor:
    """A task vector that writes into some of twelve output directions, the first ones most strongly."""
    reads = torch.linalg.qr(torch.randn(columns, len(directions), generator=torch.Generator().manual_seed(seed))).Q
    strengths = torch.arange(len(directions), 0, -1.0)
    return EYE[:, list(directions)] @ (strengths[:, None] * reads.mT)


def common(tasks: int = 4, out: int = 24, columns: int = 30, together: float = 3.0) -> Tensor:
    """Task vectors that have a part in common which only some of the outputs show, and one of their own."""
    draws = torch.Generator().manual_seed(3)
    part = torch.zeros(out, columns)
    part[: out // 6] = together * torch.randn(out // 6, columns, generator=draws)
    return part + torch.randn(tasks, out, columns, generator=draws)


def test_the_vectors_of_a_layer_are_matrices_in_the_order_of_the_tasks_names() -> None:
    base = {"kernel": torch.zeros(4, 2, 3, 3), "bias": torch.zeros(4), "steps": torch.zeros(2, 2, dtype=torch.long)}
    experts = {name: {key: one + value for key, one in base.items()} for name, value in (("b", 2), ("a", 1))}
    found = layer_vectors(base, experts)
    assert list(found) == ["kernel"]
    assert found["kernel"].shape == (2, 4, 18)
    assert [float(one.mean()) for one in found["kernel"]] == [1, 2]


def test_inside_is_the_share_that_a_projection_leaves() -> None:
    basis = EYE[:, :3]
    assert inside(EYE, basis) == pytest.approx(3 / 12)
    assert inside(writes(0, 1), basis) == pytest.approx(1)
    assert inside(writes(5), basis) == 0


def test_overlap_is_how_much_of_one_subspace_lies_in_the_other() -> None:
    assert overlap(EYE[:, :4], EYE[:, :4]) == 1
    assert overlap(EYE[:, :4], EYE[:, 2:6]) == 0.5
    assert overlap(EYE[:, :2], EYE[:, :6]) == 1
    assert overlap(EYE[:, :4], EYE[:, 6:]) == 0


def test_shuffling_keeps_the_numbers_and_not_their_places() -> None:
    vectors = common()
    mixed = shuffled(vectors)
    for one, other in zip(vectors, mixed, strict=True):
        assert not torch.equal(one, other)
        assert torch.equal(one.flatten().sort().values, other.flatten().sort().values)
    assert torch.equal(mixed, shuffled(vectors))
    assert not torch.equal(mixed, shuffled(vectors, seed=1))


def test_pairs_are_counted_by_family_and_tasks_from_another_base_with_themselves() -> None:
    vectors = {"a": writes(0, 1), "b": writes(0, 2), "c": writes(0, 1, seed=5)}
    found = measure_overlaps(vectors, {"a": "x", "b": "x", "c": "y"}, rank=2, elsewhere={"a": writes(7, 8)})
    assert found.within == pytest.approx((0.5,), abs=1e-5)
    assert found.across == pytest.approx((1.0, 0.5), abs=1e-5)
    assert found.elsewhere == pytest.approx((0.0,), abs=1e-5)
    assert len(found.random) == 3
    assert all(0 < one < 0.6 for one in found.random)
    assert found.above == sum(one > max(found.random) for one in (1.0, 0.5))
    assert found.chance == pytest.approx(2 / 12)
    table = found.table()
    assert table.column("subspaces") == [
        "two tasks of one family",
        "two tasks of two families",
        "one task, from two bases",
        "3 random pairs",
    ]
    assert table.column("mean %")[:3] == pytest.approx([50, 75, 0], abs=1e-3)
    assert table.column("most %")[1] == pytest.approx(100)


def test_random_pairs_overlap_by_chance() -> None:
    vectors = {str(i): torch.randn(30, 40, generator=torch.Generator().manual_seed(i)) for i in range(12)}
    found = measure_overlaps(vectors, dict.fromkeys(vectors, "one"), rank=6)
    assert sum(found.random) / len(found.random) == pytest.approx(6 / 30, abs=0.02)
    assert "two tasks of two families" not in found.table().column("subspaces")


@pytest.mark.parametrize(
    ("names", "rank", "sentence"), [("a", 1, "give two or more"), ("ab", 0, "from 1 to 12"), ("ab", 13, "from 1 to 12")]
)
def test_overlaps_that_are_none_are_one_sentence(names: str, rank: int, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_overlaps({name: writes(0, 1) for name in names}, dict.fromkeys(names, "x"), rank=rank)


def test_what_tasks_have_in_common_is_held_and_shuffled_numbers_are_not() -> None:
    vectors = common()
    found = measure_held({"layer": vectors})
    assert found.directions == {"layer": (4, 24)}
    basis = sixth(vectors)
    each = [inside(tau, basis) for tau in vectors]
    assert found.real["layer"] == pytest.approx((sum(each) / 4, min(each), inside(vectors.mean(dim=0), basis)))
    assert found.real["layer"][1] > found.shuffled["layer"][0] > 4 / 24
    (row,) = found.table().rows
    assert row[:2] == ("layer", 4)
    kinds = (found.real, found.turned, found.shuffled)
    shares = [100 * one for kind in kinds for one in (kind["layer"][0], kind["layer"][2])]
    assert row[2:] == pytest.approx((100 * 4 / 24, *shares))


def test_turned_task_vectors_keep_their_strengths_and_lose_what_they_share() -> None:
    vectors = common()
    other = turned(vectors, seed=3)
    torch.testing.assert_close(torch.linalg.svdvals(other), torch.linalg.svdvals(vectors), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(other.mT @ other, vectors.mT @ vectors, atol=1e-3, rtol=1e-4)
    found = measure_held({"layer": vectors})
    assert found.real["layer"][2] > found.turned["layer"][2]
    # With nothing in common to lose, a rotation changes nothing but by chance.
    apart = measure_held({"layer": common(together=0.0)})
    assert apart.turned["layer"][0] == pytest.approx(apart.real["layer"][0], abs=0.1)


def test_little_noise_leaves_more_of_the_shared_subspace_than_much() -> None:
    vectors = common(together=1.0)
    found = measure_firmness(vectors, {"the same again": vectors, "another layer": common(together=0.0).flip(1)})
    assert list(found.stays) == [
        "noise of 10 % of ‖τ‖",
        "noise of 30 % of ‖τ‖",
        "noise of 100 % of ‖τ‖",
        "a task left out (mean over tasks)",
        "the same again",
        "another layer",
        "every τ shuffled",
    ]
    for basis in ("published", "weighted"):
        stays = {change: by[basis] for change, by in found.stays.items()}
        assert stays["the same again"] == pytest.approx(1, abs=1e-4)
        assert stays["noise of 10 % of ‖τ‖"] > stays["noise of 100 % of ‖τ‖"] > stays["another layer"]
        assert 0 < stays["a task left out (mean over tasks)"] < 1
    assert found.table().column("published basis stays %")[4] == pytest.approx(100, abs=0.01)


def test_every_change_but_the_shuffle_has_a_firmer_basis() -> None:
    found = measure_firmness(common(), {})
    firmer = [*found.firmer("published"), *found.firmer("weighted")]
    assert set(firmer) == set(found.stays) - {"every τ shuffled"}
    for change in found.firmer("weighted"):
        assert found.stays[change]["weighted"] >= found.stays[change]["published"]


@pytest.mark.parametrize("shape", [(2, 12, 12), (4, 5, 12)])
def test_too_few_tasks_or_directions_to_change_are_one_sentence(shape: tuple[int, ...]) -> None:
    with pytest.raises(ApgdTeachError, match="three tasks or more"):
        measure_firmness(torch.randn(shape), {})
