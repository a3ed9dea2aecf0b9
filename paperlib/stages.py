"""The graph of computations: every training run and every measurement of the series as a named stage.

A stage says what it depends on (configuration, inputs, version of its code) and how it is computed; `paperlib.study`
finds its result or computes it. Raise ``version`` when a change of code changes numbers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.attacks import cross_entropy, fgsm, pgd, undisturbed
from paperlib.data import Dataset, Split
from paperlib.evaluation import AttackSpec, battery, evaluate, headline, sweep
from paperlib.models import Mixture, parameters
from paperlib.profiles import Profile, budget_text, to_table
from paperlib.progress import Say
from paperlib.training.recipes import EXPERTS, TRAINABLE, Recipe, recipes
from paperlib.training.trainer import Validation, hash_seed, train

Json = dict[str, Any]

# The systems compared everywhere; the experts join them in the main table's battery.
COMPARED = ("plain", "pgd-at", "uniform", "frozen", "dwf")
GATED = ("frozen", "dwf")
TRACED = ("plain", "pgd-at", "dwf")
SHOWN = ("plain", "dwf")
PUBLISHED_WEIGHTS = ("dwf",)


class Context(Protocol):
    """What a computation may ask for."""

    profile: Profile
    seed: int
    device: torch.device
    say: Say

    @property
    def data(self) -> Dataset: ...

    def build(self, system: str) -> nn.Module: ...

    def model(self, system: str) -> nn.Module: ...

    def checkpoint(self, stage: str) -> Path: ...


@dataclass(frozen=True)
class Result:
    """What a computation returns; the store adds provenance."""

    record: Json
    arrays: Mapping[str, Tensor] = field(default_factory=dict)
    weights: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A named computation."""

    name: str
    version: int
    config: Json  # all that decides the result, beside data, seed and inputs
    inputs: tuple[str, ...]  # stages whose weights it needs
    compute: Callable[[Context], Result]
    cost: float = 0.0  # expected network passes, to start long stages first


def stages(profile: Profile) -> dict[str, Stage]:
    """Every stage of the series at the scale of ``profile``, by name, inputs before what uses them."""
    known = recipes(profile)
    listed = [_data(profile)]
    listed += [_train(recipe, profile) for recipe in known.values() if recipe.training]
    for recipe in known.values():
        specs = battery(profile.evaluation)
        if recipe.system in COMPARED:
            specs += [spec for spec in sweep(profile.evaluation) if spec not in specs]
        listed += [evaluation(recipe, spec, profile) for spec in specs]
    listed += [_trace(known[system], profile) for system in TRACED]
    listed += [_gate(known[system], profile) for system in GATED]
    listed += [_gallery(known[system], profile) for system in SHOWN]
    return {stage.name: stage for stage in listed}


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
    cost = n * (spec.steps * spec.restarts + 1) * _networks(recipe)
    return Stage(f"evaluate:{recipe.system}:{spec.name}", 2, config, _weights_of(recipe), compute, cost)


def _train(recipe: Recipe, profile: Profile) -> Stage:
    config = recipe.training
    assert config is not None and recipe.threat is not None
    threat = recipe.threat
    name = f"train:{recipe.system}"
    # The threat model that picks checkpoints is the one the main table reports, on images the table never uses.
    # Its step size is a quarter of eps, whatever the table's: another evaluation step must not retrain everything.
    eps = float(profile.evaluation.eps)
    how = Validation(eps, eps / 4, config.validation_steps, recipe.select)

    def compute(context: Context) -> Result:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(hash_seed(context.seed, recipe.system, "initial weights"))
            model = context.build(recipe.system)
        if recipe.starts_from:
            _load_experts(model, [context.model(system) for system in recipe.starts_from])
        history = train(
            model.to(context.device),
            context.data.to(context.device),
            config=config,
            augmentation=profile.data,
            threat=threat,
            validation=how,
            seed=hash_seed(context.seed, recipe.system),
            trainable=TRAINABLE[recipe.trainable],
            bf16=profile.run.bf16,
            tf32=profile.run.tf32,
            channels_last=profile.run.channels_last,
            checkpoint=context.checkpoint(name),
            label=recipe.system,
            say=context.say,
        )
        record = {
            "system": recipe.system,
            "story": recipe.story,
            "parameters": parameters(model),
            "networks": _networks(recipe),
            "history": history.table(),
            # Passes of single networks through the training set, in units of one clean epoch of one network.
            "training_units": history.passes * _networks(recipe) / len(context.data.train),
        }
        return Result(record, weights=model.state_dict())

    described = {
        "recipe": {**_described(recipe), "story": ""},
        "model": to_table(profile.model),
        "augmentation": {"crop": profile.data.crop, "flip": profile.data.flip},
        "validation": dataclasses.asdict(how),
        "bf16": profile.run.bf16,
        "tf32": profile.run.tf32,
        "threads": profile.run.threads,
    }
    units = (threat.mean_steps() + 1) * config.epochs * _networks(recipe)
    return Stage(name, 2, described, tuple(f"train:{s}" for s in recipe.starts_from), compute, units * 1e6)


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

        generator = torch.Generator(context.device).manual_seed(hash_seed(context.seed, "trace"))
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
    cost = n * spec.steps * _networks(recipe)
    return Stage(f"trace:{recipe.system}", 2, config, _weights_of(recipe), compute, cost)


def gate_attacks(profile: Profile) -> list[tuple[str, Fraction]]:
    """The attacks under which the gate is watched: (kind, eps), clean first."""
    sweep_eps = profile.evaluation.eps_sweep
    return [("clean", Fraction(0)), *((kind, eps) for kind in ("fgsm", "pgd") for eps in sweep_eps)]


def _gate(recipe: Recipe, profile: Profile) -> Stage:
    steps = profile.phase2.validation_steps
    n = profile.evaluation.images

    def compute(context: Context) -> Result:
        split = context.data.test.first(n).to(context.device)
        model = context.model(recipe.system)
        arrays: dict[str, Tensor] = {"labels": split.labels.cpu()}
        rows = []
        for kind, eps in gate_attacks(profile):
            x = _strike(model, split, kind, eps, steps, hash_seed(context.seed, "gate"))
            weights = _gate_weights(model, x)
            name = kind if kind == "clean" else f"{kind}@{budget_text(eps)}"
            arrays[name] = weights.half()
            rows.append({"attack": name, "kind": kind, "eps": budget_text(eps), **_gate_health(weights)})
        return Result({"system": recipe.system, "n": n, "pgd_steps": steps, "rows": rows}, arrays)

    attacks = [f"{kind}@{budget_text(eps)}" for kind, eps in gate_attacks(profile)]
    config = {"attacks": attacks, "images": n, "steps": steps}
    cost = n * steps * len(profile.evaluation.eps_sweep) * _networks(recipe)
    return Stage(f"gate:{recipe.system}", 2, config, _weights_of(recipe), compute, cost)


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
    return Stage(
        f"gallery:{recipe.system}", 2, config, _weights_of(recipe), compute, cost=10 * steps * _networks(recipe)
    )


def _strike(model: nn.Module, split: Split, kind: str, eps: Fraction, steps: int, seed: int) -> Tensor:
    if kind == "clean":
        return split.images
    if kind == "fgsm":
        return fgsm(model, *_pair(split), eps=eps)
    generator = torch.Generator(split.images.device).manual_seed(seed)
    return pgd(model, *_pair(split), eps=eps, step_size=eps / 4, steps=steps, generator=generator)


def _gate_weights(model: nn.Module, x: Tensor, batch: int = 500) -> Tensor:
    gate = model.get_submodule("gate")
    with undisturbed(model), torch.no_grad():
        return torch.cat([torch.softmax(gate(part), dim=1) for part in x.split(batch)]).cpu()


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


def _load_experts(model: nn.Module, experts: list[nn.Module]) -> None:
    assert isinstance(model, Mixture)
    for own, trained in zip(model.experts, experts, strict=True):
        own.load_state_dict(trained.state_dict())


def _pair(split: Split) -> tuple[Tensor, Tensor]:
    return split.images, split.labels


def _networks(recipe: Recipe) -> int:
    return len(EXPERTS) if recipe.network == "mixture" else 1


def _weights_of(recipe: Recipe) -> tuple[str, ...]:
    systems = (recipe.system,) if recipe.training else recipe.starts_from
    return tuple(f"train:{system}" for system in systems)


def _described(value: Any) -> Any:
    """A recipe as JSON: dataclasses with the name of their class, so that two threats never look alike."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: _described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **fields}
    if isinstance(value, tuple):
        return [_described(item) for item in value]
    return value
