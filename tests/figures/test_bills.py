from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path as File

import pytest

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import TITLES, untrained_pool

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.bills import Bill, Trade, measure_bill, signed
from apgd_teach.figures.sweeps import Sweep, combined, sweep
from apgd_teach.merging import task_vectors


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(3)


@pytest.fixture(scope="module")
def swept(pool) -> Sweep:
    """The sweep, with wishes set by hand: the third task is indifferent."""
    vectors = task_vectors(pool.base, pool.experts)
    one = sweep(Evaluator(pool, images=40, split="validation"), pool.base, vectors, [0.0, 0.25, 1.0], progress=False)
    first, second, third = one.gaps
    assert one.coefficients == (0.0, 0.25, 1 / 3, 1.0)
    return replace(one, gaps={first: (0.4, 0.0, 0.1, 0.9), second: (0.9, 0.8, 0.3, 0.0), third: (0.2, 0.2, 0.1, 0.2)})


@pytest.fixture(scope="module")
def bill(pool, swept) -> Bill:
    return measure_bill({"hot": pool}, {"hot": swept}, images=50)


def test_every_coefficient_that_a_task_or_a_rule_chose_is_scored_on_test_images(pool, swept, bill) -> None:
    wanted = {1 / 3, swept.common, *swept.own.values(), *swept.by_rule.values()}
    assert list(bill.scored["hot"].merged) == [f"{one:g}" for one in sorted(wanted)]
    test, vectors = Evaluator(pool, images=50), task_vectors(pool.base, pool.experts)
    for coefficient in wanted:
        scores = test.scores(combined(pool.base, vectors, coefficient))
        mean, worst, title = bill.at("hot", coefficient)
        each = {task: score.accuracy for task, score in scores.items()}
        assert mean == pytest.approx(sum(each.values()) / 3)
        assert (worst, title) == (min(each.values()), TITLES[min(each, key=each.__getitem__)])
    assert bill.at("hot", None)[0] == pytest.approx(bill.scored["hot"].average("base"))
    with pytest.raises(ApgdTeachError, match=r"nothing called '0\.7' was compared"):
        bill.at("hot", 0.7)


def test_the_bill_is_each_gap_less_that_at_the_common_coefficient(swept, bill) -> None:
    gaps = {one: bill.scored["hot"].gap(f"{one:g}") for one in (0.25, 1 / 3, 1.0)}
    assert swept.common == 1 / 3
    assert list(bill.changes("hot")) == [0.25, 1 / 3, 1.0]
    for coefficient, changes in bill.changes("hot").items():
        for task, change in changes.items():
            assert change == pytest.approx(gaps[coefficient][task] - gaps[1 / 3][task])
    table = bill.table("hot")
    first, second, third = (swept.titles[task] for task in swept.own)
    assert table.column("wanted by") == [first, third, second]
    assert table.column(first)[1] == "0"
    assert table.column(second)[2] == signed(bill.changes("hot")[1.0]["digits-rotated45"])
    assert "λ = 0.333333 has the smallest mean gap on validation images. bundled tier, test split, 50 a task" in str(
        table
    )


def test_a_common_coefficient_that_no_task_wants_has_a_row_all_the_same(swept, bill) -> None:
    one, other, third = swept.gaps
    gaps = {one: (0.5, 0.0, 0.1, 0.9), other: (0.5, 0.9, 0.1, 0.0), third: (0.5, 0.0, 0.1, 0.9)}
    alone = replace(bill, sweeps={"hot": replace(swept, gaps=gaps)})
    assert alone.table("hot").column("wanted by")[1] == "no task"


def test_a_trade_is_the_gap_at_the_own_coefficient_less_that_at_the_other_s_over_all_test_images(
    pool, swept, bill
) -> None:
    one, other = swept.at_stake
    assert (swept.own[one], swept.own[other]) == (0.25, 1.0)
    judge, vectors = Evaluator(pool.only((one, other))), task_vectors(pool.base, pool.experts)
    for task, trade, (own, others) in zip((one, other), bill.trades["hot"], ((0.25, 1.0), (1.0, 0.25)), strict=True):
        here, there = (judge.score(combined(pool.base, vectors, at), task).losses for at in (own, others))
        assert (trade.title, trade.own, trade.other) == (TITLES[task], own, others)
        assert trade.less == pytest.approx(float((here - there).mean()), rel=1e-5)
        assert trade.margin == pytest.approx(1.96 * float((here - there).std()) / math.sqrt(len(here)), rel=1e-4)
        assert len(here) > 50


def test_a_trade_is_shown_where_its_whole_interval_is_below_zero() -> None:
    assert Trade("a", 0.1, 0.2, -0.3, 0.2).shown
    assert not Trade("a", 0.1, 0.2, -0.1, 0.2).shown
    assert not Trade("a", 0.1, 0.2, 0.3, 0.2).shown
    assert not Trade("a", 0.1, 0.2, -0.3, math.nan).shown


def test_the_words_say_what_is_paid_and_saved_and_whether_it_is_shown(swept, bill) -> None:
    pair = Trade("a", 0.1, 0.4, -0.25, 0.05), Trade("b", 0.4, 0.1, -0.125, 0.025)
    words = replace(bill, trades={"hot": pair}).words("hot")
    assert words == (
        "**Hot experts: shown.** *a* wants λ = 0.1 and *b* 0.4. On test images, moving from the first to the second "
        "changes the gap of the one by +0.250 ± 0.050 nats and that of the other by −0.125 ± 0.025."
    )
    unsure = replace(bill, trades={"hot": (pair[0], replace(pair[1], margin=0.2))})
    assert "not shown in this run" in unsure.words("hot")
    assert unsure.words("hot").endswith("Only *a* clearly does better at its own λ.")
    neither = replace(bill, trades={"hot": tuple(replace(one, margin=1.0) for one in pair)})
    assert neither.words("hot").endswith("Neither clearly does better at its own λ.")
    none = replace(swept, gaps=dict.fromkeys(swept.gaps, (0.0, 0.1, 0.2, 0.3)))
    assert replace(unsure, sweeps={"hot": none}).words("hot") == (
        "**Hot experts: not shown in this run.** All tasks want λ = 0, of those that were tried: there are no two to "
        "compare."
    )


def test_each_rule_has_a_row_beside_the_base_and_the_average(swept, bill) -> None:
    table = bill.rules_table()
    rules = ["nobody: the base", "nobody: the average, 1/3", "highest mean", "highest worst task"]
    assert table.column("λ chosen by") == rules
    assert table.column("λ") == ["–", "0.333333", *(f"{one:g}" for one in swept.by_rule.values())]
    assert table.column("mean %")[1] == bill.at("hot", 1 / 3)[0]


def test_what_rounds_to_zero_has_no_sign() -> None:
    assert [signed(one) for one in (0.0004, -0.0004, 0.02, -0.2)] == ["0", "0", "+0.020", "−0.200"]


def test_a_sweep_of_another_pool_is_refused(pool, swept) -> None:
    with pytest.raises(ApgdTeachError, match="of other pools or tasks; give a sweep of each pool"):
        measure_bill({"mild": pool}, {"hot": swept})
    with pytest.raises(ApgdTeachError, match="of other pools or tasks; give a sweep of each pool"):
        measure_bill({"hot": untrained_pool(2)}, {"hot": swept})
