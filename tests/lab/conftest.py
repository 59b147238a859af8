"""JupyterLab and a real browser: loopback only, settings of their own, gone when the tests are."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from apgd_teach.course.sources import notebook_text, read_notebook
from apgd_teach.errors import CourseError

OWN_FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
    "IPYTHONDIR",
    "MPLCONFIGDIR",
)
# JupyterLab's own sign for "idle" is there before the kernel is, and what is run then is lost.
READY = """() => {
  const session = window.jupyterapp?.shell?.currentWidget?.sessionContext;
  return session?.isReady && session?.session?.kernel?.status === 'idle';
}"""
ALL_RAN = """() => {
  const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputArea-prompt')].map((one) => one.textContent);
  return prompts.length > 0 && prompts.every((one) => /\\[\\d+\\]/.test(one));
}"""


@dataclass
class Opened:
    """A notebook that is open in JupyterLab.

    Attributes:
        page: Playwright's.
        outside: addresses beyond this machine that were asked for.
        errors: what scripts raised.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def begin(self) -> None:
        """Run every cell, and wait for none."""
        self.page.wait_for_function(READY, timeout=60_000)
        # The promise is not returned: waiting for it has no limit.
        self.page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells'); }")

    def run_all(self) -> None:
        """Run every cell, and wait for the last."""
        self.begin()
        self.page.wait_for_function(ALL_RAN, timeout=600_000)

    def cell_errors(self) -> list[str]:
        """What error outputs say."""
        kinds = ("application/vnd.jupyter.error", "application/vnd.jupyter.stderr")
        found = [self.page.locator(f'.jp-OutputArea-output[data-mime-type="{kind}"]') for kind in kinds]
        return [text for one in found for text in one.all_inner_texts()]


@dataclass(frozen=True)
class Lab:
    """A running JupyterLab."""

    browser: Any
    folder: Path
    address: str
    token: str

    def open(self, notebook: Path, **context: Any) -> Opened:
        """Open a notebook (a source is turned into one; outputs stay) in a window of its own."""
        name = f"{notebook.stem}.ipynb"
        (self.folder / name).write_text(notebook_text(read_notebook(notebook)), encoding="utf-8")
        return self.reopen(notebook.stem, **context)

    def reopen(self, name: str, **context: Any) -> Opened:
        """Open a notebook of this folder, by its name without suffix, as it was saved last."""
        page = self.browser.new_context(viewport={"width": 1280, "height": 1000}, **context).new_page()
        opened = Opened(page)
        page.on("request", lambda one: self._note(opened, one.url))
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.goto(f"{self.address}/lab/tree/{name}.ipynb?token={self.token}&reset")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        return opened

    def saved(self, opened: Opened, name: str) -> Any:
        """What the file holds once the notebook, which has run, is saved."""
        path = self.folder / f"{name}.ipynb"
        # Its promises are not returned: waiting for them has no limit.
        opened.page.evaluate("() => { window.jupyterapp.commands.execute('docmanager:save'); }")
        for _ in range(300):
            # JupyterLab saves by itself too, and a file that it is writing is empty or half there.
            with contextlib.suppress(CourseError):
                notebook = read_notebook(path)
                if all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code"):
                    return notebook
            time.sleep(0.1)
        raise AssertionError(f"'{path}' was not saved with its results")

    def _note(self, opened: Opened, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            opened.outside.append(url)


@pytest.fixture(scope="module")
def start_lab(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Lab]]:
    """Start a JupyterLab, in a theme."""
    servers: list[subprocess.Popen] = []

    def start(theme: str = "JupyterLab Light", **environment: str) -> Lab:
        root = tmp_path_factory.mktemp("lab")
        own = {name: root / name.lower() for name in OWN_FOLDERS}
        for folder in (*own.values(), root / "notebooks"):
            folder.mkdir()
        settings = own["JUPYTERLAB_SETTINGS_DIR"] / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        news = '{"fetchNews": "false", "checkForUpdates": false}'
        (settings / "notification.jupyterlab-settings").write_text(news)
        (settings / "themes.jupyterlab-settings").write_text(f'{{"theme": "{theme}"}}')
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        token = secrets.token_hex(16)
        options = {
            "ip": "127.0.0.1",
            "port": port,
            "ServerApp.port_retries": 0,
            "IdentityProvider.token": token,
            "ServerApp.root_dir": root / "notebooks",
            "LabApp.extension_manager": "readonly",
            "LabApp.check_for_updates_class": "jupyterlab.NeverCheckForUpdate",
        }
        command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
        command += [f"--{name}={value}" for name, value in options.items()]
        with open(root / "server.log", "wb") as log:
            server = subprocess.Popen(
                command,
                env={**os.environ, **{name: str(path) for name, path in own.items()}, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        servers.append(server)
        address = f"http://127.0.0.1:{port}"
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api/status?token={token}", timeout=5).close()
                return Lab(browser, root / "notebooks", address, token)
            except OSError:
                if server.poll() is not None:
                    break
                time.sleep(0.1)
        raise AssertionError(f"JupyterLab did not start: {(root / 'server.log').read_text()[-2000:]}")

    yield start
    for server in servers:
        # Kernels too: they are of the server's session.
        if server.poll() is None:
            os.killpg(server.pid, signal.SIGTERM)
            try:
                server.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


@pytest.fixture(scope="module")
def lab(start_lab: Callable[..., Lab]) -> Lab:
    return start_lab()
