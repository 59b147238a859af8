"""Colour pictures: the official archive, a zip or folder of pictures, and what stands in for them."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import socket
import tarfile
import zipfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10

from apgd_teach.data import COLOUR_TASKS, Variant, open_colour
from apgd_teach.data.cifar import read_pictures
from apgd_teach.data.families import CIFAR, CifarFamily
from apgd_teach.data.shapes import draw_shapes
from apgd_teach.errors import DataError

NAME = "cifar-10-python.tar.gz"


@dataclass(frozen=True)
class SmallCifar:
    """An archive in the form of CIFAR-10's, of generated pictures, and the family that knows its hashes."""

    family: CifarFamily
    packed: bytes
    batches: dict[str, bytes]

    def served_from(self, address: str) -> CifarFamily:
        dataset = type("SmallCIFAR", (self.family.dataset,), {"url": address + NAME})
        return replace(self.family, dataset=dataset)


def archive_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def known_as(packed: bytes, batches: dict[str, bytes]) -> CifarFamily:
    md5 = {name: hashlib.md5(content).hexdigest() for name, content in batches.items()}
    dataset = type(
        "SmallCIFAR",
        (CIFAR10,),
        {
            "tgz_md5": hashlib.md5(packed).hexdigest(),
            "train_list": [[name, md5[name]] for name in ("data_batch_1", "data_batch_2")],
            "test_list": [["test_batch", md5["test_batch"]]],
            "meta": {"filename": "batches.meta", "key": "label_names", "md5": md5["batches.meta"]},
        },
    )
    return replace(CIFAR, title="small CIFAR", dataset=dataset, content=hashlib.sha256(packed).hexdigest())


@pytest.fixture(scope="module")
def small() -> SmallCifar:
    images, labels = draw_shapes("train", 8)
    rows = images.transpose(0, 3, 1, 2).reshape(len(images), -1)

    def batch(chosen: slice) -> bytes:
        return pickle.dumps({"data": rows[chosen], "labels": labels[chosen].tolist()}, protocol=2)

    batches = {
        "data_batch_1": batch(slice(0, 30)),
        "data_batch_2": batch(slice(30, 60)),
        "test_batch": batch(slice(60, 80)),
        "batches.meta": pickle.dumps({"label_names": list(CIFAR.classes)}, protocol=2),
    }
    packed = archive_of({f"cifar-10-batches-py/{name}": content for name, content in batches.items()})
    return SmallCifar(known_as(packed, batches), packed, batches)


@pytest.fixture(autouse=True)
def nothing_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No place is named by the machine that runs the tests, and the cache is empty."""
    monkeypatch.delenv("APGD_TEACH_CIFAR", raising=False)
    monkeypatch.setenv("APGD_TEACH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data" / "SmallCIFAR"


def is_small(source) -> bool:
    images, labels = draw_shapes("train", 8)
    data = source.family("cifar10")
    return (
        source.tier == "cifar10"
        and np.array_equal(np.concatenate([data.train_images, data.test_images]), images)
        and np.array_equal(np.concatenate([data.train_labels, data.test_labels]), labels)
    )


def every_file(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


# The official archive


def test_the_archive_is_fetched_once_and_then_read_from_the_cache(web, small, nothing_named) -> None:
    web.files = {f"/{NAME}": small.packed}
    family = small.served_from(web.address)
    source = open_colour("cifar10", cifar=family, progress=False)
    assert is_small(source)
    assert source.note == "All of small CIFAR, from the official archive (60 for training and 20 for testing)."
    assert every_file(nothing_named) == set(small.batches)
    assert len(web.asked) == 1
    assert is_small(open_colour("cifar10", cifar=family, progress=False))
    # What is there is used without being asked for.
    assert is_small(open_colour(cifar=family, progress=False))
    assert len(web.asked) == 1


def test_a_broken_connection_is_taken_up_again(web, small) -> None:
    web.files = {f"/{NAME}": small.packed}
    web.break_after = 5000
    assert is_small(open_colour("cifar10", cifar=small.served_from(web.address), progress=False))
    assert web.asked[1] == (f"/{NAME}", "bytes=5000-")


def test_where_the_time_is_over_the_generated_family_stands_in_and_the_part_is_kept(web, small, nothing_named) -> None:
    web.files = {f"/{NAME}": small.packed}
    web.seconds_per_kilobyte = 0.05
    source = open_colour("cifar10", cifar=small.served_from(web.address), budget_s=0.5, progress=False)
    assert source.tier == "generated"
    assert source.note.startswith(
        "Generated pictures are used, which are not CIFAR-10: the time budget of 0.5 s ended before all had arrived"
    )
    assert every_file(nothing_named) == {f"{NAME}.part"}
    web.seconds_per_kilobyte = 0
    assert is_small(open_colour("cifar10", cifar=small.served_from(web.address), progress=False))
    assert web.asked[-1][1] is not None
    assert every_file(nothing_named) == set(small.batches)


def test_another_file_at_the_address_is_not_used(web, small, nothing_named) -> None:
    web.files = {f"/{NAME}": archive_of({"cifar-10-batches-py/data_batch_1": b"x"})}
    source = open_colour("cifar10", cifar=small.served_from(web.address), progress=False)
    assert source.tier == "generated"
    assert "it sends a file with another MD5" in source.note
    assert every_file(nothing_named) == set()


def test_a_mirror_that_was_named_and_lacks_it_is_a_fault(web, small) -> None:
    with pytest.raises(DataError, match=rf"The mirror '.*' does not give '{NAME}' \(127.0.0.1:\d+: HTTP 404"):
        open_colour("cifar10", cifar=small.family, mirror=web.address, progress=False)
    web.files = {f"/{NAME}": small.packed}
    assert is_small(open_colour("cifar10", cifar=small.family, mirror=web.address, progress=False))


def test_without_being_asked_for_nothing_is_fetched(small, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    source = open_colour(cifar=small.family, per_class=10)
    assert source.tier == "generated"
    assert "CIFAR" not in source.family("shapes").family.title
    assert source.note.startswith("Generated pictures are used, which are not CIFAR-10: no copy of that is here")


@pytest.mark.parametrize("form", ["archive", "folder with it", "batches", "torchvision's root"])
def test_a_place_may_hold_it_in_four_forms_and_is_left_as_it_was(small, tmp_path, form: str) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    if form in ("archive", "folder with it"):
        (root / NAME).write_bytes(small.packed)
    else:
        inner = root / ("SmallCIFAR" if form == "torchvision's root" else "") / "cifar-10-batches-py"
        inner.mkdir(parents=True)
        for name, content in small.batches.items():
            (inner / name).write_bytes(content)
    before = every_file(tmp_path)
    place = root / NAME if form == "archive" else root
    source = open_colour(place=place, cifar=small.family)
    assert is_small(source)
    assert str(tmp_path) not in source.note
    assert every_file(tmp_path) == before


def test_the_variable_names_a_place(small, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / NAME).write_bytes(small.packed)
    monkeypatch.setenv("APGD_TEACH_CIFAR", str(tmp_path / NAME))
    assert is_small(open_colour(cifar=small.family))


class Bomb:
    """Unpickled, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self):
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("form", ["archive", "batches"])
def test_a_pickle_that_is_not_the_official_one_is_never_opened(small, tmp_path, form: str) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "gone off"))
    batches = {**small.batches, "data_batch_1": bomb}
    if form == "archive":
        place = tmp_path / NAME
        place.write_bytes(archive_of({f"cifar-10-batches-py/{name}": content for name, content in batches.items()}))
        sentence = r"is not small CIFAR's: it has another SHA-256, and a pickled data set is opened only when it is"
    else:
        place = tmp_path
        (tmp_path / "cifar-10-batches-py").mkdir()
        for name, content in batches.items():
            (tmp_path / "cifar-10-batches-py" / name).write_bytes(content)
        sentence = r"The batches in '.*' are not those of small CIFAR, or not all of them"
    with pytest.raises(DataError, match=sentence):
        open_colour(place=place, cifar=small.family)
    assert not (tmp_path / "gone off").exists()


def test_an_archive_with_a_right_hash_and_without_a_batch_gets_a_sentence(small, tmp_path) -> None:
    packed = archive_of({"cifar-10-batches-py/data_batch_1": small.batches["data_batch_1"]})
    (tmp_path / NAME).write_bytes(packed)
    family = replace(small.family, content=hashlib.sha256(packed).hexdigest())
    with pytest.raises(DataError, match=r"holds no file 'cifar-10-batches-py/data_batch_2' of a batch's size"):
        open_colour(place=tmp_path, cifar=family)


# Pictures sorted by class


def jpeg(image: np.ndarray, kind: str = "JPEG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, quality=95)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Three training pictures and one for testing of each class, by path."""
    images, labels = draw_shapes("train", 4)
    found = {}
    for place, (image, label) in enumerate(zip(images, labels, strict=True)):
        split = "train" if place < 30 else "test"
        found[f"{split}/{CIFAR.classes[label]}/{place:04}.png"] = jpeg(image, "PNG")
    return found


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def laid_out(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize("form", ["zip", "zip with a folder around", "folder", "folder with the zip"])
def test_pictures_may_lie_in_a_zip_or_a_folder_and_are_the_same(pictures, tmp_path, form: str) -> None:
    if form == "folder":
        place = laid_out(tmp_path / "p", pictures)
    else:
        around = "all/" if form == "zip with a folder around" else ""
        place = zipped(tmp_path / "p.zip", {around + name: content for name, content in reversed(pictures.items())})
    source = open_colour(place=tmp_path if form == "folder with the zip" else place)
    assert source.tier == "pictures"
    data = source.family("cifar10")
    images, _ = draw_shapes("train", 4)
    # In rounds, the first of each class, then the second ones.
    assert data.train_labels.tolist() == list(range(10)) * 3
    assert np.array_equal(data.train_images, images[:30])
    assert np.array_equal(data.test_images, images[30:])
    assert data.sha256 == open_colour(place=zipped(tmp_path / "other.zip", pictures)).family("cifar10").sha256


WRONG = {
    "a class is missing": (
        lambda files: {name: content for name, content in files.items() if "train/frog" not in name},
        r"holds no picture of the class 'frog' for 'train'",
    ),
    "another size": (
        lambda files: {**files, "train/cat/big.png": jpeg(np.zeros((64, 64, 3), np.uint8), "PNG")},
        r"train/cat/big.png' has 64 × 64 pixels; pictures here are JPEG or PNG of 32 × 32 pixels",
    ),
    "no picture": (lambda files: {**files, "test/dog/x.jpg": b"no"}, r"test/dog/x.jpg' is no picture that can be read"),
    "another format": (
        lambda files: {**files, "test/dog/x.jpg": jpeg(np.zeros((32, 32, 3), np.uint8), "GIF")},
        r"test/dog/x.jpg' is no picture that can be read",
    ),
    "too large": (
        lambda files: {**files, "test/dog/x.png": bytes(70_000)},
        r"holds 'test/dog/x.png' of 70,000 bytes, which no pictures of CIFAR-10 are",
    ),
}


@pytest.mark.parametrize("form", ["zip", "folder"])
@pytest.mark.parametrize("wrong", list(WRONG))
def test_what_is_wrong_with_pictures_is_said(pictures, tmp_path, wrong: str, form: str) -> None:
    change, sentence = WRONG[wrong]
    files = change(pictures)
    place = zipped(tmp_path / "p.zip", files) if form == "zip" else laid_out(tmp_path / "p", files)
    with pytest.raises(DataError, match=sentence):
        open_colour(place=place)


@pytest.mark.parametrize(
    "path", ["../train/cat/a.png", "/train/cat/a.png", "train/cat/../../../a.png", "C:/train/cat/a"]
)
def test_an_archive_with_a_path_that_leads_out_is_not_used(pictures, tmp_path, path: str) -> None:
    (tmp_path / "sub").mkdir()
    place = zipped(tmp_path / "sub" / "p.zip", pictures)
    with zipfile.ZipFile(place, "a") as archive:
        entry = zipfile.ZipInfo(path)
        entry.filename = path
        archive.writestr(entry, pictures["train/cat/0003.png"])
    before = every_file(tmp_path)
    with pytest.raises(DataError, match=r"has a path that leads out of it, '.*'; it is not used"):
        open_colour(place=place)
    assert every_file(tmp_path) == before


def test_a_size_that_lies_is_not_believed(pictures, tmp_path) -> None:
    """A member that unpacks to more than its header says."""
    place = zipped(tmp_path / "p.zip", {**pictures, "train/cat/zz.png": bytes(3_000_000)})
    content = bytearray(place.read_bytes())
    spot = content.rindex(b"train/cat/zz.png") - 46
    assert content[spot : spot + 4] == b"PK\x01\x02"
    content[spot + 24 : spot + 28] = (1000).to_bytes(4, "little")
    place.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"zz.png"):
        open_colour(place=place)


@pytest.mark.parametrize("packing", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA], ids=["bzip2", "lzma"])
def test_an_archive_that_could_unpack_without_bound_is_not_used(pictures, tmp_path, packing: int) -> None:
    """Python unpacks these two whole, whatever was asked for: a small file could fill the memory."""
    place = zipped(tmp_path / "p.zip", pictures)
    with zipfile.ZipFile(place, "a", packing) as archive:
        archive.writestr("train/cat/zz.png", bytes(1000))
    with pytest.raises(DataError, match=r"is packed in another way .*, at 'train/cat/zz.png'; pack it again"):
        open_colour(place=place)


def test_what_the_programs_of_a_desktop_add_is_left_out(pictures, tmp_path) -> None:
    place = zipped(
        tmp_path / "P.ZIP",
        {
            **{name.replace("/", "\\"): content for name, content in pictures.items()},
            "__MACOSX/train/cat/._0003.png": b"notes",
            "train/cat/._0003.png": b"notes",
        },
    )
    with zipfile.ZipFile(place, "a") as archive:
        archive.writestr("./", b"")
    plain = open_colour(place=zipped(tmp_path / "p.zip", pictures))
    assert open_colour(place=place).family("cifar10").sha256 == plain.family("cifar10").sha256


def test_pictures_of_one_s_own_are_not_called_cifar(pictures, tmp_path) -> None:
    (family,) = open_colour(place=zipped(tmp_path / "p.zip", pictures)).families
    assert family.title == "pictures under CIFAR-10's classes"


def test_a_class_with_more_pictures_has_more_in_every_part(pictures, tmp_path) -> None:
    """Were the surplus at the end, the validation images would be of that class alone."""
    more = {f"train/truck/more{i:03}.png": pictures["train/truck/0009.png"] for i in range(27)}
    data = open_colour(place=zipped(tmp_path / "p.zip", {**pictures, **more})).family("cifar10")
    labels = data.train_labels
    assert np.bincount(labels).tolist() == [3] * 9 + [30]
    assert 0.4 < np.mean(labels[: len(labels) // 2] == 9) < 0.7
    assert {int(one) for one in data.part("train")[1]} == set(range(10))


def test_a_task_without_a_picture_gets_a_sentence(pictures, tmp_path) -> None:
    more = {f"train/truck/more{i:03}.png": pictures["train/truck/0009.png"] for i in range(27)}
    source = open_colour(place=zipped(tmp_path / "p.zip", {**pictures, **more}))
    only = Variant("cifar10", "few", torch.nn.Identity(), classes=(0, 1))
    with pytest.raises(DataError, match=r"The task 'cifar10-few' has no picture for validation: .*take more pictures"):
        assert len(source.task(only).validation) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes among its files")
def test_a_pipe_in_a_folder_is_no_picture(pictures, tmp_path) -> None:
    root = laid_out(tmp_path / "p", pictures)
    os.mkfifo(root / "train" / "cat" / "pipe.png")
    assert len(read_pictures(CIFAR, root)[0]["train_labels"]) == 30


def test_a_picture_that_claims_to_be_huge_gets_a_sentence(pictures, tmp_path) -> None:
    content = bytearray(jpeg(np.zeros((32, 32, 3), np.uint8), "PNG"))
    # Width and height in the header chunk, and its checksum.
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    with pytest.raises(DataError, match=r"zz.png' is no picture that can be read|has 30000 × 30000 pixels"):
        open_colour(place=zipped(tmp_path / "p.zip", {**pictures, "train/cat/zz.png": bytes(content)}))


def test_an_archive_larger_than_the_official_one_is_not_read(small, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apgd_teach.data.cifar._MOST_ARCHIVE", 1000)
    (tmp_path / NAME).write_bytes(small.packed)
    with pytest.raises(DataError, match=r"is larger than small CIFAR's; put the original file there"):
        open_colour(place=tmp_path / NAME, cifar=small.family)


def test_an_address_that_sends_without_end_is_left(web, small, nothing_named, monkeypatch) -> None:
    monkeypatch.setattr("apgd_teach.data.cifar._MOST_ARCHIVE", len(small.packed) // 2)
    web.files = {f"/{NAME}": small.packed}
    source = open_colour("cifar10", cifar=small.served_from(web.address), progress=False)
    assert source.tier == "generated"
    assert "it sends more than" in source.note
    assert all(path.stat().st_size == 0 for path in nothing_named.rglob("*.part"))


@pytest.mark.parametrize("content", [b"", b"no zip", "cut"])
def test_a_damaged_archive_gets_a_sentence(pictures, tmp_path, content) -> None:
    place = zipped(tmp_path / "p.zip", pictures)
    place.write_bytes(place.read_bytes()[:-300] if content == "cut" else content)
    with pytest.raises(DataError, match=r"The archive '.*p.zip' cannot be opened"):
        open_colour(place=place)


def test_a_member_that_is_damaged_gets_a_sentence(pictures, tmp_path) -> None:
    place = zipped(tmp_path / "p.zip", pictures)
    content = bytearray(place.read_bytes())
    spot = content.index(pictures["train/cat/0003.png"])
    content[spot + 200] ^= 255
    place.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"is damaged at 'train/cat/0003.png' \(Bad CRC-32"):
        open_colour(place=place)


def test_a_packed_member_that_is_damaged_gets_a_sentence(pictures, tmp_path) -> None:
    place = zipped(tmp_path / "p.zip", pictures)
    with zipfile.ZipFile(place, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/cat/zz.png", b"pixels " * 500)
        start = archive.getinfo("train/cat/zz.png").header_offset + 30 + len("train/cat/zz.png")
    content = bytearray(place.read_bytes())
    content[start : start + 4] = b"\xff" * 4
    place.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"is damaged at 'train/cat/zz.png' \(Error"):
        open_colour(place=place)


def test_a_link_in_a_folder_is_followed_like_any_file_and_one_to_nowhere_is_said(pictures, tmp_path) -> None:
    root = laid_out(tmp_path / "p", pictures)
    (root / "train" / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"The file '.*gone.png' is missing"):
        read_pictures(CIFAR, root)


def test_the_known_25_000_are_recognised_and_nothing_else_is() -> None:
    found = Path(__file__).parents[3] / "shared" / "data" / "cifar10-jpeg.zip"
    if not found.is_file():
        pytest.skip("the 25,000 images of CIFAR-10 are not beside this checkout")
    source = open_colour(place=found)
    assert source.tier == "cifar10-jpeg-25k"
    data = source.family("cifar10")
    assert np.bincount(data.train_labels).tolist() == [2000] * 10
    assert np.bincount(data.part("validation")[1]).tolist() == [200] * 10
    assert np.bincount(data.test_labels).tolist() == [500] * 10


# What is handed out


@pytest.fixture(scope="module")
def generated():
    return open_colour("generated", per_class=20)


def test_fewer_images_are_the_first_of_each_class_and_another_source(generated) -> None:
    data = generated.family("shapes")
    assert np.bincount(data.train_labels).tolist() == [20] * 10
    assert np.bincount(data.test_labels).tolist() == [400] * 10
    assert generated.sha256 != open_colour("generated", per_class=30).sha256
    assert generated.sha256 == open_colour("generated", per_class=20).sha256


def test_fewer_images_of_an_archive_are_the_first_of_each_class(small, tmp_path) -> None:
    (tmp_path / NAME).write_bytes(small.packed)
    # Six of each class are there.
    assert len(open_colour(place=tmp_path, cifar=small.family, per_class=10).family("cifar10").train_labels) == 60


@pytest.mark.parametrize("task", [name for name in COLOUR_TASKS if name.startswith("shapes")])
def test_every_task_keeps_shape_and_range_and_is_the_same_again(generated, task: str) -> None:
    data = generated.task(task)
    images = data.test.images[:40]
    assert images.shape == (40, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    again = open_colour("generated", per_class=20).task(task).test.images[:40]
    assert torch.equal(images, again)


def test_variants_that_keep_the_class_show_the_same_pictures_in_another_way(generated) -> None:
    plain = generated.task("shapes-plain")
    for name in generated.tasks:
        task = generated.task(name)
        if task.classes == plain.classes and name != "shapes-plain":
            assert torch.equal(task.test.labels, plain.test.labels)
            assert not torch.equal(task.test.images, plain.test.images)
    grey = generated.task("shapes-grey").test.images
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert torch.allclose(generated.task("shapes-negative").test.images, 1 - plain.test.images)
    assert torch.equal(generated.task("shapes-flipped").test.images, plain.test.images.flip(2))


def test_a_half_of_the_classes_is_a_task_with_labels_of_its_own(generated) -> None:
    plain, half = generated.task("shapes-plain"), generated.task("shapes-textures")
    assert half.classes == ("stripes", "rays", "chequers", "dots", "waves")
    chosen = plain.test.labels >= 5
    assert torch.equal(half.test.images, plain.test.images[chosen])
    assert torch.equal(half.test.labels, plain.test.labels[chosen] - 5)


def test_the_order_of_the_classes_is_that_of_the_variant(generated) -> None:
    mine = generated.task(Variant("shapes", "three", lambda images: images, classes=(7, 2, 4)))
    plain = generated.task("shapes-plain")
    chosen = torch.isin(plain.test.labels, torch.tensor([7, 2, 4]))
    names = [plain.classes[label] for label in plain.test.labels[chosen]]
    assert [mine.classes[label] for label in mine.test.labels] == names
    assert mine.classes == ("chequers", "square", "cross")


@pytest.mark.parametrize("classes", [(1,), (1, 1), (-1, 2), ("a", "b"), 3])
def test_classes_that_are_none_get_a_sentence(classes) -> None:
    with pytest.raises(DataError, match=r"The classes of variant 'mine' are .*; give two labels or more"):
        Variant("shapes", "mine", lambda images: images, classes=classes)


def test_a_class_that_the_family_has_not_gets_a_sentence(generated) -> None:
    with pytest.raises(DataError, match=r"The task 'shapes-mine' has the class 12, and Shapes and textures has 10"):
        generated.task(Variant("shapes", "mine", lambda images: images, classes=(1, 12)))


# Wrong arguments


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tier": "cifar"}, "There is no tier of colour pictures 'cifar'; did you mean 'cifar10'"),
        ({"per_class": 3}, "per_class=3 is no number of images; give a whole number from 10"),
        ({"per_class": True}, "per_class=True is no number of images"),
        ({"budget_s": 0}, "The time budget is 0 s"),
        ({"tier": "generated", "place": "x"}, "A place or a mirror holds CIFAR-10; ask for tier='cifar10'"),
        ({"place": "x", "mirror": "http://x/"}, "Both a place and a mirror are named"),
        ({"place": "/nowhere/at all"}, "There is no '/nowhere/at all': name CIFAR-10's archive"),
        ({"tier": "cifar10", "mirror": "x"}, "The mirror 'x' is not an address"),
    ],
)
def test_wrong_arguments_get_a_sentence(arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(DataError) as caught:
        open_colour(**arguments)
    assert sentence in str(caught.value)
