"""Stages of the stress tests: AutoAttack, and attacks designed for mixtures."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import nn

from paperlib.acceleration import fold
from paperlib.attacks import OBJECTIVES, STANDARD, AttackObjective, losses_for, mixture_objectives, transfer_objective
from paperlib.attacks.autoattack import CLASSES
from paperlib.config.schema import Profile
from paperlib.evaluation import AttackSpec, autoattack_spec, evaluate, headline, noise_spec
from paperlib.pipeline.stage import Context, Result, Stage
from paperlib.seeds import hash_seed
from paperlib.systems.build import System, system_of
from paperlib.systems.experts import EXPERTS
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import recipes

# The systems attacked by AutoAttack where it is too expensive for all: DWF, its main baselines, other mixtures.
AUTOATTACKED = ("plain", "pgd-at", "trades", "pgd-at-ensemble", "dwf", "soe", "advmoe", "best-expert")
BEST_EXPERT = "best-expert"  # the expert with the best validation accuracy; it differs between seeds


@dataclass(frozen=True)
class AutoAttackConfiguration:
    """AutoAttack on one system; of several candidates, on the one with the best validation accuracy."""

    name: str
    candidates: tuple[System, ...]
    attack: AttackSpec
    images: int
    batch_size: int  # images attacked at once; it changes the random numbers


@dataclass(frozen=True)
class StressConfiguration:
    """The attack of the main table with every objective that applies to a system, a longer PGD, and noise."""

    name: str
    candidates: tuple[System, ...]
    benign: int | None  # index of the expert that was pre-trained on clean images only
    surrogate: System  # for transfer attacks; it shares no weights with the system
    attack: AttackSpec
    longer: AttackSpec
    noise: AttackSpec
    images: int
    batch_size: int  # images attacked at once


def stress_stages(profile: Profile) -> list[Stage]:
    """``stress:SYSTEM`` for every system of the main table, ``autoattack:SYSTEM`` for those of `autoattack_systems`."""
    listed = []
    for name in stress_tested_systems(profile):
        listed.append(_stress_stage(name, profile))
        if name in autoattack_systems(profile):
            listed.append(_autoattack_stage(name, profile))
    return listed


def stress_tested_systems(profile: Profile) -> list[str]:
    """Every system of the main table, and the best single expert under the name `BEST_EXPERT`."""
    families = ("single", "mixture", "defence")
    return [*(recipe.system for recipe in recipes(profile).values() if recipe.family in families), BEST_EXPERT]


def autoattack_systems(profile: Profile) -> list[str]:
    """The systems attacked by AutoAttack: all, or those that the claims need and the user's own."""
    own = [recipe.system for recipe in recipes(profile).values() if recipe.code]
    return [
        name
        for name in stress_tested_systems(profile)
        if profile.stress.autoattack == "all" or name in (*AUTOATTACKED, *own)
    ]


def best_expert(context: Context) -> str:
    """The expert with the highest PGD accuracy on the *validation* split; the test split is not used."""
    return max(EXPERTS, key=lambda name: _validation_accuracy(context, f"train:{name}"))


def _validation_accuracy(context: Context, stage: str) -> float:
    history = context.get(stage).record["result"]["history"]
    value: float = history["epochs"][history["best"]]["pgd"]
    return value


def _candidates(name: str, profile: Profile) -> tuple[Recipe, tuple[System, ...]]:
    systems = recipes(profile)
    candidates = [systems[system] for system in (EXPERTS if name == BEST_EXPERT else (name,))]
    return candidates[0], tuple(system_of(recipe, profile) for recipe in candidates)


def _model(context: Context, candidates: tuple[System, ...]) -> nn.Module:
    if len(candidates) == 1:
        return context.model(candidates[0])
    return context.model(max(candidates, key=lambda system: _validation_accuracy(context, *system.weights)))


def _weights(candidates: tuple[System, ...]) -> tuple[str, ...]:
    return tuple(stage for system in candidates for stage in system.weights)


def autoattack_of(profile: Profile) -> AttackSpec:
    """AutoAttack at the headline eps, shortened in profiles for tests only."""
    return autoattack_spec(profile.evaluation.eps, profile.stress.iterations, profile.stress.queries)


def _autoattack_stage(name: str, profile: Profile) -> Stage:
    recipe, candidates = _candidates(name, profile)
    images = profile.stress.images
    batch_size = min(profile.evaluation.batch_size, images)
    config = AutoAttackConfiguration(name, candidates, autoattack_of(profile), images, batch_size)
    cost = images * recipe.network.experts * (30 * profile.stress.iterations + profile.stress.queries)
    return Stage(f"autoattack:{name}", 1, config, _weights(candidates), _autoattack, profile.run.threads, cost)


def _autoattack(context: Context, config: AutoAttackConfiguration) -> Result:
    spec = config.attack
    if (classes := len(context.data.classes)) < CLASSES:
        reason = f"its targeted losses need {CLASSES} classes or more, the data have {classes}"
        return Result({"system": config.name, "name": spec.name, "attack": spec.table(), "not_run": reason})
    outcome = evaluate(
        _model(context, config.candidates),
        context.data.test.first(config.images).to(context.device),
        spec,
        seed=hash_seed(context.seed, "stress", spec.name),
        batch_size=config.batch_size,
        state=context.checkpoint(f"autoattack:{config.name}"),
        label=config.name,
    )
    won = {attack: int((outcome.first_success == i).sum()) for i, attack in enumerate(STANDARD, start=1)}
    record = {"system": config.name, "name": spec.name, "attack": spec.table(), "won": won, **outcome.record()}
    return Result(record, outcome.arrays())


def _stress_stage(name: str, profile: Profile) -> Stage:
    recipe, candidates = _candidates(name, profile)
    settings, main = profile.stress, headline(profile.evaluation)
    surrogate = system_of(recipes(profile)[_transfer_surrogate(name, profile)], profile)
    config = StressConfiguration(
        name=name,
        candidates=candidates,
        benign=benign_expert_of(recipe),
        surrogate=surrogate,
        attack=main,
        longer=replace(main, steps=2 * main.steps, restarts=settings.restarts),
        noise=noise_spec(main.eps, settings.draws),
        images=settings.images,
        batch_size=profile.evaluation.batch_size,
    )
    cost = settings.images * (main.steps * 25 + settings.draws) * recipe.network.experts
    inputs = (*_weights(candidates), *surrogate.weights)
    return Stage(f"stress:{name}", 1, config, inputs, _stress, profile.run.threads, cost)


def _transfer_surrogate(name: str, profile: Profile) -> str:
    """A system that shares no weights with the system ``name``."""
    if name != "pgd-at":
        return "pgd-at"
    return "pgd-at-0" if "pgd-at-0" in recipes(profile) else EXPERTS[-1]


def benign_expert_of(recipe: Recipe) -> int | None:
    """The index of the expert that was pre-trained on clean images only; None if the mixture has no such expert."""
    return recipe.starts_from.index(EXPERTS[0]) if EXPERTS[0] in recipe.starts_from else None


def _stress(context: Context, config: StressConfiguration) -> Result:
    split = context.data.test.first(config.images).to(context.device)
    model = _model(context, config.candidates)
    folded, surrogate = fold(model, split.images), fold(context.model(config.surrogate), split.images).network
    objectives = {name: OBJECTIVES[name] for name in losses_for(len(context.data.classes))}
    objectives |= mixture_objectives(model, split.images, config.benign)
    objectives |= {f"transfer {config.surrogate.name}": AttackObjective(transfer_objective(surrogate))}
    specs = [*(replace(config.attack, objective=objective) for objective in objectives), config.longer, config.noise]
    rows, arrays = [], {}
    for spec in specs:
        outcome = evaluate(
            folded,
            split,
            spec,
            seed=hash_seed(context.seed, "stress", spec.name),
            batch_size=config.batch_size,
            objectives={"cross-entropy": OBJECTIVES["cross-entropy"], **objectives},
            label=config.name,
        )
        rows.append({"name": spec.name, "attack": spec.table(), **outcome.record()})
        arrays[spec.name] = outcome.correct
    return Result({"system": config.name, "n": len(split), "rows": rows}, arrays)
