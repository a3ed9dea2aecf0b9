"""Files that are written completely or not at all, and read with a clear error if they are damaged."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperlib.errors import StoreError
from paperlib.paths import home, location, shown

ASIDE = ".old"  # suffix of the old folder while a new one replaces it


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically. Raises StoreError, for example if the disk is full."""
    on_cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(on_cpu, temporary, metadata=dict(notes or {}))
        temporary.chmod(0o644)  # safetensors creates private files, but other users may share the store


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of a safetensors file. Raises StoreError if it is missing, damaged or of another format."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StoreError(f"{shown(path)}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{shown(path)}: not a readable safetensors file ({error})") from error


def write_json(path: Path, table: Any) -> None:
    """Write sorted, indented JSON atomically. Raises StoreError, also for NaN and infinity."""
    try:
        text = json.dumps(table, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise StoreError(f"{shown(path)}: cannot write ({error})") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises StoreError if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{shown(path)}: not readable ({error})") from error


def checksum(path: Path) -> str:
    """The SHA-256 of a file, in hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path that replaces ``path`` if the block succeeds, and is removed otherwise."""
    temporary = temporary_for(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{shown(path)}: cannot write ({error}); is the disk full?") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def replacing_folder(path: Path, beside: Path | None = None) -> Iterator[Path]:
    """Yield an empty folder that replaces the folder ``path`` if the block succeeds; otherwise the old one stays.

    Temporary folders are in ``beside`` (by default the parent of ``path``). If the process is killed between the two
    renames, the old folder is still there and `set_aside` returns it.

    Raises:
        StoreError: the folder cannot be written or renamed.
    """
    temporary = temporary_for((beside or path.parent) / path.name)
    aside = temporary.with_suffix(ASIDE)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):
            path.rename(aside)
        temporary.rename(path)
    except OSError as error:
        raise StoreError(f"{shown(path)}: cannot write ({error.strerror})") from error
    finally:
        if aside.exists() and not path.exists():
            aside.rename(path)
        for folder in (temporary, aside):
            shutil.rmtree(folder, ignore_errors=True)


def set_aside(path: Path, beside: Path) -> Path | None:
    """The old version of ``path``, if a process was killed while it replaced that folder, else None."""
    old = [folder for folder in leftovers(path, beside) if folder.suffix == ASIDE]
    return old[0] if old and not path.exists() else None


def leftovers(path: Path, beside: Path) -> list[Path]:
    """The temporary folders of processes that were killed while they replaced ``path``."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.(tmp|old)")
    return sorted(folder for folder in beside.glob(".*") if pattern.fullmatch(folder.name)) if beside.is_dir() else []


def clear_up(path: Path, beside: Path) -> None:
    """Undo an interrupted replacement of ``path`` and remove its temporary folders. The caller holds its lock."""
    if old := set_aside(path, beside):
        old.rename(path)
    for folder in leftovers(path, beside):
        shutil.rmtree(folder, ignore_errors=True)


def temporary_for(path: Path) -> Path:
    """A path in the same folder whose name is unique over all processes and machines."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def make_folder(path: Path) -> None:
    """Create a folder and its parents if they do not exist. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{location(path)}: cannot write there ({error.strerror})") from error


def check_home(*, write: bool) -> None:
    """Require that `paths.home` exists or can be created and, with ``write``, that files can be created in it.

    Without ``write``, folders that this call creates are removed again. Raises StoreError.
    """
    folder = home()
    absent = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if write or absent:
            with tempfile.TemporaryFile(dir=folder):
                pass
    except OSError as error:
        setting = os.environ.get("PAPERLIB_HOME")
        raise StoreError(
            f"{f'PAPERLIB_HOME={setting}' if setting else folder}: cannot write there ({error.strerror}); "
            "let PAPERLIB_HOME name a folder in which files can be created"
        ) from error
    finally:
        for path in () if write else absent:
            with suppress(OSError):  # was not created, or is no longer empty
                path.rmdir()
