"""Faster copies of networks for attacks: batch norm is folded, and the experts of a mixture run as one network.

An attack computes thousands of input gradients of a network in evaluation mode with constant weights. `fold` makes a
copy whose logits and input gradients equal the network's within rounding; this is checked on an example. A network
that cannot be folded is attacked without a copy.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration.kernels import FoldedConvolution, FoldedLinear
from paperlib.models.adapters import Adapted, call_on_copy
from paperlib.models.advmoe import ADVMoE
from paperlib.models.mixture import Experts, PerExpertInput
from paperlib.models.modes import eval_mode
from paperlib.models.resnet import Shortcut

# On a CPU, the memory format channels last is faster from this number of pixels per side on, and experts run faster as
# one grouped network up to this number.
CHANNELS_LAST_FROM, STACKED_UP_TO = 16, 16
# Largest relative difference of the copy's logits and gradients from the network's, in the Euclidean norm. It allows
# for rounding and for single ReLUs that rounding switches.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


@dataclass
class Folded:
    """A network and the copy of it that an attack uses."""

    model: nn.Module  # the network itself
    network: nn.Module  # its folded copy; the network itself if it is not folded
    reason: str = ""  # why the network is not folded
    layers: list[FoldedConvolution | FoldedLinear] = field(default_factory=list)
    max_batch: int | None = None  # how many images fit in memory at once; None until memory first runs out

    def refresh(self) -> None:
        """Fold the current weights of the network. Network and copy share all tensors outside the folded layers."""
        for layer in self.layers:
            layer.refresh()


class _EditsInput(Exception):
    """The model edits its input in place, so it needs copies of the images."""


@dataclass(frozen=True)
class _ConvolutionUse:
    """How a network uses a convolution in a pass of the example."""

    size: tuple[int, int]  # height and width of its input
    norm: nn.BatchNorm2d | None  # the batch norm that alone reads its output


def fold(
    model: nn.Module, example: Tensor, *, dtype: torch.dtype = torch.float32, stacked: bool | None = None
) -> Folded:
    """A copy of ``model`` in evaluation mode for attacks on images like ``example``; ``model`` does not change.

    It never raises: if the model cannot be folded, the result holds the model itself and the reason.

    Args:
        example: images (N, C, H, W), of which two are used.
        dtype: dtype of the copy's computation; its logits are float32. Use bfloat16 for attacks in training only, not
            for reported numbers.
        stacked: run the experts of a mixture as one grouped network. By default this is done for small images on the
            CPU, where it is faster (see tests/benchmarks/algorithms.py).
    """
    with eval_mode(model):
        try:
            return _fold(model, example[:2].detach().clone(), dtype, stacked)  # a model may edit its input in place
        except _EditsInput:
            return fold(Adapted(model), example, dtype=dtype, stacked=stacked)
        # The module may be any user code, so the copy may fail in any way; it is then attacked without a copy.
        except Exception as error:
            return Folded(model, model, reason=f"{type(error).__name__}: {error}")


def _fold(model: nn.Module, example: Tensor, dtype: torch.dtype, stacked: bool | None) -> Folded:
    if example.dtype != torch.float32:
        return Folded(model, model, reason=f"{example.dtype} images")
    expected, uses = _observe(model, example)
    if not uses:
        return Folded(model, model, reason="no convolution to fold")
    on_cpu, side = example.device.type == "cpu", max(example.shape[-2:])
    small = on_cpu and side < CHANNELS_LAST_FROM
    stacked = on_cpu and side <= STACKED_UP_TO if stacked is None else stacked
    with torch.no_grad():
        replaced: dict[nn.Module, nn.Module] = {}
        for group in model.modules():
            if stacked and isinstance(group, Experts) and _stackable(group, uses):
                shared = not isinstance(group, PerExpertInput)
                layers = _layers(list(group), uses, dtype, channels_last=True, shared=shared)
                replaced |= layers
                grouped = _copy(group[0], layers)
                replaced[group] = grouped if shared else nn.Sequential(nn.Flatten(1, 2), grouped)
        replaced = _layers([model], uses, dtype, channels_last=not small) | replaced
        folded = Folded(model, _copy(model, replaced))
    if stacked and isinstance(folded.network, ADVMoE) and isinstance(model, ADVMoE):
        per_pathway = example.unsqueeze(1).expand(-1, model.pathways, *example.shape[1:])
        pathway_networks = fold(model.pathway_networks(), per_pathway, dtype=dtype, stacked=True)
        folded.network.grouped = None if pathway_networks.reason else pathway_networks.network
    folded.layers = [m for m in folded.network.modules() if isinstance(m, FoldedConvolution | FoldedLinear)]
    folded.network.eval()
    logits, gradient, _ = _graph(folded.network, example)
    with torch.no_grad():  # some modules compute differently without a gradient
        copied = (logits, gradient, folded.network(example.clone()))
    for name, value, original in zip(("logits", "gradients", "logits"), copied, (*expected, expected[0]), strict=True):
        size, difference = float(original.norm()), float((value - original).norm())
        if size == 0:
            return Folded(model, model, reason=f"its {name} are zero, so a copy cannot be checked")
        if value.dtype != original.dtype or not difference <= TOLERANCE[dtype] * size:
            return Folded(model, model, reason=f"the copy's {name} differ by {difference / size:.2g} ({value.dtype})")
    return folded


def _graph(model: nn.Module, example: Tensor) -> tuple[Tensor, Tensor, Counter[Any]]:
    """The logits, the input gradient of a weighted sum of them, and how often each operation's result is used."""
    with torch.enable_grad():
        x = example.clone().requires_grad_()
        logits, edits = call_on_copy(model, x)
        if edits:
            raise _EditsInput
        weights = torch.linspace(-1, 1, logits[0].numel(), device=x.device).view(logits.shape[1:])
        uses: Counter[Any] = Counter()
        pending = [logits.grad_fn]
        while pending:
            for operation, _ in pending.pop().next_functions:
                if operation is not None:
                    uses[operation] += 1
                    if uses[operation] == 1:
                        pending.append(operation)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0], uses


def _observe(model: nn.Module, example: Tensor) -> tuple[tuple[Tensor, Tensor], dict[nn.Module, _ConvolutionUse]]:
    """Logits and gradient, and the convolutions that ran exactly once, in the order in which they ran."""
    convolution_of: dict[int, nn.Conv2d] = {}  # by the id of its output
    outputs: dict[nn.Module, tuple[Tensor, Any]] = {}  # with their grad_fn; kept alive, so that no id is used again
    calls: Counter[nn.Module] = Counter()
    sizes: dict[nn.Conv2d, tuple[int, int]] = {}
    norms: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            convolution_of[id(output)] = module
            outputs[module] = output, output.grad_fn
            sizes[module] = (args[0].shape[2], args[0].shape[3])
            return
        conv = convolution_of.get(id(args[0]))
        # An equal grad_fn shows that no operation has changed the output in place in between.
        if isinstance(module, nn.BatchNorm2d) and conv is not None and args[0].grad_fn is outputs[conv][1]:
            norms[conv] = module

    with ExitStack() as hooks:
        for module in model.modules():
            # The exact type: a subclass, a parametrised layer or a layer with hooks may compute something else.
            plain = type(module) in (nn.Conv2d, Shortcut, nn.BatchNorm2d) and not _hooked(module)
            if plain and getattr(module, "padding_mode", "zeros") == "zeros":
                hooks.callback(module.register_forward_hook(after).remove)
        logits, gradient, operation_uses = _graph(model, example)
    uses: dict[nn.Module, _ConvolutionUse] = {}
    for conv, size in sizes.items():
        norm = norms.get(conv)
        foldable = norm is not None and calls[norm] == 1 and norm.running_mean is not None
        # Only the batch norm may read the output of the convolution, because folding removes that output.
        foldable = foldable and operation_uses[outputs[conv][1]] == 1
        if calls[conv] == 1 and not isinstance(conv.padding, str):
            uses[conv] = _ConvolutionUse(size, norm if foldable else None)
    return (logits, gradient), uses


def _stackable(experts: Experts, uses: dict[nn.Module, _ConvolutionUse]) -> bool:
    """Whether the networks differ only in the weights of convolutions, their batch norms and linear layers."""
    first, *rest = experts
    merged: set[nn.Module] = {m for net in experts for m in net.modules() if m in uses or type(m) is nn.Linear}
    merged |= {use.norm for conv in merged if (use := uses.get(conv)) and use.norm is not None}

    def same(a: nn.Module, b: nn.Module) -> bool:
        if type(a) is not type(b) or a.extra_repr() != b.extra_repr() or (a in merged) != (b in merged):
            return False
        if a in merged:
            return a not in uses or uses[a].size == uses[b].size
        # A layer that is not merged stands for that layer of all networks, so it must be equal and must not be trained.
        trainable = any(True for _ in a.parameters(recurse=False)) or isinstance(a, nn.modules.batchnorm._NormBase)
        constants = zip(a.buffers(recurse=False), b.buffers(recurse=False), strict=True)
        return not trainable and all(torch.equal(*pair) for pair in constants)

    return bool(rest) and all(
        len(list(net.modules())) == len(list(first.modules())) and all(map(same, first.modules(), net.modules()))
        for net in rest
    )


def _layers(
    networks: Sequence[nn.Module],
    uses: dict[nn.Module, _ConvolutionUse],
    dtype: torch.dtype,
    *,
    channels_last: bool,
    shared: bool = True,
) -> dict[nn.Module, nn.Module]:
    """The layers that replace layers of the first network; each computes that layer of all networks.

    Args:
        shared: whether all networks read the same image.
    """
    replaced: dict[nn.Module, nn.Module] = {}
    modules = set(networks[0].modules())
    first = next((conv for conv in uses if conv in modules), None)  # the layer that reads the image
    same: tuple[Any, ...]
    for same in zip(*(network.modules() for network in networks), strict=True):
        module = same[0]
        if module in uses:
            sources = [(conv, uses[conv].norm) for conv in same]
            replaced[module] = FoldedConvolution(
                sources,
                uses[module].size,
                shared=shared and len(networks) > 1 and module is first,
                channels_last=channels_last,
                dtype=dtype,
            )
            if (norm := uses[module].norm) is not None:
                replaced[norm] = nn.Identity()
        elif type(module) is nn.Linear and not _hooked(module):
            replaced[module] = FoldedLinear(same, dtype=dtype)
    return replaced


def _copy(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy that shares every parameter and buffer, with the modules ``replaced`` exchanged at every place."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo | {id(old): new for old, new in replaced.items()})


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
