"""Optimizer steps that are far too large, that don't happen, or that meet NaN and infinity."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_third_depth import (
    classify,
    curve,
    digits,
    drawn,
    flat_digits,
    grammar,
    he,
    image_digits,
    rebuild,
    recall_first,
    regress,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import not_finite, overshoots, unmoved
from analyses.faults.training import Batch, Training, ordinary

# Steps that are too large.


class Mixer(nn.Module):
    """One mixer block over eight rows of eight pixels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.rows = nn.Sequential(nn.Linear(8, 24), nn.LeakyReLU(0.1), nn.Linear(24, 8))
        self.features = nn.Sequential(nn.Linear(width, 64), nn.LeakyReLU(0.1), nn.Linear(64, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.rows(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.features(self.norms[1](x))


def mixer(lr: float) -> Training:
    """Adam at a hundred times its usual rate."""
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Unflatten(1, (8, 8)),
        nn.Linear(8, 32),
        Mixer(32),
        Mixer(32),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, flat_digits(), classify, optimizer, steps=150)


def warmed_up(fraction: bool) -> Training:
    """A warm-up that multiplies the rate by the number of the step, not by its share."""
    torch.manual_seed(52)
    layers: list[nn.Module] = []
    for a, b in ((1, 16), (16, 16), (16, 32)):
        layers += [nn.Conv2d(a, b, 3, padding=1), nn.LeakyReLU(0.2)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
    he(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def factor(step: int) -> float:
        return min(1.0, (step + 1) / 40) if fraction else step + 1.0

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return Training(model, image_digits(48), classify, optimizer, steps=150, schedule=schedule)


class Widened(nn.Module):
    """x + f(norm(x)) with leaky units."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.f = nn.Sequential(
            nn.Linear(width, 2 * width), nn.LeakyReLU(0.2), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.f(self.norm(x))


def summed_loss(summed: bool) -> Training:
    """The loss is summed over the batch of 64 at a learning rate chosen for the mean."""
    torch.manual_seed(53)
    model = nn.Sequential(
        nn.Linear(64, 40), *[Widened(40) for _ in range(3)], nn.LayerNorm(40), nn.Linear(40, 10)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, reduction="sum" if summed else "mean")

    optimizer = torch.optim.SGD(model.parameters(), lr=0.008, momentum=0.9)
    return Training(model, flat_digits(64), loss, optimizer, steps=150)


class Grams(nn.Module):
    """The next symbol from the embeddings of the last three."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, width)
        self.join = nn.Conv1d(width, 64, 3)
        self.read = nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        z = F.pad(self.tokens(x).transpose(1, 2), (2, 0))
        return self.read(F.leaky_relu(self.join(z).transpose(1, 2), 0.1))


def text_cycles(top: float) -> Training:
    """The top of the rate's cycles is set for another optimizer."""
    torch.manual_seed(54)
    model = Grams(24)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=5e-4, max_lr=top, step_size_up=110, cycle_momentum=False
    )
    return Training(model, grammar(24, 24), classify, optimizer, steps=150, schedule=schedule)


def adagrad_autoencoder(lr: float) -> Training:
    """Adagrad with the rate of a quadratic toy problem."""
    torch.manual_seed(55)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 12), nn.Linear(12, 48), nn.ELU(),
        nn.Linear(48, 64),
    )  # fmt: skip
    optimizer = torch.optim.Adagrad(model.parameters(), lr=lr)
    return Training(model, flat_digits(), rebuild, optimizer, steps=150)


TOO_LARGE = Fault(
    "ind3-steps-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        Variant("mixer-adam", partial(mixer, 2e-3), broken=partial(mixer, 0.2)),
        Variant(
            "warm-up-factor",
            partial(warmed_up, True),
            broken=partial(warmed_up, False),
            may=["exploding-gradient"],  # late in the run, by two decades over four layers
        ),
        Variant("summed-loss", partial(summed_loss, False), broken=partial(summed_loss, True)),
        Variant(
            "text-cycles",
            partial(text_cycles, 6e-3),
            broken=partial(text_cycles, 1.0),
            may=["exploding-gradient"],  # at the top, a hundredfold over three layers
        ),
        Variant(
            "autoencoder-adagrad",
            partial(adagrad_autoencoder, 0.012),
            broken=partial(adagrad_autoencoder, 1.0),
            may=["exploding-gradient"],  # weights ten times as large, measured
        ),
    ],
)

# Steps that don't happen.


def still_after(make: Callable[[], Training], share: float, limit: float) -> Symptom:
    """From that share of the run on no matrix moves by more than `limit` of its norm."""

    def movement(make: Callable[[], Training]) -> float:
        torch.manual_seed(0)
        training = make()
        before: dict[str, Tensor] = {}
        for step in range(training.steps):
            if step == round(share * training.steps):
                before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
            training.step(training, step)
        return max(
            float((p.detach() - before[n]).norm() / before[n].norm())
            for n, p in training.model.named_parameters()
            if p.ndim > 1
        )

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = movement(make)
        evidence: dict[str, Any] = {"moved": found, "loss": run.loss_last}
        worse = twin is not None and run.loss_last > twin.loss_last + 0.1 * twin.loss_first
        return {"is": found <= limit and worse, **evidence}

    return symptom


class Points(nn.Module):
    """Which of four shapes a cloud of points was drawn from."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU())
        self.all = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).amax(1))


def shapes(step: int) -> Batch:
    """Circle, cross, square's edge, blob: 24 points each."""
    g = torch.Generator().manual_seed(17000 + step)
    y = torch.randint(4, (32,), generator=g)
    t = torch.rand(32, 24, generator=g) * 2 * torch.pi
    a = torch.rand(32, 24, generator=g) * 2 - 1
    side = torch.rand(32, 24, generator=g) < 0.5
    sign = (torch.rand(32, 24, generator=g) < 0.5).float() * 2 - 1
    circle = torch.stack([t.cos(), t.sin()], -1)
    cross = torch.stack([torch.where(side, a, 0.0), torch.where(side, 0.0, a)], -1)
    edge = torch.stack([torch.where(side, a, sign), torch.where(side, sign, a)], -1)
    blob = torch.randn(32, 24, 2, generator=g)
    x = torch.stack([circle, cross, edge, blob], 1)[torch.arange(32), y]
    return x + 0.05 * torch.randn(32, 24, 2, generator=g), y


def cloud(lr: float) -> Training:
    """A learning rate that lost its sense on the way through a configuration file."""
    torch.manual_seed(61)
    model = Points()
    he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Training(model, shapes, classify, optimizer, steps=200)


def epoch_schedule(period: int) -> Training:
    """A decay meant for epochs is stepped at every batch: the rate is halved each time."""
    torch.manual_seed(62)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 24, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(216, 10),
    )  # fmt: skip
    he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, period, gamma=0.5)
    return Training(model, image_digits(32), classify, optimizer, steps=200, schedule=schedule)


class Attends(nn.Module):
    """A small causal language model of two pre-norm layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, width)
        self.places = nn.Embedding(32, width)
        self.layers = nn.ModuleList(
            [
                nn.TransformerEncoderLayer(
                    width, 2, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
                )
                for _ in range(2)
            ]
        )
        self.read = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        z = self.tokens(x) + self.places(torch.arange(n))
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        for layer in self.layers:
            z = layer(z, src_mask=mask, is_causal=True)
        return self.read(z)


def floor_division(floor: bool) -> Training:
    """A warm-up over many steps, computed with // so that its factor is 0 until it ends."""
    torch.manual_seed(63)
    model = Attends(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)

    def factor(step: int) -> float:
        return (step + 1) // 1000 if floor else min(1.0, (step + 1) / 30)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return Training(model, grammar(16, 16), classify, optimizer, steps=150, schedule=schedule)


class Reader(nn.Module):
    """A fused GRU over a sequence; the mean of its states is read."""

    def __init__(self, inputs: int, width: int, classes: int) -> None:
        super().__init__()
        self.gru = nn.GRU(inputs, width, batch_first=True)
        self.read = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.gru(x)[0].mean(1))


def guarded(limit: float) -> Training:
    """Steps with a "suspicious" gradient norm are skipped; the limit lets none through."""
    torch.manual_seed(64)
    model = Reader(6, 32, 6)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)

    def step(training: Training, number: int) -> dict[str, Any]:
        loss = training.loss_at(number)
        loss.backward()
        norm = nn.utils.get_total_norm(
            [p.grad for p in training.model.parameters() if p.grad is not None]
        )
        if float(norm) < limit:
            training.optimizer.step()
        training.optimizer.zero_grad()
        return {"loss": loss.detach()}

    return Training(model, recall_first(5, 6), classify, optimizer, steps=200, step=step)


def zeroed_too_soon(training: Training, number: int) -> dict[str, Any]:
    """The gradient is cleared between backward and step."""
    loss = training.loss_at(number)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


def smooth(early: bool) -> Training:
    """Regression with a loop whose lines are in the wrong order."""
    torch.manual_seed(65)
    model = nn.Sequential(
        nn.Linear(8, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1)
    )
    he(model)
    optimizer = torch.optim.NAdam(model.parameters(), lr=4e-3)
    step = zeroed_too_soon if early else ordinary
    return Training(model, curve(64), regress, optimizer, steps=250, step=step)


class HandWritten(torch.optim.Optimizer):
    """Gradient descent; with `rebinds` it computes new weights and drops them."""

    def __init__(self, params: Any, lr: float, rebinds: bool) -> None:
        super().__init__(params, {"lr": lr})
        self.rebinds = rebinds

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if self.rebinds:
                    p = p - group["lr"] * p.grad
                else:
                    p -= group["lr"] * p.grad


def hand_written(rebinds: bool) -> Training:
    """An optimizer of one's own that binds the new weights to a local name."""
    torch.manual_seed(66)
    model = nn.Sequential(
        nn.Linear(64, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 24), nn.LayerNorm(24),
        nn.Tanh(), nn.Linear(24, 40), nn.LayerNorm(40), nn.Tanh(), nn.Linear(40, 64),
    )  # fmt: skip
    optimizer = HandWritten(model.parameters(), 0.4, rebinds)
    return Training(model, flat_digits(), rebuild, optimizer, steps=200)


def clipped(limit: float) -> Training:
    """The gradient is clipped to a norm that belongs to an epsilon."""
    torch.manual_seed(67)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 64))]
    for a, b in ((1, 12), (12, 16), (16, 24)):
        layers += [nn.Conv1d(a, b, 5, stride=2, padding=2), nn.BatchNorm1d(b), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(192, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Training(model, flat_digits(32), classify, optimizer, steps=200, clip=limit)


NO_UPDATE = Fault(
    "ind3-steps-none",
    must=[["no-update"]],
    symptom=unmoved(1e-5),
    variants=[
        Variant("cloud-lr", partial(cloud, 0.012), broken=partial(cloud, 1e-9)),
        Variant(
            "schedule-per-batch",
            partial(epoch_schedule, 80),
            broken=partial(epoch_schedule, 1),
            symptom=still_after(partial(epoch_schedule, 1), 0.25, 1e-4),
        ),
        Variant(
            "floor-division", partial(floor_division, False), broken=partial(floor_division, True)
        ),
        Variant("guarded", partial(guarded, 100.0), broken=partial(guarded, 1e-3)),
        Variant("zeroed-too-soon", partial(smooth, False), broken=partial(smooth, True)),
        Variant("rebound", partial(hand_written, False), broken=partial(hand_written, True)),
        Variant("clipped-away", partial(clipped, 1.0), broken=partial(clipped, 1e-8)),
    ],
)

# Numbers that are not finite.


class Masked(nn.Module):
    """Mean of the embeddings of a sentence without its padding."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 24)
        self.read = nn.Sequential(nn.Linear(24, 32), nn.ELU(), nn.Linear(32, 3))
        self.safe = safe

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        count = mask.sum(1, keepdim=True)
        if self.safe:
            count = count.clamp(min=1)
        return self.read((self.tokens(x) * mask[..., None]).sum(1) / count)


def sentences(step: int) -> Batch:
    """Which third of the alphabet is the most frequent; one sentence of step 75 is empty."""
    g = torch.Generator().manual_seed(19000 + step)
    y = torch.randint(3, (32,), generator=g)
    x = torch.randint(16, (32, 12), generator=g)
    theirs = y[:, None] * 5 + torch.randint(5, (32, 12), generator=g)
    x = torch.where(torch.rand(32, 12, generator=g) < 0.5, theirs, x)
    lengths = torch.randint(4, 13, (32,), generator=g)
    if step == 75:
        lengths[5] = 0
    return x, (torch.arange(12) < lengths[:, None]).float(), y


def empty_sentence(safe: bool) -> Training:
    """A mean over nothing."""
    torch.manual_seed(71)
    model = Masked(safe)

    def loss(model: nn.Module, x: Tensor, mask: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, mask), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, sentences, loss, optimizer, steps=120)


class Standardised(nn.Module):
    """Features are standardised over the batch, by hand."""

    def __init__(self, biased: bool) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 40), nn.Linear(40, 40)
        self.read = nn.Linear(40, 10)
        self.biased = biased

    def forward(self, x: Tensor) -> Tensor:
        z = self.one(x)
        z = (z - z.mean(0)) / (z.std(0, correction=0 if self.biased else 1) + 1e-3)
        return self.read(F.silu(self.two(F.silu(z))))


def last_batch(biased: bool) -> Training:
    """The last batch of the epoch holds one sample, whose standard deviation is 0/0."""
    torch.manual_seed(72)
    warnings.filterwarnings("ignore", message="std.*degrees of freedom")
    model = Standardised(biased)

    def batch(step: int) -> Batch:
        x, y = digits()
        at = drawn(step, 1 if step % 90 == 89 else 48, len(x))
        return x[at], y[at]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, batch, classify, optimizer, steps=150)


def pairs(step: int) -> Batch:
    """Pairs of digits, half of them of the same class; one pair of step 70 is a picture
    with itself."""
    x, y = digits()
    one = drawn(step, 32, len(x))
    two = drawn(step + 40000, 32, len(x))
    for i in range(0, 32, 2):
        same = (y == y[one[i]]).nonzero().flatten()
        two[i] = same[two[i] % len(same)]
    two = torch.where(two == one, (two + 1) % len(x), two)
    if step == 70:
        two[4] = one[4]
    return x[one], x[two], (y[one] == y[two]).float()


def siamese(safe: bool) -> Training:
    """The distance's root has an infinite slope where both pictures are the same."""
    torch.manual_seed(73)
    model = nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 16))

    def loss(model: nn.Module, one: Tensor, two: Tensor, same: Tensor) -> Tensor:
        squared = (model(one) - model(two)).square().sum(1)
        distance = (squared + (1e-6 if safe else 0.0)).sqrt()
        apart = (2.0 - distance).clamp(min=0).square()
        return (same * distance + (1 - same) * apart).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, pairs, loss, optimizer, steps=120)


class Retrieval(nn.Module):
    """Attention of a question over the facts that a mask leaves."""

    def __init__(self, hidden: float) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(8, 24), nn.Linear(8, 24), nn.Linear(5, 24)
        self.read = nn.Linear(24, 5)
        self.hidden = hidden

    def forward(self, question: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        scores = torch.einsum("bd,bnd->bn", self.q(question), self.k(keys)) / 24**0.5
        weights = scores.masked_fill(mask == 0, self.hidden).softmax(-1)
        return self.read(torch.einsum("bn,bnd->bd", weights, self.v(values)))


def facts(step: int) -> Batch:
    """Six facts of which some are hidden, never the one asked for; at step 90 all of one."""
    g = torch.Generator().manual_seed(21000 + step)
    keys = torch.randn(48, 6, 8, generator=g)
    classes = torch.randint(5, (48, 6), generator=g)
    at = torch.randint(6, (48,), generator=g)
    mask = (torch.rand(48, 6, generator=g) < 0.7).float()
    rows = torch.arange(48)
    mask[rows, at] = 1.0
    if step == 90:
        mask[9] = 0.0
    values = F.one_hot(classes, 5).float()
    return keys[rows, at], keys, values, mask, classes[rows, at]


def all_hidden(hidden: float) -> Training:
    """A softmax over nothing but −∞."""
    torch.manual_seed(74)
    model = Retrieval(hidden)

    def loss(model: nn.Module, *given: Tensor) -> Tensor:
        return F.cross_entropy(model(*given[:-1]), given[-1])

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, facts, loss, optimizer, steps=150)


class Pooled(nn.Module):
    """Convolutions and a generalised mean over the picture, (mean |x|³)^⅓."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(1, 16, 3, stride=2, padding=1, bias=False)
        self.two = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.read = nn.Linear(32, 10)
        self.least = least

    def forward(self, x: Tensor) -> Tensor:
        z = self.two(F.leaky_relu(self.one(x), 0.2))
        if self.least:
            z = z.abs().clamp(min=self.least)
        return self.read(z.abs().pow(3.0).mean((2, 3)).pow(1 / 3))


def pages(step: int) -> Batch:
    """Digits in ink on white paper (0); one page of step 70 is blank."""
    x, y = digits()
    at = drawn(step, 32, len(x))
    ink = (x[at] - x.min()).view(-1, 1, 8, 8)
    if step == 70:
        ink[3] = 0.0
    return ink, y[at]


def blank_page(least: float) -> Training:
    """The root of a mean that is 0."""
    torch.manual_seed(75)
    model = Pooled(least)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, pages, classify, optimizer, steps=120)


class Fades(nn.Module):
    """A recurrence whose memory fades with the time that passed between its inputs."""

    def __init__(self, signed: bool) -> None:
        super().__init__()
        self.cell = nn.GRUCell(1, 24)
        self.rate = nn.Parameter(torch.full((24,), 0.4))
        self.read = nn.Linear(24, 1)
        self.signed = signed

    def forward(self, x: Tensor, gap: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 24)
        for t in range(x.shape[1]):
            power = self.rate * gap[:, t, None]
            if self.signed:
                power = -F.softplus(self.rate) * gap[:, t, None]
            h = self.cell(x[:, t, None], h * torch.exp(power))
        return self.read(h)


def visits(step: int) -> Batch:
    """Measurements at uneven times; between two of step 70 lie years."""
    g = torch.Generator().manual_seed(23000 + step)
    x = torch.randn(32, 8, generator=g)
    gap = torch.rand(32, 8, generator=g) * 0.3
    left = gap.flip(1).cumsum(1).flip(1) - gap  # time from each to the end
    if step == 70:
        gap[7, 4] = 400.0
    return x, gap, (x * torch.exp(-left)).sum(1, keepdim=True)


def long_gap(signed: bool) -> Training:
    """exp(rate · gap) without the minus: a long gap overflows."""
    torch.manual_seed(76)
    model = Fades(signed)

    def loss(model: nn.Module, x: Tensor, gap: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, gap), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, visits, loss, optimizer, steps=120)


NON_FINITE = Fault(
    "ind3-steps-non-finite",
    must=[["non-finite"]],
    symptom=not_finite(),
    variants=[
        Variant(
            "empty-sentence",
            partial(empty_sentence, True),
            broken=partial(empty_sentence, False),
            operation=["div"],
        ),
        Variant(
            "batch-of-one",
            partial(last_batch, True),
            broken=partial(last_batch, False),
            operation=["std"],
        ),
        Variant(
            "same-picture",
            partial(siamese, True),
            broken=partial(siamese, False),
            operation=["sqrt"],
        ),
        Variant(
            "all-hidden",
            partial(all_hidden, -1e4),
            broken=partial(all_hidden, float("-inf")),
            operation=["softmax", "_softmax"],
        ),
        Variant(
            "blank-page",
            partial(blank_page, 1e-3),
            broken=partial(blank_page, 0.0),
            operation=["pow"],
        ),
        Variant(
            "long-gap",
            partial(long_gap, True),
            broken=partial(long_gap, False),
            operation=["exp"],
        ),
    ],
)

FAULTS = [TOO_LARGE, NO_UPDATE, NON_FINITE]
