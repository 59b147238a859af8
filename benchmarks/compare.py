"""The comparison: every method on every suite, one network at a time.

    python benchmarks/compare.py run [--suite NAME]   # stop and go on as you like; --quick: small pools, for a look
    python benchmarks/compare.py again                # three cells once more, with other seeds
    python benchmarks/compare.py report               # writes compare.md from compare.json
    python benchmarks/compare.py repeat --suite "8 tasks, MLP, sgd hot" --seed 30 --row apgd    # one row once more

Nothing here chooses a setting; `compared.py` makes the tables. The seeds are none that `apgd`'s settings were chosen or
reported on before, and the deep network and the colour suite were not looked at when they were chosen.
"""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import ClassVar

import compared
import torch
from compared import PEERS
from decompositions import remember_decompositions
from pools import OTHER_TASKS
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.data import TASKS, Source, Variant, open_colour, open_source
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import Pool, make_pool
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
from apgd_teach.merging.method import ALONE, Layer, Method, Update, call
from apgd_teach.merging.objective import objective
from apgd_teach.references import adamerging, joint, regmean
from apgd_teach.results import Record, added, begun, load, save
from apgd_teach.tables import Table
from apgd_teach.training import Recipe
from apgd_teach.trials import tuned

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "compare.json"))
SEEDS = (30, 31, 32, 33, 34)
SECOND = RESULTS.with_name(f"{RESULTS.stem}_again.json")
DOCUMENTS = [HERE.parent / "README.md", HERE.parent / "docs" / "merging.md"]
"""They show tables of the comparison; `report` writes them in."""
SEEDS_AGAIN = (35, 36, 37, 38, 39)
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


@dataclass(frozen=True)
class Into(Apgd):
    """Δ kept *in* the shared subspace instead of off it: all that it leaves out is protected."""

    name: ClassVar[str] = "apgd, into"

    def protected(self, task_vectors: Tensor, layer: Layer = ALONE) -> Tensor:
        """An orthonormal basis of what the shared subspace is not, shape (out, direction)."""
        shared = super().protected(task_vectors, layer)
        return torch.linalg.qr(shared, mode="complete")[0][:, shared.shape[1] :]


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

RESCALED = {f"{label}, rescaled": Rescaled(METHODS[label]) for label in (*PEERS, "apgd")}
LIMITED = {f"{label}, limited": Limited(METHODS[label]) for label in PEERS}
"""What `apgd`'s two last pieces do for others."""

AGAIN = (("8 tasks, MLP", "sgd", "mild"), ("8 tasks, ConvNet", "sgd", "hot"), ("8 tasks, deep MLP", "adamw", "mild"))
AGAIN_LABELS = ("average", "TSV-M", "apgd")
"""The cells that are measured twice."""
LATE: dict[str, Method] = {
    "apgd: biases averaged": Apgd(biases="average"),
    "apgd: no limit": Apgd(reach=None),
    "apgd: neither": Apgd(biases="average", reach=None),
    **{f"apgd: reach {reach:g}": Apgd(reach=reach) for reach in (0.04, 0.13)},
}
"""`apgd` without its two last pieces, and with other limits: in every suite."""

ABLATIONS: dict[str, Method] = {
    "apgd: no Δ (S alone)": Apgd(solver="descent", steps=0),
    "apgd: spectrum as it is": Apgd(flatten=0.0),
    "apgd: spectrum half flat": Apgd(flatten=0.5),
    "apgd: p = 2": Apgd(power=2.0),
    "apgd: no early stop": Apgd(filter="cutoff"),
    "apgd: r/6 protected": Apgd(protect=1 / 6),
    "apgd: r/16 protected": Apgd(protect=1 / 16),
    "apgd: soft protection": Apgd(protect="auto"),
    "apgd: into r/6": Into(protect=1 / 6),
    "apgd: task-aware λ": Apgd(coefficient=0.125),
    "apgd: 30 % kept": Apgd(trim=0.3),
    **{f"apgd: {one}": Apgd(granularity=one) for one in ("row", "layer")},
    **{f"apgd: {steps} steps of descent": Apgd(solver="descent", steps=steps) for steps in (50, 400)},
    "the paper: untrimmed": replace(PAPER, trim=1.0),
    "the paper: nothing protected": replace(PAPER, protect=0.0),
    "the paper: into": Into(**{one.name: getattr(PAPER, one.name) for one in fields(PAPER)}),
    "the paper: no Δ (S alone)": replace(PAPER, solver="descent", steps=0),
    "the paper: one λ": replace(PAPER, coefficient=None),
}
"""One piece at a time, in `ABLATED`."""
ABLATED = ("8 tasks, ConvNet", "8 tasks, MLP")
GROUPS: dict[str, dict[str, Method]] = {
    "methods": METHODS,
    "rescaled": RESCALED,
    "limited": LIMITED,
    "late": LATE,
    "ablations": ABLATIONS,
}
"""All rows that use no data, by the tables that they are in."""


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
        **{label: by(one) for group in GROUPS.values() for label, one in group.items()},
        **references(pool),
    }


def pools_of(
    name: str,
    seeds: Iterable[int],
    cache: Cache,
    quick: bool = False,
    *,
    optimizers: Sequence[str] | None = None,
    regimes: Sequence[str] = RATES,
) -> Iterator[tuple[str, Pool]]:
    """The pools of a suite with their names, optimiser by optimiser and regime by regime."""
    suite = SUITES[name]
    source: Source = open_colour("auto", per_class=2000) if suite.colour else open_source("bundled")
    tasks = [*source.tasks] if suite.colour else list(suite.tasks)
    for seed, optimizer, regime in itertools.product(seeds, optimizers or suite.optimizers, regimes):
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


def plan() -> dict[str, int]:
    """By suite, how many pools there are to be."""
    return {name: len(SEEDS) * len(suite.optimizers) * len(RATES) for name, suite in SUITES.items()}


def rows(suite: str, pool: Pool) -> list[str]:
    """The labels of a suite."""
    return [label for label in makers(pool) if suite in ABLATED or label not in ABLATIONS]


def measure(name: str, pool: Pool, path: Path, labels: Iterable[str]) -> None:
    """These rows of one pool, as far as the file does not have them yet; the file is whole after each."""
    wanted = set(labels)
    evaluator = Evaluator(pool)
    counts = sorted({evaluator.images(task) for task in pool.tasks})
    images = f"{pool.tier} tier, test split, {' or '.join(f'{count:,}' for count in counts)} a task"
    every = load(path)
    mine = next((one for one in every if (one.suite, one.seed) == (name, pool.seed)), None)
    if mine is None:
        mine = begun(name, pool, evaluator.scores(pool.base), evaluator.experts(), images)
        every.append(mine)
    for label, make in makers(pool).items():
        if label in mine.networks or label not in wanted:
            continue
        made = make(pool)
        grown = added(mine, label, made, evaluator.scores(made.state_dict))
        every[every.index(mine)] = mine = grown
        save(path, every)
    print(f"{name}, seed {pool.seed}: {len(mine.networks)} networks", flush=True)


def again(path: Path, cache: Cache) -> None:
    """Three cells once more, from networks of other seeds."""
    for name, optimizer, regime in AGAIN:
        for title, pool in pools_of(name, SEEDS_AGAIN, cache, optimizers=[optimizer], regimes=[regime]):
            measure(title, pool, path, AGAIN_LABELS)


def repeat(suite: str, seed: int, label: str, path: Path, cache: Cache) -> Table:
    """One row of the file, measured anew and held beside what the file says.

    Args:
        suite: with its optimiser and regime, "8 tasks, MLP, sgd hot".
        seed: of the pool.
        label: of the row.
        path: of the results.
        cache: of trained networks.

    Raises:
        ApgdTeachError: the file has no such row, or the suite cannot be made here.
    """
    there = {one.suite: one for one in load(path) if one.seed == seed}
    if suite not in there or label not in there[suite].networks:
        raise ApgdTeachError(
            f"{path.name} has no row '{label}' of '{suite}' with the seed {seed}; its suites with that seed are: "
            f"{'; '.join(there) or 'none'}."
        )
    kept = there[suite]
    name, _, setting = suite.rpartition(", ")
    optimizer, regime = setting.split(" ")
    family = next(one for one in SUITES if name.startswith(one))
    ((title, pool),) = pools_of(family, [seed], cache, optimizers=[optimizer], regimes=[regime])
    if title != suite:
        raise ApgdTeachError(f"here this suite is '{title}', of other images than '{suite}'; give it the same images.")
    evaluator = Evaluator(pool)
    ends = {"base": evaluator.scores(pool.base), "experts": evaluator.experts()}
    now = ends[label] if label in ends else evaluator.scores(makers(pool)[label](pool).state_dict)
    before = kept.networks[label].accuracy
    pairs = {kept.titles[task]: (before[task], score.accuracy) for task, score in now.items()}
    pairs["mean"] = (fmean(before.values()), fmean(score.accuracy for score in now.values()))
    same = begun(suite, pool, ends["base"], ends["experts"], "").inputs == kept.inputs
    return Table(
        ("task", "in the file, %", "here, %", "points"),
        [(title, old, new, new - old) for title, (old, new) in pairs.items()],
        caption=f"{label}, {suite}, seed {seed}",
        note="The same base and experts, to the last digit."
        if same
        else "Another base and other experts in their last digits: another machine, number of threads or PyTorch "
        "trains them.",
        bold=[len(pairs) - 1],
    )


def join(paths: Iterable[Path], path: Path) -> None:
    """Results of several files in one: pools of one, and rows of the same pools.

    Raises:
        ApgdTeachError: a pool is of other networks in one file than in another one.
    """
    found: dict[tuple[str, int], Record] = {}
    for one in (record for each in paths for record in load(each)):
        key = (one.suite, one.seed)
        first = found.setdefault(key, one)
        if first.inputs != one.inputs:
            raise ApgdTeachError(
                f"{one.suite}, seed {one.seed}, is of other networks in one file than in another one; keep one of them."
            )
        found[key] = replace(first, networks={**one.networks, **first.networks})
    order = [*SUITES]
    save(path, sorted(found.values(), key=lambda one: _place(one, order)))


def _place(record: Record, order: list[str]) -> tuple[int, str, int]:
    """Suites as they stand in `SUITES`, mild before hot, seed after seed."""
    place = next((place for place, name in enumerate(order) if record.suite.startswith(name)), len(order))
    name, _, regime = record.suite.rpartition(" ")
    return place, f"{name} {RATES.index(regime) if regime in RATES else regime}", record.seed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="measure what is missing")
    one.add_argument("--suite", action="append", choices=SUITES, help="only this one; may be given again")
    one.add_argument("--row", action="append", help="only this row; may be given again")
    one.add_argument("--quick", action="store_true", help="small pools of one seed, in a file of their own")
    two = commands.add_parser("again", help="three cells once more, with other seeds")
    three = commands.add_parser("repeat", help="one row once more, beside what the file says")
    three.add_argument("--suite", required=True, help='as the page has it, "8 tasks, MLP, sgd hot"')
    three.add_argument("--seed", type=int, required=True)
    three.add_argument("--row", required=True, help="as the page has it")
    for each in (one, two, three):
        each.add_argument("--cache", type=Path, default=None, help="where trained networks are kept")
    four = commands.add_parser("join", help="put results of several files into one")
    four.add_argument("files", nargs="+", type=Path)
    commands.add_parser("report", help="write the page and its pictures")
    given = parser.parse_args()
    try:
        run(given)
    except ApgdTeachError as error:
        raise SystemExit(str(error)) from None


def run(given: argparse.Namespace) -> None:
    """What was asked for. What merging costs is measured elsewhere (`cost.py`): here rows share what they can."""
    remember_decompositions()
    if given.command == "report":
        compared.write(RESULTS, SECOND, GROUPS, plan(), DOCUMENTS)
    elif given.command == "join":
        join([RESULTS, *given.files], RESULTS)
    elif given.command == "again":
        again(SECOND, Cache(given.cache))
    elif given.command == "repeat":
        print(repeat(given.suite, given.seed, given.row, RESULTS, Cache(given.cache)))
    else:
        path = RESULTS.with_name("quick.json") if given.quick else RESULTS
        for name in given.suite or SUITES:
            for title, pool in pools_of(name, SEEDS[:1] if given.quick else SEEDS, Cache(given.cache), given.quick):
                measure(title, pool, path, given.row or rows(name, pool))


if __name__ == "__main__":
    main()
