"""Units that are off or at their ends: rectifiers that died, squashing functions gone flat."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_seventh_units import (
    digit_images,
    digits,
    sampler,
    shapes,
    table,
    waves,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the classes."""
    return F.cross_entropy(model(x), y)


# --- rectifiers that are off ---------------------------------------------------------------------


def bias_mlp(bias: float | None = None) -> Training:
    """Digits by an MLP; the second hidden layer's biases can be filled with a constant."""
    torch.manual_seed(11)
    net = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU(), nn.Linear(96, 10)
    )
    if bias is not None:
        nn.init.constant_(net[2].bias, bias)  # type: ignore[arg-type]
    return Training(
        net,
        sampler(64, *digits()),
        cross_entropy,
        torch.optim.Adam(net.parameters(), lr=1e-3),
        steps=300,
    )


class Block(nn.Module):
    """Convolutions with batch norm, and a skip connection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class SmallResNet(nn.Module):
    """A stem, a few blocks, and a mean over places."""

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def shifted_norm(shift: float = 0.0) -> Training:
    """Shapes by a residual net whose inner batch norms start with that shift."""
    torch.manual_seed(12)
    net = SmallResNet(16, 3)
    for block in net.blocks:
        assert isinstance(block, Block)
        nn.init.constant_(block.bn1.bias, shift)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return Training(net, sampler(24, *shapes(400, 12, 1)), cross_entropy, optimizer, steps=150)


class SparseAutoencoder(nn.Module):
    """An overcomplete code of rectified units, penalised for its size."""

    def __init__(self, width: int, code: int) -> None:
        super().__init__()
        self.centre = nn.Parameter(torch.zeros(width))
        self.encoder = nn.Linear(width, code)
        self.decoder = nn.Linear(code, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.relu(self.encoder(x - self.centre))
        return self.decoder(code) + self.centre, code


def reconstruction(penalty: float, model: nn.Module, x: Tensor) -> Tensor:
    """Squared error and the code's absolute sum."""
    back, code = model(x)
    return (back - x).square().sum(1).mean() + penalty * code.abs().sum(1).mean()


def sparse_code(penalty: float = 0.02) -> Training:
    """Activations of 32 numbers that are made of few directions out of 100."""
    torch.manual_seed(13)
    g = torch.Generator().manual_seed(3)
    directions = F.normalize(torch.randn(100, 32, generator=g), dim=1)
    on = (torch.rand(3000, 100, generator=g) < 0.04).float()
    x = (on * (0.5 + torch.rand(3000, 100, generator=g))) @ directions
    net = SparseAutoencoder(32, 160)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return Training(net, sampler(256, x), partial(reconstruction, penalty), optimizer, steps=400)


class LogRatios(nn.Module):
    """Scores for each of eight bins, from a trunk of GELUs."""

    def __init__(self, last: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.lift = nn.Linear(12, 64)
        self.mix = nn.Linear(64, 64)
        self.norm = nn.LayerNorm(64)
        self.out = nn.Linear(64, 8)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.lift(x))
        return self.last(self.out(self.norm(h + F.gelu(self.mix(h)))))


def same_value(x: Tensor) -> Tensor:
    """Nothing done."""
    return x


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over all outputs."""
    return F.mse_loss(model(x), y)


def log_probabilities(last: Callable[[Tensor], Tensor] = same_value) -> Training:
    """Logarithms of probabilities, all below 0, learned as numbers (distillation)."""
    torch.manual_seed(14)
    g = torch.Generator().manual_seed(4)
    x = torch.randn(1500, 12, generator=g)
    y = (1.5 * torch.tanh(x @ torch.randn(12, 8, generator=g) / 3)).log_softmax(1)
    net = LogRatios(last)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.0)
    return Training(net, sampler(64, x, y), squared_error, optimizer, steps=300)


class Neighbours(nn.Module):
    """Graph convolutions by a normalised adjacency matrix."""

    def __init__(self, features: int, width: int, classes: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(features, width))
        self.second = nn.Parameter(torch.empty(width, width))
        self.out = nn.Linear(width, classes)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        h = torch.relu(a @ x @ self.first)
        h = torch.relu(a @ h @ self.second)
        return self.out(h)


def node_classes(model: nn.Module, x: Tensor, a: Tensor, y: Tensor, seen: Tensor) -> Tensor:
    """Of the nodes whose class is known in this step."""
    return F.cross_entropy(model(x, a)[seen], y[seen])


def graph(low: float = -0.2, high: float = 0.2) -> Training:
    """Communities in a graph, from word counts; weights are drawn between two numbers."""
    torch.manual_seed(15)
    g = torch.Generator().manual_seed(5)
    n, classes, words = 240, 4, 40
    y = torch.arange(n) % classes
    topics = torch.rand(classes, words, generator=g) ** 3
    x = torch.poisson(3 * topics[y], generator=g)
    near = torch.where(y[:, None] == y[None], 0.10, 0.02)
    a = (torch.rand(n, n, generator=g) < near).float().triu(1)
    a = a + a.T + torch.eye(n)
    a = a / a.sum(1, keepdim=True)
    net = Neighbours(words, 48, classes)
    nn.init.uniform_(net.first, -0.2, 0.2)
    nn.init.uniform_(net.second, low, high)

    def batch(step: int) -> tuple[Tensor, ...]:
        rows = torch.randperm(n, generator=torch.Generator().manual_seed(step))[:80]
        return x, a, y, rows

    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    return Training(net, batch, node_classes, optimizer, steps=200)


class Recurrence(nn.Module):
    """A rectified recurrence written out, which starts as an identity."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.width = width
        self.enter = nn.Linear(1, width)
        self.again = nn.Linear(width, width, bias=False)
        self.read = nn.Linear(width, 3)
        with torch.no_grad():
            self.again.weight.copy_(torch.eye(width) * 0.9)
            self.enter.bias.add_(bias)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.width)
        for t in range(x.shape[1]):
            h = F.relu(self.enter(x[:, t]) + self.again(h))
        return self.read(h)


def rectified_rnn(bias: float = 0.0) -> Training:
    """Frequencies of waves by a rectified recurrence with that added to its biases."""
    torch.manual_seed(16)
    net = Recurrence(40, bias)
    optimizer = torch.optim.RMSprop(net.parameters(), lr=1e-3)
    return Training(
        net, sampler(48, *waves(600, 20, 6)), cross_entropy, optimizer, steps=250, clip=1.0
    )


DEAD = Fault(
    "ind7-dead-units",
    must=[["dead-units"]],
    symptom=dead_units(0.7),
    variants=[
        Variant(
            "hidden-biases-far-below-zero",
            healthy=bias_mlp,
            broken=partial(bias_mlp, bias=-4.0),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "norm-shift-far-below-zero",
            healthy=shifted_norm,
            broken=partial(shifted_norm, shift=-8.0),
            may=["vanishing-gradient", "no-update", "starved-pathway"],
        ),
        Variant(
            "code-penalty-far-too-large",
            healthy=sparse_code,
            broken=partial(sparse_code, penalty=20.0),
        ),
        Variant(
            "rectifier-after-the-output",
            healthy=log_probabilities,
            broken=partial(log_probabilities, last=torch.relu),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "weights-drawn-below-zero",
            healthy=graph,
            broken=partial(graph, low=-0.4, high=0.0),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "recurrence-biased-off",
            healthy=rectified_rnn,
            broken=partial(rectified_rnn, bias=-4.0),
            may=["vanishing-gradient", "no-update"],
        ),
    ],
)


# --- tanh and sigmoid at their ends --------------------------------------------------------------


def tanh_mlp(std: float | None = None) -> Training:
    """Digits by tanh layers; the weights can be drawn with a given deviation."""
    torch.manual_seed(21)
    x, y = digit_images()
    sizes = [64, 128, 128, 128, 128, 128, 128]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    net = nn.Sequential(*layers, nn.Linear(128, 10))
    if std is not None:
        for module in list(net)[:-1]:
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=std)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9)
    return Training(net, sampler(64, x.flatten(1), y), cross_entropy, optimizer, steps=300)


class Highway(nn.Module):
    """Layers that pass their input on as far as a gate does not open."""

    def __init__(self, width: int, layers: int, closed: float) -> None:
        super().__init__()
        self.enter = nn.Linear(10, width)
        self.change = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.gate = nn.ModuleList([nn.Linear(width, width) for _ in range(layers)])
        self.out = nn.Linear(width, 1)
        for gate in self.gate:
            nn.init.constant_(gate.bias, closed)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for change, gate in zip(self.change, self.gate, strict=True):
            t = torch.sigmoid(gate(h))
            h = t * F.elu(change(h)) + (1 - t) * h
        return self.out(h).squeeze(-1)


def highway(closed: float = -1.0) -> Training:
    """A smooth function by a highway net whose gates' biases start there."""
    torch.manual_seed(22)
    net = Highway(48, 6, closed)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    return Training(net, sampler(64, *table(2000, 10, 2)), squared_error, optimizer, steps=300)


class Hash(nn.Module):
    """Binary codes for pictures: tanh(β·features), with one network for both of a pair."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.conv = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.features = nn.Linear(256, 64)
        self.code = nn.Linear(64, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.conv(x)).flatten(1)
        return torch.tanh(self.beta * self.code(F.leaky_relu(self.features(h))))


def pairs(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Codes' mean product should be 1 within a class and 0 across classes."""
    left, right = model(x).chunk(2)
    alike = (y.chunk(2)[0] == y.chunk(2)[1]).float()
    weight = torch.where(alike > 0, 5.0, 1.0)
    return (weight * ((left * right).mean(1) - alike).square()).mean()


def hashing(beta: float = 1.0) -> Training:
    """Codes for digits, as steep as β from the first step."""
    torch.manual_seed(23)
    net = Hash(beta)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return Training(net, sampler(128, *digit_images()), pairs, optimizer, steps=250)


class Painter(nn.Module):
    """Decodes a class and a style into a picture, by transposed convolutions and a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.what = nn.Embedding(10, 24)
        self.spread = nn.Linear(24, 16 * 4)
        self.up1 = nn.ConvTranspose2d(16, 16, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)

    def forward(self, y: Tensor) -> Tensor:
        h = F.silu(self.spread(self.what(y))).view(-1, 16, 2, 2)
        return torch.sigmoid(self.up2(F.silu(self.up1(h))))


def paint(model: nn.Module, y: Tensor, x: Tensor) -> Tensor:
    """Squared error of the picture."""
    return F.mse_loss(model(y), x)


def painter(offset: float = 0.0) -> Training:
    """Mean digits; the last bias can be given an offset."""
    torch.manual_seed(24)
    x, y = digits()
    net = Painter()
    with torch.no_grad():
        net.up2.bias.add_(offset)  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0, momentum=0.9)
    return Training(net, sampler(64, y, x.view(-1, 1, 8, 8)), paint, optimizer, steps=300)


class Actor(nn.Module):
    """A policy: the state's features to actions between −1 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 64), nn.LayerNorm(64), nn.SiLU())
        self.action = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.action(self.body(x)))


def actor(unit: float = 1.0) -> Training:
    """Imitates an expert's actions, which are given in some unit."""
    torch.manual_seed(25)
    g = torch.Generator().manual_seed(8)
    x = torch.randn(2000, 10, generator=g)
    y = 0.8 * torch.sin(x @ torch.randn(10, 3, generator=g) / 2)
    net = Actor()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    return Training(net, sampler(64, x, unit * y), squared_error, optimizer, steps=300)


SATURATED = Fault(
    "ind7-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.7),
    variants=[
        Variant(
            "weights-drawn-too-wide",
            healthy=tanh_mlp,
            broken=partial(tanh_mlp, std=2.0),
        ),
        Variant(
            "gates-shut-by-their-biases",
            healthy=highway,
            broken=partial(highway, closed=-25.0),
            # The layers behind the gates get 1e-11 of what passes beside them, and stay put.
            may=["starved-pathway", "no-update", "vanishing-gradient"],
        ),
        Variant(
            "steep-codes-from-the-start",
            healthy=hashing,
            broken=partial(hashing, beta=200.0),
            # The slope multiplies the first gradients, too; then all are exactly 0.
            may=["update-too-large", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "pixels-start-at-the-end",
            healthy=painter,
            broken=partial(painter, offset=15.0),
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "targets-beyond-the-range",
            healthy=actor,
            broken=partial(actor, unit=57.3),
            symptom=saturated(0.6),
        ),
    ],
)

FAULTS = [DEAD, SATURATED]
