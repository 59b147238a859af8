"""The papermill engine of the course: this interpreter, never without a time limit, no hidden widget errors."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell
from papermill.clientwrap import PapermillNotebookClient
from papermill.engines import NBClientEngine, papermill_engines
from traitlets import default

__all__ = ["ENGINE", "VISITOR", "CourseEngine", "Run"]

ENGINE = "apgd-teach"
VISITOR = "apgd-teach-visitor"
"""Id of a cell that is run after a notebook's own, and does not stay in it."""

_VISIT = """\
import sys

if "ipywidgets" in sys.modules:
    from apgd_teach.course.visit import visit

    visit()
"""

_LOG = logging.getLogger(__name__)
# What nbclient logs about a dead kernel or a time limit, the runner says in a sentence.
_LOG.addHandler(logging.NullHandler())


class _ThisInterpreter(KernelSpecManager):
    """Every kernel name means the running interpreter: a kernel that a user has registered may be another one."""

    def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
        return KernelSpec(resource_dir="", **get_kernel_dict())


class _KernelManager(AsyncKernelManager):
    @default("kernel_spec_manager")
    def _this_interpreter(self) -> KernelSpecManager:
        return _ThisInterpreter(parent=self)

    @default("shutdown_wait_time")
    def _short(self) -> float:
        # A kernel that is stopped in the middle of a cell does not answer; this is how long it is asked politely.
        return 2.0


@dataclass
class Run:
    """What the runner and the engine tell each other about one run: the limits going in, the progress coming out.

    Attributes:
        budget_s: seconds for the whole notebook, counted from `started`.
        cell_s: seconds for one cell.
        start_kernel: keyword arguments for starting the kernel process (`env`, `cwd`, `stderr`).
        started: `time.monotonic()` at the start.
        client: the client, once there is one; its kernel manager knows the process.
        cell: the cell being run, once there is one.
        cells_started: how many cells have been started.
        whole_budget: whether the limit of the last cell was the rest of the whole budget.
        on_cell: called with the position of each cell that starts.
        visited: what the visit to the notebook's widgets put out, after the last cell; see `visit.visit`.
    """

    budget_s: float
    cell_s: float
    start_kernel: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)
    client: Any = None
    cell: NotebookNode | None = None
    cells_started: int = 0
    whole_budget: bool = False
    on_cell: Callable[[int], object] | None = None
    visited: list[NotebookNode] = field(default_factory=list)

    def limit(self, cell: NotebookNode) -> float:
        """Seconds that `cell` may take: the smaller of a cell's limit and what is left of the notebook's."""
        left = self.budget_s - (time.monotonic() - self.started)
        self.whole_budget = left < self.cell_s
        # nbclient takes 0 for "no limit".
        return max(0.05, min(self.cell_s, left))

    def cell_starts(self, cell: NotebookNode, cell_index: int) -> None:
        self.cell = cell
        if cell.id == VISITOR:
            return
        self.cells_started = cell_index + 1
        if self.on_cell is not None:
            self.on_cell(cell_index)


class CourseEngine(NBClientEngine):
    """papermill's own engine with the settings that a course needs; registered under the name `ENGINE`.

    nbclient imitates the Output widget over a socket that it is already polling, and stalls at random when it does
    (https://github.com/jupyter/nbclient/issues/312). With an empty widget registry it does not: the output of
    `Output` and `interact` becomes ordinary cell output, errors included, which a run then reports.
    """

    @classmethod
    def execute_managed_notebook(cls, nb_man: Any, kernel_name: str, **kwargs: Any) -> Any:
        run: Run = kwargs["run"]
        client = PapermillNotebookClient(
            nb_man,
            kernel_name=kernel_name,
            kernel_manager_class=_KernelManager,
            timeout=60,  # the questions that belong to no cell
            timeout_func=run.limit,
            startup_timeout=60,
            on_cell_start=run.cell_starts,
            log=_LOG,
        )
        client.widget_registry = {}
        run.client = client
        visitor = new_code_cell(_VISIT, id=VISITOR, metadata={"papermill": {}})
        nb_man.nb.cells.append(visitor)
        try:
            return client.execute(**run.start_kernel)
        finally:
            nb_man.nb.cells.remove(visitor)
            run.visited = visitor.outputs


papermill_engines.register(ENGINE, CourseEngine)
