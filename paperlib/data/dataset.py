"""A data set in three splits, loaded once a process, and the augmentation of its training images."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperlib import paths
from paperlib.arguments import as_images, as_labels
from paperlib.config.plugins import load_extension
from paperlib.config.schema import DataConfig, Profile
from paperlib.config.serialise import canonical
from paperlib.data.class_folders import Ints, digest_of, stamp_of
from paperlib.data.sources import Source, checked_source, files_read, is_downloaded, read_source
from paperlib.errors import DataError, InputError
from paperlib.seeds import integers


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) float32 in [0, 1] and labels (N,) int64, in an order whose every prefix is class-balanced."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> Split:
        """The same images on ``device``; shares memory if they are there already."""
        return Split(self.images.to(device), self.labels.to(device))

    def first(self, n: int) -> Split:
        """The first ``n`` images, a class-balanced sample. Raises DataError if there are fewer."""
        if not 0 <= n <= len(self):
            raise DataError(f"asked for the first {n} of {len(self)} images")
        return Split(self.images[:n], self.labels[:n])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits and what identifies them. Treat the tensors as read-only: they may be shared within the process."""

    label: str  # such as "digits" or "cifar10-jpeg"; stands beside every result
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    fingerprint: str  # label and 16 hex digits of a SHA-256 over the classes and all three splits
    mean: tuple[float, ...]  # of each channel of the training images, to six decimals
    std: tuple[float, ...]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``."""
        splits = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return dataclasses.replace(self, **splits)


_loaded: dict[tuple[object, ...], Dataset] = {}  # the data set loaded last, so that a second notebook need not wait


def load_dataset(profile: Profile, device: torch.device | str = "cpu") -> Dataset:
    """The data of ``profile``, split and on ``device``.

    CIFAR-10 and SVHN keep their official test split; digits has none, so one is cut off. The order of the images is
    seeded by ``data.split_seed`` and not the official one: the first n of any split are a class-balanced sample.

    Raises:
        DataError: missing or damaged files, or more images asked for than there are; says what to do.
        ProfileError: the profile's extension cannot be used.
    """
    config = dataclasses.replace(profile.data, crop=0, flip=False)
    extension = load_extension(profile.study.extension)
    key: tuple[object, ...] = (config,)
    source = Path()  # digits come from no file of the user's
    if config.name != "digits":
        source = checked_source(config.name)
        key = (config, source, _stamp(config.name, source), extension.digest)
    if key not in _loaded:
        if config.name in extension.datasets:
            found = extension.call(extension.datasets[config.name], source)
            if not isinstance(found, Source):
                raise DataError(f"{config.name}: expected a Source from {extension.name}, got {type(found).__name__}")
        else:
            found = read_source(config.name, source)
        dataset = _split(found, config)
        _loaded.clear()
        _loaded[key] = dataset
    return _loaded[key].to(device)


def check_counts(profile: Profile, data: Dataset) -> None:
    """Require that the test split holds as many images as the profile evaluates. Raises DataError by key."""
    for key, asked in (("evaluation.images", profile.evaluation.images), ("stress.images", profile.stress.images)):
        if asked > len(data.test):
            raise DataError(
                f"{key}={asked}: the test split of {data.label} holds {len(data.test)} images; "
                f"set {key} to {len(data.test)} or fewer in profile {profile.name}"
            )


def is_here(profile: Profile) -> bool:
    """Whether the images of ``profile`` can be read without a download."""
    return is_downloaded(profile.data.name, paths.data_source())


def make_dataset(label: str, classes: tuple[str, ...], train: Split, validation: Split, test: Split) -> Dataset:
    """Check three splits and add the fingerprint and the statistics. Raises InputError, or DataError by class."""
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        as_images(split.images, f"{name} images")
        as_labels(split.labels, split.images, f"{name} labels")
        seen = set(split.labels.tolist())
        if wrong := seen ^ set(range(len(classes))):
            raise DataError(
                f"{label}: {len(split)} {name} images, with classes {sorted(wrong)} absent or unknown; each of "
                f"{len(classes)} classes must be there, so ask for at least {len(classes)} images"
            )
    tensors = [tensor for split in splits.values() for tensor in (split.images, split.labels)]
    fingerprint = f"{label}:{digest_of(tensors, canonical([label, classes]))[:16]}"
    mean, std = _moments(train.images)
    if 0 in std:
        raise DataError(
            f"{label}: channel {std.index(0)} has one value in all training images, and cannot be normalised; are the "
            "images what they should be?"
        )
    return Dataset(label, train, validation, test, classes, fingerprint, mean, std)


def augment(images: Tensor, *, crop: int, flip: bool, generator: torch.Generator) -> Tensor:
    """Random shifts and mirrorings of a batch (N, C, H, W), one draw per image.

    Each image is padded with ``crop`` zero pixels on every side and cut back to its size at a random place; with
    ``flip`` it is then mirrored left to right with probability one half. Pixels are copied, so they stay in [0, 1].
    Random numbers are drawn on the generator's device and moved, so a CPU generator gives the same result everywhere.
    With nothing to do, the batch itself is returned and nothing is drawn.

    Raises:
        InputError: ``images`` has not four axes, or ``crop`` is negative.
    """
    if images.ndim != 4 or crop < 0:
        raise InputError(f"augment: expected images (N, C, H, W) and crop >= 0, got {tuple(images.shape)}, crop={crop}")
    count, _, height, width = images.shape

    def draw(high: int) -> Tensor:
        return integers(high, (count,), generator, images.device)

    if crop:
        # A view (N, C, 2 crop + 1, 2 crop + 1, H, W) of all windows; indexing copies one window of each image.
        windows = torch.nn.functional.pad(images, (crop,) * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = draw(2 * crop + 1), draw(2 * crop + 1)
        images = windows[torch.arange(count, device=images.device), :, top, left]
    if flip:
        images = torch.where(draw(2).bool()[:, None, None, None], images.flip(3), images)
    return images


def _split(source: Source, config: DataConfig) -> Dataset:
    def rng(part: int) -> np.random.Generator:
        return np.random.default_rng([config.split_seed, part])  # so that one split's size leaves the others alone

    if source.test is None and config.test == 0:
        raise DataError(f"data.test=0: {source.label} has no test split of its own; say how many images it gets")
    official = source.test or source.train
    test, rest = _take(official.labels, np.arange(len(official.labels)), config.test, "test", rng(0))
    labels = source.train.labels
    pool = np.arange(len(labels)) if source.test else rest
    validation, pool = _take(labels, pool, config.validation, "validation", rng(1))
    train, _ = _take(labels, pool, config.train, "train", rng(2))
    splits = [
        Split(torch.from_numpy(part.images[index]).float().div_(source.white), torch.from_numpy(part.labels[index]))
        for part, index in ((source.train, train), (source.train, validation), (official, test))
    ]
    return make_dataset(source.label, source.classes, *splits)


def _take(labels: Ints, pool: Ints, asked: int, name: str, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """``asked`` indices of ``pool`` (0 means all) in class-balanced random order, and those left."""
    if asked > len(pool):
        raise DataError(
            f"data.{name}={asked}: only {len(pool)} images are there to choose from; ask for fewer in the profile"
        )
    order = pool[_balanced_order(labels[pool], rng)]
    count = asked or len(order)
    return order[:count], np.sort(order[count:])


def _balanced_order(labels: Ints, rng: np.random.Generator) -> Ints:
    """A random order whose every prefix shares its seats among the classes as the whole does.

    The k-th of m images of a class stands at (k + 1/2) / m: Webster's rule of apportionment, under which a larger
    sample contains the smaller one. The first image of each class stands at 0, so that no class is left out.
    """
    order = rng.permutation(len(labels))
    place = np.zeros(len(labels))
    for c in np.unique(labels):
        members = np.flatnonzero(labels[order] == c)
        place[members[1:]] = (np.arange(1, len(members)) + 0.5) / len(members)
    return order[np.argsort(place, kind="stable")]


def _stamp(name: str, source: Path) -> str:
    """A cheap sign of change: a hash over the names, sizes and times of all files the data set is read from."""
    digest = hashlib.sha256()
    try:
        files = files_read(name, source)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    for path in files:
        try:
            digest.update(canonical([str(path), *stamp_of(path)]).encode())
        except OSError:  # not there (yet): reading says so, if it matters
            digest.update(canonical([str(path)]).encode())
    return digest.hexdigest()


def _moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, in blocks and rounded, so that no thread count shows in them."""
    sums = torch.stack(
        [
            torch.stack([block.sum((0, 2, 3)), block.square().sum((0, 2, 3))])
            for block in (part.cpu().double() for part in images.split(1000))
        ]
    ).sum(0)
    mean, square = sums / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())
