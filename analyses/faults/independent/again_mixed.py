"""Healthy runs of many kinds: narrow, frozen, tied, noisy, adversarial, self-taught and so on."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_again_parts import (
    classify,
    digit_batch,
    digits,
    drawn,
    text_batch,
)
from analyses.faults.training import Batch, Training, ordinary


def denoiser() -> Training:
    """A dense autoencoder, eight wide in the middle."""
    torch.manual_seed(101)
    model = nn.Sequential(
        nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 8), nn.Linear(8, 96), nn.ReLU(),
        nn.Linear(96, 64),
    )  # fmt: skip
    x, _ = digits()
    noisy = x + 0.4 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))

    def loss(model: nn.Module, given: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(model(given), wanted)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(noisy, x), loss, optimizer, steps=250)


class ConvVAE(nn.Module):
    """Two strided convolutions, six latent numbers, and back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.Conv2d(1, 16, 3, 2, 1), nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.SiLU()
        )
        self.mean, self.spread = nn.Linear(128, 6), nn.Linear(128, 6)
        self.widen = nn.Linear(6, 128)
        self.leave = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.enter(x).flatten(1)
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
        return self.leave(F.silu(self.widen(z)).view(-1, 32, 2, 2)), mean, spread


def conv_vae() -> Training:
    torch.manual_seed(102)
    model = ConvVAE()

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        back, mean, spread = model(x)
        apart = 0.5 * (mean**2 + spread.exp() - 1 - spread).sum(1).mean()
        return (back - x).square().sum((1, 2, 3)).mean() + 0.3 * apart

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(images=True), loss, optimizer, steps=250, clip=100.0)


def frozen_backbone() -> Training:
    """A linear probe and a small head on a pretrained network that stays as it is."""
    torch.manual_seed(103)
    body = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    model = nn.Sequential(body, nn.Linear(256, 10))
    batch = digit_batch(images=True)
    before = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(50):
        F.cross_entropy(model(batch(9000 + step)[0]), batch(9000 + step)[1] // 2).backward()
        before.step()
        before.zero_grad()
    body.requires_grad_(False)
    model[1] = nn.Sequential(nn.LayerNorm(256), nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model[1].parameters(), lr=3e-3)
    return Training(model, batch, classify, optimizer, steps=120)


class Adapted(nn.Module):
    """A frozen linear layer with a low-rank addition, scaled."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.normal_(self.up.weight, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x) + 2.0 * self.up(self.down(x))


def adapters() -> Training:
    """Low-rank adapters for mirrored digits, on a network that knows digits."""
    torch.manual_seed(104)
    model = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU())
    model.append(nn.Linear(64, 10))
    batch = digit_batch()
    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(80):
        classify(model, *batch(9000 + step)).backward()
        before.step()
        before.zero_grad()
    for place in (0, 2, 4):
        model[place] = Adapted(model[place], 4)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x.view(-1, 8, 8).flip(2).flatten(1)), y)

    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class MeanTeacher(nn.Module):
    """A student, and a teacher that is the mean of its past."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(
            nn.Linear(64, 96), nn.LayerNorm(96), nn.SiLU(), nn.Linear(96, 10)
        )
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def mean_teacher() -> Training:
    torch.manual_seed(105)
    model = MeanTeacher()

    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        said = model.student(x + 0.2 * torch.randn_like(x))
        with torch.no_grad():
            told = model.teacher(x + 0.2 * torch.randn_like(x)).softmax(-1)
        return F.cross_entropy(said[:16], y[:16]) + (said.softmax(-1) - told).square().sum(1).mean()

    def step(training: Training, step: int) -> dict[str, Any]:
        logged = ordinary(training, step)
        with torch.no_grad():
            for old, new in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                old.lerp_(new, 0.05)
        return logged

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(), loss, optimizer, steps=200, step=step)


class Tied(nn.Module):
    """A language model of LSTM cells whose output matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 40)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.cell = nn.LSTMCell(40, 40)
        self.bias = nn.Parameter(torch.zeros(15))

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(len(x), 40)
        said = []
        for e in self.embed(x).unbind(1):
            h, c = self.cell(e, (h, c))
            said.append(F.linear(h, self.embed.weight, self.bias))
        return torch.stack(said, 1)


def tied() -> Training:
    torch.manual_seed(106)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, text_batch(length=18), classify, optimizer, steps=150, clip=1.0)


class Residual(nn.Module):
    """A block of batch-normalised convolutions with a shortcut."""

    def __init__(self, inside: int, out: int, stride: int) -> None:
        super().__init__()
        self.path = nn.Sequential(
            nn.Conv2d(inside, out, 3, stride, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(),
            nn.Conv2d(out, out, 3, 1, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip
        self.short: nn.Module = nn.Identity()
        if stride > 1 or inside != out:
            self.short = nn.Sequential(
                nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out)
            )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.path(x) + self.short(x))


def residual() -> Training:
    """A small residual network, momentum, one cycle of a cosine, label smoothing."""
    torch.manual_seed(107)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        Residual(16, 16, 1), Residual(16, 32, 2), Residual(32, 32, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y, label_smoothing=0.1)

    optimizer = torch.optim.SGD(model.parameters(), 0.05, 0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 120)
    batch = digit_batch(48, images=True)
    return Training(model, batch, loss, optimizer, steps=120, schedule=schedule)


def siamese() -> Training:
    """Pairs of digits, near if alike and apart by a margin if not."""
    torch.manual_seed(108)
    model = nn.Sequential(nn.Linear(64, 128), nn.PReLU(), nn.Linear(128, 16))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        a, b = model(x[:64]), model(x[64:])
        far = ((a - b).square().sum(1) + 1e-6).sqrt()
        alike = (y[:64] == y[64:]).float()
        return (alike * far**2 + 0.3 * (1 - alike) * (3 - far).clamp(min=0) ** 2).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batch(128), loss, optimizer, steps=200)


class TwoViews(nn.Module):
    """An encoder with a projector, and a predictor on one side."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 48), nn.BatchNorm1d(48)
        )
        self.predict = nn.Sequential(
            nn.Linear(48, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Linear(24, 48)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x)
        return self.predict(z), z.detach()


def two_views() -> Training:
    """Two noisy views predict each other; the target's side is cut on purpose."""
    torch.manual_seed(109)
    model = TwoViews()

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        p, z = model(x + 0.5 * torch.randn_like(x))
        q, w = model(x + 0.5 * torch.randn_like(x))
        return 1 - 0.5 * (F.cosine_similarity(p, w).mean() + F.cosine_similarity(q, z).mean())

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    return Training(model, digit_batch(), loss, optimizer, steps=150)


class Recommender(nn.Module):
    """Users and films, their embeddings through a shared network and a product."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.films = nn.Embedding(60, 12), nn.Embedding(80, 12)
        self.mix = nn.Sequential(nn.Linear(24, 32), nn.LeakyReLU(0.1), nn.Linear(32, 1))

    def forward(self, u: Tensor, f: Tensor) -> Tensor:
        a, b = self.users(u), self.films(f)
        return self.mix(torch.cat([a, b], -1)).squeeze(-1) + (a * b).sum(-1) / 12**0.5


def recommender() -> Training:
    torch.manual_seed(110)
    model = Recommender()
    u, f = torch.arange(60).repeat_interleave(80), torch.arange(80).repeat(60)
    taste, kind = torch.randn(60, 3), torch.randn(80, 3)
    stars = (taste[u] * kind[f]).sum(-1) / 3**0.5 + 0.5 * kind[f, 0]

    def loss(model: nn.Module, u: Tensor, f: Tensor, stars: Tensor) -> Tensor:
        return F.mse_loss(model(u, f), stars)

    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.08)
    return Training(model, drawn(u, f, stars, size=256), loss, optimizer, steps=300)


class Attends(nn.Module):
    """Graph attention with additive scores over each node's neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(6, 24)
        self.send = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.score = nn.ModuleList(nn.Linear(48, 1) for _ in range(2))
        self.leave = nn.Linear(24, 1)

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        h = F.elu(self.enter(x))
        n = h.shape[1]
        for send, score in zip(self.send, self.score, strict=True):
            m = send(h)
            pairs = torch.cat([m[:, :, None].expand(-1, -1, n, -1),
                               m[:, None].expand(-1, n, -1, -1)], -1)  # fmt: skip
            s = F.leaky_relu(score(pairs).squeeze(-1), 0.2).masked_fill(links == 0, -1e9)
            h = h + F.elu(s.softmax(-1) @ m)
        return self.leave(h).squeeze(-1)


def graph_attention() -> Training:
    torch.manual_seed(111)
    model = Attends()

    def batch(step: int) -> Batch:
        chance = torch.Generator().manual_seed(step)
        x = torch.randn(12, 10, 6, generator=chance)
        links = (torch.rand(12, 10, 10, generator=chance) < 0.3).float()
        links = ((links + links.mT + torch.eye(10)) > 0).float()
        near = links / links.sum(-1, keepdim=True)
        return x, links, (near @ x[..., :1]).squeeze(-1) * 2 + x[..., 1].abs()

    def loss(model: nn.Module, x: Tensor, links: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, links), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=250)


class Dilated(nn.Module):
    """Causal convolutions with growing dilation, weight-normalised, with residuals."""

    def __init__(self) -> None:
        super().__init__()
        norm = torch.nn.utils.parametrizations.weight_norm
        self.enter = nn.Conv1d(1, 24, 1)
        self.layers = nn.ModuleList(norm(nn.Conv1d(24, 24, 3, dilation=2**i)) for i in range(4))
        self.leave = nn.Conv1d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for i, layer in enumerate(self.layers):
            h = h + F.gelu(layer(F.pad(h, (2 * 2**i, 0))))
        return self.leave(h)


def waves(step: int) -> Batch:
    chance = torch.Generator().manual_seed(step)
    pace = 0.2 + 0.4 * torch.rand(24, 1, 1, generator=chance)
    shift = 6.3 * torch.rand(24, 1, 1, generator=chance)
    t = torch.arange(49.0)
    x = (pace * t + shift).sin() + 0.5 * (2.1 * pace * t).cos()
    x = x + 0.05 * torch.randn(x.shape, generator=chance)
    return x[..., :-1], x[..., 1:]


def forecast() -> Training:
    torch.manual_seed(112)
    model = Dilated()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(model(x)[..., 8:], y[..., 8:])

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, waves, loss, optimizer, steps=200)


def mixture() -> Training:
    """A mixture density network on a curve with three answers."""
    torch.manual_seed(113)
    model = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
    model.append(nn.Linear(48, 15))
    y = torch.rand(2000, 1) * 2 - 1
    x = y + 0.3 * (2 * math.pi * y).sin() + 0.05 * torch.randn_like(y)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        weight, mean, spread = model(x).chunk(3, -1)
        spread = F.softplus(spread) + 0.03
        each = -0.5 * ((y - mean) / spread) ** 2 - spread.log() - 0.92
        return -(weight.log_softmax(-1) + each).logsumexp(-1).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, drawn(x, y, size=128), loss, optimizer, steps=350)


def quantiles() -> Training:
    """Three quantiles of a noisy answer, the noise growing with one input."""
    torch.manual_seed(114)
    model = nn.Sequential(
        nn.Linear(5, 64), nn.Softplus(), nn.Linear(64, 64), nn.Softplus(), nn.Linear(64, 3)
    )
    x = torch.randn(1500, 5)
    y = 2 * x[:, 0] + x[:, 1] * x[:, 2] + (0.2 + x[:, 3].abs()) * torch.randn(1500) * 0.5
    levels = torch.tensor([0.1, 0.5, 0.9])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        off = y[:, None] - model(x)
        return torch.maximum(levels * off, (levels - 1) * off).mean()

    optimizer = torch.optim.NAdam(model.parameters(), lr=3e-3)
    return Training(model, drawn(x, y, size=128), loss, optimizer, steps=250)


class Bits(nn.Module):
    """An autoencoder of 24 bits, with a straight-through sign."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.ELU(), nn.Linear(96, 24))
        self.decoder = nn.Sequential(nn.Linear(24, 96), nn.ELU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> Tensor:
        soft = self.encoder(x).tanh()
        hard = torch.where(soft > 0, 1.0, -1.0)
        return self.decoder(soft + (hard - soft).detach())


def bits() -> Training:
    torch.manual_seed(115)
    model = Bits()

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return F.mse_loss(model(x), x)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batch(), loss, optimizer, steps=250)


def gpt2() -> Training:
    """The library's GPT-2, two layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(116)
    config = GPT2Config(
        vocab_size=15,
        n_positions=24,
        n_embd=48,
        n_layer=2,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = GPT2LMHeadModel(config)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=x).logits.flatten(0, 1), y.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, text_batch(16), loss, optimizer, steps=120, clip=1.0)


class PointSet(nn.Module):
    """Points one by one, the largest of each feature, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 48))
        self.all = nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Dropout(0.2), nn.Linear(32, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.all(self.each(x).amax(1))


def shapes(step: int) -> Batch:
    """Points on a circle, a square or a cross, noisy."""
    chance = torch.Generator().manual_seed(step)
    y = torch.randint(3, (48,), generator=chance)
    t = torch.rand(48, 24, generator=chance) * 2 * math.pi
    circle = torch.stack([t.cos(), t.sin()], -1)
    square = circle / circle.abs().amax(-1, keepdim=True)
    flip = (torch.rand(48, 24, 1, generator=chance) < 0.5).float()
    along = (t / math.pi - 1)[..., None] * torch.tensor([1.0, 1.0])
    cross = along * torch.cat([torch.ones_like(flip), 1 - 2 * flip], -1)
    x = torch.stack([circle, square, cross])[y, torch.arange(48)]
    return x + 0.03 * torch.randn(x.shape, generator=chance), y


def points() -> Training:
    torch.manual_seed(117)
    model = PointSet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, shapes, classify, optimizer, steps=250)


class Motion(nn.Module):
    """A learned acceleration, integrated for ten steps."""

    def __init__(self) -> None:
        super().__init__()
        self.force = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1))

    def forward(self, state: Tensor) -> Tensor:
        seen = []
        for _ in range(10):
            speed = state[:, 1:] + 0.15 * self.force(state)
            state = torch.cat([state[:, :1] + 0.15 * speed, speed], -1)
            seen.append(state)
        return torch.stack(seen, 1)


def pendulum() -> Training:
    torch.manual_seed(118)
    model = Motion()
    start = torch.randn(800, 2)
    state, path = start, []
    for _ in range(10):
        speed = state[:, 1:] + 0.15 * (-2 * state[:, :1].sin() - 0.2 * state[:, 1:])
        state = torch.cat([state[:, :1] + 0.15 * speed, speed], -1)
        path.append(state)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, drawn(start, torch.stack(path, 1)), loss, optimizer, steps=200)


class ActorCritic(nn.Module):
    """A policy and a value from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(6, 48), nn.Tanh())
        self.policy, self.value = nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.policy(h), self.value(h).squeeze(-1)


def actor_critic() -> Training:
    """A contextual bandit; the baseline takes no gradient from the policy's part."""
    torch.manual_seed(119)
    model = ActorCritic()
    worth = torch.randn(6, 4)

    def batch(step: int) -> Batch:
        return (torch.randn(128, 6, generator=torch.Generator().manual_seed(step)),)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        scores, value = model(x)
        chosen = torch.distributions.Categorical(logits=scores)
        act = chosen.sample()
        reward = (x @ worth).gather(1, act[:, None]).squeeze(1)
        better = (reward - value).detach()
        part = -(chosen.log_prob(act) * better).mean() - 0.01 * chosen.entropy().mean()
        return part + 0.5 * F.mse_loss(value, reward)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=250)


class Uncertain(nn.Module):
    """Three tasks weighed by learned uncertainties; a U-shaped network."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 12, 3, padding=1)
        self.down2 = nn.Conv2d(12, 24, 3, 2, 1)
        self.up = nn.ConvTranspose2d(24, 12, 2, 2)
        self.fuse = nn.Conv2d(24, 12, 3, padding=1)
        self.mask, self.edge = nn.Conv2d(12, 1, 1), nn.Conv2d(12, 1, 1)
        self.kind = nn.Linear(24 * 16, 10)
        self.doubts = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = F.silu(self.down1(x))
        b = F.silu(self.down2(a))
        c = F.silu(self.fuse(torch.cat([a, F.silu(self.up(b))], 1)))
        return self.mask(c), self.edge(c), self.kind(b.flatten(1))


def uncertain() -> Training:
    torch.manual_seed(120)
    model = Uncertain()

    def loss(model: Any, x: Tensor, y: Tensor) -> Tensor:
        seen = x + 0.3 * torch.randn_like(x)
        mask, edge, kind = model(seen)
        slope = F.pad((x[..., 1:] - x[..., :-1]).abs(), (0, 1))
        parts = torch.stack([
            F.binary_cross_entropy_with_logits(mask, (x > 0).float()),
            F.mse_loss(edge, slope),
            F.cross_entropy(kind, y),
        ])  # fmt: skip
        return ((-model.doubts).exp() * parts + 0.5 * model.doubts).sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(48, images=True), loss, optimizer, steps=150)


MIXED = Healthy(
    "ind2-mixed",
    {
        "denoising-autoencoder": denoiser,
        "conv-vae": conv_vae,
        "frozen-backbone": frozen_backbone,
        "low-rank-adapters": adapters,
        "mean-teacher": mean_teacher,
        "tied-lstm": tied,
        "residual-network": residual,
        "siamese-margin": siamese,
        "two-views": two_views,
        "recommender": recommender,
        "graph-attention": graph_attention,
        "dilated-forecast": forecast,
        "mixture-density": mixture,
        "quantile-regression": quantiles,
        "bits-straight-through": bits,
        "gpt2": gpt2,
        "point-sets": points,
        "learned-motion": pendulum,
        "actor-critic": actor_critic,
        "uncertain-tasks": uncertain,
    },
    flat={"actor-critic": "a policy's loss rests on its own samples; the reward rises"},
)

THEMES = [MIXED]
