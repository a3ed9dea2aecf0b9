"""Convolutions of networks under attack: weights stand still and only the input gradient is wanted.

Batch norm in evaluation mode is a fixed scale and shift per channel, so it is folded into the convolution before it.
One such convolution may stand for those of several networks of one shape, as the groups of a grouped convolution.
Where a CPU's kernels are slow, the same numbers are computed another way; which way is decided by shapes alone, never
by timing, so that equal work gives equal bits. tests/benchmarks/ways.py measures what each way costs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Source = tuple[nn.Conv2d, nn.BatchNorm2d | None]

# Above this many channels a CPU's own kernels are as fast on small maps as anything below.
NARROW = 32
SMALL_MAP = 8  # pixels a side


def algorithm(conv: nn.Conv2d, size: tuple[int, int], device: str) -> str:
    """How to compute this convolution on maps of ``size``.

    ``native``: the library's forward and backward kernels. ``matrix``: on a map of a few pixels a convolution is a
    full matrix, and a matrix product is faster. ``flipped``: the input gradient is itself a convolution, with the
    kernel rotated by 180 degrees, and forward kernels are faster than backward ones. ``sliced``: a strided 1x1
    convolution reads every other pixel, so drop the others first.
    """
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    square = kernel in ((1, 1), (3, 3)) and padding == (kernel[0] // 2,) * 2 and stride in ((1, 1), (2, 2))
    if device != "cpu" or not square or conv.dilation != (1, 1) or conv.groups != 1 or size[0] != size[1]:
        return "native"
    side, narrow = size[0], conv.in_channels <= NARROW
    # Of the 9 taps per pixel most fall outside a map of 2x2, so the matrix has fewer entries than it looks.
    if side <= 2 or (side == 4 and stride == (2, 2) and narrow):
        return "matrix"
    if kernel == (1, 1):
        return "sliced" if stride == (2, 2) and side % 2 == 0 else "native"
    return "flipped" if side <= SMALL_MAP and side % stride[0] == 0 and narrow else "native"


class FoldedConvolution(nn.Module):
    """A convolution with the batch norm behind it, of one network or of several side by side.

    Images (N, C, H, W) become (N, networks * channels, H', W'). The input holds one block of channels per network,
    or, for the first layer of networks that look at the same image (``shared``), a single one.

    Args:
        sources: the same convolution of each network, with its batch norm in evaluation mode, or None.
        size: height and width of the maps it will see; others work too, natively.
        shared: whether all networks read the same input.
        dtype: what to compute in.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        size: tuple[int, int],
        *,
        shared: bool = False,
        channels_last: bool = False,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        # In a tuple, so that the networks attacked do not become submodules of the copy.
        self.sources = tuple(sources)
        conv = sources[0][0]
        networks = len(sources)
        self.size, self.dtype = size, dtype
        self.networks = 1 if shared else networks
        self.outputs = networks * conv.out_channels
        self.stride, self.padding, self.dilation = conv.stride, conv.padding, conv.dilation
        self.groups = conv.groups * self.networks
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.algorithm = algorithm(conv, size, conv.weight.device.type)
        if self.algorithm == "matrix" and shared and networks > 1:
            self.algorithm = "native"
        if self.algorithm == "flipped" and (channels_last or networks > 1):
            self.algorithm = "native"  # with the channels last, or many, native kernels keep up
        if self.algorithm == "matrix":
            self.index_map = index_map(
                conv.out_channels, conv.in_channels, conv.kernel_size[0], conv.stride[0], size[0]
            )
        self.refresh()

    def refresh(self) -> None:
        """Take over the weights the networks have now."""
        # Under names of their own: a module that reads a layer's ``weight`` itself must fail, and so be left alone.
        weight, bias = _folded(self.sources)
        self.folded_weight = weight.to(self.dtype).contiguous(memory_format=self.format)
        self.folded_bias = bias.to(self.dtype)
        if self.algorithm == "matrix":
            rows, columns = self.index_map.shape
            entries = F.pad(weight.reshape(self.networks, -1), (0, 1))
            self.matrix = entries.index_select(1, self.index_map.flatten()).view(-1, rows, columns).to(self.dtype)
            pixels = columns * self.networks // self.outputs
            self.offset = self.folded_bias.repeat_interleave(pixels).view(self.networks, 1, columns)
        elif self.algorithm == "flipped":
            self.flipped_kernel = flipped_kernel(self.folded_weight, self.groups, self.stride[0]).contiguous(
                memory_format=self.format
            )

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        algorithm = self.algorithm if x.shape[2:] == self.size else "native"
        if algorithm == "matrix":
            side = (self.size[0] - 1) // self.stride[0] + 1
            return _Matrix.apply(x, self.matrix, self.offset, (len(x), self.outputs, side, side))
        if algorithm == "sliced":
            kept = x[:, :, ::2, ::2].contiguous(memory_format=self.format)
            return F.conv2d(kept, self.folded_weight, self.folded_bias, groups=self.groups)
        if algorithm == "flipped":
            return FlippedKernel.apply(
                x, self.folded_weight, self.folded_bias, self.flipped_kernel, self.stride[0], self.groups
            )
        y = F.conv2d(x, self.folded_weight, self.folded_bias, self.stride, self.padding, self.dilation, self.groups)
        return y.contiguous(memory_format=self.format)  # one-channel images have no layout to follow

    def extra_repr(self) -> str:
        return f"{self.algorithm}, networks={len(self.sources)}, outputs={self.outputs}, groups={self.groups}"


class FoldedLinear(nn.Module):
    """The linear layer of one network, or of several side by side; the answer is float32.

    Features (N, networks * inputs) become (N, outputs) for one network, (N, networks, outputs) for several.
    """

    def __init__(self, sources: Sequence[nn.Linear], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sources, self.dtype = tuple(sources), dtype
        self.refresh()

    def refresh(self) -> None:
        """Take over the weights the networks have now."""
        self.folded_weight = torch.stack([layer.weight.detach() for layer in self.sources]).mT.to(self.dtype)
        biases = [
            layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias for layer in self.sources
        ]
        self.folded_bias = torch.stack([bias.detach() for bias in biases]).unsqueeze(1).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.dtype)
        if len(self.sources) == 1:
            return torch.matmul(x, self.folded_weight[0]).add(self.folded_bias[0, 0]).float()
        parts = x.view(len(x), len(self.sources), -1).transpose(0, 1)
        return torch.baddbmm(self.folded_bias, parts, self.folded_weight).transpose(0, 1).float()


class _Matrix(torch.autograd.Function):
    """A convolution as a product with its full matrix, one for each network; nothing of the input is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.shape, ctx.format = x.shape, _format(x)
        return _multiply(x, matrix, shape, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (matrix,) = ctx.saved_tensors
        back = _multiply(gradient, matrix.mT, ctx.shape)
        return back.contiguous(memory_format=ctx.format), None, None, None


def _multiply(x: Tensor, matrix: Tensor, shape: tuple[int, ...], offset: Tensor | None = None) -> Tensor:
    """Blocks of channels (N, networks * K, h, w) times (networks, K, M), returned in ``shape``."""
    # Written into fresh memory: autograd would not let a layer behind this one change a view in place.
    found = x.new_empty(shape)
    if len(matrix) == 1:
        x, flat = x.reshape(len(x), -1), found.view(len(x), -1)
        torch.mm(x, matrix[0], out=flat) if offset is None else torch.addmm(offset[0], x, matrix[0], out=flat)
        return found
    blocks = x.reshape(len(x), len(matrix), -1).transpose(0, 1)
    product = blocks @ matrix if offset is None else torch.baddbmm(offset, blocks, matrix)
    found.view(len(x), len(matrix), -1).copy_(product.transpose(0, 1))
    return found


class FlippedKernel(torch.autograd.Function):
    """A convolution whose input gradient is computed as a convolution too; nothing of the input is kept for it."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, flipped_kernel: Tensor, stride: int, groups: int
    ) -> Tensor:
        ctx.save_for_backward(flipped_kernel)
        ctx.stride, ctx.groups, ctx.format = stride, groups, _format(x)
        return F.conv2d(x, weight, bias, stride, padding=1, groups=groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (flipped_kernel,) = ctx.saved_tensors
        if ctx.stride == 1:
            back = F.conv2d(gradient, flipped_kernel, padding=1, groups=ctx.groups)
        else:
            # A pixel feeds the output at its own place in the coarse map and the next one down and right.
            ahead = F.pad(gradient, (0, 1, 0, 1))
            back = F.pixel_shuffle(F.conv2d(ahead, flipped_kernel, groups=ctx.groups), 2)
        return back.contiguous(memory_format=ctx.format), None, None, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    # Gradients come back in the layout of what they belong to: mixed layouts slow every layer in between.
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _folded(sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
    """Kernels and biases with the batch norms folded in, those of all networks one behind the other."""
    convs = [conv for conv, _ in sources]
    norms = [norm for _, norm in sources if norm is not None]
    weight = _join(convs, "weight")
    zero = weight.new_zeros(())
    bias = zero if convs[0].bias is None else _join(convs, "bias")
    if not norms:
        return weight, bias.expand(len(weight))
    # BN(w * x + b) = s (w * x) + s (b - mean) + beta  with  s = gamma / sqrt(var + eps)
    affine = norms[0].affine
    scale = torch.rsqrt(_join(norms, "running_var") + norms[0].eps)
    scale = scale * _join(norms, "weight") if affine else scale
    beta = _join(norms, "bias") if affine else zero
    bias = torch.addcmul(beta, bias - _join(norms, "running_mean"), scale)
    return weight * scale.view(-1, 1, 1, 1), bias


def _join(modules: Sequence[nn.Module], name: str) -> Tensor:
    tensors = [getattr(module, name).detach() for module in modules]
    return torch.cat(tensors) if len(tensors) > 1 else tensors[0]


def flipped_kernel(weight: Tensor, groups: int, stride: int) -> Tensor:
    """The kernel of the input gradient: inputs and outputs exchanged, turned by 180 degrees."""
    outputs, inputs, k, _ = weight.shape
    if stride == 2:
        # Seen from 2x2 blocks of pixels, a strided 3x3 convolution is an unstrided 2x2 one on four times the channels.
        weight = F.pad(weight, (1, 0, 1, 0)).view(outputs, inputs, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4)
        inputs, k = inputs * 4, 2
    weight = weight.reshape(groups, outputs // groups, inputs, k, k).transpose(1, 2).flip(3, 4)
    return weight.reshape(groups * inputs, outputs // groups, k, k)


@functools.cache
def index_map(outputs: int, inputs: int, k: int, stride: int, side: int) -> Tensor:
    """Which weight joins each input pixel to each output pixel: an index into the flat kernel, its end for none."""
    count = outputs * inputs * k * k
    # A convolution that counts: its kernel holds the numbers 1, 2, ... and each image a single pixel.
    numbers = torch.arange(1, count + 1, dtype=torch.float64).view(outputs, inputs, k, k)
    pixels = torch.eye(inputs * side * side, dtype=torch.float64).view(-1, inputs, side, side)
    met = F.conv2d(pixels, numbers, stride=stride, padding=k // 2).flatten(1).round().long()
    return torch.where(met == 0, count, met - 1)
