"""The doctor finds what is wrong: each finding is made to fail for real, or by its pure function."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import apgd_teach
from apgd_teach import doctor
from apgd_teach.data import FAMILIES
from apgd_teach.data.idx import encode_idx
from apgd_teach.doctor import (
    Finding,
    cache,
    disk,
    doctor_table,
    examine,
    full_data,
    kernel,
    memory,
    package,
    pages,
    pages_folder,
    python_version,
    requirements,
)

REPOSITORY = Path(__file__).parents[2]


def ask(folder: Path, **more: str) -> dict[str, dict[str, object]]:
    """The findings of the package in `folder`, by what was looked at."""
    done = subprocess.run(
        [sys.executable, "-m", "apgd_teach", "doctor", "--json"],
        cwd=folder,
        env={**os.environ, "PYTHONUTF8": "1", **more},
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    return {finding["what"]: finding for finding in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def nothing_right(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the doctor finds where everything is wrong at once.

    The cache lies under a file, a file is in the place of the clone's pages, the kernel is another Python's, and PATH
    is empty. The doctor is asked in a folder that is not the clone.
    """
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "file").touch()
    clone = folder / "clone"
    shutil.copytree(REPOSITORY / "apgd_teach", clone / "apgd_teach", ignore=shutil.ignore_patterns("__pycache__"))
    (clone / "notebooks" / "source").mkdir(parents=True)
    (clone / "output").touch()
    spec = folder / "kernels/python3/kernel.json"
    spec.parent.mkdir(parents=True)
    spec.write_text(json.dumps({"argv": [str(folder / "python3"), "-m", "x"], "display_name": "x", "language": "x"}))
    cache = str(folder / "file" / "cache")
    return ask(folder, PYTHONPATH=str(clone), APGD_TEACH_CACHE=cache, JUPYTER_PATH=str(folder), PATH=str(folder))


def test_on_this_machine_everything_that_the_tests_rest_on_is_there() -> None:
    found = {finding.what: finding for finding in examine()}
    for what in ("Python", "torch", "torchvision", "device", "bundled data", "kernel python3", "cache"):
        assert found[what].ok, found[what]


def test_every_finding_is_ok_or_says_what_to_do() -> None:
    for finding in examine():
        assert bool(finding.remedy) == (finding.ok is not True), finding


def test_a_python_out_of_range() -> None:
    assert python_version("3.12.1", ">=3.10") == Finding("Python", "3.12.1", ">=3.10", True)
    old = python_version("3.9.18", ">=3.10")
    assert not old.ok
    assert old.remedy == "make an environment with Python >=3.10"


def test_a_requirement_that_is_too_old_missing_or_not_meant_for_here() -> None:
    versions = {"torch": "2.8.0", "numpy": "2.4.6", "nightly": "3.0.0.dev1"}
    lines = [
        "torch>=2.9",
        "numpy>=1.26",
        "pillow>=10",
        "nightly>=2",
        'pytest>=8; extra == "test"',
        'other; python_version < "3"',
    ]
    found = {finding.what: finding for finding in requirements(lines, versions.get)}
    assert list(found) == ["torch", "numpy", "pillow", "nightly"]
    assert found["torch"] == Finding("torch", "2.8.0", ">=2.9", False, 'pip install "torch>=2.9"')
    assert found["numpy"].ok
    assert found["nightly"].ok
    assert found["pillow"].found == "not installed"
    assert not found["pillow"].ok


def test_too_little_memory() -> None:
    assert memory(64.0).ok
    little = memory(doctor.MEMORY_GB - 0.1)
    assert not little.ok
    assert "close other programs" in little.remedy


def test_too_little_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert disk("disk", tmp_path / "not" / "yet").ok
    monkeypatch.setattr(doctor, "DISK_GB", 1e9)
    full = disk("disk", tmp_path)
    assert not full.ok
    assert full.remedy.startswith("make room")


def test_a_folder_that_cannot_be_looked_for_has_its_room_where_it_would_be_made(tmp_path: Path) -> None:
    assert disk("disk", tmp_path / ("too long" * 40)).ok


def test_pages_that_cannot_be_written_into_the_clone(nothing_right: dict[str, dict[str, object]]) -> None:
    found = nothing_right["disk for the pages"]
    assert found["ok"] is False
    assert os.path.join("clone", "output: ") in str(found["found"])
    assert "apgd-teach run --out" in str(found["remedy"])


def test_pages_can_be_written_where_a_folder_can_be_made_and_looking_makes_none(tmp_path: Path) -> None:
    assert pages(tmp_path / "not" / "yet").ok
    assert list(tmp_path.iterdir()) == []


def test_without_a_clone_pages_are_written_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert pages_folder() == REPOSITORY / "output"
    monkeypatch.setattr(apgd_teach, "__file__", str(tmp_path / "site-packages" / "apgd_teach" / "__init__.py"))
    assert pages_folder() == tmp_path / "output"


def test_a_cache_that_cannot_be_a_folder(nothing_right: dict[str, dict[str, object]]) -> None:
    found = nothing_right["cache"]
    assert found["ok"] is False
    assert "APGD_TEACH_CACHE" in str(found["remedy"])


def test_a_cache_is_counted(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(bytes(3_000_000))
    assert cache(tmp_path).found.endswith("1 files, 3 MB")


def test_nobody_s_home_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert cache(tmp_path / "mine").found.startswith(f"~{os.sep}mine: ")


def test_who_has_no_home_is_examined_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pwd = pytest.importorskip("pwd", reason="needs users as POSIX has them")

    def nobody(user: int) -> None:
        raise KeyError(user)

    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    with pytest.raises(RuntimeError):
        Path.home()
    assert cache(tmp_path).found == f"{tmp_path}: 0 files, 0 MB"


def test_a_damaged_byte_in_the_bundle(tmp_path: Path) -> None:
    shutil.copytree(REPOSITORY / "apgd_teach", tmp_path / "apgd_teach", ignore=shutil.ignore_patterns("__pycache__"))
    victim = tmp_path / "apgd_teach/data/bundle/mnist-train-images.idx.xz"
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)
    found = ask(tmp_path, HOME=str(tmp_path), USERPROFILE=str(tmp_path))["bundled data"]
    assert found["ok"] is False
    assert os.path.join("~", victim.relative_to(tmp_path)) in str(found["remedy"])
    assert str(tmp_path) not in str(found["remedy"])


def test_full_data_that_are_not_here_are_optional(nothing_right: dict[str, dict[str, object]]) -> None:
    found = nothing_right["full data"]
    assert found["ok"] is None
    assert "apgd-teach data --fetch" in str(found["remedy"])


def test_full_data_are_here_only_where_every_file_is_as_its_hash_says(tmp_path: Path) -> None:
    contents = {name: encode_idx(np.zeros(5 + len(name), np.uint8)) for name in FAMILIES["digits"].content}
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    families = {"digits": replace(FAMILIES["digits"], content=hashes)}
    folder = tmp_path / "MNIST" / "raw"
    assert full_data(tmp_path, families).found == "not here"
    folder.mkdir(parents=True)
    for name, content in contents.items():
        assert full_data(tmp_path, families).ok is None
        (folder / name).write_bytes(content)
    assert full_data(tmp_path, families) == Finding("full data", "here", "nothing", True)
    # Of the right size and with one other byte.
    (folder / "t10k-labels-idx1-ubyte").write_bytes(contents["t10k-labels-idx1-ubyte"][:-1] + b"X")
    damaged = full_data(tmp_path, families)
    assert (damaged.found.startswith("not whole in "), damaged.ok) == (True, None)
    assert "apgd-teach data --fetch" in damaged.remedy


def test_a_kernel_of_another_python(nothing_right: dict[str, dict[str, object]]) -> None:
    assert kernel(["python", "-m", "ipykernel_launcher"], sys.executable).ok
    assert kernel([sys.executable, "-m", "ipykernel_launcher"], sys.executable).ok
    found = nothing_right["kernel python3"]
    assert found["ok"] is False
    assert "ipykernel install" in str(found["remedy"])


def test_no_browser_is_no_fault(nothing_right: dict[str, dict[str, object]]) -> None:
    found = nothing_right["Chromium"]
    assert found["ok"] is None
    assert "optional" in str(found["remedy"])


@pytest.mark.skipif(os.name != "posix", reason="makes a program as POSIX has them")
@pytest.mark.parametrize("name", doctor.BROWSERS)
def test_a_browser_is_found_under_each_of_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert doctor._browser() == Finding("Chromium", name, "nothing", True)


def test_a_package_that_is_not_installed() -> None:
    (missing,) = package("apgd-teach-of-another-world")
    assert not missing.ok
    assert missing.remedy.startswith("pip install -e")


def test_the_table_says_ok_or_what_to_do() -> None:
    text = str(doctor_table([Finding("a", "1", "1", True), Finding("b", "1", "2", False, "do it")]))
    assert text.splitlines()[2].split() == ["a", "1", "1", "OK"]
    assert text.splitlines()[3].endswith("do it")
