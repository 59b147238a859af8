"""How good is a merge? Loss and accuracy per task, the gap to each expert, and what of it was recovered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from apgd_teach.data import Split
from apgd_teach.errors import ApgdTeachError
from apgd_teach.experts import Pool
from apgd_teach.machine import in_blocks, room
from apgd_teach.merging import Merged, StateDict
from apgd_teach.tables import Table

__all__ = ["Comparison", "Difference", "Evaluator", "Score", "Scores", "compare", "fitted", "paired", "student"]

_STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)
"""Student's t from two to ten numbers, as it stands in the tables."""


@dataclass(frozen=True)
class Score:
    """One network on one task.

    Attributes:
        right: which images it names rightly, shape (image,), bool.
        losses: cross-entropy per image, shape (image,), in nats.
        places: which picture of the family's split each image is, shape (image,); the first ones in their order when
            it is None.
    """

    right: Tensor
    losses: Tensor
    places: Tensor | None = None

    @property
    def accuracy(self) -> float:
        """Share of images named rightly, in per cent."""
        return 100 * float(self.right.double().mean())

    @property
    def loss(self) -> float:
        """Mean cross-entropy, in nats."""
        return float(self.losses.mean())


Scores = dict[str, Score]
"""A score per task."""


class Evaluator:
    """Scores state dicts of one pool, on the same images every time.

    Args:
        pool: whose tasks and heads.
        images: how many of each task's images to look at, the first ones; all by default.
        split: "test" for what is reported, "validation" for what chooses settings.

    Raises:
        ApgdTeachError: there is no such split, or `images` is no number of images.

    Lesson: 00, 02.
    """

    def __init__(self, pool: Pool, *, images: int | None = None, split: str = "test") -> None:
        if split not in ("train", "validation", "test"):
            raise ApgdTeachError(f"there is no split '{split}'; use 'test', 'validation' or 'train'.")
        if images is not None and (isinstance(images, bool) or not isinstance(images, Integral) or images < 1):
            raise ApgdTeachError(
                f"images={images!r} is no number of images; give a whole number from 1, or None for all."
            )
        self.pool, self.split = pool, split
        self.encoder = pool.encoder()
        self._sets: dict[str, tuple[Tensor, Tensor]] = {}
        self._places: dict[str, Tensor] = {}
        for name, task in pool.tasks.items():
            part: Split = getattr(task, split)
            part = part if images is None else part.first(images)
            with room("taking the images that networks are scored on"):
                self._sets[name] = (part.images.to(pool.device), part.labels.to(pool.device))
            self._places[name] = part.places
        self._heads = {name: pool.head(name) for name in pool.tasks}

    def images(self, task: str) -> int:
        """How many images of a task are looked at."""
        return len(self._sets[task][1])

    def looked_at(self, task: str) -> tuple[Tensor, Tensor]:
        """The images of a task that are looked at (image, channel, row, column) and their labels (image,).

        Raises:
            ApgdTeachError: the pool has no such task.
        """
        if task not in self._sets:
            raise ApgdTeachError(f"this pool has no task '{task}'; it has: {', '.join(self._sets)}.")
        return self._sets[task]

    def loaded(self, state: StateDict) -> dict[str, Tensor]:
        """A state dict (an encoder's, of any precision) on the pool's device and in its network's precision.

        Raises:
            ApgdTeachError: it is of another network.
        """
        return fitted(self.encoder, state, self.pool.network)

    @torch.no_grad()
    def logits(self, state: StateDict, task: str, images: Tensor | None = None) -> Tensor:
        """What a network gives each image under that task's own head, shape (image, class).

        Args:
            state: an encoder's, of any precision.
            task: whose head.
            images: others than the task's own, on the pool's device.

        Raises:
            ApgdTeachError: the pool has no such task, or the state dict is of another network.
        """
        (own, _), there = self.looked_at(task), self.loaded(state)
        head = self._heads[task]
        shown = own if images is None else images
        return in_blocks(lambda block: head(functional_call(self.encoder, there, (block,))), shown)

    def score(self, state: StateDict, task: str) -> Score:
        """One network (an encoder's state dict, of any precision) on one task, under that task's own head.

        Raises:
            ApgdTeachError: the pool has no such task, or the state dict is of another network.
        """
        logits, (_, labels) = self.logits(state, task), self.looked_at(task)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return Score((logits.argmax(dim=1) == labels).cpu(), losses.cpu(), self._places[task])

    def scores(self, state: StateDict) -> Scores:
        """One network on every task."""
        return {task: self.score(state, task) for task in self.pool.tasks}

    def experts(self) -> Scores:
        """Every expert on its own task."""
        return {task: self.score(self.pool.experts[task], task) for task in self.pool.tasks}


def fitted(encoder: nn.Module, state: StateDict, network: str) -> dict[str, Tensor]:
    """A state dict of any precision, on an encoder's device and in its precision.

    Args:
        encoder: whose.
        state: to be computed with in its place.
        network: the encoder's name, for the sentence.

    Raises:
        ApgdTeachError: it is of another network.
    """
    own = encoder.state_dict()
    # What a state dict lacks, `functional_call` would take from the base in silence.
    for key in [*own, *state]:
        if key not in own or key not in state or own[key].shape != state[key].shape:
            raise ApgdTeachError(
                f"this state dict is not one of the network '{network}': '{key}' "
                f"{_shape(own, key)} there and {_shape(state, key)} here."
            )
    return {key: state[key].to(tensor) for key, tensor in own.items()}


def _shape(state: StateDict, key: str) -> str:
    return f"has shape {tuple(state[key].shape)}" if key in state else "is missing"


@dataclass(frozen=True)
class Difference:
    """Mean accuracy of one network minus that of another, over the same images.

    Attributes:
        points: the difference, in points of per cent, averaged over the tasks.
        margin: half the width of its 95 % interval. It covers the choice of test images, paired image by image and
            across the tasks, which show the same images in different ways; not the training seed. NaN for one image.
            What `paired` gives covers the training seed, and is NaN for one seed.
    """

    points: float
    margin: float

    def __str__(self) -> str:
        sign = "+" if self.points >= 0 else "−"
        # A difference below one point needs another digit: ±0.5 of 0.5 would not say on which side of zero it ends.
        digits = 1 if abs(self.points) >= 1 or self.points == 0 else 2
        margin = "–" if math.isnan(self.margin) else f"{self.margin:.{digits}f}"
        return f"{sign}{abs(self.points):.{digits}f} ± {margin}"

    @property
    def verdict(self) -> str:
        """ "better", "worse", or "no difference seen" where the interval holds zero or there is none."""
        # Where every seed says the same, the margin is 0, and what sums leave in the last digits is no difference.
        if math.isnan(self.margin) or abs(self.points) <= self.margin + 1e-9:
            return "no difference seen"
        return "better" if self.points > 0 else "worse"

    @property
    def told(self) -> str:
        """ "+1.7 ± 1.2, better": the difference and its verdict."""
        return f"{self}, {self.verdict}"


def difference(one: Scores, other: Scores) -> Difference:
    """How much more accurate `one` is than `other`, task by task on the same images.

    Raises:
        ApgdTeachError: they were scored on different tasks or images.
    """
    if set(one) != set(other) or any(len(one[task].right) != len(other[task].right) for task in one):
        raise ApgdTeachError("these scores are of different tasks or images; score both with one Evaluator.")
    each = {task: one[task].right.double() - other[task].right.double() for task in one}
    mean = sum(float(values.mean()) for values in each.values()) / len(each)
    return Difference(100 * mean, 100 * 1.96 * _deviation(each, one))


def _deviation(each: Mapping[str, Tensor], scores: Scores) -> float:
    """The standard deviation of the mean over tasks and images of what `each` has per image, by task (image,).

    The tasks of a family show the same pictures, so what a picture does to the mean is added up before it is squared.
    NaN where a task has one image.
    """
    if min(map(len, each.values())) < 2:
        return math.nan
    shown = {task: _places(scores[task]) for task in each}
    pulls = torch.zeros(1 + max(int(places.max()) for places in shown.values()), dtype=torch.float64)
    for task, values in each.items():
        n = len(values)
        pulls[shown[task]] += (values - values.mean()) / (len(each) * math.sqrt(n * (n - 1)))
    return float(pulls.square().sum().sqrt())


def _places(score: Score) -> Tensor:
    return torch.arange(len(score.right)) if score.places is None else score.places


def student(n: int) -> float:
    """Student's factor t for a 95 % interval of the mean of n numbers: 4.30 for three, 1.96 for very many.

    Args:
        n: how many, 2 or more.

    Raises:
        ApgdTeachError: there are fewer than two, whose spread nothing says.

    Lesson: 07.
    """
    if n < 2:
        raise ApgdTeachError(f"there is no interval from {n} numbers; give two or more.")
    if n - 2 < len(_STUDENT):
        return _STUDENT[n - 2]
    # Its expansion in powers of 1/ν, from eleven numbers on right to the second decimal.
    z, freedom = 1.959964, n - 1
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def paired(one: Sequence[float], other: Sequence[float]) -> Difference:
    """Mean of the differences d, seed by seed, with the 95 % interval d̄ ± t·s/√n.

    Args:
        one, other: a number per seed, at the same places the same seed.

    Returns:
        The margin is NaN where there is one seed, or a number that is not finite.

    Raises:
        ApgdTeachError: there is no seed, or one has more of them than the other.

    Lesson: 07.
    """
    if len(one) != len(other) or not one:
        raise ApgdTeachError(f"{len(one)} numbers cannot be paired with {len(other)}; give one of each for every seed.")
    differences = [float(a) - float(b) for a, b in zip(one, other, strict=True)]
    n, middle = len(differences), fmean(differences)
    if n < 2 or not math.isfinite(middle):
        return Difference(middle, math.nan)
    return Difference(middle, student(n) * stdev(differences) / math.sqrt(n))


@dataclass(frozen=True)
class Comparison:
    """Merged networks beside the two bounds: the base (no fine-tuning) and each task's own expert.

    Attributes:
        titles: of the tasks, by name.
        base: θ₀ on every task.
        experts: every expert on its own task.
        merged: by label, a merged network on every task.
        data_used: by label, what data the method used beside the weights: "none", "unlabelled", "labelled", "test".
        tier: of the images, and how many per task.

    Lesson: 00, 02, 07.
    """

    titles: dict[str, str]
    base: Scores
    experts: Scores
    merged: dict[str, Scores]
    data_used: dict[str, str]
    tier: str

    def average(self, label: str) -> float:
        """Mean accuracy over the tasks, in per cent; `label` may be "base" or "experts" as well."""
        each = self.accuracies(label)
        return sum(each) / len(each)

    def accuracies(self, label: str) -> list[float]:
        """Accuracy (%) on each task; `label` may be "base" or "experts" as well."""
        return [score.accuracy for score in self._scores(label).values()]

    def worst(self, label: str) -> tuple[str, float]:
        """The task on which a network is least accurate, and its accuracy in per cent."""
        scores = self._scores(label)
        task = min(scores, key=lambda name: scores[name].accuracy)
        return task, scores[task].accuracy

    def recovered(self, label: str) -> float:
        """(merged − base) / (experts − base) of mean accuracy; NaN where the experts are not better than the base (by
        less than a thousandth of a point, which is rounding).

        1 is as good as the experts, 0 no better than the base, below 0 worse than not fine-tuning at all.

        Source: (19) in docs/equations.md. Lesson: 07.
        """
        room = self.average("experts") - self.average("base")
        return (self.average(label) - self.average("base")) / room if room > 1e-3 else math.nan

    def recovered_words(self, label: str) -> str:
        """`recovered` in per cent, with its 95 % interval over test images: "76 ± 9"; "–" where it is NaN.

        What was gained and what there was to gain are both measured on these images, so both are in the interval (the
        delta method: the deviation of gained − share · to gain, over what there was to gain).
        """
        share, room = self.recovered(label), self.average("experts") - self.average("base")
        if math.isnan(share):
            return "–"
        merged, base, experts = (self._scores(one) for one in (label, "base", "experts"))
        each = {
            task: merged[task].right.double()
            - (1 - share) * base[task].right.double()
            - share * experts[task].right.double()
            for task in merged
        }
        margin = 1.96 * 100 * _deviation(each, merged) / room
        said = f"{100 * share:.0f}".replace("-", "−")
        return f"{said} ± {'–' if math.isnan(margin) else f'{100 * margin:.0f}'}"

    def gap(self, label: str) -> dict[str, float]:
        """Lⱼ(θ*) − Lⱼ(θⱼ) per task, in nats: how much more loss than the task's own expert.

        Source: (3) in docs/equations.md. Lesson: 02, 04.
        """
        scores = self._scores(label)
        return {task: scores[task].loss - self.experts[task].loss for task in scores}

    def against(self, label: str, other: str = "base") -> Difference:
        """How much more accurate one network is than another, with a 95 % interval."""
        return difference(self._scores(label), self._scores(other))

    def words(self) -> str:
        """Every accuracy in one sentence, for those who cannot see the figure."""
        columns = {"base": self.base, **self.merged, "its own expert": self.experts}
        return (
            "; ".join(
                f"{title}: " + ", ".join(f"{label} {scores[task].accuracy:.1f}" for label, scores in columns.items())
                for task, title in self.titles.items()
            )
            + " (per cent)."
        )

    def table(self) -> Table:
        """Accuracy (%) per task, and the mean below."""
        labels = ["base", *self.merged, "experts"]
        rows: list[list[object]] = [
            [self.titles[task], *(self._scores(label)[task].accuracy for label in labels)] for task in self.base
        ]
        rows.append(["mean over tasks", *(self.average(label) for label in labels)])
        return Table(
            ["task", "base", *self.merged, "its own expert"],
            rows,
            caption="Accuracy (%)",
            note=f"Images: {self.tier}.",
            bold=[len(rows) - 1],
        )

    def gap_table(self) -> Table:
        """The gap (nats) per task: loss above the task's own expert."""
        labels = ["base", *self.merged]
        gaps = {label: self.gap(label) for label in labels}
        rows: list[list[object]] = [[self.titles[task], *(gaps[label][task] for label in labels)] for task in self.base]
        rows.append(["mean over tasks", *(sum(gaps[label].values()) / len(self.base) for label in labels)])
        return Table(
            ["task", *labels],
            rows,
            caption="Gap to the task's own expert: Lⱼ(θ) − Lⱼ(θⱼ), in nats",
            note=f"Images: {self.tier}.",
            digits=3,
            bold=[len(rows) - 1],
        )

    def summary(self) -> Table:
        """One row per network: average, worst task, recovered gap, and what data it used."""
        rows: list[list[object]] = [["base", self.average("base"), *self._worst("base"), None, "–", "–"]]
        for label in self.merged:
            rows.append(
                [
                    label,
                    self.average(label),
                    *self._worst(label),
                    self.recovered_words(label),
                    str(self.against(label)),
                    self.data_used[label],
                ]
            )
        rows.append(["each its own expert", self.average("experts"), *self._worst("experts"), None, "–", "–"])
        return Table(
            ("network", "mean %", "worst %", "worst task", "recovered %", "against the base", "data used"),
            rows,
            note="Worst: the task with the lowest accuracy. Recovered: (merged − base) / (experts − base). Against the "
            "base: points of accuracy. The intervals (95 %) say how much the choice of test images matters: networks "
            "are compared image by image, and a picture that several tasks show counts as one picture. Images: "
            f"{self.tier}.",
        )

    def _worst(self, label: str) -> tuple[float, str]:
        task, accuracy = self.worst(label)
        return accuracy, self.titles[task]

    def _scores(self, label: str) -> Scores:
        if label == "base":
            return self.base
        if label == "experts":
            return self.experts
        if label not in self.merged:
            raise ApgdTeachError(f"nothing called '{label}' was compared; there are: {', '.join(self.merged)}.")
        return self.merged[label]


def compare(
    pool: Pool, merged: Mapping[str, Merged | StateDict], *, images: int | None = None, split: str = "test"
) -> Comparison:
    """Score merged networks beside the base and the experts of their pool.

    Args:
        pool: the base, experts, heads and data.
        merged: by label, what `merge` gave back (or a plain state dict, whose use of data is then unknown).
        images: per task, the first ones of the split; all by default.
        split: "test" for what is reported, "validation" for what chooses settings.

    Raises:
        ApgdTeachError: a label is "base" or "experts", what stands under it is no network, `images` is no number of
            images, there is no such split, or the pool has no task.

    Lesson: 00, 02.
    """
    if not pool.tasks:
        raise ApgdTeachError("this pool has no task to compare on; make it with at least one.")
    if not isinstance(merged, Mapping):
        kind = type(merged).__name__
        raise ApgdTeachError(f"networks are compared by label, as in {{'average': merge(…)}}; this is a {kind}.")
    states: dict[str, StateDict] = {}
    for label, one in merged.items():
        if label in ("base", "experts"):
            raise ApgdTeachError(f"'{label}' is in every comparison already; give the merge another label.")
        state = one.state_dict if isinstance(one, Merged) else one
        if not (isinstance(state, Mapping) and all(isinstance(tensor, Tensor) for tensor in state.values())):
            kind = type(one).__name__
            raise ApgdTeachError(
                f"'{label}' is a {kind} and no state dict; give what `merge` returned, or tensors by name."
            )
        states[label] = state
    evaluator = Evaluator(pool, images=images, split=split)
    many = " or ".join(f"{count:,}" for count in sorted({evaluator.images(task) for task in pool.tasks}))
    return Comparison(
        titles={name: task.title for name, task in pool.tasks.items()},
        base=evaluator.scores(pool.base),
        experts=evaluator.experts(),
        merged={label: evaluator.scores(state) for label, state in states.items()},
        data_used={
            label: one.audit.data_used if isinstance(one, Merged) else "not stated" for label, one in merged.items()
        },
        tier=f"{pool.tier} tier, {split} split, {many} a task; seed {pool.seed}",
    )
