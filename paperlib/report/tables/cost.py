"""Tables of cost: parameters, training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.pipeline.study import Study
from paperlib.report.outcomes import all_recipes
from paperlib.systems.recipe import Recipe


def cost(study: Study, system: str) -> dict[str, Any]:
    """Parameters, training cost and inference cost of a system.

    The training cost counts all networks that the system is built from, in clean epochs of one ResNet-18; it is empty
    if one of them came with its weights. The unit of the inference cost is the operations of one ResNet-18.
    """
    recipe = all_recipes(study)[system]
    records = [study.record(f"train:{name}") for name in _training(study, recipe)]
    source = all_recipes(study)[recipe.weights_of] if recipe.weights_of else recipe
    parts = records[-1:] if source.has_weights else records
    units = [r["training_units"] for r in records]
    return {
        "parameters": sum(r["parameters"] for r in parts),
        "training cost": "" if None in units else round(sum(units)),
        "inference cost": round(sum(r["inference_cost"] for r in parts), 2),
    }


def _training(study: Study, recipe: Recipe) -> list[str]:
    """The systems that are trained for this one, itself last."""
    if recipe.weights_of:
        return _training(study, all_recipes(study)[recipe.weights_of])
    return [*recipe.starts_from, *([recipe.system] if recipe.has_weights else [])]


def growth(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """Cost by number of experts: of training in all, of an epoch of phase 2, and of inference."""
    rows = []
    for system in systems:
        recipe = all_recipes(study)[system]
        record = study.record(f"train:{system}")
        rows.append(
            {
                "system": system,
                "experts": recipe.network.experts,
                **cost(study, system),
                "phase 2, units an epoch": record["training_units"] / len(record["history"]["epochs"]),
            }
        )
    return pd.DataFrame(rows).set_index("system")


def arithmetic(study: Study, experts: int) -> float:
    """The cost of an epoch of phase 2 by its recipe, without the gate, in clean epochs of one ResNet-18.

    An attack step and an update cost one each, and a third of the batches each are clean, FGSM and PGD.
    """
    steps = study.profile.threat.pgd_steps
    # experts * (1 + 2 + (1 + mean number of PGD steps)) / 3
    return experts * (1 + 2 + 1 + sum(steps) / len(steps)) / 3
