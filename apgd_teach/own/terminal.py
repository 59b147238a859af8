"""A command as one would type it, run where a notebook can show what it said."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apgd_teach.errors import ApgdTeachError

__all__ = ["Typed", "typed"]

_PROGRAM = "apgd-teach"


@dataclass(frozen=True)
class Typed:
    """A command line, and what came of it; a notebook shows it as a terminal would.

    Attributes:
        line: as it was typed.
        said: what it printed, results and complaints in their order.
        code: its exit code; 0 means that all is well.
    """

    line: str
    said: str
    code: int

    def __repr__(self) -> str:
        return f"$ {self.line}\n{self.said.rstrip()}\n(exit code {self.code})"


def typed(line: str, folder: str | os.PathLike[str]) -> Typed:
    """Run a command of this course as if it were typed in a terminal, in a folder.

    It runs in this process, so that nothing has to be imported again; the same line in a terminal does the same.

    Args:
        line: "apgd-teach check base.safetensors ada.safetensors".
        folder: to stand in.

    Raises:
        ApgdTeachError: the line is of another program or cannot be read, or there is no such folder.

    Lesson: 09.
    """
    from apgd_teach.cli import main

    try:
        program, *arguments = shlex.split(line, posix=os.name != "nt") or [""]
    except ValueError as error:
        raise ApgdTeachError(f"'{line}' cannot be read as a command ({error}); close every quotation mark.") from None
    if program != _PROGRAM:
        raise ApgdTeachError(f"'{program}' is not run from here; begin the line with {_PROGRAM}.")
    said = io.StringIO()
    with _standing_in(Path(folder)), _no_bars(), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            code = main(arguments)
        except SystemExit as end:  # argparse's, for a line that it does not understand
            code = end.code if isinstance(end.code, int) else 1
    return Typed(line, said.getvalue(), code)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """A bar that moves belongs on a screen, and not into what a command said."""
    before = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before


@contextlib.contextmanager
def _standing_in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    try:
        os.chdir(folder)
    except OSError as error:
        raise ApgdTeachError(f"'{folder}' cannot be entered ({error.strerror}); give a folder that is there.") from None
    try:
        yield
    finally:
        os.chdir(before)
