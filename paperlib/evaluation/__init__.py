"""Robust accuracy with intervals, sweeps and paired comparisons."""

from paperlib.evaluation.metrics import OverSeeds, Paired, over_runs, over_seeds, paired, wilson
from paperlib.evaluation.robustness import (
    CLEAN,
    AttackSpec,
    Outcome,
    accuracy_by_step,
    battery,
    evaluate,
    fgsm_spec,
    headline,
    pgd_spec,
    sweep,
    through_choices,
    worst_case,
)

__all__ = [
    "CLEAN",
    "AttackSpec",
    "Outcome",
    "OverSeeds",
    "Paired",
    "accuracy_by_step",
    "battery",
    "evaluate",
    "fgsm_spec",
    "headline",
    "over_runs",
    "over_seeds",
    "paired",
    "pgd_spec",
    "sweep",
    "through_choices",
    "wilson",
    "worst_case",
]
