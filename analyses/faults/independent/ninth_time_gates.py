"""Recurrent networks whose gates or states sit at their ends, are off, or are shut."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_b import classify, digits, minibatches, regress
from analyses.faults.observe import Observed
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training


def shut(like: str, beside: str, share: float = 3e-4) -> Symptom:
    """Matrices called `like` have that little gradient (norms) beside the largest of `beside`."""

    def typical(run: Observed) -> float:
        found = []
        for c in run.checkpoints:
            inside = [n for name, n in c.norms.items() if like in name]
            others = [n for name, n in c.norms.items() if beside in name]
            found.append(max(inside) / max(*others, 1e-30))
        return median(found)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        evidence: dict[str, Any] = {"share": typical(run)}
        if twin:
            evidence["twin"] = typical(twin)
        return {"is": evidence["share"] <= share < evidence.get("twin", 1) / 10, **evidence}

    return symptom


class Prices(nn.Module):
    """LSTM cell over a window of daily figures; predicts the next change."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(3, 32)
        self.next = nn.Linear(32, 1)

    def forward(self, window: Tensor) -> Tensor:
        h = c = window.new_zeros(len(window), 32)
        for day in window.unbind(1):
            h, c = self.cell(day, (h, c))
        return self.next(h)


def prices(raw: bool = False) -> Training:
    """Price, volume and index; the raw ones are in the thousands."""
    torch.manual_seed(71)
    g = torch.Generator().manual_seed(21)
    cycle = torch.sin(torch.arange(1400) / 5)
    rest = 0.3 * torch.randn(1400, generator=g)
    series = torch.stack([cycle + rest, cycle.roll(3) + rest, rest], 1)
    shown = series * torch.tensor([300.0, 4000.0, 50.0]) + torch.tensor([2e3, 9e3, 700.0])
    inputs = shown if raw else (shown - shown.mean(0)) / shown.std(0)
    windows = inputs.unfold(0, 8, 1)[:-1].transpose(1, 2)
    target = cycle[8:].unsqueeze(1)
    model = Prices()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, minibatches(windows, target, size=32), regress, optimizer, steps=250)


class OwnGRU(nn.Module):
    """A GRU written out: one matrix for update and reset gates, one for the candidate."""

    def __init__(self, n_in: int, width: int, classes: int) -> None:
        super().__init__()
        self.gates = nn.Linear(n_in + width, 2 * width)
        self.candidate = nn.Linear(n_in + width, width)
        self.classes = nn.Linear(width, classes)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.width)
        for step in x.unbind(1):
            z, r = torch.sigmoid(self.gates(torch.cat([step, h], 1))).chunk(2, 1)
            n = torch.tanh(self.candidate(torch.cat([step, r * h], 1)))
            h = (1 - z) * n + z * h
        return self.classes(h)


def own_gru(update: float = 0.0) -> Training:
    """Digits row by row; update gates that start at +12 keep the first (empty) state for ever."""
    torch.manual_seed(72)
    model = OwnGRU(8, 32, 10)
    with torch.no_grad():
        model.gates.bias[:32].add_(update)
    x, y = digits(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250, clip=5.0)


class Tanh(nn.Module):
    """Word-level tagger with a tanh recurrence of two layers by hand."""

    def __init__(self, std: float) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 32)
        self.into = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.over = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(2))
        self.tags = nn.Linear(32, 5)
        for layer in [*self.into, *self.over]:
            nn.init.normal_(layer.weight, std=std)

    def forward(self, words: Tensor) -> Tensor:
        x = list(self.words(words).unbind(1))
        for into, over in zip(self.into, self.over, strict=True):
            h = torch.zeros_like(x[0])
            for t, step in enumerate(x):
                h = torch.tanh(into(step) + over(h))
                x[t] = h
        return self.tags(torch.stack(x, 1))


def tag_loss(model: Tanh, words: Tensor, tags: Tensor) -> Tensor:
    """Cross entropy at every word."""
    return F.cross_entropy(model(words).flatten(0, 1), tags.flatten())


def tanh_tagger(std: float = 0.12) -> Training:
    """A word's tag depends on it and the one before; weights drawn with 1.0 are the fault."""
    torch.manual_seed(73)
    g = torch.Generator().manual_seed(22)
    words = torch.randint(50, (800, 12), generator=g)
    before = F.pad(words, (1, 0))[:, :-1]
    tags = (words % 5 + (before >= 25)) % 5
    model = Tanh(std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = minibatches(words, tags, size=32)
    return Training(model, batch, tag_loss, optimizer, steps=300, clip=2.0)


SATURATED = Fault(
    "ind9-time-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant(
            "raw-prices",
            healthy=prices,
            broken=partial(prices, raw=True),
            must=[["saturated-activation", "unscaled-input"]],
            may=["vanishing-gradient"],
        ),
        Variant(
            "update-gate-stuck",
            healthy=own_gru,
            broken=partial(own_gru, update=12.0),
            must=[["saturated-activation", "starved-pathway"]],
            may=["vanishing-gradient", "no-update"],  # what is new is scaled by 6e-6
            symptom=saturated(0.45),
        ),
        # Where a state is not at its end, the large weights make its gradient grow back in time.
        Variant(
            "large-tanh-tagger",
            healthy=tanh_tagger,
            broken=partial(tanh_tagger, std=1.0),
            may=["exploding-gradient"],
        ),
    ],
)


class Rectified(nn.Module):
    """Rectified recurrence written out, identity at the start."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.from_x = nn.Linear(2, 32)
        self.from_h = nn.Linear(32, 32, bias=False)
        self.out = nn.Linear(32, 1)
        nn.init.eye_(self.from_h.weight)
        nn.init.normal_(self.from_x.weight, std=0.1)
        nn.init.constant_(self.from_x.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 32)
        for t in range(x.size(1)):
            h = F.relu(self.from_x(x[:, t]) + self.from_h(h))
        return self.out(h)


def rectified(lr: float = 3e-3, bias: float = 0.0) -> Training:
    """Sum of a series of steps; a large negative bias "for sparse states" keeps all units off."""
    torch.manual_seed(74)
    g = torch.Generator().manual_seed(23)
    x = 0.5 * torch.randn(1000, 15, 2, generator=g)
    y = (x[..., 0] - x[..., 1]).sum(1, keepdim=True)
    model = Rectified(bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, minibatches(x, y, size=32), regress, optimizer, steps=250, clip=1.0)


class Frames(nn.Module):
    """Each frame through a rectified encoder, then a GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(8, 48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.gru = nn.GRU(24, 24, batch_first=True)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.gru(self.encoder(x))
        return self.out(h[0])


def frames(offset: float = 0.0) -> Training:
    """Digits row by row; the encoder's last biases start at -6, and its units off."""
    torch.manual_seed(75)
    model = Frames()
    x, y = digits(8, 8)
    with torch.no_grad():
        model.encoder[2].bias.sub_(offset)  # type: ignore[operator]
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250)


DEAD = Fault(
    "ind9-time-dead",
    must=[["dead-units"]],
    # Units that are off hand on nothing, to the steps before them neither.
    may=["vanishing-gradient", "no-update"],
    symptom=dead_units(0.7),
    variants=[
        Variant("rectified-sum", healthy=rectified, broken=partial(rectified, bias=-1.0)),
        Variant("frame-encoder-off", healthy=frames, broken=partial(frames, offset=6.0)),
    ],
)


class Residual(nn.Module):
    """A skip around an LSTM, step by step, for series with a short memory."""

    def __init__(self, output: float) -> None:
        super().__init__()
        self.enter = nn.Linear(2, 24)
        self.cell = nn.LSTMCell(24, 24)
        self.leave = nn.Linear(24, 1)
        with torch.no_grad():
            self.cell.bias_hh[72:].add_(output)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        h = c = torch.zeros(len(x), 24)
        outputs = []
        for step in x.unbind(1):
            h, c = self.cell(step, (h, c))
            outputs.append(self.leave(step + h))
        return torch.stack(outputs, 1)


def residual(output: float = 0.0) -> Training:
    """Product with the value before; the LSTM's output gates start at sigmoid(-12)."""
    torch.manual_seed(76)
    g = torch.Generator().manual_seed(24)
    x = torch.randn(800, 16, 2, generator=g)
    y = x[..., :1] + F.pad(x[:, :-1, 1:], (0, 0, 1, 0)) * 1.5
    model = Residual(output)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), regress, optimizer, steps=250, clip=5.0)


class TwoClocks(nn.Module):
    """Convolution and recurrence over one embedding, summed; the latter may be scaled away."""

    def __init__(self, slow: float) -> None:
        super().__init__()
        self.embed = nn.Linear(5, 24)
        self.fast = nn.Conv1d(24, 24, 3, padding=1)
        self.slow = nn.LSTM(24, 24, batch_first=True)
        self.head = nn.Linear(24, 4)
        self.scale = slow

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.embed(x))
        slow, _ = self.slow(x)
        fast = F.silu(self.fast(x.transpose(1, 2)))
        return self.head(fast.mean(2) + self.scale * slow.mean(1))


def two_clocks(slow: float = 1.0) -> Training:
    """Which of two symbols came first? The recurrence could tell, but has a weight of 1e-6."""
    torch.manual_seed(77)
    g = torch.Generator().manual_seed(25)
    both = torch.rand(1000, 4, generator=g).argsort(1)[:, :2]
    places = torch.rand(1000, 14, generator=g).argsort(1)[:, :2].sort(1).values
    x = 0.2 * torch.randn(1000, 14, 5, generator=g)
    for i in range(2):
        x[torch.arange(1000), places[:, i], both[:, i]] += 3
    model = TwoClocks(slow)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    batch = minibatches(x, both[:, 0], size=32)
    return Training(model, batch, classify, optimizer, steps=300)


STARVED = Fault(
    "ind9-time-starved",
    must=[["starved-pathway"]],
    may=["no-update"],
    variants=[
        Variant(
            "output-gate-shut",
            healthy=residual,
            broken=partial(residual, output=-12.0),
            must=[["starved-pathway", "saturated-activation"]],
            symptom=shut("cell", "leave"),
        ),
        Variant(
            "slow-stream",
            healthy=two_clocks,
            broken=partial(two_clocks, slow=1e-6),
            symptom=shut("slow", "fast"),
        ),
    ],
)

FAULTS = [SATURATED, DEAD, STARVED]
