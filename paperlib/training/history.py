"""The history of a training run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Epoch:
    """Loss and validation accuracies of one epoch; accuracies are fractions."""

    epoch: int
    loss: float
    steps: float  # mean attack iterations per batch
    clean: float
    fgsm: float
    pgd: float
    collapsed: bool  # single-step training, and FGSM accuracy exceeds PGD accuracy by more than COLLAPSE_GAP
    seconds: float


@dataclass
class History:
    """All epochs of one training run."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = -1  # epoch with the best validation accuracy, whose weights are used
    passes: int = 0  # forward passes of single images, for attacks and losses

    def table(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {"epochs": [vars(e) for e in self.epochs], "best": self.best, "passes": self.passes}

    @classmethod
    def from_table(cls, table: dict[str, Any]) -> History:
        return cls([Epoch(**e) for e in table["epochs"]], table["best"], table["passes"])


def epoch_line(e: Epoch, epochs: int) -> str:
    """The line of the log for an epoch, of ``epochs`` in total."""
    warning = f"  FGSM above PGD by {e.fgsm - e.pgd:.0%}: catastrophic overfitting?" if e.collapsed else ""
    return (
        f"epoch {e.epoch + 1:>3}/{epochs}  loss {e.loss:.3f}  validation clean {e.clean:.1%} "
        f"fgsm {e.fgsm:.1%} pgd {e.pgd:.1%}  {e.seconds:.1f} s{warning}"
    )
