"""The whole course runs, in the fast profile, with the network blocked and nothing cached."""

import os
from pathlib import Path

import pytest

from apgd_teach.course import list_sources, run_course

BLOCK = Path(__file__).resolve().parents[1] / "network_block"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_course_runs_from_a_clone_with_the_cable_out(tmp_path):
    env = {
        "APGD_TEACH_CACHE": str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([str(BLOCK), os.environ["PYTHONPATH"]]),
    }
    results = run_course(None, tmp_path / "out", profile="fast", env=env)
    assert [result.name for result in results] == [source.stem for source in list_sources()]
    assert [result.message for result in results if not result.ok] == []
    assert {result.profile for result in results} == {"fast"}
    assert (tmp_path / "out" / "index.html").is_file()
    for result in results:
        assert (tmp_path / "out" / f"{result.name}.html").is_file()
