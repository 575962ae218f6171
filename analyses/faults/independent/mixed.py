"""Healthy runs of every kind: narrow on purpose, still on purpose, with several losses, …"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_parts import (
    Residual,
    bumps,
    classify,
    conv,
    digits,
    fit,
    flat_digits,
    graphs,
    keywords,
    mlp,
    next_token,
    rebuild,
    regress,
    seeded,
    shapes,
    waves,
)
from analyses.faults.training import Batch, Training

MOMENTUM = partial(torch.optim.SGD, momentum=0.9)


def dense_autoencoder() -> Training:
    """Digits through a code of three numbers."""
    torch.manual_seed(101)
    model = mlp(64, 128, 32, 3, 32, 128, 64, act=nn.ELU)
    return fit(model, flat_digits, rebuild, lr=2e-3, steps=300)


def conv_autoencoder() -> Training:
    """Shapes through a code of twelve, by strided and transposed convolutions."""
    torch.manual_seed(102)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.Flatten(),
        nn.Linear(512, 12),
        nn.Linear(12, 512),
        nn.Unflatten(1, (32, 4, 4)),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(32, 16, 4, 2, 1),
        nn.LeakyReLU(0.1),
        nn.ConvTranspose2d(16, 1, 4, 2, 1),
    )
    return fit(model, shapes, rebuild, lr=2e-3, steps=200)


class Variational(nn.Module):
    """A VAE with a code of eight."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 100), nn.ReLU())
        self.mean, self.spread = nn.Linear(100, 8), nn.Linear(100, 8)
        self.decoder = mlp(8, 100, 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encoder(x)
        mean, log_variance = self.mean(h), self.spread(h)
        code = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        return self.decoder(code), mean, log_variance


def _elbo(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    back, mean, log_variance = model(x)
    divergence = -0.5 * (1 + log_variance - mean.square() - log_variance.exp()).sum(-1)
    return (back - x).square().sum(-1).mean() + 0.5 * divergence.mean()


def variational() -> Training:
    """Digits by a variational autoencoder."""
    torch.manual_seed(103)
    return fit(Variational(), flat_digits, _elbo, lr=2e-3, steps=300)


def _denoise(model: nn.Module, x: Tensor, *_: Tensor) -> Tensor:
    kept = (torch.rand_like(x) > 0.3).float()
    return F.smooth_l1_loss(model(x * kept), x)


def denoising() -> Training:
    """Digits with pixels missing are repaired."""
    torch.manual_seed(104)
    model = nn.Sequential(conv(1, 24), conv(24, 24), conv(24, 24), nn.Conv2d(24, 1, 3, 1, 1))
    return fit(model, digits, _denoise, steps=150, how=torch.optim.RMSprop)


def _pretrained() -> nn.Sequential:
    """A backbone that has learned digits."""
    body = nn.Sequential(conv(1, 16), nn.MaxPool2d(2), conv(16, 32), nn.Flatten())
    whole = nn.Sequential(body, nn.Linear(512, 10))
    before = fit(whole, digits, classify, lr=3e-3)
    for step in range(60):
        before.step(before, step)
    return body


def _parity(step: int) -> Batch:
    x, y = digits(step)
    return x, y % 2


def fine_tuning() -> Training:
    """A pretrained CNN, frozen but for its last block, learns to tell odd from even."""
    torch.manual_seed(105)
    body = _pretrained()
    for p in body[0].parameters():
        p.requires_grad_(False)
    model = nn.Sequential(body, mlp(512, 64, 2))
    held = [p for p in model.parameters() if p.requires_grad]
    return fit(model, _parity, classify, steps=120, held=held)


class Probe(nn.Module):
    """A linear layer on fixed features."""

    def __init__(self, body: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.body = body.requires_grad_(False).eval()
        self.read = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.read(h)


def linear_probe() -> Training:
    """A linear probe on a pretrained CNN, under SGD."""
    torch.manual_seed(106)
    model = Probe(_pretrained(), 512, 2)
    return fit(model, _parity, classify, lr=0.02, held=model.read.parameters(), how=MOMENTUM)


class Bag(nn.Module):
    """Word vectors that stay as they are, an attention that pools them, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding.from_pretrained(torch.randn(30, 32), freeze=True)
        self.adapt = nn.Linear(32, 48)
        self.score = nn.Linear(48, 1)
        self.read = mlp(48, 32, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.adapt(self.embed(tokens)))
        return self.read((self.score(h).softmax(1) * h).sum(1))


def frozen_vectors() -> Training:
    """Keywords found by attention over fixed word vectors."""
    torch.manual_seed(107)
    return fit(Bag(), keywords, classify, lr=3e-3, steps=250)


def _pairs(step: int) -> Batch:
    a, la = flat_digits(2 * step, 48)
    b, lb = flat_digits(2 * step + 1, 48)
    g = seeded(step, 101)
    for i in range(0, 48, 2):  # every second pair is one of equals, where there is one
        same = (lb == la[i]).nonzero()[:, 0]
        if len(same):
            j = int(same[torch.randint(len(same), (1,), generator=g)])
            b[i], lb[i] = b[j].clone(), lb[j].clone()
    return a, b, (la == lb).float()


def _contrast(model: nn.Module, a: Tensor, b: Tensor, same: Tensor) -> Tensor:
    apart = (model(a) - model(b)).square().sum(-1).add(1e-6).sqrt()
    return (same * apart.square() + (1 - same) * (2 - apart).clamp(min=0).square()).mean()


def siamese() -> Training:
    """Pairs of digits: equals are drawn together, others apart up to a margin."""
    torch.manual_seed(108)
    model = nn.Sequential(nn.Linear(64, 128), nn.PReLU(), nn.Linear(128, 8))
    return fit(model, _pairs, _contrast, steps=250)


def _triplets(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    found = F.normalize(model(x), dim=-1)
    apart = torch.cdist(found, found)
    same = y[:, None] == y[None, :]
    hardest = (apart * same).amax(1)
    nearest = (apart + 10.0 * same).amin(1)
    return F.softplus(4 * (hardest - nearest)).mean()


def triplet() -> Training:
    """Digits by triplets, the hardest of each batch, with a soft margin."""
    torch.manual_seed(109)
    model = nn.Sequential(conv(1, 16), conv(16, 32, 2), nn.Flatten(), nn.Linear(512, 16))
    return fit(model, digits, _triplets, steps=150)


class Pair(nn.Module):
    """Generator and discriminator of points on a ring."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = mlp(4, 64, 64, 2, act=nn.GELU)
        self.critic = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )  # fmt: skip


def _ring(step: int) -> Batch:
    g = seeded(step, 102)
    angle = 6.28 * torch.rand(64, 1, generator=g)
    points = torch.cat([angle.cos(), angle.sin()], 1)
    return points + 0.05 * torch.randn(64, 2, generator=g), torch.randn(64, 4, generator=g)


def _critic_loss(model: Pair, real: Tensor, noise: Tensor) -> Tensor:
    fake = model.generator(noise).detach()
    return F.softplus(-model.critic(real)).mean() + F.softplus(model.critic(fake)).mean()


def _generator_loss(model: nn.Module, real: Tensor, noise: Tensor) -> Tensor:
    assert isinstance(model, Pair)
    return F.softplus(-model.critic(model.generator(noise))).mean()


def _adversaries(training: Training, step: int) -> dict[str, Any]:
    model, batch = training.model, training.batch(step)
    assert isinstance(model, Pair)
    critic = training.others[0]
    critic.zero_grad()
    critic_loss = _critic_loss(model, *batch)
    critic_loss.backward()
    critic.step()
    training.optimizer.zero_grad()
    loss = _generator_loss(model, *batch)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach(), "critic": critic_loss.detach()}


def adversarial() -> Training:
    """A small GAN, either side with an optimizer of its own."""
    torch.manual_seed(110)
    model = Pair()
    adam = partial(torch.optim.Adam, betas=(0.5, 0.9))
    training = fit(
        model,
        _ring,
        _generator_loss,
        held=model.generator.parameters(),
        how=adam,
        step=_adversaries,
    )
    training.others = [adam(model.critic.parameters(), lr=1e-3)]
    return training


class ActorCritic(nn.Module):
    """Policy and value of a state, from one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(6, 64, 64, act=nn.Tanh)
        self.policy, self.value = nn.Linear(64, 3), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.tanh(self.body(x))
        return self.policy(h), self.value(h)[:, 0]


def _states(step: int) -> Batch:
    return (torch.randn(128, 6, generator=seeded(step, 103)),)


def _advantage(model: nn.Module, x: Tensor) -> Tensor:
    scores, value = model(x)
    policy = torch.distributions.Categorical(logits=scores)
    action = policy.sample()
    gained = x[:, :3].gather(1, action[:, None])[:, 0] + x[:, 3]
    surprise = (gained - value).detach()
    loss = -(policy.log_prob(action) * surprise).mean() - 0.01 * policy.entropy().mean()
    return loss + 0.5 * F.mse_loss(value, gained)


def actor_critic() -> Training:
    """A contextual bandit by advantages; the advantage is a number for the policy."""
    torch.manual_seed(111)
    return fit(ActorCritic(), _states, _advantage, lr=2e-3, steps=250)


class Weighed(nn.Module):
    """Two tasks whose weights are learned as log-variances."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(conv(1, 16), conv(16, 32, 2), nn.Flatten())
        self.classes, self.area = nn.Linear(2048, 3), nn.Linear(2048, 1)
        self.log_variance = nn.Parameter(torch.zeros(2))


def _weighed(model: nn.Module, x: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
    assert isinstance(model, Weighed)
    h = model.trunk(x)
    area = (mask.mean((1, 2, 3)) - 0.08) / 0.06
    first = F.cross_entropy(model.classes(h), kind)
    second = F.mse_loss(model.area(h)[:, 0], area)
    a, b = model.log_variance
    return (-a).exp() * first + 0.5 * (-b).exp() * second + 0.5 * (a + b)


def uncertain_weights() -> Training:
    """Class and area of a shape, weighed by learned uncertainties."""
    torch.manual_seed(112)
    return fit(Weighed(), shapes, _weighed, steps=120)


class Recurrent(nn.Module):
    """A fused recurrence over tokens and a layer on its last or on all states."""

    def __init__(
        self, kind: type[nn.LSTM | nn.GRU], vocabulary: int, out: int, **more: Any
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 32)
        self.recur = kind(32, 48, batch_first=True, **more)
        self.read = nn.Linear(96 if more.get("bidirectional") else 48, out)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.read(self.recur(self.embed(tokens))[0])


def _at_end(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x)[:, -1], y)


def lstm_classifier() -> Training:
    """Which keyword a sequence had, by an LSTM's last state."""
    torch.manual_seed(113)
    return fit(Recurrent(nn.LSTM, 30, 4), keywords, _at_end, lr=5e-3, steps=300, clip=1.0)


def _peaks(step: int) -> Batch:
    """Of each number, whether it is larger than both of its neighbours."""
    x = torch.randint(8, (48, 12), generator=seeded(step, 104))
    around = F.pad(x, (1, 1), value=-1)
    return x, (x > torch.maximum(around[:, :-2], around[:, 2:])).long()


def tagger() -> Training:
    """A GRU in both directions finds the peaks of a sequence of numbers."""
    torch.manual_seed(114)
    model = Recurrent(nn.GRU, 8, 2, bidirectional=True)
    return fit(model, _peaks, classify, lr=5e-3, steps=250)


def characters() -> Training:
    """A language model of two LSTM layers with dropout."""
    torch.manual_seed(115)
    model = Recurrent(nn.LSTM, 20, 20, num_layers=2, dropout=0.2)
    return fit(model, next_token, classify, lr=4e-3, steps=150, how=torch.optim.AdamW)


class GraphNet(nn.Module):
    """Three rounds of mean aggregation with residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.own = nn.ModuleList([nn.Linear(32, 32) for _ in range(3)])
        self.others = nn.ModuleList([nn.Linear(32, 32, bias=False) for _ in range(3)])
        self.read = nn.Linear(32, 2)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        h = self.embed(x)
        for own, others in zip(self.own, self.others, strict=True):
            h = h + F.relu(own(h) + others(adjacency @ h))
        return self.read(h)


def _nodes(model: nn.Module, x: Tensor, adjacency: Tensor, side: Tensor) -> Tensor:
    return F.cross_entropy(model(x, adjacency).flatten(0, 1), side.flatten())


def graph_network() -> Training:
    """Communities by message passing."""
    torch.manual_seed(116)
    return fit(GraphNet(), graphs, _nodes, lr=2e-3, steps=200)


class Segmenter(nn.Module):
    """A U-Net of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = conv(1, 12), conv(12, 24, 2), conv(24, 32, 2)
        self.up_b, self.up_a = nn.ConvTranspose2d(32, 24, 2, 2), nn.ConvTranspose2d(24, 12, 2, 2)
        self.join_b, self.join_a = conv(48, 24), conv(24, 12)
        self.paint = nn.Conv2d(12, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.a(x)
        b = self.b(a)
        b = self.join_b(torch.cat([b, self.up_b(self.c(b))], 1))
        return self.paint(self.join_a(torch.cat([a, self.up_a(b)], 1)))


def _dice(model: nn.Module, x: Tensor, kind: Tensor, mask: Tensor) -> Tensor:
    p = model(x).sigmoid()
    overlap = (2 * (p * mask).sum((1, 2, 3)) + 1) / ((p + mask).sum((1, 2, 3)) + 1)
    return 1 - overlap.mean()


def segmentation() -> Training:
    """Masks of shapes by a U-Net and the Dice loss."""
    torch.manual_seed(117)
    return fit(Segmenter(), shapes, _dice, lr=2e-3, steps=120)


def group_norm() -> Training:
    """Digits by a CNN with group norm and SiLU, under SGD with Nesterov momentum."""
    torch.manual_seed(118)
    layers: list[nn.Module] = []
    for a, b in ((1, 32), (32, 32), (32, 64)):
        layers += [nn.Conv2d(a, b, 3, 1, 1), nn.GroupNorm(8, b), nn.SiLU()]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    nesterov = partial(torch.optim.SGD, momentum=0.9, nesterov=True, weight_decay=5e-4)
    return fit(model, digits, classify, lr=0.03, steps=120, how=nesterov)


def residual() -> Training:
    """Shapes by a ResNet under a cosine schedule."""
    torch.manual_seed(119)
    model = nn.Sequential(
        conv(1, 16), Residual(16), nn.MaxPool2d(2), Residual(16), Residual(16),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    training = fit(model, shapes, classify, lr=0.05, steps=120, how=MOMENTUM)
    training.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(training.optimizer, 120)
    return training


def noisy_targets() -> Training:
    """Regression where half of the target's variance is noise."""
    torch.manual_seed(120)
    batch = partial(bumps, n=128, noise=1.0)
    return fit(mlp(8, 64, 64, 1), batch, regress, lr=2e-3, steps=300)


def _rare(step: int) -> Batch:
    g = seeded(step, 105)
    y = (torch.rand(128, generator=g) < 0.04).float()
    x = torch.randn(128, 10, generator=g)
    x[:, :3] += 1.5 * y[:, None]
    return x, y


def _focal(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    score = model(x)[:, 0]
    each = F.binary_cross_entropy_with_logits(score, y, reduction="none")
    return ((1 - (-each).exp()).square() * each).mean()


def imbalance() -> Training:
    """One positive among twenty-five, by the focal loss."""
    torch.manual_seed(121)
    return fit(mlp(10, 48, 24, 1, act=nn.GELU), _rare, _focal, lr=2e-3, steps=250)


def _smoothed(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y, label_smoothing=0.1)


def heavy_dropout() -> Training:
    """Digits with half of every layer dropped and smoothed labels."""
    torch.manual_seed(122)
    model = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(256, 256), nn.ReLU(), nn.Dropout(0.5), nn.Linear(256, 10),
    )  # fmt: skip
    return fit(model, flat_digits, _smoothed, steps=250, how=torch.optim.AdamW)


class Deep(nn.Module):
    """Blocks with an exit after each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([conv(1, 16), conv(16, 16), conv(16, 24, 2), conv(24, 24)])
        self.exits = nn.ModuleList([nn.Linear(n, 10) for n in (16, 16, 24, 24)])

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for block, out in zip(self.blocks, self.exits, strict=True):
            x = block(x)
            found.append(out(x.mean((2, 3)) + x.amax((2, 3))))
        return found


def _every_exit(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    weights = (0.1, 0.2, 0.3, 1.0)
    losses = [w * F.cross_entropy(out, y) for w, out in zip(weights, model(x), strict=True)]
    return torch.stack(losses).sum()


def deep_supervision() -> Training:
    """Digits with a loss at every depth."""
    torch.manual_seed(123)
    return fit(Deep(), digits, _every_exit, lr=2e-3, steps=120)


def _inverse(step: int) -> Batch:
    g = seeded(step, 106)
    y = torch.rand(128, 1, generator=g) * 2 - 1
    x = y + 0.5 * torch.sin(6.28 * y) + 0.05 * torch.randn(128, 1, generator=g)
    return x, y


def _mixture(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    weight, mean, spread = model(x).chunk(3, -1)
    each = torch.distributions.Normal(mean, F.softplus(spread) + 0.01).log_prob(y)
    return -torch.logsumexp(weight.log_softmax(-1) + each, -1).mean()


def mixture_density() -> Training:
    """A relation with several answers, by a mixture of five Gaussians."""
    torch.manual_seed(124)
    return fit(mlp(1, 64, 64, 15, act=nn.Tanh), _inverse, _mixture, lr=3e-3, steps=300, clip=5.0)


def _ranked(step: int) -> Batch:
    g = seeded(step, 107)
    items = torch.randn(32, 8, 6, generator=g)
    worth = items[..., 0] + items[..., 1].square() - items[..., 2] * items[..., 3]
    return items, worth


def _ranknet(model: nn.Module, items: Tensor, worth: Tensor) -> Tensor:
    score = model(items)[..., 0]
    better = (worth[:, :, None] > worth[:, None, :]).float()
    return (F.softplus(score[:, None, :] - score[:, :, None]) * better).sum() / better.sum()


def ranking() -> Training:
    """Lists put in order by pairs."""
    torch.manual_seed(125)
    return fit(mlp(6, 64, 32, 1, act=nn.SiLU), _ranked, _ranknet, lr=3e-3, steps=200)


class Recommender(nn.Module):
    """Users and items as sparse embeddings, and a network on both."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(60, 12, sparse=True)
        self.items = nn.Embedding(40, 12, sparse=True)
        self.join = mlp(36, 48, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        u, i = self.users(user), self.items(item)
        return self.join(torch.cat([u, i, u * i], -1))[:, 0]


def _ratings(step: int) -> Batch:
    taste = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    kind = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
    g = seeded(step, 108)
    user = torch.randint(60, (128,), generator=g)
    item = torch.randint(40, (128,), generator=g)
    return user, item, (taste[user] * kind[item]).sum(-1) / 1.7


def _rating_error(model: nn.Module, user: Tensor, item: Tensor, rating: Tensor) -> Tensor:
    return F.mse_loss(model(user, item), rating)


def _both_optimizers(training: Training, step: int) -> dict[str, Any]:
    for optimizer in (training.optimizer, *training.others):
        optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
    return {"loss": loss.detach()}


def recommender() -> Training:
    """Ratings; SparseAdam for the embeddings, Adam for the rest."""
    torch.manual_seed(126)
    model = Recommender()
    training = fit(
        model, _ratings, _rating_error, lr=2e-3, steps=350, every=10, held=model.join.parameters(),
        step=_both_optimizers,
    )  # fmt: skip
    sparse = [model.users.weight, model.items.weight]
    training.others = [torch.optim.SparseAdam(sparse, lr=1e-2)]
    return training


def _pinball(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    levels = torch.tensor([0.1, 0.5, 0.9])
    miss = y - model(x)
    return torch.maximum(levels * miss, (levels - 1) * miss).mean()


def quantiles() -> Training:
    """Three quantiles of a noisy target."""
    torch.manual_seed(127)
    batch = partial(bumps, n=96, noise=0.4)
    model = mlp(8, 64, 64, 3, act=nn.Softplus)
    return fit(model, batch, _pinball, lr=3e-3, steps=300)


def _spoken(step: int) -> Batch:
    """A word of four symbols, each held for two to four frames; frames are noisy."""
    sounds = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    g = seeded(step, 109)
    words = torch.randint(5, (24, 4), generator=g) + 1
    held = torch.randint(2, 5, (24, 4), generator=g)
    frames = torch.zeros(24, 18, 8)
    for i in range(24):
        voice = sounds[words[i].repeat_interleave(held[i])]
        frames[i, : len(voice)] = voice
    return frames + 0.3 * torch.randn(24, 18, 8, generator=g), words


class Listener(nn.Module):
    """A convolution and a GRU over frames."""

    def __init__(self) -> None:
        super().__init__()
        self.front = nn.Conv1d(8, 32, 3, padding=1)
        self.recur = nn.GRU(32, 32, batch_first=True, bidirectional=True)
        self.read = nn.Linear(64, 6)

    def forward(self, frames: Tensor) -> Tensor:
        h = F.relu(self.front(frames.transpose(1, 2))).transpose(1, 2)
        return self.read(self.recur(h)[0])


def _ctc(model: nn.Module, frames: Tensor, words: Tensor) -> Tensor:
    scores = model(frames).log_softmax(-1).transpose(0, 1)
    lengths = torch.full((len(frames),), 18), torch.full((len(frames),), 4)
    return F.ctc_loss(scores, words, *lengths)


def spoken_words() -> Training:
    """Symbols of a stream of frames by CTC."""
    torch.manual_seed(128)
    return fit(Listener(), _spoken, _ctc, lr=5e-3, steps=200)


class Causal(nn.Module):
    """Dilated causal convolutions with residuals and weight normalisation."""

    def __init__(self) -> None:
        super().__init__()
        norm = nn.utils.parametrizations.weight_norm
        self.lift = nn.Conv1d(1, 24, 1)
        self.layers = nn.ModuleList([norm(nn.Conv1d(24, 24, 2, dilation=2**i)) for i in range(4)])
        self.read = nn.Conv1d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        for i, layer in enumerate(self.layers):
            h = h + F.gelu(layer(F.pad(h, (2**i, 0))))
        return self.read(h)


def _ahead(model: nn.Module, series: Tensor, _: Tensor) -> Tensor:
    return F.mse_loss(model(series[..., :-1])[..., 8:], series[..., 9:])


def forecasting() -> Training:
    """The next value of a noisy wave by a temporal CNN."""
    torch.manual_seed(129)
    return fit(Causal(), waves, _ahead, lr=2e-3, steps=150, how=torch.optim.AdamW)


def _places(step: int) -> Batch:
    return (3 * torch.rand(64, 1, generator=seeded(step, 110)),)


def _oscillator(model: nn.Module, t: Tensor) -> Tensor:
    """x″ + x = 0 with x(0) = 1 and x′(0) = 0."""
    t = torch.cat([torch.zeros(1, 1), t]).requires_grad_()
    x = model(t)
    first = torch.autograd.grad(x.sum(), t, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), t, create_graph=True)[0]
    start = (x[0] - 1).square() + first[0].square()
    return (second + x).square().mean() + 4 * start.sum()


def physics() -> Training:
    """An oscillator's equation as the loss."""
    torch.manual_seed(130)
    model = mlp(1, 32, 32, 1, act=nn.Tanh)
    return fit(model, _places, _oscillator, lr=3e-3, steps=300, every=10)


def _mean_teacher(model: nn.ModuleDict, x: Tensor, y: Tensor) -> Tensor:
    noisy = x + 0.3 * torch.randn_like(x)
    out = model["student"](noisy)
    with torch.no_grad():
        goal = model["teacher"](x).softmax(-1)
    return F.cross_entropy(out[:32], y[:32]) + F.mse_loss(out.softmax(-1), goal)


def _follow(training: Training, step: int) -> dict[str, Any]:
    training.optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    student, teacher = (
        training.model.get_submodule("student"),
        training.model.get_submodule("teacher"),
    )
    with torch.no_grad():
        for p, q in zip(student.parameters(), teacher.parameters(), strict=True):
            q.lerp_(p, 0.05)
    return {"loss": loss.detach()}


def mean_teacher() -> Training:
    """Half of the digits have labels; the teacher is a moving average of the student."""
    torch.manual_seed(131)
    student = nn.Sequential(nn.Flatten(), *mlp(64, 128, 64, 10, act=nn.GELU))
    teacher = copy.deepcopy(student).requires_grad_(False)
    model = nn.ModuleDict({"student": student, "teacher": teacher})
    return fit(model, digits, _mean_teacher, held=student.parameters(), step=_follow)


MIXED = Healthy(
    "ind-healthy-mixed",
    {
        "dense-autoencoder": dense_autoencoder,
        "conv-autoencoder": conv_autoencoder,
        "variational": variational,
        "denoising": denoising,
        "fine-tuning": fine_tuning,
        "linear-probe": linear_probe,
        "frozen-vectors": frozen_vectors,
        "mean-teacher": mean_teacher,
        "siamese": siamese,
        "triplet": triplet,
        "adversarial": adversarial,
        "actor-critic": actor_critic,
        "uncertain-weights": uncertain_weights,
        "deep-supervision": deep_supervision,
        "lstm-classifier": lstm_classifier,
        "tagger": tagger,
        "characters": characters,
        "spoken-words": spoken_words,
        "graph-network": graph_network,
        "segmentation": segmentation,
        "group-norm": group_norm,
        "residual": residual,
        "noisy-targets": noisy_targets,
        "quantiles": quantiles,
        "imbalance": imbalance,
        "heavy-dropout": heavy_dropout,
        "mixture-density": mixture_density,
        "physics": physics,
        "ranking": ranking,
        "recommender": recommender,
        "forecasting": forecasting,
    },
    flat={"adversarial": "the generator's loss is that of a game, at balance from the start"},
)

THEMES: list[Healthy] = [MIXED]
