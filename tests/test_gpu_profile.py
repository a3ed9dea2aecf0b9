"""A dry run of what a GPU node is asked to do: the same commands and profile, at the smallest sizes, on the CPU."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from toys import shrunk, toml_text

from paperlib import Study
from paperlib.cli import main
from paperlib.config.load import load_profile
from paperlib.data import CIFAR10_CLASSES
from paperlib.report import claims, outcomes, tables
from paperlib.systems.registry import recipes


def pictures(folder: Path) -> Path:
    """CIFAR-10 as a folder of tiny files: nine training and four test images of each class, of its own brightness."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("test", 4)):
        for c, name in enumerate(CIFAR10_CLASSES):
            for i in range(count):
                pixels = np.clip(rng.normal(20 + 22 * c, 20, (32, 32, 3)), 0, 255).astype(np.uint8)
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                buffer = io.BytesIO()
                Image.fromarray(pixels).save(buffer, "PNG")
                path.write_bytes(buffer.getvalue())
    return folder


@pytest.mark.parametrize("name", ["cifar10_h100", "cifar10_lite"])
def test_a_dry_run_leaves_records_that_notebooks_replay(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PAPERLIB_DATA", str(pictures(home / "pictures")))
    table = shrunk(name)
    path = home / f"{name}.toml"
    path.write_text(toml_text(table), encoding="utf-8")
    assert main(["run", "--profile", str(path)]) == 0
    assert main(["publish", "--profile", str(path)]) == 0
    assert "published" in capsys.readouterr().out
    monkeypatch.delenv("PAPERLIB_DATA")  # a reader has the records, neither data nor weights
    study = Study(str(path), local=False)
    assert study.fingerprint.startswith("cifar10-png:")
    rows = tables.main_table(study, outcomes.main_table_systems(study))
    listed = [r.system for r in recipes(load_profile(name)).values() if r.family not in ("expert", "member")]
    assert set(listed) <= set(rows.index) and len(rows) == len(listed) + 1  # the best expert
    found = claims.verdicts(study.runs)
    assert claims.SUPPORTED not in {v.verdict for v in found}  # of one seed
    assert any(v.evidence for v in found) and any("left out" in v.why for v in found)
