"""Training stages: the weights of one system, and its training history."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from paperlib.config.schema import Profile, TrainConfig
from paperlib.data import Dataset
from paperlib.models import backbone, operations, parameters
from paperlib.pipeline.stage import Context, Result, Stage
from paperlib.seeds import hash_seed
from paperlib.systems.build import Architecture, architecture_of, load_experts
from paperlib.systems.recipe import Recipe
from paperlib.training.history import History
from paperlib.training.trainer import Augmentation, train
from paperlib.training.update import UpdateStep
from paperlib.training.validation import Validation


@dataclass(frozen=True)
class TrainingRun:
    """The training of a network: update steps of each batch, schedule, selection of the checkpoint, arithmetic."""

    update_steps: tuple[UpdateStep, ...]
    schedule: TrainConfig
    validation: Validation
    augmentation: Augmentation
    bf16: bool
    tf32: bool
    channels_last: bool


@dataclass(frozen=True)
class TrainConfiguration:
    """All that decides the weights of a system, except data, seed and the weights that it starts from."""

    system: str
    architecture: Architecture
    seed_group: str  # systems of one group share initial weights, batches and attacks
    reference_width: int  # width of the ResNet-18 whose operations are the unit of cost
    starts_from: tuple[str, ...] = ()  # training stages of its experts, in order
    run: TrainingRun | None = None  # None for a network with given weights


def training(recipe: Recipe, profile: Profile) -> Stage:
    """``train:SYSTEM``."""
    config = configuration(recipe, profile)
    epochs = recipe.training.epochs if recipe.training else 0
    units = (
        sum(update_step.attack.mean_steps() + 2 for update_step in recipe.update_steps)
        * epochs
        * recipe.network.experts
    )
    units *= 6 if recipe.network.member == "wrn28-10" else recipe.network.width**1.5
    # Raised for advmoe when a folded copy computed all pathways at once, for own when dropout became active.
    version = 4 if recipe.network.kind in ("advmoe", "own") else 3
    return Stage(
        f"train:{recipe.system}", version, config, config.starts_from, _train, profile.run.threads, units * 1e6
    )


def configuration(recipe: Recipe, profile: Profile) -> TrainConfiguration:
    """The training configuration of a recipe at the scale of a profile."""
    run = None
    if recipe.update_steps:
        assert recipe.training is not None
        run = TrainingRun(
            update_steps=recipe.update_steps,
            schedule=recipe.training,
            validation=_validation(recipe, profile),
            augmentation=Augmentation(profile.data.crop, profile.data.flip),
            bf16=profile.run.bf16,
            tf32=profile.run.tf32,
            channels_last=profile.run.channels_last,
        )
    return TrainConfiguration(
        system=recipe.system,
        architecture=architecture_of(recipe, profile.model),
        starts_from=tuple(f"train:{name}" for name in recipe.starts_from),
        seed_group=recipe.seed_group or recipe.system,
        reference_width=profile.model.width,
        run=run,
    )


def _validation(recipe: Recipe, profile: Profile) -> Validation:
    # Checkpoints are selected under the threat model of the main table, on the validation split. The step size is
    # eps / 4 and does not depend on the table's, so that another evaluation step does not retrain all systems.
    assert recipe.training is not None
    eps = float(profile.evaluation.eps)
    return Validation(eps, eps / 4, recipe.training.validation_steps, recipe.select)


def _train(context: Context, config: TrainConfiguration) -> Result:
    model = draw_network(context, config)
    load_experts(model, [context.weights(stage) for stage in config.starts_from])
    history = History()
    if config.run:
        history = train_network(model, context, config, context.checkpoint(f"train:{config.system}"))
    cost = relative_cost(model, context.data, config.reference_width)
    record = {
        "system": config.system,
        "parameters": parameters(model),
        "inference_cost": cost,
        "history": history.table(),
        # Unit: one clean epoch of one ResNet-18. None for a network with given weights.
        "training_units": history.passes * cost / len(context.data.train) if config.run else None,
    }
    return Result(record, weights=model.state_dict())


def draw_network(context: Context, config: TrainConfiguration) -> nn.Module:
    """The untrained network with the initial weights of its seed group."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(hash_seed(context.seed, config.seed_group, "initial weights"))
        return context.build(config.architecture).to(context.device)


def train_network(
    model: nn.Module, context: Context, config: TrainConfiguration, checkpoint: Path | None = None
) -> History:
    """Train a network in place as its configuration describes."""
    run = config.run
    assert run is not None
    return train(
        model,
        context.data.to(context.device),
        config=run.schedule,
        augmentation=run.augmentation,
        update_steps=run.update_steps,
        validation=run.validation,
        seed=hash_seed(context.seed, config.seed_group),
        bf16=run.bf16,
        tf32=run.tf32,
        channels_last=run.channels_last,
        checkpoint=checkpoint,
        label=config.system,
    )


def relative_cost(model: nn.Module, data: Dataset, width: int) -> float:
    """Operations of one forward pass, relative to one ResNet-18 of the given width on the same images."""
    reference = backbone("resnet18", len(data.classes), width, data.shape[-1], data.mean, data.std)
    return operations(model.eval(), data.shape) / operations(reference.eval(), data.shape)
