"""The graph of computations: every training run and every measurement of the series as a named stage.

A stage says what it depends on (configuration, inputs, version of its code) and how it is computed; `paperlib.study`
finds its result or computes it. Raise ``version`` when a change of code changes numbers.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.attacks import cross_entropy, fgsm, pgd, undisturbed
from paperlib.data import Dataset, Split
from paperlib.errors import NotFiniteError
from paperlib.evaluation import CLEAN, AttackSpec, battery, evaluate, headline, sweep, through_choices
from paperlib.models import Mixture, backbone, operations, parameters
from paperlib.profiles import Profile, budget_text, to_table
from paperlib.seeds import cpu_generator, hash_seed, uniform
from paperlib.stage import Context, Json, Result, Stage, weights_of
from paperlib.stress import stress_stages
from paperlib.training.recipes import COMPARED, Recipe, build, load_experts, recipes, unsafe_advmoe
from paperlib.training.trainer import History, Validation, train

GATED = ("frozen", "dwf")  # their gates are watched over all eps, those of the next at the headline eps alone
ROUTED = ("soe", "soe-own", "soe-moe", "advmoe", "advmoe-own", "more", "more-own")
TRACED = ("plain", "pgd-at", "dwf")
SHOWN = ("plain", "dwf")
PUBLISHED_WEIGHTS = ("dwf",)
REPORTED_GAP = 320.0  # between router scores, when published ADVMoE code turned NaN


def stages(profile: Profile) -> dict[str, Stage]:
    """Every stage of the series at the scale of ``profile``, by name."""
    known = recipes(profile)
    listed = [_data(profile)]
    listed += [_train(recipe, profile) for recipe in known.values() if recipe.kept]
    for recipe in known.values():
        specs = attacks_on(recipe, profile)
        if recipe.system in COMPARED:
            specs += [spec for spec in sweep(profile.evaluation) if spec not in specs]
        listed += [evaluation(recipe, spec, profile) for spec in specs]
    listed += [_trace(known[system], profile) for system in TRACED]
    listed += [_gate(known[system], profile, gate_attacks(profile)) for system in GATED]
    at_headline = [("clean", Fraction(0)), ("pgd", profile.evaluation.eps)]
    listed += [_gate(known[system], profile, at_headline) for system in ROUTED if system in known]
    listed += [_gallery(known[system], profile) for system in SHOWN]
    listed += [_control(profile), *stress_stages(profile)]
    return {stage.name: stage for stage in listed}


def attacks_on(recipe: Recipe, profile: Profile) -> list[AttackSpec]:
    """The attacks of the main table a system faces; one that picks an expert by argmax also faces its soft stand-in."""
    if recipe.family == "member":
        return []
    specs = battery(profile.evaluation)
    return [*specs, *through_choices(profile.evaluation)] if recipe.chooses else specs


def evaluation(recipe: Recipe, spec: AttackSpec, profile: Profile) -> Stage:
    """One system under one attack on the first images of the test split: ``evaluate:dwf:pgd-50@8/255``."""
    n, size = profile.evaluation.images, profile.evaluation.batch_size

    def compute(context: Context) -> Result:
        split = context.data.test.first(n).to(context.device)
        # One seed for every system: they face the same random starts, and are compared image by image.
        outcome = evaluate(
            context.model(recipe.system),
            split,
            spec,
            seed=hash_seed(context.seed, "evaluate", spec.name),
            batch_size=size,
            label=recipe.system,
            say=context.say,
        )
        return Result({"system": recipe.system, "attack": spec.table(), **outcome.record()}, outcome.arrays())

    config = {"attack": spec.table(), "images": n, "batch_size": size}
    cost = n * (spec.steps * spec.restarts + 1) * recipe.network.experts
    return Stage(f"evaluate:{recipe.system}:{spec.name}", 2, config, weights_of(recipe, profile), compute, cost)


def _train(recipe: Recipe, profile: Profile) -> Stage:
    name = f"train:{recipe.system}"

    def compute(context: Context) -> Result:
        model = _drawn(recipe, context)
        load_experts(model, [context.model(system) for system in recipe.starts_from])
        history = _taught(model, recipe, context, context.checkpoint(name)) if recipe.turns else History()
        cost = relative_cost(model, profile, context.data)
        record = {
            "system": recipe.system,
            "story": recipe.story,
            "parameters": parameters(model),
            "inference_cost": cost,
            "history": history.table(),
            # Passes through the training set, in units of one clean epoch of one ResNet-18; unknown of a network that
            # came with its weights.
            "training_units": history.passes * cost / len(context.data.train) if recipe.turns else None,
        }
        return Result(record, weights=model.state_dict())

    described: Json = {
        "recipe": _described(recipe),
        "model": to_table(profile.model),
        "augmentation": {"crop": profile.data.crop, "flip": profile.data.flip},
        "bf16": profile.run.bf16,
        "tf32": profile.run.tf32,
        "threads": profile.run.threads,
    }
    if recipe.turns:
        described["validation"] = dataclasses.asdict(_validation(recipe, profile))
    epochs = recipe.training.epochs if recipe.training else 0
    units = sum(turn.threat.mean_steps() + 2 for turn in recipe.turns) * epochs * recipe.network.experts
    units *= 6 if recipe.network.member == "wrn28-10" else recipe.network.width**1.5
    version = 4 if recipe.network.kind == "advmoe" else 3  # since a folded copy runs all pathways side by side
    return Stage(name, version, described, tuple(f"train:{s}" for s in recipe.starts_from), compute, units * 1e6)


def _validation(recipe: Recipe, profile: Profile) -> Validation:
    # The threat model that picks checkpoints is the one the main table reports, on images the table never uses.
    # Its step size is a quarter of eps, whatever the table's: another evaluation step must not retrain everything.
    assert recipe.training is not None
    eps = float(profile.evaluation.eps)
    return Validation(eps, eps / 4, recipe.training.validation_steps, recipe.select)


def _drawn(recipe: Recipe, context: Context) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(context.seed, recipe.luck or recipe.system, "initial weights"))
        return build(recipe, context.profile, context.data).to(context.device)


def _taught(model: nn.Module, recipe: Recipe, context: Context, checkpoint: Path | None = None) -> History:
    profile, config = context.profile, recipe.training
    assert config is not None
    return train(
        model,
        context.data.to(context.device),
        config=config,
        augmentation=profile.data,
        turns=recipe.turns,
        validation=_validation(recipe, profile),
        seed=hash_seed(context.seed, recipe.luck or recipe.system),
        bf16=profile.run.bf16,
        tf32=profile.run.tf32,
        channels_last=profile.run.channels_last,
        checkpoint=checkpoint,
        label=recipe.system,
        say=context.say,
    )


def relative_cost(model: nn.Module, profile: Profile, data: Dataset) -> float:
    """Operations of one answer, in those of one ResNet-18 of the profile's width on the same images."""
    reference = backbone("resnet18", len(data.classes), profile.model.width, data.shape[-1], data.mean, data.std)
    return operations(model.eval(), data.shape) / operations(reference.eval(), data.shape)


def _control(profile: Profile) -> Stage:
    """The negative control: ADVMoE with the router loss that turns NaN, beside the safe one, and who notices.

    Both begin with a router whose scores lie as far apart as was reported of published code (third party: 320), so
    that a probability underflows; one epoch is enough.
    """
    recipe, safe = unsafe_advmoe(profile)
    n, eps = profile.evaluation.images, float(profile.evaluation.eps)

    def compute(context: Context) -> Result:
        model = _drawn(recipe, context)
        router = model.get_submodule("router")
        with undisturbed(model), torch.no_grad():
            scores = router(context.data.train.images[:128].to(context.device))
            factor = REPORTED_GAP / float((scores.amax(dim=1) - scores.amin(dim=1)).max())
            for parameter in router.get_submodule("head").parameters():
                parameter.mul_(factor)
        mended = copy.deepcopy(model)
        stopped = _refusal(lambda: _taught(model, recipe, context))
        held = _refusal(lambda: _taught(mended, safe, context))
        split = context.data.test.first(n).to(context.device)
        refused = _refusal(lambda: evaluate(model, split, CLEAN, seed=0, label=recipe.system, say=context.say))
        generator = cpu_generator(hash_seed(context.seed, recipe.system, "naive"))
        noise = 2 * uniform(split.images.shape, generator, split.images) - 1
        # What a careless evaluation prints: argmax of NaN is pathway 0, and a step along the sign of a NaN gradient
        # that is taken for zero goes nowhere, so only the attack's random start is left.
        left = [split.images, (split.images + eps * noise).clamp(0, 1)]
        with undisturbed(model), torch.no_grad():
            naive = [int((model(x).argmax(dim=1) == split.labels).sum()) for x in left]
        told: Json = {"training_stopped": stopped, "evaluation_refused": refused, "safe_training_stopped": held}
        told |= {
            "router_not_finite": _not_finite(router),
            "safe_router_not_finite": _not_finite(mended.get_submodule("router")),
        }
        told |= {"naive_clean": naive[0], "naive_attacked": naive[1]}
        return Result({"system": recipe.system, "n": n, "eps": budget_text(profile.evaluation.eps), **told})

    described = {"recipe": _described(recipe), "safe": _described(safe), "gap": REPORTED_GAP}
    described |= {"images": n, "eps": budget_text(profile.evaluation.eps)}
    return Stage(f"control:{recipe.system}", 2, described, (), compute, 1e6)


def _not_finite(module: nn.Module) -> float:
    values = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return float((~torch.isfinite(values)).float().mean())


def _refusal(work: Callable[[], object]) -> str:
    """What the check that stopped ``work`` said; empty if none did."""
    try:
        work()
    except NotFiniteError as error:
        return str(error)
    return ""


def _data(profile: Profile) -> Stage:
    def compute(context: Context) -> Result:
        data = context.data
        counts = {
            name: torch.bincount(split.labels.cpu(), minlength=len(data.classes)).tolist()
            for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test))
        }
        record = {
            "label": data.label,
            "classes": list(data.classes),
            "shape": list(data.shape),
            "mean": list(data.mean),
            "std": list(data.std),
            "counts": counts,
        }
        shown = _one_per_class(data.test)
        return Result(record, {"images": shown.images.cpu(), "labels": shown.labels.cpu()})

    return Stage("data", 1, to_table(profile.data), (), compute)


def _trace(recipe: Recipe, profile: Profile) -> Stage:
    spec = headline(profile.evaluation)
    n = min(profile.evaluation.images, 256)

    def compute(context: Context) -> Result:
        split = context.data.test.first(n).to(context.device)
        losses: list[float] = []
        accuracies: list[float] = []

        def watched(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            logits, values = cross_entropy(model, x, y)
            losses.append(float(values.detach().mean()))
            accuracies.append(float((logits.argmax(dim=1) == y).float().mean()))
            return logits, values

        generator = cpu_generator(hash_seed(context.seed, "trace"))
        model = context.model(recipe.system)
        # One step more than asked: the objective sees iterates 0 to ``steps``.
        pgd(
            model,
            *_pair(split),
            eps=spec.eps,
            step_size=spec.step,
            steps=spec.steps + 1,
            generator=generator,
            objective=watched,
        )
        table = {"system": recipe.system, "attack": spec.table(), "n": n}
        return Result({**table, "loss": losses, "accuracy_at_iterate": accuracies})

    config = {"attack": spec.table(), "images": n}
    cost = n * spec.steps * recipe.network.experts
    return Stage(f"trace:{recipe.system}", 2, config, weights_of(recipe, profile), compute, cost)


def gate_attacks(profile: Profile) -> list[tuple[str, Fraction]]:
    """The attacks under which the gate is watched: (kind, eps), clean first."""
    sweep_eps = profile.evaluation.eps_sweep
    return [("clean", Fraction(0)), *((kind, eps) for kind in ("fgsm", "pgd") for eps in sweep_eps)]


def _gate(recipe: Recipe, profile: Profile, watched: Sequence[tuple[str, Fraction]]) -> Stage:
    steps = profile.phase2.validation_steps
    n = profile.evaluation.images

    def compute(context: Context) -> Result:
        split = context.data.test.first(n).to(context.device)
        model = context.model(recipe.system)
        arrays: dict[str, Tensor] = {"labels": split.labels.cpu()}
        rows = []
        for kind, eps in watched:
            x = _strike(model, split, kind, eps, steps, hash_seed(context.seed, "gate"))
            weights = _gate_weights(model, x)
            name = kind if kind == "clean" else f"{kind}@{budget_text(eps)}"
            arrays[name] = weights.half()
            rows.append({"attack": name, "kind": kind, "eps": budget_text(eps), **_gate_health(weights)})
        return Result({"system": recipe.system, "n": n, "pgd_steps": steps, "rows": rows}, arrays)

    attacks = [f"{kind}@{budget_text(eps)}" for kind, eps in watched]
    config = {"attacks": attacks, "images": n, "steps": steps}
    cost = n * steps * len(watched) / 2 * recipe.network.experts
    return Stage(f"gate:{recipe.system}", 2, config, weights_of(recipe, profile), compute, cost)


def _gallery(recipe: Recipe, profile: Profile) -> Stage:
    eps, steps = profile.evaluation.eps, profile.phase2.validation_steps

    def compute(context: Context) -> Result:
        split = _one_per_class(context.data.test).to(context.device)
        model = context.model(recipe.system)
        arrays = {"labels": split.labels.cpu()}
        for kind in ("clean", "fgsm", "pgd"):
            x = _strike(model, split, kind, eps, steps, hash_seed(context.seed, "gallery"))
            arrays[f"{kind}/images"] = x.cpu()
            with undisturbed(model), torch.no_grad():
                if isinstance(model, Mixture):
                    evidence = model.evidence(x)
                    arrays[f"{kind}/expert_logits"] = evidence.expert_logits.cpu()
                    arrays[f"{kind}/gate_weights"] = evidence.gate_weights.cpu()
                    arrays[f"{kind}/logits"] = evidence.logits.cpu()
                else:
                    arrays[f"{kind}/logits"] = model(x).cpu()
        return Result({"system": recipe.system, "eps": budget_text(eps), "pgd_steps": steps}, arrays)

    config = {"eps": budget_text(eps), "steps": steps}
    cost = 10 * steps * recipe.network.experts
    return Stage(f"gallery:{recipe.system}", 2, config, weights_of(recipe, profile), compute, cost)


def _strike(model: nn.Module, split: Split, kind: str, eps: Fraction, steps: int, seed: int) -> Tensor:
    if kind == "clean":
        return split.images
    if kind == "fgsm":
        return fgsm(model, *_pair(split), eps=eps)
    generator = cpu_generator(seed)
    return pgd(model, *_pair(split), eps=eps, step_size=eps / 4, steps=steps, generator=generator)


def _gate_weights(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    with undisturbed(model), torch.no_grad():
        return torch.cat([model.evidence(part).gate_weights for part in x.split(batch)]).cpu()  # type: ignore[operator]


def _gate_health(weights: Tensor) -> Json:
    """Mean weight of each expert; how decided the gate is (mean entropy, nats); how often its favourite leads."""
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=1)
    favourite = torch.bincount(weights.argmax(dim=1), minlength=weights.shape[1]).max()
    return {
        "mean_weights": weights.mean(dim=0).tolist(),
        "entropy": float(entropy.mean()),
        "favourite_share": int(favourite) / len(weights),
    }


def _one_per_class(split: Split) -> Split:
    first = [int((split.labels == label).nonzero()[0]) for label in split.labels.unique(sorted=True)]
    index = torch.tensor(first, device=split.labels.device)
    return Split(split.images[index], split.labels[index])


def _pair(split: Split) -> tuple[Tensor, Tensor]:
    return split.images, split.labels


def _described(recipe: Recipe) -> Json:
    """What of a recipe decides numbers."""
    told: Json = _as_json(recipe)
    unused = ("story", "family", "own", *(() if recipe.code else ("code",)))
    return {key: value for key, value in told.items() if key not in unused}


def _as_json(value: Any) -> Any:
    """Dataclasses with the name of their class, so that two threats never look alike."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _as_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_as_json(item) for item in value]
    return value
