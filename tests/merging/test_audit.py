from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.merging import fingerprint, merge


def test_there_is_a_row_a_tensor_in_the_order_of_the_base(base, experts) -> None:
    audit = merge(base, experts).audit
    assert [row.name for row in audit.rows] == list(base)
    assert [row.shape for row in audit.rows] == [tuple(tensor.shape) for tensor in base.values()]


def test_the_norms_are_those_of_a_sum_by_hand() -> None:
    base = {"w": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "b": torch.tensor([2.0]), "n": torch.tensor([3, 4])}
    experts = {
        "a": {**base, "w": base["w"] + torch.tensor([[6.0, 0.0], [8.0, 0.0]])},  # ‖τ‖ = 10
        "b": {**base, "w": base["w"] + torch.tensor([[0.0, 2.0], [0.0, 0.0]])},  # ‖τ‖ = 2
    }
    weight, vector, counter = merge(base, experts).audit.rows
    assert (weight.base_norm, weight.task_norm) == (5.0, 6.0)
    assert weight.update_norm == pytest.approx(math.sqrt(3**2 + 4**2 + 1**2))  # M = [[3, 1], [4, 0]]
    assert weight.relative_step == pytest.approx(math.sqrt(26) / 5)
    assert (vector.base_norm, vector.task_norm, vector.update_norm, vector.relative_step) == (2.0, 0.0, 0.0, 0.0)
    assert (counter.base_norm, counter.task_norm, counter.update_norm) == (5.0, 0.0, 0.0)


def test_a_method_that_writes_into_what_it_was_given_changes_no_norm(base, experts) -> None:
    class Overwrites:
        name = "overwrites"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            update = task_vectors.mean(dim=0)
            task_vectors.zero_()
            return update

    assert merge(base, experts, Overwrites()).audit.rows == merge(base, experts).audit.rows


def test_a_step_from_zero_is_infinite_beside_it_and_still_json() -> None:
    base = {"w": torch.zeros(2, 2), "b": torch.zeros(2)}
    audit = merge(base, {"a": {"w": torch.ones(2, 2), "b": torch.zeros(2)}}).audit
    assert [(row.update_norm, row.relative_step) for row in audit.rows] == [(2.0, math.inf), (0.0, 0.0)]
    assert audit.table().column("‖M‖/‖θ₀‖ %") == [math.inf, 0.0]
    assert json.loads(audit.to_json())["rows"][0]["update_norm"] == 2.0


@pytest.mark.parametrize(
    ("dtype", "value"), [(torch.float16, 6e4), (torch.bfloat16, 1e38), (torch.float32, 1e38), (torch.float64, 1e140)]
)
def test_a_norm_is_finite_where_the_square_of_a_value_has_no_room(dtype, value: float) -> None:
    base = {"w": torch.full((10, 10), value, dtype=dtype)}
    row = merge(base, {"a": {"w": base["w"] * 0.5}}).audit.rows[0]
    assert row.base_norm == pytest.approx(10 * float(base["w"][0, 0]))
    assert row.task_norm == row.update_norm == pytest.approx(5 * float(base["w"][0, 0]))


def test_each_row_says_why(base, experts) -> None:
    base["empty"] = torch.zeros(0, 3)
    for state in experts.values():
        state["empty"] = torch.zeros(0, 3)
    assert {(row.policy, row.reason) for row in merge(base, experts).audit.rows} == {
        ("merge", "a weight"),
        ("average", "a vector or scalar: no output and input side to work on"),
        ("keep", "integers have no task vector"),
        ("keep", "it holds no values"),
    }


def test_the_audit_names_what_went_in(base, experts) -> None:
    audit = merge(base, dict(reversed(experts.items()))).audit
    assert audit.data_used == "none"
    assert (audit.method, audit.settings) == ("average", {})
    assert audit.experts == ("ada", "ben", "cy")
    assert audit.versions == {"apgd_teach": __version__, "torch": torch.__version__}
    assert audit.inputs == {"base": fingerprint(base), **{name: fingerprint(state) for name, state in experts.items()}}


def test_a_merge_can_be_repeated_from_its_audit(base, experts) -> None:
    one, other = merge(base, experts), merge(base, experts)
    assert one.audit == other.audit
    assert fingerprint(one.state_dict) == fingerprint(other.state_dict)


def test_one_bit_more_is_another_audit(base, experts) -> None:
    before = merge(base, experts).audit.inputs
    pattern = experts["ben"]["linear.weight"].view(torch.int32)
    pattern[0, 0] ^= 1
    after = merge(base, experts).audit.inputs
    assert [name for name in before if before[name] != after[name]] == ["ben"]


def test_the_record_returns_from_json_as_it_was(base, experts) -> None:
    experts["ada"]["norm.num_batches_tracked"] = torch.tensor(9)
    audit = merge(base, experts).audit
    read = json.loads(audit.to_json())
    assert list(read) == sorted(read)
    assert read["inputs"] == audit.inputs
    assert read["experts"] == list(audit.experts)
    assert read["warnings"][0]["where"] == "expert 'ada', tensor 'norm.num_batches_tracked'"
    for row, was in zip(read["rows"], audit.rows, strict=True):
        assert tuple(row["shape"]) == was.shape
        assert (row["name"], row["base_norm"], row["update_norm"]) == (was.name, was.base_norm, was.update_norm)


@dataclass(frozen=True)
class Odd:
    """A method with every kind of setting that JSON has no sign for."""

    cap: float = math.inf
    start: float = math.nan
    weights: Tensor = field(default_factory=lambda: torch.ones(2))
    layers: tuple[int, ...] = (1, 2)
    by_layer: dict[int, float] = field(default_factory=lambda: {1: -math.inf})
    greek: str = "λ"
    name: ClassVar[str] = "odd"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        return task_vectors[0]


def test_settings_that_json_has_no_sign_for_are_kept_as_text(base, experts) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    text = merge(base, experts, Odd()).audit.to_json()
    assert json.loads(text, parse_constant=refuse)["settings"] == {
        "cap": "inf",
        "start": "nan",
        "weights": "tensor([1., 1.])",
        "layers": [1, 2],
        "by_layer": {"1": "-inf"},
        "greek": "λ",
    }
    assert "λ" in text


def test_the_table_shows_the_step_in_per_cent() -> None:
    base = {"w": torch.tensor([[3.0, 0.0], [0.0, 4.0]]), "s": torch.tensor(2.0)}
    table = merge(base, {"a": {"w": base["w"] * 1.1, "s": base["s"]}}).audit.table()
    assert table.caption == "average of 1 expert; data used: none"
    assert table.column("shape") == ["2×2", "scalar"]
    assert table.column("‖M‖/‖θ₀‖ %") == pytest.approx([10.0, 0.0], abs=1e-4)
    assert "10.00" in str(table)


def test_the_table_repeats_the_warnings(base, experts) -> None:
    experts["ada"] = dict(base)
    table = merge(base, experts).audit.table()
    assert table.note == "expert 'ada' is the base itself; leave it out: it pulls the others to the base"
