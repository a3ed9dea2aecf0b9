"""A Python file of the user's own, named by a profile, that adds systems, networks and data sets to the comparison.

| it may define       | what                                                                                         |
|---------------------|----------------------------------------------------------------------------------------------|
| `systems(profile)`  | a list of `paperlib.training.recipes.Recipe`: further rows of every table                    |
| `NETWORKS`          | functions by name: ``(classes, shape, mean, std)`` to a module, for `Network("own", name)`   |
| `DATASETS`          | functions by name: a folder or archive (Path) to `paperlib.data.Source`, for ``data.name``   |

A change of the file changes the keys of what it made, so nothing stale is ever read; what it imports is not watched.
"""

from __future__ import annotations

import hashlib
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlib.errors import PaperlibError, ProfileError

_loaded: dict[str, types.ModuleType] = {}  # by content, so that its classes are the same ones at every look


@dataclass(frozen=True)
class Extension:
    """What the file defines; the default is that there is none."""

    name: str = ""
    digest: str = ""
    systems: Callable[[Any], Any] = lambda profile: []
    networks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    datasets: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def call(self, function: Callable[..., Any], *given: Any) -> Any:
        """What a function of the file returns. Raises ProfileError by file and line where it fails by itself."""
        try:
            return function(*given)
        except PaperlibError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ProfileError(f"{_place(error, self.name)}: {type(error).__name__}: {error}") from error


def load_extension(path: str) -> Extension:
    """What the file at ``path`` adds; nothing if ``path`` is empty.

    Raises:
        ProfileError: it cannot be read or run, or defines nothing that could be used.
    """
    if not path:
        return Extension()
    file = Path(path)
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ProfileError(f"study.extension: {file.name} cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(source).hexdigest()[:16]
    if digest not in _loaded:
        _loaded[digest] = _run(file, source, f"paperlib_extension_{digest}")
    module = _loaded[digest]
    systems = getattr(module, "systems", Extension.systems)
    networks, datasets = getattr(module, "NETWORKS", {}), getattr(module, "DATASETS", {})
    if not callable(systems):
        raise ProfileError(f"{file.name}: systems must be a function of the profile, got {systems!r}")
    for name, value in (("NETWORKS", networks), ("DATASETS", datasets)):
        if not isinstance(value, dict) or not all(callable(item) for item in value.values()):
            raise ProfileError(f"{file.name}: {name} must hold functions by name, got {value!r}")
    if systems is Extension.systems and not datasets:
        raise ProfileError(f"{file.name}: defines neither systems nor DATASETS, so it adds nothing")
    return Extension(file.name, digest, systems, networks, datasets)


def _run(file: Path, source: bytes, name: str) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(source, file.name, "exec"), module.__dict__)
    except Exception as error:  # whatever the user's code raises
        del sys.modules[name]
        raise ProfileError(f"{_place(error, file.name)}: {type(error).__name__}: {error}") from error
    return module


def _place(error: BaseException, name: str) -> str:
    """The last line of the file itself on the way to the error."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return name if line is None else f"{name}, line {line}"
