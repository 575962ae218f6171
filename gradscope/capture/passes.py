"""The forward passes of a step: which nodes each made, and what the loss made of their results."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor

from gradscope.capture.builder import Fork
from gradscope.capture.plan import Plan
from gradscope.capture.taps import Gathered
from gradscope.graph.walk import Node, following


class Pass(NamedTuple):
    """An outermost call: it made the nodes with sequence numbers [start, end).

    Attributes:
        arrived: what the forks of its graph gather.
    """

    start: int
    end: int
    plan: Plan
    arrived: Gathered

    def measures(self, node: Node, output: int) -> Fork | None:
        """The fork at an output of one of its nodes, if the plan measures it."""
        return self.plan.forks.get((node._sequence_nr() - self.start, output))


class Passes:
    """Those of one step, in their order."""

    def __init__(self) -> None:
        self._passes: list[Pass] = []
        self._starts: list[int] = []

    def __bool__(self) -> bool:
        return bool(self._passes)

    def __getitem__(self, position: int) -> Pass:
        return self._passes[position]

    def __iter__(self) -> Iterator[Pass]:
        return iter(self._passes)

    def add(self, one: Pass) -> None:
        self._passes.append(one)
        self._starts.append(one.start)

    def clear(self) -> None:
        self._passes, self._starts = [], []

    def of(self, node: Node) -> int | None:
        """Position of the pass that made a node; None if none did."""
        number = node._sequence_nr()
        position = bisect_right(self._starts, number) - 1
        if position < 0 or number >= self._passes[position].end:
            return None
        return position

    def beyond(self, roots: Iterable[Node]) -> Iterator[Node]:
        """Nodes from the roots back to the last passes, whose own nodes are not entered."""
        waiting = [root for root in dict.fromkeys(roots) if self.of(root) is None]
        seen = set(waiting)
        while waiting:
            node = waiting.pop()
            yield node
            for after in following(node):
                if after not in seen and self.of(after) is None:
                    seen.add(after)
                    waiting.append(after)


def roots_of(losses: Any) -> list[Node]:
    """Where the graph of what `backward` is called with begins."""
    several = [losses] if isinstance(losses, Tensor) else list(losses)
    return [t.grad_fn for t in several if isinstance(t, Tensor) and t.grad_fn is not None]
