from __future__ import annotations

import math

import numpy as np
import pytest

from apgd_teach.errors import MergeError
from apgd_teach.merging.settings import number, whole


@pytest.mark.parametrize("value", [0, 1, 0.0, -0.5, 1e308, -(10**300), np.float64(2.5)])
def test_finite_numbers_pass(value: float) -> None:
    number("apgd", "trim", value)


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, -math.inf, 10**400, True, False, None, "1", [1.0], 1j, np.array(1.0)]
)
def test_whatever_is_no_finite_number_does_not(value: object) -> None:
    with pytest.raises(MergeError, match=r"^method 'apgd' has trim = .*; give a finite number\.$"):
        number("apgd", "trim", value)


def test_the_ends_belong_to_it_unless_it_is_said_that_they_do_not() -> None:
    for value in (0, 0.5, 1):
        number("m", "s", value, 0, 1)
    number("m", "s", 0.5, 0, 1, above=True, below=True)
    for value, ends, sentence in [
        (-1e-9, {}, "of at least 0 and of at most 1"),
        (1.001, {}, "of at least 0 and of at most 1"),
        (0, {"above": True}, "above 0 and of at most 1"),
        (1, {"below": True}, "of at least 0 and below 1"),
    ]:
        with pytest.raises(MergeError) as raised:
            number("m", "s", value, 0, 1, **ends)
        assert str(raised.value) == f"method 'm' has s = {value!r}; give a number {sentence}."


def test_one_end_alone_is_named_alone() -> None:
    with pytest.raises(MergeError, match=r"give a number above 0\.$"):
        number("m", "s", 0, 0, above=True)
    with pytest.raises(MergeError, match=r"give a number of at most 2\.5\.$"):
        number("m", "s", 3, high=2.5)


def test_whole_numbers_are_ints_and_nothing_else() -> None:
    for value in (0, -3, 2**70):
        whole("m", "s", value)
    whole("m", "s", 1, 1)
    for value in (1.0, True, None, "1", math.nan):
        with pytest.raises(MergeError, match=r"^method 'm' has s = .*; give a whole number\.$"):
            whole("m", "s", value)
    with pytest.raises(MergeError, match=r"^method 'm' has s = 0; give a whole number of at least 1\.$"):
        whole("m", "s", 0, 1)
