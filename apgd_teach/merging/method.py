"""What a method of merging is: a frozen dataclass of its settings that can be called on one layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

from torch import Tensor

__all__ = ["ALONE", "Fact", "Layer", "Method", "Update", "call"]

Fact = float | tuple[float, ...] | str
"""A number, a number per task (in the order of `Layer.experts`), or a word that the audit keeps."""


@dataclass(frozen=True)
class Layer:
    """What a method may know of a layer beside its task vectors.

    Attributes:
        name: of the tensor; empty when the method is called by hand.
        experts: names of the tasks, in the order of the task axis.
        thresholds: shape (task,), or None. For a method with a `trim` setting: the |τ| at and above which an entry of
            each task is kept, found in a first pass over all merged layers together.
        base_norm: ‖θ₀‖ of the layer; NaN when the method is called by hand and nobody says.
        rounding: about the largest singular value of what rounding the stored weights left in one τ, from their dtype.
            In bfloat16 that is no small matter: a method that lifts small singular values must not lift these.

    Lesson: 03, 06.
    """

    name: str = ""
    experts: tuple[str, ...] = ()
    thresholds: Tensor | None = None
    base_norm: float = math.nan
    rounding: float = 0.0

    def noise(self, n_tasks: int) -> float:
        """Up to which singular value a sum of `n_tasks` task vectors is what rounding left: twice the estimate."""
        return 2 * math.sqrt(n_tasks) * self.rounding


ALONE = Layer()
"""A layer on its own, as when a lesson calls a method on one matrix."""


@dataclass(frozen=True)
class Update:
    """What a method may give back in place of the bare update, so that the audit can say more.

    Attributes:
        matrix: M, shape (out, in).
        facts: by name, what the audit keeps of this layer ("coefficients": λ per task, "protected": share of r, …).

    Lesson: 06.
    """

    matrix: Tensor
    facts: Mapping[str, Fact] = field(default_factory=dict)


class Method(Protocol):
    """A frozen dataclass of settings with one call, from τ (task, out, in) to the merged update M (out, in).

    That is all a method of your own needs; `merge(base, experts, Mine(…))` takes it. Four things it may have:

    * a second argument, `layer`, a `Layer`: its name, the tasks' names, thresholds, ‖θ₀‖;
    * an `Update` as its result, whose facts go into the audit;
    * `trim`, a share: each expert's threshold for keeping that share of its largest |τ| over all merged layers
      arrives in `layer.thresholds` (None when `trim` is 1 or more);
    * `others`, "average" (when it has none) or "keep": what happens to tensors that no method works on.

    Lesson: 03, 10.
    """

    name: ClassVar[str]

    def __call__(self, task_vectors: Tensor) -> Tensor | Update:
        """The merged update of one layer."""
        ...


def call(method: Any, task_vectors: Tensor, layer: Layer) -> Any:
    """Call a method of either kind: with the layer where it has room for it, else on the task vectors alone."""
    return method(task_vectors, layer) if wants_layer(method) else method(task_vectors)


def wants_layer(method: Any) -> bool:
    """Whether a method takes the layer as a second argument."""
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):  # compiled code without a signature
        return False
    places = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in places for one in parameters) >= 2
