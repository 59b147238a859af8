"""A model card: what a merged model is, what it was made of, what was lost, and what nobody has looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.axes import Axes

from apgd_teach.errors import ApgdTeachError
from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import figure, look, styled
from apgd_teach.files import write_atomically
from apgd_teach.merging import Audit
from apgd_teach.own.judging import Choice, Judged, lost
from apgd_teach.own.noise import robustness_table
from apgd_teach.own.pages import Part, Section, html, markdown
from apgd_teach.own.report import sections
from apgd_teach.tables import Table

__all__ = ["Card", "Source", "draw_lost"]

_UNSAID = "not stated"
_WORST = 12


@dataclass(frozen=True)
class Source:
    """What is known of a network that went into the merge.

    Attributes:
        data: what it was trained on.
        licence: under which it may be used.
        note: whatever else whoever approves should know.
    """

    data: str = _UNSAID
    licence: str = _UNSAID
    note: str = ""


@dataclass(frozen=True)
class Card:
    """The papers that go with a merged model.

    Whatever was not measured or said stands in the card as such: a card without gaps is a claim.

    Attributes:
        title: what the model is called.
        audit: of the merge.
        purpose: what it is for, and for whom.
        limits: what it must not be used for.
        sources: by "base" and the experts' names, what is known of them.
        judged: per task, by an evaluation; and `label`, which of its networks this is.
        label: see there.
        classes: by task, the names of the classes.
        choice: of methods and settings, where there was one.
        robustness: the same networks on worse pictures, by corruption.
        examples: what they were judged on, in words: which split, how many, from where.
        chosen: what chose method and settings, in words, where there was no `choice`.

    Raises:
        ApgdTeachError: something was judged, and `label` is none of its networks; or a source is of no input.

    Lesson: 09.
    """

    title: str
    audit: Audit
    purpose: str = _UNSAID
    limits: str = _UNSAID
    sources: Mapping[str, Source] = field(default_factory=dict)
    judged: Judged | None = None
    label: str = ""
    classes: Mapping[str, Sequence[str]] = field(default_factory=dict)
    choice: Choice | None = None
    robustness: Mapping[str, Judged] = field(default_factory=dict)
    examples: str = _UNSAID
    chosen: str = _UNSAID

    def __post_init__(self) -> None:
        for one in (self.judged, *self.robustness.values()):
            if one is not None:
                one.of(self.label)
        for name in self.sources:
            if name not in self.audit.inputs:
                raise ApgdTeachError(f"'{name}' is no input of this merge; there are: {', '.join(self.audit.inputs)}.")

    def sections(self) -> list[Section]:
        """All of it, what was lost before how it was made."""
        audit = self.audit
        made = f"{audit.method}, of a base and {len(audit.experts)} experts; data used by the merge: {audit.data_used}"
        return [
            Section(
                "What it is",
                [Table(("question", "answer"), [("made by", made), ("for", self.purpose), ("not for", self.limits)])],
            ),
            Section("What it was made of", [self.ledger()]),
            Section("What was lost", self._lost()),
            Section("Which classes lost most", self._classes()),
            Section("On worse pictures", self._worse()),
            Section("How it was chosen", self._chosen()),
            Section("Warnings", [Table(("warning",), [(str(finding),) for finding in audit.findings])]),
            *(
                Section(f"Audit: {one.head[0].lower()}{one.head[1:]}", one.parts)
                for one in sections(audit)
                if one.head != "Warnings"
            ),
        ]

    def ledger(self) -> Table:
        """The data that went into the inputs, as far as anybody said, and by which hash they are known again.

        Lesson: 09.
        """
        rows = []
        for name in ("base", *self.audit.experts):
            source = self.sources.get(name, Source())
            rows.append((name, source.data, source.licence, source.note or "–", self.audit.inputs[name]))
        return Table(("input", "trained on", "licence", "note", "SHA-256"), rows)

    def to_markdown(self) -> str:
        """As GitHub-flavoured Markdown.

        Lesson: 09.
        """
        return markdown(f"Model card: {self.title}", self.sections())

    def to_html(self) -> str:
        """As a page with its figures inside.

        Lesson: 09.
        """
        return html(f"Model card: {self.title}", self.sections())

    def save(self, path: Path) -> None:
        """Write it, as .md or .html, whole or not at all.

        Raises:
            ApgdTeachError: another ending.
            OSError: as the system reports it.

        Lesson: 09.
        """
        texts = {".md": self.to_markdown, ".html": self.to_html}
        if path.suffix.lower() not in texts:
            raise ApgdTeachError(f"a card goes into a file that ends in .md or .html, and not into '{path}'.")
        write_atomically(path, texts[path.suffix.lower()]().encode())

    def _lost(self) -> list[Part]:
        if self.judged is None:
            return ["Nobody has measured it: bring an evaluation before this model is used."]
        return [f"Judged on: {self.examples}.", draw_lost(self.judged, self.label), self.judged.table(self.label)]

    def _classes(self) -> list[Part]:
        if self.judged is None or all(one.labels is None for one in self.judged.experts.values()):
            return ["Nobody has looked: this needs an evaluation that returns single predictions."]
        return [self.judged.classes(self.label, self.classes or None, worst=_WORST)]

    def _worse(self) -> list[Part]:
        if not self.robustness:
            return ["Nobody has looked."]
        return [robustness_table(self.robustness, self.label)]

    def _chosen(self) -> list[Part]:
        if self.choice is None:
            return [f"Method and settings were given. What chose them: {self.chosen}."]
        return [self.choice.advice, self.choice.table()]


def draw_lost(judged: Judged, label: str) -> Drawing:
    """Task by task the base, the merge and each task's own expert.

    Raises:
        ApgdTeachError: no network of that label was judged.

    Lesson: 09.
    """
    merged = judged.of(label)
    with styled():
        drawn, (axes,) = figure(width=8.4, height=1.8 + 0.36 * len(judged.tasks))
        _marks(axes, judged, label)
        drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    gone = {task: lost(judged.experts[task], merged[task]) for task in judged.tasks}
    worst = max(gone, key=lambda task: gone[task].points)
    return Drawing(
        drawn,
        f"{label}: of {len(gone)} tasks '{worst}' loses most against its expert, {gone[worst]} points; "
        f"{sum(one.shown for one in gone.values())} show a loss.",
        {f"{task} lost (points)": one.points for task, one in gone.items()},
    )


def _marks(axes: Axes, judged: Judged, label: str) -> None:
    places = range(len(judged.tasks))
    lines = {"base": judged.base, label: judged.of(label), "each its own expert": judged.experts}
    for number, (name, verdicts) in enumerate(lines.items()):
        axes.plot(
            [verdicts[task].accuracy for task in judged.tasks],
            [place + 0.16 * (number - 1) for place in places],
            label=name,
            **{**look(number), "linestyle": ""},
        )
    axes.set_yticks(places, judged.tasks)
    axes.set_ylim(len(judged.tasks) - 0.5, -0.5)
    axes.set(xlabel="accuracy (%)", title="What was lost, task by task")
