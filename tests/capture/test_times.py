"""Time steps inside fused recurrent layers, against the same layers written as loops."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.capture.times import MOST
from gradscope.findings._ladders import ladders

B, D, H = 3, 4, 5
KINDS = {
    "tanh": (nn.RNN, {}),
    "relu, two layers": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "gru": (nn.GRU, {}),
    "gru, two layers": (nn.GRU, {"num_layers": 2}),
    "lstm": (nn.LSTM, {}),
    "lstm, two layers": (nn.LSTM, {"num_layers": 2}),
}


class Reader(nn.Module):
    def __init__(self, kind, batch_first=True, **options):
        super().__init__()
        self.embed, self.rnn = nn.Embedding(7, D), kind(D, H, batch_first=batch_first, **options)

    def forward(self, tokens):
        return self.rnn(self.embed(tokens))[0]


def as_a_loop(rnn, x):
    """Outputs (T, B, H) of a recurrent module for x (T, B, D), and by layer what it reads by time:
    oneDNN's LSTM, in float32, its input; the others their input projected."""
    read = []
    for layer in range(rnn.num_layers):
        w, u, b, c = (
            getattr(rnn, f"{name}_l{layer}")
            for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        lstm = isinstance(rnn, nn.LSTM)
        kernel = lstm and w.dtype == torch.float32
        read.append([t.clone() if kernel else F.linear(t, w, b) for t in x])
        h = cell = torch.zeros(x[0].shape[0], rnn.hidden_size, dtype=w.dtype)
        outputs = []
        for t in read[-1]:
            t.retain_grad()
            if lstm:
                t = F.linear(t, w, b) if kernel else t
                i, f, g, o = (t + F.linear(h, u, c)).chunk(4, -1)
                cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
                h = o.sigmoid() * cell.tanh()
            elif isinstance(rnn, nn.GRU):
                (xr, xz, xn), (hr, hz, hn) = t.chunk(3, -1), F.linear(h, u, c).chunk(3, -1)
                z = (xz + hz).sigmoid()
                h = (1 - z) * (xn + (xr + hr).sigmoid() * hn).tanh() + z * h
            else:
                s = t + F.linear(h, u, c)
                h = s.relu() if rnn.nonlinearity == "relu" else s.tanh()
            outputs.append(h)
        x = outputs
    return torch.stack(x), read


def recorded(model, tokens, loss):
    with gradscope.attach(model, out=None, every=1) as scope:
        loss(model(tokens)).backward()
        scope.step()
    return scope.run()


def norms(run):
    table = run.frame(kind="module", metric="grad_norm")
    return {s: v for s, v in zip(table["site"], table["value"], strict=True) if ".time#" in s}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("length", [2, MOST, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_by_time(name, batch_first, length, dtype):
    kind, options = KINDS[name]
    torch.manual_seed(0)
    model = Reader(kind, batch_first, **options).to(dtype)
    tokens = torch.randint(7, (length, B))
    weight = torch.randn(length, B, H, dtype=dtype)

    run = recorded(
        model,
        tokens.T if batch_first else tokens,
        lambda y: ((y.transpose(0, 1) if batch_first else y) * weight).sum(),
    )
    found = norms(run)

    outputs, read = as_a_loop(model.rnn, [*model.embed(tokens).unbind()])
    (outputs * weight).sum().backward()
    times = sorted({round(k * (length - 1) / (MOST - 1)) for k in range(MOST)})
    expected = {
        f"rnn:l{layer}.time#{k}": steps[t].grad.norm().item()
        for layer, steps in enumerate(read)
        for k, t in enumerate(times)
    }
    assert found == pytest.approx(expected, rel=1e-4 if dtype == torch.float32 else 1e-9)
    assert {0, length - 1} <= set(times)


@pytest.mark.parametrize("kind", [nn.RNN, nn.GRU, nn.LSTM])
def test_time_steps_are_a_ladder(kind):
    run = recorded(Reader(kind), torch.randint(7, (B, 30)), lambda y: y[:, -1].sum())
    (times,) = (d for d in ladders(run.sites_of("module")) if "time" in d.role)
    assert times.shared
    assert times.sites == tuple(f"rnn:l0.time#{k}" for k in range(MOST))
    note = run.sites["module", "rnn:l0.time#0"].note
    assert note == "16 of 30 time steps, at even distances from the first to the last"


def test_the_reverse_direction_is_left_out():
    model = Reader(nn.GRU, num_layers=2, bidirectional=True)
    run = recorded(model, torch.randint(7, (B, 6)), lambda y: y.sum())
    assert {s.split(".")[0] for s in norms(run)} == {"rnn:l0", "rnn:l1"}


@pytest.mark.parametrize("length", [2, 40])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("loss", ["outputs", "last state"])
def test_an_lstm_that_reads_data(length, layers, batch_first, loss):
    """The gradient at data is nobody's, and is told all the same, at the same weights' gradient."""
    torch.manual_seed(0)
    model = nn.LSTM(D, H, layers, batch_first=batch_first)
    x = torch.randn(length, B, D)
    weight = torch.randn(length, B, H) if loss == "outputs" else torch.ones(B, H)

    def loss_of(result):
        y, (h, _) = result
        if loss == "last state":
            return (h[-1] * weight).sum()
        return ((y.transpose(0, 1) if batch_first else y) * weight).sum()

    given = x.transpose(0, 1) if batch_first else x
    found = norms(recorded(model, given, loss_of))
    with_gscope = [p.grad for p in model.parameters()]

    model.zero_grad()
    loss_of(model(given)).backward()
    assert all(map(torch.equal, with_gscope, [p.grad for p in model.parameters()]))
    outputs, read = as_a_loop(model, [t.clone().requires_grad_() for t in x])
    ((outputs if loss == "outputs" else outputs[-1]) * weight).sum().backward()
    times = sorted({round(k * (length - 1) / (MOST - 1)) for k in range(MOST)})
    assert found == pytest.approx(
        {
            f"(output):l{layer}.time#{k}": steps[t].grad.norm().item()
            for layer, steps in enumerate(read)
            for k, t in enumerate(times)
        },
        rel=1e-4,
    )


def test_an_lstm_that_reads_data_inside_a_checkpoint_or_offloaded():
    torch.manual_seed(0)
    model = nn.LSTM(D, H)
    x = torch.randn(20, B, D)
    plain = norms(recorded(model, x, lambda result: result[0].sum()))

    class Wrapped(nn.Module):
        def __init__(self, call):
            super().__init__()
            self.rnn, self.call = model, call

        def forward(self, x):
            return self.call(self.rnn, x)

    def offloaded(rnn, x):
        with torch.autograd.graph.save_on_cpu():
            return rnn(x)

    def again(rnn, x):
        return checkpoint(rnn, x, use_reentrant=False)

    for call in (offloaded, again):
        run = recorded(Wrapped(call), x, lambda result: result[0].sum())
        assert run.meta["errors"] == []
        found = {name.replace("rnn", "(output)"): v for name, v in norms(run).items()}
        assert found == pytest.approx(plain, rel=1e-5)


def test_lengths_that_vary_keep_their_names():
    model = Reader(nn.GRU)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradscope.attach(model, optimizer=optimizer, out=None, every=1) as scope:
        for length in (20, 33, 50):
            model(torch.randint(7, (B, length)))[:, -1].sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    table = scope.run().frame(kind="module", metric="grad_norm")
    table = table[table["site"].str.contains("time#")]
    assert table.groupby("step")["site"].nunique().tolist() == [MOST] * 3
    assert table["site"].nunique() == MOST
