"""The gradient of an objective with respect to the pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperlib.attacks.objectives import Objective
from paperlib.errors import InputError, NotFiniteError
from paperlib.shapes import Images


def input_gradient(
    model: nn.Module, x: Images, y: Tensor, objective: Objective, *, needed: bool = True
) -> tuple[Tensor, Images]:
    """The model's logits (N, classes) for the images ``x`` (N, C, H, W), and the gradient (N, C, H, W).

    Args:
        y: labels (N,), or the targets of the objective, a row for each image.
        needed: False computes the logits only and returns ``x`` in place of the gradient.

    The logits are not checked.

    Raises:
        InputError: the objective does not return a pair of tensors, or has no gradient with respect to the pixels.
    """
    with torch.set_grad_enabled(needed):
        x = x.detach().requires_grad_(needed)
        # A copy, because a model may edit its input in place; autograd forbids that for a leaf.
        logits, values = _logits_and_values(objective(model, x.clone(), y))
        gradient: Tensor | None = x
        if needed:
            # autograd.grad and not backward: parameter gradients are neither computed nor changed.
            gradient = torch.autograd.grad(values.sum(), x, allow_unused=True)[0] if values.requires_grad else None
    if gradient is None:
        raise InputError("attack: the objective has no gradient with respect to the pixels; is something detached?")
    return logits.detach(), gradient


def check_finite_gradient(largest: Tensor) -> None:
    """Require that the largest absolute gradient of an attack is finite.

    sign(NaN) is 0, so an image with a gradient of NaN would not move and would look robust. A maximum keeps NaN, so
    one check at the end finds a NaN of any step.

    Raises:
        NotFiniteError: it is NaN or infinite.
    """
    if not bool(torch.isfinite(largest)):
        raise NotFiniteError("attack: the gradient held NaN or infinity; this model is not robust, it is broken")


def _logits_and_values(returned: object) -> tuple[Tensor, Tensor]:
    if isinstance(returned, tuple) and len(returned) == 2 and all(isinstance(part, Tensor) for part in returned):
        return returned
    raise InputError(
        f"objective: returned a {type(returned).__name__}; expected a pair of tensors, the model's logits (N, classes) "
        "and one value per image (N,)"
    )
