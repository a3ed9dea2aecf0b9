"""Checks of a notebook's parameters, because papermill only logs a misspelt name."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence

from paperlib.errors import PaperlibError, ProfileError, did_you_mean
from paperlib.pipeline.study import Study

INJECTED = "# Parameters"  # the first line of the cell that papermill inserts


def open_study(profile: str, seed: int, replay: bool, seeds: Sequence[int] = ()) -> Study:
    """The study of a notebook, from the values of its parameters cell.

    Args:
        seeds: without ``replay``, the seeds that tables over seeds show; if empty, ``seed`` alone.

    Raises:
        ProfileError: papermill received a parameter that no notebook of the series has, or an unknown profile.
        PaperlibError: ``seed``, ``replay`` or ``seeds`` has a wrong type.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    check_injected(kernel.user_ns.get("In", []) if kernel else [], list(inspect.signature(open_study).parameters))
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise PaperlibError(f"seeds={seeds!r}: expected a list of whole numbers, such as [0, 1, 2]")
    return Study(profile, seed, replay=replay, seeds=seeds)


def check_injected(cells: Sequence[str], names: Sequence[str]) -> None:
    """Raise ProfileError if a cell that papermill inserted assigns a name that is not in ``names``."""
    for source in cells:
        if not source.startswith(INJECTED):
            continue
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                if name not in names:
                    raise ProfileError(f"unknown parameter {name!r}{did_you_mean(name, list(names))}")
