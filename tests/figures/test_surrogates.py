"""Surrogates of real merges: those of the library, layer by layer, and the bounds between them."""

from __future__ import annotations

import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.surrogates import Surrogates, measure_surrogates
from apgd_teach.merging import merge, surrogate, task_vectors
from apgd_teach.merging.surrogate import GRANULARITIES

DRAWS = torch.Generator().manual_seed(0)
BASE = {"w": torch.randn(4, 6, generator=DRAWS), "conv": torch.randn(3, 2, 2, 2, generator=DRAWS), "b": torch.zeros(4)}
EXPERTS = {
    name: {key: one + 0.1 * torch.randn(one.shape, generator=DRAWS) for key, one in BASE.items()} for name in "xyz"
}
VECTORS = task_vectors(BASE, EXPERTS)
MERGES = {"average": merge(BASE, EXPERTS), "wudi": merge(BASE, EXPERTS, "wudi")}


@pytest.fixture(scope="module")
def measured() -> Surrogates:
    return measure_surrogates(BASE, VECTORS, MERGES)


def test_values_are_the_librarys_on_each_merged_layer(measured: Surrogates) -> None:
    assert measured.outputs == {"w": 4, "conv": 3}
    assert list(measured.values) == ["average", "wudi", "base"]
    for layer in measured.outputs:
        stack = torch.stack([tau[layer].flatten(1).double() for tau in VECTORS.values()])
        update = (MERGES["wudi"].state_dict[layer] - BASE[layer]).flatten(1).double()
        for one in GRANULARITIES:
            torch.testing.assert_close(measured.values["wudi"][layer][one], surrogate(stack, update, one))
            torch.testing.assert_close(measured.values["base"][layer][one], surrogate(stack, 0 * update, one))


def test_what_is_left_is_a_share_of_the_bases_and_every_layer_counts_the_same(measured: Surrogates) -> None:
    assert measured.left("base") == pytest.approx(dict.fromkeys(GRANULARITIES, 100.0))
    shares = [measured.values["average"][one]["full"] / measured.values["base"][one]["full"] for one in ("w", "conv")]
    assert measured.left("average")["full"] == pytest.approx(100 * float(torch.stack(shares).mean()))
    assert measured.left("wudi")["full"] < measured.left("average")["full"]


def test_each_bound_is_used_up_to_at_most_a_hundred_per_cent(measured: Surrogates) -> None:
    table = measured.bounds("average")
    assert table.column("layer") == ["w", "conv"]
    assert table.column("d") == [4, 3]
    for name, part, whole in (
        ("(tr R)² of d ‖diag R‖², %", "layer", "row"),
        ("‖diag R‖² of ‖R‖², %", "row", "full"),
    ):
        for (layer, d), share in zip(measured.outputs.items(), table.column(name), strict=True):
            found = measured.values["average"][layer]
            bound = found[whole] * (d if part == "layer" else 1)
            assert (found[part] <= bound * (1 + 1e-9)).all()
            assert share == pytest.approx(100 * float((found[part] / bound).mean()))
            assert 0 < share <= 100


def test_merges_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ApgdTeachError, match="at least one merge, and none of them called 'base'"):
        measure_surrogates(BASE, VECTORS, {})
    with pytest.raises(ApgdTeachError, match="none of them called 'base'"):
        measure_surrogates(BASE, VECTORS, {"base": MERGES["average"]})
    kept = merge(BASE, EXPERTS, policy={"w": "keep"})
    with pytest.raises(ApgdTeachError, match="average, kept merged different layers"):
        measure_surrogates(BASE, VECTORS, {"average": MERGES["average"], "kept": kept})
