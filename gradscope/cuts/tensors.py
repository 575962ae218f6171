"""The autograd graph as tensors that carry information about the sample, with their sizes.

A vertex is one output of one node; its capacity is its number of elements. Nothing needs to
know which dimension is the batch's: between the inputs and the outputs of a model every
tensor is made from the batch, and its share of one sample is numel / batch size, whether it
is laid out (B, N, D), (N, B, D), (B·N, D) or (B·H, N, N).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from gradscope.errors import GradscopeError
from gradscope.graph.attention_nodes import FUSED_ATTENTION
from gradscope.graph.naming import VIEWS, Place
from gradscope.graph.walk import Graph, Node, operation

# "Output" of a fused attention node that stands for the softmax probabilities inside it.
PROBABILITIES = -1
KEY, VALUE = 1, 2  # edges of a fused attention node, after the query; later ones go to the mask

Shape = tuple[int, ...] | None  # None: autograd doesn't tell (nested tensors)


@dataclass
class TensorGraph:
    """Tensors that carry information about the sample, inputs first.

    Parameters and constants are left out. A view, a broadcast and a cast hold the numbers of
    the tensor they were made from, so they count as that tensor.

    Attributes:
        graph: the autograd graph.
        places: for each tensor, the (node, output) that made it.
        parents: for each tensor, those that it was computed from.
        shapes: for each tensor, batch included.
        numel: for each tensor, its elements.
        views: for each tensor, the places of its views, broadcasts and casts.
        at: place → tensor, for every place including views.
    """

    graph: Graph
    places: list[Place] = field(default_factory=list)
    parents: list[tuple[int, ...]] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)
    numel: list[int] = field(default_factory=list)
    views: list[list[Place]] = field(default_factory=list)
    at: dict[Place, int] = field(default_factory=dict)

    def operation(self, tensor: int) -> str:
        """Name of the operation that made a tensor."""
        node, output = self.places[tensor]
        return "softmax" if output == PROBABILITIES else operation(self.graph.nodes[node])

    def forward_position(self, tensor: int) -> tuple[int, int]:
        """Sorts tensors in the order in which the forward pass made them."""
        node, output = self.places[tensor]
        return self.graph.nodes[node]._sequence_nr(), output

    def children(self) -> list[list[int]]:
        """For each tensor, those computed from it."""
        found: list[list[int]] = [[] for _ in self.places]
        for tensor, parents in enumerate(self.parents):
            for parent in parents:
                found[parent].append(tensor)
        return found

    def origins(self, groups: Sequence[Collection[int]]) -> list[int]:
        """For each tensor, which groups it was computed from: bit i set for group i.

        A tensor that is itself in a group doesn't count as computed from it.
        """
        own = [0] * len(self.places)
        for bit, group in enumerate(groups):
            for tensor in group:
                own[tensor] |= 1 << bit
        found = [0] * len(self.places)
        for tensor, parents in enumerate(self.parents):
            for parent in parents:
                found[tensor] |= found[parent] | own[parent]
        return found

    def _add(self, place: Place, parents: Collection[int], shape: Shape) -> None:
        inputs = tuple(dict.fromkeys(parents))
        if shape is None and not inputs:
            raise GradscopeError("an input is a nested tensor without a shape: pad it")
        # What can't be measured holds no more than what it was computed from.
        numel = math.prod(shape) if shape is not None else sum(self.numel[p] for p in inputs)
        self.at[place] = len(self.places)
        self.places.append(place)
        self.parents.append(inputs)
        self.shapes.append(shape)
        self.numel.append(numel)
        self.views.append([])

    def _add_view(self, place: Place, tensor: int) -> None:
        self.at[place] = tensor
        self.views[tensor].append(place)


def tensor_graph(graph: Graph, sources: Collection[Place] | None = None) -> TensorGraph:
    """Sizes of the tensors of an autograd graph, and what each was computed from.

    Args:
        graph: the walk from the tensors of interest.
        sources: where the inputs come in: only what is computed from them is kept. None where
            the inputs require no gradient, as in ordinary training; then everything counts
            that isn't computed from parameters alone, and a constant can't be told from an
            input.
    """
    tensors = TensorGraph(graph)
    edges = _edges(graph)
    shapes = [_shapes(node) for node in graph.nodes]
    depths = graph.depths()
    carries: set[int] = set()  # nodes that carry information about the sample
    for node in sorted(range(len(graph.nodes)), key=lambda n: -depths[n]):
        inputs = [e for e in edges[node] if e is not None and e[0] in carries]
        if sources is None:
            is_source = _reads_input(graph.nodes[node], edges[node])
        else:
            is_source = any((node, output) in sources for output in range(len(shapes[node])))
        if not inputs and not is_source:
            continue
        carries.add(node)
        parents = [tensors.at[p] for p in inputs]
        name = graph.nodes[node].name()
        if name in FUSED_ATTENTION:
            parents = _open_fused(tensors, node, edges[node], carries, shapes)
        for output, shape in enumerate(shapes[node]):
            if len(inputs) == 1 and _is_view(name, shape, shapes[inputs[0][0]][inputs[0][1]]):
                tensors._add_view((node, output), parents[0])
            else:
                tensors._add((node, output), parents, shape)
    return tensors


def shape_at(graph: Graph, place: Place) -> Shape:
    """Shape of an output of a node."""
    return _shapes(graph.nodes[place[0]])[place[1]]


def _open_fused(
    tensors: TensorGraph,
    node: int,
    edges: Sequence[Place | None],
    carries: Collection[int],
    shapes: Sequence[Sequence[Shape]],
) -> list[int]:
    """Add the softmax probabilities (B, H, Q, K) inside fused attention; the output's parents."""
    data = [tensors.at[e] if e is not None and e[0] in carries else None for e in edges]
    value = [p for p in data[VALUE : VALUE + 1] if p is not None]
    logits = [p for i, p in enumerate(data) if i != VALUE and p is not None]
    if not logits:
        return value
    out = shapes[node][0]  # (B, H, Q, E)
    key = next((shapes[e[0]][e[1]] for e in edges[KEY : VALUE + 1] if e is not None), None)
    shape = (*out[:-1], key[-2]) if out is not None and key is not None else None
    tensors._add((node, PROBABILITIES), logits, shape)
    return [tensors.at[node, PROBABILITIES], *value]


def _is_view(name: str, shape: Shape, of: Shape) -> bool:
    """Whether all numbers of the parent are there, and no others."""
    if name.split("Backward")[0].lower() not in VIEWS or shape is None or of is None:
        return False
    return math.prod(shape) >= math.prod(of)


def _reads_input(node: Node, edges: Sequence[Place | None]) -> bool:
    """Whether a node brings in something that is neither a parameter nor computed from one."""
    if hasattr(node, "variable"):  # a leaf
        return not isinstance(node.variable, nn.Parameter)
    return not edges or None in edges or "Embedding" in node.name()


def _shapes(node: Node) -> list[Shape]:
    """Shapes of a node's outputs, which autograd keeps to check the gradients that arrive."""
    return [_shape(metadata) for metadata in node._input_metadata]


def _shape(metadata: Any) -> Shape:
    try:
        shape = tuple(metadata.shape)
    except RuntimeError:  # a strided nested tensor has none
        return None
    return shape if all(type(n) is int for n in shape) else None  # a jagged one has symbols


def _edges(graph: Graph) -> list[list[Place | None]]:
    """`next_functions` of each node, as places."""
    found = []
    start = 0
    for count in graph.counts:
        found.append(graph.edges[start : start + count])
        start += count
    return found
