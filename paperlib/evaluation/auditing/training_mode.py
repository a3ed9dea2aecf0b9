"""Does a network answer otherwise when its own code is told that it is being trained?

Torch's layers change in training mode as everybody knows, so they stay in evaluation mode here. What is asked is what a
network's own code makes of ``self.training``. Honest code draws noise (functional dropout, stochastic depth, Gaussian
noise) or returns auxiliary heads beside its answer. Dishonest code shows attacks and evaluations two networks.

The criterion, where answers move in training mode: the mean of many noisy answers lies near the answer of evaluation
mode, compared with their spread around that mean and with the size of the answer itself. A nonlinear network moves this
mean as well as spreading the answers: dropout of many units moves it by as much as the spread, because the noise of
single units averages out in the logits and the curvature of the activations does not. So a mean that moved is forgiven
where torch's draws, moved from their means to where they fell, move the answer continuously from that of evaluation
mode: then the draws are noise around it. Code that decides by its draws, or draws past torch, makes the answer jump.
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

SAME_ANSWER = 1e-4  # of the largest logit
SAME_GRADIENT = 1e-3  # of the largest entry; the same operations on the same numbers differ by less
FIRST_DRAWS = 32  # answers that show whether any moves
DRAWS = 128  # noisy answers whose mean and spread are compared, where one moved
# The bias is how far the mean of noisy answers lies off the answer. Measured on small networks under dropout up to
# 0.5, drop path up to 0.2, layer drop of 0.1 and Gaussian noise up to 0.5: where draws decide, the bias is at most 0.7
# of the spread or below 0.35 of the answer's size; it never exceeds 1.05 of that size, and no noise is twice that size.
# Another network in half of the draws has a bias of one spread (0.75 is three standard errors less, with 128 draws);
# another network of equal size under any noise has a bias of 1.4 of the size.
BIAS_OF_SPREAD, SMALL_BIAS, LARGEST_BIAS = 0.75, 0.35, 1.2
LARGEST_NOISE = 3.0  # of the answer's size: beyond it nothing is left of the answer
PATHS = 8  # sets of draws that are followed from their means
POINTS, HALVINGS = 16, 8  # on a path; and how often its steepest part is halved, down to 1/4096 of the path
JUMP = 0.05  # of the farthest that a path leads, within 1/4096 of it
NEAR = 1e-3  # a share of the draws at which gradients must still be much like those of evaluation mode


class Difference(NamedTuple):
    """How far a model in training mode is from itself in evaluation mode."""

    share: float  # of the largest logit or gradient entry; above `SAME_ANSWER` it is another network
    text: str  # the same in words


def difference_in_training_mode(model: nn.Module, x: Tensor, wanted: Tensor, size: float) -> Difference:
    """How far the model's answers to ``x`` (N, C, H, W), or their gradients, move when its code is told of training.

    Args:
        model: in evaluation mode; left as it was, and so are torch's generators.
        wanted: its answers (N, classes) in evaluation mode.
        size: of the largest logit, which answers are compared with.

    Returns:
        The difference. Its share is 0.0 where only noise around the answer was added, where the model cannot be asked
        in training mode, or where its outputs there hold no logits (feature maps, a loss). It is infinite where they
        hold another number of logits, or values that are not finite.
    """
    with _draws_repeated(x.device):
        try:
            # Training may move buffers: those of the copy.
            return _Compared(copy.deepcopy(model), x, wanted, size).difference()
        except _OtherOutputs as error:
            return error.difference
        except Exception as error:  # any module may be audited, and some cannot be asked in a mode they are not in
            if memory_ran_out(error):
                raise
            return Difference(0.0, "no answer in training mode")


class _OtherOutputs(Exception):
    """The model's outputs hold nothing of the form of its answer."""

    def __init__(self, output: Any, wanted: Tensor) -> None:
        logits = [part.shape[1] for part in _tensors(output) if part.ndim == 2 and len(part) == len(wanted)]
        other = [columns for columns in logits if columns > 1]
        self.difference = (
            Difference(math.inf, f"{other[0]} logits instead of {wanted.shape[1]}")
            if other
            else Difference(0.0, "no logits in training mode")
        )
        super().__init__(self.difference.text)


class _Compared:
    """A model, its answers ``wanted`` (N, classes) in evaluation mode, and how they differ in training mode."""

    def __init__(self, model: nn.Module, x: Tensor, wanted: Tensor, size: float) -> None:
        self.model, self.x, self.wanted, self.size = model, x, wanted, size

    def difference(self) -> Difference:
        _, gradient = self._with_gradient()
        with _own_code_in_training_mode(self.model):
            noisy = self._draw(FIRST_DRAWS)
            if not bool(torch.isfinite(noisy).all()):
                return Difference(math.inf, "values that are not finite")
            if self._moved(noisy) <= SAME_ANSWER:
                turned = max(_turned(self._with_gradient()[1], gradient) for _ in range(PATHS))
                return _of("gradient", turned) if turned > SAME_GRADIENT else _of("logit", self._moved(noisy[0]))
            noisy = torch.cat([noisy, self._draw(DRAWS - FIRST_DRAWS)])
            if self._drowned(noisy) or (self._biased(noisy) and not self._continuous()):
                return _of("logit", self._moved(noisy))
            return _of("gradient", self._gradient_lost(gradient))

    def _nearest(self, output: Any) -> Tensor:
        found = _candidates(output, self.wanted)
        if not found:
            raise _OtherOutputs(output, self.wanted)
        return min(found, key=lambda answer: _largest(answer - self.wanted))

    def _answer(self) -> Tensor:
        with torch.no_grad():
            return self._nearest(self.model(self.x.clone()))  # of a clone, which the model may change in place

    def _draw(self, draws: int) -> Tensor:
        return torch.stack([self._answer() for _ in range(draws)])

    def _moved(self, answers: Tensor) -> float:
        return _largest(answers - self.wanted) / self.size

    def _with_gradient(self) -> tuple[Tensor, Tensor]:
        """The answer (N, classes), and the input gradient (N, C, H, W) of a weighted sum of all of it."""
        with torch.enable_grad():
            x = self.x.detach().clone().requires_grad_()
            answer = self._nearest(self.model(x.clone()))
            weights = torch.linspace(-1, 1, answer.shape[1], device=x.device, dtype=answer.dtype)
            value = (answer * weights).sum()
            found = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
        return answer.detach(), torch.zeros_like(x) if found is None else found

    # -- noisy answers (draws, N, classes) against the answer ----------------------------------------------------------

    def _drowned(self, noisy: Tensor) -> bool:
        """Whether the noise, or the bias of its mean, is so large that nothing is left of the answer."""
        bias, spread, noise, answer = self._sizes(noisy)
        return noise > LARGEST_NOISE * answer or bias**2 - spread**2 / DRAWS > (LARGEST_BIAS * answer) ** 2

    def _biased(self, noisy: Tensor) -> bool:
        """Whether the mean of the noisy answers lies off the answer, by their spread or by most of it and clearly."""
        bias, spread, _, answer = self._sizes(noisy)
        return bias > spread or (bias > BIAS_OF_SPREAD * spread and bias > SMALL_BIAS * answer)

    def _sizes(self, noisy: Tensor) -> tuple[float, float, float, float]:
        """Root mean squares of bias, spread, all noise and the answer; a shift of all logits is none of them."""
        noise, answer = _centred(noisy - self.wanted), _centred(self.wanted)
        bias = noise.mean(dim=0)
        bias_size, spread, size, answer_size = map(_rms, (bias, noise - bias, noise, answer))
        return bias_size, spread, size, answer_size

    # -- from the means of the draws to where they fell ----------------------------------------------------------------

    def _continuous(self) -> bool:
        """Whether torch's draws lead from the answer to the noisy ones without a jump, at every set of draws."""
        try:
            return all(self._path_is_continuous() for _ in range(PATHS))
        except _OtherOutputs:
            raise
        except Exception as error:  # some operations take only what can be drawn
            if memory_ran_out(error):
                raise
            return False

    def _path_is_continuous(self) -> bool:
        def at(share: float) -> Tensor:
            with _draws_repeated(self.x.device), ScaledDraws(share):
                return self._answer()

        path = [(i / POINTS, at(i / POINTS)) for i in range(POINTS + 1)]
        if not self._moved(path[0][1]) <= SAME_ANSWER:
            return False
        farthest = max(self._moved(answer) for _, answer in path)
        (low, here), (high, there) = _steepest(path)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            (low, here), (high, there) = _steepest([(low, here), (middle, at(middle)), (high, there)])
        self._answer()  # so that the next path has other draws
        return _largest(there - here) / self.size <= max(JUMP * farthest, SAME_ANSWER)

    def _gradient_lost(self, gradient: Tensor) -> float:
        """By how much gradients miss that of evaluation mode, with draws at their means and close to them.

        0.0 where the answer is another with draws at their means: nothing is known of gradients there.
        """
        with ScaledDraws(0):
            answer, central = self._with_gradient()
        if not self._moved(answer) <= SAME_ANSWER:
            return 0.0
        turned = _turned(central, gradient)
        if turned > SAME_GRADIENT:
            return turned
        lost = 0.0
        for _ in range(PATHS):
            with ScaledDraws(NEAR):
                _, close = self._with_gradient()
            # Its part along the gradient alone: activations at exactly zero turn on with any noise.
            kept = float((close * gradient).sum() / gradient.square().sum().clamp_min(torch.finfo(gradient.dtype).tiny))
            lost = max(lost, abs(1 - kept)) if bool(gradient.any()) else lost
        return lost if lost > 0.5 else 0.0


@contextmanager
def _draws_repeated(device: torch.device) -> Iterator[None]:
    """Torch's generators are afterwards as they were before, so the same draws come again."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        yield


def _steepest(path: list[tuple[float, Tensor]]) -> tuple[tuple[float, Tensor], tuple[float, Tensor]]:
    """The two neighbours on a path, each a share and its answer, whose answers differ most."""
    return max(itertools.pairwise(path), key=lambda ends: _largest(ends[1][1] - ends[0][1]))


def _of(what: str, share: float) -> Difference:
    return Difference(share, f"{share:.1e} of the largest {what}")


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _centred(logits: Tensor) -> Tensor:
    return logits - logits.mean(dim=-1, keepdim=True)


def _turned(found: Tensor, gradient: Tensor) -> float:
    """The largest difference of two gradients as a share of the largest entry of either."""
    largest = max(_largest(gradient), _largest(found))
    return _largest(found - gradient) / largest if largest > 0 else 0.0


def _candidates(output: Any, wanted: Tensor) -> list[Tensor]:
    """What in an output has the form of the answer: one of several heads, or the mean of them."""
    found = [part for part in _tensors(output) if part.shape == wanted.shape]
    return [*found, torch.stack(found).mean(dim=0)] if len(found) > 1 else found


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
    own = [module for module in model.modules() if not module.training and not _of_torch(module)]
    for module in own:
        module.training = True
    try:
        yield
    finally:
        for module in own:
            module.training = False


def _of_torch(module: nn.Module) -> bool:
    """Whether a module is one of torch's layers, or made of one; containers have no forward of their own to trust."""
    if isinstance(module, torch.jit.ScriptModule):  # its class is TorchScript's own, whatever it was made of
        return hasattr(nn, module.original_name)
    plain = (nn.Module, nn.Sequential, nn.ModuleList, nn.ModuleDict)
    layers = [kind for kind in type(module).__mro__ if kind not in plain]
    return any(kind.__module__.startswith(("torch.nn.", "torchvision.ops")) for kind in layers)
