"""Accuracy by rank, and angles between subspaces: known answers, and what is drawn is what was measured."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.data import load_task
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator, Score, Scores, difference
from apgd_teach.experts import make_pool
from apgd_teach.figures.ranks import (
    Accuracy,
    RankSweep,
    draw_angles,
    draw_rank,
    draw_sharing,
    measure_angles,
    measure_rank,
    measure_sharing,
    share_words,
)
from apgd_teach.merging import Apgd, StateDict, merge, shared_basis, soft_projector

TITLES = {"one": "task one", "two": "task two", "three": "task three"}
SHARES = (0, 1 / 8, 1 / 6, 1)


def network() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    draws = torch.Generator().manual_seed(7)
    base = {
        "a": torch.randn(24, 18, generator=draws),
        "bias": torch.zeros(24),
        "b": torch.randn(16, 4, 3, 3, generator=draws),
    }
    return base, {
        name: {key: one + 0.1 * torch.randn(one.shape, generator=draws) for key, one in base.items()} for name in TITLES
    }


BASE, EXPERTS = network()


def score(state: StateDict) -> Scores:
    """The nearer to an expert, the more of a thousand images are right."""
    far = {
        name: sum(float((state[key] - one[key]).square().sum()) for key in one) ** 0.5 for name, one in EXPERTS.items()
    }
    return {name: Score(torch.arange(1000) < 1000 / (1 + one), torch.zeros(1000)) for name, one in far.items()}


@pytest.fixture(scope="module")
def sweep() -> RankSweep:
    return measure_rank(BASE, EXPERTS, score, shares=SHARES, titles=TITLES, flatten=0.0)


def test_every_share_is_scored_as_it_would_be_by_hand(sweep: RankSweep) -> None:
    assert list(sweep.shares) == sorted(SHARES)
    for protect, found in [*sweep.shares.items(), ("auto", sweep.auto)]:
        by_task = score(merge(BASE, EXPERTS, "apgd", protect=protect, flatten=0.0).state_dict)
        accuracies = {task: one.accuracy for task, one in by_task.items()}
        assert found.mean == pytest.approx(mean(accuracies.values()))
        assert found.worst == min(accuracies.values())
        assert found.task == TITLES[min(accuracies, key=accuracies.get)]
    assert sweep.base.mean == pytest.approx(mean(one.accuracy for one in score(BASE).values()))
    assert len({one.mean for one in sweep.shares.values()}) > 2


def test_every_share_is_held_against_the_least_one(sweep: RankSweep) -> None:
    least, most = (merge(BASE, EXPERTS, "apgd", protect=one, flatten=0.0).state_dict for one in (0.0, 1.0))
    assert sweep.against[1.0] == difference(score(most), score(least))
    assert sweep.against[0.0].points == 0
    assert sweep.beside(0.0) == ""
    assert sweep.beside(1.0) == (
        f" ({sweep.against[1.0]} points against nothing protected: {sweep.against[1.0].verdict})"
    )
    assert f"%{sweep.beside(1.0)}, and" in draw_rank(sweep, share=1.0).words
    assert " points against" in sweep.told()


@pytest.mark.parametrize(
    "settings",
    [
        {"power": 2.0, "flatten": 0.5},
        {"trim": 0.3},
        {"basis": "weighted", "solver": "descent", "steps": 20},
        {"granularity": "row", "flatten": 0.0},
    ],
)
def test_what_is_swept_is_what_a_merge_makes(settings: dict) -> None:
    swept = measure_rank(BASE, EXPERTS, score, shares=SHARES, titles=TITLES, **settings).merged
    assert list(swept) == ["auto", *sorted(SHARES)]
    for protect, made in swept.items():
        plain = merge(BASE, EXPERTS, "apgd", protect=protect, **settings).state_dict
        for key, tensor in plain.items():
            torch.testing.assert_close(made.state_dict[key], tensor)


def test_a_solution_that_is_known_is_not_solved_again() -> None:
    names = sorted(EXPERTS)
    vectors = {key: torch.stack([EXPERTS[one][key] - BASE[key] for one in names]).flatten(2) for key in ("a", "b")}
    known = {key: Apgd(flatten=0.0).solve(one) for key, one in vectors.items()}
    longer = {key: replace(one, update=2 * one.update - one.start) for key, one in known.items()}
    plain, given, other = (
        {
            share: one.state_dict
            for share, one in measure_rank(
                BASE, EXPERTS, score, shares=[0, 1 / 6], titles=TITLES, free=free, flatten=0.0
            ).merged.items()
        }
        for free in (None, known, longer)
    )
    for share in (0, 1 / 6):
        torch.testing.assert_close(given[share], plain[share])
        assert not torch.allclose(other[share]["a"], plain[share]["a"])


def test_a_task_that_did_not_move_is_left_out_of_a_sweep_too() -> None:
    still = {**EXPERTS, "two": {**EXPERTS["two"], "a": BASE["a"]}}
    nowhere = {name: {**one, "a": BASE["a"]} for name, one in EXPERTS.items()}
    for experts in (still, nowhere):
        swept = measure_rank(BASE, experts, score, shares=SHARES, titles=TITLES, flatten=0.0).merged
        for protect in SHARES:
            plain = merge(BASE, experts, "apgd", protect=protect, flatten=0.0).state_dict
            torch.testing.assert_close(swept[protect].state_dict["a"], plain["a"])


def test_the_automatic_share_is_that_of_all_layers_together(sweep: RankSweep) -> None:
    traces = {}
    for key in ("a", "b"):
        vectors = torch.stack([(one[key] - BASE[key]).flatten(1) for one in EXPERTS.values()])
        traces[key] = float(soft_projector(vectors, 0.0625).trace())
    assert sweep.auto_share == pytest.approx(sum(traces.values()) / (18 + 16), rel=1e-4)
    assert sweep.auto_range == pytest.approx(
        (min(traces["a"] / 18, traces["b"] / 16), max(traces["a"] / 18, traces["b"] / 16)), rel=1e-4
    )


def test_an_evaluator_brings_its_titles(tmp_path: Path) -> None:
    task = "digits-upright"
    pool = make_pool("mlp", tasks=[task], base_steps=1, expert_steps=1, cache=Cache(tmp_path), progress=False)
    found = measure_rank(pool.base, pool.experts, Evaluator(pool, images=50), shares=[0], flatten=0.0)
    assert found.base.task == load_task(task).title


def test_what_is_drawn_is_what_was_measured(sweep: RankSweep) -> None:
    drawing = draw_rank(sweep, share=1 / 6)
    (axes,) = drawing.figure.axes
    for i, name in enumerate(("mean", "worst")):
        line, chosen, auto, base = axes.lines[4 * i : 4 * i + 4]
        assert list(line.get_xdata()) == list(sweep.shares)
        assert list(line.get_ydata()) == [getattr(one, name) for one in sweep.shares.values()]
        assert (list(chosen.get_xdata()), list(chosen.get_ydata())) == ([1 / 6], [getattr(sweep.shares[1 / 6], name)])
        assert (list(auto.get_xdata()), list(auto.get_ydata())) == ([sweep.auto_share], [getattr(sweep.auto, name)])
        assert set(base.get_ydata()) == {getattr(sweep.base, name)}
    low, high = axes.get_xlim()
    assert low < 0 < 1 < high
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1/8", "1/6", "1"]


def test_ticks_without_room_have_no_number() -> None:
    crowded = measure_rank(BASE, EXPERTS, score, shares=[0, 0.5, 0.51, 0.52, 1], flatten=0.0)
    labels = [one.get_text() for one in draw_rank(crowded, share=0.51).figure.axes[0].get_xticklabels()]
    assert labels == ["0", "1/2", "", "", "1"]


def test_words_hold_the_numbers(sweep: RankSweep) -> None:
    here, drawing = sweep.shares[1 / 6], draw_rank(sweep, share=1 / 6)
    for said in (
        "With 1/6 of each layer's directions protected",
        f"mean accuracy of {here.mean:.1f} %{sweep.beside(1 / 6)}, and {here.worst:.1f} % on its worst task "
        f"({here.task})",
        f"amounts to {100 * sweep.auto_share:.1f} %",
        f"reaches {sweep.auto.mean:.1f} % and {sweep.auto.worst:.1f} %",
    ):
        assert said in drawing.words
    assert drawing.numbers["mean accuracy (%)"] == here.mean
    assert drawing.numbers["automatic: share protected (%)"] == 100 * sweep.auto_share
    assert "With nothing protected" in draw_rank(sweep, share=0).words


def swept(*means: float) -> RankSweep:
    """A sweep whose means are these, from nothing protected to all."""
    shares = (*(0.0, 1 / 16, 1 / 6)[: len(means) - 1], 1.0)
    found = {share: Accuracy(one, one - 5, "task") for share, one in zip(shares, means, strict=True)}
    return RankSweep(found, found[0.0], 0.1, (0.1, 0.1), found[0.0])


@pytest.mark.parametrize(
    ("means", "best", "worst", "said"),
    [
        (
            (70, 71, 72, 73),
            1.0,
            0.0,
            "never falls as more is protected: it rises from 70.0 % with nothing protected to",
        ),
        (
            (73, 72, 72, 71),
            0.0,
            1.0,
            "never rises as more is protected: it falls from 73.0 % with nothing protected to",
        ),
        ((70, 70, 70, 70), 0.0, 0.0, "the mean is 70.0 % whatever is protected"),
        ((70, 73, 72, 71), 1 / 16, 0.0, "best with 1/16 protected, 73.0 %, and worst with nothing, 70.0 %; the best"),
        ((73, 70, 71, 72), 0.0, 1 / 16, "worst with 1/16, 70.0 %; the worst lies in between: to protect that much is"),
        ((71, 70, 73, 72), 1 / 6, 1 / 16, "both lie in between, and neither end is the best or the worst"),
        (
            (70, 72, 71, 73),
            1.0,
            0.0,
            "these are the two ends, but in between the mean does not move in one direction only",
        ),
    ],
)
def test_whichever_way_the_mean_goes_it_is_said(means: tuple[float, ...], best: float, worst: float, said: str) -> None:
    found = swept(*means)
    assert (found.best, found.worst) == (best, worst)
    assert said in found.told()


def test_an_end_that_is_as_good_as_what_lies_in_between_is_the_one_that_is_named() -> None:
    assert (swept(70, 73, 71, 73).best, swept(70, 73, 70, 72).worst) == (1.0, 0.0)
    assert "lies in between" not in swept(70, 73, 71, 73).told()
    assert "the best lies in between" in swept(70, 73, 70, 72).told()


def test_two_shares_are_enough_to_say_how_the_mean_goes() -> None:
    assert "rises from 70.0 % with nothing protected to 71.0 % with all" in swept(70, 71).told()


def test_shares_in_words() -> None:
    assert [share_words(one) for one in (0, 1 / 6, 0.0625, 0.137, 1)] == ["nothing", "1/6", "1/16", "0.137", "all"]


def test_a_share_that_was_not_measured(sweep: RankSweep) -> None:
    with pytest.raises(ApgdTeachError, match=r"no share of 0\.3 was measured; there are: 0, 1/8, 1/6, 1"):
        draw_rank(sweep, share=0.3)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"protect": 0.5}, "'protect' is what this figure varies"),
        ({"shares": []}, "one or more numbers from 0 to 1"),
        ({"shares": [0, 1.5]}, "one or more numbers from 0 to 1"),
        ({"shares": [math.nan]}, "one or more numbers from 0 to 1"),
        ({"granularity": "entry"}, "there is no granularity"),
    ],
)
def test_what_cannot_be_swept_is_one_sentence(settings: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_rank(BASE, EXPERTS, score, **settings)


def test_a_network_without_matrices_has_nothing_to_protect() -> None:
    base = {"bias": torch.zeros(4)}
    with pytest.raises(ApgdTeachError, match="no tensor of this network"):
        measure_rank(base, {"one": {"bias": torch.ones(4)}, "two": {"bias": -torch.ones(4)}}, lambda _: score(BASE))


# Angles


def turned(degrees: float, out: int = 40, rank: int = 3) -> tuple[Tensor, Tensor]:
    """Two task vectors of a few directions, every one of the second turned by an angle out of the first's subspace."""
    basis = torch.linalg.qr(torch.randn(out, 2 * rank, generator=torch.Generator().manual_seed(0)).double()).Q
    own, free = basis[:, :rank], basis[:, rank:]
    angle = math.radians(degrees)
    stretch = torch.diag(torch.tensor([3.0, 2.0, 1.0]).double()) @ torch.eye(rank, 50).double()
    return own @ stretch, (math.cos(angle) * own + math.sin(angle) * free) @ stretch


@pytest.mark.parametrize("degrees", [0, 1, 30, 60, 90])
def test_angles_are_those_by_which_the_tasks_were_turned(degrees: float) -> None:
    found = measure_angles(*turned(degrees), ("a", "b"), ranks=(1, 2, 3))
    for rank, angles in found.angles.items():
        assert angles == pytest.approx([degrees] * rank, abs=1e-4)


def test_random_subspaces_are_drawn_and_not_quoted() -> None:
    one, other = turned(10)
    found, more, again = (measure_angles(one, other, ("a", "b"), ranks=[1, 3], draws=n) for n in (4, 400, 4))
    assert found.random == again.random
    assert found.random != measure_angles(one, other, ("a", "b"), ranks=[1, 3], draws=4, seed=1).random
    average, least, most = more.random[1]
    assert all(low < middle < high for middle, low, high in zip(average, least, most, strict=True))
    # Between two random lines in n dimensions an angle is as likely as its sine to the power of n − 2.
    angles = np.linspace(0, 90, 10_001)
    likely = np.sin(np.radians(angles)) ** 38
    assert average[0] == pytest.approx((angles * likely).sum() / likely.sum(), abs=1)


def test_angles_drawn_are_those_measured() -> None:
    measured = measure_angles(*turned(25), ("a", "b"), ranks=(1, 2, 3))
    drawing = draw_angles(measured, rank=2)
    left, right = drawing.figure.axes
    assert tuple(left.lines[0].get_ydata()) == measured.angles[2]
    assert tuple(left.lines[1].get_ydata()) == measured.random[2][0]
    shaded = left.collections[0].get_paths()[0].vertices[:, 1]
    assert {min(shaded), max(shaded)} <= {*measured.random[2][1], *measured.random[2][2]}
    np.testing.assert_allclose(right.lines[0].get_ydata(), [median(one) for one in measured.angles.values()])
    assert drawing.numbers["median angle (°)"] == median(measured.angles[2])
    assert drawing.numbers["smallest angle, random (°)"] == measured.random[2][0][0]
    assert "the smallest principal angle is 25° and the median 25°" in drawing.words
    assert list(drawing.numbers) == list(draw_angles(measured, rank=3).numbers)


def test_one_rank_alone_can_be_drawn() -> None:
    assert draw_angles(measure_angles(*turned(25), ("a", "b"), ranks=[2]), rank=2).words


def test_a_rank_that_was_not_measured() -> None:
    with pytest.raises(ApgdTeachError, match="no rank 3 was measured; there are: 1, 2"):
        draw_angles(measure_angles(*turned(5), ("a", "b"), ranks=[1, 2]), rank=3)


@pytest.mark.parametrize(
    ("one", "settings", "sentence"),
    [
        (turned(5)[0][:-1], {}, "give two of one layer"),
        (turned(5)[0], {"ranks": [4]}, "whole numbers from 1 to 3"),
        (turned(5)[0], {"ranks": [0]}, "whole numbers from 1 to 3"),
        (turned(5)[0], {"ranks": []}, "whole numbers from 1 to 3"),
        (turned(5)[0], {"ranks": [1], "draws": 0}, "draws is 0"),
    ],
)
def test_angles_that_are_none_are_one_sentence(one: Tensor, settings: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_angles(one, turned(5)[1], ("a", "b"), **settings)


# Sharing


def test_a_direction_counts_the_tasks_that_write_into_it() -> None:
    """Three tasks of three directions each, of twelve: one is everybody's, one belongs to two."""
    eye = torch.eye(12)
    used = [[0, 1, 2], [0, 1, 3], [0, 4, 5]]
    vectors = torch.stack([eye[:, one] @ torch.diag(torch.tensor([3.0, 2.0, 1.0])) @ torch.eye(3, 9) for one in used])
    found = measure_sharing(vectors)
    assert (found.tasks, found.per_task, found.keep) == (3, 3, 1)
    assert found.counts == pytest.approx([3, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0], abs=1e-5)
    assert found.beyond == sum(one > found.random[2][0] for one in (3, 2, 1, 1, 1, 1))


def test_the_most_shared_directions_are_those_of_the_shared_basis() -> None:
    vectors = torch.randn(4, 20, 30, generator=torch.Generator().manual_seed(0)).double()
    found = measure_sharing(vectors)
    own = [torch.linalg.svd(one).U[:, : found.per_task] for one in vectors]
    basis = shared_basis(vectors, 3)
    for place in range(3):
        assert found.counts[place] == pytest.approx(sum(float((one.mT @ basis[:, place]).norm() ** 2) for one in own))


def test_random_subspaces_share_their_directions_out() -> None:
    vectors = torch.randn(3, 12, 12, generator=torch.Generator().manual_seed(0))
    found, again = measure_sharing(vectors), measure_sharing(vectors)
    assert found == again
    for values in (found.counts, *found.random[:1]):
        assert sum(values) == pytest.approx(3 * 4, rel=1e-4)
    assert all(low <= middle <= high for middle, low, high in zip(*found.random, strict=True))


def test_sharing_drawn_is_what_was_measured() -> None:
    measured = {"a": measure_sharing(torch.randn(3, 24, 18, generator=torch.Generator().manual_seed(0)))}
    drawing = draw_sharing(measured, layer="a")
    (axes,) = drawing.figure.axes
    assert tuple(axes.lines[0].get_ydata()) == measured["a"].counts
    assert tuple(axes.lines[1].get_ydata()) == measured["a"].random[0]
    assert f"{measured['a'].counts[0]:.1f} of 3 tasks" in drawing.words
    assert drawing.numbers["directions shared more than any random one"] == measured["a"].beyond
    meets = measured["a"].meets
    above = [one > chance for one, chance in zip(measured["a"].counts, measured["a"].random[0], strict=True)]
    assert all(above[: meets - 1])
    assert not above[meets - 1]
    assert f"From direction {meets} on" in drawing.words


def test_sharing_that_is_none_is_one_sentence() -> None:
    with pytest.raises(ApgdTeachError, match=r"give those of one layer, \(task, out, in\)"):
        measure_sharing(torch.ones(3, 3))
    with pytest.raises(ApgdTeachError, match="draws is 0"):
        measure_sharing(torch.ones(2, 3, 3), draws=0)
    with pytest.raises(ApgdTeachError, match="no layer 'b' was measured; there are: a"):
        draw_sharing({"a": measure_sharing(torch.eye(6).expand(2, 6, 6))}, layer="b")
