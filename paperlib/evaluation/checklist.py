"""The checklist of an audit: every pitfall with its question, its threshold and where that is from.

Thresholds are ours unless a source is named; `paperlib.evaluation.pitfalls` holds the checks and the sources.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from paperlib.evaluation import pitfalls
from paperlib.evaluation.case import Case
from paperlib.evaluation.pitfalls import Answer


@dataclass(frozen=True)
class Pitfall:
    """A row of the checklist."""

    row: int
    check: Callable[[Case], Answer]
    asks: str
    threshold: str

    @property
    def name(self) -> str:
        return self.check.__name__.replace("_", "-")


# In the order they are asked: first whether there is an answer at all, last what needs all attacks.
PITFALLS: tuple[Pitfall, ...] = tuple(
    Pitfall(*row)
    for row in (
        (12, pitfalls.finite, "Are weights, answers and gradients numbers?", "all finite (ADVMoE's NaN router)"),
        (21, pitfalls.steady, "Does it answer the same twice?", "1e-6 of the largest logit (AutoAttack's flag)"),
        (22, pitfalls.alone, "Does an answer depend on its batch or on being attacked?", "1e-4 of the largest logit"),
        (11, pitfalls.logits, "Does it return logits?", "rows in [0, 1] that sum to 1 (AutoAttack's flag)"),
        (10, pitfalls.gradients, "Are there gradients to follow?", "none zero, median above 1e-8 (AutoAttack's flag)"),
        (1, pitfalls.iterations, "Do many steps beat one?", "0.5 points at every eps (Athalye et al.)"),
        (
            3,
            pitfalls.falls,
            "Does accuracy fall with eps, to chance?",
            "monotone; chance + 2 points at 128/255",
        ),
        (2, pitfalls.converged, "Had the attack converged?", "1 point below the claim; 5 % of the rise in 10 steps"),
        (
            5,
            pitfalls.one_step,
            "Is it robust to more than one step?",
            "PGD takes 20 points and half of FGSM's rest",
        ),
        (14, pitfalls.target, "Was the attack aimed at this model?", "claim in the interval of our PGD (MoRE's code)"),
        (23, pitfalls.budget, "Do adversarial images keep to the ball and to [0, 1]?", "eps + 1e-6"),
        (24, pitfalls.any_iterate, "Are successes lost at the last step?", "noted above 5 % (Pintor et al.)"),
        (29, pitfalls.smooth, "Is the loss smooth around an image?", "10 % under noise of eps / 100 (Pintor et al.)"),
        (9, pitfalls.noise, "Does the attack beat blind luck?", "no image more to noise than to PGD (Athalye et al.)"),
        (15, pitfalls.loss, "Do other losses do better?", "5 points below the claim (ADVMoE's side loss)"),
        (7, pitfalls.transfer, "Do examples of other networks do better?", "1 point (Carlini et al.)"),
        (16, pitfalls.experts, "Do attacks on the experts do better?", "5 points below the claim (RA-E)"),
        (17, pitfalls.gate, "Do attacks on the gate do better?", "5 points below the claim (RA-R)"),
        (18, pitfalls.past_gate, "Do attacks that ignore the gate do better?", "5 points below the claim (He et al.)"),
        (20, pitfalls.choice, "Do attacks through a hard choice do better?", "5 points below the claim (BPDA)"),
        (13, pitfalls.collapse, "Does the gate use its experts?", "none above 0.95; noted below 0.01"),
        (19, pitfalls.weak_link, "Is the benign expert a weak link?", "noted if leaving it out helps by 1 point"),
        (27, pitfalls.compared, "Does the gate beat a plain average of the experts?", "noted if not"),
        (4, pitfalls.autoattack, "Do attacks unlike those of training do better?", "claim in AutoAttack's interval"),
        (6, pitfalls.black_box, "Does an attack without gradients do better?", "0.2 points (AutoAttack's flag)"),
        (8, pitfalls.worst_case, "Does the claim stand in the worst case?", "claim in the worst case's interval"),
        (25, pitfalls.selection, "Was the checkpoint chosen on these images?", "1 % of the images (ADVMoE's code)"),
        (26, pitfalls.sample, "Are there images enough?", "noted below 1,000"),
        (28, pitfalls.too_good, "Is it too good to be true?", "59 % on CIFAR-10 at 8/255 (RobustBench)"),
    )
)
