"""CIFAR-10: the official archive, fetched once or named, or a zip or folder of pictures sorted by class."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from apgd_teach.data.families import CifarFamily, Family
from apgd_teach.data.fetch import Budget, Failed, Unavailable, fetch, writing
from apgd_teach.data.idx import read_file
from apgd_teach.errors import DataError
from apgd_teach.files import write_atomically

__all__ = ["Pictures", "fetch_cifar", "has_batches", "read_archive", "read_batches", "read_pictures"]

# The largest batch has 31 MB, and one picture of 32 × 32 a few kilobytes.
_MOST_BATCH, _MOST_PICTURE, _MOST_PICTURES = 40 * 2**20, 64 * 2**10, 100_000
# The official archive has 163 MB.
_MOST_ARCHIVE = 300 * 2**20
_KINDS = (".jpg", ".jpeg", ".png")
_SPLITS = ("train", "test")

Pictures = tuple[dict[str, NDArray[np.uint8]], dict[str, str]]
"""Arrays by "train_images" (image, row, column, channel=3), "train_labels" (image,), …; SHA-256 by a name."""


def _batches(family: CifarFamily) -> list[str]:
    """Names of the files that torchvision's class reads, inside its folder."""
    dataset = family.dataset
    return [*(name for name, _ in [*dataset.train_list, *dataset.test_list]), dataset.meta["filename"]]


def has_batches(family: CifarFamily, root: Path) -> bool:
    """Whether all files of the unpacked archive lie under `root`, whatever is in them."""
    return all(os.path.isfile(root / family.dataset.base_folder / name) for name in _batches(family))


def fetch_cifar(family: CifarFamily, root: Path, *, mirror: str | None, budget_s: float, progress: bool) -> None:
    """Bring the official archive and unpack its batches into `root`, as torchvision has them; there they stay.

    An archive on its way is `<name>.part`; after a break or a full disk it stays, and the next call goes on from its
    end. It is unpacked only when its SHA-256 is right, and removed then.

    Args:
        family: which archive.
        root: torchvision's root; made if need be.
        mirror: None for torchvision's address, or a folder's as `valid_mirror` returns it.
        budget_s: seconds it may take.
        progress: show a bar of text.

    Raises:
        Unavailable: the time is over, or torchvision's address cannot be reached or gives another file.
        DataError: the mirror that was named does not give it; the disk refuses.

    Lesson: 08.
    """
    if has_batches(family, root):
        return
    dataset = family.dataset
    address = dataset.url if mirror is None else mirror + dataset.filename
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
    try:
        packed = fetch(
            [address],
            root,
            md5=dataset.tgz_md5,
            sha256=family.content,
            budget=Budget(budget_s),
            progress=progress,
            most=_MOST_ARCHIVE,
        )
    except Failed as failure:
        if mirror is not None:
            raise DataError(
                f"The mirror '{mirror}' does not give '{dataset.filename}' ({failure}); name another, or none for "
                "torchvision's address."
            ) from failure
        raise Unavailable(f"the network does not give '{dataset.filename}' of {family.title} ({failure})") from failure
    part = root / f"{dataset.filename}.part"
    _unpack(family, packed, root, part)
    part.unlink(missing_ok=True)


def read_batches(family: CifarFamily, root: Path) -> Pictures:
    """The batches under `root`, read by torchvision's class, which looks at the MD5 of each before it unpickles it.

    Raises:
        DataError: one is missing or has another MD5.

    Lesson: 08.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    for split in _SPLITS:
        try:
            dataset = family.dataset(root, train=split == "train", download=False)
        except (RuntimeError, OSError) as error:
            raise DataError(
                f"The batches in '{root / family.dataset.base_folder}' are not those of {family.title}, or not all of "
                f"them ({str(error).split('.')[0]}); remove that folder, or put the official archive there."
            ) from None
        arrays[f"{split}_images"] = dataset.data
        arrays[f"{split}_labels"] = np.array(dataset.targets, np.uint8)
    return arrays, {family.dataset.filename: family.content}


def read_archive(family: CifarFamily, path: Path) -> Pictures:
    """The official archive where it lies; nothing is left on the disk.

    Raises:
        DataError: it cannot be read or is another file.

    Lesson: 08.
    """
    with contextlib.suppress(OSError):
        if path.stat().st_size > _MOST_ARCHIVE:
            raise DataError(f"The archive '{path}' is larger than {family.title}'s; put the original file there.")
    packed = read_file(path, "name the archive as it was published")
    if hashlib.sha256(packed).hexdigest() != family.content:
        raise DataError(
            f"The archive '{path}' is not {family.title}'s: it has another SHA-256, and a pickled data set is opened "
            "only when it is the official one; put the original file there."
        )
    with tempfile.TemporaryDirectory() as folder:
        _unpack(family, packed, Path(folder), path)
        return read_batches(family, Path(folder))


def _unpack(family: CifarFamily, packed: bytes, root: Path, path: Path) -> None:
    """The batches out of an archive whose hash is right, and nothing else out of it, each whole or absent."""
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for name in _batches(family):
            inside = f"{family.dataset.base_folder}/{name}"
            try:
                member = archive.getmember(inside)
                file = archive.extractfile(member)
            except KeyError:
                file = None
            if file is None or member.size > _MOST_BATCH:
                raise DataError(f"The archive '{path}' holds no file '{inside}' of a batch's size.")
            target = root / inside
            with writing(target):
                write_atomically(target, file.read())


def read_pictures(family: Family, place: Path) -> Pictures:
    """Pictures sorted by class, `train/<class>/<name>.jpg` and `test/<class>/…`, in a folder or a zip archive.

    An archive is read in memory: nothing of it is written anywhere, so no path in it can lead out of a folder. The
    pictures are handed out in rounds, the first one of each class, then the second ones, in the order of their names,
    and of a class with more of them more in a round: what is taken from the front or the back is as balanced as the
    whole.

    Args:
        family: whose classes.
        place: the folder, or the .zip.

    Raises:
        DataError: a class is missing in a split, a picture is none or has another size, the archive is damaged, has a
            path that leads out of it, or more or larger files than such an archive has.

    Lesson: 08.
    """
    arrays: dict[str, NDArray[np.uint8]] = {}
    lines: list[str] = []
    with _opened(place) as files:
        found = _sorted(family, place, files)
        for split, classes in found.items():
            images, labels = [], []
            turns = sorted(
                ((turn + 0.5) / len(classes[one]), label, name)
                for label, one in enumerate(family.classes)
                for turn, name in enumerate(classes[one])
            )
            for _, label, name in turns:
                content = files.read(name)
                inside = "/".join(_parts(name)[-3:])
                lines.append(f"{inside} {hashlib.sha256(content).hexdigest()}\n")
                images.append(_decoded(content, f"{place}/{name}", family.shape))
                labels.append(label)
            arrays[f"{split}_images"] = np.stack(images)
            arrays[f"{split}_labels"] = np.array(labels, np.uint8)
    return arrays, {"pictures": hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()}


class _Folder:
    """The files under a folder, by their paths in it. A link to a file is that file."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def names(self) -> Iterator[tuple[str, int]]:
        """Paths with their sizes in bytes."""
        for split in _SPLITS:
            for folder, _, files in os.walk(self.root / split):
                for file in files:
                    path = Path(folder, file)
                    # A link to nowhere is kept, to be missed when it is read; a pipe or a device is none of them.
                    if path.is_file() or not path.exists():
                        yield path.relative_to(self.root).as_posix(), path.stat().st_size if path.exists() else 0

    def read(self, name: str) -> bytes:
        """One file."""
        return read_file(self.root / name, "make it readable")


class _Zip:
    """The files in a zip archive, by their paths in it."""

    def __init__(self, archive: zipfile.ZipFile, place: Path) -> None:
        self.archive, self.place = archive, place

    def names(self) -> Iterator[tuple[str, int]]:
        """Paths with their unpacked sizes in bytes.

        Raises:
            DataError: a path would lead out of a folder.
        """
        for entry in self.archive.infolist():
            parts = _parts(entry.filename)
            if entry.filename.startswith(("/", "\\")) or ".." in parts or any(":" in part for part in parts):
                raise DataError(
                    f"The archive '{self.place}' has a path that leads out of it, '{entry.filename}'; it is not used."
                )
            if entry.is_dir():
                continue
            # Of these alone is no more unpacked than is asked for, whatever size the archive claims.
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"The archive '{self.place}' is packed in another way than zip archives usually are, at "
                    f"'{entry.filename}'; pack it again, without options."
                )
            yield entry.filename, entry.file_size

    def read(self, name: str) -> bytes:
        """One file: no more of it than the size that was looked at."""
        try:
            with self.archive.open(name) as file:
                return file.read(_MOST_PICTURE)
        except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, OSError, EOFError) as error:
            raise DataError(f"The archive '{self.place}' is damaged at '{name}' ({error}); get it again.") from error


@contextlib.contextmanager
def _opened(place: Path) -> Iterator[_Folder | _Zip]:
    if place.is_dir():
        yield _Folder(place)
        return
    try:
        archive = zipfile.ZipFile(place)
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"The archive '{place}' cannot be opened ({error}); get it again.") from error
    with archive:
        yield _Zip(archive, place)


def _sorted(family: Family, place: Path, files: _Folder | _Zip) -> Mapping[str, Mapping[str, list[str]]]:
    """Names of the pictures by split and class, in the order of their names."""
    found: dict[str, dict[str, list[str]]] = {split: {one: [] for one in family.classes} for split in _SPLITS}
    count = 0
    for name, size in files.names():
        parts = _parts(name)
        # A zip may have a folder of its own around everything. macOS puts notes on files beside them.
        split, one = parts[-3:-1] if len(parts) >= 3 else ("", "")
        if split not in found or one not in found[split] or not name.lower().endswith(_KINDS):
            continue
        if "__MACOSX" in parts or parts[-1].startswith("._"):
            continue
        count += 1
        if size > _MOST_PICTURE or count > _MOST_PICTURES:
            what = f"'{name}' of {size:,} bytes" if size > _MOST_PICTURE else f"more than {_MOST_PICTURES:,} pictures"
            raise DataError(f"'{place}' holds {what}, which no pictures of {family.title} are; name another.")
        found[split][one].append(name)
    for split, classes in found.items():
        for one, names in classes.items():
            if not names:
                raise DataError(
                    f"'{place}' holds no picture of the class '{one}' for '{split}': put pictures of all ten classes "
                    f"into '{split}/{one}' and so on there, or name another."
                )
            names.sort()
    return found


def _parts(name: str) -> tuple[str, ...]:
    """The parts of a path in a folder or an archive; some programs write it with backslashes."""
    return PurePosixPath(name.replace("\\", "/")).parts


def _decoded(content: bytes, where: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """A picture (row, column, channel=3)."""
    try:
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as image:
            # Its size is in the header: a picture of another one is not unpacked at all.
            if image.size == (shape[2], shape[1]):
                return np.asarray(image.convert("RGB"))
            said = f"has {image.size[0]} × {image.size[1]} pixels"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        said = f"is no picture that can be read ({error})"
    raise DataError(f"'{where}' {said}; pictures here are JPEG or PNG of {shape[2]} × {shape[1]} pixels.")
