"""One adversarial trainer for every recipe: draw a strike, perturb the batch, learn, validate, keep the best."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import check_weights
from paperlib.atomic_files import read_tensors, write_tensors
from paperlib.attacks import attack
from paperlib.config.schema import DataConfig, TrainConfig
from paperlib.data import Dataset, Split, augment
from paperlib.errors import InputError, NotFiniteError, StoreError
from paperlib.progress import Say, say, track
from paperlib.seeds import cpu_generator, hash_seed, permutation
from paperlib.training.losses import CrossEntropy, Loss
from paperlib.training.threats import Threat

# An FGSM-trained network that beats FGSM but not PGD has collapsed: it masks its gradient (catastrophic overfitting).
COLLAPSE_GAP = 0.20
VALIDATION_BATCH = 250  # images attacked at once; nine full-width networks need some 50 MB for each


# What a turn may teach: parts of a network by name.
TRAINABLE: dict[str, Callable[[nn.Module], Iterator[nn.Parameter]]] = {
    "all": lambda model: model.parameters(),
    "gate": lambda model: model.get_submodule("gate").parameters(),
    # MoRE: the experts' last layers and the gate
    "heads": lambda model: (p for name, p in model.named_parameters() if name.startswith("gate.") or ".head." in name),
    # ADVMoE: everything but the router, and the router
    "pathways": lambda model: model.get_submodule("network").parameters(),
    "router": lambda model: model.get_submodule("router").parameters(),
}


@dataclass(frozen=True)
class Turn:
    """One update of a batch: the attack it gets, what is learned from it, and which part of the network learns."""

    threat: Threat
    loss: Loss = field(default_factory=CrossEntropy)
    trainable: str = "all"  # a key of TRAINABLE


@dataclass(frozen=True)
class Augmentation:
    """Padding of the random crop in pixels, 0 for none; and whether images are mirrored at random."""

    crop: int
    flip: bool


@dataclass(frozen=True)
class Validation:
    """The attack on the validation split that picks the checkpoint; budgets in pixels of [0, 1]."""

    eps: float
    step_size: float
    steps: int
    select: str  # "clean" or "pgd": the accuracy that picks the checkpoint


@dataclass
class Epoch:
    """What is known after one epoch; accuracies are fractions of the validation split."""

    epoch: int
    loss: float
    steps: float  # mean attack iterations per batch
    clean: float
    fgsm: float
    pgd: float
    collapsed: bool  # trained on single steps, and FGSM accuracy exceeds PGD accuracy by more than COLLAPSE_GAP
    seconds: float


@dataclass
class History:
    """The course of one training run."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1  # epoch whose weights were kept
    passes: int = 0  # passes of images through the model: attack iterations plus updates

    def table(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"epochs": [vars(e) for e in self.epochs], "best": self.best, "passes": self.passes}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> History:
        return cls([Epoch(**e) for e in table["epochs"]], table["best"], table["passes"])


def train(
    model: nn.Module,
    data: Dataset,
    *,
    config: TrainConfig,
    augmentation: Augmentation | DataConfig,
    turns: Sequence[Turn],
    validation: Validation,
    seed: int,
    bf16: bool = False,
    tf32: bool = False,
    channels_last: bool = False,
    checkpoint: Path | None = None,
    label: str = "training",
    say: Say = say,
) -> History:
    """Train ``model`` in place and leave it, in evaluation mode, at the epoch that did best on the validation split.

    For each batch, each turn draws a strike from its threat, crafts it against the model itself in evaluation mode, and
    lowers its loss on the result in training mode. Nearly every recipe has one turn; ADVMoE alternates two. The test
    split is never looked at.

    Evaluation mode during the attack is a choice of ours, the paper does not say: batch norm uses its running
    statistics and dropout is off, so training attacks the network that is evaluated later, not one that changes with
    the batch. The update that follows is in training mode: batch norm uses the statistics of the attacked batch and
    dropout acts.

    Args:
        config: epochs, batch size, optimiser and schedule.
        augmentation: random crop and mirroring; of a profile's data section only these two are used.
        turns: the updates of each batch, each with an optimiser of its own; parts that a turn does not train stay in
            evaluation mode during its update, and so do parts whose parameters do not require gradients.
        seed: decides the order of the images, the attacks, and what modules such as dropout draw from torch's global
            generators, which are left as they were.
        checkpoint: file the state is kept in after each epoch. A run that finds it goes on from there, and ends with
            the same weights, bit for bit on the CPU, as one that was never interrupted.

    Raises:
        NotFiniteError: the loss or the network's answer became NaN or infinite; the epoch is named.
        InputError: a turn trains no parameter that requires gradients.
    """
    device = next(model.parameters()).device
    memory = torch.channels_last if channels_last else torch.contiguous_format
    model.to(memory_format=memory)
    players = [_Player.of(turn, model, config) for turn in turns]
    history, best = _resume(checkpoint, model, players)
    if history.epochs:
        say(f"{label}: going on after epoch {history.epochs[-1].epoch + 1} of {config.epochs}")
    batches = math.ceil(len(data.train) / config.batch_size)
    total = config.epochs * batches
    # A network taught single steps only may collapse; those taught longer attacks show a gap too, with nothing hidden.
    single_steps = all(0 < turn.threat.mean_steps() <= 1 for turn in turns)
    for epoch in range(len(history.epochs), config.epochs):
        # All of an epoch's randomness follows from (seed, epoch), so an interrupted run needs no generator state.
        generator = cpu_generator(hash_seed(seed, epoch))
        strikes = cpu_generator(hash_seed(seed, epoch, "strikes"))
        started, loss_sum, step_sum = time.monotonic(), torch.zeros((), device=device), 0
        # What is attacked: a folded copy, brought up to date before each attack. Made anew in each epoch, because its
        # check tells little on a fresh network, whose batch norm does nothing yet.
        exact = fold(model, data.train.images[:2])
        attacked = fold(model, data.train.images[:2], dtype=torch.bfloat16) if bf16 else exact
        if len(players) == 1:
            _training_mode(model, players[0].chosen)
        order = permutation(len(data.train), generator, device)
        place = f"{label}: epoch {epoch + 1:>3}/{config.epochs}"
        for i, index in enumerate(track(order.split(config.batch_size), batches, place, say, every=20)):
            rate = config.lr * schedule(config.schedule, (epoch * batches + i) / total)
            clean, y = data.train.images[index], data.train.labels[index]
            clean = augment(clean, crop=augmentation.crop, flip=augmentation.flip, generator=generator)
            clean = clean.to(memory_format=memory)
            for k, player in enumerate(players):
                turn, strike = player.turn, player.turn.threat.draw(strikes)
                if len(players) > 1:
                    _training_mode(model, player.chosen)
                try:
                    if strike.steps:
                        attacked.refresh()
                    with tensor_float32(tf32), torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                        x = strike.perturb(attacked, clean, y, generator)
                        with _global_generators(device, hash_seed(seed, epoch, "modules", i, k)):
                            loss = turn.loss(model, clean, x, y)
                except NotFiniteError as error:
                    place = f"epoch {epoch + 1}, batch {i + 1}, {strike}"
                    raise NotFiniteError(f"{label}: {error} ({place}); lower lr={config.lr}") from error
                with tensor_float32(tf32):
                    player.learn(loss, rate)
                loss_sum += loss.detach() * len(x)
                step_sum += strike.steps
                history.passes += (strike.passes + turn.loss.passes) * len(x)
        mean_loss = float(loss_sum) / len(data.train)
        if not math.isfinite(mean_loss):
            raise NotFiniteError(f"{label}: the loss is {mean_loss} in epoch {epoch + 1}; lower lr={config.lr}")
        check_weights(model, label)
        exact.refresh()
        with tensor_float32(False):
            judged = validate(exact, data.validation, validation, seed=hash_seed(seed, epoch, "validation"))
        accuracies, gap = judged[:3], judged[3]
        seconds, steps = time.monotonic() - started, step_sum / batches / len(players)
        history.epochs.append(Epoch(epoch, mean_loss, steps, *accuracies, gap and single_steps, seconds))
        scores = [getattr(e, validation.select) for e in history.epochs]
        # On a tie the later epoch: it has learned longer, and a small validation split ties often.
        if scores[-1] >= max(scores):
            history.best = epoch
            best = {name: value.detach().clone() for name, value in model.state_dict().items()}
        _save(checkpoint, model, players, best, history)
        say(f"{label}: {_line(history.epochs[-1], config.epochs)}")
    model.load_state_dict(best)
    model.eval()
    return history


def validate(
    model: nn.Module | Folded, split: Split, how: Validation, *, seed: int
) -> tuple[float, float, float, bool]:
    """Clean, FGSM and PGD accuracy on a split, and whether the last two lie so far apart as after an FGSM collapse."""
    generator = cpu_generator(seed)
    x, y = split.images, split.labels
    one = attack(model, x, y, eps=how.eps, step_size=how.eps, steps=1, random_start=False, batch_size=VALIDATION_BATCH)
    many = attack(
        model,
        x,
        y,
        eps=how.eps,
        step_size=how.step_size,
        steps=how.steps,
        generator=generator,
        batch_size=VALIDATION_BATCH,
    )
    lost = torch.stack([(one.first_success == 0).sum(), one.fooled.sum(), many.fooled.sum()])
    clean, fgsm, pgd = (1 - count / len(split) for count in lost.tolist())
    return clean, fgsm, pgd, fgsm - pgd > COLLAPSE_GAP


def schedule(name: str, progress: float) -> float:
    """The learning rate as a fraction of its peak, for ``progress`` in [0, 1) through the run.

    ``one-cycle`` rises linearly over the first 30 % and falls linearly to zero; ``cosine`` falls from the start.
    """
    if name == "one-cycle":
        return progress / 0.3 if progress < 0.3 else (1 - progress) / 0.7
    if name == "cosine":
        return (1 + math.cos(math.pi * progress)) / 2
    return 1.0


@contextmanager
def _global_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Dropout and its like draw from torch's global generators: seed these for a while, then put them back."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@dataclass
class _Player:
    """A turn at work."""

    turn: Turn
    chosen: list[nn.Parameter]
    optimiser: torch.optim.Optimizer

    @classmethod
    def of(cls, turn: Turn, model: nn.Module, config: TrainConfig) -> _Player:
        chosen = [p for p in TRAINABLE[turn.trainable](model) if p.requires_grad]
        if not chosen:
            raise InputError(f"trainable={turn.trainable!r}: no parameter there requires gradients, so nothing learns")
        optimiser = torch.optim.SGD(
            chosen,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        return cls(turn, chosen, optimiser)

    def learn(self, loss: Tensor, rate: float) -> None:
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=self.chosen)  # frozen networks get no gradients, and none are computed for them
        self.optimiser.step()


def _training_mode(model: nn.Module, chosen: list[nn.Parameter]) -> None:
    """Training mode for what learns when ``chosen`` are updated, evaluation mode for everything else.

    A frozen part keeps its running statistics and has no dropout. A module learns if all its parameters that require
    gradients, those of its submodules included, are among ``chosen``, or some of its own are; a module without
    parameters (dropout, batch norm with ``affine=False``) learns if the module that contains it does.
    """
    chosen_ids = {id(p) for p in chosen}
    model.eval()

    def visit(module: nn.Module, parent_learns: bool) -> None:
        parameters = list(module.parameters())
        trainable = [id(p) in chosen_ids for p in parameters if p.requires_grad]
        learns = bool(trainable) and all(trainable) if parameters else parent_learns
        own = any(id(p) in chosen_ids for p in module.parameters(recurse=False))
        module.training |= learns or own  # a module that two others share learns if either does
        for child in module.children():
            visit(child, learns)

    visit(model, False)


def _line(e: Epoch, epochs: int) -> str:
    warning = f"  FGSM hides {e.fgsm - e.pgd:.0%}: collapse?" if e.collapsed else ""
    return (
        f"epoch {e.epoch + 1:>3}/{epochs}  loss {e.loss:.3f}  validation clean {e.clean:.1%} "
        f"fgsm {e.fgsm:.1%} pgd {e.pgd:.1%}  {e.seconds:.1f} s{warning}"
    )


def _save(
    path: Path | None, model: nn.Module, players: Sequence[_Player], best: dict[str, Tensor], history: History
) -> None:
    if path is None:
        return
    tensors = {f"model/{name}": value for name, value in model.state_dict().items()}
    tensors |= {f"best/{name}": value for name, value in best.items()}
    for name, state in _momentum(players).items():
        if (buffer := state.get("momentum_buffer")) is not None:
            tensors[name] = buffer
    write_tensors(path, tensors, {"history": json.dumps(history.table())})


def _momentum(players: Sequence[_Player]) -> dict[str, dict[str, Tensor]]:
    """The optimisers' states by the name they have in a checkpoint."""
    states = [player.optimiser.state[parameter] for player in players for parameter in player.chosen]
    return {f"momentum/{i}": state for i, state in enumerate(states)}


def _resume(path: Path | None, model: nn.Module, players: Sequence[_Player]) -> tuple[History, dict[str, Tensor]]:
    if path is None or not path.exists():
        return History(), {}
    try:
        tensors, notes = read_tensors(path)
        history = History.from_table(json.loads(notes["history"]))
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "momentum": {}}
        for name, value in tensors.items():
            group, _, rest = name.partition("/")
            groups[group][rest] = value
        model.load_state_dict(groups["best"])  # would only be missed at the very end
        model.load_state_dict(groups["model"])
    except (StoreError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise StoreError(f"checkpoint {path.name}: cannot go on from it ({reason}); delete it to start over") from error
    device = next(model.parameters()).device
    for name, state in _momentum(players).items():
        if name in tensors:
            state["momentum_buffer"] = tensors[name].to(device)
    return history, {name: value.to(device) for name, value in groups["best"].items()}
