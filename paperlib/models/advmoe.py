"""ADVMoE: a network with several versions of each block convolution, and a router that picks one for each image.

Zhang et al., ICCV 2023 (arXiv 2308.10110). Re-implemented from the description of the method; nothing is taken from its
code. Version i of all convolutions together is pathway i; the router picks the same pathway in all layers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.models.mixture import MixtureOutput, PerExpertInput, mixed_probabilities, top1_route
from paperlib.models.resnet import ResNet, resnet18
from paperlib.shapes import ExpertLogits, Images, Logits

# A folded copy runs all pathways at once, each on as many images as the most frequent pathway; missing images are
# filled with zeros. It does so up to this many forward passes per image, and else runs one pathway after the other (see
# tests/benchmarks/algorithms.py).
BLANKS = 3


class RoutedConv2d(nn.Module):
    """A convolution in several versions. The batch is sorted by route: ``counts[i]`` images go through version i."""

    def __init__(self, versions: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.versions = nn.ModuleList(versions)
        self.counts: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.versions, x.split(self.counts), strict=True)
        return torch.cat([conv(part) for conv, part in parts if len(part)]) if len(x) else self.versions[0](x)


class ADVMoE(nn.Module):
    """A ResNet-18 with ``pathways`` versions of each block convolution: pixels in [0, 1] to logits (N, classes).

    The stem, batch norms, shortcuts and classifier are shared. The router, a small residual network on the pixels,
    picks one pathway for each image by argmax, so an image costs one pathway, however many there are.

    Args:
        width: channels of the first stage.
        router_width: channels of the router's first stage.
        router_blocks: residual blocks in each of the router's three stages.
        mean, std: statistics of each input channel, for normalisation.
    """

    def __init__(
        self,
        classes: int,
        pathways: int,
        width: int,
        router_width: int,
        router_blocks: int,
        mean: Sequence[float],
        std: Sequence[float],
    ) -> None:
        super().__init__()
        self.pathways = pathways
        self.network = resnet18(classes, width, mean, std)
        for module in list(self.network.stages.modules()):
            for name, conv in list(module.named_children()):
                if isinstance(conv, nn.Conv2d) and conv.kernel_size == (3, 3):
                    setattr(module, name, RoutedConv2d([_new_version(conv) for _ in range(pathways)]))
        self.router = ResNet(pathways, router_width, (router_blocks,) * 3, mean, std)
        self.grouped: nn.Module | None = None  # in a folded copy: all of `pathway_networks` as one network

    def forward(self, x: Images) -> Logits:
        return self.forward_route(x, self.router(x).argmax(dim=1))

    def forward_route(self, x: Images, route: Tensor) -> Logits:
        """Logits (N, classes) when image i takes pathway ``route[i]``; ``route`` (N,) int64 replaces the router."""
        counts = torch.bincount(route, minlength=self.pathways).tolist()
        if self.grouped is not None and 0 < max(counts) * self.pathways <= BLANKS * len(x):
            # The position of an image among those of its pathway
            position = nn.functional.one_hot(route, self.pathways).cumsum(dim=0).gather(1, route.unsqueeze(1))[:, 0] - 1
            images = x.new_zeros(max(counts), self.pathways, *x.shape[1:]).index_put((position, route), x)
            logits: Tensor = self.grouped(images)[position, route]
            return logits
        order = route.argsort(stable=True)
        for module in self.network.modules():
            if isinstance(module, RoutedConv2d):
                module.counts = counts
        return self.network(x[order])[order.argsort()]

    def forward_with_experts(self, x: Images) -> MixtureOutput:
        """The logits, and those of each pathway; the weights (N, pathways) are one-hot."""
        return top1_route(self._pathway_logits(x), self.router(x))

    def forward_with_surrogate(self, x: Images, temperature: float = 1.0) -> tuple[Logits, Logits]:
        """The logits, and a differentiable surrogate for them, in which all pathways are mixed."""
        logits, gate_logits = self._pathway_logits(x), self.router(x)
        # log sum_i softmax_i(router(x) / T) softmax(f_i(x))
        surrogate = mixed_probabilities(logits, torch.log_softmax(gate_logits / temperature, dim=1))
        return top1_route(logits, gate_logits).logits, surrogate

    def pathway_networks(self) -> PerExpertInput:
        """One network for each pathway; they share the parameters and buffers of this one."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        routed = [module for module in self.network.modules() if isinstance(module, RoutedConv2d)]

        def pathway(i: int) -> nn.Module:
            replaced = {id(module): copy.deepcopy(module.versions[i], dict(shared)) for module in routed}
            return copy.deepcopy(self.network, shared | replaced)

        return PerExpertInput([pathway(i) for i in range(self.pathways)])

    def _pathway_logits(self, x: Images) -> ExpertLogits:
        if self.grouped is not None:
            logits: Tensor = self.grouped(x.unsqueeze(1).expand(-1, self.pathways, *x.shape[1:]))
            return logits
        routes = (torch.full((len(x),), i, device=x.device) for i in range(self.pathways))
        return torch.stack([self.forward_route(x, route) for route in routes], dim=1)


def _new_version(conv: nn.Conv2d) -> nn.Conv2d:
    """A newly initialised 3x3 convolution with the channels and stride of ``conv``."""
    version = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride[0], padding=1, bias=False)
    nn.init.kaiming_normal_(version.weight, mode="fan_out", nonlinearity="relu")
    return version
