"""Who pays for one λ: what each task's own choice of it costs all the others, on test images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator, compare
from apgd_teach.experts import Pool
from apgd_teach.figures.sweeps import Sweep, combined
from apgd_teach.merging import StateDict, task_vectors
from apgd_teach.tables import Table

__all__ = ["Bill", "Trade", "measure_bill"]


@dataclass(frozen=True)
class Trade:
    """One of two tasks, at its own λ and at the other's.

    Attributes:
        title: of the task.
        own: the λ at which its gap is smallest on the images of the sweep.
        other: that of the other task.
        less: its gap at its own λ minus that at the other's (nats): below zero where it does better at its own.
        margin: half the width of the 95 % interval of `less` over test images, paired image by image; NaN for one.
    """

    title: str
    own: float
    other: float
    less: float
    margin: float

    @property
    def shown(self) -> bool:
        """Whether the whole interval lies below zero: the task is seen to do better at its own λ."""
        return self.less + self.margin < 0


@dataclass(frozen=True)
class Bill:
    """Task arithmetic on test images, at every λ that somebody chose on the images of a sweep.

    Attributes:
        sweeps: by the kind of the experts, where λ was chosen.
        scored: by the kind of the experts, the network at each of those λ; see `at`.
        trades: by the kind of the experts, the two tasks most at stake (`Sweep.at_stake`).

    Lesson: 03.
    """

    sweeps: dict[str, Sweep]
    scored: dict[str, Comparison]
    trades: dict[str, tuple[Trade, Trade]]

    def at(self, experts: str, coefficient: float | None) -> tuple[float, float, str]:
        """Mean accuracy (%), that of the worst task, and the title of that; None for the base.

        Raises:
            ApgdTeachError: nobody chose that λ.
        """
        scored, label = self.scored[experts], "base" if coefficient is None else _label(coefficient)
        task, lowest = scored.worst(label)
        return scored.average(label), lowest, scored.titles[task]

    def changes(self, experts: str) -> dict[float, dict[str, float]]:
        """By λ that a task wants, and by task: its gap there minus that at the λ of the smallest mean gap (nats)."""
        swept, scored = self.sweeps[experts], self.scored[experts]
        common = scored.gap(_label(swept.common))
        return {
            coefficient: {task: gap - common[task] for task, gap in scored.gap(_label(coefficient)).items()}
            for coefficient in sorted({swept.common, *swept.own.values()})
        }

    def table(self, experts: str) -> Table:
        """What each task's own λ does to the gap of every task."""
        swept, titles = self.sweeps[experts], self.scored[experts].titles
        return Table(
            ("λ", "wanted by", *titles.values()),
            [
                (
                    f"{coefficient:g}",
                    "; ".join(titles[task] for task, own in swept.own.items() if own == coefficient) or "no task",
                    *map(signed, changes.values()),
                )
                for coefficient, changes in self.changes(experts).items()
            ],
            caption=f"What another λ than {swept.common:g} does to each gap: nats, test images, {experts} experts",
            note=f"λ = {swept.common:g} has the smallest mean gap on validation images. {self.scored[experts].tier}.",
        )

    def words(self, experts: str) -> str:
        """What one of the two tasks pays and the other one saves, with intervals, and whether both are shown."""
        if len(set(self.sweeps[experts].own.values())) == 1:
            (only,) = set(self.sweeps[experts].own.values())
            return (
                f"**{experts.capitalize()} experts: not shown in this run.** All tasks want λ = {only:g}, of those "
                "that were tried: there are no two to compare."
            )
        one, other = self.trades[experts]
        shown = one.shown and other.shown
        better = [f"*{each.title}*" for each in (one, other) if each.shown]
        aside = "" if shown else f" {'Only ' + better[0] if better else 'Neither'} clearly does better at its own λ."
        return (
            f"**{experts.capitalize()} experts: {'shown' if shown else 'not shown in this run'}.** *{one.title}* wants "
            f"λ = {one.own:g} and *{other.title}* {other.own:g}. On test images, moving from the first to the second "
            f"changes the gap of the one by {signed(-one.less)} ± {_size(one.margin)} nats and that of the other by "
            f"{signed(other.less)} ± {_size(other.margin)}.{aside}"
        )

    def rules_table(self) -> Table:
        """What each rule for choosing λ gives, for every kind of experts."""
        return Table(
            ("experts", "λ chosen by", "λ", "mean %", "worst %", "worst task"),
            [
                (experts, rule, "–" if coefficient is None else f"{coefficient:g}", *self.at(experts, coefficient))
                for experts, swept in self.sweeps.items()
                for rule, coefficient in {
                    "nobody: the base": None,
                    f"nobody: the average, 1/{len(swept.titles)}": 1 / len(swept.titles),
                    **swept.by_rule,
                }.items()
            ],
            caption="Two rules for λ, chosen on validation images, reported on test images",
            note=f"{next(iter(self.scored.values())).tier}.",
        )


def measure_bill(pools: Mapping[str, Pool], sweeps: Mapping[str, Sweep], *, images: int | None = None) -> Bill:
    """Score task arithmetic on test images at every λ that a task or a rule chose in a sweep.

    Args:
        pools: by the kind of the experts; two tasks each, or more.
        sweeps: of the same pools, on other images than those of the test.
        images: test images per task, the first ones; all by default. The two tasks most at stake are always asked on
            all of theirs.

    Raises:
        ApgdTeachError: the sweeps are of other pools or of other tasks.

    Lesson: 03.
    """
    if set(pools) != set(sweeps) or any(set(pool.tasks) != set(sweeps[name].titles) for name, pool in pools.items()):
        raise ApgdTeachError("these sweeps are of other pools or tasks; give a sweep of each pool, under its name.")
    scored, trades = {}, {}
    for experts, pool in pools.items():
        swept, vectors = sweeps[experts], task_vectors(pool.base, pool.experts)
        chosen = {1 / len(pool.tasks), swept.common, *swept.own.values(), *swept.by_rule.values()}
        networks = {_label(one): combined(pool.base, vectors, one) for one in sorted(chosen)}
        scored[experts] = compare(pool, networks, images=images)
        one, other = swept.at_stake
        judge = Evaluator(pool.only((one, other)))
        trades[experts] = _trade(judge, swept, networks, one, other), _trade(judge, swept, networks, other, one)
    return Bill(dict(sweeps), scored, trades)


def _trade(judge: Evaluator, swept: Sweep, networks: Mapping[str, StateDict], task: str, other: str) -> Trade:
    own, others = (swept.own[one] for one in (task, other))
    here, there = (judge.score(networks[_label(one)], task).losses for one in (own, others))
    less = here - there
    margin = 1.96 * float(less.std()) / math.sqrt(len(less)) if len(less) > 1 else math.nan
    return Trade(swept.titles[task], own, others, float(less.mean()), margin)


def signed(value: float) -> str:
    """A number of nats with its sign: "+0.012", "−0.200"; what rounds to zero has none."""
    return f"{value:+.3f}".replace("-", "−") if abs(value) >= 0.0005 else "0"


def _size(margin: float) -> str:
    return "–" if math.isnan(margin) else f"{margin:.3f}"


def _label(coefficient: float) -> str:
    return f"{coefficient:g}"
