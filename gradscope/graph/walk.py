"""The autograd graph as arrays: one pass over `next_functions`, about 0.4 µs an edge."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from gradscope.graph.attention_nodes import FUSED_ATTENTION

Node = Any  # torch.autograd.graph.Node; its attributes depend on the operation

# Nodes whose inside autograd does not show, and what the report says of them.
OPAQUE = {
    "CompiledFunctionBackward": "compiled by torch.compile",
    "CheckpointFunctionBackward": "inside checkpoint(use_reentrant=True)",
}


@dataclass
class Graph:
    """What the backward pass from some tensors will execute.

    Attributes:
        nodes: in breadth-first order from the roots (the model's outputs).
        edges: one entry an edge in the nodes' order: (index of the next node, which of its
            outputs) or None where no gradient flows.
        counts: number of edges of each node.
    """

    nodes: list[Node]
    edges: list[tuple[int, int] | None]
    counts: list[int]
    index: dict[Node, int]

    def types(self) -> list[type]:
        """Class of every node: with `edges` and `counts`, the structure of the graph."""
        return list(map(type, self.nodes))

    def consumers(self) -> dict[tuple[int, int], list[tuple[int, int]]]:
        """(producer, output) → [(consumer, position among the consumer's inputs), …]."""
        found: dict[tuple[int, int], list[tuple[int, int]]] = {}
        start = 0
        for consumer, count in enumerate(self.counts):
            for position, edge in enumerate(self.edges[start : start + count]):
                if edge is not None:
                    found.setdefault(edge, []).append((consumer, position))
            start += count
        return found

    def depths(self) -> list[int]:
        """Longest path from a root to each node, in nodes."""
        starts = [0]
        for count in self.counts:
            starts.append(starts[-1] + count)
        waiting = [0] * len(self.nodes)
        for edge in self.edges:
            if edge is not None:
                waiting[edge[0]] += 1
        depth = [0] * len(self.nodes)
        ready = [i for i, w in enumerate(waiting) if w == 0]
        while ready:
            i = ready.pop()
            for edge in self.edges[starts[i] : starts[i + 1]]:
                if edge is None:
                    continue
                depth[edge[0]] = max(depth[edge[0]], depth[i] + 1)
                waiting[edge[0]] -= 1
                if not waiting[edge[0]]:
                    ready.append(edge[0])
        return depth


def walk(roots: Iterable[Node]) -> Graph:
    """All nodes reachable from `roots`. Order depends on the graph's structure alone."""
    nodes = list(dict.fromkeys(roots))
    index = {node: i for i, node in enumerate(nodes)}
    edges: list[tuple[int, int] | None] = []
    counts: list[int] = []
    for node in nodes:  # grows while it is read
        following = node.next_functions
        counts.append(len(following))
        for after, output in following:
            if after is None:
                edges.append(None)
                continue
            at = index.get(after)
            if at is None:
                at = index[after] = len(nodes)
                nodes.append(after)
            edges.append((at, output))
    return Graph(nodes, edges, counts, index)


def following(node: Node) -> Iterator[Node]:
    """The nodes that a node sends gradients to."""
    return (after for after, _ in node.next_functions if after is not None)


def shape_of(node: Node, output: int) -> tuple[int, ...]:
    """Shape of one of a node's results; () if it does not show it."""
    if hasattr(node, "variable"):
        return tuple(node.variable.shape)
    metadata = getattr(node, "_input_metadata", ())
    shape = tuple(metadata[output].shape) if output < len(metadata) else ()
    return shape if all(type(n) is int for n in shape) else ()  # nested tensors have none


def operation(node: Node) -> str:
    """Short name of the forward operation: "AddmmBackward0" → "addmm", fused attention "sdpa"."""
    if node.name() in FUSED_ATTENTION:
        return "sdpa"  # whichever kernel
    name = node.name().rsplit("::", 1)[-1]
    return name.split("Backward")[0].lower() or name.lower()


def tensors_in(output: Any, prefix: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors in a module's output, with the name of the field that holds each.

    A lone tensor has the name ""; NamedTuple, dataclass and dict fields ".name"; list and
    tuple positions "[i]"; nested ones are joined.
    """
    if isinstance(output, torch.Tensor):
        yield prefix, output
    elif isinstance(output, dict):
        for key, value in output.items():
            yield from tensors_in(value, f"{prefix}.{key}")
    elif isinstance(output, tuple) and hasattr(output, "_fields"):
        for key in output._fields:
            yield from tensors_in(getattr(output, key), f"{prefix}.{key}")
    elif isinstance(output, list | tuple):
        for i, value in enumerate(output):
            yield from tensors_in(value, f"{prefix}[{i}]")
    elif hasattr(output, "__dataclass_fields__"):
        for key in output.__dataclass_fields__:
            yield from tensors_in(getattr(output, key), f"{prefix}.{key}")
