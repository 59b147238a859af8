"""Methods tried on several pools that differ in their seed: who is ahead, by how much, with what data, at what cost.

`try_methods` merges and scores; what it returns, `Trials`, holds everything that a table or a figure of the comparison
needs. Several kinds of experts are a dict of them, by name.
"""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from statistics import fmean, median
from typing import TypeVar

import psutil

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Difference, Evaluator, compare, paired
from apgd_teach.experts import Pool
from apgd_teach.merging import Merged, Method, merge
from apgd_teach.merging.statedict import relative_norm
from apgd_teach.progress import say
from apgd_teach.tables import Table

__all__ = [
    "Cost",
    "Reference",
    "Trials",
    "chances",
    "cost_table",
    "gains",
    "measured",
    "rivals",
    "try_methods",
    "tuned",
]

Reference = Callable[[Pool], Merged]
"""Makes one network of a pool, and may look at its images: its audit says which."""

_Made = TypeVar("_Made")

_SAMPLE_S = 0.005


@dataclass(frozen=True)
class Cost:
    """What one call took.

    Attributes:
        seconds: by the clock.
        megabytes: by how many the process grew at most while it ran, in units of 10⁶ bytes. What an earlier call left
            free is not counted, so small numbers mean little.
    """

    seconds: float
    megabytes: float


def measured(make: Callable[[], _Made]) -> tuple[_Made, Cost]:
    """Call something, and say what it took; memory is looked at every five milliseconds.

    Args:
        make: what to call.

    Lesson: 07.
    """
    process, done = psutil.Process(), threading.Event()
    before = peak = process.memory_info().rss

    def watch() -> None:
        nonlocal peak
        while not done.wait(_SAMPLE_S):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch, daemon=True, name="apgd-teach-cost")
    watcher.start()
    start = time.perf_counter()
    try:
        made = make()
        seconds = time.perf_counter() - start
    finally:
        done.set()
        watcher.join()
    return made, Cost(seconds, (max(peak, process.memory_info().rss) - before) / 1e6)


@dataclass(frozen=True)
class Trials:
    """The same methods on several pools of one kind, which differ in their seed.

    A label is a method's; most functions take "base" and "experts" (each task's own) as well.

    Attributes:
        compared: by seed, the scores of every network.
        pools: by seed, what was merged; empty where only scores were kept, and so are the other two.
        merged: by seed, by label, the networks.
        costs: by seed, by label, what making the network took.

    Raises:
        ApgdTeachError: there is no seed, or two seeds compare different methods.

    Lesson: 07.
    """

    compared: dict[int, Comparison]
    pools: dict[int, Pool] = field(default_factory=dict)
    merged: dict[int, dict[str, Merged]] = field(default_factory=dict)
    costs: dict[int, dict[str, Cost]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.compared:
            raise ApgdTeachError("no pool was tried; give one for each seed, by seed.")
        for seed, one in self.compared.items():
            odd = sorted(set(one.merged) ^ set(self._first.merged))
            if odd:
                raise ApgdTeachError(
                    f"'{odd[0]}' was not compared at every seed (look at {seed}); compare the same ones."
                )

    @property
    def _first(self) -> Comparison:
        return next(iter(self.compared.values()))

    @property
    def seeds(self) -> tuple[int, ...]:
        """In the order in which they were given."""
        return tuple(self.compared)

    @property
    def data_used(self) -> dict[str, str]:
        """By label, what data the method used beside the weights."""
        return self._first.data_used

    def accuracies(self, label: str) -> list[float]:
        """Mean accuracy over the tasks (%), seed by seed."""
        return [one.average(label) for one in self.compared.values()]

    def mean(self, label: str) -> float:
        """Mean accuracy over tasks and seeds (%)."""
        return fmean(self.accuracies(label))

    def worst(self, label: str) -> float:
        """Accuracy (%) of the task that is worst at each seed, the mean over the seeds."""
        return fmean(one.worst(label)[1] for one in self.compared.values())

    def gains(self) -> list[float]:
        """What fine-tuning was worth, seed by seed: points of mean accuracy of the experts above their base."""
        return [one.average("experts") - one.average("base") for one in self.compared.values()]

    def against(self, label: str, other: str) -> Difference:
        """Points of mean accuracy, paired by seed, with the 95 % interval over the seeds."""
        return paired(self.accuracies(label), self.accuracies(other))

    def unpaired(self, label: str, other: str) -> Difference:
        """The same difference with the interval of two methods that were tried on seeds of their own."""
        zeros = [0.0] * len(self.seeds)
        one, two = (paired(self.accuracies(each), zeros) for each in (label, other))
        return Difference(one.points - two.points, math.hypot(one.margin, two.margin))

    def recovered(self, label: str) -> Difference:
        """100 · (merged − base) / (experts − base): its mean over the seeds, with the 95 % interval over them.

        NaN where the experts of a seed are not better than their base.
        """
        shares = [100 * one.recovered(label) for one in self.compared.values()]
        return paired(shares, [0.0] * len(shares))

    def recovered_words(self, label: str) -> str:
        """`recovered` as it stands in a table: "48 ± 17"; "–" where it is NaN."""
        share = self.recovered(label)
        if math.isnan(share.points):
            return "–"
        margin = "–" if math.isnan(share.margin) else f"{share.margin:.0f}"
        return f"{share.points:.0f} ± {margin}".replace("-", "−")

    def ranking(self, *data: str) -> list[str]:
        """Labels, the highest mean accuracy first.

        Args:
            data: only methods that used such data ("none", "unlabelled", …); all by default.
        """
        labels = [label for label, used in self.data_used.items() if not data or used in data]
        # To what a picture more or less makes of it: where two are equal, their names decide and not their last digits.
        return sorted(labels, key=lambda label: (-round(self.mean(label), 9), label))

    def leaders(self, *data: str) -> list[str]:
        """All labels that share the highest mean accuracy; `data` as for `ranking`."""
        labels = self.ranking(*data)
        return [label for label in labels if round(self.mean(label) - self.mean(labels[0]), 9) == 0]

    def verdicts(self, other: str, labels: Iterable[str]) -> dict[str, list[str]]:
        """By verdict over the seeds ("better", "worse", "no difference seen"), who has it against another."""
        found: dict[str, list[str]] = {"better": [], "worse": [], "no difference seen": []}
        for label in labels:
            if label != other:
                found[self.against(label, other).verdict].append(label)
        return found

    def reach(self, other: str, labels: Iterable[str]) -> float:
        """Half of the median interval against another, in points: smaller differences are mostly out of sight."""
        return median(self.against(label, other).margin for label in labels if label != other)

    def step(self, label: str) -> float:
        """‖M‖ / ‖θ₀‖ in per cent, the mean over the seeds; of networks that were kept."""
        return 100 * fmean(
            relative_norm(pool.base, self._network(seed, label).state_dict) for seed, pool in self.pools.items()
        )

    def strongest(self, labels: Sequence[str], *, images: int | None = None) -> str:
        """The most accurate of some methods on *validation* images of the first seed: test images choose nothing.

        Args:
            labels: among these; their networks were kept.
            images: per task, the first ones; all by default.
        """
        seed = self.seeds[0]
        candidates = {label: self._network(seed, label) for label in labels}
        scored = compare(self.pools[seed], candidates, images=images, split="validation")
        return max(labels, key=scored.average)

    def on(self, pools: Mapping[int, Pool], labels: Iterable[str], *, images: int | None = None) -> Trials:
        """Some of the same networks on other images: nothing is merged again.

        Args:
            pools: by seed, the same pools with other data.
            labels: of networks that were kept.
            images: per task, the first ones of the test images; all by default.
        """
        merged = {seed: {label: self._network(seed, label) for label in labels} for seed in pools}
        compared = {seed: compare(pool, merged[seed], images=images) for seed, pool in pools.items()}
        return Trials(compared, dict(pools), merged)

    def standing(self, reference: str = "average", *, title: str = "", bold: Iterable[str] = ()) -> Table:
        """A row per network: the base, methods by the class of data they used, and each task's own expert.

        Args:
            reference: held against this one.
            title: which experts, for the caption.
            bold: labels to emphasise.
        """
        classes = sorted(set(self.data_used.values()), key=lambda used: (used != "none", used))
        labels = ["base", *(label for used in classes for label in self.ranking(used)), "experts"]
        chosen = set(bold)
        return Table(
            ("network", "data used", "mean %", "worst task %", "recovered %", f"against {reference}", "verdict"),
            [self._row(label, reference) for label in labels],
            caption=f"{title + ': means' if title else 'Means'} over the seeds {', '.join(map(str, self.seeds))}",
            note="Worst task: the lowest accuracy of a task at each seed, then the mean. Recovered: (merged − base) / "
            "(experts − base) at each seed, then the mean; a seed at which the experts gained little weighs much in "
            f"it, so verdicts are made in points. Against {reference}: points, paired by seed. Intervals: 95 %, over "
            f"seeds. Images: {self._first.tier.partition(';')[0]}.",
            bold=[place for place, label in enumerate(labels) if label in chosen],
        )

    def _row(self, label: str, reference: str) -> tuple[object, ...]:
        bound = label in ("base", "experts")
        difference = None if label == reference else self.against(label, reference)
        return (
            "each its own expert" if label == "experts" else label,
            "–" if bound else self.data_used[label],
            self.mean(label),
            self.worst(label),
            "–" if bound else self.recovered_words(label),
            "–" if difference is None else str(difference),
            "–" if difference is None else difference.verdict,
        )

    def _network(self, seed: int, label: str) -> Merged:
        kept = self.merged.get(seed, {})
        if label not in kept:
            raise ApgdTeachError(
                f"no network '{label}' was kept for the seed {seed}; there are: {', '.join(kept) or 'none'}."
            )
        return kept[label]


def try_methods(
    pools: Mapping[int, Pool],
    methods: Mapping[str, Method],
    references: Mapping[str, Reference] | None = None,
    *,
    images: int | None = None,
    title: str = "",
    progress: bool = True,
) -> Trials:
    """Merge every pool by every method, and score what comes out on the pool's test images.

    Args:
        pools: by seed.
        methods: by label; they get the weights and nothing else.
        references: by label, what to hold them against: called with the pool, and free to look at its images.
        images: per task, the first ones of the test images; all by default.
        title: which experts, for the progress.
        progress: a sentence for every pool.

    Raises:
        ApgdTeachError: there is no pool, a label is taken twice, or what `merge` and `compare` raise.

    Lesson: 07.
    """
    others = references or {}
    twice = sorted(set(methods) & set(others))
    if twice:
        raise ApgdTeachError(f"'{twice[0]}' is a method and a reference; give one of them another label.")
    makers = {**{label: _by(method) for label, method in methods.items()}, **others}
    merged: dict[int, dict[str, Merged]] = {}
    costs: dict[int, dict[str, Cost]] = {}
    compared: dict[int, Comparison] = {}
    for seed, pool in pools.items():
        # Garbage that is cleared away meanwhile would be counted to the credit of whoever comes next.
        gc.collect()
        made = {label: measured(partial(make, pool)) for label, make in makers.items()}
        merged[seed] = {label: network for label, (network, _) in made.items()}
        costs[seed] = {label: cost for label, (_, cost) in made.items()}
        compared[seed] = compare(pool, merged[seed], images=images)
        # Without its seconds: two runs of a notebook say the same, and what it cost has a table of its own.
        say(f"{title + ', seed' if title else 'Seed'} {seed}: {len(makers)} networks made and scored.", progress)
    return Trials(compared, dict(pools), merged, costs)


def tuned(pool: Pool, *, candidates: Sequence[Method], images: int | None = None) -> Merged:
    """A method with its settings chosen on labelled *validation* images of the pool, as a reference.

    Args:
        pool: what to merge, and whose validation images choose.
        candidates: the same method with other settings, or other methods.
        images: per task, the first ones; all by default.

    Returns:
        The most accurate merge; `audit.settings` says what was chosen, and `audit.data_used` is "labelled".

    Raises:
        ApgdTeachError: there is no candidate, or what `merge` and `compare` raise.

    Lesson: 07.
    """
    if not candidates:
        raise ApgdTeachError("there is nothing to choose from; give one candidate or more.")
    evaluator = Evaluator(pool, images=images, split="validation")
    tried = [merge(pool.base, pool.experts, one) for one in candidates]
    accuracies = [fmean(score.accuracy for score in evaluator.scores(one.state_dict).values()) for one in tried]
    best = tried[accuracies.index(max(accuracies))]
    return replace(best, audit=replace(best.audit, data_used="labelled"))


def _by(method: Method) -> Reference:
    """A merge by a method, which sees of the pool its weights alone."""
    return lambda pool: merge(pool.base, pool.experts, method)


def gains(groups: Mapping[str, Trials]) -> Table:
    """What there is to recover: base and experts of every pool.

    Args:
        groups: trials by the kind of experts.

    Lesson: 07.
    """
    return Table(
        ("experts", "seed", "base", "each its own expert", "gained", "one point, % of it"),
        [
            (name, seed, one.average("base"), one.average("experts"), gained, 100 / gained if gained > 0 else None)
            for name, trials in groups.items()
            for (seed, one), gained in zip(trials.compared.items(), trials.gains(), strict=True)
        ],
        caption="Mean accuracy (%) over the tasks: what there is to recover",
        note=f"Images: {_images(groups)}.",
    )


def chances(groups: Mapping[str, Trials], labels: Sequence[str], other: str = "average") -> Table:
    """Two kinds of interval beside each other: over test images at each seed, and over the seeds.

    Args:
        groups: trials by the kind of experts, with the same seeds.
        labels: of the methods.
        other: held against this one.

    Lesson: 07.
    """
    seeds = next(iter(groups.values())).seeds
    return Table(
        (
            "experts",
            "method",
            *(f"seed {seed}, over images" for seed in seeds),
            "mean, over seeds",
            "verdict",
            "were the seeds not paired",
        ),
        [
            (
                name,
                label,
                *(str(one.against(label, other)) for one in trials.compared.values()),
                str(trials.against(label, other)),
                trials.against(label, other).verdict,
                str(trials.unpaired(label, other)),
            )
            for name, trials in groups.items()
            for label in labels
        ],
        caption=f"Points of mean accuracy against {other}, with 95 % intervals",
        note="The verdict is that of the interval over seeds. Last column: the same accuracies, had the two methods "
        "been tried on different seeds; it is the wider one where a seed moves both methods alike, and may be the "
        f"narrower one where their difference varies with the seed. Images: {_images(groups)}.",
    )


def rivals(groups: Mapping[str, Trials], labels: Iterable[str], strongest: Mapping[str, str]) -> Table:
    """Some methods against three opponents: the average, the strongest of the others, and not merging at all.

    Args:
        groups: trials by the kind of experts.
        labels: of the methods.
        strongest: by the kind of experts, the label of the strongest of the others.

    Lesson: 07.
    """
    return Table(
        ("experts", "method", "against average", "against the one that validation picked", "against the base"),
        [
            (
                name,
                label,
                trials.against(label, "average").told,
                f"{strongest[name]}: {trials.against(label, strongest[name]).told}",
                trials.against(label, "base").told,
            )
            for name, trials in groups.items()
            for label in labels
        ],
        caption="Points of mean accuracy against three opponents, paired by seed, with 95 % intervals",
        note=f"Images: {_images(groups)}.",
    )


def cost_table(
    groups: Iterable[Trials], *, trained: Mapping[str, Sequence[float]] | None = None, note: str = ""
) -> Table:
    """What each method took, the cheapest first.

    Args:
        groups: trials whose costs were measured, on pools of the same number of tasks.
        trained: by label, the seconds of what was trained once and then came from the cache, in place of what was
            measured.
        note: a sentence more for the line below the table.

    Raises:
        ApgdTeachError: no costs were kept.

    Lesson: 07.
    """
    taken: dict[str, list[Cost]] = {}
    used: dict[str, str] = {}
    size: dict[str, int | None] = {}
    for trials in groups:
        used |= trials.data_used
        for seed, costs in trials.costs.items():
            for label, cost in costs.items():
                taken.setdefault(label, []).append(cost)
                network = trials.merged.get(seed, {}).get(label)
                size[label] = sum(tensor.numel() for tensor in network.state_dict.values()) if network else None
    if not taken:
        raise ApgdTeachError("nothing is known of what these took; give trials that `try_methods` made.")
    seconds = {label: fmean(cost.seconds for cost in costs) for label, costs in taken.items()}
    seconds |= {label: fmean(each) for label, each in (trained or {}).items()}
    most = {label: max(cost.megabytes for cost in costs) for label, costs in taken.items()}
    return Table(
        ("method", "data used", "seconds", "memory, MB more", "parameters of the result"),
        [
            (label, used[label], seconds[label], None if label in (trained or {}) else most[label], size[label])
            for label in sorted(taken, key=seconds.__getitem__)
        ],
        digits=2,
        caption="What making one network takes on this machine",
        note="Seconds: the mean over all pools. Memory: the most by which this process grew during one call; what an "
        f"earlier call left free is not counted, so small numbers mean little.{' ' + note if note else ''}",
    )


def _images(groups: Mapping[str, Trials]) -> str:
    """Tier, split and number of the images, without the seed."""
    first = next(iter(groups.values())).compared.values()
    return next(iter(first)).tier.partition(";")[0]
