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
from paperlib.shapes import Images, Labels, Logits, PerImage

# From the model, images and labels (or other targets with a row for each image) to the logits and to the values that
# the attack maximises, one for each image.
Objective = Callable[[nn.Module, Images, Tensor], tuple[Logits, PerImage]]
# From logits and labels to a loss for each image.
LogitLoss = Callable[[Logits, Labels], PerImage]


def cross_entropy(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
    """The objective of FGSM and PGD: cross-entropy, the loss of standard training."""
    logits = logits_of(model, x)
    try:
        # Autocast may give bfloat16 logits; the loss is computed in float32.
        return logits, nn.functional.cross_entropy(logits.float(), y, reduction="none")
    except (IndexError, RuntimeError, ValueError):
        check_logits(logits, y)  # a clearer error, if labels or logits are the reason
        raise


@dataclass(frozen=True)
class AttackObjective:
    """An objective with its targets and its warm start.

    Attributes:
        function: what the attack maximises.
        targets: computes the targets of ``function`` from the model, the clean images and the labels; with None the
            targets are the labels.
        warm_start: an objective that a first attack maximises; the attack on ``function`` starts from its result.
    """

    function: Objective
    targets: Callable[[nn.Module, Images, Labels], Tensor] | None = None
    warm_start: Objective | None = None


def cross_entropy_loss(logits: Logits, y: Labels) -> PerImage:
    """-log p_y: cross-entropy of each image."""
    return nn.functional.cross_entropy(logits.float(), y, reduction="none")


def margin_loss(logits: Logits, y: Labels) -> PerImage:
    """max_{c != y} z_c - z_y: positive if and only if the image is misclassified (Carlini and Wagner 2017)."""
    others = logits.scatter(1, y.unsqueeze(1), -torch.inf)
    return others.amax(dim=1) - logits.gather(1, y.unsqueeze(1)).squeeze(1)


def dlr_loss(logits: Logits, y: Labels) -> PerImage:
    """The difference of logits ratio, invariant to scale and shift of the logits (Croce and Hein, arXiv 2003.01690).

    Raises:
        InputError: fewer than three classes.
    """
    if logits.shape[1] < 3:
        raise InputError(f"dlr: a model of {logits.shape[1]} classes has no third logit to divide by; use margin")
    largest = logits.topk(3, dim=1).values
    # -(z_y - max_{c != y} z_c) / (z_1st - z_3rd)
    return margin_loss(logits, y) / (largest[:, 0] - largest[:, 2]).clamp_min(1e-12)


def losses_for(classes: int) -> tuple[str, ...]:
    """The further losses that are defined for this number of classes: DLR needs a third logit."""
    return ("margin", "dlr") if classes >= 3 else ("margin",)


def loss_objective(loss: LogitLoss) -> Objective:
    """The objective that equals a loss of the model's logits."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        logits = logits_of(model, x)
        return logits, loss(logits, y)

    return objective


def transfer_objective(surrogate: nn.Module) -> Objective:
    """Cross-entropy of another network: a transfer attack, without a gradient of the model.

    Raises:
        InputError: the surrogate is not a module, or (when the objective is called) it has another number of classes.
    """
    check_module(surrogate, "surrogate")

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        with torch.no_grad():
            logits = logits_of(model, x)
        with eval_mode(surrogate):
            surrogate_logits = logits_of(surrogate, x, "surrogate")
        if surrogate_logits.shape != logits.shape:
            classes = surrogate_logits.shape[1]
            raise InputError(f"surrogate: has {classes} classes, but the model has {logits.shape[1]}")
        return logits, cross_entropy_loss(surrogate_logits, y)

    return objective


def kl_divergence(model: nn.Module, x: Images, clean: Logits) -> tuple[Logits, PerImage]:
    """KL(p(clean) || p(x)): the inner maximisation of TRADES (Zhang et al. 2019, arXiv 1901.08573).

    ``clean``: log-probabilities of the clean images (N, classes).
    """
    logits = logits_of(model, x)
    return logits, _kl_divergence(clean, logits)


def routed_kl_divergence(model: nn.Module, x: Images, clean: Tensor) -> tuple[Logits, PerImage]:
    """`kl_divergence` of the logits plus that of the router: the attack in ADVMoE's training (arXiv 2308.10110).

    ``clean``: log-probabilities of the classes and of the routes for the clean images (N, classes + routes).
    """
    logits, scores = logits_of(model, x), model.get_submodule("router")(x.clone())
    clean_classes, clean_routes = clean[:, : logits.shape[1]], clean[:, logits.shape[1] :]
    return logits, _kl_divergence(clean_classes, logits) + _kl_divergence(clean_routes, scores)


def surrogate(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
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
    # KL(p || q) = sum_c p_c (log p_c - log q_c), with both logarithms from the logits against underflow
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
