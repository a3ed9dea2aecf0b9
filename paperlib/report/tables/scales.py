"""The scale of a profile: images, networks, recorded seeds, test images and eps."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.config.budgets import budget_text
from paperlib.pipeline.study import Study


def scales(studies: Sequence[Sequence[Study]]) -> pd.DataFrame:
    """One column for each profile, from the studies of its seeds, of records and configuration."""
    return pd.DataFrame({f"`{runs[0].profile.name}`": _scale(runs) for runs in studies}).rename_axis("")


def _scale(runs: Sequence[Study]) -> dict[str, str]:
    profile, data = runs[0].profile, runs[0].record("data")
    channels, height, width = data["shape"]
    return {
        "images": f"{data['label']}, {height}x{width} in {'grey' if channels == 1 else 'colour'}",
        "networks": f"ResNet-18 of width {profile.model.width}",
        "training images": f"{sum(data['counts']['train']):,}",
        "seeds": ", ".join(str(study.seed) for study in runs),
        "test images n; for the slow attacks": f"{profile.evaluation.images:,}; {profile.stress.images:,}",
        "eps": budget_text(profile.evaluation.eps),
    }
