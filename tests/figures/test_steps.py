"""Steps of descent over a network: they are descent's, they are scored as networks, and what is drawn was measured."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean

import pytest
import torch
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import make_pool
from apgd_teach.figures.lint import look_over
from apgd_teach.figures.steps import StepSweep, Way, after_steps, descended, draw_steps, measure_steps
from apgd_teach.merging import Apgd, merge, shared_basis
from apgd_teach.merging.descent import descend
from apgd_teach.merging.objective import Full, objective

STEPS = (0, 1, 7, 40)
WAYS_HERE = {"row": Way("row", 1 / 6, (1, 10)), "full": Way("full", 0.0, (10, 2000))}


def taus(dtype: torch.dtype = torch.float64) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    return 0.02 * torch.randn(3, 12, 20, generator=draws, dtype=dtype)


@pytest.mark.parametrize("granularity", ["layer", "row", "full"])
@pytest.mark.parametrize("keep", [0, 3])
def test_after_so_many_steps_m_is_where_descent_is(granularity: str, keep: int) -> None:
    vectors = taus()
    quadratic, start, basis = objective(vectors, granularity), vectors.mean(0), shared_basis(vectors, keep)
    # The power iteration stops within a thousandth of the largest curvature, and one per cent is put on top of it.
    rate = 1 / float(torch.linalg.eigvalsh(quadratic.gram).max()) if isinstance(quadratic, Full) else None
    for steps, found in zip(STEPS, after_steps(quadratic, start, basis, STEPS), strict=True):
        expected, _ = descend(quadratic, start, basis, steps, rate=rate)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_task_vectors_of_nothing_stay_where_they_are() -> None:
    nothing = torch.zeros(2, 3, 4)
    quadratic = objective(nothing, "full")
    for found in after_steps(quadratic, nothing[0], nothing[0, :, :0], (0, 5)):
        assert not bool(found.any())


@pytest.fixture(scope="module")
def evaluator(tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    pool = make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-upright"],
        base_steps=2,
        expert_steps=2,
        cache=Cache(tmp_path_factory.mktemp("cache")),
        progress=False,
    )
    return Evaluator(pool, images=50, split="validation")


@pytest.fixture(scope="module")
def measured(evaluator: Evaluator) -> StepSweep:
    pool = evaluator.pool
    return measure_steps(evaluator, pool.base, pool.experts, ways=WAYS_HERE, progress=False)


def test_networks_on_the_way_are_those_that_merging_by_descent_makes(measured: StepSweep, evaluator: Evaluator) -> None:
    assert measured.steps == {"row": (0, 1, 10), "full": (0, 10, 2000)}
    pool = evaluator.pool
    for place, steps in enumerate(measured.steps["row"]):
        alone = Apgd("row", solver="descent", protect=1 / 6, steps=steps, flatten=0, reach=None, biases="average")
        merged = merge(pool.base, pool.experts, alone)
        for key, tensor in merged.state_dict.items():
            torch.testing.assert_close(measured.states["row"][place][key], tensor)
        scores = evaluator.scores(merged.state_dict)
        own = evaluator.experts()
        assert measured.accuracies["row"][place] == pytest.approx(mean(one.accuracy for one in scores.values()))
        assert measured.gaps["row"][place] == pytest.approx(
            mean(one.loss - own[task].loss for task, one in scores.items()), abs=1e-5
        )


def test_networks_after_chosen_steps_are_those_of_the_sweep(measured: StepSweep, evaluator: Evaluator) -> None:
    pool = evaluator.pool
    made = descended(pool.base, pool.experts, {"full": 10, "row": 0}, ways=WAYS_HERE)
    assert list(made) == ["full", "row"]
    for way, place in (("full", 1), ("row", 0)):
        for key, tensor in made[way].items():
            torch.testing.assert_close(tensor, measured.states[way][place][key])


@pytest.mark.parametrize(
    ("steps", "sentence"),
    [({"no": 1}, "there is no way 'no'; there are: row, full"), *(({"row": one}, "from 0") for one in (-1, 2.5, True))],
)
def test_steps_that_nobody_can_take(evaluator: Evaluator, steps: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        descended(evaluator.pool.base, evaluator.pool.experts, steps, ways=WAYS_HERE)


def test_what_was_chosen_and_the_course_of_the_gap_in_words(measured: StepSweep) -> None:
    one = replace(measured, gaps={"row": (0.1, 0.2, 0.3), "full": (0.3, 0.1, 0.2)})
    assert one.chosen == {"row": 0, "full": 10}
    assert one.networks["row"] is one.states["row"][0]
    assert one.networks["full"] is one.states["full"][1]
    assert one.course("row") == "no number of steps looked at has a smaller gap than S (0.300 nats after 10)"
    assert one.course("full") == "the gap is smallest after 10 steps (0.100 nats) and larger again after 2,000 (0.200)"
    last = replace(measured, gaps={"row": (0.3, 0.2, 0.1), "full": (0.3, 0.1, 0.2)})
    assert last.course("row") == "the gap is smallest at the last step looked at, 10 (0.100 nats)"


def test_the_surrogate_never_rises_and_begins_at_one(measured: StepSweep) -> None:
    for left in measured.surrogate.values():
        assert left[0] == pytest.approx(1)
        assert left[0] > left[1] > left[2] > 0


def test_lines_are_what_was_measured_and_the_smallest_gap_is_marked(measured: StepSweep) -> None:
    gaps = {"row": (0.3, 0.1, 0.2), "full": (0.3, 0.2, 0.1)}
    one = replace(measured, gaps=gaps)
    assert (one.best("row"), one.best("full")) == (1, 2)
    drawing = draw_steps(one)
    assert look_over(drawing.figure) == []
    for axes, values in zip(drawing.figure.axes, (one.surrogate, one.gaps, one.accuracies), strict=True):
        for line, way in zip(axes.lines, ("row", "full"), strict=False):
            assert tuple(line.get_xdata()) == one.steps[way]
            assert tuple(line.get_ydata()) == values[way]
        marked = axes.lines[-1]
        assert list(marked.get_xdata()) == [one.steps["row"][1], one.steps["full"][2]]
        assert list(marked.get_ydata()) == [values["row"][1], values["full"][2]]
    assert drawing.numbers["steps with the smallest gap, row"] == 1
    assert "smallest with 0.100 after 2,000 steps" in drawing.words
    assert "validation split, 50 a task" in drawing.words


@pytest.mark.parametrize(
    ("ways", "sentence"),
    [
        *(
            ({"a": Way("row", 0.0, steps)}, r"the steps of 'a' are .* whole numbers from 1")
            for steps in [(), (0,), (-1, 3), (2.5,), (True,)]
        ),
        ({"a": Way("entry", 0.0, (1,))}, "there is no granularity 'entry'"),
        ({"a": Way("row", "auto", (1,))}, "give a share from 0 to 1"),
        ({"a": Way("row", 1.5, (1,))}, "the share that 'a' protects is 1.5"),
        ({}, "there is no way to walk"),
    ],
)
def test_ways_that_are_none(evaluator: Evaluator, ways: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_steps(evaluator, evaluator.pool.base, evaluator.pool.experts, ways=ways, progress=False)


def test_a_layer_in_which_nobody_moved_stays_as_it_is(evaluator: Evaluator) -> None:
    pool = evaluator.pool
    experts = {name: {**one, "layer2.weight": pool.base["layer2.weight"]} for name, one in pool.experts.items()}
    ways = {"row": Way("row", 0.0, (1,)), "full": Way("full", 0.0, (1,))}
    measured = measure_steps(evaluator, pool.base, experts, ways=ways, progress=False)
    for states in measured.states.values():
        assert torch.equal(states[-1]["layer2.weight"], pool.base["layer2.weight"])


def test_experts_of_other_tasks(evaluator: Evaluator) -> None:
    pool = evaluator.pool
    with pytest.raises(ApgdTeachError, match="for the same tasks"):
        measure_steps(evaluator, pool.base, {"a": pool.base}, progress=False)
