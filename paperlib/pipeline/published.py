"""Records committed for everybody: one folder for each profile below ``data/published``, verified by checksums.

``index.json`` describes the folder and holds the checksum of every file. For each seed S,
``records-seed-S.jsonl`` holds the records and ``arrays-seed-S.safetensors`` the outcomes of each image, both in the
form of `paperlib.pipeline.published_format`. ``weights-SYSTEM-seed-S.safetensors`` holds weights in half precision.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor

from paperlib.atomic_files import (
    checksum,
    clear_up,
    make_folder,
    read_json,
    read_tensors,
    replacing_folder,
    set_aside,
    write_json,
    write_tensors,
)
from paperlib.errors import StoreError
from paperlib.paths import shown
from paperlib.pipeline.published_format import read_arrays, read_records, write_arrays, write_records
from paperlib.pipeline.store import Artefact

Json = dict[str, Any]
INDEX = "index.json"
SCRATCH = ".publishing"  # beside the folders of the profiles: locks, and folders that are being replaced
WITHOUT_EFFECT = ("summary", "run.seeds")  # fields of a configuration that change no number


class Published:
    """The published records of one profile; empty if there are none."""

    def __init__(self, folder: Path) -> None:
        # If a publisher was killed between two renames, the records are still in the folder that it moved aside.
        self.folder = set_aside(folder, folder.parent / SCRATCH) or folder

    @functools.cached_property
    def index(self) -> Json:
        """Seeds, facts about the data, configuration, fingerprint, checksums. Empty if nothing was published.

        Raises:
            StoreError: the file is damaged.
        """
        path = self.folder / INDEX
        if not path.exists():
            return {}
        index: Json = read_json(path)
        types = {"seeds": list, "files": dict, "data": dict, "fingerprint": str}
        if not isinstance(index, dict) or not all(isinstance(index.get(name), kind) for name, kind in types.items()):
            raise StoreError(f"{shown(path)}: changed since it was published; restore it from git")
        return index

    @classmethod
    def none(cls, folder: Path) -> Published:
        """No published records, whatever the folder contains: no file in it is opened."""
        empty = cls(folder)
        empty.index = {}
        return empty

    @property
    def seeds(self) -> list[int]:
        return list(self.index.get("seeds", []))

    def read(self, stage: str, key: str, seed: int) -> Artefact | None:
        """The result of a stage, or None if none was published under this key. Raises StoreError for damaged files."""
        if seed not in self.seeds:
            return None
        entry = self.records(seed).get(stage)
        if entry is None or entry["key"] != key:
            return None
        prefix = f"{stage}|"
        arrays = {name[len(prefix) :]: value for name, value in self._arrays(seed).items() if name.startswith(prefix)}
        return Artefact(key, entry["record"], arrays, None, "published")

    def weights(self, system: str, seed: int) -> dict[str, Tensor] | None:
        """Half-precision weights of a system, or None if they were not published. Raises StoreError."""
        name = f"weights-{system}-seed-{seed}.safetensors"
        return read_tensors(self.verified(name))[0] if name in self.index.get("files", {}) else None

    @functools.cache  # noqa: B019 - one object per profile lives as long as the process
    def records(self, seed: int) -> Json:
        """``{"key": ..., "record": ...}`` of every stage of a published seed, by stage name.

        Raises:
            StoreError: the file is missing or damaged.
        """
        return read_records(self.verified(_records_file(seed)))

    @functools.cache  # noqa: B019
    def _arrays(self, seed: int) -> dict[str, Tensor]:
        return read_arrays(self.verified(_arrays_file(seed)))

    def verified(self, name: str) -> Path:
        """The path of a published file whose checksum is that of the index. Raises StoreError."""
        path = self.folder / name
        if not path.is_file() or checksum(path) != self.index["files"].get(name):
            if Published(self.folder).index != self.index:
                raise StoreError(f"{shown(self.folder)}: published again while it was read; run the same again")
            raise StoreError(f"{shown(path)}: missing or changed since it was published; restore it from git")
        return path


def write_published(
    folder: Path,
    description: Json,
    records: dict[int, dict[str, Artefact]],
    weights: dict[str, dict[str, Tensor]],
    *,
    keys: Callable[[int], dict[str, str]] = lambda seed: {},
    replace: bool = False,
) -> list[int]:
    """Add seeds to the published folder of a profile, or replace them; returns all seeds that it then contains.

    The folder is replaced as a whole or not at all, by one process at a time. Seeds published earlier stay if they
    have the same configuration, data and code as ``records``.

    Args:
        description: facts for the index: configuration, data, fingerprint.
        records: results by seed, then by stage name.
        weights: half-precision weights by ``SYSTEM-seed-S``; not written where weights of an earlier seed stay.
        keys: returns the keys by stage name that the published records of a seed must have.
        replace: remove the seeds that are not in ``records``.

    Raises:
        StoreError: seeds that would stay have another configuration, other data or other code; or the folder cannot
            be written.
    """
    with _locked(folder):
        earlier = Published(folder)
        staying = [] if replace else [seed for seed in earlier.seeds if seed not in records]
        if difference := _difference(earlier, staying, description, keys):
            seeds = ",".join(str(seed) for seed in sorted([*staying, *records]))
            raise StoreError(
                f"{shown(folder)}: holds seeds {staying} {difference}; publish all again with --seeds {seeds}, or "
                "remove those with --replace"
            )
        with replacing_folder(folder, folder.parent / SCRATCH) as fresh:
            for name in (name for name in earlier.index.get("files", {}) if _seed_of(name) in staying):
                shutil.copyfile(earlier.verified(name), fresh / name)
            _write_files(fresh, records, weights)
            files = {path.name: checksum(path) for path in sorted(fresh.iterdir())}
            all_seeds = sorted([*staying, *records])
            write_json(fresh / INDEX, {**description, "seeds": all_seeds, "files": files})
    return all_seeds


def _records_file(seed: int) -> str:
    return f"records-seed-{seed}.jsonl"


def _arrays_file(seed: int) -> str:
    return f"arrays-seed-{seed}.safetensors"


def _write_files(folder: Path, records: dict[int, dict[str, Artefact]], weights: dict[str, dict[str, Tensor]]) -> None:
    earliest = min((_seed_of(path.name) for path in folder.glob("weights-*")), default=math.inf)
    for seed, artefacts in records.items():
        table = {stage: {"key": artefact.key, "record": artefact.record} for stage, artefact in artefacts.items()}
        write_records(folder / _records_file(seed), table)
        arrays = {
            f"{stage}|{name}": array for stage, artefact in artefacts.items() for name, array in artefact.arrays.items()
        }
        write_arrays(folder / _arrays_file(seed), arrays)
    for name, tensors in weights.items():
        file = f"weights-{name}.safetensors"
        if _seed_of(file) < earliest:
            write_tensors(folder / file, tensors)


def _seed_of(file: str) -> int:
    """The 3 of ``records-seed-3.jsonl``; -1 if the name has no seed."""
    seed = file.partition(".")[0].rpartition("-seed-")[2]
    return int(seed) if seed.isdecimal() else -1


def _difference(
    earlier: Published, seeds: Sequence[int], description: Json, keys: Callable[[int], dict[str, str]]
) -> str:
    """Why published seeds cannot stay beside new ones, as part of a message; empty if they can."""
    if not seeds:
        return ""
    old, new = _leaves(earlier.index["configuration"]), _leaves(description["configuration"])
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name) and name not in WITHOUT_EFFECT]
    if changed:
        values = ", ".join(f"{name} = {old.get(name)} there and {new.get(name)} here" for name in changed)
        return f"of another configuration ({values})"
    if earlier.index["fingerprint"] != description["fingerprint"]:
        return f"of other data ({earlier.index['fingerprint']} there and {description['fingerprint']} here)"
    for seed in seeds:
        published = {stage: entry["key"] for stage, entry in earlier.records(seed).items()}
        if stages := [stage for stage, key in keys(seed).items() if published.get(stage) != key]:
            return f"of which seed {seed} was computed by other code ({len(stages)} records, such as {stages[0]})"
    return ""


def _leaves(table: Json, above: str = "") -> Json:
    """Nested tables as one table, with names such as ``phase1.lr``."""
    leaves: Json = {}
    for key, value in table.items():
        leaves |= _leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return leaves


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time publish to ``folder``; first remove what a killed one left. Raises StoreError."""
    scratch = folder.parent / SCRATCH
    make_folder(scratch)
    lock = FileLock(scratch / f"{folder.name}.lock")
    try:
        lock.acquire()
    except OSError as error:
        raise StoreError(f"{shown(scratch)}: cannot write there ({error.strerror})") from error
    try:
        clear_up(folder, scratch)
        yield
    finally:
        lock.release()
