"""Published records are replaced completely or not at all, seed by seed, by one process at a time.

Their compact form is read back as the same records and arrays.
"""

from __future__ import annotations

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_cli import Capture, profile
from toys import changed, micro_table, toml_text

from paperlib.atomic_files import read_json, write_tensors
from paperlib.cli import main
from paperlib.errors import StoreError
from paperlib.paths import published_dir
from paperlib.pipeline.published import Published, write_published
from paperlib.pipeline.published_format import (
    decode_records,
    encode_records,
    pack_arrays,
    read_arrays,
    read_records,
    unpack_arrays,
    write_arrays,
    write_records,
)
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
    folder: Path, *seeds: int, value: int = 0, description: dict[str, Any] = DESCRIPTION, replace: bool = False
) -> list[int]:
    weights = {f"dwf-seed-{min(seeds)}": {"w": torch.zeros(1)}}
    results = {seed: records(seed, value) for seed in seeds}
    return write_published(folder, description, results, weights, keys=keys, replace=replace)


def values(folder: Path) -> dict[int, int]:
    """The value of every published seed, each read and verified."""
    published = Published(folder)
    by_seed = {}
    for seed in published.seeds:
        artefact = published.read("data", f"key-{seed}", seed)
        assert artefact is not None
        by_seed[seed] = int(artefact.record["result"]["correct"])
        assert artefact.arrays["x"].tolist() == [by_seed[seed]] * 2
    return by_seed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "published" / "tiny"


# -- compact form ----------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(["train:dwf", "class", "name", "key", "inputs", "$", "$1"])
SCALARS = st.sampled_from([None, True, 0, 1, 1.0, -0.5, 1e-300, "", "\u2028"]) | st.text(max_size=3) | NAMES
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner), max_leaves=4)
LONG = {"class": "System", "name": "$x", "weights": ["train:dwf"] * 9}  # long enough for a reference


def provenance(stage: str, key: str, inputs: dict[str, str]) -> dict[str, Any]:
    return {"stage": stage, "key": key, "inputs": inputs, "created": "now", "seconds": 1.5, "versions": {"torch": "2"}}


@st.composite
def record_tables(draw: st.DrawFn) -> dict[str, Any]:
    """Records with repeated tables; the provenance agrees with stages and keys, disagrees, or is missing."""
    names = draw(st.lists(st.text(max_size=3) | NAMES, unique=True, max_size=3))
    keys = {name: draw(st.text(max_size=2)) for name in names}
    table = {}
    for name in names:
        record = draw(st.dictionaries(NAMES, JSON | st.just(LONG)))
        stage, key = draw(st.sampled_from([(name, keys[name]), ("other", keys[name]), (name, "other")]))
        inputs = draw(st.sampled_from([keys, {}, {"train:absent": "x"}]))
        choice = draw(st.sampled_from(["none", "full", "raw"]))
        if choice != "none":
            record["provenance"] = provenance(stage, key, inputs) if choice == "full" else draw(JSON)
        table[name] = {"key": keys[name], "record": record}
    return table


@settings(max_examples=40)
@given(record_tables())
@example({"a": {"key": "k", "record": {"result": LONG}}, "b": {"key": "l", "record": {"result": [LONG, "$$"]}}})
def test_records_are_decoded_as_they_were_encoded(table: dict[str, Any]) -> None:
    text = encode_records(table)
    assert json.dumps(decode_records(text)) == json.dumps(table, sort_keys=True)  # so types and order are equal too
    assert all(json.loads(line) for line in text.split("\n")[:-1])


def test_each_record_is_one_line_and_repeated_tables_and_facts_stand_once() -> None:
    keys = {f"evaluate:dwf:{i}": f"key-{i}" for i in range(9)}
    table = {}
    for i, (stage, key) in enumerate(keys.items()):
        facts = provenance(stage, key, keys) | {"data": "x" * 99, "seconds": i}
        table[stage] = {"key": key, "record": {"result": {"correct": i}, "config": LONG, "provenance": facts}}
    definitions, lines = [], []
    for line in encode_records(table).splitlines():
        (lines if '"stage"' in line else definitions).append(json.loads(line))
    assert [line["stage"] for line in lines] == list(keys)
    assert len(definitions) == 2
    assert all(line["record"]["config"] == "$1 System $x" for line in lines)
    assert all(line["provenance"]["inputs"] == list(keys) for line in lines)
    assert all(line["provenance"]["common"] == "$2" for line in lines)


def test_decoded_records_share_no_table() -> None:
    table = {name: {"key": name, "record": {"config": LONG}} for name in "ab"}
    decoded = decode_records(encode_records(table))
    decoded["a"]["record"]["config"]["name"] = "changed"
    assert decoded["b"] == table["b"]


DTYPES = [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32]


@st.composite
def arrays(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    named = {}
    for name in draw(st.lists(st.text(max_size=3), unique=True, max_size=4)):
        dtype, shape = draw(st.sampled_from(DTYPES)), draw(st.lists(st.integers(0, 11), max_size=3))
        limit = draw(st.sampled_from([2, 2**7, 2**15, 2**31, 2**62]))
        array = torch.randint(-limit, limit, shape, generator=torch.Generator().manual_seed(draw(st.integers(0, 9))))
        named[name] = array > 0 if dtype == torch.bool else array.to(dtype)
    return named


@settings(max_examples=40)
@given(arrays())
def test_arrays_are_unpacked_as_they_were_packed(named: dict[str, torch.Tensor]) -> None:
    unpacked = unpack_arrays(*pack_arrays(named))
    assert unpacked.keys() == named.keys()
    for name, array in named.items():
        assert (unpacked[name].dtype, unpacked[name].shape) == (array.dtype, array.shape)
        assert torch.equal(unpacked[name].nan_to_num(), array.nan_to_num())


def test_booleans_are_stored_as_bits_and_integers_in_the_smallest_type(tmp_path: Path) -> None:
    named = {
        "bits": torch.ones(360, dtype=torch.bool),
        "small": torch.tensor([-128, 127]),
        "large": torch.tensor([-129], dtype=torch.int32),
    }
    packed, rows = pack_arrays(named)
    assert {name: (value.dtype, value.numel()) for name, value in packed.items()} == {
        "bool 360": (torch.uint8, 45),
        "int64 2": (torch.int8, 2),
        "int32 1": (torch.int16, 1),
    }
    assert json.loads(rows["rows"])["bool 360"] == ["bits"]
    write_arrays(tmp_path / "x.safetensors", named)
    assert all(torch.equal(value, named[name]) for name, value in read_arrays(tmp_path / "x.safetensors").items())


def test_a_file_in_another_form_is_refused(tmp_path: Path) -> None:
    for text in ("{", "[]", '"x"', '{"stage": "x"}', '{"name": "1"}', '{"stage": "x", "key": "k", "record": "$1"}'):
        (tmp_path / "x.jsonl").write_text(text)
        with pytest.raises(StoreError, match=r"x\.jsonl: not readable"):
            read_records(tmp_path / "x.jsonl")
    rows = json.dumps({"correct": ["x"], "other 8": ["x"], "float32 7": ["x"], "float32 8": []})
    for name in ("correct", "other 8", "float32 7", "float32 8", "float16 8"):
        write_tensors(tmp_path / "x.safetensors", {name: torch.zeros(1, 8)}, {"rows": rows})
        with pytest.raises(StoreError, match=r"x\.safetensors: not readable"):
            read_arrays(tmp_path / "x.safetensors")


def test_a_record_with_a_number_that_is_not_finite_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.jsonl: cannot write"):
        write_records(tmp_path / "x.jsonl", {"data": {"key": "k", "record": {"loss": float("nan")}}})
    assert list(tmp_path.iterdir()) == []


# -- seed by seed ----------------------------------------------------------------------------------------------------


def test_seeds_are_added_and_replaced_one_by_one(folder: Path) -> None:
    assert write(folder, 1, value=1) == [1]
    assert write(folder, 3, value=3) == [1, 3]
    assert write(folder, 1, value=5) == [1, 3]
    assert values(folder) == {1: 5, 3: 3}
    assert write(folder, 0, 2, value=7) == [0, 1, 2, 3]
    assert values(folder) == {0: 7, 1: 5, 2: 7, 3: 3}
    assert write(folder, 4, value=4, replace=True) == [4]
    assert values(folder) == {4: 4}


def test_weights_are_written_only_for_a_seed_before_all_that_have_weights(folder: Path) -> None:
    def published_weights() -> list[str]:
        return sorted(path.name for path in folder.glob("weights-*"))

    write(folder, 1)
    write(folder, 3)
    assert published_weights() == ["weights-dwf-seed-1.safetensors"]
    write(folder, 0)
    assert published_weights() == ["weights-dwf-seed-0.safetensors", "weights-dwf-seed-1.safetensors"]


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("configuration.phase1.lr", 0.2, r"phase1.lr = 0.1 there and 0.2 here"),
        ("configuration.phase2", {"lr": 1}, r"phase2.lr = None there and 1 here"),
        ("fingerprint", "digits:2", r"of other data \(digits:1 there and digits:2 here\)"),
    ],
)
def test_seeds_of_another_configuration_or_other_data_are_not_mixed(
    folder: Path, path: str, value: object, message: str
) -> None:
    write(folder, 0, 1, value=1)
    other = changed(DESCRIPTION, path, value)
    with pytest.raises(StoreError, match=rf"holds seeds \[0\] .*{message}.*--seeds 0,1,3.*--replace"):
        write(folder, 1, 3, description=other)
    assert values(folder) == {0: 1, 1: 1}
    assert write(folder, 0, 1, description=other) == [0, 1]  # replaces all that were published
    assert write(folder, 3, replace=True) == [3]


def test_seeds_of_other_code_are_not_mixed(folder: Path) -> None:
    write(folder, 0)
    with pytest.raises(StoreError, match=r"seed 0 was computed by other code \(1 records, such as data\)"):
        write_published(folder, DESCRIPTION, {1: records(1)}, {}, keys=lambda seed: {"data": "another"})


def test_fields_that_change_no_number_may_differ_between_seeds(folder: Path) -> None:
    write(folder, 0)
    assert write(folder, 3, description=changed(DESCRIPTION, "configuration.summary", "tiny")) == [0, 3]
    assert write(folder, 4, description=changed(DESCRIPTION, "configuration.run.seeds", [0, 3])) == [0, 3, 4]


def test_a_damaged_file_of_another_seed_is_named_in_the_error(folder: Path) -> None:
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
    message = (
        f"holds seeds [0] of another configuration (data.test = {micro_table()['data']['test']} there and 30 here)"
    )
    assert message in capsys.readouterr().err
    assert main(["publish", "--profile", profile, "--seeds", "3", "--replace"]) == 0
    assert Published(published_dir("micro")).seeds == [3]


# -- completely or not at all ----------------------------------------------------------------------------------------


def disk_full(*args: object, **kw: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def disk_full_in_the_last_step(path: Path, target: Path) -> None:
    if path.suffix == ".tmp":
        disk_full()
    os.rename(path, target)


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        ("paperlib.atomic_files.save_file", disk_full),
        ("paperlib.pipeline.published.shutil.copyfile", disk_full),
        ("paperlib.atomic_files.os.replace", disk_full),
        ("pathlib.Path.rename", disk_full),
        ("pathlib.Path.rename", disk_full_in_the_last_step),
        ("filelock.FileLock.acquire", disk_full),
    ],
)
def test_a_full_disk_leaves_the_published_records(
    folder: Path, monkeypatch: pytest.MonkeyPatch, function: str, failure: object
) -> None:
    write(folder, 0, 1, value=1)
    with monkeypatch.context() as patched:
        patched.setattr(function, failure)
        with pytest.raises(StoreError, match="No space left"):
            write(folder, 1, value=2)
    assert values(folder) == {0: 1, 1: 1}
    assert [path.name for path in (folder.parent / ".publishing").iterdir()] == ["tiny.lock"]
    assert write(folder, 1, value=2) == [0, 1]


class Killed(BaseException):
    """Stands for the end of the process: nothing is cleaned up."""


def test_after_a_publisher_was_killed_the_old_records_are_read_and_the_next_publisher_cleans_up(
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
    assert values(folder) == {0: 1}
    assert not folder.exists()  # reading changes nothing
    assert write(folder, 1, value=2) == [0, 1]
    assert values(folder) == {0: 1, 1: 2}
    assert [path.name for path in (folder.parent / ".publishing").iterdir()] == ["tiny.lock"]


def test_publishers_at_the_same_time_lose_no_seed(folder: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: write(folder, seed, value=seed), range(5)))
    assert values(folder) == {seed: seed for seed in range(5)}


def test_a_reader_from_before_gets_an_error_that_the_records_were_published_again(folder: Path) -> None:
    write(folder, 0, value=1)
    published = Published(folder)
    assert published.seeds == [0]
    write(folder, 0, value=2)
    with pytest.raises(StoreError, match="published again while it was read; run the same again"):
        published.read("data", "key-0", 0)


def test_a_seed_of_the_committed_records_takes_less_than_one_megabyte() -> None:
    published = Published(published_dir("digits"))
    assert read_json(published.folder / "index.json")["seeds"] == published.seeds
    for seed in published.seeds:
        sizes = [path.stat().st_size for path in published.folder.glob(f"[ra]*-seed-{seed}.*")]
        assert len(sizes) == 2
        assert sum(sizes) < 1_000_000
