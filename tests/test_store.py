"""Artefacts are written whole, read verified, computed once, and never unpickled."""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from toys import compute_once

import paperlib
from paperlib.atomic_files import (
    checksum,
    read_json,
    read_tensors,
    replacing,
    replacing_folder,
    write_json,
    write_tensors,
)
from paperlib.errors import StoreError
from paperlib.pipeline.keys import artefact_key
from paperlib.pipeline.store import MANIFEST, Artefact, Store

RECORD = {"result": {"correct": 3}, "list": [1, 2.5, "x", None]}
ARRAYS = {"correct": torch.tensor([True, False]), "first": torch.tensor([3, -1], dtype=torch.int16)}
WEIGHTS = {"w": torch.arange(6.0).view(2, 3), "h": torch.tensor([1.5], dtype=torch.float16), "n": torch.tensor(4)}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def write(store: Store, record: dict[str, Any] = RECORD) -> Artefact:
    return store.write("evaluate:dwf:pgd-50@8/255", "k1", record, ARRAYS, WEIGHTS)


def read(store: Store) -> Artefact | None:
    return store.read("evaluate:dwf:pgd-50@8/255", "k1")


def folder(store: Store) -> Path:
    return store.folder("evaluate:dwf:pgd-50@8/255", "k1")


# -- writing and reading ---------------------------------------------------------------------------------------------


def test_what_is_written_is_read_back(store: Store) -> None:
    written = write(store)
    for artefact in (written, read(store)):
        assert artefact is not None
        assert (artefact.key, artefact.record, artefact.source) == ("k1", RECORD, "computed")
        assert artefact.weights is not None
        weights = read_tensors(artefact.weights)[0]
        for found, expected in ((artefact.arrays, ARRAYS), (weights, WEIGHTS)):
            assert found.keys() == expected.keys()
            assert all(found[name].dtype == expected[name].dtype for name in expected)
            assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_record_alone_is_an_artefact(store: Store) -> None:
    store.write("data", "k2", RECORD)
    assert store.read("data", "k2") == Artefact("k2", RECORD, {}, None, "computed")


def test_what_was_never_written_is_none(store: Store) -> None:
    assert store.read("data", "k3") is None
    write(store)
    assert store.read("evaluate:dwf:pgd-50@8/255", "k4") is None
    assert store.read("data", "k1") is None


def test_names_become_folders_that_every_file_system_takes(store: Store) -> None:
    write(store)
    (path,) = (p for p in store.root.iterdir() if not p.name.startswith("."))
    assert path.name == "evaluate-dwf-pgd-50@8of255-k1"


def test_writing_again_replaces(store: Store) -> None:
    write(store)
    store.write("evaluate:dwf:pgd-50@8/255", "k1", {"new": 1})
    assert read(store) == Artefact("k1", {"new": 1}, {}, None, "computed")


def test_deleting_says_whether_there_was_something(store: Store) -> None:
    write(store)
    assert store.delete("evaluate:dwf:pgd-50@8/255", "k1") is True
    assert store.delete("evaluate:dwf:pgd-50@8/255", "k1") is False
    assert read(store) is None


def test_tensors_are_written_as_they_look(tmp_path: Path) -> None:
    base = torch.rand(2, 3, 4, 4)
    tensors = {
        "turned": base.permute(3, 2, 1, 0),
        "part": base[:, 1],
        "wide": base.contiguous(memory_format=torch.channels_last),
    }
    tensors["learnt"] = base.clone().requires_grad_()
    write_tensors(tmp_path / "x.safetensors", tensors, {"note": "n"})
    found, notes = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
    assert notes == {"note": "n"}


# -- damage ----------------------------------------------------------------------------------------------------------


def test_a_half_written_artefact_does_not_exist(store: Store) -> None:
    write(store)
    (folder(store) / MANIFEST).unlink()
    assert read(store) is None
    write(store)
    assert read(store) is not None


@pytest.mark.parametrize("name", ["record.json", "arrays.safetensors", "weights.safetensors"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_flipped_byte_is_found_and_its_file_named(store: Store, name: str, place: float) -> None:
    write(store)
    path = folder(store) / name
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 1
    path.write_bytes(content)
    with pytest.raises(StoreError, match=rf"{name}: .*not what was written; delete .* to compute it again"):
        read(store)


@pytest.mark.parametrize("name", ["record.json", "arrays.safetensors", "weights.safetensors"])
def test_a_missing_file_is_named(store: Store, name: str) -> None:
    write(store)
    (folder(store) / name).unlink()
    with pytest.raises(StoreError, match=f"{name}: missing"):
        read(store)


def test_a_flipped_byte_in_the_manifest_is_found_or_changes_nothing(store: Store) -> None:
    write(store)
    expected, path = read(store), folder(store) / MANIFEST
    assert expected is not None
    content = path.read_bytes()
    refused = 0
    for i in range(len(content)):
        path.write_bytes(content[:i] + bytes([content[i] ^ 1]) + content[i + 1 :])
        try:
            found = read(store)
        except StoreError:
            refused += 1
        else:
            assert found is not None
            assert (found.record, found.weights, found.arrays.keys()) == (
                expected.record,
                expected.weights,
                expected.arrays.keys(),
            )
    assert refused > 3 * 64  # at least wherever a checksum stands


@pytest.mark.parametrize("content", ["", "[]", "null", '{"name": "x"}', '{"files": []}', '{"files": {}}', "{"])
def test_a_foreign_manifest_is_refused(store: Store, content: str) -> None:
    write(store)
    (folder(store) / MANIFEST).write_text(content)
    with pytest.raises(StoreError, match=MANIFEST):
        read(store)


@pytest.mark.parametrize("content", [b"", b"\x00" * 8, b"not safetensors", pickle.dumps({"w": [1.0]})])
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.safetensors: not a readable safetensors file"):
        read_tensors(path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00"])
def test_a_file_that_is_not_json_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"x\.json: not readable"):
        read_json(path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.safetensors: no such file"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(StoreError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


# -- a disk that is full ---------------------------------------------------------------------------------------------


def full(*args: object, **kw: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def visible(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def torn(tensors: object, path: Path, **kw: object) -> None:
    path.write_bytes(b"half of it")
    full()


def full_at_the_last_moment(path: Path, target: Path) -> None:
    if path.suffix == ".tmp":
        full()
    os.rename(path, target)


@pytest.mark.parametrize(
    ("where", "failure"),
    [
        ("paperlib.atomic_files.save_file", torn),
        ("paperlib.atomic_files.os.replace", full),
        ("pathlib.Path.mkdir", full),
        ("pathlib.Path.write_text", full),
        ("pathlib.Path.rename", full),
        ("pathlib.Path.rename", full_at_the_last_moment),
    ],
)
def test_a_full_disk_leaves_the_old_artefact_and_no_litter(
    store: Store, monkeypatch: pytest.MonkeyPatch, where: str, failure: object
) -> None:
    write(store)
    before = visible(store.root)
    with monkeypatch.context() as patched:
        patched.setattr(where, failure)
        with pytest.raises(StoreError, match="cannot write"):
            write(store, {"new": 1})
    assert visible(store.root) == before
    found = read(store)
    assert found is not None
    assert found.record == RECORD


@pytest.mark.parametrize(
    "write_one", [lambda path: write_json(path, {"a": 1}), lambda path: write_tensors(path, WEIGHTS)]
)
def test_one_file_is_replaced_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_one: Any
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("paperlib.atomic_files.os.replace", full)
    with pytest.raises(StoreError, match=r"file: cannot write .*No space left"):
        write_one(path)
    assert visible(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_number_that_is_not_finite_is_not_written(store: Store) -> None:
    with pytest.raises(StoreError, match=r"record\.json"):
        write(store, {"loss": float("nan")})
    assert visible(store.root) == []


def test_a_home_that_is_no_folder_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="cannot write"):
        write(store)
    with pytest.raises(StoreError, match="cannot write"), store.lock("data", "k"):
        pass
    with pytest.raises(StoreError, match="cannot write"):
        write_json(store.root / "x.json", {})


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing_folder(folder) as fresh:
            (fresh / "file").write_text(content)
        assert (folder / "file").read_text() == content

    def break_off() -> None:
        with replacing_folder(folder) as fresh:
            (fresh / "file").write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        break_off()
    assert (folder / "file").read_text() == "new"
    assert visible(tmp_path) == ["folder", "folder/file"]


@pytest.mark.parametrize("replace", [replacing, replacing_folder])
def test_two_writers_of_one_name_never_share_a_temporary_one(tmp_path: Path, replace: Any) -> None:
    with replace(tmp_path / "x") as first, replace(tmp_path / "x") as second:
        assert first != second
        for fresh in (first, second):
            fresh.mkdir(exist_ok=True)


# -- two at once -----------------------------------------------------------------------------------------------------


def test_two_processes_compute_a_result_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log, signs = tmp_path / "log", [tmp_path / "a", tmp_path / "b"]
    args = [(tmp_path / "store", log, pair) for pair in (signs, signs[::-1])]
    workers = [context.Process(target=compute_once, args=a) for a in args]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert log.read_text() == "computed\n"
    assert Store(tmp_path / "store").read("shared", "key") is not None


def test_a_lock_is_free_again_after_an_error(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.lock("data", "k"):
        _ = 1 / 0
    with store.lock("data", "k"):
        pass


# -- keys ------------------------------------------------------------------------------------------------------------

PARTS: dict[str, Any] = {
    "stage": "train:dwf",
    "version": 1,
    "config": {"lr": 0.1, "eps": "8/255"},
    "seed": 0,
    "data": "digits:0123456789abcdef",
    "inputs": ["aa", "bb"],
}


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("stage", "train:frozen"),
        ("version", 2),
        ("config", {"lr": 0.2, "eps": "8/255"}),
        ("config", {"lr": 0.1, "eps": "7/255"}),
        ("config", {"lr": 0.1}),
        ("seed", 1),
        ("data", "digits:0123456789abcdee"),
        ("inputs", ["bb", "aa"]),
        ("inputs", ["aa"]),
    ],
)
def test_the_key_changes_with_everything_a_result_depends_on(part: str, value: object) -> None:
    assert artefact_key(PARTS | {part: value}) != artefact_key(PARTS)


def test_the_key_is_the_same_for_equal_parts_and_fit_for_a_file_name() -> None:
    key = artefact_key(PARTS)
    assert artefact_key(json.loads(json.dumps(dict(reversed(PARTS.items()))))) == key
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")


# -- nothing is unpickled --------------------------------------------------------------------------------------------


class Trap:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_refused_and_does_nothing(store: Store, tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    pickle.loads(pickle.dumps(Trap(sprung)))
    assert sprung.exists(), "the trap itself must work"
    sprung.unlink()
    write(store)
    for name in ("arrays.safetensors", "weights.safetensors"):
        path = folder(store) / name
        path.write_bytes(pickle.dumps(Trap(sprung)))
        with pytest.raises(StoreError, match=name):
            read(store)
        # Whoever can plant a file can plant its checksum too.
        manifest = read_json(folder(store) / MANIFEST)
        write_json(folder(store) / MANIFEST, manifest | {"files": manifest["files"] | {name: checksum(path)}})
        with pytest.raises(StoreError, match="not a readable safetensors file"):
            read_tensors(read(store).weights)  # type: ignore[union-attr, arg-type]
        write(store)
    assert not sprung.exists()


def sources() -> list[Path]:
    return sorted(Path(paperlib.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", sources(), ids=lambda path: path.name)
def test_no_source_file_unpickles(path: Path) -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert forbidden.isdisjoint(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in forbidden
            if node.module == "torch":
                assert "load" not in {alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("np", "load"), ("numpy", "load")}
