"""Pages open without a network, show formulas without scripts, and tell pictures in words."""

import re
from html import unescape
from pathlib import Path

import nbformat
import pytest

from apgd_teach.course.mathml import markdown_to_html, to_mathml
from apgd_teach.course.publish import WIDGET_VIEW, claim, heading, to_html, write_index
from apgd_teach.course.runner import RunResult, run_course
from apgd_teach.course.sources import read_notebook, to_notebook
from apgd_teach.errors import CourseError


def text_of(html: str) -> str:
    return re.sub(r"<[^>]+>", "", html)


@pytest.mark.parametrize(
    "markdown",
    [
        "costs $5 here and $6 there",
        "costs $5-$6",
        "US$5 or $6",
        "`$x$`",
        "```\n$$x$$ and $y$\n```",
        "    indented $x$",
        r"\$x\$",
    ],
)
def test_dollars_in_prices_and_code_are_no_formulas(markdown):
    html = markdown_to_html(markdown)
    assert "<math" not in html
    assert html.count("$") == markdown.count("$")


def test_a_price_before_a_code_span_with_a_dollar_is_no_formula():
    assert "<math" not in markdown_to_html("costs $6 there; `$HOME` is no formula")


def test_a_price_and_a_formula_live_in_one_sentence():
    html = markdown_to_html(r"costs $5; then $\theta_0$ and `$a$`, $b$")
    assert html.count("<math") == 2
    assert "costs $5; then <math" in html
    assert "<code>$a$</code>" in html


@pytest.mark.parametrize(
    ("markdown", "display"),
    [
        ("$x$", "inline"),
        (r"\(x\)", "inline"),
        (r"\\(x\\)", "inline"),
        ("$$x$$", "block"),
        ("$$\nx\n$$", "block"),
        (r"\\[x\\]", "block"),
        (r"\begin{equation}x\end{equation}", "block"),
    ],
)
def test_every_way_to_write_a_formula_becomes_mathml(markdown, display):
    html = markdown_to_html(f"before {markdown} after" if display == "inline" else markdown)
    assert f'display="{display}"' in html
    assert "<mi>x</mi>" in html
    assert "$" not in html
    assert "\\" not in html


def test_markdown_marks_inside_a_formula_are_left_alone():
    html = markdown_to_html("$a_1*b_1*c_1$ and *really*")
    assert html.count("<em>") == 1
    assert html.count("<msub>") == 3


def test_formulas_work_in_headings_and_tables():
    html = markdown_to_html("# The gap $\\lambda$\n\n| a | b |\n|---|---|\n| $x$ | $y$ |\n")
    assert re.search(r'<h1 id="The-gap-λ">The gap <math', html)
    assert html.count("<td><math") == 2


@pytest.mark.parametrize("latex", [r"\frac{1}{", r"\frac{1}{2", r"\unknowncommand{x}"])
def test_a_formula_that_cannot_be_shown_raises_and_on_a_page_is_shown_as_written(latex):
    with pytest.raises(CourseError, match="cannot be turned into MathML"):
        to_mathml(latex)
    assert f"<code>{latex}</code>" in markdown_to_html(f"${latex}$")


def test_heading_and_claim_come_from_the_text(source):
    page = to_notebook(source("page"))
    assert heading(page) == "Averaging, λ=1/T"
    assert claim(page).startswith("**Claim.** The average of good experts")
    assert claim(to_notebook(source("good"))).startswith("By the end you will have shown")
    assert heading(to_notebook(source("raises"))) == ""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """The pages of three fixture notebooks, one of which fails."""
    folder, fixtures = tmp_path_factory.mktemp("course"), Path(__file__).parent / "fixtures"
    run_course([fixtures / f"{name}.py" for name in ("good", "page", "raises")], folder, budget_s=60)
    return folder


def test_a_page_names_no_address_that_it_would_fetch(course):
    for name in ("good", "page", "raises", "index"):
        page = (course / f"{name}.html").read_text(encoding="utf-8")
        assert "<script" not in page
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
        assert not re.search(r"url\(\s*[\"']?(?:https?:)?//", page)
        assert "@import" not in page
        assert '<html lang="en"' in page
        assert 'name="viewport"' in page


def test_a_page_has_a_title_and_links_to_its_neighbours(course):
    page = (course / "page.html").read_text(encoding="utf-8")
    assert "<title>Averaging, λ=1/T</title>" in page
    assert re.search(r'<a href="good.html" rel="prev">← A good notebook</a>', page)
    assert re.search(r'<a href="raises.html" rel="next">raises →</a>', page)
    assert 'href="index.html"' in page
    assert 'rel="prev"' not in (course / "good.html").read_text(encoding="utf-8")


def test_pictures_have_the_text_they_were_displayed_with(course):
    page = (course / "page.html").read_text(encoding="utf-8")
    alts = re.findall(r"<img alt=(\"[^\"]*\"|'[^']*')", page)
    assert [alt[1:-1].replace("&quot;", '"') for alt in alts] == [
        'a "rising" curve',
        "a curve told as text",
        "the panel at slope 2",
    ]


def test_a_panel_on_a_page_is_its_picture_its_words_and_its_numbers(tmp_path):
    fixture = Path(__file__).parent / "fixtures" / "panels.py"
    (result,) = run_course([fixture], tmp_path, budget_s=60)
    assert result.ok, result.message
    page = (tmp_path / "panels.html").read_text(encoding="utf-8")
    pictures = re.findall(r"<img[^>]*>", page)
    assert len(pictures) == 5
    alts = [re.search(r"""alt=("[^"]*"|'[^']*'|\S+)""", one)[1] for one in pictures]
    assert "frequency f 5 Hz: At frequency 5 the wave ends at -0.959." in alts[0]
    assert "Eight calm maps to the power 3." in alts[1]
    # What a dark page may turn round, and what it must not.
    assert ['class="plot"' in one or "class=plot" in one for one in pictures] == [True] * 4 + [False]
    tables = [unescape(one) for one in re.findall(r"<details class=\"?in-words.*?<pre>(.*?)</pre>", page, re.S)]
    assert len(tables) == 3
    assert re.search(r"^5 Hz +−0.959$", tables[0], re.M)
    assert WIDGET_VIEW not in page


def test_a_widget_gives_way_to_its_picture_and_the_notebook_is_not_changed(course, tmp_path):
    notebook = read_notebook(course / "page.ipynb")
    before = nbformat.writes(notebook)
    assert WIDGET_VIEW in before
    to_html(notebook, tmp_path / "again.html")
    assert nbformat.writes(notebook) == before
    page = (tmp_path / "again.html").read_text(encoding="utf-8")
    assert WIDGET_VIEW not in page
    assert "the panel at slope 2" in page
    assert "IntSlider(value=0" in page


def test_the_index_tells_state_profile_and_claim(course):
    page = (course / "index.html").read_text(encoding="utf-8")
    assert "2 of 3 notebooks ran to their end" in text_of(page)
    assert "raises, cell 3: raised ValueError: the third cell is broken" in text_of(page)
    assert page.count("fast: sizes for a quick look; never quote them") >= 3
    assert 'href="page.html"' in page
    assert "can be worse than the base" in page
    assert "<math" in page


def test_the_index_of_a_full_run_has_no_fast_stamp(course, tmp_path):
    notebook = read_notebook(course / "good.ipynb")
    result = RunResult("good<b>", True, 3.0, 100.0, "full", "ran")
    page = write_index(tmp_path, [result], {"good<b>": notebook}).read_text(encoding="utf-8")
    assert "quick look" not in page
    assert "full: the published sizes" in page
    assert "<b>" not in page


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_browser_shows_the_pages_without_a_request(browser, course, scheme):
    page = browser.new_context(viewport={"width": 375, "height": 700}, color_scheme=scheme).new_page()
    requests: list[str] = []
    errors: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((course / "page.html").as_uri())
    heights = page.eval_on_selector_all("math", "all => all.map(one => one.getBoundingClientRect().height)")
    assert len(heights) >= 8
    assert min(heights) > 5
    # A fraction that is drawn is taller than a single letter.
    assert max(heights) > 1.5 * min(heights)
    pictures = page.eval_on_selector_all("img", "all => all.map(one => [one.alt, one.naturalWidth])")
    assert len(pictures) == 3
    assert all(alt and width > 100 for alt, width in pictures)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone must not scroll sideways"
    page.click("nav a[rel=prev]")
    assert page.title() == "A good notebook"
    page.click("text=All notebooks")
    assert page.locator("li.page").count() == 3
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "a phone must not scroll sideways"
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len(requests) >= 3
    assert errors == []
    page.context.close()
