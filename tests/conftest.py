"""For every test: a cache of its own session, no window for figures, nothing taken from the tester's settings."""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Iterator

import pytest

# Before anything imports matplotlib, and handed down to every process that a test starts.
os.environ["MPLBACKEND"] = "Agg"
os.environ.pop("APGD_TEACH_DATA", None)
# A job that a shell started in the background ignores Ctrl-C, and so would every process that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _own_cache() -> Iterator[None]:
    """Trained networks of a test session come from that session: what lies in the tester's cache proves nothing."""
    before = os.environ.get("APGD_TEACH_CACHE")
    with tempfile.TemporaryDirectory(prefix="apgd_teach-cache-", ignore_cleanup_errors=True) as folder:
        os.environ["APGD_TEACH_CACHE"] = folder
        yield
    if before is None:
        del os.environ["APGD_TEACH_CACHE"]
    else:
        os.environ["APGD_TEACH_CACHE"] = before
