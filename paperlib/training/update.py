"""One update of a network on one batch: the attack, the loss, the part that learns, and its optimiser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from paperlib.config.schema import TrainConfig
from paperlib.errors import InputError
from paperlib.training.adversaries import AttackDistribution
from paperlib.training.losses import CrossEntropyLoss, TrainingLoss

# The parts of a network that an update may train, by name.
TRAINABLE: dict[str, Callable[[nn.Module], Iterator[nn.Parameter]]] = {
    "all": lambda model: model.parameters(),
    "gate": lambda model: model.get_submodule("gate").parameters(),
    # MoRE: the last layers of the experts, and the gate
    "heads": lambda model: (p for name, p in model.named_parameters() if name.startswith("gate.") or ".head." in name),
    # ADVMoE: everything but the router, and the router
    "pathways": lambda model: model.get_submodule("network").parameters(),
    "router": lambda model: model.get_submodule("router").parameters(),
}


@dataclass(frozen=True)
class UpdateStep:
    """One update on each batch: the attack on the batch, the loss, and the part of the network that learns."""

    attack: AttackDistribution
    loss: TrainingLoss = field(default_factory=CrossEntropyLoss)
    trainable: str = "all"  # a key of TRAINABLE


@dataclass
class UpdateState:
    """An update step during training: the parameters it trains, and its optimiser."""

    step: UpdateStep
    parameters: list[nn.Parameter]
    optimiser: torch.optim.Optimizer

    @classmethod
    def of(cls, step: UpdateStep, model: nn.Module, config: TrainConfig) -> UpdateState:
        """Raises InputError if none of the parameters requires gradients."""
        parameters = [p for p in TRAINABLE[step.trainable](model) if p.requires_grad]
        if not parameters:
            raise InputError(f"trainable={step.trainable!r}: no parameter there requires gradients, so nothing learns")
        optimiser = torch.optim.SGD(
            parameters,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.momentum > 0,
            weight_decay=config.weight_decay,
        )
        return cls(step, parameters, optimiser)

    def descend(self, loss: Tensor, lr: float) -> None:
        """One step of the optimiser on ``loss`` with learning rate ``lr``."""
        for group in self.optimiser.param_groups:
            group["lr"] = lr
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward(inputs=self.parameters)  # frozen networks get no gradients, and none are computed for them
        self.optimiser.step()


def set_training_mode(model: nn.Module, trained: list[nn.Parameter]) -> None:
    """Put the modules that learn when ``trained`` are updated into training mode, all others into evaluation mode.

    A frozen part keeps its running statistics and has no dropout. A module learns if all its parameters that require
    gradients, those of its submodules included, are among ``trained``, or if some of its own are. A module without
    parameters (dropout, batch norm with ``affine=False``) learns if the module that contains it does.
    """
    trained_ids = {id(p) for p in trained}
    model.eval()

    def visit(module: nn.Module, parent_learns: bool) -> None:
        parameters = list(module.parameters())
        trainable = [id(p) in trained_ids for p in parameters if p.requires_grad]
        learns = bool(trainable) and all(trainable) if parameters else parent_learns
        some_of_its_own = any(id(p) in trained_ids for p in module.parameters(recurse=False))
        module.training |= learns or some_of_its_own  # a module with two parents learns if either does
        for child in module.children():
            visit(child, learns)

    visit(model, False)


@contextmanager
def seeded_global_generators(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and restore them afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
