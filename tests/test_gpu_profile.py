"""The commands for a GPU node, with the same profiles at the smallest sizes, on the CPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from picture_files import encoded, write
from PIL import Image
from toys import shrunk, toml_text

from paperlib import Study
from paperlib.cli import main
from paperlib.config.load import load_profile
from paperlib.data import CIFAR10_CLASSES
from paperlib.report import claims, outcomes, tables
from paperlib.systems.registry import recipes


def pictures(folder: Path) -> Path:
    """CIFAR-10 as image files: nine training and four test images of each class; the brightness is the class."""
    rng, files = np.random.default_rng(0), {}
    for split, count in (("train", 9), ("test", 4)):
        for c, name in enumerate(CIFAR10_CLASSES):
            for i in range(count):
                pixels = np.clip(rng.normal(20 + 22 * c, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                files[f"{split}/{name}/{i}.png"] = encoded(Image.fromarray(pixels))
    return write(folder, files)


@pytest.mark.slow
def test_a_dry_run_leaves_records_that_notebooks_replay(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "cifar10_h100"
    monkeypatch.setenv("PAPERLIB_DATA", str(pictures(home / "pictures")))
    table = shrunk(name)
    path = home / f"{name}.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    assert main(["run", "--profile", str(path)]) == 0
    assert main(["publish", "--profile", str(path)]) == 0
    assert "published" in capsys.readouterr().out
    monkeypatch.delenv("PAPERLIB_DATA")  # only the records are available, without data and weights
    study = Study(str(path), local=False)
    assert study.fingerprint.startswith("cifar10-png:")
    rows = tables.main_table(study, outcomes.main_table_systems(study))
    listed = [r.system for r in recipes(load_profile(name)).values() if r.family not in ("expert", "member")]
    assert set(listed) <= set(rows.index) and len(rows) == len(listed) + 1  # the best expert
    verdicts = claims.verdicts(study.runs)
    assert claims.SUPPORTED not in {v.verdict for v in verdicts}  # because of the single seed
    assert any(v.comparisons for v in verdicts) and any("left out" in v.reason for v in verdicts)
