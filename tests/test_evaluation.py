"""Numbers and their uncertainty: intervals, paired comparisons, accuracy under attack."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor, nn
from toys import Linear, ToyNet

from paperlib import Dataset, load_profile
from paperlib.attacks import NEVER, attack
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation import (
    CLEAN,
    AttackSpec,
    accuracy_by_step,
    battery,
    evaluate,
    fgsm_spec,
    headline,
    paired,
    pgd_spec,
    sweep,
    wilson,
)
from paperlib.models import fold
from paperlib.progress import silent

EPS, STEP = Fraction("0.1"), Fraction("0.025")


# -- Wilson's interval -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("correct", "n"), [(0, 1), (1, 1), (0, 10), (10, 10), (5, 10), (1, 3), (52, 360), (359, 360), (4711, 10_000)]
)
def test_wilson_agrees_with_scipy(correct: int, n: int) -> None:
    theirs = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    assert wilson(correct, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


def test_wilson_of_a_textbook_value() -> None:
    # Newcombe (1998), table I: 15 of 148.
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0, 1)


@given(st.integers(1, 20_000), st.data())
def test_wilson_is_a_symmetric_interval_around_the_proportion(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    low, high = wilson(correct, n)
    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    mirrored = wilson(n - correct, n)
    assert (1 - mirrored[1], 1 - mirrored[0]) == pytest.approx((low, high), abs=1e-12)


@given(st.integers(1, 1000), st.data())
def test_wilson_narrows_with_more_images(n: int, data: st.DataObject) -> None:
    correct = data.draw(st.integers(0, n))
    (low, high), (low4, high4) = wilson(correct, n), wilson(4 * correct, 4 * n)
    assert high4 - low4 < high - low


# -- paired comparison -----------------------------------------------------------------------------------------------


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[Tensor, Tensor]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return torch.tensor(first), torch.tensor(second)


def test_a_paired_comparison_counts_by_hand() -> None:
    # Agresti and Min (2005): 1/2 added to each cell, n + 2 in all.
    found = paired(*outcomes(both=50, only_first=12, only_second=5, neither=33))
    b, c, n = 12.5, 5.5, 102
    half = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert (found.n, found.only_first, found.only_second) == (100, 12, 5)
    assert found.difference == pytest.approx(0.07)
    assert (found.low, found.high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)
    assert found.p_value == pytest.approx(0.143463, abs=1e-6)  # 2 P(X <= 5), X ~ Binomial(17, 1/2)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 7), (3, 3), (10, 2), (40, 61), (300, 250)])
def test_mcnemars_test_agrees_with_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert paired(*outcomes(20, b, c, 7)).p_value == pytest.approx(expected, rel=1e-9)


@given(*[st.integers(0, 40)] * 4)
def test_a_paired_comparison_turns_over_with_its_systems(both: int, b: int, c: int, neither: int) -> None:
    assume(both + b + c + neither)
    first, second = outcomes(both, b, c, neither)
    one, other = paired(first, second), paired(second, first)
    assert -1 <= one.low < one.high <= 1
    assert 0 < one.p_value <= 1
    assert (one.difference, one.p_value) == (-other.difference, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_a_paired_comparison_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


# -- names of attacks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (CLEAN, "clean"),
        (fgsm_spec(Fraction(8, 255)), "fgsm@8/255"),
        (fgsm_spec(Fraction("0.15")), "fgsm@0.15"),
        (pgd_spec(Fraction("0.15"), 50, Fraction("0.0375")), "pgd-50@0.15"),
        (pgd_spec(Fraction(8, 255), 10, Fraction(2, 255), restarts=5), "pgd-10x5@8/255"),
    ],
)
def test_an_attack_is_named_by_kind_steps_restarts_and_eps(spec: AttackSpec, name: str) -> None:
    assert spec.name == name


def test_the_table_of_an_attack_holds_every_setting() -> None:
    spec = pgd_spec(Fraction(8, 255), 10, Fraction(2, 255), restarts=5)
    expected = {"kind": "pgd", "eps": "8/255", "step": "2/255", "steps": 10, "restarts": 5, "random_start": True}
    assert spec.table() == expected


def test_battery_and_sweep_follow_the_profile() -> None:
    config = load_profile("digits").evaluation
    assert [spec.name for spec in battery(config)] == ["clean", "fgsm@0.15", "pgd-50@0.15"]
    assert [spec.name for spec in sweep(config)] == [
        *(f"fgsm@{eps}" for eps in ("0.05", "0.1", "0.15", "0.2", "0.3")),
        *(f"pgd-50@{eps}" for eps in ("0.05", "0.1", "0.15", "0.2", "0.3")),
    ]
    assert headline(config) in sweep(config)
    pgds = [spec for spec in sweep(config) if spec.kind == "pgd"]
    assert {spec.step / spec.eps for spec in pgds} == {config.step / config.eps}  # the step keeps its proportion
    assert all(spec.random_start for spec in pgds)


# -- accuracy under attack -------------------------------------------------------------------------------------------


def on_a_line(*pixels: float) -> Split:
    """Images of one pixel, all of class 0."""
    return Split(torch.tensor(pixels).view(-1, 1, 1, 1), torch.zeros(len(pixels), dtype=torch.int64))


THRESHOLD = Linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5]))  # class 0 where the pixel exceeds 0.5


def test_accuracy_of_a_known_model_under_each_attack() -> None:
    split = on_a_line(0.45, 0.52, 0.58, 0.63, 0.7)
    clean = evaluate(THRESHOLD, split, CLEAN, seed=0, say=silent)
    assert clean.correct.tolist() == [False, True, True, True, True]
    assert clean.first_success.tolist() == [0, NEVER, NEVER, NEVER, NEVER]
    one = evaluate(THRESHOLD, split, fgsm_spec(EPS), seed=0, say=silent)
    assert one.correct.tolist() == [False, False, False, True, True]
    assert one.first_success.tolist() == [0, 1, 1, NEVER, NEVER]
    slow = AttackSpec("pgd", EPS, STEP, 4)
    many = evaluate(THRESHOLD, split, slow, seed=0, say=silent)
    assert many.first_success.tolist() == [0, 1, 4, NEVER, NEVER]


def test_a_record_says_what_was_counted() -> None:
    outcome = evaluate(THRESHOLD, on_a_line(0.45, 0.52, 0.58, 0.63, 0.7), fgsm_spec(EPS), seed=0, say=silent)
    record = outcome.record()
    assert (record["n"], record["correct"], record["accuracy"]) == (5, 2, 0.4)
    assert record["interval"] == list(wilson(2, 5))
    # All five clean; four at step 0; the two that stand, after it.
    assert record["passes_per_image"] == (5 + 4 + 4) / 5
    assert record["seconds"] >= 0
    assert set(outcome.arrays()) == {"correct", "first_success"}


def test_outcomes_do_not_depend_on_the_batch_size(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).double()
    split = Split(digits.test.images.double(), digits.test.labels)
    for spec in (CLEAN, fgsm_spec(EPS), AttackSpec("pgd", EPS, STEP, 4)):
        whole, parts = (evaluate(model, split, spec, seed=0, batch_size=size, say=silent) for size in (80, 7))
        assert torch.equal(whole.correct, parts.correct)
        assert torch.equal(whole.first_success, parts.first_success)
        assert whole.passes == parts.passes


def test_one_seed_gives_one_outcome_and_another_another(toy: ToyNet, digits: Dataset) -> None:
    spec = pgd_spec(EPS, 3, STEP)
    first, again, other = (evaluate(toy, digits.test, spec, seed=seed, say=silent) for seed in (1, 1, 2))
    assert torch.equal(first.first_success, again.first_success)
    assert not torch.equal(first.first_success, other.first_success)


def test_an_evaluation_is_the_attack_it_names(toy: ToyNet, digits: Dataset) -> None:
    outcome = evaluate(toy, digits.test, pgd_spec(EPS, 3, STEP, restarts=2), seed=4, say=silent)
    done = attack(
        fold(toy, digits.test.images),
        digits.test.images,
        digits.test.labels,
        eps=EPS,
        step_size=STEP,
        steps=3,
        restarts=2,
        random_start=True,
        generator=torch.Generator().manual_seed(4),
    )
    assert torch.equal(outcome.correct, ~done.fooled)
    assert outcome.passes == done.passes / 80


def test_accuracy_by_step_falls_and_ends_at_the_accuracy(toy: ToyNet, digits: Dataset) -> None:
    spec = pgd_spec(EPS, 8, STEP)
    outcome = evaluate(toy, digits.test, spec, seed=0, say=silent)
    counts = accuracy_by_step(outcome.first_success, list(range(9)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert counts[-1] == int(outcome.correct.sum())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fewer_steps_are_the_beginning_of_more(toy: ToyNet, digits: Dataset, steps: int) -> None:
    long, short = (evaluate(toy, digits.test, pgd_spec(EPS, k, STEP), seed=0, say=silent) for k in (8, steps))
    assert accuracy_by_step(long.first_success, [steps]) == [int(short.correct.sum())]


def test_accuracy_by_step_counts_by_hand() -> None:
    first_success = torch.tensor([0, 1, 1, 3, NEVER, NEVER], dtype=torch.int16)
    assert accuracy_by_step(first_success, [0, 1, 2, 3, 50]) == [5, 3, 3, 2, 2]


def test_a_model_is_evaluated_in_evaluation_mode_and_left_as_it_was(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).train()
    before = copy.deepcopy(model.state_dict())
    for spec in (CLEAN, fgsm_spec(EPS)):
        expected = evaluate(toy, digits.test, spec, seed=0, say=silent)
        assert torch.equal(evaluate(model, digits.test, spec, seed=0, say=silent).correct, expected.correct)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * float("nan")


@pytest.mark.parametrize("spec", [CLEAN, fgsm_spec(EPS), pgd_spec(EPS, 2, STEP)], ids=lambda spec: spec.name)
def test_a_broken_model_has_no_accuracy(spec: AttackSpec, digits: Dataset) -> None:
    with pytest.raises(NotFiniteError):
        evaluate(Nan(), digits.test, spec, seed=0, say=silent)


@pytest.mark.parametrize("spec", [CLEAN, fgsm_spec(EPS)], ids=lambda spec: spec.name)
@pytest.mark.parametrize(
    ("images", "labels", "word"),
    [
        (torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.int64), "no images"),
        (torch.full((2, 1, 1, 1), 255.0), torch.zeros(2, dtype=torch.int64), "divide by 255"),
        (torch.full((2, 1, 1, 1), 9, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "divide bytes"),
        (torch.zeros(2, 1, 1, 1), torch.zeros(3, dtype=torch.int64), "labels"),
        (torch.zeros(2, 1, 1, 1), torch.full((2,), 2), "out of range"),
    ],
)
def test_bad_images_and_labels_are_refused(spec: AttackSpec, images: Tensor, labels: Tensor, word: str) -> None:
    with pytest.raises(InputError, match=word):
        evaluate(THRESHOLD, Split(images, labels), spec, seed=0, say=silent)
