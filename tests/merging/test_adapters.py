"""LoRA adapters as experts: what they add, to the letter of PEFT's format, and what is refused."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge, merge_files, preflight_files
from apgd_teach.merging.adapters import Adapted, is_adapter, open_expert
from apgd_teach.merging.checkpoint import open_checkpoint

State = dict[str, Tensor]
R, ALPHA = 4, 10
CONFIG = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "target_modules": ["q", "v"], "bias": "none"}


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def base() -> State:
    return {
        "block.q.weight": drawn(24, 16, seed=0),
        "block.q.bias": drawn(24, seed=1),
        "block.v.weight": drawn(16, 24, seed=2),
        "conv.weight": drawn(12, 6, 3, 3, seed=3),
        "words.weight": drawn(40, 16, seed=4),
        "head.weight": drawn(5, 16, seed=5),
    }


def adapter(scale: float = 0.1, seed: int = 10) -> State:
    made = {}
    for place, (module, out, width) in enumerate((("block.q", 24, 16), ("block.v", 16, 24))):
        made[f"base_model.model.{module}.lora_A.weight"] = scale * drawn(R, width, seed=seed + 2 * place)
        made[f"base_model.model.{module}.lora_B.weight"] = scale * drawn(out, R, seed=seed + 2 * place + 1)
    return made


def written(folder: Path, tensors: State, **config: object) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def files(base: State, tmp_path: Path) -> Callable[..., dict[str, Tensor]]:
    """The expert that an adapter makes of the base, read tensor by tensor."""

    def read(tensors: State, ours: State | None = None, **config: object) -> State:
        save_file(ours or base, tmp_path / "base.safetensors")
        folder = written(tmp_path / "an adapter", tensors, **config)
        made = open_expert(folder, open_checkpoint(tmp_path / "base.safetensors", "base"), "expert 'a'")
        assert isinstance(made, Adapted)
        return {name: made.read(name) for name in made.specs}

    return read


def test_the_product_is_added_with_its_scale(base: State, files: Callable[..., State]) -> None:
    one = adapter()
    found = files(one)
    assert list(found) == sorted(base)
    for module in ("block.q", "block.v"):
        a, b = (one[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close(found[f"{module}.weight"], base[f"{module}.weight"] + ALPHA / R * b @ a)
    for name in ("block.q.bias", "conv.weight", "words.weight", "head.weight"):
        assert torch.equal(found[name], base[name])


def test_rank_stabilised_patterns_and_turned_layers(base: State, files: Callable[..., State]) -> None:
    one = {key.replace("block.", ""): value for key, value in adapter().items()}
    ours = {"q.weight": base["block.q.weight"].T.contiguous(), "v.weight": base["block.v.weight"].T.contiguous()}
    found = files(one, ours, use_rslora=True, fan_in_fan_out=True, alpha_pattern={"v": 3, "^never$": 7, "(": 1})
    for module, alpha in (("q", ALPHA), ("v", 3)):
        a, b = (one[f"base_model.model.{module}.lora_{half}.weight"] for half in "AB")
        torch.testing.assert_close(
            found[f"{module}.weight"], ours[f"{module}.weight"] + alpha / math.sqrt(R) * (b @ a).T
        )


def test_convolutions_embeddings_biases_and_whole_modules(base: State, files: Callable[..., State]) -> None:
    conv_a, conv_b = drawn(R, 6, 3, 3, seed=20), drawn(12, R, 1, 1, seed=21)
    words_a, words_b = drawn(R, 40, seed=22), drawn(16, R, seed=23)
    head, bias = drawn(7, 16, seed=24), drawn(24, seed=25)
    one = {
        **adapter(),
        "base_model.model.block.q.lora_B.bias": bias,
        "base_model.model.conv.lora_A.weight": conv_a,
        "base_model.model.conv.lora_B.weight": conv_b,
        "base_model.model.words.lora_embedding_A": words_a,
        "base_model.model.words.lora_embedding_B": words_b,
        "base_model.model.head.weight": head,
    }
    found, scale = files(one, modules_to_save=["head"]), ALPHA / R
    product = torch.einsum("orxy,rihw->oihw", conv_b, conv_a)
    torch.testing.assert_close(found["conv.weight"], base["conv.weight"] + scale * product)
    torch.testing.assert_close(found["words.weight"], base["words.weight"] + scale * (words_b @ words_a).T)
    torch.testing.assert_close(found["block.q.bias"], base["block.q.bias"] + scale * bias)
    assert torch.equal(found["head.weight"], head)


def test_biases_that_were_trained_beside_the_product_are_taken_whole(base: State, files: Callable[..., State]) -> None:
    one = {**adapter(), "base_model.model.block.q.base_layer.bias": drawn(24, seed=26)}
    found = files(one, bias="lora_only")
    assert list(found) == sorted(base)
    assert torch.equal(found["block.q.bias"], one["base_model.model.block.q.base_layer.bias"])


class Net(nn.Module):
    """One layer of every kind that PEFT adapts."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 16)
        self.q = nn.Linear(16, 24)
        self.v = nn.Linear(24, 16, bias=False)
        self.conv = nn.Conv2d(6, 12, 3, padding=1)
        self.bn = nn.BatchNorm2d(12)
        self.head = nn.Linear(16, 5)


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q", "v"]},
        {"target_modules": ["conv", "words", "q"], "use_rslora": True},
        {"target_modules": ["q", "v"], "rank_pattern": {"q": 2}, "alpha_pattern": {"^v$": 3}},
        {"target_modules": ["q"], "modules_to_save": ["head"]},
        {"target_modules": ["q"], "bias": "all"},
        {"target_modules": ["q"], "bias": "lora_only"},
        {"target_modules": ["q"], "lora_bias": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_what_peft_itself_saves_is_what_peft_itself_merges(tmp_path: Path, settings: dict) -> None:
    """Imported here, which takes seconds: nothing else of this file needs it."""
    import peft

    torch.manual_seed(1)
    net = Net()
    save_file({name: one.clone() for name, one in net.state_dict().items()}, tmp_path / "base.safetensors")
    model = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=10, **settings))
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    found = open_expert(tmp_path / "adapter", open_checkpoint(tmp_path / "base.safetensors"))
    assert isinstance(found, Adapted)
    assert set(found.specs) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(found.read(name), tensor, atol=1e-6, rtol=1e-6)


def test_a_merge_of_adapters_is_that_of_the_models_that_they_make(base: State, tmp_path: Path) -> None:
    """To rounding; a base in half precision puts none of its own into what an adapter adds."""
    half = {name: one.bfloat16() for name, one in base.items()}
    save_file(half, tmp_path / "base.safetensors")
    places, models = {}, {}
    for place, name in enumerate(("ada", "ben", "cleo")):
        one = adapter(seed=40 + 10 * place)
        places[name] = written(tmp_path / name, one)
        models[name] = {key: value.float() for key, value in half.items()}
        for module in ("block.q", "block.v"):
            a, b = (one[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
            models[name][f"{module}.weight"] += ALPHA / R * b @ a
    wide = {name: one.float() for name, one in half.items()}
    for method in ("average", "tsv_m", "apgd"):
        out = tmp_path / f"{method}.safetensors"
        audit = merge_files(tmp_path / "base.safetensors", places, out, method, dtype="float32", progress=False)
        expected = merge(wide, models, method).state_dict
        for name, tensor in load_file(out).items():
            torch.testing.assert_close(tensor, expected[name], atol=2e-6, rtol=2e-6)
        assert not audit.warnings, audit.warnings
        assert audit.files["ada"] == ("ada/adapter_config.json", "ada/adapter_model.safetensors")
    both = b"".join((places["ada"] / one).read_bytes() for one in ("adapter_config.json", "adapter_model.safetensors"))
    assert audit.inputs["ada"] == hashlib.sha256(both).hexdigest()


def test_adapters_and_whole_models_can_be_merged_together(base: State, tmp_path: Path) -> None:
    save_file(base, tmp_path / "base.safetensors")
    save_file({name: one + 0.01 for name, one in base.items()}, tmp_path / "model.safetensors")
    experts = {"model": tmp_path / "model.safetensors", "adapter": written(tmp_path / "adapter", adapter())}
    assert preflight_files(tmp_path / "base.safetensors", experts).findings == ()
    audit = merge_files(tmp_path / "base.safetensors", experts, tmp_path / "out.safetensors", progress=False)
    assert audit.experts == ("adapter", "model")


def test_a_head_of_its_own_is_a_matter_for_the_check(base: State, tmp_path: Path) -> None:
    save_file(base, tmp_path / "base.safetensors")
    one = {**adapter(), "base_model.model.head.weight": drawn(7, 16, seed=24)}
    experts = {
        "a": written(tmp_path / "a", one, modules_to_save=["head"]),
        "b": written(tmp_path / "b", adapter(seed=60)),
    }
    report = preflight_files(tmp_path / "base.safetensors", experts)
    assert [finding.level for finding in report.findings] == ["error"]
    assert "head.weight" in report.findings[0].where
    assert not preflight_files(tmp_path / "base.safetensors", experts, {"head.*": "keep"}).errors


def test_the_file_itself_may_be_given(tmp_path: Path) -> None:
    folder = written(tmp_path / "a", adapter())
    assert is_adapter(folder)
    assert is_adapter(folder / "adapter_model.safetensors")
    assert not is_adapter(tmp_path)
    assert not is_adapter(tmp_path / "nothing")


ONE = "base_model.model.block.q.lora_A.weight"


def without(name: str) -> State:
    return {key: value for key, value in adapter().items() if key != name}


@pytest.mark.parametrize(
    ("tensors", "config", "says"),
    [
        (adapter(), {"peft_type": "IA3"}, "is of an adapter of type 'IA3', and only LoRA is a sum"),
        (adapter(), {"use_dora": True}, "is of DoRA, which rescales every column, and not a sum"),
        (adapter(), {"layer_replication": [[0, 2]]}, "is of an adapter that repeats layers"),
        (adapter(), {"init_lora_weights": "pissa_niter_16"}, "was begun as 'pissa_niter_16', which takes what"),
        (adapter(), {"init_lora_weights": "olora"}, "belongs to another base than the one given"),
        (adapter(), {"lora_alpha": "much"}, "has lora_alpha = 'much', no number"),
        (adapter(), {"lora_alpha": None}, "has lora_alpha = None, no number"),
        (without(ONE), {}, "of the adapter's two matrices for 'block.q' one is missing"),
        ({**adapter(), ONE: drawn(R + 1, 16, seed=1)}, {}, r"'block.q' do not fit each other \(24×4 times 5×16\)"),
        ({**adapter(), ONE: drawn(R, 17, seed=1)}, {}, r"'block.q.weight' is 24×17 and the base's is 24×16"),
        (
            {f"base_model.model.other.lora_{half}.weight": drawn(4, 4, seed=1) for half in "AB"},
            {},
            "changes 'other.weight', which the base does not have",
        ),
        (
            {**adapter(), "base_model.model.block.q.lora_magnitude_vector": drawn(24, seed=1)},
            {},
            "holds 'base_model.model.block.q.lora_magnitude_vector', which is no part of a sum",
        ),
        (adapter(), {"bias": "lora_only"}, "its file holds none of these biases, as PEFT wrote it before 0.21"),
        ({}, {}, "the adapter '.*' is empty"),
    ],
)
def test_what_is_no_sum_or_no_adapter_of_this_base_is_refused(
    base: State, tmp_path: Path, tensors: State, config: dict, says: str
) -> None:
    save_file(base, tmp_path / "base.safetensors")
    experts = {"a": written(tmp_path / "a", tensors, **config)}
    with pytest.raises(MergeError, match=says) as caught:
        merge_files(tmp_path / "base.safetensors", experts, tmp_path / "out.safetensors", progress=False)
    assert str(caught.value).startswith("expert 'a': ")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_quantised_base_a_pickle_and_an_adapter_as_the_base_are_refused(base: State, tmp_path: Path) -> None:
    folder = written(tmp_path / "a", adapter())
    out = tmp_path / "out.safetensors"
    save_file({**base, "block.q.weight": torch.zeros(24, 16, dtype=torch.int8)}, tmp_path / "base.safetensors")
    with pytest.raises(MergeError, match=r"the base's 'block\.q\.weight' is quantised \(int8\)"):
        merge_files(tmp_path / "base.safetensors", {"a": folder}, out, progress=False)
    save_file(base, tmp_path / "base.safetensors")
    with pytest.raises(MergeError, match="is an adapter and no model; give the model that it was made for"):
        merge_files(folder, {"a": tmp_path / "base.safetensors"}, out, progress=False)
    (folder / "adapter_config.json").write_text("{]")
    with pytest.raises(MergeError, match=r"'.*adapter_config\.json' has a damaged configuration"):
        merge_files(tmp_path / "base.safetensors", {"a": folder}, out, progress=False)
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(MergeError, match=r"holds a pickle, adapter_model\.bin"):
        merge_files(tmp_path / "base.safetensors", {"a": folder}, out, progress=False)
    assert not out.exists()


def test_a_configuration_that_changes_meanwhile_is_noticed(base: State, tmp_path: Path) -> None:
    save_file(base, tmp_path / "base.safetensors")
    folder = written(tmp_path / "a", adapter())
    made = open_expert(folder, open_checkpoint(tmp_path / "base.safetensors"), "expert 'a'")
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "lora_alpha": 1}))
    with pytest.raises(MergeError, match="has changed since the merge began"):
        made.digest()
