"""Make a stick for a room without a network: wheels, the course, trained networks and pages to read, with their hashes.

    python data_scripts/make_stick.py /media/stick/apgd_teach
    python data_scripts/make_stick.py FOLDER --platform linux-x86_64 --platform windows-amd64 --python 3.11

On a laptop: `python3 FOLDER/install.py`. Wheels are resolved by uv for each platform and Python version and come from
the package index at hand. PyTorch's CPU build for Linux, a tenth of the size of the CUDA build, lies in an index of its
own: `--extra-index https://download.pytorch.org/whl/cpu`, where it can be reached (not tried where this was written).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Sequence
from io import BytesIO
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
INSTALLER = Path(__file__).resolve().parent / "stick" / "install.py"
# What building the course in place asks for; pip looks for it among the wheels too.
BUILD = ["hatchling>=1.24", "editables"]


def _manylinux(machine: str) -> list[str]:
    old = ["manylinux2014", "manylinux2010", "manylinux1"] if machine == "x86_64" else ["manylinux2014"]
    return [*(f"manylinux_2_{minor}_{machine}" for minor in range(28, 4, -1)), *(f"{one}_{machine}" for one in old)]


# By name as install.py finds it out: uv's name of the platform, and pip's tags.
PLATFORMS = {
    "linux-x86_64": ("x86_64-manylinux_2_28", _manylinux("x86_64")),
    "linux-aarch64": ("aarch64-manylinux_2_28", _manylinux("aarch64")),
    "darwin-arm64": (
        "aarch64-apple-darwin",
        [
            f"macosx_{one}_{kind}"
            for one in ("14_0", "13_0", "12_0", "11_0", "10_9")
            for kind in ("arm64", "universal2")
        ],
    ),
    "windows-amd64": ("x86_64-pc-windows-msvc", ["win_amd64"]),
}
HERE = f"{platform.system()}-{platform.machine()}".lower()


class StickError(Exception):
    """What is wrong, where, and what to do, in one sentence."""


def call(command: Sequence[str], doing: str, **more: str) -> str:
    """What a program printed.

    Raises:
        StickError: it failed.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **more})
    if done.returncode:
        said = [line.strip() for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise StickError(f"{doing} failed: {' '.join(said[-3:])[:400]}")
    return done.stdout


def constraints() -> list[str]:
    """What pip has been told to keep to in this house, for uv, which does not ask pip's settings."""
    listed = call([sys.executable, "-m", "pip", "config", "list"], "Asking for pip's settings")
    named = re.findall(r"(?m)^\S+\.constraint='(.+)'$", listed)
    return [word for file in " ".join(named).split() for word in ("--constraint", file)]


def requirements(uv: Path, name: str, python: str, extra: Sequence[str]) -> str:
    """Every package that the course needs on a platform, with its version."""
    with tempfile.TemporaryDirectory(prefix="apgd-teach-") as folder:
        build = Path(folder, "build.in")
        build.write_text("\n".join(BUILD))
        asked = ["pyproject.toml", str(build), "--extra", "test", "--python-platform", PLATFORMS[name][0]]
        options = ["--python-version", python, "--only-binary", ":all:", "--no-header", "--no-annotate"]
        command = [str(uv), "pip", "compile", "--quiet", *asked, *options, *extra, *constraints()]
        return call(command, f"Resolving for {name}, Python {python},")


def wheels(out: Path, names: Iterable[str], pythons: Iterable[str], extra_index: str | None) -> None:
    """All wheels of the platforms, in one folder."""
    extra = ["--extra-index-url", extra_index] if extra_index else []
    with tempfile.TemporaryDirectory(prefix="apgd-teach-") as folder:
        call([sys.executable, "-m", "pip", "install", "--quiet", "--target", folder, "uv"], "Installing uv")
        uv = Path(folder, "bin", "uv.exe" if os.name == "nt" else "uv")
        for name in names:
            for python in pythons:
                print(f"Wheels for {name}, Python {python} …", flush=True)
                listed = Path(folder, "requirements.txt")
                listed.write_text(requirements(uv, name, python, extra), encoding="utf-8")
                short = python.replace(".", "")
                tags = [word for tag in PLATFORMS[name][1] for word in ("--platform", tag)]
                abis = ["--abi", f"cp{short}", "--abi", "abi3", "--abi", "none", "--implementation", "cp"]
                command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
                where = ["--dest", str(out), "--requirement", str(listed), "--python-version", python]
                call([*command, *where, *tags, *abis, *extra], f"Fetching wheels for {name}, Python {python},")


def course(out: Path) -> None:
    """The committed files of this clone."""
    packed = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, capture_output=True)
    if packed.returncode:
        raise StickError(f"{ROOT} is no clone with a commit: clone the repository, and make the stick from there.")
    with tarfile.open(fileobj=BytesIO(packed.stdout)) as archive:
        if hasattr(tarfile, "data_filter"):
            archive.extractall(out, filter="data")
        else:
            archive.extractall(out)  # our own archive, of this moment


def networks(out: Path, pages: Path) -> None:
    """Run the course in the profile `fast`: what it trains, and its pages."""
    print("Running the course, for its trained networks and pages …", flush=True)
    command = [sys.executable, "-m", "apgd_teach", "run", "--out", str(pages)]
    call(command, "Running the course (with the Python of an environment that has it)", APGD_TEACH_CACHE=str(out))


def sums(folder: Path) -> str:
    """SHA-256 of every file, a line each, as `sha256sum -c` reads it."""
    lines = []
    for path in sorted(one for one in folder.rglob("*") if one.is_file()):
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
        lines.append(f"{digest.hexdigest()}  {path.relative_to(folder).as_posix()}\n")
    return "".join(lines)


def make(out: Path, names: Sequence[str], pythons: Sequence[str], extra_index: str | None, *, train: bool) -> None:
    """The whole stick; the folder appears when it is whole.

    Args:
        out: a new folder.
        names: of `PLATFORMS`.
        pythons: "3.11" and the like.
        extra_index: of wheels, beside pip's own.
        train: with the course's trained networks and its pages.

    Raises:
        StickError: it is there already, or something could not be had.
    """
    if out.exists():
        raise StickError(f"{out} is there already: name a new folder, or delete it first.")
    unknown = [name for name in names if name not in PLATFORMS]
    if unknown:
        raise StickError(f"'{unknown[0]}' is no platform that this knows: use {', '.join(PLATFORMS)}.")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as folder:
        stick = Path(folder, "stick")
        course(stick / "course")
        if train:
            networks(stick / "networks", stick / "pages")
            call([sys.executable, "-m", "apgd_teach.course.slides", str(stick / "slides")], "Making slides")
        if names:
            wheels(stick / "wheels", names, pythons, extra_index)
        shutil.copy(INSTALLER, stick)
        (stick / "stick.json").write_text(json.dumps({"platforms": list(names), "pythons": list(pythons)}) + "\n")
        (stick / "SHA256SUMS").write_text(sums(stick), encoding="utf-8")
        stick.rename(out)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a new folder, on the stick")
    parser.add_argument("--platform", action="append", help=f"{', '.join(PLATFORMS)} (default: this machine's)")
    parser.add_argument("--python", action="append", help="3.10 or newer (default: this one's)")
    parser.add_argument("--extra-index", help="where else wheels may be found")
    parser.add_argument("--without-networks", action="store_true", help="do not run the course first")
    given = parser.parse_args(arguments)
    out = given.folder.resolve()
    this = ".".join(platform.python_version_tuple()[:2])
    pythons = given.python or [this]
    try:
        make(out, given.platform or [HERE], pythons, given.extra_index, train=not given.without_networks)
    except StickError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"'{out}' cannot be made ({error.strerror}); free some space, or name another folder.", file=sys.stderr)
        return 1
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e9
    print(f"{out} is ready, {size:.1f} GB. On a laptop: python3 {out / 'install.py'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
