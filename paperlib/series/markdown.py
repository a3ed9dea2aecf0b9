"""Markdown and formulas as HTML that needs no script: TeX becomes MathML."""

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
    """TeX to MathML; a formula that the converter does not know stays TeX, and is reported."""

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
            except Exception as error:  # whatever it is, it must not cost the reader the page
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
    """nbconvert's exporter with our page around its cells."""

    def __init__(self, formulas: Formulas) -> None:
        self.formulas = formulas
        super().__init__(template_name="offline", extra_template_basedirs=[str(TEMPLATES)])
        self.register_filter("formula", lambda tex: formulas(tex.strip().strip("$"), display=True))

    @jinja2.pass_context
    def markdown2html(self, context: Any, source: str) -> str:
        """The filter the template calls for Markdown."""
        return self.markdown(source, context.get("cell", {}).get("attachments", {}))

    def markdown(self, source: str, attachments: dict[str, dict[str, str]] | None = None) -> str:
        """``source`` as HTML."""
        return MarkdownWithMath(renderer=_Renderer(self.formulas, attachments or {})).render(source)

    def inline(self, source: str) -> str:
        """One line of Markdown, without the paragraph around it."""
        return self.markdown(source).strip().removeprefix("<p>").removesuffix("</p>")
