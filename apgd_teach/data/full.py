"""The full tier: torchvision's MNIST and Fashion-MNIST, fetched once, or read from a folder that is named.

torchvision's classes know the addresses, names and MD5 of the archives, and read the files in the end. The fetching is
done here, because a course needs what torchvision's does not give: going on after a broken connection, a limit on the
time, files that are whole or absent, and a sentence instead of a traceback.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apgd_teach.data.families import FAMILIES, IdxFamily
from apgd_teach.data.fetch import Budget, Failed, Unavailable, fetch, writing
from apgd_teach.data.idx import decode_idx, read_file, unpack
from apgd_teach.errors import DataError
from apgd_teach.files import own_folder, write_atomically

__all__ = ["NotHere", "default_folder", "download", "read_downloaded", "read_folder"]

Files = tuple[dict[str, NDArray[np.uint8]], dict[str, str]]

_SHORT_NAMES = {
    "train-images-idx3-ubyte": "train_images",
    "train-labels-idx1-ubyte": "train_labels",
    "t10k-images-idx3-ubyte": "test_images",
    "t10k-labels-idx1-ubyte": "test_labels",
}


def _unpacked(packed: bytes, path: Path) -> bytes:
    return unpack(packed, path, "")


class NotHere(DataError):
    """A folder that was named holds nothing of a family."""


def default_folder() -> Path:
    """Where the full tier is kept once it was fetched: `data` beside the trained networks."""
    return own_folder() / "data"


def download(families: Sequence[IdxFamily], root: Path, *, mirror: str | None, budget_s: float, progress: bool) -> None:
    """Bring the files of `families` into `root`, as torchvision lays them out; those that are there stay.

    A file appears only when it is whole and has the right hash. An archive on its way is `<name>.gz.part`; after a
    break or a full disk it stays, and the next call goes on from its end.

    Args:
        families: what to fetch.
        root: torchvision's root; made if need be.
        mirror: None for torchvision's addresses, or another as `valid_mirror` returns it.
        budget_s: seconds for everything together.
        progress: show a bar of text per file.

    Raises:
        Unavailable: the time is over, or torchvision's addresses cannot be reached or give other files.
        DataError: the mirror that was named cannot be reached or gives other files; the disk refuses.
    """
    budget = Budget(budget_s)
    for family in families:
        folder = root / family.dataset.__name__ / "raw"
        for archive, md5 in family.dataset.resources:
            target = folder / archive.removesuffix(".gz")
            digest = family.content[target.name]
            if os.path.isfile(target) and hashlib.sha256(read_file(target, "make it readable")).hexdigest() == digest:
                continue
            with writing(folder):
                folder.mkdir(parents=True, exist_ok=True)
            if mirror is None:
                addresses = [address + archive for address in family.dataset.mirrors]
            else:
                kind = family.dataset.__name__
                places = [f"{mirror}{inner}/" for inner in (f"{kind}/raw", kind, family.slug)]
                addresses = [place + name for place in places for name in (archive, target.name)]
            try:
                content = fetch(
                    addresses, folder, md5=md5, sha256=digest, budget=budget, progress=progress, unpacked=_unpacked
                )
            except Failed as failure:
                if mirror is not None:
                    raise DataError(
                        f"The mirror '{mirror}' does not give '{archive}' of {family.title} ({failure}); "
                        "name another, or none for torchvision's address."
                    ) from failure
                raise Unavailable(f"the network does not give '{archive}' of {family.title} ({failure})") from failure
            with writing(target):
                write_atomically(target, content)
                for part in (folder / f"{archive}.part", folder / f"{target.name}.part"):
                    part.unlink(missing_ok=True)


def read_downloaded(root: Path, family: IdxFamily) -> Files:
    """One family from `root`, after `download` has put it there, read by torchvision's own class.

    Raises:
        DataError: files of an old torchvision lie there too, which its class would prefer.
    """
    old = root / family.dataset.__name__ / "processed"
    if old.exists():
        raise DataError(f"'{old}' is left from an old torchvision and would be read unchecked; remove that folder.")
    arrays = {}
    for split, train in (("train", True), ("test", False)):
        dataset = family.dataset(root, train=train, download=False)
        arrays[f"{split}_images"] = dataset.data.numpy()
        arrays[f"{split}_labels"] = dataset.targets.numpy().astype(np.uint8)
    return arrays, dict(family.content)


def read_folder(root: Path, family: IdxFamily, families: Mapping[str, IdxFamily] = FAMILIES) -> Files:
    """One family from a folder that the user named; nothing is written.

    Args:
        root: holds the four official files, .gz or unpacked, itself or in `<Class>/raw`, `<Class>` or `<slug>`.
        family: which one.
        families: all there are, to recognise the files of another one.

    Raises:
        NotHere: no file of the family is there.
        DataError: no such folder; one of the four files is missing, damaged or has other content.
    """
    if not os.path.isdir(root):
        raise DataError(
            f"There is no folder '{root}' that can be read; name the one that holds {family.title}'s four IDX files."
        )
    kind = family.dataset.__name__
    remedy = f"put the original files of {family.title} there"
    for place in (root / kind / "raw", root / kind, root / family.slug, root):
        there = [name for name in _SHORT_NAMES if _one_of(place, name)]
        if not there:
            continue
        arrays, hashes = {}, {}
        for name, short in _SHORT_NAMES.items():
            path = _one_of(place, name)
            if path is None:
                raise DataError(f"The file '{place / name}' (or .gz) is missing; {remedy}.")
            content = unpack(read_file(path, remedy), path, remedy)
            arrays[short] = decode_idx(content, f"The file '{path}'")
            hashes[name] = hashlib.sha256(content).hexdigest()
            if hashes[name] != family.content[name]:
                if place == root and any(hashes[name] == other.content[name] for other in families.values()):
                    break
                raise DataError(f"The file '{path}' is not {family.title}'s: it has another SHA-256; {remedy}.")
        else:
            return arrays, hashes
    raise NotHere(
        f"The folder '{root}' holds no {family.title}: put its four IDX files into '{kind}' there, or name another."
    )


def _one_of(place: Path, name: str) -> Path | None:
    return next((path for path in (place / name, place / f"{name}.gz") if os.path.isfile(path)), None)
