from __future__ import annotations

import asyncio
import contextvars
import importlib
import os
import socket
import sqlite3
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from apgd_teach.data import load_task
from apgd_teach.errors import DataAccessError
from apgd_teach.guard import no_data, refuse_data
from apgd_teach.merging import merge

BASE = {"w": torch.zeros(2, 3)}
EXPERTS = {"a": {"w": torch.ones(2, 3)}}


class Asks:
    """A method that does something else before it averages."""

    name = "asks"

    def __init__(self, something: Callable[[], object]) -> None:
        self.something, self.got = something, None

    def __call__(self, task_vectors: Tensor) -> Tensor:
        self.got = self.something()
        return task_vectors.mean(dim=0)


def during_a_merge(something: Callable[[], object]) -> object:
    """What `something` gives when a method does it within a merge."""
    method = Asks(something)
    merge(BASE, EXPERTS, method)
    return method.got


def is_stopped(something: Callable[[], object], asked: str) -> None:
    with pytest.raises(
        DataAccessError, match=rf"^merge\(…, method='asks'\) asked for {asked}.*, but a merge here works"
    ):
        during_a_merge(something)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same three numbers in the formats that data come in."""
    numbers = np.ones(3, np.float32)
    np.save(tmp_path / "x.npy", numbers)
    np.savez(tmp_path / "x.npz", x=numbers)
    torch.save({"x": torch.from_numpy(numbers)}, tmp_path / "x.pt")
    save_file({"x": torch.from_numpy(numbers)}, tmp_path / "x.safetensors")
    Image.new("L", (2, 2)).save(tmp_path / "x.png")
    (tmp_path / "x.csv").write_text("1,1,1")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("inside.py", "value = 3")
    return tmp_path


# The data room


def test_a_method_cannot_load_a_task() -> None:
    is_stopped(lambda: load_task("digits-upright"), "a data source")


def test_a_method_cannot_look_at_images_that_were_loaded_before() -> None:
    test = load_task("digits-upright").test
    assert len(test.images) == len(test.labels) == 2000
    is_stopped(lambda: test.images, "the images of digits-upright, test")
    is_stopped(lambda: test.labels, "the labels of digits-upright, test")


def test_a_method_cannot_split_a_task_that_was_loaded_before() -> None:
    task = load_task("digits-upright")
    is_stopped(lambda: task.train, "the images of digits-upright, train")


# Files, connections, programs

READERS: dict[str, Callable[[Path], object]] = {
    "open": lambda files: (files / "x.csv").open(),
    "open in binary": lambda files: (files / "x.csv").open("rb"),
    "open to update": lambda files: (files / "x.csv").open("r+"),
    "open to append and read": lambda files: (files / "x.csv").open("a+"),
    "read_text": lambda files: (files / "x.csv").read_text(),
    "os.open": lambda files: os.open(files / "x.csv", os.O_RDONLY),
    "os.open for both": lambda files: os.open(files / "x.csv", os.O_RDWR),
    "a path in bytes": lambda files: open(os.fsencode(files / "x.csv")),  # noqa: SIM115
    "numpy.load": lambda files: np.load(files / "x.npy"),
    "numpy.load of an archive": lambda files: np.load(files / "x.npz"),
    "numpy.memmap": lambda files: np.memmap(files / "x.npy"),
    "numpy.fromfile": lambda files: np.fromfile(files / "x.npy"),
    "numpy.loadtxt": lambda files: np.loadtxt(files / "x.csv", delimiter=","),
    "torch.load": lambda files: torch.load(files / "x.pt"),
    "torch.load, mapped": lambda files: torch.load(files / "x.pt", mmap=True),
    "an image": lambda files: Image.open(files / "x.png"),
    "a zip archive": lambda files: zipfile.ZipFile(files / "x.zip"),
}


@pytest.mark.parametrize("how", list(READERS))
def test_a_method_cannot_read_a_file(files: Path, how: str) -> None:
    opened = READERS[how](files)  # it works outside a merge
    if isinstance(opened, int):
        os.close(opened)
    elif hasattr(opened, "close"):
        opened.close()
    is_stopped(lambda: READERS[how](files), "the file '.*x")


def test_a_method_cannot_reach_a_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
        address = server.getsockname()
        socket.create_connection(address).close()
        is_stopped(lambda: socket.create_connection(address), "a network connection")
        is_stopped(lambda: plain.sendto(b"?", address), "a network connection")
        is_stopped(lambda: socket.gethostbyname("localhost"), "a network connection")


def test_a_method_cannot_send_another_program_to_read(files: Path) -> None:
    command = [sys.executable, "-c", "pass"]
    is_stopped(lambda: subprocess.run(command, check=True), "another program")
    is_stopped(lambda: os.system("exit 0"), "another program")


def test_a_method_cannot_ask_a_database(files: Path) -> None:
    is_stopped(lambda: sqlite3.connect(files / "x.db"), "a database")
    assert during_a_merge(lambda: sqlite3.connect(":memory:").execute("select 3").fetchone()) == (3,)


# What a method may do


def test_a_method_may_write(tmp_path: Path) -> None:
    during_a_merge(lambda: (tmp_path / "log").write_text("a"))
    descriptor = during_a_merge(lambda: os.open(tmp_path / "log2", os.O_WRONLY | os.O_CREAT))
    os.close(descriptor)
    with during_a_merge(tempfile.TemporaryFile) as scratch:
        scratch.write(b"a")
    with during_a_merge(lambda: tempfile.NamedTemporaryFile(dir=tmp_path)) as scratch:
        scratch.write(b"a")
    assert (tmp_path / "log").read_text() == "a"


def test_a_method_may_compute_anything() -> None:
    matrix = torch.arange(12.0).reshape(3, 4)
    singular = during_a_merge(lambda: torch.linalg.svdvals(matrix @ torch.randn(4, 5)))
    assert singular.shape == (3,)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_method_may_import_a_module_for_the_first_time(tmp_path: Path, monkeypatch, compiled: bool) -> None:
    name = f"late_module_{compiled}"
    (tmp_path / f"{name}.py").write_text("value = 3")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    if compiled:
        importlib.import_module(name)
        del sys.modules[name]
    try:
        assert during_a_merge(lambda: importlib.import_module(name).value) == 3
    finally:
        sys.modules.pop(name, None)
    # The interpreter could put down the compiled form as well, beside a merge.
    assert list(tmp_path.rglob("*.pyc"))


def test_a_method_may_import_from_an_archive_on_the_path(files: Path, monkeypatch) -> None:
    monkeypatch.syspath_prepend(str(files / "x.zip"))
    try:
        assert during_a_merge(lambda: importlib.import_module("inside").value) == 3
    finally:
        sys.modules.pop("inside", None)


OPTIMISES = """
import torch
from apgd_teach.merging import merge

class Fits:
    name = "fits"

    def __call__(self, task_vectors):
        with torch.enable_grad():
            update = torch.zeros_like(task_vectors[0], requires_grad=True)
            adam = torch.optim.Adam([update], lr=0.1)
            for _ in range(200):
                adam.zero_grad()
                (task_vectors - update).square().sum().backward()
                adam.step()
        return update.detach()

experts = {name: {"w": torch.full((2, 3), value)} for name, value in (("a", 1.0), ("b", 2.0))}
print(merge({"w": torch.zeros(2, 3)}, experts, Fits()).state_dict["w"].mean().item())
"""


def test_a_method_may_use_an_optimiser_for_the_first_time() -> None:
    # In an interpreter of its own: the first optimiser looks up which packages are installed, in their metadata.
    ran = subprocess.run([sys.executable, "-c", OPTIMISES], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert float(ran.stdout) == pytest.approx(1.5, abs=1e-3)


def test_package_metadata_is_read_and_a_file_named_nearly_so_is_not(tmp_path: Path) -> None:
    about = tmp_path / "mine-1.0.dist-info" / "METADATA"
    about.parent.mkdir()
    about.write_text("Name: mine")
    near = tmp_path / "mine.dist-info"
    near.write_text("1,1,1")
    assert during_a_merge(about.read_text) == "Name: mine"
    is_stopped(near.read_text, "the file '.*mine.dist-info")


# Where the guard holds


def test_the_guard_ends_with_the_merge(files: Path) -> None:
    merge(BASE, EXPERTS)
    assert (files / "x.csv").read_text() == "1,1,1"
    refuse_data("anything")


@pytest.mark.parametrize("error", [DataAccessError, ZeroDivisionError, KeyboardInterrupt])
def test_the_guard_ends_with_a_merge_that_failed(files: Path, error: type[BaseException]) -> None:
    def fails() -> None:
        if error is DataAccessError:
            (files / "x.csv").read_text()
        raise error

    with pytest.raises(error):
        during_a_merge(fails)
    assert (files / "x.csv").read_text() == "1,1,1"
    refuse_data("anything")


def test_a_merge_within_a_merge_is_named_and_the_outer_one_stays_guarded(files: Path) -> None:
    def nested() -> object:
        merge(BASE, EXPERTS)
        return (files / "x.csv").read_text()

    is_stopped(nested, "the file")
    with no_data("the outer one"):
        with no_data("the inner one"), pytest.raises(DataAccessError, match=r"^the inner one asked for x"):
            refuse_data("x")
        with pytest.raises(DataAccessError, match=r"^the outer one asked for x"):
            refuse_data("x")
    refuse_data("x")


def from_a_thread(something: Callable[[], object]) -> object:
    """What `something` gives or raises in a thread of its own."""
    results: list[object] = []

    def work() -> None:
        try:
            results.append(something())
        except DataAccessError as error:
            results.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    return results[0]


def test_a_thread_that_was_handed_the_context_of_the_merge_is_guarded(files: Path) -> None:
    def in_context() -> object:
        context = contextvars.copy_context()
        return from_a_thread(lambda: context.run((files / "x.csv").read_text))

    assert isinstance(during_a_merge(in_context), DataAccessError)


def test_an_asynchronous_task_of_a_method_is_guarded(files: Path) -> None:
    # The loop is made before: on Windows making one takes a connection to itself.
    loop = asyncio.new_event_loop()

    async def read() -> str:
        return (files / "x.csv").read_text()

    try:
        is_stopped(lambda: loop.run_until_complete(read()), "the file")
    finally:
        loop.close()


INHERITED = bool(getattr(sys.flags, "thread_inherit_context", False))


def test_a_plain_thread_of_a_method_is_beyond_the_guard_where_python_hands_on_no_context(files: Path) -> None:
    # A limit that the documentation of the guard names, and no wish.
    def plain() -> object:
        return from_a_thread((files / "x.csv").read_text)

    got = during_a_merge(plain)
    assert isinstance(got, DataAccessError) if INHERITED else got == "1,1,1"


def test_a_compiled_reader_is_beyond_the_guard(files: Path) -> None:
    # A limit that the documentation of the guard names: Rust opens this file, and Python never hears of it.
    assert during_a_merge(lambda: load_file(files / "x.safetensors"))["x"].tolist() == [1.0, 1.0, 1.0]


def test_a_tensor_in_a_closure_and_an_open_file_are_beyond_the_guard(files: Path) -> None:
    images = load_task("digits-upright").test.images
    assert during_a_merge(lambda: images.mean()).item() > 0
    with (files / "x.csv").open() as opened:
        assert during_a_merge(opened.read) == "1,1,1"


def test_other_threads_read_on_while_a_merge_runs(files: Path) -> None:
    running, done = threading.Event(), threading.Event()

    def elsewhere() -> tuple[str, int]:
        assert running.wait(10)
        try:
            return (files / "x.csv").read_text(), len(load_task("digits-upright").test.images)
        finally:
            done.set()

    def wait() -> bool:
        running.set()
        return done.wait(60)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(elsewhere)
        assert during_a_merge(wait) is True
        assert other.result() == ("1,1,1", 2000)


def test_two_merges_at_once_do_not_end_each_others_guard(files: Path) -> None:
    first_inside, second_over = threading.Event(), threading.Event()

    def first() -> object:
        first_inside.set()
        assert second_over.wait(10)
        return (files / "x.csv").read_text()

    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(during_a_merge, first)
        assert first_inside.wait(10)
        merge(BASE, EXPERTS)
        second_over.set()
        assert isinstance(slow.exception(timeout=10), DataAccessError)
