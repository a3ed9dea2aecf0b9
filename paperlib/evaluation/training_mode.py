"""Does a network answer otherwise when its own code is told that it is being trained?

Torch's layers change in training mode as everybody knows, so they stay in evaluation mode here. What is asked is what a
network's own code makes of ``self.training``. Honest code draws noise (functional dropout, stochastic depth, Gaussian
noise) or returns auxiliary heads beside its answer. Dishonest code shows attacks and evaluations two networks.

The criterion: with every random draw at its mean, honest code gives the answer and the gradient of evaluation mode,
because its noise is noise around that answer. Where code draws past torch, or makes decisions of its draws, no draw
is at its mean; then the answer of evaluation mode must lie no farther from the mean of many noisy answers than these
lie from it themselves. Another network lies farther, however it is disguised by small noise.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from paperlib.memory import memory_ran_out

DRAWS = 32  # noisy answers whose mean and spread are compared
SAME_ANSWER = 1e-4  # of the largest logit
SAME_GRADIENT = 1e-3  # of the largest entry; the same operations on the same numbers differ by less


def difference_in_training_mode(model: nn.Module, x: Tensor, wanted: Tensor, size: float) -> tuple[float, str]:
    """How far the model's answers to ``x`` (N, C, H, W), or their gradients, move when its code is told of training.

    Args:
        model: in evaluation mode; left as it was, and so are torch's generators.
        wanted: its answers (N, classes) in evaluation mode.
        size: of the largest logit, which answers are compared with.

    Returns:
        A share, and of what: ``"logit"``, the largest one, or ``"gradient"``, its largest entry. A share above
        `SAME_ANSWER` is another network. It is 0.0 where only noise around the answer was added, where the model
        cannot be asked in training mode, or where its outputs there hold nothing of the answer's form.
    """
    with torch.random.fork_rng(devices=[x.device] if x.device.type == "cuda" else []):
        try:
            return _difference(copy.deepcopy(model), x, wanted, size)  # training may move buffers: those of the copy
        except Exception as error:  # any module may be audited, and some cannot be asked in a mode they are not in
            if memory_ran_out(error):
                raise
            return 0.0, "logit"


def _difference(model: nn.Module, x: Tensor, wanted: Tensor, size: float) -> tuple[float, str]:
    def nearest(output: Any) -> Tensor:
        return min(_candidates(output, wanted), key=lambda found: _largest(found - wanted))

    _, gradient = _answer_and_gradient(model, x, nearest)
    with _own_code_in_training_mode(model):
        with torch.no_grad():
            moved = _largest(nearest(model(x)) - wanted) / size
        with DrawsAtTheirMeans():
            centre, centre_gradient = _answer_and_gradient(model, x, nearest)
        if _largest(centre - wanted) / size <= SAME_ANSWER:
            largest = max(_largest(gradient), _largest(centre_gradient))
            turned = _largest(centre_gradient - gradient) / largest if largest > 0 else 0.0
            if turned > SAME_GRADIENT:
                return turned, "gradient"
            return (moved if moved <= SAME_ANSWER else 0.0), "logit"
        with torch.no_grad():
            noisy = torch.stack([nearest(model(x)) for _ in range(DRAWS)])
    mean = noisy.mean(dim=0)
    bias, spread = (float(part.square().mean().sqrt()) for part in (mean - wanted, noisy - mean))
    return (moved if bias > spread else 0.0), "logit"


def _largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


def _answer_and_gradient(model: nn.Module, x: Tensor, answer_of: Callable[[Any], Tensor]) -> tuple[Tensor, Tensor]:
    """An answer (N, classes), and the input gradient (N, C, H, W) of something that hangs on all of it."""
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        answer = answer_of(model(x.clone()))  # of a clone, which the model may change in place
        weights = torch.linspace(-1, 1, answer.shape[1], device=x.device, dtype=answer.dtype)
        value = (answer * weights).sum()
        found = torch.autograd.grad(value, x, allow_unused=True)[0] if value.requires_grad else None
    return answer.detach(), torch.zeros_like(x) if found is None else found


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


class DrawsAtTheirMeans(TorchDispatchMode):
    """Every random draw of torch gives its mean: a dropout mask its keep probability, by which it is then divided."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in func.tags:
            return func(*args, **kwargs)
        given = {argument.name: argument.default_value for argument in func._schema.arguments}
        given |= dict(zip(given, args, strict=False)) | kwargs
        name = func.overloadpacket.__name__
        if name == "native_dropout":
            return given["input"].clone(), torch.ones_like(given["input"], dtype=torch.bool)
        mean = _mean(name, given)
        mean = mean.clone() if isinstance(mean, Tensor) else mean  # the draw may overwrite it
        found = func(*args, **kwargs)
        if mean is None:
            return found
        return found.copy_(mean) if isinstance(mean, Tensor) else found.fill_(mean)


def _mean(name: str, given: Mapping[str, Any]) -> Tensor | float | None:
    """The mean of what a random operation of torch draws, by its name and arguments; None if it is not known here."""
    if name in ("bernoulli", "bernoulli_"):
        mean: Tensor | float = given.get("p", given["self"])
        return mean
    if name in ("normal", "normal_"):
        mean = given["mean"]
        return mean
    if name == "uniform_":
        return float(given["from"] + given["to"]) / 2
    return {"rand": 0.5, "rand_like": 0.5, "randn": 0.0, "randn_like": 0.0}.get(name)
