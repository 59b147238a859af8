"""What merges leave of the three surrogates, on the layers of real networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.gaps import merged_layers
from apgd_teach.merging import Merged, StateDict
from apgd_teach.merging.surrogate import GRANULARITIES, surrogate
from apgd_teach.tables import Table

__all__ = ["Surrogates", "measure_surrogates"]


@dataclass(frozen=True)
class Surrogates:
    """The three surrogates of every task, at the base (M = 0) and at each merge.

    Attributes:
        outputs: d by merged layer.
        values: by label ("base" and the merges), by layer, by granularity, shape (task,).

    Lesson: 04.
    """

    outputs: dict[str, int]
    values: dict[str, dict[str, dict[str, Tensor]]]

    def left(self, label: str) -> dict[str, float]:
        """By granularity what is left of the base's, in per cent; every layer and task counts the same."""
        here, base = self.values[label], self.values["base"]
        return {
            one: 100 * float(torch.cat([here[layer][one] / base[layer][one] for layer in self.outputs]).mean())
            for one in GRANULARITIES
        }

    def bounds(self, label: str) -> Table:
        """How much of each bound in (tr R)² ≤ d‖diag R‖² ≤ d‖R‖² is used up, layer by layer."""
        found = self.values[label]
        return Table(
            ("layer", "d", "(tr R)² of d ‖diag R‖², %", "‖diag R‖² of ‖R‖², %"),
            [
                (
                    layer,
                    d,
                    100 * float((found[layer]["layer"] / (d * found[layer]["row"])).mean()),
                    100 * float((found[layer]["row"] / found[layer]["full"]).mean()),
                )
                for layer, d in self.outputs.items()
            ],
            caption=f"Real residuals: {label}, mean over the tasks",
            note="First share: near 100 % all rows of a layer say the same, near zero they cancel. Second: near 100 % "
            "nothing stands off the diagonal.",
        )


def measure_surrogates(base: StateDict, vectors: Mapping[str, StateDict], merged: Mapping[str, Merged]) -> Surrogates:
    """The surrogates of merges of the same experts, in float64.

    Args:
        base: θ₀.
        vectors: τⱼ by task, as `task_vectors` gives them.
        merged: by label; all merged the same layers.

    Raises:
        ApgdTeachError: there is no merge, one is called "base", or they merged different layers.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 04.
    """
    if not merged or "base" in merged:
        raise ApgdTeachError("give at least one merge, and none of them called 'base'.")
    matrices = {label: merged_layers(base, vectors, network) for label, network in merged.items()}
    first, *others = matrices.values()
    if any(set(other) != set(first) for other in others):
        raise ApgdTeachError(f"{', '.join(merged)} merged different layers; give merges of the same ones.")
    matrices["base"] = {layer: (stack, torch.zeros_like(update)) for layer, (stack, update) in first.items()}
    values = {
        label: {layer: {name: surrogate(*pair, name) for name in GRANULARITIES} for layer, pair in of.items()}
        for label, of in matrices.items()
    }
    outputs = {layer: len(update) for layer, (_, update) in first.items()}
    return Surrogates(outputs, values)
