"""What merging costs: seconds and memory by method, size of the layer, number of tasks and of layers.

    python benchmarks/cost.py run      # on a machine that does nothing else; stop and go on as you like
    python benchmarks/cost.py report   # writes cost.md and cost.png from cost.json

Every method is timed by turns with the loop that the paper's public code runs, 400 steps of Adam and the decompositions
before them, on the same task vectors, so that a ratio is of the same minute. Memory is what a process of its own grew
by.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from compare import METHODS
from torch import Tensor

from apgd_teach.figures.style import figure, look, png, styled
from apgd_teach.files import write_atomically
from apgd_teach.merging import Layer, merge
from apgd_teach.merging.method import call
from apgd_teach.tables import Table
from apgd_teach.trials import measured

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "cost.json"))
LOOP = "400 steps of Adam"
REPETITIONS = 3
# glibc keeps freed memory for the next who asks, and what the task vectors were made from would hide the merge's: with
# this limit fixed, every tensor is of pages of its own, given back when it goes.
GIVEN_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536"}
layers = SimpleNamespace(**runpy.run_path(str(HERE.parent / "tests/merging/benchmark_layers.py")))


@dataclass(frozen=True)
class Case:
    """What is merged.

    Attributes:
        tasks, out, columns: τ has the shape (tasks, out, columns) in each layer.
        depth: how many such layers; of one the method is called by hand, of more a network is merged.
    """

    tasks: int
    out: int
    columns: int
    depth: int = 1

    @property
    def name(self) -> str:
        """As it stands in tables and in the file."""
        deep = f", {self.depth} layers" if self.depth > 1 else ""
        return f"{self.tasks} tasks, {self.out} × {self.columns}{deep}"

    @property
    def megabytes(self) -> float:
        """One layer in float32."""
        return 4 * self.out * self.columns / 1e6


WIDTHS = [Case(8, size, size) for size in (128, 256, 512, 1024)]
SHAPES = [Case(8, 1024, 256), Case(8, 256, 1024)]
TASKS = [Case(tasks, 512, 512) for tasks in (2, 4, 8, 16)]
DEPTHS = [Case(8, 256, 256, depth) for depth in (2, 4, 8)]
CASES = list(dict.fromkeys([*WIDTHS, *SHAPES, *TASKS, *DEPTHS]))
QUICK = [Case(2, 32, 24), Case(2, 24, 32, 2)]


def task_vectors(case: Case, seed: int = 0) -> Tensor:
    """τ, shape (task, out, in), as `tests/merging/benchmark_layers.py` makes them."""
    shared = layers.shared_directions(case.out, case.columns, seed)
    made = [layers.make_task_vector(shared, case.out, case.columns, f"{seed}/{task}") for task in range(case.tasks)]
    return torch.stack(made)


def jobs(case: Case) -> dict[str, Callable[[], object]]:
    """By method, and for the loop, what to call."""
    taus = [task_vectors(case, seed) for seed in range(case.depth)]

    def loop() -> None:
        for tau in taus:
            layers.adam(tau, layers.literal_basis(tau))

    if case.depth == 1:
        layer = Layer("w", tuple(f"task {task}" for task in range(case.tasks)), base_norm=10.0)
        calls = {name: (lambda method=method: call(method, taus[0], layer)) for name, method in METHODS.items()}
        return {**calls, LOOP: loop}
    base = {f"{place}.weight": torch.zeros(case.out, case.columns) + 0.02 for place in range(case.depth)}
    experts = {
        f"task {task}": {name: one + taus[place][task] for place, (name, one) in enumerate(base.items())}
        for task in range(case.tasks)
    }
    return {
        **{name: (lambda method=method: merge(base, experts, method)) for name, method in METHODS.items()},
        LOOP: loop,
    }


def timed(case: Case) -> dict[str, list[float]]:
    """Seconds of every method and of the loop, turn by turn."""
    calls = jobs(case)
    for make in calls.values():
        if make is not calls[LOOP]:
            make()  # warms up
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(REPETITIONS):
        for name, make in calls.items():
            begun = time.perf_counter()
            make()
            found[name].append(time.perf_counter() - begun)
    return found


def memory(case: Case, name: str) -> float:
    """Megabytes by which a process of its own grows while it merges; the task vectors are there before."""
    code = f"import cost; print(cost.grown(cost.Case{(case.tasks, case.out, case.columns, case.depth)}, {name!r}))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=HERE,
        env={**os.environ, **GIVEN_BACK},
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stdout)


def grown(case: Case, name: str) -> float:
    """What `memory` asks the other process for."""
    calls = jobs(case)
    return measured(calls[name])[1].megabytes


def load() -> dict:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {}


def run(cases: Iterable[Case]) -> None:
    """What the file does not have yet, one case at a time."""
    for case in cases:
        record = load()
        if case.name in record.get("cases", {}):
            continue
        seconds = timed(case)
        cell = {"seconds": seconds, "megabytes": {name: memory(case, name) for name in (*METHODS, LOOP)}}
        record.setdefault("cases", {})[case.name] = cell
        machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
        record["conditions"] = f"{machine}, PyTorch {torch.__version__}"
        write_atomically(RESULTS, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
        print(case.name, flush=True)


# The report


def ratio(cell: Mapping[str, Mapping[str, list[float]]], name: str) -> float:
    """How many times as fast as the loop: the median over the turns, each against the loop of its own turn."""
    pairs = zip(cell["seconds"][LOOP], cell["seconds"][name], strict=True)
    return median(loop / one for loop, one in pairs)


def growth(cells: Mapping[str, dict], first: Case, last: Case, name: str, size: Callable[[Case], int]) -> float:
    """k where the seconds grow like sizeᵏ, between two cases."""
    seconds = [median(cells[case.name]["seconds"][name]) for case in (first, last)]
    return math.log(seconds[1] / seconds[0]) / math.log(size(last) / size(first))


def tables(record: Mapping, cases: list[Case]) -> list[Table]:
    """Seconds, how many times as fast as the loop, and memory."""
    cells = {name: cell for name, cell in record["cases"].items() if name in {case.name for case in cases}}
    known = [case for case in cases if case.name in cells]
    names = [*METHODS, LOOP]
    heads = ("method", *(case.name for case in known))
    conditions = record["conditions"]
    return [
        Table(
            heads,
            [(name, *(f"{median(cells[case.name]['seconds'][name]):.3g}" for case in known)) for name in names],
            caption=f"Seconds, the median of {REPETITIONS} turns",
            note=conditions,
        ),
        Table(
            heads,
            [(name, *(f"{ratio(cells[case.name], name):.3g}" for case in known)) for name in METHODS],
            caption=f"How many times as fast as {LOOP} with its decompositions, by turns",
            note=conditions,
        ),
        Table(
            heads,
            [
                (name, *(f"{cells[case.name]['megabytes'][name] / case.megabytes:.1f}" for case in known))
                for name in names
            ],
            caption="Memory: by how many layers in float32 a process grew, beside the task vectors",
            note="Looked at every five milliseconds: what is shorter is not seen. Small layers show the libraries.",
        ),
    ]


def report() -> None:
    """The page and the picture, from the file alone."""
    record = load()
    if not record.get("cases"):
        raise SystemExit(f"{RESULTS.name} has no results yet; run `python benchmarks/cost.py run` first.")
    cells = record["cases"]
    parts = ["# What merging costs", "Generated by `python benchmarks/cost.py report`; do not edit."]
    titles = {"Width": WIDTHS, "Shape": SHAPES, "Number of tasks": TASKS, "Number of layers": DEPTHS}
    for title, cases in titles.items():
        if any(case.name in cells for case in cases):
            parts += [f"## {title}", *(table.to_markdown() for table in tables(record, cases))]
    if all(case.name in cells for case in (*WIDTHS[-2:], TASKS[0], TASKS[-1])):
        rows = [
            (
                name,
                f"{growth(cells, *WIDTHS[-2:], name, lambda case: case.out):.1f}",
                f"{growth(cells, TASKS[0], TASKS[-1], name, lambda case: case.tasks):.1f}",
            )
            for name in (*METHODS, LOOP)
        ]
        parts += [
            "## Growth",
            Table(
                (
                    "method",
                    f"width, {WIDTHS[-2].out} to {WIDTHS[-1].out}",
                    f"tasks, {TASKS[0].tasks} to {TASKS[-1].tasks}",
                ),
                rows,
                caption="k where the seconds grow like the width, or the number of tasks, to the power k",
            ).to_markdown(),
            "![Seconds by width of a layer and by number of tasks](cost.png)",
        ]
        write_atomically(RESULTS.with_suffix(".png"), draw(cells))
    write_atomically(RESULTS.with_suffix(".md"), "\n\n".join(parts).encode() + b"\n")


def draw(cells: Mapping[str, dict]) -> bytes:
    """Seconds by width and by number of tasks, as PNG."""
    shown = ("average", "TIES", "TSV-M", "Iso-C", "WUDI", "apgd", LOOP)
    panels: tuple[tuple[list[Case], Callable[[Case], int], str], ...] = (
        (WIDTHS, lambda case: case.out, "width of a square layer"),
        (TASKS, lambda case: case.tasks, "number of tasks"),
    )
    with styled():
        picture, axes = figure(columns=2)
        for axis, (cases, size, label) in zip(axes, panels, strict=True):
            sizes = [size(case) for case in cases]
            for place, name in enumerate(shown):
                seconds = [median(cells[case.name]["seconds"][name]) for case in cases]
                axis.plot(sizes, seconds, label=name, **look(place))
            axis.set(xscale="log", yscale="log", xlabel=label, ylabel="seconds", title=f"Seconds by {label}")
            axis.set_xticks(sizes, [str(one) for one in sizes])
            axis.minorticks_off()
        picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return png(picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measure what is missing")
    one.add_argument("--quick", action="store_true", help="two small cases, for a look")
    commands.add_parser("report", help="write the page")
    given = parser.parse_args()
    if given.command == "run":
        run(QUICK if given.quick else CASES)
    else:
        report()


if __name__ == "__main__":
    main()
