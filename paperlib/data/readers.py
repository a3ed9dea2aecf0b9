"""Reads each data set from its files; missing files are downloaded unless ``PAPERLIB_DATA`` is set."""

from __future__ import annotations

import http.client
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from paperlib import paths
from paperlib.data.arrays import SPLITS, Arrays
from paperlib.data.class_folders import read_images
from paperlib.data.idx_files import read_idx
from paperlib.data.sources import CIFAR10_CLASSES, DIGIT_CLASSES, FILES, Source, holds_images
from paperlib.errors import DataError
from paperlib.log import logger


def read_source(name: str, source: Path) -> Source:
    """The data set ``name`` from the user's folder or archive, or from ``data/raw``, into which it may be downloaded.

    Raises:
        DataError: files are missing, damaged or of another kind; advises what to do.
    """
    return READERS[name](source)


def _read_digits(source: Path) -> Source:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise DataError("digits: the images come with scikit-learn: pip install scikit-learn") from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[:, None]
    return Source("digits", DIGIT_CLASSES, Arrays(images, bunch.target.astype(np.int64)), None, white=16)


def _read_images(source: Path) -> Source:
    images = read_images("images", source)
    return Source("images", images.classes, images.train, images.test)


def _read_cifar10(source: Path) -> Source:
    if holds_images("cifar10", source):
        images = read_images("cifar10", source, classes=CIFAR10_CLASSES, side=32)
        return Source(f"cifar10-{images.kind}", images.classes, images.train, images.test)
    return _read_cifar("cifar10", "CIFAR10", source)


def _read_cifar100(source: Path) -> Source:
    return _read_cifar("cifar100", "CIFAR100", source)


def _read_cifar(name: str, dataset: str, source: Path) -> Source:
    def read(root: Path, download: bool) -> Source:
        from torchvision import datasets

        # torchvision unpickles the files only if their MD5 matches.
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
    """The files of MNIST or Fashion-MNIST, by the names and MD5 sums of torchvision.

    torchvision's own reader is not used: it reads unpacked files without a checksum (both data sets have the same file
    names), and pickles of its older versions.
    """

    def read(folder: Path, download: bool) -> Source:
        from torchvision import datasets
        from torchvision.datasets.utils import check_integrity

        torchvision_dataset = getattr(datasets, dataset)
        for file, md5 in torchvision_dataset.resources:
            if download:
                _download(torchvision_dataset.mirrors, file, md5, folder)
            if not check_integrity(str(folder / file), md5):
                raise RuntimeError(file)
        arrays = [read_idx(folder / file, 3 if "images" in file else 1) for file in FILES[name].names]
        train, test = (
            Arrays(np.ascontiguousarray(images[:, None]), labels.astype(np.int64))
            for images, labels in (arrays[:2], arrays[2:])
        )
        return Source(name, DIGIT_CLASSES if name == "mnist" else tuple(torchvision_dataset.classes), train, test)

    return _read_torchvision(name, _folder(name, source), read)


def _download(mirrors: list[str], file: str, md5: str, folder: Path) -> None:
    """Download a file from the first mirror that works, unless it exists. Raises the error of the last mirror."""
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
    """The folder of the files, or the one to download them into. Raises DataError if the user's folder lacks them."""
    files = FILES[name]
    folder = files.folder_in(source)
    if folder is None and source.is_file():
        raise DataError(
            f"{name}: {paths.shown(source)} cannot be read as {name}; unpack it if it is an archive. {files.advice}"
        )
    missing = [files.folder or files.names[0]] if folder is None else files.missing(folder)
    if missing and _is_user_folder():
        raise DataError(f"{name}: {missing[0]} is not in {paths.shown(folder or source)}. {files.advice}")
    if missing:
        logger.info(f"{name}: downloading into {paths.shown(source)}")
    return folder or source / files.folder


def _read_torchvision(name: str, root: Path, read: Callable[[Path, bool], Source]) -> Source:
    """The data set by ``read(root, download)``. Nothing is downloaded into the user's own folder."""
    download, advice = not _is_user_folder(), FILES[name].advice
    try:
        with _network_timeout(60):
            return read(root, download)
    except (OSError, http.client.HTTPException) as error:  # URLError is an OSError
        raise DataError(f"{name}: could not be {'downloaded' if download else 'read'}: {error}. {advice}") from error
    except RuntimeError as error:  # torchvision's error for another MD5
        shown = paths.shown(root)
        raise DataError(f"{name}: files in {shown} are missing or damaged (their MD5 differs). {advice}") from error


def _is_user_folder() -> bool:
    return bool(os.environ.get("PAPERLIB_DATA"))


@contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """A timeout for downloads; torchvision sets none, so a stalled connection would never end."""
    before = socket.getdefaulttimeout()
    try:
        socket.setdefaulttimeout(seconds)
        yield
    finally:
        socket.setdefaulttimeout(before)
