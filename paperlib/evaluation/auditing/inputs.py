"""Checks and conversions of the arguments of `audit`."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from contextlib import suppress

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded
from paperlib.arguments import check_shape, outside_graph
from paperlib.attacks.early_stopping import misclassified
from paperlib.attacks.inputs import adapt, check_module, look, no_gradient
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation.auditing.context import share
from paperlib.models.adapters import ZeroGradient
from paperlib.models.modes import has_modes
from paperlib.shapes import Images


def as_claim(claimed: float | Tensor | None) -> float | None:
    """The claimed accuracy as a float in [0, 1]. Raises InputError for anything else."""
    if claimed is None:
        return None
    try:
        if isinstance(claimed, str | bool):
            raise TypeError
        number = float(claimed)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"claimed={claimed!r}: expected one number, a fraction from 0 to 1") from error
    if not 0 <= number <= 1:
        raise InputError(f"claimed={number:g}: an accuracy is a fraction from 0 to 1; did you mean {number:g}/100?")
    return number


def as_adversarial(adversarial: Tensor | None, split: Split, eps: float) -> Tensor | None:
    """The adversarial images of the claim in float32; a check tests later whether they lie in the ball of ``eps``.

    Of half-precision images, pixels within rounding error of the ball and of [0, 1] are moved into them.

    Raises:
        InputError: another shape than that of the images, or no float tensor.
    """
    if adversarial is None:
        return None
    x = split.images
    images = outside_graph(check_shape("adversarial", adversarial, tuple(x.shape)))
    rounding = torch.finfo(images.dtype).eps / 2  # the largest rounding error of a pixel, in [0, 1]
    exact = images.to(x)
    if images.dtype not in (torch.float16, torch.bfloat16):
        return exact
    inside = torch.minimum(torch.maximum(exact, x - eps), x + eps).clamp(0, 1)
    return torch.where((inside - exact).abs() <= rounding, inside, exact)


def check_outcomes(
    split: Split, selected_on: Tensor | None, outcomes: Mapping[str, Tensor], won_by: Tensor | None
) -> None:
    """Require that ``selected_on`` and all outcomes have the shape of the images. Raises InputError."""
    if selected_on is not None:
        check_shape("selected_on", selected_on, ("M", *split.images.shape[1:]))
    outcomes = outcomes if won_by is None else {**outcomes, "won_by": won_by}
    for name, outcome in outcomes.items():
        if not isinstance(outcome, Tensor) or outcome.shape != (len(split),):
            raise InputError(f"outcome {name!r}: expected a tensor ({len(split)},), one value per image")


def as_surrogates(
    networks: Mapping[str, nn.Module] | nn.Module | None, x: Images, classes: int
) -> dict[str, nn.Module]:
    """The networks of ``transfer_from`` by name.

    Raises:
        InputError: no module, another number of classes than the model, or logits without a gradient.
    """
    if networks is None:
        return {}
    if not isinstance(networks, Mapping):
        networks = {"another network": check_module(networks, "transfer_from")}
    surrogates: dict[str, nn.Module] = {}
    for name, model in networks.items():
        label = f"transfer_from {name!r}"
        traits = look(check_module(model, label), x, gradient=True, name=label)
        if not traits.has_gradient:
            raise no_gradient(label)
        if traits.classes != classes:
            raise InputError(f"{label}: knows {traits.classes} classes, the model {classes}")
        surrogates[name] = adapt(model, traits)
    return surrogates


def as_audited_model(model: nn.Module, split: Split, label: str, batch_size: int) -> tuple[nn.Module, int]:
    """A copy of the model for the audit, wrapped if necessary, and its number of classes.

    Raises:
        InputError: a model that is in training mode, cannot be copied, or expects pixels in [0, 255].
    """
    model = _copy_of(check_module(model, label), label)
    traits = look(model, split.images, gradient=True, name=label)
    model = adapt(model, traits)
    if not traits.has_gradient:
        model = ZeroGradient(model)
    x, y = split.images, split.labels
    clean, scaled = _accuracy(model, x, y, batch_size, label), 0.0
    if clean is not None and clean < 0.5:
        with suppress(Exception):  # the model may reject such pixels
            scaled = _accuracy(copy.deepcopy(model), 255 * x, y, batch_size, label) or 0.0
        if scaled > max(0.5, clean + 0.2) and (scaled - clean) * len(split) > 5:  # more than a few images by chance
            raise InputError(
                f"{label}: classifies {clean:.1%} of the images correctly, and {scaled:.1%} when pixels are multiplied "
                "by 255, so it expects 0..255; wrap it in a module that takes [0, 1] and multiplies by 255"
            )
    return model, traits.classes


def _copy_of(model: nn.Module, label: str) -> nn.Module:
    """A copy, so that the audit does not change the model; one without a mode is marked as in evaluation mode."""
    modes = has_modes(model)
    if modes and model.training:
        raise InputError(f"{label}: is in training mode, where logits depend on the batch; call model.eval() first")
    try:
        with torch.no_grad():  # else TorchScript records the copying, and gradients reach the original weights
            copied = copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{label}: cannot be copied ({type(error).__name__}: {reason})") from error
    if not modes:
        for module in copied.modules():
            module.training = False
    return copied


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, label: str) -> float | None:
    """The accuracy on clean images; None if logits are not finite, which a check reports later."""
    try:
        return share(~misclassified(Folded(model, model), x, y, batch_size, label))
    except NotFiniteError:
        return None
