"""Seeds from names and numbers, and random draws that are the same on every device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import torch
from torch import Tensor


def hash_seed(*parts: int | str) -> int:
    """A 63-bit seed from a few numbers or words: neighbouring seeds and epochs share no stream."""
    text = json.dumps(parts).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def cpu_generator(seed: int) -> torch.Generator:
    """A generator on the CPU, whatever device its draws are for: other devices draw other numbers from a seed."""
    return torch.Generator("cpu").manual_seed(seed)


def uniform(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """Numbers uniform in [0, 1), of ``like``'s type and on its device.

    They are drawn where the generator lives (on the CPU from torch's global one if None) and moved, so that a seed
    means the same on every device.
    """
    return torch.rand(tuple(shape), generator=generator, device=_source(generator), dtype=like.dtype).to(like.device)


def normal(shape: Sequence[int], generator: torch.Generator | None, like: Tensor) -> Tensor:
    """The same of numbers from the standard normal distribution."""
    return torch.randn(tuple(shape), generator=generator, device=_source(generator), dtype=like.dtype).to(like.device)


def integers(high: int, shape: Sequence[int], generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The same of whole numbers (int64) from 0 to ``high`` - 1, on ``device``."""
    return torch.randint(high, tuple(shape), generator=generator, device=_source(generator)).to(device)


def permutation(n: int, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """The same of the numbers (int64) from 0 to ``n`` - 1 in random order."""
    return torch.randperm(n, generator=generator, device=_source(generator)).to(device)


def _source(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device
