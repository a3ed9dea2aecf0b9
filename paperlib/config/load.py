"""Reads profiles: TOML files by name or path, merged with the profile that they build on (``base``).

A profile with ``base = "digits"`` states only what it changes. A profile with a smaller test split (``data.test``) than
its base evaluates at most that number of images, unless it sets the number itself. Files are UTF-8, with or without a
byte-order mark.
"""

from __future__ import annotations

import codecs
import shlex
import tomllib
from pathlib import Path
from typing import Any

from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile, parse_profile
from paperlib.errors import ProfileError, did_you_mean

FOLDER = Path(__file__).parent / "profiles"


_names: dict[Profile, str] = {}  # the argument of `load_profile`, for messages that advise a command


def profile_names() -> list[str]:
    """The names of the profiles that ship with the library, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_profile(name: str) -> Profile:
    """The profile called ``name``, or the one in the TOML file ``name`` if it ends in ``.toml``.

    Raises:
        ProfileError: no such profile, unreadable TOML, an unknown key, a value outside its range, or an extension that
            cannot be used.
    """
    if not isinstance(name, str):
        raise ProfileError(f"profile: expected a name, got {name!r}; choose one of {', '.join(profile_names())}")
    path = Path(name) if name.endswith(".toml") else FOLDER / f"{name}.toml"
    table = {**_read(path, name), "name": path.stem}
    if isinstance(study := table.get("study"), dict) and isinstance(study.get("extension"), str):
        load_extension(study["extension"], again=True)
    profile = parse_profile(table)
    _names[profile] = name
    return profile


def command_name(profile: Profile | str) -> str:
    """The argument of ``--profile``, quoted for a shell: a profile's name, or the TOML file it was loaded from."""
    return shlex.quote(profile if isinstance(profile, str) else _names.get(profile, profile.name))


def _read(path: Path, name: str, derived: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table in ``path``, merged with that of its ``base``; ``derived`` are the profiles that build on it."""
    if not name.endswith(".toml") and not path.is_file():
        raise ProfileError(f"unknown profile {name!r}{did_you_mean(name, profile_names())}")
    table = _parse_toml(path, name)
    study = table.get("study")
    if isinstance(study, dict) and isinstance(study.get("extension"), str) and study["extension"]:
        study["extension"] = str(path.parent.resolve() / study["extension"])  # other processes read it too
    base = table.pop("base", "")
    if base == "":
        return table
    if not isinstance(base, str) or path.resolve() in derived:
        raise ProfileError(f"profile {path.name}: base = {base!r} must name another profile")
    base_path = path.parent / base if base.endswith(".toml") else FOLDER / f"{base}.toml"
    base_table = _read(base_path, base, (*derived, path.resolve()))
    merged = {**base_table, **table}
    for key in base_table.keys() & table.keys():
        if isinstance(base_table[key], dict) and isinstance(table[key], dict):
            merged[key] = {**base_table[key], **table[key]}
    _limit_images(merged, table)
    shares_data = merged["data"] == base_table["data"] if "data" in base_table else False
    return {**merged, "base": (base_table.get("base") or base_path.stem) if shares_data else ""}


def _parse_toml(path: Path, name: str) -> dict[str, Any]:
    """The table in a TOML file. Raises ProfileError, which begins with ``name``."""
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise ProfileError(f"profile {name}: no such file") from error
    except IsADirectoryError as error:
        raise ProfileError(f"profile {name}: is a folder; name a file in it") from error
    except OSError as error:
        raise ProfileError(f"profile {name}: cannot be read ({error.strerror})") from error
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content:
        raise ProfileError(f"profile {name}: is written in UTF-16, or no text at all; save it as UTF-8")
    if not content.removeprefix(codecs.BOM_UTF8).strip():
        raise ProfileError(f'profile {name}: is empty; begin it with base = "digits"')
    try:
        return tomllib.loads(content.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ProfileError(f"profile {name}: is not written in UTF-8 (line {line}); save it as UTF-8") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ProfileError(f"profile {name}: not readable as TOML: {error}") from error


def _limit_images(merged: dict[str, Any], table: dict[str, Any]) -> None:
    """Reduce inherited numbers of images to the size of the test split; ``table`` is the profile without its base.

    Numbers that the profile sets itself stay.
    """
    data, size = table.get("data"), merged.get("data", {}).get("test")
    if not isinstance(data, dict) or "test" not in data or not isinstance(size, int) or size < 1:
        return
    for section in ("evaluation", "stress"):
        values, changes = merged.get(section), table.get(section)
        if isinstance(values, dict) and not (isinstance(changes, dict) and "images" in changes):
            images = values.get("images")
            if isinstance(images, int) and images > size:
                merged[section] = {**values, "images": size}
