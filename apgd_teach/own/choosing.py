"""A choice of a method from the command line: what is tried, the command that makes the best, and the papers of it."""

from __future__ import annotations

import itertools
import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from apgd_teach.errors import ApgdTeachError
from apgd_teach.files import write_atomically
from apgd_teach.own.card import draw_lost
from apgd_teach.own.judging import CANDIDATES, Choice, Verdict
from apgd_teach.own.pages import Section, html, markdown
from apgd_teach.own.report import check_target
from apgd_teach.tables import Table

__all__ = ["CAUTION", "candidates", "command", "to_json", "write"]

CAUTION = (
    "The examples that chose it make it look better than it is: report it on others (merge --evaluate). The audit of "
    "that merge will say 'data used: none', since a merge reads none: that labelled examples chose the method is yours "
    "to add (--about, 'chosen')."
)
"""What has to be said whenever examples chose a method."""

_WORST = 12

Candidates = Mapping[str, tuple[str, Mapping[str, object]]]


def candidates(methods: Sequence[str], settings: Sequence[tuple[str, object]]) -> Candidates:
    """What is tried, by label: a method's name with its settings.

    Args:
        methods: names; all of `CANDIDATES` where there is none. A method is tried with each of its settings there, or
            with its own defaults where it is not there.
        settings: of one method, in place of those in `CANDIDATES`; one that is given with several values is tried with
            each of them, and several settings in every combination.

    Raises:
        ApgdTeachError: settings were given for no method, or for more than one.

    Lesson: 09.
    """
    chosen = list(dict.fromkeys(methods))
    if not settings:
        if not chosen:
            return CANDIDATES
        known = {label: one for label, one in CANDIDATES.items() if one[0] in chosen}
        others = [method for method in chosen if method not in {name for name, _ in known.values()}]
        return {**known, **{method: (method, {}) for method in others}}
    if len(chosen) != 1:
        raise ApgdTeachError("--set is for the settings of one method; give --method once, or leave --set out.")
    values: dict[str, list[object]] = {}
    for name, value in settings:
        values.setdefault(name, []).append(value)
    every = [dict(zip(values, one, strict=True)) for one in itertools.product(*values.values())]
    return {_label(chosen[0], one): (chosen[0], one) for one in every}


def _label(method: str, settings: Mapping[str, object]) -> str:
    return ", ".join([method, *(f"{name}={value}" for name, value in settings.items())])


def command(choice: Choice, base: Path, experts: Sequence[str], policy: Mapping[str, str]) -> str:
    """The `apgd-teach merge` that makes the best candidate of these inputs, for a shell.

    Args:
        choice: whose best.
        base: as it was given.
        experts: as they were given, PATH or NAME=PATH.
        policy: what happens to tensors of such names.

    Returns:
        One line. Its output and its record are new names in the current folder: a folder if the base is sharded.

    Lesson: 09.
    """
    sharded = base.is_dir() or base.suffix == ".json"
    names = itertools.chain(["merged"], (f"merged-{count}" for count in itertools.count(2)))
    out, record = next(
        (out, record)
        for name in names
        for out, record in ((name if sharded else f"{name}.safetensors", f"{name}.json"),)
        if not Path(out).exists() and not Path(record).exists()
    )
    rules = [part for pattern, action in policy.items() for part in ("--policy", f"{pattern}={action}")]
    given = ["apgd-teach", "merge", str(base), *experts, *rules, *shlex.split(choice.options)]
    return shlex.join([*given, "--out", out, "--report", record])


def write(choice: Choice, line: str, inputs: Mapping[str, str], path: Path) -> None:
    """Write a choice as its file's ending says, .json, .md or .html, whole or not at all.

    Args:
        choice: the candidates, judged.
        line: the command that makes the best.
        inputs: SHA-256 by name of the input.
        path: of the file.

    Raises:
        MergeError: as `report.check_target`.
        OSError: as the system reports it.

    Lesson: 09.
    """
    check_target(path)
    title = f"Choice of a method: {len(choice.judged.merged)} candidates for {len(choice.judged.tasks)} tasks"
    texts = {
        ".json": lambda: to_json(choice, line, inputs),
        ".md": lambda: markdown(title, _sections(choice, line, inputs)),
        ".html": lambda: html(title, _sections(choice, line, inputs)),
    }
    write_atomically(path, texts[path.suffix.lower()]().encode())


def to_json(choice: Choice, line: str, inputs: Mapping[str, str]) -> str:
    """All numbers of a choice, for programs: accuracies in per cent, losses in points.

    Args:
        choice, line, inputs: as `write` takes them.

    Lesson: 09.
    """

    def accuracies(verdicts: Mapping[str, Verdict]) -> dict[str, object]:
        return {"mean": choice.mean(verdicts), "tasks": {task: one.accuracy for task, one in verdicts.items()}}

    judged = choice.judged
    content = {
        "best": choice.best,
        "advice": choice.advice,
        "apart": list(choice.apart),
        "command": line,
        "caution": CAUTION,
        "data_used": choice.network.audit.data_used,
        "priorities": dict(choice.priorities),
        "tolerance": choice.tolerance,
        "inputs": dict(inputs),
        "base": accuracies(judged.base),
        "experts": accuracies(judged.experts),
        "candidates": {label: accuracies(verdicts) for label, verdicts in judged.merged.items()},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _sections(choice: Choice, line: str, inputs: Mapping[str, str]) -> list[Section]:
    judged, best = choice.judged, choice.best
    single = any(one.labels is not None for one in judged.experts.values())
    return [
        Section("Advice", [choice.advice]),
        Section("Candidates", [choice.table()]),
        Section("What the best one loses", [draw_lost(judged, best), judged.table(best)]),
        Section(
            "Which classes lose most",
            [judged.classes(best, worst=_WORST) if single else "This needs an evaluation that returns predictions."],
        ),
        # Four spaces are code in Markdown, where a table would put backslashes into it.
        Section("How it is made", [f"    {line}", CAUTION]),
        Section("Inputs", [Table(("input", "SHA-256"), list(inputs.items()))]),
    ]
