"""Seeds from names and numbers, and random numbers that are the same on every device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def hash_seed(*parts: int | str) -> int:
    """A 63-bit seed from numbers and words; different arguments give unrelated streams of random numbers."""
    text = json.dumps(parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def cpu_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, for numbers on any device: other devices draw other numbers from the same seed."""
    return torch.Generator("cpu").manual_seed(seed)


def uniform(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Random numbers uniform in [0, 1), with the dtype and on the device of ``like``.

    They are drawn on the device of the generator (if it is None, on the CPU, from torch's global generator) and then
    moved, so that a seed gives the same numbers on every device. The functions below do the same.
    """
    return torch.rand(tuple(shape), generator=generator, device=_source(generator), dtype=like.dtype).to(like.device)


def normal(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Random numbers from the standard normal distribution, with the dtype and on the device of ``like``."""
    return torch.randn(tuple(shape), generator=generator, device=_source(generator), dtype=like.dtype).to(like.device)


def integers(high: int, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Random integers (int64) from 0 to ``high`` - 1, on ``device``."""
    return torch.randint(high, tuple(shape), generator=generator, device=_source(generator)).to(device)


def permutation(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The integers (int64) from 0 to ``n`` - 1 in random order, on ``device``."""
    return torch.randperm(n, generator=generator, device=_source(generator)).to(device)


def _source(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
