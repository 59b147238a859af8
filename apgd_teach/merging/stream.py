"""Merging from files to files: one layer in memory at a time, and never half a file on the disk."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from apgd_teach.devices import pick_device
from apgd_teach.errors import MergeError
from apgd_teach.merging.adapters import Adapted, is_adapter, open_expert
from apgd_teach.merging.audit import Audit, Output
from apgd_teach.merging.checkpoint import DTYPES, InFiles, Spec, open_checkpoint, precision_of, sha256_of
from apgd_teach.merging.engine import Inputs, passes, run
from apgd_teach.merging.method import Method
from apgd_teach.merging.preflight import Preflight, Values, preflight_headers
from apgd_teach.merging.registry import pick
from apgd_teach.progress import bar

__all__ = ["merge_files", "preflight_files"]

_PRECISIONS = ("float32", "bfloat16", "float16", "float64")
_OF_FILES = (
    *(".7z", ".bak", ".bin", ".ckpt", ".ggml", ".gguf", ".gz", ".h5", ".json", ".keras", ".msgpack", ".npy", ".npz"),
    *(".onnx", ".orig", ".part", ".pickle", ".pkl", ".pt", ".pt2", ".pth", ".safetensor", ".st", ".tar", ".tflite"),
    *(".tmp", ".txt", ".yaml", ".yml", ".zip"),
)
"""Endings with which somebody means a file. Others ("llama-3.2") may be the names of folders."""
_NAMES = {kind: name for name, kind in DTYPES.items()}


def merge_files(
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: str | Method = "average",
    *,
    policy: Mapping[str, str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    progress: bool = True,
    **settings: object,
) -> Audit:
    """Merge checkpoints on disk into a new one, with one layer in memory at a time.

    The tensors are those that `merge` would make of the loaded state dicts, to the bit, whatever the number of
    workers. The output appears when it is whole: until then, and after any error or Ctrl-C, what was there before is
    untouched and nothing else is left behind.

    Memory beyond the imports: at most T + 5 layers (the largest layer as float32) for every worker, and 0.3 GB in all.
    Measured with one square layer in bfloat16, T = 8, two threads, in layers: 2,600², where the bound is 24, 18 to 19
    for every method that solves or decomposes; 4,096², where it is 17.5, 16 to 17. That is what is held. On Linux the C
    library keeps pieces of up to 32 MB that were given back, and with layers just below that size the peak was up to 37
    layers, another number at each run: MALLOC_MMAP_THRESHOLD_=4000000 in the environment ends that, for a tenth more
    time.

    Args:
        base: θ₀: a `.safetensors` file, a `….safetensors.index.json`, or a folder that holds one of the two.
        experts: paths of the same kinds, or of LoRA adapters as PEFT saves them (a folder with an
            adapter_config.json), by name; their order does not matter.
        out: a name that ends in .safetensors (in any case): one file, in place of any that is there, whose rights it
            keeps. Else a new or empty folder, in which the base's layout is repeated: the same names of files and the
            same index. A folder with something in it is refused, since it cannot be replaced in one step and would mix
            two models. Whatever else a model's folder holds (its configuration, a tokenizer) is yours to copy.
        method: a name in `METHODS`, or an instance of a method of your own.
        policy: patterns of tensor names that overrule the shapes', {"head.*": "keep"}; see `policy.decide`.
        dtype: of the floating-point tensors that are written: "float32", "bfloat16", "float16", "float64", or the
            same of `torch`; None: each as the base has it. Half precision is computed in float32 in any case.
        device: where to compute, "auto", "cpu", "cuda", "mps"; None: on the CPU.
        workers: layers in work at once, each with its own memory; None: one. PyTorch's own threads work within a
            layer; more workers help where a method waits for what PyTorch does with one thread.
        progress: whether to show a bar, one tick per tensor and pass.
        settings: the method's settings, when it is named.

    Returns:
        What was done to each tensor, of which files, and into which; `inputs` holds each checkpoint's
        `InFiles.digest`, and `output` the merge's.

    Raises:
        MergeError: as `merge`; or a file is missing, damaged, of another format or changed meanwhile; or the output
            is one of the inputs, cannot be written, or does not fit on the disk.
        DataAccessError: the method asked for data.

    Source: method.md §1. Lesson: 10.
    """
    chosen = pick(method, settings)
    kind = _precision(dtype)
    threads = _count(workers)
    place = pick_device("cpu" if device is None else device)
    opened, sources = _opened(base, experts)
    report = _headers(opened, sources, policy, getattr(chosen, "others", "average"))
    report.raise_errors("preflight_files(base, experts)")
    # The engine shows values in the precision that it computes in; the headers say in which they were stored.
    stored = {"base": opened.specs, **{name: source.specs for name, source in sources.items()}}
    inputs = Inputs(opened, sources, policy, place, kind)
    derived = frozenset(name for name, source in sources.items() if source.derived)
    values = Values(inputs.names, strict=True, headers=stored, decisions=inputs.decisions(chosen), derived=derived)
    inputs = dataclasses.replace(inputs, look=values.look)
    target = _target(out, (opened, *sources.values()))
    ticks = passes(inputs, chosen)
    with (
        _Writer(target, _contents(opened, target, kind)) as writer,
        bar(ticks, "tensor", chosen.name, progress) as shown,
    ):
        audit = run(
            inputs,
            chosen,
            writer.write,
            workers=threads,
            tick=shown.update,
            findings=lambda: (*report.warnings, *values.findings()),
        )
        writer.publish()
    names = {"base": opened, **{name: sources[name] for name in inputs.names}}
    return dataclasses.replace(
        audit,
        files={name: source.shown for name, source in names.items()},
        output=writer.output,
        given_policy=tuple((policy or {}).items()),
        device=str(place),
    )


def preflight_files(
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    policy: Mapping[str, str] | None = None,
) -> Preflight:
    """What the headers of checkpoints on disk say against merging them; no tensor is read.

    Args:
        base, experts, policy: as `merge_files` takes them.

    Returns:
        The report. What only values show (NaN, another base, twins) `merge_files` finds on its way.

    Raises:
        MergeError: a file cannot be opened as a checkpoint.

    Source: method.md §2.8. Lesson: 09.
    """
    return _headers(*_opened(base, experts), policy, "average")


def _opened(
    base: str | os.PathLike[str], experts: Mapping[str, str | os.PathLike[str]]
) -> tuple[InFiles, dict[str, InFiles | Adapted]]:
    if not isinstance(experts, Mapping):
        raise MergeError(f"the experts are a {type(experts).__name__}; give a dict of paths, {{name: path}}.")
    if isinstance(base, str | os.PathLike) and is_adapter(base):
        raise MergeError(f"base: '{base}' is an adapter and no model; give the model that it was made for.")
    opened = open_checkpoint(base, "base")
    sources = {name: open_expert(path, opened, f"expert '{name}'") for name, path in experts.items()}
    return opened, sources


def _headers(
    base: InFiles, experts: Mapping[str, InFiles | Adapted], policy: Mapping[str, str] | None, others: str
) -> Preflight:
    specs = {name: expert.specs for name, expert in experts.items()}
    return preflight_headers(base.specs, specs, policy=policy, others=others)


def _precision(dtype: object) -> torch.dtype | None:
    named = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if dtype is None:
        return None
    if not isinstance(dtype, str | torch.dtype) or named not in _PRECISIONS:
        raise MergeError(f"{dtype!r} is no dtype to write a merge in; use one of: {', '.join(_PRECISIONS)}.")
    found: torch.dtype = getattr(torch, named)
    return found


def _count(workers: object) -> int:
    if workers is None:
        return 1
    if type(workers) is not int or workers < 1:
        raise MergeError(f"workers is {workers!r}; give a whole number, 1 or more.")
    return workers


# The output


@dataclasses.dataclass(frozen=True)
class _Target:
    """Where the output goes: a file, or a folder."""

    path: Path
    is_file: bool


@dataclasses.dataclass(frozen=True)
class _Content:
    """What one output file holds: headers by tensor, its metadata; or text, for an index."""

    specs: Mapping[str, Spec] = dataclasses.field(default_factory=dict)
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    text: str | None = None


def _target(out: object, inputs: tuple[InFiles | Adapted, ...]) -> _Target:
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
    return _Target(path, is_file)


def _contents(base: InFiles, target: _Target, kind: torch.dtype | None) -> dict[str, _Content]:
    """The output's files by name: one, or as the base has them."""
    specs = {
        name: Spec(spec.shape, kind if kind is not None and spec.dtype.is_floating_point else spec.dtype)
        for name, spec in base.specs.items()
    }
    if target.is_file:
        return {target.path.name: _Content(specs, _common(base))}
    files = {
        file: _Content({name: specs[name] for name in names}, base.metadata[file])
        for file, names in base.layout.items()
    }
    if base.index is not None:
        name, content = base.index
        said = content.get("metadata")
        size = sum(spec.size * spec.dtype.itemsize for spec in specs.values())
        content = {**content, "metadata": {**(said if isinstance(said, dict) else {}), "total_size": size}}
        files[name] = _Content(text=json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    return files


def _common(base: InFiles) -> dict[str, str]:
    """What all the base's files say of themselves."""
    first, *others = base.metadata.values()
    return {key: value for key, value in first.items() if all(one.get(key) == value for one in others)}


class _Writer:
    """Safetensors files that are filled a tensor at a time, in any order, and published together.

    The library's own `save_file` wants all tensors at once. Until `publish` everything lies in a hidden folder beside
    the output, which leaving the block removes.

    Raises:
        MergeError: there is no room, or the place cannot be written to.
    """

    def __init__(self, target: _Target, contents: Mapping[str, _Content]) -> None:
        self._target = target
        self._contents = contents
        self._headers = {name: _header(content) for name, content in contents.items()}
        self._places = {
            name: (file, len(header) + start)
            for file, (header, starts) in self._headers.items()
            for name, start in starts.items()
        }
        self._left = set(self._places)
        self._hidden = self._folder = Path()
        self.output: Output | None = None

    def __enter__(self) -> _Writer:
        path = self._target.path
        need = sum(
            len(header) + sum(spec.size * spec.dtype.itemsize for spec in self._contents[file].specs.values())
            for file, (header, _) in self._headers.items()
        )
        with _sentences(path):
            free = shutil.disk_usage(path.parent).free
            if need > free:
                raise MergeError(
                    f"out: '{path.name}' needs {need / 1e9:.3g} GB, and the disk has {free / 1e9:.3g} GB left; "
                    "free some space, or write it elsewhere."
                )
            self._hidden = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
            try:
                # The hidden folder is its owner's only; what is made in it has the rights of any new folder and file.
                self._folder = self._hidden / "out"
                self._folder.mkdir()
                for file, (header, _) in self._headers.items():
                    (self._folder / file).write_bytes(header)
            except BaseException:
                self.__exit__()
                raise
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._hidden, ignore_errors=True)

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


def _header(content: _Content) -> tuple[bytes, dict[str, int]]:
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


def _verify(path: Path, content: _Content) -> None:
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
