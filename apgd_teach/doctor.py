"""Does this machine have what the course needs? One finding for each thing, with what to do where it is not so."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from apgd_teach.data import FAMILIES, IdxFamily, open_source
from apgd_teach.data.bundled import BUNDLE
from apgd_teach.data.full import NotHere, default_folder, read_folder
from apgd_teach.devices import describe_device, pick_device
from apgd_teach.errors import ApgdTeachError, CourseError
from apgd_teach.files import named_folder, own_folder, shown, try_folder
from apgd_teach.tables import Table

__all__ = ["BROWSERS", "Finding", "doctor_table", "examine"]

MEMORY_GB = 3.0
"""Memory, in GB (10⁹ bytes), that the largest notebook takes together with the program that runs it."""

DISK_GB = 1.0
"""Disk, in GB, that the cache with the full data sets and the pages of both profiles take."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
"""What a browser that the browser tests can use is called, in the order in which it is looked for."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: the thing.
        found: what is there.
        needed: what the course needs.
        ok: True; False if something has to be done; None if it can be done without.
        remedy: what to do, "" where nothing is.
    """

    what: str
    found: str
    needed: str
    ok: bool | None
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything that the course needs; nothing is downloaded, and nothing kept on the disk.

    Lesson: 00.
    """
    folder = own_folder()
    return [
        *_brief(package("apgd-teach")),
        _device(),
        memory(available_memory()),
        disk("disk for the cache", folder),
        pages(pages_folder()),
        cache(folder),
        _bundle(),
        full_data(named_folder("APGD_TEACH_DATA") or default_folder()),
        _kernel(),
        _browser(),
    ]


def _brief(findings: list[Finding]) -> list[Finding]:
    """What matters in each case (Python, PyTorch) and what is wrong; the packages in order become one row."""
    told = ("Python", "torch", "torchvision")
    quiet = [finding for finding in findings if finding.ok and finding.what not in told]
    loud = [finding for finding in findings if finding not in quiet]
    return [*loud, Finding("other packages", f"{len(quiet)} installed", "within their ranges", True)] if quiet else loud


def doctor_table(findings: Iterable[Finding]) -> Table:
    """The findings as a table: the last column says OK, or what to do."""
    rows = [(f.what, f.found, f.needed, f.remedy or "OK") for f in findings]
    return Table(["what", "found", "needed", "verdict"], rows)


def python_version(found: str, needed: str) -> Finding:
    """Is the interpreter's version within the range that the package asks for?"""
    ok = SpecifierSet(needed).contains(found, prereleases=True)
    return Finding("Python", found, needed, ok, "" if ok else f"make an environment with Python {needed}")


def requirements(lines: Iterable[str], version_of: Callable[[str], str | None]) -> list[Finding]:
    """Is every requirement met?

    Args:
        lines: as in a package's metadata ("torch>=2.9"); those for an extra or for another machine are passed over.
        version_of: the version of an installed package, None where it is not.
    """
    findings = []
    for requirement in map(Requirement, lines):
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version, needed = version_of(requirement.name), str(requirement.specifier) or "any"
        ok = version is not None and requirement.specifier.contains(version, prereleases=True)
        remedy = "" if ok else f'pip install "{requirement.name}{requirement.specifier}"'
        findings.append(Finding(requirement.name, version or "not installed", needed, ok, remedy))
    return findings


def _version_of(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str) -> list[Finding]:
    """The interpreter and the dependencies, against what the metadata of the installed package `name` asks for."""
    found = ".".join(map(str, sys.version_info[:3]))
    try:
        metadata = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return [Finding(name, "not installed", "installed", False, 'pip install -e ".[test]" in its folder')]
    needed = metadata.metadata["Requires-Python"] or ""
    return [python_version(found, needed), *requirements(metadata.requires or [], _version_of)]


def _device() -> Finding:
    return Finding("device", describe_device(pick_device()), "any", True)


def available_memory() -> float:
    """Memory, in GB, that can still be had: the machine's, or less where a container has a limit."""
    available: int = psutil.virtual_memory().available
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            used = int(Path("/sys/fs/cgroup/memory.current").read_text())
            available = min(available, int(limit) - used)
    except (OSError, ValueError):
        pass  # not Linux, or an older kind of container
    return available / 1e9


def memory(gb: float) -> Finding:
    """Are there enough GB of memory for the largest notebook?"""
    ok = gb >= MEMORY_GB
    remedy = "" if ok else "close other programs (an open notebook keeps its memory until its kernel is shut down)"
    return Finding("memory", f"{gb:.1f} GB free", f"{MEMORY_GB:.1f} GB", ok, remedy)


def disk(what: str, folder: Path) -> Finding:
    """Is there room where `folder` is, or would be made?"""
    there = _nearest(folder)
    if not os.path.exists(there):
        return Finding(what, "no such drive", f"{DISK_GB:.1f} GB", False, f"name a folder that exists, not {there}")
    gb = shutil.disk_usage(there).free / 1e9
    ok = gb >= DISK_GB
    remedy = "" if ok else f"make room on the disk of {shown(there)}"
    return Finding(what, f"{gb:.1f} GB free", f"{DISK_GB:.1f} GB", ok, remedy)


def _nearest(folder: Path) -> Path:
    """`folder`, or the nearest above it that exists."""
    place = folder.absolute()
    # Not Path.exists, which raises where it may not look.
    while not os.path.exists(place) and place != place.parent:
        place = place.parent
    return place


def pages(folder: Path) -> Finding:
    """Can pages be written into `folder`, which may have to be made, and is there room for them?"""
    what = "disk for the pages"
    try:
        with tempfile.TemporaryFile(dir=_nearest(folder)):
            pass
    except OSError as error:
        remedy = "give yourself permission to write there, or name another folder: apgd-teach run --out FOLDER"
        return Finding(what, f"{shown(folder)}: {error.strerror}", "a folder that can be written", False, remedy)
    return disk(what, folder)


def pages_folder() -> Path:
    """Where `apgd-teach run` writes, wherever the doctor is asked: a notebook's kernel may run in another folder."""
    from apgd_teach.course.sources import notebooks_folder

    try:
        return notebooks_folder().parent / "output"
    except CourseError:
        return Path.cwd() / "output"


def cache(folder: Path) -> Finding:
    """Can trained networks be kept, and how many are?"""
    needed = "a folder that can be written"
    try:
        try_folder(folder)
        files = [path for path in folder.rglob("*") if path.is_file()]
        megabytes = sum(path.stat().st_size for path in files) / 1e6
    except OSError as error:
        remedy = "let APGD_TEACH_CACHE name a folder in which you may write"
        return Finding("cache", f"{shown(folder)}: {error.strerror}", needed, False, remedy)
    return Finding("cache", f"{shown(folder)}: {len(files)} files, {megabytes:.0f} MB", needed, True)


def _bundle() -> Finding:
    needed = "every file as its hash says"
    try:
        digest = open_source("bundled").sha256
    except ApgdTeachError as error:
        return Finding("bundled data", "damaged", needed, False, str(error).replace(str(BUNDLE), shown(BUNDLE)))
    return Finding("bundled data", f"whole, SHA-256 {digest[:12]}…", needed, True)


def full_data(root: Path, families: Mapping[str, IdxFamily] = FAMILIES) -> Finding:
    """Are the full data sets in `root`, and is each file as its hash says?"""
    what, needed = "full data", "nothing"
    try:
        for family in families.values():
            read_folder(root, family, families)
    except ApgdTeachError as error:
        if isinstance(error, NotHere) or not root.is_dir():
            return Finding(what, "not here", needed, None, "optional: apgd-teach data --fetch")
        remedy = f"apgd-teach data --folder {shown(root)} says what is wrong, apgd-teach data --fetch mends a download"
        return Finding(what, f"not whole in {shown(root)}", needed, None, remedy)
    return Finding(what, "here", needed, True)


def kernel(argv: list[str], interpreter: str) -> Finding:
    """Does Jupyter's kernel `python3` run the interpreter that the course is installed in?

    Args:
        argv: the kernel's command, from its kernelspec.
        interpreter: `sys.executable`.
    """
    # Jupyter puts its own interpreter in place of a bare name.
    bare = re.fullmatch(r"python(3(\.\d+)?)?(\.exe)?", argv[0]) is not None
    # Not resolved: an environment's Python is often a link to the one that it was made from.
    ok = bare or os.path.abspath(argv[0]) == os.path.abspath(interpreter)
    remedy = "" if ok else "python -m ipykernel install --sys-prefix, with the course's Python"
    return Finding("kernel python3", "this Python" if ok else shown(Path(argv[0])), "this Python", ok, remedy)


def _kernel() -> Finding:
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    try:
        return kernel(KernelSpecManager().get_kernel_spec("python3").argv, sys.executable)
    except NoSuchKernel:
        return Finding("kernel python3", "none", "this Python", False, "pip install ipykernel")


def _browser() -> Finding:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return Finding("Chromium", "none", "nothing", None, "optional: only the browser tests want it")
    return Finding("Chromium", Path(found).name, "nothing", True)
