"""The executed series as an HTML site that works offline: verdicts first, figures inline, formulas as MathML."""

from __future__ import annotations

import base64
import csv
import html
import mimetypes
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]

from paperlib import paths
from paperlib.atomic_files import replacing_folder
from paperlib.config.load import command_name
from paperlib.errors import MissingError
from paperlib.log import logger
from paperlib.series import notebook_format
from paperlib.series.catalogue import Notebook, discover
from paperlib.series.markdown import TEMPLATES, Formulas, OfflineHTML
from paperlib.series.network_loads import network_loads

VERDICTS = "verdicts.csv"
TITLE = "Defending against adversarial attacks using mixture of experts"

_SIGNS = {"supported": "✓", "not supported": "✗", "undecided": "?", "not run": "–"}
_NOTEBOOK_LINK = re.compile(r'(href="(?:\./)?)([\w-]+)\.ipynb(?=["#])')
_LOCAL_IMAGE = re.compile(r'(<img\b[^>]*?\bsrc=")(?!data:|[a-z]+:|//)([^"]+)(")')


def write_site(profile: str) -> Path:
    """Write the executed notebooks of ``profile`` as HTML pages; returns the contents page, ``html/index.html``.

    Raises:
        MissingError: no notebook has been executed at this profile.
        SeriesError: a notebook of the series, or an executed notebook, cannot be read.
    """
    executed = paths.build_dir(profile) / "notebooks"
    series = discover(paths.notebooks_dir())
    available = [notebook for notebook in series if (executed / f"{notebook.name}.ipynb").exists()]
    if not available:
        raise MissingError(f"no executed notebook; run: python -m paperlib reproduce --profile {command_name(profile)}")
    folder = paths.build_dir(profile) / "html"
    exporter = OfflineHTML(Formulas())
    with replacing_folder(folder) as new_folder:
        entries = []
        for notebook in series:
            entry = {"name": notebook.name, "number": notebook.path.stem[:2], "title": exporter.inline(notebook.title)}
            if notebook in available:
                path = executed / f"{notebook.name}.ipynb"
                nb = notebook_format.read(path)
                exporter.formulas.page = notebook.name
                _write_page(new_folder, notebook.name, _page(exporter, nb, available, available.index(notebook)))
                entry |= {"href": f"{notebook.name}.html", "paragraph": _first_paragraph(nb, exporter)}
                entry |= {"executed": _time_of(path), "picture": _first_figure(notebook, profile)}
            entries.append(entry)
        _write_page(new_folder, "index", _contents(entries, available, profile))
    return folder / "index.html"


def _page(exporter: OfflineHTML, nb: Any, series: Sequence[Notebook], index: int) -> str:
    for cell in nb.cells:
        if cell.cell_type == "code":
            notebook_format.clean_outputs(cell)
    page = {
        "title": _plain(series[index].title),
        "highlighting": _highlighting(),
        "before": _link(series[index - 1]) if index > 0 else None,
        "after": _link(series[index + 1]) if index + 1 < len(series) else None,
    }
    resources = {"metadata": {"name": series[index].title}, "page": page}
    return str(exporter.from_notebook_node(nb, resources)[0])


def _link(notebook: Notebook) -> dict[str, str]:
    return {"href": f"{notebook.name}.html", "title": _plain(notebook.title)}


def _plain(title: str) -> str:
    return re.sub(r"[*`$]", "", title)


def _highlighting() -> list[tuple[str, str]]:
    """Media queries with the CSS rules of code highlighting, for light and dark mode."""
    styles = {"not (prefers-color-scheme: dark)": "default", "(prefers-color-scheme: dark)": "github-dark"}
    return [
        (media, HtmlFormatter(style=style, nobackground=True).get_style_defs(".highlight"))
        for media, style in styles.items()
    ]


def _contents(entries: Sequence[dict[str, str]], executed: Sequence[Notebook], profile: str) -> str:
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES / "offline"), autoescape=True)
    return environment.get_template("contents.html.j2").render(
        title=TITLE,
        highlighting=_highlighting(),
        profile=Path(profile).stem,
        made=time.strftime("%Y-%m-%d %H:%M"),
        verdicts=_verdicts(executed, profile),
        entries=entries,
    )


def _verdicts(executed: Sequence[Notebook], profile: str) -> dict[str, Any] | None:
    """The claims with their verdicts, from the file that the verdicts notebook wrote; None if it was not executed."""
    path = paths.figures_dir(profile) / VERDICTS
    sources = [notebook for notebook in executed if VERDICTS in notebook.promises]
    if not sources or not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        verdict = row["verdict"].split(" (")[0]  # without the number of seeds
        row |= {"css": verdict.replace(" ", "-"), "sign": _SIGNS.get(verdict, "")}
    return {"rows": rows, "href": f"{sources[0].name}.html"}


def _first_figure(notebook: Notebook, profile: str) -> str:
    """The first PNG file among the notebook's promises, as a data URI; empty if there is none."""
    for promise in notebook.promises:
        file = paths.figures_dir(profile) / promise
        if file.suffix == ".png" and file.is_file():
            return f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}"
    return ""


def _time_of(path: Path) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(path.stat().st_mtime))


def _first_paragraph(nb: Any, exporter: OfflineHTML) -> str:
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for block in re.split(r"\n\s*\n", re.sub(r"^#.*$", "\n", cell.source, flags=re.MULTILINE)):
                if block.strip() and not block.lstrip().startswith(("|", "<", "!", "```", "- ", "* ")):
                    return exporter.markdown(block.strip())
    return ""


def _write_page(folder: Path, name: str, page: str) -> None:
    page = _LOCAL_IMAGE.sub(_with_inline_image, page)
    page = _NOTEBOOK_LINK.sub(r"\1\2.html", page)
    for address in network_loads(page):
        logger.info(f"{name}: the page loads {address} from the network")
    (folder / f"{name}.html").write_text(page, encoding="utf-8")


def _with_inline_image(tag: re.Match[str]) -> str:
    """The image tag with its file as a data URI, if the file is in the repository or among the user's results."""
    file = (paths.notebooks_dir() / html.unescape(tag.group(2))).resolve()
    if not file.is_file() or not any(file.is_relative_to(base.resolve()) for base in (paths.ROOT, paths.home())):
        return tag.group(0)
    kind = mimetypes.guess_type(file.name)[0] or "image/png"
    return f"{tag.group(1)}data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}{tag.group(3)}"
