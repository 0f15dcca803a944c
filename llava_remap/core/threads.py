"""To wait for other threads so that Ctrl-C ends it at once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import TypeVar

Value = TypeVar("Value")

#: Seconds after which a signal is heard, should it be another thread that the system woke for it.
_LOOKS_UP = 0.1


def finished(futures: Iterable[Future[Value]]) -> Iterator[Future[Value]]:
    """The futures as they come to their end.

    A signal interrupts the wait of the thread that it is delivered to, which may be one that is
    just being started. But only the main thread acts on it, and would sleep on. So it looks up now
    and then.
    """
    left = set(futures)
    while left:
        done, left = wait(left, _LOOKS_UP, FIRST_COMPLETED)
        yield from done


def result(future: Future[Value]) -> Value:
    """What a future gives, or raises, once it is there."""
    [done] = finished([future])
    return done.result()
