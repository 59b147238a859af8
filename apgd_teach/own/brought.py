"""What a person brings to a command: an evaluation in a Python file, what is known of the inputs, models on disk."""

from __future__ import annotations

import json
import runpy
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from apgd_teach.errors import ApgdTeachError
from apgd_teach.merging.adapters import open_expert
from apgd_teach.merging.checkpoint import open_checkpoint
from apgd_teach.own.card import Source

__all__ = ["About", "OnDisk", "about", "evaluation"]


@dataclass(frozen=True)
class About:
    """What a card says that no merge can know.

    Attributes:
        title, purpose, limits, examples, chosen, classes, sources: as `card.Card` takes them.
    """

    title: str = "a merged model"
    purpose: str = "not stated"
    limits: str = "not stated"
    examples: str = "not stated"
    chosen: str = "not stated"
    classes: Mapping[str, list[str]] = field(default_factory=dict)
    sources: Mapping[str, Source] = field(default_factory=dict)


_TEXTS = ("title", "purpose", "limits", "examples", "chosen")


def about(path: Path) -> About:
    """Read it from a JSON file.

    Raises:
        ApgdTeachError: there is no such file, it is no JSON, or something in it is not what it should be.

    Lesson: 09.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ApgdTeachError(f"'{path}' cannot be read ({error.strerror}); give a JSON file.") from None
    except (ValueError, RecursionError):
        raise ApgdTeachError(f"'{path}' is no JSON; see docs/own.md for what it holds.") from None
    known = (*_TEXTS, "classes", "sources")
    if not isinstance(found, dict) or set(found) - set(known):
        odd = sorted(set(found) - set(known))[0] if isinstance(found, dict) else type(found).__name__
        raise ApgdTeachError(f"'{path}' holds '{odd}', and a card knows: {', '.join(known)}.")
    for name in _TEXTS:
        if not isinstance(found.get(name, ""), str):
            raise ApgdTeachError(f"'{path}' has '{name}', which is no text.")
    classes, sources = found.get("classes", {}), found.get("sources", {})
    if not isinstance(classes, dict) or not all(
        isinstance(one, list) and all(isinstance(name, str) for name in one) for one in classes.values()
    ):
        raise ApgdTeachError(f"'{path}' has 'classes', which are no lists of names by task.")
    fields = ("data", "licence", "note")
    if not isinstance(sources, dict) or not all(
        isinstance(one, dict) and set(one) <= set(fields) and all(isinstance(text, str) for text in one.values())
        for one in sources.values()
    ):
        raise ApgdTeachError(f"'{path}' has 'sources', of which each holds texts under {', '.join(fields)}.")
    texts = {name: found[name] for name in _TEXTS if name in found}
    return About(**texts, classes=classes, sources={name: Source(**one) for name, one in sources.items()})


def evaluation(given: str) -> Callable[[Mapping[str, Tensor], str], Any]:
    """A function from a Python file of the reader's own, "my_eval.py" or "my_eval.py:score".

    The file is run, as any program of one's own: give none that you would not run.

    Args:
        given: the path, and the function's name where it is not `evaluate`.

    Returns:
        The function. Whatever it raises comes as an `ApgdTeachError` that says what and in which line.

    Raises:
        ApgdTeachError: there is no such file or function, or the file itself fails.

    Lesson: 09.
    """
    before, sign, after = given.rpartition(":")
    path, name = (Path(before), after) if sign and after.isidentifier() else (Path(given), "evaluate")
    if not path.is_file():
        raise ApgdTeachError(f"there is no file '{path}' with an evaluation; give FILE.py or FILE.py:FUNCTION.")
    # As when Python is given the file: what lies beside it can be imported, later too.
    sys.path.insert(0, str(path.absolute().parent))
    try:
        there = runpy.run_path(str(path))
    except (Exception, SystemExit) as error:
        raise ApgdTeachError(f"'{path}' fails when it is run ({type(error).__name__}: {_said(error)}).") from error
    function = there.get(name)
    if not callable(function):
        raise ApgdTeachError(f"'{path}' has no function '{name}'; give FILE.py:FUNCTION.")

    def asked(state: Mapping[str, Tensor], task: str) -> Any:
        try:
            return function(state, task)
        except (Exception, SystemExit) as error:  # whatever a function of the reader's own may raise
            # The innermost line of the file itself; there is none where the function comes from another one.
            lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == str(path)]
            where = f" in line {lines[-1]}" if lines else ""
            raise ApgdTeachError(
                f"'{given}' raised {type(error).__name__} ({_said(error)}){where}, asked about '{task}'; mend it, and "
                "ask again."
            ) from error

    return asked


def _said(error: BaseException) -> str:
    """What an error says, in one line of no great length."""
    words = " ".join(str(error).split())
    return words if len(words) <= 300 else f"{words[:299]}…"


class OnDisk(Mapping[str, Mapping[str, Tensor]]):
    """Models on disk, by name: each is loaded when it is asked for, and nothing is kept.

    Args:
        base: that adapters among them are added to.
        paths: by name, as `merge_files` takes them.
    """

    def __init__(self, base: Path, paths: Mapping[str, Path]) -> None:
        self._base, self._paths = base, dict(paths)

    def __getitem__(self, name: str) -> dict[str, Tensor]:
        opened = open_expert(self._paths[name], open_checkpoint(self._base, "base"), f"'{name}'")
        return {key: opened.read(key) for key in opened.specs}

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)
