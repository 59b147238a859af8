"""The laboratory drawn: known points at their places, the path of `descend`, and the shares that merges close."""

from __future__ import annotations

from statistics import median

import numpy as np
import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.gaps import draw_along
from apgd_teach.figures.laboratory import (
    SETTINGS,
    GapClosed,
    LaboratoryPlane,
    draw_gap_closed,
    draw_laboratory,
    laboratory_along,
    measure_gap_closed,
    measure_laboratory,
    measure_overestimates,
)
from apgd_teach.merging import Apgd, make_laboratory

LABORATORY = make_laboratory(out=1, in_=2)


@pytest.fixture(scope="module")
def plane() -> LaboratoryPlane:
    return measure_laboratory(LABORATORY, steps=12)


def test_the_loss_is_the_tasks_total_over_the_grid(plane: LaboratoryPlane) -> None:
    assert plane.loss.shape == (len(plane.y), len(plane.x)) == (81, 81)
    for row, column in ((0, 0), (3, 70), (80, 41)):
        weight = torch.tensor([[plane.x[column], plane.y[row]]], dtype=torch.float64)
        total = sum(float(LABORATORY.loss(task, weight)) for task in range(2))
        assert float(plane.loss[row, column]) == pytest.approx(total)


def test_every_point_lies_within_the_grid_and_distances_are_true(plane: LaboratoryPlane) -> None:
    for x, y in [*plane.places.values(), *plane.path]:
        assert plane.x[0] < x < plane.x[-1]
        assert plane.y[0] < y < plane.y[-1]
    (axes,) = draw_laboratory(plane, steps=3).figure.axes
    assert axes.get_aspect() == 1


def test_gaps_are_those_of_the_known_points(plane: LaboratoryPlane) -> None:
    assert plane.gaps["optimum"] == pytest.approx(float(LABORATORY.total_gap(LABORATORY.optimum())))
    assert plane.gaps["average"] == pytest.approx(float(LABORATORY.total_gap(LABORATORY.average())))
    assert plane.closed["base"] == 0
    assert plane.gaps["optimum"] <= min([*plane.gaps.values(), *plane.path_gaps])
    assert plane.places["expert of task 1"] == pytest.approx(LABORATORY.tuned[1].flatten().tolist())


@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
@pytest.mark.parametrize("seed", [0, 2, 4, 5])
def test_the_path_ends_where_descent_does_at_every_step(granularity: str, seed: int) -> None:
    laboratory = make_laboratory(out=1, in_=2, seed=seed)
    plane = measure_laboratory(laboratory, granularity=granularity, steps=60)
    for steps in (0, 1, 7, 60):
        solved = Apgd(
            granularity=granularity, solver="descent", protect=0.0, power=2.0, flatten=0.0, steps=steps
        ).solve(laboratory.task_vectors)
        arrived = laboratory.initial + solved.update
        assert plane.path[steps] == pytest.approx(tuple(arrived.flatten().tolist()), rel=1e-11)
        assert plane.path_closed[steps] == pytest.approx(float(laboratory.gap_closed(arrived)))
    assert plane.path[0] == plane.places["S"]


def test_the_path_is_drawn_up_to_the_step_and_names_stand_at_their_points(plane: LaboratoryPlane) -> None:
    (axes,) = draw_laboratory(plane, steps=5).figure.axes
    whole, done, *marks = axes.lines
    assert list(zip(*whole.get_data(), strict=True)) == list(plane.path)
    assert list(zip(*done.get_data(), strict=True)) == list(plane.path[:6])
    expected = {**plane.places, "M": plane.path[5]}
    assert [(mark.get_xdata()[0], mark.get_ydata()[0]) for mark in marks] == list(expected.values())
    names = {one.get_text(): one.xy for one in axes.texts if hasattr(one, "xy")}
    assert names == expected


def test_names_of_points_that_stay_do_not_move_with_the_step(plane: LaboratoryPlane) -> None:
    def offsets(steps: int) -> dict[str, tuple[float, float]]:
        (axes,) = draw_laboratory(plane, steps=steps).figure.axes
        return {one.get_text(): one.xyann for one in axes.texts if hasattr(one, "xy") and one.get_text() != "M"}

    assert offsets(1) == offsets(9)


def test_words_and_numbers_of_a_step(plane: LaboratoryPlane) -> None:
    drawing = draw_laboratory(plane, steps=4)
    assert "After 4 of 12 steps" in drawing.words
    assert f"the total gap is {plane.path_gaps[4]:.3g}".replace("-", "−") in drawing.words
    assert (
        f"At the average it is {plane.gaps['average']:.3g} ({100 * plane.closed['average']:.0f} % closed)"
        in drawing.words
    )
    assert drawing.numbers["share of the base's gap closed, M (%)"] == 100 * plane.path_closed[4]
    assert drawing.numbers["total gap at the optimum (half squared error)"] == plane.gaps["optimum"]
    assert list(drawing.numbers) == list(draw_laboratory(plane, steps=0).numbers)


@pytest.mark.parametrize("steps", [-1, 13, 1.0, True])
def test_a_step_that_was_not_taken(plane: LaboratoryPlane, steps: object) -> None:
    with pytest.raises(ApgdTeachError, match="a whole number from 0 to 12"):
        draw_laboratory(plane, steps=steps)


def test_more_than_two_weights_are_no_plane() -> None:
    with pytest.raises(ApgdTeachError, match=r"a plane has two; make one with make_laboratory\(out=1, in_=2\)"):
        measure_laboratory(make_laboratory(out=2, in_=4))


@pytest.mark.parametrize("settings", [{"steps": 0}, {"points": 1}])
def test_a_walk_or_a_grid_too_small(settings: dict) -> None:
    with pytest.raises(ApgdTeachError, match="at least 1 step and 2 points"):
        measure_laboratory(LABORATORY, **settings)


def test_a_laboratory_whose_base_is_where_everything_is_can_be_drawn() -> None:
    still = measure_laboratory(make_laboratory(out=1, in_=2, steps=0), steps=1)
    assert still.path[0] == still.path[1] == still.places["base"]
    assert draw_laboratory(still, steps=1).figure


# Along a line


def test_the_gap_along_a_line_is_the_laboratorys_and_its_parabola_is_exact() -> None:
    laboratory = make_laboratory(n_tasks=3, out=4, in_=12, seed=2)
    end = laboratory.average()
    walked = laboratory_along(laboratory, end, points=5)
    assert walked.steps == (0, 0.25, 0.5, 0.75, 1)
    for task, name in enumerate(laboratory.experts):
        for share, gap in zip(walked.steps, walked.gaps[name], strict=True):
            there = laboratory.initial + share * (end - laboratory.initial)
            assert gap == pytest.approx(float(laboratory.gap(task, there)))
            parabola = walked.gaps[name][0] + walked.slopes[name] * share + walked.curvatures[name] * share**2 / 2
            assert gap == pytest.approx(parabola)


def test_on_the_way_to_an_expert_at_its_target_the_tangent_falls_twice_as_far() -> None:
    laboratory = make_laboratory(steps=None)
    walked = laboratory_along(laboratory, laboratory.tuned[0], end="the expert of task 0")
    assert walked.slopes["task 0"] == pytest.approx(-2 * walked.gaps["task 0"][0])
    drawing = draw_along(walked, share=1.0, task="task 0")
    assert "from the base to the expert of task 0 the gap is 0.000 half squared errors (task 0)" in drawing.words
    assert list(drawing.numbers) == [
        f"{line} (half squared errors)" for line in ("measured gap", "first-order line", "parabola")
    ]


def test_a_line_of_one_point_is_none() -> None:
    with pytest.raises(ApgdTeachError, match="points must be at least 2, not 1"):
        laboratory_along(LABORATORY, LABORATORY.average(), points=1)


# Overestimates


def test_the_longer_an_expert_was_trained_the_more_the_line_overestimates_up_to_twice() -> None:
    found = measure_overestimates({"1": 1, "3": 3, "ever": None}, n_tasks=2, seed=4).ratios
    assert list(found) == ["1", "3", "ever"]
    for one, three, ever in zip(*found.values(), strict=True):
        assert 1 < one < three < ever
        assert ever == pytest.approx(2)


def test_a_ratio_is_the_tangent_over_the_gap_and_the_table_has_one_per_task() -> None:
    measured = measure_overestimates({"2 steps": 2}, seed=1)
    laboratory = make_laboratory(2, 1, 2, distance=1.0, seed=1, steps=2)
    walked = laboratory_along(laboratory, laboratory.tuned[1])
    assert measured.ratios["2 steps"][1] == pytest.approx(-walked.slopes["task 1"] / walked.gaps["task 1"][0])
    assert measured.table().columns == ("expert trained for", "task 0", "task 1")
    assert measured.table().rows == (("2 steps", *measured.ratios["2 steps"]),)


@pytest.mark.parametrize("trained", [{}, {"not at all": 0}])
def test_without_training_there_is_no_gap_to_estimate(trained: dict) -> None:
    with pytest.raises(ApgdTeachError, match="give at least one number of steps, each from 1 on"):
        measure_overestimates(trained)


# Share of the gap closed


@pytest.fixture(scope="module")
def closed() -> GapClosed:
    return measure_gap_closed(range(5))


def test_shares_are_those_of_each_laboratory(closed: GapClosed) -> None:
    for setting, arguments in SETTINGS.items():
        laboratory = make_laboratory(seed=3, **arguments)
        shares = {name: each[3] for name, each in closed.shares[setting].items()}
        assert shares["average"] == pytest.approx(float(laboratory.gap_closed(laboratory.average())))
        assert shares["optimum"] == max(shares.values())
        assert shares["full (projected)"] <= shares["projected optimum"] + 1e-12
        update = Apgd(granularity="row", protect=0.0, flatten=0.0).solve(laboratory.task_vectors).update
        assert shares["row"] == pytest.approx(float(laboratory.gap_closed(laboratory.initial + update)))
    assert (closed.protected, closed.out) == (3, 16)


@pytest.mark.parametrize("setting", list(SETTINGS))
def test_dots_bars_words_and_numbers_are_the_shares(closed: GapClosed, setting: str) -> None:
    drawing = draw_gap_closed(closed, setting=setting)
    (axes,) = drawing.figure.axes
    found = closed.shares[setting]
    for (name, each), dots, bar in zip(found.items(), axes.lines[0:12:2], axes.lines[1:12:2], strict=True):
        np.testing.assert_allclose(dots.get_xdata(), 100 * np.array(each))
        assert len(set(dots.get_ydata())) == 5
        assert set(bar.get_xdata()) == {100 * median(each)}
        assert drawing.numbers[f"median share closed, {name} (%)"] == 100 * median(each)
        # What is nearly all is not called all.
        digits = 1 if 0.99 < median(each) < 1 else 0
        assert f"{100 * median(each):.{digits}f} % for {name}".replace("-", "−") in drawing.words
    assert [label.get_text() for label in axes.get_yticklabels()] == list(found)
    low, high = axes.get_xlim()
    assert low < min(0, 100 * min(map(min, found.values())))
    assert high > max(100, 100 * max(map(max, found.values())))
    ahead = sum(full > plain for full, plain in zip(found["full"], found["average"], strict=True))
    assert closed.ahead(setting) == ahead
    assert closed.medians(setting) == {name: median(each) for name, each in found.items()}
    assert f"in {ahead} of 5 draws" in drawing.words
    assert list(drawing.numbers) == list(draw_gap_closed(closed, setting="as it is").numbers)


def test_one_draw_alone_can_be_drawn() -> None:
    assert "1 draws" in draw_gap_closed(measure_gap_closed([4]), setting="as it is").words


def test_a_setting_that_is_none(closed: GapClosed) -> None:
    with pytest.raises(ApgdTeachError, match="there is no setting 'hot'; there are: as it is"):
        draw_gap_closed(closed, setting="hot")
    with pytest.raises(ApgdTeachError, match="at least one"):
        measure_gap_closed([])
    with pytest.raises(ApgdTeachError, match="give a share from 0 to 1"):
        measure_gap_closed([0], protect="auto")
