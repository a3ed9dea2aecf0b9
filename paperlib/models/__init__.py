"""The networks of the series: experts, gate, mixture, other defences. All take [0, 1] pixels and return logits."""

from paperlib.models.advmoe import ADVMoE
from paperlib.models.folding import Folded, fold
from paperlib.models.mixture import Evidence, Experts, Gate, Mixture, UniformGate
from paperlib.models.plain import Backbone, backbone
from paperlib.models.resnet import Normalize, ResNet, operations, parameters, resnet18
from paperlib.models.soe import SoE

__all__ = [
    "ADVMoE",
    "Backbone",
    "Evidence",
    "Experts",
    "Folded",
    "Gate",
    "Mixture",
    "Normalize",
    "ResNet",
    "SoE",
    "UniformGate",
    "backbone",
    "fold",
    "operations",
    "parameters",
    "resnet18",
]
