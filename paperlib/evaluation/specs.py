"""One attack with all its settings as data, and the attacks that a profile defines."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any

from paperlib.attacks.autoattack import ITERATIONS, QUERIES
from paperlib.config.budgets import Budget, as_fraction, budget_text
from paperlib.config.schema import EvaluationConfig


@dataclass(frozen=True)
class AttackSpec:
    """One attack with all its settings. Budgets are exact fractions of the pixel range [0, 1]."""

    kind: str  # "clean", "fgsm", "pgd", "noise", "square" or "autoattack"
    eps: Fraction = Fraction(0)
    step: Fraction = Fraction(0)
    steps: int = 0  # for noise: draws; for Square: queries; for AutoAttack: iterations of its gradient attacks
    restarts: int = 1
    random_start: bool = False
    objective: str = "cross-entropy"  # what it maximises: a key of the ``objectives`` of `evaluate`
    queries: int = 0  # for AutoAttack: queries of its Square attack

    @property
    def name(self) -> str:
        """Such as ``clean``, ``fgsm@8/255``, ``pgd-50@0.15``, ``pgd-50x5@0.15`` (5 restarts), ``pgd-50-soft@0.15``."""
        if self.kind == "clean":
            return "clean"
        steps = f"-{self.steps}" if self.kind in ("pgd", "noise", "square") else ""
        if self.kind == "autoattack" and not self.standard:
            steps = f"-{self.steps}-{self.queries}"
        restarts = f"x{self.restarts}" if self.restarts > 1 else ""
        objective = f"-{self.objective.replace(' ', '-')}" if self.objective != "cross-entropy" else ""
        return f"{self.kind}{steps}{restarts}{objective}@{budget_text(self.eps)}"

    @property
    def standard(self) -> bool:
        """Whether these are the iterations and queries of AutoAttack's standard version."""
        return (self.steps, self.queries) == (ITERATIONS, QUERIES)

    def table(self) -> dict[str, Any]:
        """All settings, ready for JSON, with budgets as text."""
        settings = {**asdict(self), "eps": budget_text(self.eps), "step": budget_text(self.step)}
        if self.kind != "autoattack":
            del settings["queries"]
        return settings


CLEAN = AttackSpec("clean")


def fgsm_spec(eps: Budget) -> AttackSpec:
    """FGSM at ``eps``: one step of size ``eps``, no random start."""
    eps = as_fraction(eps)
    return AttackSpec("fgsm", eps, eps, 1)


def pgd_spec(eps: Budget, steps: int, step: Budget, restarts: int = 1, objective: str = "cross-entropy") -> AttackSpec:
    """PGD with ``steps`` steps of size ``step`` from ``restarts`` random starts."""
    return AttackSpec(
        "pgd", as_fraction(eps), as_fraction(step, "step"), steps, restarts, random_start=True, objective=objective
    )


def noise_spec(eps: Budget, draws: int) -> AttackSpec:
    """Random noise: the attack succeeds if any of ``draws`` uniform draws from the ball is misclassified."""
    return AttackSpec("noise", as_fraction(eps), steps=draws)


def square_spec(eps: Budget, queries: int = QUERIES) -> AttackSpec:
    """The Square attack alone, which uses logits and no gradients."""
    return AttackSpec("square", as_fraction(eps), steps=queries)


def autoattack_spec(eps: Budget, iterations: int = ITERATIONS, queries: int = QUERIES) -> AttackSpec:
    """AutoAttack; with the default ``iterations`` and ``queries`` it is the standard version."""
    return AttackSpec("autoattack", as_fraction(eps), steps=iterations, queries=queries)


def headline(config: EvaluationConfig) -> AttackSpec:
    """The attack of the main table."""
    return pgd_spec(config.eps, config.steps, config.step, config.restarts)


def basic_attacks(config: EvaluationConfig) -> list[AttackSpec]:
    """The attacks of the main table: clean, FGSM and PGD at the headline eps."""
    return [CLEAN, fgsm_spec(config.eps), headline(config)]


def surrogate_attacks(config: EvaluationConfig) -> list[AttackSpec]:
    """The additional attack on systems with hard routing: the headline attack on the differentiable surrogate."""
    return [replace(headline(config), objective="soft")]


def sweep(config: EvaluationConfig) -> list[AttackSpec]:
    """FGSM and PGD at each eps of the profile's sweep, with PGD's step size proportional to eps."""
    ratio = config.step / config.eps
    specs = [fgsm_spec(eps) for eps in config.eps_sweep]
    specs += [pgd_spec(eps, config.steps, eps * ratio, config.restarts) for eps in config.eps_sweep]
    return specs
