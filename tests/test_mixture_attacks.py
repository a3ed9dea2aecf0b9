"""Attacks on mixtures, other objectives, transfer and noise, compared with formulas, closed forms and plain loops."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pyautoattack.autopgd_base import APGDAttack
from torch import Tensor, nn
from toys import Linear, ToyNet, same_state

from paperlib import Dataset
from paperlib.acceleration import Folded, fold
from paperlib.attacks import (
    NEVER,
    OBJECTIVES,
    AttackObjective,
    attack,
    cross_entropy,
    is_mixture,
    misclassified,
    mixture_objectives,
    pgd,
    random_noise,
    transfer_objective,
)
from paperlib.attacks.early_stopping import SYNC_EVERY
from paperlib.attacks.mixture import (
    WORST,
    gate_held,
    gate_toward,
    gate_uniform,
    joint,
    on_expert,
    on_experts,
    softened_gate,
)
from paperlib.attacks.objectives import cross_entropy_loss, dlr_loss, loss_objective, margin_loss
from paperlib.config.budgets import as_budget, as_fraction
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation.robustness import EvaluationResult, evaluate
from paperlib.evaluation.specs import AttackSpec, noise_spec, pgd_spec
from paperlib.models import ADVMoE, Gate, Mixture, SoE, UniformGate, resnet18

EPS, STEP = 0.1, 0.025
CLASSES = 4


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 12, seed: int = 0) -> Tensor:
    """Coarse patterns plus noise, so that images differ much."""
    coarse, fine = (torch.rand(n, 1, side, side, generator=rng(seed + side)) for side in (2, 8))
    return 0.7 * nn.functional.interpolate(coarse, (8, 8)) + 0.3 * fine


def without_copy(model: nn.Module) -> Folded:
    """The model without a folded copy."""
    return Folded(model, model)


def predictions(model: nn.Module, x: Tensor) -> Tensor:
    """The model's predictions, to be used as labels."""
    with torch.no_grad():
        return model(x).argmax(dim=1)


# -- formulas in plain Python ------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v - max(row)) for v in row]
    return [power / sum(powers) for power in powers]


def ce(row: list[float], y: int) -> float:
    return -math.log(softmax(row)[y])


def margin(row: list[float], y: int) -> float:
    return max(v for c, v in enumerate(row) if c != y) - row[y]


def dlr(row: list[float], y: int) -> float:
    first, _, third = sorted(row, reverse=True)[:3]
    return margin(row, y) / (first - third)


def mixed(rows: list[list[float]], weights: list[float], mixing: str) -> list[float]:
    if mixing == "logits":
        return [sum(w * v for w, v in zip(weights, column, strict=True)) for column in zip(*rows, strict=True)]
    shares = [softmax(row) for row in rows]
    return [math.log(sum(w * p for w, p in zip(weights, column, strict=True))) for column in zip(*shares, strict=True)]


@dataclass(frozen=True)
class Outputs:
    """The outputs of a mixture for one image, as Python numbers."""

    expert_logits: list[list[float]]
    gate_logits: list[float]
    logits: list[float]
    mixing: str
    hard_routing: bool

    def weights(self, temperature: float = 1.0) -> list[float]:
        return softmax([score / temperature for score in self.gate_logits])

    def soft_logits(self, temperature: float = 1.0) -> list[float]:
        return mixed(self.expert_logits, self.weights(temperature), self.mixing)

    def differentiable_logits(self) -> list[float]:
        return self.soft_logits() if self.hard_routing else self.logits

    def worst_expert(self, y: int) -> int:
        losses = [ce(row, y) for row in self.expert_logits]
        return losses.index(max(losses))

    def log_weight(self, expert: int, y: int) -> float:
        return math.log(self.weights()[self.worst_expert(y) if expert == WORST else expert])


def outputs(model: nn.Module, x: Tensor) -> list[Outputs]:
    with torch.no_grad():
        output, logits = model.forward_with_experts(x), model(x)
    hard_routing = bool((output.gate_weights.amax(dim=1) == 1).all())
    mixing = getattr(model, "mixing", "probabilities")
    parts = zip(output.expert_logits.tolist(), output.gate_logits.tolist(), logits.tolist(), strict=True)
    return [Outputs(*part, mixing, hard_routing) for part in parts]


# -- mixtures ----------------------------------------------------------------------------------------------------------


def linear(rows: int, seed: int, scale: float = 0.4) -> Linear:
    return Linear(scale * torch.randn(rows, 64, generator=rng(seed)), torch.randn(rows, generator=rng(seed + 100)))


def plain(mixing: str = "probabilities", top1: bool = False) -> nn.Module:
    """Three linear experts and a linear gate that prefers different experts for different images."""
    gate = linear(3, 9)
    with torch.no_grad():
        gate.bias.copy_(-gate(images(60)).mean(dim=0) + gate.bias)
    return Mixture([linear(CLASSES, i) for i in range(3)], gate, mixing, top1=top1).double()


def soe() -> nn.Module:
    """Linear sub-models; the last output of each is its confidence score."""
    return SoE(linear(CLASSES + 1, i) for i in range(3)).double()


def with_statistics(model: nn.Module) -> nn.Module:
    """With batch norm statistics of images and random heads, so that logits depend on the image."""
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model.train()(images(40))
    return model.eval()


def advmoe() -> nn.Module:
    torch.manual_seed(0)
    return with_statistics(ADVMoE(CLASSES, 3, 2, 2, 1, (0.3,), (0.4,))).double()


MIXTURES: dict[str, Callable[[], nn.Module]] = {
    "probabilities": plain,
    "logits": lambda: plain("logits"),
    "top1": lambda: plain(top1=True),
    "top1 logits": lambda: plain("logits", top1=True),
    "soe": soe,
    "advmoe": advmoe,
}
HARD_ROUTED = ["top1", "top1 logits", "soe", "advmoe"]
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def mixture_case(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A mixture, images and labels, in double precision; many labels are not the prediction, and the gate varies."""
    model, x = MIXTURES[name](), images(30).double()
    weights = model.forward_with_experts(x).gate_weights.detach()
    assert len(weights.argmax(dim=1).unique()) > 1
    return model, x, torch.arange(30) % CLASSES


# -- losses ------------------------------------------------------------------------------------------------------------

rows_of_logits = st.lists(st.integers(-40, 40), min_size=3, max_size=7, unique=True)


@given(st.lists(rows_of_logits.map(lambda row: row[:3]), min_size=1, max_size=5), st.integers(0, 2))
def test_losses_equal_their_formulas(rows: list[list[int]], y: int) -> None:
    logits = torch.tensor(rows, dtype=torch.float64) / 10
    labels = torch.full((len(rows),), y)
    for loss, formula in ((cross_entropy_loss, ce), (margin_loss, margin), (dlr_loss, dlr)):
        expected = [formula(row, y) for row in logits.tolist()]
        assert loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(rows_of_logits, st.data())
def test_margin_and_dlr_are_positive_if_and_only_if_the_image_is_misclassified(
    row: list[int], data: st.DataObject
) -> None:
    y = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=torch.float32)
    mistake = row.index(max(row)) != y
    assert bool(margin_loss(logits, torch.tensor([y])) > 0) == mistake
    assert bool(dlr_loss(logits, torch.tensor([y])) > 0) == mistake


@given(rows_of_logits, st.floats(1e-3, 1e3), st.floats(-100, 100), st.data())
def test_dlr_is_invariant_to_scale_and_shift_and_the_margin_to_shift(
    row: list[int], scale: float, shift: float, data: st.DataObject
) -> None:
    y = torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    logits = torch.tensor([row], dtype=torch.float64)
    assert torch.allclose(dlr_loss(scale * logits + shift, y), dlr_loss(logits, y), rtol=1e-6)
    assert torch.allclose(margin_loss(scale * logits + shift, y), scale * margin_loss(logits, y), rtol=1e-6)


def test_dlr_equals_that_of_the_authors_library() -> None:
    logits, y = torch.randn(50, 6, generator=rng()), torch.arange(50) % 6
    library = APGDAttack(None, eps=EPS, loss="dlr", device="cpu")
    assert torch.allclose(dlr_loss(logits, y), library.dlr_loss(logits, y))


def test_dlr_with_two_classes_is_an_error_that_suggests_the_margin() -> None:
    with pytest.raises(InputError, match=r"2 classes.*margin"):
        dlr_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    x = images(3)
    with pytest.raises(InputError, match="2 classes"):
        pgd(linear(2, 0), x, torch.zeros(3, dtype=torch.int64), **budget(), objective=OBJECTIVES["dlr"].function)


def test_losses_stay_finite_where_all_logits_are_equal() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    for loss in (cross_entropy_loss, margin_loss, dlr_loss):
        value = loss(logits, torch.tensor([1]))
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()


@pytest.mark.parametrize(("name", "formula"), [("margin", margin), ("dlr", dlr)])
def test_an_attack_can_maximise_a_named_loss(name: str, formula: Callable[[list[float], int], float]) -> None:
    model, x = linear(CLASSES, 0), images(30)
    y = predictions(model, x)
    logits, values = OBJECTIVES[name].function(model, x, y)
    assert torch.equal(logits, model(x))
    expected = [formula(row, int(label)) for row, label in zip(logits.tolist(), y, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4)
    adversarial = pgd(model, x, y, **budget(), objective=loss_objective(margin_loss), random_start=False)
    assert margin_loss(model(adversarial), y).mean() > margin_loss(model(x), y).mean() + 0.1


def budget(steps: int = 4) -> dict[str, Any]:
    return {"eps": EPS, "step_size": STEP, "steps": steps}


# -- objectives --------------------------------------------------------------------------------------------------------

FORMULAS: dict[str, tuple[Any, Callable[[Outputs, int], float]]] = {
    "experts": (on_experts(cross_entropy_loss), lambda o, y: sum(ce(row, y) for row in o.expert_logits)),
    "experts margin": (on_experts(margin_loss), lambda o, y: sum(margin(row, y) for row in o.expert_logits)),
    "expert 0": (on_expert(0), lambda o, y: ce(o.expert_logits[0], y)),
    "expert 2": (on_expert(2), lambda o, y: ce(o.expert_logits[2], y)),
    "gate uniform": (gate_uniform, lambda o, y: ce(mixed(o.expert_logits, [1 / 3] * 3, o.mixing), y)),
    "soft 1": (softened_gate(1), lambda o, y: ce(o.soft_logits(), y)),
    "soft 5": (softened_gate(5), lambda o, y: ce(o.soft_logits(5), y)),
    "gate to 0": (gate_toward(0), lambda o, y: o.log_weight(0, y)),
    "gate to 2": (gate_toward(2), lambda o, y: o.log_weight(2, y)),
    "gate to worst": (gate_toward(WORST), lambda o, y: o.log_weight(WORST, y)),
    "joint 0.1": (
        joint(0.1, WORST, cross_entropy_loss),
        lambda o, y: ce(o.differentiable_logits(), y) + 0.1 * o.log_weight(WORST, y),
    ),
    "joint 10 to 1": (
        joint(10, 1, cross_entropy_loss),
        lambda o, y: ce(o.differentiable_logits(), y) + 10 * o.log_weight(1, y),
    ),
    "joint 1 margin": (
        joint(1, 1, margin_loss),
        lambda o, y: margin(o.differentiable_logits(), y) + o.log_weight(1, y),
    ),
}


@every_mixture
def test_each_objective_equals_its_formula_and_returns_the_logits_of_the_model(name: str) -> None:
    model, x, y = mixture_case(name)
    x.requires_grad_()
    pairs = [(output, int(label)) for output, label in zip(outputs(model, x), y, strict=True)]
    for objective, (function, formula) in FORMULAS.items():
        logits, values = function(model, x, y)
        assert torch.allclose(logits, model(x)), objective
        expected = [formula(output, label) for output, label in pairs]
        assert values.shape == (30,), objective
        assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5), objective
        assert torch.isfinite(torch.autograd.grad(values.sum(), x)[0]).all(), objective


@every_mixture
def test_the_worst_expert_has_the_largest_loss_on_each_image(name: str) -> None:
    model, x, y = mixture_case(name)
    worst = [output.worst_expert(int(label)) for output, label in zip(outputs(model, x), y, strict=True)]
    assert len(set(worst)) == 3
    values = gate_toward(WORST)(model, x, y)[1]
    each = torch.stack([gate_toward(i)(model, x, y)[1] for i in range(3)])
    assert torch.equal(values, each[torch.tensor(worst), torch.arange(30)])


@every_mixture
def test_gate_held_uses_the_weights_of_the_clean_images(name: str) -> None:
    model, x, y = mixture_case(name)
    objective = mixture_objectives(model, x)["gate held"]
    assert objective.function is gate_held and objective.targets is not None
    targets = objective.targets(model, x, y)
    assert not targets.requires_grad
    clean = outputs(model, x)
    moved = images(30, seed=5).double().requires_grad_()
    now = outputs(model, moved)
    clean_routes, routes = ([o.gate_logits.index(max(o.gate_logits)) for o in group] for group in (clean, now))
    assert sum(a != b for a, b in zip(clean_routes, routes, strict=True)) > 5
    logits, values = gate_held(model, moved, targets)
    assert torch.allclose(logits, model(moved))
    for i in range(30):
        weights = [float(k == clean_routes[i]) for k in range(3)] if name in HARD_ROUTED else clean[i].weights()
        expected = ce(mixed(now[i].expert_logits, weights, now[i].mixing), int(y[i]))
        assert float(values[i].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["probabilities", "logits", "top1", "advmoe"])
def test_the_gate_gets_a_gradient_from_objectives_of_the_gate_only(name: str) -> None:
    model, x, y = mixture_case(name)
    gate = list((model.router if name == "advmoe" else model.gate).parameters())
    objectives = mixture_objectives(model, x)
    held = objectives["gate held"].targets
    assert held is not None
    for function, targets, reaches in (
        (gate_held, held(model, x, y), False),
        (gate_uniform, y, False),
        (on_experts(cross_entropy_loss), y, False),
        (on_expert(1), y, False),
        (objectives["gate to worst"].function, y, True),
        (objectives["joint 1"].function, y, True),
        (objectives["two-stage worst"].function, y, True),
        (softened_gate(5), y, True),
    ):
        gradients = torch.autograd.grad(function(model, x, targets)[1].sum(), gate, allow_unused=True)
        assert any(g is not None and bool(g.abs().max() > 0) for g in gradients) == reaches, function


def test_the_gradient_of_gate_held_is_that_of_a_mixture_with_constant_weights() -> None:
    model, x, y = mixture_case("probabilities")
    held = mixture_objectives(model, x)["gate held"].targets
    assert held is not None
    weights = model.forward_with_experts(x).gate_weights.detach()
    z = x.clone().requires_grad_()
    gradient = torch.autograd.grad(gate_held(model, z, held(model, x, y))[1].sum(), z)[0]
    shares = (weights.unsqueeze(2) * torch.softmax(model.experts(z), dim=2)).sum(dim=1)
    expected = torch.autograd.grad(-shares.gather(1, y.unsqueeze(1)).log().sum(), z)[0]
    assert torch.allclose(gradient, expected, atol=1e-5)
    with_gate = torch.autograd.grad(cross_entropy_loss(model(z), y).sum(), z)[0]
    assert not torch.allclose(gradient, with_gate, atol=1e-2)


def test_the_second_stage_maximises_the_loss_of_the_logits_or_of_their_surrogate() -> None:
    for name in MIXTURES:
        model, x, y = mixture_case(name)
        logits, values = mixture_objectives(model, x)["two-stage worst"].function(model, x, y)
        assert torch.allclose(logits, model(x))
        expected = [ce(o.differentiable_logits(), int(label)) for o, label in zip(outputs(model, x), y, strict=True)]
        assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)


def test_labels_stay_exact_among_the_log_weights() -> None:
    x = images(6)
    model = Mixture([linear(300, i) for i in range(2)], linear(2, 9))
    y = torch.tensor([0, 1, 127, 255, 256, 299])
    targets = mixture_objectives(model, x)["gate held"].targets
    assert targets is not None
    held = targets(model, x, y)
    assert torch.equal(held[:, 0].long(), y)
    assert torch.allclose(held[:, 1:].exp(), model.forward_with_experts(x).gate_weights)


# -- which objectives apply --------------------------------------------------------------------------------------------

ON_EXPERTS = {"experts", "experts margin", "expert 0", "expert 1", "expert 2", "gate uniform"}
ON_GATE = {"gate held", "gate to worst", "two-stage worst", "joint 0.1", "joint 1", "joint 10", "joint 1 margin"}


@every_mixture
def test_names_of_the_objectives_of_a_mixture(name: str) -> None:
    model, x, _ = mixture_case(name)
    expected = ON_EXPERTS | ON_GATE | ({"soft 1", "soft 5"} if name in HARD_ROUTED else set())
    assert is_mixture(model)
    assert set(mixture_objectives(model, x)) == expected
    assert set(mixture_objectives(model, x, benign=0)) == expected | {"gate to benign", "two-stage benign"}
    with torch.no_grad():
        assert set(mixture_objectives(model.requires_grad_(False), x[:1])) == expected


def test_a_constant_gate_has_no_objectives_of_the_gate() -> None:
    for top1 in (False, True):
        model = Mixture([linear(CLASSES, i) for i in range(3)], UniformGate(3), top1=top1)
        assert set(mixture_objectives(model, images(), benign=1)) == ON_EXPERTS


def test_a_plain_network_has_no_mixture_objectives() -> None:
    assert not is_mixture(linear(CLASSES, 0))
    assert mixture_objectives(linear(CLASSES, 0), images(), benign=0) == {}


def test_no_name_is_used_twice() -> None:
    model, x, _ = mixture_case("top1")
    assert not set(mixture_objectives(model, x, benign=0)) & set(OBJECTIVES)


def test_joint_objectives_raise_the_weight_of_the_benign_expert_if_there_is_one() -> None:
    model, x, y = mixture_case("probabilities")
    for benign in (None, 0, 2):
        objectives, expert = mixture_objectives(model, x, benign), WORST if benign is None else benign
        for weight, name in ((0.1, "joint 0.1"), (1, "joint 1"), (10, "joint 10")):
            expected = joint(weight, expert, cross_entropy_loss)(model, x, y)[1]
            assert torch.equal(objectives[name].function(model, x, y)[1], expected)
        expected = joint(1, expert, margin_loss)(model, x, y)[1]
        assert torch.equal(objectives["joint 1 margin"].function(model, x, y)[1], expected)
        assert torch.equal(objectives["gate to worst"].function(model, x, y)[1], gate_toward(WORST)(model, x, y)[1])
        for name in ("worst",) if benign is None else ("worst", "benign"):
            warm_start, target = objectives[f"two-stage {name}"].warm_start, WORST if name == "worst" else expert
            assert warm_start is not None
            assert torch.equal(warm_start(model, x, y)[1], gate_toward(target)(model, x, y)[1])
    assert all(
        objective.warm_start is None for name, objective in objectives.items() if not name.startswith("two-stage")
    )


@pytest.mark.parametrize("training", [False, True])
def test_mixture_objectives_does_not_change_the_model(training: bool) -> None:
    torch.manual_seed(0)
    experts = [resnet18(CLASSES, 2, (0.3,), (0.4,)) for _ in range(2)]
    model = with_statistics(Mixture(experts, Gate(2, 2, 1, (0.3,), (0.4,)))).train(training)
    before, x = copy.deepcopy(model), images()
    clean = x.clone()
    mixture_objectives(model, x)
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(x, clean) and not x.requires_grad


# -- attacks on gates --------------------------------------------------------------------------------------------------


@every_mixture
def test_gate_toward_an_expert_raises_its_weight(name: str) -> None:
    model, x, y = mixture_case(name)

    def mean_weights(z: Tensor) -> Tensor:
        return torch.softmax(model.forward_with_experts(z).gate_logits, dim=1).detach().mean(dim=0)

    clean = mean_weights(x)
    moved = torch.stack(
        [mean_weights(pgd(model, x, y, **budget(), objective=gate_toward(i), random_start=False)) for i in range(3)]
    )
    assert (moved.diagonal() > clean + 1e-3).all()
    assert (moved.argmax(dim=0) == torch.arange(3)).all()


def test_gate_toward_an_expert_of_two_finds_the_optimal_corner_of_a_linear_gate() -> None:
    gate = linear(2, 9)
    model, x = Mixture([linear(CLASSES, i) for i in range(2)], gate), images()
    direction = (gate.weight[1] - gate.weight[0]).detach().sign().view(1, 1, 8, 8)
    adversarial = pgd(model, x, predictions(model, x), **budget(10), objective=gate_toward(1), random_start=False)
    assert torch.allclose(adversarial, (x + EPS * direction).clamp(0, 1), atol=1e-6)


FLAT, FIRST_PIXEL = torch.zeros(2, 4), torch.tensor([[-4.0, 0, 0, 0], [4.0, 0, 0, 0]])
CORRECT, INCORRECT = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])


def grey(n: int = 3) -> Split:
    return Split(torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.int64))


def gated(top1: bool, sharpness: float) -> nn.Module:
    """A correct and an incorrect expert, both constant; the gate prefers the latter if the first pixel exceeds 0.55."""
    bias = torch.tensor([2.2, -2.2])
    return Mixture(
        [Linear(FLAT, CORRECT), Linear(FLAT, INCORRECT)],
        Linear(sharpness * FIRST_PIXEL, sharpness * bias),
        top1=top1,
    )


def result_under(
    model: nn.Module, split: Split, objective: str, objectives: dict[str, AttackObjective] | None = None, **more: Any
) -> EvaluationResult:
    """PGD on one objective from the clean images or the result of its warm start; 20 steps of 0.02, eps 0.2."""
    spec = replace(pgd_spec("0.2", 20, "0.02", objective=objective), random_start=False)
    objectives = mixture_objectives(model, split.images, benign=1) if objectives is None else objectives
    return evaluate(without_copy(model), split, spec, seed=0, objectives={**OBJECTIVES, **objectives}, **more)


@pytest.mark.parametrize(("top1", "sharpness"), [(True, 1.0), (False, 1e4)], ids=["hard routing", "saturated"])
def test_attacks_on_the_gate_succeed_against_a_gate_without_a_gradient(top1: bool, sharpness: float) -> None:
    model, split = gated(top1, sharpness), grey()
    for objective in ("cross-entropy", "margin", "experts", "expert 0", "gate uniform", "gate held"):
        assert result_under(model, split, objective).correct.all(), objective
    for objective in ("gate to worst", "gate to benign", "joint 1", "joint 0.1", "joint 10", "joint 1 margin"):
        result = result_under(model, split, objective)
        assert result.first_success.tolist() == [3] * 3, objective  # 0.50, 0.52, 0.54, 0.56
    for objective in ("two-stage worst", "two-stage benign"):
        result = result_under(model, split, objective)
        assert result.first_success.tolist() == [0] * 3, objective  # the warm start ends at 0.7
    for objective in ("soft 1", "soft 5") if top1 else ():
        assert result_under(model, split, objective).first_success.tolist() == [3] * 3, objective


def test_plain_pgd_succeeds_against_the_same_gate_with_a_gradient() -> None:
    # So the test above shows the effect of gradient masking.
    assert result_under(gated(False, 1.0), grey(), "cross-entropy").first_success.tolist() == [3] * 3


def two_conditions() -> nn.Module:
    """A mixture that misclassifies only if the first pixel is above 0.605 and the second pixel is above 0.63.

    The gate routes to the second expert on the first condition, and the second expert is incorrect on the second one.
    The first expert is constant and correct.
    """
    second = torch.tensor([[0, -4.0, 0, 0], [0, 4.0, 0, 0]])
    experts = [Linear(FLAT, CORRECT), Linear(second, torch.tensor([4 * 0.63, -4 * 0.63]))]
    return Mixture(experts, Linear(FIRST_PIXEL, torch.tensor([4 * 0.605, -4 * 0.605])), top1=True)


def test_two_stages_succeed_where_attacks_on_gate_or_experts_alone_fail() -> None:
    model, split = two_conditions(), grey(20)
    for objective in ("cross-entropy", "experts", "expert 1", "gate uniform", "gate held", "gate to benign"):
        assert result_under(model, split, objective).correct.all(), objective
    assert not result_under(model, split, "two-stage benign", batch_size=7).correct.any()


def test_the_second_stage_starts_from_the_result_of_the_first() -> None:
    model, x, y = mixture_case("probabilities")
    y = predictions(model, x)
    iterates: dict[str, list[Tensor]] = {"first": [], "second": []}

    def recording(stage: str, objective: Any) -> Any:
        def record(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            iterates[stage].append(x.detach().clone())
            return objective(model, x, y)

        return record

    objective = AttackObjective(recording("second", cross_entropy), warm_start=recording("first", gate_toward(1)))
    spec = pgd_spec("0.02", 5, "0.005", objective="staged")
    result = evaluate(without_copy(model), Split(x, y), spec, seed=3, objectives={"staged": objective})
    assert [len(z) for z in iterates["first"]] == [30] * 5
    run: dict[str, Any] = {"eps": 0.02, "step_size": 0.005, "steps": 5}
    start = pgd(without_copy(model), x, y, **run, generator=rng(3), objective=gate_toward(1))
    assert torch.equal(iterates["second"][0], start)
    assert not torch.equal(iterates["second"][0], iterates["first"][-1])
    expected = attack(without_copy(model), x, y, **run, start=start)
    assert torch.equal(result.first_success.long(), expected.first_success)
    assert result.passes == (expected.passes + 30 * 5) / 30
    assert 0 < int(result.correct.sum()) < 30


@pytest.mark.parametrize("batch_size", [7, 512])
def test_an_evaluation_with_gate_held_uses_the_weights_of_each_image(batch_size: int) -> None:
    model, x, _ = mixture_case("top1")
    y = predictions(model, x)
    objectives = mixture_objectives(model, x)
    spec = pgd_spec("0.02", 5, "0.005", objective="gate held")
    result = evaluate(without_copy(model), Split(x, y), spec, seed=3, objectives=objectives, batch_size=batch_size)
    held = objectives["gate held"].targets
    assert held is not None
    options: dict[str, Any] = {
        "eps": 0.02,
        "step_size": 0.005,
        "steps": 5,
        "batch_size": batch_size,
        "generator": rng(3),
    }
    expected = attack(without_copy(model), x, y, **options, objective=gate_held, targets=held(model, x, y))
    assert torch.equal(result.first_success.long(), expected.first_success)
    assert result.passes == expected.passes / 30 + 1  # one pass for the weights of the clean images
    assert 0 < int(result.correct.sum()) < 30


def test_an_unknown_objective_is_an_input_error_that_lists_the_available_ones() -> None:
    model, x, y = mixture_case("probabilities")
    spec = pgd_spec("0.1", 2, "0.05", objective="gate to benign")
    run: dict[str, Any] = {"model": without_copy(model), "split": Split(x, y), "seed": 0}
    objectives = mixture_objectives(model, x)
    with pytest.raises(InputError, match=r"'gate to benign'.*experts, experts margin, .*joint 1 margin"):
        evaluate(spec=spec, objectives=objectives, **run)
    with pytest.raises(InputError, match="cross-entropy, margin, dlr"):
        evaluate(spec=spec, **run)
    with pytest.raises(InputError, match=r"'cross-entropy'.*experts"):
        evaluate(spec=replace(spec, objective="cross-entropy"), objectives=objectives, **run)


def test_the_objective_is_part_of_the_name_of_an_attack() -> None:
    assert pgd_spec("8/255", 50, "2/255", objective="gate to worst").name == "pgd-50-gate-to-worst@8/255"
    assert pgd_spec("8/255", 50, "2/255").name == "pgd-50@8/255"
    assert pgd_spec("0.1", 5, "0.05", objective="joint 1").table()["objective"] == "joint 1"


# -- through a folded copy ---------------------------------------------------------------------------------------------


def convolutional(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "advmoe":
        return with_statistics(ADVMoE(CLASSES, 3, 3, 2, 1, (0.3,), (0.4,)))
    experts = [resnet18(CLASSES + (kind == "soe"), 2, (0.3,), (0.4,)) for _ in range(3)]
    if kind == "soe":
        return with_statistics(SoE(experts))
    return with_statistics(Mixture(experts, Gate(3, 2, 1, (0.3,), (0.4,)), top1=kind == "top1"))


def close_to(value: Tensor, expected: Tensor, tolerance: float = 1e-3) -> bool:
    return value.shape == expected.shape and bool((value - expected).norm() <= tolerance * expected.norm())


every_convolutional = pytest.mark.parametrize("kind", ["soft", "top1", "soe", "advmoe"])


@every_convolutional
def test_a_folded_copy_has_the_same_objectives_values_and_gradients(kind: str) -> None:
    model, x = convolutional(kind), images(16)
    y, folded = predictions(model, x), fold(model, x)
    assert folded.network is not model, folded.reason
    objectives = mixture_objectives(model, x, benign=1)
    assert set(mixture_objectives(folded.network, x, benign=1)) == set(objectives)
    for name, objective in objectives.items():
        results = []
        for network in (folded.network, model):
            z = x.clone().requires_grad_()
            targets = y if objective.targets is None else objective.targets(network, x, y)
            logits, values = objective.function(network, z, targets)
            results.append((logits.detach(), values.detach(), torch.autograd.grad(values.sum(), z)[0]))
        (logits, values, gradients), (expected_logits, expected_values, expected_gradients) = results
        assert close_to(logits, expected_logits), name
        assert close_to(values, expected_values), name
        different = [not close_to(a, b, 1e-2) for a, b in zip(gradients, expected_gradients, strict=True)]
        assert sum(different) <= 3, name  # rounding may switch a ReLU


@pytest.mark.parametrize(
    ("kind", "objective"),
    [("soft", "joint 1"), ("top1", "two-stage worst"), ("soe", "gate held"), ("advmoe", "experts margin")],
)
def test_attacks_on_a_folded_copy_have_the_same_outcomes(kind: str, objective: str) -> None:
    model, x = convolutional(kind), images(40, seed=1)
    split, objectives = Split(x, predictions(model, x)), mixture_objectives(model, x)
    spec = replace(pgd_spec("0.04", 3, "0.02", objective=objective), random_start=False)
    folded = fold(model, x)
    assert folded.network is not model
    networks = folded, without_copy(model)
    copied, original = (evaluate(network, split, spec, seed=0, objectives=objectives) for network in networks)
    assert not original.correct.all()
    assert int((copied.correct != original.correct).sum()) <= 1  # rounding near a decision boundary


# -- targets and starts ------------------------------------------------------------------------------------------------


class OffByOneClass(nn.Module):
    """A network with its classes shifted by one for images with a mean above ``above``."""

    def __init__(self, model: nn.Module, above: float = 0.0) -> None:
        super().__init__()
        self.model, self.above = model, above

    def forward(self, x: Tensor) -> Tensor:
        logits, shifted = self.model(x), x.mean(dim=(1, 2, 3)) > self.above
        return torch.where(shifted.unsqueeze(1), logits.roll(1, dims=1), logits)


@pytest.mark.parametrize(
    ("batch_size", "every", "misclassifying_copy"), [(None, 1, True), (1, 3, False), (7, 3, True), (7, 1, False)]
)
def test_each_image_keeps_its_target_while_others_leave_the_batch(
    toy: ToyNet,
    digits: Dataset,
    monkeypatch: pytest.MonkeyPatch,
    batch_size: int | None,
    every: int,
    misclassifying_copy: bool,
) -> None:
    monkeypatch.setitem(SYNC_EVERY, "cpu", every)
    x, y = digits.test.images[:24], digits.test.labels[:24]
    # No image is in the ball of another image, so each iterate shows which image it belongs to.
    assert ((x[:, None] - x).flatten(2).abs().amax(dim=2) + torch.eye(24) > 2 * EPS).all()
    passes = 0

    def objective(model: nn.Module, images: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal passes
        passes += len(images)
        assert ((images.detach() - x[index]).abs() <= EPS + 1e-6).all()
        return cross_entropy(model, images, y[index])

    folded = Folded(toy, OffByOneClass(toy, above=0.31)) if misclassifying_copy else without_copy(toy)
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 5, "restarts": 2, "batch_size": batch_size}
    done = attack(folded, x, y, **run, generator=rng(), objective=objective, targets=torch.arange(24))
    assert passes > 100
    assert len(done.first_success.unique()) > 3  # images leave at different steps
    expected = attack(folded, x, y, **run, generator=rng())
    assert torch.equal(done.first_success, expected.first_success)
    assert torch.equal(done.images, expected.images)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_an_attack_begins_at_its_start_moved_into_the_ball_and_into_range(batch_size: int | None) -> None:
    model, x = linear(CLASSES, 0), images(10)
    y = predictions(model, x)
    start = x + 0.3 * torch.randn(x.shape, generator=rng(7))
    expected = torch.minimum(torch.maximum(start, x - 0.01), x + 0.01).clamp(0, 1)
    iterates: list[Tensor] = []

    def constant(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        iterates.append(images.detach().clone())
        return model(images), images.flatten(1).sum(dim=1) * 0

    generator = rng()
    options: dict[str, Any] = {
        "eps": 0.01,
        "step_size": 0.01,
        "steps": 2,
        "batch_size": batch_size,
        "generator": generator,
    }
    done = attack(model, x, y, **options, start=start, objective=constant)
    assert torch.equal(generator.get_state(), rng().get_state())  # nothing is drawn
    assert not done.fooled.all()
    assert torch.allclose(done.images[~done.fooled], expected[~done.fooled])  # the gradient is 0, so nothing moves
    for iterate in iterates:
        assert (iterate.unsqueeze(1) - expected).flatten(2).abs().amax(dim=2).amin(dim=1).max() < 1e-6
    assert (start - x).abs().max() > 0.5


def test_a_start_that_fools_is_a_success_at_step_0() -> None:
    model, x = linear(CLASSES, 0), images(30)
    y = predictions(model, x)
    done = attack(model, x, y, **budget(8), random_start=False)
    again = attack(model, x, y, **budget(8), start=done.images)
    assert 5 < int(done.fooled.sum()) <= 30
    assert (again.first_success[done.fooled] == 0).all()
    assert torch.equal(again.images[done.fooled], done.images[done.fooled])


# -- transfer ----------------------------------------------------------------------------------------------------------


class NoBackward(torch.autograd.Function):
    """The identity; a backward pass is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise AssertionError("the model was differentiated")


class WithoutBackward(nn.Module):
    """A network without a backward pass."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(NoBackward.apply(x))


def surrogate() -> nn.Module:
    """A network with mixed modes, in which batch norm and dropout depend on the mode."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, CLASSES))
    for _ in range(20):
        model(images(40))
    model[2].eval()
    return model


def test_a_transfer_attack_uses_the_gradient_of_the_surrogate_alone() -> None:
    other, x = surrogate(), images(30)
    model = WithoutBackward(linear(CLASSES, 0))
    y = predictions(model, x)
    with pytest.raises(InputError, match="the model was differentiated"):
        pgd(model, x, y, **budget())
    modes, before = [module.training for module in other.modules()], copy.deepcopy(other)
    training: list[bool] = []
    hook = other.register_forward_hook(
        lambda module, args, out: training.append(any(m.training for m in module.modules()))
    )
    adversarial = pgd(model, x, y, **budget(), generator=rng(), objective=transfer_objective(other))
    hook.remove()
    assert training == [False] * 4
    assert [module.training for module in other.modules()] == modes
    assert len(set(modes)) == 2
    assert same_state(other, before)
    assert all(p.grad is None for p in (*other.parameters(), *model.parameters()))
    assert torch.equal(adversarial, pgd(other, x, y, **budget(), generator=rng()))
    assert not torch.equal(adversarial, pgd(model.model, x, y, **budget(), generator=rng()))


def test_a_transfer_attack_builds_no_graph_of_the_model() -> None:
    x = images(3).requires_grad_()
    logits, values = transfer_objective(surrogate())(linear(CLASSES, 0), x, torch.zeros(3, dtype=torch.int64))
    assert not logits.requires_grad
    assert torch.autograd.grad(values.sum(), x)[0].abs().max() > 0


def test_the_modes_of_a_surrogate_are_restored_after_an_error() -> None:
    other = surrogate()
    modes = [module.training for module in other.modules()]
    with pytest.raises(IndexError):
        transfer_objective(other)(linear(CLASSES, 0), images(3), torch.full((3,), CLASSES + 3))
    assert [module.training for module in other.modules()] == modes


def test_a_transfer_attack_succeeds_if_the_model_is_fooled_and_not_the_surrogate() -> None:
    other, x = surrogate().eval(), images(40)
    model = linear(CLASSES, 0)
    y = predictions(model, x)
    options: dict[str, Any] = {"eps": EPS, "step_size": STEP, "random_start": False}
    first = torch.full((40,), NEVER)
    for steps in range(6, 0, -1):
        crafted = pgd(other, x, y, **options, steps=steps)
        first[misclassified(model, crafted, y)] = steps
    spec = replace(pgd_spec(EPS, 6, STEP, objective="transfer"), random_start=False)
    result = evaluate(
        without_copy(WithoutBackward(model)),
        Split(x, y),
        spec,
        seed=0,
        objectives={"transfer": AttackObjective(transfer_objective(other))},
    )
    assert result.first_success.tolist() == first.tolist()
    assert 0 < int(result.correct.sum()) < 40
    assert not torch.equal(~result.correct, attack(other, x, y, **options, steps=6).fooled)


# -- noise -------------------------------------------------------------------------------------------------------------


def noisy(toy: ToyNet, digits: Dataset, n: int = 80, **more: Any) -> Any:
    x, y = digits.test.images[:n], digits.test.labels[:n]
    return random_noise(without_copy(toy), x, y, **({"eps": 0.3, "draws": 6, "generator": rng(3)} | more))


def test_noise_equals_a_plain_loop_over_draws(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    generator, expected, first = rng(3), x.clone(), torch.full_like(y, NEVER)
    first[misclassified(toy, x, y)] = 0
    for draw in range(1, 7):
        noise = (x + (2 * torch.rand(x.shape, generator=generator) - 1) * 0.3).clamp(0, 1)
        new = (first == NEVER) & misclassified(toy, noise, y)
        first[new], expected[new] = draw, noise[new]
    done = noisy(toy, digits)
    assert torch.equal(done.first_success, first)
    assert torch.equal(done.images, expected)
    assert torch.equal(done.fooled, first != NEVER)
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)
    assert {NEVER, 0, 1} < set(first.tolist())


@settings(max_examples=25)
@given(eps=st.floats(0, 1), draws=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_noise_stays_in_the_ball_and_in_range(eps: float, draws: int, seed: int) -> None:
    model, x = linear(CLASSES, 0), images(20, seed % 1000)
    y = predictions(model, x)
    done = random_noise(model, x, y, eps=eps, draws=draws, generator=rng(seed))
    assert float((done.images - x).abs().max()) <= eps + 1e-6
    assert 0 <= float(done.images.min()) <= float(done.images.max()) <= 1
    assert torch.equal(misclassified(model, done.images, y), done.fooled)
    assert torch.equal(done.images[~done.fooled], x[~done.fooled])


def test_noise_is_uniform_in_the_ball() -> None:
    class CorrectWithoutNoise(nn.Module):
        """Classifies only the grey image as class 0."""

        def forward(self, x: Tensor) -> Tensor:
            clean = (x == 0.5).flatten(1).all(dim=1).float()
            return torch.stack([clean, 1 - clean], dim=1)

    split = grey(2000)
    done = random_noise(CorrectWithoutNoise(), split.images, split.labels, eps=EPS, draws=1, generator=rng())
    assert (done.first_success == 1).all()
    moves = (done.images - 0.5).flatten() / EPS
    assert -1 <= moves.min() < -0.99
    assert 0.99 < moves.max() <= 1
    assert abs(float(moves.mean())) < 0.02
    assert abs(float(moves.std()) - 3**-0.5) < 0.01


def test_noise_succeeds_with_the_expected_probability() -> None:
    class Above(nn.Module):
        """Misclassifies if the pixel is above 0.575, which is a quarter of the ball of eps 0.15 around 0.5."""

        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)
            return torch.cat([0.575 - v, v - 0.575], dim=1)

    x, y = torch.full((4000, 1, 1, 1), 0.5), torch.zeros(4000, dtype=torch.int64)
    done = random_noise(Above(), x, y, eps=0.15, draws=5, generator=rng())
    for draws in range(1, 6):
        share = float(((done.first_success > 0) & (done.first_success <= draws)).double().mean())
        assert share == pytest.approx(1 - 0.75**draws, abs=0.03)


def test_noise_is_a_function_of_the_generator(toy: ToyNet, digits: Dataset) -> None:
    first, again, other = (noisy(toy, digits, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.first_success, again.first_success)
    assert not torch.equal(first.images, other.images)
    torch.manual_seed(1)
    from_global = noisy(toy, digits, generator=None)
    assert torch.equal(from_global.images, first.images)  # torch's global generator with the same seed


def test_noise_outcomes_do_not_depend_on_the_other_images_or_the_batch_size(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    model = copy.deepcopy(toy).double()
    run: dict[str, Any] = {"eps": 0.3, "draws": 6}
    expected = random_noise(without_copy(model), x.double(), y, **run, generator=rng(3))
    others = torch.arange(80) % 3 == 0
    labels = torch.where(others, (y + 1) % 10, y)  # the other images are misclassified from the start
    changed = random_noise(without_copy(model), x.double(), labels, **run, generator=rng(3))
    assert (changed.first_success[others] == 0).float().mean() > 0.8
    assert torch.equal(changed.first_success[~others], expected.first_success[~others])
    assert torch.equal(changed.images[~others], expected.images[~others])
    for batch_size in (1, 7):
        batched = random_noise(without_copy(model), x.double(), y, **run, generator=rng(3), batch_size=batch_size)
        assert torch.equal(batched.first_success, expected.first_success)
    assert (expected.first_success[~others] > 1).any()


def test_more_draws_fool_every_image_that_fewer_draws_fool(toy: ToyNet, digits: Dataset) -> None:
    before = noisy(toy, digits, draws=1)
    counts = [int(before.fooled.sum())]
    for draws in (2, 5, 20):
        done = noisy(toy, digits, draws=draws)
        assert not (before.fooled & ~done.fooled).any()
        assert torch.equal(done.first_success[before.fooled], before.first_success[before.fooled])
        assert int(done.first_success.max()) <= draws
        before = done
        counts.append(int(done.fooled.sum()))
    assert counts[-1] > counts[0]


def test_misclassified_clean_images_are_successes_at_draw_0_and_do_not_change(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, (digits.test.labels + (torch.arange(80) % 2)) % 10
    done = random_noise(toy, x, y, eps=0.3, draws=4, generator=rng())
    mistakes = misclassified(toy, x, y)
    assert int(mistakes.sum()) > 30
    assert torch.equal(done.first_success == 0, mistakes)
    assert torch.equal(done.images[mistakes], x[mistakes])


def test_noise_counts_its_passes_and_stops_when_no_image_survives(toy: ToyNet, digits: Dataset) -> None:
    model, sizes = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    assert noisy(model, digits, batch_size=30).passes == sum(sizes)
    assert max(sizes) == 30
    sizes.clear()
    x, y = digits.test.images, (predictions(toy, digits.test.images) + 1) % 10
    generator = rng()
    assert random_noise(without_copy(model), x, y, eps=0.1, draws=50, generator=generator).passes == sum(sizes) == 80
    assert torch.equal(generator.get_state(), rng().get_state())  # nothing is drawn


def test_noise_counts_the_passes_of_confirmations(toy: ToyNet, digits: Dataset) -> None:
    model, sizes = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    x, y = digits.test.images, digits.test.labels
    done = random_noise(Folded(model, OffByOneClass(model)), x, y, eps=0.3, draws=5, generator=rng(3))
    assert done.passes == sum(sizes)


def test_noise_through_a_copy_is_confirmed_by_the_model(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    options: dict[str, Any] = {"eps": 0.3, "draws": 6}
    expected = noisy(toy, digits)
    misclassifying = random_noise(Folded(toy, OffByOneClass(toy)), x, y, **options, generator=rng(3))
    # The copy misclassifies nearly all surviving images; the model confirms few of them.
    assert not (misclassifying.fooled & ~expected.fooled).any()
    assert torch.equal(misclassified(toy, misclassifying.images, y), misclassifying.fooled)
    folded = fold(toy, x)
    assert folded.network is not toy
    done = random_noise(folded, x, y, **options, generator=rng(3))
    assert int((done.first_success != expected.first_success).sum()) <= 1  # rounding near a decision boundary
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_noise_does_not_change_the_model(toy: ToyNet, digits: Dataset, fails: bool) -> None:
    model = copy.deepcopy(toy).train()
    model.zero_grad(set_to_none=True)
    model.body[1].eval()
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model)
    training: list[bool] = []

    def record(module: nn.Module, args: tuple[Tensor]) -> None:
        training.append(any(m.training for m in module.modules()))
        if fails and len(training) == 3:
            raise RuntimeError("in the middle")

    model.register_forward_pre_hook(record)
    x = digits.test.images.clone()
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            random_noise(without_copy(model), x, digits.test.labels, eps=0.3, draws=4)
    else:
        random_noise(without_copy(model), x, digits.test.labels, eps=0.3, draws=4)
    assert len(training) > 2 and not any(training)
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(x, digits.test.images)


def test_a_bad_setting_of_noise_is_an_input_error_that_names_it() -> None:
    for setting, value, message in (
        ("draws", 0, "draws"),
        ("draws", 2.5, "draws"),
        ("eps", 8, "8/255"),
        ("batch_size", 0, "batch_size"),
        ("x", torch.full((6, 1, 8, 8), 2.0), "images"),
        ("y", torch.zeros(5, dtype=torch.int64), "labels"),
    ):
        arguments: dict[str, Any] = {"x": images(6), "y": torch.zeros(6, dtype=torch.int64), "eps": EPS, "draws": 2}
        with pytest.raises(InputError, match=message):
            random_noise(linear(CLASSES, 0), **(arguments | {setting: value}))


def test_logits_that_are_not_finite_under_noise_are_an_error() -> None:
    class NotFiniteUnderNoise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)[:, :2]
            return torch.where((v == 0.5).all(dim=1, keepdim=True), torch.tensor([1.0, 0.0]), v / 0)

    split = grey()
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        random_noise(NotFiniteUnderNoise(), split.images, split.labels, eps=EPS, draws=1)


def test_noise_reports_progress(toy: ToyNet, digits: Dataset) -> None:
    shares: list[float] = []
    noisy(toy, digits, draws=5, eps=0.05, progress=shares.append)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_an_evaluation_under_noise_equals_random_noise(toy: ToyNet, digits: Dataset) -> None:
    spec = noise_spec("0.3", 6)
    result = evaluate(without_copy(toy), digits.test, spec, seed=3)
    done = noisy(toy, digits)
    assert spec.name == "noise-6@0.3"
    assert torch.equal(result.correct, ~done.fooled)
    assert torch.equal(result.first_success.long(), done.first_success)
    assert result.passes == done.passes / 80


# -- budgets -----------------------------------------------------------------------------------------------------------


def test_a_budget_may_be_a_float_text_or_a_fraction() -> None:
    for value in (8 / 255, "8/255", Fraction(8, 255), " 8/255 "):
        assert as_fraction(value) == Fraction(8, 255)
        assert noise_spec(value, 2) == noise_spec("8/255", 2)
        assert pgd_spec(value, 5, value) == pgd_spec("8/255", 5, "8/255")


@given(st.integers(0, 255))
def test_every_grey_level_is_exact(level: int) -> None:
    assert as_fraction(level / 255) == Fraction(level, 255)
    assert float(as_fraction(level / 255)) == as_budget(level / 255) == level / 255


@given(st.integers(0, 1000))
def test_a_decimal_is_exact(thousandths: int) -> None:
    assert as_fraction(thousandths / 1000) == as_fraction(f"{thousandths / 1000}") == Fraction(thousandths, 1000)


def test_another_value_of_a_budget_is_an_error_that_names_it() -> None:
    for value in (8, "8", float("nan"), -0.1, "a", None, True, "1/0"):
        with pytest.raises(InputError, match="step"):
            as_fraction(value, "step")  # type: ignore[arg-type]
        with pytest.raises(InputError, match="eps"):
            noise_spec(value, 2)  # type: ignore[arg-type]


def test_a_budget_of_8_gets_a_hint() -> None:
    with pytest.raises(InputError, match=r"did you mean 8/255\?"):
        as_fraction(8)
    assert AttackSpec("pgd", as_fraction(0), as_fraction(1), 1).name == "pgd-1@0"
