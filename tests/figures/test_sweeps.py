from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path as File

import numpy as np
import pytest
import torch

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import NAMES, TITLES, comparison, swept, untrained_pool

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Difference, Evaluator, Score
from apgd_teach.figures.sweeps import Sweep, draw_methods, draw_sweep, draw_tradeoff, place_of, sweep
from apgd_teach.merging import merge, task_vectors


def line(drawing, label: str):
    (found,) = [one for one in drawing.figure.axes[0].lines if one.get_label() == label]
    return found


# The sweep


@pytest.fixture(scope="module")
def pool():
    return untrained_pool(2)


@pytest.fixture(scope="module")
def evaluator(pool) -> Evaluator:
    return Evaluator(pool, images=60)


@pytest.fixture(scope="module")
def measured(pool, evaluator) -> Sweep:
    vectors = task_vectors(pool.base, pool.experts)
    return sweep(evaluator, pool.base, vectors, [1.0, 0.0], progress=False)


def test_a_sweep_scores_the_base_and_lambda_times_all_steps_in_every_tensor(pool, evaluator, measured) -> None:
    assert measured.coefficients == (0.0, 0.5, 1.0)
    vectors = task_vectors(pool.base, pool.experts).values()
    for place, coefficient in enumerate(measured.coefficients):
        state = {key: one + coefficient * sum(tau[key] for tau in vectors) for key, one in pool.base.items()}
        for task in pool.tasks:
            assert measured.accuracies[task][place] == evaluator.score(state, task).accuracy
            gap = evaluator.score(state, task).loss - evaluator.score(pool.experts[task], task).loss
            assert measured.gaps[task][place] == pytest.approx(gap, abs=1e-5)
    assert measured.accuracies == {task: (measured.base[task], *of[1:]) for task, of in measured.accuracies.items()}


def test_one_over_the_number_of_tasks_is_measured_unasked_and_is_the_average(pool, evaluator, measured) -> None:
    average = merge(pool.base, pool.experts).state_dict
    place = place_of(measured.coefficients, 1 / 2, "λ")
    for task in pool.tasks:
        # The experts are put together again from their task vectors: an image may tip over.
        assert measured.accuracies[task][place] == pytest.approx(evaluator.score(average, task).accuracy, abs=2)


def test_base_experts_and_interval_are_those_of_the_evaluator(pool, evaluator, measured) -> None:
    base, own = evaluator.scores(pool.base), evaluator.experts()
    assert measured.base == {task: score.accuracy for task, score in base.items()}
    assert measured.experts == pytest.approx({task: score.accuracy for task, score in own.items()}, abs=2)
    for mean, difference in zip(measured.means, measured.against, strict=True):
        assert difference.points == pytest.approx(mean - sum(measured.base.values()) / 2, abs=1e-4)
    assert measured.against[-1].margin > 0
    assert measured.titles == {task: TITLES[task] for task in pool.tasks}


def test_a_sweep_without_the_base_among_its_coefficients_is_held_against_it_all_the_same(pool, evaluator) -> None:
    vectors = task_vectors(pool.base, pool.experts)
    one = sweep(evaluator, pool.base, vectors, [1.0], progress=False)
    assert one.coefficients == (0.5, 1.0)
    assert one.base == {task: score.accuracy for task, score in evaluator.scores(pool.base).items()}


def test_a_sweep_of_nothing_or_of_other_tasks_is_refused(pool, evaluator) -> None:
    vectors = task_vectors(pool.base, pool.experts)
    with pytest.raises(ApgdTeachError, match="no merging coefficient shows nothing"):
        sweep(evaluator, pool.base, vectors, [], progress=False)
    with pytest.raises(ApgdTeachError, match=f"task vectors of {NAMES[0]} and images of {NAMES[0]}, {NAMES[1]}; give"):
        sweep(evaluator, pool.base, {NAMES[0]: vectors[NAMES[0]]}, [0.1], progress=False)
    with pytest.raises(ApgdTeachError, match="coefficient = nan; give a finite number"):
        sweep(evaluator, pool.base, vectors, [math.nan], progress=False)


def test_the_mean_and_the_worst_task_are_drawn_at_every_coefficient() -> None:
    one = swept()
    drawing = draw_sweep(one, coefficient=0.3)
    every = np.array(list(one.accuracies.values()))
    np.testing.assert_allclose(line(drawing, "mean over tasks").get_ydata(), every.mean(axis=0))
    np.testing.assert_allclose(line(drawing, "worst task").get_ydata(), every.min(axis=0))
    assert list(line(drawing, "mean over tasks").get_xdata()) == list(one.coefficients)
    assert set(line(drawing, "base's mean").get_ydata()) == {81.0}
    assert set(line(drawing, "experts' mean").get_ydata()) == {90.0}
    thin = [list(x.get_ydata()) for x in drawing.figure.axes[0].lines if x.get_color() == "#B5B5B5"]
    assert thin == [list(values) for values in one.accuracies.values()]


@pytest.mark.parametrize("coefficient", [0.0, 0.125, 0.3, 0.1 + 0.2])
def test_the_chosen_coefficient_and_the_average_are_marked(coefficient: float) -> None:
    one = swept()
    drawing = draw_sweep(one, coefficient=coefficient)
    place = place_of(one.coefficients, coefficient, "λ")
    assert set(line(drawing, "λ shown").get_xdata()) == {one.coefficients[place]}
    assert list(line(drawing, "average (λ = 1/8)").get_xdata()) == [1 / 8]
    assert list(line(drawing, "average (λ = 1/8)").get_ydata()) == [one.means[2]]
    ring = drawing.figure.axes[0].lines[-1]
    assert list(ring.get_ydata()) == [one.means[place], one.worst[place][1]]


def test_the_words_of_a_sweep_are_its_numbers() -> None:
    one = swept()
    drawing = draw_sweep(one, coefficient=0.4)
    task, accuracy = one.worst[-1]
    assert f"At λ = 0.4 the mean accuracy is {one.means[-1]:.1f} %, 2.6 ± 0.5 points below the base's 81.0 %;" in (
        drawing.words
    )
    assert f"the worst task is {TITLES[task]} with {accuracy:.1f} %" in drawing.words
    assert f"the average (λ = 1/8) has {one.means[2]:.1f} %" in drawing.words
    assert drawing.numbers["mean accuracy (%)"] == one.means[-1]
    assert drawing.numbers["worst task (%)"] == accuracy
    assert drawing.numbers["against the base (points)"] == pytest.approx(-2.6)


def test_words_say_above_below_and_when_that_cannot_be_told() -> None:
    assert "1.0 ± 0.5 points above the base's 81.0 %;" in draw_sweep(swept(), coefficient=0).words
    assert (
        "0.1 ± 0.5 points above the base's 81.0 % (no difference seen);" in draw_sweep(swept(), coefficient=0.1).words
    )
    alone = replace(swept(), against=(Difference(-3.0, math.nan),) * 6)
    assert "3.0 points below the base's 81.0 % (no difference seen);" in draw_sweep(alone, coefficient=0.1).words


def test_numbers_of_a_sweep_have_the_same_names_everywhere_on_the_slider() -> None:
    names = [list(draw_sweep(swept(), coefficient=one).numbers) for one in swept().coefficients]
    assert all(one == names[0] for one in names)


def test_a_coefficient_that_was_not_measured_is_refused() -> None:
    with pytest.raises(ApgdTeachError, match=r"nothing was measured at λ = 0\.35; take one of: 0, 0\.1, 0\.125, 0\.2"):
        draw_sweep(swept(), coefficient=0.35)


def test_the_length_of_a_sweep_is_that_of_all_steps_together(pool, measured) -> None:
    vectors = list(task_vectors(pool.base, pool.experts).values())
    total = torch.cat([sum(tau[key] for tau in vectors).flatten() for key in pool.base])
    assert measured.length == pytest.approx(float(total.double().norm()), rel=1e-6)


# The trade-off


def test_a_task_s_own_coefficient_is_that_of_its_smallest_gap_and_the_common_one_that_of_the_mean() -> None:
    one = swept()
    assert list(one.own.values()) == [0.1, 0.125, 0.2, 0.3] * 2
    mean = np.array(list(one.gaps.values())).mean(axis=0)
    assert one.common == one.coefficients[int(mean.argmin())] == 0.2


def test_the_span_reaches_from_the_smallest_wish_to_the_largest() -> None:
    assert swept().span == (0.1, 0.3)


def test_the_two_tasks_most_at_stake_pay_most_at_each_other_s_coefficient() -> None:
    one = swept()
    low, high = one.at_stake
    assert (one.own[low], one.own[high]) == (0.1, 0.3)
    # Here a task at 0.125 would pay a hundred times as much at 0.2, where its partner pays nothing for being at 0.125.
    gaps = dict(one.gaps)
    gaps[NAMES[1]] = tuple(0.1 + 400 * (x - 0.125) ** 2 for x in one.coefficients)
    assert replace(one, gaps=gaps).at_stake == (NAMES[1], NAMES[3])


def test_nobody_is_at_stake_in_a_sweep_of_one_task() -> None:
    one = replace(swept(), gaps={NAMES[0]: swept().gaps[NAMES[0]]})
    with pytest.raises(ApgdTeachError, match="sweep of one task; sweep two or more"):
        _ = one.at_stake


def test_the_rules_take_the_highest_mean_and_the_highest_worst_task_and_the_smaller_of_equals() -> None:
    accuracies = {NAMES[0]: (50.0, 60.0, 60.0, 90.0, 50.0, 50.0), NAMES[1]: (50.0, 70.0, 70.0, 55.0, 50.0, 50.0)}
    assert replace(swept(), accuracies=accuracies).by_rule == {"highest mean": 0.2, "highest worst task": 0.1}


def test_every_task_s_own_coefficient_is_marked_and_the_span_between_them() -> None:
    one = swept()
    axes = draw_tradeoff(one).figure.axes[0]
    places = set()
    for i, (task, gaps) in enumerate(one.gaps.items()):
        # Two lines per task, after that of the smallest mean: the whole course, and the mark.
        course, mark = axes.lines[1 + 2 * i : 3 + 2 * i]
        assert list(course.get_ydata()) == [gap - min(gaps) for gap in gaps]
        assert list(mark.get_xdata()) == [one.own[task]]
        (height,) = mark.get_ydata()
        assert 0 <= height < 0.5 * axes.get_ylim()[1]
        places.add((one.own[task], height))
        assert course.get_label() == one.titles[task]
    # None hides another, and the first of each stands on the axis.
    assert len(places) == len(one.gaps) > len(set(one.own.values()))
    assert {where for where, height in places if height == 0} == set(one.own.values())
    assert set(axes.lines[0].get_xdata()) == {0.2}
    (span,) = axes.patches
    assert (span.get_x(), span.get_x() + span.get_width()) == pytest.approx((0.1, 0.3))


def test_the_words_of_a_trade_off_are_its_numbers() -> None:
    drawing = draw_tradeoff(swept())
    assert (
        f"They reach from 0.1 ({TITLES[NAMES[0]]}) to 0.3 ({TITLES[NAMES[3]]}); the mean gap is smallest at 0.2."
        in (drawing.words)
    )
    assert drawing.numbers == {f"{TITLES[name]} (its λ)": value for name, value in swept().own.items()}
    agreed = replace(swept(), gaps=dict.fromkeys(NAMES, (0.3, 0.2, 0.1, 0.2, 0.3, 0.4)))
    drawing = draw_tradeoff(agreed)
    assert "All tasks want the same; the mean gap is smallest at 0.125." in drawing.words
    assert not drawing.figure.axes[0].patches


@pytest.mark.parametrize("best", [0, 5])
def test_a_coefficient_at_an_end_of_the_sweep_is_drawn_too(best: int) -> None:
    gaps = tuple(0.1 * abs(place - best) for place in range(6))
    drawing = draw_tradeoff(replace(swept(), gaps=dict.fromkeys(NAMES, gaps)))
    left, right = drawing.figure.axes[0].get_xlim()
    assert left <= swept().coefficients[best] <= right
    assert left < right


# Methods


def test_methods_stand_in_the_order_of_their_mean_on_every_task() -> None:
    one = comparison()
    best_first = sorted(one.merged, key=lambda label: -one.average(label))
    assert best_first[0] == "apgd"
    for task in ("all", NAMES[0], NAMES[-1]):
        axes = draw_methods(one, task=task).figure.axes[0]
        assert [tick.get_text() for tick in axes.get_yticklabels()] == [
            f"{label}  (data: {one.data_used[label]})" for label in best_first
        ]


@pytest.mark.parametrize("task", ["all", NAMES[3]])
def test_marks_and_bars_of_methods_are_accuracy_and_interval(task: str) -> None:
    one = comparison()
    drawing = draw_methods(one, task=task)
    alone = (
        one
        if task == "all"
        else replace(
            one,
            titles={},
            **{part: {task: getattr(one, part)[task]} for part in ("base", "experts")},
            merged={label: {task: scores[task]} for label, scores in one.merged.items()},
        )
    )
    found = {}
    for bars in drawing.figure.axes[0].containers:
        marks, _, (pieces,) = bars
        for x, row, segment in zip(marks.get_xdata(), marks.get_ydata(), pieces.get_segments(), strict=True):
            found[row] = (x, segment[0][0], segment[1][0])
    order = sorted(one.merged, key=lambda label: -one.average(label))
    for row, label in enumerate(order):
        x, low, high = found[row]
        margin = alone.against(label).margin
        assert x == pytest.approx(alone.average(label))
        assert (low, high) == pytest.approx((x - margin, x + margin))
        assert drawing.numbers[f"{label} (%)"] == pytest.approx(x)
    base, experts = (set(one.get_xdata()) for one in drawing.figure.axes[0].lines[:2])
    assert (base, experts) == ({alone.average("base")}, {alone.average("experts")})


def test_methods_that_used_data_have_another_mark() -> None:
    marks = [bars[0] for bars in draw_methods(comparison()).figure.axes[0].containers]
    assert len(marks) == 2
    assert len({one.get_marker() for one in marks}) == 2
    assert len({one.get_color() for one in marks}) == 2


def test_the_second_scale_is_the_share_of_the_gap_recovered() -> None:
    one = comparison()
    drawing = draw_methods(one)
    below, above = (axes.get_xlim() for axes in drawing.figure.axes)
    room = one.average("experts") - one.average("base")
    assert above == pytest.approx([100 * (x - one.average("base")) / room for x in below])
    assert f"{one.recovered_words('apgd')} % of the gap" in drawing.words


def test_without_a_gap_nothing_is_recovered() -> None:
    one = comparison()
    drawing = draw_methods(replace(one, experts=one.base))
    assert len(drawing.figure.axes) == 1
    assert "of the gap" not in drawing.words


def test_the_words_of_methods_name_the_best_and_count_the_verdicts() -> None:
    one = comparison()
    words = draw_methods(one).words
    assert f"In the mean over 8 tasks apgd is most accurate with {one.average('apgd'):.1f} %" in words
    assert f"{one.against('apgd')} points against the base's {one.average('base'):.1f} %" in words
    verdicts = [one.against(label).verdict for label in one.merged]
    assert f"{verdicts.count('better')} are seen to be better than the base" in words
    assert f"for {verdicts.count('no difference seen')} no difference is seen" in words
    assert draw_methods(one, task=NAMES[0]).words.startswith(f"On {TITLES[NAMES[0]]} ")


def test_one_image_has_no_interval_and_is_drawn_all_the_same() -> None:
    one = comparison(images=1)
    lone = {task: Score(torch.tensor([True]), torch.tensor([0.1])) for task in NAMES}
    words = draw_methods(replace(one, experts=lone)).words
    assert "± –" in words
    assert "for 4 no difference is seen" in words


def test_numbers_of_methods_have_the_same_names_for_every_task() -> None:
    names = [list(draw_methods(comparison(), task=task).numbers) for task in ("all", *NAMES)]
    assert all(one == names[0] for one in names)


def test_an_unknown_task_and_no_method_are_refused() -> None:
    with pytest.raises(ApgdTeachError, match="nothing was compared on the task 'cats'; take 'all' or digits-upright"):
        draw_methods(comparison(), task="cats")
    with pytest.raises(ApgdTeachError, match="no method was compared; give `compare`"):
        draw_methods(comparison(()))
