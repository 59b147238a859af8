"""An update in fewer numbers: what is measured at which size, and what the picture says of it."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean

import pytest
import torch

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError, MergeError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import Pool, make_pool
from apgd_teach.figures import draw_sizes, measure_sizes
from apgd_teach.figures.sizes import Cut, Sizes
from apgd_teach.figures.style import SMALLEST
from apgd_teach.merging import merge
from apgd_teach.merging.low_rank import Kept, low_rank


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-flipped"],
        base_steps=60,
        expert_steps=40,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )


@pytest.fixture(scope="module")
def merged(pool: Pool) -> dict[str, torch.Tensor]:
    return merge(pool.base, pool.experts, "average").state_dict


@pytest.fixture(scope="module")
def sizes(pool: Pool, merged: dict[str, torch.Tensor]) -> Sizes:
    evaluator = Evaluator(pool, images=100, split="validation")
    return measure_sizes(evaluator, pool.base, merged, [40, 2, 100], progress=False)


def test_cuts_are_scored_as_they_would_be_used(pool: Pool, merged: dict[str, torch.Tensor], sizes: Sizes) -> None:
    assert [one.asked for one in sizes.cuts] == [2, 40, 100]
    evaluator = Evaluator(pool, images=100, split="validation")
    by_hand = low_rank(pool.base, merged, share=0.4)
    scores = evaluator.scores(by_hand.state_dict(pool.base))
    cut = sizes.cut(40)
    assert cut.accuracy == pytest.approx(fmean(score.accuracy for score in scores.values()))
    assert cut.worst == pytest.approx(min(score.accuracy for score in scores.values()))
    assert cut.numbers == pytest.approx(100 * by_hand.numbers / by_hand.full)
    assert sizes.base == pytest.approx(fmean(one.accuracy for one in evaluator.scores(pool.base).values()))


def test_more_numbers_hold_more_and_all_of_them_hold_all(sizes: Sizes) -> None:
    energies = [one.energy for one in sizes.cuts]
    assert energies == sorted(energies)
    assert energies[0] < 90
    assert energies[-1] == pytest.approx(100)
    assert sizes.cuts[-1].accuracy == pytest.approx(sizes.whole)


def test_a_reader_s_own_function_is_asked(pool: Pool, merged: dict[str, torch.Tensor], sizes: Sizes) -> None:
    evaluator = Evaluator(pool, images=100, split="validation")

    def accuracies(state: Mapping[str, torch.Tensor]) -> dict[str, float]:
        return {task: score.accuracy for task, score in evaluator.scores(state).items()}

    found = measure_sizes(accuracies, pool.base, merged, [2, 40, 100], progress=False)
    assert [(one.accuracy, one.worst) for one in found.cuts] == [(one.accuracy, one.worst) for one in sizes.cuts]


MADE_UP = Sizes(
    60.0,
    70.0,
    (
        Cut(
            2,
            3.0,
            30.0,
            62.0,
            50.0,
            (Kept("one.weight", (8, 4), 0, 0.0, 0, 1.0), Kept("one.bias", (8,), None, 1.0, 8, 1.0)),
        ),
        Cut(
            10,
            12.0,
            60.0,
            69.6,
            55.0,
            (Kept("one.weight", (8, 4), 1, 0.6, 12, 1.0), Kept("one.bias", (8,), None, 1.0, 8, 1.0)),
        ),
        Cut(50, 90.0, 99.0, 70.2, 57.0, (Kept("one.weight", (8, 4), None, 1.0, 32, 1.0),)),
    ),
)


def test_the_smallest_that_loses_little_is_found_or_none() -> None:
    assert MADE_UP.smallest(0.5) is MADE_UP.cuts[1]
    assert MADE_UP.smallest(0.1) is MADE_UP.cuts[2]
    assert MADE_UP.smallest(-1.0) is None


def test_the_table_says_what_each_size_loses() -> None:
    assert MADE_UP.table().column("lost, points") == ["8.0", "0.4", "−0.2"]


@pytest.mark.parametrize(
    ("kept", "words"), [(2, "8.0 points less than"), (10, "0.4 points less than"), (50, "0.2 points more than")]
)
def test_the_words_say_what_is_left(kept: float, words: str) -> None:
    assert words in draw_sizes(MADE_UP, kept).words


def test_the_picture_marks_the_cut_and_shows_its_layers() -> None:
    drawing = draw_sizes(MADE_UP, 10)
    curve, layers = drawing.figure.axes
    marked = next(line for line in curve.lines if line.get_label() == "this cut")
    assert (marked.get_xdata()[0], marked.get_ydata()[0]) == (12.0, 69.6)
    assert [text.get_text() for text in layers.texts] == ["1 of 4"]
    assert layers.patches[0].get_width() == pytest.approx(25)
    assert [label.get_text() for label in layers.get_yticklabels()] == ["one"]
    whole = draw_sizes(MADE_UP, 50).figure.axes[1]
    assert whole.texts[0].get_text() == "whole"
    assert min(text.get_fontsize() for text in layers.texts) >= SMALLEST


def test_what_was_not_measured_is_one_sentence(pool: Pool, merged: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ApgdTeachError, match="no cut to 7 % was measured; there are: 2, 10, 50"):
        draw_sizes(MADE_UP, 7)
    evaluator = Evaluator(pool, images=10)
    with pytest.raises(ApgdTeachError, match="no share was given"):
        measure_sizes(evaluator, pool.base, merged, [], progress=False)
    with pytest.raises(MergeError, match="share"):
        measure_sizes(evaluator, pool.base, merged, [0], progress=False)
