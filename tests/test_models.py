"""Networks against their definitions: sizes, formulas, and what they do at extremes."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from toys import ToyNet

from paperlib import Dataset
from paperlib.acceleration import fold
from paperlib.models import Gate, Mixture, MixtureOutput, Normalize, ResNet, UniformGate, parameters, resnet18
from paperlib.models.resnet import Shortcut

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
# As counted for the usual CIFAR ResNet-18 (kuangliu/pytorch-cifar), whose stem is one 3x3 convolution.
CIFAR_RESNET18 = 11_173_962


class Fixed(nn.Module):
    """Answers every image with the same row."""

    def __init__(self, row: Tensor) -> None:
        super().__init__()
        self.row = nn.Parameter(row.clone())

    def forward(self, x: Tensor) -> Tensor:
        return self.row.expand(len(x), -1) + 0 * x.flatten(1).sum(dim=1, keepdim=True)


def small_mixture(mixing: str = "probabilities", experts: int = 9) -> Mixture:
    torch.manual_seed(0)
    gate = Gate(experts, width=2, blocks=1, mean=(0.3,), std=(0.4,))
    return Mixture([resnet18(10, 2, (0.3,), (0.4,)) for _ in range(experts)], gate, mixing)


def learnt(model: nn.Module, data: Dataset) -> nn.Module:
    """With batch statistics and a gate that have seen some data, so that images are told apart."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    model.train()
    for _ in range(20):
        model(data.train.images[:60])
    return model.eval()


# -- residual networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("channels", "size", "width"), [(1, 8, 4), (3, 32, 4), (3, 32, 16), (1, 5, 2)])
def test_resnet18_takes_images_of_any_size(channels: int, size: int, width: int) -> None:
    model = resnet18(7, width, MEAN[:channels], STD[:channels]).eval()
    x = torch.rand(2, channels, size, size)
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


def test_normalize_is_its_formula_and_is_saved_with_the_model() -> None:
    normalize = Normalize(MEAN, STD)
    x = torch.rand(2, 3, 4, 4)
    by_hand = torch.stack([(x[:, c] - MEAN[c]) / STD[c] for c in range(3)], dim=1)
    assert torch.allclose(normalize(x), by_hand, atol=1e-6)
    assert set(normalize.state_dict()) == {"mean", "std"}
    assert not list(normalize.parameters())


def test_pixels_are_normalised_inside_the_network() -> None:
    model = resnet18(10, 4, MEAN, STD).eval()
    bare = ResNet(10, 4, (2, 2, 2, 2), (0.0,) * 3, (1.0,) * 3).eval()
    bare.load_state_dict(
        {**model.state_dict(), "normalize.mean": torch.zeros(1, 3, 1, 1), "normalize.std": torch.ones(1, 3, 1, 1)}
    )
    x = torch.rand(2, 3, 8, 8)
    assert torch.allclose(model(x), bare(Normalize(MEAN, STD)(x)), atol=1e-6)
    assert not torch.allclose(model(x), bare(x), atol=1e-3)


# -- the mixture -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_the_mixture_is_its_formula(mixing: str, digits: Dataset) -> None:
    model = learnt(small_mixture(mixing, experts=3), digits).double()
    x = digits.test.images[:20].double()
    with torch.no_grad():
        w = torch.softmax(model.gate(x), dim=1)
        z = [expert(x) for expert in model.experts]
        if mixing == "logits":
            expected = sum(w[:, i, None] * z[i] for i in range(3))
        else:
            expected = sum(w[:, i, None] * torch.softmax(z[i], dim=1) for i in range(3)).log()
        forward_with_experts = model.forward_with_experts(x)
    assert torch.allclose(model(x), expected)
    assert torch.allclose(forward_with_experts.gate_weights, w)
    assert torch.equal(forward_with_experts.expert_logits, torch.stack(z, dim=1))
    assert w.std(dim=0).max() > 0.01  # images are weighed differently


def test_mixed_probabilities_sum_to_one(digits: Dataset) -> None:
    model = learnt(small_mixture(), digits)
    total = model(digits.test.images).exp().sum(dim=1)
    assert torch.allclose(total, torch.ones(80), atol=1e-5)


def test_evidence_has_the_shapes_it_promises(digits: Dataset) -> None:
    forward_with_experts = small_mixture(experts=4).eval().forward_with_experts(digits.test.images[:5])
    assert isinstance(forward_with_experts, MixtureOutput)
    assert forward_with_experts.logits.shape == (5, 10)
    assert forward_with_experts.expert_logits.shape == (5, 4, 10)
    assert forward_with_experts.gate_weights.shape == (5, 4)


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_extreme_logits_stay_finite_with_finite_gradients(mixing: str) -> None:
    experts = [Fixed(torch.tensor([1e4, -1e4, 0.0])), Fixed(torch.tensor([-1e4, 1e4, 0.0]))]
    model = Mixture(experts, Fixed(torch.tensor([200.0, -200.0])), mixing)
    x = torch.rand(3, 1, 2, 2, requires_grad=True)
    logits = model(x)
    loss = nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2]))
    loss.backward()
    assert torch.isfinite(logits).all()
    assert torch.isfinite(loss)
    for tensor in (x, *model.parameters()):
        assert torch.isfinite(tensor.grad).all()
    assert torch.allclose(model.forward_with_experts(x).gate_weights.sum(dim=1), torch.ones(3))


def test_the_gate_starts_even(digits: Dataset) -> None:
    weights = small_mixture().train().forward_with_experts(digits.test.images[:20]).gate_weights
    assert torch.allclose(weights, torch.full((20, 9), 1 / 9))


def test_the_uniform_gate_averages_the_probabilities(digits: Dataset) -> None:
    experts = learnt(small_mixture(experts=3), digits).experts
    model = Mixture(experts, UniformGate(3)).eval()
    x = digits.test.images
    mean = torch.stack([torch.softmax(expert(x), dim=1) for expert in experts]).mean(dim=0)
    assert torch.allclose(model(x).exp(), mean, atol=1e-6)
    assert not list(model.gate.parameters())


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_answers_do_not_depend_on_the_company_in_the_batch(mixing: str, digits: Dataset) -> None:
    model = learnt(small_mixture(mixing), digits)
    x = digits.test.images[:24]
    with torch.no_grad():
        together = model(x)
        alone = torch.cat([model(part) for part in x.split(1)])
        shuffled = model(x.flip(0)).flip(0)
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.allclose(together, shuffled, atol=1e-5)
    assert together.std(dim=0).max() > 0.01


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_gradients_reach_the_gate_and_all_nine_experts(mixing: str, digits: Dataset) -> None:
    model = small_mixture(mixing).train()
    x, y = digits.train.images[:40], digits.train.labels[:40]
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()

    def reached(module: nn.Module) -> bool:
        return all(p.grad is not None and bool(p.grad.abs().max() > 0) for p in module.parameters())

    step()
    assert all(reached(expert) for expert in model.experts)
    # The gate's last layer starts at zero, so the rest of the gate learns from the second step on.
    assert reached(model.gate.head)
    optimiser.step()
    step()
    assert reached(model.gate)


def test_equal_experts_mixed_are_one_expert(toy: ToyNet, digits: Dataset) -> None:
    model = Mixture([copy.deepcopy(toy), copy.deepcopy(toy)], UniformGate(2))
    x = digits.test.images
    assert torch.allclose(model(x), torch.log_softmax(toy(x), dim=1), atol=1e-5)


def test_an_unknown_mixing_is_refused() -> None:
    with pytest.raises(ValueError, match="'logit': expected 'probabilities' or 'logits'"):
        Mixture([], UniformGate(0), "logit")


# -- shortcuts of few channels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 4, 8])
def test_a_shortcut_is_a_strided_convolution_in_every_memory_format(channels: int) -> None:
    """Without the detour, the weight gradient of few channels corrupts memory on CPUs that have AVX2 at best."""
    torch.manual_seed(0)
    shortcut = Shortcut(channels, 2 * channels, 1, stride=2, bias=False)
    plain = torch.nn.Conv2d(channels, 2 * channels, 1, stride=2, bias=False)
    plain.load_state_dict(shortcut.state_dict())
    x = torch.rand(6, channels, 8, 8)
    for memory in (torch.contiguous_format, torch.channels_last):
        found = shortcut.to(memory_format=memory)(x.contiguous(memory_format=memory))
        (gradient,) = torch.autograd.grad(found.square().sum(), shortcut.weight)
        expected = plain(x.contiguous())
        (wanted,) = torch.autograd.grad(expected.square().sum(), plain.weight)
        assert torch.allclose(found, expected, atol=1e-5)
        assert torch.allclose(gradient, wanted, rtol=1e-4)


def test_every_shortcut_that_changes_size_is_one(digits: Dataset) -> None:
    model = ResNet(10, 2, (2, 2), (0.5,), (0.25,))
    strided = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (1, 1)]
    assert strided and all(type(m) is Shortcut for m in strided)
    assert fold(model.eval(), digits.test.images[:2]).reason == ""  # folded like any other convolution
