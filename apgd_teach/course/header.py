"""What a lesson takes: minutes to read it and to solve its exercises; of a machine, minutes and memory."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from nbformat import NotebookNode

from apgd_teach.course.profiles import PROFILES
from apgd_teach.course.prose import Said
from apgd_teach.devices import describe_device, pick_device
from apgd_teach.files import write_atomically

__all__ = ["SHORT", "TIMES", "Minutes", "header", "keep_times", "minutes_of", "peaks", "times"]

TIMES = Path(__file__).with_name("times.json")
"""Measured seconds and memory of each notebook in each profile, and on what; by `apgd-teach run --keep-times`."""

SHORT = "· short route"
"""Ends the heading of each section that belongs to the route of 45 minutes."""

_ACCELERATOR = "accelerator"
"""Where times of a machine with a GPU are kept, beside those of a CPU."""

_PEAKS = "peaks"
"""Where memory is kept, beside the seconds."""

DEPTH = "· in depth"
"""Ends the heading of each section that the rest does not need: for who has the time, or a second visit."""

WORDS_A_MINUTE = 180
"""Reading speed in a technical text."""

CELL_MINUTES = 0.25
"""For looking at what one code cell shows."""

LINES_A_MINUTE = 50
"""Of code, blank ones not counted, by a reader who wants to know what a cell does and not how every line does it."""

EXERCISE_MINUTES = 4
"""For one exercise: most are one to three lines."""

_PROBLEM = re.compile(r"problem\(\"([\d.]+)\"\)\.check")
_HEADING = re.compile(r"^(#{1,3}) (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Minutes:
    """What a lesson asks of a reader.

    Attributes:
        reading: minutes for the text, the code and what it shows, without what is marked "in depth".
        depth: minutes for what is.
        exercises: how many there are outside of what is marked "in depth".
        more: how many there are in it.
        short: minutes for the sections of the short route alone, text and code; 0 where there is none.
    """

    reading: float
    depth: float
    exercises: int
    more: int
    short: float

    @property
    def solving(self) -> int:
        """Minutes for the exercises outside of what is marked "in depth"."""
        return EXERCISE_MINUTES * self.exercises


def minutes_of(notebook: NotebookNode) -> Minutes:
    """What a notebook asks of a reader, counted from its text.

    Args:
        notebook: a source's notebook. Exercises are those that it checks.
    """
    spent = {"": 0.0, SHORT: 0.0, DEPTH: 0.0}
    names: dict[str, set[str]] = {"": set(), SHORT: set(), DEPTH: set()}
    section = part = ""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            spent[part] += _code_minutes(cell)
            names[part] |= set(_PROBLEM.findall(cell.source))
            continue
        # A cell may end one section and begin another.
        for text in re.split(r"(?m)^(?=#{1,3} )", cell.source):
            heading = _HEADING.match(text)
            if heading:
                mark = next((one for one in (SHORT, DEPTH) if heading[2].endswith(one)), "")
                # A part of a section (###) has the section's mark, or one of its own.
                section = mark if len(heading[1]) < 3 else section
                part = mark or section
            spent[part] += len(text.split()) / WORDS_A_MINUTE
    first = names[""] | names[SHORT]
    return Minutes(spent[""] + spent[SHORT], spent[DEPTH], len(first), len(names[DEPTH] - first), spent[SHORT])


def _code_minutes(cell: NotebookNode) -> float:
    """For one code cell; nobody reads the parameters, which are the same in all lessons."""
    if "parameters" in cell.metadata.get("tags", ()):
        return 0.0
    return CELL_MINUTES + sum(1 for line in cell.source.splitlines() if line.strip()) / LINES_A_MINUTE


def times(*, accelerator: bool = False) -> dict[str, dict[str, float]]:
    """Measured seconds by profile and notebook's name; empty where none were kept.

    Args:
        accelerator: those of a machine with a GPU, in place of those of a CPU.
    """
    kept = _kept(accelerator)
    return {profile: dict(one) for profile, one in kept.items() if profile in PROFILES and isinstance(one, dict)}


def peaks(*, accelerator: bool = False) -> dict[str, dict[str, float]]:
    """Measured peak memory in MB by profile and notebook's name, of the kernel and the processes below it.

    Args:
        accelerator: that of a machine with a GPU (its main memory), in place of that of a CPU.
    """
    kept = _kept(accelerator).get(_PEAKS, {})
    return {profile: dict(one) for profile, one in kept.items()} if isinstance(kept, dict) else {}


def keep_times(profile: str, seconds: Mapping[str, float], megabytes: Mapping[str, float] | None = None) -> None:
    """Write down what notebooks took of this machine, its CPU's and its accelerator's apart.

    Args:
        profile: that they ran in.
        seconds: by the notebook's name; others stay as they are.
        megabytes: their peak memory, likewise.
    """
    device = pick_device()
    accelerator = device.type != "cpu"
    kept = _kept(accelerator)
    before = kept.get(profile, {})
    kept[profile] = {**(before if isinstance(before, dict) else {}), **{n: round(s, 1) for n, s in seconds.items()}}
    if megabytes:
        known = peaks(accelerator=accelerator)
        known[profile] = {**known.get(profile, {}), **{name: round(one) for name, one in megabytes.items()}}
        kept[_PEAKS] = known
    release = ".".join(torch.__version__.split(".")[:2])
    kept["machine"] = f"{describe_device(device)}, {platform.machine()}, PyTorch {release}"
    every = {**_kept(), _ACCELERATOR: kept} if accelerator else kept
    write_atomically(TIMES, (json.dumps(every, indent=1, sort_keys=True) + "\n").encode())


def _kept(accelerator: bool = False) -> dict[str, object]:
    if not TIMES.is_file():
        return {}
    found: dict[str, object] = json.loads(TIMES.read_text(encoding="utf-8"))
    there = found.get(_ACCELERATOR, {}) if accelerator else found
    return dict(there) if isinstance(there, dict) else {}


def header(number: str, *, accelerator: bool = False) -> Said:
    """The minutes of a lesson, as its notebook shows them.

    Args:
        number: of the notebook, "03".
        accelerator: the lesson is made for a GPU: say what was measured on one, or that nothing was.

    Raises:
        CourseError: there is no such notebook.

    Lesson: every notebook.
    """
    # jupytext takes a while to import, which whoever imports this need not wait for.
    from apgd_teach.course.sources import find, read_notebook

    source = find(number)
    asked = minutes_of(read_notebook(source))
    more = f", and {asked.depth:.0f} more for what is marked *in depth*" if asked.depth else ""
    parts = [f"**Reading**: about {asked.reading:.0f} minutes{more}."]
    if asked.exercises or asked.more:
        parts.append(
            f"**Exercises**: {asked.exercises}, some {asked.solving} minutes"
            f"{f', and {asked.more} more in depth' if asked.more else ''}."
        )
    ran = _ran(source.stem)
    if ran:
        parts.append(f"**Running all of it**, with nothing trained before: {ran}.")
    if accelerator:
        there = _ran(source.stem, accelerator=True) or "not measured yet, neither the times nor sizes that suit one"
        parts.append(f"**On a GPU**: {there}.")
    if asked.short:
        parts.append(
            f"**Short route**: the sections marked so, about {asked.short:.0f} minutes; run the other cells unread."
        )
    return Said(" ".join(parts))


def _ran(name: str, *, accelerator: bool = False) -> str:
    """ "46 s in `fast`, 2 min 20 s in `full` (cpu, 2 threads, …)"; empty where nothing was measured."""
    measured = times(accelerator=accelerator)
    said = [f"{spoken(measured[p][name])} in `{p}`" for p in PROFILES if name in measured.get(p, {})]
    return f"{', '.join(said)} ({_kept(accelerator)['machine']})" if said else ""


def spoken(seconds: float) -> str:
    """ "42 s", "3 min 20 s": to five seconds above a minute."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes, rest = divmod(5 * round(seconds / 5), 60)
    return f"{minutes} min {rest} s" if rest else f"{minutes} min"
