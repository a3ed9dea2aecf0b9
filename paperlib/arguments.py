"""Checks of single arguments: images, labels, logits, weights, settings. `paperlib.attacks.inputs` combines them."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.errors import InputError, NotFiniteError

SLACK = 1e-6  # largest distance of a pixel from [0, 1] that rounding explains, as resizing leaves it
FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

# Settings that several functions share: accepted types, and their description in error messages.
SETTINGS: dict[str, tuple[Any, str]] = {
    "generator": ((torch.Generator, NoneType), "a torch.Generator or None"),
    "objective": (Callable, "a function of the model, images and labels"),
    "progress": (Callable, "a function of the share of the work that is done"),
    "seed": (Integral, "a whole number"),
}


def as_images(images: Tensor, name: str = "images") -> Tensor:
    """Checked images (N, C, H, W) with pixels in [0, 1], detached from autograd's graph.

    Pixels outside [0, 1] by at most `SLACK` are clipped in a copy; ``images`` itself does not change.

    Raises:
        InputError: wrong type, dtype, shape or range. NotFiniteError: NaN or infinity.
    """
    if not isinstance(images, Tensor) or images.dtype not in FLOATS or not _is_dense(images):
        raise InputError(
            f"{name}: expected a float tensor with pixels in [0, 1], got {_type_text(images)}; {_hint(images)}"
        )
    if images.ndim != 4:
        raise InputError(f"{name}: expected shape (N, C, H, W), got {tuple(images.shape)}; add the missing axis")
    images = outside_graph(images)
    if images.numel() == 0:
        return images
    low, high = (float(v) for v in torch.aminmax(images))
    if not (low > -torch.inf and high < torch.inf):
        raise NotFiniteError(f"{name}: holds NaN or infinity; find where it comes from before going on")
    if low < -SLACK or high > 1 + SLACK:
        hint = "divide by 255" if high > 2 else "models here normalise inside, so pass raw pixels"
        raise InputError(f"{name}: pixels span [{low:.8g}, {high:.8g}] but must lie in [0, 1]; {hint}")
    return images.clamp(0, 1) if low < 0 or high > 1 else images


def as_labels(labels: Tensor, images: Tensor, name: str = "labels") -> Tensor:
    """Checked labels: int64 class indices (N,), one for each image, on the device of the images. Raises InputError."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or not _is_dense(labels):
        raise InputError(f"{name}: expected an int64 tensor of class indices, got {_type_text(labels)}")
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{name}: shape {tuple(labels.shape)} does not match {len(images)} images; expected ({len(images)},)"
        )
    if labels.device != images.device:
        raise InputError(f"{name}: on {labels.device}, but the images are on {images.device}; move one of them")
    return outside_graph(labels)


def check_shape(name: str, images: object, expected: tuple[int | str, ...]) -> Tensor:
    """Require a float tensor of this shape; a text in ``expected`` stands for any size. Raises InputError."""
    shape = tuple(images.shape) if isinstance(images, Tensor) else f"a {type(images).__name__}"
    same_ndim = isinstance(images, Tensor) and len(shape) == len(expected)
    if not same_ndim or any(isinstance(size, int) and size != n for size, n in zip(expected, shape, strict=True)):
        raise InputError(f"{name}: expected images of shape {expected}, got {shape}")
    if not isinstance(images, Tensor) or not images.is_floating_point() or not _is_dense(images):
        text = _type_text(images)
        raise InputError(f"{name}: expected a float tensor with pixels in [0, 1], got {text}; {_hint(images)}")
    return images


def check_type(name: str, value: object, types: Any, expected: str) -> None:
    """Require an instance of ``types``, which ``expected`` describes in the message. Raises InputError."""
    if not isinstance(value, types):
        raise InputError(f"{name}: expected {expected}, got a {type(value).__name__}")


def check_settings(**settings: object) -> None:
    """Require settings of the types in `SETTINGS`; the keywords are the names. Raises InputError."""
    for name, value in settings.items():
        check_type(name, value, *SETTINGS[name])


def check_whole(name: str, value: object) -> int:
    """Require a whole number (Python or NumPy) of at least 1; returns it as an int. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value!r}: expected a whole number, at least 1")
    return int(value)


def outside_graph(tensor: Tensor) -> Tensor:
    """The detached tensor; a copy if ``torch.inference_mode`` created it, because autograd refuses such tensors."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def check_rows(logits: object, images: int, name: str = "model") -> None:
    """Require a float tensor (N, classes) with N = ``images`` and at least two classes, without reading its values.

    Raises:
        InputError: anything else.
    """
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not _is_dense(logits):
        raise InputError(f"{name}: returned {_type_text(logits)}; expected a float tensor of logits (N, classes)")
    if logits.ndim != 2 or len(logits) != images:
        raise InputError(f"{name}: returned shape {tuple(logits.shape)} for {images} images; expected (N, classes)")
    if logits.shape[1] < 2:
        raise InputError(
            f"{name}: returned {logits.shape[1]} logit per image; expected one per class; for a binary classifier with "
            "one logit z, return the two logits 0 and z"
        )


def logits_of(model: nn.Module, x: Tensor, name: str = "model") -> Tensor:
    """The logits (N, classes) for images (N, C, H, W); the model gets a copy of ``x``, because it may edit it in place.

    Raises:
        InputError: the model returns anything but a float tensor (N, classes).
    """
    logits: Tensor = model(x.clone())
    check_rows(logits, len(x), name)
    return logits


def check_logits(logits: Tensor, labels: Tensor, name: str = "model") -> None:
    """Require finite logits (N, classes) and labels (N,) from 0 to classes - 1.

    Raises:
        InputError: other shapes or labels. NotFiniteError: NaN or infinity among the logits.
    """
    check_rows(logits, len(labels), name)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(f"labels: {span} are out of range; the model has classes 0 to {logits.shape[1] - 1}")
    if not bool(torch.isfinite(logits).all()):
        raise NotFiniteError(f"{name}: returned logits with NaN or infinity; no accuracy can be reported")


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor is strided, not nested, and holds values. A subclass of Tensor on ``meta`` may hold values."""
    return tensor.layout == torch.strided and not tensor.is_nested and not _without_values(tensor)


def _without_values(tensor: Tensor) -> bool:
    return tensor.is_meta and type(tensor) in (Tensor, nn.Parameter)


def _type_text(value: object) -> str:
    """The type of an argument, for an error message."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"a {value.layout} tensor"
    return "a tensor on the meta device, which holds no values" if _without_values(value) else f"a {value.dtype} tensor"


def _hint(images: object) -> str:
    """Advice for an argument that is not a float tensor of images."""
    if not isinstance(images, Tensor):
        return "pass a tensor"
    if not images.is_floating_point():
        return "divide bytes by 255"
    if images.is_nested:
        return "resize the images to one size and stack them"
    if _without_values(images):
        return "load the images on another device"
    return "pass images.to_dense().float()"


def check_weights(model: nn.Module, name: str = "model") -> None:
    """Require finite parameters and buffers. Finite logits do not show it: argmax of a router's NaN is expert 0.

    Raises:
        NotFiniteError: a tensor holds NaN or infinity; the message names the first one.
        InputError: a tensor is on the meta device, without values.
    """
    for part, tensor in (*model.named_parameters(), *model.named_buffers()):
        value = tensor.detach()  # within autograd's graph, a tensor made under inference_mode raises
        if _without_values(tensor):
            raise InputError(f"{name}: {part} is {_type_text(tensor)}; load the weights on another device")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            share = f"{float((~torch.isfinite(value)).float().mean()):.0%}"
            raise NotFiniteError(f"{name}: {part} holds NaN or infinity ({share} of it); no accuracy can be reported")
