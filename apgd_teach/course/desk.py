"""A learner's own copies of the notebooks: what they wrote stays, and a new edition reaches them all the same."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from apgd_teach.files import write_atomically

__all__ = ["hand_out"]

_RECORD = ".handed-out.json"


def hand_out(published: Path, desk: Path) -> list[str]:
    """Copy the published notebooks to a learner's desk.

    A copy that is as it was handed out is replaced by a newer edition. One that the learner has changed stays, and the
    newer edition is put beside it, once, as `NAME-new.ipynb`.

    Args:
        published: the folder of the published notebooks.
        desk: the learner's folder; made if need be.

    Returns:
        A sentence for each notebook that now lies there twice.

    Raises:
        OSError: the desk cannot be written; the learner's files are as they were.
    """
    record = desk / _RECORD
    handed = _read(record)
    sentences = []
    for notebook in sorted(published.glob("*.ipynb")):
        content, mine = notebook.read_bytes(), desk / notebook.name
        edition = hashlib.sha256(content).hexdigest()
        there = mine.read_bytes() if mine.exists() else None
        if there is None or hashlib.sha256(there).hexdigest() == handed.get(notebook.name):
            if there != content:
                write_atomically(mine, content)
        elif edition != handed.get(notebook.name) and there != content:
            newer = desk / f"{notebook.stem}-new.ipynb"
            write_atomically(newer, content)
            sentences.append(f"There is a new edition of {notebook.name}: yours stays, it is {newer.name}.")
        handed[notebook.name] = edition
    write_atomically(record, (json.dumps(handed, indent=1, sort_keys=True) + "\n").encode())
    return sentences


def _read(record: Path) -> dict[str, str]:
    """What was handed out; nothing where the record is missing or damaged: then every copy counts as changed."""
    try:
        handed = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(edition) for name, edition in handed.items()} if isinstance(handed, dict) else {}
