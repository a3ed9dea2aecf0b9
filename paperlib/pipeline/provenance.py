"""Where a number comes from: versions, commit, device, time. Never a path, a host or a user."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

import torch

from paperlib.paths import ROOT

# The code that decides numbers; the rest only stores, draws or reports them.
NUMERICAL_CODE = (
    "arguments.py",
    "seeds.py",
    "acceleration",
    "attacks",
    "config",
    "data",
    "evaluation",
    "models",
    "pipeline/compute.py",
    "pipeline/networks.py",
    "pipeline/stage.py",
    "pipeline/stages",
    "pipeline/study_data.py",
    "systems",
    "training",
)
# Environment variables that make git answer for another repository than the one around the current folder.
ELSEWHERE = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
)


def provenance(device: torch.device, threads: int) -> dict[str, Any]:
    """What every record carries beside its numbers."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "source": source_digest(),
    }


def device_name(device: torch.device) -> str:
    """``cpu`` with its instruction set, or the accelerator's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def versions() -> dict[str, str]:
    """The libraries that can change a number."""
    names = ("torch", "torchvision", "numpy", "safetensors")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # e.g. a vendor's build without metadata
            found[name] = "unknown"
    return found


@functools.cache
def commit() -> str:
    """The git commit of the code, with ``+`` where files that decide numbers have changed since; else ``unknown``.

    Unknown too where git answers for another repository: this copy lies inside one, or was unpacked over one.
    """
    try:
        if not _is_checkout():
            return "unknown"
        revision = _git("rev-parse", "--short=12", "HEAD")
        changed = _git("status", "--porcelain", "--", *(f"paperlib/{part}" for part in NUMERICAL_CODE))
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return revision + ("+" if changed else "")


@functools.cache
def source_digest() -> str:
    """A hash of the code that decides numbers, for checkouts without git (12 hex digits)."""
    digest = hashlib.sha256()
    for part in NUMERICAL_CODE:
        path = ROOT / "paperlib" / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _is_checkout() -> bool:
    """True if the repository that git finds begins in this very folder and tracks this code. Raises as `_git`."""
    _git("ls-files", "--error-unmatch", "--", "paperlib/__init__.py", "pyproject.toml")  # fails for untracked files
    return ROOT.samefile(_git("rev-parse", "--show-toplevel"))


def _git(*arguments: str) -> str:
    """What git prints, asked in the folder of this code and about no other repository.

    Raises:
        OSError, subprocess.SubprocessError: git is missing, refuses, fails or hangs.
    """
    environment = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # a look at the status must not write to the repository
    done = subprocess.run(["git", *arguments], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=10)
    return os.fsdecode(done.stdout).strip()
