"""The comparison: every method on every suite, one network at a time.

    python benchmarks/compare.py run [--suite NAME]   # stop and go on as you like; --quick: one small pool, for a look
    python benchmarks/compare.py report               # writes compare.md from compare.json

Nothing here chooses a setting. The seeds are none that `apgd`'s settings were chosen or reported on before, and the
deep network and the colour suite were not looked at when they were chosen.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import ClassVar

from pools import OTHER_TASKS
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.data import TASKS, Source, Variant, open_colour, open_source
from apgd_teach.evaluate import Difference, Evaluator, paired
from apgd_teach.experts import Pool, make_pool
from apgd_teach.files import write_atomically
from apgd_teach.merging import (
    PAPER,
    Apgd,
    ApgdPublished,
    Average,
    Dare,
    IsoC,
    Merged,
    TaskArithmetic,
    TaskAware,
    Ties,
    TsvM,
    Wudi,
    merge,
)
from apgd_teach.merging.apgd import reshaped
from apgd_teach.merging.method import Layer, Method, Update, call
from apgd_teach.merging.objective import objective
from apgd_teach.references import adamerging, joint, regmean
from apgd_teach.results import Record, added, begun, load, save, trials_of
from apgd_teach.tables import Table
from apgd_teach.training import Recipe
from apgd_teach.trials import Trials, measured, tuned

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "compare.json"))
SEEDS = (30, 31, 32, 33, 34)
RATES = ("mild", "hot")
OPTIMIZERS = ("sgd", "adamw")

Maker = Callable[[Pool], Merged]


@dataclass(frozen=True)
class Suite:
    """Pools that differ in optimiser, regime and seed.

    Attributes:
        network: a name in `models.ENCODERS`.
        tasks: names or variants.
        optimizers: of the experts.
        base_steps: optimiser steps of the base.
        colour: of colour pictures.
    """

    network: str
    tasks: tuple[str | Variant, ...]
    optimizers: tuple[str, ...] = OPTIMIZERS
    base_steps: int = 250
    colour: bool = False


EIGHT = tuple(TASKS)
SUITES = {
    "8 tasks, ConvNet": Suite("convnet", EIGHT),
    "8 tasks, MLP": Suite("mlp", EIGHT, base_steps=500),
    "8 tasks, deep MLP": Suite("deep", EIGHT, base_steps=500),
    "4 tasks, ConvNet": Suite("convnet", EIGHT[::2], ("sgd",)),
    "12 tasks, ConvNet": Suite("convnet", (*EIGHT, *OTHER_TASKS[::2]), ("sgd",)),
    "colour, ConvNet": Suite("colour-convnet", (), ("sgd",), colour=True),
}


@dataclass(frozen=True)
class Around:
    """A method whose update is changed afterwards.

    Attributes:
        method: whose update.
    """

    method: Method

    @property
    def trim(self) -> float | None:
        """The method's own, for which the merge looks at all layers first."""
        return getattr(self.method, "trim", None)

    @property
    def biases(self) -> str:
        """As the method takes them."""
        return getattr(self.method, "biases", "average")


@dataclass(frozen=True)
class Rescaled(Around):
    """A method's update, in each layer made as long as leaves the least of the whole residual: a scale without data.

    σ = argmin Σⱼ ‖(σM − τⱼ)τⱼᵀ‖² / ‖τⱼ‖² = ⟨B, M⟩ / ⟨M G, M⟩, one rule for every method.
    """

    @property
    def name(self) -> str:
        """The method's, and that it was rescaled."""
        return f"{self.method.name}, rescaled"

    def __call__(self, task_vectors: Tensor, layer: Layer) -> Update:
        """The rescaled M of one layer, from τ (task, out, in)."""
        made = call(self.method, task_vectors, layer)
        whole = objective(task_vectors, "full")
        curved = float((made.matrix * (made.matrix @ whole.gram)).sum())
        scale = float((made.matrix * whole.target).sum()) / curved if curved > 0 else 1.0
        return Update(scale * made.matrix, {**made.facts, "scale": scale})


@dataclass(frozen=True)
class Limited(Around):
    """A method with its biases as columns, and none of its directions longer than `apgd`'s reach."""

    biases: ClassVar[str] = "column"  # type: ignore[misc]

    @property
    def name(self) -> str:
        """The method's, and that it was limited."""
        return f"{self.method.name}, limited"

    def __call__(self, task_vectors: Tensor, layer: Layer) -> Update:
        """The limited M of one layer, from τ (task, out, in)."""
        made = call(self.method, task_vectors, layer)
        matrix, share = reshaped(made.matrix, 0.0, Apgd().longest(task_vectors, layer))
        return Update(matrix, {**made.facts, "limited": share})


METHODS: dict[str, Method] = {
    "average": Average(),
    "task arithmetic": TaskArithmetic(),
    "task-aware λ": TaskAware(),
    "TIES": Ties(),
    "DARE": Dare(),
    "TSV-M": TsvM(),
    "Iso-C": IsoC(),
    "WUDI": Wudi(),
    "the paper": PAPER,
    "the published code": ApgdPublished(),
    "apgd": Apgd(),
}
"""At their data-free settings."""

PEERS = ("TIES", "TSV-M", "Iso-C", "WUDI")
RESCALED = {f"{label}, rescaled": Rescaled(METHODS[label]) for label in (*PEERS, "apgd")}
LIMITED = {f"{label}, limited": Limited(METHODS[label]) for label in PEERS}
"""What `apgd`'s two last pieces do for others."""
ABLATIONS: dict[str, Method] = {
    "apgd: biases averaged": Apgd(biases="average"),
    "apgd: no limit": Apgd(reach=None),
    "apgd: neither": Apgd(biases="average", reach=None),
    "apgd: no Δ (S alone)": Apgd(solver="descent", steps=0),
    "apgd: spectrum as it is": Apgd(flatten=0.0),
    "apgd: spectrum half flat": Apgd(flatten=0.5),
    "apgd: p = 2": Apgd(power=2.0),
    "apgd: no early stop": Apgd(filter="cutoff"),
    "apgd: r/6 protected": Apgd(protect=1 / 6),
    "apgd: r/16 protected": Apgd(protect=1 / 16),
    "apgd: soft protection": Apgd(protect="auto"),
    "apgd: 30 % kept": Apgd(trim=0.3),
    "apgd: row": Apgd(granularity="row", flatten=0.75),
    **{f"apgd: {steps} steps of descent": Apgd(solver="descent", steps=steps) for steps in (50, 400)},
    "the paper: untrimmed": replace(PAPER, trim=1.0),
    "the paper: nothing protected": replace(PAPER, protect=0.0),
}


def references(pool: Pool) -> dict[str, Maker]:
    """What data can buy."""
    grid = [TaskArithmetic(one) for one in (0.05, 0.1, 0.2, 0.3, 0.5)]
    quiet = {"progress": False}
    return {
        "task arithmetic, λ searched": partial(tuned, candidates=grid, images=500),
        "RegMean": partial(regmean, **quiet),
        "AdaMerging": partial(adamerging, **quiet),
        "joint training": partial(joint, recipe=replace(pool.recipe, steps=4 * pool.recipe.steps), **quiet),
    }


def makers(pool: Pool) -> dict[str, Maker]:
    """Every row, by label."""

    def by(method: Method) -> Maker:
        return lambda pool: merge(pool.base, pool.experts, method)

    return {
        **{label: by(one) for label, one in {**METHODS, **RESCALED, **LIMITED, **ABLATIONS}.items()},
        **references(pool),
    }


def pools_of(name: str, seeds: Iterable[int], cache: Cache, quick: bool = False) -> Iterator[tuple[str, Pool]]:
    """The pools of a suite with their names, optimiser by optimiser and regime by regime."""
    suite = SUITES[name]
    source: Source = open_colour("auto", per_class=2000) if suite.colour else open_source("bundled")
    tasks = [*source.tasks] if suite.colour else list(suite.tasks)
    for seed, optimizer, regime in itertools.product(seeds, suite.optimizers, RATES):
        recipe: str | Recipe = regime
        base: int | Recipe = 40 if quick else suite.base_steps
        if suite.colour:
            base = Recipe("adamw", 1e-3, steps=40 if quick else 600, weight_decay=0.01)
            recipe = Recipe("sgd", {"mild": 0.02, "hot": 0.05}[regime], steps=10 if quick else 120)
        pool = make_pool(
            suite.network,
            regime=recipe,
            optimizer=optimizer,
            tasks=tasks[:3] if quick else tasks,
            base_steps=base,
            expert_steps=10 if quick else 250,
            seed=seed,
            source=source,
            cache=cache,
            progress=False,
        )
        tier = f", {source.tier}" if suite.colour else ""
        yield f"{name}{tier}, {optimizer} {regime}", pool


def measure(name: str, pool: Pool, path: Path, labels: Iterable[str] | None = None) -> None:
    """Every row of one pool that the file does not have yet; the file is whole after each."""
    evaluator = Evaluator(pool)
    counts = sorted({evaluator.images(task) for task in pool.tasks})
    images = f"{pool.tier} tier, test split, {' or '.join(f'{count:,}' for count in counts)} a task"
    every = load(path)
    mine = next((one for one in every if (one.suite, one.seed) == (name, pool.seed)), None)
    if mine is None:
        mine = begun(name, pool, evaluator.scores(pool.base), evaluator.experts(), images)
        every.append(mine)
    for label, make in makers(pool).items():
        if label in mine.networks or (labels is not None and label not in labels):
            continue
        made, cost = measured(partial(make, pool))
        grown = added(mine, label, made, evaluator.scores(made.state_dict), cost)
        every[every.index(mine)] = mine = grown
        save(path, every)
    print(f"{name}, seed {pool.seed}: {len(mine.networks)} networks", flush=True)


# The report


def finished(records: Iterable[Record]) -> dict[str, Trials]:
    """Trials by suite, of the labels that all seeds have."""
    records = list(records)
    found = {}
    for suite in dict.fromkeys(one.suite for one in records):
        mine = [one for one in records if one.suite == suite]
        common = set.intersection(*(set(one.networks) for one in mine))
        kept = [replace(one, networks={k: v for k, v in one.networks.items() if k in common}) for one in mine]
        (found[suite],) = trials_of(kept).values()
    return found


def shares(trials: Mapping[str, Trials], label: str) -> list[float]:
    """Recovered gap of every pool, nothing counted below −1: one pool must not decide."""
    return [max(-1.0, one.recovered(label)) for each in trials.values() for one in each.compared.values()]


def lead(trials: Mapping[str, Trials], label: str, other: str) -> Difference:
    """By how much one recovers more than another, over all pools, paired; in hundredths of the gap."""
    return paired([100 * a for a in shares(trials, label)], [100 * b for b in shares(trials, other)])


def overview(trials: Mapping[str, Trials], labels: Iterable[str], title: str) -> Table:
    """Recovered gap by suite, its mean over pools, and the worst task."""
    rows = []
    for label in labels:
        by_suite = [fmean(max(-1.0, c.recovered(label)) for c in one.compared.values()) for one in trials.values()]
        worst = fmean(one.worst(label) for one in trials.values())
        rows.append((label, *(f"{share:.2f}" for share in by_suite), f"{fmean(by_suite):.2f}", f"{worst:.1f}"))
    rows.sort(key=lambda row: -float(row[-2]))
    return Table(
        ("network", *trials, "mean", "worst task %"),
        rows,
        caption=f"{title}: recovered gap, mean over seeds, nothing counted below −1 at a seed",
        note="Worst task: the lowest accuracy of a task at each seed, the mean over all pools.",
    )


def against(trials: Mapping[str, Trials], label: str, others: Iterable[str]) -> Table:
    """One method against others, over all pools."""
    return Table(
        (f"{label} against", "recovered gap, %", "verdict", "pools"),
        [
            (other, str(lead(trials, label, other)), lead(trials, label, other).verdict, len(shares(trials, label)))
            for other in others
        ],
        caption=f"By how much {label} recovers more, paired by pool",
        note="95 % intervals over pools (of one suite they share networks, so that these are rather too narrow).",
    )


def families(trials: Mapping[str, Trials]) -> dict[str, dict[str, Trials]]:
    """Suites by what they have in common beside the optimiser and the regime of the experts."""
    found: dict[str, dict[str, Trials]] = {}
    for name, one in trials.items():
        found.setdefault(name.rpartition(", ")[0], {})[name] = one
    return found


def bar(trials: Mapping[str, Trials]) -> Table:
    """`apgd` against the best of the peers, family by family: best in that very family, and so a hard opponent."""
    rows = []
    for family, mine in families(trials).items():
        known = set.intersection(*(set(one.data_used) for one in mine.values()))
        peers = [label for peer in PEERS for label in (peer, f"{peer}, rescaled") if label in known]
        if not peers or "apgd" not in known:
            continue
        best = max(peers, key=lambda label: fmean(shares(mine, label)))
        worst = [
            [one.worst(label)[1] for each in mine.values() for one in each.compared.values()]
            for label in ("apgd", best)
        ]
        rows.append(
            (
                family,
                len(worst[0]),
                f"{fmean(shares(mine, 'apgd')):.2f}",
                best,
                f"{fmean(shares(mine, best)):.2f}",
                str(lead(mine, "apgd", best)),
                str(paired(*worst)),
            )
        )
    return Table(
        ("family", "pools", "apgd", "best of the peers", "its mean", "apgd − peer, % of the gap", "worst task, points"),
        rows,
        caption="apgd against the best of TSV-M, Iso-C, WUDI and TIES, each as it is and rescaled",
        note="Mean recovered gap over optimisers, regimes and seeds, nothing counted below −1. The peer is the one "
        "with the highest mean in that family of pools, looked up afterwards. 95 % intervals over pools, paired.",
    )


def report(path: Path, page: Path) -> None:
    """The page, from the file alone."""
    trials = finished(load(path))
    if not trials:
        raise SystemExit(f"{path.name} has no results yet; run `python benchmarks/compare.py run` first.")
    known = set.intersection(*(set(one.data_used) for one in trials.values()))
    methods = [label for label in (*METHODS, *RESCALED) if label in known]
    others = [label for label in methods if label != "apgd"]
    ablations = [label for label in ("apgd", "the paper", *ABLATIONS) if label in known]
    limited = ["apgd", *(label for peer in PEERS for label in (peer, f"{peer}, limited") if label in known)]
    with_data = [label for label in known if label not in {*METHODS, *RESCALED, *LIMITED, *ABLATIONS}]
    parts = [
        "# The comparison",
        "Generated by `python benchmarks/compare.py report`; do not edit.",
        overview(trials, methods, "Without data").to_markdown(),
        bar(trials).to_markdown(),
        against(trials, "apgd", others).to_markdown(),
        overview(trials, ablations, "One piece at a time").to_markdown(),
        overview(trials, limited, "The limit and the biases, given to others").to_markdown(),
        overview(trials, with_data, "With data").to_markdown() if with_data else "",
    ]
    write_atomically(page, "\n\n".join(part for part in parts if part).encode() + b"\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measure what is missing")
    one.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be given again")
    one.add_argument("--quick", action="store_true", help="small pools of one seed, in a file of their own")
    one.add_argument("--cache", type=Path, default=None, help="where trained networks are kept")
    commands.add_parser("report", help="write the page")
    given = parser.parse_args()
    if given.command == "report":
        report(RESULTS, RESULTS.with_suffix(".md"))
        return
    path = RESULTS.with_name("quick.json") if given.quick else RESULTS
    for name in given.suite or SUITES:
        for title, pool in pools_of(name, SEEDS[:1] if given.quick else SEEDS, Cache(given.cache), given.quick):
            measure(title, pool, path)


if __name__ == "__main__":
    main()
