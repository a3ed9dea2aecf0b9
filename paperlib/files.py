"""Files written as a whole or not at all, and read back with a clear word when they are torn."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from paperlib.errors import StoreError
from paperlib.paths import shown


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{shown(path)}: cannot write ({error}); is the disk full?") from error
    finally:
        with suppress(OSError):
            temporary.unlink()
