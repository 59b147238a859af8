"""Exercises: declared once, checked with the usual mistakes in mind. `problem("02.1").check(mine)`."""

from importlib import import_module

from apgd_teach.errors import CourseError
from apgd_teach.lessons import progress as _kept
from apgd_teach.lessons.engine import Outcome, Problem
from apgd_teach.tables import Table

__all__ = ["PROBLEMS", "Outcome", "Problem", "problem", "progress"]

_LESSONS = [import_module(f"apgd_teach.lessons.lesson_{number:02}") for number in range(11)]
PROBLEMS: dict[str, Problem] = {one.name: one for lesson in _LESSONS for one in lesson.PROBLEMS}
"""Every exercise of the course, by its name."""


def problem(name: str) -> Problem:
    """An exercise by its name, "02.1".

    Raises:
        CourseError: there is none of that name.
    """
    if name not in PROBLEMS:
        raise CourseError(f"there is no exercise '{name}'; there are: {', '.join(PROBLEMS)}.")
    return PROBLEMS[name]


def progress() -> Table:
    """What has been solved on this machine: a row per exercise."""
    return _kept.progress(list(PROBLEMS))
