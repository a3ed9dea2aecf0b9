"""Attacks made for mixtures, other objectives, transfer and noise: against formulas, closed forms and plain loops."""

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
from paperlib.attacks import pgd as gradient
from paperlib.attacks.mixture import (
    WORST,
    gate_held,
    gate_uniform,
    joint,
    on_expert,
    on_experts,
    softened,
    toward,
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
    """Coarse patterns under noise, so that one image differs much from the next."""
    coarse, fine = (torch.rand(n, 1, side, side, generator=rng(seed + side)) for side in (2, 8))
    return 0.7 * nn.functional.interpolate(coarse, (8, 8)) + 0.3 * fine


def same(model: nn.Module) -> Folded:
    """No copy: the network itself does all the work."""
    return Folded(model, model)


def silent(line: str) -> None:
    """Say nothing."""


def right(model: nn.Module, x: Tensor) -> Tensor:
    """The model's own answers, for labels."""
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
class Said:
    """What a mixture says of one image."""

    rows: list[list[float]]  # each expert's logits
    gate_logits: list[float]  # the gate's
    answer: list[float]
    mixing: str
    picks: bool

    def weights(self, temperature: float = 1.0) -> list[float]:
        return softmax([score / temperature for score in self.gate_logits])

    def mixture(self, temperature: float = 1.0) -> list[float]:
        return mixed(self.rows, self.weights(temperature), self.mixing)

    def reachable(self) -> list[float]:
        return self.mixture() if self.picks else self.answer

    def worst(self, y: int) -> int:
        losses = [ce(row, y) for row in self.rows]
        return losses.index(max(losses))

    def heard(self, expert: int, y: int) -> float:
        return math.log(self.weights()[self.worst(y) if expert == WORST else expert])


def said(model: nn.Module, x: Tensor) -> list[Said]:
    with torch.no_grad():
        seen, answers = model.forward_with_experts(x), model(x)
    picks = bool((seen.gate_weights.amax(dim=1) == 1).all())
    mixing = getattr(model, "mixing", "probabilities")
    parts = zip(seen.expert_logits.tolist(), seen.gate_logits.tolist(), answers.tolist(), strict=True)
    return [Said(*part, mixing, picks) for part in parts]


# -- mixtures ----------------------------------------------------------------------------------------------------------


def linear(rows: int, seed: int, scale: float = 0.4) -> Linear:
    return Linear(scale * torch.randn(rows, 64, generator=rng(seed)), torch.randn(rows, generator=rng(seed + 100)))


def plain(mixing: str = "probabilities", top1: bool = False) -> nn.Module:
    """Three linear experts and a linear gate that favours now one, now another."""
    gate = linear(3, 9)
    with torch.no_grad():
        gate.bias.copy_(-gate(images(60)).mean(dim=0) + gate.bias)
    return Mixture([linear(CLASSES, i) for i in range(3)], gate, mixing, top1=top1).double()


def soe() -> nn.Module:
    """Linear sub-models, the last output of each the confidence score."""
    return SoE(linear(CLASSES + 1, i) for i in range(3)).double()


def settled(model: nn.Module) -> nn.Module:
    """With statistics as training leaves them, and heads that tell images apart."""
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
    return settled(ADVMoE(CLASSES, 3, 2, 2, 1, (0.3,), (0.4,))).double()


MIXTURES: dict[str, Callable[[], nn.Module]] = {
    "probabilities": plain,
    "logits": lambda: plain("logits"),
    "top1": lambda: plain(top1=True),
    "top1 logits": lambda: plain("logits", top1=True),
    "soe": soe,
    "advmoe": advmoe,
}
CHOOSERS = ["top1", "top1 logits", "soe", "advmoe"]
every_mixture = pytest.mark.parametrize("name", MIXTURES)


def scene(name: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A mixture, images and labels, in double precision; the answer is often wrong, and no expert is always heard."""
    model, x = MIXTURES[name](), images(30).double()
    weights = model.forward_with_experts(x).gate_weights.detach()
    assert len(weights.argmax(dim=1).unique()) > 1
    return model, x, torch.arange(30) % CLASSES


# -- losses ------------------------------------------------------------------------------------------------------------

rows_of_logits = st.lists(st.integers(-40, 40), min_size=3, max_size=7, unique=True)


@given(st.lists(rows_of_logits.map(lambda row: row[:3]), min_size=1, max_size=5), st.integers(0, 2))
def test_losses_are_their_formulas(rows: list[list[int]], y: int) -> None:
    logits = torch.tensor(rows, dtype=torch.float64) / 10
    labels = torch.full((len(rows),), y)
    for loss, formula in ((cross_entropy_loss, ce), (margin_loss, margin), (dlr_loss, dlr)):
        expected = [formula(row, y) for row in logits.tolist()]
        assert loss(logits, labels).tolist() == pytest.approx(expected, rel=1e-5, abs=1e-5)


@given(rows_of_logits, st.data())
def test_the_margin_is_above_zero_where_the_image_is_misclassified_and_nowhere_else(
    row: list[int], data: st.DataObject
) -> None:
    y = data.draw(st.integers(0, len(row) - 1))
    logits = torch.tensor([row], dtype=torch.float32)
    wrong = row.index(max(row)) != y
    assert bool(margin_loss(logits, torch.tensor([y])) > 0) == wrong
    assert bool(dlr_loss(logits, torch.tensor([y])) > 0) == wrong


@given(rows_of_logits, st.floats(1e-3, 1e3), st.floats(-100, 100), st.data())
def test_dlr_is_blind_to_scale_and_shift_and_the_others_are_not(
    row: list[int], scale: float, shift: float, data: st.DataObject
) -> None:
    y = torch.tensor([data.draw(st.integers(0, len(row) - 1))])
    logits = torch.tensor([row], dtype=torch.float64)
    assert torch.allclose(dlr_loss(scale * logits + shift, y), dlr_loss(logits, y), rtol=1e-6)
    assert torch.allclose(margin_loss(scale * logits + shift, y), scale * margin_loss(logits, y), rtol=1e-6)


def test_dlr_is_that_of_the_authors_library() -> None:
    logits, y = torch.randn(50, 6, generator=rng()), torch.arange(50) % 6
    library = APGDAttack(None, eps=EPS, loss="dlr", device="cpu")
    assert torch.allclose(dlr_loss(logits, y), library.dlr_loss(logits, y))


def test_dlr_needs_three_classes_and_says_what_to_use_instead() -> None:
    with pytest.raises(InputError, match=r"2 classes.*margin"):
        dlr_loss(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    x = images(3)
    with pytest.raises(InputError, match="2 classes"):
        pgd(linear(2, 0), x, torch.zeros(3, dtype=torch.int64), **walk(), objective=OBJECTIVES["dlr"].objective)


def test_losses_stay_finite_where_all_logits_are_equal() -> None:
    logits = torch.zeros(1, 4, requires_grad=True)
    for loss in (cross_entropy_loss, margin_loss, dlr_loss):
        value = loss(logits, torch.tensor([1]))
        assert torch.isfinite(value).all()
        assert torch.isfinite(torch.autograd.grad(value.sum(), logits)[0]).all()


@pytest.mark.parametrize(("name", "formula"), [("margin", margin), ("dlr", dlr)])
def test_an_attack_may_climb_a_loss_by_name(name: str, formula: Callable[[list[float], int], float]) -> None:
    model, x = linear(CLASSES, 0), images(30)
    y = right(model, x)
    logits, values = OBJECTIVES[name].objective(model, x, y)
    assert torch.equal(logits, model(x))
    expected = [formula(row, int(label)) for row, label in zip(logits.tolist(), y, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-4)
    found = pgd(model, x, y, **walk(), objective=loss_objective(margin_loss), random_start=False)
    assert margin_loss(model(found), y).mean() > margin_loss(model(x), y).mean() + 0.1


def walk(steps: int = 4) -> dict[str, Any]:
    return {"eps": EPS, "step_size": STEP, "steps": steps}


# -- objectives --------------------------------------------------------------------------------------------------------

FORMULAS: dict[str, tuple[Any, Callable[[Said, int], float]]] = {
    "experts": (on_experts(cross_entropy_loss), lambda s, y: sum(ce(row, y) for row in s.rows)),
    "experts margin": (on_experts(margin_loss), lambda s, y: sum(margin(row, y) for row in s.rows)),
    "expert 0": (on_expert(0), lambda s, y: ce(s.rows[0], y)),
    "expert 2": (on_expert(2), lambda s, y: ce(s.rows[2], y)),
    "gate uniform": (gate_uniform, lambda s, y: ce(mixed(s.rows, [1 / 3] * 3, s.mixing), y)),
    "soft 1": (softened(1), lambda s, y: ce(s.mixture(), y)),
    "soft 5": (softened(5), lambda s, y: ce(s.mixture(5), y)),
    "gate to 0": (toward(0), lambda s, y: s.heard(0, y)),
    "gate to 2": (toward(2), lambda s, y: s.heard(2, y)),
    "gate to worst": (toward(WORST), lambda s, y: s.heard(WORST, y)),
    "joint 0.1": (joint(0.1, WORST, cross_entropy_loss), lambda s, y: ce(s.reachable(), y) + 0.1 * s.heard(WORST, y)),
    "joint 10 to 1": (joint(10, 1, cross_entropy_loss), lambda s, y: ce(s.reachable(), y) + 10 * s.heard(1, y)),
    "joint 1 margin": (joint(1, 1, margin_loss), lambda s, y: margin(s.reachable(), y) + s.heard(1, y)),
}


@pytest.mark.parametrize("objective", FORMULAS)
@every_mixture
def test_an_objective_is_its_formula_and_hands_back_the_models_own_answer(name: str, objective: str) -> None:
    model, x, y = scene(name)
    climbed, formula = FORMULAS[objective]
    logits, values = climbed(model, x.requires_grad_(), y)
    assert torch.allclose(logits, model(x))
    expected = [formula(s, int(label)) for s, label in zip(said(model, x), y, strict=True)]
    assert values.shape == (30,)
    assert values.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.isfinite(torch.autograd.grad(values.sum(), x)[0]).all()


@every_mixture
def test_the_worst_expert_is_the_one_with_the_largest_loss_on_each_image(name: str) -> None:
    model, x, y = scene(name)
    worst = [s.worst(int(label)) for s, label in zip(said(model, x), y, strict=True)]
    assert len(set(worst)) == 3
    values = toward(WORST)(model, x, y)[1]
    each = torch.stack([toward(i)(model, x, y)[1] for i in range(3)])
    assert torch.equal(values, each[torch.tensor(worst), torch.arange(30)])


@every_mixture
def test_a_gate_held_weighs_as_it_did_on_the_clean_image(name: str) -> None:
    model, x, y = scene(name)
    objective = mixture_objectives(model, x)["gate held"]
    assert objective.function is gate_held and objective.targets is not None
    targets = objective.targets(model, x, y)
    assert not targets.requires_grad
    clean = said(model, x)
    moved = images(30, seed=5).double().requires_grad_()
    now = said(model, moved)
    chosen, choose = ([s.gate_logits.index(max(s.gate_logits)) for s in group] for group in (clean, now))
    assert sum(a != b for a, b in zip(chosen, choose, strict=True)) > 5
    logits, values = gate_held(model, moved, targets)
    assert torch.allclose(logits, model(moved))
    for i in range(30):
        weights = [float(k == chosen[i]) for k in range(3)] if name in CHOOSERS else clean[i].weights()
        expected = ce(mixed(now[i].rows, weights, now[i].mixing), int(y[i]))
        assert float(values[i].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("name", ["probabilities", "logits", "top1", "advmoe"])
def test_no_gradient_of_a_gate_held_or_of_a_uniform_one_passes_the_gate(name: str) -> None:
    model, x, y = scene(name)
    gate = list((model.router if name == "advmoe" else model.gate).parameters())
    objectives = mixture_objectives(model, x)
    held = objectives["gate held"].targets
    assert held is not None
    for objective, targets, reaches in (
        (gate_held, held(model, x, y), False),
        (gate_uniform, y, False),
        (on_experts(cross_entropy_loss), y, False),
        (on_expert(1), y, False),
        (objectives["gate to worst"].objective, y, True),
        (objectives["joint 1"].objective, y, True),
        (objectives["two-stage worst"].objective, y, True),
        (softened(5), y, True),
    ):
        found = torch.autograd.grad(objective(model, x, targets)[1].sum(), gate, allow_unused=True)
        assert any(g is not None and bool(g.abs().max() > 0) for g in found) == reaches, objective


def test_a_gate_held_gives_the_gradient_of_the_mixture_with_constant_weights() -> None:
    model, x, y = scene("probabilities")
    held = mixture_objectives(model, x)["gate held"].targets
    assert held is not None
    weights = model.forward_with_experts(x).gate_weights.detach()
    here = x.clone().requires_grad_()
    found = torch.autograd.grad(gate_held(model, here, held(model, x, y))[1].sum(), here)[0]
    shares = (weights.unsqueeze(2) * torch.softmax(model.experts(here), dim=2)).sum(dim=1)
    expected = torch.autograd.grad(-shares.gather(1, y.unsqueeze(1)).log().sum(), here)[0]
    assert torch.allclose(found, expected, atol=1e-5)
    own = torch.autograd.grad(cross_entropy_loss(model(here), y).sum(), here)[0]
    assert not torch.allclose(found, own, atol=1e-2)


def test_the_second_stage_climbs_the_loss_of_the_answer_or_of_its_stand_in() -> None:
    for name in MIXTURES:
        model, x, y = scene(name)
        logits, values = mixture_objectives(model, x)["two-stage worst"].objective(model, x, y)
        assert torch.allclose(logits, model(x))
        expected = [ce(s.reachable(), int(label)) for s, label in zip(said(model, x), y, strict=True)]
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


# -- which aims there are ----------------------------------------------------------------------------------------------

ON_EXPERTS = {"experts", "experts margin", "expert 0", "expert 1", "expert 2", "gate uniform"}
ON_GATE = {"gate held", "gate to worst", "two-stage worst", "joint 0.1", "joint 1", "joint 10", "joint 1 margin"}


@every_mixture
def test_the_aims_of_a_mixture_have_these_names(name: str) -> None:
    model, x, _ = scene(name)
    expected = ON_EXPERTS | ON_GATE | ({"soft 1", "soft 5"} if name in CHOOSERS else set())
    assert is_mixture(model)
    assert set(mixture_objectives(model, x)) == expected
    assert set(mixture_objectives(model, x, benign=0)) == expected | {"gate to benign", "two-stage benign"}
    with torch.no_grad():
        assert set(mixture_objectives(model.requires_grad_(False), x[:1])) == expected


@pytest.mark.parametrize("top1", [False, True])
def test_a_gate_that_knows_nothing_cannot_be_steered(top1: bool) -> None:
    model = Mixture([linear(CLASSES, i) for i in range(3)], UniformGate(3), top1=top1)
    assert set(mixture_objectives(model, images(), benign=1)) == ON_EXPERTS


def test_a_plain_network_has_no_such_aims() -> None:
    assert not is_mixture(linear(CLASSES, 0))
    assert mixture_objectives(linear(CLASSES, 0), images(), benign=0) == {}


def test_no_name_hides_an_aim_that_every_network_has() -> None:
    model, x, _ = scene("top1")
    assert not set(mixture_objectives(model, x, benign=0)) & set(OBJECTIVES)


def test_the_gate_is_pushed_towards_the_benign_expert_where_there_is_one() -> None:
    model, x, y = scene("probabilities")
    for benign in (None, 0, 2):
        objectives, pushed = mixture_objectives(model, x, benign), WORST if benign is None else benign
        for weight, name in ((0.1, "joint 0.1"), (1, "joint 1"), (10, "joint 10")):
            expected = joint(weight, pushed, cross_entropy_loss)(model, x, y)[1]
            assert torch.equal(objectives[name].objective(model, x, y)[1], expected)
        expected = joint(1, pushed, margin_loss)(model, x, y)[1]
        assert torch.equal(objectives["joint 1 margin"].objective(model, x, y)[1], expected)
        assert torch.equal(objectives["gate to worst"].objective(model, x, y)[1], toward(WORST)(model, x, y)[1])
        for name in ("worst",) if benign is None else ("worst", "benign"):
            first, expert = objectives[f"two-stage {name}"].first, WORST if name == "worst" else pushed
            assert first is not None
            assert torch.equal(first(model, x, y)[1], toward(expert)(model, x, y)[1])
    assert all(
        objective.warm_start is None for name, objective in objectives.items() if not name.startswith("two-stage")
    )


@pytest.mark.parametrize(
    "training",
    [False, True],
)
def test_asking_for_the_aims_leaves_a_model_as_it_was(training: bool) -> None:
    torch.manual_seed(0)
    experts = [resnet18(CLASSES, 2, (0.3,), (0.4,)) for _ in range(2)]
    model = settled(Mixture(experts, Gate(2, 2, 1, (0.3,), (0.4,)))).train(training)
    before, x = copy.deepcopy(model), images()
    kept = x.clone()
    mixture_objectives(model, x)
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert torch.equal(x, kept) and not x.requires_grad


# -- attacks on gates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("expert", [0, 1, 2])
@every_mixture
def test_pushing_the_gate_towards_an_expert_makes_it_heard_more(name: str, expert: int) -> None:
    model, x, y = scene(name)

    def mean_weight(z: Tensor) -> float:
        return float(torch.softmax(model.forward_with_experts(z).gate_logits, dim=1)[:, expert].detach().mean())

    found = pgd(model, x, y, **walk(), objective=toward(expert), random_start=False)
    assert mean_weight(found) > mean_weight(x) + 1e-3
    away = pgd(model, x, y, **walk(), objective=toward((expert + 1) % 3), random_start=False)
    assert mean_weight(found) > mean_weight(away)


def test_pushing_a_linear_gate_of_two_ends_in_the_corner_that_favours_the_expert() -> None:
    gate = linear(2, 9)
    model, x = Mixture([linear(CLASSES, i) for i in range(2)], gate), images()
    forward_route = (gate.weight[1] - gate.weight[0]).detach().sign().view(1, 1, 8, 8)
    found = pgd(model, x, right(model, x), **walk(10), objective=toward(1), random_start=False)
    assert torch.allclose(found, (x + EPS * forward_route).clamp(0, 1), atol=1e-6)


FLAT, FIRST_PIXEL = torch.zeros(2, 4), torch.tensor([[-4.0, 0, 0, 0], [4.0, 0, 0, 0]])
GOOD, BAD = torch.tensor([1.0, -1.0]), torch.tensor([-1.0, 1.0])


def grey(n: int = 3) -> Split:
    return Split(torch.full((n, 1, 2, 2), 0.5), torch.zeros(n, dtype=torch.int64))


def gated(top1: bool, sharpness: float) -> nn.Module:
    """A good and a bad expert who ignore the image; the bad one is heard where the first pixel is above 0.55."""
    bias = torch.tensor([2.2, -2.2])
    return Mixture(
        [Linear(FLAT, GOOD), Linear(FLAT, BAD)], Linear(sharpness * FIRST_PIXEL, sharpness * bias), top1=top1
    )


def under(
    model: nn.Module, split: Split, objective: str, objectives: dict[str, AttackObjective] | None = None, **more: Any
) -> EvaluationResult:
    """PGD on one aim from the clean image, or from where its first stage ends; 20 steps cross the ball."""
    spec = replace(pgd_spec("0.2", 20, "0.02", objective=objective), random_start=False)
    objectives = mixture_objectives(model, split.images, benign=1) if objectives is None else objectives
    return evaluate(same(model), split, spec, seed=0, objectives={**OBJECTIVES, **objectives}, **more)


@pytest.mark.parametrize(("top1", "sharpness"), [(True, 1.0), (False, 1e4)], ids=["picks", "saturated"])
def test_attacks_on_the_gate_find_what_a_gate_without_a_gradient_hides(top1: bool, sharpness: float) -> None:
    model, split = gated(top1, sharpness), grey()
    for objective in ("cross-entropy", "margin", "experts", "expert 0", "gate uniform", "gate held"):
        assert under(model, split, objective).correct.all(), objective
    for objective in ("gate to worst", "gate to benign", "joint 1", "joint 0.1", "joint 10", "joint 1 margin"):
        found = under(model, split, objective)
        assert found.first_success.tolist() == [3] * 3, objective  # 0.50, 0.52, 0.54, 0.56
    for objective in ("two-stage worst", "two-stage benign"):
        assert under(model, split, objective).first_success.tolist() == [0] * 3, (
            objective
        )  # the first stage ends at 0.7
    for objective in ("soft 1", "soft 5") if top1 else ():
        assert under(model, split, objective).first_success.tolist() == [3] * 3, objective


def test_a_gate_that_a_gradient_passes_falls_to_plain_pgd() -> None:
    # The same mixture, neither saturated nor picking: what the attacks above show is due to the mask.
    assert under(gated(False, 1.0), grey(), "cross-entropy").first_success.tolist() == [3] * 3


def guarded() -> nn.Module:
    """Right, unless the first pixel is above 0.605 and so the gate picks the second expert, and the second above 0.63.

    The first expert ignores the image.
    """
    second = torch.tensor([[0, -4.0, 0, 0], [0, 4.0, 0, 0]])
    experts = [Linear(FLAT, GOOD), Linear(second, torch.tensor([4 * 0.63, -4 * 0.63]))]
    return Mixture(experts, Linear(FIRST_PIXEL, torch.tensor([4 * 0.605, -4 * 0.605])), top1=True)


def test_two_stages_win_where_neither_the_gate_nor_the_experts_alone_give_way() -> None:
    model, split = guarded(), grey(20)
    for objective in ("cross-entropy", "experts", "expert 1", "gate uniform", "gate held", "gate to benign"):
        assert under(model, split, objective).correct.all(), objective
    found = under(model, split, "two-stage benign", batch_size=7)
    assert not found.correct.any()


def test_the_second_stage_begins_where_the_first_ends() -> None:
    model, x, y = scene("probabilities")
    y = right(model, x)
    seen: dict[str, list[Tensor]] = {"first": [], "second": []}

    def watched(stage: str, objective: Any) -> Any:
        def watching(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
            seen[stage].append(x.detach().clone())
            return objective(model, x, y)

        return watching

    objective = AttackObjective(watched("second", cross_entropy), warm_start=watched("first", toward(1)))
    spec = pgd_spec("0.02", 5, "0.005", objective="staged")
    found = evaluate(same(model), Split(x, y), spec, seed=3, objectives={"staged": objective})
    assert [len(z) for z in seen["first"]] == [30] * 5
    how: dict[str, Any] = {"eps": 0.02, "step_size": 0.005, "steps": 5}
    end = pgd(same(model), x, y, **how, generator=rng(3), objective=toward(1))
    assert torch.equal(seen["second"][0], end)
    assert not torch.equal(seen["second"][0], seen["first"][-1])
    by_hand = attack(same(model), x, y, **how, start=end)
    assert torch.equal(found.first_success.long(), by_hand.first_success)
    assert found.passes == (by_hand.passes + 30 * 5) / 30
    assert 0 < int(found.correct.sum()) < 30


@pytest.mark.parametrize("batch_size", [7, 512])
def test_an_evaluation_holds_each_images_own_gate(batch_size: int) -> None:
    model, x, _ = scene("top1")
    y = right(model, x)
    objectives = mixture_objectives(model, x)
    spec = pgd_spec("0.02", 5, "0.005", objective="gate held")
    found = evaluate(same(model), Split(x, y), spec, seed=3, objectives=objectives, batch_size=batch_size)
    held = objectives["gate held"].targets
    assert held is not None
    how: dict[str, Any] = {"eps": 0.02, "step_size": 0.005, "steps": 5, "batch_size": batch_size, "generator": rng(3)}
    by_hand = attack(same(model), x, y, **how, objective=gate_held, targets=held(model, x, y))
    assert torch.equal(found.first_success.long(), by_hand.first_success)
    assert found.passes == by_hand.passes / 30 + 1  # the look at the clean weights
    assert 0 < int(found.correct.sum()) < 30


def test_an_unknown_aim_is_an_input_error_that_lists_those_there_are() -> None:
    model, x, y = scene("probabilities")
    spec = pgd_spec("0.1", 2, "0.05", objective="gate to benign")
    with pytest.raises(InputError, match=r"'gate to benign'.*it has experts, experts margin, .*joint 1 margin"):
        evaluate(same(model), Split(x, y), spec, seed=0, objectives=mixture_objectives(model, x))
    with pytest.raises(InputError, match="it has cross-entropy, margin, dlr"):
        evaluate(same(model), Split(x, y), spec, seed=0)
    with pytest.raises(InputError, match=r"'cross-entropy'.*experts"):
        evaluate(
            same(model),
            Split(x, y),
            replace(spec, objective="cross-entropy"),
            seed=0,
            objectives=mixture_objectives(model, x),
        )


def test_the_aim_is_part_of_an_attacks_name() -> None:
    assert pgd_spec("8/255", 50, "2/255", objective="gate to worst").name == "pgd-50-gate-to-worst@8/255"
    assert pgd_spec("8/255", 50, "2/255").name == "pgd-50@8/255"
    assert pgd_spec("0.1", 5, "0.05", objective="joint 1").table()["aim"] == "joint 1"


# -- through a folded copy ---------------------------------------------------------------------------------------------


def convolutional(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "advmoe":
        return settled(ADVMoE(CLASSES, 3, 3, 2, 1, (0.3,), (0.4,)))
    experts = [resnet18(CLASSES + (kind == "soe"), 2, (0.3,), (0.4,)) for _ in range(3)]
    if kind == "soe":
        return settled(SoE(experts))
    return settled(Mixture(experts, Gate(3, 2, 1, (0.3,), (0.4,)), top1=kind == "top1"))


def near(found: Tensor, expected: Tensor, within: float = 1e-3) -> bool:
    return found.shape == expected.shape and bool((found - expected).norm() <= within * expected.norm())


every_convolutional = pytest.mark.parametrize("kind", ["soft", "top1", "soe", "advmoe"])


@every_convolutional
def test_a_copy_has_the_aims_of_the_network_with_the_same_values_and_gradients(kind: str) -> None:
    model, x = convolutional(kind), images(24)
    y, folded = right(model, x), fold(model, x)
    assert folded.network is not model, folded.reason
    objectives = mixture_objectives(model, x, benign=1)
    assert set(mixture_objectives(folded.network, x, benign=1)) == set(objectives)
    for name, objective in objectives.items():
        results = []
        for network in (folded.network, model):
            here = x.clone().requires_grad_()
            targets = y if objective.targets is None else objective.targets(network, x, y)
            logits, values = objective.function(network, here, targets)
            results.append((logits.detach(), values.detach(), torch.autograd.grad(values.sum(), here)[0]))
        (logits, values, slopes), (their_logits, their_values, their_slopes) = results
        assert near(logits, their_logits), name
        assert near(values, their_values), name
        off = [not near(a, b, 1e-2) for a, b in zip(slopes, their_slopes, strict=True)]
        assert sum(off) <= 3, name  # a ReLU that rounding switches


@pytest.mark.parametrize("objective", ["gate held", "joint 1", "two-stage worst", "experts margin"])
@every_convolutional
def test_attacks_through_a_copy_end_like_attacks_on_the_network(kind: str, objective: str) -> None:
    model, x = convolutional(kind), images(40, seed=1)
    split, objectives = Split(x, right(model, x)), mixture_objectives(model, x)
    spec = replace(pgd_spec("0.04", 3, "0.02", objective=objective), random_start=False)
    folded = fold(model, x)
    assert folded.network is not model
    copied, itself = (evaluate(given, split, spec, seed=0, objectives=objectives) for given in (folded, same(model)))
    assert not itself.correct.all()
    assert int((copied.correct != itself.correct).sum()) <= 1  # rounding, at the border of a class


# -- targets and starts ------------------------------------------------------------------------------------------------


class Shifted(nn.Module):
    """Says of bright images what the network says of another class: claims that what is right is wrong."""

    def __init__(self, model: nn.Module, above: float = 0.0) -> None:
        super().__init__()
        self.model, self.above = model, above

    def forward(self, x: Tensor) -> Tensor:
        logits, bright = self.model(x), x.mean(dim=(1, 2, 3)) > self.above
        return torch.where(bright.unsqueeze(1), logits.roll(1, dims=1), logits)


@pytest.mark.parametrize("misled", [False, True])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("batch_size", [None, 1, 7])
def test_each_image_keeps_its_target_while_others_leave(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, batch_size: int | None, every: int, misled: bool
) -> None:
    monkeypatch.setitem(gradient.LOOK_EVERY, "cpu", every)
    x, y = digits.test.images[:24], digits.test.labels[:24]
    assert ((x[:, None] - x).flatten(2).abs().amax(dim=2) + torch.eye(24) > 2 * EPS).all()  # none can be mistaken
    asked = 0

    def objective(model: nn.Module, images: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        nonlocal asked
        asked += len(images)
        assert ((images.detach() - x[number]).abs() <= EPS + 1e-6).all()
        return cross_entropy(model, images, y[number])

    given = Folded(toy, Shifted(toy, above=0.31)) if misled else same(toy)
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 5, "restarts": 2, "batch_size": batch_size}
    done = attack(given, x, y, **how, generator=rng(), objective=objective, targets=torch.arange(24))
    assert asked > 100
    assert len(done.first_success.unique()) > 3  # they did leave one after another
    expected = attack(given, x, y, **how, generator=rng())
    assert torch.equal(done.first_success, expected.first_success)
    assert torch.equal(done.images, expected.images)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_an_attack_begins_at_the_start_it_is_given_within_the_ball_and_the_box(batch_size: int | None) -> None:
    model, x = linear(CLASSES, 0), images(10)
    y = right(model, x)
    start = x + 0.3 * torch.randn(x.shape, generator=rng(7))
    expected = torch.minimum(torch.maximum(start, x - 0.01), x + 0.01).clamp(0, 1)
    seen: list[Tensor] = []

    def watched(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(images.detach().clone())
        return model(images), images.flatten(1).sum(dim=1) * 0

    generator = rng()
    how: dict[str, Any] = {"eps": 0.01, "step_size": 0.01, "steps": 2, "batch_size": batch_size, "generator": generator}
    done = attack(model, x, y, **how, start=start, objective=watched)
    assert torch.equal(generator.get_state(), rng().get_state())  # nothing is drawn
    assert not done.fooled.all()
    standing = ~done.fooled
    assert torch.allclose(done.images[standing], expected[standing])  # where nothing is climbed, it stays there
    assert all(
        (images.unsqueeze(1) - expected).flatten(2).abs().amax(dim=2).amin(dim=1).max() < 1e-6 for images in seen
    )
    assert (start - x).abs().max() > 0.5


def test_a_start_that_fools_is_a_success_at_step_0() -> None:
    model, x = linear(CLASSES, 0), images(30)
    y = right(model, x)
    found = attack(model, x, y, **walk(8), random_start=False)
    again = attack(model, x, y, **walk(8), start=found.images)
    assert 5 < int(found.fooled.sum()) <= 30
    assert (again.first_success[found.fooled] == 0).all()
    assert torch.equal(again.images[found.fooled], found.images[found.fooled])


# -- transfer ----------------------------------------------------------------------------------------------------------


class Shut(torch.autograd.Function):
    """Passes images on; a gradient that comes back is an error."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise AssertionError("the model was differentiated")


class Sealed(nn.Module):
    """A network that may be asked and not differentiated."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(Shut.apply(x))


def surrogate() -> nn.Module:
    """In the middle of training, with layers for which that matters."""
    torch.manual_seed(4)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.BatchNorm1d(32), nn.Dropout(0.5), nn.Linear(32, CLASSES))
    for _ in range(20):
        model(images(40))
    model[2].eval()
    return model


def test_a_transfer_is_crafted_on_the_surrogate_alone() -> None:
    other, x = surrogate(), images(30)
    model = Sealed(linear(CLASSES, 0))
    y = right(model, x)
    with pytest.raises(InputError, match="the model was differentiated"):
        pgd(model, x, y, **walk())
    modes, before = [module.training for module in other.modules()], copy.deepcopy(other)
    asked: list[bool] = []
    hook = other.register_forward_hook(
        lambda module, args, out: asked.append(any(m.training for m in module.modules()))
    )
    found = pgd(model, x, y, **walk(), generator=rng(), objective=transfer_objective(other))
    hook.remove()
    assert asked == [False] * 4
    assert [module.training for module in other.modules()] == modes
    assert len(set(modes)) == 2
    assert same_state(other, before)
    assert all(p.grad is None for p in (*other.parameters(), *model.parameters()))
    assert torch.equal(found, pgd(other, x, y, **walk(), generator=rng()))
    assert not torch.equal(found, pgd(model.model, x, y, **walk(), generator=rng()))


def test_no_graph_of_the_model_is_built_in_a_transfer() -> None:
    x = images(3).requires_grad_()
    logits, values = transfer_objective(surrogate())(linear(CLASSES, 0), x, torch.zeros(3, dtype=torch.int64))
    assert not logits.requires_grad
    assert torch.autograd.grad(values.sum(), x)[0].abs().max() > 0


def test_a_surrogate_gets_its_mode_back_when_the_attack_fails() -> None:
    other = surrogate()
    modes = [module.training for module in other.modules()]
    with pytest.raises(IndexError):
        transfer_objective(other)(linear(CLASSES, 0), images(3), torch.full((3,), CLASSES + 3))
    assert [module.training for module in other.modules()] == modes


def test_a_transfer_succeeds_where_the_model_is_fooled_and_not_the_surrogate() -> None:
    other, x = surrogate().eval(), images(40)
    model = linear(CLASSES, 0)
    y = right(model, x)
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "random_start": False}
    first = torch.full((40,), NEVER)
    for steps in range(6, 0, -1):
        crafted = pgd(other, x, y, **how, steps=steps)
        first[misclassified(model, crafted, y)] = steps
    spec = replace(pgd_spec(EPS, 6, STEP, objective="transfer"), random_start=False)
    found = evaluate(
        same(Sealed(model)),
        Split(x, y),
        spec,
        seed=0,
        objectives={"transfer": AttackObjective(transfer_objective(other))},
    )
    assert found.first_success.tolist() == first.tolist()
    assert 0 < int(found.correct.sum()) < 40
    assert not torch.equal(~found.correct, attack(other, x, y, **how, steps=6).fooled)


# -- noise -------------------------------------------------------------------------------------------------------------


def noisy(toy: ToyNet, digits: Dataset, n: int = 80, **more: Any) -> Any:
    x, y = digits.test.images[:n], digits.test.labels[:n]
    return random_noise(same(toy), x, y, **({"eps": 0.3, "draws": 6, "generator": rng(3)} | more))


def test_noise_is_the_plain_loop_over_draws(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    generator, found, first = rng(3), x.clone(), torch.full_like(y, NEVER)
    first[misclassified(toy, x, y)] = 0
    for draw in range(1, 7):
        tried = (x + (2 * torch.rand(x.shape, generator=generator) - 1) * 0.3).clamp(0, 1)
        new = (first == NEVER) & misclassified(toy, tried, y)
        first[new], found[new] = draw, tried[new]
    done = noisy(toy, digits)
    assert torch.equal(done.first_success, first)
    assert torch.equal(done.images, found)
    assert torch.equal(done.fooled, first != NEVER)
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)
    assert {NEVER, 0, 1} < set(first.tolist())


@settings(max_examples=25)
@given(eps=st.floats(0, 1), draws=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_noise_stays_in_the_ball_and_in_the_box(eps: float, draws: int, seed: int) -> None:
    model, x = linear(CLASSES, 0), images(20, seed % 1000)
    y = right(model, x)
    done = random_noise(model, x, y, eps=eps, draws=draws, generator=rng(seed))
    assert float((done.images - x).abs().max()) <= eps + 1e-6
    assert 0 <= float(done.images.min()) <= float(done.images.max()) <= 1
    assert torch.equal(misclassified(model, done.images, y), done.fooled)
    assert torch.equal(done.images[~done.fooled], x[~done.fooled])


def test_noise_fills_the_ball_evenly() -> None:
    class Always(nn.Module):
        """Right on the grey image only."""

        def forward(self, x: Tensor) -> Tensor:
            clean = (x == 0.5).flatten(1).all(dim=1).float()
            return torch.stack([clean, 1 - clean], dim=1)

    split = grey(2000)
    done = random_noise(Always(), split.images, split.labels, eps=EPS, draws=1, generator=rng())
    assert (done.first_success == 1).all()
    moves = (done.images - 0.5).flatten() / EPS
    assert -1 <= moves.min() < -0.99
    assert 0.99 < moves.max() <= 1
    assert abs(float(moves.mean())) < 0.02
    assert abs(float(moves.std()) - 3**-0.5) < 0.01


def test_luck_is_as_likely_as_it_should_be() -> None:
    class Above(nn.Module):
        """Wrong where the pixel is above 0.575, a quarter of the ball of 0.15 around 0.5."""

        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)
            return torch.cat([0.575 - v, v - 0.575], dim=1)

    x, y = torch.full((4000, 1, 1, 1), 0.5), torch.zeros(4000, dtype=torch.int64)
    done = random_noise(Above(), x, y, eps=0.15, draws=5, generator=rng())
    for draws in range(1, 6):
        share = float(((done.first_success > 0) & (done.first_success <= draws)).double().mean())
        assert share == pytest.approx(1 - 0.75**draws, abs=0.03)


def test_one_generator_gives_one_result_and_another_gives_another(toy: ToyNet, digits: Dataset) -> None:
    first, again, other = (noisy(toy, digits, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images)
    assert torch.equal(first.first_success, again.first_success)
    assert not torch.equal(first.images, other.images)
    torch.manual_seed(1)
    globally = noisy(toy, digits, generator=None)
    assert torch.equal(globally.images, first.images)  # torch's own, from the same seed


def test_the_fate_of_an_image_does_not_hang_on_that_of_others(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    model = copy.deepcopy(toy).double()
    how: dict[str, Any] = {"eps": 0.3, "draws": 6}
    whole = random_noise(same(model), x.double(), y, **how, generator=rng(3))
    others = torch.arange(80) % 3 == 0
    early = torch.where(others, (y + 1) % 10, y)  # these are now wrong from the start
    changed = random_noise(same(model), x.double(), early, **how, generator=rng(3))
    assert (changed.first_success[others] == 0).float().mean() > 0.8
    assert torch.equal(changed.first_success[~others], whole.first_success[~others])
    assert torch.equal(changed.images[~others], whole.images[~others])
    for batch_size in (1, 7, 80):
        parts = random_noise(same(model), x.double(), y, **how, generator=rng(3), batch_size=batch_size)
        assert torch.equal(parts.first_success, whole.first_success)
    assert (whole.first_success[~others] > 1).any()


def test_more_draws_never_leave_more_images_standing(toy: ToyNet, digits: Dataset) -> None:
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


def test_clean_misses_are_successes_at_draw_0_and_are_left_alone(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, (digits.test.labels + (torch.arange(80) % 2)) % 10
    done = random_noise(toy, x, y, eps=0.3, draws=4, generator=rng())
    wrong = misclassified(toy, x, y)
    assert int(wrong.sum()) > 30
    assert torch.equal(done.first_success == 0, wrong)
    assert torch.equal(done.images[wrong], x[wrong])


def test_noise_counts_its_passes_and_stops_when_nothing_stands(toy: ToyNet, digits: Dataset) -> None:
    model, asked = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, out: asked.append(len(args[0])))
    assert noisy(model, digits, batch_size=30).passes == sum(asked)
    assert max(asked) == 30
    asked.clear()
    x, y = digits.test.images, (right(toy, digits.test.images) + 1) % 10
    generator = rng()
    assert random_noise(same(model), x, y, eps=0.1, draws=50, generator=generator).passes == sum(asked) == 80
    assert torch.equal(generator.get_state(), rng().get_state())  # no draw is made for nothing


def test_noise_counts_the_passes_of_a_copy_that_cries_wolf(toy: ToyNet, digits: Dataset) -> None:
    model, asked = copy.deepcopy(toy), []
    model.register_forward_hook(lambda module, args, out: asked.append(len(args[0])))
    x, y = digits.test.images, digits.test.labels
    done = random_noise(Folded(model, Shifted(model)), x, y, eps=0.3, draws=5, generator=rng(3))
    assert done.passes == sum(asked)


def test_a_copy_that_cries_wolf_or_is_folded_changes_no_outcome_of_noise(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": 0.3, "draws": 6}
    expected = noisy(toy, digits)
    misled = random_noise(Folded(toy, Shifted(toy)), x, y, **how, generator=rng(3))
    # The copy claims all that stand, and is wrong about most; an image it lets pass is one it takes for right.
    assert not (misled.fooled & ~expected.fooled).any()
    assert torch.equal(misclassified(toy, misled.images, y), misled.fooled)
    folded = fold(toy, x)
    assert folded.network is not toy
    done = random_noise(folded, x, y, **how, generator=rng(3))
    assert int((done.first_success != expected.first_success).sum()) <= 1  # rounding, at the border of a class
    assert torch.equal(misclassified(toy, done.images, y), done.fooled)


@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_noise_leaves_a_model_as_it_was(toy: ToyNet, digits: Dataset, fails: bool) -> None:
    model = copy.deepcopy(toy).train()
    model.zero_grad(set_to_none=True)
    model.body[1].eval()
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model)
    seen: list[bool] = []

    def watch(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(any(m.training for m in module.modules()))
        if fails and len(seen) == 3:
            raise RuntimeError("in the middle")

    model.register_forward_pre_hook(watch)
    given = digits.test.images.clone()
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            random_noise(same(model), given, digits.test.labels, eps=0.3, draws=4)
    else:
        random_noise(same(model), given, digits.test.labels, eps=0.3, draws=4)
    assert len(seen) > 2 and not any(seen)
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, before)
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(given, digits.test.images)


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("draws", 0, "draws"),
        ("draws", -1, "draws"),
        ("draws", 2.5, "draws"),
        ("draws", True, "draws"),
        ("eps", 8, "8/255"),
        ("eps", -0.1, "eps"),
        ("batch_size", 0, "batch_size"),
        ("x", torch.full((6, 1, 8, 8), 2.0), "images"),
        ("y", torch.zeros(5, dtype=torch.int64), "labels"),
    ],
)
def test_a_bad_setting_of_noise_is_an_input_error_that_names_it(setting: str, value: object, word: str) -> None:
    given: dict[str, Any] = {"x": images(6), "y": torch.zeros(6, dtype=torch.int64), "eps": EPS, "draws": 2}
    with pytest.raises(InputError, match=word):
        random_noise(linear(CLASSES, 0), **(given | {setting: value}))


def test_an_answer_that_breaks_under_noise_is_an_error() -> None:
    class Breaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)[:, :2]
            return torch.where((v == 0.5).all(dim=1, keepdim=True), torch.tensor([1.0, 0.0]), v / 0)

    split = grey()
    with pytest.raises(NotFiniteError, match="NaN or infinity"):
        random_noise(Breaks(), split.images, split.labels, eps=EPS, draws=1)


def test_noise_tells_how_far_it_is(toy: ToyNet, digits: Dataset) -> None:
    shares: list[float] = []
    noisy(toy, digits, draws=5, eps=0.05, progress=shares.append)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1])


def test_an_evaluation_under_noise_is_the_noise(toy: ToyNet, digits: Dataset) -> None:
    spec = noise_spec("0.3", 6)
    found = evaluate(same(toy), digits.test, spec, seed=3)
    done = noisy(toy, digits)
    assert spec.name == "noise-6@0.3"
    assert torch.equal(found.correct, ~done.fooled)
    assert torch.equal(found.first_success.long(), done.first_success)
    assert found.passes == done.passes / 80


# -- budgets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [8 / 255, "8/255", Fraction(8, 255), " 8/255 "])
def test_a_budget_is_the_same_fraction_however_it_is_written(value: float | str | Fraction) -> None:
    assert as_fraction(value) == Fraction(8, 255)
    assert noise_spec(value, 2) == noise_spec("8/255", 2)
    assert pgd_spec(value, 5, value) == pgd_spec("8/255", 5, "8/255")


@given(st.integers(0, 255))
def test_every_grey_level_is_kept_exact(level: int) -> None:
    assert as_fraction(level / 255) == Fraction(level, 255)
    assert float(as_fraction(level / 255)) == as_budget(level / 255) == level / 255


@given(st.integers(0, 1000))
def test_a_decimal_is_kept_exact(thousandths: int) -> None:
    assert as_fraction(thousandths / 1000) == as_fraction(f"{thousandths / 1000}") == Fraction(thousandths, 1000)


@pytest.mark.parametrize("value", [8, "8", 255, float("nan"), -0.1, "a", None, True, "1/0"])
def test_what_is_no_budget_is_refused(value: Any) -> None:
    with pytest.raises(InputError, match="step"):
        as_fraction(value, "step")
    with pytest.raises(InputError, match="eps"):
        noise_spec(value, 2)


def test_eight_is_taken_for_a_slip() -> None:
    with pytest.raises(InputError, match=r"did you mean 8/255\?"):
        as_fraction(8)
    assert AttackSpec("pgd", as_fraction(0), as_fraction(1), 1).name == "pgd-1@0"
