"""Slides say what the published notebooks say, and open without a network."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import nbformat
import pytest

from apgd_teach.course.header import DEPTH
from apgd_teach.course.slides import main, slides, to_page
from apgd_teach.course.sources import notebooks_folder, read_notebook

PUBLISHED = sorted(notebooks_folder().glob("[0-9][0-9]_*.ipynb"))


def made_up() -> nbformat.NotebookNode:
    v4 = nbformat.v4
    picture = {"image/png": "iVBORw0KGgo=", "text/plain": "a table"}

    def figure(words: str) -> nbformat.NotebookNode:
        shown = v4.new_output("execute_result", picture, execution_count=1, metadata={"image/png": {"alt": words}})
        return v4.new_code_cell("draw()", outputs=[shown])

    told = v4.new_output("execute_result", {"text/markdown": "**Shown**: 3 < 4.", "text/plain": ""}, execution_count=1)
    return v4.new_notebook(
        metadata={"apgd_teach": {"profile": "full"}},
        cells=[
            v4.new_markdown_cell("# 07 · A lesson\n\n**By the end you will have shown that** $a < b$."),
            v4.new_markdown_cell("## First\n\nText.\n\n$$a = 1$$\n\n> **Predict before you run.** Is\n> it?\n\nMore."),
            figure('words with "quotes" & signs'),
            v4.new_markdown_cell("### Details · in depth\n\n> **Predict before you run.** Left out?"),
            figure("left out"),
            v4.new_markdown_cell("## All of it · in depth\n\n### A part\n\n> **Predict before you run.** Out, too?"),
            figure("left out, too"),
            v4.new_markdown_cell("## What this run showed · short route"),
            v4.new_code_cell("say()", outputs=[told]),
        ],
    )


def test_a_slide_for_claim_formulas_question_figure_and_what_was_shown() -> None:
    claim, formulas, question, figure, showed = slides(made_up())
    assert "07 · A lesson" in claim
    assert "<math" in claim
    assert formulas.count("<math") == 1
    assert re.search(r"Is\s+it\?", question)
    assert "More" not in question
    assert 'alt="words with &quot;quotes&quot; &amp; signs"' in figure
    assert "<h2>First</h2>" in figure
    assert "<strong>Shown</strong>: 3 &lt; 4." in showed


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_every_lesson_has_its_questions_and_figures(path: Path) -> None:
    notebook, page = read_notebook(path), to_page(read_notebook(path))
    questions = figures = 0
    whole = depth = False
    for cell in notebook.cells:
        for level, title in re.findall(r"(?m)^(#{2,3}) (.+)$", cell.source) if cell.cell_type == "markdown" else []:
            whole = title.endswith(DEPTH) if level == "##" else whole
            depth = whole or title.endswith(DEPTH)
        questions += 0 if depth else cell.source.count("> **Predict before you run.**")
        figures += 0 if depth else sum("image/png" in one.get("data", {}) for one in cell.get("outputs", []))
    assert page.count("Predict before you run.") == questions
    assert page.count("<img") == figures
    assert page.count("<section>") >= 2 + questions + figures
    assert not re.search(r'(?:src|href)="(?!data:|#|https://(?:arxiv|doi))[^"]*//', page)


@pytest.mark.browser
def test_they_are_seen_whole_and_the_keys_lead_on(browser: Any, tmp_path: Path) -> None:
    assert main([str(tmp_path / "slides")]) == 0
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 720})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda one: asked.append(one.url))
    sizes = """() => [...document.querySelectorAll('section')].map(
        (one) => [one.scrollHeight - one.clientHeight, one.scrollWidth - one.clientWidth])"""
    for path in sorted((tmp_path / "slides").glob("*.html")):
        page.goto(path.as_uri())
        for slide, (down, across) in enumerate(page.evaluate(sizes)):
            assert max(down, across) <= 2, (path.name, slide)
    assert len(asked) >= len(PUBLISHED)
    assert all(url.startswith(("file:", "data:")) for url in asked)
    top = "() => Math.round(scrollY / innerHeight)"
    for key, place in (("ArrowRight", 1), (" ", 2), ("PageUp", 1), ("ArrowLeft", 0), ("ArrowUp", 0)):
        page.keyboard.press(key)
        page.wait_for_function(f"() => Math.round(scrollY / innerHeight) === {place}", timeout=5000)
        assert page.evaluate(top) == place
    context.close()


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("here")
    assert main([str(tmp_path / "file")]) == 1
    said = capsys.readouterr().err
    assert "file" in said
    assert "Traceback" not in said
    assert len(said.strip().splitlines()) == 1
