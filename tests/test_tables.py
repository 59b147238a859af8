from __future__ import annotations

import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apgd_teach.tables import Table


class Cells(HTMLParser):
    """The table that a browser reads out of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.lines: list[list[str]] = []
        self.outside = ""
        self.inside = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs) -> None:
        if tag == "tr":
            self.lines.append([])
        elif tag in ("td", "th"):
            self.lines[-1].append("")
            self.inside = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.lines[-1][-1] += data
        else:
            self.outside += data


def from_html(table: Table) -> list[list[str]]:
    return Cells(table._repr_html_()).lines


def from_markdown(table: Table) -> list[list[str]]:
    """The table that a renderer reads out of Markdown: a sign after a backslash is itself."""
    lines = [line for line in table.to_markdown().splitlines() if line.startswith("| ")]
    cells = [re.findall(r"((?:\\.|[^|\\])*)\|", line[1:]) for line in lines]
    plain = [[re.sub(r"\\(.)", r"\1", re.sub(r"^\*\*(.*)\*\*$", r"\1", cell[1:-1])) for cell in line] for line in cells]
    return [plain[0], *plain[2:]]


def from_text(table: Table) -> list[list[str]]:
    """The table that a reader sees in a terminal, cut where the rule has its gaps."""
    lines = str(table).splitlines()
    place = next(number for number, line in enumerate(lines) if re.fullmatch(r"(─+  )*─+", line))
    edges = [match.span() for match in re.finditer("─+", lines[place])]
    return [[line[a:b].strip() for a, b in edges] for line in [lines[place - 1], *lines[place + 1 :]]]


def shown(value: object, digits: int = 1) -> str:
    faces = [face(Table(["x"], [[value]], digits=digits))[1][0] for face in (from_text, from_markdown, from_html)]
    assert faces[0] == faces[1] == faces[2]
    return faces[0]


def test_text_markdown_and_html_show_the_same_cells() -> None:
    table = Table(
        ("task", "accuracy", "images"),
        [("digits", 90.04, 2000), ("fashion", None, 2000)],
        digits=1,
        caption="C",
        note="N",
    )
    expected = [["task", "accuracy", "images"], ["digits", "90.0", "2000"], ["fashion", "–", "2000"]]
    assert from_markdown(table) == from_html(table) == expected
    assert str(table) == "\n".join(
        [
            "C",
            "task     accuracy  images",
            "───────  ────────  ──────",
            "digits       90.0    2000",
            "fashion         –    2000",
            "N",
        ]
    )
    assert repr(table) == str(table)
    assert (
        table.to_markdown()
        == table._repr_markdown_()
        == "\n".join(
            [
                "C",
                "",
                "| task | accuracy | images |",
                "| --- | ---: | ---: |",
                "| digits | 90.0 | 2000 |",
                "| fashion | – | 2000 |",
                "",
                "N",
            ]
        )
    )
    assert Cells(table._repr_html_()).outside == "CN"


texts = st.text(st.sampled_from(list("ab|<>&\\ \n\r*`é日")), max_size=6).map(lambda text: f"x{text}x")
cells = st.one_of(texts, st.none(), st.booleans(), st.integers(-99, 99), st.floats(-99, 99), st.just(math.nan))


@given(rows=st.lists(st.tuples(cells, cells), max_size=4), head=texts)
def test_whatever_stands_in_a_cell_markdown_and_html_agree(rows, head: str) -> None:
    table = Table((head, "y"), rows, bold=[0])
    assert len(from_markdown(table)) == len(from_html(table)) == len(rows) + 1
    assert from_markdown(table) == from_html(table)
    body = str(table).splitlines()
    assert len(body) == len(rows) + 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a|b", "a|b"),
        ("a\\|b", "a\\|b"),
        ("<b>bold</b>", "<b>bold</b>"),
        ("&lt;", "&lt;"),
        ("C:\\data", "C:\\data"),
        ("*a* `b`", "*a* `b`"),
        ("two\nlines", "two lines"),
        ("two\r\nlines", "two lines"),
        (None, "–"),
        (math.nan, "–"),
        (np.float32("nan"), "–"),
        (torch.tensor(math.nan), "–"),
        (math.inf, "inf"),
        (-math.inf, "−inf"),
        (1.0, "1.0"),
        (-1.26, "−1.3"),
        (-0.0, "0.0"),
        (-0.04, "0.0"),
        (0.04, "0.0"),
        (3, "3"),
        (-3, "−3"),
        (True, "True"),
        (np.float64(2.55), "2.5"),
        (np.float32(2.25), "2.2"),
        (np.int64(-7), "−7"),
        (np.bool_(True), "True"),
        (np.array(1.5), "1.5"),
        (np.str_("a"), "a"),
        (torch.tensor(2.5), "2.5"),
        (torch.tensor(-2), "−2"),
        (torch.tensor(1.5, dtype=torch.bfloat16), "1.5"),
        (torch.nn.Parameter(torch.tensor(1.5)), "1.5"),
        ("-1 is text", "-1 is text"),
    ],
)
def test_a_cell_is_shown_alike_everywhere(value: object, text: str) -> None:
    assert shown(value) == text


def test_the_signs_of_html_and_markdown_are_disarmed() -> None:
    table = Table(["<i>"], [["<script>|"]], caption="a <b>", note="c & d")
    html, markdown = table._repr_html_(), table.to_markdown()
    assert "<script>" not in html
    assert "<i>" not in html
    assert "a &lt;b&gt;" in html
    assert "c &amp; d" in html
    assert markdown.splitlines() == ["a \\<b>", "", "| \\<i> |", "| --- |", "| \\<script>\\| |", "", "c \\& d"]


@pytest.mark.parametrize(("digits", "text"), [(0, "3"), (1, "2.7"), (3, "2.718")])
def test_the_decimals_are_those_asked_for(digits: int, text: str) -> None:
    assert shown(math.e, digits) == text
    assert shown(-0.0001, digits) == f"{0:.{digits}f}"


@pytest.mark.parametrize("column", [[1, 2.5, None], [math.nan], [np.float32(1), torch.tensor(2)], [-1]])
def test_numbers_stand_flush_right(column) -> None:
    table = Table(["a long heading"], [[value] for value in column])
    assert "---:" in table.to_markdown()
    assert "text-align:right" in table._repr_html_()
    assert all(line.startswith("  ") for line in str(table).splitlines()[2:])


@pytest.mark.parametrize("column", [["a"], [1, "2"], [True, False], [1.5, True]])
def test_text_stands_flush_left(column) -> None:
    table = Table(["a long heading"], [[value] for value in column])
    assert "---:" not in table.to_markdown()
    assert "text-align:left" in table._repr_html_()
    assert not any(line.startswith(" ") for line in str(table).splitlines())


@pytest.mark.parametrize("row", [(), (1,), (1, 2, 3)])
def test_a_row_of_another_length_is_named(row) -> None:
    with pytest.raises(ValueError, match=rf"row 1 has {len(row)} cells for 2 columns"):
        Table(("a", "b"), [(1, 2), row])


def test_an_empty_table_still_has_its_headings() -> None:
    table = Table(("a", "heading"), [])
    assert str(table) == "a  heading\n─  ───────"
    assert table.to_markdown() == "| a | heading |\n| --- | --- |"
    assert from_html(table) == [["a", "heading"]]
    assert table.column("a") == []


def test_signs_that_take_two_columns_or_none_keep_the_columns_in_line() -> None:
    accent = "e\u0301"  # é, written as a letter and an accent of its own
    lines = str(Table(("名前", "x"), [("日本語", "1"), ("ab", "2"), (accent, "3")])).splitlines()
    assert lines == ["名前    x", "──────  ─", "日本語  1", "ab      2", f"{accent}       3"]


def test_rows_to_emphasise_are_bold_and_no_others() -> None:
    table = Table(("a", "b"), [("x", 1.0), ("mean", 2.0)], bold=[1])
    assert table.to_markdown().splitlines()[2:] == ["| x | 1.0 |", "| **mean** | **2.0** |"]
    assert table._repr_html_().count("<strong>") == 2
    assert "<strong>mean</strong>" in table._repr_html_()
    assert "*" not in str(table)


def test_an_empty_cell_of_a_bold_row_is_empty_and_not_four_stars() -> None:
    assert Table(("a", "b"), [("", "x")], bold=[0]).to_markdown().splitlines()[-1] == "|  | **x** |"


def test_a_column_gives_back_what_went_in() -> None:
    table = Table(("a", "b"), iter([("x", 1.25), ("y", None)]))
    assert table.column("b") == [1.25, None]
    assert str(table) == str(table)
    with pytest.raises(ValueError, match="not in tuple"):
        table.column("c")
