from __future__ import annotations

import json
import pickle

import pytest
import torch
from torch import nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge
from apgd_teach.merging.checkpoint import InMemory, Spec
from apgd_teach.merging.modules import policy_of
from apgd_teach.merging.policy import ACTIONS, Action, decide, spared
from apgd_teach.models import ENCODERS, make_encoder


def specs(**shapes: tuple[int, ...]) -> dict[str, Spec]:
    """Headers of float32 tensors; "__" stands for the dot in a name."""
    return {name.replace("__", "."): Spec(shape, torch.float32) for name, shape in shapes.items()}


def actions(decisions) -> dict[str, str]:
    return {name: decision.action for name, decision in decisions.items()}


# What the shapes say


@pytest.mark.parametrize(
    ("shape", "action", "reason"),
    [
        ((4, 3), "merge", "a weight"),
        ((4, 2, 3, 3), "merge", "a weight"),
        ((6, 1, 3, 3), "merge", "a weight"),  # a depthwise kernel has nine inputs
        ((2, 2), "merge", "a weight"),
        ((4,), "average", "a vector or scalar"),
        ((), "average", "a vector or scalar"),
        ((1, 5, 4), "average", "a single output row"),
        ((1, 1, 4), "average", "a single output row"),
        ((1, 4), "average", "a single output row"),
        ((4, 1), "average", "a single input column"),
        ((4, 1, 1), "average", "a single input column"),
        ((0, 3), "keep", "it holds no values"),
        ((3, 0), "keep", "it holds no values"),
    ],
)
def test_a_shape_decides_with_a_reason(shape, action: str, reason: str) -> None:
    (decision,) = decide({"t": Spec(shape, torch.float32)}).values()
    assert decision.action == action
    assert decision.reason.startswith(reason)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_integers_are_kept_whatever_their_shape(dtype: torch.dtype) -> None:
    decisions = decide({"table": Spec((4, 4), dtype), "count": Spec((), dtype)}, others="average")
    assert {(one.action, one.reason) for one in decisions.values()} == {("keep", "integers have no task vector")}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_float_of_any_width_is_a_float(dtype: torch.dtype) -> None:
    assert decide({"w": Spec((2, 2), dtype)})["w"].action == "merge"


def test_a_method_may_keep_what_it_does_not_work_on() -> None:
    said = decide({**specs(w=(3, 3), b=(3,), token=(1, 1, 4)), "n": Spec((), torch.int64)}, others="keep")
    assert actions(said) == {"w": "merge", "b": "keep", "token": "keep", "n": "keep"}
    with pytest.raises(MergeError, match=r"the method has others = 'merge'; use 'average' or 'keep'\."):
        decide(specs(w=(3, 3)), others="merge")


def norm_layer(owner: str, **changes: Spec | None) -> dict[str, Spec]:
    """A BatchNorm's headers, some changed or left out."""
    vector, count = Spec((4,), torch.float32), Spec((), torch.int64)
    found = {"running_mean": vector, "running_var": vector, "num_batches_tracked": count, **changes}
    return {f"{owner}{leaf}": spec for leaf, spec in found.items() if spec is not None}


@pytest.mark.parametrize("owner", ["", "bn.", "layers.0.norm."])
def test_running_statistics_are_known_by_their_set(owner: str) -> None:
    said = decide(norm_layer(owner))
    assert actions(said) == {
        f"{owner}running_mean": "average",
        f"{owner}running_var": "average",
        f"{owner}num_batches_tracked": "keep",
    }
    assert said[f"{owner}running_var"].reason.startswith("a running statistic of a BatchNorm")
    assert said[f"{owner}num_batches_tracked"].reason.startswith("the count of batches of a BatchNorm")


@pytest.mark.parametrize(
    "changed",
    [
        {"running_var": None},
        {"num_batches_tracked": None},
        {"num_batches_tracked": Spec((), torch.float32)},
        {"running_var": Spec((5,), torch.float32)},
        {"running_mean": Spec((4, 4), torch.float32), "running_var": Spec((4, 4), torch.float32)},
    ],
)
def test_a_set_that_is_not_whole_is_none(changed) -> None:
    assert not any("BatchNorm" in decision.reason for decision in decide(norm_layer("bn.", **changed)).values())


def test_a_name_that_only_contains_the_words_is_no_statistic() -> None:
    odd = {name.replace("running", "my_running"): spec for name, spec in norm_layer("bn.").items()}
    other = {name.replace("bn.", f"{number}."): spec for number, (name, spec) in enumerate(norm_layer("bn.").items())}
    matrix = {"bn.running_mean.weight": Spec((4, 4), torch.float32)}
    said = decide({**odd, **other, **matrix})
    assert not any("BatchNorm" in decision.reason for decision in said.values())
    assert said["bn.running_mean.weight"].action == "merge"


# What a policy says


def test_a_pattern_that_keeps_may_be_for_what_only_an_expert_has_and_no_other_pattern_may() -> None:
    tensors = specs(w=(3, 3))
    assert actions(decide(tensors, {"head.*": "keep"}, beside=["head.weight"])) == {"w": "merge"}
    for policy, beside in (({"head.*": "average"}, ["head.weight"]), ({"haed.*": "keep"}, ["head.weight"])):
        with pytest.raises(MergeError, match=r"matches no tensor; the nearest names are 'w'"):
            decide(tensors, policy, beside=beside)


def test_spared_is_what_the_first_pattern_that_matches_keeps_with_its_ties() -> None:
    names = ["head.weight", "head.bias", "body.weight", "out"]
    policy = {"head.bias": "average", "head.*": "keep", "*": "merge"}
    assert spared(names, policy) == {"head.weight"}
    assert spared(names, policy, [("out", "head.weight")]) == {"head.weight", "out"}
    assert spared(names, None) == spared(names, {}) == spared(names, {3: "keep"}) == frozenset()


def test_the_first_pattern_that_matches_wins() -> None:
    tensors = specs(head__weight=(3, 3), body__weight=(3, 3))
    assert actions(decide(tensors, {"head.*": "keep", "*": "average"})) == {
        "head.weight": "keep",
        "body.weight": "average",
    }
    assert set(actions(decide(tensors, {"*": "average", "head.*": "keep"})).values()) == {"average"}


def test_a_pattern_is_for_whole_names_and_minds_capitals() -> None:
    tensors = specs(head__weight=(3, 3), overhead__weight=(3, 3), Head__weight=(3, 3))
    said = decide(tensors, {"head.*": "keep"})
    assert actions(said) == {"head.weight": "keep", "overhead.weight": "merge", "Head.weight": "merge"}
    assert said["head.weight"].reason == "your policy 'head.*'"


def test_a_name_with_brackets_is_meant_as_it_stands() -> None:
    tensors = specs(**{"w[0]": (3, 3), "w0": (3, 3)})
    assert actions(decide(tensors, {"w[0]": "keep", "w*": "average"})) == {"w[0]": "keep", "w0": "keep"}
    assert actions(decide({"w[1]": tensors["w0"]}, {"w[1]": "keep"})) == {"w[1]": "keep"}


def test_a_wide_pattern_passes_over_what_its_action_cannot_apply_to() -> None:
    tensors = {**specs(l__weight=(3, 3), l__bias=(3,)), "l.count": Spec((), torch.int64)}
    said = decide(tensors, {"l.*": "merge", "*": "keep"})
    assert actions(said) == {"l.weight": "merge", "l.bias": "average", "l.count": "keep"}
    assert said["l.bias"].reason.endswith("('l.*': 'merge' cannot apply)")
    assert actions(decide(tensors, {"*": "average"}))["l.count"] == "keep"


def test_a_row_that_a_user_names_is_merged() -> None:
    assert decide(specs(score__weight=(1, 9)), {"score.weight": "merge"})["score.weight"].action == "merge"


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (
            {"haed.*": "keep"},
            r"the policy's pattern 'haed\.\*' matches no tensor; the nearest names are .*'head\.weight'",
        ),
        ({"head.weight": "drop"}, r"the policy of 'head\.weight' is 'drop'; use one of: merge, average, keep\."),
        ({"head.weight": None}, r"the policy of 'head\.weight' is None; use one of"),
        ({"head.weight": ["keep"]}, r"the policy of 'head\.weight' is \['keep'\]; use one of"),
        ({3: "keep"}, r"the policy has the pattern 3, which is no string; give patterns"),
        ("head.*", r"the policy is a str; give a dict of patterns"),
        ([("head.*", "keep")], r"the policy is a list; give a dict of patterns"),
        ({"head.bias": "merge"}, r"'head\.bias': 'merge' meets only what .* 'head\.bias': a vector.*; average it\."),
        ({"count": "average"}, r"'count': 'average' meets only .* 'count': integers have no task vector; keep it\."),
        ({"nothing": "average"}, r"'nothing': 'average' meets only .* 'nothing': it holds no values; keep it\."),
    ],
)
def test_a_policy_that_does_not_fit_gets_its_sentence(policy, sentence: str) -> None:
    tensors = {**specs(head__weight=(3, 3), head__bias=(3,), nothing=(0, 3)), "count": Spec((), torch.int64)}
    with pytest.raises(MergeError, match=sentence):
        decide(tensors, policy)


# Tied tensors


TIED = [("embed.weight", "head.weight")]


@pytest.mark.parametrize("named", ["embed.weight", "head.*"])
def test_what_is_said_of_one_name_holds_for_all_names_of_a_tied_tensor(named: str) -> None:
    tensors = specs(embed__weight=(9, 3), body__weight=(3, 3), head__weight=(9, 3))
    assert actions(decide(tensors, {named: "average"}, ties=TIED)) == {
        "embed.weight": "average",
        "body.weight": "merge",
        "head.weight": "average",
    }


def test_two_actions_for_one_tensor_are_an_error() -> None:
    tensors = specs(embed__weight=(9, 3), head__weight=(9, 3))
    with pytest.raises(
        MergeError, match=r"says 'average' for 'embed\.weight' and 'keep' for 'head\.weight', which are one tensor in"
    ):
        decide(tensors, {"embed.*": "average", "head.*": "keep"}, ties=TIED)
    assert decide(tensors, {"embed.*": "average", "head.*": "keep"})["head.weight"].action == "keep"


def test_names_that_are_tied_in_the_base_get_one_value_and_one_action(base, experts) -> None:
    for state in (base, *experts.values()):
        state["tied.weight"] = state["linear.weight"]
    merged = merge(base, experts, policy={"linear.weight": "keep"})
    for name in ("linear.weight", "tied.weight"):
        assert torch.equal(merged.state_dict[name], base[name])
    rows = {row.name: (row.policy, row.reason) for row in merged.audit.rows}
    assert rows["tied.weight"] == ("keep", "tied to 'linear.weight'")


# What the modules of a network say


class Everything(nn.Module):
    """One of each kind of layer, and parameters of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.bag = nn.EmbeddingBag(9, 4)
        self.conv = nn.Conv2d(2, 4, 3, groups=2)
        self.up = nn.ConvTranspose2d(4, 2, 3)
        self.bn = nn.BatchNorm2d(4)
        self.ln = nn.LayerNorm((4, 4))
        self.attention = nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.apart = nn.MultiheadAttention(4, 2, kdim=3, vdim=3)
        self.rnn = nn.LSTM(4, 4)
        self.linear = nn.Linear(4, 3)
        self.score = nn.Linear(4, 1)
        self.position = nn.Parameter(torch.zeros(1, 5, 4))
        self.projection = nn.Parameter(torch.zeros(4, 3))
        self.register_buffer("ids", torch.arange(5))
        self.register_buffer("passing", torch.zeros(3, 3), persistent=False)


def test_types_say_what_shapes_do_not() -> None:
    network = Everything()
    policy = policy_of(network)
    assert list(policy) == list(network.state_dict())
    assert {name for name, action in policy.items() if action == "merge"} == {
        "conv.weight",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
        "apart.q_proj_weight",
        "apart.k_proj_weight",
        "apart.v_proj_weight",
        "apart.out_proj.weight",
        "rnn.weight_ih_l0",
        "rnn.weight_hh_l0",
        "linear.weight",
    }
    assert {name for name, action in policy.items() if action == "keep"} == {"bn.num_batches_tracked", "ids"}
    reasons = {name: action.reason for name, action in policy.items()}
    assert reasons["embed.weight"] == "an embedding: its rows are looked up, not multiplied (Embedding)"
    assert reasons["up.weight"].startswith("a transposed convolution: its first axis is the input")
    assert reasons["ln.weight"] == "a scale or shift of a normalisation layer (LayerNorm)"
    assert reasons["projection"] == "a parameter of Everything: which axis is the output is not known"
    assert reasons["position"].startswith("a single output row")
    assert reasons["bn.running_mean"].startswith("a running statistic of a BatchNorm")


def test_the_shapes_alone_would_merge_what_the_types_do_not() -> None:
    # What makes the function worth having: each of these has an output side for the shape.
    by_shape = decide(InMemory(Everything().state_dict()).specs)
    for name in ("embed.weight", "bag.weight", "up.weight", "ln.weight", "projection"):
        assert by_shape[name].action == "merge"
        assert policy_of(Everything())[name] == "average"
        assert policy_of(Everything(), others="keep")[name] == "keep"


def test_a_policy_of_a_network_is_a_policy_and_its_reasons_reach_the_audit() -> None:
    torch.manual_seed(0)
    base = Everything().state_dict()
    expert = {key: one + 0.01 if one.is_floating_point() else one for key, one in base.items()}
    audit = merge(base, {"a": expert}, policy={"linear.*": "keep", **policy_of(Everything())}).audit
    rows = {row.name: (row.policy, row.reason) for row in audit.rows}
    assert rows["embed.weight"] == ("average", "an embedding: its rows are looked up, not multiplied (Embedding)")
    assert rows["linear.weight"] == ("keep", "your policy 'linear.*'")
    assert rows["conv.weight"] == ("merge", "a weight (Conv2d)")
    assert audit.warnings == ()


def test_an_embedding_that_is_the_output_layer_too_is_averaged_under_both_names() -> None:
    network = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "embed": nn.Embedding(9, 4)})
    network["head"].weight = network["embed"].weight
    policy = policy_of(network)
    assert policy == {"head.weight": "average", "embed.weight": "average"}
    assert policy["head.weight"].reason == "tied to 'embed.weight'"
    base = network.state_dict()
    assert merge(base, {"a": base}, policy=policy).audit.rows[0].policy == "average"


def test_the_policy_of_an_encoder_of_the_course_is_what_its_shapes_say() -> None:
    for name in ENCODERS:
        network = make_encoder(name, 0)
        assert policy_of(network) == actions(decide(InMemory(network.state_dict()).specs))


def test_a_network_without_values_has_a_policy_and_one_without_shapes_has_a_sentence() -> None:
    with torch.device("meta"):
        away = Everything()
    assert policy_of(away) == policy_of(Everything())
    with pytest.raises(MergeError, match=r"the network's 'weight' has no shape yet; run the network once"):
        policy_of(nn.LazyLinear(3))


def test_a_subclass_is_what_it_descends_from() -> None:
    class Mine(nn.Linear):
        pass

    assert policy_of(Mine(3, 3))["weight"].reason == "a weight (Mine)"


def test_an_action_is_its_word_and_keeps_its_reason_in_a_copy() -> None:
    action = Action("average", "an embedding")
    assert action == "average"
    assert action in ACTIONS
    assert json.dumps({"e": action}) == '{"e": "average"}'
    again = pickle.loads(pickle.dumps(action))
    assert (again, again.reason) == (action, "an embedding")
