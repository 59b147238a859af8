from __future__ import annotations

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apgd_teach.data import Source
from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging import fingerprint
from apgd_teach.models import ENCODERS, make_encoder
from apgd_teach.training import BASE, REGIMES, Recipe, fine_tune, fit_head, recipe, train_base, train_jointly

CPU = torch.device("cpu")
SGD = Recipe("sgd", 0.03, 5)


def nobody(step: int, loss: float) -> None:
    pass


# Recipes


@pytest.mark.parametrize("regime", list(REGIMES))
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_regime_is_a_learning_rate(regime: str, optimizer: str) -> None:
    made = recipe(regime, optimizer, 7)
    assert (made.optimizer, made.lr, made.steps) == (optimizer, REGIMES[regime][optimizer], 7)


def test_mild_sgd_is_what_one_gets_unasked_and_hot_is_hotter() -> None:
    assert replace(recipe(), steps=1) == recipe("mild", "sgd", 1)
    assert all(REGIMES["hot"][optimizer] > REGIMES["mild"][optimizer] for optimizer in ("sgd", "adamw"))


@pytest.mark.parametrize("regime", ["warm", "", None, ["mild"]])
def test_an_unknown_regime_gets_its_sentence(regime: object) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        recipe(regime)  # type: ignore[arg-type]
    assert str(caught.value) == f"there is no regime '{regime}'; use one of: mild, hot."


@pytest.mark.parametrize("optimizer", ["adam", "SGD", None, ["sgd"]])
def test_an_unknown_optimizer_gets_its_sentence(optimizer: object) -> None:
    with pytest.raises(ApgdTeachError) as caught:
        recipe("mild", optimizer)  # type: ignore[arg-type]
    assert str(caught.value) == f"there is no optimizer '{optimizer}' here; use 'sgd' or 'adamw'."


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": -0.1},
        {"lr": math.nan},
        {"lr": math.inf},
        {"lr": [0.1]},
        {"lr": "0.1"},
        {"lr": None},
        {"lr": 10**400},
        {"steps": 0},
        {"steps": 2.5},
        {"steps": "5"},
        {"batch_size": 0},
        {"batch_size": 1.5},
        {"warmup": 1.0},
        {"warmup": -0.1},
        {"warmup": math.nan},
        {"clip": 0.0},
        {"clip": math.nan},
        {"momentum": -0.1},
        {"momentum": 1.0},
        {"momentum": math.nan},
        {"weight_decay": -0.1},
        {"weight_decay": math.inf},
    ],
)
def test_a_recipe_that_cannot_be_followed_gets_its_sentence(wrong: dict[str, object]) -> None:
    with pytest.raises(ApgdTeachError, match="cannot be followed: lr, steps, batch_size and clip must be positive"):
        replace(SGD, **wrong)  # type: ignore[arg-type]


def test_numbers_of_numpy_make_the_same_recipe_and_a_hashable_one() -> None:
    made = Recipe("sgd", np.float64(0.03), np.int64(5), clip=3)  # type: ignore[arg-type]
    assert made == SGD
    assert hash(made) == hash(SGD)
    assert [type(value) for value in (made.lr, made.steps, made.clip)] == [float, int, float]


# The learning rate


def test_the_learning_rate_rises_to_its_peak_and_falls_to_almost_nothing() -> None:
    how = Recipe("sgd", 0.2, 100)
    rates = [how.lr_at(step) for step in range(100)]
    top = rates.index(max(rates))
    assert top == 9  # a tenth of the steps
    assert rates[:10] == sorted(rates[:10])
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[0] == pytest.approx(0.02)
    assert 0.19 < rates[9] < 0.2
    assert 0 < rates[-1] < 0.2 / 1000


def test_a_single_step_has_the_whole_learning_rate() -> None:
    assert Recipe("sgd", 0.2, 1).lr_at(0) == 0.2


def test_without_warmup_the_first_step_is_the_highest() -> None:
    how = Recipe("sgd", 0.2, 10, warmup=0.0)
    assert how.lr_at(0) == 0.2 > how.lr_at(1)


# What following a recipe makes


def trained(source: Source, how: Recipe, task: str = "digits-upright", seed: int = 0) -> dict[str, Tensor]:
    """The encoder of seed 0 fine-tuned under a head fitted on it."""
    data, encoder = source.task(task), make_encoder("mlp", 0)
    head = nn.Linear(ENCODERS["mlp"].features, 10)
    head.load_state_dict(fit_head(encoder, data, CPU, nobody).state)
    return fine_tune(encoder, head, data, how, seed, CPU, nobody).state


def distance(state: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float((state[name] - other[name]).square().sum()) for name in state))


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_expert_starts_from_the_encoder_that_it_is_given(source: Source, optimizer: str) -> None:
    start = make_encoder("mlp", 0).state_dict()
    assert distance(trained(source, Recipe(optimizer, 1e-12, 3)), start) < 1e-6
    assert distance(trained(source, Recipe(optimizer, 1e-3, 3)), start) > 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_training_lowers_the_loss_on_what_it_is_trained_on(source: Source, optimizer: str) -> None:
    losses: list[float] = []
    data, encoder = source.task("fashion-upright"), make_encoder("mlp", 0)
    head = nn.Linear(ENCODERS["mlp"].features, 10)
    head.load_state_dict(fit_head(encoder, data, CPU, nobody).state)
    how = recipe("hot", optimizer, 31)
    fine_tune(encoder, head, data, how, 0, CPU, lambda step, loss: losses.append(loss))
    assert len(losses) == 31
    read = [loss for loss in losses if not math.isnan(loss)]
    assert len(read) == 4  # every tenth, and the last
    assert read[-1] < read[0]


def test_a_gradient_is_shortened_so_that_the_hottest_step_stays_finite(source: Source) -> None:
    how = Recipe("sgd", 50.0, 10, momentum=0.0)
    state = trained(source, how)
    assert all(tensor.isfinite().all() for tensor in state.values())
    # The sum of the learning rates times the longest gradient is as far as SGD without momentum can go.
    reach = how.clip * sum(how.lr_at(step) for step in range(how.steps))
    assert distance(state, make_encoder("mlp", 0).state_dict()) <= reach * 1.001


def test_every_sgd_step_is_as_long_as_its_learning_rate_times_the_clipped_gradient(source: Source) -> None:
    data, encoder = source.task("digits-upright"), make_encoder("mlp", 0)
    head = nn.Linear(ENCODERS["mlp"].features, 10)
    head.load_state_dict(fit_head(encoder, data, CPU, nobody).state)
    how = Recipe("sgd", 0.5, 8, momentum=0.0, warmup=0.5, clip=0.01)
    before, lengths = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}, []

    def measure(step: int, loss: float) -> None:
        lengths.append(distance(encoder.state_dict(), before))
        before.update({name: tensor.clone() for name, tensor in encoder.state_dict().items()})

    fine_tune(encoder, head, data, how, 0, CPU, measure)
    assert lengths == pytest.approx([0.01 * how.lr_at(step) for step in range(8)], rel=0.02)


def test_the_head_is_frozen_while_an_expert_is_trained(source: Source) -> None:
    data, encoder = source.task("digits-upright"), make_encoder("mlp", 0)
    head = nn.Linear(ENCODERS["mlp"].features, 10)
    before = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    state = fine_tune(encoder, head, data, recipe("hot", steps=3), 0, CPU, nobody).state
    assert distance(head.state_dict(), before) == 0
    assert all(parameter.grad is None for parameter in head.parameters())
    assert set(state) == set(make_encoder("mlp", 0).state_dict())


def test_a_head_is_better_than_chance_and_does_not_depend_on_random_numbers(source: Source) -> None:
    data, marks = source.task("digits-upright"), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        made = fit_head(make_encoder("mlp", 0), data, CPU, nobody)
        marks.append(fingerprint(made.state))
        assert made.validation_accuracy > 30
    assert marks[0] == marks[1]
    assert {name: tuple(tensor.shape) for name, tensor in made.state.items()} == {"weight": (10, 512), "bias": (10,)}


def test_a_base_learns_to_tell_both_families_apart(source: Source) -> None:
    how = replace(BASE, steps=60)
    assert train_base("mlp", source, how, 0, CPU, nobody).validation_accuracy > 30  # chance is 5


def test_another_seed_is_another_order_of_the_data(source: Source) -> None:
    marks = [fingerprint(trained(source, SGD, seed=seed)) for seed in (3, 3, 4)]
    assert marks[0] == marks[1] != marks[2]


def fitted(source: Source, task: str, encoder: nn.Module) -> nn.Linear:
    head = nn.Linear(ENCODERS["mlp"].features, 10)
    head.load_state_dict(fit_head(encoder, source.task(task), CPU, nobody).state)
    return head


def test_training_one_task_jointly_is_fine_tuning_on_it(source: Source) -> None:
    encoder, name = make_encoder("mlp", 0), "digits-upright"
    heads, tasks = {name: fitted(source, name, encoder)}, {name: source.task(name)}
    joint = train_jointly(encoder, heads, tasks, SGD, 0, CPU, nobody)
    assert fingerprint(joint.state) == fingerprint(trained(source, SGD))


def test_a_joint_step_follows_the_mean_of_the_tasks_gradients(source: Source) -> None:
    names, how = ("digits-upright", "fashion-flipped"), Recipe("sgd", 0.1, 1, batch_size=5, momentum=0.0, clip=1e9)
    encoder = make_encoder("mlp", 0)
    heads, tasks = {n: fitted(source, n, encoder) for n in names}, {n: source.task(n) for n in names}
    start = make_encoder("mlp", 0)
    torch.manual_seed(3)
    losses = []
    for name in names:
        picked = torch.randint(len(tasks[name].train), (2,))  # half of five
        logits = heads[name](start(tasks[name].train.images[picked]))
        losses.append(nn.functional.cross_entropy(logits, tasks[name].train.labels[picked]))
    (0.5 * losses[0] + 0.5 * losses[1]).backward()
    joint = train_jointly(encoder, heads, tasks, how, 3, CPU, nobody).state
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(joint[name], parameter.detach() - 0.1 * parameter.grad)


# What diverges


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_an_expert_that_diverges_gets_its_sentence_when_its_loss_is_next_read(source: Source, optimizer: str) -> None:
    told: list[int] = []
    encoder = make_encoder("mlp", 0)
    head = fitted(source, "digits-upright", encoder)
    how = Recipe(optimizer, 1e30, 25)
    with pytest.raises(ApgdTeachError) as caught:
        fine_tune(encoder, head, source.task("digits-upright"), how, 0, CPU, lambda step, loss: told.append(step))
    assert re.fullmatch(
        r"the expert of digits, upright diverged: its loss is (nan|inf) at step 11 of 25; train it with a lower lr or "
        rf"a smaller clip \({optimizer}, lr 1e\+30, clip 3\)\.",
        str(caught.value),
    )
    assert told == list(range(10))


def test_a_last_step_that_ends_in_infinity_gets_its_sentence_though_every_loss_was_finite(source: Source) -> None:
    losses: list[float] = []
    encoder = make_encoder("mlp", 0)
    head = fitted(source, "digits-upright", encoder)
    # In its one step a weight decay of this size takes every weight out of the range of float32.
    how = Recipe("sgd", 3e38, 1, weight_decay=1e3, clip=1e9)
    with pytest.raises(ApgdTeachError, match="its weights are not finite at step 1 of 1; train it with a lower lr"):
        fine_tune(encoder, head, source.task("digits-upright"), how, 0, CPU, lambda step, loss: losses.append(loss))
    assert len(losses) == 1
    assert math.isfinite(losses[0])


def test_a_base_that_diverges_gets_its_sentence(source: Source) -> None:
    with pytest.raises(ApgdTeachError, match=r"the base diverged: its loss is nan at step 11 of 11; .* \(adamw, lr"):
        train_base("mlp", source, replace(BASE, lr=1e30, steps=11), 0, CPU, nobody)


def test_a_head_on_features_out_of_range_gets_its_sentence(source: Source) -> None:
    encoder = make_encoder("mlp", 0)
    with torch.no_grad():
        encoder.layer3.bias.fill_(math.inf)
    with pytest.raises(ApgdTeachError) as caught:
        fit_head(encoder, source.task("digits-upright"), CPU, nobody)
    assert str(caught.value) == (
        "the head of digits, upright cannot be fitted: the features of the base are out of range; train the base with "
        "a lower lr."
    )
