"""What was measured, as records: into a notebook, out of it, and back to trials that say the same."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

from apgd_teach import merging
from apgd_teach.errors import ApgdTeachError
from apgd_teach.experts import Pool
from apgd_teach.results import MIME, Recorded, record, recorded_in, trials_of
from apgd_teach.trials import Trials, cost_table, try_methods

METHODS = {"average": merging.Average(), "far": merging.TaskArithmetic(2.0), "apgd": merging.Apgd()}


@pytest.fixture(scope="module")
def tried(pool: Pool) -> Trials:
    return try_methods({0: pool, 5: replace(pool, seed=5)}, METHODS, images=100, progress=False)


@pytest.fixture(scope="module")
def recorded(tried: Trials) -> Recorded:
    return record("a suite", tried)


def notebook_with(folder: Path, *outputs: object) -> Path:
    """A built notebook whose one cell shows this."""
    cell = new_code_cell("…", outputs=[new_output("display_data", data=one) for one in outputs], execution_count=1)
    path = folder / "built.ipynb"
    nbformat.write(new_notebook(cells=[cell]), path)
    return path


def test_what_a_notebook_keeps_says_the_same_when_it_is_read_back(
    tried: Trials, recorded: Recorded, tmp_path: Path
) -> None:
    path = notebook_with(tmp_path, recorded._repr_mimebundle_(), {"text/plain": "something else"})
    (back,) = trials_of(recorded_in([path])).values()
    assert back.seeds == tried.seeds
    assert list(back.compared[0].titles.items()) == list(tried.compared[0].titles.items())
    assert back.data_used == tried.data_used
    for label in ("base", "experts", *METHODS):
        assert back.accuracies(label) == pytest.approx(tried.accuracies(label), abs=1e-4)
        assert back.worst(label) == pytest.approx(tried.worst(label), abs=1e-4)
    assert str(back.standing()) == str(tried.standing())
    assert back.compared[5].gap("far") == pytest.approx(tried.compared[5].gap("far"), abs=2e-6)
    assert back.costs == tried.costs


def test_a_record_says_what_it_was_made_of(pool: Pool, recorded: Recorded) -> None:
    first, second = recorded.records
    assert (first.seed, second.seed) == (0, 5)
    assert first.group == second.group
    assert first.network == pool.network
    assert first.recipe == asdict(pool.recipe)
    assert first.inputs["base"] == merging.statedict.fingerprint(pool.base)
    assert first.networks["far"].settings["coefficient"] == 2.0
    assert first.networks["apgd"].method == "apgd"
    assert first.networks["apgd"].data_used == "none"
    assert "test split, 100 a task" in first.images
    assert str(recorded) == f"Recorded: a suite, 2 pools, 5 networks of each, {len(pool.tasks)} tasks."


def test_other_tasks_other_images_or_another_recipe_are_another_group(recorded: Recorded) -> None:
    first, second = recorded.records
    for other in (
        replace(second, images="fewer"),
        replace(second, recipe={**second.recipe, "lr": 0.5}),
        replace(second, network="mlp 2"),
        replace(second, suite="another"),
    ):
        assert len(trials_of([first, other])) == 2
    with pytest.raises(ApgdTeachError, match="a suite has the seed 0 twice"):
        trials_of([first, first])


def test_an_interval_over_images_that_were_not_kept_is_refused(recorded: Recorded) -> None:
    (back,) = trials_of(recorded.records).values()
    with pytest.raises(ApgdTeachError, match="hold no single images"):
        back.compared[0].against("far", "average")


@pytest.mark.parametrize(
    ("spoilt", "sentence"),
    [
        ({"format": "apgd-teach results 9"}, "this version reads 'apgd-teach results 1'"),
        ({"networks": []}, "have no 'base'"),
        ({"titles": [["other", "another task"]]}, "have not all tasks of 'base'"),
        ({"networks": 3}, "cannot be read"),
        ({"titles": ["other"]}, "cannot be read"),
        ({"more": 1}, "cannot be read"),
    ],
)
def test_records_that_cannot_be_used_get_a_sentence(
    recorded: Recorded, tmp_path: Path, spoilt: dict[str, object], sentence: str
) -> None:
    kept: Any = recorded._repr_mimebundle_()[MIME]
    found = {**kept[0], **spoilt}
    with pytest.raises(ApgdTeachError, match=sentence):
        recorded_in([notebook_with(tmp_path, {MIME: [found], "text/plain": ""})])


def test_kinds_of_experts_are_recorded_together_and_told_apart(tried: Trials) -> None:
    hot = {seed: replace(pool, recipe=replace(pool.recipe, lr=0.5)) for seed, pool in tried.pools.items()}
    both = record("a suite", tried, replace(tried, pools=hot))
    assert len(both.records) == 4
    assert len(trials_of(both.records)) == 2
    with pytest.raises(ApgdTeachError, match="nothing to record"):
        record("a suite")


def test_scores_alone_cannot_be_recorded(tried: Trials) -> None:
    with pytest.raises(ApgdTeachError, match="kept their scores alone"):
        record("a suite", Trials(tried.compared))


def test_costs_come_along_and_networks_do_not(recorded: Recorded) -> None:
    (back,) = trials_of(recorded.records).values()
    table = cost_table([back])
    assert set(table.column("method")) == set(METHODS)
    assert set(table.column("parameters of the result")) == {None}
    with pytest.raises(ApgdTeachError, match="no network 'average' was kept"):
        back.strongest(["average"])
