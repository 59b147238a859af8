"""What a merge did, in numbers that another person can check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from apgd_teach.merging.preflight import Finding
from apgd_teach.tables import Table

__all__ = ["Audit", "TensorRow"]


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the merge.

    Attributes:
        name: its key in the state dict.
        policy: "merge" (the method's own update), "average" (mean of the task vectors) or "keep" (the base's value).
        reason: why that policy.
        shape: of the tensor.
        base_norm: ‖θ₀‖ (Frobenius).
        task_norm: mean over the tasks of ‖τᵢ‖.
        update_norm: ‖M‖, what the merge added.
        facts: what the merge and the method know more of the layer, by name; a tuple holds a number per task.
    """

    name: str
    policy: str
    reason: str
    shape: tuple[int, ...]
    base_norm: float
    task_norm: float
    update_norm: float
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def relative_step(self) -> float:
        """‖M‖ / ‖θ₀‖: where this is large, "first order" is a bold word."""
        if self.base_norm:
            return self.update_norm / self.base_norm
        return math.inf if self.update_norm else 0.0


@dataclass(frozen=True)
class Audit:
    """The record of one merge.

    Attributes:
        method: its name.
        settings: the method's own.
        experts: their names, in the order in which they were added up.
        data_used: always "none" for a merge; methods that use data live elsewhere and say so.
        inputs: SHA-256 of the base and of each expert, by name.
        versions: of the package and of PyTorch.
        rows: one per tensor.
        warnings: what the pre-flight check found and did not stop for.
        files: names of the base's and of each expert's files, by name; none for state dicts in memory.

    Lesson: 02, 09.
    """

    method: str
    settings: dict[str, object]
    experts: tuple[str, ...]
    data_used: str
    inputs: dict[str, str]
    versions: dict[str, str]
    rows: tuple[TensorRow, ...]
    warnings: tuple[Finding, ...] = ()
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def table(self) -> Table:
        """One row per tensor, norms and the relative step in per cent."""
        experts = "1 expert" if len(self.experts) == 1 else f"{len(self.experts)} experts"
        return Table(
            ("tensor", "policy", "shape", "‖θ₀‖", "mean ‖τ‖", "‖M‖", "‖M‖/‖θ₀‖ %"),
            [
                (
                    row.name,
                    row.policy,
                    "×".join(map(str, row.shape)) or "scalar",
                    row.base_norm,
                    row.task_norm,
                    row.update_norm,
                    100 * row.relative_step,
                )
                for row in self.rows
            ],
            caption=f"{self.method} of {experts}; data used: {self.data_used}",
            note="; ".join(str(warning) for warning in self.warnings),
            digits=2,
        )

    def to_json(self) -> str:
        """The whole record as JSON, keys sorted; what JSON has no sign for (infinity, NaN, a tensor) as text."""
        return json.dumps(_plain(asdict(self)), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
