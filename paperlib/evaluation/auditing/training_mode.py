"""Compares a network with itself when its own code is in training mode.

The layers of torch stay in evaluation mode, because their change in training mode is known. The comparison concerns
what the network's own code does with ``self.training``. Legitimate code adds noise (functional dropout, stochastic
depth, Gaussian noise) or returns the logits of auxiliary heads as well. Other code computes another network, so that
an attack in training mode attacks another network than the one that is evaluated.

If the logits change in training mode, they may differ from those of evaluation mode by noise only. The criterion: the
mean of many noisy logits is close to the logits of evaluation mode, relative to the spread around the mean and to the
size of the logits. Noise in a nonlinear network also shifts the mean. Dropout of many units shifts it by as much as the
spread, because the noise of single units averages out in the logits, but the effect of the curvature of the activations
does not. A shifted mean is therefore accepted if the logits change continuously when torch's random draws are scaled
from their means (share 0, the logits of evaluation mode) to their actual values (share 1). Code that branches on its
draws, or draws from other generators than torch's, makes the logits jump.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paperlib.acceleration.memory import memory_ran_out
from paperlib.evaluation.auditing.scaled_draws import ScaledDraws
from paperlib.shapes import Images, Logits

SAME_LOGITS = 1e-4  # relative to the largest logit
SAME_GRADIENT = 1e-3  # relative to the largest entry; recomputing the same gradient differs by less
FIRST_DRAWS = 32  # forward passes that show whether the logits change at all
DRAWS = 128  # forward passes for mean and spread, if they change
# The bias is the distance from the logits of evaluation mode to the mean of the noisy logits. Measured on small
# networks with dropout up to 0.5, drop path up to 0.2, layer drop of 0.1 and Gaussian noise up to 0.5: where code
# branches on its draws, the bias is at most 0.7 of the spread or below 0.35 of the size of the logits; it never exceeds
# 1.05 of that size, and no noise exceeds twice that size. Another network in half of the draws has a bias of one spread
# (0.75 is three standard errors less, with 128 draws); another network of equal size under any noise has a bias of 1.4
# times that size.
BIAS_OF_SPREAD, SMALL_BIAS, LARGEST_BIAS = 0.75, 0.35, 1.2
LARGEST_NOISE = 3.0  # relative to the size of the logits; stronger noise hides them
PATHS = 8  # sets of draws for which the path from share 0 to share 1 is followed
POINTS, HALVINGS = 16, 8  # points on a path; bisections of its steepest part, down to 1/4096 of the path
JUMP = 0.05  # largest change within 1/4096 of a path, relative to the largest change on the path
NEAR = 1e-3  # a share at which gradients must still be close to those of evaluation mode


class Difference(NamedTuple):
    """The difference between a model in training mode and in evaluation mode."""

    share: float  # relative to the largest logit or gradient entry; above `SAME_LOGITS` it is another network
    text: str  # the same in words


def difference_in_training_mode(model: nn.Module, x: Images, logits: Logits, scale: float) -> Difference:
    """How much the logits of a model, or their input gradients, change when its own code is in training mode.

    Args:
        model: in evaluation mode. It is left unchanged, and so are torch's generators.
        logits: the logits in evaluation mode.
        scale: the size of the largest logit, to which differences are relative.

    Returns:
        The difference. Its share is 0.0 if training mode only adds noise around the logits, if the model fails in
        training mode, or if its outputs there contain no logits (feature maps, a loss). It is infinite if they contain
        another number of logits, or values that are not finite.
    """
    with _draws_repeated(x.device):
        try:
            # A copy, because a pass in training mode may change buffers.
            return _Comparison(copy.deepcopy(model), x, logits, scale).difference()
        except _OtherOutputs as error:
            return error.difference
        except Exception as error:  # any module may be audited, and some fail in training mode
            if memory_ran_out(error):
                raise
            return Difference(0.0, "the model fails in training mode")


class _OtherOutputs(Exception):
    """No output of the model has the shape of its logits in evaluation mode."""

    def __init__(self, output: Any, logits: Tensor) -> None:
        columns = [part.shape[1] for part in _tensors(output) if part.ndim == 2 and len(part) == len(logits)]
        classes = [count for count in columns if count > 1]
        self.difference = (
            Difference(math.inf, f"{classes[0]} logits instead of {logits.shape[1]}")
            if classes
            else Difference(0.0, "no logits in training mode")
        )
        super().__init__(self.difference.text)


class _Comparison:
    """A model in evaluation mode, images, its logits (N, classes) for them, and the size of the largest logit."""

    def __init__(self, model: nn.Module, x: Tensor, logits: Tensor, scale: float) -> None:
        self.model, self.x, self.logits, self.scale = model, x, logits, scale

    def difference(self) -> Difference:
        _, gradient = self._with_gradient()
        with _own_code_in_training_mode(self.model):
            noisy = self._draw(FIRST_DRAWS)
            if not bool(torch.isfinite(noisy).all()):
                return Difference(math.inf, "values that are not finite")
            if self._distance(noisy) <= SAME_LOGITS:
                change = max(_gradient_difference(self._with_gradient()[1], gradient) for _ in range(PATHS))
                if change > SAME_GRADIENT:
                    return _relative_to_largest("gradient", change)
                return _relative_to_largest("logit", self._distance(noisy[0]))
            noisy = torch.cat([noisy, self._draw(DRAWS - FIRST_DRAWS)])
            if self._too_noisy(noisy) or (self._biased(noisy) and not self._continuous()):
                return _relative_to_largest("logit", self._distance(noisy))
            return _relative_to_largest("gradient", self._gradient_change(gradient))

    def _nearest(self, output: Any) -> Tensor:
        """The logits (N, classes) in an output that are closest to those of evaluation mode."""
        candidates = _candidates(output, self.logits)
        if not candidates:
            raise _OtherOutputs(output, self.logits)
        return min(candidates, key=lambda logits: _largest(logits - self.logits))

    def _forward(self) -> Tensor:
        with torch.no_grad():
            return self._nearest(self.model(self.x.clone()))  # a clone, because the model may edit it in place

    def _draw(self, draws: int) -> Tensor:
        return torch.stack([self._forward() for _ in range(draws)])

    def _distance(self, logits: Tensor) -> float:
        return _largest(logits - self.logits) / self.scale

    def _with_gradient(self) -> tuple[Tensor, Tensor]:
        """The logits (N, classes), and the input gradient (N, C, H, W) of a weighted sum of all of them."""
        with torch.enable_grad():
            x = self.x.detach().clone().requires_grad_()
            logits = self._nearest(self.model(x.clone()))
            weights = torch.linspace(-1, 1, logits.shape[1], device=x.device, dtype=logits.dtype)
            value = (logits * weights).sum()
            gradient = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
        return logits.detach(), torch.zeros_like(x) if gradient is None else gradient

    # -- noisy logits (draws, N, classes) compared with those of evaluation mode ---------------------------------------

    def _too_noisy(self, noisy: Tensor) -> bool:
        """Whether the noise, or the bias of its mean, is so large that it hides the logits of evaluation mode."""
        bias, spread, noise, size = self._sizes(noisy)
        # bias^2 overestimates the squared bias by the variance of the mean, spread^2 / draws.
        return noise > LARGEST_NOISE * size or bias**2 - spread**2 / DRAWS > (LARGEST_BIAS * size) ** 2

    def _biased(self, noisy: Tensor) -> bool:
        """Whether the mean of the noisy logits is shifted by their spread, or by most of it and not only slightly."""
        bias, spread, _, size = self._sizes(noisy)
        return bias > spread or (bias > BIAS_OF_SPREAD * spread and bias > SMALL_BIAS * size)

    def _sizes(self, noisy: Tensor) -> tuple[float, float, float, float]:
        """Root mean squares of bias, spread, noise (bias and spread together) and logits.

        A common shift of all logits of an image, which changes no prediction, is subtracted first.
        """
        noise, logits = _centred(noisy - self.logits), _centred(self.logits)
        bias = noise.mean(dim=0)
        return _rms(bias), _rms(noise - bias), _rms(noise), _rms(logits)

    # -- draws scaled from their means to their actual values ----------------------------------------------------------

    def _continuous(self) -> bool:
        """Whether the logits change continuously with the share of torch's draws, for each of `PATHS` sets of draws."""
        try:
            return all(self._path_is_continuous() for _ in range(PATHS))
        except _OtherOutputs:
            raise
        except Exception as error:  # some operations fail on values between the draws
            if memory_ran_out(error):
                raise
            return False

    def _path_is_continuous(self) -> bool:
        def at(share: float) -> Tensor:
            with _draws_repeated(self.x.device), ScaledDraws(share):
                return self._forward()

        path = [(i / POINTS, at(i / POINTS)) for i in range(POINTS + 1)]
        if not self._distance(path[0][1]) <= SAME_LOGITS:
            return False
        largest_distance = max(self._distance(logits) for _, logits in path)
        low, high = _steepest(path)
        for _ in range(HALVINGS):
            middle = (low[0] + high[0]) / 2
            low, high = _steepest([low, (middle, at(middle)), high])
        self._forward()  # advances the generators, so that the next path has other draws
        return _largest(high[1] - low[1]) / self.scale <= max(JUMP * largest_distance, SAME_LOGITS)

    def _gradient_change(self, gradient: Tensor) -> float:
        """How much gradients differ from those of evaluation mode with draws at, and close to, their means.

        0.0 if the logits differ with draws at their means, because gradients cannot be compared then.
        """
        with ScaledDraws(0):
            logits, at_mean = self._with_gradient()
        if not self._distance(logits) <= SAME_LOGITS:
            return 0.0
        change = _gradient_difference(at_mean, gradient)
        if change > SAME_GRADIENT:
            return change
        change = 0.0
        for _ in range(PATHS):
            with ScaledDraws(NEAR):
                _, near = self._with_gradient()
            # |1 - <near, g> / <g, g>|: only the component along g, because ReLUs with an input of exactly zero become
            # active with any noise.
            squared = gradient.square().sum().clamp_min(torch.finfo(gradient.dtype).tiny)
            component = float((near * gradient).sum() / squared)
            change = max(change, abs(1 - component)) if bool(gradient.any()) else change
        return change if change > 0.5 else 0.0


@contextmanager
def _draws_repeated(device: torch.device) -> Iterator[None]:
    """Restore torch's generators afterwards, so that the same draws are repeated."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _steepest(path: list[tuple[float, Tensor]]) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """The two neighbouring points of a path, each a share and its logits, whose logits differ most."""
    return max(itertools.pairwise(path), key=lambda ends: _largest(ends[1][1] - ends[0][1]))


def _relative_to_largest(quantity: str, share: float) -> Difference:
    return Difference(share, f"{share:.1e} of the largest {quantity}")


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def _gradient_difference(first: Tensor, second: Tensor) -> float:
    """The largest difference of two gradients, relative to the largest entry of either."""
    largest = max(_largest(second), _largest(first))
    return _largest(first - second) / largest if largest > 0 else 0.0


def _candidates(output: Any, logits: Tensor) -> list[Tensor]:
    """All tensors in an output that have the shape of the logits, and their mean if there are several heads."""
    heads = [part for part in _tensors(output) if part.shape == logits.shape]
    return [*heads, torch.stack(heads).mean(dim=0)] if len(heads) > 1 else heads


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping):
        for part in output.values():
            yield from _tensors(part)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


@contextmanager
def _own_code_in_training_mode(model: nn.Module) -> Iterator[None]:
    modules = [module for module in model.modules() if not module.training and not _from_torch(module)]
    for module in modules:
        module.training = True
    try:
        yield
    finally:
        for module in modules:
            module.training = False


def _from_torch(module: nn.Module) -> bool:
    """Whether the class of a module is a layer of torch or torchvision, or a subclass of one other than containers."""
    if isinstance(module, torch.jit.ScriptModule):  # compiled, so only the name of the original class is left
        return hasattr(nn, module.original_name)
    containers = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    layers = [kind for kind in type(module).__mro__ if kind not in containers]
    return any(kind.__module__.startswith(("torch.nn.", "torchvision.ops")) for kind in layers)
