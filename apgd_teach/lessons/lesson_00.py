"""Exercise of lesson 00: what every table of the course counts."""

from __future__ import annotations

from torch import Tensor

from apgd_teach.lessons.draws import normal
from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["ACCURACY", "PROBLEMS"]


def _share(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(dim=1) == labels).float().mean())


def _case(images: int, classes: int, seed: int) -> dict[str, Tensor]:
    """Logits of which most are right, some are not, and with both signs among the largest ones."""
    logits = normal(images, classes, seed=seed) - 1.0
    labels = logits.argmax(dim=1)
    labels[::3] = (labels[::3] + 1) % classes
    return {"logits": logits, "labels": labels}


ACCURACY = Problem(
    name="00.1",
    question=(
        "Write `accuracy(logits, labels)`: the per cent of the images that are named rightly. `logits` has the "
        "shape (image, class), the largest logit of an image is the class that it is given; `labels` (image,) holds "
        "the right classes. Return one number."
    ),
    stub="def accuracy(logits, labels):\n    ...\n",
    code=("def accuracy(logits, labels):\n    return 100 * float((logits.argmax(dim=1) == labels).float().mean())\n"),
    cases=[_case(8, 3, seed=1), _case(7, 5, seed=2)],
    wrong=[
        Wrong(_share, "this is a share between 0 and 1; asked for is per cent, as in all tables of the course."),
        Wrong(
            lambda logits, labels: int((logits.argmax(dim=1) == labels).sum()),
            "this is how many images are named rightly. Divide by how many there are, and give per cent.",
        ),
        Wrong(
            lambda logits, labels: 100 - 100 * _share(logits, labels),
            "this is the error: the per cent that are named wrongly.",
        ),
        Wrong(
            lambda logits, labels: 100 * float(logits.softmax(dim=1).gather(1, labels[:, None]).mean()),
            "this is the mean probability of the right class. An image counts as right or wrong, however sure the "
            "network was.",
        ),
        Wrong(
            lambda logits, labels: (
                100 * float((logits.argmax(dim=1) == labels).float().sum()) / (logits.shape[0] * logits.shape[1])
            ),
            "it is divided by the number of all logits. Divide by the number of images.",
        ),
        Wrong(
            lambda logits, labels: 100 * float((logits.argmax(dim=0) == labels).float().mean()),
            "the largest logit is looked for among the images. The classes of one image lie along dimension 1.",
        ),
        Wrong(
            lambda logits, labels: 100 * float((logits.argmax(dim=1) == labels).mean()),
            "a tensor of true and false has no mean: make it numbers first, with `.float()`.",
        ),
        Wrong(
            lambda logits, labels: 100 * float((logits.argmin(dim=1) == labels).float().mean()),
            "the smallest logit is looked for. A logit is no loss: the network names the class with the largest one.",
        ),
        Wrong(
            lambda logits, labels: round(100 * float((logits.argmax(dim=1) == labels).float().mean())),
            "it is rounded. Leave that to whoever shows the number: two networks may lie less than a point apart.",
        ),
        Wrong(
            lambda logits, labels: 100 * float((logits.argmax() == labels).float().mean()),
            "one place is looked up in all logits together. Each image has a largest logit of its own: along "
            "dimension 1.",
        ),
        Wrong(
            lambda logits, labels: 100 * float((logits.argmax(dim=1, keepdim=True) == labels).float().mean()),
            "each image's answer is compared with the labels of all images: with `keepdim=True` it is a column, and "
            "the labels are a row.",
        ),
    ],
    hints=[
        "Which class is each image given? `logits.argmax(dim=1)`.",
        "Compare it with `labels`: true and false; the mean of those as numbers is a share.",
        "`100 * float((logits.argmax(dim=1) == labels).float().mean())`.",
    ],
)


PROBLEMS = (ACCURACY,)
