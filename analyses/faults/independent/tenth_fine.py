"""Runs that are well: ways to step, ways to save numbers, and shapes of data."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_tenth_c import (
    cross_entropy,
    sampled,
    scaled_digits,
    sentences,
    squared_error,
)
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def up_and_down(step: int, warm: int, steps: int) -> float:
    """From 0 up, and along a cosine to 0 again."""
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm)))


class Reverser(nn.Module):
    """A decoder of library layers that writes a word backwards."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(13, 48)
        self.place = nn.Embedding(8, 48)
        self.encode = nn.TransformerEncoderLayer(48, 4, 96, 0.0, F.gelu, batch_first=True)
        self.decode = nn.TransformerDecoderLayer(48, 4, 96, 0.0, F.gelu, batch_first=True)
        self.out = nn.Linear(48, 13)

    def forward(self, word: Tensor, so_far: Tensor) -> Tensor:
        at = self.place(torch.arange(8))
        memory = self.encode(self.embed(word) + at)
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        return self.out(self.decode(self.embed(so_far) + at, memory, tgt_mask=mask))


def teacher_forced(model: nn.Module, word: Tensor) -> Tensor:
    """Cross-entropy of the word backwards, its letters given one by one."""
    target = word.flip(1)
    so_far = torch.cat([torch.full_like(word[:, :1], 12), target[:, :-1]], 1)
    return F.cross_entropy(model(word, so_far).flatten(0, 1), target.flatten())


def reverser() -> Training:
    """Warm-up from 0, a cosine to 0, the gradient clipped."""
    torch.manual_seed(61)
    model = Reverser()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    return Training(
        model,
        sampled(torch.randint(12, (2000, 8)), size=32),
        teacher_forced,
        optimizer,
        steps=200,
        schedule=torch.optim.lr_scheduler.LambdaLR(
            optimizer, partial(up_and_down, warm=30, steps=200)
        ),
        clip=1.0,
    )


class Variational(nn.Module):
    """A variational autoencoder whose noise depends on the input alone."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(192, 48)
        )
        self.mean = nn.Linear(48, 6)
        self.spread = nn.Linear(48, 6)
        self.up = nn.Sequential(
            nn.Linear(6, 192),
            nn.SiLU(),
            nn.Unflatten(1, (12, 4, 4)),
            nn.ConvTranspose2d(12, 1, 4, stride=2, padding=1),
        )

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.silu(self.down(x))
        mean, spread = self.mean(h), self.spread(h)
        return self.up(mean + noise * torch.exp(0.5 * spread)), mean, spread


def evidence_bound(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Reconstruction and divergence."""
    again, mean, spread = model(x, noise)
    divergence = 0.5 * (mean.pow(2) + spread.exp() - 1 - spread).sum(1).mean()
    return (again - x).pow(2).sum((1, 2, 3)).mean() + divergence


def accumulated(
    training: Training, step: int, average: AveragedModel, parts: int
) -> dict[str, Any]:
    """Several small batches to a step, and a moving average of the weights after it."""
    total = 0.0
    for part in range(parts):
        loss = training.loss_at(step * parts + part) / parts
        loss.backward()
        total += float(loss.detach())
    training.optimizer.step()
    training.optimizer.zero_grad(set_to_none=False)
    average.update_parameters(training.model)
    return {"loss": total}


def variational() -> Training:
    """Gradient accumulation and averaged weights."""
    torch.manual_seed(62)
    x, _ = scaled_digits()
    model = Variational()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.98))
    return Training(
        model,
        sampled(x.view(-1, 1, 8, 8), torch.randn(len(x), 6), size=12),
        evidence_bound,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=120,
        step=partial(accumulated, average=average, parts=4),
    )


class Bottle(nn.Module):
    """A residual block of convolutions."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(outer, inner, 1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, padding=1, bias=False),
            nn.BatchNorm2d(inner),
            nn.ReLU(),
            nn.Conv2d(inner, outer, 1, bias=False),
            nn.BatchNorm2d(outer),
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x))


def brain_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy under autocast in bfloat16."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(x)
    return F.cross_entropy(logits.float(), y, label_smoothing=0.05)


def brain_resnet() -> Training:
    """A residual CNN in mixed precision, SGD with Nesterov's momentum."""
    torch.manual_seed(63)
    x, y = scaled_digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, stride=2, padding=1),
        Bottle(8, 16),
        Bottle(8, 16),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return Training(
        model,
        sampled(x.view(-1, 1, 8, 8), y, size=32),
        brain_loss,
        torch.optim.SGD(
            model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4
        ),
        steps=120,
    )


class FineTuned(nn.Module):
    """A backbone that stays as it is below a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(1, 24, 3, padding=1), nn.GELU(), nn.MaxPool2d(2), nn.Flatten()
        )
        self.backbone.requires_grad_(False)
        self.head = nn.Sequential(nn.Linear(384, 32), nn.GELU(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.backbone(x.view(-1, 1, 8, 8)))


def fine_tuned() -> Training:
    """Only the head learns."""
    torch.manual_seed(64)
    model = FineTuned()
    return Training(
        model,
        sampled(*scaled_digits(), size=32),
        cross_entropy,
        torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-3),
        steps=150,
    )


class Tied(nn.Module):
    """A GRU whose output matrix is its embedding."""

    def __init__(self, symbols: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(symbols, 32)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.out = nn.Linear(32, symbols)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.gru(self.embed(ids))[0])


def tied() -> Training:
    """A language model with tied weights and Adagrad."""
    torch.manual_seed(65)
    text = sentences(500, 15, 18, seed=65)
    model = Tied(18)
    return Training(
        model,
        sampled(text[:, :-1], text[:, 1:], size=24),
        cross_entropy,
        torch.optim.Adagrad(model.parameters(), lr=0.05),
        steps=200,
    )


class Bags(nn.Module):
    """A bag of words with a sparse embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(300, 24, mode="mean", sparse=True)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 6))

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.bag(ids))


def both_step(training: Training, step: int) -> dict[str, Any]:
    """One step of several optimizers."""
    optimizers = [training.optimizer, *training.others]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return {"loss": loss.detach()}


def bags() -> Training:
    """Sparse Adam for the words, Adam for the rest."""
    torch.manual_seed(66)
    y = torch.randint(6, (2000,))
    own = 50 * y[:, None] + torch.randint(50, (2000, 10))
    ids = torch.where(torch.rand(2000, 10) < 0.4, own, torch.randint(300, (2000, 10)))
    model = Bags()
    return Training(
        model,
        sampled(ids, y, size=64),
        cross_entropy,
        torch.optim.Adam(model.head.parameters(), lr=3e-3),
        others=[torch.optim.SparseAdam(list(model.bag.parameters()), lr=2e-2)],
        step=both_step,
        steps=200,
    )


def library_gpt() -> Training:
    """A tiny GPT-2 with groups for decay and no decay, and a rate that is lower further down."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(67)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=20,
            n_positions=16,
            n_embd=32,
            n_layer=2,
            n_head=2,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    groups: list[dict[str, Any]] = []
    for name, p in model.named_parameters():
        depth = 1 if ".h.1." in name or "ln_f" in name else 2
        decay = 0.1 if p.ndim > 1 else 0.0
        groups.append({"params": [p], "lr": 6e-3 * 0.7**depth, "weight_decay": decay})
    return Training(
        model,
        sampled(sentences(500, 16, 20, seed=67), size=16),
        next_token,
        torch.optim.AdamW(groups, betas=(0.9, 0.95)),
        steps=150,
        clip=1.0,
    )


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """The loss that the library's model returns."""
    return model(input_ids=ids, labels=ids).loss


STEPS = Healthy(
    "ind10-steps-fine",
    runs={
        "warm-up-and-cosine": reverser,
        "accumulated-and-averaged": variational,
        "frozen-backbone": fine_tuned,
        "tied-weights": tied,
        "sparse-embedding": bags,
        "groups-of-rates": library_gpt,
    },
)


def whole_set(step: int, x: Tensor, y: Tensor) -> Batch:
    """All of the data at every step."""
    return x, y


def by_heart() -> Training:
    """Learns a small set by heart, to a loss near 0."""
    torch.manual_seed(71)
    t = torch.linspace(-1, 1, 40)[:, None]
    model = nn.Sequential(
        nn.Linear(1, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(
        model,
        partial(whole_set, x=t, y=torch.sin(5 * t)),
        squared_error,
        optimizer,
        steps=500,
        every=10,
        schedule=torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.993),
    )


class MixedExperts(nn.Module):
    """Four small experts, softly mixed."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(10, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(10, 24), nn.GELU(), nn.Linear(24, 5)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        share = torch.softmax(self.gate(x), -1)
        said = torch.stack([expert(x) for expert in self.experts], -1)
        return (said * share[:, None]).sum(-1)


def clumps() -> tuple[Tensor, Tensor]:
    """Five classes of points."""
    generator = torch.Generator().manual_seed(72)
    centres = torch.randn(15, 10, generator=generator) * 1.5
    clump = torch.randint(15, (1500,), generator=generator)
    return centres[clump] + torch.randn(1500, 10, generator=generator), clump % 5


def one_by_one() -> Training:
    """Batches of two samples, plain SGD."""
    torch.manual_seed(72)
    model = MixedExperts()
    return Training(
        model,
        sampled(*clumps(), size=2),
        cross_entropy,
        torch.optim.SGD(model.parameters(), lr=0.03),
        steps=600,
        every=10,
    )


def large_batches() -> Training:
    """Batches of 1024 with a high rate, as it is right for them."""
    torch.manual_seed(73)
    model = nn.Sequential(nn.Linear(64, 96), nn.LayerNorm(96), nn.LeakyReLU(0.1), nn.Linear(96, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    return Training(
        model,
        sampled(*scaled_digits(), size=1024),
        cross_entropy,
        optimizer,
        steps=100,
        every=4,
        schedule=torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.3, total_steps=101),
    )


class Series(nn.Module):
    """A forecaster that standardises every window by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 4)

    def forward(self, window: Tensor) -> Tensor:
        mean, spread = window.mean(1, keepdim=True), window.std(1, keepdim=True) + 1e-5
        h, _ = self.lstm(((window - mean) / spread)[..., None])
        return self.out(h[:, -1]) * spread + mean


def forecast(model: nn.Module, window: Tensor, future: Tensor) -> Tensor:
    """Huber's loss, in the windows' own units."""
    return F.huber_loss(model(window), future)


def series() -> Training:
    """Four steps ahead, RMSprop, each element of the gradient clipped."""
    torch.manual_seed(74)
    t = torch.arange(1500.0)
    wave = 2 * torch.sin(t / 2.3) + torch.cos(t / 3.7) + 0.1 * torch.randn(1500)
    windows = wave.unfold(0, 16, 1)
    model = Series()
    return Training(
        model,
        sampled(windows[:, :12], windows[:, 12:], size=32),
        forecast,
        torch.optim.RMSprop(model.parameters(), lr=3e-3),
        steps=200,
    )


def radam_patches() -> Training:
    """RAdam on a CNN with group norm and dropout kept off."""
    torch.manual_seed(75)
    x, y = scaled_digits()
    model = nn.Sequential(
        nn.Conv2d(1, 24, 2, stride=2),
        nn.GroupNorm(4, 24),
        nn.Mish(),
        nn.Conv2d(24, 32, 2, stride=2),
        nn.GroupNorm(4, 32),
        nn.Mish(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    return Training(
        model,
        sampled(x.view(-1, 1, 8, 8), y, size=48),
        cross_entropy,
        torch.optim.RAdam(model.parameters(), lr=5e-3),
        steps=120,
    )


NUMBERS = Healthy(
    "ind10-numbers-fine",
    runs={
        "autocast-bfloat16": brain_resnet,
        "to-near-zero": by_heart,
        "batches-of-two": one_by_one,
        "batches-of-a-thousand": large_batches,
    },
)

DATA = Healthy(
    "ind10-data-fine",
    runs={"own-standard": series, "patches-radam": radam_patches},
)

THEMES = [STEPS, NUMBERS, DATA]
