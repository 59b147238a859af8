from __future__ import annotations

import ast
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import METHODS, Average, merge, preflight
from apgd_teach.models import make_encoder


def literal_mean(experts, key: str) -> np.ndarray:
    return np.mean([state[key].double().numpy() for state in experts.values()], axis=0)


def floats(state) -> list[str]:
    return [key for key, tensor in state.items() if tensor.is_floating_point()]


# What the average is


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-15), (torch.float32, 1e-6)])
def test_the_average_is_the_mean_that_numpy_takes(base, experts, cast, dtype, tolerance) -> None:
    base, experts = cast(base, dtype), {name: cast(state, dtype) for name, state in experts.items()}
    merged = merge(base, experts).state_dict
    assert list(merged) == list(base)
    for key in floats(base):
        assert merged[key].dtype == dtype
        assert merged[key].shape == base[key].shape
        np.testing.assert_allclose(merged[key].double().numpy(), literal_mean(experts, key), rtol=0, atol=5 * tolerance)


def test_vectors_scalars_and_kernels_move_like_the_rest(base, experts) -> None:
    merged = merge(base, experts)
    policies = {row.name: row.policy for row in merged.audit.rows}
    assert policies == {
        "conv.weight": "merge",
        "conv.bias": "average",
        "linear.weight": "merge",
        "linear.bias": "average",
        "gain": "average",
        "norm.num_batches_tracked": "keep",
    }
    for key in floats(base):
        assert not torch.equal(merged.state_dict[key], base[key])


def test_one_expert_gives_back_that_expert(base, experts) -> None:
    merged = merge(base, {"ada": experts["ada"]}).state_dict
    for key in floats(base):
        torch.testing.assert_close(merged[key], experts["ada"][key], rtol=0, atol=1e-6)
        assert not torch.equal(merged[key], base[key])


def test_counters_are_kept_as_the_base_has_them(base, experts) -> None:
    for number, state in enumerate(experts.values()):
        state["norm.num_batches_tracked"] = torch.tensor(100 + number)
    merged = merge(base, experts).state_dict["norm.num_batches_tracked"]
    assert merged.dtype == torch.int64
    assert merged.item() == 7


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.uint16])
def test_tensors_of_any_kind_of_integer_are_kept(base, experts, dtype) -> None:
    mask = torch.tensor([1, 0, 1]).to(dtype)
    base["mask"] = mask
    for state in experts.values():
        state["mask"] = mask.clone()
    assert torch.equal(merge(base, experts).state_dict["mask"], mask)


@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (0, 2, 3, 3)])
def test_tensors_that_are_empty_are_kept_and_no_method_sees_them(base, experts, shape) -> None:
    base["empty"] = torch.zeros(shape)
    for state in experts.values():
        state["empty"] = torch.zeros(shape)
    merged = merge(base, experts, Only())
    assert merged.state_dict["empty"].shape == shape
    assert {row.name: row.policy for row in merged.audit.rows}["empty"] == "keep"


@dataclass(frozen=True)
class Only:
    name: ClassVar[str] = "only"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        assert task_vectors.numel() > 0
        return torch.zeros_like(task_vectors[0])


def test_a_method_sees_one_matrix_a_task_and_a_kernel_as_out_by_the_rest(base, experts) -> None:
    seen = []

    class Watch:
        name = "watch"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            seen.append(task_vectors.clone())
            return task_vectors[0]

    merge(base, experts, Watch())
    assert [tuple(one.shape) for one in seen] == [(3, 4, 18), (3, 3, 36)]
    # The axes as named: element (task, out, in·kh·kw) is where it stands in the kernel.
    tau = experts["ben"]["conv.weight"] - base["conv.weight"]
    assert torch.equal(seen[0][1, 2].reshape(2, 3, 3), tau[2])


def test_an_update_of_a_kernel_returns_to_its_place(base, experts) -> None:
    class First:
        name = "first"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return task_vectors[0]

    merged = merge(base, experts, First()).state_dict["conv.weight"]
    torch.testing.assert_close(merged, experts["ada"]["conv.weight"], rtol=0, atol=1e-6)


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_nearer_to_the_truth_than_a_sum_in_half_precision(base, cast, dtype) -> None:
    # Eight real encoders of one shape: the last bits of so few bits are lost again with every addition.
    base = cast(make_encoder("mlp", 0).state_dict(), dtype)
    draws = torch.Generator().manual_seed(1)
    experts = {
        f"{number}": {
            key: (one + 0.01 * torch.randn(one.shape, generator=draws)).to(dtype) for key, one in base.items()
        }
        for number in range(8)
    }
    merged = merge(base, experts).state_dict
    ours = naive = 0.0
    for key in base:
        assert merged[key].dtype == dtype
        truth = torch.from_numpy(literal_mean(experts, key))
        total = torch.zeros_like(base[key])
        for state in experts.values():
            total = total + state[key]
        ours += float((merged[key].double() - truth).square().sum())
        naive += float(((total / 8).double() - truth).square().sum())
        # What remains is one rounding of the exact mean, never two.
        ulp = torch.finfo(dtype).eps * truth.abs()
        assert bool(((merged[key].double() - truth).abs() <= 0.51 * ulp + 1e-6).all())
    assert ours**0.5 < 0.6 * naive**0.5


def test_a_result_that_the_dtype_of_the_file_cannot_hold_is_one_sentence() -> None:
    base, far = {"w": torch.full((2, 2), 6e4).half()}, {"w": torch.full((2, 2), 6.2e4).half()}

    class Twice:
        name = "twice"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return 5 * task_vectors.mean(dim=0)

    with pytest.raises(MergeError, match=r"tensor 'w' of the merge has values that torch\.float16 cannot hold; make"):
        merge(base, {"far": far}, Twice())
    assert torch.isfinite(merge(base, {"far": far}).state_dict["w"]).all()


def test_a_vector_that_overflows_is_no_silent_infinity() -> None:
    base = {"b": torch.full((2,), 3e38), "w": torch.ones(2, 2)}
    with pytest.raises(MergeError, match="tensor 'b' of the merge has values that"):
        merge(base, {"far": {"b": -base["b"], "w": torch.ones(2, 2)}})


# Inputs and outputs


@pytest.mark.parametrize("grad", [False, True])
def test_the_inputs_are_untouched_to_the_last_bit(base, experts, grad: bool) -> None:
    for state in (base, *experts.values()):
        for key in floats(state):
            state[key].requires_grad_(grad)
    before = copy.deepcopy((base, experts))
    versions = [one._version for one in base.values()]

    class Destroys:
        name = "destroys"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return task_vectors.mul_(0).add_(1)[0]

    for method in ("average", Destroys()):
        merged = merge(base, experts, method).state_dict
        assert not any(tensor.requires_grad for tensor in merged.values())
    for state, was in zip((base, *experts.values()), (before[0], *before[1].values()), strict=True):
        assert list(state) == list(was)
        for key in state:
            assert state[key].detach().numpy().tobytes() == was[key].detach().numpy().tobytes()
            assert state[key].requires_grad == was[key].requires_grad
    assert [one._version for one in base.values()] == versions
    assert list(experts) == ["ada", "ben", "cy"]


def test_the_result_shares_no_memory_with_what_went_in_or_within_itself(base, experts) -> None:
    for state in (base, *experts.values()):
        state["tied.weight"] = state["linear.weight"]
    merged = merge(base, experts).state_dict
    inside = {one.untyped_storage().data_ptr() for state in (base, *experts.values()) for one in state.values()}
    outside = [one.untyped_storage().data_ptr() for one in merged.values()]
    assert not inside & set(outside)
    assert len(set(outside)) == len(outside)


def test_tensors_that_do_not_lie_in_a_row_are_merged_by_place(base, experts) -> None:
    plain = merge(base, experts).state_dict
    for state in (base, *experts.values()):
        state["linear.weight"] = state["linear.weight"].T.contiguous().T
        state["conv.weight"] = state["conv.weight"].to(memory_format=torch.channels_last)
        assert not state["linear.weight"].is_contiguous()
    merged = merge(base, experts).state_dict
    for key in base:
        assert torch.equal(merged[key], plain[key])


def test_a_tensor_that_repeats_one_row_in_memory_is_merged_like_its_copy() -> None:
    row = torch.arange(3.0).reshape(1, 3)
    merged = merge({"w": row.expand(4, 3)}, {"a": {"w": torch.ones(4, 3)}}).state_dict["w"]
    assert torch.equal(merged, torch.ones(4, 3))


@given(order=st.permutations(range(5)), seed=st.integers(0, 2**31))
def test_the_order_of_the_experts_decides_nothing(order: list[int], seed: int) -> None:
    draws = torch.Generator().manual_seed(seed)
    base = {"w": torch.randn(3, 4, generator=draws), "b": torch.randn(3, generator=draws)}
    # Sizes far apart, so that another order of summation would show.
    experts = {
        f"expert{number}": {
            key: one + 10.0**number * torch.randn(one.shape, generator=draws) for key, one in base.items()
        }
        for number in range(5)
    }
    names = list(experts)
    one, other = merge(base, experts), merge(base, {names[place]: experts[names[place]] for place in order})
    for key in base:
        assert one.state_dict[key].numpy().tobytes() == other.state_dict[key].numpy().tobytes()
    assert one.audit.to_json() == other.audit.to_json()


def test_the_order_of_keys_in_an_expert_decides_nothing(base, experts) -> None:
    backwards = {name: dict(reversed(state.items())) for name, state in experts.items()}
    one, other = merge(base, experts), merge(base, backwards)
    assert list(other.state_dict) == list(base)
    assert all(torch.equal(one.state_dict[key], other.state_dict[key]) for key in base)
    assert one.audit.to_json() == other.audit.to_json()


def test_a_merged_state_dict_is_loaded_by_the_network_it_came_from() -> None:
    base = make_encoder("convnet", 0)
    experts = {f"{seed}": make_encoder("convnet", seed).state_dict() for seed in (1, 2)}
    network = make_encoder("convnet", 3)
    network.load_state_dict(merge(base.state_dict(), experts).state_dict)
    assert torch.isfinite(network(torch.rand(2, 1, 28, 28))).all()


def test_batch_norm_keeps_its_counter_and_averages_its_statistics() -> None:
    base, expert = nn.BatchNorm2d(3).state_dict(), nn.BatchNorm2d(3).state_dict()
    expert["running_mean"] = torch.full((3,), 4.0)
    expert["num_batches_tracked"] = torch.tensor(9)
    merged = merge(base, {"a": expert, "b": base}).state_dict
    assert merged["running_mean"].tolist() == [2.0, 2.0, 2.0]
    assert merged["num_batches_tracked"].item() == 0


# Methods by name and of one's own


def test_a_method_can_be_named_or_given() -> None:
    assert METHODS["average"] is Average
    base, experts = {"w": torch.zeros(2, 2)}, {"a": {"w": torch.ones(2, 2)}}
    assert torch.equal(merge(base, experts, "average").state_dict["w"], merge(base, experts, Average()).state_dict["w"])


@pytest.mark.parametrize(
    ("method", "settings", "sentence"),
    [
        ("averge", {}, r"there is no method 'averge'; use one of: average"),
        ("average", {"scale": 2}, r"'average' has no setting 'scale'; it has: none\."),
        (Average(), {"scale": 2}, r"settings \(scale\) were given beside an instance of Average; put them into"),
        (Average, {}, r"Average is a class; give an instance of it, Average\(…\)\."),
        (None, {}, r"a NoneType is no method; give a name \(average"),
        (3, {}, r"a int is no method"),
        (lambda task_vectors: task_vectors[0], {}, r"a function is no method; .* an object with a `name`"),
    ],
)
def test_what_is_no_method_or_setting_gets_its_sentence(base, experts, method, settings, sentence: str) -> None:
    with pytest.raises(MergeError, match=sentence):
        merge(base, experts, method, **settings)


@dataclass(frozen=True)
class TaskArithmetic:
    """The ten lines of the documentation: a name, settings, one call."""

    scale: float = 0.3
    name: ClassVar[str] = "task-arithmetic"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        return self.scale * task_vectors.sum(dim=0)


def test_a_method_of_ones_own_takes_ten_lines(base, experts) -> None:
    merged = merge(base, experts, TaskArithmetic(scale=0.5))
    total = sum(state["linear.weight"] - base["linear.weight"] for state in experts.values())
    torch.testing.assert_close(merged.state_dict["linear.weight"], base["linear.weight"] + 0.5 * total)
    assert merged.audit.method == "task-arithmetic"
    assert merged.audit.settings == {"scale": 0.5}
    assert "task-arithmetic" not in METHODS


def test_a_third_of_task_arithmetic_for_three_experts_is_the_average(base, experts) -> None:
    one, other = merge(base, experts, TaskArithmetic(scale=1 / 3)), merge(base, experts)
    for key in floats(base):
        torch.testing.assert_close(one.state_dict[key], other.state_dict[key])


@pytest.mark.parametrize(
    ("update", "said"),
    [
        (lambda tau: tau, r"returned shape \(3, 3, 36\)"),
        (lambda tau: tau[0].T, r"returned shape \(36, 3\)"),
        (lambda tau: tau.mean(), r"returned shape \(\)"),
        (lambda tau: tau[0] * float("nan"), "returned NaN or infinity"),
        (lambda tau: tau[0] / 0, "returned NaN or infinity"),
        (lambda tau: None, "returned a NoneType"),
        (lambda tau: tau[0].numpy(), "returned a ndarray"),
        (lambda tau: tau[0].to("meta"), "returned a tensor on meta"),
        (lambda tau: tau[0].to_sparse(), "returned a sparse or complex tensor"),
        (lambda tau: tau[0] * 1j, "returned a sparse or complex tensor"),
    ],
)
def test_what_is_no_update_gets_its_sentence(base, experts, update, said: str) -> None:
    class Wrong:
        name = "wrong"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            # The first layer goes well: the sentence must name the second.
            return task_vectors[0] if task_vectors.shape[1] == 4 else update(task_vectors)

    with pytest.raises(
        MergeError,
        match=rf"method 'wrong' {said} for tensor 'linear\.weight'; it must return a finite tensor of shape \(3, 36\)",
    ):
        merge(base, experts, Wrong())


def test_an_update_in_double_precision_is_taken_as_it_is(base, experts) -> None:
    class Wide:
        name = "wide"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return task_vectors.double().mean(dim=0)

    merged = merge(base, experts, Wide()).state_dict
    assert merged["linear.weight"].dtype == torch.float32
    np.testing.assert_allclose(merged["linear.weight"].numpy(), literal_mean(experts, "linear.weight"), atol=1e-6)


def test_a_method_with_a_parameter_that_learns_leaves_no_gradient_in_the_result(base, experts) -> None:
    class Scaled:
        name = "scaled"
        scale = nn.Parameter(torch.tensor(0.5))

        def __call__(self, task_vectors: Tensor) -> Tensor:
            return self.scale * task_vectors.sum(dim=0)

    assert not any(tensor.requires_grad for tensor in merge(base, experts, Scaled()).state_dict.values())


def test_what_a_method_raises_itself_is_not_hidden(base, experts) -> None:
    class Fails:
        name = "fails"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        merge(base, experts, Fails())


def test_what_cannot_be_merged_is_not_half_merged(base, experts) -> None:
    calls = []

    class Counts:
        name = "counts"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            calls.append(task_vectors)
            return task_vectors[0]

    experts["cy"]["linear.bias"] = torch.zeros(5)
    assert preflight(base, experts).errors
    with pytest.raises(MergeError, match=r"expert 'cy', tensor 'linear\.bias' has shape \(5,\)"):
        merge(base, experts, Counts())
    assert calls == []


def test_the_merging_room_imports_nothing_of_the_data() -> None:
    import apgd_teach.merging as room

    for path in Path(room.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            allowed = tuple(
                f"apgd_teach.{one}" for one in ("merging", "errors", "files", "guard", "tables", "devices", "progress")
            )
            for name in named:
                assert not name.startswith("apgd_teach.") or name.startswith(allowed), f"{path.name} imports {name}"
