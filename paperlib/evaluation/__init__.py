"""Robust accuracy with intervals, sweeps and paired comparisons."""

from paperlib.evaluation.metrics import Paired, paired, wilson
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
    "Paired",
    "accuracy_by_step",
    "battery",
    "evaluate",
    "fgsm_spec",
    "headline",
    "paired",
    "pgd_spec",
    "sweep",
    "through_choices",
    "wilson",
    "worst_case",
]
