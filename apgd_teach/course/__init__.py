"""The course itself: notebooks from their sources, looked at, run, published and compared.

`sources` (text to notebook) → `lint` → `engine` and `runner` (papermill) → `publish` (pages) and `build` (the
committed notebooks). `profiles` is what the notebooks themselves import.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apgd_teach.course.build import build_notebooks
    from apgd_teach.course.publish import write_index
    from apgd_teach.course.runner import RunResult, results_table, run_course
    from apgd_teach.course.sources import list_sources

__all__ = ["RunResult", "build_notebooks", "list_sources", "results_table", "run_course", "write_index"]

_PLACES = {
    "RunResult": "runner",
    "build_notebooks": "build",
    "list_sources": "sources",
    "results_table": "runner",
    "run_course": "runner",
    "write_index": "publish",
}


def __getattr__(name: str) -> Any:
    # A notebook that imports `course.profiles` must not wait for papermill, nbconvert and jupytext to be imported.
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)
