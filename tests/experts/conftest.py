"""A small real tier (300 bundled pictures of each family), and a cache filled once and copied to be damaged."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from apgd_teach.cache import Cache
from apgd_teach.data import Family, FamilyData, Source
from apgd_teach.data.bundled import read_bundled
from apgd_teach.experts import Pool, make_pool

TASKS = ("digits-upright", "fashion-flipped")


def small_source(images: int = 300, tier: str = "small") -> Source:
    """The first pictures of each family, as a tier of their own."""

    def read(family: Family) -> FamilyData:
        arrays, _ = read_bundled(family)
        few = {name: array[:images] for name, array in arrays.items()}
        content = b"".join(few[name].tobytes() for name in sorted(few))
        return FamilyData(family=family, sha256=hashlib.sha256(content).hexdigest(), **few)

    return Source(tier, f"{images} images of each family.", read)


@pytest.fixture(scope="session")
def make_source() -> Callable[..., Source]:
    return small_source


@pytest.fixture(scope="session")
def source() -> Source:
    return small_source()


@pytest.fixture(scope="session")
def make(source: Source) -> Callable[..., Pool]:
    """A pool of two tasks in a few steps; whatever is named differs from that."""

    def pool(folder: Path, **other: object) -> Pool:
        settings: dict[str, object] = {
            "network": "mlp",
            "tasks": TASKS,
            "base_steps": 4,
            "expert_steps": 5,
            "source": source,
            "device": "cpu",
            "progress": False,
        }
        return make_pool(cache=Cache(folder), **{**settings, **other})

    return pool


@pytest.fixture(scope="session")
def filled(make: Callable[..., Pool], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Pool]:
    """A cache with the pool in it, not to be changed, and the pool."""
    folder = tmp_path_factory.mktemp("filled")
    return folder, make(folder)


@pytest.fixture
def folder(filled: tuple[Path, Pool], tmp_path: Path) -> Path:
    """A copy of the filled cache."""
    return Path(shutil.copytree(filled[0], tmp_path / "cache"))
