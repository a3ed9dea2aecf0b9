"""The other defences and the bigger backbones: what they answer, what attacks see of them, and their folded copies."""

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
    """Coarse patterns under noise, so that one image differs much from the next."""
    coarse, fine = (torch.rand(n, channels, size, size, generator=rng(seed + size)) for size in (2, side))
    return 0.7 * nn.functional.interpolate(coarse, (side, side)) + 0.3 * fine


def lively(model: nn.Module, channels: int = 1) -> nn.Module:
    """With batch statistics and scales as training leaves them, and heads that tell images apart."""
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
    """Answers image i of a batch with row i, and slopes a little with its pixels."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, x: Tensor) -> Tensor:
        return self.rows + 0 * x.flatten(1).sum(dim=1, keepdim=True)


# -- SoE -------------------------------------------------------------------------------------------------------------

# Two images, two classes and the confidence score: the first sub-model is torn and sure of it, the second decided and
# not sure. On image 0 the product of the two favours the first, on image 1 the second.
FIRST, SECOND = [[0.5, 0.0, 3.0], [0.0, 0.5, -1.0]], [[4.0, 0.0, -1.0], [4.0, 0.0, 0.0]]


def test_the_surest_sub_model_of_soe_answers() -> None:
    model, x = SoE([Rows(FIRST), Rows(SECOND)]), images(2)
    sure = [[max(softmax(row[:2])) / (1 + math.exp(-row[2])) for row in rows] for rows in (FIRST, SECOND)]
    assert [column.index(max(column)) for column in zip(*sure, strict=True)] == [0, 1]
    assert torch.allclose(model.confidence(x).predicted(), torch.tensor(sure).T)
    assert torch.equal(model(x), torch.tensor([FIRST[0][:2], SECOND[1][:2]]))
    forward_with_experts = model.forward_with_experts(x)
    assert torch.equal(forward_with_experts.logits, model(x))
    assert forward_with_experts.gate_weights.tolist() == [[1, 0], [0, 1]]
    assert forward_with_experts.expert_logits.tolist() == [[FIRST[i][:2], SECOND[i][:2]] for i in range(2)]


def test_neither_the_head_nor_the_largest_probability_decides_alone() -> None:
    # Image 0: the second is more decided; image 1 with the heads turned round: the first is surer.
    heads = [[[*row[:2], 0.0] for row in rows] for rows in (FIRST, SECOND)]
    model = SoE(Rows(rows) for rows in heads)
    assert model.forward_with_experts(images(2)).gate_weights.argmax(dim=1).tolist() == [1, 1]
    level = [[[1.0, 0.0, row[2]] for row in rows] for rows in (FIRST, SECOND)]
    model = SoE(Rows(rows) for rows in level)
    assert model.forward_with_experts(images(2)).gate_weights.argmax(dim=1).tolist() == [0, 1]


@pytest.mark.parametrize("temperature", [1.0, 0.1])
def test_the_stand_in_of_soe_is_its_formula(temperature: float) -> None:
    model, x = SoE([Rows(FIRST), Rows(SECOND)]), images(2)
    answer, soft = model.forward_with_surrogate(x, temperature)
    assert torch.equal(answer, model(x))
    for i in range(2):
        sure = [max(softmax(rows[i][:2])) / (1 + math.exp(-rows[i][2])) for rows in (FIRST, SECOND)]
        shares = softmax([r / temperature for r in sure])
        for c in range(2):
            mixed = sum(s * softmax(rows[i][:2])[c] for s, rows in zip(shares, (FIRST, SECOND), strict=True))
            assert float(soft[i, c].detach()) == pytest.approx(math.log(mixed), rel=1e-5)


def test_no_gradient_passes_the_choice_of_soe_but_one_passes_its_stand_in() -> None:
    torch.manual_seed(0)
    model, x = lively(SoE(resnet18(11, 2, (0.3,), (0.4,)) for _ in range(3))), images()
    chosen = model.forward_with_experts(x).gate_weights.argmax(dim=1)
    assert len(chosen.unique()) > 1
    answer, soft = model.forward_with_surrogate(x)
    by_answer = torch.autograd.grad(answer.sum(), [e.head.weight for e in model.experts], retain_graph=True)
    for i, gradient in enumerate(by_answer):
        assert gradient[-1].abs().max() == 0  # the confidence score has no say in the logits
        assert (gradient[:-1].abs().max() > 0) == bool((chosen == i).any())
    by_soft = torch.autograd.grad(soft[:, 0].sum(), [e.head.weight for e in model.experts])
    assert all(gradient[-1].abs().max() > 0 for gradient in by_soft)


# -- ADVMoE ----------------------------------------------------------------------------------------------------------


def advmoe(pathways: int = 3, seed: int = 0) -> ADVMoE:
    torch.manual_seed(seed)
    model = lively(ADVMoE(5, pathways, 3, 2, 1, (0.3,), (0.4,)))
    assert isinstance(model, ADVMoE)
    return model


def mixed_routes(n: int, pathways: int = 3) -> Tensor:
    return torch.randint(pathways, (n,), generator=rng(4))


def test_each_image_takes_its_own_route() -> None:
    model, x = advmoe().double(), images().double()
    route = mixed_routes(len(x))
    assert len(route.unique()) == 3
    with torch.no_grad():
        together = model.forward_route(x, route)
        alone = torch.cat([model.forward_route(x[i : i + 1], route[i : i + 1]) for i in range(len(x))])
        other = model.forward_route(x, (route + 1) % 3)
    assert torch.allclose(together, alone)
    assert (together - other).abs().amax(dim=1).min() > 1e-2  # the route decides


def test_the_order_of_a_batch_does_not_matter() -> None:
    model, x = advmoe().double(), images().double()
    route, order = mixed_routes(len(x)), torch.randperm(len(x), generator=rng(1))
    with torch.no_grad():
        assert torch.allclose(model.forward_route(x[order], route[order]), model.forward_route(x, route)[order])
        assert torch.allclose(model(x[order]), model(x)[order])


def test_a_route_uses_its_own_versions_and_no_other() -> None:
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


def test_the_versions_of_a_convolution_begin_differently() -> None:
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
        answer, forward_with_experts = model(x), model.forward_with_experts(x)
        paths = [model.forward_route(x, torch.full((len(x),), i)) for i in range(3)]
    assert torch.equal(forward_with_experts.gate_weights, nn.functional.one_hot(route, 3).double())
    assert torch.allclose(forward_with_experts.expert_logits, torch.stack(paths, dim=1))
    assert torch.allclose(forward_with_experts.logits, answer)
    picked_by_hand = torch.stack([paths[int(route[i])][i] for i in range(len(x))])
    assert torch.allclose(answer, picked_by_hand)


@pytest.mark.parametrize("temperature", [1.0, 0.25])
def test_the_stand_in_of_advmoe_is_its_formula(temperature: float) -> None:
    model, x = advmoe().double(), images(4).double()
    with torch.no_grad():
        answer, soft = model.forward_with_surrogate(x, temperature)
        gate_logits, paths = model.router(x).tolist(), model.forward_with_experts(x).expert_logits.tolist()
        assert torch.allclose(answer, model(x))
    for i in range(4):
        shares = softmax([score / temperature for score in gate_logits[i]])
        for c in range(5):
            mixed = sum(s * softmax(paths[i][k])[c] for k, s in enumerate(shares))
            assert float(soft[i, c]) == pytest.approx(math.log(mixed), rel=1e-6)


def test_only_the_stand_in_of_advmoe_lets_gradients_reach_the_router() -> None:
    model, x = advmoe(), images(4)
    answer, soft = model.forward_with_surrogate(x)
    router = list(model.router.parameters())
    found = torch.autograd.grad(answer[:, 0].sum(), router, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in found)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(soft[:, 0].sum(), router))


def test_a_router_of_nan_sends_every_image_down_pathway_0() -> None:
    model, x = advmoe(), images()
    with torch.no_grad():
        before = model(x)
        model.router.head.bias.fill_(float("nan"))
        assert torch.equal(model(x), model.forward_route(x, torch.zeros(len(x), dtype=torch.int64)))
        assert not torch.allclose(model(x), before)
        assert (model.forward_with_experts(x).gate_weights[:, 0] == 1).all()


# -- one expert at a time --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mixing", ["probabilities", "logits"])
def test_a_mixture_may_let_its_favourite_answer_alone(mixing: str) -> None:
    torch.manual_seed(0)
    experts, gate = [resnet18(5, 2, (0.3,), (0.4,)) for _ in range(3)], Gate(3, 2, 1, (0.3,), (0.4,))
    all_of_them, one = Mixture(experts, gate, mixing), Mixture(experts, gate, mixing, top1=True)
    lively(one)
    all_of_them.eval()
    x = images(40)
    with torch.no_grad():
        favourite = gate(x).argmax(dim=1)
        assert len(favourite.unique()) == 3
        said = [expert(x) for expert in experts]
        expected = torch.stack([said[int(favourite[i])][i] for i in range(len(x))])
        answer, soft = one.forward_with_surrogate(x)
        assert torch.equal(one(x), expected)
        assert torch.equal(answer, expected)
        assert torch.equal(soft, all_of_them(x))
        assert not torch.allclose(soft, answer, atol=1e-2)
        assert torch.equal(one.forward_with_experts(x).gate_weights, nn.functional.one_hot(favourite, 3).float())
        assert all(torch.equal(found, all_of_them(x)) for found in all_of_them.forward_with_surrogate(x))


def test_no_gradient_passes_the_gates_choice_but_one_passes_its_stand_in() -> None:
    torch.manual_seed(0)
    model = lively(
        Mixture([resnet18(5, 2, (0.3,), (0.4,)) for _ in range(2)], Gate(2, 2, 1, (0.3,), (0.4,)), top1=True)
    )
    answer, soft = model.forward_with_surrogate(images())
    gate = list(model.gate.parameters())
    found = torch.autograd.grad(answer[:, 0].sum(), gate, allow_unused=True, retain_graph=True)
    assert all(gradient is None for gradient in found)
    assert all(gradient.abs().max() > 0 for gradient in torch.autograd.grad(soft[:, 0].sum(), gate))


# -- backbones -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "millions"),
    [("resnet18", 11.17), ("resnet50", 23.52), ("vgg16", 14.73), ("densenet121", 6.96), ("wrn28-10", 36.48)],
)
def test_a_full_width_backbone_has_the_known_number_of_parameters(name: str, millions: float) -> None:
    # As counted for the usual CIFAR versions (kuangliu/pytorch-cifar; Zagoruyko and Komodakis 2016).
    with torch.device("meta"):
        model = backbone(name, 10, 64, 32, MEAN, STD)
    assert parameters(model) / 1e6 == pytest.approx(millions, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("channels", "side"), [(1, 8), (3, 8), (3, 32)])
def test_a_backbone_takes_small_images_of_any_kind(name: str, channels: int, side: int) -> None:
    torch.manual_seed(0)
    model = backbone(name, 7, 2, side, MEAN[:channels], STD[:channels])
    x = images(4, channels, side)
    assert model.train()(x).shape == (4, 7)
    logits = model.eval()(x)
    assert logits.shape == (4, 7)
    assert torch.isfinite(logits).all()


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_of_a_backbone_learns_and_pixels_are_normalised_inside(name: str) -> None:
    torch.manual_seed(0)
    model = backbone(name, 3, 8, 8, (0.3,), (0.4,))
    x = images(12)
    nn.functional.cross_entropy(model(x), torch.arange(12) % 3).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or p.grad.abs().max() == 0]
    assert still == []
    lively(model)
    with torch.no_grad():
        expected = model(x)
        model.normalize.mean.zero_()
        model.normalize.std.fill_(1)
        assert torch.allclose(model((x - 0.3) / 0.4), expected, rtol=1e-3, atol=1e-3)
        assert not torch.allclose(model(x), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("side", "pools"), [(32, 5), (8, 3), (1, 0)])
def test_vgg_pools_only_while_its_maps_have_more_than_one_pixel(side: int, pools: int) -> None:
    model = backbone("vgg16", 10, 4, side, (0.3,), (0.4,))
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == pools
    assert model.eval().body(images(2, 1, side)).shape[2:] == (1, 1)


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'resnet34': expected resnet18, resnet50, vgg16, densenet121 or wrn28-10"):
        backbone("resnet34", 10, 64, 32, MEAN, STD)


def test_operations_of_resnet18_are_those_known() -> None:
    # 0.555 billion multiplications with as many additions (the usual count at 32x32)
    with torch.device("meta"):
        model = backbone("resnet18", 10, 64, 32, MEAN, STD).eval()
        assert operations(model, (3, 32, 32)) == pytest.approx(2 * 0.555e9, rel=0.01)


def test_a_pathway_costs_what_one_network_costs() -> None:
    single = operations(resnet18(5, 3, (0.3,), (0.4,)).eval(), (1, 8, 8))
    router = operations(advmoe().router, (1, 8, 8))
    assert operations(advmoe(2), (1, 8, 8)) == operations(advmoe(7), (1, 8, 8)) - (7 - 2) * 2 * 8  # the router's head
    assert operations(advmoe(), (1, 8, 8)) == single + router


# -- folded copies ---------------------------------------------------------------------------------------------------


def soe(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return lively(SoE(resnet18(6, 3, (0.3,), (0.4,)) for _ in range(3)))


def top1(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    experts = [resnet18(5, 3, (0.3,), (0.4,)) for _ in range(3)]
    return lively(Mixture(experts, Gate(3, 2, 1, (0.3,), (0.4,)), top1=True))


def small(name: str) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return lively(backbone(name, 5, 8, 8, (0.3,), (0.4,)))

    return build


CHOOSING: dict[str, Callable[[], nn.Module]] = {"soe": soe, "advmoe": advmoe, "top1": top1}
ALL = CHOOSING | {name: small(name) for name in NAMES}


def asked(network: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """The answer, and the input gradient of something that hangs on all of it unevenly."""
    x = x.clone().requires_grad_()
    logits = network(x)
    weights = torch.linspace(-1, 1, logits.shape[1]).cos()
    return logits.detach(), torch.autograd.grad((logits * weights).sum(), x)[0]


class Along(nn.Module):
    """An ADVMoE whose images take given routes."""

    def __init__(self, network: nn.Module, route: Tensor) -> None:
        super().__init__()
        self.network, self.route = network, route

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.network, ADVMoE)
        return self.network.forward_route(x, self.route)


def near(found: Tensor, expected: Tensor, within: float = 1e-3) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= within * expected.norm())


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("build", ALL.values(), ids=ALL.keys())
def test_a_folded_copy_answers_like_the_network(build: Callable[[], nn.Module], stacked: bool) -> None:
    model, x = build(), images(24)
    folded = fold(model, x, stacked=stacked)
    assert folded.network is not model, folded.reason
    assert any(isinstance(module, FoldedConvolution) for module in folded.network.modules())
    (logits, gradient), (their_logits, their_gradient) = asked(folded.network, x), asked(model, x)
    assert near(logits, their_logits)
    close = [near(a, b) for a, b in zip(gradient, their_gradient, strict=True)]
    assert close.count(False) <= 4  # a ReLU that rounding switches, in a deep network
    if hasattr(model, "forward_with_surrogate"):
        for found, expected in zip(
            folded.network.forward_with_surrogate(x), model.forward_with_surrogate(x), strict=True
        ):
            assert near(found, expected)
        assert near(folded.network.forward_with_experts(x).expert_logits, model.forward_with_experts(x).expert_logits)


def test_a_folded_advmoe_sends_each_image_its_own_way() -> None:
    model, x = advmoe(), images(24)
    folded = fold(model, x).network
    assert isinstance(folded, ADVMoE) and folded is not model
    route = mixed_routes(len(x))
    with torch.no_grad():
        assert len(model.router(x).argmax(dim=1).unique()) == 3
        assert len(model.router(x[:2]).argmax(dim=1).unique()) < 3  # the example does not see every pathway
        assert near(folded.forward_route(x, route), model.forward_route(x, route))
        model.forward_route(x[:5], route[:5])  # another batch's routes in the network do not disturb its copy
        assert near(folded(x), model(x))


@pytest.mark.parametrize(
    ("route", "passed"),
    [
        ([0, 1, 2] * 8, 8),  # one blank image for none
        ([0] * 14 + [1] * 10, 14),  # a pathway nobody takes
        ([2] * 24, None),  # side by side two images of three would be blank
    ],
    ids=["even", "uneven", "one"],
)
def test_a_folded_advmoe_runs_its_pathways_side_by_side(
    route: list[int], passed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advmoe_module, "BLANKS", 2)
    model, x = advmoe(), images(24)
    folded = fold(model, x).network
    assert isinstance(folded, ADVMoE) and folded.grouped is not None and model.grouped is None
    seen: list[torch.Size] = []
    folded.grouped.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[:2]))
    taken = torch.tensor(route)[torch.randperm(24, generator=rng(3))]
    found, expected = (asked(Along(network, taken), x) for network in (folded, model))
    assert seen == ([] if passed is None else [(passed, 3)])
    assert all(near(a, b) for a, b in zip(found, expected, strict=True))


def test_a_folded_advmoe_on_colour_images_goes_path_by_path() -> None:
    torch.manual_seed(0)
    model, x = lively(ADVMoE(5, 3, 3, 2, 1, MEAN, STD), channels=3), images(24, channels=3)
    folded = fold(model, x).network
    assert isinstance(model, ADVMoE) and isinstance(folded, ADVMoE) and folded is not model and folded.grouped is None
    with torch.no_grad():
        assert near(folded(x), model(x))
        assert near(folded.forward_with_experts(x).expert_logits, model.forward_with_experts(x).expert_logits)


@pytest.mark.parametrize("folded", [False, True])
def test_networks_apart_see_images_of_their_own(folded: bool) -> None:
    torch.manual_seed(0)
    pathway_networks = PerExpertInput([lively(resnet18(5, 2, (0.3,), (0.4,))) for _ in range(3)])
    x = images(30).view(10, 3, 1, 8, 8)
    network = fold(pathway_networks, x, stacked=True).network if folded else pathway_networks
    assert folded is any(isinstance(module, FoldedConvolution) and module.groups == 3 for module in network.modules())
    with torch.no_grad():
        expected = torch.stack([net(x[:, i]) for i, net in enumerate(pathway_networks)], dim=1)
        assert near(network(x), expected)


@pytest.mark.parametrize("build", CHOOSING.values(), ids=CHOOSING.keys())
def test_a_refreshed_copy_follows_a_network_that_has_learnt(build: Callable[[], nn.Module]) -> None:
    model, x = build(), images(24)
    folded = fold(model, x)
    before = model(x).detach()
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    lively(model)
    folded.refresh()
    assert not near(before, model(x), 0.1)
    assert near(folded.network(x), model(x))


@pytest.mark.parametrize("objective", ["cross-entropy", "soft"])
@pytest.mark.parametrize("build", CHOOSING.values(), ids=CHOOSING.keys())
def test_attacks_through_a_copy_end_like_attacks_on_the_network(build: Callable[[], nn.Module], objective: str) -> None:
    model, x = build(), images(60, seed=1)
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    how: dict[str, Any] = {"eps": 0.02, "step_size": 0.005, "steps": 3, "random_start": False}
    how["objective"] = OBJECTIVES[objective].objective
    copied, plain = attack(fold(model, x), x, y, **how), attack(Folded(model, model), x, y, **how)
    assert 0 < int(plain.fooled.sum()) < 60
    assert int((copied.fooled != plain.fooled).sum()) <= 1  # rounding, at the border of a class
    for done in (copied, plain):
        assert torch.equal(misclassified(model, done.images, y), done.fooled)


@pytest.mark.parametrize("objective", ["divergence", "routed divergence"])
def test_attacks_on_answers_and_routes_move_them(objective: str) -> None:
    model, x = advmoe(), images(24)
    folded, kind, y = fold(model, x), OBJECTIVES[objective], torch.zeros(24, dtype=torch.int64)
    assert kind.targets is not None
    targets = kind.targets(folded.network, x, y)
    assert targets.shape == (24, 5 if objective == "divergence" else 5 + 3)
    start = (x + 1e-5 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    how: dict[str, Any] = {"eps": 0.05, "step_size": 0.02, "steps": 4, "targets": targets, "objective": kind.objective}
    found = pgd(folded, x, y, **how, start=start)
    with torch.no_grad():
        before, after = (kind.objective(model, z, targets)[1].mean() for z in (start, found))
    assert after > 10 * before
