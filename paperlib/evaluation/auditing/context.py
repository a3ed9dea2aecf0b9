"""A model under audit: what the checks may ask about it, each attack run once and remembered."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.acceleration import Folded, fold
from paperlib.acceleration.memory import in_batches
from paperlib.arguments import logits_of
from paperlib.attacks import (
    OBJECTIVES,
    Attacked,
    AttackObjective,
    attack,
    cross_entropy,
    is_mixture,
    losses_for,
    mixture_objectives,
    pgd,
    transfer_objective,
)
from paperlib.attacks.autoattack import ITERATIONS, QUERIES
from paperlib.attacks.logits import logits_in_batches
from paperlib.attacks.objectives import LogitLoss
from paperlib.config.budgets import budget_text
from paperlib.data import Split
from paperlib.evaluation.robustness import evaluate
from paperlib.evaluation.specs import CLEAN, AttackSpec, autoattack_spec, pgd_spec
from paperlib.evaluation.statistics import wilson
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator

CURVE = tuple(Fraction(k, 255) for k in (2, 4, 8, 16, 32, 64, 128))  # budgets of the accuracy curve
TAIL = 10  # last iterations over which an attack's loss should have settled


@dataclass(frozen=True)
class AuditBudget:
    """How hard an audit tries. What is less than the default is less than the checklist asks for."""

    steps: int = 50  # of PGD, each a quarter of eps
    restarts: int = 5  # of the longer PGD that asks whether the first one had converged
    draws: int = 1000  # of random noise, per image
    iterations: int = ITERATIONS  # of AutoAttack's gradient attacks
    queries: int = QUERIES  # of Square, within AutoAttack or alone
    autoattack: bool = True


@dataclass
class AuditContext:
    """The model, the images it is judged on, what is claimed of it, and every outcome known so far."""

    model: nn.Module
    split: Split
    eps: Fraction
    audit_budget: AuditBudget = AuditBudget()
    claimed: float | None = None  # accuracy under attack, as a fraction; that under PGD if None
    adversarial: Tensor | None = None  # the images (N, C, H, W) behind the claim
    transfer_from: Mapping[str, nn.Module] = field(default_factory=dict)
    selected_on: Tensor | None = None  # images (M, C, H, W) that chose the checkpoint
    benign: int | None = None  # which expert of a mixture was trained on clean images alone
    outcomes: dict[str, Tensor] = field(default_factory=dict)  # outcomes (N,) bool by the name of the attack
    won_by: Tensor | None = None  # with a known AutoAttack: which of its attacks won (N,), as `fooled_by`
    seed: int = 0
    batch_size: int = 250
    label: str = "audit"

    @property
    def x(self) -> Tensor:
        return self.split.images

    @property
    def y(self) -> Tensor:
        return self.split.labels

    @property
    def n(self) -> int:
        return len(self.split)

    @functools.cached_property
    def folded(self) -> Folded:
        return fold(self.model, self.x)

    @functools.cached_property
    def objectives(self) -> dict[str, AttackObjective]:
        """What gradient attacks may climb on this model, by name: losses, its experts and gate, other networks."""
        found = {name: OBJECTIVES[name] for name in ("cross-entropy", *losses_for(self.classes))}
        if self.mixture:
            found |= mixture_objectives(self.model, self.x, self.benign)
        others = {f"transfer {name}": fold(other, self.x).network for name, other in self.transfer_from.items()}
        return found | {name: AttackObjective(transfer_objective(network)) for name, network in others.items()}

    @functools.cached_property
    def classes(self) -> int:
        return int(self.logits().shape[1])

    @functools.cached_property
    def pgd(self) -> AttackSpec:
        """The attack of the claim, unless another was named: PGD on cross-entropy."""
        return pgd_spec(self.eps, self.audit_budget.steps, self.eps / 4)

    @functools.cached_property
    def autoattack(self) -> AttackSpec:
        return autoattack_spec(self.eps, self.audit_budget.iterations, self.audit_budget.queries)

    # -- answers ---------------------------------------------------------------------------------------------------

    def over(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """A function of batches of images, and of what belongs to each, over all of them; fewer where memory ends.

        The function is handed copies: a model may edit its input in place.
        """

        def of(rows: slice) -> Tensor:
            return function(*(tensor[rows].clone() for tensor in tensors))

        return torch.cat([found for _, found in in_batches(len(tensors[0]), self.batch_size, self.asked, of)])

    @functools.cached_property
    def asked(self) -> Folded:
        """The model itself, with how many images of it fit in memory."""
        return Folded(self.model, self.model)

    def logits(self, x: Tensor | None = None) -> Tensor:
        """The model's answer, asked as it stands: in whatever mode its parts are."""
        x = self.x if x is None else x
        return torch.cat([found for _, found in logits_in_batches(self.model, x, self.batch_size, self.asked)])

    def gradient(self, x: Tensor, loss: LogitLoss) -> Tensor:
        """The input gradient of a loss of the answer (N, C, H, W)."""

        def of(part: Tensor, labels: Tensor) -> Tensor:
            part = part.detach().requires_grad_()
            value = loss(logits_of(self.model, part), labels).sum()
            found = torch.autograd.grad(value, part, allow_unused=True)[0] if value.requires_grad else None
            return torch.zeros_like(part) if found is None else found

        with eval_mode(self.model), torch.enable_grad():
            return self.over(of, x, self.y)

    @functools.cached_property
    def mixture(self) -> bool:
        """Whether the model shows its experts and its gate."""
        if not is_mixture(self.model):
            return False
        with torch.no_grad():
            seen = self.model.forward_with_experts(self.x[:1].clone())  # type: ignore[operator]
        return all(isinstance(getattr(seen, name, None), Tensor) for name in ("logits", "expert_logits", "gate_logits"))

    @property
    def experts(self) -> int:
        """How many experts a mixture has."""
        return int(self.mixture_output("gate_logits", self.x[:1]).shape[1])

    def mixture_output(self, name: str, x: Tensor) -> Tensor:
        """One part of what a mixture shows of images: ``gate_logits`` or ``gate_weights`` (N, experts)."""
        with eval_mode(self.model), torch.no_grad():
            return self.over(lambda part: getattr(self.model.forward_with_experts(part), name), x)  # type: ignore[operator]

    # -- outcomes --------------------------------------------------------------------------------------------------

    def right(self, spec: AttackSpec) -> Tensor:
        """Which images (N,) the model keeps right under an attack; run now, or known."""
        if spec.name not in self.outcomes:
            self.outcomes[spec.name] = self._run(spec, self.split)
        return self.outcomes[spec.name]

    def right_of(self, spec: AttackSpec, among: Tensor) -> Tensor:
        """The same when only the images ``among`` (N,) bool matter; the rest counts as lost."""
        if spec.name in self.outcomes:
            return self.outcomes[spec.name] & among
        kept = among.clone()
        if bool(among.any()):
            kept[among] = self._run(spec, Split(self.x[among], self.y[among]))
        return kept

    def accuracy(self, spec: AttackSpec) -> float:
        return share(self.right(spec))

    def with_objective(self, objective: str) -> AttackSpec:
        """The attack of the claim with another aim."""
        return replace(self.pgd, objective=objective)

    def at(self, eps: Fraction) -> AttackSpec:
        """The attack of the claim with another budget."""
        return replace(self.pgd, eps=eps, step=eps / 4)

    @functools.cached_property
    def clean(self) -> Tensor:
        return self.right(CLEAN)

    @functools.cached_property
    def headline(self) -> Attacked:
        """The attack of the claim with the images it found."""
        x, y = self.x, self.y
        done = attack(self.folded, x, y, **self._how, batch_size=self.batch_size)
        self.outcomes.setdefault(self.pgd.name, ~done.fooled)
        return done

    @functools.cached_property
    def last(self) -> Tensor:
        """The last iterates (N, C, H, W) of the same attack, where a careless evaluation looks."""
        how = self._how
        return self.over(lambda x, y: pgd(self.folded, x, y, **how), self.x, self.y)

    def losses(self, among: Tensor) -> list[float]:
        """Mean loss after each iteration of the attack of the claim on the first batch of the images ``among``."""
        x, y = self.x[among][: self.batch_size], self.y[among][: self.batch_size]
        seen: dict[int, list[Tensor]] = {}  # every loss of a part of the batch, by its first row

        def watched(model: nn.Module, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits, values = cross_entropy(model, images, y[rows])
            seen.setdefault(int(rows[0]), []).append(values.detach())
            return logits, values

        steps = self.pgd.steps
        pgd(self.folded, x, y, **self._how, objective=watched, targets=torch.arange(len(x), device=x.device))
        # Where memory did not suffice, a part was begun again with fewer images: its last ``steps`` losses count.
        parts = [seen[first][-steps:] for first in sorted(seen)]
        return [float(torch.cat(values).mean()) for values in zip(*parts, strict=True)]

    @functools.cached_property
    def fooled_by(self) -> Tensor | None:
        """Which attack of AutoAttack won each image (N,), from 1; 0 for a clean miss, `NEVER` where none did.

        None if its outcome was handed in without that.
        """
        if self.won_by is not None:
            return self.won_by.to(self.x.device)
        if self.autoattack.name in self.outcomes:
            return None
        how: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "label": self.label,
            "show_progress": False,
        }
        outcome = evaluate(self.folded, self.split, self.autoattack, **how)
        self.outcomes[self.autoattack.name] = outcome.correct.to(self.x.device)
        return outcome.first_success.to(self.x.device)

    def attacks(self) -> list[str]:
        """The attacks at the budget of the claim, run or known."""
        return [name for name in self.outcomes if name.endswith(f"@{budget_text(self.eps)}")]

    def surviving(self) -> Tensor:
        """Right (N,) under every attack at the budget of the claim, run or known."""
        return torch.stack([self.clean, *(self.outcomes[name] for name in self.attacks())]).all(dim=0)

    def _run(self, spec: AttackSpec, split: Split) -> Tensor:
        how: dict[str, Any] = {
            "seed": self.seed,
            "batch_size": self.batch_size,
            "label": self.label,
            "show_progress": False,
        }
        return evaluate(self.folded, split, spec, objectives=self.objectives, **how).correct.to(self.x.device)

    @property
    def _how(self) -> dict[str, Any]:
        spec = self.pgd
        how = {"eps": spec.eps, "step_size": spec.step, "steps": spec.steps}
        return {**how, "generator": cpu_generator(self.seed)}


def share(right: Tensor) -> float:
    """The accuracy of an outcome (N,)."""
    return int(right.sum()) / len(right)


def interval(right: Tensor) -> tuple[float, float]:
    """Wilson's 95 % interval of an outcome (N,)."""
    return wilson(int(right.sum()), len(right))
