"""The backward of softmax and attention: PyTorch's, and right where PyTorch's is not."""

import math

import pytest
import torch
import torch.nn.functional as F

from gradscope.paths import softmax
from gradscope.paths.softmax import accurate_backward, attention_backward, softmax_backward


def normal(*shape, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("dim", [0, 1, -1, -3])
@pytest.mark.parametrize("kind", ["softmax", "in float64", "softmin"])
def test_softmax_agrees_with_the_kernel(dim, kind):
    x = normal(3, 4, 5, dtype=torch.float32).requires_grad_()
    functions = {
        "softmax": lambda: torch.softmax(x, dim),
        "in float64": lambda: torch.softmax(x, dim, dtype=torch.float64),
        "softmin": lambda: F.softmin(x, dim),
    }
    y = functions[kind]()
    node = y.grad_fn
    g = normal(3, 4, 5, seed=1, dtype=y.dtype)
    assert torch.allclose(softmax_backward(node, g), node(g).to(y.dtype), rtol=1e-5, atol=1e-6)


def test_a_single_number_has_no_jacobian():
    x = torch.tensor(2.0, requires_grad=True)
    assert softmax_backward(torch.softmax(x, 0).grad_fn, torch.tensor(3.0)) == 0


@pytest.mark.parametrize("margin", [0, 5, 15, 30, 60])
def test_softmax_keeps_its_digits_however_peaked(margin):
    """Reference: p_i Σ_j p_j (g_i − g_j), without cancellation, in float64."""
    logits = normal(7, dtype=torch.float32)
    logits[3] += margin
    g = normal(7, seed=1, dtype=torch.float32)
    node = torch.softmax(logits.requires_grad_(), 0).grad_fn
    p = torch.softmax(logits.double(), 0).detach()
    expected = p * ((g[:, None] - g[None, :]).double() @ p[:, None])[:, 0]
    error = (softmax_backward(node, g).double() - expected).norm() / expected.norm()
    assert error < 1e-5
    if margin >= 15:  # what the kernel leaves
        assert (node(g).double() - expected).norm() / expected.norm() > 1e-3


ATTENTION = {
    "plain": {},
    "causal": {"is_causal": True},
    "scaled": {"scale": 0.3},
    "mask": {"attn_mask": torch.ones(5, 6).tril(1).bool()},
    "mask of each sample": {"attn_mask": normal(2, 1, 5, 6)},
    "a row with nothing to see": {
        "attn_mask": torch.ones(5, 6, dtype=torch.bool).index_fill(0, torch.tensor(2), False)
    },
}


@pytest.mark.parametrize("block", [1 << 22, 100, 1])
@pytest.mark.parametrize("key_heads", [4, 2, 1])
@pytest.mark.parametrize("options", ATTENTION.values(), ids=ATTENTION)
def test_attention_agrees_with_the_kernel(options, key_heads, block, monkeypatch):
    monkeypatch.setattr(softmax, "BLOCK", block)
    q = normal(2, 4, 5, 8).requires_grad_()
    k, v = (normal(2, key_heads, 6, 8, seed=s).requires_grad_() for s in (1, 2))
    y = F.scaled_dot_product_attention(q, k, v, **options, enable_gqa=key_heads < 4)
    node = y.grad_fn
    if "FlashAttention" not in node.name():
        pytest.skip("this version of torch doesn't fuse grouped queries")
    g = normal(*y.shape, seed=3)
    found = attention_backward(node, g)
    for f, e in zip(found, node(g), strict=True):
        assert torch.allclose(f, e, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("margin", [5, 15, 30])
def test_attention_keeps_its_digits_however_peaked(margin):
    """Every query finds its own key, by `margin`. Reference: unfused, in float64."""
    eye = torch.eye(8, dtype=torch.float64).expand(1, 1, 8, 8)
    q = (eye * margin * math.sqrt(8)).float().double()
    v, g = normal(1, 1, 8, 8, seed=1).float(), normal(1, 1, 8, 8, seed=2).float()
    logits = (q @ eye.mT / math.sqrt(8)).requires_grad_()
    on_logits = softmax_backward(torch.softmax(logits, -1).grad_fn, (g @ v.mT).double())
    expected = on_logits @ eye / math.sqrt(8)
    node = F.scaled_dot_product_attention(
        q.float().requires_grad_(), eye.float(), v.requires_grad_()
    ).grad_fn
    error = (attention_backward(node, g)[0].double() - expected).norm() / expected.norm()
    assert error < 1e-4
    if margin >= 15:
        assert (node(g)[0].double() - expected).norm() / expected.norm() > 1e-3


class Node:
    """A fused attention node that saved something else than is expected of it."""

    def __init__(self, node, **changed):
        self._node, self._changed = node, changed

    def __getattr__(self, name):
        return self._changed[name] if name in self._changed else getattr(self._node, name)


def test_a_kernel_that_saves_something_else_is_left_to_itself():
    q = normal(1, 2, 5, 8).requires_grad_()
    node = F.scaled_dot_product_attention(q, q, q).grad_fn
    g = normal(1, 2, 5, 8, seed=1)
    assert accurate_backward(Node(node), [g]) is not None
    assert accurate_backward(Node(node, _saved_scale=2.0), [g]) is None
    assert accurate_backward(Node(node, _saved_is_causal=True), [g]) is None
    assert accurate_backward(Node(node, _saved_dropout_p=0.1), [g]) is None


def test_half_precision_and_other_nodes_are_left_to_the_kernel():
    q = normal(1, 2, 5, 8, dtype=torch.bfloat16).requires_grad_()
    node = F.scaled_dot_product_attention(q, q, q).grad_fn
    assert accurate_backward(node, [q.detach()]) is None
    assert accurate_backward(torch.tanh(q).grad_fn, [q.detach()]) is None
    assert accurate_backward(torch.log_softmax(q, -1).grad_fn, [q.detach()]) is None


def test_an_edge_for_a_bias_gets_nothing_unless_it_is_trained():
    q = normal(1, 2, 5, 8).requires_grad_()
    node = F.scaled_dot_product_attention(q, q, q).grad_fn
    g = normal(1, 2, 5, 8, seed=1)
    constant = Node(node, next_functions=(*node.next_functions, (None, 0)))
    assert len(attention_backward(constant, g)) == 4
    assert attention_backward(constant, g)[3] is None
    trained = Node(node, next_functions=(*node.next_functions, (q.tanh().grad_fn, 0)))
    assert attention_backward(trained, g) is None
