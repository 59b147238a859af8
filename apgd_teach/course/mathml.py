"""Markdown with LaTeX to HTML with MathML, which a browser draws without any script."""

from __future__ import annotations

import re
from html import escape, unescape
from typing import Any

import latex2mathml.converter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath, MathBlockParser, MathInlineParser

from apgd_teach.errors import CourseError

__all__ = ["bad_formulas", "markdown_to_html", "to_mathml"]

# latex2mathml lets an unknown command through as text; this is how its output then looks.
_UNKNOWN = re.compile(r"<m(?:i|o|text)>(?:\\|&#x0005C;)([A-Za-z]+)</m")


def to_mathml(latex: str, *, block: bool = False) -> str:
    r"""One formula as a `<math>` element.

    Args:
        latex: LaTeX without its delimiters, `\theta_0` for example.
        block: on a line of its own.

    Raises:
        CourseError: latex2mathml cannot convert it, or does not know one of its commands.
    """
    bare = re.sub(r"\\.", "", latex)
    if bare.count("{") != bare.count("}"):  # the converter takes a missing brace for the end of the formula
        raise CourseError(f"the formula '{latex.strip()}' cannot be turned into MathML; close its braces.")
    try:
        known = re.sub(r"\\arg(?![A-Za-z])", r"\\operatorname{arg}", latex.strip())  # the one the converter lacks
        element: str = latex2mathml.converter.convert(known, display="block" if block else "inline")
    except Exception as error:  # unbalanced input raises whatever the converter stumbled over, IndexError included
        raise CourseError(
            f"the formula '{latex.strip()}' cannot be turned into MathML ({type(error).__name__}); write it otherwise."
        ) from error
    unknown = _UNKNOWN.search(element)
    if unknown:
        raise CourseError(
            f"the formula '{latex.strip()}' cannot be turned into MathML: the converter does not know "
            f"'\\{unknown[1]}'; write it with another command."
        )
    return element


class _Inline(MathInlineParser):
    r"""nbconvert's inline parser with pandoc's rule for `$`, so that "$5 or $6" stays a price, and with `\(…\)`."""

    SPECIFICATION = {  # noqa: RUF012 (mistune's own convention)
        **MathInlineParser.SPECIFICATION,
        "inline_math_tex": r"(?<![$\\])\$(?![\s$])(?P<math_inline_tex>(?:[^$\\`]|\\[\s\S])+?)(?<!\s)\$(?![\d$])",
        "inline_math_latex": r"\\{1,2}\((?P<math_inline_latex>[\s\S]+?)\\{1,2}\)",
    }


class _Renderer(IPythonRenderer):
    """nbconvert's renderer, with formulas as MathML. One that cannot be converted is shown as its LaTeX."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.bad: list[str] = []

    def _math(self, latex: str, block: bool) -> str:
        try:
            return to_mathml(latex, block=block)
        except CourseError as error:
            self.bad.append(str(error))
            return f"<code>{escape(latex)}</code>"

    def inline_math(self, body: str) -> str:
        return self._math(body, block=False)

    def block_math(self, body: str) -> str:
        return self._math(body, block=True)

    def latex_environment(self, name: str, body: str) -> str:
        # The starred forms are those without numbers, and nothing on a page refers to a number.
        plain = name.rstrip("*")
        starred = plain + "*" if plain in {"align", "gather"} else plain
        latex = body if plain == "equation" else f"\\begin{{{starred}}}{body}\\end{{{starred}}}"
        return self._math(latex, block=True)

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        # nbconvert would put an anchor in by way of an XML parser that renames every element of a formula.
        words = unescape(re.sub(r"<[^>]+>", "", text))
        anchor = escape("-".join(words.split()))
        return f'<h{level} id="{anchor}">{text}</h{level}>\n'


def _render(text: str, renderer: _Renderer) -> str:
    return MarkdownWithMath(renderer, block=MathBlockParser(), inline=_Inline(hard_wrap=False)).render(text)


def markdown_to_html(text: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
    r"""Markdown to HTML: `$…$`, `$$…$$`, `\(…\)`, `\\(…\\)` and LaTeX environments become MathML.

    Code spans and blocks are left as they are, and so is a dollar sign that opens no formula ("$5"): the opening
    sign needs a character right behind it, the closing one a character right before it and no digit behind it, and no
    code span begins between the two.
    """
    return _render(text, _Renderer(escape=False, attachments=attachments or {}))


def bad_formulas(text: str) -> list[str]:
    """One sentence per formula of a Markdown text that cannot be shown as MathML."""
    renderer = _Renderer(escape=False)
    _render(re.sub(r"\(attachment:[^)]*\)", "()", text), renderer)
    return renderer.bad
