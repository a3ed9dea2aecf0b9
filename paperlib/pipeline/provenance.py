"""The origin of a number: versions, commit, device, time; no path, host name or user name."""

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

# The code that changes numbers; all other code only stores, draws or reports them.
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
# Environment variables that make git read another repository than that of the current folder.
GIT_LOCATIONS = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_COMMON_DIR",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES",
    "GIT_NAMESPACE",
)


def provenance(device: torch.device, threads: int) -> dict[str, Any]:
    """What every record contains beside its numbers: time, device, CPU threads, library versions, commit, code."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": device_name(device),
        "threads": threads,
        "versions": versions(),
        "commit": commit(),
        "source": source_digest(),
    }


def device_name(device: torch.device) -> str:
    """``cpu`` with its instruction set, or the model name of the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()})"


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that can change a number; ``unknown`` without package metadata."""
    names = ("torch", "torchvision", "numpy", "safetensors")
    installed = {"python": platform.python_version()}
    for name in names:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # for example a vendor's build without metadata
            installed[name] = "unknown"
    return installed


@functools.cache
def commit() -> str:
    """The git commit of the code (12 hex digits), followed by ``+`` if files that change numbers differ from it.

    ``unknown`` without git, and if git finds another repository: this copy lies inside one or was unpacked over one.
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
    """A hash of the code that changes numbers (12 hex digits); it needs no git."""
    digest = hashlib.sha256()
    for part in NUMERICAL_CODE:
        path = ROOT / "paperlib" / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.relative_to(ROOT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def _is_checkout() -> bool:
    """Whether the repository that git finds has this folder as its root and tracks this code. Raises as `_git`."""
    _git("ls-files", "--error-unmatch", "--", "paperlib/__init__.py", "pyproject.toml")  # fails for untracked files
    return ROOT.samefile(_git("rev-parse", "--show-toplevel"))


def _git(*arguments: str) -> str:
    """The output of git, run in the folder of this code and for no other repository.

    Raises:
        OSError, subprocess.SubprocessError: git is missing, fails or does not end.
    """
    environment = {name: value for name, value in os.environ.items() if name not in GIT_LOCATIONS}
    environment["GIT_OPTIONAL_LOCKS"] = "0"  # otherwise `git status` may write to the repository
    process = subprocess.run(
        ["git", *arguments], cwd=ROOT, env=environment, capture_output=True, check=True, timeout=10
    )
    return os.fsdecode(process.stdout).strip()
