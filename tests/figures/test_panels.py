"""A panel without a browser: what it draws, says and refuses, and what it answers to messages."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import doctest
import io
import itertools
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image

import apgd_teach.figures.panels as module
from apgd_teach.course.profiles import VISIT
from apgd_teach.errors import FigureError
from apgd_teach.figures import Drawing, Panel, Slider, panel
from apgd_teach.figures.faces import WIDEST, Frame, frame, multiples, table
from apgd_teach.figures.style import COLORS, figure, styled

LIVE = "application/vnd.jupyter.widget-view+json"


def power(x: int, kind: str = "plain") -> Drawing:
    """One line, and its end in words."""
    with styled():
        drawn, (axes,) = figure(width=3, height=2)
        axes.plot([0, 1], [0, x**2])
        axes.set_title(f"{kind}, {x}")
        return Drawing(drawn, f"The square of {x} is {x**2}, {kind}.", {"square": x**2})


X = Slider("number x", [1, 2, 3, 4, 5], start=2, unit=" m")
KIND = Slider("kind of line", ["plain", "bold"])


def make(draw: Callable[..., Drawing] = power, **settings: object) -> Panel:
    return panel(draw, **{"title": "Squares", "static": [{"x": 1}, {"x": 5}], "x": X, "kind": KIND, **settings})


# Three faces


def test_the_picture_of_the_static_face_is_the_settings_side_by_side() -> None:
    made = make()
    with Image.open(io.BytesIO(made.static())) as picture:
        assert picture.size == (2 * 300 + 10, 200 + 28)
        left, right = (picture.crop((x, 28, x + 300, 228)).convert("RGB") for x in (0, 310))
    for one, x in ((left, 1), (right, 5)):
        with Image.open(io.BytesIO(frame(power(x)).png)) as alone:
            assert one.tobytes() == alone.convert("RGB").tobytes()
    assert made.static() == make().static()


def test_a_picture_that_would_be_too_wide_goes_below() -> None:
    wide = frame(power(1))
    sheet = Image.open(io.BytesIO(multiples({str(x): wide for x in range(6)})))
    assert sheet.size == (4 * 310 - 10, 2 * 238 - 10)
    assert sheet.size[0] <= WIDEST
    assert multiples({"": wide}) == wide.png


def test_the_text_of_it_is_a_table_with_a_row_per_setting() -> None:
    table = make().table()
    assert table.columns == ("number x", "kind of line", "square")
    assert table.rows == (("1 m", "plain", 1), ("5 m", "plain", 25))
    assert repr(make()) == str(table)


def test_captions_are_written_in_as_many_lines_as_they_need() -> None:
    small = frame(power(1))
    plain, long = (
        Image.open(io.BytesIO(multiples({caption: small, f"{caption} 2": small}))).convert("L")
        for caption in ("x 1", "merging coefficient of the second layer 0.25, kind of line " + "W" * 60)
    )
    assert plain.size == (610, 200 + 28)
    assert long.size[0] == 610
    assert long.size[1] > 200 + 2 * 28
    for sheet, head in ((plain, 28), (long, long.size[1] - 200)):
        ink = np.asarray(sheet)[:head] < 128
        assert ink[:, :300].any()
        assert ink[:, 310:].any()
        assert not ink[:, 300:310].any(), "no caption reaches into the next one's room"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (81.234, "81.2"),
        (-0.0012345, "−0.00123"),
        (3, "3"),
        (1234.5, "1,234"),
        (999.9, "1,000"),
        (100.0, "100"),
        (-0.0, "0.00"),
    ],
)
def test_numbers_have_three_digits_that_count(value: float, text: str) -> None:
    one = Frame(b"", "Words.", {"number": value}, False)
    assert str(table([{"x": "1"}], [one], "T")).splitlines()[-1].split() == ["1", text]


def test_more_numbers_than_settings_stand_below_each_other() -> None:
    frames = [Frame(b"", "Words.", {"first": x, "second": x**2, "third": x**3}, False) for x in (2, 3)]
    found = table([{"x": "2 m", "kind": "plain"}, {"x": "3 m", "kind": "plain"}], frames, "T")
    assert found.columns == ("x", "2 m", "3 m")
    assert found.rows == (("kind", "plain", "plain"), ("first", 2, 3), ("second", 4, 9), ("third", 8, 27))


def test_a_notebook_gets_all_three() -> None:
    made = make()
    data, notes = made._repr_mimebundle_()
    assert set(data) == {LIVE, "image/png", "text/plain"}
    assert data[LIVE]["model_id"] == made.model_id
    assert base64.b64decode(data["image/png"]) == made.static()
    assert data["text/plain"] == str(made.table())
    assert notes["image/png"]["alt"] == (
        "Squares. number x 1 m, kind of line plain: The square of 1 is 1, plain. "
        "number x 5 m, kind of line plain: The square of 5 is 25, plain."
    )


def test_without_static_settings_it_shows_where_it_starts() -> None:
    assert make(static=[]).table().rows == (("2 m", "plain", 4),)


def test_every_setting_is_drawn_once() -> None:
    drawn = []

    def counted(x: int, kind: str) -> Drawing:
        drawn.append((x, kind))
        return power(x, kind)

    made = make(counted)
    made._repr_mimebundle_(), made.table(), made.move(x=3), made.move(x=1)
    assert drawn == [(2, "plain"), (1, "plain"), (5, "plain"), (3, "plain")]


# Moving


def test_moving_moves_the_words() -> None:
    made = make()
    assert made.values == {"x": 2, "kind": "plain"}
    assert made.words == power(2).words
    made.move(x=4, kind="bold")
    assert made.values == {"x": 4, "kind": "bold"}
    assert made.words == power(4, "bold").words
    made.move(x=1)
    assert made.values == {"x": 1, "kind": "bold"}


def test_numbers_are_found_again_without_their_last_digits() -> None:
    tenths = Slider("share", [i / 10 for i in range(11)], start=0.1 + 0.2)
    made = panel(lambda share: power(round(10 * share)), title="Shares", share=tenths)
    assert made.words == power(3).words
    made.move(share=0.7)
    assert made.words == power(7).words


def raising(*values: int) -> Callable[..., Drawing]:
    def fragile(x: int, kind: str) -> Drawing:
        if x in values:
            raise ValueError(f"{x} is no good.\nMore of it.")
        return power(x, kind)

    return fragile


def test_a_setting_that_cannot_be_drawn_is_one_sentence_and_moves_nothing() -> None:
    made = make(raising(3))
    with pytest.raises(FigureError) as raised:
        made.move(x=3)
    assert str(raised.value) == (
        "the figure 'Squares' cannot be drawn at number x 3 m, kind of line plain (ValueError: 3 is no good); correct "
        "fragile(), or move the slider elsewhere."
    )
    assert made.values == {"x": 2, "kind": "plain"}


@pytest.mark.parametrize("value", [1, 2, 5])
def test_where_it_starts_and_where_it_stands_still_it_must_be_drawn(value: int) -> None:
    with pytest.raises(FigureError, match=rf"cannot be drawn at number x {value} m"):
        make(raising(value))


@pytest.mark.parametrize("value", [1, 5])
def test_under_the_runner_the_ends_must_be_drawn_too(monkeypatch, value: int) -> None:
    make(raising(value), static=[])
    monkeypatch.setenv(VISIT, "1")
    with pytest.raises(FigureError, match=rf"cannot be drawn at number x {value} m, kind of line plain"):
        make(raising(value), static=[])
    make(raising(3), static=[])


def test_under_the_runner_the_end_of_every_slider_is_visited(monkeypatch) -> None:
    drawn = []
    monkeypatch.setenv(VISIT, "1")
    make(lambda x, kind: drawn.append((x, kind)) or power(x, kind), static=[])
    assert set(drawn) == {(2, "plain"), (1, "plain"), (5, "plain"), (2, "bold")}


def coloured(colour: str, size: float) -> Callable[..., Drawing]:
    def draw(x: int, kind: str) -> Drawing:
        drawing = power(x, kind)
        (axes,) = drawing.figure.axes
        axes.plot([0, 1], [1, 0], color=colour)
        axes.set_xlabel("x", fontsize=size)
        return drawing

    return draw


def test_under_the_runner_colours_and_letters_are_looked_at(monkeypatch) -> None:
    make(coloured("#12AB34", 5))
    monkeypatch.setenv(VISIT, "1")
    make(coloured(COLORS[1], 8))
    with pytest.raises(FigureError, match=r"#12ab34 is no colour of the course"):
        make(coloured("#12AB34", 9))
    with pytest.raises(FigureError, match=r"'x' is written in 7 points; take 8 or more"):
        make(coloured(COLORS[1], 7))


# Bad input


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("", [1, 2]), "a slider has no name, and a screen reader would have nothing to say; give it one."),
        (("x", [1]), "the slider 'x' has 1 values; give it two or more."),
        (("x", [1, 2, 1.0]), "the slider 'x' has 1 more than once; each must be told from the others."),
        (("x", [1, 2], 3), "3 is no value of the slider 'x'; it has: 1, 2."),
    ],
)
def test_a_slider_that_is_none_is_refused(given, sentence: str) -> None:
    with pytest.raises(FigureError) as raised:
        Slider(*given)
    assert str(raised.value) == sentence


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"title": " "}, "a panel has no title"),
        ({"x": [1, 2]}, "'x' is no Slider; write x=Slider('its name', [its values])."),
        ({"static": [{"y": 1}]}, "the figure 'Squares' has no slider 'y'; it has: x, kind."),
        ({"static": [{"x": 9}]}, "9 is no value of the slider 'number x'; it has: 1 m, 2 m, 3 m, 4 m, 5 m."),
    ],
)
def test_a_panel_that_is_none_is_refused(settings: dict, sentence: str) -> None:
    with pytest.raises(FigureError) as raised:
        make(**settings)
    assert str(raised.value).startswith(sentence)


def test_a_panel_without_a_slider_is_refused() -> None:
    with pytest.raises(FigureError, match="a panel without a slider is a picture"):
        panel(power, title="Squares")


def test_a_figure_without_words_is_no_drawing() -> None:
    with pytest.raises(FigureError, match=r"TypeError: it returned Figure, where a Drawing with its words is needed"):
        make(lambda x, kind: Figure())
    with pytest.raises(ValueError, match="a figure needs words"):
        Drawing(Figure(), " ")


def test_the_example_of_the_docstring_works() -> None:
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize("given", [np.float64(0.5), np.float32(0.5), torch.tensor(0.5), 0.5])
def test_numbers_of_every_library_are_numbers(given: object) -> None:
    one = Slider("x", [0, given, 1], start=given)
    assert one.labels == ("0", "0.5", "1")
    assert one.place(0.5) == one.first == 1
    assert not one.chosen_from


def test_what_rounding_leaves_of_zero_is_found_as_zero() -> None:
    assert Slider("x", np.arange(-1, 1.05, 0.1), start=0).first == 10
    assert Slider("x", [1_000_000, 1_000_001]).labels == ("1000000", "1000001")
    assert Slider("x", [0.1234567, 0.1234568]).labels == ("0.1234567", "0.1234568")


def test_yes_and_no_are_chosen_from_a_list() -> None:
    one = Slider("trimmed", [False, True])
    assert one.chosen_from
    assert one.labels == ("False", "True")
    assert one.place(True) == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), np.zeros(2), None])
def test_values_that_are_no_place_on_a_slider_are_refused(value: object) -> None:
    with pytest.raises(FigureError, match="the slider 'x' has "):
        Slider("x", [value, 1.0])


def test_a_function_that_ends_the_program_does_not_end_the_kernel() -> None:
    def ending(x: int, kind: str) -> Drawing:
        if x == 3:
            sys.exit("bye")
        return power(x, kind)

    with pytest.raises(FigureError, match=r"cannot be drawn at number x 3 m, kind of line plain \(SystemExit: bye\)"):
        make(ending).move(x=3)


def test_what_is_opened_in_pyplot_is_closed_and_no_more() -> None:
    own = pyplot.figure()

    def careless(x: int, kind: str) -> Drawing:
        drawn, axes = pyplot.subplots()
        axes.plot([0, x])
        return Drawing(drawn, "A line.")

    make(careless)
    assert pyplot.get_fignums() == [own.number]
    pyplot.close(own)


# Talking to a browser


@pytest.fixture(autouse=True)
def _no_turns_of_other_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Panel, "_waiting", [])
    monkeypatch.setattr(Panel, "_ticket", None)
    monkeypatch.setattr(Panel, "_not_before", 0.0)


async def idle(seconds: float = 60) -> None:
    """Let panels draw ahead until nothing is left to draw; how long that takes is the machine's affair."""
    for _ in range(int(100 * seconds)):
        await asyncio.sleep(0.01)
        if Panel._ticket is None:
            return
    pytest.fail("drawing ahead did not come to an end")


def listened(made: Panel, monkeypatch) -> list[tuple[dict, list | None]]:
    """What a panel sends; its calls for whoever looks on are left out."""
    sent: list[tuple[dict, list | None]] = []

    def send(content: dict, buffers: list | None = None) -> None:
        if content["what"] != "call":
            sent.append((content, buffers))

    monkeypatch.setattr(made, "send", send)
    return sent


def test_a_browser_that_says_hello_is_given_what_is_drawn(monkeypatch) -> None:
    made = make()
    sent = listened(made, monkeypatch)
    made._hear(None, {"hello": "a view"}, [])
    assert [content["at"] for content, _ in sent] == [[1, 0], [0, 0], [4, 0]]
    for content, (picture,) in sent:
        assert content["what"] == "picture"
        assert content["words"] == power(content["at"][0] + 1).words
        assert picture == frame(power(content["at"][0] + 1)).png


def test_a_page_that_is_loaded_again_is_given_everything_again(monkeypatch) -> None:
    made = make(static=[])
    sent = listened(made, monkeypatch)
    made._hear(None, {"hello": "a view"}, [])
    made._hear(None, {"want": [4, 0]}, [])
    del sent[:]
    made._hear(None, {"hello": "a view"}, [])
    assert [content["at"] for content, _ in sent] == [[1, 0], [4, 0]]


def test_when_nobody_looks_on_any_more_pictures_are_forgotten_and_none_is_drawn_ahead(monkeypatch) -> None:
    made = make()
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        made._hear(None, {"hello": "a view"}, [])
        made._hear(None, {"want": [3, 1]}, [])
        made._hear(None, {"bye": "a view"}, [])
        del sent[:]
        await idle()

    asyncio.run(listen())
    assert sent == []
    assert set(made._frames) == {(1, 0), (0, 0), (4, 0)}


@pytest.mark.parametrize(
    ("moved", "order"), [(None, ["one", "other"]), ("one", ["one", "other"]), ("other", ["other", "one"])]
)
def test_panels_take_turns_from_the_top_and_the_one_that_was_moved_last_comes_first(
    monkeypatch, moved: str | None, order: list[str]
) -> None:
    one, other = make(static=[]), make(static=[])
    turns: list[str] = []
    for name, made in (("one", one), ("other", other)):
        monkeypatch.setattr(
            made,
            "send",
            lambda content, buffers=None, name=name: turns.append(name) if content["what"] == "picture" else None,
        )

    async def listen() -> None:
        one._hear(None, {"hello": "a view"}, [])
        other._hear(None, {"hello": "a view"}, [])
        if moved:
            {"one": one, "other": other}[moved]._moved(None)
        del turns[:]
        await idle()

    asyncio.run(listen())
    assert turns == [name for name in order for _ in range(9)]


def test_after_a_move_what_lies_next_to_it_is_drawn_first(monkeypatch) -> None:
    made = panel(power, title="Many", ahead=3, x=Slider("x", range(50)))
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        made._hear(None, {"hello": "a view"}, [])
        await idle()
        made.chosen = [40]
        await idle()

    asyncio.run(listen())
    assert [content["at"] for content, _ in sent] == [[0], [1], [2], [40], [39], [41]]


@pytest.mark.alone
def test_the_nearest_of_a_million_settings_are_found_without_listing_them() -> None:
    begun = time.perf_counter()
    near = list(itertools.islice(module._by_distance((50, 50, 50), [100, 100, 100]), 240))
    assert time.perf_counter() - begun < 0.1
    steps = [sum(abs(a - 50) for a in one) for one in near]
    assert steps == sorted(steps)
    assert len(set(near)) == 240
    assert sorted(module._by_distance((1, 0), [3, 2])) == list(itertools.product(range(3), range(2)))


def test_pictures_of_images_are_marked_for_page_and_browser(monkeypatch) -> None:
    made = make(lambda x, kind: dataclasses.replace(power(x, kind), photo=True))
    sent = listened(made, monkeypatch)
    made._hear(None, {"want": [3, 0]}, [])
    assert sent[0][0]["photo"] is True
    assert made.first["photo"] is True
    assert made._repr_mimebundle_()[1]["image/png"]["photo"] is True
    assert "photo" not in make()._repr_mimebundle_()[1]["image/png"]


def test_a_question_is_answered_with_a_picture_or_a_sentence(monkeypatch) -> None:
    made = make(raising(3))
    sent = listened(made, monkeypatch)
    made._hear(None, {"want": [3, 1]}, [])
    made._hear(None, {"want": [2, 0]}, [])
    assert sent[0][0] == {"what": "picture", "at": [3, 1], "words": power(4, "bold").words, "photo": False}
    assert sent[1][0]["what"] == "sorry"
    assert "3 is no good" in sent[1][0]["sentence"]


def test_the_nearest_settings_are_drawn_ahead_once_each_and_those_that_fail_are_left_out(monkeypatch) -> None:
    made = make(raising(4), static=[])
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        made._hear(None, {"hello": "a view"}, [])
        assert len(sent) == 1, "nothing is drawn before the question is answered"
        await idle()

    asyncio.run(listen())
    places = [tuple(content["at"]) for content, _ in sent]
    assert sorted(places) == sorted({(x, kind) for x in (0, 1, 2, 4) for kind in (0, 1)})
    assert places[0] == (1, 0)
    steps = [abs(x - 1) + kind for x, kind in places]
    assert steps == sorted(steps)


@pytest.mark.parametrize(("message", "pictures"), [({}, 0), ({"hello": "a view"}, 6)])
def test_nothing_is_drawn_ahead_without_a_browser_or_beyond_the_limit(
    monkeypatch, message: dict, pictures: int
) -> None:
    made = panel(power, title="Many", ahead=6, x=Slider("x", range(50)))
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        made._hear(None, message, [])
        await idle()

    asyncio.run(listen())
    assert [content["at"] for content, _ in sent] == [[x] for x in range(pictures)]


# Messages may come in another thread than the one that runs cells


class Slow:
    """A drawing function that takes a while, and knows who drew and whether two did at once."""

    def __init__(self) -> None:
        self.lock, self.together, self.threads = threading.Lock(), False, []

    def __call__(self, x: int) -> Drawing:
        self.together |= not self.lock.acquire(blocking=False)
        self.threads.append(threading.current_thread().name)
        time.sleep(0.02)
        self.lock.release()
        return power(x)


@pytest.mark.parametrize("last", ["main", "another"])
def test_of_two_threads_that_hear_a_browser_the_last_one_draws_ahead_and_never_both(monkeypatch, last: str) -> None:
    slow = Slow()
    panels = {name: panel(slow, title=name, x=Slider("x", range(8))) for name in ("main", "another")}
    del slow.threads[:]
    for made in panels.values():
        listened(made, monkeypatch)
    turn = threading.Barrier(2)

    async def listen(name: str) -> None:
        # By turns, before anything is drawn.
        for _ in range(4):
            turn.wait()
            if name != last:
                panels[name]._hear(None, {"hello": "a view"}, [])
            turn.wait()
            if name == last:
                panels[name]._hear(None, {"hello": "a view"}, [])
            turn.wait()
        await idle()

    other = threading.Thread(target=lambda: asyncio.run(listen("another")), name="another")
    other.start()
    monkeypatch.setattr(threading.current_thread(), "name", "main")
    asyncio.run(listen("main"))
    other.join()
    assert slow.threads == [last] * 14
    assert not slow.together


def test_between_two_pictures_ahead_the_loop_comes_round_however_often_panels_were_heard(monkeypatch) -> None:
    slow = Slow()
    made = panel(slow, title="Slow", x=Slider("x", range(8)))
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        for _ in range(5):
            made._hear(None, {"hello": "a view"}, [])
            Panel._ticket = object()  # as if another loop had planned
            made._hear(None, {"here": "a view"}, [])
            made._moved(None)
        del sent[:]
        grown = []
        while Panel._ticket is not None:
            before = len(sent)
            await asyncio.sleep(0)
            grown.append(len(sent) - before)
        assert max(grown) == 1
        assert len(sent) == 7

    asyncio.run(listen())


def test_settings_of_matplotlib_are_the_course_s_in_the_block_and_the_reader_s_after_it_whoever_else_draws() -> None:
    size = pyplot.rcParams["axes.titlesize"]
    seen = []

    def draw() -> None:
        for _ in range(20):
            with styled():
                time.sleep(0.001)
                seen.append(pyplot.rcParams["axes.titlesize"])

    threads = [threading.Thread(target=draw) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert len(seen) == 40
    assert len(set(seen)) == 1
    assert pyplot.rcParams["axes.titlesize"] == size


@pytest.fixture
def shell(monkeypatch) -> Iterator[InteractiveShell]:
    """IPython, as a kernel has it."""
    InteractiveShell.clear_instance()
    made = InteractiveShell.instance()
    monkeypatch.setattr(module, "get_ipython", lambda: made)
    monkeypatch.setattr(module._Cell, "_watched", None)
    monkeypatch.setattr(module._Cell, "_depth", Counter())
    yield made
    InteractiveShell.clear_instance()


def test_cells_are_counted_by_thread_also_those_that_a_cell_runs(shell) -> None:
    seen = []
    shell.user_ns["look"] = lambda: seen.append(module._Cell.runs())
    shell.user_ns["make"] = lambda: panel(power, title="Powers", x=Slider("x", range(6)))
    shell.run_cell("made = make(); look()")
    shell.run_cell("get_ipython().run_cell('look()'); look()")
    shell.run_cell("1 / 0")
    assert seen == [True, True, True]
    assert not module._Cell.runs()
    panel(power, title="Outside any cell", x=Slider("x", range(6)))
    assert not module._Cell.runs()


def test_while_a_cell_runs_known_pictures_are_sent_and_what_else_was_asked_for_when_it_has_ended(
    monkeypatch, shell
) -> None:
    shell.user_ns["make"] = lambda: panel(power, title="Powers", static=[{"x": 5}], x=Slider("x", range(6)))
    shell.run_cell("made = make()")
    made = shell.user_ns["made"]
    sent = listened(made, monkeypatch)

    async def listen() -> None:
        made._hear(None, {"hello": "a view"}, [])
        made._hear(None, {"want": [5]}, [])
        made._hear(None, {"want": [3]}, [])
        await idle()

    other = threading.Thread(target=lambda: asyncio.run(listen()), name="another")

    def go() -> None:
        other.start()
        time.sleep(0.6)
        seen.extend(content["at"] for content, _ in sent)

    seen: list[list[int]] = []
    shell.user_ns["go"] = go
    shell.run_cell("go()")
    other.join()
    assert seen == [[0], [5], [5]]
    assert [content["at"] for content, _ in sent][3:] == [[3], [1], [2], [4]]


def test_a_page_that_was_loaded_again_without_a_goodbye_is_forgotten_and_two_views_are_two(monkeypatch) -> None:
    made = make()
    calls = []
    monkeypatch.setattr(made, "send", lambda content, buffers=None: calls.append(content["what"]))
    made._hear(None, {"hello": "before"}, [])
    made._hear(None, {"hello": "after"}, [])
    assert calls.count("call") == 2
    made._hear(None, {"here": "after"}, [])
    made._hear(None, {"want": [3, 1]}, [])
    made._hear(None, {"bye": "after"}, [])
    assert (3, 1) not in made._frames
    made._hear(None, {"hello": "one"}, [])
    made._hear(None, {"here": "other"}, [])
    made._hear(None, {"want": [3, 1]}, [])
    made._hear(None, {"bye": "one"}, [])
    assert (3, 1) in made._frames


def test_of_more_pictures_than_are_kept_the_oldest_go_and_those_of_the_static_face_stay(monkeypatch) -> None:
    monkeypatch.setattr(module, "MOST", 4)
    made = panel(power, title="Many", static=[{"x": 9}], x=Slider("x", range(10)))
    listened(made, monkeypatch)
    for place in range(1, 7):
        made._hear(None, {"want": [place]}, [])
    assert set(made._frames) == {(0,), (9,), (5,), (6,)}
    assert (1,) not in made._sent


def test_what_a_cell_has_opened_meanwhile_in_another_thread_stays_open(shell) -> None:
    made = panel(power, title="Powers", x=Slider("x", range(6)))
    opened: list[int] = []

    def careless(x: int) -> Drawing:
        opened.append(pyplot.figure().number)
        return power(x)

    made._draw = careless
    other = threading.Thread(target=lambda: made._frame((3,)))

    def go() -> None:
        other.start()
        other.join()

    shell.user_ns["go"] = go
    shell.run_cell("go()")
    assert pyplot.get_fignums() == opened
    made._frame((4,))
    assert pyplot.get_fignums() == opened[:1], "the cell's own thread closes its own"
    pyplot.close("all")
