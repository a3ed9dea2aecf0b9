"""SoE (synergy of experts): the logits are those of the sub-model with the highest confidence.

Cui et al., NeurIPS 2022. Re-implemented from the description of the method; nothing is taken from its code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.models.mixture import Experts, MixtureOutput, mixed_probabilities, top1_route
from paperlib.shapes import ExpertLogits, Images, Logits


@dataclass(frozen=True)
class SubModelOutput:
    """The outputs of all sub-models on a batch."""

    logits: ExpertLogits  # (N, experts, classes): f_i
    confidence_logits: Tensor  # (N, experts): a_i, the additional output of each sub-model

    def confidence(self) -> Tensor:
        """The confidence r_i of each sub-model in its own prediction, in [0, 1] (N, experts)."""
        # r_i = max_c softmax(f_i)_c * sigmoid(a_i)
        return torch.softmax(self.logits, dim=2).amax(dim=2) * torch.sigmoid(self.confidence_logits)


class SoE(nn.Module):
    """Sub-models as one classifier: pixels (N, C, H, W) in [0, 1] to the logits (N, classes) of the most confident.

    Args:
        experts: the sub-models, networks from pixels to (N, classes + 1). The last output is the confidence logit a_i,
            a linear function of the same pooled features as the logits.
    """

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = Experts(experts)

    def forward_sub_models(self, x: Images) -> SubModelOutput:
        """The logits and the confidence logit of each sub-model."""
        outputs = self.experts(x)
        return SubModelOutput(outputs[..., :-1], outputs[..., -1])

    def forward_with_experts(self, x: Images) -> MixtureOutput:
        """The logits, and those of each sub-model; the weights (N, experts) are one-hot."""
        output = self.forward_sub_models(x)
        return top1_route(output.logits, output.confidence())

    def forward(self, x: Images) -> Logits:
        return self.forward_with_experts(x).logits

    def forward_with_surrogate(self, x: Images, temperature: float = 1.0) -> tuple[Logits, Logits]:
        """The logits, and a differentiable surrogate for them, in which all sub-models are mixed."""
        output = self.forward_sub_models(x)
        confidence = output.confidence()
        # log sum_i softmax_i(r / T) softmax(f_i)
        surrogate = mixed_probabilities(output.logits, torch.log_softmax(confidence / temperature, dim=1))
        return top1_route(output.logits, confidence).logits, surrogate
