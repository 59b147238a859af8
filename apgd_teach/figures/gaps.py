"""The first-order estimate of the gap beside the gap itself: task by task, and along the way to the merged network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from torch import Tensor
from torch.func import functional_call

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator, compare
from apgd_teach.experts import Pool
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, MARKERS, figure, look, styled
from apgd_teach.figures.sweeps import place_of
from apgd_teach.landscape import loss_path
from apgd_teach.merging import Merged, StateDict, task_vectors, taylor_gap, taylor_gap_with_gradient
from apgd_teach.merging.statedict import as_matrix, relative_norm
from apgd_teach.tables import Table

__all__ = [
    "Along",
    "Estimates",
    "Heat",
    "draw_along",
    "draw_estimate",
    "draw_heat",
    "estimated_gaps",
    "gap_along",
    "gradient_cosines",
    "loss_gradients",
    "measure_estimates",
    "measure_heat",
    "merged_layers",
    "spearman",
]

_GREY = COLORS[7]


@dataclass(frozen=True)
class Estimates:
    """Estimated and measured gap, by label of the network and task; the base is among the labels.

    Attributes:
        titles: of the tasks, by name.
        data_free: −⟨τⱼ, M − τⱼ⟩ summed over the merged layers, in squared units of weight.
        with_gradients: ⟨∇Lⱼ(θ₀), M − τⱼ⟩ summed over all tensors, in nats; None where no gradients were given.
        measured: Lⱼ(θ*) − Lⱼ(θⱼ), in nats.
        lengths: by task, ‖τⱼ‖/‖θ₀‖ of all tensors together: how far its expert went.
        steps: by label, the largest ‖M‖/‖θ₀‖ of a merged layer; 0 at the base.

    Lesson: 04.
    """

    titles: dict[str, str]
    data_free: dict[str, dict[str, float]]
    with_gradients: dict[str, dict[str, float]] | None
    measured: dict[str, dict[str, float]]
    lengths: dict[str, float] = field(default_factory=dict)
    steps: dict[str, float] = field(default_factory=dict)

    def changes(self, label: str) -> tuple[list[float], list[float]]:
        """What a network changes for each task, its gap less the base's: without data, and measured.

        The base's own part of a gap is there whatever is merged; −⟨τⱼ, M⟩ and Lⱼ(θ*) − Lⱼ(θ₀) are M's.
        """
        return _changes(self.data_free, label), _changes(self.measured, label)


def estimated_gaps(
    base: StateDict,
    vectors: Mapping[str, StateDict],
    merged: Mapping[str, Merged | StateDict],
    compared: Comparison,
    *,
    gradients: Mapping[str, StateDict] | None = None,
) -> Estimates:
    """Each task's estimated gap beside the measured one, for the base (M = 0) and for each merged network.

    Args:
        base: θ₀.
        vectors: τⱼ by task, as `task_vectors` gives them.
        merged: by label, networks that are in `compared`. Which layers were merged is read off the audit; of a plain
            state dict, all with two axes or more.
        compared: the measured losses, of the same tasks.
        gradients: ∇Lⱼ(θ₀) by task, for every tensor that has a task vector, as `loss_gradients` gives them.

    Raises:
        ApgdTeachError: tasks, labels or tensors do not fit together.

    Source: (3), (4), (5) in docs/equations.md. Lesson: 04.
    """
    tasks = list(compared.titles)
    for what, given in (("task vectors", vectors), *((("gradients", gradients),) if gradients is not None else ())):
        if set(given) != set(tasks):
            raise ApgdTeachError(
                f"the {what} are of {', '.join(given) or 'no task'}, the measured losses of {', '.join(tasks)}; "
                "give them for the same tasks."
            )
    for label in merged:
        if label not in compared.merged:
            raise ApgdTeachError(
                f"'{label}' was not compared, so its gap is not known; there are: {', '.join(compared.merged)}."
            )
    keys = list(vectors[tasks[0]])
    for task, one in (gradients or {}).items():
        lacking = [key for key in keys if key not in one or one[key].shape != base[key].shape]
        if lacking:
            raise ApgdTeachError(
                f"the gradient of '{task}' lacks '{lacking[0]}' in the base's shape; give one for every tensor."
            )
    free: dict[str, dict[str, float]] = {}
    true: dict[str, dict[str, float]] = {}
    steps: dict[str, float] = {}
    for label, network in {"base": base, **merged}.items():
        state = network.state_dict if isinstance(network, Merged) else network
        layers = _merged_layers(network, base)
        sums, sums_true = torch.zeros(len(tasks)).double(), torch.zeros(len(tasks)).double()
        for key in keys:
            stack, update = _stack([vectors[task][key] for task in tasks]), _stack([state[key] - base[key]])[0]
            if key in layers:
                sums += taylor_gap(stack, update)
            if gradients is not None:
                sums_true += taylor_gap_with_gradient(_stack([gradients[task][key] for task in tasks]), stack, update)
        free[label] = dict(zip(tasks, sums.tolist(), strict=True))
        true[label] = dict(zip(tasks, sums_true.tolist(), strict=True))
        steps[label] = max((relative_norm({key: base[key]}, {key: state[key]}) for key in layers), default=0.0)
    return Estimates(
        titles=dict(compared.titles),
        data_free=free,
        with_gradients=None if gradients is None else true,
        measured={label: {task: compared.gap(label)[task] for task in tasks} for label in free},
        lengths={task: relative_norm(base, {key: base[key] + vectors[task][key] for key in keys}) for task in tasks},
        steps=steps,
    )


def measure_estimates(
    pool: Pool,
    merged: Mapping[str, Merged | StateDict],
    *,
    images: int | None = None,
    gradients: Mapping[str, StateDict] | None = None,
) -> Estimates:
    """Score merges of a pool's experts and put the estimates of their gaps beside what was measured.

    Args:
        pool: base, experts, heads and data.
        merged: by label, what `merge` gave back.
        images: test images per task, the first ones; all by default.
        gradients: ∇Lⱼ(θ₀) by task, where they are at hand; `loss_gradients` on the same images by default. Pools of
            one base and the same tasks have the same.

    Raises:
        ApgdTeachError: as `compare` and `estimated_gaps` do.

    Source: (3), (4), (5) in docs/equations.md. Lesson: 04.
    """
    if gradients is None:
        gradients = loss_gradients(Evaluator(pool, images=images), pool.base)
    vectors = task_vectors(pool.base, pool.experts)
    return estimated_gaps(pool.base, vectors, merged, compare(pool, merged, images=images), gradients=gradients)


def merged_layers(
    base: StateDict, vectors: Mapping[str, StateDict], network: Merged | StateDict
) -> dict[str, tuple[Tensor, Tensor]]:
    """The layers that a merge has merged, as the matrices that formulas are about.

    Args:
        base: θ₀.
        vectors: τⱼ by task, as `task_vectors` gives them.
        network: a merge, whose audit says which layers; of a plain state dict, all with two axes or more.

    Returns:
        by layer τ, shape (task, out, in), and M, shape (out, in), in float64.

    Lesson: 04.
    """
    state = network.state_dict if isinstance(network, Merged) else network
    return {
        key: (_stack([tau[key] for tau in vectors.values()]), _stack([state[key] - base[key]])[0])
        for key in base
        if key in _merged_layers(network, base)
    }


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors as matrices in float64, shape (tensor, out, in); a vector as one column."""
    stacked = torch.stack([one.detach().cpu().double() for one in tensors])
    return stacked.reshape(len(tensors), stacked.shape[1] if stacked.ndim > 1 else 1, -1)


def _merged_layers(network: Merged | StateDict, base: StateDict) -> set[str]:
    if isinstance(network, Merged):
        return {row.name for row in network.audit.rows if row.policy == "merge"}
    return {key for key, tensor in base.items() if tensor.ndim >= 2 and min(as_matrix(tensor).shape) >= 2}


def loss_gradients(evaluator: Evaluator, state: StateDict) -> dict[str, dict[str, Tensor]]:
    """∇Lⱼ at a network, on the evaluator's images: what only data can give.

    Args:
        evaluator: says which images; its pool has the heads.
        state: θ, most often θ₀.

    Returns:
        by task, by floating-point tensor.

    Raises:
        ApgdTeachError: the state dict is of another network.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    found = {}
    for task in evaluator.pool.tasks:
        there = {
            key: tensor.detach().clone().requires_grad_(tensor.is_floating_point())
            for key, tensor in evaluator.loaded(state).items()
        }
        leaves = {key: tensor for key, tensor in there.items() if tensor.requires_grad}
        sums = {key: torch.zeros_like(tensor) for key, tensor in leaves.items()}
        for share, loss in _losses(evaluator, there, task):
            for key, one in zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True):
                sums[key] += share * one
        found[task] = {key: one.cpu() for key, one in sums.items()}
    return found


def gradient_cosines(
    vectors: Mapping[str, StateDict], gradients: Mapping[str, StateDict], tasks: Iterable[str] | None = None
) -> dict[str, float]:
    """How much of a gradient a task vector is: the cosine of −τⱼ and ∇Lⱼ(θ₀), mean over the tasks.

    1 is the gradient's own direction, 0 a right angle. Biases and other vectors are left out.

    Args:
        vectors: τⱼ by task, as `task_vectors` gives them.
        gradients: ∇Lⱼ(θ₀) by task, as `loss_gradients` gives them.
        tasks: which tasks; all that have a task vector by default.

    Returns:
        by layer, and under "all of them" for the layers as one long vector; NaN where nothing moved.

    Raises:
        ApgdTeachError: there is no task, or one lacks a task vector or a gradient.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    chosen = list(vectors if tasks is None else tasks)
    lacking = [task for task in chosen if task not in vectors or task not in gradients]
    if lacking or not chosen:
        which = f"'{lacking[0]}' lacks one of them" if lacking else "there is no task"
        raise ApgdTeachError(f"give a task vector and a gradient for every task; {which}.")
    layers = [key for key, tensor in vectors[chosen[0]].items() if tensor.ndim >= 2]
    found = {}
    for name, keys in {**{layer: [layer] for layer in layers}, "all of them": layers}.items():
        each = []
        for task in chosen:
            tau, gradient = (
                torch.cat([of[task][key].flatten().cpu().double() for key in keys]) for of in (vectors, gradients)
            )
            size = float(tau.norm() * gradient.norm())
            each.append(-float(tau @ gradient) / size if size > 0 else math.nan)
        found[name] = sum(each) / len(each)
    return found


def _losses(evaluator: Evaluator, state: Mapping[str, Tensor], task: str) -> Iterable[tuple[float, Tensor]]:
    """The mean loss of each block of images, with the block's share of all; gradients flow to the state dict."""
    images, labels = evaluator.looked_at(task)
    head = evaluator.pool.head(task)
    for block, true in zip(images.split(1000), labels.split(1000), strict=True):
        logits = head(functional_call(evaluator.encoder, dict(state), (block,)))
        yield len(true) / len(labels), F.cross_entropy(logits, true)


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation: 1 where both have the same order, −1 where one is the other reversed.

    Equal numbers share the mean of their ranks. NaN where it is not defined: fewer than two numbers, all of one side
    equal, or one is NaN.

    Lesson: 04.
    """
    values = np.array([one, other], dtype=float)
    if values.shape[1] < 2 or np.isnan(values).any():
        return math.nan
    first, second = (_ranks(line) - (values.shape[1] + 1) / 2 for line in values)
    size = math.sqrt(float((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / size if size > 0 else math.nan


def _ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 1; equal numbers share the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: np.ndarray = (counts.cumsum() - (counts - 1) / 2)[place]
    return ranks


def draw_estimate(measured: Estimates, *, label: str) -> Drawing:
    """Estimated against measured gap, a mark per task; beside it, where there are gradients, the estimate with them.

    The data-free estimate is in squared units of weight, so only the order of its marks says something. With the true
    gradients both sides are in nats, and on the line they are equal.

    Args:
        measured: what `estimated_gaps` gave.
        label: which network.

    Raises:
        ApgdTeachError: there is no such label.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    if label not in measured.measured:
        raise ApgdTeachError(f"nothing called '{label}' was estimated; there are: {', '.join(measured.measured)}.")
    gaps, free = measured.measured[label], measured.data_free[label]
    true = None if measured.with_gradients is None else measured.with_gradients[label]
    with styled():
        drawn, axes = figure(1, 1 if true is None else 2, width=7.2 if true is None else 9.0, height=4.6)
        _scatter(axes[0], free, gaps, measured.titles)
        axes[0].set_xlabel("estimate −⟨τⱼ, M − τⱼ⟩ (weight²)")
        axes[0].set_ylabel("measured gap (nats)")
        axes[0].set_title(f"Estimate without data: {label}" if true is None else "estimate without data")
        if true is not None:
            _scatter(axes[1], true, gaps, measured.titles)
            ends = [min(*true.values(), *gaps.values()), max(*true.values(), *gaps.values())]
            axes[1].plot(ends, ends, color=_GREY, linestyle=":", linewidth=1.4, label="estimate = gap")
            axes[1].set_xlabel("estimate ⟨∇Lⱼ(θ₀), M − τⱼ⟩ (nats)")
            axes[1].set_ylabel("measured gap (nats)")
            axes[1].set_title("estimate with true gradients")
            drawn.suptitle(f"Estimated and measured gap: {label}", fontsize=12)
        drawn.legend(*axes[-1].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    order, order_true = (
        math.nan if one is None else spearman(list(one.values()), list(gaps.values())) for one in (free, true)
    )
    broken = [task for task in gaps if not math.isfinite(gaps[task] + free[task])]
    worst = max(gaps, key=lambda task: gaps[task])
    ahead, level = (sum(value > free[worst] for value in free.values()), list(free.values()).count(free[worst]))
    words = f"For '{label}' the data-free estimate "
    if broken:
        # A network that diverged has no order.
        words += f"cannot be compared: gap or estimate of {_named(broken, measured.titles)} is no finite number"
    else:
        words += (
            f"orders {len(gaps)} tasks by their gap with a rank correlation of {_signed(order)} (1 is the same order). "
            f"The largest measured gap is that of {measured.titles[worst]}, {_nats(gaps[worst])} nats, "
            + (_ordinal(ahead + 1) if level == 1 else f"level with {level - 1} of the others")
            + " by the estimate"
        )
    if true is not None:
        words += (
            f"; with the true gradients the correlation is {_signed(order_true)} and that task's estimate "
            f"{_nats(true[worst])} nats"
        )
    return Drawing(
        drawn,
        f"{words}.",
        {
            "mean gap (nats)": sum(gaps.values()) / len(gaps),
            "largest gap (nats)": gaps[worst],
            "rank correlation, data-free (−1 to 1)": order,
            "rank correlation, true gradients (−1 to 1)": order_true,
        },
    )


def _scatter(axes: Axes, across: Mapping[str, float], up: Mapping[str, float], titles: Mapping[str, str]) -> None:
    for i, task in enumerate(titles):
        axes.plot(across[task], up[task], **{**look(i), "linestyle": ""}, markersize=8, label=titles[task])
    axes.margins(0.1)
    axes.locator_params(nbins=6)


@dataclass(frozen=True)
class Along:
    """The gap on the straight line from the base to a merged network, and what is known of it at the base.

    Attributes:
        titles: of the tasks, by name.
        steps: share s of the way, from 0 (the base) to 1 (the merged network).
        gaps: per task, Lⱼ(θ₀ + sM) − Lⱼ(θⱼ) at each step, in nats.
        slopes: per task, ⟨∇Lⱼ(θ₀), M⟩, in nats for the whole way.
        curvatures: per task, ⟨M, ∇²Lⱼ(θ₀) M⟩, in nats for the whole way squared.
        end: what lies at the end of the way, in words.
        unit: of the gaps, where it is not the nat.

    Lesson: 04.
    """

    titles: dict[str, str]
    steps: tuple[float, ...]
    gaps: dict[str, tuple[float, ...]]
    slopes: dict[str, float]
    curvatures: dict[str, float]
    end: str = "the merged network"
    unit: str = "nats"

    @property
    def mean(self) -> tuple[float, ...]:
        """The gap at each step, mean over the tasks."""
        return tuple(sum(each) / len(each) for each in zip(*self.gaps.values(), strict=True))


def gap_along(
    evaluator: Evaluator,
    base: StateDict,
    merged: StateDict,
    tasks: Iterable[str] | None = None,
    *,
    points: int = 11,
    end: str = "the merged network",
) -> Along:
    """Measure the gap from the base to a merged network, and slope and curvature at the base.

    Both derivatives are those of the loss on the evaluator's images, in the direction M, and are exact.

    Args:
        evaluator: says which images; its pool has the heads and the experts.
        base: θ₀.
        merged: θ₀ + M.
        tasks: which tasks; all of the pool by default.
        points: how many networks, both ends included; at least 2.
        end: what the merged network is, in words.

    Raises:
        ApgdTeachError: fewer than two points, no such task, or a state dict of another network.

    Source: (3), (4), (5) in docs/equations.md. Lesson: 04.
    """
    chosen = list(evaluator.pool.tasks if tasks is None else tasks)
    path = loss_path(evaluator, base, merged, chosen, points)
    (update,) = task_vectors(base, {"M": merged}).values()
    gaps, slopes, curvatures = {}, {}, {}
    for task in chosen:
        expert = evaluator.score(evaluator.pool.experts[task], task).loss
        gaps[task] = tuple(loss - expert for loss in path.losses[task])
        slopes[task], curvatures[task] = _derivatives(evaluator, base, update, task)
    titles = {task: evaluator.pool.tasks[task].title for task in chosen}
    return Along(titles, tuple(path.steps), gaps, slopes, curvatures, end)


def _derivatives(evaluator: Evaluator, base: StateDict, update: StateDict, task: str) -> tuple[float, float]:
    """First and second derivative of s ↦ Lⱼ(θ₀ + sM) at s = 0."""
    device = evaluator.pool.device
    slope, curvature = 0.0, 0.0
    step = torch.zeros((), device=device, requires_grad=True)
    there = {
        key: tensor + step * update[key].to(device) if key in update else tensor
        for key, tensor in evaluator.loaded(base).items()
    }
    for share, loss in _losses(evaluator, there, task):
        # One number to differentiate by: the Hessian itself is never made.
        (first,) = torch.autograd.grad(loss, step, create_graph=True)
        (second,) = torch.autograd.grad(first, step, retain_graph=True)
        slope += share * float(first.detach())
        curvature += share * float(second.detach())
    return slope, curvature


def draw_along(measured: Along, *, share: float, task: str = "all") -> Drawing:
    """The measured gap on the way to the merged network, the tangent at the base, and the parabola.

    Args:
        measured: what `gap_along` gave.
        share: of the way, one of those measured: what is marked and put into words.
        task: a task's name, or "all" for the mean over the tasks.

    Raises:
        ApgdTeachError: there is no such task, or nothing was measured at that share.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    place = place_of(measured.steps, share, "a share of the way")
    if task != "all" and task not in measured.titles:
        raise ApgdTeachError(
            f"nothing was measured on the task '{task}'; take 'all' or one of: {', '.join(measured.titles)}."
        )
    chosen = list(measured.titles) if task == "all" else [task]
    steps = np.array(measured.steps)
    gap = np.mean([measured.gaps[one] for one in chosen], axis=0)
    slope, curvature = (float(np.mean([of[one] for one in chosen])) for of in (measured.slopes, measured.curvatures))
    where = f"mean over {len(chosen)} tasks" if task == "all" else measured.titles[task]
    # A parabola through few points would be drawn with corners.
    fine = np.linspace(steps[0], steps[-1], 101)
    lines = {
        "measured gap": (steps, gap),
        "first-order line": (steps, gap[0] + slope * steps),
        "parabola": (fine, gap[0] + slope * fine + curvature * fine**2 / 2),
    }
    here = {
        "measured gap": float(gap[place]),
        "first-order line": float(gap[0] + slope * steps[place]),
        "parabola": float(gap[0] + slope * steps[place] + curvature * steps[place] ** 2 / 2),
    }
    with styled():
        drawn, (axes,) = figure(width=7.2, height=4.4)
        axes.axhline(0, color=_GREY, linewidth=1.2, linestyle=(0, (5, 1)), label="each its own expert")
        for i, (name, line) in enumerate(lines.items()):
            axes.plot(*line, **{**look(i), "marker": MARKERS[0] if i == 0 else ""}, markersize=5, label=name)
        axes.axvline(steps[place], color="black", linestyle=":", linewidth=1.4)
        axes.plot([steps[place]] * 3, list(here.values()), "o", color="black", fillstyle="none", markersize=10)
        # Far from the base the parabola can be a hundred times the gap: then it leaves the picture.
        near = [0.0, *gap, *lines["first-order line"][1]]
        room = max(near) - min(near) or 1.0
        every = [*near, *lines["parabola"][1]]
        low, high = max(min(every), min(near) - room), min(max(every), max(near) + room)
        axes.set_ylim(low - 0.06 * (high - low or 1.0), high + 0.06 * (high - low or 1.0))
        axes.set_xlabel(f"share of the way from the base (0) to {measured.end} (1)")
        axes.set_ylabel(f"gap ({measured.unit})")
        axes.set_title(f"The gap on the way: {where}")
        drawn.legend(loc="outside lower center", ncols=4)
    return Drawing(
        drawn,
        f"At {steps[place]:.2f} of the way from the base to {measured.end} the gap is "
        f"{_nats(here['measured gap'])} {measured.unit} ({where}), where the first-order line says "
        f"{_nats(here['first-order line'])} and the parabola {_nats(here['parabola'])}. At the base it is "
        f"{_nats(gap[0])}, at {measured.end} {_nats(gap[-1])}.",
        {f"{name} ({measured.unit})": value for name, value in here.items()},
    )


@dataclass(frozen=True)
class Heat:
    """How good the estimates are, by how hot the experts were fine-tuned.

    What a merge changes for task j is Lⱼ(θ*) − Lⱼ(θ₀), its gap less the base's: by the estimate ⟨∇Lⱼ(θ₀), M⟩, without
    data −⟨τⱼ, M⟩.

    Attributes:
        label: of the merged network.
        rates: learning rates, rising.
        ratios: at each, the base's own gap by the estimate with gradients over the measured one, tasks added up.
        gaps: at each, the rank correlation of the tasks' gaps under the merge, without data and measured.
        changes: the same of what the merge changes.
        changes_with_gradients: the same of what the merge changes, with the true gradients in place of −τⱼ.
        wrong: at each, for how many tasks the estimate with gradients says that the merge helps and it harms, or the
            other way round.
        estimates: at each, what all this was made from.

    Lesson: 04.
    """

    label: str
    rates: tuple[float, ...]
    ratios: tuple[float, ...]
    gaps: tuple[float, ...]
    changes: tuple[float, ...]
    changes_with_gradients: tuple[float, ...]
    wrong: tuple[int, ...]
    estimates: tuple[Estimates, ...]

    @property
    def lengths(self) -> tuple[float, ...]:
        """At each rate ‖τ‖/‖θ₀‖ in per cent, mean over the tasks; NaN where it is not known."""
        return tuple(100 * _mean(one.lengths) for one in self.estimates)

    def table(self) -> Table:
        """By learning rate how far experts and merge went, and the gaps (nats) beside their estimates."""
        rows: list[list[object]] = []
        for i, one in enumerate(self.estimates):
            true = one.with_gradients or {}
            rows.append(
                [
                    f"{self.rates[i]:g}",
                    *map(_whole, (self.lengths[i], 100 * one.steps.get(self.label, math.nan))),
                    *(_mean(of[name]) for name in ("base", self.label) for of in (one.measured, true)),
                    f"{self.wrong[i]} of {len(one.titles)}",
                ]
            )
        return Table(
            (
                "learning rate",
                "mean ‖τ‖/‖θ₀‖ %",
                "longest step %",
                "base's gap",
                "its estimate",
                f"{self.label}'s gap",
                "its estimate",
                "wrong direction",
            ),
            rows,
            digits=3,
            caption="First-order estimates with true gradients beside the measured gaps (nats), mean over the tasks",
            note="Longest step: ‖M‖/‖θ₀‖ of a merged layer. Wrong direction: tasks that the estimate says the merge "
            "helps and that it harms, or the other way round.",
        )


def _mean(of: Mapping[str, float]) -> float:
    return sum(of.values()) / len(of) if of else math.nan


def _whole(value: float) -> int | float:
    return round(value) if math.isfinite(value) else value


def measure_heat(estimates: Mapping[float, Estimates], *, label: str = "average") -> Heat:
    """Put the estimates of several pools side by side, each of experts that were fine-tuned at a rate of its own.

    Args:
        estimates: by learning rate, what `estimated_gaps` gave; with gradients.
        label: of the merged network.

    Raises:
        ApgdTeachError: there are no estimates, some lack gradients, or nothing of that label was estimated.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    if not estimates:
        raise ApgdTeachError("there are no estimates to put side by side; give one for each learning rate.")
    ratios, gaps, changes, with_gradients, wrong = [], [], [], [], []
    for rate in sorted(estimates):
        one = estimates[rate]
        if one.with_gradients is None:
            raise ApgdTeachError(f"the estimates at learning rate {rate:g} lack gradients; give them to them.")
        if label not in one.measured:
            raise ApgdTeachError(
                f"nothing called '{label}' was estimated at learning rate {rate:g}; there are: "
                f"{', '.join(one.measured)}."
            )
        ratios.append(sum(one.with_gradients["base"].values()) / sum(one.measured["base"].values()))
        gaps.append(spearman(list(one.data_free[label].values()), list(one.measured[label].values())))
        foretold, changed = one.changes(label)
        by_line = _changes(one.with_gradients, label)
        changes.append(spearman(foretold, changed))
        with_gradients.append(spearman(by_line, changed))
        wrong.append(sum((says < 0) != (does < 0) for says, does in zip(by_line, changed, strict=True)))
    rates = sorted(estimates)
    return Heat(
        label,
        tuple(rates),
        tuple(ratios),
        tuple(gaps),
        tuple(changes),
        tuple(with_gradients),
        tuple(wrong),
        tuple(estimates[rate] for rate in rates),
    )


def _changes(of: Mapping[str, Mapping[str, float]], label: str) -> list[float]:
    return [of[label][task] - of["base"][task] for task in of[label]]


def draw_heat(measured: Heat) -> Drawing:
    """How far too large the estimate is, and how well it orders the tasks, by learning rate of the fine-tuning.

    Args:
        measured: what `measure_heat` gave.

    Source: (4), (5) in docs/equations.md. Lesson: 04.
    """
    lines = {
        "gap, without data": measured.gaps,
        "change, without data": measured.changes,
        "change, true gradients": measured.changes_with_gradients,
    }
    with styled():
        drawn, (left, right) = figure(1, 2, width=9.0, height=4.6)
        left.axhline(1, color=_GREY, linestyle=":", linewidth=1.4, label="right")
        left.axhline(2, color=_GREY, linestyle="--", linewidth=1.4, label="most on a parabola")
        left.plot(measured.rates, measured.ratios, **look(0), markersize=7, label="measured")
        left.set_ylim(0, 1.1 * max(2.0, *measured.ratios))
        left.set_ylabel("estimate / measured gap")
        left.set_title("The base's gap, with true gradients")
        left.legend(loc="upper left")
        right.axhline(1, color=_GREY, linestyle=":", linewidth=1.4)
        right.axhline(0, color=_GREY, linestyle="-", linewidth=1.0)
        for i, (name, line) in enumerate(lines.items()):
            right.plot(measured.rates, line, **look(i + 1), markersize=7, label=name)
        right.set_ylim(-1.08, 1.08)
        right.set_ylabel("rank correlation over the tasks")
        right.set_title(f"Order of the tasks: {measured.label}")
        for axes in (left, right):
            axes.set_xscale("log")
            axes.set_xticks(measured.rates, [f"{rate:g}" for rate in measured.rates])
            axes.set_xticks([], minor=True)
            axes.margins(x=0.1)
            axes.set_xlabel("learning rate of the fine-tuning")
        drawn.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    each = "; ".join(
        f"at {rate:g} the estimate of the base's gap is {ratio:.1f} times the measured one, and the rank correlations "
        + ", ".join(f"{_signed(line[i])} ({name})" for name, line in lines.items())
        for i, (rate, ratio) in enumerate(zip(measured.rates, measured.ratios, strict=True))
    )
    return Drawing(
        drawn,
        f"By learning rate of the fine-tuning, for '{measured.label}': {each}.",
        {
            f"rank correlation at {rate:g}, {name} (−1 to 1)": line[i]
            for i, rate in enumerate(measured.rates)
            for name, line in lines.items()
        },
    )


def _signed(value: float) -> str:
    return "–, not defined," if math.isnan(value) else f"{value:.2f}".replace("-", "−")


def _nats(value: float) -> str:
    return f"{value:.3f}".replace("-", "−")


def _ordinal(place: int) -> str:
    return {1: "also the largest", 2: "the second largest", 3: "the third largest"}.get(
        place, f"number {place} from the top"
    )


def _named(tasks: Sequence[str], titles: Mapping[str, str]) -> str:
    return ", ".join(titles[task] for task in tasks)
