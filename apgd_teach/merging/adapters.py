"""LoRA adapters as experts: the base with a product of two thin matrices added, layer by layer, as PEFT stores them."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import InFiles, Spec, open_checkpoint, read_json, readable, sha256_of

__all__ = ["CONFIG", "Adapted", "is_adapter", "open_expert"]

CONFIG = "adapter_config.json"
"""The file beside an adapter's weights that says how long its product is."""

_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
_LONGEST_CONFIG = 10_000_000
_PARTS = {
    ".lora_A.weight": ("a", ".weight"),
    ".lora_B.weight": ("b", ".weight"),
    ".lora_embedding_A": ("a", ".weight"),
    ".lora_embedding_B": ("b", ".weight"),
}
_EMBEDDING = ".lora_embedding_"
_OTHERS = {
    "use_dora": "DoRA, which rescales every column",
    "layer_replication": "an adapter that repeats layers",
    "alora_invocation_tokens": "an adapter that is active after certain words alone",
    "trainable_token_indices": "an adapter of single tokens",
    "target_parameters": "an adapter of single parameters",
}
"""Settings of an adapter that is more than a sum, and what it is then."""
_TAKEN_OUT = ("pissa", "olora", "corda", "loftq")
"""Ways of beginning an adapter that change the base as well; a converted one no longer says so."""
_MERGE = "merge it into its model with PEFT's merge_and_unload(), save that, and give the saved model"


def is_adapter(path: str | os.PathLike[str]) -> bool:
    """Whether a folder, or the folder of a file, is a PEFT adapter's: it has a configuration of one.

    Args:
        path: of a folder, or of the adapter's own file.
    """
    given = Path(path)
    try:
        return (given / CONFIG).is_file() or (given.name == _WEIGHTS and (given.parent / CONFIG).is_file())
    except OSError:  # a folder that may not be looked into
        return False


def open_expert(path: str | os.PathLike[str], base: InFiles, label: str = "the expert") -> InFiles | Adapted:
    """Open an expert on disk: a checkpoint of its own, or an adapter of the base.

    Args:
        path: as `open_checkpoint` takes it; or a PEFT adapter's folder, or its adapter_model.safetensors.
        base: the model that an adapter is added to.
        label: whose it is, for the sentences.

    Raises:
        MergeError: as `open_checkpoint`; or the adapter is none of this base, or more than a sum.

    Lesson: 09.
    """
    if isinstance(path, str | os.PathLike) and is_adapter(path):
        given = Path(path)
        return Adapted(given if given.is_dir() else given.parent, base, label)
    return open_checkpoint(path, label)


@dataclass(frozen=True)
class _Product:
    """σ · B A, as it is added to one tensor of the base.

    Attributes:
        a, b: names of A, shape (rank, in, ...), and of B, shape (out, rank, ...).
        scale: σ = α / r, or α / √r.
        turned: whether the base stores the transpose: an embedding, or a layer of GPT-2's kind.
    """

    a: str
    b: str
    scale: float
    turned: bool


class Adapted:
    """A base with a LoRA adapter added, as a checkpoint: nothing is written, each tensor is made when it is read.

    What an adapter adds is known exactly, so that no rounding of the base's file is in its task vector: such tensors
    are read in float32, whatever the base has.

    Args:
        folder: with adapter_config.json and adapter_model.safetensors.
        base: what it is added to.
        label: whose it is, for the sentences.

    Attributes:
        specs: the base's, in the base's precision; those of modules that the adapter brings whole are its own.
        ties: none.
        derived: True: its tensors are made from the base's.
        folder: as given.
        changed: names of the base's tensors that the adapter changes.

    Raises:
        MergeError: no adapter of this base, or one that is more than a sum.

    Source: LoRA, arXiv 2106.09685; PEFT's format of checkpoints. Lesson: 09.
    """

    derived = True

    def __init__(self, folder: Path, base: InFiles, label: str) -> None:
        self.folder, self._base, self._label = folder, base, label
        self._config_path = folder / CONFIG
        if not (folder / _WEIGHTS).exists() and (folder / "adapter_model.bin").exists():
            raise MergeError(
                f"{label}: the adapter '{folder}' holds a pickle, adapter_model.bin; save it again with "
                "save_pretrained(…, safe_serialization=True)."
            )
        self._file = open_checkpoint(folder / _WEIGHTS, label)
        self._raw, config = self._configuration()
        self._products: dict[str, _Product] = {}
        self._added: dict[str, tuple[str, float]] = {}
        self._whole: dict[str, str] = {}
        self._sort(config)
        if not (self._products or self._added or self._whole):
            raise MergeError(f"{label}: the adapter '{folder}' is empty; save it again.")
        self.ties: tuple[tuple[str, ...], ...] = ()
        self.specs: Mapping[str, Spec] = {
            **base.specs,
            **{name: self._file.specs[stored] for name, stored in self._whole.items()},
        }
        self.changed = tuple(name for name in self.specs if name in {*self._products, *self._added, *self._whole})

    @property
    def paths(self) -> tuple[Path, ...]:
        """Configuration and weights."""
        return (self._config_path, *self._file.paths)

    @property
    def shown(self) -> tuple[str, ...]:
        """Names of the files for a record, with their folder's."""
        name = Path(os.path.abspath(self.folder)).name
        return tuple(f"{name}/{path.name}" if name else path.name for path in self.paths)

    def read(self, name: str) -> Tensor:
        """One tensor, in memory of its own."""
        if name in self._whole:
            return self._file.read(self._whole[name])
        tensor = self._base.read(name)
        if name not in self._products and name not in self._added:
            return tensor
        tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
        if name in self._added:
            stored, scale = self._added[name]
            return tensor.add_(self._file.read(stored).to(tensor.dtype), alpha=scale)
        one = self._products[name]
        a, b = (self._file.read(part).to(tensor.dtype) for part in (one.a, one.b))
        product = (b.flatten(1) @ a.flatten(1)).mul_(one.scale)
        return tensor.add_((product.mT if one.turned else product).reshape(tensor.shape))

    def digest(self) -> str:
        """SHA-256 of both files as if they were one: what `cat adapter_config.json adapter_model.safetensors |
        sha256sum` prints."""
        return sha256_of(self.paths, self._open)

    @contextmanager
    def _open(self, path: Path) -> Iterator[BinaryIO]:
        if path != self._config_path:
            with self._file.reading(path) as stream:
                yield stream
            return
        if self._read_config() != self._raw:
            raise MergeError(f"{self._label}: '{path}' has changed since the merge began; start again.")
        with path.open("rb", buffering=0) as stream:
            yield stream

    def _read_config(self) -> bytes:
        with readable(self._config_path, self._label):
            if self._config_path.stat().st_size > _LONGEST_CONFIG:
                raise MergeError(f"{self._label}: '{self._config_path}' is no adapter's configuration; save it again.")
            return self._config_path.read_bytes()

    def _configuration(self) -> tuple[bytes, dict[str, object]]:
        raw = self._read_config()
        where = f"{self._label}: '{self._config_path}'"
        config = read_json(raw, where, "configuration")
        kind = config.get("peft_type")
        if kind != "LORA":
            raise MergeError(f"{where} is of an adapter of type {kind!r}, and only LoRA is a sum; {_MERGE}.")
        how = config.get("init_lora_weights")
        if isinstance(how, str) and how.lower().startswith(_TAKEN_OUT):
            raise MergeError(
                f"{where} was begun as '{how}', which takes what the adapter begins with out of the base's weights, so "
                f"that it belongs to another base than the one given; {_MERGE}, or convert it with PEFT's "
                "path_initial_model_for_weight_conversion."
            )
        for name, what in _OTHERS.items():
            if config.get(name):
                raise MergeError(f"{where} is of {what}, and not a sum; {_MERGE}.")
        return raw, config

    def _sort(self, config: Mapping[str, object]) -> None:
        """What each tensor of the adapter is for."""
        halves: dict[str, dict[str, str]] = {}
        for stored in self._file.specs:
            # Of a module that has an adapter, PEFT calls what was there before its base layer.
            name = stored.removeprefix(_PREFIX).replace(".base_layer.", ".")
            end = next((end for end in _PARTS if name.endswith(end)), None)
            if end is not None:
                halves.setdefault(name.removesuffix(end), {})[_PARTS[end][0]] = stored
            elif name.endswith(".lora_B.bias"):
                module = name.removesuffix(".lora_B.bias")
                rank = self._rank(f"{stored.removesuffix('.lora_B.bias')}.lora_A.weight")
                self._fits(f"{module}.bias", self._file.specs[stored].shape)
                self._added[f"{module}.bias"] = (stored, self._scale(config, module, rank))
            elif "lora_" in name or "modules_to_save" in name or "token_adapter" in name:
                raise MergeError(
                    f"{self._label}: the adapter holds '{stored}', which is no part of a sum B·A as PEFT writes it; "
                    f"{_MERGE}."
                )
            else:
                self._whole[name] = stored
        for module, parts in halves.items():
            self._pair(module, parts, config)
        biases = {f"{module}.bias" for module in halves} & set(self._base.specs)
        if config.get("bias") == "lora_only" and biases and not biases & set(self._whole):
            # PEFT before 0.21 looks for them under names that they do not have, and saves none.
            raise MergeError(
                f"{self._label}: the adapter was trained with bias = 'lora_only', and its file holds none of these "
                "biases, as PEFT wrote it before 0.21; save it again with a newer PEFT."
            )

    def _pair(self, module: str, parts: Mapping[str, str], config: Mapping[str, object]) -> None:
        if set(parts) != {"a", "b"}:
            raise MergeError(
                f"{self._label}: of the adapter's two matrices for '{module}' one is missing; save it again."
            )
        a, b = (self._file.specs[parts[half]].shape for half in ("a", "b"))
        if len(a) < 2 or len(b) < 2 or a[0] != b[1] or math.prod(b[2:]) != 1 or not a[0]:
            raise MergeError(
                f"{self._label}: the adapter's matrices for '{module}' do not fit each other ({_axes(b)} times "
                f"{_axes(a)}); save it again."
            )
        turned = _EMBEDDING in parts["a"] or bool(config.get("fan_in_fan_out"))
        shape = (b[0], *a[1:])
        self._fits(f"{module}.weight", tuple(reversed(shape)) if turned else shape)
        self._products[f"{module}.weight"] = _Product(parts["a"], parts["b"], self._scale(config, module, a[0]), turned)

    def _rank(self, stored: str) -> int:
        spec = self._file.specs.get(stored)
        if spec is None or not spec.shape:
            raise MergeError(f"{self._label}: the adapter lacks '{stored}'; save it again.")
        return spec.shape[0]

    def _fits(self, name: str, shape: tuple[int, ...]) -> None:
        """Whether the base has such a tensor, of floats and of this shape."""
        spec = self._base.specs.get(name)
        if spec is None:
            raise MergeError(
                f"{self._label}: the adapter changes '{name}', which the base does not have; give the model that the "
                "adapter was made for as the base, with the names that it had then."
            )
        if spec.shape != shape:
            raise MergeError(
                f"{self._label}: the adapter's '{name}' is {_axes(shape)} and the base's is {_axes(spec.shape)}; "
                "give the model that the adapter was made for as the base."
            )
        if not spec.dtype.is_floating_point:
            raise MergeError(
                f"{self._label}: the base's '{name}' is quantised ({str(spec.dtype).removeprefix('torch.')}); give the "
                "base as it was before, in floating point."
            )

    def _scale(self, config: Mapping[str, object], module: str, rank: int) -> float:
        """σ: α / r, or α / √r; a pattern may give a module an α of its own."""
        alpha = config.get("lora_alpha")
        patterns = config.get("alpha_pattern") or {}
        if isinstance(patterns, Mapping):
            alpha = next((one for pattern, one in patterns.items() if _speaks_of(str(pattern), module)), alpha)
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise MergeError(
                f"{self._label}: '{self._config_path}' has lora_alpha = {alpha!r}, no number; save it again."
            )
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _speaks_of(pattern: str, module: str) -> bool:
    """Whether a pattern of PEFT's, the end of a name or an expression for it, means this module."""
    if module == pattern or module.endswith(f".{pattern}"):
        return True
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False


def _axes(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape)) or "a scalar"
