"""What became of merges: how much of the gap that averaging leaves they close, and whether they kept the constraint."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean

import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison
from apgd_teach.merging import Audit, Merged, Method, StateDict, merge
from apgd_teach.tables import Table

__all__ = ["Closed", "constraint_table", "gap_closed", "largest_fact", "outcome_table", "timed_merges"]


@dataclass(frozen=True)
class Closed:
    """How much of a mean gap is closed.

    Attributes:
        share: in per cent: 0 closes nothing, 100 is as good as every task's own expert, below 0 the gap is wider.
        margin: half of its 95 % interval, over test images; NaN for one image.
    """

    share: float
    margin: float

    def __str__(self) -> str:
        return f"{self.share:.0f} ± {self.margin:.0f}".replace("-", "−")

    @property
    def shown(self) -> bool:
        """Whether some of it is closed for certain: the whole interval lies above zero."""
        return self.share > self.margin


def timed_merges(
    base: StateDict, experts: Mapping[str, StateDict], methods: Mapping[str, str | Method]
) -> tuple[dict[str, Merged], dict[str, float]]:
    """Merge the same experts by several methods.

    Args:
        base: θ₀.
        experts: θᵢ by name.
        methods: by label, a method's name or an instance of one, as `merge` takes it.

    Returns:
        By label what `merge` gave, and the seconds that it took.

    Raises:
        MergeError: as `merge`.

    Lesson: 06.
    """
    merged: dict[str, Merged] = {}
    seconds: dict[str, float] = {}
    for label, method in methods.items():
        begun = time.perf_counter()
        merged[label] = merge(base, experts, method)
        seconds[label] = time.perf_counter() - begun
    return merged, seconds


def gap_closed(compared: Comparison, label: str, reference: str = "average") -> Closed:
    """The share of the mean gap of one network that another one closes, in the mean over the tasks.

    The interval is over test images, paired image by image; a picture that several tasks show counts as one.

    Args:
        compared: what `compare` gave, with as many images of each task.
        label: the network; "base" may be given as well.
        reference: the network whose gap it is.

    Raises:
        ApgdTeachError: one of them was not compared, tasks have different numbers of images, or the reference has no
            gap to close.

    Source: (3) in docs/equations.md. Lesson: 06.
    """
    whole = fmean(compared.gap(reference).values())
    compared.gap(label)  # refuses a label that is none
    if not whole > 0:
        raise ApgdTeachError(f"the mean gap of '{reference}' is {whole:.3g} nats, so there is nothing of it to close.")
    known = {**compared.merged, "base": compared.base, "experts": compared.experts}
    own, theirs = known[reference], known[label]
    if len({len(score.losses) for score in own.values()}) > 1:
        raise ApgdTeachError("the tasks have different numbers of images; compare on the first so many of each.")
    less = torch.stack([own[task].losses.double() - theirs[task].losses.double() for task in own]).mean(dim=0)
    unit = 100 / whole
    return Closed(float(less.mean()) * unit, 1.96 * float(less.std()) / len(less) ** 0.5 * unit)


def outcome_table(results: Mapping[str, Comparison], reference: str = "average") -> Table:
    """Every network beside one of them: gap, accuracy and worst task, a row for each, by kind of experts.

    Args:
        results: by kind of experts, what `compare` gave.
        reference: the network that the others are held against, and whose mean gap is to be closed.

    Raises:
        ApgdTeachError: as `gap_closed`.

    Lesson: 06.
    """
    rows = []
    for experts, compared in results.items():
        for label in ("base", *compared.merged):
            against = compared.against(label, reference)
            held = label == reference
            rows.append(
                (
                    experts,
                    label,
                    f"{fmean(compared.gap(label).values()):.3f}",
                    "–" if held else str(gap_closed(compared, label, reference)),
                    "–" if held else str(against),
                    "–" if held else against.verdict,
                    compared.worst(label)[1],
                )
            )
    return Table(
        ("experts", "network", "mean gap", "gap closed %", "accuracy", "verdict", "worst task %"),
        rows,
        caption=f"Beside the {reference} of the same experts",
        note=f"Mean gap in nats. Gap closed: of the mean gap of the {reference}; 100 % is as good as every task's own "
        f"expert. Accuracy: points more than the {reference}, with its verdict. The intervals (95 %) are over the "
        "images of the comparison, not over the training seed.",
    )


def largest_fact(audit: Audit, name: str) -> float | None:
    """The largest of a fact over the layers, in per cent; None where no layer has it.

    Args:
        audit: of a merge.
        name: of a fact that is one number, "leak" or "leak_merged".

    Lesson: 06.
    """
    found = [row.facts[name] for row in audit.rows if name in row.facts]
    return 100 * max(float(one) for one in found if isinstance(one, int | float)) if found else None


def constraint_table(merged: Mapping[str, Mapping[str, Merged]]) -> Table:
    """Of each merge by descent on Δ the two leaks of its audit, and its longest step: the largest of the layers.

    Args:
        merged: by kind of experts, by label, what `merge` gave. Merges that state no leak are left out.

    Lesson: 06.
    """
    return Table(
        ("experts", "method", "leak as solved %", "leak as merged %", "longest step %"),
        [
            (
                experts,
                label,
                largest_fact(one.audit, "leak"),
                largest_fact(one.audit, "leak_merged"),
                100 * max(row.relative_step for row in one.audit.rows if row.policy == "merge"),
            )
            for experts, by in merged.items()
            for label, one in by.items()
            if largest_fact(one.audit, "leak") is not None
        ],
        caption="The constraint and the step; the largest of the layers",
        note="Leak: ‖P(M − S)‖ / ‖PS‖; where nothing is protected, nothing can leak. Step: ‖M‖ / ‖θ₀‖.",
    )
