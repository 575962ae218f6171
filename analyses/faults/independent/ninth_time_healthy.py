"""Recurrent networks that train well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_ninth_b import classify, digits, minibatches
from analyses.faults.training import Training


def sentences(n: int, length: int, seed: int) -> Tensor:
    """Letters of a made-up grammar: runs that go up or down an alphabet of 20."""
    g = torch.Generator().manual_seed(seed)
    letters = torch.randint(20, (n,), generator=g)
    way = 2 * torch.randint(2, (n,), generator=g) - 1
    out = []
    for _ in range(length):
        out.append(letters)
        turned = torch.rand(n, generator=g) < 0.1
        way = torch.where(turned, -way, way)
        letters = (letters + way) % 20
    return torch.stack(out, 1)


class Letters(nn.Module):
    """Two-layer LSTM language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.lstm = nn.LSTM(24, 48, num_layers=2, batch_first=True, dropout=0.1)
        self.next = nn.Linear(48, 20)

    def forward(self, letters: Tensor) -> Tensor:
        states, _ = self.lstm(self.embed(letters))
        return self.next(states)


def letters() -> Training:
    """Next letter, gradient clipped, learning rate halved every hundred steps."""
    torch.manual_seed(121)
    model = Letters()
    text = sentences(800, 25, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100, 0.5)

    def loss(model: Letters, text: Tensor) -> Tensor:
        return F.cross_entropy(model(text[:, :-1]).transpose(1, 2), text[:, 1:])

    return Training(
        model, minibatches(text, size=32), loss, optimizer, steps=200, schedule=schedule, clip=1.0
    )


class Tagger(nn.Module):
    """Bidirectional GRU, a label for every position."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.both_ways = nn.GRU(16, 24, batch_first=True, bidirectional=True)
        self.norm = nn.LayerNorm(48)
        self.label = nn.Linear(48, 3)

    def forward(self, letters: Tensor) -> Tensor:
        states, _ = self.both_ways(self.embed(letters))
        return self.label(self.norm(states))


def tagger() -> Training:
    """Does the run turn at this letter, and how?"""
    torch.manual_seed(122)
    model = Tagger()
    text = sentences(800, 20, 2)
    step = (text[:, 1:] - text[:, :-1] + 1) % 20
    turns = F.pad((step[:, 1:] - step[:, :-1]) // 2 + 1, (1, 1), value=1)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)

    def loss(model: Tagger, text: Tensor, turns: Tensor) -> Tensor:
        return F.cross_entropy(model(text).flatten(0, 1), turns.flatten())

    return Training(model, minibatches(text, turns, size=32), loss, optimizer, steps=200)


class Stream(nn.Module):
    """GRU cell that goes through a long series in chunks, its state carried over."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, 32)
        self.out = nn.Linear(32, 1)

    def forward(self, chunk: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        outputs = []
        for x in chunk.unbind(1):
            h = self.cell(x, h)
            outputs.append(self.out(h))
        return torch.stack(outputs, 1), h


def stream() -> Training:
    """Truncated backpropagation through time: the state is detached between chunks."""
    torch.manual_seed(123)
    g = torch.Generator().manual_seed(41)
    t = torch.arange(4001) / 6
    series = torch.stack([torch.sin(t + p) + torch.sin(0.37 * t + 2 * p) for p in range(16)])
    series = series + 0.05 * torch.randn(series.shape, generator=g)
    model = Stream()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    carried = {"h": torch.zeros(16, 32)}

    def batch(step: int) -> tuple[Tensor, Tensor]:
        at = 16 * step
        return series[:, at : at + 16, None], series[:, at + 1 : at + 17, None]

    def loss(model: Stream, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, carried["h"])[0], y)

    def step(training: Training, at: int) -> dict[str, Any]:
        x, y = training.batch(at)
        out, h = training.model(x, carried["h"])
        found = F.mse_loss(out, y)
        training.optimizer.zero_grad()
        found.backward()
        nn.utils.clip_grad_value_(training.model.parameters(), 0.5)
        training.optimizer.step()
        carried["h"] = h.detach()
        return {"loss": found.item()}

    return Training(model, batch, loss, optimizer, steps=200, step=step)


class Repeat(nn.Module):
    """Encoder and decoder; the decoder is fed with the right answer while training."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 24)
        self.encoder = nn.GRU(24, 64, batch_first=True)
        self.decoder = nn.GRU(24, 64, batch_first=True)
        self.token = nn.Linear(64, 9)

    def forward(self, source: Tensor, shifted: Tensor) -> Tensor:
        _, h = self.encoder(self.embed(source))
        out, _ = self.decoder(self.embed(shifted), h)
        return self.token(out)


def repeat() -> Training:
    """Six digits in reverse."""
    torch.manual_seed(124)
    g = torch.Generator().manual_seed(42)
    source = torch.randint(1, 9, (3000, 6), generator=g)
    target = source.flip(1)
    shifted = F.pad(target, (1, 0))[:, :-1]
    model = Repeat()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def loss(model: Repeat, source: Tensor, shifted: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(model(source, shifted).transpose(1, 2), target)

    batch = minibatches(source, shifted, target)
    return Training(model, batch, loss, optimizer, steps=250, clip=1.0)


class Rows(nn.Module):
    """LSTM over the rows of an image, classified from its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 48, batch_first=True)
        self.drop = nn.Dropout(0.2)
        self.out = nn.Linear(48, 10)
        nn.init.orthogonal_(self.lstm.weight_hh_l0)  # type: ignore[arg-type]
        with torch.no_grad():
            self.lstm.bias_ih_l0[48:96].fill_(1.0)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.out(self.drop(h[-1]))


def rows() -> Training:
    """Digits, forget biases at 1."""
    torch.manual_seed(125)
    x, y = digits(8, 8)
    model = Rows()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=200)


RECURRENT = Healthy(
    "ind9-time-healthy",
    {
        "letters": letters,
        "tagger": tagger,
        "stream": stream,
        "repeat": repeat,
        "rows": rows,
    },
)

THEMES = [RECURRENT]
