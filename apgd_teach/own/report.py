"""The papers of a merge: its audit as JSON, Markdown or a page with figures, and whether a model is the one meant."""

from __future__ import annotations

import math
from pathlib import Path

from apgd_teach.errors import MergeError
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, look, styled
from apgd_teach.files import write_atomically
from apgd_teach.merging import Audit
from apgd_teach.merging.audit import LONG_STEP
from apgd_teach.merging.checkpoint import open_checkpoint
from apgd_teach.own.pages import Section, html

__all__ = ["ENDINGS", "check_target", "draw_parts", "draw_steps", "is_of", "page", "read", "sections", "write"]

ENDINGS = (".json", ".md", ".html")
"""Of a report's file: what it becomes."""

_SHOWN = 30
"""Tensors in a figure: those with the longest steps."""


def check_target(path: Path) -> None:
    """Whether a report can go there; said before anything is computed.

    Raises:
        MergeError: the name has another ending, or there is no such folder.
    """
    if path.suffix.lower() not in ENDINGS:
        raise MergeError(f"a report goes into a file that ends in {', '.join(ENDINGS)}, and not into '{path}'.")
    if not path.parent.is_dir():
        raise MergeError(f"there is no folder '{path.parent}' for the report; make it first.")
    if path.is_dir():
        raise MergeError(f"'{path}' is a folder; give the report another name.")


def write(audit: Audit, path: Path) -> None:
    """Write an audit as its file's ending says, whole or not at all.

    Raises:
        MergeError: as `check_target`.
        OSError: as the system reports it.

    Lesson: 09.
    """
    check_target(path)
    texts = {".json": audit.to_json, ".md": audit.to_markdown, ".html": lambda: page(audit)}
    write_atomically(path, texts[path.suffix.lower()]().encode())


def read(path: Path) -> Audit:
    """An audit from its JSON file.

    Raises:
        MergeError: there is none, or it cannot be read.

    Lesson: 09.
    """
    if not path.is_file():
        raise MergeError(f"there is no audit '{path}'; give the .json that `merge --report` wrote.")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise MergeError(f"'{path}' cannot be read as an audit ({type(error).__name__}); give its .json.") from None
    try:
        return Audit.from_json(text)
    except MergeError as error:
        raise MergeError(f"'{path}': {error}") from None


def is_of(audit: Audit, model: Path) -> bool:
    """Whether a model on disk is, byte for byte, the one that an audit speaks of.

    Args:
        audit: of a merge into files.
        model: a file or a folder, as `open_checkpoint` takes it.

    Raises:
        MergeError: the model cannot be opened, or the audit says nothing of what came out.

    Lesson: 09.
    """
    if audit.output is None:
        raise MergeError("this audit does not say what came out, so no model can be held against it.")
    return open_checkpoint(model, "the model").digest() == audit.output.sha256


def draw_steps(audit: Audit) -> Drawing | None:
    """How far the merge moved each tensor, ‖M‖/‖θ₀‖, the longest steps first; None where nothing was merged.

    Lesson: 09.
    """
    rows = sorted(
        (row for row in audit.rows if row.policy in ("merge", "column") and row.base_norm),
        key=lambda row: -row.relative_step,
    )
    if not rows:
        return None
    shown = rows[:_SHOWN]
    with styled():
        drawn, (axes,) = figure(width=8.4, height=1.6 + 0.26 * len(shown))
        places = range(len(shown))
        axes.barh(places, [100 * row.relative_step for row in shown], color=look(0)["color"])
        axes.axvline(100 * LONG_STEP, color="black", linestyle="--", linewidth=1)
        axes.set_yticks(places, [_short(row.name) for row in shown])
        axes.set_ylim(len(shown) - 0.4, -0.6)
        axes.set_xlabel("‖M‖ / ‖θ₀‖ (%); dashed: from here the audit warns")
        axes.set_title(f"Steps of the {len(shown)} tensors that moved farthest" if len(rows) > _SHOWN else "Steps")
    longest = shown[0]
    return Drawing(
        drawn,
        f"Of {len(rows)} merged tensors '{longest.name}' moved farthest, by {longest.relative_step:.1%} of the base's "
        f"length; {len(audit.long_steps)} moved farther than {LONG_STEP:.0%}.",
    )


def draw_parts(audit: Audit) -> Drawing | None:
    """How far each expert is from the base, and how much of its estimated gap is left; None without experts' norms.

    Lesson: 09.
    """
    table = audit.tasks()
    names, lengths = table.column("expert"), table.column("‖τ‖")
    left = table.column("gap left") if "gap left" in table.columns else []
    average = table.column("gap left by the average") if "gap left by the average" in table.columns else []
    if not any(isinstance(one, float) and one for one in lengths):
        return None
    panels = 2 if left and average else 1
    with styled():
        drawn, axes = figure(columns=panels, width=8.4, height=1.8 + 0.3 * len(names))
        places = range(len(names))
        axes[0].barh(places, [_number(one) for one in lengths], color=look(0)["color"])
        axes[0].set(xlabel="‖τ‖ of all merged tensors", title="Length of each expert's step")
        axes[0].set_yticks(places, [_short(str(name)) for name in names])
        if panels == 2:
            for number, (label, values) in enumerate((("average", average), (audit.method, left))):
                axes[1].plot(
                    [100 * _number(one) for one in values],
                    [place + 0.16 * (2 * number - 1) for place in places],
                    label=label,
                    **{**look(number), "linestyle": ""},
                )
            axes[1].set(xlabel="estimated gap left (% of the base's)", title="First-order estimate")
            axes[1].set_yticks(places, [""] * len(names))
            axes[1].legend(loc="best")
        for axis in axes:
            axis.set_ylim(len(names) - 0.4, -0.6)
    known = [_number(one) for one in lengths]
    words = f"{len(names)} experts; the shortest step is {min(known):.3g} long, the longest {max(known):.3g}."
    return Drawing(drawn, words)


def _number(cell: object) -> float:
    """A cell of a table as a number; NaN, which is not drawn, where it has none: an expert that is the base itself."""
    return float(cell) if isinstance(cell, int | float) else math.nan


def page(audit: Audit) -> str:
    """The whole record as an HTML page that needs nothing beside itself.

    Lesson: 09.
    """
    return html(f"Audit of a merge: {audit.method} of {len(audit.experts)}", sections(audit))


def sections(audit: Audit) -> list[Section]:
    """The record's tables under their headings, two of them with a figure.

    Lesson: 09.
    """
    figures = {"Norms and steps": draw_steps, "Facts of every expert": draw_parts}
    made = []
    for head, table in audit.sections().items():
        drawn = figures[head](audit) if head in figures else None
        made.append(Section(head, [table] if drawn is None else [drawn, table]))
    return made


def _short(name: str, most: int = 42) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
