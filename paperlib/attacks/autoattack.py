"""AutoAttack (Croce and Hein 2020, arXiv 2003.01690) by the pyautoattack library: resumable, with an outcome per image.

Four attacks without free parameters, each on the images that survived the attacks before: APGD on cross-entropy, APGD
on the targeted DLR loss, targeted FAB, and Square, which uses no gradient. The library computes each attack
(`paperlib.attacks.autoattack_library`). This file calls the attacks in order, writes the state after each attack on
each batch, and confirms every adversarial image.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import NoneType

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.memory import in_batches
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_settings, check_type, check_whole, logits_of
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.attacks.autoattack_library import (
    ITERATIONS,
    QUERIES,
    STANDARD,
    CountingNetwork,
    Settings,
    passes_per_image,
    perturb,
)
from paperlib.attacks.early_stopping import misclassified
from paperlib.attacks.inputs import admit
from paperlib.config.budgets import Budget, as_budget
from paperlib.errors import InputError, NotFiniteError
from paperlib.models.modes import eval_mode, float32_by_default, outside_inference_mode
from paperlib.paths import shown
from paperlib.shapes import Images, Labels

SURVIVED, MISCLASSIFIED = -1, -2  # in place of an attack: no attack succeeded; misclassified without an attack
CLASSES = 4  # fewest classes of the targeted DLR loss, which divides by a difference of the 1st, 3rd and 4th logit


@dataclass(frozen=True)
class AutoAttacked:
    """The result of AutoAttack on N images."""

    images: Images  # the adversarial image if *this process* found one, else the clean image
    fooled_by: Tensor  # (N,) int8: index in ``attacks`` of the successful attack, or `SURVIVED` or `MISCLASSIFIED`
    attacks: tuple[str, ...]
    passes: int  # forward passes of the attacks in this process, counted per image, without those that confirm

    @property
    def fooled(self) -> Tensor:
        """(N,) bool: misclassified after the attacks, or without an attack."""
        return self.fooled_by != SURVIVED


@outside_inference_mode()
@float32_by_default()  # the library creates tensors of the default dtype
@tensor_float32(False)
def autoattack(
    model: nn.Module | Folded,
    x: Images,
    y: Labels,
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
    """Run the standard version of AutoAttack in the L-infinity ball; the result holds which attack fooled which image.

    TensorFloat-32 is off. Every attack of this version draws from the CPU's generator, which the library seeds, so
    equal seeds give equal random numbers on every device.

    Args:
        model: pixels to logits, with at least four classes for ``apgd-t``; it is attacked in evaluation mode and
            does not change. The library computes in float32; a model with weights of another dtype gets images of that
            dtype.
        x: images (N, C, H, W), pixels in [0, 1].
        y: labels (N,), int64.
        eps: budget in pixels of [0, 1]; a float or text such as ``"8/255"``.
        attacks: some of `STANDARD`; they run in the order given. Square alone is the gradient-free control.
        iterations, queries: of APGD and FAB, and of Square. Fewer than the defaults are not the standard version.
        batch_size: images attacked at once. It changes outcomes, because a batch shares its random numbers. When
            memory runs out, the batch is halved, and each part starts from ``seed`` like a separate batch.
        state: a file for the state of the run, written after each attack on each batch. If it exists, the run resumes
            and ends with the outcomes of an uninterrupted run. Delete it after the run.
        progress: called repeatedly with the share of the work that is done, in [0, 1], as far as it is known.

    Raises:
        InputError: pixels, labels or settings that cannot be used, fewer than four classes, or the state of another
            run. NotFiniteError: NaN or infinity in the model's logits. PaperlibError: pyautoattack is not installed.
    """
    budget = as_budget(eps)
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
        raise InputError(f"attacks: {', '.join(attacks)}: each attack may be listed once")
    inputs = admit(model, x, y, gradient=any(name != "square" for name in attacks), float32=True)
    x, y = inputs.x, inputs.y
    folded = inputs.model if isinstance(inputs.model, Folded) else fold(inputs.model, x)
    settings = Settings(budget, int(seed), tuple(attacks), iterations, queries)
    # The library seeds torch's global generator, and its FAB computes gradients of the parameters.
    with eval_mode(folded.model), _without_gradients(folded), torch.random.fork_rng():
        run = _Run(folded, x, y, settings, batch_size, state, progress)
        for attack in attacks:
            for first in range(0, len(x), batch_size):
                run.advance(attack, first)
    return AutoAttacked(run.images, run.fooled_by, settings.attacks, run.passes)


@contextmanager
def _without_gradients(folded: Folded) -> Iterator[None]:
    """No parameter requires a gradient during the attack."""
    trainable = [p for network in (folded.model, folded.network) for p in network.parameters() if p.requires_grad]
    if not all(parameter.is_leaf for parameter in trainable):
        raise InputError(
            "autoattack: weights of the model belong to autograd's graph, as after copy.deepcopy of a TorchScript "
            "module; copy the model under torch.no_grad()"
        )
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


class _Run:
    """A run in progress: the outcome of each image so far, stored in a file after each attack on each batch."""

    def __init__(
        self,
        folded: Folded,
        x: Images,
        y: Labels,
        settings: Settings,
        batch_size: int,
        state: Path | None,
        progress: Callable[[float], None],
    ) -> None:
        self.folded, self.x, self.y, self.settings = folded, x, y, settings
        self.batch_size, self.state, self.progress = batch_size, state, progress
        self.images, self.passes = x.clone(), 0
        self.fooled_by = torch.full((len(x),), SURVIVED, dtype=torch.int8, device=x.device)
        self.done = torch.zeros(len(settings.attacks), -(-len(x) // batch_size), dtype=torch.bool)
        self.key = "" if state is None else _fingerprint(folded.model, x, y, settings, batch_size)
        if state is not None and state.exists():
            self._restore(state)
        else:
            if "apgd-t" in settings.attacks and len(x):
                _check_classes(folded, x)
            self.fooled_by[misclassified(folded, x, y, batch_size)] = MISCLASSIFIED

    def advance(self, attack: str, first: int) -> None:
        """Run one attack on the surviving images of the batch that begins at ``first``, unless that is done."""
        unit = self.settings.attacks.index(attack), first // self.batch_size
        if self.done[unit]:
            return
        batch = torch.arange(first, min(first + self.batch_size, len(self.x)), device=self.x.device)
        surviving = batch[self.fooled_by[batch] == SURVIVED]
        if len(surviving):
            # First the folded copy; then the model itself for images that fooled only the copy, because of rounding.
            unconfirmed = self._attack_in_batches(self.folded.network, attack, surviving)
            if len(unconfirmed) and self.folded.network is not self.folded.model:
                self._attack_in_batches(self.folded.model, attack, unconfirmed)
        self.done[unit] = True
        self._report_progress(0.0)
        if self.state is not None:
            write_tensors(self.state, {"by": self.fooled_by, "done": self.done}, {"key": self.key})

    def _attack_in_batches(self, network: nn.Module, attack: str, indices: Tensor) -> Tensor:
        """`_attack` on as many of the images at once as memory allows."""

        def attack_rows(rows: slice) -> Tensor:
            return self._attack(network, attack, indices[rows])

        results = in_batches(len(indices), self.batch_size, self.folded, attack_rows)
        return torch.cat([indices[:0], *(unconfirmed for _, unconfirmed in results)])

    def _attack(self, network: nn.Module, attack: str, indices: Tensor) -> Tensor:
        """Attack images by index; returns the indices of those that fool ``network`` but not the model."""
        x, y, settings = self.x[indices], self.y[indices], self.settings
        counting = CountingNetwork(network, len(indices) * passes_per_image(attack, settings), self._report_progress)
        images = perturb(counting, attack, x, y, settings)
        self.passes += counting.passes
        if not bool(counting.finite):
            raise NotFiniteError(f"{attack}: the model's logits held NaN or infinity during the attack")
        with torch.no_grad():
            fooled = logits_of(network, images).argmax(dim=1) != y
        fooled &= ((images - x).abs().amax(dim=(1, 2, 3)) <= settings.eps + 1e-6) & _in_range(images)
        confirmed = fooled.clone()
        if network is not self.folded.model and bool(fooled.any()):
            confirmed[fooled] = misclassified(self.folded, images[fooled], y[fooled], self.batch_size)
        self.images[indices[confirmed]] = images[confirmed]
        self.fooled_by[indices[confirmed]] = settings.attacks.index(attack)
        return indices[fooled & ~confirmed]

    def _report_progress(self, share: float) -> None:
        """Report the share of the run that is done; ``share`` is that of the current attack on the current batch."""
        self.progress(min(1.0, (float(self.done.sum()) + share) / max(self.done.numel(), 1)))

    def _restore(self, state: Path) -> None:
        tensors, metadata = read_tensors(state)
        if metadata.get("key") != self.key:
            raise InputError(f"{shown(state)}: the state of another run (model, images or settings); delete it")
        self.fooled_by, self.done = tensors["by"].to(self.x.device), tensors["done"]


def _check_classes(folded: Folded, x: Tensor) -> None:
    with torch.no_grad():
        classes = logits_of(folded.model, x[:1]).shape[1]
    if classes < CLASSES:
        raise InputError(f"autoattack: its targeted losses need {CLASSES} classes or more, the model has {classes}")


def _in_range(images: Tensor) -> Tensor:
    flat = images.flatten(1)
    return (flat.amin(dim=1) >= 0) & (flat.amax(dim=1) <= 1)


def _fingerprint(model: nn.Module, x: Tensor, y: Tensor, settings: Settings, batch_size: int) -> str:
    """A hash of weights, images, labels and settings, which identifies the run of a state file."""
    values = {**asdict(settings), "attacks": list(settings.attacks), "batch_size": batch_size}
    digest = hashlib.sha256(repr(sorted(values.items())).encode())
    for tensor in (*model.state_dict().values(), x, y):
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:20]
