"""What "without data" means, enforced: while a merge runs, asking for data raises.

Two nets. The project's own data objects call `refuse_data` before they hand out an image. And a Python audit hook
refuses every file that Python opens for reading (code that is being imported excepted), every connection and every
other program, so that a method which goes round the data room is caught too.

It guards against mistakes, not against intent. Beyond it are tensors that somebody loaded before the merge and hides
in a closure, files that were open before, readers in compiled code that Python never hears of (safetensors,
`torchvision.io`, `torch.from_file`), data in a file named like code, and threads that a method starts without handing
on its context (`contextvars.copy_context`).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from apgd_teach.errors import DataAccessError

__all__ = ["no_data", "refuse_data"]

_running: ContextVar[str | None] = ContextVar("apgd_teach_merge", default=None)
_hooked = False

# What the interpreter itself opens while it runs code: modules imported late, and the kernel's own views.
_CODE = (".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".pyi", ".pth")
# What an import asks of other packages: PyTorch's optimisers do so the first time one is made.
_METADATA = f".dist-info{os.sep}"
_SYSTEM = ("/proc/", "/sys/", "/dev/")
_CONNECTIONS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg")
_PROGRAMS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.startfile")


@contextmanager
def no_data(name: str) -> Iterator[None]:
    """Within this block, in this thread, every access to data raises `DataAccessError`.

    Args:
        name: what is running, for the sentence: "merge(…, method='average')".

    Lesson: 02.
    """
    global _hooked
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    token = _running.set(name)
    try:
        yield
    finally:
        _running.reset(token)


def refuse_data(what: str) -> None:
    """Raise `DataAccessError` if a merge is running; `what` names the data that was asked for."""
    name = _running.get()
    if name is not None:
        raise DataAccessError(
            f"{name} asked for {what}, but a merge here works without data; "
            "compute what you need from the state dicts, or do it before the merge and say so in its description."
        )


def _audit(event: str, args: tuple[object, ...]) -> None:
    # Called for every audited event of the process for ever after: leave at once when no merge runs here.
    if _running.get() is None:
        return
    if event == "open":
        path, mode, flags = args
        text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        # An archive is code where Python imports from it.
        code = text.endswith(_CODE) or text.startswith(_SYSTEM) or text in sys.path or _METADATA in text
        if not (isinstance(path, int) or code or not _reads(mode, flags)):
            refuse_data(f"the file '{text}'")
    elif event in _CONNECTIONS:
        refuse_data("a network connection")
    elif event in _PROGRAMS:
        refuse_data("another program")
    elif event == "sqlite3.connect" and args[0] != ":memory:":
        refuse_data("a database")


def _reads(mode: object, flags: object) -> bool:
    """Whether a file opened so can hold anything to read: one that is written anew cannot."""
    if isinstance(mode, str):
        return "r" in mode or ("a" in mode and "+" in mode)
    # `os.open` has flags only. The interpreter opens so the compiled form of a module that is imported for the first
    # time, and `tempfile` whatever it makes.
    bits = flags if isinstance(flags, int) else 0
    new = os.O_CREAT | os.O_EXCL
    nameless = getattr(os, "O_TMPFILE", new)
    return not (bits & (os.O_WRONLY | os.O_TRUNC) or bits & new == new or bits & nameless == nameless)
