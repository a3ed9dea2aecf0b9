"""All folders of the project, independent of the current folder."""

from __future__ import annotations

import os
from pathlib import Path

from paperlib.errors import PaperlibError

ROOT = Path(__file__).resolve().parent.parent


def _setting(name: str, default: Path) -> Path:
    """The absolute path in an environment variable, with ``~`` and links resolved; ``default`` if unset or empty."""
    if not os.environ.get(name):
        return default
    try:
        return Path(os.environ[name]).expanduser().resolve()
    except (OSError, RuntimeError) as error:  # ~ with an unknown user, or a circle of links
        raise PaperlibError(f"{name}={os.environ[name]}: not a usable path ({error}); name another folder") from error


def home() -> Path:
    """The folder for all computed files (store, figures, build): ``PAPERLIB_HOME``, else the repository."""
    return _setting("PAPERLIB_HOME", ROOT)


def store_dir() -> Path:
    """Results computed on this machine."""
    return home() / "data" / "store"


def figures_dir(profile: str) -> Path:
    """Figures and tables of one profile, by its name or its TOML file."""
    return home() / "figures" / _name(profile)


def build_dir(profile: str) -> Path:
    """Executed notebooks and the HTML site of one profile."""
    return home() / "build" / _name(profile)


def published_dir(profile: str) -> Path:
    """Published records of one profile, in ``PAPERLIB_PUBLISHED``, else in ``data/published``."""
    return _setting("PAPERLIB_PUBLISHED", ROOT / "data" / "published") / _name(profile)


def data_source() -> Path:
    """The user's data set, a folder or an archive: ``PAPERLIB_DATA``, else ``data/raw``."""
    return _setting("PAPERLIB_DATA", ROOT / "data" / "raw")


def notebooks_dir() -> Path:
    """The folder of the numbered notebooks."""
    return ROOT / "notebooks"


def _name(profile: str) -> str:
    return Path(profile).stem if profile.endswith(".toml") else profile


def shown(path: Path) -> str:
    """``path`` for records and messages: relative to the repository or to the current folder, else the name only."""
    for base in (ROOT, Path.cwd()):
        if path.is_relative_to(base):
            return path.relative_to(base).as_posix() or "."
    return path.name


def location(path: Path) -> str:
    """``path`` for messages to the user: relative to the current folder if it is inside, else in full.

    Below ``PAPERLIB_HOME``, the full path begins as the variable does. Records use `shown`, which hides full paths.
    """
    if path.is_relative_to(Path.cwd()):
        return path.relative_to(Path.cwd()).as_posix() or "."
    if os.environ.get("PAPERLIB_HOME") and path.is_relative_to(home()):
        return (Path(os.environ["PAPERLIB_HOME"]) / path.relative_to(home())).as_posix()
    return path.as_posix()
