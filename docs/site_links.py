"""For Sphinx: formulas as MathML, docstrings as they are written here, links between pages, equations and code."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

import apgd_teach
from apgd_teach.course.mathml import to_mathml

LESSONS = {path.stem[:2]: path.stem for path in (Path(__file__).parent.parent / "notebooks").glob("[0-9][0-9]_*.ipynb")}
EQUATION = re.compile(r"(?m)^(?=\*\*\((\d+)\)\*\* )")
CITED = re.compile(r"((?:\(\d+\)(?:,\s+| to )?)+)(\s+in\s+)docs/equations\.md")
TAUGHT = re.compile(r"\b[Ll]essons?:?\s+\d\d(?:(?:,\s+|\s+and\s+|\s+to\s+)\d\d)*")
TABLE = re.compile(r"(?m)^\|.*\|\n\|[-|]+\|\n(?:\|.*\|(?:\n|$))+")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
COLON = "\x00"
SPAN = re.compile(r"(``.+?``|`[^`]+`)", re.DOTALL)


def docstring(app: Sphinx, kind: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """A docstring of this project as reStructuredText: one backtick is code, and signs of mathematics are letters.

    Runs before napoleon, which makes fields of Args, Attributes and Raises.
    """
    text = TABLE.sub(_table, "\n".join(lines))
    spans = SPAN.split(text)
    for place, span in enumerate(spans):
        if place % 2:
            spans[place] = f"``{span.strip('`')}``"
        else:
            plain = re.sub(r"(?m)^(\s*\* )|([*|])", lambda sign: sign[1] or f"\\{sign[2]}", span)
            plain = re.sub(r"(?<=\w)_(?!\w)", r"\\_", plain)
            plain = CITED.sub(_equations, plain)
            spans[place] = TAUGHT.sub(_lessons_in_docstring, plain)
    joined = "".join(spans)
    # Napoleon takes what stands before a colon, in the words of one value, for its type.
    lines[:] = (joined.replace(":", COLON) if kind in ("attribute", "data", "property") else joined).split("\n")


def colons(app: Sphinx, kind: str, name: str, thing: object, options: Any, lines: list[str]) -> None:
    """After napoleon: the colons that were hidden from it."""
    lines[:] = [line.replace(COLON, ":") for line in lines]


def _table(found: re.Match[str]) -> str:
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in found[0].strip().split("\n")]
    listed = [f"   {'*' if not place else ' '} - {cell}" for row in (head, *rows) for place, cell in enumerate(row)]
    return "\n".join([".. list-table::", "   :header-rows: 1", "", *listed, "", ""])


def _equations(found: re.Match[str]) -> str:
    numbers = re.sub(r"\((\d+)\)", r":ref:`(\1) <equation-\1>`", found[1])
    return f"{numbers}{found[2]}:doc:`the equations </docs/equations>`"


def _lessons_in_docstring(found: re.Match[str]) -> str:
    return re.sub(r"\d\d", lambda one: f":doc:`{one[0]} </notebooks/{LESSONS[one[0]]}>`", found[0])


def page(app: Sphinx, name: str, content: list[str]) -> None:
    """A page before it is read: each equation becomes a place to link to, a lesson's number a link.

    In a notebook every picture gets the words for it that the notebook has. Notes to the programs that write numbers
    into a page (`<!-- … -->`) go: at the beginning of a line they would end the paragraph.
    """
    if name.startswith("notebooks/"):
        content[0] = _with_words(content[0])
    else:
        content[0] = COMMENT.sub("", content[0])
    if name.endswith("docs/equations"):
        text = EQUATION.sub(r"(equation-\1)=\n", content[0])
        content[0] = TAUGHT.sub(
            lambda found: re.sub(r"\d\d", lambda one: f"[{one[0]}](../notebooks/{LESSONS[one[0]]}.ipynb)", found[0]),
            text,
        )


def _with_words(notebook: str) -> str:
    read = json.loads(notebook)
    for cell in read["cells"]:
        for output in cell.get("outputs", ()):
            words = output.get("metadata", {}).get("image/png", {}).get("alt")
            if words:
                cell["metadata"]["mystnb"] = {"image": {"alt": words}}
    return json.dumps(read)


def code_to_api(app: Sphinx, tree: nodes.document, name: str) -> None:
    """`merging.subspace.shared_basis`, in any text, leads to what is documented under that name."""
    known = app.env.get_domain("py").objects  # type: ignore[attr-defined]
    for literal in list(tree.findall(nodes.literal)):
        if isinstance(literal.parent, (nodes.reference, pending_xref)):
            continue
        word = literal.astext().removesuffix("()")
        full = next((one for one in (word, f"apgd_teach.{word}") if "." in word and one in known), None)
        if full:
            there = known[full]
            link = make_refnode(app.builder, name, there.docname, there.node_id, literal.deepcopy(), full)
            literal.replace_self(link)


def math(translator: Any, node: nodes.Element) -> None:
    """A formula within a line."""
    translator.body.append(to_mathml(node.astext()))
    raise nodes.SkipNode


def math_block(translator: Any, node: nodes.Element) -> None:
    """A formula on lines of its own."""
    translator.body.append(f'<div class="math">{to_mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def modules_first() -> None:
    """`apgd_teach.merging.merge` is a module and, in the room's front door, a function: here the module is meant."""
    for found in pkgutil.walk_packages(apgd_teach.__path__, "apgd_teach."):
        if not found.name.endswith("__main__"):
            module = importlib.import_module(found.name)
            room, _, last = found.name.rpartition(".")
            setattr(sys.modules[room], last, module)


def spoken(app: Sphinx, name: str, template: str, context: dict[str, Any], tree: nodes.document | None) -> None:
    """The language of a page, for whoever reads it aloud: `decision.ja` is Japanese."""
    if name.endswith(".ja"):
        context["language"] = "ja"


def setup(app: Sphinx) -> dict[str, Any]:
    modules_first()
    app.add_html_math_renderer("mathml", (math, None), (math_block, None))
    app.connect("autodoc-process-docstring", docstring, priority=100)
    app.connect("autodoc-process-docstring", colons, priority=900)
    app.connect("source-read", page)
    app.connect("html-page-context", spoken)
    app.connect("doctree-resolved", code_to_api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
