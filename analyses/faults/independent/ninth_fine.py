"""Runs as they should be: many optimizers, schedules, precisions, and data as they come."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_ninth_c import blobs, digits, grammar, marked, table, waves
from analyses.faults.training import Batch, Training


def warmed(optimizer: torch.optim.Optimizer, warm: int, steps: int) -> Any:
    """Up from 0 in a line, down to 0 by a cosine."""

    def factor(step: int) -> float:
        if step < warm:
            return step / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


class Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        b, n, width = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, n, 3, 4, width // 4).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(a.transpose(1, 2).reshape(b, n, width))
        return x + self.down(F.gelu(self.up(self.n2(x))))


class TiedLM(nn.Module):
    """A small GPT; the output matrix is the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 48)
        self.place = nn.Embedding(16, 48)
        self.blocks = nn.Sequential(Block(48), Block(48))
        self.norm = nn.LayerNorm(48)
        self.head = nn.Linear(48, 16, bias=False)
        self.head.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=0.1)

    def forward(self, text: Tensor) -> Tensor:
        h = self.embed(text) + 0.1 * self.place(torch.arange(text.shape[1]))
        return self.head(self.norm(self.blocks(h)))


def next_symbol(net: nn.Module, text: Tensor) -> Tensor:
    """Mean cross entropy of the next symbol."""
    return F.cross_entropy(net(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def tied_gpt() -> Training:
    """Tied weights, warm-up from 0, cosine to 0, clipping."""
    torch.manual_seed(61)
    model = TiedLM()
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3, weight_decay=0.1, betas=(0.9, 0.95))
    return Training(
        model,
        grammar(24, 16),
        next_symbol,
        optimizer,
        steps=220,
        schedule=warmed(optimizer, 20, 220),
        clip=1.0,
    )


def accumulated(training: Training, step: int) -> dict[str, Any]:
    """Four batches a step, divided by four, then clipped."""
    training.optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for i in range(4):
        loss = training.loss_at(4 * step + i) / 4
        loss.backward()
        total += loss.item()
    norm = nn.utils.clip_grad_norm_(training.model.parameters(), 2.0)
    training.optimizer.step()
    return {"loss": total, "norm": float(norm)}


class Bottle(nn.Module):
    """Residual convolutions with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.a = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(2))
        self.n = nn.ModuleList(nn.GroupNorm(4, 24) for _ in range(2))
        self.fc = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for conv, norm in zip(self.a, self.n, strict=True):
            h = h + F.relu(norm(conv(h)))
        return self.fc(h.mean((2, 3)))


def accumulated_resnet() -> Training:
    """Tiny batches accumulated, RAdam."""
    torch.manual_seed(62)
    model = Bottle()
    return Training(
        model,
        digits(12),
        lambda net, x, y: F.cross_entropy(net(x), y, label_smoothing=0.05),
        torch.optim.RAdam(model.parameters(), lr=1e-2),
        steps=130,
        step=accumulated,
    )


class Speller(nn.Module):
    """A two-layer GRU language model with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 24)
        self.rnn = nn.GRU(24, 40, num_layers=2, batch_first=True, dropout=0.1)
        self.out = nn.Linear(40, 16)

    def forward(self, text: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(text))[0])


def with_average(training: Training, step: int, *, average: nn.Module) -> dict[str, Any]:
    """An ordinary step; a copy of the model follows the weights slowly."""
    loss = training.loss_at(step)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    with torch.no_grad():
        for slow, fast in zip(average.parameters(), training.model.parameters(), strict=True):
            slow.lerp_(fast, 0.02)
    return {"loss": loss.detach()}


def averaged_gru() -> Training:
    """An average of the weights kept beside the model, Adamax."""
    torch.manual_seed(63)
    model = Speller()
    average = copy.deepcopy(model).requires_grad_(False)
    return Training(
        model,
        grammar(24, 14),
        next_symbol,
        torch.optim.Adamax(model.parameters(), lr=1e-2),
        steps=200,
        step=partial(with_average, average=average),
    )


class Features(nn.Module):
    """A fixed convolution and a head that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(1, 32, 3), nn.ELU(), nn.MaxPool2d(2), nn.Flatten())
        self.head = nn.Sequential(nn.Linear(288, 32), nn.GELU(), nn.Linear(32, 10))
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x))


def frozen_backbone() -> Training:
    """Transfer learning: only the head is given to the optimizer."""
    torch.manual_seed(64)
    model = Features()
    wanted = [p for p in model.parameters() if p.requires_grad]
    return Training(
        model,
        digits(48),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(wanted, lr=0.02, momentum=0.9, nesterov=True, weight_decay=1e-4),
        steps=160,
    )


class Bag(nn.Module):
    """Sparse embeddings, averaged, then two linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(400, 24, sparse=True)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.Tanh(), nn.Linear(32, 2))

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.words(text).mean(1) * 3)


def two_steps(training: Training, step: int) -> dict[str, Any]:
    """Both optimizers step."""
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()}


def sparse_bag() -> Training:
    """SparseAdam for the embeddings, Adam for the rest."""
    torch.manual_seed(65)
    model = Bag()
    words = marked(64, 10)

    def batch(step: int) -> Batch:
        text, y = words(step)
        g = torch.Generator().manual_seed(step)
        return text + 12 * torch.randint(33, text.shape, generator=g), y

    return Training(
        model,
        batch,
        lambda net, text, y: F.cross_entropy(net(text), y),
        torch.optim.Adam(model.head.parameters(), lr=5e-3),
        steps=250,
        step=two_steps,
        others=[torch.optim.SparseAdam(model.words.parameters(), lr=2e-2)],
    )


class Layered(nn.Module):
    """A residual MLP whose layers have learning rates of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(14, 64)
        self.mid = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.last = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x))
        for layer in self.mid:
            h = h + 0.5 * F.silu(layer(h))
        return self.last(h)


def layered_rates() -> Training:
    """Lower layers with smaller rates, one cycle of the rate."""
    torch.manual_seed(66)
    model = Layered()
    groups = [
        {"params": model.first.parameters(), "lr": 1e-3},
        {"params": model.mid.parameters(), "lr": 2e-3},
        {"params": model.last.parameters(), "lr": 4e-3},
    ]
    optimizer = torch.optim.AdamW(groups)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=[2e-3, 4e-3, 8e-3], total_steps=220
    )
    return Training(
        model,
        table(64, 14, seed=21, classes=5),
        lambda net, x, y: F.cross_entropy(net(x), y),
        optimizer,
        steps=200,
        schedule=cycle,
    )


def by_closure(training: Training, step: int) -> dict[str, Any]:
    """A step of an optimizer that evaluates the loss several times."""

    def closure() -> float:
        training.optimizer.zero_grad()
        loss = training.loss_at(step)
        loss.backward()
        return loss.item()

    return {"loss": training.optimizer.step(closure)}


def whole_lbfgs() -> Training:
    """All of a small table at once, L-BFGS with a line search."""
    torch.manual_seed(67)
    model = nn.Sequential(nn.Linear(5, 24), nn.Tanh(), nn.Linear(24, 1))
    rows = table(600, 5, seed=22)
    return Training(
        model,
        lambda step: rows(0),
        lambda net, x, y: F.mse_loss(net(x).squeeze(1), y),
        torch.optim.LBFGS(model.parameters(), lr=0.8, max_iter=4, line_search_fn="strong_wolfe"),
        steps=60,
        every=2,
        step=by_closure,
    )


def single_samples() -> Training:
    """Batches of a single digit, plain SGD."""
    torch.manual_seed(68)
    model = nn.Sequential(nn.Linear(64, 48), nn.ELU(), nn.Linear(48, 10))
    return Training(
        model,
        digits(1, flat=True),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.SGD(model.parameters(), lr=0.05),
        steps=600,
        every=15,
    )


def learned_by_heart() -> Training:
    """Sixty-four digits learned by heart until next to nothing is left of the loss."""
    torch.manual_seed(69)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(256, 64)
    )
    model.extend([nn.GELU(), nn.Linear(64, 10)])
    shown = digits(64)
    return Training(
        model,
        lambda step: shown(0),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=300,
        every=10,
    )


STEPS = Healthy(
    "ind9-steps-fine",
    runs={
        "tied-gpt": tied_gpt,
        "accumulated-resnet": accumulated_resnet,
        "averaged-gru": averaged_gru,
        "frozen-backbone": frozen_backbone,
        "sparse-bag": sparse_bag,
        "layered-rates": layered_rates,
        "whole-lbfgs": whole_lbfgs,
        "single-samples": single_samples,
        "learned-by-heart": learned_by_heart,
    },
)


def bfloat_convnet() -> Training:
    """A convnet with batch norm under bfloat16, no scaler needed."""
    torch.manual_seed(71)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(384, 10),
    )

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(x)
        return F.cross_entropy(logits.float(), y)

    return Training(
        model,
        digits(48),
        loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True),
        steps=120,
    )


def scaled_step(training: Training, step: int, *, scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """Scaled, unscaled to clip, stepped."""
    loss = training.loss_at(step)
    scaler.scale(loss).backward()
    scaler.unscale_(training.optimizer)
    nn.utils.clip_grad_norm_(training.model.parameters(), 1.0)
    scaler.step(training.optimizer)
    scaler.update()
    training.optimizer.zero_grad()
    return {"loss": loss.detach(), "scale": scaler.get_scale()}


def half_encoder() -> Training:
    """A transformer encoder of library parts under float16, with a scaler and clipping."""
    torch.manual_seed(72)
    layer = nn.TransformerEncoderLayer(
        32, 4, 64, dropout=0.0, batch_first=True, norm_first=True, activation="gelu"
    )
    model = nn.ModuleDict(
        {
            "embed": nn.Embedding(12, 32),
            "encoder": nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
            "head": nn.Linear(32, 2),
        }
    )

    def loss(net: nn.ModuleDict, text: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.float16):
            h = net["encoder"](net["embed"](text))
            logits = net["head"](h.mean(1))
        return F.cross_entropy(logits.float(), y)

    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    return Training(
        model,
        marked(32, 10),
        loss,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        steps=100,
        step=partial(scaled_step, scaler=scaler),
    )


class Gaussian(nn.Module):
    """A mean and a spread for every row, the spread by softplus."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(7, 48), nn.Softplus(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mean, raw = self.body(x).unbind(1)
        return mean, F.softplus(raw) + 1e-3


def gaussian() -> Training:
    """A likelihood with a spread that is told: the loss goes below zero in the end."""
    torch.manual_seed(73)
    model = Gaussian()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mean, spread = net(x)
        return -torch.distributions.Normal(mean, spread).log_prob(y).mean()

    return Training(
        model,
        table(96, 7, seed=23),
        loss,
        torch.optim.Adam(model.parameters(), lr=1e-2, amsgrad=True),
        steps=250,
    )


def double_unet() -> Training:
    """Segmentation in double precision, Adagrad."""
    torch.manual_seed(74)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ELU(),
        nn.Conv2d(8, 16, 2, stride=2),
        nn.ELU(),
        nn.ConvTranspose2d(16, 8, 2, stride=2),
        nn.ELU(),
        nn.Conv2d(8, 1, 3, padding=1),
    ).double()
    pictures = blobs(16)

    def batch(step: int) -> Batch:
        x, mask = pictures(step)
        return x.double(), mask.double()

    return Training(
        model,
        batch,
        lambda net, x, mask: F.binary_cross_entropy_with_logits(net(x), mask),
        torch.optim.Adagrad(model.parameters(), lr=0.02),
        steps=150,
    )


NUMBERS = Healthy(
    "ind9-numbers-fine",
    runs={
        "bfloat-convnet": bfloat_convnet,
        "half-encoder": half_encoder,
        "gaussian": gaussian,
        "double-unet": double_unet,
    },
)


class Mixed(nn.Module):
    """Numbers scaled by batch norm, beside a category's embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.BatchNorm1d(6, affine=False)
        self.kind = nn.Embedding(5, 6)
        self.a, self.b = nn.Linear(12, 40), nn.Linear(40, 1)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        h = torch.cat([self.scale(x), self.kind(kind)], 1)
        return self.b(F.silu(self.a(h))).squeeze(1)


def raw_with_norm() -> Training:
    """Columns in their own units, which a batch norm in front takes out."""
    torch.manual_seed(81)
    model = Mixed()
    rows = table(64, 6, seed=24)
    units = torch.tensor([18e3, 1.0, 40.0, 1e-3, 7.0, 300.0])
    from_zero = torch.tensor([62e3, 0.0, 170.0, 0.02, 36.0, 1013.0])

    def batch(step: int) -> Batch:
        x, y = rows(step)
        kind = torch.randint(5, y.shape, generator=torch.Generator().manual_seed(step))
        return x * units + from_zero, kind, y + 0.4 * kind - 0.8

    return Training(
        model,
        batch,
        lambda net, x, kind, y: F.smooth_l1_loss(net(x, kind), y),
        torch.optim.Adam(model.parameters(), lr=6e-3),
        steps=250,
    )


def positive_pixels() -> Training:
    """Digits from 0 to 1, not centred, as everybody feeds them; RMSprop."""
    torch.manual_seed(82)
    model = nn.Sequential(nn.Linear(64, 80), nn.ReLU(), nn.Dropout(0.2), nn.Linear(80, 10))
    return Training(
        model,
        digits(64, flat=True),
        lambda net, x, y: F.nll_loss(F.log_softmax(net(x), -1), y),
        torch.optim.RMSprop(model.parameters(), lr=2e-3),
        steps=200,
    )


class Spectral(nn.Module):
    """Waves through a fixed Fourier transform, logarithm and two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(17)
        self.a, self.b = nn.Linear(17, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        power = torch.fft.rfft(x.squeeze(-1)).abs().square()
        return self.b(F.gelu(self.a(self.norm(torch.log1p(power)))))


def spectral() -> Training:
    """Tones by their log spectrum, big batches, NAdam."""
    torch.manual_seed(83)
    model = Spectral()
    return Training(
        model,
        waves(512, 32),
        lambda net, x, y: F.cross_entropy(net(x), y),
        torch.optim.NAdam(model.parameters(), lr=3e-3),
        steps=150,
    )


DATA = Healthy(
    "ind9-data-fine",
    runs={
        "raw-with-norm": raw_with_norm,
        "positive-pixels": positive_pixels,
        "spectral": spectral,
    },
    # the columns are unscaled in truth; the norm in front makes it harmless
    may={"raw-with-norm": ["unscaled-input"]},
)

THEMES = [STEPS, NUMBERS, DATA]
