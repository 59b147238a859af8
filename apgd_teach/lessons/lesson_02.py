"""Exercises of lesson 02: task vectors, the average, the gap."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from apgd_teach.lessons.engine import Problem, Wrong

__all__ = ["AVERAGE", "GAP", "PROBLEMS", "VECTORS"]

State = Mapping[str, Tensor]


def _state(seed: int, scale: float = 1.0) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(seed)
    return {
        "layer.weight": scale * torch.randn(3, 2, generator=draws),
        "layer.bias": scale * torch.randn(3, generator=draws),
    }


def _experts(base: State, count: int) -> dict[str, dict[str, Tensor]]:
    # Lengths differ, so that a mean is no sum and no expert stands for all.
    moved = [_state(seed + 10, 0.3 * (seed + 1)) for seed in range(count)]
    return {f"task {seed}": {key: base[key] + one[key] for key in base} for seed, one in enumerate(moved)}


BASE = _state(0)
EXPERTS = _experts(BASE, 3)
# A state dict may list its tensors in any order.
TURNED = {name: dict(reversed(one.items())) for name, one in EXPERTS.items()}


VECTORS = Problem(
    name="02.1",
    question=(
        "Write `task_vector(base, expert)`: the task vector $\\tau = \\theta - \\theta_0$ of an expert, as a state "
        "dict: one tensor per name. Neither of the two it is given may change."
    ),
    stub="def task_vector(base, expert):\n    ...\n",
    code="def task_vector(base, expert):\n    return {key: expert[key] - base[key] for key in base}\n",
    cases=[{"base": BASE, "expert": expert} for expert in (*EXPERTS.values(), TURNED["task 0"])],
    wrong=[
        Wrong(
            lambda base, expert: {key: base[key] - expert[key] for key in base},
            "the sign is turned round: adding it to the base must lead to the expert.",
        ),
        Wrong(
            lambda base, expert: dict(expert),
            "these are the expert's own weights. A task vector is what fine-tuning changed about the base.",
        ),
        Wrong(
            lambda base, expert: {key: (expert[key] - base[key]).abs() for key in base},
            "it has lost its signs: a weight that fine-tuning made smaller must come out negative.",
        ),
        Wrong(
            lambda base, expert: torch.cat([(expert[key] - base[key]).flatten() for key in base]),
            "the numbers are right, but in one long row. Keep one tensor per name: a merge works layer by layer.",
        ),
        Wrong(
            lambda base, expert: dict(
                zip(base, (b - a for a, b in zip(base.values(), expert.values(), strict=True)), strict=True)
            ),
            "tensors are put together by their order. The expert may list them in another one than the base: go by "
            "the names.",
        ),
        Wrong(
            lambda base, expert: {key: (expert[key] - base[key]) / (expert[key] - base[key]).norm() for key in base},
            "every tensor has been brought to length one. How far an expert went is part of its task vector.",
        ),
        Wrong(
            lambda base, expert: {key: expert[key] + base[key] for key in base},
            "these are sums. What fine-tuning changed is a difference.",
        ),
    ],
    hints=[
        "What has to be added to the base to arrive at the expert?",
        "Go through the names: `{key: … for key in base}`.",
        "`expert[key] - base[key]`, for every key.",
    ],
)


AVERAGE = Problem(
    name="02.2",
    question=(
        "Write `average(base, experts)`: the base plus the mean task vector, "
        "$\\theta_0 + \\frac{1}{T}\\sum_i \\tau_i$, as a state dict. "
        "`experts` is a dict of state dicts, by task. None of what it is given may change."
    ),
    stub="def average(base, experts):\n    ...\n",
    code=(
        "def average(base, experts):\n"
        "    T = len(experts)\n"
        "    return {\n"
        "        key: base[key] + sum(expert[key] - base[key] for expert in experts.values()) / T for key in base\n"
        "    }\n"
    ),
    cases=[
        {"base": BASE, "experts": EXPERTS},
        {"base": _state(1), "experts": _experts(_state(1), 4)},
        {"base": BASE, "experts": {**EXPERTS, "task 1": TURNED["task 1"]}},
    ],
    wrong=[
        Wrong(
            lambda base, experts: {
                key: base[key] + sum(one[key] - base[key] for one in experts.values()) for key in base
            },
            "the task vectors are added up and not divided: a sum where a mean is asked for.",
        ),
        Wrong(
            lambda base, experts: {key: sum(one[key] for one in experts.values()) for key in base},
            "the experts are added up: T networks on top of each other. Divide by how many they are.",
        ),
        Wrong(
            lambda base, experts: {
                key: sum(one[key] - base[key] for one in experts.values()) / len(experts) for key in base
            },
            "this is the mean task vector; the base that it starts from is missing.",
        ),
        Wrong(
            lambda base, experts: {
                key: base[key] + sum(one[key] for one in experts.values()) / len(experts) for key in base
            },
            "the base is in it twice: the mean of the experts holds it already. Add the mean of the *task vectors*.",
        ),
        Wrong(
            lambda base, experts: {
                key: (base[key] + sum(one[key] for one in experts.values())) / (len(experts) + 1) for key in base
            },
            "the base counts as one more expert here. It is where the vectors begin, and has no vector of its own.",
        ),
        Wrong(
            lambda base, experts: dict(list(experts.values())[-1]),
            "this is the last expert alone; is something overwritten in a loop where it should be added up?",
        ),
        Wrong(
            lambda base, experts: {
                key: (base[key] + sum(one[key] - base[key] for one in experts.values())) / len(experts) for key in base
            },
            "a bracket is misplaced: the base is divided by T as well. Only the sum of the task vectors is.",
        ),
        Wrong(
            lambda base, experts: {
                key: base[key] - sum(one[key] - base[key] for one in experts.values()) / len(experts) for key in base
            },
            "the sign is turned round: this walks away from the experts.",
        ),
        Wrong(
            lambda base, experts: {
                key: base[key] + sum(one[key] - base[key] for one in experts.values()) / 2 for key in base
            },
            "it is divided by 2, however many experts there are. Divide by T.",
        ),
        Wrong(
            lambda base, experts: dict(
                zip(
                    base,
                    (
                        sum(each) / len(experts)
                        for each in zip(*(one.values() for one in experts.values()), strict=True)
                    ),
                    strict=True,
                )
            ),
            "tensors are put together by their order. An expert may list them in another one than the base: go by "
            "the names.",
        ),
    ],
    hints=[
        "Begin with one tensor: what is its task vector in every expert?",
        "Add those up over the experts, divide by their number, add the base's tensor.",
        "`base[key] + sum(expert[key] - base[key] for expert in experts.values()) / len(experts)`.",
    ],
)


GAP = Problem(
    name="02.3",
    question=(
        "Write `gaps(merged, own)`: how much each task loses by the merged network, in nats. `merged` holds the merged "
        "network's losses by task, a dict; `own`, another, the loss of each task's own expert on that task. Return a "
        "pair: a dict of the gaps by task (below zero where the merged network is better), and the name of the task "
        "that pays most."
    ),
    stub="def gaps(merged, own):\n    ...\n",
    code=(
        "def gaps(merged, own):\n"
        "    found = {task: merged[task] - own[task] for task in merged}\n"
        "    return found, max(found, key=found.get)\n"
    ),
    cases=[
        # The largest loss, the largest gap, the largest ratio and the last name are of different tasks.
        {
            "merged": {"a": 2.0131, "b": 1.4007, "c": 0.3012, "d": 0.2},
            "own": {"a": 1.5, "b": 0.4, "c": 0.03, "d": 0.1},
        },
        # One is better off by more than any other loses, and the tasks stand in another order.
        {
            "merged": {"a": 0.9, "b": 3.0, "c": 0.2, "d": 0.8},
            "own": {"d": 2.1, "c": 0.01, "b": 2.6, "a": 0.1},
        },
        # All of them are.
        {"merged": {"a": 0.5, "b": 0.4, "c": 0.7}, "own": {"a": 0.9, "b": 0.5, "c": 1.0}},
    ],
    wrong=[
        Wrong(
            lambda merged, own: _gaps({task: own[task] - merged[task] for task in merged}, max),
            "the sign is turned round: a merged network that loses more than the expert has a gap above zero.",
        ),
        Wrong(
            lambda merged, own: ({task: merged[task] - own[task] for task in merged}, max(merged, key=merged.get)),
            "the gaps are right, but the task is that of the largest loss. A task can be hard for its expert as well: "
            "who pays most has the largest *gap*.",
        ),
        Wrong(
            lambda merged, own: _gaps({task: merged[task] / own[task] for task in merged}, max),
            "these are ratios. The gap is a difference, in nats: $L_j(\\theta^*) - L_j(\\theta_j)$.",
        ),
        Wrong(
            lambda merged, own: _gaps({task: merged[task] - own[task] for task in merged}, min),
            "the gaps are right, but the task is the one that pays least.",
        ),
        Wrong(
            lambda merged, own: ({task: merged[task] - own[task] for task in merged}, max(merged)),
            "the gaps are right, but the task is the last one by name: `max` of a dict compares its keys. Tell it by "
            "what to compare: `key=…`.",
        ),
        Wrong(
            lambda merged, own: _gaps({task: abs(merged[task] - own[task]) for task in merged}, max),
            "the sign is lost: a gap below zero says that the merged network is better there.",
        ),
        Wrong(
            lambda merged, own: _gaps({task: max(merged[task] - own[task], 0.0) for task in merged}, max),
            "a gap below zero must show: nothing is cut off at 0 where the merged network is better.",
        ),
        Wrong(
            lambda merged, own: {task: merged[task] - own[task] for task in merged},
            "these are the gaps alone. Asked for is a pair: the dict, and the name of the task that pays most.",
        ),
        Wrong(
            lambda merged, own: (
                {task: merged[task] - own[task] for task in merged},
                max(merged[task] - own[task] for task in merged),
            ),
            "the second one is the largest gap itself. Asked for is the *name* of the task that has it.",
        ),
        Wrong(
            lambda merged, own: (
                {task: merged[task] - own[task] for task in merged},
                max(merged, key=lambda task: abs(merged[task] - own[task])),
            ),
            "the gaps are right, but the task is that of the largest gap without its sign. A gap far below zero is a "
            "gain, and nobody pays it.",
        ),
        Wrong(
            lambda merged, own: (
                max(merged, key=lambda task: merged[task] - own[task]),
                {task: merged[task] - own[task] for task in merged},
            ),
            "the two are right, and in the other order: first the dict of gaps, then the name.",
        ),
        Wrong(
            lambda merged, own: max(merged, key=lambda task: merged[task] - own[task]),
            "this is the name alone. Asked for is a pair: the dict of gaps, and the name of the task that pays most.",
        ),
        Wrong(
            lambda merged, own: (
                [merged[task] - own[task] for task in merged],
                max(merged, key=lambda task: merged[task] - own[task]),
            ),
            "the gaps are right, but nobody can tell whose they are: keep them in a dict, by task.",
        ),
    ],
    hints=[
        "One subtraction per task: which way round is it positive when the merge is worse?",
        "`max(d, key=d.get)` is the key of the largest value of a dict.",
        "`found = {task: merged[task] - own[task] for task in merged}`.",
    ],
)


def _gaps(found: dict[str, float], which: object) -> tuple[dict[str, float], str]:
    pick = max if which is max else min
    return found, pick(found, key=lambda task: found[task])


PROBLEMS = (VECTORS, AVERAGE, GAP)
