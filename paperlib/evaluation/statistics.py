"""Accuracies and differences of accuracies with 95 % intervals.

What each interval covers:

- `wilson`: one accuracy; the sampling of images. The network is fixed.
- `paired_difference`: the difference of two fixed networks on the same images; the sampling of images.
- `difference_over_seeds` and `accuracy_over_seeds`: the mean over training runs; the sampling of images and the
  variation between runs (initialisation, batch order, attack randomness in training).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from paperlib.shapes import Correct, CorrectOverSeeds

# Two-sided: the error rate of tests, and the probability that an interval misses the true value.
SIGNIFICANCE_LEVEL = 0.05
Z95 = 1.959963984540054  # the 97.5 % quantile of the standard normal distribution


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy (Wilson 1927, JASA 22): it covers the sampling of the images.

    Args:
        correct: correct predictions, out of ``n`` images.
        z: quantile of the normal distribution; the default gives 95 %.

    Returns:
        The lower and the upper end as fractions in [0, 1]; (0, 1) if ``n`` is 0.
    """
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the exact ends are 0 and 1; rounding must not push them past p.
    return max(0.0, min(p, (centre - half) / (1 + z2 / n))), min(1.0, max(p, (centre + half) / (1 + z2 / n)))


@dataclass(frozen=True)
class PairedDifference:
    """Two fixed networks on the same n images. The difference is first minus second, as a fraction."""

    n: int
    only_first: int  # images that only the first network classifies correctly
    only_second: int
    difference: float
    low: float  # 95 % interval, covers the sampling of the images
    high: float
    p_value: float  # McNemar's exact test, two-sided


def paired_difference(first: Correct, second: Correct) -> PairedDifference:
    """Compare the outcomes (N,) of two networks on the same images.

    With b images that only the first network classifies correctly and c that only the second does, the interval is the
    adjusted Wald interval for matched pairs of Agresti and Min (2005, Statistics in Medicine 24): 1/2 is added to each
    of the four cells, so b' = b + 1/2, c' = c + 1/2, n' = n + 2, and the interval is

        (b' - c') / n' +- z sqrt(b' + c' - (b' - c')^2 / n') / n'.

    The p-value is that of McNemar's exact test: of b + c discordant images, b ~ Binomial(b + c, 1/2).

    Raises:
        ValueError: outcomes of unequal lengths.
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired comparison needs outcomes on the same images, got {first.shape} and {second.shape}")
    n = len(first)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    b_adjusted, c_adjusted, n_adjusted = b + 0.5, c + 0.5, n + 2
    difference = b_adjusted - c_adjusted
    centre = difference / n_adjusted
    half = Z95 * math.sqrt(b_adjusted + c_adjusted - difference**2 / n_adjusted) / n_adjusted
    return PairedDifference(
        n, b, c, (b - c) / max(n, 1), max(-1.0, centre - half), min(1.0, centre + half), _mcnemar(b, c)
    )


def _mcnemar(b: int, c: int) -> float:
    # p = min(1, 2 P(X <= min(b, c))), X ~ Binomial(b + c, 1/2)
    m = b + c
    tail = sum(math.comb(m, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2**m) if m else 1.0


@dataclass(frozen=True)
class DifferenceOverSeeds:
    """The difference of two systems over training runs, all evaluated on the same n images; fractions."""

    seeds: int
    n: int
    difference: float  # mean over runs and images, first minus second
    low: float  # 95 % interval, covers the sampling of the images and, with two or more runs, training
    high: float
    from_images: float  # standard error due to the sampling of the images
    from_runs: float  # standard error due to the variation between training runs; NaN with one run


def difference_over_seeds(first: CorrectOverSeeds, second: CorrectOverSeeds) -> DifferenceOverSeeds:
    """Compare two systems trained with several seeds, with an interval that covers image sampling and training seeds.

    Let d[s, i] in {-1, 0, 1} be the difference of the outcomes (S, N) for seed s and image i, and D its mean. Then

        V_images = (sum_i (mean_s d[s, i] - D)^2 + 1) / (N (N - 1))
        V_runs   = var_s(mean_i d[s, i]) / S                 (sample variance)
        interval = D +- t(0.975, df) sqrt(V_images + V_runs)

    with the degrees of freedom df of `satterthwaite`. With one run V_runs is unknown and left out: the interval then
    covers the sampling of the images only, for these two networks.

    Raises:
        ValueError: outcomes of different shapes, or without a run or an image.
    """
    from scipy.stats import t  # imported here, because figures drawn from records do not need it

    if first.shape != second.shape or first.ndim != 2 or first.numel() == 0:
        raise ValueError(f"expected two outcomes (seeds, images) alike, got {first.shape} and {second.shape}")
    runs, n = first.shape
    d = first.double() - second.double()
    mean = float(d.mean())
    # Add one to the sum of squares, so that identical outcomes on few images never give an interval of zero width. It
    # is half an image for and half an image against, as Agresti and Min add to the discordant cells, in every run.
    images = (float(((d.mean(dim=0) - mean) ** 2).sum()) + 1.0) / n / max(n - 1, 1)
    between = float(d.mean(dim=1).var()) / runs if runs > 1 else 0.0
    variance = images + between
    freedom = satterthwaite(images, between, n, float(runs - 1))
    half = float(t.ppf(1 - SIGNIFICANCE_LEVEL / 2, freedom)) * math.sqrt(variance)
    from_runs = math.sqrt(between) if runs > 1 else math.nan
    return DifferenceOverSeeds(
        runs, n, mean, max(-1.0, mean - half), min(1.0, mean + half), math.sqrt(images), from_runs
    )


def satterthwaite(images: float, between: float, n: int, runs_freedom: float) -> float:
    """Effective degrees of freedom of the sum of two variances (Satterthwaite 1946, Biometrics Bulletin 2).

    Args:
        images: variance of the mean due to the sampling of ``n`` images.
        between: variance of the mean due to training runs, estimated with ``runs_freedom`` degrees of freedom; 0 means
            that it was not estimated.
    """
    # V = a + b,  df = V^2 / (a^2 / (n - 1) + b^2 / runs_freedom)
    variance = images + between
    return variance**2 / (images**2 / max(n - 1, 1) + (between**2 / runs_freedom if runs_freedom else 0))


def accuracy_over_seeds(outcomes: CorrectOverSeeds) -> DifferenceOverSeeds:
    """The mean accuracy of one system over training runs, from its outcomes (S, N).

    It is `difference_over_seeds` against a system that misclassifies every image, with the same interval and errors.
    """
    return difference_over_seeds(outcomes, torch.zeros_like(outcomes))
