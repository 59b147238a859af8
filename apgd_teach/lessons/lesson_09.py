"""Exercises of lesson 09: what speaks against a merge, who lost most, and how many directions are enough."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["DIRECTIONS", "LOST", "PREFLIGHT", "PROBLEMS"]

Shapes = Mapping[str, tuple[int, ...]]


def _both_sides(base: Shapes, expert: Shapes, differ: bool = True) -> list[str]:
    odd = set(base) ^ set(expert)
    return sorted(odd | {name for name in set(base) & set(expert) if differ and base[name] != expert[name]})


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


PREFLIGHT = Problem(
    name="09.1",
    question=(
        "Write `in_the_way(base, expert)`: the names of all tensors that have no task vector, as a sorted list. `base` "
        "and `expert` say of each tensor, by its name, which shape it has (a tuple), as a file's header does. τ = θ − "
        "θ₀ needs a tensor of the same name and the same shape on both sides."
    ),
    stub="def in_the_way(base, expert):\n    ...\n",
    code=(
        "def in_the_way(base, expert):\n"
        "    return sorted(name for name in base.keys() | expert.keys() if base.get(name) != expert.get(name))\n"
    ),
    cases=[
        {
            "base": {"conv.weight": (8, 1, 3, 3), "conv.bias": (8,), "linear.weight": (10, 24), "norm.weight": (8,)},
            "expert": {"conv.weight": (8, 1, 3, 3), "conv.bias": (8,), "linear.weight": (24, 10), "head.bias": (10,)},
        },
        {"base": {"a.weight": (2, 3), "b.weight": (3, 2)}, "expert": {"b.weight": (3, 2), "a.weight": (2, 4)}},
        {"base": {"a.weight": (2, 3)}, "expert": {"a.weight": (2, 3)}},
    ],
    wrong=[
        Wrong(
            lambda base, expert: sorted(name for name in base if base[name] != expert.get(name)),
            "a tensor that the expert alone has is missing from the list: the base has nothing to subtract from it "
            "either.",
        ),
        Wrong(
            lambda base, expert: sorted(name for name in expert if base.get(name) != expert[name]),
            "a tensor that the base alone has is missing from the list: the expert says nothing about it, and a merge "
            "would have to guess.",
        ),
        Wrong(
            lambda base, expert: _both_sides(base, expert, differ=False),
            "names are compared, and shapes are not: two tensors of different shapes have no difference.",
        ),
        Wrong(
            lambda base, expert: sorted(name for name in set(base) & set(expert) if base[name] != expert[name]),
            "tensors that only one of the two has are missing from the list.",
        ),
        Wrong(
            lambda base, expert: sorted(
                (set(base) ^ set(expert))
                | {name for name in set(base) & set(expert) if _numel(base[name]) != _numel(expert[name])}
            ),
            "a tensor of as many numbers in another shape passes: `linear.weight` is (10, 24) in one and (24, 10) in "
            "the other. Its entries do not belong to each other.",
        ),
        Wrong(
            lambda base, expert: sorted(set(base) ^ set(expert)) + sorted(_differing(base, expert)),
            "all of them are there, and the list is not sorted.",
        ),
        Wrong(
            lambda base, expert: sorted(name for name in set(base) & set(expert) if base[name] == expert[name]),
            "these are the tensors that *can* be merged. Asked for are the others.",
        ),
    ],
    hints=[
        "Three things can be wrong with a name: the base lacks it, the expert lacks it, or the shapes differ.",
        "`base.keys() | expert.keys()` are all names, and `base.get(name)` is None where there is none.",
        "`sorted(name for name in base.keys() | expert.keys() if base.get(name) != expert.get(name))`.",
    ],
)


def _differing(base: Shapes, expert: Shapes) -> set[str]:
    return {name for name in set(base) & set(expert) if base[name] != expert[name]}


def _lost(expert: Tensor, merged: Tensor, labels: Tensor) -> Tensor:
    right = (expert == labels).double() - (merged == labels).double()
    return torch.stack([100 * right[labels == one].mean() for one in labels.unique()])


_LABELS = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2, 2])
_EXPERT = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 0, 2])
_MERGED = torch.tensor([0, 1, 0, 1, 2, 2, 2, 2, 2, 2])


LOST = Problem(
    name="09.2",
    question=(
        "Write `lost_by_class(expert, merged, labels)`: how many points of accuracy each class lost, as a tensor "
        "(class,). All three are (example,), whole numbers: what the expert named, what the merged network named, and "
        "the right class, 0 to C − 1; each class has examples. Above 0 the class is worse served than before."
    ),
    stub="def lost_by_class(expert, merged, labels):\n    ...\n",
    code=(
        "def lost_by_class(expert, merged, labels):\n"
        "    fewer = (expert == labels).double() - (merged == labels).double()\n"
        "    return torch.stack([100 * fewer[labels == c].mean() for c in range(int(labels.max()) + 1)])\n"
    ).replace("def ", "import torch\n\n\ndef ", 1),
    cases=[
        {"expert": _EXPERT, "merged": _MERGED, "labels": _LABELS},
        {
            "expert": torch.tensor([0, 1, 1, 1, 0, 1]),
            "merged": torch.tensor([0, 0, 1, 1, 1, 1]),
            "labels": torch.tensor([0, 1, 1, 1, 1, 1]),
        },
    ],
    wrong=[
        Wrong(
            lambda expert, merged, labels: -_lost(expert, merged, labels),
            "the sign is turned round: a class that is named rightly less often has *lost*, and stands above 0.",
        ),
        Wrong(
            lambda expert, merged, labels: _lost(expert, merged, labels) / 100,
            "these are shares. Points are per cent: times 100.",
        ),
        Wrong(
            lambda expert, merged, labels: torch.stack(
                [
                    100 * ((expert == labels).double() - (merged == labels).double())[labels == one].sum() / len(labels)
                    for one in labels.unique()
                ]
            ),
            "each class is divided by the number of *all* examples. A rare class would never lose much: divide by its "
            "own number.",
        ),
        Wrong(
            lambda expert, merged, labels: torch.stack(
                [
                    100 * ((expert == one) & (labels == one)).double().sum() / (expert == one).sum().clamp_min(1)
                    - 100 * ((merged == one) & (labels == one)).double().sum() / (merged == one).sum().clamp_min(1)
                    for one in labels.unique()
                ]
            ),
            "you divide by how often a network *named* the class, which asks how far its word can be trusted. Asked "
            "for is what becomes of the examples *of* the class: group by `labels`.",
        ),
        Wrong(
            lambda expert, merged, labels: torch.stack(
                [100 * (expert != merged)[labels == one].double().mean() for one in labels.unique()]
            ),
            "this counts where the two *differ*. One wrong answer in place of another is no loss, and a mistake that "
            "was mended is a gain.",
        ),
        Wrong(
            lambda expert, merged, labels: torch.stack(
                [100 * (merged != labels)[labels == one].double().mean() for one in labels.unique()]
            ),
            "these are the merged network's mistakes. Some of them the expert made as well, and those the merge did "
            "not cost.",
        ),
        Wrong(
            lambda expert, merged, labels: (
                100 * ((expert == labels).double().mean() - (merged == labels).double().mean())
            ),
            "this is one number for all classes: the mean hides the class that pays for the others.",
        ),
    ],
    hints=[
        "`expert == labels` says of each example whether the expert was right.",
        "Take the difference of rights, example by example, then its mean over the examples of one class, `labels == "
        "c`, and do that for each class.",
        "`torch.stack([100 * ((expert == labels).double() - (merged == labels).double())[labels == c].mean() for c in "
        "range(int(labels.max()) + 1)])`.",
    ],
)


def _first(values: Tensor, energy: float, power: int = 2) -> int:
    held = values.double().pow(power).cumsum(0) / values.double().pow(power).sum()
    return 1 + int((held < energy).sum())


DIRECTIONS = Problem(
    name="09.3",
    question=(
        "Write `directions(values, energy)`: the smallest number of singular directions that together hold at least "
        "the share `energy` of ‖M‖², as an int. `values` (direction,) are the singular values of M, the largest first; "
        "`energy` is above 0 and below 1."
    ),
    stub="def directions(values, energy):\n    ...\n",
    code=(
        "def directions(values, energy):\n"
        "    held = values.square().cumsum(0) / values.square().sum()\n"
        "    return 1 + int((held < energy).sum())\n"
    ),
    cases=[
        {"values": torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5]), "energy": 0.8},
        {"values": torch.tensor([3.0, 2.0, 1.0, 1.0, 0.5]), "energy": 0.9},
        {"values": torch.tensor([1.0, 1.0, 1.0, 1.0]), "energy": 0.75},
    ],
    wrong=[
        Wrong(
            lambda values, energy: _first(values, energy, power=1),
            "you added up singular values. ‖M‖² is the sum of their *squares*.",
        ),
        Wrong(
            lambda values, energy: _first(values, energy) - 1,
            "one too few: so many directions hold less than asked for.",
        ),
        Wrong(
            lambda values, energy: int((values.square().cumsum(0) / values.square().sum() <= energy).sum()) + 1,
            "where a number of directions holds exactly the share that is asked for, you take one more: *at least* is "
            "enough.",
        ),
        Wrong(
            lambda values, energy: int((values >= (1 - energy) * values.max()).sum()),
            "this compares each value with the largest one. Asked for is what the first ones hold *together*.",
        ),
        Wrong(
            lambda values, energy: max(1, round(energy * len(values))),
            "this is a share of the number of directions. The first ones hold more than the last.",
        ),
        Wrong(
            lambda values, energy: 1 + int(((values.square().cumsum(0) / values.square().sum()).sqrt() < energy).sum()),
            "you took a share of ‖M‖. Asked for is a share of ‖M‖², the square.",
        ),
        Wrong(
            lambda values, energy: 1 + int((values.square().cumsum(0) < energy).sum()),
            "the sums of squares are not divided by ‖M‖², so the answer depends on how long M is.",
        ),
    ],
    hints=[
        "The squares of all singular values add up to ‖M‖².",
        "`values.square().cumsum(0)` says what the first 1, 2, 3 … hold; divide by the sum of all.",
        "One more than the number of places where that is still less than `energy`.",
    ],
)


PROBLEMS = (PREFLIGHT, LOST, DIRECTIONS)
