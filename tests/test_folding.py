"""Folded copies compared with their networks: each algorithm, each structure, and networks that are not folded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import Linear, ToyNet

from paperlib import Dataset
from paperlib.acceleration import Folded, fold
from paperlib.acceleration.kernels import FoldedConvolution, FoldedLinear, Source, algorithm
from paperlib.attacks import attack, pgd
from paperlib.models import Gate, Mixture, UniformGate, resnet18

Build = Callable[[], nn.Module]


def with_batch_statistics(model: nn.Module) -> nn.Module:
    """The model in evaluation mode with non-trivial batch norms: a fresh batch norm is the identity in that mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2)
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.3)
        if isinstance(module, Gate):  # its head starts at zero, and its logits would not depend on the other layers
            nn.init.normal_(module.head.weight)
    return model.eval()


def logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output of a network, and the input gradient of a function of all its entries with unequal weights."""
    x = x.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    y = network(x)
    weights = torch.linspace(-1, 1, y[0].numel(), dtype=y.dtype).cos().view(y[0].shape)
    return y.detach(), torch.autograd.grad((y * weights).sum() + (y[:, :1] ** 2).sum(), x)[0]


def close_to(value: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether the shapes are equal and no entry differs by more than ``tolerance`` times the largest entry."""
    scale = expected.abs().max().clamp_min(1e-12)
    return value.shape == expected.shape and bool((value - expected).abs().max() <= tolerance * scale)


def same_logits_and_gradients(network: nn.Module, expected: nn.Module, x: Tensor, tolerance: float) -> bool:
    pairs = zip(logits_and_gradient(network, x), logits_and_gradient(expected, x), strict=True)
    return all(close_to(a, b, tolerance) for a, b in pairs)


def layers(network: nn.Module) -> list[FoldedConvolution]:
    return [module for module in network.modules() if isinstance(module, FoldedConvolution)]


def train_a_little(model: nn.Module, x: Tensor, classes: int = 10) -> None:
    """A few optimiser steps in training mode: parameters and batch statistics change in place."""
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05)
    y = torch.arange(len(x)) % classes
    for _ in range(5):
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(3 * x), y).backward()
        optimiser.step()
    model.eval()


# -- one convolution ---------------------------------------------------------------------------------------------------


def source(
    inputs: int,
    outputs: int,
    kernel: int = 3,
    stride: int = 1,
    *,
    bias: bool = False,
    norm: str = "affine",
    **options: Any,
) -> Source:
    """A convolution and the batch norm after it: ``affine``, ``bare`` (without parameters) or ``none``."""
    options = {"stride": stride, "padding": kernel // 2, "bias": bias, **options}
    conv = nn.Conv2d(inputs, outputs, options.pop("kernel_size", kernel), **options)
    bn = None if norm == "none" else nn.BatchNorm2d(outputs, eps=0.01, affine=norm == "affine")
    with_batch_statistics(nn.ModuleList([conv] if bn is None else [conv, bn]))
    return conv, bn


class Reference(nn.Module):
    """The convolution and batch norm of each network, computed by torch."""

    def __init__(self, sources: list[Source], shared: bool) -> None:
        super().__init__()
        self.sources, self.shared = sources, shared

    def forward(self, x: Tensor) -> Tensor:
        parts = [x] * len(self.sources) if self.shared else x.chunk(len(self.sources), dim=1)
        outputs = [conv(part) for (conv, _), part in zip(self.sources, parts, strict=True)]
        return torch.cat([y if bn is None else bn(y) for (_, bn), y in zip(self.sources, outputs, strict=True)], dim=1)


def in_float64(sources: list[Source]) -> list[Source]:
    for conv, bn in sources:
        nn.ModuleList([conv] if bn is None else [conv, bn]).double()
    return sources


def maps(n: int, channels: int, size: tuple[int, int], channels_last: bool = False) -> Tensor:
    x = torch.randn(n, channels, *size)
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


# (inputs, kernel, stride, side), and the algorithm of one network with channels first
ALGORITHMS = [
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
NETWORKS = [(1, False), (3, False), (3, True)]  # number of networks, and whether they read the same image


def test_the_algorithm_follows_from_shape_device_and_memory_format() -> None:
    for (inputs, kernel, stride, side), expected in ALGORITHMS:
        (conv, bn) = source(inputs, 6, kernel, stride)
        assert algorithm(conv, (side, side), "cpu") == expected
        assert algorithm(conv, (side, side), "cuda") == "native"
        assert algorithm(conv, (side, side + 1), "cpu") == "native"
        for networks, shared in NETWORKS:
            for channels_last in (False, True):
                layer = FoldedConvolution(
                    [(conv, bn)] * networks, (side, side), shared=shared, channels_last=channels_last
                )
                # A matrix would repeat a shared image for each network; a flipped kernel is only faster for one
                # network with channels first.
                used = {"matrix": networks == 1 or not shared, "flipped": networks == 1 and not channels_last}
                assert layer.algorithm == (expected if used.get(expected, True) else "native")


@pytest.mark.parametrize(
    ("forced", "shapes"),
    [
        ("native", [(3, 1, 4), (3, 2, 4), (1, 2, 4)]),
        ("matrix", [(3, 1, 4), (3, 1, 5), (3, 2, 5)]),
        ("flipped", [(3, 1, 4), (3, 1, 5), (3, 2, 4), (3, 2, 16)]),
        ("sliced", [(1, 2, 4)]),
    ],
)
def test_each_algorithm_is_correct_for_more_shapes_than_the_rule_chooses(
    monkeypatch: pytest.MonkeyPatch, forced: str, shapes: list[tuple[int, int, int]]
) -> None:
    # The rule may change with the next processor.
    monkeypatch.setattr("paperlib.acceleration.kernels.algorithm", lambda *args: forced)
    networks = [(n, shared) for n, shared in NETWORKS if not (forced == "matrix" and shared)]
    for kernel, stride, side in shapes:
        for n, shared in networks:
            for channels_last in (False, True):
                sources = in_float64([source(4, 6, kernel, stride) for _ in range(n)])
                settings: dict[str, Any] = {"shared": shared, "channels_last": channels_last, "dtype": torch.float64}
                layer = FoldedConvolution(sources, (side, side), **settings)
                layer.algorithm = forced  # the layer itself uses some algorithms for one network only
                layer.refresh()
                x = maps(2, 4 if shared else n * 4, (side, side), channels_last).double()
                assert same_logits_and_gradients(layer, Reference(sources, shared), x, 1e-12)


UNUSUAL: list[tuple[dict[str, Any], tuple[int, int]]] = [
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
]


def test_other_kernels_strides_paddings_and_maps_use_the_native_algorithm() -> None:
    for options, size in UNUSUAL:
        for networks in (1, 2):
            sources = [source(4, 6, **options) for _ in range(networks)]
            layer = FoldedConvolution(sources, size)
            assert layer.algorithm == "native", options
            x = maps(2, 4 * networks, size)
            assert same_logits_and_gradients(layer, Reference(sources, shared=False), x, 1e-5), options


@pytest.mark.parametrize(
    ("kernel", "stride", "side", "expected"),
    [(3, 1, 2, "matrix"), (3, 2, 4, "matrix"), (3, 1, 8, "flipped"), (3, 2, 8, "flipped"), (1, 2, 8, "sliced")],
)
def test_maps_of_another_size_than_expected_give_the_same_result(
    kernel: int, stride: int, side: int, expected: str
) -> None:
    sources = [source(4, 6, kernel, stride)]
    layer = FoldedConvolution(sources, (side, side))
    assert layer.algorithm == expected
    for size in ((1, 1), (3, 3), (5, 5), (8, 6), (7, 8), (side, side)):
        assert same_logits_and_gradients(layer, Reference(sources, shared=False), maps(2, 4, size), 1e-5)


def one_convolution(**changes: Any) -> dict[str, Any]:
    base = {"inputs": 4, "outputs": 6, "side": 8, "kernel": 3, "stride": 1, "networks": 1, "shared": False}
    return base | {"channels_last": False, "bias": True, "norm": "affine", "batch": 3, "seed": 0} | changes


@settings(max_examples=120)
@example(**one_convolution(side=2))  # matrix
@example(**one_convolution(side=2, networks=2, norm="bare"))  # matrix, grouped
@example(**one_convolution())  # flipped
@example(**one_convolution(stride=2, bias=False))  # flipped, strided
@example(**one_convolution(kernel=1, stride=2, networks=3, shared=True))  # sliced
@example(**one_convolution(inputs=33, side=2, networks=2, norm="none"))
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
def test_a_folded_convolution_equals_convolution_and_batch_norm(
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
    in_float64(sources)
    options: dict[str, Any] = {"shared": shared, "channels_last": channels_last, "dtype": torch.float64}
    layer = FoldedConvolution(sources, (side, side), **options)
    x = maps(batch, inputs if shared else networks * inputs, (side, side), channels_last).double()
    assert same_logits_and_gradients(layer, Reference(sources, shared), x, 1e-10)


def test_the_next_layer_may_change_the_maps_in_place() -> None:
    for (inputs, kernel, stride, side), _ in ALGORITHMS[::3]:
        for networks in (1, 2):
            sources = [source(inputs, 6, kernel, stride) for _ in range(networks)]
            folded = nn.Sequential(FoldedConvolution(sources, (side, side)), nn.ReLU(inplace=True))
            reference = nn.Sequential(Reference(sources, shared=False), nn.ReLU())
            assert same_logits_and_gradients(folded, reference, maps(2, networks * inputs, (side, side)), 1e-5)


@pytest.mark.parametrize("channels_last", [False, True], ids=["first", "last"])
def test_gradients_have_the_memory_format_of_their_maps(channels_last: bool) -> None:
    for kernel, stride, side in ((3, 1, 2), (3, 2, 4), (3, 1, 8), (3, 2, 8), (3, 1, 16)):
        layer = FoldedConvolution([source(4, 6, kernel, stride)], (side, side), channels_last=channels_last)
        x = maps(3, 4, (side, side), channels_last).requires_grad_()
        y = layer(x)
        (gradient,) = torch.autograd.grad(y.sum(), x)
        assert gradient.stride() == x.stride()
        if layer.algorithm != "matrix":  # its result is always contiguous
            assert y.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def test_the_maps_after_one_channel_images_are_channels_last() -> None:
    for side in (8, 16):
        layer = FoldedConvolution([source(1, 6)], (side, side), channels_last=True)
        for x in (maps(3, 1, (side, side)), maps(3, 1, (side, side), channels_last=True)):
            assert layer(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("inplace", [False, True])
def test_stacked_linear_layers_equal_the_layer_of_each_network(inplace: bool) -> None:
    first, second = ([nn.Linear(12, 6), nn.Linear(12, 6)], [nn.Linear(6, 5, bias=False), nn.Linear(6, 5, bias=False)])
    x = torch.randn(7, 24)
    net = nn.Sequential(FoldedLinear(first), nn.ReLU(inplace=inplace), FoldedLinear(second))
    expected = torch.stack([second[i](first[i](part).relu()) for i, part in enumerate(x.chunk(2, dim=1))], dim=1)
    assert net(x).shape == (7, 2, 5)
    assert torch.allclose(net(x), expected, atol=1e-6)
    single = nn.Sequential(FoldedLinear(first[:1]), nn.ReLU(inplace=inplace), FoldedLinear(second[:1]))
    assert torch.allclose(single(x[:, :12]), expected[:, 0], atol=1e-6)


# -- whole networks ----------------------------------------------------------------------------------------------------


def digit_images(n: int = 5) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(2))


def resnet(width: int = 3, channels: int = 1) -> nn.Module:
    return resnet18(10, width, (0.3,) * channels, (0.4,) * channels)


def mixture(expert: Build = resnet, experts: int = 3, mixing: str = "probabilities") -> Mixture:
    gate = Gate(experts, width=2, blocks=1, mean=(0.3,), std=(0.4,))
    return Mixture([expert() for _ in range(experts)], gate, mixing)


@pytest.mark.parametrize(("channels", "side", "width"), [(3, 20, 3), (1, 5, 2), (1, 8, 36)])
def test_a_folded_resnet_has_the_logits_and_gradients_of_the_resnet(channels: int, side: int, width: int) -> None:
    model = with_batch_statistics(resnet(width, channels))
    x = torch.rand(4, channels, side, side)
    folded = fold(model, x)
    assert folded.reason == "" and folded.model is model and folded.network is not model
    assert not [m for m in folded.network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    assert len(layers(folded.network)) == 20
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def test_a_resnet_on_small_images_uses_every_algorithm() -> None:
    x = torch.rand(2, 1, 8, 8)
    folded = fold(with_batch_statistics(resnet(4)), x)
    assert [layer.algorithm for layer in layers(folded.network)] == [
        *["flipped"] * 5,  # the stem and the first stage, 8x8
        *["flipped", "flipped", "sliced", "flipped", "flipped"],  # 8x8 to 4x4
        *["matrix"] * 10,  # 4x4 to 2x2, 2x2 to 1x1
    ]
    large = fold(with_batch_statistics(resnet(4)), torch.rand(2, 1, 32, 32))
    assert [layer.algorithm for layer in layers(large.network)].count("native") >= 10


def test_a_trained_network_is_folded(toy: ToyNet, digits: Dataset) -> None:
    folded = fold(toy, digits.test.images)
    assert folded.reason == ""
    assert same_logits_and_gradients(folded.network, toy, digits.test.images, 1e-5)


@pytest.mark.parametrize(
    ("expert", "stacked", "mixing"),
    [(resnet, False, "probabilities"), (resnet, True, "logits"), (ToyNet, True, "probabilities")],
)
def test_a_folded_mixture_has_the_outputs_of_the_mixture(expert: Build, stacked: bool, mixing: str) -> None:
    model, x = with_batch_statistics(mixture(expert, mixing=mixing)), digit_images()
    folded = fold(model, x, stacked=stacked)
    assert folded.reason == ""
    grouped = [layer for layer in layers(folded.network) if len(layer.sources) == 3]
    per_network = len([m for m in model.experts[0].modules() if isinstance(m, nn.Conv2d)])
    assert len(grouped) == (per_network if stacked else 0)
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)
    with torch.no_grad():
        output, expected = folded.network.forward_with_experts(x), model.forward_with_experts(x)  # type: ignore[operator]
    for name in ("logits", "expert_logits", "gate_weights"):
        assert close_to(getattr(output, name), getattr(expected, name), 1e-4)
    # The experts and their weights differ, so a wrong order would show.
    assert expected.expert_logits.std(dim=1).mean() > 0.01
    assert expected.gate_weights.std(dim=1).mean() > 0.01


def test_experts_are_stacked_for_small_images() -> None:
    for side, stacked in ((8, True), (16, True), (17, False)):
        model, x = with_batch_statistics(mixture(lambda: resnet(2), experts=2)), torch.rand(2, 1, side, side)
        folded = fold(model, x)
        assert folded.reason == ""
        assert any(len(layer.sources) == 2 for layer in layers(folded.network)) is stacked
        assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def test_images_may_have_another_size_than_the_example() -> None:
    model = with_batch_statistics(mixture(lambda: resnet(2)))
    for stacked in (False, True):
        folded = fold(model, digit_images(), stacked=stacked)
        for size in ((6, 6), (9, 7), (16, 16)):
            assert same_logits_and_gradients(folded.network, model, torch.rand(3, 1, *size), 1e-4)


def test_the_example_may_have_any_number_of_images_and_gradients_may_be_off() -> None:
    model, x = with_batch_statistics(mixture(ToyNet)), digit_images()
    for n in (1, 2, 5):
        with torch.no_grad():
            folded = fold(model, x[:n].clone().requires_grad_())
            assert not torch.is_grad_enabled()
        assert folded.reason == ""
        assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def test_two_copies_of_one_network_are_equal_bit_for_bit() -> None:
    model, x = with_batch_statistics(mixture()), digit_images()
    first, second = (logits_and_gradient(fold(model, x).network, x) for _ in range(2))
    assert all(map(torch.equal, first, second))


# -- the network does not change ---------------------------------------------------------------------------------------


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Modes, parameters, buffers, gradients, ``requires_grad`` and hooks are the same after the block."""

    def objects() -> list[Any]:
        hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
        return [
            [(name, module, module.training) for name, module in model.named_modules()],
            [[len(getattr(module, hook)) for hook in hooks] for module in model.modules()],
            [(name, id(p), p.requires_grad, p.grad) for name, p in model.named_parameters()],
            [(name, id(b)) for name, b in model.named_buffers()],
        ]

    state, before = copy.deepcopy(model.state_dict()), objects()
    yield
    assert objects() == before
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


class NotCopied(ToyNet):
    def __deepcopy__(self, memo: Any) -> nn.Module:
        raise TypeError("cannot be copied")


class Fails(ToyNet):
    def forward(self, x: Tensor) -> Tensor:
        super().forward(x)
        raise ValueError("at the end")


@pytest.mark.parametrize(
    ("build", "stacked"), [(ToyNet, False), (mixture, False), (mixture, True), (NotCopied, False), (Fails, False)]
)
def test_folding_changes_nothing_in_the_network(build: Build, stacked: bool) -> None:
    model = with_batch_statistics(build())
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
def test_attacks_on_a_copy_leave_no_gradients(stacked: bool) -> None:
    model, x = with_batch_statistics(mixture()), digit_images()
    folded = fold(model, x, stacked=stacked)
    y = model(x).argmax(dim=1)
    with unchanged(model):
        for call in (pgd, attack):
            call(folded, x, y, eps=0.1, step_size=0.05, steps=2)
    assert all(p.grad is None for p in (*model.parameters(), *folded.network.parameters()))


@pytest.mark.parametrize(
    ("build", "stacked"),
    [(lambda: mixture(Scaled), False), (lambda: mixture(Scaled), True), (mixture, True)],
    ids=["one by one", "scaled, stacked", "stacked"],
)
def test_a_copy_has_separate_modules_and_shares_the_tensors(build: Build, stacked: bool) -> None:
    model = with_batch_statistics(build())
    folded = fold(model, digit_images(), stacked=stacked)
    assert not set(model.modules()) & set(folded.network.modules())
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert {id(tensor) for tensor in (*folded.network.parameters(), *folded.network.buffers())} <= tensors
    # A change of mode of one does not change the other.
    folded.network.train()
    assert not any(module.training for module in model.modules())


# -- a network in training ---------------------------------------------------------------------------------------------


class Scaled(ToyNet):
    """With parameters and a buffer outside of convolutions, batch norms and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.slope = nn.Parameter(torch.ones(1)), nn.PReLU()
        self.register_buffer("shift", torch.zeros(10))

    def forward(self, x: Tensor) -> Tensor:
        return self.slope(super().forward(x * self.scale)) + self.shift


def change_all(model: nn.Module, x: Tensor) -> None:
    """Change all parameters and buffers of a network in place."""
    train_a_little(model, x)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Scaled):
                module.scale.mul_(1.5)
                module.shift.add_(torch.linspace(-1, 1, 10))
        for name, buffer in model.named_buffers():
            if name.endswith(("normalize.mean", "normalize.std")):
                buffer.mul_(1.2)


@pytest.mark.parametrize(
    ("build", "stacked"),
    [(Scaled, False), (mixture, False), (mixture, True), (lambda: mixture(ToyNet), True)],
    ids=["scaled", "mixture", "mixture, stacked", "mixture of toys, stacked"],
)
def test_refresh_takes_over_the_weights_of_a_trained_network(build: Build, stacked: bool) -> None:
    model, x = build(), digit_images(20)
    folded = fold(model, x, stacked=stacked)  # of the untrained network, as in training
    assert folded.reason == ""
    for _ in range(2):
        change_all(model, x)
        assert not same_logits_and_gradients(folded.network, model, x, 1e-2)  # before refresh, the weights are old
        folded.refresh()
        assert same_logits_and_gradients(folded.network, model, x, 1e-4)


@pytest.mark.parametrize("stacked", [False, True])
def test_refresh_takes_over_each_tensor_of_each_batch_norm(stacked: bool) -> None:
    model, x = with_batch_statistics(mixture(ToyNet, experts=2)), digit_images()
    folded = fold(model, x, stacked=stacked)
    for norm in [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]:
        for name in ("weight", "bias", "running_mean", "running_var"):
            with torch.no_grad():
                getattr(norm, name).mul_(1.5)
            assert not same_logits_and_gradients(folded.network, model, x, 1e-5)
            folded.refresh()
            assert same_logits_and_gradients(folded.network, model, x, 1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_refresh_takes_over_each_head_of_experts_and_gate(stacked: bool) -> None:
    model, x = with_batch_statistics(mixture(experts=2)), digit_images()
    folded = fold(model, x, stacked=stacked)
    for network in (*model.experts, model.gate):
        for name in ("weight", "bias"):
            with torch.no_grad():
                tensor = getattr(network.head, name)
                tensor.add_(torch.randn_like(tensor))
            assert not same_logits_and_gradients(folded.network, model, x, 1e-5)
            folded.refresh()
            assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def test_refresh_without_a_copy_does_nothing(linear: Linear) -> None:
    folded = fold(linear, torch.rand(2, 1, 2, 2))
    with unchanged(linear):
        folded.refresh()


# -- networks that cannot be folded ------------------------------------------------------------------------------------


class Net(nn.Module):
    """Convolution, ``middle`` and a linear layer, for images of 8x8; ``parts`` replace modules or add some."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] | None = None, **parts: nn.Module) -> None:
        super().__init__()
        self.first, self.conv = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.bn, self.head = nn.BatchNorm2d(4), nn.Linear(256, 10)
        self.middle = middle or (lambda net, x: net.bn(net.conv(x)))
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.middle(self, self.first(x).relu()).relu().flatten(1))


def under_two_names(name: str, middle: Callable[[Any, Tensor], Tensor] | None = None) -> Net:
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
    """With a square head, so that a transposed weight has the same shape."""

    def __init__(self) -> None:
        super().__init__(square=nn.Linear(10, 10))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(super().forward(x), self.square.weight, self.square.bias)


class KeepsAList(Net):
    """A Python list holds its layers too."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor] | None = None) -> None:
        super().__init__(middle)
        self.order = [self.conv, self.bn]


class Transformer(nn.Module):
    """Its encoder reads the weights of linear layers directly, above all without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 8, 2, 2)
        self.encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(dim=1))


# Networks of which a part cannot be folded, with the number of convolutions that are folded.
PARTLY: dict[str, tuple[Build, int]] = {
    "all parts": (Net, 2),
    "output used beside the norm": (lambda: Net(norm_over_conv), 2),
    "norm of a part": (lambda: Net(lambda net, x: net.bn(net.conv(x)[:, :, 1:].tile(1, 1, 2, 1)[:, :, :8])), 2),
    "convolution twice": (lambda: Net(lambda net, x: net.bn(net.conv(net.conv(x).tanh()))), 1),
    "norm twice": (lambda: Net(lambda net, x: net.bn(net.bn(net.conv(x)).tanh())), 2),
    "batch statistics": (lambda: Net(bn=nn.BatchNorm2d(4, track_running_stats=False)), 2),
    "hook on the convolution": (lambda: hooked("conv", "register_forward_hook", lambda m, args, y: 2 * y), 1),
    "hook on the norm": (lambda: hooked("bn", "register_forward_pre_hook", lambda m, args: (2 * args[0],)), 2),
    "hook on the head": (lambda: hooked("head", "register_forward_hook", lambda m, args, y: y**2), 2),
    "backward hook": (lambda: hooked("conv", "register_full_backward_hook", lambda m, g, _: (2 * g[0],)), 1),
    "backward pre-hook": (
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
def test_a_part_that_cannot_be_folded_does_not_change_in_the_copy(build: Build, count: int) -> None:
    model, x = build().eval(), digit_images(20)
    folded = fold(model, x)
    assert folded.reason == ""
    assert len(layers(folded.network)) == count
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)
    # A fresh batch norm is the identity, so an error of folding may show only after training.
    train_a_little(model, x)
    folded.refresh()
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


NOT_AT_ALL: dict[str, tuple[Build, str]] = {
    "no convolution": (lambda: Linear(torch.randn(10, 64)), "no convolution to fold"),
    "one convolution twice": (
        lambda: Net(
            lambda net, x: net.conv(net.conv(x)),
            first=nn.Identity(),
            conv=nn.Conv2d(1, 1, 3, padding=1),
            head=nn.Linear(64, 10),
        ),
        "no convolution to fold",
    ),
    "cannot be copied": (NotCopied, "TypeError: cannot be copied"),
    "fails": (Fails, "ValueError: at the end"),
    "random": (lambda: Net(lambda net, x: net.bn(net.conv(x) + torch.randn(4, 1, 1))), "logits differ"),
    "reads the head": (ReadsTheHead, ""),
    "reads a square head": (ReadsASquareHead, ""),
    "reads the kernel": (lambda: Net(lambda net, x: net.bn(net.conv(x)) * net.conv.weight.norm()), ""),
    "reads the norm": (lambda: Net(lambda net, x: net.bn(net.conv(x)) * net.bn.running_var.norm()), ""),
}


@pytest.mark.parametrize(("build", "reason"), NOT_AT_ALL.values(), ids=NOT_AT_ALL.keys())
def test_a_network_without_an_equal_copy_is_attacked_itself_and_the_reason_is_given(build: Build, reason: str) -> None:
    model = with_batch_statistics(build())
    with unchanged(model):
        folded = fold(model, digit_images())
    assert folded.network is model and folded.model is model
    assert folded.reason and reason in folded.reason
    assert folded.layers == []


# These may be folded or not; the copy must be equal.
EITHER_WAY: dict[str, Build] = {
    "convolution under two names": lambda: under_two_names("conv"),
    "called by the other": lambda: under_two_names("conv", lambda net, x: net.bn(net.again(x))),
    "norm called by the other": lambda: under_two_names("bn", lambda net, x: net.again(net.conv(x))),
    "head under two names": lambda: under_two_names("head"),
    "list": lambda: KeepsAList(lambda net, x: net.order[1](net.order[0](x))),
    "list for one": lambda: KeepsAList(lambda net, x: net.bn(net.order[0](x))),
    "list for the other": lambda: KeepsAList(lambda net, x: net.order[1](net.conv(x))),
    # The operation between convolution and batch norm returns the same tensor object, changed in place.
    "change in place": lambda: Net(lambda net, x: net.bn(nn.functional.relu(net.conv(x), inplace=True))),
    "change in place by a module": lambda: Net(middle=None, bn=nn.Sequential(nn.ReLU(inplace=True), nn.BatchNorm2d(4))),
    "change in place after the norm": lambda: Net(lambda net, x: net.bn(net.conv(x)).mul_(2)),
    "transformer": Transformer,
}


@pytest.mark.parametrize("build", EITHER_WAY.values(), ids=EITHER_WAY.keys())
def test_a_copy_is_equal_at_first_and_after_training(build: Build) -> None:
    x = digit_images(20)
    for trained_statistics in (False, True):
        model = build().eval()
        if trained_statistics:
            with_batch_statistics(model)
        folded = fold(model, x)
        assert same_logits_and_gradients(folded.network, model, x, 1e-4)
        # A fresh batch norm is the identity, so an error of folding may show only after training.
        with_batch_statistics(model)
        folded.refresh()
        assert same_logits_and_gradients(folded.network, model, x, 1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_for_images_of_another_dtype_the_network_is_not_folded(dtype: torch.dtype) -> None:
    model = with_batch_statistics(ToyNet()).to(dtype)
    folded = fold(model, digit_images().to(dtype))
    assert folded.network is model
    assert str(dtype) in folded.reason


@pytest.mark.parametrize("build", [mixture, Transformer])
def test_a_copy_is_equal_without_gradients_too(build: Build) -> None:
    model, x = with_batch_statistics(build()), digit_images()
    folded = fold(model, x)
    with torch.no_grad():
        assert close_to(folded.network(x), model(x), 1e-4)
    attack(folded, x, model(x).argmax(dim=1), eps=0.01, step_size=0.01, steps=1)


# -- experts that cannot be stacked ------------------------------------------------------------------------------------


def two_experts(change: Callable[[nn.Module], object]) -> Mixture:
    model = mixture(lambda: resnet(2), experts=3)
    change(model.experts[1])
    return model


class Deeper(ToyNet):
    def __init__(self) -> None:
        super().__init__()
        self.body.append(nn.Tanh())


NOT_STACKABLE = {
    "wider": lambda: Mixture([resnet(2), resnet(3), resnet(2)], UniformGate(3)),
    "deeper": lambda: Mixture([ToyNet(), Deeper()], UniformGate(2)),
    "another eps of batch norm": lambda: two_experts(lambda expert: setattr(expert.stem[1], "eps", 0.1)),
    "another normalisation": lambda: two_experts(lambda expert: expert.normalize.mean.add_(0.1)),
    "with a hook": lambda: two_experts(
        lambda expert: expert.stem[0].register_forward_hook(lambda module, args, output: 2 * output)
    ),
    "another class": lambda: Mixture([ToyNet(), resnet(2)], UniformGate(2)),
    "a single expert": lambda: mixture(experts=1),
}


@pytest.mark.parametrize("build", NOT_STACKABLE.values(), ids=NOT_STACKABLE.keys())
def test_experts_that_differ_are_folded_one_by_one(build: Build) -> None:
    model, x = with_batch_statistics(build()), digit_images()
    folded = fold(model, x, stacked=True)
    assert folded.reason == ""
    assert len(layers(folded.network)) > 3
    assert all(len(layer.sources) == 1 for layer in layers(folded.network))
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


class Powered(ToyNet):
    """With a number that is neither a parameter, a buffer nor part of the representation."""

    power = 1.0

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x**self.power)


class Softened(nn.Module):
    """With a softmax over channels, which would mix the channels of all stacked networks."""

    def __init__(self) -> None:
        super().__init__()
        self.net = ToyNet()

    def forward(self, x: Tensor) -> Tensor:
        return self.net.head(self.net.body(x).softmax(dim=1).flatten(1))


def differently_powered() -> Mixture:
    model = mixture(Powered, experts=2)
    model.experts[1].power = 2.0
    return model


def sharing_a_module() -> Mixture:
    model = mixture(experts=2)
    model.experts[1].normalize = model.experts[0].normalize
    return model


@pytest.mark.parametrize("build", [differently_powered, sharing_a_module, lambda: mixture(Softened)])
def test_a_copy_of_experts_that_must_not_be_stacked_is_equal(build: Build) -> None:
    model, x = with_batch_statistics(build()), digit_images()
    folded = fold(model, x, stacked=True)
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def test_a_copy_of_experts_with_heads_of_zero_is_equal_after_training() -> None:
    model, x = with_batch_statistics(mixture(Softened, mixing="logits")), digit_images()
    heads = [module for expert in model.experts for module in expert.modules() if isinstance(module, nn.Linear)]
    for head in heads:
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
    folded = fold(model, x, stacked=True)
    for head in heads:
        nn.init.normal_(head.weight)
    folded.refresh()
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


def sloped(depth: int) -> nn.Module:
    """An expert with a PReLU, whose parameter is equal in all experts at first; ``depth`` of its layers."""
    parts = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten()]
    head = nn.Linear(256, 10)
    return nn.Sequential(*parts, head) if depth == 0 else nn.Sequential(nn.Sequential(*parts), nn.Tanh(), head)


def prelu_in_place_of_a_head() -> nn.Module:
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.PReLU(), nn.Flatten()),
        nn.Linear(256, 10),
    )


WITH_PRELU = [lambda: sloped(0), lambda: sloped(1), prelu_in_place_of_a_head, Scaled]


@pytest.mark.parametrize("expert", WITH_PRELU)
def test_parameters_outside_folded_layers_may_differ_between_experts(expert: Build) -> None:
    model, x = mixture(expert), digit_images(20)
    folded = fold(model, x, stacked=True)
    assert same_logits_and_gradients(folded.network, model.eval(), x, 1e-4)
    train_a_little(model, x)
    with torch.no_grad():
        for i, network in enumerate(model.experts):
            for module in network.modules():
                if isinstance(module, nn.PReLU):
                    module.weight.fill_(i - 1.0)
    folded.refresh()
    assert same_logits_and_gradients(folded.network, model, x, 1e-4)


# -- half precision ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "stacked"),
    [(ToyNet, False), (mixture, False), (mixture, True)],
    ids=["toy", "mixture", "mixture, stacked"],
)
def test_a_bfloat16_copy_is_close_and_returns_float32(build: Build, stacked: bool) -> None:
    model, x = with_batch_statistics(build()), digit_images(20)
    folded = fold(model, x, dtype=torch.bfloat16, stacked=stacked)
    assert folded.reason == ""
    (logits, gradient), (expected, exact) = logits_and_gradient(folded.network, x), logits_and_gradient(model, x)
    assert logits.dtype == torch.float32 and gradient.dtype == torch.float32
    assert not torch.equal(logits, expected)  # it was computed in half precision
    assert float((logits - expected).norm() / expected.norm()) < 0.05
    assert torch.isfinite(gradient).all()
    assert float(nn.functional.cosine_similarity(gradient.flatten(), exact.flatten(), dim=0)) > 0.9
    assert layers(folded.network)[0](x).dtype == torch.bfloat16


def test_a_bfloat16_copy_without_a_linear_layer_returns_float32_too() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 10, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    folded = fold(with_batch_statistics(model), digit_images(), dtype=torch.bfloat16)
    assert folded.network(digit_images()).dtype == torch.float32


def test_a_folded_object_needs_only_the_network_and_its_copy(toy: ToyNet) -> None:
    folded = Folded(toy, toy)
    assert (folded.reason, folded.layers, folded.max_batch) == ("", [], None)
    folded.refresh()
