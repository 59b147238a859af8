"""Other people's code beside ours: what is handed over, what is compared, and what the page says."""

from __future__ import annotations

import ast
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from apgd_teach.cache import Cache
from apgd_teach.experts import Pool, make_pool

FOLDER = Path(__file__).parents[2] / "benchmarks"

THEIRS = """
import sys
from pathlib import Path
from safetensors.torch import load_file, save_file
folder, name = Path(sys.argv[1]), sys.argv[2]
base = load_file(folder / "base.safetensors")
experts = [load_file(one) for one in (folder / "experts").glob("*")]
assert all(weight.ndim == 2 for weight in base.values())
merged = {key: base[key] + 0.3 * sum(one[key] - base[key] for one in experts) for key in base}
save_file(merged, folder / f"{name}.safetensors")
print("seconds 1.5")
"""


@pytest.fixture
def exchange(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/exchange.py`, with a folder of its own and an environment that merges as task arithmetic does."""
    module = script("exchange")
    (tmp_path / "peers.py").write_text(THEIRS)
    monkeypatch.setattr(module, "HERE", tmp_path)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "peers.json")
    return module


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-flipped"],
        base_steps=40,
        expert_steps=10,
        seed=30,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )


def test_the_same_method_is_found_to_be_the_same(exchange: ModuleType, pool: Pool) -> None:
    cells = exchange.measure(pool, Path(sys.executable), "mergekit task_arithmetic")
    assert cells["distance"] < 1e-5
    assert cells["theirs"] == pytest.approx(cells["ours"], abs=0.1)
    assert cells["seconds"] == 1.5
    other = exchange.measure(pool, Path(sys.executable), "fusion-bench iso_c")
    assert other["distance"] > 0.1


def test_what_fails_there_is_said_here(exchange: ModuleType, pool: Pool) -> None:
    (exchange.HERE / "peers.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(SystemExit, match=r"(?s)fusion-bench ties failed:.*no such thing"):
        exchange.measure(pool, Path(sys.executable), "fusion-bench ties")


def test_the_page_is_made_from_the_file_alone(exchange: ModuleType) -> None:
    cell = {"distance": 2e-5, "theirs": 80.0, "ours": 80.25, "seconds": 3.0}
    further = {**cell, "distance": 3e-2, "theirs": 81.0}
    pools = {"a, seed 30": {"fusion-bench tsv_m": cell}, "b, seed 30": {"fusion-bench tsv_m": further}}
    exchange.store(pools, {"fusion-bench": "0.2"})
    exchange.report()
    page = (exchange.HERE / "peers.md").read_text()
    assert "| fusion-bench tsv_m | tsv_m | 2.0e-05 to 3.0e-02 | −0.25 to +0.75 | rounding, where" in page
    assert "iso_c" not in page
    assert "fusion-bench 0.2" in page


def test_their_side_knows_nothing_of_this_package() -> None:
    tree = ast.parse((FOLDER / "peers.py").read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [one.name for one in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert "apgd_teach" not in imported
    assert {"fusion_bench", "mergekit"} <= imported


def test_both_sides_know_the_same_methods(exchange: ModuleType) -> None:
    tree = ast.parse((FOLDER / "peers.py").read_text())
    table = next(node for node in tree.body if isinstance(node, ast.AnnAssign) and node.target.id == "PEERS")  # type: ignore[union-attr]
    assert [key.value for key in table.value.keys] == list(exchange.TWINS)  # type: ignore[union-attr]


def test_the_committed_page_is_what_the_committed_file_makes(
    script: Callable[[str], ModuleType], tmp_path: Path
) -> None:
    module = script("exchange")
    before = (FOLDER / "peers.md").read_text()
    assert set(json.loads(module.RESULTS.read_text())["pools"])
    module.HERE = tmp_path
    module.report()
    assert (tmp_path / "peers.md").read_text() == before


def test_distance_is_a_share_of_our_own_update(exchange: ModuleType) -> None:
    base = {"a": torch.zeros(2, 2), "b": torch.zeros(3)}
    ours = {"a": torch.full((2, 2), 2.0), "b": torch.zeros(3)}
    theirs = {"a": torch.full((2, 2), 1.0), "b": torch.zeros(3)}
    assert exchange.distance(theirs, ours, base) == pytest.approx(0.5)
