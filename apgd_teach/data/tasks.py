"""The tasks: a family of pictures and one torchvision transform each. Adding a task is one entry in a list here."""

from __future__ import annotations

import hashlib
import math
import operator
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from numbers import Integral

import torch
from torch import Tensor
from torchvision.transforms import v2

from apgd_teach.data.families import COLOUR, FAMILIES, Family
from apgd_teach.errors import DataError

__all__ = [
    "ALL_TASKS",
    "COLOUR_TASKS",
    "COLOUR_VARIANTS",
    "TASKS",
    "VARIANTS",
    "Task",
    "Variant",
    "as_task",
    "family_of",
    "task_names",
    "tasks_of",
]

# Images are transformed this many at a time, to bound the memory. The noise depends on it: changing it changes tasks.
_BLOCK = 4096


@dataclass(frozen=True)
class Variant:
    """One way of showing a family; together they are a task (lesson 01).

    Args:
        family: a name in `FAMILIES` or `COLOUR`.
        name: how the task's name ends: "rotated45" makes "digits-rotated45". It becomes part of files' names.
        transform: a torchvision transform (or any function) from (image, channel, row, column) float32 in [0, 1] to
            the same shape and range; (channel, row, column) is the family's, (1, 28, 28) or (3, 32, 32). It is given a
            block of images at once, so a transform of torchvision that draws its parameters once per call (a random
            rotation, say) turns a whole block alike; set `each`.
        seed: makes another draw of a random transform; None is the first one.
        title: how the variant is called in sentences, when that is not its name.
        each: give the transform one image at a time, (channel, row, column).
        classes: the labels of the classes that belong to the task; all by default. The task's own labels count them
            from 0, in this order.

    Raises:
        DataError: the name cannot be part of a file's name on every system, or something is of the wrong type.
    """

    family: str
    name: str
    transform: Callable[[Tensor], Tensor]
    seed: int | None = None
    title: str = ""
    each: bool = False
    classes: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.family, str):
            raise DataError(f"A variant's family is of type {_type(self.family)}; give its name, as in 'digits'.")
        if not (isinstance(self.name, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,59}", self.name)):
            raise DataError(
                f"A variant of '{self.family}' cannot be called {self.name!r}; make its name of at most 60 of the "
                "letters a to z, digits, '.', '_' and '-', with a letter or digit in front."
            )
        if not callable(self.transform):
            raise DataError(
                f"The transform of variant '{self.name}' is of type {_type(self.transform)}; "
                "give a transform of torchvision or a function."
            )
        if not (self.seed is None or isinstance(self.seed, Integral)):
            raise DataError(f"The seed of variant '{self.name}' is {self.seed!r}; give a whole number, or None.")
        if self.classes is not None:
            object.__setattr__(self, "classes", _labels(self.name, self.classes))


@dataclass(frozen=True)
class Task:
    """A variant with its names (lesson 01)."""

    variant: Variant

    @property
    def name(self) -> str:
        """ "digits-rotated45": in code, files and command lines."""
        return f"{self.variant.family}-{self.variant.name}"

    @property
    def title(self) -> str:
        """ "digits, rotated 45°": in figures and tables."""
        return f"{self.variant.family}, {self.variant.title or self.variant.name}"

    @property
    def family(self) -> str:
        """The family's name, a key of `FAMILIES` or `COLOUR`."""
        return self.variant.family

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one picture: (channel, row, column)."""
        return family_of(self.family).shape

    @property
    def recipe(self) -> str:
        """What makes the pictures, in words: a cache takes two transforms of one name for two tasks by it.

        torchvision's transforms say what they are. Of a function only the pictures tell, so a hash of some stands in.
        """
        said = repr(self.variant.transform)
        if re.search(r"<function|<lambda>| object at | at 0x", said):
            pictures = self.apply(torch.linspace(0, 1, 8 * math.prod(self.shape)).reshape(8, *self.shape), "recipe")
            levels = (pictures * 255).round().to(torch.uint8).numpy().tobytes()
            said = f"function, pictures {hashlib.sha256(levels).hexdigest()[:16]}"
        of = "" if self.variant.classes is None else f", classes {list(self.variant.classes)}"
        return f"{said}, seed {self.variant.seed}, each {self.variant.each}{of}"

    def apply(self, images: Tensor, split: str) -> Tensor:
        """The task's pictures from its family's.

        What is random is drawn from a seed made of the names of task and split and nothing else: every run and every
        process sees the same pictures, and the caller's random numbers go on as if nothing had been drawn.

        Args:
            images: (image, channel, row, column) float32 in [0, 1].
            split: "train", "validation" or "test".

        Returns:
            (image, channel, row, column) float32 in [0, 1].

        Raises:
            DataError: the transform changed shape or type, or left [0, 1].
        """
        label = f"{self.name}/{split}/{self.variant.seed or 0}"
        seed = int.from_bytes(hashlib.sha256(label.encode()).digest()[:7], "big")
        with torch.device("cpu"), torch.random.fork_rng(devices=[]), torch.no_grad():
            # Not torch.manual_seed, which would reseed every GPU as well; and on the CPU, whatever the default is.
            torch.default_generator.manual_seed(seed)
            blocks = [self._block(block) for block in images.split(_BLOCK)]
        shown = torch.cat(blocks)
        if shown.shape != images.shape or shown.dtype != images.dtype:
            raise DataError(
                f"The transform of task '{self.name}' turns {_described(images)} into {_described(shown)}; "
                "give it a transform that keeps both."
            )
        low, high = torch.aminmax(shown)
        # A hundred-thousandth is rounding, as bilinear interpolation leaves it.
        if not (low >= -1e-5 and high <= 1 + 1e-5):
            raise DataError(
                f"The transform of task '{self.name}' leaves the range 0 to 1 ({low:.3g} to {high:.3g}); "
                "end it with a clamp, as v2.GaussianNoise does with clip=True."
            )
        return shown.clamp_(0, 1)

    def _block(self, images: Tensor) -> Tensor:
        if self.variant.each:
            return torch.stack([self.variant.transform(image) for image in images])
        return self.variant.transform(images)


def _labels(name: str, classes: object) -> tuple[int, ...]:
    """The labels of a variant's classes as plain numbers."""
    wrong = DataError(f"The classes of variant '{name}' are {classes!r}; give two labels or more, each once, from 0.")
    try:
        labels = tuple(operator.index(label) for label in classes)  # type: ignore[attr-defined]
    except TypeError:
        raise wrong from None
    if len(labels) < 2 or len(set(labels)) < len(labels) or min(labels) < 0:
        raise wrong
    return labels


def family_of(name: str) -> Family:
    """A family, grey or in colour, by its name.

    Raises:
        DataError: there is none of that name; the nearest ones are suggested.
    """
    known: dict[str, Family] = {**FAMILIES, **COLOUR}
    if name not in known:
        raise DataError(unknown("family", name, known))
    return known[name]


def _type(value: object) -> str:
    return type(value).__name__


def _described(images: Tensor) -> str:
    return f"{tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"


def _turned() -> v2.RandomRotation:
    return v2.RandomRotation((45, 45), interpolation=v2.InterpolationMode.BILINEAR)


VARIANTS: list[Variant] = [
    Variant("digits", "upright", v2.Identity()),
    Variant("digits", "rotated45", _turned(), title="rotated 45°"),
    Variant("digits", "inverted", v2.RandomInvert(p=1.0)),
    Variant("digits", "noisy", v2.GaussianNoise(sigma=0.3, clip=True)),
    Variant("fashion", "upright", v2.Identity()),
    Variant("fashion", "flipped", v2.RandomVerticalFlip(p=1.0)),
    Variant("fashion", "inverted", v2.RandomInvert(p=1.0)),
    Variant("fashion", "rotated45", _turned(), title="rotated 45°"),
]


COLOUR_VARIANTS: list[Variant] = [
    variant
    for family, halves in (
        ("cifar10", {"vehicles": (0, 1, 8, 9), "animals": (2, 3, 4, 5, 6, 7)}),
        ("shapes", {"figures": (0, 1, 2, 3, 4), "textures": (5, 6, 7, 8, 9)}),
    )
    for variant in (
        Variant(family, "plain", v2.Identity()),
        Variant(family, "grey", v2.Grayscale(3)),
        Variant(family, "negative", v2.RandomInvert(p=1.0)),
        Variant(family, "hue", v2.ColorJitter(hue=(1 / 3, 1 / 3)), title="hues turned by a third"),
        Variant(family, "noisy", v2.GaussianNoise(sigma=0.15, clip=True)),
        Variant(family, "blurred", v2.GaussianBlur(5, sigma=(1.0, 1.0))),
        Variant(family, "rotated90", v2.RandomRotation((90, 90)), title="rotated 90°"),
        Variant(family, "flipped", v2.RandomVerticalFlip(p=1.0)),
        *(Variant(family, half, v2.Identity(), classes=classes) for half, classes in halves.items()),
    )
]


def tasks_of(variants: Iterable[Variant]) -> dict[str, Task]:
    """The tasks of `variants` by name, in their order.

    Raises:
        DataError: an unknown family, or two tasks of the same name.
    """
    tasks: dict[str, Task] = {}
    for variant in variants:
        task = Task(variant)
        family_of(variant.family)
        if task.name in tasks:
            raise DataError(f"Two variants make the task '{task.name}'; give one of them another name.")
        tasks[task.name] = task
    return tasks


def unknown(kind: str, name: object, known: Iterable[str]) -> str:
    """The sentence for a name that is not among `known`, with the nearest ones or all of them."""
    names = list(known)
    near = get_close_matches(str(name), names, n=2, cutoff=0.5)
    if near:
        return f"There is no {kind} '{name}'; did you mean {' or '.join(f'{match!r}' for match in near)}?"
    return f"There is no {kind} '{name}'; there are {', '.join(names)}."


TASKS: dict[str, Task] = tasks_of(VARIANTS)
"""Of lessons 00 to 07."""

COLOUR_TASKS: dict[str, Task] = tasks_of(COLOUR_VARIANTS)
"""Of lesson 08, for both of its families."""

ALL_TASKS: dict[str, Task] = {**TASKS, **COLOUR_TASKS}


def as_task(task: str | Task | Variant) -> Task:
    """The task that is meant: by its name, or one that is not in the list by its `Variant`.

    Raises:
        DataError: an unknown name, or nothing that could be a task.
    """
    if isinstance(task, Variant):
        return Task(task)
    if isinstance(task, str):
        if task not in ALL_TASKS:
            raise DataError(unknown("task", task, TASKS if not task.startswith(tuple(COLOUR)) else COLOUR_TASKS))
        return ALL_TASKS[task]
    if not isinstance(task, Task):
        raise DataError(f"A task cannot be of type {_type(task)}; give its name, as in 'digits-upright', or a Variant.")
    return task


def task_names(family: str | None = None) -> list[str]:
    """The names of the tasks, in the order of the course: the digits, then the fashion.

    Args:
        family: of this family alone; those of the colour family only in this way.

    Raises:
        DataError: there is no such family.
    """
    if family is None:
        return list(TASKS)
    family_of(family)
    return [name for name, task in ALL_TASKS.items() if task.family == family]
