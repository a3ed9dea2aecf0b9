"""A data set in three splits, loaded once in each process."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch

from paperlib import paths
from paperlib.arguments import as_images, as_labels
from paperlib.config.plugins import load_extension
from paperlib.config.schema import Profile
from paperlib.config.serialise import canonical
from paperlib.data.arrays import digest_of
from paperlib.data.decoded_cache import stamp_of
from paperlib.data.readers import read_source
from paperlib.data.sources import Source, checked_source, files_read, is_downloaded
from paperlib.data.splits import Split, split_source
from paperlib.errors import DataError
from paperlib.shapes import Images


@dataclass(frozen=True, eq=False)
class Dataset:
    """Three splits and their fingerprint. Do not change the tensors: the whole process shares them."""

    label: str  # such as "digits" or "cifar10-jpeg"; every record contains it
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


_loaded: dict[tuple[object, ...], Dataset] = {}  # the last data set, by what it was read from


def load_dataset(profile: Profile, device: torch.device | str = "cpu") -> Dataset:
    """The data set of ``profile`` in three splits on ``device``.

    An official test split is kept; otherwise one is cut off. The order of the images is random with the seed
    ``data.split_seed``, and the first n images of any split are a class-balanced sample.

    Raises:
        DataError: files are missing or damaged, or there are fewer images than the profile requests; advises what to
            do.
        ProfileError: the profile's extension cannot be used.
    """
    config = dataclasses.replace(profile.data, crop=0, flip=False)
    extension = load_extension(profile.study.extension)
    key: tuple[object, ...] = (config,)
    source = Path()  # digits are read from no file of the user
    if config.name != "digits":
        source = checked_source(config.name)
        key = (config, source, _stamp(config.name, source), extension.digest)
    if key not in _loaded:
        if config.name in extension.datasets:
            read = extension.call(extension.datasets[config.name], source)
            if not isinstance(read, Source):
                raise DataError(f"{config.name}: expected a Source from {extension.name}, got {type(read).__name__}")
        else:
            read = read_source(config.name, source)
        dataset = make_dataset(read.label, read.classes, *split_source(read, config))
        _loaded.clear()
        _loaded[key] = dataset
    return _loaded[key].to(device)


def check_counts(profile: Profile, data: Dataset) -> None:
    """Require that the test split holds the number of images that the profile evaluates. Raises DataError by key."""
    for key, count in (("evaluation.images", profile.evaluation.images), ("stress.images", profile.stress.images)):
        if count > len(data.test):
            raise DataError(
                f"{key}={count}: the test split of {data.label} holds {len(data.test)} images; "
                f"set {key} to {len(data.test)} or fewer in profile {profile.name}"
            )


def is_here(profile: Profile) -> bool:
    """Whether the images of ``profile`` can be read without a download."""
    return is_downloaded(profile.data.name, paths.data_source())


def make_dataset(label: str, classes: tuple[str, ...], train: Split, validation: Split, test: Split) -> Dataset:
    """A data set of three splits, with its fingerprint and statistics.

    Raises:
        InputError: images or labels of another shape, type or range.
        NotFiniteError: images that contain NaN or infinity.
        DataError: a split lacks a class or has an unknown one, or a channel is constant.
    """
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        as_images(split.images, f"{name} images")
        as_labels(split.labels, split.images, f"{name} labels")
        if faults := set(split.labels.tolist()) ^ set(range(len(classes))):
            raise DataError(
                f"{label}: {len(split)} {name} images, with classes {sorted(faults)} absent or unknown; each split "
                f"needs images of all {len(classes)} classes, so request at least {len(classes)} images"
            )
    tensors = [tensor for split in splits.values() for tensor in (split.images, split.labels)]
    fingerprint = f"{label}:{digest_of(tensors, canonical([label, classes]))[:16]}"
    mean, std = _moments(train.images)
    if 0 in std:
        raise DataError(
            f"{label}: channel {std.index(0)} has one value in all training images and cannot be normalised; check the "
            "images"
        )
    return Dataset(label, train, validation, test, classes, fingerprint, mean, std)


def _stamp(name: str, source: Path) -> str:
    """A hash over the paths, sizes and times of all files of the data set; their content is not read."""
    digest = hashlib.sha256()
    try:
        files = files_read(name, source)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    for path in files:
        try:
            digest.update(canonical([str(path), *stamp_of(path)]).encode())
        except OSError:  # missing: the reader raises an error if it needs the file
            digest.update(canonical([str(path)]).encode())
    return digest.hexdigest()


def _moments(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel, rounded so that they do not depend on the number of threads."""
    sums = torch.stack(
        [
            torch.stack([block.sum((0, 2, 3)), block.square().sum((0, 2, 3))])
            for block in (part.cpu().double() for part in images.split(1000))
        ]
    ).sum(0)
    mean, square = sums / (images.numel() / images.shape[1])
    std = (square - mean.square()).clamp(min=0).sqrt()
    return tuple(round(v, 6) for v in mean.tolist()), tuple(round(v, 6) for v in std.tolist())
