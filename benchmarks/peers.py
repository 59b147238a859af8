"""Other people's code on the same experts: runs in an environment of its own, and knows nothing of this package.

    python -m venv peers && peers/bin/pip install -r benchmarks/peers.txt
    python benchmarks/compare.py peers --python peers/bin/python     # calls this file, pool by pool

Called as `peers.py FOLDER NAME`: reads base.safetensors and experts/*.safetensors (two-axis weights alone), writes
NAME.safetensors beside them and prints the seconds that the merge took.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

State = dict[str, Tensor]


class Holder(nn.Module):
    """A state dict as a module: a linear layer without bias per weight, all under "encoder", which DOGE TA asks for."""

    def __init__(self, state: State) -> None:
        super().__init__()
        self.encoder = nn.ModuleDict()
        for name, weight in state.items():
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
            layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
            self.encoder[name.removesuffix(".weight").replace(".", "_")] = layer


def fused(algorithm: Callable[[], object]) -> Callable[[State, dict[str, State], Path], State]:
    """A merge by an algorithm of fusion-bench, with the settings that its configuration files give it."""

    def merge(base: State, experts: dict[str, State], folder: Path) -> State:
        from fusion_bench import BaseModelPool

        models = {"_pretrained_": Holder(base), **{name: Holder(state) for name, state in experts.items()}}
        merged = algorithm().run(BaseModelPool(models)).state_dict()  # type: ignore[attr-defined]
        return {
            name: merged[f"encoder.{name.removesuffix('.weight').replace('.', '_')}.weight"].detach() for name in base
        }

    return merge


def ties() -> object:
    from fusion_bench.method.ties_merging import TiesMergingAlgorithm

    # Their own default sums what agrees, with 0.3; the mean and 1 are what the paper recommends without data.
    return TiesMergingAlgorithm(scaling_factor=1.0, threshold=20, remove_keys=[], merge_func="mean")


def tsv_m() -> object:
    from fusion_bench.method.task_singular_vector import TaskSingularVectorMerging

    return TaskSingularVectorMerging(alpha=None)


def iso_c() -> object:
    from fusion_bench.method.isotropic_merging import ISO_C_Merge

    return ISO_C_Merge(scaling_factor=1.0)


def wudi() -> object:
    from fusion_bench.method.wudi import WUDIMerging

    return WUDIMerging(iter_num=300)


def doge_ta() -> object:
    from fusion_bench.method.doge_ta import DOGE_TA_Algorithm

    return DOGE_TA_Algorithm(subspace=6, K=30, lamda=0.07)


def kit(
    method: str, each: dict[str, float], whole: dict[str, object]
) -> Callable[[State, dict[str, State], Path], State]:
    """A merge by mergekit's command for plain PyTorch models."""

    def merge(base: State, experts: dict[str, State], folder: Path) -> State:
        from click.testing import CliRunner
        from mergekit.scripts.merge_raw_pytorch import main

        with tempfile.TemporaryDirectory() as made:
            paths = [folder / "experts" / f"{name}.safetensors" for name in experts]
            config = {
                "merge_method": method,
                "base_model": str(folder / "base.safetensors"),
                "models": [{"model": str(path), "parameters": each} for path in paths],
                "parameters": whole,
                "dtype": "float32",
            }
            (Path(made) / "config.yml").write_text(yaml.safe_dump(config))
            done = CliRunner().invoke(main, [f"{made}/config.yml", f"{made}/out"], catch_exceptions=False)
            if done.exit_code:
                raise SystemExit(done.output)
            return {
                name: one
                for file in sorted(Path(made, "out").glob("*.safetensors"))
                for name, one in load_file(file).items()
            }

    return merge


PEERS: dict[str, Callable[[State, dict[str, State], Path], State]] = {
    "fusion-bench ties": fused(ties),
    "fusion-bench tsv_m": fused(tsv_m),
    "fusion-bench iso_c": fused(iso_c),
    "fusion-bench wudi": fused(wudi),
    "fusion-bench doge_ta": fused(doge_ta),
    "mergekit task_arithmetic": kit("task_arithmetic", {"weight": 0.3}, {"normalize": False}),
    "mergekit ties": kit("ties", {"weight": 1.0, "density": 0.2}, {"normalize": True}),
}


def main() -> None:
    folder, name = Path(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    base = load_file(folder / "base.safetensors")
    experts = {path.stem: load_file(path) for path in sorted((folder / "experts").glob("*.safetensors"))}
    start = time.perf_counter()
    merged = PEERS[name](base, experts, folder)
    seconds = time.perf_counter() - start
    save_file({key: one.contiguous() for key, one in merged.items()}, folder / f"{name}.safetensors")
    print(f"seconds {seconds:.3f}")


if __name__ == "__main__":
    main()
