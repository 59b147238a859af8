from __future__ import annotations

import pytest

from apgd_teach.progress import bar, say, wanted


def shown(written: str) -> list[str]:
    """What a terminal shows in the end: a carriage return starts the line again, and letters are written over."""
    lines = []
    for line in written.split("\n"):
        seen: list[str] = []
        for part in line.split("\r"):
            seen[: len(part)] = part
        lines.append("".join(seen).rstrip())
    return lines


@pytest.fixture(autouse=True)
def _switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)


@pytest.mark.parametrize(("switch", "expected"), [(None, True), ("", True), ("0", True), ("1", False), ("true", False)])
def test_the_switch_of_tqdm_overrules_who_wants_progress(monkeypatch, switch: str | None, expected: bool) -> None:
    if switch is not None:
        monkeypatch.setenv("TQDM_DISABLE", switch)
    assert wanted(True) is expected
    assert wanted(False) is False


def test_a_finished_bar_leaves_nothing_behind(capsys) -> None:
    with bar(3, "step", "counting") as steps:
        for _ in range(3):
            steps.update(1)
    written, errors = capsys.readouterr()
    assert "counting" in written
    assert "3" in written
    assert shown(written) == [""]
    assert errors == ""


def test_a_sentence_stays_above_a_bar_that_goes(capsys) -> None:
    with bar(2, "step", "counting") as steps:
        steps.update(1)
        say("Half of it is done.")
        steps.update(1)
    assert shown(capsys.readouterr().out) == ["Half of it is done.", ""]


@pytest.mark.parametrize("switch", ["0", "1"])
def test_who_wants_no_progress_gets_neither_bars_nor_sentences(monkeypatch, capsys, switch: str) -> None:
    monkeypatch.setenv("TQDM_DISABLE", switch)
    progress = switch == "1"
    with bar(2, "step", progress=progress) as steps:
        steps.update(2)
    say("Nobody reads this.", progress)
    assert capsys.readouterr() == ("", "")
