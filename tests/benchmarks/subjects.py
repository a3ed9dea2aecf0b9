"""The trained networks and the images of the benchmarks."""

from __future__ import annotations

import functools
from pathlib import Path

from torch import Tensor, nn

from paperlib.config.load import load_profile
from paperlib.config.schema import Profile
from paperlib.errors import DataError, PaperlibError
from paperlib.pipeline.study import Study, load_system

CIFAR = str(Path(__file__).with_name("cifar10.toml"))


@functools.cache
def profile(name: str) -> Profile:
    """The profile ``digits``, or that of CIFAR-10 for benchmarks."""
    return load_profile(CIFAR if name == "cifar10" else name)


def prepare(name: str, systems: tuple[str, ...]) -> str:
    """Train systems without stored weights; returns the reason if the data are missing, else an empty text."""
    study = Study(profile(name), replay=False)
    try:
        for system in systems:
            try:
                load_system(system, profile(name))
            except PaperlibError:
                study.compute([f"train:{system}"], weights=True)
    except DataError as error:
        return str(error)
    return ""


def data_label(name: str) -> str:
    """The name of the data in the results: ``cifar10-jpeg`` if the images are JPEGs."""
    return Study(profile(name), replay=False).data.label


@functools.cache
def subject(name: str, system: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and the test images of its data set, on the device."""
    study = Study(profile(name), replay=False)
    test = study.data.test.to(study.device)
    return load_system(system, profile(name)).to(study.device), test.images, test.labels
