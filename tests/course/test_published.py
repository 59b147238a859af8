"""Every committed notebook is the published form of its source."""

from pathlib import Path

import pytest

from apgd_teach.course.build import check_built, documents, header_shown, quotable, readme_pictures
from apgd_teach.course.header import header
from apgd_teach.course.lint import lint
from apgd_teach.course.prose import stale
from apgd_teach.course.sources import read_notebook

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted((NOTEBOOKS / "source").glob("[0-9][0-9]_*.py"))


def test_there_is_a_course():
    assert SOURCES != []


def test_no_committed_notebook_has_lost_its_source():
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} <= {source.stem for source in SOURCES}


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_source_has_nothing_wrong_that_can_be_seen(source):
    assert lint(read_notebook(source), source.name) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_notebook_is_its_sources_published_form(source):
    assert check_built(NOTEBOOKS / f"{source.stem}.ipynb", source) == []


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_committed_notebook_shows_the_minutes_that_were_measured(source):
    for_a_gpu = "accelerator=True" in source.read_text(encoding="utf-8")
    assert header_shown(NOTEBOOKS / f"{source.stem}.ipynb") == str(header(source.stem[:2], accelerator=for_a_gpu))


@pytest.mark.parametrize("path", documents(NOTEBOOKS.parent), ids=lambda path: path.name)
def test_numbers_in_documents_are_those_of_the_notebooks(path):
    assert stale(path.read_text(encoding="utf-8"), quotable(NOTEBOOKS), path.name) == []


def test_the_readme_shows_the_picture_of_the_published_notebook():
    pictures = [picture for source in SOURCES for picture in readme_pictures(NOTEBOOKS / f"{source.stem}.ipynb")]
    assert pictures == [(NOTEBOOKS.parent / "docs" / "result.png").read_bytes()]
    assert "](docs/result.png)" in (NOTEBOOKS.parent / "README.md").read_text(encoding="utf-8")
