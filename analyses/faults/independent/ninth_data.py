"""Inputs in the units they came in, and units that inputs or steps drove to their ends."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_c import (
    Batches,
    blobs,
    digits,
    grammar,
    marked,
    table,
    waves,
)
from analyses.faults.symptoms import dead_units, learns_less, saturated
from analyses.faults.training import Batch, Training


def in_units(batches: Batches, scale: Tensor | float, shift: Tensor | float = 0.0) -> Batches:
    """The same batches with inputs in other units."""

    def batch(step: int) -> Batch:
        x, *others = batches(step)
        return (x * scale + shift, *others)

    return batch


def millimetres(scale: float = 1.0) -> Training:
    """Regression by an MLP with tanh; lengths in metres or millimetres."""
    torch.manual_seed(41)
    model = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh())
    model.append(nn.Linear(24, 1))
    return Training(
        model,
        in_units(table(64, 6, seed=11), scale),
        lambda net, x, y: F.mse_loss(net(x).squeeze(1), y),
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=250,
    )


class Weather(nn.Module):
    """A GRU over days of temperature, pressure and humidity."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 32, batch_first=True)
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[1][-1])


def weather(*, raw: bool = False) -> Training:
    """Seasons told from days: standardised, or in kelvin, pascal and per cent."""
    torch.manual_seed(42)
    model = Weather()
    days = waves(32, 16, channels=3)
    if raw:
        days = in_units(days, torch.tensor([8.0, 900.0, 15.0]), torch.tensor([285.0, 101e3, 60.0]))
    return Training(
        model,
        days,
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=200,
    )


class Wide(nn.Module):
    """Wide and deep: a linear part beside two hidden layers."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(9, 4)
        self.deep = nn.Sequential(
            nn.Linear(9, 40), nn.LeakyReLU(0.1), nn.Linear(40, 40), nn.LeakyReLU(0.1)
        )
        self.top = nn.Linear(40, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.wide(x) + self.top(self.deep(x))


def salaries(*, dollars: bool = False) -> Training:
    """Four classes of customers; one column is a salary, standardised or in dollars."""
    torch.manual_seed(43)
    model = Wide()
    rows = table(64, 9, seed=12, classes=4)
    if dollars:
        scale, shift = torch.ones(9), torch.zeros(9)
        scale[4], shift[4] = 18e3, 62e3
        rows = in_units(rows, scale, shift)
    return Training(
        model,
        rows,
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=250,
    )


def pixels(top: float = 1.0) -> Training:
    """Digits by a sigmoid MLP: pixels up to 1, or up to 255."""
    torch.manual_seed(44)
    model = nn.Sequential(nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 10))
    return Training(
        model,
        digits(64, flat=True, top=top),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9),
        steps=300,
    )


class Events(nn.Module):
    """Events with a time and a kind, through an LSTM cell; a score for the last one."""

    def __init__(self) -> None:
        super().__init__()
        self.kind = nn.Embedding(12, 12)
        self.cell = nn.LSTMCell(13, 32)
        self.out = nn.Linear(32, 2)

    def forward(self, kind: Tensor, time: Tensor) -> Tensor:
        h = c = torch.zeros(kind.shape[0], 32)
        for k, t in zip(self.kind(kind).unbind(1), time.unbind(1), strict=True):
            h, c = self.cell(torch.cat([k, t.unsqueeze(1)], 1), (h, c))
        return self.out(h)


def events(*, epoch: bool = False) -> Training:
    """Logs of a web shop; times within the day from 0 to 1, or as seconds since 1970."""
    torch.manual_seed(45)
    model = Events()
    words = marked(48, 10)

    def batch(step: int) -> Batch:
        kind, y = words(step)
        g = torch.Generator().manual_seed(step)
        time = torch.rand(48, 10, generator=g).sort(1).values
        return kind, time * 86400 + 1.7e9 if epoch else time, y

    return Training(
        model,
        batch,
        lambda net, kind, time, y: F.cross_entropy(net(kind, time), y),
        torch.optim.Adam(model.parameters(), lr=6e-3),
        steps=250,
    )


class Audio(nn.Module):
    """A residual one-dimensional convnet over a waveform."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(1, 16, 7, stride=2, padding=3)
        self.a = nn.Conv1d(16, 16, 3, padding=1)
        self.b = nn.Conv1d(16, 16, 3, padding=1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = F.elu(self.stem(x.transpose(1, 2)))
        h = h + self.b(F.elu(self.a(h)))
        return self.fc(h.square().mean(-1).add(1e-3).sqrt())


def audio(*, raw: bool = False) -> Training:
    """Tones told apart; deviations of the pressure, or the air pressure itself in pascal."""
    torch.manual_seed(46)
    model = Audio()
    tones = waves(32, 32)
    return Training(
        model,
        in_units(tones, 20.0, 101325.0) if raw else tones,
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
        clip=1.0,
    )


class Points(nn.Module):
    """Points of a cloud through a shared layer, then their maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 48), nn.GELU(), nn.Linear(48, 48))
        self.all = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 3))

    def forward(self, cloud: Tensor) -> Tensor:
        return self.all(self.each(cloud).amax(1))


def points(*, grid: bool = False) -> Training:
    """Shapes of clouds of points, about their middle, or in metres of a country's grid."""
    torch.manual_seed(47)
    model = Points()

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(600 + step)
        kind = torch.randint(3, (48,), generator=g)
        around = torch.rand(48, 24, generator=g) * 6.283
        ring = torch.stack([around.cos(), around.sin()], -1)
        box = torch.rand(48, 24, 2, generator=g) * 2 - 1
        line = (torch.rand(48, 24, 1, generator=g) * 2 - 1).expand(-1, -1, 2)
        shape = torch.stack([ring, box, line], 0)[kind, torch.arange(48)]
        shape = shape + 0.05 * torch.randn(shape.shape, generator=g)
        if grid:
            shape = shape * 20 + torch.tensor([412e3, 5.3e6])
        return shape, kind

    return Training(
        model,
        batch,
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=200,
    )


class Prices(nn.Module):
    """Prices of four days each as tokens for one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(4, 32)
        self.place = nn.Parameter(torch.randn(4, 32) * 0.2)
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.view(-1, 4, 4)) + self.place
        h = h + self.attend(h, h, h, need_weights=False)[0]
        return self.ff(h.mean(1))


def prices(*, raw: bool = False) -> Training:
    """Rhythms of a price told apart; as deviations, or in the currency."""
    torch.manual_seed(48)
    model = Prices()
    days = waves(48, 16)
    if raw:
        days = in_units(days, 4.0, 180.0)
    return Training(
        model,
        days,
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=200,
    )


UNSCALED = Fault(
    "ind9-data-unscaled",
    must=[["unscaled-input"]],
    symptom=learns_less(0.1),
    variants=[
        Variant(
            "millimetres",
            healthy=millimetres,
            broken=partial(millimetres, scale=1000.0),
            # beyond the flat ends next to nothing gets to the first layer
            may=["saturated-activation", "vanishing-gradient"],
            symptom=learns_less(0.05),
        ),
        Variant(
            "kelvin-and-pascal",
            healthy=weather,
            broken=partial(weather, raw=True),
            # all gates are shut: the recurrence gets no gradient and stays as it is
            may=["saturated-activation", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "dollars",
            healthy=salaries,
            broken=partial(salaries, dollars=True),
            # along that one column every step is too large: the loss jumps to the end
            may=["update-too-large"],
        ),
        Variant(
            "pixels-of-255",
            healthy=pixels,
            broken=partial(pixels, top=255.0),
            # the head's steps are too large for a hidden layer that says only 0 or 1
            may=["saturated-activation", "vanishing-gradient", "update-too-large"],
        ),
        Variant(
            "seconds-since-1970",
            healthy=events,
            broken=partial(events, epoch=True),
            # all gates are shut: the cell gets no gradient and stays as it is
            may=["saturated-activation", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "air-pressure",
            healthy=audio,
            broken=partial(audio, raw=True),
            # the stem's units end at the flat side of ELU for all data: nothing comes back to it
            may=["vanishing-gradient", "dead-units", "saturated-activation", "no-update"],
        ),
        Variant(
            "grid-metres",
            healthy=points,
            broken=partial(points, grid=True),
            # a unit is on or off for all points alike, and what is off passes nothing back
            may=["dead-units", "vanishing-gradient", "update-too-large"],
        ),
        Variant(
            "currency",
            healthy=prices,
            broken=partial(prices, raw=True),
            # scores of large numbers: one entry has it all from the start
            may=["peaked-softmax"],
        ),
    ],
)


def hot_relu(lr: float = 0.05) -> Training:
    """Digits by three hidden layers of rectifiers, SGD with momentum."""
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Training(
        model,
        digits(64, flat=True),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9),
        steps=200,
    )


class Boards(nn.Module):
    """A convnet for rectangles: where they are, told as a mask at half the size."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 16, 3, padding=1)
        self.c2 = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.c3 = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c3(torch.relu(self.c2(torch.relu(self.c1(x)))))


def masks(lr: float = 1e-3) -> Training:
    """Masks of rectangles by convolutions, Adam."""
    torch.manual_seed(52)
    model = Boards()

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x), F.avg_pool2d(mask, 2))

    return Training(model, blobs(16), loss, torch.optim.Adam(model.parameters(), lr=lr), steps=160)


def spectra(*, counts: bool = False) -> Training:
    """Regression on spectra by rectifiers; intensities are all positive, in raw counts."""
    torch.manual_seed(53)
    g = torch.Generator().manual_seed(9)
    lines = torch.rand(20, 5, generator=g)
    model = nn.Sequential(nn.Linear(20, 48), nn.ReLU(), nn.Linear(48, 1))

    def batch(step: int) -> Batch:
        amount = torch.rand(64, 5, generator=torch.Generator().manual_seed(step))
        x = amount @ lines.T
        y = amount[:, 0] - amount[:, 1] * amount[:, 2]
        return x * 40 if counts else x - lines.sum(1) / 2, y

    return Training(
        model,
        batch,
        lambda net, x, y: F.smooth_l1_loss(net(x).squeeze(1), y),
        torch.optim.SGD(model.parameters(), lr=0.05),
        steps=200,
    )


# Nothing passes back through dead layers, which stay as they are from then on.
STOPPED = ("vanishing-gradient", "no-update")

DEAD = Fault(
    "ind9-data-dead",
    must=[["dead-units", "update-too-large"]],
    symptom=dead_units(0.8),
    variants=[
        Variant("mlp-first-steps", healthy=hot_relu, broken=partial(hot_relu, lr=2.0), may=STOPPED),
        Variant("convnet-adam", healthy=masks, broken=partial(masks, lr=0.5), may=STOPPED),
        Variant(
            "raw-counts",
            healthy=spectra,
            broken=partial(spectra, counts=True),
            must=[["dead-units", "unscaled-input"]],
            # the first step throws the weights far out, by gradients of large inputs
            may=["update-too-large", *STOPPED],
        ),
    ],
)


class Elman(nn.Module):
    """A plain tanh recurrence over symbols."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 16)
        self.step_in = nn.Linear(16, 40)
        self.step_on = nn.Linear(40, 40, bias=False)
        self.out = nn.Linear(40, 16)

    def forward(self, text: Tensor) -> Tensor:
        h = torch.zeros(text.shape[0], 40)
        told = []
        for x in self.step_in(self.embed(text)).unbind(1):
            h = torch.tanh(x + self.step_on(h))
            told.append(self.out(h))
        return torch.stack(told, 1)


def elman(lr: float = 4e-3) -> Training:
    """A language model by a tanh recurrence, Adam."""
    torch.manual_seed(54)
    model = Elman()
    return Training(
        model,
        grammar(24, 10),
        lambda net, text: F.cross_entropy(net(text[:, :-1]).mT, text[:, 1:]),
        torch.optim.Adam(model.parameters(), lr=lr),
        steps=200,
    )


class Gated(nn.Module):
    """A table through layers with sigmoid gates."""

    def __init__(self) -> None:
        super().__init__()
        self.into = nn.Linear(8, 32)
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.values = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.out = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.into(x)
        for gate, value in zip(self.gates, self.values, strict=True):
            g = torch.sigmoid(gate(h))
            h = g * torch.tanh(value(h)) + (1 - g) * h
        return self.out(h)


def gated(scale: float = 1.0) -> Training:
    """Classes from a table by a highway network; columns standardised or in thousandths."""
    torch.manual_seed(55)
    model = Gated()
    return Training(
        model,
        in_units(table(64, 8, seed=13, classes=4), scale),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=200,
    )


class Codes(nn.Module):
    """A variational autoencoder with a tanh decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.enc = nn.Linear(64, 48)
        self.mean, self.logvar = nn.Linear(48, 6), nn.Linear(48, 6)
        self.dec = nn.Linear(6, 48)
        self.out = nn.Linear(48, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = torch.tanh(self.enc(x))
        mean, logvar = self.mean(h), self.logvar(h).clamp(-6, 4)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(int(x.sum())))
        z = mean + noise * (0.5 * logvar).exp()
        return torch.sigmoid(self.out(torch.tanh(self.dec(z)))), mean, logvar


def elbo(net: nn.Module, x: Tensor, _: Tensor) -> Tensor:
    """Squared error and divergence per sample."""
    again, mean, logvar = net(x)
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(1)
    return (again - x).square().sum(1).mean() + 0.05 * kl.mean()


def codes(lr: float = 5e-3) -> Training:
    """Digits through a code, RMSprop."""
    torch.manual_seed(56)
    model = Codes()
    return Training(
        model,
        digits(64, flat=True),
        elbo,
        torch.optim.RMSprop(model.parameters(), lr=lr),
        steps=200,
    )


FLAT = Fault(
    "ind9-data-flat",
    must=[["saturated-activation", "update-too-large"]],
    symptom=saturated(0.8),
    variants=[
        Variant("elman-adam", healthy=elman, broken=partial(elman, lr=0.5)),
        Variant(
            "highway-thousandths",
            healthy=gated,
            broken=partial(gated, scale=1000.0),
            must=[["saturated-activation", "unscaled-input"]],
        ),
        Variant(
            "vae-rmsprop",
            healthy=codes,
            broken=partial(codes, lr=0.1),
            # nothing passes the encoder's flat ends; the variances sit at their bounds
            may=["vanishing-gradient", "starved-pathway"],
        ),
    ],
)

FAULTS = [UNSCALED, DEAD, FLAT]
