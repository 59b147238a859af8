"""What a merge is worth to whoever brings an evaluation: per task, per class, and whether to merge at all."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist, fmean
from typing import TypeAlias

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging import Merged, Method, StateDict, merge
from apgd_teach.merging.registry import pick
from apgd_teach.progress import bar
from apgd_teach.tables import Table

__all__ = ["CANDIDATES", "Choice", "Evaluate", "Judged", "Lost", "Verdict", "choose", "judge", "lost"]

Answers: TypeAlias = "float | tuple[Tensor | Sequence[int], Tensor | Sequence[int]]"
Evaluate = Callable[[StateDict, str], Answers]
"""evaluate(state_dict, task): for each example the class that was predicted and the right one; or a score, 0 to 100.

With single examples losses have intervals and classes can be looked at; a score has neither."""

CANDIDATES: dict[str, tuple[str, dict[str, object]]] = {
    "average": ("average", {}),
    "task arithmetic, λ = 0.1": ("task_arithmetic", {"coefficient": 0.1}),
    "task arithmetic, λ = 0.3": ("task_arithmetic", {"coefficient": 0.3}),
    "ties": ("ties", {}),
    "tsv_m": ("tsv_m", {}),
    "iso_c": ("iso_c", {}),
    "wudi": ("wudi", {}),
    "apgd": ("apgd", {}),
    "apgd, no limit": ("apgd", {"reach": None}),
    "apgd, soft protection": ("apgd", {"protect": "auto", "flatten": 0.5}),
}
"""What `choose` tries: methods by label, with their settings."""


@dataclass(frozen=True)
class Lost:
    """How much lower one network's accuracy is than another's, on the same examples.

    Attributes:
        points: per cent of the examples; above 0 something is lost.
        margin: half of its interval; NaN where there are no single examples.
        examples: how many; 0 where that is not known.
    """

    points: float
    margin: float
    examples: int

    def __str__(self) -> str:
        margin = "–" if math.isnan(self.margin) else f"{self.margin:.1f}"
        return f"{self.points:.1f} ± {margin}".replace("-", "−")

    @property
    def shown(self) -> bool:
        """Whether a loss is shown: the whole interval lies above zero."""
        return self.points > self.margin


@dataclass(frozen=True)
class Verdict:
    """One network on one task.

    Attributes:
        accuracy: in per cent, or the score that was given.
        predicted, labels: classes, shape (example,); None where a score was given.
    """

    accuracy: float
    predicted: Tensor | None = None
    labels: Tensor | None = None

    @property
    def right(self) -> Tensor | None:
        """Which examples were named rightly, shape (example,), bool."""
        return None if self.predicted is None or self.labels is None else self.predicted == self.labels


def lost(before: Verdict, after: Verdict, confidence: float = 0.95) -> Lost:
    """How much lower `after` is than `before`, with an interval for paired shares that holds for few examples too.

    One example is added to each of the four ways in which two networks can answer, half of it where they differ.

    Args:
        before, after: on the same examples.
        confidence: of the interval.

    Source: Bonett and Price, 2012, adjusted Wald interval for paired binomial proportions. Lesson: 09.
    """
    points = before.accuracy - after.accuracy
    one, other = before.right, after.right
    if one is None or other is None:
        return Lost(points, math.nan, 0)
    n = len(one)
    fell, rose = (float((a & ~b).sum()) for a, b in ((one, other), (other, one)))
    down, up = ((count + 1) / (n + 2) for count in (fell, rose))
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    margin = z * math.sqrt((down + up - (down - up) ** 2) / (n + 2))
    # The interval is about its own middle; what is shown is the measured difference, with the farther end.
    return Lost(points, 100 * (margin + abs((down - up) - (fell - rose) / n)), n)


@dataclass(frozen=True)
class Judged:
    """Networks on every task.

    Attributes:
        experts: by task, each expert on its own.
        base: by task.
        merged: by label, by task.

    Lesson: 09.
    """

    experts: Mapping[str, Verdict]
    base: Mapping[str, Verdict]
    merged: Mapping[str, Mapping[str, Verdict]]

    @property
    def tasks(self) -> tuple[str, ...]:
        """Their names, which are the experts'."""
        return tuple(self.experts)

    def of(self, label: str) -> Mapping[str, Verdict]:
        """One network's verdicts.

        Raises:
            ApgdTeachError: no network of that label was judged.
        """
        if label not in self.merged:
            raise ApgdTeachError(f"no network '{label}' was judged; there are: {', '.join(self.merged) or 'none'}.")
        return self.merged[label]

    def table(self, label: str) -> Table:
        """Task by task: base, expert, merged, and what is lost against the expert.

        Lesson: 09.
        """
        merged = self.of(label)
        rows: list[tuple[object, ...]] = []
        for task in self.tasks:
            gone = lost(self.experts[task], merged[task])
            rows.append(
                (
                    task,
                    gone.examples or "–",
                    self.base[task].accuracy,
                    self.experts[task].accuracy,
                    merged[task].accuracy,
                    str(gone),
                )
            )
        means = [fmean(one[task].accuracy for task in self.tasks) for one in (self.base, self.experts, merged)]
        rows.append(("mean", "", *means, f"{means[1] - means[2]:.1f}".replace("-", "−")))
        return Table(
            ("task", "examples", "base %", "expert %", "merged %", "lost, points"),
            rows,
            caption=f"{label}: what is lost against each task's own expert",
            note="95 % intervals over examples, paired.",
            bold=[len(rows) - 1],
        )

    def classes(self, label: str, names: Mapping[str, Sequence[str]] | None = None, worst: int | None = None) -> Table:
        """Class by class: who lost most against the expert, with counts and intervals that hold for all at once.

        Args:
            label: of the network.
            names: by task, what the classes are called, by their number.
            worst: only so many classes, those that lost most.

        Raises:
            ApgdTeachError: no network of that label was judged, or no task has single examples.

        Lesson: 09.
        """
        merged, found = self.of(label), []
        for task in self.tasks:
            before, after = self.experts[task], merged[task]
            if before.labels is None or after.labels is None:
                continue
            for number in sorted(set(before.labels.tolist())):
                there = before.labels == number
                one, other = (_of(each, there) for each in (before, after))
                called = (names or {}).get(task, ())
                # A name that is missing is no reason to lose the rest.
                found.append((task, called[number] if 0 <= number < len(called) else str(number), one, other))
        if not found:
            raise ApgdTeachError("classes need single examples; let the evaluation return (predictions, labels).")
        # By Bonferroni: of forty classes that lost nothing, one would be called harmed by chance.
        confidence = 1 - 0.05 / len(found)
        rows = [
            (task, name, gone.examples, one.accuracy, other.accuracy, str(gone), "yes" if gone.shown else "no", gone)
            for task, name, one, other in found
            for gone in (lost(one, other, confidence),)
        ]
        rows.sort(key=lambda row: -row[-1].points)
        certain = sum(row[-1].shown for row in rows)
        return Table(
            ("task", "class", "examples", "expert %", "merged %", "lost, points", "shown"),
            [row[:-1] for row in rows[:worst]],
            caption=f"{label}: classes that lost most; of {len(rows)} classes a loss is shown for {certain}",
            note=f"95 % intervals for all {len(rows)} classes together (each {100 * confidence:.2f} %), paired. "
            "Not shown is not absent: with few examples of a class a large loss cannot be told from chance.",
        )


def _of(verdict: Verdict, there: Tensor) -> Verdict:
    assert verdict.predicted is not None
    assert verdict.labels is not None
    predicted, labels = verdict.predicted[there], verdict.labels[there]
    return Verdict(100 * float((predicted == labels).double().mean()), predicted, labels)


def judge(
    base: StateDict,
    experts: Mapping[str, StateDict],
    networks: Mapping[str, StateDict],
    evaluate: Evaluate,
    *,
    progress: bool = True,
) -> Judged:
    """Ask an evaluation for every network on every task.

    Args:
        base: θ₀.
        experts: by the name of their task.
        networks: by label, what was merged.
        evaluate: see `Evaluate`; called with a state dict and a task.
        progress: whether to show a bar.

    Raises:
        ApgdTeachError: the evaluation returned something else, or other examples for one network than for another.

    Lesson: 09.
    """
    with bar(len(experts) * (2 + len(networks)), "evaluation", progress=progress) as shown:

        def ask(state: StateDict, task: str) -> Verdict:
            verdict = _verdict(evaluate(state, task), task)
            shown.update()
            return verdict

        own = {task: ask(state, task) for task, state in experts.items()}
        start = {task: ask(base, task) for task in own}
        merged = {label: {task: ask(state, task) for task in own} for label, state in networks.items()}
    for label, verdicts in (("the base", start), *merged.items()):
        for task, one in verdicts.items():
            theirs, ours = one.labels, own[task].labels
            if (theirs is None) != (ours is None) or (
                theirs is not None and ours is not None and not torch.equal(theirs, ours)
            ):
                raise ApgdTeachError(
                    f"the evaluation gave {label} other examples of '{task}' than the expert; give every network the "
                    "same ones, in the same order."
                )
    every = [one for group in (own, start, *merged.values()) for one in group.values()]
    if all(one.labels is None for one in every) and 0 < max(one.accuracy for one in every) <= 1:
        most = max(one.accuracy for one in every)
        raise ApgdTeachError(f"no score is above 1 (the highest is {most:g}), as if they were shares; give per cent.")
    return Judged(own, start, merged)


def _verdict(answers: object, task: str) -> Verdict:
    if isinstance(answers, int | float) and not isinstance(answers, bool):
        if not 0 <= answers <= 100:
            raise ApgdTeachError(f"the evaluation gave {answers} for '{task}'; a score is a number from 0 to 100.")
        return Verdict(float(answers))
    if isinstance(answers, tuple) and len(answers) == 2:
        try:
            predicted, labels = (torch.as_tensor(one).cpu() for one in answers)
            wrong = _no_classes(predicted, labels)
        except (TypeError, ValueError, RuntimeError):
            wrong = "what is no list of numbers"
        if not wrong:
            return Verdict(100 * float((predicted == labels).double().mean()), predicted, labels)
        raise ApgdTeachError(
            f"the evaluation returned {wrong} for '{task}'; return (predictions, labels), one class, a whole number, "
            "for each example in both."
        )
    raise ApgdTeachError(
        f"the evaluation returned a {type(answers).__name__} for '{task}'; return (predictions, labels), one class, a "
        "whole number, for each example in both, or a score from 0 to 100."
    )


def _no_classes(predicted: Tensor, labels: Tensor) -> str:
    """Why these are no classes and right classes; "" where they are."""
    for name, one in (("predictions", predicted), ("labels", labels)):
        if one.numel() == 0:
            return f"no {name}"
        if one.is_floating_point():
            return f"{name} that are no whole numbers ({str(one.dtype).removeprefix('torch.')})"
        if one.ndim != 1:
            return f"{name} of shape {tuple(one.shape)}"
    return "" if predicted.shape == labels.shape else f"{len(predicted)} predictions and {len(labels)} labels"


# Whether to merge, and how


@dataclass(frozen=True)
class Choice:
    """Candidates, judged, and what follows.

    Attributes:
        judged: all of them.
        priorities: by task, its weight in the mean.
        tolerance: points that a task may lose against its expert.
        best: label of the candidate with the highest weighted mean.
        network: its merge; the audit says that labelled data chose it.
        apart: tasks that lose more than the tolerance even so, the worst first.
        options: of `apgd-teach merge`, for the same merge from files: "--method apgd --set reach=0.1"; empty where the
            best candidate is an instance of a class, which a command line cannot name.

    Lesson: 09.
    """

    judged: Judged
    priorities: Mapping[str, float]
    tolerance: float
    best: str
    network: Merged
    apart: tuple[str, ...] = field(default=())
    options: str = ""

    def mean(self, verdicts: Mapping[str, Verdict]) -> float:
        """Weighted mean accuracy (%)."""
        return _weighted(verdicts, self.priorities)

    def table(self) -> Table:
        """Candidates, the best first.

        Lesson: 09.
        """
        own = self.judged.experts
        rows = [
            (
                label,
                self.mean(verdicts),
                self.mean(own) - self.mean(verdicts),
                max(lost(own[task], verdicts[task]).points for task in self.judged.tasks),
                sum(lost(own[task], verdicts[task]).points > self.tolerance for task in self.judged.tasks),
            )
            for label, verdicts in self.judged.merged.items()
        ]
        rows.sort(key=lambda row: -row[1])
        weights = ", ".join(f"{task} {weight:g}" for task, weight in self.priorities.items())
        return Table(
            (
                "candidate",
                "mean %" if len(set(self.priorities.values())) == 1 else "weighted mean %",
                "lost, points",
                "most that a task lost",
                f"tasks that lost more than {self.tolerance:g}",
            ),
            rows,
            caption="Candidates by their mean on the examples that choose",
            note=f"Weights of the tasks: {weights}. The base has {self.mean(self.judged.base):.1f} %. The best of "
            f"{len(rows)} looks better here than it is: report it on examples that chose nothing.",
            bold=[0],
        )

    @property
    def advice(self) -> str:
        """What these numbers speak for, in sentences."""
        merged, own = self.judged.of(self.best), self.judged.experts
        start = self.mean(self.judged.base)
        best = self.mean(merged)
        if best <= start:
            return (
                f"Keep the experts apart. The best candidate, {self.best}, has {best:.1f} % in the mean and the base "
                f"itself {start:.1f} %: merging costs what fine-tuning gave."
            )
        if not self.apart:
            return (
                f"Merge by {self.best}: no task loses more than {self.tolerance:g} points against its expert "
                f"(mean {best:.1f} %, experts {self.mean(own):.1f} %)."
            )
        names = ", ".join(f"{task} (−{lost(own[task], merged[task]).points:.1f})" for task in self.apart)
        if len(self.apart) == len(own):
            return (
                f"Keep the experts apart. With the best candidate, {self.best}, every task loses more than "
                f"{self.tolerance:g} points: {names}."
            )
        return (
            f"Merge by {self.best} where it is good enough, and keep the experts of these tasks, which lose more than "
            f"{self.tolerance:g} points: {names}. A merge of the others alone may be better still: try it."
        )


def choose(
    base: StateDict,
    experts: Mapping[str, StateDict],
    evaluate: Evaluate,
    candidates: Mapping[str, tuple[str, Mapping[str, object]] | Method] | None = None,
    *,
    priorities: Mapping[str, float] | None = None,
    tolerance: float = 2.0,
    policy: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Choice:
    """Merge by several methods and settings, judge them on examples that may choose, and say what follows.

    This uses labelled data, unlike a merge: the audit of what it returns says so. In memory are the base, the experts
    and two merges at most: each candidate is merged when its turn comes, and the best one once more in the end.

    Args:
        base: θ₀.
        experts: by the name of their task.
        evaluate: see `Evaluate`, on examples that no accuracy will be reported on.
        candidates: by label, a method's name with its settings, or a method; `CANDIDATES` by default.
        priorities: by task, its weight in the mean, 0 or more; 1 by default.
        tolerance: points that a task may lose against its own expert.
        policy: as `merge` takes it.
        progress: whether to show bars.

    Raises:
        ApgdTeachError: there is no candidate, a priority is of no task or negative, all are 0, or what `merge` and
            `judge` raise.

    Lesson: 09.
    """
    tried = CANDIDATES if candidates is None else candidates
    if not tried:
        raise ApgdTeachError("there is nothing to choose from; give one candidate or more.")
    weights = _priorities(experts, priorities or {})
    for one in tried.values():
        # What a candidate's settings are refused for is said before the first is judged.
        pick(*one) if isinstance(one, tuple) else pick(one, {})

    def made(label: str) -> Merged:
        one = tried[label]
        if isinstance(one, tuple):
            return merge(base, experts, one[0], policy=policy, **dict(one[1]))
        return merge(base, experts, one, policy=policy)

    judged = judge(base, experts, _Candidates(made, list(tried)), evaluate, progress=progress)
    best = max(tried, key=lambda label: _weighted(judged.merged[label], weights))
    losses = {task: lost(judged.experts[task], judged.merged[best][task]).points for task in judged.tasks}
    apart = sorted((task for task in losses if losses[task] > tolerance), key=lambda task: -losses[task])
    network = made(best)
    chosen = replace(network, audit=replace(network.audit, data_used="labelled"))
    return Choice(judged, weights, tolerance, best, chosen, tuple(apart), _options(tried[best]))


class _Candidates(Mapping[str, StateDict]):
    """Networks by label, each merged when it is asked for, so that not all of them are in memory."""

    def __init__(self, made: Callable[[str], Merged], labels: Sequence[str]) -> None:
        self._made, self._labels = made, labels

    def __getitem__(self, label: str) -> StateDict:
        return self._made(label).state_dict

    def __iter__(self) -> Iterator[str]:
        return iter(self._labels)

    def __len__(self) -> int:
        return len(self._labels)


def _options(candidate: tuple[str, Mapping[str, object]] | Method) -> str:
    if not isinstance(candidate, tuple):
        return ""
    name, settings = candidate
    given = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    return shlex.join(["--method", name, *given])


def _priorities(tasks: Iterable[str], given: Mapping[str, float]) -> dict[str, float]:
    known = list(tasks)
    for task, weight in given.items():
        if task not in known:
            raise ApgdTeachError(f"there is no task '{task}' to give a priority; there are: {', '.join(known)}.")
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ApgdTeachError(f"the priority of '{task}' is {weight!r}; give a number, 0 or more.")
    weights = {task: float(given.get(task, 1.0)) for task in known}
    if not any(weights.values()):
        raise ApgdTeachError("all priorities are 0; give one task a weight.")
    return weights


def _weighted(verdicts: Mapping[str, Verdict], weights: Mapping[str, float]) -> float:
    return sum(weights[task] * verdicts[task].accuracy for task in weights) / sum(weights.values())
