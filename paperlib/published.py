"""Records committed for everybody: one folder per profile under ``data/published``, packed and verified.

``index.json`` describes the folder and holds the checksum of every file; ``records-seed-S.json`` holds the records
of one seed by stage name; ``arrays-seed-S.safetensors`` their per-example outcomes;
``weights-SYSTEM-seed-S.safetensors`` half-precision weights for exploring.
"""

from __future__ import annotations

import functools
import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from paperlib.errors import StoreError
from paperlib.files import checksum, read_json, read_tensors, write_json, write_tensors
from paperlib.paths import shown
from paperlib.store import Artefact

Json = dict[str, Any]
INDEX = "index.json"


class Published:
    """The published records of one profile; empty if there are none."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

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

    @property
    def seeds(self) -> list[int]:
        return list(self.index.get("seeds", []))

    def read(self, stage: str, key: str, seed: int) -> Artefact | None:
        """The record of a stage, if it was published under the same key. Raises StoreError for torn files."""
        if seed not in self.seeds:
            return None
        entry = self._records(seed).get(stage)
        if entry is None or entry["key"] != key:
            return None
        prefix = f"{stage}|"
        arrays = {name[len(prefix) :]: value for name, value in self._arrays(seed).items() if name.startswith(prefix)}
        return Artefact(key, entry["record"], arrays, None, "published")

    def weights(self, system: str, seed: int) -> dict[str, Tensor] | None:
        """Half-precision weights of a system, or None if they were not published."""
        name = f"weights-{system}-seed-{seed}.safetensors"
        return read_tensors(self._verified(name))[0] if name in self.index.get("files", {}) else None

    @functools.cache  # noqa: B019 - one object per profile lives as long as the process
    def _records(self, seed: int) -> Json:
        records: Json = read_json(self._verified(f"records-seed-{seed}.json"))
        return records

    @functools.cache  # noqa: B019
    def _arrays(self, seed: int) -> dict[str, Tensor]:
        return read_tensors(self._verified(f"arrays-seed-{seed}.safetensors"))[0]

    def _verified(self, name: str) -> Path:
        path = self.folder / name
        if not path.is_file() or checksum(path) != self.index["files"].get(name):
            raise StoreError(f"{shown(path)}: missing or changed since it was published; restore it from git")
        return path


def write_published(
    folder: Path,
    description: Json,
    records: dict[int, dict[str, Artefact]],
    weights: dict[str, dict[str, Tensor]],
) -> None:
    """Replace a profile's published folder as a whole.

    Args:
        description: facts for the index: configuration, data, fingerprint, provenance.
        records: by seed, then by stage name.
        weights: half-precision weights by ``SYSTEM-seed-S``.
    """
    temporary = folder.with_name(f".{folder.name}.writing")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for seed, by_stage in records.items():
            table = {name: {"key": a.key, "record": a.record} for name, a in by_stage.items()}
            write_json(temporary / f"records-seed-{seed}.json", table)
            arrays = {f"{name}|{array}": value for name, a in by_stage.items() for array, value in a.arrays.items()}
            write_tensors(temporary / f"arrays-seed-{seed}.safetensors", arrays)
        for name, tensors in weights.items():
            write_tensors(temporary / f"weights-{name}.safetensors", tensors)
        files = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
        write_json(temporary / INDEX, {**description, "seeds": sorted(records), "files": files})
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise StoreError(f"{shown(folder)}: cannot publish ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
