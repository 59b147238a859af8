"""Experts as they are given on a command line, and what has to be done before they can be opened."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from apgd_teach.errors import MergeError
from apgd_teach.files import hidden_beside
from apgd_teach.merging import Audit
from apgd_teach.own.pickles import convert, is_pickle

__all__ = ["Given", "named", "opened_safely"]

_COMMON = ("adapter_model", "diffusion_pytorch_model", "model", "pytorch_model")
"""Names that every model's file has: it goes by its folder's."""


@dataclass(frozen=True)
class Given:
    """A base and experts that can be opened.

    Attributes:
        base: a path.
        experts: paths by name.
        pickles: the files that were converted first, by name of the expert or "base".
    """

    base: Path
    experts: Mapping[str, Path]
    pickles: Mapping[str, Path] = field(default_factory=dict)

    @property
    def hashes(self) -> dict[str, str]:
        """SHA-256 of the pickles, by name."""
        made = {"base": self.base, **self.experts}
        return {name: made[name].parent.name for name in self.pickles}

    def as_given(self, audit: Audit) -> Audit:
        """An audit that names the files that were given, in place of those that were made of pickles."""
        if not self.pickles:
            return audit
        names = {name: (path.name,) for name, path in self.pickles.items()}
        return dataclasses.replace(audit, inputs={**audit.inputs, **self.hashes}, files={**audit.files, **names})


def named(given: Sequence[str]) -> dict[str, Path]:
    """Experts by name: "NAME=PATH", or a path, which goes by the name of its file or folder.

    Args:
        given: one text for each expert.

    Raises:
        MergeError: a name is empty, "base", or there twice.

    Lesson: 09.
    """
    found: dict[str, Path] = {}
    for text in given:
        before, sign, after = text.partition("=")
        if sign and not Path(text).exists() and not set("/\\") & set(before):
            name, path = before.strip(), Path(after)
            if not name or not after:
                raise MergeError(f"'{text}' is not NAME=PATH; write it as in ada=experts/ada.safetensors.")
        else:
            path = Path(text)
            name = _own_name(path)
        if name == "base":
            raise MergeError("an expert cannot be called 'base', which is the base's name; write NAME=PATH.")
        if name in found:
            raise MergeError(
                f"two experts are called '{name}' ('{found[name]}' and '{path}'); name them, as in {name}_2={path}."
            )
        found[name] = path
    return found


def _own_name(path: Path) -> str:
    name = path.name.removesuffix(".index.json") if path.name.endswith(".safetensors.index.json") else path.name
    stem = name if path.is_dir() else Path(name).stem
    if stem in _COMMON or not stem:
        stem = path.absolute().parent.name if stem else path.absolute().name
    return stem or "expert"


@contextmanager
def opened_safely(base: Path, experts: Mapping[str, Path], tell: Callable[[str], object]) -> Iterator[Given]:
    """The same inputs, those that are pickles as safetensors files that are gone when the block ends.

    They lie in the system's folder for temporary files (TMPDIR), and not beside an output: `check` has none, a merge
    that is refused writes nothing there, and what a killed process left is removed by the next one that reads a pickle,
    wherever that one writes.

    Args:
        base: a path.
        experts: paths by name.
        tell: told of every pickle, in a sentence.

    Raises:
        MergeError: as `pickles.convert`, or there is no such folder that can be written to.

    Lesson: 09.
    """
    every = {"base": base, **experts}
    pickles = {name: path for name, path in every.items() if is_pickle(path)}
    if not pickles:
        yield Given(base, experts)
        return
    with ExitStack() as stack:
        try:
            folder = stack.enter_context(hidden_beside(Path(tempfile.gettempdir()) / "apgd-teach"))
        except OSError as error:
            raise MergeError(
                "pickles have to be written once as safetensors, and no folder for temporary files can take them "
                f"({error.strerror}); free some space, or set TMPDIR to a folder that you may write to."
            ) from None
        ready = dict(every)
        for name, path in pickles.items():
            tell(
                f"'{path}' is a pickle, a format that can run code; it is read with weights_only=True, which runs "
                "nothing. Keep models as .safetensors."
            )
            ready[name] = convert(path, folder, "base" if name == "base" else f"expert '{name}'")
        start = ready.pop("base")
        yield Given(start, ready, pickles)
