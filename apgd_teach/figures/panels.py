"""A figure with three faces: sliders where a kernel runs, pictures where none does, and a table in words."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import sys
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, ClassVar

import anywidget
from IPython import get_ipython
from traitlets import Bytes, Dict, List, Unicode

from apgd_teach.course.profiles import VISIT
from apgd_teach.errors import FigureError
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.faces import Frame, frame, multiples, table
from apgd_teach.figures.style import DRAWING
from apgd_teach.tables import Table

__all__ = ["Panel", "Slider", "panel"]

AHEAD = 240
"""Pictures of one panel that are drawn ahead, at most: the nearest to where the sliders rest."""

MOST = 600
"""Pictures of one panel that are kept, here as in the browser."""

_PAUSE_S = 0.02
_AFTER_S = 0.25
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Slider:
    """What a reader can change about a figure.

    Attributes:
        name: what it is, in words and with its symbol: "merging coefficient λ". Screen readers read it out.
        values: what it can stand at, two or more different ones in their order. Texts make a list to choose from.
        start: where it stands first; the first value when None.
        unit: shown after the value: " %".

    Raises:
        FigureError: there is nothing to choose from, a value is there twice, or `start` is none of them.
    """

    name: str
    values: Sequence[object]
    start: object = None
    unit: str = ""
    labels: tuple[str, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name.strip():
            raise FigureError("a slider has no name, and a screen reader would have nothing to say; give it one.")
        values = [_plain(value, self.name) for value in self.values]
        if len(values) < 2:
            raise FigureError(f"the slider '{self.name}' has {len(values)} values; give it two or more.")
        labels = [f"{_text(value)}{self.unit}" for value in values]
        if len(set(labels)) < len(labels):
            labels = [f"{value}{self.unit}".replace("-", "−") for value in values]
        twice = sorted({label for label, one in zip(labels, values, strict=True) if values.count(one) > 1})
        if twice:
            raise FigureError(
                f"the slider '{self.name}' has {twice[0]} more than once; each must be told from the others."
            )
        object.__setattr__(self, "values", tuple(values))
        object.__setattr__(self, "labels", tuple(labels))
        _ = self.first  # refuses a start that is none

    @property
    def chosen_from(self) -> bool:
        """Whether it is a list to choose from, and no range: its values are texts, or yes and no."""
        return any(isinstance(value, str | bool) for value in self.values)

    @property
    def first(self) -> int:
        """Place of `start` among the values."""
        return 0 if self.start is None else self.place(self.start)

    def place(self, value: object) -> int:
        """Place of a value; the nearest number counts where none is equal to the last digit.

        Raises:
            FigureError: it is none of the values.
        """
        value = _plain(value, self.name)
        numbers = [one for one in self.values if isinstance(one, int | float)]
        near = 1e-9 * (max(numbers) - min(numbers)) if numbers else 0.0
        for place, one in enumerate(self.values):
            if type(one) is type(value) and one == value:
                return place
            if self._number(one) and self._number(value) and abs(one - value) <= near:  # type: ignore[operator]
                return place
        raise FigureError(f"{_text(value)} is no value of the slider '{self.name}'; it has: {', '.join(self.labels)}.")

    @staticmethod
    def _number(value: object) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object, name: str) -> object:
    """A value that can be told from others and written down: a number of Python's own, a text, yes or no."""
    item = getattr(value, "item", None)
    if callable(item) and getattr(value, "ndim", None) == 0:
        value = item()
    if isinstance(value, float) and not math.isfinite(value):
        raise FigureError(f"the slider '{name}' has the value {value}, which is no place on it; leave it out.")
    if not isinstance(value, int | float | str):
        raise FigureError(
            f"the slider '{name}' has a {type(value).__name__} among its values; give numbers, or texts that stand for "
            "what you mean."
        )
    return value


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}".replace("-", "−")
    return str(value).replace("-", "−") if isinstance(value, int) else str(value)


class Panel(anywidget.AnyWidget):
    """The widget that `panel` makes.

    The browser keeps the pictures that it was sent and moves between them by itself. The kernel draws what is asked
    for, and, while it has nothing else to do, what lies nearest to where the sliders stand: one picture of all panels
    at a time, so that a question waits for one at most. It draws nothing ahead where no browser looks on.

    JupyterLab's messages may come in a thread of their own (a subshell) while a cell runs in another. Pictures that are
    there already are sent even then; nothing is drawn until the cell has ended, so that what the cell draws, and what
    it sets in matplotlib, is its own. The event loop that heard a browser last draws ahead.
    """

    _esm = (_HERE / "panels.js").read_text(encoding="utf-8")
    _css = (_HERE / "panels.css").read_text(encoding="utf-8")
    title = Unicode().tag(sync=True)
    controls = List(Dict()).tag(sync=True)
    chosen: List[int] = List().tag(sync=True)
    first = Dict().tag(sync=True)
    picture = Bytes().tag(sync=True)

    _waiting: ClassVar[list[Panel]] = []
    """Panels with something left to draw ahead: in the order in which they came, the one that was moved last in front.
    """
    _ticket: ClassVar[object] = None
    """Of the one turn that is planned, in whichever event loop; every other turn is void."""
    _not_before: ClassVar[float] = 0.0
    _guard: ClassVar[threading.Lock] = threading.Lock()
    """Of the three above. Nothing is drawn or sent while it is held."""

    def __init__(
        self,
        draw: Callable[..., Drawing],
        title: str,
        sliders: Mapping[str, Slider],
        static: Sequence[Mapping[str, object]],
        ahead: int,
    ) -> None:
        self._draw, self._sliders, self._ahead = draw, dict(sliders), ahead
        self._frames: dict[tuple[int, ...], Frame] = {}
        self._sent: set[tuple[int, ...]] = set()
        self._failed: set[tuple[int, ...]] = set()
        self._views: set[str] = set()
        self._asked: tuple[int, ...] | None = None
        self._title = title
        _Cell.watch()
        start = tuple(one.first for one in self._sliders.values())
        self._static = [self._places(setting) for setting in static] or [start]
        self._pinned = {start, *self._static}
        first = self._frame(start)
        for places in self._static:
            self._frame(places)
        if os.environ.get(VISIT):
            for places in _ends(start, [len(one.values) for one in self._sliders.values()]):
                self._frame(places)
        super().__init__(
            title=title,
            controls=[
                {
                    "name": one.name,
                    "labels": list(one.labels),
                    "start": one.first,
                    "kind": "choice" if one.chosen_from else "range",
                }
                for one in self._sliders.values()
            ],
            chosen=list(start),
            first={"at": list(start), "words": first.words, "photo": first.photo},
            picture=first.png,
        )
        self.on_msg(self._hear)
        self.observe(self._moved, names="chosen")

    # What a notebook or a test asks

    @property
    def values(self) -> dict[str, object]:
        """Where the sliders stand, by the parameter's name."""
        return {key: one.values[place] for (key, one), place in zip(self._sliders.items(), self.chosen, strict=True)}

    @property
    def words(self) -> str:
        """What the figure shows where the sliders stand."""
        return self._frame(tuple(self.chosen)).words

    def move(self, **values: object) -> None:
        """Put sliders somewhere, as a reader would.

        Raises:
            FigureError: there is no such slider or value, or the figure cannot be drawn there; nothing has moved then.
        """
        places = self._places({**self.values, **values})
        self._frame(places)
        self.chosen = list(places)

    def table(self) -> Table:
        """The figure in text: a row for each of the static settings."""
        return table([self._shown(places) for places in self._static], [*map(self._frame, self._static)], self._title)

    def static(self) -> bytes:
        """The figure where no kernel runs: small multiples, as PNG."""
        return multiples({self._caption(places): self._frame(places) for places in self._static})

    def alt(self) -> str:
        """The static face in words."""
        parts = [f"{self._caption(places)}: {self._frame(places).words}" for places in self._static]
        return " ".join([f"{self._title}.", *parts])

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        live, notes = super()._repr_mimebundle_(**kwargs) or ({}, {})
        picture = b64encode(self.static()).decode("ascii")
        photo = {"photo": True} if any(self._frame(places).photo for places in self._static) else {}
        about = {"image/png": {"alt": self.alt(), **photo}}
        return {**live, "image/png": picture, "text/plain": str(self.table())}, {**notes, **about}

    def __repr__(self) -> str:
        return str(self.table())

    # Drawing

    def _places(self, setting: Mapping[str, object]) -> tuple[int, ...]:
        for key in setting:
            if key not in self._sliders:
                raise FigureError(
                    f"the figure '{self._title}' has no slider '{key}'; it has: {', '.join(self._sliders)}."
                )
        return tuple(one.place(setting[key]) if key in setting else one.first for key, one in self._sliders.items())

    def _shown(self, places: tuple[int, ...]) -> dict[str, str]:
        return {one.name: one.labels[place] for one, place in zip(self._sliders.values(), places, strict=True)}

    def _caption(self, places: tuple[int, ...]) -> str:
        return ", ".join(f"{name} {label}" for name, label in self._shown(places).items())

    def _frame(self, places: tuple[int, ...]) -> Frame:
        """The picture of a setting, drawn once.

        Raises:
            FigureError: it cannot be drawn.
        """
        found = self._frames.get(places)
        if found is None:
            with DRAWING:
                found = self._frames.get(places) or self._drawn(places)
                self._frames[places] = found
                self._forget()
        return found

    def _forget(self) -> None:
        """Drop the oldest pictures beyond `MOST`; that of the start and those of the static face stay."""
        others = [one for one in list(self._frames) if one not in self._pinned]
        for places in others[: max(0, len(self._frames) - MOST)]:
            del self._frames[places]
            self._sent.discard(places)

    def _drawn(self, places: tuple[int, ...]) -> Frame:
        values = {key: one.values[place] for (key, one), place in zip(self._sliders.items(), places, strict=True)}
        try:
            with _nothing_left_open():
                drawing = self._draw(**values)
            if not isinstance(drawing, Drawing):
                raise TypeError(f"it returned {type(drawing).__name__}, where a Drawing with its words is needed")
            return frame(drawing)
        except (Exception, SystemExit) as error:
            name = getattr(self._draw, "__name__", type(self._draw).__name__)
            reason = f"{type(error).__name__}: {str(error).strip()}".partition("\n")[0].rstrip(".: ")
            raise FigureError(
                f"the figure '{self._title}' cannot be drawn at {self._caption(places)} ({reason}); correct "
                f"{name}(), or move the slider elsewhere."
            ) from error

    # Talking to the browser

    def _hear(self, _: object, message: Mapping[str, Any], __: object) -> None:
        if "hello" in message:
            # A page that was loaded again has lost what it was sent, and has not said goodbye: who else is there?
            self._views = {str(message["hello"])}
            self.send({"what": "call"})
            self._sent.clear()
            for places in list(self._frames):
                self._answer(places)
            self._plan(ahead_of=list(Panel._waiting))
        elif "here" in message:
            self._views.add(str(message["here"]))
        elif "bye" in message:
            self._views.discard(str(message["bye"]))
            if not self._views:
                # Nobody looks at it any more: the cell was run again, or its output cleared.
                self._frames = {places: one for places, one in list(self._frames.items()) if places in self._pinned}
        elif "want" in message:
            places = tuple(message["want"])
            if places in self._frames or not _Cell.runs(elsewhere=True):
                self._answer(places)
            else:
                self._asked = places
            # Whoever asks may be asking again in a moment, and must not find the kernel drawing something else.
            Panel._not_before = time.monotonic() + _AFTER_S
            self._plan()

    def _moved(self, _: object) -> None:
        self._plan()

    def _answer(self, places: tuple[int, ...]) -> None:
        try:
            one = self._frame(places)
        except FigureError as error:
            self._failed.add(places)
            self.send({"what": "sorry", "at": list(places), "sentence": str(error)})
            return
        self._sent.add(places)
        self.send({"what": "picture", "at": list(places), "words": one.words, "photo": one.photo}, [one.png])

    def _plan(self, ahead_of: Sequence[Panel] = ()) -> None:
        """Draw the next picture ahead when the kernel has answered everything else: one of all panels at a time.

        Args:
            ahead_of: panels whose turn comes first.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        with Panel._guard:
            Panel._waiting = list(dict.fromkeys([*ahead_of, self, *Panel._waiting]))
            Panel._next_turn(loop, _PAUSE_S)

    @staticmethod
    def _next_turn(loop: asyncio.AbstractEventLoop, after: float) -> None:
        """Plan a turn where there is something to draw; its ticket makes every older plan void, in any loop."""
        Panel._ticket = object() if Panel._waiting else None
        if Panel._ticket:
            loop.call_later(after, Panel._turn, loop, Panel._ticket)

    @staticmethod
    def _turn(loop: asyncio.AbstractEventLoop, ticket: object) -> None:
        if Panel._ticket is not ticket:
            return
        busy = _Cell.runs()
        try:
            if not busy and time.monotonic() >= Panel._not_before:
                Panel._draw_one()
        finally:
            with Panel._guard:
                if Panel._ticket is ticket:
                    Panel._next_turn(loop, _AFTER_S if busy else _PAUSE_S)

    @staticmethod
    def _draw_one() -> None:
        """What was asked for while a cell ran; else the first picture ahead that is missing anywhere."""
        for one in list(Panel._waiting):
            if one._asked is not None:
                places, one._asked = one._asked, None
                one._answer(places)
                return
        for one in list(Panel._waiting):
            if one._draw_ahead():
                return
            with Panel._guard:
                Panel._waiting = [other for other in Panel._waiting if other is not one]

    def _draw_ahead(self) -> bool:
        """Draw the nearest picture that is missing, and send it. False where none is."""
        if not self._views or self.comm is None:
            return False
        counts = [len(one.values) for one in self._sliders.values()]
        near = itertools.islice(_by_distance(tuple(self.chosen), counts), self._ahead)
        places = next((one for one in near if one not in self._sent and one not in self._failed), None)
        if places is None:
            return False
        try:
            self._frame(places)
        except FigureError:
            # Said when a reader comes there.
            self._failed.add(places)
        else:
            self._answer(places)
        return True


class _Cell:
    """The cells that run now, as IPython tells of them: one may run another, and each thread may have its own."""

    _depth: ClassVar[Counter[int]] = Counter()
    """By thread, how many cells it is in."""
    _watched: ClassVar[object] = None

    @classmethod
    def watch(cls) -> None:
        """Be told of cells from now on; whoever calls for the first time may be in one."""
        shell = get_ipython()
        if shell is None or shell is cls._watched:
            return
        cls._watched = shell
        shell.events.register("pre_run_cell", cls._begins)
        shell.events.register("post_run_cell", cls._ends)
        cls._depth[threading.get_ident()] = _cells_here()

    @classmethod
    def runs(cls, elsewhere: bool = False) -> bool:
        """Whether a cell runs; in another thread than this one, if `elsewhere`."""
        here = threading.get_ident()
        return any(depth > 0 and not (elsewhere and thread == here) for thread, depth in list(cls._depth.items()))

    @classmethod
    def _begins(cls, *_: object) -> None:
        cls._depth[threading.get_ident()] += 1

    @classmethod
    def _ends(cls, *_: object) -> None:
        here = threading.get_ident()
        cls._depth[here] = max(0, cls._depth[here] - 1)


def _cells_here() -> int:
    """How many cells IPython runs in this thread: so often is its own function, which tells of each, further up."""
    frame: FrameType | None = sys._getframe()
    count = 0
    while frame is not None:
        count += frame.f_code.co_name == "run_cell_async" and not frame.f_locals.get("silent")
        frame = frame.f_back
    return count


@contextmanager
def _nothing_left_open() -> Iterator[None]:
    """Close what a drawing function opens in pyplot: it would be shown under whatever cell is run next."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    before = set(pyplot.get_fignums()) if pyplot else set()
    try:
        yield
    finally:
        pyplot = sys.modules.get("matplotlib.pyplot")
        # What a cell that runs meanwhile opens cannot be told from it, and stays.
        if pyplot and not _Cell.runs(elsewhere=True):
            for number in set(pyplot.get_fignums()) - before:
                pyplot.close(number)


def _ends(start: tuple[int, ...], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every slider at its first and its last value, the others where they start."""
    for slider, count in enumerate(counts):
        for place in (0, count - 1):
            yield (*start[:slider], place, *start[slider + 1 :])


def _by_distance(centre: tuple[int, ...], counts: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """Every setting, the fewest steps away first; found step by step, since all of them may be a million."""
    ring, seen = [centre], {centre}
    while ring:
        yield from ring
        beyond = []
        for one in ring:
            for slider, count in enumerate(counts):
                for place in (one[slider] - 1, one[slider] + 1):
                    other = (*one[:slider], place, *one[slider + 1 :])
                    if 0 <= place < count and other not in seen:
                        seen.add(other)
                        beyond.append(other)
        ring = beyond


def panel(
    draw: Callable[..., Drawing],
    *,
    title: str,
    static: Sequence[Mapping[str, object]] = (),
    ahead: int = AHEAD,
    **sliders: Slider,
) -> Panel:
    """A figure whose parameters a reader can move.

    In JupyterLab: sliders with names, worked by mouse or keyboard, a reset button, the picture, and its words under it.
    Everywhere else (GitHub, a page, a notebook that is not trusted) the picture of the settings `static`, one beside
    the other. As text: a table of the same settings.

    Args:
        draw: a pure function of the sliders' values, passed by name: it looks up, and neither trains nor solves. It is
            called once per setting.
        title: what the figure is about, a few words.
        static: settings shown where nothing can be moved, by parameter, two to four of them; a slider that one does
            not name stands where it starts. The start alone when empty.
        ahead: how many pictures are drawn before anybody asks, at most, around every place where the sliders rest. 0
            for a function that evaluates networks after all: then a picture costs what its drawing costs, and is asked
            for by a reader.
        sliders: by the parameter's name.

    Returns:
        The widget. Give it to the notebook as a cell's last value.

    Raises:
        FigureError: there is no slider or title, a static setting is none, or the figure cannot be drawn where it
            starts or at a static setting; under the course's runner also at any slider's ends.

    Example:

        >>> from apgd_teach.figures import Drawing, Slider, panel
        >>> from apgd_teach.figures.style import figure, styled
        >>> def draw(power):
        ...     with styled():
        ...         drawn, (axes,) = figure()
        ...         axes.plot([x**power for x in range(5)])
        ...         return Drawing(drawn, f"4 to the power {power} is {4**power}.", {"last": 4**power})
        >>> moving = panel(draw, title="Powers", power=Slider("power", [1, 2, 3]))
        >>> moving.move(power=3)
        >>> moving.words
        '4 to the power 3 is 64.'

    Lesson: 01 to 07.
    """
    if not sliders:
        raise FigureError("a panel without a slider is a picture; give it a slider, or use show().")
    if not title.strip():
        raise FigureError("a panel has no title, and a screen reader would have nothing to call it; give it one.")
    for key, one in sliders.items():
        if not isinstance(one, Slider):
            raise FigureError(f"'{key}' is no Slider; write {key}=Slider('its name', [its values]).")
    return Panel(draw, title, sliders, static, ahead)
