"""Several comparisons at once: Holm's correction, p-values over training runs, and their error rates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from torch import Tensor

from paperlib.evaluation import (
    SIGNIFICANCE_LEVEL,
    DifferenceOverSeeds,
    difference_over_seeds,
    directions,
    holm,
    p_values,
)

# -- Holm's correction -------------------------------------------------------------------------------------------------


def closed_test(p: list[float]) -> list[float]:
    """The closed test (Marcus 1976) with Bonferroni tests: reject if every set with the hypothesis is rejected."""
    indices = range(len(p))
    sets = [s for size in range(1, len(p) + 1) for s in itertools.combinations(indices, size)]
    return [max(min(1.0, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in indices]


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_holm_equals_the_closed_test_with_bonferroni(p: list[float]) -> None:
    assert holm(p) == pytest.approx(closed_test(p), abs=1e-12)


def test_holm_of_a_textbook_example_and_of_no_tests() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


# -- p-values over training runs ---------------------------------------------------------------------------------------


def random_difference(seed: int, runs: int, n: int) -> DifferenceOverSeeds:
    generator = np.random.default_rng(seed)
    first, second = generator.random((2, runs, n)) < np.array([0.6, 0.5])[:, None, None]
    return difference_over_seeds(torch.tensor(first), torch.tensor(second))


@pytest.mark.parametrize(("runs", "reference"), [(1, 0.0), (3, 0.0)])
def test_the_p_value_of_one_comparison_agrees_with_its_interval(runs: int, reference: float) -> None:
    values = [random_difference(seed, runs, 100) for seed in range(20)]
    excluded = [not value.low <= reference <= value.high for value in values]
    assert set(excluded) == {True, False}
    assert [p_values([value], reference)[0] < SIGNIFICANCE_LEVEL for value in values] == excluded
    assert [directions([value], reference) != [0] for value in values] == excluded
    for value in values[:5]:
        assert p_values([value], value.low)[0] == pytest.approx(SIGNIFICANCE_LEVEL)


def blocks(runs: list[int], copies: int) -> tuple[Tensor, Tensor]:
    """Run r is correct on the first ``runs[r]`` of 6 blocks of equal images; the second system never is."""
    correct = torch.arange(60)[None] < 10 * torch.tensor(runs)[:, None]
    return correct.repeat(1, copies), torch.zeros(len(runs), 60 * copies, dtype=torch.bool)


@pytest.mark.parametrize("runs", [[1, 5], [2, 3, 3, 1, 6]])
def test_with_very_many_images_the_test_is_the_t_test_over_runs(runs: list[int]) -> None:
    value = difference_over_seeds(*blocks(runs, copies=4000))
    expected = ttest_1samp(np.array(runs) / 6, 0.1)
    interval = expected.confidence_interval(0.95)
    assert (value.low, value.high) == pytest.approx((max(-1, interval.low), min(1, interval.high)), abs=3e-3)
    assert p_values([value], 0.1)[0] == pytest.approx(expected.pvalue, abs=3e-3)


@pytest.mark.parametrize("runs", [1, 3])
def test_with_identical_runs_the_test_is_the_t_test_over_images(runs: int) -> None:
    # The one that is added to the sum of squares has little effect here, because n is large.
    generator = np.random.default_rng(5)
    d = generator.choice([-1, 0, 1], 20_000, p=[0.2, 0.59, 0.21])
    first, second = torch.tensor(d == 1).expand(runs, -1), torch.tensor(d == -1).expand(runs, -1)
    value, expected = difference_over_seeds(first, second), ttest_1samp(d, 0)
    interval = expected.confidence_interval(0.95)
    assert (value.low, value.high) == pytest.approx((interval.low, interval.high), abs=1e-5)
    assert p_values([value])[0] == pytest.approx(expected.pvalue, rel=0.01)


def test_the_variance_between_runs_is_moderated() -> None:
    equal, varying = (difference_over_seeds(*blocks(runs, copies=50)) for runs in ([4, 4, 4], [2, 4, 6]))
    separate = [p_values([value], 0.5)[0] for value in (equal, varying)]
    together = p_values([equal, varying], 0.5)
    assert together[0] > 10 * separate[0]  # runs may be equal by chance, so the variance of the others counts too
    assert p_values([varying] * 2, 0.5)[0] < separate[1]  # two estimates have more degrees of freedom than one
    assert p_values([varying, equal], 0.5) == pytest.approx(together[::-1])


def test_a_difference_is_significant_only_if_its_own_interval_excludes_the_reference() -> None:
    equal, varying = (difference_over_seeds(*blocks(runs, 100)) for runs in ([3, 3, 3], [3, 5, 6]))
    values = [varying, *[equal] * 9]
    assert varying.low < 0.2 < varying.high
    assert holm(p_values(values, 0.2))[0] < SIGNIFICANCE_LEVEL
    assert directions(values, 0.2) == [0, *[1] * 9]
    assert directions(values, 0.9)[1:] == [-1] * 9
    assert directions([]) == []


# -- error rates -------------------------------------------------------------------------------------------------------


def equal_systems(generator: np.random.Generator, runs: int, n: int, spread: float) -> list[Tensor]:
    """Outcomes (8 systems, runs, n) of equally good systems under two attacks.

    The difficulty of an image is the same for all systems. The accuracy of each run varies with the standard deviation
    ``spread``, and by a third of it more under the second attack.
    """
    difficulty, draw = generator.beta(0.6, 0.6, n), generator.random((8, runs, n))
    offset = generator.normal(0, spread, (2, 8, runs, 1))
    return [torch.tensor(draw < difficulty + shift) for shift in (offset[0], offset[0] + offset[1] / 3 + 0.1)]


def test_equal_systems_are_refuted_in_at_most_one_study_of_twenty() -> None:
    studies, generator = 100, np.random.default_rng(1)
    by_interval = corrected = 0
    for _ in range(studies):
        values = [
            difference_over_seeds(outcomes[0], outcomes[other])
            for outcomes in equal_systems(generator, runs=3, n=200, spread=0.1)
            for other in range(1, 8)
        ]
        by_interval += any(value.high < 0 for value in values)
        corrected += -1 in directions(values)
    assert corrected <= SIGNIFICANCE_LEVEL * studies
    assert by_interval > 2 * SIGNIFICANCE_LEVEL * studies  # why a correction is needed


def test_a_system_that_is_worse_than_one_of_fourteen_is_detected() -> None:
    detected = 0
    for seed in range(15):
        generator = np.random.default_rng(seed)
        outcomes = equal_systems(generator, runs=3, n=360, spread=0.03)
        better = [part[1] | torch.tensor(generator.random((3, 360)) < 0.6) for part in outcomes]
        values = [
            difference_over_seeds(part[0], other)
            for part, lifted in zip(outcomes, better, strict=True)
            for other in (lifted, *part[2:])
        ]
        sides = directions(values)
        detected += sides[0] == sides[7] == -1
    assert detected >= 11
