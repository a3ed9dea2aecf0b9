"""The runner believes no notebook that did not run or did not deliver, and leaves no process behind."""

from __future__ import annotations

import json
import time
from pathlib import Path

import nbformat
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from toys import logged, micro_table, toml_text

from paperlib import paths
from paperlib.errors import MissingError, SeriesError
from paperlib.series import catalogue, hygiene, notebook_format, runner
from paperlib.series import process as process_module
from paperlib.series import refresh as refresh_module
from paperlib.systems.registry import COMPARED

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PARAMETERS = 'profile = "tiny"\nseed = 0\nreplay = True\nseeds = []'
HANGS = "import os, time\nprint('asleep', os.getpid())\ntime.sleep(600)"
STORY = """# The *good* one, $x^2$

What it shows: $\\sqrt{2}$ and a [neighbour](01_raises.ipynb).

$$\\begin{aligned} a &= b \\end{aligned}$$

$$\\nosuchcommand{x}$$

![a local picture](dot.png)"""
GOOD = [
    "import base64, os, sys\nfrom pathlib import Path\nfrom IPython.display import Image",
    "print('who', sys.executable)\nprint('where', os.getcwd())\nprint('bars', os.environ['PAPERLIB_PROGRESS'])",
    "folder = Path(os.environ['PAPERLIB_HOME']) / 'figures' / profile\nfolder.mkdir(parents=True, exist_ok=True)",
    "_ = (folder / 'dot.csv').write_text(f'{seed} {replay}')",
    f"Image(base64.b64decode({PIXEL!r}))",
]


def write(folder: Path, name: str, *cells: str, promises: object = (), parameters: str = PARAMETERS) -> Path:
    """A notebook with a title, a parameters cell and ``cells``."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb = new_notebook(cells=[new_markdown_cell(STORY), tagged, *map(new_code_cell, cells)])
    nb.metadata["paperlib"] = {"promises": list(promises) if isinstance(promises, tuple) else promises}
    folder.mkdir(exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def kernels(folder: Path) -> list[psutil.Process]:
    """The living kernels that work in ``folder``."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd", "status"]):
        if "ipykernel_launcher" in (process.info["cmdline"] or ()) and process.info["cwd"] == str(folder):
            found.append(process)
    return [process for process in found if process.info["status"] != psutil.STATUS_ZOMBIE]


def place(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make ``folder`` the current one, with the series and, by a relative path, the results in it."""
    folder = folder.resolve()
    patch.chdir(folder)
    patch.setenv("PAPERLIB_HOME", "results")
    patch.setenv("MPLBACKEND", "Agg")
    patch.setattr(paths, "notebooks_dir", lambda: folder / "notebooks")
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return place(tmp_path, monkeypatch)


class Ran:
    """One run of a series in which all but the first notebook fail, each in its way."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = place(folder, patch)
        self.said: list[str] = []
        notebooks = self.folder / "notebooks"
        write(notebooks, "00_good", *GOOD, promises=("dot.csv",))
        write(notebooks, "01_raises", "ok = 1", "\n# why\n{}['missing']", "never = 1")
        write(
            notebooks, "02_killed", "import os, subprocess\nsubprocess.Popen(['sleep', '600'])\nos.kill(os.getpid(), 9)"
        )
        write(notebooks, "03_forgets", GOOD[0], GOOD[2], promises=("gone.csv", "old.csv", "empty.csv"))
        write(notebooks, "scratch", "1 / 0")
        figures = self.folder / "results" / "figures" / "tiny"
        figures.mkdir(parents=True)
        (figures / "old.csv").write_text("from before")
        (figures / "empty.csv").write_text("")
        # A user's own python3 kernel, and one of the machine, must not be taken for this interpreter.
        kernel = self.folder / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
        patch.setenv("JUPYTER_PATH", str(self.folder / "jupyter"))
        self.executed = self.folder / "results" / "build" / "tiny" / "notebooks"
        self.executed.mkdir(parents=True)
        (self.executed / "01_raises.ipynb").write_text("of an earlier run")
        with pytest.raises(SeriesError) as caught, logged(self.said.append):
            runner.run_series("tiny", seed=7)
        self.message = str(caught.value)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    with pytest.MonkeyPatch.context() as patch:
        return Ran(tmp_path_factory.mktemp("series"), patch)


# -------------------------------------------------------------------------------------------------------- a whole run


def test_a_good_notebook_runs_here_and_keeps_its_promise(ran: Ran) -> None:
    import sys

    assert (ran.folder / "results/figures/tiny/dot.csv").read_text() == "7 False"
    assert f"00 | who {sys.executable}" in ran.said
    assert f"00 | where {ran.folder / 'notebooks'}" in ran.said
    assert "00 | bars lines" in ran.said
    assert ran.said[0] == "00_good: started"
    assert any(line.startswith("00_good: done (") for line in ran.said)
    assert "00_good" not in ran.message
    assert (ran.executed / "00_good.ipynb").exists()
    assert not (ran.executed / "00_good.partial.ipynb").exists()


def test_each_failure_is_named_and_does_not_stop_the_others(ran: Ran) -> None:
    assert ran.message.startswith("3 of 4 notebooks failed at profile tiny:")
    assert "01_raises: cell 3 `# why`: KeyError: 'missing'" in ran.message
    assert "02_killed: cell 2 `import os, subprocess`: DeadKernelError: Kernel died" in ran.message
    broken = "gone.csv is missing; old.csv was not written by this run; empty.csv is empty"
    assert f"03_forgets: BrokenPromise: {broken}" in ran.message
    assert f"(it left {ran.executed / '01_raises.partial.ipynb'})" in ran.message


def test_what_failed_leaves_no_result_no_process_and_no_litter(ran: Ran) -> None:
    left = ["00_good.ipynb", "01_raises.partial.ipynb", "02_killed.partial.ipynb", "03_forgets.partial.ipynb"]
    assert sorted(path.name for path in ran.executed.iterdir()) == left
    assert {path.suffix for path in (ran.folder / "notebooks").iterdir()} == {".ipynb"}
    assert not kernels(ran.folder / "notebooks")
    orphans = [p for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cmdline"] == ["sleep", "600"]]
    assert not [p for p in orphans if p.info["cwd"] == str(ran.folder / "notebooks")]


def test_reading_copy_needs_no_network(ran: Ran, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    from paperlib.series.network_loads import network_loads
    from paperlib.series.site import write_site

    place(ran.folder, monkeypatch)
    monkeypatch.setattr(paths, "ROOT", ran.folder)
    import base64

    (ran.folder / "notebooks" / "dot.png").write_bytes(base64.b64decode(PIXEL))
    said = log_lines
    index = write_site("tiny")
    assert sorted(path.name for path in index.parent.iterdir()) == ["00_good.html", "index.html"]
    contents, page = index.read_text(), (index.parent / "00_good.html").read_text()
    assert network_loads(contents) == network_loads(page) == []
    assert "<script" not in page
    assert page.count(f"data:image/png;base64,{PIXEL}") == 2  # the output, and the picture the Markdown names
    assert "<msqrt>" in page
    assert "<mtable" in page
    assert '<code class="tex">\\nosuchcommand{x}</code>' in page
    assert [line for line in said if "formula" in line and "nosuchcommand" in line]
    assert 'href="01_raises.html"' in page
    assert 'href="index.html"' in page
    assert '<a href="00_good.html">The <em>good</em> one' in contents
    assert "What it shows" in contents
    assert "<code>tiny</code>" in contents
    assert contents.count("not executed") == 3
    with pytest.raises(MissingError, match="reproduce --profile other"):
        write_site("other")


def test_network_loads_are_found() -> None:
    from paperlib.series.network_loads import network_loads

    page = """<script src="https://a/x.js"></script><link href="//b/y.css"><img src="http://c/z.png">
    <a href="https://fine">link</a><img src="data:image/png;base64,AA">
    <style>@import "https://d/e.css"; p { background: url(https://f/g.png) }</style>"""
    assert network_loads(page) == [
        "https://a/x.js",
        "//b/y.css",
        "http://c/z.png",
        "https://d/e.css",
        "https://f/g.png",
    ]


# ------------------------------------------------------------------------------------------------------ hanging, dying


def test_a_notebook_over_the_limit_is_ended_with_its_kernel(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(here / "notebooks", "00_hangs", HANGS)
    ahead = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(process_module.time, "monotonic", lambda: clock() + ahead[0])

    def watch(line: str) -> None:
        if "asleep" in line:
            assert kernels(here / "notebooks")
            ahead[0] = 1e4  # the limit is over at this moment, however slow the machine was to get here

    stopped = "cell 2 `import os, time`: TimeLimit: stopped after 1000 s"
    with pytest.raises(SeriesError, match=stopped), logged(watch):
        runner.run_series("tiny", timeout=1000)
    assert not kernels(here / "notebooks")
    partial = paths.build_dir("tiny") / "notebooks" / "00_hangs.partial.ipynb"
    assert notebook_format.read(partial).cells[1].execution_count == 1


def test_a_notebook_ends_when_its_runner_dies(here: Path) -> None:
    source = write(here / "notebooks", "00_hangs", HANGS)
    scratch = here / "paperlib-x"
    scratch.mkdir()
    job = process_module.Job(source, here / "{out}.ipynb", {"profile": "tiny"}, 1)
    process_module._describe(job, scratch)
    process = process_module._start(scratch)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"asleep")
        assert kernels(here / "notebooks")
        process.stdin.close()  # as the system does for a runner that is gone
        assert process.wait(timeout=20) == 1
    assert not kernels(here / "notebooks")
    assert not scratch.exists()
    assert (here / "{out}.ipynb").exists()


# ------------------------------------------------------------------------------------------------ before anything runs


def test_what_is_there(here: Path) -> None:
    write(here / "notebooks", "07_b", promises=("a.png", "t/b.csv"))
    write(here / "notebooks", "02_a")
    found = catalogue.discover(here / "notebooks")
    assert [(one.name, one.number, one.title) for one in found] == [
        ("02_a", 2, "The *good* one, $x^2$"),
        ("07_b", 7, "The *good* one, $x^2$"),
    ]
    assert found[1].promises == ("a.png", "t/b.csv")
    assert [one.name for one in catalogue.select(found, ["7", "02_a.ipynb"])] == ["02_a", "07_b"]
    assert [one.name for one in catalogue.select(found, ["07"])] == ["07_b"]


@pytest.mark.parametrize("promises", ["a.png", ["../a.png"], ["/a.png"], [1], [""]])
def test_bad_promises_are_refused(here: Path, promises: object) -> None:
    write(here / "notebooks", "00_a", promises=promises)
    with pytest.raises(SeriesError, match="promise"):
        catalogue.discover(here / "notebooks")


@pytest.mark.parametrize("needs", ["dwf", [1], [""]])
def test_bad_needs_are_refused(here: Path, needs: object) -> None:
    path = write(here / "notebooks", "00_a")
    nb = nbformat.read(path, as_version=4)
    nb.metadata["paperlib"]["needs"] = needs
    nbformat.write(nb, path)
    with pytest.raises(SeriesError, match="needs must be a list of systems"):
        catalogue.discover(here / "notebooks")


def test_a_notebook_whose_systems_a_profile_leaves_out_is_not_run(here: Path, log_lines: list[str]) -> None:
    table = micro_table()
    table["study"] = {"systems": [*COMPARED, "soe"]}
    profile = here / "few.toml"
    profile.write_text(toml_text(table), encoding="utf-8")
    for name, needs in (("01_there", ["soe"]), ("02_gone", ["soe", "advmoe"]), ("03_any", [])):
        path = write(here / "notebooks", name)
        nb = nbformat.read(path, as_version=4)
        nb.metadata["paperlib"]["needs"] = needs
        nbformat.write(nb, path)
    told = log_lines
    outcomes = runner.run_series("few.toml")
    assert [outcome.notebook.name for outcome in outcomes] == ["01_there", "03_any"]
    assert told[0] == f"02_gone: not run, profile {profile} leaves out advmoe"
    assert outcomes[0].executed == paths.build_dir("few") / "notebooks" / "01_there.ipynb"
    assert f'profile = "{profile}"' in outcomes[0].executed.read_text().replace('\\"', '"')
    assert paths.figures_dir("a/few.toml") == paths.figures_dir("few")


def test_a_series_must_be_there_and_unambiguous(here: Path) -> None:
    (here / "notebooks").mkdir()
    with pytest.raises(SeriesError, match="no numbered notebook"):
        runner.run_series("tiny")
    write(here / "notebooks", "00_a")
    write(here / "notebooks", "00_b")
    with pytest.raises(SeriesError, match="share the number 00"):
        runner.run_series("tiny")
    (here / "notebooks" / "00_b.ipynb").write_text("{")
    with pytest.raises(SeriesError, match=r"00_b.ipynb cannot be read as a notebook"):
        runner.run_series("tiny")


def test_an_unknown_selector_lists_the_names(here: Path) -> None:
    write(here / "notebooks", "00_a")
    write(here / "notebooks", "01_b")
    with pytest.raises(SeriesError, match="no notebook 02, a; there are: 00_a, 01_b"):
        runner.run_series("tiny", only=["01", "02", "a"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('profile = "tiny"\nsede = 0\nreplay = True', "does not take the parameter seed; .* profile, sede, replay"),
        ('profile = "tiny"\nseed = int(0)\nreplay = True', "line 2 computes its value"),
        ("import os", "line 1 is not `name = literal`"),
        ("profile =", "only assign literals"),
    ],
)
def test_parameters_are_checked_first(here: Path, parameters: str, message: str, log_lines: list[str]) -> None:
    write(here / "notebooks", "00_a")
    write(here / "notebooks", "01_b", parameters=parameters)
    said = log_lines
    with pytest.raises(SeriesError, match=message):
        runner.run_series("tiny")
    assert said == []


# -------------------------------------------------------------------------------------------------- the committed form


def test_refresh_rewrites_the_committed_notebook(here: Path) -> None:
    path = write(here / "notebooks", "00_good", *GOOD[:1], *GOOD[2:], promises=("dot.csv",))
    other = write(here / "notebooks", "01_other", parameters=PARAMETERS.replace("True", "False"))
    before = path.read_text(), other.read_text()
    with pytest.raises(
        SeriesError, match="01_other: its parameters cell must say what is run, but says replay = False"
    ):
        refresh_module.refresh("tiny")
    assert (path.read_text(), other.read_text()) == before
    assert refresh_module.refresh("tiny", only=["00"]) == [path]
    assert (here / "results/figures/tiny/dot.csv").read_text() == "0 True"
    assert hygiene.check_hygiene(path) == []
    nb = notebook_format.read(path)
    assert nb.cells[1].source == PARAMETERS
    assert [cell.execution_count for cell in nb.cells if cell.cell_type == "code"] == [1, 2, 3, 4, 5]
    assert nb.cells[-1].outputs[0].data["image/png"].strip() == PIXEL
    assert nb.metadata.paperlib.promises == ["dot.csv"]
    assert notebook_format.normalise_file(path) is False


def stream(text: str, name: str = "stdout") -> object:
    return new_output("stream", name=name, text=text)


def leaky() -> nbformat.NotebookNode:
    """A notebook as a runner, a front end and a widget leave it."""
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}
    shown = [
        stream("Kernel is running over TCP without encryption. All ...\n", "stderr"),
        stream("a"),
        stream("b\n 10%\r100%\n"),
        stream("kept\n", "stderr"),
        new_output("display_data", view),
        new_output("display_data", view | {"text/html": "<b>static twin</b>"}),
        new_output("execute_result", {"text/plain": "3"}, execution_count=9),
    ]
    nb = new_notebook(
        cells=[
            new_code_cell("seed = 0\n", metadata={"tags": ["parameters"]}, execution_count=8),
            new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}, execution_count=9),
            new_code_cell("x", outputs=shown, execution_count=12, metadata={"papermill": {"duration": 1}, "tags": []}),
            new_code_cell("not run"),
        ]
    )
    nb.metadata = nbformat.from_dict(
        {
            "kernelspec": {"name": "my-env", "display_name": "my env"},
            "language_info": {"name": "python", "version": "3.11.7"},
            "papermill": {"input_path": "/home/me/x.ipynb"},
            "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
            "paperlib": {"promises": []},
        }
    )
    return nb


def test_normalise_removes_leaks_and_keeps_the_rest() -> None:
    nb = leaky()
    untouched = json.dumps(nb)
    done = notebook_format.normalise(nb)
    assert json.dumps(nb) == untouched
    assert sorted(done.metadata) == ["kernelspec", "language_info", "paperlib"]
    assert done.metadata.kernelspec == {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    assert "version" not in done.metadata.language_info
    assert [cell.id for cell in done.cells] == ["cell-00", "cell-01", "cell-02"]
    assert [cell.execution_count for cell in done.cells] == [1, 2, None]
    assert [dict(cell.metadata) for cell in done.cells] == [{"tags": ["parameters"]}, {}, {}]
    kinds = [output.get("text") or output.data for output in done.cells[1].outputs]
    assert kinds == [
        "ab\n100%\n",
        "kept\n",
        {"text/html": "<b>static twin</b>", "text/plain": "VBox()"},
        {"text/plain": "3"},
    ]
    assert done.cells[1].outputs[-1].execution_count == 2
    text = notebook_format.text_of(done)
    assert text == notebook_format.text_of(notebook_format.normalise(done))
    assert text.endswith("}\n")
    nbformat.validate(done)


def test_old_formats_are_brought_up_to_date(tmp_path: Path) -> None:
    nb = leaky()
    nb.nbformat_minor = 2
    for cell in nb.cells:
        del cell["id"]
    path = tmp_path / "old.ipynb"
    path.write_text(json.dumps(nb))
    assert notebook_format.normalise_file(path) is True
    assert path.read_text() == notebook_format.text_of(notebook_format.normalise(leaky()))


def planted(**changes: object) -> nbformat.NotebookNode:
    nb = new_notebook(cells=[new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]}, execution_count=1)])
    nb.cells.append(new_code_cell(**({"source": "1", "execution_count": 2} | changes)))
    return notebook_format.normalise(nb)


LONG = "\n".join(["def f():", *["    x = 1"] * 25])
BAD_CELLS = {
    "an absolute path: /home/me/data": {"source": "open('/home/me/data')"},
    "an absolute path: /tmp": {"outputs": [stream("see /tmp")]},
    "an absolute path: C:\\data": {"source": "open('C:\\data')"},
    "an absolute path: /root/x.py:3": {"outputs": [new_output("display_data", {"text/html": "<i> /root/x.py:3 </i>"})]},
    "a memory address": {"outputs": [new_output("display_data", {"text/plain": "<f at 0x7f0011223344>"})]},
    "a traceback: ValueError: no": {"outputs": [new_output("error", ename="ValueError", evalue="no", traceback=[])]},
    "a traceback in what it printed": {"outputs": [stream("Traceback (most recent call last):\n", "stderr")]},
    "never executed": {"execution_count": None},
    "an empty code cell": {"source": "", "execution_count": None},
    "26 lines of code": {"source": LONG},
    "function f has 26 lines": {"source": LONG},
    "is not Python": {"source": "1 +"},
}


@pytest.mark.parametrize("problem", BAD_CELLS)
def test_hygiene_reports_a_planted_cell(tmp_path: Path, problem: str) -> None:
    path = tmp_path / "a.ipynb"
    path.write_text(notebook_format.text_of(planted(**BAD_CELLS[problem])))
    assert any(found.startswith(f"cell 1: {problem}") for found in hygiene.check_hygiene(path))


def test_hygiene_passes_what_only_looks_bad(tmp_path: Path) -> None:
    source = "%matplotlib inline\nurl = 'https://host.org/home/work'\nfolder = '../work/tmp'\nprint('N:\\n')"
    picture = new_output("display_data", {"image/png": "AAAA/tmp/AAAA", "text/plain": "<Figure>"})
    page = new_output("display_data", {"text/html": '<img src="data:image/png;base64,AA/home/AA">'})
    path = tmp_path / "a.ipynb"
    path.write_text(notebook_format.text_of(planted(source=source, outputs=[picture, page])))
    assert hygiene.check_hygiene(path) == []


def test_hygiene_reports_a_planted_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"

    def problems(nb: nbformat.NotebookNode) -> str:
        path.write_text(notebook_format.text_of(nb))
        return "\n".join(hygiene.check_hygiene(path))

    found = problems(leaky())
    assert "not in the committed form" in found
    assert "widget state in the metadata" in found
    assert "a widget view, dead without its kernel" in found
    assert "does not set profile, replay" in found
    nb = planted()
    nb.cells[1].metadata["tags"] = ["parameters"]
    assert "must carry the tag 'parameters', found 2" in problems(nb)
    nb = planted()
    nb.cells[0].source += "\nfolder = Path()"
    assert "line 5 computes its value" in problems(nb)
    assert "1.6 MB, more than 1.5 MB" in problems(planted(outputs=[stream("x" * 1_600_000)]))
    path.write_text("[]")
    assert "cannot be read as a notebook" in hygiene.check_hygiene(path)[0]
