"""How fast the solvers are: `python tests/merging/benchmark_layers.py [--quick] [--vit FOLDER]`. No test.

Per size of a layer, T = 8, float32, all in one process and in turn:

* the loop: what the paper's public code does, 9 singular value decompositions and 400 steps of Adam, with the gradient
  written out as its formulas are (cheaper than the code's automatic differentiation);
* `row` exact: preconditioned conjugate gradients with r/6 protected, its subspace, coefficients and facts for the audit
  included;
* the solver alone: the 400 steps beside those of `row` exact, the subspace given;
* `full` exact, nothing protected and nothing flattened, and the recommended `Apgd()`.

The loop runs once between the repetitions of ours; a ratio is that of the loop to one repetition, and the median of the
ratios is shown. Task vectors have ‖τ‖ = 0.23, the size for which the published constants are made, and consist of

* directions that all tasks write into: rank r/16, one left factor for all tasks, right factors of their own, 30 % of
  the energy;
* directions of their own: rank r/2, singular values about (k + 1)^−0.7, 50 %;
* noise in all directions, 20 %.

With `--vit`, nine files of the size of ViT-B/32 are made in FOLDER (3.5 GB, kept, the same each time) and merged file
to file by `Apgd()`, in a process of its own whose peak memory is read; its phases come from cProfile.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from apgd_teach.merging import Apgd, merge_files, surrogate
from apgd_teach.merging.coefficients import task_aware
from apgd_teach.merging.exact import minimise
from apgd_teach.merging.objective import objective
from apgd_teach.tables import Table

TASKS = 8
LENGTH = 0.23
ETA = 0.07
SIZES = ((768, 768), (3072, 768), (768, 3072))
QUICK = ((192, 192), (384, 192), (192, 384))


# Task vectors


def make_task_vectors(out: int, columns: int, seed: int = 0) -> Tensor:
    """τ, shape (task, out, in), as the module's text describes them."""
    shared = shared_directions(out, columns, seed)
    return torch.stack([make_task_vector(shared, out, columns, f"{seed}/{task}") for task in range(TASKS)])


def make_task_vector(shared: Tensor, out: int, columns: int, seed: str) -> Tensor:
    """One task's τ, shape (out, in), given the left factor that all share."""
    draws = _draws(seed)
    rank = max(1, min(out, columns) // 2)
    decay = torch.arange(1, rank + 1) ** -0.7
    parts = (
        (0.3, shared @ torch.randn(shared.shape[1], columns, generator=draws)),
        (0.5, torch.randn(out, rank, generator=draws) * decay @ torch.randn(rank, columns, generator=draws)),
        (0.2, torch.randn(out, columns, generator=draws)),
    )
    total = sum((energy**0.5 / torch.linalg.vector_norm(part)) * part for energy, part in parts)
    return LENGTH / torch.linalg.vector_norm(total) * total


def shared_directions(out: int, columns: int, seed: object) -> Tensor:
    """The left factor that all tasks have in common, shape (out, r // 16)."""
    return torch.randn(out, max(1, min(out, columns) // 16), generator=_draws(f"{seed}/shared"))


def _draws(seed: str) -> torch.Generator:
    # Python's own hash of a text changes from run to run.
    return torch.Generator().manual_seed(int.from_bytes(seed.encode(), "little") % (2**61 - 1))


# The loop, and what stands in its place


def literal_basis(task_vectors: Tensor) -> Tensor:
    """The shared subspace by singular value decompositions, one of each task and one of them all, as published."""
    tasks, out, columns = task_vectors.shape
    size = min(out, columns)
    firsts = [torch.linalg.svd(tau, full_matrices=False)[0][:, : size // tasks] for tau in task_vectors]
    return torch.linalg.svd(torch.cat(firsts, dim=1), full_matrices=False)[0][:, : size // 6]


def adam(task_vectors: Tensor, basis: Tensor) -> Tensor:
    """M = Σ λᵢ(τᵢ + Δ) after 400 steps of Adam, before any trim."""
    coefficients = task_aware(task_vectors, eta=ETA)
    delta = literal_delta(task_vectors, coefficients, basis)
    return torch.einsum("t,toi->oi", coefficients, task_vectors) + coefficients.sum() * delta


def literal_delta(task_vectors: Tensor, coefficients: Tensor, basis: Tensor) -> Tensor:
    """The published loop as its formulas are written, all tasks at once; `ApgdPublished` does the same, faster."""
    together = coefficients.sum()
    start = torch.einsum("t,toi->oi", coefficients, task_vectors)
    delta, first, second = (torch.zeros_like(start) for _ in range(3))
    for step in range(1, 401):
        update = start + together * delta
        residual = torch.einsum("toi,toi->to", task_vectors, update - task_vectors)
        gradient = 2 * together * torch.einsum("to,toi->oi", residual, task_vectors)
        gradient = gradient - basis @ (basis.mT @ gradient)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        delta = delta - 1e-4 * first / (1 - 0.9**step) / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
    return delta


def direct(task_vectors: Tensor, basis: Tensor) -> Tensor:
    """The exact solution of the same problem, from the same start."""
    start = torch.einsum("t,toi->oi", task_aware(task_vectors, eta=ETA), task_vectors)
    return minimise(objective(task_vectors, "row"), start, basis)[0]


def share_left(task_vectors: Tensor, update: Tensor) -> float:
    """The `row` surrogate at M, as a share of its value at the start S."""
    start = torch.einsum("t,toi->oi", task_aware(task_vectors, eta=ETA), task_vectors)
    return float(surrogate(task_vectors, update, "row").sum() / surrogate(task_vectors, start, "row").sum())


def timed(function: Callable[[], object]) -> tuple[float, object]:
    """Seconds, and what came out."""
    begun = time.perf_counter()
    result = function()
    return time.perf_counter() - begun, result


def measure(out: int, columns: int, repetitions: int) -> dict[str, object]:
    """Everything on one layer: seconds by name, ratios by name, surrogates left."""
    tau = make_task_vectors(out, columns)
    # c · median‖τ‖ = η: both begin at the same S.
    row = Apgd(granularity="row", protect=1 / 6, flatten=0.0, coefficient=ETA / LENGTH)
    ours: dict[str, Callable[[], object]] = {
        "row exact": lambda: row(tau).matrix,
        "solver alone": lambda: direct(tau, basis),
        "full exact": lambda: Apgd(granularity="full", protect=0.0, flatten=0.0)(tau).matrix,
        "Apgd()": lambda: Apgd()(tau).matrix,
    }
    basis = row.solve(tau).basis  # the first call, which warms up
    times: dict[str, list[float]] = {name: [] for name in ours}
    left = {}

    def repeat(count: int) -> None:
        for _ in range(count):
            for name, function in ours.items():
                seconds, update = timed(function)
                times[name].append(seconds)
                if name in ("row exact", "solver alone"):
                    left[name] = share_left(tau, update)

    repeat(repetitions - repetitions // 2)
    svd, published = timed(lambda: literal_basis(tau))
    steps, update = timed(lambda: adam(tau, published))
    left["loop"] = share_left(tau, update)
    repeat(repetitions // 2)
    loops = {name: steps if name == "solver alone" else svd + steps for name in ours}
    return {
        "size": f"{out} × {columns}",
        "svd": svd,
        "steps": steps,
        "seconds": {name: statistics.median(one) for name, one in times.items()},
        "ratio": {name: statistics.median(loops[name] / second for second in one) for name, one in times.items()},
        "least": {name: loops[name] / max(one) for name, one in times.items()},
        "left": left,
    }


def layer_tables(results: list[dict], conditions: str) -> list[Table]:
    """Times, and what was reached."""
    names = list(results[0]["seconds"])
    return [
        Table(
            ("layer", "9 SVDs", "400 steps", *names),
            [(one["size"], one["svd"], one["steps"], *one["seconds"].values()) for one in results],
            caption="Seconds, medians of the repetitions",
            note=conditions,
            digits=2,
        ),
        Table(
            ("layer", *names, "worst of row exact"),
            [(one["size"], *one["ratio"].values(), one["least"]["row exact"]) for one in results],
            caption="How many times as fast as the loop (solver alone: as the 400 steps), median of the ratios",
        ),
        Table(
            ("layer", "loop", "row exact", "solver alone"),
            [
                (one["size"], *(f"{one['left'][name]:.1e}" for name in ("loop", "row exact", "solver alone")))
                for one in results
            ],
            caption="The row surrogate reached, as a share of its start",
        ),
    ]


# Files of the size of ViT-B/32


def vit_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the image encoder of CLIP ViT-B/32: 87 million numbers."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.class_embedding": (768,),
        "embeddings.patch_embedding.weight": (768, 3, 32, 32),
        "embeddings.position_embedding.weight": (50, 768),
    }
    linear = {f"self_attn.{one}_proj": (768, 768) for one in "qkv"}
    linear |= {"self_attn.out_proj": (768, 768), "mlp.fc1": (3072, 768), "mlp.fc2": (768, 3072)}
    norms = ["pre_layernorm", "post_layernorm"]
    for layer in range(12):
        norms += [f"layers.{layer}.layer_norm1", f"layers.{layer}.layer_norm2"]
        for name, shape in linear.items():
            shapes |= {f"layers.{layer}.{name}.weight": shape, f"layers.{layer}.{name}.bias": shape[:1]}
    return shapes | {f"{name}.{leaf}": (768,) for name in norms for leaf in ("weight", "bias")}


def make_vit(folder: Path) -> None:
    """The base and eight experts of it, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "base.safetensors", *(folder / f"expert_{task}.safetensors" for task in range(TASKS))]
    if all(path.exists() for path in paths):
        return
    shapes = vit_shapes()
    base = {name: 0.02 * torch.randn(shape, generator=_draws(name)) for name, shape in shapes.items()}
    for task, path in enumerate(paths, start=-1):
        if path.exists():
            continue
        state = base
        if task >= 0:
            state = {name: tensor + _moved(name, tensor.shape, task) for name, tensor in base.items()}
        partial = path.with_suffix(".partial")
        save_file(state, partial)
        partial.rename(path)


def _moved(name: str, shape: torch.Size, task: int) -> Tensor:
    if len(shape) < 2:
        return 1e-3 * torch.randn(shape, generator=_draws(f"{name}/{task}"))
    out, columns = shape[0], shape[1:].numel()
    return make_task_vector(shared_directions(out, columns, name), out, columns, f"{name}/{task}").reshape(shape)


PHASES = {
    "reading": ("checkpoint.py", "read"),
    "looking for NaN, other bases": ("preflight.py", "look"),
    "facts of the merge": ("engine.py", ("_facts", "_left")),
    "subspace": ("subspace.py", "shared_basis"),
    "G and B": ("objective.py", "_full"),
    "solving": ("exact.py", ("full_solution", "minimise")),
    "flattening": ("apgd.py", "reshaped"),
    "facts of the method": ("apgd.py", "_facts"),
    "writing": ("stream.py", ("write", "publish")),
    "hashing": ("checkpoint.py", "digest"),
}


def merge_vit(folder: Path, workers: int) -> dict[str, object]:
    """Merge the files, in this process: seconds, peak memory, seconds per phase."""
    experts = {f"expert_{task}": folder / f"expert_{task}.safetensors" for task in range(TASKS)}
    before = _peak()
    profile = cProfile.Profile()
    begun = time.perf_counter()
    profile.enable()
    merge_files(
        folder / "base.safetensors",
        experts,
        folder / "merged.safetensors",
        "apgd",
        policy={"*position_embedding*": "average"},
        workers=workers,
        progress=False,
    )
    profile.disable()
    seconds = time.perf_counter() - begun
    phases = dict.fromkeys(PHASES, 0.0)
    for (file, _, name), (*_, inside, _) in pstats.Stats(profile).stats.items():
        for phase, (where, names) in PHASES.items():
            if Path(file).name == where and name in ((names,) if isinstance(names, str) else names):
                phases[phase] += inside
    phases["the rest"] = seconds - sum(phases.values())
    return {"seconds": seconds, "imports_gb": before, "peak_gb": _peak(), "phases": phases if workers == 1 else {}}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def vit_table(result: dict, conditions: str) -> Table:
    """Time by phase."""
    seconds = result["seconds"]
    return Table(
        ("phase", "seconds", "share %"),
        [("all", seconds, 100.0), *((name, one, 100 * one / seconds) for name, one in result["phases"].items())],
        caption="Eight experts of ViT-B/32 size, file to file, Apgd()",
        note=f"peak memory {result['peak_gb']:.2f} GB, of which {result['imports_gb']:.2f} GB are the imports; "
        + conditions,
        bold=(0,),
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small layers: is everything in order?")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--vit", type=Path, help="merge files of ViT-B/32 size, made in this folder, and nothing else")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=5, help="of ours; the loop runs once")
    parser.add_argument("--workers", type=int, default=1, help="layers in work at once, with --vit")
    parser.add_argument("--child", choices=("make", "merge"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.child:
        print(json.dumps(make_vit(given.vit) if given.child == "make" else merge_vit(given.vit, given.workers)))
        return
    load = os.getloadavg()[0]
    conditions = f"{given.threads} threads, {os.cpu_count()} cores, PyTorch {torch.__version__}, load before {load:.1f}"
    found: dict[str, object] = {"conditions": conditions}
    if given.vit is None:
        sizes = QUICK if given.quick else SIZES
        found["layers"] = results = [measure(*size, given.repetitions) for size in sizes]
        tables = layer_tables(results, f"{conditions}; {given.repetitions} repetitions, the loop once")
    else:
        options = ["--vit", given.vit, "--threads", str(given.threads), "--workers", str(given.workers)]
        # A process's peak begins with what its parent held: this one must not make the files.
        for step in ("make", "merge"):
            command = [sys.executable, __file__, "--child", step, *options]
            child = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found["vit"] = result = json.loads(child.stdout)
        tables = [vit_table(result, f"{conditions}; workers {given.workers}")]
    print("\n\n".join(map(str, tables)))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
