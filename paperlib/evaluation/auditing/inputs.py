"""What an audit accepts: the model, the images, and what is claimed of them."""

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


def as_claim(claimed: float | Tensor | None) -> float | None:
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
    """The images behind the claim in float32; whether they keep to the ball is for a check to find."""
    if adversarial is None:
        return None
    x = split.images
    given = outside_graph(check_shape("adversarial", adversarial, tuple(x.shape)))
    rounding = torch.finfo(given.dtype).eps / 2  # of a pixel of 1
    exact = given.to(x)
    if given.dtype not in (torch.float16, torch.bfloat16):
        return exact
    inside = torch.minimum(torch.maximum(exact, x - eps), x + eps).clamp(0, 1)
    return torch.where((inside - exact).abs() <= rounding, inside, exact)


def check_outcomes(
    split: Split, selected_on: Tensor | None, outcomes: Mapping[str, Tensor], won_by: Tensor | None
) -> None:
    """Require that what is said of the images fits them."""
    if selected_on is not None:
        check_shape("selected_on", selected_on, ("M", *split.images.shape[1:]))
    outcomes = outcomes if won_by is None else {**outcomes, "won_by": won_by}
    for name, kept in outcomes.items():
        if not isinstance(kept, Tensor) or kept.shape != (len(split),):
            raise InputError(f"known outcome {name!r}: expected a tensor ({len(split)},), one value per image")


def as_surrogates(given: Mapping[str, nn.Module] | nn.Module | None, x: Tensor, classes: int) -> dict[str, nn.Module]:
    """Other networks by name, each of as many classes as the model."""
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        check_module(given, "transfer_from")
    found: dict[str, nn.Module] = {}
    for name, model in (given if isinstance(given, Mapping) else {"another network": given}).items():
        what = f"transfer_from {name!r}"
        traits = look(check_module(model, what), x, gradient=True, name=what)
        if not traits.has_gradient:
            raise no_gradient(what)
        if traits.classes != classes:
            raise InputError(f"{what}: knows {traits.classes} classes, the model {classes}")
        found[name] = adapt(model, traits)
    return found


def as_audited_model(model: nn.Module, split: Split, label: str, batch_size: int) -> tuple[nn.Module, int]:
    """A copy to be audited of a model in evaluation mode that wants pixels in [0, 1], and its number of classes."""
    model = _copy_of(check_module(model, label), label)
    traits = look(model, split.images, gradient=True, name=label)
    model = adapt(model, traits)
    if not traits.has_gradient:
        model = ZeroGradient(model)
    x, y = split.images, split.labels
    clean, scaled = _right(model, x, y, batch_size, label), 0.0
    if clean is not None and clean < 0.5:
        with suppress(Exception):  # it may refuse such pixels
            scaled = _right(copy.deepcopy(model), 255 * x, y, batch_size, label) or 0.0
        if scaled > max(0.5, clean + 0.2) and (scaled - clean) * len(split) > 5:  # no luck of a few images
            raise InputError(
                f"{label}: is right on {clean:.1%} of the images and on {scaled:.1%} when pixels are multiplied by "
                "255, so it wants 0..255; wrap it in a module that takes [0, 1] and multiplies by 255"
            )
    return model, traits.classes


def _copy_of(model: nn.Module, label: str) -> nn.Module:
    """A copy, so that nothing in the model handed in changes; one that has no mode to change is in evaluation mode."""
    modes = has_modes(model)
    if modes and model.training:
        raise InputError(f"{label}: is in training mode, where answers depend on the batch; call model.eval() first")
    try:
        with torch.no_grad():  # TorchScript would record the copies of weights, and gradients reach the originals
            copied = copy.deepcopy(model)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{label}: cannot be copied ({type(error).__name__}: {reason})") from error
    if not modes:
        for module in copied.modules():
            module.training = False
    return copied


def _right(model: nn.Module, x: Tensor, y: Tensor, batch_size: int, label: str) -> float | None:
    """The share of answers that are right; None where some are not finite, which is a finding and no error."""
    try:
        return share(~misclassified(Folded(model, model), x, y, batch_size, label))
    except NotFiniteError:
        return None
