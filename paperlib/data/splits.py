"""Class-balanced splits of a data set, each in an order of which every prefix is class-balanced."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from paperlib.config.schema import DataConfig
from paperlib.data.arrays import Ints
from paperlib.data.sources import Source
from paperlib.errors import DataError
from paperlib.shapes import Images, Labels


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) float32 in [0, 1] and labels (N,) int64; every prefix of their order is class-balanced."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same images on ``device``; shares memory if they are on it already."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """The first ``n`` images, a class-balanced sample. Raises DataError if there are fewer."""
        if not 0 <= n <= len(self):
            raise DataError(f"requested the first {n} of {len(self)} images")
        return Split(self.images[:n], self.labels[:n])


def split_source(source: Source, config: DataConfig) -> tuple[Split, Split, Split]:
    """Training, validation and test split of the sizes in ``config``. Raises DataError if there are too few images."""

    def rng(part: int) -> np.random.Generator:
        return np.random.default_rng([config.split_seed, part])  # a split does not depend on the sizes of the others

    if source.test is None and config.test == 0:
        raise DataError(f"data.test=0: {source.label} has no official test split; set the number of its images")
    test_source = source.test or source.train
    test, rest = _take(test_source.labels, np.arange(len(test_source.labels)), config.test, "test", rng(0))
    labels = source.train.labels
    pool = np.arange(len(labels)) if source.test else rest
    validation, pool = _take(labels, pool, config.validation, "validation", rng(1))
    train, _ = _take(labels, pool, config.train, "train", rng(2))
    train_split, validation_split, test_split = (
        Split(torch.from_numpy(part.images[index]).float().div_(source.white), torch.from_numpy(part.labels[index]))
        for part, index in ((source.train, train), (source.train, validation), (test_source, test))
    )
    return train_split, validation_split, test_split


def _take(labels: Ints, pool: Ints, count: int, name: str, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """``count`` indices of ``pool`` (0: all) in class-balanced random order, and the remaining ones in rising order."""
    if count > len(pool):
        raise DataError(f"data.{name}={count}: only {len(pool)} images are available; request fewer in the profile")
    order = pool[balanced_order(labels[pool], rng)]
    count = count or len(order)
    return order[:count], np.sort(order[count:])


def balanced_order(labels: Ints, rng: np.random.Generator) -> Ints:
    """A random order of which every prefix divides its images among the classes in proportion to their numbers.

    Webster's method of apportionment: the k-th of m images of a class gets the place (k + 1/2) / m, so that a larger
    sample contains the smaller one. The first image of each class gets the place 0, so that no class is left out.
    """
    order = rng.permutation(len(labels))
    place = np.zeros(len(labels))
    for c in np.unique(labels):
        members = np.flatnonzero(labels[order] == c)
        place[members[1:]] = (np.arange(1, len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]
