"""Architectures that no one here wrote, through the command line: names, shapes, statistics and ties as they come.

The networks are torchvision's and timm's own, with their own initialisation and synthetic experts; what is asked is
whether files of such networks are merged, not how well.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torchvision import models

from apgd_teach.cli import main
from apgd_teach.merging import merge

State = dict[str, Tensor]


def vit() -> nn.Module:
    """ViT-B's names and kinds of layers, smaller."""
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10)


def timm_s(name: str, **smaller: int) -> nn.Module:
    """A network as timm builds it, without trained weights; imported here, since only some tests need it."""
    import timm

    network: nn.Module = timm.create_model(name, pretrained=False, num_classes=10, **smaller)
    return network


def timm_vit() -> nn.Module:
    """Its vit_tiny_patch16_224, of two blocks and for pictures of 32 × 32."""
    return timm_s("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)


NETWORKS: Mapping[str, Callable[[], nn.Module]] = {
    "resnet18": lambda: models.resnet18(num_classes=10),
    "resnet50": lambda: models.resnet50(num_classes=10),
    "vit": vit,
    "mobilenet_v3_small": lambda: models.mobilenet_v3_small(num_classes=10),
    "timm's vit_tiny": timm_vit,
    "timm's mobilenetv3_small_050": lambda: timm_s("mobilenetv3_small_050"),
}


def made(network: Callable[[], nn.Module]) -> tuple[State, dict[str, State]]:
    """A base and two synthetic experts: low-rank steps on matrices, small ones elsewhere, statistics that moved."""
    torch.manual_seed(0)
    base = {name: tensor.clone() for name, tensor in network().state_dict().items()}
    draws = torch.Generator().manual_seed(1)
    experts = {}
    for count, expert in enumerate(("ada", "ben"), 1):
        state = {}
        for name, tensor in base.items():
            if not tensor.is_floating_point():
                state[name] = tensor + 100 * count
            elif tensor.ndim > 1:
                out = tensor.flatten(1)
                step = torch.randn(out.shape[0], 2, generator=draws) @ torch.randn(2, out.shape[1], generator=draws)
                state[name] = tensor + (0.1 * (out.norm() + 1) / step.norm() * step).reshape(tensor.shape)
            else:
                state[name] = tensor + 0.01 * torch.rand(tensor.shape, generator=draws)
        experts[expert] = state
    return base, experts


def saved(folder: Path, base: State, experts: Mapping[str, State], dtype: torch.dtype | None = None) -> list[str]:
    paths = []
    for name, state in (("base", base), *experts.items()):
        path = folder / f"{name}.safetensors"
        save_file(
            {
                key: one.to(dtype).contiguous() if dtype and one.is_floating_point() else one.contiguous()
                for key, one in state.items()
            },
            path,
        )
        paths.append(str(path))
    return paths


# By apgd those whose layers are small: a ResNet of full width takes it a minute.
METHODS = {
    "resnet18": "average",
    "resnet50": "average",
    "vit": "apgd",
    "mobilenet_v3_small": "apgd",
    "timm's vit_tiny": "apgd",
    "timm's mobilenetv3_small_050": "apgd",
}


@pytest.mark.slow
@pytest.mark.parametrize("network", list(NETWORKS))
def test_files_of_a_known_architecture_are_checked_and_merged(network: str, tmp_path: Path) -> None:
    base, experts = made(NETWORKS[network])
    paths = saved(tmp_path, base, experts)
    assert main(["check", *paths]) == 0
    out, audit = tmp_path / "merged.safetensors", tmp_path / "audit.json"
    assert main(["merge", *paths, "--method", METHODS[network], "--out", str(out), "--report", str(audit)]) == 0
    merged = load_file(out)
    assert {name: (one.shape, one.dtype) for name, one in merged.items()} == {
        name: (one.shape, one.dtype) for name, one in base.items()
    }
    # It is the library's merge, and the network takes it.
    for name, tensor in merge(base, experts, METHODS[network]).state_dict.items():
        torch.testing.assert_close(merged[name], tensor, rtol=1e-5, atol=1e-6)
    there = NETWORKS[network]()
    there.load_state_dict(merged)
    shape = (2, 3, 32, 32)
    assert torch.isfinite(there.eval()(torch.rand(shape, generator=torch.Generator().manual_seed(2)))).all()
    kinds = {row["name"]: row["policy"] for row in json.loads(audit.read_text())["rows"]}
    for name, tensor in base.items():
        if not tensor.is_floating_point():
            # A BatchNorm's count of batches: integers are nothing to merge.
            assert kinds[name] == "keep"
            assert torch.equal(merged[name], tensor)
        elif "running_" in name:
            assert kinds[name] == "average"
            mean = (experts["ada"][name] + experts["ben"][name]) / 2
            torch.testing.assert_close(merged[name], mean, rtol=1e-5, atol=1e-6)
        elif name.endswith("weight") and tensor.ndim > 1:
            assert kinds[name] == "merge", name
            assert not torch.equal(merged[name], tensor)


def test_a_transformer_s_own_parameters_are_averaged_or_merged_as_the_audit_says(tmp_path: Path) -> None:
    base, experts = made(vit)
    paths = saved(tmp_path, base, experts)
    audit = tmp_path / "audit.json"
    line = ["merge", *paths, "--out", str(tmp_path / "merged.safetensors"), "--report", str(audit)]
    assert main(line) == 0
    kinds = {row["name"]: row["policy"] for row in json.loads(audit.read_text())["rows"]}
    assert kinds["class_token"] == kinds["encoder.pos_embedding"] == "average"
    assert kinds["encoder.layers.encoder_layer_0.self_attention.in_proj_weight"] == "merge"
    assert kinds["encoder.layers.encoder_layer_0.self_attention.out_proj.weight"] == "merge"
    assert kinds["encoder.layers.encoder_layer_0.ln_1.weight"] == "average"
    assert kinds["conv_proj.weight"] == "merge"


def test_adapters_that_peft_made_for_timm_s_vit_are_merged_as_peft_merges_them(tmp_path: Path) -> None:
    """Unmerged LoRA of the qkv layers: one alone gives base + (α / r) B A, and two give the mean of the two models."""
    import peft

    torch.manual_seed(0)
    base = {name: one.clone() for name, one in timm_vit().state_dict().items()}
    (path,) = saved(tmp_path, base, {})
    models = {}
    for expert in ("ada", "ben"):
        net = timm_vit()
        net.load_state_dict(base)
        adapted = peft.get_peft_model(net, peft.LoraConfig(r=4, lora_alpha=10, target_modules=["qkv"]))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter, std=0.1)
        adapted.save_pretrained(tmp_path / expert)
        models[expert] = adapted.merge_and_unload().state_dict()
    places = {expert: str(tmp_path / expert) for expert in models}
    assert main(["check", path, *places.values()]) == 0
    mean = {name: (models["ada"][name] + models["ben"][name]) / 2 for name in base}
    for which, expected in ((["ada"], models["ada"]), (["ada", "ben"], mean)):
        out = tmp_path / f"{'-'.join(which)}.safetensors"
        given = [path, *(places[one] for one in which), "--method", "average", "--out", str(out)]
        assert main(["merge", *given]) == 0
        merged = load_file(out)
        assert set(merged) == set(base)
        for name, tensor in merged.items():
            # A weight of 1 has a last digit of 1.2e-7 in float32, and the sums here are of four products.
            torch.testing.assert_close(tensor, expected[name], atol=1e-6, rtol=1e-6)
            assert torch.equal(tensor, base[name]) == ("qkv.weight" not in name), name


@pytest.mark.parametrize("network", ["resnet18", "vit"])
def test_half_precision_stays_half_and_is_computed_in_float32(network: str, tmp_path: Path) -> None:
    base, experts = made(NETWORKS[network])
    paths = saved(tmp_path, base, experts, torch.bfloat16)
    out = tmp_path / "merged.safetensors"
    assert main(["merge", *paths, "--method", "average", "--out", str(out)]) == 0
    merged = load_file(out)
    stored = [load_file(path) for path in paths]
    for name, tensor in merged.items():
        assert tensor.dtype == stored[0][name].dtype
        if tensor.is_floating_point():
            assert tensor.dtype == torch.bfloat16
            mean = (stored[1][name].float() + stored[2][name].float()) / 2
            # Rounded once, at the end.
            torch.testing.assert_close(tensor.float(), mean, rtol=2**-8, atol=1e-6)
    whole = tmp_path / "whole.safetensors"
    assert main(["merge", *paths, "--method", "average", "--dtype", "float32", "--out", str(whole)]) == 0
    assert {one.dtype for one in load_file(whole).values() if one.is_floating_point()} == {torch.float32}


class Language(nn.Module):
    """An embedding that is the output layer too, as most language models have it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.block = nn.Linear(12, 12)
        self.lm_head = nn.Linear(12, 40, bias=False)
        self.lm_head.weight = self.embed.weight


def test_tied_weights_are_one_tensor_in_memory_before_and_after() -> None:
    torch.manual_seed(0)
    base = Language().state_dict()
    experts = {}
    for name in ("ada", "ben"):
        other = Language()
        other.load_state_dict({key: one + 0.05 * torch.randn(one.shape) for key, one in base.items()})
        experts[name] = other.state_dict()
    merged = merge(base, experts, "apgd").state_dict
    assert torch.equal(merged["embed.weight"], merged["lm_head.weight"])
    there = Language()
    there.load_state_dict(merged)
    assert torch.equal(there.embed.weight, there.lm_head.weight)


def test_a_file_without_the_second_name_of_a_tied_weight_is_merged_under_the_first(tmp_path: Path) -> None:
    """As Hugging Face's `save_pretrained` writes them: the second name is left out."""
    torch.manual_seed(0)
    states = {}
    for name in ("base", "ada", "ben"):
        state = Language().state_dict()
        del state["lm_head.weight"]
        states[name] = {key: one.clone() for key, one in state.items()}
    base = states.pop("base")
    paths = saved(tmp_path, base, states)
    out = tmp_path / "merged.safetensors"
    assert main(["merge", *paths, "--out", str(out)]) == 0
    with safe_open(out, framework="pt") as opened:
        assert sorted(opened.keys()) == ["block.bias", "block.weight", "embed.weight"]


def test_a_file_with_both_names_beside_one_with_the_first_alone_is_told_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    whole = {key: one.clone() for key, one in Language().state_dict().items()}
    short = {key: one + 0.01 for key, one in whole.items() if key != "lm_head.weight"}
    paths = saved(tmp_path, whole, {"ada": whole, "ben": short})
    assert main(["check", *paths]) == 1
    said = capsys.readouterr().out
    assert "lm_head.weight" in said
    assert "tied" in said
