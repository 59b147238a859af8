"""A reader's moves: every input of a notebook at its ends, and back."""

from __future__ import annotations

from collections.abc import Iterator

import ipywidgets as W
import pytest

from apgd_teach.course.visit import visit
from apgd_teach.errors import CourseError


@pytest.fixture
def seen() -> Iterator[list[object]]:
    """What `watch` was told, by the inputs of one test."""
    found: list[object] = []
    yield found
    W.Widget.close_all()


def watched(widget: W.ValueWidget, seen: list[object]) -> W.ValueWidget:
    widget.observe(lambda change: seen.append(change["new"]), names="value")
    return widget


@pytest.mark.parametrize(
    ("widget", "places"),
    [
        (W.IntSlider(value=2, min=0, max=5), [0, 5, 2]),
        (W.FloatSlider(value=0.5, min=0.0, max=1.0, step=0.25), [0.0, 1.0, 0.5]),
        (W.BoundedIntText(value=5, min=0, max=5), [0, 5]),
        (W.Dropdown(options=["a", "b", "c"], value="b"), ["a", "b", "c", "b"]),
        (W.Dropdown(options=[("one", 1), ("two", 2)], value=1), [2, 1]),
        (W.SelectionSlider(options=[1, 10, 100], value=1), [10, 100, 1]),
        (W.RadioButtons(options=["x", "y"], value=None), ["x", "y", None]),
        (W.Checkbox(value=True), [False, True]),
        (W.FloatLogSlider(value=10, base=10, min=-1, max=2), [0.1, 100.0, 10.0]),
        (W.IntRangeSlider(value=(1, 2), min=0, max=5), [(0, 0), (0, 5), (5, 5), (1, 2)]),
        (
            W.SelectionRangeSlider(options=["a", "b", "c"], index=(0, 1)),
            [("a", "a"), ("a", "c"), ("c", "c"), ("a", "b")],
        ),
        (W.SelectMultiple(options=["a", "b"], index=(1,)), [(), ("a", "b"), ("b",)]),
        (W.Combobox(options=["a", "b"], value="b"), ["a", "b"]),
    ],
    ids=lambda one: type(one).__name__ if isinstance(one, W.Widget) else "",
)
def test_an_input_visits_its_ends_or_options_and_stands_where_it_stood(
    widget: W.ValueWidget, places: list[object], seen: list[object]
) -> None:
    before = widget.value
    watched(widget, seen)
    visit()
    assert seen == places
    assert widget.value == before


def test_what_shows_and_takes_nothing_is_left_alone(seen: list[object]) -> None:
    for widget in (W.HTML("words"), W.Text("mine")):
        watched(widget, seen)
    visit()
    assert seen == []


def test_a_callback_that_fails_is_told_with_its_widget_and_place(seen: list[object]) -> None:
    def fragile(change: dict[str, object]) -> None:
        if change["new"] == "b":
            raise ValueError("no b, please")

    one = W.Dropdown(options=["a", "b"], value="a", description="letter")
    one.observe(fragile, names="value")
    with pytest.raises(CourseError, match=r"the widget 'letter' fails when it is put at option 2 of 2 \(ValueError"):
        visit()
