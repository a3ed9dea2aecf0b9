"""Tables of the nine experts, one by one."""

from __future__ import annotations

import pandas as pd

from paperlib.pipeline.study import Study
from paperlib.report.outcomes import ATTACK_LABELS
from paperlib.report.tables.main_table import results
from paperlib.report.tables.sweeps import by_steps
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS


def expert_table(study: Study) -> pd.DataFrame:
    """Every expert alone: clean, FGSM, and the headline attack after 5, 10, ... iterations; one row per cell."""
    frame = results(study, EXPERTS).query("attack != 'pgd'")
    frame["column"] = [ATTACK_LABELS[kind] for kind in frame["attack"]]
    longer = by_steps(study, EXPERTS)
    longer["column"] = [f"PGD-{k}" for k in longer["steps"]]
    together = pd.concat([frame, longer[longer["steps"] >= 5]], ignore_index=True)
    together["kind"] = [EXPERT_KINDS[EXPERTS.index(name)] for name in together["system"]]
    return together[["system", "kind", "column", "accuracy", "n"]]


def expert_names() -> dict[str, str]:
    """Such as ``expert-1`` to ``1 FGSM``."""
    return {name: f"{i} {kind}" for i, (name, kind) in enumerate(zip(EXPERTS, EXPERT_KINDS, strict=True))}
