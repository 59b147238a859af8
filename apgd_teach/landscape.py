"""Walks through weight space: the straight line between two networks, and the plane through three."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.merging import StateDict, task_vectors
from apgd_teach.progress import bar

__all__ = ["Path", "Plane", "loss_path", "loss_plane"]


@dataclass(frozen=True)
class Path:
    """Losses and accuracies along a straight line from one network to another.

    Attributes:
        steps: share of the way, from 0 (the first network) to 1 (the second).
        losses: per task, mean cross-entropy (nats) at each step.
        accuracies: per task, per cent at each step.
    """

    steps: list[float]
    losses: dict[str, list[float]]
    accuracies: dict[str, list[float]]

    def barrier(self, task: str) -> float:
        """How far the loss rises above the straight line between its two ends, at most (nats; 0 if nowhere).

        Source: Frankle et al., "Linear mode connectivity", ICML 2020, arXiv 1912.05671. Lesson: 02.
        """
        first, last = self.losses[task][0], self.losses[task][-1]
        return max(
            loss - (first + step * (last - first)) for step, loss in zip(self.steps, self.losses[task], strict=True)
        )

    def words(self, task: str) -> str:
        """The loss at the start, half-way and at the end, for those who cannot see the figure."""
        losses = self.losses[task]
        return (
            f"{losses[0]:.2f} at the start, {losses[len(losses) // 2]:.2f} half-way, {losses[-1]:.2f} at the end (nats)"
        )


def loss_path(evaluator: Evaluator, start: StateDict, end: StateDict, tasks: Sequence[str], points: int = 11) -> Path:
    """Score the networks on the straight line from `start` to `end`.

    Args:
        evaluator: says which images.
        start, end: state dicts of one network.
        tasks: which tasks to score on.
        points: how many networks, both ends included; at least 2.

    Raises:
        ApgdTeachError: fewer than two points.

    Lesson: 02.
    """
    if points < 2:
        raise ApgdTeachError(f"a line has two ends, so points must be at least 2, not {points}.")
    steps = [i / (points - 1) for i in range(points)]
    path = Path(steps, {task: [] for task in tasks}, {task: [] for task in tasks})
    for step in steps:
        state = _between(start, end, step)
        for task in tasks:
            score = evaluator.score(state, task)
            path.losses[task].append(score.loss)
            path.accuracies[task].append(score.accuracy)
    return path


@dataclass(frozen=True)
class Plane:
    """Losses over the plane through three networks: a base and two more.

    The base is the origin. The first axis points from it to the first network; the second is at a right angle to the
    first and points to the side of the second network. Lengths are distances in weight space, so angles are true.

    Attributes:
        x, y: coordinates of the grid's columns and rows.
        losses: per task, mean cross-entropy (nats), shape (row of y, column of x).
        places: coordinates of the three networks, by name.
        at: the mean loss of each of the three networks itself, which need not lie on the grid.
    """

    x: list[float]
    y: list[float]
    losses: dict[str, Tensor]
    places: dict[str, tuple[float, float]]
    at: dict[str, float]

    @property
    def mean(self) -> Tensor:
        """The tasks' mean loss, shape (row, column)."""
        return torch.stack(list(self.losses.values())).mean(dim=0)

    def words(self) -> str:
        """The loss of each of the three networks, for those who cannot see the figure."""
        return ", ".join(f"{loss:.2f} at {name}" for name, loss in self.at.items()) + " (nats)"


def loss_plane(
    evaluator: Evaluator,
    base: StateDict,
    first: tuple[str, StateDict],
    second: tuple[str, StateDict],
    tasks: Sequence[str],
    *,
    points: int = 15,
    border: float = 0.25,
    progress: bool = True,
) -> Plane:
    """Score the networks on a grid over the plane through a base and two more.

    An average of experts lies in the plane only if it is one of the three, or the mean of the two.

    Args:
        evaluator: says which images.
        base: θ₀, the origin.
        first, second: a name and a state dict each.
        tasks: which tasks to score on.
        points: grid points along each side, at least 2. From 5 on, grid lines go through the three networks.
        border: how far the grid goes beyond the three networks, as a share of their larger extent.
        progress: show a bar.

    Raises:
        ApgdTeachError: fewer than two points, a name twice, or the three networks lie on one line.

    Source: Garipov et al., "Loss surfaces, mode connectivity", NeurIPS 2018, arXiv 1802.10026. Lesson: 02.
    """
    if points < 2:
        raise ApgdTeachError(f"a plane needs at least 2 points along each side, not {points}.")
    if len({"base", first[0], second[0]}) < 3:
        raise ApgdTeachError(
            f"three networks of a plane need three names, not 'base', '{first[0]}' and '{second[0]}'; rename one."
        )
    vectors = task_vectors(base, {"first": first[1], "second": second[1]})
    u, v = vectors["first"], vectors["second"]
    length = _dot(u, u) ** 0.5
    along = _dot(u, v) / length if length else 0.0
    height = max(0.0, _dot(v, v) - along**2) ** 0.5
    # The sine of the angle at the base: single precision rounds networks on one line up to some 1e-5 off it.
    if length == 0 or height <= 1e-4 * _dot(v, v) ** 0.5:
        raise ApgdTeachError("these three networks lie on one line and span no plane; take three that differ.")
    places = {"base": (0.0, 0.0), first[0]: (length, 0.0), second[0]: (along, height)}
    # The same margin on every side, so that a flat triangle still shows what lies around it.
    corners = list(zip(*places.values(), strict=True))
    margin = border * max(max(values) - min(values) for values in corners)
    xs, ys = (_axis(min(values) - margin, max(values) + margin, points, values) for values in corners)
    losses = {task: torch.empty(points, points) for task in tasks}
    with bar(points * points, "network", "loss plane", progress) as networks:
        for row, y in enumerate(ys):
            for column, x in enumerate(xs):
                b = y / height
                a = (x - b * along) / length
                state = _combined(base, [(a, u), (b, v)])
                for task in tasks:
                    losses[task][row, column] = evaluator.score(state, task).loss
                networks.update(1)
    at = {
        name: sum(evaluator.score(state, task).loss for task in tasks) / len(tasks)
        for name, state in (("base", base), first, second)
    }
    return Plane(xs, ys, losses, places, at)


def _axis(low: float, high: float, points: int, through: Sequence[float]) -> list[float]:
    """Equal steps, but that the nearest point inside is moved onto each network: there the loss must be its own."""
    axis = [low + (high - low) * i / (points - 1) for i in range(points)]
    free = set(range(1, points - 1))
    for value in sorted(set(through)):
        if free:
            nearest = min(free, key=lambda i: abs(axis[i] - value))
            free.discard(nearest)
            axis[nearest] = value
    return sorted(axis)


def _over(state: StateDict, change: Callable[[str, Tensor], Tensor]) -> dict[str, Tensor]:
    """`change` applied to the floating-point tensors; the others as they are."""
    return {key: change(key, tensor) if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def _between(start: StateDict, end: StateDict, step: float) -> dict[str, Tensor]:
    return _over(start, lambda key, tensor: (1 - step) * tensor + step * end[key])


def _combined(base: StateDict, parts: Sequence[tuple[float, StateDict]]) -> dict[str, Tensor]:
    return _over(base, lambda key, tensor: tensor + sum(factor * part[key] for factor, part in parts))


def _dot(one: StateDict, other: StateDict) -> float:
    return float(sum((one[key].double() * other[key].double()).sum() for key in one))
