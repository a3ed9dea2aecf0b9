"""Class-named images in a folder or an archive, read without unpacking, decoded once and then cached.

| places | meaning |
|---|---|
| `<class>/<file>` | no official test split: one is cut off, as `data.test` says |
| `train/<class>/<file>` and `test/<class>/<file>` | the two official splits; without `test/`, as above |
| `<anything>/` around either | ignored, if every image lies below it |

Classes are the sorted names of the class folders. Beside `train/` and `test/`, images in other folders are ignored, and
their number is logged. These are refused, with their name: images in no class folder or below one, class folders
without images, a single class, links without target, and classes that differ between the splits.

`paperlib.data.decoding` states the allowed sizes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from pathlib import Path

from paperlib import paths
from paperlib.data.archives import list_archive
from paperlib.data.arrays import SPLITS, DecodedImages
from paperlib.data.decoded_cache import cache_file, load_cache, save_cache
from paperlib.data.decoding import ImageContent, ImagePlace, PlacedImages, decode_images
from paperlib.data.image_files import UNREAD_SUFFIXES, ImageFiles, Parts, is_hidden, is_image, suffix_of
from paperlib.errors import DataError
from paperlib.log import logger

TORCHVISION_FOLDERS = ("cifar-10-batches-py", "cifar-100-python")  # of pickles, in the archives that it downloads
EXPECTED = "expected <class>/<file>, or train/<class>/<file> and test/<class>/<file>"


def read_images(
    name: str, source: Path, *, classes: tuple[str, ...] | None = None, side: int | None = None
) -> DecodedImages:
    """Class-named images from a folder or an archive, decoded once and then cached.

    Args:
        name: of the data set; every error begins with it.
        classes: the required classes of both splits, in the order of their labels; None: the class folders.
        side: width and height in pixels; None: the size of the first image, and one channel if all images are grey.

    Raises:
        DataError: damaged files, or files that this module, `paperlib.data.archives`, `paperlib.data.image_files` or
            `paperlib.data.decoding` refuses; names the file.
    """
    try:
        folder = None if source.is_file() else list_folder(source)
        cache = cache_file(name, source, folder)
        images = load_cache(name, cache)
        if images is None:
            shown = paths.shown(source)
            files = list_archive(source) if folder is None else folder
            placed = _place_images(files, name, shown, classes)
            logger.info(f"{name}: decoding the images in {shown}")
            images = decode_images(placed, classes, side, f"decoding {shown}")
            save_cache(name, images, cache)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    except OSError as error:  # a file that was removed after it was listed
        raise DataError(f"{name}: {paths.shown(source)} cannot be read ({error.strerror})") from error
    return images


def list_folder(folder: Path) -> ImageFiles:
    """All images below a folder; links are followed. Raises DataError for links without target and circles of links."""
    files = ImageFiles()
    _walk(folder, (), (), files)
    return files


def _walk(folder: Path, parts: Parts, parents: tuple[tuple[int, int], ...], files: ImageFiles) -> None:
    """Add the files below ``folder`` to ``files``; ``parents`` are the device and inode numbers of its parents."""
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in parents:
            raise DataError(f"{_joined(parts)} is a link to a folder above it; remove it")
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{_joined(parts) or paths.shown(folder)} cannot be listed ({error.strerror})") from error
    for entry in entries:
        place = (*parts, entry.name)
        if is_hidden((entry.name,)):
            continue
        if os.path.isdir(entry.path):  # entry.is_dir() raises an error for a circle of links
            files.folders.add(place)
            _walk(folder / entry.name, place, (*parents, (status.st_dev, status.st_ino)), files)
        elif is_image(entry.name) or (not os.path.exists(entry.path) and not suffix_of(entry.name)):
            _check_file(entry, place)
            files.add(place, folder / entry.name)
        else:
            files.ignored.append(place)


def _check_file(entry: os.DirEntry[str], place: Parts) -> None:
    try:
        mode = entry.stat().st_mode
    except OSError as error:
        fault = "is a link without target" if entry.is_symlink() else f"cannot be read ({error.strerror})"
        raise DataError(f"{_joined(place)} {fault}; repair or remove it") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{_joined(place)} is no regular file; remove it")


# -- places ------------------------------------------------------------------------------------------------------------


def _place_images(files: ImageFiles, name: str, shown: str, classes: tuple[str, ...] | None) -> PlacedImages:
    """Split, class and file name of every image, sorted. Raises DataError for a place that is not allowed."""
    if not files.images:
        if packed := {part for parts in files.ignored for part in parts} & {*TORCHVISION_FOLDERS}:
            inside = packed.pop()
            raise DataError(f"{shown} holds no images but {inside}/: unpack it, and name the folder around that one")
        raise DataError(f"{shown} holds no images; {EXPECTED}")
    depth = _folders_around(list(files.images))
    official = any(parts[depth] in SPLITS for parts in files.images if len(parts) == depth + 3)
    placed: dict[ImagePlace, ImageContent] = {}
    ignored = list(files.ignored)
    for parts, content in files.images.items():
        inner, path = parts[depth:], _joined(parts)
        if official and inner[0] not in SPLITS:
            ignored.append(parts)
            continue
        if len(inner) != 2 + official:
            relation = "in no" if len(inner) < 2 + official else "below a"
            raise DataError(f"{path} lies {relation} class folder; {EXPECTED}")
        if suffix_of(path) in UNREAD_SUFFIXES:
            raise DataError(f"{path}: files of this kind are not read; save it as PNG, or remove it")
        if not inner[-2].isprintable():
            raise DataError(f"class folder {inner[-2]!a}: its name cannot be printed; rename it")
        placed[ImagePlace(*(inner if official else ("train", *inner)))] = ImageContent(path, content)
    if ignored:
        logger.info(f"{name}: ignored {len(ignored)} other files, such as {_joined(min(ignored))}")
    _check_classes(placed, shown, classes)
    if classes is None:
        _check_folders(placed, [parts[depth:] for parts in files.folders], official)
    return dict(sorted(placed.items()))


def _joined(parts: Parts) -> str:
    """A path for messages; bytes that are not UTF-8 are escaped."""
    return "/".join(parts).encode("utf-8", "backslashreplace").decode()


def _folders_around(images: Sequence[Parts]) -> int:
    """1 if one folder lies around all class folders, or around train/ and test/; else 0."""
    tops = {parts[0] for parts in images}
    return int(len(tops) == 1 and not tops & {*SPLITS} and min(map(len, images)) > 2)


def _check_classes(placed: PlacedImages, shown: str, classes: tuple[str, ...] | None) -> None:
    names = {split: {place.label for place in placed if place.split == split} for split in SPLITS}
    if classes is not None:
        for split in SPLITS:
            if names[split] != {*classes}:
                faults = f"unknown {sorted(names[split] - {*classes})}, missing {sorted({*classes} - names[split])}"
                raise DataError(f"the class folders of {split}/ in {shown} do not match: {faults}")
        return
    if not names["train"]:
        raise DataError(f"{shown} holds test/ and no train/; {EXPECTED}")
    if names["test"] and (only := names["train"] ^ names["test"]):
        raise DataError(f"train/ and test/ in {shown} hold different classes: {sorted(only)} in one of them only")
    if len(names["train"]) < 2:
        raise DataError(f"{shown} holds one class only, {names['train'].pop()!r}; at least two are needed")


def _check_folders(placed: PlacedImages, folders: Iterable[Parts], official: bool) -> None:
    used = {(place.split, place.label) for place in placed}
    for parts in sorted(folders):
        inner = parts if official else ("train", *parts)
        if len(inner) == 2 and inner[0] in SPLITS and inner not in used:
            raise DataError(f"class folder {_joined(parts)} holds no images; remove it, or put images there")
