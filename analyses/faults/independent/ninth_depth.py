"""Gradients that shrink or grow from layer to layer in networks without (enough) care for it."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_b import (
    classify,
    community_graph,
    digits,
    minibatches,
    regress,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training


def sigmoid_stack(act: str = "relu", depth: int = 9) -> Training:
    """The textbook's perceptron on digits, plain SGD with momentum."""
    torch.manual_seed(11)
    kinds: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid}
    layers: list[nn.Module] = []
    width = 64
    for _ in range(depth):
        linear = nn.Linear(width, 48)
        if act == "relu":
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
            nn.init.zeros_(linear.bias)
        layers += [linear, kinds[act]()]
        width = 48
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=300)


class PlainConvs(nn.Module):
    """Fourteen convolutions in a row, ELU, no normalisation, no skips."""

    def __init__(self, careful: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.body = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(13))
        self.out = nn.Linear(12 * 4, 10)
        if careful:
            for conv in [self.stem, *self.body]:
                fan = conv.weight[0].numel()
                nn.init.normal_(conv.weight, std=1.2 / math.sqrt(fan))
                nn.init.zeros_(conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.stem(x))
        for i, conv in enumerate(self.body):
            x = F.elu(conv(x))
            if i in (3, 7):
                x = F.max_pool2d(x, 2)
        return self.out(x.flatten(1))


def plain_convs(careful: bool = True) -> Training:
    """A VGG-like network as initialised by the library, against one with a fitting gain."""
    torch.manual_seed(12)
    model = PlainConvs(careful)
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=250)


class Tokens(nn.Module):
    """MLP-mixer over the rows of an image; blocks with or without their skips and norms."""

    def __init__(self, residual: bool, blocks: int = 8) -> None:
        super().__init__()
        self.residual = residual
        self.embed = nn.Linear(8, 32)
        self.across = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 24), nn.GELU(), nn.Linear(24, 8)) for _ in range(blocks)
        )
        self.within = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32)) for _ in range(blocks)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2 * blocks))
        self.head = nn.Linear(32 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for i, (across, within) in enumerate(zip(self.across, self.within, strict=True)):
            if self.residual:
                x = x + across(self.norms[2 * i](x).transpose(1, 2)).transpose(1, 2)
                x = x + within(self.norms[2 * i + 1](x))
            else:
                x = across(x.transpose(1, 2)).transpose(1, 2)
                x = within(x)
        return self.head(x.flatten(1))


def mixer(residual: bool = True) -> Training:
    """Somebody's mixer from memory: without the skips nothing reaches the first blocks."""
    torch.manual_seed(13)
    model = Tokens(residual)
    if not residual:
        del model.norms
    x, y = digits(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=200)


class Hourglass(nn.Module):
    """Deep autoencoder, 64-48-32-16-8 and back."""

    def __init__(self, std: float | None) -> None:
        super().__init__()
        sizes = [64, 48, 40, 32, 24, 16, 24, 32, 40, 48, 64]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for layer in self.layers:
            if std is None:
                nn.init.xavier_normal_(layer.weight, gain=5 / 3)  # type: ignore[arg-type]
            else:
                nn.init.normal_(layer.weight, std=std)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def encode(self, x: Tensor) -> Tensor:
        for layer in self.layers[:5]:
            x = torch.tanh(layer(x))
        return x

    def decode(self, z: Tensor) -> Tensor:
        for layer in self.layers[5:-1]:
            z = torch.tanh(layer(z))
        return self.layers[-1](z)


def reconstruct(model: Hourglass, x: Tensor) -> Tensor:
    """Squared error of what comes out of the code."""
    return (model.decode(model.encode(x)) - x).square().mean()


def hourglass(std: float | None = None) -> Training:
    """Deep tanh autoencoder; all weights drawn with a standard deviation of 0.02 is the fault."""
    torch.manual_seed(14)
    model = Hourglass(std)
    x, _ = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, minibatches(x), reconstruct, optimizer, steps=300)


class GraphNet(nn.Module):
    """Graph convolutions over a normalised adjacency."""

    def __init__(self, adjacency: Tensor, depth: int, skip: bool) -> None:
        super().__init__()
        d = adjacency.sum(1).rsqrt()
        self.register_buffer("spread", d[:, None] * adjacency * d[None])
        self.first = nn.Linear(16, 24)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(depth))
        self.out = nn.Linear(24, 4)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.first(x))
        for layer in self.layers:
            new = torch.tanh(layer(self.spread @ x))  # type: ignore[operator]
            x = x + new if self.skip else new
        return self.out(x)


def graph_net(skip: bool = True) -> Training:
    """Twelve graph convolutions: without skips nodes and gradients are averaged away."""
    torch.manual_seed(15)
    adjacency, x, y = community_graph()
    model = GraphNet(adjacency, 12, skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        return x, y

    return Training(model, batch, classify, optimizer, steps=300)


class Pair(nn.Module):
    """Siamese perceptron: are two digits the same? One tower, called twice."""

    def __init__(self, std: float | None) -> None:
        super().__init__()
        sizes = [64, 64, 64, 64, 64, 64, 64, 32]
        self.tower = nn.Sequential()
        for i, (a, b) in enumerate(itertools.pairwise(sizes)):
            linear = nn.Linear(a, b)
            if std is None:
                nn.init.kaiming_uniform_(linear.weight, nonlinearity="relu")
            else:
                nn.init.normal_(linear.weight, 0.0, std)
            nn.init.zeros_(linear.bias)
            self.tower.add_module(f"fc{i}", linear)
            self.tower.add_module(f"act{i}", nn.LeakyReLU(0.1))
        self.decide = nn.Linear(32, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.decide((self.tower(a) - self.tower(b)).abs()).squeeze(-1)


def same_or_not(model: Pair, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    """Binary cross entropy."""
    return F.binary_cross_entropy_with_logits(model(a, b), same)


def siamese(std: float | None = None) -> Training:
    """Pairs of digits; weights drawn with 0.03, as in an old tutorial, is the fault."""
    torch.manual_seed(16)
    x, y = digits()
    g = torch.Generator().manual_seed(5)
    left = torch.randint(len(x), (2000,), generator=g)
    right = torch.randint(len(x), (2000,), generator=g)
    for i in range(0, 2000, 2):  # every other pair is of one class
        right[i] = int((y == y[left[i]]).nonzero()[i % 90])
    same = (y[left] == y[right]).float()
    model = Pair(std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = minibatches(x[left], x[right], same)
    return Training(model, batch, same_or_not, optimizer, steps=300)


class Euler(nn.Module):
    """A neural ODE by forty Euler steps of one field; damping pulls the state to 0."""

    def __init__(self, damping: float) -> None:
        super().__init__()
        self.lift = nn.Linear(2, 32)
        self.field = nn.Sequential(nn.Linear(32, 48), nn.Tanh(), nn.Linear(48, 32))
        self.read = nn.Linear(32, 2)
        self.damping = damping

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for _ in range(40):
            h = h + 0.05 * (self.field(h) - self.damping * h)
        return self.read(h)


def euler(damping: float = 0.0) -> Training:
    """Two spirals; with a damping of 7 the flow forgets where it started."""
    torch.manual_seed(17)
    g = torch.Generator().manual_seed(1)
    t = 0.5 + 5 * torch.rand(600, generator=g)
    y = torch.arange(600) % 2
    angle = t + math.pi * y
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1) / 3
    x = x + 0.03 * torch.randn(600, 2, generator=g)
    model = Euler(damping)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=200)


class DilatedStack(nn.Module):
    """Causal dilated convolutions over time, with or without residual connections."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.enter = nn.Conv1d(1, 16, 1)
        self.convs = nn.ModuleList(nn.Conv1d(16, 16, 2, dilation=2 ** (i % 5)) for i in range(15))
        self.leave = nn.Conv1d(16, 1, 1)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for i, conv in enumerate(self.convs):
            y = torch.tanh(conv(F.pad(x, (2 ** (i % 5), 0))))
            x = x + y if self.skip else y
        return self.leave(x)


def dilated(skip: bool = True) -> Training:
    """Next value of a sum of sines; fifteen layers of temporal convolution."""
    torch.manual_seed(18)
    g = torch.Generator().manual_seed(2)
    t = torch.arange(65) / 10
    phase = 6.28 * torch.rand(300, 2, 1, generator=g)
    series = torch.sin(2 * t + phase[:, 0]) + torch.sin(5 * t + phase[:, 1])
    model = DilatedStack(skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    batch = minibatches(series[:, None, :-1], series[:, None, 1:], size=16)
    return Training(model, batch, regress, optimizer, steps=200)


VANISHING = Fault(
    "ind9-depth-vanishing",
    must=[["vanishing-gradient"]],
    may=["no-update"],
    symptom=decays(3),
    variants=[
        Variant(
            "sigmoid-perceptron",
            healthy=sigmoid_stack,
            broken=partial(sigmoid_stack, act="sigmoid"),
        ),
        Variant(
            "plain-convolutions",
            healthy=plain_convs,
            broken=partial(plain_convs, careful=False),
        ),
        Variant("mixer-without-skips", healthy=mixer, broken=partial(mixer, residual=False)),
        Variant("small-autoencoder", healthy=hourglass, broken=partial(hourglass, std=0.02)),
        Variant("deep-graph", healthy=graph_net, broken=partial(graph_net, skip=False)),
        Variant("siamese-small-weights", healthy=siamese, broken=partial(siamese, std=0.03)),
        # RMSprop moves the weights all the same.
        Variant("damped-flow", healthy=euler, broken=partial(euler, damping=7.0), may=[]),
        Variant("temporal-stack", healthy=dilated, broken=partial(dilated, skip=False)),
    ],
)


class Drawn(nn.Module):
    """A linear layer by hand, its weights straight from a standard normal distribution."""

    def __init__(self, n_in: int, n_out: int, scale: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_out, n_in) * scale)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


def drawn(scaled: bool = True) -> Training:
    """Layers written by hand with torch.randn; whoever forgets the factor has huge logits."""
    torch.manual_seed(21)
    sizes = [64] * 8 + [10]
    model = nn.Sequential()
    for a, b in itertools.pairwise(sizes):
        model.append(Drawn(a, b, math.sqrt(2 / a) if scaled else 1.0))
        model.append(nn.ReLU())
    model.pop(-1)
    x, y = digits()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250)


class SumGraph(nn.Module):
    """Isomorphism-network-like: a node adds up its neighbours, then a small perceptron."""

    def __init__(self, spread: Tensor) -> None:
        super().__init__()
        self.register_buffer("spread", spread)
        sizes = [16, 32, 32, 32, 32, 32, 32]
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(a, 32), nn.LeakyReLU(0.1), nn.Linear(32, b))
            for a, b in itertools.pairwise(sizes)
        )
        self.out = nn.Linear(32, 4)
        for m in self.modules():
            if isinstance(m, nn.Linear):
                nn.init.kaiming_uniform_(m.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        for mlp in self.mlps:
            x = F.leaky_relu(mlp(self.spread @ x), 0.1)  # type: ignore[operator]
        return self.out(x)


def sum_graph(mean: bool = True) -> Training:
    """Neighbours summed instead of averaged, on a graph with about thirty a node.

    Features are noisy at every step and a fifth of the labels is wrong.
    """
    torch.manual_seed(22)
    adjacency, x, y = community_graph(inside=0.9)
    spread = adjacency + 9 * torch.eye(len(x))
    model = SumGraph(spread / spread.sum(1, keepdim=True) if mean else adjacency)
    y[torch.randperm(len(y))[: len(y) // 5]] = torch.randint(4, (len(y) // 5,))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        g = torch.Generator().manual_seed(step)
        return x + 1.5 * torch.randn(x.shape, generator=g), y

    return Training(model, batch, classify, optimizer, steps=300)


class Adder(nn.Module):
    """Residual convolutions without any normalisation."""

    def __init__(self, blocks: int, scale: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 12, 3, padding=1, stride=2)
        self.blocks = nn.ModuleList(
            nn.ModuleList([nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)])
            for _ in range(blocks)
        )
        self.head = nn.Linear(12 * 16, 10)
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
        with torch.no_grad():
            for block in self.blocks:
                block[1].weight.mul_(scale)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for first, second in self.blocks:  # type: ignore[misc]
            x = x + second(F.relu(first(x)))  # type: ignore[has-type]
        return self.head(x.flatten(1))


def adder(scale: float = 0.2) -> Training:
    """Sixteen blocks that each add as much variance as (or more than) there is; clipped SGD."""
    torch.manual_seed(23)
    model = Adder(16, scale)
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = minibatches(x, y, size=32)
    return Training(model, batch, classify, optimizer, steps=200, clip=1.0)


class Normed(nn.Module):
    """Forty layers, each followed by batch normalisation; in blocks of two with skips or not."""

    def __init__(self, skip: bool, blocks: int = 24) -> None:
        super().__init__()
        self.skip = skip
        self.enter = nn.Linear(64, 40)
        self.halves = nn.ModuleList(
            nn.Sequential(
                nn.Linear(40, 40, bias=False),
                nn.BatchNorm1d(40),
                nn.ReLU(),
                nn.Linear(40, 40, bias=False),
                nn.BatchNorm1d(40),
            )
            for _ in range(blocks)
        )
        self.leave = nn.Linear(40, 10)
        if skip:
            for half in self.halves:
                nn.init.zeros_(half[4].weight)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for half in self.halves:
            x = x + half(x) if self.skip else F.relu(half(x))
        return self.leave(x)


def normed(skip: bool = True) -> Training:
    """Batch normalisation without skips: each layer makes the gradient larger on its way back."""
    torch.manual_seed(24)
    model = Normed(skip)
    x, y = digits()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    batch = minibatches(x, y, size=32)
    return Training(model, batch, classify, optimizer, steps=150, clip=5.0)


class Coupling(nn.Module):
    """A flow's affine coupling: half of the numbers scale and shift the other half."""

    def __init__(self, bounded: bool, flip: bool) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 8))
        self.bounded, self.flip = bounded, flip
        if bounded:
            nn.init.normal_(self.net[2].weight, std=0.01)  # type: ignore[arg-type]
        else:
            nn.init.xavier_normal_(self.net[2].weight, gain=2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, 1) if not self.flip else x.chunk(2, 1)[::-1]
        s, t = self.net(a).chunk(2, 1)
        if self.bounded:
            s = torch.tanh(s)
        b = b * s.exp() + t
        return torch.cat([a, b] if not self.flip else [b, a], 1), s.sum(1)


class Flow(nn.Module):
    """Ten couplings; returns the latent point and the log of the volume's change."""

    def __init__(self, bounded: bool) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)
        self.couplings = nn.ModuleList(Coupling(bounded, i % 2 == 1) for i in range(10))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.mix(x)
        volume = torch.linalg.slogdet(self.mix.weight).logabsdet + x.new_zeros(len(x))
        for coupling in self.couplings:
            x, change = coupling(x)
            volume = volume + change
        return {"latent": x, "volume": volume}


def likelihood(model: Flow, x: Tensor) -> Tensor:
    """Negative log likelihood under a standard normal distribution."""
    out = model(x)
    return (0.5 * out["latent"].square().sum(1) - out["volume"]).mean()


def flow(bounded: bool = True) -> Training:
    """Density of eight correlated numbers; the scales' exponents are unbounded in the fault."""
    torch.manual_seed(25)
    g = torch.Generator().manual_seed(3)
    z = torch.randn(1500, 3, generator=g)
    x = torch.cat([z, z[:, :2].square(), z.sin()], 1) + 0.1 * torch.randn(1500, 8, generator=g)
    x = (x - x.mean(0)) / x.std(0)
    model = Flow(bounded)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = minibatches(x, size=128)
    return Training(model, batch, likelihood, optimizer, steps=250, clip=10.0)


EXPLODING = Fault(
    "ind9-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("unscaled-normal-weights", healthy=drawn, broken=partial(drawn, scaled=False)),
        Variant("summed-neighbours", healthy=sum_graph, broken=partial(sum_graph, mean=False)),
        Variant("sum-of-blocks", healthy=adder, broken=partial(adder, scale=1.5)),
        # Clipping by the first layers' gradient leaves next to nothing for the last ones.
        Variant(
            "batch-norm-without-skips",
            healthy=normed,
            broken=partial(normed, skip=False),
            may=["no-update"],
        ),
        # Exploding values sit at the ends of the couplings' tanh for the first half of the run.
        Variant(
            "unbounded-couplings",
            healthy=flow,
            broken=partial(flow, bounded=False),
            may=["saturated-activation"],
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING]
