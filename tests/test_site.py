"""The HTML site of the committed series: verdicts first, all figures inside, no request to the network."""

from __future__ import annotations

import csv
import html
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from test_browser import BROWSER, OFFLINE
from toys import logged

from paperlib import paths
from paperlib.series.catalogue import discover
from paperlib.series.site import write_site

PICTURES = "[...document.images].map(i => [i.naturalWidth, i.alt])"
BACKGROUND = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the pages, written from the committed notebooks and figures."""
    home = tmp_path_factory.mktemp("site")
    shutil.copytree(paths.notebooks_dir(), home / "build" / "digits" / "notebooks")
    shutil.copytree(paths.ROOT / "figures" / "digits", home / "figures" / "digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PAPERLIB_HOME", str(home))
        lines: list[str] = []
        with logged(lines.append):
            index = write_site("digits")
    assert lines == []  # every formula was converted, no page loads anything from the network
    return index.parent


def test_the_contents_page_begins_with_the_verdicts(pages: Path) -> None:
    index = (pages / "index.html").read_text(encoding="utf-8")
    with (paths.ROOT / "figures" / "digits" / "verdicts.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12
    places = [html.unescape(index).index(row["statement"]) for row in rows]
    assert places == sorted(places) and places[-1] < index.index('class="entry"')
    for verdict in ("supported", "not supported", "undecided"):
        expected = sum(row["verdict"] == verdict for row in rows)
        assert index.count(f'<td class="{verdict.replace(" ", "-")}">') == expected


def test_without_its_notebook_the_contents_page_has_no_verdicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path))
    folder = tmp_path / "build" / "digits" / "notebooks"
    folder.mkdir(parents=True)
    shutil.copy(paths.notebooks_dir() / "00_start_here.ipynb", folder)
    index = write_site("digits").read_text(encoding="utf-8")
    assert "Verdicts" not in index and "Start here" in index and index.count("not executed") == 12


def test_every_promised_figure_is_in_its_page(pages: Path) -> None:
    for notebook in discover(paths.notebooks_dir()):
        page = (pages / f"{notebook.name}.html").read_text(encoding="utf-8")
        expected = sum(promise.endswith(".png") for promise in notebook.promises)
        assert page.count("<img") >= expected and page.count('src="data:image/png;base64,') == page.count("<img")


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None and not os.environ.get("CI"), reason="no Chromium or Chrome on this machine")
def test_a_browser_without_network_shows_every_page_light_and_dark(pages: Path) -> None:
    from playwright.sync_api import sync_playwright

    backgrounds, problems = set(), list[str]()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=list(OFFLINE))
        for scheme in ("light", "dark"):
            context = browser.new_context(offline=True, color_scheme=scheme)
            page = context.new_page()
            page.on("console", lambda message: problems.append(message.text))
            page.on("request", lambda r: r.url.startswith(("file:", "data:")) or problems.append(r.url))
            for path in sorted(pages.glob("*.html")):
                page.goto(path.as_uri())
                pictures: list[Any] = page.evaluate(PICTURES)
                assert pictures and all(width > 0 for width, _ in pictures), path.name
                assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path.name
            backgrounds.add(page.evaluate(BACKGROUND))
        browser.close()
    assert problems == []
    assert len(backgrounds) == 2
