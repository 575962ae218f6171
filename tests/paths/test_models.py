"""Models that were not made for this, against oracles on PyTorch's own engine."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

from gradscope.paths import find_softmaxes, graded_gradients, mean_crossings, through
from tests.reference.torch_engine import gated, graded_by_vmap

D, HEADS, TOKENS = 8, 2, 5


def encoder(layers, training=True, **options):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        D, HEADS, 2 * D, dropout=0.0, batch_first=True, dtype=torch.float64, **options
    )
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).train(training)


def tokens():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(3, TOKENS, D, generator=generator, dtype=torch.float64)
    return x.requires_grad_()


def classify(output):
    return F.cross_entropy(output[:, 0], torch.tensor([0, 3, 5]))


class GroupedQueries(nn.Module):
    """Causal attention with fewer keys than queries, pre-norm, with a residual stream."""

    def __init__(self, layers=3):
        super().__init__()
        torch.manual_seed(0)
        self.norms = nn.ModuleList(nn.LayerNorm(D) for _ in range(layers))
        self.queries = nn.ModuleList(nn.Linear(D, 4 * 2) for _ in range(layers))
        self.keys_values = nn.ModuleList(nn.Linear(D, 2 * 2 * 2) for _ in range(layers))
        self.outputs = nn.ModuleList(nn.Linear(4 * 2, D) for _ in range(layers))
        self.double()

    def forward(self, x):
        layers = zip(self.norms, self.queries, self.keys_values, self.outputs, strict=True)
        for norm, query, key_value, output in layers:
            h = norm(x)
            q = query(h).unflatten(-1, (4, 2)).transpose(1, 2)
            k, v = key_value(h).unflatten(-1, (2, 2, 2)).unbind(-3)
            k, v = k.transpose(1, 2), v.transpose(1, 2)
            z = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
            x = x + output(z.transpose(1, 2).flatten(-2))
        return x


class Shared(nn.Module):
    """One layer applied several times."""

    def __init__(self, times):
        super().__init__()
        self.layer = encoder(1).layers[0]
        self.times = times

    def forward(self, x):
        for _ in range(self.times):
            x = self.layer(x)
        return x


class SelfAttention(nn.Module):
    def __init__(self, need_weights):
        super().__init__()
        torch.manual_seed(0)
        self.attention = nn.MultiheadAttention(D, HEADS, batch_first=True, dtype=torch.float64)
        self.need_weights = need_weights

    def forward(self, x):
        for _ in range(2):
            x = x + self.attention(x, x, x, need_weights=self.need_weights)[0]
        return x


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = encoder(3).layers

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False)
        return x


MODELS = {
    "encoder, training": (lambda: encoder(3), 3),
    "encoder, evaluation": (lambda: encoder(3, training=False), 3),
    "encoder, pre-norm": (lambda: encoder(3, norm_first=True), 3),
    "need_weights=True": (lambda: SelfAttention(True), 2),
    "need_weights=False": (lambda: SelfAttention(False), 2),
    "grouped queries, causal": (GroupedQueries, 3),
    "one layer four times": (lambda: Shared(4), 4),
    "checkpointed": (Checkpointed, 3),
}


def assert_graded(graded, expected, rtol):
    for found, oracle in zip(graded.components, expected, strict=True):
        kept = len(found)
        sizes = oracle.flatten(1).norm(dim=1)
        errors = (found - oracle[:kept]).flatten(1).norm(dim=1)
        # Biases that a softmax or a norm takes to zero have a gradient of rounding only.
        assert (errors <= rtol * sizes[:kept] + 1e-14 * sizes.sum() + 1e-16).all()
        assert (sizes[kept:] == 0).all()


@pytest.mark.parametrize(("make", "depth"), MODELS.values(), ids=MODELS)
def test_every_order_of_a_model(make, depth):
    model, x = make(), tokens()
    loss = classify(model(x))
    targets = [x, *model.parameters()]
    graded = graded_gradients(loss, targets)
    assert graded.orders == depth
    assert not graded.open_ended
    assert graded.residual < 1e-10
    if make is not Checkpointed:  # vmap can't recompute
        assert_graded(graded, graded_by_vmap(loss, targets, 8), rtol=1e-8)
    for t in (0.0, 0.5, 2.0):
        powers = torch.tensor([t**k for k in range(depth + 1)], dtype=torch.float64)
        for found, expected in zip(graded.components, gated(loss, targets, t), strict=True):
            polynomial = torch.tensordot(powers, found, 1)
            assert torch.allclose(polynomial, expected, rtol=1e-9, atol=1e-14)
    orders = torch.arange(depth + 1, dtype=torch.float64)
    by_order = torch.stack([p @ orders for p in graded.projections()])
    strong = torch.stack([g.sum(0).norm() for g in graded.components]) > 1e-9
    means = mean_crossings(loss, targets)
    assert torch.allclose(means[strong], by_order[strong], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_fused_and_unfused_attention_are_one_thing(backend):
    model, x = encoder(2), tokens()
    with sdpa_kernel(SDPBackend.MATH):
        expected = graded_gradients(classify(model(x)), [x]).components[0]
    with sdpa_kernel(backend):
        found = graded_gradients(classify(model(x)), [x]).components[0]
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("layers", [12, 24])
def test_depth_has_no_limit(layers):
    model, x = encoder(layers), tokens()
    loss = classify(model(x))
    targets = [x, model.layers[layers // 2].linear1.weight]
    kept = graded_gradients(loss, targets)
    assert kept.orders == 8
    assert kept.open_ended
    assert_graded(kept, graded_by_vmap(loss, targets, 8), rtol=1e-8)
    every = graded_gradients(loss, targets, max_order=99)
    assert every.orders == layers
    assert not every.open_ended
    for some, whole in zip(kept.components, every.components, strict=True):
        assert torch.equal(some[:8], whole[:8])
        assert torch.allclose(some[8], whole[8:].sum(0), rtol=1e-10, atol=0)
    orders = torch.arange(layers + 1, dtype=torch.float64)
    by_order = torch.stack([p @ orders for p in every.projections()])
    assert torch.allclose(mean_crossings(loss, targets), by_order, rtol=1e-9)


def test_the_loss_on_its_own_crosses_nothing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(D, D), nn.GELU(), nn.LayerNorm(D), nn.Linear(D, D))
    loss = F.cross_entropy(model(torch.randn(3, D)), torch.tensor([0, 1, 2]))
    assert find_softmaxes(loss) == []
    graded = graded_gradients(loss, list(model.parameters()))
    assert graded.orders == 0
    assert graded.residual == 0


def test_the_value_crosses_no_softmax():
    q, k, v = (torch.randn(1, 2, 4, 8, requires_grad=True) for _ in range(3))
    loss = F.scaled_dot_product_attention(q, k, v).pow(2).sum()
    graded = graded_gradients(loss, [q, k, v])
    crossing = [c.flatten(1).norm(dim=1).gt(0).tolist() for c in graded.components]
    assert crossing == [[False, True], [False, True], [True, False]]


def test_a_trained_bias_on_the_logits_crosses():
    q = torch.randn(1, 2, 4, 8, requires_grad=True)
    bias = torch.randn(4, 4, requires_grad=True)
    loss = F.scaled_dot_product_attention(q, q, q, attn_mask=bias).pow(2).sum()
    [softmax] = find_softmaxes(loss)
    assert softmax.node.name() == "SafeSoftmaxBackward0"
    graded = graded_gradients(loss, [bias])
    assert graded.components[0][0].norm() == 0
    assert graded.components[0][1].norm() > 0


@pytest.mark.parametrize("need_weights", [True, False])
def test_dropout_in_training(need_weights):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(D, HEADS, dropout=0.5, batch_first=True).train()
    x = torch.randn(3, TOKENS, D, requires_grad=True)
    z = attention(x, x, x, need_weights=need_weights)[0]
    graded = graded_gradients(classify(z), [x])
    assert graded.orders == 1
    assert graded.residual < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision(dtype):
    model, x = encoder(3).float(), tokens().detach().float().requires_grad_()
    with torch.autocast("cpu", dtype):
        output = model(x)
    loss = classify(output.float())
    exact = graded_gradients(classify(model(x)), [x]).components[0]
    graded = graded_gradients(loss, [x])
    assert graded.components[0].dtype is torch.float32
    assert graded.residual < 0.05
    sizes, expected = (c.flatten(1).norm(dim=1)[:2] for c in (graded.components[0], exact))
    assert torch.allclose(sizes, expected, rtol=0.1)


def test_a_pathway_through_one_layer_of_a_model():
    """The residual branch of a layer: with its output cut off, what is left avoids it."""
    model, x = encoder(3, norm_first=True), tokens()
    outputs = []
    handle = model.layers[1].self_attn.register_forward_hook(lambda m, i, o: outputs.append(o[0]))
    loss = classify(model(x))
    handle.remove()
    split = through(loss, [x], outputs)

    def cut(module, inputs, output):
        return output[0].detach(), output[1]

    handle = model.layers[1].self_attn.register_forward_hook(cut)
    expected = torch.autograd.grad(classify(model(x)), x)[0]
    handle.remove()
    assert torch.allclose(split.avoiding[0], expected, rtol=1e-12)
    whole = torch.autograd.grad(loss, x)[0]
    assert torch.allclose(split.through[0], whole - expected, rtol=1e-9, atol=1e-15)
