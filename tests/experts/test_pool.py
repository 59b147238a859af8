from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torchvision.transforms import v2

import apgd_teach
from apgd_teach import experts
from apgd_teach.cache import Cache
from apgd_teach.data import TASKS, Source, Task, Variant
from apgd_teach.devices import pick_device
from apgd_teach.errors import ApgdTeachError, DataError
from apgd_teach.evaluate import compare
from apgd_teach.experts import Pool, make_pool
from apgd_teach.merging import fingerprint
from apgd_teach.training import Recipe

Make = Callable[..., Pool]
Filled = tuple[Path, Pool]

TASK = "digits-upright"
BASE, HEADS, EXPERTS = (
    ("base mlp",),
    ("head digits-upright", "head fashion-flipped"),
    ("expert digits-upright", "expert fashion-flipped"),
)
ALL = BASE + HEADS + EXPERTS


def marks(pool: Pool) -> list[str]:
    return [fingerprint(state) for state in (pool.base, *pool.heads.values(), *pool.experts.values())]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def one(folder: Path, start: str, suffix: str) -> Path:
    (file,) = folder.glob(f"{start}-*{suffix}")
    return file


def sentences(text: str) -> list[str]:
    """What was said, without the bars."""
    return re.findall(r"Making [^\n]*\)\.", text)


# The same ingredients


def test_the_same_ingredients_make_the_same_weights_bit_for_bit(filled: Filled, make: Make, tmp_path: Path) -> None:
    torch.manual_seed(123)
    again = make(tmp_path / "another")
    assert again.trained == ALL
    assert marks(again) == marks(filled[1])


def test_the_random_numbers_of_the_caller_go_on_as_if_nothing_had_been_drawn(make: Make, tmp_path: Path) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    pool = make(tmp_path)
    pool.encoder(), pool.head(TASK)
    assert torch.equal(torch.rand(3), expected)


def test_a_second_call_trains_nothing_and_is_quick(folder: Path, filled: Filled, make: Make) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    start = time.perf_counter()
    again = make(folder)
    assert time.perf_counter() - start < 2
    assert again.trained == ()
    assert marks(again) == marks(filled[1])
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_second_call_says_nothing(folder: Path, make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    make(folder, progress=True)
    assert capsys.readouterr() == ("", "")


def test_a_pool_is_made_where_gradients_are_switched_off(make: Make, filled: Filled, tmp_path: Path) -> None:
    with torch.no_grad():
        assert marks(make(tmp_path)) == marks(filled[1])


def test_a_pool_is_the_same_whatever_the_default_device_is(make: Make, filled: Filled, tmp_path: Path) -> None:
    with torch.device("meta"):
        pool = make(tmp_path, tasks=[TASK])
        pool.head(TASK)
    assert marks(pool) == marks(filled[1].only([TASK]))


def test_a_cache_handed_on_is_good_in_another_folder_under_another_version(
    filled: Filled, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(filled[0], tmp_path / "of a friend")
    monkeypatch.setattr(apgd_teach, "__version__", "9.9.9")
    assert make(tmp_path / "of a friend").trained == ()


def test_neither_version_nor_machine_is_an_ingredient(filled: Filled) -> None:
    common = {"kind", "name", "format", "network", "seed"}
    more = {
        "base": {"recipe", "data"},
        "head": {"base", "data", "penalty"},
        "expert": {"base", "head", "data", "recipe"},
    }
    for card in filled[0].glob("*.json"):
        ingredients = json.loads(card.read_text(encoding="utf-8"))["ingredients"]
        assert set(ingredients) == common | more[ingredients["kind"]]


# One ingredient changed


CHANGES = {
    "expert learning rate": (
        {"regime": Recipe("sgd", 0.05, 5)},
        EXPERTS,
        "since the nearest cached one, this changed: recipe.lr: 0.03 → 0.05",
    ),
    "expert steps": ({"expert_steps": 6}, EXPERTS, "this changed: recipe.steps: 5 → 6"),
    "optimizer": ({"optimizer": "adamw"}, EXPERTS, "recipe.lr: 0.03 → 0.0001, recipe.optimizer: sgd → adamw"),
    "regime": ({"regime": "hot"}, EXPERTS, "this changed: recipe.lr: 0.03 → 0.2"),
    "seed": ({"seed": 1}, ALL, "this changed: seed: 0 → 1"),
    "base steps": ({"base_steps": 5}, ALL, "this changed: recipe.steps: 4 → 5"),
    "network": (
        {"network": "convnet"},
        ("base convnet", *HEADS, *EXPERTS),
        "this changed: base, network: mlp → convnet",
    ),
    "one more task": (
        {"tasks": ["digits-upright", "digits-inverted", "fashion-flipped"]},
        ("head digits-inverted", "expert digits-inverted"),
        "Making the expert of digits, inverted, about ",
    ),
    "pictures": ({"source": (200, "small")}, ALL, "this changed: data.sha256"),
    "tier": ({"source": (300, "tiny")}, ALL, "this changed: data.tier: small → tiny"),
    "two at once": ({"seed": 1, "base_steps": 5}, ALL, "this changed: recipe.steps: 4 → 5, seed: 0 → 1"),
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_changing_an_ingredient_trains_only_what_depends_on_it_and_names_it(
    folder: Path,
    make: Make,
    make_source: Callable[[int, str], Source],
    change: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other, expected, said = CHANGES[change]
    if "source" in other:
        other = {"source": make_source(*other["source"])}
    assert make(folder, progress=True, **other).trained == expected
    told = sentences(capsys.readouterr().out)
    assert any(said in sentence for sentence in told), told
    assert all(re.search(r", about \d+ (s|min) \(", sentence) for sentence in told)
    assert len(told) == len({name.split()[0] for name in expected})
    # The old ones are still there.
    assert make(folder).trained == ()


def test_another_format_of_the_cache_trains_everything(
    folder: Path, make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(experts, "FORMAT", experts.FORMAT + 1)
    assert make(folder, progress=True).trained == ALL
    assert f"format: {experts.FORMAT - 1} → {experts.FORMAT}" in sentences(capsys.readouterr().out)[0]


def test_the_time_said_beforehand_is_what_the_nearest_one_took(
    folder: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.glob("expert-*.json"):
        card = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**card, "seconds": 20.0}), encoding="utf-8")
    make(folder, progress=True, expert_steps=10)
    # Two experts of 20 s for 5 steps each, in twice the steps.
    assert "Making 2 experts, about 80 s (" in capsys.readouterr().out


def test_the_time_that_another_device_took_is_not_said_beforehand(
    folder: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in folder.glob("expert-*.json"):
        card = json.loads(file.read_text(encoding="utf-8"))
        file.write_text(json.dumps({**card, "seconds": 6000.0, "device": "cuda"}), encoding="utf-8")
    make(folder, progress=True, expert_steps=10)
    assert re.search(r"Making 2 experts, about \d s \(since the nearest cached one", capsys.readouterr().out)


@pytest.mark.parametrize("how", ["progress", "environment"])
def test_nothing_is_said_where_no_progress_is_wanted(
    make: Make, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if how == "environment":
        monkeypatch.setenv("TQDM_DISABLE", "1")
    make(tmp_path, progress=how == "environment", tasks=["digits-upright"])
    assert capsys.readouterr() == ("", "")


def test_a_bar_shows_the_loss_and_the_time_left_and_a_sentence_stays(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(tmp_path, progress=True)
    said = capsys.readouterr().out
    # tqdm's "elapsed<left, rate, what we add".
    assert re.search(
        r"the expert of fashion, flipped \(2 of 2\).*\[\d\d:\d\d<\d\d:\d\d, .*step.*, loss=\d+\.\d{3}\]", said
    )
    assert re.search(r"Made 2 experts in \d+ s\.\n", said)


# Damage


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


def null(file: Path) -> None:
    file.write_text("null")


@pytest.mark.parametrize(
    ("start", "suffix", "harm", "rebuilt"),
    [
        ("expert-fashion", ".safetensors", shorten, "expert fashion-flipped"),
        ("expert-fashion", ".safetensors", flip, "expert fashion-flipped"),
        ("expert-digits", ".safetensors", Path.unlink, "expert digits-upright"),
        ("expert-digits", ".safetensors", empty, "expert digits-upright"),
        ("expert-digits", ".json", empty, "expert digits-upright"),
        ("expert-digits", ".json", null, "expert digits-upright"),
        ("head-digits", ".json", shorten, "head digits-upright"),
        ("base", ".safetensors", flip, "base mlp"),
        ("base", ".json", null, "base mlp"),
    ],
)
def test_a_damaged_file_is_named_and_rebuilt_and_nothing_else_is(
    folder: Path,
    filled: Filled,
    make: Make,
    capsys: pytest.CaptureFixture[str],
    start: str,
    suffix: str,
    harm: Callable[[Path], object],
    rebuilt: str,
) -> None:
    file = one(folder, start, suffix)
    harm(file)
    pool = make(folder, progress=True)
    assert pool.trained == (rebuilt,)
    (told,) = sentences(capsys.readouterr().out)
    assert f"(the cached file {file.name} is damaged: it" in told
    # The same bits as before: what was made from them is as good as ever.
    assert marks(pool) == marks(filled[1])
    assert make(folder).trained == ()
    assert names(folder) == names(filled[0])


def test_damage_and_a_new_task_are_both_given_as_reasons(
    folder: Path, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    file = one(folder, "expert-digits", ".safetensors")
    flip(file)
    pool = make(folder, progress=True, tasks=["digits-upright", "digits-noisy"])
    assert pool.trained == ("head digits-noisy", "expert digits-upright", "expert digits-noisy")
    told = sentences(capsys.readouterr().out)[-1]
    assert f"the cached file {file.name} is damaged" in told
    assert "nothing like it is in the cache yet" in told


@pytest.mark.parametrize("suffix", [".json", ".safetensors"])
def test_a_folder_in_the_place_of_a_file_is_said_and_does_not_stop_the_lesson(
    folder: Path, filled: Filled, make: Make, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    file = one(folder, "expert-digits", suffix)
    file.unlink()
    file.mkdir()
    pool = make(folder, progress=True, expert_steps=5, tasks=["digits-upright", "fashion-flipped"])
    assert pool.trained == ("expert digits-upright",)
    assert marks(pool) == marks(filled[1])
    said = capsys.readouterr().out
    assert f"the cached file {file.name} is damaged: it cannot be read" in said
    assert f"{file.name} cannot be kept in the cache" in said
    # One file that is in the way does not keep the others from being stored.
    assert make(folder, expert_steps=6).trained == EXPERTS
    assert make(folder, expert_steps=6).trained == ()


# A cache that takes nothing


def test_a_cache_that_cannot_be_written_is_said_before_training_and_the_pool_is_made(
    filled: Filled, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    pool = make(tmp_path / "file" / "cache", progress=True)
    assert pool.trained == ALL
    assert marks(pool) == marks(filled[1])
    said = capsys.readouterr().out
    assert said.startswith("Trained networks cannot be kept in the cache")
    assert said.count("cannot be kept") == 1
    assert "damaged" not in said
    for name in ("base", *pool.tasks):
        assert set(pool.cards[name]) >= {"ingredients", "validation_accuracy", "seconds", "steps"}
    assert (tmp_path / "file").read_text() == "mine"


def test_a_cache_that_cannot_be_written_is_a_warning_where_no_progress_is_wanted(
    make: Make, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("mine")
    make(tmp_path / "file" / "cache", tasks=[])
    (warning,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert warning.startswith("Trained networks cannot be kept in the cache")


def test_a_disk_that_fills_up_while_training_loses_no_work(
    filled: Filled, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resource = pytest.importorskip("resource", reason="needs limits as POSIX has them")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Heads are small enough to be written, encoders are not.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
    try:
        pool = make(tmp_path, progress=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert marks(pool) == marks(filled[1])
    said = capsys.readouterr().out
    assert re.search(r"base-mlp-\w+\.safetensors cannot be kept in the cache", said)
    assert said.count("cannot be kept") == 1
    assert {name.split("-")[0] for name in names(tmp_path)} == {"head"}
    assert make(tmp_path).trained == BASE + EXPERTS


# Other processes

PROGRAM = """
import sys
from conftest import small_source
from apgd_teach.cache import Cache
from apgd_teach.experts import make_pool
from apgd_teach.merging import fingerprint
folder, steps = sys.argv[1], int(sys.argv[2])
pool = make_pool("mlp", tasks=["digits-upright", "fashion-flipped"], base_steps=4, expert_steps=steps,
                 source=small_source(), device="cpu", cache=Cache(folder), progress=False)
for state in (pool.base, *pool.heads.values(), *pool.experts.values()):
    print(fingerprint(state))
"""


def start(folder: Path, steps: int) -> subprocess.Popen[str]:
    group = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder), str(steps)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **group,
    )


def test_two_processes_that_fill_a_cache_at_once_make_the_same_as_this_one(
    filled: Filled, make: Make, tmp_path: Path
) -> None:
    both = [start(tmp_path, 5), start(tmp_path, 5)]
    for process in both:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
        assert out.split() == marks(filled[1])
    assert names(tmp_path) == names(filled[0])
    assert make(tmp_path).trained == ()


@pytest.mark.skipif(os.name != "posix", reason="needs signals as POSIX has them")
def test_an_interrupted_training_keeps_what_is_finished_and_leaves_nothing_half_made(
    make: Make, tmp_path: Path
) -> None:
    # Far more steps than anyone waits for: it is interrupted in its first expert.
    process = start(tmp_path, 1_000_000)
    try:
        until = time.monotonic() + 60
        while len(list(tmp_path.glob("head-*.json"))) < 2:
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    assert "KeyboardInterrupt" in error
    assert {name.split("-")[0] for name in names(tmp_path)} == {"base", "head"}
    assert {Path(name).suffix for name in names(tmp_path)} == {".json", ".safetensors"}
    assert make(tmp_path).trained == EXPERTS


class Interrupted(Source):
    """A real source whose reader is interrupted when it comes to the second family."""

    def family(self, name: str) -> object:
        if name == "fashion":
            raise KeyboardInterrupt
        return super().family(name)


def test_an_interruption_before_training_leaves_nothing_at_all(source: Source, make: Make, tmp_path: Path) -> None:
    broken = Interrupted(source.tier, source.note, source._read)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, source=broken)
    assert names(tmp_path) == []
    assert make(tmp_path).trained == ALL


# What lies in the cache


def test_a_card_says_what_was_made_of_what_how_well_and_how_long_it_took(filled: Filled) -> None:
    folder, pool = filled
    written = json.loads(one(folder, "expert-digits", ".json").read_text(encoding="utf-8"))
    assert written == pool.cards["digits-upright"]
    assert set(written) == {"device", "ingredients", "seconds", "sha256", "steps", "validation_accuracy"}
    assert written["steps"] == 5
    assert written["seconds"] > 0
    assert written["ingredients"]["recipe"] == {
        "optimizer": "sgd",
        "lr": 0.03,
        "steps": 5,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "batch_size": 128,
        "warmup": 0.1,
        "clip": 3.0,
    }
    assert written["ingredients"]["seed"] == pool.seed == 0
    assert written["ingredients"]["data"]["sha256"] == pool.tasks["digits-upright"].sha256
    weights = one(folder, "expert-digits", ".safetensors").read_bytes()
    assert written["sha256"] == hashlib.sha256(weights).hexdigest()


def test_everything_in_the_cache_is_safetensors_or_json(filled: Filled) -> None:
    folder, pool = filled
    assert len(names(folder)) == 2 * len(ALL)
    for path in folder.iterdir():
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        else:
            assert load_file(path)
    assert fingerprint(load_file(one(folder, "base", ".safetensors"))) == fingerprint(pool.base)


@pytest.mark.parametrize("task", ["digits-upright", "fashion-flipped"])
def test_the_accuracy_on_the_card_is_that_of_a_fresh_evaluation(filled: Filled, task: str) -> None:
    pool = filled[1]
    encoder = pool.encoder()
    encoder.load_state_dict(pool.experts[task])
    held_out = pool.tasks[task].validation
    guess = pool.head(task)(encoder(held_out.images)).argmax(dim=1)
    right = (guess == held_out.labels).float().mean().item() * 100
    assert pool.cards[task]["validation_accuracy"] == pytest.approx(right, abs=0.01)
    assert right > 30  # chance is 10


# A training that diverges


def test_an_expert_that_diverges_is_not_kept_and_what_was_made_before_it_is(make: Make, tmp_path: Path) -> None:
    with pytest.raises(ApgdTeachError, match="the expert of digits, upright diverged: its loss is"):
        make(tmp_path, regime=Recipe("sgd", 1e30, 5))
    assert {name.split("-")[0] for name in names(tmp_path)} == {"base", "head"}
    assert {Path(name).suffix for name in names(tmp_path)} == {".json", ".safetensors"}
    assert make(tmp_path).trained == EXPERTS


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_the_clock_of_a_step_waits_for_the_gpu(tmp_path: Path) -> None:
    trainer = experts._Trainer("mlp", 0, torch.device("cuda"), Cache(tmp_path), False)
    job = experts._Job("the base", {"kind": "base"}, 1, lambda tell: pytest.fail("nothing is trained here"))
    wide = torch.ones(8192, 8192, device="cuda")
    for _ in range(100):  # seconds of work, queued in no time
        wide = wide @ wide
    trainer._step_seconds(job)
    assert torch.cuda.current_stream().query()


# The pool


def test_heads_are_no_part_of_experts_and_experts_are_networks_like_the_base(filled: Filled) -> None:
    pool = filled[1]
    for expert in pool.experts.values():
        assert {name: tensor.shape for name, tensor in expert.items()} == {
            name: tensor.shape for name, tensor in pool.base.items()
        }
        assert not set(expert) & {"weight", "bias"}
    assert all(set(head) == {"weight", "bias"} for head in pool.heads.values())


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_experts_start_from_the_base(folder: Path, make: Make, optimizer: str) -> None:
    pool = make(folder, regime=Recipe(optimizer, 1e-12, 3))
    for expert in pool.experts.values():
        for name, tensor in expert.items():
            torch.testing.assert_close(tensor, pool.base[name], rtol=0, atol=1e-8)
    far = make(folder, regime=Recipe(optimizer, 1e-3, 3))
    assert all((expert["layer3.weight"] != far.base["layer3.weight"]).any() for expert in far.experts.values())


def test_a_hot_recipe_stays_finite_with_either_optimizer(folder: Path, make: Make) -> None:
    for optimizer in ("sgd", "adamw"):
        pool = make(folder, regime="hot", optimizer=optimizer, expert_steps=10)
        assert all(tensor.isfinite().all() for expert in pool.experts.values() for tensor in expert.values())


def test_two_seeds_are_two_bases(folder: Path, filled: Filled, make: Make) -> None:
    assert fingerprint(make(folder, seed=1, tasks=[]).base) != fingerprint(filled[1].base)


def test_a_seed_of_numpy_is_that_seed(folder: Path, make: Make) -> None:
    pool = make(folder, seed=np.int64(0))
    assert pool.trained == ()
    assert type(pool.seed) is int


def test_the_network_of_a_pool_holds_the_base_and_is_not_for_training(filled: Filled) -> None:
    pool = filled[1]
    encoder = pool.encoder()
    assert fingerprint(encoder.state_dict()) == fingerprint(pool.base)
    assert not encoder.training
    assert not any(parameter.requires_grad for parameter in [*encoder.parameters(), *pool.head(TASK).parameters()])
    # Another copy each time: what is loaded into one is not in the next.
    encoder.load_state_dict(pool.experts[TASK])
    assert fingerprint(pool.encoder().state_dict()) == fingerprint(pool.base)


def test_the_same_pool_with_fewer_tasks(filled: Filled) -> None:
    pool = filled[1]
    for wanted in (["fashion-flipped"], "fashion-flipped", ["fashion-flipped", "fashion-flipped"]):
        few = pool.only(wanted)
        assert list(few.tasks) == list(few.heads) == list(few.experts) == ["fashion-flipped"]
        assert set(few.cards) == {"base", "fashion-flipped"}
        assert few.experts["fashion-flipped"] is pool.experts["fashion-flipped"]
    assert list(pool.only(["fashion-flipped", TASK]).experts) == ["fashion-flipped", TASK]
    assert pool.only([]).experts == {}
    assert len(pool.tasks) == 2


def test_a_task_that_a_pool_has_not_gets_its_sentence(filled: Filled) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        filled[1].only(["digits-noisy"])
    assert str(caught.value) == "this pool has no task 'digits-noisy'; it has: digits-upright, fashion-flipped."


def test_tasks_are_taken_once_in_the_order_in_which_they_are_named(folder: Path, make: Make) -> None:
    pool = make(folder, tasks=["fashion-flipped", TASK, "fashion-flipped"])
    assert pool.trained == ()
    assert list(pool.tasks) == list(pool.heads) == list(pool.experts) == ["fashion-flipped", TASK]


def test_one_task_may_be_named_without_a_list_and_none_at_all_is_a_base(folder: Path, make: Make) -> None:
    for alone in (TASK, TASKS[TASK], TASKS[TASK].variant):
        single = make(folder, tasks=alone)
        assert (single.trained, list(single.experts)) == ((), [TASK])
    bare = make(folder, tasks=[])
    assert (bare.trained, bare.experts, list(bare.cards)) == ((), {}, ["base"])


def test_all_eight_tasks_are_taken_unasked(folder: Path, make: Make) -> None:
    pool = make(folder, tasks=None, expert_steps=1)
    assert list(pool.experts) == list(TASKS)
    assert len(pool.trained) == 6 + 8


# What cannot be had


@pytest.mark.parametrize(
    ("wrong", "kind", "sentence"),
    [
        ({"network": "resnet"}, ApgdTeachError, "there is no network 'resnet'; use one of: convnet, mlp, "),
        ({"regime": "warm"}, ApgdTeachError, "there is no regime 'warm'; use one of: mild, hot."),
        ({"optimizer": "adam"}, ApgdTeachError, "there is no optimizer 'adam' here; use 'sgd' or 'adamw'."),
        ({"device": "gpu"}, ApgdTeachError, "'gpu' is not a device; use 'auto', 'cpu', 'cuda' or 'mps'."),
        ({"tasks": ["digits-uprigt"]}, DataError, "There is no task 'digits-uprigt'; did you mean 'digits-upright'"),
        ({"tasks": 3}, DataError, "A task cannot be of type int; give its name, as in 'digits-upright', or a Variant."),
        ({"tasks": [TASK, 3]}, DataError, "A task cannot be of type int; give its name"),
        ({"seed": -1}, ApgdTeachError, "the seed -1 is not a whole number from 0 to 2⁶³ - 1."),
        ({"seed": 1.5}, ApgdTeachError, "the seed 1.5 is not a whole number"),
        ({"seed": "one"}, ApgdTeachError, "the seed 'one' is not a whole number"),
        ({"seed": 2**63}, ApgdTeachError, "is not a whole number"),
        ({"base_steps": 0}, ApgdTeachError, "cannot be followed: lr, steps, batch_size and clip must be positive"),
        ({"expert_steps": 2.5}, ApgdTeachError, "cannot be followed: lr, steps, batch_size and clip must be positive"),
    ],
)
def test_what_cannot_be_had_gets_its_sentence_before_anything_is_trained(
    make: Make, tmp_path: Path, wrong: dict[str, object], kind: type[ApgdTeachError], sentence: str
) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        make(tmp_path, **wrong)
    assert type(caught.value) is kind
    assert sentence in str(caught.value)
    assert names(tmp_path) == []


def test_the_device_is_chosen_unasked_and_tensors_wait_on_the_cpu(folder: Path, make: Make) -> None:
    pool = make(folder, device="auto")
    assert pool.device == pick_device("auto")
    assert pool.trained == ()
    assert {parameter.device.type for parameter in pool.encoder().parameters()} == {pool.device.type}
    assert {tensor.device.type for state in (pool.base, *pool.experts.values()) for tensor in state.values()} == {"cpu"}


def test_a_task_of_ones_own_gets_an_expert_and_another_transform_of_its_name_another(source, tmp_path):
    def of(variant: Variant) -> Pool:
        return make_pool(
            "mlp", tasks=[variant], base_steps=3, expert_steps=3, source=source, cache=Cache(tmp_path), progress=False
        )

    first = of(Variant("digits", "mine", v2.GaussianBlur(5, sigma=2.0)))
    assert list(first.experts) == ["digits-mine"]
    assert of(Variant("digits", "mine", v2.GaussianBlur(5, sigma=2.0))).trained == ()
    assert of(Variant("digits", "mine", v2.GaussianBlur(5, sigma=1.0))).trained == (
        "head digits-mine",
        "expert digits-mine",
    )
    assert of(Variant("digits", "mine", lambda images: 1 - images)).trained != ()
    assert of(Variant("digits", "mine", lambda images: 1 - images)).trained == ()
    assert of(Variant("digits", "mine", lambda images: images / 2)).trained != ()


def test_an_edited_variant_of_the_course_is_another_task():
    noisy = TASKS["digits-noisy"]
    louder = Task(replace(noisy.variant, transform=v2.GaussianNoise(sigma=0.9, clip=True)))
    assert louder.name == noisy.name
    assert louder.recipe != noisy.recipe


def test_a_pool_of_no_task_cannot_be_compared_on(source, tmp_path):
    pool = make_pool("mlp", tasks=[], base_steps=3, source=source, cache=Cache(tmp_path), progress=False)
    with pytest.raises(ApgdTeachError, match="no task to compare on"):
        compare(pool, {})
