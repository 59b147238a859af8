"""What a merge is worth to whoever brings an evaluation: losses, classes, choices, worse pictures, and the card."""

from __future__ import annotations

import math
import re
import weakref
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apgd_teach.cache import Cache
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import make_pool
from apgd_teach.merging import Apgd, Merged, merge
from apgd_teach.own.card import Card, Source, draw_lost
from apgd_teach.own.judging import Choice, Judged, Lost, Verdict, choose, judge, lost
from apgd_teach.own.noise import CORRUPTIONS, corrupted, of_pool, robustness, robustness_table

State = dict[str, Tensor]
TASKS = ("ada", "ben", "cleo")


class World:
    """Three tasks of three classes each, in twelve dimensions, told apart by a linear layer."""

    def __init__(self, examples: int = 300) -> None:
        draw = torch.Generator().manual_seed(0)
        self.base = {"w.weight": 0.3 * torch.randn(3, 12, generator=draw)}
        self.examples: dict[str, tuple[Tensor, Tensor]] = {}
        self.experts: dict[str, State] = {}
        for task in TASKS:
            centres = 1.2 * torch.randn(3, 12, generator=draw)
            labels = torch.arange(examples) % 3
            inputs = centres[labels] + torch.randn(examples, 12, generator=draw)
            self.examples[task] = (inputs, labels)
            wanted = torch.linalg.lstsq(inputs, torch.nn.functional.one_hot(labels, 3).float()).solution.T
            self.experts[task] = {"w.weight": self.base["w.weight"] + wanted}

    def evaluate(self, state: State, task: str) -> tuple[Tensor, Tensor]:
        inputs, labels = self.examples[task]
        return (inputs @ state["w.weight"].T).argmax(dim=1), labels


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def judged(world: World) -> Judged:
    networks = {name: merge(world.base, world.experts, name).state_dict for name in ("average", "task_arithmetic")}
    return judge(world.base, world.experts, networks, world.evaluate, progress=False)


def test_every_network_is_asked_about_every_task(world: World, judged: Judged) -> None:
    assert judged.tasks == TASKS
    for task in TASKS:
        predicted, labels = world.evaluate(world.experts[task], task)
        assert judged.experts[task].accuracy == pytest.approx(100 * float((predicted == labels).float().mean()))
        predicted, labels = world.evaluate(world.base, task)
        assert judged.base[task].accuracy == pytest.approx(100 * float((predicted == labels).float().mean()))
    table = judged.table("average")
    assert table.column("task") == [*TASKS, "mean"]
    assert table.column("examples")[:-1] == [300] * len(TASKS)
    with pytest.raises(ApgdTeachError, match="no network 'apgd' was judged; there are: average, task_arithmetic"):
        judged.table("apgd")


def test_a_loss_has_an_interval_that_covers_the_truth() -> None:
    """Simulated: in 95 of 100 draws or more the true difference lies within, for few examples and for many."""
    draw = torch.Generator().manual_seed(1)
    for examples in (12, 40, 200):
        covered = 0
        for _ in range(400):
            luck = torch.rand(examples, generator=draw)
            before = luck < 0.85
            after = (luck < 0.7) | (luck > 0.95)
            labels = torch.ones(examples, dtype=torch.long)
            one, other = (Verdict(100 * float(right.float().mean()), right.long(), labels) for right in (before, after))
            found = lost(one, other)
            assert found.examples == examples
            covered += abs(found.points - 10.0) <= found.margin
        assert covered >= 0.94 * 400, (examples, covered)


def test_nothing_lost_and_all_lost_have_intervals_too() -> None:
    labels = torch.zeros(10, dtype=torch.long)
    right, wrong = Verdict(100.0, labels, labels), Verdict(0.0, labels + 1, labels)
    assert lost(right, right).points == 0.0
    assert 5 < lost(right, right).margin < 60
    assert not lost(right, right).shown
    assert lost(right, wrong).shown
    assert str(Lost(-1.25, math.nan, 0)) == "−1.2 ± –"


def test_classes_that_lost_most_come_first_and_intervals_hold_for_all_at_once(world: World, judged: Judged) -> None:
    table = judged.classes("average", {"ada": ("red", "green", "blue")})
    assert len(table.rows) == 9
    assert {row[1] for row in table.rows if row[0] == "ada"} == {"red", "green", "blue"}
    losses = [float(str(row[3])) - float(str(row[4])) for row in table.rows]
    assert losses == sorted(losses, reverse=True)
    assert all(row[2] == 100 for row in table.rows)
    margins = [float(str(row[5]).split(" ± ")[1]) for row in table.rows]
    plain = {
        (task, str(number)): lost(*(Verdict(0.0, one.predicted[there], one.labels[there]) for one in (before, after)))
        for task in TASKS
        for before, after in ((judged.experts[task], judged.of("average")[task]),)
        for number in range(3)
        for there in (before.labels == number,)
    }
    assert min(margins) > min(one.margin for one in plain.values())
    assert len(judged.classes("average", worst=2).rows) == 2


def test_a_score_has_neither_intervals_nor_classes(world: World) -> None:
    scored = judge(world.base, world.experts, {"x": world.base}, lambda state, task: 71.5, progress=False)
    assert [row[-1] for row in scored.table("x").rows][:-1] == ["0.0 ± –"] * 3
    with pytest.raises(ApgdTeachError, match="classes need single examples"):
        scored.classes("x")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ("good", "returned a str for 'ada'"),
        (True, "returned a bool for 'ada'"),
        (171.0, "gave 171.0 for 'ada'; a score is a number from 0 to 100"),
        (([1, 2], [1]), "returned 2 predictions and 1 labels for 'ada'; return"),
        ((["cat"], ["dog"]), "returned what is no list of numbers for 'ada'; return"),
        (([], []), "returned no predictions for 'ada'"),
        (([1.0, 2.0], [1, 2]), r"returned predictions that are no whole numbers \(float32\) for 'ada'"),
        ((torch.ones(5, 10).long(), torch.ones(5).long()), r"returned predictions of shape \(5, 10\) for 'ada'"),
    ],
)
def test_an_evaluation_that_says_something_else_is_told_so(world: World, answers: object, says: str) -> None:
    with pytest.raises(ApgdTeachError, match=says):
        judge(world.base, world.experts, {}, lambda state, task: answers, progress=False)


def test_shares_are_not_taken_for_per_cent(world: World) -> None:
    with pytest.raises(ApgdTeachError, match=r"no score is above 1 \(the highest is 0.93\).*give per cent"):
        judge(world.base, world.experts, {"x": world.base}, lambda state, task: 0.93, progress=False)
    nothing = judge(world.base, world.experts, {"x": world.base}, lambda state, task: 0, progress=False)
    assert nothing.of("x")["ada"].accuracy == 0


def test_networks_have_to_see_the_same_examples(world: World) -> None:
    def shuffled(state: State, task: str) -> tuple[Tensor, Tensor]:
        predicted, labels = world.evaluate(state, task)
        return (predicted.flip(0), labels.flip(0)) if state is world.base else (predicted, labels)

    with pytest.raises(ApgdTeachError, match="gave the base other examples of 'ada' than the expert"):
        judge(world.base, world.experts, {}, shuffled, progress=False)


# Whether to merge


def test_the_best_by_the_priorities_is_chosen_and_the_audit_says_that_data_did_it(world: World) -> None:
    candidates = {f"λ = {one}": ("task_arithmetic", {"coefficient": one}) for one in (0.05, 0.3, 1.0)}
    found = choose(world.base, world.experts, world.evaluate, candidates, tolerance=100, progress=False)
    means = {label: found.mean(verdicts) for label, verdicts in found.judged.merged.items()}
    assert found.best == max(means, key=lambda label: means[label])
    assert found.network.audit.data_used == "labelled"
    assert found.advice.startswith(f"Merge by {found.best}: no task loses more than 100 points")
    assert found.table().rows[0][0] == found.best
    only = {task: float(task == "cleo") for task in TASKS}
    tilted = choose(world.base, world.experts, world.evaluate, candidates, priorities=only, progress=False)
    assert (found.table().columns[1], tilted.table().columns[1]) == ("mean %", "weighted mean %")
    assert f"The base has {found.mean(found.judged.base):.1f} %." in found.table().note
    cleo = {label: verdicts["cleo"].accuracy for label, verdicts in tilted.judged.merged.items()}
    assert cleo[tilted.best] == max(cleo.values())


def test_no_more_than_two_merges_are_in_memory_at_a_time(world: World) -> None:
    inputs = [id(one) for one in (world.base, *world.experts.values())]
    seen: list[weakref.ref[Tensor]] = []
    most = 0

    def evaluate(state: State, task: str) -> float:
        nonlocal most
        if id(state) not in inputs:
            seen.append(weakref.ref(state["w.weight"]))
            most = max(most, len({id(one) for ref in seen if (one := ref()) is not None}))
        return 50.0

    candidates = {f"λ = {one}": ("task_arithmetic", {"coefficient": one}) for one in (0.1, 0.2, 0.3, 0.4, 0.5)}
    choose(world.base, world.experts, evaluate, candidates, progress=False)
    assert len(seen) == 5 * len(TASKS)
    assert 1 <= most <= 2


def test_a_candidate_that_cannot_be_is_refused_before_anything_is_asked(world: World) -> None:
    def evaluate(state: State, task: str) -> float:
        raise AssertionError(f"asked about {task}")

    candidates = {"average": ("average", {}), "ties": ("ties", {"trim": 7})}
    with pytest.raises(ApgdTeachError, match=r"ties.*trim"):
        choose(world.base, world.experts, evaluate, candidates, progress=False)


def test_the_options_of_a_choice_are_words_of_a_shell(world: World) -> None:
    candidates = {"quoted": ("apgd", {"protect": "auto", "reach": None})}
    found = choose(world.base, world.experts, world.evaluate, candidates, progress=False)
    assert found.options == "--method apgd --set protect=auto --set reach=None"


def judged_by(world: World, merged: float, base: float = 50.0, worst: float | None = None) -> Choice:
    def evaluate(state: State, task: str) -> float:
        if state is world.base:
            return base
        if any(state is one for one in world.experts.values()):
            return 90.0
        return worst if worst is not None and task == "ben" else merged

    return choose(world.base, world.experts, evaluate, {"average": ("average", {})}, progress=False)


def test_the_advice_is_honest(world: World) -> None:
    assert judged_by(world, 89.0).advice.startswith("Merge by average: no task loses more than 2 points")
    assert judged_by(world, 40.0).advice == (
        "Keep the experts apart. The best candidate, average, has 40.0 % in the mean and the base itself 50.0 %: "
        "merging costs what fine-tuning gave."
    )
    assert judged_by(world, 80.0).advice.startswith(
        "Keep the experts apart. With the best candidate, average, every task loses more than 2 points: "
    )
    some = judged_by(world, 89.0, worst=70.0)
    assert some.apart == ("ben",)
    assert "keep the experts of these tasks, which lose more than 2 points: ben (−20.0)" in some.advice


def test_a_method_of_one_s_own_is_a_candidate(world: World) -> None:
    found = choose(world.base, world.experts, world.evaluate, {"mine": Apgd(flatten=0.0)}, progress=False)
    assert found.network.audit.settings["flatten"] == 0.0


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"candidates": {}}, "there is nothing to choose from"),
        ({"priorities": {"dora": 1.0}}, "there is no task 'dora' to give a priority"),
        ({"priorities": {"ada": -1.0}}, "the priority of 'ada' is -1.0"),
        ({"priorities": dict.fromkeys(TASKS, 0.0)}, "all priorities are 0"),
    ],
)
def test_a_choice_that_cannot_be_made_is_one_sentence(world: World, given: dict, says: str) -> None:
    with pytest.raises(ApgdTeachError, match=says):
        choose(world.base, world.experts, world.evaluate, progress=False, **given)


# The course's own pool, and worse pictures


@pytest.fixture(scope="module")
def pooled(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, Merged]:
    pool = make_pool(
        "mlp",
        tasks=["digits-upright", "fashion-flipped"],
        base_steps=40,
        expert_steps=20,
        device="cpu",
        cache=Cache(tmp_path_factory.mktemp("trained")),
        progress=False,
    )
    return pool, merge(pool.base, pool.experts, "average")


def test_an_evaluation_of_a_pool_says_what_the_evaluator_says(pooled) -> None:
    pool, merged = pooled
    found = judge(pool.base, pool.experts, {"average": merged.state_dict}, of_pool(pool, images=200), progress=False)
    expected = Evaluator(pool, images=200)
    for task in pool.tasks:
        assert found.of("average")[task].accuracy == pytest.approx(
            expected.score(merged.state_dict, task).accuracy, abs=1e-4
        )
        assert found.experts[task].accuracy == pytest.approx(expected.experts()[task].accuracy, abs=1e-4)


def test_corruptions_stay_pictures_and_are_the_same_for_everyone() -> None:
    for shape in ((4, 1, 28, 28), (4, 3, 20, 32)):
        images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        for name in CORRUPTIONS:
            made = corrupted(images, name)
            assert made.shape == images.shape
            assert 0 <= float(made.min()) <= float(made.max()) <= 1
            assert torch.equal(made, corrupted(images, name))
            assert torch.equal(made, images) == (name == "as they are")
    with pytest.raises(ApgdTeachError, match="there is no corruption 'fog'"):
        corrupted(images, "fog")


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (torch.full((2, 3, 8, 8), -0.5), "these go from -0.5 to -0.5; take them before they are normalised"),
        (torch.full((2, 3, 8, 8), 2.6), "these go from 2.6 to 2.6"),
        (torch.full((2, 3, 8, 8), math.nan), "these go from nan to nan"),
        (torch.zeros((2, 3, 8, 8), dtype=torch.uint8), r"these are uint8 of shape \(2, 3, 8, 8\)"),
        (torch.zeros(3, 8, 8), r"these are float32 of shape \(3, 8, 8\)"),
        (torch.zeros(0, 3, 8, 8), r"these are float32 of shape \(0, 3, 8, 8\)"),
    ],
)
def test_what_is_no_picture_from_0_to_1_is_not_made_worse(images: Tensor, says: str) -> None:
    """A network's own normalisation comes after: what is cut at 0 and 1 would be another corruption."""
    with pytest.raises(ApgdTeachError, match=says):
        corrupted(images, "noise, σ = 0.1")


def test_worse_pictures_are_held_against_good_ones(pooled) -> None:
    pool, merged = pooled
    evaluations = {
        name: of_pool(pool, images=200, corruption=name) for name in ("as they are", "noise, σ = 0.3", "a grey block")
    }
    found = robustness(pool.base, pool.experts, {"average": merged.state_dict}, evaluations, progress=False)
    table = robustness_table(found, "average")
    assert [row[0] for row in table.rows] == list(evaluations)
    assert table.rows[0][-1] == "–"
    accuracy = [float(str(row[1])) for row in table.rows]
    assert accuracy[1] < accuracy[0]
    with pytest.raises(ApgdTeachError, match="no corruption was judged"):
        robustness_table({}, "average")


# The card


@pytest.fixture(scope="module")
def card(world: World, judged: Judged) -> Card:
    merged = merge(world.base, world.experts, "average")
    return Card(
        "Three in one",
        merged.audit,
        purpose="telling ada, ben and cleo apart",
        sources={"ada": Source("two weeks of calls", "internal", "asked for consent")},
        judged=judged,
        label="average",
        examples="300 made-up examples a task",
    )


def test_a_card_says_what_is_known_and_what_nobody_said(card: Card, world: World) -> None:
    text = card.to_markdown()
    assert text.startswith("# Model card: Three in one\n")
    assert "two weeks of calls" in text
    assert text.count("not stated") >= 5  # limits, and the data and licences of three inputs
    assert "Judged on: 300 made-up examples a task." in text
    assert "Nobody has looked." in text
    assert "Method and settings were given. What chose them: not stated." in text
    for name, digest in card.audit.inputs.items():
        assert digest in text, name
    heads = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert heads[:7] == [
        "What it is",
        "What it was made of",
        "What was lost",
        "Which classes lost most",
        "On worse pictures",
        "How it was chosen",
        "Warnings",
    ]
    assert text == card.to_markdown()


def test_a_card_without_measurements_says_so(card: Card) -> None:
    text = Card("Bare", card.audit).to_markdown()
    assert "Nobody has measured it: bring an evaluation before this model is used." in text
    assert "Nobody has looked: this needs an evaluation that returns single predictions." in text


def test_a_card_is_a_page_that_needs_nothing_beside_itself(card: Card, tmp_path: Path) -> None:
    card.save(tmp_path / "card.html")
    page = (tmp_path / "card.html").read_text(encoding="utf-8")
    assert page.count("<img alt=") == page.count("data:image/png;base64,") >= 2
    assert "http" not in page
    assert "src=" not in page.replace('src="data:', "")
    card.save(tmp_path / "card.md")
    assert (tmp_path / "card.md").read_text(encoding="utf-8") == card.to_markdown()
    with pytest.raises(ApgdTeachError, match=r"ends in \.md or \.html"):
        card.save(tmp_path / "card.pdf")
    assert sorted(one.name for one in tmp_path.iterdir()) == ["card.html", "card.md"]


def test_a_card_of_a_choice_shows_it(world: World) -> None:
    found = choose(world.base, world.experts, world.evaluate, progress=False)
    text = Card("Chosen", found.network.audit, judged=found.judged, label=found.best, choice=found).to_markdown()
    assert found.advice in text
    assert "data used by the merge: labelled" in text


def test_a_card_for_another_network_or_input_is_refused(card: Card, judged: Judged) -> None:
    with pytest.raises(ApgdTeachError, match="no network 'apgd' was judged"):
        Card("x", card.audit, judged=judged, label="apgd")
    with pytest.raises(ApgdTeachError, match="'dora' is no input of this merge"):
        Card("x", card.audit, sources={"dora": Source()})


def test_the_figure_says_in_words_who_lost_most(judged: Judged) -> None:
    drawn = draw_lost(judged, "average")
    gone = {task: judged.experts[task].accuracy - judged.of("average")[task].accuracy for task in TASKS}
    assert f"'{max(gone, key=lambda task: gone[task])}' loses most" in drawn.words
