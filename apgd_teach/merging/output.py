"""The files that a merge makes: filled a tensor at a time, and published together or not at all."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.files import hidden_beside
from apgd_teach.merging.adapters import Adapted
from apgd_teach.merging.audit import Output
from apgd_teach.merging.checkpoint import DTYPES, InFiles, Spec, precision_of, sha256_of

__all__ = ["Content", "Target", "Writer", "contents_of", "target_of"]

_OF_FILES = (
    *(".7z", ".bak", ".bin", ".ckpt", ".ggml", ".gguf", ".gz", ".h5", ".json", ".keras", ".msgpack", ".npy", ".npz"),
    *(".onnx", ".orig", ".part", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".safetensor", ".st", ".tar", ".tflite"),
    *(".tmp", ".txt", ".yaml", ".yml", ".zip"),
)
"""Endings with which somebody means a file. Others ("llama-3.2") may be the names of folders."""
_NAMES = {kind: name for name, kind in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the output goes: a file, or a folder."""

    path: Path
    is_file: bool


@dataclasses.dataclass(frozen=True)
class Content:
    """What one output file holds: headers by tensor, its metadata; or text, for an index."""

    specs: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text: str | None = None


def target_of(out: object, inputs: tuple[InFiles | Adapted, ...]) -> Target:
    """Where `out` may go; everything that would forbid it is said before anything is computed."""
    if not isinstance(out, str | os.PathLike):
        raise MergeError(f"out is a {type(out).__name__}; give the path of a .safetensors file or of a folder.")
    with _sentences(Path(out)):
        # A link is followed, so that what it points to is replaced and not the link.
        path = Path(os.path.realpath(out))
        is_file = path.suffix.lower() == ".safetensors"
        if not is_file and path.suffix.lower() in _OF_FILES:
            raise MergeError(f"out: '{out}' ends in {path.suffix}; give a name ending in .safetensors, or a folder.")
        if not path.parent.is_dir():
            raise MergeError(f"out: there is no folder '{Path(out).parent}'; make it first.")
        if path.exists():
            if is_file and not path.is_file():
                raise MergeError(f"out: '{out}' is no ordinary file; give another name.")
            if not is_file and not path.is_dir():
                raise MergeError(f"out: '{out}' is no folder; end the name in .safetensors to write one file.")
            if is_file and any(path.samefile(one) for source in inputs for one in source.paths):
                raise MergeError(f"out: '{out}' is one of the inputs, which are never changed; give another name.")
            if not is_file and any(path.iterdir()):
                raise MergeError(f"out: the folder '{out}' is not empty; give a new one.")
        if is_file and any(source.folder and path.parent.samefile(source.folder) for source in inputs):
            raise MergeError(
                f"out: '{out}' lies in a folder that is one of the inputs, which would then hold two checkpoints; "
                "write it elsewhere."
            )
    return Target(path, is_file)


def contents_of(base: InFiles, target: Target, kind: torch.dtype | None) -> dict[str, Content]:
    """The output's files by name: one, or as the base has them."""
    specs = {
        name: Spec(spec.shape, kind if kind is not None and spec.dtype.is_floating_point else spec.dtype)
        for name, spec in base.specs.items()
    }
    if target.is_file:
        return {target.path.name: Content(specs, _common(base))}
    files = {
        file: Content({name: specs[name] for name in names}, base.metadata[file]) for file, names in base.layout.items()
    }
    if base.index is not None:
        name, content = base.index
        said = content.get("metadata")
        size = sum(spec.size * spec.dtype.itemsize for spec in specs.values())
        content = {**content, "metadata": {**(said if isinstance(said, dict) else {}), "total_size": size}}
        files[name] = Content(text=json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return files


def _common(base: InFiles) -> dict[str, str]:
    """What all the base's files say of themselves."""
    first, *others = base.metadata.values()
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}


class Writer:
    """Safetensors files that are filled a tensor at a time, in any order, and published together.

    The library's own `save_file` wants all tensors at once. Until `publish` everything lies in a hidden folder beside
    the output, which leaving the block removes; after a process that was killed, the next one that writes there does.

    Raises:
        MergeError: there is no room, or the place cannot be written to.
    """

    def __init__(self, target: Target, contents: Mapping[str, Content]) -> None:
        self._target = target
        self._contents = contents
        self._headers = {name: _header(content) for name, content in contents.items()}
        self._places = {
            name: (file, len(header) + start)
            for file, (header, starts) in self._headers.items()
            for name, start in starts.items()
        }
        self._left = set(self._places)
        self._folder = Path()
        self._leaving = ExitStack()
        self.output: Output | None = None

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(
            len(header) + sum(spec.size * spec.dtype.itemsize for spec in self._contents[file].specs.values())
            for file, (header, _) in self._headers.items()
        )

    def check_room(self) -> None:
        """Whether the files fit on the disk.

        Raises:
            MergeError: they do not.
        """
        path = self._target.path
        with _sentences(path):
            free = shutil.disk_usage(path.parent).free
        if self.size > free:
            raise MergeError(
                f"out: '{path.name}' needs {self.size / 1e9:.3g} GB, and the disk has {free / 1e9:.3g} GB left; "
                "free some space, or write it elsewhere."
            )

    def __enter__(self) -> Writer:
        path = self._target.path
        with ExitStack() as stack, _sentences(path):
            # Before the room is measured: what a killed process left is removed, and counts no more.
            hidden = stack.enter_context(hidden_beside(path))
            self.check_room()
            # The hidden folder is its owner's only; what is made in it has the rights of any new folder and file.
            self._folder = hidden / "out"
            self._folder.mkdir()
            for file, (header, _) in self._headers.items():
                (self._folder / file).write_bytes(header)
            self._leaving = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving.close()

    def write(self, name: str, tensor: Tensor) -> None:
        """Put one tensor into its place."""
        file, start = self._places[name]
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        with _sentences(self._target.path), (self._folder / file).open("r+b") as stream:
            stream.seek(start)
            stream.write(raw.data)
        self._left.discard(name)

    def publish(self) -> None:
        """Bring everything onto the disk, read it as others will, and let it appear in one step."""
        assert not self._left, self._left
        path = self._target.path
        with _sentences(path):
            for file, content in self._contents.items():
                with (self._folder / file).open("r+b") as stream:
                    os.fsync(stream.fileno())
                if content.text is None:
                    _verify(self._folder / file, content)
            self.output = self._made()
            new = self._folder / path.name if self._target.is_file else self._folder
            if path.exists():
                # A folder that its owner may not write to could not be moved.
                new.chmod(path.stat().st_mode & 0o777 | (0 if self._target.is_file else 0o700))
                if not self._target.is_file:
                    path.rmdir()
            os.replace(new, path)

    def _made(self) -> Output:
        """What the record says of the files; read before they appear, so that nothing is published without a record."""
        contents = {file: self._contents[file] for file in sorted(self._contents) if self._contents[file].text is None}
        specs = {name: spec for content in contents.values() for name, spec in content.specs.items()}
        sha256 = sha256_of((self._folder / file for file in contents), lambda file: file.open("rb", buffering=0))
        prefix = "" if self._target.is_file else f"{self._target.path.name}/"
        return Output(tuple(prefix + file for file in contents), sha256, precision_of(specs))


def _header(content: Content) -> tuple[bytes, dict[str, int]]:
    """The bytes before the data, and where in the data each tensor begins: the widest dtype first, then by name."""
    if content.text is not None:
        return content.text.encode(), {}
    header: dict[str, object] = {"__metadata__": dict(content.metadata)} if content.metadata else {}
    starts, end = {}, 0
    for name, spec in sorted(content.specs.items(), key=lambda one: (-one[1].dtype.itemsize, one[0])):
        starts[name], end = end, end + spec.size * spec.dtype.itemsize
        header[name] = {"dtype": _NAMES[spec.dtype], "shape": spec.shape, "data_offsets": (starts[name], end)}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, starts


def _verify(path: Path, content: Content) -> None:
    """Open a finished file with the safetensors library."""
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118, it is no dict
            same = {name: (tuple(one.get_shape()), one.get_dtype()) for name, one in found.items()}
    except SafetensorError as error:
        raise MergeError(f"out: '{path.name}' was not written as it should be ({error}); try again.") from None
    if same != {name: (spec.shape, _NAMES[spec.dtype]) for name, spec in content.specs.items()}:
        raise MergeError(f"out: '{path.name}' was not written as it should be; try again.")


@contextmanager
def _sentences(path: Path) -> Iterator[None]:
    """What the system says of the output, as a sentence."""
    try:
        yield
    except ValueError:  # a zero byte in the name
        raise MergeError(f"out: {str(path)!r} is no path; give another name.") from None
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
        advice = (
            "free some space, or write it elsewhere" if full else "check the folder's rights, or write it elsewhere"
        )
        raise MergeError(
            f"out: '{path.name}' cannot be written ({error.strerror or error}); {advice}. Nothing was changed."
        ) from None
