"""How each system is trained."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.pipeline.study import Study
from paperlib.report.outcomes import all_recipes


def settings(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """The training of each system: its networks, start, trained parts, losses, attack steps and epochs."""
    rows = []
    for system in systems:
        recipe = all_recipes(study)[system]
        network, config = recipe.network, recipe.training
        default = network.member if network.kind == "own" else "ResNet-18"
        member = "small ResNet" if network.member == "small" else default
        width = f" of width x {network.width:g}" if network.width != 1 else ""
        rows.append(
            {
                "system": system,
                "setting": "as published" if recipe.as_published else "DWF's budget",
                "networks": f"{network.experts} {member}{width}",
                "starts from": "trained experts" if recipe.starts_from else "scratch",
                "trained parts": ", then ".join(update_step.trainable for update_step in recipe.update_steps),
                "loss": ", then ".join(type(update_step.loss).__name__ for update_step in recipe.update_steps),
                "mean attack steps": ", ".join(
                    f"{update_step.attack.mean_steps():.1f}" for update_step in recipe.update_steps
                ),
                "epochs": config.epochs if config else "",
            }
        )
    return pd.DataFrame(rows).set_index("system")
