"""Exercises that know the usual mistakes: a problem is declared once, and says of an answer what is wrong with it."""

from __future__ import annotations

import copy
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from apgd_teach.lessons.progress import remember

__all__ = ["CORRECT", "INCORRECT", "NOT_ATTEMPTED", "UNCHECKED", "Outcome", "Problem", "Wrong", "same"]

CORRECT, INCORRECT, NOT_ATTEMPTED, UNCHECKED = "correct", "incorrect", "not attempted", "cannot be checked"
LIMIT_S = 20.0
"""Seconds that an answer may take for one case: the reference takes milliseconds."""

_MARKS = {CORRECT: "✓", INCORRECT: "✗", NOT_ATTEMPTED: "…", UNCHECKED: "?"}


@dataclass(frozen=True)
class Outcome:
    """What a check, a hint or a solution says; shown as Markdown in a notebook and as plain text elsewhere.

    Attributes:
        state: `CORRECT`, `INCORRECT`, `NOT_ATTEMPTED`, `UNCHECKED`, or "" for a hint or a solution.
        text: in plain sentences; code between backticks.
    """

    state: str
    text: str

    def __str__(self) -> str:
        head = f"{_MARKS[self.state]} {self.state}: " if self.state else ""
        return head + self.text

    __repr__ = __str__

    def _repr_markdown_(self) -> str:
        head = f"{_MARKS[self.state]} **{self.state}.** " if self.state else ""
        return head + self.text


@dataclass(frozen=True)
class Wrong:
    """A wrong answer that people give.

    Attributes:
        answer: it, as a function of the same arguments.
        message: why it is wrong, and where to look; it does not give the solution away.
    """

    answer: Callable[..., object]
    message: str


@dataclass(frozen=True, repr=False)
class Problem:
    """An exercise.

    Attributes:
        name: "02.1": the lesson and the number in it.
        question: what is asked for, in Markdown.
        stub: the code that a learner starts from, with `...` where their own goes.
        code: the solution, which defines the same function whole. It is also what answers are held against.
        cases: arguments of the function, each case by the parameters' names; chosen so that one mistake shows.
        wrong: answers that people give, and what to say to each.
        hints: from the gentlest to the plainest.
        equal: whether an answer is as good as the reference's for a case: (found, expected, arguments) → bool.
    """

    name: str
    question: str
    stub: str
    code: str
    cases: Sequence[Mapping[str, object]]
    wrong: Sequence[Wrong]
    hints: Sequence[str]
    equal: Callable[[object, object, Mapping[str, object]], bool] | None = None

    @property
    def function(self) -> str:
        """The name of the function that is asked for."""
        return self.stub.partition("def ")[2].partition("(")[0].strip()

    @property
    def reference(self) -> Callable[..., object]:
        """The solution, as a function."""
        return defined(self.code, self.function)

    def check(self, answer: object) -> Outcome:
        """Say whether an answer is right, and if not, what is wrong with it. A right one is remembered (`progress`).

        The answer is given copies of the cases; what it raises is caught, and it has `LIMIT_S` seconds for each case.

        Args:
            answer: the learner's function.
        """
        outcome = self._judge(answer)
        if outcome.state != NOT_ATTEMPTED:
            remember(self.name, outcome.state == CORRECT)
        return outcome

    def hint(self, number: int = 1) -> Outcome:
        """The first, second, … hint."""
        if not 1 <= number <= len(self.hints):
            return Outcome("", f"There are {len(self.hints)} hints: hint(1) to hint({len(self.hints)}).")
        more = f" (One more: hint({number + 1}).)" if number < len(self.hints) else ""
        return Outcome("", self.hints[number - 1] + more)

    def solution(self) -> Outcome:
        """The solution, as code."""
        return Outcome("", f"```python\n{self.code.strip()}\n```")

    def use(self, answer: object) -> Callable[..., Any]:
        """The learner's function where it is right, the course's own where it is not: the lesson goes on with it.

        In the second case a sentence says so, where a notebook shows it. No attempt is counted.

        Args:
            answer: the learner's function, or what stands in its place.
        """
        if callable(answer) and self._judge(answer).state == CORRECT:
            return answer
        from IPython.display import display

        display(
            Outcome("", f"Exercise {self.name} is not solved yet: the lesson goes on with its own `{self.function}`.")
        )
        return self.reference

    def _repr_markdown_(self) -> str:
        return f"**Exercise {self.name}.** {self.question}"

    def __str__(self) -> str:
        return f"Exercise {self.name}. {self.question}"

    # Not the dataclass's, which would hold the solution.
    __repr__ = __str__

    # Judging

    def _judge(self, answer: object) -> Outcome:
        if answer is None or answer is ...:
            return Outcome(NOT_ATTEMPTED, f"write `{self.function}`, then check it.")
        if not callable(answer):
            return Outcome(
                UNCHECKED,
                f"give the function itself, `check({self.function})`, not {_kind(answer)}: without brackets after it.",
            )
        found = []
        for arguments in self.cases:
            given = copy.deepcopy(dict(arguments))
            try:
                with _limited(LIMIT_S):
                    result = answer(**given)
            except _TooLongError:
                return Outcome(UNCHECKED, f"it took longer than {LIMIT_S:g} s; is there a loop that does not end?")
            except Exception as error:
                # PyTorch raises this one as well, for sums that it cannot do, and says so.
                if isinstance(error, NotImplementedError) and not str(error):
                    return Outcome(NOT_ATTEMPTED, f"`{self.function}` is still to be written.")
                known = self._known_by(error, arguments)
                return Outcome(INCORRECT, known) if known else Outcome(UNCHECKED, _raised(error, answer))
            if result is None or result is ...:
                return Outcome(NOT_ATTEMPTED, f"`{self.function}` returns nothing yet; end it with `return`.")
            if not same(given, dict(arguments)):
                return Outcome(
                    INCORRECT,
                    "it changed what it was given: whoever calls it still needs the old numbers. Make new tensors, "
                    "lists and dicts (`a + b`, `sorted(a)`, `dict(d)`) in place of writing into old ones (`a += b`, "
                    "`a.add_(b)`, `a.sort()`, `d[key] = …`).",
                )
            found.append(result)
        return self._held_against(found)

    def _held_against(self, found: Sequence[object]) -> Outcome:
        expected = [self.reference(**copy.deepcopy(dict(arguments))) for arguments in self.cases]
        if all(map(self._equal, found, expected, self.cases)):
            return Outcome(CORRECT, f"`{self.function}` does what it should on {len(self.cases)} cases.")
        for one in self.wrong:
            try:
                theirs = [one.answer(**copy.deepcopy(dict(arguments))) for arguments in self.cases]
            except Exception:
                # A mistake that breaks was found where it broke.
                continue
            # As the solution is compared: another basis of the wrong subspace is the same mistake.
            if all(same(a, b) or self._equal(a, b, c) for a, b, c in zip(found, theirs, self.cases, strict=True)):
                return Outcome(INCORRECT, one.message)
        for arguments, here, there in zip(self.cases, found, expected, strict=True):
            if not self._equal(here, there, arguments):
                return Outcome(INCORRECT, f"{_apart(there, here)}, for {_listed(arguments)}.")
        raise AssertionError("one of the cases was not equal")

    def _known_by(self, error: Exception, arguments: Mapping[str, object]) -> str:
        """The message of the known mistake that breaks in the same words, or ""."""
        for one in self.wrong:
            try:
                one.answer(**copy.deepcopy(dict(arguments)))
            except Exception as theirs:
                if (type(theirs), _reason(theirs)) == (type(error), _reason(error)):
                    return one.message
        return ""

    def _equal(self, found: object, expected: object, arguments: Mapping[str, object]) -> bool:
        try:
            return same(found, expected) if self.equal is None else self.equal(found, expected, arguments)
        except Exception:
            # What it is cannot even be compared.
            return False


def defined(code: str, name: str) -> Callable[..., Any]:
    """The function that a piece of code defines."""
    room: dict[str, Any] = {}
    exec(compile(code, f"<solution of {name}>", "exec"), room)
    made: Callable[..., Any] = room[name]
    return made


def same(one: object, other: object, tolerance: float = 1e-4) -> bool:
    """Whether two answers are the same: numbers and tensors up to rounding, of the same shape; containers part by part.

    A number and a tensor of one number, of whatever shape, are the same; a list and a tuple are.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return set(one) == set(other) and all(same(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(same(a, b, tolerance) for a, b in zip(one, other, strict=True))
    if isinstance(one, str) and isinstance(other, str):
        return str(one) == str(other)
    if isinstance(one, str | bool) or isinstance(other, str | bool):
        return type(one) is type(other) and one == other
    a, b = _number(one), _number(other)
    if a is None or b is None:
        return False
    if a.numel() == b.numel() == 1 and not isinstance(one, list | tuple) and not isinstance(other, list | tuple):
        a, b = a.reshape(()), b.reshape(())
    if a.shape != b.shape:
        return False
    finite = b[torch.isfinite(b)].abs()
    scale = float(finite.max()) if finite.numel() else 0.0
    return bool(torch.allclose(a, b, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _number(value: object) -> Tensor | None:
    try:
        tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return tensor.detach().to(torch.float64) if not tensor.is_complex() else None


class _TooLongError(Exception):
    pass


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    """Raise after a time, where a signal can: not on Windows, nor beside the main thread."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _raised(error: Exception, answer: object) -> str:
    """What an answer raised, with the learner's own line: the last one that lies in their code."""
    own = getattr(getattr(answer, "__code__", None), "co_filename", "")
    lines = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == own]
    where = f" in line {lines[-1].lineno}" + (f", `{lines[-1].line}`" if lines[-1].line else "") if lines else ""
    reason = _reason(error)
    return f"it raised {type(error).__name__}{where}{': ' + reason if reason else ''}."


def _reason(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _apart(expected: object, found: object) -> str:
    """What was expected and what came, where they differ: the first such place of a container or a tensor."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        missing = [key for key in expected if key not in found]
        extra = [key for key in found if key not in expected]
        if missing or extra:
            said = [f"it lacks {', '.join(map(str, missing))}"] * bool(missing)
            said += [f"it has {', '.join(map(str, extra))} too many"] * bool(extra)
            return f"expected {_shown(expected)} and found {_shown(found)}: {' and '.join(said)}"
        place = next((key for key in expected if not same(found[key], expected[key])), None)
        return f"at {place}: {_apart(expected[place], found[place])}" if place is not None else _both(expected, found)
    if isinstance(expected, list | tuple) and isinstance(found, list | tuple) and len(expected) == len(found):
        spot = next((i for i, pair in enumerate(zip(found, expected, strict=True)) if not same(*pair)), None)
        if spot is not None and len(expected) > 1:
            return f"number {spot + 1} of the {len(expected)}: {_apart(expected[spot], found[spot])}"
    return _both(expected, found)


def _both(expected: object, found: object) -> str:
    there, here = _shown(expected), _shown(found)
    if there != here:
        return f"expected {there} and found {here}"
    a, b = _number(expected), _number(found)
    if a is None or b is None or a.shape != b.shape:
        return f"expected {there} and found what looks like it in another form"
    off = float((a - b).abs().max())
    return f"expected {there} and found nearly that, off by up to {off:.2g}"


def _shown(value: object) -> str:
    if isinstance(value, Mapping):
        parts = [f"{key}: {_shown(one)}" for key, one in list(value.items())[:3]]
        return "{" + ", ".join(parts) + (", …" if len(value) > 3 else "") + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_shown, value[:4])) + (", …" if len(value) > 4 else "") + "]"
    if isinstance(value, Tensor):
        shape = " × ".join(map(str, value.shape))
        if value.numel() == 1:
            return f"{float(value):.4g}"
        first = ", ".join(f"{one + 0.0:.4g}" for one in value.detach().flatten()[:4].tolist())
        return f"a tensor {shape} that begins {first}"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)


def _listed(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{name} = {_shown(value)}" for name, value in arguments.items())
