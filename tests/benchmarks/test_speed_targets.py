"""The committed measurements of speed say what the library claims of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.mark.parametrize(("size", "least"), [("768 × 768", 10), ("3072 × 768", 30)])
def test_rows_are_solved_so_many_times_as_fast_as_by_the_published_loop(size: str, least: float) -> None:
    layers = {one["size"]: one for one in json.loads((FOLDER / "layers.json").read_text())["layers"]}
    assert layers[size]["least"]["row exact"] >= least
    assert layers[size]["least"]["solver alone"] >= 50
    assert max(layers[size]["left"].values()) <= 1e-6


def test_eight_experts_of_the_size_of_vit_b_32_are_merged_in_five_minutes() -> None:
    assert json.loads((FOLDER / "vit.json").read_text())["vit"]["seconds"] <= 300
