"""Small networks and profiles that tests share, and functions that tests run in worker processes."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from torch import Tensor, nn

from paperlib.config.load import load_profile
from paperlib.config.serialise import to_table
from paperlib.errors import NotFiniteError
from paperlib.log import logger
from paperlib.pipeline.store import Store

Json = dict[str, Any]


class Linear(nn.Module):
    """Logits W x + b of the flattened pixels."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.clone())
        self.bias = nn.Parameter(torch.zeros(len(weight)) if bias is None else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T + self.bias


class ToyNet(nn.Module):
    """Two convolutions with batch norm, for one-channel images."""

    def __init__(self, width: int = 8, classes: int = 10) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )
        self.head = nn.LazyLinear(classes)
        self.head(torch.zeros(1, width * 16))  # for images of 8x8

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).flatten(1))


def micro_table() -> Json:
    """The table of the smoke profile with the smallest sizes: all of its stages take seconds."""
    return shrunk("smoke") | {"name": "micro", "summary": "for tests"}


def shrunk(profile: str) -> Json:
    """The table of a profile with the smallest sizes."""
    table = copy.deepcopy(to_table(load_profile(profile)))
    table["data"] |= {"train": 60, "validation": 20, "test": 40}
    table["model"] |= {"width": 2, "gate_width": 2}
    table["threat"] |= {"fgsm_eps": ["0.02", "0.08"], "pgd_steps": [1, 2]}
    table["phase1"] |= {"epochs": 1, "batch_size": 20, "lr": 0.02, "validation_steps": 1}
    table["phase2"] |= {"epochs": 1, "batch_size": 30, "validation_steps": 1}
    table["evaluation"] |= {"images": 30, "steps": 2, "eps_sweep": ["0.1", "0.2"], "steps_sweep": [1, 2]}
    table["evaluation"] |= {"batch_size": 20}
    table["stress"] |= {"images": 6, "iterations": 1, "queries": 2, "draws": 2, "restarts": 1}
    return table


def toml_text(table: Json) -> str:
    """A profile's table as a TOML file."""
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict) and key != "name"]
    for section, values in table.items():
        if isinstance(values, dict):
            lines += ["", f"[{section}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]
    return "\n".join(lines) + "\n"


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def changed(table: Json, path: str, value: object) -> Json:
    """A copy of ``table`` with ``path`` (such as ``phase1.lr``) set to ``value``."""
    copied = copy.deepcopy(table)
    *sections, key = path.split(".")
    inner = copied
    for section in sections:
        inner = inner[section]
    inner[key] = value
    return copied


def live_in(folder: Path, patched: pytest.MonkeyPatch) -> None:
    """Compute and publish in ``folder``, on the CPU, where repeated computations are equal bit for bit."""
    patched.setenv("PAPERLIB_HOME", str(folder / "home"))
    patched.setenv("PAPERLIB_PUBLISHED", str(folder / "published"))
    patched.setenv("PAPERLIB_PROGRESS", "lines")  # ipykernel is installed with nbval, so a bar would be drawn
    patched.setenv("CUDA_VISIBLE_DEVICES", "")  # for worker processes
    patched.setattr(torch.cuda, "is_available", lambda: False)


def same_state(first: nn.Module, second: nn.Module) -> bool:
    """Equal parameters and buffers, bit for bit."""
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# -- the fields of a configuration that a computation reads -----------------------------------------------------------


def recorded(value: Any, reads: set[str], path: str = "") -> Any:
    """A copy of a configuration that adds the path of every field to ``reads`` when the field is read."""
    if isinstance(value, tuple):
        return tuple(recorded(item, reads, f"{path}{i}.") for i, item in enumerate(value))
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    names = {field.name for field in dataclasses.fields(value)}

    def read(self: Any, name: str) -> Any:
        if name in names:
            reads.add(path + name)
        return object.__getattribute__(self, name)

    kind = type(type(value).__name__, (type(value),), {"__getattribute__": read})
    copied = object.__new__(kind)
    for name in names:
        object.__setattr__(copied, name, recorded(getattr(value, name), reads, f"{path}{name}."))
    return copied


def fields_of(value: Any, path: str = "") -> Iterator[tuple[str, bool]]:
    """The path of every field of a configuration, and whether it has its default value."""
    if isinstance(value, tuple):
        for i, item in enumerate(value):
            yield from fields_of(item, f"{path}{i}.")
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            inner = getattr(value, field.name)
            yield path + field.name, inner == field.default
            yield from fields_of(inner, f"{path}{field.name}.")


# -- functions for worker processes ----------------------------------------------------------------------------------


def die(name: str) -> None:
    """End the process as if the system had killed it."""
    os._exit(9)


def fail(name: str) -> None:
    """Fail as the training of a network that turns NaN."""
    raise NotFiniteError(f"{name}: the loss is nan")


def fail_plain(name: str) -> None:
    """Compute a stage of the study; ``train:plain`` fails as if its network had turned NaN."""
    from paperlib.pipeline import compute

    if name == "train:plain":
        fail(name)
    assert compute._study is not None
    compute.compute_stage(compute._study, name)


def linger(name: str) -> None:
    """Hold a lock until this process ends, and create a file that shows that it is held."""
    marker = Path(os.environ["PAPERLIB_HOME"], name.replace(":", "-"))
    with FileLock(marker.with_suffix(".lock")):
        marker.touch()
        time.sleep(120)


def compute_once(root: Path, log: Path, ready: Sequence[Path]) -> None:
    """Compute an artefact under its lock unless it exists, and write a line to ``log`` for each computation."""
    mine, other = ready
    mine.touch()
    while not other.exists():  # wait until both processes have started
        time.sleep(0.01)
    store = Store(root)
    with store.lock("shared", "key"):
        if store.read("shared", "key") is None:
            with log.open("a", encoding="utf-8") as file:
                file.write("computed\n")
            time.sleep(0.2)  # long enough for the other process to try the lock
            store.write("shared", "key", {"by": os.getpid()}, {"x": torch.zeros(3)})


@contextmanager
def logged(handle: Callable[[str], object]) -> Iterator[None]:
    """Call ``handle`` with each line that the library logs, instead of printing it."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            handle(self.format(record))

    before = logger.handlers[:]
    logger.handlers[:] = [Handler()]
    try:
        yield
    finally:
        logger.handlers[:] = before
