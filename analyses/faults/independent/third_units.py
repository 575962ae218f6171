"""Units that are off for all data, and squashing functions at their flat ends."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_units import (
    adam,
    cross,
    digits,
    feed,
    pixels,
    plain_mlp,
    squares,
    waves,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training

# Units that are off


def one_cycle(peak: float) -> Training:
    """An MLP on digits whose learning rate rises to a peak and falls again."""
    torch.manual_seed(1)
    x, y = digits()
    model = plain_mlp(64, 128, 128, 10)
    optimizer = torch.optim.Adam(model.parameters(), lr=peak)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 30) if step < 30 else 0.5 + 0.5 * math.cos(
            math.pi * min(1.0, (step - 30) / 170)
        ) + 1e-3  # fmt: skip

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return Training(model, feed(256, x, y), cross, optimizer, steps=200, schedule=schedule)


class Thresholds(nn.Module):
    """Convolutions whose channels answer above thresholds that are set at the start."""

    def __init__(self, highest: float) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 48, 3, padding=1)
        self.head = nn.Linear(48 * 4, 10)
        with torch.no_grad():
            for conv in (self.first, self.second):
                nn.init.kaiming_normal_(conv.weight)
                assert conv.bias is not None
                conv.bias.copy_(-torch.linspace(0, highest, conv.out_channels))

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(torch.relu(self.first(x.view(-1, 1, 8, 8))), 2)
        x = F.max_pool2d(torch.relu(self.second(x)), 2)
        return self.head(x.flatten(1))


def thresholds(highest: float) -> Training:
    torch.manual_seed(2)
    x, y = digits()
    model = Thresholds(highest)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, feed(256, x, y), cross, optimizer, steps=160)


class Forecast(nn.Module):
    """A convolution over a series of temperatures that tells the next eight stations' values."""

    def __init__(self, positive: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(8, 32, 5, padding=2)
        self.conv2 = nn.Conv1d(32, 32, 5, padding=2)
        self.out = nn.Linear(32, 8)
        self.positive = positive

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv1(x))
        x = torch.tanh(self.conv2(x)).mean(-1)
        return torch.relu(self.out(x)) if self.positive else self.out(x)


def forecast(positive: bool) -> Training:
    """Winter: most stations are below zero all the time, two above."""
    torch.manual_seed(3)
    g = torch.Generator().manual_seed(3)
    level = torch.tensor([-3.0, -2.5, -4.0, 2.0, -3.5, -2.0, 1.5, -3.0])
    wave, _, _ = waves(600 * 8, 25, 3)
    series = wave.view(600, 8, 25) * 0.5
    mix = 0.3 * torch.randn(8, 8, generator=g)
    target = level + series[..., -6:].mean(-1) @ mix + 0.5 * series[..., -1]
    model = Forecast(positive)
    return Training(model, feed(128, series[..., :-1], target), squares, adam(model, 3e-3), 200)


class Dictionary(nn.Module):
    """A sparse autoencoder with many more features than dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(32, 384)
        self.decoder = nn.Linear(384, 32)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = torch.relu(self.encoder(x - self.decoder.bias))
        return self.decoder(code), code


def dictionary(penalty: float) -> Training:
    torch.manual_seed(4)
    g = torch.Generator().manual_seed(4)
    atoms = F.normalize(torch.randn(96, 32, generator=g), dim=-1)
    use = (torch.rand(4000, 96, generator=g) < 0.05) * (torch.rand(4000, 96, generator=g) + 0.5)
    x = use @ atoms
    x = (x - x.mean(0)) / x.std()
    model = Dictionary()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        back, code = model(x)
        return F.mse_loss(back, x) + penalty * code.sum(-1).mean()

    return Training(model, feed(1024, x), loss, adam(model, 5e-3), steps=300)


class Block(nn.Module):
    """Attention and a rectified feed-forward layer, each on its own branch."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        weights = (q @ k.transpose(1, 2) / math.sqrt(q.shape[-1])).softmax(-1)
        x = x + self.mix(weights @ v)
        active = torch.relu(self.up(self.norm2(x)))
        return x + self.down(active), active


class Quiet(nn.Module):
    """A small transformer that hands out its feed-forward layers' activity."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(7, 32), nn.Embedding(10, 32)
        self.blocks = nn.ModuleList(Block(32, 96) for _ in range(2))
        self.head = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        h = self.token(x) + self.place.weight
        active = []
        for block in self.blocks:
            h, a = block(h)
            active.append(a)
        return self.head(h), active


def quiet(penalty: float) -> Training:
    """Each token plus its mirror image's, modulo 7, with a price on activity."""
    torch.manual_seed(5)
    x = torch.randint(7, (2000, 10))
    model = Quiet()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        logits, active = model(x)
        price = sum(a.sum(-1).mean() for a in active)
        return F.cross_entropy(logits.transpose(1, 2), (x + x.flip(1)) % 7) + penalty * price

    return Training(model, feed(64, x), loss, adam(model, 3e-3), steps=250)


class Ratings(nn.Module):
    """Embeddings of users and items, and rectified layers on both."""

    def __init__(self, std: float, bias: float) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(60, 16), nn.Embedding(80, 16)
        self.layers = plain_mlp(32, 64, 32, 1)
        for m in self.layers.modules():
            if isinstance(m, nn.Linear):
                if std:
                    nn.init.normal_(m.weight, std=std)
                nn.init.constant_(m.bias, bias)

    def forward(self, u: Tensor, i: Tensor) -> Tensor:
        return self.layers(torch.cat([self.user(u), self.item(i)], -1))[..., 0]


def ratings(std: float, bias: float) -> Training:
    torch.manual_seed(6)
    taste, kind = torch.randn(60, 3), torch.randn(80, 3)
    u, i = torch.randint(60, (4000,)), torch.randint(80, (4000,))
    y = (taste[u] * kind[i]).sum(-1).clamp(-2, 2) + 0.5 * kind[i, 0]
    model = Ratings(std, bias)

    def loss(model: nn.Module, u: Tensor, i: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(u, i), y)

    return Training(model, feed(256, u, i, y), loss, adam(model, 4e-3), steps=200)


OFF = Fault(
    "ind3-units-off",
    must=[["dead-units"]],
    symptom=dead_units(0.5),
    variants=[
        Variant(
            "one-cycle-peak",
            partial(one_cycle, 3e-3),
            broken=partial(one_cycle, 0.3),
            # the peak throws the weights to 15 times their size; the dead layers let little through
            may=("update-too-large", "vanishing-gradient"),
        ),
        Variant("thresholds", partial(thresholds, 0.5), broken=partial(thresholds, 20.0)),
        Variant("below-zero-targets", partial(forecast, False), broken=partial(forecast, True)),
        Variant("sparse-dictionary", partial(dictionary, 1e-4), broken=partial(dictionary, 0.1)),
        Variant(
            "activity-price",
            partial(quiet, 1e-5),
            broken=partial(quiet, 0.2),
            may=("starved-pathway",),  # while all are off, their branch hands back no gradient
        ),
        Variant(
            "bias-below-reach",
            partial(ratings, 0.0, 0.0),
            broken=partial(ratings, 0.02, -1.0),
            # nothing passes: all matrices stay where they are
            may=("vanishing-gradient", "no-update"),
        ),
    ],
)


# Flat ends


def wide_tanh(std: float) -> Training:
    torch.manual_seed(11)
    x, y = digits()
    model = plain_mlp(64, 256, 256, 10, act=nn.Tanh)
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=std or m.in_features**-0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03)
    return Training(model, feed(128, x, y), cross, optimizer, steps=200)


class Cell(nn.Module):
    """An LSTM by hand, over time."""

    def __init__(self, bias: float | None) -> None:
        super().__init__()
        self.gates = nn.Linear(4 + 40, 160)
        self.head = nn.Linear(40, 4)
        if bias is not None:
            nn.init.constant_(self.gates.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 40)
        for t in range(x.shape[1]):
            i, f, o, g = self.gates(torch.cat([x[:, t], h], -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


def cell(bias: float | None) -> Training:
    """Which of four inputs was largest on average?"""
    torch.manual_seed(12)
    x = torch.randn(1500, 16, 4) + 0.5 * torch.randn(1500, 1, 4)
    model = Cell(bias)
    return Training(model, feed(64, x, x.mean(1).argmax(-1)), cross, adam(model, 3e-3), steps=200)


class Painter(nn.Module):
    """A convolutional autoencoder that ends in a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 16, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(16, 32, 3, stride=2, padding=1)
        self.up1 = nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 1, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.elu(self.down2(F.elu(self.down1(x))))
        return torch.sigmoid(self.up2(F.elu(self.up1(x))))


def painter(top: float) -> Training:
    """Grey values from 0.2 to 1 as they are, or as the bytes that they were read from."""
    torch.manual_seed(13)
    x = 0.2 + 0.8 * pixels()[0].view(-1, 1, 8, 8)
    model = Painter()
    return Training(model, feed(128, 2 * x - 1, x * top), squares, adam(model, 3e-3), steps=160)


class Elman(nn.Module):
    """A plain recurrent cell, over time."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.keep = nn.Linear(8, 48), nn.Linear(48, 48)
        self.head = nn.Linear(48, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 48)
        out = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.read(x[:, t]) + self.keep(h))
            out.append(self.head(h))
        return torch.stack(out, 1)


def elman(lr: float) -> Training:
    """Tell the symbol before the last one."""
    torch.manual_seed(14)
    seen = torch.randint(8, (1000, 12))
    model = Elman()
    batch = feed(64, F.one_hot(seen[:, 1:], 8).float(), seen[:, :-1])
    return Training(model, batch, cross, adam(model, lr), steps=150)


class Excite(nn.Module):
    """A residual network whose channels are gated by what they hold on average."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(3))
        self.gates = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.norms = nn.ModuleList(nn.GroupNorm(4, 24) for _ in range(3))
        self.head = nn.Linear(24, 10)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.stem(x.view(-1, 1, 8, 8)))
        for conv, gate, norm in zip(self.convs, self.gates, self.norms, strict=True):
            h = F.silu(norm(conv(x)))
            open_ = torch.sigmoid(gate(h.mean((2, 3))) * self.sharpness)
            x = x + h * open_[..., None, None]
        return self.head(x.mean((2, 3)))


def excite(sharpness: float) -> Training:
    torch.manual_seed(15)
    x, y = digits()
    model = Excite(sharpness)
    return Training(model, feed(64, x, y), cross, adam(model, 3e-3), steps=120)


class Graph(nn.Module):
    """Messages on a graph, gathered by a sum or by a mean."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 40), nn.Linear(40, 40)
        self.own1, self.own2 = nn.Linear(6, 40), nn.Linear(40, 40)
        self.head = nn.Linear(40, 3)
        self.mean = mean

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        if self.mean:
            links = links / links.sum(-1, keepdim=True)
        h = torch.tanh(self.own1(x) + links @ self.first(x))
        h = torch.tanh(self.own2(h) + links @ self.second(h))
        return self.head(h)


def graph(mean: bool) -> Training:
    """Which of three communities, each with many links inside, is a node of?"""
    torch.manual_seed(16)
    kinds, nodes = 40, 150
    y = torch.randint(3, (kinds, nodes))
    same = (y[:, :, None] == y[:, None]).float()
    links = (torch.rand(kinds, nodes, nodes) < 0.25 + 0.55 * same).float()
    x = torch.randn(kinds, nodes, 6) + 0.7 * F.one_hot(y, 6).float() + 0.5
    model = Graph(mean)

    def loss(model: nn.Module, x: Tensor, links: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, links).flatten(0, 1), y.flatten())

    return Training(model, feed(4, x, links, y), loss, adam(model, 2e-3), steps=150)


FLAT = Fault(
    "ind3-flat-ends",
    must=[["saturated-activation"]],
    symptom=saturated(0.5),
    variants=[
        Variant("standard-normal-init", partial(wide_tanh, 0.0), broken=partial(wide_tanh, 1.0)),
        Variant(
            "bias-of-all-gates",
            partial(cell, None),
            broken=partial(cell, 5.0),
            may=("vanishing-gradient",),  # through time: every step's tanh is flat
        ),
        Variant("bytes-as-target", partial(painter, 1.0), broken=partial(painter, 255.0)),
        Variant(
            "too-hot",
            partial(elman, 3e-3),
            broken=partial(elman, 0.5),
            may=("update-too-large",),  # the cause
        ),
        Variant("sharp-gates", partial(excite, 1.0), broken=partial(excite, 100.0)),
        Variant("sum-of-neighbours", partial(graph, True), broken=partial(graph, False)),
    ],
)

FAULTS = [OFF, FLAT]
