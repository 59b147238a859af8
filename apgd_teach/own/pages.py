"""A document of sections, as Markdown or as one HTML page that needs nothing beside itself."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TypeAlias

from apgd_teach.figures.drawing import Drawing
from apgd_teach.figures.style import png
from apgd_teach.tables import Table

__all__ = ["Part", "Section", "html", "markdown"]

Part: TypeAlias = "str | Table | Drawing"


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        head: the heading.
        parts: sentences, tables, figures; none of them says "None.".
    """

    head: str
    parts: Sequence[Part]


def markdown(title: str, sections: Sequence[Section]) -> str:
    """GitHub-flavoured Markdown; a figure is there in its words.

    Args:
        title: the first heading.
        sections: what follows.
    """
    texts = [f"# {title}"]
    for section in sections:
        texts.append(f"## {section.head}")
        texts += [text for part in section.parts if (text := _as_markdown(part))] or ["None."]
    return "\n\n".join(texts) + "\n"


def _as_markdown(part: Part) -> str:
    if isinstance(part, Table):
        return part.to_markdown() if part.rows else ""
    return f"*Figure: {part.words}*" if isinstance(part, Drawing) else part


def html(title: str, sections: Sequence[Section]) -> str:
    """A page with its figures inside; it asks for nothing from anywhere.

    Args:
        title: of the page.
        sections: what is on it.
    """
    shown = "\n".join(
        f"<section><h2>{escape(section.head)}</h2>"
        f"{''.join(_as_html(part, section.head) for part in section.parts) or '<p>None.</p>'}</section>"
        for section in sections
    )
    return _PAGE.format(title=escape(title), sections=shown)


def _as_html(part: Part, head: str) -> str:
    if isinstance(part, Table):
        # A table that is wider than a screen scrolls by itself, with the keyboard too.
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{escape(head)}">{part._repr_html_()}</div>'
            if part.rows
            else ""
        )
    if isinstance(part, Drawing):
        content = base64.b64encode(png(part.figure)).decode("ascii")
        return f'<img alt="{escape(part.words)}" src="data:image/png;base64,{content}">'
    return f"<p>{escape(part)}</p>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 64rem; padding: 1.5rem 1rem 4rem; background: #fdfdfc; color: #1b1b1f;
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }}
h1 {{ font-size: 1.6rem; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin: 2rem 0 0.5rem; }}
img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; margin: 0.5rem 0; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #d9d9de; padding: 0.25rem 0.7rem 0.25rem 0; vertical-align: top; }}
caption {{ color: #55555e; padding-bottom: 0.3rem; }}
</style>
</head>
<body>
<main>
<h1>{title}</h1>
{sections}
</main>
</body>
</html>
"""
