"""Minimum vertex cut by maximum flow (Menger's theorem, with capacities)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import networkx as nx

IN, OUT = 0, 1  # the two halves that a vertex is split into: its capacity lies between them


def minimum_vertex_cut(
    parents: Sequence[Iterable[int]],
    capacity: Sequence[int],
    sources: Collection[int],
    sinks: Collection[int],
    penalty: Mapping[int, int] | Sequence[int] | None = None,
) -> set[int]:
    """The cheapest set of vertices that meets every path from a source to a sink.

    Sources and sinks may themselves be cut, so there always is one; it is empty where no
    path leads from a source to a sink.

    Args:
        parents: for each vertex of a directed graph, those with an edge to it.
        capacity: for each vertex, its cost, at least 0.
        sources, sinks: vertices; a vertex may be both.
        penalty: for each vertex, at least 0: decides between cuts of the same capacity. What
            that leaves open is decided in favour of vertices near the sources.
    """
    between = _between(parents, sources, sinks)
    if not between:
        return set()
    # Capacity first, penalty second: one unit of capacity outweighs all penalties together.
    extra = {v: penalty[v] if penalty is not None else 0 for v in between}
    unit = 1 + sum(extra.values())
    # The graph is built backwards, sinks first: networkx returns the cut that is nearest to
    # the end of the flow, and that is then the one nearest to the sources.
    network: Any = nx.DiGraph()
    for v in between:
        network.add_edge((v, OUT), (v, IN), capacity=capacity[v] * unit + extra[v])
        for p in parents[v]:
            if p in between:
                network.add_edge((v, IN), (p, OUT))
    for v in sinks:
        if v in between:
            network.add_edge("sinks", (v, OUT))
    for v in sources:
        if v in between:
            network.add_edge((v, IN), "sources")
    _, (reached, _) = nx.minimum_cut(network, "sinks", "sources")
    return {v for v in between if (v, OUT) in reached and (v, IN) not in reached}


def _between(
    parents: Sequence[Iterable[int]], sources: Collection[int], sinks: Collection[int]
) -> set[int]:
    """Vertices on a path from a source to a sink, ends included."""
    upstream = reachable(sinks, lambda v: parents[v])
    children: dict[int, list[int]] = {v: [] for v in upstream}
    for v in upstream:
        for p in parents[v]:
            children[p].append(v)
    return reachable((s for s in sources if s in upstream), lambda v: children[v])


def reachable(start: Iterable[int], following: Callable[[int], Iterable[int]]) -> set[int]:
    """Vertices that can be reached from some, those included."""
    seen = set(start)
    stack = list(seen)
    while stack:
        for v in following(stack.pop()):
            if v not in seen:
                seen.add(v)
                stack.append(v)
    return seen
