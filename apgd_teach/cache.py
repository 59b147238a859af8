"""A cache of trained networks, keyed by everything that went into them.

An entry is two files: `KIND-NAME-KEY.safetensors` with the weights and `KIND-NAME-KEY.json`, its card. The key is a
hash of the ingredients and of nothing else (not the library's version, not the machine), so a folder handed round a
room works for everyone. Both files are written under another name first and then renamed, the card last: an entry
without its card does not exist.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from apgd_teach.errors import CacheError
from apgd_teach.files import own_folder, shown, try_folder, write_atomically

__all__ = ["FORMAT", "Cache", "Damaged", "Entry", "Nearest", "changed"]

FORMAT = 1
"""Version of the cache's layout and of what the training code makes of its ingredients: part of every key."""

Ingredients = Mapping[str, object]


@dataclass(frozen=True)
class Entry:
    """A trained network as the cache holds it.

    Attributes:
        tensors: the weights by name, on the CPU.
        card: what is known of it: the ingredients, SHA-256 of the weights file, accuracy, seconds of training.
    """

    tensors: dict[str, Tensor]
    card: dict[str, object]


@dataclass(frozen=True)
class Damaged:
    """An entry that is there and cannot be used: which file, and why."""

    file: str
    why: str


@dataclass(frozen=True)
class Nearest:
    """The cached network most like the one asked for: its card, and in what it differs ("recipe.lr: 0.03 → 0.1")."""

    card: dict[str, object]
    differences: tuple[str, ...]


class Cache:
    """A folder of trained networks.

    Args:
        folder: where; made when something is about to be stored. None: `files.own_folder()`.

    Lesson: 01.
    """

    def __init__(self, folder: str | Path | None = None) -> None:
        self.folder = Path(os.path.expanduser(folder)) if folder is not None else own_folder()

    def load(self, ingredients: Ingredients) -> Entry | Damaged | None:
        """The entry made of exactly these ingredients; None if there is none; `Damaged` if its files are not whole."""
        card_file = self._file(ingredients, ".json")
        weights_file = self._file(ingredients, ".safetensors")
        try:
            text = card_file.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            return Damaged(card_file.name, f"it cannot be read ({error.strerror})")
        try:
            card = json.loads(text)
            if card["ingredients"] != _plain(ingredients):
                return Damaged(card_file.name, "it describes another network")
            expected = card["sha256"]
        except (ValueError, KeyError, TypeError):
            return Damaged(card_file.name, "it is not a whole card")
        try:
            content = weights_file.read_bytes()
        except FileNotFoundError:
            return Damaged(weights_file.name, "it is missing beside its card")
        except OSError as error:
            return Damaged(weights_file.name, f"it cannot be read ({error.strerror})")
        if hashlib.sha256(content).hexdigest() != expected:
            return Damaged(weights_file.name, "its content is not what its card says")
        try:
            return Entry(load_bytes(content), card)
        except SafetensorError:
            return Damaged(weights_file.name, "it holds no weights")

    def check(self) -> None:
        """Try whether anything can be kept here: better said before an hour of training than after it.

        Raises:
            CacheError: the folder cannot be made or written.
        """
        try:
            try_folder(self.folder)
        except OSError as error:
            raise self._refusal("Trained networks", error) from None

    def store(self, ingredients: Ingredients, tensors: Mapping[str, Tensor], facts: Mapping[str, object]) -> Entry:
        """Keep a network.

        Args:
            ingredients: everything that it depends on; "kind" and "name" give the files their names.
            tensors: the weights, on any device.
            facts: what else its card should say (accuracy, seconds).

        Raises:
            CacheError: the folder cannot be written or the disk is full. Nothing half-written is left.
        """
        content = save_bytes({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()})
        card = {**_plain(facts), "ingredients": _plain(ingredients), "sha256": hashlib.sha256(content).hexdigest()}
        text = json.dumps(card, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
        # The card last: until it is there the entry is not, and an older card does not have the hash of these weights.
        self._write(self._file(ingredients, ".safetensors"), content)
        self._write(self._file(ingredients, ".json"), text.encode())
        return Entry(load_bytes(content), card)

    def nearest(self, ingredients: Ingredients) -> Nearest | None:
        """The card whose ingredients are most like these, among those of the same kind and name; None without any.

        Differences are none where the very network is there and only its weights are damaged.
        """
        best: Nearest | None = None
        stem = _stem(ingredients)
        for file in sorted(self.folder.glob(f"{glob.escape(stem)}-*.json")):
            if not re.fullmatch(rf"{re.escape(stem)}-[0-9a-f]{{16}}\.json", file.name):
                continue
            try:
                card = json.loads(file.read_bytes())
                differences = changed(card["ingredients"], _plain(ingredients))
            except (OSError, ValueError, KeyError, TypeError, AttributeError):
                continue
            if best is None or len(differences) < len(best.differences):
                best = Nearest(card, tuple(differences))
        return best

    def _file(self, ingredients: Ingredients, suffix: str) -> Path:
        text = json.dumps(_plain(ingredients), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return self.folder / f"{_stem(ingredients)}-{hashlib.sha256(text.encode()).hexdigest()[:16]}{suffix}"

    def _write(self, file: Path, content: bytes) -> None:
        try:
            write_atomically(file, content)
        except OSError as error:
            raise self._refusal(f"The trained network {file.name}", error) from None

    def _refusal(self, what: str, error: OSError) -> CacheError:
        return CacheError(
            f"{what} cannot be kept in the cache {shown(self.folder)} ({error.strerror or error}); "
            "make room there or name another folder in APGD_TEACH_CACHE."
        )


def changed(before: Ingredients, after: Ingredients, path: str = "") -> list[str]:
    """In words, in what two sets of ingredients differ: "recipe.lr: 0.03 → 0.1"."""
    differences = []
    for key in sorted(set(before) | set(after)):
        old, new = before.get(key), after.get(key)
        name = f"{path}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            if old.get("name") != new.get("name"):
                # Another thing altogether: in what else it differs goes without saying.
                differences.append(f"{name}: {old.get('name')} → {new.get('name')}")
            else:
                differences += changed(old, new, f"{name}.")
        elif old != new:
            # Hashes say nothing to a reader: their ingredient's name is enough.
            hashes = any(isinstance(value, str) and re.fullmatch(r"[0-9a-f]{64}", value) for value in (old, new))
            differences.append(name if hashes else f"{name}: {old} → {new}")
    return differences


def _stem(ingredients: Ingredients) -> str:
    return f"{ingredients['kind']}-{ingredients['name']}"


def _plain(ingredients: Ingredients) -> dict[str, object]:
    """As JSON gives them back, so that a tuple and a list are the same ingredient."""
    plain: dict[str, object] = json.loads(json.dumps(dict(ingredients)))
    return plain
