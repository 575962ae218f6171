"""Activations at their flat ends, and rectified units that are off for good."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_b import (
    classify,
    digits,
    minibatches,
    raw_digits,
    regress,
    shapes,
)
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training


class SigmoidOut(nn.Module):
    """Convolutional autoencoder that ends in a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(64, 16),
        )
        self.decoder = nn.Sequential(
            nn.Linear(16, 64),
            nn.Unflatten(1, (16, 2, 2)),
            nn.GELU(),
            nn.ConvTranspose2d(16, 12, 2, stride=2),
            nn.GELU(),
            nn.ConvTranspose2d(12, 1, 2, stride=2),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(x)
        return self.decoder(code), code


def pixels(model: SigmoidOut, x: Tensor, target: Tensor) -> Tensor:
    """Squared error of the pixels."""
    out, _ = model(x)
    return F.mse_loss(out, target)


def sigmoid_out(top: float = 1.0) -> Training:
    """A sigmoid cannot reach pixels that run from 8 to 24: it goes to 1 everywhere and stays."""
    torch.manual_seed(41)
    x, _ = raw_digits()
    x = x.view(-1, 1, 8, 8) / 16
    target = x if top == 1.0 else top * (0.5 + x)
    model = SigmoidOut()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, minibatches(x, target), pixels, optimizer, steps=300)


class Actor(nn.Module):
    """A policy with two bounded actions."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.mean = nn.Linear(64, 2)

    def forward(self, state: Tensor) -> Tensor:
        return torch.tanh(self.mean(self.trunk(state)))


def actor(wide: float = 1.0, lr: float = 1e-3) -> Training:
    """Behaviour cloning; weights of the last layer far too large put actions at ±1 at once."""
    torch.manual_seed(42)
    g = torch.Generator().manual_seed(6)
    state = torch.randn(2000, 6, generator=g)
    action = torch.tanh(0.5 * state[:, :2] + 0.5 * state[:, 2:4] * state[:, 4:])
    model = Actor()
    with torch.no_grad():
        model.mean.weight.mul_(wide)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, minibatches(state, action), regress, optimizer, steps=300)


def tanh_convs(mean: float = 0.0, scale: float = 1.0) -> Training:
    """LeNet-like with tanh, fed with pixels from 0 to 255 in the fault."""
    torch.manual_seed(43)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.Tanh(),
        nn.AvgPool2d(2),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(256, 48),
        nn.Tanh(),
        nn.Linear(48, 10),
    )
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = minibatches(x * scale + mean, y, size=32)
    return Training(model, batch, classify, optimizer, steps=200)


class Hash(nn.Module):
    """Sixteen bits of an image, as tanh of a multiple."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.features = nn.Linear(64, 64)
        self.bits = nn.Linear(64, 16)
        self.sharpness = sharpness

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.sharpness * self.bits(F.silu(self.features(x))))


def triplet(model: Hash, anchor: Tensor, alike: Tensor, other: Tensor) -> Tensor:
    """Codes of one class nearer than codes of two."""
    a, p, n = model(anchor), model(alike), model(other)
    apart = (a - n).square().mean(1) - (a - p).square().mean(1)
    return (1.0 - apart).clamp(min=0).mean()


def hashing(sharpness: float = 1.0) -> Training:
    """Learning to hash; the sharpness that is meant to rise to 200 in the end starts there."""
    torch.manual_seed(44)
    x, y = digits()
    g = torch.Generator().manual_seed(7)
    of = [(y == c).nonzero().flatten() for c in range(10)]
    rows = []
    for _ in range(3000):
        c, d = torch.randperm(10, generator=g)[:2].tolist()
        i, j = torch.randint(len(of[c]), (2,), generator=g).tolist()
        rows.append([of[c][i], of[c][j], of[d][torch.randint(len(of[d]), (1,), generator=g)]])
    picked = torch.tensor(rows)
    model = Hash(sharpness)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batch = minibatches(x[picked[:, 0]], x[picked[:, 1]], x[picked[:, 2]])
    return Training(model, batch, triplet, optimizer, steps=300)


SATURATED = Fault(
    "ind9-depth-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant(
            "sigmoid-for-pixels",
            healthy=sigmoid_out,
            broken=partial(sigmoid_out, top=16.0),
            # Once all is at 1, no gradient at all comes through, and nothing moves any more.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant("actor-at-the-bounds", healthy=actor, broken=partial(actor, wide=150.0)),
        Variant(
            "pixels-to-255",
            healthy=tanh_convs,
            broken=partial(tanh_convs, mean=80.0, scale=95.0),
            must=[["saturated-activation", "unscaled-input"]],
        ),
        Variant(
            "sharp-hash",
            healthy=hashing,
            broken=partial(hashing, sharpness=200.0),
            may=["vanishing-gradient"],
        ),
    ],
)


class Forecast(nn.Module):
    """Perceptron that predicts one number, with a rectifier too many at the end or not."""

    def __init__(self, last: bool) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.out = nn.Linear(32, 3)
        self.last = last

    def forward(self, x: Tensor) -> Tensor:
        y = self.out(self.hidden(x))
        return F.relu(y) if self.last else y


def forecast(last: bool = False) -> Training:
    """Temperatures below zero, and a ReLU behind the output layer."""
    torch.manual_seed(45)
    g = torch.Generator().manual_seed(8)
    x = torch.randn(1500, 8, generator=g)
    y = torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin() + x[:, 3], x[:, 4] - x[:, 5]], 1) - 6
    model = Forecast(last)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, minibatches(x, y), regress, optimizer, steps=250)


class SparseCode(nn.Module):
    """Overcomplete sparse autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(64, 128)
        self.decode = nn.Linear(128, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.encode(x))
        return self.decode(code), code


def sparse_loss(model: SparseCode, x: Tensor, weight: Tensor) -> Tensor:
    """Error plus the codes' size."""
    out, code = model(x)
    return F.mse_loss(out, x) + weight[0] * code.abs().sum(1).mean()


def sparse_code(weight: float = 1e-3) -> Training:
    """Sparse dictionary of digits; with a penalty of 1 all units are off within a few steps."""
    torch.manual_seed(46)
    x, _ = digits()
    model = SparseCode()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = minibatches(x, torch.full((len(x),), weight), size=128)
    return Training(model, batch, sparse_loss, optimizer, steps=250)


class Detector(nn.Module):
    """Which cells of a 4 × 4 grid does the object cover? Convolutions and a head per cell."""

    def __init__(self, prior_everywhere: bool) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [
                nn.Conv2d(1, 12, 3, padding=1),
                nn.Conv2d(12, 16, 3, stride=2, padding=1),
                nn.Conv2d(16, 16, 3, stride=2, padding=1),
                nn.Conv2d(16, 16, 3, padding=1),
            ]
        )
        self.cells = nn.Conv2d(16, 1, 1)
        for conv in [*self.convs, self.cells]:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            nn.init.zeros_(conv.bias)
        for conv in [*(self.convs if prior_everywhere else []), self.cells]:
            nn.init.constant_(conv.bias, -4.6 if prior_everywhere else -1.0)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.cells(x).squeeze(1)


def focal(model: Detector, x: Tensor, target: Tensor) -> Tensor:
    """Focal loss over the cells."""
    logits = model(x)
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return ((1 - (-each).exp()) ** 2 * each).sum() / target.sum().clamp(min=1)


def detector(prior_everywhere: bool = False) -> Training:
    """The prior's bias of the last layer (-4.6) set for every convolution of the network."""
    torch.manual_seed(47)
    images, _, masks = shapes()
    target = (F.avg_pool2d(masks, 4)[:, 0] > 0.3).float()
    model = Detector(prior_everywhere)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    batch = minibatches(images, target, size=32)
    return Training(model, batch, focal, optimizer, steps=200)


def rushed(lr: float = 5e-4, steps: int = 250) -> Training:
    """Plain VGG-like digits; Adam at a rate fit for SGD kills it in the first steps."""
    torch.manual_seed(48)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=steps)


class Ranker(nn.Module):
    """Scores a list's items, each on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, items: Tensor) -> Tensor:
        return self.score(items).squeeze(-1)


def listwise(model: Ranker, items: Tensor, best: Tensor) -> Tensor:
    """Which of the list's items is the best?"""
    return F.cross_entropy(model(items), best)


def ranker(offset: float = 0.0) -> Training:
    """The second layer's biases have been moved by -8: all of its units are off."""
    torch.manual_seed(49)
    g = torch.Generator().manual_seed(9)
    items = torch.randn(1500, 6, 10, generator=g)
    best = (items[..., 0] + items[..., 1] * items[..., 2]).argmax(1)
    model = Ranker()
    with torch.no_grad():
        model.score[2].bias.sub_(offset)  # type: ignore[operator]
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, minibatches(items, best), listwise, optimizer, steps=250)


DEAD = Fault(
    "ind9-depth-dead",
    must=[["dead-units"]],
    # A layer that is off as a whole hands on no gradient, and nothing before it moves.
    may=["vanishing-gradient", "no-update"],
    symptom=dead_units(0.7),
    variants=[
        Variant("rectified-forecast", healthy=forecast, broken=partial(forecast, last=True)),
        Variant(
            "sparsity-too-high",
            healthy=sparse_code,
            broken=partial(sparse_code, weight=1.0),
        ),
        Variant(
            "prior-in-every-layer",
            healthy=detector,
            broken=partial(detector, prior_everywhere=True),
        ),
        Variant(
            "learning-rate-kills",
            healthy=rushed,
            broken=partial(rushed, lr=0.1),
            may=["vanishing-gradient", "no-update", "update-too-large"],
        ),
        Variant("ranker-offset", healthy=ranker, broken=partial(ranker, offset=8.0)),
    ],
)

FAULTS = [SATURATED, DEAD]
