import pytest
import torch

from gradscope.models import QUERIES, StackedAttention, StackedLatentAttention
from tests.reference.attention import stack

B, N, D, H = 2, 5, 4, 6
STACKS = [StackedAttention, StackedLatentAttention]


def make(cls, query, layers=3, seed=0, **options):
    torch.manual_seed(seed)
    model = cls(D, layers, query=query, **options).double()
    return model, torch.randn(B, N, D).double(), torch.randn(B, D).double()


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("query", QUERIES)
@pytest.mark.parametrize("cls", STACKS)
def test_matches_loops(cls, query, layers):
    model, v, h = make(cls, query, layers, latent_dim=H)
    got = model(v, h)
    torch.testing.assert_close(got, stack(model, v, h, latent=cls is StackedLatentAttention))
    assert got.shape == (B, model.out_dim)


@pytest.mark.parametrize("cls", STACKS)
def test_first_layer_makes_queries_differ_only_after_it(cls):
    """With zero content every residual query is the question: rules differ by z alone."""
    answers = {}
    for query in QUERIES:
        model, _, h = make(cls, query)
        answers[query] = model(torch.zeros(B, N, D).double(), h)[:, :D]
    torch.testing.assert_close(answers["residual"], h)
    torch.testing.assert_close(answers["anchored"], h)
    torch.testing.assert_close(answers["chain"], torch.zeros_like(h))


def gradients_of_queries(model, v, h):
    """d (sum of squares of the answer) / d (query of each layer), norms."""
    queries = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: queries.append(args[1]))
        for layer in model.layers
    ]
    answer = model(v, h.requires_grad_())
    for hook in hooks:
        hook.remove()
    return [g.norm() for g in torch.autograd.grad(answer.square().sum(), queries)]


def test_softmaxes_between_layers_take_the_gradient_of_a_chain():
    """Small features make each softmax pass little on; a residual query leads past them."""
    norms = {}
    for query in ("residual", "chain"):
        model, v, h = make(StackedAttention, query, layers=4)
        norms[query] = gradients_of_queries(model, 0.1 * v, h)
    assert norms["chain"][0] < 1e-6 * norms["chain"][-1]
    assert norms["residual"][0] > 0.5 * norms["residual"][-1]


def latent_gradient_ratio(cls):
    model, v, h = make(cls, "chain", layers=4)
    latents = []
    for layer in model.layers:
        layer.register_forward_hook(lambda _, __, out: latents.append(out.latent))
    answer = model(0.1 * v, h)
    first, *_, last = torch.autograd.grad(answer.square().sum(), latents)
    return first.norm() / last.norm()


def test_the_latent_pathway_crosses_no_softmax():
    assert latent_gradient_ratio(StackedAttention) < 1e-6
    assert latent_gradient_ratio(StackedLatentAttention) > 1e-3


def test_latent_dim_defaults_to_dim():
    model, v, h = make(StackedLatentAttention, "chain")
    assert model.out_dim == 2 * D == model(v, h).shape[1]


@pytest.mark.parametrize("cls", STACKS)
def test_unknown_query_is_refused(cls):
    with pytest.raises(ValueError, match="unknown query 'sum'; one of residual, anchored, chain"):
        cls(D, 2, query="sum")
