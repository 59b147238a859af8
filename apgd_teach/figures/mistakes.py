"""What a merge breaks and what it saves: confusions of classes, and the images themselves."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.colors import PowerNorm
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, figure, styled
from apgd_teach.merging import StateDict

__all__ = ["EXAMPLES", "KINDS", "Mistakes", "draw_confusion", "draw_examples", "find_mistakes"]

KINDS = ("broken", "saved")
"""Broken: the task's own expert names the image rightly and the merged network does not. Saved: the base names it
wrongly and the merged network rightly."""

EXAMPLES = 8
"""How many images of each kind are kept to be shown: the first ones of the task, not chosen ones."""

_NETWORKS = {"base": "base", "merged": "merged", "expert": "its own expert"}
_NUMBER_FROM = 5.0


@dataclass(frozen=True, eq=False)
class Mistakes:
    """What base, merged network and expert take the images of one task for.

    Attributes:
        title: of the task.
        classes: names of the classes, in the order of the labels.
        labels: the true class of each image, shape (image,), int64.
        predictions: for "base", "merged" and "expert", the class that it gives, shape (image,), int64.
        shown: pictures of the first `EXAMPLES` broken and saved images, by number of the image, each (row, column) in
            [0, 1].

    Lesson: 02, 07.
    """

    title: str
    classes: tuple[str, ...]
    labels: Tensor
    predictions: dict[str, Tensor]
    shown: dict[int, Tensor]

    def confusion(self, network: str) -> Tensor:
        """How often class i is taken for class j, shape (class true, class given), in per cent of the row.

        A class without an image has a row of NaN.
        """
        count = len(self.classes)
        pairs = torch.bincount(self.labels * count + self.predictions[network], minlength=count * count)
        table = pairs.reshape(count, count).double()
        return 100 * table / table.sum(dim=1, keepdim=True)

    def accuracy(self, network: str) -> float:
        """Share of the images named rightly, in per cent."""
        return 100 * float((self.predictions[network] == self.labels).double().mean())

    def images(self, kind: str) -> list[int]:
        """Numbers of the images that are "broken" or "saved" (see `KINDS`), counted from 0, rising.

        Raises:
            ApgdTeachError: there is no such kind.
        """
        if kind not in KINDS:
            raise ApgdTeachError(f"there is no kind '{kind}' of images; use one of: {', '.join(KINDS)}.")
        right = {network: given == self.labels for network, given in self.predictions.items()}
        hit = right["expert"] & ~right["merged"] if kind == "broken" else right["merged"] & ~right["base"]
        return [int(place) for place in hit.nonzero().flatten()]


def find_mistakes(
    evaluator: Evaluator, base: StateDict, merged: StateDict, tasks: Iterable[str] | None = None
) -> dict[str, Mistakes]:
    """What base, merged network and each task's own expert take its images for.

    Args:
        evaluator: says which images; its pool has the heads and the experts.
        base: θ₀.
        merged: θ*, a state dict of the same network.
        tasks: which tasks; all of the pool by default.

    Returns:
        by task.

    Raises:
        ApgdTeachError: the pool has no such task, or a state dict is of another network.

    Lesson: 02, 07.
    """
    found = {}
    for task in evaluator.pool.tasks if tasks is None else tasks:
        images, labels = evaluator.looked_at(task)
        networks = {"base": base, "merged": merged, "expert": evaluator.pool.experts[task]}
        data = evaluator.pool.tasks[task]
        one = Mistakes(
            title=data.title,
            classes=data.classes,
            labels=labels.cpu(),
            predictions={name: evaluator.logits(one, task).argmax(dim=1).cpu() for name, one in networks.items()},
            shown={},
        )
        for kind in KINDS:
            one.shown.update({place: images[place, 0].cpu().clone() for place in one.images(kind)[:EXAMPLES]})
        found[task] = one
    return found


def draw_confusion(measured: Mapping[str, Mistakes], *, task: str, networks: Iterable[str] = _NETWORKS) -> Drawing:
    """Which classes are taken for which, a map per network: rows are the true class, per cent of the row.

    Numbers stand where they are at least 5. Colours grow fast from zero, so that rare confusions can be seen.

    Args:
        measured: what `find_mistakes` gave.
        task: one of its tasks.
        networks: which of "base", "merged" and "expert", from left to right.

    Raises:
        ApgdTeachError: there is no such task or network.

    Lesson: 02, 07.
    """
    one, shown = _task(measured, task), list(networks)
    for network in shown or [""]:
        if network not in _NETWORKS:
            raise ApgdTeachError(f"there is no network '{network}' here; use some of: {', '.join(_NETWORKS)}.")
    maps = {network: one.confusion(network).numpy() for network in _NETWORKS}
    short = [_short(name) for name in one.classes]
    count = len(short)
    with styled():
        drawn, (axes,) = figure(width=1.2 + 2.6 * len(shown), height=3.9)
        # Side by side in one picture: a panel for each would take twice the time to lay out.
        sheet: NDArray[Any] = np.full((count, (count + 1) * len(shown) - 1), np.nan)
        columns: list[int] = []
        for i, network in enumerate(shown):
            left = (count + 1) * i
            sheet[:, left : left + count] = maps[network]
            columns += range(left, left + count)
            axes.add_patch(Rectangle((left - 0.5, -0.5), count, count, fill=False, edgecolor=COLORS[7], linewidth=0.8))
            heading = f"{_NETWORKS[network]}: {one.accuracy(network):.1f} %"
            axes.text(left + (count - 1) / 2, -0.8, heading, ha="center", va="bottom", fontsize=10, in_layout=False)
        picture = axes.imshow(sheet, cmap="gray_r", norm=PowerNorm(0.5, 0, 100))
        for row, column in np.argwhere(sheet >= _NUMBER_FROM):
            value = sheet[row, column]
            axes.text(
                column,
                row,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=8,
                # It lies within the map, so the layout need not measure it.
                in_layout=False,
                color="white" if value > 28 else "black",
            )
        # Names of one letter need not be turned.
        turned = 90 if max(map(len, short)) > 1 else 0
        axes.set_xticks(columns, short * len(shown), rotation=turned, fontsize=8)
        axes.set_yticks(range(count), short, fontsize=8)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel("class given by the network")
        axes.set_ylabel("true class")
        axes.set_title(f"Confusions on {one.title}", pad=24)
        drawn.colorbar(picture, ax=axes, shrink=0.7, label="of the true class (%)", ticks=[0, 5, 20, 50, 100])
    row, column = _commonest(maps["merged"])
    often = {network: float(maps[network][row, column]) for network in _NETWORKS}
    named = (
        f"The merged network's commonest confusion is {one.classes[row]} taken for {one.classes[column]}: "
        f"{often['merged']:.1f} % of that class, where the base has {often['base']:.1f} % and the expert "
        f"{often['expert']:.1f} %."
        if often["merged"] > 0
        else "The merged network confuses no two classes."
    )
    right = {network: one.accuracy(network) for network in _NETWORKS}
    return Drawing(
        drawn,
        f"On {one.title} the merged network names {right['merged']:.1f} % of {len(one.labels):,} images rightly, the "
        f"base {right['base']:.1f} % and the task's own expert {right['expert']:.1f} %. {named}",
        {
            **{f"{name}, accuracy (%)": right[network] for network, name in _NETWORKS.items()},
            "merged, commonest confusion (% of its class)": often["merged"],
        },
    )


def draw_examples(measured: Mapping[str, Mistakes], *, task: str, kind: str = "broken") -> Drawing:
    """The first images that the merge breaks or saves, each with its true class and the wrong one that was given.

    The wrong class is the merged network's where it breaks the image, the base's where it saves it.

    Args:
        measured: what `find_mistakes` gave.
        task: one of its tasks.
        kind: "broken" or "saved", see `KINDS`.

    Raises:
        ApgdTeachError: there is no such task or kind.

    Lesson: 02, 07.
    """
    one = _task(measured, task)
    numbers = one.images(kind)[:EXAMPLES]
    every = {name: one.images(name) for name in KINDS}
    given = one.predictions["merged" if kind == "broken" else "base"]
    pairs = [(one.classes[int(one.labels[n])], one.classes[int(given[n])]) for n in numbers]
    with styled():
        drawn, (axes,) = figure(width=7.2, height=4.2)
        rows, columns, side, gap, head = 2, EXAMPLES // 2, 28, 12, 13
        sheet: NDArray[Any] = np.full((rows * (side + head), columns * (side + gap) - gap), np.nan)
        for place, (n, (true, wrong)) in enumerate(zip(numbers, pairs, strict=True)):
            top, left = (place // columns) * (side + head) + head, (place % columns) * (side + gap)
            sheet[top : top + side, left : left + side] = one.shown[n].numpy()
            name = f"{true} → {wrong}" if len(true + wrong) < 14 else f"{true}\n→ {wrong}"
            axes.text(left + side / 2, top - 1, name, ha="center", va="bottom", fontsize=10, in_layout=False)
        axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        if not numbers:
            axes.text(sheet.shape[1] / 2, sheet.shape[0] / 2, "no such image", ha="center", va="center")
        axes.set_xlim(-gap / 2, sheet.shape[1] + gap / 2)
        axes.set_xticks([])
        axes.set_yticks([])
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.set_xlabel(f"a → b: a is right, b is what the {'merged network' if kind == 'broken' else 'base'} said")
        what = "Broken by the merge" if kind == "broken" else "Saved by the merge"
        axes.set_title(f"{what}: {len(every[kind]):,} of {len(one.labels):,} images of {one.title}")
    who = (
        "the expert names rightly and the merged network does not"
        if kind == "broken"
        else "the base names wrongly and the merged network rightly"
    )
    other = "saved" if kind == "broken" else "broken"
    listed = "; ".join(f"image {n}, {true} → {wrong}" for n, (true, wrong) in zip(numbers, pairs, strict=True))
    whose = "merged network" if kind == "broken" else "base"
    return Drawing(
        drawn,
        f"Of {len(one.labels):,} images of {one.title} there are {len(every[kind])} that {who} "
        f"({other}: {len(every[other])})."
        + (f" The first, with the true class and the one that the {whose} gives: {listed}." if numbers else ""),
        {
            "broken (images)": len(every["broken"]),
            "saved (images)": len(every["saved"]),
            "looked at (images)": len(one.labels),
        },
        photo=True,
    )


def _task(measured: Mapping[str, Mistakes], task: str) -> Mistakes:
    if task not in measured:
        raise ApgdTeachError(f"no mistakes were looked for on the task '{task}'; take one of: {', '.join(measured)}.")
    return measured[task]


def _commonest(map_: NDArray[Any]) -> tuple[int, int]:
    """Row and column of the largest number off the diagonal; classes without an image have no say."""
    off = np.where(np.eye(len(map_), dtype=bool) | np.isnan(map_), -1.0, map_)
    row, column = np.unravel_index(int(off.argmax()), off.shape)
    return int(row), int(column)


def _short(name: str) -> str:
    """The name of a class where there is little room: "T-shirt/top" as "T-shirt"."""
    return name.split("/")[0]
