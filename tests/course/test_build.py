"""What is committed comes from its source, in the full profile, clean, small, and comes out again."""

import base64
import copy
import io
import json
import shutil

import nbformat
import numpy as np
import pytest
from PIL import Image, ImageDraw

from apgd_teach.course import build as building
from apgd_teach.course.build import build, build_notebooks, check_built, compare, retell, with_values
from apgd_teach.course.sources import notebook_text, read_notebook
from apgd_teach.errors import CourseError
from apgd_teach.files import write_atomically


@pytest.fixture(scope="module")
def built_once(tmp_path_factory):
    from pathlib import Path

    folder = tmp_path_factory.mktemp("built")
    source = shutil.copy(Path(__file__).parent / "fixtures" / "good.py", folder / "good.py")
    build(Path(source), folder / "good.ipynb")
    return folder


@pytest.fixture
def built(built_once, tmp_path):
    """A copy of one built notebook and its source, for a test to spoil: (ipynb, source)."""
    for name in ("good.py", "good.ipynb"):
        shutil.copy(built_once / name, tmp_path / name)
    return tmp_path / "good.ipynb", tmp_path / "good.py"


def change(path, how):
    notebook = read_notebook(path)
    how(notebook)
    write_atomically(path, notebook_text(notebook).encode())


def test_a_built_notebook_is_what_is_published(built):
    assert check_built(*built) == []


def test_a_corrected_sentence_needs_no_run(built):
    ipynb, source = built
    before = read_notebook(ipynb)
    text = source.read_text(encoding="utf-8")
    source.write_text(text.replace("# %% [markdown]\n# ", "# %% [markdown]\n# Better: ", 1), encoding="utf-8")
    assert check_built(ipynb, source) != []
    retell(source, ipynb)
    assert check_built(ipynb, source) == []
    after = read_notebook(ipynb)
    assert "Better: " in after.cells[0].source
    outputs = [[cell.outputs for cell in one.cells if cell.cell_type == "code"] for one in (before, after)]
    assert outputs[0] == outputs[1]


def test_changed_code_needs_one(built):
    ipynb, source = built
    before = ipynb.read_bytes()
    source.write_text(source.read_text(encoding="utf-8") + "\n# %%\n1 + 1\n", encoding="utf-8")
    with pytest.raises(CourseError, match=r"the code of good\.py is not what good\.ipynb has run; build it again"):
        retell(source, ipynb)
    assert ipynb.read_bytes() == before


def test_a_built_notebook_holds_nothing_of_when_and_where_it_ran(built):
    ipynb, _ = built
    text = ipynb.read_bytes().decode("utf-8")
    stored = json.loads(text)
    assert text.endswith("}\n")
    assert "\r" not in text
    assert set(stored["metadata"]) == {"apgd_teach", "kernelspec", "language_info"}
    assert stored["metadata"]["apgd_teach"]["profile"] == "full"
    assert "version" not in stored["metadata"]["language_info"]
    assert "papermill" not in text
    assert "a progress bar" not in text.replace('print(\\"a progress bar\\"', "")
    tags = [cell["metadata"] for cell in stored["cells"] if cell["metadata"]]
    assert tags == [{"tags": ["parameters"]}, {"tags": ["machine"]}]
    assert [cell["execution_count"] for cell in stored["cells"] if cell["cell_type"] == "code"] == [1, 2, 3, 4, 5, 6, 7]


def test_widgets_leave_their_picture_or_their_text(source, tmp_path):
    build(source("page"), tmp_path / "page.ipynb", profile="fast")
    text = (tmp_path / "page.ipynb").read_text(encoding="utf-8")
    assert "the panel at slope 2" in text
    assert "IntSlider(value=0" in text
    assert "widget-view" not in text
    assert "widget-state" not in text


def test_the_parameters_cell_shows_what_ran(built):
    cell = read_notebook(built[0]).cells[1]
    assert cell.source == 'PROFILE = "full"  # "full" is what is published\nSCALE: float = 0.25'


def test_values_are_replaced_where_they_stand():
    code = "A = 1  # λ = 1 (not é)\nB: str = 'x'\nC = [\n    1,\n    2,\n]  # a list\nD = None"
    wanted = 'A = 2.5  # λ = 1 (not é)\nB: str = "é"\nC = True  # a list\nD = None'
    assert with_values(code, {"A": 2.5, "B": "é", "C": True}) == wanted


def test_a_changed_source_is_noticed(built):
    ipynb, source = built
    source.write_text(source.read_text(encoding="utf-8").replace("1000.5", "1000.75"), encoding="utf-8")
    sentences = check_built(ipynb, source)
    assert any("was built from another text than good.py has now" in sentence for sentence in sentences)
    assert any("good.ipynb, cell 4: its text is not the source's" in sentence for sentence in sentences)


def test_a_changed_cell_is_noticed_though_the_hash_is_right(built):
    change(built[0], lambda notebook: notebook.cells[0].update(source="# Another heading"))
    assert check_built(*built) == [
        "good.ipynb, cell 1: its text is not the source's; change the source, build it again."
    ]


def test_a_fast_profile_is_never_published(built):
    ipynb, source = built
    build(source, ipynb, profile="fast")
    (first, *_) = check_built(ipynb, source)
    assert "was run in the profile 'fast'; only 'full' is published" in first
    # A stamp that was put right by hand does not help: the output tells.
    change(ipynb, lambda notebook: notebook.metadata["apgd_teach"].update(profile="full"))
    assert any("profile 'fast, full'" in sentence for sentence in check_built(ipynb, source))


def spoil(kind):
    def how(notebook):
        cell = notebook.cells[3]
        if kind == "widgets":
            notebook.metadata["widgets"] = {}
        elif kind == "papermill":
            cell.metadata["papermill"] = {"duration": 1.0}
        elif kind == "timing":
            cell.metadata["execution"] = {"iopub.status.busy": "2024-01-01T00:00:00Z"}
        elif kind == "stderr":
            cell.outputs.append(nbformat.v4.new_output("stream", name="stderr", text="0%|"))
        elif kind == "error":
            cell.outputs.append(nbformat.v4.new_output("error", ename="ValueError", evalue="no", traceback=[]))
        elif kind == "unrun":
            cell.execution_count = None
        elif kind == "stamp":
            del notebook.metadata["apgd_teach"]
        else:
            cell.outputs.append(nbformat.v4.new_output("stream", name="stdout", text=kind))

    return how


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("widgets", "holds the state of widgets"),
        ("papermill", "holds papermill's notes"),
        ("timing", "holds the times at which its cells ran"),
        ("stderr", "cell 4: holds what was written to stderr"),
        ("error", "cell 4: holds an error (ValueError: no)"),
        ("unrun", "cell 4: was never run"),
        ("stamp", "was not made by this build"),
        ("saved in /home/ada/cache", "shows the absolute path '/home/ada/cache'"),
        ("saved in '/Users/ada/x'", "shows the absolute path '/Users/ada/x'"),
        ("file:///tmp/x.png", "shows the absolute path '/tmp/x.png'"),
        ("D:\\work\\cache", "shows the absolute path 'D:\\work\\cache'"),
        ("C:\\Users\\ada", "shows the absolute path 'C:\\Users\\ada'"),
        ("<Line2D object at 0x7f3a5c1d2e80>", "memory address ('at 0x7f3a5c1d2e80')"),
    ],
)
def test_what_does_not_belong_in_a_published_notebook_is_named(built, kind, sentence):
    change(built[0], spoil(kind))
    assert any(sentence in found for found in check_built(*built))


@pytest.mark.parametrize(
    "text", ["https://example.org/home/ada/tmp/x", "a/tmp/b", "either/or", "ratio C:D", "1/2", "f:\\mathbb{R}"]
)
def test_an_address_or_a_relative_path_is_no_absolute_path(built, text):
    change(built[0], spoil(text))
    assert check_built(*built) == []


def test_a_missing_notebook_is_named(built):
    ipynb, source = built
    ipynb.unlink()
    assert check_built(ipynb, source) == [f"{ipynb} is missing; build it from good.py."]


def test_a_notebook_that_fails_or_shows_a_path_is_not_built(source, tmp_path):
    with pytest.raises(CourseError, match=r"raises\.py was not built: raises, cell 3: raised ValueError"):
        build(source("raises"), tmp_path / "raises.ipynb")
    shows = tmp_path / "shows.py"
    shows.write_text(
        source("no_profile")
        .read_text()
        .replace('"my profile"', "use_profile(PROFILE), __import__('os').getcwd()")
        .replace("print(", "from apgd_teach.course.profiles import use_profile\nprint(")
    )
    with pytest.raises(CourseError, match=r"shows\.ipynb, cell 2: shows the absolute path"):
        build(shows, tmp_path / "shows.ipynb")
    assert not list(tmp_path.glob("*.ipynb"))


NOISE = """# %% tags=["parameters"]
PROFILE = "fast"

# %%
import io

import numpy as np
from IPython.display import Image, display
from PIL import Image as Picture

from apgd_teach.course.profiles import use_profile

use_profile(PROFILE)

# %%
for side in (100, 800):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Picture.fromarray(pixels).save(buffer, "PNG")
    display(Image(buffer.getvalue(), format="png"))
"""


def test_a_notebook_that_is_too_large_is_not_built_and_its_pictures_are_named(tmp_path):
    source = tmp_path / "noise.py"
    source.write_text(NOISE, encoding="utf-8")
    with pytest.raises(
        CourseError, match=r"600 KB are allowed; its largest pictures: \d{3} KB in cell 3, \d+ KB in cell 3"
    ):
        build(source, tmp_path / "noise.ipynb")


def test_pictures_get_a_palette_and_look_the_same():
    picture = Image.new("RGB", (400, 300), "white")
    ImageDraw.Draw(picture).line((0, 0, 400, 300), fill=(31, 119, 180), width=5)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", compress_level=0, dpi=(100, 100))
    png = base64.b64encode(buffer.getvalue()).decode()
    small = building._quantised(png)
    assert len(small) < len(png) / 10
    after = Image.open(io.BytesIO(base64.b64decode(small)))
    assert after.mode == "P"
    assert np.array_equal(np.asarray(after.convert("RGB")), np.asarray(picture))


def test_a_see_through_picture_is_left_as_it_is():
    buffer = io.BytesIO()
    Image.new("RGBA", (50, 50), (255, 0, 0, 128)).save(buffer, "PNG", compress_level=0)
    png = base64.b64encode(buffer.getvalue()).decode()
    assert building._quantised(png) == png


def output_with(notebook, wanted):
    return next(o for cell in notebook.cells for o in cell.get("outputs", []) if wanted(o))


def test_two_builds_of_one_source_agree_though_the_machine_cell_differs(built, tmp_path):
    ipynb, source = built
    build(source, tmp_path / "again.ipynb")
    assert compare(ipynb, tmp_path / "again.ipynb") == []
    a, b = read_notebook(ipynb), read_notebook(tmp_path / "again.ipynb")
    assert (
        output_with(a, lambda o: "run number" in o.get("text", "")).text
        != output_with(b, lambda o: "run number" in o.get("text", "")).text
    )
    # Nothing but that cell differs, to the byte.
    for notebook in (a, b):
        notebook.cells = [cell for cell in notebook.cells if "machine" not in cell.metadata.get("tags", [])]
    assert notebook_text(a) == notebook_text(b)


def changed(ipynb, how):
    a = read_notebook(ipynb)
    b = copy.deepcopy(a)
    how(b)
    return compare(a, b)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("250.125", "250.625"),
        ("250.125", "-250.125"),
        ("the answer", "an answer"),
        ("250.125", "250.125 1"),
        ("250.125", "nan"),
    ],
)
def test_a_changed_number_or_word_is_noticed(built, before, after):
    def how(notebook):
        output = output_with(notebook, lambda o: before in o.get("text", ""))
        output.text = output.text.replace(before, after)

    (sentence,) = changed(built[0], how)
    assert sentence.startswith("cell 4 differs between the two builds")


def test_a_changed_result_is_noticed(built):
    def how(notebook):
        output_with(notebook, lambda o: o.output_type == "execute_result").data["text/plain"] = "43"

    assert changed(built[0], how) == ["cell 8 differs between the two builds: 42 against 43."]


def test_a_number_that_differs_by_rounding_is_not_noticed(built):
    def how(notebook):
        output = output_with(notebook, lambda o: "250.125" in o.get("text", ""))
        output.text = output.text.replace("250.125", "250.126")

    assert changed(built[0], how) == []


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("87.3 %", "87.4 %", True),
        ("87.3 %", "87.5 %", False),
        ("8 experts", "9 experts", False),
        ("1000000 steps", "1000001 steps", True),
        ("−1.0", "1.0", False),
        ("1.00e-05", "1.01e-05", False),
        ("a  9.9 ", "a 9.9", True),
        ("<td>1.5</td>", "<td>1.7</td>", False),
        ("conv1", "conv2", False),
        ("9e860a4af23d", "9e860a4af23d", True),
        ("9e860a4af23d", "9e861a4af23d", False),
    ],
)
def test_numbers_agree_within_what_is_shown(a, b, same):
    assert (building._compare_text(a, b, 1e-3) == "") is same


def redraw(size=(320, 200), line=(10, 190, 310, 10), fill="navy", shade=0):
    picture = Image.new("RGB", size, (255 - shade,) * 3)
    ImageDraw.Draw(picture).line(line, fill=fill, width=3)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.mark.parametrize(
    ("picture", "noticed"),
    [
        ({}, False),
        ({"shade": 1}, False),
        ({"line": (10, 185, 310, 10)}, True),
        ({"fill": "crimson"}, True),
        ({"fill": (0, 0, 200)}, True),
        ({"size": (320, 201)}, True),
        ({"shade": 3}, True),
    ],
)
def test_a_changed_picture_is_noticed_and_rounding_is_not(built, picture, noticed):
    def how(notebook):
        output_with(notebook, lambda o: "image/png" in o.get("data", {})).data["image/png"] = redraw(**picture)

    sentences = changed(built[0], how)
    assert bool(sentences) is noticed, sentences
    assert all(sentence.startswith("cell 5 differs") and "picture" in sentence for sentence in sentences)


def test_a_picture_that_is_gone_and_an_alt_text_that_changed_are_noticed(built):
    def gone(notebook):
        cell = next(
            cell for cell in notebook.cells if any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        )
        cell.outputs = []

    def told_otherwise(notebook):
        output_with(notebook, lambda o: "image/png" in o.get("data", {})).metadata["image/png"]["alt"] = (
            "a line that falls"
        )

    assert "cell 5 shows" in changed(built[0], gone)[0]
    assert "'a line that rises' against 'a line that falls'" in changed(built[0], told_otherwise)[0]


@pytest.fixture
def clone(built, monkeypatch):
    """A folder laid out as the clone's notebooks/, with one source."""
    ipynb, source = built
    folder = ipynb.parent / "notebooks"
    (folder / "source").mkdir(parents=True)
    place = shutil.copy(source, folder / "source" / "05_good.py")
    monkeypatch.setattr(building, "notebooks_folder", lambda: folder)
    monkeypatch.setattr(building, "list_sources", lambda: [place])
    return folder


def test_building_writes_what_changed_only_and_checking_writes_nothing(clone):
    committed = clone / "05_good.ipynb"
    assert any("is missing" in sentence for sentence in build_notebooks(check=True))
    assert not committed.exists()

    assert build_notebooks() == []
    first = committed.read_bytes()
    assert build_notebooks() == []
    assert committed.read_bytes() == first, "the machine's cell alone is no reason to change a committed notebook"
    assert build_notebooks(check=True) == []
    learners = (clone / "student" / committed.name).read_text(encoding="utf-8")
    assert "250.125" not in learners
    assert "SCALE * 1000.5" in learners
    (clone.parent / "README.md").write_text("It took <!-- =09.nothing -->7<!-- = --> s.", encoding="utf-8")
    assert build_notebooks() == [
        "README.md quotes '09.nothing', which no notebook records: take it out, or record it (say)."
    ]
    (clone.parent / "README.md").unlink()

    change(
        committed,
        lambda notebook: output_with(notebook, lambda o: "250.125" in o.get("text", "")).update(
            text="the answer is 7\n"
        ),
    )
    (sentence,) = build_notebooks(check=True)
    assert sentence.startswith("05_good.ipynb, built again: cell 4 differs")
    assert build_notebooks() == []
    assert "250.125" in committed.read_text(encoding="utf-8")
