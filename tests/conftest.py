"""For every test: a cache of its own session, no window for figures, nothing taken from the tester's settings."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from typing import Any

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


# Chromium asks its maker for news at every start unless it is told not to; none of it may be mistaken for the page's.
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]


# For a module and no longer: Playwright's event loop counts as running until it is stopped, and no test beside it could
# run one of its own.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, that reaches this machine only; skipped where there is none."""
    from apgd_teach.doctor import BROWSERS

    program = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium here: set CHROMIUM to its path, or install it")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=QUIET)
        yield started
        started.close()
