"""Published records are replaced whole or not at all, seed by seed, by one process at a time."""

from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cli import Capture, profile
from toys import changed, micro_table, toml_text

from paperlib.cli import main
from paperlib.errors import StoreError
from paperlib.paths import published_dir
from paperlib.pipeline.published import Published, write_published
from paperlib.pipeline.stages import stages
from paperlib.pipeline.store import Artefact

__all__ = ["profile"]  # the fixture

DESCRIPTION = {
    "profile": "tiny",
    "configuration": {"summary": "small", "phase1": {"lr": 0.1}, "run": {"seeds": [0], "threads": 1}},
    "fingerprint": "digits:1",
    "data": {"label": "digits"},
}


def records(seed: int, value: int = 0) -> dict[str, Artefact]:
    record = {"result": {"correct": value}}
    return {"data": Artefact(f"key-{seed}", record, {"x": torch.full((2,), value)}, None, "computed")}


def keys(seed: int) -> dict[str, str]:
    return {"data": f"key-{seed}"}


def write(
    folder: Path, *seeds: int, value: int = 0, description: dict[str, Any] = DESCRIPTION, **how: Any
) -> list[int]:
    weights = {f"dwf-seed-{min(seeds)}": {"w": torch.zeros(1)}}
    return write_published(folder, description, {s: records(s, value) for s in seeds}, weights, keys=keys, **how)


def held(folder: Path) -> dict[int, int]:
    """The value of every published seed, each read and verified."""
    published = Published(folder)
    found = {seed: published.read("data", f"key-{seed}", seed) for seed in published.seeds}
    assert all(artefact and int(artefact.arrays["x"][0]) == _value(artefact) for artefact in found.values())
    return {seed: _value(artefact) for seed, artefact in found.items() if artefact}


def _value(artefact: Artefact) -> int:
    return int(artefact.record["result"]["correct"])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published" / "tiny"


# -- seed by seed ----------------------------------------------------------------------------------------------------


def test_seeds_are_added_and_replaced_one_by_one(folder: Path) -> None:
    assert write(folder, 1, value=1) == [1]
    assert write(folder, 3, value=3) == [1, 3]
    assert write(folder, 1, value=5) == [1, 3]
    assert held(folder) == {1: 5, 3: 3}
    assert write(folder, 0, 2, value=7) == [0, 1, 2, 3]
    assert held(folder) == {0: 7, 1: 5, 2: 7, 3: 3}
    assert write(folder, 4, value=4, replace=True) == [4]
    assert held(folder) == {4: 4}


def test_weights_are_those_of_the_earliest_seeds(folder: Path) -> None:
    def published_weights() -> list[str]:
        return sorted(path.name for path in folder.glob("weights-*"))

    write(folder, 1)
    write(folder, 3)
    assert published_weights() == ["weights-dwf-seed-1.safetensors"]
    write(folder, 0)
    assert published_weights() == ["weights-dwf-seed-0.safetensors", "weights-dwf-seed-1.safetensors"]


OTHERS = [
    ("configuration.phase1.lr", 0.2, r"phase1.lr = 0.1 there and 0.2 here"),
    ("configuration.phase2", {"lr": 1}, r"phase2.lr = None there and 1 here"),
    ("fingerprint", "digits:2", r"of other data \(digits:1 there and digits:2 here\)"),
]


@pytest.mark.parametrize(("path", "value", "told"), OTHERS)
def test_seeds_of_another_study_are_not_mixed_with_new_ones(folder: Path, path: str, value: object, told: str) -> None:
    write(folder, 0, 1, value=1)
    other = changed(DESCRIPTION, path, value)
    with pytest.raises(StoreError, match=rf"holds seeds \[0\] .*{told}.*--seeds 0,1,3.*--replace"):
        write(folder, 1, 3, description=other)
    assert held(folder) == {0: 1, 1: 1}
    assert write(folder, 0, 1, description=other) == [0, 1]  # none of the old ones stays
    assert write(folder, 3, replace=True) == [3]


def test_seeds_made_by_other_code_are_not_mixed_with_new_ones(folder: Path) -> None:
    write(folder, 0)
    with pytest.raises(StoreError, match=r"seed 0 was made by other code \(1 records, such as data\)"):
        write_published(folder, DESCRIPTION, {1: records(1)}, {}, keys=lambda seed: {"data": "another"})


@pytest.mark.parametrize(("path", "value"), [("configuration.summary", "tiny"), ("configuration.run.seeds", [0, 3])])
def test_what_decides_no_number_keeps_no_seed_out(folder: Path, path: str, value: object) -> None:
    write(folder, 0)
    assert write(folder, 3, description=changed(DESCRIPTION, path, value)) == [0, 3]


def test_a_kept_file_that_is_damaged_is_named(folder: Path) -> None:
    write(folder, 0)
    (folder / "arrays-seed-0.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match=r"arrays-seed-0.safetensors: missing or changed"):
        write(folder, 1)


def test_the_command_publishes_seed_by_seed(profile: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("paperlib.pipeline.graph.stages", lambda profile: {"data": stages(profile)["data"]})
    monkeypatch.setattr("paperlib.pipeline.publish.PUBLISHED_WEIGHTS", ())
    assert main(["run", "--profile", profile, "--seeds", "0,3"]) == 0
    for seed, line in (("0", "now holds seeds [0]"), ("3", "now holds seeds [0, 3]")):
        assert main(["publish", "--profile", profile, "--seeds", seed]) == 0
        assert capsys.readouterr().out.splitlines()[-1].endswith(line)
    Path(profile).write_text(toml_text(changed(micro_table(), "data.test", 30)), encoding="utf-8")
    assert main(["run", "--profile", profile, "--seeds", "3"]) == 0
    assert main(["publish", "--profile", profile, "--seeds", "3"]) == 1
    assert "holds seeds [0] of another configuration (data.test = 40 there and 30 here)" in capsys.readouterr().err
    assert main(["publish", "--profile", profile, "--seeds", "3", "--replace"]) == 0
    assert Published(published_dir("micro")).seeds == [3]


# -- whole or not at all ---------------------------------------------------------------------------------------------


def full(*args: object, **kw: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_at_the_last_moment(path: Path, target: Path) -> None:
    if path.suffix == ".tmp":
        full()
    os.rename(path, target)


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("paperlib.atomic_files.save_file", full),
        ("paperlib.pipeline.published.shutil.copyfile", full),
        ("paperlib.atomic_files.os.replace", full),
        ("pathlib.Path.rename", full),
        ("pathlib.Path.rename", full_at_the_last_moment),
        ("filelock.FileLock.acquire", full),
    ],
)
def test_a_full_disk_leaves_what_was_published(
    folder: Path, monkeypatch: pytest.MonkeyPatch, where: str, failure: object
) -> None:
    write(folder, 0, 1, value=1)
    with monkeypatch.context() as patched:
        patched.setattr(where, failure)
        with pytest.raises(StoreError, match="No space left"):
            write(folder, 1, value=2)
    assert held(folder) == {0: 1, 1: 1}
    assert [path.name for path in (folder.parent / ".publishing").iterdir()] == ["tiny.lock"]
    assert write(folder, 1, value=2) == [0, 1]


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up."""


def test_after_a_publisher_was_killed_the_old_records_are_read_and_the_next_one_clears_up(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, 0, value=1)

    def killed(path: Path, target: Path) -> None:
        if path.suffix == ".tmp" or path.suffix == ".old":
            raise Killed
        os.rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr("pathlib.Path.rename", killed)
        patched.setattr("paperlib.atomic_files.shutil.rmtree", lambda *args, **kw: None)
        with pytest.raises(Killed):
            write(folder, 1, value=2)
    assert not folder.exists()
    assert held(folder) == {0: 1}
    assert not folder.exists()  # a reader changes nothing
    assert write(folder, 1, value=2) == [0, 1]
    assert held(folder) == {0: 1, 1: 2}
    assert [path.name for path in (folder.parent / ".publishing").iterdir()] == ["tiny.lock"]


def test_two_publishers_at_once_lose_no_seed(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: write(folder, seed, value=seed), range(8)))
    assert held(folder) == {seed: seed for seed in range(8)}


def test_a_reader_that_began_before_is_told_that_the_records_are_new(folder: Path) -> None:
    write(folder, 0, value=1)
    published = Published(folder)
    assert published.seeds == [0]
    write(folder, 0, value=2)
    with pytest.raises(StoreError, match="published again while it was read; run the same again"):
        published.read("data", "key-0", 0)
