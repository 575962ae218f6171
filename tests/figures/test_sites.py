from hypothesis import given
from hypothesis import strategies as st

from gradscope import Site
from gradscope.figures import Mark
from gradscope.figures._sites import common_ladders, ladder, merge, role


def chain(*names):
    return [Site(n, "module", order=i, depth=len(names) - i) for i, n in enumerate(names)]


def test_role_replaces_layer_numbers_only():
    assert role("layers.11.mlp.fc1") == "layers.*.mlp.fc1"
    assert role("layer2.0.conv1") == "layer*.*.conv1"
    assert role("layers.3") == "layers.*"
    assert role("layers.3[0]") == "layers.*[0]"
    assert role("fc1") == "fc1"


def test_the_outermost_role_through_most_layers_is_the_ladder():
    # The last block's output bears the stack's name.
    names = [f"stack.{k}{part}" for k in range(5) for part in (".norm", ".mlp", "")][:-1]
    sites = chain("embed", *names, "stack", "head")
    joined = [sites[i].name for i in ladder(sites)]
    assert joined == ["stack.0", "stack.1", "stack.2", "stack.3"]


def test_heads_side_by_side_are_no_ladder():
    sites = [Site(f"heads.{k}", "module", order=k, depth=5) for k in range(4)]
    sites += [Site("out", "module", order=4, depth=1)]
    assert ladder(sites) == [0, 1, 2, 3, 4]


def test_a_finding_decides_the_ladder():
    sites = chain("l.0", "l.0.a", "l.1", "l.1.a", "l.2", "l.2.a")
    mark = Mark("F1", "warning", "l.0.a", 0, 1, kind="module", sites=("l.0.a", "l.1.a", "l.2.a"))
    assert ladder(sites) == [0, 2, 4]
    assert ladder(sites, [mark]) == [1, 3, 5]


def test_compared_models_use_one_role():
    small = chain("l.0", "l.1", "x.0.q", "x.1.q", "x.2.q", "x.3.q")
    large = chain("l.0", "l.1", "l.2")
    assert common_ladders([small, large]) == [[0, 1], [0, 1, 2]]
    assert common_ladders([chain("a", "b"), large]) == [[0, 1], [0, 1, 2]]


def test_a_finding_decides_the_role_for_compared_models():
    small, large = chain("l.0", "l.0.a", "l.1", "l.1.a"), chain("l.0", "l.0.a", "l.1", "l.1.a")
    mark = Mark("F1", "info", "l.0.a", 0, 1, kind="module", sites=("l.0.a", "l.1.a", "l.2.a"))
    assert common_ladders([small, large]) == [[0, 2], [0, 2]]
    assert common_ladders([small, large], [mark]) == [[1, 3], [1, 3]]


def test_merge_puts_what_is_added_where_it_follows():
    plain, more = ["a", "b", "d"], ["a", "b", "c", "d"]
    assert merge([plain, more]) == more
    assert merge([["a", "x", "b"], ["a", "y", "b"]]) == ["a", "y", "x", "b"]


@given(st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=4))
def test_merge_names_everything_once(orders):
    merged = merge(orders)
    assert sorted(merged) == sorted({n for names in orders for n in names})


def test_modules_of_different_types_are_not_joined():
    names = [f"b.{k}{part}" for k in range(3) for part in (".f.0", ".f.1", "")]
    types = {"f.0": "Linear", "f.1": "GELU"}
    sites = [
        Site(n, "module", types.get(n.partition(".")[2][2:], "Block"), i, len(names) - i)
        for i, n in enumerate(names)
    ]
    assert [sites[i].name for i in ladder(sites)] == ["b.0", "b.1", "b.2"]
    mlp = [Site(str(k), "module", ("Linear", "ReLU")[k % 2], k, 5 - k) for k in range(5)]
    assert ladder(mlp) == [0, 2, 4]
