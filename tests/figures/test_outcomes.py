"""What became of a merge: shares of the gap with their intervals, leaks, and the tables that hold them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Score
from apgd_teach.figures.outcomes import (
    Closed,
    constraint_table,
    gap_closed,
    largest_fact,
    outcome_table,
    timed_merges,
)
from apgd_teach.merging import Apgd, merge

LOSSES = {
    "base": {"a": (1.0, 1.0, 1.0, 1.0), "b": (1.0, 1.0, 1.0, 1.0)},
    "experts": {"a": (0.0, 0.0, 0.0, 0.0), "b": (0.2, 0.2, 0.2, 0.2)},
    "average": {"a": (0.8, 0.8, 0.8, 0.8), "b": (1.0, 1.0, 1.0, 1.0)},
    "better": {"a": (0.4, 0.6, 0.4, 0.6), "b": (0.6, 0.8, 0.6, 0.8)},
}


def scores(label: str) -> dict[str, Score]:
    return {task: Score(torch.tensor(each) < 0.7, torch.tensor(each)) for task, each in LOSSES[label].items()}


@pytest.fixture
def compared() -> Comparison:
    return Comparison(
        titles={"a": "task a", "b": "task b"},
        base=scores("base"),
        experts=scores("experts"),
        merged={label: scores(label) for label in ("average", "better")},
        data_used={"average": "none", "better": "none"},
        tier="four made-up images",
    )


def test_the_share_is_one_minus_the_gap_over_that_of_the_average(compared: Comparison) -> None:
    # The average's gaps are 0.8 and 0.8, the other's 0.5 and 0.5.
    found = gap_closed(compared, "better")
    assert found.share == pytest.approx(100 * (1 - 0.5 / 0.8))
    assert gap_closed(compared, "average").share == pytest.approx(0)
    assert gap_closed(compared, "base").share == pytest.approx(100 * (1 - 0.9 / 0.8))
    assert gap_closed(compared, "experts").share == pytest.approx(100)


def test_the_interval_pairs_images_and_counts_a_picture_of_several_tasks_once(compared: Comparison) -> None:
    # Both tasks find the same images hard: the mean over the tasks of what is less is 0.4, 0.2, 0.4, 0.2.
    spread = torch.tensor([0.4, 0.2, 0.4, 0.2]).std()
    assert gap_closed(compared, "better").margin == pytest.approx(100 / 0.8 * 1.96 * float(spread) / 2)
    assert math.isclose(gap_closed(compared, "base").margin, 100 / 0.8 * 1.96 * 0.1 * 0, abs_tol=1e-5)


def test_a_share_is_shown_where_its_whole_interval_lies_above_zero() -> None:
    assert Closed(25, 5).shown
    assert not Closed(5, 25).shown
    assert not Closed(-25, 5).shown
    assert not Closed(25, math.nan).shown
    assert str(Closed(-109.7, 15.2)) == "−110 ± 15"


def test_what_has_no_share_is_one_sentence(compared: Comparison) -> None:
    with pytest.raises(ApgdTeachError, match="nothing called 'other' was compared"):
        gap_closed(compared, "other")
    with pytest.raises(ApgdTeachError, match="there is nothing of it to close"):
        gap_closed(compared, "better", reference="experts")
    fewer = {**compared.merged["average"], "b": Score(torch.ones(3) > 0, torch.ones(3))}
    with pytest.raises(ApgdTeachError, match="different numbers of images"):
        gap_closed(replace(compared, merged={**compared.merged, "average": fewer}), "better")


def test_the_table_holds_every_network_beside_the_average(compared: Comparison) -> None:
    table = outcome_table({"mild": compared, "hot": compared})
    assert table.column("network") == 2 * ["base", "average", "better"]
    assert table.column("mean gap")[:3] == ["0.900", "0.800", "0.500"]
    assert table.column("gap closed %")[1:3] == ["–", str(gap_closed(compared, "better"))]
    assert table.column("verdict")[2] == compared.against("better", "average").verdict
    assert table.column("worst task %")[2] == compared.worst("better")[1]


def experts() -> tuple[dict[str, torch.Tensor], dict[str, dict[str, torch.Tensor]]]:
    draws = torch.Generator().manual_seed(0)
    base = {"one.weight": torch.randn(12, 20, generator=draws), "two.weight": torch.randn(8, 12, generator=draws)}
    return base, {
        name: {key: one + 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()} for name in "abc"
    }


def test_merges_are_those_of_merge_each_with_its_seconds() -> None:
    base, tuned = experts()
    method = Apgd(granularity="row", protect=1 / 6, flatten=0.0)
    merged, seconds = timed_merges(base, tuned, {"plain": "average", "row": method})
    assert list(merged) == list(seconds) == ["plain", "row"]
    assert torch.equal(merged["row"].state_dict["one.weight"], merge(base, tuned, method).state_dict["one.weight"])
    assert min(seconds.values()) > 0


def test_the_largest_leak_is_that_of_the_worst_layer() -> None:
    base, tuned = experts()
    audit = merge(base, tuned, "apgd_published", trim=1.0, rate=0.01).audit
    assert largest_fact(audit, "leak") == 100 * max(row.facts["leak"] for row in audit.rows)
    assert largest_fact(merge(base, tuned, "average").audit, "leak") is None


def test_the_constraint_is_tabled_for_those_that_state_a_leak() -> None:
    base, tuned = experts()
    merged, _ = timed_merges(
        base,
        tuned,
        {"average": "average", "held": Apgd(granularity="row", protect=1 / 3, flatten=0.0, trim=0.3)},
    )
    table = constraint_table({"mild": merged})
    ((regime, label, solved, after, step),) = table.rows
    assert (regime, label) == ("mild", "held")
    assert solved < 1e-2 < 1 < after
    assert step == pytest.approx(100 * max(row.relative_step for row in merged["held"].audit.rows))
