"""Where each data set comes from, and how its files are found and read.

| `PAPERLIB_DATA` | what happens |
|---|---|
| not set, or empty | `data/raw` is looked at; what is not there is downloaded |
| a folder with the files of the data set, as torchvision names | they are read; nothing is ever downloaded into it |
| the folder torchvision makes, or one of its files | the same |
| a folder or an archive of class-named images | read for `cifar10` and `images`, refused for the others |
| anything that is not there, or neither folder nor file | refused, with the setting as it was given |

`digits` comes with scikit-learn and never looks at the setting; `images` cannot do without it.
"""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paperlib import paths
from paperlib.data.class_folders import SPLITS, Arrays, list_folder, read_images
from paperlib.data.idx_files import read_idx
from paperlib.errors import DataError
from paperlib.log import logger

DIGIT_CLASSES = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


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


@dataclass(frozen=True)
class Files:
    """The files of a data set that torchvision knows, in the folder it makes for them below the one it is given."""

    folder: str  # "" if it makes none
    names: tuple[str, ...]
    advice: str
    anywhere: bool = False  # read in any folder, not only in one of that name

    def found(self, source: Path) -> Path | None:
        """The folder that holds the files, if ``source`` is that folder, the one around it, or one of the files."""
        source = source.parent if source.name in self.names and source.is_file() else source
        is_own = self.anywhere or source.as_posix().endswith(f"/{self.folder}")
        for folder in (source / self.folder, *((source,) if is_own else ())):
            if len(self.missing(folder)) < len(self.names):
                return folder
        return None

    def missing(self, folder: Path) -> list[str]:
        """The names of those files that are not in ``folder``."""
        return [name for name in self.names if not (folder / name).exists()]


def _mnist_files(folder: str) -> Files:
    names = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    advice = f"PAPERLIB_DATA may name a folder that holds {', '.join(names)}; without it, they are downloaded"
    return Files(f"{folder}/raw", names, advice, anywhere=True)


FILES = {
    "cifar10": Files(
        "cifar-10-batches-py",
        (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"),
        "PAPERLIB_DATA may name a folder that holds cifar-10-batches-py/, or train/<class>/*.png (or .jpg) and "
        "test/<class>/*.png, or a .tar.xz, .tar.gz, .tar or .zip of such images; without it, the original is "
        "downloaded",
    ),
    "cifar100": Files(
        "cifar-100-python",
        ("train", "test", "meta"),
        "PAPERLIB_DATA may name a folder that holds cifar-100-python/; without it, the original is downloaded",
    ),
    "svhn": Files(
        "",
        ("train_32x32.mat", "test_32x32.mat"),
        "PAPERLIB_DATA may name a folder that holds train_32x32.mat and test_32x32.mat from "
        "http://ufldl.stanford.edu/housenumbers; without it, they are downloaded",
        anywhere=True,
    ),
    "mnist": _mnist_files("MNIST"),
    "fashion-mnist": _mnist_files("FashionMNIST"),
}


def checked_source(name: str) -> Path:
    """The user's folder or archive, or ``data/raw``. Raises DataError for a setting that names nothing of the kind."""
    given, source = os.environ.get("PAPERLIB_DATA"), paths.data_source()
    if not given:
        if name == "images":
            raise DataError("images: set PAPERLIB_DATA to the folder or archive that holds your images")
        return source
    try:
        if not source.exists():
            raise DataError(f"PAPERLIB_DATA={given}: no such file or folder; correct the setting, or unset it")
        if not source.is_dir() and not source.is_file():
            raise DataError(f"PAPERLIB_DATA={given}: neither a folder nor a regular file")
        with os.scandir(source) if source.is_dir() else source.open("rb"):
            return source
    except OSError as error:
        raise DataError(f"PAPERLIB_DATA={given}: cannot be read ({error.strerror})") from error


def read_source(name: str, source: Path) -> Source:
    """The data set ``name`` from the user's folder or archive, or from ``data/raw``, downloaded where it may be.

    Raises:
        DataError: files that are missing, damaged or not what they should be; says what to do.
    """
    return READERS[name](source)


def files_read(name: str, source: Path) -> list[Path]:
    """The files a change of which changes the data set; those of a data set by extension are all below its folder."""
    if source.is_file():
        return [source]
    if name in FILES and not _holds_images(name, source):
        folder = FILES[name].found(source)
        return [] if folder is None else [folder / file for file in FILES[name].names]
    if name == "images" or name in FILES:
        return [path for path in list_folder(source).images.values() if isinstance(path, Path)]
    return sorted(Path(folder, file) for folder, _, files in os.walk(source) for file in files)


def is_downloaded(name: str, source: Path) -> bool:
    """Whether the data set can be read without a download."""
    if name == "images":
        return bool(os.environ.get("PAPERLIB_DATA")) and source.exists()
    if name not in FILES or source.is_file() or _holds_images(name, source):
        return True
    folder = FILES[name].found(source)
    return folder is not None and not FILES[name].missing(folder)


def _holds_images(name: str, source: Path) -> bool:
    """Whether CIFAR-10 is there as images and not in its original files."""
    return (
        name == "cifar10"
        and FILES[name].found(source) is None
        and (source.is_file() or any((source / split).is_dir() for split in SPLITS))
    )


# -- readers -----------------------------------------------------------------------------------------------------------


def _read_digits(source: Path) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: the images come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    return Source("digits", DIGIT_CLASSES, Arrays(images, bunch.target.astype(np.int64)), None, white=16)


def _read_images(source: Path) -> Source:
    found = read_images("images", source)
    return Source("images", found.classes, found.train, found.test)


def _read_cifar10(source: Path) -> Source:
    if _holds_images("cifar10", source):
        found = read_images("cifar10", source, classes=CIFAR10_CLASSES, side=32)
        return Source(f"cifar10-{found.kind}", found.classes, found.train, found.test)
    return _read_cifar("cifar10", "CIFAR10", source)


def _read_cifar100(source: Path) -> Source:
    return _read_cifar("cifar100", "CIFAR100", source)


def _read_cifar(name: str, dataset: str, source: Path) -> Source:
    def read(root: Path, download: bool) -> Source:
        from torchvision import datasets

        # torchvision opens the pickles only after it has compared their MD5.
        parts = [getattr(datasets, dataset)(root, train=train, download=download) for train in (True, False)]
        train, test = (
            Arrays(np.ascontiguousarray(part.data.transpose(0, 3, 1, 2)), np.asarray(part.targets, np.int64))
            for part in parts
        )
        return Source(name, CIFAR10_CLASSES if name == "cifar10" else tuple(parts[0].classes), train, test)

    folder = _folder(name, source)
    return _read_torchvision(name, folder.parent, read)


def _read_svhn(source: Path) -> Source:
    def read(root: Path, download: bool) -> Source:
        try:
            import scipy  # noqa: F401 - torchvision needs it for these files
        except ImportError as error:
            raise DataError("svhn: reading its files needs SciPy: pip install scipy") from error
        from torchvision.datasets import SVHN

        parts = [SVHN(root, split=split, download=download) for split in SPLITS]
        train, test = (Arrays(np.ascontiguousarray(part.data), part.labels.reshape(-1)) for part in parts)
        return Source("svhn", DIGIT_CLASSES, train, test)

    return _read_torchvision("svhn", _folder("svhn", source), read)


def _read_mnist(source: Path) -> Source:
    return _read_idx("mnist", "MNIST", source)


def _read_fashion_mnist(source: Path) -> Source:
    return _read_idx("fashion-mnist", "FashionMNIST", source)


def _read_idx(name: str, dataset: str, source: Path) -> Source:
    """MNIST's files as torchvision knows them, by name and MD5.

    Not by its class: that reads the unpacked files, whose content nobody has checked (Fashion-MNIST's have the same
    names), and before them a pickle of older versions if there is one.
    """

    def read(folder: Path, download: bool) -> Source:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        known = getattr(datasets, dataset)
        for file, md5 in known.resources:
            if download:
                _download(known.mirrors, file, md5, folder)
            if not check_integrity(str(folder / file), md5):
                raise RuntimeError(file)
        arrays = [read_idx(folder / file, 3 if "images" in file else 1) for file in FILES[name].names]
        train, test = (
            Arrays(np.ascontiguousarray(images[:, None]), labels.astype(np.int64))
            for images, labels in (arrays[:2], arrays[2:])
        )
        return Source(name, DIGIT_CLASSES if name == "mnist" else tuple(known.classes), train, test)

    return _read_torchvision(name, _folder(name, source), read)


def _download(mirrors: list[str], file: str, md5: str, folder: Path) -> None:
    """Fetch a file from the first mirror that has it, unless it is there. Raises what the last one raises."""
    from torchvision.datasets.utils import download_url

    for mirror in mirrors:
        try:
            return download_url(f"{mirror}{file}", str(folder), file, md5)
        except (OSError, RuntimeError):
            if mirror == mirrors[-1]:
                raise


READERS: dict[str, Callable[[Path], Source]] = {
    "digits": _read_digits,
    "cifar10": _read_cifar10,
    "cifar100": _read_cifar100,
    "svhn": _read_svhn,
    "mnist": _read_mnist,
    "fashion-mnist": _read_fashion_mnist,
    "images": _read_images,
}


def _folder(name: str, source: Path) -> Path:
    """Where a data set's files are, or will be downloaded to. Raises DataError where the user's folder lacks them."""
    files, own = FILES[name], bool(os.environ.get("PAPERLIB_DATA"))
    folder = files.found(source)
    if folder is None and source.is_file():
        raise DataError(
            f"{name}: {paths.shown(source)} is not read for it; unpack it if it is an archive. {files.advice}"
        )
    missing = [files.folder or files.names[0]] if folder is None else files.missing(folder)
    if missing and own:
        raise DataError(f"{name}: {missing[0]} is not in {paths.shown(folder or source)}. {files.advice}")
    if missing:
        logger.info(f"{name}: downloading into {paths.shown(source)}")
    return folder or source / files.folder


def _read_torchvision(name: str, root: Path, read: Callable[[Path, bool], Source]) -> Source:
    """The data set by ``read(root, download)``; a folder the user named is never downloaded into."""
    own, advice = bool(os.environ.get("PAPERLIB_DATA")), FILES[name].advice
    try:
        with _network_timeout(60):
            return read(root, not own)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise DataError(f"{name}: could not be {'read' if own else 'downloaded'}: {error}. {advice}") from error
    except RuntimeError as error:  # torchvision's word for an MD5 that differs
        where = paths.shown(root)
        raise DataError(f"{name}: files in {where} are missing or damaged (their MD5 differs). {advice}") from error


@contextmanager
def _network_timeout(seconds: float) -> Iterator[Any]:
    """torchvision sets none, and a silent network would hang for ever."""
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(seconds)
        yield
    finally:
        socket.setdefaulttimeout(before)
