from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from apgd_teach.data import FAMILIES, card, cards_table, open_source
from apgd_teach.data.bundled import BUNDLE, read_bundled
from apgd_teach.errors import DataError


def test_both_families_together_are_at_most_seven_megabytes() -> None:
    assert sum(path.stat().st_size for path in BUNDLE.iterdir()) <= 7e6


@pytest.mark.parametrize("name", list(FAMILIES))
def test_each_family_is_balanced_and_no_image_stands_twice(name: str) -> None:
    family = open_source().family(name)
    assert np.bincount(family.train_labels).tolist() == [1000] * 10
    assert np.bincount(family.test_labels).tolist() == [200] * 10
    images = np.concatenate([family.train_images, family.test_images])
    assert images.shape == (12_000, 28, 28)
    assert len({image.tobytes() for image in images}) == 12_000


@pytest.mark.parametrize("name", list(FAMILIES))
def test_any_ten_images_from_a_round_hold_each_class_once(name: str) -> None:
    labels = open_source().family(name).train_labels.reshape(-1, 10)
    assert (np.sort(labels, axis=1) == np.arange(10)).all()
    # Mixed, not counted off: within a round the classes stand in many different orders.
    assert len({row.tobytes() for row in labels}) > 900


def test_every_bundled_file_is_in_the_manifest_with_its_hash() -> None:
    files = json.loads((BUNDLE / "manifest.json").read_text())["files"]
    assert {path.name for path in BUNDLE.glob("*.xz")} == set(files)
    for name, entry in files.items():
        assert hashlib.sha256((BUNDLE / name).read_bytes()).hexdigest() == entry["sha256"]


def test_the_manifest_names_the_sources_that_the_full_tier_checks() -> None:
    families = json.loads((BUNDLE / "manifest.json").read_text())["families"]
    for family in FAMILIES.values():
        assert families[family.slug]["source_sha256"] == dict(family.content)


def test_a_missing_file_is_one_sentence(bundle: Path) -> None:
    (bundle / "mnist-test-labels.idx.xz").unlink()
    with pytest.raises(DataError, match=r"mnist-test-labels\.idx\.xz' is missing; install the package again"):
        read_bundled(FAMILIES["digits"], bundle)
    read_bundled(FAMILIES["fashion"], bundle)


def test_a_wrong_hash_is_one_sentence(bundle: Path) -> None:
    path = bundle / "mnist-train-images.idx.xz"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"mnist-train-images\.idx\.xz' has another SHA-256"):
        read_bundled(FAMILIES["digits"], bundle)


def test_a_truncated_archive_is_one_sentence_even_with_the_right_hash(bundle: Path) -> None:
    path, manifest = bundle / "fashion-mnist-train-images.idx.xz", bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:50_000])
    with pytest.raises(DataError, match=r"has another SHA-256 than the manifest says \(50,000 bytes\)"):
        read_bundled(FAMILIES["fashion"], bundle)
    listed = json.loads(manifest.read_text())
    listed["files"][path.name]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(listed))
    with pytest.raises(DataError, match="cut short or damaged"):
        read_bundled(FAMILIES["fashion"], bundle)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": {}}', '{"files": {"mnist-train-images.idx.xz": 3}}'])
def test_a_damaged_manifest_is_one_sentence(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(DataError, match=r"manifest\.json' .*install the package again"):
        read_bundled(FAMILIES["digits"], bundle)


def test_the_pictures_as_published_cannot_be_changed_by_accident() -> None:
    with pytest.raises(ValueError, match="read-only"):
        open_source().family("digits").train_images[0, 0, 0] = 1


def test_an_unknown_family_or_tier_is_one_sentence() -> None:
    with pytest.raises(DataError, match=r"There is no family 'fashon'; did you mean 'fashion'\?"):
        open_source().family("fashon")
    with pytest.raises(DataError, match=r"There is no data tier 'bundle'; did you mean 'bundled'\?"):
        open_source("bundle")
    with pytest.raises(DataError, match=r"There is no data tier 'x'; there are bundled, full\."):
        open_source("x")


def test_each_family_has_a_card_with_licence_hashes_and_limits() -> None:
    for family in FAMILIES.values():
        text = card(family.name)
        assert family.licence.split()[0] in text
        assert all(digest in text for digest in family.content.values())
        assert "## Known limits" in text
        assert "## Citation" in text
    licences = (BUNDLE / "LICENSES.md").read_text()
    assert "creativecommons.org/licenses/by-sa/3.0" in licences
    assert "Zalando SE" in licences


def test_the_table_of_cards_counts_what_is_there() -> None:
    table = cards_table()
    assert table.column("data set") == ["MNIST", "Fashion-MNIST"]
    assert table.column("bundled") == ["10,000 + 2,000"] * 2
