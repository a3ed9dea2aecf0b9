"""The gradient loop against its equations, against plain loops, against foolbox, and against bad company."""

from __future__ import annotations

import copy
import math
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
from paperlib.attacks import pgd as gradient
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.models.modes import eval_mode

EPS, STEP = 0.1, 0.025


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 6, seed: int = 5) -> tuple[Tensor, Tensor]:
    """Pixels at 0 and at 1 among them, so that clipping matters."""
    x = (torch.rand(n, 1, 2, 2, generator=rng(seed)) * 1.6 - 0.3).clamp(0, 1)
    return x, torch.arange(n) % 3


class Nan(torch.autograd.Function):
    """Zero going forward, NaN coming back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(gradient, float("nan"))


# -- the equations ---------------------------------------------------------------------------------------------------


def test_fgsm_is_its_closed_form_on_a_linear_model(linear: Linear) -> None:
    x, y = images()
    weight, bias = linear.weight.detach(), linear.bias.detach()
    p = torch.softmax(x.flatten(1) @ weight.T + bias, dim=1)
    # L = -log p_y with p = softmax(W x + b), so grad_x L = W^T (p - onehot(y))
    gradient = (p - nn.functional.one_hot(y, 3)) @ weight
    expected = (x + EPS * gradient.sign().view_as(x)).clamp(0, 1)
    assert gradient.abs().min() > 1e-4  # no sign hangs on rounding
    assert torch.equal(fgsm(linear, x, y, eps=EPS), expected)


def test_pgd_reaches_the_corner_that_is_optimal_on_a_linear_binary_model() -> None:
    w = torch.tensor([0.7, -1.2, 0.4, -0.5])
    model = Linear(torch.stack([w, -w]))
    x, _ = images(20)
    y = torch.arange(20) % 2
    # Class 0 loses margin along -w, class 1 along +w; the worst point of the ball is the corner there, clipped.
    away = torch.where(y[:, None] == 0, -w.sign(), w.sign()).view_as(x)
    found = pgd(model, x, y, eps=EPS, step_size=STEP, steps=9, generator=rng())
    assert torch.allclose(found, (x + EPS * away).clamp(0, 1), atol=1e-7)


def test_fgsm_is_one_full_step_of_pgd(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    one = pgd(toy, x, y, eps=EPS, step_size=EPS, steps=1, random_start=False)
    assert torch.equal(fgsm(toy, x, y, eps=EPS), one)
    assert not torch.equal(one, x)


def test_attacks_move_along_the_gradient_and_not_against_it(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    with torch.no_grad():
        before, after = (nn.functional.cross_entropy(toy(z), y) for z in (x, fgsm(toy, x, y, eps=EPS)))
        further = nn.functional.cross_entropy(
            toy(pgd(toy, x, y, eps=EPS, step_size=STEP, steps=20, generator=rng())), y
        )
    assert before < after < further


def test_random_starts_fill_the_ball(linear: Linear) -> None:
    x, y = torch.full((500, 1, 2, 2), 0.5), torch.zeros(500, dtype=torch.int64)
    start = pgd(linear, x, y, eps=EPS, step_size=0, steps=1, generator=rng())
    moves = (start - x).flatten() / EPS
    assert -1 <= moves.min() < -0.98
    assert 0.98 < moves.max() <= 1
    assert abs(float(moves.mean())) < 0.05
    assert abs(float(moves.std()) - 3**-0.5) < 0.02  # of the uniform distribution on [-1, 1]


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eps=st.floats(0, 1),
    step=st.floats(0, 1),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    restarts=st.integers(1, 2),
    seed=st.integers(0, 2**31),
)
def test_every_image_stays_in_the_ball_and_in_the_box(
    linear: Linear, eps: float, step: float, steps: int, random_start: bool, restarts: int, seed: int
) -> None:
    x, y = images(seed=seed)
    budget: dict[str, Any] = {"eps": eps, "step_size": step, "steps": steps, "random_start": random_start}
    last = pgd(linear, x, y, **budget, generator=rng(seed))
    found = attack(linear, x, y, **budget, restarts=restarts, generator=rng(seed)).images
    for adversarial in (last, found):
        assert adversarial.shape == x.shape
        assert float((adversarial - x).abs().max()) <= eps + 1e-6
        assert 0 <= float(adversarial.min()) <= float(adversarial.max()) <= 1


def test_budgets_may_be_text_or_fractions(linear: Linear) -> None:
    x, y = images()
    expected = fgsm(linear, x, y, eps=8 / 255)
    assert torch.equal(fgsm(linear, x, y, eps="8/255"), expected)
    assert torch.equal(fgsm(linear, x, y, eps=Fraction(8, 255)), expected)


# -- the Euclidean ball, other starts, other targets -------------------------------------------------------------------


def lengths(offsets: Tensor) -> Tensor:
    return offsets.flatten(1).double().square().sum(dim=1).sqrt()


def test_one_l2_step_is_its_closed_form_on_a_linear_model(linear: Linear) -> None:
    x, y = torch.rand(6, 1, 2, 2, generator=rng(5)) * 0.6 + 0.2, torch.arange(6) % 3  # nothing to clip
    weight, bias = linear.weight.detach(), linear.bias.detach()
    p = torch.softmax(x.flatten(1) @ weight.T + bias, dim=1)
    g = (p - nn.functional.one_hot(y, 3)) @ weight
    forward_route = (g / g.square().sum(dim=1, keepdim=True).sqrt()).view_as(x)
    how: dict[str, Any] = {"steps": 1, "random_start": False, "norm": "l2"}
    assert torch.allclose(pgd(linear, x, y, eps=EPS, step_size=STEP, **how), x + STEP * forward_route, atol=1e-6)
    # A step beyond the ball ends on its surface, in the same direction.
    assert torch.allclose(pgd(linear, x, y, eps=EPS, step_size=2 * EPS, **how), x + EPS * forward_route, atol=1e-6)


def test_l2_pgd_reaches_the_point_that_is_optimal_on_a_linear_binary_model() -> None:
    w = torch.tensor([0.7, -1.2, 0.4, -0.5])
    x, y = torch.rand(20, 1, 2, 2, generator=rng(5)) * 0.6 + 0.2, torch.arange(20) % 2
    away = torch.where(y[:, None] == 0, -w, w).view_as(x) / w.norm()
    how: dict[str, Any] = {"eps": EPS, "step_size": EPS, "steps": 60, "norm": "l2"}
    found = pgd(Linear(torch.stack([w, -w])), x, y, **how, generator=rng())
    assert torch.allclose(found, x + EPS * away, atol=1e-5)


def test_random_l2_starts_fill_the_ball(linear: Linear) -> None:
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


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    eps=st.floats(0, 1),
    step=st.floats(0, 1),
    steps=st.integers(1, 4),
    random_start=st.booleans(),
    far=st.none() | st.floats(0, 3),
    seed=st.integers(0, 2**31),
)
def test_every_image_stays_in_the_l2_ball_and_in_the_box(
    linear: Linear, eps: float, step: float, steps: int, random_start: bool, far: float | None, seed: int
) -> None:
    x, y = images(seed=seed)
    start = None if far is None else x + far * torch.randn(x.shape, generator=rng(seed))
    how: dict[str, Any] = {"eps": eps, "step_size": step, "steps": steps, "random_start": random_start, "norm": "l2"}
    found = pgd(linear, x, y, **how, start=start, generator=rng(seed))
    assert found.shape == x.shape
    assert float(lengths(found - x).max()) <= eps + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


@settings(max_examples=60)
@given(
    eps=st.floats(0, 1),
    norm=st.sampled_from(["linf", "l2"]),
    offset=st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4),
)
def test_projection_is_into_the_ball_and_leaves_what_is_inside(eps: float, norm: str, offset: list[float]) -> None:
    how = gradient._How(eps, STEP, 1, cross_entropy, 1, norm)
    x, moved = torch.full((1, 1, 2, 2), 0.5), 0.5 + torch.tensor(offset).view(1, 1, 2, 2)
    found = how.project(x, moved)
    size = (lambda z: float(lengths(z))) if norm == "l2" else (lambda z: float(z.abs().max()))
    assert size(found - x) <= eps + 1e-6
    assert 0 <= float(found.min()) <= float(found.max()) <= 1
    if size(moved - x) <= min(eps, 0.5):
        assert torch.allclose(found, moved, atol=1e-6)
    assert torch.allclose(how.project(x, found), found, atol=1e-6)  # once is enough


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_start_is_moved_into_the_ball_and_begun_at(linear: Linear, norm: str) -> None:
    x, y = images()
    how: dict[str, Any] = {"eps": EPS, "step_size": 0, "steps": 1, "norm": norm}
    near = (x + 0.02 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    assert torch.allclose(pgd(linear, x, y, **how, start=near), near, atol=1e-6)
    far = x + torch.tensor([3.0, -3.0, 0.0, 0.04]).view(1, 1, 2, 2)
    if norm == "linf":
        expected = x + torch.tensor([EPS, -EPS, 0.0, 0.04]).view(1, 1, 2, 2)
    else:
        expected = x + (far - x) / lengths(far - x).float().view(-1, 1, 1, 1) * EPS
    seen: list[Tensor] = []

    def watched(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(x.detach().clone())
        return cross_entropy(model, x, y)

    found = pgd(linear, x, y, **how, start=far, objective=watched)
    for iterate in (seen[0], found):  # the model is never asked about anything outside
        assert torch.allclose(iterate, expected.clamp(0, 1), atol=1e-6)
    for random_start in (False, True):  # a start that is given is used, and no other is drawn
        generator = rng()
        pgd(linear, x, y, **how, start=near, random_start=random_start, generator=generator)
        assert torch.equal(generator.get_state(), rng().get_state())


def towards(model: nn.Module, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Climbs towards an image of its own for each image."""
    return model(x), -(x - wanted).square().flatten(1).sum(dim=1)


@pytest.mark.parametrize("room", [None, 1, 4, 6])
def test_each_image_keeps_its_target_in_whatever_parts_they_are_attacked(linear: Linear, room: int | None) -> None:
    x, y = images(10)
    wanted = torch.rand(x.shape, generator=rng(8))
    how: dict[str, Any] = {"eps": EPS, "step_size": EPS, "steps": 1, "random_start": False, "objective": towards}
    found = pgd(Folded(linear, linear, max_batch=room), x, y, **how, targets=wanted)
    assert torch.allclose(found, (x + EPS * (wanted - x).sign()).clamp(0, 1))


def test_each_image_keeps_its_target_and_start_when_memory_runs_out(linear: Linear) -> None:
    x, y = images(10)
    wanted, start = (torch.rand(x.shape, generator=rng(seed)) for seed in (8, 9))
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "objective": towards, "start": start}
    cramped = Cramped(linear, 3, "cpu")
    found = pgd(cramped, x, y, **how, targets=wanted)
    assert cramped.sizes[:5] == [1, 2, 10, 5, 2]  # one image and two to see what the model is, then what did not fit
    assert torch.equal(found, pgd(linear, x, y, **how, targets=wanted))


def test_without_targets_the_objective_gets_the_labels(linear: Linear) -> None:
    x, y = images()
    given_targets: list[Tensor] = []

    def objective(model: nn.Module, x: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
        given_targets.append(wanted)
        return cross_entropy(model, x, wanted)

    pgd(linear, x, y, eps=EPS, step_size=STEP, steps=1, objective=objective)
    assert torch.equal(given_targets[0], y)


# -- other aims ------------------------------------------------------------------------------------------------------


def softmax(row: list[float]) -> list[float]:
    powers = [math.exp(v) for v in row]
    return [power / sum(powers) for power in powers]


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(softmax(p), softmax(q), strict=True))


def test_the_divergence_is_kl_from_the_clean_answer(linear: Linear) -> None:
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


class Choosing(nn.Module):
    """Two linear experts and a router that picks one; the stand-in mixes their probabilities."""

    def __init__(self, first: Tensor, second: Tensor, router: Tensor) -> None:
        super().__init__()
        self.first, self.second, self.router = Linear(first), Linear(second), Linear(router)

    def forward(self, x: Tensor) -> Tensor:
        one = self.router(x).argmax(dim=1, keepdim=True) == 0
        return torch.where(one, self.first(x), self.second(x))

    def forward_with_surrogate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shares = torch.softmax(self.router(x), dim=1).unsqueeze(2)
        each = torch.stack([torch.softmax(expert(x), dim=1) for expert in (self.first, self.second)], dim=1)
        return self(x), (shares * each).sum(dim=1).log()


def test_the_routed_divergence_adds_that_of_the_router() -> None:
    model = Choosing(*(torch.randn(n, 4, generator=rng(n)) for n in (3, 3, 2)))
    x, y = images()
    moved = (x + 0.2 * torch.randn(x.shape, generator=rng())).clamp(0, 1)
    objective = OBJECTIVES["routed divergence"]
    assert objective.targets is not None
    logits, values = objective.function(model, moved, objective.targets(model, x, y))
    assert torch.equal(logits, model(moved))
    pairs = [zip(part(x).tolist(), part(moved).tolist(), strict=True) for part in (model, model.router)]
    expected = [kl(*answer) + kl(*route) for answer, route in zip(*pairs, strict=True)]
    assert values.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_the_divergence_is_finite_however_far_apart_answers_are() -> None:
    model = Linear(torch.tensor([[1e4, 0, 0, 0], [-1e4, 0, 0, 0]]))
    targets = torch.log_softmax(torch.tensor([[-1e4, 1e4]]), dim=1)
    x = torch.full((1, 1, 2, 2), 0.5, requires_grad=True)
    _, values = OBJECTIVES["divergence"].objective(model, x, targets)
    assert values.tolist() == pytest.approx([1e4])
    assert torch.isfinite(torch.autograd.grad(values.sum(), x)[0]).all()


def test_the_stand_in_leads_where_the_choice_gives_no_gradient() -> None:
    # Both experts ignore the image; the first is right, the second wrong, and the first pixel decides between them.
    flat, first_pixel = torch.zeros(2, 4), torch.tensor([[-4.0, 0, 0, 0], [4.0, 0, 0, 0]])
    model = Choosing(flat, flat, first_pixel)
    with torch.no_grad():
        model.first.bias.copy_(torch.tensor([1.0, -1.0]))
        model.second.bias.copy_(torch.tensor([-1.0, 1.0]))
        model.router.bias.copy_(torch.tensor([2.2, -2.2]))  # the second from 0.55 on
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.int64)
    how: dict[str, Any] = {"eps": 0.2, "step_size": 0.02, "steps": 6, "random_start": False}
    assert not attack(model, x, y, **how).fooled.any()
    done = attack(model, x, y, **how, objective=OBJECTIVES["soft"].objective)
    assert done.first_success.tolist() == [3] * 3  # 0.50, 0.52, 0.54, 0.56
    assert misclassified(model, done.images, y).all()


@pytest.mark.parametrize(("answer", "stand_in", "fooled"), [(0, 1, False), (1, 0, True)])
def test_success_is_read_off_the_answer_and_not_off_the_stand_in(answer: int, stand_in: int, fooled: bool) -> None:
    class Two(nn.Module):
        """Answers one class whatever the image (where it is off the clean image); its stand-in says another."""

        def forward(self, x: Tensor) -> Tensor:
            clean = (x.flatten(1) == 0.5).all(dim=1)
            said = torch.where(clean, torch.tensor(0), torch.tensor(answer))
            return nn.functional.one_hot(said, 2).float() + 0 * x.flatten(1).sum(dim=1, keepdim=True)

        def forward_with_surrogate(self, x: Tensor) -> tuple[Tensor, Tensor]:
            tilt = torch.tensor([1.0, -1.0]) * (5 if stand_in == 0 else -5)
            return self(x), tilt - x.flatten(1)[:, :2]

    x, y = torch.full((4, 1, 2, 2), 0.5), torch.zeros(4, dtype=torch.int64)
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "random_start": False}
    done = attack(Two(), x, y, **how, objective=OBJECTIVES["soft"].objective)
    assert done.fooled.tolist() == [fooled] * 4
    assert done.first_success.tolist() == [1 if fooled else NEVER] * 4


# -- what counts as success ------------------------------------------------------------------------------------------


def test_a_success_counts_although_the_last_iterate_is_right_again() -> None:
    class Band(nn.Module):
        """Wrong only where the pixel is between 0.5 and 0.6."""

        def forward(self, x: Tensor) -> Tensor:
            v = x.flatten(1)
            return torch.cat([(v - 0.55).abs(), torch.full_like(v, 0.05)], dim=1)

    def rightwards(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return model(x), x.flatten(1).sum(dim=1)

    x, y = torch.tensor([0.45, 0.25, 0.80]).view(3, 1, 1, 1), torch.zeros(3, dtype=torch.int64)
    how: dict[str, Any] = {"eps": 0.3, "step_size": 0.1, "steps": 3, "random_start": False, "objective": rightwards}
    done = attack(Band(), x, y, **how)
    assert done.fooled.tolist() == [True, True, False]
    assert done.first_success.tolist() == [1, 3, NEVER]
    assert torch.allclose(done.images.flatten(), torch.tensor([0.55, 0.55, 1.0]))  # as they were when it won, or last
    last = pgd(Band(), x[:1], y[:1], **how)
    assert Band()(last).argmax(dim=1).item() == 0


def test_images_already_wrong_count_as_fooled_at_step_0_and_are_left_alone(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, (digits.test.labels + 1) % 10
    done = attack(toy, x, y, eps=EPS, step_size=STEP, steps=3)
    wrong = toy(x).argmax(dim=1) != y
    assert wrong.sum() > 50
    assert done.fooled[wrong].all()
    assert (done.first_success[wrong] == 0).all()
    assert torch.equal(done.images[wrong], x[wrong])


def test_fooled_images_really_fool_and_the_others_do_not(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    done = attack(toy, x, y, eps=EPS, step_size=STEP, steps=5, generator=rng())
    assert 10 < int(done.fooled.sum()) < 75
    assert torch.equal(toy(done.images).argmax(dim=1) != y, done.fooled)
    assert torch.equal(done.first_success != NEVER, done.fooled)


def test_fgsm_as_an_evaluation_is_fgsm_or_a_clean_mistake(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    wrong = (toy(fgsm(toy, x, y, eps=EPS)).argmax(dim=1) != y) | (toy(x).argmax(dim=1) != y)
    done = attack(toy, x, y, eps=EPS, step_size=EPS, steps=1, random_start=False)
    assert torch.equal(done.fooled, wrong)


@pytest.mark.parametrize("random_start", [False, True])
def test_more_steps_fool_all_that_fewer_fool(toy: ToyNet, digits: Dataset, random_start: bool) -> None:
    x, y = digits.test.images, digits.test.labels
    before = torch.zeros(len(y), dtype=torch.bool)
    counts = []
    for steps in (1, 2, 3, 6):
        how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": steps, "random_start": random_start}
        done = attack(toy, x, y, **how, generator=rng())
        assert not (before & ~done.fooled).any()
        assert int(done.first_success.max()) <= steps
        before = done.fooled
        counts.append(int(before.sum()))
    assert counts[-1] > counts[0]


def test_restarts_fool_all_that_one_start_fools_and_report_its_steps(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": EPS / 2, "steps": 1}
    one = attack(toy, x, y, **how, generator=rng())
    many = attack(toy, x, y, **how, restarts=8, generator=rng())
    assert not (one.fooled & ~many.fooled).any()
    assert many.fooled.sum() > one.fooled.sum()
    assert torch.equal(many.first_success, one.first_success)


def plain_loop(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, restarts: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """As the paper would write it: every image takes every step, and nothing is clever."""
    fooled, first = model(x).argmax(dim=1) != y, torch.full_like(y, NEVER)
    first[fooled] = 0
    for restart in range(restarts):
        noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
        current = (x + (2 * noise - 1) * EPS).clamp(0, 1)
        for step in range(steps + 1):
            current = current.detach().requires_grad_()
            logits = model(current)
            wrong = logits.argmax(dim=1) != y
            if restart == 0:
                first[wrong & (first == NEVER)] = step
            fooled |= wrong
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
    assert done.passes < len(x) * (1 + 2 * 6)  # something was dropped


def test_outcomes_do_not_depend_on_the_company_in_the_batch(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "random_start": False}
    whole = attack(model, x, y, **how)
    halves = [attack(model, a, b, **how) for a, b in zip(x.split(40), y.split(40), strict=True)]
    assert torch.equal(torch.cat([h.fooled for h in halves]), whole.fooled)
    assert torch.equal(torch.cat([h.first_success for h in halves]), whole.first_success)
    assert torch.allclose(torch.cat([h.images for h in halves]), whole.images, atol=1e-12)
    assert sum(h.passes for h in halves) == whole.passes


def test_passes_are_counted_per_image(linear: Linear) -> None:
    x, _ = images()
    y = linear(x).argmax(dim=1)
    asked = []
    linear.register_forward_hook(lambda module, args, out: asked.append(len(args[0])))
    done = attack(linear, x, y, eps=EPS, step_size=STEP, steps=3, restarts=2, generator=rng())
    assert asked[:2] == [1, 2]  # to see what the model is
    assert done.passes == sum(asked[2:])


def same_outcome(first: Attacked, second: Attacked) -> bool:
    """For networks in double precision, where the company an image has in its batch changes no outcome."""
    return (
        torch.equal(first.fooled, second.fooled)
        and torch.equal(first.first_success, second.first_success)
        and torch.allclose(first.images, second.images, rtol=0, atol=1e-12)
    )


@pytest.mark.parametrize("how", [{"random_start": False}, {}, {"restarts": 3}], ids=["still", "random", "restarts"])
def test_outcomes_do_not_depend_on_the_batch_size(toy: ToyNet, digits: Dataset, how: dict[str, Any]) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    how |= {"eps": EPS, "step_size": STEP, "steps": 4}
    whole, *others = (attack(model, x, y, **how, generator=rng(3), batch_size=size) for size in (None, 80, 1000, 7, 1))
    assert 10 < int(whole.fooled.sum()) < 75
    for other in others:
        assert same_outcome(other, whole)
        assert other.passes == whole.passes


@pytest.mark.parametrize("batch_size", [1, 7, 30])
def test_a_batch_is_full_while_images_wait_and_never_overfull(toy: ToyNet, digits: Dataset, batch_size: int) -> None:
    model = copy.deepcopy(toy)
    sizes: list[int] = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "random_start": False}
    done = attack(Folded(model, model), x, y, **how, batch_size=batch_size)
    assert max(sizes) == batch_size
    assert sum(sizes) == done.passes
    steps = sizes[-(-len(x) // batch_size) :]  # behind the first look at all images
    tail = next((i for i, size in enumerate(steps) if size < batch_size), len(steps))
    assert tail > 3
    assert steps[tail:] == sorted(steps[tail:], reverse=True)  # no image is held back for a later batch


# -- the folded copy -------------------------------------------------------------------------------------------------


def all_digits(digits: Dataset) -> Split:
    splits = (digits.train, digits.validation, digits.test)
    return Split(torch.cat([s.images for s in splits]), torch.cat([s.labels for s in splits]))


@pytest.mark.parametrize("restarts", [1, 2])
def test_a_folded_copy_leads_to_the_outcomes_of_the_plain_loop(toy: ToyNet, digits: Dataset, restarts: int) -> None:
    data = all_digits(digits)
    x, y = data.images, data.labels
    folded = fold(toy, x)
    assert folded.network is not toy
    fooled, first = plain_loop(toy, x, y, 10, restarts, rng(7))
    done = attack(folded, x, y, eps=EPS, step_size=STEP, steps=10, restarts=restarts, generator=rng(7))
    assert 50 < int(fooled.sum()) < 340
    # The two differ by rounding, which only matters at the border of a class or where a gradient is all but zero.
    assert int((done.fooled != fooled).sum()) <= len(x) // 200
    assert int((done.first_success != first).sum()) <= len(x) // 200
    assert misclassified(toy, done.images, y)[done.fooled].all()


def test_a_folded_copy_leads_pgd_to_the_same_pixels(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 10}
    found = pgd(fold(toy, x), x, y, **how, generator=rng())
    as_it_is = pgd(Folded(toy, toy), x, y, **how, generator=rng())
    assert float((found != as_it_is).float().mean()) < 0.01
    assert (found - x).abs().max() <= EPS + 1e-6


def test_a_copy_is_made_where_it_pays(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def folding(model: nn.Module, x: Tensor) -> Folded:
        made.append(len(x))
        return fold(model, x)

    monkeypatch.setattr("paperlib.attacks.pgd.fold", folding)
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP}
    for call in (pgd, attack):
        call(toy, x, y, **how, steps=24)  # 80 x 24 < 2000
        assert made == []
        call(toy, x, y, **how, steps=25)
        call(fold(toy, x), x, y, **how, steps=25)
        assert made == [80]
        made.clear()
    attack(toy, x, y, **how, steps=5, restarts=5)
    assert made == [80]


class Shifted(nn.Module):
    """Says of each image what the network says of another class: claims that what is right is wrong."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x).roll(1, dims=1)


@pytest.mark.parametrize(
    "how", [{"random_start": False}, {"random_start": True, "restarts": 2}], ids=["still", "random"]
)
def test_a_copy_that_cries_wolf_changes_no_outcome(toy: ToyNet, digits: Dataset, how: dict[str, Any]) -> None:
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images.double(), digits.test.labels
    how |= {"eps": EPS, "step_size": STEP, "steps": 4}
    plain = attack(model, x, y, **how, generator=rng(3))
    asked: list[int] = []
    model.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    misled = attack(Folded(model, Shifted(model)), x, y, **how, generator=rng(3), batch_size=30)
    assert max(asked) == 30
    assert 10 < int(plain.fooled.sum()) < 75
    assert same_outcome(misled, plain)
    assert misled.passes == sum(asked) > plain.passes  # both looks are counted


def test_images_said_to_fool_do_fool_whatever_the_copy_says(toy: ToyNet, digits: Dataset) -> None:
    crooked = copy.deepcopy(toy)
    with torch.no_grad():
        for parameter in crooked.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn(parameter.shape, generator=rng()))
    x, y = digits.test.images, digits.test.labels
    done = attack(Folded(toy, crooked), x, y, eps=EPS, step_size=STEP, steps=5, restarts=2, generator=rng())
    assert not torch.equal(misclassified(crooked, done.images, y), misclassified(toy, done.images, y))
    assert 10 < int(done.fooled.sum()) < 75
    assert misclassified(toy, done.images, y)[done.fooled].all()


# -- memory ----------------------------------------------------------------------------------------------------------


class Refused(torch.autograd.Function):
    """Passes images on; coming back, memory runs out."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # type: ignore[override]
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


class Cramped(nn.Module):
    """A network in a memory that holds ``room`` images; what more of them raise is ``kind``."""

    def __init__(self, model: nn.Module, room: int, kind: str) -> None:
        super().__init__()
        self.model, self.room, self.kind = model, room, kind
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        assert len(self.sizes) < 5000  # an attack that never ends fails here
        if len(x) > self.room:
            if self.kind == "gpu":
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            if self.kind == "cpu":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate")
            if self.kind == "windows":
                raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory: you tried to allocate")
            if self.kind == "another":
                raise RuntimeError("expected scalar type Float but found Double")
            x = Refused.apply(x)
        return self.model(x)


KINDS = ["gpu", "cpu", "windows", "backward"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [None, 60])
def test_an_attack_for_which_memory_does_not_suffice_goes_on_with_fewer_images(
    toy: ToyNet, digits: Dataset, kind: str, batch_size: int | None
) -> None:
    x, y = digits.test.images.double(), digits.test.labels
    model = copy.deepcopy(toy).double()
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3}
    folded = Folded(model, Cramped(model, 9, kind)) if kind == "backward" else Folded(Cramped(model, 9, kind), model)
    expected = attack(model, x, y, **how, restarts=2, generator=rng(3))
    found = attack(folded, x, y, **how, restarts=2, generator=rng(3), batch_size=batch_size)
    assert same_outcome(found, expected)
    small = folded.max_batch
    assert small is not None and 9 / 2 < small <= 9
    again = attack(folded, x, y, **how, restarts=2, generator=rng(3), batch_size=batch_size)
    assert same_outcome(again, expected)
    assert folded.max_batch == small  # known from then on


@pytest.mark.parametrize("kind", KINDS)
def test_pgd_and_misclassified_go_on_with_fewer_images_too(toy: ToyNet, digits: Dataset, kind: str) -> None:
    x, y = digits.test.images.double(), digits.test.labels
    model = copy.deepcopy(toy).double()
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3}
    cramped = Cramped(model, 9, kind)
    folded = Folded(cramped, cramped)
    found = pgd(folded, x, y, **how, generator=rng(3))
    assert torch.allclose(found, pgd(model, x, y, **how, generator=rng(3)), rtol=0, atol=1e-12)
    assert folded.max_batch == 5  # 80, 40, 20, 10, 5
    assert cramped.sizes == [80, 40, 20, 10] + [5] * 16 * 3  # what did not fit is not tried again
    if kind == "backward":
        return  # nothing comes back where only the answer is asked
    cramped.sizes.clear()
    folded = Folded(cramped, cramped)
    assert torch.equal(misclassified(folded, x, y), misclassified(model, x, y))
    assert cramped.sizes == [80, 40, 20, 10] + [5] * 16
    assert torch.equal(misclassified(folded, x, y, batch_size=3), misclassified(model, x, y))
    assert max(cramped.sizes[20:]) == 3
    assert torch.equal(misclassified(cramped, x, y), misclassified(model, x, y))  # without a copy, too


def test_fewer_images_are_tried_also_when_a_copy_is_made_on_the_way(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 30, "random_start": False}
    cramped = Cramped(toy, 9, "cpu")
    expected = attack(toy, x, y, **how)
    found = attack(cramped, x, y, **how)
    assert torch.equal(found.fooled, misclassified(toy, found.images, y))
    assert int((found.fooled != expected.fooled).sum()) <= 1
    # One image and two, the copy's example, and what did not fit.
    assert cramped.sizes[:7] == [1, 2, 2, 80, 40, 20, 10]
    assert max(cramped.sizes[7:]) == 5
    assert sum(cramped.sizes[7:]) <= 2 * 80  # at first and where the copy has won; the steps are the copy's work


def everything(model: nn.Module, x: Tensor, y: Tensor) -> list[Callable[[], object]]:
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    return [
        lambda: pgd(Folded(model, model), x, y, **how),
        lambda: attack(Folded(model, model), x, y, **how),
        lambda: misclassified(model, x, y),
    ]


@pytest.mark.parametrize(("kind", "message"), [("gpu", "CUDA out of memory"), ("cpu", "can't allocate memory")])
def test_where_not_one_image_fits_the_error_is_passed_on(linear: Linear, kind: str, message: str) -> None:
    x, y = images()
    cramped = Cramped(linear, 0, kind)
    for call in everything(cramped, x, y):
        cramped.sizes.clear()
        with pytest.raises(RuntimeError, match=message):
            call()
        assert cramped.sizes == [6, 3, 1]


def test_another_error_is_passed_on_at_once(linear: Linear) -> None:
    x, y = images()
    cramped = Cramped(linear, 2, "another")
    for call in everything(cramped, x, y):
        cramped.sizes.clear()
        with pytest.raises(RuntimeError, match="expected scalar type"):
            call()
        assert cramped.sizes == [6]


# -- progress --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 7])
@pytest.mark.parametrize("restarts", [1, 3])
@pytest.mark.parametrize("folding", [False, True])
def test_the_share_done_rises_to_one(
    toy: ToyNet, digits: Dataset, restarts: int, batch_size: int | None, folding: bool
) -> None:
    x, y = digits.test.images, digits.test.labels
    shares: list[float] = []
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 6, "restarts": restarts, "generator": rng()}
    model = fold(toy, x) if folding else toy
    attack(model, x, y, **how, batch_size=batch_size, progress=shares.append)
    assert len(set(shares)) > 5
    assert 0 <= shares[0] < 0.5
    assert shares == sorted(shares)
    assert shares[-1] == 1
    if restarts == 3:
        assert any(abs(share - 1 / 3) < 1e-9 for share in shares)  # the first restart is a third of the work


def test_the_share_done_never_falls_although_a_copy_misleads(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    shares: list[float] = []
    attack(Folded(toy, Shifted(toy)), x, y, eps=EPS, step_size=STEP, steps=6, progress=shares.append)
    assert shares == sorted(shares)
    assert shares[-1] == 1


# -- chance ----------------------------------------------------------------------------------------------------------


def test_one_seed_gives_one_result_and_another_gives_another(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2}
    first, again, other = (pgd(toy, x, y, **how, generator=rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    a, b = (attack(toy, x, y, **how, restarts=2, generator=rng(1)) for _ in range(2))
    assert torch.equal(a.images, b.images)
    assert torch.equal(a.first_success, b.first_success)


def test_without_a_generator_torchs_own_is_used(linear: Linear) -> None:
    x, y = images()
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(pgd(linear, x, y, eps=EPS, step_size=0, steps=1))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# -- leaving no trace ------------------------------------------------------------------------------------------------


def used_model() -> nn.Module:
    """A network in the middle of something: mixed modes, some gradients there, one parameter frozen."""
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
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 3}
    return [
        lambda model, x, y, **kw: fgsm(model, x, y, eps=EPS, **kw),
        lambda model, x, y, **kw: pgd(model, x, y, **how, **kw),
        lambda model, x, y, **kw: attack(model, x, y, **how, restarts=2, **kw),
    ]


@pytest.mark.parametrize("call", calls(), ids=["fgsm", "pgd", "attack"])
@pytest.mark.parametrize("fails", [False, True], ids=["returns", "raises"])
def test_a_model_is_left_exactly_as_it_was(call: Callable[..., object], fails: bool) -> None:
    model = used_model()
    before = copy.deepcopy(model)
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    parameters = dict(model.named_parameters())
    gradients = {name: None if p.grad is None else (p.grad, p.grad.clone()) for name, p in parameters.items()}
    seen = []

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen.append([module.training for module in model.modules()])
        if fails:
            raise RuntimeError("in the middle")
        return cross_entropy(model, x, y)

    x, y = images()
    if fails:
        with pytest.raises(RuntimeError, match="in the middle"):
            call(model, x, y, objective=objective)
    else:
        call(model, x, y, objective=objective)
    assert seen
    assert not any(map(any, seen))  # it was attacked in evaluation mode
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


def test_undisturbed_is_evaluation_mode_for_a_while() -> None:
    model = used_model()
    modes = [module.training for module in model.modules()]
    with eval_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes


def test_an_attack_works_inside_no_grad_and_on_frozen_parameters(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 2, "random_start": False}
    expected, outcome = pgd(toy, x, y, **how), attack(toy, x, y, **how)
    with torch.no_grad():
        assert torch.equal(pgd(toy, x, y, **how), expected)
        assert torch.equal(attack(toy, x, y, **how).first_success, outcome.first_success)
        assert not torch.is_grad_enabled()
    frozen = copy.deepcopy(toy).requires_grad_(False)
    assert torch.equal(pgd(frozen, x, y, **how), expected)
    assert torch.equal(attack(frozen, x, y, **how).first_success, outcome.first_success)


@pytest.mark.parametrize("call", calls(), ids=["fgsm", "pgd", "attack"])
def test_images_are_not_changed_and_results_carry_no_graph(linear: Linear, call: Callable[..., object]) -> None:
    x, y = images()
    given_images = x.clone().requires_grad_()
    result = call(linear, given_images, y)
    found = result if isinstance(result, Tensor) else result.images  # type: ignore[attr-defined]
    assert not found.requires_grad
    assert given_images.grad is None
    assert torch.equal(given_images, x)
    assert not torch.equal(found, x)


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "value", "word"),
    [
        ("eps", 8, "8/255"),
        ("eps", "8", "8/255"),
        ("eps", -0.1, "eps"),
        ("eps", float("nan"), "eps"),
        ("eps", "(8, 255)", "eps"),
        ("eps", None, "eps"),
        ("step_size", 2, "step_size"),
        ("step_size", float("nan"), "step_size"),
        ("steps", 0, "steps"),
        ("steps", -1, "steps"),
        ("steps", 2.5, "steps"),
        ("steps", "10", "steps"),
        ("steps", True, "steps"),
        ("restarts", 0, "restarts"),  # no restart is no attack: its accuracy would be the clean one
        ("restarts", 1.5, "restarts"),
        ("norm", "l1", "norm"),
        ("norm", "L2", "norm"),
        ("batch_size", 0, "batch_size"),
        ("batch_size", -1, "batch_size"),  # an empty batch would never end
        ("batch_size", 2.5, "batch_size"),
        ("x", torch.full((6, 1, 2, 2), 255, dtype=torch.uint8), "divide bytes"),
        ("x", torch.full((6, 1, 2, 2), 2.0), "images"),
        ("x", torch.zeros(6, 4), "shape"),
        ("y", torch.zeros(5, dtype=torch.int64), "labels"),
        ("y", torch.zeros(6), "labels"),
        ("y", torch.full((6,), 3), "labels"),
        ("y", torch.full((6,), -100), "labels"),  # torch's cross-entropy ignores -100, and so has no gradient there
    ],
)
def test_a_bad_setting_is_one_input_error_that_names_it(linear: Linear, setting: str, value: object, word: str) -> None:
    x, y = images()
    given: dict[str, Any] = {"x": x, "y": y, "eps": EPS, "step_size": STEP, "steps": 2, setting: value}
    if setting != "norm":
        with pytest.raises(InputError, match=word):
            attack(linear, **given)
    if setting not in ("restarts", "batch_size"):
        with pytest.raises(InputError, match=word):
            pgd(linear, **given)


def test_images_with_nan_are_refused(linear: Linear) -> None:
    x, y = images()
    with pytest.raises(NotFiniteError, match="images"):
        fgsm(linear, x / 0, y, eps=EPS)


class Broken(nn.Module):
    """A linear model that breaks: ``where`` says what becomes NaN, ``beyond`` at which mean pixel it begins."""

    def __init__(self, linear: Linear, where: str, beyond: float = -1.0) -> None:
        super().__init__()
        self.linear, self.where, self.beyond = linear, where, beyond

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x)
        if float(x.detach().mean()) <= self.beyond:
            return logits
        if self.where == "logits":
            return logits * float("nan")
        pixels = Nan.apply(x) if self.where == "gradient" else Nan.apply(x[:, :, :1, :1])
        return logits + pixels.sum()


@pytest.mark.parametrize("where", ["logits", "gradient", "one pixel's gradient"])
@pytest.mark.parametrize("steps", [1, 3])
def test_nan_from_the_model_is_an_error_and_never_robustness(linear: Linear, where: str, steps: int) -> None:
    x, _ = images()
    y = linear(x).argmax(dim=1)
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": steps, "random_start": False}
    for call in (pgd, attack):
        with pytest.raises(NotFiniteError, match="NaN"):
            call(Broken(linear, where), x, y, **how)


@pytest.mark.parametrize("where", ["logits", "gradient"])
def test_nan_that_appears_on_the_way_is_found(linear: Linear, where: str) -> None:
    def brighter(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        logits = model(x)
        return logits, logits.sum(dim=1) * 0 + x.flatten(1).sum(dim=1)

    x = torch.full((2, 1, 2, 2), 0.5)
    y = linear(x).argmax(dim=1)
    model = Broken(linear, where, beyond=0.501)  # sound on the images themselves
    how: dict[str, Any] = {"eps": 0.01, "step_size": 0.004, "steps": 3, "random_start": False, "objective": brighter}
    for call in (pgd, attack):
        with pytest.raises(NotFiniteError, match="NaN"):
            call(model, x, y, **how)


# -- foolbox ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def foolbox() -> Any:
    return pytest.importorskip("foolbox")


def test_fgsm_gives_foolboxs_images(foolbox: Any, toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    theirs_model = foolbox.PyTorchModel(toy, bounds=(0, 1), device="cpu")
    _, theirs, _ = foolbox.attacks.LinfFastGradientAttack(random_start=False)(theirs_model, x, y, epsilons=EPS)
    assert torch.allclose(fgsm(toy, x, y, eps=EPS), theirs, atol=1e-6)


@pytest.mark.parametrize("eps", [0.05, 0.1, 0.2])
def test_pgd_agrees_with_foolbox(foolbox: Any, toy: ToyNet, digits: Dataset, eps: float) -> None:
    x, y = digits.test.images, digits.test.labels
    theirs_model = foolbox.PyTorchModel(toy, bounds=(0, 1), device="cpu")
    run = foolbox.attacks.LinfPGD(abs_stepsize=eps / 4, steps=10, random_start=False)
    _, theirs, fooled = run(theirs_model, x, y, epsilons=eps)
    how: dict[str, Any] = {"eps": eps, "step_size": eps / 4, "steps": 10, "random_start": False}
    ours = pgd(toy, x, y, **how)
    same = ((ours - theirs).abs() < 1e-6).float().mean()
    assert same > 0.99
    robust, counted = float((~fooled).float().mean()), float((~attack(toy, x, y, **how).fooled).float().mean())
    # Theirs asks the last iterate only, ours any: within two points, and never the other way round.
    assert robust - 0.02 <= counted <= robust


@pytest.mark.parametrize("every", [3, 4, 7])
@pytest.mark.parametrize("batch_size", [20, 60])
def test_looking_seldom_at_who_is_done_changes_no_outcome(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, every: int, batch_size: int
) -> None:
    # As on a GPU, where each look makes the host wait.
    model = copy.deepcopy(toy).double()
    x, y = digits.test.images[:60].double(), digits.test.labels[:60]
    how: dict[str, Any] = {"eps": EPS, "step_size": STEP, "steps": 4, "restarts": 2, "batch_size": batch_size}
    often = attack(model, x, y, **how, generator=rng(3))
    monkeypatch.setitem(gradient.LOOK_EVERY, "cpu", every)
    seldom = attack(model, x, y, **how, generator=rng(3))
    assert torch.equal(seldom.first_success, often.first_success)
    assert torch.equal(seldom.fooled, often.fooled)
    assert torch.equal(seldom.images, often.images)
    assert often.passes <= seldom.passes < 3 * often.passes


def test_a_gradient_too_small_to_square_still_moves_an_l2_attack() -> None:
    w = torch.tensor([40.0, -30.0, 20.0, 35.0])
    model, x = Linear(torch.stack([w, -w])), torch.full((1, 1, 2, 2), 0.5)
    y = torch.tensor([0])  # the logits lie 65 apart, so the gradient is of the order of 1e-27
    found = pgd(model, x, y, eps=0.3, step_size=0.05, steps=10, random_start=False, norm="l2")
    assert float((found - x).norm()) == pytest.approx(0.3, rel=1e-4)
