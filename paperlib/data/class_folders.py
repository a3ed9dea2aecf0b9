"""Class-named images: read from a folder or an archive without unpacking, decoded once, then cached.

| places | meaning |
|---|---|
| `<class>/<file>` | no test split of its own: one is cut off, as `data.test` says |
| `train/<class>/<file>` and `test/<class>/<file>` | the two official splits; without `test/`, as above |
| `<anything>/` around either | left out, if every image lies below it |

Classes are the sorted names of the class folders. Beside `train/` and `test/`, images in other folders are ignored, and
a line says how many; an image within them that lies in no class folder, or deeper, is refused by name, and so are a
class folder without images, a single class, a link that leads nowhere, and classes that differ between the splits.

All images are square and of one size, `MIN_SIDE` to `MAX_SIDE` pixels: the networks here take no other. Images are
grey (one channel) if red, green and blue agree in every pixel of every image, else all have three channels.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paperlib import paths
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.config.serialise import canonical
from paperlib.data.archives import list_archive
from paperlib.data.image_files import (
    MAX_FILE_BYTES,
    UNREAD_SUFFIXES,
    ImageFiles,
    Parts,
    decode_image,
    is_hidden,
    is_image,
    suffix_of,
)
from paperlib.errors import DataError, StoreError
from paperlib.log import logger, track

Ints = NDArray[np.int64]
SPLITS = ("train", "test")
MIN_SIDE, MAX_SIDE = 8, 512  # below 8, DenseNet has no pixel left; networks for larger images have another stem
MAX_DECODED_BYTES = 1 << 32
LABELS = ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "PNG")  # the format that names mixed files: lossy ones first
TORCHVISION_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")  # of pickles, in the archives it downloads
VERSION = "2"  # of the cache; raise it when the same files would be decoded otherwise
EXPECTED = "expected <class>/<file>, or train/<class>/<file> and test/<class>/<file>"


class Arrays(NamedTuple):
    """Images as bytes, with their labels."""

    images: NDArray[np.uint8]  # (N, C, H, W)
    labels: Ints  # (N,)


class Images(NamedTuple):
    """What a folder or an archive holds, in name order."""

    kind: str  # the format that names the files, in small letters: "jpeg" if any of them is one
    classes: tuple[str, ...]
    train: Arrays
    test: Arrays | None  # None without a folder test/


class _Place(NamedTuple):
    split: str
    label: str
    file: str


class _File(NamedTuple):
    name: str  # as errors call it
    content: bytes | Path


Placed = Mapping[_Place, _File]


def read_images(name: str, source: Path, *, classes: tuple[str, ...] | None = None, side: int | None = None) -> Images:
    """Class-named images from a folder or an archive, decoded once and then cached.

    Args:
        name: of the data set; begins every error.
        classes: the classes there must be, in both splits, in the order of their labels; None takes what is there.
        side: pixels a side; None takes the size of the first image, and one channel if all are grey.

    Raises:
        DataError: truncated or damaged files, or what the table of this module, of `paperlib.data.archives` or of
            `paperlib.data.image_files` says is refused; names the file.
    """
    try:
        folder = None if source.is_file() else list_folder(source)
        identity = _identity_of_archive(source) if folder is None else _identity_of_folder(folder)
        cache = paths.home() / "data" / "cache" / f"{name}-{identity}.safetensors"
        images = _load_cache(name, cache)
        if images is None:
            where = paths.shown(source)
            found = list_archive(source) if folder is None else folder
            placed = _placed(found, name, where, classes)
            logger.info(f"{name}: decoding the images in {where}")
            images = _decode(placed, classes, side, f"decoding {where}")
            _save_cache(name, images, cache)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except OSError as error:  # a file that went away between listing and reading
        raise DataError(f"{name}: {paths.shown(source)} cannot be read ({error.strerror})") from error
    return images


def list_folder(folder: Path) -> ImageFiles:
    """Every image below a folder; links are followed. Raises DataError for a link that leads nowhere or in a circle."""
    found = ImageFiles()
    _walk(folder, (), (), found)
    return found


def stamp_of(path: Path) -> tuple[int, ...]:
    """A cheap sign of change of a file: size and times. The change time tells a copy with the old time apart."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _walk(folder: Path, parts: Parts, above: tuple[tuple[int, int], ...], found: ImageFiles) -> None:
    try:
        own = folder.stat()
        if (own.st_dev, own.st_ino) in above:
            raise DataError(f"{_joined(parts)} is a link to a folder above it; remove it")
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{_joined(parts) or paths.shown(folder)} cannot be listed ({error.strerror})") from error
    for entry in entries:
        place = (*parts, entry.name)
        if is_hidden((entry.name,)):
            continue
        if os.path.isdir(entry.path):  # unlike the entry's own, these take links in a circle for nothing at all
            found.folders.add(place)
            _walk(folder / entry.name, place, (*above, (own.st_dev, own.st_ino)), found)
        elif is_image(entry.name) or (not os.path.exists(entry.path) and not suffix_of(entry.name)):
            _check_file(entry, place)
            found.add(place, folder / entry.name)
        else:
            found.ignored.append(place)


def _check_file(entry: os.DirEntry[str], place: Parts) -> None:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        what = "is a link that leads nowhere" if entry.is_symlink() else f"cannot be read ({error.strerror})"
        raise DataError(f"{_joined(place)} {what}; mend or remove it") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{_joined(place)} is no regular file; remove it")


def _identity_of_archive(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(VERSION.encode() + hashlib.file_digest(file, "sha256").digest()).hexdigest()[:16]


def _identity_of_folder(found: ImageFiles) -> str:
    """Tells one state of the files from another without reading them: by their places, sizes and times."""
    digest = hashlib.sha256(VERSION.encode() + canonical(sorted(found.folders)).encode())
    for parts, path in found.images.items():
        assert isinstance(path, Path)
        digest.update(canonical([parts, *stamp_of(path)]).encode())
    return digest.hexdigest()[:16]


# -- places ------------------------------------------------------------------------------------------------------------


def _placed(found: ImageFiles, name: str, where: str, classes: tuple[str, ...] | None) -> Placed:
    """Split, class and file name of every image, in name order. Raises DataError for a place that has no meaning."""
    if not found.images:
        if packed := {part for parts in found.ignored for part in parts} & {*TORCHVISION_FOLDERS}:
            inside = packed.pop()
            raise DataError(f"{where} holds no images but {inside}/: unpack it, and name the folder around that one")
        raise DataError(f"{where} holds no images; {EXPECTED}")
    below = _folder_around(list(found.images))
    official = any(parts[below] in SPLITS for parts in found.images if len(parts) == below + 3)
    placed: dict[_Place, _File] = {}
    ignored = list(found.ignored)
    for parts, content in found.images.items():
        inner, shown = parts[below:], _joined(parts)
        if official and inner[0] not in SPLITS:
            ignored.append(parts)
            continue
        if len(inner) != 2 + official:
            depth = "in no" if len(inner) < 2 + official else "below a"
            raise DataError(f"{shown} lies {depth} class folder; {EXPECTED}")
        if suffix_of(shown) in UNREAD_SUFFIXES:
            raise DataError(f"{shown}: files of this kind are not read; save it as PNG, or remove it")
        if not inner[-2].isprintable():
            raise DataError(f"class folder {inner[-2]!a}: its name cannot be printed; rename it")
        placed[_Place(*(inner if official else ("train", *inner)))] = _File(shown, content)
    if ignored:
        logger.info(f"{name}: ignored {len(ignored)} other files, such as {_joined(min(ignored))}")
    _check_classes(placed, where, classes)
    if classes is None:
        _check_folders(placed, [parts[below:] for parts in found.folders], official)
    return dict(sorted(placed.items()))


def _joined(parts: Parts) -> str:
    """A path as an error or a line can show it, whatever bytes its names are made of."""
    return "/".join(parts).encode("utf-8", "backslashreplace").decode()


def _folder_around(images: Sequence[Parts]) -> int:
    """1 if one folder lies around all class folders, or around train/ and test/; else 0."""
    tops = {parts[0] for parts in images}
    return int(len(tops) == 1 and not tops & {*SPLITS} and min(map(len, images)) > 2)


def _check_classes(placed: Placed, where: str, classes: tuple[str, ...] | None) -> None:
    names = {split: {place.label for place in placed if place.split == split} for split in SPLITS}
    if classes is not None:
        for split in SPLITS:
            if names[split] != {*classes}:
                wrong = f"unknown {sorted(names[split] - {*classes})}, missing {sorted({*classes} - names[split])}"
                raise DataError(f"the class folders of {split}/ in {where} do not match: {wrong}")
        return
    if not names["train"]:
        raise DataError(f"{where} holds test/ and no train/; {EXPECTED}")
    if names["test"] and (only := names["train"] ^ names["test"]):
        raise DataError(f"train/ and test/ in {where} hold different classes: {sorted(only)} in one of them only")
    if len(names["train"]) < 2:
        raise DataError(f"{where} holds one class only, {names['train'].pop()!r}; at least two are needed")


def _check_folders(placed: Placed, folders: Iterable[Parts], official: bool) -> None:
    used = {(place.split, place.label) for place in placed}
    for parts in sorted(folders):
        inner = parts if official else ("train", *parts)
        if len(inner) == 2 and inner[0] in SPLITS and inner not in used:
            raise DataError(f"class folder {_joined(parts)} holds no images; remove it, or put images there")


# -- pixels ------------------------------------------------------------------------------------------------------------


@dataclass
class _OneSize:
    """Requires one size of all images, known from their headers; the first one sets it unless ``side`` is given."""

    count: int
    side: int | None
    first: str = ""

    def check(self, name: str, width: int, height: int) -> None:
        """Raises DataError naming the image."""
        size = f"{name} is {width}x{height} pixels"
        if self.side is None:
            if width != height:
                raise DataError(f"{size}; the networks here take square images: crop or pad all of them")
            if not MIN_SIDE <= width <= MAX_SIDE:
                raise DataError(f"{size}; sides of {MIN_SIDE} to {MAX_SIDE} pixels are read: resize all of them")
            if (total := self.count * 3 * width * height) > MAX_DECODED_BYTES:
                raise DataError(f"{size}; {self.count} such images take {total / 1e9:.0f} GB: resize all of them")
            self.side, self.first = width, name
        elif (width, height) != (self.side, self.side):
            other = f"unlike {self.first}; make all images one size" if self.first else ""
            raise DataError(f"{size}, expected {self.side}x{self.side}{other and f', {other}'}")


def _decode(placed: Placed, classes: tuple[str, ...] | None, side: int | None, label: str) -> Images:
    """Decode in name order. Raises DataError naming the image."""
    known = classes or tuple(sorted({place.label for place in placed}))
    size, kinds = _OneSize(len(placed), side), set()
    images = np.empty((0,), np.uint8)
    for i, file in enumerate(track(placed.values(), len(placed), label)):  # threads make it slower
        pixels, kind = decode_image(_bytes_of(file), file.name, functools.partial(size.check, file.name))
        images = np.empty((len(placed), *pixels.shape), np.uint8) if i == 0 else images
        images[i] = pixels
        kinds.add(kind)
    if side is None and all((images[:, 0] == images[:, c]).all() for c in (1, 2)):
        images = images[:, :1].copy()
    labels = np.array([known.index(place.label) for place in placed], np.int64)
    in_test = np.array([place.split == "test" for place in placed])
    train, test = (Arrays(images[chosen], labels[chosen]) for chosen in (~in_test, in_test))
    kind = next(kind for kind in LABELS if kind in kinds).lower()
    return Images(kind, known, train, test if len(test.labels) else None)


def _bytes_of(file: _File) -> bytes:
    if isinstance(file.content, bytes):
        return file.content
    try:
        with file.content.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise DataError(f"{file.name} cannot be read ({error.strerror})") from error
    if len(content) > MAX_FILE_BYTES:
        raise DataError(f"{file.name} holds more than {MAX_FILE_BYTES >> 20} MiB, too many for an image file")
    return content


# -- cache -------------------------------------------------------------------------------------------------------------


def _load_cache(name: str, path: Path) -> Images | None:
    if not path.is_file():
        return None
    try:
        tensors, about = read_tensors(path)
        if about["sha256"] != digest_of(tensors[part] for part in sorted(tensors)):
            raise StoreError("its checksum differs")
        train, test = (
            Arrays(tensors[f"{split}.images"].numpy(), tensors[f"{split}.labels"].numpy())
            if f"{split}.images" in tensors
            else None
            for split in SPLITS
        )
        if train is None:
            raise StoreError("it holds no training images")
        return Images(about["kind"], tuple(json.loads(about["classes"])), train, test)
    except (StoreError, KeyError, ValueError) as error:
        logger.info(f"{name}: the cache {path.name} is damaged ({error}) and will be made again")
        return None


def _save_cache(name: str, found: Images, path: Path) -> None:
    tensors = {
        f"{split}.{part}": torch.from_numpy(value)
        for split, arrays in zip(SPLITS, (found.train, found.test), strict=True)
        if arrays is not None
        for part, value in arrays._asdict().items()
    }
    about = {"kind": found.kind, "classes": json.dumps(found.classes)}
    about["sha256"] = digest_of(tensors[part] for part in sorted(tensors))
    try:
        write_tensors(path, tensors, about)
    except StoreError as error:
        logger.info(f"{name}: the decoded images could not be cached ({error}); the next load decodes them again")


def digest_of(tensors: Iterable[Tensor], start: str = "") -> str:
    """SHA-256 of the exact bytes, shapes and types of ``tensors``."""
    digest = hashlib.sha256(start.encode())
    for tensor in tensors:
        digest.update(canonical([str(tensor.dtype), *tensor.shape]).encode())
        digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B"))  # type: ignore[arg-type]
    return digest.hexdigest()
