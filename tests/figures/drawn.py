"""Every figure of the course, from numbers that are quick to make and titles as they are. Also a program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from matplotlib.figure import Figure

from apgd_teach.data import TASKS, load_task
from apgd_teach.evaluate import Comparison, Score
from apgd_teach.figures import (
    Drawing,
    cosine_matrix,
    draw_comparison,
    draw_cosines,
    draw_norms,
    draw_paths,
    draw_planes,
    draw_spectra,
    draw_tasks,
    layer_norms,
    show,
    spectra,
)
from apgd_teach.figures.style import png
from apgd_teach.landscape import Path, Plane

TITLES = {name: task.title for name, task in TASKS.items()}
NAMES = list(TITLES)
BASE = {
    "layer1.weight": torch.ones(6, 5),
    "layer1.bias": torch.ones(6),
    "layer2.weight": 2 * torch.ones(4, 6),
    "layer3.weight": 2 * torch.ones(4, 2, 3, 3),
}


def vectors(count: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    return {
        name: {key: 0.1 * (1 + i) * torch.randn(one.shape, generator=draws) for key, one in BASE.items()}
        for i, name in enumerate(NAMES[:count])
    }


def comparison(merges: tuple[str, ...] = ("average",)) -> Comparison:
    draws = torch.Generator().manual_seed(2)

    def scores(share: float) -> dict[str, Score]:
        return {name: Score(torch.rand(200, generator=draws) < share, torch.rand(200)) for name in NAMES}

    merged = {label: scores(0.7 + 0.02 * i) for i, label in enumerate(merges)}
    return Comparison(TITLES, scores(0.5), scores(0.97), merged, dict.fromkeys(merges, "none"), "bundled tier")


def path(count: int = 2) -> Path:
    steps = [i / 8 for i in range(9)]
    losses = {name: [0.2 + (1 + i) * step * (1 - step) for step in steps] for i, name in enumerate(NAMES[:count])}
    return Path(steps, losses, {})


def plane(base: tuple[float, float] = (0.0, 0.0)) -> Plane:
    grid = [-1 + 0.5 * i for i in range(9)]
    loss = torch.tensor([[0.2 + (x - 1) ** 2 + (y - 0.5) ** 2 for x in grid] for y in grid])
    places = {"base": base, "its expert": (2.0, 0.0), "average of eight": (0.8, 0.9)}
    return Plane(grid, grid, {"a": loss}, places, {name: 0.2 + i for i, name in enumerate(places)})


def two_planes() -> Drawing:
    title = "loss on digits, rotated 45°"
    return draw_planes({f"mild: {title}": plane(), f"hot: {title}": plane()}, TITLES)


ENDS = ("expert of\ndigits, rotated 45°", "expert of\nfashion, rotated 45°")

DRAWINGS = {
    "tasks": lambda: draw_tasks({name: load_task(name) for name in NAMES[:2]}, examples=4),
    "norms": lambda: draw_norms(layer_norms(BASE, vectors()), TITLES),
    "cosines": lambda: draw_cosines(cosine_matrix(vectors()), list(TITLES.values())),
    "spectra": lambda: draw_spectra(
        {"layer2.weight": spectra(vectors(), "layer2.weight")}, TITLES, layer="layer2.weight"
    ),
    "one comparison": lambda: draw_comparison({"one network for eight tasks": comparison()}),
    "two comparisons": lambda: draw_comparison({"mild": comparison(), "hot": comparison()}),
    "two paths": lambda: draw_paths({"mild": path(), "hot": path()}, TITLES, ENDS),
    "two planes": two_planes,
}


def figure_of(name: str) -> Callable[[], Figure]:
    return lambda: DRAWINGS[name]().figure


DRAWN = {name: figure_of(name) for name in DRAWINGS}

if __name__ == "__main__":
    for name, drawing in DRAWN.items():
        print(name, hashlib.sha256(png(drawing())).hexdigest())
    show(DRAWN["norms"](), "Words, where there is no notebook.")
