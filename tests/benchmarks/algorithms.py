"""The time of a forward pass with input gradient, of nine experts and of one network, by several methods.

`paperlib.acceleration.fold` uses the fastest of them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from arena import interleave, spread, timed
from torch import Tensor, nn

from paperlib.acceleration import fold
from paperlib.models import ADVMoE, Experts, Normalize, resnet18
from paperlib.models import advmoe as advmoe_module

Json = dict[str, Any]
Step = Callable[[], object]
PATHWAYS = 9
# (width, side, channels, images): digits, small colour images, CIFAR-10 narrow and at the paper's width
SIZES = [(8, 8, 1, 128), (16, 16, 3, 64), (16, 32, 3, 64), (64, 32, 3, 8)]
GPU_SIZES = [(8, 8, 1, 128), (16, 32, 3, 128), (64, 32, 3, 128), (64, 32, 3, 512)]


def run(*, rounds: int, compiled: bool, log: Callable[[str], None]) -> list[Json]:
    """A row for each size and method; ratios are relative to the network without folding."""
    rows = []
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for width, side, channels, images in GPU_SIZES if device.type == "cuda" else SIZES:
        torch.manual_seed(0)
        x = torch.rand(images, channels, side, side, device=device)
        y = torch.randint(10, (images,), device=device)
        experts = Experts([with_random_statistics(width, channels) for _ in range(9)]).to(device).eval()
        for networks, model in (("nine experts", Mean(experts)), ("one network", experts[0])):
            methods, failed = _methods(model, x, y, compiled)
            seconds = interleave({name: timed(step) for name, step in methods.items()}, rounds)
            for name, times in seconds.items():
                ratio = spread([a / b for a, b in zip(seconds["as it is"], times, strict=True)])
                row = {"networks": networks, "width": width, "side": side, "images": images, "algorithm": name}
                rows.append({**row, "seconds": times, "ratio": ratio})
                log(f"{networks}, width {width}, {side}x{side}, {images} images, {name}: {ratio[0]:.2f}x")
            rows += [
                {
                    "networks": networks,
                    "width": width,
                    "side": side,
                    "images": images,
                    "algorithm": name,
                    "failed": reason,
                }
                for name, reason in failed.items()
            ]
    return rows + (_pathways(rounds, log) if device.type == "cpu" else [])


def _pathways(rounds: int, log: Callable[[str], None]) -> list[Json]:
    """A folded ADVMoE on digits, with its pathways one by one and grouped, for images on 9 to 1 of its 9 pathways."""
    torch.manual_seed(0)
    model, rows = ADVMoE(10, PATHWAYS, 8, 8, 1, (0.3,), (0.3,)), []
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
    network = fold(model.eval(), torch.rand(2, 1, 8, 8)).network
    assert isinstance(network, ADVMoE)
    x, y = torch.rand(48, 1, 8, 8), torch.randint(10, (48,))
    for taken in (9, 5, 3, 2, 1):
        route = torch.arange(len(x)) % taken
        methods = {
            name: _forced_route(network, x, y, route, blanks) for name, blanks in (("by path", 0), ("beside", 99))
        }
        seconds = interleave({name: timed(step) for name, step in methods.items()}, rounds)
        ratio = spread([a / b for a, b in zip(seconds["by path"], seconds["beside"], strict=True)])
        row = {"networks": f"ADVMoE, {taken} of {PATHWAYS} pathways taken", "width": 8, "side": 8, "images": len(x)}
        rows.append({**row, "algorithm": "folded, side by side", "seconds": seconds["beside"], "ratio": ratio})
        log(f"{row['networks']}, {len(x)} images, side by side: {ratio[0]:.2f}x")
    return rows


def _forced_route(network: ADVMoE, x: Tensor, y: Tensor, route: Tensor, blanks: int) -> Step:
    class ForcedRoute(nn.Module):
        def forward(self, z: Tensor) -> Tensor:
            advmoe_module.BLANKS = blanks
            return network.forward_route(z, route)

    return gradient_step(ForcedRoute(), x, y)


class Mean(nn.Module):
    """The mean of several networks, without a gate."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, x: Tensor) -> Tensor:
        return self.experts(x).mean(dim=1)


def _methods(model: nn.Module, x: Tensor, y: Tensor, compiled: bool) -> tuple[dict[str, Step], dict[str, str]]:
    many = isinstance(model, Mean)
    looped, auto = fold(model, x, stacked=False), fold(model, x)
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    candidates: dict[str, nn.Module] = {
        "as it is": model,
        "as it is, channels last": last,
        "folded": looped.network,
        "folded, bfloat16": fold(model, x, stacked=False, dtype=torch.bfloat16).network,
    }
    if many:
        candidates["folded, side by side"] = fold(model, x, stacked=True).network
        candidates["folded, side by side, bfloat16"] = fold(model, x, stacked=True, dtype=torch.bfloat16).network
        candidates["torch.func.vmap"] = _Vmap(model.experts)
    if compiled:
        candidates["as it is, torch.compile"] = torch.compile(copy.deepcopy(model))
        candidates["folded, torch.compile"] = torch.compile(copy.deepcopy(auto.network))
    steps: dict[str, Step] = {
        name: gradient_step(network, x.contiguous(memory_format=torch.channels_last) if network is last else x, y)
        for name, network in candidates.items()
    }
    if x.is_cuda:
        steps["folded, CUDA graph"] = _graphed(looped.network, x, y)
        if many:
            steps["folded, one stream each"] = _streams(looped.network, x, y)
    failed: dict[str, str] = {}
    for name, step in list(steps.items()):
        try:
            step()  # compiles
        except Exception as error:  # a method that does not run on this machine is recorded too
            failed[name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del steps[name]
    return steps, failed


def gradient_step(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    def step() -> Tensor:
        z = x.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(z), y, reduction="sum")
        return torch.autograd.grad(loss, z)[0]

    return step


class _Vmap(nn.Module):
    """The experts with stacked parameters, vectorised by torch.func.vmap."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        parameters, buffers = torch.func.stack_module_state(list(experts))
        self.state = {name: p.detach() for name, p in parameters.items()}, buffers
        self.base = [copy.deepcopy(experts[0])]
        # vmap may refuse operations in place.
        for module in self.base[0].modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        def one(parameters: dict[str, Tensor], buffers: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(self.base[0], (parameters, buffers), (x,))

        return torch.vmap(one)(*self.state).mean(dim=0)


def _graphed(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """The step as a CUDA graph, recorded once and replayed without launches from Python."""
    step = gradient_step(model, x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def _streams(model: nn.Module, x: Tensor, y: Tensor) -> Step:
    """Each expert on a separate CUDA stream."""
    streams = [torch.cuda.Stream() for _ in model.experts]

    def step() -> Tensor:
        z = x.detach().requires_grad_()
        current = torch.cuda.current_stream()
        logits = []
        for stream, expert in zip(streams, model.experts, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                logits.append(expert(z))
        for stream in streams:
            current.wait_stream(stream)
        mean = torch.stack(logits, dim=1).mean(dim=1)
        return torch.autograd.grad(nn.functional.cross_entropy(mean, y, reduction="sum"), z)[0]

    return step


def with_random_statistics(width: int, channels: int) -> nn.Module:
    model = resnet18(10, width, [0.5] * channels, [0.25] * channels)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    assert isinstance(model.normalize, Normalize)
    return model
