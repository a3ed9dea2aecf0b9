"""Seeds decide draws whatever the device, and every draw of the package comes through one door."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest
import torch
from simulated_device import simulated_device
from torch import Tensor

from paperlib import paths
from paperlib.seeds import cpu_generator, integers, normal, permutation, uniform

CPU = torch.device("cpu")
Draw = Callable[[torch.Generator | None, torch.device], Tensor]
DRAWS: dict[str, tuple[Draw, Callable[[torch.Generator], Tensor]]] = {
    "uniform": (
        lambda g, device: uniform((7, 3), g, torch.empty(0, device=device)),
        lambda g: torch.rand(7, 3, generator=g),
    ),
    "uniform doubles": (
        lambda g, device: uniform((7, 3), g, torch.empty(0, device=device, dtype=torch.float64)),
        lambda g: torch.rand(7, 3, generator=g, dtype=torch.float64),
    ),
    "normal": (
        lambda g, device: normal((7, 3), g, torch.empty(0, device=device)),
        lambda g: torch.randn(7, 3, generator=g),
    ),
    "integers": (lambda g, device: integers(9, (7, 3), g, device), lambda g: torch.randint(9, (7, 3), generator=g)),
    "a permutation": (lambda g, device: permutation(20, g, device), lambda g: torch.randperm(20, generator=g)),
}


@pytest.mark.parametrize(("draw", "plain"), DRAWS.values(), ids=DRAWS.keys())
@pytest.mark.parametrize("given", [True, False], ids=["a generator", "the global generator"])
def test_a_draw_is_the_same_on_every_device(
    draw: Draw, plain: Callable[[torch.Generator], Tensor], given: bool
) -> None:
    wanted = plain(torch.Generator().manual_seed(5))
    with simulated_device() as device:
        for where in (CPU, device):
            torch.manual_seed(5)
            found = draw(cpu_generator(5) if given else None, where)
            assert found.device.type == where.type
            assert found.dtype == wanted.dtype and torch.equal(found.cpu(), wanted)


def test_a_generator_lives_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert cpu_generator(3).device == CPU
        assert cpu_generator(3).initial_seed() == 3


# What draws, or makes what draws. Initial weights are drawn on the CPU before a network is moved.
DRAWING = {"Generator", "rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal"}
DRAWING |= {"bernoulli", "multinomial"}


def test_nothing_else_in_the_package_draws_or_makes_a_generator() -> None:
    found = []
    for path in sorted((paths.ROOT / "paperlib").rglob("*.py")):
        if path.name == "seeds.py":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in DRAWING:
                owner = node.func.value
                if isinstance(owner, ast.Name) and owner.id == "torch":
                    found.append(f"{path.name}:{node.lineno} torch.{node.func.attr}")
    assert found == []
