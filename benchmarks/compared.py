"""What `compare.py` measured, as tables and pictures: everything here is made from its file alone."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from apgd_teach.evaluate import Difference, paired
from apgd_teach.figures.style import figure, look, png, styled
from apgd_teach.files import write_atomically
from apgd_teach.results import Record, load, trials_of
from apgd_teach.tables import Table
from apgd_teach.trials import Trials

PEERS = ("TIES", "TSV-M", "Iso-C", "WUDI")
DRAWN = ("average", "TIES", "TSV-M", "Iso-C", "WUDI", "apgd")

Suites = Mapping[str, Trials]
"""Trials by suite, "8 tasks, MLP, sgd mild": what stands before the last comma is its family."""


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


def families(trials: Suites) -> dict[str, dict[str, Trials]]:
    """Suites by what they have in common beside the optimiser and the regime of the experts."""
    found: dict[str, dict[str, Trials]] = {}
    for name, one in trials.items():
        found.setdefault(name.rpartition(", ")[0], {})[name] = one
    return found


def known(trials: Suites) -> set[str]:
    """The labels that all suites have."""
    return set.intersection(*(set(one.data_used) for one in trials.values()))


def by_seed(trials: Suites, value: Callable[[Trials, int], float]) -> list[float]:
    """One number for each family and seed, the mean over optimisers and regimes: their pools share a base."""
    return [
        fmean(value(one, seed) for one in mine.values() if seed in one.compared)
        for mine in families(trials).values()
        for seed in sorted({seed for one in mine.values() for seed in one.compared})
    ]


def shares(trials: Suites, label: str) -> list[float]:
    """Recovered gap (%), nothing counted below −100 in a pool: one pool must not decide. By family and seed."""
    return by_seed(trials, lambda one, seed: 100 * max(-1.0, one.compared[seed].recovered(label)))


def worsts(trials: Suites, label: str) -> list[float]:
    """Accuracy (%) of the worst task of each pool, by family and seed."""
    return by_seed(trials, lambda one, seed: one.compared[seed].worst(label)[1])


def lead(trials: Suites, label: str, other: str) -> Difference:
    """By how much one recovers more than another, paired, in per cent of the gap."""
    return paired(shares(trials, label), shares(trials, other))


def mean(values: list[float]) -> Difference:
    """A mean with its interval."""
    return paired(values, [0.0] * len(values))


def plain(one: Difference, digits: int = 1) -> str:
    """A mean with its interval as a table has it, without a plus sign."""
    margin = "–" if math.isnan(one.margin) else f"{one.margin:.{digits}f}"
    return f"{one.points:.{digits}f} ± {margin}".replace("-", "−")


def best(trials: Suites, among: Iterable[str]) -> str:
    """The one with the highest mean recovered gap, looked up afterwards."""
    return max(among, key=lambda label: (fmean(shares(trials, label)), label))


def peers(trials: Suites) -> list[str]:
    """TIES, TSV-M, Iso-C and WUDI, each as it is and rescaled, as far as they were measured."""
    return [label for peer in PEERS for label in (peer, f"{peer}, rescaled") if label in known(trials)]


# Tables


def measured(trials: Suites, plan: Mapping[str, int]) -> Table:
    """What there is of what was planned.

    Args:
        trials: what was measured.
        plan: by suite, how many pools there are to be.
    """
    rows = []
    for suite, pools in plan.items():
        mine = {name: one for name, one in trials.items() if name.startswith(f"{suite}, ")}
        seeds = sorted({seed for one in mine.values() for seed in one.compared})
        have = sum(len(one.compared) for one in mine.values())
        rows.append((suite, ", ".join(map(str, seeds)) or "none yet", have, pools))
    return Table(
        ("suite", "seeds", "pools", "planned"),
        rows,
        caption="What was measured so far",
        note="A pool: a base, its experts by one optimiser and one regime, and every row of the tables below, on all "
        "test images of the bundled tier (colour: its own).",
    )


def overview(trials: Suites, labels: Iterable[str], title: str) -> Table:
    """Recovered gap by family, its mean over them, and the worst task."""
    by_family = families(trials)
    rows = []
    for label in labels:
        cells = [mean(shares(mine, label)) for mine in by_family.values()]
        middle = fmean(one.points for one in cells)
        rows.append(
            (
                middle,
                (label, *(plain(one, 0) for one in cells), f"{middle:.0f}".replace("-", "−"), worsts(trials, label)),
            )
        )
    rows.sort(key=lambda row: (-row[0], row[1][0]))
    return Table(
        ("network", *by_family, "mean", "worst task %"),
        [(*row[:-1], plain(mean(row[-1]))) for _, row in rows],
        caption=f"{title}: recovered gap, %",
        note="(merged − base) / (experts − base), nothing counted below −100 in a pool, the mean over optimisers, "
        "regimes and seeds. Worst task: the lowest accuracy of a task in each pool, the mean over all. Intervals: "
        "95 %, over seeds.",
    )


def against(trials: Suites, label: str, others: Iterable[str]) -> Table:
    """One method against others, over everything."""
    leads = {other: lead(trials, label, other) for other in others}
    return Table(
        (f"{label} against", "recovered gap, %", "verdict", "worst task, points"),
        [
            (other, str(one), one.verdict, str(paired(worsts(trials, label), worsts(trials, other))))
            for other, one in leads.items()
        ],
        caption=f"By how much {label} recovers more",
        note=f"Paired over {len(shares(trials, label))} pairs of a family and a seed, in each the mean over optimisers "
        "and regimes, whose pools share a base. 95 % intervals.",
    )


def bar(trials: Suites) -> Table:
    """`apgd` against the best of the peers, family by family: best in that very family, and so a hard opponent."""
    parts: dict[str, Suites] = families(trials)
    if len(parts) > 1:
        parts = {**parts, "all of them": trials}
    rows = []
    for family, mine in parts.items():
        if "apgd" not in known(mine) or not peers(mine):
            continue
        peer = best(mine, peers(mine))
        rows.append(
            (
                family,
                sum(len(one.seeds) for one in mine.values()),
                plain(mean(shares(mine, "apgd")), 0),
                peer,
                plain(mean(shares(mine, peer)), 0),
                str(lead(mine, "apgd", peer)),
                str(paired(worsts(mine, "apgd"), worsts(mine, peer))),
            )
        )
    return Table(
        ("family", "pools", "apgd", "best of the peers", "recovers", "apgd − peer, % of the gap", "worst task, points"),
        rows,
        caption="apgd against the best of TIES, TSV-M, Iso-C and WUDI, each as it is and rescaled",
        note="The peer is the one with the highest mean in that family, looked up afterwards. 95 % intervals over "
        "seeds, paired, in each the mean over optimisers and regimes.",
    )


def setting(name: str, trials: Trials, labels: Iterable[str]) -> Table:
    """Everything about one suite: accuracy, worst task, recovered gap, and two opponents."""
    peer = best({name: trials}, peers({name: trials}) or ["average"])
    order = sorted(labels, key=lambda label: (trials.data_used[label] != "none", -trials.mean(label), label))
    rows = []
    for label in ("base", *order, "experts"):
        bound = label in ("base", "experts")
        share = None if bound else trials.recovered_words(label)
        rows.append(
            (
                "each its own expert" if label == "experts" else label,
                "–" if bound else trials.data_used[label],
                plain(mean(trials.accuracies(label))),
                plain(mean([one.worst(label)[1] for one in trials.compared.values()])),
                share,
                *(None if label == other else str(trials.against(label, other)) for other in ("average", peer)),
            )
        )
    return Table(
        ("network", "data used", "mean %", "worst task %", "recovered %", "against average", f"against {peer}"),
        rows,
        caption=f"{name}: {len(trials.seeds)} seeds",
        note=f"{next(iter(trials.compared.values())).tier.partition(';')[0]}. {peer}: the best of the peers here, "
        "looked up afterwards. Points of mean accuracy, paired by seed; 95 % intervals over seeds.",
    )


def by_tasks(trials: Suites) -> dict[str, dict[int, Trials]]:
    """Of the ConvNet with SGD, regime by regime, the trials by number of tasks."""
    found: dict[str, dict[int, Trials]] = {}
    for name, one in trials.items():
        tasks, _, rest = name.partition(" tasks, ConvNet, sgd ")
        if rest and tasks.isdigit():
            found.setdefault(rest, {})[int(tasks)] = one
    return {regime: dict(sorted(mine.items())) for regime, mine in found.items() if len(mine) > 1}


def growth(trials: Suites) -> Table | None:
    """Mean accuracy by number of tasks; None before there are two numbers of them."""
    curves = by_tasks(trials)
    if not curves:
        return None
    common = set.intersection(*(set(one.data_used) for mine in curves.values() for one in mine.values()))
    labels = ["base", *(label for label in DRAWN if label in common), "experts"]
    heads = [(regime, tasks) for regime, mine in curves.items() for tasks in mine]
    rows = [
        (label, *(plain(mean(curves[regime][tasks].accuracies(label))) for regime, tasks in heads)) for label in labels
    ]
    return Table(
        ("network", *(f"{regime}, {tasks} tasks" for regime, tasks in heads)),
        rows,
        caption="ConvNet, SGD: mean accuracy (%) by number of tasks",
        note="The base of more tasks has seen more tasks, too. 95 % intervals over seeds.",
    )


def repeated(trials: Suites, again: Suites) -> Table:
    """Two independent runs of the same cells, with other seeds: whether they agree within their intervals."""
    rows = []
    for name, second in again.items():
        first = trials.get(name)
        if first is None:
            continue
        for label in (one for one in second.data_used if one in first.data_used):
            if label == "average":
                continue
            one, two = (each.against(label, "average") for each in (first, second))
            apart = Difference(two.points - one.points, math.hypot(one.margin, two.margin))
            agree = "yes" if apart.verdict == "no difference seen" else "no"
            rows.append((name, label, str(one), str(two), str(apart), agree))
    seeds = [", ".join(map(str, next(iter(each.values())).seeds)) for each in (trials, again)]
    return Table(
        ("suite", "method", "against average", "second run", "second − first", "agree"),
        rows,
        caption="Run twice",
        note=f"Points of mean accuracy, paired by seed. First run: seeds {seeds[0]}; second: seeds {seeds[1]}, from "
        "other bases, experts and orders of the data. 95 % intervals over seeds; they agree where that of the "
        "difference holds zero.",
    )


# Pictures


def draw_families(trials: Suites) -> bytes:
    """Recovered gap of every method, a panel for each family, as PNG."""
    parts = families(trials)
    labels = [label for label in DRAWN if label in known(trials)]
    labels.sort(key=lambda label: fmean(shares(trials, label)))
    columns = min(3, len(parts))
    rows = -(-len(parts) // columns)
    with styled():
        picture, axes = figure(rows, columns, width=3.6 * columns, height=0.9 + 2.6 * rows)
        for place, (axis, (family, mine)) in enumerate(zip(axes, parts.items(), strict=False)):
            for number, regime in enumerate(("mild", "hot")):
                of = {name: one for name, one in mine.items() if name.endswith(regime)}
                cells = [mean(shares(of, label)) for label in labels]
                axis.errorbar(
                    [one.points for one in cells],
                    [row + 0.24 * number - 0.12 for row in range(len(labels))],
                    xerr=[0 if math.isnan(one.margin) else one.margin for one in cells],
                    capsize=2,
                    markersize=5,
                    label=f"{regime} experts",
                    **{**look(number), "linestyle": ""},
                )
            axis.axvline(0, color="black", linewidth=1)
            axis.set(xlim=(-105, 105), title=family, xlabel="recovered gap (%)")
            axis.set_yticks(range(len(labels)), labels if place % columns == 0 else [""] * len(labels))
        for axis in axes[len(parts) :]:
            axis.set_axis_off()
        picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
        return png(picture)


def draw_tasks(trials: Suites) -> bytes:
    """Mean accuracy by number of tasks, a panel for each regime, as PNG."""
    curves = by_tasks(trials)
    with styled():
        picture, axes = figure(columns=len(curves), width=9.0, height=4.4)
        for axis, (regime, mine) in zip(axes, curves.items(), strict=True):
            common = set.intersection(*(set(one.data_used) for one in mine.values()))
            labels = ["base", *(label for label in DRAWN if label in common), "experts"]
            for place, label in enumerate(labels):
                cells = [mean(one.accuracies(label)) for one in mine.values()]
                axis.errorbar(
                    [tasks + 0.12 * (place - len(labels) / 2) for tasks in mine],
                    [one.points for one in cells],
                    yerr=[0 if math.isnan(one.margin) else one.margin for one in cells],
                    capsize=2,
                    markersize=5,
                    label=label,
                    **look(place),
                )
            axis.set(xlabel="number of tasks", ylabel="mean accuracy (%)", title=f"ConvNet, SGD, {regime} experts")
            axis.set_xticks(list(mine))
        picture.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return png(picture)


# The page


def page(
    trials: Suites,
    again: Suites,
    groups: Mapping[str, Iterable[str]],
    pictures: Mapping[str, str],
    plan: Mapping[str, int],
) -> str:
    """The page in Markdown.

    Args:
        trials: what was measured.
        again: a second run of some cells; may be empty.
        groups: labels by "methods", "rescaled", "limited", "late", "ablations"; whatever else was measured used data.
        pictures: names of the files that `draw_families` ("families") and `draw_tasks` ("tasks") went into.
        plan: by suite, how many pools there are to be.
    """
    there = known(trials)
    ablated = {name: one for name, one in trials.items() if set(groups["ablations"]) & set(one.data_used)}
    pieces = [label for label in groups["ablations"] if ablated and label in known(ablated)]
    group = {name: [label for label in labels if label in there] for name, labels in groups.items()}
    methods = [*group["methods"], *group["rescaled"]]
    with_data = sorted(there - {label for labels in groups.values() for label in labels})
    limited = ["apgd", *group["late"], *(label for label in PEERS if label in there), *group["limited"]]
    parts: list[str | Table | None] = [
        "# The comparison",
        "Generated by `python benchmarks/compare.py report`; do not edit. One row again, on your machine: "
        '`python benchmarks/compare.py repeat --suite "8 tasks, MLP, sgd hot" --seed 30 --row apgd`.',
        measured(trials, plan),
        "## Without data",
        overview(trials, methods, "Without data"),
        f"![Recovered gap of each method, family by family]({pictures['families']})"
        if "families" in pictures
        else None,
        bar(trials),
        against(trials, "apgd", [label for label in methods if label != "apgd"]) if "apgd" in there else None,
        "## With data",
        overview(trials, [*with_data, "average"], "With data, and the average") if with_data else None,
        "## The limit and the biases, left out and given to others",
        overview(trials, [one for one in limited if one in there], "With and without"),
        against(trials, "apgd", group["late"]) if group["late"] and "apgd" in there else None,
        "## One piece at a time" if pieces else None,
        overview(ablated, [*(one for one in ("apgd", "the paper") if one in known(ablated)), *pieces], "Pieces")
        if pieces
        else None,
        against(ablated, "apgd", [one for one in pieces if one.startswith("apgd")]) if pieces else None,
        "## Number of tasks",
        growth(trials),
        f"![Mean accuracy by number of tasks]({pictures['tasks']})" if "tasks" in pictures else None,
        "## Run twice" if again else None,
        repeated(trials, again) if again else None,
        "## Setting by setting",
        *(setting(name, one, [one for one in [*methods, *with_data] if one in there]) for name, one in trials.items()),
    ]
    return "\n\n".join(_markdown(parts)) + "\n"


def _markdown(parts: list[str | Table | None]) -> list[str]:
    """What there is, without headings that have nothing below them."""
    texts = [part.to_markdown() if isinstance(part, Table) else part for part in parts if part is not None]
    return [
        text
        for place, text in enumerate(texts)
        if not (text.startswith("## ") and (place + 1 == len(texts) or texts[place + 1].startswith("## ")))
    ]


def quoted(trials: Suites, groups: Mapping[str, Iterable[str]], plan: Mapping[str, int]) -> dict[str, str]:
    """What README and docs show of it, by the name that stands in their comments (`insert`)."""
    labels = [label for label in groups["methods"] if label in known(trials)]
    return {
        "methods": overview(trials, labels, "Without data").to_markdown(),
        "bar": bar(trials).to_markdown(),
        "measured": measured(trials, plan).to_markdown(),
    }


_MARKED = re.compile(r"(<!-- compare: (\w+) -->\n).*?(<!-- compare end -->)", re.DOTALL)


def insert(text: str, tables: Mapping[str, str]) -> str:
    """A document with the tables that it names: between `<!-- compare: NAME -->` and `<!-- compare end -->`.

    Raises:
        KeyError: it names a table that there is not.
    """
    return _MARKED.sub(lambda found: f"{found[1]}\n{tables[found[2]]}\n\n{found[3]}", text)


def write(
    path: Path, again: Path, groups: Mapping[str, Iterable[str]], plan: Mapping[str, int], documents: Iterable[Path]
) -> None:
    """The page and its pictures, beside the results, and the tables in the documents that quote them.

    Raises:
        SystemExit: there are no results yet.
    """
    trials = finished(load(path))
    if not trials:
        raise SystemExit(f"{path.name} has no results yet; run `python benchmarks/compare.py run` first.")
    drawn = {"families": draw_families(trials), **({"tasks": draw_tasks(trials)} if by_tasks(trials) else {})}
    pictures = {name: f"{path.stem}_{name}.png" for name in drawn}
    for name, picture in drawn.items():
        write_atomically(path.with_name(pictures[name]), picture)
    text = page(trials, finished(load(again)), groups, pictures, plan)
    write_atomically(path.with_suffix(".md"), text.encode())
    tables = quoted(trials, groups, plan)
    for document in documents:
        write_atomically(document, insert(document.read_text(encoding="utf-8"), tables).encode())
