"""Can these be merged at all? Everything that is wrong, found before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from apgd_teach.errors import MergeError
from apgd_teach.merging.statedict import StateDict, relative_norm
from apgd_teach.tables import Table

__all__ = ["OTHER_BASE", "Finding", "Preflight", "preflight"]

OTHER_BASE = 1.0
"""‖τ‖/‖θ₀‖ from which an expert is reported as having another base. Two networks of one size that were trained from
different random starts stand at a right angle, √2 apart; lesson 02 measures both."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong (an error) or worth knowing (a warning).

    Attributes:
        level: "error" stops the merge, "warning" does not.
        where: the expert, and the tensor if there is one.
        what: what is wrong.
        remedy: what to do.
    """

    level: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.where} {self.what}; {self.remedy}"


@dataclass(frozen=True)
class Preflight:
    """The report: every finding, errors first.

    Lesson: 02, 09.
    """

    findings: tuple[Finding, ...]

    @property
    def errors(self) -> tuple[Finding, ...]:
        """What stops the merge."""
        return tuple(finding for finding in self.findings if finding.level == "error")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What does not stop it, and may still explain a bad result."""
        return tuple(finding for finding in self.findings if finding.level == "warning")

    def raise_errors(self) -> None:
        """Raise `MergeError` with the first error in words, and how many more there are."""
        if self.errors:
            more = len(self.errors) - 1
            rest = f" ({more} more: see preflight(base, experts).table())" if more else ""
            raise MergeError(f"{self.errors[0]}{rest}")

    def table(self) -> Table:
        """One row per finding."""
        rows = [(finding.level, finding.where, finding.what, finding.remedy) for finding in self.findings]
        return Table(("level", "where", "what", "what to do"), rows, caption=f"Pre-flight: {self.verdict}")

    @property
    def verdict(self) -> str:
        """The report in a few words."""
        errors, warnings = (
            f"{len(some)} {word}{'' if len(some) == 1 else 's'}"
            for some, word in ((self.errors, "error"), (self.warnings, "warning"))
        )
        if self.errors:
            return f"cannot be merged ({errors}, {warnings})"
        return f"can be merged ({warnings})" if self.warnings else "can be merged"


def preflight(base: StateDict, experts: Mapping[str, StateDict]) -> Preflight:
    """Look for every reason why `experts` cannot be merged onto `base`, and for what would make the result doubtful.

    Args:
        base: θ₀, tensors by name.
        experts: θᵢ by name.

    Returns:
        The report. It never raises for bad input; `Preflight.raise_errors` does.

    Source: method.md §2.8. Lesson: 02, 09.
    """
    findings = list(_structure(base, experts))
    if not findings:
        findings = list(_values(base, experts))
    order = sorted(findings, key=lambda finding: (finding.level != "error", finding.where))
    return Preflight(tuple(order))


def _error(where: str, what: str, remedy: str) -> Finding:
    return Finding("error", where, what, remedy)


def _structure(base: StateDict, experts: Mapping[str, StateDict]) -> Iterator[Finding]:
    """Keys, shapes, dtypes: what can be known without reading a value."""
    shown = "give a dict of state dicts, {name: state_dict}"
    if not isinstance(experts, Mapping):
        yield _error("the experts", f"are a {type(experts).__name__}", shown)
        experts = {}
    elif not experts:
        yield _error("the experts", "are an empty dict", "give at least one state dict, {name: state_dict}")
    elif all(isinstance(state, Tensor) for state in experts.values()):
        yield _error("the experts", "are one state dict", shown)
        experts = {}
    for name in experts:
        if not isinstance(name, str):
            yield _error(f"expert {name!r}", "has a name that is no string", "use a string")
        elif name == "base":
            yield _error("expert 'base'", "has the name that the audit gives the base", "call it something else")
    yield from _state("base", base)
    for name, expert in experts.items():
        yield from _state(f"expert '{name}'", expert)
    if not isinstance(base, Mapping):
        return
    for name, expert in experts.items():
        if isinstance(expert, Mapping):
            yield from _pair(f"expert '{name}'", base, expert)


def _state(name: str, state: object) -> Iterator[Finding]:
    """Whether this is a state dict at all."""
    if not isinstance(state, Mapping):
        yield _error(
            name,
            f"is a {type(state).__name__} and no state dict",
            "give model.state_dict(), a dict of tensors by name",
        )
        return
    floats = False
    for key, value in state.items():
        if not isinstance(key, str):
            yield _error(name, f"has the key {key!r}, which is no string", "name every tensor with a string")
        problem = _no_layer(value)
        if problem:
            yield _error(f"{name}, tensor '{key}'", *problem)
        floats = floats or problem is not None or value.is_floating_point()
    if not state:
        yield _error(name, "is empty", "give model.state_dict(), a dict of tensors by name")
    elif not floats:
        yield _error(name, "holds no tensor of floats", "there is nothing to merge without")


def _no_layer(value: object) -> tuple[str, str] | None:
    """Why a value of a state dict cannot be merged or kept, and what to do."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}", "give model.state_dict(), a dict of tensors by name"
    if is_lazy(value):
        return "has no shape yet", "run the network once on an input before taking its state dict"
    if value.is_nested or value.is_complex() or value.is_quantized or value.layout != torch.strided:
        return (
            "is nested, complex, quantised or sparse",
            "convert it into an ordinary tensor, or take it out of all of them",
        )
    if value.is_floating_point() and value.element_size() < 2:
        return f"is {value.dtype}, which is too coarse to subtract", "take the checkpoint before it was quantised"
    if value.is_meta:
        return "has a shape and no values (device 'meta')", "load the weights onto the CPU"
    return None


def _pair(name: str, base: StateDict, expert: StateDict) -> Iterator[Finding]:
    """Where an expert does not fit the base."""
    missing, extra = ([key for key in one if key not in other] for one, other in ((base, expert), (expert, base)))
    spare = sorted(key for key in extra if isinstance(key, str))
    for key in missing:
        close = get_close_matches(key, spare, n=1) if isinstance(key, str) else []
        hint = f"rename '{close[0]}' if it is the same tensor" if close else "only networks of one kind can be merged"
        yield _error(name, f"has no tensor '{key}', which the base has", hint)
    for key in extra:
        yield _error(name, f"has a tensor '{key}' that the base has not", "take task heads out before merging")
    for key, tensor in base.items():
        if key in expert and not (_no_layer(tensor) or _no_layer(expert[key])):
            yield from _tensor(name, key, tensor, expert[key])


def _tensor(name: str, key: str, base: Tensor, expert: Tensor) -> Iterator[Finding]:
    where = f"{name}, tensor '{key}'"
    if base.shape != expert.shape:
        yield _error(
            where,
            f"has shape {tuple(expert.shape)} and the base has {tuple(base.shape)}",
            "only networks of one architecture can be merged; leave a widened layer or head out of both",
        )
    elif base.dtype != expert.dtype:
        yield _error(
            where,
            f"is {expert.dtype} and the base is {base.dtype}",
            "convert one of the two, knowing which precision the expert was trained in",
        )
    elif base.device != expert.device:
        yield _error(where, f"is on {expert.device} and the base on {base.device}", "move both to one device")


def _values(base: StateDict, experts: Mapping[str, StateDict]) -> Iterator[Finding]:
    """What only the numbers show."""
    for name, state in [("base", base), *((f"expert '{name}'", state) for name, state in experts.items())]:
        for key, tensor in state.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                yield _error(
                    f"{name}, tensor '{key}'", "holds NaN or infinity", "take an earlier checkpoint, before it diverged"
                )
    for key, tensor in base.items():
        if not tensor.is_floating_point():
            for name, expert in experts.items():
                if not torch.equal(tensor, expert[key]):
                    yield Finding(
                        "warning",
                        f"expert '{name}', tensor '{key}'",
                        "is a tensor of integers that differs from the base's",
                        "integers are not merged: the base's are kept",
                    )
    names = sorted(experts)
    for place, name in enumerate(names):
        expert = experts[name]
        share = relative_norm(base, expert)
        if share == 0:
            yield Finding(
                "warning", f"expert '{name}'", "is the base itself", "leave it out: it pulls the others to the base"
            )
            continue
        if share > OTHER_BASE:
            yield Finding(
                "warning",
                f"expert '{name}'",
                f"is {share:.2f} times the base's own norm away from it",
                "it was probably fine-tuned from another base, and a merge of such experts is not expected to work",
            )
        for twin in names[:place]:
            if all(torch.equal(experts[twin][key], expert[key]) for key in base):
                yield Finding(
                    "warning", f"expert '{name}'", f"is the same as expert '{twin}'", "it counts twice in the merge"
                )
                break
