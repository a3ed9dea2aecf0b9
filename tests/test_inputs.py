"""What comes in: every kind of model, images and labels at every entry point gives the plain result or one sentence."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from toys import Linear, same_state

from paperlib.acceleration import Folded, fold
from paperlib.arguments import as_images
from paperlib.attacks import OBJECTIVES as KNOWN_OBJECTIVES
from paperlib.attacks import attack, autoattack, fgsm, misclassified, pgd, random_noise, transfer_objective
from paperlib.data import Split
from paperlib.errors import InputError, NotFiniteError, PaperlibError
from paperlib.evaluation import audit
from paperlib.evaluation.auditing.context import AuditBudget
from paperlib.evaluation.robustness import evaluate, worst_case
from paperlib.evaluation.specs import CLEAN, AttackSpec, autoattack_spec, noise_spec, pgd_spec, square_spec
from paperlib.models import Mixture, MixtureOutput, UniformGate
from paperlib.models.adapters import Adapted

EPS, CLASSES = "16/256", 10
TINY = AuditBudget(steps=2, restarts=1, draws=2, iterations=1, queries=2, autoattack=False)
WITH_AUTOATTACK = replace(TINY, autoattack=True)
Result = dict[str, Any]


class Net(nn.Module):
    """A small network with batch norm, of which TorchScript and torch.export can make a module."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Through(nn.Module):
    """A network inside a function of the network and the images."""

    def __init__(self, model: nn.Module, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.model, self.function = model, function
        self.training = model.training

    def forward(self, x: Tensor) -> Any:
        return self.function(self.model, x)


def seeded(build: Callable[[], nn.Module], seed: int = 5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build().eval()


NET = seeded(Net)
# Multiples of 1/256: every float dtype holds them exactly.
X = torch.randint(0, 257, (4, 1, 8, 8), generator=torch.Generator().manual_seed(1)).float() / 256
with torch.no_grad():
    Y = NET(X).argmax(dim=1)


# -- the entry points --------------------------------------------------------------------------------------------------


def rng() -> torch.Generator:
    return torch.Generator().manual_seed(3)


WALK: dict[str, Any] = {"eps": EPS, "step_size": "4/256", "steps": 3}
CUT: dict[str, Any] = {"eps": EPS, "iterations": 2, "queries": 4}


def _attack(model: Any, x: Any, y: Any, **how: Any) -> Result:
    done = attack(model, x, y, **WALK, **({"generator": rng()} | how))
    return {"images": done.images, "fooled": done.fooled, "first": done.first_success}


def _evaluate(model: Any, x: Any, y: Any, **how: Any) -> Result:
    found = evaluate(model, Split(x, y), **({"spec": pgd_spec(EPS, 3, "4/256"), "seed": 3} | how))
    return {"correct": found.correct, "first": found.first_success}


def _autoattack(model: Any, x: Any, y: Any, **how: Any) -> Result:
    done = autoattack(model, x, y, **CUT, **how)
    return {"images": done.images, "by": done.by}


def _random_noise(model: Any, x: Any, y: Any, **how: Any) -> Result:
    done = random_noise(model, x, y, eps=EPS, draws=3, **({"generator": rng()} | how))
    return {"images": done.images, "fooled": done.fooled, "first": done.first_success}


def _audit(model: Any, x: Any, y: Any, **how: Any) -> Result:
    report = audit(model, x, y, EPS, **({"audit_budget": WITH_AUTOATTACK} | how))
    return {"attacks": report.attacks, "worst": report.worst, "fired": report.fired}


ENTRIES: dict[str, Callable[..., Result]] = {
    "pgd": lambda model, x, y: {"images": pgd(model, x, y, **WALK, generator=rng())},
    "fgsm": lambda model, x, y: {"images": fgsm(model, x, y, eps=EPS)},
    "attack": _attack,
    "evaluate": _evaluate,
    "autoattack": _autoattack,
    "random_noise": _random_noise,
    "audit": _audit,
}


def alike(found: Result, expected: Result) -> bool:
    """Equal outcomes, and images that differ by rounding at most."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and a.is_floating_point():
            return torch.allclose(a.float(), b, rtol=0, atol=1e-6)
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)


@dataclass
class Kind:
    """One kind of input; what is not named is the plain one."""

    model: Any = NET
    x: Any = field(default_factory=X.clone)
    y: Any = field(default_factory=Y.clone)
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    plain: tuple[nn.Module, Tensor, Tensor] = (NET, X, Y)  # what has the same result
    refused: str = ""  # the words it is refused with, if it is
    error: type[PaperlibError] = InputError


# -- the kinds ---------------------------------------------------------------------------------------------------------


def _edited(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.sub_(0.25))


def _edited_without_gradient(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.sub_(0.25)
    return model(x)


def _edited_through_data(model: nn.Module, x: Tensor) -> Tensor:
    x.data.sub_(0.25)
    return model(x)


def _edited_while_no_gradient_is_recorded(model: nn.Module, x: Tensor) -> Tensor:
    return model(x - 0.25 if torch.is_grad_enabled() else x.sub_(0.25))


def _edited_while_a_gradient_is_recorded(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.sub_(0.25) if torch.is_grad_enabled() else x - 0.25)


def _edited_from(images: int) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: model(x.sub_(0.25) if len(x) >= images else x - 0.25)


def _edited_from_three_while_no_gradient_is_recorded(model: nn.Module, x: Tensor) -> Tensor:
    return _edited_while_no_gradient_is_recorded(model, x) if len(x) > 2 else model(x - 0.25)


# Each gives the logits of images that are darker by 0.25.
EDITS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "its input": _edited,
    "it without a gradient": _edited_without_gradient,
    "it through .data": _edited_through_data,
    "it while no gradient is recorded": _edited_while_no_gradient_is_recorded,
    "it while a gradient is recorded": _edited_while_a_gradient_is_recorded,
    "batches only": _edited_from(2),
    "larger batches only": _edited_from(3),
    "larger batches while no gradient is recorded": _edited_from_three_while_no_gradient_is_recorded,
}


def _shifted() -> tuple[nn.Module, Tensor, Tensor]:
    model = Through(NET, lambda model, x: model(x - 0.25))
    with torch.no_grad():
        return model, X, model(X).argmax(dim=1)


def _under_inference_mode(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _quiet(build: Callable[[], nn.Module]) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        return build()


def _exported(dynamic: bool) -> nn.Module:
    shapes: Any = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    return torch.export.export(copy.deepcopy(NET), (X,), dynamic_shapes=shapes).module()


@contextlib.contextmanager
def _float64_by_default() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def _above_one() -> Tensor:
    x = X.clone()
    x[2, 0, 3, 3] = 1.0000001
    return x


def _plain_of_above_one() -> tuple[nn.Module, Tensor, Tensor]:
    return NET, _above_one().clamp(0, 1), Y


def _with_pixel(value: float) -> Tensor:
    x = X.clone()
    x[2, 0, 3, 3] = value
    return x


def _double() -> nn.Module:
    return copy.deepcopy(NET).double()


def of_same_result() -> dict[str, Callable[[], Kind]]:
    def edits(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], Kind]:
        return lambda: Kind(Through(NET, function), y=_shifted()[2], plain=_shifted())

    def logits(dtype: torch.dtype) -> Callable[[], Kind]:
        rounded = Through(NET, lambda model, x: model(x).to(dtype).float())
        return lambda: Kind(Through(NET, lambda model, x: model(x).to(dtype)), plain=(rounded, X, Y))

    one = X[:1].expand(4, 1, 8, 8)
    labels = Y[:1].expand(4)
    return {
        **{f"a model that edits {what}": edits(function) for what, function in EDITS.items()},
        **{f"logits of {dtype}": logits(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        "a traced model": lambda: Kind(_quiet(lambda: torch.jit.trace(NET, X))),
        "a scripted model": lambda: Kind(_quiet(lambda: torch.jit.script(NET))),
        "a frozen model": lambda: Kind(_quiet(lambda: torch.jit.freeze(torch.jit.script(NET)))),
        "an exported model": lambda: Kind(_exported(dynamic=True)),
        "weights of float64": lambda: Kind(_double()),
        "permuted images": lambda: Kind(x=X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
        "transposed images": lambda: Kind(x=X.transpose(2, 3).contiguous().transpose(2, 3)),
        "every other image": lambda: Kind(x=torch.stack([X, X], dim=1).flatten(0, 1)[::2]),
        "expanded images": lambda: Kind(x=one, y=labels, plain=(NET, one.contiguous(), labels.contiguous())),
        "images that want a gradient": lambda: Kind(x=X.clone().requires_grad_()),
        "images made under inference_mode": lambda: Kind(x=_under_inference_mode(X), y=_under_inference_mode(Y)),
        "everything under inference_mode": lambda: Kind(around=torch.inference_mode),
        "everything under no_grad": lambda: Kind(around=torch.no_grad),
        "float64 by default": lambda: Kind(around=_float64_by_default),
        "float16 images": lambda: Kind(x=X.half()),
        "bfloat16 images": lambda: Kind(x=X.bfloat16()),
        "float64 images": lambda: Kind(x=X.double()),
        "float64 images from numpy": lambda: Kind(x=torch.from_numpy(X.numpy().astype(np.float64))),
        "a pixel a rounding above 1": lambda: Kind(x=_above_one(), plain=_plain_of_above_one()),
        "expanded labels": lambda: Kind(x=X, y=Y[:, None].expand(4, 3)[:, 1]),
    }


def _raises(error: Exception) -> Tensor:
    raise error


def of_refusals() -> dict[str, Callable[[], Kind]]:
    def answers(function: Callable[[Tensor], Any], words: str) -> Callable[[], Kind]:
        return lambda: Kind(Through(NET, lambda model, x: function(model(x))), refused=words)

    def images(x: Any, words: str, error: type[PaperlibError] = InputError) -> Callable[[], Kind]:
        return lambda: Kind(x=x, refused=words, error=error)

    def labels(y: Any, words: str) -> Callable[[], Kind]:
        return lambda: Kind(y=y, refused=words)

    def batches(function: Callable[[Tensor], Any], words: str) -> Callable[[], Kind]:
        """One image is answered by logits, several by something else."""
        return answers(lambda z: function(z) if len(z) > 1 else z, words)

    def model(function: Callable[[nn.Module, Tensor], Any], words: str) -> Callable[[], Kind]:
        return lambda: Kind(Through(NET, function), refused=words)

    return {
        "a tuple for batches": batches(lambda z: (z, z), "returned a tuple; expected a float tensor of logits"),
        "a model that raises for batches": batches(
            lambda z: {}["batch"], r"fails on 2 images of shape \(2, 1, 8, 8\), .*KeyError: 'batch'"
        ),
        "a model that speaks of memory": model(
            lambda model, x: _raises(RuntimeError("unsupported memory format option")),
            "fails on one image of shape .* unsupported memory format option",
        ),
        "sparse logits": answers(lambda z: z.to_sparse(), "returned a torch.sparse_coo tensor; expected a float"),
        "logits on meta": answers(lambda z: z.to("meta"), "returned a tensor on the meta device, which holds no"),
        "weights on meta": lambda: Kind(Net().eval().to("meta"), refused="meta"),
        "images on meta": images(X.to("meta"), "images: expected a float tensor .* got a tensor on the meta device"),
        "nested images": images(
            torch.nested.nested_tensor([X[0], X[1, :, :4]]), "images: .* got a nested tensor; resize"
        ),
        "sparse labels": labels(Y.to_sparse(), "labels: expected an int64 tensor .* got a torch.sparse_coo tensor"),
        "labels on meta": labels(Y.to("meta"), "labels: .* got a tensor on the meta device"),
        "a tuple": answers(lambda z: (z, z), "returned a tuple; expected a float tensor of logits"),
        "a list": answers(lambda z: [z], "returned a list; expected a float tensor of logits"),
        "a dict": answers(lambda z: {"logits": z}, "returned a dict; expected a float tensor of logits"),
        "an object": answers(lambda z: SimpleNamespace(logits=z), "returned a SimpleNamespace; expected a float"),
        "a user's dict": answers(lambda z: UserDict(logits=z), "returned a UserDict; expected a float tensor"),
        "an array": answers(lambda z: z.detach().numpy(), "returned a ndarray; expected a float tensor of logits"),
        "nothing": answers(lambda z: None, "returned a NoneType; expected a float tensor of logits"),
        "classes": answers(lambda z: z.argmax(dim=1), r"returned shape|returned a torch.int64|one image alone"),
        "integers": answers(lambda z: z.long(), "returned a torch.int64 tensor; expected a float tensor of logits"),
        "a number": answers(lambda z: z.mean(), r"returned shape \(\) for 4 images"),
        "maps": answers(lambda z: z[:, :, None], r"returned shape \(4, 10, 1\) for 4 images"),
        "one row": answers(lambda z: z[:1], r"returned shape \(1, 10\) for 2 images"),
        "one logit": answers(lambda z: z[:, :1], "returned 1 logit per image; expected one per class"),
        "a row squeezed": answers(lambda z: z.squeeze(), r"one image alone gives \(10,\), expected \(1, 10\)"),
        "NaN": lambda: Kind(
            Through(NET, lambda model, x: model(x) * torch.nan), refused="NaN or infinity", error=NotFiniteError
        ),
        "a function": lambda: Kind(NET.forward, refused="expected a torch.nn.Module, got a method"),
        "a lambda": lambda: Kind(lambda x: NET(x), refused="expected a torch.nn.Module, got a function"),
        "no model": lambda: Kind(None, refused="expected a torch.nn.Module, got a NoneType"),
        "a model that raises": lambda: Kind(
            Through(NET, lambda model, x: model(x[:, :, :4])), refused=r"fails on one image of shape \(1, 1, 8, 8\)"
        ),
        "a model exported for one batch size": lambda: Kind(
            _exported(dynamic=False), refused="fails on one image of shape .* Guard failed"
        ),
        "images in an array": images(X.numpy(), "images: expected a float tensor .* got a ndarray"),
        "images in a list": images(list(X), "images: expected a float tensor .* got a list"),
        "images as bytes": images((X * 255).byte(), "images: .* divide bytes by 255"),
        "sparse images": images(X.to_sparse(), "images: expected a float tensor .* got a torch.sparse_coo tensor"),
        "images without channels": images(X[:, 0], r"images: expected shape \(N, C, H, W\)"),
        "pixels to 255": images(X * 255, "images: .* divide by 255"),
        "a pixel far above 1": images(_with_pixel(1.00001), r"pixels span \[0\.\d+, 1\.00001\d*\] but must lie"),
        "a pixel just above 1": images(_with_pixel(1.0000025), r"pixels span \[0\.\d+, 1\.000002\d\] but must lie"),
        "a pixel of NaN": images(_with_pixel(torch.nan), "images: holds NaN", NotFiniteError),
        "labels of int32": labels(Y.int(), "labels: expected an int64 tensor"),
        "labels in a list": labels(Y.tolist(), "labels: expected an int64 tensor"),
        "too few labels": labels(Y[:3], r"labels: shape \(3,\) does not match 4 images"),
        "a class too many": labels(torch.full((4,), CLASSES), "labels: 10 to 10 are out of range"),
    }


# -- the table ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def untouched(kind: Kind) -> Iterator[None]:
    """Whatever is handed in, and the state of torch, is the same afterwards."""
    given = {
        name: value
        for name, value in (("x", kind.x), ("y", kind.y))
        if isinstance(value, Tensor) and not (value.is_meta or value.is_nested)
    }
    before = {name: value.detach().clone() for name, value in given.items()}
    model = kind.model if isinstance(kind.model, nn.Module) else NET
    state = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    modes = [getattr(module, "training", None) for module in model.modules()]
    asking = [p.requires_grad for p in model.parameters()]
    chance, default = torch.get_rng_state(), torch.get_default_dtype()
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield
    for name, value in given.items():
        there = value.to_dense() if value.layout != torch.strided else value.detach()
        wanted = before[name].to_dense() if value.layout != torch.strided else before[name]
        assert torch.equal(torch.nan_to_num(there.double()), torch.nan_to_num(wanted.double())), name
        assert value.grad is None if value.is_leaf else True
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert [getattr(module, "training", None) for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == asking
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), chance)
    assert torch.get_default_dtype() == default
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (gradients, inference)


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", of_same_result())
def test_what_is_taken_has_the_result_of_its_plain_form(kind: str, entry: str) -> None:
    given = of_same_result()[kind]()
    expected = ENTRIES[entry](*given.plain)
    with given.around(), untouched(given):
        found = ENTRIES[entry](given.model, given.x, given.y)
    assert alike(found, expected), (found, expected)
    for value in found.values():
        assert not isinstance(value, Tensor) or not (value.requires_grad or value.is_inference())


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("kind", of_refusals())
def test_what_is_refused_is_refused_in_the_same_words_everywhere(kind: str, entry: str) -> None:
    given = of_refusals()[kind]()
    if kind == "NaN" and entry == "audit":  # there it is a finding
        assert "finite" in ENTRIES[entry](given.model, given.x, given.y)["fired"]
        return
    with untouched(given), pytest.raises(given.error, match=given.refused) as caught:
        ENTRIES[entry](given.model, given.x, given.y)
    assert "\n" not in str(caught.value)


# -- the gradient ------------------------------------------------------------------------------------------------------

WITHOUT_GRADIENT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "under no_grad": torch.no_grad()(lambda model, x: model(x)),
    "of detached pixels": lambda model, x: model(x.detach()),
    "with detached logits": lambda model, x: model(x).detach(),
    "of whole numbers": lambda model, x: model((x * 255).long().float() / 255),
    "under inference_mode": torch.inference_mode()(lambda model, x: model(x)),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("function", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT.keys())
def test_a_model_without_a_gradient_is_refused_by_gradient_attacks_and_found_out_by_the_audit(
    function: Callable[[nn.Module, Tensor], Tensor], entry: str
) -> None:
    given = Kind(Through(NET, function))
    if entry == "random_noise":
        assert ENTRIES[entry](given.model, given.x, given.y)["fooled"].shape == (4,)
    elif entry == "audit":
        assert "gradients" in ENTRIES[entry](given.model, given.x, given.y)["fired"]
    else:
        with untouched(given), pytest.raises(InputError, match="no gradient with respect to the pixels") as caught:
            ENTRIES[entry](given.model, given.x, given.y)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", [CLEAN, noise_spec(EPS, 2), square_spec(EPS, 3)], ids=lambda spec: spec.kind)
def test_what_asks_for_no_gradient_takes_a_model_without(spec: Any) -> None:
    model = Through(NET, WITHOUT_GRADIENT["of detached pixels"])
    found = evaluate(model, Split(X, Y), spec, seed=3)
    assert torch.equal(found.correct, evaluate(NET, Split(X, Y), spec, seed=3).correct)


def test_a_folded_model_without_a_gradient_is_refused_too() -> None:
    model = Through(NET, WITHOUT_GRADIENT["of detached pixels"])
    for call in (ENTRIES[name] for name in ("pgd", "fgsm", "attack", "evaluate", "autoattack")):
        with pytest.raises(InputError, match="no gradient with respect to the pixels"):
            call(fold(model, X), X, Y)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "2"])
@pytest.mark.parametrize("entry", ["attack", "evaluate", "autoattack", "random_noise", "audit"])
def test_a_batch_of_no_images_is_refused(entry: str, value: object) -> None:
    with pytest.raises(InputError, match=r"^batch_size=.*at least 1"):
        ENTRIES[entry](NET, X, Y, batch_size=value)


@pytest.mark.parametrize("entry", ["attack", "evaluate", "autoattack", "random_noise", "audit"])
def test_a_batch_size_may_be_a_whole_number_of_numpy(entry: str) -> None:
    assert alike(ENTRIES[entry](NET, X, Y, batch_size=np.int64(4)), ENTRIES[entry](NET, X, Y, batch_size=4))


OBJECTIVES: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "loss alone": lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none"),
    "two images' loss": lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none")[:2],
    "mean loss": lambda model, x, y: nn.functional.cross_entropy(model(x), y),
    "one of one": lambda model, x, y: (model(x).sum(dim=1),),
    "a number": lambda model, x, y: (model(x), 1.0),
    "nothing": lambda model, x, y: None,
}


@pytest.mark.parametrize("objective", OBJECTIVES.values(), ids=OBJECTIVES.keys())
def test_an_objective_that_returns_something_else_is_refused(objective: Any) -> None:
    for call in (
        lambda: pgd(NET, X, Y, **WALK, objective=objective),
        lambda: fgsm(NET, X, Y, eps=EPS, objective=objective),
        lambda: attack(NET, X, Y, **WALK, objective=objective),
    ):
        with pytest.raises(InputError, match=r"^objective: returned .* a pair of tensors"):
            call()


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"start": X[:3]}, r"start: expected images of shape \(4, 1, 8, 8\), got \(3, 1, 8, 8\)"),
        ({"start": X.numpy()}, "start: .* got a ndarray"),
        ({"targets": Y[:3]}, r"targets: .* a row for each of 4 images, got \(3,\)"),
        ({"targets": Y.tolist()}, "targets: .* got a list"),
    ],
)
def test_a_start_or_targets_of_other_images_are_refused(setting: dict[str, Any], words: str) -> None:
    for call in (pgd, attack):
        with pytest.raises(InputError, match=words):
            call(NET, X, Y, **WALK, **setting)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_start_may_have_another_dtype(dtype: torch.dtype) -> None:
    start = X.flip(0)
    expected = pgd(NET, X, Y, **WALK, start=start)
    assert torch.equal(pgd(NET, X, Y, **WALK, start=start.to(dtype)), expected)
    assert torch.equal(pgd(NET, X, Y, **WALK, start=_under_inference_mode(start)), expected)


def test_images_and_weights_of_float64_are_attacked_in_float64() -> None:
    for entry in ("pgd", "fgsm", "attack", "random_noise"):
        found = ENTRIES[entry](_double(), X.double(), Y)["images"]
        assert found.dtype == torch.float64
        assert float((found - X).abs().max()) <= 16 / 256 + 1e-12


def test_the_worst_case_takes_models_of_float64_to_autoattack() -> None:
    specs = [CLEAN, pgd_spec("1/256", 1, "1/256"), autoattack_spec(EPS, 2, 4)]
    found = worst_case(_double(), Split(X.double(), Y), specs, seed=0)
    assert found.correct.shape == (4,)


@pytest.mark.parametrize("given", [(X, Y), None, X], ids=["pair", "none", "tensor"])
def test_what_is_no_split_is_refused(given: Any) -> None:
    for call in (lambda: evaluate(NET, given, CLEAN, seed=0), lambda: worst_case(NET, given, [CLEAN], seed=0)):
        with pytest.raises(InputError, match="expected images and labels as a Split, got a"):
            call()


OF_ANOTHER_TYPE: dict[str, tuple[Callable[[], object], str]] = {
    "generator of pgd": (lambda: pgd(NET, X, Y, **WALK, generator=3), "generator: .* got a int"),  # type: ignore[arg-type]
    "generator of attack": (lambda: _attack(NET, X, Y, generator=3), "generator: .* got a int"),
    "generator of noise": (lambda: _random_noise(NET, X, Y, generator="3"), "generator: .* got a str"),
    "objective of pgd": (lambda: pgd(NET, X, Y, **WALK, objective=None), "objective: .* got a NoneType"),  # type: ignore[arg-type]
    "objective of attack": (lambda: _attack(NET, X, Y, objective="dlr"), "objective: .* got a str"),
    "progress of attack": (lambda: _attack(NET, X, Y, progress=None), "progress: .* got a NoneType"),
    "progress of noise": (lambda: _random_noise(NET, X, Y, progress=True), "progress: .* got a bool"),
    "progress of autoattack": (lambda: _autoattack(NET, X, Y, progress=1), "progress: .* got a int"),
    "seed of autoattack": (lambda: _autoattack(NET, X, Y, seed=0.5), "seed: expected a whole number, got a float"),
    "attacks of autoattack": (lambda: _autoattack(NET, X, Y, attacks=4), "attacks: .* got a int"),
    "state of autoattack": (lambda: _autoattack(NET, X, Y, state=True), "state: expected a path or None, got a bool"),
    "spec of evaluate": (lambda: _evaluate(NET, X, Y, spec="pgd"), "spec: expected an AttackSpec, .* got a str"),
    "kind of a spec": (lambda: _evaluate(NET, X, Y, spec=AttackSpec("cw")), "spec: unknown kind 'cw'; known: clean, "),
    "seed of evaluate": (lambda: _evaluate(NET, X, Y, seed=None), "seed: .* got a NoneType"),
    "aims of evaluate": (lambda: _evaluate(NET, X, Y, objectives="dlr"), "aims: .* got a str"),
    "specs of the worst case": (lambda: worst_case(NET, Split(X, Y), CLEAN, seed=0), "specs: .* got a AttackSpec"),  # type: ignore[arg-type]
    "a spec of the worst case": (
        lambda: worst_case(NET, Split(X, Y), [CLEAN, "pgd"], seed=0),  # type: ignore[list-item]
        "spec: .* got a str",
    ),
    "seed of audit": (lambda: _audit(NET, X, Y, seed="0"), "seed: .* got a str"),
    "effort of audit": (lambda: _audit(NET, X, Y, audit_budget=3), "audit_budget: .* got a int"),
    "benign of audit": (lambda: _audit(NET, X, Y, benign="expert-0"), "benign: .* got a str"),
    "known of audit": (lambda: _audit(NET, X, Y, outcomes=[Y]), "outcomes: .* got a list"),
}


@pytest.mark.parametrize(("call", "words"), OF_ANOTHER_TYPE.values(), ids=OF_ANOTHER_TYPE.keys())
def test_a_setting_of_another_type_is_refused_by_name(call: Callable[[], object], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        call()


def test_settings_whose_meaning_is_clear_are_taken(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    found = _autoattack(NET, X, Y, attacks="square", seed=np.int64(2), state=str(state))
    assert alike(found, _autoattack(NET, X, Y, attacks=("square",), seed=2)) and state.exists()
    assert alike(_evaluate(NET, X, Y, seed=np.int64(3)), _evaluate(NET, X, Y))
    assert alike(_audit(NET, X, Y, seed=np.int64(1)), _audit(NET, X, Y, seed=1))


# -- what an audit is given besides ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claimed",
    [torch.tensor(0.25), torch.tensor([0.25]), torch.tensor(0.25).double(), np.float32(0.25), np.array(0.25)],
    ids=repr,
)
def test_a_claim_may_be_any_one_number(claimed: Any) -> None:
    found, expected = (audit(NET, X, Y, EPS, claimed=c, audit_budget=TINY) for c in (claimed, 0.25))
    assert type(found.claimed) is float
    assert found.json() | {"seconds": 0} == expected.json() | {"seconds": 0}


@pytest.mark.parametrize("claimed", ["0.25", True, 63, -0.1, torch.nan, torch.tensor([0.1, 0.2]), torch.tensor(63), []])
def test_another_claim_is_refused(claimed: Any) -> None:
    with pytest.raises(InputError, match=r"claimed=.*fraction from 0 to 1"):
        audit(NET, X, Y, EPS, claimed=claimed, audit_budget=TINY)


OTHER = seeded(Net, seed=6)


@pytest.mark.parametrize(
    "surrogate",
    [
        OTHER,
        UserDict(other=OTHER),
        {"other": Through(OTHER, lambda model, x: model(x.mul_(0.5).mul_(2)))},
        {"other": copy.deepcopy(OTHER).double()},
    ],
    ids=["itself", "another mapping", "edits its input", "float64"],
)
def test_examples_are_crafted_on_any_other_model(surrogate: Any) -> None:
    expected = audit(NET, X, Y, EPS, transfer_from={"other": OTHER}, audit_budget=TINY)
    found = audit(NET, X, Y, EPS, transfer_from=surrogate, audit_budget=TINY)
    assert list(found.attacks.values()) == list(expected.attacks.values())
    assert len([name for name in found.attacks if "transfer" in name]) == 1


@pytest.mark.parametrize(
    ("surrogate", "words"),
    [
        ([OTHER], "transfer_from: expected a torch.nn.Module, got a list"),
        ("resnet", "transfer_from: expected a torch.nn.Module, got a str"),
        ({"other": "resnet"}, "transfer_from 'other': expected a torch.nn.Module, got a str"),
        ({"other": Net(5)}, "transfer_from 'other': knows 5 classes, the model 10"),
        ({"other": Net(11)}, "transfer_from 'other': knows 11 classes, the model 10"),
        ({"other": nn.Flatten(2)}, r"transfer_from 'other': returned shape \(4, 1, 64\)"),
        ({"other": Through(OTHER, lambda model, x: model(x.detach()))}, "transfer_from 'other': .* no gradient"),
    ],
    ids=["list", "name", "named name", "fewer classes", "more classes", "maps", "no gradient"],
)
def test_no_examples_can_be_crafted_on_something_else(surrogate: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        audit(NET, X, Y, EPS, transfer_from=surrogate, audit_budget=TINY)


@pytest.mark.parametrize("classes", [5, 11])
def test_a_surrogate_of_other_classes_is_refused_by_the_attack_too(classes: int) -> None:
    objective = transfer_objective(Net(classes))
    for call in (pgd, attack):
        with pytest.raises(InputError, match=f"surrogate: knows {classes} classes, the model 10"):
            call(NET, X, Y, **WALK, objective=objective)


def test_a_surrogate_is_a_module() -> None:
    with pytest.raises(InputError, match=r"surrogate: expected a torch.nn.Module"):
        transfer_objective(lambda x: x)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_adversarial_images_may_be_of_another_dtype(dtype: torch.dtype) -> None:
    crafted = attack(NET, X, Y, **(WALK | {"eps": 0.07}), generator=rng()).images.to(dtype)  # not a multiple of 1/256
    found = audit(NET, X, Y, 0.07, adversarial=crafted, audit_budget=TINY)
    with torch.no_grad():
        right = NET(crafted.float()).argmax(dim=1) == Y
    assert "budget" not in found.fired
    assert found.claimed == pytest.approx(float(right.float().mean()))


def test_what_rounding_to_half_precision_does_not_explain_is_found() -> None:
    far = (X + 0.08).clamp(0, 1).half()
    report = audit(NET, X, Y, 0.07, adversarial=far, audit_budget=TINY)
    assert "budget" in report.fired


@pytest.mark.parametrize("name", ["adversarial", "selected_on"])
@pytest.mark.parametrize("given", [X.byte(), X.numpy(), X[:, 0], [X]], ids=["bytes", "array", "an axis less", "list"])
def test_other_images_given_to_an_audit_are_refused(name: str, given: Any) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected"):
        audit(NET, X, Y, EPS, **{name: given}, audit_budget=TINY)


# -- what it costs, and copies -----------------------------------------------------------------------------------------


def test_a_loop_asks_a_model_about_one_image_once_and_a_copy_never() -> None:
    model, asked = copy.deepcopy(NET), list[int]()
    model.register_forward_hook(lambda module, args, output: asked.append(len(args[0])))
    how = WALK | {"steps": 1}
    for _ in range(3):
        pgd(model, X, Y, **how)
        fgsm(model, X, Y, eps=EPS)
    assert asked == [1, 2] + [4] * 6
    asked.clear()
    pgd(Folded(model, model), X, Y, **how)
    assert asked == [4]
    with pytest.raises(InputError, match=r"fails on one image of shape \(1, 1, 8, 6\)"):
        pgd(model, X[..., :6], Y, **how)  # images of another shape are looked at again


CHANGES: dict[str, tuple[Callable[[Through], object], Callable[[Through], object]]] = {
    "to float64": (lambda model: None, lambda model: model.double()),
    "to float32": (lambda model: model.double(), lambda model: model.float()),
    "to editing": (lambda model: None, lambda model: setattr(model, "function", _edited_and_restored)),
    "to a gradient": (
        lambda model: setattr(model, "function", lambda net, x: net(x).detach()),
        lambda model: setattr(model, "function", lambda net, x: net(x)),
    ),
}


def _edited_and_restored(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.add_(0.5).sub_(0.5))


@pytest.mark.parametrize(("before", "change"), CHANGES.values(), ids=CHANGES.keys())
def test_a_model_that_has_changed_since_the_last_call_is_attacked_as_it_is_now(
    before: Callable[[Through], object], change: Callable[[Through], object]
) -> None:
    model, x = Through(copy.deepcopy(NET), lambda net, x: net(x)), X.clone()
    before(model)
    for entry in ("pgd", "fgsm"):
        with contextlib.suppress(InputError):  # without a gradient
            ENTRIES[entry](model, x, Y)
    change(model)
    for entry in ("pgd", "fgsm"):
        assert alike(ENTRIES[entry](model, x, Y), ENTRIES[entry](NET, X, Y))
    assert torch.equal(x, X)


def test_a_model_that_was_asked_about_one_image_is_asked_about_two_later() -> None:
    model = Through(NET, lambda net, x: net(x) if len(x) == 1 else (net(x),))
    pgd(model, X[:1], Y[:1], **WALK)
    with pytest.raises(InputError, match="returned a tuple"):
        pgd(model, X, Y, **WALK)


@pytest.mark.parametrize("entry", ["pgd", "attack", "evaluate", "random_noise", "autoattack", "audit"])
def test_a_model_may_fit_in_memory_with_one_image_alone(entry: str) -> None:
    def small(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) if len(x) == 1 else _raises(torch.OutOfMemoryError("CUDA out of memory."))

    how: dict[str, Any] = {} if entry == "pgd" else {"batch_size": 1}
    found = ENTRIES[entry](Through(NET, small), X, Y, **how)
    assert alike(found, ENTRIES[entry](NET, X, Y, **how))


def test_weights_inside_a_graph_are_refused_by_autoattack() -> None:
    model = copy.deepcopy(_quiet(lambda: torch.jit.script(NET)))
    with pytest.raises(InputError, match=r"within autograd's graph.* copy the model under torch.no_grad\(\)"):
        _autoattack(model, X, Y)


@pytest.mark.parametrize("entry", ENTRIES)
def test_weights_made_under_inference_mode_are_refused_by_gradient_attacks(entry: str) -> None:
    with torch.inference_mode():
        model = seeded(Net)
    if entry in ("random_noise", "audit"):  # an audit works on a copy of the weights
        assert alike(ENTRIES[entry](model, X, Y), ENTRIES[entry](NET, X, Y))
        return
    with pytest.raises(InputError, match=r"fails on one image of shape .* Inference tensors") as caught:
        ENTRIES[entry](model, X, Y)
    assert "\n" not in str(caught.value)


def test_pixels_in_range_are_not_copied() -> None:
    assert as_images(X).data_ptr() == X.data_ptr()
    assert torch.equal(as_images(_above_one()), _above_one().clamp(0, 1))


@pytest.mark.parametrize("function", EDITS.values(), ids=EDITS.keys())
def test_a_folded_model_that_edits_its_input_is_given_copies(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    (plain, _, labels), x = _shifted(), X.clone()
    folded = fold(Through(NET, function), x)
    for entry in ("pgd", "attack", "autoattack", "random_noise", "evaluate"):
        assert alike(ENTRIES[entry](folded, x, labels), ENTRIES[entry](plain, X, labels))
        assert torch.equal(x, X)
    assert torch.equal(misclassified(folded, x, Y), misclassified(plain, X, Y)) and torch.equal(x, X)


@pytest.mark.parametrize("function", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("folded", [False, True], ids=["the model", "a folded model"])
def test_every_objective_is_of_the_images_as_they_were(
    function: Callable[[nn.Module, Tensor], Tensor], folded: bool
) -> None:
    (plain, _, labels), x = _shifted(), X.clone()
    model: Any = Through(NET, function)
    model = fold(model, x) if folded else model
    objectives = {name: KNOWN_OBJECTIVES[name] for name in ("margin", "dlr", "divergence")}
    objectives["transfer"] = replace(KNOWN_OBJECTIVES["margin"], function=transfer_objective(OTHER))
    for name in objectives:
        spec = pgd_spec(EPS, 3, "4/256", objective=name)
        found, expected = (
            evaluate(network, Split(images, labels), spec, seed=3, objectives=objectives)
            for network, images in ((model, x), (plain, X))
        )
        assert torch.equal(found.first_success, expected.first_success), name
        assert torch.equal(x, X), name


class Editing(Mixture):
    """A mixture that edits its input in place."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        return super().forward_with_experts(x.sub_(0.25))


def test_a_mixture_that_is_given_copies_is_still_a_mixture() -> None:
    experts = [seeded(lambda: Linear(torch.randn(CLASSES, 64)), seed) for seed in (1, 2)]
    model, x = Editing(experts, UniformGate(2)).eval(), X.clone()
    adapted = Adapted(model)
    assert adapted.mixing == "probabilities"
    labels = adapted(x).argmax(dim=1)
    assert torch.equal(adapted.forward_with_experts(x).logits, adapted(x)) and torch.equal(x, X)
    assert same_state(copy.deepcopy(adapted), adapted)
    report = audit(model, x, labels, EPS, audit_budget=TINY)
    assert any("expert-1" in name for name in report.attacks)
    assert torch.equal(x, X)
