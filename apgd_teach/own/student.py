"""A small network that answers as the experts, or their merge, do: what that costs, and what it saves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator, fitted
from apgd_teach.experts import Pool
from apgd_teach.machine import in_blocks
from apgd_teach.merging import StateDict
from apgd_teach.models import count_parameters, make_encoder, network
from apgd_teach.own.judging import Verdict
from apgd_teach.progress import bar
from apgd_teach.tables import Table
from apgd_teach.training import Recipe, distil, seeded

__all__ = ["RECIPE", "Student", "generated", "latency_ms", "size_table", "student_of", "taught"]

RECIPE = Recipe("adamw", 2e-3, steps=1500, weight_decay=0.01, batch_size=256)
"""How a student learns."""


@dataclass(frozen=True)
class Student:
    """A small network for all tasks.

    Attributes:
        network: a name in `models.ENCODERS`.
        state: its encoder's weights.
        heads: by task, its own linear heads.
        learned_from: in words.
    """

    network: str
    state: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]
    learned_from: str

    def model(self, task: str) -> nn.Sequential:
        """Encoder and head of a task, ready to answer.

        Raises:
            ApgdTeachError: it has no such task.
        """
        if task not in self.heads:
            raise ApgdTeachError(f"this student has no task '{task}'; it has: {', '.join(self.heads)}.")
        encoder = make_encoder(self.network, 0)
        encoder.load_state_dict(self.state)
        head = nn.Linear(network(self.network).features, len(self.heads[task]["bias"]))
        head.load_state_dict(self.heads[task])
        return nn.Sequential(encoder, head).eval()

    @torch.no_grad()
    def verdicts(self, pool: Pool, *, split: str = "test", images: int | None = None) -> dict[str, Verdict]:
        """Its answers on a pool's pictures, by task, as `judging` holds them against the experts'.

        Args:
            pool: whose tasks.
            split: "test", or "validation" for what chooses.
            images: per task, the first ones; all by default.

        Raises:
            ApgdTeachError: as `Evaluator`, or the pool has a task that the student lacks.

        Lesson: 09.
        """
        evaluator = Evaluator(pool, images=images, split=split)
        found = {}
        for task in pool.tasks:
            pictures, labels = (one.cpu() for one in evaluator.looked_at(task))
            predicted = in_blocks(self.model(task), pictures).argmax(dim=1)
            found[task] = Verdict(100 * float((predicted == labels).double().mean()), predicted, labels)
        return found


def student_of(
    pool: Pool,
    teachers: StateDict | Mapping[str, StateDict],
    *,
    small: str = "small-convnet",
    pictures: Mapping[str, Tensor] | None = None,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    progress: bool = True,
) -> Student:
    """Distil one network for all tasks, or each task's own expert, into a small one for all tasks. No label is read.

    Args:
        pool: the tasks and the teachers' heads.
        teachers: one state dict for all tasks (a merge), or one for each task (the experts), by its name.
        small: the student's kind, a name in `models.ENCODERS`.
        pictures: by task, what they are asked about, shape (image, channel, row, column); the tasks' own training
            pictures by default. `generated` makes some where there are none.
        recipe: how the student learns.
        seed: of its first weights and the order of the pictures.
        progress: whether to show a bar.

    Raises:
        ApgdTeachError: teachers or pictures of other tasks, no such network, or one for other pictures.

    Lesson: 09.
    """
    one_for_all = all(isinstance(value, Tensor) for value in teachers.values())
    by_task: dict[str, StateDict] = (
        dict.fromkeys(pool.tasks, teachers) if one_for_all else dict(teachers)  # type: ignore[arg-type]
    )
    shown = {task: data.train.images for task, data in pool.tasks.items()} if pictures is None else dict(pictures)
    for what, given in (("teachers", by_task), ("pictures", shown)):
        if set(given) != set(pool.tasks):
            odd = sorted(set(given) ^ set(pool.tasks))[0]
            raise ApgdTeachError(f"the {what} and the pool's tasks differ in '{odd}'; give them for the pool's tasks.")
    kind = network(small)
    for task, images in shown.items():
        if tuple(images.shape[1:]) != kind.shape or not len(images):
            raise ApgdTeachError(
                f"the network '{small}' takes pictures of {kind.shape}, and those of '{task}' are "
                f"{tuple(images.shape)}; use another network, or other pictures."
            )
    teacher = pool.encoder()
    loaded = {task: fitted(teacher, state, pool.network) for task, state in by_task.items()}

    def answers(task: str, head: nn.Module, images: Tensor) -> Tensor:
        logits: Tensor = head(torch.func.functional_call(teacher, loaded[task], (images,)))
        return logits

    encoder = make_encoder(small, seed).to(pool.device)
    heads: dict[str, nn.Module] = {}
    with seeded(seed):
        for task, data in pool.tasks.items():
            heads[task] = nn.Linear(kind.features, len(data.classes)).to(pool.device)
    teach = {task: partial(answers, task, pool.head(task)) for task in pool.tasks}
    taught(encoder, heads, teach, shown, recipe=recipe, seed=seed, progress=progress)
    return Student(
        small,
        {name: one.detach().cpu() for name, one in encoder.state_dict().items()},
        {task: {name: one.detach().cpu() for name, one in head.state_dict().items()} for task, head in heads.items()},
        f"{'one network' if one_for_all else 'an expert for each task'}, "
        f"{'unlabelled training pictures' if pictures is None else 'given pictures'}",
    )


def taught(
    student: nn.Module,
    heads: Mapping[str, nn.Module],
    teachers: Mapping[str, Callable[[Tensor], Tensor]],
    pictures: Mapping[str, Tensor],
    *,
    recipe: Recipe = RECIPE,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Distil any networks into any other one, on pictures without labels.

    Student and heads are changed, and are ready to answer afterwards: `heads[task](student(images))`.

    Args:
        student: images to features, shape (image, feature); on the device that it shall learn on.
        heads: by task, features to logits, shape (image, class). `nn.Identity()` where the student answers itself.
        teachers: by task, images to logits of the same shape; modules have to be ready to answer (`eval()`).
        pictures: by task, shape (image, …), alike but for their number; in whatever form the networks take them.
        recipe: how the student learns.
        seed: of the order of the pictures.
        progress: whether to show a bar.

    Raises:
        ApgdTeachError: there is nothing that learns; heads, teachers and pictures are of other tasks, or do not fit
            each other; a teacher is in training; or the loss is not finite.

    Lesson: 09.
    """
    for what, given in (("heads", heads), ("teachers", teachers)):
        if set(given) != set(pictures):
            odd = sorted(set(given) ^ set(pictures))[0]
            raise ApgdTeachError(f"the {what} and the pictures differ in the task '{odd}'; give both for every task.")
    learns = next((one for module in (student, *heads.values()) for one in module.parameters()), None)
    if learns is None:
        raise ApgdTeachError("student and heads have no parameter, so nothing can learn; give another student.")
    for task, teacher in teachers.items():
        if isinstance(teacher, nn.Module) and teacher.training:
            raise ApgdTeachError(f"the teacher of '{task}' is in training mode; call its eval() first.")
        _fit(task, student, heads[task], teacher, pictures[task], learns.device)
    if len({images.shape[1:] for images in pictures.values()}) > 1:
        shapes = ", ".join(f"{task} {tuple(images.shape[1:])}" for task, images in pictures.items())
        raise ApgdTeachError(f"the tasks' pictures have several shapes ({shapes}); bring them to one.")
    with bar(recipe.steps, "step", "the student", progress) as ticks:
        distil(
            student,
            heads,
            lambda task, images: teachers[task](images),
            pictures,
            recipe,
            seed,
            learns.device,
            lambda step, value: ticks.update(),
        )
    for module in (student, *heads.values()):
        module.eval()


@torch.no_grad()
def _fit(
    task: str,
    student: nn.Module,
    head: nn.Module,
    teacher: Callable[[Tensor], Tensor],
    images: Tensor,
    device: torch.device,
) -> None:
    """Ask both about one picture: whether they take it, and answer with as many classes."""
    if not len(images):
        raise ApgdTeachError(f"there are no pictures of '{task}'; give one or more, or leave the task out.")
    one = images[:1].to(device)
    try:
        wanted, said = teacher(one), head.eval()(student.eval()(one))
    except (RuntimeError, ValueError, TypeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ApgdTeachError(
            f"a picture of '{task}', {tuple(images.shape[1:])}, cannot be given to its teacher and to the student "
            f"({reason}); give pictures that both take, and both on one device."
        ) from error
    if wanted.ndim != 2 or wanted.shape != said.shape:
        raise ApgdTeachError(
            f"about one picture of '{task}' the teacher answers {tuple(wanted.shape)} and the student "
            f"{tuple(said.shape)}; both have to be (1, classes): give the student another head."
        )


def generated(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Pictures of nothing, for where there are none: blurred noise, stretched to black and white, some of it inverted.

    Args:
        count: how many.
        shape: (channel, row, column).
        seed: of the noise.

    Returns:
        Shape (image, channel, row, column), in [0, 1].

    Lesson: 09.
    """
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn((count, *shape), generator=draw)
    parts = []
    for sigma, part in zip((1.0, 2.0, 3.0, 4.0), noise.tensor_split(4), strict=True):
        if len(part):
            smooth = v2.functional.gaussian_blur(part, [15, 15], [sigma, sigma])
            low, high = smooth.amin((1, 2, 3), keepdim=True), smooth.amax((1, 2, 3), keepdim=True)
            parts.append(((smooth - low) / (high - low).clamp_min(1e-6) * 3 - 1.2).clamp(0, 1))
    made = torch.cat(parts)
    flipped = torch.rand((count, 1, 1, 1), generator=draw) < 0.3
    return torch.where(flipped, 1 - made, made)[torch.randperm(count, generator=draw)]


def latency_ms(model: nn.Module, shape: tuple[int, int, int], *, images: int = 1, turns: int = 30) -> float:
    """Milliseconds of one answer, the median of some turns, on the CPU with PyTorch's own threads.

    Args:
        model: ready to answer.
        shape: of one picture.
        images: asked about at once.
        turns: how often; five more before them warm up.

    Lesson: 09.
    """
    batch = torch.rand((images, *shape), generator=torch.Generator().manual_seed(0))
    taken = []
    with torch.inference_mode():
        for turn in range(turns + 5):
            begun = time.perf_counter()
            model(batch)
            if turn >= 5:
                taken.append(1e3 * (time.perf_counter() - begun))
    return statistics.median(taken)


def size_table(models: Mapping[str, nn.Module], shape: tuple[int, int, int]) -> Table:
    """Parameters, size and latency of several networks.

    Args:
        models: by label, each ready to answer about one task.
        shape: of one picture.

    Lesson: 09.
    """
    rows = []
    for label, model in models.items():
        parameters = count_parameters(model)
        rows.append(
            (
                label,
                f"{parameters:,}",
                4 * parameters / 1e6,
                latency_ms(model, shape),
                latency_ms(model, shape, images=64),
            )
        )
    return Table(
        ("network", "parameters", "MB in float32", "ms for one picture", "ms for 64"),
        rows,
        caption="Size and speed",
        note="Median of 30 turns on this machine's CPU, with one head.",
        digits=2,
    )
