"""ResNet, gate and mixture against their definitions, and with extreme logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from paperlib import Dataset
from paperlib.acceleration import fold
from paperlib.models import Gate, Mixture, Normalize, ResNet, UniformGate, parameters, resnet18
from paperlib.models.resnet import Shortcut

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
# As counted for the usual CIFAR ResNet-18 (kuangliu/pytorch-cifar), whose stem is one 3x3 convolution.
CIFAR_RESNET18 = 11_173_962


class ConstantLogits(nn.Module):
    """The same logits for every image."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.row.expand(len(x), -1) + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def small_mixture(mixing: str = "probabilities") -> Mixture:
    torch.manual_seed(0)
    gate = Gate(3, width=2, blocks=1, mean=(0.3,), std=(0.4,))
    return Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(3)], gate, mixing)


def with_statistics(model: nn.Module, data: Dataset) -> nn.Module:
    """The model with random last layers and the batch-norm statistics of some images, so that logits differ."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    model.train()
    for _ in range(5):
        model(data.train.images[:60])
    return model.eval()


# -- residual networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "side", "width"), [(3, 32, 4), (1, 5, 2)])
def test_resnet18_takes_images_of_any_size(channels: int, side: int, width: int) -> None:
    model = resnet18(7, width, MEAN[:channels], STD[:channels]).eval()
    x = torch.rand(2, channels, side, side)
    assert model(x).shape == (2, 7)
    assert model.features(x).shape == (2, 8 * width)


def test_full_width_resnet18_has_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        model = resnet18(10, 64, MEAN, STD)
    assert parameters(model) == CIFAR_RESNET18


def test_the_stem_keeps_the_resolution_and_three_stages_halve_it() -> None:
    model = resnet18(10, 4, MEAN, STD).eval()
    x = model.stem(torch.rand(1, 3, 32, 32))
    assert x.shape == (1, 4, 32, 32)
    sizes = [(x := stage(x)).shape[1:] for stage in model.stages]
    assert sizes == [(4, 32, 32), (8, 16, 16), (16, 8, 8), (32, 4, 4)]


def test_normalize_scales_each_channel_and_is_saved_with_the_model() -> None:
    normalize = Normalize(MEAN, STD)
    x = torch.tensor([0.8, 0.0, 0.6]).view(1, 3, 1, 1)
    assert normalize(x).flatten().tolist() == pytest.approx([2, -2, 1])
    assert set(normalize.state_dict()) == {"mean", "std"}
    assert not list(normalize.parameters())


# -- the mixture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_the_mixture_follows_its_formula(mixing: str, digits: Dataset) -> None:
    model = with_statistics(small_mixture(mixing), digits).double()
    x = digits.test.images[:20].double()
    with torch.no_grad():
        w = torch.softmax(model.gate(x), dim=1)
        z = [expert(x) for expert in model.experts]
        if mixing == "logits":
            expected = sum(w[:, i, None] * z[i] for i in range(3))
        else:
            expected = sum(w[:, i, None] * torch.softmax(z[i], dim=1) for i in range(3)).log()
        output = model.forward_with_experts(x)
    assert torch.allclose(model(x), expected)
    assert torch.equal(output.logits, model(x))
    assert torch.allclose(output.gate_weights, w)
    assert torch.equal(output.expert_logits, torch.stack(z, dim=1))
    assert w.std(dim=0).max() > 0.01  # the weights depend on the image


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_extreme_logits_stay_finite_with_finite_gradients(mixing: str) -> None:
    experts = [ConstantLogits(torch.tensor([1e4, -1e4, 0.0])), ConstantLogits(torch.tensor([-1e4, 1e4, 0.0]))]
    model = Mixture(experts, ConstantLogits(torch.tensor([200.0, -200.0])), mixing)
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(loss)
    for tensor in (x, *model.parameters()):
        assert torch.isfinite(tensor.grad).all()
    assert torch.allclose(model.forward_with_experts(x).gate_weights.sum(dim=1), torch.ones(3))


def test_the_gate_starts_with_equal_weights(digits: Dataset) -> None:
    weights = small_mixture().train().forward_with_experts(digits.test.images[:20]).gate_weights
    assert torch.allclose(weights, torch.full((20, 3), 1 / 3))


def test_the_uniform_gate_averages_the_probabilities(digits: Dataset) -> None:
    experts = with_statistics(small_mixture(), digits).experts
    model = Mixture(experts, UniformGate(3)).eval()
    x = digits.test.images[:20]
    mean = torch.stack([torch.softmax(expert(x), dim=1) for expert in experts]).mean(dim=0)
    assert torch.allclose(model(x).exp(), mean, atol=1e-6)
    assert not list(model.gate.parameters())


def test_logits_do_not_depend_on_the_other_images_of_the_batch(digits: Dataset) -> None:
    model = with_statistics(small_mixture(), digits)
    x = digits.test.images[:12]
    with torch.no_grad():
        batch = model(x)
        single = torch.cat([model(part) for part in x.split(1)])
    assert torch.allclose(batch, single, atol=1e-5)
    assert batch.std(dim=0).max() > 0.01


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_gradients_reach_the_gate_and_all_experts(mixing: str, digits: Dataset) -> None:
    model = small_mixture(mixing).train()
    x, y = digits.train.images[:40], digits.train.labels[:40]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def backward() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    def has_gradients(module: nn.Module) -> bool:
        return all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters())

    backward()
    assert all(has_gradients(expert) for expert in model.experts)
    # The gate's last layer starts at zero, so the layers before it get gradients from the second step on.
    assert has_gradients(model.gate.head)
    optimiser.step()
    backward()
    assert has_gradients(model.gate)


def test_an_unknown_mixing_is_an_error() -> None:
    with pytest.raises(ValueError, match="'logit': expected 'probabilities' or 'logits'"):
        Mixture([], UniformGate(0), "logit")


# -- shortcuts of few channels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 8])
def test_a_shortcut_is_a_strided_convolution_in_every_memory_format(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Take the workaround for CPUs without AVX-512 on any CPU.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    shortcut = Shortcut(channels, 2 * channels, 1, stride=2, bias=False)
    plain = nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    plain.load_state_dict(shortcut.state_dict())
    x = torch.rand(6, channels, 8, 8)
    for memory in (torch.contiguous_format, torch.channels_last):
        output = shortcut.to(memory_format=memory)(x.contiguous(memory_format=memory))
        (gradient,) = torch.autograd.grad(output.square().sum(), shortcut.weight)
        expected = plain(x.contiguous())
        (expected_gradient,) = torch.autograd.grad(expected.square().sum(), plain.weight)
        assert torch.allclose(output, expected, atol=1e-5)
        assert torch.allclose(gradient, expected_gradient, rtol=1e-4)


def test_all_strided_shortcuts_have_the_workaround_and_are_folded(digits: Dataset) -> None:
    model = ResNet(10, 2, (2, 2), (0.5,), (0.25,))
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)]
    assert strided and all(type(m) is Shortcut for m in strided)
    assert fold(model.eval(), digits.test.images[:2]).reason == ""
