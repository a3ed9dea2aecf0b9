"""Objectives for attacks on a mixture of experts: its experts, its gate, both together, or a fixed gate.

A mixture is any module with a method ``forward_with_experts(x)`` that returns the fields of
`paperlib.models.MixtureOutput`: ``logits`` (N, classes), ``expert_logits`` (N, experts, classes), ``gate_weights`` and
``gate_logits`` (N, experts). A model that mixes logits instead of probabilities has an attribute ``mixing = "logits"``.
Each objective returns the logits of the model itself, and they decide whether an image is misclassified.

Sources: attacks on the experts (RA-E) and on the router (RA-R), Zhang et al. 2025 (arXiv 2502.06832) and J-TLGA (arXiv
2602.01369); breaking the parts of an ensemble together, He et al. 2017 (arXiv 1706.04701).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperlib.attacks.objectives import AttackObjective, LogitLoss, Objective, cross_entropy_loss, margin_loss
from paperlib.models.mixture import MixtureOutput, mixed
from paperlib.models.modes import eval_mode
from paperlib.shapes import Images, Labels, Logits, PerImage

LAMBDAS = (0.1, 1.0, 10.0)  # weights of the gate's term in a joint attack
TINY = torch.finfo(torch.float32).tiny  # replaces a gate weight of zero before the logarithm
TEMPERATURES = (1, 5)  # of the differentiable surrogate of hard routing
WORST = -1  # in place of an expert's index: the expert with the largest loss on the current iterate of the image


def is_mixture(model: nn.Module) -> bool:
    """Whether ``model`` is a mixture, so that the objectives of this file apply to it."""
    return callable(getattr(model, "forward_with_experts", None))


def on_experts(loss: LogitLoss) -> Objective:
    """The sum of the experts' losses, sum_i L(f_i(x), y), without the gate (RA-E)."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        output = _output_for(model, x)
        return output.logits, _expert_losses(output, y, loss).sum(dim=1)

    return objective


def on_expert(expert: int) -> Objective:
    """The cross-entropy of one expert, L(f_i(x), y): the loss of the mixture with a gate fixed at one-hot i."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        output = _output_for(model, x)
        return output.logits, cross_entropy_loss(output.expert_logits[:, expert], y)

    return objective


def gate_uniform(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
    """The cross-entropy of the mixture with equal gate weights."""
    output = _output_for(model, x)
    return output.logits, cross_entropy_loss(_mixed_with(model, output, torch.zeros_like(output.gate_logits)), y)


def gate_held(model: nn.Module, x: Images, targets: Tensor) -> tuple[Logits, PerImage]:
    """The cross-entropy of the mixture with the gate weights of the clean images.

    ``targets``: label and log gate weights of each image (N, 1 + experts).
    """
    output = _output_for(model, x)
    return output.logits, cross_entropy_loss(_mixed_with(model, output, targets[:, 1:]), targets[:, 0].long())


def softened_gate(temperature: float) -> Objective:
    """The cross-entropy with gate weights softmax(scores / T): a differentiable surrogate of hard routing (BPDA)."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        output = _output_for(model, x)
        return output.logits, cross_entropy_loss(_mixed_with(model, output, output.gate_logits / temperature), y)

    return objective


def gate_toward(expert: int) -> Objective:
    """log w_i(x): raises the gate's weight of one expert (RA-R), or of the expert with the largest loss (`WORST`)."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        output = _output_for(model, x)
        return output.logits, _log_weight(output, y, expert)

    return objective


def joint(weight: float, expert: int, loss: LogitLoss) -> Objective:
    """L(x, y) + lambda log w_i(x): the loss of the mixture, and the gate's weight of one expert."""

    def objective(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
        output = _output_for(model, x)
        return output.logits, loss(_differentiable_logits(model, output), y) + weight * _log_weight(output, y, expert)

    return objective


def mixture_objectives(model: nn.Module, x: Images, benign: int | None = None) -> dict[str, AttackObjective]:
    """The objectives of this file that apply to ``model``, by name; none if it is not a mixture.

    Args:
        x: images (N, C, H, W), of which two are used to find the number of experts and whether the gate has a gradient.
        benign: index of the expert trained on clean images only, if any; further objectives raise its gate weight.
    """
    if not is_mixture(model):
        return {}
    with eval_mode(model), torch.enable_grad():
        output = _output_for(model, x[:2].detach().clone().requires_grad_())
    experts, gate_has_gradient = output.gate_logits.shape[1], output.gate_logits.requires_grad
    objectives = {
        "experts": AttackObjective(on_experts(cross_entropy_loss)),
        "experts margin": AttackObjective(on_experts(margin_loss)),
    }
    objectives |= {f"expert {i}": AttackObjective(on_expert(i)) for i in range(experts)}
    objectives |= {"gate uniform": AttackObjective(gate_uniform)}
    if gate_has_gradient:
        objectives |= {"gate held": AttackObjective(gate_held, _label_and_log_weights)}
        gate_targets = {"worst": WORST} | ({} if benign is None else {"benign": benign})
        objectives |= {f"gate to {name}": AttackObjective(gate_toward(i)) for name, i in gate_targets.items()}
        objectives |= {
            f"two-stage {name}": AttackObjective(_differentiable_loss, warm_start=gate_toward(i))
            for name, i in gate_targets.items()
        }
        expert = WORST if benign is None else benign
        objectives |= {
            f"joint {weight:g}": AttackObjective(joint(weight, expert, cross_entropy_loss)) for weight in LAMBDAS
        }
        objectives |= {"joint 1 margin": AttackObjective(joint(1, expert, margin_loss))}
        if not output.gate_weights.requires_grad:
            objectives |= {
                f"soft {temperature}": AttackObjective(softened_gate(temperature)) for temperature in TEMPERATURES
            }
    return objectives


def _expert_losses(output: MixtureOutput, y: Tensor, loss: LogitLoss) -> Tensor:
    """The loss of each expert (N, experts)."""
    n, experts, classes = output.expert_logits.shape
    flat = output.expert_logits.reshape(n * experts, classes)
    return loss(flat, y.repeat_interleave(experts)).view(n, experts)


def _differentiable_loss(model: nn.Module, x: Images, y: Labels) -> tuple[Logits, PerImage]:
    output = _output_for(model, x)
    return output.logits, cross_entropy_loss(_differentiable_logits(model, output), y)


def _differentiable_logits(model: nn.Module, output: MixtureOutput) -> Tensor:
    """The logits, or those of the differentiable surrogate if the gate routes hard and its weights have no gradient."""
    return output.logits if output.gate_weights.requires_grad else _mixed_with(model, output, output.gate_logits)


def _log_weight(output: MixtureOutput, y: Tensor, expert: int) -> Tensor:
    """log w_i(x) (N,) of one expert or of the expert with the largest loss."""
    log_weights = torch.log_softmax(output.gate_logits, dim=1)
    if expert != WORST:
        return log_weights[:, expert]
    losses = _expert_losses(output, y, cross_entropy_loss).detach()
    return log_weights.gather(1, losses.argmax(dim=1, keepdim=True)).squeeze(1)


def _mixed_with(model: nn.Module, output: MixtureOutput, gate_logits: Tensor) -> Tensor:
    return mixed(model, output.expert_logits, torch.log_softmax(gate_logits, dim=1))


def _label_and_log_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        # With hard routing these are the weights 0 and 1, so the routing of the clean images is fixed.
        return torch.cat([y.unsqueeze(1).float(), _output_for(model, x).gate_weights.clamp_min(TINY).log()], dim=1)


def _output_for(model: nn.Module, x: Tensor) -> MixtureOutput:
    output: MixtureOutput = model.forward_with_experts(x.clone())  # type: ignore[operator]
    return output
