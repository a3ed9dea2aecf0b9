"""What a model, an attack or an evaluation may be given, checked once at the door."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn

from paperlib.errors import InputError, NotFiniteError


def as_budget(value: float | str | Fraction, name: str = "eps") -> float:
    """An L-infinity budget in pixels of [0, 1], from a float or from text such as ``"8/255"`` or ``"0.03"``.

    Raises:
        InputError: not a number, negative, NaN, or above 1 (8 where 8/255 was meant).
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(Fraction(value)) if isinstance(value, str | Fraction) else float(value)
    except (ValueError, TypeError, ZeroDivisionError, OverflowError) as error:
        raise InputError(f'{name}: expected a float or text such as "8/255", got {value!r}') from error
    if number > 1:
        raise InputError(f"{name}={value}: pixels are in [0, 1], so {name} cannot exceed 1; did you mean {value}/255?")
    if not number >= 0:
        raise InputError(f"{name}={value}: must be a number from 0 to 1")
    return number


def as_fraction(value: float | str | Fraction, name: str = "eps") -> Fraction:
    """The same budget kept exact; a float is taken for the simple fraction it was written as. Raises InputError."""
    as_budget(value, name)
    return Fraction(value) if isinstance(value, str | Fraction) else Fraction(float(value)).limit_denominator(10**6)


def check_images(images: Tensor, name: str = "images") -> None:
    """Require a float tensor (N, C, H, W) with pixels in [0, 1].

    Raises:
        InputError: another type, shape or range. NotFiniteError: NaN or infinity.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = f"a {images.dtype} tensor" if isinstance(images, Tensor) else f"a {type(images).__name__}"
        raise InputError(f"{name}: expected a float tensor with pixels in [0, 1], got {kind}; divide bytes by 255")
    if images.ndim != 4:
        raise InputError(f"{name}: expected shape (N, C, H, W), got {tuple(images.shape)}; add the missing axis")
    if images.numel() == 0:
        return
    low, high = (float(v) for v in torch.aminmax(images.detach()))
    if not (low > -torch.inf and high < torch.inf):
        raise NotFiniteError(f"{name}: holds NaN or infinity; find where it comes from before going on")
    if low < 0 or high > 1:
        hint = "divide by 255" if high > 2 else "models here normalise inside, so pass raw pixels"
        raise InputError(f"{name}: pixels span [{low:g}, {high:g}] but must lie in [0, 1]; {hint}")


def check_labels(labels: Tensor, images: Tensor, name: str = "labels") -> None:
    """Require int64 class indices (N,), as many as there are images. Raises InputError."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = f"a {labels.dtype} tensor" if isinstance(labels, Tensor) else f"a {type(labels).__name__}"
        raise InputError(f"{name}: expected an int64 tensor of class indices, got {kind}")
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{name}: shape {tuple(labels.shape)} does not match {len(images)} images; expected ({len(images)},)"
        )


def check_logits(logits: Tensor, labels: Tensor, name: str = "model") -> None:
    """Require finite logits (N, classes) and labels inside that range. Raises InputError or NotFiniteError."""
    if logits.ndim != 2 or len(logits) != len(labels):
        raise InputError(
            f"{name}: returned shape {tuple(logits.shape)} for {len(labels)} images; expected (N, classes)"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(f"labels: {span} are out of range; the model knows classes 0 to {logits.shape[1] - 1}")
    if not bool(torch.isfinite(logits).all()):
        raise NotFiniteError(f"{name}: returned logits with NaN or infinity; no accuracy of it can be reported")


def check_weights(model: nn.Module, name: str = "model") -> None:
    """Require finite parameters and buffers: a router of NaN picks expert 0 for every image and looks healthy.

    Raises:
        NotFiniteError: names the first tensor that holds NaN or infinity.
    """
    for part, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            share = f"{float((~torch.isfinite(value)).float().mean()):.0%}"
            raise NotFiniteError(f"{name}: {part} holds NaN or infinity ({share} of it); no accuracy can be reported")
