"""The changes that CONTRIBUTING.md shows, made as it says in a copy of the package, and tried."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^### (.+?)$|^```python\n# (\S+)(?:, as (.+?))?\n(.*?)^```", PAGE, flags=re.M | re.S)


def changes(title: str) -> list[tuple[str, str, str]]:
    """File, place and lines of what stands under a heading."""
    section, found = "", []
    for heading, file, place, lines in BLOCKS:
        section = heading or section
        if file and section == title:
            found.append((file, place, lines))
    assert found
    return found


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The package and its notebooks' sources, for somebody to change."""
    for name in ("apgd_teach", "notebooks/source"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def follow(copy: Path, title: str) -> None:
    lines_in_all = [line for _, _, lines in changes(title) for line in lines.splitlines() if line.strip(" #")]
    assert len(lines_in_all) < 10, title
    for file, place, lines in changes(title):
        path = copy / file
        if not place:
            assert not path.exists()
            path.write_text(lines, encoding="utf-8")
            continue
        text = path.read_text(encoding="utf-8")
        if place == "the last lines":
            path.write_text(f"{text}\n{lines}", encoding="utf-8")
            continue
        name = place.removeprefix("the last entry of ")
        begin = re.search(rf"(?m)^{name}\b.*[\[(]$", text)
        assert begin, place
        end = begin.end() + re.search(r"\n[\])]\n", text[begin.end() :]).start() + 1
        path.write_text(text[:end] + lines + text[end:], encoding="utf-8")


def python(copy: Path, *arguments: str) -> str:
    env = {**os.environ, "PYTHONPATH": str(copy), "APGD_TEACH_CACHE": str(copy / "cache")}
    done = subprocess.run([sys.executable, *arguments], cwd=copy, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_variant_is_a_task(copy: Path) -> None:
    follow(copy, "A variant of the pictures")
    said = python(
        copy,
        "-c",
        "from apgd_teach.data.tasks import TASKS\nimport torch\n"
        "image = torch.rand(2, 1, 28, 28)\n"
        "print(torch.equal(TASKS['fashion-mirrored'].variant.transform(image), image.flip(-1)))",
    )
    assert said.strip() == "True"


def test_a_method_is_a_name_for_merge_and_the_command_line(copy: Path) -> None:
    follow(copy, "A method")
    said = python(
        copy,
        "-c",
        "import torch\nfrom apgd_teach.merging import merge\n"
        "base = {'weight': torch.zeros(2, 3)}\n"
        "experts = {name: {'weight': torch.full((2, 3), one)} for name, one in (('a', 1.0), ('b', 2.0), ('c', 6.0))}\n"
        "print(merge(base, experts, 'middle').state_dict['weight'].unique().tolist())",
    )
    assert said.strip() == "[2.0]"
    assert "middle" in python(copy, "-m", "apgd_teach", "merge", "--help")


def test_an_exercise_knows_its_solution_and_its_mistake(copy: Path) -> None:
    follow(copy, "An exercise")
    said = python(
        copy,
        "-c",
        "from apgd_teach.lessons import problem\nfrom apgd_teach.lessons.engine import defined\n"
        "one = problem('00.2')\n"
        "print(one.check(defined(one.code, one.function)).state, one.check(one.wrong[0].answer).text)",
    )
    assert said.strip() == "correct this is the square of the length; take its root."


def test_a_notebook_runs(copy: Path) -> None:
    follow(copy, "A notebook")
    python(copy, "-m", "apgd_teach", "run", "--notebooks", "11")
    page = (copy / "output" / "fast" / "11_mine.html").read_text(encoding="utf-8")
    assert "11 · Mine" in page
    assert "a notebook is a text file" in page


def test_nothing_that_the_page_shows_is_left_untried() -> None:
    tried = {"A variant of the pictures", "A method", "An exercise", "A notebook"}
    section, shown = "", set()
    for heading, file, _, _ in BLOCKS:
        section = heading or section
        shown |= {section} if file else set()
    assert shown == tried
