"""The notebooks that are committed: built from their sources in the full profile, cleaned, checked and compared."""

from __future__ import annotations

import ast
import base64
import copy
import io
import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nbformat import NotebookNode
from PIL import Image

import apgd_teach
from apgd_teach.course.header import EXERCISE_MINUTES, header, keep_times, minutes_of, peaks, times
from apgd_teach.course.prose import facts_of, fill, stale
from apgd_teach.course.publish import drop_widgets
from apgd_teach.course.routes import ROUTES
from apgd_teach.course.runner import BUDGET_S, RunResult, errors_in, profiles_in, run_notebook
from apgd_teach.course.sources import (
    KERNELSPEC,
    LANGUAGE,
    find,
    list_sources,
    notebook_text,
    notebooks_folder,
    read_notebook,
    source_hash,
    to_notebook,
)
from apgd_teach.course.student import student_version
from apgd_teach.errors import CourseError
from apgd_teach.files import write_atomically

__all__ = [
    "MAX_BYTES",
    "build",
    "build_notebooks",
    "check_built",
    "compare",
    "documents",
    "handed_out",
    "header_shown",
    "quotable",
]

MAX_BYTES = 600_000
"""The largest notebook that is committed."""

FORMAT = 1
_EMBEDDED = re.compile(r"data:image/png;base64,([A-Za-z0-9+/=\s]+)")
# A path starts where no letter, dot or slash comes before it: the "/home/" of an address is none.
_GENERIC_PATH = re.compile(
    r"(?:(?<![\w./\\-])|(?<=file://))(?:/(?:home|Users)/\w|/(?:root|tmp|private/tmp|var/folders|var/tmp)/)"
    # Two folders behind the drive, since a formula may say f:\mathbb{R}; formulas between dollars are left out anyway.
    r"|(?<!\w)[A-Za-z]:(?:\\{1,2}(?:Users|Windows|Temp)\b|(?:\\{1,2}[\w.-]+){2})"
)
_FORMULA = re.compile(r"\$[^$\n]+\$")
_ADDRESS = re.compile(r"\bat 0x[0-9a-fA-F]{6,}")
_NUMBER = re.compile(r"(?<![\w.])[-−+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?")


def build(
    source: Path,
    out: Path,
    profile: str = "full",
    *,
    budget_s: float | None = None,
    env: Mapping[str, str] | None = None,
) -> RunResult:
    """Run a source and write the notebook that is committed.

    What depends on when and where it ran is taken out: widget state, papermill's notes, timings, what was written to
    stderr (progress bars). The parameters cell shows the values that were used. Pictures get palettes.

    Args:
        source: the `.py` source.
        out: the notebook to write; nothing is written where anything fails.
        profile: "full" is what is published; `check_built` refuses any other.
        budget_s: seconds for the run; the profile's own where None.
        env: environment variables for the kernel.

    Returns:
        what the run took.

    Raises:
        CourseError: the notebook fails, holds an absolute path, or is larger than `MAX_BYTES`.
    """
    with tempfile.TemporaryDirectory(prefix="apgd-teach-") as folder:
        ran = Path(folder, f"{source.stem}.ipynb")
        # Bars and "trained in 8 s" are for whoever waits; a reader of the built notebook has nothing to wait for.
        quiet = {"TQDM_DISABLE": "1", **(env or {})}
        result = run_notebook(source, ran, profile=profile, budget_s=budget_s or BUDGET_S[profile], env=quiet)
        if not result.ok:
            raise CourseError(f"{source.name} was not built: {result.message}")
        notebook = read_notebook(ran)
    _clean(notebook, {"PROFILE": profile})
    notebook.metadata["apgd_teach"] = {"format": FORMAT, "profile": profile, "source_sha256": source_hash(source)}
    problems = _stray(notebook, out.name)
    text = notebook_text(notebook)
    problems += _too_large(notebook, out.name, len(text.encode("utf-8")))
    if problems:
        raise CourseError(f"{source.name} was not built: {' '.join(problems)}")
    write_atomically(out, text.encode())
    return result


def retell(source: Path, committed: Path) -> None:
    """Give a committed notebook the text that its source has now, where its code is the source's already.

    Nothing is run: what the code shows stays. For a corrected sentence, which need not cost a full run.

    Args:
        source: the `.py` source.
        committed: the notebook that was built from it.

    Raises:
        CourseError: there is none, or its code is another; nothing is written then.
    """
    if not committed.is_file():
        raise CourseError(f"{committed.name} is missing; build it from {source.name}.")
    notebook, wanted = read_notebook(committed), to_notebook(source)
    ran = [cell for cell in notebook.cells if cell.cell_type == "code"]
    code = [cell for cell in wanted.cells if cell.cell_type == "code"]
    values = {"PROFILE": "full"}
    same = [with_values(c.source, values) if "parameters" in c.metadata.get("tags", []) else c.source for c in code]
    if [cell.source for cell in ran] != same:
        raise CourseError(f"the code of {source.name} is not what {committed.name} has run; build it again.")
    kept = iter(ran)
    notebook.cells = [next(kept) if cell.cell_type == "code" else cell for cell in wanted.cells]
    notebook.metadata["apgd_teach"]["source_sha256"] = source_hash(source)
    write_atomically(committed, notebook_text(notebook).encode())


def _clean(notebook: NotebookNode, values: Mapping[str, object]) -> None:
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    drop_widgets(notebook)
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution", "ExecuteTime"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):  # papermill gives every cell a list of tags
            del cell.metadata["tags"]
        if cell.cell_type != "code":
            continue
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = with_values(cell.source, values)
        cell.outputs = [o for o in cell.outputs if not (o.output_type == "stream" and o.name == "stderr")]
        # papermill's own cell took one of the numbers.
        count += cell.execution_count is not None
        cell.execution_count = count if cell.execution_count is not None else None
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = cell.execution_count
            _shrink(output.get("data", {}))
    notebook.metadata.clear()
    notebook.metadata.update({"kernelspec": KERNELSPEC, "language_info": LANGUAGE})


def with_values(code: str, values: Mapping[str, object]) -> str:
    """A parameters cell with other values: each literal is replaced where it stands, comments stay."""
    # Columns of the syntax tree count bytes of UTF-8.
    lines = [line.encode("utf-8") for line in code.split("\n")]
    for statement in reversed(ast.parse(code).body):
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
            name, node = statement.targets[0].id, statement.value
        elif isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and statement.value:
            name, node = statement.target.id, statement.value
        else:
            continue
        if name not in values or node.end_lineno is None:
            continue
        value = values[name]
        literal = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)
        first, last = node.lineno - 1, node.end_lineno - 1
        joined = lines[first][: node.col_offset] + literal.encode("utf-8") + lines[last][node.end_col_offset :]
        lines[first : last + 1] = [joined]
    return b"\n".join(lines).decode("utf-8")


def _quantised(png: str) -> str:
    """A base64 PNG with a palette of 256 colours where that is smaller; a plot hardly ever has more."""
    image = Image.open(io.BytesIO(base64.b64decode(png)))
    opaque = image.convert("RGBA")
    if opaque.getchannel("A").getextrema() != (255, 255):
        return png
    kept = {"dpi": image.info["dpi"]} if "dpi" in image.info else {}
    small = opaque.convert("RGB").quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    small.save(buffer, "PNG", optimize=True, **kept)
    text = base64.b64encode(buffer.getvalue()).decode("ascii")
    return text if len(text) < len(png) else png


def _shrink(data: dict[str, Any]) -> None:
    if "image/png" in data:
        data["image/png"] = _quantised(data["image/png"].replace("\n", ""))
    if "text/html" in data:
        data["text/html"] = _EMBEDDED.sub(
            lambda found: f"data:image/png;base64,{_quantised(found[1])}", data["text/html"]
        )


def _texts(notebook: NotebookNode) -> Iterator[tuple[int, str]]:
    """Every text of a notebook with the number of its cell, pictures left out (base64 may spell anything)."""
    for number, cell in enumerate(notebook.cells, 1):
        yield number, _FORMULA.sub("", cell.source) if cell.cell_type == "markdown" else cell.source
        for output in cell.get("outputs", []):
            if output.output_type == "stream":
                yield number, output.text
            yield number, "\n".join([str(output.get("evalue", "")), *output.get("traceback", [])])
            for mime, value in output.get("data", {}).items():
                if not mime.startswith("image/") or mime == "image/svg+xml":
                    yield number, _EMBEDDED.sub("", value if isinstance(value, str) else json.dumps(value))
            yield number, json.dumps(output.get("metadata", {}), ensure_ascii=False)


def _stray(notebook: NotebookNode, name: str) -> list[str]:
    """Sentences about what belongs to one machine: absolute paths and memory addresses."""
    here = [str(Path.home()), str(Path(apgd_teach.__file__).resolve().parents[1]), tempfile.gettempdir()]
    own = [
        re.compile(r"(?:(?<![\w./\\-])|(?<=file://))" + re.escape(path) + r"(?![\w-])")
        for path in here
        if len(path) > 3
    ]
    problems = []
    for number, text in _texts(notebook):
        found = next((match for match in (pattern.search(text) for pattern in [*own, _GENERIC_PATH]) if match), None)
        if found:
            end = re.compile(r"[\s\"'<>,;)]").search(text, found.end())
            path = text[found.start() : end.start() if end else len(text)]
            problems.append(f"{name}, cell {number}: shows the absolute path '{path}'; print its name only.")
        if _ADDRESS.search(text):
            problems.append(
                f"{name}, cell {number}: shows an object's memory address ('{_ADDRESS.findall(text)[0]}'), another one "
                "in every run; give the cell's last value a name (_ = …), or show something else."
            )
    return problems


def _pictures(notebook: NotebookNode) -> list[tuple[int, str]]:
    """(cell number, base64) of every PNG, displayed or inside HTML, in order."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" in data:
                found.append((number, data["image/png"]))
            found += [(number, png) for png in _EMBEDDED.findall(data.get("text/html", ""))]
    return found


def _too_large(notebook: NotebookNode, name: str, size: int) -> list[str]:
    if size <= MAX_BYTES:
        return []
    largest = sorted(_pictures(notebook), key=lambda item: -len(item[1]))[:3]
    which = ", ".join(f"{len(png) / 1000:.0f} KB in cell {number}" for number, png in largest) or "none"
    return [
        f"{name} has {size / 1000:.0f} KB, {MAX_BYTES / 1000:.0f} KB are allowed; its largest pictures: {which}; draw "
        "them smaller or with fewer dots per inch."
    ]


def check_built(ipynb: Path, source: Path) -> list[str]:
    """One sentence for each reason why a committed notebook is not the published form of its source.

    Looks at the file only and runs nothing: is it there; was it built from this source, in the full profile; are its
    cells the source's; has every code cell run, without an error; does it hold widget state, papermill's notes,
    timings, absolute paths; is it small enough.
    """
    name, again = ipynb.name, "build it again"
    if not ipynb.is_file():
        return [f"{ipynb} is missing; build it from {source.name}."]
    notebook = read_notebook(ipynb)
    problems = []
    stamp = notebook.metadata.get("apgd_teach", {})
    if stamp.get("format") != FORMAT:
        problems.append(f"{name} was not made by this build (no stamp of format {FORMAT}); {again}.")
    if stamp.get("source_sha256") != source_hash(source):
        problems.append(f"{name} was built from another text than {source.name} has now; {again}.")
    profiles = profiles_in(notebook)
    if stamp.get("profile") != "full" or set(profiles) != {"full"}:
        used = ", ".join(sorted({str(stamp.get("profile")), *profiles}))
        problems.append(f"{name} was run in the profile '{used}'; only 'full' is published: {again} in full.")
    expected = to_notebook(source)
    for cell in expected.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = with_values(cell.source, {"PROFILE": "full"})
    if len(expected.cells) != len(notebook.cells):
        problems.append(f"{name} has {len(notebook.cells)} cells, its source {len(expected.cells)}; {again}.")
    else:
        for number, (wanted, cell) in enumerate(zip(expected.cells, notebook.cells, strict=True), 1):
            if wanted.source != cell.source or wanted.cell_type != cell.cell_type:
                problems.append(f"{name}, cell {number}: its text is not the source's; change the source, {again}.")
    if "widgets" in notebook.metadata:
        problems.append(f"{name} holds the state of widgets, which GitHub refuses to show; {again}.")
    if "papermill" in notebook.metadata or any("papermill" in cell.metadata for cell in notebook.cells):
        problems.append(f"{name} holds papermill's notes; {again}.")
    if any({"execution", "ExecuteTime"} & set(cell.metadata) for cell in notebook.cells):
        problems.append(f"{name} holds the times at which its cells ran; {again}.")
    if any("injected-parameters" in cell.metadata.get("tags", []) for cell in notebook.cells):
        problems.append(f"{name} holds papermill's own parameters cell; {again}.")
    if json.loads(ipynb.read_text(encoding="utf-8")).get("metadata", {}).get("kernelspec", {}).get("name") != "python3":
        problems.append(f"{name} names no kernel 'python3', so that JupyterLab would ask for one; {again}.")
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code" and cell.source.strip() and cell.execution_count is None:
            problems.append(f"{name}, cell {number}: was never run; {again}.")
        if any(output.output_type == "stream" and output.name == "stderr" for output in cell.get("outputs", [])):
            problems.append(f"{name}, cell {number}: holds what was written to stderr; {again}.")
    problems += [
        f"{name}, {where}: holds an error ({what}); correct the source, {again}." for where, what in errors_in(notebook)
    ]
    problems += _stray(notebook, name)
    return problems + _too_large(notebook, name, ipynb.stat().st_size)


def _value(number: str) -> float:
    return float(number.replace("−", "-"))


def _decimals(number: str) -> int:
    digits = re.split(r"[eE]", number)[0]
    return len(digits.partition(".")[2])


def _close(a: str, b: str, rel: float) -> bool:
    """Whether two numbers as printed agree: to `rel`, or to one unit of the last decimal shown."""
    if a == b:
        return True  # the beginning of a hash, 9e860…, reads as a number that is too large for one
    x, y = _value(a), _value(b)
    last = 0.0
    if "." in a and "." in b and not re.search(r"[eE]", a + b) and _decimals(a) == _decimals(b):
        # A difference far below the precision shown may still round to the next digit.
        last = 1.01 * 10.0 ** -_decimals(a)
    return abs(x - y) <= max(rel * max(abs(x), abs(y)), last)


def _compare_text(a: str, b: str, rel: float) -> str:
    """What differs between two texts, or "": words exactly, numbers within `rel`, spaces and rules not at all."""

    def words(text: str) -> str:
        return re.sub(r"[\s─]+", " ", _NUMBER.sub("#", text)).strip()

    if words(a) != words(b):
        return f"'{_excerpt(a, b)}' against '{_excerpt(b, a)}'"
    for x, y in zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True):
        if not _close(x, y, rel):
            return f"{x} against {y}"
    return ""


def _excerpt(text: str, other: str) -> str:
    """The neighbourhood of the first place where two texts differ."""
    start = next((i for i, (x, y) in enumerate(zip(text, other, strict=False)) if x != y), min(len(text), len(other)))
    return " ".join(text[max(0, start - 20) : start + 40].split())


def _pixels(png: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB"), dtype=np.int16)


def _compare_pictures(a: str, b: str, mean: float, share: float) -> str:
    x, y = _pixels(a), _pixels(b)
    if x.shape != y.shape:
        return f"a picture of {x.shape[1]}×{x.shape[0]} against one of {y.shape[1]}×{y.shape[0]}"
    difference = np.abs(x - y)
    changed = float((difference.max(axis=2) > 48).mean())
    if difference.mean() > mean or changed > share:
        return (
            f"a picture differs by {difference.mean():.2f} of 255 on average and clearly in {changed:.2%} of its pixels"
        )
    return ""


_COMPARED = ("text/plain", "text/html", "text/markdown", "text/latex")


def _outputs(cell: NotebookNode) -> tuple[list[str], list[str]]:
    """A cell's output texts, stdout joined to one, and its pictures."""
    stdout = "".join(o.text for o in cell.get("outputs", []) if o.output_type == "stream" and o.name == "stdout")
    texts, pictures = ([stdout] if stdout else []), []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            pictures.append(data["image/png"])
        for mime in _COMPARED:
            if mime in data:
                pictures += _EMBEDDED.findall(data[mime])
                texts.append(_EMBEDDED.sub("picture", data[mime]))
        alt = output.get("metadata", {}).get("image/png", {}).get("alt")
        if alt:
            texts.append(alt)
    return texts, pictures


def compare(
    built_a: Path | NotebookNode,
    built_b: Path | NotebookNode,
    rel: float = 1e-3,
    *,
    picture_mean: float = 1.0,
    picture_share: float = 0.002,
) -> list[str]:
    """One sentence for each cell in which two builds of the same source do not show the same.

    "The same" is: equal words; numbers that agree within `rel`, or within one unit of the last decimal shown;
    pictures of equal size whose decoded pixels agree to rounding. Cells tagged `machine` (times, memory, versions)
    are not compared.

    Args:
        built_a: one build.
        built_b: the other.
        rel: relative tolerance of numbers.
        picture_mean: the largest mean absolute difference of pixels, of 255.
        picture_share: the largest share of pixels in which a channel differs by more than 48 of 255.
    """
    a = read_notebook(built_a) if isinstance(built_a, Path) else built_a
    b = read_notebook(built_b) if isinstance(built_b, Path) else built_b
    if [cell.source for cell in a.cells] != [cell.source for cell in b.cells]:
        return ["the two were not built from the same source; build both again."]
    problems = []
    for number, (one, other) in enumerate(zip(a.cells, b.cells, strict=True), 1):
        if "machine" in one.metadata.get("tags", []):
            continue
        (texts_a, pictures_a), (texts_b, pictures_b) = _outputs(one), _outputs(other)
        if (len(texts_a), len(pictures_a)) != (len(texts_b), len(pictures_b)):
            problems.append(
                f"cell {number} shows {len(texts_a)} texts and {len(pictures_a)} pictures in one build, {len(texts_b)} "
                f"and {len(pictures_b)} in the other."
            )
            continue
        differences = [_compare_text(x, y, rel) for x, y in zip(texts_a, texts_b, strict=True)]
        differences += [
            _compare_pictures(x, y, picture_mean, picture_share) for x, y in zip(pictures_a, pictures_b, strict=True)
        ]
        problems += [f"cell {number} differs between the two builds: {what}." for what in differences if what]
    return problems


def build_notebooks(
    names: Sequence[str | Path] | None = None,
    check: bool = False,
    keep_seconds: bool = False,
    text: bool = False,
) -> list[str]:
    """Build committed notebooks from their sources, or check that the committed ones come out again.

    A committed notebook from the same source whose results come out the same is left as it is: its bytes change only
    where text or results do.

    Args:
        names: numbers ("02"), names or paths of sources; None for all.
        check: write nothing; build into a temporary folder and compare with what is committed.
        keep_seconds: write down how long each took, for its header; worth it with an empty cache only.
        text: run nothing, only give committed notebooks the text of their sources (`retell`).

    Returns:
        One sentence for everything that is wrong; empty where all is well. All notebooks are built before it returns.

    Raises:
        CourseError: there is no such source, or this is no clone.
    """
    sources = list_sources() if names is None else [find(name) for name in names]
    folder, problems = notebooks_folder(), []
    for source in sources:
        committed = folder / f"{source.stem}.ipynb"
        before = check_built(committed, source)
        if check:
            problems += before
        if text:
            try:
                retell(source, committed)
            except CourseError as error:
                problems.append(str(error))
                continue
            write_atomically(folder / "student" / committed.name, notebook_text(handed_out(source)).encode())
            continue
        with tempfile.TemporaryDirectory(prefix="apgd-teach-") as temporary:
            fresh = Path(temporary, committed.name)
            try:
                ran = build(source, fresh)
            except CourseError as error:
                problems.append(str(error))
                continue
            if keep_seconds:
                keep_times("full", {source.stem: ran.seconds}, {source.stem: ran.peak_mb})
            changes = [] if before else compare(committed, fresh)
            if check:
                problems += [f"{committed.name}, built again: {change}" for change in changes]
            elif before or changes:
                write_atomically(committed, notebook_text(copy.deepcopy(read_notebook(fresh))).encode())
        if committed.is_file() and not check:
            for picture in readme_pictures(committed):
                write_atomically(folder.parent / "docs" / "result.png", picture)
            write_atomically(folder / "student" / committed.name, notebook_text(handed_out(source)).encode())
    if not check:
        for source in list_sources():
            committed = folder / f"{source.stem}.ipynb"
            if committed.is_file() and header_shown(committed):
                notebook = read_notebook(committed)
                _show_header(notebook)
                write_atomically(committed, notebook_text(notebook).encode())
    if not problems:
        problems += _documents(folder, check)
    return problems


_HEADER = re.compile(r'^header\("(\d\d)"(, accelerator=True)?\)$', re.MULTILINE)


def header_shown(ipynb: Path) -> str:
    """The minutes that a built notebook shows, "" where it shows none."""
    for cell in read_notebook(ipynb).cells:
        if cell.cell_type == "code" and _HEADER.search(cell.source):
            return "".join(output.get("data", {}).get("text/markdown", "") for output in cell.outputs)
    return ""


def _show_header(notebook: NotebookNode) -> None:
    """The minutes as they are known now: how long a notebook takes is known only when it has run."""
    for cell in notebook.cells:
        number = _HEADER.search(cell.source) if cell.cell_type == "code" else None
        if number:
            said = str(header(number[1], accelerator=bool(number[2])))
            for output in cell.outputs:
                if "text/markdown" in output.get("data", {}):
                    output.data.update(dict.fromkeys(("text/markdown", "text/plain"), said))


def handed_out(source: Path) -> NotebookNode:
    """The learner's version that is committed for a source: in the profile that the source names, without outputs."""
    return student_version(to_notebook(source))


def _documents(folder: Path, check: bool) -> list[str]:
    """Bring the numbers that README and docs quote up to date, or say which of them are not."""
    known, problems = quotable(folder), []
    for path in documents(folder.parent):
        text = path.read_text(encoding="utf-8")
        filled = text if check else fill(text, known)
        if filled != text:
            write_atomically(path, filled.encode())
        problems += stale(filled, known, path.name)
    return problems


def documents(root: Path) -> list[Path]:
    """The files that may quote what notebooks have recorded."""
    return [path for path in (root / "README.md", *sorted((root / "docs").rglob("*.md"))) if path.is_file()]


def quotable(folder: Path) -> dict[str, float]:
    """Everything that may be quoted: what notebooks recorded, and how long they take.

    "time.fast.total" and the like are minutes of a machine, measured; "learner.hours" are those of a reader of 00 to 07
    with the exercises, counted from the text, "learner.depth" what is marked "in depth" on top of them, exercises
    included, and "learner.short" the minutes of the short route; "learner.07.reading", "….exercises" and "….depth" are
    those of one lesson. "peak.full.07_honest_comparison" is a notebook's memory in
    GB, "route.90.total" and the like are minutes of a workshop (`routes`).

    Args:
        folder: of the committed notebooks, with their sources in it.
    """
    known = facts_of(sorted(folder.glob("*.ipynb")))
    sources = sorted((folder / "source").glob("[0-9][0-9]_*.py"))
    lessons = {source.stem[:2]: minutes_of(to_notebook(source)) for source in sources}
    for number, one in lessons.items():
        known[f"learner.{number}.reading"], known[f"learner.{number}.exercises"] = one.reading, one.solving
        known[f"learner.{number}.depth"] = one.depth + EXERCISE_MINUTES * one.more
    asked = [one for number, one in lessons.items() if number < "08"]
    known["learner.hours"] = sum(one.reading + one.solving for one in asked) / 60
    known["learner.depth"] = sum(one.depth + EXERCISE_MINUTES * one.more for one in asked) / 60
    known["learner.short"] = sum(one.short for one in asked)
    for profile, seconds in times().items():
        known |= {f"time.{profile}.{name}": one / 60 for name, one in seconds.items()}
        known[f"time.{profile}.total"] = sum(seconds.values()) / 60
    for profile, megabytes in peaks().items():
        known |= {f"peak.{profile}.{name}": one / 1000 for name, one in megabytes.items()}
    for route in (one for one in ROUTES if set(one.stops) <= set(lessons)):
        minutes = route.minutes(folder / "source")
        known |= {f"route.{route.limit}.{stop}": one for stop, one in minutes.items()}
        known[f"route.{route.limit}.total"] = sum(minutes.values())
    return known


def readme_pictures(ipynb: Path) -> list[bytes]:
    """The pictures of the cells tagged "readme": what the README shows comes from a built notebook."""
    return [
        base64.b64decode(output.data["image/png"])
        for cell in read_notebook(ipynb).cells
        if cell.cell_type == "code" and "readme" in cell.metadata.get("tags", [])
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
