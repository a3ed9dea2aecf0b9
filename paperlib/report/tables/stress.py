"""Tables of the stress tests, of the audits and of the audit's controls."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from paperlib.evaluation import Report, accuracy_over_seeds, difference_over_seeds, headline, wilson
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOTED, PASSES
from paperlib.pipeline.stages import CONTROLS, audited_systems
from paperlib.pipeline.study import Study
from paperlib.report.format import percent, percent_over_seeds, points
from paperlib.report.outcomes import (
    WORST_CASE,
    all_outcomes,
    autoattack_outcome,
    column_of,
    display_name,
    outcomes_over_seeds,
    resolve_system,
)

# Families of attacks, from the simplest to the strongest.
FAMILIES = (
    "clean",
    "FGSM",
    "PGD",
    "other losses",
    "longer PGD",
    "surrogate",
    "experts",
    "gate",
    "gate bypassed",
    "transfer",
    "noise",
    "AutoAttack",
)
_OBJECTIVE_NAMES = {
    r"margin|dlr": "other losses",
    r"soft.*": "surrogate",
    r"expert.*": "experts",
    r"gate-(uniform|held)": "gate bypassed",
    r"gate-to.*|two-stage.*|joint.*": "gate",
    r"transfer.*": "transfer",
}


def family_of(attack: str) -> str:
    """The family in `FAMILIES` of an attack, by its name.

    Raises:
        ValueError: no family fits.
    """
    kinds = {"clean": "clean", "fgsm": "FGSM", "noise": "noise", "square": "AutoAttack", "autoattack": "AutoAttack"}
    kind = re.split("[-@]", attack)[0]
    if kind in kinds:
        return kinds[kind]
    match = re.fullmatch(r"pgd-\d+(x\d+)?(?:-(.+))?@.+", attack)
    if not match:
        raise ValueError(f"attack {attack!r}: no family fits this name")
    restarts, objective = match.groups()
    if objective is None:
        return "longer PGD" if restarts else "PGD"
    return next(name for pattern, name in _OBJECTIVE_NAMES.items() if re.fullmatch(pattern, objective))


def every_attack(study: Study, system: str) -> pd.DataFrame:
    """Every attack on one system: accuracy, interval and n.

    ``new errors`` are the images that this attack is the first to make misclassified, ``remaining`` those that are
    correct under this attack and all above it.
    """
    rows = []
    remaining: Tensor | None = None
    outcomes = all_outcomes(study, system)
    for family in FAMILIES:
        for name, outcome in outcomes.items():
            if family_of(name) != family:
                continue
            before = torch.ones_like(outcome) if remaining is None else remaining
            remaining = before & outcome
            correct, n = int(outcome.sum()), len(outcome)
            low, high = wilson(correct, n)
            row = {"attack": name, "family": family, "n": n, "correct": correct, "accuracy": correct / n}
            row |= {"low": low, "high": high, "new errors": int(before.sum() - remaining.sum())}
            rows.append(row | {"remaining": int(remaining.sum()), "seed": study.seed})
    return pd.DataFrame(rows).set_index("attack")


def losses_by_family(studies: Sequence[Study], systems: Sequence[str]) -> pd.DataFrame:
    """The accuracy that each family of attacks takes beyond the families before it, in [0, 1]; mean over seeds.

    The last column is the accuracy in the worst case; each row sums to 1.
    """
    rows = {}
    for system in systems:
        losses = []
        for study in studies:
            table = every_attack(study, resolve_system(study, system))
            errors = table.groupby("family")["new errors"].sum().reindex(FAMILIES, fill_value=0)
            losses.append(errors / table["n"].iloc[0])
        mean = pd.concat(losses, axis=1).mean(axis=1)
        rows[display_name(system)] = {**mean, WORST_CASE: 1 - mean.sum()}
    return pd.DataFrame(rows).T


def shrinkage(studies: Sequence[Study], systems: Sequence[str]) -> pd.DataFrame:
    """Accuracy under PGD, AutoAttack and in the worst case, over seeds, on the same images, and PGD minus worst."""
    spec = headline(studies[0].profile.evaluation)
    rows = []
    for system in systems:
        names = [resolve_system(study, system) for study in studies]
        worst = outcomes_over_seeds(studies, system, WORST_CASE)
        attacks = [all_outcomes(study, name) for study, name in zip(studies, names, strict=True)]
        pgd = torch.stack([outcomes[spec.name] for outcomes in attacks])
        auto = [autoattack_outcome(study, name) for study, name in zip(studies, names, strict=True)]
        auto_text = ""
        if auto[0] is not None:
            auto_text = percent_over_seeds(accuracy_over_seeds(torch.stack([a for a in auto if a is not None])))
        overstated = difference_over_seeds(pgd, worst)
        rows.append(
            {
                "system": display_name(system),
                column_of(spec): percent_over_seeds(accuracy_over_seeds(pgd)),
                "AutoAttack": auto_text,
                WORST_CASE: percent_over_seeds(accuracy_over_seeds(worst)),
                "overstated by": points(overstated.difference, overstated.low, overstated.high),
                "attacks": len(attacks[0]),
                "seeds": len(studies),
                "n": worst.shape[1],
            }
        )
    return pd.DataFrame(rows).set_index("system")


def audit_of(study: Study, system: str) -> Report:
    """The audit of a system's PGD accuracy."""
    return Report.from_json(study.record(f"audit:{system}"))


def audits(study: Study) -> pd.DataFrame:
    """One row for each audited system: claimed accuracy, worst case, failed checks, credibility of the claim."""
    rows = []
    for system in audited_systems(study.profile):
        report = audit_of(study, system)
        worst = (report.worst or 0) / report.n
        row: dict[str, Any] = {"system": system, report.claim: f"{100 * (report.claimed or 0):.1f}"}
        row |= {WORST_CASE: percent(worst, wilson(report.worst or 0, report.n)), "attacks": len(report.attacks)}
        row |= {"failed checks": ", ".join(report.failed) or "none", "credible": "yes" if report.believed else "no"}
        rows.append(row | {"n": report.n, "seed": study.seed})
    return pd.DataFrame(rows).set_index("system")


def control_reports(study: Study) -> dict[str, tuple[str, str, Report]]:
    """Every control: its fault, the check that must fail on it (empty for an honest network), and the audit."""
    rows = study.record(CONTROLS)["rows"]
    return {row["control"]: (row["what"], row["expected"], Report.from_json(row["report"])) for row in rows}


def controls_table(study: Study) -> pd.DataFrame:
    """Controls by checks: ``F`` failed, ``n`` noted, ``.`` passed, blank not applicable; in brackets must fail."""
    rows = {}
    marks = {FAILS: "F", NOTED: "n", PASSES: "."}
    for control, (_, expected, report) in control_reports(study).items():
        letters = {finding.name: marks.get(finding.verdict, "") for finding in report.findings}
        rows[control] = {name: f"[{mark}]" if name == expected else mark for name, mark in letters.items()}
    order = [check.name for check in sorted(CHECKS, key=lambda check: check.row)]
    return pd.DataFrame(rows).T[order]


def controls_verdicts(study: Study) -> pd.DataFrame:
    """One row for each control: fault, the check that must fail, whether it does, and whether the claim is credible."""
    rows = []
    for control, (fault, expected, report) in control_reports(study).items():
        as_expected = expected in report.failed if expected else not report.failed
        others = ", ".join(name for name in report.failed if name != expected)
        row = {"control": control, "fault": fault, "must fail": expected or "none", "as expected": as_expected}
        rows.append(row | {"other failed checks": others, "credible": report.believed, "n": report.n})
    return pd.DataFrame(rows).set_index("control")
