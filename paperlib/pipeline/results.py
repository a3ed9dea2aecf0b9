"""Results of a study that exist already: computed on this machine, or published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paperlib.pipeline.graph import Graph
from paperlib.pipeline.published import Published
from paperlib.pipeline.stage import Stage
from paperlib.pipeline.store import Artefact, Store


class Results:
    """Finds the result of a stage by its key.

    Args:
        local: use what this machine has computed.
        published: the published records; empty without replay.
    """

    def __init__(self, graph: Graph, store: Store, published: Published, *, local: bool) -> None:
        self.graph, self.store, self.published, self.local = graph, store, published, local
        self._verified: dict[str, Artefact] = {}

    def computed(self, stage: Stage) -> Artefact | None:
        """The result that this machine has computed, or None."""
        if not self.local:
            return None
        key = self.graph.key(stage)
        # Checksums are verified once for each study: hashing the weights of full-width networks takes seconds.
        if key not in self._verified and (artefact := self.store.read(stage.name, key)):
            self._verified[key] = artefact
        return self._verified.get(key)

    def find(self, name: str, *, weights: bool = False) -> Artefact | None:
        """A result, computed here or published; with ``weights`` only one computed here, which has weights."""
        stage = self.graph.stage(name)
        artefact = self.computed(stage)
        if artefact is None and not weights:
            artefact = self.published.read(name, self.graph.key(stage), self.graph.seed)
        return artefact

    def missing(self, names: Sequence[str], *, weights: bool = False) -> list[str]:
        """What must be computed to have the named stages, as `Graph.missing`."""
        return self.graph.missing(names, lambda name, w: self.find(name, weights=w) is not None, weights=weights)

    def checkpoint(self, stage: str) -> Path:
        """Where an unfinished training run or attack keeps its state."""
        key = self.graph.key(self.graph.stage(stage))
        return self.store.root / f".{stage.replace(':', '-')}-{key}.checkpoint.safetensors"

    def forget(self, names: Sequence[str]) -> int:
        """Delete this machine's results of the named stages, with the states of unfinished runs; returns how many."""
        count = 0
        for name in names:
            count += self.store.delete(name, self.graph.key(self.graph.stage(name)))
            self.checkpoint(name).unlink(missing_ok=True)
        self._verified.clear()
        return count
