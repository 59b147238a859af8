"""What three ways to do several tasks cost: sums by hand, and what the picture says of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures import Situation, draw_ways
from apgd_teach.figures.ways import WAYS

# 1,000 million parameters of 4 bytes are 4 GB; at 5 for a month of one, 20 a month, 60 in three.
PLAIN = Situation(
    experts=4,
    parameters=1000,
    bytes_each=4,
    months=3,
    memory_price=5,
    trained_on=100,
    checked_on=10,
    label_price=0.5,
    agreement_price=70,
    hours=6,
    hour_price=2,
)


def test_the_bills_are_sums_that_anybody_can_do() -> None:
    assert PLAIN.kept_ready == 60
    assert PLAIN.bill("experts apart") == {"memory": 240, "labels": 0, "agreements": 0, "training": 0}
    assert PLAIN.bill("trained on all data") == {"memory": 60, "labels": 220, "agreements": 280, "training": 12}
    assert PLAIN.bill("merged") == {"memory": 60, "labels": 20, "agreements": 0, "training": 0}
    assert [PLAIN.total(way) for way in WAYS] == [240, 572, 80]


@pytest.mark.parametrize("checked", [0, 1, 10, 60, 100, 119])
def test_it_pays_from_the_first_number_of_experts_at_which_it_costs_less(checked: int) -> None:
    situation = replace(PLAIN, checked_on=checked)
    less = [
        count
        for count in range(2, 200)
        if replace(situation, experts=count).total("merged") < replace(situation, experts=count).total("experts apart")
    ]
    assert situation.pays_from == less[0]


@pytest.mark.parametrize("checked", [120, 500])
def test_where_a_check_costs_more_than_an_expert_it_never_pays(checked: int) -> None:
    situation = replace(PLAIN, checked_on=checked, experts=1000)
    assert situation.pays_from is None
    assert situation.total("merged") > situation.total("experts apart")
    assert "saves nothing at any number" in draw_ways(situation).words


def test_the_picture_says_the_totals_and_which_is_least() -> None:
    drawing = draw_ways(PLAIN)
    assert drawing.numbers == {"experts apart": 240, "trained on all data": 572, "merged": 80}
    for total in ("240", "572", "80"):
        assert f"costs {total}" in drawing.words
        assert total in PLAIN.table().to_markdown()
    assert "The least is merged. Against experts apart, merging saves money from 2 experts on." in drawing.words


def test_what_may_not_be_done_has_no_bar() -> None:
    never = replace(PLAIN, agreement_price=math.inf)
    words = draw_ways(never).words
    assert "trained on all data cannot be done" in words
    assert "merged costs 80" in words


def test_free_memory_and_labels_can_be_drawn() -> None:
    free = replace(PLAIN, memory_price=0, label_price=0, agreement_price=0, hours=0)
    assert set(draw_ways(free).numbers.values()) == {0}


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"experts": 1}, "nothing to merge in 1 expert"),
        ({"months": -1}, "months is -1; give a number"),
        ({"hours": math.nan}, "hours is nan"),
        ({"label_price": "cheap"}, "label_price is 'cheap'"),
    ],
)
def test_what_is_no_situation_is_one_sentence(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ApgdTeachError, match=said):
        replace(PLAIN, **wrong)
    with pytest.raises(ApgdTeachError, match="none of the ways"):
        PLAIN.bill("by magic")
