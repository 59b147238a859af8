"""The same merge in two places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from apgd_teach.agreement import TOLERANCE, Place, agreement, agreement_table
from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging import METHODS, Apgd, merge

CPU = torch.device("cpu")
SINGLE, DOUBLE = Place(CPU), Place(CPU, torch.float64)


def draw(seed: int, scale: float) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    shapes = {"first.weight": (24, 36), "conv.weight": (12, 3, 3, 3), "first.bias": (24,)}
    state = {name: scale * torch.randn(shape, generator=draws) for name, shape in shapes.items()}
    return {**state, "count": torch.tensor(7)}


@pytest.fixture(scope="module")
def base() -> dict[str, Tensor]:
    return draw(0, 1.0)


@pytest.fixture(scope="module")
def experts(base) -> dict[str, dict[str, Tensor]]:
    return {
        f"task {n}": {
            key: base[key] + tau if tau.is_floating_point() else base[key] for key, tau in draw(n, 0.1).items()
        }
        for n in (1, 2, 3)
    }


@pytest.mark.parametrize("method", ["average", "tsv_m", "iso_c", "wudi", "apgd"])
def test_twice_the_precision_gives_the_same_answer_within_the_tolerance(base, experts, method: str) -> None:
    found = agreement(base, experts, method, SINGLE, DOUBLE)
    assert 0 < found.update <= TOLERANCE
    assert found.projector <= TOLERANCE
    assert found.holds
    assert found.method == method
    expected = merge(base, experts, method).state_dict
    for key, tensor in found.merged.state_dict.items():
        assert tensor.dtype == base[key].dtype
        torch.testing.assert_close(tensor, expected[key], atol=1e-3, rtol=1e-3)


def test_a_place_agrees_with_itself_to_the_bit(base, experts) -> None:
    found = agreement(base, experts, "apgd", SINGLE, SINGLE)
    assert (found.update, found.projector) == (0.0, 0.0)


def test_half_the_digits_are_seen_to_disagree(base, experts) -> None:
    found = agreement(base, experts, "average", SINGLE, Place(CPU, torch.bfloat16))
    assert found.update > TOLERANCE
    assert not found.holds


def test_a_place_that_is_not_here_gets_a_sentence(base, experts) -> None:
    gone = "cuda" if not torch.cuda.is_available() else "cuda:99"
    with pytest.raises(ApgdTeachError, match=r"nothing can be computed on cuda, float32: "):
        agreement(base, experts, "average", SINGLE, Place(torch.device(gone)))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("method", sorted(set(METHODS) - {"dare"}))
def test_the_gpu_gives_the_cpus_answer(base, experts, method: str) -> None:
    assert agreement(base, experts, method, SINGLE, Place(torch.device("cuda"))).holds


def test_the_table_says_which_agree(base, experts) -> None:
    methods = {"average": "average", "row": Apgd(granularity="row", protect=1 / 6)}
    table = agreement_table({label: agreement(base, experts, m, SINGLE, DOUBLE) for label, m in methods.items()})
    assert table.column("method") == ["average", "row"]
    assert table.column("within 0.001") == ["yes", "yes"]
    assert "cpu, float32 and cpu, float64" in str(table)
