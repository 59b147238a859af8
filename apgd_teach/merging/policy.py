"""What happens to each tensor: merged by the method, averaged, or kept as the base has it. Said for every one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import Spec

__all__ = ["ACTIONS", "Decision", "decide"]

ACTIONS = ("merge", "average", "keep")


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor ("merge", "average" or "keep"), and why."""

    action: str
    reason: str


def decide(
    specs: Mapping[str, Spec], policy: Mapping[str, str] | None = None, others: str = "average"
) -> dict[str, Decision]:
    """The policy of every tensor.

    Args:
        specs: the base's headers.
        policy: patterns ("head.*": "keep") that overrule what the shapes say; the first that matches wins.
        others: what happens to floating-point tensors that are no weights of a linear map, "average" or "keep".

    Raises:
        MergeError: an action that there is not, a pattern that matches nothing, a tensor that cannot be merged.

    Source: method.md §2.8. Lesson: 03, 09.
    """
    rules = dict(policy or {})
    for pattern, action in rules.items():
        if action not in ACTIONS:
            raise MergeError(f"the policy of '{pattern}' is {action!r}; use one of: {', '.join(ACTIONS)}.")
        if not any(fnmatchcase(name, pattern) for name in specs):
            raise MergeError(f"the policy's pattern '{pattern}' matches no tensor; the first is '{next(iter(specs))}'.")
    return {name: _decide(name, spec, rules, others) for name, spec in specs.items()}


def _decide(name: str, spec: Spec, rules: Mapping[str, str], others: str) -> Decision:
    by_shape = _by_shape(spec, others)
    for pattern, action in rules.items():
        if fnmatchcase(name, pattern):
            if by_shape.action == "keep" and by_shape.reason != _OTHERS and action != "keep":
                raise MergeError(f"the policy '{pattern}': '{action}' meets '{name}': {by_shape.reason}; keep it.")
            if action == "merge" and len(spec.shape) < 2:
                raise MergeError(f"the policy '{pattern}': 'merge' meets '{name}', which is no matrix; average it.")
            return Decision(action, f"your policy '{pattern}'")
    return by_shape


_OTHERS = "a vector or scalar: no output and input side to work on"


def _by_shape(spec: Spec, others: str) -> Decision:
    if not spec.dtype.is_floating_point:
        return Decision("keep", "integers have no task vector")
    if spec.size == 0:
        return Decision("keep", "it holds no values")
    if len(spec.shape) >= 2:
        return Decision("merge", "a weight")
    return Decision(others, _OTHERS)
