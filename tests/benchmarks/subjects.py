"""What the benchmarks attack: trained networks and the images they are attacked on."""

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
    """``digits``, or CIFAR-10 at the size of the benchmark."""
    return load_profile(CIFAR if name == "cifar10" else name)


def prepare(name: str, systems: tuple[str, ...]) -> str:
    """Train what is not there yet; returns why that cannot be done, or nothing."""
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
    """What results are called after: ``cifar10-jpeg`` where the images are JPEGs."""
    return Study(profile(name), replay=False).data.label


@functools.cache
def subject(name: str, system: str) -> tuple[nn.Module, Tensor, Tensor]:
    """A trained network and the test images of its data set, on the device."""
    study = Study(profile(name), replay=False)
    test = study.data.test.to(study.device)
    return load_system(system, profile(name)).to(study.device), test.images, test.labels
