"""What happens to each tensor: merged by the method, averaged, or kept as the base has it. Said for every one."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import Spec

__all__ = ["ACTIONS", "Action", "Decision", "biases_of", "decide", "problems", "spared", "tables"]

ACTIONS = ("merge", "average", "keep")

TABLE_ROWS, TABLE_RATIO, TABLE_COPIES = 1000, 4, 4
"""From what shape on a matrix is suspected of being an embedding; see `tables`."""

_WILD = frozenset("*?[")
_INTEGERS = "integers have no task vector"
_EMPTY = "it holds no values"
_WEIGHT = "a weight"
_VECTOR = "a vector or scalar: no output and input side to work on"
_ROW = "a single output row (a position embedding, a class token): no output side to work on"
_COLUMN = "a single input column: a vector by another shape"


@dataclass(frozen=True)
class Decision:
    """What happens to one tensor ("merge", "average" or "keep"), and why."""

    action: str
    reason: str


class Action(str):
    """An action of a policy, "merge", "average" or "keep", that carries its reason into the audit.

    It is equal to the bare word, so a policy of them is read, changed and stored like one of strings.

    Lesson: 09.
    """

    reason: str

    def __new__(cls, action: str, reason: str = "") -> Action:
        """The word, with the reason beside it."""
        made = super().__new__(cls, action)
        made.reason = reason
        return made


def decide(
    specs: Mapping[str, Spec],
    policy: Mapping[str, str] | None = None,
    others: str = "average",
    ties: Sequence[Sequence[str]] = (),
    beside: Collection[str] = (),
) -> dict[str, Decision]:
    """The policy of every tensor.

    Without a pattern the shape decides. A tensor with an output and an input side, at least two of each, is merged.
    Vectors, scalars, tensors of a single row or column, and the running statistics of normalisation layers follow
    `others`. Integers and empty tensors are kept. What a shape does not show (an embedding, a transposed convolution,
    a head) has to be named; `policy_of` names it from the network.

    Args:
        specs: the base's headers.
        policy: patterns of whole names ("head.*": "keep"; "*", "?" and "[…]" as in file names) that overrule the
            shapes; the first that matches wins. Where its action cannot apply to a tensor (a counter averaged, a bias
            merged) the shape decides after all, and the reason says so. What a pattern keeps the experts need not
            have, and what only an expert has is left out if a pattern keeps it.
        others: what happens to floating-point tensors that are no weights of a linear map, "average" or "keep".
        ties: groups of names that are one tensor. What is said of one name holds for its group.
        beside: names that only experts have; a pattern that keeps may be for them alone (`spared`).

    Returns:
        by name, in the order of `specs`.

    Raises:
        MergeError: an action that there is not, a pattern that matches nothing or only what its action cannot apply
            to, two actions for one tensor.

    Source: tensors in docs/equations.md. Lesson: 03, 09.
    """
    for where, what, remedy in problems(specs, policy, others, ties, beside):
        raise MergeError(f"{where} {what}; {remedy}.")
    rules = policy or {}
    statistics = _statistics(specs)
    decisions = {name: _decide(name, spec, rules, others, statistics) for name, spec in specs.items()}
    for group in ties:
        named = next((name for name in group if name in specs and _rule(name, rules)), None)
        if named is not None:
            decisions.update((name, decisions[named]) for name in group if name in specs)
    return decisions


def biases_of(
    specs: Mapping[str, Spec], decisions: Mapping[str, Decision], ties: Sequence[Sequence[str]] = ()
) -> dict[str, str]:
    """The bias of each weight that is merged, for methods that take the two as one matrix.

    A bias is a vector that nobody said anything of, of the weight's dtype and as long as its outputs, under the
    weight's name with "bias" for "weight" at the end: how PyTorch's linear, convolutional and attention layers name
    theirs.

    Args:
        specs: the base's headers.
        decisions: of `decide`.
        ties: groups of names that are one tensor; what is tied stays alone.

    Returns:
        by the weight's name, the bias's.

    Source: tensors in docs/equations.md. Lesson: 06.
    """
    tied = {name for group in ties for name in group}
    found = {}
    for name, spec in specs.items():
        bias = f"{name.removesuffix('weight')}bias"
        if (
            decisions[name].action == "merge"
            and name.endswith("weight")
            and bias in specs
            and decisions[bias].reason == _VECTOR
            and specs[bias] == Spec(spec.shape[:1], spec.dtype)
            and tied.isdisjoint((name, bias))
        ):
            found[name] = bias
    return found


def problems(
    specs: Mapping[str, Spec],
    policy: Mapping[str, str] | None = None,
    others: str = "average",
    ties: Sequence[Sequence[str]] = (),
    beside: Collection[str] = (),
) -> Iterator[tuple[str, str, str]]:
    """What is wrong with a policy for these tensors: where, what, and what to do. The arguments are those of `decide`.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    if others not in ("average", "keep"):
        yield "the method", f"has others = {others!r}", "use 'average' or 'keep'"
    if policy is not None and not isinstance(policy, Mapping):
        yield "the policy", f"is a {type(policy).__name__}", "give a dict of patterns, {'head.*': 'keep'}"
        return
    rules: dict[str, str] = {}
    for pattern, action in (policy or {}).items():
        if not isinstance(pattern, str):
            yield "the policy", f"has the pattern {pattern!r}, which is no string", "give patterns of tensor names"
        elif action not in ACTIONS:
            yield f"the policy of '{pattern}'", f"is {action!r}", f"use one of: {', '.join(ACTIONS)}"
        else:
            rules[pattern] = action
    for pattern, action in rules.items():
        found = [name for name in specs if _matches(name, pattern)]
        if not found and action == "keep" and any(_matches(name, pattern) for name in beside):
            continue
        if not found:
            near = get_close_matches(pattern.replace("*", ""), list(specs), n=3, cutoff=0)
            names = ", ".join(f"'{name}'" for name in near)
            yield f"the policy's pattern '{pattern}'", "matches no tensor", f"the nearest names are {names}"
        elif all(_cannot(specs[name], action) for name in found):
            first = specs[found[0]]
            yield (
                f"the policy '{pattern}': '{action}'",
                f"meets only what it cannot apply to, '{found[0]}': {_cannot(first, action)}",
                "average it" if first.dtype.is_floating_point and first.size else "keep it",
            )
    for group in ties:
        said = {rules[rule]: name for name in group if name in specs and (rule := _rule(name, rules)) is not None}
        if len(said) > 1:
            words = " and ".join(f"'{action}' for '{name}'" for action, name in said.items())
            yield "the policy", f"says {words}, which are one tensor in the base", "say the same for all its names"


def spared(
    names: Iterable[str], policy: Mapping[str, str] | None, ties: Sequence[Sequence[str]] = ()
) -> frozenset[str]:
    """Names that a pattern keeps: nothing is asked of the experts there, not even that they have such a tensor.

    What is kept for its shape, or for the method, is not among them: there a misfit is a sign of another network.

    Args:
        names: of the base and of the experts. What only an expert has is left out of the merge if a pattern keeps it.
        policy: patterns, as `decide` takes them; what is wrong with them is for `problems` to say.
        ties: groups of names that are one tensor. What is said of one name holds for its group.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    rules = {one: action for one, action in policy.items() if isinstance(one, str)} if policy else {}
    found = {name for name in names if (rule := _rule(name, rules)) is not None and rules[rule] == "keep"}
    return frozenset(found.union(*(group for group in ties if not found.isdisjoint(group))))


def tables(specs: Mapping[str, Spec], decisions: Mapping[str, Decision]) -> list[str]:
    """Names of matrices (row, feature) that may be embeddings and would be merged for their shape alone.

    In a state dict an embedding looks like a linear layer, and a method would take its vocabulary for outputs. Four
    signs together, none of them a name: two axes; no bias beside it, which an embedding never has; tall, with at
    least 1,000 rows and more than four rows to a column (an MLP's first layer has four); and at most four tensors of
    this shape, since layers repeat from block to block and a table does not. Of the 106 networks of torchvision 0.29
    that can be built without values it names those four that have tables of positions so tall, and no layer. A shorter
    table is not found.

    Args:
        specs: the base's headers.
        decisions: as `decide` gives them; a tensor that a pattern has named is not suspected.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    shapes = [spec.shape for spec in specs.values()]
    return [
        name
        for name, spec in specs.items()
        if decisions[name].reason == _WEIGHT and _tall(spec) and _is_alone(name, spec, specs, shapes)
    ]


def _tall(spec: Spec) -> bool:
    if len(spec.shape) != 2 or not spec.dtype.is_floating_point:
        return False
    rows, columns = spec.shape
    return columns > 1 and rows >= TABLE_ROWS and rows > TABLE_RATIO * columns


def _is_alone(name: str, spec: Spec, specs: Mapping[str, Spec], shapes: Sequence[tuple[int, ...]]) -> bool:
    owner, _, leaf = name.rpartition(".")
    bias = specs.get(f"{owner}.bias" if owner else "bias") if leaf == "weight" else None
    return (bias is None or bias.shape != spec.shape[:1]) and shapes.count(spec.shape) <= TABLE_COPIES


def _decide(name: str, spec: Spec, rules: Mapping[str, str], others: str, statistics: Mapping[str, str]) -> Decision:
    by_shape = _by_shape(spec, others, statistics.get(name))
    pattern = _rule(name, rules)
    if pattern is None:
        return by_shape
    action = rules[pattern]
    if _cannot(spec, action):
        return Decision(by_shape.action, f"{by_shape.reason} ('{pattern}': '{action}' cannot apply)")
    reason = getattr(action, "reason", "")
    return Decision(str(action), reason or f"your policy '{pattern}'")


def _rule(name: str, rules: Mapping[str, str]) -> str | None:
    return next((pattern for pattern in rules if _matches(name, pattern)), None)


def _matches(name: str, pattern: str) -> bool:
    # A name that has brackets in it is meant as it stands.
    return name == pattern or (not _WILD.isdisjoint(pattern) and fnmatchcase(name, pattern))


def _cannot(spec: Spec, action: str) -> str:
    """Why an action cannot apply to a tensor, or nothing."""
    if action == "keep":
        return ""
    if not spec.dtype.is_floating_point:
        return _INTEGERS
    if spec.size == 0:
        return _EMPTY
    return _VECTOR if action == "merge" and len(spec.shape) < 2 else ""


def _by_shape(spec: Spec, others: str, statistic: str | None) -> Decision:
    if not spec.dtype.is_floating_point:
        return Decision("keep", statistic or _INTEGERS)
    if spec.size == 0:
        return Decision("keep", _EMPTY)
    if statistic:
        return Decision(others, statistic)
    if len(spec.shape) < 2:
        return Decision(others, _VECTOR)
    if spec.shape[0] == 1:
        return Decision(others, _ROW)
    if spec.size == spec.shape[0]:
        return Decision(others, _COLUMN)
    return Decision("merge", _WEIGHT)


def _statistics(specs: Mapping[str, Spec]) -> dict[str, str]:
    """The running statistics of normalisation layers, by their set: two vectors of one length and a count."""
    found = {}
    for name, spec in specs.items():
        owner, dot, leaf = name.rpartition(".")
        if leaf != "num_batches_tracked" or spec.dtype.is_floating_point:
            continue
        pair = [f"{owner}{dot}{one}" for one in ("running_mean", "running_var")]
        shapes = [specs[one].shape for one in pair if one in specs]
        if len(shapes) == 2 and shapes[0] == shapes[1] and len(shapes[0]) == 1:
            found[name] = f"the count of batches of a BatchNorm: {_INTEGERS}"
            for one in pair:
                found[one] = "a running statistic of a BatchNorm: what the merged network would measure needs data"
    return found
