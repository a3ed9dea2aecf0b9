"""The soft-gated mixture: a gate computes weights for the outputs of all experts (arXiv 2512.20821)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.models.resnet import ResNet
from paperlib.shapes import ExpertLogits, GateLogits, GateWeights, Images, Logits


@dataclass(frozen=True)
class MixtureOutput:
    """The output of a mixture, with the logits and weights it is computed from."""

    logits: Logits  # (N, classes), of the mixture
    expert_logits: ExpertLogits  # (N, experts, classes)
    gate_weights: GateWeights  # (N, experts), non-negative, each row sums to 1
    gate_logits: GateLogits  # (N, experts), from which the weights are computed; a larger one gives a larger weight


class Gate(ResNet):
    """A small residual network: pixels (N, C, H, W) in [0, 1] to one gate logit per expert (N, experts).

    It has three stages of 1x, 2x and 4x ``width`` channels. The paper does not describe its gate. Ours has the shape of
    ADVMoE's router (3 blocks per stage, width 16), with a size that the profile sets.
    """

    def __init__(self, experts: int, width: int, blocks: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(experts, width, (blocks,) * 3, mean, std)
        # All weights start equal: phase 2 begins as the uniform average of the pre-trained experts.
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)


class UniformGate(nn.Module):
    """A gate without parameters: equal gate logits for all experts and all images."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Images) -> GateLogits:
        return x.new_zeros(len(x), self.experts)


class Experts(nn.ModuleList):
    """Networks that get the same images (N, C, H, W), and return logits (N, experts, classes)."""

    def forward(self, x: Images) -> ExpertLogits:
        return torch.stack([expert(x) for expert in self], dim=1)


class PerExpertInput(Experts):
    """Networks that each get their own images (N, experts, C, H, W), and return logits (N, experts, classes)."""

    def forward(self, x: Tensor) -> ExpertLogits:
        return torch.stack([expert(x[:, i]) for i, expert in enumerate(self)], dim=1)


class Mixture(nn.Module):
    """Experts and a gate as one classifier: pixels (N, C, H, W) in [0, 1] to logits (N, classes).

    Args:
        experts: networks from pixels to logits (N, classes); nine in the paper.
        gate: network from pixels to one gate logit per expert (N, experts).
        mixing: ``"probabilities"`` returns the log of the mixed probabilities, ``"logits"`` the mixed logits. The paper
            does not say which of the two it uses; probabilities is our default.
        top1: return the logits of the expert with the largest weight instead of a mixture of all.

    Raises:
        ValueError: unknown ``mixing``.
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

    def forward(self, x: Images) -> Logits:
        return self.forward_with_experts(x).logits

    def forward_with_experts(self, x: Images) -> MixtureOutput:
        """The logits, with the logits of each expert and the gate's weights."""
        soft = self._soft(x)
        return top1_route(soft.expert_logits, soft.gate_logits) if self.top1 else soft

    def forward_with_surrogate(self, x: Images) -> tuple[Logits, Logits]:
        """The logits, and the mixture of all experts: with ``top1``, a differentiable surrogate for the logits."""
        soft = self._soft(x)
        output = top1_route(soft.expert_logits, soft.gate_logits) if self.top1 else soft
        return output.logits, soft.logits

    def _soft(self, x: Images) -> MixtureOutput:
        """The output with all experts mixed, whether or not ``top1`` is set."""
        expert_logits = self.experts(x)
        # w(x) = softmax(g(x)): all weights are above zero, the paper's "fractional activation".
        gate_logits = self.gate(x)
        log_weights = torch.log_softmax(gate_logits, dim=1)
        return MixtureOutput(mixed(self, expert_logits, log_weights), expert_logits, log_weights.exp(), gate_logits)


def mixed(model: nn.Module, expert_logits: ExpertLogits, log_weights: GateLogits) -> Logits:
    """Logits (N, classes), mixed as ``model`` mixes them, from (N, experts, classes) and log weights (N, experts).

    The attribute ``mixing`` of the model decides: ``"probabilities"`` (also if there is no such attribute), or
    ``"logits"``.
    """
    if getattr(model, "mixing", "probabilities") == "logits":
        # z(x) = sum_i w_i(x) z_i(x)
        return (log_weights.exp().unsqueeze(2) * expert_logits).sum(dim=1)
    return mixed_probabilities(expert_logits, log_weights)


def mixed_probabilities(expert_logits: ExpertLogits, log_weights: GateLogits) -> Logits:
    """The log of the mixed probabilities (N, classes), from (N, experts, classes) and log weights (N, experts)."""
    # z(x) = log sum_i w_i(x) softmax(z_i(x)), computed in log space so that nothing underflows
    return torch.logsumexp(log_weights.unsqueeze(2) + torch.log_softmax(expert_logits, dim=2), dim=1)


def top1_route(expert_logits: ExpertLogits, gate_logits: GateLogits) -> MixtureOutput:
    """The logits of the expert with the largest gate logit.

    Its weight is 1, all other weights are 0. No gradient reaches the gate logits.
    """
    expert = gate_logits.argmax(dim=1)
    weights = nn.functional.one_hot(expert, expert_logits.shape[1]).to(expert_logits.dtype)
    logits = expert_logits[torch.arange(len(expert), device=expert.device), expert]
    return MixtureOutput(logits, expert_logits, weights, gate_logits)
