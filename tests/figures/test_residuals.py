"""Residual maps: the numbers by hand, and what is drawn is what was measured."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.residuals import Residuals, draw_residual, measure_residuals
from apgd_teach.merging import Apgd, residual


def taus(tasks: int = 3, out: int = 12, in_: int = 20) -> Tensor:
    draws = torch.Generator().manual_seed(0)
    together = torch.randn(out, in_, generator=draws, dtype=torch.float64)
    return 0.1 * torch.randn(tasks, out, in_, generator=draws, dtype=torch.float64) + 0.05 * together


NAMES = ["a", "b", "c"]


@pytest.fixture(scope="module")
def measured() -> Residuals:
    return measure_residuals(taus(), NAMES)


def test_each_granularity_makes_vanish_what_it_asks_for(measured: Residuals) -> None:
    for by in measured.found.values():
        assert list(by) == ["S", "layer", "row", "full"]
        assert by["layer"].trace < 1e-3 < by["layer"].diagonal
        assert by["row"].diagonal < 1e-3 < by["row"].whole
        assert by["full"].whole < min(by[one].whole for one in ("S", "layer", "row"))


def test_the_numbers_are_those_of_the_residual(measured: Residuals) -> None:
    vectors = taus()
    update = Apgd(granularity="layer", protect=0.0, flatten=0.0).solve(vectors).update
    here, base = residual(vectors, update)[1].numpy(), residual(vectors, torch.zeros_like(update))[1].numpy()
    found = measured.found["b"]["layer"]
    np.testing.assert_allclose(found.picture, here / np.sqrt((base**2).mean()), rtol=1e-6)
    assert found.trace == pytest.approx(abs(here.trace() / base.trace()), abs=1e-9)
    assert found.diagonal == pytest.approx(np.linalg.norm(np.diag(here)) / np.linalg.norm(np.diag(base)))
    assert found.whole == pytest.approx(np.linalg.norm(here) / np.linalg.norm(base))


def test_s_is_the_start_whatever_is_asked(measured: Residuals) -> None:
    vectors = taus()
    start = Apgd(granularity="row", protect=0.0).solve(vectors).start
    here, base = residual(vectors, start)[0], residual(vectors, torch.zeros_like(start))[0]
    assert measured.found["a"]["S"].whole == pytest.approx(float(here.norm() / base.norm()))


@pytest.mark.parametrize("size", [1, 4, 5, 7, 11])
def test_blocks_are_means_of_what_lies_in_them(measured: Residuals, size: int) -> None:
    blocks = measure_residuals(taus(), NAMES, size=size)
    assert blocks.blocks == size
    whole, found = measured.found["c"]["row"].picture.abs(), blocks.found["c"]["row"].picture
    ends = [round(i * 12 / size) for i in range(size + 1)]
    for i in range(size):
        for j in range(size):
            block = whole[ends[i] : ends[i + 1], ends[j] : ends[j + 1]]
            assert block.numel()
            assert float(found[i, j]) == pytest.approx(float(block.mean()), rel=1e-6)


def test_protection_is_measured_with_what_it_protects() -> None:
    free, held = (measure_residuals(taus(), NAMES, protect=share) for share in (0.0, 0.5))
    assert (free.protected, held.protected) == (0, 6)
    assert held.found["a"]["full"].whole > free.found["a"]["full"].whole
    assert "6 directions protected" in draw_residual(held, task="a").words


def test_maps_show_what_was_measured_on_one_scale(measured: Residuals) -> None:
    drawing = draw_residual(measured, task="b")
    *panels, bar = drawing.figure.axes
    assert bar.get_label() == "<colorbar>"
    scales = set()
    for axes, (label, one) in zip(panels, measured.found["b"].items(), strict=True):
        (picture,) = axes.images
        np.testing.assert_array_equal(picture.get_array(), one.picture)
        assert axes.get_title().startswith(label)
        scales.add((picture.get_clim(), picture.get_cmap().name))
    (((low, high), name),) = scales
    assert low == -high
    # A few large entries do not take the scale from the rest; the bar says so.
    every = torch.cat([one.picture.abs().flatten() for one in measured.found["b"].values()])
    assert high == pytest.approx(float(every.quantile(0.98)))
    assert "and beyond" in bar.get_ylabel()
    assert name == "RdBu_r"


def test_blocks_are_named_in_the_picture_and_their_scale_begins_at_nothing() -> None:
    drawn = draw_residual(measure_residuals(taus(), NAMES, size=4), task="a").figure
    assert "means of |R| (12 × 12) over 4 × 4 blocks" in drawn.get_suptitle()
    assert drawn.axes[0].images[0].get_clim()[0] == 0


def test_words_and_numbers_are_what_is_left(measured: Residuals) -> None:
    drawing = draw_residual(measured, task="b")
    found = measured.found["b"]
    assert len(drawing.numbers) == 12
    assert drawing.numbers["‖R‖ at full (% of the base's)"] == 100 * found["full"].whole
    assert drawing.numbers["|tr R| at S (% of the base's)"] == 100 * found["S"].trace
    assert f"solved by layer |tr R| < 0.1 %, ‖diag R‖ {100 * found['layer'].diagonal:.0f} %" in drawing.words


def test_a_task_that_was_not_measured(measured: Residuals) -> None:
    with pytest.raises(ApgdTeachError, match="no task 'd' was measured; there are: a, b, c"):
        draw_residual(measured, task="d")


@pytest.mark.parametrize(
    ("vectors", "names", "settings", "sentence"),
    [
        (taus()[0], NAMES, {}, "give \\(task, out, in\\)"),
        (taus(), NAMES[:2], {}, "there are 2 names"),
        (taus(), ["a", "a", "b"], {}, "a name of its own"),
        (taus(), NAMES, {"size": 0}, "size is 0"),
        (taus(), NAMES, {"protect": -1}, "protect"),
        (taus(), NAMES, {"protect": "auto"}, "give a share from 0 to 1"),
        (torch.cat([taus(2), torch.zeros(1, 12, 20)]), NAMES, {}, "'c' did not move"),
    ],
)
def test_what_has_no_residual_is_one_sentence(vectors: Tensor, names: list, settings: dict, sentence: str) -> None:
    with pytest.raises(ApgdTeachError, match=sentence):
        measure_residuals(vectors, names, **settings)
