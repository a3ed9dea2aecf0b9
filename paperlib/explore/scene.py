"""One image under one attack, and the outputs of a mixture of experts before, during and after the attack.

`Live` computes scenes with a trained mixture; `Recorded` reads them from the published gallery and needs no weights.
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
from paperlib.shapes import Images

NONE, FGSM, PGD = "none", "FGSM", "PGD"
IMAGES = 30  # offered, the first ones of the test split
BUDGETS = 12  # steps of the slider for eps, where eps is not a multiple of 1/255
STEPS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 40, 50)


@dataclass(frozen=True)
class Selection:
    """The values of the controls: an image, an attack and its settings."""

    image: int = 0
    attack: str = PGD
    eps: Fraction = Fraction(0)
    steps: int = 10  # of PGD; FGSM takes one


@dataclass(frozen=True, eq=False)
class Scene:
    """The outputs of the mixture for an image before and after the attack."""

    selection: Selection
    label: int
    clean: Tensor  # (C, H, W)
    attacked: Tensor  # (C, H, W)
    before: MixtureOutput  # of one image each
    after: MixtureOutput
    path: Tensor  # (iterates, experts): gate weights from the clean image to the attacked image


class SceneSource(Protocol):
    """Gives the scene of each selection, and lists the values that can be selected."""

    @property
    def classes(self) -> Sequence[str]: ...

    @property
    def labels(self) -> Sequence[int]: ...  # of the images that can be selected

    @property
    def attacks(self) -> Sequence[str]: ...

    @property
    def budgets(self) -> Sequence[Fraction]: ...

    @property
    def steps(self) -> Sequence[int]: ...

    @property
    def note(self) -> str: ...  # one line on the origin of the scenes

    def scene(self, selection: Selection) -> Scene:
        """Raises InputError for a value that cannot be selected."""
        ...


class Live:
    """Scenes computed with a mixture: a module with ``forward_with_experts``, such as DWF.

    Args:
        mixture: pixels to logits, with ``forward_with_experts``; it is not changed.
        split: the first `IMAGES` images can be selected.
        budgets: values of eps that can be selected, 0 among them.
        benign: the number of the expert that was trained on clean images only, if there is one.
        threads: CPU threads, 0 for torch's default; one is fastest for small networks.
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
        of_parts = mixture_objectives(mixture, split.images[:2], benign)
        self._objectives: dict[str, AttackObjective] = {PGD: OBJECTIVES["cross-entropy"]}
        # Attacks on the gate, where it has a gradient, and on single experts.
        self._objectives |= {
            f"PGD, {name}": objective for name, objective in of_parts.items() if name.startswith(("gate to", "expert "))
        }
        self.attacks = (NONE, FGSM, *self._objectives)

    def scene(self, selection: Selection) -> Scene:
        """The scene, computed now; the same selection always gives the same scene."""
        check_selection(selection, self)
        if selection.attack == NONE or selection.eps == 0:  # the clean image, whatever the other values
            selection = Selection(selection.image, NONE, Fraction(0), self.steps[0])
        elif selection.attack == FGSM:
            selection = Selection(selection.image, FGSM, selection.eps, 1)
        with cpu_threads(self.threads):
            return self._compute(selection)

    def _compute(self, selection: Selection) -> Scene:
        part = slice(selection.image, selection.image + 1)
        x, y = self.split.images[part], self.split.labels[part]
        before, iterates = self._outputs(x), list[Tensor]()
        if selection.attack == NONE:
            return Scene(selection, int(y), x[0], x[0], before, before, before.gate_weights)
        if selection.attack == FGSM:
            attacked = fgsm(self._folded, x, y, eps=selection.eps)
        else:
            objective = self._objectives[selection.attack]

            def recording(model: nn.Module, iterate: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
                iterates.append(iterate.detach().clone())
                return objective.function(model, iterate, target)

            # Without the random start of the tables' attacks, so that the path begins at the clean image.
            settings: dict[str, Any] = {"eps": selection.eps, "step_size": selection.eps / 4, "steps": selection.steps}
            settings |= {"random_start": False, "objective": recording}
            targets = None if objective.targets is None else objective.targets(self._folded.network, x, y)
            attacked = pgd(self._folded, x, y, **settings, targets=targets)
        after = self._outputs(attacked)
        between = []
        if len(iterates) > 1:  # the first iterate is x itself
            with torch.no_grad():
                network: Any = self._folded.network
                between = [network.forward_with_experts(torch.cat(iterates[1:])).gate_weights]
        path = torch.cat([before.gate_weights, *between, after.gate_weights])
        return Scene(selection, int(y), x[0], attacked[0], before, after, path)

    def _outputs(self, x: Images) -> MixtureOutput:
        with eval_mode(self.mixture), torch.no_grad():
            outputs: MixtureOutput = self.mixture.forward_with_experts(x)  # type: ignore[operator]
        return outputs


class Recorded:
    """The scenes of a published gallery: one image of each class, clean, under FGSM and under PGD.

    Args:
        record: the result of a ``gallery`` stage.
        arrays: its arrays: labels, and images, logits, expert logits and gate weights of each attack.
    """

    def __init__(
        self, record: dict[str, Any], arrays: dict[str, Tensor], classes: Sequence[str], *, note: str = "recorded"
    ) -> None:
        self.arrays, self.classes = arrays, classes
        self.labels = arrays["labels"].tolist()
        self.attacks, self.budgets = (NONE, FGSM, PGD), (Fraction(0), Fraction(record["eps"]))
        self.steps = (int(record["pgd_steps"]),)
        self.note = note

    def scene(self, selection: Selection) -> Scene:
        """The scene as recorded; its path has the two ends only, the clean and the attacked image."""
        check_selection(selection, self)
        i, clean = selection.image, self.arrays["clean/images"][selection.image]
        kind = "clean" if selection.attack == NONE or selection.eps == 0 else selection.attack.lower()
        before, after = self._outputs("clean", i), self._outputs(kind, i)
        ends = before.gate_weights if kind == "clean" else torch.cat([before.gate_weights, after.gate_weights])
        return Scene(selection, self.labels[i], clean, self.arrays[f"{kind}/images"][i], before, after, ends)

    def _outputs(self, kind: str, i: int) -> MixtureOutput:
        logits, experts, weights = (
            self.arrays[f"{kind}/{name}"][i : i + 1].float() for name in ("logits", "expert_logits", "gate_weights")
        )
        return MixtureOutput(logits, experts, weights, weights.clamp_min(1e-12).log())


def check_selection(selection: Selection, source: SceneSource) -> None:
    """Raise InputError for a value that the source does not offer."""
    offered: dict[str, tuple[object, Sequence[object]]] = {
        "image": (selection.image, range(len(source.labels))),
        "attack": (selection.attack, source.attacks),
        "eps": (selection.eps, source.budgets),
        "steps": (selection.steps, source.steps),
    }
    for name, (value, values) in offered.items():
        if value not in values:
            texts = [budget_text(v) if isinstance(v, Fraction) else str(v) for v in values]
            raise InputError(f"{name}={value}: choose one of {', '.join(texts)}")


def budgets_of(profile: Profile) -> tuple[Fraction, ...]:
    """Values of eps that can be selected: up to the largest of the profile's sweep, the headline's among them."""
    config = profile.evaluation
    largest = max((*config.eps_sweep, config.eps))
    unit = Fraction(1, 255) if (largest * 255).denominator == 1 else largest / BUDGETS
    return tuple(sorted({config.eps, *(unit * i for i in range(int(largest / unit) + 1))}))


def source_of(study: Study, system: str = "dwf") -> Live | Recorded:
    """Live if weights (computed here or published) and data are available; else the recorded gallery of DWF."""
    try:
        return _live(study, system)
    except MissingError as error:
        gallery = study.get("gallery:dwf")
        note = f"recorded, no live attack: {error}"
        return Recorded(gallery.record["result"], gallery.arrays, study.classes, note=note)


def experts_of(study: Study) -> Live | Recorded:
    """The nine experts of phase 1 with their uniform average; if their weights are not available, those of DWF."""
    try:
        return _live(study, "uniform")
    except MissingError:
        source = source_of(study)
        source.note = f"the experts of DWF, after phase 2; {source.note}"
        return source


def _live(study: Study, system: str) -> Live:
    profile = study.profile
    if not is_here(profile):
        raise MissingError(f"{profile.data.name} is not on this machine")  # an explorer downloads nothing
    mixture = study.load(system)
    split = study.data.test.first(min(IMAGES, len(study.data.test))).to("cpu")
    settings: dict[str, Any] = {"threads": profile.run.threads, "note": f"{system}, seed {study.seed}: attacked live"}
    return Live(mixture.cpu(), split, study.classes, budgets_of(profile), **settings)
