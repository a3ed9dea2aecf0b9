"""Decoding of one image file. Files that are not read are refused, with an error that advises what to do.

| property | read | refused |
|---|---|---|
| suffix | those of `READ_SUFFIXES`, in any case | those of `UNREAD_SUFFIXES`, such as .heic |
| content | PNG, JPEG, WebP, BMP, GIF or TIFF, with any of these suffixes | anything else, truncated or damaged files |
| mode | black and white, grey, palette, RGB | CMYK, YCbCr, LAB, HSV, 32-bit integer, float |
| depth | 1 to 8 bits, scaled to 0..255; 16 bits: the high byte | signed, 12-bit or white-is-zero 16-bit TIFF |
| orientation | upright, as EXIF says | |
| alpha | dropped where every pixel is opaque | any pixel that is not opaque |
| frames | one | more: animations, pages, multi-picture JPEG |
| bytes | at most `MAX_FILE_BYTES` | more |

Only the suffix decides whether a file is an image. All other files are ignored, as are hidden files: those whose name
begins with a dot, or that lie in such a folder or in one of `HIDDEN_FOLDERS`. Colour profiles are not applied.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from paperlib.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

READ_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# fmt: off
UNREAD_SUFFIXES = (
    ".apng", ".arw", ".avif", ".cr2", ".cr3", ".dcm", ".dds", ".dib", ".dng", ".emf", ".eps", ".exr", ".hdr",
    ".heic", ".heif", ".ico", ".j2k", ".jfif", ".jp2", ".jpe", ".jpf", ".jpx", ".jxl", ".nef", ".orf", ".pbm",
    ".pcx", ".pfm", ".pgm", ".pnm", ".ppm", ".psd", ".qoi", ".raw", ".rw2", ".sgi", ".svg", ".svgz", ".tga",
    ".wmf", ".xbm", ".xcf", ".xpm",
)
# fmt: on
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
HIDDEN_FOLDERS = ("__MACOSX", "@eaDir")  # thumbnails and resource forks that macOS and NAS devices add
MAX_FILE_BYTES = 1 << 24
DEPTH_16 = ("I;16", "I;16B", "I;16L", "I;16N")  # Pillow's modes of one 16-bit channel
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", *DEPTH_16)
DAMAGE = (OSError, EOFError, zlib.error, ValueError, SyntaxError, struct.error, MemoryError, KeyError, IndexError)

Parts = tuple[str, ...]  # the parts of a path below the folder or in the archive


@dataclass
class ImageFiles:
    """The files below a folder or in an archive, before any image is decoded."""

    images: dict[Parts, bytes | Path] = field(default_factory=dict)  # read and unread suffixes alike
    folders: set[Parts] = field(default_factory=set)
    ignored: list[Parts] = field(default_factory=list)  # files that are neither images nor hidden

    def add(self, parts: Parts, content: bytes | Path) -> None:
        """Add an image. Raises DataError if there is one with the same path."""
        if parts in self.images:
            raise DataError(f"{'/'.join(parts)} is there twice; remove one of the two")
        self.images[parts] = content


def is_image(name: str) -> bool:
    """True if the file has the suffix of an image, read or unread."""
    return suffix_of(name) in (*READ_SUFFIXES, *UNREAD_SUFFIXES)


def is_hidden(parts: Sequence[str]) -> bool:
    """True if a path is hidden by the rule above."""
    return any(part.startswith(".") or part in HIDDEN_FOLDERS for part in parts)


def suffix_of(name: str) -> str:
    """The suffix in lower case, with its dot."""
    return PurePosixPath(name).suffix.lower()


def decode_image(content: bytes, name: str, check_size: Callable[[int, int], None]) -> tuple[NDArray[np.uint8], str]:
    """The pixels (3, H, W) of an image file, upright, and its format, one of `FORMATS`.

    Args:
        name: of the file, for errors.
        check_size: called with width and height before any pixel is decoded; raises DataError if they are not allowed.

    Raises:
        DataError: the file is refused (table above).
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            check_size(*image.size)
            _check_header(image, name)
            pixels = _pixels(ImageOps.exif_transpose(image), name)
            return pixels, "JPEG" if image.format == "MPO" else str(image.format)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name} cannot be decoded (it is none of {', '.join(FORMATS)}, or damaged)") from error
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise DataError(f"{name} cannot be decoded ({error})") from error


def _check_header(image: Image.Image, name: str) -> None:
    """Raises DataError if the header shows that the file is refused."""
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise DataError(f"{name} holds {frames} images (frames or pages); save the one you mean as a file of its own")
    if image.mode not in MODES:
        raise DataError(f"{name} has the mode {image.mode}, which has no exact 8-bit RGB; convert it to RGB or grey")
    tags = getattr(image, "tag_v2", None)  # of a TIFF file: photometric interpretation and bits per sample
    if tags is not None and image.mode in DEPTH_16 and (tags.get(262), tags.get(258)) != (1, (16,)):
        raise DataError(f"{name} is a grey TIFF of white-is-zero or 12-bit samples; save it as an 8-bit or 16-bit PNG")
    tiles = getattr(image, "tile", [])
    raw = tiles[0].args if image.format == "PNG" and tiles else None
    if raw is not None and "transparency" in image.info and image.mode != "P" and raw not in ("L", "RGB"):
        raise DataError(f"{name} marks a transparent colour in other than 8 bits; save it as an 8-bit PNG")


def _pixels(image: Image.Image, name: str) -> NDArray[np.uint8]:
    if image.mode in DEPTH_16:
        grey = (np.asarray(image) >> 8).astype(np.uint8)  # the high byte, as Pillow does for 16-bit colours
        return np.broadcast_to(grey, (3, *grey.shape))
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        image = image.convert("RGBA")
        if np.asarray(image)[..., 3].min() < 255:
            raise DataError(f"{name} has transparent pixels; put it on a background and save it without transparency")
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
