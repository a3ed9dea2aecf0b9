"""The results computed on this machine, each under a key; written completely or not at all, verified when read.

An artefact is a folder with ``record.json`` (the measured values), optionally ``arrays.safetensors`` (the outcome for
each image) and ``weights.safetensors``, and ``manifest.json``, written last, with the checksum of each file. No file is
unpickled.
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
    """One stored result."""

    key: str
    record: Json
    arrays: dict[str, Tensor]
    weights: Path | None  # a safetensors file
    source: str  # "computed" (on this machine) or "published"


class Store:
    """The artefacts below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def folder(self, name: str, key: str) -> Path:
        """The folder of an artefact: a readable name, and the key that makes it unique."""
        return self.root / f"{name.replace(':', '-').replace('/', 'of')}-{key}"

    def read(self, name: str, key: str) -> Artefact | None:
        """The artefact, or None if it does not exist.

        Raises:
            StoreError: a file of it is missing or does not match its checksum.
        """
        folder = self.folder(name, key)
        if not (folder / MANIFEST).exists():
            return None
        manifest, location = read_json(folder / MANIFEST), shown(folder)
        files = manifest.get("files") if isinstance(manifest, dict) else None
        if not isinstance(files, dict) or "record.json" not in files:
            raise StoreError(f"{location}/{MANIFEST}: not what was written; delete {location} to compute it again")
        for file, expected in files.items():
            if not (folder / file).is_file() or checksum(folder / file) != expected:
                raise StoreError(
                    f"{location}/{file}: missing or not what was written; delete {location} to compute it again"
                )
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
        """Store a result in place of an older one with the same key. Raises StoreError; then the older one remains."""
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
        exists = folder.exists()
        if exists:
            shutil.rmtree(folder)
        return exists

    @contextmanager
    def lock(self, name: str, key: str) -> Iterator[None]:
        """Let one process at a time compute an artefact; others wait. The lock is released if its process dies.

        Raises:
            StoreError: the folder cannot be written.
        """
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
