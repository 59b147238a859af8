from __future__ import annotations

import pytest
import torch

from apgd_teach.devices import describe_device, pick_device
from apgd_teach.errors import ApgdTeachError

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")


def test_auto_takes_what_is_there_and_computes_on_it() -> None:
    chosen = pick_device()
    assert pick_device("auto") == chosen
    assert (chosen.type == "cuda") == torch.cuda.is_available()
    assert torch.ones(2, device=chosen).sum().item() == 2


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_a_device_can_be_named_or_given(name) -> None:
    assert pick_device(name) == torch.device(name)


@pytest.mark.parametrize("name", ["banana", "", "CPU", "cuda:x", "cpu:-1", None, 0, 3.5, ["cpu"]])
def test_what_is_no_device_gets_its_sentence(name) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        pick_device(name)
    assert str(caught.value) == f"{name!r} is not a device; use 'auto', 'cpu', 'cuda' or 'mps'."


@NO_CUDA
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:99", torch.device("cuda")])
def test_cuda_where_there_is_none_gets_its_sentence(name) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        pick_device(name)
    assert str(caught.value) == f"this machine has no device '{name}'; use 'auto' or 'cpu'."


@pytest.mark.skipif(torch.backends.mps.is_available(), reason="this machine has an MPS device")
def test_mps_where_there_is_none_gets_its_sentence() -> None:
    with pytest.raises(ApgdTeachError, match=r"^this machine has no device 'mps'; use"):
        pick_device("mps")


@pytest.mark.parametrize("name", ["fpga", "vulkan", "lazy", "privateuseone"])
def test_a_kind_that_pytorch_knows_by_name_only_gets_its_sentence(name: str) -> None:
    with pytest.raises(ApgdTeachError, match=rf"^this machine has no device '{name}'; use"):
        pick_device(name)


def test_a_device_without_values_is_none_to_compute_on() -> None:
    with pytest.raises(ApgdTeachError, match="'meta' holds shapes and no values"):
        pick_device("meta")


@CUDA
def test_a_number_beyond_the_last_card_gets_its_sentence() -> None:
    assert pick_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ApgdTeachError, match="this machine has no device 'cuda:99'"):
        pick_device("cuda:99")
    assert describe_device(pick_device("cuda")) == f"cuda, {torch.cuda.get_device_name(0)}"


@pytest.mark.parametrize(("threads", "words"), [(1, "cpu, 1 thread"), (2, "cpu, 2 threads")])
def test_a_cpu_is_described_by_its_threads(threads: int, words: str) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert describe_device(torch.device("cpu")) == words
    finally:
        torch.set_num_threads(before)
