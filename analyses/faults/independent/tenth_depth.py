"""Gradients that vanish or explode on their way through many layers."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_b import (
    communities,
    cross_entropy,
    curve,
    dice,
    digits,
    fill,
    he,
    squares,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training

SPLITS = ("test",)


def sigmoid_mlp(act: str = "relu") -> Training:
    """A perceptron of nine hidden layers, as in a first course: sigmoids all the way."""
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    width = 64
    for _ in range(9):
        layers += [nn.Linear(width, 48), nn.Sigmoid() if act == "sigmoid" else nn.ReLU()]
        width = 48
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    if act == "relu":
        he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, digits(64), cross_entropy, optimizer, steps=250)


class PlainCNN(nn.Module):
    """Ten convolutions in a row, no shortcut, no normalisation."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Conv2d(width, width, 3, padding=1, stride=2 if i in (2, 6) else 1) for i in range(9)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for conv in self.body:
            x = F.relu(conv(x))
        return self.head(x.mean((2, 3)))


def plain_cnn(std: float | None = None) -> Training:
    """Weights drawn with one deviation for all layers, whatever their fan-in, or Kaiming's."""
    torch.manual_seed(5)
    model = PlainCNN()
    if std is None:
        he(model)
    else:
        fill(model, std)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


class GraphNet(nn.Module):
    """Graph convolutions: each layer averages over neighbours."""

    def __init__(self, layers: int, residual: bool, width: int = 24) -> None:
        super().__init__()
        self.inward = nn.Linear(12, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers if residual else 0))
        self.outward = nn.Linear(width, 4)
        self.residual = residual

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        mean = adjacency / adjacency.sum(1, keepdim=True)
        h = self.inward(x)
        for i, layer in enumerate(self.layers):
            if self.residual:
                h = h + torch.tanh(layer(mean @ self.norms[i](h)))
            else:
                h = torch.tanh(layer(mean @ h))
        return self.outward(h)


def graph_loss(model: nn.Module, x: Tensor, adjacency: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x, adjacency)[:64], y[:64])


def deep_gcn(residual: bool = True) -> Training:
    """A graph network of ten layers: features smoothed away, or kept by shortcuts."""
    torch.manual_seed(8)
    data = communities()
    model = GraphNet(10, residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, lambda step: data, graph_loss, optimizer, steps=250)


class Mixer(nn.Module):
    """Mixes tokens and channels by turns; `share` scales each residual sum."""

    def __init__(self, blocks: int, share: float) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 32)
        self.tokens = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(blocks)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(blocks)
        )
        self.head = nn.Linear(32, 10)
        self.share = share

    def forward(self, x: Tensor) -> Tensor:
        x = F.unfold(x, 2, stride=2).transpose(1, 2)
        x = self.patch(x)
        for tokens, channels in zip(self.tokens, self.channels, strict=True):
            x = (x + tokens(x.transpose(1, 2)).transpose(1, 2)) * self.share
            x = (x + channels(x)) * self.share
        return self.head(x.mean(1))


def mixer(share: float = 1.0) -> Training:
    """A mixer; residual sums averaged rather than added, so that every block halves the signal."""
    torch.manual_seed(4)
    model = Mixer(9, share)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


def reconstruction(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    return (model(x) - x).square().sum(1).mean() / 2


def deep_autoencoder(std: float | None = None) -> Training:
    """Digits through a code of 8 numbers and back, ten tanh layers."""
    torch.manual_seed(1)
    sizes = [64, 48, 40, 32, 24, 8, 24, 32, 40, 48, 64]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    if std is not None:
        fill(model, std)
    else:
        for m in model:
            if isinstance(m, nn.Linear):
                nn.init.xavier_normal_(m.weight, gain=1.1)
                nn.init.zeros_(m.bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.003, momentum=0.9)
    return Training(model, digits(64), reconstruction, optimizer, steps=300)


class Tower(nn.Module):
    """Embeds a signal by convolutions in time."""

    def __init__(self, act: type[nn.Module], depth: int = 7) -> None:
        super().__init__()
        blocks: list[nn.Module] = [nn.Conv1d(1, 16, 5, padding=2), act()]
        for i in range(depth - 1):
            blocks += [nn.Conv1d(16, 16, 5, padding=2, stride=2 if i % 2 else 1), act()]
        self.net = nn.Sequential(*blocks)
        self.out = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.net(x[:, None]).mean(2))


def pairs(step: int) -> tuple[Tensor, ...]:
    """Two noisy waves, and whether they have the same frequency of five."""
    g = dice(step, 23)
    t = torch.linspace(0, 1, 48)
    same = torch.randint(2, (32,), generator=g)
    first = torch.randint(5, (32,), generator=g)
    second = torch.where(same == 1, first, (first + torch.randint(1, 5, (32,), generator=g)) % 5)

    def waves(k: Tensor) -> Tensor:
        phase = 6.28 * torch.rand(32, 1, generator=g)
        noise = 0.2 * torch.randn(32, 48, generator=g)
        return 1.4 * torch.sin(6.28 * (1.0 + 3 * k[:, None]) * t + phase) + noise

    return waves(first), waves(second), same.float()


def contrastive(model: nn.Module, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """Same pairs together, others at least 1 apart."""
    distance = ((model(a) - model(b)).square().sum(1) + 1e-6).sqrt()
    return (same * distance.square() + (1 - same) * (1 - distance).clamp(min=0).square()).mean()


def siamese(act: type[nn.Module] = nn.ReLU) -> Training:
    """Two towers of shared weights; sigmoids between the convolutions, or rectifiers."""
    torch.manual_seed(2)
    model = Tower(act)
    if act is nn.ReLU:
        he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, pairs, contrastive, optimizer, steps=250)


VANISHING = Fault(
    "ind10-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant(
            "sigmoid-mlp",
            healthy=sigmoid_mlp,
            broken=partial(sigmoid_mlp, "sigmoid"),
            may=["no-update"],
        ),  # the first layers stand still
        Variant(
            "plain-cnn",
            healthy=plain_cnn,
            broken=partial(plain_cnn, 0.01),
            # Adam's eps swallows what is left; the biases alone push the later units off.
            may=["no-update", "dead-units"],
        ),
        Variant("graph", healthy=deep_gcn, broken=partial(deep_gcn, False)),
        Variant("averaged-mixer", healthy=mixer, broken=partial(mixer, 0.5), may=["no-update"]),
        Variant(
            "autoencoder",
            healthy=deep_autoencoder,
            broken=partial(deep_autoencoder, 0.02),
            may=["no-update"],
        ),
        Variant("siamese", healthy=siamese, broken=partial(siamese, nn.Sigmoid), may=["no-update"]),
    ],
)


class Regressor(nn.Module):
    """Six hidden layers; written with a list of weights' owners and F.relu."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.fc_in = nn.Linear(8, width)
        self.hidden = nn.ModuleList([nn.Linear(width, width) for _ in range(5)])
        self.fc_out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.fc_in(x))
        for fc in self.hidden:
            h = F.leaky_relu(fc(h))
        return self.fc_out(h)


def randn_mlp(std: float | None = None) -> Training:
    """A regression whose weights are plain torch.randn, or Kaiming's."""
    torch.manual_seed(6)
    model = Regressor()
    if std is None:
        he(model)
    else:
        fill(model, std)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, curve(64), squares, optimizer, steps=300)


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.relu(self.conv1(x)))


def bare_resnet(fixup: bool = True) -> Training:
    """A residual net without normalisation: every block adds as much as it was given, or 0."""
    torch.manual_seed(7)
    blocks = [Residual(10) for _ in range(30)]
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1, stride=2),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 10),
    )
    he(model)
    if fixup:
        for block in blocks:
            nn.init.normal_(block.conv2.weight, 0, 0.1 * (1 / (9 * 10)) ** 0.5)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


class SumGraph(nn.Module):
    """Message passing with sums over neighbours."""

    def __init__(self, layers: int = 6, width: int = 24) -> None:
        super().__init__()
        self.steps = nn.ModuleList(nn.Linear(12 if i == 0 else width, width) for i in range(layers))
        self.readout = nn.Linear(width, 4)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for layer in self.steps:
            x = F.leaky_relu(adjacency @ layer(x), 0.1)
        return self.readout(x)


def raw_adjacency(normalise: bool = True) -> Training:
    """A graph network given the adjacency as it is, or normalised by degrees."""
    torch.manual_seed(9)
    x, a, y = communities(groups=4)
    if normalise:
        d = a.sum(1).rsqrt()
        a = d[:, None] * a * d
    model = SumGraph()
    he(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batch(step: int) -> tuple[Tensor, ...]:
        return x + torch.randn(x.shape, generator=dice(step, 29)), a, y

    return Training(model, batch, graph_loss, optimizer, steps=250)


EXPLODING = Fault(
    "ind10-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("randn-mlp", healthy=randn_mlp, broken=partial(randn_mlp, 1.0)),
        Variant("bare-resnet", healthy=bare_resnet, broken=partial(bare_resnet, False)),
        Variant("raw-adjacency", healthy=raw_adjacency, broken=partial(raw_adjacency, False)),
    ],
)

FAULTS = [VANISHING, EXPLODING]
