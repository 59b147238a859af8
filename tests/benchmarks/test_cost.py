"""What merging costs: what is timed beside what, that it goes on where it stopped, and what the page says."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image


@pytest.fixture
def cost(script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`benchmarks/cost.py`, with results of its own."""
    module = script("cost")
    monkeypatch.setattr(module, "RESULTS", tmp_path / "cost.json")
    return module


def test_every_method_and_the_loop_are_called_on_the_same_task_vectors(cost: ModuleType) -> None:
    case = cost.Case(2, 24, 16)
    assert cost.task_vectors(case).shape == (2, 24, 16)
    assert list(cost.jobs(case)) == [*cost.METHODS, cost.LOOP]
    found = cost.timed(case)
    assert {len(turns) for turns in found.values()} == {cost.REPETITIONS}
    # Four hundred steps take longer than a mean.
    assert min(found[cost.LOOP]) > max(found["average"])


def test_a_deep_case_merges_a_network(cost: ModuleType) -> None:
    made = cost.jobs(cost.Case(2, 12, 10, 3))["apgd"]()
    assert list(made.state_dict) == ["0.weight", "1.weight", "2.weight"]
    assert not torch.equal(made.state_dict["0.weight"], made.state_dict["1.weight"])


@pytest.mark.slow
def test_memory_is_that_of_another_process(cost: ModuleType) -> None:
    layer = cost.Case(2, 1500, 1500)
    # The mean of two is one layer, which is there at the end however short the mean was; what came before the merge is
    # not counted, nor are the task vectors.
    shares = [cost.memory(layer, "average") / layer.megabytes for _ in range(3)]
    assert min(shares) > 0.9
    assert max(shares) < 4


def test_it_goes_on_where_it_stopped(cost: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(cost, "memory", lambda case, name: 3.0)
    monkeypatch.setattr(cost, "timed", lambda case: asked.append(case.name) or seconds(cost))
    cost.run(cost.QUICK[:1])
    cost.run(cost.QUICK)
    assert asked == [case.name for case in cost.QUICK]
    assert set(json.loads(cost.RESULTS.read_text())["cases"]) == {case.name for case in cost.QUICK}


def seconds(cost: ModuleType, of: float = 1.0) -> dict[str, list[float]]:
    """Made up: the loop takes 8, 12 and 20 times as long as everything else at its own turn."""
    ours = {name: [of, of, 2 * of] for name in cost.METHODS}
    return {**ours, cost.LOOP: [8 * of, 12 * of, 40 * of]}


def test_the_page_and_the_picture_are_made_from_the_file_alone(cost: ModuleType) -> None:
    cells = {
        case.name: {
            "seconds": seconds(cost, case.out**2 * case.tasks * case.depth / 1e6),
            "megabytes": dict.fromkeys((*cost.METHODS, cost.LOOP), 5 * case.megabytes),
        }
        for case in cost.CASES
    }
    cost.RESULTS.write_text(json.dumps({"conditions": "here", "cases": cells}))
    cost.report()
    page = cost.RESULTS.with_suffix(".md").read_text()
    # A ratio is of one turn each, and the median of those; not that of two medians.
    assert "| apgd | 12 | 12 | 12 | 12 |" in page
    assert "| apgd | 5.0 | 5.0 | 5.0 | 5.0 |" in page
    assert "| apgd | 2.0 | 1.0 |" in page
    picture = Image.open(BytesIO(cost.RESULTS.with_suffix(".png").read_bytes()))
    assert picture.size[0] <= 900


def test_without_results_there_is_a_sentence(cost: ModuleType) -> None:
    with pytest.raises(SystemExit, match=r"no results yet; run `python benchmarks/cost\.py run` first"):
        cost.report()


def test_the_cases_vary_one_thing_at_a_time(cost: ModuleType) -> None:
    assert len({(case.tasks, case.depth) for case in cost.WIDTHS}) == 1
    assert len({(case.out, case.columns, case.depth) for case in cost.TASKS}) == 1
    assert len({(case.tasks, case.out, case.columns) for case in cost.DEPTHS}) == 1
