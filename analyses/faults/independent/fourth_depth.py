"""Gradients that vanish or explode on their way through many layers or many steps of time."""

from __future__ import annotations

import itertools
from functools import partial

import torch
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent import kit_fourth_depth as kit
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training


class FirstLetter(nn.Module):
    """A recurrence reads symbols; its last state says which one came first."""

    def __init__(self, recurrence: nn.RNNBase, symbols: int = 6) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, recurrence.input_size)
        self.recurrence = recurrence
        self.head = nn.Linear(recurrence.hidden_size, symbols)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.recurrence(self.embed(x))
        out: Tensor = self.head(states[:, -1])
        return out


def bottomless(activation: str = "silu") -> Training:
    """A narrow autoencoder of digits, six layers down and six up."""
    torch.manual_seed(11)
    widths = [64, 56, 48, 40, 32, 24, 16, 24, 32, 40, 48, 56]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        linear = nn.Linear(a, b)
        nn.init.xavier_uniform_(linear.weight, gain=1.6 if activation == "silu" else 1.0)
        layers += [linear, nn.SiLU() if activation == "silu" else nn.Sigmoid()]
    model = nn.Sequential(*layers, nn.Linear(56, 64))
    data = kit.digits(64)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return nn.functional.mse_loss(model(x), x)

    return Training(
        model=model,
        batch=lambda step: data(step)[:1],
        loss=loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=240,
    )


def recall_by_rnn(scale: float = 1.0) -> Training:
    """A tanh recurrence has to remember the first of 20 symbols."""
    torch.manual_seed(12)
    rnn = nn.RNN(24, 48, batch_first=True)
    own = dict(rnn.named_parameters())
    nn.init.orthogonal_(own["weight_hh_l0"], gain=scale)
    nn.init.normal_(own["weight_ih_l0"], std=0.05)
    nn.init.zeros_(own["bias_ih_l0"])
    nn.init.zeros_(own["bias_hh_l0"])
    model = FirstLetter(rnn)
    return Training(
        model=model,
        batch=kit.first_symbol(32, 20),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=200,
    )


def plain_cnn(std: float | None = None) -> Training:
    """Nine convolutions and nothing between them but leaky ReLUs; `std` as in old recipes."""
    torch.manual_seed(13)
    channels = [1, 16, 16, 16, 16, 16, 16, 16, 16, 16]
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(channels):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.05)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * 64, 10))
    for w in kit.weights(model):
        if std is None:
            nn.init.kaiming_normal_(w, nonlinearity="relu")
        else:
            nn.init.normal_(w, std=std)
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(p)
    return Training(
        model=model,
        batch=kit.digits(32, image=True),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        steps=150,
    )


class Highway(nn.Module):
    """A layer that lets its input pass where its gate is closed."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.transform = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.gate(x).sigmoid()
        return gate * self.transform(x).tanh() + (1 - gate) * x


def highways(bias: float = -3.0) -> Training:
    """A highway network, 16 layers deep; the sign of the gates' bias decides."""
    torch.manual_seed(14)
    model = nn.Sequential(
        nn.Linear(64, 40), *(Highway(40, bias) for _ in range(16)), nn.Linear(40, 10)
    )
    return Training(
        model=model,
        batch=kit.digits(48),
        loss=kit.classify,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9),
        steps=200,
    )


def recall_by_lstm(forget: float = 2.5) -> Training:
    """An LSTM that has to remember the first of 30 symbols, and how fast it forgets at first."""
    torch.manual_seed(15)
    lstm = nn.LSTM(16, 40, batch_first=True)
    own = dict(lstm.named_parameters())
    with torch.no_grad():
        own["bias_hh_l0"].zero_()
        own["bias_ih_l0"].zero_()
        own["bias_ih_l0"][40:80] = forget
    model = FirstLetter(lstm)
    return Training(
        model=model,
        batch=kit.first_symbol(32, 30),
        loss=kit.classify,
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3),
        steps=200,
    )


class Circles(nn.Module):
    """Messages around a ring of eight image rows, averaged over neighbours, in many rounds."""

    def __init__(self, rounds: int, bound: float | None) -> None:
        super().__init__()
        self.read = nn.Linear(8, 32)
        self.rounds = nn.ModuleList(nn.Linear(64, 32) for _ in range(rounds))
        self.head = nn.Linear(8 * 32, 10)
        for layer in self.rounds:
            assert isinstance(layer, nn.Linear)
            if bound is None:
                nn.init.orthogonal_(layer.weight, gain=1.4)
            else:
                nn.init.uniform_(layer.weight, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        nodes = self.read(x.view(-1, 8, 8))
        for layer in self.rounds:
            around = (nodes.roll(1, 1) + nodes.roll(-1, 1)) / 2
            nodes = nn.functional.leaky_relu(layer(torch.cat([nodes, around], -1)), 0.2)
        out: Tensor = self.head(nodes.flatten(1))
        return out


def messages(bound: float | None = None) -> Training:
    """Ten rounds of message passing, weights drawn from a narrow interval if `bound` is given."""
    torch.manual_seed(16)
    model = Circles(10, bound)
    return Training(
        model=model,
        batch=kit.digits(32),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=160,
    )


def gridded(spread: float = 1.0) -> Training:
    """Multi-layer net on a regression, tanh, 14 layers, `spread` times orthogonal weights."""
    torch.manual_seed(17)
    sizes = [6] + [36] * 14
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        linear = nn.Linear(a, b)
        nn.init.orthogonal_(linear.weight, gain=spread)
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(36, 1))
    return Training(
        model=model,
        batch=kit.surface(64),
        loss=kit.squared,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
    )


VANISHING = Fault(
    "ind4-depth-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant(
            "autoencoder",
            healthy=bottomless,
            broken=partial(bottomless, "sigmoid"),
            may=["no-update"],  # plain gradient descent by next to nothing
        ),
        Variant(
            "rnn",
            healthy=recall_by_rnn,
            broken=partial(recall_by_rnn, 0.3),
            symptom=decays(3, "recurrence"),
        ),
        Variant(
            "cnn",
            healthy=plain_cnn,
            broken=partial(plain_cnn, 0.01),
            may=["no-update"],  # nothing but noise of rounding moves the weights
        ),
        Variant(
            "highway",
            healthy=highways,
            broken=partial(highways, 3.0),
            may=["no-update"],  # plain gradient descent by next to nothing
        ),
        Variant(
            "lstm",
            healthy=recall_by_lstm,
            broken=partial(recall_by_lstm, -2.0),
            symptom=decays(3, "recurrence"),
        ),
        Variant("messages", healthy=messages, broken=partial(messages, 0.05)),
        Variant(
            "tanh-regression",
            healthy=gridded,
            broken=partial(gridded, 0.25),
            may=["no-update"],  # plain gradient descent by next to nothing
        ),
    ],
)


class Stack(nn.Module):
    """Residual layers without any normalisation; `share` scales what each one adds."""

    def __init__(self, depth: int, width: int, share: float) -> None:
        super().__init__()
        self.share = share
        self.stem = nn.Linear(64, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 10)
        for a, b in zip(self.inner, self.outer, strict=True):
            nn.init.kaiming_normal_(a.weight)  # type: ignore[arg-type]
            nn.init.kaiming_normal_(b.weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            x = x + self.share * outer(nn.functional.silu(inner(x)))
        out: Tensor = self.head(x)
        return out


def stacked(share: float = 0.1) -> Training:
    """Twenty residual blocks, each of which adds a little or as much as there is."""
    torch.manual_seed(21)
    model = Stack(20, 32, share)
    return Training(
        model=model,
        batch=kit.digits(32),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-4),
        steps=150,
        clip=1.0,
    )


def identity_rnn(scale: float = 1.0) -> Training:
    """A rectified recurrence that starts at `scale` times the identity and sums up 40 numbers."""
    torch.manual_seed(22)
    rnn = nn.RNN(8, 32, nonlinearity="relu", batch_first=True)
    own = dict(rnn.named_parameters())
    with torch.no_grad():
        own["weight_hh_l0"].copy_(scale * torch.eye(32))
        own["bias_hh_l0"].zero_()
        own["bias_ih_l0"].zero_()
        nn.init.normal_(own["weight_ih_l0"], std=0.1)
    model = FirstLetter(rnn)
    return Training(
        model=model,
        batch=kit.first_symbol(32, 36),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
        clip=1.0,
    )


def wide_kernels(gain: float = 1.0) -> Training:
    """Eight convolutions of 5 × 5; kernels are `gain` times what keeps the signal's size."""
    torch.manual_seed(23)
    layers: list[nn.Module] = []
    for a, b in zip([1] + [12] * 7, [12] * 8, strict=True):
        conv = nn.Conv2d(a, b, 5, padding=2, padding_mode="circular")
        nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        with torch.no_grad():
            conv.weight.mul_(gain)
        layers += [conv, nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * 64, 10))
    return Training(
        model=model,
        batch=kit.digits(24, image=True),
        loss=kit.classify,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-4),
        steps=120,
        clip=1.0,
    )


class Molecules(nn.Module):
    """Messages between all pixels of a digit's 4 × 4 coarse picture, summed or averaged."""

    def __init__(self, rounds: int, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.read = nn.Linear(4, 24)
        self.own = nn.ModuleList(nn.Linear(24, 24) for _ in range(rounds))
        self.message = nn.ModuleList(nn.Linear(24, 24) for _ in range(rounds))
        self.head = nn.Linear(16 * 24, 10)
        for layer in (*self.own, *self.message):
            nn.init.orthogonal_(layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        pixels = x.view(-1, 4, 2, 4, 2).transpose(2, 3).flatten(1, 2).flatten(2)
        nodes = self.read(pixels)
        for own, message in zip(self.own, self.message, strict=True):
            total = nodes.mean(1, keepdim=True) if self.mean else nodes.sum(1, keepdim=True)
            nodes = nodes + nn.functional.gelu(own(nodes) + message(total))
        out: Tensor = self.head(nodes.flatten(1))
        return out


def molecules(mean: bool = True) -> Training:
    """Messages over a dense graph of 16 nodes for seven rounds."""
    torch.manual_seed(24)
    model = Molecules(7, mean)
    return Training(
        model=model,
        batch=kit.digits(32),
        loss=kit.classify,
        optimizer=torch.optim.AdamW(model.parameters(), lr=1e-3),
        steps=160,
        clip=1.0,
    )


class Iterated(nn.Module):
    """One layer applied over and over to a state, with the input given again each time."""

    def __init__(self, gain: float, times: int) -> None:
        super().__init__()
        self.times = times
        self.read = nn.Linear(6, 40)
        self.turn = nn.Linear(40, 40, bias=False)
        nn.init.orthogonal_(self.turn.weight, gain=gain)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        given = self.read(x)
        state = given
        for _ in range(self.times):
            state = nn.functional.softplus(self.turn(state)) - 0.6931 + given / self.times
        out: Tensor = self.head(state)
        return out


def iterated(gain: float = 1.5) -> Training:
    """A weight-tied layer, 18 times over, on a regression."""
    torch.manual_seed(25)
    model = Iterated(gain, 18)
    return Training(
        model=model,
        batch=kit.surface(64),
        loss=kit.squared,
        optimizer=torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
        clip=1.0,
    )


EXPLODING = Fault(
    "ind4-depth-exploding",
    must=[["exploding-gradient"]],
    symptom=grows(2.5),
    variants=[
        Variant("residual", healthy=stacked, broken=partial(stacked, 1.0)),
        Variant("identity-rnn", healthy=identity_rnn, broken=partial(identity_rnn, 1.4)),
        Variant("kernels", healthy=wide_kernels, broken=partial(wide_kernels, 4.0)),
        Variant("messages-summed", healthy=molecules, broken=partial(molecules, mean=False)),
        Variant("weight-tied", healthy=iterated, broken=partial(iterated, 3.2)),
    ],
)

FAULTS = [VANISHING, EXPLODING]
