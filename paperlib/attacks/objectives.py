"""What gradient attacks climb beside cross-entropy, by name: margins, divergence from clean answers, soft stand-ins."""

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
# the logits (N, classes) and to one value per image (N,) that the attack climbs.
Objective = Callable[[nn.Module, Tensor, Tensor], tuple[Tensor, Tensor]]
# From logits (N, classes) and labels (N,) to one value per image (N,), the higher the worse for the model.
Loss = Callable[[Tensor, Tensor], Tensor]


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
class Aim:
    """An objective, and the targets it wants in place of labels, if any."""

    objective: Objective
    targets: Callable[[nn.Module, Tensor, Tensor], Tensor] | None = None  # from the model, clean images and labels
    first: Objective | None = None  # climbed before, by an attack of its own; this one starts where that one ends


def entropy_loss(logits: Tensor, y: Tensor) -> Tensor:
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


def climbing(loss: Loss) -> Objective:
    """The objective that is a loss of the model's own answer."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits_of(model, x)
        return logits, loss(logits, y)

    return objective


def transferred(surrogate: nn.Module) -> Objective:
    """Cross-entropy of another network: an attack that never asks the model for a gradient.

    Raises:
        InputError: no module, or one of other classes than the model's; the latter from the objective.
    """
    check_module(surrogate, "surrogate")

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            logits = logits_of(model, x)
        with eval_mode(surrogate):
            others = logits_of(surrogate, x, "surrogate")
        if others.shape != logits.shape:
            raise InputError(f"surrogate: knows {others.shape[1]} classes, the model {logits.shape[1]}")
        return logits, entropy_loss(others, y)

    return objective


def divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p(clean) || p(x)) per image: the inner maximisation of TRADES (Zhang et al. 2019, arXiv 1901.08573)."""
    logits = logits_of(model, x)
    return logits, _divergence(clean, logits)


def routed_divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the answer plus the same of the router: the attack of ADVMoE's training (arXiv 2308.10110)."""
    logits, scores = logits_of(model, x), model.get_submodule("router")(x.clone())
    answer, route = clean[:, : logits.shape[1]], clean[:, logits.shape[1] :]
    return logits, _divergence(answer, logits) + _divergence(route, scores)


def soft(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the model's soft stand-in: reaches through a choice that has no gradient (BPDA).

    Whether the image fooled the model is still read off the model's own answer.

    Raises:
        InputError: the model has no stand-in.
    """
    if not hasattr(model, "with_soft"):
        raise InputError(f"soft: a {type(model).__name__} picks no expert, so it has no stand-in to attack")
    logits, stand_in = model.with_soft(x.clone())  # type: ignore[operator]
    return logits, entropy_loss(stand_in, y)


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    # KL(p || q) = sum_c p_c (log p_c - log q_c), with both logarithms from the logits, so that nothing underflows
    log_p, log_q = clean.float(), torch.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _answer(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(logits_of(model, x).float(), dim=1)


def _answer_and_route(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        scores = model.get_submodule("router")(x.clone())
        return torch.cat([_answer(model, x, y), torch.log_softmax(scores.float(), dim=1)], dim=1)


AIMS = {
    "cross-entropy": Aim(cross_entropy),
    "margin": Aim(climbing(margin_loss)),
    "dlr": Aim(climbing(dlr_loss)),
    "divergence": Aim(divergence, _answer),
    "routed divergence": Aim(routed_divergence, _answer_and_route),
    "soft": Aim(soft),
}
