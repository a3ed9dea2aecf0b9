"""Accuracy under attack, its intervals, comparisons of systems, and the audit of a claimed robust accuracy."""

from paperlib.evaluation.auditing.audit import AuditBudget, audit
from paperlib.evaluation.auditing.report import Finding, Report
from paperlib.evaluation.multiple_comparisons import directions, holm, p_values
from paperlib.evaluation.robustness import EvaluationResult, accuracy_by_step, evaluate, worst_case
from paperlib.evaluation.specs import (
    CLEAN,
    AttackSpec,
    autoattack_spec,
    basic_attacks,
    fgsm_spec,
    headline,
    noise_spec,
    pgd_spec,
    square_spec,
    surrogate_attacks,
    sweep,
)
from paperlib.evaluation.statistics import (
    SIGNIFICANCE_LEVEL,
    DifferenceOverSeeds,
    PairedDifference,
    accuracy_over_seeds,
    difference_over_seeds,
    paired_difference,
    wilson,
)

__all__ = [
    "CLEAN",
    "SIGNIFICANCE_LEVEL",
    "AttackSpec",
    "AuditBudget",
    "DifferenceOverSeeds",
    "EvaluationResult",
    "Finding",
    "PairedDifference",
    "Report",
    "accuracy_by_step",
    "accuracy_over_seeds",
    "audit",
    "autoattack_spec",
    "basic_attacks",
    "difference_over_seeds",
    "directions",
    "evaluate",
    "fgsm_spec",
    "headline",
    "holm",
    "noise_spec",
    "p_values",
    "paired_difference",
    "pgd_spec",
    "square_spec",
    "surrogate_attacks",
    "sweep",
    "wilson",
    "worst_case",
]
