"""Robust accuracy with intervals, paired comparisons, and the audit of what can be believed."""

from paperlib.evaluation.audit import Effort, Finding, Report, audit
from paperlib.evaluation.metrics import LEVEL, OverSeeds, Paired, over_runs, over_seeds, paired, wilson
from paperlib.evaluation.multiple_comparisons import directions, holm, p_values
from paperlib.evaluation.robustness import (
    CLEAN,
    AttackSpec,
    Outcome,
    accuracy_by_step,
    autoattack_spec,
    battery,
    evaluate,
    fgsm_spec,
    headline,
    noise_spec,
    pgd_spec,
    square_spec,
    sweep,
    through_choices,
    worst_case,
)

__all__ = [
    "CLEAN",
    "LEVEL",
    "AttackSpec",
    "Effort",
    "Finding",
    "Outcome",
    "OverSeeds",
    "Paired",
    "Report",
    "accuracy_by_step",
    "audit",
    "autoattack_spec",
    "battery",
    "directions",
    "evaluate",
    "fgsm_spec",
    "headline",
    "holm",
    "noise_spec",
    "over_runs",
    "over_seeds",
    "p_values",
    "paired",
    "pgd_spec",
    "square_spec",
    "sweep",
    "through_choices",
    "wilson",
    "worst_case",
]
