"""Gradients that are lost, or grow, on their way back through time."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_b import (
    classify,
    minibatches,
    recall,
    regress,
    waves,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training


class Elman(nn.Module):
    """nn.RNN, the last output classified."""

    def __init__(self, n_in: int, width: int, classes: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(n_in, width, batch_first=True)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        out, _ = self.rnn(x)
        return self.head(out[:, -1])


def elman(orthogonal: bool = True) -> Training:
    """Recall the first symbol after sixty steps of noise; default weights forget within ten."""
    torch.manual_seed(51)
    model = Elman(5, 48, 4)
    if orthogonal:
        nn.init.orthogonal_(model.rnn.weight_hh_l0)  # type: ignore[arg-type]
        nn.init.zeros_(model.rnn.bias_ih_l0)  # type: ignore[arg-type]
        nn.init.zeros_(model.rnn.bias_hh_l0)  # type: ignore[arg-type]
    x, y = recall(length=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, minibatches(0.5 * x, y), classify, optimizer, steps=300, clip=1.0)


class Remember(nn.Module):
    """LSTM by its cell."""

    def __init__(self, forget: float) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(5, 24)
        self.answer = nn.Linear(24, 4)
        with torch.no_grad():
            self.cell.bias_ih[24:48].fill_(forget)

    def forward(self, x: Tensor) -> Tensor:
        h = c = x.new_zeros(len(x), 24)
        for t in range(x.shape[1]):
            h, c = self.cell(x[:, t], (h, c))
        return self.answer(h)


def forgetful(forget: float = 3.0) -> Training:
    """The bias of the forget gate set with the wrong sign."""
    torch.manual_seed(52)
    model = Remember(forget)
    x, y = recall(length=24, seed=1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=250)


class Padded(nn.Module):
    """Sentiment of short token sequences; reads the state at the end of the padding or before."""

    def __init__(self, at_length: bool) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 16, padding_idx=0)
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.out = nn.Linear(32, 1)
        self.at_length = at_length

    def forward(self, tokens: Tensor) -> Tensor:
        states, (last, _) = self.lstm(self.embedding(tokens))
        if self.at_length:
            length = (tokens != 0).sum(1)
            return self.out(states[torch.arange(len(tokens)), length - 1]).squeeze(1)
        return self.out(last[-1]).squeeze(1)


def sentiment(model: Padded, tokens: Tensor, positive: Tensor) -> Tensor:
    """Binary cross entropy."""
    return F.binary_cross_entropy_with_logits(model(tokens), positive)


def padded(at_length: bool = True) -> Training:
    """Eight to fourteen tokens, padded to sixty; taking the last state reads padding."""
    torch.manual_seed(53)
    g = torch.Generator().manual_seed(11)
    tokens = torch.randint(1, 30, (1200, 60), generator=g)
    length = torch.randint(8, 15, (1200,), generator=g)
    tokens = tokens * (torch.arange(60)[None] < length[:, None])
    feeling = ((tokens > 0) & (tokens < 12)).sum(1) - ((tokens > 20).sum(1))
    model = Padded(at_length)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    batch = minibatches(tokens, (feeling > 0).float(), size=32)
    return Training(model, batch, sentiment, optimizer, steps=200, clip=1.0)


class Leaky(nn.Module):
    """Linear state-space layer with real, diagonal dynamics, and a perceptron on its last state."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.enter = nn.Linear(5, 32)
        self.rate = nn.Parameter(torch.full((32,), start) + 0.1 * torch.randn(32))
        self.read = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        keep = torch.sigmoid(self.rate)
        state = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            state = keep * state + self.enter(step)
        return self.read(state)


def leaky(start: float = 3.5) -> Training:
    """A leak that starts at about 0.4 a step forgets the cue forty steps back."""
    torch.manual_seed(54)
    model = Leaky(start)
    x, y = recall(length=40, seed=2)
    x[:, 1:, :4] *= 0.3
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=200)


class Gated(nn.Module):
    """Two fused GRU layers of their own, the last state of the second is read."""

    def __init__(self, keep: float) -> None:
        super().__init__()
        self.low = nn.GRU(1, 24, batch_first=True)
        self.high = nn.GRU(24, 24, batch_first=True)
        self.head = nn.Linear(24, 2)
        if keep:
            for gru in (self.low, self.high):
                nn.init.constant_(gru.bias_ih_l0[24:48], keep)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.low(x)
        _, last = self.high(x)
        return self.head(last[0])


def gated(keep: float = 3.0) -> Training:
    """Which way did a flash at the beginning of forty quiet steps go?"""
    torch.manual_seed(55)
    g = torch.Generator().manual_seed(12)
    y = torch.randint(2, (800,), generator=g)
    x = 0.05 * torch.randn(800, 40, 1, generator=g)
    x[:, 1:4, 0] += 2.0 * (2 * y[:, None] - 1)
    model = Gated(keep)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=200, clip=1.0)


class Logistic(nn.Module):
    """A recurrence by hand, with a sigmoid (or a tanh and a skip over time) for its state."""

    def __init__(self, skip: bool) -> None:
        super().__init__()
        self.i2h = nn.Linear(1, 24)
        self.h2h = nn.Linear(24, 24)
        self.h2o = nn.Linear(24, 4)
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 24)
        for t in range(x.shape[1]):
            if self.skip:
                h = h + 0.1 * torch.tanh(self.i2h(x[:, t]) + self.h2h(h))
            else:
                h = torch.sigmoid(self.i2h(x[:, t]) + self.h2h(h))
        return self.h2o(h)


def logistic(skip: bool = True) -> Training:
    """Frequency of a noisy sine: the sigmoid's state hears of the last few samples only."""
    torch.manual_seed(56)
    model = Logistic(skip)
    x, y = waves(length=32)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=250, clip=1.0)


VANISHING = Fault(
    "ind9-time-vanishing",
    must=[["vanishing-gradient"]],
    variants=[
        Variant(
            "elman-default",
            healthy=elman,
            broken=partial(elman, orthogonal=False),
            symptom=decays(4, like="rnn"),
        ),
        Variant(
            "forget-gate-sign",
            healthy=forgetful,
            broken=partial(forgetful, forget=-3.0),
            symptom=decays(4, like="cell"),
        ),
        Variant(
            "state-after-padding",
            healthy=padded,
            broken=partial(padded, at_length=False),
            may=["no-update"],
            symptom=decays(4, like="lstm"),
        ),
        Variant(
            "leaky-state",
            healthy=leaky,
            broken=partial(leaky, start=-0.4),
            symptom=decays(4, like="enter"),
        ),
        Variant(
            "two-layer-gru",
            healthy=gated,
            broken=partial(gated, keep=0.0),
            symptom=decays(4, like="high"),
        ),
        Variant(
            "sigmoid-state",
            healthy=logistic,
            broken=partial(logistic, skip=False),
            symptom=decays(4, like="h2h"),
        ),
    ],
)


class Identity(nn.Module):
    """Rectified recurrence that starts as (a multiple of) the identity."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.cell = nn.RNNCell(2, 40, nonlinearity="relu")
        self.out = nn.Linear(40, 1)
        nn.init.normal_(self.cell.weight_ih, std=0.1)
        with torch.no_grad():
            self.cell.weight_hh.copy_(scale * torch.eye(40) + 0.01 * torch.randn(40, 40))
        nn.init.zeros_(self.cell.bias_ih)
        nn.init.zeros_(self.cell.bias_hh)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(x.shape[0], 40)
        for step in x.transpose(0, 1):
            h = self.cell(step, h)
        return self.out(h).squeeze(-1)


def identity(scale: float = 0.99) -> Training:
    """The adding problem; a recurrent matrix of 1.35 times the identity explodes in forty steps."""
    torch.manual_seed(61)
    g = torch.Generator().manual_seed(13)
    value = torch.rand(1000, 40, generator=g)
    marks = torch.zeros(1000, 40)
    marks[torch.arange(1000), torch.randint(20, (1000,), generator=g)] = 1
    marks[torch.arange(1000), 20 + torch.randint(20, (1000,), generator=g)] = 1
    model = Identity(scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = minibatches(torch.stack([value, marks], 2), (value * marks).sum(1), size=32)
    return Training(model, batch, regress, optimizer, steps=200, clip=1.0)


class StateSpace(nn.Module):
    """Diagonal linear recurrence between two projections; outputs at every step."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.b = nn.Linear(1, 32)
        self.a = nn.Parameter(start + 0.02 * torch.randn(32))
        self.c = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(x.shape[0], 32)
        states = []
        for t in range(x.shape[1]):
            state = state * self.a + self.b(x[:, t])
            states.append(state)
        return self.c(torch.stack(states, 1))


def state_space(start: float = 0.9) -> Training:
    """Running average of a series; without a bound the dynamics start at 1.2 a step."""
    torch.manual_seed(62)
    g = torch.Generator().manual_seed(14)
    x = torch.randn(600, 64, 1, generator=g)
    kernel = 0.85 ** torch.arange(20).flip(0).float()
    y = F.conv1d(F.pad(x.transpose(1, 2), (19, 0)), kernel.view(1, 1, -1)).transpose(1, 2)
    model = StateSpace(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, minibatches(x, y, size=32), regress, optimizer, steps=200)


class Chaotic(nn.Module):
    """Fused tanh recurrence for tagging; its recurrent matrix is orthogonal times a gain."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.rnn = nn.RNN(6, 64, batch_first=True)
        self.tag = nn.Linear(64, 3)
        nn.init.orthogonal_(self.rnn.weight_hh_l0, gain)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        states, _ = self.rnn(x)
        return {"logits": self.tag(states.mean(1))}


def tagged(model: Chaotic, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy from a dictionary of outputs."""
    return F.cross_entropy(model(x)["logits"], y)


def chaotic(gain: float = 0.95) -> Training:
    """Which of three channels is the loudest? With a gain of 3 the states are chaotic."""
    torch.manual_seed(63)
    g = torch.Generator().manual_seed(15)
    y = torch.randint(3, (800,), generator=g)
    x = 0.3 * torch.randn(800, 50, 6, generator=g)
    x[torch.arange(800), :, y] += 0.25
    model = Chaotic(gain)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), tagged, optimizer, steps=250, clip=1.0)


EXPLODING = Fault(
    "ind9-time-exploding",
    must=[["exploding-gradient"]],
    variants=[
        Variant(
            "identity-too-large",
            healthy=identity,
            broken=partial(identity, scale=1.35),
            symptom=grows(3),
        ),
        Variant(
            "unbounded-state-space",
            healthy=state_space,
            broken=partial(state_space, start=1.2),
            symptom=grows(3),
        ),
        Variant(
            "chaotic-states",
            healthy=chaotic,
            broken=partial(chaotic, gain=3.0),
            # A third of the states is beyond 0.98; clipped, the readout hardly moves.
            may=["saturated-activation", "no-update"],
            symptom=grows(2.5),
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING]
