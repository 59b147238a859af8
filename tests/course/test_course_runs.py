"""The whole course runs, in the fast profile, with the network blocked and nothing cached.

The learners' versions are run by tests/lab, in JupyterLab.
"""

import nbformat
import pytest

from apgd_teach.course import list_sources
from apgd_teach.lessons.engine import CORRECT


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_course_runs_from_a_clone_with_the_cable_out(ran, told):
    assert [result.name for result in ran.results] == [source.stem for source in list_sources()]
    assert [result.message for result in ran.results if not result.ok] == []
    assert any(name.startswith("expert-") for name in ran.trained)
    assert told.of_training(nbformat.read(ran.folder / f"{ran.results[0].name}.ipynb", as_version=4)) != []
    assert {result.profile for result in ran.results} == {"fast"}
    assert (ran.folder / "index.html").is_file()
    for result in ran.results:
        page = (ran.folder / f"{result.name}.html").read_text(encoding="utf-8")
        assert "\r" not in page
        assert ".ipynb" not in page, "a page leads to pages"
        solved = nbformat.read(ran.folder / f"{result.name}.ipynb", as_version=4)
        assert told.verdicts(solved) == [CORRECT] * told.exercises(result.name)


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.timeout(1800)
def test_with_scripts_off_every_figure_of_every_page_is_seen(ran, browser):
    page = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 1000}).new_page()
    for result in ran.results:
        page.goto((ran.folder / f"{result.name}.html").as_uri())
        notebook = nbformat.read(ran.folder / f"{result.name}.ipynb", as_version=4)
        shown = sum(
            "image/png" in output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", [])
        )
        pictures = page.locator("img")
        assert pictures.count() == shown
        for place in range(shown):
            box = pictures.nth(place).bounding_box()
            assert box is not None
            # Whole, and no wider than the page.
            assert box["height"] > 100
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 1280
            assert len(pictures.nth(place).get_attribute("alt")) > 20
    page.context.close()
