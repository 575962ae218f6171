"""Deep networks whose gradient fades, grows or breaks, raw inputs, and deep ones that are well."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Healthy, Make, Symptom, Variant
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, grows, learns_less, not_finite
from analyses.faults.training import Batch, Training

# Data


@cache
def _digits() -> tuple[Tensor, Tensor]:
    """Handwritten digits, 8×8, from 0 to 1, and their classes."""
    data, target = load_digits(return_X_y=True)
    return torch.tensor(data, dtype=torch.float32) / 16, torch.tensor(target)


def _rng(step: int) -> torch.Generator:
    return torch.Generator().manual_seed(7919 + step)


def _digit_batch(step: int, n: int = 64, image: bool = False) -> Batch:
    x, y = _digits()
    rows = torch.randint(len(x), (n,), generator=_rng(step))
    x = (x[rows] - 0.305) / 0.376
    return (x.view(-1, 1, 8, 8) if image else x), y[rows]


def _classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def _regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x).squeeze(-1), y)


# Gradients that fade on the way back


def autoencoder(activation: str = "gelu") -> Training:
    """A deep autoencoder of digits; sigmoid throughout, or GELU with a fitting start."""
    torch.manual_seed(11)
    sizes = [64, 56, 48, 40, 32, 16, 32, 40, 48, 56, 64]
    layers: list[nn.Module] = []
    for a, b in pairwise(sizes):
        linear = nn.Linear(a, b)
        if activation == "gelu":
            nn.init.kaiming_normal_(linear.weight)
            nn.init.zeros_(linear.bias)
        layers += [linear, nn.Sigmoid() if activation == "sigmoid" else nn.GELU()]
    model = nn.Sequential(*layers[:-1])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, partial(_digit_batch, n=64), loss, optimizer, steps=250)


class _CellReader(nn.Module):
    """Reads symbols one at a time with an RNN cell; tells the first from the last state."""

    def __init__(self, symbols: int, hidden: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.embed = nn.Embedding(symbols, 16)
        self.cell = nn.RNNCell(16, hidden)
        self.head = nn.Linear(hidden, symbols)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.hidden)
        for t in self.embed(x).unbind(1):
            h = self.cell(t, h)
        out: Tensor = self.head(h)
        return out


def first_symbol(gain: float = 1.0) -> Training:
    """Recall the first of 24 symbols; the recurrent matrix is `gain` times a rotation."""
    torch.manual_seed(12)
    model = _CellReader(6, 64)
    nn.init.orthogonal_(model.cell.weight_hh, gain)
    nn.init.normal_(model.cell.weight_ih, std=0.05)

    def batch(step: int) -> Batch:
        x = torch.randint(6, (32, 24), generator=_rng(step))
        return x, x[:, 0]

    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4)
    return Training(model, batch, _classify, optimizer, steps=250, clip=1.0)


def plain_convs(std: float | None = None) -> Training:
    """Nine convolutions in a row without normalization; weights N(0, std²) or He's."""
    torch.manual_seed(13)
    layers: list[nn.Module] = []
    channels = 1
    for _ in range(9):
        conv = nn.Conv2d(channels, 16, 3, padding=1)
        if std is None:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        else:
            nn.init.normal_(conv.weight, std=std)
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        layers += [conv, nn.ReLU()]
        channels = 16
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, partial(_digit_batch, n=32, image=True), _classify, optimizer, steps=200)


VANISHING = Fault(
    "ind2-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant(
            "sigmoid-autoencoder",
            healthy=autoencoder,
            broken=partial(autoencoder, activation="sigmoid"),
            may=["no-update"],  # the first layers, by plain gradient descent
        ),
        Variant(
            "cell-forgets",
            healthy=first_symbol,
            broken=partial(first_symbol, gain=0.35),
            symptom=decays(3, "cell"),
        ),
        Variant(
            "small-convs",
            healthy=plain_convs,
            broken=partial(plain_convs, std=0.02),
            may=["no-update", "dead-units"],
        ),
    ],
)


# Gradients that grow on the way back


def deep_mlp(std: float | None = None) -> Training:
    """Fourteen ReLU layers of 96; all weights N(0, std²), or He's."""
    torch.manual_seed(21)
    layers: list[nn.Module] = []
    size = 64
    for _ in range(14):
        linear = nn.Linear(size, 96)
        if std is None:
            nn.init.kaiming_normal_(linear.weight, nonlinearity="relu")
        else:
            nn.init.normal_(linear.weight, std=std)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.ReLU()]
        size = 96
    model = nn.Sequential(*layers, nn.Linear(96, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    return Training(model, _digit_batch, _classify, optimizer, steps=200)


class _Waves(nn.Module):
    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 48, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(48, 4)
        with torch.no_grad():
            for name, p in self.rnn.named_parameters():
                if name.startswith("weight_hh"):
                    p.copy_(gain * torch.eye(48))
                elif name.startswith("weight_ih"):
                    p.normal_(std=0.1)
                else:
                    p.zero_()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.rnn(x)[0][:, -1])
        return out


def waves(gain: float = 1.0) -> Training:
    """Tell a wave's frequency; a ReLU recurrence that starts at `gain` times the identity."""
    torch.manual_seed(22)
    model = _Waves(gain)

    def batch(step: int) -> Batch:
        g = _rng(step)
        y = torch.randint(4, (32,), generator=g)
        t = torch.arange(32.0)
        phase = torch.rand(32, 1, generator=g) * 2 * math.pi
        angle = (0.2 + 0.25 * y[:, None]) * t + phase
        noise = 0.1 * torch.randn(32, 32, 2, generator=g)
        return torch.stack([angle.sin(), angle.cos()], -1) + noise, y

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, _classify, optimizer, steps=250, clip=1.0)


class _NormStack(nn.Module):
    def __init__(self, depth: int, skip: bool) -> None:
        super().__init__()
        self.skip = skip
        self.stem = nn.Linear(64, 64)
        self.linears = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.BatchNorm1d(64) for _ in range(depth))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for linear, norm in zip(self.linears, self.norms, strict=True):
            new = F.relu(norm(linear(x)))
            x = x + new / math.sqrt(len(self.linears)) if self.skip else new
        out: Tensor = self.head(x)
        return out


def norm_stack(skip: bool = True) -> Training:
    """Fifty blocks of linear, batch norm, ReLU: with or without the residual connection."""
    torch.manual_seed(23)
    model = _NormStack(50, skip)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, _digit_batch, _classify, optimizer, steps=150)


EXPLODING = Fault(
    "ind2-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("wide-init-mlp", healthy=deep_mlp, broken=partial(deep_mlp, std=0.3)),
        Variant("relu-recurrence", healthy=waves, broken=partial(waves, gain=1.4)),
        Variant("norm-without-skip", healthy=norm_stack, broken=partial(norm_stack, skip=False)),
    ],
)


# Inputs as they come


def raw(make: Make, size: float, margin: float) -> Symptom:
    """The inputs are of that size (RMS) and the run ends above its twin's loss by the margin."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        x = make().batch(0)[0]
        rms = float(x.square().mean().sqrt())
        worse = learns_less(margin)(run, twin)
        return {**worse, "is": worse["is"] and rms >= size, "rms": rms}

    return symptom


def houses(scaled: bool = True) -> Training:
    """Prices of made-up houses from columns in very different units."""
    torch.manual_seed(31)
    mean = torch.tensor([52000.0, 1800.0, 1985.0, 12.0, 6.0, 30000.0])
    std = torch.tensor([18000.0, 600.0, 20.0, 5.0, 2.0, 9000.0])
    model = nn.Sequential(
        nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
    )

    def batch(step: int) -> Batch:
        z = torch.randn(64, 6, generator=_rng(step))
        y = 0.6 * z[:, 1] + 0.5 * z[:, 0] * (z[:, 3] < 0) - 0.4 * z[:, 3] + 0.3 * z[:, 2].sin()
        return (z if scaled else z * std + mean), y

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, _regress, optimizer, steps=300)


def depth_maps(scaled: bool = True) -> Training:
    """Tell square, bar and cross in a depth map: metres about the mean, or raw millimetres."""
    torch.manual_seed(32)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 3),
    )
    shapes = torch.zeros(3, 6, 6)
    shapes[0, 1:5, 1:5] = 1
    shapes[1, :, 2:4] = 1
    shapes[2, 2:4, :] = 1
    shapes[2, :, 2:4] = 1

    def batch(step: int) -> Batch:
        g = _rng(step)
        y = torch.randint(3, (32,), generator=g)
        x = 4000 + 60 * torch.randn(32, 1, 14, 14, generator=g)
        for i, (a, b) in enumerate(torch.randint(8, (32, 2), generator=g).tolist()):
            x[i, 0, a : a + 6, b : b + 6] -= 900 * shapes[y[i]]
        return ((x - 3850) / 350 if scaled else x), y

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, batch, _classify, optimizer, steps=200, clip=1.0)


class _Trend(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(2, 32, batch_first=True)
        self.head = nn.Linear(32, 2)
        for name, p in self.gru.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.constant_(p.data[32:64], 2.0)  # keeps its state at first

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.gru(x)[0][:, -1])
        return out


def trend(scaled: bool = True) -> Training:
    """Does a price rise or fall? Price and volume standardized, or as they are quoted."""
    torch.manual_seed(33)
    model = _Trend()

    def batch(step: int) -> Batch:
        g = _rng(step)
        y = torch.randint(2, (32,), generator=g)
        drift = (2.0 * y - 1)[:, None] * 12
        price = (drift + 25 * torch.randn(32, 20, generator=g)).cumsum(1)
        volume = torch.randn(32, 20, generator=g)
        if scaled:
            return torch.stack([price / 150, volume], -1), y
        return torch.stack([price + 27000, volume * 3000 + 15000], -1), y

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, _classify, optimizer, steps=200)


UNSCALED = Fault(
    "ind2-unscaled",
    must=[["unscaled-input"]],
    variants=[
        Variant(
            "houses",
            healthy=houses,
            broken=partial(houses, scaled=False),
            symptom=raw(partial(houses, scaled=False), 1000, 0.1),
        ),
        Variant(
            "depth-maps",
            healthy=depth_maps,
            broken=partial(depth_maps, scaled=False),
            # The first steps, thrown by the scale, push most rectifiers off.
            may=["dead-units", "vanishing-gradient"],
            symptom=raw(partial(depth_maps, scaled=False), 1000, 0.1),
        ),
        Variant(
            "price-trend",
            healthy=trend,
            broken=partial(trend, scaled=False),
            # Every gate is at its end, and nothing comes back through time.
            may=["saturated-activation", "vanishing-gradient"],
            symptom=raw(partial(trend, scaled=False), 1000, 0.1),
        ),
    ],
)


# Numbers that are no longer any


class _Embedder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 12, 3, padding=1)
        self.conv2 = nn.Conv2d(12, 24, 3, padding=1)
        self.out = nn.Linear(24 * 4, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        out: Tensor = self.out(x.flatten(1))
        return out


def pairs(epsilon: float = 1e-8) -> Training:
    """A contrastive loss of distances; from step 120 on, a batch has a picture paired with itself.

    The distance is the root of a sum of squares, `epsilon` added or not.
    """
    torch.manual_seed(41)
    model = _Embedder()

    def batch(step: int) -> Batch:
        x, y = _digits()
        rows = 2 * torch.randint(898, (2, 48), generator=_rng(step))  # even ones, then odd ones
        rows[1] += 1
        if step >= 120 and step % 8 == 0:
            rows[1, 5] = rows[0, 5]
        a, b = ((x[rows] - 0.305) / 0.376).view(2, 48, 1, 8, 8)
        return a, b, (y[rows[0]] == y[rows[1]]).float()

    def loss(model: nn.Module, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        distance = ((model(a) - model(b)).square().sum(-1) + epsilon).sqrt()
        weight = torch.where(same > 0, 5.0, 1.0)
        apart = (1.5 - distance).clamp(min=0).square()
        return (weight * (same * distance.square() + (1 - same) * apart)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, loss, optimizer, steps=180)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(24, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.last = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.leaky_relu(self.down1(x), 0.1)
        b = F.leaky_relu(self.down2(a), 0.1)
        b = F.leaky_relu(self.middle(b), 0.1)
        out: Tensor = self.last(torch.cat([a, self.up(b)], 1))
        return out


def _entropy_by_hand(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    p = torch.sigmoid(model(x))
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def _entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(model(x), y)


def masks(by_hand: bool = False) -> Training:
    """Segment bright boxes; binary cross-entropy of logits, or of probabilities by hand."""
    torch.manual_seed(42)
    model = _UNet()

    def batch(step: int) -> Batch:
        g = _rng(step)
        y = torch.zeros(16, 1, 16, 16)
        for i, (a, b, h, w) in enumerate(torch.randint(3, 10, (16, 4), generator=g).tolist()):
            y[i, 0, a : a + h, b : b + w] = 1
        return y * 1.5 + 0.3 * torch.randn(16, 1, 16, 16, generator=g), y

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    loss = _entropy_by_hand if by_hand else _entropy
    return Training(model, batch, loss, optimizer, steps=220)


class _Pooler(nn.Module):
    """Two layers of attention over word vectors, with a mask of padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.qkv = nn.ModuleList(nn.Linear(32, 96) for _ in range(2))
        self.mix = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.head = nn.Linear(32, 2)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        h = self.embed(x)
        for qkv, mix, norm in zip(self.qkv, self.mix, self.norm, strict=True):
            q, k, v = qkv(norm(h)).chunk(3, -1)
            scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(32)
            scores = scores.masked_fill(padding[:, None, :], -math.inf)
            h = h + mix(torch.matmul(scores.softmax(-1), v))
        keep = (~padding).unsqueeze(-1)
        out: Tensor = self.head((h * keep).sum(1) / keep.sum(1).clamp(min=1))
        return out


def padded(empty: bool = False) -> Training:
    """Do more words of the first kind than of the second occur? Some texts may be empty.

    An empty text is padding throughout; the healthy run keeps its first place open.
    """
    torch.manual_seed(43)
    model = _Pooler()

    def batch(step: int) -> Batch:
        g = _rng(step)
        x = torch.randint(20, (32, 12), generator=g)
        length = torch.randint(4, 13, (32,), generator=g)
        if step >= 110 and step % 5 == 0:
            length[3] = 0 if empty else 1
        padding = torch.arange(12) >= length[:, None]
        kinds = ((x < 10).float() * 2 - 1).masked_fill(padding, 0).sum(1)
        return x, padding, (kinds > 0).long()

    def loss(model: nn.Module, x: Tensor, padding: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, padding), y)

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=180)


NON_FINITE = Fault(
    "ind2-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "root-of-zero",
            healthy=pairs,
            broken=partial(pairs, epsilon=0.0),
            operation=("sqrt",),
        ),
        Variant(
            "log-of-zero",
            healthy=masks,
            broken=partial(masks, by_hand=True),
            operation=("log",),
        ),
        Variant(
            "all-padding",
            healthy=padded,
            broken=partial(padded, empty=True),
            operation=("softmax", "_softmax"),
        ),
    ],
)


# Deep and well


class _PreNorm(nn.Module):
    def __init__(self, depth: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 32)
        self.place = nn.Parameter(0.5 * torch.randn(10, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, depth, nn.LayerNorm(32), False)
        self.head = nn.Linear(32, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layers(self.embed(x) + self.place))
        return out


def reverser() -> Training:
    """Ten pre-norm transformer layers write a sequence backwards."""
    torch.manual_seed(51)
    model = _PreNorm(10)
    for p in model.layers.parameters():
        if p.ndim > 1:
            nn.init.xavier_uniform_(p)

    def batch(step: int) -> Batch:
        x = torch.randint(12, (32, 10), generator=_rng(step))
        return x, x.flip(1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=180)


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(out)))


def resnet() -> Training:
    """A residual network of ten blocks on digits."""
    torch.manual_seed(52)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        *(_Block(12) for _ in range(10)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    return Training(model, partial(_digit_batch, n=32, image=True), _classify, optimizer, steps=120)


def selu() -> Training:
    """Sixteen SELU layers, LeCun's start, nothing else."""
    torch.manual_seed(53)
    layers: list[nn.Module] = []
    for _ in range(16):
        linear = nn.Linear(64, 64)
        nn.init.normal_(linear.weight, std=1 / 8)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, _digit_batch, _classify, optimizer, steps=200)


class _Lstms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 32, num_layers=3, batch_first=True)
        self.head = nn.Linear(32, 1)
        for name, p in self.lstm.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.ones_(p.data[32:64])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(x)[0])
        return out


def running_sum() -> Training:
    """Three layers of LSTM put out a leaky running sum at every step."""
    torch.manual_seed(54)
    model = _Lstms()

    def batch(step: int) -> Batch:
        x = torch.randn(32, 20, 3, generator=_rng(step))
        total, sums = torch.zeros(32), []
        for t in range(20):
            total = 0.8 * total + 0.6 * x[:, t, 0] * (x[:, t, 1] > 0)
            sums.append(total)
        return x, torch.stack(sums, 1)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, _regress, optimizer, steps=200, clip=1.0)


class _Dense(nn.Module):
    def __init__(self, depth: int, growth: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, growth, 3, padding=1, bias=False)
        sizes = [growth * (i + 1) for i in range(depth)]
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in sizes)
        self.convs = nn.ModuleList(nn.Conv2d(n, growth, 3, padding=1, bias=False) for n in sizes)
        self.last = nn.BatchNorm2d(growth * (depth + 1))
        self.head = nn.Linear(growth * (depth + 1), 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        out: Tensor = self.head(F.relu(self.last(x)).mean((2, 3)))
        return out


def densenet() -> Training:
    """A densely connected block of ten convolutions."""
    torch.manual_seed(55)
    model = _Dense(10, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return Training(model, partial(_digit_batch, n=32, image=True), _classify, optimizer, steps=120)


class _Tcn(nn.Module):
    """Dilated gated convolutions with residual connections and summed skips."""

    def __init__(self, dilations: tuple[int, ...]) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 24)
        nn.init.normal_(self.embed.weight, std=0.4)
        self.dilations = dilations
        self.gated = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=d) for d in dilations)
        self.skip = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in dilations)
        self.mix = nn.ModuleList(nn.Conv1d(24, 24, 1) for _ in dilations[1:])
        self.head = nn.Linear(24, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x).transpose(1, 2)
        total = torch.zeros_like(h)
        for i, d in enumerate(self.dilations):
            a, b = self.gated[i](F.pad(h, (d, 0))).chunk(2, 1)
            z = torch.tanh(a) * torch.sigmoid(b)
            total = total + self.skip[i](z)
            if i < len(self.mix):  # the last block's state has no reader
                h = h + self.mix[i](z)
        out: Tensor = self.head(F.relu(total).transpose(1, 2))
        return out


def wavenet() -> Training:
    """Eight gated dilated convolutions predict a sequence with a rule: the sum of two before."""
    torch.manual_seed(56)
    model = _Tcn((1, 2, 4, 8, 1, 2, 4, 8))

    def batch(step: int) -> Batch:
        g = _rng(step)
        x = [torch.randint(8, (24,), generator=g) for _ in range(3)]
        for _ in range(22):
            rare = torch.rand(24, generator=g) < 0.1
            noise = torch.randint(8, (24,), generator=g)
            x.append(torch.where(rare, noise, (x[-1] + x[-3]) % 8))
        s = torch.stack(x, 1)
        return s[:, :-1], s[:, 1:]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x).flatten(0, 1), y.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, batch, loss, optimizer, steps=160)


RUNS: dict[str, Callable[[], Training]] = {
    "pre-norm-transformer": reverser,
    "resnet": resnet,
    "selu-mlp": selu,
    "stacked-lstm": running_sum,
    "densenet": densenet,
    "gated-dilated-convs": wavenet,
}

DEEP = Healthy(
    "ind2-deep",
    runs=RUNS,
)

FAULTS = [VANISHING, EXPLODING, UNSCALED, NON_FINITE]
THEMES = [DEEP]
