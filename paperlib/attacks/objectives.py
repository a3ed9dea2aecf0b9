"""Attack objectives, by name: what a gradient attack maximises, one value for each image."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.arguments import check_logits, logits_of
from paperlib.attacks.inputs import check_module
from paperlib.errors import InputError
from paperlib.models.modes import eval_mode

# An objective maps the model, the images (N, C, H, W) and the labels (N,), or other targets with a row per image, to
# the logits (N, classes) and to one value per image (N,) that the attack maximises.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# From logits (N, classes) and labels (N,) to one value per image (N,), the higher the worse for the model.
LogitLoss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The objective of FGSM and PGD: the loss the classifier is trained on."""
    logits = logits_of(model, x)
    try:
        # Autocast may hand over bfloat16; the loss is computed in float32.
        return logits, nn.functional.cross_entropy(logits.float(), y, reduction="none")
    except (IndexError, RuntimeError, ValueError):
        check_logits(logits, y)  # says what is wrong with labels or logits, if that is the reason
        raise


@dataclass(frozen=True)
class AttackObjective:
    """An objective with what else it needs.

    Attributes:
        function: what the attack maximises.
        targets: from the model, clean images and labels to what ``function`` is given in place of the labels; None for
            the labels.
        warm_start: maximised first, by an attack of its own; the attack on ``function`` begins where that one ends.
    """

    function: Objective
    targets: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None
    warm_start: Objective | None = None


def cross_entropy_loss(logits: Tensor, y: Tensor) -> Tensor:
    """-log p_y: cross-entropy per image (N,)."""
    return nn.functional.cross_entropy(logits.float(), y, reduction="none")


def margin_loss(logits: Tensor, y: Tensor) -> Tensor:
    """max_{c != y} z_c - z_y (N,): above zero where the image is misclassified (Carlini and Wagner 2017)."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return others.amax(dim=1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


def dlr_loss(logits: Tensor, y: Tensor) -> Tensor:
    """The difference of logits ratio (N,), blind to the scale of the logits (Croce and Hein 2020, arXiv 2003.01690).

    Raises:
        InputError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"dlr: a model of {logits.shape[1]} classes has no third logit to divide by; use margin")
    largest = logits.topk(3, dim=1).values
    # -(z_y - max_{c != y} z_c) / (z_1st - z_3rd)
    return margin_loss(logits, y) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


def losses_for(classes: int) -> tuple[str, ...]:
    """The losses beside cross-entropy that a model of so many classes has; DLR divides by the third logit."""
    return ("margin", "dlr") if classes >= 3 else ("margin",)


def loss_objective(loss: LogitLoss) -> Objective:
    """The objective that is a loss of the model's logits."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(model, x)
        return logits, loss(logits, y)

    return objective


def transfer_objective(surrogate: nn.Module) -> Objective:
    """Cross-entropy of another network: an attack that uses no gradient of the model.

    Raises:
        InputError: the surrogate is no module, or (when the objective is called) has other classes than the model.
    """
    check_module(surrogate, "surrogate")

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = logits_of(model, x)
        with eval_mode(surrogate):
            others = logits_of(surrogate, x, "surrogate")
        if others.shape != logits.shape:
            raise InputError(f"surrogate: knows {others.shape[1]} classes, the model {logits.shape[1]}")
        return logits, cross_entropy_loss(others, y)

    return objective


def kl_divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p(clean) || p(x)) per image: the inner maximisation of TRADES (Zhang et al. 2019, arXiv 1901.08573)."""
    logits = logits_of(model, x)
    return logits, _kl_divergence(clean, logits)


def routed_kl_divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """`kl_divergence` of the logits plus that of the router: the attack of ADVMoE's training (arXiv 2308.10110)."""
    logits, scores = logits_of(model, x), model.get_submodule("router")(x.clone())
    classes, route = clean[:, : logits.shape[1]], clean[:, logits.shape[1] :]
    return logits, _kl_divergence(classes, logits) + _kl_divergence(route, scores)


def surrogate(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of a differentiable surrogate of a model with hard routing (BPDA, Athalye et al. 2018).

    Whether an image is misclassified is decided by the logits of the model itself.

    Raises:
        InputError: the model has no method ``forward_with_surrogate``.
    """
    if not hasattr(model, "forward_with_surrogate"):
        raise InputError(f"soft: a {type(model).__name__} has no hard routing, so it has no surrogate to attack")
    logits, surrogate_logits = model.forward_with_surrogate(x.clone())  # type: ignore[operator]
    return logits, cross_entropy_loss(surrogate_logits, y)


def _kl_divergence(clean: Tensor, logits: Tensor) -> Tensor:
    # KL(p || q) = sum_c p_c (log p_c - log q_c), with both logarithms from the logits, so that nothing underflows
    log_p, log_q = clean.float(), torch.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _log_probabilities(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(logits_of(model, x).float(), dim=1)


def _log_probabilities_and_route(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        scores = model.get_submodule("router")(x.clone())
        return torch.cat([_log_probabilities(model, x, y), torch.log_softmax(scores.float(), dim=1)], dim=1)


OBJECTIVES = {
    "cross-entropy": AttackObjective(cross_entropy),
    "margin": AttackObjective(loss_objective(margin_loss)),
    "dlr": AttackObjective(loss_objective(dlr_loss)),
    "divergence": AttackObjective(kl_divergence, _log_probabilities),
    "routed divergence": AttackObjective(routed_kl_divergence, _log_probabilities_and_route),
    "soft": AttackObjective(surrogate),
}
