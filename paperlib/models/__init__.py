"""The networks of the series: experts, gate, mixture. All take [0, 1] pixels and return logits."""

from paperlib.models.folding import Folded, fold
from paperlib.models.mixture import Evidence, Experts, Gate, Mixture, UniformGate
from paperlib.models.resnet import Normalize, ResNet, parameters, resnet18

__all__ = [
    "Evidence",
    "Experts",
    "Folded",
    "Gate",
    "Mixture",
    "Normalize",
    "ResNet",
    "UniformGate",
    "fold",
    "parameters",
    "resnet18",
]
