"""Healthy runs of networks with many branches."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_third_parts import (
    Causal,
    blobs,
    cross_entropy,
    digits,
    grammar,
    mlp,
    rng,
    training,
)
from analyses.faults.training import Batch, Training

# Convolutional networks.


class Bottleneck(nn.Module):
    """A residual block that narrows, with a projection where the shape changes."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(before, after // 2, 1, bias=False),
            nn.BatchNorm2d(after // 2),
            nn.ReLU(),
            nn.Conv2d(after // 2, after // 2, 3, stride, 1, bias=False),
            nn.BatchNorm2d(after // 2),
            nn.ReLU(),
            nn.Conv2d(after // 2, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = (
            nn.Identity()
            if before == after and stride == 1
            else nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.branch(x))


def bottlenecks() -> Training:
    """A residual network with projections."""
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        Bottleneck(16, 16, 1),
        Bottleneck(16, 32, 2),
        Bottleneck(32, 32, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    run = training(model, digits(48), cross_entropy, "momentum", 0.05, steps=150)
    run.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(run.optimizer, 150)
    return run


class UNet(nn.Module):
    """Three levels, joined by concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.one = self.block(1, 8)
        self.two = self.block(8, 16)
        self.three = self.block(16, 24)
        self.up_two = nn.ConvTranspose2d(24, 16, 2, 2)
        self.back_two = self.block(32, 16)
        self.up_one = nn.ConvTranspose2d(16, 8, 2, 2)
        self.back_one = self.block(16, 8)
        self.out = nn.Conv2d(8, 1, 1)

    @staticmethod
    def block(before: int, after: int) -> nn.Sequential:
        """Convolution, norm, activation."""
        return nn.Sequential(
            nn.Conv2d(before, after, 3, padding=1), nn.GroupNorm(4, after), nn.SiLU()
        )

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.two(F.max_pool2d(a, 2))
        c = self.three(F.max_pool2d(b, 2))
        b = self.back_two(torch.cat([b, self.up_two(c)], dim=1))
        a = self.back_one(torch.cat([a, self.up_one(b)], dim=1))
        out: Tensor = self.out(a)
        return out


def unet() -> Training:
    """Discs are found in noise."""
    torch.manual_seed(52)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        told = model(x)
        share = told.sigmoid()
        dice = 1 - 2 * (share * y).sum() / (share.sum() + y.sum() + 1)
        return F.binary_cross_entropy_with_logits(told, y) + 0.5 * dice

    return training(UNet(), blobs(12), loss, "adamw", 3e-3, steps=120)


class Inception(nn.Module):
    """Four paths of different reach side by side."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(before, 8, 1)
        self.three = nn.Sequential(
            nn.Conv2d(before, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, padding=1)
        )
        self.five = nn.Sequential(
            nn.Conv2d(before, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 5, padding=2)
        )
        self.pool = nn.Sequential(nn.MaxPool2d(3, 1, 1), nn.Conv2d(before, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        paths = [path(x) for path in (self.point, self.three, self.five, self.pool)]
        return F.relu(torch.cat(paths, dim=1))


class Inceptions(nn.Module):
    """Two such layers, with a second classifier halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.first, self.second = Inception(12), Inception(32)
        self.halfway = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))
        self.end = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.first(self.start(x))
        return self.end(self.second(h)), self.halfway(h)


def inception() -> Training:
    """A network of parallel paths, with its second classifier weighted by 0.3."""
    torch.manual_seed(53)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        end, halfway = model(x)
        return F.cross_entropy(end, y) + 0.3 * F.cross_entropy(halfway, y)

    return training(Inceptions(), digits(48), loss, "rmsprop", 1e-3, steps=150)


class Dense(nn.Module):
    """Every layer reads all before it."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Conv2d(1, 12, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(w), nn.ReLU(), nn.Conv2d(w, 8, 3, padding=1))
            for w in (12, 20, 28, 36)
        )
        self.head = nn.Linear(44, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.start(x)
        for layer in self.layers:
            h = torch.cat([h, layer(h)], dim=1)
        out: Tensor = self.head(F.relu(h).mean((2, 3)))
        return out


def dense() -> Training:
    """A densely connected network."""
    torch.manual_seed(54)
    return training(Dense(), digits(32), cross_entropy, "momentum", 0.1, steps=150)


class Squeezed(nn.Module):
    """A residual block whose channels are weighted by what is in the image."""

    def __init__(self, width: int, kept: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.weigh = nn.Sequential(
            nn.Linear(width, 6), nn.SiLU(), nn.Linear(6, width), nn.Sigmoid()
        )
        self.kept = kept

    def forward(self, x: Tensor) -> Tensor:
        if self.training and float(torch.rand(())) > self.kept:
            return x  # stochastic depth
        h = self.branch(x)
        return x + h * self.weigh(h.mean((2, 3)))[..., None, None] / self.kept


def stochastic_depth() -> Training:
    """Residual blocks that are left out now and then, with weighted channels."""
    torch.manual_seed(55)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, 2, 1),
        *(Squeezed(16, kept) for kept in (0.95, 0.9, 0.8, 0.7)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    return training(model, digits(48), cross_entropy, "adam", 3e-3, steps=150)


CONVOLUTIONS = Healthy(
    "ind3-parts-convolutions",
    runs={
        "bottlenecks": bottlenecks,
        "unet": unet,
        "inception": inception,
        "dense": dense,
        "stochastic-depth": stochastic_depth,
    },
)


# Several losses, several networks.


class Balanced(nn.Module):
    """Experts of which every token is sent to the best two."""

    def __init__(self, width: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.experts = nn.ModuleList(mlp(width, 40, width) for _ in range(experts))
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(0, 1)
        shares = self.router(flat).softmax(-1)
        top, chosen = shares.topk(2, dim=-1)
        top = top / top.sum(-1, keepdim=True)
        mixed = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            row, rank = (chosen == i).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, row, expert(flat[row]) * top[row, rank, None])
        used = F.one_hot(chosen, len(self.experts)).float().mean((0, 1))
        self.balance = len(self.experts) * (used * shares.mean(0)).sum()
        return mixed.view_as(x)


class BalancedModel(nn.Module):
    """A language model with one such layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.place = nn.Parameter(0.1 * torch.randn(24, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.attention = Causal(32)
        self.experts = Balanced(32, 4)
        self.out = nn.Linear(32, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        h = h + self.attention(self.norms[0](h))
        h = h + self.experts(self.norms[1](h))
        out: Tensor = self.out(self.norms[2](h))
        return out


def balanced_experts() -> Training:
    """A mixture of experts with a loss that keeps all in use."""
    torch.manual_seed(61)

    def loss(model: BalancedModel, x: Tensor, y: Tensor) -> Tensor:
        found = cross_entropy(model, x, y)
        return found + 0.01 * model.experts.balance

    return training(BalancedModel(), grammar(), loss, "adamw", 3e-3, steps=150)


class Tasks(nn.Module):
    """One trunk, four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(768, 64), nn.ELU()
        )
        self.digit = nn.Linear(64, 10)
        self.odd = nn.Linear(64, 1)
        self.ink = mlp(64, 16, 1, between=nn.SiLU)
        self.draw = mlp(64, 64, 64, between=nn.SiLU)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        h = self.trunk(x)
        return self.digit(h), self.odd(h)[:, 0], self.ink(h)[:, 0], self.draw(h)


def four_tasks() -> Training:
    """Two classifications, a regression and a reconstruction at once."""
    torch.manual_seed(62)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        digit, odd, ink, draw = model(x)
        return (
            F.cross_entropy(digit, y)
            + F.binary_cross_entropy_with_logits(odd, (y % 2).float())
            + F.smooth_l1_loss(ink, 4 * x.mean((1, 2, 3)))
            + 0.5 * F.mse_loss(draw, x.flatten(1))
        )

    return training(Tasks(), digits(48), loss, "adam", 1e-3, steps=150)


class Views(nn.Module):
    """An encoder of two views, and a projection."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(256, 48),
        )
        self.project = nn.Sequential(nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24))
        self.probe = nn.Linear(48, 10)

    def forward(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h, i = self.encoder(a), self.encoder(b)
        z, w = (F.normalize(self.project(t), dim=-1) for t in (h, i))
        return z, w, self.probe(h.detach())


def contrastive() -> Training:
    """Contrastive learning; a probe is trained on the side, on a code that it doesn't change."""
    torch.manual_seed(63)

    def batch(step: int) -> Batch:
        x, y = digits(48, salt=63)(step)
        g = rng(step, 64)
        views = (x + 0.4 * torch.randn(x.shape, generator=g) for _ in range(2))
        return *views, y

    def loss(model: nn.Module, a: Tensor, b: Tensor, y: Tensor) -> Tensor:
        z, w, told = model(a, b)
        logits = z @ w.T / 0.2
        here = torch.arange(len(z))
        both = F.cross_entropy(logits, here) + F.cross_entropy(logits.T, here)
        return both / 2 + F.cross_entropy(told, y)

    return training(Views(), batch, loss, "adam", 2e-3, steps=150)


class Adversaries(nn.Module):
    """A generator of points and its critic."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 48),
            nn.LeakyReLU(0.2),
            nn.Linear(48, 48),
            nn.LeakyReLU(0.2),
            nn.Linear(48, 2),
        )
        self.critic = nn.Sequential(
            nn.Linear(2, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 64),
            nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )


def adversaries() -> Training:
    """Points on a ring are made; both networks take turns, each with its own optimizer."""
    torch.manual_seed(64)
    model = Adversaries()

    def batch(step: int) -> Batch:
        g = rng(step, 65)
        angle = 6.2832 * torch.rand(64, generator=g)
        ring = torch.stack([angle.cos(), angle.sin()], dim=-1)
        return ring + 0.05 * torch.randn(64, 2, generator=g), torch.randn(64, 4, generator=g)

    def loss(model: Adversaries, real: Tensor, noise: Tensor) -> Tensor:
        return F.softplus(-model.critic(model.generator(noise))).mean()

    def step(run: Training, at: int) -> dict[str, Tensor]:
        real, noise = run.batch(at)
        made = model.generator(noise)
        judged = F.softplus(-model.critic(real)) + F.softplus(model.critic(made.detach()))
        judged.mean().backward()
        run.optimizer.step()
        model.zero_grad()
        found = run.loss_at(at)
        found.backward()
        run.others[0].step()
        model.zero_grad()
        return {"loss": found.detach(), "critic": judged.mean().detach()}

    run = training(model, batch, loss, held=model.critic.parameters(), steps=200)
    run.optimizer = torch.optim.Adam(model.critic.parameters(), lr=2e-3, betas=(0.5, 0.9))
    run.others = [torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.9))]
    run.step = step
    return run


class Variational(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.Softplus())
        self.mean, self.log_variance = nn.Linear(96, 8), nn.Linear(96, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.Softplus(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.log_variance(h)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        return self.decoder(z), mean, log_variance


def variational() -> Training:
    """Digits drawn from a random code."""
    torch.manual_seed(65)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        drawn, mean, log_variance = model(x)
        prior = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1).mean() / 2
        return (drawn - x).square().sum(-1).mean() / 64 + 0.02 * prior

    return training(Variational(), digits(64, flat=True), loss, "adam", 2e-3, steps=200)


class Pupil(nn.Module):
    """A network and its moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.student = nn.Sequential(
            nn.Conv2d(1, 12, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(192, 48), nn.GELU(),
            nn.Linear(48, 10),
        )  # fmt: skip
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)


def mean_teacher() -> Training:
    """Few labels; for the rest the student should agree with its own moving average."""
    torch.manual_seed(66)
    model = Pupil()

    def loss(model: Pupil, x: Tensor, y: Tensor) -> Tensor:
        told = model.student(x)
        with torch.no_grad():
            goal = model.teacher(x).softmax(-1)
        return F.cross_entropy(told[:16], y[:16]) + F.mse_loss(told.softmax(-1), goal)

    def step(run: Training, at: int) -> dict[str, Tensor]:
        found = run.loss_at(at)
        found.backward()
        run.optimizer.step()
        run.optimizer.zero_grad()
        with torch.no_grad():
            for mine, theirs in zip(
                model.teacher.parameters(), model.student.parameters(), strict=True
            ):
                mine.lerp_(theirs, 0.05)
        return {"loss": found.detach()}

    run = training(
        model, digits(64), loss, "momentum", 0.03, held=model.student.parameters(), steps=180
    )
    run.step = step
    return run


class Predicting(nn.Module):
    """An encoder and a predictor of the other view's code."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 32),
            nn.BatchNorm1d(32, affine=False),
        )  # fmt: skip
        self.predict = nn.Sequential(
            nn.Linear(32, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 32)
        )


def stopped() -> Training:
    """Siamese learning without negatives: the goal's gradient is stopped."""
    torch.manual_seed(67)

    def batch(step: int) -> Batch:
        x = digits(64, flat=True, salt=67)(step)[0]
        g = rng(step, 68)
        a, b = (x + 0.3 * torch.randn(x.shape, generator=g) for _ in range(2))
        return a, b

    def loss(model: Predicting, a: Tensor, b: Tensor) -> Tensor:
        z, w = model.encoder(a), model.encoder(b)
        p, q = model.predict(z), model.predict(w)
        there = F.cosine_similarity(p, w.detach()) + F.cosine_similarity(q, z.detach())
        return 1 - there.mean() / 2

    return training(Predicting(), batch, loss, "momentum", 0.05, steps=150)


SEVERAL = Healthy(
    "ind3-parts-several",
    runs={
        "balanced-experts": balanced_experts,
        "four-tasks": four_tasks,
        "contrastive": contrastive,
        "adversaries": adversaries,
        "variational": variational,
        "mean-teacher": mean_teacher,
        "stopped": stopped,
    },
    flat={"adversaries": "a generator's loss depends on how good its critic is by then"},
)


# Gates that open, weights in two places, parameters that rest.


class Opening(nn.Module):
    """A transformer block whose branches start at weight zero."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = Causal(width)
        self.feed = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.first, self.second = (nn.Parameter(torch.zeros(())) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first * self.attention(x)
        return x + self.second * self.feed(x)


class OpeningModel(nn.Module):
    """A language model of such blocks; its output is its embedding, turned round."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.place = nn.Embedding(24, width)
        self.blocks = nn.Sequential(*(Opening(width) for _ in range(4)))
        self.out = nn.Linear(width, 20, bias=False)
        self.out.weight = self.embed.weight
        nn.init.normal_(self.embed.weight, std=width**-0.5)
        nn.init.normal_(self.place.weight, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place.weight
        out: Tensor = self.out(self.blocks(h))
        return out


def opening() -> Training:
    """Residual branches start at weight zero; embedding and output share their weights."""
    torch.manual_seed(71)
    return training(OpeningModel(), grammar(), cross_entropy, "adam", 5e-3, steps=200)


class Adapted(nn.Module):
    """A frozen network with low-rank additions that start at zero, and a new head."""

    def __init__(self, width: int = 64, rank: int = 4) -> None:
        super().__init__()
        self.base = nn.ModuleList(nn.Linear(width, width) for _ in range(3)).requires_grad_(False)
        self.down = nn.ModuleList(nn.Linear(width, rank, bias=False) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(rank, width, bias=False) for _ in range(3))
        for up in self.up:
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        for base, down, up in zip(self.base, self.down, self.up, strict=True):
            x = torch.tanh(2 * (base(x) + up(down(x))))
        out: Tensor = self.head(self.norm(x))
        return out


def adapted() -> Training:
    """Low-rank adapters of a frozen network."""
    torch.manual_seed(72)
    model = Adapted()
    held = [p for p in model.parameters() if p.requires_grad]
    return training(
        model, digits(64, flat=True), cross_entropy, "adamw", 3e-3, held=held, steps=150
    )


class Shop(nn.Module):
    """A recommender: factors and a network over the same sparse embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(60, 12, sparse=True)
        self.items = nn.Embedding(80, 12, sparse=True)
        self.deep = mlp(24, 32, 1)
        nn.init.normal_(self.users.weight, std=0.3)
        nn.init.normal_(self.items.weight, std=0.3)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.users(user), self.items(item)
        out: Tensor = (u * i).sum(-1) + self.deep(torch.cat([u, i], dim=-1))[:, 0]
        return out


def shop() -> Training:
    """Sparse embeddings with their own optimizer."""
    torch.manual_seed(73)
    model = Shop()
    true_users, true_items = torch.randn(60, 3), torch.randn(80, 3)

    def batch(step: int) -> Batch:
        g = rng(step, 73)
        user = torch.randint(60, (256,), generator=g)
        item = torch.randint(80, (256,), generator=g)
        return user, item, (true_users[user] * true_items[item]).sum(-1)

    def loss(model: nn.Module, user: Tensor, item: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(user, item), y)

    def step(run: Training, at: int) -> dict[str, Tensor]:
        found = run.loss_at(at)
        found.backward()
        run.optimizer.step()
        run.others[0].step()
        run.model.zero_grad()
        return {"loss": found.detach()}

    run = training(model, batch, loss, "adam", 3e-3, held=model.deep.parameters(), steps=250)
    sparse = [model.users.weight, model.items.weight]
    run.others = [torch.optim.SparseAdam(sparse, lr=2e-2)]
    run.step = step
    return run


class Gated(nn.Module):
    """A reader of a memory through a gate that starts closed."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.rows = nn.Linear(8, width)
        self.columns = nn.Linear(8, width)
        self.ask = nn.Linear(width, width)
        self.keys = nn.Linear(width, width)
        self.values = nn.Linear(width, width)
        self.gate = nn.Parameter(torch.zeros(()))
        self.head = mlp(width, 48, 10)

    def forward(self, x: Tensor) -> Tensor:
        h, memory = self.rows(x[:, 0]), self.columns(x[:, 0].transpose(1, 2))
        logits = self.ask(h) @ self.keys(memory).transpose(1, 2) / math.sqrt(h.shape[-1])
        read = logits.softmax(-1) @ self.values(memory)
        out: Tensor = self.head(F.gelu(h + torch.tanh(self.gate) * read).mean(1))
        return out


def gated() -> Training:
    """Cross-attention behind a gate that starts at zero and opens."""
    torch.manual_seed(74)
    return training(Gated(), digits(48), cross_entropy, "adam", 5e-3, steps=200)


class Stream(nn.Module):
    """A recurrent cell over a stream, with its state kept between steps."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 32)
        self.value = nn.Linear(32, 4)

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        told = []
        for now in x.unbind(1):
            h = self.cell(now, h)
            told.append(self.value(h))
        return torch.stack(told, 1), h


def stream() -> Training:
    """Backpropagation through time in pieces: the state goes on without its gradient."""
    torch.manual_seed(75)
    kept: dict[int, Tensor] = {}

    def batch(step: int) -> Batch:
        when = torch.arange(step * 8, step * 8 + 9)[None, :, None]
        rates = 0.2 + 0.05 * torch.arange(16)[:, None, None]
        shifts = torch.arange(4)[None, None]
        return ((when * rates + shifts).sin(),)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        h = kept.get(0, torch.zeros(16, 32))
        told, after = model(x[:, :-1], h)
        kept[1] = after.detach()
        return F.mse_loss(told, x[:, 1:])

    def step(run: Training, at: int) -> dict[str, Tensor]:
        found = run.loss_at(at)
        found.backward()
        nn.utils.clip_grad_norm_(run.model.parameters(), 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad()
        kept[0] = kept[1]
        return {"loss": found.detach()}

    run = training(Stream(), batch, loss, "adam", 5e-3, steps=150)
    run.step = step
    return run


class Pooled(nn.Module):
    """Points of a graph that hear from their neighbours by three kinds of means at once."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.start = nn.Linear(3, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.mean = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.most = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.head = nn.Linear(width, 2)

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        h = self.start(x)
        for own, mean, most, norm in zip(self.own, self.mean, self.most, self.norms, strict=True):
            others = near @ mean(h) / near.sum(-1, keepdim=True).clamp(min=1)
            apart = most(h)[:, None].masked_fill(near[..., None] == 0, -30.0)
            h = h + F.silu(norm(own(h) + others + apart.amax(2)))
        out: Tensor = self.head(h)
        return out


def neighbours() -> Training:
    """A network of graphs that sums three kinds of messages."""
    torch.manual_seed(76)

    def batch(step: int) -> Batch:
        x = torch.randn(12, 14, 3, generator=rng(step, 76))
        near = (torch.cdist(x, x) < 1.6).float()
        goal = torch.stack([near.sum(-1) / 4 - 1, (near @ x[..., :1])[..., 0] / 4], dim=-1)
        return x, near, goal

    def loss(model: nn.Module, x: Tensor, near: Tensor, goal: Tensor) -> Tensor:
        return F.mse_loss(model(x, near), goal)

    return training(Pooled(), batch, loss, "adam", 3e-3, steps=150)


OPENING = Healthy(
    "ind3-parts-opening",
    runs={
        "opening": opening,
        "adapted": adapted,
        "shop": shop,
        "gated": gated,
        "stream": stream,
        "neighbours": neighbours,
    },
)

THEMES = [CONVOLUTIONS, SEVERAL, OPENING]
