"""A notebook's parameters, taken strictly: papermill only logs a misspelt one, and turns fractions into text."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence

from paperlib.errors import ProfileError
from paperlib.profiles import hint
from paperlib.study import Study

INJECTED = "# Parameters"  # the first line of the cell papermill adds


def open_study(profile: str, seed: int, replay: bool) -> Study:
    """The study of a notebook, from the three values of its parameters cell.

    Raises:
        ProfileError: papermill was given a parameter that no notebook of the series has, or an unknown profile.
        PaperlibError: a seed or a replay switch of another type.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    check_injected(kernel.user_ns.get("In", []) if kernel else [], list(inspect.signature(open_study).parameters))
    return Study(profile, seed, replay=replay)


def check_injected(cells: Sequence[str], known: Sequence[str]) -> None:
    """Raise ProfileError for a name that an injected parameters cell sets and no notebook knows."""
    for source in cells:
        if not source.startswith(INJECTED):
            continue
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                if name not in known:
                    raise ProfileError(f"unknown parameter {name!r}{hint(name, list(known))}")
