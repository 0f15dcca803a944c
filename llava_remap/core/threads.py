"""Waits for other threads such that Ctrl-C interrupts the wait at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

Value = TypeVar("Value")

#: Seconds until the main thread notices a signal that the system delivered to another thread.
_LOOKS_UP = 0.1


def finished(futures: Iterable[Future[Value]]) -> Iterator[Future[Value]]:
    """The futures in the order in which they finish.

    A signal interrupts only the thread that it is delivered to, which may be another thread. Only
    the main thread acts on signals, so it wakes up regularly instead of sleeping on.
    """
    left = set(futures)
    while left:
        done, left = wait(left, _LOOKS_UP, FIRST_COMPLETED)
        yield from done


def result(future: Future[Value]) -> Value:
    """Wait for a future's result or exception."""
    [done] = finished([future])
    return done.result()
