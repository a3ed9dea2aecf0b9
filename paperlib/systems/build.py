"""From a recipe to a network: the architecture in absolute sizes, the stages that hold the weights, the module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from paperlib.config.plugins import Extension
from paperlib.config.schema import ModelConfig, Profile
from paperlib.data import Dataset
from paperlib.errors import ProfileError
from paperlib.models import ADVMoE, Gate, Mixture, ResNet, SoE, UniformGate, backbone
from paperlib.systems.recipe import Recipe
from paperlib.systems.registry import recipes


@dataclass(frozen=True)
class Architecture:
    """All that determines the function of a network, except its weights and the data; sizes are absolute.

    Fields that a network does not use keep their defaults, so networks with equal fields are the same.
    """

    kind: str  # "single", "mixture", "soe", "advmoe" or "own"
    member: str = ""  # the backbone, or "small"; for kind "own" the key in the extension's NETWORKS
    experts: int = 1
    width: int = 0  # channels of a backbone's first stage
    small_width: int = 0  # channels of a "small" network or of ADVMoE's router
    gate: str = ""  # of a mixture: "learned", "uniform" or "resnet18"
    gate_width: int = 0  # channels of a learned gate
    blocks: int = 0  # residual blocks in each stage of small networks, routers and learned gates
    mixing: str = ""  # of a mixture: "probabilities" or "logits"
    top1: bool = False  # of a mixture: only the expert with the largest weight is used
    code: str = ""  # of a system from an extension: the version of the file that defines it


@dataclass(frozen=True)
class System:
    """A trained system, as the stages refer to it: an architecture, and the training stages that hold its weights."""

    name: str
    architecture: Architecture
    weights: tuple[str, ...]  # training stages
    per_expert: bool = False  # one stage for each expert, in order, instead of one for all of the network


@dataclass(frozen=True)
class DataFacts:
    """The facts about a data set that a network depends on."""

    classes: int
    shape: tuple[int, ...]  # (C, H, W) of one image
    mean: tuple[float, ...]  # of each channel
    std: tuple[float, ...]

    @classmethod
    def of(cls, data: Dataset) -> DataFacts:
        return cls(len(data.classes), data.shape, data.mean, data.std)


def architecture_of(recipe: Recipe, size: ModelConfig) -> Architecture:
    """The architecture of a recipe at the sizes of a profile."""
    network = recipe.network
    if network.kind == "own":
        return Architecture("own", network.member, code=recipe.code)
    fields: dict[str, object] = {"experts": network.experts, "code": recipe.code}
    if network.kind == "advmoe" or network.member != "small":
        fields["width"] = max(1, round(size.width * network.width))
    if network.kind == "advmoe" or network.member == "small":
        fields |= {"small_width": size.gate_width, "blocks": size.gate_blocks}
    if network.kind == "mixture":
        fields |= {"gate": network.gate, "mixing": network.mixing or size.mixing, "top1": network.top1}
        if network.gate == "learned":
            fields |= {"gate_width": round(size.gate_width * network.gate_width), "blocks": size.gate_blocks}
        elif network.gate == "resnet18":
            fields["width"] = max(1, round(size.width * network.width))
    member = "" if network.kind == "advmoe" else network.member  # always a ResNet-18
    return Architecture(network.kind, member, **fields)  # type: ignore[arg-type]


def system_of(recipe: Recipe, profile: Profile) -> System:
    """The system of a recipe, with the training stages that hold its weights."""
    architecture = architecture_of(recipe, profile.model)
    if recipe.weights_of:
        source = system_of(recipes(profile)[recipe.weights_of], profile)
        return System(recipe.system, architecture, source.weights, source.per_expert)
    if recipe.has_weights:
        return System(recipe.system, architecture, (f"train:{recipe.system}",))
    return System(recipe.system, architecture, tuple(f"train:{name}" for name in recipe.starts_from), per_expert=True)


def build_network(
    architecture: Architecture,
    facts: DataFacts,
    extension: Extension = Extension(),  # noqa: B008 - frozen
) -> nn.Module:
    """The untrained network; torch's global generator draws its weights.

    Args:
        extension: the user's file that defines networks of kind "own".

    Raises:
        ProfileError: the extension's function fails or returns no module, or the file has changed since the
            architecture was made.
    """
    a, mean, std = architecture, facts.mean, facts.std
    classes, side = facts.classes, facts.shape[-1]
    blocks = (a.blocks,) * 3

    def member(outputs: int) -> nn.Module:
        if a.member == "small":
            return ResNet(outputs, a.small_width, blocks, mean, std)
        return backbone(a.member, outputs, a.width, side, mean, std)

    if a.kind == "single":
        return member(classes)
    if a.kind == "own":
        return _extension_network(a, facts, extension)
    if a.kind == "soe":
        return SoE(member(classes + 1) for _ in range(a.experts))
    if a.kind == "advmoe":
        return ADVMoE(classes, a.experts, a.width, a.small_width, a.blocks, mean, std)
    gate: nn.Module = UniformGate(a.experts)
    if a.gate == "learned":
        gate = Gate(a.experts, a.gate_width, a.blocks, mean, std)
    elif a.gate == "resnet18":
        gate = backbone("resnet18", a.experts, a.width, side, mean, std)
    experts = [member(classes) for _ in range(a.experts)]
    return Mixture(experts, gate, a.mixing, top1=a.top1)


def _extension_network(architecture: Architecture, facts: DataFacts, extension: Extension) -> nn.Module:
    name = architecture.member
    if architecture.code != extension.digest:
        raise ProfileError(f"{extension.name}: has changed since this study was opened; open the study again")
    network = extension.call(extension.networks[name], facts.classes, facts.shape, facts.mean, facts.std)
    if not isinstance(network, nn.Module):
        raise ProfileError(f"{name}: expected a torch.nn.Module, got {network!r}")
    return network


def load_experts(model: nn.Module, trained: Sequence[Mapping[str, Tensor]]) -> None:
    """Load the weights of trained networks into the experts of a mixture or of SoE, in order; with none, do nothing.

    The sub-models of SoE have one output more, the confidence logit. Its weights start at zero, so that the logit is 0
    and its sigmoid is 0.5.
    """
    if not trained:
        return
    for expert, weights in zip(model.get_submodule("experts").children(), trained, strict=True):
        state = dict(weights)
        for name, initial in expert.state_dict().items():
            if state[name].shape != initial.shape:
                padding = initial.new_zeros(len(initial) - len(state[name]), *initial.shape[1:])
                state[name] = torch.cat([state[name].to(initial.device), padding])
        expert.load_state_dict(state)
