"""Plans by the structure of the graph that they are for, the last used first."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

P = TypeVar("P")

MOST = 32  # structures; a model whose graph never repeats makes one a step


class Remembered(Generic[P]):
    """The plans used last."""

    def __init__(self) -> None:
        self._plans: list[tuple[Any, P]] = []

    def find(self, structure: Any) -> P | None:
        """The plan for an equal structure."""
        for position, (known, plan) in enumerate(self._plans):
            if known == structure:
                if position:
                    self._plans.insert(0, self._plans.pop(position))
                return plan
        return None

    def add(self, structure: Any, plan: P) -> None:
        """Remember a plan, and forget the one that was not used for longest."""
        self._plans.insert(0, (structure, plan))
        del self._plans[MOST:]

    def clear(self) -> None:
        self._plans.clear()
