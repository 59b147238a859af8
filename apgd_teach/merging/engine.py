"""The merge itself, tensor by tensor, whether the tensors lie in memory or in files."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.errors import MergeError
from apgd_teach.guard import no_data
from apgd_teach.merging.audit import Audit, TensorRow
from apgd_teach.merging.checkpoint import Checkpoint
from apgd_teach.merging.method import Layer, Method, Update, call
from apgd_teach.merging.policy import Decision, decide
from apgd_teach.merging.preflight import Finding
from apgd_teach.merging.statedict import as_matrix, difference, norm
from apgd_teach.merging.threshold import thresholds

__all__ = ["Inputs", "run"]


@dataclass(frozen=True)
class Inputs:
    """A base and experts that have passed the pre-flight check, and how to treat them.

    Attributes:
        base, experts: where their tensors come from.
        policy: patterns that overrule the policy of shapes.
        device: where to compute; None: where the tensors are.
        dtype: of the result's floating-point tensors; None: each as the base has it.
        look: called with a tensor's name, the base's tensor and the experts' (in the order of their sorted names)
            before it is merged; raises what must stop the merge.
    """

    base: Checkpoint
    experts: Mapping[str, Checkpoint]
    policy: Mapping[str, str] | None = None
    device: torch.device | None = None
    dtype: torch.dtype | None = None
    look: Callable[[str, Tensor, list[Tensor]], None] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The experts in the order in which they are added up: a sum of floats depends on it, so names decide."""
        return tuple(sorted(self.experts))

    def task_vectors(self, key: str) -> Tensor:
        """τ of one tensor as matrices, shape (task, out, in)."""
        base = self._place(self.base.read(key))
        return torch.stack(
            [as_matrix(difference(base, self._place(self.experts[name].read(key)))) for name in self.names]
        )

    def tensors(self, key: str) -> tuple[Tensor, list[Tensor]]:
        """The base's tensor and the experts', where the computation is done."""
        return self._place(self.base.read(key)), [self._place(self.experts[name].read(key)) for name in self.names]

    def _place(self, tensor: Tensor) -> Tensor:
        return tensor if self.device is None else tensor.to(self.device)


def run(
    inputs: Inputs,
    method: Method,
    sink: Callable[[str, Tensor], None],
    *,
    workers: int = 1,
    tick: Callable[[], object] = int,
    findings: Callable[[], tuple[Finding, ...]] = tuple,
) -> Audit:
    """Merge, handing each finished tensor to `sink` and forgetting it.

    Args:
        inputs: what to merge.
        method: how.
        sink: takes a tensor's name and value; called from one thread at a time, not in order.
        workers: tensors in work at once.
        tick: called after each tensor of each pass.
        findings: asked for the warnings at the end, when all values have been seen.

    Raises:
        MergeError: the policy does not fit, or the method returned something that is no update.

    Source: method.md §1.
    """
    decisions = decide(inputs.base.specs, inputs.policy, getattr(method, "others", "average"))
    tied = {name: group[0] for group in inputs.base.ties for name in group[1:]}
    work = [name for name in decisions if name not in tied]
    at = _first_pass(inputs, method, [name for name in work if decisions[name].action == "merge"], tick)
    rows: dict[str, TensorRow] = {}

    def one(key: str) -> tuple[Tensor, TensorRow]:
        with torch.no_grad():
            return _merge_tensor(key, inputs, method, decisions[key], at)

    followers: dict[str, list[str]] = {}
    for name, first in tied.items():
        followers.setdefault(first, []).append(name)

    def finish(key: str, tensor: Tensor, row: TensorRow) -> None:
        for name in (key, *followers.get(key, ())):
            # Values of its own: what shares memory cannot be stored as safetensors.
            sink(name, tensor if name == key else tensor.clone())
            rows[name] = row if name == key else dataclasses.replace(row, name=name, reason=f"tied to '{key}'")
            tick()

    if workers == 1:
        for key in work:
            finish(key, *one(key))
    else:
        _in_threads(work, one, finish, workers)
    return Audit(
        method=method.name,
        settings=_settings(method),
        experts=inputs.names,
        data_used="none",
        inputs={"base": inputs.base.digest(), **{name: inputs.experts[name].digest() for name in inputs.names}},
        versions={"apgd_teach": __version__, "torch": str(torch.__version__)},
        rows=tuple(rows[name] for name in decisions),
        warnings=findings(),
    )


def _in_threads(
    work: list[str],
    one: Callable[[str], tuple[Tensor, TensorRow]],
    finish: Callable[[str, Tensor, TensorRow], None],
    workers: int,
) -> None:
    """As many tensors at once as there are workers, and no more waiting to be written: memory is bounded by that."""
    with ThreadPoolExecutor(workers) as threads:
        running: dict[Future[tuple[Tensor, TensorRow]], str] = {}
        left = list(reversed(work))
        try:
            while left or running:
                while left and len(running) < workers:
                    key = left.pop()
                    running[threads.submit(one, key)] = key
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    finish(running.pop(future), *future.result())
        finally:
            for future in running:
                future.cancel()


def _first_pass(inputs: Inputs, method: Method, layers: list[str], tick: Callable[[], object]) -> Tensor | None:
    share = getattr(method, "trim", None)
    if share is None or share >= 1:
        return None
    with torch.no_grad():
        return thresholds(layers, inputs.task_vectors, share, len(inputs.names), tick)


def _settings(method: Method) -> dict[str, object]:
    if dataclasses.is_dataclass(method) and not isinstance(method, type):
        return dataclasses.asdict(method)
    return {}


def _merge_tensor(
    key: str, inputs: Inputs, method: Method, decision: Decision, at: Tensor | None
) -> tuple[Tensor, TensorRow]:
    base, experts = inputs.tensors(key)
    if inputs.look is not None:
        inputs.look(key, base, experts)
    shape, size = tuple(base.shape), norm(base)
    if decision.action == "keep":
        kept = (
            base.clone() if inputs.dtype is None or not base.is_floating_point() else base.to(inputs.dtype, copy=True)
        )
        tasks = [norm(difference(base, one)) for one in experts] if base.is_floating_point() else [0.0]
        return kept, TensorRow(key, "keep", decision.reason, shape, size, sum(tasks) / len(tasks), 0.0)
    tau = torch.stack([difference(base, expert) for expert in experts])
    norms = [norm(one) for one in tau]
    facts: Mapping[str, object] = {}
    if decision.action == "merge":
        matrices = tau.flatten(2) if base.ndim > 2 else tau
        facts = _facts(matrices, norms)
        layer = Layer(key, inputs.names, None if at is None else at.to(tau.device))
        with no_data(f"merge(…, method='{method.name}')"):
            given = call(method, matrices.clone(), layer)
        update = given.matrix if isinstance(given, Update) else given
        problem = _no_update(update, as_matrix(base))
        if problem:
            raise MergeError(
                f"method '{method.name}' returned {problem} for tensor '{key}'; it must return a finite tensor of "
                f"shape {tuple(as_matrix(base).shape)} on {base.device}, the merged update."
            )
        facts = {**facts, **_left(matrices, update, norms), **(given.facts if isinstance(given, Update) else {})}
        update = update.reshape(shape)
    else:
        update = tau.mean(dim=0)
    kind = inputs.dtype or base.dtype
    result = (base.to(tau.dtype) + update).to(kind)
    if not bool(torch.isfinite(result).all()):
        raise MergeError(
            f"tensor '{key}' of the merge has values that {kind} cannot hold; make the update smaller, or "
            "convert the base and the experts to a wider dtype."
        )
    mean = sum(norms) / len(norms)
    return result, TensorRow(key, decision.action, decision.reason, shape, size, mean, norm(update), facts)


def _facts(tau: Tensor, norms: list[float]) -> dict[str, object]:
    """What is known of a layer's task vectors before any method is asked: lengths, and how far they agree."""
    flat = tau.flatten(1)
    inner = flat @ flat.T
    cosines = [
        float(inner[i, j]) / (norms[i] * norms[j]) if norms[i] and norms[j] else 0.0
        for i in range(len(norms))
        for j in range(i)
    ]
    facts: dict[str, object] = {"task_norms": tuple(norms)}
    if cosines:
        facts.update(mean_cosine=sum(cosines) / len(cosines), least_cosine=min(cosines))
    return facts


def _left(tau: Tensor, update: Tensor, norms: list[float]) -> dict[str, object]:
    """The first-order estimate of each task's gap, as a share of the base's own, for the average and for this merge.

    −⟨τⱼ, M − τⱼ⟩ / ‖τⱼ‖²: 1 at the base (M = 0), 0 at the expert, negative beyond it; 0 where τⱼ is zero.
    """
    mean = tau.mean(dim=0)
    update = update.to(tau.dtype)

    def left(matrix: Tensor) -> tuple[float, ...]:
        return tuple(
            1 - float((one * matrix).sum()) / size**2 if size else 0.0 for one, size in zip(tau, norms, strict=True)
        )

    return {"gap_left_average": left(mean), "gap_left": left(update)}


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
