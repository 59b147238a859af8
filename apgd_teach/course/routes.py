"""Routes through the course for a room: where each stops, and how many minutes that is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from apgd_teach.course.header import minutes_of, times
from apgd_teach.course.sources import find, to_notebook

__all__ = ["ROOM_MINUTES", "ROUTES", "Route", "Stop"]

ROOM_MINUTES = 6
"""For one exercise in a room, where one waits for another: half as much again as at one's own desk."""


@dataclass(frozen=True)
class Stop:
    """A notebook on a route.

    Attributes:
        exercises: the numbers of those that everybody solves; the others are shown or left for later.
        short: only the sections marked *short route*; the other cells are run unread.
    """

    exercises: tuple[str, ...] = ()
    short: bool = False


@dataclass(frozen=True)
class Route:
    """A workshop.

    A stop takes what its text takes to read or to tell, its exercises, and the run of all its cells in the profile
    `fast` with nothing trained before, measured on two cores. Minutes between the stops are the teacher's.

    Attributes:
        limit: minutes that the room has.
        stops: by the notebook's number, in order.
        between: by name, minutes that belong to no notebook.
    """

    limit: int
    stops: Mapping[str, Stop]
    between: Mapping[str, int]

    def minutes(self, folder: Path | None = None) -> dict[str, float]:
        """By stop and by what is between, minutes.

        Args:
            folder: of the sources; the course's own where None.

        Raises:
            CourseError: there is no such notebook.

        Lesson: 00.
        """
        return {**{number: _minutes(number, stop, folder) for number, stop in self.stops.items()}, **self.between}


def _minutes(number: str, stop: Stop, folder: Path | None) -> float:
    source = find(number) if folder is None else next(folder.glob(f"{number}_*.py"))
    asked = minutes_of(to_notebook(source))
    text = asked.short if stop.short else asked.reading
    return text + ROOM_MINUTES * len(stop.exercises) + times()["fast"][source.stem] / 60


_SHORT = Stop(short=True)
ROUTES = (
    Route(
        60,
        MappingProxyType({"00": _SHORT, "02": Stop(("02.1",), short=True), "06": Stop(("06.1",), short=True)}),
        MappingProxyType({"welcome": 5, "questions": 10}),
    ),
    Route(
        90,
        MappingProxyType({"00": _SHORT, "01": Stop(), "02": Stop(("02.1", "02.2")), "06": Stop(("06.1",), short=True)}),
        MappingProxyType({"welcome": 5, "break": 5, "questions": 10}),
    ),
    Route(
        180,
        MappingProxyType(
            {
                "00": _SHORT,
                "01": Stop(("01.1",)),
                "02": Stop(("02.1", "02.2")),
                "03": Stop(("03.1",)),
                "04": Stop(("04.1",)),
                "05": Stop(("05.1",)),
                "06": Stop(("06.1", "06.2")),
            }
        ),
        MappingProxyType({"welcome": 5, "breaks": 20, "questions": 10}),
    ),
)
"""By the minutes that a room has."""
