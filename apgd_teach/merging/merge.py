"""The one call: `merge(base, experts, method) -> Merged`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from apgd_teach.merging.audit import Audit, Output
from apgd_teach.merging.checkpoint import InMemory, precision_of
from apgd_teach.merging.engine import Inputs, run
from apgd_teach.merging.method import Method
from apgd_teach.merging.preflight import preflight
from apgd_teach.merging.registry import pick
from apgd_teach.merging.statedict import StateDict

__all__ = ["Merged", "merge"]


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
    base: StateDict,
    experts: Mapping[str, StateDict],
    method: str | Method = "average",
    *,
    policy: Mapping[str, str] | None = None,
    **settings: object,
) -> Merged:
    """Merge experts into one network, from their weights alone.

    Weights (two axes and more) go through the method, layer by layer, as matrices (out, in). Vectors and scalars
    (biases, norm weights) are averaged; a method may ask for biases as columns of their weights. Tensors of integers,
    and empty ones, are kept as the base has them. Tensors that share their memory in the base are merged once and stay
    equal. The arithmetic is float32 (float64 for a float64 base), whatever the files hold. While a method runs, any
    access to data raises `DataAccessError`.

    Args:
        base: θ₀, tensors by name. Never changed.
        experts: θᵢ by name; their order does not matter. Never changed.
        method: a name in `METHODS`, or an instance of a method of your own.
        policy: patterns of tensor names that overrule the above, {"head.*": "keep"}; see `policy.decide`. What a
            pattern keeps the experts need not have, or may have in another shape.
        settings: the method's settings, when it is named.

    Raises:
        MergeError: the state dicts do not fit together (see `preflight`), there is no such method or setting, the
            method returned something that is no update, or the result does not fit into the base's dtype.
        DataAccessError: the method asked for data.

    Source: (1), (2) in docs/equations.md. Lesson: 02.
    """
    chosen = pick(method, settings)
    report = preflight(base, experts, policy, getattr(chosen, "others", "average"))
    report.raise_errors()
    merged: dict[str, Tensor] = {}
    inputs = Inputs(InMemory(base), {name: InMemory(state) for name, state in experts.items()}, policy)
    audit = run(inputs, chosen, merged.__setitem__, findings=lambda: report.warnings)
    state = InMemory({name: merged[name] for name in base})
    made = replace(
        audit,
        output=Output((), state.digest(), precision_of(state.specs)),
        given_policy=tuple((policy or {}).items()),
        device=", ".join(sorted({str(tensor.device) for tensor in base.values()})),
    )
    return Merged(dict(state.state), made)
