"""A cache of decoded images, so that the files of a folder or an archive are decoded only once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from paperlib import paths
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.config.serialise import canonical
from paperlib.data.arrays import SPLITS, Arrays, DecodedImages, digest_of
from paperlib.data.image_files import ImageFiles
from paperlib.errors import StoreError
from paperlib.log import logger

VERSION = "2"  # raise it when the same files would be decoded differently


def cache_file(name: str, source: Path, folder: ImageFiles | None) -> Path:
    """The cache of a data set in its present state; ``folder`` lists the files of ``source``, None for an archive."""
    identity = _identity_of_archive(source) if folder is None else _identity_of_folder(folder)
    return paths.home() / "data" / "cache" / f"{name}-{identity}.safetensors"


def stamp_of(path: Path) -> tuple[int, ...]:
    """Size, modification time and change time (ns) of a file: they change when the file does.

    The change time detects a replacement that keeps the modification time.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def load_cache(name: str, path: Path) -> DecodedImages | None:
    """The cached images; None if there are none or the file is damaged, which is logged."""
    if not path.is_file():
        return None
    try:
        tensors, notes = read_tensors(path)
        if notes["sha256"] != digest_of(tensors[part] for part in sorted(tensors)):
            raise StoreError("its checksum differs")
        train, test = (
            Arrays(tensors[f"{split}.images"].numpy(), tensors[f"{split}.labels"].numpy())
            if f"{split}.images" in tensors
            else None
            for split in SPLITS
        )
        if train is None:
            raise StoreError("it holds no training images")
        return DecodedImages(notes["kind"], tuple(json.loads(notes["classes"])), train, test)
    except (StoreError, KeyError, ValueError) as error:
        logger.info(f"{name}: the cache {path.name} is damaged ({error}) and will be made again")
        return None


def save_cache(name: str, images: DecodedImages, path: Path) -> None:
    """Write the cache; a failure is logged."""
    tensors = {
        f"{split}.{part}": torch.from_numpy(value)
        for split, arrays in zip(SPLITS, (images.train, images.test), strict=True)
        if arrays is not None
        for part, value in arrays._asdict().items()
    }
    notes = {"kind": images.kind, "classes": json.dumps(images.classes)}
    notes["sha256"] = digest_of(tensors[part] for part in sorted(tensors))
    try:
        write_tensors(path, tensors, notes)
    except StoreError as error:
        logger.info(f"{name}: the decoded images could not be cached ({error}); the next load decodes them again")


def _identity_of_archive(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.sha256(VERSION.encode() + hashlib.file_digest(file, "sha256").digest()).hexdigest()[:16]


def _identity_of_folder(files: ImageFiles) -> str:
    """A hash over the paths, sizes and times of the files; their content is not read."""
    digest = hashlib.sha256(VERSION.encode() + canonical(sorted(files.folders)).encode())
    for parts, path in files.images.items():
        assert isinstance(path, Path)
        digest.update(canonical([parts, *stamp_of(path)]).encode())
    return digest.hexdigest()[:16]
