"""The audit tells networks that draw noise while they are trained from those that are another network then."""

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
PYTHONS, NUMPYS = random.Random(0), np.random.default_rng(0)  # generators that torch does not know
ALONE = next(check.run for check in CHECKS if check.name == "alone")


def alone(model: nn.Module, digits: Dataset) -> CheckResult:
    """What the check `alone` finds of a model in evaluation mode."""
    return ALONE(AuditContext(model.eval(), digits.test.first(40), EPS, AuditBudget(steps=5, autoattack=False)))


class Switching(nn.Module):
    """A trained network that computes ``trained`` of itself and of the images while it is trained."""

    def __init__(
        self,
        model: nn.Module,
        trained: Callable[[ToyNet, Tensor], Any],
        evaluated: Callable[[ToyNet, Tensor], Tensor] = lambda model, x: model(x),
    ) -> None:
        super().__init__()
        self.model, self.trained, self.evaluated = model, trained, evaluated

    def forward(self, x: Tensor) -> Any:
        return (self.trained if self.training else self.evaluated)(self.model, x)


def through(function: Callable[[Tensor], Tensor]) -> Callable[[ToyNet, Tensor], Tensor]:
    """The network with a function between its features and its last layer."""
    return lambda model, x: model.head(function(model.body(x)).flatten(1))


def between(function: Callable[[Tensor], Tensor]) -> Callable[[ToyNet, Tensor], Tensor]:
    """The network with a function between its two blocks."""
    return lambda model, x: model.head(model.body[3:](function(model.body[:3](x))).flatten(1))


def drop_path(x: Tensor, drop: float = 0.2) -> Tensor:
    """As in timm: a mask per image, scaled by what is kept."""
    mask = x.new_empty(len(x), 1, 1, 1).bernoulli_(1 - drop)
    return x * mask.div_(1 - drop)


def floored_drop_path(x: Tensor, drop: float = 0.2) -> Tensor:
    """As in EfficientNet and Swin: the mask is the whole part of a uniform draw."""
    mask = (1 - drop + torch.rand(len(x), 1, 1, 1, dtype=x.dtype, device=x.device)).floor_()
    return x.div(1 - drop) * mask


def handmade_dropout(x: Tensor, drop: float = 0.3) -> Tensor:
    """As in textbooks: keep where a uniform draw is above the rate."""
    return x * (torch.rand_like(x) > drop) / (1 - drop)


def layer_drop(x: Tensor, drop: float = 0.3) -> Tensor:
    """A decision per batch, drawn past torch."""
    return x * (PYTHONS.random() > drop) / (1 - drop)


def noise(strength: float) -> Callable[[ToyNet, Tensor], Tensor]:
    return lambda model, x: model(x + strength * torch.randn_like(x))


def attended(model: ToyNet, x: Tensor, dropout: float) -> Tensor:
    """The network with an attention over the rows of its feature maps."""
    rows = model.body(x)
    return model.head(F.scaled_dot_product_attention(rows, rows, rows, dropout_p=dropout).flatten(1))


def averaged(model: ToyNet, x: Tensor) -> Tensor:
    """As in a wide network: the noise of single units averages out in the logits, the bias it causes does not."""
    return torch.stack([between(lambda h: F.dropout(h, 0.5))(model, x) for _ in range(16)]).mean(dim=0)


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


HONEST: dict[str, Callable[[ToyNet], nn.Module]] = {
    "dropout before the last layer": lambda toy: Switching(toy, through(lambda h: F.dropout(h, 0.5))),
    "dropout between blocks": lambda toy: Switching(toy, between(lambda h: F.dropout(h, 0.5))),
    "dropout of channels": lambda toy: Switching(toy, between(lambda h: F.dropout2d(h, 0.3))),
    "dropout of pixels": lambda toy: Switching(toy, lambda model, x: model(F.dropout(x, 0.2))),
    "dropout in attention": lambda toy: Switching(
        toy, lambda model, x: attended(model, x, 0.2), lambda model, x: attended(model, x, 0.0)
    ),
    "dropout by hand": lambda toy: Switching(toy, between(handmade_dropout)),
    "dropout of many units": lambda toy: Switching(toy, averaged),
    "a block skipped by a decision": lambda toy: Switching(
        toy, skipped, lambda model, x: between(lambda h: h + 0.1 * h.roll(1, dims=2))(model, x)
    ),
    "drop path": lambda toy: Switching(toy, between(drop_path)),
    "drop path by floor": lambda toy: Switching(toy, between(floored_drop_path)),
    "drop path by two floors": lambda toy: Switching(
        toy, lambda model, x: between(floored_drop_path)(model, floored_drop_path(x, 0.1))
    ),
    "layers dropped past torch": lambda toy: Switching(toy, through(layer_drop)),
    "stochastic depth of rows": lambda toy: Stochastic(toy, function=True, mode="row"),
    "stochastic depth of batches": lambda toy: Stochastic(toy, function=True, mode="batch"),
    "torchvision's module": lambda toy: Stochastic(toy, function=False, mode="row"),
    "Gaussian noise": lambda toy: Switching(toy, noise(0.1)),
    "strong Gaussian noise": lambda toy: Switching(toy, noise(0.5)),
    "uniform noise": lambda toy: Switching(toy, lambda model, x: model(x + torch.rand_like(x) - 0.5)),
    "noise drawn in place": lambda toy: Switching(
        toy, lambda model, x: model(x + torch.empty_like(x).normal_(0, 0.2) + torch.empty_like(x).uniform_(-0.1, 0.1))
    ),
    "noise of a distribution": lambda toy: Switching(
        toy, lambda model, x: model(x + torch.distributions.Normal(0.0, 0.2).sample(x.shape))
    ),
    "auxiliary heads": lambda toy: Switching(toy, lambda model, x: (model(x), model(x.flip(3)), model.body(x))),
    "auxiliary heads, the last one counts": lambda toy: Switching(toy, lambda model, x: [0.5 * model(x), model(x)]),
    "auxiliary heads by name": lambda toy: Switching(toy, lambda model, x: {"aux": -model(x), "out": model(x)}),
    "auxiliary heads with dropout": lambda toy: Switching(
        toy, lambda model, x: (through(lambda h: F.dropout(h, 0.5))(model, x), -model(x))
    ),
    "two heads, averaged when evaluated": lambda toy: Switching(
        toy, lambda model, x: (1.5 * model(x), 0.5 * model(x)), lambda model, x: model(x)
    ),
    "features alone while trained": lambda toy: Switching(toy, lambda model, x: model.body(x)),
    "a loss while trained": lambda toy: Switching(toy, lambda model, x: {"loss": model(x).sum()}),
    "no answer while trained": lambda toy: Switching(toy, lambda model, x: model(x, "labels")),
}


@pytest.mark.parametrize("build", HONEST.values(), ids=HONEST.keys())
def test_noise_and_heads_of_training_are_honest(
    build: Callable[[ToyNet], nn.Module], toy: ToyNet, digits: Dataset
) -> None:
    model = build(copy.deepcopy(toy))
    before = copy.deepcopy(model)
    state = torch.get_rng_state()
    answer = alone(model, digits)
    assert (answer.verdict, answer.why) == (PASSES, "")
    assert torch.equal(torch.get_rng_state(), state)
    assert same_state(model, before) and not any(module.training for module in model.modules())


@pytest.mark.parametrize(
    "build", [torchvision.models.googlenet, torchvision.models.efficientnet_b0], ids=["heads", "depth"]
)
def test_networks_of_torchvision_are_honest(build: Callable[..., nn.Module]) -> None:
    aux = {"aux_logits": True, "init_weights": False} if build is torchvision.models.googlenet else {}
    model, x = build(num_classes=10, **aux).eval(), torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(x)
    assert difference_in_training_mode(model, x, wanted, float(wanted.abs().max()))[0] < 1e-4


def quantised(model: ToyNet, x: Tensor) -> Tensor:
    return model((16 * x).round() / 16)  # digits have 17 shades of grey, so only gradients notice


def shifted(model: ToyNet, x: Tensor) -> Tensor:
    return model(x.roll(2, dims=3))


def decided(other: Callable[[], bool]) -> Callable[[ToyNet, Tensor], Tensor]:
    """Another network where a draw says so."""
    return lambda model, x: shifted(model, x) if other() else model(x)


def strong_noise(model: ToyNet, x: Tensor) -> Tensor:
    """Normal noise of NumPy as large as the logits, of the form of the answer."""
    size = float(model(x).detach().square().mean().sqrt())
    return size * torch.from_numpy(NUMPYS.standard_normal((len(x), 10), dtype="float32"))


DISHONEST: dict[str, tuple[Callable[[ToyNet], nn.Module], str]] = {
    "another network": (lambda toy: Switching(toy, shifted), "logit"),
    "another scale": (lambda toy: Switching(toy, lambda model, x: 0.9 * model(x)), "logit"),
    "masked answers": (lambda toy: Switching(toy, lambda model, x: 0 * model(x)), "logit"),
    "no gradient while trained": (lambda toy: Switching(toy, lambda model, x: model(x.detach())), "gradient"),
    "no gradient by a constant": (lambda toy: Switching(toy, lambda model, x: model(x).detach()), "gradient"),
    "rounded pixels while trained": (lambda toy: Switching(toy, quantised), "gradient"),
    "rounded pixels unless trained": (
        lambda toy: Switching(toy, lambda model, x: model(x), quantised),
        "gradient",
    ),
    "a defence unless trained": (lambda toy: Switching(toy, lambda model, x: model(x), shifted), "logit"),
    "another network behind dropout": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, F.dropout(x, 0.1))),
        "logit",
    ),
    "another network under noise": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, x) + 0.01 * torch.randn(len(x), 10)),
        "logit",
    ),
    "another network under noise drawn past torch": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, x) + 0.01 * PYTHONS.random()),
        "logit",
    ),
    "dropout that hides a constant gradient": (
        lambda toy: Switching(toy, lambda model, x: through(lambda h: F.dropout(h, 0.5))(model, x.detach())),
        "gradient",
    ),
    "another network at any draw but the mean": (
        lambda toy: Switching(toy, decided(lambda: float(torch.randn(())) != 0)),
        "logit",
    ),
    "another network at any draw but one half": (
        lambda toy: Switching(toy, decided(lambda: bool(torch.rand(()) != 0.5))),
        "logit",
    ),
    "another network in half of the draws": (
        lambda toy: Switching(toy, decided(lambda: bool(torch.rand(()) < 0.5))),
        "logit",
    ),
    "another network in most whole-number draws": (
        lambda toy: Switching(toy, decided(lambda: bool(torch.randint(4, ()) > 0))),
        "logit",
    ),
    "another network at draws far from the mean": (
        lambda toy: Switching(toy, decided(lambda: abs(float(torch.randn(()))) > 0.1)),
        "logit",
    ),
    "another network by Python's draws": (
        lambda toy: Switching(toy, decided(lambda: PYTHONS.random() < 0.5)),
        "logit",
    ),
    "another network by NumPy's draws": (
        lambda toy: Switching(toy, decided(lambda: NUMPYS.random() < 0.5)),
        "logit",
    ),
    "another network for half of the images": (
        lambda toy: Switching(
            toy, lambda model, x: torch.where(torch.rand(len(x), 1) < 0.5, shifted(model, x), model(x))
        ),
        "logit",
    ),
    "another network as noise around the answer": (
        lambda toy: Switching(toy, lambda model, x: model(x) + 100 * torch.randn(()) * shifted(model, x)),
        "logit",
    ),
    "another network under strong noise drawn past torch": (
        lambda toy: Switching(toy, lambda model, x: shifted(model, x) + 2 * strong_noise(model, x)),
        "logit",
    ),
    "nothing but strong noise drawn past torch": (
        lambda toy: Switching(toy, lambda model, x: 5 * strong_noise(model, x)),
        "logit",
    ),
    "draws that cannot be at their means": (
        lambda toy: Switching(toy, decided(lambda: 1 / (float(torch.rand(())) - 0.5) != 0)),
        "logit",
    ),
    "no gradient at any draw but the mean": (
        lambda toy: Switching(toy, lambda model, x: model(x.detach() if float(torch.randn(())) != 0 else x)),
        "gradient",
    ),
    "no gradient in half of the draws": (
        lambda toy: Switching(toy, lambda model, x: model(x.detach() if PYTHONS.random() < 0.5 else x)),
        "gradient",
    ),
    "dropout that hides a gradient missing at any draw but the mean": (
        lambda toy: Switching(
            toy,
            lambda model, x: through(lambda h: F.dropout(h, 0.5))(
                model, x.detach() if float(torch.randn(())) != 0 else x
            ),
        ),
        "gradient",
    ),
    "another network as the first of heads": (
        lambda toy: Switching(toy, lambda model, x: (shifted(model, x), 0.5 * model(x))),
        "logit",
    ),
}


@pytest.mark.parametrize(("build", "what"), DISHONEST.values(), ids=DISHONEST.keys())
def test_another_network_in_training_mode_is_found(
    build: Callable[[ToyNet], nn.Module], what: str, toy: ToyNet, digits: Dataset
) -> None:
    answer = alone(build(copy.deepcopy(toy)), digits)
    assert answer.verdict == FAILS and "reads the training flag" in answer.why
    assert answer.value.endswith(f"of the largest {what}")


def with_another_logit(model: ToyNet, x: Tensor) -> Tensor:
    answer = model(x)
    return torch.cat([answer, answer[:, :1]], dim=1)


OTHER_OUTPUTS: dict[str, tuple[Callable[[ToyNet, Tensor], Any], str]] = {
    "one more logit": (with_another_logit, "11 logits instead of 10"),
    "one logit fewer": (lambda model, x: model(x)[:, 1:], "9 logits instead of 10"),
    "more logits in the first of heads": (
        lambda model, x: (with_another_logit(model, x), model.body(x)),
        "11 logits instead of 10",
    ),
    "more logits by name": (lambda model, x: {"out": with_another_logit(model, x)}, "11 logits instead of 10"),
    "more logits at some draws": (
        lambda model, x: with_another_logit(model, x) if PYTHONS.random() < 0.5 else model(x),
        "11 logits instead of 10",
    ),
    "NaN": (lambda model, x: model(x) * torch.nan, "values that are not finite"),
    "infinity at some draws": (
        lambda model, x: model(x) / torch.tensor(float(PYTHONS.random() < 0.5)),
        "values that are not finite",
    ),
}


@pytest.mark.parametrize(("trained", "value"), OTHER_OUTPUTS.values(), ids=OTHER_OUTPUTS.keys())
def test_outputs_that_cannot_be_the_answer_are_found(
    trained: Callable[[ToyNet, Tensor], Any], value: str, toy: ToyNet, digits: Dataset
) -> None:
    answer = alone(Switching(copy.deepcopy(toy), trained), digits)
    assert (answer.verdict, answer.value) == (FAILS, value)


class OwnStatistics(nn.Module):
    """A network that counts its calls while it is trained."""

    calls: Tensor

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return self.model(x)


def test_buffers_that_training_moves_are_left_as_they_were(toy: ToyNet, digits: Dataset) -> None:
    model = OwnStatistics(copy.deepcopy(toy))
    assert alone(model, digits).verdict == PASSES
    assert float(model.calls) == 0


def test_memory_that_runs_out_in_training_mode_is_no_reason_to_pass(toy: ToyNet, digits: Dataset) -> None:
    def small(model: ToyNet, x: Tensor) -> Tensor:
        if len(x) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return shifted(model, x)

    assert alone(Switching(copy.deepcopy(toy), small), digits).verdict == FAILS


MEANS: dict[str, tuple[Callable[[], Tensor], float]] = {
    "a mask": (lambda: torch.empty(5).bernoulli_(0.3), 0.3),
    "a mask of one half": (lambda: torch.empty(5).bernoulli_(), 0.5),
    "a mask of tensors": (lambda: torch.empty(5).bernoulli_(torch.full((5,), 0.3)), 0.3),
    "a mask of itself": (lambda: torch.full((5,), 0.3).bernoulli(), 0.3),
    "a mask of itself, in place": (lambda: (x := torch.full((5,), 0.3)).bernoulli_(x), 0.3),
    "a mask by a rate": (lambda: torch.bernoulli(torch.empty(5), p=0.3), 0.3),
    "uniform": (lambda: torch.rand(5), 0.5),
    "uniform like another": (lambda: torch.rand_like(torch.empty(5)), 0.5),
    "uniform in place": (lambda: torch.empty(5).uniform_(), 0.5),
    "uniform from one number": (lambda: torch.empty(5).uniform_(-1), 0.0),
    "uniform up to another": (lambda: torch.empty(5).uniform_(to=4.0), 2.0),
    "normal": (lambda: torch.randn(5), 0.0),
    "normal like another": (lambda: torch.randn_like(torch.empty(5)), 0.0),
    "normal in place": (lambda: torch.empty(5).normal_(2, 0.1), 2.0),
    "normal of numbers": (lambda: torch.normal(2.0, 1.0, (5,)), 2.0),
    "normal of tensors": (lambda: torch.normal(torch.full((5,), 2.0), torch.ones(5)), 2.0),
    "normal of a number and a tensor": (lambda: torch.normal(2.0, torch.ones(5)), 2.0),
    "fused dropout": (lambda: torch.native_dropout(torch.full((5,), 0.7), 0.5, True)[0], 0.7),
}


@pytest.mark.parametrize(("draw", "mean"), MEANS.values(), ids=MEANS.keys())
def test_a_draw_gives_its_mean(draw: Callable[[], Tensor], mean: float) -> None:
    with ScaledDraws(0):
        found = draw()
    assert found.tolist() == pytest.approx([mean] * 5)
    assert draw().tolist() != pytest.approx([mean] * 5)


@pytest.mark.parametrize("share", [0.25, 1.0])
@pytest.mark.parametrize(("draw", "mean"), MEANS.values(), ids=MEANS.keys())
def test_a_draw_goes_part_of_the_way_from_its_mean(draw: Callable[[], Tensor], mean: float, share: float) -> None:
    with torch.random.fork_rng():
        wanted = mean + share * (draw() - mean)
    with ScaledDraws(share):
        found = draw()
    assert found.tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_fused_dropout_at_its_mean_has_the_gradient_of_no_dropout() -> None:
    x = torch.full((5,), 0.7, requires_grad=True)
    with ScaledDraws(0):
        torch.native_dropout(x, 0.5, True)[0].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1.0] * 5
