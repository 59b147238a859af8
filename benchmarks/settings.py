"""Which settings of `apgd`, and which kind of protection, the runs support: measured, one cell at a time.

    python benchmarks/settings.py run design settings     # or: run held-out protection; stop and go on as you like
    python benchmarks/settings.py report                  # writes a page for every file of results

Settings are compared on validation images of the design pools. What was chosen there is reported on test images of the
held-out pools: other seeds, another network, other tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
from collections.abc import Iterable
from pathlib import Path

from decompositions import remember_decompositions
from pools import PARTS, Setting, pool_of, settings_of

from apgd_teach.cache import Cache
from apgd_teach.evaluate import Evaluator
from apgd_teach.files import write_atomically
from apgd_teach.merging import merge
from apgd_teach.merging.method import Method
from apgd_teach.merging.registry import METHODS
from apgd_teach.tables import Table

HERE = Path(__file__).parent
RESULTS = Path(os.environ.get("RESULTS", HERE / "settings.json"))
IMAGES = {"design": ("validation", 500), "design, six seeds": ("validation", 500), "held-out": ("test", 1000)}

Candidates = dict[str, tuple[str, dict[str, object]]]

PEERS: Candidates = {
    "average": ("average", {}),
    "task arithmetic 0.3": ("task_arithmetic", {"coefficient": 0.3}),
    "task-aware 0.3": ("task_aware", {"coefficient": 0.3}),
    "TIES": ("ties", {}),
    "TSV-M": ("tsv_m", {}),
    "Iso-C": ("iso_c", {}),
    "Iso-C 1.5": ("iso_c", {"coefficient": 1.5}),
    "WUDI": ("wudi", {}),
}
BEFORE = {"reach": None, "biases": "average"}
"""What all studies but "reach" were made with, which came last."""
PAPER = {"granularity": "row", "coefficient": 0.3, "flatten": 0.0, **BEFORE}
FULL = {"granularity": "full", "filter": "time", "strength": 3.0, **BEFORE}
SETTINGS: Candidates = {
    **PEERS,
    "row, r/6, trim 0.3": ("apgd", {**PAPER, "protect": 1 / 6, "trim": 0.3}),
    "row, r/6": ("apgd", {**PAPER, "protect": 1 / 6}),
    **{
        f"full, p {power:g}, flatten {share:g}": (
            "apgd",
            {**FULL, "power": power, "flatten": share, "protect": 0.0},
        )
        for power in (2.0, 1.0, 0.5)
        for share in (0.0, 0.5, 0.75)
    },
    "full, p 1, flatten 0.5, t 10": ("apgd", {**FULL, "power": 1.0, "flatten": 0.5, "strength": 10.0, "protect": 0.0}),
    "full, p 1.5, flatten 0.75": ("apgd", {**FULL, "power": 1.5, "flatten": 0.75, "protect": 0.0}),
    "full, p 1.5, flatten 0.75, energy": ("apgd", {**FULL, "power": 1.5, "flatten": 0.75, "protect": "energy"}),
    "full, p 1, flatten 0.75, t 10": (
        "apgd",
        {**FULL, "power": 1.0, "flatten": 0.75, "strength": 10.0, "protect": 0.0},
    ),
    "full, p 1, flatten 0.65": ("apgd", {**FULL, "power": 1.0, "flatten": 0.65, "protect": 0.0}),
    "full, p 1, flatten 0.75, step": ("apgd", {**FULL, "power": 1.0, "flatten": 0.75, "protect": "step"}),
    "full, p 1, flatten 0.5, r/64": ("apgd", {**FULL, "power": 1.0, "flatten": 0.5, "protect": 1 / 64}),
    "full, p 1, flatten 0.5, r/6": ("apgd", {**FULL, "power": 1.0, "flatten": 0.5, "protect": 1 / 6}),
    "full, p 1, flatten 0.5, step": ("apgd", {**FULL, "power": 1.0, "flatten": 0.5, "protect": "step"}),
}
CONSTANTS = {"0": 0.0, **{f"r/{part}": 1 / part for part in (128, 64, 32, 16, 8, 6, 4, 2)}}
RULES = ("step", "energy", "participation", "length", "agreement", "left_out")
RANKS: Candidates = {
    f"protect {label}": ("apgd", {**FULL, "power": 1.0, "flatten": 0.0, "protect": value})
    for label, value in {**CONSTANTS, **{rule: rule for rule in RULES}}.items()
}
HALF = {**FULL, "power": 1.5, "flatten": 0.5}
SOFT = {f"soft 1/{part}": {"protect": "soft", "softness": 1 / part} for part in (16, 8, 4)}
PROTECTION: Candidates = {
    **{f"half flat, protect {label}": ("apgd", {**HALF, "protect": value}) for label, value in CONSTANTS.items()},
    **{f"half flat, protect {rule}": ("apgd", {**HALF, "protect": rule}) for rule in ("energy", "step")},
    **{f"half flat, protect {name}": ("apgd", {**HALF, **given}) for name, given in SOFT.items()},
    "average": PEERS["average"],
    "Iso-C 1.5": PEERS["Iso-C 1.5"],
    "TSV-M": PEERS["TSV-M"],
    "apgd": ("apgd", BEFORE),
}
"""Protection where the spectrum is drawn half-way to its mean: the setting in which it has something to do and cannot
do harm. "soft 1/16" is what `protect="auto"` means."""
STEPS: Candidates = {
    **{name: PEERS[name] for name in ("average", "task arithmetic 0.3", "TIES", "TSV-M", "Iso-C", "Iso-C 1.5", "WUDI")},
    "row, r/6, trim 0.3": SETTINGS["row, r/6, trim 0.3"],
    "row, r/6": SETTINGS["row, r/6"],
    "apgd": ("apgd", BEFORE),
}
"""How far merges of many kinds go, and whether they pay: what `audit.LONG_STEP` warns of."""
LAST = "columns, reach 0.06"
"""What `Apgd()` is: of the reaches within 0.01 of the best mean the shortest."""
REACHES = (0.01, 0.02, 0.03, 0.04, 0.06, 0.09, 0.13, 0.2, 0.3)
REACH: Candidates = {
    **{name: PEERS[name] for name in ("average", "TSV-M", "Iso-C")},
    "neither": ("apgd", BEFORE),
    "columns, no limit": ("apgd", {"reach": None}),
    **{f"columns, reach {reach:g}": ("apgd", {"reach": reach}) for reach in REACHES},
    "biases averaged, reach 0.04": ("apgd", {"biases": "average", "reach": 0.04}),
    **{
        f"columns, reach 0.04, flatten {share:g}": ("apgd", {"flatten": share, "reach": 0.04})
        for share in (0.0, 0.5, 1.0)
    },
}
"""The two pieces that came last: biases as columns of their weights, and a limit to how long a direction may be."""
STUDIES = {"settings": SETTINGS, "ranks": RANKS, "protection": PROTECTION, "steps": STEPS, "reach": REACH}
OWN_FILE = ("protection", "steps", "reach")
CHOOSING = {"ranks": ("protect ", RULES), "protection": ("half flat, protect ", (*SOFT, "energy", "step"))}
"""Studies of protection: how its candidates' names begin, and those of them that choose by themselves."""


def key_of(setting: Setting) -> str:
    return f"{setting.group}, seed {setting.seed}"


def file_of(study: str) -> Path:
    """Where a study's cells are: of one file, all are of the same networks, to the last digit."""
    return RESULTS.with_name(f"{study}.json") if study in OWN_FILE else RESULTS


def load(study: str = "settings") -> dict[str, dict[str, dict[str, dict[str, float]]]]:
    file = file_of(study)
    return json.loads(file.read_text()) if file.exists() else {}


def store(part: str, key: str, cells: dict[str, dict[str, float]], study: str = "settings") -> None:
    """Read, add, write: two processes may work on different pools."""
    results = load(study)
    there = results.setdefault(part, {}).setdefault(key, {})
    for end in ("base", "experts"):
        # Another PyTorch, or another number of threads, trains networks that differ in the last digits.
        if there.get(end, cells.get(end)) != cells.get(end, there.get(end)):
            raise SystemExit(f"{key}: these are not the networks that {file_of(study).name} was measured on.")
    there.update(cells)
    write_atomically(file_of(study), (json.dumps(results, indent=1, sort_keys=True) + "\n").encode())


def run(part: str, study: str, networks: list[str] | None, cache: Cache) -> None:
    """Every candidate of a study on every pool of a part; what is in the file already is not computed again."""
    remember_decompositions()
    split, images = IMAGES[part]
    for setting in settings_of(part, networks):
        key = key_of(setting)
        done = load(study).get(part, {}).get(key, {})
        missing = {name: what for name, what in STUDIES[study].items() if name not in done}
        if not missing and "experts" in done:
            continue
        pool = pool_of(setting, cache)
        evaluator = Evaluator(pool, images=images, split=split)

        def score(scores: dict) -> dict[str, float]:
            found = [one.accuracy for one in scores.values()]
            return {"mean": round(statistics.fmean(found), 4), "worst": round(min(found), 4)}

        cells = {"base": score(evaluator.scores(pool.base)), "experts": score(evaluator.experts())}
        for name, (method, given) in missing.items():
            made: Method = METHODS[method](**given)
            merged = merge(pool.base, pool.experts, made)
            cells[name] = score(evaluator.scores(merged.state_dict))
            steps = [row.relative_step for row in merged.audit.rows if row.policy == "merge"]
            cells[name]["step"] = round(max(steps), 4)
        store(part, key, cells, study)
        print(key, flush=True)


def recovered(cells: dict[str, dict[str, float]], name: str) -> float:
    """(merged − base) / (experts − base)."""
    base, experts = cells["base"]["mean"], cells["experts"]["mean"]
    return (cells[name]["mean"] - base) / (experts - base)


def groups_of(results: dict, part: str, names: list[str]) -> dict[str, list[dict]]:
    """Cells of the finished pools, by group of seeds."""
    groups: dict[str, list[dict]] = {}
    for network, tasks, seeds in PARTS[part]:
        for optimizer in ("sgd", "adamw"):
            for regime in ("mild", "hot"):
                one = [Setting(network, tasks, optimizer, regime, seed) for seed in seeds]
                cells = [results.get(part, {}).get(key_of(setting), {}) for setting in one]
                whole = [cell for cell in cells if all(name in cell for name in [*names, "base", "experts"])]
                if whole:
                    groups[one[0].group] = whole
    return groups


def mean_and_spread(values: list[float]) -> tuple[float, float]:
    """The mean over seeds and half of its 95 % interval (Student's t)."""
    # Student's t at 97.5 %, from its table for few degrees of freedom and its expansion in 1/freedom for more.
    freedom = max(1, len(values) - 1)
    table = (12.71, 4.30, 3.18, 2.78, 2.57)
    factor = table[freedom - 1] if freedom <= len(table) else 1.96 + 2.37 / freedom + 2.82 / freedom**2
    spread = factor * statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), spread


def measured(results: dict, part: str, study: str) -> list[str]:
    """The candidates of a study; of "settings" those that all pools of a part have been through which have begun it."""
    if study != "settings":
        return list(STUDIES[study])
    pools = [cells for cells in results.get(part, {}).values() if "average" in cells]
    return [name for name in STUDIES[study] if pools and all(name in cells for cells in pools)]


def table(results: dict, part: str, study: str) -> str:
    """Recovered gap, a row per candidate and a column per setting, mean over seeds."""
    names = measured(results, part, study)
    groups = groups_of(results, part, names)
    rows = []
    for name in names:
        found = {group: statistics.fmean(recovered(cells, name) for cells in whole) for group, whole in groups.items()}
        # A setting in which a method falls far below the base would otherwise decide the mean alone.
        total = statistics.fmean(max(-1.0, value) for value in found.values())
        rows.append((name, *(f"{value:.2f}" for value in found.values()), f"{total:.2f}"))
    seeds = " and ".join(sorted({str(len(whole)) for whole in groups.values()}))
    split, images = IMAGES[part]
    return Table(
        ("candidate", *groups, "mean, floor −1"),
        rows,
        caption=f"{part}, recovered gap, mean of {seeds} seeds; the first {images} {split} images of each task",
    ).to_markdown()


DEFAULT = "full, p 1.5, flatten 0.75"
"""What `Apgd()` computed before it had a reach and took biases as columns."""


def paired(results: dict, part: str, default: str = DEFAULT, peers: Iterable[str] = PEERS) -> str:
    """The default against each peer, pool by pool: the same experts, the same images."""
    names = [default, *peers]
    # One seed has no interval.
    groups = {group: whole for group, whole in groups_of(results, part, names).items() if len(whole) > 1}
    rows = []
    for peer in peers:
        found = {g: [recovered(c, default) - recovered(c, peer) for c in whole] for g, whole in groups.items()}
        every = [max(-1.0, recovered(c, default)) - max(-1.0, recovered(c, peer)) for w in groups.values() for c in w]
        cells = [f"{m:+.2f} ± {s:.2f}" for m, s in map(mean_and_spread, found.values())]
        mean, spread = mean_and_spread(every)
        rows.append((peer, *cells, f"{mean:+.2f} ± {spread:.2f}"))
    return Table(
        ("apgd minus", *groups, "all, floor −1"),
        rows,
        caption=f"{part}: recovered gap of the default less that of a peer, paired, 95 % interval over seeds "
        "(last column: over all pools)",
    ).to_markdown()


def shares_of(results: dict, part: str, study: str) -> dict[str, dict[str, float]]:
    """Mean recovered gap over seeds by constant or rule, and by setting."""
    begin, rules = CHOOSING[study]
    groups = groups_of(results, part, list(STUDIES[study]))
    return {
        name: {g: statistics.fmean(recovered(c, begin + name) for c in whole) for g, whole in groups.items()}
        for name in (*CONSTANTS, *rules)
    }


def target(results: dict, part: str, study: str) -> str:
    """Each rule against the best constant rank of each setting, and against the best single constant."""
    values = shares_of(results, part, study)
    groups, rules = list(values["0"]), CHOOSING[study][1]
    means = {name: statistics.fmean(max(-1.0, v) for v in found.values()) for name, found in values.items()}
    single = max(CONSTANTS, key=lambda name: means[name])
    rows = []
    for rule in (single, *rules):
        short = {g: max(values[c][g] for c in CONSTANTS) - values[rule][g] for g in groups}
        within = sum(one <= 0.1 for one in short.values())
        worst = max(short, key=lambda g: short[g])
        label = f"best single constant, {rule}" if rule in CONSTANTS else rule
        rows.append((label, f"{means[rule]:.3f}", f"{within} of {len(groups)}", f"{short[worst]:.2f} ({worst})"))
    return Table(
        ("rule", "mean recovered, floor −1", "settings within 0.1 of their best constant", "furthest from it"),
        rows,
        caption=f"{part}: rules for the protected rank against constants chosen afterwards",
    ).to_markdown()


def by_suite(results: dict, part: str, study: str) -> str:
    """The target suite by suite: in each of the four settings near the best constant, and on their mean above all."""
    values = shares_of(results, part, study)
    suites: dict[str, list[str]] = {}
    for group in values["0"]:
        suites.setdefault(group.rsplit(" ", 2)[0], []).append(group)
    suites = {suite: groups for suite, groups in suites.items() if len(groups) == 4}

    def mean(name: str, groups: list[str]) -> float:
        return statistics.fmean(max(-1.0, values[name][group]) for group in groups)

    single = {suite: max(CONSTANTS, key=lambda name: mean(name, suites[suite])) for suite in suites}
    rows = [("best single constant", *(f"{mean(single[s], suites[s]):.3f} ({single[s]})" for s in suites))]
    for rule in CHOOSING[study][1]:
        cells = []
        for groups in suites.values():
            near = sum(max(values[c][g] for c in CONSTANTS) - values[rule][g] <= 0.1 for g in groups)
            cells.append(f"{mean(rule, groups):.3f}, {near} of 4")
        rows.append((rule, *cells))
    return Table(
        ("rule", *suites),
        rows,
        caption=f"{part}, suite by suite: mean recovered gap of its four settings (floor −1), and in how many of them "
        "the rule is within 0.1 of the best constant there",
    ).to_markdown()


def ahead(results: dict, part: str, study: str) -> str:
    """Each rule against the constants, pool by pool: the same experts, the same images."""
    begin, rules = CHOOSING[study]
    pools = [cells for whole in groups_of(results, part, list(STUDIES[study])).values() for cells in whole]

    def pooled(name: str) -> list[float]:
        return [max(-1.0, recovered(cells, begin + name)) for cells in pools]

    def cell(rule: str, constant: str) -> str:
        mean, spread = mean_and_spread([a - b for a, b in zip(pooled(rule), pooled(constant), strict=True)])
        return f"{mean:+.3f} ± {spread:.3f}"

    return Table(
        ("rule minus constant", *CONSTANTS),
        [(rule, *(cell(rule, constant) for constant in CONSTANTS)) for rule in rules],
        caption=f"{part}: recovered gap of a rule less that of a constant, paired, over {len(pools)} pools, 95 % "
        "interval (floor −1)",
    ).to_markdown()


def long_steps(results: dict, part: str) -> str:
    """How many merges fall below the base, of those with a longer step and of those without, by its length."""
    pools = [cells for whole in groups_of(results, part, list(STEPS)).values() for cells in whole]
    merges = [(cells[name]["step"], cells[name]["mean"] < cells["base"]["mean"]) for cells in pools for name in STEPS]
    rows = []
    for limit in (0.1, 0.25, 0.5, 0.75, 1.0, 2.0):
        longer, shorter = ([below for step, below in merges if (step > limit) == side] for side in (True, False))
        rows.append((f"{limit:.0%}", *(f"{sum(one)} of {len(one)}" for one in (longer, shorter))))
    return Table(
        ("longest step ‖M‖/‖θ₀‖ of a tensor", "below the base, of the merges with a longer one", "of those without"),
        rows,
        caption=f"{part}: {len(merges)} merges of {len(pools)} pools",
    ).to_markdown()


def steps_of(results: dict, part: str) -> str:
    """The longest step of every candidate, mean over seeds."""
    groups = groups_of(results, part, list(STEPS))
    rows = [
        (name, *(f"{statistics.fmean(cells[name]['step'] for cells in whole):.0%}" for whole in groups.values()))
        for name in STEPS
    ]
    return Table(
        ("candidate", *groups), rows, caption=f"{part}: the longest step ‖M‖/‖θ₀‖ of a merged tensor, mean over seeds"
    ).to_markdown()


def report() -> None:
    """A page for every file of results."""
    made = "Generated by `python benchmarks/settings.py report`; do not edit.\n"
    pages = {
        "settings.md": ["# Settings of `apgd`, measured\n", made],
        "protection.md": ["# Protection where the spectrum is half flat, measured\n", made],
        "steps.md": ["# How far merges go, and whether it pays, measured\n", made],
        "reach.md": ["# Biases as columns, and a limit to every direction, measured\n", made],
    }
    for part in PARTS:
        for study in STUDIES:
            results, page = load(study), pages[f"{study if study in OWN_FILE else 'settings'}.md"]
            names = measured(results, part, study)
            if not names or not groups_of(results, part, names):
                continue
            page += [f"## {part}: {study}\n", table(results, part, study), ""]
            if study == "settings":
                page += [paired(results, part), ""]
            elif study == "reach":
                page += [
                    paired(results, part, LAST, [one for one in names if one != LAST]),
                    "",
                ]
            elif study == "steps":
                page += [steps_of(results, part), "", long_steps(results, part), ""]
            else:
                page += [target(results, part, study), ""]
            if study == "protection":
                page += [by_suite(results, part, study), "", ahead(results, part, study), ""]
                page += [paired(results, part, "apgd", ("average", "Iso-C 1.5", "TSV-M")), ""]
    for name, page in pages.items():
        if len(page) > 2:
            write_atomically(HERE / name, "\n".join(page).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("run", help="compute what is missing")
    one.add_argument("part", choices=PARTS)
    one.add_argument("study", choices=STUDIES)
    one.add_argument("--network", action="append", help="only this one; may be given again")
    one.add_argument("--cache", type=Path, default=None, help="where trained networks are kept")
    commands.add_parser("report", help="write the pages")
    given = parser.parse_args()
    if given.command == "run":
        run(given.part, given.study, given.network, Cache(given.cache))
    else:
        report()


if __name__ == "__main__":
    main()
