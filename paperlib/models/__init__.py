"""The networks: experts, gate, mixture, other defences. All take pixels in [0, 1] and return logits."""

from paperlib.models.advmoe import ADVMoE
from paperlib.models.backbones import Backbone, backbone
from paperlib.models.complexity import operations, parameters
from paperlib.models.mixture import Experts, Gate, Mixture, MixtureOutput, UniformGate
from paperlib.models.resnet import Normalize, ResNet, resnet18
from paperlib.models.soe import SoE

__all__ = [
    "ADVMoE",
    "Backbone",
    "Experts",
    "Gate",
    "Mixture",
    "MixtureOutput",
    "Normalize",
    "ResNet",
    "SoE",
    "UniformGate",
    "backbone",
    "operations",
    "parameters",
    "resnet18",
]
