"""Where everything lives: one place resolves paths, so no notebook ever depends on the folder it is run from."""

from __future__ import annotations

import os
from pathlib import Path

from paperlib.errors import PaperlibError

ROOT = Path(__file__).resolve().parent.parent


def _setting(name: str, default: Path) -> Path:
    """A path in the environment, ``~`` expanded, links followed; relative to the current folder; empty is not set."""
    if not os.environ.get(name):
        return default
    try:
        return Path(os.environ[name]).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # ~nobody-of-this-name, links in a circle
        raise PaperlibError(f"{name}={os.environ[name]}: not a usable path ({error}); name another folder") from error


def home() -> Path:
    """Folder that receives what is computed (store, figures, build): ``PAPERLIB_HOME``, else the repository."""
    return _setting("PAPERLIB_HOME", ROOT)


def store_dir() -> Path:
    """Artefacts computed on this machine."""
    return home() / "data" / "store"


def figures_dir(profile: str) -> Path:
    """Figures and tables of one profile, by its name or its TOML file."""
    return home() / "figures" / _name(profile)


def build_dir(profile: str) -> Path:
    """Executed notebooks and the reading copy of one profile."""
    return home() / "build" / _name(profile)


def published_dir(profile: str) -> Path:
    """Records committed for everybody: ``PAPERLIB_PUBLISHED``, else ``data/published``."""
    return _setting("PAPERLIB_PUBLISHED", ROOT / "data" / "published") / _name(profile)


def data_source() -> Path:
    """The user's data, a folder or an archive: ``PAPERLIB_DATA``, else ``data/raw``."""
    return _setting("PAPERLIB_DATA", ROOT / "data" / "raw")


def notebooks_dir() -> Path:
    """The numbered series."""
    return ROOT / "notebooks"


def _name(profile: str) -> str:
    return Path(profile).stem if profile.endswith(".toml") else profile


def shown(path: Path) -> str:
    """``path`` as a reader should see it: relative to the repository or the current folder where possible."""
    for base in (ROOT, Path.cwd()):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix() or "."
    return path.name


def location(path: Path) -> str:
    """Where a reader finds a file: relative to the current folder where it lies inside, else in full.

    Below ``PAPERLIB_HOME``, the full path begins as the user wrote it there. Unlike `shown`, it never leaves the folder
    out, so it is for messages to the user and not for records.
    """
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix() or "."
    if os.environ.get("PAPERLIB_HOME") and path.is_relative_to(home()):
        return (Path(os.environ["PAPERLIB_HOME"]) / path.relative_to(home())).as_posix()
    return path.as_posix()
