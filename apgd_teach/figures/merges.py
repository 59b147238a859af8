"""What a merge did: accuracies by task, losses along lines and over planes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.ticker import LogLocator, NullFormatter

from apgd_teach.evaluate import Comparison
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import COLORS, MARKERS, figure, look, styled
from apgd_teach.landscape import Path, Plane

__all__ = ["draw_comparison", "draw_paths", "draw_planes"]


def draw_comparison(compared: Mapping[str, Comparison]) -> Drawing:
    """Accuracy by task: base, merged networks and experts as marks on one line per task; a panel per comparison.

    Args:
        compared: comparisons of the same tasks and merges, by title.

    Lesson: 00, 02.
    """
    with styled():
        first = next(iter(compared.values()))
        tasks = list(first.base)
        drawn, axes = figure(1, len(compared), width=4.2 * len(compared) + 1.5, height=4.2)
        names = {"base": "base", **{label: label for label in first.merged}, "experts": "its own expert"}
        for place, (title, one) in zip(axes, compared.items(), strict=True):
            for i, (label, name) in enumerate(names.items()):
                scores = {"base": one.base, "experts": one.experts, **one.merged}[label]
                place.plot(
                    [scores[task].accuracy for task in tasks],
                    # One above the other, so that none hides behind another of the same accuracy.
                    [row + 0.36 * (i / (len(names) - 1) - 0.5) for row in range(len(tasks))],
                    # The base is grey; the others begin with the first colour and the second marker.
                    marker=MARKERS[(i + i // len(MARKERS)) % len(MARKERS)],
                    color="#7A7A7A" if i == 0 else COLORS[(i - 1) % len(COLORS)],
                    linestyle="",
                    markersize=7,
                    label=name,
                )
            place.set_yticks(range(len(tasks)), [one.titles[task] for task in tasks] if one is first else [])
            place.set_ylim(len(tasks) - 0.5, -0.5)
            place.set_xlabel("accuracy on test images (%)")
            place.set_title(title)
        lowest = min(place.get_xlim()[0] for place in axes)
        for place in axes:
            place.set_xlim(max(0.0, lowest), 100.5)
        drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=len(names))
    return Drawing(
        drawn,
        "Accuracy on test images by task. " + " ".join(f"{title}: {one.words()}" for title, one in compared.items()),
        {
            f"{title}, {names[label]}, mean (%)": one.average(label)
            for title, one in compared.items()
            for label in names
        },
    )


def draw_paths(paths: Mapping[str, Path], titles: Mapping[str, str], ends: tuple[str, str]) -> Drawing:
    """Loss along straight lines between two networks, a line per task and a panel per path.

    Logarithmic, so that a line that is nearly flat and one that climbs far can be read side by side. Lesson: 02.
    """
    with styled():
        drawn, axes = figure(1, len(paths), width=4.2 * len(paths) + 0.8, height=3.9)
        every = [loss for path in paths.values() for losses in path.losses.values() for loss in losses]
        tasks = list(next(iter(paths.values())).losses)
        for place, (title, path) in zip(axes, paths.items(), strict=True):
            for i, (task, losses) in enumerate(path.losses.items()):
                place.plot(
                    path.steps,
                    losses,
                    **look(i),
                    markersize=4,
                    label=f"loss on {titles[task]}",
                )
            place.axvline(0.5, color="#7A7A7A", linewidth=1, linestyle=":")
            place.set_yscale("log")
            place.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            place.yaxis.set_major_formatter("{x:g}")
            place.yaxis.set_minor_formatter(NullFormatter())
            place.set_ylim(0.8 * max(min(every), 1e-4), 1.25 * max(every))
            place.set_xticks([0, 0.5, 1], [ends[0], "average", ends[1]])
            left, _, right = place.get_xticklabels()
            left.set_horizontalalignment("left")
            right.set_horizontalalignment("right")
            place.set_title(title)
        if len(tasks) == 1:
            axes[0].set_ylabel(f"loss on {titles[tasks[0]]} (nats, log scale)")
        else:
            axes[0].set_ylabel("loss (nats, log scale)")
            drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    first, last = (" ".join(end.split()) for end in ends)
    words = [
        f"Loss on {titles[task]}, {title}: {path.words(task)}." for title, path in paths.items() for task in path.losses
    ]
    return Drawing(
        drawn,
        f"On the straight line from the {first} to the {last}. {' '.join(words)}",
        {
            f"{title}, {titles[task]}, highest loss (nats)": max(losses)
            for title, path in paths.items()
            for task, losses in path.losses.items()
        },
    )


def draw_planes(planes: Mapping[str, Plane], titles: Mapping[str, str]) -> Drawing:
    """Mean loss over the plane through three networks, a panel with its own levels per plane.

    Contours are labelled, so the picture can be read without its colours. Lesson: 02.
    """
    with styled():
        drawn, axes = figure(1, len(planes), width=4.6 * len(planes) + 0.6, height=4.6)
        for place, (title, plane) in zip(axes, planes.items(), strict=True):
            loss = plane.mean.numpy()
            # The loss climbs steeply far out: equal steps of its logarithm show the valley.
            lowest = max(float(loss.min()), 1e-3)
            # Levels have to rise, also over a plane without any slope.
            levels = np.geomspace(lowest, max(float(np.quantile(loss, 0.92)), 1.001 * lowest), 11)
            place.contourf(plane.x, plane.y, loss, levels=levels, cmap="viridis_r", extend="both")
            lines = place.contour(plane.x, plane.y, loss, levels=levels[1::2], colors="black", linewidths=0.6)
            numbers = place.clabel(lines, fmt="%.2f", fontsize=8)
            # As in the other figures: the base is a circle, an expert a triangle, what was merged a square.
            for marker, (name, (x, y)) in zip("o^s", plane.places.items(), strict=False):
                place.plot(x, y, marker, color="white", markeredgecolor="black", markersize=9)
                place.annotate(
                    f"{titles.get(name, name)}\n{plane.at[name]:.2f}" if name in plane.at else titles.get(name, name),
                    (x, y),
                    xytext=(0, 10),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9,
                    bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "alpha": 0.85, "linewidth": 0},
                )
            # A network's name is not to lie on a level's number.
            wide, high = np.ptp(plane.x), np.ptp(plane.y)
            for number in numbers:
                across, up = number.get_position()
                if any(abs(across - x) < wide / 6 and -high / 20 < up - y < high / 4 for x, y in plane.places.values()):
                    number.remove()
            place.set_aspect("equal")
            place.grid(False)
            place.set_title(title)
            towards = [titles.get(name, name) for name in plane.places][1:2]
            place.set_xlabel(f"distance in weight space, towards {''.join(towards) or 'another network'}")
            place.set_ylabel("distance sideways")
    return Drawing(
        drawn,
        "Loss over the plane through three networks. "
        + " ".join(f"{title}: {plane.words()}." for title, plane in planes.items()),
        {
            f"{title}, {titles.get(name, name)} (nats)": loss
            for title, plane in planes.items()
            for name, loss in plane.at.items()
        },
    )
