"""The audit: checks a network for known errors in measuring robust accuracy and reports whether to believe it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from numbers import Integral
from types import NoneType

import torch
from torch import Tensor, nn

from paperlib.acceleration.precision import tensor_float32
from paperlib.arguments import as_images, as_labels, check_settings, check_type, check_whole
from paperlib.config.budgets import Budget, as_fraction, budget_text
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError
from paperlib.evaluation.auditing.checks import CHECKS
from paperlib.evaluation.auditing.checks.check import FAILS, NOT_RUN, Check, CheckResult
from paperlib.evaluation.auditing.context import AuditBudget, AuditContext, share
from paperlib.evaluation.auditing.inputs import (
    as_adversarial,
    as_audited_model,
    as_claim,
    as_surrogates,
    check_outcomes,
)
from paperlib.evaluation.auditing.report import Finding, Report
from paperlib.log import progress
from paperlib.models.modes import float32_by_default, outside_inference_mode
from paperlib.seeds import hash_seed


@outside_inference_mode()
@float32_by_default()
@tensor_float32(False)
def audit(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    eps: Budget,
    *,
    claimed: float | Tensor | None = None,
    adversarial: Tensor | None = None,
    transfer_from: Mapping[str, nn.Module] | nn.Module | None = None,
    selected_on: Tensor | None = None,
    benign: int | None = None,
    audit_budget: AuditBudget = AuditBudget(),  # noqa: B008 - frozen
    seed: int = 0,
    batch_size: int = 250,
    outcomes: Mapping[str, Tensor] | None = None,
    won_by: Tensor | None = None,
    label: str = "the model",
) -> Report:
    """Run every check of `paperlib.evaluation.auditing.checks` on a network and report whether to believe the claim.

    The audit works on a copy of the model, without TensorFloat-32. Batches are halved when memory runs out.

    Args:
        model: any module from pixels (N, C, H, W) in [0, 1] to logits (N, classes), in evaluation mode; see
            `paperlib.attacks.inputs` for the models that are accepted. Logits without a gradient are accepted here,
            and a check reports them. If the model has a method ``forward_with_experts`` (see
            `paperlib.attacks.mixture`), its experts and its gate are attacked as well.
        images, labels: the test images (N, C, H, W) in [0, 1], of any float dtype, and their labels (N,), int64.
        eps: L-infinity budget, a float or text such as ``"8/255"``.
        claimed: the claimed accuracy under attack, as a fraction or a tensor with one value; by default the accuracy
            under PGD.
        adversarial: the adversarial images (N, C, H, W) of the claim, of any float dtype, if they are not from our own
            PGD. In half precision, pixels that rounding moved out of the ball or of [0, 1] are moved back.
        transfer_from: other networks with the same classes on which to craft examples, by name, or a single one.
        selected_on: the images (M, C, H, W) on which the checkpoint was selected.
        benign: the index of the expert of a mixture that was trained on clean images only.
        audit_budget: the number of steps, draws and queries of the attacks.
        outcomes: outcomes (N,) that are already available, by the name of the attack; these attacks are not run.
        won_by: for an AutoAttack in ``outcomes``, the ``first_success`` (N,) of its `EvaluationResult`.

    Raises:
        InputError: images, labels or settings out of range; a model in training mode, or one that expects pixels in
            [0, 255].
    """
    started = time.monotonic()
    batch_size = check_whole("batch_size", batch_size)
    budget = as_fraction(eps)
    check_settings(seed=seed)
    check_type("audit_budget", audit_budget, AuditBudget, "an AuditBudget")
    check_type("benign", benign, (Integral, NoneType), "the number of an expert or None")
    check_type("outcomes", outcomes, (Mapping, NoneType), "outcomes by the name of the attack")
    seed = int(seed)
    images = as_images(images).float().contiguous().clone()  # the model must not get the caller's tensor
    split = Split(images, as_labels(labels, images))
    if len(images) == 0 or budget == 0:
        raise InputError("audit: needs at least one image and an eps above 0")
    claim = as_claim(claimed)
    adversarial = as_adversarial(adversarial, split, float(budget))
    check_outcomes(split, selected_on, outcomes or {}, won_by)
    with torch.random.fork_rng():  # random numbers that the model draws depend on the seed of the audit only
        torch.manual_seed(hash_seed(seed, "before the checks"))
        model, classes = as_audited_model(model, split, label, batch_size)
        surrogates = as_surrogates(transfer_from, images, classes)
        context = AuditContext(
            model=model,
            split=split,
            eps=budget,
            audit_budget=audit_budget,
            claimed=claim,
            adversarial=adversarial,
            transfer_from=surrogates,
            selected_on=selected_on,
            benign=benign,
            outcomes={name: correct.bool().to(images.device) for name, correct in (outcomes or {}).items()},
            won_by=won_by,
            seed=seed,
            batch_size=batch_size,
            label=label,
        )
        if benign is not None and context.has_experts and not 0 <= benign < context.expert_count:
            raise InputError(f"benign={benign}: the mixture has no such expert")
        return _report(context, started)


def _report(context: AuditContext, started: float) -> Report:
    """Run every check and collect the results."""
    claim = "as claimed"
    if context.claimed is None and context.adversarial is not None:
        correct = context.logits(context.adversarial).argmax(dim=1) == context.y
        context.claimed, claim = share(correct), "on the adversarial images handed in"
    findings: list[Finding] = []
    with progress(len(CHECKS), f"audit of {context.label}", unit="checks") as report_progress:
        for check in CHECKS:
            if any(f.name == "finite" and f.verdict == FAILS for f in findings):
                result = CheckResult(NOT_RUN, "", "nothing can be measured")
            else:
                result, context = _run(check, context)
            findings.append(
                Finding(
                    check.row, check.name, check.question, check.threshold, result.verdict, result.value, result.why
                )
            )
            report_progress(len(findings))
    measurable = findings[0].verdict != FAILS
    if measurable and context.claimed is None:
        claim = f"under PGD-{context.audit_budget.steps}"
        try:
            context.claimed = context.accuracy(context.pgd)
        except NotFiniteError:  # reported by the checks that raised it
            measurable = False
    return Report(
        label=context.label,
        n=context.n,
        eps=budget_text(context.eps),
        seed=context.seed,
        audit_budget=asdict(context.audit_budget),
        claimed=context.claimed,
        claim=claim,
        attacks={name: int(context.outcomes[name].sum()) for name in context.attacks()} if measurable else {},
        worst=int(context.surviving().sum()) if measurable else None,
        findings=tuple(sorted(findings, key=lambda finding: finding.row)),
        seconds=round(time.monotonic() - started, 3),
    )


def _run(check: Check, context: AuditContext) -> tuple[CheckResult, AuditContext]:
    """The result of one check, and the context for the next one.

    If the model returns probabilities, the later checks get their logarithm.
    """
    torch.manual_seed(hash_seed(context.seed, check.name))  # so that the result does not depend on earlier checks
    try:
        result = check(context)
    except NotFiniteError as error:  # an attack found images with NaN or infinite logits
        return CheckResult(FAILS, "", str(error)), context
    if check.name == "logits" and result.verdict == FAILS:
        context = replace(context, model=Logarithm(context.model), outcomes={}, won_by=None)
    return result, context


class Logarithm(nn.Module):
    """Turns a model that returns probabilities p into one that returns logits, log(max(p, 1e-12))."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, x: Tensor) -> Tensor:
        probabilities: Tensor = self.model(x)
        return probabilities.clamp_min(1e-12).log()
