"""Lesson 08 as it is published: results on real pictures, and none of these to be seen."""

from __future__ import annotations

import ast
from pathlib import Path

from apgd_teach.results import recorded_in, trials_of

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
SHOWS_IMAGES = ("draw_tasks", "draw_examples", "draw_images", "imshow", "Image", "to_pil_image")


def test_the_only_pictures_that_it_shows_are_generated_ones() -> None:
    """CIFAR-10 states no licence: none of its pictures may be published."""
    tree = ast.parse((NOTEBOOKS / "source" / "08_colour_images.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    shown = [one for one in calls if ast.unparse(one.func).rpartition(".")[2] in SHOWS_IMAGES]
    assert len(shown) == 1
    # What is drawn comes from `example`, and that is the generated family.
    assert {node.id for node in ast.walk(shown[0]) if isinstance(node, ast.Name)} == {"draw_tasks", "example", "name"}
    (made,) = [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "example"
    ]
    assert ast.unparse(made).startswith("open_colour('generated'")


def test_its_published_results_are_of_cifar_10_and_three_seeds() -> None:
    records = recorded_in([NOTEBOOKS / "08_colour_images.ipynb"])
    assert all(one.suite in ("colour, tier cifar10", "colour, tier cifar10-jpeg-25k") for one in records)
    (trials,) = trials_of(records).values()
    assert len(trials.seeds) == 3
    assert {"average", "task arithmetic, λ = 0.3", "the published code", "apgd"} <= set(trials.data_used)
    assert len(trials.compared[trials.seeds[0]].titles) == 10
