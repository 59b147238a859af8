"""The site: made by one command without a warning, whole, linked both ways, and no page asks for anything elsewhere."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
COMMAND = runpy.run_path(str(ROOT / "run.py"))["COMMANDS"]["site"]
pytestmark = pytest.mark.slow


@dataclass
class Page(HTMLParser):
    """What a page has: places to link to, links, pictures with their words, and what it loads."""

    text: str
    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.ids |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "img":
            self.pictures.append((found.get("src", ""), found.get("alt", "")))
        if tag in ("script", "img", "iframe") and "src" in found:
            self.loads.append(found["src"])
        if tag == "link" and found.get("rel") in ("stylesheet", "icon", "preload"):
            self.loads.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, made as `run.py site` makes it, in a folder of its own."""
    out = tmp_path_factory.mktemp("site")
    places = {"output/doctrees": str(out / "doctrees"), "output/site": str(out / "site")}
    command = [sys.executable, "-m", *(places.get(word, word) for word in COMMAND)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": ""})
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out / "site"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    found = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    assert len(found) > 150
    return found


def test_it_has_the_course_the_guides_and_the_library(pages: dict[Path, Page], site: Path) -> None:
    names = {str(path.relative_to(site)) for path in pages}
    lessons = {f"notebooks/{path.stem}.html" for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    written = {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert lessons | written | {"README.html", "CONTRIBUTING.html", "docs/api/apgd_teach.merging.apgd.html"} <= names


def test_every_link_within_it_leads_somewhere(pages: dict[Path, Page], site: Path) -> None:
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            if not there.is_file():
                wrong.append(f"{path.relative_to(site)}: {link}")
            elif parts.fragment and there in pages and unquote(parts.fragment) not in pages[there].ids:
                wrong.append(f"{path.relative_to(site)}: {link} (no such place)")
    assert not wrong


def test_no_page_loads_anything_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for one in page.loads:
            assert not urlsplit(one).netloc, (path.name, one)


def test_equations_and_code_lead_to_each_other(pages: dict[Path, Page], site: Path) -> None:
    equations, basis = site / "docs/equations.html", site / "docs/api/apgd_teach.merging.subspace.html"
    assert "api/apgd_teach.merging.subspace.html#apgd_teach.merging.subspace.shared_basis" in pages[equations].links
    assert "../equations.html#equation-10" in pages[basis].links
    assert any(link.startswith("../notebooks/05_") for link in pages[equations].links)
    assert any(link.startswith("../../notebooks/05_") for link in pages[basis].links)


def test_each_page_says_its_language(pages: dict[Path, Page], site: Path) -> None:
    spoken = {path.name: path.read_text(encoding="utf-8").partition('lang="')[2][:2] for path in pages}
    assert spoken.pop("decision.ja.html") == "ja"
    assert set(spoken.values()) == {"en"}


def test_every_picture_of_a_lesson_has_words(pages: dict[Path, Page], site: Path) -> None:
    counted = 0
    for path, page in pages.items():
        if path.parent.name == "notebooks":
            for source, words in page.pictures:
                counted += 1
                assert len(words) > 20, (path.name, source)
    assert counted > 30


@pytest.fixture(scope="module")
def opened(browser: Any, site: Path, pages: dict[Path, Page]) -> Iterator[dict[str, Any]]:
    """Every page in Chromium: what it asked for, what failed, and how large its formulas are."""
    context = browser.new_context(offline=True)
    page = context.new_page()
    found: dict[str, Any] = {"asked": set(), "failed": [], "errors": [], "formulas": {}}
    page.on("request", lambda one: found["asked"].add(urlsplit(one.url).scheme))
    page.on("requestfailed", lambda one: found["failed"].append(one.url))
    page.on("pageerror", lambda one: found["errors"].append(str(one)))
    page.on("console", lambda one: found["errors"].append(one.text) if one.type == "error" else None)
    for path in pages:
        if path != site / "index.html":  # it leads on at once
            page.goto(path.as_uri())
            sizes = "() => [...document.querySelectorAll('math')].map((one) => one.getBoundingClientRect().height)"
            found["formulas"][path.name] = page.evaluate(sizes)
    page.goto((site / "index.html").as_uri())
    page.wait_for_url("**/docs/index.html")
    yield found
    context.close()


@pytest.mark.browser
def test_every_page_opens_in_a_browser_without_a_network(opened: dict[str, Any]) -> None:
    assert opened["asked"] <= {"file", "data"}
    assert opened["failed"] == []
    assert opened["errors"] == []


@pytest.mark.browser
def test_formulas_are_seen(opened: dict[str, Any]) -> None:
    assert len(opened["formulas"]["equations.html"]) > 25
    for name, heights in opened["formulas"].items():
        assert all(height > 5 for height in heights), name
