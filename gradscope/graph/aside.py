"""Passes aside from training: recordings that are under way do not take them for a step's own."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Pausable(Protocol):
    def pause(self) -> None:
        """Hear nothing until `resume`, and leave `UNDER_WAY`."""
        ...

    def resume(self) -> None:
        """Go on where `pause` came, and be in `UNDER_WAY` again."""
        ...


UNDER_WAY: weakref.WeakSet[Pausable] = weakref.WeakSet()


@contextmanager
def aside() -> Iterator[None]:
    """Nobody who records now hears of what runs inside; who begins inside does."""
    paused = list(UNDER_WAY)
    for recording in paused:
        recording.pause()
    try:
        yield
    finally:
        for recording in paused:
            recording.resume()
