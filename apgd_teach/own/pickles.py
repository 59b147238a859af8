"""Checkpoints that are pickles: read with `weights_only=True`, which runs nothing of them, or not at all."""

from __future__ import annotations

import pickle
import re
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TypeGuard

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import PICKLES, sha256_of

__all__ = ["convert", "is_pickle"]

_HOLDERS = ("state_dict", "model_state_dict", "model", "module", "network", "net", "weights")
"""Names under which training scripts keep a state dict beside other things."""


def is_pickle(path: Path) -> bool:
    """Whether a file's name says that it is a pickle."""
    return path.suffix.lower() in PICKLES and path.is_file()


def convert(path: Path, folder: Path, label: str) -> Path:
    """Write the state dict of a pickle into a safetensors file.

    Args:
        path: of the pickle.
        folder: where the file goes; it must have room for as much again.
        label: whose it is, for the sentences, and the file's name.

    Returns:
        The file, called like the pickle, in a folder named after its SHA-256.

    Raises:
        MergeError: it asks for code to be run (which is not done), is damaged, holds no state dict, or there is no
            room for it.

    Lesson: 09.
    """
    where = f"{label}: '{path}'"
    size = path.stat().st_size
    if not size:
        raise MergeError(f"{where} is empty; download or save it again.")
    free = shutil.disk_usage(folder).free
    if size > free:
        raise MergeError(
            f"{where} has to be written once as safetensors, and '{folder}' has no room for it ({size / 1e9:.3g} GB); "
            "free some space, or set TMPDIR to a folder on another disk."
        )
    state = _state_dict(_loaded(path, where), where)
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise MergeError(f"{where} has tensor '{name}', which is sparse, quantised or without values; convert it.")
    # safetensors writes no memory twice: tied tensors become copies, as everywhere where files are merged.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}
    # The hash names a folder, and not the file: a merge into a folder calls its file as the base's is called.
    place = folder / sha256_of([path], lambda one: one.open("rb"))
    place.mkdir(exist_ok=True)
    made = place / f"{path.stem}.safetensors"
    try:
        if not made.exists():
            save_file(own, made, metadata={"format": "pt"})
    except (OSError, SafetensorError) as error:
        raise MergeError(
            f"{where} has to be written once as safetensors, and '{folder}' cannot take it ({error}); free some space, "
            "or set TMPDIR to a folder on another disk."
        ) from None
    return made


def _loaded(path: Path, where: str) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about its own ways
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)|Unsupported (?:global|class|operand)[^\w]*([A-Za-z_][\w.]*)", str(error))
        named = next((one for one in found.groups() if one), "") if found else ""
        asks = f"asks for '{named}' to be run or made when it is loaded" if named else "asks for more than tensors"
        raise MergeError(
            f"{where} {asks}, which was not done; take a .safetensors file, or one that holds a "
            "state dict and nothing else."
        ) from None
    except (RuntimeError, ValueError, EOFError, KeyError, AttributeError, TypeError, OSError) as error:
        first = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise MergeError(f"{where} cannot be read as a PyTorch file ({first}); download or save it again.") from None


def _state_dict(found: object, where: str) -> Mapping[str, Tensor]:
    """The state dict, at once or under one of the usual names."""
    if isinstance(found, Mapping):
        candidates = [found, *(found.get(name) for name in _HOLDERS)]
        states = [one for one in candidates if _is_state(one)]
        if len(states) == 1:
            return states[0]
        odd = next((name for name, one in found.items() if not isinstance(one, Tensor)), None)
        if odd is not None:
            raise MergeError(
                f"{where} holds '{odd}' ({type(found[odd]).__name__}) beside tensors; save its state dict alone."
            )
    raise MergeError(f"{where} holds no state dict (a {type(found).__name__}); save model.state_dict().")


def _is_state(found: object) -> TypeGuard[Mapping[str, Tensor]]:
    return (
        isinstance(found, Mapping)
        and bool(found)
        and all(isinstance(name, str) and isinstance(one, Tensor) for name, one in found.items())
    )
