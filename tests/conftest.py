"""Shared fixtures. All tests are seeded and use one thread, so that sums round in the same way each time."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import nn
from toys import Linear, ToyNet, live_in, logged, micro_table

from paperlib import Dataset, Profile, load_dataset, load_profile
from paperlib.config.schema import parse_profile

torch.set_num_threads(1)
os.environ["PAPERLIB_PROGRESS"] = "lines"  # ipykernel is installed with nbval, so bars would be drawn
# The same examples in each run, and no failure because the machine is busy.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A folder for fixtures of the whole session, so that they neither read nor write the results of this clone."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PAPERLIB_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def home_of_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder for each test, so that no test depends on another one or on the results of this clone."""
    monkeypatch.setenv("PAPERLIB_HOME", str(tmp_path / "home"))


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    """Close all figures after each test, because matplotlib warns when there are more than twenty."""
    yield
    if pyplot := sys.modules.get("matplotlib.pyplot"):
        pyplot.close("all")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A new folder for everything that is computed or published; computations run on the CPU."""
    live_in(tmp_path, monkeypatch)
    return tmp_path


@pytest.fixture(scope="session")
def micro() -> Profile:
    return parse_profile(micro_table())


@pytest.fixture(scope="session")
def digits() -> Dataset:
    """The data of the smoke profile: 240, 50 and 80 digits."""
    return load_dataset(load_profile("smoke"))


@pytest.fixture
def linear() -> Linear:
    """Three classes of one-channel 2x2 images."""
    generator = torch.Generator().manual_seed(3)
    return Linear(torch.randn(3, 4, generator=generator), torch.randn(3, generator=generator))


@pytest.fixture(scope="session")
def toy(digits: Dataset) -> ToyNet:
    """A small network trained on the smoke digits. Tests must not change it."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = ToyNet()
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(40):
            for index in torch.randperm(len(digits.train)).split(60):
                loss = nn.functional.cross_entropy(model(digits.train.images[index]), digits.train.labels[index])
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
    return model.eval()


@pytest.fixture
def log_lines() -> Iterator[list[str]]:
    """The lines that the library logs during the test."""
    lines: list[str] = []
    with logged(lines.append):
        yield lines
