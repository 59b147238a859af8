from __future__ import annotations

import random

import numpy as np
import pytest
import torch

from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging.statedict import fingerprint
from apgd_teach.models import ENCODERS, count_parameters, make_encoder

COLOUR = ["colour-convnet", "colour-resnet", "colour-vit"]


def test_there_are_three_grey_encoders_and_three_in_colour() -> None:
    assert list(ENCODERS) == ["convnet", "mlp", "small-convnet", *COLOUR]
    assert [name for name, kind in ENCODERS.items() if kind.shape == (3, 32, 32)] == COLOUR


def images_for(name: str, number: int) -> torch.Tensor:
    return torch.rand(number, *ENCODERS[name].shape)


@pytest.mark.parametrize("name", list(ENCODERS))
@pytest.mark.parametrize("number", [1, 5])
def test_images_become_features(name: str, number: int) -> None:
    features = make_encoder(name, 0).eval()(images_for(name, number))
    assert features.shape == (number, ENCODERS[name].features)
    assert features.dtype == torch.float32
    assert features.std() > 0


@pytest.mark.parametrize("name", list(ENCODERS))
def test_an_image_has_its_features_whatever_stands_beside_it(name: str) -> None:
    images, encoder = images_for(name, 4), make_encoder(name, 0).eval()
    with torch.no_grad():
        torch.testing.assert_close(encoder(images)[2:3], encoder(images[2:3]))
        assert not torch.allclose(encoder(images)[0], encoder(images)[1])


def by_hand(name: str) -> int:
    if name == "convnet":
        kernels = 48 * 1 * 25 + 96 * 48 * 9 + 192 * 96 * 9
        return kernels + 48 + 96 + 192 + (192 * 4 * 4) * 384 + 384
    if name == "small-convnet":
        kernels = 12 * 1 * 25 + 24 * 12 * 9 + 48 * 24 * 9
        return kernels + 12 + 24 + 48 + (48 * 4 * 4) * 96 + 96
    if name == "colour-convnet":
        # No biases: each convolution has a scale and a shift per channel behind it.
        kernels = 48 * 3 * 25 + 96 * 48 * 9 + 192 * 96 * 9
        return kernels + 2 * (48 + 96 + 192) + (192 * 4 * 4) * 384 + 384
    if name == "colour-resnet":

        def block(before: int, after: int) -> int:
            beside = before * after + 2 * after if before != after else 0
            return 9 * before * after + 9 * after * after + 4 * after + beside

        return 9 * 3 * 48 + 2 * 48 + block(48, 48) + block(48, 96) + block(96, 192)
    if name == "colour-vit":
        width, inner = 96, 192
        layer = 4 * width * (width + 1) + 4 * width + 2 * width * inner + inner + width
        return 48 * width + width + width + 65 * width + 3 * layer + 2 * width
    return (784 * 512 + 512) + 2 * (512 * 512 + 512)


@pytest.mark.parametrize("name", list(ENCODERS))
def test_the_number_of_parameters_is_what_the_documentation_says(name: str) -> None:
    encoder = make_encoder(name, 0)
    assert count_parameters(encoder) == by_hand(name)
    assert f"{by_hand(name):,} parameters" in (type(encoder).__doc__ or "")


@pytest.mark.parametrize("name", ["convnet", "mlp", "colour-convnet"])
def test_an_encoder_holds_weights_and_biases_only(name: str) -> None:
    state = make_encoder(name, 0).state_dict()
    assert all(key.endswith((".weight", ".bias")) for key in state)
    assert sum(tensor.numel() for tensor in state.values()) == by_hand(name)
    assert all(tensor.ndim == 1 for key, tensor in state.items() if key.endswith(".bias"))


def test_only_the_network_with_batch_norms_keeps_statistics() -> None:
    kept = {
        name: [key for key in make_encoder(name, 0).state_dict() if key.endswith("running_mean")] for name in ENCODERS
    }
    assert [name for name, keys in kept.items() if keys] == ["colour-resnet"]
    assert len(kept["colour-resnet"]) == 9


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
    assert str(caught.value) == (
        "there is no network 'resnet'; use one of: convnet, mlp, small-convnet, colour-convnet, colour-resnet, "
        "colour-vit."
    )
