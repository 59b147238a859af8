"""A stick for a room without a network: checked, installed, and careful with what is there.

The course on it is a tree of the same shape whose package depends on nothing, as in the tests of run.py; its install
is real. The wheels of the real one were fetched and installed by hand, with the network blocked (docs/instructor.md).
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]


def module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


trees = module(Path(__file__).with_name("test_run_py.py"))
make_stick = module(ROOT / "data_scripts" / "make_stick.py")
CACHE = "import os, pathlib\ndef own_folder():\n    return pathlib.Path(os.environ['APGD_TEACH_CACHE'])\n"


@pytest.fixture(scope="module")
def stick(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stick for this machine, with a trained network in it and no wheels, which its course does not need."""
    place = tmp_path_factory.mktemp("stick")
    tree = trees.grow(place / "clone")
    (tree / "apgd_teach" / "files.py").write_text(CACHE)
    (tree / "notebook.txt").write_text("the course's\n")
    git = ["git", "-c", "user.name=me", "-c", "user.email=me@example.org"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "A course"]):
        subprocess.run([*git, *command], cwd=tree, check=True)
    (tree / "not_committed.txt").write_text("stays at home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_stick, "ROOT", tree)
        make_stick.make(place / "made", [], ["3.11"], None, train=False)
    made = place / "made"
    (made / "networks" / "pools").mkdir(parents=True)
    (made / "networks" / "pools" / "base.safetensors").write_bytes(b"weights")
    return resummed(made)


def resummed(stick: Path) -> Path:
    """The stick, with hashes of what is on it now."""
    (stick / "SHA256SUMS").unlink()
    (stick / "SHA256SUMS").write_text(make_stick.sums(stick), encoding="utf-8")
    return stick


def install(stick: Path, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    home.mkdir(exist_ok=True)
    more = trees.settings(HOME=str(home), USERPROFILE=str(home), APGD_TEACH_CACHE=str(home / "cache"))
    command = [sys.executable, str(stick / "install.py"), *arguments]
    return subprocess.run(command, cwd=home, env=more, capture_output=True, encoding="utf-8", timeout=120)


def test_it_holds_what_is_committed_and_every_hash(stick: Path) -> None:
    assert (stick / "course" / "run.py").read_bytes() == (ROOT / "run.py").read_bytes()
    assert not (stick / "course" / "not_committed.txt").exists()
    listed = {line.split("  ")[1] for line in (stick / "SHA256SUMS").read_text().splitlines()}
    there = {path.relative_to(stick).as_posix() for path in stick.rglob("*") if path.is_file()}
    assert listed == there - {"SHA256SUMS"}


@pytest.mark.slow
def test_it_installs_and_a_second_time_keeps_what_was_written(stick: Path, tmp_path: Path) -> None:
    done = install(stick, tmp_path / "home")
    assert done.returncode == 0, done.stderr
    course = tmp_path / "home" / "apgd_teach"
    assert (course / ".venv" / "installed.txt").is_file()
    assert f"Ready. In {course}" in done.stdout
    network = tmp_path / "home" / "cache" / "pools" / "base.safetensors"
    assert network.read_bytes() == b"weights"
    (course / "notebook.txt").write_text("the learner's\n")
    network.write_bytes(b"of this machine")
    again = install(stick, tmp_path / "home")
    assert again.returncode == 0, again.stderr
    assert "stays as it is" in again.stdout
    assert (course / "notebook.txt").read_text() == "the learner's\n"
    assert network.read_bytes() == b"of this machine"
    assert not [path for path in network.parent.iterdir() if path.name != network.name]


def changed(stick: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(stick, tmp_path / "other"))


def assert_refused(done: subprocess.CompletedProcess[str], said: str, home: Path) -> None:
    trees.assert_one_sentence(done)
    assert said in done.stderr
    assert not (home / "apgd_teach").exists()


def test_a_changed_file_is_refused(stick: Path, tmp_path: Path) -> None:
    other = changed(stick, tmp_path)
    (other / "course" / "notebook.txt").write_text("somebody else's\n")
    said = "course/notebook.txt on the stick is not what was put there"
    assert_refused(install(other, tmp_path / "home"), said, tmp_path / "home")


def test_a_missing_file_is_refused(stick: Path, tmp_path: Path) -> None:
    other = changed(stick, tmp_path)
    (other / "course" / "notebook.txt").unlink()
    said = "course/notebook.txt on the stick cannot be read"
    assert_refused(install(other, tmp_path / "home"), said, tmp_path / "home")


@pytest.mark.parametrize(
    ("made_for", "said"),
    [
        ({"platforms": ["amiga-m68k"], "pythons": ["3.11"]}, "The stick was made for amiga-m68k"),
        ({"platforms": [make_stick.HERE], "pythons": ["2.7"]}, "use that Python, as in python2.7 install.py"),
    ],
)
def test_another_machine_or_python_is_told(stick: Path, tmp_path: Path, made_for: dict, said: str) -> None:
    other = changed(stick, tmp_path)
    (other / "stick.json").write_text(json.dumps(made_for))
    assert_refused(install(resummed(other), tmp_path / "home"), said, tmp_path / "home")


def test_a_folder_that_is_no_course_is_left_alone(stick: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("mine")
    done = install(stick, tmp_path / "home", str(tmp_path / "mine"))
    assert_refused(done, "is there already and is no course: name another folder", tmp_path / "home")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]


def test_no_stick_is_made_over_something(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "there").mkdir()
    assert make_stick.main([str(tmp_path / "there"), "--without-networks"]) == 1
    assert "is there already: name a new folder" in capsys.readouterr().err
    assert make_stick.main([str(tmp_path / "new"), "--platform", "amiga", "--without-networks"]) == 1
    assert "'amiga' is no platform that this knows: use linux-x86_64" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["there"]
