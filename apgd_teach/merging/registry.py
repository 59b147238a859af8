"""Methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from apgd_teach.errors import MergeError
from apgd_teach.merging.apgd import Apgd
from apgd_teach.merging.average import Average
from apgd_teach.merging.dare import Dare
from apgd_teach.merging.iso_c import IsoC
from apgd_teach.merging.method import Method, signature_problem
from apgd_teach.merging.published import ApgdPublished
from apgd_teach.merging.settings import number
from apgd_teach.merging.task_arithmetic import TaskArithmetic
from apgd_teach.merging.task_aware import TaskAware
from apgd_teach.merging.ties import Ties
from apgd_teach.merging.tsv_m import TsvM
from apgd_teach.merging.wudi import Wudi

__all__ = ["METHODS", "pick"]

METHODS: dict[str, type[Any]] = {
    one.name: one for one in (Average, TaskArithmetic, TaskAware, Ties, Dare, TsvM, IsoC, Wudi, Apgd, ApgdPublished)
}
"""Methods by name. A method of your own needs no entry here: pass an instance of it to `merge`."""


def pick(method: str | Method, settings: Mapping[str, object]) -> Method:
    """A method by its name and settings, or the instance that was given.

    Raises:
        MergeError: there is no such method or setting, the object is no method, it wants arguments that nobody gives,
            or its `trim` is no share.
    """
    if not isinstance(method, str):
        if settings:
            raise MergeError(
                f"settings ({', '.join(settings)}) were given beside an instance of {type(method).__name__}; "
                "put them into the instance."
            )
        if isinstance(method, type):
            raise MergeError(f"{method.__name__} is a class; give an instance of it, {method.__name__}(…).")
        if not callable(method) or not isinstance(getattr(method, "name", None), str):
            raise MergeError(
                f"a {type(method).__name__} is no method; give a name ({', '.join(METHODS)}) or an object with a "
                "`name` that can be called on task vectors of shape (task, out, in)."
            )
        if problem := signature_problem(method):
            raise MergeError(
                f"method '{method.name}' {problem}; it is called as method(task_vectors), or as "
                "method(task_vectors, layer=…) where it has an argument of that name: put what else it needs into "
                "its settings."
            )
        if (share := getattr(method, "trim", None)) is not None:
            number(method.name, "trim", share, 0, 1, above=True)
        return method
    if method not in METHODS:
        raise MergeError(f"there is no method '{method}'; use one of: {', '.join(METHODS)}.")
    known = [field.name for field in dataclasses.fields(METHODS[method])]
    for name in settings:
        if name not in known:
            raise MergeError(f"'{method}' has no setting '{name}'; it has: {', '.join(known) or 'none'}.")
    made: Method = METHODS[method](**settings)
    return made
