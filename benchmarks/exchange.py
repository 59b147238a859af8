"""Our implementations beside other people's, on the same experts: how closely they agree.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers.txt
    python benchmarks/exchange.py run --python peers/bin/python   # stop and go on as you like
    python benchmarks/exchange.py report                          # writes peers.md from peers.json

Both sides get the same files, with weights of two axes alone (what most of that code takes). Biases are treated by us,
in both networks alike.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch
from compare import SEEDS, pools_of
from safetensors.torch import load_file, save_file

from apgd_teach.cache import Cache
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import Pool
from apgd_teach.files import write_atomically
from apgd_teach.merging import ApgdPublished, IsoC, StateDict, TaskArithmetic, Ties, TsvM, Wudi, merge
from apgd_teach.merging.method import Method
from apgd_teach.tables import Table

HERE = Path(__file__).parent
RESULTS = HERE / "peers.json"
SUITE = "8 tasks, MLP"


@dataclass(frozen=True)
class Twin:
    """One of their methods and the one of ours that should do the same.

    Attributes:
        ours: the method.
        why: where the two are known to differ; empty where nothing should.
    """

    ours: Method
    why: str = ""


TWINS = {
    "fusion-bench ties": Twin(Ties()),
    "fusion-bench tsv_m": Twin(TsvM(), "rounding, where the directions of all tasks together nearly fill a layer"),
    "fusion-bench iso_c": Twin(IsoC(), "directions in which the sum of the task vectors has nothing are made as long"),
    "fusion-bench wudi": Twin(
        Wudi(), "300 steps of Adam at the rate 1e-5 from the sum of the task vectors, not solved"
    ),
    "fusion-bench doge_ta": Twin(ApgdPublished()),
    "mergekit task_arithmetic": Twin(TaskArithmetic(0.3)),
    "mergekit ties": Twin(Ties(), "trims every tensor by itself, not all of them together"),
}


def matrices(state: StateDict) -> StateDict:
    """Weights of two axes."""
    return {name: one.contiguous() for name, one in state.items() if one.ndim == 2}


def distance(theirs: StateDict, ours: StateDict, base: StateDict) -> float:
    """‖theirs − ours‖ / ‖our update‖, all weights together."""
    apart = torch.cat([(theirs[name] - ours[name]).flatten() for name in theirs])
    moved = torch.cat([(ours[name] - base[name]).flatten() for name in theirs])
    return float(apart.norm() / moved.norm())


def measure(pool: Pool, python: Path, name: str) -> dict[str, float]:
    """One of their merges of a pool beside ours."""
    base, experts = matrices(pool.base), {task: matrices(one) for task, one in pool.experts.items()}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "experts").mkdir()
        save_file(base, folder / "base.safetensors")
        for task, one in experts.items():
            save_file(one, folder / "experts" / f"{task}.safetensors")
        done = subprocess.run([python, HERE / "peers.py", folder, name], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(f"{name} failed:\n{done.stderr[-2000:]}")
        theirs = load_file(folder / f"{name}.safetensors")
    whole = merge(pool.base, pool.experts, TWINS[name].ours).state_dict
    ours = matrices(merge(base, experts, TWINS[name].ours).state_dict)
    evaluator = Evaluator(pool)
    accuracies = [
        fmean(score.accuracy for score in evaluator.scores({**whole, **weights}).values()) for weights in (theirs, ours)
    ]
    seconds = float(done.stdout.split("seconds")[-1])
    return {
        "distance": distance(theirs, ours, base),
        "theirs": round(accuracies[0], 4),
        "ours": round(accuracies[1], 4),
        "seconds": seconds,
    }


def load() -> dict[str, dict[str, dict[str, float]]]:
    return json.loads(RESULTS.read_text())["pools"] if RESULTS.exists() else {}


def store(pools: dict[str, dict[str, dict[str, float]]], versions: dict[str, str]) -> None:
    record = {"versions": versions, "pools": pools}
    write_atomically(RESULTS, (json.dumps(record, indent=1, sort_keys=True) + "\n").encode())


def run(python: Path, seeds: tuple[int, ...], cache: Cache) -> None:
    """Every peer on every pool of the MLP; what is in the file already is not computed again."""
    asked = "import importlib.metadata as m; print(*(m.version(n) for n in ('fusion-bench', 'mergekit', 'torch')))"
    found = subprocess.run([python, "-c", asked], capture_output=True, text=True, check=True).stdout.split()
    versions = dict(zip(("fusion-bench", "mergekit", "their torch"), found, strict=True))
    versions["our torch"] = importlib.metadata.version("torch")
    for title, pool in pools_of(SUITE, seeds, cache):
        for name in TWINS:
            pools = load()
            cells = pools.setdefault(f"{title}, seed {pool.seed}", {})
            if name not in cells:
                cells[name] = measure(pool, python, name)
                store(pools, versions)
        print(title, pool.seed, flush=True)


def report() -> None:
    """The page, from the file alone."""
    record = json.loads(RESULTS.read_text())
    pools = record["pools"]
    rows = []
    for name, twin in TWINS.items():
        cells = [one[name] for one in pools.values() if name in one]
        if not cells:
            continue
        apart = [cell["distance"] for cell in cells]
        points = [cell["theirs"] - cell["ours"] for cell in cells]
        rows.append(
            (
                name,
                twin.ours.name,
                f"{min(apart):.1e} to {max(apart):.1e}",
                f"{min(points):+.2f} to {max(points):+.2f}".replace("-", "−"),
                twin.why or "nothing known",
            )
        )
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    table = Table(
        ("their method", "ours", "‖theirs − ours‖ / ‖M‖", "points of mean accuracy, theirs − ours", "known difference"),
        rows,
        caption=f"{len(pools)} pools ({'; '.join(pools)}); the least and the most over them",
        note=f"All test images of the bundled tier. Versions: {versions}.",
    )
    text = "\n\n".join(
        [
            "# Other people's code on the same experts",
            "Generated by `python benchmarks/exchange.py report`; do not edit.",
            table.to_markdown(),
        ]
    )
    write_atomically(HERE / "peers.md", text.encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measure what is missing")
    one.add_argument("--python", type=Path, required=True, help="of the environment with the other packages")
    one.add_argument("--cache", type=Path, default=None, help="where trained networks are kept")
    commands.add_parser("report", help="write the page")
    given = parser.parse_args()
    if given.command == "run":
        run(given.python, SEEDS[:1], Cache(given.cache))
    else:
        report()


if __name__ == "__main__":
    main()
