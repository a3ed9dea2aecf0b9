"""What a network is taught from a batch and its attacked copy: one small class per published loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.models.soe import Confidence


class TrainingLoss(Protocol):
    """A scalar to descend; ``passes`` is how often it sends a batch through the model."""

    @property
    def passes(self) -> int: ...

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy on the attacked batch (Madry et al. 2018); with ``clean`` on both, summed."""

    clean: bool = False

    @property
    def passes(self) -> int:
        return 1 + self.clean

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        loss = F.cross_entropy(model(attacked).float(), y)
        return loss + F.cross_entropy(model(clean).float(), y) if self.clean else loss


@dataclass(frozen=True)
class TradesLoss:
    """Clean cross-entropy plus beta times the divergence of clean and attacked answers (arXiv 1901.08573, eq. 5)."""

    beta: float = 6.0

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        # CE(f(x), y) + beta * mean_x KL(p(x) || p(x'))
        logits = model(clean).float()
        return F.cross_entropy(logits, y) + self.beta * mean_kl_divergence(logits, model(attacked).float())


@dataclass(frozen=True)
class SoELoss:
    """The loss of SoE (Cui et al., NeurIPS 2022): each sub-model learns most where it is sure, and how sure to be.

    mean_x sum_i softmax_i(t * r_i) CE(f_i, y) + weight * mean_x,i BCE(r_i, p_i(y)), on clean and attacked images. The
    weights and the targets p_i(y) are constants, and so is the largest probability inside r_i where f_i is right.
    """

    weight: float = 1.0
    temperature: float = 1.0  # t

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        confidence = model.confidence
        return self.of(confidence(clean), y) + self.of(confidence(attacked), y)  # type: ignore[operator]

    def of(self, said: Confidence, y: Tensor) -> Tensor:
        """The loss of one batch, from what the sub-models say about it."""
        logits, heads = said.logits.float(), said.heads.float()
        probabilities = torch.softmax(logits, dim=2)
        largest, answer = probabilities.max(dim=2)
        right = answer == y.unsqueeze(1)
        sure = torch.where(right, largest.detach(), largest) * torch.sigmoid(heads)  # r_i
        shares = torch.softmax(self.temperature * sure.detach(), dim=1)
        labels = y.unsqueeze(1).expand(-1, logits.shape[1])
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(shares)
        target = probabilities.detach().gather(2, labels.unsqueeze(2)).squeeze(2)  # p_i(y)
        # Rounding may push a product of two numbers below 1 to 1; BCE wants it inside.
        with torch.autocast(logits.device.type, enabled=False):  # all is float32 here, yet CUDA's autocast refuses BCE
            learnt = F.binary_cross_entropy(sure.clamp(0, 1), target.clamp(0, 1))
        return (shares * each).sum(dim=1).mean() + self.weight * learnt


@dataclass(frozen=True)
class RouterLoss:
    """The router's loss of ADVMoE (arXiv 2308.10110): learn y mod N, and answer alike on clean and attacked images.

    beta * CE(router(x), y mod N) + beta * KL(router(x) || router(x')), with gradients through both sides.

    ``safe=False`` is a negative control and never used for a result: it takes the clean side's logarithm *after* the
    softmax, as published code was reported to. A probability that underflows to zero then has the gradient NaN.
    """

    beta: float = 6.0
    safe: bool = True

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        router = model.get_submodule("router")
        scores = router(clean).float()
        return self.of(scores, router(attacked).float(), y)

    def of(self, scores: Tensor, attacked: Tensor, y: Tensor) -> Tensor:
        """The loss from the router's scores (N, pathways) on clean and on attacked images."""
        learnt = F.cross_entropy(scores, y % scores.shape[1])
        if self.safe:
            return self.beta * (learnt + mean_kl_divergence(scores, attacked))
        clean = torch.softmax(scores, dim=1)
        unsafe = F.kl_div(torch.log_softmax(attacked, dim=1), clean, reduction="batchmean")
        return self.beta * (learnt + unsafe)


def mean_kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """mean_x KL(softmax(logits) || softmax(other)), finite however far apart the logits (N, classes) are."""
    # KL(p || q) = sum_c p_c (log p_c - log q_c); with log p from log_softmax, p_c = 0 adds 0 and its gradient is 0
    return F.kl_div(torch.log_softmax(other, 1), torch.log_softmax(logits, 1), reduction="batchmean", log_target=True)
