"""A base, and experts fine-tuned from it: trained once, kept in the cache, the same for the same ingredients."""

from __future__ import annotations

import copy
import logging
import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from tqdm import tqdm

from apgd_teach.cache import FORMAT, Cache, Damaged, Entry
from apgd_teach.data import Source, Task, TaskData, Variant, open_source
from apgd_teach.data.tasks import as_task
from apgd_teach.devices import pick_device, wait_for
from apgd_teach.errors import ApgdTeachError, CacheError
from apgd_teach.machine import PLAIN, Way, no_room, room
from apgd_teach.merging import fingerprint
from apgd_teach.models import make_encoder
from apgd_teach.models import network as kind_of
from apgd_teach.parallel import in_processes, number_of_workers
from apgd_teach.progress import bar, say, wanted
from apgd_teach.training import (
    BASE,
    HEAD_PENALTY,
    Recipe,
    Tell,
    Trained,
    fine_tune,
    fit_head,
    recipe,
    train_base,
    train_jointly,
)

__all__ = ["Pool", "joint_network", "make_pool"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pool:
    """A base, the heads of the tasks, and one expert per task: what a merge is tried on.

    Attributes:
        network: a name in `models.ENCODERS`: "convnet", "mlp", "colour-convnet", ….
        base: θ₀, the encoder's state dict, on the CPU.
        heads: per task, the linear head's state dict ("weight" (class, feature), "bias" (class,)); never merged.
        experts: per task, θᵢ, an encoder's state dict.
        tasks: per task, its data.
        recipe: how the experts were fine-tuned.
        seed: of everything random.
        device: where to compute with them.
        cards: of the base ("base") and of each expert, by task: ingredients, validation accuracy (%), seconds.
        trained: what this call had to train; empty when all came from the cache.
        tier: the data tier.

    Lesson: 01.
    """

    network: str
    base: dict[str, Tensor]
    heads: dict[str, dict[str, Tensor]]
    experts: dict[str, dict[str, Tensor]]
    tasks: dict[str, TaskData]
    recipe: Recipe
    seed: int
    device: torch.device
    cards: dict[str, dict[str, object]]
    trained: tuple[str, ...]
    tier: str

    def encoder(self) -> nn.Module:
        """The network to load a state dict of this pool into, in evaluation mode, on the pool's device."""
        encoder = make_encoder(self.network, self.seed)
        encoder.load_state_dict(self.base)
        return encoder.to(self.device).eval().requires_grad_(False)

    def head(self, task: str) -> nn.Linear:
        """The frozen head of one task, on the pool's device."""
        return _head(self.heads[task], self.device)

    def only(self, tasks: Iterable[str]) -> Pool:
        """The same pool with fewer tasks."""
        kept = [tasks] if isinstance(tasks, str) else list(dict.fromkeys(tasks))
        for task in kept:
            if task not in self.tasks:
                raise ApgdTeachError(f"this pool has no task '{task}'; it has: {', '.join(self.tasks)}.")
        return replace(
            self,
            heads={task: self.heads[task] for task in kept},
            experts={task: self.experts[task] for task in kept},
            tasks={task: self.tasks[task] for task in kept},
            cards={name: card for name, card in self.cards.items() if name == "base" or name in kept},
        )


def make_pool(
    network: str = "convnet",
    *,
    regime: str | Recipe = "mild",
    optimizer: str = "sgd",
    tasks: Iterable[str | Variant] | str | Variant | None = None,
    base_steps: int | Recipe = BASE.steps,
    expert_steps: int = 250,
    seed: int = 0,
    source: Source | None = None,
    device: str | torch.device = "auto",
    cache: Cache | None = None,
    progress: bool = True,
    way: Way = PLAIN,
    workers: int = 1,
) -> Pool:
    """A base and its experts, from the cache where they are there, else trained now.

    The base is trained on all families of the source under the distortions that the tasks are made of. Each task gets
    a linear head fitted on the base's features, which is then frozen. Each expert starts from the base and fine-tunes
    the encoder under its task's head. Before anything is trained again, one sentence says which ingredient changed
    since the nearest cached one, and about how long it takes. Where the cache cannot be written, that is said first
    and the pool is made all the same.

    Args:
        network: "convnet", "mlp", "small-convnet"; for colour pictures "colour-convnet", "colour-resnet", "colour-vit".
        regime: "mild" or "hot" fine-tuning, or a `Recipe` (then `optimizer` and `expert_steps` are not looked at).
        optimizer: "sgd" or "adamw", for the experts.
        tasks: their names, or variants of your own; by default all that the source has.
        base_steps, expert_steps: optimiser steps; the base may have a recipe of its own instead.
        seed: of initialisation, order of the data, and augmentation. Two seeds give two bases.
        source: of the data; the bundled tier by default.
        device: "auto", "cpu", "cuda", "mps".
        cache: where to keep trained networks; the user's own cache folder by default.
        progress: show bars and sentences.
        way: how networks are computed while they are trained; the plain one by default.
        workers: train so many experts at once, each in a process of its own (`parallel`).

    Raises:
        ApgdTeachError: an unknown name, a seed that is none, or a training that diverged (what was finished before it
            is kept). `DataError`, one of its kinds, where it is the data.

    Lesson: 01.
    """
    chosen = regime if isinstance(regime, Recipe) else recipe(regime, optimizer, expert_steps)
    place = pick_device(device)
    seed = _whole(seed)
    data_source = source or open_source("bundled")
    trainer = _Trainer(network, seed, place, cache or Cache(), progress, way, number_of_workers(workers))
    data = {task.name: task for task in map(data_source.task, _tasks(tasks, data_source))}
    how = base_steps if isinstance(base_steps, Recipe) else replace(BASE, steps=base_steps)
    base = trainer.base(how, data_source)
    base_hash = fingerprint(base.tensors)
    heads = trainer.heads(base.tensors, base_hash, data)
    experts = trainer.experts(base.tensors, base_hash, heads, data, chosen)
    # Files keep tensors in an order of their own; a reader expects the network's, from the input on.
    order = list(trainer.template.state_dict())
    return Pool(
        network=network,
        base={key: base.tensors[key] for key in order},
        heads={name: heads[name].tensors for name in data},
        experts={name: {key: experts[name].tensors[key] for key in order} for name in data},
        tasks=data,
        recipe=chosen,
        seed=seed,
        device=place,
        cards={"base": base.card, **{name: experts[name].card for name in data}},
        trained=tuple(trainer.trained),
        tier=data_source.tier,
    )


def joint_network(pool: Pool, how: Recipe, *, cache: Cache | None = None, progress: bool = True) -> Entry:
    """One network trained on all tasks of a pool at once, from the cache where it is there, else trained now.

    Args:
        pool: the base, the heads and the data; its experts are not looked at.
        how: the recipe; see `training.train_jointly`.
        cache: where to keep it; the user's own cache folder by default.
        progress: show bars and sentences.

    Returns:
        The weights and their card.

    Lesson: 07.
    """
    return _Trainer(pool.network, pool.seed, pool.device, cache or Cache(), progress).joint(pool, how)


@dataclass(frozen=True)
class _Job:
    """One network to have: from the cache, or by calling `make` with whom to tell of its steps and where to compute."""

    title: str
    ingredients: dict[str, object]
    steps: int
    make: Callable[[Tell, torch.device], Trained]


class _Trainer:
    """Fills the gaps of a cache. One instance serves one call of `make_pool`."""

    def __init__(
        self,
        network: str,
        seed: int,
        device: torch.device,
        cache: Cache,
        progress: bool,
        way: Way = PLAIN,
        workers: int = 1,
    ) -> None:
        self.network, self.seed, self.device = network, seed, device
        self.way, self.workers = way, workers
        self.cache = cache
        self.progress = wanted(progress)
        self.trained: list[str] = []
        self.keeps, self.told = True, False
        self.template = make_encoder(network, seed)

    def base(self, how: Recipe, source: Source) -> Entry:
        """The shared base."""
        data = {"tier": source.tier, "sha256": source.sha256}
        job = _Job(
            "the base",
            self._ingredients("base", self.network, recipe=asdict(how), data=data),
            how.steps,
            lambda tell, device: train_base(self.network, source, how, self.seed, device, tell, self.way),
        )
        return self._have([job])[0]

    def heads(self, base: Mapping[str, Tensor], base_hash: str, data: Mapping[str, TaskData]) -> dict[str, Entry]:
        """A head per task, fitted on the base's features."""

        def job(name: str, task: TaskData) -> _Job:
            return _Job(
                f"the head of {task.title}",
                self._ingredients("head", name, base=base_hash, data=_described(task), penalty=HEAD_PENALTY),
                1,
                lambda tell, device: fit_head(self._encoder(base, device), task, device, tell),
            )

        return dict(zip(data, self._have([job(name, task) for name, task in data.items()]), strict=True))

    def experts(
        self,
        base: Mapping[str, Tensor],
        base_hash: str,
        heads: Mapping[str, Entry],
        data: Mapping[str, TaskData],
        how: Recipe,
    ) -> dict[str, Entry]:
        """An expert per task, fine-tuned from the base under the task's frozen head."""

        def job(name: str, task: TaskData) -> _Job:
            head = heads[name].tensors
            return _Job(
                f"the expert of {task.title}",
                self._ingredients(
                    "expert",
                    name,
                    base=base_hash,
                    head=fingerprint(head),
                    data=_described(task),
                    recipe=asdict(how),
                ),
                how.steps,
                lambda tell, device: fine_tune(
                    self._encoder(base, device), _head(head, device), task, how, self.seed, device, tell, self.way
                ),
            )

        return dict(zip(data, self._have([job(name, task) for name, task in data.items()]), strict=True))

    def joint(self, pool: Pool, how: Recipe) -> Entry:
        """One network for all tasks of a pool, whatever their order."""
        names = sorted(pool.tasks)
        tasks = {name: pool.tasks[name] for name in names}
        job = _Job(
            "the joint network",
            self._ingredients(
                "joint",
                self.network,
                base=fingerprint(pool.base),
                heads={name: fingerprint(pool.heads[name]) for name in names},
                data={name: _described(task) for name, task in tasks.items()},
                recipe=asdict(how),
            ),
            how.steps,
            lambda tell, device: train_jointly(
                self._encoder(pool.base, device),
                {name: pool.head(name) for name in names},
                tasks,
                how,
                self.seed,
                device,
                tell,
                self.way,
            ),
        )
        return self._have([job])[0]

    def _ingredients(self, kind: str, name: str, **more: object) -> dict[str, object]:
        return {
            "kind": kind,
            "name": name,
            "format": FORMAT,
            "network": {
                "name": self.network,
                "tensors": {k: list(v.shape) for k, v in self.template.state_dict().items()},
            },
            "seed": self.seed,
            # The plain way has no name, so that what was cached before there were others is found.
            **({} if self.way == PLAIN or kind == "head" else {"way": str(self.way)}),
            **more,
        }

    def _encoder(self, state: Mapping[str, Tensor], device: torch.device) -> nn.Module:
        encoder = copy.deepcopy(self.template)
        encoder.load_state_dict(dict(state))
        return encoder.to(device)

    def _have(self, jobs: list[_Job]) -> list[Entry]:
        found = [self.cache.load(job.ingredients) for job in jobs]
        missing = [(job, entry) for job, entry in zip(jobs, found, strict=True) if not isinstance(entry, Entry)]
        made: Iterator[Entry] = iter(())
        if missing:
            if self.keeps:
                try:
                    self.cache.check()
                except CacheError as error:
                    self.keeps = False
                    self._cannot_keep(error)
            self._announce(missing)
            made = iter(self._make([job for job, _ in missing]))
        return [entry if isinstance(entry, Entry) else next(made) for entry in found]

    def _make(self, jobs: list[_Job]) -> list[Entry]:
        made: dict[int, Entry] = {}
        total = sum(job.steps for job in jobs)
        begun = time.perf_counter()
        with bar(total, "step", progress=self.progress) as steps, room("training"):
            for place, (network, seconds) in self._results(jobs, steps):
                job = jobs[place]
                facts = {
                    "validation_accuracy": round(network.validation_accuracy, 2),
                    "seconds": round(seconds, 3),
                    "steps": job.steps,
                    "device": self.device.type,
                }
                # Kept one by one: who stops the training half-way keeps what is finished.
                made[place] = self._keep(job, network, facts)
        self.trained.extend(f"{job.ingredients['kind']} {job.ingredients['name']}" for job in jobs)
        self._say(f"Made {_several(jobs)} in {_duration(time.perf_counter() - begun)}.")
        return [made[place] for place in range(len(jobs))]

    def _results(self, jobs: list[_Job], steps: tqdm) -> Iterator[tuple[int, tuple[Trained, float]]]:
        """What training makes and the seconds that it took, by the job's place; each when it is there."""
        if self.workers != 1 and len(jobs) > 1:
            steps.set_description(f"{_several(jobs)}, {self.workers} at a time")
            for place, result in in_processes([partial(_timed, job.make) for job in jobs], self.device, self.workers):
                # A process tells of its steps when it has made all of them.
                steps.update(jobs[place].steps)
                yield place, result
            return
        for place, job in enumerate(jobs):
            steps.set_description(job.title if len(jobs) == 1 else f"{job.title} ({place + 1} of {len(jobs)})")

            def tell(step: int, loss: float) -> None:
                if not math.isnan(loss):
                    steps.set_postfix(loss=f"{loss:.3f}", refresh=False)
                steps.update(1)

            yield place, _timed(job.make, self.device, tell)

    def _keep(self, job: _Job, network: Trained, facts: Mapping[str, object]) -> Entry:
        """What was trained, stored where the cache allows it: what took minutes is not lost to a full disk."""
        if self.keeps:
            try:
                return self.cache.store(job.ingredients, network.state, facts)
            except CacheError as error:
                self._cannot_keep(error)
        return Entry(network.state, {**facts, "ingredients": job.ingredients})

    def _cannot_keep(self, error: CacheError) -> None:
        """Said once, also to those who asked for no bars: they have it to do again. A smaller file may still fit."""
        if self.told:
            return
        self.told = True
        sentence = f"{error} Training goes on, and has to be done again in the next session."
        if self.progress:
            self._say(sentence)
        else:
            _log.warning(sentence)

    def _announce(self, missing: list[tuple[_Job, Damaged | None]]) -> None:
        """One sentence: what is made, about how long it takes, and why."""
        reasons = []
        seconds = 0.0
        for job, damaged in missing:
            nearest = self.cache.nearest(job.ingredients)
            card = nearest.card if nearest else {}
            spent, steps = card.get("seconds"), card.get("steps")
            # What took minutes on one device takes seconds on another.
            timed_here = card.get("device") == self.device.type
            if timed_here and isinstance(spent, int | float) and isinstance(steps, int) and steps > 0:
                seconds += float(spent) / steps * job.steps
            else:
                seconds += job.steps * self._step_seconds(job)
            if damaged:
                reasons.append(f"the cached file {damaged.file} is damaged: {damaged.why}")
            elif nearest is None:
                reasons.append("nothing like it is in the cache yet")
            elif nearest.differences:
                reasons.append(f"since the nearest cached one, this changed: {', '.join(nearest.differences)}")
            else:
                reasons.append("another process has just made the same")
        why = "; ".join(dict.fromkeys(reasons))
        self._say(f"Making {_several([job for job, _ in missing])}, about {_duration(seconds)} ({why}).")

    def _step_seconds(self, job: _Job) -> float:
        """Seconds of one training step, measured on a throwaway copy: the cache has nothing of this device to go by."""
        encoder = copy.deepcopy(self.template).to(self.device)
        best, batch, size = math.inf, 128, 128
        for _ in range(3):
            try:
                images = torch.zeros(size, *kind_of(self.network).shape, device=self.device)
                wait_for(self.device)
                start = time.perf_counter()
                with torch.enable_grad():
                    encoder(images).square().mean().backward()
                wait_for(self.device)
                best = min(best, (time.perf_counter() - start) * batch / size)
            except (RuntimeError, MemoryError) as error:
                if not no_room(error):
                    raise
                # A forecast may be rough; training itself says where there is no room.
                size = max(1, size // 8)
        # The optimiser, the batch and, for the base, the distortions are not in it; a head is one long step.
        return best * (20 if job.ingredients["kind"] == "head" else 1.3)

    def _say(self, sentence: str) -> None:
        _log.info(sentence)
        say(sentence, self.progress)


def _timed(
    make: Callable[[Tell, torch.device], Trained], device: torch.device, tell: Tell | None = None
) -> tuple[Trained, float]:
    """What a job makes, on the CPU, and in how many seconds."""
    start = time.perf_counter()
    network = make(tell or _untold, device)
    state = {name: tensor.detach().cpu() for name, tensor in network.state.items()}
    return replace(network, state=state), time.perf_counter() - start


def _untold(step: int, loss: float) -> None:
    """Nobody listens in another process."""


def _tasks(tasks: Iterable[str | Variant] | str | Variant | None, source: Source) -> list[Task]:
    """The tasks asked for; a single one is not taken for a list, nor its name for a list of letters."""
    if tasks is None:
        return [as_task(task) for task in source.tasks]
    if isinstance(tasks, str) or not isinstance(tasks, Iterable):
        return [as_task(tasks)]
    return [as_task(task) for task in tasks]


def _whole(seed: object) -> int:
    """A seed as a plain number, also out of NumPy: a card can hold it."""
    try:
        number = operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        number = -1
    if not 0 <= number < 2**63:
        raise ApgdTeachError(f"the seed {seed!r} is not a whole number from 0 to 2⁶³ - 1.")
    return number


def _head(state: Mapping[str, Tensor], device: torch.device) -> nn.Linear:
    # A start that is overwritten is not worth drawing from the caller's random numbers.
    head = nn.utils.skip_init(nn.Linear, state["weight"].shape[1], state["weight"].shape[0])
    head.load_state_dict(dict(state))
    return head.to(device).requires_grad_(False)


def _described(task: TaskData) -> dict[str, object]:
    """A task's data as an ingredient: where the pictures come from, which variant, how many."""
    return {
        "tier": task.tier,
        "sha256": task.sha256,
        "task": task.name,
        "transform": task.recipe,
        "images": len(task.train),
    }


def _several(jobs: list[_Job]) -> str:
    if len(jobs) == 1:
        return jobs[0].title
    return f"{len(jobs)} {jobs[0].ingredients['kind']}s"


def _duration(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "a while"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
