"""The explorers in a real JupyterLab: notebooks opened in Chromium, run, and driven by keyboard and mouse.

Needs Chromium or Chrome (Debian: ``apt-get install chromium``) and the playwright package. A screenshot of the gate
explorer is written to the folder in the environment variable PAPERLIB_SCREENSHOTS, if it is set.
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
# Draw cells out of view too, and show no pop-up with news, which could cover a control.
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
TIMEOUT = 20_000  # ms; on an idle machine these steps take a second


@dataclass
class Lab:
    """A running JupyterLab."""

    url: str
    root: Path


@dataclass
class Opened:
    """A notebook in the browser, with the errors of page, console, kernel and network."""

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
    # If this process is killed, the server and its kernels end by themselves.
    options += ["--ServerApp.shutdown_no_activity_timeout=300", "--MappingKernelManager.cull_idle_timeout=300"]
    environment = {name: str(folder / name) for name in OWN_FOLDERS} | {"JUPYTER_TOKEN": "test"}
    environment |= {"PYTHONPATH": str(paths.ROOT), "PAPERLIB_HOME": str(folder / "home"), "PAPERLIB_LOCAL": "no"}
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=os.environ | environment,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for_server(url, process, log)
        yield Lab(url, root)
    finally:
        process.terminate()  # its kernels end with it
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)


def _wait_for_server(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{url}/api/status?token=test", timeout=2).close()
            return
        time.sleep(0.1)


# For this module only: while playwright is open, asyncio.run fails in other tests.
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
    """Opens a copy of a notebook, runs all of its cells, and records errors on every channel."""
    from playwright.sync_api import expect

    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    opened = Opened(context.new_page())
    _listen(opened, lab)

    def run(name: str) -> Opened:
        nb = nbformat.read(paths.notebooks_dir() / f"{name}.ipynb", as_version=4)
        for cell in nb.cells:
            if cell.cell_type == "code":  # outputs of an earlier run must not count
                cell.outputs, cell.execution_count = [], None
        nbformat.write(nb, lab.root / f"{name}.ipynb")
        opened.page.goto(f"{lab.url}/doc/tree/{name}.ipynb?token=test")
        # The notebook's indicator shows idle before there is a kernel, the status bar does not.
        expect(opened.page.locator("#jp-main-statusbar")).to_contain_text(IDLE, timeout=3 * TIMEOUT)
        for item in ("Run", "Run All Cells"):
            opened.page.get_by_role("menuitem", name=item, exact=True).click()
        opened.page.wait_for_function(ALL_RAN, timeout=9 * TIMEOUT)
        return opened

    yield run
    context.close()


def _listen(opened: Opened, lab: Lab) -> None:
    page, problems = opened.page, opened.problems
    page.on("pageerror", lambda error: problems.append(f"page: {error}"))
    page.on("console", lambda line: line.type == "error" and problems.append(f"console: {line.text}"))
    local = (lab.url, "data:", "blob:")
    page.on("request", lambda sent: sent.url.startswith(local) or problems.append(f"outside: {sent.url}"))

    def received(frame: bytes) -> None:
        kind, content = _message(frame)
        if kind == "error":  # of a cell, or of an observer, which is displayed nowhere else
            problems.append(f"kernel: {content['ename']}: {content['evalue']}")

    page.on("websocket", lambda socket: "/channels" in socket.url and socket.on("framereceived", received))


def _message(frame: bytes) -> tuple[str, Any]:
    """Kind and content of a kernel's message: a count, offsets, and the parts (protocol v1.kernel.websocket)."""
    count = int.from_bytes(frame[:8], "little")
    offsets = [int.from_bytes(frame[8 * i : 8 * i + 8], "little") for i in range(1, count + 1)]
    return json.loads(frame[offsets[1] : offsets[2]])["msg_type"], json.loads(frame[offsets[4] : offsets[5]])


class User:
    """Uses an explorer with keyboard and mouse, and reads its sentence and picture."""

    def __init__(self, opened: Opened) -> None:
        self.page = opened.page
        self.sentence = self.page.locator(".explorer-sentence .widget-html-content")

    def picture(self) -> bytes:
        return bytes(self.page.locator("img.explorer-picture").evaluate(BYTES))

    def expect_sentence(self, text: str) -> None:
        from playwright.sync_api import expect

        expect(self.sentence).to_contain_text(text, timeout=TIMEOUT)  # set last, after the picture

    def handle(self, name: str) -> Any:
        return self.page.locator(f".explorer-{name} [role=slider]")

    def drag(self, name: str, share: float) -> None:
        """Drag a slider's handle with the mouse to this share of its range."""
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
    user = User(opened)
    user.expect_sentence("image 0, true class 6, PGD, eps 0.15, 10 steps: the mixture predicts 6")
    pictures = [user.picture()]
    assert pictures[0].startswith(b"\x89PNG")
    for name in ("image", "attack", "eps", "steps"):
        label = opened.page.locator(f".explorer-{name} label")
        assert label.inner_text().strip() == name and len(label.get_attribute("title")) > 5

    # With the keyboard only: Tab moves between controls, left and right change them.
    user.handle("image").focus()
    for keys, expected in (
        ("ArrowRight", "image 1, true class "),
        ("Tab Tab", "image 1, true class "),  # the value of the first slider has a Tab stop of its own
        ("ArrowRight", "PGD, expert 0, eps 0.15"),
        ("Tab Tab", "expert 0"),
        ("ArrowRight", "eps 0.175, 10 steps"),
        ("Tab Tab", "eps 0.175"),
        ("ArrowLeft", "eps 0.175, 7 steps"),
    ):
        for key in keys.split():
            user.page.keyboard.press(key)
        user.expect_sentence(expected)
        if "Tab" not in keys:
            pictures.append(user.picture())

    user.drag("eps", 1.0)
    user.expect_sentence("eps 0.3, 7 steps")
    pictures.append(user.picture())
    user.drag("attack", 0.0)
    user.expect_sentence("not attacked: the mixture predicts")
    pictures.append(user.picture())
    assert len(set(pictures)) == len(pictures)
    user.drag("attack", 2 / 13)
    user.expect_sentence("PGD, eps 0.3, 7 steps: the mixture predicts")
    folder = Path(os.environ.get("PAPERLIB_SCREENSHOTS") or tmp_path)
    user.page.locator("img.explorer-picture").locator("xpath=..").screenshot(path=folder / "gate_explorer.png")
    assert opened.problems == []


@pytest.mark.parametrize(
    ("name", "first", "then"),
    [
        (
            "01_data",
            "image 0, class 0, every pixel moved by 0.15 at random",
            "image 1, class 1, every pixel moved by 0.15",
        ),
        ("03_experts", "image 0, true class 6, PGD, eps 0.15, 10 steps", "image 1, true class "),
    ],
)
def test_the_other_explorers_follow_the_keyboard(
    name: str, first: str, then: str, run_notebook: Callable[[str], Opened]
) -> None:
    opened = run_notebook(name)
    user = User(opened)
    user.expect_sentence(first)
    before = user.picture()
    user.handle("image").focus()
    user.page.keyboard.press("ArrowRight")
    user.expect_sentence(then)
    assert user.picture() != before
    assert opened.problems == []
