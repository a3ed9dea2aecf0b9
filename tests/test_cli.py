"""The command line: what it does, and one clear line when it cannot."""

from __future__ import annotations

import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from toys import changed, micro_table, toml_text

from paperlib import Study, load_profile, load_system
from paperlib.__main__ import main
from paperlib.evaluation import Report, fgsm_spec
from paperlib.files import read_json
from paperlib.paths import published_dir, store_dir
from paperlib.progress import silent
from paperlib.stages import stages

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
        ("run --profile nowhere.toml", "unknown profile 'nowhere.toml'"),
        ("run --profile smoke --stage train:dfw", "no stage matches 'train:dfw'"),
        ("run --profile smoke --seeds 0,x", "--seeds 0,x"),
        ("run --profile smoke --seeds -1 --list", "seed=-1"),
        ("evaluate dfw --profile smoke", "unknown system 'dfw'; known: plain"),
        ("evaluate plain --profile smoke --seed -2", "seed=-2"),
        ("evaluate dwf --profile smoke --eps 8", "did you mean 8/255?"),
        ("evaluate dwf --profile smoke --eps 8/0", "eps: expected a float or text"),
        ("evaluate dwf --profile smoke --step-size 2", "did you mean 2/255?"),
        ("audit dfw --profile smoke", "unknown system 'dfw'; known: plain"),
        ("audit dwf --profile smoke --eps 8", "did you mean 8/255?"),
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
    assert said.endswith("seed 0: 1 stages are there\n")
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
    study = Study(micro, 1, say=silent, workers=1)
    outcome = study.outcome("plain", fgsm_spec(Fraction(4, 255)))
    assert int(found[1]) == outcome.record["result"]["correct"]
    assert main(["evaluate", "plain", "--profile", profile, "--seed", "1", "--attack", "clean", "--images", "7"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    found = re.search(r"clean.*\((\d) of n = 7\)", line)
    assert found, line
    first = study.data.test.first(7)
    right = load_system("plain", micro, 1)(first.images).argmax(dim=1) == first.labels
    assert int(found[1]) == int(torch.sum(right))


def test_an_untold_system_is_audited_and_told_in_a_file(
    profile: str, home: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("paperlib.study.Study.model", lambda study, system: study.build(system).eval())
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
    monkeypatch.setattr("paperlib.study.Study.model", None)  # no network is asked
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
    monkeypatch.setattr("paperlib.study.Study.model", lambda study, system: study.build(system).eval())
    assert main(["evaluate", "plain", "--profile", profile, "--attack", *attack.split()]) == 0
    said = capsys.readouterr().out
    assert told in said
    assert "of n = 6)" in said


@pytest.mark.parametrize(
    ("options", "word"),
    [("--restarts 0", "restarts=0"), ("--steps -3", "steps=-3"), ("--images 41", "40 images"), ("--images -1", "-1")],
)
def test_settings_that_are_no_attack_are_refused(
    profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch, options: str, word: str
) -> None:
    monkeypatch.setattr("paperlib.study.Study.model", Study.build)  # an untrained network will do
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
        timeout=120,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: unknown profile 'digit'")
