from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apgd_teach.cache import Cache
from apgd_teach.data import open_colour
from apgd_teach.errors import ApgdTeachError, DataAccessError
from apgd_teach.evaluate import compare
from apgd_teach.experts import Pool, make_pool
from apgd_teach.merging import Merged, fingerprint, merge
from apgd_teach.references import adamerging, entropy, gram_matrices, joint, recalibrated, regmean
from apgd_teach.training import Recipe

Small = Callable[[str], Pool]


def shrunk(gram: np.ndarray, share: float) -> np.ndarray:
    return np.where(np.eye(len(gram), dtype=bool), gram, share * gram)


def row(merged: Merged, name: str) -> object:
    (found,) = [one for one in merged.audit.rows if one.name == name]
    return found


def mean(pool: Pool, name: str) -> np.ndarray:
    return np.mean([expert[name].numpy() for expert in pool.experts.values()], axis=0)


# RegMean


def inputs(pool: Pool, task: str, images: int) -> dict[str, np.ndarray]:
    """What goes into each layer of the tiny network, computed in numpy from the expert's weights, by the formulas."""
    w = {name: tensor.numpy().astype(np.float64) for name, tensor in pool.experts[task].items()}
    x = pool.tasks[task].train.images[:images, 0].numpy().astype(np.float64)
    x = x.reshape(len(x), 7, 4, 7, 4).mean(axis=(2, 4))
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))  # 9 × 9
    # Kernel 3 × 2 with its two columns two pixels apart, every second place: 4 × 4 places.
    patches = np.array(
        [
            [picture[2 * i + a, 2 * j + 2 * b] for a in range(3) for b in range(2)]
            for picture in padded
            for i in range(4)
            for j in range(4)
        ]
    )
    places = len(patches) // len(x)
    kernel = w["conv.weight"].reshape(2, 6)
    maps = (patches @ kernel.T + w["conv.bias"]).reshape(len(x), places, 2).transpose(0, 2, 1)
    first = np.tanh(maps).reshape(len(x), -1)
    second = np.tanh(first @ w["one.weight"].T + w["one.bias"])
    return {"conv.weight": patches, "one.weight": first, "two.weight": second}


@pytest.mark.parametrize("share", [0.0, 0.6, 0.95])
def test_regmean_is_its_formula_on_linear_maps_and_on_the_patches_of_a_convolution(small: Small, share: float) -> None:
    pool = small("tiny")
    merged = regmean(pool, images=70, shrink=share, progress=False)
    seen = {task: inputs(pool, task, 70) for task in pool.tasks}
    for name in ("conv.weight", "one.weight", "two.weight"):
        grams = {task: shrunk(x[name].T @ x[name], share) for task, x in seen.items()}
        matrices = {t: pool.experts[t][name].numpy().reshape(len(pool.base[name]), -1) for t in pool.tasks}
        expected = sum(matrices[t] @ grams[t] for t in grams) @ np.linalg.inv(sum(grams.values()))
        got = merged.state_dict[name].numpy().reshape(expected.shape)
        np.testing.assert_allclose(got, expected, atol=2e-5)
        assert not np.allclose(got, mean(pool, name).reshape(expected.shape), atol=1e-3)
        assert (row(merged, name).policy, row(merged, name).facts["inputs"]) == (
            "merge",
            expected.shape[1],
        )


def test_what_is_no_linear_map_is_averaged_and_a_counter_is_kept(small: Small) -> None:
    pool = small("tiny")
    merged = regmean(pool, images=20, progress=False)
    for name in ("conv.bias", "one.bias", "table"):
        np.testing.assert_allclose(merged.state_dict[name].numpy(), mean(pool, name), atol=1e-6)
        assert row(merged, name).policy == "average"
    assert torch.equal(merged.state_dict["seen"], pool.base["seen"])
    assert row(merged, "seen").policy == "keep"
    assert list(merged.state_dict) == list(pool.base)


def test_regmean_of_linear_regressions_is_the_solution_of_all_of_them_together(small: Small) -> None:
    pool = small("regression")
    draws = torch.Generator().manual_seed(5)
    images, targets = {}, {}
    for task in pool.tasks:
        pictures = pool.tasks[task].train.images[:200]
        images[task] = nn.functional.avg_pool2d(pictures, 7).flatten(1).double().numpy()
        targets[task] = torch.randn(200, 5, generator=draws).double().numpy()
        solution, *_ = np.linalg.lstsq(images[task], targets[task], rcond=None)
        pool.experts[task]["map.weight"] = torch.from_numpy(solution.T).float()
    together, *_ = np.linalg.lstsq(
        np.concatenate(list(images.values())), np.concatenate(list(targets.values())), rcond=None
    )
    merged = regmean(pool, images=200, shrink=1, progress=False).state_dict["map.weight"].numpy()
    np.testing.assert_allclose(merged, together.T, rtol=1e-3, atol=1e-3 * np.abs(together).max())
    assert np.abs(mean(pool, "map.weight") - together.T).max() > 0.1 * np.abs(together).max()


def test_with_the_same_inputs_for_every_expert_regmean_is_the_average(small: Small) -> None:
    pool = small("regression")
    same = dataclasses.replace(pool, tasks=dict.fromkeys(pool.tasks, pool.tasks["digits-upright"]))
    for share in (0.5, 1):
        merged = regmean(same, images=50, shrink=share, progress=False)
        np.testing.assert_allclose(merged.state_dict["map.weight"].numpy(), mean(pool, "map.weight"), atol=1e-5)


def test_of_inputs_that_no_image_has_regmean_leaves_the_average(small: Small) -> None:
    # Two images of each of three tasks span six of sixteen directions at most.
    pool = small("regression")
    merged = regmean(pool, images=2, shrink=1, progress=False).state_dict["map.weight"].double()
    seen = torch.cat([nn.functional.avg_pool2d(t.train.images[:2], 7).flatten(1) for t in pool.tasks.values()]).double()
    moved = merged - torch.from_numpy(mean(pool, "map.weight")).double()
    _, sizes, directions = torch.linalg.svd(seen, full_matrices=True)
    unseen = directions[int((sizes > 1e-5 * sizes[0]).sum()) :]
    assert len(unseen) >= 10
    assert float((moved @ unseen.T).norm()) < 1e-4 * float(moved.norm())
    assert float(moved.norm()) > 0.1


def test_gram_matrices_do_not_depend_on_how_the_images_are_cut_and_leave_no_hook(small: Small) -> None:
    pool = small("tiny")
    images, network = pool.tasks["digits-upright"].train.images[:250], pool.encoder()
    whole, halves = gram_matrices(network, images), [gram_matrices(network, part) for part in images.split(125)]
    assert set(whole) == {"conv.weight", "one.weight", "two.weight"}
    for name, gram in whole.items():
        torch.testing.assert_close(gram, (halves[0][name] + halves[1][name]) / 2)
        assert gram.dtype == torch.float64
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_a_hook_is_gone_even_when_the_network_cannot_take_the_images(small: Small) -> None:
    network = small("tiny").encoder()
    with pytest.raises(RuntimeError):
        gram_matrices(network, torch.zeros(2, 1, 5, 5))
    assert not any(layer._forward_pre_hooks for layer in network.modules())


def test_layers_of_the_real_networks_are_all_linear_maps(folder: Path) -> None:
    bare = make_pool("convnet", tasks=[], base_steps=1, device="cpu", cache=Cache(folder), progress=False)
    grams = gram_matrices(bare.encoder(), torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0)))
    assert {name: len(gram) for name, gram in grams.items()} == {
        name: tensor[0].numel() for name, tensor in bare.base.items() if tensor.ndim > 1
    }


# AdaMerging


def arithmetic(pool: Pool, coefficients: dict[str, tuple[float, ...]]) -> dict[str, Tensor]:
    """θ₀ + Σ λᵢτᵢ, the tasks in the order of their names."""
    state = {}
    for name, tensor in pool.base.items():
        moves = [pool.experts[task][name] - tensor for task in sorted(pool.experts)]
        state[name] = tensor + sum(part * move for part, move in zip(coefficients[name], moves, strict=True))
    return state


def test_adamerging_without_a_step_is_task_arithmetic(pool: Pool) -> None:
    for start in (0.3, 0.5):
        merged = adamerging(pool, steps=0, start=start, progress=False)
        for name, expected in arithmetic(pool, dict.fromkeys(pool.base, (start,) * 3)).items():
            torch.testing.assert_close(merged.state_dict[name], expected)


@pytest.mark.parametrize("layer_wise", [True, False])
def test_adamerging_lowers_the_entropy_and_learns_nothing_but_coefficients(pool: Pool, layer_wise: bool) -> None:
    merged = adamerging(pool, steps=30, lr=0.01, layer_wise=layer_wise, progress=False)
    before, after = (
        entropy(pool, adamerging(pool, steps=0, progress=False).state_dict),
        entropy(pool, merged.state_dict),
    )
    assert sum(after.values()) < 0.95 * sum(before.values())
    found = {one.name: one.facts["coefficients"] for one in merged.audit.rows}
    assert len(set(found.values())) == (len(pool.base) if layer_wise else 1)
    for name, expected in arithmetic(pool, found).items():
        torch.testing.assert_close(merged.state_dict[name], expected)
    assert all(0 <= part <= 1 for parts in found.values() for part in parts)


def test_the_first_step_of_adam_goes_down_the_gradient_of_the_entropy(small: Small) -> None:
    pool, step = small("regression"), 1e-3
    one = adamerging(pool, images=1, batch_size=4, steps=1, lr=step, progress=False)

    def unsure(coefficients: list[float]) -> float:
        state = arithmetic(pool, {"map.weight": tuple(coefficients)})
        return sum(entropy(pool, state, images=1).values())

    for task in range(3):
        up = unsure([0.3 + 0.01 * (task == other) for other in range(3)])
        down = unsure([0.3 - 0.01 * (task == other) for other in range(3)])
        moved = row(one, "map.weight").facts["coefficients"][task] - 0.3
        assert moved == pytest.approx(-step if up > down else step, rel=1e-2)


def test_coefficients_stay_between_nothing_and_the_expert_itself(pool: Pool) -> None:
    merged = adamerging(pool, steps=12, lr=0.3, progress=False)
    parts = [part for one in merged.audit.rows for part in one.facts["coefficients"]]
    assert (min(parts), max(parts)) == (0, 1)


def test_entropy_is_that_of_the_predictions(pool: Pool) -> None:
    task = pool.tasks["digits-noisy"]
    with torch.no_grad():
        p = pool.head(task.name)(pool.encoder()(task.validation.images[:30])).softmax(dim=1).double().numpy()
    by_hand = np.mean([-sum(q * math.log(q) for q in row) for row in p])
    assert entropy(pool, pool.base, images=30, split="validation")[task.name] == pytest.approx(by_hand, rel=1e-4)


def test_the_same_seed_makes_the_same_and_another_seed_another(pool: Pool) -> None:
    marks = [
        fingerprint(adamerging(pool, steps=2, seed=seed, progress=False).state_dict) for seed in (None, pool.seed, 1)
    ]
    assert marks[0] == marks[1] != marks[2]


# Joint training


def test_joint_training_is_better_than_the_base_and_is_kept(pool: Pool, folder: Path) -> None:
    merged = joint(pool, cache=Cache(folder), progress=False)
    shown = compare(pool, {"joint": merged}, images=400)
    assert shown.against("joint").verdict == "better"
    (file,) = folder.glob("joint-mlp-*.json")
    card = json.loads(file.read_text(encoding="utf-8"))
    # As many steps as the three experts together.
    assert card["ingredients"]["recipe"] == {**dataclasses.asdict(pool.recipe), "steps": 75}
    before = file.stat().st_mtime_ns
    again = joint(pool.only(reversed(list(pool.tasks))), cache=Cache(folder), progress=False)
    assert fingerprint(again.state_dict) == fingerprint(merged.state_dict)
    assert file.stat().st_mtime_ns == before


def test_joint_training_on_one_task_is_its_expert(pool: Pool, tmp_path: Path) -> None:
    merged = joint(pool.only("digits-noisy"), cache=Cache(tmp_path), progress=False)
    assert fingerprint(merged.state_dict) == fingerprint(pool.experts["digits-noisy"])


def test_joint_training_follows_another_recipe_step_by_step(pool: Pool, tmp_path: Path) -> None:
    how = Recipe("adamw", 1e-4, 3)
    merged = joint(pool, how, cache=Cache(tmp_path), progress=False)
    assert merged.audit.settings == dataclasses.asdict(how)
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_a_joint_network_that_diverges_is_said_and_not_kept(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(ApgdTeachError, match=r"the joint network diverged: .* at step \d+ of 15; .* lower lr"):
        joint(pool, Recipe("sgd", 1e30, 15), cache=Cache(tmp_path), progress=False)
    assert list(tmp_path.iterdir()) == []


def test_joint_training_says_how_long_it_takes(pool: Pool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    joint(pool, Recipe("sgd", 0.03, 2), cache=Cache(tmp_path))
    said = capsys.readouterr().out
    assert re.search(r"Making the joint network, about \d+ s \(nothing like it is in the cache yet\)\.", said)


# What all three have in common

ALL: dict[str, Callable[..., Merged]] = {
    "regmean": lambda pool, folder: regmean(pool, images=30, progress=False),
    "adamerging": lambda pool, folder: adamerging(pool, images=30, steps=3, progress=False),
    "joint": lambda pool, folder: joint(pool, Recipe("sgd", 0.03, 3), cache=Cache(folder), progress=False),
}


def test_the_comparison_says_what_data_each_used(pool: Pool, tmp_path: Path) -> None:
    made = {name: call(pool, tmp_path) for name, call in ALL.items()}
    peeked = {
        "regmean on test images": regmean(pool, images=30, split="test", progress=False),
        "adamerging on test images": adamerging(pool, images=30, steps=1, split="test", progress=False),
        "adamerging on validation images": adamerging(pool, images=30, steps=1, split="validation", progress=False),
    }
    shown = compare(pool, {"average": merge(pool.base, pool.experts), **made, **peeked}, images=50)
    assert shown.data_used == {
        "average": "none",
        "regmean": "unlabelled",
        "adamerging": "unlabelled",
        "joint": "labelled",
        "regmean on test images": "test",
        "adamerging on test images": "test",
        "adamerging on validation images": "unlabelled",
    }
    assert made["adamerging"].audit.settings["split"] == "train"


@pytest.mark.parametrize("name", list(ALL))
def test_inputs_stay_as_they_are_and_the_result_is_new(pool: Pool, tmp_path: Path, name: str) -> None:
    def marks() -> list[str]:
        return [fingerprint(state) for state in (pool.base, *pool.experts.values(), *pool.heads.values())]

    before = marks()
    merged = ALL[name](pool, tmp_path)
    assert fingerprint(ALL[name](pool, tmp_path).state_dict) == fingerprint(merged.state_dict)
    assert not any(tensor.requires_grad for tensor in merged.state_dict.values())
    for tensor in merged.state_dict.values():
        tensor.zero_()
    assert marks() == before
    assert fingerprint(ALL[name](pool, tmp_path).state_dict) != fingerprint(merged.state_dict)


@pytest.mark.parametrize("name", list(ALL))
def test_the_order_of_the_tasks_does_not_matter(pool: Pool, tmp_path: Path, name: str) -> None:
    turned = pool.only(reversed(list(pool.tasks)))
    marks = [fingerprint(ALL[name](one, tmp_path / str(n)).state_dict) for n, one in enumerate((pool, turned))]
    assert marks[0] == marks[1]


@pytest.mark.parametrize("name", list(ALL))
def test_the_audit_is_that_of_a_merge(pool: Pool, tmp_path: Path, name: str) -> None:
    merged = ALL[name](pool, tmp_path)
    audit, average = merged.audit, merge(pool.base, pool.experts).audit
    assert (audit.method, audit.experts, audit.inputs) == (name, average.experts, average.inputs)
    for mine, other in zip(audit.rows, average.rows, strict=True):
        assert (mine.name, mine.shape, mine.base_norm) == (other.name, other.shape, other.base_norm)
        assert mine.task_norm == pytest.approx(other.task_norm)
        moved = float((merged.state_dict[mine.name] - pool.base[mine.name]).norm())
        assert mine.update_norm == pytest.approx(moved, rel=1e-3)
    assert json.loads(audit.to_json())["data_used"] == audit.data_used
    assert name in audit.table().caption


@dataclasses.dataclass(frozen=True)
class Sly:
    """A merge that asks one of these for help."""

    ask: Callable[[], object]
    name: ClassVar[str] = "sly"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        self.ask()
        return task_vectors.mean(dim=0)


@pytest.mark.parametrize("name", list(ALL))
def test_inside_a_merge_none_of_them_runs(pool: Pool, tmp_path: Path, name: str) -> None:
    ALL[name](pool, tmp_path)  # joint training is in its cache now, and still refused
    with pytest.raises(DataAccessError, match=r"asked for the images that .*, but a merge here works without data"):
        merge(pool.base, pool.experts, Sly(lambda: ALL[name](pool, tmp_path)))


NUMBERS = "give a whole number from 1."


@pytest.mark.parametrize(
    ("call", "wrong", "sentence"),
    [
        (regmean, {"images": 0}, f"images=0 is no number of images; {NUMBERS}"),
        (regmean, {"images": 2.5}, f"images=2.5 is no number of images; {NUMBERS}"),
        (regmean, {"shrink": 1.5}, "shrink=1.5 is no share; give a number from 0 to 1."),
        (regmean, {"shrink": -0.1}, "shrink=-0.1 is no share; give a number from 0 to 1."),
        (regmean, {"shrink": math.nan}, "shrink=nan is no share; give a number from 0 to 1."),
        (regmean, {"split": "tests"}, "there is no split 'tests'; use 'train', 'validation' or 'test'."),
        (adamerging, {"split": None}, "there is no split 'None'; use 'train', 'validation' or 'test'."),
        (adamerging, {"images": True}, f"images=True is no number of images; {NUMBERS}"),
        (adamerging, {"steps": -1}, "steps=-1 is no number of steps; give a whole number, 0 or more."),
        (adamerging, {"batch_size": 0}, f"batch_size=0 is no number of images; {NUMBERS}"),
        (adamerging, {"lr": 0}, "lr=0 is no learning rate; give a positive number."),
        (adamerging, {"lr": math.nan}, "lr=nan is no learning rate; give a positive number."),
        (adamerging, {"start": math.inf}, "start=inf is no coefficient; give a number, such as 0.3."),
    ],
)
def test_what_cannot_be_done_gets_its_sentence(
    pool: Pool, call: Callable[..., Merged], wrong: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        call(pool, progress=False, **wrong)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("call", [regmean, adamerging, joint])
def test_a_pool_without_tasks_gets_its_sentence(pool: Pool, call: Callable[..., Merged]) -> None:
    with pytest.raises(ApgdTeachError, match=r"^this pool has no task to .*; make it with at least one\.$"):
        call(pool.only([]), progress=False)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
@pytest.mark.parametrize("name", ["regmean", "adamerging"])
def test_a_gpu_makes_nearly_the_same(pool: Pool, tmp_path: Path, name: str) -> None:
    there = ALL[name](dataclasses.replace(pool, device=torch.device("cuda")), tmp_path).state_dict
    for key, tensor in ALL[name](pool, tmp_path).state_dict.items():
        torch.testing.assert_close(there[key], tensor, rtol=1e-3, atol=1e-4)


# Statistics measured again


@pytest.fixture(scope="module")
def batchnorms(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "colour-resnet",
        tasks=["shapes-plain", "shapes-negative", "shapes-figures"],
        base_steps=6,
        regime=Recipe("sgd", 0.05, 6, batch_size=32),
        source=open_colour("generated", per_class=40),
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("batchnorms")),
        progress=False,
    )


def test_statistics_are_measured_again_and_no_weight_changes(batchnorms: Pool) -> None:
    merged = merge(batchnorms.base, batchnorms.experts, "average")
    before = {key: tensor.clone() for key, tensor in merged.state_dict.items()}
    again = recalibrated(batchnorms, merged, images=60)
    changed = {key for key in before if not torch.equal(before[key], again.state_dict[key])}
    assert changed == {key for key in before if "running_" in key or key.endswith("num_batches_tracked")}
    assert all(torch.equal(before[key], tensor) for key, tensor in merged.state_dict.items())
    assert again.audit.data_used == "unlabelled"
    reasons = {row.name: row.reason for row in again.audit.rows}
    assert reasons["stem.1.running_var"] == "measured again on 60 images of each task"
    assert reasons["stem.0.weight"] == {row.name: row.reason for row in merged.audit.rows}["stem.0.weight"]
    assert recalibrated(batchnorms, merged, images=20, split="test").audit.data_used == "test"


@pytest.mark.parametrize("used", ["labelled", "test", "not stated"])
def test_what_was_used_before_is_not_forgotten(batchnorms: Pool, used: str) -> None:
    made = merge(batchnorms.base, batchnorms.experts, "average")
    made = dataclasses.replace(made, audit=dataclasses.replace(made.audit, data_used=used))
    assert recalibrated(batchnorms, made, images=20).audit.data_used == used


def test_the_audit_is_of_the_statistics_that_are_handed_over(batchnorms: Pool) -> None:
    again = recalibrated(batchnorms, merge(batchnorms.base, batchnorms.experts, "average"), images=10_000)
    fewest = min(len(task.train) for task in batchnorms.tasks.values())
    variance = row(again, "stem.1.running_var")
    assert variance.reason == f"measured again on {fewest:,} images of each task"
    moved = again.state_dict["stem.1.running_var"] - batchnorms.base["stem.1.running_var"]
    assert variance.update_norm == pytest.approx(float(moved.norm()), rel=1e-4)
    assert row(again, "stem.1.num_batches_tracked").policy == "train"


@pytest.mark.parametrize("layer_wise", [True, False])
def test_adamerging_learns_weights_and_averages_what_a_batchnorm_counted(batchnorms: Pool, layer_wise: bool) -> None:
    made = adamerging(batchnorms, images=12, steps=2, batch_size=4, layer_wise=layer_wise, progress=False)
    for name in ("stem.1.running_mean", "stem.1.running_var"):
        np.testing.assert_allclose(made.state_dict[name].numpy(), mean(batchnorms, name), rtol=1e-5)
        assert row(made, name).policy == "average"
    assert row(made, "stem.0.weight").policy == "merge"
    assert regmean(batchnorms, images=12, progress=False).audit.data_used == "unlabelled"


@pytest.mark.parametrize("images", [42, 43, 60, 85])
def test_the_first_layers_statistics_are_those_of_all_images_together(batchnorms: Pool, images: int) -> None:
    """Also where the images do not fill the last batch."""
    merged = merge(batchnorms.base, batchnorms.experts, "average")
    again = recalibrated(batchnorms, merged, images=images)
    pictures = torch.stack([batchnorms.tasks[task].train.images[:images] for task in sorted(batchnorms.tasks)])
    with torch.no_grad():
        seen = F.conv2d(2 * pictures.flatten(0, 1) - 1, merged.state_dict["stem.0.weight"], stride=2, padding=1)
    torch.testing.assert_close(again.state_dict["stem.1.running_mean"], seen.mean(dim=(0, 2, 3)), atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(again.state_dict["stem.1.running_var"], seen.var(dim=(0, 2, 3)), atol=1e-3, rtol=2e-2)


def test_measuring_again_what_was_measured_on_the_same_images_changes_nothing(batchnorms: Pool) -> None:
    once = recalibrated(batchnorms, merge(batchnorms.base, batchnorms.experts, "average"), images=60)
    twice = recalibrated(batchnorms, once, images=60)
    for key, tensor in once.state_dict.items():
        torch.testing.assert_close(twice.state_dict[key], tensor)


def test_a_network_without_statistics_gets_a_sentence(pool: Pool) -> None:
    with pytest.raises(ApgdTeachError, match=r"the network 'mlp' keeps no statistics, so there is nothing to measure"):
        recalibrated(pool, merge(pool.base, pool.experts, "average"))


def test_no_statistics_are_measured_inside_a_merge(batchnorms: Pool) -> None:
    merged = merge(batchnorms.base, batchnorms.experts, "average")

    @dataclasses.dataclass(frozen=True)
    class Peeking:
        name: ClassVar[str] = "peeking"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            recalibrated(batchnorms, merged, images=4)
            return task_vectors.mean(dim=0)

    with pytest.raises(DataAccessError):
        merge(batchnorms.base, batchnorms.experts, Peeking())
