from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.errors import MergeError
from apgd_teach.merging import Apgd, Audit, Layer, Update, fingerprint, merge, merge_files
from apgd_teach.merging.audit import Output


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


# The step


def moved(steps: dict[str, float]) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """A base of ones, and one expert whose tensors went by these shares of the base's norm."""
    base = {name: torch.ones(3, 4) for name in steps}
    return base, {"a": {name: tensor * (1 + steps[name]) for name, tensor in base.items()}}


def test_tensors_whose_step_is_longer_than_half_the_base_are_named_longest_first() -> None:
    audit = merge(*moved({"short": 0.49, "long": 0.51, "longest": 2.0})).audit
    assert [row.name for row in audit.long_steps] == ["longest", "long"]
    finding = audit.findings[-1]
    assert finding.level == "warning"
    assert "'longest' (200%), 'long' (51%) is longer than 50%" in str(finding)
    assert "short" not in str(finding)
    assert "first order" in str(finding)


def test_a_warning_of_many_long_steps_stays_a_sentence() -> None:
    finding = merge(*moved({f"layer{i}": 1 + i for i in range(9)})).audit.findings[-1]
    assert "'layer8' (900%), 'layer7' (800%), 'layer6' (700%) and 6 more is longer" in str(finding)


def test_only_what_the_method_merged_counts_as_a_long_step() -> None:
    base = {"weight": torch.ones(2, 2), "bias": torch.full((4,), 0.01), "head": torch.ones(2, 2)}
    expert = {"weight": base["weight"] * 1.1, "bias": torch.ones(4), "head": base["head"] * 9}
    audit = merge(base, {"a": expert}, policy={"head": "average"}).audit
    assert audit.rows[1].relative_step > 50
    assert audit.rows[2].relative_step == pytest.approx(8)
    assert audit.long_steps == ()
    assert audit.findings == audit.warnings


def test_the_step_from_zero_is_a_long_one() -> None:
    audit = merge({"w": torch.zeros(2, 2)}, {"a": {"w": torch.ones(2, 2)}}).audit
    assert "of 'w' (from zero) is longer" in str(audit.findings[-1])


def test_the_step_stands_beside_the_warnings_of_the_inputs_and_not_among_them() -> None:
    base, experts = moved({"w": 0.6})
    audit = merge(base, {**experts, "same": dict(experts["a"])}).audit
    assert len(audit.warnings) == 1
    assert audit.findings[:1] == audit.warnings
    assert audit.table().note == "; ".join(map(str, audit.findings))
    assert "is longer than 50%" in audit.table().note


# Facts


def layers() -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Two weights of different sizes, a bias, and three experts, from normal draws."""
    draws = torch.Generator().manual_seed(5)
    shapes = {"first.weight": (6, 8), "first.bias": (6,), "second.weight": (12, 6)}
    base = {name: torch.randn(shape, generator=draws, dtype=torch.float64) for name, shape in shapes.items()}
    experts = {
        expert: {
            name: tensor + size * torch.randn(tensor.shape, generator=draws, dtype=torch.float64)
            for name, tensor in base.items()
        }
        for expert, size in (("ada", 0.01), ("ben", 0.02), ("cy", 0.04))
    }
    return base, experts


def tau_of(base: dict[str, Tensor], experts: dict[str, dict[str, Tensor]], name: str) -> Tensor:
    return torch.stack([experts[expert][name] - base[name] for expert in sorted(experts)])


def test_cosines_and_gaps_are_those_of_the_vectors() -> None:
    base, experts = layers()
    merged = merge(base, experts, "task_arithmetic", coefficient=0.5)
    tau = tau_of(base, experts, "second.weight").flatten(1).numpy()
    lengths = (tau**2).sum(axis=1) ** 0.5
    cosines = [tau[i] @ tau[j] / lengths[i] / lengths[j] for i, j in ((0, 1), (0, 2), (1, 2))]
    update = 0.5 * tau.sum(axis=0)
    left = [-(one @ (update - one)) / (one @ one) for one in tau]
    averaged = [-(one @ (tau.mean(axis=0) - one)) / (one @ one) for one in tau]
    details = merged.audit.details()
    assert details.column("tensor") == ["first.weight", "second.weight"]
    assert details.column("mean cosine")[1] == pytest.approx(sum(cosines) / 3)
    assert details.column("least cosine")[1] == pytest.approx(min(cosines))
    assert details.column("gap left")[1] == pytest.approx(sum(left) / 3)
    assert details.column("gap left by the average")[1] == pytest.approx(sum(averaged) / 3)
    assert details.column("‖M‖/‖θ₀‖")[1] == pytest.approx(
        (update**2).sum() ** 0.5 / float(base["second.weight"].norm())
    )


def test_coefficients_protection_and_surrogates_are_those_of_the_equations() -> None:
    base, experts = layers()
    merged = merge(
        base, experts, Apgd(granularity="row", protect=0.5, flatten=0.0, coefficient=0.3, reach=None, biases="average")
    )
    tau = tau_of(base, experts, "first.weight").numpy()
    lengths = (tau**2).sum(axis=(1, 2)) ** 0.5
    lam = [min(1.0, 0.3 * sorted(lengths)[1] / one) for one in lengths]
    start = sum(one * t for one, t in zip(lam, tau, strict=True))
    update = (merged.state_dict["first.weight"] - base["first.weight"]).numpy()
    at_base = [((t * t).sum(axis=1) ** 2).sum() for t in tau]
    before, after = (
        [((t * (there - t)).sum(axis=1) ** 2).sum() / whole for t, whole in zip(tau, at_base, strict=True)]
        for there in (start, update)
    )
    audit = merged.audit
    details = audit.details()
    assert details.column("λ")[0] == pytest.approx(sum(lam) / 3)
    assert details.column("protected")[0] == 3 / 6
    assert details.column("leak")[0] == pytest.approx(0, abs=1e-12)
    assert details.column("surrogate before")[0] == pytest.approx(sum(before) / 3)
    assert details.column("surrogate after")[0] == pytest.approx(sum(after) / 3)
    assert sum(after) < sum(before)
    assert audit.tasks().column("surrogate before") == pytest.approx(
        [(one + other) / 2 for one, other in zip(before, audit.rows[2].facts["surrogate_before"], strict=True)]
    )


def test_an_expert_s_row_adds_up_the_layers_as_the_whole_does() -> None:
    base, experts = layers()
    audit = merge(base, experts, Apgd(trim=0.3, protect=0.0, biases="average")).audit
    table = audit.tasks()
    assert table.column("expert") == ["ada", "ben", "cy"]
    tau = [tau_of(base, experts, name).flatten(1) for name in ("first.weight", "second.weight")]
    whole = torch.cat(tau, dim=1)
    assert table.column("‖τ‖") == pytest.approx(whole.norm(dim=1).tolist())
    # ⌊0.3 · 120⌋ + 1 entries are kept; a mean of the two layers' shares would be another number.
    assert table.column("kept") == pytest.approx([37 / 120] * 3)
    mean = whole.mean(dim=0)
    gaps = [float(-(one @ (mean - one)) / (one @ one)) for one in whole]
    assert table.column("gap left by the average") == pytest.approx(gaps)


def test_a_method_of_one_s_own_finds_its_facts_in_the_tables(base, experts) -> None:
    class Mine:
        name = "mine"

        def __call__(self, task_vectors: Tensor) -> Update:
            return Update(task_vectors.mean(dim=0), {"votes": (1.0, 2.0, 6.0), "rank": 2.0, "rule": "median"})

    audit = merge(base, experts, Mine()).audit
    details = audit.details()
    assert [details.column(name) for name in ("votes", "rank", "rule")] == [[3.0] * 2, [2.0] * 2, ["median"] * 2]
    assert audit.tasks().column("votes") == [1.0, 2.0, 6.0]
    assert "rank" not in audit.tasks().columns


def test_facts_that_only_some_layers_have_leave_a_dash(base, experts) -> None:
    class Mine:
        name = "mine"

        def __call__(self, task_vectors: Tensor, layer: Layer) -> Update:
            facts = {"odd": (1.0, 2.0, 3.0)} if layer.name.startswith("linear") else {}
            return Update(task_vectors.mean(dim=0), facts)

    audit = merge(base, experts, Mine()).audit
    assert audit.details().column("odd") == [None, 2.0]
    assert audit.tasks().column("odd") == [1.0, 2.0, 3.0]


def test_an_audit_of_nothing_merged_has_empty_tables(base, experts) -> None:
    audit = merge(base, {"ada": experts["ada"]}, policy={"*": "keep"}).audit
    assert audit.details().rows == ()
    assert audit.tasks().rows == (("ada", 0.0),)
    assert "## Facts of every merged tensor\n\nNone." in audit.to_markdown()


# Documents


def test_the_document_says_everything_that_the_record_holds(base, experts) -> None:
    experts["ada"] = dict(base)
    audit = merge(base, experts, "apgd", protect=0.25, policy={"linear.*": "keep"}).audit
    text = audit.to_markdown()
    heads = [line for line in text.splitlines() if line.startswith("#")]
    assert heads == ["# Audit of a merge"] + [
        f"## {head}"
        for head in (
            "Settings",
            "Inputs",
            "Output",
            "Policy that was given",
            "Warnings",
            "Policy of every tensor",
            "Norms and steps",
            "Facts of every merged tensor",
            "Facts of every expert",
            "Versions",
        )
    ]
    assert "| apgd | 3 | none |" in text
    assert "| protect | 0.25 |" in text
    assert '| granularity | "full" |' in text
    for digest in audit.inputs.values():
        assert digest in text
    assert audit.output is not None
    assert f"| float32 | {audit.output.sha256} | – | cpu |" in text
    assert "| linear.\\* | keep |" in text
    assert "expert 'ada' is the base itself" in text
    assert "| linear.weight | 3×36 | keep | your policy 'linear.\\*' |" in text
    assert f"| torch | {torch.__version__} |" in text


def test_every_table_of_the_document_is_one_on_github() -> None:
    base = {"a|b": torch.ones(2, 2), "c`*<d>": torch.ones(2, 2)}
    experts = {"x|y": {name: tensor + 0.1 for name, tensor in base.items()}}
    text = merge(base, experts, Odd()).audit.to_markdown()
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 9
    for head, rule, *rows in blocks:
        assert set(rule) <= set("|-: ")
        for row in (head, *rows):
            # A pipe that is not escaped opens a cell.
            assert len(re.findall(r"(?<!\\)\|", row)) == rule.count("|")
    assert "a\\|b" in text
    assert "c\\`\\*\\<d>" in text


def test_the_document_is_the_same_for_the_same_merge_and_names_no_place(base, experts, tmp_path) -> None:
    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in experts}
    audits = [
        merge_files(tmp_path / "base.safetensors", paths, tmp_path / "out.safetensors", "apgd", progress=False)
        for _ in range(2)
    ]
    text = audits[0].to_markdown()
    assert text == audits[1].to_markdown()
    assert str(tmp_path) not in text
    assert str(tmp_path) not in audits[0].to_json()
    assert f"| ada | {audits[0].inputs['ada']} | ada.safetensors |" in text


@pytest.mark.parametrize("method", ["average", "ties", "tsv_m", "apgd", "apgd_published"])
def test_an_audit_returns_from_json(base, experts, method: str) -> None:
    experts["ada"]["norm.num_batches_tracked"] = torch.tensor(9)
    audit = merge(base, experts, method).audit
    read = Audit.from_json(audit.to_json())
    assert read == audit
    assert read.to_markdown() == audit.to_markdown()
    assert hash(read.rows[0].shape) == hash(audit.rows[0].shape)


def test_what_json_wrote_as_text_stays_text_and_is_written_again_as_it_was(base, experts) -> None:
    text = merge(base, experts, Odd()).audit.to_json()
    read = Audit.from_json(text)
    assert read.settings["cap"] == "inf"
    assert read.to_json() == text
    assert read.to_markdown() == merge(base, experts, Odd()).audit.to_markdown()


def test_the_json_says_which_format_it_is_and_what_it_holds(base, experts) -> None:
    record = json.loads(merge(base, experts).audit.to_json())
    assert record["format"] == 1
    assert set(record) == {
        *("data_used", "device", "experts", "files", "format", "given_policy", "inputs", "method", "output", "rows"),
        *("settings", "versions", "warnings"),
    }
    assert set(record["output"]) == {"dtype", "files", "sha256"}
    assert set(record["rows"][0]) == {
        *("base_norm", "facts", "name", "policy", "reason", "shape", "task_norm", "update_norm")
    }


def test_the_record_identifies_the_result_and_says_what_was_asked_for(base, experts, cast) -> None:
    merged = merge(base, experts, policy={"linear.*": "keep", "*": "average"})
    assert merged.audit.output == Output((), fingerprint(merged.state_dict), "float32")
    assert merged.audit.device == "cpu"
    # The first pattern that matches wins, so their order is part of what was asked for, and JSON must not sort it.
    assert merged.audit.given_policy == (("linear.*", "keep"), ("*", "average"))
    assert Audit.from_json(merged.audit.to_json()) == merged.audit
    base, ada = ({**cast(one, torch.bfloat16), "gain": one["gain"]} for one in (base, experts["ada"]))
    output = merge(base, {"ada": ada}).audit.output
    assert output is not None
    assert output.dtype == "bfloat16, float32"


def test_a_record_of_before_there_was_an_output_is_read(base, experts) -> None:
    record = json.loads(merge(base, experts).audit.to_json())
    for name in ("device", "given_policy", "output"):
        del record[name]
    read = Audit.from_json(json.dumps(record))
    assert (read.output, read.given_policy, read.device) == (None, (), "")
    assert "## Output\n\nNone." in read.to_markdown()


def change(text: str, *path: object, to: object) -> str:
    """The JSON with the value at one place replaced, or added."""
    record = json.loads(text)
    place = record
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return json.dumps(record)


def test_numbers_that_json_has_no_sign_for_are_numbers_again(base, experts) -> None:
    class Mine:
        name = "mine"

        def __call__(self, task_vectors: Tensor) -> Update:
            facts = {
                "limit": math.inf,
                "votes": (1.0, -math.inf, 3.0),
                "ratio": math.nan,
                "rule": "median",
                "odd": True,
            }
            return Update(task_vectors.mean(dim=0), facts)

    audit = merge(base, experts, Mine()).audit
    row = Audit.from_json(audit.to_json()).rows[0]
    assert (row.facts["limit"], row.facts["votes"]) == (math.inf, (1.0, -math.inf, 3.0))
    assert math.isnan(row.facts["ratio"])
    assert (row.facts["rule"], row.facts["odd"]) == ("median", True)
    assert Audit.from_json(audit.to_json()).details().column("votes") == [-math.inf] * 2
    assert Audit.from_json(audit.to_json()).to_json() == audit.to_json()
    read = Audit.from_json(change(audit.to_json(), "rows", 0, "update_norm", to="inf"))
    assert read.rows[0].relative_step == math.inf
    assert read.long_steps[0].name == read.rows[0].name


def test_keys_of_a_later_version_are_left_out(base, experts) -> None:
    experts["ada"] = dict(base)
    audit = merge(base, experts).audit
    text = change(audit.to_json(), "mood", to={"a": [1]})
    for place in ("rows", "warnings"):
        text = change(text, place, 0, "mood", to="good")
    assert Audit.from_json(text) == audit


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("method",), 3),
        (("settings",), []),
        (("experts",), [1, 2, 3]),
        (("experts",), "ada"),
        (("experts",), ["ada", "ben", "dora"]),
        (("data_used",), None),
        (("inputs",), {"base": "1"}),
        (("inputs", "base"), 5),
        (("versions",), {"torch": 2}),
        (("files",), {"base": "a.safetensors"}),
        (("warnings",), [{"level": "warning"}]),
        (("warnings",), ["careful"]),
        (("rows",), {}),
        (("rows", 0), []),
        (("rows", 0, "name"), 1),
        (("rows", 0, "shape"), "3x3"),
        (("rows", 0, "shape"), [1.5]),
        (("rows", 0, "base_norm"), "long"),
        (("rows", 0, "base_norm"), None),
        (("rows", 0, "base_norm"), True),
        (("rows", 0, "base_norm"), 10**400),
        (("rows", 0, "facts"), []),
        (("rows", 0, "facts", "leak"), {"a": 1}),
        (("rows", 0, "facts", "leak"), ["a", "b", "c"]),
        (("rows", 0, "facts", "task_norms"), [1.0]),
        (("rows", 0, "facts", "task_norms"), 1.0),
        (("output",), "file"),
        (("output", "sha256"), None),
        (("output", "files"), "a"),
        (("given_policy",), {"a": "keep"}),
        (("given_policy",), [["a"]]),
        (("device",), None),
        (("format",), True),
        (("format",), "1"),
    ],
)
def test_a_record_with_something_else_in_a_place_is_no_audit(base, experts, path, value) -> None:
    text = merge(base, experts).audit.to_json()
    assert Audit.from_json(text).to_markdown()
    with pytest.raises(MergeError, match=r"this is no audit \(.*\); give the text of `to_json`"):
        Audit.from_json(change(text, *path, to=value))


def test_a_text_that_is_nested_without_end_is_no_audit() -> None:
    with pytest.raises(MergeError, match=r"this is no audit \(nested too deep\); give the text of `to_json`"):
        Audit.from_json("[" * 200_000)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 1, "experts": 3}', "not json"])
def test_what_is_no_audit_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(MergeError, match=r"this is no audit .*; give the text of `to_json`"):
        Audit.from_json(text)


def test_an_audit_of_a_later_format_is_refused(base, experts) -> None:
    later = merge(base, experts).audit.to_json().replace('"format": 1', '"format": 2')
    with pytest.raises(MergeError, match="format 2, and this version reads 1"):
        Audit.from_json(later)
