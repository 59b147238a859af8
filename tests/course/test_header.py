"""The minutes in a lesson's header: counted from its text, measured by the runner."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
import torch

from apgd_teach.course.header import CELL_MINUTES, LINES_A_MINUTE, header, keep_times, minutes_of, peaks, spoken, times
from apgd_teach.course.sources import list_sources, read_notebook
from apgd_teach.errors import CourseError
from apgd_teach.lessons import PROBLEMS


def text(words: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_markdown_cell(words)


def code(lines: str) -> nbformat.NotebookNode:
    return nbformat.v4.new_code_cell(lines)


def test_minutes_are_words_and_code_and_the_short_route_is_its_sections() -> None:
    cells = [
        text("# Title\n" + "word " * 178),
        nbformat.v4.new_code_cell('PROFILE = "fast"', metadata={"tags": ["parameters"]}),
        text("## The thing · short route\n" + "word " * 174),
        code('problem("03.1").check(mine)'),
        text("### Below it\n" + "word " * 177),
        text("### Details · in depth\n" + "word " * 355),
        code('more()\n\nproblem("03.3").check(it)'),
        text("word " * 180 + "\n## The rest\n" + "word " * 177),
        code('problem("03.2").check(mine)\nproblem("03.1").check(again)'),
    ]
    found = minutes_of(nbformat.v4.new_notebook(cells=cells))
    assert found.reading == pytest.approx(4 + 2 * CELL_MINUTES + 3 / LINES_A_MINUTE)
    assert found.depth == pytest.approx(3 + CELL_MINUTES + 2 / LINES_A_MINUTE)
    assert found.short == pytest.approx(2 + CELL_MINUTES + 1 / LINES_A_MINUTE)
    assert (found.exercises, found.solving, found.more) == (2, 8, 1)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (42.4, "42 s"), (61, "1 min"), (118, "2 min"), (199, "3 min 20 s")]
)
def test_times_are_said_as_one_says_them(seconds: float, words: str) -> None:
    assert spoken(seconds) == words


def test_times_are_kept_by_profile_and_notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apgd_teach.course.header.TIMES", tmp_path / "times.json")
    assert times() == {}
    assert "Running" not in str(header("02"))
    keep_times("fast", {"02_naive_averaging": 31.26, "01_toy_experts": 12.0})
    keep_times("fast", {"02_naive_averaging": 30.0})
    keep_times("full", {"02_naive_averaging": 150.0}, {"02_naive_averaging": 2900.4})
    keep_times("full", {}, {"01_toy_experts": 1500.0})
    fast = {"01_toy_experts": 12.0, "02_naive_averaging": 30.0}
    assert times() == {"fast": fast, "full": {"02_naive_averaging": 150.0}}
    assert "30 s in `fast`, 2 min 30 s in `full` (" in str(header("02"))
    assert peaks() == {"full": {"01_toy_experts": 1500, "02_naive_averaging": 2900}}


def test_times_of_an_accelerator_are_kept_beside_those_of_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apgd_teach.course.header.TIMES", tmp_path / "times.json")
    keep_times("fast", {"08_colour_images": 90.0})
    assert "On a GPU" not in str(header("08"))
    assert "**On a GPU**: not measured yet" in str(header("08", accelerator=True))
    monkeypatch.setattr("apgd_teach.course.header.pick_device", lambda: torch.device("mps"))
    monkeypatch.setattr("apgd_teach.course.header.describe_device", lambda device: f"a {device}")
    keep_times("full", {"08_colour_images": 61.0})
    assert times() == {"fast": {"08_colour_images": 90.0}}
    assert times(accelerator=True) == {"full": {"08_colour_images": 61.0}}
    said = str(header("08", accelerator=True))
    assert "1 min 30 s in `fast` (cpu" in said
    assert "**On a GPU**: 1 min in `full` (a mps" in said


def test_no_header_of_a_notebook_that_there_is_not() -> None:
    with pytest.raises(CourseError, match="no notebook is called '77'"):
        header("77")


SOURCES = list_sources()


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_every_lesson_shows_its_minutes_and_they_are_measured(source: Path) -> None:
    assert f'header("{source.stem[:2]}"' in source.read_text(encoding="utf-8")
    for profile in ("fast", "full"):
        assert source.stem in times()[profile]


def test_the_whole_course_keeps_its_promises() -> None:
    measured = {
        profile: {name: seconds for name, seconds in each.items() if name < "08"} for profile, each in times().items()
    }
    assert sum(measured["fast"].values()) <= 8 * 60
    assert sum(measured["full"].values()) <= 40 * 60
    assert times()["fast"]["08_colour_images"] <= 3 * 60
    asked = {source.stem[:2]: minutes_of(read_notebook(source)) for source in SOURCES if source.stem < "08"}
    assert sum(one.reading + one.solving for one in asked.values()) <= 180, "three hours"
    assert {number for number, one in asked.items() if one.short} == {"00", "02", "06"}
    running = sum(measured["fast"][source.stem] for source in SOURCES if source.stem[:2] in ("00", "02", "06"))
    assert sum(one.short for one in asked.values()) + running / 60 <= 45


def test_every_exercise_is_in_the_lesson_of_its_number() -> None:
    for name in PROBLEMS:
        (source,) = [path for path in SOURCES if path.stem[:2] == name[:2]]
        there = source.read_text(encoding="utf-8")
        assert f'problem("{name}").check(' in there
        assert f'problem("{name}").use(' in there
