"""Healthy models of several parts: tasks, twins, experts, frozen, shared and auxiliary parts."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_seventh_parts import digit_batch, digits, generator, some
from analyses.faults.training import Batch, Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(x), y)


# Several tasks -----------------------------------------------------------------------------------


class Weighed(nn.Module):
    """Two tasks, weighed by uncertainties that are learned."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(192, 48),
            nn.SiLU(),
        )  # fmt: skip
        self.digit, self.ink = nn.Linear(48, 10), nn.Linear(48, 1)
        self.uncertain = nn.Parameter(torch.zeros(2))


def uncertainty() -> Training:
    """Losses over their learned variances."""
    torch.manual_seed(31)
    model = Weighed()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Weighed)
        h = model.trunk(x)
        parts = torch.stack(
            [
                F.cross_entropy(model.digit(h), y),
                F.mse_loss(model.ink(h)[:, 0], 3 * x.mean((1, 2, 3))),
            ]
        )
        return (parts * (-model.uncertain).exp() + 0.5 * model.uncertain).sum()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch, loss, optimizer, steps=200)


class Turns(nn.Module):
    """A shared trunk with two heads, of which each step trains one."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 64),
            nn.GELU(),
        )  # fmt: skip
        self.heads = nn.ModuleList([nn.Linear(64, 10), nn.Linear(64, 2)])

    def forward(self, x: Tensor, task: int) -> Tensor:
        return self.heads[task](self.trunk(x))


def turns_batch(step: int) -> Batch:
    """Digits with the task that it is the turn of."""
    x, y = digit_batch(step)
    task = (step // 2) % 2
    return x, y % 2 if task else y, torch.tensor(task)


def turns() -> Training:
    """Tasks take turns."""
    torch.manual_seed(32)
    model = Turns()

    def loss(model: nn.Module, x: Tensor, y: Tensor, task: Tensor) -> Tensor:
        return F.cross_entropy(model(x, int(task)), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, turns_batch, loss, optimizer, steps=200)


class WithAuxiliary(nn.Module):
    """A deeper network with a classifier halfway."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.halfway = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))
        self.high = nn.Sequential(
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
            nn.Linear(512, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.low(x)
        return {"logits": self.high(h), "halfway": self.halfway(h)}


def auxiliary() -> Training:
    """The halfway classifier counts 0.3."""
    torch.manual_seed(33)
    model = WithAuxiliary()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        return F.cross_entropy(out["logits"], y) + 0.3 * F.cross_entropy(out["halfway"], y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, digit_batch, loss, optimizer, steps=150)


class Probed(nn.Module):
    """A classifier, and a linear probe that watches its features without touching them."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 40))
        self.head = nn.Sequential(nn.GELU(), nn.Linear(40, 10))
        self.probe = nn.Linear(40, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.head(h), self.probe(h.detach())


def probed() -> Training:
    """The probe tells whether the digit is below 5, on detached features."""
    torch.manual_seed(34)
    model = Probed()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        said, seen = model(x)
        return F.cross_entropy(said, y) + F.cross_entropy(seen, (y < 5).long())

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, digit_batch, loss, optimizer, steps=200)


TASKS = Healthy(
    "ind7-several-tasks",
    runs={"uncertainty": uncertainty, "turns": turns, "auxiliary": auxiliary, "probed": probed},
)


# Twins and opponents -----------------------------------------------------------------------------


def two_views(step: int) -> Batch:
    """Digits, shifted and made noisy in two ways."""
    x, _ = digit_batch(step)
    g = generator(step)
    views = []
    for _ in range(2):
        by = torch.randint(-1, 2, (2,), generator=g).tolist()
        views.append(x.roll(by, (2, 3)) + 0.3 * torch.randn(x.shape, generator=g))
    return views[0], views[1]


def contrastive() -> Training:
    """Two views of a digit are told from those of others."""
    torch.manual_seed(35)
    model = nn.ModuleDict(
        {
            "encoder": nn.Sequential(
                nn.Conv2d(1, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, stride=2),
                nn.SiLU(), nn.Flatten(), nn.Linear(288, 64),
            ),
            "projector": nn.Sequential(nn.SiLU(), nn.Linear(64, 32)),
        }
    )  # fmt: skip

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        assert isinstance(model, nn.ModuleDict)
        za, zb = (
            F.normalize(model["projector"](model["encoder"](view)), dim=-1) for view in (a, b)
        )
        alike = za @ zb.T / 0.2
        rows = torch.arange(len(a))
        return (F.cross_entropy(alike, rows) + F.cross_entropy(alike.T, rows)) / 2

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, two_views, loss, optimizer, steps=150)


class Bootstrap(nn.Module):
    """An online network that foretells what a slow copy of it says."""

    def __init__(self) -> None:
        super().__init__()
        self.online = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 96), nn.BatchNorm1d(96), nn.SiLU(), nn.Linear(96, 32)
        )
        self.predictor = nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32))
        self.target = copy.deepcopy(self.online).requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        told = self.predictor(self.online(a))
        with torch.no_grad():
            seen = self.target(b)
        return 2 - 2 * F.cosine_similarity(told, seen, dim=-1).mean()


def follow(training: Training, step: int) -> dict[str, Any]:
    """A step, then the copy follows."""
    loss = training.loss_at(step)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    model = training.model
    assert isinstance(model, Bootstrap)
    with torch.no_grad():
        pairs = zip(model.target.parameters(), model.online.parameters(), strict=True)
        for slow, fast in pairs:
            slow.lerp_(fast, 0.02)
    training.optimizer.zero_grad()
    return {"loss": loss.detach()}


def bootstrap() -> Training:
    """The target network is no part of what is trained, on purpose."""
    torch.manual_seed(36)
    model = Bootstrap()

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        return (model(a, b) + model(b, a)) / 2

    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    return Training(model, two_views, loss, optimizer, steps=150, step=follow)


class Opponents(nn.Module):
    """A generator of points and who tells them from true ones."""

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


def opponents_batch(step: int) -> Batch:
    """Points of a circle, and noise."""
    g = generator(step)
    angle = 6.2832 * torch.rand(64, generator=g)
    points = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(64, 2, generator=g)
    return points, torch.randn(64, 8, generator=g)


def fools(model: nn.Module, points: Tensor, noise: Tensor) -> Tensor:
    """The generator's loss."""
    assert isinstance(model, Opponents)
    return F.softplus(-model.critic(model.generator(noise))).mean()


def oppose(training: Training, step: int) -> dict[str, Any]:
    """The critic's step, then the generator's."""
    model = training.model
    assert isinstance(model, Opponents)
    points, noise = training.batch(step)
    fake = model.generator(noise).detach()
    critic_loss = F.softplus(-model.critic(points)).mean() + F.softplus(model.critic(fake)).mean()
    training.others[0].zero_grad()
    critic_loss.backward()
    training.others[0].step()
    loss = training.loss_at(step)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    model.zero_grad()
    return {"loss": loss.detach(), "critic": critic_loss.detach()}


def opponents() -> Training:
    """Two optimizers, one for each."""
    torch.manual_seed(37)
    model = Opponents()
    return Training(
        model,
        opponents_batch,
        fools,
        torch.optim.Adam(model.generator.parameters(), lr=1e-3, betas=(0.5, 0.9)),
        steps=250,
        step=oppose,
        others=[torch.optim.Adam(model.critic.parameters(), lr=1e-3, betas=(0.5, 0.9))],
    )


class Student(nn.Module):
    """A small convolutional network beside a wide linear teacher that is done."""

    def __init__(self, teacher: Tensor) -> None:
        super().__init__()
        self.teacher: Tensor
        self.register_buffer("teacher", teacher)
        self.net = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ELU(), nn.Conv2d(8, 16, 3), nn.ELU(), nn.Flatten(),
            nn.Linear(256, 10),
        )  # fmt: skip

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(x), x.flatten(1) @ self.teacher


def distilled() -> Training:
    """Half of the loss is the teacher's soft opinion."""
    torch.manual_seed(38)
    images, labels = digits()
    flat = images.flatten(1)
    ridge = flat.T @ flat + 50 * torch.eye(64)
    model = Student(6 * torch.linalg.solve(ridge, flat.T @ F.one_hot(labels, 10).float()))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        said, soft = model(x)
        alike = F.kl_div(
            F.log_softmax(said / 2, -1), F.softmax(soft / 2, -1), reduction="batchmean"
        )
        return 0.5 * F.cross_entropy(said, y) + 0.5 * 4 * alike

    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, digit_batch, loss, optimizer, steps=150)


TWINS = Healthy(
    "ind7-twins-and-opponents",
    runs={
        "contrastive": contrastive,
        "bootstrap": bootstrap,
        "opponents": opponents,
        "distilled": distilled,
    },
    flat={"opponents": "the generator's loss is measured against a critic that learns, too"},
)


# Chosen, frozen and shared parts -----------------------------------------------------------------


class TopTwo(nn.Module):
    """Tokens go to two of four experts; the pick is balanced by a term of the loss."""

    def __init__(self, wide: int = 24) -> None:
        super().__init__()
        self.inward = nn.Linear(12, wide)
        self.router = nn.Linear(wide, 4, bias=False)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(wide, 32), nn.SiLU(), nn.Linear(32, wide)) for _ in range(4)]
        )
        self.out = nn.Linear(wide, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.inward(x)
        p = F.softmax(self.router(h), -1)
        value, which = p.topk(2, -1)
        value = value / value.sum(-1, keepdim=True)
        mixed = torch.zeros_like(h)
        for number, expert in enumerate(self.experts):
            rows, place = (which == number).nonzero(as_tuple=True)
            mixed = mixed.index_add(0, rows, value[rows, place, None] * expert(h[rows]))
        load = F.one_hot(which, 4).float().sum(1).mean(0) / 2
        return self.out(h + mixed), 4 * (load * p.mean(0)).sum()


def regimes(step: int) -> Batch:
    """A regression whose map depends on the regime."""
    g = generator(step)
    which = torch.randint(4, (96,), generator=g)
    x = torch.randn(96, 8, generator=g)
    maps = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(6))
    y = torch.einsum("bi,bij->bj", x, maps[which]) / 2
    return torch.cat([1.5 * F.one_hot(which, 4).float(), x], 1), y


def top_two() -> Training:
    """A sparse mixture of experts."""
    torch.manual_seed(39)
    model = TopTwo()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        said, balance = model(x)
        return F.mse_loss(said, y) + 0.02 * balance

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, regimes, loss, optimizer, steps=250)


class OnFrozen(nn.Module):
    """Fixed filters under a small network that is trained."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten()
        ).requires_grad_(False)
        self.adapter = nn.Sequential(nn.Linear(512, 24), nn.SiLU(), nn.Linear(24, 10))

    def forward(self, x: Tensor) -> Tensor:
        return self.adapter(self.filters(x))


def frozen() -> Training:
    """The filters are frozen on purpose and not in the optimizer."""
    torch.manual_seed(40)
    model = OnFrozen()
    optimizer = torch.optim.Adam(model.adapter.parameters(), lr=2e-3)
    return Training(model, digit_batch, classify, optimizer, steps=200)


class Tied(nn.Module):
    """A language model that reads and writes by the same matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, 32)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.gru = nn.GRU(32, 48, batch_first=True)
        self.down = nn.Linear(48, 32)
        self.write = nn.Linear(32, 16, bias=False)
        self.write.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.write(self.down(self.gru(self.embed(ids))[0]))


def walks(step: int) -> Batch:
    """Each symbol is the sum of the two before it, most of the time."""
    g = generator(step)
    ids = torch.randint(16, (32, 12), generator=g)
    for t in range(2, 12):
        follows = torch.rand(32, generator=g) < 0.95
        ids[:, t] = torch.where(follows, (ids[:, t - 1] + 3 * (ids[:, t - 2] % 2)) % 16, ids[:, t])
    return ids[:, :-1], ids[:, 1:]


def tied() -> Training:
    """Tied embeddings."""
    torch.manual_seed(41)
    model = Tied()

    def loss(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(ids).flatten(0, 1), y.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Training(model, walks, loss, optimizer, steps=200)


class Taste(nn.Module):
    """Sparse embeddings of people and things under a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.people = nn.Embedding(60, 12, sparse=True)
        self.things = nn.Embedding(40, 12, sparse=True)
        self.top = nn.Sequential(nn.Linear(36, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, who: Tensor, what: Tensor) -> Tensor:
        a, b = self.people(who), self.things(what)
        return self.top(torch.cat([a, b, a * b], -1))[:, 0]


def ratings(step: int) -> Batch:
    """What a hidden model of few factors says."""
    g = torch.Generator().manual_seed(3)
    people, things = torch.randn(60, 3, generator=g), torch.randn(40, 3, generator=g)
    who, what = some(step, 128, 60), some(step + 5000, 128, 40)
    return who, what, (people[who] * things[what]).sum(1)


def step_both(training: Training, step: int) -> dict[str, Any]:
    """One loss, two optimizers."""
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()}


def sparse() -> Training:
    """An optimizer for what is sparse, another for the rest."""
    torch.manual_seed(42)
    model = Taste()

    def loss(model: nn.Module, who: Tensor, what: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(who, what), y)

    tables = [*model.people.parameters(), *model.things.parameters()]
    return Training(
        model,
        ratings,
        loss,
        torch.optim.Adam(model.top.parameters(), lr=3e-3),
        steps=300,
        step=step_both,
        others=[torch.optim.SparseAdam(tables, lr=1e-2)],
    )


class Gated(nn.Module):
    """Residual layers, each with a gate; some are left out by chance."""

    def __init__(self, wide: int = 40) -> None:
        super().__init__()
        self.inward = nn.Linear(2, wide)
        self.layers = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 2 * wide)) for _ in range(4)]
        )
        self.out = nn.Linear(wide, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x)
        for layer in self.layers:
            if self.training and torch.rand(()) < 0.15:
                continue
            h = h + F.glu(layer(h), dim=-1)
        return self.out(h)


def spirals(step: int) -> Batch:
    """Two spirals."""
    g = generator(step)
    y = torch.randint(2, (96,), generator=g)
    t = 0.5 + 5 * torch.rand(96, generator=g)
    angle = t + 3.1416 * y
    x = torch.stack([t * angle.cos(), t * angle.sin()], 1) / 3
    return x + 0.03 * torch.randn(96, 2, generator=g), y


def gated() -> Training:
    """Stochastic depth and gated linear units."""
    torch.manual_seed(43)
    model = Gated()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, spirals, classify, optimizer, steps=250)


CHOSEN = Healthy(
    "ind7-chosen-frozen-shared",
    runs={"top-two": top_two, "frozen": frozen, "tied": tied, "sparse": sparse, "gated": gated},
)


# Branches beside the main road -------------------------------------------------------------------


class WideDeep(nn.Module):
    """A linear model of crossed features beside a deep one."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(55, 1)
        self.deep = nn.Sequential(
            nn.Linear(10, 48), nn.SiLU(), nn.Linear(48, 24), nn.SiLU(), nn.Linear(24, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = torch.triu_indices(10, 10)
        crossed = x[:, rows] * x[:, columns]
        return (self.wide(crossed) + self.deep(x))[:, 0]


def crossed_batch(step: int) -> Batch:
    """Products and a bend."""
    x = torch.randn(96, 10, generator=generator(step))
    return x, (x[:, 0] * x[:, 1] - x[:, 2] * x[:, 3] + 2 * torch.tanh(2 * x[:, 4]) > 0).float()


def wide_deep() -> Training:
    """Both parts are trained together."""
    torch.manual_seed(46)
    model = WideDeep()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, crossed_batch, loss, optimizer, steps=250)


class Senses(nn.Module):
    """Patches of an image, asked by a query that another part makes of a hint."""

    def __init__(self, wide: int = 32) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, wide, 2, stride=2)
        self.place = nn.Parameter(0.1 * torch.randn(16, wide))
        self.hint = nn.Embedding(2, wide)
        self.ask = nn.Linear(wide, wide)
        self.offer = nn.Linear(wide, 2 * wide)
        self.out = nn.Sequential(
            nn.LayerNorm(wide), nn.Linear(wide, 64), nn.GELU(), nn.Linear(64, 10)
        )

    def forward(self, x: Tensor, hint: Tensor) -> Tensor:
        seen = self.patches(x).flatten(2).transpose(1, 2) + self.place
        seen = seen + F.gelu(seen)
        asked = self.hint(hint)[:, None]
        keys, values = self.offer(seen).chunk(2, -1)
        found = F.scaled_dot_product_attention(self.ask(asked), keys, values)
        return self.out((asked + found)[:, 0] + seen.amax(1))


def hinted_batch(step: int) -> Batch:
    """Digits, with the hint of whether they are odd."""
    x, y = digit_batch(step)
    return x, y % 2, y


def senses() -> Training:
    """Two inputs, fused by attention."""
    torch.manual_seed(47)
    model = Senses()

    def loss(model: nn.Module, x: Tensor, hint: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, hint), y)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, hinted_batch, loss, optimizer, steps=200)


class Critic(nn.Module):
    """Says what to do and what it is worth."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 48), nn.Tanh())
        self.policy, self.value = nn.Linear(48, 4), nn.Linear(48, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.policy(h), self.value(h)[:, 0]


def bandit_batch(step: int) -> Batch:
    """Situations, the best action in each, and luck for drawing one."""
    g = generator(step)
    x = torch.randn(96, 6, generator=g)
    best = (x[:, 0] > 0).long() * 2 + (x[:, 1] > 0).long()
    return x, best, torch.rand(96, 4, generator=g)


def actor_critic() -> Training:
    """The advantage is detached, as it has to be."""
    torch.manual_seed(48)
    model = Critic()

    def loss(model: nn.Module, x: Tensor, best: Tensor, luck: Tensor) -> Tensor:
        logits, value = model(x)
        policy = torch.distributions.Categorical(logits=logits)
        action = (logits.detach() - torch.log(-torch.log(luck.clamp(1e-6, 1 - 1e-6)))).argmax(-1)
        reward = (action == best).float()
        advantage = reward - value.detach()
        gain = (policy.log_prob(action) * advantage).mean()
        return 0.5 * F.mse_loss(value, reward) - gain - 0.01 * policy.entropy().mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, bandit_batch, loss, optimizer, steps=250)


def gpt() -> Training:
    """A tiny GPT-2, tied as it is by default."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(49)
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=16, n_positions=12, n_embd=32, n_layer=2, n_head=2, resid_pdrop=0.0,
            embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
            initializer_range=0.1,
        )
    )  # fmt: skip

    def loss(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(input_ids=ids).logits.flatten(0, 1), y.flatten())

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, walks, loss, optimizer, steps=180)


BESIDE = Healthy(
    "ind7-beside-the-main-road",
    runs={"wide-deep": wide_deep, "senses": senses, "actor-critic": actor_critic, "gpt": gpt},
    flat={"actor-critic": "a policy's loss says nothing of the rewards that it gets"},
)


THEMES = [TASKS, TWINS, CHOSEN, BESIDE]
