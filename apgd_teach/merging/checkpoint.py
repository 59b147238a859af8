"""Where tensors come from: a state dict in memory or files on disk, headers apart from values."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import BinaryIO, Protocol

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.statedict import StateDict, as_utf8, fingerprint

__all__ = [
    "DTYPES",
    "PICKLES",
    "Checkpoint",
    "InFiles",
    "InMemory",
    "Spec",
    "open_checkpoint",
    "precision_of",
    "read_json",
    "readable",
    "sha256_of",
    "ties_of",
]

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "U16": torch.uint16,
    "I16": torch.int16,
    "U32": torch.uint32,
    "I32": torch.int32,
    "U64": torch.uint64,
    "I64": torch.int64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}
"""What safetensors calls the dtypes that can be read."""

_SUFFIX = ".safetensors"
_INDEX = ".safetensors.index.json"
PICKLES = (".bin", ".ckpt", ".pkl", ".pt", ".pth")
"""Endings of files that PyTorch wrote as a pickle."""
_LONGEST_HEADER = 100_000_000
"""The bytes above which the safetensors library itself refuses a header."""
_MOST_AXES = 63
"""PyTorch computes with 64, and task vectors have one more than their tensor."""
_LARGEST = 1 << 48
"""Numbers in a tensor, empty axes left aside: far more than any disk holds, and a stack of them can be counted."""


@dataclass(frozen=True)
class Spec:
    """What a header says of a tensor: shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        size = 1
        for axis in self.shape:
            size *= axis
        return size


class Checkpoint(Protocol):
    """A network's tensors: their headers at once, their values one at a time."""

    @property
    def specs(self) -> Mapping[str, Spec]:
        """Header of every tensor, by name, in the checkpoint's own order."""
        ...

    @property
    def ties(self) -> tuple[tuple[str, ...], ...]:
        """Groups of names that stand for one tensor in memory."""
        ...

    @property
    def derived(self) -> bool:
        """Whether its tensors are made from the base's, so that no rounding of the base is in what it differs by."""
        ...

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored. Not to be written to."""
        ...

    def digest(self) -> str:
        """SHA-256 (hex) by which the audit names this input."""
        ...


class InMemory:
    """A state dict as a checkpoint. Nothing is copied."""

    derived = False

    def __init__(self, state: StateDict) -> None:
        for name in state:
            as_utf8(name)
        self.state = state
        self.specs: Mapping[str, Spec] = {name: Spec(tuple(one.shape), one.dtype) for name, one in state.items()}
        self.ties = ties_of(state)

    def read(self, name: str) -> Tensor:
        """One tensor."""
        return self.state[name].detach()

    def digest(self) -> str:
        """Of names, dtypes, shapes and values."""
        return fingerprint(self.state)


def ties_of(state: StateDict) -> tuple[tuple[str, ...], ...]:
    """Groups of names whose tensors are one and the same memory: an embedding and the layer that shares it."""
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in state.items():
        if tensor.numel() and tensor.layout == torch.strided and not tensor.is_meta:
            place = (str(tensor.device), tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
            groups.setdefault(place, []).append(name)
    return tuple(tuple(names) for names in groups.values() if len(names) > 1)


def open_checkpoint(path: str | os.PathLike[str], label: str = "the checkpoint") -> InFiles:
    """Open a network on disk: headers are read and checked, and no tensor.

    Args:
        path: a `.safetensors` file; a `….safetensors.index.json` beside its shards; or a folder that holds one of the
            two, as a Hugging Face model's does. Links are followed.
        label: whose it is, for the sentences: "base", "expert 'ada'".

    Raises:
        MergeError: it is missing, damaged, of another format, ambiguous, or cannot be read.

    Lesson: 10.
    """
    if not isinstance(path, str | os.PathLike):
        raise MergeError(f"{label} is a {type(path).__name__}; give the path of a .safetensors file or of a folder.")
    given = Path(path)
    with readable(given, label):
        if not given.exists():
            raise MergeError(f"{label}: there is no file or folder '{given}'; check the path.")
        folder = given if given.is_dir() else None
        file = _inside(given, label) if folder else given
        opened = InFiles.of_index(file, label) if _ends(file.name, _INDEX) else InFiles.of_file(file, label)
        opened.folder = folder
        return opened


def _ends(name: str, suffix: str) -> bool:
    """Whatever the case: on some systems MODEL.SAFETENSORS is the same file."""
    return name.lower().endswith(suffix)


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies: in which file, from which byte."""

    file: Path
    start: int


class InFiles:
    """Safetensors files as a checkpoint; make one with `open_checkpoint`. It can be read from several threads.

    Every read opens the file, reads the tensor's bytes into new memory and closes it (a memory map would count what
    it has shown as memory in use), and refuses a file that is not the one whose header was read.

    Attributes:
        specs: header of every tensor, by name.
        ties: none: a file holds every tensor apart. Hugging Face leaves the second name of a tied tensor out.
        layout: names of the tensors by file, in the order of the files' names.
        metadata: what each file says of itself beside its tensors: {"format": "pt"}.
        index: name and content of the index, or None for a single file.
        folder: the folder that was given, or None where a file was.
    """

    folder: Path | None = None
    derived = False

    def __init__(self, files: Iterable[_File], label: str, index: tuple[str, dict[str, object]] | None = None) -> None:
        self._files = sorted(files, key=lambda one: one.path.name)
        self._label = label
        self._known = {file.path: file.state for file in self._files}
        self._places = {name: _Place(file.path, start) for file in self._files for name, start in file.starts.items()}
        self._digest, self._machine = "", platform.node()
        specs = {name: spec for file in self._files for name, spec in file.specs.items()}
        order = _weight_map(index[1]) if index else specs
        self.specs: Mapping[str, Spec] = {name: specs[name] for name in order}
        self.ties: tuple[tuple[str, ...], ...] = ()
        self.layout = {file.path.name: tuple(file.specs) for file in self._files}
        self.metadata = {file.path.name: file.metadata for file in self._files}
        self.index = index

    @classmethod
    def of_file(cls, path: Path, label: str) -> InFiles:
        """From one `.safetensors` file."""
        return cls([_File.read(path, label)], label)

    @classmethod
    def of_index(cls, path: Path, label: str) -> InFiles:
        """From an index, whose shards are files of the same folder."""
        index = _index(path, label)
        names = _weight_map(index)
        files = {}
        for shard in sorted(set(names.values())):
            if not (path.parent / shard).exists():
                raise MergeError(f"{label}: '{path}' names the file '{shard}', which is missing; download it too.")
            files[shard] = _File.read(path.parent / shard, label)
        for name, shard in names.items():
            if name not in files[shard].specs:
                raise MergeError(
                    f"{label}: '{path}' says that '{shard}' holds tensor '{name}', and it does not; "
                    "index and shards are not of one model: download them again."
                )
        for shard, file in files.items():
            for name in file.specs:
                if names.get(name) != shard:
                    raise MergeError(
                        f"{label}: '{shard}' holds a tensor '{name}' that '{path}' does not say is there; "
                        "index and shards are not of one model: download them again."
                    )
        return cls(files.values(), label, (path.name, index))

    def __getstate__(self) -> dict[str, object]:
        """For another process, which may stand in another folder: paths are whole."""
        here = Path.cwd()
        return {
            **self.__dict__,
            "_files": [replace(file, path=here / file.path) for file in self._files],
            "_known": {here / path: state for path, state in self._known.items()},
            "_places": {name: replace(place, file=here / place.file) for name, place in self._places.items()},
        }

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files that hold the tensors, in the order of their names."""
        return tuple(file.path for file in self._files)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the files for a record, with their folder's where it was given or holds several: no whole path.

        The shards of two models have the same names, and the folders are named after the models.
        """
        if self.folder is None and self.index is None:
            return tuple(self.layout)
        folder = Path(os.path.abspath(self.paths[0])).parent.name
        return tuple(f"{folder}/{name}" if folder else name for name in self.layout)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        place, spec = self._places[name], self.specs[name]
        tensor = torch.empty(spec.shape, dtype=spec.dtype, device="cpu")
        if spec.size:
            with self.reading(place.file) as stream:
                stream.seek(place.start)
                # Seen as bytes, since numpy has no bfloat16; a scalar must become a vector first.
                _fill(stream, tensor.reshape(-1).view(torch.uint8).numpy().data, place.file, self._label)
        return tensor

    def digest(self) -> str:
        """SHA-256 of the file: what `sha256sum` prints.

        Of several, in the order of their names, as if they were one: what `cat *.safetensors | sha256sum` prints.
        """
        if not self._digest:
            self._digest = sha256_of(self.paths, self.reading)
        return self._digest

    @contextmanager
    def reading(self, path: Path) -> Iterator[BinaryIO]:
        """One of its files, opened; refused where it is not the one whose header was read."""
        with readable(path, self._label), path.open("rb", buffering=0) as stream:
            # A copy on another machine has a number and times of its own: there the size has to do.
            said = 1 if self._machine != platform.node() else None
            if _state(stream)[:said] != self._known[path][:said]:
                raise MergeError(f"{self._label}: '{path}' has changed since the merge began; start again.")
            yield stream


def sha256_of(paths: Iterable[Path], reads: Callable[[Path], AbstractContextManager[BinaryIO]]) -> str:
    """SHA-256 (hex) of files as if they were one."""
    digest = hashlib.sha256()
    for path in paths:
        with reads(path) as stream:
            while part := stream.read(1 << 20):
                digest.update(part)
    return digest.hexdigest()


def precision_of(specs: Mapping[str, Spec]) -> str:
    """The dtypes of the floating-point tensors, in words: "bfloat16, float32"."""
    kinds = {spec.dtype for spec in specs.values() if spec.dtype.is_floating_point}
    return ", ".join(sorted(str(kind).removeprefix("torch.") for kind in kinds)) or "no floating-point tensor"


@dataclass(frozen=True)
class _File:
    """The header of one safetensors file.

    Attributes:
        path: of the file.
        state: size, time of the last change and number, by which the file is known again.
        specs: header of every tensor, by name, in the order in which they lie.
        starts: first byte of every tensor, counted from the start of the file.
        metadata: what the file says of itself.
    """

    path: Path
    state: tuple[int, ...]
    specs: dict[str, Spec]
    starts: dict[str, int]
    metadata: dict[str, str]

    @classmethod
    def read(cls, path: Path, label: str) -> _File:
        """Read and check a header: whatever passes can be read to the last tensor."""
        where = f"{label}: '{path}'"
        if path.suffix.lower() in PICKLES:
            raise MergeError(f"{where} is a pickle, which can run code when it is loaded; {_CONVERT}.")
        with readable(path, label):
            # Looked at before it is opened: a pipe would be waited for.
            if not stat.S_ISREG(path.stat().st_mode):
                raise MergeError(f"{where} is no ordinary file; give a .safetensors file.")
            with path.open("rb", buffering=0) as stream:
                state = _state(stream)
                beginning = stream.read(64)
                length = int.from_bytes(beginning[:8], "little")
                if beginning[8:9] != b"{" or length > _LONGEST_HEADER:
                    raise MergeError(f"{where} {_what_it_is(beginning)}.")
                if 8 + length > state[0]:
                    raise MergeError(
                        f"{where} is cut off within its header, at {state[0]:,} bytes; download or copy it again."
                    )
                stream.seek(8)
                raw = bytearray(length)
                _fill(stream, memoryview(raw), path, label)
        header = read_json(raw, where, "header")
        metadata = header.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(one, str) for one in metadata.values()):
            raise MergeError(f"{where} has a damaged header (metadata that is no text); download or save it again.")
        found = sorted(
            (_tensor(name, entry, where) for name, entry in header.items()), key=lambda one: (one[2], one[3])
        )
        end = 0
        for name, _, start, stop in found:
            if start != end:
                raise MergeError(
                    f"{where} has a damaged header (tensor '{name}' begins at byte {start:,} of the data, the one "
                    f"before it ends at {end:,}); download or save it again."
                )
            end = stop
        data = 8 + length
        if data + end != state[0]:
            cut = "is cut off" if data + end > state[0] else "has something behind its last tensor"
            raise MergeError(
                f"{where} {cut}: it has {state[0]:,} bytes and its header says {data + end:,}; "
                "download or copy it again."
            )
        return cls(
            path,
            state,
            {name: spec for name, spec, _, _ in found},
            {name: data + start for name, _, start, _ in found},
            metadata,
        )


_CONVERT = (
    'load it with torch.load(…, map_location="cpu", weights_only=True) and save its state dict with '
    "safetensors.torch.save_file"
)

_OTHER_FORMATS = {
    b"version https://git-lfs": "is a Git LFS pointer and not the file that it stands for; run `git lfs pull`",
    b"<": "is a web page; what was downloaded is not the file itself",
    b"PK\x03\x04": f"is a PyTorch pickle under another name; {_CONVERT}",
    b"\x80\x02": f"is a PyTorch pickle under another name; {_CONVERT}",
    b"GGUF": "is a GGUF file, whose weights are quantised; take the checkpoint that it was made from",
}


def _what_it_is(beginning: bytes) -> str:
    for mark, what in _OTHER_FORMATS.items():
        if beginning.lstrip().startswith(mark):
            return what
    return "is no safetensors file; download or save it again" if beginning else "is empty; download or save it again"


def _tensor(name: str, entry: object, where: str) -> tuple[str, Spec, int, int]:
    """One line of a header: name, shape and dtype, first byte of the data and the first that is not its own."""

    def numbers(value: object) -> bool:
        return isinstance(value, list) and all(type(one) is int and one >= 0 for one in value)

    damaged = f"{where} has a damaged header (tensor '{name}'); download or save it again."
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise MergeError(damaged)
    kind, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not (isinstance(kind, str) and numbers(shape) and numbers(offsets) and len(offsets) == 2):
        raise MergeError(damaged)
    if kind not in DTYPES:
        raise MergeError(
            f"{where} has tensor '{name}' of dtype {kind}, which cannot be merged; "
            "take the checkpoint before it was converted to it."
        )
    spec = Spec(tuple(shape), DTYPES[kind])
    if offsets[1] - offsets[0] != spec.size * spec.dtype.itemsize:
        raise MergeError(damaged)
    # An axis of length zero makes any shape fit its bytes.
    if len(shape) > _MOST_AXES or math.prod(max(1, axis) for axis in shape) >= _LARGEST:
        raise MergeError(
            f"{where} has tensor '{name}' of a shape that PyTorch cannot work with ({len(shape)} axes, the longest "
            f"{max(shape):,}); download or save it again."
        )
    return name, spec, offsets[0], offsets[1]


def _inside(folder: Path, label: str) -> Path:
    """The one checkpoint of a folder: an index, or a safetensors file that no index speaks for."""
    names = sorted(one.name for one in folder.iterdir())
    indices = [name for name in names if _ends(name, _INDEX)]
    shards = {shard for name in indices for shard in _weight_map(_index(folder / name, label)).values()}
    found = indices + [name for name in names if _ends(name, _SUFFIX) and name not in shards]
    if len(found) > 1:
        listed = ", ".join(f"'{name}'" for name in found[:5])
        raise MergeError(f"{label}: the folder '{folder}' holds several checkpoints ({listed}); give the file itself.")
    if not found:
        pickles = [name for name in names if name.lower().endswith(PICKLES)]
        hint = f"'{pickles[0]}' is a pickle: {_CONVERT}" if pickles else "check the path"
        raise MergeError(f"{label}: the folder '{folder}' holds no .safetensors file; {hint}.")
    return folder / found[0]


def _index(path: Path, label: str) -> dict[str, object]:
    """Read and check an index."""
    where = f"{label}: '{path}'"
    with readable(path, label):
        if not path.is_file():
            raise MergeError(f"{where} is no ordinary file; give the index of a sharded checkpoint.")
        index = read_json(path.read_bytes(), where, "index")
    shards = index.get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(one, str) for one in shards.values()) or not shards:
        raise MergeError(f"{where} is no index of shards: its weight_map is missing or empty; download it again.")
    for shard in shards.values():
        # A name and no path, on any system, so that no index reaches out of its folder.
        plain = PurePosixPath(shard).name == shard == PureWindowsPath(shard).name and shard.isprintable()
        if not plain or not _ends(shard, _SUFFIX):
            raise MergeError(
                f"{where} names the file {shard!r}, which is no .safetensors file of its own folder; "
                "do not use an index from a source that you do not trust."
            )
    return index


def _weight_map(index: Mapping[str, object]) -> dict[str, str]:
    names = index["weight_map"]
    assert isinstance(names, dict)
    return names


def read_json(raw: bytes | bytearray, where: str, what: str) -> dict[str, object]:
    """A JSON object without a name that stands there twice, of which a reader would take one or the other.

    Args:
        raw: the file's content.
        where: whose and which file, for the sentences.
        what: what it is, for the sentences: "header".

    Raises:
        MergeError: it is none.
    """

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = next(name for place, (name, _) in enumerate(pairs) if name in dict(pairs[:place]))
            raise MergeError(f"{where} has {twice!r} twice in its {what}; save it again.")
        return found

    try:
        found = json.loads(raw.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise MergeError(f"{where} has a damaged {what} (no JSON object); download or save it again.")
    if b"\\u" in raw and not _is_text(found):
        raise MergeError(
            f"{where} has a damaged {what} (half a character, which no file can hold); download or save it again."
        )
    return found


def _is_text(value: object) -> bool:
    """Whether it can be written again: JSON lets half of a surrogate pair pass as an escape."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _state(stream: BinaryIO) -> tuple[int, ...]:
    now = os.fstat(stream.fileno())
    return now.st_size, now.st_mtime_ns, now.st_ino, now.st_dev


def _fill(stream: BinaryIO, memory: memoryview, path: Path, label: str) -> None:
    """Read as many bytes as fit; the system may give fewer at once."""
    while memory:
        count = stream.readinto(memory)  # type: ignore[attr-defined]
        if not count:
            raise MergeError(f"{label}: '{path}' ended while it was read; it is being written to: start again.")
        memory = memory[count:]


@contextmanager
def readable(path: Path, label: str) -> Iterator[None]:
    """What the system says of a file that is read, as a sentence."""
    try:
        yield
    except OSError as error:
        raise MergeError(f"{label}: '{path}' cannot be read ({error.strerror or error}); check its rights.") from None
