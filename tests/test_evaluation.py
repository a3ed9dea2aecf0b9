"""Numbers and their uncertainty: intervals, paired comparisons, accuracy under attack."""

from __future__ import annotations

import copy
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t, ttest_1samp
from torch import Tensor, nn
from toys import Linear, ToyNet

from paperlib import Dataset, load_profile
from paperlib.acceleration import Folded, fold
from paperlib.attacks import NEVER, attack
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation import (
    CLEAN,
    AttackSpec,
    accuracy_by_step,
    accuracy_over_seeds,
    basic_attacks,
    difference_over_seeds,
    evaluate,
    fgsm_spec,
    headline,
    paired_difference,
    pgd_spec,
    sweep,
    wilson,
    worst_case,
)
from paperlib.log import progress

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
    found = paired_difference(*outcomes(both=50, only_first=12, only_second=5, neither=33))
    b, c, n = 12.5, 5.5, 102
    half = 1.959964 * math.sqrt((b + c) - (b - c) ** 2 / n) / n
    assert (found.n, found.only_first, found.only_second) == (100, 12, 5)
    assert found.difference == pytest.approx(0.07)
    assert (found.low, found.high) == pytest.approx(((b - c) / n - half, (b - c) / n + half), abs=1e-6)
    assert found.p_value == pytest.approx(0.143463, abs=1e-6)  # 2 P(X <= 5), X ~ Binomial(17, 1/2)


@pytest.mark.parametrize(("b", "c"), [(0, 0), (1, 0), (0, 7), (3, 3), (10, 2), (40, 61), (300, 250)])
def test_mcnemars_test_agrees_with_the_binomial_test(b: int, c: int) -> None:
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert paired_difference(*outcomes(20, b, c, 7)).p_value == pytest.approx(expected, rel=1e-9)


@given(*[st.integers(0, 40)] * 4)
def test_a_paired_comparison_turns_over_with_its_systems(both: int, b: int, c: int, neither: int) -> None:
    assume(both + b + c + neither)
    first, second = outcomes(both, b, c, neither)
    one, other = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= one.low < one.high <= 1
    assert 0 < one.p_value <= 1
    assert (one.difference, one.p_value) == (-other.difference, other.p_value)
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low))


def test_a_paired_interval_is_the_normal_one_of_the_differences_with_two_images_more() -> None:
    # Half an image for each of the four cells, so in units of half images each cell counts twice and once more.
    both, b, c, neither = 50, 12, 5, 33
    d = np.repeat([0, 1, -1, 0], [2 * both + 1, 2 * b + 1, 2 * c + 1, 2 * neither + 1])
    expected = norm.interval(0.95, loc=d.mean(), scale=d.std() / math.sqrt(both + b + c + neither + 2))
    found = paired_difference(*outcomes(both, b, c, neither))
    assert (found.low, found.high) == pytest.approx(expected, abs=1e-12)


def test_a_paired_interval_of_many_images_is_that_of_the_t_test() -> None:
    first, second = outcomes(both=30_000, only_first=8_000, only_second=7_500, neither=20_000)
    expected = ttest_1samp(first.numpy().astype(float) - second.numpy(), 0).confidence_interval(0.95)
    found = paired_difference(first, second)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_a_paired_comparison_needs_the_same_images() -> None:
    with pytest.raises(ValueError, match="same images"):
        paired_difference(torch.ones(3, dtype=torch.bool), torch.ones(4, dtype=torch.bool))


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
    assert spec.table() == expected | {"aim": "cross-entropy"}


def test_battery_and_sweep_follow_the_profile() -> None:
    config = load_profile("digits").evaluation
    assert [spec.name for spec in basic_attacks(config)] == ["clean", "fgsm@0.15", "pgd-50@0.15"]
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
    clean = evaluate(THRESHOLD, split, CLEAN, seed=0)
    assert clean.correct.tolist() == [False, True, True, True, True]
    assert clean.first_success.tolist() == [0, NEVER, NEVER, NEVER, NEVER]
    one = evaluate(THRESHOLD, split, fgsm_spec(EPS), seed=0)
    assert one.correct.tolist() == [False, False, False, True, True]
    assert one.first_success.tolist() == [0, 1, 1, NEVER, NEVER]
    slow = AttackSpec("pgd", EPS, STEP, 4)
    many = evaluate(THRESHOLD, split, slow, seed=0)
    assert many.first_success.tolist() == [0, 1, 4, NEVER, NEVER]


def test_a_record_says_what_was_counted() -> None:
    outcome = evaluate(THRESHOLD, on_a_line(0.45, 0.52, 0.58, 0.63, 0.7), fgsm_spec(EPS), seed=0)
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
        whole, parts = (evaluate(model, split, spec, seed=0, batch_size=size) for size in (80, 7))
        assert torch.equal(whole.correct, parts.correct)
        assert torch.equal(whole.first_success, parts.first_success)
        assert whole.passes == parts.passes


def test_one_seed_gives_one_outcome_and_another_another(toy: ToyNet, digits: Dataset) -> None:
    spec = pgd_spec(EPS, 3, STEP)
    first, again, other = (evaluate(toy, digits.test, spec, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.first_success, again.first_success)
    assert not torch.equal(first.first_success, other.first_success)


def test_an_evaluation_is_the_attack_it_names(toy: ToyNet, digits: Dataset) -> None:
    outcome = evaluate(toy, digits.test, pgd_spec(EPS, 3, STEP, restarts=2), seed=4)
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
    outcome = evaluate(toy, digits.test, spec, seed=0)
    counts = accuracy_by_step(outcome.first_success, list(range(9)))
    assert counts == sorted(counts, reverse=True)
    assert counts[0] > counts[-1]
    assert counts[-1] == int(outcome.correct.sum())


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fewer_steps_are_the_beginning_of_more(toy: ToyNet, digits: Dataset, steps: int) -> None:
    long, short = (evaluate(toy, digits.test, pgd_spec(EPS, k, STEP), seed=0) for k in (8, steps))
    assert accuracy_by_step(long.first_success, [steps]) == [int(short.correct.sum())]


def test_accuracy_by_step_counts_by_hand() -> None:
    first_success = torch.tensor([0, 1, 1, 3, NEVER, NEVER], dtype=torch.int16)
    assert accuracy_by_step(first_success, [0, 1, 2, 3, 50]) == [5, 3, 3, 2, 2]


def test_a_model_is_evaluated_in_evaluation_mode_and_left_as_it_was(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).train()
    before = copy.deepcopy(model.state_dict())
    for spec in (CLEAN, fgsm_spec(EPS)):
        expected = evaluate(toy, digits.test, spec, seed=0)
        assert torch.equal(evaluate(model, digits.test, spec, seed=0).correct, expected.correct)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Cramped(nn.Module):
    """A network in a memory that holds ``room`` images."""

    def __init__(self, model: nn.Module, room: int) -> None:
        super().__init__()
        self.model, self.room = model, room

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(x)


@pytest.mark.parametrize("spec", [CLEAN, fgsm_spec(EPS), pgd_spec(EPS, 3, STEP)], ids=lambda spec: spec.name)
@pytest.mark.parametrize("folding", [False, True])
def test_a_record_carries_the_batch_size_that_memory_allowed(
    toy: ToyNet, digits: Dataset, spec: AttackSpec, folding: bool
) -> None:
    model = toy if folding else copy.deepcopy(toy).double()
    split = digits.test if folding else Split(digits.test.images.double(), digits.test.labels)
    plenty = evaluate(Cramped(model, 80), split, spec, seed=0, batch_size=50)
    assert plenty.record()["batch_size"] == plenty.batch_size == 50
    cramped = fold(Cramped(model, 13), split.images)
    assert (cramped.network is not cramped.model) is folding
    scarce = evaluate(cramped, split, spec, seed=0, batch_size=50)
    assert scarce.record()["batch_size"] == 12  # 50, 25, 12
    assert int((scarce.correct != plenty.correct).sum()) <= (1 if folding else 0)
    # What one evaluation has found out about memory is known to the next.
    assert evaluate(cramped, split, CLEAN, seed=0, batch_size=50).batch_size == 12
    assert evaluate(cramped, split, CLEAN, seed=0, batch_size=5).batch_size == 5


def test_an_evaluation_says_which_attack_it_is_at_and_how_far(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr("paperlib.evaluation.robustness.progress", functools.partial(progress, every=0))
    lines = log_lines
    evaluate(toy, digits.test, pgd_spec(EPS, 8, STEP), seed=0, batch_size=20, label="toy")
    assert len(lines) > 5
    assert all(line.startswith("toy under pgd-8@0.1: ") and " %, about " in line for line in lines)
    shares = [int(line.split(": ")[1].split(" %")[0]) for line in lines]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 50 < shares[-1] < 100


# -- the worst of several attacks ------------------------------------------------------------------------------------

SEVERAL = [
    CLEAN,
    fgsm_spec(Fraction("0.03")),
    fgsm_spec(Fraction("0.12")),
    AttackSpec("pgd", EPS, STEP, 4),
    AttackSpec("pgd", Fraction("0.06"), Fraction("0.02"), 10, restarts=2),
]


@pytest.mark.parametrize("specs", [SEVERAL, SEVERAL[::-1], SEVERAL[2:4], SEVERAL[:1]])
@pytest.mark.parametrize("batch_size", [512, 7])
def test_the_worst_case_is_what_withstands_each_attack(
    toy: ToyNet, digits: Dataset, specs: list[AttackSpec], batch_size: int
) -> None:
    model = copy.deepcopy(toy).double()
    split = Split(digits.test.images.double(), digits.test.labels)
    single = [evaluate(model, split, spec, seed=0) for spec in specs]
    asked: list[int] = []
    model.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    found = worst_case(model, split, specs, seed=0, batch_size=batch_size)
    correct = torch.stack([outcome.correct for outcome in single])
    assert torch.equal(found.correct, correct.all(dim=0))
    assert 0 < int(found.correct.sum()) < 80
    # The step is that of the first attack that won.
    winner = correct.int().argmin(dim=0)
    steps = torch.stack([outcome.first_success for outcome in single])
    assert torch.equal(found.first_success, steps[winner, torch.arange(80)])
    assert torch.equal(found.first_success == NEVER, found.correct)
    assert found.record()["batch_size"] == batch_size
    assert asked[:2] == [1, 2]  # to see what the model is
    assert found.passes == pytest.approx(sum(asked[2:]) / 80)
    # Each attack meets only those that withstood the ones before it.
    alone = sum(outcome.passes for outcome in single)
    assert found.passes < alone if len(specs) > 1 else found.passes == alone


def test_the_worst_case_asks_nothing_more_once_nothing_stands() -> None:
    split = on_a_line(0.1, 0.52, 0.58)
    impossible = AttackSpec("pgd", EPS, STEP, steps=0)  # raises if it is tried
    found = worst_case(THRESHOLD, split, [CLEAN, fgsm_spec(EPS), impossible], seed=0)
    assert found.correct.tolist() == [False] * 3
    assert found.first_success.tolist() == [0, 1, 1]
    assert found.passes == pytest.approx((3 + 2 + 2 + 2) / 3)  # all clean, two by FGSM: clean, step 0, step 1
    with pytest.raises(InputError, match="steps"):
        worst_case(THRESHOLD, on_a_line(0.9), [CLEAN, impossible], seed=0)


def test_the_worst_case_runs_on_one_folded_copy(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Folded] = []

    def folding(model: nn.Module, x: Tensor) -> Folded:
        made.append(fold(model, x))
        return made[-1]

    monkeypatch.setattr("paperlib.evaluation.robustness.fold", folding)
    found = worst_case(Cramped(toy, 13), digits.test, SEVERAL, seed=0, batch_size=50)
    assert [folded.reason for folded in made] == [""]
    assert found.record()["batch_size"] == made[0].max_batch == 12
    again = worst_case(fold(toy, digits.test.images), digits.test, SEVERAL, seed=0)
    assert len(made) == 1
    assert int((again.correct != found.correct).sum()) <= 1


def test_the_worst_case_of_no_images_is_refused_like_any_evaluation() -> None:
    with pytest.raises(InputError, match="no images"):
        worst_case(THRESHOLD, Split(torch.zeros(0, 1, 1, 1), torch.zeros(0, dtype=torch.int64)), SEVERAL, seed=0)


class Nan(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * float("nan")


@pytest.mark.parametrize("spec", [CLEAN, fgsm_spec(EPS), pgd_spec(EPS, 2, STEP)], ids=lambda spec: spec.name)
def test_a_broken_model_has_no_accuracy(spec: AttackSpec, digits: Dataset) -> None:
    with pytest.raises(NotFiniteError):
        evaluate(Nan(), digits.test, spec, seed=0)


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
        evaluate(THRESHOLD, Split(images, labels), spec, seed=0)


# -- comparison over training runs -----------------------------------------------------------------------------------


def runs_of(*runs: str) -> Tensor:
    """Outcomes (seeds, N) from a line of 0 and 1 for each run."""
    return torch.tensor([[letter == "1" for letter in run] for run in runs])


def drawn(generator: np.random.Generator, runs: int, n: int) -> tuple[Tensor, Tensor]:
    """Outcomes of two systems, the first the better one."""
    first, second = generator.random((2, runs, n)) < np.array([0.7, 0.5])[:, None, None]
    return torch.tensor(first), torch.tensor(second)


def test_a_difference_over_runs_by_hand() -> None:
    # Ten images: the first system gets 6 right in one run and 4 of these in the other, the second none.
    found = difference_over_seeds(runs_of("1111110000", "1111000000"), torch.zeros(2, 10, dtype=torch.bool))
    assert (found.seeds, found.n, found.difference) == (2, 10, 0.5)
    # Mean per image 1, 1, 1, 1, .5, .5, 0, 0, 0, 0: squares around .5 sum to 2, and 1 is added.
    assert found.from_images**2 == pytest.approx(3 / 10 / 9)
    assert found.from_runs**2 == pytest.approx(0.02 / 2)  # the variance of .6 and .4, over two
    # Degrees of freedom 0.0433^2 / (0.0333^2 / 9 + 0.01^2) = 8.40, where tables have 2.306 at 8 and 2.262 at 9.
    half = 2.287 * math.sqrt(0.13 / 3)
    assert (found.low, found.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


@pytest.mark.parametrize(("runs", "n"), [(1, 2), (1, 30), (2, 1), (2, 7), (3, 40), (5, 360)])
def test_a_difference_over_runs_follows_its_formula(runs: int, n: int) -> None:
    first, second = drawn(np.random.default_rng(100 * runs + n), runs, n)
    found = difference_over_seeds(first, second)
    d = first.numpy().astype(float) - second.numpy().astype(float)
    images = (((d.mean(0) - d.mean()) ** 2).sum() + 1) / (n * max(n - 1, 1))
    between = d.mean(1).var(ddof=1) / runs if runs > 1 else 0
    squares = images**2 / max(n - 1, 1) + (between**2 / (runs - 1) if runs > 1 else 0)
    half = t.ppf(0.975, (images + between) ** 2 / squares) * math.sqrt(images + between)
    assert found.difference == pytest.approx(d.mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx((max(-1, d.mean() - half), min(1, d.mean() + half)), abs=1e-12)
    assert found.from_images == pytest.approx(math.sqrt(images))
    assert found.from_runs == pytest.approx(math.sqrt(between) if runs > 1 else math.nan, nan_ok=True)


def test_one_run_has_the_uncertainty_of_its_images_only() -> None:
    first, second = drawn(np.random.default_rng(0), 1, 50)
    found = difference_over_seeds(first, second)
    assert math.isnan(found.from_runs)
    half = t.ppf(0.975, 49) * found.from_images
    assert (found.low, found.high) == pytest.approx((found.difference - half, found.difference + half))
    pair = paired_difference(first[0], second[0])
    assert found.difference == pytest.approx(pair.difference)
    assert (found.low, found.high) == pytest.approx((pair.low, pair.high), abs=0.03)


def test_runs_that_agree_add_no_uncertainty_and_runs_that_do_not_do() -> None:
    none = torch.zeros(2, 8, dtype=torch.bool)
    alike, apart = (
        difference_over_seeds(runs_of("11110000", "11110000"), none),
        difference_over_seeds(runs_of("11111110", "10000000"), none),
    )
    assert alike.difference == apart.difference == 0.5
    assert alike.from_runs == 0 < apart.from_runs
    assert apart.high - apart.low > alike.high - alike.low


@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_difference_over_runs_turns_over_with_its_systems(runs: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(runs, n, generator=generator) < share for share in (0.8, 0.4))
    one, other = difference_over_seeds(first, second), difference_over_seeds(second, first)
    assert -1 <= one.low <= one.difference <= one.high <= 1
    assert one.low < one.high
    assert (-other.high, -other.difference, -other.low) == pytest.approx((one.low, one.difference, one.high))
    assert (one.from_images, one.from_runs) == pytest.approx((other.from_images, other.from_runs), nan_ok=True)


@given(st.integers(1, 4), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_neither_images_nor_runs_have_an_order(runs: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(runs, n, generator=generator) < share for share in (0.8, 0.4))
    rows, columns = torch.randperm(runs, generator=generator), torch.randperm(n, generator=generator)
    one, other = (
        difference_over_seeds(first, second),
        difference_over_seeds(first[rows][:, columns], second[rows][:, columns]),
    )
    assert (one.low, one.difference, one.high) == pytest.approx((other.low, other.difference, other.high))


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("n", [1, 5, 360])
def test_identical_outcomes_are_no_proof_of_equality(runs: int, n: int) -> None:
    outcome = drawn(np.random.default_rng(1), runs, n)[0]
    found = difference_over_seeds(outcome, outcome)
    assert found.difference == 0
    assert found.low == -found.high < 0
    assert found.from_images > 0


def test_more_images_of_the_same_kind_narrow_a_difference() -> None:
    first, second = drawn(np.random.default_rng(2), 3, 50)
    widths = []
    for times in (1, 4, 16):
        found = difference_over_seeds(first.repeat(1, times), second.repeat(1, times))
        widths.append(found.from_images)
    assert widths == sorted(widths, reverse=True)
    assert widths[0] / widths[2] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("runs", [3, 5])
def test_the_interval_covers_the_true_difference_where_images_and_runs_vary(runs: int) -> None:
    draws, n, truth = 500, 200, 0.1
    generator = np.random.default_rng(runs)
    # An image is as hard for both systems in all runs; each run of each system has its luck.
    hardness = generator.uniform(0.25, 0.65, (draws, 1, n))
    seed_group = generator.normal(0, 0.06, (2, draws, runs, 1))
    first = torch.tensor(generator.random((draws, runs, n)) < hardness + truth + seed_group[0])
    second = torch.tensor(generator.random((draws, runs, n)) < hardness + seed_group[1])
    found = [difference_over_seeds(a, b) for a, b in zip(first, second, strict=True)]
    covered = sum(value.low <= truth <= value.high for value in found) / draws
    assert 0.9 <= covered <= 0.99
    # An interval that knows of the images alone takes the luck of the runs for a difference.
    blind = sum(abs(value.difference - truth) <= 1.96 * value.from_images for value in found) / draws
    assert blind < 0.75
    assert np.mean([value.difference for value in found]) == pytest.approx(truth, abs=0.01)


@pytest.mark.parametrize("shapes", [((2, 5), (2, 4)), ((2, 5), (3, 5)), ((5,), (5,)), ((1, 2, 3), (1, 2, 3))])
def test_outcomes_of_different_shapes_are_not_compared_over_runs(shapes: tuple[tuple[int, ...], ...]) -> None:
    first, second = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
    with pytest.raises(ValueError, match=r"\(seeds, images\)"):
        difference_over_seeds(first, second)


def test_one_system_over_runs_has_its_accuracy() -> None:
    found = accuracy_over_seeds(runs_of("1100", "1110"))
    assert (found.seeds, found.n, found.difference) == (2, 4, 5 / 8)
    outcome = drawn(np.random.default_rng(3), 3, 200)[0]
    accuracy = accuracy_over_seeds(outcome)
    assert accuracy.difference == pytest.approx(float(outcome.double().mean()))
    assert accuracy.low < accuracy.difference < accuracy.high
    low, high = wilson(int(outcome[0].sum()), 200)
    assert accuracy_over_seeds(outcome[:1]).high - accuracy_over_seeds(outcome[:1]).low == pytest.approx(
        high - low, rel=0.05
    )
