"""Decodes class-named image files into arrays: square images of one size, `MIN_SIDE` to `MAX_SIDE` pixels.

Images are grey (one channel) if red, green and blue are equal in every pixel of every image; otherwise all images have
three channels.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from paperlib.data.arrays import Arrays, DecodedImages
from paperlib.data.image_files import MAX_FILE_BYTES, decode_image
from paperlib.errors import DataError
from paperlib.log import track

MIN_SIDE, MAX_SIDE = 8, 512  # DenseNet needs 8 pixels; networks for larger images begin with another layer
MAX_DECODED_BYTES = 1 << 32
LABELS = ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "PNG")  # for mixed formats, the first of these names the data set


class ImagePlace(NamedTuple):
    """The place of an image in a data set."""

    split: str  # one of `paperlib.data.arrays.SPLITS`
    label: str
    file: str


class ImageContent(NamedTuple):
    """The bytes of an image file, or its path."""

    name: str  # for errors
    content: bytes | Path


PlacedImages = Mapping[ImagePlace, ImageContent]


@dataclass
class _OneSize:
    """Requires one size of all images; the first image sets it unless ``side`` is given."""

    count: int
    side: int | None
    first: str = ""

    def check(self, name: str, width: int, height: int) -> None:
        """Raises DataError, which names the image."""
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
            advice = f", unlike {self.first}; make all images one size" if self.first else ""
            raise DataError(f"{size}, expected {self.side}x{self.side}{advice}")


def decode_images(placed: PlacedImages, classes: tuple[str, ...] | None, side: int | None, label: str) -> DecodedImages:
    """Decode all images in the order of ``placed``.

    Args:
        classes: in the order of their labels; None: the sorted names of the classes in ``placed``.
        side: the required width and height in pixels, with three channels; None: any single size, and one channel if
            all images are grey.
        label: for the progress lines.

    Raises:
        DataError: an image cannot be decoded or has another size; names the image.
    """
    class_names = classes or tuple(sorted({place.label for place in placed}))
    size, formats = _OneSize(len(placed), side), set()
    images = np.empty((0,), np.uint8)
    for i, file in enumerate(track(placed.values(), len(placed), label)):  # threads would be slower
        pixels, file_format = decode_image(_bytes_of(file), file.name, functools.partial(size.check, file.name))
        images = np.empty((len(placed), *pixels.shape), np.uint8) if i == 0 else images
        images[i] = pixels
        formats.add(file_format)
    if side is None and all((images[:, 0] == images[:, c]).all() for c in (1, 2)):
        images = images[:, :1].copy()
    labels = np.array([class_names.index(place.label) for place in placed], np.int64)
    in_test = np.array([place.split == "test" for place in placed])
    train, test = (Arrays(images[selected], labels[selected]) for selected in (~in_test, in_test))
    kind = next(kind for kind in LABELS if kind in formats).lower()
    return DecodedImages(kind, class_names, train, test if len(test.labels) else None)


def _bytes_of(file: ImageContent) -> bytes:
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
