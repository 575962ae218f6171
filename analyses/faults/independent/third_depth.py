"""Gradients that shrink or grow on their way through many layers or many steps in time."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_depth import (
    classify,
    curve,
    flat_digits,
    grammar,
    he,
    image_digits,
    rebuild,
    recall_first,
    regress,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training


def deep_mlp(sigmoid: bool) -> Training:
    """Eight hidden layers; logistic units with the usual initialisation shrink it fourfold each."""
    torch.manual_seed(31)
    sizes = [64, *[48] * 8]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Sigmoid() if sigmoid else nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    if not sigmoid:
        he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, flat_digits(), classify, optimizer, steps=200)


def plain_convolutions(small: bool) -> Training:
    """Nine convolutions without normalisation; all weights drawn from N(0, 0.01²)."""
    torch.manual_seed(32)
    layers: list[nn.Module] = []
    for i in range(9):
        layers += [nn.Conv2d(1 if i == 0 else 12, 12, 3, padding=1), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    he(model)
    if small:
        for p in model.parameters():
            if p.ndim > 1:
                nn.init.normal_(p, std=0.01)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, image_digits(48), classify, optimizer, steps=150)


class Unrolled(nn.Module):
    """A plain tanh recurrence, a cell at a time; the answer is read at the end."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.cell = nn.RNNCell(inputs, width)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def recurrent_cell(gain: float) -> Training:
    """The first of 24 symbols is asked for; the recurrent matrix is a scaled rotation."""
    torch.manual_seed(33)
    model = Unrolled(6, 48, 6)
    with torch.no_grad():
        nn.init.orthogonal_(model.cell.weight_hh, gain=gain)
        model.cell.weight_ih.mul_(2.0 if gain < 1 else 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, recall_first(24, 6), classify, optimizer, steps=200)


class Highway(nn.Module):
    """y = t · f(x) + (1 − t) · x."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.f = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * torch.tanh(self.f(x)) + (1 - t) * x


def highway(bias: float) -> Training:
    """Sixteen highway layers whose gates start at "carry", or, the sign wrong, at "transform"."""
    torch.manual_seed(34)
    model = nn.Sequential(
        nn.Linear(64, 32), *[Highway(32, bias) for _ in range(16)], nn.Linear(32, 10)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, flat_digits(), classify, optimizer, steps=150)


class Remembers(nn.Module):
    """A fused LSTM, read at the end."""

    def __init__(self, inputs: int, width: int, classes: int, forget: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(inputs, width, batch_first=True)
        self.head = nn.Linear(width, classes)
        with torch.no_grad():
            self.lstm.bias_ih_l0[width : 2 * width] = forget  # type: ignore[operator]
            self.lstm.bias_hh_l0[width : 2 * width] = 0.0  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


def forgetful_lstm(forget: float) -> Training:
    """The bias of the forget gate with its sign turned: the cell empties at once."""
    torch.manual_seed(35)
    model = Remembers(5, 40, 5, forget)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, recall_first(30, 5), classify, optimizer, steps=250)


class Causal(nn.Module):
    """A convolution over the past whose weight is g · v/‖v‖."""

    def __init__(self, inputs: int, width: int, dilation: int, norm: float) -> None:
        super().__init__()
        self.past = 2 * dilation
        conv = nn.Conv1d(inputs, width, 3, dilation=dilation)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.conv = nn.utils.parametrizations.weight_norm(conv)
        with torch.no_grad():
            self.conv.parametrizations.weight.original0.fill_(norm)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.conv(F.pad(x, (self.past, 0))))


class Temporal(nn.Module):
    """Dilated causal convolutions over a text of 16 symbols."""

    def __init__(self, width: int, depth: int, norm: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, width)
        self.layers = nn.Sequential(
            *[Causal(width, width, 2 ** (i % 3), norm) for i in range(depth)]
        )
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(self.tokens(x).transpose(1, 2)).transpose(1, 2))


def weight_normed(norm: float) -> Training:
    """Ten convolutions with weight normalisation; every norm starts at a third of the right one."""
    torch.manual_seed(36)
    model = Temporal(28, 10, norm)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    return Training(model, grammar(24, 16), classify, optimizer, steps=200)


def deep_autoencoder(gain: float) -> Training:
    """Twelve tanh layers, to 16 numbers and back; the gain belongs to another activation."""
    torch.manual_seed(37)
    sizes = [64, 56, 48, 40, 32, 24, 16, 24, 32, 40, 48, 56, 64]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        linear = nn.Linear(a, b)
        nn.init.xavier_uniform_(linear.weight, gain=gain)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Training(model, flat_digits(), rebuild, optimizer, steps=200)


def large_init(gain: float) -> Training:
    """Nine ReLU layers, drawn with two and a half times the right standard deviation."""
    torch.manual_seed(41)
    layers: list[nn.Module] = [nn.Linear(64, 40), nn.ReLU()]
    for _ in range(8):
        layers += [nn.Linear(40, 40), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Linear(40, 10))
    he(model, gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, flat_digits(), classify, optimizer, steps=200)


class Accumulator(nn.Module):
    """A ReLU recurrence: tells the sum of the marked numbers of a sequence."""

    def __init__(self, width: int, gain: float) -> None:
        super().__init__()
        self.inlet = nn.Linear(2, width)
        self.back = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 1)
        with torch.no_grad():
            self.back.weight.copy_(gain * torch.eye(width) + 0.01 * torch.randn(width, width))
            self.head.weight.mul_(0.3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.back.in_features)
        for t in range(x.shape[1]):
            h = F.relu(self.inlet(x[:, t]) + self.back(h))
        return self.head(h)


def marked_sum(step: int) -> tuple[Tensor, Tensor]:
    """Twenty numbers of which three are marked; their sum."""
    g = torch.Generator().manual_seed(15000 + step)
    x = 2 * torch.rand(32, 20, generator=g) - 1
    mark = torch.zeros(32, 20)
    mark.scatter_(1, torch.rand(32, 20, generator=g).argsort(1)[:, :3], 1.0)
    return torch.stack([x, mark], -1), (x * mark).sum(1, keepdim=True)


def relu_recurrence(gain: float) -> Training:
    """The recurrent matrix starts near 1.8 times the identity."""
    torch.manual_seed(42)
    model = Accumulator(32, gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, marked_sum, regress, optimizer, steps=200)


class Branch(nn.Module):
    """x + f(x) with two convolutions and no normalisation."""

    def __init__(self, width: int, zero: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1)
        self.two = nn.Conv2d(width, width, 3, padding=1)
        self.zero = zero

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(F.relu(self.one(F.relu(x))))


def unnormalised_residual(fixed: bool) -> Training:
    """Twelve residual blocks without normalisation; the sound ones start as the identity."""
    torch.manual_seed(43)
    model = nn.Sequential(
        nn.Conv2d(1, 10, 3, padding=1),
        *[Branch(10, fixed) for _ in range(12)],
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(40, 10),
    )
    he(model, 1.0 if fixed else 1.6)
    for m in model.modules():
        if isinstance(m, Branch) and m.zero:
            nn.init.normal_(m.two.weight, std=0.01)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, image_digits(32), classify, optimizer, steps=120)


class Skips(nn.Module):
    """Linear, batch normalisation, ReLU; around it a residual connection, or none."""

    def __init__(self, width: int, skip: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width, bias=False)
        self.norm = nn.BatchNorm1d(width)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm(self.linear(x)))
        return x + 0.3 * y if self.skip else y


def batch_normed(skip: bool) -> Training:
    """Forty-eight layers of batch normalisation with nothing around them."""
    torch.manual_seed(44)
    model = nn.Sequential(
        nn.Linear(64, 24), *[Skips(24, skip) for _ in range(48)], nn.Linear(24, 10)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, flat_digits(48), classify, optimizer, steps=100)


class Flow(nn.Module):
    """A system dx/dt = W₂ elu(W₁ x), by Euler's rule; the weights are those of every step."""

    def __init__(self, width: int, steps: int, dt: float) -> None:
        super().__init__()
        self.lift = nn.Linear(8, width)
        self.one, self.two = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.read = nn.Linear(width, 1)
        nn.init.orthogonal_(self.one.weight, gain=1.0)
        nn.init.orthogonal_(self.two.weight, gain=1.5)
        self.steps, self.dt = steps, dt

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        for _ in range(self.steps):
            x = x + self.dt * self.two(F.elu(self.one(x)))
        return self.read(x)


def without_dt(dt: float) -> Training:
    """Euler's steps that are not multiplied by their length."""
    torch.manual_seed(45)
    model = Flow(32, 14, dt)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, curve(64), regress, optimizer, steps=200)


VANISHING = Fault(
    "ind3-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3.0),
    variants=[
        Variant(
            "sigmoid-mlp",
            partial(deep_mlp, False),
            broken=partial(deep_mlp, True),
            may=["no-update"],  # the first layers' weights move by 1e-6 of their size
        ),
        Variant(
            "small-init-convolutions",
            partial(plain_convolutions, False),
            broken=partial(plain_convolutions, True),
            may=["no-update"],  # all but the head stand still
        ),
        Variant(
            "recurrent-cell",
            partial(recurrent_cell, 1.0),
            broken=partial(recurrent_cell, 0.5),
            symptom=decays(3.0, "cell"),
        ),
        Variant(
            "highway-gates",
            partial(highway, -2.0),
            broken=partial(highway, 3.0),
            may=["no-update"],  # the first layers' weights move by 1e-5 of their size
        ),
        Variant(
            "forget-gate",
            partial(forgetful_lstm, 2.0),
            broken=partial(forgetful_lstm, -2.0),
            symptom=decays(3.0, "lstm"),
        ),
        Variant(
            "weight-norm",
            partial(weight_normed, 1.5),
            broken=partial(weight_normed, 0.5),
            may=["no-update"],  # the first layers do not move by a float's precision
        ),
        Variant(
            "autoencoder-gain",
            partial(deep_autoencoder, 1.0),
            broken=partial(deep_autoencoder, 0.4),
        ),
    ],
)

EXPLODING = Fault(
    "ind3-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("large-init", partial(large_init, 1.0), broken=partial(large_init, 2.5)),
        Variant(
            "relu-recurrence",
            partial(relu_recurrence, 1.0),
            broken=partial(relu_recurrence, 1.8),
        ),
        Variant(
            "unnormalised-residual",
            partial(unnormalised_residual, True),
            broken=partial(unnormalised_residual, False),
        ),
        Variant("batch-normed", partial(batch_normed, True), broken=partial(batch_normed, False)),
        Variant("without-dt", partial(without_dt, 1 / 14), broken=partial(without_dt, 1.0)),
    ],
)

FAULTS = [VANISHING, EXPLODING]
