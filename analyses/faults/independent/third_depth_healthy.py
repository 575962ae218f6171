"""Healthy runs: deep and recurrent networks, and all the ways in which one rightly steps them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_third_depth import (
    classify,
    curve,
    digits,
    drawn,
    flat_digits,
    grammar,
    he,
    image_digits,
    regress,
)
from analyses.faults.training import Batch, Training


def warm_cosine(
    optimizer: torch.optim.Optimizer, warm: int, total: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up, then a cosine to 5 %."""

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.05 + 0.475 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Attention(nn.Module):
    """Causal self-attention."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        later = torch.ones(n, n, dtype=torch.bool).triu(1)
        mixed = scores.masked_fill(later, float("-inf")).softmax(-1) @ v
        return self.out(mixed.transpose(1, 2).reshape(b, n, d))


class Block(nn.Module):
    """Attention and MLP; normalised before, or after with the stream weighted by `alpha`."""

    def __init__(self, width: int, pre: bool, alpha: float = 1.0) -> None:
        super().__init__()
        self.attend = Attention(width, 2)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.one, self.two = nn.LayerNorm(width), nn.LayerNorm(width)
        self.pre, self.alpha = pre, alpha

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            x = x + self.attend(self.one(x))
            return x + self.mlp(self.two(x))
        x = self.one(self.alpha * x + self.attend(x))
        return self.two(self.alpha * x + self.mlp(x))


class Language(nn.Module):
    """Embedding, blocks, head."""

    def __init__(self, width: int, blocks: list[Block], norm: bool) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(16, width), nn.Embedding(32, width)
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.head = nn.Linear(width, 16)

    def forward(self, x: Tensor) -> Tensor:
        z = self.tokens(x) + self.places(torch.arange(x.shape[1]))
        return self.head(self.norm(self.blocks(z)))


def prenorm_warm_up() -> Training:
    """Eight pre-norm layers; the branches' last matrices are scaled down by the depth."""
    torch.manual_seed(81)
    model = Language(32, [Block(32, True) for _ in range(8)], True)
    for name, p in model.named_parameters():
        if name.endswith(("out.weight", "mlp.2.weight")):
            p.data.mul_(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = warm_cosine(optimizer, 20, 120)
    return Training(
        model, grammar(16, 16), classify, optimizer, steps=120, schedule=schedule, clip=1.0
    )


def deepnorm() -> Training:
    """Six post-norm layers whose stream is weighted up and whose branches start small."""
    torch.manual_seed(82)
    layers = 6
    model = Language(32, [Block(32, False, (2 * layers) ** 0.25) for _ in range(layers)], False)
    for name, p in model.named_parameters():
        if name.endswith(("out.weight", "mlp.0.weight", "mlp.2.weight")):
            p.data.mul_((8 * layers) ** -0.25)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = warm_cosine(optimizer, 25, 140)
    return Training(model, grammar(16, 16), classify, optimizer, steps=140, schedule=schedule)


class Basic(nn.Module):
    """A residual block with batch normalisation, dropped as a whole now and then."""

    def __init__(self, width: int, drop: float) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
        )
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        if self.drop:
            kept = (torch.rand(len(x), 1, 1, 1) >= self.drop).float()
            y = y * kept / (1 - self.drop)
        return F.relu(x + y)


def residual(blocks: int, drop: float) -> nn.Module:
    """A stem, residual blocks, average pooling, a classifier."""
    return nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1, bias=False),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        *[Basic(12, drop) for _ in range(blocks)],
        nn.AvgPool2d(4),
        nn.Flatten(),
        nn.Linear(48, 10),
    )


def nesterov_cosine() -> Training:
    """A residual network, Nesterov's momentum, weight decay, half a cosine."""
    torch.manual_seed(83)
    model = residual(5, 0.0)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    return Training(model, image_digits(32), classify, optimizer, steps=120, schedule=schedule)


def stochastic_depth() -> Training:
    """Blocks that are left out at random, decoupled weight decay on matrices alone."""
    torch.manual_seed(84)
    model = residual(6, 0.2)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=3e-3,
    )
    return Training(model, image_digits(24), classify, optimizer, steps=120)


class Speller(nn.Module):
    """A language model: two fused LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 24)
        self.lstm = nn.LSTM(24, 48, num_layers=2, batch_first=True)
        self.head = nn.Linear(48, 16)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(self.tokens(x))[0])


def clipped_lstm() -> Training:
    """Gradient descent at a rate of 2 with the gradient clipped to 0.25, as in old recipes."""
    torch.manual_seed(85)
    model = Speller()
    optimizer = torch.optim.SGD(model.parameters(), lr=2.0)
    return Training(model, grammar(20, 24), classify, optimizer, steps=280, clip=0.25)


class Adder(nn.Module):
    """A GRU cell, unrolled by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(2, width)
        self.head = nn.Linear(width, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
        return self.head(h)


def marked(step: int) -> Batch:
    """Sixteen numbers, the sum of the two marked ones is asked for."""
    g = torch.Generator().manual_seed(25000 + step)
    x = torch.rand(48, 16, generator=g) * 2 - 1
    mark = torch.zeros(48, 16).scatter_(1, torch.rand(48, 16, generator=g).argsort(1)[:, :2], 1.0)
    return torch.stack([x, mark], -1), (x * mark).sum(1, keepdim=True)


def unrolled_rmsprop() -> Training:
    """The adding problem."""
    torch.manual_seed(86)
    model = Adder(32)
    nn.init.orthogonal_(model.cell.weight_hh)
    with torch.no_grad():
        model.cell.bias_hh[32:64] = 2.0  # the gate that keeps the state starts open
    optimizer = torch.optim.RMSprop(model.parameters(), lr=5e-4, momentum=0.5)
    return Training(model, marked, regress, optimizer, steps=250, clip=5.0)


def accumulation() -> Training:
    """Eight small batches, each a share of the loss, then one step."""
    torch.manual_seed(87)
    model = nn.Sequential(
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(),
        nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)

    def step(training: Training, number: int) -> dict[str, Any]:
        total = 0.0
        for part in range(8):
            loss = training.loss_at(8 * number + part) / 8
            loss.backward()
            total += float(loss.detach())
        training.optimizer.step()
        training.optimizer.zero_grad()
        return {"loss": total}

    return Training(model, flat_digits(8), classify, optimizer, steps=120, step=step)


def batch_of_one() -> Training:
    """One sample at a time: noisy, and it learns."""
    torch.manual_seed(88)
    model = nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(),
                          nn.Linear(40, 10))  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, flat_digits(1), classify, optimizer, steps=600, every=10)


def whole_set() -> Training:
    """All digits at once, at the learning rate that goes with it."""
    torch.manual_seed(89)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.BatchNorm1d(48), nn.ReLU(),
        nn.Linear(48, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10),
    )  # fmt: skip

    def batch(step: int) -> Batch:
        return digits()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9)
    schedule = warm_cosine(optimizer, 15, 100)
    return Training(model, batch, classify, optimizer, steps=100, schedule=schedule)


def full_batch_rprop() -> Training:
    """Rprop, which looks at signs alone, on a fixed set of 256 points."""
    torch.manual_seed(90)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(),
                          nn.Linear(32, 1))  # fmt: skip
    fixed = curve(256)(0)

    def batch(step: int) -> Batch:
        return fixed

    optimizer = torch.optim.Rprop(model.parameters(), lr=1e-3, step_sizes=(1e-6, 0.01))
    return Training(model, batch, regress, optimizer, steps=150)


def memorised() -> Training:
    """Forty digits learnt by heart: at the end loss and gradient are next to nothing."""
    torch.manual_seed(91)
    model = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 64), nn.ELU(),
                          nn.Linear(64, 10))  # fmt: skip
    x, y = digits()
    fixed = x[:40], y[:40]

    def batch(step: int) -> Batch:
        return fixed

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, classify, optimizer, steps=500, every=10)


def of_classes(low: int, high: int, size: int) -> Callable[[int], Batch]:
    """Batches of the digits from `low` to below `high`."""
    x, y = digits()
    kept = (y >= low) & (y < high)
    x, y = x[kept].view(-1, 1, 8, 8), y[kept] - low

    def batch(step: int) -> Batch:
        at = drawn(step, size, len(x))
        return x[at], y[at]

    return batch


def pretrained() -> nn.Sequential:
    """A small convolutional network that knows the digits below 5."""
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(96, 48), nn.LeakyReLU(0.1), nn.Linear(48, 5),
    )  # fmt: skip
    he(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    batch = of_classes(0, 5, 48)
    for step in range(60):
        loss = classify(model, *batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    return model


def frozen_backbone() -> Training:
    """The convolutions are kept as they are; a new head learns the other digits."""
    torch.manual_seed(92)
    model = pretrained()
    for i in range(7):
        model[i].requires_grad_(False)
    model[9] = nn.Linear(48, 5)
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.008, momentum=0.9
    )
    return Training(model, of_classes(5, 10, 32), classify, optimizer, steps=120)


def layerwise_rates() -> Training:
    """Fine-tuning with a rate that falls by a factor of 3 per layer towards the input."""
    torch.manual_seed(93)
    model = pretrained()
    model[9] = nn.Linear(48, 5)
    groups = [
        {"params": list(model[i].parameters()), "lr": 2e-3 / 3**depth}
        for depth, i in enumerate((9, 7, 3, 0))
    ]
    optimizer = torch.optim.AdamW(groups)
    return Training(model, of_classes(5, 10, 32), classify, optimizer, steps=120)


class LowRank(nn.Module):
    """A frozen linear layer and a correction of rank 4 that starts at 0."""

    def __init__(self, frozen: nn.Linear) -> None:
        super().__init__()
        self.frozen = frozen.requires_grad_(False)
        self.down = nn.Linear(frozen.in_features, 4, bias=False)
        self.up = nn.Linear(4, frozen.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(x) + 2.0 * self.up(self.down(x))


def low_rank() -> Training:
    """Everything is frozen but low-rank corrections of the linear layers and the new head."""
    torch.manual_seed(94)
    model = pretrained()
    model.requires_grad_(False)
    first = model[7]
    assert isinstance(first, nn.Linear)
    model[7] = LowRank(first)
    model[9] = nn.Linear(48, 5)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    return Training(model, of_classes(5, 10, 32), classify, optimizer, steps=150)


class Gated(nn.Module):
    """x + α · f(x), α starts at 0."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.f = nn.Linear(width, width)
        self.alpha = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * F.silu(self.f(x))


def rezero_adagrad() -> Training:
    """Twenty residual layers that start as nothing at all."""
    torch.manual_seed(95)
    model = nn.Sequential(nn.Linear(64, 40), *[Gated(40) for _ in range(20)], nn.Linear(40, 10))
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.008)
    return Training(model, flat_digits(48), classify, optimizer, steps=150)


def selu_adamax() -> Training:
    """Twelve self-normalising layers."""
    torch.manual_seed(96)
    layers: list[nn.Module] = []
    for i in range(12):
        linear = nn.Linear(64 if i == 0 else 48, 48)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="linear")
        nn.init.zeros_(linear.bias)
        layers += [linear, nn.SELU()]
    model = nn.Sequential(*layers, nn.Linear(48, 10))
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3)
    return Training(model, flat_digits(64), classify, optimizer, steps=150)


class Dense(nn.Module):
    """Every layer reads what all before it made."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(1 + 8 * i, 8, 3, padding=1) for i in range(6)])
        self.norms = nn.ModuleList([nn.GroupNorm(2, 8) for _ in range(6)])
        self.head = nn.Linear(49 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = torch.cat([x, F.silu(norm(layer(x)))], 1)
        return self.head(F.avg_pool2d(x, 4).flatten(1))


def dense_one_cycle() -> Training:
    """One cycle of the learning rate, up and down again."""
    torch.manual_seed(97)
    model = Dense()
    optimizer = torch.optim.NAdam(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=121)
    return Training(model, image_digits(24), classify, optimizer, steps=120, schedule=schedule)


class FixedPoint(nn.Module):
    """z ← tanh(W z + U x), ten times with the same weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.u, self.w = nn.Linear(8, width), nn.Linear(width, width, bias=False)
        self.read = nn.Linear(width, 1)
        nn.init.orthogonal_(self.w.weight, gain=0.9)

    def forward(self, x: Tensor) -> Tensor:
        into = self.u(x)
        z = torch.zeros_like(into)
        for _ in range(10):
            z = torch.tanh(self.w(z) + into)
        return self.read(z)


def fixed_point_radam() -> Training:
    """A weight-tied network that settles towards a fixed point."""
    torch.manual_seed(98)
    model = FixedPoint(48)
    optimizer = torch.optim.RAdam(model.parameters(), lr=5e-3)
    return Training(model, curve(64), regress, optimizer, steps=250)


class Hourglass(nn.Module):
    """A U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 12, 3, padding=1), nn.Conv2d(12, 24, 3, padding=1)
        self.c = nn.Conv2d(24, 24, 3, padding=1)
        self.d, self.e = nn.Conv2d(48, 12, 3, padding=1), nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        a = F.silu(self.a(x))
        b = F.silu(self.b(F.avg_pool2d(a, 2)))
        c = F.silu(self.c(F.avg_pool2d(b, 2)))
        d = F.silu(self.d(torch.cat([b, F.interpolate(c, scale_factor=2)], 1)))
        return self.e(torch.cat([a, F.interpolate(d, scale_factor=2)], 1))


def denoise_restarts() -> Training:
    """Noise is taken off digits; the cosine starts anew every 40 steps."""
    torch.manual_seed(99)
    model = Hourglass()

    def batch(step: int) -> Batch:
        x, _ = digits()
        clean = x[drawn(step, 24, len(x))].view(-1, 1, 8, 8)
        g = torch.Generator().manual_seed(27000 + step)
        return clean + 0.7 * torch.randn(clean.shape, generator=g), clean

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 40)
    return Training(model, batch, regress, optimizer, steps=140, schedule=schedule)


class Lion(torch.optim.Optimizer):
    """Steps by the sign of a momentum."""

    def __init__(self, params: Any, lr: float, decay: float) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                m = self.state[p].setdefault("m", torch.zeros_like(p))
                way = (0.9 * m + 0.1 * p.grad).sign()
                p.mul_(1 - group["lr"] * group["decay"]).sub_(group["lr"] * way)
                m.mul_(0.99).add_(p.grad, alpha=0.01)


class Temporal(nn.Module):
    """Residual dilated causal convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(16, 32)
        self.convs = nn.ModuleList([nn.Conv1d(32, 32, 2, dilation=2**i) for i in range(4)])
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(4)])
        self.head = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        z = self.tokens(x)
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            past = F.pad(norm(z).transpose(1, 2), (2**i, 0))
            z = z + F.gelu(conv(past)).transpose(1, 2)
        return self.head(z)


def temporal_lion() -> Training:
    """An optimizer of one's own that works."""
    torch.manual_seed(100)
    model = Temporal()
    optimizer = Lion(model.parameters(), 1e-3, 0.1)
    return Training(model, grammar(20, 16), classify, optimizer, steps=200)


DEEP = Healthy(
    "ind3-depth-healthy",
    runs={
        "prenorm-warm-up": prenorm_warm_up,
        "deepnorm": deepnorm,
        "nesterov-cosine": nesterov_cosine,
        "stochastic-depth": stochastic_depth,
        "clipped-lstm": clipped_lstm,
        "unrolled-rmsprop": unrolled_rmsprop,
        "rezero-adagrad": rezero_adagrad,
        "selu-adamax": selu_adamax,
        "dense-one-cycle": dense_one_cycle,
        "fixed-point-radam": fixed_point_radam,
    },
)

STEPS = Healthy(
    "ind3-steps-healthy",
    runs={
        "accumulation": accumulation,
        "batch-of-one": batch_of_one,
        "whole-set": whole_set,
        "full-batch-rprop": full_batch_rprop,
        "memorised": memorised,
        "frozen-backbone": frozen_backbone,
        "layerwise-rates": layerwise_rates,
        "low-rank": low_rank,
        "denoise-restarts": denoise_restarts,
        "temporal-lion": temporal_lion,
    },
)

THEMES = [DEEP, STEPS]
