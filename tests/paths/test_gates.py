"""through: the part of a gradient that passes named places."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradscope.errors import PathwayError
from gradscope.paths import find_softmaxes, graded_gradients, through
from tests.paths.test_graded import make, programs, residual_stack
from tests.reference import path_enumeration as reference
from tests.reference.path_enumeration import Op


@settings(max_examples=60)
@given(programs(), st.data())
def test_the_parts_are_the_paths_that_visit_a_gate_and_those_that_do_not(program, data):
    inner = range(len(program.ops))
    gates = data.draw(st.sets(st.sampled_from(inner), min_size=1), label="gates")
    target = data.draw(st.sampled_from(inner), label="target")
    # Where a part is the small rest of large terms that cancel, there is no right answer.
    assume(reference.rounding(program, target, 8, torch.finfo(torch.float64).eps) <= 1e-8 / 20)
    graph = reference.run(program)
    found = through(graph.loss, [graph.values[target]], [graph.values[g] for g in gates])
    expected = reference.through(program, target, gates)
    atol = 1e-12 * float(reference.magnitudes(program, target, 8).norm())
    assert torch.allclose(found.through[0], expected[0], rtol=1e-8, atol=atol)
    assert torch.allclose(found.avoiding[0], expected[1], rtol=1e-8, atol=atol)


def test_passing_any_softmax_is_every_order_but_zero():
    program = residual_stack(8, scale=1e-4)
    graph = reference.run(program)
    branches = [i + 1 for i, op in enumerate(program.ops) if op.kind == "softmax"]
    graded = graded_gradients(graph.loss, [graph.values[0]])
    found = through(graph.loss, [graph.values[0]], [graph.values[b] for b in branches])
    orders = graded.components[0]
    assert torch.allclose(found.avoiding[0], orders[0], rtol=1e-12)
    assert torch.allclose(found.through[0], orders[1:].sum(0), rtol=1e-10)


def test_a_target_that_is_a_gate_is_passed_by_everything():
    x = torch.randn(4, requires_grad=True)
    hidden = torch.tanh(x)
    loss = (hidden * torch.softmax(hidden, 0)).sum()
    found = through(loss, [hidden, x], [hidden])
    assert torch.equal(found.avoiding[0], torch.zeros(4))
    assert torch.equal(found.avoiding[1], torch.zeros(4))
    assert found.through[0].norm() > 0


def test_one_output_of_several_is_a_gate_of_its_own():
    x = torch.randn(6, dtype=torch.float64, requires_grad=True)
    left, right = x.chunk(2)
    loss = (left * right.exp()).sum()
    found = through(loss, [x], [left])
    assert torch.allclose(found.through[0], torch.cat([right.exp(), torch.zeros(3)]))
    assert torch.allclose(found.avoiding[0], torch.cat([torch.zeros(3), left * right.exp()]))


def test_gates_may_be_nodes_and_crossings():
    program = make([Op("softmax", (0,)), Op("tanh", (0,)), Op("mul", (1, 2))])
    graph = reference.run(program)
    expected = reference.through(program, 0, gates=[1])
    for gate in (graph.values[1], graph.values[1].grad_fn, find_softmaxes(graph.loss)[0]):
        found = through(graph.loss, [graph.values[0]], [gate])
        assert torch.allclose(found.through[0], expected[0], rtol=1e-12)
        assert torch.allclose(found.avoiding[0], expected[1], rtol=1e-12)


def test_no_gate_lets_everything_avoid_them():
    x = torch.randn(4, requires_grad=True)
    found = through(x.exp().sum(), [x], [])
    assert torch.equal(found.avoiding[0], x.detach().exp())
    assert torch.equal(found.through[0], torch.zeros(4))


def test_a_gate_beside_the_way_lets_nothing_through():
    x, y = (torch.randn(4, requires_grad=True) for _ in range(2))
    aside = torch.tanh(y)
    found = through((x.exp() * aside).sum(), [x], [aside])
    assert torch.equal(found.through[0], torch.zeros(4))


@pytest.mark.parametrize("gate", ["other graph", "no gradient", "node of another graph"])
def test_a_gate_outside_the_graph_is_refused(gate):
    x = torch.randn(4, requires_grad=True)
    other = torch.tanh(x)
    place = {
        "other graph": other,
        "no gradient": x.detach(),
        "node of another graph": other.grad_fn,
    }
    with pytest.raises(PathwayError, match="gate 0"):
        through(x.exp().sum(), [x], [place[gate]])
