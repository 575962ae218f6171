"""Names of tensors, for people to find them in the model."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from gradscope.cuts.sites import SoftmaxSite
from gradscope.cuts.tensors import PROBABILITIES, Shape, TensorGraph, shape_at
from gradscope.graph.naming import OUTPUT, OUTSIDE, Names, Place


class Labels:
    """A name for every tensor of a graph.

    Args:
        tensors: the graph.
        named: names by place, such as those of the tensors that modules returned.
        made: the name of the operation at a place ("layers.1:add"), for all others; None for
            the bare operation.
        owner: the name of the innermost module call that made a node, None outside of all.

    Attributes:
        preference: for each tensor, what it costs to be told of it. Fewer tensors cost less,
            and of as many, those that a module returned or a softmax made.
    """

    def __init__(
        self,
        tensors: TensorGraph,
        named: Mapping[Place, str],
        made: Callable[[Place], str | None] = lambda place: None,
        owner: Callable[[int], str | None] = lambda node: None,
    ) -> None:
        self._tensors = tensors
        self._named: dict[int, str] = {}
        self._shapes: dict[int, Shape] = {}
        for tensor, place in enumerate(tensors.places):
            at = next((p for p in (place, *tensors.views[tensor]) if p in named), None)
            if at is not None:
                self._named[tensor] = named[at]
                self._shapes[tensor] = shape_at(tensors.graph, at)
        self._made, self._owner = made, owner
        self._others = self._number_others()
        count = len(tensors.places)  # no number of names outweighs a tensor more
        self.preference = [
            count + (t not in self._named and tensors.operation(t) != "softmax")
            for t in range(count)
        ]

    @classmethod
    def of_modules(
        cls, tensors: TensorGraph, names: Names, inputs: Mapping[str, int] | None = None
    ) -> Labels:
        """Labels from the module calls of a recorded forward pass."""
        named = {tensors.places[tensor]: name for name, tensor in (inputs or {}).items()}
        return cls(
            tensors,
            {**named, **names.at},
            lambda place: names.op(place[0]),
            names.owner,
        )

    def __getitem__(self, tensor: int) -> str:
        return self._named.get(tensor) or self._others[tensor]

    def shape(self, tensor: int) -> tuple[int, ...]:
        """Shape of a tensor; that of the view that has its name, unless it was broadcast."""
        shape = self._shapes.get(tensor)
        if shape is None or math.prod(shape) != self._tensors.numel[tensor]:
            shape = self._tensors.shapes[tensor]
        return shape or ()

    def sites(self, sites: Iterable[SoftmaxSite]) -> list[str]:
        """Names of softmax sites: the innermost module call, numbered where it makes several."""
        taken: Counter[str] = Counter()
        found = []
        for site in sites:
            owner = self._owner(site.node)
            base = owner or f"{OUTSIDE if owner is None else OUTPUT}:softmax"
            number = taken[base]
            taken[base] += 1
            kept = base if ":" in base else f"{base}:softmax"
            found.append(f"{kept}#{number}" if number else base)
        return found

    def _number_others(self) -> dict[int, str]:
        """Operations' names, in forward order: a:add, a:add#1, a:add#2."""
        order = sorted(
            (t for t in range(len(self._tensors.places)) if t not in self._named),
            key=self._tensors.forward_position,
        )
        taken: Counter[str] = Counter()
        found = {}
        for tensor in order:
            node, output = self._tensors.places[tensor]
            operation = self._tensors.operation(tensor)
            name = self._made((node, output)) or operation
            if output == PROBABILITIES:
                name = f"{name.rpartition(':')[0]}:{operation}".lstrip(":")
            number = taken[name]
            taken[name] += 1
            found[tensor] = f"{name}#{number}" if number else name
        return found
