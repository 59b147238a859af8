from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apgd_teach.data.idx import decode_idx, encode_idx, read_file, unpack
from apgd_teach.errors import DataError
from apgd_teach.files import write_atomically

shapes = st.lists(st.integers(0, 6), min_size=1, max_size=4).map(tuple)


@given(shape=shapes, seed=st.integers(0, 2**32 - 1))
def test_what_was_encoded_is_decoded(shape: tuple[int, ...], seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, size=shape, dtype=np.uint8)
    decoded = decode_idx(encode_idx(array), "it")
    assert decoded.shape == shape
    assert np.array_equal(decoded, array)


@given(content=st.binary(max_size=64))
def test_any_bytes_are_an_idx_file_or_one_sentence(content: bytes) -> None:
    try:
        array = decode_idx(content, "The file 'x'")
    except DataError as error:
        sentence = str(error)
    else:
        sentence = "The file 'x' is well."
        assert encode_idx(array) == content
    assert sentence.startswith("The file 'x' ")
    assert sentence.endswith(".")


@given(cut=st.integers(1, 20))
def test_a_file_that_is_cut_short_is_refused(cut: int) -> None:
    whole = encode_idx(np.ones((3, 4), np.uint8))
    with pytest.raises(DataError, match=r"complete copy|not an IDX"):
        decode_idx(whole[:-cut], "The file 'x'")


def test_other_types_are_not_encoded() -> None:
    with pytest.raises(ValueError, match="float64"):
        encode_idx(np.zeros(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(("suffix", "pack"), [("gz", gzip.compress), ("xz", lzma.compress)])
def test_an_archive_is_unpacked_or_refused_when_cut_or_bent(suffix: str, pack) -> None:
    content = bytes(range(256)) * 40
    packed, path = pack(content), Path(f"a.{suffix}")
    assert unpack(packed, path, "do this") == content
    bent = packed[:30] + bytes([packed[30] ^ 255]) + packed[31:]
    for wrong in (packed[:-9], packed[:40], bent, b"nonsense", b""):
        if suffix == "gz" and wrong == b"":
            continue  # gzip's format allows a file of no members
        with pytest.raises(DataError, match=r"cut short or damaged .*; do this\."):
            unpack(wrong, path, "do this")


def test_an_archive_that_would_fill_the_memory_is_refused() -> None:
    bomb = gzip.compress(bytes(2**20) * 130, compresslevel=1)
    with pytest.raises(DataError, match="more than 128 MiB"):
        unpack(bomb, Path("bomb.gz"), "do this")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"'.*nowhere' is missing; look elsewhere\."):
        read_file(tmp_path / "nowhere", "look elsewhere")
    with pytest.raises(DataError, match=r"cannot be read \(.+\); look elsewhere\."):
        read_file(tmp_path, "look elsewhere")


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_atomically(target, b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
