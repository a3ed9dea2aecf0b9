"""A Python file of the user's own, named by a profile, that adds systems, networks and data sets to the comparison.

| it may define       | what                                                                                         |
|---------------------|----------------------------------------------------------------------------------------------|
| `systems(profile)`  | a list of `paperlib.systems.recipe.Recipe`: further rows of every table                    |
| `NETWORKS`          | functions by name: ``(classes, shape, mean, std)`` to a module, for `Network("own", name)`   |
| `DATASETS`          | functions by name: a folder or archive (Path) to `paperlib.data.Source`, for ``data.name``   |

A change of the file changes the keys of what it made, so nothing stale is ever read; what it imports is not watched.

The file is read when a profile that names it is loaded, and not again: all that is computed with the profile, in this
process and in those it starts, uses that version. A command line reads it once; see `one_version`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import types
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paperlib.errors import PaperlibError, ProfileError

# For the processes this one starts: the version of each file, by path, that they must find there.
VERSIONS = "PAPERLIB_EXTENSION_VERSIONS"
MARK = "PAPERLIB_RUN"  # set by `paperlib.series.child` in the kernel of a notebook that a run executes

_modules: dict[str, types.ModuleType] = {}  # by content, so that its classes are the same ones at every look
_extensions: dict[str, Extension] = {}  # by path: what this process uses
_held = False  # True inside `one_version`


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


def load_extension(path: str, *, again: bool = False) -> Extension:
    """What the file at ``path`` adds; nothing if ``path`` is empty. The file is read once.

    Args:
        again: look whether the file has changed and use its new version from now on. Ignored inside `one_version` and
            in the worker and notebook processes of a run.

    Raises:
        ProfileError: it cannot be read or run, defines nothing that could be used, or has changed since the process
            that started this one read it.
    """
    if not path:
        return Extension()
    if path not in _extensions or (again and not _held and not _is_part_of_a_run()):
        _extensions[path] = _load(Path(path), _announced().get(path, "") if _is_part_of_a_run() else "")
        _announce()
    return _extensions[path]


@contextmanager
def one_version() -> Iterator[None]:
    """While the block runs, each file is read at most once, however often a profile that names it is loaded."""
    global _held
    _extensions.clear()  # what was read for an earlier run may have changed
    _held = True
    try:
        yield
    finally:
        _held = False


def _is_part_of_a_run() -> bool:
    """True in a worker process and in the kernel of an executed notebook."""
    return multiprocessing.parent_process() is not None or MARK in os.environ


def _announced() -> dict[str, str]:
    versions: dict[str, str] = json.loads(os.environ.get(VERSIONS) or "{}")
    return versions


def _announce() -> None:
    """Tell the processes that this one starts which versions they must find."""
    versions = {path: extension.digest for path, extension in _extensions.items()}
    os.environ[VERSIONS] = json.dumps(_announced() | versions if _is_part_of_a_run() else versions)


def _load(file: Path, expected: str) -> Extension:
    try:
        source = file.read_bytes()
    except OSError as error:
        raise ProfileError(f"study.extension: {file.name} cannot be read ({error.strerror})") from error
    digest = hashlib.sha256(source).hexdigest()[:16]
    if expected not in ("", digest):
        raise ProfileError(
            f"study.extension: {file.name} has changed since this run read it, and one run uses one version; "
            f"run the command again, or load the profile again"
        )
    if digest not in _modules:
        _modules[digest] = _run(file, source, f"paperlib_extension_{digest}")
    return _checked(file.name, digest, _modules[digest])


def _checked(name: str, digest: str, module: types.ModuleType) -> Extension:
    systems = getattr(module, "systems", Extension.systems)
    networks, datasets = getattr(module, "NETWORKS", {}), getattr(module, "DATASETS", {})
    if not callable(systems):
        raise ProfileError(f"{name}: systems must be a function of the profile, got {systems!r}")
    for key, value in (("NETWORKS", networks), ("DATASETS", datasets)):
        if not isinstance(value, dict) or not all(callable(item) for item in value.values()):
            raise ProfileError(f"{name}: {key} must hold functions by name, got {value!r}")
    if systems is Extension.systems and not datasets:
        raise ProfileError(f"{name}: defines neither systems nor DATASETS, so it adds nothing")
    return Extension(name, digest, systems, networks, datasets)


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
