"""Can these be merged at all? Everything that is wrong, found before it is computed with: headers, then values."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from threading import Lock

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from apgd_teach.errors import MergeError
from apgd_teach.merging.checkpoint import InMemory, Spec, ties_of
from apgd_teach.merging.policy import Decision, decide, problems, spared, tables
from apgd_teach.merging.statedict import StateDict, as_written, fingerprint
from apgd_teach.tables import Table

__all__ = ["OTHER_BASE", "Finding", "Preflight", "Values", "preflight", "preflight_headers"]

OTHER_BASE = 1.0
"""‖τ‖/‖θ₀‖ from which an expert is reported as having another base. Two networks of one size that were trained from
different random starts stand at a right angle, √2 apart; lesson 02 measures both."""

OPPOSITE = -0.9
"""Cosine of two experts' whole task vectors below which they are reported as cancelling each other."""

ROUNDING = 0.25
"""Share of ‖τ‖ that the files' rounding may be before it is reported. It is a bound: rounding normal draws to
bfloat16 or float16 takes about two fifths of it."""

_SEVERAL = 8
"""Findings of one kind that are told one by one; more become one finding."""

_STATE = "give model.state_dict(), a dict of tensors by name"
_PART = 1 << 18


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

    def raise_errors(self, report: str = "preflight(base, experts).table()") -> None:
        """Raise `MergeError` with the first error in words, and how many more there are.

        Args:
            report: what shows all of them, for the sentence.

        Raises:
            MergeError: there is an error.
        """
        if self.errors:
            more = len(self.errors) - 1
            rest = f" ({more} more: see {report})" if more else ""
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

    def to_json(self) -> str:
        """The verdict and every finding as JSON, keys sorted."""
        record = {"verdict": self.verdict, "findings": [asdict(finding) for finding in self.findings]}
        return json.dumps(record, indent=2, sort_keys=True, ensure_ascii=False)


def preflight(
    base: StateDict, experts: Mapping[str, StateDict], policy: Mapping[str, str] | None = None, others: str = "average"
) -> Preflight:
    """Look for every reason why `experts` cannot be merged onto `base`, and for what would make the result doubtful.

    First what headers say (`preflight_headers`); where that is in order, what values say (`Values`).

    Args:
        base: θ₀, tensors by name.
        experts: θᵢ by name.
        policy: patterns, as `merge` takes them.
        others: of the method, as `policy.decide` takes it.

    Returns:
        The report. It never raises for bad input; `Preflight.raise_errors` does.

    Source: tensors in docs/equations.md. Lesson: 02, 09.
    """
    if not isinstance(experts, Mapping) or (experts and all(isinstance(one, Tensor) for one in experts.values())):
        are = "are one state dict" if isinstance(experts, Mapping) else f"are a {type(experts).__name__}"
        findings = [_error("the experts", are, "give a dict of state dicts, {name: state_dict}")]
        return _report([*findings, *_objects("base", base)])
    findings = list(_objects("base", base))
    for name, state in experts.items():
        findings += _objects(f"expert '{name}'", state)
    specs, others_specs = _specs(base), {name: _specs(state) for name, state in experts.items()}
    findings += _headers(specs, others_specs, policy, others, () if findings else ties_of(base))
    if not _errors(findings):
        findings += _devices(base, experts)
    if not _errors(findings):
        names, source = sorted(experts), InMemory(base)
        beside = {key for state in experts.values() for key in state}
        decisions = decide(source.specs, policy, others, source.ties, beside)
        values = Values(names, source.ties, decisions=decisions)
        for key, tensor in base.items():
            theirs = [experts[name].get(key) for name in names]
            values.look(key, tensor, [one if one is not None and one.shape == tensor.shape else None for one in theirs])
        findings += values.findings()
    return _report(findings)


def preflight_headers(
    base: Mapping[str, Spec],
    experts: Mapping[str, Mapping[str, Spec]],
    *,
    policy: Mapping[str, str] | None = None,
    others: str = "average",
    ties: Sequence[Sequence[str]] = (),
) -> Preflight:
    """The first stage: names, shapes, dtypes and the policy, before a value is read.

    Args:
        base: header of every tensor of θ₀, by name.
        experts: the same of every θᵢ, by name.
        policy: patterns, as `merge` takes them.
        others: of the method, as `policy.decide` takes it.
        ties: groups of names that are one tensor in the base.

    Returns:
        The report. It never raises; `Preflight.raise_errors` does.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    return _report(_headers(base, experts, policy, others, ties))


class Values:
    """The second stage: what only the numbers show, tensor by tensor, in memory that does not grow with the layers.

    `look` may be called from several threads, in any order, once per tensor. The names of a tie that come after its
    first add nothing to the norms: they are only compared with the first. Floats that are kept have no say at all:
    whatever the experts hold there, even nothing or infinity, the merge is the same.

    Args:
        names: the experts', sorted, which is the order in which `look` is given their tensors.
        ties: groups of names that are one tensor in the base.
        strict: whether `look` raises what is an error at once; else it waits for `findings`.
        headers: of "base" and of every expert, by name, where `look` is given tensors that were widened after reading.
        decisions: what happens to each tensor, as `policy.decide` gives it; None: all floats are merged or averaged.
        derived: experts whose tensors are made from the base's: no rounding of a file is in their τ.

    Source: tensors in docs/equations.md. Lesson: 09.
    """

    def __init__(
        self,
        names: Sequence[str],
        ties: Sequence[Sequence[str]] = (),
        strict: bool = False,
        headers: Mapping[str, Mapping[str, Spec]] | None = None,
        decisions: Mapping[str, Decision] | None = None,
        derived: Collection[str] = (),
    ) -> None:
        self._derived = frozenset(derived)
        self.names, self.strict, self._headers = tuple(names), strict, headers
        self._kept = {key for key, decision in (decisions or {}).items() if decision.action == "keep"}
        self._unseen = False  # whether a tensor of floats was not compared, since it is kept
        self._group = {name: tuple(group) for group in ties for name in group}
        self._digests: dict[tuple[str, ...], tuple[str, list[str]]] = {}
        n = len(self.names)
        with as_written():  # tensors made in inference mode could not be added to in `look`
            self._inner = torch.zeros(n, n, dtype=torch.float64, device="cpu")  # ⟨τᵢ, τⱼ⟩
            self._same = torch.ones(n + 1, n + 1, dtype=torch.bool, device="cpu")  # in floats, the base first
            self._same_integers = self._same.clone()
        self._square = 0.0  # ‖θ₀‖²
        self._rounding = [0.0] * n  # a bound on the square of what rounding put into τᵢ
        self._found: list[Finding] = []
        self._lock = Lock()

    def look(self, key: str, base: Tensor, experts: Sequence[Tensor | None]) -> None:
        """Take one tensor into account.

        Args:
            key: its name.
            base: the base's.
            experts: the experts', in the order of `names`; None where one has none of its shape, which only a tensor
                that is kept allows.

        Raises:
            MergeError: with `strict`, what stops the merge: NaN or infinity, a tied tensor that is two in an expert.
        """
        with as_written():
            found = list(self._judge(key, base.detach(), [None if one is None else one.detach() for one in experts]))
        with self._lock:
            self._found += found
        if self.strict:
            _report(found).raise_errors()

    def absorb(self, other: Values) -> None:
        """Take into account what another one saw of other tensors of the same networks, in another process.

        Args:
            other: of the same names; it may come from a pickle.
        """
        with self._lock:
            self._inner += other._inner
            self._same &= other._same
            self._same_integers &= other._same_integers
            self._square += other._square
            self._rounding = [one + two for one, two in zip(self._rounding, other._rounding, strict=True)]
            self._found += other._found
            self._unseen |= other._unseen

    def __getstate__(self) -> dict[str, object]:
        """All but the lock, which no pickle can hold, and the headers, which the other side has."""
        return {**self.__dict__, "_lock": None, "_headers": None}

    def findings(self) -> tuple[Finding, ...]:
        """Everything found so far, errors first."""
        with self._lock:
            return _report([*self._found, *self._whole()]).findings

    def _judge(self, key: str, base: Tensor, given: list[Tensor | None]) -> Iterator[Finding]:
        if base.is_floating_point() and key in self._kept:
            self._unseen |= base.numel() > 0
            return
        yield from self._untied(key, given)
        if self._group.get(key, (key,))[0] != key:
            return
        if base.is_floating_point():
            yield from self._floats(key, base, [one for one in given if one is not None])
        else:
            yield from self._integers(key, base, given)

    def _untied(self, key: str, experts: Sequence[Tensor | None]) -> Iterator[Finding]:
        """Where the base has one tensor under several names and an expert has several."""
        group = self._group.get(key)
        if group is None:
            return
        digests = ["" if one is None else fingerprint({"": one}) for one in experts]
        with self._lock:
            other, known = self._digests.setdefault(group, (key, digests))
        for name, one, two in zip(self.names, digests, known, strict=True):
            if one and two and one != two:
                yield _error(
                    f"expert '{name}', tensor '{key}'",
                    f"differs from its '{other}', and the base has the two tied",
                    "tie them in the expert, or give the base a copy for each name",
                )

    def _floats(self, key: str, base: Tensor, experts: list[Tensor]) -> Iterator[Finding]:
        with self._lock:
            same = self._same.clone()
        double = base.device.type != "mps" and any(one.dtype == torch.float64 for one in (base, *experts))
        inner, squares = _measure(base, experts, same, torch.float64 if double else torch.float32)
        if not math.isfinite(sum(squares) + float(inner.sum())):
            bad = [not bool(torch.isfinite(one).all()) for one in (base, *experts)]
            if all(bad) and all(torch.equal(base, one) for one in experts):
                remedy = f"if it is a mask or a bound and no weight, keep it with policy={{'{key}': 'keep'}}"
                yield _error(f"base, tensor '{key}'", "holds infinity, and so do all the experts", remedy)
            else:
                yield from self._not_finite(key, bad)
            if any(bad):
                inner, squares, same = torch.zeros_like(inner), [0.0] * len(squares), torch.zeros_like(same)
            elif not double and base.device.type != "mps":  # it was only the squares that float32 cannot hold
                inner, squares = _measure(base, experts, same, torch.float64)
        with self._lock:
            self._inner += inner
            self._square += squares[0]
            self._same &= same
            for place, (name, one) in enumerate(zip(self.names, experts, strict=True)):
                eps = 0.0 if name in self._derived else max(self._eps(name, key, one), self._eps("base", key, base))
                self._rounding[place] += (eps / 2) ** 2 * squares[place + 1]

    def _not_finite(self, key: str, bad: Sequence[bool]) -> Iterator[Finding]:
        whose = ("base", *(f"expert '{name}'" for name in self.names))
        for who in (one for one, is_bad in zip(whose, bad, strict=True) if is_bad):
            remedy = "take an earlier checkpoint, before it diverged"
            yield _error(f"{who}, tensor '{key}'", "holds NaN or infinity", remedy)

    def _eps(self, who: str, key: str, tensor: Tensor) -> float:
        return torch.finfo(self._headers[who][key].dtype if self._headers else tensor.dtype).eps

    def _integers(self, key: str, base: Tensor, experts: list[Tensor | None]) -> Iterator[Finding]:
        states = [base, *experts]
        alike = [[one is None or other is None or _equal(one, other) for other in states] for one in states]
        with self._lock:
            self._same_integers &= torch.tensor(alike, dtype=torch.bool, device="cpu")
        for name, same in zip(self.names, alike[0][1:], strict=True):
            if not same and _quantised(base):
                yield _warning(
                    f"expert '{name}', tensor '{key}'",
                    f"is a matrix of {str(base.dtype).removeprefix('torch.')}, as quantised weights are, that differs "
                    "from the base's",
                    "integers are not merged and the base's are kept: take the checkpoint before it was quantised",
                )
            elif not same:
                yield _warning(
                    f"expert '{name}', tensor '{key}'",
                    "is a tensor of integers that differs from the base's",
                    "integers are not merged: the base's are kept",
                )

    def _whole(self) -> Iterator[Finding]:
        """What all tensors say together."""
        norms = [math.sqrt(float(one)) for one in self._inner.diagonal()]
        same, far = self._same & self._same_integers, " in all that is merged" if self._unseen else ""
        for place, name in enumerate(self.names):
            where, size = f"expert '{name}'", norms[place]
            if self._same[0, place + 1]:
                what = f"is the base itself{far}" if same[0, place + 1] else "differs from the base in integers alone"
                yield _warning(where, what, "leave it out: it pulls the others to the base")
                continue
            share = size / math.sqrt(self._square) if self._square else math.inf
            if share > OTHER_BASE:
                yield _warning(
                    where,
                    f"is {share:.2f} times the base's own norm away from it",
                    "it was probably fine-tuned from another base, and a merge of such experts is not expected to work",
                )
            rounding = math.sqrt(self._rounding[place])
            if rounding > ROUNDING * size:
                told = f"up to {100 * rounding / size:.0f} %" if rounding < size else "as much as the whole"
                yield _warning(
                    where,
                    f"is so near to the base that the files' rounding may be {told} of its τ",
                    "take the files in the precision of the training, if there are any",
                )
            earlier = list(enumerate(self.names[:place]))
            twin = next((other for i, other in earlier if same[i + 1, place + 1]), None)
            if twin is not None:
                yield _warning(where, f"is the same as expert '{twin}'{far}", "it counts twice in the merge")
            for i, other in earlier:
                length = norms[i] * size
                if length and (cosine := float(self._inner[i, place]) / length) < OPPOSITE:
                    yield _warning(
                        where,
                        f"points away from expert '{other}' (cosine −{-cosine:.2f})",
                        "the two cancel each other in every sum; see whether one was subtracted on purpose",
                    )


def _measure(base: Tensor, experts: list[Tensor], same: Tensor, wide: torch.dtype) -> tuple[Tensor, list[float]]:
    """⟨τᵢ, τⱼ⟩ and the squares of all norms, the base's first; clears `same` (state, state) where two differ.

    In parts of the layer, so that no copy of it is made; each part is summed up in `wide`, the parts in float64.
    """
    flat = [one.reshape(-1) for one in (base, *experts)]
    inner = torch.zeros(len(experts), len(experts), dtype=torch.float64, device="cpu")
    squares = torch.zeros(len(flat), dtype=torch.float64, device="cpu")
    for start in range(0, flat[0].numel(), _PART):
        part = torch.stack([one[start : start + _PART].to(wide) for one in flat])
        tau = part[1:] - part[0]
        inner += (tau @ tau.T).cpu()
        squares += torch.linalg.vector_norm(part, dim=1).cpu().double().square()
        for i, j in torch.triu(same, diagonal=1).nonzero().tolist():
            same[i, j] = torch.equal(part[i], part[j])
    return inner, squares.tolist()


def _quantised(tensor: Tensor) -> bool:
    """Whether it may be: weights are stored in integers of 8 bits, or several of them packed into one of 32."""
    return tensor.dim() > 1 and tensor.dtype != torch.bool and tensor.dtype.itemsize <= 4


def _equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one, other if one.dtype == other.dtype else other.to(one.dtype))


def _report(findings: Iterable[Finding]) -> Preflight:
    return Preflight(tuple(sorted(findings, key=lambda finding: (finding.level != "error", finding.where))))


def _errors(findings: Iterable[Finding]) -> bool:
    return any(finding.level == "error" for finding in findings)


def _error(where: str, what: str, remedy: str) -> Finding:
    return Finding("error", where, what, remedy)


def _warning(where: str, what: str, remedy: str) -> Finding:
    return Finding("warning", where, what, remedy)


# Objects: what can be wrong in memory only


def _objects(name: str, state: object) -> Iterator[Finding]:
    """Whether this is a state dict at all, and every value a tensor with a header."""
    if not isinstance(state, Mapping):
        yield _error(name, f"is a {type(state).__name__} and no state dict", _STATE)
        return
    for key, value in state.items():
        problem = _no_header(value)
        if problem:
            yield _error(f"{name}, tensor '{key}'", *problem)


def _no_header(value: object) -> tuple[str, str] | None:
    """Why a value of a state dict is no ordinary tensor, and what to do."""
    if not isinstance(value, Tensor):
        return f"is a {type(value).__name__}", _STATE
    if is_lazy(value):
        return "has no shape yet", "run the network once on an input before taking its state dict"
    if value.is_nested or value.is_quantized or value.layout != torch.strided:
        return _ODD
    if value.is_meta:
        return "has a shape and no values (device 'meta')", "load the weights onto the CPU"
    return None


_ODD = "is nested, complex, quantised or sparse", "convert it into an ordinary tensor, or take it out of all of them"


def _specs(state: object) -> dict[str, Spec | None] | None:
    """Headers of a state dict, None for what has none and was found above."""
    if not isinstance(state, Mapping):
        return None
    return {key: None if _no_header(one) else Spec(tuple(one.shape), one.dtype) for key, one in state.items()}


def _devices(base: StateDict, experts: Mapping[str, StateDict]) -> Iterator[Finding]:
    for name, expert in experts.items():
        for key, tensor in base.items():
            if key in expert and tensor.device != expert[key].device:
                yield _error(
                    f"expert '{name}', tensor '{key}'",
                    f"is on {expert[key].device} and the base on {tensor.device}",
                    "move both to one device",
                )


# Headers


_Specs = Mapping[str, Spec | None]


def _headers(
    base: _Specs | None,
    experts: Mapping[str, _Specs | None],
    policy: Mapping[str, str] | None,
    others: str,
    ties: Sequence[Sequence[str]],
) -> Iterator[Finding]:
    if not experts:
        yield _error("the experts", "are an empty dict", "give at least one state dict, {name: state_dict}")
    for name in experts:
        if not isinstance(name, str):
            yield _error(f"expert {name!r}", "has a name that is no string", "use a string")
        elif name == "base":
            yield _error("expert 'base'", "has the name that the audit gives the base", "call it something else")
    of_base = list(_tensors("base", base))
    yield from of_base
    names = {key: None for specs in (base, *experts.values()) for key in specs or () if isinstance(key, str)}
    free = spared(names, policy, ties) if isinstance(policy, Mapping) else frozenset()
    for name, specs in experts.items():
        yield from _tensors(f"expert '{name}'", specs)
        if base is not None and specs is not None:
            yield from _pair(f"expert '{name}'", base, specs, free)
    sound = {key: spec for key, spec in (base or {}).items() if spec is not None}
    if not of_base and base is not None and len(sound) == len(base):
        yield from _policy(sound, policy, others, ties, [key for key in names if key not in sound])


def _tensors(name: str, specs: _Specs | None) -> Iterator[Finding]:
    """Whether a state dict's headers are those of something to merge."""
    if specs is None:
        return
    for key, spec in specs.items():
        if not isinstance(key, str):
            yield _error(name, f"has the key {key!r}, which is no string", "name every tensor with a string")
        problem = _no_weight(spec)
        if problem:
            yield _error(f"{name}, tensor '{key}'", *problem)
    if not specs:
        yield _error(name, "is empty", _STATE)
    elif not any(spec is None or _no_weight(spec) or spec.dtype.is_floating_point for spec in specs.values()):
        yield _error(name, "holds no tensor of floats", "there is nothing to merge without")


def _no_weight(spec: Spec | None) -> tuple[str, str] | None:
    """Why a tensor of this dtype can be neither merged nor kept, and what to do."""
    if spec is not None and spec.dtype.is_complex:
        return _ODD
    if spec is not None and spec.dtype.is_floating_point and spec.dtype.itemsize < 2:
        return f"is {spec.dtype}, which is too coarse to subtract", "take the checkpoint before it was quantised"
    return None


def _pair(name: str, base: _Specs, expert: _Specs, free: Collection[str]) -> Iterator[Finding]:
    """Where an expert does not fit the base, the names apart of which nothing is asked (`policy.spared`)."""
    pairs = {
        key: (spec, other)
        for key, spec in base.items()
        if key not in free and spec and (other := expert.get(key)) and not _no_weight(spec) and not _no_weight(other)
    }
    missing = [key for key in base if key not in expert and key not in free]
    reshaped = [key for key, (spec, other) in pairs.items() if spec.shape != other.shape]
    if len(missing) + len(reshaped) > max(3, len(base) / 2):
        yield _other_network(name, base, expert, missing, reshaped)
        return
    yield from _missing(name, base, expert, missing)
    yield from _extra(name, base, expert, [key for key in expert if key not in base and key not in free])
    for key in reshaped:
        spec, other = pairs[key]
        yield _error(
            f"{name}, tensor '{key}'",
            f"has shape {other.shape} and the base has {spec.shape}",
            "only networks of one architecture can be merged; leave a widened layer or head out of both, or keep the "
            f"base's with policy={{'{key}': 'keep'}}",
        )
    yield from _dtypes(name, {key: pair for key, pair in pairs.items() if key not in reshaped})


def _other_network(name: str, base: _Specs, expert: _Specs, missing: list[str], reshaped: list[str]) -> Finding:
    """One finding in place of hundreds."""
    fitting = len(base) - len(missing) - len(reshaped)
    first = f"has no '{missing[0]}'" if missing else f"has another shape in '{reshaped[0]}'"
    ours, theirs = ([key for key in specs if isinstance(key, str)] for specs in (base, expert))
    if prefix := _prefix(ours, theirs):
        remedy = f"its names begin with '{prefix}', which the base's do not: take it away"
    elif prefix := _prefix(theirs, ours):
        remedy = f"the base's names begin with '{prefix}', which its own do not: take it away"
    else:
        remedy = "it is another network, and only networks of one architecture can be merged"
    return _error(name, f"fits the base in {fitting} of {len(base)} tensors by name and shape ({first})", remedy)


def _prefix(short: Sequence[str], long: Sequence[str]) -> str:
    """What is to be put before the names of one so that most of them are names of the other."""
    names = set(long)
    before = [key.removesuffix(short[0]) for key in long if key.endswith(f".{short[0]}")] if short else []
    return next((one for one in before if sum(one + key in names for key in short) > len(short) / 2), "")


def _missing(name: str, base: _Specs, expert: _Specs, missing: list[str]) -> Iterator[Finding]:
    if len(missing) > _SEVERAL:
        yield _error(
            name,
            f"has no tensors {_some(missing)}, which the base has",
            _KIND.format(key="…"),
        )
        return
    spare = sorted(key for key in expert if key not in base and isinstance(key, str))
    for key in missing:
        close = get_close_matches(key, spare, n=1) if isinstance(key, str) else []
        remedy = f"rename '{close[0]}' if it is the same tensor" if close else _KIND.format(key=key)
        if not close and (partner := _partner(key, base, expert)):
            remedy = (
                f"if it is tied to '{partner}', which has its shape, and the writer of the expert's file left the "
                f"second name out, take '{key}' out of the base too; else {remedy}"
            )
        yield _error(name, f"has no tensor '{key}', which the base has", remedy)


def _partner(key: str, having: _Specs, lacking: _Specs) -> str:
    """The one other matrix of the shape of `key` that both have: what a name that is left out may be tied to."""
    spec = having[key]
    if spec is None or len(spec.shape) < 2:
        return ""
    found = [name for name, one in having.items() if name in lacking and one is not None and one.shape == spec.shape]
    return found[0] if len(found) == 1 else ""


def _extra(name: str, base: _Specs, expert: _Specs, extra: list[str]) -> Iterator[Finding]:
    idle = [key for key in extra if (spec := expert[key]) and not spec.dtype.is_floating_point and not _no_weight(spec)]
    for key in idle:
        yield _warning(
            f"{name}, tensor '{key}'",
            "is a tensor of integers that the base has not",
            "it is left out: integers are not merged",
        )
    extra = [key for key in extra if key not in idle]
    if len(extra) > _SEVERAL:
        yield _error(name, f"has tensors {_some(extra)} that the base has not", _HEAD.format(key="…"))
        return
    for key in extra:
        remedy = _HEAD.format(key=key)
        if partner := _partner(key, expert, base):
            remedy = (
                f"if it is tied to '{partner}', which has its shape, and the writer of the base's file left the second "
                f"name out, take '{key}' out of the expert too; else {remedy}"
            )
        yield _error(name, f"has a tensor '{key}' that the base has not", remedy)


_KIND = "only networks of one kind can be merged; where the base's is to be kept, say policy={{'{key}': 'keep'}}"
_HEAD = "take task heads out before merging, or have it left out with policy={{'{key}': 'keep'}}"


def _some(keys: Sequence[object]) -> str:
    first = ", ".join(f"'{key}'" for key in keys[:3])
    return f"{first} and {len(keys) - 3} more"


def _dtypes(name: str, pairs: Mapping[str, tuple[Spec, Spec]]) -> Iterator[Finding]:
    """Floats against integers one by one; floats of two precisions in one finding for all their tensors."""
    mixed: dict[tuple[torch.dtype, torch.dtype], list[str]] = {}
    for key, (spec, other) in pairs.items():
        where = f"{name}, tensor '{key}'"
        if spec.dtype == other.dtype:
            continue
        if spec.dtype.is_floating_point and other.dtype.is_floating_point:
            mixed.setdefault((other.dtype, spec.dtype), []).append(key)
        elif spec.dtype.is_floating_point or other.dtype.is_floating_point:
            yield _error(
                where,
                f"is {other.dtype} and the base is {spec.dtype}",
                "floats and integers cannot be subtracted; find out which of the two was converted",
            )
        else:
            yield _warning(
                where,
                f"is {other.dtype} and the base is {spec.dtype}",
                "integers are not merged: the base's are kept",
            )
    for (theirs, ours), keys in mixed.items():
        coarse = max((theirs, ours), key=lambda dtype: torch.finfo(dtype).eps)
        more = "" if len(keys) == 1 else f" (and {len(keys) - 1} more)"
        yield _warning(
            f"{name}, tensor '{keys[0]}'{more}",
            f"is {theirs} and the base is {ours}",
            f"τ is then off by the rounding to {coarse}, up to {50 * torch.finfo(coarse).eps:.2g} % of every weight; "
            "take both in the precision of the training, if you can",
        )


def _policy(
    specs: Mapping[str, Spec],
    policy: Mapping[str, str] | None,
    others: str,
    ties: Sequence[Sequence[str]],
    beside: Collection[str],
) -> Iterator[Finding]:
    """What is wrong with the policy, and what it may overlook."""
    wrong = [_error(*problem) for problem in problems(specs, policy, others, ties, beside)]
    yield from wrong
    if wrong:
        return
    decisions = decide(specs, policy, others, ties, beside)
    if all(decision.action != "merge" for decision in decisions.values()):
        yield _warning("the policy", "leaves no tensor to the method", "every one is averaged or kept")
    tied = {name for group in ties for name in group[1:]}
    for name in tables(specs, decisions):
        if name not in tied:
            rows, columns = specs[name].shape
            yield _warning(
                f"base, tensor '{name}'",
                f"may be an embedding ({rows} rows of {columns}, no bias, not repeated), and would be merged as a "
                "linear layer",
                f"name it in `policy`: {{'{name}': 'average'}} if its rows are looked up, 'merge' if it is a layer",
            )
