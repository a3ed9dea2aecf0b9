"""Stages of the stress tests: AutoAttack, attacks made for mixtures, audits, and the audit's own controls."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from paperlib.attacks import AIMS, STANDARD, Aim, mixture_aims, transferred
from paperlib.data import Split
from paperlib.evaluation import (
    CLEAN,
    AttackSpec,
    Effort,
    Outcome,
    audit,
    autoattack_spec,
    evaluate,
    fgsm_spec,
    headline,
    noise_spec,
)
from paperlib.evaluation.controls import Control, Ground, controls
from paperlib.models import Folded, fold
from paperlib.profiles import Profile, budget_text, to_table
from paperlib.seeds import hash_seed
from paperlib.stage import Context, Json, Result, Stage, weights_of
from paperlib.training.recipes import EXPERTS, Recipe, recipes

AUDITED = ("plain", "pgd-at", "dwf", "soe", "advmoe")
# Who faces AutoAttack where it cannot be everyone: DWF, those it is compared with first, and other mixtures.
FACING = ("plain", "pgd-at", "trades", "pgd-at-ensemble", "dwf", "soe", "advmoe", "best-expert")
BEST = "best-expert"  # stands for the expert that did best on the validation split, another with each seed
CONTROLS = "audit:controls"
# Planted faults show at once; only the two honest networks of the controls need the whole effort.
PLANTED = Effort(steps=50, restarts=2, draws=100, queries=200, autoattack=False)


def stress_stages(profile: Profile) -> list[Stage]:
    """AutoAttack and the other stress attacks on every system of the main table, and the audits."""
    known = recipes(profile)
    listed = []
    for system in stressed(profile):
        recipe = known[EXPERTS[0] if system == BEST else system]
        needed = tuple(f"train:{name}" for name in EXPERTS) if system == BEST else weights_of(recipe, profile)
        listed += [_stress(system, recipe, needed, profile)]
        if system in facing(profile):
            listed += [_autoattack(system, recipe, needed, profile)]
    listed += [_audit(known[system], profile) for system in audited(profile)]
    return [*listed, _controls(known, profile)]


def stressed(profile: Profile) -> list[str]:
    """Every system of the main table, the best single expert under the name `BEST`."""
    known = recipes(profile).values()
    return [*(r.system for r in known if r.family in ("single", "mixture", "defence")), BEST]


def audited(profile: Profile) -> list[str]:
    """The systems whose printed number is audited."""
    return [name for name in AUDITED if name in recipes(profile)]


def facing(profile: Profile) -> list[str]:
    """The systems that face AutoAttack: all, or those the claims turn on and the user's own."""
    own = [recipe.system for recipe in recipes(profile).values() if recipe.code]
    return [name for name in stressed(profile) if profile.stress.autoattack == "all" or name in (*FACING, *own)]


def best_expert(context: Context) -> str:
    """The expert with the highest PGD accuracy on the *validation* split; the test split has no say in it."""

    def score(system: str) -> float:
        history = context.get(f"train:{system}").record["result"]["history"]
        value: float = history["epochs"][history["best"]]["pgd"]
        return value

    return max(EXPERTS, key=score)


def _model(context: Context, system: str) -> nn.Module:
    return context.model(best_expert(context) if system == BEST else system)


def _split(context: Context) -> Split:
    return context.data.test.first(context.profile.stress.images).to(context.device)


def autoattack_of(profile: Profile) -> AttackSpec:
    """AutoAttack at the headline eps; cut short only in profiles made for tests."""
    return autoattack_spec(profile.evaluation.eps, profile.stress.iterations, profile.stress.queries)


def _autoattack(system: str, recipe: Recipe, needed: tuple[str, ...], profile: Profile) -> Stage:
    config, name = profile.stress, f"autoattack:{system}"
    spec = autoattack_of(profile)
    batch_size = min(profile.evaluation.batch_size, config.images)

    def compute(context: Context) -> Result:
        outcome = evaluate(
            _model(context, system),
            _split(context),
            spec,
            seed=hash_seed(context.seed, "stress", spec.name),
            batch_size=batch_size,
            state=context.checkpoint(name),
            label=system,
            say=context.say,
        )
        won = {attack: int((outcome.first_success == i).sum()) for i, attack in enumerate(STANDARD, start=1)}
        record = {"system": system, "name": spec.name, "attack": spec.table(), "won": won, **outcome.record()}
        return Result(record, outcome.arrays())

    described = {"attack": spec.table(), "images": config.images, "batch_size": batch_size}
    passes = config.images * recipe.network.experts * (30 * config.iterations + config.queries)
    return Stage(name, 1, described, needed, compute, passes)


def stress_specs(profile: Profile, aims: dict[str, Aim]) -> list[AttackSpec]:
    """The attacks of one system's stress test beside AutoAttack: every aim, a longer PGD, and noise."""
    main, config = headline(profile.evaluation), profile.stress
    longer = replace(main, steps=2 * main.steps, restarts=config.restarts)
    return [*(replace(main, aim=aim) for aim in aims), longer, noise_spec(main.eps, config.draws)]


def _stress(system: str, recipe: Recipe, needed: tuple[str, ...], profile: Profile) -> Stage:
    # Held out: a network none of whose weights the system has.
    other, benign = _held_out(system, profile), benign_of(recipe)
    batch_size = profile.evaluation.batch_size

    def compute(context: Context) -> Result:
        split, model = _split(context), _model(context, system)
        folded, surrogate = fold(model, split.images), fold(context.model(other), split.images).network
        aims = {name: AIMS[name] for name in ("margin", "dlr")}
        aims |= {**mixture_aims(model, split.images, benign), f"transfer {other}": Aim(transferred(surrogate))}
        known = {"cross-entropy": AIMS["cross-entropy"], **aims}
        found = {spec: _struck(context, folded, split, spec, known, system) for spec in stress_specs(profile, aims)}
        rows = [{"name": spec.name, "attack": spec.table(), **outcome.record()} for spec, outcome in found.items()]
        arrays = {spec.name: outcome.correct for spec, outcome in found.items()}
        return Result({"system": system, "n": len(split), "rows": rows}, arrays)

    main = headline(profile.evaluation)
    described: Json = {"attack": main.table(), "images": profile.stress.images, "benign": benign, "transfer": other}
    described |= {"draws": profile.stress.draws, "restarts": profile.stress.restarts, "batch_size": batch_size}
    cost = profile.stress.images * (main.steps * 25 + profile.stress.draws) * recipe.network.experts
    return Stage(f"stress:{system}", 1, described, (*needed, f"train:{other}"), compute, cost)


def _struck(
    context: Context, folded: Folded, split: Split, spec: AttackSpec, aims: dict[str, Aim], system: str
) -> Outcome:
    return evaluate(
        folded,
        split,
        spec,
        seed=hash_seed(context.seed, "stress", spec.name),
        batch_size=context.profile.evaluation.batch_size,
        aims=aims,
        label=system,
        say=context.say,
    )


def _held_out(system: str, profile: Profile) -> str:
    if system != "pgd-at":
        return "pgd-at"
    return "pgd-at-0" if "pgd-at-0" in recipes(profile) else EXPERTS[-1]


def benign_of(recipe: Recipe) -> int | None:
    """Which expert of a mixture was pre-trained on clean images alone."""
    return recipe.starts_from.index(EXPERTS[0]) if EXPERTS[0] in recipe.starts_from else None


def effort_of(profile: Profile) -> Effort:
    """How hard the profile's audits try."""
    config = profile.stress
    return Effort(profile.evaluation.steps, config.restarts, config.draws, config.iterations, config.queries)


class _Records:
    """What the records of a system's attacks tell an audit, so that it need not run them again."""

    def __init__(self, system: str, profile: Profile) -> None:
        main = headline(profile.evaluation)
        self.counted = [f"evaluate:{system}:{spec.name}" for spec in (CLEAN, fgsm_spec(main.eps), main)]
        self.stress, self.autoattack = f"stress:{system}", f"autoattack:{system}"
        self.names = (*self.counted, self.stress, self.autoattack)
        self.n = profile.stress.images

    def arguments(self, context: Context) -> dict[str, Any]:
        known = {name.split(":", 2)[2]: context.get(name).arrays["correct"][: self.n] for name in self.counted}
        auto = context.get(self.autoattack)
        known |= {**context.get(self.stress).arrays, auto.record["result"]["name"]: auto.arrays["correct"]}
        return {"known": known, "won_by": auto.arrays["first_success"]}

    def accuracy(self, context: Context) -> float:
        """Under AutoAttack."""
        value: float = context.get(self.autoattack).record["result"]["accuracy"]
        return value


def _audit(recipe: Recipe, profile: Profile) -> Stage:
    """The audit of a system's PGD accuracy: the number a paper would print."""
    system, main, effort = recipe.system, headline(profile.evaluation), effort_of(profile)
    records = _Records(system, profile)

    def compute(context: Context) -> Result:
        split = _split(context)
        report = audit(
            context.model(system),
            split.images,
            split.labels,
            main.eps,
            selected_on=context.data.validation.images,
            benign=benign_of(recipe),
            effort=effort,
            seed=hash_seed(context.seed, "audit"),
            label=system,
            say=context.say,
            **records.arguments(context),
        )
        return Result(report.json())

    needed = (*weights_of(recipe, profile), *records.names)
    described = {"eps": budget_text(main.eps), "images": records.n, "effort": dataclasses.asdict(effort)}
    cost = records.n * main.steps * 20 * recipe.network.experts
    return Stage(f"audit:{system}", 2, described, needed, compute, cost)


def _controls(known: dict[str, Recipe], profile: Profile) -> Stage:
    """The audit audited: planted faults with little effort, and two honest networks with all of it.

    What is claimed of the honest ones is what an honest author would claim: what AutoAttack leaves.
    """
    eps, n, full = profile.evaluation.eps, profile.stress.images, effort_of(profile)
    short = replace(PLANTED, steps=full.steps, draws=min(PLANTED.draws, full.draws))
    short = replace(short, queries=min(PLANTED.queries, full.queries))
    honest = {"undefended": _Records("plain", profile), "defended": _Records("pgd-at", profile)}

    def compute(context: Context) -> Result:
        data, test = context.data.to(context.device), _split(context)
        ground = Ground(context.model("plain"), context.model("pgd-at"), data.train, data.validation, test, float(eps))
        rows = []
        for control in controls(ground):
            how: dict[str, Any] = {"effort": short}
            if control.name in honest:
                records = honest[control.name]
                how = {"effort": full, "claimed": records.accuracy(context), **records.arguments(context)}
            rows.append(_controlled(context, control, test, how))
        return Result({"n": n, "eps": budget_text(eps), "rows": rows})

    described: Json = {"eps": budget_text(eps), "images": n, "data": to_table(profile.data)}
    described |= {"planted": dataclasses.asdict(short), "honest": dataclasses.asdict(full)}
    needed = (*weights_of(known["plain"], profile), *weights_of(known["pgd-at"], profile))
    records_of = tuple(name for records in honest.values() for name in records.names)
    return Stage(CONTROLS, 2, described, (*needed, *records_of), compute, n * profile.evaluation.steps * 200)


def _controlled(context: Context, control: Control, test: Split, how: dict[str, Any]) -> Json:
    seed = hash_seed(context.seed, "audit")
    with torch.random.fork_rng():  # one control draws noise at test time
        torch.manual_seed(seed % 2**31)
        report = audit(
            images=test.images,
            labels=test.labels,
            **{**control.arguments, **how},
            seed=seed,
            label=control.name,
            say=context.say,
        )
    return {"control": control.name, "what": control.what, "expected": control.expected, "report": report.json()}
