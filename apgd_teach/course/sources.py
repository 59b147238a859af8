"""Where the notebooks come from: one text file per notebook, turned into a notebook by jupytext."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import jupytext
import nbformat
from nbformat import NotebookNode

import apgd_teach
from apgd_teach.errors import CourseError

__all__ = [
    "find",
    "list_sources",
    "notebook_text",
    "notebooks_folder",
    "read_notebook",
    "source_folder",
    "source_hash",
    "to_notebook",
]

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {
    "codemirror_mode": {"name": "ipython", "version": 3},
    "file_extension": ".py",
    "mimetype": "text/x-python",
    "name": "python",
    "nbconvert_exporter": "python",
    "pygments_lexer": "ipython3",
}
_NAME = re.compile(r"\d\d_\w+\.py")


def notebooks_folder() -> Path:
    """The clone's `notebooks/`, where built notebooks are committed.

    Raises:
        CourseError: this is an installed package, not a clone.
    """
    folder = Path(apgd_teach.__file__).resolve().parents[1] / "notebooks"
    if not (folder / "source").is_dir():
        raise CourseError(
            f"there is no {folder / 'source'}: built notebooks are kept in a clone of the repository; "
            "run this from a clone that is installed with 'pip install -e .'."
        )
    return folder


def source_folder() -> Path:
    """`notebooks/source` of a clone, or the copy of it that an installed package carries.

    Raises:
        CourseError: neither is there.
    """
    package = Path(apgd_teach.__file__).resolve().parent
    places = [package.parent / "notebooks" / "source", package / "course" / "source"]
    for place in places:
        if place.is_dir():
            return place
    raise CourseError(
        f"the notebooks' sources are neither in {places[0]} nor in {places[1]}; install the package "
        "again, or clone the repository."
    )


def list_sources() -> list[Path]:
    """The sources of the course in reading order: `NN_name.py`, by number."""
    return sorted(path for path in source_folder().iterdir() if _NAME.fullmatch(path.name))


def find(name: str | Path) -> Path:
    """The source called `name`: a number ("02"), a stem ("02_naive_averaging"), or a path of any source or notebook.

    Raises:
        CourseError: nothing is called so, or more than one source is.
    """
    path = Path(name)
    if path.suffix in {".py", ".ipynb"} and path.is_file():
        return path.resolve()
    wanted = path.stem if path.suffix in {".py", ".ipynb"} else str(name)
    sources = list_sources()
    hits = [source for source in sources if source.stem == wanted or source.stem.split("_")[0] == wanted.zfill(2)]
    if len(hits) != 1:
        names = ", ".join(source.stem for source in sources) or "none"
        how = "no notebook is" if not hits else f"{len(hits)} notebooks are"
        raise CourseError(f"{how} called '{name}'; the sources in {source_folder()} are: {names}.")
    return hits[0]


def source_hash(source: Path) -> str:
    """SHA-256 of a source's text, the same whether git checked it out with LF or with CRLF."""
    return hashlib.sha256(source.read_text(encoding="utf-8").encode("utf-8")).hexdigest()


def to_notebook(source: Path) -> NotebookNode:
    """The notebook that a py:percent source describes, without outputs and the same on every call.

    Args:
        source: a `.py` file; `# %%` starts a code cell, `# %% [markdown]` a text cell, and
            `# %% tags=["parameters"]` gives a cell its tags.

    Returns:
        A notebook of format 4.5 with the kernel "python3" and cell ids made from position and content, so that two
        builds differ only where their sources do.
    """
    notebook = jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent")
    for position, cell in enumerate(notebook.cells):
        key = f"{position}\0{cell.cell_type}\0{cell.source}"
        for note in ("lines_to_next_cell", "lines_to_end_of_cell_marker"):
            # What jupytext notes for writing the text back, which nobody does: the text is the source.
            cell.metadata.pop(note, None)
        cell["id"] = hashlib.sha256(key.encode("utf-8")).hexdigest()[:12]
    notebook.metadata = nbformat.from_dict({"kernelspec": KERNELSPEC, "language_info": LANGUAGE})
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    return notebook


def read_notebook(path: Path) -> NotebookNode:
    """A notebook from a source (`.py`) or from an `.ipynb`, in format 4.5 and with a kernelspec in either case.

    Raises:
        CourseError: the file is missing or is no notebook.
    """
    if not path.is_file():
        raise CourseError(f"there is no notebook at {path}; check the name.")
    try:
        if path.suffix == ".py":
            return to_notebook(path)
        notebook = nbformat.read(path, as_version=4)
    except (nbformat.reader.NotJSONError, nbformat.ValidationError, UnicodeDecodeError, AttributeError) as error:
        # AttributeError is how nbformat takes JSON that is a list or a number.
        reason = str(error).partition("\n")[0]
        raise CourseError(f"{path} is not a notebook ({reason}); build or download it again.") from error
    # papermill chooses its translator by the language, and JupyterLab asks for a kernel where no kernelspec is.
    notebook.metadata["kernelspec"] = nbformat.from_dict(KERNELSPEC)
    if notebook.nbformat_minor < 5:
        notebook = nbformat.v4.upgrade(notebook)
    return notebook


def notebook_text(notebook: NotebookNode) -> str:
    """A notebook as it is stored: sorted keys, one space of indent, a newline at the end."""
    text: str = nbformat.writes(notebook, version=4)
    return text.rstrip("\n") + "\n"
