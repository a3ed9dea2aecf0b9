"""A notebook's parameters, taken strictly: papermill only logs a misspelt one, and turns fractions into text."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Sequence

from paperlib.errors import PaperlibError, ProfileError, did_you_mean
from paperlib.pipeline.study import Study

INJECTED = "# Parameters"  # the first line of the cell papermill adds


def open_study(profile: str, seed: int, replay: bool, seeds: Sequence[int] = ()) -> Study:
    """The study of a notebook, from the values of its parameters cell.

    Args:
        seeds: without replay, the runs that tables over seeds show; ``seed`` alone if empty.

    Raises:
        ProfileError: papermill was given a parameter that no notebook of the series has, or an unknown profile.
        PaperlibError: a seed or a replay switch of another type.
    """
    kernel = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    check_injected(kernel.user_ns.get("In", []) if kernel else [], list(inspect.signature(open_study).parameters))
    if isinstance(seeds, str) or not isinstance(seeds, Sequence):
        raise PaperlibError(f"seeds={seeds!r}: expected a list of whole numbers, such as [0, 1, 2]")
    return Study(profile, seed, replay=replay, seeds=seeds)


def check_injected(cells: Sequence[str], known: Sequence[str]) -> None:
    """Raise ProfileError for a name that an injected parameters cell sets and no notebook knows."""
    for source in cells:
        if not source.startswith(INJECTED):
            continue
        for statement in ast.parse(source).body:
            targets = statement.targets if isinstance(statement, ast.Assign) else []
            for name in (target.id for target in targets if isinstance(target, ast.Name)):
                if name not in known:
                    raise ProfileError(f"unknown parameter {name!r}{did_you_mean(name, list(known))}")
