"""Where descent arrives: at the known optimum if it follows the true losses; what is drawn is what was measured."""

from __future__ import annotations

import pytest

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.arrival import TRUE, Arrival, draw_arrival, measure_arrival
from apgd_teach.merging import Apgd, make_laboratory, projector
from apgd_teach.merging.descent import descend
from apgd_teach.merging.objective import objective


@pytest.fixture(scope="module")
def measured() -> Arrival:
    return measure_arrival(make_laboratory(n_tasks=3), steps=(10, 100, 1000))


def test_descent_on_the_true_losses_arrives_and_nothing_closes_more(measured: Arrival) -> None:
    assert measured.steps == (0, 10, 100, 1000)
    distance = measured.distance[TRUE]
    assert distance[0] == pytest.approx(100)
    assert list(distance) == sorted(distance, reverse=True)
    assert distance[-1] < 0.1
    assert measured.closed[TRUE][-1] == pytest.approx(measured.best, abs=0.01)
    assert max(max(one) for one in measured.closed.values()) <= measured.best + 1e-9


def test_the_numbers_of_a_surrogate_are_those_of_descent_on_it(measured: Arrival) -> None:
    laboratory = make_laboratory(n_tasks=3)
    taus = laboratory.task_vectors
    solved = Apgd(protect=1 / 6).solve(taus)
    goal = laboratory.projected_optimum(projector(solved.basis), solved.start)
    reached = laboratory.initial + descend(objective(taus, "row"), solved.start, solved.basis, 100)[0]
    away = (laboratory.initial + solved.start - goal).norm()
    assert measured.distance["row"][2] == pytest.approx(100 * float((reached - goal).norm() / away))
    assert measured.closed["row"][2] == pytest.approx(100 * float(laboratory.gap_closed(reached)))


def test_the_peak_is_where_most_is_closed(measured: Arrival) -> None:
    one = Arrival((0, 3, 9), {"row": (100.0, 90.0, 95.0)}, {"row": (10.0, 30.0, 20.0)}, 40.0)
    assert one.peak("row") == (30.0, 3)
    most, when = measured.peak("row")
    assert most == max(measured.closed["row"])
    assert when in measured.steps


def test_the_table_has_a_row_for_each_number_of_steps_and_one_for_the_optimum(measured: Arrival) -> None:
    table = measured.table()
    assert table.column("steps") == [0, 10, 100, 1000, "projected optimum"]
    assert table.column("full: gap closed %")[:-1] == list(measured.closed["full"])
    assert table.rows[-1][1:] == (0.0, 0.0, 0.0, measured.best, measured.best, measured.best)


def test_lines_are_what_was_measured_and_words_say_where_they_end(measured: Arrival) -> None:
    drawing = draw_arrival(measured)
    for axes, values in zip(drawing.figure.axes, (measured.distance, measured.closed), strict=True):
        for line, numbers in zip(axes.lines, values.values(), strict=False):
            assert tuple(line.get_xdata()) == measured.steps
            assert tuple(line.get_ydata()) == numbers
    assert drawing.figure.axes[1].lines[-1].get_ydata()[0] == measured.best
    assert f"closes {measured.closed['row'][-1]:.1f} % of the base's gap" in drawing.words
    assert drawing.numbers["gap closed at the end, full (%)"] == measured.closed["full"][-1]


@pytest.mark.parametrize("steps", [(), (0,), (2.5,), (True,)])
def test_steps_that_are_none(steps: tuple) -> None:
    with pytest.raises(ApgdTeachError, match="give whole numbers from 1"):
        measure_arrival(make_laboratory(), steps=steps)


def test_where_everything_is_protected_there_is_no_way() -> None:
    with pytest.raises(ApgdTeachError, match="projected optimum already"):
        measure_arrival(make_laboratory(n_tasks=1), protect=1.0, steps=(1,))


def test_soft_protection_has_no_projected_optimum() -> None:
    with pytest.raises(ApgdTeachError, match="give a share from 0 to 1"):
        measure_arrival(make_laboratory(n_tasks=3), protect="auto", steps=(1,))
