"""A learner's desk: what they wrote stays, and a new edition reaches them."""

from pathlib import Path

import pytest

from apgd_teach.course.desk import hand_out


@pytest.fixture
def published(tmp_path: Path) -> Path:
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / "00_start.ipynb").write_text("first edition")
    (folder / "01_experts.ipynb").write_text("first edition of another")
    return folder


def lying(desk: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(desk.glob("*.ipynb"))}


def test_the_first_time_everything_is_handed_out(published: Path, tmp_path: Path) -> None:
    assert hand_out(published, tmp_path / "output" / "desk") == []
    assert lying(tmp_path / "output" / "desk") == lying(published)


def test_what_the_learner_wrote_stays(published: Path, tmp_path: Path) -> None:
    hand_out(published, tmp_path / "desk")
    (tmp_path / "desk" / "00_start.ipynb").write_text("my notes")
    assert hand_out(published, tmp_path / "desk") == []
    assert lying(tmp_path / "desk")["00_start.ipynb"] == "my notes"


def test_a_new_edition_replaces_a_copy_that_nobody_wrote_into(published: Path, tmp_path: Path) -> None:
    hand_out(published, tmp_path / "desk")
    (published / "00_start.ipynb").write_text("second edition")
    assert hand_out(published, tmp_path / "desk") == []
    assert lying(tmp_path / "desk") == lying(published)


def test_a_new_edition_is_put_beside_what_the_learner_wrote_and_said_once(published: Path, tmp_path: Path) -> None:
    hand_out(published, tmp_path / "desk")
    (tmp_path / "desk" / "00_start.ipynb").write_text("my notes")
    (published / "00_start.ipynb").write_text("second edition")
    (said,) = hand_out(published, tmp_path / "desk")
    assert said == "There is a new edition of 00_start.ipynb: yours stays, it is 00_start-new.ipynb."
    there = lying(tmp_path / "desk")
    assert (there["00_start.ipynb"], there["00_start-new.ipynb"]) == ("my notes", "second edition")
    assert hand_out(published, tmp_path / "desk") == []


@pytest.mark.parametrize("record", [None, "torn", "[]"])
def test_without_a_record_of_what_was_handed_out_nothing_is_lost(
    published: Path, tmp_path: Path, record: str | None
) -> None:
    desk = tmp_path / "desk"
    desk.mkdir()
    (desk / "00_start.ipynb").write_text("from an earlier version, or mine")
    if record is not None:
        (desk / ".handed-out.json").write_text(record)
    assert len(hand_out(published, desk)) == 1
    there = lying(desk)
    assert there["00_start.ipynb"] == "from an earlier version, or mine"
    assert there["00_start-new.ipynb"] == "first edition"


def test_a_copy_that_was_thrown_away_is_handed_out_again(published: Path, tmp_path: Path) -> None:
    hand_out(published, tmp_path / "desk")
    (tmp_path / "desk" / "01_experts.ipynb").unlink()
    hand_out(published, tmp_path / "desk")
    assert lying(tmp_path / "desk") == lying(published)
