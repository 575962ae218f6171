"""Models of several parts, losses, players or branches in which every part gets what it needs."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_sixth_parts import drawn, pictures, scenes, sentences
from analyses.faults.training import Training


def _mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for k, (i, o) in enumerate(pairwise(sizes)):
        layers += [nn.GELU()] * (k > 0) + [nn.Linear(i, o)]
    return nn.Sequential(*layers)


def _classify(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(net(x), y)


# ------------------------------------------------------------------------------ several losses


class Weighed(nn.Module):
    """Three tasks whose losses are weighed by learnt uncertainties."""

    def __init__(self) -> None:
        super().__init__()
        self.body = _mlp(64, 96, 48)
        self.tasks = nn.ModuleDict({"digit": _mlp(48, 10), "odd": _mlp(48, 2), "ink": _mlp(48, 1)})
        self.log_var = nn.ParameterDict({k: nn.Parameter(torch.zeros(())) for k in self.tasks})

    def losses(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        h = F.gelu(self.body(x))
        out = {k: task(h) for k, task in self.tasks.items()}
        return {
            "digit": F.cross_entropy(out["digit"], y),
            "odd": F.cross_entropy(out["odd"], y % 2),
            "ink": F.mse_loss(out["ink"].squeeze(1), 4 * x.mean(1)),
        }


def learnt_weights() -> Training:
    torch.manual_seed(1)
    model = Weighed()

    def loss(net: Weighed, x: Tensor, y: Tensor) -> Tensor:
        terms = net.losses(x, y)
        weighed = [(-net.log_var[k]).exp() * v + net.log_var[k] for k, v in terms.items()]
        return torch.stack(weighed).sum()

    return Training(model, drawn, loss, torch.optim.Adam(model.parameters(), 2e-3), steps=150)


class Helped(nn.Module):
    """A convolutional net with an auxiliary classifier half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        )  # fmt: skip
        self.aside = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10))
        self.high = nn.Sequential(
            nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.low(x)
        return self.high(h), self.aside(h)


def auxiliary_classifier() -> Training:
    torch.manual_seed(2)
    model = Helped()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        main, aside = net(x)
        return F.cross_entropy(main, y) + 0.3 * F.cross_entropy(aside, y)

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9, weight_decay=5e-4)
    return Training(model, pictures, loss, sgd, steps=120)


class Supervised(nn.Module):
    """Segments at three sizes; every size is compared with the mask."""

    def __init__(self) -> None:
        super().__init__()
        widths = (8, 16, 24)
        self.down = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=1) for i, o in zip((1, *widths), widths, strict=False)
        )
        self.up = nn.ModuleList([nn.Conv2d(40, 16, 3, padding=1), nn.Conv2d(24, 8, 3, padding=1)])
        self.say = nn.ModuleList([nn.Conv2d(24, 1, 1), nn.Conv2d(16, 1, 1), nn.Conv2d(8, 1, 1)])

    def forward(self, x: Tensor) -> list[Tensor]:
        kept = []
        for k, conv in enumerate(self.down):
            x = F.leaky_relu(conv(x if k == 0 else F.avg_pool2d(x, 2)), 0.1)
            kept.append(x)
        out = [self.say[0](x)]
        for k, conv in enumerate(self.up):
            wide = F.interpolate(x, scale_factor=2)
            x = F.leaky_relu(conv(torch.cat([wide, kept[1 - k]], 1)), 0.1)
            out.append(self.say[k + 1](x))
        return out


def every_size() -> Training:
    torch.manual_seed(3)
    model = Supervised()

    def batch(step: int) -> tuple[Tensor, ...]:
        image, mask, _ = scenes(step, 16)
        return image, mask.unsqueeze(1)

    def loss(net: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        total = torch.zeros(())
        for weight, out in zip((0.25, 0.5, 1.0), net(image), strict=True):
            small = F.adaptive_avg_pool2d(mask, out.shape[2:])
            total = total + weight * F.binary_cross_entropy_with_logits(out, small)
        return total

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 3e-3), steps=120)


def distilled() -> Training:
    """A trained teacher, frozen, beside its small student."""
    torch.manual_seed(4)
    teacher = _mlp(64, 128, 128, 10)
    first = torch.optim.Adam(teacher.parameters(), 2e-3)
    for at in range(80):
        first.zero_grad()
        _classify(teacher, *drawn(at, seed=4)).backward()
        first.step()
    first.zero_grad()
    teacher.requires_grad_(False).eval()
    model = nn.ModuleDict({"teacher": teacher, "student": _mlp(64, 24, 10)})

    def loss(both: nn.ModuleDict, x: Tensor, y: Tensor) -> Tensor:
        with torch.no_grad():
            soft = F.softmax(both["teacher"](x) / 3, -1)
        logits = both["student"](x)
        kl = F.kl_div(F.log_softmax(logits / 3, -1), soft, reduction="batchmean") * 9
        return 0.5 * kl + 0.5 * F.cross_entropy(logits, y)

    adam = torch.optim.Adam(model["student"].parameters(), 4e-3)
    return Training(model, drawn, loss, adam, steps=150)


class Warm(nn.Module):
    """A variational autoencoder whose prior counts more and more."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _mlp(64, 96, 64)
        self.mean, self.log_var = nn.Linear(64, 8), nn.Linear(64, 8)
        self.decoder = _mlp(8, 96, 64)

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = F.gelu(self.encoder(x))
        mean, log_var = self.mean(h), self.log_var(h)
        return self.decoder(mean + noise * (0.5 * log_var).exp()), mean, log_var


def warmed_up_prior() -> Training:
    torch.manual_seed(5)
    model = Warm()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, _ = drawn(step)
        g = torch.Generator().manual_seed(step)
        return x, torch.randn(len(x), 8, generator=g), torch.tensor(min(1.0, 0.05 + step / 100))

    def loss(net: nn.Module, x: Tensor, noise: Tensor, beta: Tensor) -> Tensor:
        out, mean, log_var = net(x, noise)
        kl = -0.5 * (1 + log_var - mean**2 - log_var.exp()).sum(1)
        return (0.5 * ((out - x) ** 2).sum(1) + 0.3 * beta * kl).mean()

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 2e-3), steps=200)


class InTurns(nn.Module):
    """Three heads over one body; a step's batch belongs to one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 80), nn.LayerNorm(80), nn.Mish())
        self.heads = nn.ModuleList([_mlp(80, 32, 10), _mlp(80, 32, 2), _mlp(80, 32, 2)])

    def forward(self, x: Tensor, which: int) -> Tensor:
        return self.heads[which](self.body(x))


def tasks_in_turns() -> Training:
    torch.manual_seed(6)
    model = InTurns()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step)
        return x, torch.stack([y, y % 2, (y > 4).long()])[step % 3], torch.tensor(step % 3)

    def loss(net: nn.Module, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        logits = net(x, int(task))
        return F.cross_entropy(logits, y) / math.log(logits.shape[1])

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, batch, loss, adam, steps=180, every=4)


LOSSES = Healthy(
    "ind6-sound-losses",
    runs={
        "learnt-weights": learnt_weights,
        "auxiliary-classifier": auxiliary_classifier,
        "every-size": every_size,
        "distilled": distilled,
        "warmed-up-prior": warmed_up_prior,
        "tasks-in-turns": tasks_in_turns,
    },
)


# ------------------------------------------------------------------------------------- pairs


def two_views() -> Training:
    """Two noisy, shifted views of a digit are to be told from those of others."""
    torch.manual_seed(11)
    encoder = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(),
    )  # fmt: skip
    model = nn.ModuleDict({"encoder": encoder, "projector": _mlp(512, 64, 24)})

    def view(x: Tensor, g: torch.Generator) -> Tensor:
        shift = int(torch.randint(-1, 2, (), generator=g))
        return x.roll(shift, 3) + 0.4 * torch.randn(x.shape, generator=g)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, _ = pictures(step, 48)
        g = torch.Generator().manual_seed(step)
        return view(x, g), view(x, g)

    def loss(net: nn.ModuleDict, a: Tensor, b: Tensor) -> Tensor:
        z = F.normalize(net["projector"](net["encoder"](torch.cat([a, b]))), dim=1)
        alike = (z @ z.T / 0.3).fill_diagonal_(-1e9)
        n = len(a)
        return F.cross_entropy(alike, (torch.arange(2 * n) + n) % (2 * n))

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 2e-3), steps=100)


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Sequential(nn.Linear(64, 64), nn.Mish(), nn.Linear(64, 32), nn.Mish())
        self.compare = nn.Linear(32, 1)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.compare((self.tower(a) - self.tower(b)).abs()).squeeze(1)


def same_or_not() -> Training:
    """One tower called twice; the difference says whether two digits are the same."""
    torch.manual_seed(12)
    model = Siamese()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step, 256)
        order = y.argsort()
        a, b = x[order], x[order].roll(1, 0)
        half = torch.arange(256) % 2 == 0
        b = torch.where(half[:, None], b, x)
        return a, b, (torch.where(half, y[order].roll(1), y) == y[order]).float()

    def loss(net: nn.Module, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(a, b), same)

    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=150)


def own_past() -> Training:
    """An online net predicts what a slow copy of itself says of another view."""
    torch.manual_seed(13)
    online = nn.Sequential(nn.Linear(64, 96), nn.BatchNorm1d(96), nn.SiLU(), nn.Linear(96, 32))
    target = copy.deepcopy(online).requires_grad_(False)
    model = nn.ModuleDict({"online": online, "predictor": _mlp(32, 48, 32), "target": target})

    def batch(step: int) -> tuple[Tensor, ...]:
        x, _ = drawn(step)
        g = torch.Generator().manual_seed(step)
        return tuple(x + 0.5 * torch.randn(x.shape, generator=g) for _ in range(2))

    def loss(net: nn.ModuleDict, a: Tensor, b: Tensor) -> Tensor:
        total = torch.zeros(())
        for one, other in ((a, b), (b, a)):
            p = net["predictor"](net["online"](one))
            with torch.no_grad():
                t = net["target"](other)
            total = total + 1 - F.cosine_similarity(p, t, dim=1).mean()
        return total

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        value.backward()
        training.optimizer.step()
        training.optimizer.zero_grad()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 0.05)
        return {"loss": value.detach()}

    trained = [*model["online"].parameters(), *model["predictor"].parameters()]
    adam = torch.optim.Adam(trained, 1e-3)
    return Training(model, batch, loss, adam, steps=120, step=step)


class Captions(nn.Module):
    """A picture's encoder, a caption's encoder, and a learnt temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 20))
        self.words = nn.Embedding(16, 16)
        self.text = nn.LSTM(16, 20, batch_first=True)
        self.scale = nn.Parameter(torch.tensor(math.log(6.0)))

    def forward(self, x: Tensor, caption: Tensor) -> Tensor:
        i = F.normalize(self.image(x), dim=1)
        t = F.normalize(self.text(self.words(caption))[0][:, -1], dim=1)
        return self.scale.exp() * i @ t.T


def captions() -> Training:
    torch.manual_seed(14)
    model = Captions()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step, 48)
        ink = (x.mean(1) > 0).long() + 12
        return x, torch.stack([torch.full_like(y, 10), y, ink, torch.full_like(y, 11)], 1), y

    def loss(net: nn.Module, x: Tensor, caption: Tensor, y: Tensor) -> Tensor:
        logits = net(x, caption)
        same = (caption[:, None] == caption[None]).all(2).float()
        same = same / same.sum(1, keepdim=True)  # captions may occur several times
        return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2

    adam = torch.optim.AdamW(model.parameters(), 4e-3, weight_decay=0.01)
    return Training(model, batch, loss, adam, steps=200)


def stopped_side() -> Training:
    """Two views; each predicts the other, which is held still for it."""
    torch.manual_seed(15)
    encoder = nn.Sequential(nn.Linear(64, 80), nn.BatchNorm1d(80), nn.SiLU(), nn.Linear(80, 32),
                            nn.BatchNorm1d(32, affine=False))  # fmt: skip
    model = nn.ModuleDict({"encoder": encoder, "predictor": _mlp(32, 16, 32)})

    def batch(step: int) -> tuple[Tensor, ...]:
        x, _ = drawn(step, seed=15)
        g = torch.Generator().manual_seed(step)
        return tuple(x * (torch.rand(x.shape, generator=g) < 0.8) for _ in range(2))

    def loss(net: nn.ModuleDict, a: Tensor, b: Tensor) -> Tensor:
        za, zb = net["encoder"](a), net["encoder"](b)
        pa, pb = net["predictor"](za), net["predictor"](zb)
        one = F.cosine_similarity(pa, zb.detach(), dim=1).mean()
        two = F.cosine_similarity(pb, za.detach(), dim=1).mean()
        return 1 - (one + two) / 2

    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    return Training(model, batch, loss, sgd, steps=150)


PAIRS = Healthy(
    "ind6-sound-pairs",
    runs={
        "two-views": two_views,
        "same-or-not": same_or_not,
        "own-past": own_past,
        "captions": captions,
        "stopped-side": stopped_side,
    },
)


# ----------------------------------------------------------------------------------- players


class Duel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(6, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 2),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def duel() -> Training:
    """Generator and discriminator in turns; points of a bent line."""
    torch.manual_seed(21)
    model = Duel()
    slow = torch.optim.Adam(model.generator.parameters(), 1e-3, betas=(0.5, 0.99))
    fast = torch.optim.Adam(model.critic.parameters(), 1e-3, betas=(0.5, 0.99))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        t = torch.rand(64, generator=g) * 2 - 1
        real = torch.stack([t, t**2 - 0.3], 1) + 0.05 * torch.randn(64, 2, generator=g)
        return real, torch.randn(64, 6, generator=g)

    def judge(real: Tensor, fake: Tensor) -> Tensor:
        return F.softplus(-model.critic(real)).mean() + F.softplus(model.critic(fake)).mean()

    def loss(net: Duel, real: Tensor, noise: Tensor) -> Tensor:
        fake = net.generator(noise)
        return judge(real, fake.detach()) + F.softplus(-net.critic(fake)).mean()

    def step(training: Training, at: int) -> dict[str, Any]:
        real, noise = training.batch(at)
        d = judge(real, model.generator(noise).detach())
        fast.zero_grad()
        d.backward()
        fast.step()
        g = F.softplus(-model.critic(model.generator(noise))).mean()
        slow.zero_grad()
        g.backward()
        slow.step()
        return {"loss": (d + g).detach(), "d": d.detach(), "g": g.detach()}

    return Training(model, batch, loss, slow, steps=200, step=step, others=[fast])


class Repair(nn.Module):
    """Fills the missing half of a digit; a critic looks at pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.fill = nn.Sequential(
            nn.Linear(32, 96), nn.LeakyReLU(0.2), nn.Linear(96, 96), nn.LeakyReLU(0.2),
            nn.Linear(96, 32),
        )  # fmt: skip
        self.critic = nn.Sequential(nn.Linear(64, 48), nn.LeakyReLU(0.2), nn.Linear(48, 1))


def repair() -> Training:
    torch.manual_seed(22)
    model = Repair()
    one = torch.optim.Adam(model.fill.parameters(), 1e-3)
    two = torch.optim.SGD(model.critic.parameters(), 0.02)

    def terms(net: Repair, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen, hidden = x[:, :32], x[:, 32:]
        made = net.fill(seen)
        real, fake = torch.cat([seen, hidden], 1), torch.cat([seen, made], 1)
        d = (net.critic(real) - 1).square().mean() + net.critic(fake.detach()).square().mean()
        g = (net.critic(fake) - 1).square().mean()
        return F.l1_loss(made, hidden), d, g

    def loss(net: Repair, x: Tensor, y: Tensor) -> Tensor:
        near, d, g = terms(net, x)
        return near + 0.05 * g + d

    def step(training: Training, at: int) -> dict[str, Any]:
        x, _ = training.batch(at)
        near, d, g = terms(model, x)
        one.zero_grad()
        (near + 0.05 * g).backward()
        one.step()
        near, d, g = terms(model, x)
        two.zero_grad()
        d.backward()
        two.step()
        return {"loss": near.detach(), "d": d.detach(), "g": g.detach()}

    return Training(model, drawn, loss, one, steps=150, step=step, others=[two])


class _Flip(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * g, None


class Domains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sees = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 40), nn.GELU())
        self.digit, self.domain = nn.Linear(40, 10), _mlp(40, 24, 2)

    def forward(self, x: Tensor, by: float) -> tuple[Tensor, Tensor]:
        h = self.sees(x)
        return self.digit(h), self.domain(_Flip.apply(h, by))


def growing_reversal() -> Training:
    """The reversed gradient of the domain's head gains weight during training."""
    torch.manual_seed(23)
    model = Domains()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step)
        domain = torch.arange(64) % 2
        moved = torch.where(domain[:, None] == 1, x.view(-1, 8, 8).roll(1, 2).flatten(1), x)
        share = (step + 10) / 210
        return moved, y, domain, torch.tensor(2 / (1 + math.exp(-5 * share)) - 1)

    def loss(net: nn.Module, x: Tensor, y: Tensor, domain: Tensor, by: Tensor) -> Tensor:
        digit, where = net(x, 0.5 * float(by))
        return F.cross_entropy(digit, y) + F.cross_entropy(where, domain)

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=200)


def factors() -> Training:
    """A matrix as a product: users' factors and items' factors are trained in turns."""
    torch.manual_seed(24)
    user, item = nn.Embedding(60, 6), nn.Embedding(40, 6)
    for part in (user, item):
        nn.init.normal_(part.weight, std=0.3)
    model = nn.ModuleDict({"user": user, "item": item})
    g = torch.Generator().manual_seed(24)
    truth = torch.randn(60, 4, generator=g) @ torch.randn(4, 40, generator=g) / 2

    def batch(step: int) -> tuple[Tensor, ...]:
        s = torch.Generator().manual_seed(step)
        user = torch.randint(60, (512,), generator=s)
        item = torch.randint(40, (512,), generator=s)
        return user, item, truth[user, item] + 0.1 * torch.randn(512, generator=s)

    def loss(net: nn.ModuleDict, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
        return F.mse_loss((net["user"](user) * net["item"](item)).sum(1), rating)

    first = torch.optim.Adam(model["user"].parameters(), 0.02)
    second = torch.optim.Adam(model["item"].parameters(), 0.02)

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        model.zero_grad()
        value.backward()
        (first if at % 2 == 0 else second).step()
        return {"loss": value.detach()}

    return Training(model, batch, loss, first, steps=200, step=step, others=[second])


class Chooser(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.now = _mlp(6, 48, 48, 3)
        self.then = copy.deepcopy(self.now).requires_grad_(False)


def late_copy() -> Training:
    """Values of actions, learnt from a copy of the net that follows every 20 steps."""
    torch.manual_seed(25)
    model = Chooser()
    rule = torch.randn(6, 6, generator=torch.Generator().manual_seed(1)) / 3

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        state = torch.randn(96, 6, generator=g)
        action = torch.randint(3, (96,), generator=g)
        after = torch.tanh(state @ rule + 0.5 * F.one_hot(action, 6).float())
        return state, action, after[:, 0] - 0.5 * after[:, 1] ** 2, after

    def loss(net: Chooser, state: Tensor, action: Tensor, reward: Tensor, after: Tensor) -> Tensor:
        with torch.no_grad():
            best = net.then(after).amax(1)
        q = net.now(state).gather(1, action[:, None]).squeeze(1)
        return F.smooth_l1_loss(q, reward + 0.6 * best)

    def step(training: Training, at: int) -> dict[str, Any]:
        value = training.loss_at(at)
        training.optimizer.zero_grad()
        value.backward()
        nn.utils.clip_grad_norm_(model.now.parameters(), 5.0)
        training.optimizer.step()
        if at % 20 == 19:
            model.then.load_state_dict(model.now.state_dict())
        return {"loss": value.detach()}

    adam = torch.optim.Adam(model.now.parameters(), 2e-3)
    return Training(model, batch, loss, adam, steps=200, step=step)


PLAYERS = Healthy(
    "ind6-sound-players",
    runs={
        "duel": duel,
        "repair": repair,
        "growing-reversal": growing_reversal,
        "factors-in-turns": factors,
        "late-copy": late_copy,
    },
    flat={"duel": "the losses of two players in balance stay where they are"},
)


# ------------------------------------------------------------------- parts used in other ways


class TopTwo(nn.Module):
    """Six experts, of which the two that the gate prefers are asked."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(64, 40)
        self.norm = nn.LayerNorm(40)
        self.gate = nn.Linear(40, 6, bias=False)
        self.experts = nn.ModuleList(_mlp(40, 48, 40) for _ in range(6))
        self.leave = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.norm(self.enter(x))
        p = self.gate(h).softmax(-1)
        best, who = p.topk(2, -1)
        best = best / best.sum(-1, keepdim=True)
        out = torch.zeros_like(h)
        for k, expert in enumerate(self.experts):
            row, place = (who == k).nonzero(as_tuple=True)
            if len(row):
                out = out.index_add(0, row, best[row, place, None] * expert(h[row]))
        load = F.one_hot(who, 6).float().mean((0, 1))
        return self.leave(h + out), 6 * (load * p.mean(0)).sum()


def top_two() -> Training:
    torch.manual_seed(31)
    model = TopTwo()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits, balance = net(x)
        return F.cross_entropy(logits, y) + 0.02 * balance

    return Training(
        model, partial(drawn, size=96), loss, torch.optim.Adam(model.parameters(), 2e-3), steps=150
    )


def frozen_features() -> Training:
    """Features learnt on one task, frozen; a head for another learns on them."""
    torch.manual_seed(32)
    features = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.SiLU(), nn.Flatten(),
    )  # fmt: skip
    old = nn.Sequential(features, nn.Linear(384, 2))
    first = torch.optim.Adam(old.parameters(), 2e-3)
    for at in range(50):
        x, y = pictures(at + 5000)
        first.zero_grad()
        F.cross_entropy(old(x), (y > 4).long()).backward()
        first.step()
    first.zero_grad()
    features.requires_grad_(False).eval()
    model = nn.Sequential(features, nn.LayerNorm(384), nn.Linear(384, 32), nn.SiLU(),
                          nn.Linear(32, 10))  # fmt: skip
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.AdamW(trained, 1e-3)
    return Training(model, pictures, _classify, adam, steps=120)


class Tied(nn.Module):
    """A recurrent language model that reads and writes with the same vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.gru = nn.GRU(32, 48, batch_first=True)
        self.back = nn.Linear(48, 32)
        self.out = nn.Linear(32, 20)
        self.out.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.back(self.gru(self.embed(tokens))[0]))


def _next_word(net: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])


def _phrases(step: int) -> tuple[Tensor, ...]:
    return (sentences(step, 32, length=14),)


def tied() -> Training:
    torch.manual_seed(33)
    model = Tied()
    adam = torch.optim.Adam(model.parameters(), 4e-3)
    return Training(model, _phrases, _next_word, adam, steps=150, clip=1.0)


class Baskets(nn.Module):
    """A large table of items, of which a batch touches few; and dense layers over it."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.EmbeddingBag(3000, 16, mode="mean", sparse=True)
        self.dense = _mlp(16, 32, 5)

    def forward(self, basket: Tensor) -> Tensor:
        return self.dense(self.items(basket))


def sparse_table() -> Training:
    torch.manual_seed(34)
    model = Baskets()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        kind = torch.randint(5, (96,), generator=g)
        often = (torch.rand(96, 8, generator=g) ** 3 * 600).long() * 5
        own = torch.rand(96, 8, generator=g) < 0.6
        return torch.where(own, often + kind[:, None], often + 2), kind

    table = torch.optim.SparseAdam(list(model.items.parameters()), 0.02)
    dense = torch.optim.Adam(model.dense.parameters(), 3e-3)

    def step(training: Training, at: int) -> dict[str, Any]:
        table.zero_grad()
        dense.zero_grad()
        value = training.loss_at(at)
        value.backward()
        table.step()
        dense.step()
        return {"loss": value.detach()}

    return Training(model, batch, _classify, dense, steps=150, step=step, others=[table])


class FromZero(nn.Module):
    """A transformer's layer whose two branches begin with a factor of 0, which is learnt."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp = _mlp(width, 2 * width, width)
        self.factors = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        mixed, _ = self.attention(x, x, x, attn_mask=mask, need_weights=False)
        x = x + self.factors[0] * mixed
        return x + self.factors[1] * self.mlp(x)


class Zeroed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(12, 32), nn.Embedding(16, 32)
        self.layers = nn.ModuleList(FromZero(32) for _ in range(3))
        self.out = nn.Linear(32, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        mask = torch.triu(torch.ones(n, n, dtype=torch.bool), 1)
        h = self.embed(tokens) + self.place.weight[:n]
        for layer in self.layers:
            h = layer(h, mask)
        return self.out(h)


def factors_from_zero() -> Training:
    torch.manual_seed(35)
    model = Zeroed()

    def batch(step: int) -> tuple[Tensor, ...]:
        return (sentences(step, 32, length=12, words=12),)

    adam = torch.optim.Adam(model.parameters(), 4e-3)
    return Training(model, batch, _next_word, adam, steps=200)


class Gated(nn.Module):
    """Gated causal convolutions with skips to the output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.filters = nn.ModuleList(nn.Conv1d(24, 48, 2, dilation=2**k) for k in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(24, 32, 1) for _ in range(3))
        self.out = nn.Conv1d(32, 20, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens).transpose(1, 2)
        total: Tensor | float = 0.0
        for k, (conv, skip) in enumerate(zip(self.filters, self.skips, strict=True)):
            z = F.glu(conv(F.pad(h, (2**k, 0))), 1)
            total = total + skip(z)
            h = h + z
        assert isinstance(total, Tensor)
        return self.out(F.elu(total)).transpose(1, 2)


def gated_skips() -> Training:
    torch.manual_seed(36)
    model = Gated()
    rms = torch.optim.RMSprop(model.parameters(), 2e-3)
    return Training(model, _phrases, _next_word, rms, steps=200)


class Pooled(nn.Module):
    """A library's encoder of which the mean over the tokens is used, not its own pooler."""

    def __init__(self, *, pooler: bool) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=pooler)
        self.out = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.bert(input_ids=tokens).last_hidden_state.mean(1))


def mean_of_tokens(pooler: bool = False) -> Training:
    torch.manual_seed(37)
    model = Pooled(pooler=pooler)

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = sentences(step, 32, length=8)
        return tokens, (tokens < 7).sum(1).clamp(1, 3) - 1

    adam = torch.optim.AdamW(model.parameters(), 1e-3)
    return Training(model, batch, _classify, adam, steps=120)


class Hyper(nn.Module):
    """One net writes the weights of another, for the task that a number names."""

    def __init__(self) -> None:
        super().__init__()
        self.task = nn.Embedding(6, 12)
        self.writer = nn.Sequential(nn.Linear(12, 48), nn.SiLU(), nn.Linear(48, 2 * 16 + 16 + 1))

    def forward(self, x: Tensor, task: Tensor) -> Tensor:
        w = self.writer(self.task(task))
        first, second, bias = w.split([32, 16, 1], 1)
        h = torch.sin(torch.bmm(first.view(-1, 16, 2), x.unsqueeze(2)).squeeze(2))
        return (h * second).sum(1) + bias.squeeze(1)


def written_weights() -> Training:
    torch.manual_seed(38)
    model = Hyper()

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        x = torch.rand(128, 2, generator=g) * 2 - 1
        task = torch.randint(6, (128,), generator=g)
        angle = task * (math.pi / 3)
        y = torch.sin(2 * (x[:, 0] * angle.cos() + x[:, 1] * angle.sin())) + 0.2 * task - 0.5
        return x, task, y

    def loss(net: nn.Module, x: Tensor, task: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(net(x, task), y)

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 3e-3), steps=250)


class Averaged(nn.Module):
    """An autoencoder through a code book that follows what is assigned to it."""

    book: Tensor
    counts: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = _mlp(64, 96, 32), _mlp(32, 96, 64)
        self.register_buffer("book", 0.3 * torch.randn(24, 4))
        self.register_buffer("counts", torch.ones(24))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        z = self.encoder(x).view(-1, 4)
        which = torch.cdist(z, self.book).argmin(1)
        q = self.book[which]
        through = z + (q - z).detach()
        return self.decoder(through.view(len(x), -1)), z, q, which

    @torch.no_grad()
    def follow(self, z: Tensor, which: Tensor) -> None:
        hot = F.one_hot(which, 24).float()
        self.counts.lerp_(hot.sum(0), 0.1)
        centre = hot.T @ z / hot.sum(0).clamp(min=1)[:, None]
        used = hot.sum(0)[:, None] > 0
        self.book.copy_(torch.where(used, self.book.lerp(centre, 0.2), self.book))


def averaged_codes() -> Training:
    torch.manual_seed(39)
    model = Averaged()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out, z, q, _ = net(x)
        return F.mse_loss(out, x) + 0.1 * F.mse_loss(z, q)

    def step(training: Training, at: int) -> dict[str, Any]:
        x, _ = training.batch(at)
        out, z, q, which = model(x)
        value = F.mse_loss(out, x) + 0.1 * F.mse_loss(z, q)
        training.optimizer.zero_grad()
        value.backward()
        training.optimizer.step()
        model.follow(z.detach(), which)
        return {"loss": value.detach()}

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, drawn, loss, adam, steps=150, step=step)


def slower_below() -> Training:
    """A pretrained net is tuned: the lower a layer, the smaller its steps."""
    torch.manual_seed(40)
    layers = [nn.Linear(64, 80), nn.Linear(80, 80), nn.Linear(80, 10)]
    model = nn.Sequential(layers[0], nn.LayerNorm(80), nn.SiLU(), layers[1], nn.LayerNorm(80),
                          nn.SiLU(), layers[2])  # fmt: skip
    first = torch.optim.Adam(model.parameters(), 2e-3)
    for at in range(60):
        first.zero_grad()
        _classify(model, *drawn(at, seed=40)).backward()
        first.step()
    first.zero_grad()
    nn.init.xavier_normal_(layers[2].weight)
    groups = [
        {"params": model[0:2].parameters(), "lr": 1e-4},
        {"params": model[2:5].parameters(), "lr": 4e-4},
        {"params": model[5:].parameters(), "lr": 2e-3},
    ]

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step)
        return x.view(-1, 8, 8).transpose(1, 2).flatten(1), 9 - y

    adam = torch.optim.AdamW(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, 150)
    return Training(model, batch, _classify, adam, steps=150, schedule=schedule)


class Skipping(nn.Module):
    """Residual blocks, each left out of one training step in five."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv2d(16, 16, 3, padding=1))
            for _ in range(4)
        )
        self.leave = nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for block in self.blocks:
            if self.training and float(torch.rand(())) < 0.2:
                continue
            h = h + block(h)
        return self.leave(h)


def blocks_skipped() -> Training:
    torch.manual_seed(41)
    model = Skipping()
    sgd = torch.optim.SGD(model.parameters(), 0.03, momentum=0.9)
    return Training(model, pictures, _classify, sgd, steps=120)


class Dense(nn.Module):
    """Every layer reads what all layers before it have said."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64 + 16 * k, 16) for k in range(5))
        self.leave = nn.Linear(64 + 16 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        said = [x]
        for layer in self.layers:
            said.append(F.elu(layer(torch.cat(said, 1))))
        return self.leave(torch.cat(said, 1))


def densely_read() -> Training:
    torch.manual_seed(42)
    model = Dense()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step, seed=42)
        z, other = drawn(step, seed=43)
        return torch.cat([x[:, 1::2], z[:, 1::2]], 1), ((y + other) > 9).long()

    return Training(model, batch, _classify, torch.optim.Adamax(model.parameters(), 5e-3))


USES = Healthy(
    "ind6-sound-uses",
    runs={
        "top-two-experts": top_two,
        "frozen-features": frozen_features,
        "tied-words": tied,
        "sparse-table": sparse_table,
        "factors-from-zero": factors_from_zero,
        "gated-skips": gated_skips,
        "mean-of-tokens": mean_of_tokens,
        "pooler-unused": partial(mean_of_tokens, pooler=True),
        "written-weights": written_weights,
        "averaged-codes": averaged_codes,
        "slower-below": slower_below,
        "blocks-skipped": blocks_skipped,
        "densely-read": densely_read,
    },
    may={
        # The pooler runs and nobody uses what it returns: two trainable tensors without
        # gradient, for nothing but a little time. It reads the last hidden states as the mean does.
        "pooler-unused": ["detached", "starved-pathway", "no-update"],
    },
)
THEMES = [LOSSES, PAIRS, PLAYERS, USES]
