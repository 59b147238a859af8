"""The comparison: what it measures, that it goes on where it stopped, and what its page says."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType

import pytest
import torch

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError
from apgd_teach.experts import Pool, make_pool
from apgd_teach.merging import merge
from apgd_teach.results import load, save


@pytest.fixture
def compare(script: Callable[[str], ModuleType]) -> ModuleType:
    """`benchmarks/compare.py`."""
    return script("compare")


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return make_pool(
        "mlp",
        tasks=["digits-upright", "digits-noisy", "fashion-flipped"],
        base_steps=60,
        expert_steps=20,
        seed=30,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )


LABELS = ("average", "TSV-M", "TSV-M, rescaled", "apgd", "apgd: r/6 protected", "the paper", "RegMean")


def test_every_row_can_be_made_and_no_two_are_the_same(compare: ModuleType, pool: Pool) -> None:
    made = {label: make(pool) for label, make in compare.makers(pool).items() if label in LABELS}
    assert set(made) == set(LABELS)
    for one, other in itertools.combinations(made.values(), 2):
        assert any(not torch.equal(one.state_dict[key], other.state_dict[key]) for key in pool.base)
    used = {label: one.audit.data_used for label, one in made.items()}
    assert used.pop("RegMean") == "unlabelled"
    assert set(used.values()) == {"none"}


def test_a_rescaled_update_leaves_the_least_of_the_residual_that_any_length_does(compare: ModuleType) -> None:
    tau = torch.randn(4, 12, 18, generator=torch.Generator().manual_seed(0)) + 0.5
    for method in (compare.METHODS[label] for label in compare.PEERS if label != "TIES"):
        plain, scaled = (
            compare.call(one, tau, compare.Layer("a", tuple("abcd"))) for one in (method, compare.Rescaled(method))
        )
        scale = scaled.facts["scale"]
        torch.testing.assert_close(scaled.matrix, scale * plain.matrix)

        def left(matrix: torch.Tensor) -> float:
            residuals = (matrix - tau) @ tau.mT
            return float((residuals.square().sum(dim=(1, 2)) / tau.square().sum(dim=(1, 2))).sum())

        assert left(scaled.matrix) < min(left(0.98 * scaled.matrix), left(1.02 * scaled.matrix))


def test_ties_can_be_rescaled_too(compare: ModuleType, pool: Pool) -> None:
    """It trims over all layers together, so the merge has to know of its trim."""
    made = merge(pool.base, pool.experts, compare.RESCALED["TIES, rescaled"])
    assert made.audit.method == "ties, rescaled"
    assert compare.RESCALED["TIES, rescaled"].trim == compare.METHODS["TIES"].trim


def test_biases_are_taken_as_the_method_takes_them(compare: ModuleType) -> None:
    assert {label: one.biases for label, one in compare.RESCALED.items() if one.biases != "average"} == {
        "apgd, rescaled": "column"
    }
    assert {one.biases for one in compare.LIMITED.values()} == {"column"}


def test_it_goes_on_where_it_stopped(
    compare: ModuleType, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "compare.json"
    compare.measure("a suite", pool, path, LABELS[:2])
    first = path.read_bytes()
    asked: list[str] = []

    def counted(pool: Pool) -> dict:
        return {
            label: lambda pool, label=label, make=make: asked.append(label) or make(pool)
            for label, make in makers(pool).items()
        }

    makers = compare.makers
    monkeypatch.setattr(compare, "makers", counted)
    compare.measure("a suite", pool, path, LABELS[:2])
    assert asked == []
    assert path.read_bytes() == first
    compare.measure("a suite", pool, path, LABELS[:3])
    assert asked == ["TSV-M, rescaled"]
    (record,) = load(path)
    assert list(record.networks) == ["base", "experts", *LABELS[:3]]
    assert record.networks["average"].seconds > 0


def test_networks_that_are_not_those_of_the_file_are_not_mixed_in(
    compare: ModuleType, pool: Pool, tmp_path: Path
) -> None:
    path = tmp_path / "compare.json"
    compare.measure("a suite", pool, path, ["average"])
    before = path.read_bytes()
    moved = {key: tensor + 1e-3 if tensor.is_floating_point() else tensor for key, tensor in pool.base.items()}
    with pytest.raises(ApgdTeachError, match="'TSV-M' was merged from other networks than the results of a suite"):
        compare.measure("a suite", replace(pool, base=moved), path, ["TSV-M"])
    assert path.read_bytes() == before


def test_a_file_that_holds_no_results_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    assert load(path) == []
    for content in ("", "[]", '{"records": 3}', '{"records": [{"suite": "x"}]}'):
        path.write_text(content)
        with pytest.raises(ApgdTeachError, match=r"results that can"):
            load(path)
        assert path.read_text() == content


def test_the_page_is_made_from_the_file_alone(compare: ModuleType, pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "compare.json"
    for seed in (30, 31):
        compare.measure("a suite, sgd mild", replace(pool, seed=seed), path, LABELS)
    compare.report(path, tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert "| network | a suite, sgd mild | mean | worst task % |" in page
    assert "| TSV-M, rescaled |" in page
    assert "| RegMean |" in page
    peer = max(
        ("TSV-M", "TSV-M, rescaled"), key=lambda label: fmean(compare.shares(compare.finished(load(path)), label))
    )
    assert "| a suite | 2 | " in page
    assert f" | {peer} | " in page
    # A row that one seed lacks is in no table.
    one, other = load(path)
    fewer = {label: each for label, each in other.networks.items() if label != "the paper"}
    save(path, [one, replace(other, networks=fewer)])
    compare.report(path, tmp_path / "page.md")
    assert "| the paper |" not in (tmp_path / "page.md").read_text()


def test_no_seed_chose_anything(compare: ModuleType) -> None:
    looked_at = {seed for parts in sys.modules["pools"].PARTS.values() for *_, seeds in parts for seed in seeds}
    assert not looked_at & set(compare.SEEDS)
    assert len(compare.SEEDS) == 5


def test_every_suite_has_its_tasks(compare: ModuleType) -> None:
    sizes = {name: len(suite.tasks) for name, suite in compare.SUITES.items() if not suite.colour}
    assert all(name.startswith(f"{size} tasks") for name, size in sizes.items())
