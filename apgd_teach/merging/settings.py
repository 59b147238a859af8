"""A method's settings, checked when it is made and not in the middle of a merge."""

from __future__ import annotations

import math
import sys

from apgd_teach.errors import MergeError

__all__ = ["number", "whole"]


def number(
    method: str,
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: bool = False,
    below: bool = False,
) -> None:
    """Refuse a setting that is no finite number, or lies outside low ≤ value ≤ high.

    Args:
        method, name: whose setting, and which: for the sentence.
        value: what was given. True and False are no numbers.
        low, high: the ends.
        above, below: whether the lower or upper end is itself refused.

    Raises:
        MergeError: it is refused.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= sys.float_info.max:
        raise _refusal(method, name, value, "a finite number" + _bounds(low, high, above, below))
    if not low <= value <= high or (above and value == low) or (below and value == high):
        raise _refusal(method, name, value, "a number" + _bounds(low, high, above, below))


def whole(method: str, name: str, value: object, low: float = -math.inf, high: float = math.inf) -> None:
    """Refuse a setting that is no whole number, or lies outside low ≤ value ≤ high.

    Raises:
        MergeError: it is refused.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise _refusal(method, name, value, "a whole number" + _bounds(low, high, False, False))


def _refusal(method: str, name: str, value: object, wanted: str) -> MergeError:
    return MergeError(f"method '{method}' has {name} = {value!r}; give {wanted}.")


def _bounds(low: float, high: float, above: bool, below: bool) -> str:
    ends = []
    if low > -math.inf:
        ends.append(f"{'above' if above else 'of at least'} {low:g}")
    if high < math.inf:
        ends.append(f"{'below' if below else 'of at most'} {high:g}")
    return (" " + " and ".join(ends)) if ends else ""
