"""Robust accuracy with intervals, paired comparisons, and the audit of what can be believed."""

from paperlib.evaluation.auditing.audit import AuditBudget, audit
from paperlib.evaluation.auditing.report import Finding, Report
from paperlib.evaluation.multiple_comparisons import directions, holm, p_values
from paperlib.evaluation.robustness import Outcome, accuracy_by_step, evaluate, worst_case
from paperlib.evaluation.specs import (
    CLEAN,
    AttackSpec,
    autoattack_spec,
    battery,
    fgsm_spec,
    headline,
    noise_spec,
    pgd_spec,
    square_spec,
    sweep,
    through_choices,
)
from paperlib.evaluation.statistics import LEVEL, OverSeeds, Paired, over_runs, over_seeds, paired, wilson

__all__ = [
    "CLEAN",
    "LEVEL",
    "AttackSpec",
    "AuditBudget",
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
