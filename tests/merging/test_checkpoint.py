from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save, save_file

from apgd_teach.errors import MergeError
from apgd_teach.merging import merge_files, open_checkpoint
from apgd_teach.merging.checkpoint import DTYPES, Spec

INDEX = "model.safetensors.index.json"


def write(path: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    """A safetensors file made by hand, so that it can be wrong in one place."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(*offsets: int, shape: object = (2,), dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.fixture
def shards(base, tmp_path: Path) -> Path:
    """The base in two shards and an index, as a folder."""
    folder = tmp_path / "sharded"
    folder.mkdir()
    names = list(base)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: base[name] for name in own}, folder / file, metadata={"format": "pt"})
    places = {name: file for file, own in parts.items() for name in own}
    index = {"metadata": {"total_size": 1}, "weight_map": {name: places[name] for name in names}}
    (folder / INDEX).write_text(json.dumps(index))
    return folder


def change(shards: Path, edit: Callable[[dict[str, str]], object]) -> Path:
    index = json.loads((shards / INDEX).read_text())
    edit(index["weight_map"])
    (shards / INDEX).write_text(json.dumps(index))
    return shards


# What is read


def every_dtype() -> dict[str, torch.Tensor]:
    draws = torch.Generator().manual_seed(0)
    bits = torch.randint(0, 2, (3, 16), dtype=torch.uint8, generator=draws)
    return {name: bits.clone().view(kind) if kind != torch.bool else bits.bool() for name, kind in DTYPES.items()}


def test_every_dtype_arrives_with_its_bits(tmp_path: Path) -> None:
    state = every_dtype()
    save_file(state, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    assert set(opened.specs) == set(state)
    for name, tensor in state.items():
        assert opened.specs[name] == Spec(tuple(tensor.shape), tensor.dtype)
        read = opened.read(name)
        assert read.dtype == tensor.dtype
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8))


def test_scalars_empty_tensors_and_names_in_any_script_are_read(tmp_path: Path) -> None:
    state = {"ein.größer": torch.tensor(2.5), "leer": torch.zeros(0, 3), "層 1": torch.ones(2, 1, 2)}
    save_file(state, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    assert all(torch.equal(opened.read(name), one) for name, one in state.items())
    assert opened.read("ein.größer").shape == ()


def test_what_is_read_can_be_written_to_and_the_file_stays(base, tmp_path: Path) -> None:
    save_file(base, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    opened.read("gain").zero_()
    assert torch.equal(opened.read("gain"), base["gain"])


def test_a_folder_of_one_file_and_a_folder_of_shards_and_its_index_are_the_same_network(base, shards, tmp_path) -> None:
    (tmp_path / "one").mkdir()
    save_file(base, tmp_path / "one" / "model.safetensors")
    (tmp_path / "one" / "config.json").write_text("{}")
    for path in (tmp_path / "one", tmp_path / "one" / "model.safetensors", shards, shards / INDEX, str(shards)):
        opened = open_checkpoint(path)
        assert set(opened.specs) == set(base)
        assert all(torch.equal(opened.read(name), one) for name, one in base.items())
    assert list(opened.specs) == list(base)
    assert opened.layout.keys() == {"model-1.safetensors", "model-2.safetensors"}


def test_an_ending_in_capitals_is_the_same_ending(base, shards, tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    save_file(base, tmp_path / "one" / "MODEL.SAFETENSORS")
    assert set(open_checkpoint(tmp_path / "one").specs) == set(base)
    for place in (1, 2):
        (shards / f"model-{place}.safetensors").rename(shards / f"model-{place}.Safetensors")
    places = json.loads((shards / INDEX).read_text().replace(".safetensors", ".Safetensors"))
    (shards / INDEX).unlink()
    (shards / INDEX.upper()).write_text(json.dumps(places))
    assert set(open_checkpoint(shards).specs) == set(open_checkpoint(shards / INDEX.upper()).specs) == set(base)
    save_file(base, shards / "other.SAFETENSORS")
    with pytest.raises(MergeError, match="holds several checkpoints"):
        open_checkpoint(shards)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_links_into_another_folder_are_followed_as_a_download_cache_has_them(base, shards, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for place, file in enumerate(sorted(shards.iterdir())):
        (snapshot / file.name).symlink_to(file.rename(tmp_path / f"blob{place}"))
    opened = open_checkpoint(snapshot)
    assert all(torch.equal(opened.read(name), one) for name, one in base.items())


def test_tied_tensors_of_which_the_file_has_one_are_one_tensor(tmp_path: Path) -> None:
    save_file({"embedding.weight": torch.ones(3, 2)}, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    assert list(opened.specs) == ["embedding.weight"]
    assert opened.ties == ()


def test_many_threads_read_the_same_as_one(tmp_path: Path) -> None:
    state = {f"{number}": torch.full((100, 100), float(number)) for number in range(20)}
    save_file(state, tmp_path / "m.safetensors")
    opened = open_checkpoint(tmp_path / "m.safetensors")
    with ThreadPoolExecutor(8) as threads:
        read = list(threads.map(opened.read, [*state] * 10))
    assert all(torch.equal(one, state[name]) for one, name in zip(read, [*state] * 10, strict=True))


def test_the_digest_is_what_sha256sum_prints_and_for_shards_of_all_in_a_row(base, shards, tmp_path: Path) -> None:
    save_file(base, tmp_path / "m.safetensors")
    raw = (tmp_path / "m.safetensors").read_bytes()
    assert open_checkpoint(tmp_path / "m.safetensors").digest() == hashlib.sha256(raw).hexdigest()
    parts = (shards / "model-1.safetensors").read_bytes() + (shards / "model-2.safetensors").read_bytes()
    assert open_checkpoint(shards).digest() == hashlib.sha256(parts).hexdigest()


def test_opening_reads_headers_only(tmp_path: Path) -> None:
    # Eight terabytes that are not there: whoever read a tensor would not return.
    size = 8_000_000_000_000
    path = write(tmp_path / "m.safetensors", {"w": entry(0, size, shape=(size // 4,))})
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("no sparse files of this size here")
    assert open_checkpoint(path).specs["w"].size == size // 4


def test_a_file_that_changes_between_header_and_reading_is_refused(base, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file(base, path)
    opened = open_checkpoint(path, "expert 'ada'")
    save_file({**base, "gain": torch.tensor(9.0)}, path)
    os.utime(path, (1, 1))
    for act in (opened.digest, lambda: opened.read("gain")):
        with pytest.raises(MergeError, match=r"expert 'ada': '.*m\.safetensors' has changed since .*; start again\."):
            act()


# What is refused


def good(path: Path) -> bytes:
    save_file({"w": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}, path)
    return path.read_bytes()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.999])
def test_a_file_that_is_cut_off_anywhere_is_refused_when_it_is_opened(tmp_path: Path, share: float) -> None:
    path = tmp_path / "m.safetensors"
    raw = good(path)
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(MergeError, match=r"base: '.*m\.safetensors' is (cut off.* again|no safetensors file.*)\."):
        open_checkpoint(path, "base")


def test_there_is_no_length_at_which_a_file_that_is_cut_off_passes(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    raw = good(path)
    for size in range(len(raw)):
        path.write_bytes(raw[:size])
        with pytest.raises(MergeError):
            open_checkpoint(path)


@pytest.mark.parametrize(
    ("raw", "sentence"),
    [
        (b"", r"is empty; download"),
        (b"\x00" * 100, r"is no safetensors file; download"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", r"is a web page; what was downloaded is not the file"),
        (b"\n  <html><body>404</body></html>", r"is a web page"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            r"is a Git LFS pointer and not the file that it stands for; run `git lfs pull`",
        ),
        (b"PK\x03\x04" + b"\x00" * 60, r"is a PyTorch pickle under another name; load it with torch\.load"),
        (b"GGUF\x03\x00\x00\x00" + b"\x00" * 60, r"is a GGUF file, whose weights are quantised"),
        ((1 << 62).to_bytes(8, "little") + b"{}", r"is no safetensors file"),
        ((200_000_000).to_bytes(8, "little") + b"{}", r"is no safetensors file"),
        ((1000).to_bytes(8, "little") + b'{"w"', r"is cut off within its header, at 12 bytes"),
    ],
)
def test_what_is_something_else_is_called_by_its_name(tmp_path: Path, raw: bytes, sentence: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw)
    with pytest.raises(MergeError, match=rf"base: '.*m\.safetensors' {sentence}"):
        open_checkpoint(path, "base")


def test_a_header_as_long_as_a_sign_is_no_web_page(tmp_path: Path) -> None:
    # Its first byte is the number 60, which is the sign "<".
    header = json.dumps({"w": entry(0, 8)}).encode().ljust(60 + 256)
    assert len(header).to_bytes(8, "little").startswith(b"<")
    assert list(open_checkpoint(write(tmp_path / "m.safetensors", header, bytes(8))).specs) == ["w"]


def test_a_pickle_that_torch_saved_under_the_name_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "m.safetensors")
    with pytest.raises(MergeError, match=r"is a PyTorch pickle under another name"):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".PT"])
def test_a_pickle_is_not_loaded_and_how_to_convert_it_is_said(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    torch.save({"w": torch.ones(2)}, path)
    with pytest.raises(MergeError, match=r"weights_only=True\) and save its state dict with safetensors\.torch\.save"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("header", "sentence"),
    [
        (b"{not json at all..}", r"has a damaged header \(no JSON object\)"),
        (b'{"w\xff": 1}', r"has a damaged header \(no JSON object\)"),
        (b'{"a":' * 100_000, r"has a damaged header \(no JSON object\)"),
        ({"w": 3}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": {"dtype": "F32", "shape": [2]}}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=[-2])}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=[True, 2])}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=[2.0])}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=2)}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(8, 0)}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, 16)}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=[3])}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, shape=[1 << 70])}, r"has a damaged header \(tensor 'w'\)"),
        ({"w": entry(0, 8, dtype="F4")}, r"has tensor 'w' of dtype F4, which cannot be merged; take the checkpoint"),
        ({"w": entry(0, 8, shape=[1], dtype="C64")}, r"has tensor 'w' of dtype C64, which cannot be merged"),
        ({"w": entry(0, 8), "v": entry(4, 12)}, r"has a damaged header \(tensor 'v' begins at byte 4 of the data"),
        ({"w": entry(0, 8), "v": entry(0, 8)}, r"has a damaged header \(tensor '[vw]' begins at byte 0 of the data"),
        ({"w": entry(0, 8), "v": entry(12, 20)}, r"has a damaged header \(tensor 'v' begins at byte 12"),
        ({"w": entry(4, 12)}, r"has a damaged header \(tensor 'w' begins at byte 4"),
        ({"w": entry(0, 8), "v": entry(8, 16), "u": entry(16, 24)}, r"is cut off: it has [\d,]+ bytes and its header"),
        ({"w": entry(0, 4, shape=[1])}, r"has something behind its last tensor: it has"),
        ({"w": entry(0, 8), "\ud800": entry(8, 8, shape=[0])}, r"has a damaged header \(half a character"),
        ({"__metadata__": {"a": "\udfff"}, "w": entry(0, 8)}, r"has a damaged header \(half a character"),
        ({"__metadata__": {"\ud800": "a"}, "w": entry(0, 8)}, r"has a damaged header \(half a character"),
        ({"w": entry(0, 8, dtype="\ud800")}, r"has a damaged header \(half a character"),
        (b'{"\\ud800":1,"\\ud800":1}', r"has '\\ud800' twice in its header"),
        (
            {"w": entry(0, 0, shape=[0, 2**63])},
            r"has tensor 'w' of a shape that PyTorch cannot .* \(2 axes, the longest 9",
        ),
        ({"w": entry(0, 0, shape=[0, 2**62, 2**62])}, r"has tensor 'w' of a shape that PyTorch cannot"),
        ({"w": entry(0, 4, shape=[1] * 72)}, r"has tensor 'w' of a shape that PyTorch cannot work with \(72 axes"),
        ({"__metadata__": {"a": 1}, "w": entry(0, 8)}, r"has a damaged header \(metadata that is no text\)"),
        ({"__metadata__": [], "w": entry(0, 8)}, r"has a damaged header \(metadata that is no text\)"),
        (
            b'{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"w":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
            r"has 'w' twice in its header",
        ),
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, header: object, sentence: str) -> None:
    path = write(tmp_path / "m.safetensors", header, bytes(16 if "v" in str(header) else 8))
    with pytest.raises(MergeError, match=rf"base: '.*m\.safetensors' {sentence}"):
        open_checkpoint(path, "base")


def test_the_sentence_about_half_a_character_can_be_printed(tmp_path: Path) -> None:
    for header in ({"\ud800": entry(0, 8)}, b'{"\\ud800":1,"\\ud800":1}'):
        with pytest.raises(MergeError) as refused:
            open_checkpoint(write(tmp_path / "m.safetensors", header, bytes(8)))
        assert str(refused.value).encode()


def test_whole_characters_may_be_written_as_two_halves(tmp_path: Path) -> None:
    # "😀", as JSON writers that keep to ASCII have it.
    path = write(tmp_path / "m.safetensors", {"\N{GRINNING FACE}": entry(0, 8)}, bytes(8))
    assert b"\\ud83d\\ude00" in path.read_bytes()
    assert list(open_checkpoint(path).specs) == ["\N{GRINNING FACE}"]


@pytest.mark.parametrize("shape", [[1] * 63, [0, 2**47]])
def test_a_shape_at_the_limit_can_be_merged(tmp_path: Path, shape: list[int]) -> None:
    size = 4 * math.prod(shape)
    path = write(tmp_path / "m.safetensors", {"w": entry(0, size, shape=shape)}, bytes(size))
    merge_files(path, {"a": path, "b": path}, tmp_path / "out.safetensors", progress=False)
    assert open_checkpoint(tmp_path / "out.safetensors").read("w").shape == torch.Size(shape)


def test_whatever_is_accepted_the_library_accepts_too(tmp_path: Path) -> None:
    # Every change of one byte of a file: none may pass here that the library refuses, or be read as other numbers.
    path = tmp_path / "m.safetensors"
    raw = good(path)
    passed = 0
    for place in range(len(raw) - 32):
        for flip in (0x01, 0x20):
            path.write_bytes(raw[:place] + bytes([raw[place] ^ flip]) + raw[place + 1 :])
            try:
                opened = open_checkpoint(path)
            except MergeError:
                continue
            theirs = load_file(path)
            assert all(torch.equal(opened.read(name), one) for name, one in theirs.items())
            passed += 1
    assert passed > 0


def test_what_is_not_there_or_not_one_checkpoint_is_one_sentence(base, tmp_path: Path) -> None:
    with pytest.raises(MergeError, match=r"base: there is no file or folder '.*nowhere'; check the path\."):
        open_checkpoint(tmp_path / "nowhere", "base")
    with pytest.raises(MergeError, match=r"base: the folder '.*' holds no \.safetensors file; check the path\."):
        open_checkpoint(tmp_path, "base")
    torch.save(base, tmp_path / "pytorch_model.bin")
    with pytest.raises(MergeError, match=r"holds no \.safetensors file; 'pytorch_model\.bin' is a pickle: load it"):
        open_checkpoint(tmp_path, "base")
    for name in ("a", "b"):
        save_file(base, tmp_path / f"{name}.safetensors")
    with pytest.raises(MergeError, match=r"holds several checkpoints \('a\.safetensors', 'b\.safetensors'\); give the"):
        open_checkpoint(tmp_path, "base")
    with pytest.raises(MergeError, match=r"base is a dict; give the path"):
        open_checkpoint(base, "base")
    with pytest.raises(MergeError, match=r"there is no file or folder"):
        open_checkpoint("a\0b")


def test_a_folder_with_shards_and_another_whole_file_is_ambiguous(base, shards) -> None:
    save_file(base, shards / "model.safetensors")
    with pytest.raises(MergeError, match=r"holds several checkpoints \('model\.safetensors\.index\.json', 'model\.saf"):
        open_checkpoint(shards)
    assert open_checkpoint(shards / INDEX).index is not None
    assert open_checkpoint(shards / "model.safetensors").index is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "m.safetensors")
    with pytest.raises(MergeError, match=r"is no ordinary file"):
        open_checkpoint(tmp_path / "m.safetensors")


@pytest.mark.skipif(sys.platform == "win32", reason="rights are other there")
def test_a_file_without_the_right_to_read_it_is_one_sentence() -> None:
    script = (
        "import os, sys\n"
        "from apgd_teach.errors import MergeError\n"
        "from apgd_teach.merging import merge_files, open_checkpoint\n"
        "if os.getuid() == 0: os.setuid(65534)\n"  # root may read everything
        "try: open_checkpoint(sys.argv[1], 'base')\n"
        "except MergeError as error: print(error)\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        path = Path(folder, "m.safetensors")
        good(path)
        path.chmod(0)
        run = [sys.executable, "-c", script, str(path)]
        said = subprocess.run(run, capture_output=True, text=True, check=False).stdout
    assert "m.safetensors' cannot be read (Permission denied); check its rights." in said


# Indices


@pytest.mark.parametrize(
    "name",
    [
        "../secret.safetensors",
        "/etc/secret.safetensors",
        "sub/secret.safetensors",
        "..\\secret.safetensors",
        "C:secret.safetensors",
        "C:\\secret.safetensors",
        "..",
        ".",
        "",
        "a\0b.safetensors",
        "passwd",
    ],
)
def test_an_index_cannot_reach_out_of_its_folder(base, shards, name: str) -> None:
    save_file(base, shards.parent / "secret.safetensors")
    change(shards, lambda places: places.update(gain=name))
    for path in (shards, shards / INDEX):
        with pytest.raises(MergeError, match=r"names the file .*, which is no \.safetensors file of its own folder"):
            open_checkpoint(path, "base")


def test_an_index_and_shards_that_disagree_are_refused(base, shards) -> None:
    (shards / "model-2.safetensors").rename(shards / "hidden")
    with pytest.raises(MergeError, match=r"index\.json' names the file 'model-2\.safetensors', which is missing"):
        open_checkpoint(shards)
    (shards / "hidden").rename(shards / "model-2.safetensors")
    change(shards, lambda places: places.update(ghost="model-1.safetensors"))
    with pytest.raises(MergeError, match=r"says that 'model-1\.safetensors' holds tensor 'ghost', and it does not"):
        open_checkpoint(shards)
    change(shards, lambda places: (places.pop("ghost"), places.pop("gain")))
    with pytest.raises(MergeError, match=r"holds a tensor 'gain' that '.*index\.json' does not say is there"):
        open_checkpoint(shards)


def test_a_tensor_that_two_shards_hold_is_refused(base, shards) -> None:
    shard = shards / "model-2.safetensors"
    save_file({**load_file(shard), "gain": torch.tensor(9.0)}, shard)
    with pytest.raises(MergeError, match=r"'model-[12]\.safetensors' holds a tensor 'gain' that"):
        open_checkpoint(shards)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"has a damaged index \(no JSON object\)"),
        (b"[]", r"has a damaged index \(no JSON object\)"),
        (b"{}", r"is no index of shards: its weight_map is missing or empty"),
        (b'{"weight_map": {}}', r"is no index of shards"),
        (b'{"weight_map": ["a"]}', r"is no index of shards"),
        (b'{"weight_map": {"a": 3}}', r"is no index of shards"),
        (
            b'{"weight_map": {"a": "x.safetensors"}, "metadata": {"a": ["\\ud800"]}}',
            r"a damaged index \(half a character",
        ),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', r"has 'a' twice in its index"),
    ],
)
def test_an_index_that_is_none_is_one_sentence(shards, content: bytes, sentence: str) -> None:
    (shards / INDEX).write_bytes(content)
    with pytest.raises(MergeError, match=sentence):
        open_checkpoint(shards, "base")


def test_a_damaged_shard_is_named(shards) -> None:
    shard = shards / "model-2.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(MergeError, match=r"base: '.*model-2\.safetensors' is cut off"):
        open_checkpoint(shards, "base")


def test_what_the_library_writes_in_bytes_is_read_from_bytes(base, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(save(base, metadata={"format": "pt", "of": "us"}))
    opened = open_checkpoint(tmp_path / "m.safetensors")
    assert opened.metadata == {"m.safetensors": {"format": "pt", "of": "us"}}


def test_a_copy_on_another_machine_is_known_by_its_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker elsewhere has the same file with times and a number of its own, and stands in another folder."""
    there = tmp_path / "there"
    there.mkdir()
    save_file({"a": torch.arange(6.0)}, there / "model.safetensors")
    monkeypatch.chdir(there)
    packed = pickle.dumps(open_checkpoint("model.safetensors"))
    monkeypatch.chdir(tmp_path)
    content = (there / "model.safetensors").read_bytes()
    (there / "model.safetensors").unlink()
    (there / "model.safetensors").write_bytes(content)
    with pytest.raises(MergeError, match="has changed since the merge began"):
        pickle.loads(packed).read("a")
    monkeypatch.setattr(platform, "node", lambda: "another machine")
    assert torch.equal(pickle.loads(packed).read("a"), torch.arange(6.0))
    (there / "model.safetensors").write_bytes(content + b" ")
    with pytest.raises(MergeError, match="has changed since the merge began"):
        pickle.loads(packed).read("a")
