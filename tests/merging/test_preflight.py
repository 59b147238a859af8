from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import get_model

from apgd_teach.errors import MergeError
from apgd_teach.merging import Finding, merge, preflight
from apgd_teach.merging.checkpoint import InMemory, Spec
from apgd_teach.merging.preflight import Values, preflight_headers


def sentences(base, experts) -> list[str]:
    return [f"{finding.level}: {finding}" for finding in preflight(base, experts).findings]


def moved(base, scale: float):
    """An expert that is `scale` away from every entry of the base, on average."""
    draws = torch.Generator().manual_seed(1)
    steps = {key: torch.randn(one.shape, generator=draws) for key, one in base.items()}
    return {key: one + scale * steps[key] if one.is_floating_point() else one for key, one in base.items()}


def headers(base, experts):
    return InMemory(base).specs, {name: InMemory(state).specs for name, state in experts.items()}


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
        "error: expert 'ben' has a tensor 'linear.weights' that the base has not; take task heads out before merging, "
        "or have it left out with policy={'linear.weights': 'keep'}",
    ]


def test_a_missing_tensor_with_nothing_like_it_has_no_guess(base, experts) -> None:
    del experts["ben"]["gain"]
    assert sentences(base, experts) == [
        "error: expert 'ben' has no tensor 'gain', which the base has; only networks of one kind can be merged; where "
        "the base's is to be kept, say policy={'gain': 'keep'}"
    ]


def test_a_task_head_left_on_an_expert_is_named(base, experts) -> None:
    experts["ada"]["head.weight"] = torch.zeros(10, 3)
    assert sentences(base, experts) == [
        "error: expert 'ada' has a tensor 'head.weight' that the base has not; take task heads out before merging, or "
        "have it left out with policy={'head.weight': 'keep'}"
    ]


def test_another_shape_is_named_with_both(base, experts) -> None:
    experts["cy"]["conv.weight"] = torch.zeros(8, 2, 3, 3)
    (said,) = sentences(base, experts)
    assert said.startswith(
        "error: expert 'cy', tensor 'conv.weight' has shape (8, 2, 3, 3) and the base has (4, 2, 3, 3);"
    )


def test_another_precision_is_a_warning_that_says_how_large_its_rounding_is(base, experts) -> None:
    experts["cy"]["gain"] = experts["cy"]["gain"].half()
    assert sentences(base, experts) == [
        "warning: expert 'cy', tensor 'gain' is torch.float16 and the base is torch.float32; τ is then off by the "
        "rounding to torch.float16, up to 0.049 % of every weight; take both in the precision of the training, if you "
        "can"
    ]


def test_another_precision_in_every_tensor_is_one_warning_and_merges_onto_the_base_s(base, experts, cast) -> None:
    experts["cy"] = cast(experts["cy"], torch.bfloat16)
    (said,) = [str(finding) for finding in preflight_headers(*headers(base, experts)).findings]
    assert said.startswith("expert 'cy', tensor 'conv.weight' (and 4 more) is torch.bfloat16 and the base is torch.fl")
    assert "up to 0.39 % of every weight" in said
    merged = merge(base, {"cy": experts["cy"]}).state_dict["linear.weight"]
    assert merged.dtype == torch.float32
    torch.testing.assert_close(merged, experts["cy"]["linear.weight"].float(), rtol=0, atol=1e-6)


def test_the_coarser_of_two_precisions_is_the_one_whose_rounding_counts(base, experts, cast) -> None:
    experts["cy"] = cast(experts["cy"], torch.float64)
    (said,) = sentences(cast(base, torch.float16), {"cy": experts["cy"]})
    assert "is torch.float64 and the base is torch.float16; τ is then off by the rounding to torch.float16" in said


def test_floats_against_integers_are_an_error_and_integers_of_two_sizes_are_none(base, experts) -> None:
    experts["ben"]["linear.weight"] = torch.ones(3, 36, dtype=torch.int8)
    experts["ben"]["norm.num_batches_tracked"] = torch.tensor(7, dtype=torch.int32)
    assert sentences(base, experts) == [
        "error: expert 'ben', tensor 'linear.weight' is torch.int8 and the base is torch.float32; floats and integers "
        "cannot be subtracted; find out which of the two was converted",
        "warning: expert 'ben', tensor 'norm.num_batches_tracked' is torch.int32 and the base is torch.int64; integers "
        "are not merged: the base's are kept",
    ]


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


def test_two_that_differ_in_a_counter_alone_are_no_twins(base, experts) -> None:
    experts["cy"] = {**experts["ben"], "norm.num_batches_tracked": torch.tensor(8)}
    (said,) = sentences(base, experts)
    assert said.startswith("warning: expert 'cy', tensor 'norm.num_batches_tracked' is a tensor of integers")


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
    one, other = sentences({"e": torch.zeros(shape)}, {"a": {"e": torch.zeros(shape)}})
    assert one.startswith("warning: expert 'a' is the base itself")
    assert other == "warning: the policy leaves no tensor to the method; every one is averaged or kept"


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


# The first stage: headers alone


def test_headers_find_what_is_wrong_with_names_and_shapes_in_the_words_of_the_whole_check(base, experts) -> None:
    experts["ada"]["head.weight"] = torch.zeros(10, 3)
    del experts["ada"]["gain"]
    experts["ben"]["conv.bias"] = torch.zeros(9)
    report = preflight_headers(*headers(base, experts))
    assert len(report.errors) == 3
    assert report.findings == preflight(base, experts).findings


def test_headers_suffice_where_no_value_can_be_read(base, experts) -> None:
    away = {name: {key: one.to("meta") for key, one in state.items()} for name, state in experts.items()}
    away["cy"]["linear.weight"] = torch.empty(3, 35, device="meta")
    (finding,) = preflight_headers(*headers(base, away)).findings
    assert str(finding).startswith("expert 'cy', tensor 'linear.weight' has shape (3, 35) and the base has (3, 36)")


@pytest.mark.parametrize(("dtype", "said"), [(torch.complex64, "is nested, complex"), (torch.float8_e5m2, "is torch.")])
def test_headers_know_dtypes_that_cannot_be_merged(dtype: torch.dtype, said: str) -> None:
    good, bad = {"w": Spec((2, 2), torch.float32)}, {"w": Spec((2, 2), dtype)}
    (finding,) = preflight_headers(good, {"a": bad}).findings
    assert str(finding).startswith(f"expert 'a', tensor 'w' {said}")


def blocks(count: int, width: int = 4, prefix: str = "") -> dict[str, Spec]:
    """A network of linear layers with biases."""
    specs = {}
    for number in range(count):
        specs[f"{prefix}blocks.{number}.weight"] = Spec((width, width), torch.float32)
        specs[f"{prefix}blocks.{number}.bias"] = Spec((width,), torch.float32)
    return specs


def test_another_network_is_one_finding_and_not_one_per_tensor() -> None:
    other = {f"layer{number}.kernel": Spec((4, 4), torch.float32) for number in range(300)}
    (finding,) = preflight_headers(blocks(150), {"a": other}).findings
    assert str(finding) == (
        "expert 'a' fits the base in 0 of 300 tensors by name and shape (has no 'blocks.0.weight'); it is another "
        "network, and only networks of one architecture can be merged"
    )


def test_a_wider_network_of_the_same_names_is_one_finding() -> None:
    (finding,) = preflight_headers(blocks(12), {"a": blocks(24, width=8)}).findings
    assert finding.what == "fits the base in 0 of 24 tensors by name and shape (has another shape in 'blocks.0.weight')"


def test_a_prefix_before_every_name_is_found_on_either_side() -> None:
    plain, wrapped = blocks(6), blocks(6, prefix="module.")
    (finding,) = preflight_headers(plain, {"a": wrapped}).findings
    assert finding.remedy == "its names begin with 'module.', which the base's do not: take it away"
    (finding,) = preflight_headers(wrapped, {"a": plain}).findings
    assert finding.remedy == "the base's names begin with 'module.', which its own do not: take it away"


def test_a_few_tensors_that_do_not_fit_are_named_one_by_one_and_many_are_counted() -> None:
    few, many = blocks(20), blocks(20)
    del few["blocks.3.bias"], few["blocks.4.bias"]
    for number in range(10):
        del many[f"blocks.{number}.bias"]
    extra = {**blocks(20), **blocks(5, prefix="head.")}
    found = preflight_headers(blocks(20), {"few": few, "many": many, "extra": extra}).findings
    assert [f"{finding.where} {finding.what}" for finding in found] == [
        "expert 'extra' has tensors 'head.blocks.0.weight', 'head.blocks.0.bias', 'head.blocks.1.weight' and 7 more "
        "that the base has not",
        "expert 'few' has no tensor 'blocks.3.bias', which the base has",
        "expert 'few' has no tensor 'blocks.4.bias', which the base has",
        "expert 'many' has no tensors 'blocks.0.bias', 'blocks.1.bias', 'blocks.2.bias' and 7 more, which the base has",
    ]


def test_a_buffer_of_integers_that_only_an_expert_has_is_left_out(base, experts) -> None:
    experts["ada"]["position_ids"] = torch.arange(5)
    assert sentences(base, experts) == [
        "warning: expert 'ada', tensor 'position_ids' is a tensor of integers that the base has not; it is left out: "
        "integers are not merged"
    ]
    assert "position_ids" not in merge(base, experts).state_dict


def test_the_policy_is_part_of_the_check(base, experts) -> None:
    (finding,) = preflight_headers(*headers(base, experts), policy={"head.*": "keep"}).errors
    assert str(finding).startswith("the policy's pattern 'head.*' matches no tensor; the nearest names are '")
    (finding,) = preflight(base, experts, {"*": "average"}).findings
    assert str(finding) == "the policy leaves no tensor to the method; every one is averaged or kept"
    (finding,) = preflight(base, experts, others="merge").findings
    assert str(finding) == "the method has others = 'merge'; use 'average' or 'keep'"


# What a policy keeps


def headed(base, experts, rows: dict[str, int]):
    """The networks with a head each, of as many outputs as said; none for who is not named."""

    def head(name: str) -> dict[str, torch.Tensor]:
        return {"head.weight": torch.ones(rows[name], 3), "head.bias": torch.ones(rows[name])} if name in rows else {}

    return {**base, **head("base")}, {name: {**state, **head(name)} for name, state in experts.items()}


@pytest.mark.parametrize(
    "rows",
    [
        {"base": 10, "ada": 5, "ben": 10},  # another size, and none at all in one
        {"base": 10},
        {"ada": 5, "cy": 7},  # the base has none
        {},
    ],
    ids=str,
)
def test_heads_of_any_size_are_merged_around_where_the_policy_keeps_them(base, experts, rows) -> None:
    headed_base, headed_experts = headed(base, experts, rows)
    policy = {"head.*": "keep"} if rows else {}
    assert preflight(headed_base, headed_experts, policy).findings == ()
    assert preflight_headers(*headers(headed_base, headed_experts), policy=policy).findings == ()
    assert not rows or preflight(headed_base, headed_experts).errors
    merged = merge(headed_base, headed_experts, "ties", policy=policy).state_dict
    assert list(merged) == list(headed_base)
    for key, one in merge(base, experts, "ties").state_dict.items():
        assert torch.equal(merged[key], one)
    for key in merged.keys() - base.keys():
        assert torch.equal(merged[key], headed_base[key])


def test_only_keep_spares_a_name_and_only_for_what_a_pattern_says(base, experts) -> None:
    headed_base, headed_experts = headed(base, experts, {"base": 10, "ada": 5})
    for action in ("average", "merge"):
        assert len(preflight(headed_base, headed_experts, {"head.weight": action}).errors) == 6
    # Biases are kept for a method that has others = "keep", and still have to fit.
    kept = preflight(headed_base, headed_experts, {"head.weight": "keep"}, others="keep")
    assert {str(one).partition(";")[0] for one in kept.errors} == {
        "expert 'ada', tensor 'head.bias' has shape (5,) and the base has (10,)",
        "expert 'ben' has no tensor 'head.bias', which the base has",
        "expert 'cy' has no tensor 'head.bias', which the base has",
    }


def test_a_kept_tensor_may_be_of_another_kind_in_an_expert(base, experts) -> None:
    experts["ben"]["gain"] = torch.tensor(1)
    experts["ben"]["norm.num_batches_tracked"] = torch.tensor(1.5)
    policy = {"gain": "keep", "norm.*": "keep"}
    assert len(preflight(base, experts).errors) == 2
    assert preflight(base, experts, policy).errors == ()
    assert torch.equal(merge(base, experts, policy=policy).state_dict["gain"], base["gain"])


def test_a_name_that_is_kept_is_spared_with_what_it_is_tied_to(base, experts) -> None:
    base["tied.weight"] = base["linear.weight"]
    for state in experts.values():
        state["tied.weight"] = torch.ones(5, 36)
    assert preflight(base, experts, {"tied.*": "keep"}).findings == ()
    assert preflight(base, experts, {"linear.weight": "keep"}).findings == ()
    assert torch.equal(merge(base, experts, policy={"tied.*": "keep"}).state_dict["linear.weight"], base["tied.weight"])


def test_what_is_kept_has_no_say_in_what_experts_are_called(base, experts) -> None:
    policy = {"head": "keep"}
    far = {name: {**state, "head": torch.full((9, 9), 100.0 * n)} for n, (name, state) in enumerate(experts.items())}
    assert preflight({**base, "head": torch.ones(9, 9)}, far, policy).findings == ()
    alone = {"a": {**base, "head": torch.full((9, 9), 2.0)}, "b": {**experts["ben"], "head": torch.ones(9, 9)}}
    alone["c"] = {**alone["b"], "head": torch.zeros(9, 9)}
    assert [finding.what for finding in preflight({**base, "head": torch.ones(9, 9)}, alone, policy).findings] == [
        "is the base itself in all that is merged",
        "is the same as expert 'b' in all that is merged",
    ]


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_a_mask_that_is_not_finite_passes_where_it_is_kept(base, experts, value: float) -> None:
    for state in (base, *experts.values()):
        state["mask"] = torch.full((4, 4), value).triu(1)
    errors = preflight(base, experts).errors
    if value < 0:
        (error,) = errors
        assert str(error) == (
            "base, tensor 'mask' holds infinity, and so do all the experts; if it is a mask or a bound and no weight, "
            "keep it with policy={'mask': 'keep'}"
        )
    assert errors
    assert preflight(base, experts, {"mask": "keep"}).findings == ()
    merged = merge(base, experts, policy={"mask": "keep"})
    torch.testing.assert_close(merged.state_dict["mask"], base["mask"], rtol=0, atol=0, equal_nan=True)
    (row,) = [row for row in merged.audit.rows if row.name == "mask"]
    assert row.task_norm == 0.0


def test_the_norm_of_what_is_kept_is_over_the_experts_whose_tensor_has_its_shape(base, experts) -> None:
    headed_base, headed_experts = headed(base, experts, {"base": 4, "ada": 5, "ben": 4})
    headed_experts["ben"]["head.bias"] += 2
    rows = {row.name: row for row in merge(headed_base, headed_experts, policy={"head.*": "keep"}).audit.rows}
    assert rows["head.bias"].task_norm == 4.0  # four entries of 2 in one expert of three
    headed_base, headed_experts = headed(base, experts, {"base": 4, "ada": 5})
    rows = {row.name: row for row in merge(headed_base, headed_experts, policy={"head.*": "keep"}).audit.rows}
    assert rows["head.bias"].task_norm == 0.0


# A tied tensor that one of the files leaves out


def test_a_name_that_one_file_leaves_out_may_be_tied_to_the_tensor_of_its_shape(base, experts) -> None:
    tied = {name: {**state, "head.weight": state["linear.weight"].clone()} for name, state in experts.items()}
    assert sentences(base, {"ada": tied["ada"]}) == [
        "error: expert 'ada' has a tensor 'head.weight' that the base has not; if it is tied to 'linear.weight', which "
        "has its shape, and the writer of the base's file left the second name out, take 'head.weight' out of the "
        "expert too; else take task heads out before merging, or have it left out with policy={'head.weight': 'keep'}"
    ]
    assert sentences({**base, "head.weight": base["linear.weight"].clone()}, {"ada": experts["ada"]}) == [
        "error: expert 'ada' has no tensor 'head.weight', which the base has; if it is tied to 'linear.weight', which "
        "has its shape, and the writer of the expert's file left the second name out, take 'head.weight' out of the "
        "base too; else only networks of one kind can be merged; where the base's is to be kept, say "
        "policy={'head.weight': 'keep'}"
    ]


def test_a_shape_that_several_tensors_have_is_no_sign_of_a_tie() -> None:
    lacking = blocks(4)
    del lacking["blocks.1.weight"], lacking["blocks.1.bias"]
    for pair in ((blocks(4), lacking), (lacking, blocks(4))):
        found = preflight_headers(pair[0], {"a": pair[1]}).errors
        assert len(found) == 2
        assert not any("tied" in str(one) for one in found)


# Integers


@pytest.mark.parametrize(("dtype", "kind"), [(torch.int8, "int8"), (torch.uint8, "uint8"), (torch.int32, "int32")])
def test_quantised_weights_are_called_so_and_their_expert_is_not_the_base(base, dtype, kind: str) -> None:
    base["layer.qweight"] = torch.ones(4, 4, dtype=dtype)
    expert = {**base, "layer.qweight": torch.zeros(4, 4, dtype=dtype)}
    assert sentences(base, {"a": expert}) == [
        "warning: expert 'a' differs from the base in integers alone; leave it out: it pulls the others to the base",
        f"warning: expert 'a', tensor 'layer.qweight' is a matrix of {kind}, as quantised weights are, that differs "
        "from the base's; integers are not merged and the base's are kept: take the checkpoint before it was quantised",
    ]


# Embeddings, which look like linear layers


def language_model(vocabulary: int = 2000, width: int = 64, depth: int = 6) -> dict[str, Spec]:
    """Headers of a small decoder: gated MLPs without biases, a table at the entrance."""
    shapes = {"embed.weight": (vocabulary, width)}
    for number in range(depth):
        shapes[f"blocks.{number}.up"] = (24 * width, width)
        shapes[f"blocks.{number}.qkv.weight"] = (3 * width, width)
    return {name: Spec(shape, torch.float32) for name, shape in shapes.items()}


def test_a_tall_table_is_named_with_the_pattern_that_averages_it() -> None:
    specs = language_model()
    (finding,) = preflight_headers(specs, {"a": specs}).findings
    assert (finding.level, finding.where) == ("warning", "base, tensor 'embed.weight'")
    assert "may be an embedding (2000 rows of 64, no bias, not repeated)" in finding.what
    assert "{'embed.weight': 'average'}" in finding.remedy


@pytest.mark.parametrize("action", ["average", "merge", "keep"])
def test_a_table_that_the_policy_names_is_not_suspected(action: str) -> None:
    specs = language_model()
    assert preflight_headers(specs, {"a": specs}, policy={"embed.*": action}).findings == ()


def test_a_tall_layer_with_a_bias_is_no_table() -> None:
    specs = {"l.weight": Spec((2000, 64), torch.float32), "l.bias": Spec((2000,), torch.float32)}
    assert preflight_headers(specs, {"a": specs}).findings == ()


def test_a_layer_four_times_as_tall_as_wide_is_no_table_and_one_row_more_makes_it_one() -> None:
    def suspected(rows: int) -> bool:
        specs = {"up": Spec((rows, 768), torch.float32)}
        return bool(preflight_headers(specs, {"a": specs}).findings)

    assert [suspected(4 * 768), suspected(4 * 768 + 1)] == [False, True]


def test_of_networks_as_they_are_only_tables_of_positions_are_suspected() -> None:
    def suspects(name: str) -> set[str]:
        with torch.device("meta"):
            specs = InMemory(get_model(name, weights=None).state_dict()).specs
        return {finding.where.split(".")[-1] for finding in preflight_headers(specs, {"a": specs}).findings}

    for name in ("resnet18", "vit_b_16", "convnext_tiny", "efficientnet_b0", "swin_t"):
        assert suspects(name) == set()
    assert suspects("swin3d_t") == {"relative_position_bias_table'"}


def test_a_table_and_its_tied_output_layer_are_one_warning() -> None:
    specs = {**language_model(), "head.weight": Spec((2000, 64), torch.float32)}
    tied = preflight_headers(specs, {"a": specs}, ties=[("embed.weight", "head.weight")])
    assert [finding.where for finding in tied.findings] == ["base, tensor 'embed.weight'"]


# The second stage: values, one tensor at a time


def look(values: Values, base, experts, keys=None) -> Values:
    for key in keys or base:
        values.look(key, base[key], [experts[name][key] for name in sorted(experts)])
    return values


@pytest.mark.parametrize("backwards", [False, True])
def test_values_are_judged_the_same_in_any_order_and_from_several_threads(base, experts, backwards: bool) -> None:
    experts["cy"] = {key: tensor.clone() for key, tensor in experts["ben"].items()}
    experts["ada"] = dict(base)
    names = sorted(experts)
    expected = preflight(base, experts).findings
    assert len(expected) == 2
    assert look(Values(names), base, experts, sorted(base, reverse=backwards)).findings() == expected
    values = Values(names)
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda key: look(values, base, experts, [key]), base))
    assert values.findings() == expected


def test_norms_are_added_up_over_all_tensors_and_parts_of_tensors(base) -> None:
    # More entries than are looked at in one part; the distance is 1.1 of the norm only when every part counts.
    draws = torch.Generator().manual_seed(0)
    big = {**base, "big": torch.randn(700, 700, generator=draws)}
    floats = [key for key, one in big.items() if one.is_floating_point()]
    far = {key: big[key] * 2.1 if key in floats else big[key] for key in big}
    assert [str(one)[:57] for one in look(Values(["a"]), big, {"a": far}).findings()] == [
        "expert 'a' is 1.10 times the base's own norm away from it"
    ]
    last = {key: one.clone() for key, one in big.items()}
    last["big"][-1, -1] += 1  # in the last part alone: neither the base itself nor its twin's twin
    assert look(Values(["a", "b"]), big, {"a": last, "b": far}).findings()[0].where == "expert 'b'"


@pytest.mark.parametrize("who", ["base", "ben"])
def test_a_strict_look_raises_at_the_tensor_and_a_lenient_one_waits(base, experts, who: str) -> None:
    state = base if who == "base" else experts[who]
    state["linear.bias"][1] = math.nan
    name = "base" if who == "base" else "expert 'ben'"
    strict = look(Values(sorted(experts), strict=True), base, experts, ["conv.weight"])
    with pytest.raises(MergeError, match=rf"^{name}, tensor 'linear\.bias' holds NaN or infinity; take an earlier"):
        look(strict, base, experts, ["linear.bias"])
    assert [one.where for one in look(Values(sorted(experts)), base, experts).findings()] == [
        f"{name}, tensor 'linear.bias'"
    ]


def test_numbers_whose_squares_are_too_large_for_float32_are_numbers() -> None:
    base = {"w": torch.full((2, 2), 1e30)}
    assert look(Values(["a"]), base, {"a": {"w": torch.full((2, 2), 1.01e30)}}).findings() == ()
    assert "is 2.00 times" in str(look(Values(["a"]), base, {"a": {"w": torch.full((2, 2), -1e30)}}).findings()[0])


def test_experts_that_point_apart_are_a_warning_and_those_at_a_right_angle_are_none() -> None:
    base = {"w": torch.full((2, 2), 10.0), "b": torch.zeros(2)}
    step = {"w": torch.tensor([[1.0, 2.0], [0.0, 0.0]]), "b": torch.ones(2)}
    turned = {"w": torch.tensor([[2.0, -1.0], [0.0, 0.0]]), "b": torch.zeros(2)}
    ways = {"a": (1, step), "b": (-2, step), "c": (1, turned)}
    experts = {name: {key: base[key] + sign * way[key] for key in base} for name, (sign, way) in ways.items()}
    assert sentences(base, experts) == [
        "warning: expert 'b' points away from expert 'a' (cosine −1.00); the two cancel each other in every sum; see "
        "whether one was subtracted on purpose"
    ]
    # Opposite in one tensor, alike in the other: it is the whole that counts.
    mixed = {"w": base["w"] - step["w"], "b": base["b"] + step["b"]}
    assert sentences(base, {"a": experts["a"], "d": mixed}) == []


def test_a_task_vector_as_small_as_the_rounding_of_its_files_is_a_warning(base, cast) -> None:
    def near(scale: float, dtype: torch.dtype) -> list[str]:
        return sentences(cast(base, dtype), {"a": cast(moved(base, scale), dtype)})

    (said,) = near(0.005, torch.bfloat16)
    share = int(re.search(r"may be up to (\d+) % of its τ", said)[1])
    # ‖τ‖ is about 0.005 of the base, and half a unit in the last of eight bits is 0.0039.
    assert 65 <= share <= 90
    assert near(0.05, torch.bfloat16) == []
    assert near(0.005, torch.float16) == []
    assert near(0.005, torch.float32) == []


def test_the_rounding_of_the_base_is_in_every_task_vector(base, cast) -> None:
    coarse = cast(base, torch.bfloat16)
    assert any("rounding may be" in one for one in sentences(coarse, {"a": moved(base, 0.005)}))


def test_the_precision_of_the_files_counts_where_values_arrive_widened(base, cast) -> None:
    halves = cast(base, torch.bfloat16), cast(moved(base, 0.005), torch.bfloat16)
    wide = [cast(one, torch.float32) for one in halves]
    files = {"base": InMemory(halves[0]).specs, "a": InMemory(halves[1]).specs}
    told = look(Values(["a"], headers=files), wide[0], {"a": wide[1]}).findings()
    assert told == look(Values(["a"]), halves[0], {"a": halves[1]}).findings()
    assert len(told) == 1
    assert look(Values(["a"]), wide[0], {"a": wide[1]}).findings() == ()


def test_a_tensor_that_is_tied_in_the_base_and_two_in_an_expert_is_an_error(base, experts) -> None:
    for state in (base, *experts.values()):
        state["tied.weight"] = state["linear.weight"]
    experts["ada"]["tied.weight"] = experts["ada"]["linear.weight"].clone()  # two, but equal
    assert sentences(base, experts) == []
    experts["ben"]["tied.weight"] = experts["ben"]["linear.weight"] + 0.01
    assert sentences(base, experts) == [
        "error: expert 'ben', tensor 'tied.weight' differs from its 'linear.weight', and the base has the two tied; "
        "tie them in the expert, or give the base a copy for each name"
    ]
    base["tied.weight"] = base["linear.weight"].clone()
    assert sentences(base, experts) == []


def test_a_tensor_under_two_names_is_counted_once() -> None:
    base = {"a": torch.ones(2, 2), "b": torch.ones(2, 2)}
    base["tied"] = base["a"]
    # Twice the norm of a half of what there is, √2; counted twice it would be two thirds of it, 1.63.
    expert = {"a": torch.full((2, 2), 3.0), "b": torch.ones(2, 2), "tied": torch.full((2, 2), 3.0)}
    assert sentences(base, {"e": expert})[0].startswith("warning: expert 'e' is 1.41 times the base's own norm")


# The report


def test_everything_wrong_is_in_one_report(base, experts) -> None:
    experts["ada"]["head.weight"] = torch.zeros(10, 3)
    experts["ben"]["conv.bias"] = torch.zeros(9)
    experts["ben"]["gain"] = torch.tensor(1)
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


def test_the_report_is_json_with_its_verdict(base, experts) -> None:
    experts["cy"]["gain"] = torch.tensor(math.nan)
    experts["ada"] = dict(base)
    report = preflight(base, experts)
    read = json.loads(report.to_json())
    assert read["verdict"] == report.verdict
    assert [Finding(**one) for one in read["findings"]] == list(report.findings)
    assert json.loads(preflight(base, {"ben": experts["ben"]}).to_json())["findings"] == []


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
