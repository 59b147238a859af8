"""The study of settings: its arithmetic on results made up by hand, and its committed report against its results."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from apgd_teach import models
from apgd_teach.cache import Cache
from apgd_teach.merging import METHODS, Apgd
from apgd_teach.merging.rank import RULES

FOLDER = Path(__file__).parents[2] / "benchmarks"
NAMES = ("settings", "protection", "steps")
committed = pytest.mark.parametrize("name", NAMES)


@pytest.fixture
def study(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/settings.py`, with its results in a folder of the test."""
    monkeypatch.setenv("RESULTS", str(tmp_path / "results.json"))
    module = script("settings")
    # Its report is written beside it: here that is the test's folder.
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


@pytest.fixture
def pools(study: ModuleType) -> ModuleType:
    return sys.modules["pools"]


def cells_of(recovered: dict[str, float], base: float = 50.0, experts: float = 90.0) -> dict[str, dict[str, float]]:
    """The cells of one pool in which each candidate recovers so much."""
    ends = {"base": {"mean": base, "worst": base}, "experts": {"mean": experts, "worst": experts}}
    between = {name: base + share * (experts - base) for name, share in recovered.items()}
    return {**ends, **{name: {"mean": mean, "worst": mean - 9} for name, mean in between.items()}}


def filled(study: ModuleType, part: str, names, share) -> dict:
    """Results of every pool of a part; `share(name, group, seed)` is what a candidate recovers."""
    return {
        part: {
            study.key_of(one): cells_of({name: share(name, one.group, one.seed) for name in names})
            for one in study.settings_of(part)
        }
    }


def rows_of(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table, its headings first."""
    lines = [line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|")]
    return [lines[0], *lines[2:]]


# The candidates and the pools


def test_every_candidate_can_be_made(study: ModuleType) -> None:
    for candidates in study.STUDIES.values():
        for name, (method, given) in candidates.items():
            made = METHODS[method](**given)
            assert made.name == method, name


def test_candidates_that_are_called_differently_are_different(study: ModuleType) -> None:
    for candidates in study.STUDIES.values():
        made = [METHODS[method](**given) for method, given in candidates.values()]
        assert len(set(made)) == len(made)


def test_every_rule_for_the_rank_is_in_the_study(study: ModuleType) -> None:
    assert set(study.RULES) == set(RULES)
    assert all(study.RANKS[f"protect {rule}"][1]["protect"] == rule for rule in study.RULES)
    assert all(study.RANKS[f"protect {name}"][1]["protect"] == share for name, share in study.CONSTANTS.items())


def test_the_candidate_that_is_called_the_default_computes_what_the_default_computes(study: ModuleType) -> None:
    """By hand, where there is neither a base nor a bias, which is where the default has moved on since."""
    method, given = study.SETTINGS[study.DEFAULT]
    assert method == "apgd"
    assert dataclasses.replace(METHODS[method](**given), reach=Apgd.reach, biases=Apgd.biases, strength=None) == Apgd()
    tau = torch.randn(3, 20, 30, generator=torch.Generator().manual_seed(0))
    assert torch.equal(METHODS[method](**given)(tau).matrix, Apgd()(tau).matrix)


def test_no_seed_or_network_with_its_tasks_is_both_designed_on_and_held_out(study: ModuleType) -> None:
    design, held_out = (set(study.settings_of(part)) for part in ("design", "held-out"))
    assert not {study.key_of(one) for one in design} & {study.key_of(one) for one in held_out}
    assert not {one.seed for one in design} & {one.seed for one in held_out}
    assert study.IMAGES["design"][0] == "validation"
    assert study.IMAGES["held-out"][0] == "test"


def test_the_settings_of_a_part_are_all_of_them_and_only_the_networks_asked_for(study: ModuleType) -> None:
    for part, given in study.PARTS.items():
        found = list(study.settings_of(part))
        assert len(found) == len(set(found)) == sum(4 * len(seeds) for _, _, seeds in given)
        assert len({study.key_of(one) for one in found}) == len(found)
        for name in {one.network for one in found}:
            assert list(study.settings_of(part, [name])) == [one for one in found if one.network == name]


def test_the_network_of_its_own_can_be_made(pools: ModuleType) -> None:
    encoder = models.make_encoder("deep", 0)
    assert encoder(torch.rand(2, 1, 28, 28)).shape == (2, models.ENCODERS["deep"].features)


def test_importing_the_study_leaves_nothing_behind() -> None:
    """As the fixture of the tests before this one left it."""
    assert "deep" not in models.ENCODERS
    assert "pools" not in sys.modules
    assert torch.linalg.eigh.__module__ != "settings"


# The arithmetic


def test_recovered_is_the_share_of_the_way_from_the_base_to_the_experts(study: ModuleType) -> None:
    cells = {name: {"mean": mean, "worst": 0.0} for name, mean in (("base", 80.0), ("experts", 90.0), ("x", 78.0))}
    assert study.recovered(cells, "x") == pytest.approx(-0.2)
    assert study.recovered(cells, "base") == 0
    assert study.recovered(cells, "experts") == 1


@pytest.mark.parametrize(("count", "factor"), [(2, 12.706), (3, 4.303), (4, 3.182), (5, 2.776)])
def test_the_spread_is_half_of_students_interval(study: ModuleType, count: int, factor: float) -> None:
    values = [0.1, 0.7, 0.4, -0.3, 0.9][:count]
    mean, spread = study.mean_and_spread(values)
    assert mean == pytest.approx(sum(values) / count)
    deviation = math.sqrt(sum((one - mean) ** 2 for one in values) / (count - 1))
    assert spread == pytest.approx(factor * deviation / math.sqrt(count), rel=2e-3)


def test_one_value_has_no_spread(study: ModuleType) -> None:
    mean, spread = study.mean_and_spread([0.3])
    assert mean == 0.3
    assert math.isnan(spread)


def test_groups_hold_the_seeds_that_are_finished(study: ModuleType) -> None:
    results = filled(study, "design", ["a", "b"], lambda name, group, seed: 0.5)
    keys = sorted(results["design"])
    groups = study.groups_of(results, "design", ["a", "b"])
    assert sum(map(len, groups.values())) == len(keys)
    group, whole = next(iter(groups.items()))
    own = [key for key in keys if key.startswith(f"{group}, ")]
    assert len(whole) == len(own) > 1

    del results["design"][own[0]]["b"]
    assert len(study.groups_of(results, "design", ["a", "b"])[group]) == len(own) - 1
    assert len(study.groups_of(results, "design", ["a"])[group]) == len(own)
    del results["design"][own[1]]["experts"]
    for key in own[2:]:
        del results["design"][key]
    assert group not in study.groups_of(results, "design", ["a", "b"])
    assert study.groups_of(results, "held-out", ["a"]) == {}


def test_the_table_means_over_seeds_and_no_setting_counts_below_minus_one(study: ModuleType) -> None:
    names = list(study.SETTINGS)
    first = next(iter(study.settings_of("design"))).group

    def share(name: str, group: str, seed: int) -> float:
        return (-40.0 if group == first else 0.2 + 0.1 * seed) if name == names[0] else 0.5

    results = filled(study, "design", names, share)
    heads, one, *others = rows_of(study.table(results, "design", "settings"))
    seeds = {one.seed for one in study.settings_of("design")}
    usual = 0.2 + 0.1 * statistics.fmean(seeds)
    groups = len(heads) - 2
    assert one[0] == names[0]
    assert one[1 + heads[1:].index(first)] == "-40.00"
    assert one[2] == f"{usual:.2f}"
    assert one[-1] == f"{(-1 + (groups - 1) * usual) / groups:.2f}"
    assert [row[0] for row in others] == names[1:]
    assert {cell for row in others for cell in row[1:]} == {"0.50"}


def test_the_target_holds_a_rule_against_the_best_constant_of_each_setting(study: ModuleType) -> None:
    groups = list(dict.fromkeys(one.group for one in study.settings_of("design")))
    constants, (rule, other, *rest) = list(study.CONSTANTS), study.RULES

    def share(name: str, group: str, seed: int) -> float:
        what, place = name.removeprefix("protect "), groups.index(group)
        noise = {0: -0.01, 1: 0.0, 2: 0.01}[seed]
        if what in constants:
            # The first constant is best in the first setting, the second in all others.
            return noise + {constants[0]: 0.9 if place == 0 else 0.2, constants[1]: 0.6}.get(what, 0.1)
        if what == rule:  # within a tenth everywhere but in the last setting
            return noise + (0.85 if place == 0 else 0.3 if place == len(groups) - 1 else 0.55)
        return noise + (0.95 if what == other else -50.0)

    table = rows_of(study.target(filled(study, "design", study.RANKS, share), "design", "ranks"))[1:]
    found = {row[0]: row[1:] for row in table}
    n = len(groups)
    assert list(found) == [f"best single constant, {constants[1]}", *study.RULES]
    assert found[f"best single constant, {constants[1]}"] == ["0.600", f"{n - 1} of {n}", f"0.30 ({groups[0]})"]
    assert found[rule] == [f"{(0.85 + 0.3 + (n - 2) * 0.55) / n:.3f}", f"{n - 1} of {n}", f"0.30 ({groups[-1]})"]
    assert found[other][:2] == ["0.950", f"{n} of {n}"]
    assert found[other][2].startswith("-0.05")
    assert all(found[name][:2] == ["-1.000", f"0 of {n}"] for name in rest)


def test_the_target_is_looked_at_suite_by_suite(study: ModuleType) -> None:
    begin, rules = study.CHOOSING["protection"]
    suites = list(dict.fromkeys(one.group.rsplit(" ", 2)[0] for one in study.settings_of("held-out")))
    constants, rule = list(study.CONSTANTS), rules[0]

    def share(name: str, group: str, seed: int) -> float:
        what, first = name.removeprefix(begin), group.startswith(suites[0])
        if what in constants:
            return -3.0 if what != constants[2] else 0.4 if first else 0.2
        return 0.45 if what == rule and first else 0.35 if group.endswith("sgd mild") else 0.05

    heads, single, one, *others = rows_of(
        study.by_suite(filled(study, "held-out", study.PROTECTION, share), "held-out", "protection")
    )
    assert heads == ["rule", *suites]
    assert single[1:] == [f"0.400 ({constants[2]})"] + [f"0.200 ({constants[2]})"] * (len(suites) - 1)
    assert one[:2] == [rule, "0.450, 4 of 4"]
    assert one[2] == f"{(0.35 + 3 * 0.05) / 4:.3f}, 1 of 4"
    assert [row[0] for row in others] == list(rules[1:])
    assert {cell for row in others for cell in row[2:]} == {one[2]}


def test_rules_are_held_against_constants_on_the_same_pools(study: ModuleType) -> None:
    begin, rules = study.CHOOSING["protection"]

    def share(name: str, group: str, seed: int) -> float:
        return 0.2 * seed + {begin + rules[0]: 0.3, begin + "0": 0.1}.get(name, 0.0)

    text = study.ahead(filled(study, "design", study.PROTECTION, share), "design", "protection")
    heads, one, *others = rows_of(text)
    assert heads == ["rule minus constant", *study.CONSTANTS]
    assert one == [rules[0], "+0.200 ± 0.000", *["+0.300 ± 0.000"] * (len(study.CONSTANTS) - 1)]
    assert [row[1] for row in others] == ["-0.100 ± 0.000"] * (len(rules) - 1)
    assert f"over {len(list(study.settings_of('design')))} pools" in text


def test_what_is_called_auto_is_one_of_the_candidates(study: ModuleType) -> None:
    made = {name: METHODS[method](**given) for name, (method, given) in study.PROTECTION.items()}
    assert made["apgd"] == Apgd(**study.BEFORE)
    auto = dataclasses.replace(made["half flat, protect soft 1/16"], protect="auto")
    assert auto == Apgd(protect="auto", flatten=0.5, strength=3.0, **study.BEFORE)


def test_the_default_is_a_candidate_of_the_study_that_came_last(study: ModuleType) -> None:
    made = {name: METHODS[method](**given) for name, (method, given) in study.REACH.items()}
    assert made[study.LAST] == Apgd()
    assert made["neither"] == Apgd(**study.BEFORE)


def test_the_default_is_compared_with_its_peers_on_the_same_pools(study: ModuleType) -> None:
    peer = next(iter(study.PEERS))

    def share(name: str, group: str, seed: int) -> float:
        # Seeds differ by far more than the methods, which only a paired comparison does not mind.
        return 0.2 * seed + {study.DEFAULT: 0.3, peer: 0.1}.get(name, 0.0)

    heads, *rows = rows_of(study.paired(filled(study, "design", study.SETTINGS, share), "design"))
    assert [row[0] for row in rows] == list(study.PEERS)
    assert set(rows[0][1:]) == {"+0.20 ± 0.00"}
    assert len(heads) == len(rows[0])


def test_long_steps_are_counted_on_both_sides_of_a_limit(study: ModuleType) -> None:
    results = filled(study, "design", study.STEPS, lambda name, group, seed: -0.2 if name == "WUDI" else 0.4)
    for cells in results["design"].values():
        for name, cell in cells.items():
            cell["step"] = 0.6 if name in ("WUDI", "apgd") else 0.1
    pools, heads, *rows = len(results["design"]), *rows_of(study.long_steps(results, "design"))
    assert len(heads) == 3
    counts = {row[0]: row[1:] for row in rows}
    assert counts["50%"] == [f"{pools} of {2 * pools}", f"0 of {8 * pools}"]
    assert counts["75%"] == ["0 of 0", f"{pools} of {10 * pools}"]


# Running it


def test_results_go_where_the_environment_says_and_add_up(study: ModuleType, tmp_path: Path) -> None:
    assert tmp_path / "results.json" == study.RESULTS
    assert study.load() == {}
    study.store("design", "one", cells_of({"a": 0.5}))
    study.store("design", "one", {"b": {"mean": 1.0, "worst": 0.5}})
    study.store("held-out", "two", {"a": {"mean": 2.0, "worst": 0.5}})
    found = json.loads((tmp_path / "results.json").read_text())
    assert found == study.load()
    assert set(found["design"]["one"]) == {"base", "experts", "a", "b"}
    assert found["held-out"]["two"]["a"]["mean"] == 2.0


def test_cells_of_other_networks_are_not_put_beside_these(study: ModuleType, tmp_path: Path) -> None:
    study.store("design", "one", cells_of({"a": 0.5}), "protection")
    before = (tmp_path / "protection.json").read_text()
    with pytest.raises(SystemExit, match=r"these are not the networks that protection\.json was measured on"):
        study.store("design", "one", cells_of({"b": 0.5}, base=50.1), "protection")
    assert (tmp_path / "protection.json").read_text() == before
    study.store("design", "one", cells_of({"b": 0.5}, base=50.1))
    assert set(study.load()["design"]["one"]) == {"base", "experts", "b"}


@pytest.mark.parametrize("name", ["settings", "ranks", "protection"])
def test_what_is_there_is_not_computed_again(study: ModuleType, name: str, tmp_path: Path) -> None:
    results = filled(study, "design", study.STUDIES[name], lambda *one: 0.5)
    study.file_of(name).write_text(json.dumps(results))
    study.run("design", name, None, Cache(tmp_path / "networks"))
    assert json.loads(study.file_of(name).read_text()) == results
    assert not list(tmp_path.glob("networks/*"))


def test_what_is_remembered_of_a_decomposition_is_what_would_be_computed(study: ModuleType) -> None:
    draws = torch.randn(2, 256, 256, generator=torch.Generator().manual_seed(0))
    matrices = [one @ one.mT for one in draws]
    expected = [torch.linalg.eigh(one) for one in matrices]
    study.remember_decompositions(limit=1)
    for place in (0, 1, 0, 0, 1):
        for found, wanted in zip(torch.linalg.eigh(matrices[place]), expected[place], strict=True):
            assert torch.equal(found, wanted)
    small = torch.diag(torch.tensor([3.0, 1.0]))
    assert torch.linalg.eigh(small)[0].tolist() == [1.0, 3.0]


# What is committed


@committed
def test_the_report_is_what_the_results_make(study: ModuleType, tmp_path: Path, name: str) -> None:
    study.file_of(name).write_bytes((FOLDER / f"{name}.json").read_bytes())
    study.report()
    made = (tmp_path / f"{name}.md").read_text(encoding="utf-8")
    assert made == (FOLDER / f"{name}.md").read_text(encoding="utf-8"), "run `python benchmarks/settings.py report`"


@committed
def test_the_report_has_a_number_in_every_cell(name: str) -> None:
    text = (FOLDER / f"{name}.md").read_text(encoding="utf-8")
    assert "nan" not in text.lower().split()
    assert "inf" not in text.lower().split()
    assert "|  |" not in text


@committed
def test_every_candidate_of_the_report_is_still_in_the_code(study: ModuleType, name: str) -> None:
    known = {label for candidates in study.STUDIES.values() for label in candidates} | {*study.RULES, *study.SOFT}
    known |= {"candidate", "rule", "apgd minus", "rule minus constant", "---"}
    lines = (FOLDER / f"{name}.md").read_text(encoding="utf-8").splitlines()
    first = {line.strip("| ").split(" | ")[0] for line in lines if line[:1] == "|"}
    # Limits on a step's length, in per cent.
    first = {label for label in first if not re.fullmatch(r"\d+%", label)} - {"longest step ‖M‖/‖θ₀‖ of a tensor"}
    assert {label for label in first - known if not label.startswith("best single constant")} == set()


@committed
def test_the_committed_cells_are_percentages_of_pools_that_exist(study: ModuleType, name: str) -> None:
    for part, found in json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")).items():
        keys = {study.key_of(one) for one in study.settings_of(part)}
        assert set(found) <= keys
        for cells in found.values():
            assert {"base", "experts"} <= set(cells)
            for cell in cells.values():
                assert 0 <= cell["worst"] <= cell["mean"] <= 100
