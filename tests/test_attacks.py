"""PGD and FGSM compared with closed forms, plain loops and foolbox; memory, progress, seeds and errors."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from toys import Linear, ToyNet, same_state

from paperlib import Dataset
from paperlib.acceleration import Folded, fold
from paperlib.attacks import NEVER, OBJECTIVES, Attacked, attack, cross_entropy, fgsm, misclassified, pgd
from paperlib.attacks.ball import Ball
from paperlib.attacks.early_stopping import SYNC_EVERY
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.models.modes import eval_mode

EPS, STEP = 0.1, 0.025


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Random images, with some pixels of exactly 0 and 1, so that clipping matters."""
    x = (torch.rand(n, 1, 2, 2, generator=rng(seed)) * 1.6 - 0.3).clamp(0, 1)
    return x, torch.arange(n) % 3


class NanGradient(torch.autograd.Function):
    """Zero in the forward pass, NaN in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(gradient, float("nan"))


# -- the equations -----------------------------------------------------------------------------------------------------


def test_fgsm_equals_its_closed_form_on_a_linear_model(linear: Linear) -> None:
    x, y = images()
    weight, bias = linear.weight.detach(), linear.bias.detach()
    p = torch.softmax(x.flatten(1) @ weight.T + bias, dim=1)
    # L = -log p_y with p = softmax(W x + b), so grad_x L = W^T (p - onehot(y))
    gradient = (p - nn.functional.one_hot(y, 3)) @ weight
    expected = (x + EPS * gradient.sign().view_as(x)).clamp(0, 1)
    assert gradient.abs().min() > 1e-4  # rounding changes no sign
    assert torch.equal(fgsm(linear, x, y, eps=EPS), expected)


def test_pgd_finds_the_optimal_corner_on_a_linear_binary_model() -> None:
    w = torch.tensor([0.7, -1.2, 0.4, -0.5])
    model = Linear(torch.stack([w, -w]))
    x, _ = images(20)
    y = torch.arange(20) % 2
    # The margin of class 0 decreases along -w and that of class 1 along +w, so the optimum is that corner, clipped.
    direction = torch.where(y[:, None] == 0, -w.sign(), w.sign()).view_as(x)
    adversarial = pgd(model, x, y, eps=EPS, step_size=STEP, steps=9, generator=rng())
    assert torch.allclose(adversarial, (x + EPS * direction).clamp(0, 1), atol=1e-7)


def test_fgsm_equals_one_step_of_pgd_of_size_eps(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    one = pgd(toy, x, y, eps=EPS, step_size=EPS, steps=1, random_start=False)
    assert torch.equal(fgsm(toy, x, y, eps=EPS), one)
    assert not torch.equal(one, x)


def test_attacks_raise_the_loss(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(toy(z), y) for z in (x, fgsm(toy, x, y, eps=EPS)))
        further = nn.functional.cross_entropy(
            toy(pgd(toy, x, y, eps=EPS, step_size=STEP, steps=20, generator=rng())), y
        )
    assert before < after < further


def test_random_starts_are_uniform_in_the_ball(linear: Linear) -> None:
    x, y = torch.full((500, 1, 2, 2), 0.5), torch.zeros(500, dtype=torch.int64)
    start = pgd(linear, x, y, eps=EPS, step_size=0, steps=1, generator=rng())
    moves = (start - x).flatten() / EPS
    assert -1 <= moves.min() < -0.98
    assert 0.98 < moves.max() <= 1
    assert abs(float(moves.mean())) < 0.05
    assert abs(float(moves.std()) - 3**-0.5) < 0.02  # of the uniform distribution on [-1, 1]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eps=st.floats(0, 1),
    step=st.floats(0, 1),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_every_image_stays_in_the_ball_and_in_range(
    linear: Linear, eps: float, step: float, steps: int, random_start: bool, restarts: int, seed: int
) -> None:
    x, y = images(seed=seed)
    budget: dict[str, Any] = {"eps": eps, "step_size": step, "steps": steps, "random_start": random_start}
    last = pgd(linear, x, y, **budget, generator=rng(seed))
    first_fooling = attack(linear, x, y, **budget, restarts=restarts, generator=rng(seed)).images
    for adversarial in (last, first_fooling):
        assert adversarial.shape == x.shape
        assert float((adversarial - x).abs().max()) <= eps + 1e-6
        assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1


def test_budgets_may_be_text_or_fractions(linear: Linear) -> None:
    x, y = images()
    expected = fgsm(linear, x, y, eps=8 / 255)
    assert torch.equal(fgsm(linear, x, y, eps="8/255"), expected)
    assert torch.equal(fgsm(linear, x, y, eps=Fraction(8, 255)), expected)


# -- the L2 ball, starts and targets -----------------------------------------------------------------------------------


def lengths(offsets: Tensor) -> Tensor:
    return offsets.flatten(1).double().square().sum(dim=1).sqrt()


def test_one_l2_step_equals_its_closed_form_on_a_linear_model(linear: Linear) -> None:
    x, y = torch.rand(6, 1, 2, 2, generator=rng(5)) * 0.6 + 0.2, torch.arange(6) % 3  # nothing to clip
    weight, bias = linear.weight.detach(), linear.bias.detach()
    p = torch.softmax(x.flatten(1) @ weight.T + bias, dim=1)
    g = (p - nn.functional.one_hot(y, 3)) @ weight
    direction = (g / g.square().sum(dim=1, keepdim=True).sqrt()).view_as(x)
    attack_settings: dict[str, Any] = {"steps": 1, "random_start": False, "norm": "l2"}
    assert torch.allclose(
        pgd(linear, x, y, eps=EPS, step_size=STEP, **attack_settings), x + STEP * direction, atol=1e-6
    )
    # A step beyond the ball ends on its surface, in the same direction.
    assert torch.allclose(
        pgd(linear, x, y, eps=EPS, step_size=2 * EPS, **attack_settings), x + EPS * direction, atol=1e-6
    )


def test_l2_pgd_finds_the_optimal_point_on_a_linear_binary_model() -> None:
    w = torch.tensor([0.7, -1.2, 0.4, -0.5])
    x, y = torch.rand(20, 1, 2, 2, generator=rng(5)) * 0.6 + 0.2, torch.arange(20) % 2
    direction = torch.where(y[:, None] == 0, -w, w).view_as(x) / w.norm()
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": EPS, "steps": 60, "norm": "l2"}
    adversarial = pgd(Linear(torch.stack([w, -w])), x, y, **attack_settings, generator=rng())
    assert torch.allclose(adversarial, x + EPS * direction, atol=1e-5)


def test_lengths_of_random_l2_starts_are_uniform(linear: Linear) -> None:
    x, y = torch.full((2000, 1, 2, 2), 0.5), torch.zeros(2000, dtype=torch.int64)
    start = pgd(linear, x, y, eps=EPS, step_size=0, steps=1, norm="l2", generator=rng())
    share = lengths(start - x) / EPS
    assert share.max() <= 1 + 1e-5
    for t in (0.1, 0.25, 0.5, 0.75, 0.9):  # lengths are uniform on [0, eps]
        assert float((share <= t).double().mean()) == pytest.approx(t, abs=0.04)
    directions = (start - x).flatten(1) / (share[:, None] * EPS)
    assert directions.mean(dim=0).abs().max() < 0.05
    again = pgd(linear, x, y, eps=EPS, step_size=0, steps=1, norm="l2", generator=rng())
    assert torch.equal(again, start)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eps=st.floats(0, 1),
    step=st.floats(0, 1),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    far=st.none() | st.floats(0, 3),
    seed=st.integers(0, 2**31),
)
def test_every_image_stays_in_the_l2_ball_and_in_range(
    linear: Linear, eps: float, step: float, steps: int, random_start: bool, far: float | None, seed: int
) -> None:
    x, y = images(seed=seed)
    start = None if far is None else x + far * torch.randn(x.shape, generator=rng(seed))
    attack_settings: dict[str, Any] = {
        "eps": eps,
        "step_size": step,
        "steps": steps,
        "random_start": random_start,
        "norm": "l2",
    }
    adversarial = pgd(linear, x, y, **attack_settings, start=start, generator=rng(seed))
    assert adversarial.shape == x.shape
    assert float(lengths(adversarial - x).max()) <= eps + 1e-6
    assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1


@settings(max_examples=60)
@given(
    eps=st.floats(0, 1),
    norm=st.sampled_from(["linf", "l2"]),
    offset=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
)
def test_projection_ends_in_the_ball_and_does_not_move_images_inside(
    eps: float, norm: str, offset: list[float]
) -> None:
    ball = Ball(eps, norm)
    x, moved = torch.full((1, 1, 2, 2), 0.5), 0.5 + torch.tensor(offset).view(1, 1, 2, 2)
    projected = ball.project(x, moved)
    size = (lambda z: float(lengths(z))) if norm == "l2" else (lambda z: float(z.abs().max()))
    assert size(projected - x) <= eps + 1e-6
    assert 0 <= float(projected.min()) <= float(projected.max()) <= 1
    if size(moved - x) <= min(eps, 0.5):
        assert torch.allclose(projected, moved, atol=1e-6)
    assert torch.allclose(ball.project(x, projected), projected, atol=1e-6)  # idempotent


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_is_moved_into_the_ball_and_is_the_first_iterate(linear: Linear, norm: str) -> None:
    x, y = images()
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": 0, "steps": 1, "norm": norm}
    near = (x + 0.02 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    assert torch.allclose(pgd(linear, x, y, **attack_settings, start=near), near, atol=1e-6)
    far = x + torch.tensor([3.0, -3.0, 0.0, 0.04]).view(1, 1, 2, 2)
    if norm == "linf":
        expected = x + torch.tensor([EPS, -EPS, 0.0, 0.04]).view(1, 1, 2, 2)
    else:
        expected = x + (far - x) / lengths(far - x).float().view(-1, 1, 1, 1) * EPS
    iterates: list[Tensor] = []

    def recording(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        iterates.append(x.detach().clone())
        return cross_entropy(model, x, y)

    adversarial = pgd(linear, x, y, **attack_settings, start=far, objective=recording)
    for iterate in (iterates[0], adversarial):  # no image outside the ball reaches the model
        assert torch.allclose(iterate, expected.clamp(0, 1), atol=1e-6)
    for random_start in (False, True):  # with a start, nothing is drawn
        generator = rng()
        pgd(linear, x, y, **attack_settings, start=near, random_start=random_start, generator=generator)
        assert torch.equal(generator.get_state(), rng().get_state())


def towards(model: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The negative squared distance of each image to its target image."""
    return model(x), -(x - targets).square().flatten(1).sum(dim=1)


def test_each_image_keeps_its_target_in_batches_of_any_size(linear: Linear) -> None:
    x, y = images(10)
    targets = torch.rand(x.shape, generator=rng(8))
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": EPS, "steps": 1, "random_start": False}
    for room in (None, 1, 4):
        folded = Folded(linear, linear, max_batch=room)
        adversarial = pgd(folded, x, y, **attack_settings, objective=towards, targets=targets)
        assert torch.allclose(adversarial, (x + EPS * (targets - x).sign()).clamp(0, 1))


def test_each_image_keeps_its_target_and_start_when_memory_runs_out(linear: Linear) -> None:
    x, y = images(10)
    targets, start = (torch.rand(x.shape, generator=rng(seed)) for seed in (8, 9))
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "objective": towards, "start": start}
    small = SmallMemory(linear, 3, "cpu")
    adversarial = pgd(small, x, y, **attack_settings, targets=targets)
    assert small.sizes[:5] == [1, 2, 10, 5, 2]  # the checks with one image and two, then batches that do not fit
    assert torch.equal(adversarial, pgd(linear, x, y, **attack_settings, targets=targets))


def test_without_targets_the_objective_gets_the_labels(linear: Linear) -> None:
    x, y = images()
    received: list[Tensor] = []

    def objective(model: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        received.append(targets)
        return cross_entropy(model, x, targets)

    pgd(linear, x, y, eps=EPS, step_size=STEP, steps=1, objective=objective)
    assert torch.equal(received[0], y)


# -- other objectives --------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(softmax(p), softmax(q), strict=True))


def test_the_divergence_is_kl_from_the_clean_prediction(linear: Linear) -> None:
    x, y = images()
    moved = (x + 0.2 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    objective = OBJECTIVES["divergence"]
    assert objective.targets is not None
    targets = objective.targets(linear, x, y)
    assert not targets.requires_grad
    logits, values = objective.function(linear, moved, targets)
    assert torch.equal(logits, linear(moved))
    clean, other = linear(x).tolist(), linear(moved).tolist()
    assert values.tolist() == pytest.approx([kl(p, q) for p, q in zip(clean, other, strict=True)], rel=1e-3, abs=1e-6)
    assert objective.function(linear, x, targets)[1].abs().max() < 1e-6


class HardRouted(nn.Module):
    """Two linear experts and hard routing; the surrogate mixes their probabilities."""

    def __init__(self, first: Tensor, second: Tensor, router: Tensor) -> None:
        super().__init__()
        self.first, self.second, self.router = Linear(first), Linear(second), Linear(router)

    def forward(self, x: Tensor) -> Tensor:
        to_first = self.router(x).argmax(dim=1, keepdim=True) == 0
        return torch.where(to_first, self.first(x), self.second(x))

    def forward_with_surrogate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(self.router(x), dim=1).unsqueeze(2)
        probabilities = torch.stack([torch.softmax(expert(x), dim=1) for expert in (self.first, self.second)], dim=1)
        return self(x), (shares * probabilities).sum(dim=1).log()


def test_the_routed_divergence_adds_that_of_the_router() -> None:
    model = HardRouted(*(torch.randn(n, 4, generator=rng(n)) for n in (3, 3, 2)))
    x, y = images()
    moved = (x + 0.2 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    objective = OBJECTIVES["routed divergence"]
    assert objective.targets is not None
    logits, values = objective.function(model, moved, objective.targets(model, x, y))
    assert torch.equal(logits, model(moved))
    pairs = [zip(part(x).tolist(), part(moved).tolist(), strict=True) for part in (model, model.router)]
    expected = [kl(*classes) + kl(*routes) for classes, routes in zip(*pairs, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_divergence_is_finite_for_distant_logits() -> None:
    model = Linear(torch.tensor([[1e4, 0, 0, 0], [-1e4, 0, 0, 0]]))
    targets = torch.log_softmax(torch.tensor([[-1e4, 1e4]]), dim=1)
    x = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    _, values = OBJECTIVES["divergence"].function(model, x, targets)
    assert values.tolist() == pytest.approx([1e4])
    assert torch.isfinite(torch.autograd.grad(values.sum(), x)[0]).all()


def test_the_surrogate_attack_succeeds_where_hard_routing_has_no_gradient() -> None:
    # Both experts ignore the image; the first is correct, the second is not, and the first pixel decides the route.
    flat, first_pixel = torch.zeros(2, 4), torch.tensor([[-4.0, 0, 0, 0], [4.0, 0, 0, 0]])
    model = HardRouted(flat, flat, first_pixel)
    with torch.no_grad():
        model.first.bias.copy_(torch.tensor([1.0, -1.0]))
        model.second.bias.copy_(torch.tensor([-1.0, 1.0]))
        model.router.bias.copy_(torch.tensor([2.2, -2.2]))  # the second from 0.55 on
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    attack_settings: dict[str, Any] = {"eps": 0.2, "step_size": 0.02, "steps": 6, "random_start": False}
    assert not attack(model, x, y, **attack_settings).fooled.any()
    done = attack(model, x, y, **attack_settings, objective=OBJECTIVES["soft"].function)
    assert done.first_success.tolist() == [3] * 3  # 0.50, 0.52, 0.54, 0.56
    assert misclassified(model, done.images, y).all()


@pytest.mark.parametrize(("prediction", "surrogate", "fooled"), [(0, 1, False), (1, 0, True)])
def test_success_is_decided_by_the_logits_and_not_by_the_surrogate(
    prediction: int, surrogate: int, fooled: bool
) -> None:
    class Two(nn.Module):
        """Class ``prediction`` for every image but the clean one; the surrogate prefers another class."""

        def forward(self, x: Tensor) -> Tensor:
            clean = (x.flatten(1) == 0.5).all(dim=1)
            classes = torch.where(clean, torch.tensor(0), torch.tensor(prediction))
            return nn.functional.one_hot(classes, 2).float() + 0 * x.flatten(1).sum(dim=1, keepdim=True)

        def forward_with_surrogate(self, x: Tensor) -> tuple[Tensor, Tensor]:
            bias = torch.tensor([1.0, -1.0]) * (5 if surrogate == 0 else -5)
            return self(x), bias - x.flatten(1)[:, :2]

    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "random_start": False}
    done = attack(Two(), x, y, **attack_settings, objective=OBJECTIVES["soft"].function)
    assert done.fooled.tolist() == [fooled] * 4
    assert done.first_success.tolist() == [1 if fooled else NEVER] * 4


# -- what counts as success --------------------------------------------------------------------------------------------


def test_an_image_counts_as_fooled_although_its_last_iterate_is_correct() -> None:
    class Band(nn.Module):
        """Misclassifies only if the pixel is between 0.5 and 0.6."""

        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)
            return torch.cat([(v - 0.55).abs(), torch.full_like(v, 0.05)], dim=1)

    def brightness_of(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return model(x), x.flatten(1).sum(dim=1)

    x, y = torch.tensor([0.45, 0.25, 0.80]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
    attack_settings: dict[str, Any] = {
        "eps": 0.3,
        "step_size": 0.1,
        "steps": 3,
        "random_start": False,
        "objective": brightness_of,
    }
    done = attack(Band(), x, y, **attack_settings)
    assert done.fooled.tolist() == [True, True, False]
    assert done.first_success.tolist() == [1, 3, NEVER]
    assert torch.allclose(
        done.images.flatten(), torch.tensor([0.55, 0.55, 1.0])
    )  # the iterate that fooled, or the last one
    last = pgd(Band(), x[:1], y[:1], **attack_settings)
    assert Band()(last).argmax(dim=1).item() == 0


def test_misclassified_clean_images_count_as_fooled_at_step_0_and_do_not_change(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, (digits.test.labels + 1) % 10
    done = attack(toy, x, y, eps=EPS, step_size=STEP, steps=3)
    mistakes = toy(x).argmax(dim=1) != y
    assert mistakes.sum() > 50
    assert done.fooled[mistakes].all()
    assert (done.first_success[mistakes] == 0).all()
    assert torch.equal(done.images[mistakes], x[mistakes])


def test_the_returned_images_are_misclassified_if_and_only_if_fooled(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    done = attack(toy, x, y, eps=EPS, step_size=STEP, steps=5, generator=rng())
    assert 10 < int(done.fooled.sum()) < 75
    assert torch.equal(toy(done.images).argmax(dim=1) != y, done.fooled)
    assert torch.equal(done.first_success != NEVER, done.fooled)


def test_one_step_of_attack_counts_fgsm_and_clean_mistakes(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    expected = (toy(fgsm(toy, x, y, eps=EPS)).argmax(dim=1) != y) | (toy(x).argmax(dim=1) != y)
    done = attack(toy, x, y, eps=EPS, step_size=EPS, steps=1, random_start=False)
    assert torch.equal(done.fooled, expected)


@pytest.mark.parametrize("random_start", [False, True])
def test_more_steps_fool_every_image_that_fewer_steps_fool(toy: ToyNet, digits: Dataset, random_start: bool) -> None:
    x, y = digits.test.images, digits.test.labels
    before = torch.zeros(len(y), dtype=torch.bool)
    counts = []
    for steps in (1, 2, 3, 6):
        attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": steps, "random_start": random_start}
        done = attack(toy, x, y, **attack_settings, generator=rng())
        assert not (before & ~done.fooled).any()
        assert int(done.first_success.max()) <= steps
        before = done.fooled
        counts.append(int(before.sum()))
    assert counts[-1] > counts[0]


def test_restarts_fool_every_image_that_one_start_fools_and_keep_its_steps(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "steps": 1}
    one = attack(toy, x, y, **attack_settings, generator=rng())
    many = attack(toy, x, y, **attack_settings, restarts=8, generator=rng())
    assert not (one.fooled & ~many.fooled).any()
    assert many.fooled.sum() > one.fooled.sum()
    assert torch.equal(many.first_success, one.first_success)


def plain_loop(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, restarts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """PGD without optimisation: every image takes every step."""
    fooled, first = model(x).argmax(dim=1) != y, torch.full_like(y, NEVER)
    first[fooled] = 0
    for restart in range(restarts):
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        current = (x + (2 * noise - 1) * EPS).clamp(0, 1)
        for step in range(steps + 1):
            current = current.detach().requires_grad_()
            logits = model(current)
            mistakes = logits.argmax(dim=1) != y
            if restart == 0:
                first[mistakes & (first == NEVER)] = step
            fooled |= mistakes
            (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, y, reduction="sum"), current)
            moved = current + STEP * gradient.sign()
            current = torch.minimum(torch.maximum(moved, x - EPS), x + EPS).clamp(0, 1)
    return fooled, first


def test_dropping_fooled_images_changes_no_outcome(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    fooled, first = plain_loop(model, x, y, 5, 2, rng(7))
    done = attack(model, x, y, eps=EPS, step_size=STEP, steps=5, restarts=2, generator=rng(7))
    assert torch.equal(done.fooled, fooled)
    assert torch.equal(done.first_success, first)
    assert len(first.unique()) > 3
    assert done.passes < len(x) * (1 + 2 * 6)  # some images left the batch early


def test_outcomes_do_not_depend_on_the_other_images(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "random_start": False}
    together = attack(model, x, y, **attack_settings)
    halves = [attack(model, a, b, **attack_settings) for a, b in zip(x.split(40), y.split(40), strict=True)]
    assert torch.equal(torch.cat([h.fooled for h in halves]), together.fooled)
    assert torch.equal(torch.cat([h.first_success for h in halves]), together.first_success)
    assert torch.allclose(torch.cat([h.images for h in halves]), together.images, atol=1e-12)
    assert sum(h.passes for h in halves) == together.passes


def test_passes_are_counted_per_image(linear: Linear) -> None:
    x, _ = images()
    y = linear(x).argmax(dim=1)
    sizes = []
    linear.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    done = attack(linear, x, y, eps=EPS, step_size=STEP, steps=3, restarts=2, generator=rng())
    assert sizes[:2] == [1, 2]  # the checks of the model
    assert done.passes == sum(sizes[2:])


def same_outcome(first: Attacked, second: Attacked) -> bool:
    """For networks in double precision, where the other images of the batch change no outcome."""
    return (
        torch.equal(first.fooled, second.fooled)
        and torch.equal(first.first_success, second.first_success)
        and torch.allclose(first.images, second.images, rtol=0, atol=1e-12)
    )


@pytest.mark.parametrize("options", [{"random_start": False}, {"restarts": 2}], ids=["clean start", "restarts"])
def test_outcomes_do_not_depend_on_the_batch_size(toy: ToyNet, digits: Dataset, options: dict[str, Any]) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    run = {"eps": EPS, "step_size": STEP, "steps": 4, **options}
    expected, *others = (attack(model, x, y, **run, generator=rng(3), batch_size=n) for n in (None, 1000, 7, 1))
    assert 10 < int(expected.fooled.sum()) < 75
    for other in others:
        assert same_outcome(other, expected)
        assert other.passes == expected.passes


@pytest.mark.parametrize("batch_size", [7, 30])
def test_a_batch_is_full_while_images_remain_and_never_too_large(toy: ToyNet, digits: Dataset, batch_size: int) -> None:
    model = copy.deepcopy(toy)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    x, y = digits.test.images, digits.test.labels
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "random_start": False}
    done = attack(Folded(model, model), x, y, **run, batch_size=batch_size)
    assert max(sizes) == batch_size
    assert sum(sizes) == done.passes
    steps = sizes[-(-len(x) // batch_size) :]  # without the pass of the clean images
    tail = next((i for i, size in enumerate(steps) if size < batch_size), len(steps))
    assert tail > 3
    assert steps[tail:] == sorted(steps[tail:], reverse=True)  # no image waits for a later batch


# -- the folded copy ---------------------------------------------------------------------------------------------------


def all_digits(digits: Dataset) -> Split:
    splits = (digits.train, digits.validation, digits.test)
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


def test_an_attack_through_a_folded_copy_has_the_outcomes_of_the_plain_loop(toy: ToyNet, digits: Dataset) -> None:
    data = all_digits(digits)
    x, y = data.images, data.labels
    folded = fold(toy, x)
    assert folded.network is not toy
    fooled, first = plain_loop(toy, x, y, 5, 2, rng(7))
    done = attack(folded, x, y, eps=EPS, step_size=STEP, steps=5, restarts=2, generator=rng(7))
    assert 50 < int(fooled.sum()) < 340
    # Rounding differs; it matters near a decision boundary and where the gradient is almost zero.
    assert int((done.fooled != fooled).sum()) <= len(x) // 200
    assert int((done.first_success != first).sum()) <= len(x) // 200
    assert misclassified(toy, done.images, y)[done.fooled].all()


def test_pgd_through_a_folded_copy_ends_at_the_same_pixels(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 10}
    copied = pgd(fold(toy, x), x, y, **attack_settings, generator=rng())
    original = pgd(Folded(toy, toy), x, y, **attack_settings, generator=rng())
    assert float((copied != original).float().mean()) < 0.01
    assert (copied - x).abs().max() <= EPS + 1e-6


def test_a_copy_is_made_for_long_attacks_only(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def folding(model: nn.Module, x: Tensor) -> Folded:
        made.append(len(x))
        return fold(model, x)

    monkeypatch.setattr(sys.modules["paperlib.attacks.pgd"], "fold", folding)  # the function pgd hides the module
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP}
    for call in (pgd, attack):
        call(toy, x, y, **attack_settings, steps=24)  # 80 x 24 < 2000
        assert made == []
        call(toy, x, y, **attack_settings, steps=25)
        call(fold(toy, x), x, y, **attack_settings, steps=25)
        assert made == [80]
        made.clear()
    attack(toy, x, y, **attack_settings, steps=5, restarts=5)
    assert made == [80]


class OffByOneClass(nn.Module):
    """A network with its classes shifted by one: it misclassifies what the network classifies correctly."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).roll(1, dims=1)


@pytest.mark.parametrize(
    "options", [{"random_start": False}, {"random_start": True, "restarts": 2}], ids=["clean start", "random start"]
)
def test_a_copy_that_misclassifies_changes_no_outcome(toy: ToyNet, digits: Dataset, options: dict[str, Any]) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    run = {"eps": EPS, "step_size": STEP, "steps": 4, **options}
    expected = attack(model, x, y, **run, generator=rng(3))
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    done = attack(Folded(model, OffByOneClass(model)), x, y, **run, generator=rng(3), batch_size=30)
    assert max(sizes) == 30
    assert 10 < int(expected.fooled.sum()) < 75
    assert same_outcome(done, expected)
    assert done.passes == sum(sizes) > expected.passes  # the passes of copy and model are counted


def test_fooled_images_fool_the_model_although_the_copy_differs(toy: ToyNet, digits: Dataset) -> None:
    different = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in different.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=rng()))
    x, y = digits.test.images, digits.test.labels
    done = attack(Folded(toy, different), x, y, eps=EPS, step_size=STEP, steps=5, restarts=2, generator=rng())
    assert not torch.equal(misclassified(different, done.images, y), misclassified(toy, done.images, y))
    assert 10 < int(done.fooled.sum()) < 75
    assert misclassified(toy, done.images, y)[done.fooled].all()


# -- memory ------------------------------------------------------------------------------------------------------------


class NoMemoryBackward(torch.autograd.Function):
    """The identity; memory runs out in the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class SmallMemory(nn.Module):
    """A network that raises an error of ``kind`` for more than ``room`` images."""

    def __init__(self, model: nn.Module, room: int, kind: str) -> None:
        super().__init__()
        self.model, self.room, self.kind = model, room, kind
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        assert len(self.sizes) < 5000  # stops an endless attack
        if len(x) > self.room:
            if self.kind == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.kind == "cpu":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            if self.kind == "windows":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
            if self.kind == "another":
                raise RuntimeError("expected scalar type Float but found Double")
            x = NoMemoryBackward.apply(x)
        return self.model(x)


@pytest.mark.parametrize(("kind", "batch_size"), [("gpu", None), ("cpu", 60), ("windows", None), ("backward", 60)])
def test_an_attack_continues_with_fewer_images_when_memory_runs_out(
    toy: ToyNet, digits: Dataset, kind: str, batch_size: int | None
) -> None:
    x, y = digits.test.images.double(), digits.test.labels
    model = copy.deepcopy(toy).double()
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3, "restarts": 2}
    small = SmallMemory(model, 9, kind)
    folded = Folded(model, small) if kind == "backward" else Folded(small, model)
    expected = attack(model, x, y, **run, generator=rng(3))
    done = attack(folded, x, y, **run, generator=rng(3), batch_size=batch_size)
    assert same_outcome(done, expected)
    size = folded.max_batch
    assert size is not None and 9 / 2 < size <= 9
    again = attack(folded, x, y, **run, generator=rng(3), batch_size=batch_size)
    assert same_outcome(again, expected)
    assert folded.max_batch == size  # stored for later attacks


def test_pgd_and_misclassified_continue_with_fewer_images_when_memory_runs_out(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images.double(), digits.test.labels
    model = copy.deepcopy(toy).double()
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3}
    expected = pgd(model, x, y, **run, generator=rng(3))
    for kind in ("gpu", "backward"):
        small = SmallMemory(model, 9, kind)
        folded = Folded(small, small)
        assert torch.allclose(pgd(folded, x, y, **run, generator=rng(3)), expected, rtol=0, atol=1e-12)
        assert folded.max_batch == 5  # 80, 40, 20, 10, 5
        assert small.sizes == [80, 40, 20, 10] + [5] * 16 * 3  # sizes that did not fit are not tried again
    small = SmallMemory(model, 9, "gpu")
    folded, mistakes = Folded(small, small), misclassified(model, x, y)
    assert torch.equal(misclassified(folded, x, y), mistakes)
    assert small.sizes == [80, 40, 20, 10] + [5] * 16
    assert torch.equal(misclassified(folded, x, y, batch_size=3), mistakes)
    assert max(small.sizes[20:]) == 3
    assert torch.equal(misclassified(small, x, y), mistakes)  # without a folded copy


def test_batches_are_halved_for_a_model_that_attack_folds_itself(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 30, "random_start": False}
    small = SmallMemory(toy, 9, "cpu")
    expected = attack(toy, x, y, **attack_settings)
    done = attack(small, x, y, **attack_settings)
    assert torch.equal(done.fooled, misclassified(toy, done.images, y))
    assert int((done.fooled != expected.fooled).sum()) <= 1
    # The checks with one image and two, the example of folding, and the batches that do not fit.
    assert small.sizes[:7] == [1, 2, 2, 80, 40, 20, 10]
    assert max(small.sizes[7:]) == 5
    assert sum(small.sizes[7:]) <= 2 * 80  # clean images and confirmations; the copy computes the steps


def all_calls(model: nn.Module, x: Tensor, y: Tensor) -> list[Callable[[], object]]:
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    return [
        lambda: pgd(Folded(model, model), x, y, **attack_settings),
        lambda: attack(Folded(model, model), x, y, **attack_settings),
        lambda: misclassified(model, x, y),
    ]


@pytest.mark.parametrize(("kind", "message"), [("gpu", "CUDA out of memory"), ("cpu", "can't allocate memory")])
def test_the_error_is_raised_if_not_even_one_image_fits(linear: Linear, kind: str, message: str) -> None:
    x, y = images()
    small = SmallMemory(linear, 0, kind)
    for call in all_calls(small, x, y):
        small.sizes.clear()
        with pytest.raises(RuntimeError, match=message):
            call()
        assert small.sizes == [6, 3, 1]


def test_an_error_not_about_memory_is_raised_at_once(linear: Linear) -> None:
    x, y = images()
    small = SmallMemory(linear, 2, "another")
    for call in all_calls(small, x, y):
        small.sizes.clear()
        with pytest.raises(RuntimeError, match="expected scalar type"):
            call()
        assert small.sizes == [6]


# -- progress ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("restarts", "batch_size", "folding"), [(1, None, False), (3, 7, True)])
def test_the_reported_progress_rises_to_1(
    toy: ToyNet, digits: Dataset, restarts: int, batch_size: int | None, folding: bool
) -> None:
    x, y = digits.test.images, digits.test.labels
    shares: list[float] = []
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 6, "restarts": restarts, "generator": rng()}
    attack(fold(toy, x) if folding else toy, x, y, **run, batch_size=batch_size, progress=shares.append)
    assert len(set(shares)) > 5
    assert 0 <= shares[0] < 0.5
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if restarts == 3:
        assert any(abs(share - 1 / 3) < 1e-9 for share in shares)  # the first restart is a third of the work


def test_the_reported_progress_never_falls_although_a_copy_misclassifies(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    shares: list[float] = []
    attack(Folded(toy, OffByOneClass(toy)), x, y, eps=EPS, step_size=STEP, steps=6, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_results_are_a_function_of_the_seed(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    first, again, other = (pgd(toy, x, y, **attack_settings, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    a, b = (attack(toy, x, y, **attack_settings, restarts=2, generator=rng(1)) for _ in range(2))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.first_success, b.first_success)


def test_without_a_generator_torchs_global_generator_is_used(linear: Linear) -> None:
    x, y = images()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pgd(linear, x, y, eps=EPS, step_size=0, steps=1))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# -- the model and the images do not change ----------------------------------------------------------------------------


def model_in_training() -> nn.Module:
    """A network in training: mixed modes, some gradients, one frozen parameter."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.Linear(16, 3),
    )
    model.train()
    model[1].eval()
    model[4].eval()
    model(torch.rand(8, 1, 2, 2)).sum().backward()
    model[0].bias.grad = None
    model[5].bias.requires_grad_(False)
    return model


def calls() -> list[Callable[..., object]]:
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3}
    return [
        lambda model, x, y, **kw: fgsm(model, x, y, eps=EPS, **kw),
        lambda model, x, y, **kw: pgd(model, x, y, **attack_settings, **kw),
        lambda model, x, y, **kw: attack(model, x, y, **attack_settings, restarts=2, **kw),
    ]


@pytest.mark.parametrize("call", calls(), ids=["fgsm", "pgd", "attack"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_an_attack_changes_nothing_in_the_model(call: Callable[..., object], fails: bool) -> None:
    model = model_in_training()
    before = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    parameters = dict(model.named_parameters())
    gradients = {name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in parameters.items()}
    modes_during = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        modes_during.append([module.training for module in model.modules()])
        if fails:
            raise RuntimeError("in the middle")
        return cross_entropy(model, x, y)

    x, y = images()
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            call(model, x, y, objective=objective)
    else:
        call(model, x, y, objective=objective)
    assert modes_during
    assert not any(map(any, modes_during))  # evaluation mode
    assert [module.training for module in model.modules()] == modes
    assert same_state(model, before)
    assert [p.requires_grad for p in model.parameters()] == [p.requires_grad for p in before.parameters()]
    for name, expected in gradients.items():
        now = parameters[name].grad
        if expected is None:
            assert now is None
        else:
            assert now is expected[0]
            assert torch.equal(now, expected[1])


def test_eval_mode_restores_the_modes() -> None:
    model = model_in_training()
    modes = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_an_attack_works_inside_no_grad_and_on_frozen_parameters(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    attack_settings: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "random_start": False}
    expected, outcome = pgd(toy, x, y, **attack_settings), attack(toy, x, y, **attack_settings)
    with torch.no_grad():
        assert torch.equal(pgd(toy, x, y, **attack_settings), expected)
        assert torch.equal(attack(toy, x, y, **attack_settings).first_success, outcome.first_success)
        assert not torch.is_grad_enabled()
    frozen = copy.deepcopy(toy).requires_grad_(False)
    assert torch.equal(pgd(frozen, x, y, **attack_settings), expected)
    assert torch.equal(attack(frozen, x, y, **attack_settings).first_success, outcome.first_success)


@pytest.mark.parametrize("call", calls(), ids=["fgsm", "pgd", "attack"])
def test_images_do_not_change_and_results_have_no_graph(linear: Linear, call: Callable[..., object]) -> None:
    x, y = images()
    argument = x.clone().requires_grad_()
    result = call(linear, argument, y)
    adversarial = result if isinstance(result, Tensor) else result.images  # type: ignore[attr-defined]
    assert not adversarial.requires_grad
    assert argument.grad is None
    assert torch.equal(argument, x)
    assert not torch.equal(adversarial, x)


# -- errors ------------------------------------------------------------------------------------------------------------


BAD_SETTINGS: list[tuple[str, object, str]] = [
    ("eps", "8", "8/255"),
    ("eps", float("nan"), "eps"),
    ("step_size", 2, "step_size"),
    ("steps", 0, "steps"),
    ("steps", 2.5, "steps"),
    ("steps", "10", "steps"),
    ("steps", True, "steps"),
    ("restarts", 0, "restarts"),
    ("restarts", 1.5, "restarts"),
    ("norm", "L2", "norm"),
    ("batch_size", 0, "batch_size"),
    ("batch_size", 2.5, "batch_size"),
    ("x", torch.full((6, 1, 2, 2), 2.0), "images"),
    ("y", torch.zeros(5, dtype=torch.int64), "labels"),
    ("y", torch.full((6,), 3), "labels"),
    ("y", torch.full((6,), -100), "labels"),  # torch's cross-entropy ignores -100
]


def test_a_bad_setting_is_an_input_error_that_names_it(linear: Linear) -> None:
    x, y = images()
    for setting, value, message in BAD_SETTINGS:
        arguments: dict[str, Any] = {"x": x, "y": y, "eps": EPS, "step_size": STEP, "steps": 2, setting: value}
        if setting != "norm":
            with pytest.raises(InputError, match=message):
                attack(linear, **arguments)
        if setting not in ("restarts", "batch_size"):
            with pytest.raises(InputError, match=message):
                pgd(linear, **arguments)


def test_images_with_nan_are_refused(linear: Linear) -> None:
    x, y = images()
    with pytest.raises(NotFiniteError, match="images"):
        fgsm(linear, x / 0, y, eps=EPS)


class WithNan(nn.Module):
    """A linear model with NaN in its logits or gradient (``where``), if the mean pixel is above ``beyond``."""

    def __init__(self, linear: Linear, where: str, beyond: float = -1.0) -> None:
        super().__init__()
        self.linear, self.where, self.beyond = linear, where, beyond

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x)
        if float(x.detach().mean()) <= self.beyond:
            return logits
        if self.where == "logits":
            return logits * float("nan")
        pixels = NanGradient.apply(x) if self.where == "gradient" else NanGradient.apply(x[:, :, :1, :1])
        return logits + pixels.sum()


@pytest.mark.parametrize("where", ["logits", "gradient", "one pixel's gradient"])
def test_nan_from_the_model_is_an_error_and_never_counts_as_robust(linear: Linear, where: str) -> None:
    x, _ = images()
    y = linear(x).argmax(dim=1)
    for steps in (1, 3):
        run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": steps, "random_start": False}
        for call in (pgd, attack):
            with pytest.raises(NotFiniteError, match="NaN"):
                call(WithNan(linear, where), x, y, **run)


@pytest.mark.parametrize("where", ["logits", "gradient"])
def test_nan_in_a_later_step_is_an_error(linear: Linear, where: str) -> None:
    def brighter(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return logits, logits.sum(dim=1) * 0 + x.flatten(1).sum(dim=1)

    x = torch.full((2, 1, 2, 2), 0.5)
    y = linear(x).argmax(dim=1)
    model = WithNan(linear, where, beyond=0.501)  # finite for the clean images
    attack_settings: dict[str, Any] = {
        "eps": 0.01,
        "step_size": 0.004,
        "steps": 3,
        "random_start": False,
        "objective": brighter,
    }
    for call in (pgd, attack):
        with pytest.raises(NotFiniteError, match="NaN"):
            call(model, x, y, **attack_settings)


# -- foolbox -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foolbox() -> Any:
    return pytest.importorskip("foolbox")


def test_fgsm_equals_that_of_foolbox(foolbox: Any, toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    theirs_model = foolbox.PyTorchModel(toy, bounds=(0, 1), device="cpu")
    _, theirs, _ = foolbox.attacks.LinfFastGradientAttack(random_start=False)(theirs_model, x, y, epsilons=EPS)
    assert torch.allclose(fgsm(toy, x, y, eps=EPS), theirs, atol=1e-6)


def test_pgd_agrees_with_foolbox(foolbox: Any, toy: ToyNet, digits: Dataset) -> None:
    eps = EPS
    x, y = digits.test.images, digits.test.labels
    theirs_model = foolbox.PyTorchModel(toy, bounds=(0, 1), device="cpu")
    run = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=10, random_start=False)
    _, theirs, fooled = run(theirs_model, x, y, epsilons=eps)
    attack_settings: dict[str, Any] = {"eps": eps, "step_size": eps / 4, "steps": 10, "random_start": False}
    ours = pgd(toy, x, y, **attack_settings)
    same = ((ours - theirs).abs() < 1e-6).float().mean()
    assert same > 0.99
    robust, counted = (
        float((~fooled).float().mean()),
        float((~attack(toy, x, y, **attack_settings).fooled).float().mean()),
    )
    # foolbox counts the last iterate only, `attack` counts any iterate, so it never counts fewer.
    assert robust - 0.02 <= counted <= robust


@pytest.mark.parametrize(("every", "batch_size"), [(3, 20), (4, 60), (7, 20)])
def test_less_frequent_synchronisation_changes_no_outcome(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, every: int, batch_size: int
) -> None:
    # On a GPU the CPU reads only in some steps which images are finished.
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images[:60].double(), digits.test.labels[:60]
    run: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "restarts": 2, "batch_size": batch_size}
    expected = attack(model, x, y, **run, generator=rng(3))
    monkeypatch.setitem(SYNC_EVERY, "cpu", every)
    done = attack(model, x, y, **run, generator=rng(3))
    assert torch.equal(done.first_success, expected.first_success)
    assert torch.equal(done.fooled, expected.fooled)
    assert torch.equal(done.images, expected.images)
    assert expected.passes <= done.passes < 3 * expected.passes


def test_an_l2_attack_works_with_a_gradient_whose_square_underflows() -> None:
    w = torch.tensor([40.0, -30.0, 20.0, 35.0])
    model, x = Linear(torch.stack([w, -w])), torch.full((1, 1, 2, 2), 0.5)
    y = torch.tensor([0])  # the logits differ by 65, so the gradient is about 1e-27
    adversarial = pgd(model, x, y, eps=0.3, step_size=0.05, steps=10, random_start=False, norm="l2")
    assert float((adversarial - x).norm()) == pytest.approx(0.3, rel=1e-4)
