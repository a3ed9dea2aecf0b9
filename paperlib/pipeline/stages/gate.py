"""Stages of the gate weights under attack, and of the gallery: one image of each class with its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from paperlib.attacks import fgsm, pgd
from paperlib.config.budgets import budget_text
from paperlib.config.schema import Profile
from paperlib.data import Split
from paperlib.models import Mixture
from paperlib.models.modes import eval_mode
from paperlib.pipeline.stage import Context, Json, Result, Stage
from paperlib.seeds import cpu_generator, hash_seed
from paperlib.shapes import GateWeights, Images
from paperlib.systems.build import System, system_of
from paperlib.systems.recipe import Recipe

GATE_BATCH = 500  # images whose gate weights are computed at once


@dataclass(frozen=True)
class GateConfiguration:
    """The gate weights of the first images of the test split, clean and under FGSM and PGD at several eps."""

    system: System
    attacks: tuple[tuple[str, Fraction], ...]  # (kind, eps)
    images: int
    steps: int  # of PGD, each a quarter of eps


@dataclass(frozen=True)
class GalleryConfiguration:
    """The first test image of each class, clean and under FGSM and PGD, with logits and gate weights."""

    system: System
    eps: Fraction
    steps: int  # of PGD, each a quarter of eps


def gate_attacks(profile: Profile) -> tuple[tuple[str, Fraction], ...]:
    """The attacks of the eps sweep under which gate weights are recorded: (kind, eps), clean first."""
    eps_sweep = profile.evaluation.eps_sweep
    return (("clean", Fraction(0)), *((kind, eps) for kind in ("fgsm", "pgd") for eps in eps_sweep))


def gate(recipe: Recipe, profile: Profile, attacks: Sequence[tuple[str, Fraction]]) -> Stage:
    """``gate:SYSTEM``."""
    system = system_of(recipe, profile)
    config = GateConfiguration(system, tuple(attacks), profile.evaluation.images, profile.phase2.validation_steps)
    cost = config.images * config.steps * len(attacks) / 2 * recipe.network.experts
    return Stage(f"gate:{recipe.system}", 2, config, system.weights, _gate, profile.run.threads, cost)


def _gate(context: Context, config: GateConfiguration) -> Result:
    split = context.data.test.first(config.images).to(context.device)
    model = context.model(config.system)
    arrays: dict[str, Tensor] = {"labels": split.labels.cpu()}
    rows = []
    for kind, eps in config.attacks:
        x = _attacked(model, split, kind, eps, config.steps, hash_seed(context.seed, "gate"))
        weights = _gate_weights(model, x)
        name = kind if kind == "clean" else f"{kind}@{budget_text(eps)}"
        arrays[name] = weights.half()
        rows.append({"attack": name, "kind": kind, "eps": budget_text(eps), **_gate_statistics(weights)})
    record = {"system": config.system.name, "n": config.images, "pgd_steps": config.steps, "rows": rows}
    return Result(record, arrays)


def gallery(recipe: Recipe, profile: Profile) -> Stage:
    """``gallery:SYSTEM``."""
    system = system_of(recipe, profile)
    config = GalleryConfiguration(system, profile.evaluation.eps, profile.phase2.validation_steps)
    cost = 10 * config.steps * recipe.network.experts
    return Stage(f"gallery:{recipe.system}", 2, config, system.weights, _gallery, profile.run.threads, cost)


def _gallery(context: Context, config: GalleryConfiguration) -> Result:
    split = one_per_class(context.data.test).to(context.device)
    model = context.model(config.system)
    arrays = {"labels": split.labels.cpu()}
    for kind in ("clean", "fgsm", "pgd"):
        x = _attacked(model, split, kind, config.eps, config.steps, hash_seed(context.seed, "gallery"))
        arrays[f"{kind}/images"] = x.cpu()
        with eval_mode(model), torch.no_grad():
            if isinstance(model, Mixture):
                output = model.forward_with_experts(x)
                arrays[f"{kind}/expert_logits"] = output.expert_logits.cpu()
                arrays[f"{kind}/gate_weights"] = output.gate_weights.cpu()
                arrays[f"{kind}/logits"] = output.logits.cpu()
            else:
                arrays[f"{kind}/logits"] = model(x).cpu()
    record = {"system": config.system.name, "eps": budget_text(config.eps), "pgd_steps": config.steps}
    return Result(record, arrays)


def one_per_class(split: Split) -> Split:
    """The first image of each class, in label order."""
    first = [int((split.labels == label).nonzero()[0]) for label in split.labels.unique(sorted=True)]
    index = torch.tensor(first, device=split.labels.device)
    return Split(split.images[index], split.labels[index])


def _attacked(model: nn.Module, split: Split, kind: str, eps: Fraction, steps: int, seed: int) -> Images:
    if kind == "clean":
        return split.images
    if kind == "fgsm":
        return fgsm(model, split.images, split.labels, eps=eps)
    generator = cpu_generator(seed)
    return pgd(model, split.images, split.labels, eps=eps, step_size=eps / 4, steps=steps, generator=generator)


def _gate_weights(model: nn.Module, x: Images) -> GateWeights:
    with eval_mode(model), torch.no_grad():
        parts = [model.forward_with_experts(part).gate_weights for part in x.split(GATE_BATCH)]  # type: ignore[operator]
    return torch.cat(parts).cpu()


def _gate_statistics(weights: GateWeights) -> Json:
    """Mean weight of each expert; mean entropy (nats); share of images with the most frequent top-1 expert."""
    entropy = -(weights * weights.clamp_min(1e-12).log()).sum(dim=1)
    most_frequent = torch.bincount(weights.argmax(dim=1), minlength=weights.shape[1]).max()
    return {
        "mean_weights": weights.mean(dim=0).tolist(),
        "entropy": float(entropy.mean()),
        "favourite_share": int(most_frequent) / len(weights),
    }
