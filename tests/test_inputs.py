"""Each kind of model, images and labels gives the result of its plain form, or a one-sentence error, everywhere."""

from __future__ import annotations

import contextlib
import copy
import functools
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
    """A small network with batch norm that TorchScript and torch.export support."""

    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class Wrapped(nn.Module):
    """A function of a network and images as a module."""

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


PGD: dict[str, Any] = {"eps": EPS, "step_size": "4/256", "steps": 3}
SHORT: dict[str, Any] = {"eps": EPS, "iterations": 2, "queries": 4}


def _attack(model: Any, x: Any, y: Any, **settings: Any) -> Result:
    done = attack(model, x, y, **PGD, **({"generator": rng()} | settings))
    return {"images": done.images, "fooled": done.fooled, "first": done.first_success}


def _evaluate(model: Any, x: Any, y: Any, **settings: Any) -> Result:
    result = evaluate(model, Split(x, y), **({"spec": pgd_spec(EPS, 3, "4/256"), "seed": 3} | settings))
    return {"correct": result.correct, "first": result.first_success}


def _autoattack(model: Any, x: Any, y: Any, **settings: Any) -> Result:
    done = autoattack(model, x, y, **SHORT, **settings)
    return {"images": done.images, "fooled_by": done.fooled_by}


def _random_noise(model: Any, x: Any, y: Any, **settings: Any) -> Result:
    done = random_noise(model, x, y, eps=EPS, draws=3, **({"generator": rng()} | settings))
    return {"images": done.images, "fooled": done.fooled, "first": done.first_success}


def _audit(model: Any, x: Any, y: Any, **settings: Any) -> Result:
    report = audit(model, x, y, EPS, **({"audit_budget": WITH_AUTOATTACK} | settings))
    return {"attacks": report.attacks, "worst": report.worst, "failed": report.failed}


ENTRY_POINTS: dict[str, Callable[..., Result]] = {
    "pgd": lambda model, x, y: {"images": pgd(model, x, y, **PGD, generator=rng())},
    "fgsm": lambda model, x, y: {"images": fgsm(model, x, y, eps=EPS)},
    "attack": _attack,
    "evaluate": _evaluate,
    "autoattack": _autoattack,
    "random_noise": _random_noise,
    "audit": _audit,
}


def same_result(result: Result, expected: Result) -> bool:
    """Equal outcomes, and images that differ at most by rounding."""

    def same(a: Any, b: Any) -> bool:
        if isinstance(a, Tensor) and a.is_floating_point():
            return torch.allclose(a.float(), b, rtol=0, atol=1e-6)
        return torch.equal(a, b) if isinstance(a, Tensor) else bool(a == b)

    return result.keys() == expected.keys() and all(same(result[key], expected[key]) for key in expected)


@functools.cache
def plain_result(entry: str, name: str = "") -> Result:
    """The result of an entry point for the plain inputs, or for the plain form of an accepted case."""
    return ENTRY_POINTS[entry](*(ACCEPTED[name]().plain if name else (NET, X, Y)))


@dataclass
class Case:
    """A model, images and labels; the defaults are plain."""

    model: Any = NET
    x: Any = field(default_factory=X.clone)
    y: Any = field(default_factory=Y.clone)
    around: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext
    plain: tuple[nn.Module, Tensor, Tensor] = (NET, X, Y)  # inputs with the same result
    refused: str = ""  # pattern of the error message, if there is an error
    error: type[PaperlibError] = InputError


# -- the cases ---------------------------------------------------------------------------------------------------------


def _edited(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.sub_(0.25))


def _edited_without_gradient(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        x.sub_(0.25)
    return model(x)


def _edited_through_data(model: nn.Module, x: Tensor) -> Tensor:
    x.data.sub_(0.25)
    return model(x)


def _edited_under_no_grad(model: nn.Module, x: Tensor) -> Tensor:
    return model(x - 0.25 if torch.is_grad_enabled() else x.sub_(0.25))


def _edited_under_enable_grad(model: nn.Module, x: Tensor) -> Tensor:
    return model(x.sub_(0.25) if torch.is_grad_enabled() else x - 0.25)


def _edited_from(images: int) -> Callable[[nn.Module, Tensor], Tensor]:
    return lambda model, x: model(x.sub_(0.25) if len(x) >= images else x - 0.25)


def _edited_from_three_under_no_grad(model: nn.Module, x: Tensor) -> Tensor:
    return _edited_under_no_grad(model, x) if len(x) > 2 else model(x - 0.25)


# Each gives the logits of images that are darker by 0.25.
EDITS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "its input": _edited,
    "its input without a gradient": _edited_without_gradient,
    "its input through .data": _edited_through_data,
    "its input under no_grad": _edited_under_no_grad,
    "its input under enable_grad": _edited_under_enable_grad,
    "batches only": _edited_from(2),
    "larger batches only": _edited_from(3),
    "larger batches under no_grad": _edited_from_three_under_no_grad,
}


def _shifted() -> tuple[nn.Module, Tensor, Tensor]:
    model = Wrapped(NET, lambda model, x: model(x - 0.25))
    with torch.no_grad():
        return model, X, model(X).argmax(dim=1)


def _under_inference_mode(value: Tensor) -> Tensor:
    with torch.inference_mode():
        return value.clone()


def _without_warnings(build: Callable[[], nn.Module]) -> nn.Module:
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


def _accepted() -> dict[str, Callable[[], Case]]:
    def edits(function: Callable[[nn.Module, Tensor], Tensor]) -> Callable[[], Case]:
        return lambda: Case(Wrapped(NET, function), y=_shifted()[2], plain=_shifted())

    def logits(dtype: torch.dtype) -> Callable[[], Case]:
        rounded = Wrapped(NET, lambda model, x: model(x).to(dtype).float())
        return lambda: Case(Wrapped(NET, lambda model, x: model(x).to(dtype)), plain=(rounded, X, Y))

    one = X[:1].expand(4, 1, 8, 8)
    labels = Y[:1].expand(4)
    return {
        **{f"a model that edits {name}": edits(function) for name, function in EDITS.items()},
        **{f"logits of {dtype}": logits(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64)},
        "a traced model": lambda: Case(_without_warnings(lambda: torch.jit.trace(NET, X))),
        "a scripted model": lambda: Case(_without_warnings(lambda: torch.jit.script(NET))),
        "a frozen model": lambda: Case(_without_warnings(lambda: torch.jit.freeze(torch.jit.script(NET)))),
        "an exported model": lambda: Case(_exported(dynamic=True)),
        "weights of float64": lambda: Case(_double()),
        "permuted images": lambda: Case(x=X.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)),
        "transposed images": lambda: Case(x=X.transpose(2, 3).contiguous().transpose(2, 3)),
        "every other image": lambda: Case(x=torch.stack([X, X], dim=1).flatten(0, 1)[::2]),
        "expanded images": lambda: Case(x=one, y=labels, plain=(NET, one.contiguous(), labels.contiguous())),
        "images that require a gradient": lambda: Case(x=X.clone().requires_grad_()),
        "images made under inference_mode": lambda: Case(x=_under_inference_mode(X), y=_under_inference_mode(Y)),
        "everything under inference_mode": lambda: Case(around=torch.inference_mode),
        "everything under no_grad": lambda: Case(around=torch.no_grad),
        "float64 by default": lambda: Case(around=_float64_by_default),
        "float16 images": lambda: Case(x=X.half()),
        "bfloat16 images": lambda: Case(x=X.bfloat16()),
        "float64 images": lambda: Case(x=X.double()),
        "float64 images from numpy": lambda: Case(x=torch.from_numpy(X.numpy().astype(np.float64))),
        "a pixel above 1 by rounding": lambda: Case(x=_above_one(), plain=_plain_of_above_one()),
        "expanded labels": lambda: Case(x=X, y=Y[:, None].expand(4, 3)[:, 1]),
    }


ACCEPTED = _accepted()
# Cases for which entry points have separate code; the others run in an attack, and with a model also in an audit.
EVERYWHERE = {
    "a model that edits its input",
    "logits of torch.float64",
    "weights of float64",
    "permuted images",
    "everything under inference_mode",
    "everything under no_grad",
    "float64 by default",
    "float16 images",
    "float64 images",
}


def _raises(error: Exception) -> Tensor:
    raise error


def _refused() -> dict[str, Callable[[], Case]]:
    def outputs(function: Callable[[Tensor], Any], message: str) -> Callable[[], Case]:
        return lambda: Case(Wrapped(NET, lambda model, x: function(model(x))), refused=message)

    def images(x: Any, message: str, error: type[PaperlibError] = InputError) -> Callable[[], Case]:
        return lambda: Case(x=x, refused=message, error=error)

    def labels(y: Any, message: str) -> Callable[[], Case]:
        return lambda: Case(y=y, refused=message)

    def batches(function: Callable[[Tensor], Any], message: str) -> Callable[[], Case]:
        """Logits for one image, and ``function`` of them for several."""
        return outputs(lambda z: function(z) if len(z) > 1 else z, message)

    def model(function: Callable[[nn.Module, Tensor], Any], message: str) -> Callable[[], Case]:
        return lambda: Case(Wrapped(NET, function), refused=message)

    return {
        "a tuple for batches": batches(lambda z: (z, z), "returned a tuple; expected a float tensor of logits"),
        "a model that raises for batches": batches(
            lambda z: {}["batch"], r"fails on 2 images of shape \(2, 1, 8, 8\), .*KeyError: 'batch'"
        ),
        "a model whose error mentions memory": model(
            lambda model, x: _raises(RuntimeError("unsupported memory format option")),
            "fails on one image of shape .* unsupported memory format option",
        ),
        "sparse logits": outputs(lambda z: z.to_sparse(), "returned a torch.sparse_coo tensor; expected a float"),
        "logits on meta": outputs(lambda z: z.to("meta"), "returned a tensor on the meta device, which holds no"),
        "weights on meta": lambda: Case(Net().eval().to("meta"), refused="meta"),
        "images on meta": images(X.to("meta"), "images: expected a float tensor .* got a tensor on the meta device"),
        "nested images": images(
            torch.nested.nested_tensor([X[0], X[1, :, :4]]), "images: .* got a nested tensor; resize"
        ),
        "sparse labels": labels(Y.to_sparse(), "labels: expected an int64 tensor .* got a torch.sparse_coo tensor"),
        "labels on meta": labels(Y.to("meta"), "labels: .* got a tensor on the meta device"),
        "a tuple": outputs(lambda z: (z, z), "returned a tuple; expected a float tensor of logits"),
        "a list": outputs(lambda z: [z], "returned a list; expected a float tensor of logits"),
        "a dict": outputs(lambda z: {"logits": z}, "returned a dict; expected a float tensor of logits"),
        "an object": outputs(lambda z: SimpleNamespace(logits=z), "returned a SimpleNamespace; expected a float"),
        "a user's dict": outputs(lambda z: UserDict(logits=z), "returned a UserDict; expected a float tensor"),
        "an array": outputs(lambda z: z.detach().numpy(), "returned a ndarray; expected a float tensor of logits"),
        "nothing": outputs(lambda z: None, "returned a NoneType; expected a float tensor of logits"),
        "classes": outputs(lambda z: z.argmax(dim=1), r"returned shape|returned a torch.int64|one image gives"),
        "integers": outputs(lambda z: z.long(), "returned a torch.int64 tensor; expected a float tensor of logits"),
        "a number": outputs(lambda z: z.mean(), r"returned shape \(\) for 4 images"),
        "maps": outputs(lambda z: z[:, :, None], r"returned shape \(4, 10, 1\) for 4 images"),
        "one row": outputs(lambda z: z[:1], r"returned shape \(1, 10\) for 2 images"),
        "one logit": outputs(lambda z: z[:, :1], "returned 1 logit per image; expected one per class"),
        "a row squeezed": outputs(
            lambda z: z.squeeze(), r"one image gives logits of shape \(10,\), expected \(1, 10\)"
        ),
        "NaN": lambda: Case(
            Wrapped(NET, lambda model, x: model(x) * torch.nan), refused="NaN or infinity", error=NotFiniteError
        ),
        "a function": lambda: Case(NET.forward, refused="expected a torch.nn.Module, got a method"),
        "a lambda": lambda: Case(lambda x: NET(x), refused="expected a torch.nn.Module, got a function"),
        "no model": lambda: Case(None, refused="expected a torch.nn.Module, got a NoneType"),
        "a model that raises": lambda: Case(
            Wrapped(NET, lambda model, x: model(x[:, :, :4])), refused=r"fails on one image of shape \(1, 1, 8, 8\)"
        ),
        "a model exported for one batch size": lambda: Case(
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


REFUSED = _refused()


# -- accepted and refused ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(case: Case) -> Iterator[None]:
    """The inputs and the global state of torch are the same after the block."""
    tensors = {
        name: value
        for name, value in (("x", case.x), ("y", case.y))
        if isinstance(value, Tensor) and not (value.is_meta or value.is_nested)
    }
    before = {name: value.detach().clone() for name, value in tensors.items()}
    model = case.model if isinstance(case.model, nn.Module) else NET
    state = {name: value.clone() for name, value in model.state_dict().items() if not value.is_meta}
    modes = [getattr(module, "training", None) for module in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    generator, dtype = torch.get_rng_state(), torch.get_default_dtype()
    gradients, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
    yield
    for name, value in tensors.items():
        sparse = value.layout != torch.strided
        now, expected = (v.to_dense() if sparse else v.detach() for v in (value, before[name]))
        assert torch.equal(torch.nan_to_num(now.double()), torch.nan_to_num(expected.double())), name
        assert value.grad is None if value.is_leaf else True
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in state.items())
    assert [getattr(module, "training", None) for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), generator)
    assert torch.get_default_dtype() == dtype
    assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == (gradients, inference)


@pytest.mark.parametrize("name", ACCEPTED)
def test_an_accepted_input_has_the_result_of_its_plain_form(name: str) -> None:
    own_model = ACCEPTED[name]().model is not NET
    entries = ENTRY_POINTS if name in EVERYWHERE else ("attack", "audit") if own_model else ("attack",)
    for entry in entries:
        case = ACCEPTED[name]()
        plain = case.plain[0] is NET and case.plain[1] is X and case.plain[2] is Y
        expected = plain_result(entry, "" if plain else name)
        with case.around(), unchanged(case):
            result = ENTRY_POINTS[entry](case.model, case.x, case.y)
        assert same_result(result, expected), (entry, result, expected)
        for value in result.values():
            assert not isinstance(value, Tensor) or not (value.requires_grad or value.is_inference())


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_input_has_the_same_error_everywhere(name: str) -> None:
    for entry, call in ENTRY_POINTS.items():
        case = REFUSED[name]()
        if name == "NaN" and entry == "audit":  # there a check fails
            assert "finite" in call(case.model, case.x, case.y)["failed"]
            continue
        with unchanged(case), pytest.raises(case.error, match=case.refused) as caught:
            call(case.model, case.x, case.y)
        assert "\n" not in str(caught.value), entry


# -- the gradient ------------------------------------------------------------------------------------------------------

WITHOUT_GRADIENT: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "under no_grad": torch.no_grad()(lambda model, x: model(x)),
    "of detached pixels": lambda model, x: model(x.detach()),
    "with detached logits": lambda model, x: model(x).detach(),
    "of rounded pixels": lambda model, x: model((x * 255).long().float() / 255),
    "under inference_mode": torch.inference_mode()(lambda model, x: model(x)),
}


@pytest.mark.parametrize("function", WITHOUT_GRADIENT.values(), ids=WITHOUT_GRADIENT.keys())
def test_a_model_without_a_gradient_is_refused_by_gradient_attacks_and_fails_a_check_of_the_audit(
    function: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    case = Case(Wrapped(NET, function))
    for entry, call in ENTRY_POINTS.items():
        if entry == "random_noise":
            assert call(case.model, case.x, case.y)["fooled"].shape == (4,)
        elif entry == "audit":
            assert "gradients" in _audit(case.model, case.x, case.y, audit_budget=TINY)["failed"]
        else:
            with unchanged(case), pytest.raises(InputError, match="no gradient with respect to the pixels") as caught:
                call(case.model, case.x, case.y)
            assert "\n" not in str(caught.value)


def test_evaluations_without_gradients_accept_a_model_without_a_gradient() -> None:
    model = Wrapped(NET, WITHOUT_GRADIENT["of detached pixels"])
    for spec in (CLEAN, noise_spec(EPS, 2), square_spec(EPS, 3)):
        correct = evaluate(model, Split(X, Y), spec, seed=3).correct
        assert torch.equal(correct, evaluate(NET, Split(X, Y), spec, seed=3).correct)


def test_a_folded_model_without_a_gradient_is_refused_too() -> None:
    model = Wrapped(NET, WITHOUT_GRADIENT["of detached pixels"])
    for call in (ENTRY_POINTS[name] for name in ("pgd", "fgsm", "attack", "evaluate", "autoattack")):
        with pytest.raises(InputError, match="no gradient with respect to the pixels"):
            call(fold(model, X), X, Y)


# -- settings ----------------------------------------------------------------------------------------------------------


WITH_BATCH_SIZE = ("attack", "evaluate", "autoattack", "random_noise", "audit")


def test_a_batch_size_is_a_whole_number_of_at_least_1() -> None:
    for entry in WITH_BATCH_SIZE:
        for value in (0, -1, 2.5, True, "2"):
            with pytest.raises(InputError, match=r"^batch_size=.*at least 1"):
                ENTRY_POINTS[entry](NET, X, Y, batch_size=value)


@pytest.mark.parametrize("entry", WITH_BATCH_SIZE)
def test_a_batch_size_may_be_a_numpy_integer(entry: str) -> None:
    assert same_result(ENTRY_POINTS[entry](NET, X, Y, batch_size=np.int64(4)), plain_result(entry))


OBJECTIVES: dict[str, Callable[[nn.Module, Tensor, Tensor], Any]] = {
    "loss alone": lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none"),
    "two images' loss": lambda model, x, y: nn.functional.cross_entropy(model(x), y, reduction="none")[:2],
    "mean loss": lambda model, x, y: nn.functional.cross_entropy(model(x), y),
    "a tuple of one": lambda model, x, y: (model(x).sum(dim=1),),
    "a number": lambda model, x, y: (model(x), 1.0),
    "nothing": lambda model, x, y: None,
}


def test_an_objective_must_return_a_pair_of_tensors() -> None:
    for objective in OBJECTIVES.values():
        for call in (
            functools.partial(pgd, NET, X, Y, **PGD),
            functools.partial(fgsm, NET, X, Y, eps=EPS),
            functools.partial(attack, NET, X, Y, **PGD),
        ):
            with pytest.raises(InputError, match=r"^objective: returned .* a pair of tensors"):
                call(objective=objective)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"start": X[:3]}, r"start: expected images of shape \(4, 1, 8, 8\), got \(3, 1, 8, 8\)"),
        ({"start": X.numpy()}, "start: .* got a ndarray"),
        ({"targets": Y[:3]}, r"targets: .* a row for each of 4 images, got \(3,\)"),
        ({"targets": Y.tolist()}, "targets: .* got a list"),
    ],
)
def test_start_and_targets_need_a_row_for_each_image(setting: dict[str, Any], message: str) -> None:
    for call in (pgd, attack):
        with pytest.raises(InputError, match=message):
            call(NET, X, Y, **PGD, **setting)


def test_a_start_may_have_another_dtype() -> None:
    start = X.flip(0)
    expected = pgd(NET, X, Y, **PGD, start=start)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        assert torch.equal(pgd(NET, X, Y, **PGD, start=start.to(dtype)), expected)
    assert torch.equal(pgd(NET, X, Y, **PGD, start=_under_inference_mode(start)), expected)


def test_images_and_weights_of_float64_are_attacked_in_float64() -> None:
    for entry in ("pgd", "fgsm", "attack", "random_noise"):
        images = ENTRY_POINTS[entry](_double(), X.double(), Y)["images"]
        assert images.dtype == torch.float64
        assert float((images - X).abs().max()) <= 16 / 256 + 1e-12


def test_the_worst_case_runs_autoattack_on_a_float64_model() -> None:
    specs = [CLEAN, pgd_spec("1/256", 1, "1/256"), autoattack_spec(EPS, 2, 4)]
    result = worst_case(_double(), Split(X.double(), Y), specs, seed=0)
    assert result.correct.shape == (4,)


def test_images_and_labels_must_be_a_split() -> None:
    for split in ((X, Y), None, X):
        for call in (functools.partial(evaluate, spec=CLEAN), functools.partial(worst_case, specs=[CLEAN])):
            with pytest.raises(InputError, match="expected images and labels as a Split, got a"):
                call(NET, split, seed=0)  # type: ignore[arg-type]


WRONG_TYPES: dict[str, tuple[Callable[[], object], str]] = {
    "generator of pgd": (lambda: pgd(NET, X, Y, **PGD, generator=3), "generator: .* got a int"),  # type: ignore[arg-type]
    "generator of attack": (lambda: _attack(NET, X, Y, generator=3), "generator: .* got a int"),
    "generator of noise": (lambda: _random_noise(NET, X, Y, generator="3"), "generator: .* got a str"),
    "objective of pgd": (lambda: pgd(NET, X, Y, **PGD, objective=None), "objective: .* got a NoneType"),  # type: ignore[arg-type]
    "objective of attack": (lambda: _attack(NET, X, Y, objective="dlr"), "objective: .* got a str"),
    "progress of attack": (lambda: _attack(NET, X, Y, progress=None), "progress: .* got a NoneType"),
    "progress of noise": (lambda: _random_noise(NET, X, Y, progress=True), "progress: .* got a bool"),
    "progress of autoattack": (lambda: _autoattack(NET, X, Y, progress=1), "progress: .* got a int"),
    "seed of autoattack": (lambda: _autoattack(NET, X, Y, seed=0.5), "seed: expected a whole number, got a float"),
    "attacks of autoattack": (lambda: _autoattack(NET, X, Y, attacks=4), "attacks: .* got a int"),
    "state of autoattack": (lambda: _autoattack(NET, X, Y, state=True), "state: expected a path or None, got a bool"),
    "spec of evaluate": (lambda: _evaluate(NET, X, Y, spec="pgd"), "spec: expected an AttackSpec, .* got a str"),
    "kind of a spec": (lambda: _evaluate(NET, X, Y, spec=AttackSpec("cw")), "spec: unknown kind 'cw'; .*clean, "),
    "seed of evaluate": (lambda: _evaluate(NET, X, Y, seed=None), "seed: .* got a NoneType"),
    "objectives of evaluate": (lambda: _evaluate(NET, X, Y, objectives="dlr"), "(aims|objectives): .* got a str"),
    "specs of the worst case": (lambda: worst_case(NET, Split(X, Y), CLEAN, seed=0), "specs: .* got a AttackSpec"),  # type: ignore[arg-type]
    "a spec of the worst case": (
        lambda: worst_case(NET, Split(X, Y), [CLEAN, "pgd"], seed=0),  # type: ignore[list-item]
        "spec: .* got a str",
    ),
    "seed of audit": (lambda: _audit(NET, X, Y, seed="0"), "seed: .* got a str"),
    "audit_budget of audit": (lambda: _audit(NET, X, Y, audit_budget=3), "audit_budget: .* got a int"),
    "benign of audit": (lambda: _audit(NET, X, Y, benign="expert-0"), "benign: .* got a str"),
    "outcomes of audit": (lambda: _audit(NET, X, Y, outcomes=[Y]), "outcomes: .* got a list"),
}


@pytest.mark.parametrize(("call", "message"), WRONG_TYPES.values(), ids=WRONG_TYPES.keys())
def test_a_setting_of_a_wrong_type_is_an_error_that_names_it(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=f"^{message}"):
        call()


def test_equivalent_types_of_settings_are_accepted(tmp_path: Path) -> None:
    state = tmp_path / "state.safetensors"
    result = _autoattack(NET, X, Y, attacks="square", seed=np.int64(2), state=str(state))
    assert same_result(result, _autoattack(NET, X, Y, attacks=("square",), seed=2)) and state.exists()
    assert same_result(_evaluate(NET, X, Y, seed=np.int64(3)), plain_result("evaluate"))
    audits = [_audit(NET, X, Y, seed=seed, audit_budget=TINY) for seed in (np.int64(1), 1)]
    assert same_result(*audits)


# -- further inputs of an audit ----------------------------------------------------------------------------------------


def test_a_claim_may_be_a_number_of_any_type() -> None:
    expected = audit(NET, X, Y, EPS, claimed=0.25, audit_budget=TINY)
    for claimed in (torch.tensor([0.25]).double(), np.float32(0.25), np.array(0.25)):
        report = audit(NET, X, Y, EPS, claimed=claimed, audit_budget=TINY)
        assert type(report.claimed) is float
        assert report.json() | {"seconds": 0} == expected.json() | {"seconds": 0}


def test_a_claim_must_be_a_fraction_from_0_to_1() -> None:
    for claimed in ("0.25", True, 63, -0.1, torch.nan, torch.tensor([0.1, 0.2]), torch.tensor(63), []):
        with pytest.raises(InputError, match=r"claimed=.*fraction from 0 to 1"):
            audit(NET, X, Y, EPS, claimed=claimed, audit_budget=TINY)


OTHER = seeded(Net, seed=6)


def test_transfer_attacks_accept_any_other_model() -> None:
    expected = audit(NET, X, Y, EPS, transfer_from={"other": OTHER}, audit_budget=TINY)
    for surrogate in (
        OTHER,
        UserDict(other=OTHER),
        {"other": Wrapped(OTHER, lambda model, x: model(x.mul_(0.5).mul_(2)))},
        {"other": copy.deepcopy(OTHER).double()},
    ):
        report = audit(NET, X, Y, EPS, transfer_from=surrogate, audit_budget=TINY)
        assert list(report.attacks.values()) == list(expected.attacks.values())
        assert len([name for name in report.attacks if "transfer" in name]) == 1


@pytest.mark.parametrize(
    ("surrogate", "message"),
    [
        ([OTHER], "transfer_from: expected a torch.nn.Module, got a list"),
        ("resnet", "transfer_from: expected a torch.nn.Module, got a str"),
        ({"other": "resnet"}, "transfer_from 'other': expected a torch.nn.Module, got a str"),
        ({"other": Net(5)}, "transfer_from 'other': .*5 classes"),
        ({"other": nn.Flatten(2)}, r"transfer_from 'other': returned shape \(4, 1, 64\)"),
        ({"other": Wrapped(OTHER, lambda model, x: model(x.detach()))}, "transfer_from 'other': .* no gradient"),
    ],
    ids=["list", "text", "text by name", "classes", "maps", "no gradient"],
)
def test_other_surrogates_are_refused_by_the_audit(surrogate: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        audit(NET, X, Y, EPS, transfer_from=surrogate, audit_budget=TINY)


def test_a_surrogate_with_another_number_of_classes_is_refused_by_the_attack_too() -> None:
    for classes in (5, 11):
        for call in (pgd, attack):
            with pytest.raises(InputError, match=f"surrogate: has {classes} classes, but the model has 10"):
                call(NET, X, Y, **PGD, objective=transfer_objective(Net(classes)))


def test_a_surrogate_must_be_a_module() -> None:
    with pytest.raises(InputError, match=r"surrogate: expected a torch.nn.Module"):
        transfer_objective(lambda x: x)  # type: ignore[arg-type]


def test_adversarial_images_may_have_another_dtype() -> None:
    # An eps that is not a multiple of 1/256, so that half precision rounds.
    images = attack(NET, X, Y, **(PGD | {"eps": 0.07}), generator=rng()).images
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        adversarial = images.to(dtype)
        report = audit(NET, X, Y, 0.07, adversarial=adversarial, audit_budget=TINY)
        with torch.no_grad():
            correct = NET(adversarial.float()).argmax(dim=1) == Y
        assert "budget" not in report.failed
        assert report.claimed == pytest.approx(float(correct.float().mean()))


def test_images_beyond_eps_by_more_than_rounding_fail_the_budget_check() -> None:
    far = (X + 0.08).clamp(0, 1).half()
    report = audit(NET, X, Y, 0.07, adversarial=far, audit_budget=TINY)
    assert "budget" in report.failed


def test_other_images_of_an_audit_are_checked_too() -> None:
    for name in ("adversarial", "selected_on"):
        for images in (X.byte(), X.numpy(), X[:, 0], [X]):
            with pytest.raises(InputError, match=f"^{name}: expected"):
                audit(NET, X, Y, EPS, **{name: images}, audit_budget=TINY)


# -- number of calls, and copies ---------------------------------------------------------------------------------------


def test_a_loop_of_attacks_checks_a_model_once_and_a_folded_copy_never() -> None:
    model, sizes = copy.deepcopy(NET), list[int]()
    model.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    settings = PGD | {"steps": 1}
    for _ in range(3):
        pgd(model, X, Y, **settings)
        fgsm(model, X, Y, eps=EPS)
    assert sizes == [1, 2] + [4] * 6
    sizes.clear()
    pgd(Folded(model, model), X, Y, **settings)
    assert sizes == [4]
    with pytest.raises(InputError, match=r"fails on one image of shape \(1, 1, 8, 6\)"):
        pgd(model, X[..., :6], Y, **settings)  # images of another shape are checked again


CHANGES: dict[str, tuple[Callable[[Wrapped], object], Callable[[Wrapped], object]]] = {
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
def test_a_model_that_has_changed_since_the_last_call_is_checked_again(
    before: Callable[[Wrapped], object], change: Callable[[Wrapped], object]
) -> None:
    model, x = Wrapped(copy.deepcopy(NET), lambda net, x: net(x)), X.clone()
    before(model)
    for entry in ("pgd", "fgsm"):
        with contextlib.suppress(InputError):  # without a gradient
            ENTRY_POINTS[entry](model, x, Y)
    change(model)
    for entry in ("pgd", "fgsm"):
        assert same_result(ENTRY_POINTS[entry](model, x, Y), ENTRY_POINTS[entry](NET, X, Y))
    assert torch.equal(x, X)


def test_a_model_called_with_one_image_is_checked_with_two_later() -> None:
    model = Wrapped(NET, lambda net, x: net(x) if len(x) == 1 else (net(x),))
    pgd(model, X[:1], Y[:1], **PGD)
    with pytest.raises(InputError, match="returned a tuple"):
        pgd(model, X, Y, **PGD)


@pytest.mark.parametrize("entry", ["pgd", *WITH_BATCH_SIZE])
def test_memory_may_hold_one_image_only(entry: str) -> None:
    def small(model: nn.Module, x: Tensor) -> Tensor:
        return model(x) if len(x) == 1 else _raises(torch.OutOfMemoryError("CUDA out of memory."))

    settings: dict[str, Any] = {} if entry == "pgd" else {"batch_size": 1}
    result = ENTRY_POINTS[entry](Wrapped(NET, small), X, Y, **settings)
    assert same_result(result, ENTRY_POINTS[entry](NET, X, Y, **settings))


def test_weights_within_autograds_graph_are_refused_by_autoattack() -> None:
    model = copy.deepcopy(_without_warnings(lambda: torch.jit.script(NET)))
    with pytest.raises(InputError, match=r"belong to autograd's graph.* copy the model under torch.no_grad\(\)"):
        _autoattack(model, X, Y)


def test_weights_made_under_inference_mode_are_refused_by_gradient_attacks() -> None:
    with torch.inference_mode():
        model = seeded(Net)
    for entry, call in ENTRY_POINTS.items():
        if entry in ("random_noise", "audit"):  # an audit copies the weights
            assert same_result(call(model, X, Y), plain_result(entry))
            continue
        with pytest.raises(InputError, match=r"fails on one image of shape .* Inference tensors") as caught:
            call(model, X, Y)
        assert "\n" not in str(caught.value)


def test_pixels_in_range_are_not_copied() -> None:
    assert as_images(X).data_ptr() == X.data_ptr()
    assert torch.equal(as_images(_above_one()), _above_one().clamp(0, 1))


@pytest.mark.parametrize("function", EDITS.values(), ids=EDITS.keys())
def test_a_folded_model_that_edits_its_input_gets_copies(function: Callable[[nn.Module, Tensor], Tensor]) -> None:
    (plain, _, labels), x = _shifted(), X.clone()
    folded = fold(Wrapped(NET, function), x)
    for entry in ("pgd", "attack", "autoattack", "random_noise", "evaluate"):
        assert same_result(ENTRY_POINTS[entry](folded, x, labels), ENTRY_POINTS[entry](plain, X, labels))
        assert torch.equal(x, X)
    assert torch.equal(misclassified(folded, x, Y), misclassified(plain, X, Y)) and torch.equal(x, X)


@pytest.mark.parametrize("function", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("folded", [False, True], ids=["the model", "a folded model"])
def test_every_objective_gives_copies_to_a_model_that_edits_its_input(
    function: Callable[[nn.Module, Tensor], Tensor], folded: bool
) -> None:
    (plain, _, labels), x = _shifted(), X.clone()
    model: Any = Wrapped(NET, function)
    model = fold(model, x) if folded else model
    objectives = {name: KNOWN_OBJECTIVES[name] for name in ("margin", "dlr", "divergence")}
    objectives["transfer"] = replace(KNOWN_OBJECTIVES["margin"], function=transfer_objective(OTHER))
    for name in objectives:
        spec = pgd_spec(EPS, 3, "4/256", objective=name)
        result, expected = (
            evaluate(network, Split(images, labels), spec, seed=3, objectives=objectives)
            for network, images in ((model, x), (plain, X))
        )
        assert torch.equal(result.first_success, expected.first_success), name
        assert torch.equal(x, X), name


class Editing(Mixture):
    """A mixture that edits its input in place."""

    def forward_with_experts(self, x: Tensor) -> MixtureOutput:
        return super().forward_with_experts(x.sub_(0.25))


def test_an_adapted_mixture_is_still_a_mixture() -> None:
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
