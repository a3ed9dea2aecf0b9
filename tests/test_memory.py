"""Freed memory stays with the process where the C library can be told so, and nothing breaks elsewhere."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Iterator
from typing import Any

import pytest

from paperlib.acceleration.memory import keep_memory


@pytest.fixture(autouse=True)
def asked_afresh() -> Iterator[None]:
    keep_memory.cache_clear()
    yield
    keep_memory.cache_clear()


class Library:
    """In place of the C library: ``answers`` says what it is able to set."""

    def __init__(self, answers: dict[int, int]) -> None:
        self.answers = answers
        self.told: list[tuple[int, int]] = []

    def mallopt(self, what: int, value: int) -> int:
        self.told.append((what, value))
        return self.answers[what]


def planted(monkeypatch: pytest.MonkeyPatch, answers: dict[int, int], kind: str = "glibc") -> Library:
    library = Library(answers)
    monkeypatch.setattr(platform, "libc_ver", lambda *args: (kind, "2.36"))
    monkeypatch.setattr(ctypes, "CDLL", lambda *args: library)
    return library


def test_it_is_done_on_glibc_and_once_is_enough() -> None:
    assert keep_memory() is (platform.libc_ver()[0] == "glibc")
    assert keep_memory() is keep_memory()


def test_both_thresholds_are_set_as_high_as_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    library = planted(monkeypatch, {-1: 1, -3: 1})
    assert keep_memory() is True
    told = dict(library.told)
    assert set(told) == {-1, -3}  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    assert all(2**29 < value < 2**31 for value in told.values())  # a C int
    assert keep_memory() is True
    assert len(library.told) == 2


@pytest.mark.parametrize("answers", [{-1: 0, -3: 1}, {-1: 1, -3: 0}, {-1: 0, -3: 0}])
def test_it_says_when_the_library_refused(monkeypatch: pytest.MonkeyPatch, answers: dict[int, int]) -> None:
    planted(monkeypatch, answers)
    assert keep_memory() is False


@pytest.mark.parametrize("kind", ["", "musl", "libc"])
def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    def never(*args: Any) -> None:
        raise AssertionError("loaded")

    planted(monkeypatch, {}, kind)
    monkeypatch.setattr(ctypes, "CDLL", never)
    assert keep_memory() is False
