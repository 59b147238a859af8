"""One table type: the same rows in a notebook, in a terminal and in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

__all__ = ["Table"]


class Table:
    """Rows under named columns, shown as HTML in a notebook, as aligned text in a terminal, and as Markdown.

    Args:
        columns: the headings.
        rows: one sequence of cells per row, as long as `columns`. Floats are shown with `digits` decimals, NaN and
            None as "–"; everything else with `str`.
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
        if value is None or (isinstance(value, float) and value != value):
            return "–"
        if isinstance(value, float):
            text = f"{value:.{self.digits}f}"
            return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")
        return str(value)

    def _cells(self) -> list[list[str]]:
        return [[self._cell(value) for value in row] for row in self.rows]

    def _numeric(self) -> list[bool]:
        """Which columns hold numbers only, and so stand flush right."""
        return [
            bool(self.rows) and all(row[i] is None or _is_number(row[i]) for row in self.rows)
            for i in range(len(self.columns))
        ]

    def __str__(self) -> str:
        cells, numeric = self._cells(), self._numeric()
        widths = [max(len(line[i]) for line in [list(self.columns), *cells]) for i in range(len(self.columns))]

        def line(texts: Sequence[str]) -> str:
            padded = [
                text.rjust(width) if right else text.ljust(width)
                for text, width, right in zip(texts, widths, numeric, strict=True)
            ]
            return "  ".join(padded).rstrip()

        parts = [self.caption] if self.caption else []
        parts += [line(self.columns), "  ".join("─" * width for width in widths), *(line(row) for row in cells)]
        return "\n".join([*parts, self.note] if self.note else parts)

    __repr__ = __str__

    def to_markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        numeric = self._numeric()

        def line(texts: Sequence[str]) -> str:
            return "| " + " | ".join(text.replace("|", "\\|").replace("\n", " ") for text in texts) + " |"

        body = [
            line([f"**{text}**" if number in self.bold else text for text in row])
            for number, row in enumerate(self._cells())
        ]
        rule = "|" + "|".join(" ---: " if right else " --- " for right in numeric) + "|"
        parts = [f"{self.caption}\n"] if self.caption else []
        parts += [line(self.columns), rule, *body]
        return "\n".join([*parts, f"\n{self.note}"] if self.note else parts)

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

        caption = f'<caption style="text-align:left">{escape(self.caption)}</caption>' if self.caption else ""
        body = "".join(line(row, "td", number in self.bold) for number, row in enumerate(self._cells()))
        note = f"<p><small>{escape(self.note)}</small></p>" if self.note else ""
        return f"<table>{caption}<thead>{line(self.columns, 'th')}</thead><tbody>{body}</tbody></table>{note}"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
