"""run.py makes an environment once, says in one sentence what is in its way, and hands over.

A tree of the same shape, whose package depends on nothing and builds itself, stands for the course: its installs are
real and take no network.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest

RUN_PY = Path(__file__).parents[2] / "run.py"

PYPROJECT = """
[build-system]
requires = [{build_needs}]
build-backend = "backend"
backend-path = ["."]
[project]
name = "apgd-teach"
version = "0.1.0"
# dependencies: begin
dependencies = [{needs}]
[project.optional-dependencies]
test = []
# dependencies: end
"""

# The least that PEP 660 asks of a build backend; it counts its calls, and takes its time when told to.
BACKEND = """
import os, pathlib, time, zipfile

def build_editable(wheel_directory, config_settings=None, metadata_directory=None):
    here = pathlib.Path(__file__).parent
    with (here / "installs.txt").open("a") as count:
        count.write("x")
    (here / "pid.txt").write_text(str(os.getpid()))
    time.sleep(float(os.environ.get("SLOW_BUILD", "0")))
    name, info = "apgd_teach-0.1.0-py3-none-any.whl", "apgd_teach-0.1.0.dist-info/"
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        wheel.writestr("apgd_teach.pth", str(here))
        needs = (here / "needs.txt").read_text() if (here / "needs.txt").exists() else ""
        wheel.writestr(info + "METADATA", "Metadata-Version: 2.1\\nName: apgd-teach\\nVersion: 0.1.0\\n"
                       "Provides-Extra: test\\n" + needs)
        wheel.writestr(info + "WHEEL", "Wheel-Version: 1.0\\nGenerator: backend\\nRoot-Is-Purelib: true\\n"
                       "Tag: py3-none-any\\n")
        wheel.writestr(info + "RECORD", "")
    return name
"""

MAIN = """
import os, sys
print("handed over", sys.argv[1:], "in", os.getcwd().encode("unicode_escape").decode())
sys.exit(int(sys.argv[-1]) if sys.argv[-1].isdigit() else 0)
"""


def write_pyproject(tree: Path, needs: str = "", build_needs: str = "") -> None:
    """What the tree asks for, in the file that run.py reads."""
    (tree / "pyproject.toml").write_text(PYPROJECT.format(needs=needs, build_needs=build_needs), encoding="utf-8")


def grow(tree: Path) -> Path:
    """A tree that run.py can install."""
    (tree / "apgd_teach").mkdir(parents=True)
    shutil.copy(RUN_PY, tree)
    write_pyproject(tree)
    (tree / "backend.py").write_text(BACKEND, encoding="utf-8")
    (tree / "apgd_teach" / "__init__.py").touch()
    (tree / "apgd_teach" / "__main__.py").write_text(MAIN, encoding="utf-8")
    return tree


def settings(**more: str) -> dict[str, str]:
    """The environment without what a tester may have told pip."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    return {**plain, "PIP_CONFIG_FILE": os.devnull, "PYTHONUTF8": "1", **more}


def run(tree: Path, *arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """`python run.py …` as a person would give it."""
    command = [sys.executable, str(tree / "run.py"), *arguments]
    environment = settings(**more)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, encoding="utf-8", timeout=120)


def installs(tree: Path) -> int:
    """How often the tree has been installed."""
    count = tree / "installs.txt"
    return len(count.read_text()) if count.exists() else 0


def load() -> ModuleType:
    """run.py as a module."""
    spec = importlib.util.spec_from_file_location("run_py", RUN_PY)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_one_sentence(done: subprocess.CompletedProcess[str]) -> None:
    """It failed, with one line for a person and no traceback."""
    assert done.returncode == 1, done
    assert "Traceback" not in done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree installed once, under a path that breaks what does not quote."""
    tree = grow(tmp_path_factory.mktemp("run") / "mon cours d'été ☀")
    done = run(tree, "course")
    assert done.returncode == 0, done
    assert installs(tree) == 1
    return tree


def test_it_is_understood_by_pythons_that_it_turns_away() -> None:
    ast.parse(RUN_PY.read_text(encoding="utf-8"), feature_version=(3, 6))


def test_it_needs_only_the_standard_library() -> None:
    parsed = ast.parse(RUN_PY.read_text(encoding="utf-8"))
    names = {a.name.split(".")[0] for node in ast.walk(parsed) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(parsed) if isinstance(node, ast.ImportFrom)}
    assert names <= sys.stdlib_module_names


def test_a_clone_without_its_pyproject_is_told_in_one_sentence(tmp_path: Path) -> None:
    tree = grow(tmp_path / "tree")
    (tree / "pyproject.toml").write_text("[project]\n")
    assert_one_sentence(run(tree, "course"))
    assert "clone the repository again" in run(tree, "course").stderr


@pytest.mark.parametrize(
    "words",
    [
        "PermissionError: [Errno 13] Permission denied: '/shared/pyproject.toml'",
        "OSError: [Errno 30] Read-only file system: '/shared/.venv'",
    ],
)
def test_a_folder_that_cannot_be_written_is_one_sentence(words: str) -> None:
    assert load().explain(words).startswith("This folder cannot be written: copy it to one of your own")


def test_an_old_python_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    old = next(filter(None, (shutil.which(f"python3.{minor}") for minor in (9, 8, 7, 6))), None)
    works = old and subprocess.run([old, "-c", ""], capture_output=True).returncode == 0
    if old and works:
        done = subprocess.run([old, str(RUN_PY), "course"], capture_output=True, encoding="utf-8")
        assert_one_sentence(done)
        assert "needs Python 3.10 or newer" in done.stderr
    monkeypatch.setattr(sys, "version_info", (3, 9, 18, "final", 0))
    with pytest.raises(SystemExit, match=r"needs Python 3\.10 or newer"):
        load().main(["course"])


@pytest.mark.parametrize(("arguments", "code"), [([], 2), (["curse"], 2), (["--help"], 0)])
def test_an_unknown_command_shows_those_that_there_are(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = run(grow(tmp_path / "tree"), *arguments)
    assert done.returncode == code
    assert "course | tests | lab | site" in (done.stderr if code else done.stdout)
    sentence = "There is no command 'curse'; use course, tests, lab or site.\n"
    assert done.stderr.startswith(sentence) == ("curse" in arguments)
    assert not (tmp_path / "tree" / ".venv").exists()


def test_commands_and_exit_codes_pass_through_from_any_folder(tree: Path, tmp_path: Path) -> None:
    done = run(tree, "course", "--profile", "full", "7", cwd=tmp_path)
    assert done.returncode == 7
    place = str(tree.resolve()).encode("unicode_escape").decode()
    assert done.stdout == f"handed over ['run', '--profile', 'full', '7'] in {place}\n"
    assert "['lab', 'x']" in run(tree, "lab", "x", cwd=tmp_path).stdout
    assert "No module named pytest" in run(tree, "tests", cwd=tmp_path).stderr


def test_a_second_call_installs_nothing(tree: Path) -> None:
    before, log = installs(tree), (tree / ".venv" / "install.log").stat().st_mtime_ns
    start = time.monotonic()
    assert run(tree, "course").stdout.startswith("handed over")
    assert time.monotonic() - start < 5
    assert installs(tree) == before
    assert (tree / ".venv" / "install.log").stat().st_mtime_ns == log


def test_changed_dependencies_are_installed_and_other_changes_are_not(tree: Path) -> None:
    before = installs(tree)
    with (tree / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("[tool.other]\n")
    run(tree, "course")
    assert installs(tree) == before
    write_pyproject(tree, needs='"apgd-teach"')
    run(tree, "course")
    assert installs(tree) == before + 1


def test_an_environment_that_is_broken_is_made_again(tree: Path) -> None:
    (tree / ".venv" / "pyvenv.cfg").write_text("home = /nowhere\n", encoding="utf-8")
    python = next(path for path in (tree / ".venv/bin/python", tree / ".venv/Scripts/python.exe") if path.exists())
    python.unlink()
    done = run(tree, "course")
    assert done.returncode == 0, done
    assert "handed over" in done.stdout


def test_a_tree_that_was_moved_is_installed_again_from_nothing(tree: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(tree, moved, symlinks=True)
    (moved / ".venv" / "relic").touch()
    before = installs(moved)
    done = run(moved, "course")
    assert done.returncode == 0, done
    assert installs(moved) == before + 1
    assert not (moved / ".venv" / "relic").exists()


def test_an_environment_that_someone_made_is_used_and_not_cleared(tree: Path) -> None:
    (tree / ".venv" / "installed.txt").unlink(missing_ok=True)
    (tree / ".venv" / "mine").touch()
    assert run(tree, "course").returncode == 0
    assert (tree / ".venv" / "mine").exists()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
@pytest.mark.parametrize("sent", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_install_that_is_stopped_says_so_and_begins_again_next_time(tree: Path, tmp_path: Path, sent: str) -> None:
    (tree / ".venv" / "installed.txt").unlink(missing_ok=True)
    before = installs(tree)
    command = [sys.executable, str(tree / "run.py"), "course"]
    started = subprocess.Popen(
        command,
        env=settings(SLOW_BUILD="60", TMPDIR=str(tmp_path)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    wait_until(lambda: installs(tree) == before + 1 and (tree / "pid.txt").read_text() != "")
    started.send_signal(getattr(signal, sent))
    _, told = started.communicate(timeout=30)
    assert started.returncode == 130
    assert told == "Stopped; the next call begins the install again.\n"
    wait_until(lambda: has_ended(int((tree / "pid.txt").read_text())), seconds=5)
    assert list(tmp_path.iterdir()) == [], "pip tidies up after itself"
    (tree / "pid.txt").write_text("")
    assert run(tree, "course").stdout.count("Installing the course") == 1
    assert installs(tree) == before + 2


def test_two_terminals_at_once_install_once(tree: Path) -> None:
    (tree / ".venv" / "installed.txt").unlink(missing_ok=True)
    before = installs(tree)
    command = [sys.executable, str(tree / "run.py"), "course"]
    first = subprocess.Popen(command, env=settings(SLOW_BUILD="3"), stdout=subprocess.PIPE, encoding="utf-8")
    wait_until(lambda: installs(tree) == before + 1)
    second = run(tree, "course")
    assert first.wait(timeout=30) == 0
    assert second.returncode == 0
    assert second.stdout.startswith("Another run.py is installing; waiting for it.\nhanded over")
    assert installs(tree) == before + 1


@pytest.mark.parametrize("what", ["needs", "build_needs"])
def test_an_index_that_does_not_answer_is_one_sentence(tree: Path, tmp_path: Path, what: str) -> None:
    silent = grow(tmp_path / "silent")
    if what == "needs":
        (silent / "needs.txt").write_text("Requires-Dist: tqdm>=4\n")
    write_pyproject(silent, **{what: '"tqdm>=4"'})
    for retries in ("0", "1"):
        done = run(silent, "course", PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_RETRIES=retries)
        assert_one_sentence(done)
        assert "The package index did not answer when asked for tqdm>=4: " in done.stderr
        assert "PIP_NO_INDEX" in done.stderr
    write_pyproject(silent)
    (silent / "needs.txt").write_text("")
    assert run(silent, "course").returncode == 0, "once the way is free, the same command goes on"


def test_a_build_that_fails_names_its_last_error(tmp_path: Path) -> None:
    broken = grow(tmp_path / "broken")
    (broken / "backend.py").write_text("def build_editable(*_, **__):\n    raise ValueError('no such luck')\n")
    done = run(broken, "course")
    assert_one_sentence(done)
    assert "The install failed: ValueError: no such luck (pip's own words: .venv" in done.stderr


def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    if not shutil.which("unshare"):
        pytest.skip("needs unshare, for a small disk of its own")
    small = tmp_path / "small"
    small.mkdir()
    grow(tmp_path / "tree")

    def on_a_disk_of(size: str) -> subprocess.CompletedProcess[str]:
        script = f'mount -t tmpfs -o size={size} none "$1" && cp -R "$2"/. "$1" && "$3" "$1/run.py" course'
        steps = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", small, tmp_path / "tree"]
        return subprocess.run([*map(str, steps), sys.executable], env=settings(), capture_output=True, encoding="utf-8")

    if on_a_disk_of("1g").returncode:
        pytest.skip("may not mount a disk of its own")
    done = on_a_disk_of("2m")
    assert_one_sentence(done)
    assert "The install takes 0.1 GB and 0.0 GB of disk are free: make room and try again." in done.stderr
    # A tree that claims to need less than it does gets as far as a disk that is really full.
    text = RUN_PY.read_text(encoding="utf-8")
    (tmp_path / "tree" / "run.py").write_text(text.replace("return 0.1", "return 0.0"), encoding="utf-8")
    for size in ("2m", "12m"):
        done = on_a_disk_of(size)
        assert_one_sentence(done)
        assert done.stderr.startswith("The disk is full: make room here or in ")


def test_the_room_that_an_install_needs_is_known_before_it_starts() -> None:
    room_needed = load().room_needed
    assert room_needed('"torch>=2.9"', "Linux", "") == 9.0
    assert room_needed('"torch>=2.9"', "Linux", "https://download.pytorch.org/whl/cpu") == 2.5
    assert room_needed('"torch>=2.9"', "Darwin", "") == 2.5


def test_a_machine_without_a_build_of_pytorch_is_not_mistaken_for_one_without_network() -> None:
    words = (
        "ERROR: Could not find a version that satisfies the requirement torch>=2.9 (from versions: none)\n"
        "ERROR: No matching distribution found for torch>=2.9"
    )
    assert load().explain(words).startswith("The package index has no torch>=2.9 for Python ")


def test_a_python_without_venv_is_told_what_to_install() -> None:
    words = "The virtual environment was not created successfully because ensurepip is not\navailable."
    assert "python3-venv" in load().explain(words)


def has_ended(pid: int) -> bool:
    """No such process, or only its name in a list that nobody cleans up (as in a container without init)."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def wait_until(true: Callable[[], bool], seconds: float = 30) -> None:
    """Give a process time to get somewhere."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not get there"
        time.sleep(0.05)
