"""Run notebooks with papermill and say in one sentence each how they ended."""

from __future__ import annotations

import os
import re
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from tqdm.std import tqdm

from apgd_teach.course.engine import ENGINE, VISITOR, Run
from apgd_teach.course.lint import lint as lint_notebook
from apgd_teach.course.lint import refuse_unknown
from apgd_teach.course.profiles import MIME, PROFILES, VISIT
from apgd_teach.course.publish import heading, to_html, write_index
from apgd_teach.course.sources import find, list_sources, notebook_text, read_notebook
from apgd_teach.errors import CourseError
from apgd_teach.files import settled, shown, try_folder, write_atomically
from apgd_teach.lessons.progress import PLACE
from apgd_teach.tables import Table

__all__ = ["BUDGET_S", "RunResult", "errors_in", "profiles_in", "results_table", "run_course", "run_notebook"]

BUDGET_S = {"fast": 900.0, "full": 5400.0}
"""Seconds that one notebook may take in each profile, where nothing else is asked for."""

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_SAMPLE_S = 0.1


@dataclass(frozen=True)
class RunResult:
    """How one notebook's run ended.

    Attributes:
        name: the notebook's name, without its suffix.
        ok: it ran to its end, within its time, without any error in its outputs, in the profile that was asked for.
        seconds: from the start of the kernel to its end.
        peak_mb: the largest resident memory, in MB (10⁶ bytes), of the kernel and all processes below it, summed and
            sampled ten times a second; the program that runs the notebook is not in it. Memory that several of these
            processes share is counted once for each, and a spike between two samples is missed.
        profile: the profile that the notebook itself recorded, "" where it recorded none.
        message: one sentence; for a failure it says what, in which cell, and what to do.
    """

    name: str
    ok: bool
    seconds: float
    peak_mb: float
    profile: str
    message: str


class _Watch(threading.Thread):
    """Follows the kernel's process tree: measures its memory, and can end whatever of it is left."""

    def __init__(self, run: Run) -> None:
        super().__init__(daemon=True, name="apgd-teach-memory")
        self.task, self.peak, self.done = run, 0, threading.Event()
        self.kernel: psutil.Process | None = None
        self.seen: dict[int, psutil.Process] = {}

    def run(self) -> None:
        while not self.done.wait(_SAMPLE_S):
            self.sample()

    def sample(self) -> None:
        if self.kernel is None:
            manager = getattr(self.task.client, "km", None)
            pid = getattr(getattr(manager, "provisioner", None), "pid", None)
            if pid is None:
                return
            try:
                self.kernel = psutil.Process(pid)
            except psutil.NoSuchProcess:
                return
        total = 0
        try:
            tree = [self.kernel, *self.kernel.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in tree:
            self.seen.setdefault(process.pid, process)
            try:
                total += process.memory_info().rss
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak = max(self.peak, total)

    def finish(self) -> None:
        self.done.set()
        self.join()
        for process in self.seen.values():
            try:
                # psutil compares start times, so a number that now belongs to another process is left alone.
                process.kill()
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue


def profiles_in(notebook: NotebookNode) -> list[str]:
    """The profiles that a run notebook recorded (`use_profile`), in order."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            stamp = output.get("data", {}).get(MIME)
            if isinstance(stamp, Mapping):
                found.append(str(stamp.get("name", "")))
    return found


def errors_in(notebook: NotebookNode, numbers: Mapping[str, int] | None = None) -> list[tuple[str, str]]:
    """Every error that a run notebook holds, as (where, what): in cell outputs, and in the state of widgets.

    Errors of widget callbacks do not stop a notebook, and those inside an Output widget are in its state only.

    Args:
        notebook: a notebook that has been run.
        numbers: the number to call a cell by, for each cell id; without it, its position.
    """
    found = []
    for position, cell in enumerate(notebook.cells, 1):
        number = position if numbers is None else numbers.get(cell.get("id", ""))
        where = f"cell {number}" if number else "the cell of parameters that were passed"
        found += [(where, _what(output)) for output in cell.get("outputs", []) if output.output_type == "error"]
    for mime in notebook.metadata.get("widgets", {}).values():
        for model in mime.get("state", {}).values() if isinstance(mime, Mapping) else ():
            outputs = model.get("state", {}).get("outputs") or ()
            found += [("a widget", _what(output)) for output in outputs if output.get("output_type") == "error"]
    return found


def _what(output: Mapping[str, Any]) -> str:
    value = _ANSI.sub("", str(output.get("evalue", ""))).strip().partition("\n")[0]
    return f"{output.get('ename')}: {value}" if value else str(output.get("ename"))


def _environment(changes: Mapping[str, str] | None) -> dict[str, str]:
    # A folder that was named from here is another one from the kernel's own.
    environment = settled(os.environ)
    # With a backend of the caller's, set on many servers, the notebook's figures would be drawn but never shown.
    environment.pop("MPLBACKEND", None)
    return {**environment, VISIT: "1", **(changes or {})}


def _refuse_profile(parameters: Mapping[str, object]) -> None:
    if "PROFILE" in parameters:
        raise CourseError("PROFILE is not passed as a parameter; ask for the profile itself (--profile fast or full).")


def _refuse_folder(folder: Path) -> None:
    """Better said before the first notebook has run than after it."""
    try:
        try_folder(folder)
    except OSError as error:
        raise CourseError(
            f"nothing can be written to {shown(folder.absolute())} ({error.strerror or error}); name another folder "
            "(--out)."
        ) from None


@contextmanager
def _progress(name: str, cells: int, run: Run) -> Iterator[None]:
    """A bar on a terminal; elsewhere (a log) nothing between the lines that `run_course` writes."""
    with tqdm(total=cells, desc=name, unit="cell", file=sys.stderr, disable=None, leave=False) as bar:

        def at(position: int) -> None:
            bar.set_description(f"{name}, cell {position + 1} of {cells}", refresh=False)
            bar.update(position - bar.n)
            bar.refresh()

        run.on_cell = at
        yield


def _last_line(path: Path) -> str:
    """The last thing that a dead kernel wrote, with the noise of every start left out."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "Kernel is running over" not in line]
    return f" (its last words: {lines[-1]})" if lines else ""


def run_notebook(
    notebook: str | Path,
    out: Path,
    *,
    profile: str,
    parameters: Mapping[str, object] | None = None,
    budget_s: float | None = None,
    cell_s: float | None = None,
    env: Mapping[str, str] | None = None,
    lint: bool = True,
) -> RunResult:
    """Run one notebook and write it, with its outputs, also when it fails.

    The kernel is the interpreter that runs this, in an empty temporary folder. It is gone when this returns. Exercises
    that the notebook solves are not counted as the reader's.

    Args:
        notebook: a source (`.py`), an `.ipynb`, or a name that `find` knows.
        out: where the run notebook is written, in one step at the end.
        profile: passed to the notebook as PROFILE, and compared with what the notebook records.
        parameters: values for other names in its parameters cell.
        budget_s: seconds for the whole notebook; the profile's own (`BUDGET_S`) where None.
        cell_s: seconds for one cell; as long as the whole notebook where None.
        env: environment variables that the kernel gets on top of this process's own.
        lint: look at the notebook first, and do not run it where something is wrong with it. False suits a notebook
            that a learner has changed.

    Returns:
        The result. A notebook that fails, or takes too long, is a result with `ok` False, not an exception.

    Raises:
        CourseError: there is no such notebook, profile or parameter. Nothing has run then.
        KeyboardInterrupt: the run was interrupted; the kernel is stopped and the notebook written as far as it came.
    """
    path = find(notebook)
    node, name = read_notebook(path), path.stem
    if profile not in PROFILES:
        raise CourseError(f"there is no profile '{profile}'; use one of: {', '.join(PROFILES)}.")
    values = dict(parameters or {})
    _refuse_profile(values)
    refuse_unknown(node, name, values)
    problems = lint_notebook(node, name) if lint else []
    out = Path(out).resolve()
    if problems:
        _write_run(node, out, [])
        return RunResult(name, False, 0.0, 0.0, "", " ".join(problems))

    budget = BUDGET_S[profile] if budget_s is None else budget_s
    numbers = {cell.id: number for number, cell in enumerate(node.cells, 1)}
    with tempfile.TemporaryDirectory(prefix="apgd-teach-", ignore_cleanup_errors=True) as folder:
        ran, words, cwd = Path(folder, "run.ipynb"), Path(folder, "kernel.log"), Path(folder, "work")
        cwd.mkdir()
        with open(words, "wb") as log:
            start = {
                "env": _environment({PLACE: str(Path(folder, "progress.json")), **(env or {})}),
                "cwd": str(cwd),
                "stdout": log,
                "stderr": log,
            }
            run = Run(budget, budget if cell_s is None else cell_s, start)
            watch = _Watch(run)
            watch.start()
            failure = ""
            try:
                with _progress(name, len(node.cells), run):
                    papermill.execute_notebook(
                        node,
                        str(ran),
                        {"PROFILE": profile, **values},
                        engine_name=ENGINE,
                        kernel_name="python3",
                        progress_bar=False,
                        run=run,
                    )
            except PapermillExecutionError:
                pass  # found again below among the outputs, with the cell's own number
            except CellTimeoutError:
                failure = _too_long(name, run, numbers)
            except DeadKernelError:
                failure = f"{name}, {_cell(run, numbers)}: the kernel died{_last_line(words)}; run that cell by itself."
            except RuntimeError as error:
                if run.cell is not None:
                    raise
                failure = f"{name}: no kernel could be started ({error}){_last_line(words)}; see 'apgd-teach doctor'."
            finally:
                seconds = max(0.0, time.monotonic() - run.started)
                watch.finish()
                executed = nbformat.read(ran, as_version=4) if ran.is_file() else node
                profiles = profiles_in(executed)
                _write_run(executed, out, profiles)
    if not failure:
        failure = _judge(executed, name, numbers, profile, profiles, values, run.visited)
    message = failure or f"{name} ran in {seconds:.0f} s and {watch.peak / 1e6:.0f} MB, in the profile {profile}."
    return RunResult(name, not failure, seconds, watch.peak / 1e6, profiles[-1] if profiles else "", message)


def _cell(run: Run, numbers: Mapping[str, int]) -> str:
    if run.cell is not None and run.cell.id == VISITOR:
        return "its widgets"
    number = numbers.get(run.cell.id) if run.cell is not None else None
    return f"cell {number}" if number else "the cell of parameters that were passed"


def _too_long(name: str, run: Run, numbers: Mapping[str, int]) -> str:
    if run.whole_budget:
        return (
            f"{name}, {_cell(run, numbers)}: the {run.budget_s:g} s for the whole notebook were used up here; give it "
            "a larger budget (--budget), or a smaller profile."
        )
    return (
        f"{name}, {_cell(run, numbers)}: took longer than the {run.cell_s:g} s that one cell may take; make it do "
        "less, or allow a cell more."
    )


def _judge(
    notebook: NotebookNode,
    name: str,
    numbers: Mapping[str, int],
    asked: str,
    profiles: Sequence[str],
    passed: Mapping[str, object],
    visited: Iterable[NotebookNode],
) -> str:
    """The sentence about the first thing that is wrong with a notebook that ran to its end, or ""."""
    errors = errors_in(notebook, numbers)
    errors += [("its widgets", _what(output)) for output in visited if output.output_type == "error"]
    if errors:
        where, what = errors[0]
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        it = f"it, or what was passed ({', '.join(passed)})," if passed else "it"
        return f"{name}, {where}: raised {what.rstrip('.?! ')}{more}; correct {it} and run the notebook again."
    if not profiles:
        return f"{name} never reads its profile; call use_profile(PROFILE) in its first code cell."
    if set(profiles) != {asked}:
        used = ", ".join(sorted(set(profiles)))
        return f"{name} was asked for the profile '{asked}' and used '{used}'; call use_profile(PROFILE), once."
    return ""


def settle(text: str) -> str:
    """What a terminal shows in the end: a progress bar that was drawn over and over leaves its last state only."""
    *whole, rest = text.split("\n")
    lines = []
    for line in [*(line.removesuffix("\r") for line in whole), rest]:
        last = line.rpartition("\r")[2]
        # A bar that wiped itself out leaves a line of its own that holds nothing.
        if "\r" not in line or last.strip():
            lines.append(last)
    return "\n".join(lines)


def _settled(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """The outputs of a cell with each stream in one piece, as it stood when the cell was done."""
    joined: list[NotebookNode] = []
    for output in outputs:
        last = joined[-1] if joined else None
        if last is not None and output.output_type == last.output_type == "stream" and output.name == last.name:
            last.text += output.text
        else:
            joined.append(output)
    for output in joined:
        if output.output_type == "stream":
            output.text = settle(output.text)
    return [output for output in joined if output.output_type != "stream" or output.text.strip()]


def _write_run(notebook: NotebookNode, out: Path, profiles: Iterable[str]) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = _settled(cell.outputs)
    for key in ("input_path", "output_path"):
        # Both name files in a temporary folder that is gone by now.
        notebook.metadata.get("papermill", {}).pop(key, None)
    notebook.metadata["apgd_teach"] = {"profile": next(iter(profiles), "")}
    write_atomically(out, notebook_text(notebook).encode())


def run_course(
    names: Sequence[str | Path] | None,
    out_dir: Path,
    *,
    profile: str = "fast",
    parameters: Mapping[str, object] | None = None,
    budget_s: float | None = None,
    cell_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> list[RunResult]:
    """Run notebooks one after another, and make a page of each and an index of all.

    All of them run, whatever fails; the caller looks at `ok` of each. Progress goes to stderr: one line when a
    notebook starts, one when it has ended, and a bar in between on a terminal.

    Args:
        names: numbers ("02"), names or paths; None for the whole course.
        out_dir: gets `NAME.ipynb` and `NAME.html` for each, and `index.html`.
        profile: "fast" or "full".
        parameters: passed to every notebook, each of which must have them.
        budget_s: seconds for each notebook; the profile's own (`BUDGET_S`) where None.
        cell_s: seconds for one cell; as long as the notebook where None.
        env: environment variables that the kernels get on top of this process's own.

    Raises:
        CourseError: there is no such notebook, profile or parameter, or `out_dir` cannot be written. Nothing has run
            then. What cannot be written later (a disk that fills up) fails its notebook, or is said when all have run.
    """
    sources = list_sources() if names is None else [find(name) for name in names]
    if not sources:
        raise CourseError("there are no notebooks to run; name at least one.")
    nodes = [read_notebook(source) for source in sources]
    _refuse_profile(parameters or {})
    for source, node in zip(sources, nodes, strict=True):
        refuse_unknown(node, source.stem, parameters or {})
    out_dir = Path(out_dir)
    _refuse_folder(out_dir)
    links = [(f"{source.stem}.html", heading(node) or source.stem) for source, node in zip(sources, nodes, strict=True)]
    results, notebooks = [], []
    for place, source in enumerate(sources):
        tqdm.write(f"[{place + 1}/{len(sources)}] {source.stem}: {len(nodes[place].cells)} cells", file=sys.stderr)
        out = out_dir / f"{source.stem}.ipynb"
        executed = nodes[place]
        try:
            result = run_notebook(
                source, out, profile=profile, parameters=parameters, budget_s=budget_s, cell_s=cell_s, env=env
            )
            executed = read_notebook(out)
            to_html(
                executed,
                out.with_suffix(".html"),
                previous=links[place - 1] if place else None,
                following=links[place + 1] if place + 1 < len(links) else None,
            )
        except OSError as error:
            why = f"what it made cannot be written ({error.strerror or error}); make room, and run it again."
            result = RunResult(source.stem, False, 0.0, 0.0, "", f"{source.stem}: {why}")
        tqdm.write(("  " if result.ok else "  FAILED: ") + result.message, file=sys.stderr)
        results.append(result)
        notebooks.append(executed)
    try:
        write_index(out_dir, results, notebooks)
    except OSError as error:
        raise CourseError(
            f"the notebooks have run, and their index cannot be written to {shown(out_dir.absolute())} "
            f"({error.strerror or error}); make room there."
        ) from None
    return results


def results_table(results: Sequence[RunResult]) -> Table:
    """The results as a table: notebook, state, seconds, peak memory, profile."""
    rows = [
        (result.name, "ok" if result.ok else "failed", result.seconds, round(result.peak_mb), result.profile or "–")
        for result in results
    ]
    failed = [result.message for result in results if not result.ok]
    return Table(
        ["notebook", "state", "seconds", "peak MB", "profile"],
        rows,
        note="\n".join(failed) if failed else "Peak memory: the kernel and the processes below it.",
    )
