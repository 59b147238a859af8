"""How networks are run: in which way, in which blocks, in which processes; and that the answers stay the same."""

from __future__ import annotations

import copy
import logging
import math
import os
import pickle
import time
from functools import partial

import joblib
import pytest
import torch
from torch import Tensor, nn

from apgd_teach.cache import Cache
from apgd_teach.data import open_colour
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import make_pool
from apgd_teach.machine import (
    WAYS,
    Pace,
    Way,
    block_table,
    deterministic,
    in_blocks,
    pace,
    pace_table,
    quickest,
    room,
)
from apgd_teach.models import make_encoder
from apgd_teach.parallel import devices_for, in_processes
from apgd_teach.training import Recipe, fine_tune, fit_head, train_base

CPU = torch.device("cpu")


def nobody(step: int, loss: float) -> None:
    """Is told of nothing."""


NO_ROOM = {
    "CUDA": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
    "MPS": RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB, max allowed: 9.07 GB)."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "CPU": RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
}
"""What devices say that have no room left."""


class Cramped(nn.Module):
    """A network whose device has room for so many images at once."""

    def __init__(self, inner: nn.Module, room: int, error: RuntimeError = NO_ROOM["CUDA"]) -> None:
        super().__init__()
        self.inner, self.room, self.error, self.seen = inner, room, error, []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(len(images))
        if len(images) > self.room:
            raise self.error
        return self.inner(images)


# Blocks that fit


@pytest.mark.parametrize("error", NO_ROOM.values(), ids=NO_ROOM)
def test_what_does_not_fit_at_once_is_looked_at_in_smaller_blocks(
    error: RuntimeError, caplog: pytest.LogCaptureFixture
) -> None:
    network, images = Cramped(make_encoder("mlp", 0), 30, error), torch.rand(100, 1, 28, 28)
    with caplog.at_level(logging.WARNING):
        features = in_blocks(network, images)
    assert torch.allclose(features, network.inner(images), atol=1e-6)
    assert network.seen == [100, 50, 25, 25, 25, 25]
    assert caplog.messages[0] == (
        "The device is out of memory looking at 100 images, 100 at a time; going on with 50 at a time."
    )


def test_another_error_is_not_taken_for_a_lack_of_room() -> None:
    wrong = Cramped(make_encoder("mlp", 0), 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        in_blocks(wrong, torch.rand(3, 1, 28, 28))
    with pytest.raises(RuntimeError, match="shapes"), room("merging"):
        raise wrong.error


@pytest.mark.parametrize("error", NO_ROOM.values(), ids=NO_ROOM)
def test_what_cannot_be_made_smaller_gets_a_sentence_and_no_traceback(error: RuntimeError) -> None:
    with (
        pytest.raises(ApgdTeachError, match=r"out of memory merging; close what else uses it, take fewer") as caught,
        room("merging"),
    ):
        raise error
    assert caught.value.__suppress_context__


def test_where_not_even_one_image_fits_there_is_a_sentence() -> None:
    with pytest.raises(ApgdTeachError, match=r"out of memory looking at 3 images, even one at a time; close what else"):
        in_blocks(Cramped(make_encoder("mlp", 0), 0), torch.rand(3, 1, 28, 28))


def test_a_forecast_needs_no_more_room_than_training(make, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run on a small device: nothing is in the cache, so the time of a step is measured beforehand."""
    plain = nn.Linear.forward

    def cramped(layer: nn.Linear, given: Tensor) -> Tensor:
        if len(given) > 20 and given.requires_grad:
            raise NO_ROOM["CUDA"]
        return plain(layer, given)

    monkeypatch.setattr(nn.Linear, "forward", cramped)
    small = {"base_steps": Recipe("sgd", 0.01, 3, batch_size=16), "regime": Recipe("sgd", 0.01, 3, batch_size=16)}
    assert make(tmp_path, **small).trained


def test_a_batch_that_does_not_fit_makes_the_same_step_in_parts(source, caplog: pytest.LogCaptureFixture) -> None:
    data, how = source.task("digits-upright"), Recipe("sgd", 0.05, steps=4, batch_size=50)
    states = []
    for space in (1000, 20):
        encoder = make_encoder("convnet", 0)
        head = nn.Linear(384, 10)
        head.load_state_dict(fit_head(encoder, data, CPU, nobody).state)
        cramped = Cramped(encoder, space)
        with caplog.at_level(logging.WARNING):
            fine_tune(cramped, head, data, how, 0, CPU, nobody)
        states.append(encoder.state_dict())
    for key, tensor in states[0].items():
        torch.testing.assert_close(states[1][key], tensor, atol=1e-5, rtol=1e-4)
    assert sum("training the expert of digits, upright" in message for message in caplog.messages) == 2


def test_a_training_for_which_there_is_no_room_gets_a_sentence(source) -> None:
    data = source.task("digits-upright")
    head = nn.Linear(512, 10)
    with pytest.raises(ApgdTeachError, match=r"out of memory training the expert of digits, upright, even one at a"):
        fine_tune(Cramped(make_encoder("mlp", 0), 0), head, data, Recipe("sgd", 0.1, steps=1), 0, CPU, nobody)


def test_a_network_is_scored_all_the_same_where_its_images_do_not_fit_at_once(make, tmp_path) -> None:
    pool = make(tmp_path)
    roomy = Evaluator(pool, images=40)
    expected = roomy.scores(pool.base)
    cramped = Evaluator(pool, images=40)
    cramped.encoder = Cramped(cramped.encoder, 9)
    cramped.encoder.state_dict = cramped.encoder.inner.state_dict
    plain = {f"inner.{key}": tensor for key, tensor in pool.base.items()}
    cramped.loaded = lambda state: plain
    found = cramped.scores(pool.base)
    assert all(torch.equal(found[task].right, expected[task].right) for task in expected)


# Ways


def test_a_way_is_said_in_words() -> None:
    assert [str(way) for way in WAYS] == [
        "plain",
        "batches from a DataLoader",
        "channels last",
        "bfloat16",
        "channels last + bfloat16",
        "channels last + bfloat16 + compiled",
        "compiled",
    ]


@pytest.mark.parametrize("way", [Way(), Way(channels_last=True), Way(bfloat16=True)], ids=str)
@pytest.mark.parametrize("name", ["colour-convnet", "colour-resnet", "colour-vit"])
def test_every_way_computes_the_same_network(name: str, way: Way) -> None:
    encoder = make_encoder(name, 0).eval()
    images = torch.rand(6, 3, 32, 32)
    with torch.no_grad():
        expected = copy.deepcopy(encoder)(images)
        found = way.ready(encoder)(images)
    assert found.dtype == torch.float32
    near = 3e-2 if way.bfloat16 else 1e-5
    assert float((found - expected).norm() / expected.norm()) < near
    # The weights are where they were, and as precise.
    assert all(tensor.dtype != torch.bfloat16 for tensor in encoder.state_dict().values())


@pytest.mark.slow
def test_a_compiled_network_computes_the_same_or_says_why_it_cannot() -> None:
    (plain, compiled) = pace("mlp", CPU, [Way(compiled=True)], batch_size=16, rounds=1)
    assert plain.gains == (1.0,)
    if compiled.why:
        assert "does not run here" in str(pace_table("mlp", [plain, compiled], "cpu"))
        pytest.skip(f"nothing compiles here: {compiled.why}")
    encoder, images = make_encoder("mlp", 0), torch.rand(4, 1, 28, 28)
    with torch.no_grad():
        torch.testing.assert_close(Way(compiled=True).ready(encoder)(images), encoder(images), atol=1e-5, rtol=1e-4)


def test_ways_are_timed_by_turns_against_the_plain_one_of_the_same_round() -> None:
    found = pace("colour-convnet", CPU, [Way(channels_last=True)], batch_size=8, rounds=3)
    assert [one.way for one in found] == [Way(), Way(channels_last=True)]
    assert all(len(one.gains) == 3 and one.seconds > 0 and one.once > 0 for one in found)
    assert found[0].gains == (1.0, 1.0, 1.0)
    table = pace_table("colour-convnet", found, "cpu, 1 thread")
    assert table.column("way") == ["plain", "channels last"]
    assert table.column("times faster than plain")[0] == "–"


def test_images_are_looked_at_in_blocks_of_several_sizes_by_turns() -> None:
    table = block_table("colour-convnet", CPU, (1, 20), rounds=1)
    assert table.column("images at once") == [1, 20]
    assert table.column("times as many")[0] == 1


def made(way: Way, gains: tuple[float, ...], once: float = 1.0) -> Pace:
    return Pace(way, 1.0 / sorted(gains)[len(gains) // 2], gains, once)


def test_a_way_is_chosen_only_where_it_pays_in_most_rounds() -> None:
    plain, choose = made(Way(), (1.0,) * 4), partial(quickest, steps=100)
    sure, unsure = made(Way(bfloat16=True), (1.5, 1.4, 1.6, 1.3)), made(Way(channels_last=True), (3.0, 0.7, 3.0, 0.8))
    assert choose([plain, sure]) == Way(bfloat16=True)
    assert choose([plain, made(Way(bfloat16=True), (1.02, 1.05, 1.01, 1.04))]) == Way()
    assert choose([plain, unsure]) == Way()
    # One that is faster now and then does not stand in the way of one that always is.
    assert choose([plain, unsure, sure]) == Way(bfloat16=True)
    broken = Pace(Way(compiled=True), math.nan, (), math.nan, "no compiler")
    assert choose([plain, broken]) == Way()
    assert choose([plain, made(Way(loader=True), (2.0, 2.0, 2.0, 2.0))]) == Way()
    with pytest.raises(ApgdTeachError, match="nothing was measured"):
        choose([broken])


def test_what_takes_long_to_compile_pays_only_in_a_long_training() -> None:
    plain, compiled = made(Way(), (1.0,) * 4), made(Way(compiled=True), (2.0,) * 4, once=61.0)
    assert quickest([plain, compiled], steps=100) == Way()
    assert quickest([plain, compiled], steps=200) == Way(compiled=True)


def test_no_round_measures_nothing() -> None:
    with pytest.raises(ApgdTeachError, match=r"rounds=0 measure nothing"):
        pace("mlp", CPU, rounds=0)


def test_the_way_is_an_ingredient_of_what_is_trained_and_not_of_the_heads(make, tmp_path) -> None:
    make(tmp_path)
    other = make(tmp_path, way=Way(channels_last=True))
    assert other.trained[0] == "base mlp"
    assert other.cards["base"]["ingredients"]["way"] == "channels last"
    assert "way" not in make(tmp_path).cards["base"]["ingredients"]
    assert make(tmp_path, way=Way()).trained == ()


def test_deterministic_algorithms_are_asked_for_inside_and_not_after() -> None:
    before, kept = torch.are_deterministic_algorithms_enabled(), os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    with deterministic():
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"]
        assert [one for _, one in in_processes([is_deterministic, is_deterministic], CPU, 2)] == [True, True]
    assert torch.are_deterministic_algorithms_enabled() == before
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == kept
    assert [one for _, one in in_processes([is_deterministic], CPU, 1)] == [False]


@pytest.mark.parametrize("network", ["colour-convnet", "colour-resnet", "colour-vit"])
def test_the_same_training_twice_gives_the_same_bits(network: str, shapes) -> None:
    with deterministic():
        one, other = (train_base(network, shapes, Recipe("sgd", 0.05, 4), 0, CPU, nobody).state for _ in range(2))
    assert all(torch.equal(one[key], other[key]) for key in one)


# Processes


def square(number: int, device: torch.device) -> tuple[int, int, str]:
    return number**2, torch.get_num_threads(), str(device)


def is_deterministic(device: torch.device) -> bool:
    return torch.are_deterministic_algorithms_enabled()


def test_jobs_in_processes_come_back_with_their_places_and_share_the_threads() -> None:
    found = dict(in_processes([partial(square, number) for number in range(5)], CPU, 2))
    assert [found[place][0] for place in range(5)] == [0, 1, 4, 9, 16]
    assert {one[1] for one in found.values()} == {max(1, torch.get_num_threads() // 2)}
    assert {one[2] for one in found.values()} == {"cpu"}


def fails(device: torch.device) -> None:
    raise ApgdTeachError("this one cannot be trained.")


def test_what_fails_in_a_process_fails_here_with_its_sentence() -> None:
    with pytest.raises(ApgdTeachError, match="this one cannot be trained"):
        list(in_processes([fails, fails], CPU, 2))


@pytest.mark.parametrize("workers", [0, -1, True, 1.5])
def test_a_number_of_processes_that_is_none_gets_a_sentence(workers, make, tmp_path) -> None:
    with pytest.raises(ApgdTeachError, match=r"workers=.* is no number of processes"):
        list(in_processes([fails], CPU, workers))
    with pytest.raises(ApgdTeachError, match=r"workers=.* is no number of processes"):
        make(tmp_path, workers=workers)


def test_what_is_ready_first_comes_back_first() -> None:
    jobs = [partial(sleeps, seconds) for seconds in (3.0, 0.0)]
    assert [place for place, _ in in_processes(jobs, CPU, 2)] == [1, 0]


def sleeps(seconds: float, device: torch.device) -> float:
    time.sleep(seconds)
    return seconds


def test_in_an_engine_of_threads_jobs_wait_for_each_other(make, tmp_path) -> None:
    """PyTorch's random numbers are a process's: two trainings in one would draw each other's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = make(tmp_path / "one", regime="hot", expert_steps=6)
        with joblib.parallel_config(backend="threading"):
            together = make(tmp_path / "two", regime="hot", expert_steps=6, workers=2)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(threads)
    for task, expert in alone.experts.items():
        assert all(torch.equal(together.experts[task][key], tensor) for key, tensor in expert.items())


def test_a_job_takes_its_data_along_without_the_pictures_that_were_made_of_them(source) -> None:
    task = source.task("digits-noisy")
    pictures = task.train.images
    packed = pickle.dumps(task)
    assert len(packed) < pictures.numel() * 4
    assert torch.equal(pickle.loads(packed).train.images, pictures)


def test_the_cpu_is_one_device_for_all_jobs() -> None:
    assert devices_for(CPU, 3) == [CPU] * 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="this machine has no two CUDA devices")
def test_jobs_take_the_gpus_in_turn() -> None:
    assert [device.index for device in devices_for(torch.device("cuda"), 3)] == [0, 1, 0]


def test_experts_trained_in_two_processes_are_those_of_one(make, tmp_path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = make(tmp_path / "one", regime="hot", expert_steps=6)
        together = make(tmp_path / "two", regime="hot", expert_steps=6, workers=2)
    finally:
        torch.set_num_threads(threads)
    assert alone.trained == together.trained
    for task, expert in alone.experts.items():
        for key, tensor in expert.items():
            assert torch.equal(together.experts[task][key], tensor)
    assert all(card["seconds"] > 0 for card in together.cards.values())
    # They are in the cache like any others.
    assert make(tmp_path / "two", regime="hot", expert_steps=6).trained == ()


# Colour


@pytest.fixture(scope="module")
def shapes():
    return open_colour("generated", per_class=20)


@pytest.mark.parametrize("network", ["colour-convnet", "colour-resnet", "colour-vit"])
def test_a_pool_of_colour_pictures(network: str, shapes, tmp_path) -> None:
    pool = make_pool(
        network,
        tasks=["shapes-grey", "shapes-textures"],
        base_steps=3,
        regime=Recipe("sgd", 0.05, 3, batch_size=16),
        source=shapes,
        device="cpu",
        cache=Cache(tmp_path),
        progress=False,
    )
    assert pool.tier == "generated"
    assert pool.heads["shapes-textures"]["weight"].shape[0] == 5
    assert pool.heads["shapes-grey"]["weight"].shape[0] == 10
    scores = Evaluator(pool, images=30).experts()
    assert len(scores["shapes-grey"].right) == 30
    if network == "colour-resnet":
        # Training moved the statistics, and scoring did not.
        assert not torch.equal(pool.experts["shapes-grey"]["stem.1.running_mean"], pool.base["stem.1.running_mean"])
        assert int(pool.base["stem.1.num_batches_tracked"]) == 3
        assert int(pool.experts["shapes-grey"]["stem.1.num_batches_tracked"]) == 6


def test_all_tasks_of_a_colour_source_are_taken_unasked(shapes) -> None:
    assert len(shapes.tasks) == 10
    assert all(task.startswith("shapes-") for task in shapes.tasks)


def test_a_network_for_other_pictures_gets_a_sentence(shapes, tmp_path) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        make_pool("convnet", source=shapes, cache=Cache(tmp_path), progress=False, device="cpu")
    assert str(caught.value) == (
        "the network 'convnet' takes pictures of (1, 28, 28) (channel, row, column), and those of shapes, plain are "
        "(3, 32, 32); use another network or another source."
    )
