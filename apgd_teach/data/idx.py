"""IDX, the format of MNIST: four bytes of magic, one big-endian length per axis, then the bytes themselves."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from math import prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apgd_teach.errors import DataError

__all__ = ["decode_idx", "encode_idx", "read_file", "unpack"]

Bytes = NDArray[np.uint8]

# The largest official file is 47 MB. More than this is not what it says it is, and could fill the memory.
_MOST_BYTES = 128 * 2**20


def encode_idx(array: Bytes) -> bytes:
    """`array` (any axes, at least one) of unsigned bytes as an IDX file.

    Raises:
        ValueError: another type than uint8, or no axis.
    """
    if array.dtype != np.uint8 or not 1 <= array.ndim <= 255:
        raise ValueError(f"IDX here holds uint8 with at least one axis, not {array.dtype} with {array.ndim}")
    lengths = np.array(array.shape, dtype=">u4").tobytes()
    return bytes((0, 0, 8, array.ndim)) + lengths + array.tobytes()


def decode_idx(content: bytes, where: str) -> Bytes:
    """The array in an IDX file, read-only: (image, row, column) for pictures, (image,) for labels.

    Args:
        content: the whole file, decompressed.
        where: the file's name, for the sentence of an error.

    Raises:
        DataError: not IDX, not of unsigned bytes, or shorter or longer than its own header says.
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08" or content[3] == 0:
        raise DataError(f"{where} is not an IDX file of unsigned bytes; put the original file there.")
    axes = content[3]
    start = 4 + 4 * axes
    if len(content) < start:
        raise DataError(f"{where} ends within its header; put a complete copy there.")
    shape = tuple(int(length) for length in np.frombuffer(content, dtype=">u4", count=axes, offset=4))
    if len(content) - start != prod(shape):
        raise DataError(
            f"{where} holds {len(content) - start:,} bytes where its header says {prod(shape):,}; "
            "put a complete copy there."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def read_file(path: Path, remedy: str) -> bytes:
    """The bytes of `path`.

    Args:
        path: what to read.
        remedy: what the user should do when it cannot be read, as the end of a sentence.

    Raises:
        DataError: it is not there, or the system refuses to read it.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"The file '{path}' is missing; {remedy}.") from None
    except OSError as error:
        raise DataError(f"The file '{path}' cannot be read ({error.strerror or error}); {remedy}.") from error


def unpack(packed: bytes, path: Path, remedy: str) -> bytes:
    """The content of a .gz or .xz file, or `packed` itself under any other name.

    Raises:
        DataError: the archive is cut short or damaged, or unpacks to more than any file of this course holds.
    """
    try:
        if path.suffix == ".gz":
            content = _unpack_gzip(packed)
        elif path.suffix == ".xz":
            content = _unpack_xz(packed)
        else:
            return packed
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"The archive '{path}' is cut short or damaged ({error}); {remedy}.") from error
    if len(content) > _MOST_BYTES:
        raise DataError(
            f"The archive '{path}' unpacks to more than {_MOST_BYTES // 2**20} MiB, which no file here does; {remedy}."
        )
    return content


def _unpack_gzip(packed: bytes) -> bytes:
    with gzip.GzipFile(fileobj=io.BytesIO(packed)) as stream:
        return stream.read(_MOST_BYTES + 1)


def _unpack_xz(packed: bytes) -> bytes:
    unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_XZ)
    content = unpacker.decompress(packed, max_length=_MOST_BYTES + 1)
    if not unpacker.eof and len(content) <= _MOST_BYTES:
        raise EOFError("the end is missing")
    return content
