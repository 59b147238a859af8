"""What a learner has solved: one file on their own machine."""

from __future__ import annotations

import json
import os
from pathlib import Path

from platformdirs import user_data_path

from apgd_teach.files import write_atomically
from apgd_teach.tables import Table

__all__ = ["PLACE", "progress", "remember", "solved"]

PLACE = "APGD_TEACH_PROGRESS"
"""Environment variable: another file for it (a room where several people use one account)."""


def _file() -> Path:
    return Path(os.environ.get(PLACE) or user_data_path("apgd_teach") / "progress.json")


def _load() -> dict[str, dict[str, int | bool]]:
    try:
        found = json.loads(_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        # Missing, damaged, or not to be read: nothing that a learner should be stopped by.
        return {}
    if not isinstance(found, dict):
        return {}
    return {name: one for name, one in found.items() if isinstance(one, dict)}


def remember(name: str, right: bool) -> None:
    """Count an attempt. Where nothing can be written, nothing is kept, and the check goes on.

    Args:
        name: of the problem.
        right: whether the answer was; once solved is solved, and what is tried afterwards is not counted.
    """
    every = _load()
    before = every.get(name, {})
    if before.get("solved"):
        return
    tries = before.get("tries", 0)
    every[name] = {
        "tries": (tries if isinstance(tries, int) else 0) + 1,
        "solved": bool(before.get("solved")) or right,
    }
    try:
        _file().parent.mkdir(parents=True, exist_ok=True)
        write_atomically(_file(), (json.dumps(every, indent=1, sort_keys=True) + "\n").encode())
    except OSError:
        return


def solved(name: str) -> bool:
    """Whether a problem has been solved on this machine."""
    return bool(_load().get(name, {}).get("solved"))


def progress(names: list[str]) -> Table:
    """A row per exercise: solved or not, and how many attempts it took.

    Args:
        names: of the problems, in their order.
    """
    every = _load()
    rows = [
        (name, "solved" if every.get(name, {}).get("solved") else "open", every.get(name, {}).get("tries", 0))
        for name in names
    ]
    done = sum(row[1] == "solved" for row in rows)
    return Table(
        ("exercise", "state", "attempts"),
        rows,
        caption=f"{done} of {len(rows)} solved",
        note="Kept in a file on this machine, and nowhere else.",
    )
