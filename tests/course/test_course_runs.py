"""The whole course runs, in the fast profile, with the network blocked and nothing cached."""

import os
from dataclasses import dataclass
from pathlib import Path

import nbformat
import pytest

from apgd_teach.course import list_sources, run_course
from apgd_teach.course.build import compare
from apgd_teach.course.runner import RunResult
from apgd_teach.course.sources import notebooks_folder
from apgd_teach.lessons import PROBLEMS
from apgd_teach.lessons.engine import CORRECT, NOT_ATTEMPTED

BLOCK = Path(__file__).resolve().parents[1] / "network_block"


@dataclass(frozen=True)
class Ran:
    """The course as it ran, once for all tests here.

    Attributes:
        folder: of its pages.
        env: what its kernels got: no network, and a cache that was empty before.
        cache: that cache.
        trained: what lay in it afterwards.
        results: of the runs.
    """

    folder: Path
    env: dict[str, str]
    cache: Path
    trained: dict[str, int]
    results: list[RunResult]


@pytest.fixture(scope="module")
def ran(tmp_path_factory) -> Ran:
    folder, cache = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("cache")
    env = {
        "APGD_TEACH_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join([str(BLOCK), os.environ["PYTHONPATH"]]),
        # As many as a reader's laptop has at least: the whole course with one thread takes half as long again.
        "OMP_NUM_THREADS": "2",
    }
    results = run_course(None, folder, profile="fast", env=env)
    return Ran(folder, env, cache, cached(cache), results)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_course_runs_from_a_clone_with_the_cable_out(ran):
    assert [result.name for result in ran.results] == [source.stem for source in list_sources()]
    assert [result.message for result in ran.results if not result.ok] == []
    assert {result.profile for result in ran.results} == {"fast"}
    assert (ran.folder / "index.html").is_file()
    for result in ran.results:
        page = (ran.folder / f"{result.name}.html").read_text(encoding="utf-8")
        assert "\r" not in page
        assert ".ipynb" not in page, "a page leads to pages"
        solved = nbformat.read(ran.folder / f"{result.name}.ipynb", as_version=4)
        assert verdicts(solved) == [CORRECT] * exercises(result.name)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_so_do_the_learners_versions_which_train_nothing_again_and_solve_nothing(ran, tmp_path):
    students = notebooks_folder() / "student"
    again = run_course([students / f"{result.name}.ipynb" for result in ran.results], tmp_path, env=ran.env)
    assert [result.message for result in again if not result.ok] == []
    assert any(name.startswith("expert-") for name in ran.trained)
    assert cached(ran.cache) == ran.trained
    assert said(ran.folder / f"{again[0].name}.ipynb") != []
    for source in list_sources():
        assert said(tmp_path / f"{source.stem}.ipynb") == []
        first, second = (quiet(run / f"{source.stem}.ipynb") for run in (ran.folder, tmp_path))
        # Nothing in the gaps passes for an answer, and the lesson goes on.
        assert verdicts(second) == [NOT_ATTEMPTED] * exercises(source.stem)
        # The same networks, the same numbers: only what depends on the machine, and talk of training, may differ.
        assert compare(*both(first, second)) == []


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


def exercises(name: str) -> int:
    return sum(problem.startswith(name[:2]) for problem in PROBLEMS)


def verdicts(notebook: nbformat.NotebookNode) -> list[str]:
    """What the checks of a run notebook said, one word each."""
    texts = [
        output.data.get("text/markdown", "")
        for cell in notebook.cells
        if cell.cell_type == "code" and ").check(" in cell.source
        for output in cell.outputs
        if "data" in output
    ]
    return [state for text in texts for state in (CORRECT, NOT_ATTEMPTED) if f" **{state}.**" in text]


def both(solved: nbformat.NotebookNode, open_: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    """The cells that two run notebooks have in common, but for what a lesson says when it goes on by itself."""
    shared = [{cell.source for cell in one.cells} for one in (solved, open_)]
    for one in (solved, open_):
        one.cells = [cell for cell in one.cells if cell.source in shared[0] & shared[1]]
        for cell in one.cells:
            for output in list(cell.get("outputs", [])):
                if "goes on with its own" in output.get("data", {}).get("text/plain", ""):
                    cell.outputs.remove(output)
    return [solved, open_]


def quiet(path: Path) -> nbformat.NotebookNode:
    """A run notebook without its sentences on training."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            for output in cell.outputs:
                if output.output_type == "stream":
                    lines = output.text.splitlines(keepends=True)
                    output.text = "".join(line for line in lines if not line.startswith(("Making ", "Made ")))
            cell.outputs = [output for output in cell.outputs if output.get("text", "kept").strip()]
    return notebook


def said(path: Path) -> list[str]:
    """What a run notebook says of training."""
    cells = nbformat.read(path, as_version=4).cells
    streams = [output.text for cell in cells for output in cell.get("outputs", []) if output.output_type == "stream"]
    return [line for text in streams for line in text.splitlines() if line.startswith("Making ")]


def cached(folder: Path) -> dict[str, int]:
    """Every file of a cache, with when it was written."""
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
