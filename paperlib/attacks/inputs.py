"""Checks of the model, images and labels of every attack and evaluation.

`pgd`, `fgsm`, `attack`, `random_noise`, `autoattack` and `evaluate` begin with a call of `admit`; `audit` calls parts
of it. `admit` raises a one-sentence error before any work if they cannot be used, and adapts the model where it can. It
changes neither the model nor the tensors.

- Images: a float tensor (N, C, H, W) with pixels in [0, 1] and any strides. Attacks compute in float32, or in float64
  if images and weights are both float64 and the caller supports it. Half precision is converted exactly.
- Model: a `torch.nn.Module` from images to a float tensor of logits (N, classes), also for a batch of one image. It is
  first called with one image and with two images. A model that edits its input in place gets copies, a model whose
  weights have another dtype than the images gets images of that dtype, and logits of another dtype are converted.
- A folded copy (`paperlib.acceleration.Folded`) is not called, so a training loop pays only for checks of its images.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from paperlib.acceleration.folding import Folded
from paperlib.acceleration.memory import memory_ran_out
from paperlib.arguments import as_images, as_labels, check_rows
from paperlib.errors import InputError, PaperlibError
from paperlib.models.adapters import Adapted, call_on_copy
from paperlib.models.modes import eval_mode
from paperlib.shapes import Images, Labels

SEVERAL = 32  # size of the batch that shows how many classes a model has, if it fails on a batch of one image


@dataclass(frozen=True)
class Inputs:
    """The checked and adapted inputs of an attack."""

    model: nn.Module | Folded
    x: Images
    y: Labels


@dataclass(frozen=True)
class Traits:
    """Properties of a model, found by a pass with one image and a pass with two."""

    classes: int
    edits_input: bool
    has_gradient: bool  # of the logits with respect to the pixels; False also if it was not checked
    converts_logits: bool = False  # whether the logits have another dtype than the images
    converted_to: torch.dtype | None = None  # the dtype of images that the model needs, if another one


def admit(
    model: nn.Module | Folded,
    x: Images,
    y: Labels,
    *,
    gradient: bool = False,
    float32: bool = False,
    remember: bool = False,
    name: str = "model",
) -> Inputs:
    """Check a model, images (N, C, H, W) and labels (N,), and adapt them to each other.

    Args:
        gradient: require a gradient of the logits with respect to the pixels.
        float32: return contiguous float32 images whatever the weights are.
        remember: call a model only the first time, for loops that call an attack for each batch.
        name: of the model, in messages.

    Raises:
        InputError: a model, images or labels that cannot be used. NotFiniteError: NaN or infinity among the pixels.
    """
    x = as_images(x)
    y = as_labels(y, x)
    network = model.model if isinstance(model, Folded) else check_module(model, name)
    x = _supported_layout(x.to(_image_dtype(network, x, float32)), float32)
    if isinstance(model, Folded):
        return Inputs(_folded_for(model, x), x, y)
    if len(x) == 0:
        return Inputs(model, x, y)
    traits = _remembered_look(model, x, gradient, name) if remember else look(model, x, gradient=gradient, name=name)
    if gradient and not traits.has_gradient:
        raise no_gradient(name)
    return Inputs(adapt(model, traits), x, y)


def check_module(model: object, name: str = "model") -> nn.Module:
    """The model itself. Raises InputError if it is not a module."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name}: expected a torch.nn.Module, got a {type(model).__name__}; write a module with it as forward and "
            "its networks as submodules, so that their modes and gradients can be restored"
        )
    return model


def no_gradient(name: str = "model") -> InputError:
    """The error for a model whose logits have no gradient with respect to the pixels."""
    return InputError(
        f"{name}: the logits have no gradient with respect to the pixels; remove what detaches them, or use an attack "
        "without gradients (random_noise, Square)"
    )


def adapt(model: nn.Module, traits: Traits) -> nn.Module:
    """The model itself, or in the wrapper that it needs; its mode does not change."""
    needed = traits.edits_input or traits.converts_logits or traits.converted_to is not None
    return Adapted(model, traits.converted_to) if needed else model


def look(model: nn.Module, x: Images, *, gradient: bool, name: str = "model") -> Traits:
    """Call a model in evaluation mode with the first image of ``x``, then with the first two.

    Args:
        gradient: in the first call, check for a gradient with respect to the pixels. The second call is without
            gradients, because a model's code may differ between the two.

    Raises:
        InputError: the model raises, or does not return a row of logits for each image.
    """
    with eval_mode(model), _restored_generators(x):
        with torch.set_grad_enabled(gradient), _as_input_error(name, x[:1]):
            traits = _traits_in_suitable_dtype(model, x, gradient, name)
        if len(x) > 1:
            with torch.no_grad(), _as_input_error(name, x[:2]):
                edits = _edits_two_images(adapt(model, traits), x, name)
            traits = replace(traits, edits_input=traits.edits_input or edits)
    return traits


def _traits_in_suitable_dtype(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    """`_traits`; if the model fails on images of this dtype, with images of the dtype of its weights."""
    dtype = _weights_dtype(model)
    try:
        return _traits(model, x, gradient, name)
    except RuntimeError:
        if dtype in (None, x.dtype):
            raise
    return replace(_traits(Adapted(model, dtype), x, gradient, name), converted_to=dtype)


def _traits(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    image = x[:1].detach().clone().requires_grad_(gradient)
    logits, edits = call_on_copy(model, image)
    _check_single_row(logits, model, x, name)
    slope = None
    if gradient and logits.requires_grad:
        slope = torch.autograd.grad(logits.sum(), image, allow_unused=True)[0]
    return Traits(logits.shape[1], edits, slope is not None, logits.dtype != x.dtype)


def _edits_two_images(model: nn.Module, x: Tensor, name: str) -> bool:
    """Whether the model edits a batch of two images in place; False if memory holds only one image."""
    try:
        logits, edits = call_on_copy(model, x[:2])
    except Exception as error:
        if memory_ran_out(error):
            return False
        raise
    check_rows(logits, 2, name)
    return edits


def _check_single_row(logits: object, model: nn.Module, x: Tensor, name: str) -> None:
    """Require one row of logits for one image; otherwise call the model with several images for a better message."""
    if not isinstance(logits, Tensor) or logits.ndim == 2 or (len(x) == 1 and logits.ndim != 1):
        check_rows(logits, 1, name)
        return
    classes = logits.numel()
    if len(x) > 1:
        several = model(x[:SEVERAL].clone())
        check_rows(several, len(x[:SEVERAL]), name)
        classes = several.shape[1]
    raise InputError(
        f"{name}: one image gives logits of shape {tuple(logits.shape)}, expected (1, {classes}); call squeeze with an "
        "axis"
    )


@contextmanager
def _as_input_error(name: str, x: Tensor) -> Iterator[None]:
    """Raise an InputError for any error of a model on the images ``x``, except when memory runs out."""
    try:
        yield
    except PaperlibError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        if memory_ran_out(error):
            raise
        images = "one image" if len(x) == 1 else f"{len(x)} images"
        raise InputError(
            f"{name}: fails on {images} of shape {tuple(x.shape)}, {x.dtype} on {x.device}: "
            f"{type(error).__name__}: {reason[:300]}"
        ) from error


def _restored_generators(x: Tensor) -> Any:
    """A context after which torch's global generators have the state of before, whatever the model draws."""
    return torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else [])


# The traits of each model, by all that a pass depends on except the values of the weights.
_TRAITS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Traits]] = WeakKeyDictionary()


def _remembered_look(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    stored = _TRAITS.setdefault(model, {})
    weights = frozenset((tensor.dtype, tensor.device) for tensor in (*model.parameters(), *model.buffers()))
    key = (x.shape[1:], min(len(x), 2), x.dtype, x.device, weights, gradient)
    if key in stored:
        return stored[key]
    traits = look(model, x, gradient=gradient, name=name)
    if traits.has_gradient or not gradient:  # a refused model may be corrected before the next call
        stored[key] = traits
    return traits


def _weights_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first float parameter or, without any, of the first float buffer; None if there is neither."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype
    return None


def _image_dtype(model: nn.Module, x: Tensor, float32: bool) -> torch.dtype:
    if x.dtype == torch.float64 and not float32 and _weights_dtype(model) in (None, torch.float64):
        return torch.float64
    return torch.float32


def _supported_layout(x: Tensor, contiguous: bool) -> Tensor:
    """The images with strides that every layer supports; channels-last is kept unless ``contiguous``."""
    if x.is_contiguous() or (not contiguous and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _folded_for(folded: Folded, x: Tensor) -> Folded:
    """The copy itself; a network that is not folded is adapted if its weights have another dtype than the images."""
    if folded.network is not folded.model or x.dtype != torch.float32:
        return folded
    dtype = _weights_dtype(folded.model)
    if dtype in (None, torch.float32):
        return folded
    adapted = Adapted(folded.model, dtype)
    return Folded(adapted, adapted, reason=folded.reason, max_batch=folded.max_batch)
