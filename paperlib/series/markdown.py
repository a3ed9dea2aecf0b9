"""Markdown with formulas as HTML without scripts: TeX is converted to MathML."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

import jinja2
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from paperlib.log import logger

TEMPLATES = Path(__file__).parent / "templates"


class Formulas:
    """Converts TeX to MathML; a formula that cannot be converted stays TeX, and this is logged."""

    def __init__(self) -> None:
        self.page = ""
        try:
            from math_core import LatexToMathML
        except ImportError:
            logger.info("math-core is not installed: formulas stay TeX")
            self.convert = None
        else:
            self.convert = LatexToMathML(annotation=True, fancy_error=False).convert_with_local_state

    def __call__(self, tex: str, display: bool) -> str:
        if self.convert is not None:
            try:
                return self.convert(tex, displaystyle=display)
            except Exception as error:  # of any kind: the page is written with the TeX source
                logger.info(f"{self.page}: a formula stays TeX: {tex.strip()[:80]} ({error})")
        return f'<code class="tex">{html.escape(tex.strip())}</code>'


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown with formulas converted here instead of by a script in the browser."""

    def __init__(self, formulas: Formulas, attachments: dict[str, dict[str, str]]) -> None:
        super().__init__(escape=False, exclude_anchor_links=True, attachments=attachments)
        self.formulas = formulas

    def inline_math(self, body: str) -> str:
        return self.formulas(body, display=False)

    def block_math(self, body: str) -> str:
        return self.formulas(body, display=True)

    def latex_environment(self, name: str, body: str) -> str:
        return self.formulas(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)


class OfflineHTML(HTMLExporter):
    """nbconvert's exporter with the page template of this package around the cells."""

    def __init__(self, formulas: Formulas) -> None:
        self.formulas = formulas
        super().__init__(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
        self.register_filter("formula", lambda tex: formulas(tex.strip().strip("$"), display=True))

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """The filter that the template calls for Markdown."""
        return self.markdown(source, context.get("cell", {}).get("attachments", {}))

    def markdown(self, source: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
        """``source``, Markdown, as HTML; ``attachments`` are the cell's, by file name and MIME type."""
        return MarkdownWithMath(renderer=_Renderer(self.formulas, attachments or {})).render(source)

    def inline(self, source: str) -> str:
        """One line of Markdown as HTML, without a paragraph around it."""
        return self.markdown(source).strip().removeprefix("<p>").removesuffix("</p>")
