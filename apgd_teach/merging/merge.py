"""The one call: `merge(base, experts, method) -> Merged`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.errors import MergeError
from apgd_teach.guard import no_data
from apgd_teach.merging.audit import Audit, TensorRow
from apgd_teach.merging.average import Average
from apgd_teach.merging.preflight import preflight
from apgd_teach.merging.statedict import StateDict, as_matrix, difference, fingerprint, norm

__all__ = ["METHODS", "Merged", "Method", "merge"]


class Method(Protocol):
    """What a method of merging is: a frozen dataclass of its settings that can be called on one layer."""

    name: ClassVar[str]

    def __call__(self, task_vectors: Tensor) -> Tensor:
        """From τ (task, out, in) to the merged update M (out, in)."""
        ...


METHODS: dict[str, type[Any]] = {Average.name: Average}
"""Methods by name. A method of your own needs no entry here: pass an instance of it to `merge`."""


@dataclass(frozen=True)
class Merged:
    """What a merge gives back.

    Attributes:
        state_dict: θ* = θ₀ + M, new tensors with the base's keys, shapes, dtypes and devices.
        audit: what was done to each tensor.
    """

    state_dict: dict[str, Tensor]
    audit: Audit


def merge(
    base: StateDict, experts: Mapping[str, StateDict], method: str | Method = "average", **settings: object
) -> Merged:
    """Merge experts into one network, from their weights alone.

    Weights (two axes and more) go through the method, layer by layer, as matrices (out, in). Vectors and scalars
    (biases, norm weights) are averaged. Tensors of integers, and empty ones, are kept as the base has them. The
    arithmetic is float32 (float64 for a float64 base), whatever the files hold. While it runs, any access to data
    raises `DataAccessError`.

    Args:
        base: θ₀, tensors by name. Never changed.
        experts: θᵢ by name; their order does not matter. Never changed.
        method: a name in `METHODS`, or an instance of a method of your own.
        settings: the method's settings, when it is named.

    Raises:
        MergeError: the state dicts do not fit together (see `preflight`), there is no such method or setting, the
            method returned something that is no update, or the result does not fit into the base's dtype.
        DataAccessError: the method asked for data.

    Source: method.md §1. Lesson: 02.
    """
    chosen = _method(method, settings)
    report = preflight(base, experts)
    report.raise_errors()
    # A sum of floats depends on its order, and the caller's order must not matter: names decide.
    names = sorted(experts)
    merged: dict[str, Tensor] = {}
    rows = []
    with torch.no_grad(), no_data(f"merge(…, method='{chosen.name}')"):
        for key, tensor in base.items():
            merged[key], row = _merge_tensor(key, tensor, [experts[name][key] for name in names], chosen)
            rows.append(row)
    audit = Audit(
        method=chosen.name,
        settings=_settings(chosen),
        experts=tuple(names),
        data_used="none",
        inputs={"base": fingerprint(base), **{name: fingerprint(experts[name]) for name in names}},
        versions={"apgd_teach": __version__, "torch": str(torch.__version__)},
        rows=tuple(rows),
        warnings=report.warnings,
    )
    return Merged(merged, audit)


def _method(method: str | Method, settings: Mapping[str, object]) -> Method:
    if not isinstance(method, str):
        if settings:
            raise MergeError(
                f"settings ({', '.join(settings)}) were given beside an instance of {type(method).__name__}; "
                "put them into the instance."
            )
        if isinstance(method, type):
            raise MergeError(f"{method.__name__} is a class; give an instance of it, {method.__name__}(…).")
        if not callable(method) or not isinstance(getattr(method, "name", None), str):
            raise MergeError(
                f"a {type(method).__name__} is no method; give a name ({', '.join(METHODS)}) or an object with a "
                "`name` that can be called on task vectors of shape (task, out, in)."
            )
        return method
    if method not in METHODS:
        raise MergeError(f"there is no method '{method}'; use one of: {', '.join(METHODS)}.")
    known = [field.name for field in dataclasses.fields(METHODS[method])]
    for name in settings:
        if name not in known:
            raise MergeError(f"'{method}' has no setting '{name}'; it has: {', '.join(known) or 'none'}.")
    made: Method = METHODS[method](**settings)
    return made


def _settings(method: Method) -> dict[str, object]:
    if dataclasses.is_dataclass(method) and not isinstance(method, type):
        return dataclasses.asdict(method)
    return {}


def _merge_tensor(key: str, base: Tensor, experts: list[Tensor], method: Method) -> tuple[Tensor, TensorRow]:
    shape, size = tuple(base.shape), norm(base)
    if not base.is_floating_point() or base.numel() == 0:
        reason = "it holds no values" if base.numel() == 0 else "integers have no task vector"
        return base.detach().clone(), TensorRow(key, "keep", reason, shape, size, 0.0, 0.0)
    tau = torch.stack([difference(base, expert) for expert in experts])
    if base.ndim >= 2:
        policy, reason = "merge", "a weight"
        update = method(torch.stack([as_matrix(one) for one in tau]))
        expected = as_matrix(base)
        problem = _no_update(update, expected)
        if problem:
            raise MergeError(
                f"method '{method.name}' returned {problem} for tensor '{key}'; it must return a finite tensor of "
                f"shape {tuple(expected.shape)} on {base.device}, the merged update."
            )
        update = update.reshape(shape)
    else:
        policy, reason = "average", "a vector or scalar: no output and input side to work on"
        update = tau.mean(dim=0)
    result = (base.detach().to(tau.dtype) + update).to(base.dtype)
    if not bool(torch.isfinite(result).all()):
        raise MergeError(
            f"tensor '{key}' of the merge has values that {base.dtype} cannot hold; make the update smaller, or "
            "convert the base and the experts to a wider dtype."
        )
    row = TensorRow(key, policy, reason, shape, size, sum(norm(one) for one in tau) / len(tau), norm(update))
    return result, row


def _no_update(update: object, expected: Tensor) -> str:
    """What is wrong with what a method returned, or nothing."""
    if not isinstance(update, Tensor):
        return f"a {type(update).__name__}"
    if update.shape != expected.shape:
        return f"shape {tuple(update.shape)}"
    if update.device != expected.device:
        return f"a tensor on {update.device}"
    if update.layout != torch.strided or update.is_complex():
        return "a sparse or complex tensor"
    return "" if bool(torch.isfinite(update).all()) else "NaN or infinity"
