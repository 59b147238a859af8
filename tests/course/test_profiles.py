from __future__ import annotations

from dataclasses import asdict

import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from traitlets.config import Config

from apgd_teach.course.profiles import MIME, PROFILES, use_profile
from apgd_teach.errors import CourseError


@pytest.fixture
def shell(tmp_path, monkeypatch):
    """IPython as a notebook has it, with nothing of the tester's own."""
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    settings = Config()
    settings.HistoryManager.enabled = False
    yield InteractiveShell.instance(config=settings)
    InteractiveShell.clear_instance()


@pytest.mark.parametrize(
    ("name", "note"), [("fast", "sizes for a quick look; never quote them"), ("full", "the published sizes")]
)
def test_the_profile_is_returned_and_stamped_into_the_output(shell, name: str, note: str) -> None:
    with capture_output() as captured:
        profile = use_profile(name)
    assert profile is PROFILES[name]
    assert profile.name == name
    (bundle,) = captured.outputs
    assert bundle.data == {MIME: asdict(profile), "text/plain": f"Profile: {name} ({note})."}
    assert (captured.stdout, captured.stderr) == ("", "")


@pytest.mark.parametrize("name", ["quick", "Fast", ""])
def test_an_unknown_profile_is_one_sentence_and_stamps_nothing(shell, name: str) -> None:
    with (
        capture_output() as captured,
        pytest.raises(CourseError, match=f"^there is no profile '{name}'; use one of: fast, full.$"),
    ):
        use_profile(name)
    assert captured.outputs == []


def test_no_size_of_the_fast_profile_exceeds_that_of_the_full_one() -> None:
    fast, full = asdict(PROFILES["fast"]), asdict(PROFILES["full"])
    sizes = [key for key in fast if key != "name"]
    assert all(0 < fast[key] <= full[key] for key in sizes)
    assert all(fast[key] < full[key] for key in sizes)


@pytest.mark.parametrize("name", list(PROFILES))
def test_paths_and_planes_of_every_profile_have_a_middle(name: str) -> None:
    assert PROFILES[name].path_points % 2 == 1
    assert PROFILES[name].plane_points % 2 == 1
