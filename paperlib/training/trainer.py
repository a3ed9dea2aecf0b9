"""One adversarial trainer for every recipe: attack the batch, update, validate, keep the best epoch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_weights
from paperlib.config.schema import DataConfig, TrainConfig
from paperlib.data import Dataset, augment
from paperlib.errors import NotFiniteError
from paperlib.log import logger, track
from paperlib.seeds import cpu_generator, hash_seed, permutation
from paperlib.training.adversaries import SampledAttack
from paperlib.training.checkpoint import resume, save_checkpoint
from paperlib.training.history import Epoch, History, epoch_line
from paperlib.training.update import UpdateState, UpdateStep, seeded_global_generators, set_training_mode
from paperlib.training.validation import Validation, validate


@dataclass(frozen=True)
class Augmentation:
    """Padding of the random crop in pixels, 0 for none; and whether images are mirrored at random."""

    crop: int
    flip: bool


def train(
    model: nn.Module,
    data: Dataset,
    *,
    config: TrainConfig,
    augmentation: Augmentation | DataConfig,
    update_steps: Sequence[UpdateStep],
    validation: Validation,
    seed: int,
    bf16: bool = False,
    tf32: bool = False,
    channels_last: bool = False,
    checkpoint: Path | None = None,
    label: str = "training",
) -> History:
    """Train ``model`` in place, then load the weights of the epoch with the best validation accuracy.

    On each batch, each update step samples an attack, runs it against the model in evaluation mode, and takes one
    optimiser step on the attacked batch in training mode. Nearly every recipe has one update step; ADVMoE has two. The
    test split is not used. The model is returned in evaluation mode.

    Evaluation mode during the attack is our choice, because the paper does not say: batch norm uses its running
    statistics and dropout is off, so that training attacks the network that is evaluated later. During the update batch
    norm uses the statistics of the attacked batch, and dropout is on.

    Args:
        config: epochs, batch size, optimiser and schedule.
        augmentation: random crop and mirroring; of a profile's data section only these two are used.
        update_steps: the updates of each batch, each with an optimiser of its own. Parts that an update step does not
            train stay in evaluation mode during it, and so do parts whose parameters do not require gradients.
        seed: decides the order of the images, the attacks, and what modules such as dropout draw from torch's global
            generators, whose state is restored.
        checkpoint: file that holds the state after each epoch. A run that finds it continues from there, and ends with
            the same weights, bit for bit on the CPU, as an uninterrupted run.

    Raises:
        NotFiniteError: the loss or the logits became NaN or infinite; the epoch is named.
        InputError: an update step trains no parameter that requires gradients.
    """
    model.to(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    states = [UpdateState.of(step, model, config) for step in update_steps]
    history, best = resume(checkpoint, model, states)
    if history.epochs:
        logger.info(f"{label}: going on after epoch {history.epochs[-1].epoch + 1} of {config.epochs}")
    # Only single-step training is checked for catastrophic overfitting: multi-step training shows a gap between FGSM
    # and PGD accuracy too, without gradient masking.
    single_step = all(0 < step.attack.mean_steps() <= 1 for step in update_steps)
    run = _Run(model, data, config, augmentation, states, seed, bf16, tf32, channels_last, label)
    for epoch in range(len(history.epochs), config.epochs):
        started = time.monotonic()
        # A new folded copy in each epoch, because its self-test is weak on a network that was just initialised.
        folded = fold(model, data.train.images[:2])
        loss, steps, passes = run.epoch(epoch, folded)
        check_weights(model, label)
        folded.refresh()
        with tensor_float32(False):
            clean, fgsm, pgd, gap = validate(
                folded, data.validation, validation, seed=hash_seed(seed, epoch, "validation")
            )
        history.passes += passes
        seconds = time.monotonic() - started
        history.epochs.append(Epoch(epoch, loss, steps, clean, fgsm, pgd, gap and single_step, seconds))
        scores = [getattr(e, validation.select) for e in history.epochs]
        # On a tie the later epoch: it has learned longer, and ties are frequent on a small validation split.
        if scores[-1] >= max(scores):
            history.best = epoch
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        save_checkpoint(checkpoint, model, states, best, history)
        logger.info(f"{label}: {epoch_line(history.epochs[-1], config.epochs)}")
    model.load_state_dict(best)
    model.eval()
    return history


@dataclass(frozen=True)
class _Run:
    """A training run: the network with its data, settings and optimisers."""

    model: nn.Module
    data: Dataset
    config: TrainConfig
    augmentation: Augmentation | DataConfig
    states: list[UpdateState]
    seed: int
    bf16: bool
    tf32: bool
    channels_last: bool
    label: str

    def epoch(self, epoch: int, folded: Folded) -> tuple[float, float, int]:
        """One pass through the training split: mean loss, mean attack steps per update, passes through the model.

        All random numbers of an epoch follow from (seed, epoch), so an interrupted run needs no generator state.
        """
        images, labels = self.data.train.images, self.data.train.labels
        generator = cpu_generator(hash_seed(self.seed, epoch))
        attack_generator = cpu_generator(hash_seed(self.seed, epoch, "strikes"))
        attacked = fold(self.model, images[:2], dtype=torch.bfloat16) if self.bf16 else folded
        if len(self.states) == 1:
            set_training_mode(self.model, self.states[0].parameters)
        batches = math.ceil(len(labels) / self.config.batch_size)
        order = permutation(len(labels), generator, images.device)
        place = f"{self.label}: epoch {epoch + 1:>3}/{self.config.epochs}"
        loss_sum, step_sum, passes = torch.zeros((), device=images.device), 0, 0
        for i, index in enumerate(track(order.split(self.config.batch_size), batches, place, every=20)):
            done = (epoch * batches + i) / (self.config.epochs * batches)
            lr = self.config.lr * schedule(self.config.schedule, done)
            x, y = self._augmented(images[index], generator), labels[index]
            for k, state in enumerate(self.states):
                if len(self.states) > 1:
                    set_training_mode(self.model, state.parameters)
                sampled = state.step.attack.sample(attack_generator)
                where = (epoch, i, k)
                loss = self._update(state, sampled, attacked, x, y, lr, generator, where)
                loss_sum += loss * len(x)
                step_sum += sampled.steps
                passes += (sampled.passes + state.step.loss.passes) * len(x)
        mean_loss = float(loss_sum) / len(labels)
        if not math.isfinite(mean_loss):
            raise NotFiniteError(
                f"{self.label}: the loss is {mean_loss} in epoch {epoch + 1}; lower lr={self.config.lr}"
            )
        return mean_loss, step_sum / batches / len(self.states), passes

    def _augmented(self, images: Tensor, generator: torch.Generator) -> Tensor:
        x = augment(images, crop=self.augmentation.crop, flip=self.augmentation.flip, generator=generator)
        return x.to(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

    def _update(
        self,
        state: UpdateState,
        sampled: SampledAttack,
        attacked: Folded,
        x: Tensor,
        y: Tensor,
        lr: float,
        generator: torch.Generator,
        where: tuple[int, int, int],
    ) -> Tensor:
        """Attack a batch and take one optimiser step; returns the loss. ``where``: epoch, batch, update."""
        epoch, batch, k = where
        device = x.device
        try:
            if sampled.steps:
                attacked.refresh()  # the folded copy that is attacked gets the current weights
            with tensor_float32(self.tf32), torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                x_adv = sampled.perturb(attacked, x, y, generator)
                with seeded_global_generators(device, hash_seed(self.seed, epoch, "modules", batch, k)):
                    loss = state.step.loss(self.model, x, x_adv, y)
        except NotFiniteError as error:
            raise NotFiniteError(
                f"{self.label}: {error} (epoch {epoch + 1}, batch {batch + 1}, {sampled}); lower lr={self.config.lr}"
            ) from error
        with tensor_float32(self.tf32):
            state.descend(loss, lr)
        return loss.detach()


def schedule(name: str, progress: float) -> float:
    """The learning rate as a fraction of its peak, for ``progress`` in [0, 1) through the run.

    ``one-cycle`` rises linearly over the first 30 % and falls linearly to zero; ``cosine`` falls from the start.
    """
    if name == "one-cycle":
        return progress / 0.3 if progress < 0.3 else (1 - progress) / 0.7
    if name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0
