from __future__ import annotations

import sys
from pathlib import Path as File

import pytest

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import comparison, tried_over_seeds

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.seeds import draw_over_seeds
from apgd_teach.trials import Trials


def test_every_seed_has_a_mark_and_the_mean_its_interval() -> None:
    tried = tried_over_seeds()
    axes = draw_over_seeds(tried).figure.axes[0]
    means = {label: tried.against(label, "average") for label in ("ties", "adamerging", "apgd")}
    order = sorted(means, key=lambda label: -means[label].points)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"{label}  (data: {'unlabelled' if label == 'adamerging' else 'none'})" for label in order
    ]
    for row, (label, bars) in enumerate(zip(order, axes.containers, strict=True)):
        marks, _, (pieces,) = bars
        (segment,) = pieces.get_segments()
        points, margin = means[label].points, means[label].margin
        assert marks.get_xdata() == pytest.approx([points])
        assert [segment[0][0], segment[1][0]] == pytest.approx([points - margin, points + margin])
        own = [line for line in axes.lines if line.get_fillstyle() == "none" and round(line.get_ydata()[0]) == row]
        each = [one.average(label) - one.average("average") for one in tried.compared.values()]
        assert [line.get_xdata()[0] for line in own] == pytest.approx(each)
        assert len({line.get_marker() for line in own}) == 3


@pytest.mark.parametrize("bound", ["base", "experts"])
def test_a_bound_may_be_the_reference_too(bound: str) -> None:
    tried = tried_over_seeds()
    numbers = draw_over_seeds(tried, bound).numbers
    assert len(numbers) == 4
    assert numbers["apgd (points)"] == tried.against("apgd", bound).points


def test_the_words_name_both_ends_and_count_the_verdicts() -> None:
    tried = tried_over_seeds()
    drawing = draw_over_seeds(tried, title="The mild experts")
    verdicts = [tried.against(label, "average").verdict for label in ("ties", "adamerging", "apgd")]
    assert drawing.words.startswith("The mild experts: over 3 seeds and against average, apgd stands highest with ")
    assert (
        f"{verdicts.count('better')} of 3 are better, {verdicts.count('worse')} worse, and for "
        f"{verdicts.count('no difference seen')} no difference is seen."
    ) in drawing.words
    assert drawing.numbers["apgd (points)"] == tried.against("apgd", "average").points


def test_one_seed_has_no_interval_and_none_is_drawn() -> None:
    drawing = draw_over_seeds(Trials({0: comparison()}))
    assert "± –" in drawing.words
    assert all(not bars[2] for bars in drawing.figure.axes[0].containers)


def test_a_reference_alone_and_one_that_is_not_there_are_refused() -> None:
    with pytest.raises(ApgdTeachError, match="no method was compared with the reference"):
        draw_over_seeds(Trials({0: comparison(("average",))}))
    with pytest.raises(ApgdTeachError, match="nothing called 'oracle' was compared; there are: average, ties"):
        draw_over_seeds(tried_over_seeds(), "oracle")
