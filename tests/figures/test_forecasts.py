"""What an estimate foretells: ranks against luck, and merges held against what was measured."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from itertools import permutations
from pathlib import Path as File

import pytest

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import NAMES, estimates

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.forecasts import by_luck, forecast_table, measure_forecasts
from apgd_teach.figures.gaps import Estimates, spearman


def known() -> Estimates:
    """The estimate reverses the order of the gaps; steps as if the average were gentle and the other merge not."""
    return replace(estimates(), steps={"base": 0.0, "average": 0.2, "task arithmetic": 0.7})


# Luck


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 90], 1 / 24),  # only this order is as good
        ([4, 3, 2, 1], [1, 2, 3, 4], 1),  # every order is at least as good
        ([2, 1, 3], [1, 2, 3], 3 / 6),  # itself, the right one, and 1 3 2
        ([5, 5, 9], [1, 2, 3], 1 / 3),  # of three arrangements of two equal ranks and a higher one
        ([1, 1, 1], [1, 2, 3], math.nan),
    ],
)
def test_shares_of_orders_that_can_be_counted_by_hand(one, other, share: float) -> None:
    assert by_luck(one, other) == pytest.approx(share, nan_ok=True)


def test_luck_is_the_share_of_orders_with_as_high_a_rank_correlation() -> None:
    other, one = [0.3, 2.0, 0.7, 0.7, 5.0], [1.0, 3.0, 0.5, 2.0, 2.5]
    reached = [spearman(order, other) >= spearman(one, other) - 1e-9 for order in permutations(one)]
    assert by_luck(one, other) == pytest.approx(sum(reached) / len(reached))


def test_more_orders_than_can_be_looked_at_are_refused() -> None:
    with pytest.raises(ApgdTeachError, match="10 numbers have too many orders to look at all of them; give at most 9"):
        by_luck(range(10), range(10))


# Forecasts


def test_a_forecast_holds_each_merge_against_its_measurement() -> None:
    found = measure_forecasts(known())
    assert list(found) == ["average", "task arithmetic"]
    for label, one in found.items():
        free, gaps = (list(of[label].values()) for of in (known().data_free, known().measured))
        assert one.gaps == spearman(free, gaps) == pytest.approx(-1)
        assert one.gaps_by_luck == pytest.approx(1)
        assert one.changes == spearman(*known().changes(label))
        assert one.changes_by_luck == by_luck(*known().changes(label))
        assert one.estimate == pytest.approx(sum(free) / sum(known().data_free["base"].values()))
        assert one.gap == pytest.approx(sum(gaps) / sum(known().measured["base"].values()))
        assert one.worse
    assert [one.warned for one in found.values()] == [False, True]


def test_a_merge_that_closes_part_of_the_gap_is_not_worse() -> None:
    measured = {**known().measured, "average": {name: 0.5 * gap for name, gap in known().measured["base"].items()}}
    (one, _) = measure_forecasts(replace(known(), measured=measured)).values()
    assert one.gap == pytest.approx(0.5)
    assert not one.worse


def test_the_table_has_steps_shares_and_orders_with_what_luck_gives() -> None:
    table = forecast_table({"one": measure_forecasts(known())["task arithmetic"]})
    ((name, step, estimate, gap, order, changes),) = table.rows
    of_base, left = (sum(known().measured[label].values()) for label in ("base", "task arithmetic"))
    assert (name, step, order) == ("one", 70, "−1.00 (100.0 %)")
    assert estimate == gap == round(100 * left / of_base)
    assert changes.startswith("−1.00")
    assert "the audit warns above 50%" in table.note


def test_an_order_that_is_not_defined_is_a_dash() -> None:
    flat = replace(known(), measured={label: dict.fromkeys(NAMES, 0.5) for label in known().measured})
    assert forecast_table(measure_forecasts(flat)).column("order of the gaps") == ["–", "–"]
