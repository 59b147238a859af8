"""How descent gets to M: the surrogate that falls, and what leaks into the subspace that was to stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from statistics import fmean

import torch
from matplotlib.ticker import MaxNLocator, NullLocator
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, LINES, MARKERS, figure, styled
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.descent import free_gradient, largest_curvature, off
from apgd_teach.merging.objective import Objective, objective
from apgd_teach.merging.published import leak
from apgd_teach.merging.statedict import StateDict, norm

__all__ = [
    "DescentPaths",
    "Walk",
    "check_share",
    "draw_descent",
    "layer_accuracy",
    "measure_descent",
    "walk",
    "walk_adam",
]


def walk(quadratic: Objective, start: Tensor, basis: Tensor) -> Iterator[Tensor]:
    """Every M of projected descent, from M = S on, without end: `merging.descent.descend` keeps only the last.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k), orthonormal: what is protected.

    Yields:
        M, shape (out, in); the n-th (counted from 0) is where `descend` ends after n steps.

    Source: (9), (14), (15), (16), (17) in docs/equations.md. Lesson: 06.
    """
    gradient, unit = free_gradient(quadratic, basis, start)
    steepest = largest_curvature(quadratic.curvature, basis, gradient)
    rate = 1 / steepest if steepest > 0 else 0.0
    moved = torch.zeros_like(start)
    while True:
        yield start + moved
        bent = off(basis, quadratic.curvature(gradient))
        size, along = float(gradient.square().sum()), float((gradient * bent).sum())
        # As `descend` does: the power iteration can overlook a direction that is too steep for this step.
        if along * rate > size > 0:
            rate = size / along
        moved = off(basis, moved - rate * unit * gradient)
        gradient = gradient - rate * bent


def walk_adam(
    quadratic: Objective, start: Tensor, basis: Tensor, together: Tensor, rate: float = 1e-4, *, again: bool = False
) -> Iterator[Tensor]:
    """Every M of Adam as the public code runs it: the gradient in Δ is projected first, and then handed to Adam.

    With the `row` surrogate this is `ApgdPublished.delta`, step by step.

    Args:
        quadratic: what is minimised.
        start: S = Σ λᵢτᵢ, shape (out, in).
        basis: U (out, k), orthonormal: what is protected.
        together: Λ = Σ λᵢ, from M = S + ΛΔ.
        rate: Adam's, in units of the weights.
        again: whether Δ is projected once more after every step, as the constraint asks and the public code does not.

    Yields:
        M, shape (out, in).

    Source: arXiv 2501.01230 and its port in fusion-bench; (14) in docs/equations.md, difference 7. Lesson: 06.
    """
    delta, first, second = (torch.zeros_like(start) for _ in range(3))
    step = 0
    while True:
        update = start + together * delta
        yield update
        step += 1
        gradient = 2 * together * off(basis, quadratic.gradient(update))
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient.square()
        # Element by element: here the projection is undone.
        scaled = first / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        delta = delta - rate / (1 - 0.9**step) * scaled
        if again:
            delta = off(basis, delta)


@dataclass(frozen=True)
class Walk:
    """One way from S to M, in numbers; entry n is after n steps.

    Attributes:
        surrogate: the total that is minimised, as a share of what it is at S.
        moved: ‖M − S‖, in units of the weights.
        leak: ‖P(M − S)‖ / ‖PS‖; the constraint says 0.
        accuracies: by step, what the caller's `accuracy` said of M, in per cent; empty where there was none.
    """

    surrogate: tuple[float, ...]
    moved: tuple[float, ...]
    leak: tuple[float, ...]
    accuracies: dict[int, float]

    @property
    def rises(self) -> int:
        """On how many steps the surrogate rose by more than float32 rounds."""
        return sum(after > before + 1e-5 for before, after in pairwise(self.surrogate))


@dataclass(frozen=True)
class DescentPaths:
    """Projected descent and Adam, on one layer, from the same S and with the same subspace protected.

    Attributes:
        granularity: of the surrogate that both minimise.
        steps: how many each took.
        protected: k, how many directions of the output side are protected.
        directions: r = min(out, in), of how many.
        eps: what the arithmetic rounds to, as a share: 1.2e-7 in float32.
        descent: projected gradient descent.
        adam: Adam after the projection, as published.
        again: the same with Δ projected again after every step.
        exact: the surrogate at the exact solution under the same constraint, as a share of what it is at S.
    """

    granularity: str
    steps: int
    protected: int
    directions: int
    eps: float
    descent: Walk
    adam: Walk
    again: Walk
    exact: float


def measure_descent(
    task_vectors: Tensor,
    *,
    granularity: str = "row",
    protect: float = 1 / 6,
    steps: int = 400,
    rate: float = 1e-4,
    accuracy: Callable[[Tensor], float] | None = None,
    at: Sequence[int] = (0, 10, 30, 100, 200, 400),
) -> DescentPaths:
    """Walk from S by projected descent, by Adam as published and by Adam projected again, and solve the layer exactly.

    All start at the S of `Apgd`'s own λ: the published λᵢ = 0.07/‖τᵢ‖ is made for task vectors of another length.

    Args:
        task_vectors: τ of one layer, shape (task, out, in).
        granularity: "layer", "row" or "full" (with p = 2 and all directions).
        protect: share of r = min(out, in) that is protected, 0 to 1.
        steps: how many.
        rate: of Adam, in units of the weights.
        accuracy: of an M (out, in) of this layer, in per cent; None to look at no accuracy.
        at: after which steps it is asked; those beyond `steps` are left out.

    Raises:
        ApgdTeachError: τ is no stack of matrices or does not move anything, `steps` is no whole number from 1, or a
            setting that `Apgd` refuses (`MergeError`, one of its kinds).

    Source: (9), (14), (15), (16), (17) in docs/equations.md, difference 7. Lesson: 06.
    """
    if task_vectors.ndim != 3:
        raise ApgdTeachError(
            f"the task vectors have shape {tuple(task_vectors.shape)}; give those of one layer, (task, out, in), a "
            "kernel as the matrix (out, in·kh·kw)."
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ApgdTeachError(f"steps is {steps!r}; give a whole number from 1.")
    check_share(protect)
    # A cut-off of 0: the minimiser itself, which the usual filters stop short of.
    method = Apgd(granularity=granularity, protect=protect, power=2.0, filter="cutoff", strength=0.0, flatten=0.0)
    solved = method.solve(task_vectors)
    quadratic = objective(task_vectors, granularity, power=2.0)
    begun = float(quadratic.value(solved.start))
    if not begun > 0:
        raise ApgdTeachError(
            "the surrogate is zero at S already, so there is no way to walk; give two or more tasks that differ."
        )
    ways = {
        "descent": walk(quadratic, solved.start, solved.basis),
        "adam": walk_adam(quadratic, solved.start, solved.basis, solved.coefficients.sum(), rate),
        "again": walk_adam(quadratic, solved.start, solved.basis, solved.coefficients.sum(), rate, again=True),
    }
    found = {}
    # All begin at S, which is asked once: what a network is worth takes most of the time.
    at_start = {0: float(accuracy(solved.start))} if accuracy is not None and 0 in at else {}
    for name, way in ways.items():
        surrogate, moved, leaked, accuracies = [], [], [], dict(at_start)
        for step, update in enumerate(islice(way, steps + 1)):
            surrogate.append(float(quadratic.value(update)) / begun)
            moved.append(norm(update - solved.start))
            leaked.append(leak(solved.basis, update, solved.start))
            if accuracy is not None and step in at and step not in accuracies:
                accuracies[step] = float(accuracy(update))
        found[name] = Walk(tuple(surrogate), tuple(moved), tuple(leaked), accuracies)
    return DescentPaths(
        granularity=granularity,
        steps=steps,
        protected=solved.basis.shape[1],
        directions=min(task_vectors.shape[1:]),
        eps=torch.finfo(task_vectors.dtype).eps,
        descent=found["descent"],
        adam=found["adam"],
        again=found["again"],
        exact=float(quadratic.value(solved.update)) / begun,
    )


def layer_accuracy(evaluator: Evaluator, state: StateDict, layer: str) -> Callable[[Tensor], float]:
    """Asks how accurate a network is with the update of one of its layers replaced: for `measure_descent`.

    Args:
        evaluator: says which images.
        state: the network, an encoder's state dict.
        layer: key of the weight that is replaced by θ₀ + M.

    Returns:
        From an M (out, in) of that layer to the mean accuracy over the tasks, in per cent.

    Raises:
        ApgdTeachError: the base has no such layer.

    Lesson: 06.
    """
    if layer not in evaluator.pool.base:
        raise ApgdTeachError(f"the base has no '{layer}'; it has: {', '.join(evaluator.pool.base)}.")
    base = evaluator.pool.base[layer]

    def accuracy(update: Tensor) -> float:
        scores = evaluator.scores({**state, layer: base + update.reshape(base.shape)})
        return fmean(score.accuracy for score in scores.values())

    return accuracy


def check_share(protect: object) -> None:
    """Refuse a word for what is protected: these figures know a subspace of k directions, and no soft protection.

    Raises:
        ApgdTeachError: it is a word.
    """
    if isinstance(protect, str):
        raise ApgdTeachError(f"protect is {protect!r}; this figure shows a subspace, so give a share from 0 to 1.")


def _ways(measured: DescentPaths) -> dict[str, Walk]:
    return {
        "projected descent": measured.descent,
        "Adam after the projection": measured.adam,
        "Adam, projected again": measured.again,
    }


def draw_descent(measured: DescentPaths, *, step: int) -> Drawing:
    """What is left of the surrogate, and the leak, step by step: projected descent beside Adam, projected again or not.

    A panel of accuracies is added where some were measured.

    Args:
        measured: from `measure_descent`.
        step: the step at which all are read, 0 to `measured.steps`.

    Raises:
        ApgdTeachError: there is no such step.

    Lesson: 06.
    """
    if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= measured.steps:
        raise ApgdTeachError(f"there is no step {step!r} here; give a whole number from 0 to {measured.steps}.")
    ways = _ways(measured)
    scored = bool(measured.descent.accuracies)
    with styled():
        drawn, axes = figure(1, 3 if scored else 2, width=9.0, height=4.0)
        # The constraint leaves nothing to see on a linear scale, and that is what is to be seen.
        panels: tuple[tuple[str, str, list[Sequence[float]]], ...] = (
            ("Surrogate left", "share of what it is at S", [way.surrogate for way in ways.values()]),
            ("Leak", "‖P(M − S)‖ / ‖PS‖  (%)", [[100 * one for one in way.leak] for way in ways.values()]),
        )
        for place, (title, label, values) in zip(axes, panels, strict=False):
            for i, (name, line) in enumerate(zip(ways, values, strict=True)):
                place.plot(
                    range(measured.steps + 1),
                    line,
                    color=COLORS[i],
                    linestyle=LINES[i],
                    marker=MARKERS[i],
                    markevery=[step],
                    markersize=8,
                    label=name,
                )
            place.set_title(title)
            place.set_ylabel(label)
        axes[0].set_yscale("log")
        if min(measured.exact, *(min(way.surrogate) for way in ways.values())) > 0.1:
            # Within a decade powers of ten name next to nothing.
            axes[0].yaxis.set_major_locator(MaxNLocator(5))
            axes[0].yaxis.set_major_formatter("{x:g}")
        # Nine ticks in each of eight decades would take most of the time that the figure takes.
        axes[0].yaxis.set_minor_locator(NullLocator())
        if measured.exact > 0:
            axes[0].axhline(measured.exact, color=COLORS[6], linestyle=LINES[3], linewidth=1.4, label="exact solution")
        # A little below zero: what does not leak lies on it.
        top = max(0.1, 105 * max(max(way.leak) for way in ways.values()))
        axes[1].set_ylim(-0.04 * top, top)
        if measured.protected:
            largest = 100 * max(*measured.descent.leak, *measured.again.leak)
            axes[1].set_xlabel(f"step\n(the two others: at most {largest:.0e} %)".replace("-", "−"))
        if scored:
            for i, way in enumerate(ways.values()):
                # Straight between what was measured: nobody looked there.
                axes[2].plot(
                    list(way.accuracies),
                    list(way.accuracies.values()),
                    color=COLORS[i],
                    linestyle=LINES[i],
                    marker=MARKERS[i],
                    markersize=5,
                )
            # A few images more or less are no hill: ten points at least from bottom to top.
            low, high = axes[2].get_ylim()
            aside = max(0.0, 10 - (high - low)) / 2
            axes[2].set_ylim(low - aside, high + aside)
            axes[2].set_title("Accuracy of M")
            axes[2].set_ylabel("accuracy (%)")
        for place in axes:
            place.axvline(step, color="#7A7A7A", linewidth=1, linestyle=":")
            place.set_xlabel(place.get_xlabel() or "step")
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
        return Drawing(drawn, _words(measured, step), _numbers(measured, step))


def _asked(walked: Walk, step: int) -> int | None:
    """The last step up to this one after which the accuracy was measured; the first of all where none was before."""
    return max((one for one in walked.accuracies if one <= step), default=min(walked.accuracies, default=None))


def _numbers(measured: DescentPaths, step: int) -> dict[str, object]:
    numbers: dict[str, object] = {"step": step}
    for name, way in _ways(measured).items():
        numbers[f"surrogate left, {name} (share of S's)"] = way.surrogate[step]
        numbers[f"leak, {name} (%)"] = 100 * way.leak[step]
        numbers[f"‖M − S‖, {name} (units of the weights)"] = way.moved[step]
        asked = _asked(way, step)
        if asked is not None:
            numbers["accuracy measured after step"] = asked
            numbers[f"accuracy, {name} (%)"] = way.accuracies[asked]
    numbers["surrogate left, exact solution (share of S's)"] = measured.exact
    return numbers


def _words(measured: DescentPaths, step: int) -> str:
    descent, adam, again = measured.descent, measured.adam, measured.again
    words = (
        f"After {step} of {measured.steps} steps on the surrogate '{measured.granularity}', projected descent has left "
        f"{descent.surrogate[step]:.2g} of what it is at S, Adam after the projection {adam.surrogate[step]:.2g} and "
        f"Adam projected again {again.surrogate[step]:.2g}, where the exact solution leaves {measured.exact:.2g}; "
        f"‖M − S‖ is {descent.moved[step]:.3g}, {adam.moved[step]:.3g} and {again.moved[step]:.3g}. "
    )
    if measured.protected:
        words += (
            f"With {measured.protected} of {measured.directions} directions protected, the leak ‖P(M − S)‖/‖PS‖ of "
            f"Adam after the projection is {100 * adam.leak[step]:.1f} %. That of descent is zero but for rounding "
            f"({descent.leak[step]:.1g}, at most {max(descent.leak):.1g} on the way, in an arithmetic that rounds to "
            f"{measured.eps:.1g}), and so is that of Adam projected again ({again.leak[step]:.1g})."
        )
    else:
        words += "Nothing is protected, so nothing can leak."
    asked = _asked(descent, step)
    if asked is not None:
        words += (
            f" The accuracy after step {asked} is {descent.accuracies[asked]:.1f} % with descent, "
            f"{adam.accuracies[asked]:.1f} % with Adam after the projection and {again.accuracies[asked]:.1f} % with "
            "Adam projected again."
        )
    return words
