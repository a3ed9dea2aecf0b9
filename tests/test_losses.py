"""Each loss against its formula, computed without torch; and the unsafe router loss, whose gradient turns NaN."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from paperlib import Dataset
from paperlib.acceleration import Folded
from paperlib.config.schema import TrainConfig
from paperlib.errors import NotFiniteError
from paperlib.evaluation import CLEAN, evaluate
from paperlib.models import ADVMoE
from paperlib.models.soe import SubModelOutput
from paperlib.training.adversaries import RandomPGD
from paperlib.training.history import History
from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss, TrainingLoss, mean_kl_divergence
from paperlib.training.trainer import Augmentation, train
from paperlib.training.update import UpdateStep
from paperlib.training.validation import Validation

Rows = list[list[float]]
# Logits of two images, clean and attacked.
CLEAN_ROWS: Rows = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
ATTACKED_ROWS: Rows = [[0.5, 0.75, -1.0], [1.5, 0.0, 0.5]]
LABELS = [0, 2]


class TwoTables(nn.Module):
    """One table of logits for dark images and another one for bright images; the tables are the parameters."""

    def __init__(self, clean: Any, attacked: Any) -> None:
        super().__init__()
        self.clean = nn.Parameter(torch.tensor(clean))
        self.attacked = nn.Parameter(torch.tensor(attacked))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.attacked if float(x.mean()) > 0.5 else self.clean


class Routed(nn.Module):
    """A model with a router."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router


class TwoTablesSoE(TwoTables):
    """Sub-models whose last output is the confidence logit."""

    def forward_sub_models(self, x: Tensor) -> SubModelOutput:
        outputs = self(x)
        return SubModelOutput(outputs[..., :-1], outputs[..., -1])


def loss_of(loss: TrainingLoss, model: nn.Module, labels: Iterable[int] = LABELS) -> Tensor:
    """The loss of a batch whose clean images are black and whose attacked images are white."""
    y = torch.tensor(list(labels))
    return loss(model, torch.zeros(len(y), 1, 1, 1), torch.ones(len(y), 1, 1, 1), y)


# -- the formulas without torch --------------------------------------------------------------------------------------


def softmax(row: Iterable[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [power / sum(powers) for power in powers]


def sigmoid(v: float) -> float:
    return 1 / (1 + math.exp(-v))


def cross_entropy(rows: Rows, labels: list[int]) -> float:
    return -sum(math.log(softmax(row)[label]) for row, label in zip(rows, labels, strict=True)) / len(rows)


def kl(rows: Rows, others: Rows) -> float:
    """mean_x sum_c p_c log(p_c / q_c)"""
    pairs = [(softmax(row), softmax(other)) for row, other in zip(rows, others, strict=True)]
    return sum(p * math.log(p / q) for ps, qs in pairs for p, q in zip(ps, qs, strict=True)) / len(rows)


def numerical_gradient(function: Callable[[Any], float], at: Any, h: float = 1e-6) -> Tensor:
    """The gradient of a function of nested lists, by central differences."""
    point = np.array(at, dtype=np.float64)
    gradient = np.zeros_like(point)
    for i in np.ndindex(*point.shape):
        up, down = point.copy(), point.copy()
        up[i], down[i] = up[i] + h, down[i] - h
        gradient[i] = (function(up.tolist()) - function(down.tolist())) / (2 * h)
    return torch.from_numpy(gradient).float()


def close(gradient: Tensor | None, expected: Tensor) -> bool:
    return gradient is not None and torch.allclose(gradient, expected, rtol=1e-4, atol=1e-5)


# -- cross-entropy, TRADES -------------------------------------------------------------------------------------------


def test_the_mean_kl_divergence_follows_its_formula() -> None:
    first, second = torch.tensor(CLEAN_ROWS), torch.tensor(ATTACKED_ROWS)
    assert float(mean_kl_divergence(first, second)) == pytest.approx(kl(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert float(mean_kl_divergence(second, first)) == pytest.approx(kl(ATTACKED_ROWS, CLEAN_ROWS), rel=1e-5)
    assert (
        abs(kl(CLEAN_ROWS, ATTACKED_ROWS) - kl(ATTACKED_ROWS, CLEAN_ROWS)) > 0.01
    )  # so that the test notices the order of the arguments
    assert float(mean_kl_divergence(first, first)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("clean", [False, True])
def test_cross_entropy_is_that_of_attacked_images_plus_optionally_that_of_clean_ones(clean: bool) -> None:
    model, loss = TwoTables(CLEAN_ROWS, ATTACKED_ROWS), CrossEntropyLoss(clean)
    expected = cross_entropy(ATTACKED_ROWS, LABELS) + clean * cross_entropy(CLEAN_ROWS, LABELS)
    assert float(loss_of(loss, model).detach()) == pytest.approx(expected, rel=1e-5)
    assert model.passes == loss.passes == 1 + clean


def test_trades_is_clean_cross_entropy_plus_beta_times_the_divergence() -> None:
    beta = 5.0

    def by_hand(clean: Rows, attacked: Rows) -> float:
        return cross_entropy(clean, LABELS) + beta * kl(clean, attacked)

    model, loss = TwoTables(CLEAN_ROWS, ATTACKED_ROWS), TradesLoss(beta)
    value = loss_of(loss, model)
    assert float(value.detach()) == pytest.approx(by_hand(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert model.passes == loss.passes == 2
    value.backward()  # in the published code, gradients flow through both arguments
    assert close(model.clean.grad, numerical_gradient(lambda rows: by_hand(rows, ATTACKED_ROWS), CLEAN_ROWS))
    assert close(model.attacked.grad, numerical_gradient(lambda rows: by_hand(CLEAN_ROWS, rows), ATTACKED_ROWS))


def test_trades_is_finite_for_extreme_logits() -> None:
    model = TwoTables([[1e4, 0.0], [-1e4, 0.0]], [[0.0, 1e4], [1e4, 0.0]])
    value = loss_of(TradesLoss(), model, [1, 1])
    value.backward()
    assert all(torch.isfinite(t).all() for t in (value, model.clean.grad, model.attacked.grad))


# -- SoE -------------------------------------------------------------------------------------------------------------

# Two images, two sub-models, three classes: the first sub-model classifies image 0 (label 0) correctly, the second one
# image 1 (label 2).
LOGITS = [[[1.5, 0.0, -0.5], [0.25, 1.0, 0.5]], [[0.75, 0.5, -0.25], [-1.0, 0.0, 0.5]]]
CONFIDENCE_LOGITS = [[0.5, -0.75], [1.25, 0.0]]
CORRECT = [[True, False], [False, True]]


def confidence(logits: Any, confidence_logits: Any, x: int, i: int) -> float:
    """r_i = max_c softmax(f_i)_c sigmoid(a_i)"""
    return max(softmax(logits[x][i])) * sigmoid(confidence_logits[x][i])


def soe_loss(
    logits: Any,
    confidence_logits: Any,
    weight: float,
    t: float,
    constant: tuple[Any, Any] = (LOGITS, CONFIDENCE_LOGITS),
) -> float:
    """The formula; the constants in it are computed from ``constant``, the rest from the other arguments."""
    total = 0.0
    for x, label in enumerate(LABELS):
        weights = softmax(t * confidence(*constant, x, i) for i in range(2))
        for i in range(2):
            total += weights[i] * -math.log(softmax(logits[x][i])[label]) / 2
            r = confidence(constant[0] if CORRECT[x][i] else logits, confidence_logits, x, i)
            target = softmax(constant[0][x][i])[label]
            total += weight * -(target * math.log(r) + (1 - target) * math.log(1 - r)) / 4
    return total


def value_and_gradients(loss: SoELoss) -> tuple[float, Tensor, Tensor]:
    """The loss of one batch, and its gradients with respect to logits and confidence logits."""
    logits, confidence_logits = (
        torch.tensor(LOGITS, requires_grad=True),
        torch.tensor(CONFIDENCE_LOGITS, requires_grad=True),
    )
    value = loss.from_output(SubModelOutput(logits, confidence_logits), torch.tensor(LABELS))
    by_logits, by_confidence_logits = torch.autograd.grad(
        value, (logits, confidence_logits), allow_unused=True, materialize_grads=True
    )
    return float(value.detach()), by_logits, by_confidence_logits


@pytest.mark.parametrize(("weight", "t"), [(1.0, 1.0), (2.5, 4.0)])
def test_the_soe_loss_and_its_gradients_follow_the_formula(weight: float, t: float) -> None:
    value, by_logits, by_confidence_logits = value_and_gradients(SoELoss(weight, t))
    assert value == pytest.approx(soe_loss(LOGITS, CONFIDENCE_LOGITS, weight, t), rel=1e-5)
    assert close(by_logits, numerical_gradient(lambda logits: soe_loss(logits, CONFIDENCE_LOGITS, weight, t), LOGITS))
    assert close(
        by_confidence_logits,
        numerical_gradient(lambda confidence_logits: soe_loss(LOGITS, confidence_logits, weight, t), CONFIDENCE_LOGITS),
    )


def test_gradients_through_the_constants_would_differ() -> None:
    # Otherwise the test above could not notice a missing detach.
    _, by_logits, by_confidence_logits = value_and_gradients(SoELoss(1.0, 4.0))
    free = numerical_gradient(
        lambda logits: soe_loss(logits, CONFIDENCE_LOGITS, 1.0, 4.0, (logits, CONFIDENCE_LOGITS)), LOGITS
    )
    assert (free - by_logits).abs().amax(dim=2).min() > 1e-2
    free = numerical_gradient(
        lambda confidence_logits: soe_loss(LOGITS, confidence_logits, 1.0, 4.0, (LOGITS, confidence_logits)),
        CONFIDENCE_LOGITS,
    )
    assert (free - by_confidence_logits).abs().min() > 1e-3


def test_the_soe_loss_sums_the_losses_on_clean_and_attacked_images() -> None:
    def rows(logits: Any, confidence_logits: Any) -> Any:
        return (
            np.concatenate([np.array(logits), np.array(confidence_logits)[..., None]], axis=2)
            .astype(np.float32)
            .tolist()
        )

    other = np.flip(np.array(LOGITS), axis=0).tolist()
    model, loss = TwoTablesSoE(rows(LOGITS, CONFIDENCE_LOGITS), rows(other, CONFIDENCE_LOGITS)), SoELoss(1.0, 2.0)
    each = [
        loss.from_output(SubModelOutput(torch.tensor(logits), torch.tensor(CONFIDENCE_LOGITS)), torch.tensor(LABELS))
        for logits in (LOGITS, other)
    ]
    assert float(loss_of(loss, model).detach()) == pytest.approx(float(each[0] + each[1]), rel=1e-5)
    assert abs(float(each[0] - each[1])) > 0.1
    assert model.passes == loss.passes == 2


def test_the_soe_loss_is_finite_for_extreme_logits() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-200.0, 200.0, 0.0]]]).requires_grad_()
    for value_of_a in (-1e4, -60.0, 0.0, 60.0, 1e4):
        confidence_logits = torch.full((1, 2), value_of_a, requires_grad=True)
        for label in range(3):
            value = SoELoss().from_output(SubModelOutput(logits, confidence_logits), torch.tensor([label]))
            gradients = torch.autograd.grad(value, (logits, confidence_logits))
            assert all(torch.isfinite(t).all() for t in (value, *gradients)), (value_of_a, label)


def test_the_soe_loss_uses_no_function_that_autocast_refuses() -> None:
    # On CUDA, autocast refuses binary_cross_entropy.
    refused: list[str] = []

    class Recorder(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.binary_cross_entropy and torch.is_autocast_enabled("cpu"):
                refused.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Recorder():
        SoELoss().from_output(
            SubModelOutput(torch.tensor(LOGITS), torch.tensor(CONFIDENCE_LOGITS)), torch.tensor(LABELS)
        )
    assert refused == []


# -- ADVMoE's router -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
def test_the_router_loss_and_its_gradients_follow_the_formula(safe: bool) -> None:
    beta, labels = 0.5, [7, 9]

    def by_hand(clean: Rows, attacked: Rows) -> float:
        return beta * cross_entropy(clean, [y % 3 for y in labels]) + beta * kl(clean, attacked)

    router, loss = TwoTables(CLEAN_ROWS, ATTACKED_ROWS), RouterLoss(beta, safe=safe)
    value = loss_of(loss, Routed(router), labels)
    assert float(value.detach()) == pytest.approx(by_hand(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert router.passes == loss.passes == 2
    value.backward()
    assert close(router.clean.grad, numerical_gradient(lambda rows: by_hand(rows, ATTACKED_ROWS), CLEAN_ROWS))
    assert close(router.attacked.grad, numerical_gradient(lambda rows: by_hand(CLEAN_ROWS, rows), ATTACKED_ROWS))
    for rows in (router.clean, router.attacked):
        assert rows.grad.abs().max() > 0.01


def test_labels_are_taken_modulo_the_number_of_pathways() -> None:
    equal = torch.zeros(4, 2)
    routed = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [-9.0, 9.0]])
    y = torch.tensor([0, 1, 4, 9])
    assert float(RouterLoss(1.0).from_logits(routed, routed, y)) < 1e-6
    assert float(RouterLoss(1.0).from_logits(routed, routed, y + 1)) == pytest.approx(18, rel=1e-5)
    assert float(RouterLoss(1.0).from_logits(equal, equal, y)) == pytest.approx(math.log(2))


def router_loss(safe: bool, clean_rows: Any, attacked_rows: Any, y: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients with respect to the router's logits on clean and on attacked images."""
    clean, attacked = (
        torch.tensor(rows, dtype=torch.float32, requires_grad=True) for rows in (clean_rows, attacked_rows)
    )
    value = RouterLoss(safe=safe).from_logits(clean, attacked, torch.tensor(y))
    return value.detach(), *torch.autograd.grad(value, (clean, attacked))


def table(limit: float) -> st.SearchStrategy[Rows]:
    return st.lists(st.lists(st.floats(-limit, limit, width=32), min_size=3, max_size=3), min_size=2, max_size=2)


@settings(max_examples=30)
@given(clean=table(1e4), attacked=table(1e4), y=st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_the_safe_loss_and_its_gradients_are_finite_for_all_logits(clean: Rows, attacked: Rows, y: list[int]) -> None:
    assert all(torch.isfinite(t).all() for t in router_loss(True, clean, attacked, y))


@settings(max_examples=30)
@given(clean=table(5), attacked=table(5), y=st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_the_unsafe_loss_is_the_same_for_moderate_logits(clean: Rows, attacked: Rows, y: list[int]) -> None:
    for safe, unsafe in zip(router_loss(True, clean, attacked, y), router_loss(False, clean, attacked, y), strict=True):
        assert torch.allclose(safe, unsafe, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("gap", "is_nan"), [(50.0, False), (400.0, True)])
def test_the_unsafe_gradient_is_nan_if_a_probability_underflows_to_zero(gap: float, is_nan: bool) -> None:
    assert (float(torch.softmax(torch.tensor([gap, 0.0]), 0)[1]) == 0) is is_nan
    arguments = [[gap, 0.0]], [[0.0, 1.0]], [0]
    value, by_clean, by_attacked = router_loss(False, *arguments)
    assert torch.isfinite(value)  # the loss itself does not show the fault
    assert bool(by_clean.isnan().any()) is is_nan
    assert torch.isfinite(by_attacked).all()
    safe = router_loss(True, *arguments)
    assert all(torch.isfinite(t).all() for t in safe)
    assert float(value) == pytest.approx(float(safe[0]), rel=1e-5)


# -- training with the router loss -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few(digits: Dataset) -> Dataset:
    """The first 60 and 20 digits of the training and validation splits."""
    return dataclasses.replace(digits, train=digits.train.first(60), validation=digits.validation.first(20))


def extreme_router(digits: Dataset) -> ADVMoE:
    """A small ADVMoE whose router logits differ so much that one of two probabilities underflows."""
    torch.manual_seed(0)
    model = ADVMoE(10, 2, 2, 2, 1, (0.3,), (0.4,))
    with torch.no_grad():
        model.router.head.weight.mul_(2000)
        logits = model.eval().router(digits.train.images)
    assert torch.isfinite(logits).all()
    assert (logits[:, 0] - logits[:, 1]).abs().min() > 120
    return model


def train_router(model: ADVMoE, digits: Dataset, batch_size: int, *, safe: bool) -> History:
    attack = RandomPGD(0.1, 0.0625, (2,), random_start=False, noise=0.001, objective="routed divergence")
    return train(
        model,
        digits,
        config=TrainConfig(1, batch_size, 1e-6, 0.9, 0.0, "constant", 1),
        augmentation=Augmentation(crop=0, flip=False),
        update_steps=[
            UpdateStep(attack, TradesLoss(), "pathways"),
            UpdateStep(attack, RouterLoss(safe=safe), "router"),
        ],
        validation=Validation(eps=0.1, step_size=0.05, steps=1, select="pgd"),
        seed=0,
        label="mine",
    )


@pytest.mark.parametrize(("batch_size", "message"), [(30, "mine: .*NaN"), (60, r"mine: router\.\S+ holds NaN")])
def test_training_with_the_unsafe_router_loss_stops_with_an_error(few: Dataset, batch_size: int, message: str) -> None:
    # With one batch per epoch, the loss is still finite when the epoch ends, and only the weights show the fault.
    model = extreme_router(few)
    with pytest.raises(NotFiniteError, match=message):
        train_router(model, few, batch_size, safe=False)
    assert all(p.isnan().any() for p in model.router.parameters())
    assert all(torch.isfinite(p).all() for p in model.network.parameters())


def test_training_with_the_safe_router_loss_stays_finite(few: Dataset) -> None:
    model = extreme_router(few)
    before = copy.deepcopy(model.router)
    history = train_router(model, few, 30, safe=True)
    assert math.isfinite(history.epochs[0].loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not torch.equal(model.router.head.weight, before.head.weight)
    evaluate(model, few.test, CLEAN, seed=0)


def test_a_router_of_nan_takes_pathway_0_and_evaluation_refuses_it(digits: Dataset) -> None:
    model = extreme_router(digits).eval()
    with torch.no_grad():
        for parameter in model.router.parameters():
            parameter.fill_(float("nan"))
        x = digits.test.images
        assert model.router(x).isnan().all()
        logits = model(x)
        assert torch.isfinite(logits).all()
        assert torch.equal(logits, model.forward_route(x, torch.zeros(len(x), dtype=torch.int64)))
        assert (model.forward_with_experts(x).gate_weights[:, 0] == 1).all()
    for evaluated in (model, Folded(model, model)):
        with pytest.raises(NotFiniteError, match=r"mine: router\.stem\.0\.weight holds NaN"):
            evaluate(evaluated, digits.test, CLEAN, seed=0, label="mine")
