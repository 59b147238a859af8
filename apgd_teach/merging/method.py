"""What a method of merging is: a frozen dataclass of its settings that can be called on one layer."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from torch import Tensor

from apgd_teach.errors import MergeError

__all__ = ["ALONE", "ENGINE_FACTS", "Fact", "Layer", "Method", "Update", "call", "facts_of", "signature_problem"]

Fact = float | tuple[float, ...] | str
"""A number, a number per task (in the order of `Layer.experts`), or a word that the audit keeps."""

ENGINE_FACTS = ("task_norms", "mean_cosine", "least_cosine", "gap_left_average", "gap_left")
"""Names of facts that the merge itself measures of every layer; a method may not give others under these."""


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
            Tensors and arrays of no axis or one, and lists, are taken as numbers; names of `ENGINE_FACTS` are refused.

    Lesson: 06.
    """

    matrix: Tensor
    facts: Mapping[str, Fact] = field(default_factory=dict)


class Method(Protocol):
    """A frozen dataclass of settings with one call, from τ (task, out, in) to the merged update M (out, in).

    That is all a method of your own needs; `merge(base, experts, Mine(…))` takes it. Five things it may have:

    * an argument called `layer`, in which it is given a `Layer`: its name, the tasks' names, thresholds, ‖θ₀‖;
    * an `Update` as its result, whose facts go into the audit;
    * `trim`, a share: each expert's threshold for keeping that share of its largest |τ| over all merged layers
      arrives in `layer.thresholds` (None when `trim` is 1);
    * `others`, "average" (when it has none) or "keep": what happens to tensors that no method works on;
    * `biases`, "average" (when it has none: they are among those tensors) or "column": a weight comes with its bias as
      one column more, the weight of an input that is always 1.

    Lesson: 03, 10.
    """

    name: ClassVar[str]

    def __call__(self, task_vectors: Tensor) -> Tensor | Update:
        """The merged update of one layer."""
        ...


def call(method: Any, task_vectors: Tensor, layer: Layer) -> Any:
    """Call a method of either kind: with the layer where it has an argument of that name, else without."""
    kind = _kind_of_layer(method)
    if kind is None:
        return method(task_vectors)
    if kind is inspect.Parameter.POSITIONAL_ONLY:
        return method(task_vectors, layer)
    return method(task_vectors, layer=layer)


def signature_problem(method: Any) -> str:
    """Why a method cannot be called on task vectors, with or without a layer; empty when it can.

    A parameter with a default keeps it: only what must be given, and is not called `layer`, is in the way.
    """
    parameters = _parameters(method)
    if parameters is None:
        return ""
    catching = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not parameters or parameters[0].kind in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD):
        return "takes no task vectors"
    missing = [
        one.name
        for one in parameters[1:]
        if one.default is inspect.Parameter.empty and one.kind not in catching and one.name != "layer"
    ]
    return f"wants '{missing[0]}' beside the task vectors" if missing else ""


def facts_of(given: Update, method: str, tensor: str) -> dict[str, Fact]:
    """The facts of an update as the audit keeps them: by name, numbers, tuples of numbers, words.

    Args:
        given: what the method returned.
        method, tensor: their names, for the sentence.

    Raises:
        MergeError: the facts are no mapping, a name is no string or the merge's own, a value is nothing of these.
    """
    where = f"method '{method}', tensor '{tensor}':"
    if not isinstance(given.facts, Mapping):
        raise MergeError(f"{where} the facts are a {type(given.facts).__name__}; give a dict, {{'name': number}}.")
    facts: dict[str, Fact] = {}
    for name, value in given.facts.items():
        if not isinstance(name, str):
            raise MergeError(f"{where} a fact has the name {name!r}, which is no string; use a string.")
        if name in ENGINE_FACTS:
            raise MergeError(f"{where} the fact '{name}' is measured by the merge itself; call yours something else.")
        fact = _fact(value)
        if fact is None:
            raise MergeError(
                f"{where} the fact '{name}' is {_described(value)}; give a number, a number per task, or a word."
            )
        facts[name] = fact
    return facts


def _fact(value: object) -> Fact | None:
    if isinstance(value, str):
        return value
    value = _unpacked(value)
    if isinstance(value, list | tuple):
        numbers = [_unpacked(one) for one in value]
        found = tuple(one for one in numbers if isinstance(one, int | float))
        return found if len(found) == len(numbers) else None
    return value if isinstance(value, int | float) else None


def _unpacked(value: object) -> object:
    """Numbers of Python in place of a tensor or array, where it has values."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Tensor) and value.ndim < 2 and not value.is_meta:
        return value.to_dense().tolist()
    return value


def _described(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of shape {tuple(value.shape)} and {value.dtype}"
    return f"a {type(value).__name__}" + (" of other things" if isinstance(value, list | tuple) else "")


def _kind_of_layer(method: Any) -> Any:
    """How a method takes the layer, as `inspect` says it; None when it does not."""
    return next((one.kind for one in (_parameters(method) or [])[1:] if one.name == "layer"), None)


def _parameters(method: Any) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(method).parameters.values())
    except (TypeError, ValueError):  # compiled code without a signature
        return None
