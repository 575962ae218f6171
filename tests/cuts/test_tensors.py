"""What carries information, and how many numbers of it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gradscope.cuts.tensors import PROBABILITIES, tensor_graph
from gradscope.errors import GradscopeError
from gradscope.graph.walk import walk

B, N, D = 3, 5, 8


def source(*shape, **options):
    return torch.randn(*shape, requires_grad=True, **options).clone()


def graph_of(output, *sources):
    """Tensors computed from the sources; and a look-up by torch tensor."""
    graph = walk([output.grad_fn])
    tensors = tensor_graph(graph, {(graph.index[s.grad_fn], s.output_nr) for s in sources})
    return tensors, lambda t: tensors.at.get((graph.index[t.grad_fn], t.output_nr))


def operations(tensors):
    return [tensors.operation(t) for t in range(len(tensors.places))]


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x.transpose(0, 1),
        lambda x: x.permute(2, 0, 1),
        lambda x: x.reshape(B * N, D),
        lambda x: x.transpose(0, 1).reshape(-1),
        lambda x: x[:, None].expand(-1, 4, -1, -1),
        lambda x: x[:, None].expand(-1, 4, -1, -1).reshape(B * 4, N * D),
        lambda x: x.to(torch.bfloat16),
        lambda x: x.contiguous().clone(),
        lambda x: x[:],
        lambda x: x.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1),
        lambda x: x.unsqueeze(1).squeeze(1),
        lambda x: x.mT,
    ],
)
def test_views_broadcasts_and_casts_are_no_new_information(view):
    x = source(B, N, D)
    y = view(x)
    tensors, at = graph_of(y.sum(), x)
    assert at(y) == at(x)
    assert tensors.numel[at(x)] == B * N * D
    assert operations(tensors) == ["clone", "sum"]


@pytest.mark.parametrize(
    ("part", "numel"),
    [
        (lambda x: x[:, 0], B * D),
        (lambda x: x[..., :3], B * N * 3),
        (lambda x: x.chunk(2, -1)[1], B * N * D // 2),
        (lambda x: x.unbind(1)[4], B * D),
        (lambda x: x[:, torch.tensor([0, 2])], B * 2 * D),
    ],
)
def test_a_part_holds_less(part, numel):
    x = source(B, N, D)
    y = part(x)
    tensors, at = graph_of(y.sum(), x)
    assert at(y) != at(x)
    assert tensors.numel[at(y)] == numel


@pytest.mark.parametrize(
    "module",
    [
        nn.Linear(D, 6),
        nn.Sequential(nn.Linear(D, 6), nn.ReLU(inplace=True)),
        nn.LayerNorm(D),
        nn.utils.parametrizations.weight_norm(nn.Linear(D, 6)),
        nn.utils.parametrizations.spectral_norm(nn.Linear(D, 6)),
    ],
)
def test_parameters_are_left_out(module):
    x = source(B, N, D)
    y = module(x)
    tensors, at = graph_of(y, x)
    assert tensors.numel[at(y)] == y.numel()
    weights = {p.shape for p in module.parameters()}
    assert not weights & set(tensors.shapes)
    # every tensor left depends on the input
    assert [len(p) > 0 for p in tensors.parents].count(False) == 1


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.BatchNorm1d(D), (B, D)),
        (nn.BatchNorm2d(D), (B, D, 4, 4)),
        (nn.InstanceNorm2d(D, affine=True), (B, D, 4, 4)),
        (nn.GroupNorm(2, D), (B, D, 4, 4)),
    ],
)
def test_normalising_over_the_batch_keeps_the_count(module, shape, training):
    module.train(training)
    x = source(*shape)
    y = module(x)
    tensors, at = graph_of(y, x)
    assert tensors.numel[at(y)] == math.prod(shape)


@pytest.mark.parametrize(
    ("module", "shape", "numel"),
    [
        (nn.MaxPool2d(2), (B, D, 4, 4), B * D * 4),
        (nn.AdaptiveAvgPool2d(1), (B, D, 4, 4), B * D),
        (nn.Conv2d(D, 2, 3, stride=2, padding=1), (B, D, 8, 8), B * 2 * 16),
        (nn.ConvTranspose2d(D, 2, 2, stride=2), (B, D, 4, 4), B * 2 * 64),
        (nn.Upsample(scale_factor=2), (B, D, 4, 4), B * D * 64),
    ],
)
def test_sizes_after_spatial_operations(module, shape, numel):
    x = source(*shape)
    y = module(x)
    tensors, at = graph_of(y, x)
    assert tensors.numel[at(y)] == numel


def test_numbers_of_a_sample_do_not_depend_on_the_layout():
    """(B, N, D), (N, B, D), (B·N, D) and heads folded into the batch."""
    linear = nn.Linear(D, 6)
    x = source(B, N, D)
    heads = x.unflatten(-1, (2, -1)).transpose(1, 2).flatten(0, 1)  # (B · 2, N, D / 2)
    for y, numel in [
        (linear(x), B * N * 6),
        (linear(x.transpose(0, 1)), B * N * 6),
        (linear(x.flatten(0, 1)), B * N * 6),
        (heads @ heads.mT, B * 2 * N * N),
    ]:
        tensors, at = graph_of(y, x)
        assert tensors.numel[at(y)] == numel


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_fused_attention_holds_its_probabilities(dropout):
    q, k, v = source(B, 4, N, D), source(B, 4, 7, D), source(B, 4, 7, D)
    z = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
    tensors, at = graph_of(z, q, k, v)
    p = next(t for t in range(len(tensors.places)) if tensors.operation(t).endswith("softmax"))
    assert (tensors.places[p][1] == PROBABILITIES) == (dropout == 0)
    assert tensors.shapes[p] == (B, 4, N, 7)
    assert at(v) in tensors.parents[at(z)] or dropout
    origins = tensors.origins([[at(q)], [at(k)], [at(v)]])
    assert origins[p] == 0b011
    assert origins[at(z)] == 0b111


def test_fused_attention_with_queries_that_carry_nothing():
    k, v = source(B, 4, 7, D), source(B, 4, 7, D)
    q = nn.Parameter(torch.randn(1, 4, N, D)).expand(B, -1, -1, -1)
    z = F.scaled_dot_product_attention(q, k, v)
    tensors, at = graph_of(z, k, v)
    (p,) = [t for t, (_, output) in enumerate(tensors.places) if output == PROBABILITIES]
    assert tensors.shapes[p] == (B, 4, N, 7)
    assert tensors.parents[p] == (at(k),)
    # and where only the values carry anything, the probabilities do not
    tensors, at = graph_of(z, v)
    assert all(output != PROBABILITIES for _, output in tensors.places)
    assert tensors.parents[at(z)] == (at(v),)


class TwoOfThree(torch.autograd.Function):
    """Returns indices, a product and rounded values; only the product has a gradient."""

    @staticmethod
    def forward(ctx, x):
        indices, rounded = x.argmax(1), x.round()
        ctx.mark_non_differentiable(indices, rounded)
        return indices, x * 2, rounded

    @staticmethod
    def backward(ctx, _indices, g, _rounded):
        return g * 2


def test_custom_functions():
    x = source(B, D)
    _, y, _ = TwoOfThree.apply(x)
    z = y.sum(1)
    tensors, at = graph_of(z, x)
    assert tensors.numel[at(y)] == B * D
    assert tensors.parents[at(z)] == (at(y),)


@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointed_regions(reentrant):
    linear = nn.Linear(D, 2)
    x = source(B, D)
    y = checkpoint(lambda x: linear(x).tanh(), x, use_reentrant=reentrant)
    tensors, at = graph_of(y, x)
    assert tensors.numel[at(y)] == B * 2
    assert len(tensors.places) == (2 if reentrant else 3)  # the linear one is hidden, or not


def test_the_graph_of_ordinary_training_has_no_sources():
    """The input requires no gradient; what is computed from weights alone is left out."""
    linear = nn.utils.parametrizations.weight_norm(nn.Linear(D, 6))
    x, words = torch.randn(B, D), torch.randint(0, 9, (B, N))
    y = linear(x).relu() + nn.Embedding(9, 6)(words).sum(1)
    graph = walk([y.grad_fn])
    tensors = tensor_graph(graph)
    shapes = [tensors.shapes[t] for t in range(len(tensors.places))]
    assert sorted(map(str, shapes)) == sorted(map(str, [(B, 6), (B, 6), (B, N, 6), (B, 6), (B, 6)]))


def test_every_input_comes_before_what_is_made_from_it():
    layer = nn.TransformerEncoderLayer(D, 2, 16, batch_first=True)
    x = source(B, N, D)
    tensors, _ = graph_of(layer(x), x)
    assert all(p < t for t, parents in enumerate(tensors.parents) for p in parents)


def test_a_jagged_tensor_holds_at_most_what_it_was_made_from():
    x = source(B, N, D)
    jagged = torch.nested.as_nested_tensor(x, layout=torch.jagged)
    y = nn.Linear(D, 2)(jagged)
    tensors, at = graph_of(y, x)
    assert tensors.shapes[at(y)] is None
    assert tensors.numel[at(y)] == B * N * D
    with pytest.raises(GradscopeError, match="nested"):
        graph_of(y, jagged)
