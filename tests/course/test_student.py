"""Learner's versions: derived by two rules, in step with their sources, and whole again with the solutions in them."""

from __future__ import annotations

import ast
from pathlib import Path

import nbformat
import pytest

from apgd_teach.course.build import handed_out
from apgd_teach.course.sources import notebook_text, to_notebook
from apgd_teach.course.student import TAG, problems_in, put_back, student_version
from apgd_teach.errors import CourseError
from apgd_teach.lessons import PROBLEMS

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("[0-9][0-9]_*.py"))

EXERCISE = """def double(x):
    # your code: begin
    both = x + x
    return both
    # your code: end


problem("00.0").check(double)"""


def notebook(*codes: str) -> nbformat.NotebookNode:
    why = nbformat.v4.new_markdown_cell("Why this is so.", metadata={"tags": [TAG]})
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in codes] + [why])


def test_the_two_rules() -> None:
    before = notebook("x = 1", EXERCISE)
    made = student_version(before)
    assert [cell.source for cell in made.cells] == [
        "x = 1",
        'def double(x):\n    # your code\n    ...\n\n\nproblem("00.0").check(double)',
    ]
    assert problems_in(made) == 1
    assert len(before.cells) == 3
    assert before.cells[1].source == EXERCISE


def test_solutions_can_be_put_back() -> None:
    whole = notebook("x = 1", EXERCISE, EXERCISE.replace("double", "twice"))
    again = put_back(student_version(whole), whole)
    assert [cell.source for cell in again.cells] == [cell.source for cell in whole.cells[:-1]]


@pytest.mark.parametrize("code", ["    # your code: begin\n    x = 1", "x = 1\n# your code: end"])
def test_a_marker_without_a_partner_is_refused(code: str) -> None:
    with pytest.raises(CourseError, match=r"cell 1: .* belong together"):
        student_version(notebook(code))


def test_code_cannot_be_left_out() -> None:
    tagged = notebook("secret = 1")
    tagged.cells[0].metadata["tags"] = [TAG]
    with pytest.raises(CourseError, match="only text may be left out"):
        student_version(tagged)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_version_is_in_step_with_its_source(source: Path) -> None:
    committed = NOTEBOOKS / "student" / f"{source.stem}.ipynb"
    assert committed.read_text(encoding="utf-8") == notebook_text(handed_out(source))


def test_no_learners_version_has_lost_its_source() -> None:
    assert {path.stem for path in (NOTEBOOKS / "student").glob("*.ipynb")} == {source.stem for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_with_the_solutions_put_back_it_is_the_source_which_runs(source: Path) -> None:
    whole = to_notebook(source)
    again = put_back(handed_out(source), whole)
    kept = [cell.source for cell in whole.cells if TAG not in cell.metadata.get("tags", [])]
    assert [cell.source for cell in again.cells] == kept


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_learner_starts_from_the_stub_and_the_source_holds_the_solution(name: str) -> None:
    (source,) = [path for path in SOURCES if path.stem[:2] == name[:2]]
    asked = PROBLEMS[name]
    for made, code in ((handed_out(source), asked.stub), (to_notebook(source), asked.code)):
        (cell,) = [cell for cell in made.cells if f'problem("{name}").check(' in cell.source]
        assert function(cell.source, asked.function) == function(code, asked.function)


def function(code: str, name: str) -> str:
    """A function's definition without its comments and the way it is laid out."""
    (found,) = [one for one in ast.parse(code).body if isinstance(one, ast.FunctionDef) and one.name == name]
    return ast.unparse(found)
