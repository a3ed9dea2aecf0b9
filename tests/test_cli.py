"""The command line: its results, and errors as one line."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from toys import changed, micro_table, toml_text

from paperlib import Study, load_profile, load_system, paths
from paperlib.atomic_files import read_json
from paperlib.cli import _parser, main
from paperlib.config.schema import profile_schema
from paperlib.data import Split
from paperlib.errors import PaperlibError
from paperlib.evaluation import CLEAN, AttackSpec, Report, autoattack_spec, evaluate, fgsm_spec, square_spec
from paperlib.paths import published_dir, store_dir
from paperlib.pipeline.publish import publish
from paperlib.pipeline.stages import stages
from paperlib.report.measured import measured
from paperlib.series.site import write_site

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def profile(home: Path) -> str:
    """The micro profile as a user's TOML file."""
    path = home / "micro.toml"
    path.write_text(toml_text(micro_table()), encoding="utf-8")
    return str(path)


ERRORS = {
    "run": [
        ("run --profile digit", "unknown profile 'digit'; did you mean 'digits'"),
        ("run --profile nowhere.toml", "profile nowhere.toml: no such file"),
        ("run --profile smoke --stage train:dfw", "no stage matches 'train:dfw'"),
        ("run --profile smoke --seeds 0,x", "--seeds 0,x"),
        ("run --profile smoke --seeds -1 --list", "seed=-1"),
        ("publish --profile smoke", "stages are not computed yet"),
        ("doctor --profile digit", "unknown profile 'digit'"),
        ("reproduce --profile digit", "unknown profile 'digit'"),
    ],
    "evaluate": [
        ("evaluate dfw --profile smoke", "unknown system 'dfw'; known: plain"),
        ("evaluate plain --profile smoke --seed -2", "seed=-2"),
        ("evaluate dwf --profile smoke --eps 8", "did you mean 8/255?"),
        ("evaluate dwf --profile smoke --eps 8/0", "--eps: expected a float or text"),
        ("evaluate dwf --profile smoke --eps -1", "--eps=-1: must be a number from 0 to 1"),
        ("evaluate dwf --profile smoke --step-size 3", "--step-size cannot exceed 1; did you mean 3/255?"),
        ("evaluate dwf --profile smoke --step-size x", "--step-size: expected a float or text"),
        ("evaluate dwf --profile smoke --steps 0", "--steps=0: expected a whole number"),
        ("evaluate dwf --profile smoke --restarts 0", "--restarts=0: expected a whole number"),
        ("evaluate dwf --profile smoke --images 0", "--images=0: expected a whole number"),
        ("evaluate plain --profile smoke", "python -m paperlib run --profile smoke --seeds 0 --stage train:plain"),
    ],
    "audit": [
        ("audit dwf --profile smoke --images -3", "--images=-3: expected a whole number"),
        ("audit dfw --profile smoke", "unknown system 'dfw'; known: plain"),
        ("audit dwf --profile smoke --eps 8", "--eps cannot exceed 1; did you mean 8/255?"),
        ("audit plain --profile smoke", "python -m paperlib run --profile smoke --seeds 0 --stage train:plain"),
    ],
}


@pytest.mark.parametrize("verb", ERRORS)
def test_an_error_is_one_line_and_status_1(home: Path, capsys: Capture, verb: str) -> None:
    for arguments, message in ERRORS[verb]:
        assert main(arguments.split()) == 1
        output = capsys.readouterr()
        assert output.err.startswith("error: ") and output.err.count("\n") == 1, arguments
        assert message in output.err
        assert "Traceback" not in output.out + output.err


def test_an_invalid_value_in_a_file_of_the_user_is_one_line(profile: str, capsys: Capture) -> None:
    Path(profile).write_text(toml_text(changed(micro_table(), "evaluation.eps", "8")), encoding="utf-8")
    assert main(["run", "--profile", profile]) == 1
    assert capsys.readouterr().err == "error: evaluation.eps: 8 must be in [0, 1]; did you mean 8/255?\n"


def test_wrong_arguments_print_the_usage(capsys: Capture) -> None:
    for arguments in ([], ["rnu"], ["evaluate"], ["evaluate", "dwf", "--attack", "cw"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: python -m paperlib" in capsys.readouterr().err


def test_the_schema_is_printed_as_json(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out) == profile_schema()


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "interrupted; finished results are kept, run the same command to continue\n"),
        (
            PermissionError(13, "Permission denied", "some/file"),
            1,
            "error: [Errno 13] Permission denied: 'some/file'\n",
        ),
    ],
)
def test_an_interruption_or_a_refusal_of_the_file_system_is_one_line(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, message: str
) -> None:
    def fail(*args: object, **kw: object) -> None:
        raise error

    monkeypatch.setattr(Study, "compute", fail)
    assert main(["run", "--profile", profile]) == status
    assert capsys.readouterr().err == message


def test_the_list_names_every_stage_and_computes_none(profile: str, capsys: Capture) -> None:
    assert main(["run", "--profile", profile, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"missing {name}" for name in stages(load_profile(profile))]
    assert not store_dir().exists()


def test_stages_are_computed_listed_and_computed_again_when_asked(profile: str, capsys: Capture) -> None:
    command = ["run", "--profile", profile, "--stage", "data"]
    assert main(command) == 0
    output = capsys.readouterr().out
    assert "[1/1] data" in output
    assert output.endswith("seed 0: 1 of 1 stages are computed\n")
    created = Study(load_profile(profile), replay=False).get("data").record["provenance"]["created"]
    assert main([*command, "evaluate:plain:*", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "done    data"
    assert {line.split()[0] for line in listed[1:]} == {"missing"}
    assert len(listed) == 6
    assert main(command) == 0
    assert "[1/1] data" not in capsys.readouterr().out
    assert Study(load_profile(profile), replay=False).get("data").record["provenance"]["created"] == created
    assert main([*command, "--fresh"]) == 0
    assert "[1/1] data" in capsys.readouterr().out


def test_a_system_is_trained_and_evaluated_from_the_command_line(profile: str, capsys: Capture) -> None:
    assert main(["run", "--profile", profile, "--seeds", "1", "--stage", "train:plain"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "plain", "--profile", profile, "--seed", "1", "--attack", "fgsm", "--eps", "4/255"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    match = re.search(r"plain on digits, fgsm eps 4/255, 1 steps of 4/255.*seed 1: .*\((\d+) of n = 30\)", line)
    assert match, line
    micro = load_profile(profile)
    study = Study(micro, 1, workers=1)
    outcome = study.outcome("plain", fgsm_spec(Fraction(4, 255)))
    assert int(match[1]) == outcome.record["result"]["correct"]
    assert main(["evaluate", "plain", "--profile", profile, "--seed", "1", "--attack", "clean", "--images", "7"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    match = re.search(r"clean.*\((\d) of n = 7\)", line)
    assert match, line
    first = study.data.test.first(7)
    correct = load_system("plain", micro, 1)(first.images).argmax(dim=1) == first.labels
    assert int(match[1]) == int(torch.sum(correct))


def untrained(study: Study, system: str) -> nn.Module:
    """Replaces `Study.load`."""
    return study.build(study.networks.system(system).architecture).eval()


def test_a_system_without_a_record_is_audited_and_the_report_written(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    path = home / "report.json"
    assert main(["audit", "plain", "--profile", profile, "--images", "8", "--json", str(path)]) == 0
    output = capsys.readouterr().out
    report = Report.from_json(read_json(path))
    assert report.sentence in output
    assert (report.n, report.label, len(report.findings)) == (8, "plain", 29)
    assert not report.believed  # AutoAttack is reduced in this profile
    assert all(finding.name in output for finding in report.findings)


def test_a_recorded_audit_is_printed_again(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLIB_PUBLISHED")
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", None)  # no network is loaded
    assert main(["audit", "advmoe", "--profile", "digits"]) == 0
    output = capsys.readouterr().out
    assert "(published); --fresh audits again" in output
    assert Report.from_json(Study("digits", local=False).record("audit:advmoe")).sentence in output


def test_slow_attacks_use_the_images_of_the_stress_tests(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    specs = []

    def evaluate_clean(model: nn.Module, split: Split, spec: AttackSpec, **settings: Any) -> object:
        specs.append(spec)
        return evaluate(model, split, CLEAN, **settings)

    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    monkeypatch.setattr("paperlib.evaluation.evaluate", evaluate_clean)
    for attack, text in (("square --steps 4", "square eps 0.1, 4 queries"), ("autoattack", "standard version")):
        assert main(["evaluate", "plain", "--profile", profile, "--attack", *attack.split()]) == 0
        output = capsys.readouterr().out
        assert text in output and "of n = 6)" in output
    assert specs == [square_spec("0.1", 4), autoattack_spec("0.1")]


def test_more_images_than_the_test_split_holds_are_refused(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    assert main(["evaluate", "plain", "--profile", profile, "--images", "41"]) == 1
    assert capsys.readouterr().err == "error: --images=41: the test split of digits has 40 images\n"


def test_the_doctor_prints_its_checks_and_changes_nothing(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(home / "not" / "there" / "yet"))
    assert main(["doctor", "--profile", profile]) == 0
    output = capsys.readouterr().out
    for text in ("torch", "cores", "GB free", "60 / 20 / 40", "no records of this profile", "0 of "):
        assert text in output
    assert not store_dir().exists()
    assert not published_dir("micro").exists()


# Output that cannot be written ----------------------------------------------------------------------------------------


def run_with_output(command: list[str], closed: str) -> tuple[int, str]:
    """Exit status and standard error of a command with a closed pipe or a full disk as standard output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if closed == "full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    process = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=600, env=environment)
    os.close(output)
    return process.returncode, process.stderr


EXPECTED = {"pipe": (141, ""), "full": (1, "error: standard output: cannot write (No space left on device)\n")}
FULL = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


@pytest.mark.parametrize(
    ("closed", "arguments"),
    [("pipe", "run --profile smoke --list"), pytest.param("full", "--help", marks=FULL)],
)
def test_a_command_ends_without_traceback_if_its_output_is_closed(home: Path, closed: str, arguments: str) -> None:
    assert run_with_output([sys.executable, "-m", "paperlib", *arguments.split()], closed) == EXPECTED[closed]


@pytest.mark.parametrize("closed", ["pipe", pytest.param("full", marks=FULL)])
def test_the_doctor_and_the_list_of_stages_end_if_the_output_is_closed(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    for arguments in (["run", "--profile", profile, "--list"], ["doctor", "--profile", profile]):
        if closed == "full":
            output = os.open("/dev/full", os.O_WRONLY)
        else:
            reader, output = os.pipe()
            os.close(reader)
        with monkeypatch.context() as patched, os.fdopen(output, "w") as stream:
            patched.setattr(sys, "stdout", stream)
            status = main(arguments)
        assert (status, capsys.readouterr().err) == EXPECTED[closed]


THREAD = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from paperlib import cli
from paperlib.log import logger

def in_a_thread(options):  # like log messages of worker processes
    threading.Thread(target=logger.info, args=("a line",), daemon=True).start()
    threading.Event().wait()

def in_a_pool(options):  # like the output of notebooks
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(logger.info, ["a line"] * 4))

cli.run = {verb}
sys.exit(cli.main(["run"]))
"""


@pytest.mark.parametrize(("closed", "verb"), [("pipe", "in_a_thread"), pytest.param("full", "in_a_pool", marks=FULL)])
def test_a_command_ends_if_a_thread_cannot_write(closed: str, verb: str) -> None:
    assert run_with_output([sys.executable, "-c", THREAD.replace("{verb}", verb)], closed) == EXPECTED[closed]


def test_a_command_that_ignores_interrupts_ends_too() -> None:
    script = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n" + THREAD.replace("{verb}", "in_a_thread")
    assert run_with_output([sys.executable, "-c", script], "pipe") == EXPECTED["pipe"]


# PAPERLIB_HOME that cannot be created ---------------------------------------------------------------------------------

WRITING = ["run", "reproduce", "refresh"]
READING = ["run --list", "publish", "evaluate plain", "audit plain"]


@pytest.mark.parametrize("place", ["file/home", "~no-such-user/home"])
def test_a_home_that_cannot_be_created_is_one_line(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    (home / "file").touch()
    place = place if place.startswith("~") else str(home / place)
    monkeypatch.setenv("PAPERLIB_HOME", place)
    monkeypatch.setattr(Study, "compute", None)
    for verb in (*WRITING, *READING):
        assert main([*verb.split(), "--profile", profile]) == 1
        output = capsys.readouterr()
        assert output.out == ""
        error = rf"error: PAPERLIB_HOME={re.escape(place)}: .*name a(nother)? folder.*\n"
        assert re.fullmatch(error, output.err), verb


def test_the_doctor_reports_that_the_home_cannot_be_created(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("PAPERLIB_HOME", str(home / "file" / "home"))
    assert main(["doctor", "--profile", profile]) == 0
    output = capsys.readouterr().out
    assert f"disk      PAPERLIB_HOME={home}/file/home: cannot write there" in output
    assert "records   0 of" in output


def test_a_report_file_that_cannot_be_written_is_an_error_before_the_audit(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.evaluation.auditing.audit", None)
    (home / "file").touch()
    assert main(["audit", "plain", "--profile", profile, "--json", str(home / "file" / "report.json")]) == 1
    assert "file: cannot write there" in capsys.readouterr().err


# Results of a run -----------------------------------------------------------------------------------------------------


def test_a_run_ends_with_its_accuracies(profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAPERLIB_WORKERS", "1")
    command = ["run", "--profile", profile, "--stage", "data", "evaluate:plain:clean", "evaluate:plain:fgsm@0.1"]
    assert main([*command[:-1]]) == 0
    assert main(command) == 0
    *_, title, clean, fgsm, others, last = capsys.readouterr().out.splitlines()
    study = Study(load_profile(profile), replay=False)
    assert title == "accuracy in percent [95 % interval]:"
    for line, name in ((clean, "evaluate:plain:clean"), (fgsm, "evaluate:plain:fgsm@0.1")):
        result = study.get(name).record["result"]
        shown = re.fullmatch(rf"{name} +([\d.]+) \[([\d.]+), ([\d.]+)\] +n = 30  (computed .*)", line)
        assert shown, line
        expected = [f"{100 * value:.1f}" for value in (result["accuracy"], *result["interval"])]
        assert list(shown.groups()[:3]) == expected
    assert fgsm.endswith("computed now")
    assert clean.endswith("computed " + study.get("evaluate:plain:clean").record["provenance"]["created"])
    assert (others, last) == ("without an accuracy: 1 data", "seed 0: 3 of 3 stages are computed")


def test_the_rows_of_a_stress_test_are_listed_too(home: Path) -> None:
    study = Study("digits", local=False)
    study.published = type(study.published)(paths.ROOT / "data" / "published" / "digits")
    rows = study.record("stress:dwf")["rows"]
    lines = measured(study, ["stress:dwf"], [])
    assert len(lines) == 1 + len(rows) > 5
    assert all(f"stress:dwf {row['name']} " in line for row, line in zip(rows, lines[1:], strict=True))


# Advised commands -----------------------------------------------------------------------------------------------------


def advised_commands(text: str) -> list[list[str]]:
    """The arguments of every command that a message advises."""
    return [shlex.split(arguments) for arguments in re.findall(r"python -m paperlib ([^\n;]+)", text)]


def message(call: object, *arguments: object) -> str:
    with pytest.raises(PaperlibError) as caught:
        call(*arguments)  # type: ignore[operator]
    return str(caught.value)


def test_every_advised_command_names_a_profile_that_loads(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    name = "my own.toml"
    shutil.copy(profile, home / name)
    assert main(["doctor", "--profile", name]) == 0
    messages = {"doctor": capsys.readouterr().out, "site": message(write_site, name)}
    for argument in (name, load_profile(name)):
        messages |= {
            "weights": message(load_system, "plain", argument),
            "unknown stage": message(Study(argument).stage, "none"),
            "no match": message(Study(argument).graph.matching, "none"),
            "publish": message(publish, argument),
        }
        for kind, text in messages.items():
            (arguments,) = advised_commands(text)
            options = _parser().parse_args(arguments)
            assert options.profile == name, kind
            assert load_profile(options.profile) == load_profile(name)


def test_every_advised_make_verb_exists() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    package = "".join(path.read_text(encoding="utf-8") for path in (paths.ROOT / "paperlib").rglob("*.py"))
    advised = set(re.findall(r"(?:run|with): make (\w+)", package))
    assert advised and advised <= verbs


@pytest.mark.parametrize("missing", ["torch", "papermill"])
def test_the_module_runs_from_any_folder_and_names_a_missing_package(tmp_path: Path, home: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module named {missing}', name='{missing}')")
    process = subprocess.run(
        [sys.executable, "-m", "paperlib", "run", "--profile", "smoke", "--list"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(paths.ROOT)])},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if missing == "papermill":  # only notebooks need it
        assert (process.returncode, process.stderr) == (0, "")
    else:
        assert process.returncode == 1
        assert process.stderr == (
            "error: No module named torch; activate the environment with `. .venv/bin/activate`, or use `make`, which "
            "sets it up\n"
        )
