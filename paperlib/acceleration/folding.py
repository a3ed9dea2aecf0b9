"""The same network made for attacking: batch norm folded away, the experts of a mixture run as one.

An attack asks a network in evaluation mode for thousands of input gradients while its weights stand still. `fold`
makes a copy that answers faster and equals the network within rounding, which is checked on an example; what cannot
be folded is attacked as it is.
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

# Pixels a side: from the first on a CPU wants the channels last, up to the second it wants experts side by side.
LARGE_MAP, SIDE_BY_SIDE = 16, 16
# How far the copy's logits and gradients may lie from the network's, relative to their size: rounding, and a ReLU
# that rounding switches.
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.5}


@dataclass
class Folded:
    """A network and the copy of it that an attack runs."""

    model: nn.Module  # the network itself
    network: nn.Module  # its folded copy, or the network itself
    reason: str = ""  # why it could not be folded, if so
    layers: list[FoldedConvolution | FoldedLinear] = field(default_factory=list)
    max_batch: int | None = None  # how many images fit in memory at once, known after more did not

    def refresh(self) -> None:
        """Take over the weights the network has now; what no folded layer holds, copy and network share."""
        for layer in self.layers:
            layer.refresh()


class _EditsInput(Exception):
    """The model edits its input in place, so it must be handed copies."""


@dataclass(frozen=True)
class _Seen:
    """What one pass of an example tells of a convolution."""

    size: tuple[int, int]  # of the maps it reads
    norm: nn.BatchNorm2d | None  # that reads what it returns


def fold(
    model: nn.Module, example: Tensor, *, dtype: torch.dtype = torch.float32, stacked: bool | None = None
) -> Folded:
    """A copy of ``model`` for attacks on images like ``example`` (N, C, H, W); nothing in ``model`` changes.

    Args:
        dtype: what the copy computes in; its logits are float32. bfloat16 is for training attacks, never for numbers.
        stacked: run the experts of a mixture as one grouped network. None decides by the size of the images and the
            device: it pays for small images on the CPU (see tests/benchmarks/ways.py).
    """
    with eval_mode(model):
        try:
            return _fold(model, example[:2].detach().clone(), dtype, stacked)  # a model may edit its input in place
        except _EditsInput:
            return fold(Adapted(model), example, dtype=dtype, stacked=stacked)
        # Any module may be attacked, so copying one may fail in any way; it is then attacked as it is.
        except Exception as error:
            return Folded(model, model, reason=f"{type(error).__name__}: {error}")


def _fold(model: nn.Module, example: Tensor, dtype: torch.dtype, stacked: bool | None) -> Folded:
    if example.dtype != torch.float32:
        return Folded(model, model, reason=f"{example.dtype} images")
    answers, seen = _observe(model, example)
    if not seen:
        return Folded(model, model, reason="no convolution to fold")
    on_cpu, side = example.device.type == "cpu", max(example.shape[-2:])
    small = on_cpu and side < LARGE_MAP
    stacked = on_cpu and side <= SIDE_BY_SIDE if stacked is None else stacked
    with torch.no_grad():
        replaced: dict[nn.Module, nn.Module] = {}
        for group in model.modules():
            if stacked and isinstance(group, Experts) and _alike(group, seen):
                inside = _layers(
                    list(group), seen, dtype, channels_last=True, shared=not isinstance(group, PerExpertInput)
                )
                replaced |= inside
                alike = _copy(group[0], inside)
                replaced[group] = nn.Sequential(nn.Flatten(1, 2), alike) if isinstance(group, PerExpertInput) else alike
        replaced = _layers([model], seen, dtype, channels_last=not small) | replaced
        folded = Folded(model, _copy(model, replaced))
    if stacked and isinstance(folded.network, ADVMoE) and isinstance(model, ADVMoE):
        everywhere = example.unsqueeze(1).expand(-1, model.pathways, *example.shape[1:])
        pathway_networks = fold(model.pathway_networks(), everywhere, dtype=dtype, stacked=True)
        folded.network.grouped = None if pathway_networks.reason else pathway_networks.network
    folded.layers = [m for m in folded.network.modules() if isinstance(m, FoldedConvolution | FoldedLinear)]
    folded.network.eval()
    with torch.no_grad():  # some modules take another path where no gradient is wanted
        found = (*_answers(folded.network, example), folded.network(example.clone()))
    for what, value, wanted in zip(("logits", "gradients", "logits"), found, (*answers, answers[0]), strict=True):
        size, off = float(wanted.norm()), float((value - wanted).norm())
        if size == 0:
            return Folded(model, model, reason=f"{what} of zero tell nothing about a copy")
        if value.dtype != wanted.dtype or not off <= TOLERANCE[dtype] * size:
            return Folded(model, model, reason=f"the copy's {what} differ by {off / size:.2g} ({value.dtype})")
    return folded


def _answers(model: nn.Module, example: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and the gradient of something that hangs on all of them."""
    logits, gradient, _ = _graph(model, example)
    return logits, gradient


def _graph(model: nn.Module, example: Tensor) -> tuple[Tensor, Tensor, Counter[Any]]:
    """As `_answers`, with how often the result of each operation is used by others."""
    with torch.enable_grad():
        x = example.clone().requires_grad_()
        logits, edits = call_on_copy(model, x)
        if edits:
            raise _EditsInput
        weights = torch.linspace(-1, 1, logits[0].numel(), device=x.device).view(logits.shape[1:])
        used: Counter[Any] = Counter()
        waiting = [logits.grad_fn]
        while waiting:
            for operation, _ in waiting.pop().next_functions:
                if operation is not None:
                    used[operation] += 1
                    if used[operation] == 1:
                        waiting.append(operation)
        return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0], used


def _observe(model: nn.Module, example: Tensor) -> tuple[tuple[Tensor, Tensor], dict[nn.Module, _Seen]]:
    """The answers, and the convolutions that ran exactly once, in the order in which they ran."""
    outputs: dict[int, nn.Conv2d] = {}
    kept: dict[nn.Module, tuple[Tensor, Any]] = {}  # outputs, so that no two share an id, and how they came to be
    calls: Counter[nn.Module] = Counter()
    sizes: dict[nn.Conv2d, tuple[int, int]] = {}
    norms: dict[nn.Conv2d, nn.BatchNorm2d] = {}

    def after(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls[module] += 1
        if isinstance(module, nn.Conv2d):
            outputs[id(output)] = module
            kept[module] = output, output.grad_fn
            sizes[module] = (args[0].shape[2], args[0].shape[3])
            return
        conv = outputs.get(id(args[0]))
        if isinstance(module, nn.BatchNorm2d) and conv is not None and args[0].grad_fn is kept[conv][1]:
            norms[conv] = module  # nothing has changed it in place in between

    with ExitStack() as hooks:
        for module in model.modules():
            # Exact types: a subclass, a parametrised layer or one with hooks may compute something else.
            plain = type(module) in (nn.Conv2d, Shortcut, nn.BatchNorm2d) and not _hooked(module)
            if plain and getattr(module, "padding_mode", "zeros") == "zeros":
                hooks.callback(module.register_forward_hook(after).remove)
        logits, gradient, used = _graph(model, example)
    seen: dict[nn.Module, _Seen] = {}
    for conv, size in sizes.items():
        norm = norms.get(conv)
        frozen = norm is not None and calls[norm] == 1 and norm.running_mean is not None
        # Nobody but the batch norm may read what the convolution returned: folded, it is no longer there.
        frozen = frozen and used[kept[conv][1]] == 1
        if calls[conv] == 1 and not isinstance(conv.padding, str):
            seen[conv] = _Seen(size, norm if frozen else None)
    return (logits, gradient), seen


def _alike(experts: Experts, seen: dict[nn.Module, _Seen]) -> bool:
    """Whether the networks differ in nothing but the weights of convolutions, their batch norms and linear layers."""
    first, *rest = experts
    merging: set[nn.Module] = {m for net in experts for m in net.modules() if m in seen or type(m) is nn.Linear}
    merging |= {s.norm for conv in merging if (s := seen.get(conv)) and s.norm is not None}

    def same(a: nn.Module, b: nn.Module) -> bool:
        if type(a) is not type(b) or a.extra_repr() != b.extra_repr() or (a in merging) != (b in merging):
            return False
        if a in merging:
            return a not in seen or seen[a].size == seen[b].size
        # What is not merged must stay the same for ever: constants may differ from expert to expert, but do not.
        learns = any(True for _ in a.parameters(recurse=False)) or isinstance(a, nn.modules.batchnorm._NormBase)
        constants = zip(a.buffers(recurse=False), b.buffers(recurse=False), strict=True)
        return not learns and all(torch.equal(*pair) for pair in constants)

    return bool(rest) and all(
        len(list(net.modules())) == len(list(first.modules())) and all(map(same, first.modules(), net.modules()))
        for net in rest
    )


def _layers(
    networks: Sequence[nn.Module],
    seen: dict[nn.Module, _Seen],
    dtype: torch.dtype,
    *,
    channels_last: bool,
    shared: bool = True,
) -> dict[nn.Module, nn.Module]:
    """What takes the place of the layers of the first network; it stands for that layer of all of them.

    Args:
        shared: whether all networks look at the same image.
    """
    found: dict[nn.Module, nn.Module] = {}
    inside = set(networks[0].modules())
    first = next((conv for conv in seen if conv in inside), None)  # of those that read the image
    same: tuple[Any, ...]
    for same in zip(*(network.modules() for network in networks), strict=True):
        module = same[0]
        if module in seen:
            sources = [(conv, seen[conv].norm) for conv in same]
            found[module] = FoldedConvolution(
                sources,
                seen[module].size,
                shared=shared and len(networks) > 1 and module is first,
                channels_last=channels_last,
                dtype=dtype,
            )
            if (norm := seen[module].norm) is not None:
                found[norm] = nn.Identity()
        elif type(module) is nn.Linear and not _hooked(module):
            found[module] = FoldedLinear(same, dtype=dtype)
    return found


def _copy(model: nn.Module, replaced: dict[nn.Module, nn.Module]) -> nn.Module:
    """A copy that shares every parameter and buffer, with some modules replaced wherever the original holds them."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return copy.deepcopy(model, memo | {id(old): new for old, new in replaced.items()})


def _hooked(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)
