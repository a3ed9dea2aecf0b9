"""Memory: what is used again and again stays with the process, and what does not fit is done in smaller batches."""

from __future__ import annotations

import ctypes
import functools
import platform
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")
# How allocators and libraries say in a plain RuntimeError that memory ran out; compared in lower case.
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
    # cuDNN tried every algorithm, and torch kept the allocator's own error of each attempt to itself
    "unable to find a valid cudnn algorithm",
    "unable to find an engine to execute this computation",
)

# From malloc.h: free memory at the end of the heap is returned above the first, larger blocks are mapped one by one
# above the second.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3


@functools.cache
def keep_memory() -> bool:
    """Tell the C library not to return freed memory to the system; False where it is not glibc.

    Every attack step frees what the next one allocates. Returned and asked for again, the system clears it page by
    page each time: a fifth of a step's time with images of 32x32 on the CPU.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    largest = 2**31 - 1
    return bool(libc.mallopt(M_MMAP_THRESHOLD, 2**30) and libc.mallopt(M_TRIM_THRESHOLD, largest))


class BatchLimit(Protocol):
    """Whoever remembers how many images fit in memory at once; None while all did."""

    max_batch: int | None


def memory_ran_out(error: BaseException) -> bool:
    """Whether ``error``, or one that it was raised from, says that the memory of the CPU or GPU did not suffice."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause).lower()
        if isinstance(cause, MemoryError | torch.OutOfMemoryError) or any(words in text for words in MEMORY_TEXTS):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


def smaller_batch(images: int, error: Exception) -> int:
    """Half as many images, if ``error`` says that memory ran out and more than one was tried; else ``error`` itself."""
    if images <= 1 or not memory_ran_out(error):
        raise error
    return images // 2


def in_batches(n: int, batch_size: int, limit: BatchLimit, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
    """Slices of ``n`` rows, at most ``batch_size`` of them at once, each with what ``work`` returns for it.

    A slice for which memory does not suffice is tried again with half as many rows, and so are those after it:
    ``limit`` remembers how many fit, also for the next call. ``work`` must leave nothing behind when it fails.
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
