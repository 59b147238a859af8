"""What a merge changed, as products of two thin matrices: smaller to keep and to send, and what that loses."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.files import hidden_beside
from apgd_teach.merging.adapters import CONFIG
from apgd_teach.merging.checkpoint import Checkpoint, InMemory, Spec
from apgd_teach.merging.settings import number
from apgd_teach.merging.statedict import StateDict, as_matrix, as_written, difference, norm
from apgd_teach.merging.subspace import left_vectors, right_vectors
from apgd_teach.tables import Table

__all__ = ["Kept", "LowRank", "low_rank"]


@dataclass(frozen=True)
class Kept:
    """What became of one tensor's update.

    Attributes:
        name: of the tensor.
        shape: of the tensor.
        rank: of the product; None where the tensor is kept whole.
        energy: ‖what is kept‖² / ‖M‖².
        numbers: how many are stored.
        square: ‖M‖².
    """

    name: str
    shape: tuple[int, ...]
    rank: int | None
    energy: float
    numbers: int
    square: float

    @property
    def most(self) -> int:
        """The largest rank that a matrix of its shape can have."""
        return min(self.shape[0], math.prod(self.shape[1:])) if self.shape else 1


@dataclass(frozen=True)
class LowRank:
    """The difference of two models in fewer numbers.

    Attributes:
        factors: by weight, B (out, rank) and A (rank, in), with M ≈ B A; conv kernels as (out, in·kh·kw).
        whole: by tensor, the changed model's own value, where it is no matrix or a product would be no smaller.
        rows: one per tensor that changed.

    Lesson: 09.
    """

    factors: Mapping[str, tuple[Tensor, Tensor]]
    whole: Mapping[str, Tensor]
    rows: tuple[Kept, ...]

    @property
    def numbers(self) -> int:
        """How many numbers are stored."""
        return sum(row.numbers for row in self.rows)

    @property
    def full(self) -> int:
        """How many numbers the tensors have that changed."""
        return sum(math.prod(row.shape) for row in self.rows)

    @property
    def energy(self) -> float:
        """‖what is kept‖² / ‖M‖² over all tensors together."""
        whole = sum(row.square for row in self.rows)
        return sum(row.energy * row.square for row in self.rows) / whole if whole else 1.0

    def table(self) -> Table:
        """One row per tensor that changed, and what all of them come to.

        Lesson: 09.
        """
        return Table(
            ("tensor", "shape", "rank", "energy kept %", "numbers", "of all %"),
            [
                (
                    row.name,
                    "×".join(map(str, row.shape)) or "scalar",
                    "whole" if row.rank is None else row.rank,
                    100 * row.energy,
                    row.numbers,
                    100 * row.numbers / max(1, math.prod(row.shape)),
                )
                for row in self.rows
            ],
            caption=f"{self.numbers:,} numbers in place of {self.full:,}",
        )

    def state_dict(self, base: StateDict) -> dict[str, Tensor]:
        """The model again: base + B A, in the base's dtypes.

        Args:
            base: the state dict that it was the difference from.
        """
        made = {}
        for name, tensor in base.items():
            if name in self.whole:
                made[name] = self.whole[name].clone()
            elif name in self.factors:
                b, a = self.factors[name]
                made[name] = (tensor.to(b.dtype) + (b @ a).reshape(tensor.shape)).to(tensor.dtype)
            else:
                made[name] = tensor.clone()
        return made

    def save(self, folder: str | os.PathLike[str], dtype: torch.dtype | None = None) -> Path:
        """Write it as a LoRA adapter, as PEFT lays them out: an expert for `merge_files`, as any other.

        Tensors that are kept whole stand in it under their own names.

        Args:
            folder: a new one; it appears when it is whole.
            dtype: of the factors; None: as they are, float32.

        Raises:
            MergeError: the folder is there already or cannot be made, nothing changed, or a factor belongs to no
                module's weight.

        Lesson: 09.
        """
        place = Path(folder)
        if place.exists():
            raise MergeError(f"'{place}' is there already; give a new folder.")
        if not self.numbers:
            raise MergeError(
                "there is nothing to keep: the two models are the same, or less is kept than one direction."
            )
        ranks = {}
        tensors = {f"base_model.model.{name}": one.contiguous() for name, one in self.whole.items()}
        for name, (b, a) in self.factors.items():
            module, sign, kind = name.rpartition(".")
            if kind != "weight" or not sign:
                raise MergeError(f"'{name}' is no module's weight, which is what an adapter's product is added to.")
            (shape,) = (row.shape for row in self.rows if row.name == name)
            b, a = (one.to(dtype or one.dtype) for one in (b, a))
            ranks[f"^{module}$"] = b.shape[1]
            key = f"base_model.model.{module}"
            tensors[f"{key}.lora_A.weight"] = a.reshape(a.shape[0], *shape[1:]).contiguous()
            tensors[f"{key}.lora_B.weight"] = b.reshape(*b.shape, *(1 for _ in shape[2:])).contiguous()
        # α = r: the product is added as it is.
        config = {
            "peft_type": "LORA",
            "r": max(ranks.values(), default=1),
            "lora_alpha": max(ranks.values(), default=1),
            "rank_pattern": ranks,
            "alpha_pattern": ranks,
            "target_modules": [pattern[1:-1] for pattern in ranks],
            "bias": "none",
            "task_type": None,
        }
        if not place.absolute().parent.is_dir():
            raise MergeError(f"'{place}' cannot be made (there is no folder for it); give another folder.")
        try:
            with hidden_beside(place) as hidden:
                made = hidden / "out"
                made.mkdir()
                (made / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
                save_file(tensors, made / "adapter_model.safetensors", metadata={"format": "pt"})
                # What writes safetensors makes a file that only its owner may read.
                (made / "adapter_model.safetensors").chmod((made / CONFIG).stat().st_mode & 0o777)
                os.replace(made, place)
        except (OSError, SafetensorError) as error:
            raise MergeError(
                f"'{place}' cannot be written ({error}); free some space, or give another folder."
            ) from None
        return place


def low_rank(
    base: StateDict | Checkpoint,
    changed: StateDict | Checkpoint,
    *,
    energy: float | None = None,
    share: float | None = None,
    tick: Callable[[], object] = int,
) -> LowRank:
    """The difference of two models, each layer as the product of two thin matrices that is nearest to it.

    With `energy` every layer keeps as many directions as hold that share of its ‖M‖². With `share` all layers together
    keep so many of their numbers, spent where a number holds most: on the directions with the largest s² / (out + in).
    A layer that would need more numbers than it has is kept whole, and so is what is no matrix.

    Args:
        base, changed: of one architecture, state dicts or opened checkpoints (read a tensor at a time).
        energy: above 0, up to 1.
        share: of the numbers of all merged matrices, above 0, up to 1. One of the two is given.
        tick: called after each tensor.

    Raises:
        MergeError: neither or both of the two were given, or the models are not of one architecture, or hold NaN.

    Source: Eckart and Young, 1936. Lesson: 09.
    """
    if (energy is None) == (share is None):
        raise MergeError("low_rank takes either energy or share; give one of the two.")
    number("low_rank", "energy" if share is None else "share", energy if share is None else share, 0, 1, above=True)
    ours, theirs = (one if not isinstance(one, Mapping) else InMemory(one) for one in (base, changed))
    _same_architecture(ours.specs, theirs.specs)
    with as_written():
        least = None if share is None else _least(ours, theirs, share)
        return _cut(ours, theirs, energy, least, tick)


def _cut(
    ours: Checkpoint, theirs: Checkpoint, energy: float | None, least: float | None, tick: Callable[[], object]
) -> LowRank:
    factors, whole, rows = {}, {}, []
    for name, update in _updates(ours, theirs):
        if update is not None:
            row, product = _one(name, update, ours.specs[name].shape, energy, least)
            rows.append(row)
            if row.rank is None:
                whole[name] = theirs.read(name).clone()
            elif product is not None:
                factors[name] = product
        tick()
    return LowRank(factors, whole, tuple(rows))


def _one(
    name: str, update: Tensor, shape: tuple[int, ...], energy: float | None, least: float | None
) -> tuple[Kept, tuple[Tensor, Tensor] | None]:
    square = norm(update) ** 2
    whole = Kept(name, shape, None, 1.0, math.prod(shape), square)
    if update.ndim < 2 or not name.endswith(".weight"):
        return whole, None
    matrix = as_matrix(update)
    out, columns = matrix.shape
    tall = out > columns
    vectors, values = right_vectors(matrix) if tall else left_vectors(matrix)
    squares = values.double().square()
    held = squares.cumsum(0) / squares.sum()
    if least is None:
        # To rounding: all of a matrix of rank k is in k directions, whatever the last digits say.
        rank = 1 + int((held < (energy or 0.0) - 1e-9).sum())
    else:
        rank = int((squares / (out + columns) >= least).sum())
    rank = min(rank, len(values))
    if rank * (out + columns) >= out * columns:
        return whole, None
    if not rank:
        return Kept(name, shape, 0, 0.0, 0, square), None
    kept = vectors[:, :rank].to(matrix.dtype)
    product = (matrix @ kept, kept.mT) if tall else (kept, kept.mT @ matrix)
    row = Kept(name, shape, rank, float(held[rank - 1]), rank * (out + columns), square)
    return row, (product[0].contiguous(), product[1].contiguous())


def _least(ours: Checkpoint, theirs: Checkpoint, share: float) -> float:
    """The s² / (out + in) from which on directions are kept, so that they take that share of the matrices' numbers."""
    worth: list[tuple[float, int]] = []
    total = 0
    for name, update in _updates(ours, theirs):
        if update is not None and update.ndim >= 2 and name.endswith(".weight"):
            matrix = as_matrix(update)
            price = sum(matrix.shape)
            total += matrix.numel()
            _, values = right_vectors(matrix) if matrix.shape[0] > matrix.shape[1] else left_vectors(matrix)
            worth += [(float(one) / price, price) for one in values.double().square()]
    left, least = share * total, math.inf
    for value, price in sorted(worth, reverse=True):
        if price > left or value <= 0:
            break
        left, least = left - price, value
    return least


def _updates(ours: Checkpoint, theirs: Checkpoint) -> Iterator[tuple[str, Tensor | None]]:
    """M of every tensor; None where it did not change."""
    for name, spec in ours.specs.items():
        one, other = ours.read(name), theirs.read(name)
        if not spec.dtype.is_floating_point:
            if not torch.equal(one, other):
                raise MergeError(
                    f"tensor '{name}' holds integers that changed, which no product can hold; give the model whole."
                )
            yield name, None
            continue
        update = difference(one, other)
        size = norm(update)
        if not math.isfinite(size):
            raise MergeError(f"tensor '{name}' holds NaN or infinity; take an earlier checkpoint.")
        yield name, update if size else None


def _same_architecture(ours: Mapping[str, Spec], theirs: Mapping[str, Spec]) -> None:
    odd = sorted(set(ours) ^ set(theirs))
    if odd:
        where = "the base" if odd[0] in ours else "the changed model"
        raise MergeError(f"tensor '{odd[0]}' is in {where} alone; give two models of one architecture.")
    for name, spec in ours.items():
        if spec.shape != theirs[name].shape:
            raise MergeError(
                f"tensor '{name}' has the shape {spec.shape} in the base and {theirs[name].shape} in the changed "
                "model; give two models of one architecture."
            )
