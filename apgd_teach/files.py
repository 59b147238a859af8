"""Where the package keeps things; files of which a reader never meets half; folders shown without anybody's name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import platformdirs

__all__ = ["FOLDERS", "absolute", "named_folder", "own_folder", "settled", "shown", "try_folder", "write_atomically"]

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


def shown(folder: Path) -> str:
    """A folder as it may be shown in a notebook that others read: the home folder as ~."""
    try:
        return str(Path("~") / folder.relative_to(Path.home()))
    except (RuntimeError, ValueError):  # outside the home folder, or nobody's
        return str(folder)
