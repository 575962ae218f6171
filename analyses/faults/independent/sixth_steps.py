"""Steps of the wrong size: too large, none, lost in float16, or upset by the data's scale."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_sixth_units import (
    Batches,
    dice,
    digits,
    discs,
    graph,
    gratings,
    sentences,
    spirals,
    table,
    waves,
)
from analyses.faults.observe import Observed, observe
from analyses.faults.symptoms import learns_less, overshoots, unmoved
from analyses.faults.training import Batch, Training

Make = Callable[[], Training]


def classify(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of classes."""
    return F.cross_entropy(net(x), y)


def next_word(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each next word."""
    return F.cross_entropy(net(x).transpose(1, 2), y)


def squared(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(net(x), y)


def onward(net: nn.Module, past: Tensor, coming: Tensor) -> Tensor:
    """Mean squared error of the next value, told at every step."""
    return F.mse_loss(net(past), torch.cat([past[:, 1:], coming[:, None]], 1))


# Too large.


class Head(nn.Module):
    """Causal self-attention written out."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        split = (size, length, self.heads, width // self.heads)
        q, k, v = (t.view(split).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        logits = q @ k.transpose(-2, -1) / math.sqrt(width // self.heads)
        later = torch.ones(length, length, dtype=torch.bool).triu(1)
        shares = logits.masked_fill(later, -torch.inf).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).reshape(size, length, width))


class Writer(nn.Module):
    """A small language model."""

    def __init__(self, words: int = 24, width: int = 48, depth: int = 2, length: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Embedding(length, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth + 1))
        self.heads = nn.ModuleList(Head(width, 4) for _ in range(depth))
        self.mix = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(depth)
        )
        self.tell = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        for i, (head, mix) in enumerate(zip(self.heads, self.mix, strict=True)):
            x = x + head(self.norms[2 * i](x))
            x = x + mix(self.norms[2 * i + 1](x))
        return self.tell(self.norms[-1](x))


def writer(lr: float = 2e-3) -> Training:
    """Next words by a small transformer; the rate has lost two zeros."""
    torch.manual_seed(21)
    model = Writer()
    return Training(
        model,
        sentences(16, 16),
        next_word,
        torch.optim.AdamW(model.parameters(), lr=lr),
        steps=150,
    )


class Residual(nn.Module):
    """Convolutions with normalisation and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.two = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm_one = nn.GroupNorm(4, width)
        self.norm_two = nn.GroupNorm(4, width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.silu(self.norm_one(self.one(x)))
        return F.silu(x + self.norm_two(self.two(y)))


def resnet(growth: float = 0.99) -> Training:
    """A residual net; the schedule multiplies the rate by `growth` at every step."""
    torch.manual_seed(22)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        Residual(16),
        Residual(16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(
        model,
        digits(32),
        classify,
        optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, growth),
    )


def columns(reduction: str = "mean") -> Training:
    """A table's last column; the error is averaged over 256 rows, or added up."""
    torch.manual_seed(23)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(net(x), y, reduction=reduction)

    return Training(
        model,
        table(256),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


class Hearer(nn.Module):
    """A GRU that hears waves."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.GRU(1, 32, num_layers=2, batch_first=True)
        self.head = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0])


def hearer(lr: float = 2e-3) -> Training:
    """Waves continued by a GRU with RMSprop."""
    torch.manual_seed(24)
    model = Hearer()
    return Training(
        model,
        waves(32, 20),
        onward,
        torch.optim.RMSprop(model.parameters(), lr=lr),
        steps=200,
    )


class TwoTasks(nn.Module):
    """One trunk that is fine-tuned slowly, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(64, 96), nn.LayerNorm(96), nn.ELU(), nn.Linear(96, 96), nn.ELU()
        )
        self.digit = nn.Linear(96, 10)
        self.odd = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.trunk(x)
        return self.digit(seen), self.odd(seen).squeeze(1)


def two_tasks(trunk: float = 1e-3) -> Training:
    """Digits, and whether they are odd; the trunk's group was given 1 instead of 1e-3."""
    torch.manual_seed(25)
    model = TwoTasks()
    groups = [
        {"params": list(model.trunk.parameters()), "lr": trunk},
        {"params": [*model.digit.parameters(), *model.odd.parameters()], "lr": 2e-3},
    ]

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        digit, odd = net(x)
        told = F.binary_cross_entropy_with_logits(odd, (y % 2).float())
        return F.cross_entropy(digit, y) + 0.5 * told

    return Training(model, digits(64, flat=True), loss, torch.optim.Adam(groups), steps=200)


TOO_LARGE = Fault(
    "ind6-steps-too-large",
    must=[["update-too-large"]],
    symptom=overshoots(),
    variants=[
        # Attention on one word, half of a layer's GELU off, 400 × the gradient at its start.
        Variant(
            "writer-rate",
            healthy=writer,
            broken=partial(writer, lr=0.2),
            may=["peaked-softmax", "dead-units", "exploding-gradient"],
        ),
        # At the end up to 0.4 of a layer's SiLU are off.
        Variant(
            "resnet-growing",
            healthy=resnet,
            broken=partial(resnet, growth=1.05),
            may=["dead-units"],
        ),
        Variant(
            "columns-sum",
            healthy=columns,
            broken=partial(columns, reduction="sum"),
            may=["saturated-activation"],
        ),
        # Three quarters of the gates at their ends; what gets through grows backwards in time.
        Variant(
            "hearer-rate",
            healthy=hearer,
            broken=partial(hearer, lr=0.3),
            may=["saturated-activation", "exploding-gradient"],
        ),
        # Nearly all ELU units of a layer at −1 for all data.
        Variant(
            "trunk-rate",
            healthy=two_tasks,
            broken=partial(two_tasks, trunk=1.0),
            may=["vanishing-gradient", "saturated-activation", "dead-units"],
        ),
    ],
)


# None.


class Cleaner(nn.Module):
    """A small U-Net."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.down = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.middle = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.last = nn.Conv2d(2 * width, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        high = F.leaky_relu(self.first(x), 0.1)
        low = F.leaky_relu(self.down(high), 0.1)
        low = F.leaky_relu(self.middle(low), 0.1)
        return self.last(torch.cat([high, F.leaky_relu(self.up(low), 0.1)], 1))


def cleaner(lr: float = 2e-3) -> Training:
    """Discs found by a U-Net; the rate was written in other units."""
    torch.manual_seed(31)
    model = Cleaner()

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x), mask)

    return Training(
        model, discs(8, 16), loss, torch.optim.Adam(model.parameters(), lr=lr), steps=120
    )


class Reader(nn.Module):
    """A post-norm transformer of PyTorch's layers that classifies patches of a digit."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.1)
        layer = nn.TransformerEncoderLayer(
            width, 2, 64, dropout=0.0, activation="gelu", batch_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.body(self.patch(image.squeeze(1)) + self.place).mean(1))


def reader(warm_up: float = 20.0) -> Training:
    """Digits read by rows; the warm-up is counted in steps, or was meant for 10⁹ samples."""
    torch.manual_seed(32)
    model = Reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    return Training(
        model,
        digits(32),
        classify,
        optimizer,
        steps=150,
        schedule=torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min(1.0, (step + 1) / warm_up)
        ),
    )


class Bag(nn.Module):
    """The last four words, their embeddings side by side, and an MLP."""

    def __init__(self, words: int = 24, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.mlp = nn.Sequential(nn.Linear(4 * width, 64), nn.SiLU(), nn.Linear(64, words))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.mlp(self.words(tokens).flatten(1))


def four_words() -> Batches:
    """Four words and the one that follows."""
    source = sentences(64, 4)

    def batch(step: int) -> Batch:
        words, coming = source(step)
        return words, coming[:, -1]

    return batch


def bag(per_batch: bool = False) -> Training:
    """A model of four words; the rate is cut by ten at each epoch, or at each batch."""
    torch.manual_seed(33)
    model = Bag()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    every = 2 if per_batch else 120
    return Training(
        model,
        four_words(),
        classify,
        optimizer,
        steps=300,
        schedule=torch.optim.lr_scheduler.StepLR(optimizer, every, gamma=0.1 if per_batch else 0.5),
    )


def averaged(written_back: bool = False) -> Training:
    """Spirals, with a running average of the weights, which gets written back at each step."""
    torch.manual_seed(34)
    model = nn.Sequential(
        nn.Linear(2, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 2)
    )
    average = copy.deepcopy(model)
    decay = 0.9999999 if written_back else 0.99

    def step(training: Training, at: int) -> dict[str, Any]:
        loss = training.loss_at(at)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        with torch.no_grad():
            for kept, new in zip(average.parameters(), model.parameters(), strict=True):
                kept.lerp_(new, 1 - decay)
                if written_back:
                    new.copy_(kept)
        return {"loss": loss.item()}

    return Training(
        model,
        spirals(128),
        classify,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=300,
        step=step,
    )


def shared_out(among: int = 1) -> Training:
    """A convolutional net and SGD; the loss, a mean already, is divided by the number of data."""
    torch.manual_seed(35)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.GELU(),
        nn.Conv2d(12, 24, 3, stride=2, padding=1),
        nn.GELU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y) / among

    return Training(
        model,
        digits(64),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=150,
    )


def guarded(limit: float = 50.0) -> Training:
    """A graph's nodes told apart; steps with a gradient above `limit` are left out."""
    torch.manual_seed(36)
    averaging, counts, kinds = graph(120)
    first, second = nn.Linear(30, 32), nn.Linear(32, 3)
    model = nn.ModuleDict({"first": first, "second": second})

    def batch(step: int) -> Batch:
        kept = (torch.rand(counts.shape, generator=dice(36, step)) < 0.8).float()
        return counts * kept, kinds

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        hidden = F.elu(averaging @ first(x))
        return F.nll_loss((averaging @ second(hidden)).log_softmax(-1), y)

    def step(training: Training, at: int) -> dict[str, Any]:
        training.optimizer.zero_grad(set_to_none=True)
        value = training.loss_at(at)
        value.backward()
        norm = nn.utils.clip_grad_norm_(training.model.parameters(), math.inf)
        if norm < limit:
            training.optimizer.step()
        return {"loss": value.detach(), "norm": norm}

    return Training(
        model,
        batch,
        loss,
        torch.optim.Adam(model.parameters(), lr=5e-3),
        steps=150,
        step=step,
    )


class Gated(nn.Module):
    """Causal convolutions, gated and skipped over as in WaveNet."""

    def __init__(self, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.into = nn.Conv1d(1, width, 1)
        self.both = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 2, dilation=2**i) for i in range(depth)
        )
        self.out = nn.Conv1d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x.transpose(1, 2))
        for i, conv in enumerate(self.both):
            value, gate = conv(F.pad(x, (2**i, 0))).chunk(2, 1)
            x = x + torch.tanh(value) * torch.sigmoid(gate)
        return self.out(x).transpose(1, 2)


def clipped(norm: float = 1.0) -> Training:
    """Waves continued by convolutions; the gradient is clipped to `norm`."""
    torch.manual_seed(37)
    model = Gated()
    return Training(
        model,
        waves(32, 16),
        onward,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=250,
        every=10,
        clip=norm,
    )


def stands_still(make: Make, after: float, limit: float) -> Symptom:
    """From that share of the run on, no matrix moves by more than `limit` of its norm."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        training = make()
        before: dict[str, Tensor] = {}
        for step in range(training.steps):
            if step == round(after * training.steps):
                before = {n: p.detach().clone() for n, p in training.model.named_parameters()}
            training.step(training, step)
        moved = max(
            ((p.detach() - before[n]).norm() / before[n].norm()).item()
            for n, p in training.model.named_parameters()
            if p.ndim > 1
        )
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and moved <= limit, "moved": moved}

    return symptom


NONE = Fault(
    "ind6-steps-none",
    must=[["no-update"]],
    symptom=unmoved(1e-4),
    variants=[
        Variant("cleaner-rate", healthy=cleaner, broken=partial(cleaner, lr=2e-9), may=[]),
        Variant("reader-warm-up", healthy=reader, broken=partial(reader, warm_up=1e9), may=[]),
        Variant(
            "bag-per-batch",
            healthy=bag,
            broken=partial(bag, per_batch=True),
            symptom=stands_still(partial(bag, per_batch=True), 0.1, 1e-6),
            may=[],
        ),
        Variant(
            "averaged-back",
            healthy=averaged,
            broken=partial(averaged, written_back=True),
            may=[],
        ),
        Variant(
            "loss-shared-out",
            healthy=shared_out,
            broken=partial(shared_out, among=5_000_000),
            may=[],
        ),
        Variant("guarded-steps", healthy=guarded, broken=partial(guarded, limit=1e-3), may=[]),
        Variant("clipped-away", healthy=clipped, broken=partial(clipped, norm=1e-7), may=[]),
    ],
)


# Lost in float16.


class Segmenter(nn.Module):
    """Convolutions down and up again, without shortcuts."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.SiLU(),
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, width, 3, padding=1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(width, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.down(x))


def segmenter(dtype: torch.dtype = torch.bfloat16, share: float = 8e-4) -> Training:
    """Masks of discs under autocast; the mean over all pixels has a small weight besides."""
    torch.manual_seed(41)
    model = Segmenter()

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            out = net(x)
        return share * F.binary_cross_entropy_with_logits(out.float(), mask)

    return Training(
        model,
        discs(16, 24),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12),
        steps=120,
    )


class Meter(nn.Module):
    """A regressor with shortcuts."""

    def __init__(self, width: int = 64, depth: int = 3) -> None:
        super().__init__()
        self.into = nn.Linear(8, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for layer in self.layers:
            x = x + F.mish(layer(x))
        return self.out(x)


def meter(dtype: torch.dtype = torch.bfloat16) -> Training:
    """A table's last column under autocast; each row counts by one over a large variance."""
    torch.manual_seed(42)
    model = Meter()
    source = table(256)

    def batch(step: int) -> Batch:
        x, y = source(step)
        spread = 1.0 + torch.rand(len(y), 1, generator=dice(42, step))
        return x, y, 1e-5 / spread**2

    def loss(net: nn.Module, x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            told = net(x)
        return (weight * (told.float() - y) ** 2).mean()

    return Training(
        model,
        batch,
        loss,
        torch.optim.Adam(model.parameters(), lr=2e-3, eps=1e-14),
        steps=200,
    )


class Copier(nn.Module):
    """A transformer that reads a text and tells each next word."""

    def __init__(self, words: int = 24, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.tell = nn.Linear(width, words)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.ones(length, length, dtype=torch.bool).triu(1)
        return self.tell(self.body(self.words(tokens), mask=mask))


def copier(dtype: torch.dtype = torch.bfloat16, share: float = 1e-5) -> Training:
    """A language model under autocast, its loss a small part of a sum it is the only term of."""
    torch.manual_seed(43)
    model = Copier()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=dtype):
            told = net(x)
        return share * F.cross_entropy(told.float().flatten(0, 1), y.flatten())

    return Training(
        model,
        sentences(16, 16),
        loss,
        torch.optim.Adam(model.parameters(), lr=3e-3, eps=1e-12),
        steps=120,
    )


class Squeezer(nn.Module):
    """An autoencoder of stripes."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Conv2d(1, width, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Conv2d(width, width, 4, stride=2, padding=1),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(width * 16, 24),
        )
        self.decode = nn.Sequential(nn.Linear(24, 128), nn.Tanh(), nn.Linear(128, 256))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x)).view(-1, 1, 16, 16)


def squeezer(half: bool = False) -> Training:
    """Stripes squeezed and painted again under autocast, with a mean over pixels and samples."""
    torch.manual_seed(44)
    model = Squeezer()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16, enabled=half):
            again = net(x)
        return F.mse_loss(again.float(), y - 0.5) * 1e-3

    return Training(
        model,
        gratings(64, 16),
        loss,
        torch.optim.RMSprop(model.parameters(), lr=1e-3, eps=1e-12),
        steps=120,
    )


def lost(make: Make, share: float) -> Symptom:
    """Of the elements whose gradient isn't 0 in float32 that many are 0; and it learns less."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        found = median(c.lost_in_half for c in observe(make, half=True).checkpoints)
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and found >= share, "lost": found}

    return symptom


def without(name: str, make: Callable[..., Training], change: dict[str, Any], may: list[str]
            ) -> Variant:  # fmt: skip
    """A run in float16 without a scale; its twin has numbers of a wider range.

    All of it that is before the last layer gets a gradient of exactly 0.
    """
    broken = partial(make, **change)
    return Variant(name, healthy=make, broken=broken, symptom=lost(broken, 0.5), may=may)


UNDERFLOW = Fault(
    "ind6-steps-underflow",
    must=[["underflow"]],
    variants=[
        without(
            "segmenter", segmenter, {"dtype": torch.float16}, ["vanishing-gradient", "no-update"]
        ),
        without("meter", meter, {"dtype": torch.float16}, ["vanishing-gradient"]),
        without("copier", copier, {"dtype": torch.float16}, ["vanishing-gradient", "no-update"]),
        without("squeezer", squeezer, {"half": True}, ["vanishing-gradient", "no-update"]),
    ],
)


# Data as it came.

UNITS = torch.tensor([40.0, 5e4, 170.0, 2e3, 1.0, 1e-1, 300.0, 1e5])  # years, euros, …
SPREAD = torch.tensor([12.0, 2e4, 10.0, 1e2, 0.5, 2e-2, 8.0, 8e4])


def customers(raw: bool = False) -> Training:
    """Columns in years, euros and centimetres, from which a score is told."""
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.LeakyReLU(), nn.Linear(64, 64), nn.LeakyReLU(), nn.Linear(64, 1)
    )
    source = table(64)

    def batch(step: int) -> Batch:
        x, y = source(step)
        return (x * SPREAD + UNITS if raw else x), y

    return Training(
        model, batch, squared, torch.optim.Adam(model.parameters(), lr=2e-3), steps=300, every=10
    )


class Thin(nn.Module):
    """Strided convolutions, functional code, no normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = nn.ParameterList(
            nn.Parameter(torch.randn(b, a, 3, 3) * (2 / (9 * a)) ** 0.5)
            for a, b in [(1, 16), (16, 32), (32, 32)]
        )
        self.last = nn.Linear(32 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        for i, kernel in enumerate(self.kernels):
            x = torch.relu(F.conv2d(x, kernel, stride=2 if i else 1, padding=1))
        return self.last(x.flatten(1))


def photographs(raw: bool = False) -> Training:
    """Pictures as bytes from 0 to 255, or standardised."""
    torch.manual_seed(52)
    model = Thin()
    source = digits(32, scale=255 / 16, centre=False) if raw else digits(32)
    return Training(
        model,
        source,
        classify,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=200,
        clip=2.0,
    )


class Trader(nn.Module):
    """An LSTM on prices."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.LSTM(1, 40, batch_first=True)
        self.head = nn.Linear(40, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)[0])


def trader(raw: bool = False) -> Training:
    """The course of a price, standardised, from prices around 2000."""
    torch.manual_seed(53)
    model = Trader()
    source = waves(32, 20)

    def batch(step: int) -> Batch:
        past, coming = source(step)
        course = torch.cat([past, coming[:, None]], 1)
        return (past * 40 + 2000 if raw else past), course[:, 1:]

    return Training(
        model, batch, squared, torch.optim.Adam(model.parameters(), lr=5e-3), steps=250, every=10
    )


class Events(nn.Module):
    """Attention over events, each with a time and a value."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norms[0](x + self.attend(x, x, x, need_weights=False)[0])
        x = self.norms[1](x + self.mix(x))
        return self.out(x.mean(1))


def events(raw: bool = False) -> Training:
    """A sum of values weighed by how late they came; times in minutes, or in their own spread."""
    torch.manual_seed(54)
    model = Events()

    def batch(step: int) -> Batch:
        g = dice(54, step)
        time = torch.rand(32, 12, generator=g)
        value = torch.randn(32, 12, generator=g)
        shown = time * 1440 if raw else (time - 0.5) * 3.5
        told = (value * (time > 0.6)).sum(1, keepdim=True) / 2.2
        return torch.stack([shown, value], -1), told

    return Training(
        model, batch, squared, torch.optim.Adam(model.parameters(), lr=3e-3), steps=300, every=10
    )


class Weather(nn.Module):
    """A small mixture of experts."""

    def __init__(self, inputs: int = 8, experts: int = 3, width: int = 32) -> None:
        super().__init__()
        self.gate = nn.Linear(inputs, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(inputs, width), nn.Tanh(), nn.Linear(width, 1))
            for _ in range(experts)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        told = torch.cat([expert(x) for expert in self.experts], -1)
        return (shares * told).sum(-1, keepdim=True)


def weather(raw: bool = False) -> Training:
    """What eight stations measured, in kelvin or standardised."""
    torch.manual_seed(55)
    model = Weather()
    source = table(64)

    def batch(step: int) -> Batch:
        x, y = source(step)
        return (x * 6 + 285 if raw else x), y

    return Training(
        model, batch, squared, torch.optim.Adam(model.parameters(), lr=5e-3), steps=300, every=10
    )


class Microphone(nn.Module):
    """Strided convolutions over a piece of sound."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv1d(1, width, 5, stride=2),
            nn.CELU(),
            nn.Conv1d(width, width, 5, stride=2),
            nn.CELU(),
            nn.Flatten(),
        )
        self.speed = nn.Linear(width * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.speed(self.body(x.transpose(1, 2)))


def microphone(raw: bool = False) -> Training:
    """Tones told apart; sound as the converter's counts, with its offset, or standardised."""
    torch.manual_seed(56)
    model = Microphone()
    time = torch.arange(32)

    def batch(step: int) -> Batch:
        g = dice(56, step)
        which = torch.randint(4, (32,), generator=g)
        phase = torch.rand(32, 1, generator=g) * 2 * math.pi
        sound = torch.sin((0.3 + 0.25 * which[:, None]) * time + phase)
        sound = (sound + 0.3 * torch.randn(sound.shape, generator=g))[:, :, None]
        return (sound * 400 + 8192 if raw else sound * 1.3), which

    return Training(
        model,
        batch,
        classify,
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=200,
    )


def as_it_came(make: Make) -> Symptom:
    """Some column of the data has an RMS above 100, and the run learns less for it."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        x = make().batch(0)[0]
        by_column = x.flatten(0, -2) if x.ndim < 4 else x.flatten()[:, None]
        size = by_column.square().mean(0).sqrt().max().item()
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and size > 100, "rms": size}

    return symptom


def raw(name: str, make: Callable[..., Training], may: list[str]) -> Variant:
    """A run on data as it came; its twin's are standardised."""
    broken = partial(make, raw=True)
    return Variant(name, healthy=make, broken=broken, symptom=as_it_came(broken), may=may)


UNSCALED = Fault(
    "ind6-steps-unscaled",
    must=[["unscaled-input"]],
    variants=[
        raw("customers", customers, ["exploding-gradient"]),  # norms of 10⁹ at the start
        raw("photographs", photographs, []),
        # Gates at their ends from the first step; Adam's ε is above what comes through.
        raw("trader", trader, ["saturated-activation", "vanishing-gradient", "no-update"]),
        raw("events", events, ["vanishing-gradient", "peaked-softmax"]),
        # Flat tanh throughout; one expert has the whole share, the others get no gradient.
        raw(
            "weather",
            weather,
            [
                "saturated-activation",
                "peaked-softmax",
                "vanishing-gradient",
                "starved-pathway",
                "no-update",
            ],
        ),
        # From the middle on all CELU units are at −1 for all data.
        raw(
            "microphone",
            microphone,
            ["saturated-activation", "dead-units", "vanishing-gradient", "no-update"],
        ),
    ],
)

FAULTS = [TOO_LARGE, NONE, UNDERFLOW, UNSCALED]
