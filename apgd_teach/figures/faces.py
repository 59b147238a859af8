"""The faces of a figure that need no kernel: small multiples as one picture, and a table."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.lint import refuse
from apgd_teach.figures.style import png
from apgd_teach.tables import Table

__all__ = ["Frame", "frame", "multiples", "table"]

WIDEST = 1280
"""Pixels of a picture of small multiples, at most, unless a single one is wider: a screen's, or a projector's."""

_CAPTION = 15
_GAP = 10


@dataclass(frozen=True)
class Frame:
    """A drawing that is done: what a browser, a page or a table needs of it.

    Attributes:
        png: the picture.
        words, numbers, photo: as in `Drawing`.
    """

    png: bytes
    words: str
    numbers: Mapping[str, object]
    photo: bool


def frame(drawing: Drawing) -> Frame:
    """Draw it.

    Raises:
        FigureError: the runner looks on, and the figure breaks the rules of `lint.look_over`.
    """
    refuse(drawing.figure)
    return Frame(png(drawing.figure), drawing.words, dict(drawing.numbers), drawing.photo)


def multiples(frames: Mapping[str, Frame]) -> bytes:
    """Pictures side by side as one PNG, each under its caption; the same bytes for the same pictures.

    As many beside each other as `WIDEST` has room for, all in cells of the largest one's size.

    Args:
        frames: by caption ("λ 0.3"); a caption may be empty.
    """
    pictures = [Image.open(io.BytesIO(one.png)).convert("RGB") for one in frames.values()]
    if len(pictures) == 1 and not any(frames):
        return next(iter(frames.values())).png
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans-Bold.ttf", _CAPTION)
    wide, high = (max(one.size[side] for one in pictures) for side in (0, 1))
    captions = [_wrapped(caption, font, wide) for caption in frames]
    columns = max(1, min(len(pictures), (WIDEST + _GAP) // (wide + _GAP)))
    rows = -(-len(pictures) // columns)
    line = round(1.4 * _CAPTION)
    head = line * max(len(lines) for lines in captions) + _CAPTION // 2
    sheet = Image.new("RGB", (columns * (wide + _GAP) - _GAP, rows * (head + high + _GAP) - _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (lines, picture) in enumerate(zip(captions, pictures, strict=True)):
        x, y = place % columns * (wide + _GAP), place // columns * (head + high + _GAP)
        for row, text in enumerate(lines):
            pen.text((x + wide / 2, y + line * (row + 0.6)), text, fill="black", font=font, anchor="mm")
        sheet.paste(picture, (x + (wide - picture.size[0]) // 2, y + head))
    stream = io.BytesIO()
    sheet.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _wrapped(caption: str, font: ImageFont.FreeTypeFont, wide: int) -> list[str]:
    """A caption in as many lines as it needs; a word that is too long for one is cut with "…"."""
    lines = [""]
    for word in caption.split():
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= wide or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return [line if font.getlength(line) <= wide else _cut(line, font, wide) for line in lines]


def _cut(word: str, font: ImageFont.FreeTypeFont, wide: int) -> str:
    while word and font.getlength(f"{word}…") > wide:
        word = word[:-1]
    return f"{word}…"


def table(settings: Sequence[Mapping[str, object]], frames: Sequence[Frame], caption: str) -> Table:
    """The numbers that the figure stands for at several settings: a row per setting, or per number if these are more.

    Args:
        settings: by slider's name, what it stands at.
        frames: what is drawn there.
        caption: the figure's title.
    """
    names = list(dict.fromkeys(name for one in frames for name in one.numbers))
    sliders = list(settings[0]) if settings else []
    columns = [[*setting.values()] for setting in settings]
    values = [[_short(one.numbers.get(name)) for name in names] for one in frames]
    rows = [first + second for first, second in zip(columns, values, strict=True)]
    heads = [*sliders, *names]
    if len(names) > len(settings):
        heads, rows = (
            [heads[0], *(str(row[0]) for row in rows)],
            [[head, *(row[place] for row in rows)] for place, head in enumerate(heads) if place],
        )
    return Table(heads, rows, caption=caption)


def _short(value: object) -> object:
    """A number with three digits that count; whole ones as they are."""
    if not isinstance(value, float):
        return value
    value += 0.0  # −0 is 0
    text = f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:#.3g}".rstrip(".")
    return text.replace("-", "−")
