"""What gradient attacks climb beside cross-entropy, by name: divergence from clean answers, routers, soft stand-ins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.attacks.gradient import Objective, cross_entropy
from paperlib.errors import InputError


@dataclass(frozen=True)
class Aim:
    """An objective, and the targets it wants in place of labels, if any."""

    objective: Objective
    targets: Callable[[nn.Module, Tensor], Tensor] | None = None  # from the model and the clean images


def divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """KL(p(clean) || p(x)) per image: the inner maximisation of TRADES (Zhang et al. 2019, arXiv 1901.08573)."""
    logits = model(x)
    return logits, _divergence(clean, logits)


def routed_divergence(model: nn.Module, x: Tensor, clean: Tensor) -> tuple[Tensor, Tensor]:
    """The same of the answer plus the same of the router: the attack of ADVMoE's training (arXiv 2308.10110)."""
    logits, scores = model(x), model.get_submodule("router")(x)
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
    logits, stand_in = model.with_soft(x)  # type: ignore[operator]
    return logits, nn.functional.cross_entropy(stand_in.float(), y, reduction="none")


def _divergence(clean: Tensor, logits: Tensor) -> Tensor:
    # KL(p || q) = sum_c p_c (log p_c - log q_c), with both logarithms from the logits, so that nothing underflows
    log_p, log_q = clean.float(), torch.log_softmax(logits.float(), dim=1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)


def _answer(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.log_softmax(model(x).float(), dim=1)


def _answer_and_route(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        scores = model.get_submodule("router")(x)
        return torch.cat([_answer(model, x), torch.log_softmax(scores.float(), dim=1)], dim=1)


AIMS = {
    "cross-entropy": Aim(cross_entropy),
    "divergence": Aim(divergence, _answer),
    "routed divergence": Aim(routed_divergence, _answer_and_route),
    "soft": Aim(soft),
}
