from __future__ import annotations

import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from apgd_teach.data import open_source
from apgd_teach.errors import DataError

GZ = "train-images-idx3-ubyte.gz"


def every_file(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file() or path.is_symlink()}


def put(web, small, prefix: str = "/") -> None:
    web.files = {f"{prefix}{name}": content for name, content in small.archives.items()}


def is_small(source, small) -> bool:
    data = source.family("digits")
    return source.tier == "full" and data.train_images.tobytes() == small.plain["train-images-idx3-ubyte"][16:]


# Downloads that go well


def test_the_full_tier_is_fetched_once_and_then_read_from_the_cache(web, small, cache) -> None:
    put(web, small)
    families = small.served_from(web.address)
    source = open_source("full", families=families, progress=False)
    assert is_small(source, small)
    assert source.note.startswith("Full data are used: all of small MNIST")
    assert every_file(cache) == set(small.plain)
    asked = len(web.asked)
    assert asked == 4
    assert is_small(open_source("full", families=families, progress=False), small)
    assert len(web.asked) == asked


def test_tasks_of_the_full_tier_say_so(web, small, cache) -> None:
    put(web, small)
    task = open_source("full", families=small.served_from(web.address), progress=False).task("digits-noisy")
    assert task.tier == "full"
    assert (len(task.train), len(task.validation), len(task.test)) == (54, 6, 20)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_connection_is_taken_up_again(web, small, cache, ranges: bool) -> None:
    put(web, small)
    web.break_after, web.ranges = 3000, ranges
    source = open_source("full", families=small.served_from(web.address), progress=False)
    assert is_small(source, small)
    assert web.asked[1] == (f"/{GZ}", "bytes=3000-")


def test_what_an_earlier_day_left_is_continued(web, small, cache) -> None:
    put(web, small)
    cache.mkdir(parents=True)
    (cache / f"{GZ}.part").write_bytes(small.archives[GZ][:5000])
    assert is_small(open_source("full", families=small.served_from(web.address), progress=False), small)
    assert web.asked[0] == (f"/{GZ}", "bytes=5000-")
    assert every_file(cache) == set(small.plain)


@pytest.mark.parametrize("extra", [-2000, 0, 500])
def test_a_wrong_part_is_thrown_away_and_fetched_anew(web, small, cache, extra: int) -> None:
    put(web, small)
    cache.mkdir(parents=True)
    (cache / f"{GZ}.part").write_bytes(b"x" * (len(small.archives[GZ]) + extra))
    assert is_small(open_source("full", families=small.served_from(web.address), progress=False), small)
    assert every_file(cache) == set(small.plain)


def test_a_part_that_is_whole_needs_no_network(small, cache) -> None:
    cache.mkdir(parents=True)
    for name, content in small.archives.items():
        (cache / f"{name}.part").write_bytes(content)
    assert is_small(open_source("full", families=small.served_from("http://127.0.0.1:9/"), progress=False), small)
    assert every_file(cache) == set(small.plain)


def test_a_damaged_file_in_the_cache_is_replaced(web, small, cache) -> None:
    put(web, small)
    small.lay_out(cache, packed=False)
    (cache / "t10k-labels-idx1-ubyte").write_bytes(b"damaged")
    assert is_small(open_source("full", families=small.served_from(web.address), progress=False), small)
    assert web.asked == [("/t10k-labels-idx1-ubyte.gz", None)]


def test_progress_is_a_bar_of_text(web, small, cache, capfd) -> None:
    put(web, small)
    open_source("full", families=small.served_from(web.address))
    shown = capfd.readouterr()
    assert GZ in shown.err
    assert "100%" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("prefix", ["/SmallMNIST/raw/", "/SmallMNIST/", "/mnist/"])
def test_a_mirror_may_hold_the_archives_in_any_of_three_folders(web, small, cache, prefix: str) -> None:
    put(web, small, prefix)
    assert is_small(open_source("full", mirror=web.address, families=small.families, progress=False), small)


def test_the_cache_of_another_machine_is_a_mirror(web, small, cache, tmp_path) -> None:
    web.files = {f"/SmallMNIST/raw/{name}": content for name, content in small.plain.items()}
    assert is_small(open_source("full", mirror=web.address, families=small.families, progress=False), small)
    assert every_file(cache) == set(small.plain)


def test_a_mirror_may_be_a_folder(small, cache, tmp_path) -> None:
    small.lay_out(tmp_path / "stick" / "SmallMNIST")
    address = (tmp_path / "stick").as_uri()
    assert is_small(open_source("full", mirror=address, families=small.families, progress=False), small)


# No network, slow network, wrong network: the bundled tier, and a note


def fell_back(source, *words: str) -> None:
    assert source.tier == "bundled"
    assert source.note.startswith("Bundled data are used instead of the full sets of small MNIST: ")
    assert source.note.endswith(".")
    assert "\n" not in source.note
    for word in words:
        assert word in source.note
    assert len(source.task("digits-upright").test) == 2000


def test_without_a_network_the_bundled_tier_is_used_and_says_so(small, cache) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source = open_source("full", families=small.served_from(f"http://127.0.0.1:{port}/"), progress=False)
    fell_back(source, "the network does not give", GZ, "refused")
    assert every_file(cache) == set()


def test_a_slow_network_is_given_up_after_the_budget_and_what_came_is_kept(web, small, cache) -> None:
    put(web, small)
    web.seconds_per_kilobyte = 0.2
    families = small.served_from(web.address)
    start = time.monotonic()
    source = open_source("full", families=families, budget_s=1.0, progress=False)
    assert time.monotonic() - start < 3
    fell_back(source, "the time budget of 1 s ended", "asking again goes on from there")
    assert every_file(cache) == {f"{GZ}.part"}
    kept = (cache / f"{GZ}.part").read_bytes()
    assert kept
    assert small.archives[GZ].startswith(kept)
    web.seconds_per_kilobyte = 0
    assert is_small(open_source("full", families=families, progress=False), small)
    assert (f"/{GZ}", f"bytes={len(kept)}-") in web.asked


def test_a_server_that_accepts_and_says_nothing_costs_no_more_than_the_budget(small, cache) -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        families = small.served_from(f"http://127.0.0.1:{mute.getsockname()[1]}/")
        start = time.monotonic()
        source = open_source("full", families=families, budget_s=0.5, progress=False)
        assert time.monotonic() - start < 2.5
    fell_back(source, "the time budget of 0.5 s ended")


def test_other_bytes_under_the_right_name_are_not_taken(web, small, cache) -> None:
    # What a hotel's log-in page does.
    web.files = {f"/{name}": b"<html>Please log in</html>" for name in small.archives}
    fell_back(open_source("full", families=small.served_from(web.address), progress=False), "another MD5")
    assert every_file(cache) == set()


def test_a_file_that_is_not_there_any_more_is_not_asked_for_thrice(web, small, cache) -> None:
    fell_back(open_source("full", families=small.served_from(web.address), progress=False), "HTTP 404")
    assert len(web.asked) == 1


# A mirror that was named and is wrong is the user's to put right


def test_a_named_mirror_without_the_files_is_one_sentence(web, small, cache) -> None:
    with pytest.raises(DataError, match=rf"The mirror '{web.address}' does not give '{GZ}' of small MNIST .*404"):
        open_source("full", mirror=web.address, families=small.families, progress=False)


def test_a_named_mirror_with_other_files_is_one_sentence(web, small, cache) -> None:
    put(web, small, "/mnist/")
    web.files[f"/mnist/{GZ}"] = small.archives["t10k-images-idx3-ubyte.gz"]
    with pytest.raises(DataError, match="another MD5"):
        open_source("full", mirror=web.address, families=small.families, progress=False)
    assert every_file(cache) == set()


def test_a_named_mirror_that_is_only_slow_is_given_up_like_any_other(web, small, cache) -> None:
    put(web, small, "/SmallMNIST/raw/")
    web.seconds_per_kilobyte = 0.2
    fell_back(open_source("full", mirror=web.address, families=small.families, budget_s=0.6, progress=False), "budget")


@pytest.mark.parametrize("mirror", ["", "mnist", "ftp://host/", "http://", "file://host/x", "http://h/?q=1"])
def test_a_mirror_that_is_no_address_is_one_sentence(small, mirror: str) -> None:
    with pytest.raises(DataError, match=r"is not an address; write it as https://host/folder/"):
        open_source("full", mirror=mirror, families=small.families)


# The disk


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_nothing_is_half_written(web, small, cache) -> None:
    put(web, small)
    cache.mkdir(parents=True)
    (cache / f"{GZ}.part").symlink_to("/dev/full")
    with pytest.raises(DataError, match=r"cannot be written \(No space left on device\); make room") as caught:
        open_source("full", families=small.served_from(web.address), progress=False)
    assert "\n" not in str(caught.value)
    assert every_file(cache) == {f"{GZ}.part"}


def test_a_folder_that_cannot_be_written_is_one_sentence_and_costs_nothing(web, small, tmp_path, monkeypatch) -> None:
    put(web, small)
    # A folder under a file can be made by nobody, the superuser included.
    (tmp_path / "file").write_bytes(b"precious")
    monkeypatch.setenv("APGD_TEACH_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot be written \(.+\); make room or give permission there, or set APGD"):
        open_source("full", families=small.served_from(web.address), progress=False)
    assert web.asked == []
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_files_of_an_old_torchvision_are_not_unpickled(small, cache) -> None:
    small.lay_out(cache, packed=False)
    (cache.parent / "processed").mkdir()
    for name in ("training.pt", "test.pt"):
        (cache.parent / "processed" / name).write_bytes(b"a pickle")
    with pytest.raises(DataError, match="is left from an old torchvision and would be read unchecked"):
        open_source("full", families=small.served_from("http://127.0.0.1:9/"), progress=False)


# A folder that was named


def test_a_folder_may_be_named_in_the_environment(small, tmp_path, monkeypatch) -> None:
    small.lay_out(tmp_path / "given" / "mnist", True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("APGD_TEACH_DATA", "given")
    source = open_source("full", families=small.families)
    assert is_small(source, small)
    assert "from a folder that was named" in source.note
    assert open_source("bundled").tier == "bundled"
    monkeypatch.setenv("APGD_TEACH_DATA", "~nobody-of-this-name/given")
    with pytest.raises(DataError, match=r"There is no folder .+given. that can be read"):
        open_source("full", families=small.families)


def test_the_home_of_nobody_is_no_folder() -> None:
    with pytest.raises(DataError, match="There is no folder '~nobody-of-this-name/x' that can be read"):
        open_source("full", folder="~nobody-of-this-name/x")


@pytest.mark.parametrize("mirror", [3, b"http://host/"])
def test_a_mirror_that_is_no_text_is_no_address(mirror: object) -> None:
    with pytest.raises(DataError, match="is not an address"):
        open_source("full", mirror=mirror)


def test_a_time_budget_that_is_no_number_is_said() -> None:
    with pytest.raises(DataError, match="The time budget is soon s; give it a number of seconds above zero"):
        open_source("full", budget_s="soon")


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("inner", ["SmallMNIST/raw", "SmallMNIST", "mnist", "."])
def test_a_named_folder_is_read_and_nothing_is_written(small, tmp_path, monkeypatch, inner: str, packed: bool) -> None:
    monkeypatch.setenv("APGD_TEACH_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "given"
    small.lay_out(folder / inner, packed)
    before = every_file(tmp_path)
    source = open_source("full", folder=folder, families=small.families)
    assert is_small(source, small)
    assert every_file(tmp_path) == before
    assert not (tmp_path / "cache").exists()
    assert str(tmp_path) not in source.note


def test_folder_mirror_and_download_give_the_same_source(web, small, cache, tmp_path) -> None:
    put(web, small)
    small.lay_out(tmp_path / "given")
    fetched = open_source("full", families=small.served_from(web.address), progress=False)
    named = open_source("full", folder=tmp_path / "given", families=small.families)
    assert fetched.sha256 == named.sha256
    ours, theirs = fetched.family("digits"), named.family("digits")
    assert np.array_equal(ours.test_images, theirs.test_images)
    assert np.array_equal(ours.train_labels, theirs.train_labels)


def test_a_folder_that_is_not_there_or_empty_is_one_sentence(small, tmp_path) -> None:
    with pytest.raises(DataError, match=r"There is no folder '.*nowhere' that can be read; name the one"):
        open_source("full", folder=tmp_path / "nowhere", families=small.families)
    with pytest.raises(DataError, match=r"holds none of small MNIST: put the four IDX files of each into"):
        open_source("full", folder=tmp_path, families=small.families)


def test_a_folder_with_one_family_gives_its_tasks_and_says_what_is_missing(small, tmp_path) -> None:
    from apgd_teach.data import FAMILIES

    small.lay_out(tmp_path)
    source = open_source("full", folder=tmp_path, families={**small.families, "fashion": FAMILIES["fashion"]})
    assert source.note == (
        "Full data are used: all of small MNIST, from a folder that was named (it does not hold Fashion-MNIST)."
    )
    assert len(source.task("digits-upright").test) == 20
    assert len(source.sha256) == 64
    with pytest.raises(DataError, match="holds no Fashion-MNIST: put its four IDX files into 'FashionMNIST' there"):
        source.task("fashion-upright")


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda content: None, r"\(or \.gz\) is missing; put the original files of small MNIST there"),
        (lambda content: content[:-100], "cut short or damaged"),
        (lambda content: b"", "not an IDX file|cut short"),
    ],
)
def test_a_folder_with_a_damaged_file_is_one_sentence(small, tmp_path, damage, sentence: str) -> None:
    folder = small.lay_out(tmp_path / "mnist")
    path = folder / "t10k-images-idx3-ubyte.gz"
    content = damage(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        open_source("full", folder=tmp_path, families=small.families)
    assert "\n" not in str(caught.value)


def test_a_folder_with_other_pictures_is_one_sentence(small, tmp_path) -> None:
    folder = small.lay_out(tmp_path / "mnist", packed=False)
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-1] + b"\x07")
    with pytest.raises(DataError, match="is not small MNIST's: it has another SHA-256"):
        open_source("full", folder=tmp_path, families=small.families)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match=r"holds 47,039 bytes where its header says 47,040"):
        open_source("full", folder=tmp_path, families=small.families)


# Questions that make no sense


def test_settings_that_contradict_each_other_are_refused(small, tmp_path) -> None:
    with pytest.raises(DataError, match="ask for tier='full' as well"):
        open_source("bundled", folder=tmp_path)
    with pytest.raises(DataError, match="name one of them"):
        open_source("full", folder=tmp_path, mirror="http://host/")
    for budget in (0, -1, float("nan")):
        with pytest.raises(DataError, match="give it a number of seconds above zero"):
            open_source("full", budget_s=budget)
