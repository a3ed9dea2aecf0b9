"""Tables of cost: parameters, training and inference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from paperlib.pipeline.study import Study
from paperlib.report.outcomes import all_recipes
from paperlib.systems.recipe import Recipe


def cost(study: Study, system: str) -> dict[str, Any]:
    """Parameters; training cost in clean epochs of one ResNet-18, of everything the system is built from, empty if a
    network came with its weights; and what an answer costs, in operations of one ResNet-18.
    """
    recipe = all_recipes(study)[system]
    records = [study.record(f"train:{name}") for name in _training(study, recipe)]
    source = all_recipes(study)[recipe.weights_of] if recipe.weights_of else recipe
    own = records[-1:] if source.has_weights else records
    units = [r["training_units"] for r in records]
    return {
        "parameters": sum(r["parameters"] for r in own),
        "training cost": "" if None in units else round(sum(units)),
        "inference cost": round(sum(r["inference_cost"] for r in own), 2),
    }


def _training(study: Study, recipe: Recipe) -> list[str]:
    """The systems trained on the way to one, itself last."""
    if recipe.weights_of:
        return _training(study, all_recipes(study)[recipe.weights_of])
    return [*recipe.starts_from, *([recipe.system] if recipe.has_weights else [])]


def growth(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """How cost grows with the number of experts: training units (all, and per epoch of phase 2), and an answer's."""
    rows = []
    for system in systems:
        recipe = all_recipes(study)[system]
        own, history = study.record(f"train:{system}"), study.record(f"train:{system}")["history"]
        rows.append(
            {
                "system": system,
                "experts": recipe.network.experts,
                **cost(study, system),
                "phase 2, units an epoch": own["training_units"] / len(history["epochs"]),
            }
        )
    return pd.DataFrame(rows).set_index("system")


def arithmetic(study: Study, experts: int) -> float:
    """Clean epochs of one ResNet-18 that an epoch of phase 2 costs by the recipe, the gate left out.

    A step of an attack costs one, the update one: n * (1 + 2 + (1 + mean iterations)) / 3.
    """
    steps = study.profile.threat.pgd_steps
    return experts * (1 + 2 + 1 + sum(steps) / len(steps)) / 3
