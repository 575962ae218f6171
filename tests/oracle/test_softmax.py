"""Softmax rows equal loops over rows with a dense Jacobian, fused attention included."""

import copy
import math

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import gradscope
from gradscope.capture import softmaxes
from tests.reference.gradients import attention_rows, rows_along, softmax_values
from tests.reference.networks import data, encoder, weighted
from tests.reference.recording import record, train_steps, values

METRICS = ("entropy", "max_prob", "jacobian_norm", "evenness", "uniform_gain", "gain")


def recorded_at(run, site, step=0):
    return {metric: values(run, "softmax", metric, step)[site] for metric in METRICS}


class Outer(nn.Module):
    """A model in which the module under test has the path "inner"."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def record_once(inner, x):
    model = Outer(inner)
    return record(model, lambda o: train_steps(model, lambda m, _: weighted(m(x)), o, 1))


def close(expected):
    return pytest.approx(expected, rel=1e-5, abs=1e-6)


class Softmax(nn.Module):
    """A softmax over some dimension, of something learned; keeps p for the twin."""

    def __init__(self, dim, scale=1.0, how="function"):
        super().__init__()
        self.logits = nn.Linear(4, 5)
        self.value = nn.Linear(4, 5)
        self.dim, self.scale, self.how = dim, scale, how
        self.module = nn.Softmax(dim)

    def forward(self, x):
        e = self.scale * self.logits(x)
        if self.how == "module":
            self.p = self.module(e)
        else:
            self.p = {
                "function": lambda: F.softmax(e, self.dim),
                "method": lambda: e.softmax(self.dim),
                "torch": lambda: torch.softmax(e, self.dim, dtype=torch.float32),
            }[self.how]()
        return self.p * self.value(x)


@pytest.mark.parametrize("how", ["function", "method", "torch", "module"])
@pytest.mark.parametrize("dim", [0, 1, 2, -1, -2])
def test_plain_softmax_over_any_dimension(dim, how):
    torch.manual_seed(0)
    model = Softmax(dim, how=how)
    twin = copy.deepcopy(model)
    x = data(0, 2, 3, 4)
    run = record_once(model, x)
    loss = weighted(twin(x))
    twin.p.retain_grad()
    loss.backward()
    expected = softmax_values(rows_along(twin.p, twin.p.grad, dim))
    site = "inner.module" if how == "module" else "inner"
    assert recorded_at(run, site) == close(expected)
    assert run.sites[("softmax", site)].shape[-1] == twin.p.shape[dim]
    assert run.sites[("softmax", site)].note == "all rows"


@settings(max_examples=30, derandomize=True, phases=[Phase.generate])
@given(scale=st.floats(0, 200), seed=st.integers(0, 5), dim=st.sampled_from([0, 1, 2]))
def test_bounds_from_uniform_to_one_hot(scale, seed, dim):
    torch.manual_seed(seed)
    model = Softmax(dim, scale)
    found = recorded_at(record_once(model, data(seed, 2, 3, 4)), "inner")
    assert 0 <= found["entropy"] <= 1 + 1e-6
    assert 0 <= found["jacobian_norm"] <= 0.5 + 1e-6
    assert 0 <= found["gain"] <= 0.5 + 1e-6
    assert 1 / model.p.shape[dim] - 1e-6 <= found["max_prob"] <= 1 + 1e-6


def test_closed_forms_of_uniform_and_one_hot_rows():
    class Net(nn.Module):
        def __init__(self, logits):
            super().__init__()
            self.logits = nn.Parameter(logits)

        def forward(self, x):
            return self.logits.softmax(-1) * x

    n = 6
    x = data(0, 2, n)
    uniform = recorded_at(record_once(Net(torch.zeros(2, n)), x), "inner")
    assert uniform["entropy"] == pytest.approx(1)
    assert uniform["jacobian_norm"] == pytest.approx(math.sqrt(n - 1) / n)
    peaked = torch.full((2, n), -1000.0)
    peaked[:, 2] = 0
    one_hot = recorded_at(record_once(Net(peaked), x), "inner")
    none = {"entropy": 0, "jacobian_norm": 0, "gain": 0, "evenness": 0}
    assert one_hot == {"max_prob": 1, "uniform_gain": 1, **none}
    half = torch.full((2, n), -1000.0)
    half[:, :2] = 0
    two = recorded_at(record_once(Net(half), x), "inner")
    assert two["jacobian_norm"] == pytest.approx(0.5)
    assert two["entropy"] == pytest.approx(math.log(2) / math.log(n))
    assert two["evenness"] == pytest.approx(1) and two["uniform_gain"] == pytest.approx(0.5)


class Gated(nn.Module):
    """Ends in a softmax, whose result it may also read itself."""

    def __init__(self, reads):
        super().__init__()
        self.logits = nn.Linear(4, 5)
        self.softmax = nn.Softmax(-1)
        self.reads = reads

    def forward(self, x):
        p = self.softmax(self.logits(x))
        return (p, p @ x) if self.reads else (p,)


@pytest.mark.parametrize("reads", [True, False])
def test_a_softmax_that_is_the_models_answer(reads):
    """Attention is what the model reads itself; an answer that only the loss reads is none."""
    torch.manual_seed(0)
    model = Gated(reads)
    twin = copy.deepcopy(model)
    x = data(0, 5, 4)
    run = record(model, lambda o: train_steps(model, lambda m, _: weighted(*m(x)), o, 1))
    assert [s.name for s in run.sites_of("softmax")] == (["softmax"] if reads else [])
    outputs = twin(x)
    outputs[0].retain_grad()
    weighted(*outputs).backward()
    if reads:
        p = outputs[0]
        assert recorded_at(run, "softmax") == close(softmax_values(rows_along(p, p.grad, -1)))


def test_the_losss_log_softmax_is_none():
    model = nn.Linear(4, 5)
    target = torch.arange(6) % 5
    run = record(
        model,
        lambda o: train_steps(model, lambda m, s: F.cross_entropy(m(data(s, 6, 4)), target), o, 1),
    )
    assert run.sites_of("softmax") == []


def test_several_softmaxes_in_one_module_have_names_of_their_own():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 5)
            self.b = nn.Linear(4, 5)

        def forward(self, x):
            self.p = self.a(x).softmax(-1)
            self.q = (3 * self.b(x)).softmax(0)
            return self.p * self.q

    torch.manual_seed(0)
    model = Net()
    twin = copy.deepcopy(model)
    x = data(0, 3, 4)
    run = record_once(model, x)
    loss = weighted(twin(x))
    twin.p.retain_grad()
    twin.q.retain_grad()
    loss.backward()
    sites = [s.name for s in run.sites_of("softmax")]
    assert sites == ["inner", "inner:softmax#1"]
    assert recorded_at(run, sites[0]) == close(softmax_values(rows_along(twin.p, twin.p.grad, -1)))
    assert recorded_at(run, sites[1]) == close(softmax_values(rows_along(twin.q, twin.q.grad, 0)))
    run = record(model, lambda o: train_steps(model, lambda m, _: weighted(m(x)), o, 1))
    sites = [s.name for s in run.sites_of("softmax")]
    assert sites == ["(output):softmax", "(output):softmax#1"]


class Attention(nn.Module):
    """Attention with learned projections: fused, or with its rows written out.

    Args:
        how: "fused" calls F.scaled_dot_product_attention, "plain" multiplies and normalises.
        kv_heads: fewer heads of keys and values than of queries (grouped-query attention).
        dtype: of the attention itself.
    """

    def __init__(self, how, heads=2, kv_heads=None, width=3, dropout=0.0, **options):
        super().__init__()
        self.heads, self.kv_heads, self.width = heads, kv_heads or heads, width
        self.q = nn.Linear(4, heads * width)
        self.kv = nn.Linear(4, 2 * self.kv_heads * width)
        self.out = nn.Linear(heads * width, 2)
        self.how, self.dropout, self.options = how, dropout, options

    def forward(self, x):
        B, N, _ = x.shape
        q = self.q(x).view(B, N, self.heads, self.width).transpose(1, 2)  # (B, H, N, E)
        k, v = self.kv(x).view(B, N, 2, self.kv_heads, self.width).permute(2, 0, 3, 1, 4)
        self.qkv = q, k, v
        if self.how == "fused":
            z = F.scaled_dot_product_attention(
                q,
                k,
                v,
                dropout_p=self.dropout,
                enable_gqa=self.kv_heads != self.heads,
                **self.options,
            )
        else:
            scale = self.options.get("scale") or 1 / math.sqrt(self.width)
            e = scale * q @ k.transpose(-1, -2)
            mask = self.options.get("attn_mask")
            if self.options.get("is_causal"):
                mask = torch.ones(N, N, dtype=torch.bool).tril()
            if mask is not None and mask.dtype == torch.bool:
                e = e.masked_fill(~mask, -math.inf)
            elif mask is not None:
                e = e + mask
            self.p = F.dropout(e.softmax(-1), self.dropout, self.training)
            z = self.p @ v
        self.z = z
        return self.out(z.transpose(1, 2).reshape(B, N, -1))


def padding_mask():
    """(2, 1, 1, 5): the second sample has 3 positions."""
    return torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool).view(2, 1, 1, 5)


VARIANTS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": padding_mask()},
    "bool mask of one row per query": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril(1)},
    "float mask": {"attn_mask": data(5, 5, 5)},
    "float mask with -inf": {
        "attn_mask": torch.zeros(5, 5).masked_fill(torch.eye(5) > 0, -math.inf)
    },
    "scale": {"scale": 0.3},
    "large scale": {"scale": 30.0},
    "grouped-query": {"heads": 4, "kv_heads": 2},
    "grouped-query, causal": {"heads": 4, "kv_heads": 1, "is_causal": True},
    "one head": {"heads": 1},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_attention_equals_rows_written_out(variant):
    options = VARIANTS[variant]
    torch.manual_seed(0)
    model = Attention("fused", **options)
    twin = copy.deepcopy(model)
    x = data(0, 2, 5, 4)
    run = record_once(model, x)
    loss = weighted(twin(x))
    twin.z.retain_grad()
    loss.backward()
    expected = softmax_values(
        attention_rows(
            *twin.qkv,
            twin.z.grad,
            options.get("scale"),
            options.get("attn_mask"),
            options.get("is_causal", False),
        )
    )
    assert recorded_at(run, "inner") == close(expected)
    site = run.sites[("softmax", "inner")]
    assert site.note == "all rows"
    assert site.shape == (2, options.get("heads", 2), 5, 5)


@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v.startswith("grouped")])
def test_fused_attention_equals_plain_attention(variant):
    options = VARIANTS[variant]
    torch.manual_seed(0)
    fused = Attention("fused", **options)
    plain = Attention("plain", **options)
    plain.load_state_dict(fused.state_dict())
    x = data(0, 2, 5, 4)
    a, b = recorded_at(record_once(fused, x), "inner"), None
    b = recorded_at(record_once(plain, x), "inner")
    assert a == close(b)


def test_cross_attention_with_other_lengths():
    torch.manual_seed(0)
    model = Outer(nn.MultiheadAttention(6, 2, batch_first=True))
    twin = copy.deepcopy(model)
    q, kv = data(0, 2, 3, 6), data(1, 2, 7, 6)

    def loss_of(m, need_weights):
        return weighted(m(q, kv, kv, need_weights=need_weights)[0])

    runs = [
        record(m, lambda o, m=m, n=n: train_steps(m, lambda m, _: loss_of(m, n), o, 1))
        for m, n in ((model, False), (twin, True))
    ]
    fused, plain = (recorded_at(run, "inner") for run in runs)
    assert fused == close(plain)
    assert runs[0].sites[("softmax", "inner")].shape == (2, 2, 3, 7)
    assert runs[1].sites[("softmax", "inner")].shape[-1] == 7


@pytest.mark.parametrize("mask", [None, "bool", "float", "padding"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_multihead_attention_with_and_without_weights(mask, dropout):
    """Equal where no dropout is drawn; with it, p is the softmax before the dropout."""
    torch.manual_seed(0)
    x = data(0, 2, 5, 8)
    options = {
        None: {},
        "bool": {"attn_mask": torch.ones(5, 5, dtype=torch.bool).triu(1)},
        "float": {"attn_mask": data(3, 5, 5)},
        "padding": {"key_padding_mask": ~padding_mask().view(2, 5)},
    }[mask]
    weights = nn.MultiheadAttention(8, 2, batch_first=True).state_dict()
    found = {}
    for need_weights in (True, False):
        model = Outer(nn.MultiheadAttention(8, 2, dropout=dropout, batch_first=True))
        model.inner.load_state_dict(weights)

        def loss_of(m, _, need_weights=need_weights):
            return weighted(m(x, x, x, need_weights=need_weights, **options)[0])

        run = record(model, lambda o, m=model, f=loss_of: train_steps(m, f, o, 1))
        found[need_weights] = recorded_at(run, "inner")
    del (dropped := found[True])["gain"]  # the dropout draws differ in shape and order
    if dropout:
        del found[False]["gain"]
        assert found[False] == close(dropped)
    else:
        assert {k: v for k, v in found[False].items() if k != "gain"} == close(dropped)


@pytest.mark.parametrize("how", ["fused", "plain"])
def test_dropout_on_the_weights(how):
    """p comes before the dropout; its gradient has passed back through the dropout."""
    torch.manual_seed(0)
    model = Attention(how, dropout=0.5)
    twin = Attention("plain", dropout=0.5)
    twin.load_state_dict(model.state_dict())
    x = data(0, 2, 5, 4)
    found = recorded_at(record_once(model, x), "inner")

    kept = []
    plain_softmax = torch.Tensor.softmax
    try:
        torch.Tensor.softmax = lambda *a: kept.append(plain_softmax(*a)) or kept[-1]
        torch.manual_seed(0)
        loss = weighted(twin(x))
    finally:
        torch.Tensor.softmax = plain_softmax
    kept[0].retain_grad()
    loss.backward()
    expected = softmax_values(rows_along(kept[0], kept[0].grad, -1))
    if how == "fused":  # draws its dropout in another way: p is the same, its gradient is not
        del found["gain"], expected["gain"]
    assert found == close(expected)


def test_transformer_encoder_all_layers():
    """Through nn.TransformerEncoder: its attention by hand from each layer's input."""
    torch.manual_seed(0)
    model = encoder(0.0)
    twin = copy.deepcopy(model)
    x = data(0, 2, 5, 8)
    run = record(model, lambda o: train_steps(model, lambda m, _: weighted(m(x)), o, 1))
    kept = {}

    def keep(layer):
        def hook(module, args, kwargs, output):
            kept[layer] = (args[0], module)

        return hook

    for i, layer in enumerate(twin.layers):
        layer.self_attn.register_forward_hook(keep(i), with_kwargs=True)
    twin(x)
    for i, (h, attention) in kept.items():
        q, k, _ = F.linear(h, attention.in_proj_weight, attention.in_proj_bias).chunk(3, -1)
        q, k = (t.view(2, 5, 2, 4).transpose(1, 2).double() for t in (q, k))
        p = (q @ k.transpose(-1, -2) / 2).softmax(-1)
        expected = softmax_values(rows_along(p, torch.ones_like(p), -1))
        found = recorded_at(run, f"layers.{i}.self_attn")
        del found["gain"], expected["gain"]
        assert found == close(expected)


def test_micro_batches():
    """All rows of a step together: means over rows, and one gain."""
    torch.manual_seed(0)
    model = Outer(Softmax(-1))
    twin = copy.deepcopy(model.inner)
    batches = [data(0, 2, 3, 4), data(1, 2, 3, 4)]

    def train(optimizer):
        for x in batches:
            weighted(model(x)).backward()
        optimizer.step()

    run = record(model, train)
    pairs = []
    for x in batches:
        loss = weighted(twin(x))
        twin.p.retain_grad()
        loss.backward()
        pairs += rows_along(twin.p, twin.p.grad, -1)
    assert recorded_at(run, "inner") == close(softmax_values(pairs))


@pytest.mark.parametrize("how", ["fused", "plain"])
@pytest.mark.parametrize("causal", [False, True])
def test_a_sample_of_many_rows_says_so_and_is_near(how, causal):
    """Too many rows to measure all: the note says how many; the mean is within its error."""
    torch.manual_seed(0)
    B, N = 4, 400
    model = Attention(how, is_causal=causal)
    with torch.no_grad():
        model.q.weight *= 3
    twin = copy.deepcopy(model)
    x = data(0, B, N, 4)
    run = record_once(model, x)
    found = recorded_at(run, "inner")
    twin.how = "plain"
    loss = weighted(twin(x))
    twin.p.retain_grad()
    loss.backward()
    p, g = twin.p.detach().double(), twin.p.grad.double()
    entropy = -(p * p.clamp_min(1e-300).log()).sum(-1).flatten() / math.log(N)
    s2, s3 = p.square().sum(-1), p.pow(3).sum(-1)
    jacobian = (s2 - 2 * s3 + s2.square()).clamp_min(0).sqrt().flatten()
    largest = p.amax(-1).flatten()
    back = p * (g - (p * g).sum(-1, keepdim=True))
    exact_gain = (back.square().sum() / g.square().sum()).sqrt().item()
    site = run.sites[("softmax", "inner")]
    assert site.shape == (B, 2, N, N)
    rows = p[..., 0].numel()
    measured = rows
    if site.note:
        numbers = [
            int(w.replace(",", "")) for w in site.note.split() if w.replace(",", "").isdigit()
        ]
        assert numbers, f"the note {site.note!r} does not say how many rows"
        measured = min(numbers)
    for metric, exact in (("entropy", entropy), ("max_prob", largest), ("jacobian_norm", jacobian)):
        error = 6 * exact.std().item() / math.sqrt(measured) if measured < rows else 0
        assert found[metric] == pytest.approx(exact.mean().item(), rel=1e-4, abs=error), metric
    assert found["gain"] == pytest.approx(exact_gain, rel=0.5 if measured < rows else 1e-4)


def test_rows_with_nothing_to_attend_to():
    """A fully masked row has no softmax; the other rows keep theirs, and training goes on."""
    torch.manual_seed(0)
    mask = torch.ones(5, 5, dtype=torch.bool)
    mask[2] = False
    model = Attention("fused", attn_mask=mask)
    twin = copy.deepcopy(model)
    x = data(0, 2, 5, 4)
    run = record_once(model, x)
    assert run.meta["errors"] == []
    loss = weighted(twin(x))
    twin.z.retain_grad()
    loss.backward()
    pairs = list(attention_rows(*twin.qkv, twin.z.grad, mask=mask))
    expected = softmax_values([(p, g) for p, g in pairs if p.isfinite().all()])
    assert recorded_at(run, "inner") == close(expected)


def materialised(twin, x, scale=None, mask=None, causal=False):
    """The four metrics of `Attention`'s softmax in float64, with the N×N matrix written out."""
    loss = weighted(twin(x))
    twin.z.retain_grad()
    loss.backward()
    q, k, v = (t.detach().double() for t in twin.qkv)
    groups = q.shape[1] // k.shape[1]
    k, v = (t.repeat_interleave(groups, 1) for t in (k, v))
    e = q @ k.mT * (scale or 1 / math.sqrt(q.shape[-1]))
    n = e.shape[-1]
    if causal:
        mask = torch.ones(e.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        e = e.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else e + mask
    p = e.softmax(-1)
    g = twin.z.grad.double() @ v.mT
    back = p * (g - (p * g).sum(-1, keepdim=True))
    s2, s3 = p.square().sum(-1), p.pow(3).sum(-1)
    return {
        "entropy": torch.special.entr(p).sum(-1).mean().item() / math.log(n),
        "evenness": (torch.special.entr(p).sum() / (p > 1e-30).sum(-1).log().sum()).item(),
        "uniform_gain": (1 / (p > 1e-30).sum(-1)).mean().item(),
        "max_prob": p.amax(-1).mean().item(),
        "jacobian_norm": (s2 - 2 * s3 + s2.square()).clamp_min(0).sqrt().mean().item(),
        "gain": (back.norm() / g.norm()).item(),
    }


LONG = 150
LONG_VARIANTS = {
    "plain": {},
    "causal": {"is_causal": True},
    "bool mask": {"attn_mask": torch.ones(LONG, LONG, dtype=torch.bool).tril(3).repeat(2, 1, 1, 1)},
    "float mask": {"attn_mask": data(5, 1, 2, LONG, LONG)},
    "scale": {"scale": 3.0},
    "grouped-query": {"heads": 4, "kv_heads": 2, "is_causal": True},
    "dropout": {"dropout": 0.5},
}


def as_attention(variant):
    """(model, twin, arguments of `materialised`)."""
    options = LONG_VARIANTS[variant]
    torch.manual_seed(0)
    model = Attention("fused", **options)
    with torch.no_grad():
        model.q.weight *= 3
    named = {"scale": "scale", "attn_mask": "mask", "is_causal": "causal"}
    return model, copy.deepcopy(model), {named[k]: v for k, v in options.items() if k in named}


@pytest.mark.parametrize("block", [1 << 18, 20_000, 1_000])
@pytest.mark.parametrize("variant", LONG_VARIANTS)
def test_all_rows_of_a_long_attention(variant, block, monkeypatch):
    """However many rows are at hand at a time, and whether or not they are those of one head."""
    monkeypatch.setattr(softmaxes, "CPU_BLOCK", block)
    model, twin, told = as_attention(variant)
    x = data(0, 2, LONG, 4)
    outer = Outer(model)
    run = record(
        outer,
        lambda o: train_steps(outer, lambda m, _: weighted(m(x)), o, 1),
        softmax_rows="all",
    )
    found, expected = recorded_at(run, "inner"), materialised(twin, x, **told)
    if variant == "dropout":  # runs unfused; its draws are not the twin's
        del found["gain"], expected["gain"]
    assert found == pytest.approx(expected, rel=1e-5)
    site = run.sites[("softmax", "inner")]
    assert site.note == "all rows"
    assert site.shape[-2:] == (LONG, LONG)
    assert run.meta["errors"] == run.meta["unseen"] == []


def test_all_rows_of_bfloat16():
    """Computed in float32 from what is saved, which is what the kernel does inside."""
    torch.manual_seed(0)
    model = Attention("fused").bfloat16()
    twin = copy.deepcopy(model)
    x = data(0, 2, LONG, 4).bfloat16()
    outer = Outer(model)
    run = record(
        outer, lambda o: train_steps(outer, lambda m, _: weighted(m(x)), o, 1), softmax_rows="all"
    )
    assert recorded_at(run, "inner") == pytest.approx(materialised(twin, x), rel=1e-5)


def test_all_rows_of_a_long_plain_softmax_over_any_dimension(monkeypatch):
    monkeypatch.setattr(softmaxes, "CPU_BLOCK", 7_000)
    for dim in (0, 1):
        torch.manual_seed(0)
        model = Outer(Softmax(dim, scale=4.0))
        twin = copy.deepcopy(model).inner
        x = data(0, 300, 60, 4)
        run = record(
            model,
            lambda o, m=model, x=x: train_steps(m, lambda m, _: weighted(m(x)), o, 1),
            softmax_rows="all",
        )
        twin(x)
        p = twin.p.detach().double().movedim(dim, -1)
        entropy = torch.special.entr(p).sum(-1).mean().item() / math.log(p.shape[-1])
        found = recorded_at(run, "inner")
        assert found["entropy"] == pytest.approx(entropy, rel=1e-5)
        assert found["max_prob"] == pytest.approx(p.amax(-1).mean().item(), rel=1e-5)
        assert run.sites[("softmax", "inner")].note == "all rows"


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_all_rows_never_lie_in_memory_together(monkeypatch):
    monkeypatch.setattr(softmaxes, "CPU_BLOCK", 1 << 13)
    model = Outer(Attention("fused", is_causal=True))
    x = data(0, 2, 256, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1, softmax_rows="all"):
        loss = weighted(model(x))
        with Largest() as largest:
            loss.backward()
        optimizer.step()
    assert 1 << 13 <= largest.elements < 256 * 256 // 4


@pytest.mark.parametrize("value", ["every", 5, None, True])
def test_a_bad_choice_of_rows_is_refused(value):
    with pytest.raises(gradscope.GradscopeError, match='"sample" or "all"'):
        gradscope.attach(nn.Linear(2, 2), out=None, softmax_rows=value)
