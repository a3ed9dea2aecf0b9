"""The explorers in a real JupyterLab: notebooks opened in Chromium, run, and driven by keyboard and mouse.

Needs Chromium or Chrome (Debian: ``apt-get install chromium``) and the playwright package. A screenshot of the gate
explorer is left in the folder that the environment variable PAPERLIB_SCREENSHOTS names, if it does.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nbformat
import pytest

from paperlib import paths

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None and not os.environ.get("CI"), reason="no Chromium or Chrome on this machine"),
]
OFFLINE = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)
# Cells out of view are drawn too, and no pop-up with news covers a control.
SETTINGS = {
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false"},
}
OWN_FOLDERS = (
    "JUPYTER_CONFIG_DIR",
    "JUPYTER_DATA_DIR",
    "JUPYTER_RUNTIME_DIR",
    "IPYTHONDIR",
    "JUPYTERLAB_SETTINGS_DIR",
    "JUPYTERLAB_WORKSPACES_DIR",
)
IDLE = "Python 3 (ipykernel) | Idle"
ALL_RAN = """() => {
    const prompts = [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent);
    return prompts.some(t => /\\d/.test(t)) && !prompts.some(t => t.includes('*'));
}"""
BYTES = "async e => [...new Uint8Array(await (await fetch(e.src)).arrayBuffer())]"
PATIENCE = 20_000  # ms, for what takes a second on a machine that does nothing else


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    root: Path


@dataclass
class Opened:
    """A notebook in the browser, and everything that went wrong behind its back."""

    page: Any
    problems: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("lab")
    root, log = folder / "root", folder / "lab.log"
    root.mkdir()
    for plugin, values in SETTINGS.items():
        path = folder / "JUPYTERLAB_SETTINGS_DIR" / f"@jupyterlab/{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", f"--ServerApp.root_dir={root}", "--ServerApp.port_retries=0", "--ip=127.0.0.1"]
    options += ["--no-browser", "--allow-root", "--LabApp.extension_manager=readonly"]
    # Should this process be killed, the server and its kernels leave by themselves.
    options += ["--ServerApp.shutdown_no_activity_timeout=300", "--MappingKernelManager.cull_idle_timeout=300"]
    here = {name: str(folder / name) for name in OWN_FOLDERS} | {"JUPYTER_TOKEN": "test"}
    here |= {"PYTHONPATH": str(paths.ROOT), "PAPERLIB_HOME": str(folder / "home"), "PAPERLIB_LOCAL": "no"}
    with log.open("w") as told:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | here,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _answers(url, process, log)
        yield Lab(url, root)
    finally:
        process.terminate()  # its kernels end with it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/api/status?token=test", timeout=2).close()
            return
        time.sleep(0.1)


# Of this module alone: while playwright is open, asyncio.run fails in other tests.
@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    assert BROWSER is not None, "CI must have a browser: see .ci/run"
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=list(OFFLINE))
        yield opened
        opened.close()


@pytest.fixture
def run_notebook(lab: Lab, browser: Any) -> Iterator[Callable[[str], Opened]]:
    """Opens a copy of a notebook of the series, runs all of it, and listens on every channel."""
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened = Opened(context.new_page())
    _listen(opened, lab)

    def run(name: str) -> Opened:
        nb = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=4)
        for cell in nb.cells:
            if cell.cell_type == "code":  # what ran before must not pass for what runs now
                cell.outputs, cell.execution_count = [], None
        nbformat.write(nb, lab.root / f"{name}.ipynb")
        opened.page.goto(f"{lab.url}/doc/tree/{name}.ipynb?token=test")
        # The notebook's own sign says idle before there is a kernel; the status bar knows better.
        expect(opened.page.locator("#jp-main-statusbar")).to_contain_text(IDLE, timeout=3 * PATIENCE)
        for item in ("Run", "Run All Cells"):
            opened.page.get_by_role("menuitem", name=item, exact=True).click()
        opened.page.wait_for_function(ALL_RAN, timeout=9 * PATIENCE)
        return opened

    yield run
    context.close()


def _listen(opened: Opened, lab: Lab) -> None:
    page, problems = opened.page, opened.problems
    page.on("pageerror", lambda error: problems.append(f"page: {error}"))
    page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text}"))
    own = (lab.url, "data:", "blob:")
    page.on("request", lambda asked: asked.url.startswith(own) or problems.append(f"outside: {asked.url}"))

    def received(frame: bytes) -> None:
        kind, content = _message(frame)
        if kind == "error":  # of a cell, or of an observer, which is seen nowhere else
            problems.append(f"kernel: {content['ename']}: {content['evalue']}")

    page.on("websocket", lambda socket: "/channels" in socket.url and socket.on("framereceived", received))


def _message(frame: bytes) -> tuple[str, Any]:
    """Kind and content of a kernel's message: a count, offsets, and the parts (protocol v1.kernel.websocket)."""
    count = int.from_bytes(frame[:8], "little")
    offsets = [int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
    return json.loads(frame[offsets[1] : offsets[2]])["msg_type"], json.loads(frame[offsets[4] : offsets[5]])


class Hands:
    """What a person does with an explorer, and what they see."""

    def __init__(self, opened: Opened) -> None:
        self.page = opened.page
        self.sentence = self.page.locator(".explorer-sentence .widget-html-content")

    def picture(self) -> bytes:
        return bytes(self.page.locator("img.explorer-picture").evaluate(BYTES))

    def sees(self, text: str) -> None:
        from playwright.sync_api import expect

        expect(self.sentence).to_contain_text(text, timeout=PATIENCE)  # set last: the picture has changed too

    def handle(self, name: str) -> Any:
        return self.page.locator(f".explorer-{name} [role=slider]")

    def drag(self, name: str, share: float) -> None:
        """Move a slider's handle with the mouse, to this share of its way."""
        self.handle(name).scroll_into_view_if_needed()
        handle = self.handle(name).bounding_box()
        track = self.page.locator(f".explorer-{name} .noUi-target").bounding_box()
        height = handle["y"] + handle["height"] / 2
        self.page.mouse.move(handle["x"] + handle["width"] / 2, height)
        self.page.mouse.down()
        self.page.mouse.move(track["x"] + share * track["width"], height, steps=8)
        self.page.mouse.up()


def test_the_gate_explorer_follows_keyboard_and_mouse(run_notebook: Callable[[str], Opened], tmp_path: Path) -> None:
    opened = run_notebook("08_gate")
    hands = Hands(opened)
    hands.sees("image 0, a 6, PGD, eps 0.15, 10 steps: the mixture said 6")
    pictures = [hands.picture()]
    assert pictures[0].startswith(b"\x89PNG")

    # From the keyboard alone: Tab from control to control, left and right to change them.
    hands.handle("image").focus()
    for keys, seen in (
        ("ArrowRight", "image 1, a "),
        ("Tab Tab", "image 1, a "),  # between two sliders lies the value of the first
        ("ArrowRight", "PGD, expert 0, eps 0.15"),
        ("Tab Tab", "expert 0"),
        ("ArrowRight", "eps 0.175, 10 steps"),
        ("Tab Tab", "eps 0.175"),
        ("ArrowLeft", "eps 0.175, 7 steps"),
    ):
        for key in keys.split():
            hands.page.keyboard.press(key)
        hands.sees(seen)
        if "Tab" not in keys:
            pictures.append(hands.picture())

    hands.drag("eps", 1.0)
    hands.sees("eps 0.3, 7 steps")
    pictures.append(hands.picture())
    hands.drag("attack", 0.0)
    hands.sees("not attacked: the mixture says")
    pictures.append(hands.picture())
    assert len(set(pictures)) == len(pictures)
    hands.drag("attack", 2 / 13)
    hands.sees("PGD, eps 0.3, 7 steps: the mixture said")
    folder = Path(os.environ.get("PAPERLIB_SCREENSHOTS") or tmp_path)
    hands.page.locator("img.explorer-picture").locator("xpath=..").screenshot(path=folder / "gate_explorer.png")
    assert opened.problems == []


def test_every_control_says_what_it_is(run_notebook: Callable[[str], Opened]) -> None:
    opened = run_notebook("08_gate")
    Hands(opened).sees("image 0")
    for name in ("image", "attack", "eps", "steps"):
        control = opened.page.locator(f".explorer-{name}")
        label = control.locator("label")
        assert label.inner_text().strip() == name and len(label.get_attribute("title")) > 5
        control.locator("[role=slider]").focus()
    assert opened.problems == []


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        ("01_data", "a 0, every pixel moved by 0.15 at random", "a 1, every pixel moved by 0.15 at random"),
        ("03_experts", "image 0, a 6, PGD, eps 0.15, 10 steps", "image 1, a "),
    ],
)
def test_the_smaller_explorers_answer(name: str, first: str, then: str, run_notebook: Callable[[str], Opened]) -> None:
    opened = run_notebook(name)
    hands = Hands(opened)
    hands.sees(first)
    before = hands.picture()
    hands.handle("image").focus()
    hands.page.keyboard.press("ArrowRight")
    hands.sees(then)
    assert hands.picture() != before
    assert opened.problems == []
