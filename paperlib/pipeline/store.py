"""The artefact store: results keyed by everything they depend on, written whole or not at all, verified when read.

An artefact is a folder: ``record.json`` (what was measured), optionally ``arrays.safetensors`` (per-example outcomes)
and ``weights.safetensors``, and, written last, ``manifest.json`` with the checksum of each. Nothing is ever unpickled.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
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
    write_json,
    write_tensors,
)
from paperlib.errors import StoreError
from paperlib.paths import shown

Json = dict[str, Any]


MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artefact:
    """One stored result. ``source`` says where it came from: ``computed`` here, or ``published``."""

    key: str
    record: Json
    arrays: dict[str, Tensor]
    weights: Path | None
    source: str


class Store:
    """The artefacts computed on this machine, below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, key: str) -> Path:
        """Where an artefact lives: a readable name, and the key that makes it unique."""
        return self.root / f"{name.replace(':', '-').replace('/', 'of')}-{key}"

    def read(self, name: str, key: str) -> Artefact | None:
        """The artefact, or None if it is not there.

        Raises:
            StoreError: it is there but a file is missing or does not match its checksum.
        """
        folder = self.folder(name, key)
        if not (folder / MANIFEST).exists():
            return None
        manifest, where = read_json(folder / MANIFEST), shown(folder)
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or "record.json" not in files:
            raise StoreError(f"{where}/{MANIFEST}: not what was written; delete {where} to compute it again")
        for file, expected in files.items():
            if not (folder / file).is_file() or checksum(folder / file) != expected:
                raise StoreError(f"{where}/{file}: missing or not what was written; delete {where} to compute it again")
        arrays = read_tensors(folder / "arrays.safetensors")[0] if "arrays.safetensors" in files else {}
        weights = folder / "weights.safetensors" if "weights.safetensors" in files else None
        return Artefact(key, read_json(folder / "record.json"), arrays, weights, "computed")

    def write(
        self,
        name: str,
        key: str,
        record: Json,
        arrays: Mapping[str, Tensor] | None = None,
        weights: Mapping[str, Tensor] | None = None,
    ) -> Artefact:
        """Store a result, replacing an older one of the same key. Raises StoreError; then the old one is untouched."""
        with replacing_folder(self.folder(name, key)) as temporary:
            write_json(temporary / "record.json", record)
            for file, tensors in (("arrays.safetensors", arrays), ("weights.safetensors", weights)):
                if tensors:
                    write_tensors(temporary / file, tensors)
            files = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
            write_json(temporary / MANIFEST, {"name": name, "key": key, "files": files})
        stored = self.read(name, key)
        assert stored is not None
        return stored

    def delete(self, name: str, key: str) -> bool:
        """Remove an artefact; True if there was one."""
        folder = self.folder(name, key)
        if there := folder.exists():
            shutil.rmtree(folder)
        return there

    @contextmanager
    def lock(self, name: str, key: str) -> Iterator[None]:
        """Held while an artefact is computed: a second process waits, then finds it done. Freed if its holder dies."""
        lock = FileLock(self.root / f".{self.folder(name, key).name}.lock")
        make_folder(self.root)
        try:
            lock.acquire()
        except OSError as error:
            raise StoreError(f"{shown(self.root)}: cannot write there ({error.strerror})") from error
        try:
            clear_up(self.folder(name, key), self.root)
            yield
        finally:
            lock.release()
