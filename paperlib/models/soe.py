"""Synergy of experts: each network says how sure it is, and the surest one answers (Cui et al., NeurIPS 2022).

Re-implemented from the description of the method; nothing is taken from its code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.models.mixture import Experts, MixtureOutput, mixed_probabilities, top1_route


@dataclass(frozen=True)
class Confidence:
    """What the sub-models of a collaboration say."""

    logits: Tensor  # (N, experts, classes)
    heads: Tensor  # (N, experts): a_i, each sub-model's own confidence score before the sigmoid

    def predicted(self) -> Tensor:
        """r_i = max_c softmax(f_i)_c * sigmoid(a_i): how sure each sub-model says it is, in [0, 1] (N, experts)."""
        return torch.softmax(self.logits, dim=2).amax(dim=2) * torch.sigmoid(self.heads)


class SoE(nn.Module):
    """A collaboration of networks: pixels (N, C, H, W) in [0, 1] to the logits (N, classes) of the surest.

    Args:
        experts: networks from pixels to (N, classes + 1); the last output is the confidence score a_i, a linear
            function of the same pooled features as the logits.
    """

    def __init__(self, experts: Iterable[nn.Module]) -> None:
        super().__init__()
        self.experts = Experts(experts)

    def confidence(self, x: Tensor) -> Confidence:
        """What every sub-model answers, and how sure it says it is."""
        answers = self.experts(x)
        return Confidence(answers[..., :-1], answers[..., -1])

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        """The answer with every sub-model's logits; the weights (N, experts) are one-hot."""
        said = self.confidence(x)
        return top1_route(said.logits, said.predicted())

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_experts(x).logits

    def forward_with_surrogate(self, x: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The answer, and its differentiable stand-in: log sum_i softmax_i(r / T) softmax(f_i); both (N, classes)."""
        said = self.confidence(x)
        sure = said.predicted()
        return top1_route(said.logits, sure).logits, mixed_probabilities(
            said.logits, torch.log_softmax(sure / temperature, dim=1)
        )
