"""The runner reports every notebook that fails or misses a promised file, and leaves no process behind."""

from __future__ import annotations

import base64
import json
import sys
import time
from pathlib import Path

import nbformat
import notebook_hygiene as hygiene
import psutil
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from toys import logged, micro_table, toml_text

from paperlib import paths
from paperlib.errors import MissingError, SeriesError
from paperlib.series import catalogue, notebook_format, runner
from paperlib.series import process as process_module
from paperlib.series.network_loads import network_loads
from paperlib.series.refresh import refresh
from paperlib.series.site import write_site
from paperlib.systems.registry import COMPARED

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
PARAMETERS = 'profile = "tiny"\nseed = 0\nreplay = True\nseeds = []'
HANGS = "import os, time\nprint('asleep', os.getpid())\ntime.sleep(600)"
INTRODUCTION = """# The *good* one, $x^2$

What it shows: $\\sqrt{2}$ and a [neighbour](01_raises.ipynb).

$$\\begin{aligned} a &= b \\end{aligned}$$

$$\\nosuchcommand{x}$$

![a local picture](dot.png)"""
GOOD = [
    "import base64, os, sys\nfrom pathlib import Path\nfrom IPython.display import Image",
    "print('python', sys.executable)\nprint('folder', os.getcwd())\nprint('bars', os.environ['PAPERLIB_PROGRESS'])",
    "folder = Path(os.environ['PAPERLIB_HOME']) / 'figures' / profile\nfolder.mkdir(parents=True, exist_ok=True)",
    "_ = (folder / 'dot.csv').write_text(f'{seed} {replay}')",
    f"Image(base64.b64decode({PIXEL!r}))",
]


def write(folder: Path, name: str, *cells: str, promises: object = (), parameters: str = PARAMETERS) -> Path:
    """A notebook with a title, a parameters cell and ``cells``."""
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
    nb = new_notebook(cells=[new_markdown_cell(INTRODUCTION), tagged, *map(new_code_cell, cells)])
    nb.metadata["paperlib"] = {"promises": list(promises) if isinstance(promises, tuple) else promises}
    folder.mkdir(exist_ok=True)
    nbformat.write(nb, folder / f"{name}.ipynb")
    return folder / f"{name}.ipynb"


def kernels(folder: Path) -> list[psutil.Process]:
    """The running kernels with ``folder`` as working directory."""
    return [
        process
        for process in psutil.process_iter(["cmdline", "cwd", "status"])
        if "ipykernel_launcher" in (process.info["cmdline"] or ())
        and process.info["cwd"] == str(folder)
        and process.info["status"] != psutil.STATUS_ZOMBIE
    ]


def work_in(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make ``folder`` the current one, with the notebooks and, by a relative path, the results in it."""
    folder = folder.resolve()
    patch.chdir(folder)
    patch.setenv("PAPERLIB_HOME", "results")
    patch.setenv("MPLBACKEND", "Agg")
    patch.setattr(paths, "notebooks_dir", lambda: folder / "notebooks")
    return folder


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return work_in(tmp_path, monkeypatch)


class SeriesRun:
    """One run of a series in which all notebooks but the first fail, each for another reason."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = work_in(folder, patch)
        self.log: list[str] = []
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
        # A kernel named python3 of the user or the machine must not replace this interpreter.
        kernel = self.folder / "jupyter" / "kernels" / "python3"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text('{"argv": ["false"], "display_name": "other", "language": "python"}')
        patch.setenv("JUPYTER_PATH", str(self.folder / "jupyter"))
        self.executed = self.folder / "results" / "build" / "tiny" / "notebooks"
        self.executed.mkdir(parents=True)
        (self.executed / "01_raises.ipynb").write_text("of an earlier run")
        with pytest.raises(SeriesError) as error, logged(self.log.append):
            runner.run_series("tiny", seed=7)
        self.message = str(error.value)


@pytest.fixture(scope="module")
def series(tmp_path_factory: pytest.TempPathFactory) -> SeriesRun:
    with pytest.MonkeyPatch.context() as patch:
        return SeriesRun(tmp_path_factory.mktemp("series"), patch)


# -- a complete run ---------------------------------------------------------------------------------------------------


def test_a_good_notebook_runs_with_this_interpreter_and_writes_its_files(series: SeriesRun) -> None:
    assert (series.folder / "results/figures/tiny/dot.csv").read_text() == "7 False"
    assert f"00 | python {sys.executable}" in series.log
    assert f"00 | folder {series.folder / 'notebooks'}" in series.log
    assert "00 | bars lines" in series.log
    assert series.log[0] == "00_good: started"
    assert any(line.startswith("00_good: done (") for line in series.log)
    assert "00_good" not in series.message
    assert (series.executed / "00_good.ipynb").exists()
    assert not (series.executed / "00_good.partial.ipynb").exists()


def test_each_failure_is_reported_and_does_not_stop_the_others(series: SeriesRun) -> None:
    assert series.message.startswith("3 of 4 notebooks failed at profile tiny:")
    assert "01_raises: cell 3 `# why`: KeyError: 'missing'" in series.message
    assert "02_killed: cell 2 `import os, subprocess`: DeadKernelError: Kernel died" in series.message
    broken = "gone.csv is missing; old.csv was not written by this run; empty.csv is empty"
    assert f"03_forgets: BrokenPromise: {broken}" in series.message
    assert f"(partial notebook: {series.executed / '01_raises.partial.ipynb'})" in series.message


def test_failed_notebooks_leave_no_result_no_process_and_no_other_file(series: SeriesRun) -> None:
    remaining = ["00_good.ipynb", "01_raises.partial.ipynb", "02_killed.partial.ipynb", "03_forgets.partial.ipynb"]
    assert sorted(path.name for path in series.executed.iterdir()) == remaining
    assert {path.suffix for path in (series.folder / "notebooks").iterdir()} == {".ipynb"}
    assert not kernels(series.folder / "notebooks")
    orphans = [p for p in psutil.process_iter(["cmdline", "cwd"]) if p.info["cmdline"] == ["sleep", "600"]]
    assert not [p for p in orphans if p.info["cwd"] == str(series.folder / "notebooks")]


def test_the_site_needs_no_network(series: SeriesRun, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]) -> None:
    work_in(series.folder, monkeypatch)
    monkeypatch.setattr(paths, "ROOT", series.folder)
    (series.folder / "notebooks" / "dot.png").write_bytes(base64.b64decode(PIXEL))
    log_lines.clear()
    index = write_site("tiny")
    assert sorted(path.name for path in index.parent.iterdir()) == ["00_good.html", "index.html"]
    contents, page = index.read_text(), (index.parent / "00_good.html").read_text()
    assert network_loads(contents) == network_loads(page) == []
    assert "<script" not in page
    assert page.count(f"data:image/png;base64,{PIXEL}") == 2  # the output, and the picture of the Markdown
    assert "<msqrt>" in page
    assert "<mtable" in page
    assert '<code class="tex">\\nosuchcommand{x}</code>' in page
    assert [line for line in log_lines if "formula" in line and "nosuchcommand" in line]
    assert 'href="01_raises.html"' in page
    assert 'href="index.html"' in page
    assert '<a href="00_good.html">The <em>good</em> one' in contents
    assert "What it shows" in contents
    assert "<code>tiny</code>" in contents
    assert contents.count("not executed") == 3
    with pytest.raises(MissingError, match="reproduce --profile other"):
        write_site("other")


def test_network_loads_are_found() -> None:
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


# -- time limit, end of the runner ------------------------------------------------------------------------------------


def test_a_notebook_over_the_limit_is_ended_with_its_kernel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder / "notebooks", "00_hangs", HANGS)
    offset = [0.0]
    clock = time.monotonic
    monkeypatch.setattr(process_module.time, "monotonic", lambda: clock() + offset[0])

    def watch(line: str) -> None:
        if "asleep" in line:
            assert kernels(folder / "notebooks")
            offset[0] = 1e4  # the clock passes the limit now, also on a slow machine

    message = "cell 2 `import os, time`: TimeLimit: stopped after 1000 s"
    with pytest.raises(SeriesError, match=message), logged(watch):
        runner.run_series("tiny", timeout=1000)
    assert not kernels(folder / "notebooks")
    partial = paths.build_dir("tiny") / "notebooks" / "00_hangs.partial.ipynb"
    assert notebook_format.read(partial).cells[1].execution_count == 1


def test_a_notebook_ends_when_its_runner_dies(folder: Path) -> None:
    source = write(folder / "notebooks", "00_hangs", HANGS)
    scratch = folder / "paperlib-x"
    scratch.mkdir()
    job = process_module.Job(source, folder / "{out}.ipynb", {"profile": "tiny"}, 1)
    process_module._write_job(job, scratch)
    process = process_module._start(scratch)
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdout:
        assert process.stdout.readline().startswith(b"asleep")
        assert kernels(folder / "notebooks")
        process.stdin.close()  # as the system does when the runner ends
        assert process.wait(timeout=20) == 1
    assert not kernels(folder / "notebooks")
    assert not scratch.exists()
    assert (folder / "{out}.ipynb").exists()


# -- checks before the first notebook ---------------------------------------------------------------------------------


def test_discovery_and_selection(folder: Path) -> None:
    write(folder / "notebooks", "07_b", promises=("a.png", "t/b.csv"))
    write(folder / "notebooks", "02_a")
    notebooks = catalogue.discover(folder / "notebooks")
    assert [(one.name, one.number, one.title) for one in notebooks] == [
        ("02_a", 2, "The *good* one, $x^2$"),
        ("07_b", 7, "The *good* one, $x^2$"),
    ]
    assert notebooks[1].promises == ("a.png", "t/b.csv")
    assert [one.name for one in catalogue.select(notebooks, ["7", "02_a.ipynb"])] == ["02_a", "07_b"]
    assert [one.name for one in catalogue.select(notebooks, ["07"])] == ["07_b"]


def test_invalid_promises_and_needs_are_refused(folder: Path) -> None:
    for promises in ("a.png", ["../a.png"], ["/a.png"], [1], [""]):
        write(folder / "notebooks", "00_a", promises=promises)
        with pytest.raises(SeriesError, match="promise"):
            catalogue.discover(folder / "notebooks")
    for needs in ("dwf", [1], [""]):
        write_needs(folder, "00_a", needs)
        with pytest.raises(SeriesError, match="needs must be a list of systems"):
            catalogue.discover(folder / "notebooks")


def write_needs(folder: Path, name: str, needs: object) -> None:
    """A notebook with these systems as ``metadata.paperlib.needs``."""
    path = write(folder / "notebooks", name)
    nb = nbformat.read(path, as_version=4)
    nb.metadata["paperlib"]["needs"] = needs
    nbformat.write(nb, path)


def test_a_notebook_is_not_run_at_a_profile_without_its_systems(folder: Path, log_lines: list[str]) -> None:
    table = micro_table()
    table["study"] = {"systems": [*COMPARED, "soe"]}
    profile = folder / "few.toml"
    profile.write_text(toml_text(table), encoding="utf-8")
    write_needs(folder, "01_available", ["soe"])
    write_needs(folder, "02_unavailable", ["soe", "advmoe"])
    figure = paths.figures_dir("few.toml") / "old.png"  # promised by the notebook that is not run
    nb = nbformat.read(folder / "notebooks" / "02_unavailable.ipynb", as_version=4)
    nb.metadata["paperlib"]["promises"] = ["old.png"]
    nbformat.write(nb, folder / "notebooks" / "02_unavailable.ipynb")
    figure.parent.mkdir(parents=True)
    figure.touch()
    figure.with_suffix(".svg").touch()
    outcomes = runner.run_series("few.toml")
    assert [outcome.notebook.name for outcome in outcomes] == ["01_available"]
    assert log_lines[0] == f"02_unavailable: not run, profile {profile} does not contain advmoe"
    assert not figure.exists() and not figure.with_suffix(".svg").exists()
    assert outcomes[0].executed == paths.build_dir("few") / "notebooks" / "01_available.ipynb"
    assert f'profile = "{profile}"' in outcomes[0].executed.read_text().replace('\\"', '"')
    assert paths.figures_dir("a/few.toml") == paths.figures_dir("few")


def test_a_series_must_exist_and_be_unambiguous(folder: Path) -> None:
    (folder / "notebooks").mkdir()
    with pytest.raises(SeriesError, match="no numbered notebook"):
        runner.run_series("tiny")
    write(folder / "notebooks", "00_a")
    write(folder / "notebooks", "00_b")
    with pytest.raises(SeriesError, match="share the number 00"):
        runner.run_series("tiny")
    (folder / "notebooks" / "00_b.ipynb").write_text("{")
    with pytest.raises(SeriesError, match=r"00_b.ipynb cannot be read as a notebook"):
        runner.run_series("tiny")


def test_an_unknown_selector_lists_the_names(folder: Path) -> None:
    write(folder / "notebooks", "00_a")
    write(folder / "notebooks", "01_b")
    with pytest.raises(SeriesError, match="no notebook 02, a; available: 00_a, 01_b"):
        runner.run_series("tiny", only=["01", "02", "a"])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ('profile = "tiny"\nsede = 0\nreplay = True', "does not take the parameter seed; .* profile, sede, replay"),
        ('profile = "tiny"\nseed = int(0)\nreplay = True', "line 2 assigns a value that is not a literal"),
        ("import os", "line 1 is not `name = literal`"),
        ("profile =", "only assign literals"),
    ],
)
def test_parameters_are_checked_first(folder: Path, parameters: str, message: str, log_lines: list[str]) -> None:
    write(folder / "notebooks", "00_a")
    write(folder / "notebooks", "01_b", parameters=parameters)
    with pytest.raises(SeriesError, match=message):
        runner.run_series("tiny")
    assert log_lines == []


# -- the committed form -----------------------------------------------------------------------------------------------


def test_refresh_rewrites_the_committed_notebook(folder: Path) -> None:
    path = write(folder / "notebooks", "00_good", *GOOD[:1], *GOOD[2:], promises=("dot.csv",))
    other = write(folder / "notebooks", "01_other", parameters=PARAMETERS.replace("True", "False"))
    before = path.read_text(), other.read_text()
    with pytest.raises(
        SeriesError, match="01_other: the parameters cell must set the values of this run, but has replay = False"
    ):
        refresh("tiny")
    assert (path.read_text(), other.read_text()) == before
    assert refresh("tiny", only=["00"]) == [path]
    assert (folder / "results/figures/tiny/dot.csv").read_text() == "0 True"
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
    """A notebook as papermill, a front end and a widget leave it."""
    view = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "VBox()"}
    outputs = [
        stream("Kernel is running over TCP without encryption. All ...\n", "stderr"),
        stream("a"),
        stream("b\n 10%\r100%\n"),
        stream("warning\n", "stderr"),
        new_output("display_data", view),
        new_output("display_data", view | {"text/html": "<b>static view</b>"}),
        new_output("execute_result", {"text/plain": "3"}, execution_count=9),
    ]
    nb = new_notebook(
        cells=[
            new_code_cell("seed = 0\n", metadata={"tags": ["parameters"]}, execution_count=8),
            new_code_cell("seed = 1", metadata={"tags": ["injected-parameters"]}, execution_count=9),
            new_code_cell(
                "x", outputs=outputs, execution_count=12, metadata={"papermill": {"duration": 1}, "tags": []}
            ),
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


def test_normalise_removes_what_differs_between_machines() -> None:
    nb = leaky()
    before = json.dumps(nb)
    done = notebook_format.normalise(nb)
    assert json.dumps(nb) == before
    assert sorted(done.metadata) == ["kernelspec", "language_info", "paperlib"]
    assert done.metadata.kernelspec == {"name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    assert "version" not in done.metadata.language_info
    assert [cell.id for cell in done.cells] == ["cell-00", "cell-01", "cell-02"]
    assert [cell.execution_count for cell in done.cells] == [1, 2, None]
    assert [dict(cell.metadata) for cell in done.cells] == [{"tags": ["parameters"]}, {}, {}]
    kinds = [output.get("text") or output.data for output in done.cells[1].outputs]
    assert kinds == [
        "ab\n100%\n",
        "warning\n",
        {"text/html": "<b>static view</b>", "text/plain": "VBox()"},
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
    "a traceback in the printed output": {"outputs": [stream("Traceback (most recent call last):\n", "stderr")]},
    "never executed": {"execution_count": None},
    "an empty code cell": {"source": "", "execution_count": None},
    "26 lines of code": {"source": LONG},
    "function f has 26 lines": {"source": LONG},
    "is not Python": {"source": "1 +"},
}


def test_hygiene_reports_each_problem_of_a_cell(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"
    for problem, cell in BAD_CELLS.items():
        path.write_text(notebook_format.text_of(planted(**cell)))
        problems = hygiene.check_hygiene(path)
        assert any(text.startswith(f"cell 1: {problem}") for text in problems), (problem, problems)


def test_hygiene_accepts_what_only_resembles_a_problem(tmp_path: Path) -> None:
    source = "%matplotlib inline\nurl = 'https://host.org/home/work'\nfolder = '../work/tmp'\nprint('N:\\n')"
    picture = new_output("display_data", {"image/png": "AAAA/tmp/AAAA", "text/plain": "<Figure>"})
    page = new_output("display_data", {"text/html": '<img src="data:image/png;base64,AA/home/AA">'})
    path = tmp_path / "a.ipynb"
    path.write_text(notebook_format.text_of(planted(source=source, outputs=[picture, page])))
    assert hygiene.check_hygiene(path) == []


def test_hygiene_reports_each_problem_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ipynb"

    def problems(nb: nbformat.NotebookNode) -> str:
        path.write_text(notebook_format.text_of(nb))
        return "\n".join(hygiene.check_hygiene(path))

    text = problems(leaky())
    assert "not in the committed form" in text
    assert "widget state in the metadata" in text
    assert "a widget view, which needs a running kernel" in text
    assert "does not set profile, replay" in text
    nb = planted()
    nb.cells[1].metadata["tags"] = ["parameters"]
    assert "must have the tag 'parameters', found 2" in problems(nb)
    nb = planted()
    nb.cells[0].source += "\nfolder = Path()"
    assert "line 5 assigns a value that is not a literal" in problems(nb)
    assert "1.6 MB, more than 1.5 MB" in problems(planted(outputs=[stream("x" * 1_600_000)]))
    path.write_text("[]")
    assert "cannot be read as a notebook" in hygiene.check_hygiene(path)[0]
