"""What the engine does with answers that are none, break, never end or come in another form."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from apgd_teach.lessons import engine
from apgd_teach.lessons.engine import (
    CORRECT,
    INCORRECT,
    NOT_ATTEMPTED,
    UNCHECKED,
    Outcome,
    Problem,
    Wrong,
    defined,
    same,
)
from apgd_teach.lessons.progress import PLACE, remember, solved

DOUBLE = Problem(
    name="00.0",
    question="Write `double(x)`.",
    stub="def double(x):\n    ...\n",
    code="def double(x):\n    return 2 * x\n",
    cases=[{"x": torch.tensor([1.0, -3.0])}, {"x": torch.tensor([0.5])}],
    wrong=[Wrong(lambda x: x * x, "squared, not doubled.")],
    hints=["Twice.", "Two times x."],
)


@pytest.fixture(autouse=True)
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PLACE, str(tmp_path / "kept" / "progress.json"))
    return tmp_path / "kept" / "progress.json"


@pytest.mark.parametrize("answer", [None, ..., lambda x: None, lambda x: ...])
def test_nothing_is_not_attempted(answer: object, file: Path) -> None:
    assert DOUBLE.check(answer).state == NOT_ATTEMPTED
    assert not file.exists()


def test_an_answer_that_says_it_is_missing_is_not_attempted() -> None:
    def double(x):
        raise NotImplementedError

    assert str(DOUBLE.check(double)) == "… not attempted: `double` is still to be written."


def test_a_value_in_place_of_the_function_cannot_be_checked() -> None:
    outcome = DOUBLE.check(torch.tensor([2.0, -6.0]))
    assert outcome.state == UNCHECKED
    assert outcome.text == "give the function itself, `check(double)`, not a Tensor: without brackets after it."


def test_an_error_is_told_with_the_learners_own_line() -> None:
    def double(x):
        y = x.reshape(2, 7)
        return y

    outcome = DOUBLE.check(double)
    assert outcome.state == UNCHECKED
    assert outcome.text.startswith("it raised RuntimeError in line ")
    assert "`y = x.reshape(2, 7)`: shape '[2, 7]' is invalid" in outcome.text
    assert DOUBLE.check(lambda: 1).text.startswith("it raised TypeError: ")


def test_a_loop_without_end_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "LIMIT_S", 0.3)

    def double(x):
        while True:
            pass

    begun = time.monotonic()
    outcome = DOUBLE.check(double)
    assert time.monotonic() - begun < 5
    assert outcome.state == UNCHECKED
    assert outcome.text == "it took longer than 0.3 s; is there a loop that does not end?"
    time.sleep(0.4)  # no alarm is left behind


def test_beside_the_main_thread_it_is_checked_without_a_limit() -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(DOUBLE.check(lambda x: 2 * x)))
    thread.start()
    thread.join()
    assert found[0].state == CORRECT


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: x + x,
        lambda x: (2 * x).double(),
        lambda x: (2 * x).numpy(),
        lambda x: (2 * x).tolist(),
        lambda x: 2 * x * (1 + 1e-6),
        lambda x: (2 * x).requires_grad_(),
    ],
)
def test_every_form_of_the_right_answer_is_right(answer) -> None:
    assert DOUBLE.check(answer).state == CORRECT


@pytest.mark.parametrize("answer", [lambda x: 2 * x[None], lambda x: "2x", lambda x: {"x": 2 * x}, lambda x: object()])
def test_other_shapes_and_kinds_are_wrong_and_shown(answer) -> None:
    outcome = DOUBLE.check(answer)
    assert outcome.state == INCORRECT
    assert outcome.text.startswith("expected a tensor 2 that begins 2, -6 and found ")


def test_what_writes_into_its_argument_is_told_so() -> None:
    def double(x):
        x *= 2
        return x

    assert DOUBLE.check(double).text.startswith("it changed what it was given")


def test_an_answer_is_as_good_as_the_problem_says() -> None:
    either = Problem(
        **{
            **DOUBLE.__dict__,
            "equal": lambda found, expected, arguments: same(found, expected) or same(found, -expected),
        }
    )
    assert either.check(lambda x: -2 * x).state == CORRECT
    assert either.check(lambda x: -3 * x).state == INCORRECT


def test_the_same_is_up_to_rounding_and_of_one_shape() -> None:
    assert same(1.0, torch.tensor(1.0))
    assert same([1, 2], (1.0, 2.0))
    assert same(np.float32(0.1), 0.1)
    assert not same(1.0, [1.0])
    assert not same({"a": 1}, {"a": 1, "b": 2})
    assert not same("a", "b")
    assert not same(1.0, 1.001)
    assert same(float("nan"), float("nan"))
    assert same(torch.zeros(0), torch.zeros(0))


def test_outcomes_are_shown_as_markdown_and_as_text() -> None:
    outcome = Outcome(INCORRECT, "squared, not doubled.")
    assert str(outcome) == repr(outcome) == "✗ incorrect: squared, not doubled."
    assert outcome._repr_markdown_() == "✗ **incorrect.** squared, not doubled."
    assert str(DOUBLE.hint()) == "Twice. (One more: hint(2).)"


def test_a_solution_defines_its_function() -> None:
    assert defined("def f(x):\n    return x + 1\n", "f")(1) == 2


# Progress


def test_solved_stays_solved(file: Path) -> None:
    remember("00.0", True)
    remember("00.0", False)
    assert solved("00.0")
    assert not solved("00.1")


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"00.0": 3}', '{"00.0": {"tries": "many"}}'])
def test_a_damaged_file_is_begun_again(file: Path, content: str) -> None:
    file.parent.mkdir()
    file.write_text(content)
    assert not solved("00.0")
    assert DOUBLE.check(lambda x: 2 * x).state == CORRECT
    assert solved("00.0")


def test_where_nothing_can_be_kept_the_check_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a file").write_text("")
    monkeypatch.setenv(PLACE, str(tmp_path / "a file" / "progress.json"))
    assert DOUBLE.check(lambda x: 2 * x).state == CORRECT
    assert not solved("00.0")


def test_the_lesson_goes_on_with_the_learners_function_where_it_is_right(capsys: pytest.CaptureFixture) -> None:
    def mine(x):
        return x + x

    assert DOUBLE.use(mine) is mine
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("answer", [None, ..., 3, lambda x: None, lambda x: x * x, lambda y: y])
def test_it_goes_on_with_its_own_where_there_is_none_that_is_right(
    answer: object, file: Path, capsys: pytest.CaptureFixture
) -> None:
    assert DOUBLE.use(answer)(torch.tensor([4.0])).tolist() == [8.0]
    said = capsys.readouterr().out.strip()
    assert said == "Exercise 00.0 is not solved yet: the lesson goes on with its own `double`."
    assert not file.exists()


def test_one_number_may_come_as_a_tensor_of_any_shape() -> None:
    assert same(torch.tensor([2.5]), 2.5)
    assert same(np.array([[2.5]]), torch.tensor(2.5))
    assert not same(torch.tensor([2.5, 2.5]), 2.5)
    assert same(np.str_("a"), "a")


def test_what_pytorch_cannot_do_is_no_exercise_that_was_not_begun(file: Path) -> None:
    def double(x):
        # As PyTorch says it of sums that it cannot do; which sums these are differs from release to release.
        raise NotImplementedError("'mean' is not implemented for truth values")

    outcome = DOUBLE.check(double)
    assert outcome.state == UNCHECKED
    assert "it raised NotImplementedError in line" in outcome.text
    assert file.exists()


def test_a_known_mistake_that_breaks_is_known_by_how_it_breaks() -> None:
    def crash(x):
        return x @ torch.ones(7)

    with_crash = replace(DOUBLE, wrong=[*DOUBLE.wrong, Wrong(crash, "nothing is to be multiplied by seven ones.")])
    assert with_crash.check(lambda x: x @ torch.ones(7)).text == "nothing is to be multiplied by seven ones."
    assert with_crash.check(lambda x: x @ torch.ones(6)).state == UNCHECKED
    assert with_crash.check(lambda x: x * x).text == "squared, not doubled."
    assert with_crash.check(lambda x: x + 1).text.startswith("expected ")


@pytest.mark.parametrize(
    ("expected", "found", "words"),
    [
        ({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 3.0}, "at b: expected 2 and found 3"),
        ({"a": 1.0, "b": 2.0}, {"a": 1.0}, "expected {a: 1, b: 2} and found {a: 1}: it lacks b"),
        ({"a": 1.0}, {"a": 1.0, "b": 2.0}, "expected {a: 1} and found {a: 1, b: 2}: it has b too many"),
        ([1.0, 2.0], (1.0, 5.0), "number 2 of the 2: expected 2 and found 5"),
        (1.2346, 1.2349, "expected 1.235 and found nearly that, off by up to 0.0003"),
    ],
)
def test_an_answer_is_shown_where_it_differs(expected: object, found: object, words: str) -> None:
    one = Problem(
        "00.0", "Write `f(x)`.", "def f(x):\n    ...\n", f"def f(x):\n    return {expected!r}\n", [{"x": 0}], [], ["?"]
    )
    assert one.check(lambda x: found).text == f"{words}, for x = 0."
