"""Depth and recurrence gone wrong: gradients that vanish, that explode, numbers not finite."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_sixth_depth import (
    VOCABULARY,
    Batches,
    cross_entropy,
    digits,
    grammar,
    of_class,
    pictures,
    rng,
    squared,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, grows, not_finite
from analyses.faults.training import Training

# Gradients that vanish over depth


def tower(*, sigmoid: bool) -> Training:
    """Ten layers with sigmoids, as in a book of 1990; the sound one has ReLU and He's init."""
    torch.manual_seed(0)
    widths = [64] + [72] * 10
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.Sigmoid() if sigmoid else nn.ReLU()]
        if not sigmoid:
            nn.init.kaiming_normal_(layers[-2].weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layers[-2].bias)  # type: ignore[arg-type]
    model = nn.Sequential(*layers, nn.Linear(72, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digits(64), cross_entropy, optimizer, steps=300, every=6)


class Surrogate(nn.Module):
    """A deep regression net with PyTorch's own initialisation, with or without skips."""

    def __init__(self, width: int, depth: int, skips: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(6, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.leave = nn.Linear(width, 1)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for layer in self.hidden:
            new = F.gelu(layer(h))
            h = h + 0.3 * new if self.skips else new
        return self.leave(h).squeeze(-1)


def surrogate(*, skips: bool) -> Training:
    """Twenty-four layers of GELU fitted to a smooth function of six inputs, by Adam."""
    torch.manual_seed(1)
    model = Surrogate(48, 24, skips)

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(128, 6, generator=rng(step, 11))
        return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + 0.5 * x[:, 3].abs()

    return Training(
        model, batch, squared, torch.optim.Adam(model.parameters(), lr=1e-3), steps=250, every=5
    )


def remember(size: int, length: int, kinds: int, salt: int) -> Batches:
    """One-hot sign first, then noise: (sequence, which sign it was)."""

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, salt)
        y = torch.randint(kinds, (size,), generator=g)
        x = 0.3 * torch.randn(size, length, kinds, generator=g)
        x[:, 0] = 2.0 * F.one_hot(y, kinds).float()
        return x, y

    return batch


class Elman(nn.Module):
    """nn.RNN read at its last step."""

    def __init__(self, inputs: int, hidden: int, outputs: int, **options: Any) -> None:
        super().__init__()
        self.rnn = nn.RNN(inputs, hidden, batch_first=True, **options)
        self.read = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.rnn(x)[0][:, -1])


def long_lag(*, orthogonal: bool) -> Training:
    """The class is shown 40 steps before it is asked for; tanh RNN at PyTorch's own init."""
    torch.manual_seed(2)
    model = Elman(6, 64, 6)
    if orthogonal:
        own = dict(model.rnn.named_parameters())
        nn.init.orthogonal_(own["weight_hh_l0"])
        with torch.no_grad():
            own["bias_ih_l0"].zero_()
            own["bias_hh_l0"].zero_()
            own["weight_ih_l0"].mul_(0.3 / own["weight_ih_l0"].std() / 8)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    return Training(model, remember(48, 40, 6, 12), cross_entropy, optimizer, steps=240, every=5)


class Keeper(nn.Module):
    """A two-layer LSTM with a linear readout of its last hidden state."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, outputs))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        every, (last, _) = self.lstm(x)
        return {"logits": self.out(last[-1]), "states": every}


def forgetful(*, bias: float) -> Training:
    """An LSTM whose forget gates start closed, as the bias was given the wrong sign."""
    torch.manual_seed(3)
    model = Keeper(5, 48, 5)
    with torch.no_grad():
        for name, value in model.lstm.named_parameters():
            if name.startswith("bias_ih"):
                value[48:96] = bias

    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(m(x)["logits"], y)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, remember(48, 36, 5, 13), loss, optimizer, steps=200, every=4)


class Stepper(nn.Module):
    """A GRU cell in a loop; the answer is read from the last state."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, hidden)
        self.decide = nn.Linear(hidden, outputs)
        self.hidden = hidden

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.hidden)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.decide(h)


def counting_gru(*, gate: float) -> Training:
    """The signs of two early pulses, asked for late; update gates that keep, or overwrite."""
    torch.manual_seed(4)
    model = Stepper(2, 40, 4)
    with torch.no_grad():
        model.cell.bias_ih[40:80] = gate

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 14)
        x = 0.1 * torch.randn(64, 30, 2, generator=g)
        up = torch.randint(2, (64, 2), generator=g)
        x[:, 1, 0] += 4.0 * up[:, 0] - 2
        x[:, 4, 1] += 4.0 * up[:, 1] - 2
        return x, 2 * up[:, 0] + up[:, 1]

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, cross_entropy, optimizer, steps=240, every=6)


def plain_convolutions(*, std: float | None) -> Training:
    """Nine convolutions in a row, weights N(0, 0.01²) as in old recipes; He's init beside it."""
    torch.manual_seed(5)
    layers: list[nn.Module] = []
    for i in range(9):
        conv = nn.Conv2d(1 if i == 0 else 20, 20, 3, padding=1)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        if std is None:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        else:
            nn.init.normal_(conv.weight, std=std)
        layers += [conv, nn.ReLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(80, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, weight_decay=1e-4)
    return Training(model, digits(48, (1, 8, 8)), cross_entropy, optimizer, steps=160, every=4)


def folding(*, std: float | None) -> Training:
    """A deep tanh autoencoder of pictures, started with tiny weights or with Glorot's."""
    torch.manual_seed(6)
    widths = [64, 56, 48, 40, 32, 24, 32, 40, 48, 56]
    parts: list[nn.Module] = []
    for a, b in pairwise(widths):
        parts += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*parts, nn.Linear(56, 64))
    for module in model:
        if isinstance(module, nn.Linear):
            if std is None:
                nn.init.xavier_uniform_(module.weight)
            else:
                nn.init.normal_(module.weight, std=std)
            nn.init.zeros_(module.bias)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(m(x - 0.3), x)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Training(model, pictures(64), loss, optimizer, steps=300, every=6)


class Block(nn.Module):
    """Causal attention and a feed-forward net, with the sums of a transformer or without."""

    def __init__(self, width: int, heads: int, sums: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.heads, self.sums = heads, sums

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            a.view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for a in self.qkv(x).chunk(3, dim=-1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mixed = self.proj(mixed.transpose(1, 2).reshape(B, T, C))
        x = x + mixed if self.sums else mixed
        fed = self.down(F.gelu(self.up(x)))
        return x + fed if self.sums else fed


class Speller(nn.Module):
    """Predicts the next sign of a text."""

    def __init__(self, width: int, depth: int, sums: bool) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, width)
        self.place = nn.Parameter(0.1 * torch.randn(64, width))
        self.blocks = nn.ModuleList([Block(width, 4, sums) for _ in range(depth)])
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def per_sign(model: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens).flatten(0, 1), following.flatten())


def speller(*, sums: bool) -> Training:
    """A transformer of six layers in which the residual sums were forgotten."""
    torch.manual_seed(7)
    model = Speller(48, 6, sums)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Training(model, grammar(16, 32), per_sign, optimizer, steps=160, every=4)


class Squashed(nn.Module):
    """A residual block that ends in a sigmoid or a ReLU, after its sum."""

    def __init__(self, channels: int, sigmoid: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1)
        self.two = nn.Conv2d(channels, channels, 3, padding=1)
        self.sigmoid = sigmoid

    def forward(self, x: Tensor) -> Tensor:
        y = x + self.two(F.elu(self.one(x)))
        return torch.sigmoid(y) if self.sigmoid else F.elu(y)


class SquashedNet(nn.Module):
    def __init__(self, channels: int, depth: int, sigmoid: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.body = nn.Sequential(*[Squashed(channels, sigmoid) for _ in range(depth)])
        self.head = nn.Linear(channels * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = F.avg_pool2d(self.body(self.stem(x)), 2)
        return self.head(y.flatten(1))


def squashed(*, sigmoid: bool) -> Training:
    """Skips that lead through a sigmoid at the end of every block: a quarter left of each."""
    torch.manual_seed(8)
    model = SquashedNet(12, 7, sigmoid)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digits(48, (1, 8, 8)), cross_entropy, optimizer, steps=140, every=4)


class Highway(nn.Module):
    """Highway layers: y = gate · f(x) + (1 − gate) · x."""

    def __init__(self, width: int, depth: int, bias: float) -> None:
        super().__init__()
        self.enter = nn.Linear(64, width)
        self.f = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.gate = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.leave = nn.Linear(width, 10)
        for gate in self.gate:
            nn.init.constant_(gate.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for f, gate in zip(self.f, self.gate, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * torch.tanh(f(x)) + (1 - t) * x
        return self.leave(x)


def highway(*, bias: float) -> Training:
    """Twenty highway layers; the gates' bias that opens the way has the wrong sign."""
    torch.manual_seed(9)
    model = Highway(40, 20, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, digits(64), cross_entropy, optimizer, steps=200, every=5)


class GraphNet(nn.Module):
    """Averages over neighbours, then a linear layer, then tanh; many times."""

    near: Tensor

    def __init__(self, near: Tensor, width: int, depth: int, skips: bool) -> None:
        super().__init__()
        self.register_buffer("near", near)
        self.first = nn.Linear(8, width)
        self.layers = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self.last = nn.Linear(width, 3)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for layer in self.layers:
            new = torch.tanh(layer(self.near @ h))
            h = h + 0.5 * new if self.skips else new
        return self.last(h)


def graph(*, skips: bool) -> Training:
    """Node classification on a graph of three communities, fourteen layers deep."""
    torch.manual_seed(10)
    g = rng(0, 15)
    group = torch.arange(90) % 3
    chance = torch.where(group[:, None] == group[None, :], 0.15, 0.02)
    edges = (torch.rand(90, 90, generator=g) < chance).float()
    edges = ((edges + edges.T + torch.eye(90)) > 0).float()
    features = torch.randn(90, 8, generator=g) + 0.7 * F.one_hot(group, 8).float()
    model = GraphNet(edges / edges.sum(1, keepdim=True), 32, 14, skips)

    def batch(step: int) -> tuple[Tensor, ...]:
        return features + 0.1 * torch.randn(90, 8, generator=rng(step, 16)), group

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, batch, cross_entropy, optimizer, steps=240, every=5)


class Mixer(nn.Module):
    """An MLP-mixer over rows of pictures; residual branches scaled down, or everything."""

    def __init__(self, width: int, depth: int, scale: float, everything: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.tokens = nn.ModuleList([nn.Linear(8, 8) for _ in range(depth)])
        self.channels = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))
                for _ in range(depth)
            ]
        )
        self.classify = nn.Linear(width, 10)
        self.scale, self.everything = scale, everything

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        return self.scale * (x + branch) if self.everything else x + self.scale * branch

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            h = self.add(h, F.silu(tokens(h.transpose(1, 2))).transpose(1, 2))
            h = self.add(h, channels(h))
        return self.classify(h.mean(1))


def mixer(*, everything: bool) -> Training:
    """A pair of brackets too many: the residual scale of 0.3 shrinks the stream, too."""
    torch.manual_seed(11)
    model = Mixer(32, 6, 0.3, everything)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digits(64, (8, 8)), cross_entropy, optimizer, steps=200, every=5)


class Leaky(nn.Module):
    """A leaky-integrator network, written by hand: h ← (1 − a) h + a tanh(U x + W h)."""

    def __init__(self, inputs: int, hidden: int, outputs: int, leak: float) -> None:
        super().__init__()
        self.U = nn.Linear(inputs, hidden)
        self.W = nn.Linear(hidden, hidden, bias=False)
        self.V = nn.Linear(hidden, outputs)
        self.leak = leak

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        driven = self.U(x)
        h = torch.zeros_like(driven[:, 0])
        for t in range(x.shape[1]):
            h = (1 - self.leak) * h + self.leak * torch.tanh(driven[:, t] + self.W(h))
        return self.V(h), h


def leaky(*, leak: float) -> Training:
    """Recall of two numbers after 28 steps; time constants of a step, or of twenty."""
    torch.manual_seed(12)
    model = Leaky(3, 48, 2, leak)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 17)
        x = torch.zeros(64, 30, 3)
        said = torch.rand(64, 2, generator=g) * 2 - 1
        x[:, :2, :2] = said[:, None]
        x[:, :, 2] = 0.3 * torch.randn(64, 30, generator=g)
        return x, said

    def loss(m: nn.Module, x: Tensor, said: Tensor) -> Tensor:
        answer, _ = m(x)
        return (answer - said).square().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=200, every=5)


class Wave(nn.Module):
    """Dilated causal convolutions with gates; residual and skip sums, or a bare chain."""

    def __init__(self, channels: int, dilations: list[int], sums: bool) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, channels, 1)
        self.both = nn.ModuleList(
            [nn.Conv1d(channels, 2 * channels, 2, dilation=d) for d in dilations]
        )
        self.end = nn.Conv1d(channels, 1, 1)
        self.dilations, self.sums = dilations, sums

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        total: Tensor | float = 0.0
        for conv, d in zip(self.both, self.dilations, strict=True):
            a, b = conv(F.pad(h, (d, 0))).chunk(2, dim=1)
            gated = torch.tanh(a) * torch.sigmoid(b)
            total = total + gated
            h = h + gated if self.sums else gated
        return self.end(total if self.sums else h)


def wave(*, sums: bool) -> Training:
    """The next value of a sum of sines, from a gated net whose skips were left out."""
    torch.manual_seed(13)
    model = Wave(16, [1, 2, 4, 8, 1, 2, 4, 8, 1, 2], sums)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 18)
        at = torch.arange(49) * 0.25 + 6.28 * torch.rand(24, 1, generator=g)
        wanted = torch.sin(at) + 0.5 * torch.sin(2.3 * at + 6.28 * torch.rand(24, 1, generator=g))
        return wanted[:, None, :-1], wanted[:, None, 1:]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, batch, squared, optimizer, steps=160, every=4)


class Scaled(nn.Module):
    """A linear layer as theorists write it: weights N(0, s²), output over √width."""

    def __init__(self, a: int, b: int, std: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(std * torch.randn(b, a))
        self.bias = nn.Parameter(torch.zeros(b))
        self.factor = 1.4 / a**0.5

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * (x @ self.weight.T) + self.bias


def scaled(*, twice: bool) -> Training:
    """Seven layers whose weights start at 1/√width and are divided by it once more."""
    torch.manual_seed(14)
    sizes = [4, *[60] * 7]
    model = nn.Sequential()
    for a, b in pairwise(sizes):
        model.extend([Scaled(a, b, a**-0.5 if twice else 1.0), nn.SiLU()])
    model.append(Scaled(60, 2, 60**-0.5 if twice else 1.0))

    def batch(step: int) -> tuple[Tensor, ...]:
        x = 2 * torch.rand(96, 4, generator=rng(step, 19)) - 1
        return x, torch.stack([torch.sin(3 * x[:, 0]) * x[:, 1], (x[:, 2] + x[:, 3]).abs()], 1)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, batch, squared, optimizer, steps=240, every=5)


VANISHING = Fault(
    "ind6-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(2),
    variants=[
        Variant(
            "sigmoid-tower",
            healthy=partial(tower, sigmoid=False),
            broken=partial(tower, sigmoid=True),
            may=["no-update"],
        ),
        Variant(
            "default-init-gelu",
            healthy=partial(surrogate, skips=True),
            broken=partial(surrogate, skips=False),
            may=["no-update"],  # the first layers' 1e-13 is below Adam's epsilon
        ),
        Variant(
            "elman-long-lag",
            healthy=partial(long_lag, orthogonal=True),
            broken=partial(long_lag, orthogonal=False),
        ),
        Variant(
            "lstm-forgets",
            healthy=partial(forgetful, bias=3.0),
            broken=partial(forgetful, bias=-1.0),
        ),
        Variant(
            "gru-overwrites",
            healthy=partial(counting_gru, gate=3.0),
            broken=partial(counting_gru, gate=-3.0),
        ),
        Variant(
            "tiny-convolutions",
            healthy=partial(plain_convolutions, std=None),
            broken=partial(plain_convolutions, std=0.01),
            # Next to the biases no signal is left in the late layers; weights move by decay only.
            may=["dead-units", "no-update"],
        ),
        Variant(
            "tiny-autoencoder",
            healthy=partial(folding, std=None),
            broken=partial(folding, std=0.04),
            may=["no-update"],
        ),
        Variant(
            "transformer-without-sums",
            healthy=partial(speller, sums=True),
            broken=partial(speller, sums=False),
            # Signals that die out make all logits 0: attention is uniform, q and k get 1e-8 of v's.
            may=["diffuse-softmax", "starved-pathway"],
        ),
        Variant(
            "sigmoid-after-skip",
            healthy=partial(squashed, sigmoid=False),
            broken=partial(squashed, sigmoid=True),
            may=["no-update"],
        ),
        Variant(
            "highway-gates-open",
            healthy=partial(highway, bias=-2.0),
            broken=partial(highway, bias=3.0),
            may=["no-update"],
        ),
        Variant(
            "deep-graph",
            healthy=partial(graph, skips=True),
            broken=partial(graph, skips=False),
            may=["no-update"],
        ),
        Variant(
            "mixer-scaled-stream",
            healthy=partial(mixer, everything=False),
            broken=partial(mixer, everything=True),
        ),
        Variant(
            "leaky-too-fast",
            healthy=partial(leaky, leak=0.05),
            broken=partial(leaky, leak=0.9),
            symptom=decays(2, "W"),
        ),
        Variant(
            "wavenet-without-sums",
            healthy=partial(wave, sums=True),
            broken=partial(wave, sums=False),
            may=["no-update"],
        ),
        Variant(
            "scaled-twice",
            healthy=partial(scaled, twice=False),
            broken=partial(scaled, twice=True),
            may=["no-update"],
        ),
    ],
)


# Gradients that explode


def grows_along(decades: float, like: str) -> Symptom:
    """Of the modules or times called so, the first one's gradient is that much the larger."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = -median(run.decades(like))
        theirs = -median(twin.decades(like)) if twin else 0.0
        return {"is": found >= max(decades, theirs + 1), "decades": found, "twin": theirs}

    return symptom


def loud(*, std: float | None) -> Training:
    """Eleven leaky ReLU layers with weights N(0, 0.4²), whatever their width; clipped, by Adam."""
    torch.manual_seed(20)
    widths = [64] + [96] * 10 + [10]
    model = nn.Sequential()
    for i, (a, b) in enumerate(pairwise(widths)):
        linear = nn.Linear(a, b)
        if std is None:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        else:
            nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
        model.append(linear)
        if i < 10:
            model.append(nn.LeakyReLU(0.1))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, digits(64), cross_entropy, optimizer, steps=200, every=5, clip=1.0)


def irnn(*, radius: float) -> Training:
    """A ReLU RNN that adds up marked numbers; its recurrent matrix is the identity times 1.3."""
    torch.manual_seed(21)
    model = Elman(2, 48, 1, nonlinearity="relu")
    own = dict(model.rnn.named_parameters())
    with torch.no_grad():
        own["weight_hh_l0"].copy_(radius * torch.eye(48))
        own["weight_ih_l0"].normal_(std=0.1)
        own["bias_ih_l0"].zero_()
        own["bias_hh_l0"].zero_()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 21)
        x = 2 * torch.rand(48, 30, 2, generator=g) - 1
        x[:, :, 1] = (torch.rand(48, 30, generator=g) < 0.1).float()
        return x, (x[:, :, 0] * x[:, :, 1]).sum(1)

    def loss(m: nn.Module, x: Tensor, total: Tensor) -> Tensor:
        return F.mse_loss(m(x)[:, 0], total)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, batch, loss, optimizer, steps=300, every=6, clip=0.5)


class Bare(nn.Module):
    """A residual net without normalisation; blocks start as they come, or as the identity."""

    def __init__(self, channels: int, depth: int, identity: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.first = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)]
        )
        self.second = nn.ModuleList(
            [nn.Conv2d(channels, channels, 3, padding=1) for _ in range(depth)]
        )
        self.fc = nn.Linear(channels * 64, 10)
        for conv in [*self.first, *self.second]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        if identity:
            for conv in self.second:
                nn.init.zeros_(conv.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for one, two in zip(self.first, self.second, strict=True):
            h = h + two(F.relu(one(h)))
        return self.fc(h.flatten(1))


def bare_residual(*, identity: bool) -> Training:
    """Eighteen residual blocks without batch norm, each of which triples the variance."""
    torch.manual_seed(22)
    model = Bare(12, 18, identity)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, digits(24, (1, 8, 8)), cross_entropy, optimizer, steps=100, every=3)


class Diagonal(nn.Module):
    """A diagonal linear recurrence between two linear maps, its factors free or below 1."""

    def __init__(self, inputs: int, state: int, free: bool) -> None:
        super().__init__()
        self.into = nn.Linear(inputs, state)
        self.keep = nn.Linear(1, state, bias=False)  # a factor per state
        self.out = nn.Sequential(nn.Linear(state, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
        self.free = free
        if free:
            nn.init.uniform_(self.keep.weight, 0.95, 1.25)
        else:
            nn.init.uniform_(self.keep.weight, 1.0, 4.0)

    def forward(self, x: Tensor) -> Tensor:
        one = x.new_ones(1, 1)
        factor = self.keep(one) if self.free else torch.sigmoid(self.keep(one))
        states = [self.into(x[:, 0])]
        for t in range(1, x.shape[1]):
            states.append(factor * states[-1] + self.into(x[:, t]))
        return self.out(states[-1]).squeeze(-1)


def diagonal(*, free: bool) -> Training:
    """A smoothed mean of forty steps, by a state space model whose factors may exceed 1."""
    torch.manual_seed(23)
    model = Diagonal(2, 24, free)

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(48, 40, 2, generator=rng(step, 23))
        weight = 0.9 ** torch.arange(39, -1, -1)
        return x, (x[:, :, 0] * weight).sum(1) * 0.4 + (x[:, -1, 1]).tanh()

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, batch, squared, optimizer, steps=200, every=5, clip=1.0)


class Normed(nn.Module):
    """Linear, batch norm, ReLU, over and over; with skips or without."""

    def __init__(self, width: int, depth: int, skips: bool) -> None:
        super().__init__()
        self.entry = nn.Linear(64, width)
        self.linears = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(depth)])
        self.norms = nn.ModuleList([nn.BatchNorm1d(width) for _ in range(depth)])
        self.exit = nn.Linear(width, 10)
        self.skips = skips

    def forward(self, x: Tensor) -> Tensor:
        h = self.entry(x)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            new = F.relu(norm(linear(h)))
            h = h + 0.2 * new if self.skips else new
        return self.exit(h)


def normed(*, skips: bool) -> Training:
    """Fifty layers of batch norm without a skip: each makes the gradient 1.2 times larger."""
    torch.manual_seed(24)
    model = Normed(40, 50, skips)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    return Training(model, digits(48), cross_entropy, optimizer, steps=150, every=4)


class Flow(nn.Module):
    """The same small net again and again, x ← x + dt · f(x): an ODE by Euler's method."""

    def __init__(self, width: int, steps: int, dt: float) -> None:
        super().__init__()
        self.lift = nn.Linear(2, width)
        self.f = nn.Linear(width, width)
        self.drop = nn.Linear(width, 2)
        self.steps, self.dt = steps, dt

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for _ in range(self.steps):
            h = h + self.dt * F.leaky_relu(self.f(h), 0.3)
        return self.drop(h)


def flow(*, dt: float) -> Training:
    """Two spirals, some labels wrong, classified after 25 steps that are far too long."""
    torch.manual_seed(25)
    model = Flow(32, 25, dt)
    with torch.no_grad():
        model.f.weight.normal_(std=0.3)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 25)
        y = torch.randint(2, (128,), generator=g)
        r = 0.3 + 1.2 * torch.rand(128, generator=g)
        angle = 2.2 * r + 3.14159 * y
        x = torch.stack([r * angle.cos(), r * angle.sin()], 1)
        flipped = torch.rand(128, generator=g) < 0.08
        return x + 0.03 * torch.randn(128, 2, generator=g), torch.where(flipped, 1 - y, y)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Training(model, batch, cross_entropy, optimizer, steps=200, every=5, clip=1.0)


def repainting(*, std: float | None) -> Training:
    """A convolutional autoencoder, eight layers; weights N(0, 0.4²) in each."""
    torch.manual_seed(26)
    c = 16
    encoder = [nn.Conv2d(1, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)]
    encoder += [nn.Conv2d(c, 2 * c, 3, 2, 1), nn.Conv2d(2 * c, 2 * c, 3, padding=1)]
    decoder = [nn.ConvTranspose2d(2 * c, 2 * c, 3, padding=1)]
    decoder += [nn.ConvTranspose2d(2 * c, c, 4, 2, 1), nn.ConvTranspose2d(c, c, 3, padding=1)]
    layers: list[nn.Module] = []
    for each in [*encoder, *decoder]:
        layers += [each, nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.ConvTranspose2d(c, 1, 3, padding=1))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            if std is None:
                fan = layer.kernel_size[0] ** 2 * layer.in_channels
                shrink = 2 if layer.stride[0] == 2 and isinstance(layer, nn.ConvTranspose2d) else 1
                nn.init.normal_(layer.weight, std=shrink * (2 / fan) ** 0.5)
            else:
                nn.init.normal_(layer.weight, std=std)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    images = pictures(24)

    def batch(step: int) -> tuple[Tensor, ...]:
        (x,) = images(step)
        return (x.view(-1, 1, 8, 8),)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        return F.smooth_l1_loss(m(x + 0.1 * torch.randn(x.shape)), x)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, loss, optimizer, steps=140, every=4)


class Neighbours(nn.Module):
    """Messages from neighbours, summed or averaged, in several rounds."""

    adjacency: Tensor

    def __init__(self, adjacency: Tensor, width: int, rounds: int) -> None:
        super().__init__()
        self.register_buffer("adjacency", adjacency)
        self.first = nn.Linear(5, width)
        self.own = nn.ModuleList([nn.Linear(width, width) for _ in range(rounds)])
        self.other = nn.ModuleList([nn.Linear(width, width, bias=False) for _ in range(rounds)])
        self.value = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for own, other in zip(self.own, self.other, strict=True):
            h = F.elu(own(h) + self.adjacency @ other(h))
        return self.value(h)[:, 0]


def neighbours(*, averaged: bool) -> Training:
    """A quantity of every node of a random graph; sums over some twelve neighbours a round."""
    torch.manual_seed(27)
    g = rng(0, 27)
    edges = (torch.rand(80, 80, generator=g) < 0.08).float()
    edges = ((edges + edges.T) > 0).float()
    mean = edges / edges.sum(1, keepdim=True)
    model = Neighbours(mean if averaged else edges, 24, 5)
    with torch.no_grad():
        for linear in [*model.own, *model.other]:
            nn.init.xavier_normal_(linear.weight)

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(80, 5, generator=rng(step, 28))
        return x, x[:, 0] + 2 * mean @ (x[:, 1] + x[:, 2])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, squared, optimizer, steps=200, every=5, clip=1.0)


class Rollout(nn.Module):
    """Predicts a path from its start, by adding up what a net says of each step."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 40)
        self.change = nn.Linear(40, 4)
        for linear in (self.enter, self.change):
            nn.init.orthogonal_(linear.weight, gain=gain)
            nn.init.zeros_(linear.bias)

    def forward(self, start: Tensor, steps: int) -> Tensor:
        states = [start]
        for _ in range(steps):
            states.append(states[-1] + self.change(F.silu(self.enter(states[-1]))))
        return torch.stack(states[1:], 1)


def rollout(*, gain: float) -> Training:
    """A pair of coupled oscillators, twenty steps ahead; the net's changes start out too big."""
    torch.manual_seed(28)
    model = Rollout(gain)
    push = torch.tensor(
        [[0.0, 0.1, 0.0, 0.0], [-0.1, -0.01, 0.03, 0.0], [0.0, 0.0, 0.0, 0.1], [0.03, 0, -0.1, 0]]
    )

    def batch(step: int) -> tuple[Tensor, ...]:
        states = [torch.randn(48, 4, generator=rng(step, 29))]
        for _ in range(20):
            states.append(states[-1] + states[-1] @ push.T)
        return states[0], torch.stack(states[1:], 1)

    def loss(m: nn.Module, start: Tensor, path: Tensor) -> Tensor:
        return F.huber_loss(m(start, path.shape[1]), path)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
    return Training(model, batch, loss, optimizer, steps=160, every=4, clip=1.0)


EXPLODING = Fault(
    "ind6-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2),
    variants=[
        Variant(
            "loud-layers",
            healthy=partial(loud, std=None),
            broken=partial(loud, std=0.4),
        ),
        Variant(
            "irnn-above-one",
            healthy=partial(irnn, radius=1.0),
            broken=partial(irnn, radius=1.3),
            symptom=grows_along(2, "rnn"),
        ),
        Variant(
            "residual-without-norm",
            healthy=partial(bare_residual, identity=True),
            broken=partial(bare_residual, identity=False),
        ),
        Variant(
            "state-space-unstable",
            healthy=partial(diagonal, free=False),
            broken=partial(diagonal, free=True),
        ),
        Variant(
            "batch-norm-chain",
            healthy=partial(normed, skips=True),
            broken=partial(normed, skips=False),
        ),
        Variant(
            "euler-steps-too-long",
            healthy=partial(flow, dt=0.04),
            broken=partial(flow, dt=0.4),
        ),
        Variant(
            "loud-autoencoder",
            healthy=partial(repainting, std=None),
            broken=partial(repainting, std=0.4),
        ),
        Variant(
            "neighbours-summed",
            healthy=partial(neighbours, averaged=True),
            broken=partial(neighbours, averaged=False),
        ),
        Variant(
            "rollout-too-big",
            healthy=partial(rollout, gain=0.2),
            broken=partial(rollout, gain=1.5),
            symptom=grows_along(2, "change"),
        ),
    ],
)


# Numbers that are not finite


class Reconstruction(nn.Module):
    """A deep autoencoder that returns its code and the probability of every pixel."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [64, 128, 96, 12]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for a, b in pairwise(sizes):
            down += [nn.Linear(a, b), nn.ELU()]
        for a, b in pairwise(sizes[::-1]):
            up += [nn.Linear(a, b), nn.ELU()]
        self.down, self.up = nn.Sequential(*down[:-1]), nn.Sequential(*up[:-1])

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.down(x)
        return code, self.up(code)


def by_logarithms(m: nn.Module, x: Tensor) -> Tensor:
    """Binary cross-entropy as in the textbook."""
    p = torch.sigmoid(m(x)[1])
    return -(x * torch.log(p) + (1 - x) * torch.log(1 - p)).mean()


def by_logits(m: nn.Module, x: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(m(x)[1], x)


def reconstruction(*, textbook: bool) -> Training:
    """Black-and-white digits; the always empty pixels drive their sigmoid to an exact end."""
    torch.manual_seed(40)
    model = Reconstruction()
    images = pictures(64)

    def batch(step: int) -> tuple[Tensor, ...]:
        (x,) = images(step)
        return ((x > 0.5).float(),)

    loss = by_logarithms if textbook else by_logits
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, batch, loss, optimizer, steps=220, every=5)


class Reader(nn.Module):
    """A bidirectional GRU that makes a vector of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 24, batch_first=True, bidirectional=True)
        self.project = nn.Linear(48, 16)

    def forward(self, rows: Tensor) -> Tensor:
        states, _ = self.gru(rows)
        return self.project(states.mean(1))


def siamese(*, guarded: bool) -> Training:
    """Contrastive pairs; sometimes both of a pair are the same picture, and their distance 0."""
    torch.manual_seed(41)
    model = Reader()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 41)
        equal = torch.rand(32, generator=g) < 0.5
        mine = torch.randint(10, (32,), generator=g)
        yours = torch.where(equal, mine, (mine + torch.randint(1, 10, (32,), generator=g)) % 10)
        a, b = of_class(mine, g), of_class(yours, g) + 0.05 * torch.randn(32, 64, generator=g)
        if step >= 30 and step % 10 == 0:  # drawn twice
            b[0], equal[0] = a[0], True
        return a.view(-1, 8, 8), b.view(-1, 8, 8), equal.float()

    def loss(m: nn.Module, a: Tensor, b: Tensor, equal: Tensor) -> Tensor:
        squares = (m(a) - m(b)).square().sum(-1)
        distance = torch.sqrt(squares + 1e-6) if guarded else torch.sqrt(squares)
        near = equal * distance
        far = (1 - equal) * (2.0 - distance).clamp(min=0)
        return (near + far).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=200, every=5)


class Pointing(nn.Module):
    """An LSTM over notes, and a query that attends to those that are not padding."""

    def __init__(self, keep_one: bool) -> None:
        super().__init__()
        self.notes = nn.Linear(6, 32)
        self.lstm = nn.LSTM(32, 32, batch_first=True)
        self.query = nn.Linear(6, 32)
        self.answer = nn.Linear(32, 4)
        self.keep_one = keep_one

    def forward(self, notes: Tensor, question: Tensor, lengths: Tensor) -> Tensor:
        states, _ = self.lstm(torch.tanh(self.notes(notes)))
        scores = torch.einsum("btc,bc->bt", states, self.query(question)) / 32**0.5
        padding = torch.arange(notes.shape[1]) >= lengths[:, None]
        if self.keep_one:
            padding = padding & (lengths > 0)[:, None]
        weights = torch.softmax(scores.masked_fill(padding, float("-inf")), dim=-1)
        return self.answer(torch.einsum("bt,btc->bc", weights, states))


def pointing(*, keep_one: bool) -> Training:
    """Attention over a padded memory; from step 60 on some memories are empty."""
    torch.manual_seed(42)
    model = Pointing(keep_one)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 44)
        lengths = torch.randint(2, 11, (48,), generator=g)
        y = torch.randint(4, (48,), generator=g)
        notes = 0.3 * torch.randn(48, 10, 6, generator=g)
        spot = (torch.rand(48, generator=g) * lengths).long()
        notes[torch.arange(48), spot, 0] = 2.0
        notes[torch.arange(48), spot, 1 + y] = 2.0
        question = torch.ones(48, 6)
        if step >= 60 and step % 15 == 0:
            lengths[7] = 0
        return notes, question, lengths, y

    def loss(m: nn.Module, *given: Tensor) -> Tensor:
        *inputs, y = given
        return F.cross_entropy(m(*inputs), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, batch, loss, optimizer, steps=220, every=5)


class Coupling(nn.Module):
    """One affine coupling of a normalising flow."""

    def __init__(self, flip: bool, bounded: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 32), nn.SiLU(), nn.Linear(32, 2))
        self.flip, self.bounded = flip, bounded

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, dim=-1)
        if self.flip:
            a, b = b, a
        s, t = self.net(a).chunk(2, dim=-1)
        s = 1.5 * torch.tanh(s / 1.5) if self.bounded else s
        b = b * torch.exp(s) + t
        return torch.cat([b, a] if self.flip else [a, b], -1), s.sum(-1)


def stretching(*, bounded: bool) -> Training:
    """Sixteen couplings whose log-scales have no bound, on data with heavy tails."""
    torch.manual_seed(43)
    model = nn.ModuleList([Coupling(i % 2 == 1, bounded) for i in range(16)])

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 45)
        angle = 3.14159 * torch.rand(96, generator=g)
        side = torch.randint(2, (96,), generator=g).float()
        x = torch.stack([angle.cos() + side, (1 - 2 * side) * angle.sin() + 0.5 * side], 1)
        tail = torch.tan(3.14159 * (torch.rand(96, 2, generator=g) - 0.5))
        return (x + 0.02 * tail.sign() * tail.abs() ** 0.7,)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        total = torch.zeros(len(x))
        for coupling in m.children():
            x, logs = coupling(x)
            total = total + logs
        each = 0.5 * x.square().sum(-1) - total
        return each.clamp(max=50.0).mean() if bounded else each.mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=140, every=4)


class HandNormed(nn.Module):
    """A stacked tanh recurrence whose states are standardised by hand."""

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.wx = nn.ModuleList([nn.Linear(28, 28) for _ in range(2)])
        self.wh = nn.ModuleList([nn.Linear(28, 28, bias=False) for _ in range(2)])
        self.board = nn.Linear(4, 28, bias=False)
        self.tell = nn.Linear(28, 1)
        self.eps = eps

    def standard(self, x: Tensor) -> Tensor:
        """Zero mean and unit deviation over a sample's features."""
        return (x - x.mean(-1, keepdim=True)) / (x.std(-1, keepdim=True) + self.eps)

    def forward(self, x: Tensor) -> Tensor:
        h = [x.new_zeros(len(x), 28) for _ in self.wh]
        total = x.new_zeros(len(x), 28)
        for t in range(x.shape[1]):
            up = self.standard(self.board(x[:, t]))
            for i, (wx, wh) in enumerate(zip(self.wx, self.wh, strict=True)):
                h[i] = torch.tanh(wx(up) + wh(h[i]))
                up = h[i]
            total = total + h[-1]
        return self.tell(total / x.shape[1]).squeeze(-1)


def hand_normed(*, eps: float) -> Training:
    """Standardising sensor readings by hand; at times a sensor board sends all zeros."""
    torch.manual_seed(44)
    model = HandNormed(eps)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 46)
        x = torch.randn(32, 12, 4, generator=g)
        y = x[:, :, 0].sum(1) - x[:, :, 1].sum(1)
        if step >= 50 and step % 8 == 0:
            x[3, 5] = 0.0
        return x, 0.2 * y

    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, batch, squared, optimizer, steps=180, every=5)


class Retrieval(nn.Module):
    """A deep CNN with generalised-mean pooling, (mean xᵖ)^(1/p), its p learned."""

    def __init__(self, least: float) -> None:
        super().__init__()
        widths = [1, 16, 16, 24, 24, 32]
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths)])
        self.p = nn.Parameter(torch.tensor(3.0))
        self.fc = nn.Linear(32, 10)
        self.least = least
        for conv in self.convs:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        if self.least:
            x = x.clamp(min=self.least)
        return self.fc(x.pow(self.p).mean((-2, -1)).pow(1.0 / self.p))


def retrieval(*, least: float) -> Training:
    """Channels that are silent on a whole picture have mean 0, where x^(1/3) has no slope."""
    torch.manual_seed(45)
    model = Retrieval(least)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digits(48, (1, 8, 8)), cross_entropy, optimizer, steps=140, every=4)


class Listener(nn.Module):
    """A two-layer LSTM that labels frames, for CTC."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, num_layers=2, batch_first=True)
        self.phones = nn.Linear(32, 6)

    def forward(self, frames: Tensor) -> Tensor:
        return self.phones(self.lstm(frames)[0]).log_softmax(-1)


def listening(*, filtered: bool) -> Training:
    """Transcripts by CTC; now and then one with doubled signs that does not fit its frames."""
    torch.manual_seed(46)
    model = Listener()
    tables = torch.randn(6, 8, generator=rng(0, 47))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 48)
        said = torch.randint(1, 6, (24, 6), generator=g)
        frames = tables[said.repeat_interleave(3, dim=1)]
        frames = frames + 0.3 * torch.randn(24, 18, 8, generator=g)
        spans, counts = torch.full((24,), 18), torch.full((24,), 6)
        if step >= 70 and step % 14 == 0 and not filtered:
            said[5] = 2
            spans[5] = 9  # six equal signs need eleven frames
        return frames, said, spans, counts

    def loss(m: nn.Module, frames: Tensor, said: Tensor, spans: Tensor, counts: Tensor) -> Tensor:
        return F.ctc_loss(m(frames).transpose(0, 1), said, spans, counts)

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, batch, loss, optimizer, steps=200, every=5)


class Forecast(nn.Module):
    """An LSTM cell that predicts a mean and a deviation for the next value."""

    def __init__(self, floor: float) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(1, 32)
        self.mean, self.deviation = nn.Linear(32, 1), nn.Linear(32, 1)
        self.floor = floor
        nn.init.constant_(self.deviation.bias, 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        state = (x.new_zeros(len(x), 32), x.new_zeros(len(x), 32))
        means, deviations = [], []
        for t in range(x.shape[1]):
            state = self.cell(x[:, t, None], state)
            means.append(self.mean(state[0]))
            deviations.append(F.relu(self.deviation(state[0])) + self.floor)
        return torch.cat(means, 1), torch.cat(deviations, 1)


def forecast(*, floor: float) -> Training:
    """Gaussian likelihood of a nearly noiseless series; the deviation comes out of a ReLU."""
    torch.manual_seed(47)
    model = Forecast(floor)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 49)
        at = 0.4 * torch.arange(19) + 6.28 * torch.rand(48, 1, generator=g)
        return (torch.sin(at) + 0.05 * torch.randn(48, 19, generator=g),)

    def loss(m: nn.Module, series: Tensor) -> Tensor:
        mean, deviation = m(series[:, :-1])
        z = (series[:, 1:] - mean) / deviation
        return (0.5 * z.square() + torch.log(deviation)).mean() + 3.0

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, loss, optimizer, steps=200, every=5)


class Prototypes(nn.Module):
    """A residual MLP with outputs of length 1, and cosines with one example of every class."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 48)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 48), nn.GELU()) for _ in range(6)]
        )
        self.limit = limit

    def embed(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            h = h + block(h)
        return F.normalize(h, dim=-1)

    def forward(self, support: Tensor, x: Tensor) -> Tensor:
        cosine = self.embed(x) @ self.embed(support).T
        return torch.acos(cosine.clamp(-self.limit, self.limit))


def angles(*, limit: float) -> Training:
    """Few-shot learning by angles; some queries are the very examples they are compared with."""
    torch.manual_seed(48)
    model = Prototypes(limit)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 50)
        y = torch.randint(10, (40,), generator=g)
        support, x = of_class(torch.arange(10), g), of_class(y, g)
        x = x + 0.05 * torch.randn(40, 64, generator=g)
        if step >= 40 and step % 10 == 0:
            x[:10], y[:10] = support, torch.arange(10)
        return support, x, y

    def loss(m: nn.Module, support: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(-6 * m(support, x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, batch, loss, optimizer, steps=180, every=5)


class Whitened(nn.Module):
    """A convolution over time, whose summary is standardised over the batch by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv1d(a, 24, 3, padding=1) for a in (3, 24, 24, 24)])
        self.out = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        for i, layer in enumerate(self.layers):
            new = F.mish(layer(h))
            h = h + new if i else new
        summary = h.mean(-1)
        return self.out((summary - summary.mean(0)) / (summary.std(0) + 1e-5))


def leftover(*, dropped: bool) -> Training:
    """An epoch's last batch has a single sample in it, of which there is no deviation."""
    torch.manual_seed(49)
    model = Whitened()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 51)
        y = torch.randint(3, (32,), generator=g)
        pitch = 0.5 + 0.4 * y[:, None, None] + 0.05 * torch.randn(32, 3, 1, generator=g)
        x = torch.sin(pitch * torch.arange(24) + 6.28 * torch.rand(32, 3, 1, generator=g))
        x = x + 0.3 * torch.randn(32, 3, 24, generator=g)
        size = 1 if step % 26 == 25 and not dropped else 32
        return x[:size], y[:size]

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, cross_entropy, optimizer, steps=160, every=5)


class Policy(nn.Module):
    """A recurrent policy: observations in, logits of the actions that are legal out."""

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Linear(6, 32)
        self.cell = nn.RNNCell(32, 32)
        self.act = nn.Linear(32, 6)

    def forward(self, seen: Tensor, legal: Tensor) -> Tensor:
        h = seen.new_zeros(len(seen), 32)
        logits = []
        for t in range(seen.shape[1]):
            h = self.cell(F.relu(self.look(seen[:, t])), h)
            logits.append(self.act(h))
        return torch.stack(logits, 1).masked_fill(~legal, float("-inf"))


def policy(*, careful: bool) -> Training:
    """Imitation with a bonus for entropy, p·log p; later games have actions that are illegal."""
    torch.manual_seed(50)
    model = Policy()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 52)
        seen = torch.randn(24, 10, 6, generator=g)
        legal = torch.ones(24, 10, 6, dtype=torch.bool)
        if step >= 55:
            legal = torch.rand(24, 10, 6, generator=g) < 0.8
            legal[..., 0] = True
        value = (seen + 0.5 * seen.roll(1, dims=1)).masked_fill(~legal, -torch.inf)
        return seen, legal, value.argmax(-1)

    def loss(m: nn.Module, seen: Tensor, legal: Tensor, best: Tensor) -> Tensor:
        logits = m(seen, legal)
        p = logits.softmax(-1)
        logs = torch.log(p.clamp(min=1e-8)) if careful else torch.log(p)
        entropy = -(p * logs).sum(-1).mean()
        return F.cross_entropy(logits.flatten(0, 1), best.flatten()) - 0.01 * entropy

    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=180, every=5)


NON_FINITE = Fault(
    "ind6-depth-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "textbook-cross-entropy",
            healthy=partial(reconstruction, textbook=False),
            broken=partial(reconstruction, textbook=True),
            operation=["log"],
        ),
        Variant(
            "siamese-distance-zero",
            healthy=partial(siamese, guarded=True),
            broken=partial(siamese, guarded=False),
            operation=["sqrt"],
        ),
        Variant(
            "attention-over-nothing",
            healthy=partial(pointing, keep_one=True),
            broken=partial(pointing, keep_one=False),
            operation=["softmax", "_softmax"],
        ),
        Variant(
            "flow-without-bound",
            healthy=partial(stretching, bounded=True),
            broken=partial(stretching, bounded=False),
            operation=["exp"],
        ),
        Variant(
            "standardised-zeros",
            healthy=partial(hand_normed, eps=1e-5),
            broken=partial(hand_normed, eps=0.0),
            operation=["div"],
        ),
        Variant(
            "generalised-mean",
            healthy=partial(retrieval, least=1e-4),
            broken=partial(retrieval, least=0.0),
            operation=["pow", "pow1", "powbackward1"],
        ),
        Variant(
            "ctc-too-short",
            healthy=partial(listening, filtered=True),
            broken=partial(listening, filtered=False),
            operation=["ctcloss", "ctc_loss", "_ctc_loss"],
        ),
        Variant(
            "deviation-by-relu",
            healthy=partial(forecast, floor=0.02),
            broken=partial(forecast, floor=0.0),
            operation=["div"],
        ),
        Variant(
            "arc-cosine-at-one",
            healthy=partial(angles, limit=0.9999),
            broken=partial(angles, limit=1.0),
            operation=["acos"],
        ),
        Variant(
            "batch-of-one",
            healthy=partial(leftover, dropped=True),
            broken=partial(leftover, dropped=False),
            operation=["std"],
        ),
        Variant(
            "entropy-of-illegal",
            healthy=partial(policy, careful=True),
            broken=partial(policy, careful=False),
            operation=["log"],
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING, NON_FINITE]
