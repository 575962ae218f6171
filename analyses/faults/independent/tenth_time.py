"""Recurrent networks: gradients over time, gates at their ends, units and branches shut off."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_tenth_b import cross_entropy, dice, first_symbol
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence, dead_units, decays, grows, saturated
from analyses.faults.training import Training

SPLITS = ("test",)


class LastState(nn.Module):
    """A fused recurrence, its last state read by a linear layer."""

    def __init__(self, core: nn.RNNBase, classes: int) -> None:
        super().__init__()
        self.core = core
        self.read = nn.Linear(core.hidden_size, classes)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.core(x)
        return self.read(states[:, -1])


def elman(orthogonal: bool = True) -> Training:
    """Which symbol came first, 50 steps ago? Default weights, or an orthogonal recurrence."""
    torch.manual_seed(41)
    core = nn.RNN(4, 40, batch_first=True)
    if orthogonal:
        nn.init.orthogonal_(core.weight_hh_l0)  # type: ignore[arg-type]
        nn.init.zeros_(core.bias_ih_l0)  # type: ignore[arg-type]
        nn.init.zeros_(core.bias_hh_l0)  # type: ignore[arg-type]
    model = LastState(core, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, first_symbol(50), cross_entropy, optimizer, steps=200, clip=1.0)


def forgetful_lstm(bias: float = 2.0) -> Training:
    """An LSTM whose forget gates start open, or nearly shut: a sign got lost."""
    torch.manual_seed(42)
    core = nn.LSTM(4, 32, batch_first=True)
    with torch.no_grad():
        for b in (core.bias_ih_l0, core.bias_hh_l0):
            b.zero_()  # type: ignore[operator]
            b[32:64] = bias  # type: ignore[operator]
    model = LastState(core, 4)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, first_symbol(40), cross_entropy, optimizer, steps=200)


class CellOverTime(nn.Module):
    """A GRU cell called step by step; the answer is read from the mean of two last states."""

    def __init__(self, update: float) -> None:
        super().__init__()
        self.cell = nn.GRUCell(6, 32)
        self.norm = nn.LayerNorm(32)
        self.head = nn.Linear(32, 1)
        with torch.no_grad():
            self.cell.bias_ih[32:64] = update

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 32)
        for frame in x.unbind(1):
            h = self.cell(frame, h)
        return self.head(self.norm(h))[:, 0]


def early_sum(step: int) -> tuple[Tensor, ...]:
    """The sum of the first three steps' first feature; later steps are noise."""
    x = torch.randn(32, 30, 6, generator=dice(step, 31))
    return x, x[:, :3, 0].sum(1)


def huber(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.smooth_l1_loss(model(x), y)


def gru_cell(update: float = 3.0) -> Training:
    """The update gate's bias keeps the state, or replaces it at each step."""
    torch.manual_seed(43)
    model = CellOverTime(update)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, early_sum, huber, optimizer, steps=200)


class Leaky(nn.Module):
    """A rate network with leak: h ← (1−a)·h + a·tanh(W h + U x)."""

    def __init__(self, leak: float, width: int = 48) -> None:
        super().__init__()
        self.drive = nn.Linear(3, width)
        self.recur = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, 2)
        self.leak = leak
        nn.init.normal_(self.recur.weight, std=0.5 / width**0.5)

    def forward(self, x: Tensor) -> Tensor:
        inputs = self.drive(x)
        h = torch.zeros_like(inputs[:, 0])
        for t in range(x.shape[1]):
            h = (1 - self.leak) * h + self.leak * torch.tanh(self.recur(h) + inputs[:, t])
        return self.out(h)


def cue(step: int) -> tuple[Tensor, ...]:
    """A cue in the first five steps, left or right; then a delay with noise."""
    g = dice(step, 37)
    y = torch.randint(2, (32,), generator=g)
    x = 0.2 * torch.randn(32, 40, 3, generator=g)
    x[torch.arange(32), :5, y] += 1.5
    return x, y


def leaky(leak: float = 0.04) -> Training:
    """A rate network whose time constant is as long as the task, or one step."""
    torch.manual_seed(44)
    model = Leaky(leak)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, cue, cross_entropy, optimizer, steps=200)


VANISHING = Fault(
    "ind10-time-vanishing",
    must=[["vanishing-gradient"]],
    symptom=decays(3),
    variants=[
        Variant(
            "elman",
            healthy=elman,
            broken=partial(elman, False),
            symptom=decays(3, "core"),
        ),
        Variant(
            "forget-gate",
            healthy=forgetful_lstm,
            broken=partial(forgetful_lstm, -1.5),
            symptom=decays(3, "core"),
        ),
        Variant(
            "update-gate",
            healthy=gru_cell,
            broken=partial(gru_cell, -3.0),
            symptom=decays(3, "cell"),
        ),
        Variant("leak", healthy=leaky, broken=partial(leaky, 0.9), symptom=decays(3, "recur")),
    ],
)


def irnn(scale: float = 1.0) -> Training:
    """A rectified recurrence that starts at the identity, or at a multiple of it."""
    torch.manual_seed(45)
    core = nn.RNN(4, 32, nonlinearity="relu", batch_first=True)
    with torch.no_grad():
        core.weight_hh_l0.copy_(scale * torch.eye(32))  # type: ignore[operator]
        nn.init.normal_(core.weight_ih_l0, std=0.3)  # type: ignore[arg-type]
        core.bias_ih_l0.zero_()  # type: ignore[operator]
        core.bias_hh_l0.zero_()  # type: ignore[operator]
    model = LastState(core, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    return Training(model, first_symbol(40, slips=0.15), cross_entropy, optimizer, steps=200)


class StateSpace(nn.Module):
    """A diagonal linear recurrence between two linear maps, with a gated output."""

    def __init__(self, low: float, high: float, width: int = 32) -> None:
        super().__init__()
        self.enter = nn.Linear(2, width)
        self.decay = nn.Parameter(torch.linspace(low, high, width))
        self.mix = nn.Linear(width, width)
        self.leave = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.decay.numel())
        for u in x.transpose(0, 1):
            h = self.decay * h + self.enter(u)
        return self.leave(F.gelu(self.mix(h)))[:, 0]


def moving(step: int) -> tuple[Tensor, ...]:
    """A slow wave and noise; what is the discounted sum of the first input?"""
    g = dice(step, 41)
    x = torch.randn(32, 50, 2, generator=g)
    weight = 0.98 ** torch.arange(49, -1, -1.0)
    return x, (x[..., 0] * weight).sum(1) / 4


def state_space(low: float = 0.98, high: float = 0.999) -> Training:
    """Poles of the recurrence within the unit circle, or a few without."""
    torch.manual_seed(46)
    model = StateSpace(low, high)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, moving, huber, optimizer, steps=200)


EXPLODING = Fault(
    "ind10-time-exploding",
    must=[["exploding-gradient"]],
    variants=[
        Variant("identity", healthy=irnn, broken=partial(irnn, 1.35), symptom=grows(2.5)),
        Variant(
            "state-space",
            healthy=state_space,
            broken=partial(state_space, 1.15, 1.3),
            symptom=grows(2.5),
        ),
    ],
)


class Weather(nn.Module):
    """Predicts from a window of pressure, temperature and humidity, cell by cell."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 24)
        self.out = nn.Linear(24, 1)
        with torch.no_grad():
            self.cell.bias_ih[24:48] = 3.0  # remembers

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        c = torch.zeros_like(h)
        for frame in x.unbind(1):
            h, c = self.cell(frame, (h, c))
        return self.out(h)[:, 0]


def weather(raw: bool = False) -> Training:
    """Sensors in hPa, kelvin and percent as they come, or standardised."""
    torch.manual_seed(47)
    model = Weather()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 43)
        z = torch.randn(32, 16, 3, generator=g)
        z = 0.6 * z + 0.8 * torch.randn(32, 1, 3, generator=g)
        y = z.mean(1)[:, 0] - z[:, -1, 1]
        units = torch.tensor([8.0, 6.0, 15.0])
        middle = torch.tensor([1013.0, 288.0, 60.0])
        return (z * units + middle if raw else z), y

    return Training(model, batch, huber, optimizer, steps=200)


class HandGRU(nn.Module):
    """A GRU from raw parameters, as in a tutorial."""

    def __init__(self, tokens: int, width: int, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(tokens, 16)
        self.Wz = nn.Parameter(std * torch.randn(width + 16, width))
        self.Wr = nn.Parameter(std * torch.randn(width + 16, width))
        self.Wn = nn.Parameter(std * torch.randn(width + 16, width))
        self.vocab = nn.Linear(width, tokens)
        self.width = width

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.zeros(len(tokens), self.width)
        outs = []
        for t in range(tokens.shape[1]):
            x = self.embed(tokens[:, t])
            both = torch.cat([h, x], 1)
            z = torch.sigmoid(both @ self.Wz)
            r = torch.sigmoid(both @ self.Wr)
            n = torch.tanh(torch.cat([r * h, x], 1) @ self.Wn)
            h = (1 - z) * n + z * h
            outs.append(self.vocab(h))
        return torch.stack(outs, 1)


def grammar(step: int, length: int = 20, size: int = 24) -> tuple[Tensor, ...]:
    """A made-up language: the next letter is fixed by the last two, with some slips."""
    g = dice(step, 47)
    text = torch.randint(9, (size, length + 1), generator=g)
    for t in range(2, length + 1):
        said = (2 * text[:, t - 1] + text[:, t - 2] + 1) % 9
        slip = torch.rand(size, generator=g) < 0.1
        text[:, t] = torch.where(slip, text[:, t], said)
    return text[:, :-1], text[:, 1:]


def next_letter(model: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
    return F.cross_entropy(model(given).flatten(0, 1), wanted.flatten())


def hand_gru(std: float = 0.12) -> Training:
    """Weights of a handmade GRU drawn from torch.randn, scaled for the width or not."""
    torch.manual_seed(48)
    model = HandGRU(9, 64, std)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, grammar, next_letter, optimizer, steps=150)


SATURATED = Fault(
    "ind10-time-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.7),
    variants=[
        Variant(
            "raw-sensors",
            healthy=weather,
            broken=partial(weather, True),
            must=[["saturated-activation", "unscaled-input"]],
            may=["vanishing-gradient"],  # 4 to 8 decades from the last state to the first
        ),
        Variant(
            "randn-gru",
            healthy=hand_gru,
            broken=partial(hand_gru, 3.0),
            # Nine decades more at the first step: where the gates aren't flat, they are too steep.
            must=[["saturated-activation", "exploding-gradient"]],
        ),
    ],
)


class ReluText(nn.Module):
    """Embedding, a rectified recurrence from cells, a softmax over letters."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 24)
        self.inward = nn.Linear(24, 64)
        self.recur = nn.Linear(64, 64, bias=False)
        self.vocab = nn.Linear(64, 9)
        self.skip = nn.Linear(24, 9)
        nn.init.constant_(self.inward.bias, bias)
        nn.init.orthogonal_(self.recur.weight, gain=0.7)

    def forward(self, tokens: Tensor) -> Tensor:
        given = self.embed(tokens)
        sums = self.inward(given)
        h = torch.zeros_like(sums[:, 0])
        outs = []
        for t in range(tokens.shape[1]):
            h = torch.relu(sums[:, t] + self.recur(h))
            outs.append(self.vocab(h) + self.skip(given[:, t]))
        return torch.stack(outs, 1)


def relu_text(bias: float = 0.0) -> Training:
    """A recurrence whose units start off for every letter: the bias has the wrong sign and size."""
    torch.manual_seed(49)
    model = ReluText(bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, grammar, next_letter, optimizer, steps=150)


DEAD = Fault(
    "ind10-time-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.7),
    variants=[
        # No letter reaches the units: whole branch beside the skip gets no gradient, nor moves.
        Variant(
            "relu-recurrence",
            healthy=relu_text,
            broken=partial(relu_text, -9.0),
            may=["starved-pathway", "no-update"],
        ),
    ],
)


class TwoSpeeds(nn.Module):
    """A recurrence for the order of events beside a bag of events, fused by a learned gate."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.events = nn.Linear(5, 24)
        self.order = nn.GRU(24, 24, batch_first=True)
        self.bag = nn.Linear(24, 24)
        self.gate = nn.Parameter(torch.tensor(bias))
        self.head = nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        e = torch.tanh(self.events(x))
        mean = e.sum(1) / 3
        _, last = self.order(e)
        g = torch.sigmoid(self.gate)
        return self.head(g * last[0] + (1 - g) * torch.tanh(self.bag(mean)))


def who_was_last(step: int) -> tuple[Tensor, ...]:
    """Which of three events came last, at one of the last steps?"""
    g = dice(step, 53)
    y = torch.randint(3, (48,), generator=g)
    x = torch.zeros(48, 16, 5)
    x[..., 3:] = 0.3 * torch.randn(48, 16, 2, generator=g)
    when = torch.stack([torch.randperm(15, generator=g)[:3] for _ in range(48)])
    when = when.sort(1).values
    order = torch.stack([torch.randperm(3, generator=g) for _ in range(48)])
    y = order[:, 2]
    rows = torch.arange(48)
    for k in range(3):
        x[rows, when[:, k], order[:, k]] = 1.5
    return x, y


def two_speeds(bias: float = 0.0) -> Training:
    """The fusing gate starts in the middle, or firmly on the bag's side."""
    torch.manual_seed(50)
    model = TwoSpeeds(bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, who_was_last, cross_entropy, optimizer, steps=200)


class StackedLSTM(nn.Module):
    """Residual layers of LSTMs; what a layer adds is scaled."""

    def __init__(self, scale: float, layers: int = 3) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 32)
        self.layers = nn.ModuleList(nn.LSTM(32, 32, batch_first=True) for _ in range(layers))
        self.vocab = nn.Linear(32, 9)
        self.scale = scale

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = x + self.scale * layer(x)[0]
        return self.vocab(x)


def stacked(scale: float = 1.0) -> Training:
    """Residual LSTMs; the residual's factor is a rounding error."""
    torch.manual_seed(51)
    model = StackedLSTM(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Training(model, grammar, next_letter, optimizer, steps=150, clip=1.0)


def weak(branch: str, other: str, limit: float) -> Symptom:
    """Norms of the matrices' gradients: the branch's largest over the other's, typically."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        def found(observed: Observed) -> float:
            shares = sorted(
                max(n for k, n in c.norms.items() if branch in k)
                / max(n for k, n in c.norms.items() if other in k)
                for c in observed.checkpoints
            )
            return shares[len(shares) // 2]

        evidence = {"share": found(run)}
        if twin:
            evidence["twin"] = found(twin)
        return {"is": evidence["share"] <= limit < evidence.get("twin", 1.0), **evidence}

    return symptom


STARVED = Fault(
    "ind10-time-starved",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "fusing-gate",
            healthy=two_speeds,
            broken=partial(two_speeds, -15.0),
            must=[["starved-pathway", "saturated-activation"]],
            symptom=weak("order", "bag", 1e-4),
        ),
        Variant(
            "residual-lstm",
            healthy=stacked,
            broken=partial(stacked, 1e-6),
            may=["no-update"],  # SGD moves the layers by about 1e-6 of their size
            symptom=weak("layers", "vocab", 1e-4),
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING, SATURATED, DEAD, STARVED]
