from __future__ import annotations

import os
from pathlib import Path

import pytest

from apgd_teach.files import shown, write_atomically


def test_a_file_is_written_with_the_folders_on_the_way(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "c.bin"
    write_atomically(target, b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in target.parent.iterdir()] == ["c.bin"]


def test_a_writing_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "c.bin"
    target.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(target, "text is not bytes")  # type: ignore[arg-type]
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["c.bin"]


def test_a_folder_in_the_place_of_the_file_is_left_alone(tmp_path: Path) -> None:
    target = tmp_path / "c.bin"
    target.mkdir()
    (target / "mine.txt").write_text("kept")
    with pytest.raises(OSError):  # noqa: PT011 - which kind differs between systems
        write_atomically(target, b"new")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["c.bin", "mine.txt"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_others_may_read_what_was_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "c.bin", b"new")
    assert (tmp_path / "c.bin").stat().st_mode & 0o777 == 0o644


def test_the_home_folder_is_shown_as_a_tilde(tmp_path: Path) -> None:
    assert shown(Path.home() / "course" / "cache") == os.path.join("~", "course", "cache")
    assert shown(Path(tmp_path.anchor) / "elsewhere") == os.path.join(tmp_path.anchor, "elsewhere")
