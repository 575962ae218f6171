"""In which order the optimizers of one model step, and which of them ends a step of the model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

O = TypeVar("O")  # noqa: E741  (an optimizer)


class Round(Generic[O]):
    """A model's step is one round of its optimizers.

    The round before tells which ones to expect; the first round expects all. One whose
    parameters have all been stepped by others in this round is not waited for: a wrapper of
    another optimizer, or that of a phase of training that is over.

    Args:
        expected: the optimizers, in the order in which they will probably step.
        held: ids of an optimizer's parameters.
    """

    def __init__(self, expected: Iterable[O], held: Callable[[O], frozenset[int]]) -> None:
        self._expected, self._held = list(expected), held
        self._stepped: list[O] = []

    def begins(self, optimizer: O) -> tuple[list[O], bool]:
        """An optimizer is about to step.

        Returns:
            The order that this round has or will have (it ends with the last), and whether a
            round before this one had ended unnoticed: it waited for what never came.
        """
        missed = optimizer in self._stepped
        if missed:
            self._expected, self._stepped = self._stepped, []
        self._stepped.append(optimizer)
        done = frozenset().union(*map(self._held, self._stepped))
        rest = [o for o in self._expected if o not in self._stepped and not self._held(o) <= done]
        return [*self._stepped, *rest], missed

    def ends(self, order: list[O], optimizer: O) -> None:
        """An optimizer has stepped."""
        if optimizer is order[-1]:
            self._expected, self._stepped = self._stepped, []
