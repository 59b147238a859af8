"""How a merge depends on its coefficient, and how methods stand beside each other with their intervals."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations

import torch
from matplotlib.lines import Line2D
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Difference, Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, MARKERS, figure, look, styled
from apgd_teach.merging import StateDict, TaskArithmetic
from apgd_teach.merging.statedict import norm
from apgd_teach.progress import bar

__all__ = ["Sweep", "combined", "draw_methods", "draw_sweep", "draw_tradeoff", "sweep"]

_GREY = COLORS[7]


@dataclass(frozen=True)
class Sweep:
    """Task arithmetic scored at several merging coefficients.

    Attributes:
        coefficients: λ, rising; 1/T is always among them.
        accuracies: per task, per cent of the images named rightly at each λ.
        against: at each λ, the difference of the mean accuracy from the base's, with its 95 % interval.
        base: per task, the base's accuracy (%).
        experts: per task, the accuracy of the task's own expert (%).
        titles: of the tasks, by name.
        gaps: per task, its loss at each λ less that of its own expert (nats).
        length: ‖Στᵢ‖, all tensors together: how far λ = 1 is from the base.
        split: the images, "test" or "validation".

    Lesson: 03.
    """

    coefficients: tuple[float, ...]
    accuracies: dict[str, tuple[float, ...]]
    against: tuple[Difference, ...]
    base: dict[str, float]
    experts: dict[str, float]
    titles: dict[str, str]
    gaps: dict[str, tuple[float, ...]]
    length: float
    split: str = "test"

    @property
    def own(self) -> dict[str, float]:
        """Per task, the λ at which its own gap is smallest."""
        return {task: self._at(gaps) for task, gaps in self.gaps.items()}

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest λ that a task wants."""
        return min(self.own.values()), max(self.own.values())

    @property
    def common(self) -> float:
        """The λ at which the mean gap over the tasks is smallest."""
        return self._at([sum(at) / len(at) for at in zip(*self.gaps.values(), strict=True)])

    @property
    def at_stake(self) -> tuple[str, str]:
        """The two tasks that pay most between them, each at the other's λ; the one that wants the smaller λ first.

        Raises:
            ApgdTeachError: there are fewer than two tasks.
        """
        if len(self.gaps) < 2:
            raise ApgdTeachError("nobody can be at another's λ in a sweep of one task; sweep two or more.")

        def stake(pair: tuple[str, str]) -> float:
            return sum(self.gap_at(task, self.own[other]) - min(self.gaps[task]) for task, other in (pair, pair[::-1]))

        pairs = permutations(self.own, 2)
        return max((pair for pair in pairs if self.own[pair[0]] <= self.own[pair[1]]), key=stake)

    def gap_at(self, task: str, coefficient: float) -> float:
        """A task's gap (nats) at one of the λ.

        Raises:
            ApgdTeachError: nothing was measured at that λ.
        """
        return self.gaps[task][place_of(self.coefficients, coefficient, "λ")]

    @property
    def by_rule(self) -> dict[str, float]:
        """λ by two rules: that of the highest mean accuracy, and of the highest accuracy of the worst task.

        The smallest λ where several are as good.
        """
        worst = [accuracy for _, accuracy in self.worst]
        return {
            rule: self.coefficients[max(range(len(values)), key=values.__getitem__)]
            for rule, values in (("highest mean", self.means), ("highest worst task", worst))
        }

    def _at(self, gaps: Sequence[float]) -> float:
        return self.coefficients[min(range(len(gaps)), key=gaps.__getitem__)]

    @property
    def means(self) -> tuple[float, ...]:
        """Mean accuracy over the tasks (%) at each λ."""
        return tuple(sum(at) / len(at) for at in zip(*self.accuracies.values(), strict=True))

    @property
    def worst(self) -> tuple[tuple[str, float], ...]:
        """At each λ, the task of the lowest accuracy, and that accuracy (%)."""
        found = []
        for place in range(len(self.coefficients)):
            task = min(self.accuracies, key=lambda name: self.accuracies[name][place])
            found.append((task, self.accuracies[task][place]))
        return tuple(found)


def sweep(
    evaluator: Evaluator,
    base: StateDict,
    vectors: Mapping[str, StateDict],
    coefficients: Sequence[float],
    *,
    progress: bool = True,
) -> Sweep:
    """Score θ₀ + λ Στᵢ at each λ, in every tensor: λ = 0 is the base and λ = 1/T the average.

    `merge` with the method `task_arithmetic` does the same to weights and averages biases whatever λ is, which is
    another network where λ is not 1/T: hot experts' biases can go far.

    Args:
        evaluator: says which images; its pool has the tasks of `vectors`.
        base: θ₀.
        vectors: τᵢ by task, as `task_vectors` gives them.
        coefficients: λ; 1/T is scored beside them.
        progress: show a bar.

    Raises:
        ApgdTeachError: there is no coefficient, one is no finite number, or the tasks are not the evaluator's.

    Lesson: 03.
    """
    if not len(coefficients):
        raise ApgdTeachError("a sweep over no merging coefficient shows nothing; give at least one number.")
    if not vectors or set(vectors) != set(evaluator.pool.tasks):
        raise ApgdTeachError(
            f"the sweep has task vectors of {_listed(vectors)} and images of {_listed(evaluator.pool.tasks)}; "
            "give both for the same tasks, as with pool.only([…])."
        )
    experts = {task: combined(base, {task: tau}, 1.0) for task, tau in vectors.items()}
    tasks = list(evaluator.pool.tasks)
    every = sorted({*coefficients, 1 / len(tasks)})
    merged = {}
    with bar(len(every), "network", "sweep of λ", progress) as networks:
        for place, coefficient in enumerate(every):
            merged[str(place)] = evaluator.scores(combined(base, vectors, coefficient))
            networks.update(1)
    titles = {task: evaluator.pool.tasks[task].title for task in tasks}
    own = {task: evaluator.score(experts[task], task) for task in tasks}
    # λ = 0 is the base, which then need not be scored twice.
    unmerged = merged[str(every.index(0))] if 0 in every else evaluator.scores(base)
    compared = Comparison(titles, unmerged, own, merged, dict.fromkeys(merged, "none"), "")
    return Sweep(
        coefficients=tuple(float(one) for one in every),
        accuracies={task: tuple(scores[task].accuracy for scores in merged.values()) for task in tasks},
        against=tuple(compared.against(label) for label in merged),
        base={task: score.accuracy for task, score in compared.base.items()},
        experts={task: score.accuracy for task, score in compared.experts.items()},
        titles=titles,
        gaps={
            task: tuple(scores[task].loss - compared.experts[task].loss for scores in merged.values()) for task in tasks
        },
        length=math.hypot(
            *(norm(torch.stack([tau[key] for tau in vectors.values()]).sum(dim=0)) for key in vectors[tasks[0]])
        ),
        split=evaluator.split,
    )


def combined(base: StateDict, vectors: Mapping[str, StateDict], coefficient: float) -> dict[str, Tensor]:
    """θ₀ + λ Στᵢ in every tensor that has a task vector, biases too; the others are the base's.

    Args:
        base: θ₀.
        vectors: τᵢ by task, as `task_vectors` gives them.
        coefficient: λ.

    Raises:
        ApgdTeachError: λ is no finite number.

    Lesson: 03.
    """
    step, taus = TaskArithmetic(coefficient).coefficient, list(vectors.values())
    return {key: one + step * sum(tau[key] for tau in taus) if key in taus[0] else one for key, one in base.items()}


def draw_sweep(measured: Sweep, *, coefficient: float) -> Drawing:
    """Mean accuracy, worst task and every task over λ, between base and experts.

    Args:
        measured: what `sweep` gave.
        coefficient: the λ that is marked and put into words; one of those measured.

    Raises:
        ApgdTeachError: nothing was measured at that λ.

    Lesson: 03.
    """
    place = place_of(measured.coefficients, coefficient, "λ")
    chosen, means, worst = measured.coefficients[place], measured.means, measured.worst
    count = len(measured.titles)
    base, experts = (sum(one.values()) / count for one in (measured.base, measured.experts))
    average = place_of(measured.coefficients, 1 / count, "λ")
    with styled():
        drawn, (axes,) = figure(width=7.6, height=4.6)
        for i, line in enumerate(measured.accuracies.values()):
            axes.plot(
                measured.coefficients,
                line,
                color="#B5B5B5",
                linestyle="-",
                linewidth=0.9,
                label="" if i else "each task",
                zorder=1.5,
            )
        axes.axhline(experts, color=COLORS[2], linestyle="-.", label="experts' mean")
        axes.axhline(base, color=_GREY, linestyle=(0, (5, 1)), label="base's mean")
        axes.plot(
            measured.coefficients, means, color=COLORS[0], marker=MARKERS[0], markersize=4, label="mean over tasks"
        )
        axes.plot(
            measured.coefficients,
            [accuracy for _, accuracy in worst],
            color=COLORS[1],
            linestyle="--",
            marker=MARKERS[1],
            markersize=4,
            label="worst task",
        )
        axes.plot(
            1 / count,
            means[average],
            color=COLORS[4],
            marker=MARKERS[3],
            markeredgecolor="black",
            linestyle="",
            markersize=9,
            label=f"average (λ = 1/{count})",
        )
        axes.axvline(chosen, color="black", linestyle=":", linewidth=1.4, label="λ shown")
        axes.plot([chosen] * 2, [means[place], worst[place][1]], "o", color="black", fillstyle="none", markersize=11)
        axes.set_xlabel("merging coefficient λ in θ₀ + λ Στᵢ")
        axes.set_ylabel(f"accuracy on {measured.split} images (%)")
        axes.set_title(f"Task arithmetic at λ = {chosen:.3g}: mean {means[place]:.1f} %, worst {worst[place][1]:.1f} %")
        drawn.legend(loc="outside lower center", ncols=4)
    against = measured.against[place]
    highest = max(range(len(means)), key=means.__getitem__)
    return Drawing(
        drawn,
        f"At λ = {chosen:.3g} the mean accuracy is {means[place]:.1f} %, {_beside(against, base)}; "
        f"the worst task is {measured.titles[worst[place][0]]} with {worst[place][1]:.1f} %. "
        f"The highest mean of the sweep is {means[highest]:.1f} %, at λ = {measured.coefficients[highest]:.3g}; the "
        f"average (λ = 1/{count}) has {means[average]:.1f} % and the experts {experts:.1f} %.",
        {
            "mean accuracy (%)": means[place],
            "worst task (%)": worst[place][1],
            "against the base (points)": against.points,
            "half the 95 % interval (points)": against.margin,
        },
    )


def draw_tradeoff(measured: Sweep) -> Drawing:
    """What every task pays at each λ for its not being the task's own: bowls that touch zero at different places.

    Drawn is the gap less the task's own smallest one. What rises far above what most tasks pay is cut off.

    Args:
        measured: what `sweep` gave.

    Lesson: 03.
    """
    own, every = measured.own, measured.coefficients
    first, last = measured.span
    ends = max(0, every.index(first) - 1), min(len(every) - 1, every.index(last) + 1)
    paid = {task: [gap - min(gaps) for gap in gaps] for task, gaps in measured.gaps.items()}
    top = 3 * sorted(max(one[place] for place in ends) for one in paid.values())[len(paid) // 2]
    with styled():
        drawn, (axes,) = figure(width=8.6, height=5.2)
        if first < last:
            axes.axvspan(first, last, color="#E4E4E4", linewidth=0, zorder=0.5, label="somebody pays")
        axes.axvline(measured.common, color="black", linestyle="-", linewidth=1.0, label="smallest mean gap")
        marks: Counter[float] = Counter()
        for i, (task, one) in enumerate(paid.items()):
            axes.plot(every, one, **look(i), linewidth=1.5, markersize=4, label=measured.titles[task])
            # Tasks that want the same λ stand above each other.
            axes.plot(
                own[task],
                0.05 * top * marks[own[task]],
                **{**look(i), "linestyle": ""},
                markersize=11,
                markeredgecolor="black",
                zorder=3,
                clip_on=False,
            )
            marks[own[task]] += 1
        axes.set_xlim(every[0], every[min(len(every) - 1, ends[1] + 1)])
        axes.set_ylim(0, max(top, 1e-9))
        axes.set_xlabel("merging coefficient λ in θ₀ + λ Στᵢ")
        axes.set_ylabel("gap above the task's smallest (nats)")
        axes.set_title("Where each task would put λ (large marks)")
        drawn.legend(loc="outside lower center", ncols=3)
    lowest, highest = min(own, key=own.__getitem__), max(own, key=own.__getitem__)
    each = "; ".join(f"{measured.titles[task]} {value:.3g}" for task, value in own.items())
    return Drawing(
        drawn,
        f"The λ at which each task's gap is smallest: {each}. "
        + (
            f"They reach from {first:.3g} ({measured.titles[lowest]}) to {last:.3g} ({measured.titles[highest]}); "
            if first < last
            else "All tasks want the same; "
        )
        + f"the mean gap is smallest at {measured.common:.3g}.",
        {f"{measured.titles[task]} (its λ)": value for task, value in own.items()},
    )


def draw_methods(compared: Comparison, *, task: str = "all") -> Drawing:
    """Methods one below the other: accuracy, with the 95 % interval of its difference from the base.

    The order is that of the mean over all tasks, whichever task is shown, so that a method keeps its row. A second
    scale counts the same in per cent of the gap recovered, where the experts are better than the base.

    Args:
        compared: what `compare` gave.
        task: a task's name, or "all" for the mean over the tasks.

    Raises:
        ApgdTeachError: there is no such task, or no method was compared.

    Lesson: 07.
    """
    if not compared.merged:
        raise ApgdTeachError("no method was compared; give `compare` at least one merged network.")
    shown = _of_task(compared, task)
    labels = sorted(compared.merged, key=lambda label: (-compared.average(label), label))
    base, experts = shown.average("base"), shown.average("experts")
    accuracies = {label: shown.average(label) for label in labels}
    against = {label: shown.against(label) for label in labels}
    kinds = sorted(set(compared.data_used.values()), key=lambda kind: (kind != "none", kind))
    where = f"mean over {len(shown.titles)} tasks" if task == "all" else shown.titles[task]
    with styled():
        drawn, (axes,) = figure(width=8.4, height=2.2 + 0.36 * len(labels))
        axes.axvline(base, color=_GREY, linestyle=(0, (5, 1)))
        axes.axvline(experts, color=COLORS[2], linestyle="-.")
        for i, kind in enumerate(kinds):
            rows = [row for row, label in enumerate(labels) if compared.data_used[label] == kind]
            axes.errorbar(
                [accuracies[labels[row]] for row in rows],
                rows,
                xerr=[against[labels[row]].margin for row in rows],
                **{**look(i), "linestyle": "", "color": COLORS[(0, 1, 3, 4, 5)[i % 5]]},
                capsize=3,
                markersize=7,
            )
        handles = [
            Line2D([], [], color=_GREY, linestyle=(0, (5, 1)), label="base"),
            Line2D([], [], color=COLORS[2], linestyle="-.", label="each its own expert"),
        ]
        names = [f"{label}  (data: {compared.data_used[label]})" for label in labels]
        axes.set_yticks(range(len(labels)), names)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.set_xlabel("accuracy (%); bars: 95 % interval of the difference from the base")
        axes.set_title(f"Methods: {where}")
        if experts > base:
            # The same scale in another unit: no second set of marks to read.
            low, high = axes.get_xlim()
            axes.set_xlim(low, high)
            above = axes.twiny()
            above.set_xlim(*(100 * (accuracy - base) / (experts - base) for accuracy in (low, high)))
            above.spines["top"].set_visible(True)
            above.grid(False)
            above.set_xlabel("recovered (%)", fontsize=10)
        drawn.legend(handles=handles, loc="outside lower center", ncols=2)
    best = max(labels, key=lambda label: accuracies[label])
    verdicts = [one.verdict for one in against.values()]
    counts = {verdict: verdicts.count(verdict) for verdict in ("better", "worse", "no difference seen")}
    recovered = shown.recovered_words(best)
    return Drawing(
        drawn,
        f"{'In the' if task == 'all' else 'On'} {where} {best} is most "
        f"accurate with {accuracies[best]:.1f} %, {against[best]} points against the base's {base:.1f} %"
        + (f" ({recovered} % of the gap to the experts' {experts:.1f} %)" if recovered != "–" else "")
        + f". Of {len(labels)} methods, {counts['better']} are seen to be better than the base, {counts['worse']} to "
        f"be worse, and for {counts['no difference seen']} no difference is seen.",
        {
            "base (%)": base,
            **{f"{label} (%)": accuracies[label] for label in labels},
            "each its own expert (%)": experts,
        },
    )


def place_of(values: Sequence[float], wanted: float, what: str) -> int:
    """Where a number stands among those measured; what a slider computes may differ in the last digits.

    Raises:
        ApgdTeachError: it is not among them.
    """
    for place, value in enumerate(values):
        if math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-9):
            return place
    known = ", ".join(f"{value:.3g}" for value in values)
    raise ApgdTeachError(f"nothing was measured at {what} = {wanted:g}; take one of: {known}.")


def _of_task(compared: Comparison, task: str) -> Comparison:
    """The same comparison on one task alone."""
    if task == "all":
        return compared
    if task not in compared.titles:
        raise ApgdTeachError(f"nothing was compared on the task '{task}'; take 'all' or {_listed(compared.titles)}.")
    return replace(
        compared,
        titles={task: compared.titles[task]},
        base={task: compared.base[task]},
        experts={task: compared.experts[task]},
        merged={label: {task: scores[task]} for label, scores in compared.merged.items()},
    )


def _beside(against: Difference, base: float) -> str:
    """ "5.7 ± 0.9 points below the base's 82.0 %", and whether the interval can tell that from nothing."""
    margin = "" if math.isnan(against.margin) else f" ± {against.margin:.1f}"
    side = "above" if against.points >= 0 else "below"
    doubt = " (no difference seen)" if against.verdict == "no difference seen" else ""
    return f"{abs(against.points):.1f}{margin} points {side} the base's {base:.1f} %{doubt}"


def _listed(names: Mapping[str, object]) -> str:
    return ", ".join(names) or "no task"
