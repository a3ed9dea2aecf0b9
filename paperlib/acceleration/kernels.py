"""Convolutions and linear layers for attacks: the weights are constant, and only the input gradient is needed.

Batch norm in evaluation mode is a fixed scale and shift per channel, so it is folded into the convolution before it.
One grouped convolution may replace the same convolution of several networks. Where the CPU's kernels are slow, another
algorithm computes the same result. The algorithm depends on shapes alone and not on measured times, so the same inputs
always give the same bits. tests/benchmarks/algorithms.py measures the cost of each algorithm.
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

# From more channels than this, the CPU's native kernels are at least as fast on small maps.
NARROW = 32
SMALL_MAP = 8  # pixels a side


def algorithm(conv: nn.Conv2d, size: tuple[int, int], device: str) -> str:
    """The algorithm for this convolution on maps of ``size`` (height, width) on a device type such as ``"cpu"``.

    - ``native``: torch's forward and backward kernels.
    - ``matrix``: a product with the full matrix of the convolution, for maps of a few pixels.
    - ``flipped``: the input gradient as a forward convolution with the kernel rotated by 180 degrees, because forward
      kernels are faster than backward kernels.
    - ``sliced``: a 1x1 convolution of stride 2 reads every other pixel, so the others are dropped first.
    """
    kernel, stride, padding = conv.kernel_size, conv.stride, conv.padding
    square = kernel in ((1, 1), (3, 3)) and padding == (kernel[0] // 2,) * 2 and stride in ((1, 1), (2, 2))
    if device != "cpu" or not square or conv.dilation != (1, 1) or conv.groups != 1 or size[0] != size[1]:
        return "native"
    side, narrow = size[0], conv.in_channels <= NARROW
    # On a map of 2x2, most of the 9 kernel entries of a pixel fall outside the map, so the matrix is small.
    if side <= 2 or (side == 4 and stride == (2, 2) and narrow):
        return "matrix"
    if kernel == (1, 1):
        return "sliced" if stride == (2, 2) and side % 2 == 0 else "native"
    return "flipped" if side <= SMALL_MAP and side % stride[0] == 0 and narrow else "native"


class FoldedConvolution(nn.Module):
    """A convolution and the batch norm after it, of one network or of several networks as a grouped convolution.

    Maps (N, blocks * C_in, H, W) become (N, networks * C_out, H', W'). The input has one block of channels for each
    network, or a single block if all networks read the same input (``shared``).

    Args:
        sources: the same convolution of each network, with its batch norm in evaluation mode, or None.
        size: expected height and width of the input; for inputs of another size the native algorithm is used.
        shared: whether all networks read the same input, as in their first layer.
        channels_last: memory format of the maps.
        dtype: dtype of the computation.
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
        # A tuple, so that the original layers do not become submodules of this one.
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
            self.algorithm = "native"  # as fast with channels last or several networks
        if self.algorithm == "matrix":
            self.index_map = index_map(
                conv.out_channels, conv.in_channels, conv.kernel_size[0], conv.stride[0], size[0]
            )
        self.refresh()

    def refresh(self) -> None:
        """Fold the current weights of the networks."""
        # The names differ from ``weight`` and ``bias``: a network that reads a layer's ``weight`` directly then raises,
        # and `fold` does not fold it.
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
            sliced = x[:, :, ::2, ::2].contiguous(memory_format=self.format)
            return F.conv2d(sliced, self.folded_weight, self.folded_bias, groups=self.groups)
        if algorithm == "flipped":
            return FlippedKernel.apply(
                x, self.folded_weight, self.folded_bias, self.flipped_kernel, self.stride[0], self.groups
            )
        y = F.conv2d(x, self.folded_weight, self.folded_bias, self.stride, self.padding, self.dilation, self.groups)
        return y.contiguous(memory_format=self.format)  # one-channel images do not determine the memory format

    def extra_repr(self) -> str:
        return f"{self.algorithm}, networks={len(self.sources)}, outputs={self.outputs}, groups={self.groups}"


class FoldedLinear(nn.Module):
    """The linear layer of one network, or of several networks at once; the result is float32.

    Features (N, networks * inputs) become (N, outputs) for one network and (N, networks, outputs) for several.
    """

    def __init__(self, sources: Sequence[nn.Linear], *, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.sources, self.dtype = tuple(sources), dtype
        self.refresh()

    def refresh(self) -> None:
        """Fold the current weights of the networks."""
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
    """A convolution as a product with its full matrix, one for each network; the input is not saved for backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, offset: Tensor, shape: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(matrix)
        ctx.shape, ctx.format = x.shape, _format(x)
        return _multiply(x, matrix, shape, offset)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (matrix,) = ctx.saved_tensors
        input_gradient = _multiply(gradient, matrix.mT, ctx.shape)
        return input_gradient.contiguous(memory_format=ctx.format), None, None, None


def _multiply(x: Tensor, matrix: Tensor, shape: tuple[int, ...], offset: Tensor | None = None) -> Tensor:
    """The product of ``x``, viewed as (N, networks, K), and ``matrix`` (networks, K, M), in ``shape``."""
    # The result is new memory: autograd forbids the next layer to change a view in place.
    result = x.new_empty(shape)
    if len(matrix) == 1:
        x, flat = x.reshape(len(x), -1), result.view(len(x), -1)
        torch.mm(x, matrix[0], out=flat) if offset is None else torch.addmm(offset[0], x, matrix[0], out=flat)
        return result
    blocks = x.reshape(len(x), len(matrix), -1).transpose(0, 1)
    product = blocks @ matrix if offset is None else torch.baddbmm(offset, blocks, matrix)
    result.view(len(x), len(matrix), -1).copy_(product.transpose(0, 1))
    return result


class FlippedKernel(torch.autograd.Function):
    """A convolution whose input gradient is a forward convolution too; the input is not saved for backward."""

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
            input_gradient = F.conv2d(gradient, flipped_kernel, padding=1, groups=ctx.groups)
        else:
            # A 2x2 block of input pixels contributes to the output pixel at its own position and to the next ones
            # to the right and below.
            padded = F.pad(gradient, (0, 1, 0, 1))
            input_gradient = F.pixel_shuffle(F.conv2d(padded, flipped_kernel, groups=ctx.groups), 2)
        return input_gradient.contiguous(memory_format=ctx.format), None, None, None, None, None


def _format(x: Tensor) -> torch.memory_format:
    # Gradients get the memory format of their maps: mixed formats slow down every layer in between.
    return torch.contiguous_format if x.is_contiguous() else torch.channels_last


def _folded(sources: Sequence[Source]) -> tuple[Tensor, Tensor]:
    """Kernels and biases with the batch norms folded in, concatenated over the networks."""
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
    """The kernel of the input gradient: input and output channels exchanged, rotated by 180 degrees."""
    outputs, inputs, k, _ = weight.shape
    if stride == 2:
        # On 2x2 blocks of pixels, a 3x3 convolution of stride 2 is a 2x2 convolution of stride 1 with 4 times the
        # channels.
        weight = F.pad(weight, (1, 0, 1, 0)).view(outputs, inputs, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4)
        inputs, k = inputs * 4, 2
    weight = weight.reshape(groups, outputs // groups, inputs, k, k).transpose(1, 2).flip(3, 4)
    return weight.reshape(groups * inputs, outputs // groups, k, k)


@functools.cache
def index_map(outputs: int, inputs: int, k: int, stride: int, side: int) -> Tensor:
    """For each input and output pixel, the index of their weight in the flat kernel; the kernel's length if none."""
    count = outputs * inputs * k * k
    # The kernel holds the numbers 1, 2, ..., and each image has one pixel of 1, so that the output shows the numbers.
    numbers = torch.arange(1, count + 1, dtype=torch.float64).view(outputs, inputs, k, k)
    pixels = torch.eye(inputs * side * side, dtype=torch.float64).view(-1, inputs, side, side)
    weights = F.conv2d(pixels, numbers, stride=stride, padding=k // 2).flatten(1).round().long()
    return torch.where(weights == 0, count, weights - 1)
