"""CIFAR-10 as class-named images: read from a folder or an archive without unpacking, decoded once, then cached."""

from __future__ import annotations

import hashlib
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from paperlib import paths
from paperlib.errors import DataError, StoreError
from paperlib.files import read_tensors, write_tensors
from paperlib.profiles import canonical
from paperlib.progress import Say, track

Ints = NDArray[np.int64]
CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MAX_BYTES = 1 << 20  # of one image file; no 32x32 image needs more
BROKEN = (OSError, EOFError, zlib.error)  # what damaged files of any kind raise
CACHED = ("train.images", "train.labels", "test.images", "test.labels")
HELP = (
    "PAPERLIB_DATA may name a folder that holds cifar-10-batches-py/, or train/<class>/*.png (or .jpg) and "
    "test/<class>/*.png, or a .tar.xz, .tar.gz, .tar or .zip of such images; without it, the original is downloaded"
)


class _Place(NamedTuple):
    split: str
    label: str
    file: str


class Arrays(NamedTuple):
    """Images as bytes, with their labels."""

    images: NDArray[np.uint8]  # (N, C, H, W)
    labels: Ints  # (N,)


class Images(NamedTuple):
    """Both official splits, in name order."""

    label: str  # "cifar10-jpeg" or "cifar10-png"
    train: Arrays
    test: Arrays


def read_images(source: Path, say: Say) -> Images:
    """Class-named images of 32x32 from a folder or an archive, decoded once and then cached by content.

    Raises:
        DataError: truncated or damaged files, unknown or absent classes, images of another size; names the member.
    """
    folder = list(_folder_files(source)) if source.is_dir() else []
    identity = hashlib.sha256(b"1")
    for place, path in folder:
        stat = path.stat()
        identity.update(canonical([place, stat.st_size, stat.st_mtime_ns]).encode())
    if source.is_file():
        with source.open("rb") as file:
            identity.update(hashlib.file_digest(file, "sha256").digest())
    cache = paths.home() / "data" / "cache" / f"cifar10-{identity.hexdigest()[:16]}.safetensors"
    found = _load_cache(cache, say)
    if found is None:
        say(f"cifar10: decoding the images in {paths.shown(source)}")
        found = _decode(folder if source.is_dir() else list(_archive_files(source)), paths.shown(source), say)
        _save_cache(found, cache, say)
    return found


def _place(name: str) -> _Place | None:
    """Where an image belongs, by the end of its path under at most one top folder; None for anything else."""
    parts = PurePosixPath(name).parts  # without "./"
    if len(parts) not in (3, 4) or parts[-3] not in ("train", "test") or parts[-1].startswith("."):
        return None
    return _Place(*parts[-3:]) if parts[-1].lower().endswith((".png", ".jpg", ".jpeg")) else None


def _folder_files(folder: Path) -> Iterator[tuple[_Place, Path]]:
    for path in sorted(folder.glob("*/*/*")):
        if place := _place(path.relative_to(folder).as_posix()):
            yield place, path


def _archive_files(path: Path) -> Iterator[tuple[_Place, bytes]]:
    """Place and content of every image, straight from the stream. Raises DataError naming the last member read."""
    name = "its start"
    try:
        if path.suffix.lower() == ".zip":
            with zipfile.ZipFile(path) as archive:
                for info in archive.infolist():
                    if place := _place(info.filename):
                        name = info.filename
                        yield place, _bounded(archive.open(info), name)
            return
        with tarfile.open(path) as tar:
            for member in tar:
                if (place := _place(member.name)) and (file := tar.extractfile(member)):
                    name = member.name
                    yield place, _bounded(file, name)
            rest = tar.fileobj
            if rest is None or rest.tell() == tar.offset:  # cut off between two members
                raise EOFError("no end-of-archive mark")
            while rest.read(MAX_BYTES):  # to the end, where the checksums of .xz and .gz are compared
                pass
    except (*BROKEN, tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, KeyError, RuntimeError) as error:
        reason = f"truncated, damaged or not an archive, noticed after {name} ({error})"
        raise DataError(f"cifar10: {paths.shown(path)} is {reason}; fetch it again. {HELP}") from error


def _bounded(file: IO[bytes], name: str) -> bytes:
    with file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise DataError(f"cifar10: {name} holds more than {MAX_BYTES} bytes, too many for an image of 32x32")
    return content


def _decode(files: Sequence[tuple[_Place, bytes | Path]], where: str, say: Say) -> Images:
    """Decode in name order. Raises DataError for an unknown or absent class, or naming the image."""
    ordered = sorted(files, key=lambda file: file[0])
    if len({place for place, _ in files}) != len(files) or not files:
        raise DataError(f"cifar10: {where} holds {'an image twice' if files else 'no images'}. {HELP}")
    for split in ("train", "test"):
        names, wanted = {place.label for place, _ in files if place.split == split}, set(CIFAR10_CLASSES)
        if names != wanted:
            wrong = f"unknown {sorted(names - wanted)}, missing {sorted(wanted - names)}"
            raise DataError(f"cifar10: the class folders of {split}/ in {where} do not match: {wrong}")
    images, kinds = np.empty((len(ordered), 3, 32, 32), np.uint8), set()
    for i, file in enumerate(track(ordered, len(ordered), f"decoding {where}", say)):  # threads make it slower
        images[i], kind = _decode_image(file)
        kinds.add(kind)
    labels = np.array([CIFAR10_CLASSES.index(place.label) for place, _ in ordered], np.int64)
    in_test = np.array([place.split == "test" for place, _ in ordered])
    train, test = (Arrays(images[keep], labels[keep]) for keep in (~in_test, in_test))
    return Images("cifar10-jpeg" if "JPEG" in kinds else "cifar10-png", train, test)


def _decode_image(file: tuple[_Place, bytes | Path]) -> tuple[NDArray[np.uint8], str]:
    from PIL import Image

    place, content = file
    stream = io.BytesIO(content) if isinstance(content, bytes) else content
    try:
        with Image.open(stream, formats=("JPEG", "PNG")) as image:
            if image.size != (32, 32):  # known from the header, before any pixel is decoded
                raise DataError(f"cifar10: {'/'.join(place)} is {image.width}x{image.height} pixels, expected 32x32")
            return np.asarray(image.convert("RGB")).transpose(2, 0, 1), str(image.format)
    except (*BROKEN, ValueError, SyntaxError, struct.error) as error:
        raise DataError(f"cifar10: {'/'.join(place)} cannot be decoded ({error})") from error


def _load_cache(path: Path, say: Say) -> Images | None:
    if not path.is_file():
        return None
    try:
        tensors, about = read_tensors(path)
        parts = [tensors[name] for name in CACHED]
        if about["sha256"] != digest_of(parts):
            raise StoreError("its checksum differs")
        arrays = [part.numpy() for part in parts]
        return Images(about["label"], Arrays(*arrays[:2]), Arrays(*arrays[2:]))
    except (StoreError, KeyError) as error:
        say(f"cifar10: the cache {path.name} is damaged ({error}) and will be made again")
        return None


def _save_cache(source: Images, path: Path, say: Say) -> None:
    parts = [torch.from_numpy(part) for part in (*source.train, *source.test)]
    try:
        write_tensors(path, dict(zip(CACHED, parts, strict=True)), {"label": source.label, "sha256": digest_of(parts)})
    except StoreError as error:
        say(f"cifar10: the decoded images could not be cached ({error}); the next load decodes them again")


def digest_of(tensors: Iterable[Tensor], start: str = "") -> str:
    """SHA-256 of the exact bytes, shapes and types of ``tensors``."""
    digest = hashlib.sha256(start.encode())
    for tensor in tensors:
        digest.update(canonical([str(tensor.dtype), *tensor.shape]).encode())
        digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B"))  # type: ignore[arg-type]
    return digest.hexdigest()
