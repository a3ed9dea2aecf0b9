"""All computations: every training run and every measurement of the series as a named stage.

A stage holds what its result depends on (configuration, inputs, version of its code) and the function that computes it;
`paperlib.pipeline.study.Study` reads or computes its result. Raise the ``version`` of a stage if a change of the code
changes its numbers; the tests detect such a change.
"""

from __future__ import annotations

from fractions import Fraction

from paperlib.config.schema import Profile
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.stages.audit import CONTROLS, audit_budget_of, audit_stages, audited_systems
from paperlib.pipeline.stages.data import data_facts
from paperlib.pipeline.stages.evaluate import attacks_on, evaluation, evaluations, traces
from paperlib.pipeline.stages.gate import gallery, gate, gate_attacks
from paperlib.pipeline.stages.nan_router import nan_router
from paperlib.pipeline.stages.stress import (
    BEST_EXPERT,
    autoattack_of,
    autoattack_systems,
    benign_expert_of,
    best_expert,
    stress_stages,
    stress_tested_systems,
)
from paperlib.pipeline.stages.train import training
from paperlib.systems.registry import recipes

__all__ = [
    "BEST_EXPERT",
    "CONTROLS",
    "PUBLISHED_WEIGHTS",
    "ROUTED",
    "attacks_on",
    "audit_budget_of",
    "audited_systems",
    "autoattack_of",
    "autoattack_systems",
    "benign_expert_of",
    "best_expert",
    "evaluation",
    "stages",
    "stress_tested_systems",
]

GATED = ("frozen", "dwf")  # gate weights are recorded at all eps of the sweep
# Gate weights are recorded at the headline eps only.
ROUTED = ("soe", "soe-own", "soe-moe", "advmoe", "advmoe-own", "more", "more-own")
TRACED = ("plain", "pgd-at", "dwf")
GALLERIES = ("plain", "dwf")
PUBLISHED_WEIGHTS = ("dwf",)


def stages(profile: Profile) -> dict[str, Stage]:
    """Every stage of the series at the scale of ``profile``, by name; inputs come before the stages that need them."""
    systems = recipes(profile)
    listed = [data_facts()]
    listed += [training(recipe, profile) for recipe in systems.values() if recipe.has_weights]
    listed += [stage for recipe in systems.values() for stage in evaluations(recipe, profile)]
    listed += traces([systems[system] for system in TRACED], profile)
    listed += [gate(systems[system], profile, gate_attacks(profile)) for system in GATED]
    at_headline = [("clean", Fraction(0)), ("pgd", profile.evaluation.eps)]
    listed += [gate(systems[system], profile, at_headline) for system in ROUTED if system in systems]
    listed += [gallery(systems[system], profile) for system in GALLERIES]
    listed += [nan_router(profile), *stress_stages(profile), *audit_stages(profile)]
    return {stage.name: stage for stage in listed}
