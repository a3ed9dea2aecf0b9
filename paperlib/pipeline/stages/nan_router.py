"""A negative control of training: ADVMoE with a router loss that becomes NaN, and with the safe loss."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import nn

from paperlib.config.budgets import budget_text
from paperlib.config.schema import Profile
from paperlib.errors import NotFiniteError
from paperlib.evaluation import CLEAN, evaluate
from paperlib.models.modes import eval_mode
from paperlib.pipeline.stage import Context, Json, Result, Stage
from paperlib.pipeline.stages.train import TrainConfiguration, TrainingRun, configuration, draw_network, train_network
from paperlib.seeds import cpu_generator, hash_seed, uniform
from paperlib.systems.defences import unsafe_advmoe

REPORTED_GAP = 320.0  # between router scores, when the loss of published ADVMoE code became NaN


@dataclass(frozen=True)
class NanRouterConfiguration:
    """Two trainings of one network that differ in the router's loss only, and the evaluation after them."""

    unsafe: TrainConfiguration
    safe: TrainingRun
    gap: float  # between the router's scores at the start
    images: int
    eps: Fraction


def nan_router(profile: Profile) -> Stage:
    """``control:advmoe-unsafe``: whether training stops, and evaluation refuses the network, if a router becomes NaN.

    Both trainings start with the largest gap between router scores that was reported of published code (by a third
    party: 320), so that a probability underflows to zero. One epoch is enough.
    """
    unsafe, safe = (configuration(recipe, profile) for recipe in unsafe_advmoe(profile))
    settings = profile.evaluation
    assert safe.run is not None
    config = NanRouterConfiguration(unsafe, safe.run, REPORTED_GAP, settings.images, settings.eps)
    return Stage(f"control:{unsafe.system}", 2, config, (), _nan_router, profile.run.threads, 1e6)


def _nan_router(context: Context, config: NanRouterConfiguration) -> Result:
    name, eps = config.unsafe.system, float(config.eps)
    model = draw_network(context, config.unsafe)
    router = model.get_submodule("router")
    with eval_mode(model), torch.no_grad():
        scores = router(context.data.train.images[:128].to(context.device))
        factor = config.gap / float((scores.amax(dim=1) - scores.amin(dim=1)).max())
        for parameter in router.get_submodule("head").parameters():
            parameter.mul_(factor)
    safe = copy.deepcopy(model)
    stopped = _refusal(lambda: train_network(model, context, config.unsafe))
    safe_stopped = _refusal(lambda: train_network(safe, context, replace(config.unsafe, run=config.safe)))
    split = context.data.test.first(config.images).to(context.device)
    refused = _refusal(lambda: evaluate(model, split, CLEAN, seed=0, label=name))
    generator = cpu_generator(hash_seed(context.seed, name, "naive"))
    noise = 2 * uniform(split.images.shape, generator, split.images) - 1
    # The accuracy that an evaluation without a check for NaN reports. The argmax of NaN scores is pathway 0. If a NaN
    # gradient is replaced by zero, the steps of an attack change nothing, so only its random start remains.
    naive_inputs = [split.images, (split.images + eps * noise).clamp(0, 1)]
    with eval_mode(model), torch.no_grad():
        naive = [int((model(x).argmax(dim=1) == split.labels).sum()) for x in naive_inputs]
    record: Json = {"system": name, "n": config.images, "eps": budget_text(config.eps)}
    record |= {"training_stopped": stopped, "evaluation_refused": refused, "safe_training_stopped": safe_stopped}
    record |= {"router_not_finite": _not_finite(router)}
    record |= {"safe_router_not_finite": _not_finite(safe.get_submodule("router"))}
    return Result({**record, "naive_clean": naive[0], "naive_attacked": naive[1]})


def _not_finite(module: nn.Module) -> float:
    values = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    return float((~torch.isfinite(values)).float().mean())


def _refusal(work: Callable[[], object]) -> str:
    """The message of the check that stopped ``work``; empty if no check did."""
    try:
        work()
    except NotFiniteError as error:
        return str(error)
    return ""
