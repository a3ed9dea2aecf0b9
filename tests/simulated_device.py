"""A simulated second device, for tests on machines without a GPU.

Within `simulated_device()` the device ``meta`` behaves like a GPU. Its tensors hold a CPU tensor and compute with it.
Operations that mix them with tensors of the CPU raise, and so do conversions to NumPy and draws with a generator of the
CPU. Draws without a generator come from the device's own random stream.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only, tree_unflatten

DEVICE = torch.device("meta")
_aten = torch.ops.aten
# Operations that copy between devices, and operations that accept indices of the CPU on a GPU.
_COPIES = (_aten.copy_.default, _aten._to_copy.default)
_INDEXED = (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default)


class SimulatedTensor(Tensor):
    """A tensor of the simulated device; ``inner`` holds its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> SimulatedTensor:
        tensor: SimulatedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
        )
        tensor.inner = inner
        return tensor

    def __repr__(self, **_: Any) -> str:
        return f"SimulatedTensor({self.inner!r})"

    def __format__(self, spec: str) -> str:
        return format(self.inner, spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert a tensor of the simulated device to numpy; use Tensor.cpu() first")

    __array__ = numpy  # type: ignore[assignment]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run an operation of the simulated device on the inner tensors."""
    flat, shape = tree_flatten((args, kwargs))
    assert not any(type(value) is Tensor and value.is_meta for value in flat), f"{func}: a meta tensor without values"
    wrapped = {id(value.inner): value for value in flat if isinstance(value, SimulatedTensor)}
    indices = {id(index) for index in args[1]} if func in _INDEXED else set()
    cpu_tensors = [value for value in flat if _of_cpu(value) and id(value) not in indices]
    if cpu_tensors and func not in _COPIES:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found two, simulated and cpu! ({func})")
    inner = [value.inner if isinstance(value, SimulatedTensor) else value for value in flat]
    args, kwargs = tree_unflatten(inner, shape)
    target = kwargs.get("device")
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with _own_stream(func, kwargs):
        result = func(*args, **kwargs)
    if func is _aten._to_copy.default and target is not None and torch.device(target).type == "cpu":
        return result
    if func is _aten.copy_.default and not isinstance(flat[0], SimulatedTensor):
        return flat[0]  # a copy from the device into a tensor of the CPU

    def wrap(value: Tensor) -> Tensor:
        return (
            wrapped[id(value)] if id(value) in wrapped else SimulatedTensor(value)
        )  # the same object, if changed in place

    return tree_map_only(Tensor, wrap, result)


def _of_cpu(value: Any) -> bool:
    return isinstance(value, Tensor) and not isinstance(value, SimulatedTensor) and value.ndim > 0


_stream: list[Tensor] = []  # the state of the device's own generator


@contextlib.contextmanager
def _own_stream(func: Any, kwargs: dict[str, Any]) -> Iterator[None]:
    """Draws on the device use its own stream; the state of the CPU's generator does not change."""
    if kwargs.get("generator") is not None:
        raise RuntimeError("Expected a 'simulated' device type for generator but found 'cpu'")
    if torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    before = torch.get_rng_state()
    if not _stream:
        _stream.append(torch.Generator().manual_seed(987_654_321).get_state())
    torch.set_rng_state(_stream[0])
    try:
        yield
    finally:
        _stream[0] = torch.get_rng_state()
        torch.set_rng_state(before)


class _Factories(TorchDispatchMode):
    """Tensors created on the simulated device, or moved to it, become `SimulatedTensor`s."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        device = kwargs.get("device")
        if device is None or torch.device(device).type != DEVICE.type:
            return func(*args, **kwargs)
        return _compute(func, args, kwargs)


class _Literals(TorchFunctionMode):
    """Converts Python numbers in `torch.tensor` and in indices, which no dispatch mode sees, to tensors."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.tensor, torch.as_tensor) and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            return func(*args, **kwargs).to(device)
        if func in (Tensor.__getitem__, Tensor.__setitem__) and isinstance(args[0], SimulatedTensor):
            args = (args[0], _as_indices(args[1]), *args[2:])
        return func(*args, **kwargs)


def _as_indices(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(map(_as_indices, index))
    return torch.tensor(index) if isinstance(index, list) else index


@contextlib.contextmanager
def simulated_device() -> Iterator[torch.device]:
    """The simulated device within a ``with`` block; autocast on it does nothing."""
    _stream.clear()
    autocast: Callable[..., Any] = torch.autocast

    def autocast_except_simulated(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return contextlib.nullcontext() if device_type == DEVICE.type else autocast(device_type, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patched, _Factories(), _Literals():
        patched.setattr(torch, "autocast", autocast_except_simulated)
        yield DEVICE
