"""Numbers with their uncertainty: Wilson intervals, and paired comparison of two systems on the same images."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

LEVEL = 0.05  # intervals leave out the true value, and tests find a difference where there is none, this often
Z95 = 1.959963984540054


def wilson(correct: int, n: int, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval of a proportion, as fractions (Wilson 1927). ``n`` of 0 gives (0, 1)."""
    if n == 0:
        return 0.0, 1.0
    p, z2 = correct / n, z * z
    # (p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)
    centre, half = p + z2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z2 / (4 * n * n))
    # At 0 and n the exact ends are 0 and 1; rounding must not push them past p.
    return max(0.0, min(p, (centre - half) / (1 + z2 / n))), min(1.0, max(p, (centre + half) / (1 + z2 / n)))


@dataclass(frozen=True)
class PairedDifference:
    """Two systems on the same n images. The difference is first minus second, as a fraction."""

    n: int
    only_first: int  # images only the first system gets right
    only_second: int
    difference: float
    low: float
    high: float
    p_value: float  # McNemar's exact test


def paired_difference(first: Tensor, second: Tensor) -> PairedDifference:
    """Compare two outcomes (N,) bool, True where the system is right, image by image.

    The interval is Agresti and Min's (2005) adjusted Wald interval for matched pairs, the p-value McNemar's exact test.

    Raises:
        ValueError: outcomes of different images (unequal lengths).
    """
    if first.shape != second.shape or first.ndim != 1:
        raise ValueError(f"paired comparison needs outcomes on the same images, got {first.shape} and {second.shape}")
    n = len(first)
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    # Agresti-Min: add 1/2 to each of the four cells, then Wald.
    b_, c_, n_ = b + 0.5, c + 0.5, n + 2
    centre = (b_ - c_) / n_
    half = Z95 * math.sqrt(b_ + c_ - (b_ - c_) ** 2 / n_) / n_
    return PairedDifference(
        n, b, c, (b - c) / max(n, 1), max(-1.0, centre - half), min(1.0, centre + half), _mcnemar(b, c)
    )


def _mcnemar(b: int, c: int) -> float:
    # Under the null the discordant pairs are fair coin tosses: p = 2 P(X <= min(b, c)), X ~ Binomial(b + c, 1/2).
    m = b + c
    tail = sum(math.comb(m, k) for k in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2**m) if m else 1.0


@dataclass(frozen=True)
class DifferenceOverSeeds:
    """A difference of two systems over several training runs, each judged on the same n images; fractions."""

    seeds: int
    n: int
    difference: float  # mean over runs and images, first minus second
    low: float
    high: float
    from_images: float  # standard error: had other images been drawn
    from_runs: float  # standard error: had training fallen otherwise; NaN with one run


def difference_over_seeds(first: Tensor, second: Tensor) -> DifferenceOverSeeds:
    """Compare two systems trained with several seeds: outcomes (seeds, N) bool, True where the system is right.

    The variance of the mean difference is that between images plus that between runs, and its t interval has the
    effective degrees of freedom of Satterthwaite (1946). With one run the second part is unknown, and the interval
    speaks of those two networks only.

    Raises:
        ValueError: outcomes of different shapes, or of no run or no image.
    """
    from scipy.stats import t  # late: replaying a figure needs no statistics

    if first.shape != second.shape or first.ndim != 2 or first.numel() == 0:
        raise ValueError(f"expected two outcomes (seeds, images) alike, got {first.shape} and {second.shape}")
    runs, n = first.shape
    d = first.double() - second.double()
    mean = float(d.mean())
    # Half an image for and half against in every run, as Agresti and Min add for one: agreement on all of few images is
    # no certainty, and more runs on the same images make it none.
    images = (float(((d.mean(dim=0) - mean) ** 2).sum()) + 1.0) / n / max(n - 1, 1)
    between = float(d.mean(dim=1).var()) / runs if runs > 1 else 0.0
    variance = images + between
    freedom = satterthwaite(images, between, n, runs - 1)
    half = float(t.ppf(1 - LEVEL / 2, freedom)) * math.sqrt(variance)
    apart = math.sqrt(between) if runs > 1 else math.nan
    return DifferenceOverSeeds(runs, n, mean, max(-1.0, mean - half), min(1.0, mean + half), math.sqrt(images), apart)


def satterthwaite(images: float, between: float, n: int, runs_freedom: float) -> float:
    """Effective degrees of freedom (Satterthwaite 1946) of the sum of two variances of a mean.

    Args:
        images: the variance that ``n`` images leave.
        between: the variance that training runs leave, estimated with ``runs_freedom`` degrees of freedom (0: none).
    """
    # V = a + b,  df = V^2 / (a^2 / (n - 1) + b^2 / runs_freedom)
    variance = images + between
    return variance**2 / (images**2 / max(n - 1, 1) + (between**2 / runs_freedom if runs_freedom else 0))


def accuracy_over_seeds(outcomes: Tensor) -> DifferenceOverSeeds:
    """One system's accuracy over training runs: `difference_over_seeds` against a system that is never right."""
    return difference_over_seeds(outcomes, torch.zeros_like(outcomes))
