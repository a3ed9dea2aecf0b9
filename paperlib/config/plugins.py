"""Extensions: a Python file of the user's that adds systems, networks and data sets (``study.extension``).

| the file may define | contents                                                                                      |
|---------------------|-----------------------------------------------------------------------------------------------|
| `systems(profile)`  | returns a list of `paperlib.systems.recipe.Recipe`: further rows of every table               |
| `NETWORKS`          | functions by name: ``(classes, shape, mean, std)`` to a module, for `Network("own", name)`    |
| `DATASETS`          | functions by name: a folder or an archive (Path) to `paperlib.data.Source`, for ``data.name`` |

The keys of all results of the file include a hash of it, so a change of the file never reuses old results. Modules that
it imports are not included.

The file is read when a profile that names it is loaded. All computations with the profile, in this process and in the
processes that it starts, use this version. A command reads the file once; see `one_version`.
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

# The version of each file by path (JSON), which the processes that this one starts must find.
VERSIONS = "PAPERLIB_EXTENSION_VERSIONS"
MARK = "PAPERLIB_RUN"  # `paperlib.series.process` sets it for the kernel of a notebook that a run executes

_modules: dict[
    str, types.ModuleType
] = {}  # by hash of the content, so that the classes of one version stay the same objects
_extensions: dict[str, Extension] = {}  # by path: the version that this process uses
_fixed = False  # True inside `one_version`


@dataclass(frozen=True)
class Extension:
    """The definitions of an extension; by default there is no file."""

    name: str = ""
    digest: str = ""
    systems: Callable[[Any], Any] = lambda profile: []
    networks: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    datasets: Mapping[str, Callable[..., Any]] = field(default_factory=dict)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of the file. Raises ProfileError with file and line for any error of the user's code."""
        try:
            return function(*arguments)
        except PaperlibError:
            raise
        except Exception as error:  # the user's code may raise anything
            raise ProfileError(f"{_place(error, self.name)}: {type(error).__name__}: {error}") from error


def load_extension(path: str, *, again: bool = False) -> Extension:
    """The extension at ``path``, which is read once; without definitions if ``path`` is empty.

    Args:
        again: if the file has changed, use its new version from now on. Ignored inside `one_version` and in the worker
            and notebook processes of a run.

    Raises:
        ProfileError: the file cannot be read or run, defines nothing of the table above, or has changed since the
            parent process read it.
    """
    if not path:
        return Extension()
    if path not in _extensions or (again and not _fixed and not _in_child_process()):
        _extensions[path] = _load(Path(path), _inherited_versions().get(path, "") if _in_child_process() else "")
        _export_versions()
    return _extensions[path]


@contextmanager
def one_version() -> Iterator[None]:
    """While the block runs, each file is read at most once, however often a profile that names it is loaded."""
    global _fixed
    _extensions.clear()  # the files may have changed since an earlier run read them
    _fixed = True
    try:
        yield
    finally:
        _fixed = False


def _in_child_process() -> bool:
    """True in a worker process of a run and in the kernel of a notebook that a run executes."""
    return multiprocessing.parent_process() is not None or MARK in os.environ


def _inherited_versions() -> dict[str, str]:
    versions: dict[str, str] = json.loads(os.environ.get(VERSIONS) or "{}")
    return versions


def _export_versions() -> None:
    """Set the versions that the processes started by this one must find."""
    versions = {path: extension.digest for path, extension in _extensions.items()}
    os.environ[VERSIONS] = json.dumps(_inherited_versions() | versions if _in_child_process() else versions)


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
    sys.modules[name] = module  # the dataclass decorator looks up the module of its class
    try:
        exec(compile(source, file.name, "exec"), module.__dict__)
    except Exception as error:  # the user's code may raise anything
        del sys.modules[name]
        raise ProfileError(f"{_place(error, file.name)}: {type(error).__name__}: {error}") from error
    return module


def _place(error: BaseException, name: str) -> str:
    """The file ``name`` and the last of its lines in the traceback."""
    line = error.lineno if isinstance(error, SyntaxError) else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == name:
            line = trace.tb_lineno
        trace = trace.tb_next
    return name if line is None else f"{name}, line {line}"
