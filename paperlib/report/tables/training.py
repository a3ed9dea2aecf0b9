"""Training curves as a frame."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from paperlib.pipeline.study import Study


def histories(study: Study, systems: Sequence[str]) -> pd.DataFrame:
    """One row for each system and epoch: loss and validation accuracies, and the number of the best epoch."""
    frames = []
    for system in systems:
        history = study.record(f"train:{system}")["history"]
        frame = pd.DataFrame(history["epochs"]).assign(system=system, best=history["best"])
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)
