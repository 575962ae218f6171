"""Parts that are left out, stopped, weighted or stepped in turn on purpose, and learn well."""

from __future__ import annotations

import copy
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_ninth_d import (
    chance,
    digit_batches,
    digits,
    drawn,
    picture_batches,
)
from analyses.faults.training import Batch, Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def small_cnn(a: int, b: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, a, 3, padding=1), nn.BatchNorm2d(a), nn.ReLU(),
        nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * b, out),
    )  # fmt: skip


def distilled() -> Training:
    """A trained and frozen teacher tells a small student; nothing of it is to be trained."""
    torch.manual_seed(91)
    model = nn.ModuleDict({"teacher": small_cnn(16, 32, 10), "student": small_cnn(6, 10, 10)})
    x, y = digits()
    pictures = x.view(-1, 1, 8, 8)
    teach = torch.optim.Adam(model["teacher"].parameters(), 3e-3)
    for i in range(40):
        pick = torch.randint(len(x), (128,), generator=chance(i, 71))
        teach.zero_grad()
        F.cross_entropy(model["teacher"](pictures[pick]), y[pick]).backward()
        teach.step()
    model["teacher"].requires_grad_(False).eval()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        t = 3.0
        with torch.no_grad():
            told = F.softmax(model["teacher"](x) / t, -1)
        said = model["student"](x)
        soft = F.kl_div(F.log_softmax(said / t, -1), told, reduction="batchmean") * t * t
        return 0.7 * soft + 0.3 * F.cross_entropy(said, y)

    sgd = torch.optim.SGD(model["student"].parameters(), 0.03, momentum=0.9, nesterov=True)
    return Training(model, picture_batches(64, 72), loss, sgd, steps=140)


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(len(sizes) - 1):
        layers.append(nn.Linear(sizes[i], sizes[i + 1]))
        if i < len(sizes) - 2:
            layers += [nn.BatchNorm1d(sizes[i + 1]), nn.ReLU()]
    return nn.Sequential(*layers)


class Byol(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.online = mlp(64, 96, 32)
        self.predictor = mlp(32, 48, 32)
        self.target = copy.deepcopy(self.online)
        for p in self.target.parameters():
            p.requires_grad = False

    @torch.no_grad()
    def follow(self, tau: float = 0.98) -> None:
        for slow, fast in zip(self.target.parameters(), self.online.parameters(), strict=True):
            slow.lerp_(fast, 1 - tau)


def byol() -> Training:
    """Two noisy views; the online network predicts what its slow average makes of the other."""
    torch.manual_seed(92)
    model = Byol()

    def batch(step: int) -> Batch:
        g = chance(step, 73)
        x = digits()[0][torch.randint(1797, (96,), generator=g)]
        return tuple(torch.where(torch.rand(x.shape, generator=g) < 0.25, 0.0, x) for _ in range(2))

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        assert isinstance(model, Byol)
        total = torch.zeros(())
        for one, other in ((a, b), (b, a)):
            said = model.predictor(model.online(one))
            with torch.no_grad():
                aim = model.target(other)
            total = total + (2 - 2 * F.cosine_similarity(said, aim)).mean()
        return total

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        model.follow()
        return {"loss": loss.detach()}

    trained = [*model.online.parameters(), *model.predictor.parameters()]
    return Training(model, batch, loss, torch.optim.AdamW(trained, 1e-3), steps=150, step=step)


class Deep(nn.Module):
    """A convolutional network with classifiers on the way."""

    def __init__(self) -> None:
        super().__init__()
        widths = [1, 12, 16, 20]
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, padding=1),
                nn.BatchNorm2d(b),
                nn.ReLU(),
                nn.Conv2d(b, b, 3, padding=1),
                nn.BatchNorm2d(b),
            )
            for a, b in pairwise(widths)
        )
        self.exits = nn.ModuleList(nn.Linear(n, 10) for n in widths[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        outs = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = F.relu(stage(x))
            outs.append(leave(x.mean((2, 3))))
            x = F.avg_pool2d(x, 2) if x.shape[-1] > 2 else x
        return outs


def early_exits() -> Training:
    """The classifiers on the way count three tenths each."""
    torch.manual_seed(93)
    model = Deep()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        *aside, last = (F.cross_entropy(out, y) for out in model(x))
        return last + 0.3 * torch.stack(aside).sum()

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, picture_batches(48, 74), loss, adam, steps=130)


class Gan(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(8, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 2),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def gan() -> Training:
    """Points on a ring; discriminator and generator take turns, each by its own optimizer."""
    torch.manual_seed(94)
    model = Gan()
    for_g = torch.optim.Adam(model.generator.parameters(), 1e-3, betas=(0.5, 0.999))
    for_d = torch.optim.Adam(model.critic.parameters(), 1e-3, betas=(0.5, 0.999))

    def batch(step: int) -> Batch:
        g = chance(step, 75)
        angle = 6.2832 * torch.rand(96, generator=g)
        ring = torch.stack([angle.cos(), angle.sin()], -1) * 1.5
        return ring + 0.05 * torch.randn(96, 2, generator=g), torch.randn(96, 8, generator=g)

    def tells(model: Gan, real: Tensor, z: Tensor) -> Tensor:
        fake = model.generator(z).detach()
        return F.softplus(-model.critic(real)).mean() + F.softplus(model.critic(fake)).mean()

    def fools(model: Gan, z: Tensor) -> Tensor:
        return F.softplus(-model.critic(model.generator(z))).mean()

    def loss(model: nn.Module, real: Tensor, z: Tensor) -> Tensor:
        assert isinstance(model, Gan)
        return tells(model, real, z) + fools(model, z)

    def step(training: Training, step: int) -> dict[str, Any]:
        real, z = training.batch(step)
        for_d.zero_grad()
        d = tells(model, real, z)
        d.backward()
        for_d.step()
        for_g.zero_grad()
        g = fools(model, z)
        g.backward()
        for_g.step()
        return {"loss": g.detach(), "d": d.detach()}

    return Training(model, batch, loss, for_g, steps=200, step=step, others=[for_d])


class LowRank(nn.Module):
    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) * base.in_features**-0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2.0 * F.linear(F.linear(x, self.a), self.b)


def low_rank() -> Training:
    """A classifier of digits, trained, then told of new names for them by low-rank adapters."""
    torch.manual_seed(95)
    model = nn.Sequential(
        nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 128), nn.GELU(), nn.Linear(128, 10)
    )
    x, y = digits()
    first = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(50):
        first.zero_grad()
        F.cross_entropy(model(x), y).backward()
        first.step()
    for i in (0, 2, 4):
        model[i] = LowRank(model[i])  # type: ignore[arg-type]
    names = torch.randperm(10, generator=chance(3, 76))
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 5e-3)
    return Training(model, drawn(64, x, names[y], seed=77), classify, adamw, steps=150)


class Tied(nn.Module):
    """A causal transformer whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(24, 32)
        self.place = nn.Embedding(20, 32)
        self.layer = nn.TransformerEncoderLayer(
            32, 4, 96, 0.0, F.gelu, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(32)
        self.out = nn.Linear(32, 24, bias=False)
        nn.init.normal_(self.embed.weight, std=0.1)
        nn.init.normal_(self.place.weight, std=0.1)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n)
        h = self.embed(tokens) + self.place(torch.arange(n))
        return self.out(self.norm(self.layer(h, mask, is_causal=True)))


def tied() -> Training:
    """A made-up language in which two letters decide the next one, mostly."""
    torch.manual_seed(96)
    model = Tied()
    grammar = torch.stack([torch.randperm(24, generator=chance(i, 78)) for i in range(3)])

    def batch(step: int) -> Batch:
        g = chance(step, 79)
        text = [torch.randint(24, (24,), generator=g) for _ in range(2)]
        for _ in range(18):
            noise = torch.randint(24, (24,), generator=g)
            keep = torch.rand(24, generator=g) < 0.9
            text.append(torch.where(keep, grammar[text[-2] % 3, text[-1]], noise))
        return (torch.stack(text, 1),)

    def loss(model: nn.Module, text: Tensor) -> Tensor:
        return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())

    adamw = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01)
    return Training(model, batch, loss, adamw, steps=220, clip=1.0)


class Probe(nn.Module):
    """A frozen body in evaluation mode, and a head that is trained."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()
        self.head = nn.Sequential(nn.Linear(128, 32), nn.Tanh(), nn.Linear(32, 10))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            f = self.body(x)
        return self.head(f)


def probed() -> Training:
    """A body trained to tell turned pictures; its features name digits."""
    torch.manual_seed(97)
    body = small_cnn(12, 32, 4)
    pictures = digits()[0].view(-1, 1, 8, 8)
    adam = torch.optim.Adam(body.parameters(), 3e-3)
    for i in range(60):
        g = chance(i, 80)
        x = pictures[torch.randint(1797, (64,), generator=g)]
        turns = torch.randint(4, (64,), generator=g)
        turned = torch.stack([p.rot90(int(k), (1, 2)) for p, k in zip(x, turns, strict=True)])
        adam.zero_grad()
        F.cross_entropy(body(turned), turns).backward()
        adam.step()
    model = Probe(body[:-1])
    sgd = torch.optim.SGD(model.head.parameters(), 0.1, momentum=0.9)
    return Training(model, picture_batches(64, 81), classify, sgd, steps=160)


class Ddpg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.actor = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 1), nn.Tanh())
        self.critic = nn.Sequential(nn.Linear(4, 48), nn.SiLU(), nn.Linear(48, 1))
        self.slow_actor = copy.deepcopy(self.actor).requires_grad_(False)
        self.slow_critic = copy.deepcopy(self.critic).requires_grad_(False)


def ddpg() -> Training:
    """A point is pushed to the origin; actor, critic and their slow copies."""
    torch.manual_seed(98)
    model = Ddpg()
    pi = torch.optim.Adam(model.actor.parameters(), 1e-3)
    q = torch.optim.Adam(model.critic.parameters(), 3e-3)
    drift = 0.3 * torch.randn(3, 3, generator=chance(0, 82))

    def batch(step: int) -> Batch:
        g = chance(step, 83)
        return torch.randn(128, 3, generator=g), 2 * torch.rand(128, 1, generator=g) - 1

    def cost(state: Tensor, action: Tensor) -> Tensor:
        return (state[:, :1] + 0.5 * action).square() + 0.05 * action.square()

    def critics(model: Ddpg, state: Tensor, action: Tensor) -> Tensor:
        with torch.no_grad():
            then = state @ drift + 0.5 * action
            ahead = model.slow_critic(torch.cat([then, model.slow_actor(then)], -1))
            aim = -cost(state, action) + 0.8 * ahead
        return F.mse_loss(model.critic(torch.cat([state, action], -1)), aim)

    def actors(model: Ddpg, state: Tensor) -> Tensor:
        return -model.critic(torch.cat([state, model.actor(state)], -1)).mean()

    def loss(model: nn.Module, state: Tensor, action: Tensor) -> Tensor:
        assert isinstance(model, Ddpg)
        return critics(model, state, action) + actors(model, state)

    def step(training: Training, step: int) -> dict[str, Any]:
        state, action = training.batch(step)
        q.zero_grad()
        error = critics(model, state, action)
        error.backward()
        q.step()
        pi.zero_grad()
        actors(model, state).backward()
        pi.step()
        with torch.no_grad():
            for slow, fast in ((model.slow_actor, model.actor), (model.slow_critic, model.critic)):
                for a, b in zip(slow.parameters(), fast.parameters(), strict=True):
                    a.mul_(0.98).add_(b, alpha=0.02)
            return {"loss": error.detach(), "cost": cost(state, model.actor(state)).mean()}

    return Training(model, batch, loss, pi, steps=220, step=step, others=[q])


class Quantized(nn.Module):
    """A VQ autoencoder: straight-through codes, codebook and commitment losses."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 8))
        self.codes = nn.Parameter(0.3 * torch.randn(64, 8))
        self.decoder = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x)
        nearest = torch.cdist(z.detach(), self.codes.detach()).argmin(-1)
        e = self.codes[nearest]
        through = z + (e - z).detach()
        return self.decoder(through), F.mse_loss(e, z.detach()), F.mse_loss(z, e.detach())


def quantized() -> Training:
    torch.manual_seed(99)
    model = Quantized()
    x = digits()[0]
    quarters = torch.cat([q for half in x.view(-1, 8, 8).chunk(2, 1) for q in half.chunk(2, 2)])
    quarters = quarters.flatten(1)
    start = quarters[torch.randperm(len(quarters), generator=chance(0, 91))[:64]]
    with torch.no_grad():
        model.codes.copy_(model.encoder(start))

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        back, codebook, commit = model(x)
        return F.mse_loss(back, x) + codebook + 0.25 * commit

    adam = torch.optim.Adam(model.parameters(), 8e-3)
    return Training(model, drawn(256, quarters, seed=84), loss, adam, steps=300)


class TopTwo(nn.Module):
    """A mixture of five experts, the best two of which answer; a loss keeps them all in use."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 32)
        self.router = nn.Linear(32, 5, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 48), nn.SiLU(), nn.Linear(48, 32)) for _ in range(5)
        )
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        p = self.router(h).softmax(-1)
        weight, chosen = p.topk(2, -1)
        weight = weight / weight.sum(-1, keepdim=True)
        share = torch.zeros_like(p).scatter(1, chosen, weight)
        each = torch.stack([expert(h) for expert in self.experts], 1)
        used = F.one_hot(chosen, 5).float().sum(1).mean(0)
        balance = 5 * (used / 2 * p.mean(0)).sum()
        return self.head(self.norm(h + (share.unsqueeze(-1) * each).sum(1))), balance


def top_two() -> Training:
    torch.manual_seed(100)
    model = TopTwo()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, balance = model(x)
        return F.cross_entropy(out, y) + 0.02 * balance

    adam = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, digit_batches(96, 85), loss, adam, steps=140)


class Uncertain(nn.Module):
    """Two tasks; what each counts is learned (Kendall and others)."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.ELU(), nn.Linear(64, 32), nn.ELU())
        self.digit, self.centre = nn.Linear(32, 10), nn.Linear(32, 2)
        self.log_var = nn.Parameter(torch.zeros(2))


def uncertain() -> Training:
    torch.manual_seed(101)
    model = Uncertain()
    x, y = digits()
    ink = (x - x.min()).view(-1, 8, 8)
    rows = (ink.sum(2) * torch.arange(8.0)).sum(1) / ink.sum((1, 2)) - 3.5
    columns = (ink.sum(1) * torch.arange(8.0)).sum(1) / ink.sum((1, 2)) - 3.5

    def loss(model: nn.Module, x: Tensor, y: Tensor, where: Tensor) -> Tensor:
        assert isinstance(model, Uncertain)
        h = model.trunk(x)
        losses = torch.stack(
            [F.cross_entropy(model.digit(h), y), F.mse_loss(model.centre(h), where)]
        )
        return ((-model.log_var).exp() * losses + 0.5 * model.log_var).sum()

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    batch = drawn(64, x, y, torch.stack([rows, columns], 1), seed=86)
    return Training(model, batch, loss, adam, steps=160)


class Stream(nn.Module):
    """A stateful GRU: its state goes on from chunk to chunk, without a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(3, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        h, state = self.gru(x, state)
        return self.out(h), state


def streamed() -> Training:
    """Truncated backpropagation through time, over a long series of leaky sums."""
    torch.manual_seed(102)
    model = Stream()
    x = torch.randn(16, 12 * 180, 3, generator=chance(0, 87))
    y = torch.zeros(16, 12 * 180)
    for t in range(1, y.shape[1]):
        y[:, t] = 0.8 * y[:, t - 1] + 0.5 * x[:, t, 0] * (x[:, t, 1] > 0)
    states: dict[int, Tensor] = {}

    def batch(step: int) -> Batch:
        part = slice(12 * step, 12 * (step + 1))
        return x[:, part], y[:, part, None], states.get(step, torch.zeros(1, 16, 32))

    def loss(model: nn.Module, x: Tensor, y: Tensor, state: Tensor) -> Tensor:
        out, _ = model(x, state)
        return F.mse_loss(out, y)

    def step(training: Training, step: int) -> dict[str, Any]:
        x, y, state = training.batch(step)
        out, after = model(x, state)
        loss = F.mse_loss(out, y)
        training.optimizer.zero_grad()
        loss.backward()
        training.optimizer.step()
        states.clear()
        states[step + 1] = after.detach()
        return {"loss": loss.detach()}

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=180, step=step)


class ReZero(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, width))
        self.alpha = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.alpha * self.body(x)


def rezero() -> Training:
    """Residual branches that begin shut and that open by themselves."""
    torch.manual_seed(103)
    model = nn.Sequential(nn.Linear(64, 32), *(ReZero(32) for _ in range(6)), nn.Linear(32, 10))
    rms = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, digit_batches(64, 88), classify, rms, steps=160)


class Shop(nn.Module):
    """Ratings: sparse embeddings of users and goods, a dense network on top."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.EmbeddingBag(200, 12, sparse=True, mode="mean")
        self.goods = nn.Embedding(100, 12, sparse=True)
        self.top = nn.Sequential(nn.Linear(36, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, users: Tensor, goods: Tensor) -> Tensor:
        u, g = self.users(users.unsqueeze(1)), self.goods(goods)
        return self.top(torch.cat([u, g, u * g], -1)).squeeze(-1)


def shop() -> Training:
    """Two optimizers: a sparse one for the embeddings, another for what is dense."""
    torch.manual_seed(104)
    model = Shop()
    sparse = torch.optim.SparseAdam([*model.users.parameters(), *model.goods.parameters()], 2e-2)
    dense = torch.optim.Adam(model.top.parameters(), 3e-3)
    likes, liked = (torch.randn(n, 3, generator=chance(n, 89)) for n in (200, 100))

    def batch(step: int) -> Batch:
        g = chance(step, 90)
        u, i = torch.randint(200, (256,), generator=g), torch.randint(100, (256,), generator=g)
        return u, i, (likes[u] * liked[i]).sum(-1)

    def loss(model: nn.Module, users: Tensor, goods: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(users, goods), y)

    def step(training: Training, step: int) -> dict[str, Any]:
        model.zero_grad()
        loss = training.loss_at(step)
        loss.backward()
        sparse.step()
        dense.step()
        return {"loss": loss.detach()}

    return Training(model, batch, loss, dense, steps=250, step=step, others=[sparse])


SOUND = Healthy(
    "ind9-parts-sound",
    {
        "distilled": distilled,
        "byol": byol,
        "early-exits": early_exits,
        "gan": gan,
        "low-rank": low_rank,
        "tied": tied,
        "probed": probed,
        "ddpg": ddpg,
        "quantized": quantized,
        "top-two": top_two,
        "uncertain": uncertain,
        "streamed": streamed,
        "rezero": rezero,
        "shop": shop,
    },
    flat={"gan": "the generator's loss depends on how good the discriminator is"},
)

THEMES = [SOUND]
