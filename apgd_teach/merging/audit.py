"""What a merge did, in numbers that another person can check."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TypeVar

from apgd_teach.errors import MergeError
from apgd_teach.merging.preflight import Finding
from apgd_teach.tables import Table

__all__ = ["FORMAT", "LONG_STEP", "Audit", "Output", "TensorRow"]

FORMAT = 1
"""Of the JSON. It rises when a key is renamed or removed or means something else; new keys may come at any time."""

LONG_STEP = 0.5
"""‖M‖/‖θ₀‖ of a merged tensor above which `Audit.long_steps` names it.

Measured on pools of the course (ConvNet and MLP, SGD and AdamW, mild and hot, three seeds; 240 merges by ten methods,
500 validation images a task): of the 91 merges with such a tensor 86 were less accurate than the base; of the 149
without, 65. So a long step is a bad sign, and a short one no promise: the average of the MLP's hot SGD experts, 29 %,
fell far below the base. The same at other limits, and how long the steps of each method were: `benchmarks/steps.md`.

Source: difference 9 in docs/equations.md. Lesson: 02, 06.
"""

_HEADS = {
    "mean_cosine": "mean cosine",
    "least_cosine": "least cosine",
    "coefficients": "λ",
    "protected": "protected",
    "kept": "kept",
    "leak": "leak",
    "leak_merged": "leak, merged",
    "gap_left_average": "gap left by the average",
    "gap_left": "gap left",
    "surrogate_before": "surrogate before",
    "surrogate_after": "surrogate after",
}
"""Headings of the facts that are known here, in their order. Facts of a method of your own follow under their names."""


@dataclass(frozen=True)
class TensorRow:
    """One tensor of the merge.

    Attributes:
        name: its key in the state dict.
        policy: "merge" (the method's own update), "average" (mean of the task vectors) or "keep" (the base's value).
        reason: why that policy.
        shape: of the tensor.
        base_norm: ‖θ₀‖ (Frobenius).
        task_norm: mean over the tasks of ‖τᵢ‖.
        update_norm: ‖M‖, what the merge added.
        facts: what the merge and the method know more of the layer, by name; a tuple holds a number per task.
    """

    name: str
    policy: str
    reason: str
    shape: tuple[int, ...]
    base_norm: float
    task_norm: float
    update_norm: float
    facts: Mapping[str, object] = field(default_factory=dict)

    @property
    def relative_step(self) -> float:
        """‖M‖ / ‖θ₀‖: where this is large, "first order" is a bold word."""
        if self.base_norm:
            return self.update_norm / self.base_norm
        return math.inf if self.update_norm else 0.0


@dataclass(frozen=True)
class Output:
    """By what the merged network is known again.

    Attributes:
        files: names of the files that were written; none for a state dict in memory.
        sha256: of the files or of the state dict, counted as for an input.
        dtype: of its floating-point tensors; several where it has several: "bfloat16, float32".
    """

    files: tuple[str, ...]
    sha256: str
    dtype: str


@dataclass(frozen=True)
class Audit:
    """The record of one merge.

    Attributes:
        method: its name.
        settings: the method's own.
        experts: their names, in the order in which they were added up.
        data_used: always "none" for a merge; methods that use data live elsewhere and say so.
        inputs: SHA-256 of the base and of each expert, by name.
        versions: of the package and of PyTorch.
        rows: one per tensor.
        warnings: what the pre-flight check found and did not stop for.
        files: names of the base's and of each expert's files, by name, with that of their folder where it was given or
            holds several; none for state dicts in memory.
        output: what was made of it; None where nobody recorded it.
        given_policy: the patterns that the caller gave and what for, the first that matches wins.
        device: where it was computed.

    Lesson: 02, 09.
    """

    method: str
    settings: dict[str, object]
    experts: tuple[str, ...]
    data_used: str
    inputs: dict[str, str]
    versions: dict[str, str]
    rows: tuple[TensorRow, ...]
    warnings: tuple[Finding, ...] = ()
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    output: Output | None = None
    given_policy: tuple[tuple[str, str], ...] = ()
    device: str = ""

    @property
    def long_steps(self) -> tuple[TensorRow, ...]:
        """The merged tensors whose step is longer than `LONG_STEP` of the base's norm, longest first.

        Lesson: 02, 06.
        """
        found = [row for row in self.rows if row.policy == "merge" and row.relative_step > LONG_STEP]
        return tuple(sorted(found, key=lambda row: -row.relative_step))

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The warnings of the pre-flight check, and one of long steps where there are any.

        Lesson: 02, 09.
        """
        return (*self.warnings, *_long(self.long_steps))

    def table(self) -> Table:
        """One row per tensor, norms and the relative step in per cent."""
        experts = "1 expert" if len(self.experts) == 1 else f"{len(self.experts)} experts"
        return Table(
            ("tensor", "policy", "shape", "‖θ₀‖", "mean ‖τ‖", "‖M‖", "‖M‖/‖θ₀‖ %"),
            [
                (
                    row.name,
                    row.policy,
                    _shape(row),
                    row.base_norm,
                    row.task_norm,
                    row.update_norm,
                    100 * row.relative_step,
                )
                for row in self.rows
            ],
            caption=f"{self.method} of {experts}; data used: {self.data_used}",
            note="; ".join(map(str, self.findings)),
            digits=2,
        )

    def details(self) -> Table:
        """One row per merged tensor: what is known of it, shares as numbers from 0 to 1, means over the tasks.

        "protected" is the share of r = min(out, in), "kept" that of the entries after a trim, "leak" ‖P(M − S)‖/‖PS‖;
        "gap left" is the first-order estimate of the gap and "surrogate" what was minimised, both as shares of the
        base's own.

        Lesson: 06, 09.
        """
        merged = self._merged
        names = _names(merged)
        return Table(
            ("tensor", *(_HEADS.get(name, name) for name in names), "‖M‖/‖θ₀‖"),
            [(row.name, *(_one(row.facts.get(name)) for name in names), row.relative_step) for row in merged],
            caption="Merged tensors; means over the tasks",
            digits=3,
        )

    def tasks(self) -> Table:
        """One row per expert: its part in the merged tensors together.

        ‖τ‖ is of all of them together, "kept" the share of all their entries, and "gap left" the estimate for the whole
        network, the sum over its layers, as a share of the base's own. The rest are means over the tensors.

        Lesson: 06, 09.
        """
        merged = [row for row in self._merged if isinstance(row.facts.get("task_norms"), tuple)]
        names = [name for name in _names(merged) if any(self._per_task(row, name) for row in merged)]
        return Table(
            ("expert", "‖τ‖", *(_HEADS.get(name, name) for name in names)),
            [
                (expert, _together(merged, task), *(self._mean(merged, name, task) for name in names))
                for task, expert in enumerate(self.experts)
            ],
            caption="Experts; all merged tensors together",
            digits=3,
        )

    def policies(self) -> Table:
        """One row per tensor: what was done to it, and why.

        Lesson: 09.
        """
        return Table(
            ("tensor", "shape", "policy", "reason"),
            [(row.name, _shape(row), row.policy, row.reason) for row in self.rows],
        )

    @property
    def _merged(self) -> list[TensorRow]:
        return [row for row in self.rows if row.policy == "merge"]

    def _per_task(self, row: TensorRow, name: str) -> Sequence[float]:
        """A fact with a number for each task, or nothing."""
        fact = row.facts.get(name)
        return fact if isinstance(fact, tuple) and len(fact) == len(self.experts) else ()

    def _mean(self, rows: list[TensorRow], name: str, task: int) -> float | None:
        """A task's fact over the layers: each weighs what the whole is made of, else all the same."""
        sums = [0.0, 0.0]
        for row in rows:
            if fact := self._per_task(row, name):
                weight = 1.0
                if name.startswith("gap_left"):
                    weight = _task_norms(row)[task] ** 2
                elif name == "kept":
                    weight = math.prod(row.shape)
                sums = [sums[0] + weight * fact[task], sums[1] + weight]
        return sums[0] / sums[1] if sums[1] else None

    def sections(self) -> dict[str, Table]:
        """The whole record as tables under their headings; one without rows has nothing to say.

        Lesson: 09.
        """
        overview = self.table()
        return {
            "Summary": Table(("method", "experts", "data used"), [(self.method, len(self.experts), self.data_used)]),
            "Settings": Table(
                ("setting", "value"), [(name, _text(one)) for name, one in sorted(self.settings.items())]
            ),
            "Inputs": Table(
                ("input", "SHA-256", "files"),
                [
                    (name, self.inputs[name], ", ".join(self.files.get(name, ())) or "–")
                    for name in ("base", *self.experts)
                ],
            ),
            "Output": Table(("dtype", "SHA-256", "files", "computed on"), self._output),
            "Policy that was given": Table(("pattern", "policy"), self.given_policy),
            "Warnings": Table(("warning",), [(str(finding),) for finding in self.findings]),
            "Policy of every tensor": self.policies(),
            "Norms and steps": Table(overview.columns, overview.rows, digits=overview.digits),
            "Facts of every merged tensor": self.details(),
            "Facts of every expert": self.tasks(),
            "Versions": Table(("package", "version"), sorted(self.versions.items())),
        }

    def to_markdown(self) -> str:
        """The whole record as a document in GitHub-flavoured Markdown: the same text for the same merge.

        Lesson: 09.
        """
        sections = self.sections()
        summary = sections.pop("Summary").to_markdown()
        body = [f"## {head}\n\n{table.to_markdown() if table.rows else 'None.'}" for head, table in sections.items()]
        return "\n\n".join(["# Audit of a merge", summary, *body]) + "\n"

    @property
    def _output(self) -> list[tuple[str, ...]]:
        one = self.output
        return [(one.dtype, one.sha256, ", ".join(one.files) or "–", self.device or "–")] if one else []

    def to_json(self) -> str:
        """The whole record as JSON, keys sorted; what JSON has no sign for (infinity, NaN, a tensor) as text."""
        record = {"format": FORMAT, **asdict(self)}
        return json.dumps(_plain(record), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """The record that `to_json` wrote.

        Norms and facts are numbers again where JSON had to have them as text ("inf"); in the settings what became text
        or a list stays so. Keys that this version does not know are left out.

        Raises:
            MergeError: the text is no such record, or of a later format.

        Lesson: 09.
        """
        try:
            record = _is(dict, json.loads(text), "the record")
            number = _is(int, record["format"], "format")
            if number != FORMAT:
                raise MergeError(
                    f"the audit is of format {number}, and this version reads {FORMAT}; update the package."
                )
            experts = _texts(record["experts"], "experts")
            inputs = _text_by_name(record["inputs"], "inputs")
            if lacking := {"base", *experts} - inputs.keys():
                raise ValueError(f"inputs lacks '{min(lacking)}'")
            return cls(
                method=_is(str, record["method"], "method"),
                settings=_is(dict, record["settings"], "settings"),
                experts=experts,
                data_used=_is(str, record["data_used"], "data_used"),
                inputs=inputs,
                versions=_text_by_name(record["versions"], "versions"),
                rows=tuple(_row(one, len(experts)) for one in _is(list, record["rows"], "rows")),
                warnings=tuple(_finding(one) for one in _is(list, record.get("warnings", []), "warnings")),
                files={name: _texts(one, "files") for name, one in _is(dict, record.get("files", {}), "files").items()},
                output=_output(record.get("output")),
                given_policy=tuple(_pair(one) for one in _is(list, record.get("given_policy", []), "given_policy")),
                device=_is(str, record.get("device", ""), "device"),
            )
        except RecursionError:
            raise MergeError("this is no audit (nested too deep); give the text of `to_json`.") from None
        except (KeyError, OverflowError, TypeError, ValueError) as error:
            raise MergeError(
                f"this is no audit ({type(error).__name__}: {error}); give the text of `to_json`."
            ) from None


# Reading a record: whatever passes can be shown in every table


_Kind = TypeVar("_Kind")


def _is(kind: type[_Kind], value: object, what: str) -> _Kind:
    """The value, when it is of the kind; to JSON true is no number."""
    if not isinstance(value, kind) or isinstance(value, bool):
        raise TypeError(f"{what} is of type {type(value).__name__}")
    return value


def _texts(value: object, what: str) -> tuple[str, ...]:
    return tuple(_is(str, one, what) for one in _is(list, value, what))


def _text_by_name(value: object, what: str) -> dict[str, str]:
    return {name: _is(str, one, what) for name, one in _is(dict, value, what).items()}


def _number(value: object, what: str) -> float:
    """A number, or what `_plain` wrote in place of one."""
    if isinstance(value, str) and value in ("inf", "-inf", "nan"):
        return float(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else _is(float, value, what)


def _finding(value: object) -> Finding:
    found = _is(dict, value, "a warning")
    return Finding(*(_is(str, found[name], name) for name in ("level", "where", "what", "remedy")))


def _output(value: object) -> Output | None:
    if value is None:
        return None
    found = _is(dict, value, "output")
    sha256, dtype = (_is(str, found[name], name) for name in ("sha256", "dtype"))
    return Output(_texts(found["files"], "files"), sha256, dtype)


def _pair(value: object) -> tuple[str, str]:
    pattern, action = _texts(value, "given_policy")
    return pattern, action


def _row(value: object, n_tasks: int) -> TensorRow:
    row = _is(dict, value, "a row")
    name, policy, reason = (_is(str, row[key], key) for key in ("name", "policy", "reason"))
    base_norm, task_norm, update_norm = (
        float(_number(row[key], key)) for key in ("base_norm", "task_norm", "update_norm")
    )
    shape = tuple(_is(int, axis, "shape") for axis in _is(list, row["shape"], "shape"))
    facts = {key: _fact(one, key) for key, one in _is(dict, row.get("facts", {}), "facts").items()}
    found = TensorRow(name, policy, reason, shape, base_norm, task_norm, update_norm, facts)
    norms = found.facts.get("task_norms", (0.0,) * n_tasks)
    if not isinstance(norms, tuple) or len(norms) != n_tasks:
        raise ValueError(f"'{found.name}' has no task norm for every expert")
    return found


def _fact(value: object, what: str) -> object:
    if isinstance(value, list):
        return tuple(_number(one, what) for one in value)
    if value is None or isinstance(value, bool) or (isinstance(value, str) and value not in ("inf", "-inf", "nan")):
        return value
    return _number(value, what)


def _long(rows: Sequence[TensorRow]) -> list[Finding]:
    if not rows:
        return []
    shown = ", ".join(f"'{row.name}' ({row.relative_step:.0%})".replace("inf%", "from zero") for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return [
        Finding(
            "warning",
            f"the step ‖M‖/‖θ₀‖ of {shown}{more}",
            f"is longer than {LONG_STEP:.0%}: the gaps were estimated to first order around the base, which may not "
            "hold so far from it",
            "measure the merged network before you use it, or merge more gently: smaller coefficients, more protection "
            "or trim, experts that went less far",
        )
    ]


def _shape(row: TensorRow) -> str:
    return "×".join(map(str, row.shape)) or "scalar"


def _names(rows: Sequence[TensorRow]) -> list[str]:
    """The facts that some row has, known ones first; ‖τ‖ stands elsewhere."""
    there = {name for row in rows for name in row.facts} - {"task_norms"}
    return [name for name in _HEADS if name in there] + sorted(there - set(_HEADS))


def _one(fact: object) -> object:
    """A fact in one cell: the mean of what is given per task."""
    return sum(fact) / len(fact) if isinstance(fact, tuple) and fact else fact


def _task_norms(row: TensorRow) -> tuple[float, ...]:
    norms = row.facts["task_norms"]
    assert isinstance(norms, tuple)
    return norms


def _together(rows: Sequence[TensorRow], task: int) -> float:
    return math.hypot(*(_task_norms(row)[task] for row in rows))


def _text(value: object) -> str:
    """A setting as JSON has it: the same text for a record that was read back."""
    return json.dumps(_plain(value), ensure_ascii=False)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    return str(value)
