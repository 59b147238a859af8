"""Sentences with measured numbers in them: said by the run that measured, kept in step in the documentation.

In a notebook, `say` shows a text; where a sentence that it rests on is not true, a run of the course fails, and a
reader who has changed the seed or a setting is told. What it is told to record
(`facts`) lies in the built notebook, and README and docs take it from there: between `<!-- =02.hot.average:.1f -->` and
`<!-- = -->` stands that fact in that format, and `<!-- holds 02.hot.average < 02.hot.base -->` is true as long as the
sentence beside it may stand.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from apgd_teach.course.profiles import VISIT
from apgd_teach.errors import CourseError

__all__ = ["MIME", "Said", "UntrueError", "facts_of", "fill", "say", "stale"]

MIME = "application/vnd.apgd-teach.facts+json"
"""The MIME type under which a notebook records what it measured."""

_SPAN = re.compile(r"<!-- =(?P<name>[\w.-]+)(?::(?P<format>[^ >]*))? -->(?P<shown>[^<]*)<!-- = -->")
_HOLDS = re.compile(r"<!-- holds (?P<left>\S+) (?P<sign>[<>]) (?P<right>\S+) -->")


class UntrueError(CourseError):
    """A sentence of the course is not true in this run."""


@dataclass(frozen=True)
class Said:
    """A text with the run's own numbers in it; a notebook shows it as Markdown.

    Attributes:
        text: Markdown.
        facts: what other texts may quote, by name.
    """

    text: str
    facts: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.text

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        bundle: dict[str, object] = {"text/markdown": self.text, "text/plain": self.text}
        if self.facts:
            bundle[MIME] = dict(self.facts)
        return bundle


def say(text: str, *, holds: Mapping[str, object] | None = None, facts: Mapping[str, float] | None = None) -> Said:
    """A text of a notebook that states what the run has measured.

    Args:
        text: Markdown, with the numbers in it.
        holds: sentences that the text, or another one in the notebook, rests on, each with whether it is true here.
        facts: numbers that README and docs quote, by name ("02.hot.average").

    Raises:
        UntrueError: one of the sentences is not true in this run, and the runner runs it: it names them. Whoever runs
            a notebook by hand gets the text, with that said in front of it.

    Lesson: every notebook.
    """
    untrue = "; ".join(sentence for sentence, true in (holds or {}).items() if not bool(true))
    if untrue and os.environ.get(VISIT):
        raise UntrueError(f"not true in this run: {untrue}. Change what the notebook says, or find out why it came so.")
    if untrue:
        text = (
            f"> **Not true in this run**, though it was in the published one: *{untrue}*. Texts of this notebook may "
            f"rest on it. If you changed nothing, report it.\n\n{text}"
        )
    return Said(text, {name: float(value) for name, value in (facts or {}).items()})


def facts_of(notebooks: Iterable[Path]) -> dict[str, float]:
    """Everything that run notebooks have recorded.

    Args:
        notebooks: `.ipynb` files.

    Raises:
        CourseError: two cells record the same name.
    """
    found: dict[str, float] = {}
    for path in notebooks:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                recorded = output.get("data", {}).get(MIME, {})
                twice = sorted(set(recorded) & set(found))
                if twice:
                    raise CourseError(f"{path.name} records '{twice[0]}', which another cell does too: rename one.")
                found.update(recorded)
    return found


def fill(text: str, facts: Mapping[str, float]) -> str:
    """The text with every quoted fact as it is now; a name that is not known stays as it is.

    Args:
        text: of a Markdown file.
        facts: by name.
    """

    def write(span: re.Match[str]) -> str:
        name, how = span["name"], span["format"]
        if name not in facts:
            return span[0]
        shown = format(facts[name], how or "g").replace("-", "−")
        return f"<!-- ={name}{':' + how if how else ''} -->{shown}<!-- = -->"

    return _SPAN.sub(write, text)


def stale(text: str, facts: Mapping[str, float], name: str) -> list[str]:
    """A sentence for every quoted fact that is another one now, and every order that has turned round.

    A number is as good as new where it is off by one in the last decimal that is shown, since runs on two machines
    differ by as much.

    Args:
        text: of a Markdown file.
        facts: by name.
        name: what to call the file.
    """
    problems = []
    for span in _SPAN.finditer(text):
        fact, shown = span["name"], span["shown"]
        if fact not in facts:
            problems.append(f"{name} quotes '{fact}', which no notebook records: take it out, or record it (say).")
            continue
        try:
            off = abs(float(shown.replace("−", "-")) - facts[fact])
        except ValueError:
            problems.append(f"{name} says '{shown}' where '{fact}' belongs: build again.")
            continue
        decimals = len(shown.partition(".")[2])
        if off > 1.01 * 10.0**-decimals:
            problems.append(f"{name} says {shown} for '{fact}', which is {facts[fact]:g} now: build again.")
    for order in _HOLDS.finditer(text):
        left, right = (facts.get(order[side], _number(order[side])) for side in ("left", "right"))
        if left is None or right is None:
            problems.append(f"{name}: '{order[0]}' names what no notebook records.")
        elif not (left < right if order["sign"] == "<" else left > right):
            problems.append(
                f"{name}: '{order[0]}' is not true any more ({left:g} and {right:g}): write the sentence anew."
            )
    return problems


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
