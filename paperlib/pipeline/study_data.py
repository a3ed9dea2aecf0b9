"""The data of a study: the images, their fingerprint, and the facts that networks are built with."""

from __future__ import annotations

import functools

import torch

from paperlib.config.schema import Profile
from paperlib.data import Dataset, check_counts, load_dataset
from paperlib.errors import DataError
from paperlib.pipeline.published import Published
from paperlib.systems.build import DataFacts


class StudyData:
    """The data set of a profile; in replay, the one that the published records belong to."""

    def __init__(self, profile: Profile, device: torch.device, published: Published) -> None:
        self.profile, self.device, self.published = profile, device, published

    @functools.cached_property
    def dataset(self) -> Dataset:
        """The images, on the device. Raises DataError if the published records were computed from other images."""
        data = load_dataset(self.profile, device=self.device)
        if data.fingerprint != self.fingerprint:
            raise DataError(
                f"profile {self.profile.name}: the data here ({data.fingerprint}) are not those of the published "
                f"records ({self.fingerprint}); compute with replay off, or point PAPERLIB_DATA at the same data"
            )
        return data

    @functools.cached_property
    def fingerprint(self) -> str:
        """Identifies the data: the published fingerprint in replay, else that of the images found here."""
        if self.published.index:
            return str(self.published.index["fingerprint"])
        data = load_dataset(self.profile, device=self.device)
        check_counts(self.profile, data)  # before anything is trained
        return data.fingerprint

    @functools.cached_property
    def facts(self) -> DataFacts:
        """The facts that networks are built with; in replay the published ones, so that no images are needed."""
        facts = self.published.index.get("data")
        if facts is None:
            return DataFacts.of(self.dataset)
        return DataFacts(len(facts["classes"]), tuple(facts["shape"]), tuple(facts["mean"]), tuple(facts["std"]))
