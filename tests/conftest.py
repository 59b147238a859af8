"""For every test: a cache of its own session, no window for figures, nothing taken from the tester's settings."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

# Before anything imports matplotlib, and handed down to every process that a test starts.
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("APGD_TEACH_DATA", None)
os.environ.pop("APGD_TEACH_CIFAR", None)
# Two processes of tests on two cores: each with one thread (the course, which takes longest, with two), and none that
# waits for work by turning in circles.
BESIDE = "PYTEST_XDIST_WORKER" in os.environ
if BESIDE:
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["OMP_WAIT_POLICY"] = "passive"
# A job that a shell started in the background ignores Ctrl-C, and so would every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Tests in two processes (`python3 run.py tests`)

ROOMS = ("data", "evaluate", "experts", "references")
"""Rooms whose tests share what they trained: they go to one process."""

COURSE = ("course/test_course_runs.py", "lab/test_panels.py", "house/test_package.py")
"""Files whose tests need the whole course, run once (`ran`): they go to one process, and begin: they take longest."""


def group_of(test: str) -> str:
    """What goes to one process with a test: the course, its room, or its file.

    Args:
        test: its node id, "tests/merging/test_ties.py::test_…".
    """
    path = test.partition("::")[0].rpartition("tests/")[2]
    room = path.partition("/")[0]
    return "course" if path in COURSE else room if room in ROOMS else path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Hand tests out by `group_of`. (xdist's own way to group, by a mark, does nothing under pytest 9.2.)"""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The course begins; files with a test that waits to be alone end, when nothing long is in its way."""
    if not BESIDE:
        return
    late = {group_of(item.nodeid) for item in items if item.get_closest_marker("alone")} - {"course"}
    items.sort(key=lambda item: {"course": 0}.get(group_of(item.nodeid), 2 if group_of(item.nodeid) in late else 1))


class Turn:
    """One process's place beside the other one: it runs a test while others run, or alone.

    Whoever is about to run a test goes through the gate, and one that wants to be alone stands in it while it waits:
    else the other process might begin one test after another for ever.
    """

    def __init__(self, folder: Path) -> None:
        import fcntl

        # Open as long as the process runs: with it they are let go, whatever becomes of it.
        flags = os.O_RDWR | os.O_CREAT
        self._lock = fcntl
        self._gate, self._running = (os.open(folder / name, flags) for name in ("gate", "running"))

    def take(self, alone: bool) -> None:
        """Wait until this process may run a test."""
        self.leave()
        self._lock.flock(self._gate, self._lock.LOCK_EX)
        self._lock.flock(self._running, self._lock.LOCK_EX if alone else self._lock.LOCK_SH)
        self._lock.flock(self._gate, self._lock.LOCK_UN)

    def leave(self) -> None:
        """Let the other process be alone."""
        self._lock.flock(self._running, self._lock.LOCK_UN)


TURN = pytest.StashKey[Turn]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Run a test that is marked `alone` while the other process runs none."""
    if not BESIDE or os.name == "nt":
        return (yield)
    if TURN not in item.config.stash:
        item.config.stash[TURN] = Turn(Path(item.config.option.basetemp).parent)
    turn = item.config.stash[TURN]
    turn.take(alone=item.get_closest_marker("alone") is not None)
    try:
        return (yield)
    finally:
        turn.leave()


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Trained networks of a test session come from that session: what lies in the tester's cache proves nothing."""
    before = os.environ.get("APGD_TEACH_CACHE")
    with tempfile.TemporaryDirectory(prefix="apgd_teach-cache-", ignore_cleanup_errors=True) as folder:
        os.environ["APGD_TEACH_CACHE"] = folder
        yield
    if before is None:
        del os.environ["APGD_TEACH_CACHE"]
    else:
        os.environ["APGD_TEACH_CACHE"] = before


BLOCK = Path(__file__).parent / "network_block"


@dataclass(frozen=True)
class Ran:
    """The course as it ran, once for all tests.

    Attributes:
        folder: of its pages.
        env: what its kernels got: no network, and a cache that was empty before.
        cache: that cache.
        trained: what lay in it afterwards: every file, with when it was written.
        results: of the runs.
    """

    folder: Path
    env: dict[str, str]
    cache: Path
    trained: dict[str, int]
    results: list[Any]

    def written(self) -> dict[str, int]:
        """Every file of the cache now, with when it was written."""
        return {path.name: path.stat().st_mtime_ns for path in self.cache.iterdir()}


@pytest.fixture(scope="session")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The whole course, run in the fast profile; the tests that open its notebooks in JupyterLab find its networks."""
    from apgd_teach.course import run_course

    folder, cache = tmp_path_factory.mktemp("course"), tmp_path_factory.mktemp("course-cache")
    env = {
        "APGD_TEACH_CACHE": str(cache),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(BLOCK), str(BLOCK.parents[1]), os.environ.get("PYTHONPATH")])),
        # As many as a reader's laptop has at least: the whole course with one thread takes half as long again.
        "OMP_NUM_THREADS": "2",
    }
    results = run_course(None, folder, profile="fast", env=env)
    made = Ran(folder, env, cache, {}, results)
    return replace(made, trained=made.written())


class Told:
    """What a run notebook tells."""

    @staticmethod
    def exercises(name: str) -> int:
        """How many a lesson has."""
        from apgd_teach.lessons import PROBLEMS

        return sum(problem.startswith(name[:2]) for problem in PROBLEMS)

    @staticmethod
    def verdicts(notebook: Any) -> list[str]:
        """What its checks said, one word each."""
        from apgd_teach.lessons.engine import CORRECT, NOT_ATTEMPTED

        texts = [
            output.data.get("text/markdown", "")
            for cell in notebook.cells
            if cell.cell_type == "code" and ").check(" in cell.source
            for output in cell.outputs
            if "data" in output
        ]
        return [state for text in texts for state in (CORRECT, NOT_ATTEMPTED) if f" **{state}.**" in text]

    @staticmethod
    def of_training(notebook: Any) -> list[str]:
        """Its sentences on training."""
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        streams = [output.text for output in outputs if output.output_type == "stream"]
        return [line for text in streams for line in text.splitlines() if line.startswith("Making ")]

    @staticmethod
    def without_training(notebook: Any) -> Any:
        """The notebook without these sentences, its progress bars as they were left; it is changed."""
        from apgd_teach.course.runner import settle

        for cell in notebook.cells:
            if cell.cell_type == "code":
                for output in cell.outputs:
                    if output.output_type == "stream":
                        lines = settle(output.text).splitlines(keepends=True)
                        output.text = "".join(line for line in lines if not line.startswith(("Making ", "Made ")))
                cell.outputs = [output for output in cell.outputs if output.get("text", "kept").strip()]
        return notebook

    @staticmethod
    def in_common(solved: Any, open_: Any) -> list[Any]:
        """The cells that two run notebooks share, but for what a lesson says when it goes on by itself.

        Of pictures their words and numbers are left, which say all of them: JupyterLab's kernel may lay a label out a
        pixel beside where the runner's puts it.
        """
        shared = [{cell.source for cell in one.cells} for one in (solved, open_)]
        for one in (solved, open_):
            one.cells = [cell for cell in one.cells if cell.source in shared[0] & shared[1]]
            for cell in one.cells:
                for output in list(cell.get("outputs", [])):
                    output.get("data", {}).pop("image/png", None)
                    if "goes on with its own" in output.get("data", {}).get("text/plain", ""):
                        cell.outputs.remove(output)
        return [solved, open_]


@pytest.fixture(scope="session")
def told() -> type[Told]:
    return Told


# Chromium asks its maker for news at every start unless it is told not to; none of it may be mistaken for the page's.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


# For a module and no longer: Playwright's event loop counts as running until it is stopped, and no test beside it could
# run one of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, that reaches this machine only; skipped where there is none."""
    from apgd_teach.doctor import BROWSERS

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium here: set CHROMIUM to its path, or install it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield started
        started.close()
