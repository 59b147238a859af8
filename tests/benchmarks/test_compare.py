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
from apgd_teach.results import Record, load, save


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


@pytest.fixture
def filled(compare: ModuleType, pool: Pool, tmp_path: Path) -> Path:
    """Results of two suites of one family, two seeds each; the numbers of all but one pool are made up from it."""
    path = tmp_path / "compare.json"
    compare.measure("8 tasks, MLP, sgd mild", pool, path, LABELS)
    (first,) = load(path)

    def moved(suite: str, seed: int, by: float) -> Record:
        networks = {
            label: replace(one, accuracy={task: min(100.0, value + by * place) for task, value in one.accuracy.items()})
            for place, (label, one) in enumerate(first.networks.items())
        }
        return replace(first, suite=suite, seed=seed, networks=networks)

    hot = "8 tasks, MLP, sgd hot"
    save(path, [first, moved(first.suite, 31, 0.1), moved(hot, 30, 0.3), moved(hot, 31, -0.2)])
    return path


def written(compare: ModuleType, path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The page that the command writes."""
    monkeypatch.setattr(compare, "RESULTS", path)
    monkeypatch.setattr(compare, "SECOND", path.with_name("compare_again.json"))
    document = path.with_name("document.md")
    document.write_text("Before.\n<!-- compare: methods -->\nold\n<!-- compare end -->\nAfter.\n", encoding="utf-8")
    monkeypatch.setattr(compare, "DOCUMENTS", [document])
    monkeypatch.setattr(sys, "argv", ["compare.py", "report"])
    compare.main()
    return path.with_suffix(".md").read_text()


def test_the_page_is_made_from_the_file_alone(
    compare: ModuleType, filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = written(compare, filled, monkeypatch)
    assert "| network | 8 tasks, MLP | mean | worst task % |" in text
    assert "| RegMean |" in text
    assert "## Run twice" not in text
    assert "## Number of tasks" not in text
    assert "### " not in text
    trials = compare.compared.finished(load(filled))
    means = {
        label: fmean(
            100 * max(-1.0, one.recovered(label)) for each in trials.values() for one in each.compared.values()
        )
        for label in ("TSV-M", "TSV-M, rescaled")
    }
    peer = max(means, key=lambda label: (means[label], label))
    mine = compare.compared.plain(compare.compared.mean(compare.compared.shares(trials, "apgd")), 0)
    assert f"| 8 tasks, MLP | 4 | {mine} | " in text
    assert f" | {peer} | " in text
    pictures = [one.name for one in tmp_path.glob("*.png")]
    assert pictures == ["compare_families.png"]
    assert "(compare_families.png)" in text
    first = (filled.with_suffix(".md").read_bytes(), (tmp_path / "compare_families.png").read_bytes())
    written(compare, filled, monkeypatch)
    assert first == (filled.with_suffix(".md").read_bytes(), (tmp_path / "compare_families.png").read_bytes())


def test_documents_show_the_tables_that_they_name(
    compare: ModuleType, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = written(compare, filled, monkeypatch)
    text = filled.with_name("document.md").read_text(encoding="utf-8")
    assert text.startswith("Before.\n<!-- compare: methods -->\n")
    assert text.endswith("\n<!-- compare end -->\nAfter.\n")
    assert "old" not in text
    rows = [line for line in text.splitlines() if line.startswith("| TSV-M |")]
    assert len(rows) == 1
    assert rows[0] in page
    with pytest.raises(KeyError):
        compare.compared.insert("<!-- compare: nothing -->\n<!-- compare end -->", {"methods": ""})


def test_the_page_says_how_much_of_the_plan_was_measured(
    compare: ModuleType, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = written(compare, filled, monkeypatch)
    assert "| 8 tasks, MLP | 30, 31 | 4 | 20 |" in page
    assert "| 8 tasks, ConvNet | none yet | 0 | 20 |" in page
    assert "| 4 tasks, ConvNet | none yet | 0 | 10 |" in page


def test_a_row_that_one_seed_lacks_is_in_no_table(
    compare: ModuleType, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other, *rest = load(filled)
    fewer = {label: each for label, each in other.networks.items() if label != "the paper"}
    save(filled, [one, replace(other, networks=fewer), *rest])
    assert "| the paper |" not in written(compare, filled, monkeypatch).partition("## Setting by setting")[0]


def test_a_lead_is_paired_by_family_and_seed(compare: ModuleType, filled: Path) -> None:
    """Four pools of one family and two seeds are two numbers, not four: pools of one seed share their base."""
    compared = compare.compared
    trials = compared.finished(load(filled))
    found = compared.shares(trials, "apgd")
    assert len(found) == 2
    for place, seed in enumerate((30, 31)):
        each = [100 * max(-1.0, one.compared[seed].recovered("apgd")) for one in trials.values()]
        assert found[place] == pytest.approx(fmean(each))
    lead = compared.lead(trials, "apgd", "average")
    assert lead.points == pytest.approx(fmean(found) - fmean(compared.shares(trials, "average")))


def test_the_number_of_tasks_is_a_curve(compare: ModuleType, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    records = [
        replace(one, suite=one.suite.replace("8 tasks, MLP", f"{tasks} tasks, ConvNet"))
        for one in load(filled)
        for tasks in (4, 12, 8)
    ]
    save(filled, records)
    text = written(compare, filled, monkeypatch)
    assert "| network | mild, 4 tasks | mild, 8 tasks | mild, 12 tasks | hot, 4 tasks |" in text
    assert "(compare_tasks.png)" in text
    assert filled.with_name("compare_tasks.png").exists()


def test_two_runs_of_a_cell_are_held_against_each_other(
    compare: ModuleType, filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = [replace(one, seed=one.seed + 5) for one in load(filled) if one.suite.endswith("mild")]
    save(filled.with_name("compare_again.json"), second)
    text = written(compare, filled, monkeypatch)
    rows = [row for row in text.splitlines() if row.startswith("| 8 tasks, MLP, sgd mild | ")]
    assert rows
    assert all(row.endswith("| yes |") and "| +0.0 ± " in row for row in rows)
    apart = [
        replace(
            one,
            networks={
                label: replace(
                    each, accuracy={task: value - 50 * (label == "apgd") for task, value in each.accuracy.items()}
                )
                for label, each in one.networks.items()
            },
        )
        for one in second
    ]
    save(filled.with_name("compare_again.json"), apart)
    text = written(compare, filled, monkeypatch)
    (row,) = (row for row in text.splitlines() if row.startswith("| 8 tasks, MLP, sgd mild | apgd |"))
    assert row.endswith("| no |")


def test_a_row_can_be_repeated(
    compare: ModuleType, pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    path = tmp_path / "compare.json"
    compare.measure("8 tasks, MLP, sgd hot", pool, path, ["average"])
    asked = []

    def pools_of(name: str, seeds: list[int], cache: Cache, **given: object) -> list[tuple[str, Pool]]:
        asked.append((name, seeds, given))
        return [("8 tasks, MLP, sgd hot", pool)]

    monkeypatch.setattr(compare, "pools_of", pools_of)
    monkeypatch.setattr(compare, "RESULTS", path)
    ask = ["compare.py", "repeat", "--suite", "8 tasks, MLP, sgd hot", "--seed", "30", "--cache", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", [*ask, "--row", "average"])
    before = path.read_bytes()
    compare.main()
    said = capsys.readouterr().out
    assert asked == [("8 tasks, MLP", [30], {"optimizers": ["sgd"], "regimes": ["hot"]})]
    assert "The same base and experts, to the last digit." in said
    (mean,) = (line for line in said.splitlines() if line.startswith("mean"))
    assert mean.split()[-1] == "0.0"
    assert path.read_bytes() == before
    monkeypatch.setattr(sys, "argv", [*ask, "--row", "apgd"])
    with pytest.raises(SystemExit, match=r"has no row 'apgd' of '8 tasks, MLP, sgd hot' with the seed 30"):
        compare.main()


def test_results_of_two_machines_are_joined(compare: ModuleType, filled: Path, tmp_path: Path) -> None:
    one, *others = load(filled)
    parts = [tmp_path / "one.json", tmp_path / "two.json"]
    half = {label: each for label, each in one.networks.items() if label in ("base", "experts", "apgd")}
    save(parts[0], [others[1], replace(one, networks=half)])
    save(parts[1], [one, others[0], others[2]])
    compare.join(parts, tmp_path / "joined.json")
    joined = load(tmp_path / "joined.json")
    assert [(record.suite, record.seed) for record in joined] == [(each.suite, each.seed) for each in [one, *others]]
    assert set(joined[0].networks) == set(one.networks)
    save(parts[1], [replace(one, inputs={**one.inputs, "base": "another"})])
    before = (tmp_path / "joined.json").read_bytes()
    with pytest.raises(ApgdTeachError, match="8 tasks, MLP, sgd mild, seed 30, is of other networks in one file"):
        compare.join(parts, tmp_path / "joined.json")
    assert (tmp_path / "joined.json").read_bytes() == before


def test_the_page_that_is_kept_is_that_of_the_file_that_is_kept(compare: ModuleType) -> None:
    folder = Path(compare.__file__).parent
    compared = compare.compared
    trials = compared.finished(load(folder / "compare.json"))
    pictures = {"families": "compare_families.png"}
    if compared.by_tasks(trials):
        pictures["tasks"] = "compare_tasks.png"
    again = compared.finished(load(folder / "compare_again.json"))
    assert (folder / "compare.md").read_text() == compared.page(trials, again, compare.GROUPS, pictures, compare.plan())
    tables = compared.quoted(trials, compare.GROUPS, compare.plan())
    for document in compare.DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert compared.insert(text, tables) == text
    assert all((folder / one).exists() for one in pictures.values())


def test_no_seed_chose_anything(compare: ModuleType) -> None:
    looked_at = {seed for parts in sys.modules["pools"].PARTS.values() for *_, seeds in parts for seed in seeds}
    assert not looked_at & {*compare.SEEDS, *compare.SEEDS_AGAIN}
    assert not {*compare.SEEDS} & {*compare.SEEDS_AGAIN}
    assert len(compare.SEEDS) == 5


def test_one_piece_at_a_time_is_for_two_suites(compare: ModuleType, pool: Pool) -> None:
    everything = {label for group in compare.GROUPS.values() for label in group} | set(compare.references(pool))
    assert set(compare.rows("8 tasks, MLP", pool)) == everything
    assert set(compare.rows("8 tasks, deep MLP", pool)) == everything - set(compare.ABLATIONS)
    assert set(compare.ABLATED) <= set(compare.SUITES)
    assert sum(map(len, compare.GROUPS.values())) + len(compare.references(pool)) == len(everything)


def test_every_suite_has_its_tasks(compare: ModuleType) -> None:
    sizes = {name: len(suite.tasks) for name, suite in compare.SUITES.items() if not suite.colour}
    assert all(name.startswith(f"{size} tasks") for name, size in sizes.items())


def test_into_keeps_the_shared_subspace_and_nothing_else(compare: ModuleType) -> None:
    """Off it and into it are the two halves of the free Δ."""
    tau = torch.randn(3, 12, 20, generator=torch.Generator().manual_seed(1))
    plain = {"protect": 0.25, "flatten": 0.0, "reach": None}
    off, into, free = compare.Apgd(**plain), compare.Into(**plain), compare.Apgd(**{**plain, "protect": 0.0})
    basis = off.protected(tau)
    start = free.solve(tau).start
    moved = {one: method(tau).matrix - start for one, method in {"off": off, "into": into, "free": free}.items()}
    inside = basis @ basis.mT
    torch.testing.assert_close(inside @ moved["into"], moved["into"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inside @ moved["off"], torch.zeros_like(start), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(moved["into"] + moved["off"], moved["free"], atol=1e-5, rtol=1e-5)
    assert moved["into"].norm() > 0.1 * moved["free"].norm()
