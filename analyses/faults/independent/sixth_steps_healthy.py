"""Runs in which nothing is wrong: schedules, optimizers, precision, batch sizes, scales of data."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_sixth_units import (
    clouds,
    dice,
    digits,
    discs,
    graph,
    lookups,
    sentences,
    table,
    waves,
)
from analyses.faults.training import Batch, Training


def classify(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of classes."""
    return F.cross_entropy(net(x), y)


def squared(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(net(x), y)


# Optimizers, schedules, precision.


class Block(nn.Module):
    """Pre-norm causal attention by the fused function, and an MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_one, self.norm_two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        size, length, width = x.shape
        seen = self.norm_one(x)
        split = (size, length, self.heads, width // self.heads)
        q, k, v = (f(seen).view(split).transpose(1, 2) for f in (self.q, self.k, self.v))
        heard = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.o(heard.transpose(1, 2).reshape(size, length, width))
        return x + self.down(F.gelu(self.up(self.norm_two(x))))


class Speaker(nn.Module):
    """A language model with tied embeddings."""

    def __init__(self, words: int = 24, width: int = 48, length: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, 4) for _ in range(2))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.words.weight, std=0.05)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places[: tokens.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.norm(x) @ self.words.weight.T


def warm_up_cosine() -> Training:
    """AdamW, a short warm-up, and a cosine down to nothing."""
    torch.manual_seed(61)
    model = Speaker()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=4e-3,
        betas=(0.9, 0.95),
    )

    def factor(step: int) -> float:
        if step < 20:
            return (step + 1) / 20
        return 0.5 * (1 + math.cos(math.pi * (step - 20) / 160))

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x).flatten(0, 1), y.flatten())

    return Training(
        model,
        sentences(16, 16),
        loss,
        optimizer,
        steps=180,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, factor),
        clip=1.0,
    )


class Depthwise(nn.Module):
    """Depthwise and pointwise convolutions with batch normalisation and ReLU6."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU6()
        )
        self.body = nn.Sequential(
            *[
                nn.Sequential(
                    nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU6(),
                    nn.Conv2d(width, width, 1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU6(),
                )
                for _ in range(2)
            ]
        )
        self.out = nn.Linear(width * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.adaptive_avg_pool2d(self.body(self.stem(x)), 2).flatten(1))


def float16_with_scaler() -> Training:
    """Autocast to float16 with a gradient scaler, as the handbook says."""
    torch.manual_seed(62)
    model = Depthwise()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            told = net(x)
        return F.cross_entropy(told.float(), y)

    def step(training: Training, at: int) -> dict[str, Any]:
        training.optimizer.zero_grad()
        value = training.loss_at(at)
        scaler.scale(value).backward()
        scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), 5.0)
        scaler.step(training.optimizer)
        scaler.update()
        return {"loss": value.item(), "scale": scaler.get_scale()}

    return Training(
        model,
        digits(32),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        steps=120,
        step=step,
    )


class Vision(nn.Module):
    """A vision transformer with a class token."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, width, 2, stride=2)
        self.token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), patches], 1) + self.place
        return self.head(self.body(x)[:, 0])


def bfloat16_vision() -> Training:
    """A vision transformer under autocast to bfloat16, which needs no scaler."""
    torch.manual_seed(63)
    model = Vision()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            told = net(x)
        return F.cross_entropy(told.float(), y, label_smoothing=0.05)

    return Training(
        model,
        digits(32),
        loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05),
        steps=250,
        every=10,
    )


def one_cycle() -> Training:
    """Discs found by plain convolutions, with one cycle of a rate that peaks high."""
    torch.manual_seed(64)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2),
        nn.InstanceNorm2d(16, affine=True),
        nn.PReLU(),
        nn.Conv2d(16, 16, 5, padding=2),
        nn.InstanceNorm2d(16, affine=True),
        nn.PReLU(),
        nn.Conv2d(16, 1, 1),
    )

    def loss(net: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x), mask)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(
        model,
        discs(8, 16),
        loss,
        optimizer,
        steps=150,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=160),
    )


def large_batch() -> Training:
    """Batches of 512 and plain SGD at a rate of 1, which suits a normalised net."""
    torch.manual_seed(65)
    model = nn.Sequential(
        nn.Linear(64, 128, bias=False),
        nn.BatchNorm1d(128),
        nn.ReLU(),
        nn.Linear(128, 64, bias=False),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )
    return Training(
        model,
        digits(512, flat=True),
        classify,
        torch.optim.SGD(model.parameters(), lr=1.0),
        steps=120,
    )


class Recurrent(nn.Module):
    """A minimal recurrent net with a leaky state, written out."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.into = nn.Linear(1, width)
        self.again = nn.Linear(width, width, bias=False)
        nn.init.orthogonal_(self.again.weight)
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        given = self.into(x)
        state = torch.zeros_like(given[:, 0])
        told = []
        for t in range(x.shape[1]):
            state = 0.5 * state + 0.5 * torch.tanh(given[:, t] + self.again(state))
            told.append(self.out(state))
        return torch.stack(told, 1)


def one_at_a_time() -> Training:
    """Waves continued, two samples a step, the gradient clipped tightly."""
    torch.manual_seed(66)
    model = Recurrent()

    def loss(net: nn.Module, past: Tensor, coming: Tensor) -> Tensor:
        told = net(past)
        return F.mse_loss(told, torch.cat([past[:, 1:], coming[:, None]], 1))

    return Training(
        model,
        waves(2, 14),
        loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=400,
        every=10,
        clip=0.1,
    )


def accumulated() -> Training:
    """Four small batches a step, their gradients averaged; Adagrad."""
    torch.manual_seed(67)
    model = nn.Sequential(
        nn.Linear(8, 64), nn.Softsign(), nn.Linear(64, 64), nn.Softsign(), nn.Linear(64, 1)
    )
    source = table(32)

    def step(training: Training, at: int) -> dict[str, Any]:
        total = 0.0
        for part in range(4):
            value = training.loss(training.model, *source(4 * at + part)) / 4
            value.backward()
            total += value.item()
        training.optimizer.step()
        training.optimizer.zero_grad()
        return {"loss": total}

    return Training(
        model,
        lambda at: source(4 * at),
        squared,
        torch.optim.Adagrad(model.parameters(), lr=0.02),
        steps=300,
        every=10,
        step=step,
    )


class Remember(nn.Module):
    """Values looked up by key, in a memory."""

    def __init__(self, words: int = 16, width: int = 32) -> None:
        super().__init__()
        self.keys = nn.Embedding(words, width, sparse=True)
        self.values = nn.Embedding(words, width, sparse=True)
        self.ask = nn.Linear(width, width, bias=False)
        self.tell = nn.Linear(width, words)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        question = self.ask(self.keys(asked))[:, :, None]
        shares = torch.softmax((self.keys(keys) @ question).squeeze(-1) / 32**0.5, -1)
        return self.tell((shares[:, None] @ self.values(values)).squeeze(1))


def sparse_and_dense() -> Training:
    """Embeddings with sparse gradients by one optimizer, the rest by another."""
    torch.manual_seed(68)
    model = Remember()
    sparse = [*model.keys.parameters(), *model.values.parameters()]
    dense = [*model.ask.parameters(), *model.tell.parameters()]
    embeddings = torch.optim.SparseAdam(sparse, lr=5e-3)
    rest = torch.optim.Adam(dense, lr=5e-3)

    def loss(net: nn.Module, *batch: Tensor) -> Tensor:
        *given, answer = batch
        return F.cross_entropy(net(*given), answer)

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        for optimizer in (rest, embeddings):
            optimizer.zero_grad()
        value.backward()
        rest.step()
        embeddings.step()
        return {"loss": value.detach()}

    return Training(
        model,
        lookups(32, 4),
        loss,
        rest,
        steps=300,
        every=10,
        step=step,
        others=[embeddings],
    )


def second_order() -> Training:
    """A small net fitted to a fixed table by L-BFGS."""
    torch.manual_seed(69)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    source = table(512)

    def step(training: Training, at: int) -> dict[str, Any]:
        values: list[float] = []

        def closure() -> float:
            training.optimizer.zero_grad()
            value = training.loss_at(at)
            value.backward()
            values.append(value.item())
            return values[-1]

        training.optimizer.step(closure)
        return {"loss": values[0]}

    return Training(
        model,
        lambda at: source(0),
        squared,
        torch.optim.LBFGS(model.parameters(), lr=1.0, max_iter=4, line_search_fn="strong_wolfe"),
        steps=40,
        every=1,
        step=step,
    )


def fine_tuned() -> Training:
    """A net that knows the digits learns them turned on their side, with small steps."""
    torch.manual_seed(70)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    source = digits(32)
    before = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(80):
        before.zero_grad()
        classify(model, *source(10_000 + step)).backward()
        before.step()
    first = [p for i in (0, 2) for p in model[i].parameters()]

    def batch(step: int) -> Batch:
        x, y = source(step)
        return x.transpose(2, 3), y

    groups = [{"params": first, "lr": 1e-4}, {"params": model[5].parameters(), "lr": 4e-4}]
    return Training(model, batch, classify, torch.optim.AdamW(groups), steps=300, every=10)


class Student(nn.Module):
    """A student, and a teacher that follows it slowly and isn't trained."""

    def __init__(self) -> None:
        super().__init__()
        self.student = self.tower()
        self.teacher = self.tower()
        self.teacher.load_state_dict(self.student.state_dict())
        self.teacher.requires_grad_(False)

    @staticmethod
    def tower() -> nn.Module:
        return nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 10))


def mean_teacher() -> Training:
    """Few labels, and agreement with a running average of oneself."""
    torch.manual_seed(71)
    model = Student()

    def loss(net: Student, x: Tensor, y: Tensor) -> Tensor:
        told = net.student(x)
        noise = 0.1 * torch.randn(x.shape, generator=dice(71, int(y.sum())))
        with torch.no_grad():
            wanted = net.teacher(x + noise).softmax(-1)
        agree = F.kl_div(told.log_softmax(-1), wanted, reduction="batchmean")
        return F.cross_entropy(told[:16], y[:16]) + 0.3 * agree

    def step(training: Training, at: int) -> dict[str, Any]:
        training.optimizer.zero_grad()
        value = training.loss_at(at)
        value.backward()
        training.optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.05)
        return {"loss": value.detach()}

    return Training(
        model,
        digits(64, flat=True),
        loss,
        torch.optim.RMSprop(model.student.parameters(), lr=1e-3),
        steps=250,
        every=10,
        step=step,
    )


OPTIMIZERS = Healthy(
    "ind6-healthy-steps",
    runs={
        "warm-up-cosine": warm_up_cosine,
        "float16-with-scaler": float16_with_scaler,
        "bfloat16-vision": bfloat16_vision,
        "one-cycle": one_cycle,
        "large-batch": large_batch,
        "two-at-a-time": one_at_a_time,
        "accumulated": accumulated,
        "sparse-and-dense": sparse_and_dense,
        "second-order": second_order,
        "fine-tuned": fine_tuned,
        "mean-teacher": mean_teacher,
    },
)


# Data and units.


def normalised_first() -> Training:
    """Pictures as bytes into a net that begins with batch normalisation."""
    torch.manual_seed(81)
    model = nn.Sequential(
        nn.BatchNorm2d(1),
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )
    return Training(
        model,
        digits(32, scale=255 / 16, centre=False),
        classify,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=150,
    )


class Variational(nn.Module):
    """A variational autoencoder of brightnesses."""

    def __init__(self, hidden: int = 96, code: int = 8) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, hidden), nn.SiLU())
        self.mean, self.spread = nn.Linear(hidden, code), nn.Linear(hidden, code)
        self.decode = nn.Sequential(nn.Linear(code, hidden), nn.SiLU(), nn.Linear(hidden, 64))

    def forward(self, x: Tensor, noise: Tensor) -> dict[str, Tensor]:
        seen = self.encode(x)
        mean, log = self.mean(seen), self.spread(seen)
        return {"again": self.decode(mean + noise * (log / 2).exp()), "mean": mean, "log": log}


def unit_interval() -> Training:
    """Brightnesses from 0 to 1, not centred, in a variational autoencoder."""
    torch.manual_seed(82)
    model = Variational()
    source = digits(64, scale=1 / 16, centre=False, flat=True)

    def batch(step: int) -> Batch:
        x, _ = source(step)
        return x, torch.randn(len(x), 8, generator=dice(82, step))

    def loss(net: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
        out = net(x, noise)
        again = F.binary_cross_entropy_with_logits(out["again"], x, reduction="none").sum(-1)
        kl = 0.5 * (out["mean"] ** 2 + out["log"].exp() - 1 - out["log"]).sum(-1)
        return (again + kl).mean()

    return Training(
        model, batch, loss, torch.optim.Adam(model.parameters(), lr=2e-3), steps=300, every=10
    )


class WordCounts(nn.Module):
    """Counts of words through a logarithm, and averaging over neighbours."""

    def __init__(self, averaging: Tensor, width: int = 24) -> None:
        super().__init__()
        self.averaging = nn.Buffer(averaging)
        self.first = nn.Linear(30, width)
        self.second = nn.Linear(2 * width, 3)

    def forward(self, counts: Tensor) -> Tensor:
        own = F.relu(self.first(torch.log1p(counts)))
        return self.second(torch.cat([own, self.averaging @ own], -1))


def counted() -> Training:
    """Nodes of a graph told apart by counts that the net takes the logarithm of."""
    torch.manual_seed(83)
    averaging, counts, kinds = graph(150)
    model = WordCounts(averaging)

    def batch(step: int) -> Batch:
        kept = torch.rand(counts.shape, generator=dice(83, step)) < 0.9
        return counts * kept, kinds

    return Training(
        model, batch, classify, torch.optim.Adam(model.parameters(), lr=5e-3), steps=150
    )


class Multi(nn.Module):
    """Several yes-or-no questions about a picture, answered by sigmoids."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 96), nn.Tanh(), nn.Dropout(0.1), nn.Linear(96, 48), nn.Tanh()
        )
        self.answers = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.answers(self.body(x)))


def yes_or_no() -> Training:
    """Is the digit odd, above four, a prime, a square? Softened answers, sigmoids."""
    torch.manual_seed(84)
    model = Multi()
    source = digits(64, flat=True, scale=0.5)
    properties = torch.tensor(
        [[n % 2, n > 4, n in (2, 3, 5, 7), n in (0, 1, 4, 9)] for n in range(10)],
        dtype=torch.float32,
    )

    def batch(step: int) -> Batch:
        x, y = source(step)
        return x, properties[y] * 0.9 + 0.05

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy(net(x), y)

    return Training(
        model,
        batch,
        loss,
        torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9, weight_decay=1e-4),
        steps=150,
    )


class Cloud(nn.Module):
    """A set of points, pooled by its largest values."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(2, width)
        self.second = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(2 * width, 3)

    def forward(self, points: Tensor) -> Tensor:
        each = F.relu(self.norm(self.second(F.relu(self.first(points)))))
        return self.out(torch.cat([each.amax(1), each.mean(1)], -1))


def rectified_cloud() -> Training:
    """Points of a shape, with rectifiers that are on for some points and off for others."""
    torch.manual_seed(85)
    model = Cloud()
    return Training(
        model,
        clouds(32, 24),
        classify,
        torch.optim.NAdam(model.parameters(), lr=2e-3),
        steps=300,
        every=10,
    )


class Gates(nn.Module):
    """A gated MLP: half of the units weigh the other half."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.into = nn.Linear(8, width)
        self.gated = nn.ModuleList(nn.Linear(width, 4 * width) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2))
        self.out = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        for norm, gated, back in zip(self.norms, self.gated, self.back, strict=True):
            x = x + back(F.glu(gated(norm(x))))
        return self.out(x)


def scaled_target() -> Training:
    """Standardised columns; the target is in thousands, and brought to size in the loss."""
    torch.manual_seed(86)
    model = Gates()
    source = table(128)

    def batch(step: int) -> Batch:
        x, y = source(step)
        return x, y * 2500 + 12_000

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(net(x), (y - 12_000) / 2500)

    return Training(
        model,
        batch,
        loss,
        torch.optim.RAdam(model.parameters(), lr=5e-3),
        steps=200,
    )


DATA = Healthy(
    "ind6-healthy-data",
    runs={
        "normalised-first": normalised_first,
        "unit-interval": unit_interval,
        "counted": counted,
        "yes-or-no": yes_or_no,
        "rectified-cloud": rectified_cloud,
        "scaled-target": scaled_target,
    },
    may={
        # The data is bytes, up to 255 and not centred, but the first layer standardises it.
        "normalised-first": ["unscaled-input"],
    },
)

THEMES = [OPTIMIZERS, DATA]
