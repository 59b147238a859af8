"""A run says truly how a notebook ended."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from apgd_teach.course.runner import RunResult, errors_in, results_table, run_course, run_notebook, settle
from apgd_teach.errors import CourseError

BLOCK = Path(__file__).resolve().parents[1] / "network_block"


def texts(path: Path) -> str:
    """Everything that the cells of a run notebook print or show as text."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    return "\n".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_a_good_notebook_runs(run, tmp_path):
    result = run("good", parameters={"SCALE": 2})
    assert result.ok, result.message
    assert result.profile == "fast"
    assert 0.3 < result.seconds < 60
    assert 30 < result.peak_mb < 2000
    assert "the answer is 2001.0" in texts(tmp_path / "good.ipynb")


def test_a_notebook_that_raises_fails_in_one_sentence_and_is_still_written(run, tmp_path):
    result = run("raises")
    assert not result.ok
    assert result.message.startswith("raises, cell 3: raised ValueError: the third cell is broken;")
    assert "before" in texts(tmp_path / "raises.ipynb")
    assert "never reached" not in texts(tmp_path / "raises.ipynb")


def test_a_cell_over_its_time_is_stopped(run, tmp_path):
    result = run("slow_cell", cell_s=2)
    assert not result.ok
    assert result.message.startswith("slow_cell, cell 3: took longer than the 2 s that one cell may take")
    assert result.seconds < 20
    assert "before the long wait" in texts(tmp_path / "slow_cell.ipynb")


def test_cells_that_are_quick_each_still_use_up_the_budget_of_the_whole(run):
    result = run("slow_sum", cell_s=30, budget_s=5)
    assert not result.ok
    assert "the 5 s for the whole notebook were used up here" in result.message
    assert result.seconds < 12
    assert run("slow_sum", cell_s=30, budget_s=40).ok


def test_an_error_in_a_widget_callback_fails_the_run(run):
    result = run("observe_raises")
    assert result.message.startswith("observe_raises, cell 3: raised RuntimeError: the callback is broken")
    assert not result.ok


def test_an_error_in_an_interact_callback_fails_the_run(run):
    result = run("interact_raises", lint=False)
    assert result.message.startswith("interact_raises, cell 3: raised RuntimeError: the interact callback is broken")
    assert not result.ok


def test_a_panel_that_fails_only_away_from_its_start_fails_the_run(run):
    result = run("panel_fails_at_an_end")
    assert not result.ok
    assert result.message.startswith(
        "panel_fails_at_an_end, cell 3: raised FigureError: the figure 'Inverses' cannot be drawn at number x 0 "
        "(ZeroDivisionError: "
    )


def test_a_callback_that_fails_only_away_from_its_start_fails_the_run_and_leaves_no_trace_in_it(run, tmp_path):
    result = run("observe_fails_at_an_end")
    assert not result.ok
    assert result.message == (
        "observe_fails_at_an_end, its widgets: raised CourseError: the widget 'count' fails when it is put at 3 "
        "(ValueError: three is too many); correct it and run the notebook again."
    )
    cells = nbformat.read(tmp_path / "observe_fails_at_an_end.ipynb", as_version=4).cells
    assert "visit" not in "".join(cell.source for cell in cells)
    assert "the last cell" in texts(tmp_path / "observe_fails_at_an_end.ipynb")


def test_panels_never_stall(run):
    for _ in range(3):
        result = run("panels", budget_s=60)
        assert result.ok, result.message
        assert result.seconds < 40


def test_output_widgets_never_stall(run, tmp_path):
    for _ in range(5):
        result = run("output_widget", lint=False, budget_s=30)
        assert result.ok, result.message
        # A stall lasts exactly as long as the limit of a cell.
        assert result.seconds < 15
    shown = texts(tmp_path / "output_widget.ipynb")
    assert "inside panel 11" in shown
    assert "x is 1" in shown


def test_a_notebook_that_never_reads_its_profile_fails(run):
    result = run("no_profile")
    assert not result.ok
    assert result.profile == ""
    assert result.message.startswith("no_profile never reads its profile")


def test_a_notebook_that_reads_another_profile_fails(run):
    result = run("other_profile", profile="full")
    assert not result.ok
    assert result.profile == "fast"
    assert "was asked for the profile 'full' and used 'fast'" in result.message
    assert run("other_profile", profile="fast").ok


def test_a_notebook_whose_kernel_dies_fails_with_its_last_words(run):
    result = run("kills_kernel")
    assert not result.ok
    assert result.message.startswith("kills_kernel, cell 3: the kernel died")
    assert "out of memory, says the driver" in result.message
    assert result.seconds < 20


def test_processes_that_a_notebook_leaves_behind_are_ended(run, tmp_path):
    assert run("leaves_child").ok
    (pid,) = re.findall(r"left behind: (\d+)", texts(tmp_path / "leaves_child.ipynb"))
    # A process that was told to end does so when it is given a core.
    for _ in range(100):
        try:
            if psutil.Process(int(pid)).status() == psutil.STATUS_ZOMBIE:
                return
        except psutil.NoSuchProcess:
            return
        time.sleep(0.1)
    pytest.fail(f"process {pid} is still running")


def test_memory_is_that_of_the_kernel_and_its_children(run):
    base = run("memory").peak_mb
    own = run("memory", parameters={"MEGABYTES": 300}).peak_mb
    child = run("memory", parameters={"MEGABYTES": 300, "IN_A_CHILD": True}).peak_mb
    assert own >= base + 290
    assert own < base + 400
    assert child >= base + 290


def test_memory_of_this_process_is_not_counted(run):
    block = bytearray(os.urandom(1) * 400_000_000)
    assert run("good").peak_mb < 400
    assert len(block)


@pytest.mark.parametrize("parameters", [{"SCAL": 1}, {"PROFILE": "full"}])
def test_an_unknown_parameter_is_refused_before_anything_runs(run, tmp_path, parameters):
    with pytest.raises(CourseError, match="parameter"):
        run("good", parameters=parameters)
    assert not (tmp_path / "good.ipynb").exists()


def test_an_unknown_profile_is_refused(run):
    with pytest.raises(CourseError, match="no profile 'medium'"):
        run("good", profile="medium")


def test_a_notebook_with_a_computed_parameter_is_not_run(run):
    result = run("computed")
    assert not result.ok
    assert result.message.startswith("computed, cell 1: the parameter EPS is computed (8 / 255)")
    assert result.seconds == 0


def test_the_kernel_is_this_interpreter_whatever_kernels_are_registered(run, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    spec = {"argv": ["/bin/false"], "display_name": "another", "language": "python"}
    (kernel / "kernel.json").write_text(json.dumps(spec), encoding="utf-8")
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    source = tmp_path / "who.py"
    source.write_text(
        '# %% tags=["parameters"]\nPROFILE = "fast"\n\n# %%\nimport sys\n\n'
        "from apgd_teach.course.profiles import use_profile\n\nuse_profile(PROFILE)\nprint(sys.executable)\n",
        encoding="utf-8",
    )
    result = run_notebook(source, tmp_path / "who.ipynb", profile="fast", budget_s=60)
    assert result.ok, result.message
    assert sys.executable in texts(tmp_path / "who.ipynb")


def test_figures_are_shown_whatever_backend_the_caller_has(run, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    assert run("good").ok
    notebook = nbformat.read(tmp_path / "good.ipynb", as_version=4)
    pictures = [o for cell in notebook.cells for o in cell.get("outputs", []) if "image/png" in o.get("data", {})]
    assert len(pictures) == 2


def test_errors_in_the_state_of_widgets_are_found():
    error = {"output_type": "error", "ename": "ValueError", "evalue": "hidden", "traceback": []}
    notebook = nbformat.v4.new_notebook()
    state = {"a": {"state": {"outputs": [error]}}, "b": {"state": {"value": 3}}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": {"state": state}}
    assert errors_in(nbformat.from_dict(notebook)) == [("a widget", "ValueError: hidden")]


def test_all_notebooks_run_before_a_failure_is_reported(source, tmp_path, capsys):
    results = run_course([source("raises"), source("computed"), source("good")], tmp_path / "out", budget_s=60)
    assert [(result.name, result.ok) for result in results] == [("raises", False), ("computed", False), ("good", True)]
    for name in ("raises", "computed", "good"):
        assert (tmp_path / "out" / f"{name}.html").is_file()
        assert (tmp_path / "out" / f"{name}.ipynb").is_file()
    assert (tmp_path / "out" / "index.html").is_file()
    printed = capsys.readouterr()
    assert printed.out == ""
    # One line when a notebook starts and one when it has ended: nothing else where nobody watches.
    assert len(printed.err.strip().splitlines()) == 6, printed.err


def test_what_cannot_be_written_fails_its_notebook_and_not_the_others(source, tmp_path):
    # A folder that is not empty stands where the page should go.
    (tmp_path / "out" / "raises.html" / "in the way").mkdir(parents=True)
    results = run_course([source("raises"), source("good")], tmp_path / "out", budget_s=60)
    assert [(result.name, result.ok) for result in results] == [("raises", False), ("good", True)]
    assert results[0].message.startswith("raises: what it made cannot be written (")
    assert (tmp_path / "out" / "good.html").is_file()
    assert "what it made cannot be written" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


def test_an_index_that_cannot_be_written_is_said_when_all_have_run(source, tmp_path):
    (tmp_path / "out" / "index.html" / "in the way").mkdir(parents=True)
    with pytest.raises(CourseError, match=r"the notebooks have run, and their index cannot be written to .+out \("):
        run_course([source("good")], tmp_path / "out", budget_s=60)
    assert (tmp_path / "out" / "good.html").is_file()


def test_a_folder_named_from_here_is_the_same_one_in_the_kernel(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APGD_TEACH_CACHE", "mine")
    source = tmp_path / "where.py"
    source.write_text(
        '# %% tags=["parameters"]\nPROFILE = "fast"\n\n# %%\n'
        "from apgd_teach.cache import Cache\nfrom apgd_teach.course.profiles import use_profile\n\n"
        "use_profile(PROFILE)\nprint(Cache().folder)\n",
        encoding="utf-8",
    )
    result = run_notebook(source, tmp_path / "where.ipynb", profile="fast", budget_s=60)
    assert result.ok, result.message
    assert str(tmp_path / "mine") in texts(tmp_path / "where.ipynb")


def test_a_failure_after_parameters_were_passed_names_them(run):
    result = run("raises", parameters={})
    assert result.message.endswith("; correct it and run the notebook again.")
    result = run("good", parameters={"SCALE": "three"})
    assert not result.ok
    assert result.message.endswith("; correct it, or what was passed (SCALE), and run the notebook again.")


def test_a_parameter_that_one_notebook_lacks_stops_the_course_before_it_starts(source, tmp_path):
    with pytest.raises(CourseError, match="raises has no parameter 'SCALE'"):
        run_course([source("good"), source("raises")], tmp_path / "out", parameters={"SCALE": 1.0})
    assert not (tmp_path / "out").exists()


def test_results_are_a_table_with_one_sentence_for_each_failure():
    good = RunResult("a", True, 1.25, 100.4, "fast", "a ran.")
    bad = RunResult("b", False, 2.0, 50.0, "", "b, cell 3: raised ValueError; correct it.")
    table = results_table([good, bad])
    assert table.column("state") == ["ok", "failed"]
    assert table.column("peak MB") == [100, 50]
    assert table.note == bad.message


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot send one process an interrupt")
def test_an_interrupted_run_stops_its_kernel_and_writes_what_there_is(source, tmp_path):
    out = tmp_path / "slow.ipynb"
    code = (
        "from pathlib import Path\nfrom apgd_teach.course.runner import run_notebook\n"
        f"run_notebook(Path({str(source('slow_cell'))!r}), Path({str(out)!r}), profile='fast', budget_s=100)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    try:
        parent, deadline = psutil.Process(process.pid), time.monotonic() + 60
        kernels: list[psutil.Process] = []
        while not kernels and time.monotonic() < deadline:
            for child in parent.children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):  # of helpers that ended meanwhile
                    if "ipykernel_launcher" in child.cmdline():
                        kernels.append(child)
            time.sleep(0.1)
        assert kernels
        time.sleep(3)  # into the long wait
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert "KeyboardInterrupt" in err
    assert process.returncode != 0
    _, alive = psutil.wait_procs(kernels, timeout=5)
    assert alive == []
    assert "before the long wait" in texts(out)


def test_the_network_block_stops_all_but_loopback_in_a_kernel_and_its_children(run, tmp_path):
    path = os.pathsep.join([str(BLOCK), os.environ["PYTHONPATH"]])
    result = run("network", env={"PYTHONPATH": path})
    assert result.ok, result.message
    shown = texts(tmp_path / "network.ipynb")
    for what in ("connect", "connection", "connect_ex", "lookup", "old lookup", "datagram", "child"):
        assert f"{what} -> blocked\n" in shown
    assert "loopback -> open" in shown


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("one\ntwo\n", "one\ntwo\n"),
        ("  0%|  |\r 50%|# |\r100%|##|\n", "100%|##|\n"),
        ("Making it.\n\r  0%|  |\r 50%|# |\r         \rMade it.\n", "Making it.\nMade it.\n"),
        ("\r  0%|  |\r 99%|##|\r      \r", ""),
        ("windows\r\n", "windows\n"),
    ],
)
def test_of_a_progress_bar_the_last_state_is_kept(written, shown):
    assert settle(written) == shown


def test_exercises_that_a_notebook_solves_are_not_counted_as_the_readers(run, tmp_path, monkeypatch):
    mine = tmp_path / "progress.json"
    monkeypatch.setenv("APGD_TEACH_PROGRESS", str(mine))
    result = run("solves")
    assert result.ok, result.message
    assert re.search(r"00\.1 +solved +1", texts(tmp_path / "solves.ipynb"))
    assert not mine.exists()


def test_a_sentence_that_is_not_true_fails_the_notebook_that_says_it(run):
    result = run("solves", parameters={"TRUE": False})
    assert not result.ok
    assert "raised UntrueError: not true in this run: black is white." in result.message
