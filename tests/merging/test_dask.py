"""Layers on the workers of a Dask cluster of two processes: the same merge, to the bit, also when a worker dies."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge_files
from apgd_teach.merging.dask_engine import OverDask

pytest.importorskip("distributed")
State = dict[str, Tensor]


@pytest.fixture(scope="module")
def engine() -> Iterator[OverDask]:
    with OverDask() as made:
        yield made


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    draw = torch.Generator().manual_seed(0)
    base = {f"{place}.weight": torch.randn(96, 64, generator=draw) for place in range(8)}
    base |= {f"{place}.bias": torch.randn(96, generator=draw) for place in range(8)}
    base["half.weight"] = torch.randn(32, 16, generator=draw).bfloat16()
    base["steps"] = torch.tensor(3)
    save_file(base, tmp_path / "base.safetensors")
    experts = {}
    for name in ("ada", "ben", "cleo"):
        moved = {
            key: (one + 0.1 * torch.randn(one.shape, generator=draw)).to(one.dtype) if one.is_floating_point() else one
            for key, one in base.items()
        }
        experts[name] = tmp_path / f"{name}.safetensors"
        save_file(moved, experts[name])
    return tmp_path / "base.safetensors", experts


@pytest.mark.parametrize(
    ("method", "settings"), [("average", {}), ("ties", {}), ("tsv_m", {}), ("apgd", {}), ("apgd", {"protect": "auto"})]
)
def test_the_merge_is_the_one_of_this_process_to_the_bit(
    files: tuple[Path, dict[str, Path]], engine: OverDask, method: str, settings: dict
) -> None:
    base, experts = files
    here, there = base.with_name("here.safetensors"), base.with_name("there.safetensors")
    one = merge_files(base, experts, here, method, progress=False, **settings)
    two = merge_files(base, experts, there, method, engine=engine, progress=False, **settings)
    assert here.read_bytes() == there.read_bytes()
    assert one.to_json().replace("here.", "there.") == two.to_json()


def test_what_values_show_is_found_on_the_workers_too(files: tuple[Path, dict[str, Path]], engine: OverDask) -> None:
    base, experts = files
    twin = load_file(experts["ada"])
    save_file(twin, base.with_name("twin.safetensors"))
    given = {**experts, "twin": base.with_name("twin.safetensors")}
    here, there = base.with_name("here.safetensors"), base.with_name("there.safetensors")
    one = merge_files(base, given, here, progress=False)
    two = merge_files(base, given, there, engine=engine, progress=False)
    assert one.warnings
    assert set(one.warnings) == set(two.warnings)
    assert "is the same as expert 'ada'" in str(two.warnings)
    save_file({**twin, "5.weight": torch.full((96, 64), torch.nan)}, given["twin"])
    before = sorted(base.parent.iterdir())
    with pytest.raises(MergeError, match=r"expert 'twin', tensor '5\.weight' holds NaN or infinity"):
        merge_files(base, given, base.with_name("nan.safetensors"), engine=engine, progress=False)
    assert sorted(base.parent.iterdir()) == before


class Slow:
    """An average that takes its time, and says in a file of each layer which process it is in."""

    name = "slow"

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def __call__(self, task_vectors: Tensor) -> Tensor:
        handle = os.open(os.path.join(self.folder, f"{os.getpid()}-{time.time_ns()}"), os.O_CREAT | os.O_WRONLY)
        os.close(handle)
        time.sleep(0.5)
        return task_vectors.mean(dim=0)


def test_a_worker_that_dies_is_no_harm(files: tuple[Path, dict[str, Path]], tmp_path: Path) -> None:
    base, experts = files
    seen = tmp_path / "seen"
    seen.mkdir()
    killed: list[int] = []

    def kill() -> None:
        while not killed:
            workers = {int(one.name.partition("-")[0]) for one in seen.iterdir()}
            if len(workers) == 2:
                killed.append(min(workers))
                os.kill(killed[0], signal.SIGKILL)
            time.sleep(0.05)

    out, expected = base.with_name("out.safetensors"), base.with_name("expected.safetensors")
    with OverDask() as engine:
        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        merge_files(base, experts, out, Slow(str(seen)), engine=engine, progress=False)
        killer.join(timeout=10)
    assert len(killed) == 1
    merge_files(base, experts, expected, "average", progress=False)
    assert out.read_bytes() == expected.read_bytes()


def test_an_address_without_a_scheduler_is_one_sentence() -> None:
    with pytest.raises(MergeError, match=r"there is no Dask scheduler at 'tcp://127\.0\.0\.1:9'"):
        OverDask("tcp://127.0.0.1:9")


def test_without_dask_the_engine_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    with pytest.raises(MergeError, match=r"pip install \"apgd-teach\[dask\]\""):
        OverDask()
