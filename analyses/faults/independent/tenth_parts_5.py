"""Models of several parts that are wired as they should be."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_tenth_d import digits, draw, source, waves
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def prepared(net: nn.Module, steps: int = 150) -> None:
    """Train on digits beforehand."""
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    batch = draw(64, *digits(), seed=99)
    for step in range(steps):
        optimizer.zero_grad()
        classes(net, *batch(step)).backward()
        optimizer.step()


class Pupil(nn.Module):
    """A teacher that stays as it is, and a smaller network that learns from it."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
        self.student = nn.Sequential(nn.Linear(64, 24), nn.GELU(), nn.Linear(24, 10))


def taught(net: Pupil, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        told = (net.teacher(x) / 2).softmax(-1)
    guess = net.student(x)
    soft = F.kl_div((guess / 2).log_softmax(-1), told, reduction="batchmean")
    return 0.3 * F.cross_entropy(guess, y) + 0.7 * 4 * soft


def teaching() -> Training:
    """Distillation from a frozen teacher that is part of the model."""
    torch.manual_seed(101)
    model = Pupil()
    prepared(model.teacher)
    model.teacher.requires_grad_(False).eval()
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=3e-3)
    return Training(model, draw(64, *digits(), seed=1), taught, optimizer, steps=200)


class Own(nn.Module):
    """An online network with a predictor, and its moving average."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.ReLU(), nn.Linear(96, 32)
        )
        self.predictor = nn.Sequential(
            nn.Linear(32, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 32)
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)


IMAGES = digits()[0]


def two_views(step: int) -> Batch:
    x = IMAGES
    g = source(step, 2)
    rows = torch.randint(len(x), (64,), generator=g)
    a, b = (x[rows] + 0.3 * torch.randn(64, 64, generator=g) for _ in range(2))
    return a, b


def foretold(net: Own, a: Tensor, b: Tensor) -> Tensor:
    with torch.no_grad():
        wanted = [net.target(b), net.target(a)]
    guesses = [net.predictor(net.online(v)) for v in (a, b)]
    likeness = [F.cosine_similarity(p, w).mean() for p, w in zip(guesses, wanted, strict=True)]
    return 2 - likeness[0] - likeness[1]


def own_average() -> Training:
    """Self-supervision: the targets come from the moving average of the network."""
    torch.manual_seed(102)
    model = Own()
    parts = [*model.online.parameters(), *model.predictor.parameters()]
    optimizer = torch.optim.Adam(parts, lr=2e-3)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            pairs = zip(model.target.parameters(), model.online.parameters(), strict=True)
            for slow, p in pairs:
                slow.lerp_(p, 0.02)
        return {"loss": loss.detach()}

    return Training(model, two_views, foretold, optimizer, steps=200, step=step)


class Forgers(nn.Module):
    """A generator of points on a ring, and who tells them from real ones."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(4, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 2),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(2, 48), nn.LeakyReLU(0.2), nn.Linear(48, 48), nn.LeakyReLU(0.2),
            nn.Linear(48, 1),
        )  # fmt: skip


def ring(step: int) -> Batch:
    g = source(step, 3)
    angle = 6.2832 * torch.rand(64, generator=g)
    real = torch.stack([angle.cos(), angle.sin()], -1) + 0.05 * torch.randn(64, 2, generator=g)
    return real, torch.randn(64, 4, generator=g)


def fooling(net: Forgers, real: Tensor, noise: Tensor) -> Tensor:
    return F.softplus(-net.critic(net.generator(noise))).mean()


def forging() -> Training:
    """Steps of two optimizers in turn; the generator's points are detached for the critic."""
    torch.manual_seed(103)
    model = Forgers()
    makes = torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.99))
    tells = torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.99))

    def step(training: Training, step: int) -> dict[str, Any]:
        real, noise = training.batch(step)
        fake = model.generator(noise).detach()
        tells.zero_grad()
        told = F.softplus(-model.critic(real)).mean() + F.softplus(model.critic(fake)).mean()
        told.backward()
        tells.step()
        makes.zero_grad()
        loss = training.loss(model, real, noise)
        loss.backward()
        makes.step()
        return {"loss": loss.detach(), "critic": told.detach()}

    return Training(model, ring, fooling, makes, steps=300, every=10, step=step, others=[tells])


class Blur(nn.Module):
    """A variational autoencoder."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 96), nn.SiLU())
        self.mean, self.spread = nn.Linear(96, 8), nn.Linear(96, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        mean, spread = self.mean(h), self.spread(h)
        kl = 0.5 * (mean**2 + spread.exp() - spread - 1).sum(-1).mean()
        return self.decoder(mean + noise * (0.5 * spread).exp()), kl


def evidence(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    drawn, kl = model(x, noise)
    return 8 * ((drawn - x) ** 2).sum(-1).mean() + kl


def blurring() -> Training:
    """A VAE as in the textbook."""
    torch.manual_seed(104)
    model = Blur()
    plain = draw(64, digits()[0], seed=4)

    def batch(step: int) -> Batch:
        return (*plain(step), torch.randn(64, 8, generator=source(step, 41)))

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, evidence, optimizer, steps=250)


class Tuned(nn.Module):
    """A backbone that knows digits, and a new head."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(64, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 48), nn.GELU()
        )
        self.head = nn.Sequential(nn.Linear(48, 24), nn.GELU(), nn.Linear(24, 2))

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.backbone(x)
        return self.head(h)


def new_head() -> Training:
    """The backbone is frozen on purpose; a head learns which digits are primes."""
    torch.manual_seed(105)
    model = Tuned()
    prepared(nn.Sequential(model.backbone, nn.Linear(48, 10)))
    model.backbone.requires_grad_(False)
    x, y = digits()
    prime = torch.isin(y, torch.tensor([2, 3, 5, 7])).long()
    optimizer = torch.optim.SGD(model.head.parameters(), lr=0.1, momentum=0.9)
    return Training(model, draw(32, x, prime, seed=5), classes, optimizer, steps=150)


class Tied(nn.Module):
    """A recurrent language model whose output has the embedding's weights."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(15, 40)
        nn.init.normal_(self.words.weight, std=0.2)
        self.body = nn.GRU(40, 40, batch_first=True)
        self.out = nn.Linear(40, 15)
        self.out.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.body(self.words(x))[0])


def grammar(step: int) -> Batch:
    """From each word one of two others can follow."""
    g = source(step, 6)
    x = [torch.randint(15, (32,), generator=g)]
    for _ in range(14):
        x.append((x[-1] * 4 + 1 + 6 * torch.randint(2, (32,), generator=g)) % 15)
    return (torch.stack(x, 1),)


def next_word(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x[:, :-1]).transpose(1, 2), x[:, 1:])


def tied() -> Training:
    """Embedding and output share one matrix."""
    torch.manual_seed(106)
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, grammar, next_word, optimizer, steps=200)


class TopTwo(nn.Module):
    """Two of four experts per image, with a term that keeps all of them busy."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48))
        self.router = nn.Linear(48, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Linear(32, 48)) for _ in range(4)
        )
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.stem(x)
        p = self.router(h).softmax(-1)
        best, which = p.topk(2, -1)
        chosen = torch.zeros_like(p).scatter(-1, which, best / best.sum(-1, keepdim=True))
        out = torch.stack([e(h) for e in self.experts], 1)
        busy = 4 * ((chosen > 0).float().mean(0) / 2 * p.mean(0)).sum()
        return self.head(h + torch.einsum("be,bec->bc", chosen, out)), busy


def balanced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    guess, busy = model(x)
    return F.cross_entropy(guess, y) + 0.1 * busy


def top_two() -> Training:
    """A mixture of experts with the usual loss for balance."""
    torch.manual_seed(107)
    model = TopTwo()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, draw(64, *digits(), seed=7), balanced, optimizer, steps=200)


class Supervised(nn.Module):
    """A convolutional network with a second head halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.middle = nn.Sequential(
            nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.BatchNorm2d(24), nn.SiLU()
        )
        self.high = nn.Sequential(nn.Conv2d(24, 32, 3, padding=1), nn.BatchNorm2d(32), nn.SiLU())
        self.side, self.head = nn.Linear(24, 10), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.middle(self.low(x))
        side = self.side(h.mean((2, 3)))
        return side, self.head(self.high(h).mean((2, 3)))


def deep_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    side, main = model(x)
    return F.cross_entropy(main, y) + 0.3 * F.cross_entropy(side, y)


def supervised() -> Training:
    """An auxiliary head with a weight of 0.3."""
    torch.manual_seed(108)
    model = Supervised()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    x, y = digits()
    batch = draw(32, x.view(-1, 1, 8, 8), y, seed=8)
    return Training(model, batch, deep_loss, optimizer, steps=150)


class Alike(nn.Module):
    """Two views, one network, a predictor; the other side's gradient is stopped."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Linear(64, 96), nn.BatchNorm1d(96), nn.GELU(), nn.Linear(96, 32), nn.BatchNorm1d(32)
        )
        self.predictor = nn.Sequential(
            nn.Linear(32, 16), nn.BatchNorm1d(16), nn.GELU(), nn.Linear(16, 32)
        )

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        za, zb = self.body(a), self.body(b)
        pa, pb = self.predictor(za), self.predictor(zb)
        likeness = F.cosine_similarity(pa, zb.detach()) + F.cosine_similarity(pb, za.detach())
        return 1 - likeness.mean() / 2


def plain_forward(model: nn.Module, *data: Tensor) -> Tensor:
    return model(*data)


def alike() -> Training:
    """A stopped gradient where it belongs: everything is trained through the other side."""
    torch.manual_seed(109)
    model = Alike()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, two_views, plain_forward, optimizer, steps=200)


class Player(nn.Module):
    """A policy and a value on one body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(64, 64), nn.Tanh())
        self.policy, self.value = nn.Linear(64, 10), nn.Linear(64, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.policy(h).log_softmax(-1), self.value(h)[:, 0]


def rewarded(model: nn.Module, x: Tensor, y: Tensor, noise: Tensor) -> Tensor:
    logp, value = model(x)
    action = (logp.detach() + noise).argmax(-1)
    reward = (action == y).float()
    advantage = reward - value.detach()
    chosen = logp[torch.arange(len(x)), action]
    entropy = -(logp.exp() * logp).sum(-1).mean()
    return -(chosen * advantage).mean() + 0.5 * F.mse_loss(value, reward) - 0.01 * entropy


def playing() -> Training:
    """Actor and critic on one body; the advantage is detached, as it has to be."""
    torch.manual_seed(110)
    model = Player()
    plain = draw(128, *digits(), seed=10)

    def batch(step: int) -> Batch:
        u = torch.rand(128, 10, generator=source(step, 111)).clamp(1e-6, 1 - 1e-6)
        return (*plain(step), -(-u.log()).log())

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, batch, rewarded, optimizer, steps=250)


class Windows(nn.Module):
    """Reads a signal in windows; the state is handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        state: tuple[Tensor, Tensor] | None = None
        found = []
        for window in x.split(8, 1):
            h, state = self.cell(window, state)
            state = (state[0].detach(), state[1].detach())
            found.append(self.out(h))
        return torch.cat(found, 1)


def next_value(model: nn.Module, x: Tensor) -> Tensor:
    return F.mse_loss(model(x[:, :-1]), x[:, 1:])


def windows() -> Training:
    """Truncated backpropagation: the state is detached between windows."""
    torch.manual_seed(111)
    model = Windows()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, draw(48, waves(600, 33, 7)[0], seed=11), next_value, optimizer)


def bert() -> Training:
    """A small library model for masked words, its embedding and output tied as they come."""
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(112)
    config = BertConfig(
        vocab_size=17, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, max_position_embeddings=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, type_vocab_size=1,
    )  # fmt: skip
    model = BertForMaskedLM(config)

    def batch(step: int) -> Batch:
        (x,) = grammar(step)
        hidden = torch.rand(x.shape, generator=source(step, 12)) < 0.2
        return x.masked_fill(hidden, 15), x.masked_fill(~hidden, -100)

    def loss(net: Any, x: Tensor, y: Tensor) -> Tensor:
        return net(input_ids=x, labels=y).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=250)


class Delta(nn.Module):
    """A layer that stays, and what is added to it."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(4, base.in_features) / base.in_features**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * F.linear(F.linear(x, self.a), self.b)


def adapted(rank_rate: float = 5e-3) -> Training:
    """A network for upright digits learns mirrored ones, by low-rank additions only."""
    torch.manual_seed(113)
    first, second, last = nn.Linear(64, 80), nn.Linear(80, 80), nn.Linear(80, 10)
    prepared(nn.Sequential(first, nn.GELU(), second, nn.GELU(), last))
    model = nn.Sequential(Delta(first), nn.GELU(), Delta(second), nn.GELU(), Delta(last))
    x, y = digits()
    x = x.view(-1, 8, 8).flip(-1).flatten(1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rank_rate)
    return Training(model, draw(48, x, y, seed=13), classes, optimizer, steps=200)


SOUND = Healthy(
    "ind10-parts-sound",
    {
        "frozen-teacher": teaching,
        "moving-average": own_average,
        "generator-and-critic": forging,
        "variational": blurring,
        "new-head": new_head,
        "tied-words": tied,
        "top-two-experts": top_two,
        "head-halfway": supervised,
        "stopped-side": alike,
        "actor-and-critic": playing,
        "windows": windows,
        "masked-words": bert,
        "low-rank": partial(adapted, rank_rate=5e-3),
    },
    flat={
        "generator-and-critic": "generator and critic keep each other in balance",
        "actor-and-critic": "the surrogate of a policy's gradient is no measure of its progress",
    },
)

THEMES = [SOUND]
