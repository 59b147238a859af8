"""The scripts of `benchmarks/` are no package: they are imported for one test, and nothing of them stays behind."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from apgd_teach import models

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a script by its name, with `pools`, which all of them use."""
    networks, eigh = dict(models.ENCODERS), torch.linalg.eigh
    before: dict[str, ModuleType | None] = {}
    monkeypatch.syspath_prepend(str(FOLDER))

    def take(name: str) -> ModuleType:
        before.update({one: sys.modules.pop(one, None) for one in ("pools", "compared", name)})
        return importlib.import_module(name)

    try:
        yield take
    finally:
        for name, module in before.items():
            sys.modules.pop(name, None)
            if module is not None:
                sys.modules[name] = module
        models.ENCODERS.clear()
        models.ENCODERS.update(networks)
        torch.linalg.eigh = eigh
