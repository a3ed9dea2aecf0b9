"""With glibc, the process keeps freed memory; with another C library, nothing is changed."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from typing import Any

import pytest

from paperlib.acceleration.memory import keep_memory


@pytest.fixture(autouse=True)
def empty_cache() -> Iterator[None]:
    keep_memory.cache_clear()
    yield
    keep_memory.cache_clear()


class Library:
    """Replaces the C library; ``results`` are the return values of ``mallopt``, 1 for success, by parameter."""

    def __init__(self, results: dict[int, int]) -> None:
        self.results = results
        self.calls: list[tuple[int, int]] = []

    def mallopt(self, parameter: int, value: int) -> int:
        self.calls.append((parameter, value))
        return self.results[parameter]


def replace_library(monkeypatch: pytest.MonkeyPatch, results: dict[int, int], kind: str = "glibc") -> Library:
    library = Library(results)
    monkeypatch.setattr(platform, "libc_ver", lambda *args: (kind, "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *args: library)
    return library


def test_it_succeeds_with_glibc_only() -> None:
    assert keep_memory() is (platform.libc_ver()[0] == "glibc")


def test_both_thresholds_are_set_once_and_to_large_values(monkeypatch: pytest.MonkeyPatch) -> None:
    library = replace_library(monkeypatch, {-1: 1, -3: 1})
    assert keep_memory() is True
    values = dict(library.calls)
    assert set(values) == {-1, -3}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    assert all(2**29 < value < 2**31 for value in values.values())  # a C int
    assert keep_memory() is True
    assert len(library.calls) == 2


def test_false_is_returned_if_the_library_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    for results in ({-1: 0, -3: 1}, {-1: 1, -3: 0}):
        keep_memory.cache_clear()
        replace_library(monkeypatch, results)
        assert keep_memory() is False


def test_another_library_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*args: Any) -> None:
        raise AssertionError("loaded")

    for kind in ("", "musl"):
        keep_memory.cache_clear()
        replace_library(monkeypatch, {}, kind)
        monkeypatch.setattr(ctypes, "CDLL", load)
        assert keep_memory() is False
