"""The IDX format of MNIST's files: gzip, with a header that gives the shape of the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from paperlib.errors import DataError

UINT8 = 8  # the code of the type in the third byte of the file


def read_idx(path: Path, axes: int) -> NDArray[np.uint8]:
    """The bytes of a file such as ``train-images-idx3-ubyte.gz`` as an array of ``axes`` axes.

    Raises:
        DataError: the file is truncated, damaged, or has another format.
    """
    try:
        with gzip.open(path) as file:
            content = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path.name}: truncated or damaged ({error}); download it again") from error
    start = 4 * (1 + axes)
    shape = tuple(int.from_bytes(content[i : i + 4], "big") for i in range(4, start, 4))
    if content[:4] != bytes((0, 0, UINT8, axes)) or len(content) != start + math.prod(shape):
        raise DataError(f"{path.name}: not bytes in the IDX format with {axes} axes; download it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
