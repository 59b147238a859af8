"""Merging from files to files: one layer in memory at a time, and never half a file on the disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from apgd_teach.devices import pick_device
from apgd_teach.errors import MergeError
from apgd_teach.merging.adapters import Adapted, is_adapter, open_expert
from apgd_teach.merging.audit import Audit
from apgd_teach.merging.checkpoint import InFiles, Spec, open_checkpoint
from apgd_teach.merging.engine import Inputs, Spread, passes, run
from apgd_teach.merging.method import Method
from apgd_teach.merging.output import Target, Writer, contents_of, target_of
from apgd_teach.merging.policy import Decision
from apgd_teach.merging.preflight import Preflight, Values, preflight_headers
from apgd_teach.merging.registry import pick
from apgd_teach.progress import bar

__all__ = ["Engine", "Plan", "Remote", "merge_files", "plan_files", "preflight_files"]


@dataclasses.dataclass(frozen=True)
class Remote:
    """What the check of values needs where layers are computed elsewhere.

    Attributes:
        headers: of "base" and of every expert, by name.
        derived: experts whose tensors are made from the base's.
        absorb: takes what was seen there.
    """

    headers: Mapping[str, Mapping[str, Spec]]
    derived: frozenset[str]
    absorb: Callable[[Values], None]


Engine = Callable[[Remote], Spread]
"""Makes, for one merge, who computes its layers."""

_PRECISIONS = ("float32", "bfloat16", "float16", "float64")


def merge_files(
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str],
    method: str | Method = "average",
    *,
    policy: Mapping[str, str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    engine: Engine | None = None,
    progress: bool = True,
    **settings: object,
) -> Audit:
    """Merge checkpoints on disk into a new one, with one layer in memory at a time.

    The tensors are those that `merge` would make of the loaded state dicts, to the bit, whatever the number of
    workers. The output appears when it is whole: until then, and after any error or Ctrl-C, what was there before is
    untouched and nothing else is left behind.

    Memory beyond the imports: at most T + 5 layers (the largest layer as float32) for every worker, and 0.3 GB in all.
    Measured with one square layer in bfloat16, T = 8, two threads, in layers: 2,600², where the bound is 24, 18 to 19
    for every method that solves or decomposes; 4,096², where it is 17.5, 16 to 17. That is what is held. On Linux the C
    library keeps pieces of up to 32 MB that were given back, and with layers just below that size the peak was up to 37
    layers, another number at each run: MALLOC_MMAP_THRESHOLD_=4000000 in the environment ends that, for a tenth more
    time.

    Args:
        base: θ₀: a `.safetensors` file, a `….safetensors.index.json`, or a folder that holds one of the two.
        experts: paths of the same kinds, or of LoRA adapters as PEFT saves them (a folder with an
            adapter_config.json), by name; their order does not matter.
        out: a name that ends in .safetensors (in any case): one file, in place of any that is there, whose rights it
            keeps. Else a new or empty folder, in which the base's layout is repeated: the same names of files and the
            same index. A folder with something in it is refused, since it cannot be replaced in one step and would mix
            two models. Whatever else a model's folder holds (its configuration, a tokenizer) is yours to copy.
        method: a name in `METHODS`, or an instance of a method of your own.
        policy: patterns of tensor names that overrule the shapes', {"head.*": "keep"}; see `policy.decide`.
        dtype: of the floating-point tensors that are written: "float32", "bfloat16", "float16", "float64", or the
            same of `torch`; None: each as the base has it. Half precision is computed in float32 in any case.
        device: where to compute, "auto", "cpu", "cuda", "mps"; None: on the CPU.
        workers: layers in work at once, each with its own memory; None: one. PyTorch's own threads work within a
            layer; more workers help where a method waits for what PyTorch does with one thread.
        engine: who computes the layers, where it is not this process: `dask_engine.OverDask`.
        progress: whether to show a bar, one tick per tensor and pass.
        settings: the method's settings, when it is named.

    Returns:
        What was done to each tensor, of which files, and into which; `inputs` holds each checkpoint's
        `InFiles.digest`, and `output` the merge's.

    Raises:
        MergeError: as `merge`; or a file is missing, damaged, of another format or changed meanwhile; or the output
            is one of the inputs, cannot be written, or does not fit on the disk.
        DataAccessError: the method asked for data.

    Source: (1), (2) in docs/equations.md. Lesson: 10.
    """
    chosen = pick(method, settings)
    kind = _precision(dtype)
    threads = _count(workers)
    place = pick_device("cpu" if device is None else device)
    opened, sources = _opened(base, experts)
    report = _headers(opened, sources, policy, getattr(chosen, "others", "average"))
    report.raise_errors("preflight_files(base, experts).table()")
    # The engine shows values in the precision that it computes in; the headers say in which they were stored.
    stored = {"base": opened.specs, **{name: source.specs for name, source in sources.items()}}
    inputs = Inputs(opened, sources, policy, place, kind)
    derived = frozenset(name for name, source in sources.items() if source.derived)
    values = Values(inputs.names, strict=True, headers=stored, decisions=inputs.decisions(chosen), derived=derived)
    inputs = dataclasses.replace(inputs, look=values.look)
    target = target_of(out, (opened, *sources.values()))
    ticks = passes(inputs, chosen)
    with (
        Writer(target, contents_of(opened, target, kind)) as writer,
        bar(ticks, "tensor", chosen.name, progress) as shown,
    ):
        audit = run(
            inputs,
            chosen,
            writer.write,
            workers=threads,
            spread=None if engine is None else engine(Remote(stored, derived, values.absorb)),
            tick=shown.update,
            findings=lambda: (*report.warnings, *values.findings()),
        )
        writer.publish()
    names = {"base": opened, **{name: sources[name] for name in inputs.names}}
    return dataclasses.replace(
        audit,
        files={name: source.shown for name, source in names.items()},
        output=writer.output,
        given_policy=tuple((policy or {}).items()),
        device=str(place),
    )


def preflight_files(
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    policy: Mapping[str, str] | None = None,
) -> Preflight:
    """What the headers of checkpoints on disk say against merging them; no tensor is read.

    Args:
        base, experts, policy: as `merge_files` takes them.

    Returns:
        The report. What only values show (NaN, another base, twins) `merge_files` finds on its way.

    Raises:
        MergeError: a file cannot be opened as a checkpoint.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    return _headers(*_opened(base, experts), policy, "average")


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a merge of files would do and need, from their headers alone.

    Attributes:
        preflight: what speaks against it.
        inputs: the base and the experts, by name; headers alone.
        decisions: by tensor, what would happen to it; none where the check has errors.
        largest_mb: the largest layer that is merged, in float32, in units of 10⁶ bytes.
        memory_mb: what `merge_files` may hold beside the imports, with one worker.
        output_mb: what would be written.
    """

    preflight: Preflight
    inputs: Mapping[str, InFiles | Adapted]
    decisions: Mapping[str, Decision] = dataclasses.field(default_factory=dict)
    largest_mb: float = 0.0
    memory_mb: float = 0.0
    output_mb: float = 0.0


def plan_files(
    base: str | os.PathLike[str],
    experts: Mapping[str, str | os.PathLike[str]],
    out: str | os.PathLike[str] | None = None,
    method: str | Method = "average",
    *,
    policy: Mapping[str, str] | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    workers: int | None = None,
    **settings: object,
) -> Plan:
    """Everything that `merge_files` looks at before it computes; no tensor is read and nothing is written.

    Args:
        base, experts, method, policy, dtype, device, workers, settings: as `merge_files` takes them.
        out: where the merge would go; None: it is not looked at.

    Raises:
        ApgdTeachError: a file cannot be opened as a checkpoint, or the method, its settings, the dtype, the device, the
            workers or `out` cannot be. What the pre-flight check finds is in the plan.

    Source: tensors in docs/equations.md. Lesson: 09.
    """
    chosen = pick(method, settings)
    kind = _precision(dtype)
    _count(workers)
    pick_device("cpu" if device is None else device)
    opened, sources = _opened(base, experts)
    others = getattr(chosen, "others", "average")
    report = _headers(opened, sources, policy, others)
    named = {"base": opened, **{name: sources[name] for name in sorted(sources)}}
    target = None if out is None else target_of(out, (opened, *sources.values()))
    if report.errors:
        return Plan(report, named)
    decisions = Inputs(opened, sources, policy).decisions(chosen)
    merged = [opened.specs[name].size for name, one in decisions.items() if one.action == "merge"]
    largest = 4 * max(merged, default=0) / 1e6
    # What is averaged or kept is held as task vectors as well: an embedding may be larger than every layer.
    held = 4 * max((spec.size for spec in opened.specs.values() if spec.dtype.is_floating_point), default=0) / 1e6
    place = Target(Path("merged.safetensors"), True) if target is None else target
    writer = Writer(place, contents_of(opened, place, kind))
    if target is not None:
        writer.check_room()
    return Plan(report, named, decisions, largest, (len(sources) + 5) * held + 300, writer.size / 1e6)


def _opened(
    base: str | os.PathLike[str], experts: Mapping[str, str | os.PathLike[str]]
) -> tuple[InFiles, dict[str, InFiles | Adapted]]:
    if not isinstance(experts, Mapping):
        raise MergeError(f"the experts are a {type(experts).__name__}; give a dict of paths, {{name: path}}.")
    if isinstance(base, str | os.PathLike) and is_adapter(base):
        raise MergeError(f"base: '{base}' is an adapter and no model; give the model that it was made for.")
    opened = open_checkpoint(base, "base")
    sources = {name: open_expert(path, opened, f"expert '{name}'") for name, path in experts.items()}
    return opened, sources


def _headers(
    base: InFiles, experts: Mapping[str, InFiles | Adapted], policy: Mapping[str, str] | None, others: str
) -> Preflight:
    specs = {name: expert.specs for name, expert in experts.items()}
    return preflight_headers(base.specs, specs, policy=policy, others=others)


def _precision(dtype: object) -> torch.dtype | None:
    named = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
    if dtype is None:
        return None
    if not isinstance(dtype, str | torch.dtype) or named not in _PRECISIONS:
        raise MergeError(f"{dtype!r} is no dtype to write a merge in; use one of: {', '.join(_PRECISIONS)}.")
    found: torch.dtype = getattr(torch, named)
    return found


def _count(workers: object) -> int:
    if workers is None:
        return 1
    if type(workers) is not int or workers < 1:
        raise MergeError(f"workers is {workers!r}; give a whole number, 1 or more.")
    return workers
