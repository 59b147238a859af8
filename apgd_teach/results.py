"""What a comparison measured, as records that outlive it: shown by the notebook that measured, and read back.

One record is one pool: what it was made of, and every network's accuracy and loss on each task, with its method's
settings, the data that it used and what it cost. Scores of single images are not kept, so what is read back has its
intervals over seeds and none over images.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apgd_teach import __version__
from apgd_teach.errors import ApgdTeachError
from apgd_teach.evaluate import Comparison, Score, Scores
from apgd_teach.experts import Pool
from apgd_teach.files import write_atomically
from apgd_teach.merging import Merged, fingerprint
from apgd_teach.trials import Cost, Trials

__all__ = [
    "FORMAT",
    "MIME",
    "Kept",
    "Measured",
    "Record",
    "Recorded",
    "added",
    "begun",
    "load",
    "record",
    "recorded_in",
    "save",
    "trials_of",
]

FORMAT = "apgd-teach results 1"
"""Stands in every record; another number means another meaning."""

MIME = "application/vnd.apgd-teach.results+json"
"""The MIME type under which a notebook keeps its records."""


@dataclass(frozen=True)
class Measured:
    """One network of a pool.

    Attributes:
        accuracy: by task, in per cent.
        loss: by task, mean cross-entropy in nats.
        method: its name in `METHODS` or of a reference; "" for the base and the experts.
        settings: the method's own.
        data_used: beside the weights: "none", "unlabelled", "labelled"; "" for the base and the experts.
        seconds, megabytes: what making it took (`trials.Cost`); None where that was not measured.
    """

    accuracy: dict[str, float]
    loss: dict[str, float]
    method: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    data_used: str = ""
    seconds: float | None = None
    megabytes: float | None = None


@dataclass(frozen=True)
class Record:
    """One pool of a suite, and every network that was made of it.

    Attributes:
        suite: which pools belong together: records that differ in their seed alone are one group.
        network: a name in `models.ENCODERS`.
        recipe: of the experts, as a `Recipe` has it.
        seed: of the pool.
        images: tier, split and how many per task, in words.
        titles: of the tasks, by name.
        inputs: SHA-256 of the base and of each expert, by name.
        versions: of the package and of PyTorch.
        device: where it was merged, in words.
        networks: by label; "base" and "experts" (each on its own task) among them.
        format: `FORMAT`.

    Raises:
        ApgdTeachError: another format, no base or experts among the networks, or tasks that one of them lacks.
    """

    suite: str
    network: str
    recipe: dict[str, Any]
    seed: int
    images: str
    titles: dict[str, str]
    inputs: dict[str, str]
    versions: dict[str, str]
    device: str
    networks: dict[str, Measured]
    format: str = FORMAT

    def __post_init__(self) -> None:
        where = f"the results of {self.suite}, seed {self.seed},"
        if self.format != FORMAT:
            raise ApgdTeachError(f"{where} are in the format '{self.format}', and this version reads '{FORMAT}'.")
        for label in ("base", "experts"):
            if label not in self.networks:
                raise ApgdTeachError(f"{where} have no '{label}'; measure them again.")
        for label, one in self.networks.items():
            if not set(one.accuracy) == set(one.loss) == set(self.titles):
                raise ApgdTeachError(f"{where} have not all tasks of '{label}'; measure them again.")

    @property
    def group(self) -> tuple[str, str, str, tuple[str, ...], str]:
        """What records have in common that differ in their seed alone."""
        return (self.suite, self.network, json.dumps(self.recipe, sort_keys=True), tuple(self.titles), self.images)


@dataclass(frozen=True)
class Recorded:
    """Records as the output of a notebook's cell: a sentence to read, and all of it under `MIME`."""

    records: tuple[Record, ...]

    def __str__(self) -> str:
        first = self.records[0]
        return (
            f"Recorded: {first.suite}, {len(self.records)} pools, {len(first.networks)} networks of each, "
            f"{len(first.titles)} tasks."
        )

    def _repr_mimebundle_(self, include: object = None, exclude: object = None) -> dict[str, object]:
        return {"text/plain": str(self), MIME: [_written(one) for one in self.records]}


def record(suite: str, *trials: Trials) -> Recorded:
    """What trials measured, to be kept.

    Args:
        suite: a name for these pools, whatever their recipe and seed.
        trials: with their pools and networks, as `try_methods` makes them.

    Raises:
        ApgdTeachError: there are none, or their networks were not kept.

    Lesson: 07, 08.
    """
    if not trials:
        raise ApgdTeachError("there is nothing to record; give what `try_methods` returned.")
    return Recorded(tuple(_record(suite, one, seed) for one in trials for seed in one.seeds))


def begun(suite: str, pool: Pool, base: Scores, experts: Scores, images: str) -> Record:
    """The record of a pool of which nothing has been merged yet.

    Args:
        suite: see `record`.
        pool: what will be merged.
        base, experts: their scores.
        images: tier, split and how many per task, in words.

    Lesson: 07.
    """
    return Record(
        suite=suite,
        network=pool.network,
        recipe=asdict(pool.recipe),
        seed=pool.seed,
        images=images,
        titles={name: task.title for name, task in pool.tasks.items()},
        inputs={"base": fingerprint(pool.base), **{name: fingerprint(one) for name, one in pool.experts.items()}},
        versions={"apgd_teach": __version__, "torch": str(torch.__version__)},
        device=str(pool.device),
        networks={"base": _measured(base), "experts": _measured(experts)},
    )


def added(record: Record, label: str, network: Merged, scores: Scores, cost: Cost | None = None) -> Record:
    """The record with one network more.

    Args:
        record: of the pool that it was made of.
        label: what to call it.
        network: with its audit.
        scores: on every task.
        cost: what making it took.

    Raises:
        ApgdTeachError: it was made of other networks than the record's.

    Lesson: 07.
    """
    if network.audit.inputs != record.inputs:
        raise ApgdTeachError(f"'{label}' was merged from other networks than the results of {record.suite} are of.")
    measured = _measured(
        scores,
        method=network.audit.method,
        settings=json.loads(json.dumps(network.audit.settings, default=str)),
        data_used=network.audit.data_used,
        seconds=cost.seconds if cost else None,
        megabytes=cost.megabytes if cost else None,
    )
    return replace(record, networks={**record.networks, label: measured})


def save(path: Path, records: Iterable[Record]) -> None:
    """All of them into a file, whole or not at all.

    Args:
        path: JSON.
        records: of several pools.
    """
    text = json.dumps({"format": FORMAT, "records": [_written(one) for one in records]}, ensure_ascii=False)
    # A line for each record and for each of its networks, so that a file that grew differs by what is new.
    for begins in ('{"suite": ', '["'):
        text = text.replace(f"[{begins}", f"[\n{begins}").replace(f", {begins}", f",\n{begins}")
    write_atomically(path, f"{text}\n".encode())


def load(path: Path) -> list[Record]:
    """What `save` wrote; nothing where there is no file.

    Raises:
        ApgdTeachError: it holds no records that this version can read.
    """
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["records"]
        return [_read(one, path.name) for one in found]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ApgdTeachError(f"'{path}' holds no results that can be read ({error}); move it away.") from None


def recorded_in(paths: Iterable[Path]) -> list[Record]:
    """All records of built notebooks, in their order.

    Args:
        paths: of `.ipynb` files.

    Raises:
        ApgdTeachError: a record is none that this version can read.
    """
    found: list[Record] = []
    for path in paths:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                found.extend(_read(one, path.name) for one in output.get("data", {}).get(MIME, []))
    return found


def trials_of(records: Iterable[Record]) -> dict[tuple[str, ...], Trials]:
    """Records as trials again, by suite, network, recipe (as JSON), tasks and images: one seed of each.

    Raises:
        ApgdTeachError: a seed is there twice.
    """
    groups: dict[tuple[Any, ...], dict[int, Record]] = {}
    for one in records:
        seeds = groups.setdefault(one.group, {})
        if one.seed in seeds:
            raise ApgdTeachError(f"{one.suite} has the seed {one.seed} twice; keep one of the two.")
        seeds[one.seed] = one
    return {group: _trials(seeds) for group, seeds in groups.items()}


class Kept(Score):
    """A score without its single images.

    Attributes:
        accuracy: in per cent.
        loss: mean cross-entropy, in nats.
    """

    def __init__(self, accuracy: float, loss: float) -> None:
        self.__dict__.update(kept_accuracy=accuracy, kept_loss=loss)

    def __repr__(self) -> str:
        return f"Kept(accuracy={self.accuracy:.2f}, loss={self.loss:.4f})"

    @property
    def accuracy(self) -> float:
        kept: float = self.__dict__["kept_accuracy"]
        return kept

    @property
    def loss(self) -> float:
        kept: float = self.__dict__["kept_loss"]
        return kept

    @property
    def right(self) -> Tensor:
        raise ApgdTeachError("records hold no single images, so there is no interval over them; take the one of seeds.")

    losses = right


def _record(suite: str, trials: Trials, seed: int) -> Record:
    if seed not in trials.pools or seed not in trials.merged:
        raise ApgdTeachError("these trials kept their scores alone; record those that `try_methods` returned.")
    compared, costs = trials.compared[seed], trials.costs.get(seed, {})
    made = begun(suite, trials.pools[seed], compared.base, compared.experts, compared.tier.partition(";")[0])
    for label, network in trials.merged[seed].items():
        made = added(made, label, network, compared.merged[label], costs.get(label))
    return made


def _measured(scores: Mapping[str, Score], **more: Any) -> Measured:
    """Rounded to what a share of 32 bits can tell: the digits after that are noise, and long."""
    return Measured(
        {task: round(one.accuracy, 4) for task, one in scores.items()},
        {task: round(one.loss, 6) for task, one in scores.items()},
        **more,
    )


def _written(one: Record) -> dict[str, Any]:
    """As JSON. A notebook's file sorts whatever has names, so what has an order is written as pairs."""
    return {
        **asdict(one),
        "titles": list(one.titles.items()),
        "networks": [(label, asdict(network)) for label, network in one.networks.items()],
    }


def _read(found: Any, where: str) -> Record:
    try:
        networks = {label: Measured(**one) for label, one in found["networks"]}
        return Record(**{**found, "titles": dict(found["titles"]), "networks": networks})
    except (KeyError, TypeError, ValueError) as error:
        raise ApgdTeachError(f"{where} has results that cannot be read ({error}); build it again.") from None


def _trials(records: Mapping[int, Record]) -> Trials:
    def scores(one: Measured) -> dict[str, Score]:
        return {task: Kept(accuracy, one.loss[task]) for task, accuracy in one.accuracy.items()}

    compared, costs = {}, {}
    for seed, record_ in sorted(records.items()):
        made = {label: one for label, one in record_.networks.items() if label not in ("base", "experts")}
        compared[seed] = Comparison(
            titles=record_.titles,
            base=scores(record_.networks["base"]),
            experts=scores(record_.networks["experts"]),
            merged={label: scores(one) for label, one in made.items()},
            data_used={label: one.data_used for label, one in made.items()},
            tier=f"{record_.images}; seed {seed}",
        )
        costs[seed] = {
            label: Cost(one.seconds, math.nan if one.megabytes is None else one.megabytes)
            for label, one in made.items()
            if one.seconds is not None
        }
    return Trials(compared, costs=costs)
