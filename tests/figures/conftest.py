"""The figures of the course with the tasks' real titles, drawn from numbers that are quick to make."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path as File

import pytest
from matplotlib.figure import Figure

sys.path.insert(0, str(File(__file__).parent))

from drawn import DRAWN

sys.path.pop(0)


@pytest.fixture(params=list(DRAWN))
def draw(request: pytest.FixtureRequest) -> Callable[[], Figure]:
    return DRAWN[request.param]
