"""Units that are off for all data, and activations at the flat ends of their curve."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent import kit_steps as kit
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training

# Dead units.


def detector(*, everywhere: bool) -> Training:
    """Convolutions that tell object from background, with a bias that makes objects rare at first.

    The bias is meant for the last layer only.
    """
    torch.manual_seed(21)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(12, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, 1, 1),
        nn.ReLU(),
        nn.Conv2d(16, 1, 1),
    )
    convolutions = [m for m in model if isinstance(m, nn.Conv2d)]
    for layer in convolutions if everywhere else convolutions[-1:]:
        assert layer.bias is not None
        nn.init.constant_(layer.bias, -math.log((1 - 0.02) / 0.02))
    return Training(
        model, kit.shape_masks, kit.segment, torch.optim.Adam(model.parameters(), 3e-3), steps=200
    )


def hot_start(*, factor: float) -> Training:
    """Digits with a multilayer perceptron; the learning rate falls to its value in 30 steps."""
    torch.manual_seed(22)
    model = kit.mlp(64, 128, 128, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: max(1.0, factor * (1 - step / 30))
    )
    return Training(model, kit.digits, kit.classify, optimizer, steps=300, schedule=schedule)


def neighbours(*, lr: float) -> Training:
    """Communities of a graph by graph convolutions, with momentum."""
    torch.manual_seed(23)
    model = kit.Graph(12, 64, 64, 64, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9)
    return Training(model, kit.community, kit.nodes, optimizer, steps=250)


def from_images(*, low: float, high: float) -> Training:
    """An autoencoder of images that are 0 or above; its first weights from `low` to `high`."""
    torch.manual_seed(24)
    model = nn.Sequential(
        nn.Flatten(),
        kit.mlp(64, 96, 24),
        nn.ReLU(),
        kit.mlp(24, 96, 64),
        nn.Unflatten(1, (1, 8, 8)),
    )
    first = model[1][0]  # type: ignore[index]
    assert isinstance(first, nn.Linear)
    nn.init.uniform_(first.weight, low, high)
    return Training(
        model,
        kit.pixels,
        kit.rebuild,
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=300,
    )


class Sparse(nn.Module):
    """A wide dictionary of features of which few should be active."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.encode(x - self.decode.bias))
        return self.decode(code), code


def _sparse_loss(weight: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    again, code = model(x)
    return F.mse_loss(again, x) + weight * code.sum(-1).mean()


def dictionary(*, weight: float) -> Training:
    """A sparse autoencoder whose activations cost `weight` each."""
    torch.manual_seed(25)
    model = Sparse()
    return Training(
        model,
        kit.digits,
        partial(_sparse_loss, weight),
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=400,
    )


class Positive(nn.Module):
    """A regression whose answer is passed through a rectifier."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = kit.Members()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.inner(x).unsqueeze(-1))


def extent(*, rectified: bool) -> Training:
    """The logarithm of a set's relative extent, which is never above 0."""
    torch.manual_seed(26)
    model = Positive() if rectified else kit.Members()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9)
    return Training(model, kit.clouds, kit.regress, optimizer, steps=300)


DEAD = Fault(
    "ind-dead-units",
    must=[["dead-units"]],
    symptom=dead_units(0.8),
    variants=[
        Variant(
            "bias-of-the-head-everywhere",
            healthy=partial(detector, everywhere=False),
            broken=partial(detector, everywhere=True),
            # Exactly 0 is what reaches the layers in front of the dead ones: they stay as they are.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "schedule-upside-down",
            healthy=partial(hot_start, factor=1.0),
            broken=partial(hot_start, factor=60.0),
            # The first steps are what kills; then nothing passes, and nothing moves.
            may=["update-too-large", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "graph-too-fast",
            healthy=partial(neighbours, lr=0.05),
            broken=partial(neighbours, lr=3.0),
            # Gone are the units of a whole layer, after steps many times the weights' size.
            may=["update-too-large", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "weights-all-negative",
            healthy=partial(from_images, low=-0.2, high=0.2),
            broken=partial(from_images, low=-0.4, high=0.0),
            # Exactly 0 is what reaches the layers in front of the dead ones: they stay as they are.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "sparsity-too-dear",
            healthy=partial(dictionary, weight=0.001),
            broken=partial(dictionary, weight=0.1),
        ),
        Variant(
            "rectified-answer",
            healthy=partial(extent, rectified=False),
            broken=partial(extent, rectified=True),
            # Exactly 0 is what reaches the layers in front of the dead ones: they stay as they are.
            may=["vanishing-gradient", "no-update"],
        ),
    ],
)

# Saturated activations.


def wide_tanh(*, std: float) -> Training:
    """Digits with tanh; weights drawn with a standard deviation that ignores the width."""
    torch.manual_seed(31)
    model = kit.mlp(64, 100, 100, 100, 10, act=nn.Tanh)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, 0, std)
    return Training(
        model, kit.digits, kit.classify, torch.optim.Adam(model.parameters(), 1e-3), steps=300
    )


class Dilated(nn.Module):
    """Causal convolutions in time, each twice as far apart, with tanh."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv1d(1 if i == 0 else width, width, 2, dilation=2**i) for i in range(3)
        )
        self.head = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.transpose(1, 2)
        for i, layer in enumerate(self.layers):
            h = torch.tanh(layer(F.pad(h, (2**i, 0))))
        return self.head(h).transpose(1, 2)


def _raw_waves(step: int) -> tuple[Tensor, ...]:
    x, y = kit.waves(step)
    return 150 * x + 300, y


def _scaled_waves(step: int) -> tuple[Tensor, ...]:
    x, y = kit.waves(step)
    return x / 0.5, y


def forecast(*, scaled: bool) -> Training:
    """Next values of a series by convolutions; what goes in is in a sensor's units, or scaled."""
    torch.manual_seed(32)
    model = Dilated()
    return Training(
        model,
        _scaled_waves if scaled else _raw_waves,
        kit.regress,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
    )


class Cells(nn.Module):
    """An LSTM written out, for sums over a sequence."""

    def __init__(self, width: int, bias: float, *, forget_only: bool) -> None:
        super().__init__()
        self.gates = nn.Linear(2 + width, 4 * width)
        self.head = nn.Linear(width, 1)
        self.width = width
        with torch.no_grad():
            if forget_only:
                self.gates.bias[width : 2 * width].add_(bias)
            else:
                self.gates.bias.add_(bias)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), self.width)
        for now in x.unbind(1):
            i, f, o, g = self.gates(torch.cat([now, h], -1)).chunk(4, -1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.head(h)


def cells(*, bias: float, forget_only: bool) -> Training:
    """The bias that is meant for the gate that forgets."""
    torch.manual_seed(33)
    model = Cells(32, bias, forget_only=forget_only)
    return Training(
        model,
        partial(kit.adding, length=10),
        kit.regress,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=250,
    )


class Highway(nn.Module):
    """Layers that a gate opens."""

    def __init__(self, width: int, depth: int, bias: float) -> None:
        super().__init__()
        self.inside, self.head = nn.Linear(10, width), nn.Linear(width, 1)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        for gate in self.gates:
            assert isinstance(gate, nn.Linear)
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inside(x)
        for layer, gate in zip(self.layers, self.gates, strict=True):
            opened = torch.sigmoid(gate(x))
            x = opened * F.gelu(layer(x)) + (1 - opened) * x
        return self.head(x)


def highway(*, bias: float) -> Training:
    """Regression by a highway network whose gates start nearly closed."""
    torch.manual_seed(34)
    model = Highway(48, 6, bias)
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    return Training(model, kit.friedman, kit.regress, optimizer, steps=300)


def clipped(*, gain: float) -> Training:
    """A convolutional autoencoder with hard tanh; orthogonal weights of a gain."""
    torch.manual_seed(35)
    model = kit.Autoencoder(width=12, act=nn.Hardtanh)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
    return Training(
        model,
        partial(kit.shape_classes, size=24),
        kit.rebuild,
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=250,
    )


class Bounded(nn.Module):
    """A mixture of experts whose answer is passed through tanh."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = kit.Experts(10, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.inner(x))


def _raw_answers(step: int) -> tuple[Tensor, ...]:
    x, y = kit.friedman(step)
    return x, 4.9 * y + 14.4


def _small_answers(step: int) -> tuple[Tensor, ...]:
    x, y = kit.friedman(step)
    return x, 0.3 * y


def bounded(*, scaled: bool) -> Training:
    """A bounded answer to a question whose answers lie far out, or within the bounds."""
    torch.manual_seed(36)
    model = Bounded()
    return Training(
        model,
        _small_answers if scaled else _raw_answers,
        kit.regress,
        torch.optim.RMSprop(model.parameters(), 3e-3),
        steps=300,
    )


SATURATED = Fault(
    "ind-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.5),
    variants=[
        Variant(
            "weights-ignore-the-width",
            healthy=partial(wide_tanh, std=0.1),
            broken=partial(wide_tanh, std=1.0),
        ),
        Variant(
            "series-in-raw-units",
            healthy=partial(forecast, scaled=True),
            broken=partial(forecast, scaled=False),
            must=[["saturated-activation", "unscaled-input"]],
            may=[],
        ),
        Variant(
            "bias-of-every-gate",
            healthy=partial(cells, bias=1.0, forget_only=True),
            broken=partial(cells, bias=8.0, forget_only=False),
            may=["vanishing-gradient"],  # 15 decades
        ),
        Variant(
            "highway-closed",
            healthy=partial(highway, bias=-1.0),
            broken=partial(highway, bias=-10.0),
            # Layers and gates get 10⁻⁵ of what passes beside them, and stay as drawn.
            may=["starved-pathway", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "gain-too-large",
            healthy=partial(clipped, gain=1.0),
            broken=partial(clipped, gain=20.0),
        ),
        Variant(
            "answers-out-of-bounds",
            healthy=partial(bounded, scaled=True),
            broken=partial(bounded, scaled=False),
        ),
    ],
)

FAULTS = [DEAD, SATURATED]
