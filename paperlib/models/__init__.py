"""The networks of the series: experts, gate, mixture. All take [0, 1] pixels and return logits."""

from paperlib.models.mixture import Evidence, Gate, Mixture, UniformGate
from paperlib.models.resnet import Normalize, ResNet, parameters, resnet18

__all__ = ["Evidence", "Gate", "Mixture", "Normalize", "ResNet", "UniformGate", "parameters", "resnet18"]
