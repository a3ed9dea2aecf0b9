"""Seeds give the same random numbers on every device, and no other module of the package draws random numbers."""

from __future__ import annotations

import ast
from collections.abc import Callable

import pytest
import torch
from simulated_device import simulated_device
from torch import Tensor

from paperlib import paths
from paperlib.seeds import cpu_generator, hash_seed, integers, normal, permutation, uniform

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
    "permutation": (lambda g, device: permutation(20, g, device), lambda g: torch.randperm(20, generator=g)),
}


@pytest.mark.parametrize(("draw", "plain"), DRAWS.values(), ids=DRAWS.keys())
def test_random_numbers_are_the_same_on_every_device(draw: Draw, plain: Callable[[torch.Generator], Tensor]) -> None:
    expected = plain(torch.Generator().manual_seed(5))
    with simulated_device() as simulated:
        for device in (CPU, simulated):
            for generator in (cpu_generator(5), None):  # None: torch's global generator
                torch.manual_seed(5)
                numbers = draw(generator, device)
                assert numbers.device.type == device.type
                assert numbers.dtype == expected.dtype and torch.equal(numbers.cpu(), expected)


def test_a_generator_is_on_the_cpu_whatever_the_default_device() -> None:
    with torch.device("meta"):
        assert cpu_generator(3).device == CPU
        assert cpu_generator(3).initial_seed() == 3


def test_seeds_of_different_parts_differ_and_fit_a_generator() -> None:
    seeds = [hash_seed(seed, epoch, *word) for seed in range(5) for epoch in range(5) for word in ((), ("validation",))]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert hash_seed(1, 2) == hash_seed(1, 2)
    assert hash_seed(1, 12) != hash_seed(11, 2)


# -- no other random numbers -----------------------------------------------------------------------------------------

# Names that draw: functions and methods of tensors, initialisers, dropout, and generators of NumPy.
DRAWING = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "multinomial"}
DRAWING |= {"bernoulli", "bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_"}
DRAWING |= {"log_normal_", "poisson", "binomial", "rrelu", "rrelu_", "gumbel_softmax", "scaled_dot_product_attention"}
DRAWING |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "dropout_", "alpha_dropout", "feature_alpha_dropout"}
DRAWING |= {"native_dropout", "feature_dropout", "sparse_", "reset_parameters"}
DRAWING |= {"kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "trunc_normal_", "orthogonal_"}
DRAWING |= {"default_rng", "RandomState", "permutation", "permuted", "shuffle", "standard_normal", "integers", "choice"}
DRAWING |= {"choices", "rsample", "getrandbits", "token_bytes", "urandom"}
MODULES = {"random", "secrets", "numpy.random", "torch.distributions", "torch.nn.init"}
WITHOUT_DRAWS = {"numpy.random.Generator", "torch.nn.init.zeros_"}  # a type; an initialiser with constants

WEIGHTS = "initial weights, on the CPU under fork_rng with a seed of the stage, before a network is moved"
SPLIT = "the split of the data, by NumPy's generator seeded from the profile"
ALLOWED = {
    "models/backbones.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "models/resnet.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "models/advmoe.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "data/splits.py: numpy.random.default_rng": SPLIT,
    "data/splits.py: rng.permutation": SPLIT,
}


def dotted(node: ast.AST) -> str:
    """The name of an expression such as ``torch.nn.init``; an inner expression that is no name is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imports_of(tree: ast.AST) -> dict[str, str]:
    """The full name of each imported name."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
            names |= {root: root for alias in node.names if not alias.asname for root in [alias.name.split(".")[0]]}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def draws_in(source: str) -> set[str]:
    """The full names in a module's code that draw random numbers or make a generator."""
    tree = ast.parse(source)
    names = imports_of(tree)
    draws = set()
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        root, _, rest = dotted(node).partition(".")
        if root not in names and not rest:
            continue  # defined in this module
        full = f"{names.get(root, root)}.{rest}" if rest else names[root]
        owner, _, name = full.rpartition(".")
        makes_generator = full == "torch.Generator" and node in called
        if full not in WITHOUT_DRAWS and not full.startswith("paperlib."):
            draws |= {full} if name in DRAWING or owner in MODULES or makes_generator else set()
    return draws


EXAMPLES = {
    "import torch\ntorch.rand(3)": "torch.rand",
    "from torch import rand as zeros\nzeros(3)": "torch.rand",
    "import torch\ndraw = torch.rand_like": "torch.rand_like",
    "import torch\ntorch.Generator('cuda')": "torch.Generator",
    "x.uniform_(-1, 1)": "x.uniform_",
    "(x + 1).bernoulli_(0.5)": "?.bernoulli_",
    "from torch import nn\nnn.init.kaiming_normal_(w)": "torch.nn.init.kaiming_normal_",
    "import torch.nn.functional as F\nF.dropout(x)": "torch.nn.functional.dropout",
    "from torch.distributions import Normal\nNormal(0, 1)": "torch.distributions.Normal",
    "import numpy as np\nnp.random.beta(1, 2)": "numpy.random.beta",
    "from numpy import random as r\nr.beta(1, 2)": "numpy.random.beta",
    "rng.standard_normal(3)": "rng.standard_normal",
    "from random import Random\nRandom(3)": "random.Random",
}


def test_random_numbers_are_recognised_in_code() -> None:
    assert {source: draws_in(source) for source in EXAMPLES} == {source: {name} for source, name in EXAMPLES.items()}
    source = """
import numpy as np, torch
from paperlib.seeds import normal, permutation
def f(g: torch.Generator, rng: np.random.Generator) -> None:
    normal((3,), g, x), permutation(3, g, d), torch.random.fork_rng(), torch.nn.init.zeros_(w)
"""
    assert draws_in(source) == set()


def test_no_other_module_draws_random_numbers_or_makes_a_generator() -> None:
    package = paths.ROOT / "paperlib"
    draws = {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in sorted(package.rglob("*.py"))
        if path != package / "seeds.py"
        for name in draws_in(path.read_text(encoding="utf-8"))
    }
    assert draws == set(ALLOWED)
