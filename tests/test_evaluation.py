"""Accuracies with intervals, paired comparisons, and accuracy under attack."""

from __future__ import annotations

import copy
import functools
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, norm, t
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
    autoattack_spec,
    basic_attacks,
    difference_over_seeds,
    evaluate,
    fgsm_spec,
    headline,
    paired_difference,
    pgd_spec,
    surrogate_attacks,
    sweep,
    wilson,
    worst_case,
)
from paperlib.log import progress

EPS, STEP = Fraction("0.1"), Fraction("0.025")


# -- Wilson's interval -----------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(st.integers(1, 20_000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@example((0, 1))
@example((360, 360))
def test_wilson_agrees_with_scipy(counts: tuple[int, int]) -> None:
    correct, n = counts
    expected = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    low, high = wilson(correct, n)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert 0 <= low <= correct / n <= high <= 1


def test_wilson_of_a_textbook_value_and_of_no_images() -> None:
    # Newcombe (1998), table I: 15 of 148.
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 0) == (0, 1)


# -- paired comparison -----------------------------------------------------------------------------------------------


def outcomes(both: int, only_first: int, only_second: int, neither: int) -> tuple[Tensor, Tensor]:
    first = [True] * (both + only_first) + [False] * (only_second + neither)
    second = [True] * both + [False] * only_first + [True] * only_second + [False] * neither
    return torch.tensor(first, dtype=torch.bool), torch.tensor(second, dtype=torch.bool)


def test_a_paired_comparison_by_hand() -> None:
    both, b, c, neither = 50, 12, 5, 33
    result = paired_difference(*outcomes(both, b, c, neither))
    assert (result.n, result.only_first, result.only_second) == (100, 12, 5)
    assert result.difference == pytest.approx(0.07)
    assert result.p_value == pytest.approx(0.143463, abs=1e-6)  # 2 P(X <= 5), X ~ Binomial(17, 1/2)
    # Agresti and Min (2005) add 1/2 to each of the four cells: in units of half images, 2 k + 1 for k images.
    d = np.repeat([0, 1, -1, 0], [2 * both + 1, 2 * b + 1, 2 * c + 1, 2 * neither + 1])
    expected = norm.interval(0.95, loc=d.mean(), scale=d.std() / math.sqrt(both + b + c + neither + 2))
    assert (result.low, result.high) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40)
@given(*[st.integers(0, 40)] * 4)
@example(0, 0, 0, 0)
@example(20, 0, 7, 3)
def test_a_paired_comparison_is_antisymmetric_with_mcnemars_p_value(both: int, b: int, c: int, neither: int) -> None:
    first, second = outcomes(both, b, c, neither)
    result, swapped = paired_difference(first, second), paired_difference(second, first)
    assert -1 <= result.low < result.high <= 1
    assert result.p_value == pytest.approx(binomtest(b, b + c).pvalue if b + c else 1.0, rel=1e-9)
    assert (result.difference, result.p_value) == (-swapped.difference, swapped.p_value)
    assert (result.low, result.high) == pytest.approx((-swapped.high, -swapped.low))


def test_a_paired_comparison_needs_the_same_images() -> None:
    for shapes in (((3,), (4,)), ((2, 3), (2, 3))):
        with pytest.raises(ValueError, match="same images"):
            paired_difference(*(torch.ones(shape, dtype=torch.bool) for shape in shapes))


# -- attacks as data -------------------------------------------------------------------------------------------------


def test_the_name_of_an_attack_holds_kind_steps_restarts_objective_and_eps() -> None:
    eps, step = Fraction(8, 255), Fraction(2, 255)
    names = {
        "clean": CLEAN,
        "fgsm@8/255": fgsm_spec(eps),
        "pgd-50@0.15": pgd_spec(Fraction("0.15"), 50, Fraction("0.0375")),
        "pgd-10x5@8/255": pgd_spec(eps, 10, step, restarts=5),
        "pgd-10-gate-uniform@8/255": pgd_spec(eps, 10, step, objective="gate uniform"),
    }
    assert [spec.name for spec in names.values()] == list(names)


def test_the_table_of_an_attack_holds_every_setting() -> None:
    spec = pgd_spec(Fraction(8, 255), 10, Fraction(2, 255), restarts=5)
    expected = {"kind": "pgd", "eps": "8/255", "step": "2/255", "steps": 10, "restarts": 5, "random_start": True}
    assert spec.table() == expected | {"objective": "cross-entropy"}
    assert autoattack_spec("8/255", 2, 10).table()["queries"] == 10


def test_the_attacks_of_a_profile() -> None:
    config = load_profile("digits").evaluation
    assert [spec.name for spec in basic_attacks(config)] == ["clean", "fgsm@0.15", "pgd-50@0.15"]
    assert [spec.name for spec in surrogate_attacks(config)] == ["pgd-50-soft@0.15"]
    assert [spec.name for spec in sweep(config)] == [
        *(f"fgsm@{eps}" for eps in ("0.05", "0.1", "0.15", "0.2", "0.3")),
        *(f"pgd-50@{eps}" for eps in ("0.05", "0.1", "0.15", "0.2", "0.3")),
    ]
    assert headline(config) in sweep(config)
    pgds = [spec for spec in sweep(config) if spec.kind == "pgd"]
    assert {spec.step / spec.eps for spec in pgds} == {config.step / config.eps}
    assert all(spec.random_start for spec in pgds)


# -- accuracy under attack -------------------------------------------------------------------------------------------


def pixels(*values: float) -> Split:
    """Images of one pixel, all of class 0."""
    return Split(torch.tensor(values).view(-1, 1, 1, 1), torch.zeros(len(values), dtype=torch.int64))


THRESHOLD = Linear(torch.tensor([[1.0], [-1.0]]), torch.tensor([-0.5, 0.5]))  # class 0 where the pixel exceeds 0.5


def test_the_outcome_of_each_image_of_a_linear_model() -> None:
    split = pixels(0.45, 0.52, 0.58, 0.63, 0.7)
    clean = evaluate(THRESHOLD, split, CLEAN, seed=0)
    assert clean.correct.tolist() == [False, True, True, True, True]
    assert clean.first_success.tolist() == [0, NEVER, NEVER, NEVER, NEVER]
    pgd = evaluate(THRESHOLD, split, AttackSpec("pgd", EPS, STEP, 4), seed=0)
    assert pgd.first_success.tolist() == [0, 1, 4, NEVER, NEVER]
    fgsm = evaluate(THRESHOLD, split, fgsm_spec(EPS), seed=0)
    assert fgsm.correct.tolist() == [False, False, False, True, True]
    assert fgsm.first_success.tolist() == [0, 1, 1, NEVER, NEVER]
    record = fgsm.record()
    assert (record["n"], record["correct"], record["accuracy"]) == (5, 2, 0.4)
    assert record["interval"] == list(wilson(2, 5))
    # 5 clean images; 4 of them at step 0; the 2 that survive at step 1, confirmed with the others.
    assert record["passes_per_image"] == (5 + 4 + 4) / 5
    assert record["seconds"] >= 0
    assert set(fgsm.arrays()) == {"correct", "first_success"}


def test_outcomes_do_not_depend_on_the_batch_size(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).double()
    split = Split(digits.test.images.double(), digits.test.labels)
    for spec in (CLEAN, AttackSpec("pgd", EPS, STEP, 4)):
        large, small = (evaluate(model, split, spec, seed=0, batch_size=size) for size in (80, 7))
        assert torch.equal(large.correct, small.correct)
        assert torch.equal(large.first_success, small.first_success)
        assert large.passes == small.passes


def test_an_evaluation_runs_the_attack_of_its_spec_with_its_seed(toy: ToyNet, digits: Dataset) -> None:
    x, y = digits.test.images, digits.test.labels
    result, other = (evaluate(toy, digits.test, pgd_spec(EPS, 3, STEP, restarts=2), seed=seed) for seed in (4, 5))
    generator = torch.Generator().manual_seed(4)
    expected = attack(fold(toy, x), x, y, eps=EPS, step_size=STEP, steps=3, restarts=2, generator=generator)
    assert torch.equal(result.correct, ~expected.fooled)
    assert torch.equal(result.first_success, expected.first_success.to(torch.int16))
    assert result.passes == expected.passes / 80
    assert not torch.equal(result.first_success, other.first_success)


def test_one_run_gives_the_accuracy_after_each_number_of_steps(toy: ToyNet, digits: Dataset) -> None:
    longest = evaluate(toy, digits.test, pgd_spec(EPS, 8, STEP), seed=0)
    shorter = [evaluate(toy, digits.test, pgd_spec(EPS, steps, STEP), seed=0) for steps in (1, 5)]
    counts = accuracy_by_step(longest.first_success, [0, 1, 5, 8])
    assert counts[1:] == [int(result.correct.sum()) for result in (*shorter, longest)]
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    by_hand = torch.tensor([0, 1, 1, 3, NEVER, NEVER], dtype=torch.int16)
    assert accuracy_by_step(by_hand, [0, 1, 2, 3, 50]) == [5, 3, 3, 2, 2]


def test_a_model_is_evaluated_in_evaluation_mode_and_left_unchanged(toy: ToyNet, digits: Dataset) -> None:
    model = copy.deepcopy(toy).train()
    before = copy.deepcopy(model.state_dict())
    for spec in (CLEAN, fgsm_spec(EPS)):
        expected = evaluate(toy, digits.test, spec, seed=0)
        assert torch.equal(evaluate(model, digits.test, spec, seed=0).correct, expected.correct)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class LimitedMemory(nn.Module):
    """A network for which memory runs out with more than ``limit`` images."""

    def __init__(self, model: nn.Module, limit: int) -> None:
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.model(x)


@pytest.mark.parametrize(("spec", "folding"), [(CLEAN, False), (pgd_spec(EPS, 3, STEP), True)])
def test_a_record_holds_the_batch_size_that_memory_allowed(
    toy: ToyNet, digits: Dataset, spec: AttackSpec, folding: bool
) -> None:
    model = toy if folding else copy.deepcopy(toy).double()
    split = digits.test if folding else Split(digits.test.images.double(), digits.test.labels)
    expected = evaluate(LimitedMemory(model, 80), split, spec, seed=0, batch_size=50)
    assert expected.record()["batch_size"] == expected.batch_size == 50
    limited = fold(LimitedMemory(model, 13), split.images)
    assert (limited.network is not limited.model) is folding
    result = evaluate(limited, split, spec, seed=0, batch_size=50)
    assert result.record()["batch_size"] == 12  # 50, 25, 12
    assert int((result.correct != expected.correct).sum()) <= (1 if folding else 0)
    # The limit is remembered for the next evaluation.
    assert evaluate(limited, split, CLEAN, seed=0, batch_size=50).batch_size == 12
    assert evaluate(limited, split, CLEAN, seed=0, batch_size=5).batch_size == 5


def test_an_evaluation_logs_its_attack_and_its_progress(
    toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch, log_lines: list[str]
) -> None:
    monkeypatch.setattr("paperlib.evaluation.robustness.progress", functools.partial(progress, every=0))
    evaluate(toy, digits.test, pgd_spec(EPS, 8, STEP), seed=0, batch_size=20, label="toy")
    assert len(log_lines) > 5
    assert all(line.startswith("toy under pgd-8@0.1: ") and " %, about " in line for line in log_lines)
    shares = [int(line.split(": ")[1].split(" %")[0]) for line in log_lines]
    assert shares == sorted(shares)
    assert 0 < shares[0] < 50 < shares[-1] < 100


# -- errors ----------------------------------------------------------------------------------------------------------


class NanModel(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :10] * float("nan")


@pytest.mark.parametrize("spec", [CLEAN, fgsm_spec(EPS)], ids=lambda spec: spec.name)
def test_a_model_with_nan_logits_has_no_accuracy(spec: AttackSpec, digits: Dataset) -> None:
    with pytest.raises(NotFiniteError):
        evaluate(NanModel(), digits.test, spec, seed=0)


def test_nan_weights_and_an_unknown_objective_are_errors() -> None:
    broken = copy.deepcopy(THRESHOLD)
    broken.bias.data[0] = torch.nan
    with pytest.raises(NotFiniteError, match="mine: bias holds NaN"):
        evaluate(broken, pixels(0.1), CLEAN, seed=0, label="mine")
    with pytest.raises(InputError, match="objective 'gate': not available for this model; available: cross-entropy, "):
        evaluate(THRESHOLD, pixels(0.9), pgd_spec(EPS, 1, STEP, objective="gate"), seed=0)


def test_images_out_of_range_and_no_images_are_errors() -> None:
    with pytest.raises(InputError, match="divide by 255"):
        evaluate(THRESHOLD, pixels(255.0), CLEAN, seed=0)
    with pytest.raises(InputError, match="no images"):
        evaluate(THRESHOLD, pixels(), CLEAN, seed=0)
    with pytest.raises(InputError, match="no images"):
        worst_case(THRESHOLD, pixels(), SEVERAL, seed=0)


# -- the worst case over several attacks -----------------------------------------------------------------------------

SEVERAL = [
    CLEAN,
    fgsm_spec(Fraction("0.03")),
    fgsm_spec(Fraction("0.12")),
    AttackSpec("pgd", EPS, STEP, 4),
    AttackSpec("pgd", Fraction("0.06"), Fraction("0.02"), 10, restarts=2),
]


@pytest.mark.parametrize(("specs", "batch_size"), [(SEVERAL, 512), (SEVERAL[::-1], 7), (SEVERAL[:1], 512)])
def test_the_worst_case_keeps_the_images_that_survive_every_attack(
    toy: ToyNet, digits: Dataset, specs: list[AttackSpec], batch_size: int
) -> None:
    model = copy.deepcopy(toy).double()
    split = Split(digits.test.images[:50].double(), digits.test.labels[:50])
    single = [evaluate(model, split, spec, seed=0) for spec in specs]
    batches: list[int] = []
    model.register_forward_hook(lambda module, args, output: batches.append(len(args[0])))
    result = worst_case(model, split, specs, seed=0, batch_size=batch_size)
    correct = torch.stack([outcome.correct for outcome in single])
    assert torch.equal(result.correct, correct.all(dim=0))
    assert 0 < int(result.correct.sum()) < 50
    # The step is that of the first attack that succeeded.
    first = correct.int().argmin(dim=0)
    steps = torch.stack([outcome.first_success for outcome in single])
    assert torch.equal(result.first_success, steps[first, torch.arange(50)])
    assert torch.equal(result.first_success == NEVER, result.correct)
    assert result.record()["batch_size"] == batch_size
    assert batches[:2] == [1, 2]  # the checks of the model
    assert result.passes == pytest.approx(sum(batches[2:]) / 50)
    # Each attack runs on the surviving images only.
    total = sum(outcome.passes for outcome in single)
    assert result.passes < total if len(specs) > 1 else result.passes == total


def test_the_worst_case_stops_when_no_image_survives() -> None:
    invalid = AttackSpec("pgd", EPS, STEP, steps=0)  # raises if it is run
    result = worst_case(THRESHOLD, pixels(0.1, 0.52, 0.58), [CLEAN, fgsm_spec(EPS), invalid], seed=0)
    assert result.correct.tolist() == [False] * 3
    assert result.first_success.tolist() == [0, 1, 1]
    assert result.passes == pytest.approx((3 + 2 + 2 + 2) / 3)  # 3 clean images; FGSM on two: clean, step 0, step 1
    with pytest.raises(InputError, match="steps"):
        worst_case(THRESHOLD, pixels(0.9), [CLEAN, invalid], seed=0)


def test_the_worst_case_folds_the_model_once(toy: ToyNet, digits: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Folded] = []

    def recording_fold(model: nn.Module, x: Tensor) -> Folded:
        made.append(fold(model, x))
        return made[-1]

    monkeypatch.setattr("paperlib.evaluation.robustness.fold", recording_fold)
    result = worst_case(LimitedMemory(toy, 13), digits.test, SEVERAL[:3], seed=0, batch_size=50)
    assert [folded.reason for folded in made] == [""]
    assert result.record()["batch_size"] == made[0].max_batch == 12
    again = worst_case(fold(toy, digits.test.images), digits.test, SEVERAL[:3], seed=0)
    assert len(made) == 1
    assert int((again.correct != result.correct).sum()) <= 1


# -- comparison over training runs -----------------------------------------------------------------------------------


def runs_of(*runs: str) -> Tensor:
    """Outcomes (seeds, N) from a string of 0 and 1 for each run."""
    return torch.tensor([[letter == "1" for letter in run] for run in runs])


def random_outcomes(seed: int, runs: int, n: int) -> tuple[Tensor, Tensor]:
    """Outcomes of two systems, the first the better one."""
    first, second = np.random.default_rng(seed).random((2, runs, n)) < np.array([0.7, 0.5])[:, None, None]
    return torch.tensor(first), torch.tensor(second)


def test_a_difference_over_runs_by_hand() -> None:
    # Ten images: the first system classifies 6 correctly in one run and 4 of these in the other, the second none.
    result = difference_over_seeds(runs_of("1111110000", "1111000000"), torch.zeros(2, 10, dtype=torch.bool))
    assert (result.seeds, result.n, result.difference) == (2, 10, 0.5)
    # Means of the images 1, 1, 1, 1, .5, .5, 0, 0, 0, 0: squares around .5 sum to 2, and 1 is added.
    assert result.from_images**2 == pytest.approx(3 / 10 / 9)
    assert result.from_runs**2 == pytest.approx(0.02 / 2)  # the variance of .6 and .4, over two
    # Degrees of freedom 0.0433^2 / (0.0333^2 / 9 + 0.01^2) = 8.40, where tables have 2.306 at 8 and 2.262 at 9.
    half = 2.287 * math.sqrt(0.13 / 3)
    assert (result.low, result.high) == pytest.approx((0.5 - half, 0.5 + half), abs=1e-3)


def test_with_one_run_the_interval_covers_the_images_only() -> None:
    first, second = random_outcomes(0, 1, 50)
    result = difference_over_seeds(first, second)
    assert math.isnan(result.from_runs)
    half = t.ppf(0.975, 49) * result.from_images
    assert (result.low, result.high) == pytest.approx((result.difference - half, result.difference + half))
    pair = paired_difference(first[0], second[0])
    assert result.difference == pytest.approx(pair.difference)
    assert (result.low, result.high) == pytest.approx((pair.low, pair.high), abs=0.03)


def test_only_runs_that_differ_widen_the_interval() -> None:
    none = torch.zeros(2, 8, dtype=torch.bool)
    equal, different = (
        difference_over_seeds(runs_of("11110000", "11110000"), none),
        difference_over_seeds(runs_of("11111110", "10000000"), none),
    )
    assert equal.difference == different.difference == 0.5
    assert equal.from_runs == 0 < different.from_runs
    assert different.high - different.low > equal.high - equal.low


@settings(max_examples=40)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_difference_over_runs_is_antisymmetric_and_ignores_the_order(runs: int, n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = (torch.rand(runs, n, generator=generator) < share for share in (0.8, 0.4))
    result, swapped = difference_over_seeds(first, second), difference_over_seeds(second, first)
    assert -1 <= result.low <= result.difference <= result.high <= 1
    assert result.low < result.high
    interval = (result.low, result.difference, result.high)
    assert (-swapped.high, -swapped.difference, -swapped.low) == pytest.approx(interval)
    assert (result.from_images, result.from_runs) == pytest.approx(
        (swapped.from_images, swapped.from_runs), nan_ok=True
    )
    rows, columns = torch.randperm(runs, generator=generator), torch.randperm(n, generator=generator)
    shuffled = difference_over_seeds(first[rows][:, columns], second[rows][:, columns])
    assert (shuffled.low, shuffled.difference, shuffled.high) == pytest.approx(interval)


def test_identical_outcomes_give_no_interval_of_zero_width() -> None:
    for runs, n in ((1, 1), (3, 5), (1, 360)):
        outcome = random_outcomes(1, runs, n)[0]
        result = difference_over_seeds(outcome, outcome)
        assert result.difference == 0
        assert result.low == -result.high < 0


def test_the_interval_covers_the_true_difference_where_images_and_runs_vary() -> None:
    draws, runs, n, truth = 300, 3, 200, 0.1
    generator = np.random.default_rng(3)
    # The difficulty of an image is the same in all runs; the accuracy of each run of each system varies.
    difficulty = generator.uniform(0.25, 0.65, (draws, 1, n))
    offset = generator.normal(0, 0.06, (2, draws, runs, 1))
    first = torch.tensor(generator.random((draws, runs, n)) < difficulty + truth + offset[0])
    second = torch.tensor(generator.random((draws, runs, n)) < difficulty + offset[1])
    results = [difference_over_seeds(a, b) for a, b in zip(first, second, strict=True)]
    covered = sum(result.low <= truth <= result.high for result in results) / draws
    assert 0.9 <= covered <= 0.99
    # An interval that covers image sampling only misses the true difference far more often.
    covered = sum(abs(result.difference - truth) <= 1.96 * result.from_images for result in results) / draws
    assert covered < 0.75
    assert np.mean([result.difference for result in results]) == pytest.approx(truth, abs=0.01)


def test_outcomes_of_different_shapes_cannot_be_compared_over_runs() -> None:
    for shapes in (((2, 5), (2, 4)), ((5,), (5,)), ((2, 0), (2, 0))):
        first, second = (torch.ones(shape, dtype=torch.bool) for shape in shapes)
        with pytest.raises(ValueError, match=r"\(seeds, images\)"):
            difference_over_seeds(first, second)


def test_the_accuracy_of_one_system_over_runs() -> None:
    result = accuracy_over_seeds(runs_of("1100", "1110"))
    assert (result.seeds, result.n, result.difference) == (2, 4, 5 / 8)
    outcome = random_outcomes(3, 1, 200)[0]
    single, (low, high) = accuracy_over_seeds(outcome), wilson(int(outcome.sum()), 200)
    assert single.low < single.difference < single.high
    assert single.high - single.low == pytest.approx(high - low, rel=0.05)
