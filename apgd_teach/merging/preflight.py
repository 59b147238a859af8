"""Can these be merged at all? Everything that is wrong, found before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.statedict import StateDict, difference, relative_norm
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
        if self.errors:
            return f"cannot be merged ({len(self.errors)} errors, {len(self.warnings)} warnings)"
        return f"can be merged ({len(self.warnings)} warnings)" if self.warnings else "can be merged"


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
    return Preflight(tuple(sorted(findings, key=lambda finding: (finding.level != "error", finding.where))))


def _error(where: str, what: str, remedy: str) -> Finding:
    return Finding("error", where, what, remedy)


def _structure(base: StateDict, experts: Mapping[str, StateDict]) -> Iterator[Finding]:
    """Keys, shapes, dtypes: what can be known without reading a value."""
    if not isinstance(experts, Mapping):
        yield _error("the experts", f"are a {type(experts).__name__}", "give a dict of state dicts, {name: state_dict}")
        return
    if not experts:
        yield _error("the experts", "are an empty dict", "give at least one state dict, {name: state_dict}")
    checked: dict[str, StateDict] = {}
    for name, state in [("base", base), *((f"expert '{name}'", state) for name, state in experts.items())]:
        problem = _no_state_dict(state)
        if problem:
            yield _error(name, problem, "give model.state_dict(), a dict of tensors by name")
        else:
            checked[name] = state
    if "base" not in checked:
        return
    for name, expert in checked.items():
        if name == "base":
            continue
        for key in sorted(set(base) - set(expert)):
            close = get_close_matches(key, sorted(set(expert) - set(base)), n=1)
            hint = (
                f"rename '{close[0]}' if it is the same tensor" if close else "only networks of one kind can be merged"
            )
            yield _error(name, f"has no tensor '{key}', which the base has", hint)
        for key in sorted(set(expert) - set(base)):
            yield _error(name, f"has a tensor '{key}' that the base has not", "take task heads out before merging")
        for key in sorted(set(expert) & set(base)):
            yield from _tensor(name, key, base[key], expert[key])


def _no_state_dict(state: object) -> str:
    if not isinstance(state, Mapping):
        return f"is a {type(state).__name__} and no state dict"
    if not state:
        return "is empty"
    for key, value in state.items():
        if not isinstance(value, Tensor):
            return f"holds a {type(value).__name__} under '{key}' where a tensor should be"
        if value.is_floating_point() and value.element_size() < 2:
            return f"holds '{key}' in {value.dtype}, which is too coarse to subtract"
        if value.is_complex() or value.is_quantized or value.layout != torch.strided:
            return f"holds '{key}' as a complex, quantised or sparse tensor"
    return ""


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
    seen: dict[bytes, str] = {}
    for name, expert in sorted(experts.items()):
        share = relative_norm(base, expert)
        if share == 0:
            yield Finding(
                "warning", f"expert '{name}'", "is the base itself", "leave it out: it pulls the others to the base"
            )
        elif share > OTHER_BASE:
            yield Finding(
                "warning",
                f"expert '{name}'",
                f"is {share:.2f} times the base's own norm away from it",
                "it was probably fine-tuned from another base, and a merge of such experts is not expected to work",
            )
        first = next(key for key, tensor in sorted(base.items()) if tensor.is_floating_point())
        mark = difference(base[first], expert[first]).cpu().numpy().tobytes()
        twin = seen.setdefault(mark, name)
        if share and twin != name and all(torch.equal(experts[twin][key], expert[key]) for key in base):
            yield Finding(
                "warning", f"expert '{name}'", f"is the same as expert '{twin}'", "it counts twice in the merge"
            )
