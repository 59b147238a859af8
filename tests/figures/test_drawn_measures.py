"""What holds for every figure of what a merge was measured to do."""

from __future__ import annotations

import hashlib
import importlib.util
import itertools
import re
import subprocess
import sys
from pathlib import Path as File

import matplotlib as mpl
import pytest
from matplotlib import pyplot
from matplotlib.text import Annotation

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import DRAWN_MEASURES

sys.path.pop(0)

from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.lint import look_over
from apgd_teach.figures.style import png

# The measures of text are those of the other figures' tests.
_spec = importlib.util.spec_from_file_location("checks_of_figures", File(__file__).with_name("test_figures.py"))
checks = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(checks)


@pytest.fixture(params=list(DRAWN_MEASURES))
def drawing(request: pytest.FixtureRequest) -> Drawing:
    return DRAWN_MEASURES[request.param]()


def test_a_drawing_has_words_and_numbers_and_leaves_nothing_open_or_changed(drawing) -> None:
    before = dict(mpl.rcParams)
    png(drawing.figure)
    assert pyplot.get_fignums() == []
    assert dict(mpl.rcParams) == before
    assert drawing.words.endswith(".")
    assert "  " not in drawing.words
    assert drawing.numbers
    assert all("(" in name and name.endswith(")") for name in drawing.numbers)
    assert all(isinstance(value, int | float) for value in drawing.numbers.values())


def test_nothing_in_it_breaks_the_rules_of_the_course(drawing) -> None:
    assert look_over(drawing.figure) == []


def test_words_and_labels_write_minus_as_minus(drawing) -> None:
    shown = [drawing.words, *(one.get_text() for one in checks.texts(drawing.figure))]
    assert not [text for text in shown for sign in (" -0", " -1", "(-", "nan") if sign in text]


def test_a_drawing_is_640_to_900_pixels_wide(drawing) -> None:
    assert 640 <= 100 * drawing.figure.get_size_inches()[0] <= 900


def test_nothing_is_written_smaller_than_eight_points(drawing) -> None:
    found = checks.texts(drawing.figure)
    assert len(found) > 1
    assert min(one.get_fontsize() for one in found) >= 8


def test_no_text_lies_on_another_or_leaves_the_canvas(drawing) -> None:
    found = checks.texts(drawing.figure)
    edge = drawing.figure.bbox
    for one in found:
        box = one.get_window_extent()
        inside = box.x0 > -0.5 and box.y0 > -0.5 and box.x1 < edge.x1 + 0.5 and box.y1 < edge.y1 + 0.5
        assert inside, f"{one.get_text()!r} leaves the canvas"
    for one, other in itertools.combinations(found, 2):
        if sum(isinstance(each, Annotation) for each in (one, other)) != 1:
            assert not checks.overlap(one, other), f"{one.get_text()!r} lies on {other.get_text()!r}"


def test_every_panel_has_a_title_and_says_what_its_axes_count(drawing) -> None:
    for axes in drawing.figure.axes:
        if axes.get_label() == "<colorbar>":
            assert axes.get_ylabel()
            continue
        # A second scale stands under the title of the first.
        assert axes.get_title() or axes.get_xlabel() == "recovered (%)"
        named = [axes.get_xlabel(), axes.get_ylabel(), *(one.get_text() for one in axes.get_xticklabels())]
        assert drawing.photo or any(re.search("[a-z]{3}", part) for part in named)


def test_the_readers_own_settings_do_not_show() -> None:
    own = {"savefig.dpi": 40, "savefig.bbox": "tight", "axes.titleweight": "bold", "image.cmap": "jet"}
    for drawing in DRAWN_MEASURES.values():
        plain = png(drawing().figure)
        with pyplot.style.context("dark_background"), mpl.rc_context(own):
            assert png(drawing().figure) == plain


def test_another_process_draws_the_same_bytes() -> None:
    program = [sys.executable, str(File(__file__).with_name("drawn_measures.py"))]
    said = subprocess.run(program, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == [
        f"{name} {hashlib.sha256(png(drawing().figure)).hexdigest()}" for name, drawing in DRAWN_MEASURES.items()
    ]
