"""Each loss against its formula, recomputed without torch; and the router's loss that turns NaN beside the safe one."""

from __future__ import annotations

import copy
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
from paperlib.config.schema import DataConfig, TrainConfig
from paperlib.errors import NotFiniteError
from paperlib.evaluation import CLEAN, evaluate
from paperlib.models import ADVMoE
from paperlib.models.soe import Confidence
from paperlib.training.adversaries import RandomPGD
from paperlib.training.history import History
from paperlib.training.losses import CrossEntropyLoss, RouterLoss, SoELoss, TradesLoss, TrainingLoss, mean_kl_divergence
from paperlib.training.trainer import train
from paperlib.training.update import UpdateStep
from paperlib.training.validation import Validation

Rows = list[list[float]]
# What is said of two images on their clean and on their attacked pixels.
CLEAN_ROWS: Rows = [[1.0, -0.5, 0.25], [0.0, 2.0, -1.0]]
ATTACKED_ROWS: Rows = [[0.5, 0.75, -1.0], [1.5, 0.0, 0.5]]
LABELS = [0, 2]


class Said(nn.Module):
    """Answers dark images with one table of rows and bright ones with another; the rows are what learns."""

    def __init__(self, clean: Any, attacked: Any) -> None:
        super().__init__()
        self.clean = nn.Parameter(torch.tensor(clean))
        self.attacked = nn.Parameter(torch.tensor(attacked))
        self.passes = 0

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.attacked if float(x.mean()) > 0.5 else self.clean


class Routed(nn.Module):
    """Something with a router."""

    def __init__(self, router: nn.Module) -> None:
        super().__init__()
        self.router = router


class Several(Said):
    """Sub-models whose last output is their confidence score."""

    def confidence(self, x: Tensor) -> Confidence:
        said = self(x)
        return Confidence(said[..., :-1], said[..., -1])


def asked(loss: TrainingLoss, model: nn.Module, labels: Iterable[int] = LABELS) -> Tensor:
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


def slope(value: Callable[[Any], float], at: Any, by: float = 1e-6) -> Tensor:
    """The gradient of a function of nested lists, by central differences."""
    point = np.array(at, dtype=np.float64)
    found = np.zeros_like(point)
    for i in np.ndindex(*point.shape):
        up, down = point.copy(), point.copy()
        up[i], down[i] = up[i] + by, down[i] - by
        found[i] = (value(up.tolist()) - value(down.tolist())) / (2 * by)
    return torch.from_numpy(found).float()


def close(found: Tensor | None, expected: Tensor) -> bool:
    return found is not None and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


# -- cross-entropy, TRADES -------------------------------------------------------------------------------------------


def test_divergence_is_kl_of_the_first_from_the_second_averaged_over_images() -> None:
    first, second = torch.tensor(CLEAN_ROWS), torch.tensor(ATTACKED_ROWS)
    assert float(mean_kl_divergence(first, second)) == pytest.approx(kl(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert float(mean_kl_divergence(second, first)) == pytest.approx(kl(ATTACKED_ROWS, CLEAN_ROWS), rel=1e-5)
    assert abs(kl(CLEAN_ROWS, ATTACKED_ROWS) - kl(ATTACKED_ROWS, CLEAN_ROWS)) > 0.01  # so that the order is seen
    assert float(mean_kl_divergence(first, first)) == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("clean", [False, True])
def test_cross_entropy_is_that_of_attacked_images_and_of_clean_ones_if_wanted(clean: bool) -> None:
    model, loss = Said(CLEAN_ROWS, ATTACKED_ROWS), CrossEntropyLoss(clean)
    expected = cross_entropy(ATTACKED_ROWS, LABELS) + clean * cross_entropy(CLEAN_ROWS, LABELS)
    assert float(asked(loss, model).detach()) == pytest.approx(expected, rel=1e-5)
    assert model.passes == loss.passes == 1 + clean


@pytest.mark.parametrize("beta", [0.0, 1.0, 6.0])
def test_trades_is_clean_cross_entropy_plus_beta_times_the_divergence(beta: float) -> None:
    def by_hand(clean: Rows, attacked: Rows) -> float:
        return cross_entropy(clean, LABELS) + beta * kl(clean, attacked)

    model, loss = Said(CLEAN_ROWS, ATTACKED_ROWS), TradesLoss(beta)
    value = asked(loss, model)
    assert float(value.detach()) == pytest.approx(by_hand(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert model.passes == loss.passes == 2
    value.backward()  # the published code lets gradients through both sides
    assert close(model.clean.grad, slope(lambda rows: by_hand(rows, ATTACKED_ROWS), CLEAN_ROWS))
    assert close(model.attacked.grad, slope(lambda rows: by_hand(CLEAN_ROWS, rows), ATTACKED_ROWS))


def test_trades_stays_finite_where_answers_are_far_apart() -> None:
    model = Said([[1e4, 0.0], [-1e4, 0.0]], [[0.0, 1e4], [1e4, 0.0]])
    value = asked(TradesLoss(), model, [1, 1])
    value.backward()
    assert all(torch.isfinite(t).all() for t in (value, model.clean.grad, model.attacked.grad))


# -- SoE -------------------------------------------------------------------------------------------------------------

# Two images, two sub-models, three classes: the first sub-model is right about image 0 (label 0), the second about
# image 1 (label 2).
LOGITS = [[[1.5, 0.0, -0.5], [0.25, 1.0, 0.5]], [[0.75, 0.5, -0.25], [-1.0, 0.0, 0.5]]]
HEADS = [[0.5, -0.75], [1.25, 0.0]]
RIGHT = [[True, False], [False, True]]


def sureness(logits: Any, heads: Any, x: int, i: int) -> float:
    """r_i = max_c softmax(f_i)_c sigmoid(a_i)"""
    return max(softmax(logits[x][i])) * sigmoid(heads[x][i])


def collaboration(
    logits: Any, heads: Any, weight: float, t: float, constant: tuple[Any, Any] = (LOGITS, HEADS)
) -> float:
    """The formula; what it holds constant is computed from ``constant``, the rest from ``logits`` and ``heads``."""
    total = 0.0
    for x, label in enumerate(LABELS):
        shares = softmax(t * sureness(*constant, x, i) for i in range(2))
        for i in range(2):
            total += shares[i] * -math.log(softmax(logits[x][i])[label]) / 2
            right = max(range(3), key=lambda c, x=x, i=i: constant[0][x][i][c]) == label
            assert right == RIGHT[x][i]
            r = sureness(constant[0] if right else logits, heads, x, i)
            target = softmax(constant[0][x][i])[label]
            total += weight * -(target * math.log(r) + (1 - target) * math.log(1 - r)) / 4
    return total


def taught(loss: SoELoss) -> tuple[float, Tensor, Tensor]:
    """The loss of one batch, and its gradients with respect to logits and heads."""
    logits, heads = torch.tensor(LOGITS, requires_grad=True), torch.tensor(HEADS, requires_grad=True)
    value = loss.of(Confidence(logits, heads), torch.tensor(LABELS))
    by_logits, by_heads = torch.autograd.grad(value, (logits, heads), allow_unused=True, materialize_grads=True)
    return float(value.detach()), by_logits, by_heads


@pytest.mark.parametrize(("weight", "t"), [(1.0, 1.0), (0.0, 1.0), (2.5, 1.0), (1.0, 4.0), (0.5, 0.25)])
def test_the_collaboration_is_its_formula_and_so_are_its_gradients(weight: float, t: float) -> None:
    value, by_logits, by_heads = taught(SoELoss(weight, t))
    assert value == pytest.approx(collaboration(LOGITS, HEADS, weight, t), rel=1e-5)
    assert close(by_logits, slope(lambda logits: collaboration(logits, HEADS, weight, t), LOGITS))
    assert close(by_heads, slope(lambda heads: collaboration(LOGITS, heads, weight, t), HEADS))


def test_what_is_held_constant_would_change_the_gradients() -> None:
    # Else the test above could not tell a missing detach.
    _, by_logits, by_heads = taught(SoELoss(1.0, 4.0))
    free = slope(lambda logits: collaboration(logits, HEADS, 1.0, 4.0, (logits, HEADS)), LOGITS)
    assert (free - by_logits).abs().amax(dim=2).min() > 1e-2
    free = slope(lambda heads: collaboration(LOGITS, heads, 1.0, 4.0, (LOGITS, heads)), HEADS)
    assert (free - by_heads).abs().min() > 1e-3


def test_confidence_teaches_the_largest_probability_only_where_the_sub_model_is_wrong() -> None:
    (_, with_it, _), (_, without, heads) = taught(SoELoss(1.0)), taught(SoELoss(0.0))
    moved = (with_it - without).abs().amax(dim=2)
    assert torch.equal(moved < 1e-6, torch.tensor(RIGHT))
    assert moved[~torch.tensor(RIGHT)].min() > 1e-3
    assert heads.abs().max() == 0  # cross-entropy alone teaches no head: nothing comes back through the shares


def test_a_collaboration_learns_from_clean_and_attacked_images_alike() -> None:
    def rows(logits: Any, heads: Any) -> Any:
        return np.concatenate([np.array(logits), np.array(heads)[..., None]], axis=2).astype(np.float32).tolist()

    other = np.flip(np.array(LOGITS), axis=0).tolist()
    model, loss = Several(rows(LOGITS, HEADS), rows(other, HEADS)), SoELoss(1.0, 2.0)
    each = [
        loss.of(Confidence(torch.tensor(said), torch.tensor(HEADS)), torch.tensor(LABELS)) for said in (LOGITS, other)
    ]
    assert float(asked(loss, model).detach()) == pytest.approx(float(each[0] + each[1]), rel=1e-5)
    assert abs(float(each[0] - each[1])) > 0.1
    assert model.passes == loss.passes == 2


def test_the_collaboration_is_finite_at_extremes() -> None:
    logits = torch.tensor([[[1e4, -1e4, 0.0], [-200.0, 200.0, 0.0]]]).requires_grad_()
    for head in (-1e4, -60.0, 0.0, 60.0, 1e4):
        heads = torch.full((1, 2), head, requires_grad=True)
        for label in range(3):
            value = SoELoss().of(Confidence(logits, heads), torch.tensor([label]))
            gradients = torch.autograd.grad(value, (logits, heads))
            assert all(torch.isfinite(t).all() for t in (value, *gradients)), (head, label)


def test_the_collaboration_asks_nothing_that_autocast_refuses() -> None:
    refused: list[str] = []

    class Watched(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is F.binary_cross_entropy and torch.is_autocast_enabled("cpu"):
                refused.append(func.__name__)
            return func(*args, **(kwargs or {}))

    with torch.autocast("cpu", torch.bfloat16), Watched():
        SoELoss().of(Confidence(torch.tensor(LOGITS), torch.tensor(HEADS)), torch.tensor(LABELS))
    assert refused == []


# -- ADVMoE's router -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(("beta", "labels"), [(6.0, [0, 2]), (1.0, [7, 9]), (0.5, [5, 3])])
def test_the_routers_loss_is_its_formula_and_so_are_its_gradients(beta: float, labels: list[int], safe: bool) -> None:
    def by_hand(clean: Rows, attacked: Rows) -> float:
        return beta * cross_entropy(clean, [y % 3 for y in labels]) + beta * kl(clean, attacked)

    router, loss = Said(CLEAN_ROWS, ATTACKED_ROWS), RouterLoss(beta, safe=safe)
    value = asked(loss, Routed(router), labels)
    assert float(value.detach()) == pytest.approx(by_hand(CLEAN_ROWS, ATTACKED_ROWS), rel=1e-5)
    assert router.passes == loss.passes == 2
    value.backward()
    assert close(router.clean.grad, slope(lambda rows: by_hand(rows, ATTACKED_ROWS), CLEAN_ROWS))
    assert close(router.attacked.grad, slope(lambda rows: by_hand(CLEAN_ROWS, rows), ATTACKED_ROWS))
    for rows in (router.clean, router.attacked):
        assert rows.grad.abs().max() > 0.01


def test_labels_are_taken_modulo_the_number_of_pathways() -> None:
    even = torch.zeros(4, 2)
    sure = torch.tensor([[9.0, -9.0], [-9.0, 9.0], [9.0, -9.0], [-9.0, 9.0]])
    y = torch.tensor([0, 1, 4, 9])
    assert float(RouterLoss(1.0).of(sure, sure, y)) < 1e-6
    assert float(RouterLoss(1.0).of(sure, sure, y + 1)) == pytest.approx(18, rel=1e-5)
    assert float(RouterLoss(1.0).of(even, even, y)) == pytest.approx(math.log(2))


def routing(safe: bool, scores: Any, attacked: Any, y: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """The loss, and its gradients with respect to the scores on clean and on attacked images."""
    clean, other = (torch.tensor(rows, dtype=torch.float32, requires_grad=True) for rows in (scores, attacked))
    value = RouterLoss(safe=safe).of(clean, other, torch.tensor(y))
    return value.detach(), *torch.autograd.grad(value, (clean, other))


def table(limit: float) -> st.SearchStrategy[Rows]:
    return st.lists(st.lists(st.floats(-limit, limit, width=32), min_size=3, max_size=3), min_size=2, max_size=2)


@settings(max_examples=100)
@given(clean=table(1e4), attacked=table(1e4), y=st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_the_safe_loss_is_finite_and_so_are_its_gradients_however_far_apart_scores_are(
    clean: Rows, attacked: Rows, y: list[int]
) -> None:
    assert all(torch.isfinite(t).all() for t in routing(True, clean, attacked, y))


@settings(max_examples=100)
@given(clean=table(5), attacked=table(5), y=st.lists(st.integers(0, 9), min_size=2, max_size=2))
def test_the_unsafe_loss_is_the_same_on_moderate_scores(clean: Rows, attacked: Rows, y: list[int]) -> None:
    for safe, unsafe in zip(routing(True, clean, attacked, y), routing(False, clean, attacked, y), strict=True):
        assert torch.allclose(safe, unsafe, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("gap", "broken"), [(50.0, False), (400.0, True), (1e4, True)])
def test_the_unsafe_gradient_is_nan_once_a_probability_is_zero(gap: float, broken: bool) -> None:
    assert (float(torch.softmax(torch.tensor([gap, 0.0]), 0)[1]) == 0) is broken
    given_scores = [[gap, 0.0]], [[0.0, 1.0]], [0]
    value, by_clean, by_attacked = routing(False, *given_scores)
    assert torch.isfinite(value)  # the loss itself gives no warning
    assert bool(by_clean.isnan().any()) is broken
    assert torch.isfinite(by_attacked).all()
    safe = routing(True, *given_scores)
    assert all(torch.isfinite(t).all() for t in safe)
    assert float(value) == pytest.approx(float(safe[0]), rel=1e-5)


# -- from the loss to the table --------------------------------------------------------------------------------------


def decided(digits: Dataset) -> ADVMoE:
    """A small ADVMoE whose router is so sure that one of two probabilities underflows."""
    torch.manual_seed(0)
    model = ADVMoE(10, 2, 2, 2, 1, (0.3,), (0.4,))
    with torch.no_grad():
        model.router.head.weight.mul_(2000)
        scores = model.eval().router(digits.train.images)
    assert torch.isfinite(scores).all()
    assert (scores[:, 0] - scores[:, 1]).abs().min() > 120
    return model


def taught_to_route(model: ADVMoE, digits: Dataset, batch_size: int, *, safe: bool) -> History:
    threat = RandomPGD(0.1, 0.0625, (2,), random_start=False, noise=0.001, objective="routed divergence")
    return train(
        model,
        digits,
        config=TrainConfig(1, batch_size, 1e-6, 0.9, 0.0, "constant", 1),
        augmentation=DataConfig("digits", train=240, validation=50, test=80, split_seed=0, crop=0),
        update_steps=[
            UpdateStep(threat, TradesLoss(), "pathways"),
            UpdateStep(threat, RouterLoss(safe=safe), "router"),
        ],
        validation=Validation(eps=0.1, step_size=0.05, steps=1, select="pgd"),
        seed=0,
        label="mine",
    )


@pytest.mark.parametrize(("batch_size", "message"), [(60, "mine: .*NaN"), (240, r"mine: router\.\S+ holds NaN")])
def test_a_router_taught_by_the_unsafe_loss_turns_nan_and_is_found_out_at_once(
    digits: Dataset, batch_size: int, message: str
) -> None:
    # With one batch an epoch the loss is still finite when the epoch ends: only the weights tell.
    model = decided(digits)
    with pytest.raises(NotFiniteError, match=message):
        taught_to_route(model, digits, batch_size, safe=False)
    assert all(p.isnan().any() for p in model.router.parameters())
    assert all(torch.isfinite(p).all() for p in model.network.parameters())


@pytest.mark.parametrize("batch_size", [60, 240])
def test_a_router_taught_by_the_safe_loss_stays_finite(digits: Dataset, batch_size: int) -> None:
    model = decided(digits)
    before = copy.deepcopy(model.router)
    history = taught_to_route(model, digits, batch_size, safe=True)
    assert math.isfinite(history.epochs[0].loss)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    assert not torch.equal(model.router.head.weight, before.head.weight)
    evaluate(model, digits.test, CLEAN, seed=0)


def test_a_router_of_nan_answers_as_if_nothing_were_wrong_and_gets_no_accuracy(digits: Dataset) -> None:
    model = decided(digits).eval()
    with torch.no_grad():
        for parameter in model.router.parameters():
            parameter.fill_(float("nan"))
        x = digits.test.images
        assert model.router(x).isnan().all()
        answers = model(x)
        assert torch.isfinite(answers).all()
        assert torch.equal(answers, model.forward_route(x, torch.zeros(len(x), dtype=torch.int64)))
    for asked_model in (model, Folded(model, model)):
        with pytest.raises(NotFiniteError, match=r"mine: router\.stem\.0\.weight holds NaN"):
            evaluate(asked_model, digits.test, CLEAN, seed=0, label="mine")
