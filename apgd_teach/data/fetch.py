"""Fetching an archive: goes on after a broken connection, ends in time, and gives the right content or a reason."""

from __future__ import annotations

import hashlib
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from tqdm.std import tqdm

from apgd_teach.errors import DataError

__all__ = ["Budget", "Failed", "Unavailable", "fetch", "valid_budget", "valid_mirror", "writing"]

Unpack = Callable[[bytes, Path], bytes]
"""The content of an archive, from its bytes and its path; `DataError` where it is cut short."""

_CHUNK = 1 << 16
# A server that is silent for longer is taken for dead, whatever is left of the time.
_SILENCE_S = 20.0
_ATTEMPTS = 3


class Unavailable(Exception):
    """Data cannot be had in time and without a fault of the user; the text says why."""


class Failed(Exception):
    """One address did not give the file; `final` when asking it again would not help."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class Budget:
    """Seconds that may still be spent, over all files together."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
            Unavailable: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise Unavailable(
                f"the time budget of {self.seconds:g} s ended before all had arrived "
                "(what has arrived is kept, and asking again goes on from there)"
            )
        return left


def valid_budget(seconds: float) -> float:
    """`seconds`, a number above zero.

    Raises:
        DataError: it is none.
    """
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise DataError(f"The time budget is {seconds} s; give it a number of seconds above zero.")
    return seconds


def valid_mirror(mirror: str) -> str:
    """`mirror` ending in one slash.

    Raises:
        DataError: not an http, https or file address.
    """
    try:
        parts = urlsplit(str(mirror))
    except ValueError:
        # Only a bracket that is not closed comes this far; no scheme, no host.
        parts = urlsplit("")
    web = parts.scheme in ("http", "https") and bool(parts.netloc)
    local = parts.scheme == "file" and parts.netloc in ("", "localhost") and bool(parts.path)
    if not (web or local) or parts.query or parts.fragment:
        raise DataError(
            f"The mirror '{mirror}' is not an address; write it as https://host/folder/ or file:///folder/."
        )
    return mirror.rstrip("/") + "/"


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """What the system says against writing `path` becomes a sentence.

    Raises:
        DataError: it refused.
    """
    try:
        yield
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written ({error.strerror or error}); make room or give permission there, "
            "or set APGD_TEACH_CACHE to another folder."
        ) from error


def fetch(
    addresses: Sequence[str],
    folder: Path,
    *,
    md5: str,
    sha256: str,
    budget: Budget,
    progress: bool,
    unpacked: Unpack | None = None,
    most: int = 100 * 2**20,
) -> bytes:
    """The content of an archive, from the first address that gives the right one.

    What has arrived lies in `folder` as `<name>.part`, also afterwards; the caller removes it when it has what it
    wants. After a break the next call goes on from its end.

    Args:
        addresses: to ask, one after the other.
        folder: for the part; it exists.
        md5: of the archive as its authors publish it: it tells what went wrong.
        sha256: of the content, which decides.
        budget: the time that is left.
        progress: show a bar of text.
        unpacked: the content from the archive's bytes and its path; without it they are the content themselves.
        most: bytes that the archive may have: no address sends more than that.

    Raises:
        Failed: no address gave it.
        Unavailable: the time is over.
        DataError: the disk refuses.
    """
    failures = []
    for address in addresses:
        part = folder / f"{address.rpartition('/')[2]}.part"
        for _ in range(_ATTEMPTS):
            try:
                return _fetch_once(address, part, md5, sha256, budget, progress, unpacked, most)
            except Failed as failure:
                failures.append(f"{urlsplit(address).netloc or 'file'}: {failure}")
                if failure.final:
                    break
    raise Failed("; ".join(dict.fromkeys(failures)))


def _fetch_once(
    address: str, part: Path, md5: str, sha256: str, budget: Budget, progress: bool, unpacked: Unpack | None, most: int
) -> bytes:
    start, content = 0, b""
    with writing(part):
        if os.path.isfile(part) and part.stat().st_size <= most:
            start, content = part.stat().st_size, _content(part, unpacked)
    # Complete already, when only the unpacked file found no room the last time.
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    _receive(address, part, start, budget, progress, most)
    with writing(part):
        content = _content(part, unpacked)
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        # The content decides: an archive that was packed again is as good. The MD5 tells what went wrong.
        same_archive = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest() == md5
        part.unlink()
    what = "the right archive, but with other content" if same_archive else "a file with another MD5"
    # What was left from another day may be what is wrong: then once more from the beginning.
    raise Failed(f"it sends {what}", final=start == 0)


def _content(part: Path, unpacked: Unpack | None) -> bytes:
    """What `part` unpacks to, or nothing if it is not whole."""
    packed = part.read_bytes()
    try:
        return unpacked(packed, part.with_suffix("")) if unpacked else packed
    except DataError:
        return b""


def _receive(address: str, part: Path, start: int, budget: Budget, progress: bool, most: int) -> None:
    """Append to `part` what is missing after its first `start` bytes, or write it anew if the server cannot resume."""
    headers = {"User-Agent": "apgd_teach"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with _Stream(Request(address, headers=headers), budget) as stream:
        if stream.from_byte != start:
            start = 0
        name = part.name.removesuffix(".part")
        with (
            tqdm(total=stream.end, initial=start, unit="B", unit_scale=True, desc=name, disable=not progress) as bar,
            writing(part),
            part.open("ab" if start else "wb") as out,
        ):
            received = start
            for chunk in stream:
                received += len(chunk)
                if received > most:
                    out.truncate(0)
                    raise Failed(f"it sends more than {most:,} bytes", final=True)
                out.write(chunk)
                bar.update(len(chunk))
    if stream.end is not None and received != stream.end:
        raise Failed(f"the connection broke after {received:,} of {stream.end:,} bytes")


class _Stream:
    """The body of an answer in pieces, none awaited for longer than the budget allows.

    A thread asks and reads, because neither looking up a name nor connecting obeys a limit on the whole.

    Attributes:
        from_byte: where in the file the body begins.
        end: how long the file is; None when the server does not say.
    """

    def __init__(self, request: Request, budget: Budget) -> None:
        self._budget = budget
        self._pieces: queue.Queue[Any] = queue.Queue(maxsize=16)
        self._stop = threading.Event()
        threading.Thread(target=self._read, args=(request, min(_SILENCE_S, budget.left())), daemon=True).start()
        self.from_byte, self.end = self._next()

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._next():
            yield chunk

    def _next(self) -> Any:
        try:
            piece = self._pieces.get(timeout=self._budget.left())
        except queue.Empty:
            self._stop.set()
            # The wait was as long as the budget, so this raises.
            self._budget.left()
            raise Failed("nothing came") from None
        if isinstance(piece, Failed):
            raise piece
        return piece

    def _read(self, request: Request, silence_s: float) -> None:
        try:
            with urlopen(request, timeout=silence_s) as answer:
                self._put(_extent(answer))
                read = getattr(answer, "read1", answer.read)
                while not self._stop.is_set():
                    chunk = read(_CHUNK)
                    self._put(chunk)
                    if not chunk:
                        return
        except HTTPError as error:
            # 416: the part is longer than the file, or as long and wrong.
            self._put((0, 0) if error.code == 416 else Failed(f"HTTP {error.code} {error.reason}", final=True))
            self._put(b"")
        except URLError as error:
            self._put(Failed(_reason(error.reason), final=True))
        except (OSError, HTTPException, ValueError) as error:
            self._put(Failed(_reason(error)))

    def _put(self, piece: object) -> None:
        while not self._stop.is_set():
            try:
                self._pieces.put(piece, timeout=0.2)
                return
            except queue.Full:
                continue


def _extent(answer: Any) -> tuple[int, int | None]:
    """First byte and length of the whole file, from the headers."""
    length = answer.headers.get("Content-Length")
    begins, ends = 0, int(length) if length is not None and length.isdigit() else None
    if getattr(answer, "status", None) == 206:
        # "bytes 100-199/200"
        span, _, total = answer.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        if not first.isdigit():
            raise ValueError("the answer does not say which bytes it holds")
        begins, ends = int(first), int(total) if total.isdigit() else None
    return begins, ends


def _reason(error: object) -> str:
    if isinstance(error, TimeoutError):
        return "no answer"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[:1].lower() + text[1:] if text[1:2].islower() else text
