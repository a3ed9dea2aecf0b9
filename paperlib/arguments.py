"""What each single value may be: budgets, images, labels, logits, weights. `paperlib.attacks.inputs` combines them."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.errors import InputError, NotFiniteError

SLACK = 1e-6  # how far outside [0, 1] resizing and arithmetic may leave a pixel


FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


# The types of settings that several functions share, and the words for them.
SETTINGS: dict[str, tuple[Any, str]] = {
    "generator": ((torch.Generator, NoneType), "a torch.Generator or None"),
    "objective": (Callable, "a function of the model, images and labels"),
    "progress": (Callable, "a function of the share that is done"),
    "seed": (Integral, "a whole number"),
}


def as_images(images: Tensor, name: str = "images") -> Tensor:
    """Images (N, C, H, W) with pixels in [0, 1], detached and fit for autograd; what is given never changes.

    Pixels outside by at most `SLACK`, as resizing leaves them, are clipped in a copy.

    Raises:
        InputError: another type, shape or range. NotFiniteError: NaN or infinity.
    """
    if not isinstance(images, Tensor) or images.dtype not in FLOATS or not _is_dense(images):
        raise InputError(f"{name}: expected a float tensor with pixels in [0, 1], got {_kind(images)}; {_hint(images)}")
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
    """int64 class indices (N,), as many as there are images and on their device. Raises InputError."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64 or not _is_dense(labels):
        raise InputError(f"{name}: expected an int64 tensor of class indices, got {_kind(labels)}")
    if labels.shape != images.shape[:1]:
        raise InputError(
            f"{name}: shape {tuple(labels.shape)} does not match {len(images)} images; expected ({len(images)},)"
        )
    if labels.device != images.device:
        raise InputError(f"{name}: on {labels.device}, but the images are on {images.device}; move one of them")
    return outside_graph(labels)


def check_shape(name: str, given: object, expected: tuple[int | str, ...]) -> Tensor:
    """Require a float tensor of images; a text in ``expected`` stands for any size. Raises InputError."""
    found = tuple(given.shape) if isinstance(given, Tensor) else f"a {type(given).__name__}"
    fits = isinstance(given, Tensor) and len(found) == len(expected)
    if not fits or any(isinstance(size, int) and size != has for size, has in zip(expected, found, strict=True)):
        raise InputError(f"{name}: expected images of shape {expected}, got {found}")
    if not isinstance(given, Tensor) or not given.is_floating_point() or not _is_dense(given):
        raise InputError(f"{name}: expected a float tensor with pixels in [0, 1], got {_kind(given)}; {_hint(given)}")
    return given


def check_type(name: str, value: object, types: Any, expected: str) -> None:
    """Require one of some types; ``expected`` says in words which. Raises InputError."""
    if not isinstance(value, types):
        raise InputError(f"{name}: expected {expected}, got a {type(value).__name__}")


def check_settings(**settings: object) -> None:
    """Require settings of the types in `SETTINGS`, by name. Raises InputError."""
    for name, value in settings.items():
        check_type(name, value, *SETTINGS[name])


def check_whole(name: str, value: object) -> int:
    """Require a whole number of at least 1, of Python or numpy, and return it as an int. Raises InputError."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise InputError(f"{name}={value!r}: expected a whole number, at least 1; less is no attack")
    return int(value)


def outside_graph(tensor: Tensor) -> Tensor:
    """The same values cut off from autograd's graph; a copy where ``torch.inference_mode`` made the tensor."""
    return tensor.detach().clone() if tensor.is_inference() else tensor.detach()


def check_rows(logits: object, images: int, name: str = "model") -> None:
    """Require a float tensor with a row of at least two logits per image; asks no device. Raises InputError."""
    if not isinstance(logits, Tensor) or not logits.is_floating_point() or not _is_dense(logits):
        raise InputError(f"{name}: returned {_kind(logits)}; expected a float tensor of logits (N, classes)")
    if logits.ndim != 2 or len(logits) != images:
        raise InputError(f"{name}: returned shape {tuple(logits.shape)} for {images} images; expected (N, classes)")
    if logits.shape[1] < 2:
        raise InputError(
            f"{name}: returned {logits.shape[1]} logit per image; expected one per class, so stack 0 and z for "
            "a binary classifier of one logit z"
        )


def logits_of(model: nn.Module, x: Tensor, name: str = "model") -> Tensor:
    """The model's logits for a copy of the images (N, C, H, W), which it may edit in place; their form is checked.

    Raises:
        InputError: anything but a float tensor (N, classes).
    """
    logits: Tensor = model(x.clone())
    check_rows(logits, len(x), name)
    return logits


def check_logits(logits: Tensor, labels: Tensor, name: str = "model") -> None:
    """Require finite logits (N, classes) and labels inside that range. Raises InputError or NotFiniteError."""
    check_rows(logits, len(labels), name)
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[1]:
        span = f"{int(labels.min())} to {int(labels.max())}"
        raise InputError(f"labels: {span} are out of range; the model knows classes 0 to {logits.shape[1] - 1}")
    if not bool(torch.isfinite(logits).all()):
        raise NotFiniteError(f"{name}: returned logits with NaN or infinity; no accuracy of it can be reported")


def _is_dense(tensor: Tensor) -> bool:
    """Whether a tensor holds one array of values. A subclass of Tensor on ``meta`` may hold them elsewhere."""
    return tensor.layout == torch.strided and not tensor.is_nested and not _without_values(tensor)


def _without_values(tensor: Tensor) -> bool:
    return tensor.is_meta and type(tensor) in (Tensor, nn.Parameter)


def _kind(value: object) -> str:
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if value.is_nested:
        return "a nested tensor"
    if value.layout != torch.strided:
        return f"a {value.layout} tensor"
    return "a tensor on the meta device, which holds no values" if _without_values(value) else f"a {value.dtype} tensor"


def _hint(images: object) -> str:
    """What to do about images that are none."""
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
    """Require finite parameters and buffers: a router of NaN picks expert 0 for every image and looks healthy.

    Raises:
        NotFiniteError: names the first tensor that holds NaN or infinity. InputError: names the first without values.
    """
    for part, given in (*model.named_parameters(), *model.named_buffers()):
        value = given.detach()  # weights made under inference_mode refuse the check inside autograd's graph
        if _without_values(given):
            raise InputError(f"{name}: {part} is {_kind(given)}; load the weights on another device")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            share = f"{float((~torch.isfinite(value)).float().mean()):.0%}"
            raise NotFiniteError(f"{name}: {part} holds NaN or infinity ({share} of it); no accuracy can be reported")
