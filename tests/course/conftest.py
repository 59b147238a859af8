"""What every test of the course needs: the fixture notebooks, and kernels that find this checkout."""

import os
from pathlib import Path

import pytest

from apgd_teach.course.runner import RunResult, run_notebook

FIXTURES = Path(__file__).parent / "fixtures"
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True, scope="module")
def kernels_import_this_checkout():
    """Kernels are processes of their own: they find the package by PYTHONPATH, installed or not.

    For the modules of this room only: how many threads a process has decides the last digits of what it trains.
    """
    patch = pytest.MonkeyPatch()
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])))
    patch.setenv("OMP_NUM_THREADS", "1")
    yield
    patch.undo()


@pytest.fixture
def source():
    """`source("good")` is the path of tests/course/fixtures/good.py."""
    return lambda name: FIXTURES / f"{name}.py"


@pytest.fixture
def run(tmp_path, source):
    """`run("good")` runs a fixture notebook in the fast profile within a minute."""

    def run_fixture(name: str, **options) -> RunResult:
        options = {"profile": "fast", "budget_s": 60, **options}
        return run_notebook(source(name), tmp_path / f"{name}.ipynb", **options)

    return run_fixture
