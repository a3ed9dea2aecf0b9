"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690) by the pyautoattack library, made resumable and told per image.

Four attacks without parameters, each on the images that withstood those before it: APGD on cross-entropy, APGD on the
targeted DLR loss, targeted FAB, and Square, which asks for no gradient. The library's own classes do the work, with the
settings of its ``standard`` version; this file decides the order, keeps the state, and confirms every image it hands
back.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.memory import in_batches
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_settings, check_type, check_whole, logits_of
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.attacks.early_stopping import misclassified
from paperlib.attacks.inputs import admit, no_gradient
from paperlib.config.budgets import Budget, as_budget
from paperlib.errors import InputError, NotFiniteError, PaperlibError
from paperlib.models.modes import eval_mode, float32_by_default, outside_inference_mode
from paperlib.paths import shown

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
QUERIES, ITERATIONS, TARGETS = 5000, 100, 9  # of the standard version
SURVIVED, MISCLASSIFIED = -1, -2  # in place of an attack: withstood all of them, misclassified before the first
CLASSES = 4  # the targeted DLR loss divides by a difference of the first, third and fourth logit


@dataclass(frozen=True)
class AutoAttacked:
    """What AutoAttack did to N images."""

    images: Tensor  # (N, C, H, W): the adversarial image where one was found *in this process*, else the clean one
    fooled_by: Tensor  # (N,) int8: index in ``attacks`` of the one that fooled the model, `SURVIVED` or `MISCLASSIFIED`
    attacks: tuple[str, ...]
    passes: int  # passes the attacks asked of the network in this process, images summed up; confirmations apart

    @property
    def fooled(self) -> Tensor:
        """(N,) bool, the misclassified clean images included."""
        return self.fooled_by != SURVIVED


@outside_inference_mode()
@float32_by_default()  # the library names no dtype
@tensor_float32(False)
def autoattack(
    model: nn.Module | Folded,
    x: Tensor,
    y: Tensor,
    *,
    eps: Budget,
    seed: int = 0,
    attacks: Sequence[str] = STANDARD,
    iterations: int = ITERATIONS,
    queries: int = QUERIES,
    batch_size: int = 250,
    state: str | Path | None = None,
    progress: Callable[[float], None] = lambda share: None,
) -> AutoAttacked:
    """Run the standard version of AutoAttack on the L-infinity ball, and say which attack fooled which image.

    Nothing is computed in TensorFloat-32. The library seeds torch's global generators and draws from the CPU's for
    every attack of this version, so a seed means the same on every device, rounding apart.

    Args:
        model: pixels to logits, of at least four classes for ``apgd-t``; attacked in evaluation mode, left as it was.
            As the library computes in float32, weights of another dtype are handed images of that dtype.
        x: images (N, C, H, W) in [0, 1]. y: labels (N,), int64. eps: a float or text such as ``"8/255"``.
        attacks: some of `STANDARD`, in this order; ``("square",)`` is the gradient-free control alone.
        iterations, queries: of APGD and FAB, and of Square. Fewer than the defaults are not the standard version.
        batch_size: images attacked at once; part of the outcome, because a batch shares its random numbers. Where
            memory does not suffice, half as many are attacked at once, each part from ``seed`` like a batch of its own.
        state: a file that holds what is done after each attack on each batch. A run that finds it goes on, and ends
            with the outcomes of an uninterrupted one; delete it when done.
        progress: told the share of the work that is done, as far as it can be foreseen.

    Raises:
        InputError: pixels, labels or settings out of range, fewer than four classes, or a state of another run.
        NotFiniteError: NaN or infinity in the model's answer. PaperlibError: pyautoattack is not installed.
    """
    eps = as_budget(eps)
    batch_size, iterations, queries = (
        check_whole(name, value)
        for name, value in (("batch_size", batch_size), ("iterations", iterations), ("queries", queries))
    )
    check_settings(seed=seed, progress=progress)
    check_type("attacks", attacks, Sequence, f"some of {', '.join(STANDARD)}")
    attacks = (attacks,) if isinstance(attacks, str) else attacks
    check_type("state", state, (str, Path, NoneType), "a path or None")
    state = None if state is None else Path(state)
    if unknown := [name for name in attacks if name not in STANDARD]:
        raise InputError(f"attacks: unknown {unknown[0]!r}; known: {', '.join(STANDARD)}")
    if len(set(attacks)) < len(attacks):
        raise InputError(f"attacks: {', '.join(attacks)}: each once, please")
    given = admit(model, x, y, gradient=any(name != "square" for name in attacks), float32=True)
    x, y = given.x, given.y
    folded = given.model if isinstance(given.model, Folded) else fold(given.model, x)
    how = {"eps": eps, "seed": int(seed), "attacks": list(attacks), "iterations": iterations, "queries": queries}
    # The library seeds torch's global generator, and its FAB would leave gradients in the parameters.
    with eval_mode(folded.model), _without_gradients(folded), torch.random.fork_rng():
        run = _Run(folded, x, y, how, batch_size, state, progress)
        for attack in attacks:
            for first in range(0, len(x), batch_size):
                run.advance(attack, first)
    return AutoAttacked(run.images, run.fooled_by, tuple(attacks), run.passes)


@contextmanager
def _without_gradients(folded: Folded) -> Iterator[None]:
    """Parameters ask for no gradient for the time of an attack."""
    asking = [p for network in (folded.model, folded.network) for p in network.parameters() if p.requires_grad]
    if not all(parameter.is_leaf for parameter in asking):
        raise InputError(
            "autoattack: weights of the model are computed from others within autograd's graph, as copy.deepcopy makes "
            "them of TorchScript modules; copy the model under torch.no_grad()"
        )
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)


class _Run:
    """A run in progress: what is known of each image, kept in a file after each attack on each batch."""

    def __init__(
        self,
        folded: Folded,
        x: Tensor,
        y: Tensor,
        how: dict[str, Any],
        batch_size: int,
        state: Path | None,
        progress: Callable[[float], None],
    ) -> None:
        self.folded, self.x, self.y, self.how = folded, x, y, how
        self.attacks: list[str] = how["attacks"]
        self.batch_size, self.state, self.progress = batch_size, state, progress
        self.images, self.passes = x.clone(), 0
        self.fooled_by = torch.full((len(x),), SURVIVED, dtype=torch.int8, device=x.device)
        self.done = torch.zeros(len(self.attacks), -(-len(x) // batch_size), dtype=torch.bool)
        self.key = ""
        if state is not None:
            self.key = _fingerprint(folded.model, x, y, {**how, "batch_size": batch_size})
        if state is not None and state.exists():
            self._restore(state)
        else:
            if "apgd-t" in self.attacks and len(x):
                _check_classes(folded, x)
            self.fooled_by[misclassified(folded, x, y, batch_size)] = MISCLASSIFIED

    def advance(self, attack: str, first: int) -> None:
        """One attack on what is left of one batch, unless that is done."""
        unit = self.attacks.index(attack), first // self.batch_size
        if self.done[unit]:
            return
        part = torch.arange(first, min(first + self.batch_size, len(self.x)), device=self.x.device)
        left = part[self.fooled_by[part] == SURVIVED]
        if len(left):
            # The copy first; those it lost and the model did not, rounding apart, once more on the model itself.
            doubtful = self._attempt_in_batches(self.folded.network, attack, left)
            if len(doubtful) and self.folded.network is not self.folded.model:
                self._attempt_in_batches(self.folded.model, attack, doubtful)
        self.done[unit] = True
        self._tell(0.0)
        if self.state is not None:
            tensors = {"by": self.fooled_by, "done": self.done}
            write_tensors(self.state, tensors, {"key": self.key})

    def _attempt_in_batches(self, network: nn.Module, attack: str, left: Tensor) -> Tensor:
        """`_attempt` on as many of the images as memory allows at once."""

        def attempt(part: slice) -> Tensor:
            return self._attempt(network, attack, left[part])

        found = in_batches(len(left), self.batch_size, self.folded, attempt)
        return torch.cat([left[:0], *(doubtful for _, doubtful in found)])

    def _attempt(self, network: nn.Module, attack: str, left: Tensor) -> Tensor:
        """Attack images by index; returns those that fooled ``network`` but not the model."""
        x, y = self.x[left], self.y[left]
        asked = _Watched(network, len(left) * _passes(attack, self.how), self._tell)
        found = _adversarial(asked, attack, x, y, self.how)
        self.passes += asked.passes
        if not bool(asked.finite):
            raise NotFiniteError(f"{attack}: the model's answer held NaN or infinity on the way; no outcome is kept")
        with torch.no_grad():
            fooled = logits_of(network, found).argmax(dim=1) != y
        within = ((found - x).abs().amax(dim=(1, 2, 3)) <= self.how["eps"] + 1e-6) & _in_range(found)
        fooled &= within
        won = fooled.clone()
        if network is not self.folded.model and bool(fooled.any()):
            won[fooled] = misclassified(self.folded, found[fooled], y[fooled], self.batch_size)
        self.images[left[won]] = found[won]
        self.fooled_by[left[won]] = self.attacks.index(attack)
        return left[fooled & ~won]

    def _tell(self, share: float) -> None:
        """Say how far the run is: what is done, and a share of the attack that is going on."""
        self.progress(min(1.0, (float(self.done.sum()) + share) / max(self.done.numel(), 1)))

    def _restore(self, state: Path) -> None:
        tensors, notes = read_tensors(state)
        if notes.get("key") != self.key:
            raise InputError(f"{shown(state)}: the state of another run (model, images or settings); delete it")
        self.fooled_by, self.done = tensors["by"].to(self.x.device), tensors["done"]


class _Watched(nn.Module):
    """A network that counts what it is asked and says how far the attack is."""

    def __init__(self, network: nn.Module, expected: int, tell: Callable[[float], None]) -> None:
        super().__init__()
        self.network, self.expected, self.tell = network, expected, tell
        self.passes, self.told = 0, time.monotonic()
        self.finite: Tensor | bool = True

    def forward(self, x: Tensor) -> Tensor:
        self.passes += len(x)
        if time.monotonic() - self.told > 1:
            self.told = time.monotonic()
            self.tell(min(0.99, self.passes / self.expected))
        logits = logits_of(self.network, x)
        if x.requires_grad and torch.is_grad_enabled() and not logits.requires_grad:
            raise no_gradient()
        self.finite = torch.isfinite(logits.detach()).all() & self.finite
        return logits.to(x.dtype)  # the library writes losses and margins into tensors of the images' dtype


def _adversarial(model: nn.Module, attack: str, x: Tensor, y: Tensor, how: dict[str, Any]) -> Tensor:
    """What one attack of the library makes of images that are classified correctly."""
    try:
        from pyautoattack import AutoAttack
    except ImportError as error:
        raise PaperlibError("AutoAttack needs pyautoattack 0.2 or newer: pip install pyautoattack") from error
    with torch.no_grad():
        classes = model(x[:1]).shape[1]
    library = AutoAttack(model, norm="Linf", eps=how["eps"], seed=how["seed"], version="standard", device=x.device)
    chosen = {
        "apgd-ce": library.apgd,
        "apgd-t": library.apgd_targeted,
        "fab-t": library.fab,
        "square": library.square,
    }[attack]
    library.logger.setLevel(logging.ERROR)  # what it would warn of, the audit tells
    chosen.seed = how["seed"]
    if attack == "square":
        chosen.n_queries = how["queries"]
    else:
        chosen.n_iter = how["iterations"]
    if attack == "apgd-ce":
        chosen.loss = "ce"
    if attack in ("apgd-t", "fab-t"):
        chosen.n_target_classes = min(TARGETS, classes - 1)
    if attack == "fab-t":
        chosen.targeted = True
    with torch.no_grad():
        found: Tensor = chosen.perturb(x.clone(), y.clone())
    return found.detach()


def _check_classes(folded: Folded, x: Tensor) -> None:
    with torch.no_grad():
        classes = logits_of(folded.model, x[:1]).shape[1]
    if classes < CLASSES:
        raise InputError(f"autoattack: its targeted losses need {CLASSES} classes or more, the model has {classes}")


def _passes(attack: str, how: dict[str, Any]) -> int:
    """Passes an image costs that withstands an attack."""
    iterations: int = how["iterations"]
    costs = {"apgd-ce": iterations, "apgd-t": TARGETS * iterations, "fab-t": 2 * TARGETS * iterations}
    return int(costs.get(attack, how["queries"]))


def _in_range(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return (flat.amin(dim=1) >= 0) & (flat.amax(dim=1) <= 1)


def _fingerprint(model: nn.Module, x: Tensor, y: Tensor, how: dict[str, Any]) -> str:
    """Tells one run from another: weights, images, labels and settings."""
    digest = hashlib.sha256(repr(sorted(how.items())).encode())
    for tensor in (*model.state_dict().values(), x, y):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]
