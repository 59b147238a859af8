"""Training, and nothing else: a recipe, and what following it makes of a base, a head, an expert."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apgd_teach.augment import distorted
from apgd_teach.data import Source, TaskData
from apgd_teach.errors import ApgdTeachError
from apgd_teach.machine import PLAIN, Way, in_blocks, no_room, smaller
from apgd_teach.models import make_encoder
from apgd_teach.models import network as kind_of

__all__ = [
    "BASE",
    "HEAD_PENALTY",
    "REGIMES",
    "Recipe",
    "Tell",
    "Trained",
    "distil",
    "fine_tune",
    "fit_head",
    "recipe",
    "seeded",
    "train_base",
    "train_jointly",
]

Batch = tuple[Tensor, ...]
"""Images (image, channel, row, column), their labels (image,), and what else there is of each image."""

Tell = Callable[[int, float], None]
"""Called after every step with its number and its loss (NaN where it was not read)."""

_NUMBERS = (
    "lr, steps, batch_size and clip must be positive numbers (steps and batch_size whole), weight_decay 0 or more, "
    "momentum and warmup from 0 to below 1"
)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: all of it, so that a hash of this and of the data names the result.

    Attributes:
        optimizer: "sgd" (with momentum) or "adamw".
        lr: the learning rate at its height; it rises at first and falls to zero on a cosine.
        steps: optimiser steps.
        momentum: of SGD.
        weight_decay: decoupled for AdamW, an L2 term for SGD.
        batch_size: images per step.
        warmup: share of the steps over which the learning rate rises.
        clip: a gradient longer than this is shortened to it, so that a hot recipe does not diverge.

    Raises:
        ApgdTeachError: an unknown optimiser, or numbers that cannot be followed.

    Lesson: 01.
    """

    optimizer: str
    lr: float
    steps: int
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 128
    warmup: float = 0.1
    clip: float = 3.0

    def __post_init__(self) -> None:
        if self.optimizer not in ("sgd", "adamw"):
            raise ApgdTeachError(f"there is no optimizer '{self.optimizer}' here; use 'sgd' or 'adamw'.")
        try:
            # Plain numbers, whatever kind came in: 1 and 1.0 are one ingredient, and a card can hold them. A sum of
            # one number refuses text, which `float` would read.
            for name in ("steps", "batch_size"):
                object.__setattr__(self, name, operator.index(getattr(self, name)))
            for name in ("lr", "momentum", "weight_decay", "warmup", "clip"):
                object.__setattr__(self, name, math.fsum([getattr(self, name)]))
        except (OverflowError, TypeError, ValueError):
            raise ApgdTeachError(f"{self} cannot be followed: {_NUMBERS}.") from None
        if not (
            0 < self.lr < math.inf
            and self.steps >= 1
            and self.batch_size >= 1
            and self.clip > 0
            and 0 <= self.weight_decay < math.inf
            and 0 <= self.momentum < 1
            and 0 <= self.warmup < 1
        ):
            raise ApgdTeachError(f"{self} cannot be followed: {_NUMBERS}.")

    def lr_at(self, step: int) -> float:
        """The learning rate of step `step` (from 0)."""
        rise = min(1.0, (step + 1) / max(1.0, self.warmup * self.steps))
        return self.lr * rise * (0.5 + 0.5 * math.cos(math.pi * step / self.steps))


BASE = Recipe("adamw", 1e-3, steps=250, weight_decay=0.01)
"""The shared base: trained once, on both families, under the distortions that the tasks are made of."""

REGIMES = {
    "mild": {"sgd": 0.03, "adamw": 1e-4},
    "hot": {"sgd": 0.2, "adamw": 4e-4},
}
"""Learning rates of fine-tuning. How far each moves an expert is measured in lesson 02."""


def recipe(regime: str = "mild", optimizer: str = "sgd", steps: int = 250) -> Recipe:
    """The recipe of an expert.

    Args:
        regime: "mild" or "hot": the learning rate, see `REGIMES`.
        optimizer: "sgd" or "adamw".
        steps: optimiser steps.

    Raises:
        ApgdTeachError: there is no such regime or optimiser.
    """
    if not isinstance(regime, str) or regime not in REGIMES:
        raise ApgdTeachError(f"there is no regime '{regime}'; use one of: {', '.join(REGIMES)}.")
    return Recipe(optimizer, REGIMES[regime].get(str(optimizer), 1.0), steps)


@dataclass(frozen=True)
class Trained:
    """What training made: the weights, and the share of validation images that they get right, in per cent."""

    state: dict[str, Tensor]
    validation_accuracy: float


HEAD_PENALTY = 1e-3
"""Weight of ‖head‖² in the fit of a head: enough that it does not depend on where the solver stops."""


def train_base(
    network: str, source: Source, how: Recipe, seed: int, device: torch.device, tell: Tell, way: Way = PLAIN
) -> Trained:
    """The shared base θ₀: an encoder trained to tell all classes of a source's families apart, under distortions.

    Args:
        network: a name in `models.ENCODERS`.
        source: of the data; the training images of all its families.
        how: the recipe.
        seed: of the initialisation, the order of the data and the distortions.
        device: where to compute. Random numbers are always drawn on the CPU, so that every device sees the same.
        tell: told of every step.
        way: how the network is computed, as for every training here.

    Raises:
        ApgdTeachError: the training diverged (as for every training here: no network of NaN is handed on), or the
            network takes no pictures of that shape.

    Lesson: 01.
    """
    families = [source.task(f"{family.name}-{family.plain}") for family in source.families]
    offsets = [sum(len(family.classes) for family in families[:i]) for i in range(len(families) + 1)]
    shape = kind_of(network).shape
    if families[0].shape != shape:
        raise ApgdTeachError(
            f"the network '{network}' takes pictures of {shape} (channel, row, column), and those of "
            f"{families[0].title} are {families[0].shape}; use another network or another source."
        )
    images = torch.cat([family.train.images for family in families]).to(device)
    labels = torch.cat([family.train.labels + offsets[i] for i, family in enumerate(families)]).to(device)
    encoder = make_encoder(network, seed).to(device)
    with seeded(seed):
        head = nn.Linear(kind_of(network).features, offsets[-1]).to(device)
        forward = way.ready(encoder.train())

        def draw() -> Batch:
            picked = torch.randint(len(images), (how.batch_size,)).to(device)
            return distorted(images[picked]), labels[picked]

        def loss(some: Tensor, names: Tensor) -> Tensor:
            return F.cross_entropy(head(forward(some)), names)

        _descend("the base", [*encoder.parameters(), *head.parameters()], draw, loss, how, tell)
    right = total = 0
    for i, family in enumerate(families):
        with torch.no_grad():
            guess = head(_features(encoder, family.validation.images.to(device))).argmax(dim=1).cpu()
        right += int((guess == family.validation.labels + offsets[i]).sum())
        total += len(family.validation)
    return Trained(encoder.state_dict(), 100 * right / total)


def fit_head(encoder: nn.Module, task: TaskData, device: torch.device, tell: Tell) -> Trained:
    """The linear head of one task on a frozen encoder's features: logistic regression, solved by L-BFGS.

    Returns:
        "weight" (class, feature) and "bias" (class,).

    Lesson: 01.
    """
    features, labels = _features(encoder, task.train.images.to(device)), task.train.labels.to(device)
    # From zero: the problem is convex, so the start decides nothing and need not be drawn from the caller's numbers.
    head = nn.utils.skip_init(nn.Linear, features.shape[1], len(task.classes)).to(device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(head(features), labels) + HEAD_PENALTY * head.weight.square().sum()
        loss.backward()
        return loss

    first = float(optimizer.step(closure).detach()) if _finite([features]) else math.nan
    if not _finite([features, *head.parameters()]):
        raise ApgdTeachError(
            f"the head of {task.title} cannot be fitted: the features of the base are out of range; train the base "
            "with a lower lr."
        )
    tell(0, first)
    return Trained(head.state_dict(), _accuracy(encoder, head, task, device))


def fine_tune(
    encoder: nn.Module,
    head: nn.Linear,
    task: TaskData,
    how: Recipe,
    seed: int,
    device: torch.device,
    tell: Tell,
    way: Way = PLAIN,
) -> Trained:
    """An expert θᵢ: `encoder`, which holds the base and is changed, trained on one task under its frozen head.

    Lesson: 01.
    """
    head.requires_grad_(False)
    images, labels = task.train.images.to(device), task.train.labels.to(device)
    forward = way.ready(encoder.train())
    with seeded(seed):

        def draw() -> Batch:
            picked = torch.randint(len(images), (how.batch_size,)).to(device)
            return images[picked], labels[picked]

        def loss(some: Tensor, names: Tensor) -> Tensor:
            return F.cross_entropy(head(forward(some)), names)

        _descend(f"the expert of {task.title}", list(encoder.parameters()), draw, loss, how, tell)
    return Trained(encoder.state_dict(), _accuracy(encoder, head, task, device))


def train_jointly(
    encoder: nn.Module,
    heads: Mapping[str, nn.Linear],
    tasks: Mapping[str, TaskData],
    how: Recipe,
    seed: int,
    device: torch.device,
    tell: Tell,
    way: Way = PLAIN,
) -> Trained:
    """One network for all tasks: `encoder`, which holds the base and is changed, trained under their frozen heads.

    Every batch holds equally many images of each task. With a single task this is `fine_tune`, to the bit.

    Args:
        encoder: holds θ₀.
        heads, tasks: by the same names.
        how: the recipe; its steps are all steps, its batch is divided among the tasks.
        seed: of the order of the data.
        device: where to compute.
        tell: told of every step.

    Returns:
        The weights, and the mean of the tasks' validation accuracies.

    Lesson: 07.
    """
    sets = {name: (task.train.images.to(device), task.train.labels.to(device)) for name, task in tasks.items()}
    share = max(1, how.batch_size // len(tasks))
    for head in heads.values():
        head.requires_grad_(False)
    names = list(sets)
    owners = torch.arange(len(names), device=device).repeat_interleave(share)
    forward = way.ready(encoder.train())
    with seeded(seed):

        def draw() -> Batch:
            picked = [torch.randint(len(labels), (share,)).to(device) for _, labels in sets.values()]
            parts = list(zip(sets.values(), picked, strict=True))
            images = torch.cat([images[some] for (images, _), some in parts])
            return images, torch.cat([labels[some] for (_, labels), some in parts]), owners

        def loss(images: Tensor, labels: Tensor, whose: Tensor) -> Tensor:
            # A part of a batch may end within a task.
            there, counts = whose.unique_consecutive(return_counts=True)
            features, numbers = forward(images).split(counts.tolist()), labels.split(counts.tolist())
            losses = [
                F.cross_entropy(heads[names[one]](part), some) * (len(some) * len(counts) / len(labels))
                for one, part, some in zip(there.tolist(), features, numbers, strict=True)
            ]
            return torch.stack(losses).mean()

        _descend("the joint network", list(encoder.parameters()), draw, loss, how, tell)
    accuracies = [_accuracy(encoder, heads[name], task, device) for name, task in tasks.items()]
    return Trained(encoder.state_dict(), sum(accuracies) / len(accuracies))


def distil(
    student: nn.Module,
    heads: Mapping[str, nn.Module],
    teach: Callable[[str, Tensor], Tensor],
    pictures: Mapping[str, Tensor],
    how: Recipe,
    seed: int,
    device: torch.device,
    tell: Tell,
    *,
    temperature: float = 2.0,
    way: Way = PLAIN,
) -> dict[str, Tensor]:
    """A student that answers as its teachers do: its encoder and heads, which are changed, trained without any label.

    Every batch holds equally many pictures of each task. The loss is the divergence of the student's answers from the
    teacher's, both softened by a temperature, times its square.

    Args:
        student: an encoder.
        heads: by task, from its features to logits.
        teach: a task and pictures to the teacher's logits, shape (image, class).
        pictures: by task, shape (image, channel, row, column).
        how: the recipe; its batch is divided among the tasks.
        seed: of the order of the pictures.
        device: where to compute.
        tell: told of every step.
        temperature: above 1 softens the answers.

    Returns:
        The encoder's weights.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", arXiv 1503.02531. Lesson: 09.
    """
    sets = {name: images.to(device) for name, images in pictures.items()}
    names, share = list(sets), max(1, how.batch_size // len(sets))
    owners = torch.arange(len(names), device=device).repeat_interleave(share)
    forward = way.ready(student.train())
    learned = [*student.parameters(), *(one for head in heads.values() for one in head.train().parameters())]
    with seeded(seed):

        def draw() -> Batch:
            picked = {name: torch.randint(len(images), (share,)).to(device) for name, images in sets.items()}
            batch = torch.cat([sets[name][some] for name, some in picked.items()])
            return batch, owners

        def loss(images: Tensor, whose: Tensor) -> Tensor:
            # A part of a batch may end within a task.
            there, counts = whose.unique_consecutive(return_counts=True)
            parts = images.split(counts.tolist())
            losses = []
            for one, part, features in zip(there.tolist(), parts, forward(images).split(counts.tolist()), strict=True):
                with torch.no_grad():
                    wanted = F.softmax(teach(names[one], part) / temperature, dim=1)
                said = F.log_softmax(heads[names[one]](features) / temperature, dim=1)
                losses.append(F.kl_div(said, wanted, reduction="sum") * temperature**2 / len(images))
            return torch.stack(losses).sum()

        _descend("the student", learned, draw, loss, how, tell)
    return student.state_dict()


def _descend(
    what: str,
    parameters: list[nn.Parameter],
    draw: Callable[[], Batch],
    loss: Callable[..., Tensor],
    how: Recipe,
    tell: Tell,
) -> None:
    """Follow a recipe.

    Where the device has no room for a batch, it goes through the network in parts and their gradients are added up:
    the step is the same one, but for rounding and for a BatchNorm, which sees the parts and, of a batch that was begun,
    some of them twice.

    Args:
        what: is being trained, for the sentences.
        parameters: that learn.
        draw: a batch: tensors with the images along their first axis.
        loss: the mean loss of a batch or of a part of one, given its tensors.
        how: the recipe.
        tell: told of every step.

    Raises:
        ApgdTeachError: loss or weights are not finite, or not even one image fits into the device. A loss that is not
            finite makes every weight and every later loss so: it is enough to look where it is read anyway, and at
            the weights in the end.
    """
    optimizer: torch.optim.Optimizer
    if how.optimizer == "sgd":
        optimizer = torch.optim.SGD(parameters, how.lr, momentum=how.momentum, weight_decay=how.weight_decay)
    else:
        optimizer = torch.optim.AdamW(parameters, how.lr, weight_decay=how.weight_decay)
    at_once = sys.maxsize
    with torch.enable_grad():
        for step in range(how.steps):
            optimizer.param_groups[0]["lr"] = how.lr_at(step)
            batch = draw()
            at_once = min(at_once, len(batch[0]))
            while True:
                optimizer.zero_grad()
                try:
                    value = _backward(batch, at_once, loss)
                    break
                except (RuntimeError, MemoryError) as error:
                    if not no_room(error):
                        raise
                at_once = smaller(at_once, f"training {what}")
            nn.utils.clip_grad_norm_(parameters, how.clip)
            optimizer.step()
            # Reading the loss waits for a GPU: now and then is enough for a reader.
            reading = step % 10 == 0 or step == how.steps - 1
            said = float(value) if reading else math.nan
            if reading and not math.isfinite(said):
                raise _diverged(what, f"its loss is {said:.3g}", step, how)
            tell(step, said)
    if not _finite(parameters):
        raise _diverged(what, "its weights are not finite", how.steps - 1, how)


def _backward(batch: Batch, at_once: int, loss: Callable[..., Tensor]) -> Tensor:
    """The gradient of the mean loss of a batch, added to what is there, and that loss without its graph."""
    total = len(batch[0])
    if at_once >= total:
        value = loss(*batch)
        value.backward()
        return value.detach()
    said = torch.zeros((), device=batch[0].device)
    for part in zip(*(tensor.split(at_once) for tensor in batch), strict=True):
        value = loss(*part) * (len(part[0]) / total)
        value.backward()
        said += value.detach()
    return said


def _diverged(what: str, symptom: str, step: int, how: Recipe) -> ApgdTeachError:
    return ApgdTeachError(
        f"{what} diverged: {symptom} at step {step + 1} of {how.steps}; train it with a lower lr or a smaller clip "
        f"({how.optimizer}, lr {how.lr:g}, clip {how.clip:g})."
    )


def _finite(parameters: Iterable[Tensor]) -> bool:
    return all(bool(parameter.isfinite().all()) for parameter in parameters)


def _features(encoder: nn.Module, images: Tensor) -> Tensor:
    """Features (image, feature) as the network gives them when it does not learn."""
    training = encoder.training
    try:
        # The block is fixed: the last digits depend on it, and a head's weights on them.
        return in_blocks(encoder.eval(), images, block=1000)
    finally:
        encoder.train(training)


def _accuracy(encoder: nn.Module, head: nn.Linear, task: TaskData, device: torch.device) -> float:
    """Validation accuracy in per cent."""
    with torch.no_grad():
        guess = head(_features(encoder, task.validation.images.to(device))).argmax(dim=1).cpu()
    return float((guess == task.validation.labels).float().mean()) * 100


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from `seed` inside and the caller's own afterwards. Only the CPU's: every draw is made there."""
    with torch.device("cpu"), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield
