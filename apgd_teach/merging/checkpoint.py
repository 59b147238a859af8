"""Where tensors come from: a state dict in memory or files on disk, headers apart from values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from apgd_teach.merging.statedict import StateDict, fingerprint

__all__ = ["Checkpoint", "InMemory", "Spec", "ties_of"]


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

    def read(self, name: str) -> Tensor:
        """One tensor, as it is stored. Not to be written to."""
        ...

    def digest(self) -> str:
        """SHA-256 (hex) by which the audit names this input."""
        ...


class InMemory:
    """A state dict as a checkpoint. Nothing is copied."""

    def __init__(self, state: StateDict) -> None:
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
