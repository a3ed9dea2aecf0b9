"""The table of the ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.evaluation import accuracy_over_seeds
from paperlib.pipeline.study import Study
from paperlib.report.format import share
from paperlib.report.outcomes import PGD_WORST_CASE, all_recipes, outcomes_over_seeds
from paperlib.report.tables.comparison import differences
from paperlib.report.tables.cost import cost


def ablations(studies: Sequence[Study]) -> pd.DataFrame:
    """Every variant of `ablation-base`, in the order of its question: accuracy over seeds and variant minus base."""
    systems = [r.system for r in all_recipes(studies[0]).values() if r.family == "ablation"]
    apart = differences(studies, lambda study: systems, "ablation-base")
    rows = []
    for system in systems:
        recipe = all_recipes(studies[0])[system]
        clean, worst = (
            accuracy_over_seeds(outcomes_over_seeds(studies, system, shown)) for shown in ("clean", PGD_WORST_CASE)
        )
        row: dict[str, Any] = {"system": system, "what it is": recipe.description}
        row |= {"clean": share(clean), PGD_WORST_CASE: share(worst)}
        if system in apart.index:
            found = apart.loc[system]
            row |= {"difference": -found["difference"], "low": -found["high"], "high": -found["low"]}
        row |= {"seeds": len(studies), "n": worst.n, **cost(studies[0], system)}
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")
