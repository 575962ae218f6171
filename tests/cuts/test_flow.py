"""The flow against trying every set of vertices, and against the flow's own dual."""

import networkx as nx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradscope.cuts.flow import minimum_vertex_cut
from tests.reference.cut_brute_force import best_cuts, leads_to_sink, source_side


@st.composite
def graphs(draw, most, largest=6, least=1):
    n = draw(st.integers(2, most))
    parents = [draw(st.lists(st.integers(0, v - 1), unique=True)) if v else [] for v in range(n)]
    capacity = draw(st.lists(st.integers(least, largest), min_size=n, max_size=n))
    ends = st.sets(st.integers(0, n - 1), min_size=1, max_size=3)
    return parents, capacity, draw(ends), draw(ends)


@given(graphs(8), st.lists(st.integers(1, 3), min_size=8, max_size=8))
@settings(max_examples=150)
def test_no_set_of_vertices_is_cheaper(graph, penalty):
    parents, capacity, sources, sinks = graph
    penalty = penalty[: len(parents)]
    found = minimum_vertex_cut(parents, capacity, sources, sinks, penalty)
    best, _ = best_cuts(parents, capacity, sources, sinks, penalty)
    assert frozenset(found) in best
    # of the best ones it is the one nearest the sources
    side = source_side(parents, sources, found)
    assert all(side <= source_side(parents, sources, other) for other in best)


@given(graphs(8, least=0))
@settings(max_examples=50)
def test_vertices_without_capacity_cost_nothing(graph):
    parents, capacity, sources, sinks = graph
    found = minimum_vertex_cut(parents, capacity, sources, sinks)
    _, (least, _) = best_cuts(parents, capacity, sources, sinks)
    assert sum(capacity[v] for v in found) == least
    assert not leads_to_sink(parents, sources, sinks, found)


@given(graphs(40, largest=1000))
@settings(max_examples=40)
def test_the_cut_is_as_large_as_the_largest_flow(graph):
    parents, capacity, sources, sinks = graph
    found = minimum_vertex_cut(parents, capacity, sources, sinks)
    assert not leads_to_sink(parents, sources, sinks, found)
    network = nx.DiGraph()
    for v, before in enumerate(parents):
        network.add_edge(f"{v} in", f"{v} out", capacity=capacity[v])
        network.add_edges_from((f"{p} out", f"{v} in") for p in before)
    network.add_edges_from(("s", f"{v} in") for v in sources)
    network.add_edges_from((f"{v} out", "t") for v in sinks)
    flow = nx.maximum_flow_value(network, "s", "t", flow_func=nx.algorithms.flow.edmonds_karp)
    assert sum(capacity[v] for v in found) == flow


#          0
#        /   \
#       1     2
#        \   /
#          3
DIAMOND = [[], [0], [0], [1, 2]]


@pytest.mark.parametrize(
    ("capacity", "cut"),
    [([9, 2, 3, 9], {1, 2}), ([9, 4, 5, 9], {0}), ([9, 4, 5, 8], {3}), ([5, 2, 3, 5], {0})],
)
def test_diamond(capacity, cut):
    assert minimum_vertex_cut(DIAMOND, capacity, [0], [3]) == cut


def test_a_penalty_decides_between_equals_only():
    chain = [[], [0], [1], [2]]
    assert minimum_vertex_cut(chain, [5, 3, 3, 5], [0], [3]) == {1}
    assert minimum_vertex_cut(chain, [5, 3, 3, 5], [0], [3], [1, 1, 0, 0]) == {2}
    assert minimum_vertex_cut(chain, [5, 3, 4, 5], [0], [3], [1, 100, 0, 0]) == {1}


def test_no_path_needs_no_cut():
    assert minimum_vertex_cut([[], [], [0], [1]], [1] * 4, [0], [3]) == set()
    assert minimum_vertex_cut(DIAMOND, [1] * 4, [3], [0]) == set()


def test_a_vertex_that_is_source_and_sink_is_the_cut():
    assert minimum_vertex_cut(DIAMOND, [1] * 4, [2], [2, 3]) == {2}
