"""Data sets as tensors: read once, split once, kept in memory or on the device, pixels in [0, 1].

| name      | what, and from where                                                                               |
|-----------|----------------------------------------------------------------------------------------------------|
| `digits`  | 1,797 real grey digits of 8x8 that ship with scikit-learn (UCI Optical Recognition of Digits)      |
| `cifar10` | 60,000 colour images of 32x32: torchvision's files, or class-named images in a folder or archive   |
| `svhn`    | 99,289 colour images of 32x32, house numbers: torchvision's files `{train,test}_32x32.mat`         |

`PAPERLIB_DATA` names a folder or an archive; without it the files are looked for in, or downloaded into, `data/raw`.
CIFAR-10 read from JPEG or PNG files is labelled `cifar10-jpeg` or `cifar10-png`, so that its results never mix with
the original's. Nothing is ever extracted to disk. The original's files are pickles: torchvision opens them only after
their MD5 has matched the known one, and nothing else is unpickled.
"""

from __future__ import annotations

import dataclasses
import http.client
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from paperlib import paths
from paperlib.checks import check_images, check_labels
from paperlib.errors import DataError, InputError
from paperlib.extension import load_extension
from paperlib.image_files import CIFAR10_CLASSES, Arrays, Ints, digest_of, read_images
from paperlib.image_files import HELP as HELP_IMAGES
from paperlib.profiles import DataConfig, Profile, canonical
from paperlib.progress import Say, say
from paperlib.seeds import integers

DIGIT_CLASSES = tuple("0123456789")
BATCHES = "cifar-10-batches-py"  # the folder torchvision makes
HELP_SVHN = (
    "PAPERLIB_DATA may name a folder that holds train_32x32.mat and test_32x32.mat from "
    "http://ufldl.stanford.edu/housenumbers; without it, they are downloaded"
)


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


@dataclass(frozen=True)
class Source:
    """What a reader delivers, before it is split: bytes from 0 to ``white``.

    Raises:
        DataError: the arrays are not images (N, C, H, W) uint8 with labels (N,) int64.
    """

    label: str
    classes: tuple[str, ...]
    train: Arrays
    test: Arrays | None = None  # None where there is no official test split
    white: int = 255

    def __post_init__(self) -> None:
        for name, part in (("train", self.train), ("test", self.test)):
            if part is not None and not (
                part.images.dtype == np.uint8 and part.images.ndim == 4 and part.labels.shape == (len(part.images),)
            ):
                raise DataError(
                    f"{self.label}: expected {name} images (N, C, H, W) uint8 and labels (N,), got "
                    f"{part.images.shape} {part.images.dtype} and {part.labels.shape}"
                )
            if part is not None and part.labels.dtype != np.int64:
                raise DataError(f"{self.label}: expected {name} labels int64, got {part.labels.dtype}")


_loaded: dict[tuple[object, ...], Dataset] = {}  # the data set loaded last, so that a second notebook need not wait


def load_dataset(profile: Profile, device: torch.device | str = "cpu", say: Say = say) -> Dataset:
    """The data of ``profile``, split and on ``device``.

    CIFAR-10 and SVHN keep their official test split; digits has none, so one is cut off. The order of the images is
    seeded by ``data.split_seed`` and not the official one: the first n of any split are a class-balanced sample.

    Raises:
        DataError: missing or damaged files, or more images asked for than there are; says what to do.
        ProfileError: the profile's extension cannot be used.
    """
    config = dataclasses.replace(profile.data, crop=0, flip=False)
    source = paths.data_source()
    extension = load_extension(profile.study.extension)
    key = (config, *(() if config.name == "digits" else (source, _stamp(source), extension.digest)))
    if key not in _loaded:
        if config.name in extension.datasets:
            found = extension.call(extension.datasets[config.name], source)
            if not isinstance(found, Source):
                raise DataError(f"{config.name}: expected a Source from {extension.name}, got {type(found).__name__}")
        else:
            found = {"digits": _read_digits, "cifar10": _read_cifar10, "svhn": _read_svhn}[config.name](source, say)
        dataset = _split(found, config)
        _loaded.clear()
        _loaded[key] = dataset
    return _loaded[key].to(device)


def is_here(profile: Profile) -> bool:
    """Whether the images of ``profile`` can be read without a download."""
    name, source = profile.data.name, paths.data_source()
    if name not in ("cifar10", "svhn") or source.is_file():
        return True
    signs = ("train_32x32.mat",) if name == "svhn" else (BATCHES, "train", "test")
    return source.name == BATCHES or any((source / sign).exists() for sign in signs)


def make_dataset(label: str, classes: tuple[str, ...], train: Split, validation: Split, test: Split) -> Dataset:
    """Check three splits and add the fingerprint and the statistics. Raises InputError, or DataError by class."""
    splits = {"train": train, "validation": validation, "test": test}
    for name, split in splits.items():
        check_images(split.images, f"{name} images")
        check_labels(split.labels, split.images, f"{name} labels")
        seen = set(split.labels.tolist())
        if wrong := seen ^ set(range(len(classes))):
            raise DataError(
                f"{label}: {len(split)} {name} images, with classes {sorted(wrong)} absent or unknown; each of "
                f"{len(classes)} classes must be there, so ask for at least {len(classes)} images"
            )
    tensors = [tensor for split in splits.values() for tensor in (split.images, split.labels)]
    fingerprint = f"{label}:{digest_of(tensors, canonical([label, classes]))[:16]}"
    mean, std = _moments(train.images)
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
        raise DataError(f"data.{name}={asked}: only {len(pool)} images are there to choose from")
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


def _stamp(source: Path) -> tuple[object, ...]:
    """A cheap sign of change: sizes and times of a file, or of a folder's own entries."""
    entries = [source, *(sorted(source.iterdir()) if source.is_dir() else ())]
    return tuple((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries if e.exists())


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


def _read_digits(source: Path, say: Say) -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    return Source("digits", DIGIT_CLASSES, Arrays(images, bunch.target.astype(np.int64)), None, white=16)


def _read_cifar10(source: Path, say: Say) -> Source:
    source = source.parent if source.name == BATCHES else source
    if source.is_file() or (not (source / BATCHES).is_dir() and any((source / s).is_dir() for s in ("train", "test"))):
        found = read_images(source, say)
        return Source(found.label, CIFAR10_CLASSES, found.train, found.test)

    def read(train: bool, download: bool) -> Arrays:
        from torchvision.datasets import CIFAR10

        data = CIFAR10(source, train=train, download=download)
        return Arrays(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)), np.asarray(data.targets, np.int64))

    return _read_torchvision("cifar10", CIFAR10_CLASSES, source / BATCHES, read, HELP_IMAGES, say)


def _read_svhn(source: Path, say: Say) -> Source:
    def read(train: bool, download: bool) -> Arrays:
        from torchvision.datasets import SVHN

        data = SVHN(source, split="train" if train else "test", download=download)
        return Arrays(np.ascontiguousarray(data.data), data.labels.reshape(-1))

    return _read_torchvision("svhn", DIGIT_CLASSES, source / "train_32x32.mat", read, HELP_SVHN, say)


def _read_torchvision(
    name: str, classes: tuple[str, ...], sign: Path, read: Callable[[bool, bool], Arrays], advice: str, say: Say
) -> Source:
    """Both splits by ``read(train, download)``; a folder the user named is never downloaded into."""
    own, where = bool(os.environ.get("PAPERLIB_DATA")), paths.shown(sign.parent)
    if not sign.exists():
        if own:
            raise DataError(f"{name}: {sign.name} is not in {where}. {advice}")
        say(f"{name}: downloading into {where}")
    timeout = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(60)  # torchvision sets none, and a silent network would hang for ever
        return Source(name, classes, read(True, not own), read(False, not own))
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise DataError(f"{name}: could not be {'read' if own else 'downloaded'}: {error}. {advice}") from error
    except RuntimeError as error:  # torchvision's word for an MD5 that differs
        raise DataError(f"{name}: files in {where} are missing or damaged (their MD5 differs). {advice}") from error
    finally:
        socket.setdefaulttimeout(timeout)
