"""The routes for a room: nobody is sent where what is needed was not taught, and the minutes add up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apgd_teach.course.header import SHORT
from apgd_teach.course.routes import ROOM_MINUTES, ROUTES, Route, Stop
from apgd_teach.course.sources import find, read_notebook

GUIDE = (Path(__file__).parents[2] / "docs" / "instructor.md").read_text(encoding="utf-8")
each_route = pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.limit} minutes")


def before(number: str, short: bool) -> set[str]:
    """The notebooks that one says come before it; on the short route, by its own sentence."""
    text = next(cell.source for cell in read_notebook(find(number)).cells if "*Before this:*" in cell.source)
    paragraph = text.partition("*Before this:*")[2].partition("\n\n")[0]
    usual, _, shorter = paragraph.partition("On the short route you come from")
    return set(re.findall(r"\((\d\d)_\w+\.ipynb\)", shorter if short and shorter else usual))


@each_route
def test_what_a_stop_needs_comes_before_it(route: Route) -> None:
    seen: set[str] = set()
    for number, stop in route.stops.items():
        # The short sections of 02 are written for who comes from 00.
        needed = {"00"} if (number, stop.short) == ("02", True) else before(number, stop.short)
        assert needed <= seen, number
        seen.add(number)


@each_route
def test_its_minutes_fit_and_are_used(route: Route) -> None:
    minutes = route.minutes()
    assert list(minutes) == [*route.stops, *route.between]
    assert 0.9 * route.limit <= sum(minutes.values()) <= route.limit


def test_a_stop_is_its_text_its_exercises_and_its_run() -> None:
    def of(stop: Stop) -> float:
        return Route(60, {"02": stop}, {}).minutes()["02"]

    assert of(Stop(("02.1",))) - of(Stop()) == pytest.approx(ROOM_MINUTES)
    assert 0 < of(Stop(short=True)) < of(Stop())


@each_route
def test_exercises_are_in_the_parts_that_are_read(route: Route) -> None:
    for number, stop in route.stops.items():
        section = ""
        found = set()
        for cell in read_notebook(find(number)).cells:
            heading = re.findall(r"(?m)^## (.+)$", cell.source) if cell.cell_type == "markdown" else []
            section = heading[-1] if heading else section
            if SHORT in section or not stop.short:
                found |= set(re.findall(r'problem\("([\d.]+)"\)\.check', cell.source))
        assert set(stop.exercises) <= found, number


@each_route
def test_the_guide_has_a_table_of_it(route: Route) -> None:
    table = GUIDE.partition(f"### {route.limit} minutes")[2].partition("###")[0]
    places = re.findall(rf"<!-- =route\.{route.limit}\.(\w+):", table)
    assert sorted(places) == sorted([*route.stops, *route.between, "total"])
    assert [place for place in places if place in route.stops] == list(route.stops)
    for number, stop in route.stops.items():
        row = next(line for line in table.splitlines() if f"route.{route.limit}.{number}:" in line)
        assert re.findall(r"\d\d\.\d", row.partition("<!--")[0]) == list(stop.exercises)
        assert ("short route" in row) == stop.short
