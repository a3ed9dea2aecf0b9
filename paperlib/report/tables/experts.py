"""Tables of the nine experts, one by one."""

from __future__ import annotations

import pandas as pd

from paperlib.pipeline.study import Study
from paperlib.report.outcomes import ATTACK_LABELS
from paperlib.report.tables.main_table import results
from paperlib.report.tables.sweeps import by_steps
from paperlib.systems.experts import EXPERT_KINDS, EXPERTS


def expert_table(study: Study) -> pd.DataFrame:
    """Accuracy of every expert alone: clean, FGSM, and the headline attack after 5, 10, ... iterations."""
    frame = results(study, EXPERTS).query("attack != 'pgd'")
    frame["column"] = [ATTACK_LABELS[kind] for kind in frame["attack"]]
    pgd = by_steps(study, EXPERTS)
    pgd["column"] = [f"PGD-{k}" for k in pgd["steps"]]
    table = pd.concat([frame, pgd[pgd["steps"] >= 5]], ignore_index=True)
    table["kind"] = [EXPERT_KINDS[EXPERTS.index(name)] for name in table["system"]]
    return table[["system", "kind", "column", "accuracy", "n"]]


def expert_names() -> dict[str, str]:
    """The row labels of the experts, such as ``1 FGSM`` for ``expert-1``."""
    return {name: f"{i} {kind}" for i, (name, kind) in enumerate(zip(EXPERTS, EXPERT_KINDS, strict=True))}
