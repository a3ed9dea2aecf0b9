"""The audit accepts networks that add noise in training mode and detects those that are another network there."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth, stochastic_depth
from toys import ToyNet, same_state

from paperlib import Dataset
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, PASSES, CheckResult
from paperlib.evaluation.auditing.context import AuditBudget, AuditContext
from paperlib.evaluation.auditing.scaled_draws import ScaledDraws
from paperlib.evaluation.auditing.training_mode import difference_in_training_mode

EPS = Fraction(3, 20)
PYTHON, NUMPY = random.Random(0), np.random.default_rng(0)  # generators that torch does not control
ALONE = next(check.run for check in CHECKS if check.name == "alone")


def alone(model: nn.Module, digits: Dataset) -> CheckResult:
    """The result of the check `alone` for a model in evaluation mode."""
    return ALONE(AuditContext(model.eval(), digits.test.first(8), EPS, AuditBudget(steps=5, autoattack=False)))


class Switching(nn.Module):
    """A function of a network and images in training mode, and another one in evaluation mode."""

    def __init__(
        self,
        model: nn.Module,
        in_training: Callable[[ToyNet, Tensor], Any],
        in_evaluation: Callable[[ToyNet, Tensor], Tensor] = lambda model, x: model(x),
    ) -> None:
        super().__init__()
        self.model, self.in_training, self.in_evaluation = model, in_training, in_evaluation

    def forward(self, x: Tensor) -> Any:
        return (self.in_training if self.training else self.in_evaluation)(self.model, x)


def before_head(function: Callable[[Tensor], Tensor]) -> Callable[[ToyNet, Tensor], Tensor]:
    """The network with a function between its features and its last layer."""
    return lambda model, x: model.head(function(model.body(x)).flatten(1))


def between(function: Callable[[Tensor], Tensor]) -> Callable[[ToyNet, Tensor], Tensor]:
    """The network with a function between its two blocks."""
    return lambda model, x: model.head(model.body[3:](function(model.body[:3](x))).flatten(1))


def floored_drop_path(x: Tensor, drop: float = 0.2) -> Tensor:
    """As in EfficientNet and Swin: the mask is the integer part of a uniform draw plus the keep probability."""
    mask = (1 - drop + torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)).floor_()
    return x.div(1 - drop) * mask


def layer_drop(x: Tensor, drop: float = 0.3) -> Tensor:
    """A decision for the whole batch, drawn from Python's generator."""
    return x * (PYTHON.random() > drop) / (1 - drop)


def noise(strength: float) -> Callable[[ToyNet, Tensor], Tensor]:
    return lambda model, x: model(x + strength * torch.randn_like(x))


def attended(model: ToyNet, x: Tensor, dropout: float) -> Tensor:
    """The network with attention over the rows of its feature maps."""
    rows = model.body(x)
    return model.head(F.scaled_dot_product_attention(rows, rows, rows, dropout_p=dropout).flatten(1))


def averaged(model: ToyNet, x: Tensor) -> Tensor:
    """As in a wide network: the noise of single units averages out in the logits, but the bias it causes does not."""
    logits = between(lambda h: F.dropout(h, 0.5))(model, x.repeat(16, 1, 1, 1))
    return logits.view(16, len(x), -1).mean(dim=0)


def skipped(model: ToyNet, x: Tensor) -> Tensor:
    """As in LayerDrop: a block is skipped for the whole batch, and nothing is scaled."""
    h = model.body[:3](x)
    return model.head(model.body[3:](h if float(torch.rand(())) < 0.1 else h + 0.1 * h.roll(1, dims=2)).flatten(1))


class Stochastic(nn.Module):
    """A block that may be skipped, by torchvision's module or its function."""

    def __init__(self, model: nn.Module, function: bool, mode: str) -> None:
        super().__init__()
        self.model, self.function, self.mode = model, function, mode
        self.skip = StochasticDepth(0.3, mode)

    def forward(self, x: Tensor) -> Tensor:
        h = self.model.body(x)
        h = stochastic_depth(h, 0.3, self.mode, self.training) if self.function else self.skip(h)
        return self.model.head(h.flatten(1))


NOISE: dict[str, Callable[[ToyNet], nn.Module]] = {
    "dropout before the last layer": lambda toy: Switching(toy, before_head(lambda h: F.dropout(h, 0.5))),
    "dropout in attention": lambda toy: Switching(
        toy, lambda model, x: attended(model, x, 0.2), lambda model, x: attended(model, x, 0.0)
    ),
    "dropout of many units": lambda toy: Switching(toy, averaged),
    "a block skipped by a decision": lambda toy: Switching(
        toy, skipped, lambda model, x: between(lambda h: h + 0.1 * h.roll(1, dims=2))(model, x)
    ),
    "drop path by two floors": lambda toy: Switching(
        toy, lambda model, x: between(floored_drop_path)(model, floored_drop_path(x, 0.1))
    ),
    "layers dropped by draws of Python": lambda toy: Switching(toy, before_head(layer_drop)),
    "stochastic depth of batches": lambda toy: Stochastic(toy, function=True, mode="batch"),
    "stochastic depth as a module": lambda toy: Stochastic(toy, function=False, mode="row"),
    "strong Gaussian noise": lambda toy: Switching(toy, noise(0.5)),
    "auxiliary heads by name": lambda toy: Switching(toy, lambda model, x: {"aux": -model(x), "out": model(x)}),
    "auxiliary heads with dropout": lambda toy: Switching(
        toy, lambda model, x: (before_head(lambda h: F.dropout(h, 0.5))(model, x), -model(x))
    ),
    "two heads, averaged in evaluation mode": lambda toy: Switching(
        toy, lambda model, x: (1.5 * model(x), 0.5 * model(x)), lambda model, x: model(x)
    ),
    "features only in training mode": lambda toy: Switching(toy, lambda model, x: model.body(x)),
    "an error in training mode": lambda toy: Switching(toy, lambda model, x: model(x, "labels")),
}


@pytest.mark.parametrize("build", NOISE.values(), ids=NOISE.keys())
def test_noise_and_auxiliary_heads_in_training_mode_pass(
    build: Callable[[ToyNet], nn.Module], toy: ToyNet, digits: Dataset
) -> None:
    model = build(copy.deepcopy(toy))
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    result = alone(model, digits)
    assert (result.verdict, result.why) == (PASSES, "")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(model, before) and not any(module.training for module in model.modules())


def test_auxiliary_heads_of_torchvision_pass() -> None:
    model = torchvision.models.googlenet(num_classes=10, aux_logits=True, init_weights=False).eval()
    x = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        logits = model(x)
    assert difference_in_training_mode(model, x, logits, float(logits.abs().max())).share < 1e-4


def quantised(model: ToyNet, x: Tensor) -> Tensor:
    return model((16 * x).round() / 16)  # digits have 17 grey levels, so only gradients change


def shifted(model: ToyNet, x: Tensor) -> Tensor:
    return model(x.roll(2, dims=3))


def shifted_if(condition: Callable[[], bool]) -> Callable[[ToyNet, Tensor], Tensor]:
    """Another network where ``condition``, which depends on a draw, is true."""
    return lambda model, x: shifted(model, x) if condition() else model(x)


def strong_noise(model: ToyNet, x: Tensor) -> Tensor:
    """Normal noise of NumPy with the shape and the size of the logits."""
    size = float(model(x).detach().square().mean().sqrt())
    return size * torch.from_numpy(NUMPY.standard_normal((len(x), 10), dtype="float32"))


OTHER_NETWORKS: dict[str, tuple[Callable[[ToyNet], nn.Module], str]] = {
    "another scale": (lambda toy: Switching(toy, lambda model, x: 0.9 * model(x)), "logit"),
    "detached input": (lambda toy: Switching(toy, lambda model, x: model(x.detach())), "gradient"),
    "detached logits": (lambda toy: Switching(toy, lambda model, x: model(x).detach()), "gradient"),
    "rounded pixels in evaluation mode only": (
        lambda toy: Switching(toy, lambda model, x: model(x), quantised),
        "gradient",
    ),
    "another network behind dropout": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, F.dropout(x, 0.1))),
        "logit",
    ),
    "another network under noise of Python": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, x) + 0.01 * PYTHON.random()),
        "logit",
    ),
    "detached input behind dropout": (
        lambda toy: Switching(toy, lambda model, x: before_head(lambda h: F.dropout(h, 0.5))(model, x.detach())),
        "gradient",
    ),
    "another network at any draw but the mean": (
        lambda toy: Switching(toy, shifted_if(lambda: float(torch.randn(())) != 0)),
        "logit",
    ),
    "another network in most whole-number draws": (
        lambda toy: Switching(toy, shifted_if(lambda: bool(torch.randint(4, ()) > 0))),
        "logit",
    ),
    "another network at draws that differ much from the mean": (
        lambda toy: Switching(toy, shifted_if(lambda: abs(float(torch.randn(()))) > 0.1)),
        "logit",
    ),
    "another network by Python's draws": (
        lambda toy: Switching(toy, shifted_if(lambda: PYTHON.random() < 0.5)),
        "logit",
    ),
    "another network for half of the images": (
        lambda toy: Switching(
            toy, lambda model, x: torch.where(torch.rand(len(x), 1) < 0.5, shifted(model, x), model(x))
        ),
        "logit",
    ),
    "another network under strong noise of NumPy": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, x) + 2 * strong_noise(model, x)),
        "logit",
    ),
    "strong noise of NumPy in place of the logits": (
        lambda toy: Switching(toy, lambda model, x: 5 * strong_noise(model, x)),
        "logit",
    ),
    "an error if a draw equals its mean": (
        lambda toy: Switching(toy, shifted_if(lambda: 1 / (float(torch.rand(())) - 0.5) != 0)),
        "logit",
    ),
    "detached input in half of the draws": (
        lambda toy: Switching(toy, lambda model, x: model(x.detach() if PYTHON.random() < 0.5 else x)),
        "gradient",
    ),
    "detached input at any draw but the mean, behind dropout": (
        lambda toy: Switching(
            toy,
            lambda model, x: before_head(lambda h: F.dropout(h, 0.5))(
                model, x.detach() if float(torch.randn(())) != 0 else x
            ),
        ),
        "gradient",
    ),
}


@pytest.mark.parametrize(("build", "quantity"), OTHER_NETWORKS.values(), ids=OTHER_NETWORKS.keys())
def test_another_network_in_training_mode_is_detected(
    build: Callable[[ToyNet], nn.Module], quantity: str, toy: ToyNet, digits: Dataset
) -> None:
    result = alone(build(copy.deepcopy(toy)), digits)
    assert result.verdict == FAILS and "reads the training flag" in result.why
    assert result.value.endswith(f"of the largest {quantity}")


def with_another_logit(model: ToyNet, x: Tensor) -> Tensor:
    logits = model(x)
    return torch.cat([logits, logits[:, :1]], dim=1)


OTHER_OUTPUTS: dict[str, tuple[Callable[[ToyNet, Tensor], Any], str]] = {
    "more logits in the first of two heads": (
        lambda model, x: (with_another_logit(model, x), model.body(x)),
        "11 logits instead of 10",
    ),
    "more logits at some draws": (
        lambda model, x: with_another_logit(model, x) if PYTHON.random() < 0.5 else model(x),
        "11 logits instead of 10",
    ),
    "NaN": (lambda model, x: model(x) * torch.nan, "values that are not finite"),
    "infinity at some draws": (
        lambda model, x: model(x) / torch.tensor(float(PYTHON.random() < 0.5)),
        "values that are not finite",
    ),
}


@pytest.mark.parametrize(("in_training", "value"), OTHER_OUTPUTS.values(), ids=OTHER_OUTPUTS.keys())
def test_outputs_that_cannot_be_the_logits_are_detected(
    in_training: Callable[[ToyNet, Tensor], Any], value: str, toy: ToyNet, digits: Dataset
) -> None:
    result = alone(Switching(copy.deepcopy(toy), in_training), digits)
    assert (result.verdict, result.value) == (FAILS, value)


class CallCounter(nn.Module):
    """A network that counts its calls in training mode."""

    calls: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.model(x)


def test_buffers_that_change_in_training_mode_are_left_unchanged(toy: ToyNet, digits: Dataset) -> None:
    model = CallCounter(copy.deepcopy(toy))
    assert alone(model, digits).verdict == PASSES
    assert float(model.calls) == 0


def test_a_network_for_which_memory_runs_out_in_training_mode_does_not_pass(toy: ToyNet, digits: Dataset) -> None:
    def small(model: ToyNet, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return shifted(model, x)

    assert alone(Switching(copy.deepcopy(toy), small), digits).verdict == FAILS


RATES = torch.full((5,), 0.3)
# By the way in which code draws: the draw and its mean.
DRAWS: dict[str, tuple[Callable[[], Tensor], float]] = {
    "bernoulli_(p)": (lambda: torch.empty(5).bernoulli_(0.3), 0.3),
    "bernoulli_()": (lambda: torch.empty(5).bernoulli_(), 0.5),
    "bernoulli_(tensor)": (lambda: torch.empty(5).bernoulli_(RATES), 0.3),
    "bernoulli_(itself)": (lambda: (p := RATES.clone()).bernoulli_(p), 0.3),
    "bernoulli()": (lambda: RATES.bernoulli(), 0.3),
    "bernoulli(p=p)": (lambda: torch.bernoulli(torch.empty(5), p=0.3), 0.3),
    "rand": (lambda: torch.rand(5), 0.5),
    "rand_like": (lambda: torch.rand_like(torch.empty(5)), 0.5),
    "uniform_()": (lambda: torch.empty(5).uniform_(), 0.5),
    "uniform_(from)": (lambda: torch.empty(5).uniform_(-1), 0.0),
    "uniform_(to=to)": (lambda: torch.empty(5).uniform_(to=4.0), 2.0),
    "randn": (lambda: torch.randn(5), 0.0),
    "randn_like": (lambda: torch.randn_like(torch.empty(5)), 0.0),
    "normal_": (lambda: torch.empty(5).normal_(2, 0.1), 2.0),
    "normal of numbers": (lambda: torch.normal(2.0, 1.0, (5,)), 2.0),
    "normal of tensors": (lambda: torch.normal(torch.full((5,), 2.0), torch.ones(5)), 2.0),
    "normal of a number and a tensor": (lambda: torch.normal(2.0, torch.ones(5)), 2.0),
    "native_dropout": (lambda: torch.native_dropout(torch.full((5,), 0.7), 0.5, True)[0], 0.7),
}


@pytest.mark.parametrize("share", [0, 0.25, 1.0])
def test_draws_are_scaled_around_their_means(share: float) -> None:
    for name, (draw, mean) in DRAWS.items():
        with torch.random.fork_rng():
            expected = mean + share * (draw() - mean)
        with ScaledDraws(share):
            scaled = draw()
        assert scaled.tolist() == pytest.approx(expected.tolist(), abs=1e-6), name
        assert draw().tolist() != pytest.approx([mean] * 5), name


def test_fused_dropout_at_its_mean_has_the_gradient_of_no_dropout() -> None:
    x = torch.full((5,), 0.7, requires_grad=True)
    with ScaledDraws(0):
        torch.native_dropout(x, 0.5, True)[0].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 5
