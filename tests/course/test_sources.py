"""A source becomes the same notebook every time, with its tags and a kernel."""

import nbformat
import pytest

from apgd_teach.course import sources
from apgd_teach.errors import CourseError

TEXT = """# %% [markdown]
# # A heading

# %% tags=["parameters"]
PROFILE = "fast"

# %% tags=["machine", "slow"]
print(1)

# %%
print(1)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("02_naive_averaging.py", "00_start_here.py", "helper.py", "1_no.py"):
        (tmp_path / name).write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(sources, "source_folder", lambda: tmp_path)
    return tmp_path


def test_sources_are_the_numbered_files_in_reading_order(folder):
    assert [path.name for path in sources.list_sources()] == ["00_start_here.py", "02_naive_averaging.py"]


@pytest.mark.parametrize("name", ["02", "2", "02_naive_averaging", "02_naive_averaging.py"])
def test_a_source_is_found_by_number_stem_and_file_name(folder, name):
    assert sources.find(name) == folder / "02_naive_averaging.py"


def test_a_source_is_found_by_path_wherever_it_lies(folder):
    assert sources.find(folder / "helper.py") == folder / "helper.py"


def test_an_unknown_name_is_refused_with_the_names_there_are(folder):
    with pytest.raises(CourseError, match=r"no notebook is called '07'.*00_start_here, 02_naive_averaging"):
        sources.find("07")


def test_two_sources_of_one_number_are_not_confused(folder):
    (folder / "02_other.py").write_text(TEXT, encoding="utf-8")
    with pytest.raises(CourseError, match="2 notebooks are called '02'"):
        sources.find("02")


def test_a_notebook_is_valid_and_keeps_its_tags(folder):
    notebook = sources.to_notebook(folder / "helper.py")
    nbformat.validate(notebook)
    assert [cell.metadata.get("tags") for cell in notebook.cells] == [None, ["parameters"], ["machine", "slow"], None]
    assert [cell.cell_type for cell in notebook.cells] == ["markdown", "code", "code", "code"]
    assert notebook.metadata.kernelspec.name == "python3"


def test_cell_ids_are_the_same_in_every_build_and_never_twice(folder):
    first, second = (sources.to_notebook(folder / "helper.py") for _ in range(2))
    ids = [cell.id for cell in first.cells]
    assert ids == [cell.id for cell in second.cells]
    assert len(set(ids)) == len(ids), "two cells with the same text need ids of their own"
    (folder / "helper.py").write_text(TEXT.replace("print(1)", "print(2)"), encoding="utf-8")
    changed = [cell.id for cell in sources.to_notebook(folder / "helper.py").cells]
    assert changed[:2] == ids[:2]
    assert changed[2] != ids[2]


def test_a_source_has_one_hash_whatever_its_line_ends(tmp_path):
    unix, windows = tmp_path / "a.py", tmp_path / "b.py"
    unix.write_bytes(TEXT.encode())
    windows.write_bytes(TEXT.replace("\n", "\r\n").encode())
    assert sources.source_hash(unix) == sources.source_hash(windows)
    windows.write_bytes(TEXT.replace("print(1)", "print(2)").encode())
    assert sources.source_hash(unix) != sources.source_hash(windows)


def test_a_damaged_notebook_is_refused_by_name(tmp_path):
    (tmp_path / "torn.ipynb").write_text('{"cells": [', encoding="utf-8")
    with pytest.raises(CourseError, match=r"torn\.ipynb is not a notebook"):
        sources.read_notebook(tmp_path / "torn.ipynb")
    (tmp_path / "list.ipynb").write_text("[]", encoding="utf-8")
    with pytest.raises(CourseError, match=r"list\.ipynb is not a notebook"):
        sources.read_notebook(tmp_path / "list.ipynb")
    (tmp_path / "latin.py").write_bytes("# %%\nx = 'é'\n".encode("latin-1"))
    with pytest.raises(CourseError, match=r"latin\.py is not a notebook"):
        sources.read_notebook(tmp_path / "latin.py")
    with pytest.raises(CourseError, match=r"no notebook at .*gone\.ipynb"):
        sources.read_notebook(tmp_path / "gone.ipynb")
