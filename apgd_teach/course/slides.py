"""Slides from the published notebooks: a page for each, that opens without a network.

    python -m apgd_teach.course.slides FOLDER

A notebook gives its claim, a slide for the formulas of a section, every question to predict, every figure, and what its
run showed. What is marked "in depth" is left out. Arrow keys, space and Page Up and Down lead on; printed, each slide
is a page.
"""

from __future__ import annotations

import argparse
import base64
import re
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path

from nbformat import NotebookNode

from apgd_teach.course.header import DEPTH, SHORT
from apgd_teach.course.mathml import markdown_to_html
from apgd_teach.course.publish import alt_text, claim, heading
from apgd_teach.course.sources import notebooks_folder, read_notebook
from apgd_teach.errors import CourseError
from apgd_teach.files import write_atomically

__all__ = ["main", "slides", "to_page"]

SHOWED = "What this run showed"

_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
html {{ scroll-snap-type: y mandatory; font: 3.2vmin/1.4 "DejaVu Sans", "Segoe UI", sans-serif; color: #111; }}
body {{ margin: 0; }}
section {{ box-sizing: border-box; height: 100vh; padding: 5vmin 8vmin; scroll-snap-align: start; overflow: auto;
  display: flex; flex-direction: column; justify-content: safe center; break-after: page; }}
h1 {{ font-size: 2em; margin: 0 0 .5em; }}
h2 {{ font-size: 1em; margin: 0 0 1em; color: #555; font-weight: normal; }}
img {{ max-width: 100%; max-height: 74vh; object-fit: contain; align-self: center; }}
.formulas {{ font-size: 1.3em; }}
.question {{ font-size: 1.4em; }}
.showed {{ font-size: min(.8em, 2vw); }}
table {{ border-collapse: collapse; font-size: min(.8em, 2.4vw, 2.6vh); }}
td, th {{ padding: .2em .6em; border-bottom: 1px solid #ccc; }}
footer {{ position: fixed; right: 2vmin; bottom: 1vmin; font-size: .5em; color: #555; }}
</style>
{body}
<footer>{note}</footer>
<script>
addEventListener("keydown", (key) => {{
  const on = {{ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1}}[key.key];
  if (!on) return;
  key.preventDefault();
  const here = Math.round(scrollY / innerHeight), all = document.querySelectorAll("section");
  all[Math.min(Math.max(here + on, 0), all.length - 1)].scrollIntoView();
}});
</script>
</html>
"""


def _plain(title: str) -> str:
    """A heading without its mark."""
    return title.removesuffix(SHORT).removesuffix(DEPTH).strip()


def _figures(cell: NotebookNode, section: str) -> list[str]:
    found = []
    for output in cell.outputs:
        picture = output.get("data", {}).get("image/png")
        if picture:
            packed = base64.b64encode(base64.b64decode(picture)).decode()
            words = escape(alt_text(output, "image/png"), quote=True)
            found.append(f'<h2>{escape(section)}</h2>\n<img alt="{words}" src="data:image/png;base64,{packed}">')
    return found


def slides(notebook: NotebookNode) -> list[str]:
    """What stands on each slide, as HTML.

    Args:
        notebook: a published one, with its outputs.

    Lesson: every notebook.
    """
    made = [f"<h1>{escape(heading(notebook))}</h1>\n{markdown_to_html(claim(notebook))}"]
    section, deep, skipped = "", False, False
    for cell in notebook.cells:
        if cell.cell_type == "code":
            if skipped:
                continue
            made += _figures(cell, section)
            if section == SHOWED:
                told = [one.data["text/markdown"] for one in cell.outputs if "text/markdown" in one.get("data", {})]
                made += [f'<h2>{SHOWED}</h2>\n<div class="showed">{markdown_to_html(one)}</div>' for one in told]
            continue
        for text in re.split(r"(?m)^(?=#{2,3} )", cell.source):
            title = re.match(r"(#{2,3}) (.+)", text)
            if title:
                section, marked = _plain(title[2]), title[2].endswith(DEPTH)
                # A part of a section (###) has the section's mark, or one of its own.
                deep = marked if len(title[1]) == 2 else deep
                skipped = marked or deep
            if not skipped:
                formulas = re.findall(r"(?s)\$\$.+?\$\$", text)
                if formulas:
                    shown = "\n\n".join(formulas)
                    made.append(f'<h2>{escape(section)}</h2>\n<div class="formulas">{markdown_to_html(shown)}</div>')
                for asked in re.findall(r"(?m)^> \*\*Predict before you run\.\*\*(?:.*\n?)(?:^>.*\n?)*", text):
                    question = markdown_to_html(re.sub(r"(?m)^> ?", "", asked).strip())
                    made.append(f'<h2>{escape(section)}</h2>\n<div class="question">{question}</div>')
    return made


def to_page(notebook: NotebookNode) -> str:
    """All slides of a notebook on one HTML page that needs nothing beside itself."""
    profile = notebook.metadata.get("apgd_teach", {}).get("profile", "")
    body = "\n".join(f"<section>\n{one}\n</section>" for one in slides(notebook))
    note = f"apgd_teach, from the run in the profile {escape(profile)}; text CC BY 4.0"
    return _PAGE.format(title=escape(heading(notebook)), body=body, note=note)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the slides of all published notebooks into a folder."""
    parser = argparse.ArgumentParser(description="Slides from the published notebooks, a page for each.")
    parser.add_argument("folder", type=Path, help="where the pages go")
    given = parser.parse_args(arguments)
    try:
        published = sorted(notebooks_folder().glob("[0-9][0-9]_*.ipynb"))
        for path in published:
            write_atomically(given.folder / f"{path.stem}.html", to_page(read_notebook(path)).encode())
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        print(f"'{given.folder}' cannot be written to ({error.strerror}); name another folder.", file=sys.stderr)
        return 1
    print(f"{len(published)} pages of slides are in {given.folder}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
