"""Where the package keeps things; files of which a reader never meets half; folders shown without anybody's name."""

from __future__ import annotations

import glob
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import platformdirs
import psutil

__all__ = [
    "FOLDERS",
    "absolute",
    "hidden_beside",
    "named_folder",
    "own_folder",
    "settled",
    "shown",
    "try_folder",
    "write_atomically",
]

FOLDERS = ("APGD_TEACH_CACHE", "APGD_TEACH_DATA", "APGD_TEACH_CIFAR")
"""Environment variables that name a place: for what the package makes, with the full data sets in it, of CIFAR-10."""


def absolute(place: str | Path) -> Path:
    """A place as a user writes it, `~` and all, from the root on."""
    return Path(os.path.abspath(os.path.expanduser(place)))


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, absolute; None where it names none."""
    named = os.environ.get(variable)
    return absolute(named) if named else None


def own_folder() -> Path:
    """Where the package keeps what it makes or fetches: what APGD_TEACH_CACHE names, else the user's cache folder."""
    return named_folder("APGD_TEACH_CACHE") or Path(platformdirs.user_cache_dir("apgd_teach", appauthor=False))


def settled(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` with its folders absolute, for a process that will run elsewhere."""
    return {**environment, **{name: str(folder) for name in FOLDERS if (folder := named_folder(name))}}


def try_folder(folder: Path) -> None:
    """Make a folder if need be, and try whether a file can be made in it; nothing of that file is left.

    Raises:
        OSError: as the system reports it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one, never a part.

    Folders on the way are made.

    Raises:
        OSError: as the system reports it; the old file is then untouched and nothing else is left in the folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files for the owner only; these are for everyone who may read the folder.
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            # A full disk is reported without a name, and then nobody knows which.
            error.filename = str(path)
        raise


_OWNER = "owner.json"


@contextmanager
def hidden_beside(path: Path) -> Iterator[Path]:
    """A new hidden folder beside `path`, for what is not whole yet; gone with all that is in it when the block ends.

    A process that was killed could not remove its own: the next one that needs such a folder beside the same path does.

    Args:
        path: of what is being made; it need not exist, the folder that it lies in must.

    Returns:
        The folder, which only its owner may enter. `owner.json` in it says which process that is.

    Raises:
        OSError: as the system reports it; nothing is left then.
    """
    _sweep(path)
    hidden = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        (hidden / _OWNER).write_text(json.dumps(_identity(os.getpid())))
        yield hidden
    finally:
        shutil.rmtree(hidden, ignore_errors=True)


def _sweep(path: Path) -> None:
    """Remove the hidden folders beside a path whose process does not run any more."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            owner = json.loads((left / _OWNER).read_text())
            process = owner["process"]
            alive = psutil.pid_exists(process) and _identity(process) == owner
            if owner["host"] == platform.node() and not alive:
                shutil.rmtree(left, ignore_errors=True)
        except (OSError, ValueError, KeyError, TypeError, psutil.Error):
            continue  # of another machine, of another program, or nobody knows: not ours to remove


def _identity(process: int) -> dict[str, object]:
    """By what a process is known again, here and after a restart of the machine."""
    booted = psutil.boot_time()
    began = psutil.Process(process).create_time()
    # Linux counts from the start of the machine: as a time of day it would change whenever the clock is set, and a
    # process that runs would look like another one.
    since = round(began - booted, 2) if sys.platform == "linux" else began
    return {"host": platform.node(), "process": process, "since": since}


def shown(folder: Path) -> str:
    """A folder as it may be shown in a notebook that others read: the home folder as ~."""
    try:
        return str(Path("~") / folder.relative_to(Path.home()))
    except (RuntimeError, ValueError):  # outside the home folder, or nobody's
        return str(folder)
