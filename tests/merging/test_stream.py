from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.errors import ApgdTeachError, DataAccessError, MergeError
from apgd_teach.guard import refuse_data
from apgd_teach.merging import METHODS, merge, merge_files, open_checkpoint
from apgd_teach.merging.audit import Output
from apgd_teach.merging.engine import Inputs, passes, run
from apgd_teach.merging.registry import pick

INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Saved:
    """A base and three experts as files of one folder, and as the state dicts that they were saved from."""

    folder: Path
    base: Path
    experts: dict[str, Path]
    states: tuple[dict[str, Tensor], dict[str, dict[str, Tensor]]]

    def listed(self) -> dict[str, bytes]:
        """Every file of the folder, hidden ones too, with what it holds."""
        return {str(one.relative_to(self.folder)): one.read_bytes() for one in self.folder.rglob("*") if one.is_file()}


@pytest.fixture
def saved(base, experts, tmp_path: Path) -> Saved:
    return save(base, experts, tmp_path)


def save(base, experts, folder: Path) -> Saved:
    save_file(base, folder / "base.safetensors", metadata={"format": "pt", "note": "ours"})
    for name, state in experts.items():
        save_file(state, folder / f"{name}.safetensors")
    paths = {name: folder / f"{name}.safetensors" for name in experts}
    return Saved(folder, folder / "base.safetensors", paths, (base, experts))


def shard(state: dict[str, Tensor], folder: Path, pieces: int) -> Path:
    """A state dict as a folder of shards with their index."""
    folder.mkdir()
    places = {name: f"model-{place % pieces}.safetensors" for place, name in enumerate(state)}
    for file in sorted(set(places.values())):
        own = {name: state[name] for name, place in places.items() if place == file}
        save_file(own, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1, "total_parameters": 5}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Equal to the last bit, names and dtypes included."""
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype
        and one[name].shape == other[name].shape
        and one[name].reshape(-1).view(torch.uint8).equal(other[name].reshape(-1).view(torch.uint8))
        for name in one
    )


@contextmanager
def nothing_changes(saved: Saved) -> Iterator[None]:
    before, folders = saved.listed(), sorted(one for one in saved.folder.rglob("*") if one.is_dir())
    yield
    assert saved.listed() == before
    assert sorted(one for one in saved.folder.rglob("*") if one.is_dir()) == folders


# The result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "dare"])
@pytest.mark.parametrize("workers", [1, 3])
def test_files_hold_what_the_merge_of_the_loaded_state_dicts_gives(
    base, experts, cast, tmp_path, dtype, method, workers
) -> None:
    base, experts = cast(base, dtype), {name: cast(state, dtype) for name, state in experts.items()}
    saved = save(base, experts, tmp_path)
    out = tmp_path / "out.safetensors"
    audit = merge_files(saved.base, saved.experts, out, method, workers=workers, progress=False)
    merged = merge(base, experts, method)
    assert same(load_file(out), merged.state_dict)
    rows = {row.name: row for row in merged.audit.rows}
    assert {row.name: row for row in audit.rows} == rows


def test_every_method_gives_the_same_from_files_as_from_memory(saved: Saved) -> None:
    out = saved.folder / "out.safetensors"
    for name in METHODS:
        merge_files(saved.base, saved.experts, out, name, workers=2, progress=False)
        assert same(load_file(out), merge(*saved.states, name).state_dict), name


def test_the_file_is_the_one_that_the_library_would_write(saved: Saved) -> None:
    merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", progress=False)
    merged = merge(*saved.states).state_dict
    # Of two words in the metadata the library may write either first.
    save_file(merged, saved.folder / "theirs.safetensors", metadata={"format": "pt", "note": "ours"})
    ours, theirs = ((saved.folder / f"{name}.safetensors").read_bytes() for name in ("out", "theirs"))
    size = int.from_bytes(theirs[:8], "little")
    assert ours[:8] == theirs[:8]
    assert json.loads(ours[8 : 8 + size]) == json.loads(theirs[8 : 8 + size])
    assert ours[8 + size :] == theirs[8 + size :]


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_shards_in_shards_out_whatever_the_experts_are(base, experts, tmp_path: Path, workers: int) -> None:
    saved = save(base, experts, tmp_path)
    folder = shard(base, tmp_path / "sharded", 3)
    paths = {**saved.experts, "ben": shard(experts["ben"], tmp_path / "ben-sharded", 2)}
    audit = merge_files(folder, paths, tmp_path / "out", workers=workers, progress=False)
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == sorted(one.name for one in folder.iterdir())
    found = {}
    for file in folder.glob("*.safetensors"):
        own = load_file(tmp_path / "out" / file.name)
        assert own.keys() == load_file(file).keys()
        found.update(own)
        with safe_open(tmp_path / "out" / file.name, "pt") as opened:
            assert opened.metadata() == {"format": "pt"}
    assert same(found, merge(base, experts).state_dict)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    assert index["weight_map"] == json.loads((folder / INDEX).read_text())["weight_map"]
    size = sum(one.numel() * one.element_size() for one in base.values())
    assert index["metadata"] == {"total_size": size, "total_parameters": 5}
    assert audit.files["base"] == tuple(f"sharded/model-{place}.safetensors" for place in range(3))
    assert audit.files["ben"] == tuple(f"ben-sharded/model-{place}.safetensors" for place in range(2))
    assert audit.files["ada"] == ("ada.safetensors",)


def test_shards_become_one_file_and_one_file_a_folder(base, experts, tmp_path: Path) -> None:
    saved = save(base, experts, tmp_path)
    folder = shard(base, tmp_path / "sharded", 2)
    merge_files(folder, saved.experts, tmp_path / "out.safetensors", progress=False)
    assert same(load_file(tmp_path / "out.safetensors"), merge(base, experts).state_dict)
    with safe_open(tmp_path / "out.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    (tmp_path / "out").mkdir()  # an empty one is no other than none
    merge_files(saved.base, saved.experts, tmp_path / "out", progress=False)
    assert [one.name for one in (tmp_path / "out").iterdir()] == ["base.safetensors"]
    assert same(load_file(tmp_path / "out" / "base.safetensors"), merge(base, experts).state_dict)


def test_the_merge_can_be_merged_again(base, experts, tmp_path: Path) -> None:
    folder = shard(base, tmp_path / "sharded", 2)
    saved = save(base, experts, tmp_path)
    merge_files(folder, saved.experts, tmp_path / "one", progress=False)
    merge_files(folder, {"one": tmp_path / "one"}, tmp_path / "two.safetensors", progress=False)
    once = merge(base, experts).state_dict
    assert same(load_file(tmp_path / "two.safetensors"), merge(base, {"one": once}).state_dict)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_and_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    draws = torch.Generator().manual_seed(0)
    base = {"w": torch.randn(64, 64, generator=draws).to(dtype)}
    experts = {
        f"{number}": {"w": (base["w"] + 0.01 * torch.randn(64, 64, generator=draws)).to(dtype)} for number in range(8)
    }
    saved = save(base, experts, tmp_path)
    merge_files(saved.base, saved.experts, tmp_path / "out.safetensors", progress=False)
    ours = load_file(tmp_path / "out.safetensors")["w"].double()
    exact = torch.stack([state["w"].double() for state in experts.values()]).mean(dim=0)
    naive = base["w"]
    for state in experts.values():
        naive = naive + (state["w"] - base["w"]) / 8
    assert bool(((ours - exact).abs() <= 0.51 * torch.finfo(dtype).eps * exact.abs() + 1e-7).all())
    assert (ours - exact).norm() < 0.6 * (naive.double() - exact).norm()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", torch.bfloat16, torch.float64])
def test_the_dtype_of_the_output_is_chosen_and_integers_keep_theirs(saved: Saved, dtype: str | torch.dtype) -> None:
    out = saved.folder / "out.safetensors"
    merge_files(saved.base, saved.experts, out, policy={"gain": "keep"}, dtype=dtype, progress=False)
    kind = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    expected = merge(*saved.states, policy={"gain": "keep"}).state_dict
    for name, tensor in load_file(out).items():
        assert tensor.dtype == (kind if expected[name].is_floating_point() else torch.int64)
        assert torch.equal(tensor, expected[name].to(tensor.dtype))


def test_a_kept_tensor_that_the_chosen_dtype_cannot_hold_is_no_silent_infinity(tmp_path: Path) -> None:
    saved = save({"w": torch.full((2, 2), 1e30)}, {"a": {"w": torch.full((2, 2), 1.1e30)}}, tmp_path)
    for policy in ({"w": "keep"}, None):
        with (
            nothing_changes(saved),
            pytest.raises(MergeError, match=r"tensor 'w' of the merge has values that torch\.float16 cannot hold"),
        ):
            merge_files(
                saved.base,
                saved.experts,
                tmp_path / "out.safetensors",
                policy=policy,
                dtype="float16",
                progress=False,
            )


def test_the_order_of_the_experts_decides_nothing(saved: Saved) -> None:
    outs = [saved.folder / f"{place}.safetensors" for place in range(2)]
    for out, order in zip(outs, (1, -1), strict=True):
        merge_files(saved.base, dict(list(saved.experts.items())[::order]), out, progress=False)
    assert outs[0].read_bytes() == outs[1].read_bytes()


@pytest.mark.parametrize("device", ["cpu", "auto", torch.device("cpu"), None])
def test_a_device_can_be_chosen(saved: Saved, device) -> None:
    merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", device=device, progress=False)
    found, expected = load_file(saved.folder / "out.safetensors"), merge(*saved.states).state_dict
    for name in expected:
        torch.testing.assert_close(found[name], expected[name])


def test_a_tied_name_that_the_files_leave_out_stays_out(tmp_path: Path) -> None:
    # A network whose embedding is also its head is saved with the embedding alone.
    base = {"embedding.weight": torch.ones(3, 2), "norm.weight": torch.ones(2)}
    saved = save(base, {"a": {name: 2 * one for name, one in base.items()}}, tmp_path)
    merge_files(saved.base, saved.experts, tmp_path / "out.safetensors", progress=False)
    assert load_file(tmp_path / "out.safetensors").keys() == base.keys()


# The audit


def test_the_audit_names_the_files_and_their_digests_and_no_folder(saved: Saved) -> None:
    audit = merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", progress=False)
    paths = {"base": saved.base, **saved.experts}
    assert audit.inputs == {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in paths.items()}
    assert audit.files == {name: (path.name,) for name, path in paths.items()}
    assert str(saved.folder) not in audit.to_json()
    assert audit.data_used == "none"


def test_the_audit_identifies_what_was_written(base, experts, tmp_path: Path) -> None:
    saved = save(base, experts, tmp_path)
    folder = shard(base, tmp_path / "sharded", 2)
    one = merge_files(saved.base, saved.experts, tmp_path / "out.safetensors", progress=False)
    raw = (tmp_path / "out.safetensors").read_bytes()
    assert one.output == Output(("out.safetensors",), hashlib.sha256(raw).hexdigest(), "float32")
    assert one.device == "cpu"
    several = merge_files(folder, saved.experts, tmp_path / "out", dtype="bfloat16", progress=False)
    assert several.output is not None
    assert several.output.files == ("out/model-0.safetensors", "out/model-1.safetensors")
    assert several.output.sha256 == open_checkpoint(tmp_path / "out").digest()
    assert several.output.dtype == "bfloat16"
    # Who merges the merge finds the same digest and the same names.
    again = merge_files(tmp_path / "out", {"out": tmp_path / "out"}, tmp_path / "again", progress=False)
    assert (again.inputs["out"], again.files["out"]) == (several.output.sha256, several.output.files)


def test_folders_of_the_same_shards_can_be_told_apart_however_they_are_given(
    base, experts, tmp_path, monkeypatch
) -> None:
    shard(base, tmp_path / "base", 2)
    shard(experts["ada"], tmp_path / "ada", 2)
    monkeypatch.chdir(tmp_path / "ada")
    for given in (tmp_path / "ada", tmp_path / "ada" / INDEX, ".", INDEX, "../ada"):
        assert open_checkpoint(given).shown == ("ada/model-0.safetensors", "ada/model-1.safetensors")
    save_file(base, tmp_path / "base.safetensors")
    assert open_checkpoint(tmp_path / "base.safetensors").shown == ("base.safetensors",)


def test_warnings_of_both_stages_end_up_in_the_audit(saved: Saved) -> None:
    audit = merge_files(
        saved.base,
        {"ada": saved.experts["ada"], "twin": saved.experts["ada"], "base again": saved.base},
        saved.folder / "out.safetensors",
        workers=2,
        progress=False,
    )
    said = " ".join(str(finding) for finding in audit.warnings)
    assert "expert 'twin' is the same as expert 'ada'" in said
    assert "expert 'base again' is the base itself" in said


def test_the_bar_counts_to_its_end_and_can_be_silenced(saved: Saved, capsys, monkeypatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    out = saved.folder / "out.safetensors"
    merge_files(saved.base, saved.experts, out, progress=False)
    assert capsys.readouterr() == ("", "")
    merge_files(saved.base, saved.experts, out)
    assert "average" in capsys.readouterr().out
    monkeypatch.setenv("TQDM_DISABLE", "1")
    merge_files(saved.base, saved.experts, out)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["average", "ties"])
def test_there_is_one_tick_for_every_step_that_was_announced(saved: Saved, method: str) -> None:
    experts = {name: open_checkpoint(path) for name, path in saved.experts.items()}
    inputs, ticks = Inputs(open_checkpoint(saved.base), experts), []
    run(inputs, pick(method, {}), lambda *_: None, tick=lambda: ticks.append(1))
    # Six tensors, two of them weights that are read twice for the threshold; four inputs are hashed.
    assert len(ticks) == passes(inputs, pick(method, {})) == 6 + 4 + (4 if method == "ties" else 0)


# Interruptions


@dataclass(frozen=True)
class Stops:
    """A method of which the second layer goes wrong."""

    error: BaseException
    name: ClassVar[str] = "stops"

    def __call__(self, task_vectors: Tensor) -> Tensor:
        if task_vectors.shape[1] == 3:
            raise self.error
        return task_vectors[0]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), ZeroDivisionError("mine"), MemoryError()])
@pytest.mark.parametrize("existing", [False, True])
def test_whatever_interrupts_a_merge_leaves_the_folder_as_it_was(saved: Saved, workers, error, existing) -> None:
    if existing:
        (saved.folder / "out.safetensors").write_bytes(b"precious")
        (saved.folder / "out").mkdir()
    with nothing_changes(saved):
        for out in ("out.safetensors", "out"):
            with pytest.raises(type(error)):
                merge_files(saved.base, saved.experts, saved.folder / out, Stops(error), workers=workers)


def test_ctrl_c_in_the_middle_of_a_merge_leaves_nothing_behind(saved: Saved, tmp_path: Path) -> None:
    script = """
import sys, time
from apgd_teach.merging import merge_files
class Slow:
    name = "slow"
    def __call__(self, task_vectors):
        print("working", flush=True)
        time.sleep(60)
base, expert, out = sys.argv[1:]
merge_files(base, {"ada": expert}, out, Slow(), progress=False)
"""
    with nothing_changes(saved):
        paths = [str(saved.base), str(saved.experts["ada"]), str(saved.folder / "out.safetensors")]
        child = subprocess.Popen(
            [sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        assert child.stdout.readline() == "working\n"
        assert any(one.name.startswith(".out.safetensors.") for one in saved.folder.iterdir())
        child.send_signal(2)
        said = child.communicate(timeout=30)[1]
    assert "KeyboardInterrupt" in said


def test_a_file_that_is_replaced_stays_whole_until_the_new_one_is(saved: Saved) -> None:
    out = saved.folder / "out.safetensors"
    out.write_bytes(b"old")
    seen = []

    class Watches:
        name = "watches"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            seen.append(out.stat().st_size)
            return task_vectors[0]

    merge_files(saved.base, saved.experts, out, Watches(), progress=False)
    assert seen == [3, 3]
    assert load_file(out).keys() == saved.states[0].keys()
    assert sorted(one.name for one in saved.folder.iterdir()) == sorted(
        [out.name, saved.base.name, *(path.name for path in saved.experts.values())]
    )


@pytest.fixture(params=[0o022, 0o027, 0o077, 0o002])
def umask(request) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.mark.skipif(sys.platform == "win32", reason="rights are other there")
def test_what_is_new_has_the_rights_that_the_user_gives_to_new_files(base, saved: Saved, umask: int) -> None:
    folder = shard(base, saved.folder / "sharded", 2)
    merge_files(folder, saved.experts, saved.folder / "new", progress=False)
    merge_files(folder, saved.experts, saved.folder / "new.safetensors", progress=False)
    files = [saved.folder / "new.safetensors", *(saved.folder / "new").iterdir()]
    assert len(files) == 4
    assert {one.stat().st_mode & 0o777 for one in files} == {0o666 & ~umask}
    assert (saved.folder / "new").stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.skipif(sys.platform == "win32", reason="rights are other there")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664, 0o444])
def test_what_is_replaced_keeps_its_rights(saved: Saved, mode: int) -> None:
    out, folder = saved.folder / "out.safetensors", saved.folder / "out"
    out.write_bytes(b"old")
    out.chmod(mode)
    folder.mkdir()
    folder.chmod(mode | 0o700)
    merge_files(saved.base, saved.experts, out, progress=False)
    merge_files(saved.base, saved.experts, folder, progress=False)
    assert out.stat().st_mode & 0o777 == mode
    assert folder.stat().st_mode & 0o777 == mode | 0o700


@pytest.mark.parametrize("workers", [1, 2])
def test_data_is_out_of_reach_in_every_worker(saved: Saved, workers: int) -> None:
    class Peeks:
        name = "peeks"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            refuse_data("an image")
            return task_vectors[0]

    with nothing_changes(saved), pytest.raises(DataAccessError, match="asked for an image"):
        merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", Peeks(), workers=workers)


def test_nan_that_is_met_in_the_middle_stops_the_merge_before_anything_appears(base, experts, tmp_path) -> None:
    experts["cy"]["linear.bias"][1] = float("nan")
    saved = save(base, experts, tmp_path)
    for workers in (1, 3):
        with (
            nothing_changes(saved),
            pytest.raises(MergeError, match=r"expert 'cy', tensor 'linear\.bias' holds NaN or infinity"),
        ):
            merge_files(saved.base, saved.experts, tmp_path / "out", workers=workers, progress=False)


def test_an_input_that_changes_meanwhile_stops_the_merge(saved: Saved) -> None:
    class Meddles:
        name = "meddles"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            os.utime(saved.experts["ben"], (1, 1))
            return task_vectors[0]

    with nothing_changes(saved), pytest.raises(MergeError, match=r"expert 'ben': '.*' has changed since the merge"):
        merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", Meddles(), progress=False)


# The disk


def test_a_disk_without_room_is_one_sentence_before_anything_is_computed(tmp_path: Path) -> None:
    # A base twice as large as what is free, of which nothing is there.
    size = 2 * shutil.disk_usage(tmp_path).free // 8 * 8
    path = tmp_path / "base.safetensors"
    header = json.dumps({"w": {"dtype": "F32", "shape": [size // 8, 2], "data_offsets": [0, size]}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no sparse files of this size here")
    with pytest.raises(
        MergeError, match=r"out: 'out\.safetensors' needs .* GB, and the disk has .* GB left; free some"
    ):
        merge_files(path, {"a": path}, tmp_path / "out.safetensors", progress=False)
    assert [one.name for one in tmp_path.iterdir()] == ["base.safetensors"]


LIMITED = """
import resource, sys
from apgd_teach.errors import MergeError
from apgd_teach.merging import merge_files
base, expert, out = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    merge_files(base, {"ada": expert}, out, progress=False)
except MergeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit there")
@pytest.mark.parametrize("out", ["out.safetensors", "out"])
def test_room_that_ends_in_the_middle_is_one_sentence_and_leaves_nothing(tmp_path: Path, out: str) -> None:
    base = {f"w{place}": torch.ones(100, 100) for place in range(5)}
    saved = save(base, {"ada": {name: one + 1 for name, one in base.items()}}, tmp_path)
    if out.endswith(".safetensors"):
        (tmp_path / out).write_bytes(b"precious")
    with nothing_changes(saved):
        line = [sys.executable, "-c", LIMITED, str(saved.base), str(saved.experts["ada"]), str(tmp_path / out)]
        said = subprocess.run(line, capture_output=True, text=True, check=False).stdout
    assert f"out: '{out}' cannot be written ({os.strerror(errno.EFBIG)}); free some space" in said


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="a small disk is mounted by root")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    base = {f"w{place}": torch.ones(100, 100) for place in range(5)}
    (tmp_path / "in").mkdir()
    saved = save(base, {"ada": {name: one + 1 for name, one in base.items()}}, tmp_path / "in")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=300k", "none", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")

    class Fills:
        """Another program takes the room that there was."""

        name = "fills"

        def __call__(self, task_vectors: Tensor) -> Tensor:
            with (disk / "other").open("ab") as other:
                other.write(bytes(70_000))
            return task_vectors[0]

    try:
        (disk / "out.safetensors").write_bytes(b"precious")
        (disk / "other").write_bytes(bytes(150_000))
        with pytest.raises(MergeError, match=r"needs 0\.0002 GB, and the disk has"):
            merge_files(saved.base, saved.experts, disk / "out.safetensors", progress=False)
        (disk / "other").unlink()
        with pytest.raises(MergeError, match=r"out: 'out\.safetensors' cannot be written \(No space left on device\)"):
            merge_files(saved.base, saved.experts, disk / "out.safetensors", Fills(), progress=False)
        assert sorted(one.name for one in disk.iterdir()) == ["other", "out.safetensors"]
        assert (disk / "out.safetensors").read_bytes() == b"precious"
    finally:
        subprocess.run(["umount", disk], check=True)


# Where the output may go


def link(saved: Saved) -> Path:
    (saved.folder / "link.safetensors").symlink_to(saved.base)
    return saved.folder / "link.safetensors"


def hard(saved: Saved) -> Path:
    os.link(saved.experts["ben"], saved.folder / "hard.safetensors")
    return saved.folder / "hard.safetensors"


def pipe(saved: Saved) -> Path:
    os.mkfifo(saved.folder / "pipe.safetensors")
    return saved.folder / "pipe.safetensors"


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        (lambda saved: saved.base, r"out: '.*base\.safetensors' is one of the inputs, which are never changed"),
        (lambda saved: saved.experts["ben"], r"'.*ben\.safetensors' is one of the inputs"),
        (lambda saved: saved.folder / "x" / ".." / "base.safetensors", r"is one of the inputs"),
        (link, r"'.*link\.safetensors' is one of the inputs"),
        (hard, r"'.*hard\.safetensors' is one of the inputs"),
        (pipe, r"'.*pipe\.safetensors' is no ordinary file"),
        (lambda saved: saved.folder, r"the folder '.*' is not empty; give a new one\."),
        (lambda saved: saved.folder / "nowhere" / "out.safetensors", r"there is no folder '.*nowhere'; make it first"),
        (lambda saved: saved.base / "out.safetensors", r"there is no folder '.*base\.safetensors'; make it first"),
        (lambda saved: saved.folder / "nowhere" / "out", r"there is no folder '.*nowhere'; make it first"),
        (lambda saved: saved.folder / "out.bin", r"ends in \.bin; give a name ending in \.safetensors, or a folder"),
        (lambda saved: saved.folder / "out.BIN", r"ends in \.BIN; give a name ending in \.safetensors, or a folder"),
        (lambda saved: saved.folder / "out.safetensors.bak", r"ends in \.bak; give a name"),
        (lambda saved: saved.folder / "out.gguf", r"ends in \.gguf; give a name"),
        (lambda saved: saved.folder / "out.safetensor", r"ends in \.safetensor; give a name"),
        (lambda saved: saved.folder / INDEX, r"ends in \.json; give a name"),
        (lambda saved: "/dev/null", r"out: '/dev/null' is no folder; end the name in \.safetensors"),
        (lambda saved: saved.folder / ("x" * 300 + ".safetensors"), r"cannot be written \(File name too long\)"),
        (lambda saved: "a\0b", r"is no path; give another name"),
        (lambda saved: 3, r"out is a int; give the path"),
        (lambda saved: None, r"out is a NoneType; give the path"),
    ],
)
@pytest.mark.skipif(sys.platform == "win32", reason="links, pipes and names are other there")
def test_a_place_where_nothing_may_be_written_gets_its_sentence(
    saved: Saved, out: Callable[[Saved], object], sentence: str
) -> None:
    place = out(saved)
    before = {one.name for one in saved.folder.iterdir()}
    contents = {path: path.read_bytes() for path in (saved.base, *saved.experts.values())}
    with pytest.raises(MergeError, match=sentence):
        merge_files(saved.base, saved.experts, place, progress=False)
    assert {one.name for one in saved.folder.iterdir()} == before
    assert all(path.read_bytes() == content for path, content in contents.items())


@pytest.mark.parametrize("name", ["out.SAFETENSORS", "out.SafeTensors"])
def test_an_ending_in_capitals_makes_a_file_too(saved: Saved, name: str) -> None:
    merge_files(saved.base, saved.experts, saved.folder / name, progress=False)
    assert same(load_file(saved.folder / name), merge(*saved.states).state_dict)


def test_a_folder_may_have_a_dot_in_its_name(saved: Saved) -> None:
    merge_files(saved.base, saved.experts, saved.folder / "llama-3.2", progress=False)
    assert set(open_checkpoint(saved.folder / "llama-3.2").specs) == set(saved.states[0])


def test_a_file_beside_an_input_that_was_given_as_a_folder_would_make_it_two(base, saved: Saved) -> None:
    folder = shard(base, saved.folder / "sharded", 2)
    out = folder / "out.safetensors"
    with nothing_changes(saved):
        with pytest.raises(MergeError, match=r"'.*out\.safetensors' lies in a folder that is one of the inputs, which"):
            merge_files(folder, saved.experts, out, progress=False)
        with pytest.raises(MergeError, match=r"lies in a folder that is one of the inputs"):
            merge_files(saved.base, {**saved.experts, "cy": folder}, out, progress=False)
    # Whoever gave the index knows which of the two he means; a folder within one is no part of it.
    merge_files(folder / INDEX, saved.experts, folder / "merged", progress=False)
    merge_files(folder, saved.experts, folder / "again", progress=False)
    merge_files(folder / INDEX, saved.experts, out, progress=False)


def test_a_folder_named_like_a_file_is_not_replaced(saved: Saved) -> None:
    (saved.folder / "out.safetensors").mkdir()
    with nothing_changes(saved), pytest.raises(MergeError, match=r"'.*out\.safetensors' is no ordinary file"):
        merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", progress=False)


def test_a_folder_with_another_model_is_not_mixed_with_this_one(base, experts, tmp_path: Path) -> None:
    saved = save(base, experts, tmp_path)
    shard(base, tmp_path / "out", 2)
    with nothing_changes(saved), pytest.raises(MergeError, match=r"the folder '.*out' is not empty; give a new one"):
        merge_files(saved.base, saved.experts, tmp_path / "out", progress=False)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_is_followed_and_what_it_points_to_is_replaced(saved: Saved) -> None:
    (saved.folder / "far").mkdir()
    (saved.folder / "far" / "real.safetensors").write_bytes(b"old")
    (saved.folder / "out.safetensors").symlink_to(saved.folder / "far" / "real.safetensors")
    merge_files(saved.base, saved.experts, saved.folder / "out.safetensors", progress=False)
    assert (saved.folder / "out.safetensors").is_symlink()
    assert load_file(saved.folder / "far" / "real.safetensors").keys() == saved.states[0].keys()


READ_ONLY = """
import os, sys
from apgd_teach.errors import MergeError
from apgd_teach.merging import merge_files
if os.getuid() == 0: os.setuid(65534)
base, expert, out = sys.argv[1:]
try:
    merge_files(base, {"ada": expert}, out, progress=False)
except MergeError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="rights are other there")
def test_a_folder_that_cannot_be_written_to_is_one_sentence(base, experts) -> None:
    # Not in pytest's own folder, which nobody else may enter: root can write everywhere and becomes somebody else.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        saved = save(base, experts, folder)
        for path in (saved.base, *saved.experts.values()):
            path.chmod(0o644)
        folder.chmod(0o555)
        with nothing_changes(saved):
            line = [sys.executable, "-c", READ_ONLY, str(saved.base), str(saved.experts["ada"]), str(folder / "out")]
            said = subprocess.run(line, capture_output=True, text=True, check=False).stdout
        folder.chmod(0o755)
    assert said.startswith("out: 'out' cannot be written (Permission denied); check the folder's rights")


# Bad calls


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"dtype": "int8"}, r"'int8' is no dtype to write a merge in; use one of: float32, bfloat16"),
        ({"dtype": torch.int64}, r"torch\.int64 is no dtype to write a merge in"),
        ({"dtype": "float8_e4m3fn"}, r"'float8_e4m3fn' is no dtype"),
        ({"dtype": 32}, r"32 is no dtype"),
        ({"device": "tpu"}, r"'tpu' is not a device"),
        ({"workers": 0}, r"workers is 0; give a whole number, 1 or more"),
        ({"workers": 1.5}, r"workers is 1\.5"),
        ({"workers": True}, r"workers is True"),
        ({"method": "averge"}, r"there is no method 'averge'"),
        ({"scale": 3}, r"'average' has no setting 'scale'"),
        ({"policy": {"ghost": "keep"}}, r"the policy's pattern 'ghost' matches no tensor"),
        ({"experts": {}}, r"the experts are"),
        ({"experts": ["a"]}, r"the experts are a list; give a dict of paths"),
        ({"experts": {"ada": "nowhere.safetensors"}}, r"expert 'ada': there is no file or folder 'nowhere"),
        ({"experts": {"ada": {}}}, r"expert 'ada' is a dict; give the path"),
        ({"base": "nowhere"}, r"base: there is no file or folder 'nowhere'"),
    ],
)
def test_a_bad_call_is_one_sentence_and_nothing_is_written(saved: Saved, settings, sentence: str) -> None:
    given = {"base": saved.base, "experts": saved.experts, "out": saved.folder / "out.safetensors", **settings}
    with nothing_changes(saved), pytest.raises(ApgdTeachError, match=sentence):
        merge_files(given.pop("base"), given.pop("experts"), given.pop("out"), progress=False, **given)


def test_headers_that_do_not_fit_are_found_before_a_tensor_is_read(base, experts, tmp_path: Path) -> None:
    # Its values would be an error too, and come later.
    experts["ada"]["linear.weight"] = torch.full((3, 35), float("nan"))
    saved = save(base, experts, tmp_path)
    with nothing_changes(saved), pytest.raises(MergeError, match=r"tensor 'linear\.weight' has shape \(3, 35\)"):
        merge_files(saved.base, saved.experts, tmp_path / "out", progress=False)


def test_quantised_files_are_refused(tmp_path: Path) -> None:
    state = {"w": torch.ones(2, 2).to(torch.float8_e4m3fn)}
    saved = save(state, {"a": state}, tmp_path)
    with nothing_changes(saved), pytest.raises(MergeError, match=r"float8_e4m3fn"):
        merge_files(saved.base, saved.experts, tmp_path / "out", progress=False)


# Memory


PEAK = """
import json, resource, sys
import torch
from pathlib import Path
from apgd_teach.merging import merge_files
torch.ones(300, 300) @ torch.ones(300, 300)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
folder, method, workers, settings = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4])
policy = {one: "average" for one in sys.argv[5:]}
experts = {str(place): folder / f"{place}.safetensors" for place in range(8)}
paths = folder / "base.safetensors", experts, folder / "out.safetensors"
merge_files(*paths, method, policy=policy, workers=workers, progress=False, **settings)
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    """Eight experts of two large layers and many small ones, in bfloat16: ten times what one layer takes."""
    folder = tmp_path_factory.mktemp("large")
    draws = torch.Generator().manual_seed(0)
    base = {f"layer{place}": torch.randn(4096, 4096, generator=draws).bfloat16() for place in range(2)}
    base |= {f"small{place}": torch.randn(256, 256, generator=draws).bfloat16() for place in range(40)}
    save_file(base, folder / "base.safetensors")
    for place in range(8):
        rows = {name: 0.05 * torch.randn(one.shape[1], generator=draws) for name, one in base.items()}
        save_file({name: (one + rows[name]).bfloat16() for name, one in base.items()}, folder / f"{place}.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in other units elsewhere")
@pytest.mark.parametrize(
    ("method", "workers"), [("average", 1), ("average", 2), ("task_arithmetic", 1), ("ties", 1), ("dare", 1)]
)
def test_memory_stays_within_a_few_layers(large: Path, method: str, workers: int) -> None:
    line = [sys.executable, "-c", PEAK, str(large), method, str(workers), "{}"]
    peak = int(subprocess.run(line, capture_output=True, text=True, check=True).stdout)
    layer = 4 * 4096 * 4096
    # All tensors of all files as float32 would be twice the bound for one worker.
    assert peak <= workers * (8 + 5) * layer + 0.3e9, f"{peak / layer:.1f} layers"


@pytest.fixture(scope="module")
def square(tmp_path_factory) -> Path:
    """Eight experts of one layer to solve and a dozen of its size beside it, in bfloat16."""
    folder = tmp_path_factory.mktemp("square")
    draws = torch.Generator().manual_seed(0)
    names = ["layer", *(f"beside{place}" for place in range(12))]
    base = {name: torch.randn(1600, 1600, generator=draws).bfloat16() for name in names}
    save_file(base, folder / "base.safetensors")
    for place in range(8):
        moved = {name: one + 0.01 * torch.randn(one.shape, generator=draws) for name, one in base.items()}
        save_file({name: one.bfloat16() for name, one in moved.items()}, folder / f"{place}.safetensors")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is counted in other units elsewhere")
@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("apgd", {}),
        ("apgd", {"protect": "auto", "flatten": 0.5}),
        ("apgd", {"granularity": "row", "protect": 1 / 6, "flatten": 0.0, "trim": 0.3}),
        ("apgd_published", {"steps": 12}),
        ("wudi", {}),
        ("tsv_m", {}),
        ("iso_c", {}),
    ],
)
def test_methods_that_solve_stay_within_a_few_more_layers(square: Path, method: str, settings: dict) -> None:
    line = [sys.executable, "-c", PEAK, str(square), method, "1", json.dumps(settings), "beside*"]
    # What is held, without the pieces that the C library keeps: those are other ones at each run.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "4000000"}
    peak = int(subprocess.run(line, capture_output=True, text=True, check=True, env=environment).stdout)
    layer = 4 * 1600 * 1600
    # All tensors of all files as they are stored would be 58 layers; T + 5 layers and 0.3 GB are 42 of this size.
    assert peak <= (8 + 16) * layer, f"{peak / layer:.1f} layers"
