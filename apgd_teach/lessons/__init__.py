"""Exercises: declared once, checked with the usual mistakes in mind. `problem("02.1").check(mine)`."""

from apgd_teach.errors import CourseError
from apgd_teach.lessons import lesson_00, lesson_01, lesson_02, lesson_03, lesson_04, lesson_05, lesson_06, lesson_07
from apgd_teach.lessons import progress as _kept
from apgd_teach.lessons.engine import Outcome, Problem
from apgd_teach.tables import Table

__all__ = ["PROBLEMS", "Outcome", "Problem", "problem", "progress"]

_LESSONS = (lesson_00, lesson_01, lesson_02, lesson_03, lesson_04, lesson_05, lesson_06, lesson_07)
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
