"""Methods over several seeds: on two small pools of real tasks, and on scores that can be checked by hand."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import replace
from statistics import fmean, stdev

import pytest
import torch

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Score, compare, paired, student
from apgd_teach.experts import Pool, make_pool
from apgd_teach.figures import draw_over_seeds
from apgd_teach.merging import Average, Merged, TaskArithmetic, merge
from apgd_teach.merging.statedict import relative_norm
from apgd_teach.trials import Trials, chances, cost_table, gains, measured, rivals, try_methods, tuned

TASKS = ("digits-upright", "digits-noisy", "fashion-flipped")
METHODS = {"average": Average(), "half": TaskArithmetic(0.5), "far": TaskArithmetic(2.0)}


def first_expert(pool: Pool) -> Merged:
    """A reference that somebody made with unlabelled images."""
    made = merge(pool.base, pool.experts)
    return replace(made, state_dict=pool.experts[TASKS[0]], audit=replace(made.audit, data_used="unlabelled"))


@pytest.fixture(scope="module")
def pools(pool: Pool, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Pool]:
    other = make_pool(
        "mlp",
        tasks=TASKS,
        base_steps=30,
        expert_steps=25,
        seed=10,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )
    return {0: pool, 10: other}


@pytest.fixture(scope="module")
def tried(pools: dict[int, Pool]) -> Trials:
    return try_methods(pools, METHODS, {"expert": first_expert}, images=200, progress=False)


def made_up(**accuracies: tuple[int, ...]) -> Trials:
    """Trials on one task of ten images: so many tenths right, seed by seed; "base" and "experts" among them."""

    def scores(right: int) -> dict[str, Score]:
        return {"task": Score(torch.arange(10) < right, torch.zeros(10))}

    seeds = range(len(next(iter(accuracies.values()))))
    used = {"average": "none", "b": "none", "c": "unlabelled", "d": "labelled"}
    labels = [label for label in accuracies if label not in ("base", "experts")]
    return Trials(
        {
            seed: Comparison(
                {"task": "a task"},
                scores(accuracies["base"][seed]),
                scores(accuracies["experts"][seed]),
                {label: scores(accuracies[label][seed]) for label in labels},
                {label: used[label] for label in labels},
                f"bundled tier, test split, 10 a task; seed {seed}",
            )
            for seed in seeds
        }
    )


BY_HAND = made_up(base=(4, 5, 3), experts=(8, 9, 7), average=(5, 5, 4), b=(6, 7, 6), c=(7, 4, 5), d=(8, 8, 7))


# The interval


@pytest.mark.parametrize(
    ("n", "t"), [(2, 12.706), (3, 4.303), (5, 2.776), (10, 2.262), (11, 2.228), (12, 2.201), (21, 2.086), (61, 2.000)]
)
def test_students_factor_is_that_of_the_tables(n: int, t: float) -> None:
    assert student(n) == pytest.approx(t, abs=0.006)


def test_students_factor_falls_towards_that_of_the_normal_distribution() -> None:
    every = [student(n) for n in range(2, 60)]
    assert every == sorted(every, reverse=True)
    assert student(10**6) == pytest.approx(1.96, abs=1e-4)
    with pytest.raises(ApgdTeachError, match="no interval from 1 numbers"):
        student(1)


def test_differences_are_taken_seed_by_seed() -> None:
    found = paired([70.0, 80.5, 61.0], [68.0, 79.0, 59.6])
    assert found.points == pytest.approx(4.9 / 3)
    assert found.margin == pytest.approx(4.30 * stdev([2.0, 1.5, 1.4]) / 3**0.5)
    assert found.verdict == "better"
    assert found.told == "+1.6 ± 0.8, better"


def test_one_seed_shows_no_difference_and_what_is_no_pair_is_refused() -> None:
    alone = paired([70.0], [10.0])
    assert alone.points == 60
    assert math.isnan(alone.margin)
    assert alone.verdict == "no difference seen"
    for one, other in (([], []), ([1.0, 2.0], [1.0])):
        with pytest.raises(ApgdTeachError, match="cannot be paired"):
            paired(one, other)


# What is tried


def test_every_method_merges_every_pool_and_is_scored_as_compare_does(pools, tried) -> None:
    assert tried.seeds == (0, 10)
    for seed, pool in pools.items():
        by_hand = {label: merge(pool.base, pool.experts, one) for label, one in METHODS.items()}
        expected = compare(pool, {**by_hand, "expert": pool.experts[TASKS[0]]}, images=200)
        for label in ("base", "experts", *by_hand, "expert"):
            assert tried.compared[seed].accuracies(label) == expected.accuracies(label)
    assert tried.accuracies("half") == [one.average("half") for one in tried.compared.values()]
    assert tried.accuracies("average")[0] != tried.accuracies("average")[1]


def test_the_data_used_is_what_the_audits_say(tried) -> None:
    assert tried.data_used == {"average": "none", "half": "none", "far": "none", "expert": "unlabelled"}


def test_a_label_taken_twice_and_no_pool_at_all_are_refused(pools) -> None:
    with pytest.raises(ApgdTeachError, match="'half' is a method and a reference"):
        try_methods(pools, METHODS, {"half": first_expert}, progress=False)
    with pytest.raises(ApgdTeachError, match="no pool was tried"):
        try_methods({}, METHODS, progress=False)


def test_seeds_that_compare_different_methods_are_refused(tried) -> None:
    less = replace(tried.compared[10], merged={"average": tried.compared[10].merged["average"]})
    with pytest.raises(ApgdTeachError, match=r"'expert' was not compared at every seed \(look at 10\)"):
        Trials({0: tried.compared[0], 10: less})


def test_progress_is_a_sentence_for_every_pool(pools, capsys) -> None:
    try_methods(pools, {"average": Average()}, images=10, title="mild experts")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(" networks")[0] for line in lines] == ["mild experts, seed 0: 1", "mild experts, seed 10: 1"]


def test_the_settings_that_are_tuned_are_the_best_on_validation_images_and_count_as_labelled(pool) -> None:
    grid = [TaskArithmetic(one) for one in (3.0, 0.3, 10.0)]
    made = tuned(pool, candidates=grid, images=300)
    merged = {str(one.coefficient): merge(pool.base, pool.experts, one) for one in grid}
    scored = compare(pool, merged, images=300, split="validation")
    best = max(merged, key=scored.average)
    assert made.audit.settings["coefficient"] == float(best)
    assert made.audit.data_used == "labelled"
    assert all(torch.equal(made.state_dict[key], merged[best].state_dict[key]) for key in pool.base)
    with pytest.raises(ApgdTeachError, match="nothing to choose from"):
        tuned(pool, candidates=[])


def test_the_strongest_is_chosen_by_validation_images_of_the_first_seed(pools, tried) -> None:
    scored = compare(pools[0], tried.merged[0], images=100, split="validation")
    assert tried.strongest(["far", "half", "average"], images=100) == max(
        ("far", "half", "average"), key=scored.average
    )
    with pytest.raises(ApgdTeachError, match="no network 'oracle' was kept for the seed 0; there are: average, half"):
        tried.strongest(["oracle"])


def test_the_same_networks_can_be_tried_on_other_images(pools, tried) -> None:
    fewer = {seed: pool.only(TASKS[:1]) for seed, pool in pools.items()}
    found = tried.on(fewer, ["half"], images=50)
    expected = compare(fewer[10], {"half": tried.merged[10]["half"]}, images=50)
    assert found.compared[10].accuracies("half") == expected.accuracies("half")
    assert found.merged[10]["half"] is tried.merged[10]["half"]


def test_a_step_is_measured_against_the_base(pools, tried) -> None:
    each = [relative_norm(pool.base, tried.merged[seed]["far"].state_dict) for seed, pool in pools.items()]
    assert tried.step("far") == pytest.approx(100 * fmean(each))
    assert tried.step("far") > tried.step("half")


# What the seeds say


def test_means_and_gains_are_those_of_the_seeds() -> None:
    assert BY_HAND.accuracies("b") == pytest.approx([60, 70, 60])
    assert BY_HAND.mean("b") == pytest.approx(190 / 3)
    assert BY_HAND.gains() == pytest.approx([40, 40, 40])
    assert BY_HAND.recovered("b").points == pytest.approx(100 * (2 / 4 + 2 / 4 + 3 / 4) / 3)


def test_the_worst_task_is_looked_for_at_each_seed(tried) -> None:
    lowest = [min(one.accuracies("average")) for one in tried.compared.values()]
    assert tried.worst("average") == pytest.approx(fmean(lowest))
    assert tried.worst("average") < tried.mean("average")


def test_methods_are_paired_by_seed_and_the_unpaired_interval_ignores_that() -> None:
    found, loose = BY_HAND.against("b", "average"), BY_HAND.unpaired("b", "average")
    assert found.points == pytest.approx(50 / 3)
    assert loose.points == pytest.approx(50 / 3)
    assert found.margin == pytest.approx(4.30 * stdev([10, 20, 20]) / 3**0.5)
    apart = math.hypot(stdev([60, 70, 60]), stdev([50, 50, 40]))
    assert loose.margin == pytest.approx(4.30 * apart / 3**0.5)


def test_a_share_is_unknown_where_the_experts_are_no_better_than_their_base() -> None:
    flat = made_up(base=(4, 5), experts=(4, 9), average=(5, 5))
    assert math.isnan(flat.recovered("average").points)
    assert flat.recovered_words("average") == "–"
    assert made_up(base=(5,), experts=(9,), average=(4,)).recovered_words("average") == "−25 ± –"


def test_those_who_share_the_highest_mean_are_all_named_and_none_comes_first_by_its_last_digits() -> None:
    # The same images in another order of the seeds: the sums may differ in the last digit.
    level = made_up(base=(4, 5, 4), experts=(9, 9, 9), b=(3, 6, 7), average=(7, 6, 3))
    assert level.leaders() == ["average", "b"]
    assert level.ranking() == ["average", "b"]
    drawing = draw_over_seeds(made_up(base=(4,), experts=(9,), average=(3,), d=(7,), b=(7,), c=(2,)))
    assert "b and d stand highest" in drawing.words
    assert "c stands lowest" in drawing.words
    assert BY_HAND.leaders() == ["d"]
    assert BY_HAND.leaders("none") == ["b"]


def test_ranks_and_verdicts_can_be_had_for_a_class_of_data() -> None:
    assert BY_HAND.ranking() == ["d", "b", "c", "average"]
    assert BY_HAND.ranking("none") == ["b", "average"]
    assert BY_HAND.ranking("unlabelled", "labelled") == ["d", "c"]
    assert BY_HAND.verdicts("average", ["average", "b", "c", "d"]) == {
        "better": ["b", "d"],
        "worse": [],
        "no difference seen": ["c"],
    }


def test_the_reach_is_the_median_interval() -> None:
    margins = sorted(BY_HAND.against(label, "average").margin for label in "bcd")
    assert BY_HAND.reach("average", ["average", "b", "c", "d"]) == margins[1]


# Tables


def test_the_standing_puts_classes_of_data_apart_and_the_best_first() -> None:
    table = BY_HAND.standing(title="The mild experts", bold=["b"])
    assert table.column("network") == ["base", "b", "average", "d", "c", "each its own expert"]
    assert table.column("data used") == ["–", "none", "none", "labelled", "unlabelled", "–"]
    assert table.bold == {1}
    b, average = table.rows[1], table.rows[2]
    assert b[4:] == (BY_HAND.recovered_words("b"), str(BY_HAND.against("b", "average")), "better")
    assert average[5:] == ("–", "–")
    assert table.caption == "The mild experts: means over the seeds 0, 1, 2"
    assert table.note.endswith("Images: bundled tier, test split, 10 a task.")


def test_the_gains_have_a_row_per_pool() -> None:
    table = gains({"mild": BY_HAND, "hot": BY_HAND})
    assert [row[:2] for row in table.rows] == [(name, seed) for name in ("mild", "hot") for seed in (0, 1, 2)]
    assert table.rows[1][2:] == pytest.approx((50, 90, 40, 2.5))
    assert gains({"flat": made_up(base=(4,), experts=(4,), average=(5,))}).rows[0][-1] is None


def test_both_kinds_of_chance_stand_beside_each_other() -> None:
    table = chances({"mild": BY_HAND}, ["b", "c"])
    assert table.columns[2:5] == ("seed 0, over images", "seed 1, over images", "seed 2, over images")
    assert table.rows[0] == (
        "mild",
        "b",
        *(str(one.against("b", "average")) for one in BY_HAND.compared.values()),
        str(BY_HAND.against("b", "average")),
        "better",
        str(BY_HAND.unpaired("b", "average")),
    )


def test_rivals_are_named() -> None:
    (row,) = rivals({"mild": BY_HAND}, ["c"], {"mild": "b"}).rows
    assert row == (
        "mild",
        "c",
        BY_HAND.against("c", "average").told,
        f"b: {BY_HAND.against('c', 'b').told}",
        BY_HAND.against("c", "base").told,
    )


def test_costs_are_sorted_and_what_was_trained_before_has_its_own_seconds(pools, tried) -> None:
    table = cost_table([tried], trained={"expert": [500.0, 300.0]}, note="And so on.")
    assert set(table.column("method")) == {"average", "half", "far", "expert"}
    assert table.column("seconds") == sorted(table.column("seconds"))
    assert table.rows[-1][:4] == ("expert", "unlabelled", 400.0, None)
    assert set(table.column("parameters of the result")) == {sum(one.numel() for one in pools[0].base.values())}
    assert table.note.endswith("And so on.")
    mean = fmean(costs["half"].seconds for costs in tried.costs.values())
    assert table.column("seconds")[table.column("method").index("half")] == mean
    with pytest.raises(ApgdTeachError, match="nothing is known of what these took"):
        cost_table([BY_HAND])


# What a call takes


def test_time_and_memory_of_a_call_are_measured() -> None:
    def work() -> str:
        held = torch.ones(25_000_000)
        time.sleep(0.1)
        return f"{held.numel():,}"

    said, cost = measured(work)
    assert said == "25,000,000"
    assert 0.1 <= cost.seconds < 30
    assert 60 < cost.megabytes < 400


def test_a_call_that_fails_leaves_nothing_running() -> None:
    def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        measured(fail)
    assert not [one for one in threading.enumerate() if one.name == "apgd-teach-cost"]
