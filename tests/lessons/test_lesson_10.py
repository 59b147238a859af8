"""The capstone's frame: predictions that are ones, outcomes that follow from intervals, ideas that run."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
import torch

from apgd_teach.errors import CourseError
from apgd_teach.evaluate import Difference
from apgd_teach.lessons.capstone import FAILED, HELD, OPEN, Prediction, Study, rubric
from apgd_teach.merging import Apgd, merge

SOURCE = Path(__file__).parents[2] / "notebooks" / "source" / "10_capstone.py"
IDEAS = re.findall(r"^```python\n(.*?)^```", re.sub(r"(?m)^# ?", "", SOURCE.read_text(encoding="utf-8")), re.M | re.S)


def study(found: Difference, explanation: str = "") -> Study:
    return Study("better?", "one thing", Prediction(-0.5, 1.0, "I think so"), found, explanation)


@pytest.mark.parametrize(
    ("points", "margin", "outcome"),
    [
        (0.2, 0.3, HELD),
        (0.5, 0.5, HELD),
        (0.2, 1.0, OPEN),
        (3.0, 2.5, OPEN),
        (3.0, 0.5, FAILED),
        (-2.0, 0.5, FAILED),
        (0.2, math.nan, OPEN),
    ],
)
def test_the_outcome_follows_from_the_whole_interval(points: float, margin: float, outcome: str) -> None:
    assert study(Difference(points, margin)).outcome == outcome


def test_the_form_shows_every_part_and_what_is_missing() -> None:
    table = study(Difference(0.2, 0.3)).table()
    assert table.column("part") == ["question", "change", "prediction", "measurement", "outcome", "explanation"]
    assert table.rows[2][1] == "−0.5 to 1 points, because I think so"
    assert table.rows[3][1] == "+0.20 ± 0.30, no difference seen"
    assert table.rows[5][1] == "still to be written"
    assert study(Difference(0.2, 0.3), "because").table().rows[5][1] == "because"


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((1.0, 1.0, "so"), "give the lower end first"),
        ((2.0, 1.0, "so"), "give the lower end first"),
        ((math.nan, 1.0, "so"), "from a number to a number"),
        ((0.0, math.inf, "so"), "from a number to a number"),
        ((True, 2.0, "so"), "from a number to a number"),
        (("0", 2.0, "so"), "from a number to a number"),
        ((0.0, 2.0, " "), "needs a reason"),
    ],
)
def test_what_is_no_prediction_is_told_in_a_sentence(given: tuple, words: str) -> None:
    with pytest.raises(CourseError, match=words):
        Prediction(*given)


def test_the_rubric_has_as_many_points_as_it_says() -> None:
    table = rubric()
    assert f"{2 * len(table.rows)} points" in table.caption


def test_there_are_five_ideas() -> None:
    assert len(IDEAS) == 5


@pytest.mark.parametrize("idea", IDEAS, ids=[str(n + 1) for n in range(len(IDEAS))])
def test_an_idea_runs_as_it_stands_and_is_no_average(idea: str) -> None:
    room: dict = {"torch": torch, "Apgd": Apgd}
    exec(compile(idea, "<idea>", "exec"), room)

    class Mine:
        name = "mine"

        def __call__(self, task_vectors: torch.Tensor) -> torch.Tensor:
            return room["mine"](task_vectors)

    method = room.get("my_method", Mine())

    draws = torch.Generator().manual_seed(0)
    base = {"one.weight": torch.randn(12, 8, generator=draws)}
    experts = {
        name: {"one.weight": base["one.weight"] + scale * torch.randn(12, 8, generator=draws)}
        for name, scale in (("a", 0.1), ("b", 0.2), ("c", 0.3))
    }
    merged = merge(base, experts, method).state_dict["one.weight"]
    average = merge(base, experts, "average").state_dict["one.weight"]
    assert torch.isfinite(merged).all()
    assert not torch.allclose(merged, average, atol=1e-3)
