"""The wheel and the source archive: built here without a network, and the course runs from the wheel alone."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {path.name for path in (ROOT / "notebooks" / "source").glob("*.py")}


def build(folder: Path, kind: str, out: Path) -> Path:
    """A wheel or a source archive of what lies in a folder."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", kind, "-d", str(out)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (made,) = out.iterdir()
    return made


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, "wheel", tmp_path_factory.mktemp("wheel"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as packed:
        return set(packed.namelist())


def test_the_wheel_has_the_package_its_data_and_the_notebooks_sources(wheel: Path) -> None:
    found = names(wheel)
    assert {f"apgd_teach/course/source/{name}" for name in SOURCES} <= found
    assert {f"apgd_teach/data/bundle/{path.name}" for path in (ROOT / "apgd_teach/data/bundle").iterdir()} <= found
    rooms = {name.split("/")[0] for name in found}
    assert rooms == {"apgd_teach", "apgd_teach-0.1.0.data", "apgd_teach-0.1.0.dist-info"}
    assert wheel.stat().st_size < 20e6


def test_the_source_archive_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    archive = build(ROOT, "sdist", tmp_path / "sdist")
    with tarfile.open(archive) as packed:
        inside = {name.partition("/")[2] for name in packed.getnames()}
        if hasattr(tarfile, "data_filter"):
            packed.extractall(tmp_path / "tree", filter="data")
        else:
            packed.extractall(tmp_path / "tree")
    assert {"README.md", "run.py", "LICENSE", "LICENSE-text", "tests/conftest.py", "docs/conf.py"} <= inside
    assert not [name for name in inside if name.startswith((".venv", "output", ".git/", "docs/api/"))]
    (tree,) = (tmp_path / "tree").iterdir()
    assert names(build(tree, "wheel", tmp_path / "again")) == names(wheel)


@pytest.mark.slow
def test_the_course_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path, ran: Any) -> None:
    place = tmp_path / "installed"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(place)]
    subprocess.run([*pip, str(wheel)], check=True)
    desk = tmp_path / "desk"
    desk.mkdir()
    env = {**os.environ, "PYTHONPATH": str(place), "APGD_TEACH_CACHE": str(ran.cache)}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=desk, env=env, capture_output=True, text=True)

    where = python("-c", "import apgd_teach; print(apgd_teach.__file__)")
    assert where.stdout.startswith(str(place)), where
    done = python("-m", "apgd_teach", "run", "--notebooks", "00")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (desk / "output" / "fast" / "00_start_here.html").is_file()
    refused = python("-m", "apgd_teach", "build")
    assert refused.returncode == 1
    assert "built notebooks are kept in a clone" in refused.stderr
    assert "Traceback" not in refused.stderr
