"""The full tier: torchvision's MNIST and Fashion-MNIST, fetched once, or read from a folder that is named.

torchvision's classes know the addresses, names and MD5 of the archives, and read the files in the end. The fetching is
done here, because a course needs what torchvision's does not give: going on after a broken connection, a limit on the
time, files that are whole or absent, and a sentence instead of a traceback.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import numpy as np
from numpy.typing import NDArray
from tqdm.std import tqdm

from apgd_teach.data.families import FAMILIES, Family
from apgd_teach.data.idx import decode_idx, read_file, unpack
from apgd_teach.errors import DataError
from apgd_teach.files import own_folder, write_atomically

__all__ = [
    "NotHere",
    "UseBundled",
    "default_folder",
    "download",
    "read_downloaded",
    "read_folder",
    "valid_mirror",
]

Files = tuple[dict[str, NDArray[np.uint8]], dict[str, str]]

_CHUNK = 1 << 16
# A server that is silent for longer is taken for dead, whatever is left of the time.
_SILENCE_S = 20.0
_ATTEMPTS = 3
_SHORT_NAMES = {
    "train-images-idx3-ubyte": "train_images",
    "train-labels-idx1-ubyte": "train_labels",
    "t10k-images-idx3-ubyte": "test_images",
    "t10k-labels-idx1-ubyte": "test_labels",
}


class UseBundled(Exception):
    """The full tier cannot be had in time and without a fault of the user; the text says why."""


class NotHere(DataError):
    """A folder that was named holds nothing of a family."""


class _Failed(Exception):
    """One address did not give the file; `final` when asking it again would not help."""

    def __init__(self, why: str, final: bool = False) -> None:
        super().__init__(why)
        self.final = final


class _Budget:
    """Seconds that may still be spent, over all files together."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self._end = seconds, time.monotonic() + seconds

    def left(self) -> float:
        """Seconds left.

        Raises:
            UseBundled: none are.
        """
        left = self._end - time.monotonic()
        if left <= 0:
            raise UseBundled(
                f"the time budget of {self.seconds:g} s ended before all had arrived "
                "(what has arrived is kept, and asking again goes on from there)"
            )
        return left


def default_folder() -> Path:
    """Where the full tier is kept once it was fetched: `data` beside the trained networks."""
    return own_folder() / "data"


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


def download(families: Sequence[Family], root: Path, *, mirror: str | None, budget_s: float, progress: bool) -> None:
    """Bring the files of `families` into `root`, as torchvision lays them out; those that are there stay.

    A file appears only when it is whole and has the right hash. An archive on its way is `<name>.gz.part`; after a
    break or a full disk it stays, and the next call goes on from its end.

    Args:
        families: what to fetch.
        root: torchvision's root; made if need be.
        mirror: None for torchvision's addresses, or another as `valid_mirror` returns it.
        budget_s: seconds for everything together.
        progress: show a bar of text per file.

    Raises:
        UseBundled: the time is over, or torchvision's addresses cannot be reached or give other files.
        DataError: the mirror that was named cannot be reached or gives other files; the disk refuses.
    """
    budget = _Budget(budget_s)
    for family in families:
        folder = root / family.dataset.__name__ / "raw"
        for archive, md5 in family.dataset.resources:
            target = folder / archive.removesuffix(".gz")
            digest = family.content[target.name]
            if os.path.isfile(target) and hashlib.sha256(read_file(target, "make it readable")).hexdigest() == digest:
                continue
            with _writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if mirror is None:
                addresses = [address + archive for address in family.dataset.mirrors]
            else:
                kind = family.dataset.__name__
                places = [f"{mirror}{inner}/" for inner in (f"{kind}/raw", kind, family.slug)]
                addresses = [place + name for place in places for name in (archive, target.name)]
            try:
                content = _fetch(addresses, folder, md5, digest, budget, progress)
            except _Failed as failure:
                if mirror is not None:
                    raise DataError(
                        f"The mirror '{mirror}' does not give '{archive}' of {family.title} ({failure}); "
                        "name another, or none for torchvision's address."
                    ) from failure
                raise UseBundled(f"the network does not give '{archive}' of {family.title} ({failure})") from failure
            with _writing(target):
                write_atomically(target, content)
                for part in (folder / f"{archive}.part", folder / f"{target.name}.part"):
                    part.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"'{path}' cannot be written ({error.strerror or error}); make room or give permission there, "
            "or set APGD_TEACH_CACHE to another folder."
        ) from error


def _fetch(addresses: Sequence[str], folder: Path, md5: str, sha256: str, budget: _Budget, progress: bool) -> bytes:
    """The content, unpacked, from the first address that gives the right one."""
    failures = []
    for address in addresses:
        part = folder / f"{address.rpartition('/')[2]}.part"
        for _ in range(_ATTEMPTS):
            try:
                return _fetch_once(address, part, md5, sha256, budget, progress)
            except _Failed as failure:
                failures.append(f"{urlsplit(address).netloc or 'file'}: {failure}")
                if failure.final:
                    break
    raise _Failed("; ".join(dict.fromkeys(failures)))


def _fetch_once(address: str, part: Path, md5: str, sha256: str, budget: _Budget, progress: bool) -> bytes:
    start, content = 0, b""
    with _writing(part):
        if os.path.isfile(part):
            start, content = part.stat().st_size, _content(part)
    # Complete already, when only the unpacked file found no room the last time.
    if hashlib.sha256(content).hexdigest() == sha256:
        return content
    _receive(address, part, start, budget, progress)
    with _writing(part):
        content = _content(part)
        if hashlib.sha256(content).hexdigest() == sha256:
            return content
        # The content decides: an archive that was packed again is as good. The MD5 tells what went wrong.
        same_archive = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest() == md5
        part.unlink()
    what = "the right archive, but with other content" if same_archive else "a file with another MD5"
    # What was left from another day may be what is wrong: then once more from the beginning.
    raise _Failed(f"it sends {what}", final=start == 0)


def _content(part: Path) -> bytes:
    """What `part` unpacks to, or nothing if it is not whole."""
    try:
        return unpack(part.read_bytes(), part.with_suffix(""), "")
    except DataError:
        return b""


def _receive(address: str, part: Path, start: int, budget: _Budget, progress: bool) -> None:
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
            _writing(part),
            part.open("ab" if start else "wb") as out,
        ):
            received = start
            for chunk in stream:
                out.write(chunk)
                received += len(chunk)
                bar.update(len(chunk))
    if stream.end is not None and received != stream.end:
        raise _Failed(f"the connection broke after {received:,} of {stream.end:,} bytes")


class _Stream:
    """The body of an answer in pieces, none awaited for longer than the budget allows.

    A thread asks and reads, because neither looking up a name nor connecting obeys a limit on the whole.

    Attributes:
        from_byte: where in the file the body begins.
        end: how long the file is; None when the server does not say.
    """

    def __init__(self, request: Request, budget: _Budget) -> None:
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
            raise _Failed("nothing came") from None
        if isinstance(piece, _Failed):
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
            self._put((0, 0) if error.code == 416 else _Failed(f"HTTP {error.code} {error.reason}", final=True))
            self._put(b"")
        except URLError as error:
            self._put(_Failed(_reason(error.reason), final=True))
        except (OSError, HTTPException, ValueError) as error:
            self._put(_Failed(_reason(error)))

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


def read_downloaded(root: Path, family: Family) -> Files:
    """One family from `root`, after `download` has put it there, read by torchvision's own class.

    Raises:
        DataError: files of an old torchvision lie there too, which its class would prefer.
    """
    old = root / family.dataset.__name__ / "processed"
    if old.exists():
        raise DataError(f"'{old}' is left from an old torchvision and would be read unchecked; remove that folder.")
    arrays = {}
    for split, train in (("train", True), ("test", False)):
        dataset = family.dataset(root, train=train, download=False)
        arrays[f"{split}_images"] = dataset.data.numpy()
        arrays[f"{split}_labels"] = dataset.targets.numpy().astype(np.uint8)
    return arrays, dict(family.content)


def read_folder(root: Path, family: Family, families: Mapping[str, Family] = FAMILIES) -> Files:
    """One family from a folder that the user named; nothing is written.

    Args:
        root: holds the four official files, .gz or unpacked, itself or in `<Class>/raw`, `<Class>` or `<slug>`.
        family: which one.
        families: all there are, to recognise the files of another one.

    Raises:
        NotHere: no file of the family is there.
        DataError: no such folder; one of the four files is missing, damaged or has other content.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"There is no folder '{root}' that can be read; name the one that holds {family.title}'s four IDX files."
        )
    kind = family.dataset.__name__
    remedy = f"put the original files of {family.title} there"
    for place in (root / kind / "raw", root / kind, root / family.slug, root):
        there = [name for name in _SHORT_NAMES if _one_of(place, name)]
        if not there:
            continue
        arrays, hashes = {}, {}
        for name, short in _SHORT_NAMES.items():
            path = _one_of(place, name)
            if path is None:
                raise DataError(f"The file '{place / name}' (or .gz) is missing; {remedy}.")
            content = unpack(read_file(path, remedy), path, remedy)
            arrays[short] = decode_idx(content, f"The file '{path}'")
            hashes[name] = hashlib.sha256(content).hexdigest()
            if hashes[name] != family.content[name]:
                if place == root and any(hashes[name] == other.content[name] for other in families.values()):
                    break
                raise DataError(f"The file '{path}' is not {family.title}'s: it has another SHA-256; {remedy}.")
        else:
            return arrays, hashes
    raise NotHere(
        f"The folder '{root}' holds no {family.title}: put its four IDX files into '{kind}' there, or name another."
    )


def _one_of(place: Path, name: str) -> Path | None:
    return next((path for path in (place / name, place / f"{name}.gz") if os.path.isfile(path)), None)
