"""Training losses, computed from a batch and its attacked copy: one small class for each published loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from paperlib.models.soe import SubModelOutput
from paperlib.shapes import GateLogits, Images, Labels, Logits


@runtime_checkable
class TrainingLoss(Protocol):
    """A scalar to minimise; ``passes`` is the number of forward passes of a batch that it takes."""

    @property
    def passes(self) -> int: ...

    def __call__(self, model: nn.Module, clean: Images, attacked: Images, y: Labels) -> Tensor: ...


@dataclass(frozen=True)
class CrossEntropyLoss:
    """Cross-entropy on the attacked batch (Madry et al. 2018), plus that on the clean batch if ``clean``."""

    clean: bool = False

    @property
    def passes(self) -> int:
        return 1 + self.clean

    def __call__(self, model: nn.Module, clean: Images, attacked: Images, y: Labels) -> Tensor:
        loss = F.cross_entropy(model(attacked).float(), y)
        return loss + F.cross_entropy(model(clean).float(), y) if self.clean else loss


@dataclass(frozen=True)
class TradesLoss:
    """TRADES: clean cross-entropy plus beta times the divergence of attacked from clean predictions.

    arXiv 1901.08573, eq. 5. Gradients flow through both arguments of the divergence, as in the published code.
    """

    beta: float = 6.0

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Images, attacked: Images, y: Labels) -> Tensor:
        # CE(f(x), y) + beta * mean_x KL(p(x) || p(x'))
        logits = model(clean).float()
        return F.cross_entropy(logits, y) + self.beta * mean_kl_divergence(logits, model(attacked).float())


@dataclass(frozen=True)
class SoELoss:
    """The loss of SoE (Cui et al., NeurIPS 2022), the sum of the losses on clean and on attacked images.

    Each sub-model i learns to classify, mostly the images on which its confidence r_i is high, and learns to predict by
    r_i its own probability p_i(y) of the true class:

    mean_x sum_i softmax_i(t * r_i) CE(f_i, y) + weight * mean_x,i BCE(r_i, p_i(y))

    No gradient flows through the softmax_i and through p_i(y), nor through the largest probability in r_i where
    sub-model i predicts the true class.
    """

    weight: float = 1.0
    temperature: float = 1.0  # t

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Images, attacked: Images, y: Labels) -> Tensor:
        outputs = model.forward_sub_models
        return self.from_output(outputs(clean), y) + self.from_output(outputs(attacked), y)  # type: ignore[operator]

    def from_output(self, output: SubModelOutput, y: Labels) -> Tensor:
        """The loss of one batch, from the outputs of the sub-models."""
        logits, confidence_logits = output.logits.float(), output.confidence_logits.float()
        probabilities = torch.softmax(logits, dim=2)
        largest, prediction = probabilities.max(dim=2)
        correct = prediction == y.unsqueeze(1)
        # r_i = max_c softmax(f_i)_c * sigmoid(a_i)
        confidence = torch.where(correct, largest.detach(), largest) * torch.sigmoid(confidence_logits)
        weights = torch.softmax(self.temperature * confidence.detach(), dim=1)
        labels = y.unsqueeze(1).expand(-1, logits.shape[1])
        classification = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(weights)
        target = probabilities.detach().gather(2, labels.unsqueeze(2)).squeeze(2)  # p_i(y)
        # All is float32 here, but CUDA's autocast refuses BCE in any dtype. The clamp guards against rounding above 1.
        with torch.autocast(logits.device.type, enabled=False):
            calibration = F.binary_cross_entropy(confidence.clamp(0, 1), target.clamp(0, 1))
        return (weights * classification).sum(dim=1).mean() + self.weight * calibration


@dataclass(frozen=True)
class RouterLoss:
    """The loss of ADVMoE's router (arXiv 2308.10110).

    The router learns to route label y to pathway y mod N, and to route an image as before when it is attacked:

    beta * CE(router(x), y mod N) + beta * KL(router(x) || router(x'))

    Gradients flow through both arguments of KL.

    ``safe=False`` is a negative control, not used for any result: the logarithm of the clean probabilities is taken
    *after* the softmax, as was reported of published code. If a probability underflows to zero, its gradient is NaN.
    """

    beta: float = 6.0
    safe: bool = True

    @property
    def passes(self) -> int:
        return 2

    def __call__(self, model: nn.Module, clean: Images, attacked: Images, y: Labels) -> Tensor:
        router = model.get_submodule("router")
        clean_logits = router(clean).float()
        return self.from_logits(clean_logits, router(attacked).float(), y)

    def from_logits(self, clean: GateLogits, attacked: GateLogits, y: Labels) -> Tensor:
        """The loss of one batch, from the router's logits (N, pathways) on clean and on attacked images."""
        assignment = F.cross_entropy(clean, y % clean.shape[1])
        if self.safe:
            return self.beta * (assignment + mean_kl_divergence(clean, attacked))
        probabilities = torch.softmax(clean, dim=1)
        unsafe = F.kl_div(torch.log_softmax(attacked, dim=1), probabilities, reduction="batchmean")
        return self.beta * (assignment + unsafe)


def mean_kl_divergence(logits: Logits, other: Logits) -> Tensor:
    """mean_x KL(softmax(logits) || softmax(other)), from logits (N, classes); finite for all finite logits."""
    # KL(p || q) = sum_c p_c (log p_c - log q_c); with log p from log_softmax, p_c = 0 adds 0 and its gradient is 0
    return F.kl_div(torch.log_softmax(other, 1), torch.log_softmax(logits, 1), reduction="batchmean", log_target=True)
