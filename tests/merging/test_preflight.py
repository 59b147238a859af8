from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge, preflight


def sentences(base, experts) -> list[str]:
    return [f"{finding.level}: {finding}" for finding in preflight(base, experts).findings]


def test_state_dicts_that_fit_have_no_findings(base, experts) -> None:
    report = preflight(base, experts)
    assert report.findings == ()
    assert report.verdict == "can be merged"
    report.raise_errors()


# One defect, one sentence


def test_a_missing_tensor_is_named_with_the_one_that_is_probably_meant(base, experts) -> None:
    experts["ben"]["linear.weights"] = experts["ben"].pop("linear.weight")
    assert sentences(base, experts) == [
        "error: expert 'ben' has no tensor 'linear.weight', which the base has; "
        "rename 'linear.weights' if it is the same tensor",
        "error: expert 'ben' has a tensor 'linear.weights' that the base has not; take task heads out before merging",
    ]


def test_a_missing_tensor_with_nothing_like_it_has_no_guess(base, experts) -> None:
    del experts["ben"]["gain"]
    assert sentences(base, experts) == [
        "error: expert 'ben' has no tensor 'gain', which the base has; only networks of one kind can be merged"
    ]


def test_a_task_head_left_on_an_expert_is_named(base, experts) -> None:
    experts["ada"]["head.weight"] = torch.zeros(10, 3)
    assert sentences(base, experts) == [
        "error: expert 'ada' has a tensor 'head.weight' that the base has not; take task heads out before merging"
    ]


def test_another_shape_is_named_with_both(base, experts) -> None:
    experts["cy"]["conv.weight"] = torch.zeros(8, 2, 3, 3)
    (said,) = sentences(base, experts)
    assert said.startswith(
        "error: expert 'cy', tensor 'conv.weight' has shape (8, 2, 3, 3) and the base has (4, 2, 3, 3);"
    )


def test_another_dtype_is_named_with_both(base, experts) -> None:
    experts["cy"]["gain"] = experts["cy"]["gain"].half()
    (said,) = sentences(base, experts)
    assert said.startswith("error: expert 'cy', tensor 'gain' is torch.float16 and the base is torch.float32; convert")


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("who", ["base", "ada"])
def test_one_number_that_is_none_is_found(base, experts, bad: float, who: str) -> None:
    state = base if who == "base" else experts[who]
    state["conv.weight"][3, 1, 2, 2] = bad
    name = "base" if who == "base" else "expert 'ada'"
    errors = [str(finding) for finding in preflight(base, experts).errors]
    assert errors == [
        f"{name}, tensor 'conv.weight' holds NaN or infinity; take an earlier checkpoint, before it diverged"
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_nan_is_found_in_every_precision(base, dtype) -> None:
    good, bad = {"w": torch.ones(2, 2, dtype=dtype)}, {"w": torch.full((2, 2), math.nan, dtype=dtype)}
    (said,) = sentences(good, {"a": bad})[:1]
    assert said.startswith("error: expert 'a', tensor 'w' holds NaN or infinity;")


def test_an_expert_that_is_the_base_is_a_warning(base, experts) -> None:
    experts["ben"] = {key: tensor.clone() for key, tensor in base.items()}
    assert sentences(base, experts) == [
        "warning: expert 'ben' is the base itself; leave it out: it pulls the others to the base"
    ]


def test_a_base_of_zeros_is_not_its_expert() -> None:
    assert sentences({"w": torch.zeros(2, 2)}, {"a": {"w": torch.ones(2, 2)}}) == [
        "warning: expert 'a' is inf times the base's own norm away from it; it was probably fine-tuned from another "
        "base, and a merge of such experts is not expected to work"
    ]
    (said,) = sentences({"w": torch.zeros(2, 2)}, {"a": {"w": torch.zeros(2, 2)}})
    assert said.startswith("warning: expert 'a' is the base itself;")


def test_twins_are_a_warning_also_when_their_first_tensor_is_everybodys(base, experts) -> None:
    for state in experts.values():
        state["conv.bias"] = base["conv.bias"].clone()  # frozen in all: no twin yet
    assert sentences(base, experts) == []
    experts["cy"] = {key: tensor.clone() for key, tensor in experts["ben"].items()}
    assert sentences(base, experts) == [
        "warning: expert 'cy' is the same as expert 'ben'; it counts twice in the merge"
    ]


def test_another_start_is_another_base(base, experts) -> None:
    torch.manual_seed(5)
    experts["ada"] = {k: torch.randn_like(v) if v.is_floating_point() else v for k, v in base.items()}
    (said,) = sentences(base, experts)
    assert said.startswith("warning: expert 'ada' is 1.")
    assert "fine-tuned from another base" in said


def test_just_below_the_base_s_own_norm_there_is_no_warning(base) -> None:
    def moved(share: float):
        return {k: v * (1 + share) if v.is_floating_point() else v for k, v in base.items()}

    assert sentences(base, {"a": moved(0.99)}) == []
    assert "is 1.01 times the base's own norm" in sentences(base, {"a": moved(1.01)})[0]


def test_counters_that_differ_are_a_warning(base, experts) -> None:
    experts["ben"]["norm.num_batches_tracked"] = torch.tensor(8)
    assert sentences(base, experts) == [
        "warning: expert 'ben', tensor 'norm.num_batches_tracked' is a tensor of integers that differs from the "
        "base's; integers are not merged: the base's are kept"
    ]


STATE = "give model.state_dict(), a dict of tensors by name"
DICT = "give a dict of state dicts, {name: state_dict}"
ODD = "is nested, complex, quantised or sparse; convert it into an ordinary tensor, or take it out of all of them"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "error: the experts are an empty dict; give at least one state dict, {name: state_dict}"),
        ([{"w": torch.ones(1)}], f"error: the experts are a list; {DICT}"),
        (None, f"error: the experts are a NoneType; {DICT}"),
        ("ada", f"error: the experts are a str; {DICT}"),
        ({"w": torch.ones(1)}, f"error: the experts are one state dict; {DICT}"),
    ],
)
def test_what_is_no_dict_of_experts_gets_its_sentence(base, wrong, said: str) -> None:
    assert sentences(base, wrong) == [said]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (None, f"is a NoneType and no state dict; {STATE}"),
        ("expert.pt", f"is a str and no state dict; {STATE}"),
        ([1], f"is a list and no state dict; {STATE}"),
        (nn.Linear(2, 2), f"is a Linear and no state dict; {STATE}"),
        ({}, f"is empty; {STATE}"),
    ],
)
def test_what_is_no_state_dict_gets_its_sentence_as_expert_and_as_base(base, experts, wrong, said: str) -> None:
    assert sentences(wrong, {"ada": base})[0] == f"error: base {said}"
    assert f"error: expert 'ben' {said}" in sentences(base, {**experts, "ben": wrong})


# Made when a test asks: PyTorch warns about some of them.
NO_TENSORS = {
    "a numpy array": (lambda: np.ones((3, 36)), f"is a ndarray; {STATE}"),
    "a checkpoint in a checkpoint": (lambda: {"weight": torch.ones(3)}, f"is a dict; {STATE}"),
    "a number": (lambda: 1.0, f"is a float; {STATE}"),
    "nothing": (lambda: None, f"is a NoneType; {STATE}"),
    "complex": (lambda: torch.ones(3, 36, dtype=torch.complex64), ODD),
    "sparse": (lambda: torch.ones(3, 36).to_sparse(), ODD),
    "quantised": (lambda: torch.quantize_per_tensor(torch.ones(3, 36), 0.1, 0, torch.qint8), ODD),
    "nested": (lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), ODD),
    "float8": (
        lambda: torch.ones(3, 36).to(torch.float8_e4m3fn),
        "is torch.float8_e4m3fn, which is too coarse to subtract; take the checkpoint before it was quantised",
    ),
    "meta": (
        lambda: torch.ones(3, 36, device="meta"),
        "has a shape and no values (device 'meta'); load the weights onto the CPU",
    ),
    "lazy": (
        nn.parameter.UninitializedParameter,
        "has no shape yet; run the network once on an input before taking its state dict",
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", list(NO_TENSORS))
def test_what_is_no_tensor_to_merge_gets_its_sentence_as_expert_and_in_all(base, experts, kind: str) -> None:
    make, said = NO_TENSORS[kind]
    wrong = make()
    experts["ben"]["linear.weight"] = wrong
    assert sentences(base, experts) == [f"error: expert 'ben', tensor 'linear.weight' {said}"]
    for state in (base, *experts.values()):
        state["linear.weight"] = wrong
    assert [line.split(", tensor")[0] for line in sentences(base, experts)] == [
        "error: base",
        *(f"error: expert '{name}'" for name in experts),
    ]


@pytest.mark.parametrize("key", [1, None, ("conv", "weight"), b"gain"])
def test_a_key_that_is_no_string_is_a_finding_and_no_traceback(base, experts, key) -> None:
    experts["ada"][key] = torch.ones(2)
    said = sentences(base, experts)
    assert f"error: expert 'ada' has the key {key!r}, which is no string; name every tensor with a string" in said
    base[key] = torch.ones(2)
    assert f"error: base has the key {key!r}, which is no string; name every tensor with a string" in sentences(
        base, experts
    )


@pytest.mark.parametrize("name", [1, None, ("a",)])
def test_an_expert_whose_name_is_no_string_is_a_finding(base, experts, name) -> None:
    assert sentences(base, {**experts, name: dict(experts["ada"])}) == [
        f"error: expert {name!r} has a name that is no string; use a string"
    ]


def test_no_expert_can_take_the_place_of_the_base_in_the_audit(base, experts) -> None:
    assert sentences(base, {"base": experts["ada"]}) == [
        "error: expert 'base' has the name that the audit gives the base; call it something else"
    ]


def test_integers_alone_are_nothing_to_merge() -> None:
    state = {"steps": torch.arange(3)}
    assert sentences(state, {"a": {"steps": torch.arange(3)}}) == [
        "error: base holds no tensor of floats; there is nothing to merge without",
        "error: expert 'a' holds no tensor of floats; there is nothing to merge without",
    ]


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 0, 2)])
def test_empty_tensors_are_no_finding_of_their_own(base, experts, shape) -> None:
    for state in (base, *experts.values()):
        state["empty"] = torch.zeros(shape)
    assert sentences(base, experts) == []
    (said,) = sentences({"e": torch.zeros(shape)}, {"a": {"e": torch.zeros(shape)}})
    assert said.startswith("warning: expert 'a' is the base itself")


values = st.one_of(
    st.none(),
    st.integers(),
    st.text(max_size=3),
    st.sampled_from(
        [
            torch.ones(2, 2),
            torch.ones(2, 2).half(),
            torch.tensor(1),
            torch.zeros(0, 2),
            torch.tensor(math.nan),
            torch.ones(2, device="meta"),
            torch.ones(2, dtype=torch.complex64),
            torch.ones(2, 2).to_sparse(),
            torch.ones(3, dtype=torch.bool),
            np.ones(2),
        ]
    ),
)
keys = st.one_of(st.sampled_from(["w", "b"]), st.none(), st.integers(0, 2), st.tuples(st.integers(0, 1)))
states = st.one_of(values, st.lists(values, max_size=2), st.dictionaries(keys, values, max_size=3))


@given(base=states, experts=st.one_of(states, st.dictionaries(keys, states, max_size=3)))
def test_whatever_goes_in_a_report_comes_out(base, experts) -> None:
    report = preflight(base, experts)
    assert report.table()._repr_html_()
    if report.errors:
        with pytest.raises(MergeError):
            merge(base, experts)
    else:
        assert merge(base, experts).state_dict.keys() == base.keys()


# The report


def test_everything_wrong_is_in_one_report(base, experts) -> None:
    experts["ada"]["head.weight"] = torch.zeros(10, 3)
    experts["ben"]["conv.bias"] = torch.zeros(9)
    experts["ben"]["gain"] = experts["ben"]["gain"].double()
    experts["cy"]["linear.weight"] = np.ones((3, 36))
    experts["cy"]["linear.bias"] = None
    del experts["cy"]["conv.bias"]
    report = preflight(base, {**experts, "dan": None})
    assert [finding.where for finding in report.findings] == [
        "expert 'ada'",
        "expert 'ben', tensor 'conv.bias'",
        "expert 'ben', tensor 'gain'",
        "expert 'cy'",
        "expert 'cy', tensor 'linear.bias'",
        "expert 'cy', tensor 'linear.weight'",
        "expert 'dan'",
    ]
    assert report.verdict == "cannot be merged (7 errors, 0 warnings)"
    with pytest.raises(
        MergeError, match=r"^expert 'ada' has a tensor .* \(6 more: see preflight\(base, experts\)\.table"
    ):
        report.raise_errors()


def test_errors_come_first_and_warnings_stop_nothing(base, experts) -> None:
    experts["ada"] = dict(base)
    experts["cy"]["gain"] = torch.tensor(math.nan)
    report = preflight(base, experts)
    assert [finding.level for finding in report.findings] == ["error", "warning"]
    assert [finding.where for finding in report.findings] == ["expert 'cy', tensor 'gain'", "expert 'ada'"]
    assert report.verdict == "cannot be merged (1 error, 1 warning)"
    experts["cy"]["gain"] = torch.tensor(1.0)
    report = preflight(base, experts)
    assert report.verdict == "can be merged (1 warning)"
    assert merge(base, experts).audit.warnings == report.warnings == report.findings


def test_the_table_has_a_row_a_finding(base, experts) -> None:
    experts["ada"] = dict(base)
    table = preflight(base, experts).table()
    assert table.caption == "Pre-flight: can be merged (1 warning)"
    assert table.column("where") == ["expert 'ada'"]
    assert table.column("level") == ["warning"]
    assert len(preflight(base, {"b": experts["ben"]}).table().rows) == 0


def test_looking_changes_nothing(base, experts) -> None:
    before = {key: tensor.numpy().tobytes() for key, tensor in base.items()}
    versions = [tensor._version for tensor in (*base.values(), *experts["ada"].values())]
    preflight(base, experts)
    assert {key: tensor.numpy().tobytes() for key, tensor in base.items()} == before
    assert [tensor._version for tensor in (*base.values(), *experts["ada"].values())] == versions


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_an_expert_on_another_device_gets_its_sentence(base, experts) -> None:
    experts["ben"]["gain"] = experts["ben"]["gain"].cuda()
    assert sentences(base, experts) == [
        "error: expert 'ben', tensor 'gain' is on cuda:0 and the base on cpu; move both to one device"
    ]
