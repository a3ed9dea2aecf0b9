"""Stages of the audit: of systems of the main table, and of networks with planted faults."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from paperlib.config.budgets import budget_text
from paperlib.config.schema import Profile
from paperlib.data import Split
from paperlib.evaluation import CLEAN, AuditBudget, audit, fgsm_spec, headline
from paperlib.evaluation.auditing.planted_faults import Control, Ground, controls
from paperlib.pipeline.stage import Context, Json, Result, Stage
from paperlib.pipeline.stages.stress import benign_expert_of
from paperlib.seeds import hash_seed
from paperlib.systems.build import System, system_of
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import recipes

AUDITED = ("plain", "pgd-at", "dwf", "soe", "advmoe")
CONTROLS = "audit:controls"
# A small budget finds the planted faults; only the two controls without a fault need the full audit budget.
PLANTED = AuditBudget(steps=50, restarts=2, draws=100, queries=200, autoattack=False)


@dataclass(frozen=True)
class Outcomes:
    """The stages that attacked a system, so that its audit does not run these attacks again."""

    evaluations: tuple[str, ...]
    stress: str
    autoattack: str

    @classmethod
    def of(cls, system: str, profile: Profile) -> Outcomes:
        main = headline(profile.evaluation)
        specs = (CLEAN, fgsm_spec(main.eps), main)
        evaluations = tuple(f"evaluate:{system}:{spec.name}" for spec in specs)
        return cls(evaluations, f"stress:{system}", f"autoattack:{system}")

    @property
    def stages(self) -> tuple[str, ...]:
        return (*self.evaluations, self.stress, self.autoattack)


@dataclass(frozen=True)
class AuditConfiguration:
    """The audit of a system's PGD accuracy, the number that papers report."""

    system: System
    benign: int | None  # index of the expert that was pre-trained on clean images only
    outcomes: Outcomes
    eps: Fraction
    images: int
    audit_budget: AuditBudget


@dataclass(frozen=True)
class ControlsConfiguration:
    """The audit of planted faults with a small budget, and of two networks without faults with the full budget."""

    undefended: System
    defended: System
    outcomes: tuple[Outcomes, Outcomes]  # of the undefended and the defended network
    eps: Fraction
    images: int
    planted: AuditBudget
    honest: AuditBudget


def audit_stages(profile: Profile) -> list[Stage]:
    """``audit:SYSTEM`` and ``audit:controls``."""
    systems = recipes(profile)
    audits = [_audit_stage(systems[name], profile) for name in audited_systems(profile)]
    return [*audits, _controls_stage(systems, profile)]


def audited_systems(profile: Profile) -> list[str]:
    """The systems whose PGD accuracy is audited."""
    return [name for name in AUDITED if name in recipes(profile)]


def audit_budget_of(profile: Profile) -> AuditBudget:
    """The audit budget of a profile."""
    config = profile.stress
    return AuditBudget(profile.evaluation.steps, config.restarts, config.draws, config.iterations, config.queries)


def _audit_stage(recipe: Recipe, profile: Profile) -> Stage:
    system, outcomes = system_of(recipe, profile), Outcomes.of(recipe.system, profile)
    images, eps = profile.stress.images, profile.evaluation.eps
    config = AuditConfiguration(system, benign_expert_of(recipe), outcomes, eps, images, audit_budget_of(profile))
    cost = images * profile.evaluation.steps * 20 * recipe.network.experts
    inputs = (*system.weights, *outcomes.stages)
    return Stage(f"audit:{recipe.system}", 2, config, inputs, _audit, profile.run.threads, cost)


def _audit(context: Context, config: AuditConfiguration) -> Result:
    split = context.data.test.first(config.images).to(context.device)
    report = audit(
        context.model(config.system),
        split.images,
        split.labels,
        config.eps,
        selected_on=context.data.validation.images,
        benign=config.benign,
        audit_budget=config.audit_budget,
        seed=hash_seed(context.seed, "audit"),
        label=config.system.name,
        **_recorded_outcomes(context, config.outcomes, config.images),
    )
    return Result(report.json())


def _recorded_outcomes(context: Context, outcomes: Outcomes, images: int) -> dict[str, Any]:
    """The recorded outcomes of the first images, as arguments of `audit`."""
    correct = {stage.split(":", 2)[2]: context.get(stage).arrays["correct"][:images] for stage in outcomes.evaluations}
    correct |= context.get(outcomes.stress).arrays
    autoattack = context.get(outcomes.autoattack)
    if "not_run" in autoattack.record["result"]:
        return {"outcomes": correct}
    correct[autoattack.record["result"]["name"]] = autoattack.arrays["correct"]
    return {"outcomes": correct, "won_by": autoattack.arrays["first_success"]}


def _controls_stage(systems: dict[str, Recipe], profile: Profile) -> Stage:
    images, full = profile.stress.images, audit_budget_of(profile)
    small = replace(
        PLANTED,
        steps=full.steps,
        draws=min(PLANTED.draws, full.draws),
        queries=min(PLANTED.queries, full.queries),
    )
    config = ControlsConfiguration(
        undefended=system_of(systems["plain"], profile),
        defended=system_of(systems["pgd-at"], profile),
        outcomes=(Outcomes.of("plain", profile), Outcomes.of("pgd-at", profile)),
        eps=profile.evaluation.eps,
        images=images,
        planted=small,
        honest=full,
    )
    outcomes = [stage for of_system in config.outcomes for stage in of_system.stages]
    inputs = (*config.undefended.weights, *config.defended.weights, *outcomes)
    cost = images * profile.evaluation.steps * 200
    return Stage(CONTROLS, 2, config, inputs, _controls, profile.run.threads, cost)


def _controls(context: Context, config: ControlsConfiguration) -> Result:
    data = context.data.to(context.device)
    test = data.test.first(config.images)
    networks = context.model(config.undefended), context.model(config.defended)
    basis = Ground(*networks, data.train, data.validation, test, float(config.eps))
    honest = dict(zip(("undefended", "defended"), config.outcomes, strict=True))
    rows = []
    for control in controls(basis):
        arguments: dict[str, Any] = {"audit_budget": config.planted}
        if control.name in honest:
            outcomes = honest[control.name]
            # The claim is the accuracy under AutoAttack, or (None) under PGD where AutoAttack cannot be run.
            claimed: float | None = context.get(outcomes.autoattack).record["result"].get("accuracy")
            arguments = {"audit_budget": config.honest, "claimed": claimed}
            arguments |= _recorded_outcomes(context, outcomes, config.images)
        rows.append(_audit_control(context, control, test, arguments))
    return Result({"n": config.images, "eps": budget_text(config.eps), "rows": rows})


def _audit_control(context: Context, control: Control, test: Split, arguments: dict[str, Any]) -> Json:
    report = audit(
        images=test.images,
        labels=test.labels,
        **{**control.arguments, **arguments},
        seed=hash_seed(context.seed, "audit"),
        label=control.name,
    )
    return {"control": control.name, "what": control.what, "expected": control.expected, "report": report.json()}
