"""The command line is thin: it reads its options, calls the rooms, and fails in one sentence."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import apgd_teach
from apgd_teach.cli import _seconds, _setting, main

REPOSITORY = Path(__file__).parents[2]


def call(*arguments: str, cwd: Path | None = None, **more: str) -> subprocess.CompletedProcess[str]:
    """`apgd-teach …` as a person would give it."""
    return subprocess.run(
        [sys.executable, "-m", "apgd_teach", *arguments],
        cwd=cwd or REPOSITORY,
        env={**os.environ, "PYTHONUTF8": "1", **more},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


@pytest.mark.alone
def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    start = time.monotonic()
    done = call("--help")
    assert time.monotonic() - start < 1.5  # 0.1 s on a machine at rest; importing PyTorch takes more than this
    assert done.returncode == 0
    course, own = ("run", "lab", "doctor", "data", "build"), ("check", "merge", "choose", "report", "compress")
    for command in (*course, *own, "completion"):
        assert re.search(rf"^    {command}\s", done.stdout, re.MULTILINE)
    loaded = subprocess.run(
        [sys.executable, "-c", "import sys, apgd_teach.cli; print('torch' in sys.modules, 'numpy' in sys.modules)"],
        cwd=REPOSITORY,
        capture_output=True,
        encoding="utf-8",
    )
    assert loaded.stdout == "False False\n"


def test_version() -> None:
    assert call("--version").stdout == f"apgd-teach {apgd_teach.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "required"),
        (["curse"], "invalid choice"),
        (["run", "--profile", "slow"], "invalid choice: 'slow'"),
        (["run", "--set", "1=2"], "'1=2' is not NAME=VALUE, as in SEED=1"),
        (["run", "--budget", "-3"], "'-3' is not a number of seconds above 0"),
        (["run", "--budget", "soon"], "'soon' is not a number of seconds above 0"),
        (["run", "--notebooks", ","], "name at least one notebook"),
        (["run", "--quick"], "unrecognized arguments: --quick"),
        (["doctor", "please"], "unrecognized arguments: please"),
    ],
)
def test_a_wrong_option_is_said_and_ends_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "setting"),
    [
        ("SEED=3", ("SEED", 3)),
        ("RATE=0.5", ("RATE", 0.5)),
        ("SIZES=[1, 2]", ("SIZES", [1, 2])),
        ("CHEAP=true", ("CHEAP", True)),
        ("CHEAP=False", ("CHEAP", False)),
        ("LIMIT=None", ("LIMIT", None)),
        ("NAME=a=b", ("NAME", "a=b")),
        ("NAME=", ("NAME", "")),
    ],
)
def test_settings_have_the_type_that_they_look_like(text: str, setting: tuple[str, object]) -> None:
    assert _setting(text) == setting


def test_a_budget_is_a_number_of_seconds() -> None:
    assert _seconds("2.5") == 2.5


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "--notebooks", "99"],
        ["run", "--set", "PROFILE=full"],
        ["build", "99"],
        ["data", "--folder", "nowhere/at/all"],
        ["data", "--fetch", "--folder", "nowhere"],
    ],
)
def test_what_a_user_can_put_right_is_one_sentence(arguments: list[str]) -> None:
    done = call(*arguments)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.parametrize("place", ["file", "file/pages"])
def test_a_folder_that_cannot_be_made_is_one_sentence_before_anything_runs(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("precious")
    done = call("run", "--notebooks", str(fixture()), "--out", str(tmp_path / place))
    assert done.returncode == 1
    assert done.stderr.startswith(f"nothing can be written to {tmp_path / place} (")
    assert done.stderr.endswith("; name another folder (--out).\n")
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no file here is always full")
def test_an_output_that_is_full_is_one_sentence() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "apgd_teach", "data"], stdout=full, stderr=subprocess.PIPE, encoding="utf-8"
        )
    assert done.returncode == 1
    assert done.stderr == "The output cannot be written (No space left on device); make room, or send it elsewhere.\n"


def fixture() -> Path:
    """A small notebook that runs to its end."""
    return REPOSITORY / "tests/course/fixtures/good.py"


def test_run_makes_pages_and_says_where_they_are(tmp_path: Path) -> None:
    done = call("run", "--notebooks", str(fixture()), "--out", str(tmp_path / "pages é"))
    assert done.returncode == 0, done
    index = tmp_path / "pages é" / "index.html"
    assert index.is_file()
    told = done.stdout.strip().splitlines()[-2:]
    assert told[0].startswith("Read it: ")
    assert (REPOSITORY / told[0].removeprefix("Read it: ")).resolve() == index.resolve()
    assert told[1] == index.resolve().as_uri()


def test_data_shows_whose_they_are_and_which_are_used() -> None:
    done = call("data")
    assert done.returncode == 0, done
    assert "Fashion-MNIST" in done.stdout
    assert "Bundled data are used" in done.stdout


def test_data_that_were_asked_for_and_did_not_come_are_a_failure(tmp_path: Path) -> None:
    done = call("data", "--fetch", "--mirror", "http://127.0.0.1:9/", APGD_TEACH_CACHE=str(tmp_path))
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr


def test_lab_passes_options_and_exit_codes_through() -> None:
    version = call("lab", "--version", "--no-browser")
    assert version.returncode == 0
    assert version.stdout[0].isdigit()


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C cannot be sent to one process there")
def test_ctrl_c_is_one_line(tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "-m", "apgd_teach", "run", "--notebooks", str(fixture()), "--out", str(tmp_path)],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
    )
    assert started.stderr
    assert started.stderr.readline().startswith("[1/1]")
    time.sleep(1.0)
    started.send_signal(signal.SIGINT)
    _, told = started.communicate(timeout=60)
    assert started.returncode == 130
    assert told.strip().splitlines()[-1] == "Stopped; no file is left half-written."
    assert "Traceback" not in told


@pytest.mark.skipif(os.name == "nt", reason="there is no head there")
def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f'"{sys.executable}" -m apgd_teach data | head -n 1'
    done = subprocess.run(command, shell=True, cwd=REPOSITORY, capture_output=True, encoding="utf-8", timeout=60)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


def test_the_doctor_speaks_to_programs_too() -> None:
    done = call("doctor", "--json")
    findings = json.loads(done.stdout)
    assert {"what", "found", "needed", "ok", "remedy"} == set(findings[0])
    assert done.returncode == (1 if any(finding["ok"] is False for finding in findings) else 0)


def test_the_doctor_prints_a_table() -> None:
    done = call("doctor")
    assert done.stdout.splitlines()[0].split() == ["what", "found", "needed", "verdict"]
    assert "\nPython " in done.stdout


@pytest.mark.parametrize("name", ["OutOfMemoryError", "LinAlgError", "KilledWorker"])
def test_what_a_library_raises_and_a_user_can_change_is_one_sentence(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apgd_teach import cli

    def fails(options: object) -> int:
        raise type(name, (RuntimeError,), {})("CUDA out of memory. Tried to allocate 4 GiB.\nmore words")

    monkeypatch.setattr(cli, "_doctor", fails)
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert said.startswith(cli._TO_DO[name])
    assert "Tried to allocate 4 GiB." in said


def test_what_nobody_can_change_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    from apgd_teach import cli

    def fails(options: object) -> int:
        raise ZeroDivisionError("a mistake of ours")

    monkeypatch.setattr(cli, "_doctor", fails)
    with pytest.raises(ZeroDivisionError):
        cli.main(["doctor"])
