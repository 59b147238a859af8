"""One table type: the same rows in a notebook, in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from unicodedata import combining, east_asian_width

__all__ = ["Table", "written"]


def written(value: float, digits: int) -> str:
    """A number with so many decimals and a minus sign of its own; no "−0.00", and "–" for NaN."""
    if value != value:
        return "–"
    text = f"{value:.{digits}f}"
    return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")


class Table:
    """Rows under named columns, shown as HTML in a notebook, as aligned text in a terminal, and as Markdown.

    Args:
        columns: the headings.
        rows: one sequence of cells per row, as long as `columns`. Floats are shown with `digits` decimals, NaN and
            None as "–"; everything else with `str`, on one line. Numbers of NumPy and PyTorch are numbers.
        caption: a line above the table.
        note: a line below it: units, the data used, what to bear in mind.
        digits: decimals of every float.
        bold: numbers of the rows to emphasise, counted from 0 (an average under the tasks, say).

    Raises:
        ValueError: a row is longer or shorter than `columns`.
    """

    def __init__(
        self,
        columns: Sequence[str],
        rows: Iterable[Sequence[object]],
        *,
        caption: str = "",
        note: str = "",
        digits: int = 1,
        bold: Sequence[int] = (),
    ) -> None:
        self.columns = tuple(columns)
        self.rows = tuple(tuple(row) for row in rows)
        self.caption, self.note, self.digits = caption, note, digits
        self.bold = frozenset(bold)
        for number, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(f"row {number} has {len(row)} cells for {len(self.columns)} columns")

    def column(self, name: str) -> list[object]:
        """The cells under one heading, from top to bottom."""
        place = self.columns.index(name)
        return [row[place] for row in self.rows]

    def _cell(self, value: object) -> str:
        value = _plain(value)
        if value is None:
            return "–"
        if isinstance(value, float):
            return written(value, self.digits)
        if _is_number(value):
            return str(value).replace("-", "−")
        return _one_line(str(value))

    def _heads(self) -> list[str]:
        return [_one_line(column) for column in self.columns]

    def _cells(self) -> list[list[str]]:
        return [[self._cell(value) for value in row] for row in self.rows]

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers only, and so stand flush right."""
        return [
            bool(self.rows) and all(row[i] is None or _is_number(_plain(row[i])) for row in self.rows)
            for i in range(len(self.columns))
        ]

    def __str__(self) -> str:
        heads, cells, numeric = self._heads(), self._cells(), self._numeric()
        widths = [max(_width(line[i]) for line in [heads, *cells]) for i in range(len(heads))]

        def line(texts: Sequence[str]) -> str:
            blanks = [" " * (width - _width(text)) for text, width in zip(texts, widths, strict=True)]
            padded = [
                blank + text if right else text + blank
                for text, blank, right in zip(texts, blanks, numeric, strict=True)
            ]
            return "  ".join(padded).rstrip()

        parts = [self.caption] if self.caption else []
        parts += [line(heads), "  ".join("─" * width for width in widths), *(line(row) for row in cells)]
        return "\n".join([*parts, self.note] if self.note else parts)

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        numeric = self._numeric()

        def line(texts: Sequence[str]) -> str:
            return "| " + " | ".join(texts) + " |"

        body = [
            line([f"**{text}**" if number in self.bold and text else text for text in map(_as_it_stands, row)])
            for number, row in enumerate(self._cells())
        ]
        rule = "|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|"
        parts = [f"{_as_it_stands(self.caption)}\n"] if self.caption else []
        parts += [line([_as_it_stands(head) for head in self._heads()]), rule, *body]
        return "\n".join([*parts, f"\n{_as_it_stands(self.note)}"] if self.note else parts)

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def _repr_html_(self) -> str:
        numeric = self._numeric()

        def line(texts: Sequence[str], tag: str, strong: bool = False) -> str:
            cells = []
            for text, right in zip(texts, numeric, strict=True):
                inner = f"<strong>{escape(text)}</strong>" if strong else escape(text)
                scope = ' scope="col"' if tag == "th" else ""
                cells.append(f'<{tag}{scope} style="text-align:{"right" if right else "left"}">{inner}</{tag}>')
            return f"<tr>{''.join(cells)}</tr>"

        caption = (
            f'<caption style="text-align:left;white-space:nowrap">{escape(self.caption)}</caption>'
            if self.caption
            else ""
        )
        body = "".join(line(row, "td", number in self.bold) for number, row in enumerate(self._cells()))
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return f"<table>{caption}<thead>{line(self._heads(), 'th')}</thead><tbody>{body}</tbody></table>{note}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: object) -> object:
    """A number of NumPy, or a tensor of one number, as Python's own."""
    item = getattr(value, "item", None)
    return item() if callable(item) and getattr(value, "ndim", None) == 0 else value


def _one_line(text: str) -> str:
    return " ".join(text.splitlines())


def _width(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese and Japanese signs take two, accents of their own none."""
    return sum(0 if combining(sign) else 2 if east_asian_width(sign) in "WF" else 1 for sign in text)


def _as_it_stands(text: str) -> str:
    """Text for Markdown in which no sign opens a cell, a tag, an entity, an emphasis or code."""
    for sign in "\\|<&*`":
        text = text.replace(sign, f"\\{sign}")
    return text
