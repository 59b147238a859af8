"""A small real family (bundled pictures), and a real web server that can be told to behave badly."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType

import pytest
from torchvision.datasets import MNIST

from apgd_teach.data.bundled import BUNDLE, read_bundled
from apgd_teach.data.families import FAMILIES, Family
from apgd_teach.data.idx import encode_idx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def make_bundle() -> ModuleType:
    """The script, imported from its file."""
    spec = importlib.util.spec_from_file_location("make_bundle", ROOT / "data_scripts" / "make_bundle.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_bundle"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A copy of the bundle, to be damaged."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for path in BUNDLE.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


@dataclass(frozen=True)
class Small:
    """A family of 60 + 20 real digits, its IDX files, and the archives as a server would hold them."""

    family: Family
    plain: dict[str, bytes]
    archives: dict[str, bytes]

    @property
    def families(self) -> dict[str, Family]:
        return {"digits": self.family}

    def lay_out(self, folder: Path, packed: bool = True) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in (self.archives if packed else self.plain).items():
            (folder / name).write_bytes(content)
        return folder

    def served_from(self, address: str) -> dict[str, Family]:
        """The same family, with a torchvision class that knows only this address."""
        dataset = type("SmallMNIST", (self.family.dataset,), {"mirrors": [address]})
        return {"digits": replace(self.family, dataset=dataset)}


@pytest.fixture(scope="session")
def small() -> Small:
    arrays, _ = read_bundled(FAMILIES["digits"])
    plain = {
        "train-images-idx3-ubyte": encode_idx(arrays["train_images"][:60]),
        "train-labels-idx1-ubyte": encode_idx(arrays["train_labels"][:60]),
        "t10k-images-idx3-ubyte": encode_idx(arrays["test_images"][:20]),
        "t10k-labels-idx1-ubyte": encode_idx(arrays["test_labels"][:20]),
    }
    archives = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in plain.items()}
    resources = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    family = replace(
        FAMILIES["digits"],
        title="small MNIST",
        dataset=type("SmallMNIST", (MNIST,), {"resources": resources, "mirrors": []}),
        content={name: hashlib.sha256(content).hexdigest() for name, content in plain.items()},
    )
    return Small(family, plain, archives)


@dataclass
class Web:
    """A server on this machine: `files` by path, and what it shall do wrong."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    break_after: int | None = None
    seconds_per_kilobyte: float = 0.0
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def web() -> Iterator[Web]:
    state = Web()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            state.asked.append((self.path, wanted))
            content = state.files.get(self.path)
            if content is None:
                self.send_error(404)
                return
            start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and state.ranges else 0
            if wanted and state.ranges and start >= len(content):
                self.send_error(416)
                return
            self.send_response(206 if wanted and state.ranges else 200)
            if wanted and state.ranges:
                self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            body = content[start:]
            if state.break_after is not None:
                # The wire is cut once: the next request is served to its end.
                body, state.break_after = body[: state.break_after], None
            for i in range(0, len(body), 1024):
                time.sleep(state.seconds_per_kilobyte)
                self.wfile.write(body[i : i + 1024])

        def handle(self) -> None:
            # A client that has had enough hangs up: that is not worth a traceback in the tests' output.
            with suppress(ConnectionError):
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.address = f"http://127.0.0.1:{server.server_port}/"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; the folder in which the small family's files end up."""
    monkeypatch.setenv("APGD_TEACH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data" / "SmallMNIST" / "raw"
