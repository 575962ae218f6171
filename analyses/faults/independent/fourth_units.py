"""Units that are off for all data, and units that sit at the ends of tanh and sigmoid."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_fourth_units import (
    cross_entropy,
    digits,
    drawn,
    seeded,
    squares,
    table,
    waves,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training

F = nn.functional


def prior_bias(everywhere: bool = False) -> Training:
    """One-against-all detection on digits; the rare-class bias belongs into the head alone."""
    torch.manual_seed(11)
    x, y = digits()
    x = ((x - x.mean()) / x.std()).view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]
    for layer in layers[2:] if everywhere else layers[3:]:
        assert layer.bias is not None
        nn.init.constant_(layer.bias, -math.log(0.9 / 0.1))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), F.one_hot(y, 10).float())

    return Training(model, drawn(x, y), loss, torch.optim.Adam(model.parameters(), 1e-3), steps=200)


class _Residual(nn.Module):
    """A residual block with its last rectifier before or after the addition."""

    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        self.before = before
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        nn.init.zeros_(self.bn2.weight)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return x + F.relu(y) if self.before else F.relu(x + y)


def zero_gain(before: bool = False) -> Training:
    """Residual net whose blocks begin with a gain of 0; a rectifier on top of it never opens."""
    torch.manual_seed(13)
    x, y = digits()
    x = ((x - x.mean()) / x.std()).view(-1, 1, 8, 8)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        _Residual(12, before),
        _Residual(12, before),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    return Training(
        model,
        drawn(x, y, size=48),
        cross_entropy,
        torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=150,
    )


class _SparseCode(nn.Module):
    def __init__(self, wide: int, code: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(wide, code)
        self.decoder = nn.Linear(code, wide)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.encoder(x))
        return self.decoder(code), code


def sparse_code(weight: float = 1e-3) -> Training:
    """Overcomplete dictionary of rectified features, with a penalty on their sum."""
    torch.manual_seed(14)
    g = seeded(14)
    parts = F.normalize(torch.randn(100, 48, generator=g), dim=1)
    used = (torch.rand(4000, 100, generator=g) < 0.08) * torch.rand(4000, 100, generator=g)
    x = used @ parts
    x = x / x.std()
    model = _SparseCode(48, 192)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, code = model(x)
        return (again - x).square().sum(1).mean() + weight * code.sum(1).mean()

    return Training(
        model,
        drawn(x, size=256),
        loss,
        torch.optim.Adam(model.parameters(), 8e-3),
        steps=400,
        every=10,
    )


class _Layer(nn.Module):
    """A transformer's layer; its feed-forward part lets through what is above a threshold."""

    def __init__(self, width: int, threshold: float) -> None:
        super().__init__()
        self.threshold = threshold
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        x = x + self.attention(y, y, y, attn_mask=mask, need_weights=False)[0]
        return x + self.down(F.relu(self.up(self.norm2(x)) - self.threshold))


class _Speaker(nn.Module):
    def __init__(self, words: int, width: int, threshold: float) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(0.1 * torch.randn(24, width))
        self.layers = nn.ModuleList(_Layer(width, threshold) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, words)

    def forward(self, said: Tensor) -> Tensor:
        x = self.words(said) + self.places[: said.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def chained(rows: int, length: int, words: int, seed: int) -> Tensor:
    """Sequences in which the two words before decide the next one, mostly."""
    g = seeded(seed)
    follows = torch.randint(words, (words, words), generator=g)
    said = list(torch.randint(words, (2, rows), generator=g))
    for _ in range(length - 2):
        stray = torch.randint(words, (rows,), generator=g)
        strays = torch.rand(rows, generator=g) < 0.1
        said.append(torch.where(strays, stray, follows[said[-2], said[-1]]))
    return torch.stack(said, 1)


def threshold(at: float = 0.0) -> Training:
    """A small language model whose feed-forward units are to be sparse."""
    torch.manual_seed(15)
    said = chained(1024, 17, 12, seed=15)

    def loss(model: nn.Module, said: Tensor) -> Tensor:
        return F.cross_entropy(model(said[:, :-1]).flatten(0, 1), said[:, 1:].flatten())

    model = _Speaker(12, 32, at)
    return Training(
        model,
        drawn(said, size=32),
        loss,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
    )


class _Graph(nn.Module):
    def __init__(self, links: Tensor, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.register_buffer("links", links)
        self.first, self.second = nn.Linear(inputs, width), nn.Linear(width, width)
        self.head = nn.Linear(width, classes)

    def forward(self, nodes: Tensor) -> Tensor:
        links = self.get_buffer("links")
        h = F.relu(links @ self.first(nodes))
        h = F.layer_norm(h, h.shape[-1:])
        return links @ self.head(F.relu(links @ self.second(h)))


def rushed_graph(lr: float = 0.1) -> Training:
    """Groups of a network's nodes; the rate decides whether the rectifiers survive the start."""
    torch.manual_seed(16)
    g = seeded(16)
    y = torch.randint(4, (240,), generator=g)
    linked = torch.where(y[:, None] == y, 0.12, 0.02)
    upper = (torch.rand(240, 240, generator=g) < linked).float().triu(1)
    links = upper + upper.T + torch.eye(240)
    scale = links.sum(1).rsqrt()
    x = torch.randn(240, 20, generator=g) + F.one_hot(y, 20)
    model = _Graph(scale[:, None] * links * scale, 20, 64, 4)
    return Training(
        model,
        lambda step: (x, y),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr, momentum=0.9),
        steps=150,
    )


def decibels(rectified: bool = False) -> Training:
    """Levels of 16 bands of a signal, most of them below 0, from its samples."""
    torch.manual_seed(17)
    g = seeded(17)
    bands = torch.randn(1500, 16, generator=g) * 0.8
    t = torch.arange(64) / 64
    tones = torch.sin(6.283 * torch.arange(1, 17)[:, None] * t)
    x = (torch.exp(bands) @ tones)[:, None]
    x = x / x.std()
    offset = torch.cat([torch.full((12,), -4.0), torch.full((4,), 4.0)])
    model = nn.Sequential(
        nn.Conv1d(1, 16, 9, stride=2, padding=4),
        nn.GELU(),
        nn.Conv1d(16, 16, 5, stride=2, padding=2),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(256, 16),
        nn.ReLU() if rectified else nn.Identity(),
    )
    return Training(
        model,
        drawn(x, bands + offset),
        squares,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=200,
    )


DEAD = Fault(
    "ind4-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.6),
    variants=[
        Variant(
            "prior-bias",
            prior_bias,
            broken=partial(prior_bias, True),
            # Nothing gets past the layer that is off, and nothing trains but the head's bias.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "zero-gain",
            zero_gain,
            broken=partial(zero_gain, True),
            # The blocks' own layers get no gradient at all, and stay as they are.
            may=["starved-pathway", "vanishing-gradient", "no-update"],
        ),
        Variant("sparse-code", sparse_code, broken=partial(sparse_code, 5.0)),
        Variant(
            "threshold",
            threshold,
            broken=partial(threshold, 4.0),
            # The feed-forward parts get no gradient beside the skip connection, and don't move.
            may=["starved-pathway", "no-update"],
        ),
        Variant(
            "rushed-graph",
            rushed_graph,
            broken=partial(rushed_graph, 3.0),
            must=[["dead-units", "update-too-large"]],
            # With the last layer off, no gradient gets past it, and all but a bias stands still.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant("decibels", decibels, broken=partial(decibels, True)),
    ],
)


def unit_normal(gain: float = 1.0) -> Training:
    """Digits by a tanh MLP; the weights' spread forgets, or not, how many inputs there are."""
    torch.manual_seed(21)
    x, y = digits()
    x = (x - x.mean(0)) / (x.std(0) + 0.05)
    model = nn.Sequential(
        nn.Linear(64, 100), nn.Tanh(), nn.Linear(100, 100), nn.Tanh(), nn.Linear(100, 10)
    )
    for m in model:
        if isinstance(m, nn.Linear):
            spread = 1.0 if gain > 1 and m.out_features > 10 else m.in_features**-0.5
            nn.init.normal_(m.weight, std=spread)
            nn.init.zeros_(m.bias)
    return Training(
        model,
        drawn(x, y),
        cross_entropy,
        torch.optim.SGD(model.parameters(), 0.05),
        steps=300,
        every=10,
    )


class _Recurrent(nn.Module):
    def __init__(self, inputs: int, width: int, classes: int, drive: float) -> None:
        super().__init__()
        self.inward = nn.Linear(inputs, width)
        self.across = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, classes)
        nn.init.orthogonal_(self.across.weight)
        nn.init.normal_(self.inward.weight, std=drive)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.across.in_features)
        held = []
        for now in x.unbind(1):
            h = torch.tanh(self.inward(now) + self.across(h))
            held.append(h)
        return self.head(torch.stack(held, 1).mean(1))


def driven(drive: float = 0.25) -> Training:
    """A tanh recurrence written by hand, driven by six channels."""
    torch.manual_seed(22)
    g = seeded(22)
    x = torch.randn(1024, 14, 6, generator=g)
    y = ((x[:, :-1, 0] * x[:, 1:, 0]).sum(1) + x[:, :, 1].sum(1) > 0).long()
    model = _Recurrent(6, 48, 2, drive)
    return Training(
        model,
        drawn(x, y),
        cross_entropy,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
    )


class _Highway(nn.Module):
    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.change = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.sigmoid(self.gate(x)) * (F.gelu(self.change(x)) - x)


def shut_gates(bias: float = -1.0) -> Training:
    """Highway layers on a table; their gates begin open a little, or shut."""
    torch.manual_seed(23)
    x, y = table(3000, 16, seed=23)
    layers = [_Highway(48, bias) for _ in range(4)]
    model = nn.Sequential(nn.Linear(16, 48), *layers, nn.Linear(48, 1))
    return Training(
        model,
        drawn(x, y, size=128),
        squares,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
    )


def steep_norm(gain: float = 1.0) -> Training:
    """A LeNet of sigmoids behind batch norms, whose gain is where it starts."""
    torch.manual_seed(24)
    x, y = digits()
    x = (x - x.mean()).view(-1, 1, 8, 8)
    norms = [nn.BatchNorm2d(10), nn.BatchNorm2d(20)]
    for norm in norms:
        nn.init.constant_(norm.weight, gain)
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1),
        norms[0],
        nn.Sigmoid(),
        nn.AvgPool2d(2),
        nn.Conv2d(10, 20, 3, padding=1),
        norms[1],
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(320, 10),
    )
    return Training(
        model,
        drawn(x, y, size=48),
        cross_entropy,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=150,
    )


class _Actor(nn.Module):
    def __init__(self, observed: int, actions: int, gain: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(observed, 64), nn.ELU(), nn.Linear(64, 64), nn.LayerNorm(64), nn.ELU()
        )
        self.mean = nn.Linear(64, actions)
        with torch.no_grad():
            self.mean.weight *= gain

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.mean(self.trunk(x)))


def actor(gain: float = 0.3) -> Training:
    """Actions of a teacher, imitated by a policy that squashes its output with tanh."""
    torch.manual_seed(25)
    g = seeded(25)
    x = torch.randn(2048, 10, generator=g)
    y = 0.6 * torch.tanh(x @ torch.randn(10, 4, generator=g) / 3) * torch.cos(x[:, :4])
    model = _Actor(10, 4, gain)
    return Training(
        model,
        drawn(x, y, size=96),
        squares,
        torch.optim.Adam(model.parameters(), 3e-4),
        steps=250,
    )


def hot_rate(lr: float = 0.002) -> Training:
    """A tanh autoencoder of short waves."""
    torch.manual_seed(26)
    x, _ = waves(1024, 40, 4, seed=26, noise=0.1)
    x = x.squeeze(1)
    model = nn.Sequential(
        nn.Linear(40, 64), nn.Tanh(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 64),
        nn.Tanh(), nn.Linear(64, 40),
    )  # fmt: skip

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    return Training(
        model, drawn(x), loss, torch.optim.RMSprop(model.parameters(), lr), steps=300, every=10
    )


SATURATED = Fault(
    "ind4-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant("unit-normal", unit_normal, broken=partial(unit_normal, 2.0)),
        Variant(
            "driven",
            driven,
            broken=partial(driven, 6.0),
            may=["vanishing-gradient"],  # each step's slope shrinks it, backwards in time
        ),
        Variant(
            "shut-gates",
            shut_gates,
            broken=partial(shut_gates, -9.0),
            must=[["saturated-activation", "starved-pathway"]],
        ),
        Variant("steep-norm", steep_norm, broken=partial(steep_norm, 40.0)),
        Variant("actor", actor, broken=partial(actor, 60.0)),
        Variant(
            "hot-rate",
            hot_rate,
            broken=partial(hot_rate, 0.3),
            must=[["saturated-activation", "update-too-large"]],
        ),
    ],
)

FAULTS = [DEAD, SATURATED]
