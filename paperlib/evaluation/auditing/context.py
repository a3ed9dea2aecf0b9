"""The model under audit and its data, as the checks see them. Each attack runs once; its outcome is stored."""

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
from paperlib.evaluation.robustness import EvaluationResult, evaluate
from paperlib.evaluation.specs import CLEAN, AttackSpec, autoattack_spec, pgd_spec
from paperlib.evaluation.statistics import wilson
from paperlib.models.modes import eval_mode
from paperlib.seeds import cpu_generator
from paperlib.shapes import Correct, Images, Labels, Logits

CURVE = tuple(Fraction(k, 255) for k in (2, 4, 8, 16, 32, 64, 128))  # eps of the accuracy curve
TAIL = 10  # last iterations, over which the loss of a converged attack hardly rises


@dataclass(frozen=True)
class AuditBudget:
    """The steps, draws and queries of the audit's attacks. The thresholds of the checks assume the defaults."""

    steps: int = 50  # of PGD, with step size eps / 4
    restarts: int = 5  # of the longer PGD run that tests convergence
    draws: int = 1000  # of random noise, per image
    iterations: int = ITERATIONS  # of AutoAttack's gradient attacks
    queries: int = QUERIES  # of Square, within AutoAttack or alone
    autoattack: bool = True  # whether to run AutoAttack


@dataclass
class AuditContext:
    """The model, the images it is evaluated on, the claim about it, and all outcomes so far."""

    model: nn.Module
    split: Split
    eps: Fraction
    audit_budget: AuditBudget = AuditBudget()
    claimed: float | None = None  # accuracy under attack, as a fraction; None: the accuracy under PGD
    adversarial: Tensor | None = None  # the adversarial images (N, C, H, W) of the claim
    transfer_from: Mapping[str, nn.Module] = field(default_factory=dict)
    selected_on: Tensor | None = None  # images (M, C, H, W) on which the checkpoint was selected
    benign: int | None = None  # the expert of a mixture that was trained on clean images only
    outcomes: dict[str, Tensor] = field(default_factory=dict)  # (N,) bool, True where correct, by name of the attack
    won_by: Tensor | None = None  # for an AutoAttack in ``outcomes``: the values of `fooled_by`
    seed: int = 0
    batch_size: int = 250
    label: str = "audit"

    @property
    def x(self) -> Images:
        return self.split.images

    @property
    def y(self) -> Labels:
        return self.split.labels

    @property
    def n(self) -> int:
        return len(self.split)

    @functools.cached_property
    def folded(self) -> Folded:
        return fold(self.model, self.x)

    @functools.cached_property
    def objectives(self) -> dict[str, AttackObjective]:
        """The objectives of gradient attacks on this model: losses, its experts and gate, other networks."""
        objectives = {name: OBJECTIVES[name] for name in ("cross-entropy", *losses_for(self.classes))}
        if self.has_experts:
            objectives |= mixture_objectives(self.model, self.x, self.benign)
        for name, other in self.transfer_from.items():
            surrogate = fold(other, self.x).network
            objectives[f"transfer {name}"] = AttackObjective(transfer_objective(surrogate))
        return objectives

    @functools.cached_property
    def classes(self) -> int:
        return int(self.logits().shape[1])

    @functools.cached_property
    def pgd(self) -> AttackSpec:
        """PGD on cross-entropy, the attack of the claim unless the claim names another one."""
        return pgd_spec(self.eps, self.audit_budget.steps, self.eps / 4)

    @functools.cached_property
    def autoattack(self) -> AttackSpec:
        return autoattack_spec(self.eps, self.audit_budget.iterations, self.audit_budget.queries)

    # -- logits and gradients --------------------------------------------------------------------------------------

    def apply_in_batches(self, function: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        """Apply ``function`` to batches of rows of all ``tensors`` and concatenate the results.

        Batches are halved when memory runs out. The function gets copies, because a model may edit its input in place.
        """

        def apply(rows: slice) -> Tensor:
            return function(*(tensor[rows].clone() for tensor in tensors))

        parts = in_batches(len(tensors[0]), self.batch_size, self.unfolded, apply)
        return torch.cat([part for _, part in parts])

    @functools.cached_property
    def unfolded(self) -> Folded:
        """The model itself, with the number of images that fit in memory at once."""
        return Folded(self.model, self.model)

    def logits(self, x: Images | None = None) -> Logits:
        """The model's logits for ``x``, by default the clean images. The modes of its modules are not changed."""
        x = self.x if x is None else x
        return torch.cat([part for _, part in logits_in_batches(self.model, x, self.batch_size, self.unfolded)])

    def gradient(self, x: Images, loss: LogitLoss) -> Images:
        """The gradient of ``loss`` with respect to the pixels ``x``; zero where the logits have no gradient."""

        def input_gradient(images: Tensor, labels: Tensor) -> Tensor:
            images = images.detach().requires_grad_()
            value = loss(logits_of(self.model, images), labels).sum()
            gradient = torch.autograd.grad(value, images, allow_unused=True)[0] if value.requires_grad else None
            return torch.zeros_like(images) if gradient is None else gradient

        with eval_mode(self.model), torch.enable_grad():
            return self.apply_in_batches(input_gradient, x, self.y)

    @functools.cached_property
    def has_experts(self) -> bool:
        """Whether the model is a mixture that returns the logits of its experts and of its gate."""
        if not is_mixture(self.model):
            return False
        names = ("logits", "expert_logits", "gate_logits")
        with torch.no_grad():
            output = self.model.forward_with_experts(self.x[:1].clone())  # type: ignore[operator]
        return all(isinstance(getattr(output, name, None), Tensor) for name in names)

    @property
    def expert_count(self) -> int:
        """The number of experts of a mixture."""
        return int(self.gate_output("gate_logits", self.x[:1]).shape[1])

    def gate_output(self, name: str, x: Images) -> Tensor:
        """The ``gate_logits`` or ``gate_weights`` (N, experts) of a mixture."""
        with eval_mode(self.model), torch.no_grad():
            return self.apply_in_batches(
                lambda images: getattr(self.model.forward_with_experts(images), name),  # type: ignore[operator]
                x,
            )

    # -- outcomes --------------------------------------------------------------------------------------------------

    def correct(self, spec: AttackSpec) -> Correct:
        """Which images are correct under an attack. The attack is run unless its outcome is stored."""
        if spec.name not in self.outcomes:
            self.outcomes[spec.name] = self._run(spec, self.split)
        return self.outcomes[spec.name]

    def correct_among(self, spec: AttackSpec, among: Correct) -> Correct:
        """`correct` for the images ``among``; all others count as misclassified and are not attacked."""
        if spec.name in self.outcomes:
            return self.outcomes[spec.name] & among
        correct = among.clone()
        if bool(among.any()):
            correct[among] = self._run(spec, Split(self.x[among], self.y[among]))
        return correct

    def accuracy(self, spec: AttackSpec) -> float:
        return share(self.correct(spec))

    def with_objective(self, objective: str) -> AttackSpec:
        """PGD as in `pgd`, with another objective."""
        return replace(self.pgd, objective=objective)

    def at(self, eps: Fraction) -> AttackSpec:
        """PGD as in `pgd`, with another eps."""
        return replace(self.pgd, eps=eps, step=eps / 4)

    @functools.cached_property
    def clean(self) -> Correct:
        return self.correct(CLEAN)

    @functools.cached_property
    def pgd_result(self) -> Attacked:
        """The result of the attack `pgd`, with its adversarial images."""
        x, y = self.x, self.y
        result = attack(self.folded, x, y, **self._pgd_settings, batch_size=self.batch_size)
        self.outcomes.setdefault(self.pgd.name, ~result.fooled)
        return result

    @functools.cached_property
    def last_iterates(self) -> Images:
        """The last iterates of the attack `pgd`, with no early stopping."""
        settings = self._pgd_settings
        return self.apply_in_batches(lambda x, y: pgd(self.folded, x, y, **settings), self.x, self.y)

    def losses(self, among: Correct) -> list[float]:
        """The mean cross-entropy at each iteration of `pgd`, over the first batch of the images ``among``."""
        x, y = self.x[among][: self.batch_size], self.y[among][: self.batch_size]
        recorded: dict[int, list[Tensor]] = {}  # the losses of each part of the batch, by its first row

        def recording(model: nn.Module, images: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
            logits, values = cross_entropy(model, images, y[rows])
            recorded.setdefault(int(rows[0]), []).append(values.detach())
            return logits, values

        steps = self.pgd.steps
        rows = torch.arange(len(x), device=x.device)
        pgd(self.folded, x, y, **self._pgd_settings, objective=recording, targets=rows)
        # When memory ran out, a part was attacked again with fewer images; only its last ``steps`` losses count.
        parts = [recorded[first][-steps:] for first in sorted(recorded)]
        return [float(torch.cat(values).mean()) for values in zip(*parts, strict=True)]

    @functools.cached_property
    def fooled_by(self) -> Tensor | None:
        """The number of the AutoAttack attack that fooled each image (N,), from 1.

        It is 0 where the clean image is misclassified and `NEVER` where no attack succeeded. None if the outcome of
        AutoAttack was passed in without these numbers (``won_by``).
        """
        if self.won_by is not None:
            return self.won_by.to(self.x.device)
        if self.autoattack.name in self.outcomes:
            return None
        result = self._evaluate(self.autoattack, self.split)
        self.outcomes[self.autoattack.name] = result.correct.to(self.x.device)
        return result.first_success.to(self.x.device)

    def attacks(self) -> list[str]:
        """The names of the attacks at the eps of the claim that have an outcome."""
        return [name for name in self.outcomes if name.endswith(f"@{budget_text(self.eps)}")]

    def surviving(self) -> Correct:
        """Which images are correct without attack and under every attack of `attacks`."""
        return torch.stack([self.clean, *(self.outcomes[name] for name in self.attacks())]).all(dim=0)

    def _run(self, spec: AttackSpec, split: Split) -> Tensor:
        return self._evaluate(spec, split, objectives=self.objectives).correct.to(self.x.device)

    def _evaluate(self, spec: AttackSpec, split: Split, **settings: Any) -> EvaluationResult:
        return evaluate(
            self.folded,
            split,
            spec,
            seed=self.seed,
            batch_size=self.batch_size,
            label=self.label,
            show_progress=False,
            **settings,
        )

    @property
    def _pgd_settings(self) -> dict[str, Any]:
        spec, generator = self.pgd, cpu_generator(self.seed)
        return {"eps": spec.eps, "step_size": spec.step, "steps": spec.steps, "generator": generator}


def share(correct: Correct) -> float:
    """The accuracy, as a fraction of at least one image."""
    return int(correct.sum()) / len(correct)


def interval(correct: Correct) -> tuple[float, float]:
    """Wilson's 95 % interval of the accuracy; it covers the sampling of the images."""
    return wilson(int(correct.sum()), len(correct))
