"""The recipes of docs/recipes.md, run as they stand there, with a tiny profile in place of ``digits``."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import save_model
from toys import changed, micro_table, toml_text

from paperlib import load_dataset, load_profile, paths
from paperlib.systems.registry import COMPARED

RECIPES = (paths.ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"```(?:python|toml)\n# (\S+)\n(.*?)```", RECIPES, re.DOTALL))
COMMANDS = re.findall(r"^(?:\w+=\S+ )?(?:python -m paperlib|papermill) .*$", RECIPES, re.MULTILINE)


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder with every file of the recipes; what they compute is kept for the next one."""
    folder = tmp_path_factory.mktemp("desk")
    small = changed(micro_table(), "study.systems", list(COMPARED))
    (folder / "micro.toml").write_text(toml_text(small), encoding="utf-8")
    for name, text in FILES.items():
        (folder / name).write_text(text.replace('base = "digits"', 'base = "micro.toml"'), encoding="utf-8")
    (folder / "notebooks").symlink_to(paths.notebooks_dir())
    return folder


def run(desk: Path, line: str) -> str:
    """What a command line of the recipes prints, run in ``desk``."""
    words = shlex.split(line)
    environment = {**os.environ, "PAPERLIB_HOME": str(desk / "home"), "PYTHONPATH": str(paths.ROOT)}
    while "=" in words[0]:
        name, _, environment[name] = words.pop(0).partition("=")
    words = words[1:] if words[0] == "python" else ["-m", *words]
    done = subprocess.run([sys.executable, *words], cwd=desk, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_every_file_and_command_is_tried_below() -> None:
    tried = Path(__file__).read_text(encoding="utf-8")
    assert len(FILES) >= 8 and len(COMMANDS) >= 4
    for name in (*FILES, *COMMANDS):
        assert name in tried, name


def records(desk: Path) -> list[dict[str, Any]]:
    """Everything computed so far."""
    return [json.loads(path.read_text(encoding="utf-8")) for path in (desk / "home").rglob("record.json")]


def test_change_one_thing(desk: Path) -> None:
    said = run(desk, "python -m paperlib reproduce --profile logits.toml --only 04")
    assert "04_dwf: done" in said
    [trained] = [r for r in records(desk) if r["provenance"]["stage"] == "train:dwf"]
    assert trained["config"]["architecture"]["mixing"] == "logits" and trained["provenance"]["profile"] == "logits"
    assert (desk / "home" / "figures" / "logits" / "04_curves.png").is_file()


def test_audit_my_own_model_in_ten_lines(desk: Path) -> None:
    assert len(FILES["audit_mine.py"].strip().splitlines()) <= 10
    said = run(desk, "python audit_mine.py")
    assert "Not to be believed: 50.0 %" in said, said  # untrained, and claimed to be at 50 %


def test_add_a_system_to_the_table(desk: Path) -> None:
    assert FILES["smooth.toml"].strip().endswith('extension = "smooth.py"')
    run(desk, "papermill notebooks/06_main_table.ipynb table.ipynb -p profile smooth.toml")
    table = pd.read_csv(desk / "home" / "figures" / "smooth" / "main_table.csv", index_col="system")
    assert table.loc["smooth", "what it is"] == "PGD-AT with smoothed labels"
    assert table.loc["smooth"].notna().all()  # AutoAttack, the worst case and the cost among them
    assert {"pgd-at", "dwf"} <= {*table.index} and any(name.startswith("AutoAttack") for name in table.columns)
    assert re.search(r"worst case of \d+ attacks", run(desk, "python -m paperlib audit --profile smooth.toml smooth"))


def test_bring_a_network_with_its_weights(desk: Path) -> None:
    assert "brought.py" in FILES
    torch.manual_seed(5)
    mine = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    save_model(mine, str(desk / "mine.safetensors"))
    (desk / "brought.toml").write_text('base = "micro.toml"\n[study]\nextension = "brought.py"\n', encoding="utf-8")
    run(desk, "python -m paperlib run --profile brought.toml --stage evaluate:mine:clean stress:mine")
    [record] = [r for r in records(desk) if r["provenance"]["stage"] == "evaluate:mine:clean"]
    test = load_dataset(load_profile(str(desk / "micro.toml"))).test.first(30)
    with torch.no_grad():
        right = int((mine(test.images).argmax(dim=1) == test.labels).sum())
    assert (record["result"]["correct"], record["result"]["n"]) == (right, 30)
    [trained] = [r for r in records(desk) if r["provenance"]["stage"] == "train:mine"]
    assert trained["result"]["training_units"] is None  # what it cost is not ours to know


def test_use_images_of_my_own(desk: Path) -> None:
    assert "pets.toml" in FILES
    rng = np.random.default_rng(1)
    for name, brightness in (("cats", 60), ("dogs", 120), ("owls", 180)):
        (desk / "pets" / name).mkdir(parents=True)
        for i in range(45):
            pixels = rng.normal(brightness, 20, (8, 8)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(desk / "pets" / name / f"{i}.png")
    run(desk, "PAPERLIB_DATA=pets python -m paperlib run --profile pets.toml --stage audit:plain")
    said = run(desk, "PAPERLIB_DATA=pets python -m paperlib audit --profile pets.toml plain")
    assert "Not to be believed" in said and "autoattack" in said
    assert any(r["provenance"]["data"].startswith("images") for r in records(desk))


def test_add_a_data_set(desk: Path) -> None:
    assert {"shapes.py", "shapes.toml"} <= FILES.keys()
    rng = np.random.default_rng(0)
    arrays = {}
    for part, n in (("train", 120), ("test", 60)):
        labels = np.arange(n) % 3
        images = rng.integers(0, 256, (n, 1, 8, 8)).astype(np.uint8)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels}
    (desk / "my-files").mkdir()
    np.savez(desk / "my-files" / "shapes.npz", **arrays)
    run(desk, "PAPERLIB_DATA=my-files python -m paperlib run --profile shapes.toml --stage 'evaluate:pgd-at:*'")
    found = [r["provenance"]["data"] for r in records(desk) if r["provenance"]["profile"] == "shapes"]
    assert found and all(data.startswith("shapes:") for data in found)


def test_try_an_attack_of_my_own(desk: Path) -> None:
    said = run(desk, "python margin.py")
    left = {name: int(count) for name, count in re.findall(r"^(.+): (\d+) of 100 correct", said, re.MULTILINE)}
    assert left["either"] <= min(left["PGD-50"], left["margin"]) and 0 < left["either"] < 100
