"""ADVMoE: one network whose convolutions come in several versions; a router picks one version for the whole depth.

Zhang et al., ICCV 2023 (arXiv 2308.10110). Re-implemented from the description of the method; nothing is taken from its
code.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.models.mixture import MixtureOutput, PerExpertInput, mixed_probabilities, top1_route
from paperlib.models.resnet import ResNet, resnet18

# Side by side, every pathway passes as many images as the busiest one, blank ones if need be: worth it up to so many
# passes for each image, against one convolution after the other for every pathway (see tests/benchmarks/ways.py).
BLANKS = 3


class Paths(nn.Module):
    """A convolution in several versions; each image goes through the one its route names.

    The images of a batch lie in the order of their routes, ``counts`` of them for each.
    """

    def __init__(self, versions: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.versions = nn.ModuleList(versions)
        self.counts: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        parts = zip(self.versions, x.split(self.counts), strict=True)
        return torch.cat([conv(part) for conv, part in parts if len(part)]) if len(x) else self.versions[0](x)


class ADVMoE(nn.Module):
    """A ResNet-18 with ``pathways`` versions of each block convolution: pixels in [0, 1] to logits (N, classes).

    Stem, batch norm, shortcuts and classifier are shared. The router, a small residual network on the pixels, picks
    one pathway for each image by argmax, so an image costs one pathway however many there are.
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
                    setattr(module, name, Paths([_again(conv) for _ in range(pathways)]))
        self.router = ResNet(pathways, router_width, (router_blocks,) * 3, mean, std)
        self.grouped: nn.Module | None = None  # in a folded copy: all pathways as one network, see `pathway_networks`

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_route(x, self.router(x).argmax(dim=1))

    def forward_route(self, x: Tensor, route: Tensor) -> Tensor:
        """Logits (N, classes) when image i takes pathway ``route[i]`` (N,), whatever the router says."""
        counts = torch.bincount(route, minlength=self.pathways).tolist()
        if self.grouped is not None and 0 < max(counts) * self.pathways <= BLANKS * len(x):
            place = nn.functional.one_hot(route, self.pathways).cumsum(dim=0).gather(1, route.unsqueeze(1))[:, 0] - 1
            images = x.new_zeros(max(counts), self.pathways, *x.shape[1:]).index_put((place, route), x)
            logits: Tensor = self.grouped(images)[place, route]
            return logits
        order = route.argsort(stable=True)
        for module in self.network.modules():
            if isinstance(module, Paths):
                module.counts = counts
        return self.network(x[order])[order.argsort()]

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        """The answer with every pathway's logits; the weights (N, pathways) are one-hot."""
        return top1_route(self._all(x), self.router(x))

    def forward_with_surrogate(self, x: Tensor, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
        """The answer, and its differentiable stand-in: log sum_i softmax_i(router / T) softmax(f_i); (N, classes)."""
        logits, gate_logits = self._all(x), self.router(x)
        soft = mixed_probabilities(logits, torch.log_softmax(gate_logits / temperature, dim=1))
        return top1_route(logits, gate_logits).logits, soft

    def pathway_networks(self) -> PerExpertInput:
        """The pathways as networks of their own, made of the same parameters and buffers."""
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*self.parameters(), *self.buffers())}
        paths = [module for module in self.network.modules() if isinstance(module, Paths)]

        def alone(i: int) -> nn.Module:
            chosen = {id(path): copy.deepcopy(path.versions[i], dict(shared)) for path in paths}
            return copy.deepcopy(self.network, shared | chosen)

        return PerExpertInput([alone(i) for i in range(self.pathways)])

    def _all(self, x: Tensor) -> Tensor:
        if self.grouped is not None:
            logits: Tensor = self.grouped(x.unsqueeze(1).expand(-1, self.pathways, *x.shape[1:]))
            return logits
        routes = (torch.full((len(x),), i, device=x.device) for i in range(self.pathways))
        return torch.stack([self.forward_route(x, route) for route in routes], dim=1)


def _again(conv: nn.Conv2d) -> nn.Conv2d:
    """A convolution of the same shape with weights of its own."""
    made = nn.Conv2d(conv.in_channels, conv.out_channels, 3, conv.stride[0], padding=1, bias=False)
    nn.init.kaiming_normal_(made.weight, mode="fan_out", nonlinearity="relu")
    return made
