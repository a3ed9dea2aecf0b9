"""Tests of several comparisons at once, with control of the family-wise error rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paperlib.evaluation.statistics import SIGNIFICANCE_LEVEL, DifferenceOverSeeds, satterthwaite


def directions(values: Sequence[DifferenceOverSeeds], reference: float = 0.0) -> list[int]:
    """For each difference: 1 if it is significantly above ``reference``, -1 if significantly below, else 0.

    A difference is significant if its own interval excludes ``reference`` and its p-value (`p_values`), corrected for
    the number of ``values`` (`holm`), is below `SIGNIFICANCE_LEVEL`. For a single value the two conditions agree.
    """
    result = []
    for p, value in zip(holm(p_values(values, reference)), values, strict=True):
        significant = p < SIGNIFICANCE_LEVEL and not value.low <= reference <= value.high
        result.append((1 if value.difference > reference else -1) if significant else 0)
    return result


def p_values(values: Sequence[DifferenceOverSeeds], reference: float = 0.0) -> list[float]:
    """Two-sided p-values of the hypotheses "the difference is ``reference``", without correction for their number.

    All comparisons must have the same number of seeds. The p-value of a single comparison is below
    `SIGNIFICANCE_LEVEL` if and only if its interval excludes ``reference``. With several comparisons, the variance
    between runs is moderated (Smyth 2004, Stat. Appl. Genet. Mol. Biol. 3): it is the mean of the comparison's own
    estimate and the mean of all estimates. An estimate from three runs can be far too small by chance; its p-value
    would then be far too small as well, and a correction for the number of tests cannot repair that.
    """
    from scipy.stats import t  # imported here, because figures drawn from records do not need it

    estimates = [0.0 if math.isnan(value.from_runs) else value.from_runs**2 for value in values]
    mean = math.fsum(estimates) / max(len(estimates), 1)
    # For k independent estimates of one variance, this mean has 4k / (k + 3) times the degrees of freedom of one
    # estimate. The comparisons share a system and are not independent, so the factor is limited to 2.
    factor = min(2.0, 4 * len(values) / (len(values) + 3))
    result = []
    for value, estimate in zip(values, estimates, strict=True):
        images, between = value.from_images**2, (estimate + mean) / 2
        freedom = satterthwaite(images, between, value.n, factor * (value.seeds - 1))
        # p = 2 P(T > |D - reference| / sqrt(V_images + V_runs)), T ~ t(freedom)
        result.append(2 * float(t.sf(abs(value.difference - reference) / math.sqrt(images + between), freedom)))
    return result


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of Holm's step-down procedure (1979, Scand. J. Statist. 6), in the order of ``p_values``.

    Reject the hypotheses whose adjusted p-value is below the level. Whatever the dependence between the tests and
    however many hypotheses are true, the probability of rejecting any true one is at most the level.
    """
    # adjusted_(k) = max_{j <= k} min(1, (m - j + 1) p_(j)), for the j-th smallest of m p-values
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
