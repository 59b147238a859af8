from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Difference, Evaluator, Score, compare, difference
from apgd_teach.merging import Merged, fingerprint

TASKS = ("digits-upright", "digits-noisy", "fashion-flipped")


def by_hand(pool, state, task: str, split: str = "test", n: int | None = None) -> tuple[list[bool], list[float]]:
    """Every image by itself, through a network that has loaded the state dict."""
    encoder = pool.encoder()
    encoder.load_state_dict(state)
    head, part = pool.head(task), getattr(pool.tasks[task], split)
    right, losses = [], []
    with torch.no_grad():
        for image, label in zip(part.images[:n], part.labels[:n], strict=True):
            odds = torch.softmax(head(encoder(image[None]))[0].double(), dim=0)
            right.append(int(odds.argmax()) == int(label))
            losses.append(-math.log(float(odds[label])))
    return right, losses


def points_right(*answers: list[bool]) -> dict[str, Score]:
    """Scores of as many tasks, with the answers given."""
    return {
        f"task{i}": Score(torch.tensor(each), torch.zeros(len(each), dtype=torch.float32))
        for i, each in enumerate(answers)
    }


# One network on one task


@pytest.mark.parametrize("task", TASKS)
def test_a_score_is_what_encoder_and_head_say_image_by_image(pool, average, evaluator, task: str) -> None:
    score = evaluator.score(average.state_dict, task)
    right, losses = by_hand(pool, average.state_dict, task, n=400)
    assert score.right.tolist() == right
    np.testing.assert_allclose(score.losses, losses, rtol=1e-3, atol=1e-5)
    assert score.accuracy == pytest.approx(100 * sum(right) / 400, abs=1e-4)
    assert score.loss == pytest.approx(sum(losses) / 400, rel=1e-4)
    assert 50 < score.accuracy < 100


def test_images_are_the_first_ones(pool, evaluator) -> None:
    few = Evaluator(pool, images=30)
    assert [few.images(task) for task in TASKS] == [30, 30, 30]
    for task in TASKS:
        assert few.score(pool.base, task).right.tolist() == evaluator.score(pool.base, task).right[:30].tolist()


def test_without_a_number_all_images_are_looked_at_also_beyond_one_block_of_a_thousand(pool) -> None:
    every = Evaluator(pool)
    assert every.images(TASKS[0]) == 2000
    score = every.score(pool.base, TASKS[0])
    assert len(score.losses) == 2000
    with torch.no_grad():
        part = pool.tasks[TASKS[0]].test
        logits = pool.head(TASKS[0])(pool.encoder()(part.images))
    torch.testing.assert_close(score.losses, F.cross_entropy(logits, part.labels, reduction="none"))


@pytest.mark.parametrize("split", ["validation", "train"])
def test_another_split_shows_other_images(pool, split: str) -> None:
    score = Evaluator(pool, images=40, split=split).score(pool.base, TASKS[1])
    right, losses = by_hand(pool, pool.base, TASKS[1], split, 40)
    assert score.right.tolist() == right
    np.testing.assert_allclose(score.losses, losses, rtol=1e-3, atol=1e-5)
    assert losses != by_hand(pool, pool.base, TASKS[1], "test", 40)[1]


def test_an_unknown_split_or_task_is_one_sentence(pool, evaluator) -> None:
    with pytest.raises(ApgdTeachError, match=r"there is no split 'valid'; use 'test', 'validation' or 'train'\."):
        Evaluator(pool, split="valid")
    with pytest.raises(ApgdTeachError, match=r"no task 'digits-flipped'; it has: digits-upright, digits-noisy, fashi"):
        evaluator.score(pool.base, "digits-flipped")


def test_scoring_changes_neither_the_state_dict_nor_the_pool(pool, average, evaluator) -> None:
    def marks() -> list[str]:
        states = [
            pool.base,
            *pool.experts.values(),
            *pool.heads.values(),
            average.state_dict,
            pool.encoder().state_dict(),
        ]
        return [fingerprint(state) for state in states]

    before, first = marks(), evaluator.scores(average.state_dict)
    evaluator.experts()
    assert marks() == before
    again = evaluator.scores(average.state_dict)
    assert all(torch.equal(first[task].losses, again[task].losses) for task in TASKS)
    assert not any(score.losses.requires_grad for score in first.values())


def test_the_experts_scores_are_those_of_each_expert_on_its_own_task(pool, evaluator) -> None:
    scores = evaluator.experts()
    assert list(scores) == list(TASKS)
    for task in TASKS:
        own = evaluator.scores(pool.experts[task])
        assert torch.equal(scores[task].losses, own[task].losses)
        other = next(name for name in TASKS if name != task)
        assert not torch.equal(evaluator.score(pool.experts[other], task).losses, own[task].losses)


def test_half_and_double_precision_are_scored_like_single(pool, evaluator) -> None:
    expected = evaluator.score(pool.base, TASKS[0])
    for dtype, tolerance in ((torch.float64, 1e-5), (torch.bfloat16, 0.1)):
        score = evaluator.score({key: tensor.to(dtype) for key, tensor in pool.base.items()}, TASKS[0])
        assert score.loss == pytest.approx(expected.loss, rel=tolerance)


def test_a_state_dict_of_another_network_is_refused_and_not_filled_up_from_the_base(pool, evaluator) -> None:
    expert = pool.experts[TASKS[0]]
    renamed = {f"module.{key}": tensor for key, tensor in expert.items()}
    with pytest.raises(
        ApgdTeachError, match=r"network 'mlp': 'layer1\.weight' has shape \(512, 784\) there and is miss"
    ):
        evaluator.score(renamed, TASKS[0])
    with pytest.raises(ApgdTeachError, match=r"'extra' is missing there and has shape \(2,\) here\."):
        evaluator.score({**expert, "extra": torch.zeros(2)}, TASKS[0])
    with pytest.raises(ApgdTeachError, match=r"'layer2\.bias' has shape \(512,\) there and has shape \(1,\) here\."):
        evaluator.score({**expert, "layer2.bias": torch.zeros(1)}, TASKS[0])


# Differences


def test_the_margin_is_that_of_a_bootstrap_over_the_images_that_the_tasks_share(pool, compared) -> None:
    found = compared.against("first", "base")
    each = np.stack([compared.merged["first"][t].right.numpy() * 1.0 - compared.base[t].right.numpy() for t in TASKS])
    draws = np.random.default_rng(0)
    pictures = {task: pool.tasks[task].family for task in TASKS}
    samples = []
    for _ in range(3000):
        # One choice of images a family: its tasks show the same pictures.
        chosen = {family: draws.integers(0, 400, 400) for family in ("digits", "fashion")}
        samples.append(100 * np.mean([row[chosen[pictures[t]]].mean() for t, row in zip(TASKS, each, strict=True)]))
    assert found.points == pytest.approx(100 * each.mean())
    low, high = np.quantile(samples, [0.025, 0.975])
    assert found.margin == pytest.approx((high - low) / 2, rel=0.15)
    assert found.margin > 0.5


def test_tasks_that_err_on_the_same_images_tell_no_more_than_one_of_them() -> None:
    draws = torch.Generator().manual_seed(0)
    a, b = (torch.rand(500, generator=draws) < 0.7).tolist(), (torch.rand(500, generator=draws) < 0.7).tolist()
    alone = difference(points_right(a), points_right(b))
    assert difference(points_right(a, a, a), points_right(b, b, b)).margin == pytest.approx(alone.margin)
    assert alone.margin == pytest.approx(196 * math.sqrt(np.var(np.subtract(a, b, dtype=float), ddof=1) / 500))


def test_tasks_of_unequal_size_count_alike() -> None:
    one, other = points_right([True, True], [True, True, False, False]), points_right([False, True], [False] * 4)
    found = difference(one, other)
    assert found.points == pytest.approx(50)
    # Per image: (±1/2)/2 for the first two of the first task plus (±1/2)/2 of the second, on their own scale.
    first, second = 0.5 / (2 * math.sqrt(2)), 0.5 / (2 * math.sqrt(12))
    pulls = [first + second, -first + second, -second, -second]
    assert found.margin == pytest.approx(196 * math.sqrt(sum(pull**2 for pull in pulls)))


def test_a_network_is_no_different_from_itself(compared) -> None:
    for label in ("base", "average", "experts"):
        same = compared.against(label, label)
        assert (same.points, same.margin, same.verdict) == (0.0, 0.0, "no difference seen")
    assert compared.against("still").verdict == "no difference seen"
    assert str(compared.against("still")) == "+0.0 ± 0.0"


def test_the_sign_says_who_is_better(compared) -> None:
    up, down = compared.against("experts", "base"), compared.against("base", "experts")
    assert (up.verdict, down.verdict) == ("better", "worse")
    assert (down.points, down.margin) == (-up.points, up.margin)
    assert up.points == pytest.approx(compared.average("experts") - compared.average("base"), abs=1e-4)
    assert (str(up)[0], str(down)[0]) == ("+", "−")


def test_scores_of_other_tasks_or_another_number_of_images_are_refused(pool, evaluator) -> None:
    scores = evaluator.scores(pool.base)
    fewer = Evaluator(pool, images=399).scores(pool.base)
    missing = {task: scores[task] for task in TASKS[:2]}
    for other in (fewer, missing):
        with pytest.raises(ApgdTeachError, match=r"different tasks or images; score both with one Evaluator\."):
            difference(scores, other)


@pytest.mark.parametrize(("mine", "theirs", "points"), [(True, False, 100), (False, True, -100), (True, True, 0)])
def test_one_image_has_a_difference_but_no_interval_and_no_verdict(mine: bool, theirs: bool, points: int) -> None:
    found = difference(points_right([mine]), points_right([theirs]))
    assert found.points == points
    assert math.isnan(found.margin)
    assert found.verdict == "no difference seen"
    assert str(found).endswith("0.0 ± –")


# Comparisons


def test_average_and_worst_are_those_of_the_scores(compared) -> None:
    columns = {"base": compared.base, "experts": compared.experts, **compared.merged}
    for label, scores in columns.items():
        accuracies = {task: 100 * scores[task].right.float().mean().item() for task in TASKS}
        assert compared.average(label) == pytest.approx(sum(accuracies.values()) / 3)
        task, accuracy = compared.worst(label)
        assert accuracy == pytest.approx(min(accuracies.values())) == pytest.approx(accuracies[task])


def test_recovered_is_one_for_the_experts_nothing_for_the_base_and_the_share_between(compared) -> None:
    assert compared.recovered("experts") == 1
    assert compared.recovered("base") == compared.recovered("still") == 0
    base, experts = compared.average("base"), compared.average("experts")
    assert experts > base + 2
    assert compared.recovered("average") == pytest.approx((compared.average("average") - base) / (experts - base))
    assert compared.recovered("average") not in (0, 1)


def test_where_the_experts_are_no_better_nothing_can_be_recovered(pool, average) -> None:
    idle = replace(pool, experts=dict.fromkeys(TASKS, pool.base))
    assert math.isnan(compare(idle, {"average": average}, images=50).recovered("average"))


def test_the_gap_is_loss_above_the_tasks_own_expert(compared) -> None:
    assert compared.gap("experts") == dict.fromkeys(TASKS, 0.0)
    for label in ("base", "average", "first"):
        scores = compared.base if label == "base" else compared.merged[label]
        losses = {task: scores[task].loss - compared.experts[task].loss for task in TASKS}
        assert compared.gap(label) == pytest.approx(losses)
    assert compared.gap("first")[TASKS[0]] == 0
    assert compared.gap("base")[TASKS[0]] > 0


def test_the_tables_hold_the_numbers_of_the_methods(compared) -> None:
    labels = {"base": "base", "average": "average", "first": "first", "still": "still", "its own expert": "experts"}
    table, gaps = compared.table(), compared.gap_table()
    assert table.columns == ("task", *labels)
    assert table.column("task") == ["digits, upright", "digits, noisy", "fashion, flipped", "mean over tasks"]
    for heading, label in labels.items():
        scores = compared.experts if label == "experts" else {"base": compared.base, **compared.merged}[label]
        assert table.column(heading) == [*(scores[task].accuracy for task in TASKS), compared.average(label)]
    for label in ("base", "average", "first", "still"):
        gap = list(compared.gap(label).values())
        assert gaps.column(label) == [*gap, pytest.approx(sum(gap) / 3)]
    assert table.bold == gaps.bold == {3}
    assert table.note == gaps.note == "Images: bundled tier, test split, 400 a task; seed 0."


def test_the_summary_holds_the_numbers_of_the_methods(compared) -> None:
    table = compared.summary()
    assert table.column("network") == ["base", "average", "first", "still", "each its own expert"]
    labels = ["base", "average", "first", "still", "experts"]
    assert table.column("mean %") == [compared.average(label) for label in labels]
    assert table.column("worst %") == [compared.worst(label)[1] for label in labels]
    assert table.column("worst task") == [compared.titles[compared.worst(label)[0]] for label in labels]
    shares = [compared.recovered_words(label) for label in labels[1:-1]]
    assert table.column("recovered %") == [None, *shares, None]
    assert shares[0].startswith(f"{100 * compared.recovered('average'):.0f} ± ".replace("-", "−"))
    differences = [str(compared.against(label)) for label in labels[1:-1]]
    assert table.column("against the base") == ["–", *differences, "–"]
    assert table.column("data used") == ["–", "none", "not stated", "not stated", "–"]


def test_the_words_of_a_comparison_say_every_accuracy(compared) -> None:
    for i, title in enumerate(compared.titles.values()):
        part = compared.words().split("; ")[i]
        assert part.startswith(f"{title}: base ")
        for value in compared.table().rows[i][1:]:
            assert f" {value:.1f}" in part


def test_a_merge_says_what_data_it_used_and_a_plain_state_dict_states_nothing(average, compared) -> None:
    assert isinstance(average, Merged)
    assert compared.data_used == {"average": "none", "first": "not stated", "still": "not stated"}


@pytest.mark.parametrize("label", ["base", "experts"])
def test_a_merge_cannot_be_called_what_stands_in_every_comparison(pool, average, label: str) -> None:
    with pytest.raises(ApgdTeachError, match=f"'{label}' is in every comparison already; give the merge another label"):
        compare(pool, {label: average}, images=1)


@pytest.mark.parametrize("images", [0, -1, 2.5, "10", True])
def test_what_is_no_number_of_images_is_one_sentence(pool, average, images: object) -> None:
    with pytest.raises(ApgdTeachError, match=r"^images=.+ is no number of images; give a whole number from 1, or None"):
        compare(pool, {"average": average}, images=images)


def test_a_number_of_images_out_of_numpy_is_a_number(pool) -> None:
    assert Evaluator(pool, images=np.int64(7)).images(TASKS[0]) == 7


@pytest.mark.parametrize("network", [3, None, [1.0], {"layer1.weight": 3}])
def test_what_is_no_network_is_one_sentence_with_its_label(pool, network: object) -> None:
    said = f"^'odd' is a {type(network).__name__} and no state dict; give what `merge` returned, or tensors by name"
    with pytest.raises(ApgdTeachError, match=said):
        compare(pool, {"odd": network}, images=1)


def test_a_network_without_a_label_is_one_sentence(pool, average) -> None:
    with pytest.raises(ApgdTeachError, match=r"^networks are compared by label, as in .+; this is a Merged\.$"):
        compare(pool, average, images=1)
    with pytest.raises(ApgdTeachError, match=r"^'layer1\.weight' is a Tensor and no state dict; give what `merge` "):
        compare(pool, average.state_dict, images=1)


def test_a_label_that_was_not_compared_is_one_sentence(compared) -> None:
    for ask in (compared.average, compared.worst, compared.recovered, compared.gap, compared.against):
        with pytest.raises(
            ApgdTeachError, match=r"nothing called 'ties' was compared; there are: average, first, stil"
        ):
            ask("ties")


def test_a_comparison_on_validation_images_says_so(pool, average) -> None:
    note = compare(pool, {"average": average}, images=20, split="validation").tier
    assert note == "bundled tier, validation split, 20 a task; seed 0"


def test_the_interval_of_a_share_covers_it_nineteen_times_in_twenty() -> None:
    draws = torch.Generator().manual_seed(0)
    n, covered, repeats = 400, 0, 400
    chances = {"base": 0.60, "average": 0.68, "experts": 0.80}  # a share of 0.4
    for _ in range(repeats):
        # A picture that is hard for one network is hard for the others.
        easy = torch.rand(n, generator=draws)
        scores = {
            label: {"task": Score(0.7 * easy + 0.3 * torch.rand(n, generator=draws) > 1 - chance, torch.zeros(n))}
            for label, chance in chances.items()
        }
        merged = {"average": scores["average"]}
        one = Comparison({"task": "a task"}, scores["base"], scores["experts"], merged, {"average": "none"}, "")
        share, margin = (float(part.replace("−", "-")) for part in one.recovered_words("average").split(" ± "))
        # Its own truth: the mean over very many pictures of the same making.
        covered += abs(share - TRUE_SHARE) <= margin
    assert 0.92 <= covered / repeats <= 0.98


def _true_share() -> float:
    draws = torch.Generator().manual_seed(1)
    easy, chances = torch.rand(2_000_000, generator=draws), (0.60, 0.68, 0.80)
    base, average, experts = (
        float((0.7 * easy + 0.3 * torch.rand(len(easy), generator=draws) > 1 - chance).double().mean())
        for chance in chances
    )
    return 100 * (average - base) / (experts - base)


TRUE_SHARE = _true_share()


def test_images_are_paired_by_the_picture_that_they_show() -> None:
    """Two tasks of one family, the second with half of its pictures: what a picture does to both counts together."""
    right, wrong = torch.tensor([1, 0, 1, 1, 0, 1]).bool(), torch.zeros(6, dtype=torch.bool)
    some = torch.tensor([1, 4, 5])
    one = {"all": Score(right, torch.zeros(6)), "half": Score(right[some], torch.zeros(3), some)}
    other = {"all": Score(wrong, torch.zeros(6)), "half": Score(wrong[some], torch.zeros(3), some)}
    pulls = (right.double() - right.double().mean()) / (2 * (6 * 5) ** 0.5)
    part = right[some].double()
    pulls[some] += (part - part.mean()) / (2 * (3 * 2) ** 0.5)
    assert difference(one, other).margin == pytest.approx(196 * float(pulls.square().sum().sqrt()))
    # By their place in each task it would be another one.
    unplaced = [{task: Score(score.right, score.losses) for task, score in each.items()} for each in (one, other)]
    assert difference(*unplaced).margin != pytest.approx(difference(one, other).margin)


def test_two_networks_with_as_many_right_in_all_are_told_apart_by_no_last_digit() -> None:
    shares = [(67, 70, 66), (68, 69, 66)]
    one, other = (
        {f"task {n}": Score((torch.arange(100) < count), torch.zeros(100)) for n, count in enumerate(counts)}
        for counts in shares
    )
    means = [sum(score.accuracy for score in scores.values()) / 3 for scores in (one, other)]
    assert abs(means[0] - means[1]) < 1e-9
    assert one["task 0"].accuracy == pytest.approx(67, abs=1e-12)
    assert Difference(1e-12, 0.0).verdict == Difference(-1e-12, 0.0).verdict == "no difference seen"
    assert Difference(0.01, 0.0).verdict == "better"
