"""What a merge keeps of each task: the residual Rⱼ as a map, by what a granularity asks of it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from matplotlib.colors import LogNorm
from matplotlib.ticker import NullLocator
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.descent import check_share
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, styled
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.statedict import norm
from apgd_teach.merging.surrogate import GRANULARITIES
from apgd_teach.tables import Table

__all__ = ["Residual", "Residuals", "draw_residual", "measure_residuals"]

_ASKS = {"S": "S", "layer": "layer: tr R → 0", "row": "row: diag R → 0", "full": "full: R → 0"}
_PARTS = {"trace": "|tr R|", "diagonal": "‖diag R‖", "whole": "‖R‖"}

_GAP = 0.08
"""Between two maps, as a share of a map's side."""


@dataclass(frozen=True)
class Residual:
    """Rⱼ = (M − τⱼ) τⱼᵀ of one task at one M.

    Attributes:
        picture: mean |R| over blocks, shape (block, block), in units of the root mean square of R's entries at the base
            (M = 0); of a layer with no more outputs than blocks a block is one entry.
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
        found: by what is held, by task, by "S", "layer", "row" and "full".
        out: how many outputs the layer has.
        blocks: along each side of the pictures; `out` where a block is one entry.
        protected: k, how many directions of the output side are protected, by what is held.
        moved: ‖M − S‖ in units of the task vectors' length (root mean square), by what is held and granularity.
        scale: lowest and highest value that the one scale of colours tells apart, over all that was found.
    """

    found: dict[str, dict[str, dict[str, Residual]]]
    out: int
    blocks: int
    protected: dict[str, int]
    moved: dict[str, dict[str, float]]
    scale: tuple[float, float]

    def left(self, held: str, label: str, part: str = "whole") -> float:
        """What of |tr R| ("trace"), ‖diag R‖ ("diagonal") or ‖R‖ ("whole") is left, in per cent of the base's.

        The mean over the tasks, at "S" or at the solution of a granularity.
        """
        return 100 * fmean(getattr(by[label], part) for by in self.found[held].values())

    def table(self) -> Table:
        """Mean over the tasks of what is left, and how far M went for it: a row for each M."""
        labels = ("S", *GRANULARITIES)
        rows = [
            (held, label, *(self.left(held, label, part) for part in _PARTS), self.moved[held].get(label, 0.0))
            for held in self.found
            for label in labels
        ]
        return Table(
            ("protected", "M", *(f"{sign} %" for sign in _PARTS.values()), "‖M − S‖ / ‖τ‖"),
            rows,
            caption="What is left of the residual, in per cent of the base's; mean over the tasks",
            note="‖τ‖: root mean square over the tasks.",
        )


def measure_residuals(
    task_vectors: Tensor, tasks: Sequence[str], *, protect: Mapping[str, float] | None = None, size: int = 64
) -> Residuals:
    """Solve one layer at each granularity, exactly, and look at what is left of every task's residual.

    Args:
        task_vectors: τ of one layer, shape (task, out, in).
        tasks: their names.
        protect: by what to call it, the share of r = min(out, in) that is protected, 0 to 1; {"nothing": 0.0} when
            None.
        size: a picture has at most so many rows and columns.

    Raises:
        ApgdTeachError: names and task vectors do not fit, a task vector is zero, nothing is to be held, `size` is no
            whole number from 1, or a share that `Apgd` refuses (`MergeError`, one of its kinds).

    Source: (4), (5), (6), (7), (8) in docs/equations.md. Lesson: 06.
    """
    if task_vectors.ndim != 3 or len(tasks) != len(task_vectors) or len(set(tasks)) != len(tasks):
        raise ApgdTeachError(
            f"there are {len(tasks)} names for task vectors of shape {tuple(task_vectors.shape)}; give (task, out, in) "
            "and a name of its own for each task."
        )
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ApgdTeachError(f"size is {size!r}; give a whole number of rows from 1.")
    asked = {"nothing": 0.0} if protect is None else dict(protect)
    if not asked:
        raise ApgdTeachError('there is no share to protect; give one by name, as in {"nothing": 0.0}.')
    for share in asked.values():
        check_share(share)
    still = [name for name, tau in zip(tasks, task_vectors, strict=True) if not bool(tau.any())]
    if still:
        raise ApgdTeachError(f"the task '{still[0]}' did not move in this layer, so it has no residual; leave it out.")
    length = norm(task_vectors) / len(tasks) ** 0.5
    found: dict[str, dict[str, dict[str, Residual]]] = {}
    protected: dict[str, int] = {}
    moved: dict[str, dict[str, float]] = {}
    for held, share in asked.items():
        updates: dict[str, Tensor] = {}
        moved[held] = {}
        for granularity in GRANULARITIES:
            # A cut-off of 0: as small as the surrogate gets, which the usual filters stop short of.
            solved = Apgd(
                granularity=granularity, protect=share, power=2.0, filter="cutoff", strength=0.0, flatten=0.0
            ).solve(task_vectors)
            updates["S"] = solved.start
            updates[granularity] = solved.update
            protected[held] = solved.basis.shape[1]
            moved[held][granularity] = norm(solved.update - solved.start) / length
        # One task at a time: the residuals of all of them are T (out, out) matrices for each M.
        found[held] = {
            name: {label: _residual(tau, update, size) for label, update in updates.items()}
            for name, tau in zip(tasks, task_vectors, strict=True)
        }
    pictures = [one.picture for tasks_ in found.values() for by in tasks_.values() for one in by.values()]
    return Residuals(
        found=found,
        out=task_vectors.shape[1],
        blocks=min(task_vectors.shape[1], size),
        protected=protected,
        moved=moved,
        scale=_scale(pictures),
    )


def _scale(pictures: Sequence[Tensor]) -> tuple[float, float]:
    """From what 2 % of the values lie below to what 2 % lie above; a diagonal of zeros has no logarithm."""
    values = torch.cat([one.flatten() for one in pictures]).double().sort().values
    low, high = (float(values[round(share * (len(values) - 1))]) for share in (0.02, 0.98))
    # At most three decades: `row` leaves zeros on the diagonal, and a scale down to them would tell nothing else apart.
    high = high or 1.0
    low = max(low, 1e-3 * high)
    return (low, high) if low < high else (0.5 * high, 2 * high)


def _residual(tau: Tensor, update: Tensor, size: int) -> Residual:
    base, here = -tau @ tau.mT, (update - tau) @ tau.mT
    out = len(here)
    shown = (here / (base.norm() / out)).abs()
    if out > size:
        # Blocks of two widths where `size` does not divide `out`: bounds as even as whole numbers allow.
        ends = torch.linspace(0, out, size + 1, dtype=torch.float64).round().long()
        sums = torch.nn.functional.pad(shown.double().cumsum(0).cumsum(1), (1, 0, 1, 0))[ends][:, ends]
        widths = ends.diff()
        shown = sums.diff(dim=0).diff(dim=1) / (widths[:, None] * widths)
    return Residual(
        shown,
        trace=abs(float(here.trace() / base.trace())),
        diagonal=float(here.diagonal().norm() / base.diagonal().norm()),
        whole=float(here.norm() / base.norm()),
    )


def draw_residual(measured: Residuals, *, task: str, held: str | None = None) -> Drawing:
    """The residual of one task as a map, at S and at the solution of each granularity.

    The scale of colours is one for everything that was measured, and logarithmic: where a sixth is protected entries
    are a hundred times as large as where `full` is free, and both are to be seen.

    Args:
        measured: from `measure_residuals`.
        task: whose residual.
        held: with what protected; the first that was measured when None.

    Raises:
        ApgdTeachError: it was not measured.

    Source: (6), (7), (8) in docs/equations.md. Lesson: 06.
    """
    held = next(iter(measured.found)) if held is None else held
    if held not in measured.found:
        raise ApgdTeachError(f"nothing was measured with '{held}' protected; there are: {', '.join(measured.found)}.")
    if task not in measured.found[held]:
        raise ApgdTeachError(f"no task '{task}' was measured; there are: {', '.join(measured.found[held])}.")
    found = measured.found[held][task]
    low, high = measured.scale
    colours = LogNorm(low, high, clip=True)
    with styled():
        drawn, (axes,) = figure(width=8.6, height=3.3)
        # All maps on one pair of axes, at places that are known, and few letters: what else there could be takes three
        # times as long to draw, and a reader who moves a slider waits for it.
        drawn.set_layout_engine("none")
        axes.set_position((0.1, 0.28, 0.77, 0.54))
        for place, (label, one) in enumerate(found.items()):
            left = place * (1 + _GAP)
            picture = axes.imshow(
                one.picture.numpy(),
                cmap="viridis",
                norm=colours,
                interpolation="none",
                extent=(left, left + 1, 0, 1),
            )
            axes.text(left + 0.5, 1.03, _ASKS[label], ha="center", va="bottom", fontsize=10)
            shares = "\n".join(_percent(getattr(one, part)) for part in _PARTS)
            axes.text(left + 0.5, -0.03, shares, ha="center", va="top", fontsize=10)
        axes.text(-0.03, -0.03, "\n".join(_PARTS.values()), ha="right", va="top", fontsize=10)
        axes.set(xlim=(0, len(found) * (1 + _GAP) - _GAP), ylim=(0, 1), xticks=[], yticks=[])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_title(f"R of {task}; protected: {held}", fontsize=11, pad=22)
        blocks = f"a point: mean over {_block(measured)} entries; " if measured.blocks < measured.out else ""
        axes.set_xlabel(f"{blocks}below: share of the base's", fontsize=10, labelpad=50)
        bar = drawn.colorbar(picture, cax=drawn.add_axes((0.885, 0.29, 0.014, 0.52), label="<colorbar>"))
        # Labels in plain text and no ticks between them: formulas and a hundred ticks take longer than the maps.
        ticks = _ticks(low, high)
        bar.ax.yaxis.set_minor_locator(NullLocator())
        bar.set_ticks(ticks, labels=[f"{one:g}" for one in ticks])
        bar.set_label("|R|, logarithmic, one scale\nfor all settings (base: 1)", fontsize=9)
        numbers = {
            f"{sign} at {label} (% of the base's)": 100 * float(getattr(one, part))
            for label, one in found.items()
            for part, sign in _PARTS.items()
        }
        return Drawing(drawn, _words(measured, task, held), numbers)


def _ticks(low: float, high: float) -> list[float]:
    """Powers of ten that a scale reaches; its two ends where it reaches none or one."""
    powers = [10.0**n for n in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]
    return powers if len(powers) > 1 else [float(f"{one:.2g}") for one in (low, high)]


def _block(measured: Residuals) -> str:
    """How many entries of R are in a block, "2 × 2": the mean where `blocks` does not divide `out`."""
    side = f"{measured.out / measured.blocks:.2g}"
    return f"{side} × {side}"


def _percent(share: float) -> str:
    return "< 0.1 %" if share < 0.001 else f"{100 * share:.1f} %" if share < 0.1 else f"{100 * share:.0f} %"


def _words(measured: Residuals, task: str, held: str) -> str:
    each = "; ".join(
        f"{'at S' if label == 'S' else f'solved by {label}'} "
        + ", ".join(f"{sign} {_percent(getattr(one, part))}" for part, sign in _PARTS.items())
        for label, one in measured.found[held][task].items()
    )
    count = measured.protected[held]
    kept = f", with {count} directions protected" if count else ", with nothing protected"
    return (
        f"What is left of the residual R = (M − τ)τᵀ of {task}, in a layer of {measured.out} outputs{kept}, as shares "
        f"of what it is at the base: {each}."
    )
