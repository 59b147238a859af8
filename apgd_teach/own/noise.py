"""Worse pictures than those that were trained on: does a merge suffer more from them than its experts do?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import fmean

import torch
from torch import Tensor
from torchvision.transforms import v2

from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Evaluator
from apgd_teach.experts import Pool
from apgd_teach.merging import StateDict
from apgd_teach.own.judging import Evaluate, Judged, Lost, judge, lost
from apgd_teach.tables import Table

__all__ = ["CORRUPTIONS", "corrupted", "mean_lost", "of_pool", "robustness", "robustness_table"]

Corruption = Callable[[Tensor, Tensor], Tensor]
"""(images, noise) to images of the same shape and range; `noise` is standard normal, of the images' shape."""


def _blocked(images: Tensor) -> Tensor:
    rows = images.shape[2]
    kept = images.clone()
    kept[:, :, rows // 3 : rows // 3 + rows // 4, rows // 3 : rows // 3 + rows // 4] = 0.5
    return kept


CORRUPTIONS: dict[str, Corruption] = {
    "as they are": lambda images, noise: images,
    "noise, σ = 0.1": lambda images, noise: (images + 0.1 * noise).clamp(0, 1),
    "noise, σ = 0.3": lambda images, noise: (images + 0.3 * noise).clamp(0, 1),
    "blur, σ = 1": lambda images, noise: v2.functional.gaussian_blur(images, [5, 5], [1.0, 1.0]),
    "half the contrast": lambda images, noise: 0.5 + 0.5 * (images - 0.5),
    "a grey block": lambda images, noise: _blocked(images),
    "shifted by two": lambda images, noise: images.roll((2, 2), (2, 3)),
}
"""What happens to pictures after a model was tested. Of these the grey base was trained under noise alone."""


def corrupted(images: Tensor, corruption: str, seed: int = 0) -> Tensor:
    """Pictures under one of `CORRUPTIONS`, the same for every network.

    Args:
        images: (image, channel, row, column) in [0, 1]: as they are before a network's own normalisation.
        corruption: its name.
        seed: of the noise.

    Raises:
        ApgdTeachError: there is no such corruption, or these are no such pictures.

    Lesson: 09.
    """
    if corruption not in CORRUPTIONS:
        raise ApgdTeachError(f"there is no corruption '{corruption}'; use one of: {', '.join(CORRUPTIONS)}.")
    if images.ndim != 4 or not images.numel() or not images.is_floating_point():
        raise ApgdTeachError(
            "worse pictures are made of floats of shape (image, channel, row, column), and these are "
            f"{str(images.dtype).removeprefix('torch.')} of shape {tuple(images.shape)}; bring them into that form."
        )
    low, high = (float(one) for one in images.aminmax())
    if not (low >= 0 and high <= 1):
        raise ApgdTeachError(
            f"worse pictures are made of values from 0 to 1, and these go from {low:.3g} to {high:.3g}; take them "
            "before they are normalised."
        )
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed)).to(images)
    return CORRUPTIONS[corruption](images, noise)


def of_pool(
    pool: Pool, *, split: str = "test", images: int | None = None, corruption: str = "as they are", seed: int = 0
) -> Evaluate:
    """An evaluation of the course's own experts, in the form in which a reader brings one.

    Args:
        pool: whose tasks and heads.
        split: "test", or "validation" for what chooses.
        images: per task, the first ones; all by default.
        corruption: of the pictures, a name in `CORRUPTIONS`.
        seed: of the noise.

    Raises:
        ApgdTeachError: as `Evaluator`, or there is no such corruption.

    Lesson: 09.
    """
    evaluator = Evaluator(pool, images=images, split=split)
    pictures = {task: corrupted(evaluator.looked_at(task)[0], corruption, seed) for task in pool.tasks}

    def evaluate(state: StateDict, task: str) -> tuple[Tensor, Tensor]:
        logits = evaluator.logits(state, task, pictures[task])
        return logits.argmax(dim=1).cpu(), evaluator.looked_at(task)[1].cpu()

    return evaluate


def robustness(
    base: StateDict,
    experts: Mapping[str, StateDict],
    networks: Mapping[str, StateDict],
    evaluations: Mapping[str, Evaluate],
    *,
    progress: bool = True,
) -> dict[str, Judged]:
    """Judge the same networks under each corruption.

    Args:
        base, experts, networks: as `judge` takes them.
        evaluations: by corruption, `of_pool(pool, corruption=…)` or a reader's own.
        progress: whether to show bars.

    Raises:
        ApgdTeachError: as `judge`.

    Lesson: 09.
    """
    return {name: judge(base, experts, networks, one, progress=progress) for name, one in evaluations.items()}


def robustness_table(found: Mapping[str, Judged], label: str) -> Table:
    """What the merge loses against its experts under each corruption, and whether that is more than without one.

    Args:
        found: by corruption; the first is what the others are held against.
        label: of the network.

    Raises:
        ApgdTeachError: nothing was judged, or no network of that label.

    Lesson: 09.
    """
    if not found:
        raise ApgdTeachError("no corruption was judged; give one or more.")
    first = next(iter(found.values()))
    plain = mean_lost(first, label)
    rows = []
    for name, judged in found.items():
        gone = mean_lost(judged, label)
        more = "–" if judged is first else f"{gone.points - plain.points:+.1f}".replace("-", "−")
        rows.append(
            (
                name,
                fmean(one.accuracy for one in judged.experts.values()),
                fmean(one.accuracy for one in judged.of(label).values()),
                str(gone),
                more,
            )
        )
    return Table(
        ("pictures", "experts %", f"{label} %", "lost, points", "more than without"),
        rows,
        caption=f"{label}: worse pictures, means over the tasks",
        note="Lost: against each task's own expert on the same pictures, with 95 % intervals over examples.",
    )


def mean_lost(judged: Judged, label: str) -> Lost:
    """What a network loses against the experts in the mean over the tasks.

    Raises:
        ApgdTeachError: no network of that label was judged.

    Lesson: 09.
    """
    merged = judged.of(label)
    each = [lost(judged.experts[task], merged[task]) for task in judged.tasks]
    # Tasks that show the same pictures are not independent: the mean of the margins is what holds whatever they share.
    return Lost(fmean(one.points for one in each), fmean(one.margin for one in each), min(one.examples for one in each))
