"""What protection takes: parts of a way are what a merge makes of them, and prices are what the algebra says."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Score, Scores
from apgd_teach.figures.protection import (
    Way,
    choices_table,
    measure_choices,
    measure_kept,
    measure_moved,
    measure_prices,
    measure_way,
)
from apgd_teach.merging import Apgd, StateDict, merge, shared_basis, soft_projector, surrogate, weights
from apgd_teach.merging.descent import off

NAMES = ("one", "two", "three")
SHARES = (0, 1 / 6, 1 / 2, 1)


def network() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    draws = torch.Generator().manual_seed(7)
    base = {
        "a": torch.randn(18, 24, generator=draws),
        "bias": torch.zeros(18),
        "b": torch.randn(12, 4, 3, 3, generator=draws),
    }
    together = {key: 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()}
    return base, {
        name: {key: one + together[key] + 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()}
        for name in NAMES
    }


BASE, EXPERTS = network()


def score(state: StateDict) -> Scores:
    """The nearer to an expert, the more of a thousand images are right."""
    far = {
        name: sum(float((state[key] - one[key]).square().sum()) for key in one) ** 0.5 for name, one in EXPERTS.items()
    }
    return {name: Score(torch.arange(1000) < 1000 / (1 + one), torch.zeros(1000)) for name, one in far.items()}


def compared(**networks: StateDict) -> Comparison:
    experts = {name: score(EXPERTS[name])[name] for name in NAMES}
    return Comparison(
        titles={name: name for name in NAMES},
        base=score(BASE),
        experts=experts,
        merged={label: score(one) for label, one in networks.items()},
        data_used=dict.fromkeys(networks, "none"),
        tier="no tier",
    )


READINGS = {"free": lambda D, U: D, "onto": lambda D, U: off(U, D), "into": lambda D, U: D - off(U, D)}


@pytest.fixture(scope="module")
def way() -> Way:
    return measure_way(BASE, EXPERTS)


def weighed(way: Way, networks: StateDict) -> float:
    """The surrogate `full` of a network, all layers together, from the library's own functions."""
    return sum(
        float((surrogate(taus, update, "full") * weights(taus, "full")).sum()) / 2
        for (taus, update) in zip(way.vectors.values(), way.updates(networks).values(), strict=True)
    )


def test_parts_of_the_way_are_the_merges_with_that_protected(way: Way) -> None:
    for label, protect in (("free", 0), ("onto", 1 / 6)):
        alone = Apgd(protect=protect, power=2.0, flatten=0.0, reach=None, biases="average")
        plain = merge(BASE, EXPERTS, alone).state_dict
        made = way.merged(READINGS[label]).state_dict
        for key in BASE:
            torch.testing.assert_close(made[key], plain[key])


def test_a_way_is_swept_as_a_merge_is(way: Way) -> None:
    swept = way.sweep(score, [0, 1 / 6])
    onto = way.merged(READINGS["onto"]).state_dict
    torch.testing.assert_close(swept.merged[1 / 6].state_dict["a"], onto["a"])
    assert list(swept.shares) == [0, 1 / 6]


def test_other_bases_can_be_protected(way: Way) -> None:
    everything = {layer: torch.eye(taus.shape[1]) for layer, taus in way.vectors.items()}
    stays = way.updates(way.merged(READINGS["onto"], everything).state_dict)
    for layer, solved in way.solved.items():
        torch.testing.assert_close(stays[layer], solved.start, atol=1e-5, rtol=0)


def test_onto_the_complement_leaves_what_is_shared_and_into_the_subspace_the_rest(way: Way) -> None:
    merged = {"pool": {label: way.merged(keep) for label, keep in READINGS.items()}}
    results = {"pool": compared(**{label: one.state_dict for label, one in merged["pool"].items()})}
    moved = measure_moved({"pool": way}, merged, results)
    free, onto, into = (moved.of(label)[0] for label in READINGS)
    assert onto.shared < 1e-4 < free.shared
    assert into.rest < 1e-4 < free.rest
    assert (into.shared, onto.rest) == (pytest.approx(free.shared, rel=1e-3), pytest.approx(free.rest, rel=1e-3))
    start = way.merged(lambda D, U: 0 * D).state_dict
    for label, one in merged["pool"].items():
        left = weighed(way, one.state_dict) / weighed(way, start)
        assert moved.by["pool"][label].left == pytest.approx(left, rel=1e-3)
    table = moved.table()
    assert table.column("merge") == ["base, nothing merged", *READINGS]
    assert table.column("mean %") == [results["pool"].average(label) for label in ("base", *READINGS)]
    assert table.column("mean against free") == [
        str(results["pool"].against("base", "free")),
        "–",
        *(str(results["pool"].against(label, "free")) for label in ("onto", "into")),
    ]


def test_kept_is_all_of_an_expert_and_a_share_of_updates_at_right_angles(way: Way) -> None:
    """Three tasks write into one direction and read three inputs: the mean keeps a third of each."""
    base = {"a": torch.zeros(12, 6)}
    experts = {}
    for i, name in enumerate(NAMES):
        tau = torch.zeros(12, 6)
        tau[0, i] = 2.0
        # Something outside the shared subspace as well, which no other task has.
        tau[3 + 3 * i, i] = 1.0
        experts[name] = {"a": tau}
    kept = measure_kept({"pool": measure_way(base, experts)})
    inner, outer, *_ = kept.by["pool", "a"]
    assert inner == pytest.approx(1 / 3, abs=1e-4)
    assert outer == pytest.approx(1 / 3, abs=1e-4)
    assert kept.range(0) == "33 to 33 %"
    assert kept.table().rows[0][:2] == ("pool", "a")
    alone = measure_way(BASE, {"one": EXPERTS["one"], "again": EXPERTS["one"]})
    assert measure_kept({"pool": alone}).by["pool", "a"] == pytest.approx((1, 1, 1, 1), abs=0.05)
    assert list(measure_kept({"x": way, "y": way}).by) == [("x", "a"), ("x", "b"), ("y", "a"), ("y", "b")]
    with pytest.raises(ApgdTeachError, match="there is no pool"):
        measure_kept({})


def test_what_is_frozen_is_the_surrogate_of_the_start_in_the_protected_directions(way: Way) -> None:
    sweep = way.sweep(score, SHARES)
    prices = measure_prices({"pool": way}, {"pool": sweep})
    start = weighed(way, way.merged(lambda D, U: 0 * D).state_dict)
    for share, price in prices.by["pool"].items():
        frozen = 0.0
        for layer, taus in way.vectors.items():
            basis = shared_basis(taus, round(share * min(taus.shape[1:])))
            for tau in taus:
                residual = basis.mT @ (way.solved[layer].start - tau) @ tau.mT
                frozen += float(residual.square().sum() / tau.square().sum()) / 2
        assert price.frozen == pytest.approx(frozen / start, rel=1e-3, abs=1e-6)
        assert price.left == pytest.approx(weighed(way, sweep.merged[share].state_dict) / start, rel=1e-3)
        assert price.frozen <= price.left + 1e-5
    frozen = [one.frozen for one in prices.by["pool"].values()]
    assert frozen == sorted(frozen)
    assert frozen[0] == 0
    table = prices.table()
    assert table.column("share of r protected") == ["nothing", "1/6", "1/2", "all"]
    assert table.column("mean %") == [one.mean for one in sweep.shares.values()]


def test_choices_are_added_to_what_was_compared(way: Way) -> None:
    sweep = way.sweep(score, SHARES)
    known = compared(free=sweep.merged[0].state_dict)
    found = measure_choices(known, way, sweep, score)
    assert list(found.merged) == ["free", "average", "automatic", "random", "all alike", "share chosen on validation"]
    assert found.merged["free"] is known.merged["free"]
    for label, state in (
        ("average", merge(BASE, EXPERTS, "average").state_dict),
        ("automatic", sweep.merged["auto"].state_dict),
        ("share chosen on validation", sweep.merged[sweep.best].state_dict),
    ):
        assert found.average(label) == pytest.approx(sum(one.accuracy for one in score(state).values()) / len(NAMES))
    assert found.data_used == {**dict.fromkeys(found.merged, "none"), "share chosen on validation": "labelled"}
    assert found.average("random") != found.average("automatic")


def test_a_network_that_is_known_is_not_scored_again(way: Way) -> None:
    sweep = way.sweep(score, [0])
    known = compared(free=sweep.merged[0].state_dict)
    asked: list[StateDict] = []

    def watch(state: StateDict) -> Scores:
        asked.append(state)
        return score(state)

    found = measure_choices(known, way, sweep, watch, scored={0: "free"})
    assert found.merged["share chosen on validation"] is known.merged["free"]
    assert len(asked) == 4
    with pytest.raises(ApgdTeachError, match="nothing called 'nothing' was compared; there are: free"):
        measure_choices(known, way, sweep, score, scored={0: "nothing"})


def test_the_control_that_holds_all_alike_goes_as_far_as_soft_protection(way: Way) -> None:
    sweep = way.sweep(score, [0])
    networks: list[StateDict] = []

    def watch(state: StateDict) -> Scores:
        networks.append(state)
        return score(state)

    measure_choices(compared(), way, sweep, watch)
    _, soft, random, alike, _ = (way.updates(one) for one in networks)
    for layer, solved in way.solved.items():
        free = solved.update - solved.start
        gone = alike[layer] - solved.start
        assert float(gone.norm()) == pytest.approx(float((soft[layer] - solved.start).norm()), rel=1e-3)
        assert float((gone * free).sum() / gone.norm() / free.norm()) == pytest.approx(1, abs=1e-3)
        held = free - soft_projector(way.vectors[layer], 1 / 16) @ free
        torch.testing.assert_close(soft[layer] - solved.start, held, atol=1e-4, rtol=1e-3)
        # A random subspace of k directions: what is missing of the way has no other.
        missing = free - (random[layer] - solved.start)
        assert int(torch.linalg.matrix_rank(missing, rtol=1e-3)) == way.shared[layer].shape[1]


def test_all_choices_of_all_pools_stand_in_one_table(way: Way) -> None:
    networks = {"free": way.merged(READINGS["free"]).state_dict, "onto": way.merged(READINGS["onto"]).state_dict}
    results = {"mild": compared(**networks), "hot": compared(**networks)}
    table = choices_table(results, "free")
    assert table.column("experts") == ["mild"] * 4 + ["hot"] * 4
    assert table.column("network")[:4] == ["base", "free", "onto", "each its own expert"]
    assert table.column("mean against free")[:4] == ["–", "–", str(results["mild"].against("onto", "free")), "–"]
    assert table.column("mean %")[3] == results["mild"].average("experts")
    with pytest.raises(ApgdTeachError, match="nothing called 'paid' was compared"):
        choices_table(results, "paid")
