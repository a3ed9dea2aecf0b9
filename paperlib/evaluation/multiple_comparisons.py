"""Several comparisons at once: p-values that may be small by luck as seldom as one alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from paperlib.evaluation.statistics import LEVEL, DifferenceOverSeeds, satterthwaite


def directions(values: Sequence[DifferenceOverSeeds], reference: float = 0.0) -> list[int]:
    """Which of several differences lie above ``reference`` (1), below it (-1), or not provably on either side (0).

    Proof takes both: the interval leaves ``reference`` out, and so does a two-sided test at `LEVEL` over all values
    together (`p_values`, corrected by `holm`). For one value alone the two are the same.
    """
    adjusted = holm(p_values(values, reference))
    return [
        0 if p >= LEVEL or value.low <= reference <= value.high else 1 if value.difference > reference else -1
        for p, value in zip(adjusted, values, strict=True)
    ]


def p_values(values: Sequence[DifferenceOverSeeds], reference: float = 0.0) -> list[float]:
    """Two-sided p-values of "the difference is ``reference``", one for each of several comparisons of as many seeds.

    A single value's is below `LEVEL` where its interval leaves ``reference`` out. Of several, the variance between
    runs is moderated (Smyth 2004): half a comparison's own, half the mean of all. Three runs now and then agree by
    luck, and the own variance alone then gives p-values that are far too small, which no correction for their number
    can mend.
    """
    from scipy.stats import t  # late: replaying a figure needs no statistics

    own = [0.0 if math.isnan(value.from_runs) else value.from_runs**2 for value in values]
    mean = math.fsum(own) / max(len(own), 1)
    # Independent and equal variances would have 4k / (k + 3) times the runs' degrees of freedom. Comparisons that share
    # a system are neither, so no more than twice are counted.
    gain = min(2.0, 4 * len(values) / (len(values) + 3))
    found = []
    for value, between in zip(values, own, strict=True):
        images, between = value.from_images**2, (between + mean) / 2
        freedom = satterthwaite(images, between, value.n, gain * (value.seeds - 1))
        found.append(2 * float(t.sf(abs(value.difference - reference) / math.sqrt(images + between), freedom)))
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusted p-values of several tests, in the order given: reject those below the level of all tests together.

    Holm's step-down (1979): however the tests depend on each other and however many hypotheses are true, the
    probability that any true one is rejected is at most the level.
    """
    # The k-th smallest of m counts m - k + 1 times, and at least as much as the one before it.
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
