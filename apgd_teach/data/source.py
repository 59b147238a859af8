"""Where pictures come from: the bundled tier, the full tier, and what is handed out of them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from apgd_teach.data.bundled import read_bundled
from apgd_teach.data.families import FAMILIES, Family, IdxFamily
from apgd_teach.data.fetch import Unavailable, valid_budget, valid_mirror
from apgd_teach.data.full import NotHere, default_folder, download, read_downloaded, read_folder
from apgd_teach.data.tasks import ALL_TASKS, Task, Variant, as_task, task_names, unknown
from apgd_teach.errors import DataError
from apgd_teach.files import named_folder
from apgd_teach.guard import refuse_data

__all__ = ["FamilyData", "Source", "Split", "TaskData", "load_task", "open_source"]

TIERS = ("bundled", "full")


@dataclass(frozen=True, eq=False)
class FamilyData:
    """A family's pictures as its authors published them (lesson 01).

    `train_images` and `test_images` are (image, row=28, column=28) uint8, 0 the background, or, in colour, (image,
    row=32, column=32, channel=3); `train_labels` and `test_labels` are (image,) uint8. `sha256` is over the names and
    contents of the files that it was read from.
    """

    family: Family
    train_images: NDArray[np.uint8]
    train_labels: NDArray[np.uint8]
    test_images: NDArray[np.uint8]
    test_labels: NDArray[np.uint8]
    sha256: str

    def part(self, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Images and labels of "train", "validation" (the last tenth of the training file) or "test"."""
        if split == "test":
            return self.test_images, self.test_labels
        border = len(self.train_images) - len(self.train_images) // 10
        chosen = slice(None, border) if split == "train" else slice(border, None)
        return self.train_images[chosen], self.train_labels[chosen]


@dataclass(frozen=True, eq=False)
class Split:
    """The pictures of one task for one purpose (lesson 01).

    Asking for `images` or `labels` while a merge runs raises `DataAccessError` (lesson 02).
    """

    task: str
    name: str
    _images: Tensor = field(repr=False)
    _labels: Tensor = field(repr=False)
    places: Tensor = field(repr=False)
    """(image,) int64: which picture of the family's split each is, counted from 0. Two tasks of a family may show the
    same pictures, or only some of them."""

    @property
    def images(self) -> Tensor:
        """(image, channel, row, column) float32 in [0, 1]; a picture is (1, 28, 28), or (3, 32, 32) in colour."""
        refuse_data(f"the images of {self.task}, {self.name}")
        return self._images

    @property
    def labels(self) -> Tensor:
        """(image,) int64: the number of the class of each image, counted from 0."""
        refuse_data(f"the labels of {self.task}, {self.name}")
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def first(self, n: int) -> Split:
        """The first `n` images, or all where there are fewer.

        Raises:
            ValueError: `n` is less than 1.
        """
        if n < 1:
            raise ValueError(f"first({n}) of {self.task}, {self.name}: ask for at least one image")
        return Split(self.task, self.name, self._images[:n], self._labels[:n], self.places[:n])

    def to(self, device: torch.device | str) -> Split:
        """The same split on `device`."""
        return Split(self.task, self.name, self.images.to(device), self.labels.to(device), self.places)


class TaskData:
    """A task with its pictures; each split is made when it is first asked for, and kept (lesson 01).

    Attributes:
        name: "digits-rotated45".
        title: "digits, rotated 45°".
        family: "digits".
        classes: the names of the classes, in the order of the labels.
        shape: of one picture, (channel, row, column).
        recipe: what makes the pictures from the family's, in words.
        tier: "bundled" or "full"; in colour that of `open_colour`.
        sha256: of the family's source files (names and contents), hex.
        train: what experts learn from.
        validation: the last tenth of the training file, for choosing settings; never overlaps `train`.
        test: what accuracies are measured on.
    """

    def __init__(self, task: Task, data: FamilyData, tier: str) -> None:
        self._task, self._data = task, data
        self.name, self.title, self.family = task.name, task.title, task.family
        chosen = task.variant.classes
        if chosen is not None and max(chosen) >= len(data.family.classes):
            raise DataError(
                f"The task '{task.name}' has the class {max(chosen)}, and {data.family.title} has "
                f"{len(data.family.classes)}, counted from 0; name others."
            )
        self.classes = data.family.classes if chosen is None else tuple(data.family.classes[one] for one in chosen)
        self.shape = data.family.shape
        self.tier, self.sha256 = tier, data.sha256

    def __repr__(self) -> str:
        return f"TaskData({self.name!r}, tier={self.tier!r})"

    def __getstate__(self) -> dict[str, object]:
        """Without the splits, which another process makes again: in float32 they are four times as large."""
        return {key: value for key, value in self.__dict__.items() if key not in ("train", "validation", "test")}

    @cached_property
    def recipe(self) -> str:
        return self._task.recipe

    @cached_property
    def train(self) -> Split:
        return self._split("train")

    @cached_property
    def validation(self) -> Split:
        return self._split("validation")

    @cached_property
    def test(self) -> Split:
        return self._split("test")

    def _split(self, name: str) -> Split:
        refuse_data(f"the images of {self.name}, {name}")
        pixels, numbers = self._data.part(name)
        chosen = self._task.variant.classes
        places = np.arange(len(numbers))
        if chosen is not None:
            ours = np.isin(numbers, chosen)
            places = places[ours]
            pixels, numbers = (
                pixels[ours],
                np.argsort(chosen).astype(np.uint8)[np.searchsorted(np.sort(chosen), numbers[ours])],
            )
        if not len(numbers):
            raise DataError(
                f"The task '{self.name}' has no picture for {name}: its data have too few of its classes; take more "
                "pictures, or another task."
            )
        # Copied on the way to float32, so that the arrays behind stay as they were read.
        images = torch.from_numpy(pixels.astype(np.float32) / np.float32(255))
        images = images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()
        labels = torch.from_numpy(numbers.astype(np.int64))
        return Split(self.name, name, self._task.apply(images, name), labels, torch.from_numpy(places))


class Source:
    """One place to take tasks from; it reads each family once (lesson 00).

    Attributes:
        tier: "bundled" or "full", in colour one of `COLOUR_TIERS`: what is really used, whatever was asked for.
        note: one sentence saying which data are used and, if they are not those asked for, why.
    """

    def __init__(
        self,
        tier: str,
        note: str,
        read: Callable[[Family], FamilyData],
        families: Mapping[str, Family] = FAMILIES,
        absent: Mapping[str, str] | None = None,
    ) -> None:
        self.tier, self.note = tier, note
        self._read, self._families, self._absent = read, families, absent or {}
        self._cache: dict[str, FamilyData] = {}
        self._handed_out: dict[str, TaskData] = {}

    def __repr__(self) -> str:
        return f"Source(tier={self.tier!r}): {self.note}"

    @property
    def sha256(self) -> str:
        """Over the hashes of the families that are there, hex: two sources with the same one hold the same pictures."""
        return hash_over({name: self.family(name).sha256 for name in self._families if name not in self._absent})

    @property
    def families(self) -> tuple[Family, ...]:
        """Those that there are."""
        return tuple(family for name, family in self._families.items() if name not in self._absent)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the course's tasks that there are."""
        return tuple(task for family in self.families for task in task_names(family.name))

    def family(self, name: str) -> FamilyData:
        """The family's pictures as published, unchanged.

        Raises:
            DataError: an unknown name, or the files are missing or damaged.
        """
        refuse_data(f"the family {name}")
        if name not in self._families:
            raise DataError(unknown("family", name, self._families))
        if name in self._absent:
            raise DataError(self._absent[name])
        if name not in self._cache:
            self._cache[name] = self._read(self._families[name])
        return self._cache[name]

    def task(self, task: str | Task | Variant) -> TaskData:
        """A task by name; or one that is not in the list, by its `Variant`.

        Raises:
            DataError: an unknown name, or the files are missing or damaged.
        """
        wanted = as_task(task)
        data = TaskData(wanted, self.family(wanted.family), self.tier)
        # The pictures of the course's tasks are kept once, however often they are asked for: all of them in the full
        # tier take 1.8 GB. A variant of somebody's own is theirs to keep.
        return self._handed_out.setdefault(wanted.name, data) if ALL_TASKS.get(wanted.name) is wanted else data


def open_source(
    tier: str = "bundled",
    *,
    folder: str | Path | None = None,
    mirror: str | None = None,
    budget_s: float = 120.0,
    progress: bool = True,
    families: Mapping[str, IdxFamily] = FAMILIES,
) -> Source:
    """The pictures of a tier, ready to take tasks from.

    Args:
        tier: "bundled" (12,000 images of each family, inside the package) or "full" (70,000 of each, downloaded once).
        folder: full tier: read the official IDX files (.gz or unpacked) here and write nothing. They may lie in
            `MNIST/raw` and `FashionMNIST/raw` as torchvision leaves them, in `MNIST` and `FashionMNIST`, or in `mnist`
            and `fashion-mnist`. Where neither this nor a mirror is named, the folder that the environment variable
            APGD_TEACH_DATA names, if it names one.
        mirror: full tier: an address (http, https or file) that holds such folders, instead of torchvision's.
        budget_s: full tier: seconds after which the bundled tier is used instead; the part that has arrived is kept
            and the next call goes on from there.
        progress: show a bar of text per file.
        families: what to read; the tests hand in small ones.

    Returns:
        The source; its `tier` and `note` say what it really is.

    Raises:
        DataError: an unknown tier; a folder or mirror that was named and has not the files, or others; no room or no
            permission to write a download; a damaged bundle.

    Lesson: 00.
    """
    refuse_data("a data source")
    if tier not in TIERS:
        raise DataError(unknown("data tier", tier, TIERS))
    if tier == "bundled":
        if folder is not None or mirror is not None:
            raise DataError("A folder or a mirror holds the full tier; ask for tier='full' as well, or name neither.")
        return _bundled("Bundled data are used: a balanced subset of {families} that comes with the course.", families)
    if folder is None and mirror is None:
        folder = named_folder("APGD_TEACH_DATA")
    if folder is not None and mirror is not None:
        raise DataError("Both a folder and a mirror are named; name one of them.")
    valid_budget(budget_s)
    if folder is not None:
        return _from_folder(Path(os.path.expanduser(folder)), families)
    address = None if mirror is None else valid_mirror(mirror)
    cache = default_folder()
    try:
        download(list(families.values()), cache, mirror=address, budget_s=budget_s, progress=progress)
    except Unavailable as reason:
        return _bundled(f"Bundled data are used instead of the full sets of {{families}}: {reason}.", families)
    note = f"Full data are used: all of {_titles(families)}, every file with the hash it should have."
    full = Source(
        "full", note, lambda family: _family_data(family, read_downloaded(cache, families[family.name])), families
    )
    for name in families:
        full.family(name)
    return full


def _from_folder(root: Path, families: Mapping[str, IdxFamily]) -> Source:
    # Everything is read now, so that what is wrong with the files is said here and not in the middle of a lesson.
    found: dict[str, FamilyData] = {}
    absent: dict[str, str] = {}
    for name, family in families.items():
        try:
            found[name] = _family_data(family, read_folder(root, family, families))
        except NotHere as error:
            absent[name] = str(error)
    if not found:
        raise DataError(
            f"The folder '{root}' holds none of {_titles(families)}: put the four IDX files of each into folders "
            f"{' and '.join(repr(family.dataset.__name__) for family in families.values())} there, or name another."
        )
    note = (
        f"Full data are used: all of {_titles({name: families[name] for name in found})}, from a folder that was named"
    )
    if absent:
        note += f" (it does not hold {_titles({name: families[name] for name in absent})})"
    return Source("full", f"{note}.", lambda family: found[family.name], families, absent)


def load_task(name: str | Task | Variant, source: Source | None = None) -> TaskData:
    """A task's pictures, from `source` or from the bundled tier.

    Raises:
        DataError: an unknown name (the nearest ones are suggested), or the bundle is damaged.

    Lesson: 01.
    """
    return (source or open_source()).task(name)


def hash_over(hashes: Mapping[str, str]) -> str:
    """SHA-256, hex, over the hashes of several things, each by its name."""
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _titles(families: Mapping[str, Family]) -> str:
    return " and ".join(family.title for family in families.values())


def _bundled(note: str, families: Mapping[str, IdxFamily]) -> Source:
    note = note.format(families=_titles(families))
    return Source("bundled", note, lambda family: _family_data(family, read_bundled(FAMILIES[family.name])))


def _family_data(family: Family, files: tuple[dict[str, NDArray[np.uint8]], dict[str, str]]) -> FamilyData:
    """From (arrays by short name, SHA-256 of each file by name) as the readers return them."""
    arrays, hashes = files
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        if images.ndim != 3 or labels.shape != images.shape[:1] or labels.max(initial=0) >= len(family.classes):
            raise DataError(
                f"The {split} files of {family.title} do not belong together (images {images.shape}, "
                f"labels {labels.shape}); put the four files of one download there."
            )
    for array in arrays.values():
        array.setflags(write=False)
    return FamilyData(family=family, sha256=hash_over(hashes), **arrays)
