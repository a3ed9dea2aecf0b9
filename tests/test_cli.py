"""The command line: what it does, and one clear line when it cannot."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from torch import nn
from toys import changed, micro_table, toml_text

from paperlib import Study, load_profile, load_system, paths
from paperlib.atomic_files import read_json
from paperlib.cli import _parser, main
from paperlib.errors import PaperlibError
from paperlib.evaluation import Report, fgsm_spec
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


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("run --profile digit", "unknown profile 'digit'; did you mean 'digits'"),
        ("run --profile nowhere.toml", "profile nowhere.toml: no such file"),
        ("run --profile smoke --stage train:dfw", "no stage matches 'train:dfw'"),
        ("run --profile smoke --seeds 0,x", "--seeds 0,x"),
        ("run --profile smoke --seeds -1 --list", "seed=-1"),
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
        ("audit dwf --profile smoke --images -3", "--images=-3: expected a whole number"),
        ("audit dfw --profile smoke", "unknown system 'dfw'; known: plain"),
        ("audit dwf --profile smoke --eps 8", "--eps cannot exceed 1; did you mean 8/255?"),
        ("audit plain --profile smoke", "python -m paperlib run --profile smoke --seeds 0 --stage train:plain"),
        ("evaluate plain --profile smoke", "python -m paperlib run --profile smoke --seeds 0 --stage train:plain"),
        ("publish --profile smoke", "stages are not computed yet"),
        ("doctor --profile digit", "unknown profile 'digit'"),
        ("reproduce --profile digit", "unknown profile 'digit'"),
    ],
)
def test_an_error_is_one_clear_line_and_a_failure(home: Path, capsys: Capture, arguments: str, word: str) -> None:
    assert main(arguments.split()) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert word in said.err
    assert "Traceback" not in said.out + said.err


def test_a_bad_value_in_a_file_of_the_user_is_one_clear_line(profile: str, capsys: Capture) -> None:
    Path(profile).write_text(toml_text(changed(micro_table(), "evaluation.eps", "8")), encoding="utf-8")
    assert main(["run", "--profile", profile]) == 1
    assert capsys.readouterr().err == "error: evaluation.eps: 8 must be in [0, 1]; did you mean 8/255?\n"


@pytest.mark.parametrize("arguments", [[], ["rnu"], ["evaluate"], ["evaluate", "dwf", "--attack", "cw"]])
def test_wrong_usage_is_told_with_the_right_one(capsys: Capture, arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m paperlib" in capsys.readouterr().err


def test_an_interruption_is_told_without_a_traceback(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **kw: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Study, "compute", interrupted)
    assert main(["run", "--profile", profile]) == 130
    assert capsys.readouterr().err.startswith("interrupted; what was finished is kept")


def test_the_list_names_every_stage_and_computes_none(profile: str, capsys: Capture) -> None:
    assert main(["run", "--profile", profile, "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"missing {name}" for name in stages(load_profile(profile))]
    assert not store_dir().exists()


def test_stages_are_computed_listed_and_computed_again_when_asked(profile: str, capsys: Capture) -> None:
    chosen = ["run", "--profile", profile, "--stage", "data", "evaluate:plain:*"]
    assert main([*chosen[:-1]]) == 0
    said = capsys.readouterr().out
    assert "[1/1] data" in said
    assert said.endswith("seed 0: 1 of 1 stages are there\n")
    made = Study(load_profile(profile), replay=False).get("data").record["provenance"]["created"]
    assert main([*chosen, "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert listed[0] == "done    data"
    assert {line.split()[0] for line in listed[1:]} == {"missing"}
    assert len(listed) == 6
    assert main([*chosen[:-1]]) == 0
    assert "[1/1] data" not in capsys.readouterr().out
    assert Study(load_profile(profile), replay=False).get("data").record["provenance"]["created"] == made
    assert main([*chosen[:-1], "--fresh"]) == 0
    assert "[1/1] data" in capsys.readouterr().out


def test_a_system_is_trained_and_evaluated_from_the_command_line(profile: str, capsys: Capture) -> None:
    assert main(["run", "--profile", profile, "--seeds", "1", "--stage", "train:plain"]) == 0
    capsys.readouterr()
    assert main(["evaluate", "plain", "--profile", profile, "--seed", "1", "--attack", "fgsm", "--eps", "4/255"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"plain on digits, fgsm eps 4/255, 1 steps of 4/255.*seed 1: .*\((\d+) of n = 30\)", line)
    assert found, line
    micro = load_profile(profile)
    study = Study(micro, 1, workers=1)
    outcome = study.outcome("plain", fgsm_spec(Fraction(4, 255)))
    assert int(found[1]) == outcome.record["result"]["correct"]
    assert main(["evaluate", "plain", "--profile", profile, "--seed", "1", "--attack", "clean", "--images", "7"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"clean.*\((\d) of n = 7\)", line)
    assert found, line
    first = study.data.test.first(7)
    right = load_system("plain", micro, 1)(first.images).argmax(dim=1) == first.labels
    assert int(found[1]) == int(torch.sum(right))


def untrained(study: Study, system: str) -> nn.Module:
    """In place of `Study.load`."""
    return study.build(study.networks.system(system).architecture).eval()


def test_an_untold_system_is_audited_and_told_in_a_file(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    written = home / "report.json"
    assert main(["audit", "plain", "--profile", profile, "--images", "8", "--json", str(written)]) == 0
    said = capsys.readouterr().out
    report = Report.from_json(read_json(written))
    assert report.sentence in said
    assert (report.n, report.label, len(report.findings)) == (8, "plain", 29)
    assert not report.believed  # the profile cuts AutoAttack short
    assert all(finding.name in said for finding in report.findings)


def test_the_audit_of_the_records_is_replayed(home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAPERLIB_PUBLISHED")
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", None)  # no network is asked
    assert main(["audit", "advmoe", "--profile", "digits"]) == 0
    said = capsys.readouterr().out
    assert "(published); --fresh asks again" in said
    assert Report.from_json(Study("digits", local=False).record("audit:advmoe")).sentence in said


@pytest.mark.parametrize(
    ("attack", "told"), [("square --steps 4", "square eps 0.1, 4 queries"), ("autoattack", "standard version")]
)
def test_slow_attacks_see_the_images_of_the_stress_tests(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, attack: str, told: str
) -> None:
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    assert main(["evaluate", "plain", "--profile", profile, "--attack", *attack.split()]) == 0
    said = capsys.readouterr().out
    assert told in said
    assert "of n = 6)" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--restarts 0", "--restarts=0"),
        ("--steps -3", "--steps=-3"),
        ("--images 41", "--images=41"),
        ("--images 0", "=0"),
    ],
)
def test_settings_that_are_no_attack_are_refused(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: str, word: str
) -> None:
    monkeypatch.setattr("paperlib.pipeline.study.Study.load", untrained)
    assert main(["evaluate", "plain", "--profile", profile, *options.split()]) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert word in said


def test_the_doctor_says_what_is_there_and_changes_nothing(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PAPERLIB_HOME", str(home / "not" / "there" / "yet"))
    assert main(["doctor", "--profile", profile]) == 0
    said = capsys.readouterr().out
    for word in ("torch", "cores", "GB free", "60 / 20 / 40", "nothing for this profile", "0 of "):
        assert word in said
    assert not store_dir().exists()
    assert not published_dir("micro").exists()


def test_the_module_runs_from_any_folder(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "paperlib", "run", "--profile", "digit"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown profile 'digit'")


# -- output that takes no more lines ---------------------------------------------------------------------------------


def run_with_output(command: list[str], closed: str) -> tuple[int, str]:
    """Exit status and errors of a command whose reader has gone, or whose disk is full, before its first line."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    if closed == "full":
        output = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, output = os.pipe()
        os.close(reader)
    done = subprocess.run(command, stdout=output, stderr=subprocess.PIPE, text=True, timeout=600, env=environment)
    os.close(output)
    return done.returncode, done.stderr


ENDS = {"pipe": (141, ""), "full": (1, "error: standard output: cannot write (No space left on device)\n")}
CLOSED = [
    "pipe",
    pytest.param("full", marks=pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")),
]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("arguments", ["run --profile smoke --list", "doctor --profile smoke", "--help"])
def test_output_that_closes_ends_a_command_quietly(home: Path, closed: str, arguments: str) -> None:
    assert run_with_output([sys.executable, "-m", "paperlib", *arguments.split()], closed) == ENDS[closed]


THREAD = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from paperlib import cli
from paperlib.log import logger

def in_a_thread(options):  # as the lines of worker processes arrive
    threading.Thread(target=logger.info, args=("a line",), daemon=True).start()
    threading.Event().wait()

def in_a_pool(options):  # as notebooks run
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(logger.info, ["a line"] * 4))

cli.run = {verb}
sys.exit(cli.main(["run"]))
"""


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("verb", ["in_a_thread", "in_a_pool"])
def test_output_that_closes_in_a_thread_ends_the_command_quietly(closed: str, verb: str) -> None:
    assert run_with_output([sys.executable, "-c", THREAD.replace("{verb}", verb)], closed) == ENDS[closed]


# -- a home that cannot be ---------------------------------------------------------------------------------------------

WRITING = ["run", "reproduce", "refresh"]
READING = ["run --list", "publish", "evaluate plain", "audit plain"]


@pytest.mark.parametrize("verb", [*WRITING, *READING])
@pytest.mark.parametrize("place", ["file/home", "~nobody-of-this-name/home"])
def test_a_home_that_cannot_be_created_is_one_clear_line(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, verb: str, place: str
) -> None:
    (home / "file").touch()
    place = place if place.startswith("~") else str(home / place)
    monkeypatch.setenv("PAPERLIB_HOME", place)
    monkeypatch.setattr(Study, "compute", None)
    assert main([*verb.split(), "--profile", profile]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(rf"error: PAPERLIB_HOME={re.escape(place)}: .*name a(nother)? folder.*\n", said.err)


def test_the_doctor_says_that_the_home_cannot_be_created(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "file").touch()
    monkeypatch.setenv("PAPERLIB_HOME", str(home / "file" / "home"))
    assert main(["doctor", "--profile", profile]) == 0
    said = capsys.readouterr().out
    assert f"disk      PAPERLIB_HOME={home}/file/home: cannot write there" in said
    assert "records   0 of" in said


def test_a_file_for_a_report_that_cannot_be_written_is_told_before_the_audit(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.evaluation.auditing.audit", None)
    (home / "file").touch()
    assert main(["audit", "plain", "--profile", profile, "--json", str(home / "file" / "report.json")]) == 1
    assert "file: cannot write there" in capsys.readouterr().err


# -- what a run has measured -------------------------------------------------------------------------------------------


def test_a_run_ends_with_what_it_has_measured(profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
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
    assert (others, last) == ("without an accuracy: 1 data", "seed 0: 3 of 3 stages are there")


def test_the_rows_of_a_stress_test_are_among_what_was_measured(home: Path) -> None:
    study = Study("digits", local=False)
    study.published = type(study.published)(paths.ROOT / "data" / "published" / "digits")
    rows = study.record("stress:dwf")["rows"]
    lines = measured(study, ["stress:dwf"], [])
    assert len(lines) == 1 + len(rows) > 5
    assert all(f"stress:dwf {row['name']} " in line for row, line in zip(rows, lines[1:], strict=True))


# -- advice that works -------------------------------------------------------------------------------------------------


def advised(text: str) -> list[list[str]]:
    """The arguments of every command that a message advises."""
    return [shlex.split(found) for found in re.findall(r"python -m paperlib ([^\n;]+)", text)]


def message(call: object, *arguments: object) -> str:
    with pytest.raises(PaperlibError) as caught:
        call(*arguments)  # type: ignore[operator]
    return str(caught.value)


@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("name", ["micro.toml", "my own.toml"])
def test_every_advised_command_names_the_profile_so_that_it_loads(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, name: str, loaded: bool
) -> None:
    monkeypatch.chdir(home)
    shutil.copy(profile, home / "other.toml")
    (home / "other.toml").replace(home / name)
    given = load_profile(name) if loaded else name
    messages = {
        "weights": message(load_system, "plain", given),
        "unknown stage": message(Study(given).stage, "none"),
        "no match": message(Study(given).matching, "none"),
        "publish": message(publish, given),
        "reading copy": message(write_site, name),
    }
    assert main(["doctor", "--profile", name]) == 0
    messages["doctor"] = capsys.readouterr().out
    for which, text in messages.items():
        (arguments,) = advised(text)
        options = _parser().parse_args(arguments)
        assert options.profile == name, which
        assert load_profile(options.profile) == load_profile(name)


def test_every_advised_make_verb_is_there() -> None:
    verbs = set(re.findall(r"^([a-z]+):", (paths.ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    package = "".join(path.read_text(encoding="utf-8") for path in (paths.ROOT / "paperlib").rglob("*.py"))
    advice = set(re.findall(r"(?:run|with): make (\w+)", package))
    assert advice and advice <= verbs


@pytest.mark.parametrize("missing", ["torch", "papermill"])
def test_a_missing_package_is_told_with_what_to_do(tmp_path: Path, home: Path, missing: str) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('No module named {missing}', name='{missing}')")
    search = os.pathsep.join([str(tmp_path), str(paths.ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "paperlib", "run", "--profile", "smoke", "--list"],
        env=os.environ | {"PYTHONPATH": search},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if missing == "papermill":  # needed by notebooks only
        assert (done.returncode, done.stderr) == (0, "")
    else:
        assert done.returncode == 1
        assert done.stderr == (
            "error: No module named torch; activate the environment with `. .venv/bin/activate`, or use `make`, which "
            "sets it up\n"
        )


def test_a_file_system_that_refuses_is_one_clear_line(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: object, **kw: object) -> None:
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr(Study, "compute", refused)
    assert main(["run", "--profile", profile]) == 1
    assert capsys.readouterr().err == "error: [Errno 13] Permission denied: 'some/file'\n"
