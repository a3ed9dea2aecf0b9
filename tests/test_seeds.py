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


# What draws: functions and methods of tensors, initial weights, layers' functions, and generators of NumPy and Python.
DRAWING = {"rand", "randn", "rand_like", "randn_like", "randint", "randint_like", "randperm", "normal", "multinomial"}
DRAWING |= {"bernoulli", "bernoulli_", "uniform_", "normal_", "random_", "exponential_", "geometric_", "cauchy_"}
DRAWING |= {"log_normal_", "poisson", "binomial", "rrelu", "rrelu_", "gumbel_softmax", "scaled_dot_product_attention"}
DRAWING |= {"dropout", "dropout1d", "dropout2d", "dropout3d", "dropout_", "alpha_dropout", "feature_alpha_dropout"}
DRAWING |= {"native_dropout", "feature_dropout"}
DRAWING |= {"kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_", "trunc_normal_", "orthogonal_"}
DRAWING |= {"sparse_", "reset_parameters"}
DRAWING |= {"default_rng", "RandomState", "permutation", "permuted", "shuffle", "standard_normal", "integers", "choice"}
DRAWING |= {"choices", "sample", "rsample", "sample_n", "getrandbits", "token_bytes", "urandom"}
MODULES = {"random", "secrets", "numpy.random", "torch.distributions", "torch.nn.init"}
WITHOUT_DRAWS = {"numpy.random.Generator", "torch.nn.init.zeros_"}  # a type; no draw

# The only other draws, and why they are safe.
WEIGHTS = "initial weights, on the CPU under fork_rng with a seed of the stage, before a network is moved"
SPLIT = "the split of the data, by NumPy's generator seeded from the profile"
ALLOWED = {
    "models/plain.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "models/resnet.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "models/advmoe.py: torch.nn.init.kaiming_normal_": WEIGHTS,
    "data/dataset.py: numpy.random.default_rng": SPLIT,
    "data/dataset.py: rng.permutation": SPLIT,
}


def dotted(node: ast.AST) -> str:
    """The name of an expression such as ``torch.nn.init``; what stands before its names is a question mark."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def imported(tree: ast.AST) -> dict[str, str]:
    """What the names that a module imports stand for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
            names |= {root: root for alias in node.names if not alias.asname for root in [alias.name.split(".")[0]]}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def draws_in(source: str) -> set[str]:
    """The full names of all that a module's code mentions and that draws, or makes a generator."""
    tree = ast.parse(source)
    names = imported(tree)
    found = set()
    called = {node.func for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Name):
            continue
        root, _, rest = dotted(node).partition(".")
        if root not in names and not rest:
            continue  # a name of the module's own
        full = f"{names.get(root, root)}.{rest}" if rest else names[root]
        owner, _, name = full.rpartition(".")
        makes = full == "torch.Generator" and node in called
        if full not in WITHOUT_DRAWS and not full.startswith("paperlib."):
            found |= {full} if name in DRAWING or owner in MODULES or makes else set()
    return found


PLANTED = {
    "import torch\ntorch.rand(3)": "torch.rand",
    "import torch as t\nt.randn(3)": "torch.randn",
    "from torch import rand\nrand(3)": "torch.rand",
    "from torch import rand as zeros\nzeros(3)": "torch.rand",
    "import torch\ndraw = torch.rand_like": "torch.rand_like",
    "import torch\ntorch.Generator('cuda')": "torch.Generator",
    "from torch import Generator\nGenerator()": "torch.Generator",
    "x.uniform_(-1, 1)": "x.uniform_",
    "x.new_empty(3).normal_()": "?.normal_",
    "(x + 1).bernoulli_(0.5)": "?.bernoulli_",
    "x.random_(3)": "x.random_",
    "from torch import nn\nnn.init.kaiming_normal_(w)": "torch.nn.init.kaiming_normal_",
    "import torch\ntorch.nn.init.uniform_(w)": "torch.nn.init.uniform_",
    "from torch.nn import init\ninit.orthogonal_(w)": "torch.nn.init.orthogonal_",
    "from torch.nn.init import trunc_normal_ as fill\nfill(w)": "torch.nn.init.trunc_normal_",
    "import torch.nn.functional as F\nF.dropout(x)": "torch.nn.functional.dropout",
    "layer.reset_parameters()": "layer.reset_parameters",
    "from torch.distributions import Normal\nNormal(0, 1)": "torch.distributions.Normal",
    "import numpy as np\nnp.random.rand(3)": "numpy.random.rand",
    "import numpy as np\nnp.random.beta(1, 2)": "numpy.random.beta",
    "import numpy\nnumpy.random.default_rng()": "numpy.random.default_rng",
    "from numpy import random as r\nr.beta(1, 2)": "numpy.random.beta",
    "from numpy.random import default_rng\ndefault_rng(3)": "numpy.random.default_rng",
    "rng.standard_normal(3)": "rng.standard_normal",
    "import random\nrandom.random()": "random.random",
    "import random as r\nr.gauss(0, 1)": "random.gauss",
    "from random import Random\nRandom(3)": "random.Random",
    "import os\nos.urandom(3)": "os.urandom",
}


@pytest.mark.parametrize(("source", "name"), PLANTED.items())
def test_a_draw_is_found_whatever_it_is_called(source: str, name: str) -> None:
    assert draws_in(source) == {name}


def test_draws_of_the_package_itself_and_types_are_none() -> None:
    source = """
import numpy as np, torch
from paperlib.seeds import normal, permutation
def f(g: torch.Generator, rng: np.random.Generator) -> None:
    normal((3,), g, x), permutation(3, g, d), torch.random.fork_rng(), torch.nn.init.zeros_(w)
"""
    assert draws_in(source) == set()


def test_nothing_else_in_the_package_draws_or_makes_a_generator() -> None:
    package = paths.ROOT / "paperlib"
    found = {
        f"{path.relative_to(package).as_posix()}: {name}"
        for path in sorted(package.rglob("*.py"))
        if path != package / "seeds.py"
        for name in draws_in(path.read_text(encoding="utf-8"))
    }
    assert found == set(ALLOWED)
