"""The page of equations and the docstrings that name them hold each other up."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "equations.md").read_text(encoding="utf-8")
EQUATIONS = {
    int(number): text for number, text in re.findall(r"(?ms)^\*\*\((\d+)\)\*\*(.*?)(?=^\*\*\(\d+\)\*\*|^## |\Z)", PAGE)
}
NAMED = [
    (number, name)
    for number, text in EQUATIONS.items()
    for name in re.findall(r"`((?:merging|evaluate)\.[\w.]+)`", text)
]


def found(name: str) -> object:
    """What a dotted name below the package stands for."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            thing: object = importlib.import_module(".".join(["apgd_teach", *parts[:end]]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            thing = getattr(thing, part)
        return thing
    raise AssertionError(name)


def cited(docstring: str) -> set[int]:
    """The numbers that a docstring names, "(4), (5) in docs/equations.md" or "(2) to (13) in …"."""
    numbers: set[int] = set()
    for listed in re.findall(r"((?:\(\d+\)(?:,\s+| to )?)+)\s+in\s+docs/equations\.md", docstring):
        ends = [int(one) for one in re.findall(r"\d+", listed)]
        numbers |= set(range(ends[0], ends[1] + 1)) if " to " in listed else set(ends)
    return numbers


def docstrings() -> dict[str, str]:
    """Every docstring of the package, by file and name."""
    kinds = (ast.FunctionDef, ast.ClassDef, ast.Module)
    return {
        f"{path.relative_to(ROOT)}:{getattr(node, 'name', '')}": text
        for path in sorted((ROOT / "apgd_teach").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, kinds)
        for text in [ast.get_docstring(node) or ""]
        if "docs/equations.md" in text
    }


def test_they_are_numbered_without_a_gap_and_each_is_computed_and_taught() -> None:
    assert list(EQUATIONS) == list(range(1, len(EQUATIONS) + 1))
    for number, text in EQUATIONS.items():
        assert text.count("$$") == 2, number
        assert re.search(r"lessons? \d\d", text), number
    assert {number for number, _ in NAMED} == set(EQUATIONS)


@pytest.mark.parametrize(("number", "name"), NAMED, ids=[f"{number}-{name}" for number, name in NAMED])
def test_what_computes_an_equation_names_it(number: int, name: str) -> None:
    assert number in cited(inspect.getdoc(found(name)) or "")


def test_every_docstring_names_equations_that_there_are() -> None:
    named = {place: cited(text) for place, text in docstrings().items()}
    assert sum(map(len, named.values())) > 80
    for place, numbers in named.items():
        assert numbers <= set(EQUATIONS), place


def test_no_source_is_a_page_that_nobody_has() -> None:
    texts = [
        *(ROOT / "apgd_teach").rglob("*.py"),
        *(ROOT / "notebooks" / "source").glob("*.py"),
        *(ROOT / "docs").glob("*.md"),
    ]
    for path in texts:
        assert "method" + ".md" not in path.read_text(encoding="utf-8"), path


def test_the_nine_differences_are_the_nine_tests() -> None:
    rows = re.findall(r"(?m)^\| (\d) \| .+ \| .+ \|$", PAGE.partition("## Nine differences")[2])
    tests = re.findall(
        r"(?m)^def test_(\d)_", (ROOT / "tests" / "merging" / "test_nine_differences.py").read_text(encoding="utf-8")
    )
    assert rows == tests == list("123456789")


TRACE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "trace.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| .*\| \(\d+\)", line)
]


def test_the_trace_has_every_equation_as_its_page_has_it() -> None:
    rows = {int(row[1].strip("()")): row for row in TRACE if " to " not in row[1]}
    assert list(rows) == list(EQUATIONS)
    for number, (_, _, code, _, lessons) in rows.items():
        assert (number, code.strip("`")) in NAMED
        taught = re.findall(r"lessons? (\d\d(?:(?:, | and )\d\d)*)", " ".join(EQUATIONS[number].split()))
        assert re.findall(r"\d\d", lessons) == re.findall(r"\d\d", taught[-1]), number


@pytest.mark.parametrize("row", TRACE, ids=lambda row: row[1])
def test_what_the_trace_names_is_there(row: list[str]) -> None:
    assert found(row[2].strip("`"))
    path, _, test = row[3].strip("`").partition("::")
    assert f"\ndef {test}(" in (ROOT / "tests" / path).read_text(encoding="utf-8")
    for lesson in row[4].split(", "):
        assert list((ROOT / "notebooks" / "source").glob(f"{lesson}_*.py"))
