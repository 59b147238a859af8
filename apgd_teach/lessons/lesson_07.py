"""Exercises of lesson 07: what was recovered, and what a difference between two methods is worth."""

from __future__ import annotations

import math
from statistics import fmean, stdev

from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["INTERVAL", "PROBLEMS", "RECOVERED"]


def _recovered(base: list[float], merged: list[float], experts: list[float]) -> float:
    return (fmean(merged) - fmean(base)) / (fmean(experts) - fmean(base))


RECOVERED = Problem(
    name="07.1",
    question=(
        "Write `recovered(base, merged, experts)`: the share of the way from the base to the experts that a "
        "merge covers, in mean accuracy: 0 is no better than the base, 1 as good as the experts, below 0 "
        "worse than no fine-tuning at all. Each is a list of accuracies, one per task."
    ),
    stub="def recovered(base, merged, experts):\n    ...\n",
    code=(
        "def recovered(base, merged, experts):\n"
        "    def mean(values):\n"
        "        return sum(values) / len(values)\n\n"
        "    return (mean(merged) - mean(base)) / (mean(experts) - mean(base))\n"
    ),
    cases=[
        {"base": [60.0, 80.0, 70.0], "merged": [75.0, 82.0, 71.0], "experts": [95.0, 84.0, 90.0]},
        # Worse than the base, and a task that its expert made worse.
        {"base": [60.0, 80.0], "merged": [50.0, 75.0], "experts": [90.0, 79.0]},
        # Better than the experts.
        {"base": [60.0, 70.0], "merged": [80.0, 85.0], "experts": [75.0, 84.0]},
    ],
    wrong=[
        Wrong(
            lambda base, merged, experts: fmean(merged) / fmean(experts),
            "this is the share of the experts' accuracy. A base that nobody fine-tuned has most of that already: count "
            "from the base.",
        ),
        Wrong(
            lambda base, merged, experts: fmean(
                (m - b) / (e - b) for b, m, e in zip(base, merged, experts, strict=True)
            ),
            "this is the mean of the tasks' own shares: a task whose expert hardly gained decides alone, and one whose "
            "expert lost turns its sign. Take the means first.",
        ),
        Wrong(
            lambda base, merged, experts: fmean(merged) - fmean(base),
            "these are points of accuracy. Divide by what the experts gained.",
        ),
        Wrong(
            lambda base, merged, experts: (fmean(experts) - fmean(merged)) / (fmean(experts) - fmean(base)),
            "this is the share that is *lost*: 1 at the base and 0 at the experts.",
        ),
        Wrong(
            lambda base, merged, experts: max(0.0, _recovered(base, merged, experts)),
            "a merge that is worse than the base must show it: nothing is cut off at 0.",
        ),
        Wrong(
            lambda base, merged, experts: min(1.0, max(0.0, _recovered(base, merged, experts))),
            "nothing is cut off, neither at 0, where a merge is worse than the base, nor at 1, where it is better than "
            "the experts.",
        ),
        Wrong(
            lambda base, merged, experts: abs(_recovered(base, merged, experts)),
            "the sign is lost: a merge that is worse than the base lies below zero.",
        ),
        Wrong(
            lambda base, merged, experts: 100 * _recovered(base, merged, experts),
            "this is in per cent; asked for is a share, 1 for as good as the experts.",
        ),
        Wrong(
            lambda base, merged, experts: -_recovered(base, merged, experts),
            "the sign is turned round: better than the base has to be above zero.",
        ),
        Wrong(
            lambda base, merged, experts: 1 / _recovered(base, merged, experts),
            "the fraction is upside down: the way that the merge went stands above, that of the experts below.",
        ),
        Wrong(
            lambda base, merged, experts: fmean(merged) / fmean(base) - 1,
            "this is the gain as a share of the base. Asked for is the share of what the *experts* gained.",
        ),
        Wrong(
            lambda base, merged, experts: [(b - a) / (c - a) for a, b, c in zip(base, merged, experts, strict=True)],
            "these are the tasks' own shares. Asked for is one number: means first, the division last.",
        ),
        Wrong(
            lambda base, merged, experts: min((b - a) / (c - a) for a, b, c in zip(base, merged, experts, strict=True)),
            "this is the share of the task that recovered least. Asked for is that of the mean accuracy.",
        ),
    ],
    hints=[
        "Three means first. Which of them is the zero of the scale, and which the one?",
        "How far the merge is from the base, divided by how far the experts are.",
        "`(mean(merged) - mean(base)) / (mean(experts) - mean(base))`.",
    ],
)

_T = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}


def _differences(one: list[float], other: list[float]) -> list[float]:
    return [a - b for a, b in zip(one, other, strict=True)]


def _interval(one: list[float], other: list[float], t: float) -> tuple[float, float]:
    differences = _differences(one, other)
    return fmean(differences), t * stdev(differences) / math.sqrt(len(differences))


INTERVAL = Problem(
    name="07.2",
    question=(
        "Write `paired(one, other, t)`: how much better a method is than another over the same seeds, with half of the "
        "95 % interval, as a pair. `one` and `other` are lists of accuracies, seed by seed; take the differences seed "
        "by seed, their mean, and $t \\cdot s / \\sqrt n$ with s their standard deviation (n − 1 in its denominator)."
    ),
    stub="def paired(one, other, t):\n    ...\n",
    code=(
        "from statistics import mean, stdev\n\n\n"
        "def paired(one, other, t):\n"
        "    differences = [a - b for a, b in zip(one, other, strict=True)]\n"
        "    return mean(differences), t * stdev(differences) / len(differences) ** 0.5\n"
    ),
    # Seeds differ by far more than the methods do: an interval that is not paired sees nothing.
    cases=[
        {"one": [70.0, 80.5, 61.0], "other": [68.0, 79.0, 59.6], "t": _T[3]},
        {"one": [50.0, 71.0, 90.0, 64.0, 80.0], "other": [50.5, 69.0, 89.0, 64.2, 77.0], "t": _T[5]},
        # The first one loses, and the seeds have not the same order in both.
        {"one": [70.0, 71.0, 60.2, 66.0], "other": [72.5, 71.5, 60.0, 73.0], "t": _T[4]},
    ],
    wrong=[
        Wrong(
            lambda one, other, t: (
                fmean(_differences(one, other)),
                t * math.sqrt(stdev(one) ** 2 + stdev(other) ** 2) / math.sqrt(len(one)),
            ),
            "the spreads of the two methods are put together as if they had other seeds. Both saw the same ones: "
            "take the differences first, then *their* spread.",
        ),
        Wrong(
            lambda one, other, t: (fmean(_differences(one, other)), t * stdev(_differences(one, other))),
            "this is the spread of single seeds. The mean of n of them is known √n times as well.",
        ),
        Wrong(
            lambda one, other, t: (
                fmean(_differences(one, other)),
                t * stdev(_differences(one, other)) / len(one),
            ),
            "it is divided by n where √n belongs: too narrow.",
        ),
        Wrong(
            lambda one, other, t: (
                fmean(_differences(one, other)),
                t * stdev(_differences(one, other)) * math.sqrt((len(one) - 1) / len(one)) / math.sqrt(len(one)),
            ),
            "the standard deviation has n in its denominator: with a few seeds that is too small. Take n − 1.",
        ),
        Wrong(
            lambda one, other, t: (
                fmean(_differences(one, other)),
                stdev(_differences(one, other)) / math.sqrt(len(one)),
            ),
            "this is the standard error. With t times as much on either side, the interval holds the truth 95 times in "
            "100.",
        ),
        Wrong(
            lambda one, other, t: (
                fmean(_differences(other, one)),
                t * stdev(_differences(one, other)) / math.sqrt(len(one)),
            ),
            "the sign is turned round: above zero has to mean that the first one is better.",
        ),
        Wrong(
            lambda one, other, t: _interval(sorted(one), sorted(other), t),
            "the seeds are no longer beside each other: the first of `one` belongs to the first of `other`.",
        ),
        Wrong(
            lambda one, other, t: (
                _interval(one, other, t)[0] - _interval(one, other, t)[1],
                sum(_interval(one, other, t)),
            ),
            "these are the two ends of the interval. Asked for are its middle and half of its width.",
        ),
        Wrong(
            lambda one, other, t: (_interval(one, other, t)[0], 2 * _interval(one, other, t)[1]),
            "this is the whole width of the interval. Asked for is half of it, from the middle to one end.",
        ),
        Wrong(
            lambda one, other, t: (
                _interval(one, other, t)[0],
                t * stdev(_differences(one, other)) ** 2 / math.sqrt(len(one)),
            ),
            "this takes the variance s². The interval has s, its root.",
        ),
        Wrong(
            lambda one, other, t: (abs(_interval(one, other, t)[0]), _interval(one, other, t)[1]),
            "the sign of the mean is lost: below zero the other method is better.",
        ),
        Wrong(
            lambda one, other, t: _interval(one, other, t)[::-1],
            "the two are right, and in the other order: the mean first, then half of the interval.",
        ),
        Wrong(
            lambda one, other, t: fmean(_differences(one, other)),
            "this is the mean alone. Asked for is a pair: it, and half of the interval.",
        ),
        Wrong(
            lambda one, other, t: _interval(one, other, 1.96),
            "1.96 is the factor for very many seeds. With a few, s is itself uncertain, and t pays for that.",
        ),
        Wrong(
            lambda one, other, t: (
                fmean(_differences(one, other)),
                t * stdev(_differences(one, other)) / (len(one) - 1) ** 0.5,
            ),
            "it is divided by √(n − 1). The n − 1 belongs into s, and is there already; the mean of n numbers has √n.",
        ),
        Wrong(
            lambda one, other, t: (sum(one) - sum(other), _interval(one, other, t)[1]),
            "this is the sum of the differences. Asked for is their mean.",
        ),
    ],
    hints=[
        "One difference per seed; everything else is about those.",
        "`statistics.stdev` has n − 1 in its denominator.",
        "`t * stdev(differences) / len(differences) ** 0.5`.",
    ],
)


PROBLEMS = (RECOVERED, INTERVAL)
