"""Attacks made for a mixture of experts: on its experts, on its gate, on both, and past the gate.

A mixture is any module with a method ``forward_with_experts(x)`` that returns the fields of
`paperlib.models.MixtureOutput`: ``logits`` (N, classes), ``expert_logits`` (N, experts, classes), ``gate_weights`` and
``gate_logits`` (N, experts). A model that mixes logits instead of probabilities has an attribute ``mixing = "logits"``.
Whether an image is misclassified is always decided by the logits of the model itself.

Sources: attacks on the experts (RA-E) and on the router (RA-R), Zhang et al. 2025 (arXiv 2502.06832) and J-TLGA (arXiv
2602.01369); breaking the parts of an ensemble together, He et al. 2017 (arXiv 1706.04701).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paperlib.attacks.objectives import AttackObjective, LogitLoss, Objective, cross_entropy_loss, margin_loss
from paperlib.models.mixture import MixtureOutput, mixed
from paperlib.models.modes import eval_mode

LAMBDAS = (0.1, 1.0, 10.0)  # what a gate weighs beside the loss, in a joint attack
TINY = torch.finfo(torch.float32).tiny  # in place of a weight of zero
TEMPERATURES = (1, 5)  # of the soft stand-in of a gate that picks
WORST = -1  # in place of an expert: the one that is most wrong about the image as it is now


def is_mixture(model: nn.Module) -> bool:
    """Whether the attacks of this file can see inside ``model``."""
    return callable(getattr(model, "forward_with_experts", None))


def on_experts(loss: LogitLoss) -> Objective:
    """The sum of the experts' losses, sum_i L(f_i(x), y), whatever the gate makes of them (RA-E)."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = _seen(model, x)
        return seen.logits, _each(seen, y, loss).sum(dim=1)

    return objective


def on_expert(expert: int) -> Objective:
    """The loss of one expert alone, L(f_i(x), y): also what is left when the gate is held at one-hot i."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = _seen(model, x)
        return seen.logits, cross_entropy_loss(seen.expert_logits[:, expert], y)

    return objective


def gate_uniform(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the experts' plain average: no gradient of the gate."""
    seen = _seen(model, x)
    return seen.logits, cross_entropy_loss(_mixed(model, seen, torch.zeros_like(seen.gate_logits)), y)


def gate_held(model: nn.Module, x: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of the mixture with the gate's weights of the clean image; ``targets``: label and log weights."""
    seen = _seen(model, x)
    return seen.logits, cross_entropy_loss(_mixed(model, seen, targets[:, 1:]), targets[:, 0].long())


def softened(temperature: float) -> Objective:
    """The loss of all experts weighed by softmax(scores / T): reaches through a choice that has no gradient (BPDA)."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = _seen(model, x)
        return seen.logits, cross_entropy_loss(_mixed(model, seen, seen.gate_logits / temperature), y)

    return objective


def toward(expert: int) -> Objective:
    """log w_i(x): makes the gate listen to one expert (RA-R); `WORST` is the one most wrong at the moment."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = _seen(model, x)
        return seen.logits, _heard(seen, y, expert)

    return objective


def joint(weight: float, expert: int, loss: LogitLoss) -> Objective:
    """L(x, y) + lambda log w_i(x): fools the mixture and steers its gate at once."""

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        seen = _seen(model, x)
        return seen.logits, loss(_reachable(model, seen), y) + weight * _heard(seen, y, expert)

    return objective


def mixture_objectives(model: nn.Module, x: Tensor, benign: int | None = None) -> dict[str, AttackObjective]:
    """Every aim of this file that applies to ``model``, by name; none for a model that is no mixture.

    Args:
        x: a few images (N, C, H, W), to see how many experts there are and whether the gate has a gradient.
        benign: which expert was trained on clean images alone; the gate is pushed towards it as well.
    """
    if not is_mixture(model):
        return {}
    with eval_mode(model), torch.enable_grad():
        seen = _seen(model, x[:2].detach().clone().requires_grad_())
    experts, steerable = seen.gate_logits.shape[1], seen.gate_logits.requires_grad
    objectives = {
        "experts": AttackObjective(on_experts(cross_entropy_loss)),
        "experts margin": AttackObjective(on_experts(margin_loss)),
    }
    objectives |= {f"expert {i}": AttackObjective(on_expert(i)) for i in range(experts)}
    objectives |= {"gate uniform": AttackObjective(gate_uniform)}
    if steerable:
        objectives |= {"gate held": AttackObjective(gate_held, _label_and_log_weights)}
        favoured = {"worst": WORST} | ({} if benign is None else {"benign": benign})
        objectives |= {f"gate to {name}": AttackObjective(toward(i)) for name, i in favoured.items()}
        objectives |= {
            f"two-stage {name}": AttackObjective(_whole, warm_start=toward(i)) for name, i in favoured.items()
        }
        pushed = WORST if benign is None else benign
        objectives |= {
            f"joint {weight:g}": AttackObjective(joint(weight, pushed, cross_entropy_loss)) for weight in LAMBDAS
        }
        objectives |= {"joint 1 margin": AttackObjective(joint(1, pushed, margin_loss))}
        if not seen.gate_weights.requires_grad:
            objectives |= {
                f"soft {temperature}": AttackObjective(softened(temperature)) for temperature in TEMPERATURES
            }
    return objectives


def _each(seen: MixtureOutput, y: Tensor, loss: LogitLoss) -> Tensor:
    """Every expert's loss (N, experts)."""
    n, experts, classes = seen.expert_logits.shape
    flat = seen.expert_logits.reshape(n * experts, classes)
    return loss(flat, y.repeat_interleave(experts)).view(n, experts)


def _whole(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    seen = _seen(model, x)
    return seen.logits, cross_entropy_loss(_reachable(model, seen), y)


def _reachable(model: nn.Module, seen: MixtureOutput) -> Tensor:
    """The answer, or its soft stand-in where the gate picks and has no gradient."""
    return seen.logits if seen.gate_weights.requires_grad else _mixed(model, seen, seen.gate_logits)


def _heard(seen: MixtureOutput, y: Tensor, expert: int) -> Tensor:
    log_weights = torch.log_softmax(seen.gate_logits, dim=1)
    if expert != WORST:
        return log_weights[:, expert]
    wrong = _each(seen, y, cross_entropy_loss).detach()
    return log_weights.gather(1, wrong.argmax(dim=1, keepdim=True)).squeeze(1)


def _mixed(model: nn.Module, seen: MixtureOutput, gate_logits: Tensor) -> Tensor:
    return mixed(model, seen.expert_logits, torch.log_softmax(gate_logits, dim=1))


def _label_and_log_weights(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        # Of a gate that picks, the choice itself is held.
        return torch.cat([y.unsqueeze(1).float(), _seen(model, x).gate_weights.clamp_min(TINY).log()], dim=1)


def _seen(model: nn.Module, x: Tensor) -> MixtureOutput:
    found: MixtureOutput = model.forward_with_experts(x.clone())  # type: ignore[operator]
    return found
