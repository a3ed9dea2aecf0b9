"""What comes in: the model, images and labels of an attack or an evaluation, looked at once, by the same rules.

`admit` is called at the beginning of `pgd`, `fgsm`, `attack`, `random_noise`, `autoattack`, `evaluate` and, in parts,
`audit`. It refuses what they cannot work with in one sentence, before any work, and adapts what they can. Nothing that
is handed in is changed.

- Images: a float tensor (N, C, H, W) on [0, 1]. The work is done in float32, or in float64 where images and weights are
  both float64 and the caller can; half precision is converted exactly. Any strides are taken.
- Model: a `torch.nn.Module` from images to a float tensor of logits (N, classes), also for one image alone. It is asked
  about one image and about two first. A model that edits its input in place is handed copies, one whose weights have
  another dtype than the images is handed images of that dtype, and logits of another dtype are converted.
- A folded copy (`paperlib.acceleration.Folded`) is taken as it is, so a training loop pays for the checks of its
  images only.
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

SEVERAL = 32  # images asked about together to explain a wrong answer to one


@dataclass(frozen=True)
class Inputs:
    """What an attack works with."""

    model: nn.Module | Folded
    x: Tensor  # (N, C, H, W) in [0, 1]
    y: Tensor  # (N,) int64


@dataclass(frozen=True)
class Traits:
    """What a pass with one image, and one with two, show of a model."""

    classes: int
    edits_input: bool
    has_gradient: bool  # False also where no gradient was asked for
    converts_logits: bool = False  # whether the logits have another dtype than the images
    converted_to: torch.dtype | None = None  # the dtype it must be handed, if not that of the images


def admit(
    model: nn.Module | Folded,
    x: Tensor,
    y: Tensor,
    *,
    gradient: bool = False,
    float32: bool = False,
    remember: bool = False,
    name: str = "model",
) -> Inputs:
    """Check a model with the images (N, C, H, W) and labels (N,) it is to be asked about, and adapt them.

    Args:
        gradient: whether the logits must have a gradient with respect to the pixels.
        float32: compute in float32 alone, on contiguous images.
        remember: ask a model the first time only, for loops that call an attack for each batch.
        name: of the model, in messages.

    Raises:
        InputError: what cannot be worked with. NotFiniteError: NaN or infinity among the pixels.
    """
    x = as_images(x)
    y = as_labels(y, x)
    network = model.model if isinstance(model, Folded) else check_module(model, name)
    x = _laid_out(x.to(_image_dtype(network, x, float32)), float32)
    if isinstance(model, Folded):
        return Inputs(_folded_for(model, x), x, y)
    if len(x) == 0:
        return Inputs(model, x, y)
    seen = _remembered(model, x, gradient, name) if remember else look(model, x, gradient=gradient, name=name)
    if gradient and not seen.has_gradient:
        raise no_gradient(name)
    return Inputs(adapt(model, seen), x, y)


def check_module(model: object, name: str = "model") -> nn.Module:
    """The model, if it is a module. Raises InputError."""
    if not isinstance(model, nn.Module):
        raise InputError(
            f"{name}: expected a torch.nn.Module, got a {type(model).__name__}; make it the forward of a module that "
            "holds its networks, so that their modes and gradients are left as they are"
        )
    return model


def no_gradient(name: str = "model") -> InputError:
    """The error about a model that gradient attacks cannot attack."""
    return InputError(
        f"{name}: the logits have no gradient with respect to the pixels; remove what detaches them, or use attacks "
        "that need none (random_noise, Square)"
    )


def adapt(model: nn.Module, seen: Traits) -> nn.Module:
    """The model itself, or the wrapper it needs, in the same mode."""
    needed = seen.edits_input or seen.converts_logits or seen.converted_to is not None
    return Adapted(model, seen.converted_to) if needed else model


def look(model: nn.Module, x: Tensor, *, gradient: bool, name: str = "model") -> Traits:
    """Ask a model in evaluation mode about the first of the images ``x`` alone, and about the first two together.

    Args:
        gradient: whether to ask, with the first image, for the gradient with respect to its pixels too. The two are
            asked about without: code may depend on either.

    Raises:
        InputError: it fails, or its answer is not a row of logits for each image.
    """
    with eval_mode(model), _own_random_numbers(x):
        with torch.set_grad_enabled(gradient), _one_sentence(name, x[:1]):
            seen = _ask_in_its_dtype(model, x, gradient, name)
        if len(x) > 1:
            with torch.no_grad(), _one_sentence(name, x[:2]):
                edits = _ask_about_two(adapt(model, seen), x, name)
            seen = replace(seen, edits_input=seen.edits_input or edits)
    return seen


def _ask_in_its_dtype(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    """`_ask`, with images of the dtype of the weights where the model fails on those it is given."""
    dtype = _weights_dtype(model)
    try:
        return _ask(model, x, gradient, name)
    except RuntimeError:
        if dtype in (None, x.dtype):
            raise
    return replace(_ask(Adapted(model, dtype), x, gradient, name), converted_to=dtype)


def _ask(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    one = x[:1].detach().clone().requires_grad_(gradient)
    logits, edits = call_on_copy(model, one)
    _check_answer(logits, model, x, name)
    found = None
    if gradient and logits.requires_grad:
        found = torch.autograd.grad(logits.sum(), one, allow_unused=True)[0]
    return Traits(logits.shape[1], edits, found is not None, logits.dtype != x.dtype)


def _ask_about_two(model: nn.Module, x: Tensor, name: str) -> bool:
    """Whether the model edits two images in place; False where memory holds only one."""
    try:
        logits, edits = call_on_copy(model, x[:2])
    except Exception as error:
        if memory_ran_out(error):
            return False
        raise
    check_rows(logits, 2, name)
    return edits


def _check_answer(logits: object, model: nn.Module, x: Tensor, name: str) -> None:
    """Require a row of logits for one image; if it is none, find out whether it is one for several images."""
    if not isinstance(logits, Tensor) or logits.ndim == 2 or (len(x) == 1 and logits.ndim != 1):
        check_rows(logits, 1, name)
        return
    classes = logits.numel()
    if len(x) > 1:
        several = model(x[:SEVERAL].clone())
        check_rows(several, len(x[:SEVERAL]), name)
        classes = several.shape[1]
    raise InputError(
        f"{name}: one image alone gives {tuple(logits.shape)}, expected (1, {classes}); squeeze named axes only"
    )


@contextmanager
def _one_sentence(name: str, x: Tensor) -> Iterator[None]:
    """Whatever a model raises for the images ``x`` as one InputError; that memory runs out is left to the caller."""
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


def _own_random_numbers(x: Tensor) -> Any:
    """Random numbers that the model draws are not missing from torch's global generators afterwards."""
    return torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else [])


# What was seen of each model, by everything that a pass depends on but the values of its weights.
_TRAITS: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], Traits]] = WeakKeyDictionary()


def _remembered(model: nn.Module, x: Tensor, gradient: bool, name: str) -> Traits:
    known = _TRAITS.setdefault(model, {})
    weights = frozenset((tensor.dtype, tensor.device) for tensor in (*model.parameters(), *model.buffers()))
    key = (x.shape[1:], min(len(x), 2), x.dtype, x.device, weights, gradient)
    if key in known:
        return known[key]
    seen = look(model, x, gradient=gradient, name=name)
    if seen.has_gradient or not gradient:  # a refused model may be mended before the next call
        known[key] = seen
    return seen


def _weights_dtype(model: nn.Module) -> torch.dtype | None:
    """The dtype of the first float parameter or, without any, buffer; None if there is neither."""
    for tensors in (model.parameters(), model.buffers()):
        for tensor in tensors:
            if tensor.is_floating_point():
                return tensor.dtype
    return None


def _image_dtype(model: nn.Module, x: Tensor, float32: bool) -> torch.dtype:
    if x.dtype == torch.float64 and not float32 and _weights_dtype(model) in (None, torch.float64):
        return torch.float64
    return torch.float32


def _laid_out(x: Tensor, contiguous: bool) -> Tensor:
    """The images with strides that every layer takes; channels-last is kept where the caller can."""
    if x.is_contiguous() or (not contiguous and x.is_contiguous(memory_format=torch.channels_last)):
        return x
    return x.contiguous()


def _folded_for(folded: Folded, x: Tensor) -> Folded:
    """The copy itself; a network that could not be folded and has weights of another dtype is adapted."""
    if folded.network is not folded.model or x.dtype != torch.float32:
        return folded
    dtype = _weights_dtype(folded.model)
    if dtype in (None, torch.float32):
        return folded
    adapted = Adapted(folded.model, dtype)
    return Folded(adapted, adapted, reason=folded.reason, max_batch=folded.max_batch)
