"""Images as arrays of bytes, before they become the tensors of a split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from paperlib.config.serialise import canonical

Ints = NDArray[np.int64]
SPLITS = ("train", "test")  # the official splits of a data set, and the names of their folders


class Arrays(NamedTuple):
    """Images as bytes, with their labels."""

    images: NDArray[np.uint8]  # (N, C, H, W)
    labels: Ints  # (N,)


class DecodedImages(NamedTuple):
    """The images of a folder or an archive, sorted by name."""

    kind: str  # the image format in lower case; for mixed formats the first of `paperlib.data.decoding.LABELS`
    classes: tuple[str, ...]
    train: Arrays
    test: Arrays | None  # None without a folder test/


def digest_of(tensors: Iterable[Tensor], start: str = "") -> str:
    """The SHA-256 of ``start`` and of the exact bytes, shapes and types of ``tensors``, in hex digits."""
    digest = hashlib.sha256(start.encode())
    for tensor in tensors:
        digest.update(canonical([str(tensor.dtype), *tensor.shape]).encode())
        digest.update(memoryview(tensor.cpu().contiguous().numpy()).cast("B"))  # type: ignore[arg-type]
    return digest.hexdigest()
