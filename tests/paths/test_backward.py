"""The chain rule walked node by node is the one that PyTorch's engine walks."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradscope.errors import PathwayError
from gradscope.paths.backward import Backward, execution_order


def leaf(*shape, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def assert_reproduces_autograd(loss, targets):
    """Bit for bit, kernels and order of summation being the same."""
    expected = torch.autograd.grad(loss, targets, retain_graph=True, allow_unused=True)
    backward = Backward(loss, targets)
    found, aside = backward.run(backward.start, native=True)
    assert aside == {}
    for f, e in zip(found, expected, strict=True):
        if e is None:
            assert f is None or not f.any()
        else:
            assert f.dtype == e.dtype
            assert torch.equal(f, e)


def broadcast():
    x, y = leaf(3, 1), leaf(4, seed=1)
    return (x * y + y - x / 2).pow(2).sum(), [x, y]


def type_promotion():
    x, y = leaf(3), leaf(3, dtype=torch.float32, seed=1)
    return (x * y + y.half()).sum(), [x, y]


def many_consumers():
    x = leaf(5)
    h = torch.tanh(x)
    return sum((h * (i + 0.1)).sin().sum() for i in range(9)), [x, h]


def several_outputs():
    x = leaf(6, 4)
    a, b, _ = x.chunk(3)
    values, _ = b.sort(0)
    return (a * values.unbind(0)[1]).sum(), [x, a, b]


def written_in_place():
    x, y = leaf(4, 3), leaf(3, seed=1)
    h = x.clone()
    h[1] = y
    h[:, 0] *= 2
    h.add_(y)
    return h.pow(2).sum(), [x, y]


def complex_numbers():
    x = leaf(8)
    return (torch.fft.rfft(x) * torch.tensor(1 + 2j)).abs().sum(), [x]


def sparse_gradient():
    table = leaf(6, 3)
    dense = F.embedding(torch.tensor([0, 2, 2]), table, sparse=True)
    return dense.sin().sum() + table.sum(), [table]


def gathered():
    x = leaf(5, 4)
    at = torch.tensor([[0, 1], [3, 3], [2, 0], [1, 1], [0, 0]])
    return (x.gather(1, at).cumsum(1) ** 2).sum() + x[[1, 1, 4]].prod(), [x]


def convolution():
    net = nn.Sequential(nn.Conv1d(2, 3, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.MaxPool1d(2)).double()
    x = leaf(4, 2, 9)
    return net(x).pow(3).sum(), [x, *net.parameters()]


def recurrent():
    net = nn.LSTM(3, 4, num_layers=2, batch_first=True).double()
    x = leaf(2, 5, 3)
    out, (h, c) = net(x)
    return out.sum() + (h * c).sum(), [x, *net.parameters()]


def attention():
    q, kv = leaf(2, 4, 5, 8), leaf(2, 2, 5, 8, seed=1)
    out = F.scaled_dot_product_attention(q, kv, kv, is_causal=True, enable_gqa=True)
    return out.pow(2).sum(), [q, kv]


def dropout():
    x = leaf(40)
    return F.dropout(x.exp(), 0.5).pow(2).sum(), [x]


def cross_entropy():
    x = leaf(3, 5)
    return F.cross_entropy(x * 3, torch.tensor([0, 4, 2]), label_smoothing=0.1), [x]


class TwoOutputs(torch.autograd.Function):
    """x·y and x + y, with arguments that are no tensors in between."""

    @staticmethod
    def forward(ctx, factor, x, label, y):
        ctx.save_for_backward(x, y)
        ctx.factor = factor
        return factor * x * y, x + y

    @staticmethod
    def backward(ctx, product, total):
        x, y = ctx.saved_tensors
        return None, ctx.factor * product * y + total, None, ctx.factor * product * x + total


def custom_function():
    x, y = leaf(3), leaf(3, seed=1)
    product, total = TwoOutputs.apply(2.0, x.sin(), "label", y)
    return (product * total.exp()).sum(), [x, y]


def custom_function_with_an_unused_output():
    x = leaf(3)
    product, _ = TwoOutputs.apply(2.0, x.sin(), "label", torch.ones(3, dtype=torch.float64))
    return product.sum(), [x]


def checkpointed():
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Softmax(-1)).double()
    x = leaf(2, 3)
    h = checkpoint(net, x, use_reentrant=False)
    return (checkpoint(net, h, use_reentrant=False) * x).sum(), [x, *net.parameters()]


def gradient_penalty():
    x, y = leaf(4), leaf(4, seed=1)
    (g,) = torch.autograd.grad((x.exp() * y).sin().sum(), x, create_graph=True)
    return g.pow(2).sum(), [x, y]


def offloaded():
    x = leaf(4)
    with torch.autograd.graph.save_on_cpu():
        return (x.exp() * x.softmax(0)).sum(), [x]


GRAPHS = [
    broadcast,
    type_promotion,
    many_consumers,
    several_outputs,
    written_in_place,
    complex_numbers,
    gathered,
    convolution,
    recurrent,
    attention,
    dropout,
    cross_entropy,
    custom_function,
    custom_function_with_an_unused_output,
    checkpointed,
    gradient_penalty,
    offloaded,
]


@pytest.mark.parametrize("graph", GRAPHS, ids=lambda g: g.__name__)
def test_a_pass_is_autograds_pass_bit_for_bit(graph):
    torch.manual_seed(0)
    assert_reproduces_autograd(*graph())


def test_a_sparse_gradient_stays_what_autograd_makes_of_it():
    loss, targets = sparse_gradient()
    (expected,) = torch.autograd.grad(loss, targets, retain_graph=True)
    backward = Backward(loss, targets)
    [found], _ = backward.run(backward.start)
    assert found.layout == expected.layout
    assert torch.equal(found.to_dense(), expected.to_dense())


def test_what_is_set_aside_can_be_gone_on_from():
    x = leaf(5)
    h = torch.tanh(x)
    loss = (h.exp() * h).sum()
    backward = Backward(loss, [x])
    fork = h.grad_fn
    consumers = {
        n: {i} for n in backward.nodes for i, e in enumerate(n.next_functions) if e[0] is fork
    }
    [before], aside = backward.run(backward.start, consumers, native=True)
    assert before is None
    assert list(aside) == [fork]
    [after], rest = backward.run(aside, native=True)
    assert rest == {}
    expected = torch.autograd.grad(loss, x, retain_graph=True)[0]
    assert torch.equal(after, expected)
    [whole], copied = backward.run(backward.start, consumers, go_on=True, native=True)
    assert torch.equal(whole, expected)
    assert torch.equal(copied[fork][0], aside[fork][0])


def test_nodes_come_after_all_that_bring_them_gradient():
    loss, _ = recurrent()
    order = execution_order(loss.grad_fn)
    at = {node: i for i, node in enumerate(order)}
    assert len(at) == len(order)
    for node in order:
        assert all(at[child] > at[node] for child, _ in node.next_functions if child is not None)


def test_a_checkpointed_region_is_recomputed_once_a_pass():
    calls = []

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(1)
            return (x.exp() * x.sin()).softmax(-1).tanh()

    x = leaf(4)
    loss = checkpoint(Counted(), x, use_reentrant=False).pow(2).sum()
    backward = Backward(loss, [x])
    calls.clear()
    backward.run(backward.start)
    assert len(calls) == 1


def test_a_freed_graph_is_named():
    x = leaf(4)
    loss = x.exp().sum()
    loss.backward()
    backward = Backward(loss, [x])
    with pytest.raises(PathwayError, match=r"ExpBackward0 .* before loss.backward\(\) frees"):
        backward.run(backward.start)


def test_parameters_changed_in_place_are_noticed():
    w, x = leaf(4), leaf(4, seed=1)
    loss = (w * x).sum()
    with torch.no_grad():
        w.mul_(2)
    backward = Backward(loss, [x])
    with pytest.raises(PathwayError, match="changes the parameters in place"):
        backward.run(backward.start)


def test_errors_in_someones_own_backward_are_theirs():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise KeyError("theirs")

    x = leaf(4)
    backward = Backward(Broken.apply(x).sum(), [x])
    with pytest.raises(KeyError, match="theirs"):
        backward.run(backward.start)


def reentrant(x):
    return checkpoint(torch.tanh, x, use_reentrant=True)


def fake(name):
    """A stand-in for a node that needs a GPU or several processes."""

    def hide(x):
        methods = {
            "forward": staticmethod(lambda ctx, x: x.clone()),
            "backward": staticmethod(lambda ctx, g: g),
        }
        return type(name, (torch.autograd.Function,), methods).apply(x)

    return hide


def compiled(x):
    return torch.compile(lambda y: y.tanh().softmax(-1), backend="aot_eager")(x)


@pytest.mark.parametrize(
    ("hide", "message"),
    [
        (reentrant, "use_reentrant=False"),
        (compiled, "force_eager"),
        (fake("RegisterPostBackwardFunction"), "unsharded copy"),
        (fake("Graphed"), "CUDA graph"),
    ],
    ids=["reentrant checkpoint", "compiled", "fully_shard", "CUDA graph"],
)
def test_what_hides_its_inside_is_named(hide, message):
    x = leaf(4, dtype=torch.float32)
    loss = hide(x.exp()).sum()
    with pytest.raises(PathwayError, match=message):
        Backward(loss, [x])


def test_what_is_hidden_beside_the_way_does_no_harm():
    x, y = leaf(4), leaf(4, seed=1)
    loss = (x * reentrant(y)).sum()
    backward = Backward(loss, [x])
    [found], _ = backward.run(backward.start)
    assert torch.equal(found, torch.tanh(y).detach())


@pytest.mark.parametrize(
    ("loss", "targets", "message"),
    [
        (torch.ones(2, requires_grad=True) * 2, [torch.ones(1, requires_grad=True)], "one element"),
        (torch.ones(()), [torch.ones(1, requires_grad=True)], "requires_grad=False"),
        (
            torch.ones((), requires_grad=True) * 2,
            [torch.ones(2, 3)],
            r"target 0, of shape \(2, 3\)",
        ),
        (torch.ones((), requires_grad=True) * 2, [], "no target"),
    ],
    ids=["not a scalar", "constant", "constant target", "no target"],
)
def test_unusable_arguments_are_named(loss, targets, message):
    with pytest.raises(PathwayError, match=message):
        Backward(loss, targets)
