"""Reading profiles: TOML files by name or path, laid over the profile they build on."""

from __future__ import annotations

import codecs
import shlex
import tomllib
from pathlib import Path
from typing import Any

from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile, parse_profile
from paperlib.errors import ProfileError, hint

FOLDER = Path(__file__).parent / "profiles"


_loaded_as: dict[Profile, str] = {}  # what was asked of `load_profile`, for messages that advise a command


def profile_names() -> list[str]:
    """The profiles that ship with the library, smallest first as far as names tell."""
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
    _loaded_as[profile] = name
    return profile


def command_name(profile: Profile | str) -> str:
    """A profile as a command names it, quoted for a shell: its name, or the TOML file it was loaded from."""
    return shlex.quote(profile if isinstance(profile, str) else _loaded_as.get(profile, profile.name))


def _read(path: Path, name: str, above: tuple[Path, ...] = ()) -> dict[str, Any]:
    """The table in ``path``, laid over that of its ``base``; ``above`` are the profiles that build on it."""
    if not name.endswith(".toml") and not path.is_file():
        raise ProfileError(f"unknown profile {name!r}{hint(name, profile_names())}")
    table = _parse_toml(path, name)
    study = table.get("study")
    if isinstance(study, dict) and isinstance(study.get("extension"), str) and study["extension"]:
        study["extension"] = str(path.parent.resolve() / study["extension"])  # it travels to other processes
    base = table.pop("base", "")
    if base == "":
        return table
    if not isinstance(base, str) or path.resolve() in above:
        raise ProfileError(f"profile {path.name}: base = {base!r} must name another profile")
    below = path.parent / base if base.endswith(".toml") else FOLDER / f"{base}.toml"
    under = _read(below, base, (*above, path.resolve()))
    merged = {**under, **table}
    for key in under.keys() & table.keys():
        if isinstance(under[key], dict) and isinstance(table[key], dict):
            merged[key] = {**under[key], **table[key]}
    _limit_images(merged, table)
    same = merged["data"] == under["data"] if "data" in under else False
    return {**merged, "base": (under.get("base") or below.stem) if same else ""}


def _parse_toml(path: Path, name: str) -> dict[str, Any]:
    """The table in a TOML file: UTF-8, with or without a byte-order mark. Raises ProfileError by the name as given."""
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


def _limit_images(merged: dict[str, Any], own: dict[str, Any]) -> None:
    """A profile that asks for a smaller test split than its base evaluates no more images than that split holds.

    What the profile says itself about the number of images is left as it is.
    """
    data, size = own.get("data"), merged.get("data", {}).get("test")
    if not isinstance(data, dict) or "test" not in data or not isinstance(size, int) or size < 1:
        return
    for section in ("evaluation", "stress"):
        inherited, stated = merged.get(section), own.get(section)
        if isinstance(inherited, dict) and not (isinstance(stated, dict) and "images" in stated):
            images = inherited.get("images")
            if isinstance(images, int) and images > size:
                merged[section] = {**inherited, "images": size}
