from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apgd_teach.cache import Cache, Damaged, Entry, changed
from apgd_teach.errors import CacheError
from apgd_teach.files import own_folder, settled

WHAT = {"kind": "expert", "name": "ada", "format": 1, "seed": 0, "recipe": {"lr": 0.1, "steps": 5}}
STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.zeros(2)}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def files(cache: Cache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_what_was_stored_is_found_again_with_its_card(cache: Cache) -> None:
    assert cache.load(WHAT) is None
    stored = cache.store(WHAT, STATE, {"seconds": 1.5})
    found = cache.load(WHAT)
    assert isinstance(found, Entry)
    assert same(found.tensors, STATE)
    assert same(stored.tensors, STATE)
    assert found.card == stored.card
    assert found.card["seconds"] == 1.5
    assert found.card["ingredients"] == WHAT


def test_an_entry_is_two_files_that_say_what_they_are(cache: Cache) -> None:
    cache.store(WHAT, STATE, {})
    card, weights = files(cache)
    assert card.removesuffix(".json") == weights.removesuffix(".safetensors")
    assert card.startswith("expert-ada-")
    written = json.loads((cache.folder / card).read_text(encoding="utf-8"))
    assert written["sha256"] == hashlib.sha256((cache.folder / weights).read_bytes()).hexdigest()


def test_the_order_of_the_ingredients_and_tuples_for_lists_change_nothing(cache: Cache) -> None:
    cache.store({**WHAT, "shape": (2, 3)}, STATE, {})
    assert isinstance(cache.load({"shape": [2, 3], **dict(reversed(WHAT.items()))}), Entry)


@pytest.mark.parametrize("other", [{"seed": 1}, {"recipe": {"lr": 0.1, "steps": 6}}, {"more": None}, {"name": "ben"}])
def test_other_ingredients_are_another_entry(cache: Cache, other: dict[str, object]) -> None:
    cache.store(WHAT, STATE, {})
    assert cache.load({**WHAT, **other}) is None


def test_weights_that_are_views_of_each_other_or_need_gradients_are_kept_as_numbers(cache: Cache) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    cache.store(WHAT, {"turned": whole.T, "learned": torch.ones(2, requires_grad=True)}, {})
    found = cache.load(WHAT)
    assert isinstance(found, Entry)
    assert torch.equal(found.tensors["turned"], whole.T)
    assert not found.tensors["learned"].requires_grad


# Damage


def damage(cache: Cache, suffix: str, content: bytes | None) -> Damaged | Entry | None:
    cache.store(WHAT, STATE, {})
    (file,) = cache.folder.glob(f"*{suffix}")
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    found = cache.load(WHAT)
    assert not isinstance(found, Damaged) or found.file == file.name
    return found


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "[1]", "3", "null", '"card"', "{}", '{"ingredients": 3}', "\ud800", '{"sha256": "0"}']
)
def test_a_card_that_is_not_whole_is_named(cache: Cache, text: str) -> None:
    found = damage(cache, ".json", text.encode(errors="surrogatepass"))
    assert isinstance(found, Damaged)
    assert found.why in ("it is not a whole card", "it describes another network")


def test_a_card_of_another_network_is_named(cache: Cache) -> None:
    other = Cache(cache.folder / "other")
    other.store({**WHAT, "seed": 1}, STATE, {})
    (card,) = other.folder.glob("*.json")
    found = damage(cache, ".json", card.read_bytes())
    assert isinstance(found, Damaged)
    assert found.why == "it describes another network"


@pytest.mark.parametrize("content", [b"", b"\0" * 8, b"not weights"])
def test_weights_that_are_not_what_the_card_says_are_named(cache: Cache, content: bytes) -> None:
    found = damage(cache, ".safetensors", content)
    assert isinstance(found, Damaged)
    assert found.why == "its content is not what its card says"


def test_missing_weights_are_named_and_a_missing_card_is_no_entry(cache: Cache) -> None:
    found = damage(cache, ".safetensors", None)
    assert isinstance(found, Damaged)
    assert found.why == "it is missing beside its card"
    assert damage(cache, ".json", None) is None


def test_weights_that_are_none_are_named_even_with_the_right_hash(cache: Cache) -> None:
    cache.store(WHAT, STATE, {})
    (card,), (weights,) = cache.folder.glob("*.json"), cache.folder.glob("*.safetensors")
    weights.write_bytes(b"not weights")
    written = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({**written, "sha256": hashlib.sha256(b"not weights").hexdigest()}), encoding="utf-8")
    found = cache.load(WHAT)
    assert isinstance(found, Damaged)
    assert (found.file, found.why) == (weights.name, "it holds no weights")


# The nearest entry


def test_the_nearest_entry_is_the_one_with_the_fewest_differences(cache: Cache) -> None:
    assert cache.nearest(WHAT) is None
    cache.store({**WHAT, "seed": 1, "recipe": {"lr": 0.2, "steps": 5}}, STATE, {"seconds": 1})
    cache.store({**WHAT, "recipe": {"lr": 0.2, "steps": 5}}, STATE, {"seconds": 2})
    nearest = cache.nearest(WHAT)
    assert nearest is not None
    assert nearest.differences == ("recipe.lr: 0.2 → 0.1",)
    assert nearest.card["seconds"] == 2


def test_what_only_looks_like_a_card_is_not_the_nearest_one(cache: Cache) -> None:
    cache.store({**WHAT, "name": "ada-two"}, STATE, {})
    mark = "0" * 16
    for number, text in enumerate(["", "[]", "3", "null", '{"ingredients": [1]}', '{"ingredients": null}']):
        (cache.folder / f"expert-ada-{number}{mark[1:]}.json").write_text(text)
    (cache.folder / f"expert-ada-f{mark[1:]}.json").mkdir()
    assert cache.nearest(WHAT) is None


def test_differences_are_said_in_words_and_hashes_by_name() -> None:
    before = {"base": "a" * 64, "recipe": {"lr": 0.1, "steps": 5}, "seed": 0}
    after = {"base": "b" * 64, "recipe": {"lr": 0.2, "steps": 5}, "seed": 0, "format": 2}
    assert changed(before, after) == ["base", "format: None → 2", "recipe.lr: 0.1 → 0.2"]
    assert changed(before, before) == []


def test_another_network_is_one_difference_and_not_one_for_each_tensor() -> None:
    before = {"network": {"name": "mlp", "tensors": {"layer1.weight": [512, 784]}}}
    after = {"network": {"name": "convnet", "tensors": {"conv1.weight": [48, 1, 5, 5]}}}
    assert changed(before, after) == ["network: mlp → convnet"]


# The folder


def test_the_folder_is_the_one_in_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("APGD_TEACH_CACHE", str(tmp_path / "mine"))
    assert own_folder() == Cache().folder == tmp_path / "mine"


def test_a_tilde_is_the_home_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("APGD_TEACH_CACHE", "~/mine")
    assert Cache().folder == Cache("~/mine").folder == tmp_path / "mine"


def test_the_home_of_nobody_is_a_folder_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APGD_TEACH_CACHE", "~nobody-of-this-name/mine")
    assert Cache().folder.name == "mine"


def test_a_relative_folder_is_the_one_seen_from_here_for_processes_elsewhere_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APGD_TEACH_CACHE", "mine")
    monkeypatch.setenv("APGD_TEACH_DATA", "")
    assert own_folder() == tmp_path / "mine"
    assert settled({"APGD_TEACH_CACHE": "mine", "OTHER": "x"}) == {
        "APGD_TEACH_CACHE": str(tmp_path / "mine"),
        "OTHER": "x",
    }


@pytest.mark.parametrize("empty", [True, False])
def test_unnamed_the_folder_is_in_the_users_own_cache(monkeypatch: pytest.MonkeyPatch, empty: bool) -> None:
    if empty:
        monkeypatch.setenv("APGD_TEACH_CACHE", "")
    else:
        monkeypatch.delenv("APGD_TEACH_CACHE")
    assert own_folder().is_absolute()
    assert "apgd_teach" in own_folder().parts


def test_trying_the_folder_leaves_nothing_in_it(cache: Cache) -> None:
    cache.check()
    assert files(cache) == []


# A folder that takes nothing


def test_a_folder_that_cannot_be_made_gets_its_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "file").write_text("mine")
    cache = Cache(tmp_path / "file" / "cache")
    assert cache.load(WHAT) is None
    assert cache.nearest(WHAT) is None
    for attempt in (cache.check, lambda: cache.store(WHAT, STATE, {})):
        with pytest.raises(CacheError) as caught:
            attempt()
        assert f"in the cache {os.path.join('~', 'file', 'cache')} (" in str(caught.value)
        assert str(caught.value).endswith("; make room there or name another folder in APGD_TEACH_CACHE.")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(
    os.name != "posix" or not hasattr(os, "geteuid") or os.geteuid() == 0, reason="needs a user bound by permissions"
)
def test_a_folder_that_may_only_be_read_gets_its_sentence_and_can_be_read(cache: Cache) -> None:
    cache.store(WHAT, STATE, {})
    cache.folder.chmod(0o555)
    try:
        assert isinstance(cache.load(WHAT), Entry)
        with pytest.raises(CacheError, match=r"cannot be kept in the cache .* \(Permission denied\)"):
            cache.check()
    finally:
        cache.folder.chmod(0o755)


@contextmanager
def no_file_longer_than(size: int) -> Iterator[None]:
    """A real limit of the system's: what is written beyond it fails, as on a full disk."""
    resource = pytest.importorskip("resource", reason="needs limits as POSIX has them")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_gets_its_sentence_and_nothing_half_written_is_left(cache: Cache) -> None:
    cache.store({**WHAT, "seed": 1}, STATE, {})
    before = files(cache)
    with no_file_longer_than(100_000), pytest.raises(CacheError, match=r"expert-ada-\w+\.safetensors cannot be kept"):
        cache.store(WHAT, {"weight": torch.zeros(100_000)}, {})
    assert files(cache) == before
    assert cache.load(WHAT) is None
    assert isinstance(cache.load({**WHAT, "seed": 1}), Entry)


def test_a_card_that_cannot_be_written_is_no_entry_and_the_next_attempt_makes_one(cache: Cache) -> None:
    with no_file_longer_than(1_000), pytest.raises(CacheError, match=r"expert-ada-\w+\.json cannot be kept"):
        cache.store(WHAT, {"weight": torch.zeros(2)}, {"remark": "x" * 2_000})
    assert cache.load(WHAT) is None
    assert not [name for name in files(cache) if name.endswith(".tmp")]
    cache.store(WHAT, STATE, {})
    assert isinstance(cache.load(WHAT), Entry)


def test_a_folder_in_the_place_of_a_file_gets_its_sentence_and_is_left_alone(cache: Cache) -> None:
    cache.store(WHAT, STATE, {})
    (weights,) = cache.folder.glob("*.safetensors")
    weights.unlink()
    weights.mkdir()
    (weights / "mine.txt").write_text("kept")
    found = cache.load(WHAT)
    assert isinstance(found, Damaged)
    assert found.file == weights.name
    with pytest.raises(CacheError, match=weights.name):
        cache.store(WHAT, STATE, {})
    assert (weights / "mine.txt").read_text() == "kept"
