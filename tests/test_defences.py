"""SoE, ADVMoE, top-1 mixtures and the larger backbones: their logits, gradients and folded copies."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.kernels import FoldedConvolution
from paperlib.attacks import OBJECTIVES, attack, misclassified, pgd
from paperlib.models import ADVMoE, Gate, Mixture, SoE, backbone, operations, parameters, resnet18
from paperlib.models import advmoe as advmoe_module
from paperlib.models.mixture import PerExpertInput

MEAN, STD = (0.4, 0.5, 0.3), (0.2, 0.25, 0.3)
NAMES = ("resnet18", "resnet50", "vgg16", "densenet121", "wrn28-10")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 12, channels: int = 1, side: int = 8, seed: int = 0) -> Tensor:
    """Coarse patterns with noise, so that the images differ much."""
    coarse, fine = (torch.rand(n, channels, size, size, generator=rng(seed + size)) for size in (2, side))
    return 0.7 * nn.functional.interpolate(coarse, (side, side)) + 0.3 * fine


def prepared(model: nn.Module, channels: int = 1) -> nn.Module:
    """The model with batch norms as after training, and last layers whose outputs differ from image to image."""
    x = images(40, channels)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight)
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(std=0.3)
            norm.momentum = 1.0
        model.train()(x)
        for norm in norms:
            norm.momentum = 0.1
            norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
        model.eval()(x)
        for module in model.modules():
            if isinstance(head := getattr(module, "head", None), nn.Linear):
                spread, mean = torch.std_mean(module(x), dim=0)
                head.weight.div_(spread[:, None])
                head.bias.sub_(mean).div_(spread)
    return model


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [power / sum(powers) for power in powers]


class Rows(nn.Module):
    """Row i for image i of a batch; the input gradient is zero."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows + 0 * x.flatten(1).sum(dim=1, keepdim=True)


# -- SoE -------------------------------------------------------------------------------------------------------------

# The logits of two classes and the confidence logit, for two images. The confidence r_i is higher for the first
# sub-model on image 0 and for the second one on image 1.
FIRST, SECOND = [[0.5, 0.0, 3.0], [0.0, 0.5, -1.0]], [[4.0, 0.0, -1.0], [4.0, 0.0, 0.0]]


def confidences(i: int) -> list[float]:
    """r_i of both sub-models for image i: max_c softmax(f_i)_c sigmoid(a_i)"""
    return [max(softmax(rows[i][:2])) / (1 + math.exp(-rows[i][2])) for rows in (FIRST, SECOND)]


def test_soe_returns_the_logits_of_the_most_confident_sub_model() -> None:
    model, x = SoE([Rows(FIRST), Rows(SECOND)]), images(2)
    assert torch.allclose(model.forward_sub_models(x).confidence(), torch.tensor([confidences(i) for i in range(2)]))
    assert torch.equal(model(x), torch.tensor([FIRST[0][:2], SECOND[1][:2]]))
    output = model.forward_with_experts(x)
    assert torch.equal(output.logits, model(x))
    assert output.gate_weights.tolist() == [[1, 0], [0, 1]]
    assert output.expert_logits.tolist() == [[FIRST[i][:2], SECOND[i][:2]] for i in range(2)]


def test_the_surrogate_of_soe_follows_its_formula() -> None:
    temperature = 0.1
    model, x = SoE([Rows(FIRST), Rows(SECOND)]), images(2)
    logits, surrogate = model.forward_with_surrogate(x, temperature)
    assert torch.equal(logits, model(x))
    for i in range(2):
        weights = softmax([r / temperature for r in confidences(i)])
        for c in range(2):
            mixed = sum(w * softmax(rows[i][:2])[c] for w, rows in zip(weights, (FIRST, SECOND), strict=True))
            assert float(surrogate[i, c].detach()) == pytest.approx(math.log(mixed), rel=1e-5)


def test_only_the_surrogate_of_soe_has_gradients_for_the_confidence() -> None:
    torch.manual_seed(0)
    model, x = prepared(SoE(resnet18(11, 2, (0.3,), (0.4,)) for _ in range(3))), images()
    most_confident = model.forward_with_experts(x).gate_weights.argmax(dim=1)
    assert len(most_confident.unique()) > 1
    logits, surrogate = model.forward_with_surrogate(x)
    heads = [expert.head.weight for expert in model.experts]
    for i, gradient in enumerate(torch.autograd.grad(logits.sum(), heads, retain_graph=True)):
        assert gradient[-1].abs().max() == 0  # the row of the confidence logit
        assert (gradient[:-1].abs().max() > 0) == bool((most_confident == i).any())
    assert all(gradient[-1].abs().max() > 0 for gradient in torch.autograd.grad(surrogate[:, 0].sum(), heads))


# -- ADVMoE ----------------------------------------------------------------------------------------------------------


def advmoe(pathways: int = 3, seed: int = 0) -> ADVMoE:
    torch.manual_seed(seed)
    model = prepared(ADVMoE(5, pathways, 3, 2, 1, (0.3,), (0.4,)))
    assert isinstance(model, ADVMoE)
    return model


def mixed_routes(n: int, pathways: int = 3) -> Tensor:
    return torch.randint(pathways, (n,), generator=rng(4))


def test_each_image_takes_its_own_route() -> None:
    model, x = advmoe().double(), images().double()
    route = mixed_routes(len(x))
    assert len(route.unique()) == 3
    with torch.no_grad():
        batch = model.forward_route(x, route)
        single = torch.cat([model.forward_route(x[i : i + 1], route[i : i + 1]) for i in range(len(x))])
        other = model.forward_route(x, (route + 1) % 3)
    assert torch.allclose(batch, single)
    assert (batch - other).abs().amax(dim=1).min() > 1e-2  # the logits depend on the route


def test_a_pathway_uses_its_own_versions_and_all_shared_parameters() -> None:
    model, x = advmoe(), images()
    model.forward_route(x, torch.full((len(x),), 1)).square().sum().backward()
    gradients = {name: p.grad for name, p in model.network.named_parameters()}
    versions = {name for name in gradients if ".versions." in name}
    assert len(versions) == 3 * 16  # two 3x3 convolutions in each of eight blocks
    for name, gradient in gradients.items():
        used = gradient is not None and bool(gradient.abs().max() > 0)
        assert used is (name not in versions or ".versions.1." in name), name
    assert all(p.grad is None for p in model.router.parameters())


def test_stem_shortcuts_batch_norms_and_classifier_are_shared() -> None:
    one, three = advmoe(1), advmoe(3)
    kernels = sum(p.numel() for name, p in one.network.named_parameters() if ".versions." in name)
    assert parameters(three.network) == parameters(one.network) + 2 * kernels
    assert parameters(one.network) == parameters(resnet18(5, 3, (0.3,), (0.4,)))


def test_the_versions_of_a_convolution_start_with_different_weights() -> None:
    model = advmoe()
    states = [
        torch.cat([p.flatten() for name, p in model.network.named_parameters() if f".versions.{i}." in name])
        for i in range(3)
    ]
    assert all(not torch.equal(states[i], states[j]) for i in range(3) for j in range(i))


def test_the_router_picks_the_route() -> None:
    model, x = advmoe().double(), images(40).double()
    with torch.no_grad():
        route = model.router(x).argmax(dim=1)
        assert len(route.unique()) == 3
        logits, output = model(x), model.forward_with_experts(x)
        pathways = [model.forward_route(x, torch.full((len(x),), i)) for i in range(3)]
    assert torch.equal(output.gate_weights, nn.functional.one_hot(route, 3).double())
    assert torch.allclose(output.expert_logits, torch.stack(pathways, dim=1))
    assert torch.allclose(output.logits, logits)
    assert torch.allclose(logits, torch.stack([pathways[int(route[i])][i] for i in range(len(x))]))


def test_the_surrogate_of_advmoe_follows_its_formula() -> None:
    temperature = 0.25
    model, x = advmoe().double(), images(4).double()
    with torch.no_grad():
        logits, surrogate = model.forward_with_surrogate(x, temperature)
        gate_logits, pathways = model.router(x).tolist(), model.forward_with_experts(x).expert_logits.tolist()
        assert torch.allclose(logits, model(x))
    for i in range(4):
        weights = softmax([g / temperature for g in gate_logits[i]])
        for c in range(5):
            mixed = sum(w * softmax(pathways[i][k])[c] for k, w in enumerate(weights))
            assert float(surrogate[i, c]) == pytest.approx(math.log(mixed), rel=1e-6)


def test_only_the_surrogate_of_advmoe_has_gradients_for_the_router() -> None:
    model, x = advmoe(), images(4)
    logits, surrogate = model.forward_with_surrogate(x)
    router = list(model.router.parameters())
    gradients = torch.autograd.grad(logits[:, 0].sum(), router, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in gradients)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(surrogate[:, 0].sum(), router))


# -- mixtures with top-1 routing -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_a_top1_mixture_returns_the_logits_of_the_expert_with_the_largest_weight(mixing: str) -> None:
    torch.manual_seed(0)
    experts, gate = [resnet18(5, 2, (0.3,), (0.4,)) for _ in range(3)], Gate(3, 2, 1, (0.3,), (0.4,))
    soft, top1 = Mixture(experts, gate, mixing), Mixture(experts, gate, mixing, top1=True)
    prepared(top1)
    soft.eval()
    x = images(40)
    with torch.no_grad():
        route = gate(x).argmax(dim=1)
        assert len(route.unique()) == 3
        expert_logits = [expert(x) for expert in experts]
        expected = torch.stack([expert_logits[int(route[i])][i] for i in range(len(x))])
        logits, surrogate = top1.forward_with_surrogate(x)
        assert torch.equal(top1(x), expected)
        assert torch.equal(logits, expected)
        assert torch.equal(surrogate, soft(x))
        assert not torch.allclose(surrogate, logits, atol=1e-2)
        assert torch.equal(top1.forward_with_experts(x).gate_weights, nn.functional.one_hot(route, 3).float())
        assert all(torch.equal(output, soft(x)) for output in soft.forward_with_surrogate(x))


def test_only_the_surrogate_of_a_top1_mixture_has_gradients_for_the_gate() -> None:
    torch.manual_seed(0)
    model = prepared(
        Mixture([resnet18(5, 2, (0.3,), (0.4,)) for _ in range(2)], Gate(2, 2, 1, (0.3,), (0.4,)), top1=True)
    )
    logits, surrogate = model.forward_with_surrogate(images())
    gate = list(model.gate.parameters())
    gradients = torch.autograd.grad(logits[:, 0].sum(), gate, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in gradients)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(surrogate[:, 0].sum(), gate))


# -- backbones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet50", 23.52), ("vgg16", 14.73), ("densenet121", 6.96), ("wrn28-10", 36.48)],
)
def test_a_full_width_backbone_has_the_known_number_of_parameters(name: str, millions: float) -> None:
    # As counted for the usual CIFAR versions (kuangliu/pytorch-cifar; Zagoruyko and Komodakis 2016).
    with torch.device("meta"):
        model = backbone(name, 10, 64, 32, MEAN, STD)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_a_backbone_takes_colour_images(name: str) -> None:
    model = backbone(name, 7, 2, 16, MEAN, STD)
    x = images(4, 3, 16)
    assert model.train()(x).shape == (4, 7)
    logits = model.eval()(x)
    assert logits.shape == (4, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_all_layers_of_a_backbone_get_gradients_and_pixels_are_normalised_inside(name: str) -> None:
    torch.manual_seed(0)
    model = backbone(name, 3, 8, 8, (0.3,), (0.4,))
    x = images(12)
    nn.functional.cross_entropy(model(x), torch.arange(12) % 3).backward()
    assert [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0] == []
    prepared(model)
    with torch.no_grad():
        expected = model(x)
        model.normalize.mean.zero_()
        model.normalize.std.fill_(1)
        assert torch.allclose(model((x - 0.3) / 0.4), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(model(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("side", "pools"), [(32, 5), (1, 0)])
def test_vgg_pools_only_while_its_maps_have_more_than_one_pixel(side: int, pools: int) -> None:
    model = backbone("vgg16", 10, 4, side, (0.3,), (0.4,))
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == pools
    assert model.eval().body(images(2, 1, side)).shape[2:] == (1, 1)


def test_an_unknown_backbone_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"'resnet34': expected resnet18, resnet50, vgg16, densenet121 or wrn28-10"):
        backbone("resnet34", 10, 64, 32, MEAN, STD)


def test_operations_of_resnet18_agree_with_the_usual_count() -> None:
    # 0.555 billion multiplications and as many additions at 32x32
    with torch.device("meta"):
        model = backbone("resnet18", 10, 64, 32, MEAN, STD).eval()
        assert operations(model, (3, 32, 32)) == pytest.approx(2 * 0.555e9, rel=0.01)


def test_advmoe_costs_its_router_and_one_network_for_any_number_of_pathways() -> None:
    single = operations(resnet18(5, 3, (0.3,), (0.4,)).eval(), (1, 8, 8))
    router = operations(advmoe().router, (1, 8, 8))
    assert operations(advmoe(2), (1, 8, 8)) == operations(advmoe(7), (1, 8, 8)) - (7 - 2) * 2 * 8  # the router's head
    assert operations(advmoe(), (1, 8, 8)) == single + router


# -- folded copies ---------------------------------------------------------------------------------------------------


def soe(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return prepared(SoE(resnet18(6, 3, (0.3,), (0.4,)) for _ in range(3)))


def top1(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    experts = [resnet18(5, 3, (0.3,), (0.4,)) for _ in range(3)]
    return prepared(Mixture(experts, Gate(3, 2, 1, (0.3,), (0.4,)), top1=True))


def small(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return prepared(backbone(name, 5, 8, 8, (0.3,), (0.4,)))

    return build


ROUTED: dict[str, Callable[[], nn.Module]] = {"soe": soe, "advmoe": advmoe, "top1": top1}


def logits_and_gradient(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The logits, and the input gradient of a weighted sum of them."""
    x = x.clone().requires_grad_()
    logits = network(x)
    weights = torch.linspace(-1, 1, logits.shape[1]).cos()
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


class FixedRoute(nn.Module):
    """An ADVMoE whose images take the pathways of ``route``."""

    def __init__(self, network: nn.Module, route: Tensor) -> None:
        super().__init__()
        self.network, self.route = network, route

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.network, ADVMoE)
        return self.network.forward_route(x, self.route)


def near(value: Tensor, expected: Tensor, tolerance: float = 1e-3) -> bool:
    return value.shape == expected.shape and bool((value - expected).norm() <= tolerance * expected.norm())


@pytest.mark.parametrize(
    ("build", "stacked"),
    [
        *(pytest.param(build, stacked, id=f"{name}-{stacked}") for name, build in ROUTED.items() for stacked in (0, 1)),
        *(pytest.param(small(name), False, id=name) for name in ("resnet50", "vgg16", "densenet121")),
    ],
)
def test_a_folded_copy_computes_the_same(build: Callable[[], nn.Module], stacked: bool) -> None:
    model, x = build(), images(24)
    folded = fold(model, x, stacked=bool(stacked))
    assert folded.network is not model, folded.reason
    assert any(isinstance(module, FoldedConvolution) for module in folded.network.modules())
    (logits, gradient), (expected_logits, expected_gradient) = (
        logits_and_gradient(folded.network, x),
        logits_and_gradient(model, x),
    )
    assert near(logits, expected_logits)
    close = [near(a, b) for a, b in zip(gradient, expected_gradient, strict=True)]
    assert close.count(False) <= 4  # in a deep network, rounding may switch a ReLU
    if hasattr(model, "forward_with_surrogate"):
        both = zip(folded.network.forward_with_surrogate(x), model.forward_with_surrogate(x), strict=True)
        assert all(near(output, expected) for output, expected in both)
        assert near(folded.network.forward_with_experts(x).expert_logits, model.forward_with_experts(x).expert_logits)


def test_in_a_folded_advmoe_each_image_takes_its_own_route() -> None:
    model, x = advmoe(), images(24)
    folded = fold(model, x).network
    assert isinstance(folded, ADVMoE) and folded is not model
    route = mixed_routes(len(x))
    with torch.no_grad():
        assert len(model.router(x).argmax(dim=1).unique()) == 3
        assert len(model.router(x[:2]).argmax(dim=1).unique()) < 3  # the example images do not take every pathway
        assert near(folded.forward_route(x, route), model.forward_route(x, route))
        model.forward_route(x[:5], route[:5])  # the routes of another batch in the network do not change its copy
        assert near(folded(x), model(x))


@pytest.mark.parametrize(
    ("route", "per_pathway"),
    [
        ([0, 1, 2] * 8, 8),  # no padding
        ([0] * 14 + [1] * 10, 14),  # no image takes pathway 2
        ([2] * 24, None),  # two of three images would be padding, so the pathways run one after the other
    ],
    ids=["even", "uneven", "one"],
)
def test_a_folded_advmoe_runs_all_pathways_at_once_if_that_needs_little_padding(
    route: list[int], per_pathway: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advmoe_module, "BLANKS", 2)
    model, x = advmoe(), images(24)
    folded = fold(model, x).network
    assert isinstance(folded, ADVMoE) and folded.grouped is not None and model.grouped is None
    shapes: list[torch.Size] = []
    folded.grouped.register_forward_pre_hook(lambda _, args: shapes.append(args[0].shape[:2]))
    shuffled = torch.tensor(route)[torch.randperm(24, generator=rng(3))]
    result, expected = (logits_and_gradient(FixedRoute(network, shuffled), x) for network in (folded, model))
    assert shapes == ([] if per_pathway is None else [(per_pathway, 3)])
    assert all(near(a, b) for a, b in zip(result, expected, strict=True))


def test_a_folded_advmoe_on_colour_images_runs_one_pathway_after_the_other() -> None:
    torch.manual_seed(0)
    model, x = prepared(ADVMoE(5, 3, 3, 2, 1, MEAN, STD), channels=3), images(24, channels=3)
    folded = fold(model, x).network
    assert isinstance(model, ADVMoE) and isinstance(folded, ADVMoE) and folded is not model and folded.grouped is None
    with torch.no_grad():
        assert near(folded(x), model(x))
        assert near(folded.forward_with_experts(x).expert_logits, model.forward_with_experts(x).expert_logits)


@pytest.mark.parametrize("folded", [False, True])
def test_networks_with_separate_inputs_get_their_own_images(folded: bool) -> None:
    torch.manual_seed(0)
    experts = PerExpertInput([prepared(resnet18(5, 2, (0.3,), (0.4,))) for _ in range(3)])
    x = images(30).view(10, 3, 1, 8, 8)
    network = fold(experts, x, stacked=True).network if folded else experts
    assert folded is any(isinstance(module, FoldedConvolution) and module.groups == 3 for module in network.modules())
    with torch.no_grad():
        expected = torch.stack([expert(x[:, i]) for i, expert in enumerate(experts)], dim=1)
        assert near(network(x), expected)


@pytest.mark.parametrize("build", [soe, advmoe], ids=["soe", "advmoe"])
def test_a_refreshed_copy_has_the_new_weights(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images(24)
    folded = fold(model, x)
    before = model(x).detach()
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    prepared(model)
    folded.refresh()
    assert not near(before, model(x), 0.1)
    assert near(folded.network(x), model(x))


@pytest.mark.parametrize(("name", "objective"), [("soe", "soft"), ("advmoe", "soft"), ("top1", "cross-entropy")])
def test_attacks_on_a_folded_copy_have_the_outcomes_of_attacks_on_the_network(name: str, objective: str) -> None:
    model, x = ROUTED[name](), images(60, seed=1)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    settings: dict[str, Any] = {"eps": 0.02, "step_size": 0.005, "steps": 3, "random_start": False}
    settings["objective"] = OBJECTIVES[objective].function
    copied, plain = attack(fold(model, x), x, y, **settings), attack(Folded(model, model), x, y, **settings)
    assert 0 < int(plain.fooled.sum()) < 60
    assert int((copied.fooled != plain.fooled).sum()) <= 1  # rounding, at a decision boundary
    for result in (copied, plain):
        assert torch.equal(misclassified(model, result.images, y), result.fooled)


@pytest.mark.parametrize("objective", ["divergence", "routed divergence"])
def test_divergence_attacks_change_the_predictions_and_routes(objective: str) -> None:
    model, x = advmoe(), images(24)
    folded, attacked, y = fold(model, x), OBJECTIVES[objective], torch.zeros(24, dtype=torch.int64)
    assert attacked.targets is not None
    targets = attacked.targets(folded.network, x, y)
    assert targets.shape == (24, 5 if objective == "divergence" else 5 + 3)
    start = (x + 1e-5 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    settings: dict[str, Any] = {"eps": 0.05, "step_size": 0.02, "steps": 4, "objective": attacked.function}
    perturbed = pgd(folded, x, y, **settings, targets=targets, start=start)
    with torch.no_grad():
        before, after = (attacked.function(model, z, targets)[1].mean() for z in (start, perturbed))
    assert after > 10 * before
