"""A recipe: the network of a system, its initial weights and its training."""

from __future__ import annotations

from dataclasses import dataclass

from paperlib.config.schema import TrainConfig
from paperlib.training.update import UpdateStep


@dataclass(frozen=True)
class Network:
    """The architecture of a system; sizes are multiples of the sizes in the profile."""

    kind: str = "single"  # "single", "mixture", "soe", "advmoe", or "own": a network from the user's extension
    # The backbone of the network or of each expert; or "small", a network of the shape of ADVMoE's router. For kind
    # "own": the key in the extension's NETWORKS.
    member: str = "resnet18"
    width: float = 1
    experts: int = 1
    gate: str = ""  # of a mixture: "learned", "uniform", or "resnet18", a network as large as an expert (MoRE)
    gate_width: float = 1
    mixing: str = ""  # of a mixture: "probabilities" or "logits"; as in the profile if empty
    top1: bool = False  # of a mixture: only the expert with the largest weight is used


@dataclass(frozen=True)
class Recipe:
    """The network, initial weights and training of a system. Without ``update_steps`` nothing is trained."""

    system: str
    description: str  # one line for tables and logs
    family: str  # its group in tables: "single", "expert", "member", "mixture", "defence" or "ablation"
    network: Network = Network()
    starts_from: tuple[str, ...] = ()  # one system per expert, whose weights initialise the expert
    weights_of: str = ""  # the system whose trained weights it uses unchanged
    update_steps: tuple[UpdateStep, ...] = ()
    training: TrainConfig | None = None
    select: str = "pgd"  # "clean" or "pgd": the validation accuracy by which the checkpoint is selected
    as_published: bool = False  # in the setting of its own paper instead of DWF's
    # Systems of one seed group share initial weights, batches and attacks, so that only their recipes differ; the name
    # of the system if empty.
    seed_group: str = ""
    code: str = ""  # the version of the extension that defines it; filled in by `recipes`

    @property
    def has_weights(self) -> bool:
        """Whether the stage ``train:SYSTEM`` holds its weights: trained there, or brought by the user's network."""
        return bool(self.update_steps) or self.network.kind == "own"

    @property
    def hard_routing(self) -> bool:
        """Whether one expert is picked by an argmax without gradient, so that further attacks are needed."""
        return self.network.kind in ("soe", "advmoe") or self.network.top1
