"""Figures of what a merge was measured to do, from numbers that are quick to make. Also a program."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace

import torch

from apgd_teach.data import TASKS, load_task
from apgd_teach.evaluate import Comparison, Difference, Score
from apgd_teach.experts import Pool
from apgd_teach.figures.gaps import Along, Estimates, draw_along, draw_estimate, draw_heat, measure_heat
from apgd_teach.figures.interference import (
    ALL,
    Interference,
    PairCosts,
    draw_interference,
    draw_pairs,
    pairwise_interference,
)
from apgd_teach.figures.mistakes import Mistakes, draw_confusion, draw_examples
from apgd_teach.figures.seeds import draw_over_seeds
from apgd_teach.figures.style import png
from apgd_teach.figures.sweeps import Sweep, draw_methods, draw_sweep, draw_tradeoff
from apgd_teach.models import make_encoder
from apgd_teach.training import recipe
from apgd_teach.trials import Trials

TITLES = {name: task.title for name, task in TASKS.items()}
NAMES = list(TITLES)
FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def untrained_pool(count: int = 2) -> Pool:
    """A pool in which nothing was trained: experts are the base with some noise, the heads are noise alone."""
    draws = torch.Generator().manual_seed(3)
    names = NAMES[:count]
    # Longer than they are drawn, or every image would be of one class.
    base = {key: 4 * one for key, one in make_encoder("mlp", 0).state_dict().items()}
    return Pool(
        network="mlp",
        base=base,
        heads={
            name: {"weight": torch.randn(10, 512, generator=draws), "bias": torch.randn(10, generator=draws)}
            for name in names
        },
        experts={
            name: {key: one + 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()}
            for name in names
        },
        tasks={name: load_task(name) for name in names},
        recipe=recipe("mild", "sgd", 1),
        seed=0,
        device=torch.device("cpu"),
        cards={},
        trained=(),
        tier="bundled",
    )


def vectors(count: int = 8) -> dict[str, dict[str, torch.Tensor]]:
    draws = torch.Generator().manual_seed(1)
    shapes = {"layer1.weight": (24, 20), "layer1.bias": (24,), "conv.weight": (16, 2, 3, 3)}
    shared = {key: torch.randn(shape, generator=draws) for key, shape in shapes.items()}
    return {
        name: {key: torch.randn(shape, generator=draws) + (-1) ** i * shared[key] / 2 for key, shape in shapes.items()}
        for i, name in enumerate(NAMES[:count])
    }


def swept() -> Sweep:
    coefficients = (0.0, 0.1, 0.125, 0.2, 0.3, 0.4)
    accuracies = {
        name: tuple(80.0 + i + (10 - 3 * i) * x - (20 + 6 * i) * x * x for x in coefficients)
        for i, name in enumerate(NAMES)
    }
    against = tuple(Difference(1.0 - 9 * x, 0.5) for x in coefficients)
    # Each task has a parabola of its own: the vertices lie between 0.1 and 0.3.
    gaps = {
        name: tuple(0.1 + 4 * (x - (0.1, 0.125, 0.2, 0.3)[i % 4]) ** 2 for x in coefficients)
        for i, name in enumerate(NAMES)
    }
    return Sweep(
        coefficients,
        accuracies,
        against,
        dict.fromkeys(NAMES, 81.0),
        dict.fromkeys(NAMES, 90.0),
        dict(TITLES),
        gaps,
        length=2.0,
    )


def comparison(merges: tuple[str, ...] = ("average", "ties", "adamerging", "apgd"), images: int = 200) -> Comparison:
    draws = torch.Generator().manual_seed(2)

    def scores(share: float) -> dict[str, Score]:
        return {
            name: Score(torch.rand(images, generator=draws) < share, torch.rand(images, generator=draws))
            for name in NAMES
        }

    merged = {label: scores(0.7 + 0.04 * i) for i, label in enumerate(merges)}
    used = {label: "unlabelled" if label == "adamerging" else "none" for label in merges}
    return Comparison(TITLES, scores(0.7), scores(0.97), merged, used, "bundled tier")


def tried_over_seeds() -> Trials:
    return Trials({0: comparison(), 10: comparison(images=180), 20: comparison(images=160)})


def interfering() -> Interference:
    return pairwise_interference(vectors())


def pair_costs(count: int = 8) -> PairCosts:
    pairs = tuple(itertools.combinations(NAMES[:count], 2))
    conflict = tuple(30.0 + 7 * i % 40 for i in range(len(pairs)))
    return PairCosts(
        titles={name: TITLES[name] for name in NAMES[:count]},
        pairs=pairs,
        kinds=tuple(a.split("-")[0] if a.split("-")[0] == b.split("-")[0] else "two families" for a, b in pairs),
        measures={
            "cosine": tuple((50 - one) / 50 for one in conflict),
            "conflict": conflict,
            "overlap": tuple(20.0 + i % 5 for i in range(len(pairs))),
        },
        lengths=tuple(1.0 + i % 7 for i in range(len(pairs))),
        gaps=tuple(0.05 + one / 100 + 0.01 * (i % 3) for i, one in enumerate(conflict)),
        lost=tuple(one / 10 for one in conflict),
        tier="bundled tier, test split",
    )


def estimates(gradients: bool = True) -> Estimates:
    labels = ("base", "average", "task arithmetic")
    each = {label: {name: 0.1 + 0.02 * i * (j + 1) for i, name in enumerate(NAMES)} for j, label in enumerate(labels)}
    bent = {label: {name: value**2 for name, value in of.items()} for label, of in each.items()}
    order = {label: dict(zip(NAMES, reversed(of.values()), strict=True)) for label, of in each.items()}
    return Estimates(TITLES, order, bent if gradients else None, each)


def along() -> Along:
    steps = tuple(i / 4 for i in range(5))
    gaps = {
        name: tuple(0.3 + 0.01 * i - 0.5 * s + 0.4 * s * s - 0.1 * s**3 for s in steps) for i, name in enumerate(NAMES)
    }
    return Along(TITLES, steps, gaps, dict.fromkeys(NAMES, -0.5), dict.fromkeys(NAMES, 0.8))


def mistaken(images: int = 300, classes: tuple[str, ...] = FASHION, title: str = TITLES[NAMES[-1]]) -> Mistakes:
    draws = torch.Generator().manual_seed(4)
    labels = torch.arange(images) % len(classes)

    def given(share: float) -> torch.Tensor:
        right = torch.rand(images, generator=draws) < share
        return torch.where(right, labels, torch.randint(len(classes), (images,), generator=draws))

    predictions = {"base": given(0.6), "merged": given(0.7), "expert": given(0.9)}
    one = Mistakes(title, classes, labels, predictions, {})
    shown = {n: torch.rand(28, 28, generator=draws) for kind in ("broken", "saved") for n in one.images(kind)[:8]}
    return replace(one, shown=shown)


def perfect() -> Mistakes:
    one = mistaken(40, tuple("0123456789"), TITLES[NAMES[0]])
    return replace(one, predictions=dict.fromkeys(one.predictions, one.labels), shown={})


LONG = ("task arithmetic, λ = 0.3", *(f"method number {i}" for i in range(11)))

DRAWN_MEASURES = {
    "sweep": lambda: draw_sweep(swept(), coefficient=0.3),
    "sweep at the average": lambda: draw_sweep(swept(), coefficient=1 / 8),
    "trade-off": lambda: draw_tradeoff(swept()),
    "pairs": lambda: draw_pairs(pair_costs()),
    "pairs by overlap": lambda: draw_pairs(pair_costs(), measure="overlap"),
    "one pair": lambda: draw_pairs(pair_costs(2)),
    "methods": lambda: draw_methods(comparison()),
    "methods on one task": lambda: draw_methods(comparison(), task=NAMES[-1]),
    "twelve methods": lambda: draw_methods(comparison(LONG)),
    "over seeds": lambda: draw_over_seeds(tried_over_seeds()),
    "over seeds, titled": lambda: draw_over_seeds(tried_over_seeds(), title="The hot experts, against the average"),
    "cosines": lambda: draw_interference(interfering(), layer="layer1.weight", titles=TITLES),
    "conflict": lambda: draw_interference(interfering(), layer="conv.weight", measure="conflict", titles=TITLES),
    "overlap": lambda: draw_interference(interfering(), layer="layer1.weight", measure="overlap", titles=TITLES),
    "overlap of all layers": lambda: draw_interference(interfering(), layer=ALL, measure="overlap", titles=TITLES),
    "interference of two": lambda: draw_interference(pairwise_interference(vectors(2)), layer="conv.weight"),
    "estimate": lambda: draw_estimate(estimates(gradients=False), label="average"),
    "estimate with gradients": lambda: draw_estimate(estimates(), label="task arithmetic"),
    "along": lambda: draw_along(along(), share=0.5),
    "along, one task": lambda: draw_along(along(), share=1, task=NAMES[-1]),
    "along, far": lambda: draw_along(replace(along(), curvatures=dict.fromkeys(NAMES, 300.0)), share=1),
    "heat": lambda: draw_heat(measure_heat({0.01: estimates(), 0.03: estimates(), 0.2: estimates()})),
    "confusion": lambda: draw_confusion({"a": mistaken()}, task="a"),
    "confusion of two": lambda: draw_confusion({"a": perfect()}, task="a", networks=("base", "merged")),
    "broken": lambda: draw_examples({"a": mistaken()}, task="a", kind="broken"),
    "saved": lambda: draw_examples({"a": mistaken()}, task="a", kind="saved"),
    "none broken": lambda: draw_examples({"a": perfect()}, task="a", kind="broken"),
}

if __name__ == "__main__":
    for name, drawing in DRAWN_MEASURES.items():
        print(name, hashlib.sha256(png(drawing().figure)).hexdigest())
