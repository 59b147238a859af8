from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path as File

import pytest
import torch

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import NAMES, untrained_pool, vectors

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator, compare
from apgd_teach.figures.kept import GRIDS, STILL, Grid, SideBySide, kept_by, measure_side_by_side
from apgd_teach.merging import merge


def test_task_arithmetic_keeps_all_and_dare_the_share_that_it_does_not_drop() -> None:
    for method in ("average", "task_arithmetic", "task_aware"):
        one = kept_by(vectors(), method)
        assert (one.entries, one.energy, one.directions) == (100, 100, 100)
    one = kept_by(vectors(), "dare")
    assert (one.entries, one.energy, one.directions) == (pytest.approx(10), pytest.approx(10), None)


def test_ties_keeps_the_large_entries_that_have_the_elected_sign() -> None:
    # Of ten entries two are kept by each: of the first both go up, of the second the larger one wins.
    one, other = torch.full((2, 5), 0.1), torch.full((2, 5), -0.1)
    one[0, :2], other[0, :2] = torch.tensor([3.0, 4.0]), torch.tensor([2.0, -1.0])
    taus = {"one": {"w": one, "b": torch.ones(2)}, "other": {"w": other, "b": torch.ones(2)}}
    found = kept_by(taus, "ties")
    # The library's threshold keeps one entry more than ⌊share · size⌋: one of the small ones of each, which are equal.
    energy = 9 + 16 + 4
    every = float(one.square().sum() + other.square().sum())
    assert found.energy == pytest.approx(100 * energy / every, abs=0.5)
    assert found.directions is None


def test_what_ties_keeps_is_what_its_merge_says_it_kept() -> None:
    taus = vectors()
    base = {key: torch.zeros_like(one) for key, one in taus[NAMES[0]].items()}
    rows = merge(base, taus, "ties").audit.rows
    shares = [
        sum(k * e for k, e in zip(row.facts["kept"], row.facts["elected"], strict=True)) / 8
        for row in rows
        if row.policy == "merge"
    ]
    sizes = [base[row.name].numel() for row in rows if row.policy == "merge"]
    expected = 100 * sum(share * size for share, size in zip(shares, sizes, strict=True)) / sum(sizes)
    assert kept_by(taus, "ties").entries == pytest.approx(expected)


def test_tsv_m_keeps_the_first_directions_of_each_task_and_layer() -> None:
    taus = vectors(4)
    layers = {"layer1.weight": 20 // 4, "conv.weight": 16 // 4}
    first = every = 0.0
    for key, k in layers.items():
        for tau in taus.values():
            squares = torch.linalg.svdvals(tau[key].flatten(1)).square()
            first, every = first + float(squares[:k].sum()), every + float(squares.sum())
    found = kept_by(taus, "tsv_m")
    assert found.entries is None
    assert found.energy == pytest.approx(100 * first / every, rel=1e-4)
    assert found.directions == pytest.approx(100 * (5 + 4) / (20 + 16))


TWO = {"sum": Grid("task_arithmetic", (0.1, 0.5)), "TIES": Grid("ties", (0.25, 1.0))}


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(2)


@pytest.fixture(scope="module")
def beside(pool) -> Comparison:
    return compare(pool, {}, images=40)


@pytest.fixture(scope="module")
def side(pool, beside) -> SideBySide:
    return measure_side_by_side({"hot": pool}, {"hot": beside}, tried=60, grids=TWO, progress=False)


def network(pool, method: str, coefficient: float):
    return merge(pool.base, pool.experts, method, coefficient=coefficient, policy={"*.bias": "keep"}).state_dict


def test_every_method_takes_the_coefficient_that_validation_images_like_best(pool, side) -> None:
    validation = Evaluator(pool, images=60, split="validation")
    for label, grid in TWO.items():
        means = {}
        for coefficient in grid.coefficients:
            scores = validation.scores(network(pool, grid.method, coefficient))
            means[coefficient] = sum(score.accuracy for score in scores.values())
        chosen = side.coefficients["hot"][label]
        # The networks are scaled from one merge: an image may tip over.
        assert means[chosen] >= max(means.values()) - 4
    assert side.coefficients["hot"]["average"] == side.coefficients["hot"][STILL] == 1 / 2


def test_methods_are_scored_on_the_test_images_of_the_comparison_they_stand_beside(pool, side, beside) -> None:
    scored = side.scored["hot"]
    assert list(scored.merged) == ["average", STILL, *TWO]
    assert scored.base is beside.base
    test = Evaluator(pool, images=40)
    for label, grid in TWO.items():
        state = network(pool, grid.method, side.coefficients["hot"][label])
        for task, score in test.scores(state).items():
            assert scored.merged[label][task].loss == pytest.approx(score.loss, rel=1e-3)
    assert scored.data_used == {"average": "none", STILL: "none", "sum": "labelled", "TIES": "labelled"}
    still = merge(pool.base, pool.experts, policy={"*.bias": "keep"}).state_dict
    assert {task: score.loss for task, score in test.scores(still).items()} == pytest.approx(
        {task: score.loss for task, score in scored.merged[STILL].items()}
    )
    plain = {task: score.loss for task, score in scored.merged["average"].items()}
    assert plain != {task: score.loss for task, score in scored.merged[STILL].items()}


def test_the_table_has_every_method_between_the_base_and_the_experts(side) -> None:
    scored, table = side.scored["hot"], side.table("hot")
    assert table.column("method") == ["base", "average", STILL, "sum", "TIES", "each its own expert"]
    chosen = side.coefficients["hot"]
    least = [label for label, tried in side.tried.items() if chosen[label] == min(tried)]
    assert side.least("hot") == least
    assert 0 < len(least) < len(side.tried) + 2
    assert table.column("λ")[1:5] == [
        f"{one:g}" + (" (least)" if label in least else "") for label, one in chosen.items()
    ]
    assert table.column("energy %")[0] is None
    assert table.column("energy %")[4] == side.kept["hot"]["TIES"].energy
    assert table.column("mean %") == [scored.average(label) for label in ("base", *scored.merged, "experts")]
    assert table.column("against the base")[4] == str(scored.against("TIES"))
    held = [str(scored.against(label, "sum")) for label in ("average", STILL, "TIES")]
    assert table.column("against sum") == ["–", *held[:2], "–", held[2], "–"]
    assert table.column("worst %")[1] == scored.worst("average")[1]


def test_the_best_has_the_highest_mean_and_the_fairest_the_highest_worst_task(side) -> None:
    scored = side.scored["hot"]
    assert scored.average(side.best("hot")) == max(map(scored.average, scored.merged))
    assert scored.worst(side.fairest("hot"))[1] == max(scored.worst(label)[1] for label in scored.merged)
    turned = replace(scored, merged={"a": scored.base, "b": scored.experts})
    assert replace(side, scored={"hot": turned}).best("hot") == "b"


def test_the_methods_of_the_lesson_are_those_that_merge_knows(pool) -> None:
    for grid in GRIDS.values():
        assert grid.coefficients == tuple(sorted(grid.coefficients))
        merge(pool.base, pool.experts, grid.method, coefficient=grid.coefficients[0])


def test_a_pool_without_a_comparison_is_refused(pool) -> None:
    with pytest.raises(ApgdTeachError, match="each pool needs a comparison of its own"):
        measure_side_by_side({"hot": pool}, {})
