"""Writing files so that a reader never meets half of one, and naming folders so that nobody's name is shown."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

__all__ = ["shown", "write_atomically"]


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
