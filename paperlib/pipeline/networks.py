"""Networks of a study: built from their architecture, with the weights that were computed here or published."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from paperlib.atomic_files import read_tensors
from paperlib.config.load import command_name
from paperlib.config.plugins import Extension
from paperlib.config.schema import Profile
from paperlib.errors import MissingError
from paperlib.pipeline.results import Results
from paperlib.pipeline.study_data import StudyData
from paperlib.systems.build import Architecture, System, build_network, load_experts, system_of
from paperlib.systems.registry import recipe_for


class Networks:
    """Networks of one profile and seed."""

    def __init__(
        self, profile: Profile, data: StudyData, results: Results, extension: Extension, device: torch.device
    ) -> None:
        self.profile, self.data, self.results = profile, data, results
        self.extension, self.device = extension, device

    def build(self, architecture: Architecture) -> nn.Module:
        """An untrained network, drawn from torch's global generator."""
        return build_network(architecture, self.data.facts, self.extension)

    def system(self, name: str) -> System:
        """Raises MissingError for a system that the profile does not have."""
        return system_of(recipe_for(name, self.profile), self.profile)

    def weights(self, stage: str) -> dict[str, Tensor]:
        """The weights that a training stage computed here. Raises MissingError if there are none."""
        artefact = self.results.computed(self.results.graph.stage(stage))
        if artefact is None or artefact.weights is None:
            seed = self.results.graph.seed
            raise MissingError(
                f"{stage.removeprefix('train:')}: no weights here for profile {self.profile.name}, seed {seed}; make "
                f"them with: python -m paperlib run --profile {command_name(self.profile)} --seeds {seed} "
                f"--stage {stage}"
            )
        return read_tensors(artefact.weights)[0]

    def model(self, system: System | str) -> nn.Module:
        """A trained system in evaluation mode, from weights computed here. Raises MissingError if there are none."""
        return self._with_weights(self.system(system) if isinstance(system, str) else system, self.weights)

    def load(self, system: str) -> nn.Module:
        """As `model`; in replay, published half-precision weights are used where none were computed here."""
        return self._with_weights(self.system(system), self._computed_or_published)

    def _with_weights(self, system: System, weights: Callable[[str], dict[str, Tensor]]) -> nn.Module:
        states = [weights(stage) for stage in system.weights]
        model = self.build(system.architecture)
        if system.per_expert:
            load_experts(model, states)
        else:
            model.load_state_dict(states[0])
        return model.to(self.device).eval()

    def _computed_or_published(self, stage: str) -> dict[str, Tensor]:
        try:
            return self.weights(stage)
        except MissingError:
            seed = self.results.graph.seed
            published = self.results.published.weights(stage.removeprefix("train:"), seed)
            if published is None or self.results.find(stage) is None:  # none, or of another configuration
                raise
        return {name: value.float() if value.is_floating_point() else value for name, value in published.items()}
