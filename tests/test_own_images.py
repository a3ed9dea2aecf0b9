"""Images of the user with few classes through `run` and `audit`, with a profile of four lines and no Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded, write
from PIL import Image
from toys import micro_table, toml_text

from paperlib import Study
from paperlib.attacks.autoattack import CLASSES
from paperlib.cli import main
from paperlib.evaluation.auditing import planted_faults
from paperlib.report import outcomes, tables

PROFILE = """base = "micro.toml"
[data]
name = "images"
test = 30
"""


def write_bars(path: Path, classes: int, images: int = 120) -> Path:
    """Grey images of 8x8 with a bright bar; its position is the class."""
    rng = np.random.default_rng(0)
    files = {}
    for c in range(classes):
        for i in range(images // classes):
            pixels = rng.integers(0, 120, (8, 8), dtype=np.uint8)
            pixels[:, 2 * c : 2 * c + 2] += 130
            files[f"shape-{c}/{i}.png"] = encoded(Image.fromarray(pixels))
    return write(path, files)


@pytest.fixture
def folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the base and the profile; stages are computed in this process."""
    monkeypatch.setenv("PAPERLIB_WORKERS", "1")
    (home / "micro.toml").write_text(toml_text(micro_table()), encoding="utf-8")
    (home / "my.toml").write_text(PROFILE, encoding="utf-8")
    return home


@pytest.mark.parametrize(
    ("classes", "stages"),
    [
        (2, ["audit:plain"]),
        pytest.param(3, ["evaluate:plain:*", "stress:pgd-at", "audit:controls", "audit:plain"], marks=pytest.mark.slow),
        (4, ["audit:plain"]),
    ],
)
def test_data_of_few_classes_are_evaluated_and_audited(
    classes: int, stages: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_DATA", str(write_bars(folder / "shapes", classes)))
    monkeypatch.setattr(planted_faults, "overfitted", lambda ground: ground.plain)  # its training is long
    path = str(folder / "my.toml")
    assert main(["run", "--profile", path, "--stage", *stages]) == 0
    assert main(["audit", "--profile", path, "plain"]) == 0
    assert "too-good" in capsys.readouterr().out
    study = Study(path)
    assert study.fingerprint.startswith("images:") and study.record("evaluate:plain:clean")["n"] == 30
    record = study.record("autoattack:plain")
    verdicts = {finding.name: finding.verdict for finding in tables.audit_of(study, "plain").findings}
    assert verdicts["autoattack"] == "not run"  # too few classes, or reduced in this profile
    attacks = set(tables.every_attack(study, "plain").index)
    assert ("pgd-2-dlr@0.1" in attacks) == (classes >= 3)  # DLR divides by a difference to the third logit
    if classes < CLASSES:
        assert record["not_run"] == f"its targeted losses need 4 classes or more, the data have {classes}"
        assert outcomes.autoattack_outcome(study, "plain") is None
    else:
        assert record["name"] in attacks and len(outcomes.autoattack_outcome(study, "plain")) == 6
    assert tables.shrinkage([study], ["plain"])["AutoAttack"].item() == "" or classes >= CLASSES


def test_a_system_of_few_classes_is_audited_without_a_record(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_DATA", str(write_bars(folder / "shapes", 3)))
    path = str(folder / "my.toml")
    assert main(["run", "--profile", path, "--stage", "train:plain"]) == 0
    assert main(["audit", "--profile", path, "plain"]) == 0  # there is no record of an audit
    assert "Not to be believed" in capsys.readouterr().out


def test_only_profiles_with_equal_data_share_results(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "longer.toml").write_text('base = "my.toml"\n[evaluation]\nsteps = 3\n', encoding="utf-8")

    def key(profile: str, images: Path) -> tuple[Path, str]:
        monkeypatch.setenv("PAPERLIB_DATA", str(images))
        study = Study(str(folder / profile), replay=False)
        return study.store.root, study.key(study.stage("train:plain"))

    first, other = write_bars(folder / "first", 3), write_bars(folder / "other", 3)
    for path in (other / "shape-1").iterdir():  # of one class only, so that every selection of images changes
        path.write_bytes((other / "shape-1" / "1.png").read_bytes())
    assert key("my.toml", first) == key("longer.toml", first)
    assert key("my.toml", first) != key("my.toml", other)
    assert key("my.toml", first)[0] != key("micro.toml", first)[0]


def test_too_few_images_are_an_error_before_training(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_DATA", str(folder / "split"))
    write_bars(folder / "split" / "train", 3)
    write_bars(folder / "split" / "test", 3, 24)
    (folder / "my.toml").write_text(PROFILE.replace("30", "0"), encoding="utf-8")  # all of test/
    assert main(["run", "--profile", str(folder / "my.toml"), "--stage", "train:plain"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "error: evaluation.images=30: the test split of images holds 24 images; set evaluation.images to 24 or fewer "
        "in profile my\n"
    )
    assert not list((folder / "home").rglob("*.json"))
