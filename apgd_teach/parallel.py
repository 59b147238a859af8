"""Jobs that do not depend on each other, in processes of their own: joblib does it, here is what a job needs there.

Why joblib and not torchrun or Accelerate: those make one training from many processes that talk to each other; experts
do not talk. joblib runs plain functions, restarts nothing that is finished, and has other engines than processes:
inside `with joblib.parallel_config(backend="dask"):` its jobs run on a Dask cluster (not tried here). An engine of
threads gains nothing: PyTorch's random numbers belong to a process, so there one job waits for the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TypeVar

import torch
from joblib import Parallel, delayed

from apgd_teach.errors import ApgdTeachError
from apgd_teach.machine import deterministic

__all__ = ["devices_for", "in_processes", "number_of_workers"]

T = TypeVar("T")

Job = Callable[[torch.device], T]
"""Computes on the device that it is given."""

_alone_here = threading.Lock()


def number_of_workers(workers: object) -> int:
    """How many processes at once.

    Raises:
        ApgdTeachError: it is no whole number from 1.
    """
    if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
        raise ApgdTeachError(f"workers={workers!r} is no number of processes; give a whole number from 1.")
    return workers


def devices_for(device: torch.device, jobs: int) -> list[torch.device]:
    """A device per job: "cuda" without a number means all the GPUs of this machine, in turn; else the same for all.

    Lesson: 08.
    """
    if device.type == "cuda" and device.index is None and torch.cuda.device_count() > 1:
        return [torch.device("cuda", job % torch.cuda.device_count()) for job in range(jobs)]
    return [device] * jobs


def in_processes(jobs: Sequence[Job[T]], device: torch.device, workers: int) -> Iterator[tuple[int, T]]:
    """The places of `jobs` and their results, each as soon as it is there.

    Args:
        jobs: functions that can be pickled (with cloudpickle: local ones, too), and whose results can.
        device: see `devices_for`.
        workers: how many processes at once. They share the CPU's threads among them, so on a CPU the last digits may
            differ from those of one process, and are the same where that has one thread as well.

    Raises:
        ApgdTeachError: there is no worker; or whatever a job raised, after which none is begun.

    Lesson: 08.
    """
    threads = max(1, torch.get_num_threads() // number_of_workers(workers))
    strict = torch.are_deterministic_algorithms_enabled()
    calls = [
        delayed(_alone)(number, job, place, threads, strict)
        for number, (job, place) in enumerate(zip(jobs, devices_for(device, len(jobs)), strict=True))
    ]
    yield from Parallel(n_jobs=workers, return_as="generator_unordered")(calls)


def _alone(number: int, job: Job[T], device: torch.device, threads: int, strict: bool) -> tuple[int, T]:
    """One job, alone in its process: in a pool of threads the others wait."""
    with _alone_here:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with deterministic() if strict else nullcontext():
                return number, job(device)
        finally:
            torch.set_num_threads(before)
