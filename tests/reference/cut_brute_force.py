"""Minimum vertex cuts by trying every set of vertices."""

from __future__ import annotations

from itertools import chain, combinations


def leads_to_sink(parents, sources, sinks, removed):
    """Whether a path from a source to a sink is left once some vertices are removed."""
    return bool(source_side(parents, sources, removed) & set(sinks))


def source_side(parents, sources, removed):
    """Vertices that can be reached from the sources without meeting a removed one."""
    reached = set(sources) - set(removed)
    while True:
        more = {
            v
            for v, before in enumerate(parents)
            if v not in reached and v not in removed and reached.intersection(before)
        }
        if not more:
            return reached
        reached |= more


def best_cuts(parents, capacity, sources, sinks, penalty=None):
    """All sets that meet every path with the least (capacity, penalty), and that least cost."""
    n = len(parents)
    penalty = penalty or [0] * n
    subsets = chain.from_iterable(combinations(range(n), k) for k in range(n + 1))
    costs = {
        frozenset(s): (sum(capacity[v] for v in s), sum(penalty[v] for v in s))
        for s in subsets
        if not leads_to_sink(parents, sources, sinks, s)
    }
    least = min(costs.values())
    return [s for s, cost in costs.items() if cost == least], least
