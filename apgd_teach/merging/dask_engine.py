"""Layers computed on the workers of a Dask cluster: the same function, other machines."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from apgd_teach.errors import MergeError
from apgd_teach.merging.audit import TensorRow
from apgd_teach.merging.engine import Inputs, Made, Plans, Spread, one_layer
from apgd_teach.merging.preflight import Values

if TYPE_CHECKING:
    from apgd_teach.merging.checkpoint import Spec
    from apgd_teach.merging.stream import Remote

__all__ = ["OverDask"]


@dataclasses.dataclass(frozen=True)
class _Job:
    """What every worker needs of a merge; it is sent once.

    Attributes:
        inputs, plans: as the merge has them.
        headers, derived: for the check of values.
        threads: PyTorch's, as many as where the merge was asked for: the last digits of a sum depend on it.
    """

    inputs: Inputs
    plans: Plans
    headers: Mapping[str, Mapping[str, Spec]]
    derived: frozenset[str]
    threads: int


class OverDask:
    """An engine for `merge_files`: layers are computed by the workers of a Dask cluster.

    Workers read the files themselves, so they need this package and the same files under the same paths; what comes
    back is one merged layer at a time, and the process that asked for the merge writes it. A worker that dies is no
    harm: Dask gives its layers to another one. The result is the same to the bit where the workers have the same
    processor and the same PyTorch.

    Args:
        client: a `distributed.Client`, or the address of a scheduler ("tcp://…"), or None for a cluster of this
            machine's own that lives until the `with` block of this object ends.
        ahead: layers in work or waiting to be written, for every worker.

    Raises:
        MergeError: Dask is not installed, or there is no scheduler at that address.

    Lesson: 09.
    """

    def __init__(self, client: Any = None, *, ahead: int = 2) -> None:
        try:
            import distributed
        except ImportError:
            raise MergeError('the engine needs Dask; install it with pip install "apgd-teach[dask]".') from None
        self._made_here = not isinstance(client, distributed.Client)
        if isinstance(client, str):
            try:
                client = distributed.Client(client, timeout=10)
            except (OSError, TimeoutError, ValueError) as error:
                raise MergeError(
                    f"there is no Dask scheduler at '{client}' ({type(error).__name__}); start one."
                ) from None
        elif client is None:
            # Processes, each with one task at a time: PyTorch's own threads work within a layer.
            cluster = distributed.LocalCluster(
                n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
            )
            client = distributed.Client(cluster)
            self._cluster = cluster
        self._client, self._ahead = client, ahead

    def __enter__(self) -> OverDask:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End what this engine began: its client, and its cluster."""
        if self._made_here:
            self._client.close()
            if cluster := getattr(self, "_cluster", None):
                cluster.close()

    def __call__(self, remote: Remote) -> Spread:
        """Who computes the layers of one merge."""

        def spread(inputs: Inputs, plans: Plans, work: list[str], finish: Callable[[Made], None]) -> None:
            import distributed

            plain = dataclasses.replace(inputs, look=None)
            job = _Job(plain, plans, remote.headers, remote.derived, torch.get_num_threads())
            sent = self._client.scatter(job, broadcast=True, hash=False)
            left = list(reversed(work))
            running = distributed.as_completed([], with_results=False)
            try:
                for _ in range(self._ahead * max(1, len(self._client.scheduler_info()["workers"]))):
                    if left:
                        running.add(self._submit(sent, left.pop()))
                while not running.is_empty():
                    future = next(running)
                    packed, seen = future.result()
                    remote.absorb(seen)
                    finish([(one.tensor(), row) for one, row in packed])
                    future.release()
                    if left:
                        running.add(self._submit(sent, left.pop()))
            finally:
                self._client.cancel(list(running.futures))

        return spread

    def _submit(self, job: Any, key: str) -> Any:
        return self._client.submit(_work, job, key, pure=False, retries=2)


@dataclasses.dataclass(frozen=True)
class _Packed:
    """A tensor on its way between processes: its bytes, since NumPy has no bfloat16."""

    content: Any
    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: Tensor) -> _Packed:
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return cls(raw, tensor.dtype, tuple(tensor.shape))

    def tensor(self) -> Tensor:
        # What arrives may not be written to, and is copied by whoever wants to.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.from_numpy(self.content).view(self.dtype).reshape(self.shape)


def _work(job: _Job, key: str) -> tuple[list[tuple[_Packed, TensorRow]], Values]:
    """One layer, on a worker: the merged tensors, and what the values said on the way."""
    torch.set_num_threads(job.threads)
    values = Values(
        job.inputs.names, strict=True, headers=job.headers, decisions=job.plans.decisions, derived=job.derived
    )
    made = one_layer(key, dataclasses.replace(job.inputs, look=values.look), job.plans)
    return [(_Packed.of(tensor), row) for tensor, row in made], values
