"""The merge itself, tensor by tensor, whether the tensors lie in memory or in files."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.errors import MergeError
from apgd_teach.guard import no_data
from apgd_teach.merging.audit import Audit, TensorRow
from apgd_teach.merging.checkpoint import Checkpoint
from apgd_teach.merging.method import Layer, Method, Update, call, facts_of
from apgd_teach.merging.policy import Decision, biases_of, decide
from apgd_teach.merging.preflight import Finding
from apgd_teach.merging.statedict import as_written, norm, wide
from apgd_teach.merging.threshold import thresholds

__all__ = ["Inputs", "Made", "Plans", "Spread", "one_layer", "passes", "run"]


@dataclass(frozen=True)
class Inputs:
    """A base and experts that have passed the pre-flight check, and how to treat them.

    Attributes:
        base, experts: where their tensors come from.
        policy: patterns that overrule the policy of shapes.
        device: where to compute; None: where the tensors are.
        dtype: of the result's floating-point tensors; None: each as the base has it.
        look: called with a tensor's name, the base's tensor and the experts' (in the order of their sorted names)
            before it is merged; raises what must stop the merge. Called from several threads at once where there
            are several workers.
    """

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    policy: Mapping[str, str] | None = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    look: Callable[[str, Tensor, list[Tensor | None]], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The experts in the order in which they are added up: a sum of floats depends on it, so names decide."""
        return tuple(sorted(self.experts))

    def task_vectors(self, key: str, column: str | None = None) -> Tensor:
        """τ of one tensor as matrices, shape (task, out, in); with its bias as one column more, where that is named."""
        base = self._place(self.base.read(key))
        tau = _subtract(base, (self._place(self.experts[name].read(key)) for name in self.names), len(self.names))
        tau = tau.flatten(2) if tau.ndim > 2 else tau
        return tau if column is None else torch.cat([tau, self.task_vectors(column).unsqueeze(2)], dim=2)

    def decisions(self, method: Method) -> dict[str, Decision]:
        """What happens to each tensor of the base."""
        beside = {key for expert in self.experts.values() for key in expert.specs}
        return decide(self.base.specs, self.policy, getattr(method, "others", "average"), self.base.ties, beside)

    def columns(self, method: Method, decisions: Mapping[str, Decision]) -> dict[str, str]:
        """By the name of a weight, its bias, for a method that takes the two together."""
        if getattr(method, "biases", "average") != "column":
            return {}
        return biases_of(self.base.specs, decisions, self.base.ties)

    def tensors(self, key: str) -> tuple[Tensor, list[Tensor | None]]:
        """The base's tensor and the experts', where the computation is done; None where one has none of its shape."""
        shape = self.base.specs[key].shape
        fits = [(spec := self.experts[name].specs.get(key)) is not None and spec.shape == shape for name in self.names]
        theirs = zip(self.names, fits, strict=True)
        return self._place(self.base.read(key)), [
            self._place(self.experts[name].read(key)) if fit else None for name, fit in theirs
        ]

    def rounding(self, key: str) -> float:
        """About the largest singular value of what rounding the stored weights left in one τ, as a share of ‖θ₀‖.

        Rounding moves a weight by up to half of ε, evenly spread, so by ε/√12 of it in the mean; as a matrix of
        independent numbers of that size it reaches √out + √in times it.
        """
        out, *rest = self.base.specs[key].shape
        width = math.prod(rest)
        ours = self.base.specs[key].dtype
        computed = torch.float64 if ours == torch.float64 else torch.float32
        kinds = [
            kind
            for expert in self.experts.values()
            for kind in ((computed,) if expert.derived else (ours, expert.specs[key].dtype))
        ]
        coarsest = max(torch.finfo(kind).eps for kind in kinds)
        return coarsest / math.sqrt(12) * (1 / math.sqrt(width) + 1 / math.sqrt(out))

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor if self.device is None else tensor.to(self.device)


Made = list[tuple[Tensor, TensorRow]]
"""What comes of one piece of work: a tensor, or a weight and its bias, each with its row of the audit."""


@dataclass(frozen=True)
class Plans:
    """What is decided before the first tensor is merged.

    Attributes:
        method: how.
        decisions: by tensor.
        columns: by weight, the bias that is merged with it.
        thresholds: of a trim, shape (task,); None without one.
    """

    method: Method
    decisions: Mapping[str, Decision]
    columns: Mapping[str, str]
    thresholds: Tensor | None


Spread = Callable[[Inputs, Plans, list[str], Callable[[Made], None]], None]
"""Computes `one_layer` for each of the names, somewhere, and hands what comes back to a function, one at a time."""


def one_layer(key: str, inputs: Inputs, plans: Plans) -> Made:
    """Merge one tensor, with its bias where the two go together; layers need nothing of each other."""
    with as_written():
        if key in plans.columns:
            return _merge_pair(key, plans.columns[key], inputs, plans.method, plans.decisions[key], plans.thresholds)
        return [_merge_tensor(key, inputs, plans.method, plans.decisions[key], plans.thresholds)]


def passes(inputs: Inputs, method: Method) -> int:
    """How many ticks `run` will make: one per tensor and pass, and one per input that is hashed at the end."""
    decisions = inputs.decisions(method)
    layers = sum(one.action == "merge" for one in decisions.values())
    return len(decisions) + (2 * layers if _trims(method) else 0) + 1 + len(inputs.experts)


def run(
    inputs: Inputs,
    method: Method,
    sink: Callable[[str, Tensor], None],
    *,
    workers: int = 1,
    spread: Spread | None = None,
    tick: Callable[[], object] = int,
    findings: Callable[[], tuple[Finding, ...]] = tuple,
) -> Audit:
    """Merge, handing each finished tensor to `sink` and forgetting it.

    Args:
        inputs: what to merge.
        method: how.
        sink: takes a tensor's name and value; called from one thread at a time, not in order.
        workers: tensors in work at once.
        spread: who computes the layers; None: this process, with its workers.
        tick: called after each tensor of each pass.
        findings: asked for the warnings at the end, when all values have been seen.

    Raises:
        MergeError: the policy does not fit, or the method returned something that is no update.

    Source: (1), (2) in docs/equations.md.
    """
    settings = _settings(method)  # what cannot be recorded is better known before than after the work
    decisions = inputs.decisions(method)
    tied = {name: group[0] for group in inputs.base.ties for name in group[1:]}
    columns = inputs.columns(method, decisions)
    work = [name for name in decisions if name not in tied and name not in columns.values()]
    at = _first_pass(inputs, method, [name for name in work if decisions[name].action == "merge"], tick)
    plans = Plans(method, decisions, columns, at)
    rows: dict[str, TensorRow] = {}

    followers: dict[str, list[str]] = {}
    for name, first in tied.items():
        followers.setdefault(first, []).append(name)

    def finish(made: Made) -> None:
        for tensor, row in made:
            for name in (row.name, *followers.get(row.name, ())):
                first = name == row.name
                # Values of its own: what shares memory cannot be stored as safetensors.
                sink(name, tensor if first else tensor.clone())
                rows[name] = row if first else dataclasses.replace(row, name=name, reason=f"tied to '{row.name}'")
                tick()

    if spread is not None:
        spread(inputs, plans, work, finish)
    elif workers == 1:
        for key in work:
            finish(one_layer(key, inputs, plans))
    else:
        _in_threads(work, lambda key: one_layer(key, inputs, plans), finish, workers)
    digests: dict[str, str] = {}
    for name, source in (("base", inputs.base), *((name, inputs.experts[name]) for name in inputs.names)):
        digests[name] = source.digest()
        tick()
    return Audit(
        method=method.name,
        settings=settings,
        experts=inputs.names,
        data_used="none",
        inputs=digests,
        versions={"apgd_teach": __version__, "torch": str(torch.__version__)},
        rows=tuple(rows[name] for name in decisions),
        warnings=findings(),
    )


def _in_threads(work: list[str], one: Callable[[str], Made], finish: Callable[[Made], None], workers: int) -> None:
    """As many tensors at once as there are workers, and no more waiting to be written: memory is bounded by that."""
    with ThreadPoolExecutor(workers) as threads:
        running: set[Future[Made]] = set()
        left = list(reversed(work))
        try:
            while left or running:
                while left and len(running) < workers:
                    running.add(threads.submit(one, left.pop()))
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                while done:  # a future that is kept keeps its tensor
                    future = done.pop()
                    running.discard(future)
                    finish(future.result())
                    del future
        finally:
            for future in running:
                future.cancel()


def _first_pass(inputs: Inputs, method: Method, layers: list[str], tick: Callable[[], object]) -> Tensor | None:
    share = getattr(method, "trim", None)
    if share is None or not _trims(method):
        return None
    with as_written():
        return thresholds(layers, inputs.task_vectors, share, len(inputs.names), tick)


def _trims(method: Method) -> bool:
    share = getattr(method, "trim", None)
    return share is not None and share < 1


def _settings(method: Method) -> dict[str, object]:
    if not dataclasses.is_dataclass(method):
        return {}
    return {one.name: _setting(getattr(method, one.name, None)) for one in dataclasses.fields(method)}


def _setting(value: object) -> object:
    """A copy, with dataclasses as dicts; of what cannot be copied (a lock, an open file) the name of its type."""
    try:
        return dataclasses.asdict(_Holder(value))["value"]
    except Exception:  # whatever a foreign __deepcopy__ raises
        return f"<{type(value).__name__}>"


@dataclass(frozen=True)
class _Holder:
    value: object


def _merge_tensor(
    key: str, inputs: Inputs, method: Method, decision: Decision, at: Tensor | None
) -> tuple[Tensor, TensorRow]:
    base, given = inputs.tensors(key)
    if inputs.look is not None:
        inputs.look(key, base, given)
    experts = [one for one in given if one is not None]
    del given  # an expert is forgotten once it is subtracted from
    shape, size = tuple(base.shape), norm(base)
    if not base.is_floating_point():
        return base.clone(), TensorRow(key, "keep", decision.reason, shape, size, 0.0, 0.0)
    kind = inputs.dtype or base.dtype
    experts.reverse()
    n_tasks = len(experts)  # all of them, unless it is kept: those whose tensor has the base's shape
    tau = _subtract(base, (experts.pop() for _ in range(n_tasks)), n_tasks)
    if decision.action == "keep":
        tau.nan_to_num_(0.0, 0.0, 0.0)  # −∞ in all of them, as in a mask, is no difference
    norms = [norm(one) for one in tau]
    mean = sum(norms) / len(norms) if norms else 0.0
    if decision.action == "keep":
        del tau
        kept = base.to(kind, copy=True)
        if not _finite(kept):
            _fits(key, kept[torch.isfinite(base)], kind)  # what the base holds may be infinite
        return kept, TensorRow(key, "keep", decision.reason, shape, size, mean, 0.0)
    facts: Mapping[str, object] = {}
    if decision.action == "merge":
        update, facts = _ask(key, method, inputs, tau, norms, at, size)
    else:
        update = tau.mean(dim=0)
    moved, base = norm(update), base.to(tau.dtype)
    del tau  # the largest thing in memory, and not needed any more
    result = _fits(key, (base + update.reshape(shape)).to(kind), kind)
    return result, TensorRow(key, decision.action, decision.reason, shape, size, mean, moved, facts)


def _merge_pair(key: str, column: str, inputs: Inputs, method: Method, decision: Decision, at: Tensor | None) -> Made:
    """A weight and its bias as one matrix: the bias is the weight of an input that is always 1."""
    names = (key, column)
    bases, given = [], []
    for name in names:
        base, experts = inputs.tensors(name)
        if inputs.look is not None:
            inputs.look(name, base, experts)
        bases.append(base)
        given.append([one for one in experts if one is not None])
        del experts
    out, n_tasks = bases[0].shape[0], len(given[0])
    width = bases[0].numel() // out
    parts = (slice(0, width), slice(width, width + 1))
    kind = torch.float64 if bases[0].dtype == torch.float64 else torch.float32
    # One matrix from the start: what is joined afterwards is in memory twice.
    tau = torch.empty((n_tasks, out, width + 1), dtype=kind, device=bases[0].device)
    for part, base, theirs in zip(parts, bases, given, strict=True):
        start = base.reshape(out, -1).to(kind)
        for place in tau[..., part]:
            place.copy_(theirs.pop(0).reshape(out, -1)).sub_(start)
        del start
    sizes = [norm(base) for base in bases]
    # By blocks of rows: a part of a matrix is copied to be measured.
    lengths = [[math.hypot(*map(norm, one[:, part].split(256))) for one in tau] for part in parts]
    norms = [math.hypot(*both) for both in zip(*lengths, strict=True)]
    update, facts = _ask(key, method, inputs, tau, norms, at, math.hypot(*sizes), column)
    del tau
    reasons = (f"{decision.reason}, with '{column}' as its last column", f"a column of '{key}'")
    made = []
    for at_name, (name, base, part, reason) in enumerate(zip(names, bases, parts, reasons, strict=True)):
        moved = update[:, part]
        kept = inputs.dtype or base.dtype
        result = _fits(name, (base.to(update.dtype) + moved.reshape(base.shape)).to(kept), kept)
        mean = sum(lengths[at_name]) / n_tasks
        policy, known = ("merge", facts) if name == key else ("column", {})
        shape = tuple(base.shape)
        made.append((result, TensorRow(name, policy, reason, shape, sizes[at_name], mean, norm(moved), known)))
    return made


def _subtract(base: Tensor, experts: Iterable[Tensor], n_tasks: int) -> Tensor:
    """τ, shape (task, …), with each expert forgotten once it is subtracted from: what is held is τ and one tensor."""
    base = base.to(torch.float64 if base.dtype == torch.float64 else torch.float32)
    tau = torch.empty((n_tasks, *base.shape), dtype=base.dtype, device=base.device)
    for place, expert in zip(tau, experts, strict=True):
        place.copy_(expert).sub_(base)
    return tau


def _fits(key: str, result: Tensor, kind: torch.dtype) -> Tensor:
    if not _finite(result):
        raise MergeError(
            f"tensor '{key}' of the merge has values that {kind} cannot hold; make the update smaller, or "
            "convert the base and the experts to a wider dtype."
        )
    return result


def _ask(
    key: str,
    method: Method,
    inputs: Inputs,
    tau: Tensor,
    norms: list[float],
    at: Tensor | None,
    base_norm: float,
    column: str | None = None,
) -> tuple[Tensor, Mapping[str, object]]:
    """The method's update of one layer, shape (out, in), and what is known of it."""
    matrices = tau.flatten(2) if tau.ndim > 3 else tau
    facts = _facts(matrices, norms)
    rounding = inputs.rounding(key) * base_norm
    layer = Layer(key, inputs.names, None if at is None else at.to(tau.device, copy=True), base_norm, rounding)
    version = matrices._version
    note = f"in method '{method.name}', tensor '{key}', task vectors of shape {tuple(matrices.shape)}"
    with _noted(note), no_data(f"merge(…, method='{method.name}')"), _made_on(tau.device):
        given = call(method, matrices, layer)
    update = given.matrix if isinstance(given, Update) else given
    said = facts_of(given, method.name, key) if isinstance(given, Update) else {}
    problem = _no_update(update, matrices[0])
    if problem:
        raise MergeError(
            f"method '{method.name}' returned {problem} for tensor '{key}'; it must return a finite tensor of "
            f"shape {tuple(matrices[0].shape)} on {tau.device}, the merged update."
        )
    if matrices._version != version:
        # The method wrote into its argument, and may have returned a part of it: what is compared is read again.
        update, matrices = update.clone(), inputs.task_vectors(key, column)
    return update, {**facts, "gap_left": _left(matrices, update, norms), **said}


@contextmanager
def _noted(note: str) -> Iterator[None]:
    """An error raised inside says where it happened, below its own words (from Python 3.11 on)."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):
            error.add_note(note)
        raise


def _made_on(device: torch.device) -> AbstractContextManager[object]:
    """Where a default device is set, tensors made without naming one are made on this one instead."""
    return device if torch.get_default_device().type not in ("cpu", device.type) else nullcontext()


_PART = 1 << 20
"""How many numbers are converted to float64 at once: a whole layer of them would be two more layers in memory."""


def _parts(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same stretch of several matrices (row, entry), a stretch at a time."""
    step = max(1, _PART // sum(one.shape[0] for one in matrices))
    for start in range(0, matrices[0].shape[1], step):
        yield tuple(wide(one[:, start : start + step]) for one in matrices)


def _facts(tau: Tensor, norms: list[float]) -> dict[str, object]:
    """What is known of a layer's task vectors before any method is asked: lengths, and how far they agree."""
    inner = torch.zeros(len(norms), len(norms), dtype=torch.float64, device="cpu")
    for (part,) in _parts(tau.flatten(1)):
        inner += (part @ part.T).to(inner)
    cosines = [
        float(inner[i, j]) / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0
        for i in range(len(norms))
        for j in range(i)
    ]
    facts: dict[str, object] = {"task_norms": tuple(norms)}
    if cosines:
        facts.update(mean_cosine=sum(cosines) / len(cosines), least_cosine=min(cosines))
    return {**facts, "gap_left_average": _shares(inner.mean(dim=1), norms)}


def _left(tau: Tensor, update: Tensor, norms: list[float]) -> tuple[float, ...]:
    """The first-order estimate of each task's gap, as a share of the base's own."""
    inner = torch.zeros(len(norms), dtype=torch.float64, device="cpu")
    for part, moved in _parts(tau.flatten(1), update.reshape(1, -1)):
        inner += (part @ moved[0]).to(inner)
    return _shares(inner, norms)


def _shares(inner: Tensor, norms: list[float]) -> tuple[float, ...]:
    """−⟨τⱼ, M − τⱼ⟩ / ‖τⱼ‖² from ⟨τⱼ, M⟩.

    1 at the base (M = 0), 0 at the expert, negative beyond it; 0 where τⱼ is zero.
    """
    return tuple(1 - float(one) / size**2 if size else 0.0 for one, size in zip(inner, norms, strict=True))


def _finite(tensor: Tensor) -> bool:
    """Whether no value is NaN or infinite. `isfinite` would make several copies of the tensor."""
    return all(bool(torch.isfinite(part).all()) for part in tensor.reshape(-1).split(_PART))


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
    return "" if _finite(update) else "NaN or infinity"
