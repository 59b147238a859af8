from __future__ import annotations

import itertools
import math
import sys
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import NAMES, TITLES, interfering, pair_costs, untrained_pool, vectors

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.figures.interference import (
    ALL,
    MEASURES,
    PairCosts,
    draw_interference,
    draw_pairs,
    measure_pairs,
    pairwise_interference,
)
from apgd_teach.merging import merge, task_vectors


def of_one_layer(*matrices: list[list[float]]) -> dict[str, dict[str, torch.Tensor]]:
    return {f"task {i}": {"w": torch.tensor(one)} for i, one in enumerate(matrices)}


def test_cosine_conflict_and_overlap_of_a_layer_by_hand() -> None:
    # Entries multiply to 2, −6, 0 and 4: six of twelve in opposite signs.
    found = pairwise_interference(of_one_layer([[1.0, 2.0], [0.0, 4.0]], [[2.0, -3.0], [5.0, 1.0]]))
    assert float(found.cosine["w"][0, 1]) == pytest.approx(0, abs=1e-12)
    assert float(found.conflict["w"][0, 1]) == pytest.approx(50)
    assert float(found.cosine["w"][0, 0]) == pytest.approx(1)
    assert float(found.conflict["w"][0, 0]) == pytest.approx(0, abs=1e-9)


def test_conflict_is_the_weight_of_entries_in_opposite_signs() -> None:
    found = pairwise_interference(vectors(3))
    one, other = (tau["conv.weight"].double() for tau in list(vectors(3).values())[:2])
    product = one * other
    share = 100 * product[product < 0].abs().sum() / product.abs().sum()
    assert float(found.conflict["conv.weight"][0, 1]) == pytest.approx(float(share))
    cosine = product.sum() / one.norm() / other.norm()
    assert float(found.cosine["conv.weight"][0, 1]) == pytest.approx(float(cosine))


def test_overlap_is_that_of_the_first_left_singular_vectors() -> None:
    taus = vectors(3)
    found = pairwise_interference(taus)
    for layer, k, out in (("layer1.weight", 20 // 3, 24), ("conv.weight", 16 // 3, 16)):
        left = [np.linalg.svd(tau[layer].numpy().reshape(out, -1))[0][:, :k] for tau in taus.values()]
        for i, j in itertools.product(range(3), repeat=2):
            expected = 100 * np.linalg.norm(left[i].T @ left[j]) ** 2 / k
            assert float(found.overlap[layer][i, j]) == pytest.approx(expected, rel=1e-4)
        assert found.directions[layer] == k
        assert found.chance[layer] == pytest.approx(100 * k / out)


def test_all_layers_together_are_one_long_row_and_the_overlap_is_the_mean_of_the_layers() -> None:
    taus = vectors(3)
    found = pairwise_interference(taus)
    rows = {task: torch.cat([tau[key].flatten() for key in found.directions]).double() for task, tau in taus.items()}
    for i, j in itertools.combinations(range(3), 2):
        one, other = (rows[NAMES[place]] for place in (i, j))
        product = one * other
        assert float(found.cosine[ALL][i, j]) == pytest.approx(float(product.sum() / one.norm() / other.norm()))
        share = 100 * product[product < 0].abs().sum() / product.abs().sum()
        assert float(found.conflict[ALL][i, j]) == pytest.approx(float(share))
        each = [float(found.overlap[layer][i, j]) for layer in found.directions]
        assert float(found.overlap[ALL][i, j]) == pytest.approx(np.mean(each))
    assert found.chance[ALL] == pytest.approx(np.mean([found.chance[layer] for layer in found.directions]))


def test_a_layer_in_which_a_task_did_not_move_is_left_out_of_its_overlap_over_all_layers() -> None:
    taus = vectors(3)
    taus[NAMES[0]]["conv.weight"] = torch.zeros_like(taus[NAMES[0]]["conv.weight"])
    found = pairwise_interference(taus)
    assert torch.isnan(found.overlap["conv.weight"][0]).all()
    assert float(found.overlap[ALL][0, 1]) == pytest.approx(float(found.overlap["layer1.weight"][0, 1]))
    assert math.isfinite(float(found.cosine[ALL][0, 1]))


def test_opposite_task_vectors_undo_each_other_in_the_same_directions() -> None:
    tau = [[1.0, 2.0], [3.0, -4.0]]
    found = pairwise_interference(of_one_layer(tau, [[-x for x in row] for row in tau]))
    assert [float(getattr(found, name)["w"][0, 1]) for name in MEASURES] == pytest.approx([-1, 100, 100])


def test_directions_that_a_task_of_low_rank_lacks_do_not_overlap_by_chance() -> None:
    lone = torch.zeros(8, 8)
    lone[0, 0] = 1
    full = torch.eye(8) + torch.diag(torch.arange(8.0))
    found = pairwise_interference({"lone": {"w": lone}, "full": {"w": full}})
    assert found.directions["w"] == 4
    # Its only direction is the last of the other's, who keeps its first four.
    assert float(found.overlap["w"][0, 1]) == pytest.approx(0, abs=1e-9)
    assert float(found.overlap["w"][0, 0]) == pytest.approx(25)


def test_vectors_and_biases_are_no_layers_and_kernels_are_matrices() -> None:
    found = pairwise_interference(vectors())
    for name in MEASURES:
        assert list(getattr(found, name)) == [ALL, "layer1.weight", "conv.weight"]
    assert list(found.directions) == ["layer1.weight", "conv.weight"]
    assert found.tasks == tuple(NAMES)
    for name in MEASURES:
        for one in getattr(found, name).values():
            assert one.shape == (8, 8)
            torch.testing.assert_close(one, one.mT)


def test_a_task_that_did_not_move_is_in_conflict_with_nobody() -> None:
    found = pairwise_interference(of_one_layer([[0.0, 0], [0, 0]], [[1.0, 2], [3, 4]], [[1.0, 2], [3, 5]]))
    for name in MEASURES:
        table = getattr(found, name)["w"]
        assert torch.isnan(table[0]).all()
        assert torch.isfinite(table[1:, 1:]).all()
        drawing = draw_interference(found, layer="w", measure=name)
        assert "task 0" not in drawing.words
        assert [text.get_text() for text in drawing.figure.axes[0].texts].count("–") == 4


def test_where_nobody_moved_that_is_said_and_drawn() -> None:
    found = pairwise_interference(of_one_layer([[0.0, 0], [0, 0]], [[0.0, 0], [0, 0]]))
    for name in MEASURES:
        drawing = draw_interference(found, layer="w", measure=name)
        assert drawing.words == "In w no two tasks have task vectors that can be compared."
        assert all(math.isnan(value) for value in drawing.numbers.values())


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("layer", [ALL, "layer1.weight", "conv.weight"])
def test_the_map_is_what_was_measured_and_says_so_in_every_cell(layer: str, measure: str) -> None:
    found = interfering()
    drawing = draw_interference(found, layer=layer, measure=measure, titles=TITLES)
    values = getattr(found, measure)[layer].numpy()
    axes = drawing.figure.axes[0]
    shown = np.ma.filled(axes.images[0].get_array(), math.nan)
    off = ~np.eye(8, dtype=bool)
    np.testing.assert_array_equal(shown[off], values[off])
    assert np.isnan(np.diag(shown)).all()
    digits = 2 if measure == "cosine" else 0
    for text in axes.texts:
        column, row = (int(one) for one in text.get_position())
        assert float(text.get_text().replace("−", "-")) == pytest.approx(values[row, column], abs=0.51 * 10**-digits)
    assert len(axes.texts) == 56
    assert [tick.get_text() for tick in axes.get_yticklabels()] == list(TITLES.values())


@pytest.mark.parametrize("measure", MEASURES)
def test_the_words_name_both_ends_with_their_numbers(measure: str) -> None:
    found = interfering()
    values = {pair: float(getattr(found, measure)["conv.weight"][pair]) for pair in itertools.combinations(range(8), 2)}
    low, high = min(values, key=values.get), max(values, key=values.get)
    alike, apart = (low, high) if measure == "conflict" else (high, low)
    words = draw_interference(found, layer="conv.weight", measure=measure, titles=TITLES).words
    least, most = words.split("most alike")
    for (i, j), part in ((apart, least), (alike, most)):
        assert f"{TITLES[NAMES[i]]} and {TITLES[NAMES[j]]} (" in part
        number = f"{values[i, j]:.2f}".replace("-", "−") if measure == "cosine" else f"{values[i, j]:.0f} %"
        assert f"({number})" in part


def test_nobody_is_called_in_conflict_where_nobody_is() -> None:
    alike = pairwise_interference(of_one_layer([[1.0, 2], [3, 4]], [[2.0, 2], [3, 4]], [[1.0, 1], [3, 4]]))
    for name in MEASURES:
        assert "conflict" not in draw_interference(alike, layer="w", measure=name).words
    against = pairwise_interference(of_one_layer([[1.0, 2], [3, 4]], [[-2.0, -2], [3, -4]], [[1.0, 1], [3, 4]]))
    assert "most in conflict are task 0 and task 1 (−" in draw_interference(against, layer="w").words
    assert "most in conflict are" in draw_interference(against, layer="w", measure="conflict").words


def test_two_tasks_are_one_pair() -> None:
    words = draw_interference(pairwise_interference(vectors(2)), layer="conv.weight").words
    assert words.startswith(
        "In conv.weight, by cosine the only pair that can be compared is digits-upright and digits-rotated45 ("
    )


def test_colours_mean_the_same_in_every_layer() -> None:
    for measure in MEASURES:
        pictures = [
            draw_interference(interfering(), layer=layer, measure=measure).figure.axes[0].images[0]
            for layer in (ALL, "layer1.weight", "conv.weight")
        ]
        assert len({picture.get_clim() for picture in pictures}) == 1


def test_the_words_of_all_layers_speak_of_no_single_layer() -> None:
    words = {name: draw_interference(interfering(), layer=ALL, measure=name).words for name in MEASURES}
    assert all(one.startswith("Over all layers together, by ") for one in words.values())
    chance = f"{interfering().chance[ALL]:.0f} %"
    assert f"two random subspaces of as many directions in each would overlap by {chance}" in words["overlap"]


def test_numbers_have_the_same_names_for_every_layer_and_measure() -> None:
    found = interfering()
    made = [draw_interference(found, layer=layer, measure=name) for layer in found.cosine for name in MEASURES]
    assert len({tuple(one.numbers) for one in made}) == 1
    off = found.cosine["conv.weight"][~torch.eye(8, dtype=torch.bool)]
    assert made[-1].numbers["lowest cosine (−1 to 1)"] == float(off.min())
    assert made[-1].numbers["highest cosine (−1 to 1)"] == float(off.max())


def test_bad_input_is_one_sentence() -> None:
    with pytest.raises(
        ApgdTeachError, match="interference needs two tasks, and there are task vectors of 1; give more"
    ):
        pairwise_interference(vectors(1))
    with pytest.raises(ApgdTeachError, match="'b' has other tensors than that of 'a'; give vectors of one network"):
        pairwise_interference({"a": {"w": torch.ones(2, 2)}, "b": {"w": torch.ones(2, 3)}})
    with pytest.raises(ApgdTeachError, match="no tensor with an output and an input side; give weights"):
        pairwise_interference({"a": {"w": torch.ones(4)}, "b": {"w": torch.ones(4)}})
    with pytest.raises(
        ApgdTeachError, match="no measure 'angle' of interference; use one of: cosine, conflict, overlap"
    ):
        draw_interference(interfering(), layer="conv.weight", measure="angle")
    with pytest.raises(ApgdTeachError, match=r"not measured in 'head'; there are: all layers together, layer1"):
        draw_interference(interfering(), layer="head")


# What a pair costs


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(3)


@pytest.fixture(scope="module")
def costs(pool) -> PairCosts:
    return measure_pairs(Evaluator(pool, images=50), pool.base, pool.experts, progress=False)


def test_every_pair_is_averaged_and_scored_on_its_own_two_tasks(pool, costs) -> None:
    evaluator = Evaluator(pool, images=50)
    assert costs.pairs == tuple(itertools.combinations(NAMES[:3], 2))
    for pair, gap, lost in zip(costs.pairs, costs.gaps, costs.lost, strict=True):
        state = merge(pool.base, {task: pool.experts[task] for task in pair}).state_dict
        merged = [evaluator.score(state, task) for task in pair]
        own = [evaluator.score(pool.experts[task], task) for task in pair]
        assert gap == pytest.approx(np.mean([a.loss - b.loss for a, b in zip(merged, own, strict=True)]), rel=1e-4)
        # The average is added up in another order: an image may tip over.
        assert lost == pytest.approx(
            np.mean([b.accuracy - a.accuracy for a, b in zip(merged, own, strict=True)]), abs=2
        )
    assert costs.kinds == ("digits",) * 3


def test_what_the_weights_say_of_a_pair_is_over_all_layers_together(pool, costs) -> None:
    taus = task_vectors(pool.base, pool.experts)
    found = pairwise_interference(taus)
    lengths = [float(torch.cat([one.flatten() for one in tau.values()]).double().norm()) for tau in taus.values()]
    for place, (i, j) in enumerate(itertools.combinations(range(3), 2)):
        for name in MEASURES:
            assert costs.measures[name][place] == float(getattr(found, name)[ALL][i, j])
        assert costs.lengths[place] == pytest.approx((lengths[i] + lengths[j]) / 2, rel=1e-6)
    assert costs.tier == "bundled tier, test split, 50 a task"


def test_the_table_of_pairs_has_the_ends_of_the_signs_and_of_the_gap() -> None:
    one = pair_costs()
    table = one.table()
    places = [one.end("conflict", alike=True), one.end("conflict", alike=False), one.cheapest, one.dearest]
    assert table.column("pair") == [one.name(place) for place in places]
    assert table.column("gap, nats") == [f"{one.gaps[place]:.2f}" for place in places]
    assert table.column("mean ‖τ‖") == [one.lengths[place] for place in places]
    assert (one.gaps[one.cheapest], one.gaps[one.dearest]) == (min(one.gaps), max(one.gaps))


def test_the_ends_of_a_measure_are_the_pairs_most_and_least_alike() -> None:
    one = pair_costs()
    for name in MEASURES:
        values, alike = one.measures[name], name != "conflict"
        assert values[one.end(name, alike=alike)] == max(values)
        assert values[one.end(name, alike=not alike)] == min(values)
    unmoved = replace(one, measures={**one.measures, "conflict": (math.nan, *one.measures["conflict"][1:])})
    assert 0 not in (unmoved.end("conflict", alike=True), unmoved.end("conflict", alike=False))
    assert math.isnan(unmoved.correlation("conflict"))
    assert "Rank correlation with the gap over 28 pairs: –." in draw_pairs(unmoved).words


def test_the_rank_correlation_is_spearman_s_and_ties_share_their_rank() -> None:
    one = replace(pair_costs(), gaps=tuple(float(i * i) for i in range(28)))
    raised = replace(one, measures={**one.measures, "conflict": tuple(10 + math.sqrt(i) for i in range(28))})
    assert raised.correlation("conflict") == pytest.approx(1)
    ties = replace(one, measures={**one.measures, "conflict": tuple(float(i // 14) for i in range(28))})
    ranks = np.array([6.5] * 14 + [20.5] * 14)
    assert ties.correlation("conflict") == pytest.approx(np.corrcoef(ranks, np.arange(28))[0, 1])
    level = replace(one, measures={**one.measures, "conflict": (1.0,) * 28})
    assert math.isnan(level.correlation("conflict"))


def test_chance_renumbers_the_tasks_and_not_the_pairs() -> None:
    # The gap is large where the first task takes part, and so is the conflict: one renumbering of eight says the same.
    one = pair_costs()
    first = tuple(float(NAMES[0] in pair) for pair in one.pairs)
    told = replace(one, gaps=first, measures={**one.measures, "conflict": first})
    assert told.correlation("conflict") == pytest.approx(1)
    assert told.by_chance("conflict", draws=800) == pytest.approx(100 / 8, abs=4)
    assert told.by_chance("conflict", draws=50) == told.by_chance("conflict", draws=50)


def test_every_pair_is_a_point_and_the_ends_are_ringed_and_named() -> None:
    one = pair_costs()
    drawing = draw_pairs(one)
    axes = drawing.figure.axes[0]
    points = [point for line in axes.lines[:3] for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    assert sorted(points) == sorted(zip(one.measures["conflict"], one.gaps, strict=True))
    ends = [one.end("conflict", alike=True), one.end("conflict", alike=False)]
    rings = [(line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines[3:]]
    assert rings == [(one.measures["conflict"][place], one.gaps[place]) for place in ends]
    for place, word in zip(ends, ("Most alike", "Least alike"), strict=True):
        said = f"{one.measures['conflict'][place]:.0f} %; gap {one.gaps[place]:.2f} nats, {one.lost[place]:.1f} points"
        assert f"{word}: {one.name(place)} ({said} of accuracy lost)" in drawing.words
    assert drawing.numbers["rank correlation with the gap (−1 to 1)"] == one.correlation("conflict")


def test_pairs_by_a_measure_that_there_is_not() -> None:
    with pytest.raises(ApgdTeachError, match="no measure 'angle' of interference; use one of: cosine, conflict, over"):
        draw_pairs(pair_costs(), measure="angle")
