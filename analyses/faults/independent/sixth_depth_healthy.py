"""Deep and recurrent nets that train as they should."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_sixth_depth import (
    VOCABULARY,
    cross_entropy,
    digits,
    grammar,
    pictures,
    rng,
    squared,
)
from analyses.faults.training import Training

# Deep


class Step(nn.Module):
    """Norm, two linear layers, and a sum."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.wide, self.back = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.back(F.gelu(self.wide(self.norm(x))))


def prenorm_mlp() -> Training:
    """Thirty residual blocks with a norm before each; AdamW, cosine schedule, clipping."""
    torch.manual_seed(100)
    body = [Step(40) for _ in range(30)]
    model = nn.Sequential(nn.Linear(64, 40), *body, nn.LayerNorm(40), nn.Linear(40, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    return Training(
        model,
        digits(48),
        cross_entropy,
        optimizer,
        steps=120,
        every=4,
        schedule=schedule,
        clip=1.0,
    )


def converged() -> Training:
    """Batch norm and ReLU, eight layers; fits its 256 pictures long before the end."""
    torch.manual_seed(101)
    sizes = [64, *[80] * 7]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b, bias=False), nn.BatchNorm1d(b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(80, 10))
    x, y = digits(256)(0)

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randperm(256, generator=rng(step, 101))[:64]
        return x[rows], y[rows]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    return Training(model, batch, cross_entropy, optimizer, steps=320, every=8)


class Residual(nn.Module):
    """The basic block of a ResNet, with a projection where its shape changes."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(a, b, 3, stride, 1, bias=False)
        self.c2 = nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(b), nn.BatchNorm2d(b)
        self.short: nn.Module = nn.Identity()
        if a != b or stride > 1:
            self.short = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.c2(F.relu(self.n1(self.c1(x)))))
        return F.relu(y + self.short(x))


def resnet() -> Training:
    """A ResNet of six blocks and three sizes; SGD with one cycle."""
    torch.manual_seed(102)
    sizes = [(12, 12, 1), (12, 12, 1), (12, 20, 2), (20, 20, 1), (20, 32, 2), (32, 32, 1)]
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(inplace=True),
        *[Residual(*s) for s in sizes],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    return Training(
        model,
        digits(40, (1, 8, 8)),
        cross_entropy,
        optimizer,
        steps=100,
        every=4,
        schedule=schedule,
    )


def self_normalising() -> Training:
    """Sixteen SELU layers with LeCun's init, no norm at all."""
    torch.manual_seed(103)
    layers: list[nn.Module] = []
    for a, b in pairwise([64, *[56] * 16]):
        linear = nn.Linear(a, b)
        nn.init.normal_(linear.weight, std=a**-0.5)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    model = nn.Sequential(*layers, nn.AlphaDropout(0.02), nn.Linear(56, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.8)
    return Training(model, digits(64), cross_entropy, optimizer, steps=250, every=5)


class Dense(nn.Module):
    """Every layer reads all that came before it."""

    def __init__(self, growth: int, depth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 3, padding=1)
        self.layers = nn.ModuleList(
            [
                nn.Sequential(
                    nn.BatchNorm2d(growth * (i + 1)),
                    nn.ReLU(),
                    nn.Conv2d(growth * (i + 1), growth, 3, padding=1),
                )
                for i in range(depth)
            ]
        )
        self.fc = nn.Linear(growth * (depth + 1) * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for layer in self.layers:
            found.append(layer(torch.cat(found, 1)))
        return self.fc(F.adaptive_avg_pool2d(torch.cat(found, 1), 2).flatten(1))


def dense() -> Training:
    """A small DenseNet, by Adam."""
    torch.manual_seed(104)
    model = Dense(8, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digits(32, (1, 8, 8)), cross_entropy, optimizer, steps=110, every=4)


class Variational(nn.Module):
    """A VAE with two hidden layers on each side."""

    def __init__(self, latent: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64), nn.SiLU())
        self.mean, self.logvar = nn.Linear(64, latent), nn.Linear(64, latent)
        self.decode = nn.Sequential(
            nn.Linear(latent, 64), nn.SiLU(), nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x)
        mean, logvar = self.mean(h), self.logvar(h)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        return self.decode(z), mean, logvar


def variational() -> Training:
    """Digits by a VAE; the sum of its two terms, per picture."""
    torch.manual_seed(105)
    model = Variational(6)

    def loss(m: nn.Module, x: Tensor) -> Tensor:
        again, mean, logvar = m(x)
        painted = F.binary_cross_entropy_with_logits(again, x, reduction="sum") / len(x)
        excess = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum() / len(x)
        return painted + 0.5 * excess

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, pictures(64), loss, optimizer, steps=400, every=10)


class UNet(nn.Module):
    """Two sizes down, two sizes up, skips between, group norm."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.d1, self.d2, self.d3 = self.two(1, c), self.two(c, 2 * c), self.two(2 * c, 2 * c)
        self.u2, self.u1 = self.two(4 * c, c), self.two(2 * c, c)
        self.out = nn.Conv2d(c, 1, 1)

    @staticmethod
    def two(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(a, b, 3, padding=1),
            nn.GroupNorm(2, b),
            nn.SiLU(),
            nn.Conv2d(b, b, 3, padding=1),
            nn.GroupNorm(2, b),
            nn.SiLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.d1(x)
        b = self.d2(F.max_pool2d(a, 2))
        h = self.d3(F.max_pool2d(b, 2))
        h = self.u2(torch.cat([F.interpolate(h, scale_factor=2.0), b], 1))
        h = self.u1(torch.cat([F.interpolate(h, scale_factor=2.0), a], 1))
        return self.out(h)


def segmentation() -> Training:
    """Which pixels belong to the disc, on a ground of stripes and noise?"""
    torch.manual_seed(106)
    model = UNet(8)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 106)
        at = 4 + 8 * torch.rand(12, 2, 1, 1, generator=g)
        radius = 2 + 2 * torch.rand(12, 1, 1, generator=g)
        inside = ((rows - at[:, 0]) ** 2 + (columns - at[:, 1]) ** 2 < radius**2).float()
        phase = 6.28 * torch.rand(12, 1, 1, generator=g)
        x = inside + 0.5 * torch.sin(columns + phase)
        x = x + 0.3 * torch.randn(12, 16, 16, generator=g)
        return x[:, None] - 0.2, inside[:, None]

    def loss(m: nn.Module, x: Tensor, inside: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(m(x), inside)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=100, every=4)


class Layer(nn.Module):
    """A pre-norm transformer layer, attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln1, self.ln2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.o = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Linear(3 * width, width)
        )
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        h = self.ln1(x)
        q, k, v = (
            f(h).view(B, T, self.heads, -1).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / (C // self.heads) ** 0.5
        later = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights = torch.softmax(scores.masked_fill(later, float("-inf")), dim=-1)
        x = x + self.o(torch.matmul(weights, v).transpose(1, 2).reshape(B, T, C))
        return x + self.mlp(self.ln2(x))


class Writer(nn.Module):
    """A small GPT whose output matrix is its embedding."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(64, width)
        self.layers = nn.Sequential(*[Layer(width, 4) for _ in range(depth)])
        self.last = nn.LayerNorm(width)
        for table in (self.wte, self.wpe):
            nn.init.normal_(table.weight, std=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        return self.last(self.layers(h)) @ self.wte.weight.T


def writer() -> Training:
    """Text by a pre-norm GPT of six layers, with a warm-up."""
    torch.manual_seed(107)
    model = Writer(32, 6)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: min(1.0, (s + 1) / 20))

    def loss(m: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
        return F.cross_entropy(m(tokens).flatten(0, 1), following.flatten())

    return Training(
        model,
        grammar(12, 24),
        loss,
        optimizer,
        steps=120,
        every=4,
        schedule=schedule,
        clip=1.0,
    )


def orthogonal_tanh() -> Training:
    """Fifteen tanh layers started orthogonal: the gradient keeps its length."""
    torch.manual_seed(108)
    model = nn.Sequential()
    for a, b in pairwise([64, *[64] * 15]):
        linear = nn.Linear(a, b)
        nn.init.orthogonal_(linear.weight, gain=1.1)
        nn.init.zeros_(linear.bias)
        model.extend([linear, nn.Tanh()])
    model.append(nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 120, 0.3)
    return Training(
        model, digits(64), cross_entropy, optimizer, steps=240, every=6, schedule=schedule
    )


class Depthwise(nn.Module):
    """A block as of ConvNeXt, its branch scaled by a learned vector."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.near = nn.Conv2d(c, c, 5, padding=2, groups=c)
        self.norm = nn.GroupNorm(1, c)
        self.up, self.down = nn.Conv2d(c, 3 * c, 1), nn.Conv2d(3 * c, c, 1)
        self.scale = nn.Parameter(torch.full((c, 1, 1), 0.3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.gelu(self.up(self.norm(self.near(x)))))


def depthwise() -> Training:
    """Eight depthwise blocks; AdamW with weight decay on matrices only, by groups."""
    torch.manual_seed(109)
    model = nn.Sequential(
        nn.Conv2d(1, 20, 2, 2),
        nn.GroupNorm(1, 20),
        *[Depthwise(20) for _ in range(8)],
        nn.Flatten(),
        nn.LayerNorm(320),
        nn.Linear(320, 10),
    )
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    scales = [p for n, p in model.named_parameters() if n.endswith("scale")]
    matrices = [p for p in matrices if all(p is not s for s in scales)]
    groups = [
        {"params": matrices, "weight_decay": 0.05},
        {"params": [*vectors, *scales], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    return Training(model, digits(40, (1, 8, 8)), cross_entropy, optimizer, steps=110, every=4)


class Droppable(nn.Module):
    """A residual MLP that leaves out blocks at random while it trains."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(64, width), nn.Linear(width, 10)
        self.blocks = nn.ModuleList([Step(width) for _ in range(depth)])

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for i, block in enumerate(self.blocks):
            if self.training and float(torch.rand(())) < 0.25 * i / len(self.blocks):
                continue
            x = block(x)
        return self.leave(F.layer_norm(x, x.shape[-1:]))


def stochastic_depth() -> Training:
    """A block that is left out has no gradient in that step, which is the idea."""
    torch.manual_seed(118)
    model = Droppable(48, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digits(48), cross_entropy, optimizer, steps=160, every=4)


class Exits(nn.Module):
    """A plain conv net with a classifier after every stage."""

    def __init__(self) -> None:
        super().__init__()
        channels = [1, 12, 16, 20, 24]
        self.stages = nn.ModuleList(
            [
                nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.LeakyReLU(0.1))
                for a, b in pairwise(channels)
            ]
        )
        self.exits = nn.ModuleList([nn.Linear(4 * b, 10) for b in channels[1:]])

    def forward(self, x: Tensor) -> list[Tensor]:
        answers = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            answers.append(leave(F.adaptive_avg_pool2d(x, 2).flatten(1)))
        return answers


def deep_supervision() -> Training:
    """Several classifiers along the way, the later ones counted more."""
    torch.manual_seed(119)
    model = Exits()

    def loss(m: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        losses = [F.cross_entropy(answer, y, label_smoothing=0.05) for answer in m(x)]
        return sum(
            (w * v for w, v in zip((0.1, 0.2, 0.3, 0.4), losses, strict=True)), losses[0] * 0
        )

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, digits(40, (1, 8, 8)), loss, optimizer, steps=120, every=4)


# Recurrent


class Babbler(nn.Module):
    """A character model: embedding, two LSTM layers with dropout between them, readout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, width, num_layers=2, batch_first=True, dropout=0.1)
        self.decoder = nn.Linear(width, VOCABULARY)

    def forward(
        self, tokens: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h, state = self.lstm(self.embedding(tokens), state)
        return self.decoder(h), state


def babbler() -> Training:
    """Next signs of a made-up language by an LSTM, clipped."""
    torch.manual_seed(110)
    model = Babbler(48)

    def loss(m: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
        logits, _ = m(tokens)
        return F.cross_entropy(logits.reshape(-1, VOCABULARY), following.reshape(-1))

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, grammar(16, 32), loss, optimizer, steps=160, every=4, clip=1.0)


def carried_state() -> Training:
    """Truncated backpropagation: windows of long texts, the state handed on without its graph."""
    torch.manual_seed(111)
    model = Babbler(40)
    long = grammar(12, 20 * 40, salt=111)(0)
    carried: dict[int, tuple[Tensor, Tensor]] = {}

    def batch(step: int) -> tuple[Tensor, ...]:
        at = 20 * (step % 40)
        return long[0][:, at : at + 20], long[1][:, at : at + 20]

    def loss(m: nn.Module, tokens: Tensor, following: Tensor) -> Tensor:
        logits, state = m(tokens, carried.get(0))
        carried[1] = (state[0].detach(), state[1].detach())
        return F.cross_entropy(logits.flatten(0, 1), following.flatten())

    def step(training: Training, at: int) -> dict[str, Any]:
        if at % 40 == 0:
            carried.clear()
        value = training.loss_at(at)
        training.optimizer.zero_grad()
        value.backward()
        norm = nn.utils.clip_grad_norm_(training.model.parameters(), 0.5)
        training.optimizer.step()
        carried[0] = carried[1]
        return {"loss": value.detach(), "norm": norm}

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, loss, optimizer, steps=200, every=5, step=step)


class Rows(nn.Module):
    """A GRU in both directions over the rows of a picture; mean and maximum over time."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(8, 28, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(112, 10))

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.gru(x)
        return self.head(torch.cat([states.mean(1), states.amax(1)], -1))


def rows() -> Training:
    """Digits read row by row."""
    torch.manual_seed(112)
    model = Rows()
    optimizer = torch.optim.NAdam(model.parameters(), lr=4e-3)
    return Training(model, digits(48, (8, 8)), cross_entropy, optimizer, steps=200, every=5)


class Temporal(nn.Module):
    """Residual dilated convolutions with weight normalisation."""

    def __init__(self, c: int, depth: int) -> None:
        super().__init__()
        self.lift = nn.Conv1d(2, c, 1)
        self.convs = nn.ModuleList(
            [
                nn.utils.parametrizations.weight_norm(nn.Conv1d(c, c, 3, dilation=2**i))
                for i in range(depth)
            ]
        )
        self.out = nn.Conv1d(c, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for i, conv in enumerate(self.convs):
            h = h + F.relu(conv(F.pad(h, (2 * 2**i, 0))))
        return self.out(h)


def temporal() -> Training:
    """A filter's output at every time, learned by a temporal convolutional net."""
    torch.manual_seed(113)
    model = Temporal(20, 4)

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(24, 2, 40, generator=rng(step, 113))
        y, level = [], torch.zeros(24)
        for t in range(40):
            level = 0.7 * level + 0.5 * x[:, 0, t] * (x[:, 1, t] > 0)
            y.append(level)
        return x, torch.stack(y, 1)[:, None]

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, squared, optimizer, steps=160, every=4)


class Reservoir(nn.Module):
    """An echo state network: a fixed random recurrence, a trained readout of two layers."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.into = nn.Linear(inputs, hidden)
        self.again = nn.Linear(hidden, hidden, bias=False)
        nn.init.orthogonal_(self.again.weight, gain=0.95)
        for p in (*self.into.parameters(), *self.again.parameters()):
            p.requires_grad_(False)
        self.readout = nn.Sequential(nn.Linear(hidden, 48), nn.Tanh(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.again.in_features)
        with torch.no_grad():
            for t in range(x.shape[1]):
                h = torch.tanh(self.into(x[:, t]) + self.again(h))
        return self.readout(h)[:, 0]


def reservoir() -> Training:
    """Only the readout is trained, and only it is with the optimizer: on purpose."""
    torch.manual_seed(114)
    model = Reservoir(1, 100)

    def batch(step: int) -> tuple[Tensor, ...]:
        x = torch.randn(64, 15, 1, generator=rng(step, 114))
        return x, x[:, -2, 0] * x[:, -4, 0] + 0.5 * x[:, -6, 0]

    optimizer = torch.optim.Adam(model.readout.parameters(), lr=3e-3)
    return Training(model, batch, squared, optimizer, steps=300, every=6)


class Translator(nn.Module):
    """GRU encoder, LSTM-cell decoder that attends to the encoder's states at each step."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(12, width), nn.Embedding(12, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.LSTMCell(2 * width, width)
        self.key = nn.Linear(width, width)
        self.score = nn.Linear(2 * width, 12)

    def forward(self, given: Tensor, previous: Tensor) -> Tensor:
        memory, last = self.encoder(self.source(given))
        h, c = last[0], torch.zeros_like(last[0])
        keys = self.key(memory)
        words = self.target(previous)
        context = memory.mean(1)
        said = []
        for t in range(previous.shape[1]):
            h, c = self.decoder(torch.cat([words[:, t], context], -1), (h, c))
            weights = F.softmax(torch.einsum("bc,btc->bt", h, keys) / h.shape[-1] ** 0.5, -1)
            context = torch.einsum("bt,btc->bc", weights, memory)
            said.append(self.score(torch.cat([h, context], -1)))
        return torch.stack(said, 1)


def translator() -> Training:
    """Sequences said backwards, each sign replaced by another; taught with the right past."""
    torch.manual_seed(115)
    model = Translator(32)

    def batch(step: int) -> tuple[Tensor, ...]:
        given = torch.randint(2, 12, (32, 6), generator=rng(step, 115))
        wanted = 2 + (given.flip(1) * 3) % 10
        start = torch.ones(32, 1, dtype=torch.int64)
        return given, torch.cat([start, wanted[:, :-1]], 1), wanted

    def loss(m: nn.Module, given: Tensor, previous: Tensor, wanted: Tensor) -> Tensor:
        return F.cross_entropy(m(given, previous).flatten(0, 1), wanted.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, loss, optimizer, steps=240, every=6)


class Watcher(nn.Module):
    """A convolutional LSTM that predicts the next frame."""

    def __init__(self, c: int) -> None:
        super().__init__()
        self.gates = nn.Conv2d(1 + c, 4 * c, 3, padding=1)
        self.paint = nn.Conv2d(c, 1, 3, padding=1)
        self.c = c

    def forward(self, frames: Tensor) -> Tensor:
        B, T, H, W = frames.shape
        h = c = frames.new_zeros(B, self.c, H, W)
        said = []
        for t in range(T):
            i, f, o, g = self.gates(torch.cat([frames[:, t, None], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f + 1) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            said.append(self.paint(h))
        return torch.cat(said, 1)


def watcher() -> Training:
    """A soft blob that drifts over a small torus."""
    torch.manual_seed(116)
    model = Watcher(10)
    at = torch.arange(8.0)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 116)
        start = 8 * torch.rand(12, 1, 2, generator=g)
        speed = 2 * torch.rand(12, 1, 2, generator=g) - 1
        place = (start + speed * torch.arange(7.0)[None, :, None]) % 8
        off = [(at - place[..., i, None] + 4) % 8 - 4 for i in (0, 1)]
        film = torch.exp(-(off[0][..., :, None] ** 2 + off[1][..., None, :] ** 2) / 3)
        return film[:, :-1], film[:, 1:]

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, squared, optimizer, steps=140, every=4)


class Averaged(nn.Module):
    """A layer-normalised GRU of two cells, written by hand."""

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.xs = nn.ModuleList([nn.Linear(inputs, 3 * hidden), nn.Linear(hidden, 3 * hidden)])
        self.hs = nn.ModuleList([nn.Linear(hidden, 3 * hidden, bias=False) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(3 * hidden) for _ in range(2)])
        self.value = nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        states = [x.new_zeros(len(x), self.hidden) for _ in range(2)]
        out = []
        for t in range(x.shape[1]):
            up = x[:, t]
            for i in range(2):
                r, z, n = self.norms[i](self.xs[i](up)).chunk(3, -1)
                hr, hz, hn = self.hs[i](states[i]).chunk(3, -1)
                z = torch.sigmoid(z + hz)
                new = torch.tanh(n + torch.sigmoid(r + hr) * hn)
                states[i] = (1 - z) * new + z * states[i]
                up = states[i]
            out.append(self.value(up))
        return torch.cat(out, 1)


def sine_mixture() -> Training:
    """One step ahead of noisy waves, with an exponential mean of the weights kept beside."""
    torch.manual_seed(117)
    model = Averaged(1, 24)
    mean = copy.deepcopy(model)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 117)
        speed = 0.3 + 0.5 * torch.rand(32, 1, generator=g)
        wave = torch.sin(speed * torch.arange(15) + 6.28 * torch.rand(32, 1, generator=g))
        seen = wave + 0.05 * torch.randn(32, 15, generator=g)
        return seen[:, :-1, None], wave[:, 1:]

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        training.optimizer.zero_grad(set_to_none=True)
        value.backward()
        training.optimizer.step()
        with torch.no_grad():
            for kept, now in zip(mean.parameters(), training.model.parameters(), strict=True):
                kept.lerp_(now, 0.02)
        return {"loss": value.item()}

    optimizer = torch.optim.Adamax(model.parameters(), lr=5e-3)
    return Training(model, batch, squared, optimizer, steps=140, every=4, step=step)


class Scan(nn.Module):
    """Two gated linear recurrences, h ← a h + (1 − a) u, with norms and sums between."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(2)])
        self.mixes = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)])
        self.back = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.leave = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for norm, mix, back in zip(self.norms, self.mixes, self.back, strict=True):
            a, u, gate = mix(norm(x)).chunk(3, -1)
            a = torch.sigmoid(a + 2)
            h, states = torch.zeros_like(u[:, 0]), []
            for t in range(x.shape[1]):
                h = a[:, t] * h + (1 - a[:, t]) * u[:, t]
                states.append(h)
            x = x + back(torch.stack(states, 1) * F.silu(gate))
        return self.leave(x.mean(1))


def gated_scan() -> Training:
    """Which of four signs was the most frequent in a noisy sequence?"""
    torch.manual_seed(120)
    model = Scan(4, 24)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = rng(step, 120)
        y = torch.randint(4, (48,), generator=g)
        signs = torch.randint(4, (48, 16), generator=g)
        often = torch.rand(48, 16, generator=g) < 0.4
        x = F.one_hot(torch.where(often, y[:, None], signs), 4).float()
        return x + 0.2 * torch.randn(x.shape, generator=g), y

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Training(model, batch, cross_entropy, optimizer, steps=160, every=4)


class Tied(nn.Module):
    """One block applied ten times, fed the input anew each time."""

    def __init__(self, width: int, times: int) -> None:
        super().__init__()
        self.inject = nn.Linear(64, width)
        self.block = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.decide = nn.Linear(width, 10)
        self.times = times

    def forward(self, x: Tensor) -> Tensor:
        given = self.inject(x)
        h = torch.zeros_like(given)
        for _ in range(self.times):
            h = self.norm(h + 0.5 * torch.tanh(self.block(h) + given))
        return self.decide(h)


def tied() -> Training:
    """Depth without more weights, towards a fixed point."""
    torch.manual_seed(121)
    model = Tied(64, 10)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.03)
    return Training(model, digits(64), cross_entropy, optimizer, steps=200, every=5)


DEEP = Healthy(
    "ind6-depth-deep",
    runs={
        "prenorm-mlp": prenorm_mlp,
        "converged-batch-norm": converged,
        "resnet": resnet,
        "selu": self_normalising,
        "densenet": dense,
        "vae": variational,
        "unet": segmentation,
        "gpt": writer,
        "orthogonal-tanh": orthogonal_tanh,
        "convnext": depthwise,
        "stochastic-depth": stochastic_depth,
        "deep-supervision": deep_supervision,
    },
)

RECURRENT = Healthy(
    "ind6-depth-recurrent",
    runs={
        "lstm-text": babbler,
        "truncated-lstm": carried_state,
        "bidirectional-gru": rows,
        "temporal-convolutions": temporal,
        "echo-state": reservoir,
        "attending-decoder": translator,
        "convolutional-lstm": watcher,
        "normalised-gru": sine_mixture,
        "gated-scan": gated_scan,
        "tied-depth": tied,
    },
    may={
        # What one step of the decoder read gets to the next step's query by 32 numbers only,
        # while the memory holds six times as many; it has learned its task so.
        "attending-decoder": ["information-bottleneck"],
    },
)

THEMES = [DEEP, RECURRENT]
