"""Numbers in sentences: said by the run, quoted in documents, and refused where they have stopped being true."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest

from apgd_teach.course.profiles import VISIT
from apgd_teach.course.prose import MIME, UntrueError, facts_of, fill, say, stale
from apgd_teach.errors import CourseError

FACTS = {"02.hot.average": 72.14, "02.hot.base": 81.4, "03.change": -1.26}


def test_what_is_said_is_shown_as_markdown_with_its_facts_beside_it() -> None:
    bundle = say("It is **7**.", holds={"7 is odd": 7 % 2}, facts={"00.it": 7})._repr_mimebundle_()
    assert bundle == {"text/markdown": "It is **7**.", "text/plain": "It is **7**.", MIME: {"00.it": 7.0}}
    assert MIME not in say("Nothing is recorded.")._repr_mimebundle_()


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> None:
    """The course's runner is what runs, and no reader."""
    monkeypatch.setenv(VISIT, "1")


@pytest.mark.usefixtures("runner")
def test_a_sentence_that_is_not_true_stops_the_notebook_and_is_named() -> None:
    with pytest.raises(UntrueError, match=r"not true in this run: the average is below the base. Change"):
        say("Fine.", holds={"one is less than two": True, "the average is below the base": 3 < 2})


def test_a_reader_who_changed_something_reads_on_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VISIT, raising=False)
    said = say("Fine.", holds={"black is white": False, "one is less than two": True}, facts={"00.it": 7})
    assert str(said).startswith("> **Not true in this run**, though it was in the published one: *black is white*. ")
    assert str(said).endswith("\n\nFine.")
    assert said.facts == {"00.it": 7.0}


@pytest.mark.usefixtures("runner")
def test_numbers_of_other_kinds_count_as_true_or_false() -> None:
    import torch

    with pytest.raises(UntrueError):
        say("Fine.", holds={"it is": torch.tensor(False)})
    say("Fine.", holds={"it is": torch.tensor(True)})


def test_a_documents_numbers_are_filled_in_and_a_minus_is_one() -> None:
    text = "At <!-- =02.hot.average:.1f -->60<!-- = --> %, <!-- =03.change:+.1f --><!-- = --> points."
    filled = fill(text, FACTS)
    assert filled == "At <!-- =02.hot.average:.1f -->72.1<!-- = --> %, <!-- =03.change:+.1f -->−1.3<!-- = --> points."
    assert fill(filled, FACTS) == filled
    assert stale(filled, FACTS, "README.md") == []


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("<!-- =02.hot.average:.1f -->71.9<!-- = -->", "D says 71.9 for '02.hot.average', which is 72.14 now"),
        ("<!-- =02.gone:.1f -->71.9<!-- = -->", "D quotes '02.gone', which no notebook records"),
        ("<!-- =02.hot.base:.1f -->many<!-- = -->", "D says 'many' where '02.hot.base' belongs"),
        ("<!-- holds 02.hot.average > 02.hot.base -->", "is not true any more (72.14 and 81.4)"),
        ("<!-- holds 02.hot.average > nothing -->", "names what no notebook records"),
        ("<!-- holds 03.change > 0 -->", "is not true any more (-1.26 and 0)"),
    ],
)
def test_what_has_stopped_being_true_is_named(text: str, sentence: str) -> None:
    (problem,) = stale(f"Some words. {text} More.", FACTS, "D")
    assert sentence in problem


@pytest.mark.parametrize(
    "text",
    [
        "<!-- =02.hot.average:.1f -->72.2<!-- = -->",  # one in the last decimal: another machine
        "<!-- holds 02.hot.average < 02.hot.base -->",
        "<!-- holds 03.change < 0 -->",
        "<!-- an ordinary comment --> 5 < 7",
    ],
)
def test_what_still_is_true_is_left_alone(text: str) -> None:
    assert stale(text, FACTS, "D") == []


def notebook(path: Path, **facts: float) -> Path:
    output = nbformat.v4.new_output("execute_result", {MIME: facts, "text/plain": ""})
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("", outputs=[output])]), path)
    return path


def test_facts_are_read_out_of_notebooks_and_no_name_is_given_twice(tmp_path: Path) -> None:
    one, other = notebook(tmp_path / "1.ipynb", a=1.0), notebook(tmp_path / "2.ipynb", b=2.0)
    assert facts_of([one, other]) == {"a": 1.0, "b": 2.0}
    with pytest.raises(CourseError, match=r"2.ipynb records 'b', which another cell does too"):
        facts_of([one, other, other])
