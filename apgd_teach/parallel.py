"""Jobs that do not depend on each other, in processes of their own: joblib does it, here is what a job needs there.

Why joblib and not torchrun or Accelerate: those make one training from many processes that talk to each other; experts
do not talk. joblib runs plain functions, restarts nothing that is finished, and goes over several machines without
another line here: inside `with joblib.parallel_config(backend="dask"):` its jobs run on a Dask cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from joblib import Parallel, delayed

from apgd_teach.errors import ApgdTeachError

__all__ = ["devices_for", "in_processes"]

T = TypeVar("T")

Job = Callable[[torch.device], T]
"""Computes on the device that it is given."""


def devices_for(device: torch.device, jobs: int) -> list[torch.device]:
    """A device per job: "cuda" without a number means all the GPUs of this machine, in turn; else the same for all.

    Lesson: 08.
    """
    if device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
        return [torch.device("cuda", job % torch.cuda.device_count()) for job in range(jobs)]
    return [device] * jobs


def in_processes(jobs: Sequence[Job[T]], device: torch.device, workers: int) -> Iterator[T]:
    """The results of `jobs` in their order, each as soon as it and all before it are there.

    Args:
        jobs: functions that can be pickled (with cloudpickle: local ones, too), and whose results can.
        device: see `devices_for`.
        workers: how many processes at once. They share the CPU's threads among them, so on a CPU the last digits may
            differ from those of one process, and are the same where that has one thread as well.

    Raises:
        ApgdTeachError: there is no worker; or whatever a job raised, after which none is begun.

    Lesson: 08.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ApgdTeachError(f"workers={workers!r} is no number of processes; give a whole number from 1.")
    threads = max(1, torch.get_num_threads() // workers)
    calls = [
        delayed(_alone)(job, place, threads) for job, place in zip(jobs, devices_for(device, len(jobs)), strict=True)
    ]
    yield from Parallel(n_jobs=workers, return_as="generator")(calls)


def _alone(job: Job[T], device: torch.device, threads: int) -> T:
    """One job in a process that is its own."""
    torch.set_num_threads(threads)
    return job(device)
