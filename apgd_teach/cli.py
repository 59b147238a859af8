"""The command line `apgd-teach`: thin, calls the rooms and says in one sentence what went wrong.

Imports stand inside the functions, so that `--help` answers at once: PyTorch alone takes seconds to import.
"""

from __future__ import annotations

import argparse
import ast
import errno
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from apgd_teach import __version__
from apgd_teach.errors import ApgdTeachError
from apgd_teach.own.options import add_commands

__all__ = ["main", "make_parser"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out one command.

    Args:
        arguments: as on the command line, without the program's name; those of this process where None.

    Returns:
        The exit code: 0 if all went well, 1 if not (a notebook failed, the doctor found something, an error that a
        sentence on stderr explains), 130 after Ctrl-C. A wrong option ends the program with 2.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # Output sent to a file on Windows cannot hold every sign of a table: lose the sign, not the table.
            stream.reconfigure(errors="replace")
    # Whatever `lab` does not know is for JupyterLab; the other commands take nothing that they do not know.
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command is not _lab:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    options.rest = rest
    try:
        code: int = options.command(options)
        sys.stdout.flush()
        return code
    except ApgdTeachError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("Stopped; no file is left half-written.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever read the output has seen enough (`| head`); Python would complain once more while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if error.filename is not None:
            print(f"{error.strerror}: '{error.filename}'.", file=sys.stderr)
        elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO):
            # What this program printed went to a file that takes no more; Python would try once more at its end.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            print(f"The output cannot be written ({error.strerror}); make room, or send it elsewhere.", file=sys.stderr)
        else:
            raise
        return 1
    except Exception as error:
        # Of PyTorch, NumPy and Dask, which are not imported to ask: what a user can do something about.
        if type(error).__name__ not in _TO_DO:
            raise
        reason = str(error).strip().partition("\n")[0][:160]
        print(f"{_TO_DO[type(error).__name__]} ({type(error).__name__}: {reason}).", file=sys.stderr)
        return 1


_TO_DO = {
    "MemoryError": "There is no room in memory: take fewer --workers, or another machine",
    "OutOfMemoryError": "The device has no room: take --device cpu, or fewer --workers",
    "LinAlgError": "A layer's singular vectors could not be found: look for huge or broken values in it",
    "KilledWorker": "A layer ended several workers, one after the other: give each more memory",
    "NoValidWorkerError": "The scheduler has no workers: start some",
}
"""What to do about errors of libraries, by their class's name."""


def make_parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    parser = argparse.ArgumentParser(
        prog="apgd-teach", description="A course, in notebooks, on merging fine-tuned models without their data."
    )
    parser.add_argument("--version", action="version", version=f"apgd-teach {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")

    run = commands.add_parser("run", help="run the notebooks and write pages to read")
    run.set_defaults(command=_run)
    run.add_argument("--profile", choices=("fast", "full"), default="fast", help="how much to compute (default: fast)")
    run.add_argument("--notebooks", type=_names, metavar="NN,NN", help="only these (default: all), by number or name")
    run.add_argument("--out", type=Path, metavar="FOLDER", help="where the pages go (default: output/PROFILE)")
    run.add_argument(
        "--set", type=_setting, action="append", default=[], metavar="NAME=VALUE", help="a parameter of the notebooks"
    )
    run.add_argument("--budget", type=_seconds, metavar="SECONDS", help="the most that one notebook may take")
    run.add_argument(
        "--keep-times", action="store_true", help="for maintainers: write down how long each notebook took"
    )
    run.add_argument("--open", action="store_true", help="open the pages in a browser when done")

    lab = commands.add_parser("lab", help="open a learner's notebooks in JupyterLab; other options are passed on to it")
    lab.set_defaults(command=_lab)

    doctor = commands.add_parser("doctor", help="does this machine have what the course needs?")
    doctor.set_defaults(command=_doctor)
    doctor.add_argument("--json", action="store_true", help="for programs")

    data = commands.add_parser("data", help="what the data are, whose, and which of them are here")
    data.set_defaults(command=_data)
    data.add_argument("--fetch", action="store_true", help="download the full data sets (once, about 43 MB)")
    data.add_argument("--mirror", metavar="URL", help="download them from here instead")
    data.add_argument("--folder", type=Path, metavar="FOLDER", help="look whether they lie here, whole")
    data.add_argument(
        "--budget", type=_seconds, default=120.0, metavar="SECONDS", help="give a download up after (default: 120)"
    )

    add_commands(commands, _setting)

    build = commands.add_parser("build", help="for maintainers: make the published notebooks from their sources")
    build.set_defaults(command=_build)
    build.add_argument("notebooks", nargs="*", metavar="NN", help="only these (default: all)")
    build.add_argument("--check", action="store_true", help="write nothing, compare with what is there")
    build.add_argument("--text", action="store_true", help="run nothing: new text, where the code is the same")
    build.add_argument("--keep-times", action="store_true", help="write down how long each notebook took")
    return parser


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise argparse.ArgumentTypeError("name at least one notebook, as in 00,02")
    return names


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of seconds above 0")
    return seconds


def _setting(text: str) -> tuple[str, object]:
    """NAME=VALUE: a value that Python can read is read (3, 0.5, True, None), anything else is text."""
    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE, as in SEED=1 or coefficient=0.3")
    if value.lower() in ("true", "false"):
        return name, value.lower() == "true"
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _run(options: argparse.Namespace) -> int:
    from apgd_teach.course import results_table, run_course
    from apgd_teach.doctor import pages_folder

    out: Path = options.out or pages_folder() / options.profile
    results = run_course(
        options.notebooks,
        out,
        profile=options.profile,
        parameters=dict(options.set),
        budget_s=options.budget,
    )
    print(results_table(results))
    if options.keep_times and all(result.ok for result in results):
        from apgd_teach.course.header import keep_times

        seconds = {result.name: result.seconds for result in results}
        keep_times(options.profile, seconds, {result.name: result.peak_mb for result in results})
    index = (out / "index.html").resolve()
    print(f"\nRead it: {_near(index)}\n{index.as_uri()}")
    if options.open:
        import webbrowser

        webbrowser.open(index.as_uri())
    return 0 if all(result.ok for result in results) else 1


def _near(path: Path) -> str:
    """A path from here, where there is one (on Windows not between drives)."""
    try:
        return os.path.relpath(path)
    except ValueError:
        return str(path)


def _lab(options: argparse.Namespace) -> int:
    from apgd_teach.course.desk import hand_out
    from apgd_teach.course.sources import notebooks_folder
    from apgd_teach.files import settled

    # Copies: what a learner writes must not become a change of the course, and an update must not undo it.
    published = notebooks_folder()
    desk = published.parent / "output" / "lab"
    for sentence in hand_out(published / "student", desk):
        print(sentence, file=sys.stderr)
    command = [sys.executable, "-m", "jupyterlab", *options.rest]
    lab = subprocess.Popen(command, cwd=desk, env=settled(os.environ))
    while True:
        try:
            return lab.wait()
        except KeyboardInterrupt:
            # JupyterLab got the Ctrl-C as well; it asks what is meant and ends its kernels in its own time.
            continue


def _doctor(options: argparse.Namespace) -> int:
    from apgd_teach.doctor import doctor_table, examine

    findings = examine()
    if options.json:
        import json
        from dataclasses import asdict

        print(json.dumps([asdict(finding) for finding in findings], indent=1, ensure_ascii=False))
    else:
        print(doctor_table(findings))
    return 1 if any(finding.ok is False for finding in findings) else 0


def _data(options: argparse.Namespace) -> int:
    from apgd_teach.data import cards_table, open_source

    full = options.fetch or options.folder is not None or options.mirror is not None
    if options.fetch and options.folder is not None:
        raise ApgdTeachError("--fetch downloads and --folder looks at what is there: give one of the two.")
    if full:
        source = open_source("full", folder=options.folder, mirror=options.mirror, budget_s=options.budget)
    else:
        source = open_source("bundled")
    print(cards_table())
    print(f"\n{source.note}\nSHA-256 over all of them: {source.sha256}")
    if options.folder is not None:
        print("The course takes them from there with TIER=full, where APGD_TEACH_DATA names that folder.")
    return 1 if full and source.tier != "full" else 0


def _build(options: argparse.Namespace) -> int:
    from apgd_teach.course import build_notebooks

    problems = build_notebooks(
        options.notebooks or None, check=options.check, keep_seconds=options.keep_times, text=options.text
    )
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("The published notebooks are those that their sources make.")
    return 1 if problems else 0
