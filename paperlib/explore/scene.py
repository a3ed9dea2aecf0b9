"""One image, one attack, and what a mixture of experts makes of them: before, after, and on the way.

`Live` asks a trained mixture; `Recorded` shows what the published gallery holds, without weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from paperlib.acceleration import fold
from paperlib.acceleration.precision import cpu_threads
from paperlib.attacks import OBJECTIVES, AttackObjective, fgsm, mixture_objectives, pgd
from paperlib.config.budgets import budget_text
from paperlib.config.schema import Profile
from paperlib.data import Split, is_here
from paperlib.errors import InputError, MissingError
from paperlib.models import MixtureOutput
from paperlib.models.modes import eval_mode
from paperlib.pipeline.study import Study

NONE, FGSM, PGD = "none", "FGSM", "PGD"
IMAGES = 30  # to choose from, of the first of the test split
BUDGETS = 12  # steps of the slider for eps, where eps is not counted in 255ths
STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)


@dataclass(frozen=True)
class Question:
    """Which image is attacked, and how."""

    image: int = 0
    attack: str = PGD
    eps: Fraction = Fraction(0)
    steps: int = 10  # of PGD; FGSM takes one


@dataclass(frozen=True, eq=False)
class Scene:
    """What the mixture makes of an image before and after the attack."""

    question: Question
    label: int
    clean: Tensor  # (C, H, W)
    attacked: Tensor  # (C, H, W)
    before: MixtureOutput  # of one image each
    after: MixtureOutput
    path: Tensor  # (iterates, experts): gate weights from the clean image to the attacked one


class Source(Protocol):
    """Where scenes come from, and what may be asked."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...  # of the images to choose from

    @property
    def attacks(self) -> Sequence[str]: ...

    @property
    def budgets(self) -> Sequence[Fraction]: ...

    @property
    def steps(self) -> Sequence[int]: ...

    @property
    def note(self) -> str: ...  # one line on where the answers are from

    def scene(self, question: Question) -> Scene:
        """Raises InputError for a question outside the choices."""
        ...


class Live:
    """Scenes of a mixture at hand: a module with ``output``, such as DWF.

    Args:
        mixture: pixels to logits, with ``output``; left as it is.
        split: images to choose from; the first `IMAGES` are offered.
        budgets: values of eps to choose from, 0 among them.
        benign: which expert was trained on clean images alone, if any.
        threads: of the CPU, 0 for torch's choice; one is fastest for small networks.
    """

    def __init__(
        self,
        mixture: nn.Module,
        split: Split,
        classes: Sequence[str],
        budgets: Sequence[Fraction],
        *,
        benign: int | None = 0,
        threads: int = 0,
        note: str = "computed now",
    ) -> None:
        self.threads, self.mixture, self.split, self.classes = threads, mixture, split, classes
        self.note, self.steps, self.budgets = note, STEPS, tuple(budgets)
        self.labels = split.labels[:IMAGES].tolist()
        self._folded = fold(mixture, split.images[:2])
        inside = mixture_objectives(mixture, split.images[:2], benign)
        self._objectives: dict[str, AttackObjective] = {PGD: OBJECTIVES["cross-entropy"]}
        # Names as the notebooks have them; an aim the gate has no gradient for is not among them.
        self._objectives |= {
            f"PGD, {name}": objective for name, objective in inside.items() if name.startswith(("gate to", "expert "))
        }
        self.attacks = (NONE, FGSM, *self._objectives)

    def scene(self, question: Question) -> Scene:
        """The scene, computed now; the same question always has the same answer."""
        check_question(question, self)
        if question.attack == NONE or question.eps == 0:  # whatever else is set, it is the clean image
            question = Question(question.image, NONE, Fraction(0), self.steps[0])
        elif question.attack == FGSM:
            question = Question(question.image, FGSM, question.eps, 1)
        with cpu_threads(self.threads):
            return self._asked(question)

    def _asked(self, question: Question) -> Scene:
        part = slice(question.image, question.image + 1)
        x, y = self.split.images[part], self.split.labels[part]
        before, weights = self._evidence(x), list[Tensor]()
        if question.attack == NONE:
            return Scene(question, int(y), x[0], x[0], before, before, before.gate_weights)
        if question.attack == FGSM:
            found = fgsm(self._folded, x, y, eps=question.eps)
        else:
            objective = self._objectives[question.attack]

            def watched(model: nn.Module, at: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
                with torch.no_grad():
                    weights.append(model.forward_with_experts(at).gate_weights)  # type: ignore[operator]
                return objective.function(model, at, wanted)

            # From the image itself, unlike the attacks of the tables: so the path begins where the image is.
            how: dict[str, Any] = {"eps": question.eps, "step_size": question.eps / 4, "steps": question.steps}
            targets = None if objective.targets is None else objective.targets(self._folded.network, x, y)
            found = pgd(self._folded, x, y, **how, random_start=False, objective=watched, targets=targets)
        after = self._evidence(found)
        path = torch.cat([before.gate_weights, *weights[1:], after.gate_weights])
        return Scene(question, int(y), x[0], found[0], before, after, path)

    def _evidence(self, x: Tensor) -> MixtureOutput:
        with eval_mode(self.mixture), torch.no_grad():
            seen: MixtureOutput = self.mixture.forward_with_experts(x)  # type: ignore[operator]
        return seen


class Recorded:
    """The scenes of a published gallery: one image of each class, clean, under FGSM and under PGD.

    Args:
        facts: the record of a ``gallery`` stage. arrays: what lies beside it.
    """

    def __init__(
        self, facts: dict[str, Any], arrays: dict[str, Tensor], classes: Sequence[str], *, note: str = "recorded"
    ) -> None:
        self.arrays, self.classes = arrays, classes
        self.labels = arrays["labels"].tolist()
        self.attacks, self.budgets = (NONE, FGSM, PGD), (Fraction(0), Fraction(facts["eps"]))
        self.steps = (int(facts["pgd_steps"]),)
        self.note = note

    def scene(self, question: Question) -> Scene:
        """The scene as recorded; of the way from one image to the other only the ends are known."""
        check_question(question, self)
        i, clean = question.image, self.arrays["clean/images"][question.image]
        kind = "clean" if question.attack == NONE or question.eps == 0 else question.attack.lower()
        before, after = self._evidence("clean", i), self._evidence(kind, i)
        ends = before.gate_weights if kind == "clean" else torch.cat([before.gate_weights, after.gate_weights])
        return Scene(question, self.labels[i], clean, self.arrays[f"{kind}/images"][i], before, after, ends)

    def _evidence(self, kind: str, i: int) -> MixtureOutput:
        logits, experts, weights = (
            self.arrays[f"{kind}/{name}"][i : i + 1].float() for name in ("logits", "expert_logits", "gate_weights")
        )
        return MixtureOutput(logits, experts, weights, weights.clamp_min(1e-12).log())


def check_question(question: Question, source: Source) -> None:
    """Raise InputError for what the source cannot be asked."""
    allowed: dict[str, tuple[object, Sequence[object]]] = {
        "image": (question.image, range(len(source.labels))),
        "attack": (question.attack, source.attacks),
        "eps": (question.eps, source.budgets),
        "steps": (question.steps, source.steps),
    }
    for name, (value, choices) in allowed.items():
        if value not in choices:
            told = [budget_text(c) if isinstance(c, Fraction) else str(c) for c in choices]
            raise InputError(f"{name}={value}: choose one of {', '.join(told)}")


def budgets_of(profile: Profile) -> tuple[Fraction, ...]:
    """Values of eps to choose from: up to the largest of the profile's sweep, the headline's among them."""
    config = profile.evaluation
    largest = max((*config.eps_sweep, config.eps))
    unit = Fraction(1, 255) if (largest * 255).denominator == 1 else largest / BUDGETS
    return tuple(sorted({config.eps, *(unit * i for i in range(int(largest / unit) + 1))}))


def source_of(study: Study, system: str = "dwf") -> Live | Recorded:
    """Live where the weights are, here or published, and so are the data; else the recorded gallery of DWF."""
    try:
        return _live(study, system)
    except MissingError as error:
        gallery = study.get("gallery:dwf")
        note = f"recorded, no live attack: {error}"
        return Recorded(gallery.record["result"], gallery.arrays, study.classes, note=note)


def experts_of(study: Study) -> Live | Recorded:
    """The nine experts of phase 1, averaged; where their weights are not here, those of DWF."""
    try:
        return _live(study, "uniform")
    except MissingError:
        found = source_of(study)
        found.note = f"the experts of DWF, after phase 2; {found.note}"
        return found


def _live(study: Study, system: str) -> Live:
    profile = study.profile
    if not is_here(profile):
        raise MissingError(f"{profile.data.name} is not on this machine")  # exploring is no reason to download it
    mixture = study.load(system)
    split = study.data.test.first(min(IMAGES, len(study.data.test))).to("cpu")
    how: dict[str, Any] = {"threads": profile.run.threads, "note": f"{system}, seed {study.seed}: attacked live"}
    return Live(mixture.cpu(), split, study.classes, budgets_of(profile), **how)
