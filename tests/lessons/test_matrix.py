"""Every exercise against every answer: the stub, the solution, each mistake that is known, and one that is not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from apgd_teach import lessons
from apgd_teach.errors import CourseError
from apgd_teach.lessons import PROBLEMS, Problem, problem
from apgd_teach.lessons.engine import CORRECT, INCORRECT, NOT_ATTEMPTED, defined, same
from apgd_teach.lessons.progress import PLACE

every = pytest.mark.parametrize("one", list(PROBLEMS.values()), ids=list(PROBLEMS))


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLACE, str(tmp_path / "progress.json"))


@every
def test_the_stub_is_not_attempted(one: Problem) -> None:
    assert one.check(defined(one.stub, one.function)).state == NOT_ATTEMPTED


@every
def test_the_solution_is_correct(one: Problem) -> None:
    assert one.check(defined(one.code, one.function)).state == CORRECT


@every
def test_each_known_mistake_gets_its_own_message(one: Problem) -> None:
    assert len(one.wrong) >= 3
    messages = [wrong.message for wrong in one.wrong]
    assert len(set(messages)) == len(messages)
    for wrong in one.wrong:
        outcome = one.check(wrong.answer)
        assert outcome.state == INCORRECT
        assert outcome.text == wrong.message


@every
def test_any_other_answer_is_told_what_was_expected_and_what_came(one: Problem) -> None:
    outcome = one.check(lambda **arguments: 12345.678)
    assert outcome.state == INCORRECT
    assert outcome.text.startswith("expected ")
    assert " and found 1.235e+04, for " in outcome.text


@every
def test_hints_lead_from_one_to_the_next_and_end(one: Problem) -> None:
    assert len(one.hints) >= 2
    for number in range(1, len(one.hints)):
        assert one.hint(number).text == f"{one.hints[number - 1]} (One more: hint({number + 1}).)"
    assert one.hint(len(one.hints)).text == one.hints[-1]
    assert one.hint(len(one.hints) + 1).text == f"There are {len(one.hints)} hints: hint(1) to hint({len(one.hints)})."


@every
def test_the_question_asks_for_the_function_of_the_stub_and_the_solution_can_be_shown(one: Problem) -> None:
    assert f"`{one.function}(" in one.question
    assert one.code.strip() in one.solution().text
    assert one.question in one._repr_markdown_()
    assert repr(one) == f"Exercise {one.name}. {one.question}"


@every
def test_what_a_learner_does_to_the_arguments_reaches_no_second_check(one: Problem) -> None:
    def vandal(**arguments: object) -> object:
        for value in arguments.values():
            if isinstance(value, dict | list):
                value.clear()
            elif isinstance(value, torch.Tensor):
                value.zero_()
        return 1

    before = copy.deepcopy([dict(case) for case in one.cases])
    outcome = one.check(vandal)
    assert outcome.state == INCORRECT
    # A number cannot be changed by whoever is given it.
    given = [value for case in one.cases for value in case.values()]
    if any(isinstance(value, dict | list | torch.Tensor) for value in given):
        assert outcome.text.startswith("it changed what it was given")
    assert all(same(a, dict(b)) for a, b in zip(before, one.cases, strict=True))
    assert one.check(defined(one.code, one.function)).state == CORRECT


def test_there_are_as_many_as_the_readme_says_in_the_order_of_the_lessons() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert len(PROBLEMS) == 26
    assert "Twenty-six exercises" in readme
    assert list(PROBLEMS) == sorted(PROBLEMS)


def test_exercises_are_found_by_name() -> None:
    assert problem("02.1") is PROBLEMS["02.1"]
    with pytest.raises(CourseError, match=r"^there is no exercise '99\.9'; there are: 00\.1, "):
        problem("99.9")


def test_progress_counts_attempts_and_remembers_what_was_solved() -> None:
    first, second, *_ = PROBLEMS.values()
    mine: Callable[..., object] = defined(first.code, first.function)
    first.check(first.wrong[0].answer)
    first.check(mine)
    first.check(first.wrong[0].answer)
    second.check(None)
    rows = {row[0]: row[1:] for row in lessons.progress().rows}
    assert rows[first.name] == ("solved", 2)
    assert rows[second.name] == ("open", 0)
    assert lessons.progress().caption == f"1 of {len(PROBLEMS)} solved"
