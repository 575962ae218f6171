"""Steps of the wrong size: too large, none, lost in float16; and data that come in raw units."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Symptom, Variant
from analyses.faults.independent.kit_seventh_units import (
    digit_images,
    digits,
    late_movement,
    sampler,
    shapes,
    table,
    waves,
)
from analyses.faults.observe import Observed, observe
from analyses.faults.symptoms import learns_less, overshoots, underflows, unmoved
from analyses.faults.training import Training


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Of the classes."""
    return F.cross_entropy(model(x), y)


def squared_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over all outputs."""
    return F.mse_loss(model(x), y)


# --- steps that are too large --------------------------------------------------------------------


class GroupedCNN(nn.Module):
    """Three convolutions with group norm and SiLU."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv2d(a, b, 3, padding=1) for a, b in ((1, 16), (16, 24), (24, 24))]
        )
        self.norms = nn.ModuleList([nn.GroupNorm(4, c) for c in (16, 24, 24)])
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        return self.head(x.mean((2, 3)))


def times_step(step: int) -> float:
    """A warm-up that was meant to be divided by its length."""
    return float(min(step + 1, 150))


def over_length(step: int) -> float:
    """A linear warm-up."""
    return min(step + 1, 150) / 150


def warm_cnn(factor: Callable[[int], float] = over_length) -> Training:
    """Shapes by a small CNN, the learning rate multiplied by a factor of the step."""
    torch.manual_seed(31)
    net = GroupedCNN()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.2, momentum=0.9)
    return Training(
        net,
        sampler(24, *shapes(400, 12, 1)),
        cross_entropy,
        optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
    )


class Encoder(nn.Module):
    """A small transformer encoder that says for each token whether it was there before."""

    def __init__(self, symbols: int, width: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Parameter(0.1 * torch.randn(length, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.embed(x) + self.place))


def per_token(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over all tokens."""
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def tagger(lr: float = 2e-3) -> Training:
    """Marks symbols that occur more than once in their sequence."""
    torch.manual_seed(32)
    g = torch.Generator().manual_seed(2)
    x = torch.randint(16, (1500, 12), generator=g)
    y = ((x[:, :, None] == x[:, None]).sum(2) > 1).long()
    net = Encoder(16, 32, 12)
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    return Training(net, sampler(48, x, y), per_token, optimizer, steps=250)


class Speller(nn.Module):
    """A character model on a GRU."""

    def __init__(self, symbols: int, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(x))[0])


def next_character(reduction: str, model: nn.Module, x: Tensor) -> Tensor:
    """Each character from those before it."""
    logits = model(x[:, :-1])
    return F.cross_entropy(logits.flatten(0, 1), x[:, 1:].flatten(), reduction=reduction)


def made_up_words(n: int, length: int, symbols: int) -> Tensor:
    """A second-order chain in which each pair of characters has two likely followers."""
    g = torch.Generator().manual_seed(9)
    follow = torch.randint(symbols, (symbols, symbols, 2), generator=g)
    x = torch.randint(symbols, (n, length), generator=g)
    for t in range(2, length):
        pick = (torch.rand(n, generator=g) < 0.25).long()
        x[:, t] = follow[x[:, t - 2], x[:, t - 1], pick]
    return x


def speller(reduction: str = "mean", lr: float = 1.0) -> Training:
    """Made-up words; the loss is a mean or a sum over characters."""
    torch.manual_seed(33)
    net = Speller(8, 40)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.5)
    batch = sampler(48, made_up_words(800, 18, 8))
    loss = partial(next_character, reduction)
    return Training(net, batch, loss, optimizer, steps=250)


class Twin(nn.Module):
    """Embeds rows."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleDict(
            {"in": nn.Linear(20, 64), "mid": nn.Linear(64, 64), "out": nn.Linear(64, 16)}
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.layers["in"](x))
        h = F.gelu(self.layers["mid"](h))
        return self.layers["out"](h)


def contrast(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """Each view's partner among all of the batch."""
    logits = model(a) @ model(b).T
    return F.cross_entropy(logits, torch.arange(len(a)))


def contrastive(lr: float = 1e-3) -> Training:
    """Two noisy views of the same hidden state."""
    torch.manual_seed(34)
    g = torch.Generator().manual_seed(4)
    z = torch.randn(1000, 5, generator=g)
    mix = torch.randn(2, 5, 20, generator=g)
    a, b = (torch.tanh(z @ m) + 0.1 * torch.randn(1000, 20, generator=g) for m in mix)
    net = Twin()
    optimizer = torch.optim.RMSprop(net.parameters(), lr=lr)
    return Training(net, sampler(64, a, b), contrast, optimizer, steps=250)


LEAPS = Fault(
    "ind7-update-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant(
            "warm-up-not-divided",
            healthy=warm_cnn,
            broken=partial(warm_cnn, factor=times_step),
            may=["vanishing-gradient"],
        ),
        Variant(
            "adam-at-three-tenths",
            healthy=tagger,
            broken=partial(tagger, lr=0.3),
            # Half of the feed-forward layers' units end far below zero, where GELU is flat.
            may=["peaked-softmax", "dead-units"],
        ),
        Variant(
            "sum-in-place-of-mean",
            healthy=speller,
            broken=partial(speller, reduction="sum"),
            # Thrown so far that the recurrence's gates are shut and get no gradient any more.
            may=["vanishing-gradient", "saturated-activation", "no-update"],
        ),
        Variant(
            "rmsprop-at-a-fifth",
            healthy=contrastive,
            broken=partial(contrastive, lr=0.2),
            # A third of its units and more end where GELU is exactly 0; the logits multiply.
            may=["dead-units", "exploding-gradient"],
        ),
    ],
)


# --- weights that don't move ---------------------------------------------------------------------


def settles(make: Make, limit: float) -> Symptom:
    """In the run's second half no matrix moves by more than that, though the loss is high."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        evidence = learns_less(0.1)(run, twin)
        found = late_movement(make)
        return {**evidence, "is": evidence["is"] and found <= limit, "late": found}

    return symptom


class LastState(nn.Module):
    """An LSTM's last state, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.out(states[:, -1])


def decaying(every: int = 150) -> Training:
    """Waves by an LSTM; the rate is halved every so many steps."""
    torch.manual_seed(41)
    net = LastState()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=every, gamma=0.5)
    batch = sampler(48, *waves(600, 24, 6))
    return Training(net, batch, cross_entropy, optimizer, steps=300, schedule=schedule)


class Mixer(nn.Module):
    """Mixes patches, then channels, twice."""

    def __init__(self, patches: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(4, width)
        self.across = nn.ModuleList([nn.Linear(patches, patches) for _ in range(2)])
        self.within = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(F.unfold(x, 2, stride=2).mT)
        for i in range(2):
            h = h + F.gelu(self.across[i](self.norms[2 * i](h).mT)).mT
            h = h + F.gelu(self.within[i](self.norms[2 * i + 1](h)))
        return self.head(h.mean(1))


def ramp(length: int, step: int) -> float:
    """Up to 1 over the given steps."""
    return min(1.0, (step + 1) / length)


def whole_ramp(length: int, step: int) -> float:
    """The same, with the division that drops the rest."""
    return float(min(1, (step + 1) // length))


def mixer(length: int = 60, warm: Callable[[int, int], float] = ramp) -> Training:
    """Digits by an MLP-mixer, with a warm-up of some length."""
    torch.manual_seed(42)
    net = Mixer(16, 32)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(warm, length))
    batch = sampler(64, *digit_images())
    return Training(net, batch, cross_entropy, optimizer, steps=250, schedule=schedule)


class LittleUNet(nn.Module):
    """Down once and up again, with a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Conv2d(1, 12, 3, padding=1)
        self.down = nn.Conv2d(12, 24, 3, stride=2, padding=1)
        self.low = nn.Conv2d(24, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        top = F.elu(self.top(x))
        low = F.elu(self.low(F.elu(self.down(top))))
        return self.out(torch.cat([top, F.elu(self.up(low))], 1))


def denoiser(clip: float = 1.0) -> Training:
    """Cleans digits of noise, its gradient clipped to a norm."""
    torch.manual_seed(43)
    x, _ = digit_images()
    noisy = x + 0.7 * torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    net = LittleUNet()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return Training(net, sampler(32, noisy, x), squared_error, optimizer, steps=200, clip=clip)


class Pooled(nn.Module):
    """A set's elements, weighed by attention, and a regression from their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.lift = nn.Linear(3, 48)
        self.weigh = nn.Linear(48, 1)
        self.read = nn.Sequential(nn.Linear(48, 48), nn.Softplus(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.lift(x))
        share = torch.softmax(self.weigh(h), dim=1)
        return {"value": self.read((share * h).sum(1)).squeeze(-1), "share": share}


def set_error(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Squared error of the value."""
    return (model(x)["value"] - y).square().mean()


def clear_then_step(training: Training, step: int) -> dict[str, Any]:
    """Computes gradients, and drops them before they are used."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.item()}


def pooled_sets() -> Training:
    """The mean of the second column over elements whose first is positive."""
    torch.manual_seed(44)
    g = torch.Generator().manual_seed(6)
    x = torch.randn(2000, 8, 3, generator=g)
    chosen = torch.sigmoid(4 * x[..., 0])
    y = 2 * (chosen * x[..., 1]).sum(1) / chosen.sum(1)
    net = Pooled()
    for i in (0, 2):
        nn.init.normal_(net.read[i].weight, std=0.3)  # type: ignore[arg-type]
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    return Training(net, sampler(64, x, y), set_error, optimizer, steps=250)


def drop_gradients(training: Training) -> None:
    """Zero between backward and step."""
    training.step = clear_then_step


class Wide(nn.Module):
    """A residual MLP with norms."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 96)
        self.mids = nn.ModuleList([nn.Linear(96, 96) for _ in range(3)])
        self.norms = nn.ModuleList([nn.LayerNorm(96) for _ in range(3)])
        self.out = nn.Linear(96, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.to(self.enter.weight.dtype))
        for mid, norm in zip(self.mids, self.norms, strict=True):
            h = h + F.mish(mid(norm(h)))
        return self.out(h).float()


def short_weights(dtype: torch.dtype = torch.float32) -> Training:
    """Digits at a small rate, the weights themselves held in a precision."""
    torch.manual_seed(45)
    net = Wide()
    with torch.no_grad():
        for name, p in net.named_parameters():
            if name.endswith("weight") and p.ndim > 1:
                p.copy_(0.12 * torch.where(p > 0, 1.0, -1.0) + 0.2 * p)
    net.to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-5, momentum=0.9)
    return Training(net, sampler(128, *digits()), cross_entropy, optimizer, steps=300)


STILL = Fault(
    "ind7-no-update",
    must=[["no-update"]],
    variants=[
        Variant(
            "rate-halved-every-step",
            healthy=decaying,
            broken=partial(decaying, every=1),
            # As in every fresh LSTM of this length, the first steps matter little.
            may=["vanishing-gradient"],
            symptom=settles(partial(decaying, every=1), 1e-6),
        ),
        Variant(
            "warm-up-rounded-down",
            healthy=mixer,
            broken=partial(mixer, length=4000, warm=whole_ramp),
            symptom=unmoved(1e-7),
        ),
        Variant(
            "clipped-to-almost-nothing",
            healthy=denoiser,
            broken=partial(denoiser, clip=1e-8),
            symptom=unmoved(1e-5),
        ),
        Variant(
            "cleared-before-the-step",
            healthy=pooled_sets,
            change=drop_gradients,
            symptom=unmoved(1e-7),
        ),
        Variant(
            "steps-below-the-rounding-of-weights",
            healthy=short_weights,
            broken=partial(short_weights, dtype=torch.bfloat16),
            symptom=settles(partial(short_weights, dtype=torch.bfloat16), 1e-3),
        ),
    ],
)


# --- gradients that float16 cannot hold ----------------------------------------------------------


def lost(make: Make, share: float) -> Symptom:
    """As `underflows`, with the float32 gradient computed here."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        return underflows(share)(observe(make, half=True), twin)

    return symptom


class Field(nn.Module):
    """Displacements from loads on a grid, in a given unit."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.a = nn.Conv2d(1, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 16, 3, padding=1)
        self.d = nn.Conv2d(16, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.a(x))
        h = h + F.gelu(self.b(h))
        h = h + F.gelu(self.c(h))
        return self.unit * self.d(h)


def field_error(half: bool, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean over the grid, the forward pass in float16 if asked for."""
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        out = model(x)
    return F.mse_loss(out.float(), y)


def displacements(half: bool = False) -> Training:
    """Fields of some millimetres, in metres."""
    torch.manual_seed(51)
    g = torch.Generator().manual_seed(7)
    x = torch.randn(300, 1, 12, 12, generator=g)
    y = 0.004 * torch.sin(6 * F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 3, 1))
    net = Field(0.004)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, eps=1e-15)
    return Training(net, sampler(24, x, y), partial(field_error, half), optimizer, steps=150)


class Causal(nn.Module):
    """A decoder of two layers with attention written out."""

    def __init__(self, symbols: int, width: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, width)
        self.place = nn.Embedding(length, width)
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(2)])
        self.ff = nn.ModuleList([nn.Linear(width, width) for _ in range(2)])
        self.norm = nn.ModuleList([nn.LayerNorm(width) for _ in range(4)])
        self.out = nn.Linear(width, symbols)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        h = self.embed(x) + self.place(torch.arange(n))
        mask = torch.ones(n, n, dtype=torch.bool).triu(1)
        for i in range(2):
            q, k, v = self.qkv[i](self.norm[2 * i](h)).chunk(3, dim=-1)
            logits = (q @ k.mT / math.sqrt(q.shape[-1])).masked_fill(mask, -1e4)
            h = h + torch.softmax(logits, -1) @ v
            h = h + F.gelu(self.ff[i](self.norm[2 * i + 1](h)))
        return self.out(h)


def weighted_characters(half: bool, tokens: int, model: nn.Module, x: Tensor) -> Tensor:
    """The sum over characters, divided by a number of tokens; in float16 if asked for."""
    with torch.autocast("cpu", dtype=torch.float16, enabled=half):
        logits = model(x[:, :-1])
    total = F.cross_entropy(logits.float().flatten(0, 1), x[:, 1:].flatten(), reduction="sum")
    return total / tokens


def decoder(half: bool = False) -> Training:
    """Made-up words; the loss is divided by the tokens of the whole corpus."""
    torch.manual_seed(52)
    net = Causal(8, 32, 14)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3, eps=1e-15)
    loss = partial(weighted_characters, half, 100_000_000)
    return Training(net, sampler(32, made_up_words(800, 14, 8)), loss, optimizer, steps=200)


class Sequenced(nn.Module):
    """A recurrence written out over a stack of readings."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(1, 32)
        self.again = nn.Linear(32, 32)
        self.read = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.enter(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.enter(x[:, t]) + self.again(h))
        return self.read(h)


def small_share(weight: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy with the weight of a side task."""
    logits = model(x.to(next(model.parameters()).dtype))
    return weight * F.cross_entropy(logits.float(), y)


def half_recurrence(dtype: torch.dtype = torch.float32, weight: float = 1.2e-5) -> Training:
    """Waves by a recurrence; the loss has a small weight that the learning rate makes up for."""
    torch.manual_seed(53)
    net = Sequenced()
    net.to(dtype)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1 / weight, momentum=0.5)
    loss = partial(small_share, weight)
    return Training(net, sampler(64, *waves(600, 16, 6)), loss, optimizer, steps=200)


FLUSHED = Fault(
    "ind7-underflow",
    must=[["underflow"]],
    variants=[
        Variant(
            "metres-under-autocast",
            healthy=displacements,
            broken=partial(displacements, half=True),
            may=["vanishing-gradient", "no-update"],  # what is left moves the last bias alone
            symptom=lost(partial(displacements, half=True), 0.4),
        ),
        Variant(
            "divided-by-the-whole-corpus",
            healthy=decoder,
            broken=partial(decoder, half=True),
            may=["no-update", "vanishing-gradient"],  # nothing at all is left of the gradient
            symptom=lost(partial(decoder, half=True), 0.4),
        ),
        Variant(
            "half-model-with-small-loss",
            healthy=half_recurrence,
            broken=partial(half_recurrence, dtype=torch.float16),
            may=["vanishing-gradient"],  # what comes from far back is exactly 0
            symptom=lost(partial(half_recurrence, dtype=torch.float16), 0.4),
        ),
    ],
)


# --- data in raw units ---------------------------------------------------------------------------


def table_mlp(raw: bool = False) -> Training:
    """A table by an MLP, its columns standardised or in the units they were kept in."""
    torch.manual_seed(61)
    x, y = table(2000, 8, 3)
    if raw:
        unit = torch.tensor([1.0, 12.0, 1500.0, 3.0e4, 0.02, 250.0, 1.0, 8.0e4])
        x = x * unit + torch.tensor([0.0, 40.0, 5000.0, 9.0e4, 0.1, 2000.0, 5.0, 3.0e5])
    net = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    return Training(net, sampler(64, x, y[:, None]), squared_error, optimizer, steps=300)


class TanhCNN(nn.Module):
    """An old-fashioned CNN: tanh and mean pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1)
        self.c2 = nn.Conv2d(8, 16, 3, padding=1)
        self.out = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool2d(torch.tanh(self.c1(x)), 2)
        return self.out(F.avg_pool2d(torch.tanh(self.c2(x)), 2).flatten(1))


def bytes_cnn(raw: bool = False) -> Training:
    """Digits by a tanh CNN, standardised or as sixteen-bit grey values."""
    torch.manual_seed(62)
    x, y = digit_images()
    if raw:
        x = digits()[0].view(-1, 1, 8, 8) * 65535
    net = TanhCNN()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    return Training(net, sampler(64, x, y), cross_entropy, optimizer, steps=250)


class Events(nn.Module):
    """A GRU over time stamps and sizes of events."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 2)

    def forward(self, x: Tensor) -> Tensor:
        _, h = self.rnn(x)
        return self.out(h[-1])


def events(raw: bool = False) -> Training:
    """Do events come faster at the end? Times are seconds since 1970, or from the first, in s."""
    torch.manual_seed(63)
    g = torch.Generator().manual_seed(8)
    gaps = torch.rand(1500, 16, generator=g).double() + 0.5
    y = torch.randint(2, (1500,), generator=g)
    gaps[:, 8:] *= torch.where(y == 1, 0.6, 1.4)[:, None]
    at = gaps.cumsum(1)
    sizes = torch.randn(1500, 16, generator=g)
    if raw:
        start = 1.6e9 + 3.0e7 * torch.rand(1500, 1, generator=g).double()
        first = (start + at * 3600).float()
    else:
        first = ((gaps - 1) / 0.4).float()
    net = Events()
    optimizer = torch.optim.Adam(net.parameters(), lr=4e-3)
    x = torch.stack([first, sizes], -1)
    return Training(net, sampler(64, x, y), cross_entropy, optimizer, steps=250)


class Sensors(nn.Module):
    """A post-norm transformer over sensors' readings."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(4, 32)
        self.place = nn.Parameter(0.2 * torch.randn(10, 32))
        self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.ff = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x) + self.place
        h = self.norm1(h + self.attend(h, h, h, need_weights=False)[0])
        h = self.norm2(h + self.ff(h))
        return self.out(h.mean(1))


def sensors(raw: bool = False) -> Training:
    """How fast readings drift; standardised, or in counts of a converter around 30 000."""
    torch.manual_seed(64)
    g = torch.Generator().manual_seed(9)
    slope = torch.randn(1500, 1, generator=g)
    t = torch.linspace(-1.5, 1.5, 10)
    signal = (slope * t)[..., None] * torch.tensor([1.0, -1.0, 0.5, 0.0])
    x = signal + 0.3 * torch.randn(1500, 10, 4, generator=g)
    if raw:
        x = 30_000 + 40 * x
    net = Sensors()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    return Training(net, sampler(48, x, slope), squared_error, optimizer, steps=200)


class Society(nn.Module):
    """A graph network: each person's mean of friends, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(a, 32) for a in (4, 32)])
        self.near = nn.ModuleList([nn.Linear(a, 32, bias=False) for a in (4, 32)])
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        for own, near in zip(self.own, self.near, strict=True):
            x = F.softplus(own(x) + near(a @ x))
        return self.out(x)


def of_people(model: nn.Module, x: Tensor, a: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Squared error for some."""
    return F.mse_loss(model(x, a)[rows], y[rows])


def society(raw: bool = False) -> Training:
    """A score from own and friends' data; yearly incomes in cents, if raw, beside ages."""
    torch.manual_seed(65)
    g = torch.Generator().manual_seed(10)
    n = 300
    a = (torch.rand(n, n, generator=g) < 0.02).float() + torch.eye(n)
    a = a / a.sum(1, keepdim=True)
    x = torch.randn(n, 4, generator=g)
    y = torch.sin(2 * x[:, :1]) + x[:, 1:2] * (a @ x)[:, 2:3] + (a @ x)[:, :1]
    y = (y - y.mean()) / y.std()
    if raw:
        x = x * torch.tensor([12.0, 1.0, 1.2e6, 3.0]) + torch.tensor([45.0, 2.0, 4.5e6, 10.0])

    def batch(step: int) -> tuple[Tensor, ...]:
        order = torch.randperm(n, generator=torch.Generator().manual_seed(step))
        return x, a, y, order[:100]

    net = Society()
    optimizer = torch.optim.Adam(net.parameters(), lr=5e-3)
    return Training(net, batch, of_people, optimizer, steps=250)


RAW = Fault(
    "ind7-unscaled-input",
    must=[["unscaled-input"]],
    symptom=learns_less(0.15),
    variants=[
        Variant(
            "columns-in-their-units",
            healthy=table_mlp,
            broken=partial(table_mlp, raw=True),
            # Norms of 1e9 at the start; units far below zero for all rows.
            may=["dead-units", "exploding-gradient"],
        ),
        Variant(
            "sixteen-bit-grey-values",
            healthy=bytes_cnn,
            broken=partial(bytes_cnn, raw=True),
            may=["saturated-activation"],
            symptom=learns_less(0.1),
        ),
        Variant(
            "seconds-since-1970",
            healthy=events,
            broken=partial(events, raw=True),
            # Every gate is at its end after the first event.
            may=["saturated-activation", "vanishing-gradient", "no-update"],
        ),
        Variant(
            "converter-counts-not-centred",
            healthy=sensors,
            broken=partial(sensors, raw=True),
            # Logits are products of two offsets of 30 000.
            may=["vanishing-gradient", "peaked-softmax"],
        ),
        Variant(
            "incomes-in-cents",
            healthy=society,
            broken=partial(society, raw=True),
            # Norms of 1e11 at the start; units far below zero for all people.
            may=["dead-units", "exploding-gradient", "vanishing-gradient"],
        ),
    ],
)

FAULTS = [LEAPS, STILL, FLUSHED, RAW]
