"""What "without data" means, enforced: while a merge runs, asking for data raises.

Two nets. The project's own data objects call `refuse_data` before they hand out an image. And a Python audit hook
refuses every file that is opened for reading (code that is being imported excepted) and every connection, so that
a method which goes round the data room is caught too. Tensors that somebody loaded before the merge and hides in a
closure are beyond any guard; the audit of a merge lists what a method was given for that reason.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from apgd_teach.errors import DataAccessError

__all__ = ["no_data", "refuse_data"]

_running: ContextVar[str | None] = ContextVar("apgd_teach_merge", default=None)
_hooked = False

# What the interpreter itself opens while it runs code: modules imported late, and the kernel's own views.
_CODE = (".py", ".pyc", ".pyd", ".so", ".dylib", ".dll", ".pyi", ".pth", ".zip", ".egg")
_SYSTEM = ("/proc/", "/sys/", "/dev/")


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
        path, mode, _flags = args
        text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        reads = not isinstance(mode, str) or "r" in mode or "+" in mode
        if isinstance(path, int) or not reads or text.endswith(_CODE) or text.startswith(_SYSTEM):
            return
        refuse_data(f"the file '{text}'")
    elif event in ("socket.connect", "socket.getaddrinfo"):
        refuse_data("a network connection")
