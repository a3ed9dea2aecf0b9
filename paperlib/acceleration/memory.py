"""Memory: the process keeps freed memory for reuse, and batches are halved when memory runs out."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
# Parts of the messages of allocators and libraries when memory runs out, in lower case.
MEMORY_TEXTS = (
    "out of memory",  # "CUDA out of memory", "CUDA error: out of memory", "HIP ...", "MPS backend ...", "XPU ..."
    "can't allocate memory",  # the CPU's allocator
    "not enough memory",  # the same on Windows
    "cudnn_status_alloc_failed",
    "cublas_status_alloc_failed",
    "cusolver_status_alloc_failed",
    "cusparse_status_alloc_failed",
    "cufft_alloc_failed",
    "std::bad_alloc",
    "invalid buffer size",  # MPS: a single tensor larger than the GPU's memory
    # cuDNN tried every algorithm, and torch does not pass on the allocator's error of each attempt
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",
)

# From malloc.h. Free memory at the end of the heap is returned to the system above the first threshold; blocks above
# the second threshold are mapped separately and returned when freed.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_memory() -> bool:
    """Set glibc to keep freed memory. Returns whether that worked: False with another C library.

    Each attack step allocates the same amounts as the step before. When freed memory is returned, the system clears
    every page again at each step, which takes a fifth of the time of a step with 32x32 images on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, largest))


class BatchLimit(Protocol):
    """An object that stores how many images fit in memory at once; None until memory first runs out."""

    max_batch: int | None


def memory_ran_out(error: BaseException) -> bool:
    """Whether ``error``, or an error in its chain of causes, reports that CPU or GPU memory ran out."""
    visited: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in visited:
        visited.add(id(cause))
        text = str(cause).lower()
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or any(part in text for part in MEMORY_TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def smaller_batch(images: int, error: Exception) -> int:
    """Half of ``images``. Re-raises ``error`` if it is not about memory, or if the batch has only one image."""
    if images <= 1 or not memory_ran_out(error):
        raise error
    return images // 2


def in_batches(n: int, batch_size: int, limit: BatchLimit, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """Split ``n`` rows into slices of at most ``batch_size`` rows; yields each slice with the result of ``work``.

    When memory runs out, the slice is tried again with half as many rows. ``limit`` stores that number for the
    following slices and for later calls. When ``work`` raises, it must leave no partial result.
    """
    done = 0
    while done < n:
        rows = slice(done, min(n, done + min(batch_size, limit.max_batch or batch_size)))
        try:
            result = work(rows)
        except Exception as error:
            limit.max_batch = smaller_batch(rows.stop - rows.start, error)
        else:
            yield rows, result
            done = rows.stop
