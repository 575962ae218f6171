"""Between consecutive softmaxes: the paper's claim, and attention of other kinds."""

import itertools

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradscope.cuts import Labels, TensorGraph, bottlenecks, softmax_cuts, tensor_graph
from gradscope.cuts.forward import observe
from gradscope.cuts.sites import SoftmaxSite, consecutive, softmax_sites
from gradscope.graph.walk import walk
from tests.reference.attention_stacks import LOGITS, Stacked

B = 3


def softmaxes(model, *inputs, **kwargs):
    cuts = bottlenecks(model, lambda: model(*inputs).float().sum(), **kwargs)
    return [c for c in cuts if c.kind == "softmax"]


def run_stack(N, V, D, **options):
    return softmaxes(Stacked(3, V, D, **options), torch.randn(B, N, V), torch.randn(B, V))


@pytest.mark.parametrize(
    ("N", "V", "D", "width"),
    [(20, 6, 9, 6), (5, 6, 9, 6), (20, 9, 6, 6)],
    ids=["content vector", "wider than the heat map", "projected query"],
)
def test_a_plain_stack_passes_a_vector(N, V, D, width):
    cuts = run_stack(N, V, D)
    assert [(c.source, c.sink) for c in cuts] == [
        ("layers.0", "layers.1"),
        ("layers.1", "layers.2"),
    ]
    for cut in cuts:
        assert cut.width == width == min(V, D)
        assert cut.source_width == cut.sink_width == N * D
        assert cut.ratio == pytest.approx(width / (N * D))


def test_the_narrow_tensor_has_a_name():
    assert [c.tensors for c in run_stack(20, 6, 9)] == [("layers.0[0]",), ("layers.1[0]",)]
    assert [c.tensors for c in run_stack(20, 9, 6)] == [("layers.1.ask",), ("layers.2.ask",)]
    assert [c.shapes for c in run_stack(20, 6, 9)] == [((B, 6),)] * 2


@pytest.mark.parametrize(("N", "V", "D"), [(20, 6, 9), (5, 6, 9), (20, 9, 6)])
def test_a_latent_concat_passes_the_whole_latent_map(N, V, D):
    for cut in run_stack(N, V, D, latents=True):
        assert cut.width == cut.source_width == N * D
        assert cut.ratio == 1


@pytest.mark.parametrize("logits", LOGITS)
@pytest.mark.parametrize("latents", [False, True])
def test_the_latent_is_found_however_the_logits_are_made(logits, latents):
    for cut in run_stack(20, 6, 9, logits=logits, latents=latents):
        assert cut.source_width == 20 * 9
        assert cut.width == (20 * 9 if latents else 6)
        assert cut.attended == 20 * 6


def encoder(layers, D, heads, **options):
    layer = nn.TransformerEncoderLayer(D, heads, 2 * D, **options)
    return nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    ("N", "D", "heads", "width"),
    # p holds heads · N² numbers, the content N · D
    [(10, 16, 4, 10 * 16), (3, 16, 4, 4 * 3 * 3)],
    ids=["content", "probabilities"],
)
def test_transformer_encoder(N, D, heads, width, batch_first):
    model = encoder(3, D, heads, batch_first=batch_first, dropout=0.1)
    x = torch.randn((B, N, D) if batch_first else (N, B, D))
    cuts = softmaxes(model, x)
    assert [c.source for c in cuts] == ["layers.0.self_attn", "layers.1.self_attn"]
    for cut in cuts:
        assert cut.width == width
        assert cut.source_width == cut.sink_width == 2 * N * D  # queries and keys
        assert cut.attended == N * D


@pytest.mark.parametrize("N", [3, 10])
def test_fused_attention_is_cut_like_written_out_attention(N):
    model = encoder(3, 16, 4, batch_first=True, dropout=0.0)
    x = torch.randn(B, N, 16)

    def cuts():
        found = softmaxes(model, x)
        return [(c.source, c.sink, c.width, c.source_width, c.attended) for c in found]

    fused = cuts()
    assert "ScaledDotProduct" in _nodes(model(x))
    with sdpa_kernel(SDPBackend.MATH):
        assert "ScaledDotProduct" not in _nodes(model(x))
        assert cuts() == fused


def _nodes(output):
    return " ".join(node.name() for node in walk([output.grad_fn]).nodes)


def test_probabilities_inside_fused_attention_have_a_name():
    model, x = encoder(2, 16, 4, batch_first=True, dropout=0.0), torch.randn(B, 3, 16)
    forward = observe(model, lambda: model(x).sum(), None)
    labels = Labels.of_modules(forward.tensors, forward.names)
    first = softmax_sites(forward.tensors)[0].probabilities
    assert labels[first] == "layers.0.self_attn:softmax"
    assert labels.shape(first) == (B, 4, 3, 3)


def test_few_positions_make_no_bottleneck():
    """The heat map of 4 · 3 · 3 numbers is a part of the layer: all contents are handed on."""
    model, x = encoder(2, 16, 4, batch_first=True, dropout=0.0), torch.randn(B, 3, 16)
    (between,) = softmaxes(model, x)
    assert between.width == 3 * 16
    assert between.tensors == ("layers.0.self_attn[0]",)
    ends = ("layers.0.self_attn:softmax", "layers.1.self_attn:softmax")
    assert bottlenecks(model, lambda: model(x).sum(), *ends)[0].width == 3 * 16


class CrossAttention(nn.Module):
    """Latents ask keys and values of grouped heads, `layers` times."""

    def __init__(self, layers, D=8):
        super().__init__()
        self.q = nn.ModuleList(nn.Linear(D, 16) for _ in range(layers))
        self.kv = nn.ModuleList(nn.Linear(D, 8) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(16, D) for _ in range(layers))

    def forward(self, u, v):
        for q, kv, out in zip(self.q, self.kv, self.out, strict=True):
            queries = q(u).unflatten(-1, (4, 4)).transpose(1, 2)  # (B, 4, M, 4)
            k, value = kv(v).unflatten(-1, (2, 1, 4)).expand(-1, -1, -1, 2, -1).unbind(2)
            k, value = (t.unflatten(-1, (2, 2)).flatten(2, 3) for t in (k, value))
            k, value = (t.transpose(1, 2) for t in (k, value))  # (B, 4, N, 2)
            k, value = (torch.cat([t, t], -1) for t in (k, value))  # (B, 4, N, 4)
            z = F.scaled_dot_product_attention(queries, k, value)
            u = u + out(z.transpose(1, 2).flatten(2))
        return u


def test_what_both_layers_read_is_not_passed_from_one_to_the_next():
    M, N = 5, 30
    cuts = softmaxes(CrossAttention(3), torch.randn(B, M, 8), torch.randn(B, N, 8))
    assert len(cuts) == 2
    # u' − u (M · 8): the keys and values of all layers come from v, not from one another
    assert all(c.width == M * 8 for c in cuts)


class Branches(nn.Module):
    """0 → {1, 2} → 3, with a residual connection past 1 and 2, and 4 beside them all."""

    def __init__(self, D=4):
        super().__init__()
        self.f = nn.ModuleList(nn.Linear(D, D) for _ in range(5))

    def forward(self, x, y):
        a = self.attend(0, x)
        b, c = self.attend(1, a), self.attend(2, a)
        return self.attend(3, a + b + c) + self.attend(4, y)

    def attend(self, i, x):
        return self.f[i](x).softmax(-1) * x


def test_consecutive_means_with_no_site_in_between():
    model = Branches()
    x, y = torch.randn(B, 4, requires_grad=True), torch.randn(B, 4, requires_grad=True)
    tensors = tensor_graph(walk([model(x, y).grad_fn]))
    sites = softmax_sites(tensors)
    order = {layer_of(tensors, site, model): i for i, site in enumerate(sites)}
    pairs = {(order[a], order[b]) for a, b in [(0, 1), (0, 2), (1, 3), (2, 3)]}
    assert set(consecutive(tensors, sites)) == pairs


def layer_of(tensors, site, model):
    """Which weight the logits were made with."""
    linear = tensors.graph.nodes[site.node].next_functions[0][0]
    (weight,) = (n.next_functions[0][0] for n, _ in linear.next_functions if n.name()[0] == "T")
    return [f.weight is weight.variable for f in model.f].index(True)


@given(st.lists(st.sets(st.integers(0, 8), max_size=4), min_size=2, max_size=9), st.booleans())
@settings(max_examples=60)
def test_consecutive_is_the_transitive_reduction(earlier, through_latents):
    """Site j reads the sites `earlier[j]` before it: their contents or their latents."""
    n = len(earlier)
    earlier = [{i for i in reads if i < j} for j, reads in enumerate(earlier)]
    # tensors 2j: latent, 2j + 1: probabilities
    read = [tuple(2 * i + (not through_latents) for i in reads) for reads in earlier]
    parents = [p for j in range(n) for p in (read[j], (2 * j,))]
    tensors = TensorGraph(None, places=[(i, 0) for i in range(2 * n)], parents=parents)
    sites = [SoftmaxSite(j, 2 * j + 1, (2 * j,)) for j in range(n)]
    depends = nx.DiGraph((i, j) for j in range(n) for i in earlier[j])
    assert set(consecutive(tensors, sites)) == set(nx.transitive_reduction(depends).edges)


def test_a_softmax_over_classes_is_no_attention():
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3), nn.Softmax(-1))
    assert softmaxes(model, torch.randn(B, 4)) == []
    cuts = bottlenecks(model, lambda: model(torch.randn(B, 4)).log().mean())
    assert [c.kind for c in cuts] == ["module"]


def test_logits_that_are_the_input():
    class Direct(nn.Module):
        def forward(self, logits):
            return (logits.softmax(-1) * logits).softmax(-1) * logits

    (cut,) = softmaxes(Direct(), torch.randn(B, 7))
    # each softmax has the input for its latent, the second one the first's product, too
    assert cut.source_width == 7
    assert cut.width == 7


def test_several_softmaxes_of_one_module_are_numbered():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.f, self.g = nn.Linear(6, 4), nn.Linear(6, 4)
            self.h = nn.Linear(4, 6)

        def forward(self, x):
            x = self.h(self.f(x).softmax(-1) * self.f(x))
            return self.g(x).softmax(-1) * x[:, :4]

    (cut,) = softmaxes(nn.Sequential(Twice()), torch.randn(B, 6))
    assert (cut.source, cut.sink) == ("0", "0:softmax#1")


def test_the_graph_of_ordinary_training_gives_the_same_cuts():
    """Inputs that require no gradient leave a graph in which only parameters are leaves."""
    v, h = torch.randn(B, 20, 6), torch.randn(B, 6)
    for latents, logits in itertools.product([False, True], LOGITS):
        model = Stacked(3, 6, 9, latents=latents, logits=logits)
        tensors = tensor_graph(walk([model(v, h).grad_fn]))
        plain = softmax_cuts(tensors, Labels(tensors, {}), B, [tensors.at[0, 0]])
        observed = softmaxes(model, v, h)
        assert [c.width for c in plain] == [c.width for c in observed]
        assert [c.source_width for c in plain] == [c.source_width for c in observed]


def test_queries_that_are_parameters_bring_no_information():
    class Pool(nn.Module):
        def __init__(self):
            super().__init__()
            self.query = nn.Parameter(torch.randn(4, 8))
            self.f = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

        def forward(self, x):
            q = self.query.expand(len(x), -1, -1)
            for f in self.f:
                q = q + (q @ f(x).mT).softmax(-1) @ x
            return q

    (cut,) = softmaxes(Pool(), torch.randn(B, 30, 8))
    assert cut.source_width == 30 * 8  # keys alone
    assert cut.sink_width == (30 + 4) * 8
    assert cut.width == 4 * 8


@pytest.mark.parametrize("handed", [True, False])
def test_a_latent_under_a_gate_for_all_positions(handed):
    """Logits of s ∘ g: what is handed on beside the content is s."""

    class Read(nn.Module):
        def __init__(self):
            super().__init__()
            self.latent, self.gate = nn.Linear(6 + 9 * handed, 9), nn.Linear(6, 9)
            self.score = nn.Linear(9, 1)

        def forward(self, v, u, before):
            given = torch.cat([v + u[:, None], *([before] if handed else [])], -1)
            s = torch.tanh(self.latent(given))
            p = self.score(s * self.gate(u)[:, None]).softmax(1)
            return (p * v).sum(1), s

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(Read() for _ in range(2))

        def forward(self, v, u):
            s = v.new_zeros(*v.shape[:2], 9)
            for layer in self.layers:
                u, s = layer(v, u, s)
            return u

    (between,) = softmaxes(Two(), torch.randn(B, 20, 6), torch.randn(B, 6))
    assert between.source_width == 20 * 9 + 9
    assert between.attended == 20 * 6
    assert between.width == (20 * 9 + 6 if handed else 6)  # and the content
