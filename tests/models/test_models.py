from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging.statedict import fingerprint
from apgd_teach.models import ENCODERS, FEATURES, count_parameters, make_encoder


def test_there_are_two_encoders() -> None:
    assert list(ENCODERS) == list(FEATURES) == ["convnet", "mlp"]


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize("number", [1, 5])
def test_images_become_features(name: str, number: int) -> None:
    features = make_encoder(name, 0)(torch.rand(number, 1, 28, 28))
    assert features.shape == (number, FEATURES[name])
    assert features.dtype == torch.float32
    assert features.std() > 0


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_image_has_its_features_whatever_stands_beside_it(name: str) -> None:
    images, encoder = torch.rand(4, 1, 28, 28), make_encoder(name, 0)
    with torch.no_grad():
        torch.testing.assert_close(encoder(images)[2:3], encoder(images[2:3]))
        assert not torch.allclose(encoder(images)[0], encoder(images)[1])


def by_hand(name: str) -> int:
    if name == "convnet":
        kernels = 48 * 1 * 25 + 96 * 48 * 9 + 192 * 96 * 9
        return kernels + 48 + 96 + 192 + (192 * 4 * 4) * 384 + 384
    return (784 * 512 + 512) + 2 * (512 * 512 + 512)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_the_number_of_parameters_is_what_the_documentation_says(name: str) -> None:
    encoder = make_encoder(name, 0)
    assert count_parameters(encoder) == by_hand(name)
    assert f"{by_hand(name):,} parameters" in (type(encoder).__doc__ or "")


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_encoder_holds_weights_and_biases_only(name: str) -> None:
    state = make_encoder(name, 0).state_dict()
    assert all(key.endswith((".weight", ".bias")) for key in state)
    assert sum(tensor.numel() for tensor in state.values()) == by_hand(name)
    assert all(tensor.ndim == 1 for key, tensor in state.items() if key.endswith(".bias"))


@pytest.mark.parametrize("name", list(ENCODERS))
def test_a_seed_is_an_encoder(name: str) -> None:
    marks = []
    for seed in (3, 3, 4):
        torch.rand(seed)  # what the caller drew before does not matter
        marks.append(fingerprint(make_encoder(name, seed).state_dict()))
    assert marks[0] == marks[1] != marks[2]


def test_making_an_encoder_leaves_the_random_state_of_the_caller() -> None:
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    expected = [random.random(), np.random.rand(), torch.rand(1).item()]
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(7)
    make_encoder("mlp", 0)
    assert [random.random(), np.random.rand(), torch.rand(1).item()] == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_making_an_encoder_leaves_the_random_state_of_the_card() -> None:
    torch.cuda.manual_seed(7)
    before = torch.cuda.get_rng_state()
    make_encoder("mlp", 0)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_the_weights_lie_on_the_cpu_whatever_the_default_device_is() -> None:
    with torch.device("meta"):
        state = make_encoder("mlp", 0).state_dict()
    assert {tensor.device.type for tensor in state.values()} == {"cpu"}
    assert fingerprint(state) == fingerprint(make_encoder("mlp", 0).state_dict())


def test_an_unknown_network_gets_its_sentence() -> None:
    with pytest.raises(ApgdTeachError) as caught:
        make_encoder("resnet", 0)
    assert str(caught.value) == "there is no network 'resnet'; use one of: convnet, mlp."
