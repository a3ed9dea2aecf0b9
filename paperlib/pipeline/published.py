"""Records committed for everybody: one folder per profile under ``data/published``, packed and verified.

``index.json`` describes the folder and holds the checksum of every file; ``records-seed-S.json`` holds the records
of one seed by stage name; ``arrays-seed-S.safetensors`` their per-example outcomes;
``weights-SYSTEM-seed-S.safetensors`` half-precision weights for exploring.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable, Iterator
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
from paperlib.pipeline.store import Artefact

Json = dict[str, Any]
INDEX = "index.json"
SCRATCH = ".publishing"  # beside the profiles' folders: locks, and folders that are not yet, or no longer, in place
DECIDES_NOTHING = ("summary", "run.seeds")  # of a configuration


class Published:
    """The published records of one profile; empty if there are none."""

    def __init__(self, folder: Path) -> None:
        # A publisher that was killed at the wrong moment left the old folder aside.
        self.folder = set_aside(folder, folder.parent / SCRATCH) or folder

    @functools.cached_property
    def index(self) -> Json:
        """What is there: seeds, data facts, configuration, checksums. Empty if nothing was published."""
        path = self.folder / INDEX
        if not path.exists():
            return {}
        index: Json = read_json(path)
        kinds = {"seeds": list, "files": dict, "data": dict, "fingerprint": str}
        if not isinstance(index, dict) or not all(isinstance(index.get(key), kind) for key, kind in kinds.items()):
            raise StoreError(f"{shown(path)}: changed since it was published; restore it from git")
        return index

    @classmethod
    def none(cls, folder: Path) -> Published:
        """No published records, whatever lies in the folder: nothing there is opened."""
        empty = cls(folder)
        empty.index = {}
        return empty

    @property
    def seeds(self) -> list[int]:
        return list(self.index.get("seeds", []))

    def read(self, stage: str, key: str, seed: int) -> Artefact | None:
        """The record of a stage, if it was published under the same key. Raises StoreError for torn files."""
        if seed not in self.seeds:
            return None
        entry = self.records(seed).get(stage)
        if entry is None or entry["key"] != key:
            return None
        prefix = f"{stage}|"
        arrays = {name[len(prefix) :]: value for name, value in self._arrays(seed).items() if name.startswith(prefix)}
        return Artefact(key, entry["record"], arrays, None, "published")

    def weights(self, system: str, seed: int) -> dict[str, Tensor] | None:
        """Half-precision weights of a system, or None if they were not published."""
        name = f"weights-{system}-seed-{seed}.safetensors"
        return read_tensors(self.verified(name))[0] if name in self.index.get("files", {}) else None

    @functools.cache  # noqa: B019 - one object per profile lives as long as the process
    def records(self, seed: int) -> Json:
        """Key and record of every stage of a published seed, by stage name. Raises StoreError for a torn file."""
        records: Json = read_json(self.verified(f"records-seed-{seed}.json"))
        return records

    @functools.cache  # noqa: B019
    def _arrays(self, seed: int) -> dict[str, Tensor]:
        return read_tensors(self.verified(f"arrays-seed-{seed}.safetensors"))[0]

    def verified(self, name: str) -> Path:
        """The path of a published file whose content is what the index says. Raises StoreError."""
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
    """Add seeds to a profile's published folder, or replace them; returns all seeds that it holds then.

    The folder is replaced as a whole or not at all, and by one process at a time. Seeds that it holds beside those of
    ``records`` stay if they belong together with these.

    Args:
        description: facts for the index: configuration, data, fingerprint.
        records: by seed, then by stage name.
        weights: half-precision weights by ``SYSTEM-seed-S``; left out where those of an earlier seed stay.
        keys: the keys that the records of a seed must have to belong to the same study, by stage name.
        replace: drop the seeds that are not in ``records``.

    Raises:
        StoreError: seeds that would stay stem from another configuration, other data or other code; or the folder
            cannot be written.
    """
    with _locked(folder):
        earlier = Published(folder)
        kept = [] if replace else [seed for seed in earlier.seeds if seed not in records]
        if why := _differences(earlier, kept, description, keys):
            seeds = ",".join(str(seed) for seed in sorted([*kept, *records]))
            raise StoreError(
                f"{shown(folder)}: holds seeds {kept} {why}; publish all again with --seeds {seeds}, or drop those "
                "with --replace"
            )
        with replacing_folder(folder, folder.parent / SCRATCH) as fresh:
            for name in (name for name in earlier.index.get("files", {}) if _seed_of(name) in kept):
                shutil.copyfile(earlier.verified(name), fresh / name)
            _write_files(fresh, records, weights)
            files = {path.name: checksum(path) for path in sorted(fresh.iterdir())}
            seeds_held = sorted([*kept, *records])
            write_json(fresh / INDEX, {**description, "seeds": seeds_held, "files": files})
    return seeds_held


def _write_files(folder: Path, records: dict[int, dict[str, Artefact]], weights: dict[str, dict[str, Tensor]]) -> None:
    first = min((_seed_of(path.name) for path in folder.glob("weights-*")), default=math.inf)
    for seed, by_stage in records.items():
        table = {name: {"key": a.key, "record": a.record} for name, a in by_stage.items()}
        write_json(folder / f"records-seed-{seed}.json", table)
        arrays = {f"{name}|{array}": value for name, a in by_stage.items() for array, value in a.arrays.items()}
        write_tensors(folder / f"arrays-seed-{seed}.safetensors", arrays)
    for name, tensors in weights.items():
        if _seed_of(file := f"weights-{name}.safetensors") < first:
            write_tensors(folder / file, tensors)


def _seed_of(file: str) -> int:
    """The 3 of ``records-seed-3.json``; -1 if the name has no seed."""
    seed = file.partition(".")[0].rpartition("-seed-")[2]
    return int(seed) if seed.isdecimal() else -1


def _differences(earlier: Published, kept: list[int], description: Json, keys: Callable[[int], dict[str, str]]) -> str:
    """Why the seeds ``kept`` do not belong together with new ones; empty if they do."""
    if not kept:
        return ""
    there, here = _leaves(earlier.index["configuration"]), _leaves(description["configuration"])
    unlike = [name for name in {**there, **here} if there.get(name) != here.get(name) and name not in DECIDES_NOTHING]
    if unlike:
        told = ", ".join(f"{name} = {there.get(name)} there and {here.get(name)} here" for name in unlike)
        return f"of another configuration ({told})"
    if earlier.index["fingerprint"] != description["fingerprint"]:
        return f"of other data ({earlier.index['fingerprint']} there and {description['fingerprint']} here)"
    for seed in kept:
        found = {stage: entry["key"] for stage, entry in earlier.records(seed).items()}
        if stages := [stage for stage, key in keys(seed).items() if found.get(stage) != key]:
            return f"of which seed {seed} was made by other code ({len(stages)} records, such as {stages[0]})"
    return ""


def _leaves(table: Json, above: str = "") -> Json:
    """Nested tables as one, with names such as ``phase1.lr``."""
    leaves: Json = {}
    for key, value in table.items():
        leaves |= _leaves(value, f"{above}{key}.") if isinstance(value, dict) else {f"{above}{key}": value}
    return leaves


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep other publishers of ``folder`` waiting, and clear up after one that was killed. Raises StoreError."""
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
