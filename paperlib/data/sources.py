"""Where each data set comes from, and how its files are found. `paperlib.data.readers` reads them.

| `PAPERLIB_DATA` | effect |
|---|---|
| not set, or empty | the files are looked for in `data/raw`; missing files are downloaded |
| a folder with the files of the data set under torchvision's names | they are read; nothing is downloaded into it |
| the folder that torchvision creates, or one of its files | the same |
| a folder or an archive of class-named images | read for `cifar10` and `images`, refused for the others |
| a path that does not exist or is neither folder nor file | refused; the error repeats the setting |

`digits` come with scikit-learn and ignore the setting; `images` require it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paperlib import paths
from paperlib.data.arrays import SPLITS, Arrays
from paperlib.data.class_folders import list_folder
from paperlib.errors import DataError

DIGIT_CLASSES = tuple("0123456789")
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Source:
    """The images of a data set before they are split, as bytes from 0 to ``white``.

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
    """The files of a data set of torchvision."""

    folder: str  # the folder that torchvision creates for them; "" if none
    names: tuple[str, ...]
    advice: str
    any_folder: bool = False  # they may be in a folder of any name

    def folder_in(self, source: Path) -> Path | None:
        """The folder with the files, if ``source`` is that folder, its parent, or one of the files; else None."""
        source = source.parent if source.name in self.names and source.is_file() else source
        may_hold_files = self.any_folder or source.as_posix().endswith(f"/{self.folder}")
        for folder in (source / self.folder, *((source,) if may_hold_files else ())):
            if len(self.missing(folder)) < len(self.names):
                return folder
        return None

    def missing(self, folder: Path) -> list[str]:
        """The names of the files that are not in ``folder``."""
        return [name for name in self.names if not (folder / name).exists()]


def _mnist_files(folder: str) -> Files:
    names = tuple(f"{part}-{kind}-ubyte.gz" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1"))
    advice = f"PAPERLIB_DATA may name a folder that holds {', '.join(names)}; without it, they are downloaded"
    return Files(f"{folder}/raw", names, advice, any_folder=True)


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
        any_folder=True,
    ),
    "mnist": _mnist_files("MNIST"),
    "fashion-mnist": _mnist_files("FashionMNIST"),
}


def checked_source(name: str) -> Path:
    """The user's folder or archive, or ``data/raw``. Raises DataError if ``PAPERLIB_DATA`` names neither."""
    setting, source = os.environ.get("PAPERLIB_DATA"), paths.data_source()
    if not setting:
        if name == "images":
            raise DataError("images: set PAPERLIB_DATA to the folder or archive that holds your images")
        return source
    try:
        if not source.exists():
            raise DataError(f"PAPERLIB_DATA={setting}: no such file or folder; correct the setting, or unset it")
        if not source.is_dir() and not source.is_file():
            raise DataError(f"PAPERLIB_DATA={setting}: neither a folder nor a regular file")
        with os.scandir(source) if source.is_dir() else source.open("rb"):
            return source
    except OSError as error:
        raise DataError(f"PAPERLIB_DATA={setting}: cannot be read ({error.strerror})") from error


def files_read(name: str, source: Path) -> list[Path]:
    """The files that determine the data set; for a data set of an extension, all files below the folder."""
    if source.is_file():
        return [source]
    if name in FILES and not holds_images(name, source):
        folder = FILES[name].folder_in(source)
        return [] if folder is None else [folder / file for file in FILES[name].names]
    if name == "images" or name in FILES:
        return [path for path in list_folder(source).images.values() if isinstance(path, Path)]
    return sorted(Path(folder, file) for folder, _, files in os.walk(source) for file in files)


def is_downloaded(name: str, source: Path) -> bool:
    """True if the data set can be read without a download."""
    if name == "images":
        return bool(os.environ.get("PAPERLIB_DATA")) and source.exists()
    if name not in FILES or source.is_file() or holds_images(name, source):
        return True
    folder = FILES[name].folder_in(source)
    return folder is not None and not FILES[name].missing(folder)


def holds_images(name: str, source: Path) -> bool:
    """True if ``source`` holds CIFAR-10 as image files and not in its original files."""
    return (
        name == "cifar10"
        and FILES[name].folder_in(source) is None
        and (source.is_file() or any((source / split).is_dir() for split in SPLITS))
    )
