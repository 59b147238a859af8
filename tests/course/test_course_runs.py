"""The whole course runs, in the fast profile, with the network blocked and nothing cached."""

import os
from pathlib import Path

import nbformat
import pytest

from apgd_teach.course import list_sources, run_course
from apgd_teach.course.build import compare

BLOCK = Path(__file__).resolve().parents[1] / "network_block"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_course_runs_from_a_clone_with_the_cable_out(tmp_path):
    env = {
        "APGD_TEACH_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(BLOCK), os.environ["PYTHONPATH"]]),
    }
    results = run_course(None, tmp_path / "out", profile="fast", env=env)
    assert [result.name for result in results] == [source.stem for source in list_sources()]
    assert [result.message for result in results if not result.ok] == []
    assert {result.profile for result in results} == {"fast"}
    assert (tmp_path / "out" / "index.html").is_file()
    for result in results:
        page = (tmp_path / "out" / f"{result.name}.html").read_text(encoding="utf-8")
        assert "\r" not in page
        assert ".ipynb" not in page, "a page leads to pages"

    # Once more: everything is in the cache, so nothing is trained, and nothing is said of training.
    trained = cached(tmp_path / "cache")
    assert any(name.startswith("expert-") for name in trained)
    again = run_course(None, tmp_path / "again", profile="fast", env=env)
    assert [result.message for result in again if not result.ok] == []
    assert cached(tmp_path / "cache") == trained
    for result in again:
        assert said(tmp_path / "again" / f"{result.name}.ipynb") == []
    assert said(tmp_path / "out" / f"{results[0].name}.ipynb") != []
    # The same networks, the same numbers: only what depends on the machine, and talk of training, may differ.
    for source in list_sources():
        first, second = (quiet(tmp_path / run / f"{source.stem}.ipynb") for run in ("out", "again"))
        assert compare(first, second) == []


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
