"""The frame of a study of one's own: what is changed, what is expected, what came, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass

from apgd_teach.errors import CourseError
from apgd_teach.evaluate import Difference
from apgd_teach.tables import Table

__all__ = ["FAILED", "HELD", "OPEN", "Prediction", "Study", "rubric"]

HELD, FAILED, OPEN = "it held", "it failed", "open"


@dataclass(frozen=True)
class Prediction:
    """What somebody expects, said before anything is measured.

    Attributes:
        low, high: between these two the difference in points of mean accuracy will lie.
        because: the reason, in a sentence that can turn out to be wrong.

    Raises:
        CourseError: the range is empty, without an end, or no reason is given.

    Lesson: 10.
    """

    low: float
    high: float
    because: str

    def __post_init__(self) -> None:
        for end in (self.low, self.high):
            if isinstance(end, bool) or not isinstance(end, int | float) or not math.isfinite(end):
                raise CourseError(f"a prediction goes from a number to a number of points, and {end!r} is none.")
        if self.low >= self.high:
            raise CourseError(
                f"the prediction goes from {self.low:g} to {self.high:g} points; give the lower end first, and a range "
                "that has room."
            )
        if not self.because.strip():
            raise CourseError("a prediction needs a reason; say in `because` why it should come so.")


@dataclass(frozen=True)
class Study:
    """One change, from what was expected of it to why it came as it did.

    Attributes:
        question: in a sentence.
        change: what is different from the reference, and that nothing else is.
        prediction: made beforehand.
        found: the difference that was measured, with its interval.
        explanation: why, and which measurement speaks for it; empty as long as nobody has one.

    Lesson: 10.
    """

    question: str
    change: str
    prediction: Prediction
    found: Difference
    explanation: str = ""

    @property
    def outcome(self) -> str:
        """`HELD` where the whole interval lies in the predicted range, `FAILED` where it lies outside, else `OPEN`."""
        low, high = self.found.points - self.found.margin, self.found.points + self.found.margin
        if math.isnan(self.found.margin):
            return OPEN
        if self.prediction.low <= low and high <= self.prediction.high:
            return HELD
        return FAILED if high < self.prediction.low or low > self.prediction.high else OPEN

    def table(self) -> Table:
        """The form, filled in.

        Lesson: 10.
        """
        expected = f"{self.prediction.low:g} to {self.prediction.high:g} points, because {self.prediction.because}"
        words = {
            HELD: "the whole interval lies in the predicted range",
            FAILED: "the whole interval lies outside of it",
            OPEN: "the interval reaches over an end of the predicted range: more seeds would tell",
        }
        return Table(
            ("part", "this study"),
            [
                ("question", self.question),
                ("change", self.change),
                ("prediction", expected.replace("-", "−", 1) if self.prediction.low < 0 else expected),
                ("measurement", f"{self.found.told}"),
                ("outcome", f"{self.outcome}: {words[self.outcome]}"),
                ("explanation", self.explanation or "still to be written"),
            ],
            caption="A study on one page",
        )


def rubric() -> Table:
    """What a study is judged by: a row for each part, with what earns 0, 1 and 2 points.

    Lesson: 10.
    """
    return Table(
        ("part", "0 points", "1 point", "2 points"),
        [
            ("question", "none", "a topic", "one sentence that a measurement can answer with no"),
            ("change", "several things at once", "one thing", "one thing, and the reference differs in nothing else"),
            ("prediction", "after the measurement", "better or worse", "a range and a reason, before anything was run"),
            ("choices", "made on test images", "made on validation images", "reported on seeds that chose nothing"),
            (
                "measurement",
                "one run",
                "several seeds",
                "paired by seed, with intervals, the worst task beside the mean",
            ),
            ("explanation", "none", "a story", "a second measurement that could have spoken against it"),
            ("honesty", "only what won", "what lost is named", "how many ideas were tried, and what stays open"),
        ],
        caption="The rubric: 14 points",
    )
