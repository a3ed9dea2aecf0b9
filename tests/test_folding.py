"""Folded copies against the networks they stand for: every way of computing, every structure, and what is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import Linear, ToyNet

from paperlib import Dataset
from paperlib.acceleration import Folded, fold
from paperlib.acceleration.kernels import FoldedConvolution, FoldedLinear, Source, algorithm
from paperlib.attacks import attack, pgd
from paperlib.models import Gate, Mixture, UniformGate, resnet18

Build = Callable[[], nn.Module]


def lively(model: nn.Module) -> nn.Module:
    """With batch statistics and scales as training leaves them; a fresh batch norm in evaluation mode does nothing."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, Gate):  # its head starts at zero, which would hide the rest of it
            nn.init.normal_(module.head.weight)
    return model.eval()


def asked(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The answer, and the input gradient of something that hangs on all of it unevenly."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = network(x)
    weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).cos().view(y[0].shape)
    return y.detach(), torch.autograd.grad((y * weights).sum() + (y[:, :1] ** 2).sum(), x)[0]


def close(found: Tensor, expected: Tensor, within: float) -> bool:
    """Same shape, and no entry further off than ``within`` of the largest one."""
    same = found.shape == expected.shape
    return same and bool((found - expected).abs().max() <= within * expected.abs().max().clamp_min(1e-12))


def agree(found: nn.Module, expected: nn.Module, x: Tensor, within: float) -> bool:
    return all(close(a, b, within) for a, b in zip(asked(found, x), asked(expected, x), strict=True))


def layers(network: nn.Module) -> list[FoldedConvolution]:
    return [module for module in network.modules() if isinstance(module, FoldedConvolution)]


def train_a_little(model: nn.Module, x: Tensor, classes: int = 10) -> None:
    """A few optimiser steps in train mode: parameters and batch statistics change in place."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    y = torch.arange(len(x)) % classes
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(3 * x), y).backward()
        optimiser.step()
    model.eval()


# -- one convolution -------------------------------------------------------------------------------------------------


def source(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1, *, bias: bool = False, norm: str = "affine", **how: Any
) -> Source:
    """A convolution and what stands behind it: an ``affine`` batch norm, a ``bare`` one or ``none``."""
    how = {"stride": stride, "padding": kernel // 2, "bias": bias, **how}
    conv = nn.Conv2d(inputs, outputs, how.pop("kernel_size", kernel), **how)
    bn = None if norm == "none" else nn.BatchNorm2d(outputs, eps=0.01, affine=norm == "affine")
    lively(nn.ModuleList([conv] if bn is None else [conv, bn]))
    return conv, bn


class Reference(nn.Module):
    """Each network's convolution and batch norm after the other, as the library computes them."""

    def __init__(self, sources: list[Source], shared: bool) -> None:
        super().__init__()
        self.pairs, self.shared = sources, shared

    def forward(self, x: Tensor) -> Tensor:
        parts = [x] * len(self.pairs) if self.shared else x.chunk(len(self.pairs), dim=1)
        made = [conv(part) for (conv, _), part in zip(self.pairs, parts, strict=True)]
        return torch.cat([y if bn is None else bn(y) for (_, bn), y in zip(self.pairs, made, strict=True)], dim=1)


def maps(n: int, channels: int, size: tuple[int, int], channels_last: bool = False) -> Tensor:
    x = torch.randn(n, channels, *size)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


# (inputs, kernel, stride, side), and how one network with its channels first computes it
WAYS = [
    ((5, 3, 1, 1), "matrix"),
    ((5, 3, 1, 2), "matrix"),
    ((5, 3, 2, 2), "matrix"),
    ((5, 1, 1, 2), "matrix"),
    ((5, 1, 2, 2), "matrix"),
    ((40, 3, 1, 2), "matrix"),
    ((5, 3, 2, 4), "matrix"),
    ((5, 1, 2, 4), "matrix"),
    ((5, 3, 1, 3), "flipped"),
    ((5, 3, 1, 4), "flipped"),
    ((32, 3, 1, 8), "flipped"),
    ((5, 3, 2, 6), "flipped"),
    ((5, 3, 2, 8), "flipped"),
    ((5, 1, 2, 8), "sliced"),
    ((5, 1, 2, 16), "sliced"),
    ((40, 1, 2, 4), "sliced"),
    ((5, 3, 1, 9), "native"),
    ((33, 3, 1, 8), "native"),
    ((33, 3, 2, 4), "native"),
    ((5, 3, 2, 5), "native"),
    ((5, 3, 2, 16), "native"),
    ((5, 1, 1, 4), "native"),
    ((5, 1, 2, 5), "native"),
]
COMPANY = [(1, False), (3, False), (3, True)]  # networks, and whether they look at the same image


@pytest.mark.parametrize(("shape", "expected"), WAYS)
def test_the_way_follows_from_the_shape(shape: tuple[int, int, int, int], expected: str) -> None:
    inputs, kernel, stride, side = shape
    (conv, _) = source(inputs, 6, kernel, stride)
    assert algorithm(conv, (side, side), "cpu") == expected
    assert algorithm(conv, (side, side), "cuda") == "native"
    assert algorithm(conv, (side, side + 1), "cpu") == "native"


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("networks", "shared"), COMPANY, ids=["one", "several", "one image"])
@pytest.mark.parametrize(("shape", "one"), WAYS)
def test_a_folded_convolution_is_convolution_and_batch_norm(
    shape: tuple[int, int, int, int], one: str, networks: int, shared: bool, channels_last: bool
) -> None:
    inputs, kernel, stride, side = shape
    sources = [source(inputs, 6, kernel, stride, bias=True) for _ in range(networks)]
    layer = FoldedConvolution(sources, (side, side), shared=shared, channels_last=channels_last)
    x = maps(3, inputs if shared else networks * inputs, (side, side), channels_last)
    assert agree(layer, Reference(sources, shared), x, 1e-5)
    # A matrix would repeat the shared image for each network; turned kernels pay for one network, channels first.
    alone = {"matrix": networks == 1 or not shared, "flipped": networks == 1 and not channels_last}
    assert layer.algorithm == (one if alone.get(one, True) else "native")


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("networks", "shared"), COMPANY, ids=["one", "several", "one image"])
@pytest.mark.parametrize(
    ("forced", "kernel", "stride", "side"),
    [
        ("native", 3, 1, 4),
        ("native", 3, 2, 4),
        ("native", 1, 2, 4),
        ("matrix", 3, 1, 4),
        ("matrix", 3, 1, 5),
        ("matrix", 3, 2, 5),
        ("flipped", 3, 1, 4),
        ("flipped", 3, 1, 5),
        ("flipped", 3, 2, 4),
        ("flipped", 3, 2, 16),
        ("sliced", 1, 2, 4),
    ],
)
def test_every_way_is_right_wherever_it_could_be_chosen(
    monkeypatch: pytest.MonkeyPatch,
    forced: str,
    kernel: int,
    stride: int,
    side: int,
    networks: int,
    shared: bool,
    channels_last: bool,
) -> None:
    # The rule may change with the next processor; the ways must then be right for more than what it chooses today.
    if forced == "matrix" and shared:
        return  # refused by the layer: each network would need the image for itself
    sources = [source(4, 6, kernel, stride) for _ in range(networks)]
    for conv, bn in sources:
        nn.ModuleList([conv, bn]).double()
    monkeypatch.setattr("paperlib.acceleration.kernels.way", lambda *args: forced)
    layer = FoldedConvolution(sources, (side, side), shared=shared, channels_last=channels_last, dtype=torch.float64)
    layer.algorithm = forced  # whatever the layer itself made of it
    layer.refresh()
    x = maps(2, 4 if shared else networks * 4, (side, side), channels_last).double()
    assert agree(layer, Reference(sources, shared), x, 1e-12)


@pytest.mark.parametrize(("norm", "bias"), [(n, b) for n in ("affine", "bare", "none") for b in (False, True)])
@pytest.mark.parametrize(
    ("kernel", "stride", "side", "expected"),
    [(3, 1, 2, "matrix"), (3, 1, 8, "flipped"), (1, 2, 8, "sliced"), (3, 2, 5, "native")],
)
@pytest.mark.parametrize("networks", [1, 2])
def test_biases_and_batch_norms_of_every_kind_are_folded_in(
    norm: str, bias: bool, kernel: int, stride: int, side: int, expected: str, networks: int
) -> None:
    sources = [source(4, 6, kernel, stride, bias=bias, norm=norm) for _ in range(networks)]
    layer = FoldedConvolution(sources, (side, side))
    assert layer.algorithm == (expected if networks == 1 or expected != "flipped" else "native")
    x = maps(3, 4 * networks, (side, side))
    assert agree(layer, Reference(sources, shared=False), x, 1e-5)


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ({"dilation": 2, "padding": 2}, (8, 8)),
        ({"dilation": 2, "padding": 2, "stride": 2}, (8, 8)),
        ({"dilation": 2, "padding": 1}, (8, 8)),
        ({"groups": 2}, (8, 8)),
        ({"groups": 2, "stride": 2}, (2, 2)),
        ({"kernel_size": (3, 1), "padding": (1, 0)}, (8, 8)),
        ({"kernel_size": (1, 3), "padding": (0, 1)}, (2, 2)),
        ({"kernel_size": 5, "padding": 2}, (8, 8)),
        ({"kernel_size": 2, "padding": 0}, (2, 2)),
        ({"padding": 0}, (8, 8)),
        ({"padding": 1, "kernel_size": 1}, (2, 2)),
        ({"stride": (2, 1)}, (8, 8)),
        ({"stride": 3}, (6, 6)),
        ({}, (8, 6)),
        ({}, (1, 2)),
    ],
)
@pytest.mark.parametrize("networks", [1, 2])
def test_unusual_convolutions_are_left_to_the_library(
    how: dict[str, Any], size: tuple[int, int], networks: int
) -> None:
    sources = [source(4, 6, **how) for _ in range(networks)]
    layer = FoldedConvolution(sources, size)
    assert layer.algorithm == "native"
    assert agree(layer, Reference(sources, shared=False), maps(2, 4 * networks, size), 1e-5)


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "expected"),
    [(3, 1, 2, "matrix"), (3, 2, 4, "matrix"), (3, 1, 8, "flipped"), (3, 2, 8, "flipped"), (1, 2, 8, "sliced")],
)
@pytest.mark.parametrize("size", [(1, 1), (3, 3), (5, 5), (8, 6), (7, 8)])
def test_maps_of_another_size_than_planned_are_right_too(
    kernel: int, stride: int, side: int, expected: str, size: tuple[int, int]
) -> None:
    sources = [source(4, 6, kernel, stride)]
    layer = FoldedConvolution(sources, (side, side))
    assert layer.algorithm == expected
    assert agree(layer, Reference(sources, shared=False), maps(2, 4, size), 1e-5)
    assert agree(layer, Reference(sources, shared=False), maps(2, 4, (side, side)), 1e-5)


@settings(max_examples=150)
@given(
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    side=st.integers(1, 9),
    kernel=st.sampled_from([1, 3]),
    stride=st.sampled_from([1, 2]),
    networks=st.integers(1, 3),
    shared=st.booleans(),
    channels_last=st.booleans(),
    bias=st.booleans(),
    norm=st.sampled_from(["affine", "bare", "none"]),
    batch=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_a_folded_convolution_is_what_it_stands_for_whatever_its_shape(
    inputs: int,
    outputs: int,
    side: int,
    kernel: int,
    stride: int,
    networks: int,
    shared: bool,
    channels_last: bool,
    bias: bool,
    norm: str,
    batch: int,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    sources = [source(inputs, outputs, kernel, stride, bias=bias, norm=norm) for _ in range(networks)]
    for conv, bn in sources:
        nn.ModuleList([conv] if bn is None else [conv, bn]).double()
    how: dict[str, Any] = {"shared": shared, "channels_last": channels_last, "dtype": torch.float64}
    layer = FoldedConvolution(sources, (side, side), **how)
    x = maps(batch, inputs if shared else networks * inputs, (side, side), channels_last).double()
    assert agree(layer, Reference(sources, shared), x, 1e-10)


@pytest.mark.parametrize(("shape", "expected"), WAYS[::3])
def test_a_layer_behind_may_change_the_maps_in_place(shape: tuple[int, int, int, int], expected: str) -> None:
    inputs, kernel, stride, side = shape
    for networks in (1, 2):
        sources = [source(inputs, 6, kernel, stride) for _ in range(networks)]
        layer = FoldedConvolution(sources, (side, side))
        found = nn.Sequential(layer, nn.ReLU(inplace=True))
        wanted = nn.Sequential(Reference(sources, shared=False), nn.ReLU())
        assert agree(found, wanted, maps(2, networks * inputs, (side, side)), 1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
@pytest.mark.parametrize(("kernel", "stride", "side"), [(3, 1, 2), (3, 2, 4), (3, 1, 8), (3, 2, 8), (3, 1, 16)])
def test_gradients_come_back_in_the_layout_of_their_maps(
    kernel: int, stride: int, side: int, channels_last: bool
) -> None:
    layer = FoldedConvolution([source(4, 6, kernel, stride)], (side, side), channels_last=channels_last)
    x = maps(3, 4, (side, side), channels_last).requires_grad_()
    y = layer(x)
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert gradient.stride() == x.stride()
    if layer.algorithm != "matrix":  # which writes its rows channel by channel
        assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


@pytest.mark.parametrize("side", [8, 16])
def test_one_channel_has_no_layout_yet_what_follows_has(side: int) -> None:
    layer = FoldedConvolution([source(1, 6)], (side, side), channels_last=True)
    for x in (maps(3, 1, (side, side)), maps(3, 1, (side, side), channels_last=True)):
        assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("inplace", [False, True])
def test_linear_layers_side_by_side_are_each_network_alone(inplace: bool) -> None:
    first, second = ([nn.Linear(12, 6), nn.Linear(12, 6)], [nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)])
    x = torch.randn(7, 24)
    net = nn.Sequential(FoldedLinear(first), nn.ReLU(inplace=inplace), FoldedLinear(second))
    expected = torch.stack([second[i](first[i](part).relu()) for i, part in enumerate(x.chunk(2, dim=1))], dim=1)
    assert net(x).shape == (7, 2, 5)
    assert torch.allclose(net(x), expected, atol=1e-6)
    alone = nn.Sequential(FoldedLinear(first[:1]), nn.ReLU(inplace=inplace), FoldedLinear(second[:1]))
    assert torch.allclose(alone(x[:, :12]), expected[:, 0], atol=1e-6)


# -- whole networks --------------------------------------------------------------------------------------------------


def digit_images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def resnet(width: int = 3, channels: int = 1) -> nn.Module:
    return resnet18(10, width, (0.3,) * channels, (0.4,) * channels)


def mixture(expert: Build = resnet, experts: int = 3, mixing: str = "probabilities") -> Mixture:
    gate = Gate(experts, width=2, blocks=1, mean=(0.3,), std=(0.4,))
    return Mixture([expert() for _ in range(experts)], gate, mixing)


@pytest.mark.parametrize(("channels", "side", "width"), [(1, 8, 4), (3, 8, 4), (3, 20, 3), (1, 5, 2), (1, 8, 36)])
def test_a_folded_resnet_answers_like_the_resnet(channels: int, side: int, width: int) -> None:
    model = lively(resnet(width, channels))
    x = torch.rand(4, channels, side, side)
    folded = fold(model, x)
    assert folded.reason == "" and folded.model is model and folded.network is not model
    assert not [m for m in folded.network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert len(layers(folded.network)) == 20
    assert agree(folded.network, model, x, 1e-4)


def test_a_resnet_on_small_images_is_computed_in_every_way() -> None:
    x = torch.rand(2, 1, 8, 8)
    folded = fold(lively(resnet(4)), x)
    assert [layer.algorithm for layer in layers(folded.network)] == [
        *["flipped"] * 5,  # the stem and the first stage, 8x8
        *["flipped", "flipped", "sliced", "flipped", "flipped"],  # 8x8 to 4x4
        *["matrix"] * 10,  # 4x4 to 2x2, 2x2 to 1x1
    ]
    large = fold(lively(resnet(4)), torch.rand(2, 1, 32, 32))
    assert [layer.algorithm for layer in layers(large.network)].count("native") >= 10


def test_a_trained_network_is_folded(toy: ToyNet, digits: Dataset) -> None:
    folded = fold(toy, digits.test.images)
    assert folded.reason == ""
    assert agree(folded.network, toy, digits.test.images, 1e-5)


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("expert", [resnet, ToyNet])
def test_a_folded_mixture_answers_like_the_mixture(expert: Build, stacked: bool, mixing: str) -> None:
    model, x = lively(mixture(expert, mixing=mixing)), digit_images()
    folded = fold(model, x, stacked=stacked)
    assert folded.reason == ""
    grouped = [layer for layer in layers(folded.network) if len(layer.sources) == 3]
    per_network = len([m for m in model.experts[0].modules() if isinstance(m, nn.Conv2d)])
    assert len(grouped) == (per_network if stacked else 0)
    assert agree(folded.network, model, x, 1e-4)
    with torch.no_grad():
        found, expected = folded.network.forward_with_experts(x), model.forward_with_experts(x)  # type: ignore[operator]
    for name in ("logits", "expert_logits", "gate_weights"):
        assert close(getattr(found, name), getattr(expected, name), 1e-4)
    assert expected.expert_logits.std(dim=1).mean() > 0.01  # experts differ, so their order matters
    assert expected.gate_weights.std(dim=1).mean() > 0.01


@pytest.mark.parametrize(("side", "stacked"), [(8, True), (16, True), (17, False)])
def test_experts_run_side_by_side_where_images_are_small(side: int, stacked: bool) -> None:
    model, x = lively(mixture(lambda: resnet(2), experts=2)), torch.rand(2, 1, side, side)
    folded = fold(model, x)
    assert folded.reason == ""
    assert any(len(layer.sources) == 2 for layer in layers(folded.network)) is stacked
    assert agree(folded.network, model, x, 1e-4)


def test_images_of_another_size_than_the_example_are_answered_right() -> None:
    model = lively(mixture(lambda: resnet(2)))
    for stacked in (False, True):
        folded = fold(model, digit_images(), stacked=stacked)
        for size in ((6, 6), (9, 7), (16, 16)):
            assert agree(folded.network, model, torch.rand(3, 1, *size), 1e-4)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_copy_is_made_anywhere_from_any_number_of_images(n: int) -> None:
    model, x = lively(mixture(ToyNet)), digit_images()
    with torch.no_grad():
        folded = fold(model, x[:n].clone().requires_grad_())
        assert not torch.is_grad_enabled()
    assert folded.reason == ""
    assert agree(folded.network, model, x, 1e-4)


def test_two_copies_of_one_network_answer_bit_for_bit_alike() -> None:
    model, x = lively(mixture()), digit_images()
    first, second = (asked(fold(model, x).network, x) for _ in range(2))
    assert all(map(torch.equal, first, second))


# -- the network stays as it is --------------------------------------------------------------------------------------


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Modes, parameters, buffers, gradients, what requires them, and hooks: all as before."""

    def rest() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [
            [(name, module, module.training) for name, module in model.named_modules()],
            [[len(getattr(module, hook)) for hook in hooks] for module in model.modules()],
            [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
            [(name, id(b)) for name, b in model.named_buffers()],
        ]

    state, before = copy.deepcopy(model.state_dict()), rest()
    yield
    assert rest() == before
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class NotCopied(ToyNet):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("not to be copied")


class Fails(ToyNet):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ValueError("at the end")


@pytest.mark.parametrize("build", [resnet, ToyNet, mixture, NotCopied, Fails])
@pytest.mark.parametrize("stacked", [False, True])
def test_folding_changes_nothing_in_the_network(build: Build, stacked: bool) -> None:
    model = lively(build())
    modules = list(model.modules())
    model.train()
    for module in modules[1::2]:
        module.training = False
    next(model.parameters()).requires_grad_(False)
    modules[-1].register_forward_hook(lambda module, args, output: None)
    with unchanged(model):
        folded = fold(model, digit_images(), stacked=stacked)
    assert not any(module.training for module in folded.network.modules()) or folded.network is model


@pytest.mark.parametrize("stacked", [False, True])
def test_attacks_through_a_copy_leave_no_gradients(stacked: bool) -> None:
    model, x = lively(mixture()), digit_images()
    folded = fold(model, x, stacked=stacked)
    y = model(x).argmax(dim=1)
    with unchanged(model):
        for call in (pgd, attack):
            call(folded, x, y, eps=0.1, step_size=0.05, steps=2)
    assert all(p.grad is None for p in (*model.parameters(), *folded.network.parameters()))


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("build", [mixture, lambda: mixture(Scaled), ToyNet], ids=["mixture", "scaled", "toy"])
def test_a_copy_has_modules_of_its_own_and_the_networks_tensors(build: Build, stacked: bool) -> None:
    model = lively(build())
    folded = fold(model, digit_images(), stacked=stacked)
    assert not set(model.modules()) & set(folded.network.modules())
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert {id(tensor) for tensor in (*folded.network.parameters(), *folded.network.buffers())} <= own
    # A mode set in one is none of the other's business.
    folded.network.train()
    assert not any(module.training for module in model.modules())


# -- following a network that learns ---------------------------------------------------------------------------------


class Scaled(ToyNet):
    """With numbers of its own that are neither convolution, batch norm nor linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.slope = nn.Parameter(torch.ones(1)), nn.PReLU()
        self.register_buffer("shift", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(super().forward(x * self.scale)) + self.shift


def changed(model: nn.Module, x: Tensor) -> None:
    """Everything a network holds, changed in place."""
    train_a_little(model, x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Scaled):
                module.scale.mul_(1.5)
                module.shift.add_(torch.linspace(-1, 1, 10))
        for name, buffer in model.named_buffers():
            if name.endswith(("normalize.mean", "normalize.std")):
                buffer.mul_(1.2)


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize(
    "build",
    [resnet, ToyNet, Scaled, mixture, lambda: mixture(ToyNet)],
    ids=["resnet", "toy", "scaled", "mixture", "mixture of toys"],
)
def test_a_refreshed_copy_follows_a_network_that_has_learnt(build: Build, stacked: bool) -> None:
    model, x = build(), digit_images(20)
    folded = fold(model, x, stacked=stacked)  # at its random start, as training does
    assert folded.reason == ""
    for _ in range(2):
        changed(model, x)
        assert not agree(folded.network, model, x, 1e-2)  # folded layers stand still until they are told
        folded.refresh()
        assert agree(folded.network, model, x, 1e-4)


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_refreshed_copy_follows_each_tensor_of_each_batch_norm(name: str, stacked: bool) -> None:
    model, x = lively(mixture(ToyNet, experts=2)), digit_images()
    folded = fold(model, x, stacked=stacked)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        with torch.no_grad():
            getattr(norm, name).mul_(1.5)
        assert not agree(folded.network, model, x, 1e-5)
        folded.refresh()
        assert agree(folded.network, model, x, 1e-5)


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_refreshed_copy_follows_each_expert_and_the_gate(name: str, stacked: bool) -> None:
    model, x = lively(mixture(experts=2)), digit_images()
    folded = fold(model, x, stacked=stacked)
    for network in (*model.experts, model.gate):
        with torch.no_grad():
            tensor = getattr(network.head, name)
            tensor.add_(torch.randn_like(tensor))
        assert not agree(folded.network, model, x, 1e-5)
        folded.refresh()
        assert agree(folded.network, model, x, 1e-4)


def test_refreshing_a_network_attacked_as_it_is_does_nothing(linear: Linear) -> None:
    folded = fold(linear, torch.rand(2, 1, 2, 2))
    with unchanged(linear):
        folded.refresh()


# -- what cannot be folded -------------------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolution, ``middle`` and a linear layer, for images of 8x8; ``parts`` replace or join the usual ones."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(256, 10)
        self.middle = middle or (lambda net, x: net.bn(net.conv(x)))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.first(x).relu()).relu().flatten(1))


def named_again(name: str, middle: Callable[[Any, Tensor], Tensor] | None = None) -> Net:
    net = Net(middle)
    net.again = getattr(net, name)
    return net


def hooked(name: str, register: str, hook: Callable[..., object]) -> Net:
    net = Net()
    getattr(getattr(net, name), register)(hook)
    return net


def norm_over_conv(net: Any, x: Tensor) -> Tensor:
    y = net.conv(x)
    return y + net.bn(y)


class Standardised(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)


class ReadsTheHead(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.middle(self, self.first(x)).flatten(1) @ self.head.weight.mT + self.head.bias


class ReadsASquareHead(Net):
    """Square, so that no shape gives away a weight stored the other way round."""

    def __init__(self) -> None:
        super().__init__(square=nn.Linear(10, 10))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(super().forward(x), self.square.weight, self.square.bias)


class KeepsAList(Net):
    """Its layers also stand where nobody looks for modules."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__(middle)
        self.order = [self.conv, self.bn]


class Transformer(nn.Module):
    """Its encoder reads the weights of linear layers by itself, above all where no gradient is wanted."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


# Where one part cannot be folded the others still are: how to build it, and how many convolutions are.
PARTLY: dict[str, tuple[Build, int]] = {
    "as it should be": (Net, 2),
    "output used beside the norm": (lambda: Net(norm_over_conv), 2),
    "norm of a part": (lambda: Net(lambda net, x: net.bn(net.conv(x)[:, :, 1:].tile(1, 1, 2, 1)[:, :, :8])), 2),
    "convolution twice": (lambda: Net(lambda net, x: net.bn(net.conv(net.conv(x).tanh()))), 1),
    "norm twice": (lambda: Net(lambda net, x: net.bn(net.bn(net.conv(x)).tanh())), 2),
    "statistics of the batch": (lambda: Net(bn=nn.BatchNorm2d(4, track_running_stats=False)), 2),
    "hook on the convolution": (lambda: hooked("conv", "register_forward_hook", lambda m, args, y: 2 * y), 1),
    "hook on the norm": (lambda: hooked("bn", "register_forward_pre_hook", lambda m, args: (2 * args[0],)), 2),
    "hook on the head": (lambda: hooked("head", "register_forward_hook", lambda m, args, y: y**2), 2),
    "hook backwards": (lambda: hooked("conv", "register_full_backward_hook", lambda m, g, _: (2 * g[0],)), 1),
    "hook before backwards": (
        lambda: hooked("conv", "register_full_backward_pre_hook", lambda m, g: (g[0].abs(),)),
        1,
    ),
    "subclass": (lambda: Net(conv=Standardised(4, 4, 3, padding=1)), 1),
    "parametrised": (
        lambda: Net(conv=nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 3, padding=1))),
        1,
    ),
    "circular": (lambda: Net(conv=nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), 1),
    "same": (lambda: Net(conv=nn.Conv2d(4, 4, 3, padding="same")), 1),
}


@pytest.mark.parametrize(("build", "count"), PARTLY.values(), ids=PARTLY.keys())
@pytest.mark.parametrize("learnt", [False, True], ids=["fresh", "learnt"])
def test_what_cannot_be_folded_stays_as_it_is_within_the_copy(build: Build, count: int, learnt: bool) -> None:
    model, x = build().eval(), digit_images(20)
    if learnt:
        lively(model)
    folded = fold(model, x)
    assert folded.reason == ""
    assert len(layers(folded.network)) == count
    assert agree(folded.network, model, x, 1e-4)
    train_a_little(model, x)
    folded.refresh()
    assert agree(folded.network, model, x, 1e-4)


NOT_AT_ALL: dict[str, tuple[Build, str]] = {
    "no convolution": (lambda: Linear(torch.randn(10, 64)), "no convolution to fold"),
    "the only one twice": (
        lambda: Net(
            lambda net, x: net.conv(net.conv(x)),
            first=nn.Identity(),
            conv=nn.Conv2d(1, 1, 3, padding=1),
            head=nn.Linear(64, 10),
        ),
        "no convolution to fold",
    ),
    "not to be copied": (NotCopied, "TypeError: not to be copied"),
    "fails": (Fails, "ValueError: at the end"),
    "random": (lambda: Net(lambda net, x: net.bn(net.conv(x) + torch.randn(4, 1, 1))), "logits differ"),
    "reads the head": (ReadsTheHead, ""),
    "reads a square head": (ReadsASquareHead, ""),
    "reads the kernel": (lambda: Net(lambda net, x: net.bn(net.conv(x)) * net.conv.weight.norm()), ""),
    "reads the norm": (lambda: Net(lambda net, x: net.bn(net.conv(x)) * net.bn.running_var.norm()), ""),
}


@pytest.mark.parametrize(("build", "reason"), NOT_AT_ALL.values(), ids=NOT_AT_ALL.keys())
@pytest.mark.parametrize("stacked", [False, True])
def test_what_cannot_be_copied_faithfully_is_attacked_as_it_is_for_a_reason(
    build: Build, reason: str, stacked: bool
) -> None:
    model = lively(build())
    with unchanged(model):
        folded = fold(model, digit_images(), stacked=stacked)
    assert folded.network is model and folded.model is model
    assert folded.reason and reason in folded.reason
    assert folded.layers == []


# How these are folded, if at all, is open; never wrongly.
EITHER_WAY: dict[str, Build] = {
    "convolution under two names": lambda: named_again("conv"),
    "called by the other": lambda: named_again("conv", lambda net, x: net.bn(net.again(x))),
    "norm called by the other": lambda: named_again("bn", lambda net, x: net.again(net.conv(x))),
    "head under two names": lambda: named_again("head"),
    "list": lambda: KeepsAList(lambda net, x: net.order[1](net.order[0](x))),
    "list for one": lambda: KeepsAList(lambda net, x: net.bn(net.order[0](x))),
    "list for the other": lambda: KeepsAList(lambda net, x: net.order[1](net.conv(x))),
    # What stands between convolution and batch norm returns the very tensor it was given.
    "change in place": lambda: Net(lambda net, x: net.bn(nn.functional.relu(net.conv(x), inplace=True))),
    "change in place by a module": lambda: Net(middle=None, bn=nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(4))),
    "change in place behind the norm": lambda: Net(lambda net, x: net.bn(net.conv(x)).mul_(2)),
    "transformer": Transformer,
}


@pytest.mark.parametrize(
    ("build", "learnt"),
    [
        pytest.param(
            build,
            learnt,
            id=f"{name}, {'learnt' if learnt else 'fresh'}",
        )
        for name, build in EITHER_WAY.items()
        for learnt in (False, True)
    ],
)
def test_a_copy_is_never_wrong_neither_at_first_nor_after_training(build: Build, learnt: bool) -> None:
    model, x = build().eval(), digit_images(20)
    if learnt:
        lively(model)
    folded = fold(model, x)
    assert agree(folded.network, model, x, 1e-4)
    lively(model)  # a fresh batch norm does nothing, so what was folded wrongly may show only now
    folded.refresh()
    assert agree(folded.network, model, x, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_images_of_another_type_are_left_to_the_network(dtype: torch.dtype) -> None:
    model = lively(ToyNet()).to(dtype)
    folded = fold(model, digit_images().to(dtype))
    assert folded.network is model
    assert str(dtype) in folded.reason


@pytest.mark.parametrize("build", [mixture, Transformer])
def test_a_copy_also_answers_where_no_gradient_is_wanted(build: Build) -> None:
    model, x = lively(build()), digit_images()
    folded = fold(model, x)
    with torch.no_grad():
        assert close(folded.network(x), model(x), 1e-4)
    attack(folded, x, model(x).argmax(dim=1), eps=0.01, step_size=0.01, steps=1)


# -- experts that do not run side by side ----------------------------------------------------------------------------


def two_experts(change: Callable[[nn.Module], object]) -> Mixture:
    model = mixture(lambda: resnet(2), experts=3)
    change(model.experts[1])
    return model


class Deeper(ToyNet):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Tanh())


APART = {
    "wider": lambda: Mixture([resnet(2), resnet(3), resnet(2)], UniformGate(3)),
    "deeper": lambda: Mixture([ToyNet(), Deeper()], UniformGate(2)),
    "another eps": lambda: two_experts(lambda expert: setattr(expert.stem[1], "eps", 0.1)),
    "normalised otherwise": lambda: two_experts(lambda expert: expert.normalize.mean.add_(0.1)),
    "with a hook": lambda: two_experts(
        lambda expert: expert.stem[0].register_forward_hook(lambda module, args, output: 2 * output)
    ),
    "another class": lambda: Mixture([ToyNet(), resnet(2)], UniformGate(2)),
    "alone": lambda: mixture(experts=1),
}


@pytest.mark.parametrize("build", APART.values(), ids=APART.keys())
def test_experts_that_differ_are_folded_one_by_one(build: Build) -> None:
    model, x = lively(build()), digit_images()
    folded = fold(model, x, stacked=True)
    assert folded.reason == ""
    assert len(layers(folded.network)) > 3
    assert all(len(layer.sources) == 1 for layer in layers(folded.network))
    assert agree(folded.network, model, x, 1e-4)


class Powered(ToyNet):
    """With a plain number that nothing shows."""

    power = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x**self.power)


class Softened(nn.Module):
    """Layers whose output mixes the channels of all networks that stand side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ToyNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.net.body(x).softmax(dim=1).flatten(1))


def differently_powered() -> Mixture:
    model = mixture(Powered, experts=2)
    model.experts[1].power = 2.0
    return model


def sharing_a_part() -> Mixture:
    model = mixture(experts=2)
    model.experts[1].normalize = model.experts[0].normalize
    return model


@pytest.mark.parametrize("build", [differently_powered, sharing_a_part, lambda: mixture(Softened)])
def test_experts_that_cannot_stand_side_by_side_are_never_answered_wrong(build: Build) -> None:
    model, x = lively(build()), digit_images()
    folded = fold(model, x, stacked=True)
    assert agree(folded.network, model, x, 1e-4)


def test_experts_whose_heads_begin_at_zero_are_never_answered_wrong_later() -> None:
    model, x = lively(mixture(Softened, mixing="logits")), digit_images()
    heads = [module for expert in model.experts for module in expert.modules() if isinstance(module, nn.Linear)]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    folded = fold(model, x, stacked=True)
    for head in heads:
        nn.init.normal_(head.weight)
    folded.refresh()
    assert agree(folded.network, model, x, 1e-4)


def sloped(depth: int) -> nn.Module:
    """An expert with a parameter of its own, equal in all experts at first, at different places of the structure."""
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten()]
    head = nn.Linear(256, 10)
    return nn.Sequential(*parts, head) if depth == 0 else nn.Sequential(nn.Sequential(*parts), nn.Tanh(), head)


def slope_in_the_place_of_a_head() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(), nn.Flatten()),
        nn.Linear(256, 10),
    )


OWN = [lambda: sloped(0), lambda: sloped(1), slope_in_the_place_of_a_head, Scaled]


@pytest.mark.parametrize("expert", OWN)
def test_experts_with_parameters_of_their_own_are_followed_each(expert: Build) -> None:
    model, x = mixture(expert), digit_images(20)
    folded = fold(model, x, stacked=True)
    assert agree(folded.network, model.eval(), x, 1e-4)
    train_a_little(model, x)
    with torch.no_grad():
        for i, network in enumerate(model.experts):
            for module in network.modules():
                if isinstance(module, nn.PReLU):
                    module.weight.fill_(i - 1.0)
    folded.refresh()
    assert agree(folded.network, model, x, 1e-4)


# -- half precision --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [resnet, ToyNet, mixture], ids=["resnet", "toy", "mixture"])
@pytest.mark.parametrize("stacked", [False, True])
def test_a_copy_in_half_precision_is_close_and_answers_in_full(build: Build, stacked: bool) -> None:
    model, x = lively(build()), digit_images(20)
    folded = fold(model, x, dtype=torch.bfloat16, stacked=stacked)
    assert folded.reason == ""
    (found, gradient), (expected, exact) = asked(folded.network, x), asked(model, x)
    assert found.dtype == torch.float32 and gradient.dtype == torch.float32
    assert not torch.equal(found, expected)  # it was computed in half precision
    assert float((found - expected).norm() / expected.norm()) < 0.05
    assert torch.isfinite(gradient).all()
    assert float(nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0)) > 0.9
    assert layers(folded.network)[0](x).dtype == torch.bfloat16


def test_a_network_without_a_linear_layer_answers_in_full_precision_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    folded = fold(lively(model), digit_images(), dtype=torch.bfloat16)
    assert folded.network(digit_images()).dtype == torch.float32


def test_a_folded_network_by_hand_needs_no_more_than_network_and_copy(toy: ToyNet) -> None:
    folded = Folded(toy, toy)
    assert (folded.reason, folded.layers, folded.max_batch) == ("", [], None)
    folded.refresh()
