"""How many steps of descent are enough: what is left of the surrogate, beside what the whole network can do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from statistics import mean

import torch
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.descent import check_share, walk
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, LINES, MARKERS, figure, styled
from apgd_teach.merging import Merged, StateDict, merge, shared_basis, task_vectors
from apgd_teach.merging.coefficients import task_aware
from apgd_teach.merging.descent import off
from apgd_teach.merging.objective import Full, Objective, objective
from apgd_teach.merging.subspace import eigh
from apgd_teach.merging.surrogate import check_granularity
from apgd_teach.progress import bar

__all__ = [
    "WAYS",
    "StepSweep",
    "Way",
    "after_steps",
    "descended",
    "draw_steps",
    "measure_steps",
    "spectrum",
    "step_axis",
]


@dataclass(frozen=True)
class Way:
    """One way down: what is made small, what is protected, and where to stop and look.

    Attributes:
        granularity: of the surrogate; "full" with p = 2 and all directions.
        protect: share of r = min(out, in) that is protected in each layer, 0 to 1.
        steps: after how many to look; 0, which is S, is added.
    """

    granularity: str
    protect: float
    steps: tuple[int, ...]


WAYS: Mapping[str, Way] = {
    "row, 1/6 protected": Way("row", 1 / 6, (3, 10, 30, 100)),
    "full, 1/6 protected": Way("full", 1 / 6, (10, 100, 1000, 10000, 100000)),
    "full, nothing protected": Way("full", 0.0, (10, 100, 1000, 10000, 100000)),
}
"""Those of lesson 06. `row` is walked; of `full` a hundred thousand steps cost no more than ten."""


def spectrum(quadratic: Full) -> tuple[Tensor, Tensor]:
    """Eigenvalues e of G, shape (in,), in double precision and not below zero, and its eigenvectors (in, in)."""
    values, vectors = eigh(quadratic.gram)
    return values.double().clamp_min(0), vectors


def after_steps(
    quadratic: Objective,
    start: Tensor,
    basis: Tensor,
    steps: Sequence[int],
    known: tuple[Tensor, Tensor] | None = None,
) -> Iterator[Tensor]:
    """M after so many steps of projected descent from S, for each number of steps.

    `full` needs no steps to know: in the eigenbasis of G a step takes the share αe of what is left in each direction
    away, so n steps take 1 − (1 − αe)ⁿ of it, with α = 1 over the largest e.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k), orthonormal: what is protected.
        steps: rising.
        known: of `full`, its `spectrum`, where it is at hand.

    Yields:
        M, shape (out, in).

    Source: (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    if not isinstance(quadratic, Full):
        for step, update in enumerate(islice(walk(quadratic, start, basis), max(steps) + 1)):
            if step in steps:
                yield update
        return
    values, vectors = known or spectrum(quadratic)
    largest = float(values.max())
    slope = quadratic.gradient(start) @ vectors
    for step in steps:
        # (1 − (1 − x)ⁿ) / x with x = e / largest, and n where x is nothing.
        shares = values / largest if largest > 0 else values
        # Finite, or no step at all in the steepest direction would be 0 times infinity.
        taken = -torch.expm1(step * torch.log1p(-shares).clamp_min(-1e300))
        filtered = torch.where(shares > 1e-12, taken / shares, float(step)) / (largest or 1.0)
        yield start - off(basis, slope * filtered.to(slope.dtype) @ vectors.mT)


@dataclass(frozen=True)
class StepSweep:
    """Networks on the way of descent, all layers after the same number of steps.

    Attributes:
        steps: by way, how many; rising from 0.
        surrogate: by way, what is left of the surrogate, as a share of what it is at S; mean over the layers.
        gaps: by way, the mean gap over the tasks, in nats.
        accuracies: by way, the mean accuracy over the tasks, in per cent.
        states: by way, the networks themselves.
        base_gap, base_accuracy: of the base.
        images: which were looked at, in words.
    """

    steps: dict[str, tuple[int, ...]]
    surrogate: dict[str, tuple[float, ...]]
    gaps: dict[str, tuple[float, ...]]
    accuracies: dict[str, tuple[float, ...]]
    states: dict[str, tuple[StateDict, ...]]
    base_gap: float
    base_accuracy: float
    images: str

    def best(self, way: str) -> int:
        """Place of the smallest mean gap among the steps of a way."""
        gaps = self.gaps[way]
        return min(range(len(gaps)), key=gaps.__getitem__)

    @property
    def chosen(self) -> dict[str, int]:
        """By way, the number of steps of the smallest mean gap."""
        return {way: steps[self.best(way)] for way, steps in self.steps.items()}

    @property
    def networks(self) -> dict[str, StateDict]:
        """By way, the network of the smallest mean gap."""
        return {way: states[self.best(way)] for way, states in self.states.items()}

    def course(self, way: str) -> str:
        """In words: where the gap was smallest, and whether it rose again."""
        gaps, steps, best = self.gaps[way], self.steps[way], self.best(way)
        if best == 0:
            return f"no number of steps looked at has a smaller gap than S ({gaps[-1]:.3f} nats after {steps[-1]:,})"
        if best == len(gaps) - 1:
            return f"the gap is smallest at the last step looked at, {steps[best]:,} ({gaps[best]:.3f} nats)"
        return (
            f"the gap is smallest after {steps[best]:,} steps ({gaps[best]:.3f} nats) and larger again after "
            f"{steps[-1]:,} ({gaps[-1]:.3f})"
        )


def descended(
    base: StateDict, experts: Mapping[str, StateDict], steps: Mapping[str, int], *, ways: Mapping[str, Way] = WAYS
) -> dict[str, StateDict]:
    """Networks after so many steps of descent in every layer; what is no weight is averaged.

    Args:
        base: θ₀.
        experts: θᵢ by name.
        steps: by the label of a way, after how many of its steps; 0 is S. At which steps the way itself would look is
            not asked.
        ways: by label.

    Raises:
        ApgdTeachError: there is no such way, a number of steps is no whole number from 0, or a way's share is none; and
            what `merge` raises.

    Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    for label, count in steps.items():
        if label not in ways:
            raise ApgdTeachError(f"there is no way '{label}'; there are: {', '.join(ways)}.")
        if isinstance(count, bool) or not isinstance(count, int) or count < 0:
            raise ApgdTeachError(f"the steps of '{label}' are {count!r}; give a whole number from 0.")
    _check_ways(ways)
    counts = {label: (count,) for label, count in steps.items()}
    made, _ = _walked(base, experts, {label: ways[label] for label in steps}, counts, merge(base, experts, "average"))
    return {label: states[0] for label, states in made.items()}


def _check_ways(ways: Mapping[str, Way]) -> None:
    for label, way in ways.items():
        if not way.steps or any(isinstance(one, bool) or not isinstance(one, int) or one < 1 for one in way.steps):
            raise ApgdTeachError(f"the steps of '{label}' are {way.steps!r}; give whole numbers from 1.")
        check_granularity(way.granularity)
        check_share(way.protect)
        if not 0 <= way.protect <= 1:
            raise ApgdTeachError(f"the share that '{label}' protects is {way.protect}; give a number from 0 to 1.")


def _walked(
    base: StateDict,
    experts: Mapping[str, StateDict],
    ways: Mapping[str, Way],
    steps: Mapping[str, Sequence[int]],
    average: Merged,
    tick: Callable[[], object] = lambda: None,
) -> tuple[dict[str, list[dict[str, Tensor]]], dict[str, list[float]]]:
    """Networks after so many steps, by way; and what is left of the surrogate, the mean over the layers.

    A call of `tick` for every way and layer; `average` is that of the experts.
    """
    layers = [row.name for row in average.audit.rows if row.policy == "merge"]
    vectors = task_vectors(base, experts)
    made = {label: [dict(average.state_dict) for _ in each] for label, each in steps.items()}
    left = {label: [0.0] * len(each) for label, each in steps.items()}
    for key in layers:
        tau = torch.stack([vectors[name][key].flatten(1) for name in sorted(experts)])
        tau = tau[torch.linalg.vector_norm(tau, dim=(1, 2)) > 0]
        start = torch.einsum("t,toi->oi", task_aware(tau, 1 / max(1, len(tau))), tau)
        quadratics: dict[str, Objective] = {}
        known = None
        for label, way in ways.items():
            if not len(tau):
                # Nobody moved in this layer: it stays as it is.
                tick()
                continue
            if way.granularity not in quadratics:
                quadratics[way.granularity] = made_of = objective(tau, way.granularity)
                known = spectrum(made_of) if isinstance(made_of, Full) else known
            quadratic = quadratics[way.granularity]
            basis = shared_basis(tau, round(way.protect * min(tau.shape[1:])))
            begun = float(quadratic.value(start))
            for place, update in enumerate(after_steps(quadratic, start, basis, steps[label], known)):
                share = float(quadratic.value(update)) / begun if begun > 0 else 0.0
                left[label][place] += share / len(layers)
                made[label][place][key] = base[key] + update.reshape(base[key].shape)
            tick()
    return made, left


def measure_steps(
    evaluator: Evaluator,
    base: StateDict,
    experts: Mapping[str, StateDict],
    *,
    ways: Mapping[str, Way] = WAYS,
    progress: bool = True,
) -> StepSweep:
    """Walk in every layer at once and score the network on the way.

    What is no weight is averaged, as in a merge. Nothing is trimmed or flattened.

    Args:
        evaluator: says which images; "validation" where the number of steps is to be chosen.
        base: θ₀.
        experts: θᵢ by name, the tasks of the evaluator's pool.
        ways: by label.
        progress: show a bar.

    Raises:
        ApgdTeachError: there is no way, one has no number of steps or one that is none or no share that is one, or
            the experts are of other tasks than the evaluator's; and what `merge` raises.

    Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    if not ways:
        raise ApgdTeachError("there is no way to walk; give one, {'row': Way('row', 1 / 6, (3, 10, 30))}.")
    _check_ways(ways)
    if set(experts) != set(evaluator.pool.tasks):
        raise ApgdTeachError(
            f"the experts are {', '.join(experts) or 'none'} and the evaluator's tasks "
            f"{', '.join(evaluator.pool.tasks)}; give both for the same tasks, as with pool.only([…])."
        )
    own = evaluator.experts()
    steps = {label: tuple(sorted({0, *way.steps})) for label, way in ways.items()}

    def scored(state: StateDict) -> tuple[float, float]:
        scores = evaluator.scores(state)
        gap = mean(score.loss - own[task].loss for task, score in scores.items())
        return gap, mean(score.accuracy for score in scores.values())

    average = merge(base, experts, "average")
    layers = sum(row.policy == "merge" for row in average.audit.rows)
    with bar(len(ways) * layers + sum(map(len, steps.values())), "part", "steps of descent", progress) as parts:
        made, left = _walked(base, experts, ways, steps, average, lambda: parts.update(1))
        found: dict[str, list[tuple[float, float]]] = {}
        for label, states in made.items():
            for state in states:
                found.setdefault(label, []).append(scored(state))
                parts.update(1)
    base_gap, base_accuracy = scored(base)
    many = " or ".join(f"{count:,}" for count in sorted({evaluator.images(task) for task in evaluator.pool.tasks}))
    return StepSweep(
        steps=steps,
        surrogate={label: tuple(each) for label, each in left.items()},
        gaps={label: tuple(gap for gap, _ in each) for label, each in found.items()},
        accuracies={label: tuple(accuracy for _, accuracy in each) for label, each in found.items()},
        states={label: tuple(each) for label, each in made.items()},
        base_gap=base_gap,
        base_accuracy=base_accuracy,
        images=f"{evaluator.split} split, {many} a task",
    )


def draw_steps(measured: StepSweep) -> Drawing:
    """Surrogate, mean gap and mean accuracy after so many steps in every layer; the smallest gap is marked.

    Args:
        measured: from `measure_steps`.

    Lesson: 06.
    """
    with styled():
        drawn, axes = figure(1, 3, width=9.6, height=4.0)
        panels = (
            ("Surrogate left", "share of what it is at S", measured.surrogate, None),
            ("Mean gap", "nats", measured.gaps, measured.base_gap),
            ("Mean accuracy", "%", measured.accuracies, measured.base_accuracy),
        )
        every = sorted({one for counts in measured.steps.values() for one in counts})
        for place, (title, label, values, base) in zip(axes, panels, strict=True):
            step_axis(place, every[1], every[-1])
            for i, (way, line) in enumerate(values.items()):
                counts = measured.steps[way]
                place.plot(counts, line, color=COLORS[i], linestyle=LINES[i], marker=MARKERS[i], label=way)
            if base is not None:
                place.axhline(base, color=COLORS[7], linestyle=LINES[4], label="base")
            best = {way: measured.best(way) for way in values}
            place.plot(
                [measured.steps[way][one] for way, one in best.items()],
                [values[way][one] for way, one in best.items()],
                "o",
                color="black",
                fillstyle="none",
                markersize=13,
                label="smallest gap of each",
            )
            place.set_title(title)
            place.set_ylabel(label)
        axes[0].set_ylim(bottom=0)
        drawn.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
        return Drawing(drawn, _words(measured), _numbers(measured))


def step_axis(place: Axes, first: int, last: int) -> None:
    """Numbers of steps along x: from 0 to the first step straight, then by factors of ten up to the last."""
    place.set_xscale("symlog", linthresh=first, linscale=0.5)
    place.set_xlim(-0.4 * first, 2 * last)
    place.xaxis.set_major_locator(FixedLocator([0, *_powers(first, last)]))
    place.xaxis.set_major_formatter(lambda step, _: _short(step))
    place.xaxis.set_minor_locator(NullLocator())
    place.set_xlabel("steps of descent")


def _short(step: float) -> str:
    """ "0", "10", "10³": a power of ten where all its zeros would run into the next."""
    digits = len(str(round(step))) - 1
    return f"{step:.0f}" if step < 100 else "10" + str(digits).translate(str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _powers(least: int, most: int) -> list[int]:
    """Powers of ten from the first at or above one number to another."""
    return [10**n for n in range(len(str(most))) if least <= 10**n <= most]


def _words(measured: StepSweep) -> str:
    parts = []
    for way, steps in measured.steps.items():
        best, gaps, accuracies = measured.best(way), measured.gaps[way], measured.accuracies[way]
        left = measured.surrogate[way]
        parts.append(
            f"{way}: the mean gap is {gaps[0]:.3f} nats at S, smallest with {gaps[best]:.3f} after {steps[best]:,} "
            f"steps ({left[best]:.2g} of the surrogate left, accuracy {accuracies[best]:.1f} %), and {gaps[-1]:.3f} "
            f"after {steps[-1]:,} ({left[-1]:.2g} left, {accuracies[-1]:.1f} %)."
        )
    return (
        " ".join(parts) + f" The base's mean gap is {measured.base_gap:.3f} nats, its accuracy "
        f"{measured.base_accuracy:.1f} %. Images: {measured.images}."
    )


def _numbers(measured: StepSweep) -> dict[str, object]:
    numbers: dict[str, object] = {}
    for way, steps in measured.steps.items():
        best = measured.best(way)
        numbers[f"steps with the smallest gap, {way}"] = steps[best]
        numbers[f"smallest mean gap, {way} (nats)"] = measured.gaps[way][best]
        numbers[f"mean accuracy there, {way} (%)"] = measured.accuracies[way][best]
    return numbers
