from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch
from torch.func import functional_call, grad, jvp

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import NAMES, TITLES, along, estimates, untrained_pool

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Evaluator, Score
from apgd_teach.figures.gaps import (
    draw_along,
    draw_estimate,
    draw_heat,
    estimated_gaps,
    gap_along,
    gradient_cosines,
    loss_gradients,
    measure_estimates,
    measure_heat,
    merged_layers,
    spearman,
)
from apgd_teach.merging import make_laboratory, merge, task_vectors
from apgd_teach.merging.statedict import relative_norm

# Ranks


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 25, 90], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4, 5], [2, 1, 4, 3, 5], 0.8),  # 1 − 6·4/(5·24)
        ([1, 2, 2, 3], [1, 2, 3, 4], 4.5 / math.sqrt(4.5 * 5)),  # ranks 1, 2.5, 2.5, 4
        ([1, 1, 1], [1, 2, 3], math.nan),
        ([1], [1], math.nan),
        ([], [], math.nan),
        ([1, math.nan, 3], [1, 2, 3], math.nan),
    ],
)
def test_rank_correlations_whose_answer_is_known(one, other, expected: float) -> None:
    assert spearman(one, other) == pytest.approx(expected, nan_ok=True)
    assert spearman(other, one) == pytest.approx(expected, nan_ok=True)


def test_a_rank_correlation_sees_the_order_alone() -> None:
    values = torch.randn(20, generator=torch.Generator().manual_seed(0)).tolist()
    others = torch.randn(20, generator=torch.Generator().manual_seed(1)).tolist()
    assert spearman([math.exp(3 * one) for one in values], others) == pytest.approx(spearman(values, others))


# Estimates, where gap and estimate are known in closed form


@pytest.fixture(scope="module")
def laboratory():
    return make_laboratory(n_tasks=4, out=6, in_=8, seed=1)


def compared(laboratory, merged) -> Comparison:
    """The laboratory's losses as scores of a single image."""
    names = list(laboratory.experts)

    def scores(weights) -> dict[str, Score]:
        return {
            name: Score(torch.tensor([True]), laboratory.loss(j, weights(j)).reshape(1)) for j, name in enumerate(names)
        }

    return Comparison(
        titles={name: name for name in names},
        base=scores(lambda j: laboratory.initial),
        experts=scores(lambda j: laboratory.tuned[j]),
        merged={label: scores(lambda j, w=one.state_dict["weight"]: w) for label, one in merged.items()},
        data_used=dict.fromkeys(merged, "none"),
        tier="",
    )


@pytest.fixture(scope="module")
def measured(laboratory):
    merged = {"average": merge(laboratory.base, laboratory.experts)}
    gradients = {
        name: {"weight": laboratory.gradient(j, laboratory.initial)} for j, name in enumerate(laboratory.experts)
    }
    vectors = task_vectors(laboratory.base, laboratory.experts)
    found = estimated_gaps(laboratory.base, vectors, merged, compared(laboratory, merged), gradients=gradients)
    return found, vectors, merged, gradients


def test_estimates_and_gaps_are_the_laboratorys(laboratory, measured) -> None:
    found, *_ = measured
    weights = {"base": laboratory.initial, "average": laboratory.average()}
    assert list(found.measured) == list(found.data_free) == list(weights)
    for label, weight in weights.items():
        first_order = laboratory.first_order_gap(weight)
        for j, name in enumerate(laboratory.experts):
            tau = laboratory.task_vectors[j]
            free = -float((tau * (weight - laboratory.initial - tau)).sum())
            assert found.data_free[label][name] == pytest.approx(free)
            assert found.with_gradients[label][name] == pytest.approx(float(first_order[j]))
            assert found.measured[label][name] == pytest.approx(float(laboratory.gap(j, weight)))


def test_lengths_and_steps_are_those_of_the_experts_and_of_the_audit(laboratory, measured) -> None:
    found, _, merged, _ = measured
    for name, expert in laboratory.experts.items():
        assert found.lengths[name] == pytest.approx(relative_norm(laboratory.base, expert))
    (row,) = merged["average"].audit.rows
    assert found.steps == pytest.approx({"base": 0.0, "average": row.relative_step})


def test_a_change_is_the_gap_less_the_bases(laboratory, measured) -> None:
    found, *_ = measured
    foretold, changed = found.changes("average")
    step = laboratory.average() - laboratory.initial
    for j in range(4):
        assert foretold[j] == pytest.approx(-float((laboratory.task_vectors[j] * step).sum()))
        lost = laboratory.loss(j, laboratory.average()) - laboratory.loss(j, laboratory.initial)
        assert changed[j] == pytest.approx(float(lost))


def test_merged_layers_are_matrices_of_what_the_merge_merged() -> None:
    base = {"w": torch.zeros(2, 3), "conv": torch.zeros(2, 3, 2, 2), "b": torch.zeros(2)}
    experts = {
        name: {key: torch.full_like(one, x) for key, one in base.items()} for name, x in (("a", 1.0), ("c", 3.0))
    }
    vectors, one = task_vectors(base, experts), merge(base, experts, policy={"w": "keep"})
    found = merged_layers(base, vectors, one)
    assert list(found) == ["conv"]
    stack, update = found["conv"]
    assert (stack.shape, update.shape, stack.dtype) == ((2, 2, 12), (2, 12), torch.float64)
    assert [set(tau.flatten().tolist()) for tau in stack] == [{1.0}, {3.0}]
    assert set(update.flatten().tolist()) == {2.0}
    assert list(merged_layers(base, vectors, one.state_dict)) == ["w", "conv"]


def test_the_bases_estimate_is_twice_its_gap_where_experts_sit_at_their_targets() -> None:
    lab = make_laboratory(n_tasks=3, out=4, in_=6, steps=None)
    gradients = {name: {"weight": lab.gradient(j, lab.initial)} for j, name in enumerate(lab.experts)}
    found = estimated_gaps(lab.base, task_vectors(lab.base, lab.experts), {}, compared(lab, {}), gradients=gradients)
    for name in lab.experts:
        assert found.with_gradients["base"][name] == pytest.approx(2 * found.measured["base"][name])


def test_a_plain_state_dict_counts_its_weights_and_a_merge_the_layers_it_merged() -> None:
    base = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    experts = {name: {"w": x * torch.eye(2), "b": torch.full((2,), x)} for name, x in (("a", 1.0), ("c", 3.0))}
    vectors = task_vectors(base, experts)
    score = {name: Score(torch.tensor([True]), torch.tensor([1.0])) for name in experts}
    one = merge(base, experts)
    kept = merge(base, experts, policy={"w": "keep"})
    merged = {"audited": one, "plain": one.state_dict, "kept": kept}
    known = Comparison(
        dict.fromkeys(experts, ""), score, score, dict.fromkeys(merged, score), dict.fromkeys(merged, "none"), ""
    )
    found = estimated_gaps(base, vectors, merged, known)
    # −⟨1·I, 2·I − 1·I⟩ and −⟨3·I, 2·I − 3·I⟩; biases are averaged and have no part in it.
    assert found.data_free["audited"] == {"a": -2.0, "c": 6.0}
    assert found.data_free["plain"] == found.data_free["audited"]
    assert found.data_free["kept"] == {"a": 0.0, "c": 0.0}
    assert found.with_gradients is None
    gradients = {name: {key: -tensor for key, tensor in tau.items()} for name, tau in vectors.items()}
    every = estimated_gaps(base, vectors, merged, known, gradients=gradients)
    assert every.with_gradients["audited"] == {"a": -4.0, "c": 12.0}


def test_inputs_that_do_not_fit_together_are_refused(laboratory, measured) -> None:
    _, vectors, merged, gradients = measured
    known = compared(laboratory, merged)
    fewer = {name: vectors[name] for name in list(vectors)[:3]}
    with pytest.raises(ApgdTeachError, match="the task vectors are of task 0, task 1, task 2, the measured losses of"):
        estimated_gaps(laboratory.base, fewer, merged, known)
    with pytest.raises(ApgdTeachError, match="the gradients are of no task, the measured losses of task 0"):
        estimated_gaps(laboratory.base, vectors, merged, known, gradients={})
    with pytest.raises(ApgdTeachError, match="'ties' was not compared, so its gap is not known; there are: average"):
        estimated_gaps(laboratory.base, vectors, {"ties": merged["average"]}, known)
    with pytest.raises(ApgdTeachError, match="the gradient of 'task 0' lacks 'weight' in the base's shape"):
        estimated_gaps(laboratory.base, vectors, merged, known, gradients={**gradients, "task 0": {}})


@pytest.mark.parametrize("label", ["base", "average", "task arithmetic"])
def test_a_mark_per_task_stands_at_estimate_and_gap(label: str) -> None:
    one = estimates()
    drawing = draw_estimate(one, label=label)
    for axes, across in zip(drawing.figure.axes, (one.data_free, one.with_gradients), strict=True):
        marks = axes.lines[:8]
        assert [float(mark.get_xdata()[0]) for mark in marks] == list(across[label].values())
        assert [float(mark.get_ydata()[0]) for mark in marks] == list(one.measured[label].values())
        assert [mark.get_label() for mark in marks] == list(TITLES.values())


def test_the_line_of_equality_stands_only_where_both_sides_are_in_nats() -> None:
    free, true = draw_estimate(estimates(), label="average").figure.axes
    assert len(free.lines) == 8
    assert "nats" not in free.get_xlabel()
    (line,) = true.lines[8:]
    assert list(line.get_xdata()) == list(line.get_ydata())
    assert "(nats)" in true.get_xlabel()
    assert len(draw_estimate(estimates(gradients=False), label="average").figure.axes) == 1


def test_the_words_of_an_estimate_are_its_rank_correlations() -> None:
    drawing = draw_estimate(estimates(), label="average")
    worst = estimates().measured["average"][NAMES[-1]]
    assert "rank correlation of −1.00" in drawing.words
    assert "the correlation is 1.00" in drawing.words
    assert f"that of {TITLES[NAMES[-1]]}, {worst:.3f} nats, number 8 from the top by the estimate" in drawing.words
    assert drawing.numbers["rank correlation, data-free (−1 to 1)"] == pytest.approx(-1)
    assert drawing.numbers["largest gap (nats)"] == worst
    bare = draw_estimate(estimates(gradients=False), label="average")
    assert "gradients" not in bare.words
    assert math.isnan(bare.numbers["rank correlation, true gradients (−1 to 1)"])


def test_a_correlation_that_is_not_defined_is_said_to_be() -> None:
    flat = replace(estimates(False), measured={"base": dict.fromkeys(NAMES, 0.5)})
    assert "rank correlation of –, not defined," in draw_estimate(flat, label="base").words


def test_numbers_of_an_estimate_have_the_same_names_for_every_label() -> None:
    made = [draw_estimate(estimates(given), label=label) for given in (True, False) for label in estimates().measured]
    assert len({tuple(one.numbers) for one in made}) == 1


def test_a_label_that_was_not_estimated_is_refused() -> None:
    with pytest.raises(ApgdTeachError, match="nothing called 'ties' was estimated; there are: base, average"):
        draw_estimate(estimates(), label="ties")


# Along the way


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(2)


@pytest.fixture(scope="module")
def evaluator(pool) -> Evaluator:
    return Evaluator(pool, images=40)


@pytest.fixture(scope="module")
def walked(pool, evaluator):
    return gap_along(evaluator, pool.base, merge(pool.base, pool.experts).state_dict, points=3)


def loss_of(pool, evaluator, task: str):
    split, head = pool.tasks[task].test.first(40), pool.head(task).double()
    encoder = pool.encoder().double()

    def loss(state):
        logits = head(functional_call(encoder, state, (split.images.double(),)))
        return torch.nn.functional.cross_entropy(logits, split.labels)

    return loss, {key: one.double() for key, one in pool.base.items()}


def test_the_gap_along_the_way_is_the_evaluators(pool, evaluator, walked) -> None:
    merged = merge(pool.base, pool.experts).state_dict
    assert walked.steps == (0, 0.5, 1)
    for task in pool.tasks:
        expert = evaluator.score(pool.experts[task], task).loss
        ends = [evaluator.score(state, task).loss - expert for state in (pool.base, merged)]
        assert [walked.gaps[task][0], walked.gaps[task][-1]] == pytest.approx(ends, rel=1e-4)
    assert walked.titles == {task: TITLES[task] for task in pool.tasks}


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning")
def test_slope_and_curvature_are_those_of_forward_differentiation_in_double(pool, evaluator, walked) -> None:
    merged = merge(pool.base, pool.experts).state_dict
    for task in pool.tasks:
        loss, base = loss_of(pool, evaluator, task)
        update = {key: merged[key].double() - one for key, one in base.items()}
        gradient, turned = jvp(grad(loss), (base,), (update,))
        slope, curvature = (float(sum((of[key] * update[key]).sum() for key in base)) for of in (gradient, turned))
        assert walked.slopes[task] == pytest.approx(slope, rel=1e-3)
        assert walked.curvatures[task] == pytest.approx(curvature, rel=1e-3)


def test_gradients_are_those_in_double(pool, evaluator) -> None:
    found = loss_gradients(evaluator, pool.base)
    assert list(found) == list(pool.tasks)
    for task, one in found.items():
        loss, base = loss_of(pool, evaluator, task)
        for key, expected in grad(loss)(base).items():
            # A sum over images of both signs keeps the digits of its terms: how many depends on the processor.
            least = 1e-4 * float(expected.abs().max())
            torch.testing.assert_close(one[key].double(), expected, rtol=1e-3, atol=least)


def test_estimates_of_a_pool_are_those_of_its_scores_and_gradients(pool, evaluator) -> None:
    merged = {"average": merge(pool.base, pool.experts)}
    found = measure_estimates(pool, merged, images=40)
    gradients = loss_gradients(evaluator, pool.base)
    vectors = task_vectors(pool.base, pool.experts)
    for task in pool.tasks:
        gap = evaluator.score(merged["average"].state_dict, task).loss - evaluator.score(pool.experts[task], task).loss
        assert found.measured["average"][task] == pytest.approx(gap, rel=1e-5)
        line = -sum(float((gradients[task][key] * tau).sum()) for key, tau in vectors[task].items())
        assert found.with_gradients["base"][task] == pytest.approx(line, rel=1e-3)
    turned = {task: {key: -one for key, one in of.items()} for task, of in gradients.items()}
    other = measure_estimates(pool, merged, images=40, gradients=turned)
    assert other.with_gradients["base"] == pytest.approx(
        {task: -one for task, one in found.with_gradients["base"].items()}
    )


# How much of a gradient a task vector is


def test_the_cosine_is_one_where_a_task_vector_is_a_step_down_the_gradient() -> None:
    gradients = {"a": {"w": torch.tensor([[3.0, 0.0]]), "v": torch.tensor([[0.0, 4.0]]), "b": torch.tensor([9.0])}}
    down = {"a": {key: -0.1 * one for key, one in gradients["a"].items()}}
    assert gradient_cosines(down, gradients) == pytest.approx({"w": 1, "v": 1, "all of them": 1})
    aside = {"a": {"w": torch.tensor([[0.0, 5.0]]), "v": torch.tensor([[0.0, -4.0]]), "b": torch.tensor([1.0])}}
    # Over both layers: 16 of √(25 + 16)·√(9 + 16).
    expected = {"w": 0, "v": 1, "all of them": 16 / math.sqrt(41 * 25)}
    assert gradient_cosines(aside, gradients) == pytest.approx(expected)


def test_cosines_are_means_over_the_tasks_that_are_asked_for() -> None:
    gradient = {"w": torch.tensor([[1.0, 0.0]])}
    vectors = {
        "a": {"w": torch.tensor([[-2.0, 0.0]])},
        "c": {"w": torch.tensor([[2.0, 0.0]])},
        "d": {"w": torch.zeros(1, 2)},
    }
    gradients = dict.fromkeys(vectors, gradient)
    assert gradient_cosines(vectors, gradients, ["a", "c"])["w"] == pytest.approx(0)
    assert gradient_cosines(vectors, gradients, ["a"])["all of them"] == pytest.approx(1)
    assert math.isnan(gradient_cosines(vectors, gradients, ["d"])["w"])


def test_a_task_without_vector_or_gradient_is_refused() -> None:
    one = {"a": {"w": torch.eye(2)}}
    with pytest.raises(ApgdTeachError, match="a gradient for every task; 'a' lacks one of them"):
        gradient_cosines(one, {})
    with pytest.raises(ApgdTeachError, match="there is no task"):
        gradient_cosines({}, one)


def test_a_walk_of_another_network_or_task_is_refused(pool, evaluator) -> None:
    with pytest.raises(ApgdTeachError, match=r"not one of the network 'mlp': 'layer1\.weight' has .* missing here"):
        loss_gradients(evaluator, {key: one for key, one in pool.base.items() if key != "layer1.weight"})
    with pytest.raises(ApgdTeachError, match="this pool has no task 'cats'"):
        gap_along(evaluator, pool.base, pool.base, ["cats"])
    with pytest.raises(ApgdTeachError, match="points must be at least 2, not 1"):
        gap_along(evaluator, pool.base, pool.base, points=1)


@pytest.mark.parametrize(("task", "share"), [("all", 0.5), (NAMES[2], 0.75)])
def test_the_three_lines_are_gap_tangent_and_parabola(task: str, share: float) -> None:
    one = along()
    drawing = draw_along(one, share=share, task=task)
    zero, gap, tangent, parabola, chosen, ring = drawing.figure.axes[0].lines
    chosen_tasks = NAMES if task == "all" else [task]
    expected = np.mean([one.gaps[name] for name in chosen_tasks], axis=0)
    np.testing.assert_allclose(gap.get_ydata(), expected)
    np.testing.assert_allclose(tangent.get_ydata(), expected[0] - 0.5 * np.array(one.steps))
    across = np.array(parabola.get_xdata())
    np.testing.assert_allclose(parabola.get_ydata(), expected[0] - 0.5 * across + 0.4 * across**2)
    assert set(zero.get_ydata()) == {0}
    assert set(chosen.get_xdata()) == {share}
    values = list(drawing.numbers.values())
    assert list(ring.get_ydata()) == values
    place = one.steps.index(share)
    at = [expected[place], expected[0] - 0.5 * share, expected[0] - 0.5 * share + 0.4 * share**2]
    assert values == pytest.approx(at)
    for value in values:
        assert f"{value:.3f}".replace("-", "−") in drawing.words
    assert (TITLES[task] if task != "all" else "mean over 8 tasks") in drawing.words


def test_the_mean_of_a_way_is_over_its_tasks() -> None:
    one = along()
    assert one.mean == pytest.approx(np.mean(list(one.gaps.values()), axis=0))


def test_numbers_along_the_way_have_the_same_names_everywhere() -> None:
    made = [draw_along(along(), share=share, task=task) for share in along().steps for task in ("all", NAMES[0])]
    assert len({tuple(one.numbers) for one in made}) == 1


def test_a_share_or_task_that_was_not_measured_is_refused() -> None:
    with pytest.raises(
        ApgdTeachError, match=r"nothing was measured at a share of the way = 0\.3; take one of: 0, 0\.25"
    ):
        draw_along(along(), share=0.3)
    with pytest.raises(ApgdTeachError, match="nothing was measured on the task 'cats'; take 'all' or one of: digits"):
        draw_along(along(), share=0.5, task="cats")


def test_a_parabola_far_above_the_gap_leaves_the_picture() -> None:
    (axes,) = draw_along(replace(along(), curvatures=dict.fromkeys(NAMES, 300.0)), share=0.5).figure.axes
    _, gap, tangent, parabola, *_ = axes.lines
    low, high = axes.get_ylim()
    assert low < min(*gap.get_ydata(), *tangent.get_ydata())
    assert max(*gap.get_ydata(), *tangent.get_ydata()) < high < 3 < max(parabola.get_ydata())
    (axes,) = draw_along(along(), share=0.5).figure.axes
    assert axes.get_ylim()[1] > max(max(line.get_ydata()) for line in axes.lines[1:4])


# By learning rate


def heated(factor: float, seed: int):
    """Estimates of which some numbers are known: the base's estimate is `factor` times its gap."""
    draws = torch.Generator().manual_seed(seed)

    def drawn() -> dict[str, float]:
        return dict(zip(NAMES, torch.rand(len(NAMES), generator=draws).tolist(), strict=True))

    base = drawn()
    free, true, measured = ({"base": given, "average": drawn()} for given in (drawn(), base, base))
    true["base"] = {task: factor * gap for task, gap in base.items()}
    return replace(estimates(), data_free=free, with_gradients=true, measured=measured)


def test_heat_is_the_bases_ratio_and_the_orders_of_gaps_and_changes() -> None:
    given = {0.2: heated(4.0, 1), 0.01: heated(1.5, 2)}
    heat = measure_heat(given)
    assert heat.rates == (0.01, 0.2)
    assert heat.ratios == pytest.approx((1.5, 4.0))
    for i, rate in enumerate(heat.rates):
        one = given[rate]

        def change(of) -> list[float]:
            return [of["average"][task] - of["base"][task] for task in NAMES]

        free, gap = (list(of["average"].values()) for of in (one.data_free, one.measured))
        assert heat.gaps[i] == pytest.approx(spearman(free, gap))
        assert heat.changes[i] == pytest.approx(spearman(change(one.data_free), change(one.measured)))
        with_gradients = spearman(change(one.with_gradients), change(one.measured))
        assert heat.changes_with_gradients[i] == pytest.approx(with_gradients)


def test_the_table_of_heat_has_the_gaps_beside_their_estimates_and_how_far_all_went() -> None:
    one = replace(heated(4.0, 1), lengths=dict.fromkeys(NAMES, 0.25), steps={"base": 0.0, "average": 0.4})
    heat = measure_heat({0.2: one, 0.01: heated(1.5, 2)})
    gentle, hot = heat.table().rows
    assert gentle[0] == "0.01"
    assert all(math.isnan(one) for one in gentle[1:3])
    assert hot[:3] == ("0.2", 25, 40)
    assert heat.lengths[1] == pytest.approx(25)
    expected = [
        np.mean(list(of[label].values())) for label in ("base", "average") for of in (one.measured, one.with_gradients)
    ]
    assert hot[3:7] == pytest.approx(expected)
    assert hot[4] == pytest.approx(4 * hot[3])


def test_the_wrong_direction_is_counted_task_by_task() -> None:
    flat = dict.fromkeys(NAMES, 0.5)
    helped, harmed = ({**flat, **dict.fromkeys(NAMES[:3], value)} for value in (0.4, 0.6))
    says = {"base": flat, "average": helped}
    does = {"base": flat, "average": {**harmed, NAMES[0]: 0.4}}
    one = replace(estimates(), with_gradients=says, measured=does)
    heat = measure_heat({0.1: one})
    assert heat.wrong == (2,)
    assert heat.table().column("wrong direction") == ["2 of 8"]


def test_heat_is_drawn_at_its_rates_with_the_right_answers_beside_it() -> None:
    heat = measure_heat({0.01: heated(1.5, 2), 0.2: heated(4.0, 1)})
    drawing = draw_heat(heat)
    left, right = drawing.figure.axes
    exact, parabola, ratio = left.lines
    assert (set(exact.get_ydata()), set(parabola.get_ydata())) == ({1}, {2})
    assert (tuple(ratio.get_xdata()), tuple(ratio.get_ydata())) == (heat.rates, heat.ratios)
    drawn = [tuple(line.get_ydata()) for line in right.lines[2:]]
    assert drawn == [heat.gaps, heat.changes, heat.changes_with_gradients]
    assert "at 0.2 the estimate of the base's gap is 4.0 times the measured one" in drawing.words
    assert f"{heat.changes[0]:.2f}".replace("-", "−") + " (change, without data)" in drawing.words
    assert drawing.numbers["rank correlation at 0.01, gap, without data (−1 to 1)"] == heat.gaps[0]


def test_heat_wants_estimates_with_gradients_and_a_label_that_is_there() -> None:
    with pytest.raises(ApgdTeachError, match="give one for each learning rate"):
        measure_heat({})
    with pytest.raises(ApgdTeachError, match=r"at learning rate 0\.01 lack gradients"):
        measure_heat({0.01: estimates(gradients=False)})
    with pytest.raises(ApgdTeachError, match=r"nothing called 'ties' was estimated at learning rate 0\.01"):
        measure_heat({0.01: estimates()}, label="ties")
