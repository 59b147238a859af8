"""Run notebooks as web pages that open without a network, and an index of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbconvert.exporters import HTMLExporter
from nbformat import NotebookNode

from apgd_teach.course.mathml import markdown_to_html
from apgd_teach.course.sources import read_notebook
from apgd_teach.files import write_atomically

if TYPE_CHECKING:
    from apgd_teach.course.runner import RunResult

__all__ = ["WIDGET_VIEW", "alt_text", "claim", "drop_widgets", "heading", "to_html", "write_index"]

WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"
_STAMPS = {
    "fast": "fast: sizes for a quick look; never quote them",
    "full": "full: the published sizes",
    "": "no profile recorded",
}


def heading(notebook: NotebookNode) -> str:
    """The notebook's first heading as plain text, formulas too; "" where there is none."""
    for cell in notebook.cells:
        found = re.search(r"^#{1,6}\s+(.+?)\s*#*$", cell.source, re.M) if cell.cell_type == "markdown" else None
        if found:
            return unescape(re.sub(r"<[^>]+>", "", markdown_to_html(found[1]))).strip()
    return ""


def claim(notebook: NotebookNode) -> str:
    """What the notebook sets out to show, as Markdown.

    The first paragraph with "will have shown" in it or "Claim" at its start; else the first paragraph of text.
    """
    text = "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text)]
    prose = [part for part in paragraphs if part and not re.match(r"[#<`|!>\-]", part)]
    marked = (part for part in prose if "will have shown" in part or re.match(r"\W*claim\b", part, re.I))
    return next(marked, prose[0] if prose else "")


def drop_widgets(notebook: NotebookNode) -> None:
    """Take widgets' state and views out of a notebook, in place; what else an output is shown as stays.

    A view without its state is an empty box, or nothing, for a viewer that prefers it, and GitHub refuses a notebook
    whose state it cannot read.
    """
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if len(output.get("data", {})) > 1:
                output.data.pop(WIDGET_VIEW, None)


def alt_text(output: NotebookNode, mime: str) -> str:
    """The text that stands for a picture: the one it was displayed with, else its plain-text form."""
    metadata = output.get("metadata", {})
    text = metadata.get(mime, {}).get("alt") or metadata.get("alt") or output.data.get("text/plain", "")
    return " ".join(str(text).split())


def _in_numbers(output: NotebookNode, mime: str) -> str:
    """The table that stands for a picture, beside the words that it has: "" where its text is no more than those."""
    table = str(output.data.get("text/plain", ""))
    return table if output.get("metadata", {}).get(mime, {}).get("alt") and "\n" in table else ""


def _is_plot(output: NotebookNode, mime: str) -> bool:
    """A figure of the course that shows no images: its light and dark may be turned round on a dark page."""
    notes = output.get("metadata", {}).get(mime, {})
    return bool(notes.get("alt")) and not notes.get("photo")


class _Exporter(HTMLExporter):
    def default_filters(self) -> Any:
        yield from super().default_filters()
        yield ("markdown2html", markdown_to_html)
        yield ("alt_text", alt_text)
        yield ("in_numbers", _in_numbers)
        yield ("is_plot", _is_plot)


def to_html(
    notebook: NotebookNode | Path,
    path: Path,
    *,
    title: str = "",
    previous: tuple[str, str] | None = None,
    following: tuple[str, str] | None = None,
    index: str | None = "index.html",
) -> None:
    """Write a notebook as one page that needs nothing else: styles and pictures inside, formulas as MathML.

    Args:
        notebook: a notebook or the path of one; it is not changed.
        path: the page.
        title: the page's title; the notebook's first heading where empty.
        previous: address and name of the page before.
        following: address and name of the page after.
        index: address of the index, None for no link to it.
    """
    if isinstance(notebook, Path):
        title = title or heading(read_notebook(notebook)) or notebook.stem
        notebook = read_notebook(notebook)
    notebook = copy.deepcopy(notebook)
    drop_widgets(notebook)
    notebook.metadata["title"] = title or heading(notebook) or Path(path).stem
    exporter = _Exporter(
        template_name="apgd",
        extra_template_basedirs=[str(Path(__file__).parent / "templates")],
        language_code="en",
        exclude_anchor_links=True,
    )
    links = {"course_previous": previous, "course_following": following, "course_index": index}
    page, _ = exporter.from_notebook_node(notebook, resources=links)
    # A notebook that names its neighbour means the notebook in JupyterLab, and the page on a page.
    page = _NEIGHBOUR.sub(r'href="\1.html"', page)
    write_atomically(Path(path), page.encode())


_NEIGHBOUR = re.compile(r'href="(\d\d_\w+)\.ipynb"')

_INDEX = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
:root {{ --text: #1b1b1f; --soft: #55555e; --back: #fdfdfc; --card: #ffffff; --line: #d9d9de; --link: #0b57d0;
  --good: #1a6b3c; --bad: #b3261e; --note: #fff4d6; --note-text: #5c4300; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e6e6ea; --soft: #a9a9b3; --back: #16161a; --card: #1f1f25; --line: #3a3a43; --link: #9cc2ff;
    --good: #7fd6a2; --bad: #ff9c92; --note: #3a2f10; --note-text: #ffe09a; }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 46rem; padding: 1.5rem 1rem 4rem; background: var(--back); color: var(--text);
  font: 1rem/1.6 system-ui, -apple-system, "Segoe UI", sans-serif; }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 0.3rem; }}
h2 {{ font-size: 1.15rem; line-height: 1.35; margin: 0; }}
p {{ margin: 0.4rem 0; overflow-wrap: anywhere; }}
a {{ color: var(--link); }}
.soft {{ color: var(--soft); }}
.note {{ background: var(--note); color: var(--note-text); border-radius: 0.4rem; padding: 0.5rem 0.8rem; }}
ol {{ list-style: none; margin: 1.5rem 0 0; padding: 0; }}
li.page {{ background: var(--card); border: 1px solid var(--line); border-radius: 0.6rem; padding: 0.9rem 1rem;
  margin: 0 0 0.9rem; }}
.facts {{ display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; font-size: 0.9rem; color: var(--soft); }}
.ok {{ color: var(--good); font-weight: 600; }}
.failed {{ color: var(--bad); font-weight: 600; }}
math {{ font-size: 1.05em; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
<p class="soft">{summary}</p>
{stamps}
<ol>
{items}
</ol>
</main>
</body>
</html>
"""


def _item(result: RunResult, notebook: NotebookNode) -> str:
    state = '<span class="ok">✓ ran to its end</span>' if result.ok else '<span class="failed">✗ failed</span>'
    text = claim(notebook)
    facts = [
        state,
        f"<span>{result.seconds:.0f} s</span>",
        f"<span>{result.peak_mb:.0f} MB at its peak</span>",
        f"<span>{escape(_STAMPS.get(result.profile, result.profile))}</span>",
    ]
    parts = [
        f'<h2><a href="{escape(result.name)}.html">{escape(heading(notebook) or result.name)}</a></h2>',
        markdown_to_html(text) if text else "",
        f'<div class="facts">{"".join(facts)}</div>',
        "" if result.ok else f'<p class="failed">{escape(result.message)}</p>',
        f'<p class="soft"><a href="{escape(result.name)}.ipynb">{escape(result.name)}.ipynb</a></p>',
    ]
    return f'<li class="page">{"".join(parts)}</li>'


def write_index(
    out_dir: Path,
    results: Sequence[RunResult],
    notebooks: Sequence[NotebookNode | Path] | Mapping[str, NotebookNode | Path],
    *,
    title: str = "Merging fine-tuned models without their data",
) -> Path:
    """Write `index.html`: for every notebook its heading, its claim, how its run went, and links to it.

    Args:
        out_dir: the folder of the pages, `NAME.html` and `NAME.ipynb` for each result.
        results: what `run_course` returned.
        notebooks: the run notebooks, in the order of `results` or by name.
        title: the page's heading.

    Returns:
        The path of the index.
    """
    given = [notebooks[result.name] for result in results] if isinstance(notebooks, Mapping) else list(notebooks)
    nodes = [read_notebook(one) if isinstance(one, Path) else one for one in given]
    good = sum(result.ok for result in results)
    seconds = sum(result.seconds for result in results)
    stamps = {_STAMPS.get(result.profile, result.profile) for result in results if result.profile == "fast"}
    page = _INDEX.format(
        title=escape(title),
        summary=f"{good} of {len(results)} notebooks ran to their end, in {seconds:.0f} s.",
        stamps="".join(f'<p class="note">Profile {escape(stamp)}.</p>' for stamp in sorted(stamps)),
        items="\n".join(_item(result, node) for result, node in zip(results, nodes, strict=True)),
    )
    path = Path(out_dir) / "index.html"
    write_atomically(path, page.encode())
    return path
