"""What the tasks look like, and what task vectors look like."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from apgd_teach.data import TaskData
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, look, styled
from apgd_teach.merging import StateDict
from apgd_teach.tables import written

__all__ = ["cosine_matrix", "draw_cosines", "draw_norms", "draw_spectra", "draw_tasks", "layer_norms", "spectra"]


def draw_tasks(tasks: Mapping[str, TaskData], examples: int = 6) -> Drawing:
    """A row of pictures per task: the first test image of each of the first `examples` classes. Lesson: 01, 08."""
    with styled():
        drawn, axes = figure(len(tasks), examples, width=1.05 * examples + 2.2, height=1.05 * len(tasks))
        for row, task in enumerate(tasks.values()):
            labels = task.test.labels
            for column in range(examples):
                spot = axes[row * examples + column]
                spot.set_xticks([])
                spot.set_yticks([])
                spot.grid(False)
                if column >= len(task.classes):
                    spot.set_frame_on(False)
                    continue
                image = task.test.images[int((labels == column).nonzero()[0])].permute(1, 2, 0).squeeze(2)
                spot.imshow(image.numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                if column == 0:
                    spot.set_ylabel(task.title, rotation=0, ha="right", va="center")
    titles = "; ".join(task.title for task in tasks.values())
    return Drawing(drawn, f"{examples} test images of each task, a row per task: {titles}.", photo=True)


def layer_norms(base: StateDict, vectors: Mapping[str, StateDict]) -> dict[str, dict[str, float]]:
    """‖τᵢ‖/‖θ₀‖ per task and per weight matrix or kernel, in per cent. Lesson: 01."""
    weights = [key for key, tensor in base.items() if tensor.ndim >= 2]
    return {
        task: {key: 100 * float(tau[key].norm() / base[key].norm()) for key in weights} for task, tau in vectors.items()
    }


def draw_norms(norms: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]) -> Drawing:
    """How far each layer moved, by task: `layer_norms` as marks over the layers. Lesson: 01."""
    with styled():
        drawn, (axes,) = figure(height=3.6)
        layers = list(next(iter(norms.values())))
        for i, (task, by_layer) in enumerate(norms.items()):
            offset = (i - (len(norms) - 1) / 2) * 0.08
            axes.plot(
                [place + offset for place in range(len(layers))],
                [by_layer[layer] for layer in layers],
                **{**look(i), "linestyle": ""},
                label=titles[task],
            )
        axes.set_xticks(range(len(layers)), [_short(layer) for layer in layers])
        axes.set_ylabel("‖τ‖ / ‖θ₀‖  (%)")
        axes.set_ylim(bottom=0)
        axes.set_title("How far fine-tuning moved each layer")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    by_task = [
        f"{titles[task]}: " + ", ".join(f"{_short(layer)} {share:.1f} %" for layer, share in by_layer.items())
        for task, by_layer in norms.items()
    ]
    return Drawing(
        drawn,
        f"How far fine-tuning moved each layer, as a share of the base's norm. {'; '.join(by_task)}.",
        {
            f"{titles[task]}, {_short(layer)} (%)": share
            for task, by_layer in norms.items()
            for layer, share in by_layer.items()
        },
    )


def _short(layer: str) -> str:
    return layer.removesuffix(".weight")


def cosine_matrix(vectors: Mapping[str, StateDict]) -> Tensor:
    """Cosines between task vectors over all layers together, shape (task, task). Lesson: 01."""
    flat = torch.stack([torch.cat([tau[key].flatten() for key in sorted(tau)]) for tau in vectors.values()])
    flat = flat / flat.norm(dim=1, keepdim=True).clamp_min(1e-30)
    return flat @ flat.T


def draw_cosines(cosines: Tensor, titles: list[str]) -> Drawing:
    """`cosine_matrix` as a map with its numbers. Lesson: 01."""
    with styled():
        drawn, (axes,) = figure(width=7.6, height=5.4)
        picture = axes.imshow(cosines.numpy(), cmap="RdBu", vmin=-1, vmax=1)
        for row in range(len(titles)):
            for column in range(len(titles)):
                value = float(cosines[row, column])
                axes.text(
                    column,
                    row,
                    written(value, 2),
                    ha="center",
                    va="center",
                    color="white" if abs(value) > 0.6 else "black",
                )
        axes.set_xticks(range(len(titles)), titles, rotation=40, ha="right")
        axes.set_yticks(range(len(titles)), titles)
        axes.grid(False)
        axes.set_title("Cosine between task vectors")
        drawn.colorbar(picture, ax=axes, shrink=0.8, label="cosine (above 0: alike)")
    pairs = {
        f"{a} and {b}": float(cosines[row, column])
        for row, a in enumerate(titles)
        for column, b in enumerate(titles)
        if row < column
    }
    words = "; ".join(f"{pair}: {value:.2f}" for pair, value in pairs.items())
    return Drawing(drawn, f"Cosines between task vectors. {words or 'There is one alone'}.", pairs)


def spectra(vectors: Mapping[str, StateDict], layer: str) -> dict[str, Tensor]:
    """Singular values of each τ in one layer, seen as (out, in), as shares of the largest. Lesson: 01."""
    found = {}
    for task, tau in vectors.items():
        values = torch.linalg.svdvals(tau[layer].reshape(tau[layer].shape[0], -1))
        found[task] = values / values[0].clamp_min(1e-30)
    return found


def draw_spectra(
    values: Mapping[str, Mapping[str, Tensor]],
    titles: Mapping[str, str],
    *,
    layer: str,
    first: int = 60,
    control: str = "shuffled",
    base: str = "base",
) -> Drawing:
    """`spectra` as the energy that the first directions carry together, in per cent. Lesson: 01.

    Args:
        values: by layer and by task, singular values from the largest on.
        titles: of the tasks.
        layer: which layer is shown.
        first: how many directions are shown.
        control: the task, if there, that is drawn as a broad grey line.
        base: the task, if there, that is drawn in black over all others.
    """
    energies = {
        task: 100 * line.square().cumsum(0) / line.square().sum().clamp_min(1e-30)
        for task, line in values[layer].items()
    }
    with styled():
        drawn, (axes,) = figure(height=4.2)
        for i, (task, energy) in enumerate(energies.items()):
            aside: dict[str, Any] = {}
            if task == control:
                aside = {"color": "#7A7A7A", "linestyle": "-", "linewidth": 4.0}
            elif task == base:
                aside = {"color": "black", "linestyle": (0, (4, 2)), "linewidth": 2.8, "zorder": 3}
            axes.plot(
                range(1, min(first, len(energy)) + 1),
                energy[:first].numpy(),
                **{**look(i), "marker": "", **aside},
                label=titles[task],
            )
        count = len(next(iter(energies.values())))
        axes.set_ylim(0, 102)
        axes.set_xlabel(f"singular directions, longest first (of {count})")
        axes.set_ylabel("energy carried together (%)")
        axes.set_title(f"How few directions hold τ in {layer}")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    tenth = min(10, count)
    carried = {titles[task]: float(energy[tenth - 1]) for task, energy in energies.items()}
    return Drawing(
        drawn,
        f"Energy that the first {tenth} of {count} singular directions carry in {layer}: "
        + ", ".join(f"{title} {share:.0f} %" for title, share in carried.items())
        + ".",
        {f"first {tenth}, {title} (%)": share for title, share in carried.items()},
    )
