"""What every figure of how a layer is solved has to be, whatever it shows."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from matplotlib.text import Annotation

from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import png


def load(name: str) -> ModuleType:
    """A module of this folder, which is no package."""
    spec = importlib.util.spec_from_file_location(f"figures_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


checks = load("test_figures")
drawn = load("drawn_solver")


@pytest.fixture(params=list(drawn.DRAWN_SOLVER))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.mark.parametrize(
    "check",
    [
        checks.test_a_figure_is_returned_and_nothing_is_left_open_or_changed,
        checks.test_the_picture_is_one_that_can_be_read,
        checks.test_the_readers_own_settings_do_not_show,
        checks.test_nothing_is_written_smaller_than_eight_points,
        checks.test_no_text_lies_on_another_or_leaves_the_canvas,
    ],
    ids=lambda one: one.__name__.removeprefix("test_"),
)
def test_it_passes_what_all_figures_pass(name: str, check) -> None:
    check(lambda: drawn.drawing(name).figure)


def test_names_lie_on_no_number_of_a_contour_and_no_tick(name: str) -> None:
    found = checks.texts(drawn.drawing(name).figure)
    for one in found:
        for other in found:
            if isinstance(one, Annotation) and not isinstance(other, Annotation):
                assert not checks.overlap(one, other), f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_every_panel_has_a_title_and_says_what_its_axes_are(name: str) -> None:
    for axes in drawn.drawing(name).figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
        else:
            assert axes.get_title()
            assert axes.get_xlabel()


def test_it_has_words_and_the_same_numbers_under_a_slider(name: str) -> None:
    made = drawn.drawing(name)
    assert type(made) is Drawing
    assert made.words.endswith(".")
    assert "nan" not in made.words
    draw = drawn.DRAWN_SOLVER[name][1]
    alike = [
        one for one, what in drawn.DRAWN_SOLVER.items() if what[1] is draw and what[2] == drawn.DRAWN_SOLVER[name][2]
    ]
    assert all(list(drawn.drawing(one).numbers) == list(made.numbers) for one in alike)


def test_another_process_draws_the_same_bytes() -> None:
    program = [sys.executable, str(Path(__file__).with_name("drawn_solver.py"))]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [f"{one} {hashlib.sha256(png(drawn.drawing(one).figure)).hexdigest()}" for one in drawn.DRAWN_SOLVER]
