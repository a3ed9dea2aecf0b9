"""A recipe: what a system is built of, what it starts from, and what it learns from."""

from __future__ import annotations

from dataclasses import dataclass

from paperlib.config.schema import TrainConfig
from paperlib.training.update import UpdateStep


@dataclass(frozen=True)
class Network:
    """What a system is built of; sizes are multiples of the profile's."""

    kind: str = "single"  # "single", "mixture", "soe" or "advmoe"; "own" is built by a function of the extension
    member: str = "resnet18"  # a backbone, or "small", the shape of SoE's sub-models and ADVMoE's router; of "own", its
    # name among the extension's NETWORKS
    width: float = 1
    experts: int = 1
    gate: str = ""  # of a mixture: "learned", "uniform" or "resnet18", a full network of its own as in MoRE
    gate_width: float = 1
    mixing: str = ""  # of a mixture; the profile's if empty
    top1: bool = False  # of a mixture: the expert with the largest weight answers alone


@dataclass(frozen=True)
class Recipe:
    """How a system comes to be. Without ``update_steps`` nothing is learned."""

    system: str
    description: str  # one line for tables and logs
    family: str  # where tables list it: "single", "expert", "member", "mixture", "defence" or "ablation"
    network: Network = Network()
    starts_from: tuple[str, ...] = ()  # systems whose weights its experts begin with
    weights_of: str = ""  # the system all of whose weights it has
    update_steps: tuple[UpdateStep, ...] = ()
    training: TrainConfig | None = None
    select: str = "pgd"  # validation accuracy that picks the checkpoint
    as_published: bool = False  # in the setting of its own paper and not in DWF's
    # The system whose initial weights, batches and attacks it shares, so that only the recipes differ; itself if empty.
    seed_group: str = ""
    code: str = ""  # which version of the extension it stems from; filled in, no need to give it

    @property
    def has_weights(self) -> bool:
        """Whether it has weights of its own, kept under ``train:SYSTEM``: learned, or as the user's network came."""
        return bool(self.update_steps) or self.network.kind == "own"

    @property
    def hard_routing(self) -> bool:
        """Whether an expert is picked by an argmax that no gradient passes, so that it needs further attacks."""
        return self.network.kind in ("soe", "advmoe") or self.network.top1
