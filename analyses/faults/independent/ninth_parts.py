"""Parts that run and that the loss cannot reach."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_d import (
    both,
    chance,
    digit_batches,
    digits,
    drawn,
    picture_batches,
)
from analyses.faults.symptoms import learns_less, no_gradient_before
from analyses.faults.training import Batch, Training


class Copier(nn.Module):
    """A GRU reads tokens, another writes them down again."""

    def __init__(self, tokens: int, width: int, inference: bool) -> None:
        super().__init__()
        self.inference = inference
        self.embed = nn.Embedding(tokens + 1, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.out = nn.Linear(width, tokens)

    def encode(self, source: Tensor) -> Tensor:
        return self.encoder(self.embed(source))[1]

    def forward(self, source: Tensor) -> Tensor:
        if self.inference:
            with torch.no_grad():
                state = self.encode(source)
        else:
            state = self.encode(source)
        before = F.pad(source[:, :-1], (1, 0), value=self.out.out_features)
        return self.out(self.decoder(self.embed(before), state)[0])


def copier(inference: bool = False) -> Training:
    """Sequences of five tokens; the encoder's call was taken from the inference script or not."""
    torch.manual_seed(31)
    model = Copier(8, 48, inference)

    def batch(step: int) -> Batch:
        return (torch.randint(8, (48, 5), generator=chance(step, 1)),)

    def loss(model: nn.Module, source: Tensor) -> Tensor:
        return F.cross_entropy(model(source).flatten(0, 1), source.flatten())

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 4e-3), steps=220)


def tower(inputs: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden), nn.GELU(), nn.LayerNorm(hidden), nn.Linear(hidden, out)
    )


class Retrieval(nn.Module):
    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        self.user = tower(20, 64, 24)
        self.item_id = nn.Embedding(300, 32)
        self.item = tower(32, 64, 24)

    def scores(self, user: Tensor, item: Tensor) -> Tensor:
        u = F.normalize(self.user(user), dim=-1)
        with torch.set_grad_enabled(not self.cached):
            i = F.normalize(self.item(self.item_id(item)), dim=-1)
        return u @ i.T / 0.1


def retrieval(cached: bool = False) -> Training:
    """Users find items among those of the batch."""
    torch.manual_seed(32)
    model = Retrieval(cached)
    tastes = torch.randn(300, 20, generator=chance(0, 2))

    def batch(step: int) -> Batch:
        g = chance(step, 3)
        item = torch.randperm(300, generator=g)[:64]
        return tastes[item] + 0.2 * torch.randn(64, 20, generator=g), item

    def loss(model: nn.Module, user: Tensor, item: Tensor) -> Tensor:
        assert isinstance(model, Retrieval)
        logits = model.scores(user, item)
        there = torch.arange(len(item))
        return 0.5 * (F.cross_entropy(logits, there) + F.cross_entropy(logits.T, there))

    return Training(model, batch, loss, torch.optim.Adam(model.parameters(), 2e-3), steps=200)


class Whitened(nn.Module):
    """Features of a small CNN are standardized by a helper, then classified."""

    def __init__(self, by_numpy: bool) -> None:
        super().__init__()
        self.by_numpy = by_numpy
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x)
        if self.by_numpy:
            array = f.detach().cpu().numpy()
            f = torch.from_numpy((array - array.mean(0)) / (array.std(0) + 1e-3))
        else:
            f = (f - f.mean(0)) / (f.std(0, correction=0) + 1e-3)
        return self.head(f)


def whitened(by_numpy: bool = False) -> Training:
    torch.manual_seed(33)
    model = Whitened(by_numpy)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, picture_batches(64), loss, sgd, steps=160)


class Messages(nn.Module):
    """One network says in three symbols what it sees, another one guesses."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.speaker = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 3 * 8))
        self.symbols = nn.Parameter(torch.randn(8, 16))
        self.listener = nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.speaker(x).view(-1, 3, 8)
        if self.hard:
            said = self.symbols[logits.argmax(-1)]
        else:
            soft = logits.softmax(-1)
            sharp = F.one_hot(logits.argmax(-1), 8).float()
            said = (sharp + soft - soft.detach()) @ self.symbols
        return self.listener(said.flatten(1))


def messages(hard: bool = False) -> Training:
    torch.manual_seed(34)
    model = Messages(hard)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, digit_batches(64), loss, adam, steps=200)


class Agent(nn.Module):
    """A policy for one-step control, and a critic of what it does."""

    def __init__(self, sample: bool) -> None:
        super().__init__()
        self.sample = sample
        self.policy = nn.Sequential(nn.Linear(6, 48), nn.SiLU(), nn.Linear(48, 4))
        self.critic = nn.Sequential(
            nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )

    def act(self, state: Tensor) -> Tensor:
        mean, log_std = self.policy(state).chunk(2, -1)
        there = torch.distributions.Normal(mean, log_std.clamp(-4, 0).exp())
        return there.sample() if self.sample else there.rsample()

    def value(self, state: Tensor, action: Tensor) -> Tensor:
        return self.critic(torch.cat([state, action], -1)).squeeze(-1)


def agent(sample: bool = False) -> Training:
    """The actor climbs its critic, by an action drawn with or without a gradient."""
    torch.manual_seed(35)
    model = Agent(sample)
    wanted = torch.randn(6, 2, generator=chance(0, 4)) * 0.5

    def batch(step: int) -> Batch:
        g = chance(step, 5)
        return torch.randn(96, 6, generator=g), 1.5 * torch.randn(96, 2, generator=g)

    def cost(state: Tensor, action: Tensor) -> Tensor:
        return (action - state @ wanted).square().sum(-1)

    def critics(model: Agent, state: Tensor, noise: Tensor) -> Tensor:
        with torch.no_grad():
            action = model.act(state) + noise
        return F.mse_loss(model.value(state, action), -cost(state, action))

    def actors(model: Agent, state: Tensor) -> Tensor:
        return -model.value(state, model.act(state)).mean()

    def loss(model: nn.Module, state: Tensor, noise: Tensor) -> Tensor:
        assert isinstance(model, Agent)
        return critics(model, state, noise) + actors(model, state)

    pi = torch.optim.Adam(model.policy.parameters(), 3e-3)
    q = torch.optim.Adam(model.critic.parameters(), 3e-3)

    def step(training: Training, step: int) -> dict[str, Any]:
        state, noise = training.batch(step)
        q.zero_grad()
        critics(model, state, noise).backward()
        q.step()
        pi.zero_grad()
        actors(model, state).backward()
        pi.step()
        with torch.no_grad():
            return {"loss": cost(state, model.act(state)).mean()}

    return Training(model, batch, loss, pi, steps=250, step=step, others=[q])


class Switch(nn.Module):
    """Every input goes to one of four experts."""

    def __init__(self, weighted: bool) -> None:
        super().__init__()
        self.weighted = weighted
        self.router = nn.Linear(12, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(12, 6), nn.GELU(), nn.Linear(6, 2)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        weight, chosen = self.router(x).softmax(-1).max(-1)
        out = x.new_zeros(len(x), 2)
        for i, expert in enumerate(self.experts):
            mine = (chosen == i).nonzero().squeeze(-1)
            out = out.index_add(0, mine, expert(x[mine]))
        if self.weighted:
            out = out * weight.unsqueeze(-1)
        return {"out": out, "load": torch.bincount(chosen, minlength=4)}


def switch(weighted: bool = True) -> Training:
    """What is asked for is linear, in another way in each of four regions."""
    torch.manual_seed(36)
    model = Switch(weighted)
    regions = torch.randn(12, 4, generator=chance(0, 21))
    maps = torch.randn(4, 12, 2, generator=chance(1, 21)) / 2

    def batch(step: int) -> Batch:
        x = torch.randn(128, 12, generator=chance(step, 22))
        return x, torch.einsum("bi,bio->bo", x, maps[(x @ regions).argmax(-1)])

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x)["out"], y)

    adam = torch.optim.Adam(model.parameters(), 5e-3)
    return Training(model, batch, loss, adam, steps=300)


class Modulated(nn.Module):
    """What to count depends on a context that scales the features (FiLM)."""

    def __init__(self, rebuilt: bool) -> None:
        super().__init__()
        self.rebuilt = rebuilt
        self.context = nn.Sequential(nn.Linear(5, 24), nn.SiLU(), nn.Linear(24, 40))
        self.first = nn.Linear(10, 20)
        self.last = nn.Linear(20, 1)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        film = self.context(context)
        if self.rebuilt:
            film = torch.tensor([[float(v) for v in row] for row in film.tolist()])
        scale, shift = film.chunk(2, -1)
        return self.last(F.silu(self.first(x) * (1 + scale) + shift)).squeeze(-1)


def modulated(rebuilt: bool = False) -> Training:
    torch.manual_seed(37)
    model = Modulated(rebuilt)
    mix = torch.randn(5, 10, generator=chance(0, 6)) / 2

    def batch(step: int) -> Batch:
        g = chance(step, 7)
        x, context = torch.randn(32, 10, generator=g), torch.randn(32, 5, generator=g)
        return x, context, (x * (context @ mix)).sum(-1)

    def loss(model: nn.Module, x: Tensor, context: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, context), y)

    return Training(model, batch, loss, torch.optim.RMSprop(model.parameters(), 2e-3), steps=300)


class Halves(nn.Module):
    """Upper and lower halves of pictures find each other."""

    def __init__(self, item: bool) -> None:
        super().__init__()
        self.item = item
        self.upper = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.lower = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 32))
        self.logit_scale = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        a = F.normalize(self.upper(x[:, :32]), dim=-1)
        b = F.normalize(self.lower(x[:, 32:]), dim=-1)
        scale = self.logit_scale.exp()
        return (scale.item() if self.item else scale) * a @ b.T


def halves(item: bool = False) -> Training:
    torch.manual_seed(38)
    model = Halves(item)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        logits = model(x)
        there = torch.arange(len(x))
        return F.cross_entropy(logits, there) + F.cross_entropy(logits.T, there)

    others = [p for n, p in model.named_parameters() if n != "logit_scale"]
    adam = torch.optim.Adam(
        [{"params": others, "lr": 1e-3}, {"params": [model.logit_scale], "lr": 3e-2}]
    )
    return Training(model, drawn(64, digits()[0], seed=8), loss, adam, steps=200)


DETACHED = Fault(
    "ind9-parts-detached",
    must=[["detached"]],
    may=["no-update"],  # what gets no gradient stays as it was drawn
    symptom=both(no_gradient_before(), learns_less(0.01)),
    variants=[
        Variant("encoder-no-grad", copier, broken=partial(copier, inference=True)),
        Variant("cached-items", retrieval, broken=partial(retrieval, cached=True)),
        Variant("numpy-standardized", whitened, broken=partial(whitened, by_numpy=True)),
        Variant("argmax-message", messages, broken=partial(messages, hard=True)),
        Variant("actor-sample", agent, broken=partial(agent, sample=True)),
        Variant("router-unweighted", switch, broken=partial(switch, weighted=False)),
        Variant("film-rebuilt", modulated, broken=partial(modulated, rebuilt=True)),
        Variant("temperature-item", halves, broken=partial(halves, item=True)),
    ],
)

FAULTS = [DETACHED]
