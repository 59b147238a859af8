"""A bias as a column of its weight: the weight of an input that is always 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import PAPER, Apgd, Audit, merge, merge_files, policy_of
from apgd_teach.merging.checkpoint import Spec
from apgd_teach.merging.policy import Decision, biases_of, decide

Made = tuple[nn.Module, dict[str, Tensor], dict[str, dict[str, Tensor]]]


@pytest.fixture
def made() -> Made:
    """A network with a convolution, a normalisation layer, attention, a linear map with and one without bias."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.MultiheadAttention(8, 2),
        nn.Linear(8, 5),
        nn.Linear(5, 4, bias=False),
    )
    base = {name: one.clone() for name, one in network.state_dict().items()}
    experts = {
        name: {
            key: one + 0.1 * torch.randn(one.shape) if one.is_floating_point() else one.clone()
            for key, one in base.items()
        }
        for name in ("a", "b", "c")
    }
    return network, base, experts


@dataclass(frozen=True)
class Seen:
    """Averages, and remembers what it was given."""

    biases: str = "column"
    name: ClassVar[str] = "seen"
    given: ClassVar[dict[str, tuple[int, ...]]] = {}

    def __call__(self, task_vectors: Tensor, layer) -> Tensor:
        self.given[layer.name] = tuple(task_vectors.shape)
        return task_vectors.mean(dim=0)


PAIRS = {
    "0.weight": "0.bias",
    "2.in_proj_weight": "2.in_proj_bias",
    "2.out_proj.weight": "2.out_proj.bias",
    "3.weight": "3.bias",
}


def test_every_merged_weight_comes_with_its_bias_and_nothing_else_does(made: Made) -> None:
    _, base, experts = made
    Seen.given.clear()
    audit = merge(base, experts, Seen()).audit
    assert Seen.given == {
        "0.weight": (3, 8, 28),
        "2.in_proj_weight": (3, 24, 9),
        "2.out_proj.weight": (3, 8, 9),
        "3.weight": (3, 5, 9),
        "4.weight": (3, 4, 5),
    }
    rows = {row.name: row for row in audit.rows}
    assert {name for name, row in rows.items() if row.policy == "column"} == set(PAIRS.values())
    for weight, bias in PAIRS.items():
        assert bias in rows[weight].reason
        assert weight in rows[bias].reason
        assert rows[bias].shape == tuple(base[bias].shape)
        assert not rows[bias].facts
    assert rows["1.bias"].policy == "average"


def test_what_averages_gives_the_average_with_columns_too(made: Made) -> None:
    _, base, experts = made
    one, other = merge(base, experts, Seen()), merge(base, experts, Seen("average"))
    for key, tensor in other.state_dict.items():
        torch.testing.assert_close(one.state_dict[key], tensor)
    for mine, theirs in zip(one.audit.rows, other.audit.rows, strict=True):
        for what in ("base_norm", "task_norm", "update_norm"):
            assert getattr(mine, what) == pytest.approx(getattr(theirs, what), rel=1e-5)


def test_apgd_solves_weight_and_bias_as_one_matrix(made: Made) -> None:
    _, base, experts = made
    method = Apgd()
    found = merge(base, experts, method).state_dict
    for weight, bias in PAIRS.items():
        joined = {
            name: torch.cat([state[weight].flatten(1), state[bias].unsqueeze(1)], dim=1)
            for name, state in {"base": base, **experts}.items()
        }
        layer = joined.pop("base")
        alone = merge({"w": layer}, {name: {"w": one} for name, one in joined.items()}, method).state_dict["w"]
        torch.testing.assert_close(found[weight].flatten(1), alone[:, :-1])
        torch.testing.assert_close(found[bias], alone[:, -1])


def test_the_merge_of_a_linear_layer_does_not_depend_on_where_its_bias_is_kept() -> None:
    """The same function, with the bias as a weight of a constant input: the same merge."""
    torch.manual_seed(1)
    base = {"fc.weight": torch.randn(6, 4), "fc.bias": torch.randn(6)}
    experts = {name: {k: v + 0.2 * torch.randn(v.shape) for k, v in base.items()} for name in "ab"}

    def inside(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"fc.weight": torch.cat([state["fc.weight"], state["fc.bias"].unsqueeze(1)], dim=1)}

    apart = inside(merge(base, experts, Apgd()).state_dict)
    joined = merge(inside(base), {name: inside(one) for name, one in experts.items()}, Apgd()).state_dict
    torch.testing.assert_close(apart["fc.weight"], joined["fc.weight"])


@pytest.mark.parametrize("word", ["average", "keep"])
def test_who_says_what_happens_to_a_bias_is_obeyed(made: Made, word: str) -> None:
    _, base, experts = made
    rows = {row.name: row for row in merge(base, experts, Apgd(), policy={"3.bias": word}).audit.rows}
    assert rows["3.bias"].policy == word
    assert "column" not in rows["3.weight"].reason
    assert rows["0.bias"].policy == "column"


def test_a_policy_from_the_modules_leaves_the_pairs_as_they_are(made: Made) -> None:
    network, base, experts = made
    rows = {row.name: row.policy for row in merge(base, experts, Apgd(), policy=policy_of(network)).audit.rows}
    assert {name for name, policy in rows.items() if policy == "column"} == set(PAIRS.values())


def test_the_papers_choice_averages_biases(made: Made) -> None:
    _, base, experts = made
    assert "column" not in {row.policy for row in merge(base, experts, PAPER).audit.rows}


def test_no_word_of_another_kind() -> None:
    with pytest.raises(MergeError, match="biases = 'together'; use one of: column, average"):
        Apgd(biases="together")


SHAPES = {"fc.weight": Spec((4, 3), torch.float32), "fc.bias": Spec((4,), torch.float32)}


@pytest.mark.parametrize(
    ("change", "ties"),
    [
        ({"fc.bias": Spec((3,), torch.float32)}, ()),
        ({"fc.bias": Spec((4,), torch.float64)}, ()),
        ({"fc.bias": Spec((4,), torch.int64)}, ()),
        ({"fc.weight": Spec((4,), torch.float32)}, ()),
        ({}, (("fc.weight", "head.weight"),)),
        ({}, (("fc.bias", "head.bias"),)),
    ],
    ids=["length", "dtype", "integers", "a norm", "tied weight", "tied bias"],
)
def test_what_is_no_pair_stays_apart(change: dict[str, Spec], ties: tuple[tuple[str, ...], ...]) -> None:
    specs = {**SHAPES, "head.weight": SHAPES["fc.weight"], "head.bias": SHAPES["fc.bias"], **change}
    found = biases_of(specs, decide(specs, ties=ties), ties)
    assert "fc.weight" not in found
    assert found == ({} if ties else {"head.weight": "head.bias"})


def test_pairs_are_found_by_their_decisions() -> None:
    decisions = decide(SHAPES)
    assert biases_of(SHAPES, decisions) == {"fc.weight": "fc.bias"}
    assert biases_of(SHAPES, {**decisions, "fc.weight": Decision("keep", "your policy '*'")}) == {}


@pytest.mark.parametrize("workers", [1, 3])
def test_files_give_the_same_to_the_bit(made: Made, tmp_path: Path, workers: int) -> None:
    _, base, experts = made
    for name, state in {"base": base, **experts}.items():
        save_file(state, tmp_path / f"{name}.safetensors")
    paths = {name: tmp_path / f"{name}.safetensors" for name in experts}
    audit = merge_files(
        tmp_path / "base.safetensors", paths, tmp_path / "out.safetensors", Apgd(), workers=workers, progress=False
    )
    expected = merge(base, experts, Apgd())
    found = load_file(tmp_path / "out.safetensors")
    assert set(found) == set(base)
    for key, tensor in expected.state_dict.items():
        assert torch.equal(found[key], tensor)
    assert {row.name: row for row in audit.rows} == {row.name: row for row in expected.audit.rows}


def test_the_record_of_a_column_can_be_read_back(made: Made) -> None:
    _, base, experts = made
    audit = merge(base, experts, Apgd()).audit
    again = Audit.from_json(audit.to_json())
    assert [(row.name, row.policy) for row in again.rows] == [(row.name, row.policy) for row in audit.rows]
    # Only what went through the method by itself is a merged tensor there.
    assert {row[0] for row in audit.details().rows} == {*PAIRS, "4.weight"}
    assert "a column of '3.weight'" in audit.to_markdown()


def test_a_method_that_writes_into_its_argument_is_measured_on_what_it_was_given(made: Made) -> None:
    _, base, experts = made

    @dataclass(frozen=True)
    class Careless:
        biases: ClassVar[str] = "column"
        name: ClassVar[str] = "careless"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return task_vectors[0].mul_(2)

    rows = {row.name: row for row in merge(base, experts, Careless()).audit.rows}
    first = experts["a"]["3.weight"] - base["3.weight"], experts["a"]["3.bias"] - base["3.bias"]
    length = torch.cat([first[0], first[1].unsqueeze(1)], dim=1).norm()
    assert rows["3.weight"].facts["task_norms"][0] == pytest.approx(float(length), rel=1e-5)
    assert rows["3.weight"].facts["gap_left"][0] == pytest.approx(-1.0, abs=1e-4)


def test_values_that_a_dtype_cannot_hold_are_named(made: Made) -> None:
    """In a column as anywhere: the tensor's own name, and no network."""
    base = {"fc.weight": torch.zeros(3, 2, dtype=torch.float16), "fc.bias": torch.full((3,), 6e4, dtype=torch.float16)}
    experts = {"a": {"fc.weight": torch.ones(3, 2).half(), "fc.bias": torch.full((3,), 6.5e4).half()}}

    @dataclass(frozen=True)
    class Far:
        biases: ClassVar[str] = "column"
        name: ClassVar[str] = "far"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return 10 * task_vectors[0]

    with pytest.raises(MergeError, match=r"'fc\.bias'"):
        merge(base, experts, Far())


def test_the_limit_of_a_direction_counts_the_column(made: Made) -> None:
    _, base, experts = made
    reach = 0.003
    merged = merge(base, experts, Apgd(reach=reach)).state_dict
    joined = torch.cat([base["3.weight"], base["3.bias"].unsqueeze(1)], dim=1)
    moved = torch.cat([merged["3.weight"], merged["3.bias"].unsqueeze(1)], dim=1) - joined
    parts = (torch.cat([one["3.weight"], one["3.bias"].unsqueeze(1)], dim=1) - joined for one in experts.values())
    typical = sum(float(one.norm()) for one in parts) / 3
    limit = reach * float(joined.norm()) ** 2 / typical / 5**0.5
    torch.testing.assert_close(torch.linalg.svdvals(moved), torch.full((5,), limit), atol=1e-6, rtol=1e-4)
