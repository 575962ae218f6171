import pytest

from gradscope.findings._ladders import ladders, role_of
from gradscope.run import Site


@pytest.mark.parametrize(
    ("name", "role", "indices"),
    [
        ("layers.3.content", "layers.*.content", (3,)),
        ("layers.3.norm1", "layers.*.norm1", (3,)),
        ("layer2.0.conv1", "layer*.*.conv1", (2, 0)),
        ("encoder.layers.11.ffn.0", "encoder.layers.*.ffn.*", (11, 0)),
        ("fc2", "fc*", (2,)),
        ("block1.conv2", "block*.conv2", (1,)),
        ("net.4[0]", "net.*[0]", (4,)),
        ("layers.1.act#1", "layers.*.act#1", (1,)),
        ("layers.1:add", "layers.*:add", (1,)),
        ("12", "*", (12,)),
        ("head", "head", ()),
        ("(output)", "(output)", ()),
    ],
)
def test_role(name, role, indices):
    assert role_of(name) == (role, indices)


def sites(*names, types=None, depths=None, parameters=True):
    n = len(names)
    return [
        Site(
            name,
            "module",
            (types or ["Linear"] * n)[i],
            i,
            (depths or list(range(10 * n, 0, -10)))[i],
            parameters=parameters,
        )
        for i, name in enumerate(names)
    ]


def found(*args, **kwargs):
    return {ladder.role: ladder.sites for ladder in ladders(sites(*args, **kwargs))}


def test_repeated_blocks_make_one_ladder_per_role():
    names = [f"layers.{k}.{part}" for k in range(3) for part in ("attn", "norm1")]
    assert found(*names) == {
        "layers.*.attn": ("layers.0.attn", "layers.1.attn", "layers.2.attn"),
        "layers.*.norm1": ("layers.0.norm1", "layers.1.norm1", "layers.2.norm1"),
    }


def test_sequential_is_split_by_type():
    names = [f"net.{k}" for k in range(6)]
    roles = ladders(sites(*names, types=["Linear", "ReLU"] * 3))
    assert [r.sites for r in roles] == [tuple(names[::2]), tuple(names[1::2])]
    assert {r.block for r in roles} == {"net.*"}


def test_stages_join_into_one_long_ladder():
    names = [f"layer{s}.{b}.conv1" for s in (1, 2) for b in (0, 1)]
    assert found(*names) == {"layer*.*.conv1": tuple(names)}


def test_parallel_towers_are_told_apart_by_depth():
    names = [f"towers.{t}.layers.{k}" for t in (0, 1) for k in range(3)]
    assert found(*names, depths=[30, 20, 10, 30, 20, 10]) == {
        "towers.0.layers.*": tuple(names[:3]),
        "towers.1.layers.*": tuple(names[3:]),
    }


def test_parallel_heads_inside_layers_are_told_apart_by_depth():
    names = [f"layers.{k}.heads.{h}" for k in range(3) for h in (0, 1)]
    assert found(*names, depths=[30, 30, 20, 20, 10, 10]) == {
        "layers.*.heads.0": tuple(names[::2]),
        "layers.*.heads.1": tuple(names[1::2]),
    }


def test_parallel_branches_are_no_ladder():
    assert not found("branch.0", "branch.1", "branch.2", depths=[5, 5, 5], parameters=False)


def test_calls_of_one_module_are_a_shared_ladder():
    names = ["cell", "cell.ih", "cell#1", "cell.ih#1", "cell#2", "cell.ih#2"]
    roles = ladders(sites(*names))
    assert {r.role: r.sites for r in roles} == {
        "cell#*": ("cell", "cell#1", "cell#2"),
        "cell.ih#*": ("cell.ih", "cell.ih#1", "cell.ih#2"),
    }
    assert all(r.shared and r.block == "cell#*" for r in roles)


def test_a_module_called_twice_a_layer_keeps_its_calls_apart():
    names = [f"layers.{k}.act{call}" for k in range(3) for call in ("", "#1")]
    assert set(found(*names)) == {"layers.*.act", "layers.*.act#1"}


def test_without_repetition_the_chain_of_modules_with_parameters():
    names = ["(output)", "stem", "relu", "body", "head"]
    chain = sites(*names)
    chain[2] = Site("relu", "module", "ReLU", 2, 25, parameters=False)
    (ladder,) = ladders(chain)
    assert (ladder.block, ladder.sites) == ("", ("stem", "body", "head"))


def test_unknown_depths_count_as_a_series():
    assert found("fc1", "fc2", "fc3", depths=[-1, -1, -1]) == {"fc*": ("fc1", "fc2", "fc3")}


def test_aliases_are_left_out():
    twins = [*sites("a.0", "a.1", "a.2"), Site("a", "module", "Sequential", 3, 10, alias_of="a.2")]
    assert [r.sites for r in ladders(twins)] == [("a.0", "a.1", "a.2")]


def test_two_sites_are_no_trend():
    assert ladders(sites("net.0", "net.1")) == []
