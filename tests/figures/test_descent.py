"""The way of descent: the loops end where the library's end, and what is drawn is what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from statistics import mean

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import make_pool
from apgd_teach.figures.descent import DescentPaths, draw_descent, layer_accuracy, measure_descent, walk, walk_adam
from apgd_teach.merging import ApgdPublished, shared_basis
from apgd_teach.merging.descent import descend
from apgd_teach.merging.objective import PerLayer, objective
from apgd_teach.merging.published import leak


def taus(tasks: int = 3, out: int = 12, in_: int = 20, dtype: torch.dtype = torch.float32) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(tasks, out, in_, generator=draws, dtype=dtype)


def last(steps: int, way) -> Tensor:
    *_, update = islice(way, steps + 1)
    return update


@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
@pytest.mark.parametrize("keep", [0, 3])
@pytest.mark.parametrize("steps", [0, 1, 25])
def test_the_walk_is_at_every_step_where_descend_ends(granularity: str, keep: int, steps: int) -> None:
    vectors = taus(dtype=torch.float64)
    quadratic, start, basis = objective(vectors, granularity), vectors.mean(0), shared_basis(vectors, keep)
    update, path = descend(quadratic, start, basis, steps)
    found = last(steps, walk(quadratic, start, basis))
    # Not to the last bit: matrix products round as the matrices happen to lie in memory.
    torch.testing.assert_close(found, update, rtol=1e-11, atol=1e-15)
    assert 2 * float(quadratic.value(found)) == pytest.approx(path[-1].surrogate)


def test_the_walk_shortens_its_steps_where_descend_does() -> None:
    # A start at right angles to the steep direction, but for rounding: the power iteration does not see it.
    vectors = torch.zeros(2, 1, 2, dtype=torch.float64)
    vectors[0, 0, 0], vectors[1, 0, 1] = 3.0, 1.0
    start = torch.tensor([[3.0 + 1e-7, 0.0]], dtype=torch.float64)
    quadratic, basis = PerLayer(vectors), torch.zeros(1, 0, dtype=torch.float64)
    update, path = descend(quadratic, start, basis, 40)
    assert path[-1].surrogate < path[0].surrogate
    torch.testing.assert_close(last(40, walk(quadratic, start, basis)), update, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 10, 400])
def test_adam_ends_where_the_published_delta_does(steps: int) -> None:
    vectors = taus(dtype=torch.float64)
    coefficients = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
    basis = shared_basis(vectors, 2)
    start = torch.einsum("t,toi->oi", coefficients, vectors)
    delta = ApgdPublished(steps=steps).delta(vectors, coefficients, basis)
    way = walk_adam(objective(vectors, "row"), start, basis, coefficients.sum())
    torch.testing.assert_close(last(steps, way), start + coefficients.sum() * delta, rtol=1e-9, atol=1e-13)


def test_adam_projected_again_is_adam_whose_step_is_projected() -> None:
    vectors = taus(dtype=torch.float64)
    basis, start, together = shared_basis(vectors, 3), vectors.mean(0), torch.tensor(0.5, dtype=torch.float64)
    quadratic = objective(vectors, "row")
    once, again = (list(islice(walk_adam(quadratic, start, basis, together, again=one), 31)) for one in (False, True))
    torch.testing.assert_close(again[1], once[1] - basis @ (basis.mT @ (once[1] - start)))
    assert leak(basis, once[-1], start) > 0.01
    assert max(leak(basis, update, start) for update in again) < 1e-14
    assert float(quadratic.value(again[-1])) < float(quadratic.value(start))


@pytest.fixture(scope="module")
def measured() -> DescentPaths:
    return measure_descent(
        taus(), steps=40, protect=0.25, accuracy=lambda update: 100 * float(update.norm()), at=(0, 20, 99)
    )


def test_descent_never_rises_never_leaks_and_heads_for_the_exact_solution(measured: DescentPaths) -> None:
    surrogate = measured.descent.surrogate
    assert surrogate[0] == measured.adam.surrogate[0] == measured.again.surrogate[0] == 1
    assert all(after <= before for before, after in pairwise(surrogate))
    assert measured.exact < surrogate[-1]
    assert 0 < max(measured.descent.leak) < 100 * measured.eps
    assert max(measured.adam.leak) > 0.01
    assert 0 < max(measured.again.leak) < 100 * measured.eps
    assert measured.protected == 3


def test_all_three_granularities_come_near_to_their_exact_solution() -> None:
    for granularity in ("layer", "row", "full"):
        one = measure_descent(taus(dtype=torch.float64), granularity=granularity, steps=3000)
        assert one.descent.surrogate[-1] == pytest.approx(one.exact, abs=1e-3)


def test_what_is_measured_at_a_step_is_that_of_the_update_there(measured: DescentPaths) -> None:
    vectors = taus()
    start = torch.einsum(
        "t,toi->oi", torch.full((3,), 1 / 3) * vectors.norm(dim=(1, 2)).median() / vectors.norm(dim=(1, 2)), vectors
    )
    basis = shared_basis(vectors, 3)
    update = last(20, walk(objective(vectors, "row"), start, basis))
    assert measured.descent.moved[20] == pytest.approx(float((update - start).norm()), rel=1e-4)
    assert measured.descent.accuracies == pytest.approx({0: 100 * float(start.norm()), 20: 100 * float(update.norm())})
    assert list(measured.adam.accuracies) == [0, 20]
    adam = last(20, walk_adam(objective(vectors, "row"), start, basis, torch.tensor(1.0)))
    assert measured.adam.leak[20] == pytest.approx(leak(basis, adam, start), rel=0.1)


def test_lines_are_what_was_measured_and_marks_stand_at_the_step(measured: DescentPaths) -> None:
    drawing = draw_descent(measured, step=20)
    ways = (measured.descent, measured.adam, measured.again)
    surrogate, leaked, accuracies = drawing.figure.axes
    assert surrogate.get_yscale() == "log"
    for line, way in zip(surrogate.lines, ways, strict=False):
        assert list(line.get_xdata()) == list(range(41))
        assert tuple(line.get_ydata()) == way.surrogate
        assert line.get_markevery() == [20]
    assert surrogate.lines[3].get_ydata()[0] == measured.exact
    for line, way in zip(leaked.lines, ways, strict=False):
        np.testing.assert_allclose(line.get_ydata(), 100 * np.array(way.leak))
    for line, way in zip(accuracies.lines, ways, strict=False):
        assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == way.accuracies


def test_rises_are_counted_where_they_are_more_than_rounding(measured: DescentPaths) -> None:
    assert measured.descent.rises == 0
    assert replace(measured.descent, surrogate=(1.0, 1.000001, 0.5, 0.6, 0.4, 0.45)).rises == 2


def test_a_layers_accuracy_is_that_of_the_network_with_its_update_replaced(tmp_path: Path) -> None:
    pool = make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-upright"],
        base_steps=2,
        expert_steps=2,
        cache=Cache(tmp_path),
        progress=False,
    )
    evaluator, layer = Evaluator(pool, images=50, split="validation"), "layer1.weight"
    accuracy = layer_accuracy(evaluator, pool.base, layer)
    for update in (torch.zeros_like(pool.base[layer]), -pool.base[layer]):
        scores = evaluator.scores({**pool.base, layer: pool.base[layer] + update})
        assert accuracy(update.flatten(1)) == pytest.approx(mean(score.accuracy for score in scores.values()))
    with pytest.raises(ApgdTeachError, match=r"the base has no 'conv9\.weight'; it has: layer1"):
        layer_accuracy(evaluator, pool.base, "conv9.weight")


def test_words_hold_the_numbers_of_the_step(measured: DescentPaths) -> None:
    drawing = draw_descent(measured, step=25)
    assert drawing.numbers["leak, Adam after the projection (%)"] == 100 * measured.adam.leak[25]
    assert drawing.numbers["surrogate left, projected descent (share of S's)"] == measured.descent.surrogate[25]
    assert drawing.numbers["accuracy measured after step"] == 20
    for said in (
        "After 25 of 40 steps",
        f"{measured.descent.surrogate[25]:.2g} of what it is at S",
        f"Adam after the projection {measured.adam.surrogate[25]:.2g}",
        f"Adam projected again {measured.again.surrogate[25]:.2g}",
        f"{100 * measured.adam.leak[25]:.1f} %",
        f"at most {max(measured.descent.leak):.1g} on the way",
        "The accuracy after step 20 is",
    ):
        assert said in drawing.words


def test_without_protection_the_words_say_that_nothing_can_leak() -> None:
    one = measure_descent(taus(), protect=0.0, steps=5)
    assert one.descent.leak == one.adam.leak == one.again.leak == (0.0,) * 6
    drawing = draw_descent(one, step=5)
    assert "nothing can leak" in drawing.words
    assert len(drawing.figure.axes) == 2


def test_an_exact_solution_that_leaves_nothing_has_no_line_on_a_logarithmic_scale(measured: DescentPaths) -> None:
    labels = [line.get_label() for line in draw_descent(replace(measured, exact=0.0), step=1).figure.axes[0].lines]
    assert "exact solution" not in labels


@pytest.mark.parametrize("step", [-1, 41, 2.0, True, math.nan])
def test_a_step_that_was_not_taken(measured: DescentPaths, step: object) -> None:
    with pytest.raises(ApgdTeachError, match="a whole number from 0 to 40"):
        draw_descent(measured, step=step)


@pytest.mark.parametrize(
    ("vectors", "settings", "sentence"),
    [
        (taus()[0], {}, "give those of one layer"),
        (taus(), {"steps": 0}, "steps is 0"),
        (taus(), {"steps": 2.5}, "steps is 2.5"),
        (taus(), {"granularity": "entry"}, "there is no granularity 'entry'"),
        (taus(), {"protect": 2}, "protect"),
        (taus(), {"protect": "auto"}, "give a share from 0 to 1"),
        (torch.zeros(2, 3, 4), {}, "zero at S already"),
    ],
)
def test_what_cannot_be_walked_is_one_sentence(vectors: Tensor, settings: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_descent(vectors, **settings)
