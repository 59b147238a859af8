"""What a merge keeps of each task: the residual Rⱼ as a map, by what a granularity asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.descent import check_share
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, styled
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.surrogate import GRANULARITIES

__all__ = ["Residual", "Residuals", "draw_residual", "measure_residuals"]

_ASKS = {"S": "M = S, nothing asked", "layer": "asks tr R = 0", "row": "asks diag R = 0", "full": "asks R = 0"}
_PARTS = {"trace": "|tr R|", "diagonal": "‖diag R‖", "whole": "‖R‖"}


@dataclass(frozen=True)
class Residual:
    """Rⱼ = (M − τⱼ) τⱼᵀ of one task at one M.

    Attributes:
        picture: R itself, shape (out, out), in units of the root mean square of its entries at the base (M = 0);
            of a layer with more than `size` outputs the mean |R| over blocks, shape (block, block).
        trace, diagonal, whole: |tr R|, ‖diag R‖ and ‖R‖_F, each as a share of what it is at the base.
    """

    picture: Tensor
    trace: float
    diagonal: float
    whole: float


@dataclass(frozen=True)
class Residuals:
    """The residuals of every task at four M: the start S, and the solutions of the three granularities.

    Attributes:
        found: by task, by "S", "layer", "row" and "full".
        out: how many outputs the layer has.
        blocks: along each side of the pictures; `out` where they show R itself.
        protected: k, how many directions of the output side were protected.
    """

    found: dict[str, dict[str, Residual]]
    out: int
    blocks: int
    protected: int


def measure_residuals(task_vectors: Tensor, tasks: Sequence[str], *, protect: float = 0.0, size: int = 64) -> Residuals:
    """Solve one layer at each granularity, exactly, and look at what is left of every task's residual.

    Args:
        task_vectors: τ of one layer, shape (task, out, in).
        tasks: their names.
        protect: share of r = min(out, in) that is protected, 0 to 1.
        size: a picture has at most so many rows and columns.

    Raises:
        ApgdTeachError: names and task vectors do not fit, a task vector is zero, `size` is no whole number from 1, or
            a share that `Apgd` refuses (`MergeError`, one of its kinds).

    Source: method.md §2.2, §2.3. Lesson: 04, 06.
    """
    if task_vectors.ndim != 3 or len(tasks) != len(task_vectors) or len(set(tasks)) != len(tasks):
        raise ApgdTeachError(
            f"there are {len(tasks)} names for task vectors of shape {tuple(task_vectors.shape)}; give (task, out, in) "
            "and a name of its own for each task."
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ApgdTeachError(f"size is {size!r}; give a whole number of rows from 1.")
    check_share(protect)
    still = [name for name, tau in zip(tasks, task_vectors, strict=True) if not bool(tau.any())]
    if still:
        raise ApgdTeachError(f"the task '{still[0]}' did not move in this layer, so it has no residual; leave it out.")
    updates: dict[str, Tensor] = {}
    protected = 0
    for granularity in GRANULARITIES:
        # A cut-off of 0: as small as the surrogate gets, which the usual filters stop short of.
        solved = Apgd(
            granularity=granularity, protect=protect, power=2.0, filter="cutoff", strength=0.0, flatten=0.0
        ).solve(task_vectors)
        updates["S"] = solved.start
        updates[granularity] = solved.update
        protected = solved.basis.shape[1]
    out = task_vectors.shape[1]
    return Residuals(
        # One task at a time: the residuals of all of them are T (out, out) matrices for each M.
        found={
            name: {label: _residual(tau, update, size) for label, update in updates.items()}
            for name, tau in zip(tasks, task_vectors, strict=True)
        },
        out=out,
        blocks=min(out, size),
        protected=protected,
    )


def _residual(tau: Tensor, update: Tensor, size: int) -> Residual:
    base, here = -tau @ tau.mT, (update - tau) @ tau.mT
    out = len(here)
    shown = here / (base.norm() / out)
    if out > size:
        # Blocks of two widths where `size` does not divide `out`: bounds as even as whole numbers allow.
        ends = torch.linspace(0, out, size + 1, dtype=torch.float64).round().long()
        sums = torch.nn.functional.pad(shown.abs().double().cumsum(0).cumsum(1), (1, 0, 1, 0))[ends][:, ends]
        widths = ends.diff()
        shown = sums.diff(dim=0).diff(dim=1) / (widths[:, None] * widths)
    return Residual(
        shown,
        trace=abs(float(here.trace() / base.trace())),
        diagonal=float(here.diagonal().norm() / base.diagonal().norm()),
        whole=float(here.norm() / base.norm()),
    )


def draw_residual(measured: Residuals, *, task: str) -> Drawing:
    """The residual of one task as a map, at S and at the solution of each granularity, on one scale of colours.

    Args:
        measured: from `measure_residuals`.
        task: whose residual.

    Raises:
        ApgdTeachError: it was not measured.

    Source: method.md §2.3. Lesson: 04, 06.
    """
    if task not in measured.found:
        raise ApgdTeachError(f"no task '{task}' was measured; there are: {', '.join(measured.found)}.")
    found = measured.found[task]
    averaged = measured.blocks < measured.out
    with styled():
        drawn, axes = figure(1, len(found), width=9.0, height=3.5)
        # A few entries are many times as large as the rest: on a scale that reached them nothing else would be seen.
        values = torch.cat([one.picture.abs().flatten() for one in found.values()])
        most, largest = float(values.quantile(0.98)), float(values.max())
        most = most or largest
        limits = {"vmin": 0.0 if averaged else -most, "vmax": most} if most > 0 else {"vmin": -1, "vmax": 1}
        for place, (label, one) in zip(axes, found.items(), strict=True):
            picture = place.imshow(
                one.picture.numpy(), cmap="viridis" if averaged else "RdBu_r", interpolation="nearest", **limits
            )
            place.set_title(f"{label}\n{_ASKS[label]}", fontsize=10)
            place.set_xlabel("\n".join(f"{sign} {_percent(getattr(one, part))}" for part, sign in _PARTS.items()))
            place.set_xticks([])
            place.set_yticks([])
            place.grid(False)
        axes[0].set_ylabel(f"output unit (of {measured.out})")
        bar = drawn.colorbar(picture, ax=axes, shrink=0.6)
        what = "|R|, mean over a block" if averaged else "R"
        beyond = ";\nat the ends: and beyond" if largest > most else ""
        bar.set_label(f"{what}\n(1 = RMS of R at the base{beyond})", fontsize=9)
        shown = (
            f": means of |R| ({measured.out} × {measured.out}) over {measured.blocks} × {measured.blocks} blocks"
            if averaged
            else ""
        )
        drawn.suptitle(f"R = (M − τ)τᵀ of {task}{shown}", fontsize=11)
        drawn.supxlabel("below each: what is left, as a share of the base's (M = 0)", fontsize=10)
        numbers = {
            f"{sign} at {label} (% of the base's)": 100 * float(getattr(one, part))
            for label, one in found.items()
            for part, sign in _PARTS.items()
        }
        return Drawing(drawn, _words(measured, task), numbers)


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _words(measured: Residuals, task: str) -> str:
    found = measured.found[task]
    each = "; ".join(
        f"{'at S' if label == 'S' else f'solved by {label}'} "
        + ", ".join(f"{sign} {_percent(getattr(one, part))}" for part, sign in _PARTS.items())
        for label, one in found.items()
    )
    held = f", with {measured.protected} directions protected" if measured.protected else ", with nothing protected"
    return (
        f"What is left of the residual R = (M − τ)τᵀ of {task}, in a layer of {measured.out} outputs{held}, as shares "
        f"of what it is at the base: {each}."
    )
