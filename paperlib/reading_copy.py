"""The executed series as web pages that need no network: verdicts first, figures inline, formulas as MathML."""

from __future__ import annotations

import base64
import csv
import html
import mimetypes
import re
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import jinja2
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

from paperlib import notebook_files, paths
from paperlib.atomic_files import replacing_folder
from paperlib.config.load import command_name
from paperlib.errors import MissingError
from paperlib.progress import Say, say
from paperlib.series import Notebook, discover

VERDICTS = "verdicts.csv"
TITLE = "Defending against adversarial attacks using mixture of experts"

_SIGNS = {"supported": "✓", "not supported": "✗", "undecided": "?", "not run": "–"}
_NOTEBOOK_LINK = re.compile(r'(href="(?:\./)?)([\w-]+)\.ipynb(?=["#])')
_LOCAL_IMAGE = re.compile(r'(<img\b[^>]*?\bsrc=")(?!data:|[a-z]+:|//)([^"]+)(")')
_LOADERS = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
_CSS_LOAD = re.compile(r"""(?:url\(\s*["']?|@import\s*["'])((?:https?:)?//[^"')\s]+)""")

# nbconvert's Lab template gives the cells; its page (four scripts from the network, 300 kB of style) is ours instead.
_PAGE = """{%- extends 'lab/base.html.j2' -%}
{%- block header -%}{{ resources.page_head }}{%- endblock -%}
{%- block body_header -%}{{ resources.page_links }}<main>{%- endblock -%}
{%- block body_footer -%}</main>{{ resources.page_links }}</body>{%- endblock -%}
{%- block footer -%}</html>{%- endblock -%}
{%- block data_latex -%}<div class="formula">{{ output.data['text/latex'] | formula }}</div>{%- endblock -%}"""

_STYLE = """
:root { color-scheme: light dark;
  --ink: #1f2328; --soft: #59636e; --paper: #fff; --shade: #f6f8fa; --line: #d1d9e0; --link: #0b57b0;
  --good: #08607f; --bad: #a33b00 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --soft: #a3abb4; --paper: #16181c; --shade: #20242a; --line: #3a4048; --link: #7db4ff;
    --good: #6cc6ec; --bad: #ffa06b }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 54rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
  font: 1.05rem/1.6 Charter, "Bitstream Charter", Cambria, Georgia, serif }
h1, h2, h3, h4 { line-height: 1.25; font-family: system-ui, "Segoe UI", "DejaVu Sans", sans-serif }
h2 { margin-top: 2.4rem }
a { color: var(--link) }
nav { display: flex; justify-content: space-between; gap: 1rem; font: .9rem/1.5 system-ui, "DejaVu Sans", sans-serif;
  border-bottom: 1px solid var(--line); padding-bottom: .5rem }
main + nav { border: 0; border-top: 1px solid var(--line); padding-top: .5rem; margin-top: 3rem }
nav span:nth-child(2) { text-align: center } nav span:last-child { text-align: right } nav span { flex: 1 }
pre, code { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; font-size: .85rem }
pre { margin: 0; overflow-x: auto; line-height: 1.45 }
code { background: var(--shade); padding: .1em .3em; border-radius: 3px } pre code { padding: 0 }
.jp-InputPrompt, .jp-OutputPrompt, .jp-Collapser, .anchor-link { display: none }
.jp-Cell { margin: 1rem 0 }
.jp-InputArea-editor, .highlight { background: var(--shade); border-radius: 5px }
.jp-MarkdownOutput > pre { background: var(--shade); border-radius: 5px }
.highlight > pre, .jp-MarkdownOutput > pre { padding: .7rem .9rem }
.jp-OutputArea-output { margin: .6rem 0; overflow-x: auto }
.jp-RenderedText pre { padding: 0 .9rem; white-space: pre-wrap }
[data-mime-type="application/vnd.jupyter.stderr"] { border-left: 3px solid #c9510c }
img { max-width: 100%; height: auto }
.jp-RenderedImage img, .jp-RenderedSVG img { background: #fff; border-radius: 5px }
table { border-collapse: collapse; font: .9rem/1.4 system-ui, "DejaVu Sans", sans-serif; border: 0 }
th, td { padding: .3rem .7rem; border: 0; border-bottom: 1px solid var(--line); text-align: left }
.dataframe th, .dataframe td { text-align: right } thead th { border-bottom-width: 2px }
blockquote { margin-left: 0; padding-left: 1rem; border-left: 3px solid var(--line); color: var(--soft) }
math { font-family: "Latin Modern Math", "STIX Two Math", "Cambria Math", math } math[display=block] { margin: .8rem 0 }
.verdicts td { vertical-align: top } .verdicts td + td { white-space: nowrap }
.verdicts td:nth-child(2) { font-weight: 600 }
.supported { color: var(--good) } .not-supported { color: var(--bad) } .undecided, .not-run { color: var(--soft) }
.entry { display: grid; grid-template-columns: 1fr 13rem; gap: 0 1.5rem; align-items: start }
.entry h2 { margin-bottom: 0 } .entry img { margin-top: 2.6rem; width: 100%; background: #fff; border-radius: 5px }
@media (max-width: 40rem) { .entry { grid-template-columns: 1fr } .entry img { margin-top: 0 } }
.formula { overflow-x: auto } .tex { white-space: pre-wrap } .soft { color: var(--soft) }
@media print { nav { display: none } body { max-width: none } }
"""


def reading_copy(profile: str, *, say: Say = say) -> Path:
    """Write the executed series of ``profile`` as pages; returns the contents page, ``html/index.html``.

    Raises:
        MissingError: no notebook has been executed at this profile.
        SeriesError: the series, or an executed notebook, cannot be read.
    """
    executed = paths.build_dir(profile) / "notebooks"
    series = discover(paths.notebooks_dir())
    there = [notebook for notebook in series if (executed / f"{notebook.name}.ipynb").exists()]
    if not there:
        raise MissingError(
            f"no executed notebook; make them with: python -m paperlib reproduce --profile {command_name(profile)}"
        )
    folder = paths.build_dir(profile) / "html"
    exporter = _OfflineHTML(_Formulas(say))
    entries = []
    with replacing_folder(folder) as fresh:
        for at, notebook in enumerate(there):
            nb = notebook_files.read(executed / f"{notebook.name}.ipynb")
            exporter.formulas.page = notebook.name
            _write_page(fresh, notebook.name, _page(exporter, nb, there, at), say)
            entries.append((notebook, _first_paragraph(nb, exporter), _when(executed / f"{notebook.name}.ipynb")))
        _write_page(fresh, "index", _contents(series, entries, exporter, profile), say)
    return folder / "index.html"


def network_loads(page: str) -> list[str]:
    """Every address on the network that a browser would ask for to show ``page``; links to click do not count."""
    finder = _Loads()
    finder.feed(page)
    return finder.found + _CSS_LOAD.findall(page)


class _Loads(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get(_LOADERS.get(tag, "")) or ""
        if address.startswith(("http:", "https:", "//")):
            self.found.append(address)


# -------------------------------------------------------------------------------------------------------------- pages


def _page(exporter: _OfflineHTML, nb: Any, series: Sequence[Notebook], at: int) -> str:
    for cell in nb.cells:
        if cell.cell_type == "code":
            notebook_files.clean_outputs(cell)
    title = series[at].title
    before = _link(series[at - 1], "← {}") if at > 0 else ""
    after = _link(series[at + 1], "{} →") if at + 1 < len(series) else ""
    links = f'<nav><span>{before}</span><span><a href="index.html">Contents</a></span><span>{after}</span></nav>'
    resources = {"metadata": {"name": title}, "page_head": _head(title), "page_links": links}
    return str(exporter.from_notebook_node(nb, resources)[0])


def _link(notebook: Notebook, form: str) -> str:
    return f'<a href="{notebook.name}.html">{form.format(html.escape(_plain(notebook.title)))}</a>'


def _plain(title: str) -> str:
    return re.sub(r"[*`$]", "", title)


def _head(title: str) -> str:
    style = _STYLE
    for colours, when in (
        ("default", "not (prefers-color-scheme: dark)"),
        ("github-dark", "(prefers-color-scheme: dark)"),
    ):
        style += (
            f"@media {when} {{\n{HtmlFormatter(style=colours, nobackground=True).get_style_defs('.highlight')}\n}}\n"
        )
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(_plain(title))}</title><style>{style}</style></head><body>"
    )


def _contents(
    series: Sequence[Notebook], entries: Sequence[tuple[Notebook, str, str]], exporter: _OfflineHTML, profile: str
) -> str:
    shown = {notebook.name: (paragraph, when) for notebook, paragraph, when in entries}
    items = []
    for notebook in series:
        number = f'<span class="soft">{notebook.path.stem[:2]}</span>'
        if notebook.name in shown:
            paragraph, when = shown[notebook.name]
            heading = f'{number} <a href="{notebook.name}.html">{exporter.inline(notebook.title)}</a>'
            text = f'<div><h2>{heading}</h2>{paragraph}<p class="soft">executed {when}</p></div>'
            items.append(f'<div class="entry">{text}{_picture(notebook, profile)}</div>')
        else:
            items.append(f'<h2>{number} {exporter.inline(notebook.title)}</h2><p class="soft">not executed</p>')
    made = time.strftime("%Y-%m-%d %H:%M")
    name = html.escape(Path(profile).stem)
    about = f"The series at profile <code>{name}</code>, made into pages on {made}."
    verdicts = _verdicts([notebook for notebook, _, _ in entries], profile)
    head = f'{_head(TITLE)}<main><h1>{TITLE}</h1><p class="soft">{about}</p>'
    return f"{head}{verdicts}{''.join(items)}</main></body></html>"


def _verdicts(executed: Sequence[Notebook], profile: str) -> str:
    """The claims and what became of them, as the notebook that judges them has saved it; empty if it was not run."""
    path = paths.figures_dir(profile) / VERDICTS
    judging = [notebook for notebook in executed if VERDICTS in notebook.promises]
    if not judging or not path.is_file():
        return ""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    lines = [
        f"<tr><td>{html.escape(row['says'])}</td>"
        f'<td class="{_kind(row).replace(" ", "-")}">{_SIGNS.get(_kind(row), "")} {html.escape(row["verdict"])}</td>'
        f"<td>{html.escape(row['numbers'])}</td></tr>"
        for row in rows
    ]
    link = f'<a href="{judging[0].name}.html">one by one</a>'
    return (
        f"<h2>What holds</h2><p>{len(rows)} claims, each with a rule that was written before its numbers; {link}, with "
        "the differences and intervals behind each.</p>"
        '<table class="verdicts"><thead><tr><th>claim</th><th>verdict</th><th>comparisons</th></tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table>"
    )


def _kind(row: dict[str, str]) -> str:
    """The verdict of a row without the number of seeds in brackets."""
    return row["verdict"].split(" (")[0]


def _picture(notebook: Notebook, profile: str) -> str:
    """The first figure a notebook promises, small, as a way in; empty if it has none."""
    for promise in notebook.promises:
        file = paths.figures_dir(profile) / promise
        if file.suffix == ".png" and file.is_file():
            content = base64.b64encode(file.read_bytes()).decode()
            alt = f"a figure of {html.escape(notebook.name)}"
            return f'<a href="{notebook.name}.html"><img alt="{alt}" src="data:image/png;base64,{content}"></a>'
    return "<span></span>"


def _when(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def _first_paragraph(nb: Any, exporter: _OfflineHTML) -> str:
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for block in re.split(r"\n\s*\n", re.sub(r"^#.*$", "\n", cell.source, flags=re.MULTILINE)):
                if block.strip() and not block.lstrip().startswith(("|", "<", "!", "```", "- ", "* ")):
                    return exporter.markdown(block.strip())
    return ""


def _write_page(folder: Path, name: str, page: str, say: Say) -> None:
    page = _LOCAL_IMAGE.sub(_inlined, page)
    page = _NOTEBOOK_LINK.sub(r"\1\2.html", page)
    for address in network_loads(page):
        say(f"{name}: the page loads {address} from the network")
    (folder / f"{name}.html").write_text(page, encoding="utf-8")


def _inlined(found: re.Match[str]) -> str:
    """The image tag with its file inside, if that is a file of the repository or of the reader's results."""
    file = (paths.notebooks_dir() / html.unescape(found.group(2))).resolve()
    if not file.is_file() or not any(file.is_relative_to(base.resolve()) for base in (paths.ROOT, paths.home())):
        return found.group(0)
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"{found.group(1)}data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}{found.group(3)}"


# ----------------------------------------------------------------------------------------------- formulas and markdown


class _Formulas:
    """TeX to MathML; a formula that the converter does not know stays TeX, and is reported."""

    def __init__(self, say: Say) -> None:
        self.say, self.page = say, ""
        try:
            from math_core import LatexToMathML
        except ImportError:
            say("math-core is not installed: formulas stay TeX")
            self.convert = None
        else:
            self.convert = LatexToMathML(annotation=True, fancy_error=False).convert_with_local_state

    def __call__(self, tex: str, display: bool) -> str:
        if self.convert is not None:
            try:
                return self.convert(tex, displaystyle=display)
            except Exception as error:  # whatever it is, it must not cost the reader the page
                self.say(f"{self.page}: a formula stays TeX: {tex.strip()[:80]} ({error})")
        return f'<code class="tex">{html.escape(tex.strip())}</code>'


class _Renderer(IPythonRenderer):
    """nbconvert's Markdown with formulas converted here instead of by a script in the browser."""

    def __init__(self, formulas: _Formulas, attachments: dict[str, dict[str, str]]) -> None:
        super().__init__(escape=False, exclude_anchor_links=True, attachments=attachments)
        self.formulas = formulas

    def inline_math(self, body: str) -> str:
        return self.formulas(body, display=False)

    def block_math(self, body: str) -> str:
        return self.formulas(body, display=True)

    def latex_environment(self, name: str, body: str) -> str:
        return self.formulas(f"\\begin{{{name}}}{body}\\end{{{name}}}", display=True)


class _OfflineHTML(HTMLExporter):
    """nbconvert's exporter with our page around its cells."""

    def __init__(self, formulas: _Formulas) -> None:
        self.formulas = formulas
        super().__init__(extra_loaders=[jinja2.DictLoader({"offline.html.j2": _PAGE})], template_file="offline.html.j2")
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
