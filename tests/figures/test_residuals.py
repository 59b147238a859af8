"""Residual maps: the numbers by hand, what is drawn is what was measured, and it is drawn quickly."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import pytest
import torch
from matplotlib.colors import LogNorm
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.faces import frame
from apgd_teach.figures.residuals import Residuals, draw_residual, measure_residuals
from apgd_teach.figures.style import figure, png, styled
from apgd_teach.merging import Apgd, residual


def taus(tasks: int = 3, out: int = 12, in_: int = 20) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    together = torch.randn(out, in_, generator=draws, dtype=torch.float64)
    return 0.1 * torch.randn(tasks, out, in_, generator=draws, dtype=torch.float64) + 0.05 * together


NAMES = ["a", "b", "c"]


FREE, HELD = "nothing", "half"


@pytest.fixture(scope="module")
def measured() -> Residuals:
    return measure_residuals(taus(), NAMES, protect={FREE: 0.0, HELD: 0.5})


def test_each_granularity_makes_vanish_what_it_asks_for(measured: Residuals) -> None:
    for by in measured.found[FREE].values():
        assert list(by) == ["S", "layer", "row", "full"]
        assert by["layer"].trace < 1e-3 < by["layer"].diagonal
        assert by["row"].diagonal < 1e-3 < by["row"].whole
        assert by["full"].whole < min(by[one].whole for one in ("S", "layer", "row"))


def test_the_numbers_are_those_of_the_residual(measured: Residuals) -> None:
    vectors = taus()
    solved = Apgd(granularity="layer", protect=0.0, flatten=0.0).solve(vectors)
    here = residual(vectors, solved.update)[1].numpy()
    base = residual(vectors, torch.zeros_like(solved.update))[1].numpy()
    found = measured.found[FREE]["b"]["layer"]
    np.testing.assert_allclose(found.picture, np.abs(here) / np.sqrt((base**2).mean()), rtol=1e-6)
    assert found.trace == pytest.approx(abs(here.trace() / base.trace()), abs=1e-9)
    assert found.diagonal == pytest.approx(np.linalg.norm(np.diag(here)) / np.linalg.norm(np.diag(base)))
    assert found.whole == pytest.approx(np.linalg.norm(here) / np.linalg.norm(base))
    length = float(vectors.square().sum(dim=(1, 2)).mean().sqrt())
    assert measured.moved[FREE]["layer"] == pytest.approx(float((solved.update - solved.start).norm()) / length)


def test_s_is_the_start_whatever_is_asked(measured: Residuals) -> None:
    vectors = taus()
    start = Apgd(granularity="row", protect=0.0).solve(vectors).start
    here, base = residual(vectors, start)[0], residual(vectors, torch.zeros_like(start))[0]
    for held in (FREE, HELD):
        assert measured.found[held]["a"]["S"].whole == pytest.approx(float(here.norm() / base.norm()))


@pytest.mark.parametrize("size", [1, 4, 5, 7, 11])
def test_blocks_are_means_of_what_lies_in_them(measured: Residuals, size: int) -> None:
    blocks = measure_residuals(taus(), NAMES, size=size)
    assert blocks.blocks == size
    whole, found = measured.found[FREE]["c"]["row"].picture, blocks.found[FREE]["c"]["row"].picture
    ends = [round(i * 12 / size) for i in range(size + 1)]
    for i in range(size):
        for j in range(size):
            block = whole[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            assert block.numel()
            assert float(found[i, j]) == pytest.approx(float(block.mean()), rel=1e-6)


def test_protection_is_measured_with_what_it_protects(measured: Residuals) -> None:
    assert measured.protected == {FREE: 0, HELD: 6}
    assert measured.left(HELD, "full") > measured.left(FREE, "full")
    assert "6 directions protected" in draw_residual(measured, task="a", held=HELD).words


def test_what_is_left_is_the_mean_over_the_tasks_and_the_table_says_it(measured: Residuals) -> None:
    by = measured.found[HELD].values()
    assert measured.left(HELD, "row") == pytest.approx(100 * sum(one["row"].whole for one in by) / 3)
    assert measured.left(HELD, "row", "diagonal") == pytest.approx(100 * sum(one["row"].diagonal for one in by) / 3)
    rows = {row[:2]: row[2:] for row in measured.table().rows}
    assert rows[HELD, "row"][2:] == (measured.left(HELD, "row"), measured.moved[HELD]["row"])
    assert rows[FREE, "S"][3] == 0
    assert len(rows) == 8


def test_maps_show_what_was_measured(measured: Residuals) -> None:
    drawing = draw_residual(measured, task="b", held=HELD)
    axes, bar = drawing.figure.axes
    assert bar.get_label() == "<colorbar>"
    written = [one.get_text() for one in axes.texts]
    for picture, (label, one) in zip(axes.images, measured.found[HELD]["b"].items(), strict=True):
        np.testing.assert_array_equal(picture.get_array(), one.picture)
        left, right, bottom, top = picture.get_extent()
        above = [text for text in axes.texts if left < text.get_position()[0] < right and text.get_position()[1] > top]
        assert [text.get_text().partition(":")[0] for text in above] == [label]
        below = [
            text for text in axes.texts if left < text.get_position()[0] < right and text.get_position()[1] < bottom
        ]
        assert below[0].get_text().splitlines()[2] == f"{100 * one.whole:.0f} %"
    assert "|tr R|\n‖diag R‖\n‖R‖" in written


def test_all_settings_of_the_panel_have_one_scale_and_its_bar_says_so(measured: Residuals) -> None:
    scales = set()
    for held in (FREE, HELD):
        for task in NAMES:
            axes, bar = draw_residual(measured, task=task, held=held).figure.axes
            scales |= {(type(one.norm), one.get_clim(), one.get_cmap().name) for one in axes.images}
            assert "logarithmic, one scale\nfor all settings" in bar.get_ylabel()
            assert bar.get_yscale() == "log"
    assert scales == {(LogNorm, measured.scale, "viridis")}
    # A few extreme entries, zeros among them, do not take the scale from the rest.
    every = torch.cat(
        [one.picture.flatten() for all_ in measured.found.values() for by in all_.values() for one in by.values()]
    )
    assert measured.scale[1] == pytest.approx(float(every.quantile(0.98)), rel=0.02)
    assert measured.scale[0] == pytest.approx(max(float(every.quantile(0.02)), measured.scale[1] / 1000))
    assert bool((every < measured.scale[0]).any())


def test_a_residual_of_nothing_has_a_scale_all_the_same() -> None:
    alone = measure_residuals(taus(1), ["a"])
    assert 0 < alone.scale[0] < alone.scale[1]
    assert draw_residual(alone, task="a").words


def test_blocks_are_named_in_the_picture() -> None:
    axes, _ = draw_residual(measure_residuals(taus(), NAMES, size=4), task="a").figure.axes
    assert "a point: mean over 3 × 3 entries" in axes.get_xlabel()


def test_words_and_numbers_are_what_is_left(measured: Residuals) -> None:
    drawing = draw_residual(measured, task="b", held=FREE)
    found = measured.found[FREE]["b"]
    assert len(drawing.numbers) == 12
    assert drawing.numbers["‖R‖ at full (% of the base's)"] == 100 * found["full"].whole
    assert drawing.numbers["|tr R| at S (% of the base's)"] == 100 * found["S"].trace
    assert f"solved by layer |tr R| < 0.1 %, ‖diag R‖ {100 * found['layer'].diagonal:.0f} %" in drawing.words


def seconds(make: Callable[[], object]) -> float:
    """Of this process, the least of seven: what else the machine does only adds to it."""
    taken = []
    for _ in range(7):
        begun = time.process_time()
        make()
        taken.append(time.process_time() - begun)
    return min(taken)


@pytest.mark.alone
def test_a_picture_takes_hardly_longer_than_empty_axes() -> None:
    draws = torch.Generator().manual_seed(0)
    measured = measure_residuals(0.1 * torch.randn(2, 96, 20, generator=draws), ["a", "b"], size=48)

    def empty() -> None:
        with styled():
            drawn, _ = figure(1, 2, width=9.0, height=3.5)
        png(drawn)

    assert seconds(lambda: frame(draw_residual(measured, task="a"))) < 1.5 * seconds(empty)


def test_a_task_that_was_not_measured(measured: Residuals) -> None:
    with pytest.raises(ApgdTeachError, match="no task 'd' was measured; there are: a, b, c"):
        draw_residual(measured, task="d")
    with pytest.raises(ApgdTeachError, match="nothing was measured with 'all' protected; there are: nothing, half"):
        draw_residual(measured, task="a", held="all")


@pytest.mark.parametrize(
    ("vectors", "names", "settings", "sentence"),
    [
        (taus()[0], NAMES, {}, "give \\(task, out, in\\)"),
        (taus(), NAMES[:2], {}, "there are 2 names"),
        (taus(), ["a", "a", "b"], {}, "a name of its own"),
        (taus(), NAMES, {"size": 0}, "size is 0"),
        (taus(), NAMES, {"protect": {"less": -1}}, "protect"),
        (taus(), NAMES, {"protect": {"softly": "auto"}}, "give a share from 0 to 1"),
        (taus(), NAMES, {"protect": {}}, "there is no share to protect"),
        (torch.cat([taus(2), torch.zeros(1, 12, 20)]), NAMES, {}, "'c' did not move"),
    ],
)
def test_what_has_no_residual_is_one_sentence(vectors: Tensor, names: list, settings: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_residuals(vectors, names, **settings)
