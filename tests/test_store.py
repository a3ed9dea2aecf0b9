"""Artefacts are written completely or not at all, verified when read, computed once, and never unpickled."""

from __future__ import annotations

import ast
import errno
import json
import multiprocessing
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


def test_an_artefact_is_read_as_written(store: Store) -> None:
    written = write(store)
    for artefact in (written, read(store)):
        assert artefact is not None
        assert (artefact.key, artefact.record, artefact.source) == ("k1", RECORD, "computed")
        assert artefact.weights is not None
        weights = read_tensors(artefact.weights)[0]
        for tensors, expected in ((artefact.arrays, ARRAYS), (weights, WEIGHTS)):
            assert tensors.keys() == expected.keys()
            assert all(tensors[name].dtype == expected[name].dtype for name in expected)
            assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_a_record_alone_is_an_artefact(store: Store) -> None:
    store.write("data", "k2", RECORD)
    assert store.read("data", "k2") == Artefact("k2", RECORD, {}, None, "computed")


def test_an_artefact_that_was_not_written_is_none(store: Store) -> None:
    assert store.read("data", "k3") is None
    write(store)
    assert store.read("evaluate:dwf:pgd-50@8/255", "k4") is None
    assert store.read("data", "k1") is None


def test_folder_names_are_valid_on_every_file_system(store: Store) -> None:
    write(store)
    (path,) = (p for p in store.root.iterdir() if not p.name.startswith("."))
    assert path.name == "evaluate-dwf-pgd-50@8of255-k1"


def test_writing_again_replaces_the_artefact(store: Store) -> None:
    write(store)
    store.write("evaluate:dwf:pgd-50@8/255", "k1", {"new": 1})
    assert read(store) == Artefact("k1", {"new": 1}, {}, None, "computed")


def test_delete_returns_whether_the_artefact_existed(store: Store) -> None:
    write(store)
    assert store.delete("evaluate:dwf:pgd-50@8/255", "k1") is True
    assert store.delete("evaluate:dwf:pgd-50@8/255", "k1") is False
    assert read(store) is None


def test_views_and_parameters_are_written_by_value(tmp_path: Path) -> None:
    base = torch.rand(2, 3, 4, 4)
    tensors = {
        "permuted": base.permute(3, 2, 1, 0),
        "slice": base[:, 1],
        "channels_last": base.contiguous(memory_format=torch.channels_last),
    }
    tensors["parameter"] = base.clone().requires_grad_()
    write_tensors(tmp_path / "x.safetensors", tensors, {"note": "n"})
    read_back, notes = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(read_back[name], tensors[name]) for name in tensors)
    assert notes == {"note": "n"}


# -- damage ----------------------------------------------------------------------------------------------------------


def test_an_artefact_without_manifest_does_not_exist(store: Store) -> None:
    write(store)
    (folder(store) / MANIFEST).unlink()
    assert read(store) is None
    write(store)
    assert read(store) is not None


@pytest.mark.parametrize("name", ["record.json", "arrays.safetensors", "weights.safetensors"])
def test_a_changed_or_missing_file_is_named_in_the_error(store: Store, name: str) -> None:
    write(store)
    path = folder(store) / name
    content = path.read_bytes()
    for position in (0, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.raises(StoreError, match=rf"{name}: .*not what was written; delete .* to compute it again"):
            read(store)
    path.unlink()
    with pytest.raises(StoreError, match=f"{name}: missing"):
        read(store)


@given(position=st.integers(min_value=0), mask=st.integers(1, 255))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
def test_a_changed_byte_in_the_manifest_is_an_error_or_has_no_effect(store: Store, position: int, mask: int) -> None:
    write(store)
    expected, path = read(store), folder(store) / MANIFEST
    assert expected is not None
    content = bytearray(path.read_bytes())
    position %= len(content)
    in_checksum = any(match.start() <= position < match.end() for match in re.finditer(rb"[0-9a-f]{64}", content))
    content[position] ^= mask
    path.write_bytes(content)
    try:
        artefact = read(store)
    except StoreError:
        return
    assert not in_checksum
    assert artefact is not None
    assert (artefact.record, artefact.weights, artefact.arrays.keys()) == (
        expected.record,
        expected.weights,
        expected.arrays.keys(),
    )


def test_an_invalid_manifest_is_refused(store: Store) -> None:
    write(store)
    for content in ("", "[]", "null", '{"name": "x"}', '{"files": []}', '{"files": {}}', "{"):
        (folder(store) / MANIFEST).write_text(content)
        with pytest.raises(StoreError, match=MANIFEST):
            read(store)


def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    for content in (b"", b"\x00" * 8, b"not safetensors", pickle.dumps({"w": [1.0]})):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"x\.safetensors: not a readable safetensors file"):
            read_tensors(path)


def test_a_file_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    for content in (b"", b"{", b"\xff\xfe\x00"):
        path.write_bytes(content)
        with pytest.raises(StoreError, match=r"x\.json: not readable"):
            read_json(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"x\.safetensors: no such file"):
        read_tensors(tmp_path / "x.safetensors")
    with pytest.raises(StoreError, match=r"x\.json"):
        read_json(tmp_path / "x.json")


# -- a full disk -----------------------------------------------------------------------------------------------------


def disk_full(*args: object, **kw: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def visible(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def disk_full_after_some_bytes(tensors: object, path: Path, **kw: object) -> None:
    path.write_bytes(b"incomplete")
    disk_full()


def disk_full_in_the_last_step(path: Path, target: Path) -> None:
    if path.suffix == ".tmp":
        disk_full()
    os.rename(path, target)


@pytest.mark.parametrize(
    ("function", "failure"),
    [
        ("paperlib.atomic_files.save_file", disk_full_after_some_bytes),
        ("paperlib.atomic_files.os.replace", disk_full),
        ("pathlib.Path.mkdir", disk_full),
        ("pathlib.Path.write_text", disk_full),
        ("pathlib.Path.rename", disk_full),
        ("pathlib.Path.rename", disk_full_in_the_last_step),
    ],
)
def test_a_full_disk_leaves_the_old_artefact_and_no_temporary_file(
    store: Store, monkeypatch: pytest.MonkeyPatch, function: str, failure: object
) -> None:
    write(store)
    before = visible(store.root)
    with monkeypatch.context() as patched:
        patched.setattr(function, failure)
        with pytest.raises(StoreError, match="cannot write"):
            write(store, {"new": 1})
    assert visible(store.root) == before
    artefact = read(store)
    assert artefact is not None
    assert artefact.record == RECORD


@pytest.mark.parametrize(
    "write_one", [lambda path: write_json(path, {"a": 1}), lambda path: write_tensors(path, WEIGHTS)]
)
def test_a_file_is_replaced_completely_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_one: Any
) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("paperlib.atomic_files.os.replace", disk_full)
    with pytest.raises(StoreError, match=r"file: cannot write .*No space left"):
        write_one(path)
    assert visible(tmp_path) == ["file"]
    assert path.read_text() == "old"


def test_a_number_that_is_not_finite_is_not_written(store: Store) -> None:
    with pytest.raises(StoreError, match=r"record\.json"):
        write(store, {"loss": float("nan")})
    assert visible(store.root) == []


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    with pytest.raises(StoreError, match="cannot write"):
        write(store)
    with pytest.raises(StoreError, match="cannot write"), store.lock("data", "k"):
        pass
    with pytest.raises(StoreError, match="cannot write"):
        write_json(store.root / "x.json", {})


def test_a_folder_is_replaced_completely_or_not_at_all(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    for content in ("old", "new"):
        with replacing_folder(folder) as fresh:
            (fresh / "file").write_text(content)
        assert (folder / "file").read_text() == content

    def fail() -> None:
        with replacing_folder(folder) as fresh:
            (fresh / "file").write_text("incomplete")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert (folder / "file").read_text() == "new"
    assert visible(tmp_path) == ["folder", "folder/file"]


@pytest.mark.parametrize("replace", [replacing, replacing_folder])
def test_two_writers_of_the_same_path_use_different_temporary_paths(tmp_path: Path, replace: Any) -> None:
    with replace(tmp_path / "x") as first, replace(tmp_path / "x") as second:
        assert first != second
        for fresh in (first, second):
            fresh.mkdir(exist_ok=True)


# -- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_compute_a_result_only_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    log, ready = tmp_path / "log", [tmp_path / "a", tmp_path / "b"]
    args = [(tmp_path / "store", log, pair) for pair in (ready, ready[::-1])]
    workers = [context.Process(target=compute_once, args=a) for a in args]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert log.read_text() == "computed\n"
    assert Store(tmp_path / "store").read("shared", "key") is not None


def test_a_lock_is_released_after_an_error(store: Store) -> None:
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


def test_the_key_depends_on_every_part() -> None:
    changes: list[dict[str, Any]] = [
        {"stage": "train:frozen"},
        {"version": 2},
        {"config": {"lr": 0.2, "eps": "8/255"}},
        {"config": {"lr": 0.1}},
        {"seed": 1},
        {"data": "digits:0123456789abcdee"},
        {"inputs": ["bb", "aa"]},
        {"inputs": ["aa"]},
    ]
    assert len({artefact_key(PARTS | change) for change in ({}, *changes)}) == len(changes) + 1


def test_equal_parts_have_equal_keys_of_20_hex_digits() -> None:
    key = artefact_key(PARTS)
    assert artefact_key(json.loads(json.dumps(dict(reversed(PARTS.items()))))) == key
    assert len(key) == 20
    assert set(key) <= set("0123456789abcdef")


# -- no file is unpickled --------------------------------------------------------------------------------------------


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_is_refused_and_not_executed(store: Store, tmp_path: Path) -> None:
    executed = tmp_path / "executed"
    pickle.loads(pickle.dumps(Trap(executed)))
    assert executed.exists(), "the pickle must work for this test"
    executed.unlink()
    write(store)
    for name in ("arrays.safetensors", "weights.safetensors"):
        path = folder(store) / name
        path.write_bytes(pickle.dumps(Trap(executed)))
        with pytest.raises(StoreError, match=name):
            read(store)
        # The same with a checksum that matches.
        manifest = read_json(folder(store) / MANIFEST)
        write_json(folder(store) / MANIFEST, manifest | {"files": manifest["files"] | {name: checksum(path)}})
        with pytest.raises(StoreError, match="not a readable safetensors file"):
            read_tensors(read(store).weights)  # type: ignore[union-attr, arg-type]
        write(store)
    assert not executed.exists()


def test_no_source_file_unpickles() -> None:
    for path in Path(paperlib.__file__).parent.rglob("*.py"):
        assert list(unpickling(ast.parse(path.read_text(encoding="utf-8")))) == [], path


def test_unpickling_is_detected() -> None:
    for code in ("import pickle", "from joblib import load", "from torch import load", "torch.load(x)", "np.load(x)"):
        assert len(list(unpickling(ast.parse(code)))) == 1


def unpickling(tree: ast.AST) -> Iterator[str]:
    """The statements of a module that can unpickle a file."""
    modules = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            used = any(alias.name.split(".")[0] in modules for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            used = (node.module or "").split(".")[0] in modules
            used |= node.module == "torch" and "load" in {alias.name for alias in node.names}
        else:
            used = (
                ast.unparse(node) in {"torch.load", "np.load", "numpy.load"}
                if isinstance(node, ast.Attribute)
                else False
            )
        if used:
            yield ast.unparse(node)
