from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from apgd_teach.errors import MergeError
from apgd_teach.merging import fingerprint, merge, task_vectors
from apgd_teach.merging.statedict import as_matrix, norm, relative_norm

# Task vectors


def test_the_base_and_a_task_vector_make_the_expert(base, experts, cast) -> None:
    base, experts = cast(base, torch.float64), {name: cast(state, torch.float64) for name, state in experts.items()}
    tau = task_vectors(base, experts)
    assert list(tau) == list(experts)
    for name, vectors in tau.items():
        assert set(vectors) == set(base) - {"norm.num_batches_tracked"}
        for key, vector in vectors.items():
            assert vector.shape == base[key].shape
            torch.testing.assert_close(base[key] + vector, experts[name][key], rtol=1e-15, atol=1e-15)
            assert vector.abs().max() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_files_in_half_precision_are_subtracted_without_a_rounding(base, experts, cast, dtype) -> None:
    base, experts = cast(base, dtype), {name: cast(state, dtype) for name, state in experts.items()}
    for name, vectors in task_vectors(base, experts).items():
        for key, vector in vectors.items():
            assert vector.dtype == torch.float32
            # Two numbers of 8 or 11 bits and near sizes: their difference is exact in float32.
            assert torch.equal(vector.double(), experts[name][key].double() - base[key].double())
            assert torch.equal((base[key].float() + vector).to(dtype), experts[name][key])


def test_a_task_vector_is_a_tensor_of_its_own_without_gradients(base, experts) -> None:
    base["gain"].requires_grad_()
    vector = task_vectors(base, experts)["ada"]["gain"]
    assert not vector.requires_grad
    vector.add_(100)
    assert experts["ada"]["gain"].abs() < 50


def test_a_kernel_is_seen_as_out_by_in_times_height_times_width() -> None:
    kernel = torch.arange(2 * 3 * 5 * 7.0).reshape(2, 3, 5, 7)
    matrix = as_matrix(kernel)
    assert matrix.shape == (2, 105)
    assert matrix[1, 2 * 35 + 4 * 7 + 6] == kernel[1, 2, 4, 6]
    assert as_matrix(torch.zeros(0, 3, 2)).shape == (0, 6)


def test_norms_are_frobenius_and_relative_to_the_whole_base() -> None:
    assert norm(torch.tensor([[3.0, 0.0], [0.0, 4.0]])) == 5.0
    assert norm(torch.tensor([3, 4])) == 5.0
    assert norm(torch.zeros(0, 3)) == 0.0
    # In bfloat16 itself a sum of 65,536 ones stops at 256.
    assert norm(torch.ones(256, 256, dtype=torch.bfloat16)) == 256.0
    base = {"w": torch.tensor([[3.0]]), "b": torch.tensor([4.0]), "n": torch.tensor(100)}
    assert relative_norm(base, {"w": torch.tensor([[3.0]]), "b": torch.tensor([5.0]), "n": torch.tensor(0)}) == 0.2
    assert relative_norm(base, base) == 0.0


def test_a_step_far_below_the_smallest_square_of_float32_is_still_a_step() -> None:
    base = {"w": torch.zeros(2, 2), "b": torch.ones(1)}
    assert relative_norm(base, {"w": torch.full((2, 2), 1e-30), "b": torch.ones(1)}) == pytest.approx(2e-30)


# Fingerprints


def test_a_fingerprint_is_the_sha_256_of_name_dtype_shape_and_bytes() -> None:
    state = {"w": torch.tensor([[1.0, 2.0]]), "a": torch.tensor(3, dtype=torch.int16)}
    content = b"a|torch.int16|()|" + b"\x03\x00" + b"w|torch.float32|(1, 2)|" + b"\x00\x00\x80\x3f\x00\x00\x00\x40"
    assert fingerprint(state) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int8, torch.int64, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 3), (2, 3), (2, 3, 1, 1)])
def test_tensors_of_every_kind_have_a_fingerprint_that_knows_dtype_and_shape(dtype, shape) -> None:
    mark = fingerprint({"w": torch.zeros(shape, dtype=dtype)})
    assert len(mark) == 64
    assert mark == fingerprint({"w": torch.zeros(shape, dtype=dtype)})
    assert mark != fingerprint({"w": torch.zeros((*shape, 1), dtype=dtype)})
    assert mark != fingerprint({"v": torch.zeros(shape, dtype=dtype)})
    assert mark != fingerprint({"w": torch.zeros(shape, dtype=torch.uint8)})
    if 0 not in shape:
        assert mark != fingerprint({"w": torch.ones(shape, dtype=dtype)})


@given(bit=st.integers(0, 15), place=st.integers(0, 5), dtype=st.sampled_from([torch.bfloat16, torch.float16]))
def test_every_bit_of_every_number_counts(bit: int, place: int, dtype) -> None:
    state = {"w": torch.arange(6).to(dtype).reshape(2, 3)}
    before = fingerprint(state)
    flipped = state["w"].view(torch.int16).flatten()
    flipped[place] ^= torch.tensor(1 << bit if bit < 15 else -(1 << 15), dtype=torch.int16)
    assert fingerprint(state) != before


def test_the_order_of_keys_the_layout_and_gradients_do_not_count(base) -> None:
    mark = fingerprint(base)
    assert fingerprint(dict(reversed(base.items()))) == mark
    base["linear.weight"] = base["linear.weight"].T.contiguous().T.requires_grad_()
    base["conv.weight"] = base["conv.weight"].to(memory_format=torch.channels_last)
    assert not base["linear.weight"].is_contiguous()
    assert fingerprint(base) == mark
    base["linear.weight"] = base["linear.weight"].detach().flip(0)
    assert fingerprint(base) != mark


def test_which_number_stands_under_which_name_counts() -> None:
    one, two = torch.tensor(1.0), torch.tensor(2.0)
    assert fingerprint({"a": one, "b": two}) != fingerprint({"a": two, "b": one})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_the_device_does_not_count(base) -> None:
    assert fingerprint({key: tensor.cuda() for key, tensor in base.items()}) == fingerprint(base)


def test_a_name_with_half_a_character_is_refused_before_anything_is_merged() -> None:
    state = {"a": torch.ones(2, 2), "b\ud800": torch.ones(2, 2)}
    sentence = r"the tensor name 'b\\ud800' holds half a character; rename the tensor\."
    with pytest.raises(MergeError, match=sentence):
        fingerprint(state)

    class Never:
        name = "never"

        def __call__(self, task_vectors: torch.Tensor) -> torch.Tensor:
            raise AssertionError("a layer was computed")

    with pytest.raises(MergeError, match=sentence):
        merge(state, {"ada": state}, Never())
