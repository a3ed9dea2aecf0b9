"""The table of the ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.evaluation import accuracy_over_seeds
from paperlib.pipeline.study import Study
from paperlib.report.format import percent_over_seeds
from paperlib.report.outcomes import PGD_WORST_CASE, all_recipes, outcomes_over_seeds
from paperlib.report.tables.comparison import differences
from paperlib.report.tables.cost import cost


def ablations(studies: Sequence[Study]) -> pd.DataFrame:
    """Every variant of `ablation-base`: accuracy over seeds, and the difference variant minus base."""
    systems = [r.system for r in all_recipes(studies[0]).values() if r.family == "ablation"]
    against_base = differences(studies, lambda study: systems, "ablation-base")
    rows = []
    for system in systems:
        recipe = all_recipes(studies[0])[system]
        clean, worst = (
            accuracy_over_seeds(outcomes_over_seeds(studies, system, column)) for column in ("clean", PGD_WORST_CASE)
        )
        row: dict[str, Any] = {"system": system, "description": recipe.description}
        row |= {"clean": percent_over_seeds(clean), PGD_WORST_CASE: percent_over_seeds(worst)}
        if system in against_base.index:
            base_minus = against_base.loc[system]
            row |= {"difference": -base_minus["difference"], "low": -base_minus["high"], "high": -base_minus["low"]}
        row |= {"seeds": len(studies), "n": worst.n, **cost(studies[0], system)}
        rows.append(row)
    return pd.DataFrame(rows).set_index("system")
