"""A command that a notebook types says and does what it does in a terminal."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from apgd_teach.errors import ApgdTeachError
from apgd_teach.own.terminal import typed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    draws = torch.Generator().manual_seed(0)
    base = {"one.weight": torch.randn(6, 8, generator=draws)}
    for name in ("base", "ada", "ben"):
        save_file({"one.weight": base["one.weight"] + (name != "base") * 0.1}, tmp_path / f"{name}.safetensors")
    return tmp_path


GOOD = "apgd-teach check base.safetensors ada.safetensors ben.safetensors"


@pytest.mark.parametrize("line", [GOOD, "apgd-teach check base.safetensors nobody.safetensors", "apgd-teach merge"])
def test_it_says_what_a_terminal_says(folder: Path, line: str) -> None:
    here = Path.cwd()
    found = typed(line, folder)
    there = subprocess.run(
        [sys.executable, "-m", "apgd_teach", *line.split()[1:]],
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1", "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        timeout=120,
    )
    assert found.code == there.returncode
    assert found.said.replace("__main__.py", "apgd-teach") == there.stdout.replace("__main__.py", "apgd-teach")
    assert Path.cwd() == here


def test_it_looks_like_a_terminal(folder: Path) -> None:
    shown = repr(typed(GOOD, folder))
    assert shown.startswith(f"$ {GOOD}\n")
    assert shown.endswith("\n(exit code 0)")
    assert "base.safetensors" in shown.partition("\n")[2]


def test_files_lie_where_the_line_says_and_no_bar_is_left_in_it(folder: Path) -> None:
    before = os.environ.get("TQDM_DISABLE")
    made = typed("apgd-teach merge base.safetensors ada.safetensors ben.safetensors --out merged.safetensors", folder)
    assert made.code == 0
    assert (folder / "merged.safetensors").is_file()
    assert "\r" not in made.said
    assert "%|" not in made.said
    assert os.environ.get("TQDM_DISABLE") == before


@pytest.mark.parametrize(("line", "words"), [("rm -r x", "'rm' is not run from here"), ("", "'' is not run from here")])
def test_other_programs_are_not_run(folder: Path, line: str, words: str) -> None:
    with pytest.raises(ApgdTeachError, match=words):
        typed(line, folder)


def test_a_folder_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ApgdTeachError, match="cannot be entered"):
        typed(GOOD, tmp_path / "nowhere")


def test_a_quotation_mark_that_is_left_open_is_one_sentence(folder: Path) -> None:
    with pytest.raises(ApgdTeachError, match="close every quotation mark"):
        typed("apgd-teach check it's", folder)
