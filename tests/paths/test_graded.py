"""graded_gradients and mean_crossings against the enumeration of every path."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gradscope.paths import Crossing, find_softmaxes, graded_gradients, mean_crossings
from tests.reference import path_enumeration as reference
from tests.reference.path_enumeration import ARITY, Op, Program

ORDERS = 8


@st.composite
def programs(draw, most=8):
    """A random small graph with forks, softmaxes, attention and weights used several times."""
    ops = []
    for i in range(draw(st.integers(1, most))):
        kind = draw(st.sampled_from(sorted(ARITY)))
        # One input is always the latest value, so that depth comes about.
        inputs = [i] + [draw(st.integers(0, i)) for _ in range(ARITY[kind] - 1)]
        order = draw(st.permutations(inputs))
        ops.append(Op(kind, tuple(order), draw(st.integers(0, 1))))
    n = draw(st.sampled_from([4, 6]))
    return make(ops, n, seed=draw(st.integers(0, 999)))


def make(ops, n=4, seed=0, weights=2):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return Program(ops, [normal(n, n) / n**0.5 for _ in range(weights)], normal(n), normal(n))


def assert_orders(found, expected, rtol):
    """Every order is right relative to its own size; orders that were left out are zero."""
    sizes = expected.flatten(1).norm(dim=1)
    errors = (found - expected[: len(found)]).flatten(1).norm(dim=1)
    assert (errors <= rtol * sizes[: len(found)]).all(), (errors, sizes)
    assert (expected[len(found) :] == 0).all()


@settings(max_examples=40)
@given(programs(), st.data())
def test_every_order_is_the_sum_over_its_paths(program, data):
    value = data.draw(st.integers(0, len(program.ops)), label="target")
    expected = reference.graded(program, value, ORDERS)
    # Where an order is the small rest of large terms that cancel, there is no right answer.
    for dtype, rtol in [(torch.float64, 1e-8), (torch.float32, 1e-4)]:
        if reference.rounding(program, value, ORDERS, torch.finfo(dtype).eps) > rtol / 20:
            continue
        graph = reference.run(program, dtype)
        graded = graded_gradients(graph.loss, [graph.values[value]])
        assert graded.components[0].dtype is dtype
        assert not graded.open_ended
        assert_orders(graded.components[0].double(), expected, rtol)


@settings(max_examples=30)
@given(programs())
def test_a_weight_used_several_times_gathers_all_its_uses(program):
    graph = reference.run(program)
    graded = graded_gradients(graph.loss, graph.weights)
    for weight, found in enumerate(graded.components):
        expected = reference.graded_weight(program, weight, ORDERS)
        whole = expected.norm(dim=(1, 2)).sum()
        assert torch.allclose(found, expected[: len(found)], rtol=1e-8, atol=1e-12 * float(whole))
        assert (expected[len(found) :] == 0).all()


@settings(max_examples=30)
@given(programs(), st.sampled_from([0.0, 0.5, 2.0]))
def test_the_orders_are_the_coefficients_of_the_gated_gradient(program, t):
    graph = reference.run(program)
    gated = reference.run(program, gate=t)
    expected = torch.autograd.grad(gated.loss, gated.values[0])[0]
    found = graded_gradients(graph.loss, [graph.values[0]]).components[0]
    powers = torch.tensor([t**k for k in range(len(found))], dtype=torch.float64)
    assert torch.allclose(powers @ found, expected, rtol=1e-8, atol=1e-14)


@settings(max_examples=30)
@given(programs(), st.integers(0, 3))
def test_the_last_order_kept_holds_all_above(program, limit):
    graph = reference.run(program)
    graded = graded_gradients(graph.loss, [graph.values[0]], max_order=limit)
    expected = reference.graded(program, 0, ORDERS)
    expected = torch.cat([expected[:limit], expected[limit:].sum(0, keepdim=True)])
    deepest = reference.most_crossed(program.ops, 0)
    assert graded.orders == min(limit, deepest)
    assert graded.open_ended == (deepest > limit)
    whole = float(expected.norm(dim=1).sum())
    assert torch.allclose(
        graded.components[0], expected[: graded.orders + 1], rtol=1e-8, atol=1e-13 * whole
    )


@settings(max_examples=30)
@given(programs())
def test_mean_crossings_weighs_the_orders(program):
    graph = reference.run(program)
    parts = reference.graded(program, 0, ORDERS)
    g = parts.sum(0)
    assume(float(g.norm()) > 1e-4 * float(reference.magnitudes(program, 0, ORDERS).sum(0).norm()))
    weights = parts @ g / (g @ g)
    expected = (torch.arange(ORDERS + 1) * weights).sum()
    found = mean_crossings(graph.loss, [graph.values[0]])
    assert found.shape == (1,)
    assert torch.allclose(found[0], expected, rtol=1e-6, atol=1e-9)


def residual_stack(layers, scale=1.0, sharpness=1.0):
    """x ← x + scale · W softmax(sharpness · V x), `layers` times: orders 0 to `layers`."""
    ops = []
    for _ in range(layers):
        x = len(ops)
        ops += [
            Op("linear", (x,), weight=0, scale=sharpness),
            Op("softmax", (x + 1,)),
            Op("linear", (x + 2,), weight=1, scale=scale),
            Op("add", (x, x + 3)),
        ]
    return make(ops)


@pytest.mark.parametrize(
    ("program", "decades"),
    [(residual_stack(ORDERS, scale=3e-4), 30), (residual_stack(ORDERS, sharpness=30.0), 15)],
    ids=["weak branches", "peaked softmaxes"],
)
@pytest.mark.parametrize(
    ("dtype", "rtol"), [(torch.float64, 1e-8), (torch.float32, 1e-4)], ids=["float64", "float32"]
)
def test_small_orders_are_right_relative_to_their_own_size(program, decades, dtype, rtol):
    expected = reference.graded(program, 0, ORDERS)
    sizes = expected.norm(dim=1)
    assert sizes.max() / sizes[-1] > 10.0**decades
    graph = reference.run(program, dtype)
    graded = graded_gradients(graph.loss, [graph.values[0]])
    assert_orders(graded.components[0].double(), expected, rtol)
    assert torch.allclose(graded.norms()[0].double(), sizes, rtol=rtol, atol=0)
    g = expected.sum(0)
    found = graded.projections()[0].double()
    assert torch.allclose(found, expected @ g / (g @ g), rtol=10 * rtol, atol=0)


def test_nested_softmax_crosses_once_for_each():
    program = make([Op("softmax", (0,)), Op("linear", (1,)), Op("softmax", (2,))])
    graph = reference.run(program)
    graded = graded_gradients(graph.loss, [graph.values[0], graph.values[1], graph.values[3]])
    first, second, last = graded.components
    assert graded.orders == 2
    assert (first[:2] == 0).all()
    assert first[2].norm() > 0
    assert second[1].norm() > 0
    assert (second[[0, 2]] == 0).all()
    assert last[0].norm() > 0
    assert (last[1:] == 0).all()
    assert mean_crossings(graph.loss, graph.values[:2]).tolist() == pytest.approx([2, 1])


def test_without_a_softmax_there_is_only_order_zero():
    x = torch.randn(3, 4, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(torch.tanh(x), torch.tensor([0, 1, 2]))
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    graded = graded_gradients(loss, [x])
    assert graded.orders == 0
    assert not graded.open_ended
    assert graded.residual == 0
    assert torch.equal(graded.components[0][0], expected)
    assert mean_crossings(loss, [x]).tolist() == [0.0]


def test_only_the_softmaxes_that_are_given_count():
    program = residual_stack(3)
    graph = reference.run(program)
    middle = find_softmaxes(graph.loss)[1]
    assert middle.node is graph.values[6].grad_fn
    through, avoiding = reference.through(program, 0, gates=[6])
    for chosen in (middle, middle.node):
        graded = graded_gradients(graph.loss, [graph.values[0]], softmaxes=[chosen])
        assert graded.orders == 1
        assert torch.allclose(graded.components[0], torch.stack([avoiding, through]), rtol=1e-10)


def test_a_target_off_the_graph_has_no_gradient():
    x = torch.randn(4, requires_grad=True)
    unused = torch.randn(2, 3, requires_grad=True)
    loss = torch.softmax(x, 0)[0]
    graded = graded_gradients(loss, [x, unused])
    assert graded.components[1].shape == (2, 2, 3)
    assert (graded.components[1] == 0).all()
    assert torch.isnan(graded.projections()[1]).all()
    assert torch.isnan(mean_crossings(loss, [unused])).all()


def test_a_crossing_is_its_edges():
    x, y = (torch.randn(4, requires_grad=True) for _ in range(2))
    loss = (torch.softmax(x, 0) * y).sum()
    product = loss.grad_fn.next_functions[0][0]
    graded = graded_gradients(loss, [x, y], softmaxes=[Crossing(product, (1,))])
    assert [c.flatten(1).norm(dim=1).gt(0).tolist() for c in graded.components] == [
        [True, False],
        [False, True],
    ]
