"""Evaluation stages: one system under one attack, and loss and accuracy at each iterate of an attack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from paperlib.attacks import cross_entropy, pgd
from paperlib.config.schema import Profile
from paperlib.evaluation import AttackSpec, basic_attacks, evaluate, headline, surrogate_attacks, sweep
from paperlib.pipeline.stage import Context, Result, Stage
from paperlib.seeds import cpu_generator, hash_seed
from paperlib.shapes import Images, Labels, Logits, PerImage
from paperlib.systems.build import System, system_of
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import COMPARED

TRACED_IMAGES = 256


@dataclass(frozen=True)
class EvaluationConfiguration:
    """One system under one attack on the first images of the test split."""

    system: System
    attack: AttackSpec
    images: int
    batch_size: int  # images attacked at once; memory may allow fewer


@dataclass(frozen=True)
class TraceConfiguration:
    """Loss and accuracy at every iterate of one attack on the first images of the test split."""

    system: System
    attack: AttackSpec
    images: int


def attacks_on(recipe: Recipe, profile: Profile) -> list[AttackSpec]:
    """The attacks of the main table on a system; with hard routing, attacks on its differentiable surrogate too."""
    if recipe.family == "member":
        return []
    specs = basic_attacks(profile.evaluation)
    return [*specs, *surrogate_attacks(profile.evaluation)] if recipe.hard_routing else specs


def evaluations(recipe: Recipe, profile: Profile) -> list[Stage]:
    """Every attack of the main table on one system; for the systems of `COMPARED`, those of the sweeps too."""
    specs = attacks_on(recipe, profile)
    if recipe.system in COMPARED:
        specs += [spec for spec in sweep(profile.evaluation) if spec not in specs]
    return [evaluation(recipe, spec, profile) for spec in specs]


def evaluation(recipe: Recipe, spec: AttackSpec, profile: Profile) -> Stage:
    """One system under one attack: ``evaluate:dwf:pgd-50@8/255``."""
    settings = profile.evaluation
    system = system_of(recipe, profile)
    config = EvaluationConfiguration(system, spec, settings.images, settings.batch_size)
    cost = settings.images * (spec.steps * spec.restarts + 1) * recipe.network.experts
    name = f"evaluate:{recipe.system}:{spec.name}"
    return Stage(name, 2, config, system.weights, _evaluate, profile.run.threads, cost)


def _evaluate(context: Context, config: EvaluationConfiguration) -> Result:
    name, spec = config.system.name, config.attack
    # The same seed, and so the same random starts, for every system: outcomes are compared image by image.
    outcome = evaluate(
        context.model(config.system),
        context.data.test.first(config.images).to(context.device),
        spec,
        seed=hash_seed(context.seed, "evaluate", spec.name),
        batch_size=config.batch_size,
        label=name,
    )
    return Result({"system": name, "attack": spec.table(), **outcome.record()}, outcome.arrays())


def traces(systems: Sequence[Recipe], profile: Profile) -> list[Stage]:
    """``trace:SYSTEM`` under the headline attack."""
    spec, images = headline(profile.evaluation), min(profile.evaluation.images, TRACED_IMAGES)
    listed = []
    for recipe in systems:
        system = system_of(recipe, profile)
        config = TraceConfiguration(system, spec, images)
        cost = images * spec.steps * recipe.network.experts
        name = f"trace:{recipe.system}"
        listed.append(Stage(name, 2, config, system.weights, _trace, profile.run.threads, cost))
    return listed


def _trace(context: Context, config: TraceConfiguration) -> Result:
    split, spec = context.data.test.first(config.images).to(context.device), config.attack
    losses: list[float] = []
    accuracies: list[float] = []

    def recording(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        logits, values = cross_entropy(model, x, y)
        losses.append(float(values.detach().mean()))
        accuracies.append(float((logits.argmax(dim=1) == y).float().mean()))
        return logits, values

    # One step more, so that the objective is computed at iterates 0 to ``steps``.
    pgd(
        context.model(config.system),
        split.images,
        split.labels,
        eps=spec.eps,
        step_size=spec.step,
        steps=spec.steps + 1,
        generator=cpu_generator(hash_seed(context.seed, "trace")),
        objective=recording,
    )
    table = {"system": config.system.name, "attack": spec.table(), "n": config.images}
    return Result({**table, "loss": losses, "accuracy_at_iterate": accuracies})
