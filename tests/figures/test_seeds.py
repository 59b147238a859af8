from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path as File
from statistics import mean, stdev

import pytest

sys.path.insert(0, str(File(__file__).parent))

from drawn_measures import compared_over_seeds, comparison, held_over_seeds

sys.path.pop(0)

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Difference
from apgd_teach.figures.seeds import draw_over_seeds, over_seeds


def paired(one, other) -> tuple[float, float]:
    differences = [a - b for a, b in zip(one, other, strict=True)]
    return mean(differences), 4.30 * stdev(differences) / len(differences) ** 0.5


def test_methods_are_held_against_the_reference_seed_by_seed() -> None:
    compared = compared_over_seeds()
    found = over_seeds(compared, "average", paired)
    assert found.seeds == (0, 10, 20)
    assert set(found.differences) == {"ties", "adamerging", "apgd"}
    for label, differences in found.differences.items():
        expected = [one.average(label) - one.average("average") for one in compared.values()]
        assert differences == pytest.approx(expected)
        assert found.means[label].points == pytest.approx(mean(expected))
        assert found.means[label].margin == pytest.approx(4.30 * stdev(expected) / 3**0.5)
    assert found.data_used == {"ties": "none", "adamerging": "unlabelled", "apgd": "none"}


@pytest.mark.parametrize("bound", ["base", "experts"])
def test_a_bound_may_be_the_reference_too(bound: str) -> None:
    compared = compared_over_seeds()
    found = over_seeds(compared, bound, paired)
    assert set(found.differences) == set(compared[0].merged)
    assert found.differences["apgd"][1] == pytest.approx(compared[10].average("apgd") - compared[10].average(bound))


def test_one_seed_other_methods_and_an_unknown_reference_are_refused() -> None:
    compared = compared_over_seeds()
    with pytest.raises(ApgdTeachError, match="1 seeds say nothing about the next one"):
        over_seeds({0: compared[0]}, "average", paired)
    with pytest.raises(ApgdTeachError, match=r"'ties' was not compared at every seed \(look at 10\)"):
        over_seeds({0: compared[0], 10: comparison(("average", "adamerging", "apgd"))}, "average", paired)
    with pytest.raises(ApgdTeachError, match="nothing called 'oracle' was compared; there are: average, ties"):
        over_seeds(compared, "oracle", paired)
    with pytest.raises(ApgdTeachError, match="no method was compared with the reference"):
        draw_over_seeds(replace(held_over_seeds(), differences={}, means={}, data_used={}))


def test_every_seed_has_a_mark_and_the_mean_its_interval() -> None:
    measured = held_over_seeds()
    axes = draw_over_seeds(measured).figure.axes[0]
    order = sorted(measured.means, key=lambda label: -measured.means[label].points)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == [
        f"{label}  (data: {measured.data_used[label]})" for label in order
    ]
    for row, (label, bars) in enumerate(zip(order, axes.containers, strict=True)):
        marks, _, (pieces,) = bars
        (segment,) = pieces.get_segments()
        difference = measured.means[label]
        assert marks.get_xdata() == pytest.approx([difference.points])
        assert [segment[0][0], segment[1][0]] == pytest.approx(
            [difference.points - difference.margin, difference.points + difference.margin]
        )
        own = [line for line in axes.lines if line.get_fillstyle() == "none" and round(line.get_ydata()[0]) == row]
        assert [line.get_xdata()[0] for line in own] == pytest.approx(list(measured.differences[label]))
        assert len({line.get_marker() for line in own}) == 3


def test_the_words_name_both_ends_and_count_the_verdicts() -> None:
    measured = held_over_seeds()
    drawing = draw_over_seeds(measured, title="The mild experts")
    verdicts = [one.verdict for one in measured.means.values()]
    assert drawing.words.startswith("The mild experts: over 3 seeds and against average, apgd stands highest with ")
    assert (
        f"{verdicts.count('better')} of 3 are better, {verdicts.count('worse')} worse, and for "
        f"{verdicts.count('no difference seen')} no difference is seen."
    ) in drawing.words
    assert drawing.numbers["apgd (points)"] == measured.means["apgd"].points


def test_an_interval_that_is_not_known_is_not_drawn() -> None:
    measured = held_over_seeds()
    unknown = replace(
        measured, means={label: Difference(one.points, math.nan) for label, one in measured.means.items()}
    )
    drawing = draw_over_seeds(unknown)
    assert "± –" in drawing.words
    assert all(not bars[2] for bars in drawing.figure.axes[0].containers)
