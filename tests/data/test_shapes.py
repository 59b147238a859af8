from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from apgd_teach.data import card, open_colour
from apgd_teach.data.shapes import draw_shapes


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    return draw_shapes("test", 500)


def test_the_classes_go_in_rounds(drawn) -> None:
    images, labels = drawn
    assert (images.shape, images.dtype) == ((5000, 32, 32, 3), np.uint8)
    assert labels.tolist() == list(range(10)) * 500


def test_the_pictures_are_the_same_on_every_call_and_do_not_depend_on_how_many_are_asked_for(drawn) -> None:
    few, _ = draw_shapes("test", 7)
    assert np.array_equal(few, drawn[0][:70])


def test_nothing_of_the_callers_random_numbers_is_drawn() -> None:
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    draw_shapes("test", 1)
    assert np.random.rand() == expected


def test_no_picture_stands_twice_or_in_both_splits(drawn) -> None:
    train, _ = draw_shapes("train", 500)
    marks = [hashlib.sha256(image.tobytes()).digest() for image in (*train, *drawn[0])]
    assert len(set(marks)) == 10_000


def test_these_are_the_pictures_of_version_1(drawn) -> None:
    """Another machine may round a level in a rare pixel; other pictures would be far off, and need another version."""
    images, _ = drawn
    means = images.astype(float).mean(axis=(0, 1, 2))
    assert means == pytest.approx([114.7762, 115.2090, 115.6079], abs=0.01)


def test_classes_differ_by_form_and_not_by_colour(drawn) -> None:
    """Nearest mean colour says next to nothing."""
    images, labels = drawn
    colours = images.reshape(len(images), -1, 3).mean(axis=1)
    centres = np.stack([colours[labels == one].mean(axis=0) for one in range(10)])
    guess = np.argmin(((colours[:, None] - centres) ** 2).sum(axis=2), axis=1)
    assert (guess == labels).mean() < 0.2


@pytest.fixture(scope="module")
def script():
    """`data_scripts/make_shapes.py`, imported from its file."""
    path = Path(__file__).parents[2] / "data_scripts" / "make_shapes.py"
    spec = importlib.util.spec_from_file_location("make_shapes", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_script_writes_the_same_pictures_as_a_zip_by_class(script, tmp_path, capsys) -> None:
    out = tmp_path / "shapes.zip"
    assert script.main(["--out", str(out), "--train", "3", "--test", "1"]) == 0
    first = out.read_bytes()
    assert hashlib.sha256(first).hexdigest() in capsys.readouterr().out
    assert script.main(["--out", str(out), "--train", "3", "--test", "1"]) == 0
    assert out.read_bytes() == first
    # Its classes are not CIFAR-10's: it is not taken for that.
    with pytest.raises(Exception, match="holds no picture of the class 'airplane' for 'train'"):
        open_colour(place=out)


@pytest.mark.parametrize(("train", "out"), [("0", "x.zip"), ("1", "a file/x.zip")])
def test_what_the_script_cannot_do_is_one_sentence(script, tmp_path, capsys, train: str, out: str) -> None:
    (tmp_path / "a file").write_bytes(b"")
    assert script.main(["--out", str(tmp_path / out), "--test", "1", "--train", train]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a file"]


@pytest.mark.parametrize(("family", "licence"), [("shapes", "MIT"), ("cifar10", "none stated")])
def test_each_family_has_a_card_with_its_licence(family: str, licence: str) -> None:
    assert f"| licence | {licence}" in card(family)
