"""The soft-gated mixture: every expert answers every image, and a gate weighs the answers (arXiv 2512.20821)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.models.resnet import ResNet


@dataclass(frozen=True)
class MixtureOutput:
    """How a mixture came to its answer."""

    logits: Tensor  # (N, classes), the answer
    expert_logits: Tensor  # (N, experts, classes)
    gate_weights: Tensor  # (N, experts), non-negative, each row sums to 1
    gate_logits: Tensor  # (N, experts), what the weights are made of; the higher, the more an expert is heard


class Gate(ResNet):
    """A small residual network on the pixels: (N, C, H, W) in [0, 1] to one score per expert (N, experts).

    Three stages of 1x, 2x and 4x ``width`` channels. The paper does not describe its gate; this is our choice, the
    shape of ADVMoE's router (3 blocks a stage, width 16) with a size that follows the profile.
    """

    def __init__(self, experts: int, width: int, blocks: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(experts, width, (blocks,) * 3, mean, std)
        # An even start: phase 2 begins as the uniform average of the pre-trained experts.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class UniformGate(nn.Module):
    """The gate that knows nothing: equal scores for all experts, whatever the image."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x), self.experts)


class Experts(nn.ModuleList):
    """Networks that look at the same image: pixels to logits (N, experts, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x) for expert in self], dim=1)


class PerExpertInput(Experts):
    """Networks that each look at images of their own: (N, experts, C, H, W) to logits (N, experts, classes)."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([expert(x[:, i]) for i, expert in enumerate(self)], dim=1)


class Mixture(nn.Module):
    """Nine networks as one classifier: pixels (N, C, H, W) in [0, 1] to logits (N, classes).

    Args:
        experts: networks from pixels to logits (N, classes).
        gate: network from pixels to one score per expert (N, experts).
        mixing: ``"probabilities"`` returns the log of the mixed probabilities, ``"logits"`` the mixed logits. Which of
            the two the paper means is not known; probabilities is our default.
        top1: let the expert with the largest weight answer alone, instead of all of them.
    """

    def __init__(
        self, experts: Iterable[nn.Module], gate: nn.Module, mixing: str = "probabilities", *, top1: bool = False
    ) -> None:
        super().__init__()
        if mixing not in ("probabilities", "logits"):
            raise ValueError(f"mixing={mixing!r}: expected 'probabilities' or 'logits'")
        self.experts = Experts(experts)
        self.gate = gate
        self.mixing = mixing
        self.top1 = top1

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_with_experts(x).logits

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        """The answer together with what each expert said and how the gate weighed it."""
        mixed = self._mixed(x)
        return top1_route(mixed.expert_logits, mixed.gate_logits) if self.top1 else mixed

    def forward_with_surrogate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The answer, and the one with all experts weighed: what an attacker differentiates where the gate picks."""
        mixed = self._mixed(x)
        answer = top1_route(mixed.expert_logits, mixed.gate_logits) if self.top1 else mixed
        return answer.logits, mixed.logits

    def _mixed(self, x: Tensor) -> MixtureOutput:
        expert_logits = self.experts(x)
        # w(x) = softmax(g(x)): "fractional activation", no expert is ever switched off.
        gate_logits = self.gate(x)
        log_weights = torch.log_softmax(gate_logits, dim=1)
        return MixtureOutput(mixed(self, expert_logits, log_weights), expert_logits, log_weights.exp(), gate_logits)


def mixed(model: nn.Module, expert_logits: Tensor, log_weights: Tensor) -> Tensor:
    """Logits (N, classes) mixed as ``model`` mixes them, from (N, experts, classes) and (N, experts).

    A model says how by ``mixing``, ``"probabilities"`` or ``"logits"``; one that says nothing mixes probabilities.
    """
    if getattr(model, "mixing", "probabilities") == "logits":
        # z(x) = sum_i w_i(x) z_i(x)
        return (log_weights.exp().unsqueeze(2) * expert_logits).sum(dim=1)
    return mixed_probabilities(expert_logits, log_weights)


def mixed_probabilities(expert_logits: Tensor, log_weights: Tensor) -> Tensor:
    """The log of the mixed probabilities (N, classes), from (N, experts, classes) and (N, experts)."""
    # z(x) = log sum_i w_i(x) softmax(z_i(x)), computed in log space so that nothing underflows
    return torch.logsumexp(log_weights.unsqueeze(2) + torch.log_softmax(expert_logits, dim=2), dim=1)


def top1_route(expert_logits: Tensor, gate_logits: Tensor) -> MixtureOutput:
    """The answer of the expert with the highest score (N, experts); its weight is 1, and no gradient reaches scores."""
    chosen = gate_logits.argmax(dim=1)
    weights = nn.functional.one_hot(chosen, expert_logits.shape[1]).to(expert_logits.dtype)
    answer = expert_logits[torch.arange(len(chosen), device=chosen.device), chosen]
    return MixtureOutput(answer, expert_logits, weights, gate_logits)
