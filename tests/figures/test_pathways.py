import numpy as np
import pytest

from gradscope import Run, Site
from gradscope.figures import Mark, pathways
from gradscope.figures._forks import choose, forks, role
from gradscope.figures._pathways import EDGES, folded, inequality
from tests.reference.made_up_runs import stacked_attention


def run_of(shares, sites=()):
    """{fork: {edge: [share at step 0, 1, …]}}"""
    rows = [
        (step, fork, "fork", edge, "projection", value)
        for fork, edges in shares.items()
        for edge, values in edges.items()
        for step, value in enumerate(values)
    ]
    return Run.from_records(rows, sites)


def heights(axes):
    """Per band and step: how high it is."""
    out = []
    for band in axes.collections:
        points = band.get_paths()[0].vertices if band.get_paths() else np.empty((0, 2))
        steps = np.unique(points[:, 0])
        out.append([np.ptp(points[points[:, 0] == s, 1]) for s in steps])
    return out


def test_bands_are_the_shares():
    run = run_of({"f": {"a:add": [0.75, 0.5], "b:mul": [0.25, 0.5]}})
    axes = pathways(run).axes[0]
    bands = [h for h in heights(axes) if max(h) > 0]
    assert bands == [pytest.approx([0.75, 0.5]), pytest.approx([0.25, 0.5])]


def test_a_path_against_the_others_lies_below_zero():
    run = run_of({"f": {"a:add": [1.5, 1.2], "b:mul": [-0.5, -0.2]}})
    axes = pathways(run).axes[0]
    points = np.concatenate([c.get_paths()[0].vertices for c in axes.collections])
    assert points[:, 1].min() == pytest.approx(-0.5) and points[:, 1].max() == pytest.approx(1.5)
    assert axes.get_ylim()[0] < -0.4 and axes.get_ylim()[1] > 1.4


def test_a_single_consumer_is_no_fork():
    run = run_of({"f": {"a:add": [1.0]}, "g": {"a:add": [0.4], "b:mul": [0.6]}})
    assert [f.site.name for f in forks(run, "projection")] == ["g"]


def test_shares_sum_to_one_also_where_the_weakest_are_added_up():
    random = np.random.default_rng(0)
    shares = random.dirichlet(np.ones(EDGES + 5), size=3)
    run = run_of({"f": {f"e{i}:add": list(shares[:, i]) for i in range(EDGES + 5)}})
    fork = folded(forks(run, "projection")[0])
    assert len(fork.edges) == EDGES and fork.edges[-1] == "all other edges"
    assert fork.values.sum(axis=1) == pytest.approx(1.0)
    strongest = np.argsort(-shares.mean(axis=0))[: EDGES - 1]
    assert set(fork.edges[:-1]) == {f"e{i}:add" for i in strongest}


def layered(layers, kinds):
    """Forks `l.<k>.<kind>` with the kind's inequality."""
    names = [(f"l.{k}.{kind}", (1 + gap) / 2) for k in range(layers) for kind, gap in kinds]
    return forks(run_of({n: {"a:x": [p], "b:y": [1 - p]} for n, p in names}), "projection")


def test_each_kind_of_fork_shows_its_first_and_its_last_layer():
    found = layered(8, (("q", 0.9), ("norm", 0.1)))
    names = [f.site.name for f in choose(found, set(), 4, inequality)]
    assert names == ["l.0.q", "l.0.norm", "l.7.q", "l.7.norm"]


def test_the_most_unequal_kind_goes_first_and_findings_before_all():
    found = layered(8, (("q", 0.1), ("norm", 0.9)))
    assert [f.site.name for f in choose(found, set(), 1, inequality)] == ["l.0.norm"]
    assert [f.site.name for f in choose(found, {"l.5.q"}, 2, inequality)] == ["l.0.norm", "l.5.q"]


def test_layers_share_the_colour_of_their_role():
    assert role("layers.3.self_attn:linear") == role("layers.11.self_attn:linear")
    assert role("layers.3.self_attn:linear") == "layers.*.self_attn:linear"
    assert role(":add") == ":add"
    figure = pathways(stacked_attention(3, steps=(0, 10)))
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["stack.layers.*.scores:linear", "stack.layers.*:add"]


def test_more_roles_than_colours_get_a_legend_each():
    shares = {f"f{i}": {f"a{i}:x": [0.5], f"b{i}:y": [0.5]} for i in range(6)}
    figure = pathways(run_of(shares))
    assert not figure.legends
    assert all(axes.get_legend() for axes in figure.axes)


def test_marked_forks_carry_the_label():
    run = run_of({"f": {"a:add": [0.7], "b:mul": [0.3]}}, [Site("f", "fork")])
    own = Mark("F7", "warning", "f", 0, 0, kind="fork")
    other = Mark("F8", "warning", "f", 0, 0, kind="module")
    assert pathways(run, [own, other]).axes[0].get_title(loc="left") == "F7  f"


def test_steps_with_a_nan_are_gaps():
    run = run_of({"f": {"a:add": [0.7, np.nan, 0.7, 0.7], "b:mul": [0.3] * 4}})
    first = pathways(run).axes[0].collections[0]
    covered = {x for path in first.get_paths() for x in path.vertices[:, 0]}
    assert 1.0 not in covered and {2.0, 3.0} <= covered


def test_edges_stand_in_the_order_of_their_layers():
    edges = {f"l.{k}:add": [0.1] for k in (10, 2, 1)}
    (fork,) = forks(run_of({"f": edges}), "projection")
    assert fork.edges == ["l.1:add", "l.2:add", "l.10:add"]


def test_compared_runs_show_the_same_fork_in_a_row():
    a = run_of({"x": {"a:add": [0.9], "b:mul": [0.1]}, "only": {"a:add": [0.99], "b:mul": [0.01]}})
    b = run_of({"x": {"a:add": [0.5], "b:mul": [0.5]}})
    a.meta["name"], b.meta["name"] = "A", "B"
    figure = pathways([a, b])
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "A:  x",
        "B:  x",
        "A:  only",
        "B",
    ]
    assert [t.get_text() for t in figure.axes[3].texts] == ["no such fork"]
