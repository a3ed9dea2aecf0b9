"""Files written as a whole or not at all, and read back with a clear word when they are torn."""

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

ASIDE = ".old"  # how the name of a folder ends while another one takes its place


def write_tensors(path: Path, tensors: Mapping[str, Tensor], notes: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file as a whole or not at all. Raises StoreError (disk full, not allowed)."""
    plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata=dict(notes or {}))
        temporary.chmod(0o644)  # safetensors makes files private; a store may be shared


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and notes of a safetensors file. Raises StoreError naming a missing, torn or foreign file."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise StoreError(f"{shown(path)}: no such file") from error
    except (SafetensorError, OSError) as error:
        raise StoreError(f"{shown(path)}: not a readable safetensors file ({error})") from error


def write_json(path: Path, table: Any) -> None:
    """Write JSON, sorted and indented, as a whole or not at all. Raises StoreError, for NaN and infinity too."""
    try:
        text = json.dumps(table, indent=1, sort_keys=True, allow_nan=False)
    except ValueError as error:
        raise StoreError(f"{shown(path)}: cannot write ({error})") from error
    with replacing(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Raises StoreError naming a missing or torn file."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{shown(path)}: not readable ({error})") from error


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside ``path`` that takes its place if the block succeeds, and vanishes if not."""
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
    """An empty folder that takes the place of the folder ``path`` if the block succeeds; if not, the old one stays.

    Both wait in ``beside`` (by default the folder that holds ``path``). A process that is killed between the two
    renames leaves the old folder there; `set_aside` finds it.

    Raises:
        StoreError: it cannot be written, or not put in place.
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
        for litter in (temporary, aside):
            shutil.rmtree(litter, ignore_errors=True)


def set_aside(path: Path, beside: Path) -> Path | None:
    """The old folder that a process left when it was killed while it replaced ``path``, if there is one."""
    left = [found for found in leftovers(path, beside) if found.suffix == ASIDE]
    return left[0] if left and not path.exists() else None


def leftovers(path: Path, beside: Path) -> list[Path]:
    """The temporary folders that processes left when they were killed while they replaced ``path``."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[0-9a-f]{{32}}\.(tmp|old)")
    return sorted(found for found in beside.glob(".*") if pattern.fullmatch(found.name)) if beside.is_dir() else []


def clear_up(path: Path, beside: Path) -> None:
    """Put the old folder of a killed process back, and remove what else it left. Call it under the lock of ``path``."""
    if old := set_aside(path, beside):
        old.rename(path)
    for found in leftovers(path, beside):
        shutil.rmtree(found, ignore_errors=True)


def temporary_for(path: Path) -> Path:
    """A name beside ``path`` that no other call gives, in this process or another one, on this machine or another."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def make_folder(path: Path) -> None:
    """Create a folder, and those above it, unless it is there. Raises StoreError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{location(path)}: cannot write there ({error.strerror})") from error


def check_home(*, write: bool) -> None:
    """Require a `paths.home` that is there or can be created; with ``write``, one that takes files.

    Without ``write`` nothing is left behind. Raises StoreError.
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
            with suppress(OSError):  # not created, or in use by now
                path.rmdir()
