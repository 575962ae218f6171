"""Runs in which a part of the model takes no part in the training."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_eighth_parts import batches, digits, grammar, shapes, waves
from analyses.faults.symptoms import (
    branch_starved,
    decays,
    edges_cancel,
    left_out,
    no_gradient_before,
    unmoved,
    zero_gradient,
)
from analyses.faults.training import Training, ordinary

# --- cut off by accident ---------------------------------------------------------------------


class Reader(nn.Module):
    """A small CNN whose features were once wrapped for feature extraction."""

    def __init__(self, extract: bool) -> None:
        super().__init__()
        self.extract = extract
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
        )
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        if self.extract:
            with torch.no_grad():
                found = self.features(image)
        else:
            found = self.features(image)
        return self.classifier(found.flatten(1))


def cross_entropy(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def reader(extract: bool = False) -> Training:
    """All parameters are handed to Adam, so the features are meant to be trained."""
    torch.manual_seed(1)
    model = Reader(extract)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batches(*digits()), cross_entropy, optimizer, steps=200)


class Codes(nn.Module):
    """An autoencoder with a codebook; returns the reconstruction and the codebook's losses."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 4 * 6))
        self.book = nn.Embedding(48, 6)
        self.decoder = nn.Sequential(nn.Linear(4 * 6, 96), nn.SiLU(), nn.Linear(96, 64))
        nn.init.normal_(self.book.weight, std=0.4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 4, 6)
        nearest = torch.cdist(z.detach(), self.book.weight.detach()).argmin(-1)
        q = self.book(nearest)
        extra = F.mse_loss(q, z.detach())
        if self.straight:
            extra = extra + 0.25 * F.mse_loss(z, q.detach())
            q = z + (q - z).detach()
        return self.decoder(q.flatten(1)), extra


def codes(straight: bool = True) -> Training:
    torch.manual_seed(2)
    model = Codes(straight)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        out, extra = model(x)
        return F.mse_loss(out, x) + extra

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    data = batches(digits()[0].flatten(1), size=96, seed=2)
    return Training(model, data, loss, optimizer, steps=300)


class Spectral(nn.Module):
    """A learned filter bank, its spectra, and a classifier of these."""

    def __init__(self, by_numpy: bool) -> None:
        super().__init__()
        self.by_numpy = by_numpy
        self.bank = nn.Conv1d(1, 6, 9, padding=4)
        self.mix = nn.Conv1d(6, 4, 5, padding=2)
        self.head = nn.Sequential(nn.Linear(4 * 33, 48), nn.GELU(), nn.Linear(48, 6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.mix(torch.tanh(self.bank(x)))
        if self.by_numpy:
            power = np.abs(np.fft.rfft(h.detach().cpu().numpy(), axis=-1))
            spectrum = torch.from_numpy(power.astype(np.float32))
        else:
            spectrum = torch.fft.rfft(h, dim=-1).abs()
        return self.head(torch.log1p(spectrum).flatten(1))


def spectral(by_numpy: bool = False) -> Training:
    torch.manual_seed(3)
    model = Spectral(by_numpy)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, batches(*waves(), size=48, seed=3), cross_entropy, optimizer, steps=200)


def scorer(wrapped: bool = False) -> Training:
    """Predictions are collected one by one into a new tensor that "requires grad"."""
    torch.manual_seed(4)
    x = torch.randn(500, 7)
    y = x[:, 0] * x[:, 1] + torch.sin(2 * x[:, 2]) + 0.5 * x[:, 3]
    model = nn.Sequential(
        nn.Linear(7, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, 1)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        if wrapped:
            predicted = [model(row).item() for row in x]
            return F.mse_loss(torch.tensor(predicted, requires_grad=True), y)
        return F.mse_loss(torch.stack([model(row)[0] for row in x]), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batches(x, y, size=16, seed=4), loss, optimizer, steps=240)


class Towers(nn.Module):
    """Users and items in one space."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Sequential(nn.Embedding(120, 24), nn.Linear(24, 32), nn.ReLU())
        self.user_out = nn.Linear(32, 16)
        self.item_tower = nn.Sequential(
            nn.Embedding(90, 24), nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, 16)
        )

    def user_vectors(self, users: Tensor) -> Tensor:
        return self.user_out(self.users(users))

    def item_vectors(self) -> Tensor:
        return self.item_tower(torch.arange(90))

    def forward(self, users: Tensor, items: Tensor) -> Tensor:
        return self.user_vectors(users) @ items.T


def towers(cached: bool = False) -> Training:
    """The items' vectors are computed by the function that the evaluation uses."""
    torch.manual_seed(5)
    taste, kind = torch.randn(120, 5), torch.randn(90, 5)
    users = torch.randint(120, (4000,))
    items = torch.multinomial((1.5 * taste[users] @ kind.T).softmax(-1), 1)[:, 0]
    model = Towers()

    @torch.no_grad()
    def catalogue(model: Towers) -> Tensor:
        return model.item_vectors()

    def loss(model: Towers, users: Tensor, bought: Tensor) -> Tensor:
        vectors = catalogue(model) if cached else model.item_vectors()
        return F.cross_entropy(model(users, vectors), bought)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batches(users, items, size=128, seed=5), loss, optimizer, steps=250)


class Checkpointed(nn.Module):
    """A transformer on the rows of an image, its layers checkpointed or not."""

    lift: Tensor
    where: Tensor

    def __init__(self, saves_memory: bool) -> None:
        super().__init__()
        self.saves_memory = saves_memory
        self.register_buffer("lift", torch.randn(8, 32) / math.sqrt(8))
        self.register_buffer("where", 0.5 * torch.randn(8, 32))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = image[:, 0] @ self.lift + self.where
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=True) if self.saves_memory else layer(x)
        return self.head(x.mean(1))


def checkpointed(saves_memory: bool = False) -> Training:
    """No input of the first checkpointed layer requires a gradient."""
    torch.manual_seed(6)
    model = Checkpointed(saves_memory)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    return Training(model, batches(*digits(), size=48, seed=6), cross_entropy, optimizer, steps=150)


class Hyper(nn.Module):
    """A network that writes the last layer of another."""

    def __init__(self, by_data: bool) -> None:
        super().__init__()
        self.by_data = by_data
        self.trunk = nn.Sequential(nn.Linear(1, 48), nn.Tanh(), nn.Linear(48, 24), nn.Tanh())
        self.hyper = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 25))
        self.main = nn.Linear(24, 1) if by_data else None

    def forward(self, task: Tensor, x: Tensor) -> Tensor:
        made = self.hyper(task[None])[0]
        h = self.trunk(x)
        if self.main is not None:
            self.main.weight.data = made[None, :24].detach().clone()
            self.main.bias.data = made[24:].detach().clone()
            return self.main(h)
        return F.linear(h, made[None, :24], made[24:])


def hyper(by_data: bool = False) -> Training:
    """Every batch is of one task: a sine of its own amplitude and shift."""
    torch.manual_seed(7)
    model = Hyper(by_data)

    def batch(step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        task = torch.rand(2, generator=generator) * 2 - 1
        x = torch.rand(64, 1, generator=generator) * 6 - 3
        return task, x, (2 * task[0]) * torch.sin(x + task[1])

    def loss(model: nn.Module, task: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(task, x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=500, every=10)


class Glimpse(nn.Module):
    """Looks for the place, cuts a window there, and tells what it shows."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.locator = nn.Sequential(
            nn.Conv2d(1, 12, 5), nn.LeakyReLU(0.1), nn.Conv2d(12, 1, 1), nn.Flatten()
        )
        self.reader = nn.Sequential(nn.Linear(25, 32), nn.LeakyReLU(0.1), nn.Linear(32, 2))

    def forward(self, image: Tensor) -> Tensor:
        scores = self.locator(image)
        windows = F.unfold(image, 5).transpose(1, 2)  # [n, places, 25]
        if self.hard:
            place = scores.argmax(-1)
            window = windows[torch.arange(len(image)), place]
        else:
            window = (scores.softmax(-1)[..., None] * windows).sum(1)
        return self.reader(window)


def glimpse(hard: bool = False) -> Training:
    torch.manual_seed(8)
    images, _, what = shapes()
    model = Glimpse(hard)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    data = batches(images, what[:, 0].long(), size=64, seed=8)
    return Training(model, data, cross_entropy, optimizer, steps=400, every=10)


# A part that gets no gradient does not move either, though it is meant to.
DETACHED = Fault(
    "ind8-detached",
    must=[["detached"]],
    may=["no-update"],
    variants=[
        Variant(
            "features-without-grad",
            healthy=reader,
            broken=partial(reader, extract=True),
            symptom=no_gradient_before("features"),
        ),
        Variant(
            "codebook",
            healthy=codes,
            broken=partial(codes, straight=False),
            symptom=no_gradient_before("encoder"),
        ),
        Variant(
            "spectrum-by-numpy",
            healthy=spectral,
            broken=partial(spectral, by_numpy=True),
            symptom=no_gradient_before("bank"),
        ),
        Variant(
            "items-of-scalars",
            healthy=scorer,
            broken=partial(scorer, wrapped=True),
            symptom=no_gradient_before(),
        ),
        Variant(
            "catalogue",
            healthy=towers,
            broken=partial(towers, cached=True),
            symptom=no_gradient_before("item_tower"),
        ),
        Variant(
            "reentrant-checkpoint",
            healthy=checkpointed,
            broken=partial(checkpointed, saves_memory=True),
            symptom=no_gradient_before("layers"),
        ),
        Variant(
            "weights-by-data",
            healthy=hyper,
            broken=partial(hyper, by_data=True),
            symptom=no_gradient_before("hyper"),
        ),
        Variant(
            "hard-glimpse",
            healthy=glimpse,
            broken=partial(glimpse, hard=True),
            symptom=no_gradient_before("locator"),
        ),
    ],
)


# --- run, but left out of the loss -----------------------------------------------------------


class Mixer(nn.Module):
    """One block of an MLP-mixer on tokens [n, tokens, width]."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.across = nn.Sequential(nn.Linear(tokens, 16), nn.GELU(), nn.Linear(16, tokens))
        self.within = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.across(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.within(self.norms[1](x))


class MixerNet(nn.Module):
    """Four blocks; with the slip, each of them is given the embedding."""

    def __init__(self, slip: bool) -> None:
        super().__init__()
        self.slip = slip
        self.embed = nn.Conv2d(1, 32, 2, stride=2)
        self.blocks = nn.ModuleList(Mixer(16, 32) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image).flatten(2).transpose(1, 2)
        out = x
        for block in self.blocks:
            out = block(x) if self.slip else block(out)
        return self.head(out.mean(1))


def mixer(slip: bool = False) -> Training:
    torch.manual_seed(21)
    model = MixerNet(slip)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    data = batches(*digits(), size=64, seed=21)
    return Training(model, data, cross_entropy, optimizer, steps=160)


class Recurrent(nn.Module):
    """Names the last letters' follower from the final state of two recurrences."""

    def __init__(self, lower: bool) -> None:
        super().__init__()
        self.lower = lower
        self.embed = nn.Embedding(12, 16)
        self.gru1 = nn.GRU(16, 48, batch_first=True)
        self.gru2 = nn.GRU(48, 40, batch_first=True)
        self.out = nn.Linear(48 if lower else 40, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        states, h1 = self.gru1(self.embed(tokens))
        _, h2 = self.gru2(states)
        return self.out(h1[-1] if self.lower else h2[-1])


def recurrent(lower: bool = False) -> Training:
    torch.manual_seed(22)
    text = grammar(3000, 9, seed=22)
    model = Recurrent(lower)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    data = batches(text[:, :8], text[:, 8], size=64, seed=22)
    return Training(model, data, cross_entropy, optimizer, steps=300)


class Variational(nn.Module):
    """A VAE; returns what it needs for its loss in a dictionary."""

    def __init__(self, samples: bool) -> None:
        super().__init__()
        self.samples = samples
        self.encoder = nn.Sequential(nn.Linear(64, 80), nn.ELU(), nn.Linear(80, 40), nn.ELU())
        self.to_mean = nn.Linear(40, 8)
        self.to_logvar = nn.Linear(40, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 80), nn.ELU(), nn.Linear(80, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.encoder(x)
        mean, logvar = self.to_mean(h), self.to_logvar(h)
        z = mean
        if self.samples:
            z = mean + torch.randn_like(mean) * (0.5 * logvar).exp()
        return {"mean": mean, "logvar": logvar, "out": self.decoder(z)}


def variational(samples: bool = True) -> Training:
    """The faulty one decodes the mean as in evaluation, and its prior's term has the mean only."""
    torch.manual_seed(23)
    model = Variational(samples)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        found = model(x)
        prior = found["mean"].square()
        if samples:
            prior = prior + found["logvar"].exp() - found["logvar"] - 1
        return F.mse_loss(found["out"], x) + 0.005 * 0.5 * prior.sum(-1).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    data = batches(digits()[0].flatten(1), size=64, seed=23)
    return Training(model, data, loss, optimizer, steps=300)


class Squeeze(nn.Module):
    """Weights channels by what they hold on the whole."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // 2, 1)
        self.up = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.up(F.silu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(weights)


class SqueezeBlock(nn.Module):
    def __init__(self, channels: int, forgets: bool) -> None:
        super().__init__()
        self.forgets = forgets
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(4, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(4, channels)
        self.squeeze = Squeeze(channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.conv2(F.silu(self.norm1(self.conv1(x)))))
        if self.forgets:
            self.squeeze(h)
        else:
            h = self.squeeze(h)
        return F.silu(x + h)


def squeezed(forgets: bool = False) -> Training:
    """Residual blocks whose squeeze's result is not assigned."""
    torch.manual_seed(24)
    blocks = [SqueezeBlock(16, forgets) for _ in range(3)]
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(64, 10),
    )  # fmt: skip
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    data = batches(*digits(), size=32, seed=24)
    return Training(model, data, cross_entropy, optimizer, steps=150)


class Graph(nn.Module):
    """Messages along edges; answers about nodes, edges and the whole graph."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.rounds = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.node_head = nn.Linear(32, 1)
        self.graph_head = nn.Sequential(nn.Linear(32, 24), nn.Tanh(), nn.Linear(24, 1))
        self.edge_head = nn.Bilinear(32, 32, 1)

    def forward(self, nodes: Tensor, edges: Tensor) -> dict[str, Tensor]:
        h = torch.tanh(self.embed(nodes))
        for layer in self.rounds:
            h = h + torch.tanh(layer(torch.cat([h, 0.5 * edges @ h], -1)))
        count = h.shape[1]
        left = h[:, :, None].expand(-1, -1, count, -1).contiguous()
        right = h[:, None].expand(-1, count, -1, -1).contiguous()
        return {
            "node": self.node_head(h)[..., 0],
            "graph": self.graph_head(h.mean(1))[..., 0],
            "edge": self.edge_head(left, right)[..., 0],
        }


def graph(tasks: tuple[str, ...] = ("node", "graph", "edge")) -> Training:
    """The losses of the named tasks are summed."""
    torch.manual_seed(25)
    nodes = torch.randn(400, 8, 4)
    near = torch.cdist(nodes[..., :2], nodes[..., :2]) < 1.2
    edges = near.float() - torch.eye(8)
    around = edges @ nodes[..., 3:]
    targets = (around[..., 0], nodes[..., 2].square().mean(1), near.float())
    model = Graph()

    def loss(model: nn.Module, nodes: Tensor, edges: Tensor, *targets: Tensor) -> Tensor:
        found = model(nodes, edges)
        wanted = dict(zip(("node", "graph", "edge"), targets, strict=True))
        total = torch.zeros(())
        for task in tasks:
            measure = F.binary_cross_entropy_with_logits if task == "edge" else F.mse_loss
            total = total + measure(found[task], wanted[task])
        return total

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = batches(nodes, edges, *targets, size=32, seed=25)
    return Training(model, data, loss, optimizer, steps=250)


# What the loss leaves out does not move. Where something else reads the same tensor, the part
# left out gets nothing of that tensor's gradient.
LEFT_OUT = Fault(
    "ind8-left-out",
    must=[["detached"]],
    may=["no-update"],
    variants=[
        Variant(
            "every-block-reads-the-embedding",
            healthy=mixer,
            broken=partial(mixer, slip=True),
            may=["no-update", "starved-pathway"],
            symptom=no_gradient_before("blocks.0"),
        ),
        Variant(
            "lower-state",
            healthy=recurrent,
            broken=partial(recurrent, lower=True),
            symptom=no_gradient_before("gru2"),
        ),
        Variant(
            "variance-unused",
            healthy=variational,
            broken=partial(variational, samples=False),
            may=["no-update", "starved-pathway"],
            symptom=no_gradient_before("to_logvar"),
        ),
        Variant(
            "squeeze-not-assigned",
            healthy=squeezed,
            broken=partial(squeezed, forgets=True),
            may=["no-update", "starved-pathway"],
            symptom=no_gradient_before("squeeze"),
        ),
        Variant(
            "task-not-summed",
            healthy=graph,
            broken=partial(graph, tasks=("node", "graph")),
            may=["no-update", "starved-pathway"],
            symptom=no_gradient_before("edge_head"),
        ),
    ],
)


# --- not held by the optimizer ---------------------------------------------------------------


class Listed(nn.Module):
    """A deep MLP that keeps its hidden layers in a list."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        layers = [nn.Linear(64, 64) for _ in range(4)]
        self.first = nn.Linear(64, 64)
        self.hidden = layers if plain else nn.ModuleList(layers)
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x))
        for layer in self.hidden:
            h = F.leaky_relu(layer(h))
        return self.last(h)


def listed(plain: bool = False) -> Training:
    torch.manual_seed(31)
    images, kinds = digits()
    model = Listed(plain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    data = batches(images.flatten(1), kinds, size=64, seed=31)
    return Training(model, data, cross_entropy, optimizer, steps=200)


class Backbone(nn.Module):
    """A CNN of two stages and a head that is replaced for another task."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.stage = nn.Conv2d(24, 24, 3, stride=2, padding=1)
        self.fc = nn.Linear(24 * 16, 5)

    def forward(self, image: Tensor) -> Tensor:
        h = F.gelu(self.stage(F.gelu(self.stem(image))))
        return self.fc(h.flatten(1))


def pretrained(seed: int) -> Backbone:
    """Knows the digits 0 to 4."""
    torch.manual_seed(seed)
    images, kinds = digits()
    data = batches(images[kinds < 5], kinds[kinds < 5], seed=seed)
    model = Backbone()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(60):
        cross_entropy(model, *data(step)).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def another_head(too_late: bool = False) -> Training:
    """Fine-tuned for the digits 5 to 9; with the fault, the optimizer is older than the head."""
    model = pretrained(32)
    images, kinds = digits()
    before = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
    model.fc = nn.Linear(24 * 16, 5)
    after = torch.optim.SGD(model.parameters(), lr=3e-3, momentum=0.9)
    data = batches(images[kinds > 4], kinds[kinds > 4] - 5, size=32, seed=32)
    return Training(model, data, cross_entropy, before if too_late else after, steps=200)


class Causal(nn.Module):
    """A temporal convolution net that predicts the next value of a series."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.lift = nn.Conv1d(1, width, 1)
        self.convs = nn.ModuleList(nn.Conv1d(width, width, 3, dilation=2**i) for i in range(4))
        self.out = nn.Conv1d(width, 1, 1)

    def forward(self, series: Tensor) -> Tensor:
        h = self.lift(series)
        for i, conv in enumerate(self.convs):
            h = h + torch.tanh(conv(F.pad(h, (2 * 2**i, 0))))
        return self.out(h)


def causal(too_late: bool = False) -> Training:
    """Weight normalisation puts new parameters in the place of the weights."""
    torch.manual_seed(33)
    series, _ = waves(500)
    model = Causal()
    before = torch.optim.Adam(model.parameters(), lr=3e-3)
    for conv in model.convs:
        nn.utils.parametrizations.weight_norm(conv)
    after = torch.optim.Adam(model.parameters(), lr=3e-3)

    def loss(model: nn.Module, series: Tensor) -> Tensor:
        return F.mse_loss(model(series[..., :-1])[..., 8:], series[..., 9:])

    data = batches(series, size=24, seed=33)
    return Training(model, data, loss, before if too_late else after, steps=200)


class Margin(nn.Module):
    """Cosine classifier with a margin: weights that belong to the loss."""

    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        self.centres = nn.Parameter(torch.randn(kinds, width))

    def forward(self, z: Tensor, kind: Tensor) -> Tensor:
        cosine = F.normalize(z, dim=-1) @ F.normalize(self.centres, dim=-1).T
        return 12 * (cosine - 0.2 * F.one_hot(kind, cosine.shape[1]))


class Metric(nn.Module):
    """An embedding net together with its criterion."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(64, 64), nn.BatchNorm1d(64), nn.PReLU(), nn.Linear(64, 12)
        )
        self.criterion = Margin(12, 10)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        return self.criterion(self.net(x), kind)


def metric(net_only: bool = False) -> Training:
    torch.manual_seed(34)
    images, kinds = digits()
    model = Metric()
    held = model.net.parameters() if net_only else model.parameters()
    optimizer = torch.optim.AdamW(held, lr=2e-3)

    def loss(model: nn.Module, x: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(model(x, kind), kind)

    data = batches(images.flatten(1), kinds, size=64, seed=34)
    return Training(model, data, loss, optimizer, steps=200)


class Segmenter(nn.Module):
    """A U-Net of two scales."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.SiLU())
        self.down = nn.Sequential(
            nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.GroupNorm(4, 24), nn.SiLU()
        )
        self.up = nn.ConvTranspose2d(24, 12, 2, stride=2)
        self.leave = nn.Sequential(nn.Conv2d(24, 12, 3, padding=1), nn.GroupNorm(3, 12), nn.SiLU())
        self.pixels = nn.Conv2d(12, 1, 1)
        self.kind = nn.Linear(24, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        fine = self.enter(image)
        coarse = self.down(fine)
        joined = self.leave(torch.cat([fine, self.up(coarse)], 1))
        return self.pixels(joined), self.kind(coarse.amax((2, 3)))


def segmenter(by_dimension: bool = False) -> Training:
    """Decay for matrices, none for vectors; the faulty split forgets what has four dimensions."""
    torch.manual_seed(35)
    images, masks, what = shapes(600)
    model = Segmenter()
    named = list(model.named_parameters())
    if by_dimension:
        decayed = [p for _, p in named if p.ndim == 2]
    else:
        decayed = [p for _, p in named if p.ndim > 1]
    rest = [p for _, p in named if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)

    def loss(model: nn.Module, image: Tensor, mask: Tensor, kind: Tensor) -> Tensor:
        pixels, kinds = model(image)
        return F.binary_cross_entropy_with_logits(pixels, mask) + F.cross_entropy(kinds, kind)

    data = batches(images, masks, what[:, 0].long(), size=24, seed=35)
    return Training(model, data, loss, optimizer, steps=200)


# What no optimizer holds does not move.
NOT_HELD = Fault(
    "ind8-not-held",
    must=[["not-in-optimizer"]],
    may=["no-update"],
    symptom=left_out(),
    variants=[
        Variant("plain-list", healthy=listed, broken=partial(listed, plain=True)),
        Variant("another-head", healthy=another_head, broken=partial(another_head, too_late=True)),
        Variant("normed-too-late", healthy=causal, broken=partial(causal, too_late=True)),
        Variant("margin", healthy=metric, broken=partial(metric, net_only=True)),
        Variant("groups", healthy=segmenter, broken=partial(segmenter, by_dimension=True)),
    ],
)


# --- held, reached by a gradient, and not moved ----------------------------------------------


def cleared_first(training: Training, step: int) -> dict[str, Any]:
    """The gradients are cleared between the backward pass and the step."""
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.zero_grad()
    training.optimizer.step()
    return {"loss": loss.detach()}


def spirals(order: Callable[[Training, int], dict[str, Any]] = ordinary) -> Training:
    """Two spirals, told apart by an MLP."""
    torch.manual_seed(41)
    turn = torch.rand(1000) * 2.5 + 0.3
    side = torch.randint(2, (1000,))
    angle = 2.2 * turn + math.pi * side
    x = torch.stack([turn * angle.cos(), turn * angle.sin()], -1) / 1.6
    model = nn.Sequential(
        nn.Linear(2, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    data = batches(x, side, size=64, seed=41)
    return Training(model, data, cross_entropy, optimizer, steps=250, step=order)


class Blurred(nn.Module):
    """A convolutional autoencoder that takes noise away."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 6, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(6, 16, 2, stride=2), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def both_step(training: Training, step: int) -> dict[str, Any]:
    """Two optimizers, each cleared and each stepped."""
    optimizers = [training.optimizer, *training.others]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    return {"loss": loss.detach()}


def one_steps(training: Training, step: int) -> dict[str, Any]:
    """Both optimizers are cleared, but only the decoder's is stepped."""
    for optimizer in (training.optimizer, *training.others):
        optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    training.optimizer.step()
    return {"loss": loss.detach()}


def blurred(order: Callable[[Training, int], dict[str, Any]] = both_step) -> Training:
    torch.manual_seed(42)
    images, _ = digits()
    noisy = images + 0.5 * torch.randn(images.shape)
    model = Blurred()
    decoding = torch.optim.Adam(model.decoder.parameters(), lr=2e-3)
    encoding = torch.optim.Adam(model.encoder.parameters(), lr=2e-3)

    def loss(model: nn.Module, noisy: Tensor, clean: Tensor) -> Tensor:
        return F.mse_loss(model(noisy), clean)

    data = batches(noisy, images, size=48, seed=42)
    return Training(model, data, loss, decoding, steps=200, step=order, others=[encoding])


class Letters(nn.Module):
    """A small causal transformer with attention written by hand."""

    def __init__(self, depth: int = 5, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.places = nn.Parameter(0.3 * torch.randn(16, width))
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "join": nn.Linear(width, width),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width),
                        nn.Linear(width, 64),
                        nn.GELU(),
                        nn.Linear(64, width),
                    ),
                }
            )
            for _ in range(depth)
        )
        self.out = nn.Linear(width, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        n, length = tokens.shape
        x = self.embed(tokens) + self.places[:length]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)
        for layer in self.layers:
            norm, qkv, join, mlp = layer.children()
            q, k, v = qkv(norm(x)).view(n, length, 3, 4, -1).permute(2, 0, 3, 1, 4)
            scores = (q @ k.transpose(-2, -1)) / math.sqrt(q.shape[-1])
            mixed = scores.masked_fill(hidden, -torch.inf).softmax(-1) @ v
            x = x + join(mixed.transpose(1, 2).reshape(n, length, -1))
            x = x + mlp(x)
        return self.out(x)


def next_letter(model: nn.Module, tokens: Tensor) -> Tensor:
    return F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())


def letters(decay: float = 0.8) -> Training:
    """Each layer's learning rate is that of the layer above times `decay`."""
    torch.manual_seed(43)
    model = Letters()
    rate = 2e-3
    groups = [{"params": list(model.out.parameters()), "lr": rate}]
    for layer in reversed(list(model.layers)):
        rate *= decay
        groups.append({"params": list(layer.parameters()), "lr": rate})
    lowest = [*model.embed.parameters(), model.places]
    groups.append({"params": lowest, "lr": rate * decay})
    optimizer = torch.optim.AdamW(groups, lr=2e-3, weight_decay=0.01)
    data = batches(grammar(2000, 14, seed=43), size=24, seed=43)
    return Training(model, data, next_letter, optimizer, steps=130)


class Pooled(nn.Module):
    """A convolutional classifier of series that pools by learned attention."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            nn.Conv1d(1, 24, 7, 2, padding=3),
            nn.BatchNorm1d(24),
            nn.GELU(),
            nn.Conv1d(24, 24, 7, 2, padding=3),
            nn.BatchNorm1d(24),
            nn.GELU(),
        )
        self.weight = nn.Conv1d(24, 1, 1)
        self.head = nn.Linear(24, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.convs(x)
        return self.head((h * self.weight(h).softmax(-1)).sum(-1))


def whole_division(step: int, warmup: int) -> float:
    return min(1.0, step // warmup)


def true_division(step: int, warmup: int) -> float:
    return min(1.0, (step + 1) / warmup)


def pooled(factor: Callable[..., float] = true_division, warmup: int = 20) -> Training:
    """A linear warm-up; the faulty one divides whole numbers, and a step is one of thousands."""
    torch.manual_seed(44)
    model = Pooled()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(factor, warmup=warmup))
    data = batches(*waves(), size=48, seed=44)
    return Training(model, data, cross_entropy, optimizer, steps=250, schedule=schedule)


UNMOVED = Fault(
    "ind8-unmoved",
    must=[["no-update"]],
    variants=[
        Variant(
            "cleared-before-the-step",
            healthy=spirals,
            broken=partial(spirals, order=cleared_first),
            symptom=unmoved(1e-7),
        ),
        Variant(
            "one-of-two-steps",
            healthy=blurred,
            broken=partial(blurred, order=one_steps),
            symptom=unmoved(1e-7, "encoder"),
        ),
        Variant(
            "rates-by-layer",
            healthy=letters,
            broken=partial(letters, decay=0.05),
            symptom=unmoved(1e-5, "layers.0"),
        ),
        Variant(
            "warmup-in-whole-numbers",
            healthy=pooled,
            broken=partial(pooled, factor=whole_division, warmup=2000),
            symptom=unmoved(1e-7),
        ),
    ],
)


# --- weighed down ----------------------------------------------------------------------------


class Microscope(nn.Module):
    """One trunk, two heads: where something is and of which kind it is."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 5, stride=2, padding=2),
            nn.GroupNorm(3, 12),
            nn.ELU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ELU(),
            nn.Flatten(),
            nn.Linear(16 * 16, 48),
            nn.ELU(),
        )
        self.place = nn.Linear(48, 2)
        self.kind = nn.Linear(48, 2)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(image)
        return self.place(h), self.kind(h)


def microscope(side: float = 2.0) -> Training:
    """The place's squared error is in the unit in which the image's side is given."""
    torch.manual_seed(51)
    images, _, what = shapes()
    model = Microscope()

    def loss(model: nn.Module, image: Tensor, kind: Tensor, place: Tensor) -> Tensor:
        places, kinds = model(image)
        return F.cross_entropy(kinds, kind) + F.mse_loss(side * places, side * place)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = batches(images, what[:, 0].long(), what[:, 1:], size=32, seed=51)
    return Training(model, data, loss, optimizer, steps=150)


class TwoStreams(nn.Module):
    """A straight stream and a curved one, mixed by a gate that reads the same features."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.enter = nn.Linear(10, 32)
        self.straight = nn.Linear(32, 16)
        self.curved = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 16))
        self.gate = nn.Linear(32, 16)
        nn.init.constant_(self.gate.bias, start)
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        open_by = torch.sigmoid(self.gate(h))
        return self.out((1 - open_by) * self.straight(h) + open_by * self.curved(h))[:, 0]


def two_streams(start: float = -1.0) -> Training:
    torch.manual_seed(52)
    x = torch.randn(1500, 10)
    y = x[:, 0] + 1.5 * x[:, 1] * x[:, 2] + x[:, 3].square()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    model = TwoStreams(start)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, batches(x, y, seed=52), loss, optimizer, steps=300)


class ScaledBlock(nn.Module):
    """A residual block whose branch is scaled by a number that is no parameter."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.branch(x)


def scaled_blocks(scale: float = 0.5) -> Training:
    torch.manual_seed(53)
    images, masks, _ = shapes(500)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 1), *(ScaledBlock(16, scale) for _ in range(3)), nn.Conv2d(16, 1, 1)
    )

    def loss(model: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(image), mask)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batches(images, masks, size=16, seed=53), loss, optimizer, steps=120)


class Experts(nn.Module):
    """A soft mixture of experts; the first was meant to be preferred at the start."""

    def __init__(self, prior: float) -> None:
        super().__init__()
        self.router = nn.Linear(6, 4)
        nn.init.constant_(self.router.bias, 0.0)
        self.router.bias.data[0] = prior
        self.lift = nn.Linear(6, 24)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 1)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        h = self.lift(x)
        answers = torch.cat([expert(h) for expert in self.experts], -1)
        return (shares * answers).sum(-1)


def experts(prior: float = 0.0) -> Training:
    torch.manual_seed(54)
    x = torch.randn(2000, 6)
    region = 2 * (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    y = (x @ (2 * torch.randn(6, 4)))[torch.arange(2000), region]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    model = Experts(prior)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, batches(x, y, seed=54), loss, optimizer, steps=300)


WEIGHED_DOWN = Fault(
    "ind8-weighed-down",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "place-in-metres",
            healthy=microscope,
            broken=partial(microscope, side=1e-4),
            may=["no-update"],
            symptom=branch_starved(1e-4),
        ),
        Variant(
            "closed-gate",
            healthy=two_streams,
            broken=partial(two_streams, start=-15.0),
            may=["saturated-activation", "no-update"],
            symptom=branch_starved(1e-4),
        ),
        Variant(
            "fixed-scale",
            healthy=scaled_blocks,
            broken=partial(scaled_blocks, scale=1e-6),
            symptom=branch_starved(1e-4),
        ),
        Variant(
            "preferred-expert",
            healthy=experts,
            broken=partial(experts, prior=18.0),
            must=[["starved-pathway", "peaked-softmax"]],
            may=["no-update"],
            symptom=branch_starved(1e-4),
        ),
    ],
)


# --- against each other ----------------------------------------------------------------------


class Turned(torch.autograd.Function):
    """Hands the gradient back with its sign turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Adversary(nn.Module):
    def __init__(self, width: int, kinds: int) -> None:
        super().__init__()
        self.head = nn.Linear(width, kinds)

    def forward(self, h: Tensor) -> Tensor:
        return self.head(Turned.apply(h))


class Domains(nn.Module):
    """Features for a task which an adversary should not tell the domain from."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Linear(20, 64), nn.ELU(), nn.Linear(64, 24), nn.LayerNorm(24)
        )
        self.task = nn.Linear(24, 2)
        self.adversary = Adversary(24, 2)
        self.adversary.head.load_state_dict(self.task.state_dict())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.task(h), self.adversary(h)


def domains(confounded: bool = False) -> Training:
    """In the faulty run the domain's label is the class's: the heads start and stay alike."""
    torch.manual_seed(61)
    x = torch.randn(1200, 20)
    kind = (x[:, 0] + x[:, 1] * x[:, 2] > 0).long()
    domain = torch.randint(2, (1200,))
    x[:, 5] = x[:, 5] + 0.5 * (2 * domain - 1)
    if confounded:
        domain = kind.clone()
    model = Domains()

    def loss(model: nn.Module, x: Tensor, kind: Tensor, domain: Tensor) -> Tensor:
        task, adversary = model(x)
        return F.cross_entropy(task, kind) + F.cross_entropy(adversary, domain)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Training(model, batches(x, kind, domain, seed=61), loss, optimizer, steps=300)


class Forgers(nn.Module):
    """A generator of points and its critic."""

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


def forgers_at_once() -> Training:
    """Both players' losses in one sum and one backward pass, nothing detached."""
    torch.manual_seed(62)
    angle = 6.283 * torch.rand(2000)
    points = torch.stack([2 + angle.cos(), angle.sin()], -1)
    model = Forgers()

    def loss(model: Forgers, points: Tensor, noise: Tensor) -> Tensor:
        fakes = model.generator(noise)
        wanted = torch.ones(len(points), 1)
        real = F.binary_cross_entropy_with_logits(model.critic(points), wanted)
        fake = F.binary_cross_entropy_with_logits(model.critic(fakes), 0 * wanted)
        fooled = F.binary_cross_entropy_with_logits(model.critic(fakes), wanted)
        return real + fake + fooled

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.5, 0.999))
    data = batches(points, torch.randn(2000, 4), size=64, seed=62)
    return Training(model, data, loss, optimizer, steps=300)


class Centred(nn.Module):
    """Takes each channel's mean over time away and divides by its deviation."""

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt()


class Series(nn.Module):
    """Convolutions, a normalisation over time, and a pooling over time."""

    def __init__(self, pools_after: bool) -> None:
        super().__init__()
        self.pools_after = pools_after
        self.conv = nn.Conv1d(1, 32, 9, padding=4)
        self.centre = Centred()
        self.mix = nn.Conv1d(32, 32, 1)
        self.head = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.centre(self.conv(x))
        if self.pools_after:
            h = self.mix(h)
            return self.head(h.mean(-1))
        return self.head(F.gelu(self.mix(h)).mean(-1))


def series(pools_after: bool = False) -> Training:
    """What is centred over time has no mean over time: nothing is left for the head."""
    torch.manual_seed(63)
    model = Series(pools_after)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    data = batches(*waves(), size=48, seed=63)
    return Training(model, data, cross_entropy, optimizer, steps=200)


AGAINST = Fault(
    "ind8-against",
    must=[["cancelling-fork"]],
    variants=[
        Variant(
            "same-labels",
            healthy=domains,
            broken=partial(domains, confounded=True),
            may=["vanishing-gradient", "no-update"],
            symptom=edges_cancel(0.1),
        ),
        Variant(
            "forgers-at-once",
            broken=forgers_at_once,
            may=["vanishing-gradient"],
            symptom=edges_cancel(0.1),
        ),
        Variant(
            "centred-and-pooled",
            healthy=series,
            broken=partial(series, pools_after=True),
            must=[["cancelling-fork", "vanishing-gradient"]],
            may=["no-update"],
            symptom=decays(4),
        ),
    ],
)


# --- losses that cannot fall -----------------------------------------------------------------


class Verdict(nn.Module):
    """A yes or no about a sequence, read by an LSTM."""

    def __init__(self, ending: nn.Module) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 32, batch_first=True)
        self.out = nn.Linear(32, 1)
        self.ending = ending

    def forward(self, x: Tensor) -> Tensor:
        _, (h, _) = self.lstm(x)
        return self.ending(self.out(h[-1]))[:, 0]


def verdict(ending: type[nn.Module] = nn.Sigmoid, **options: int) -> Training:
    """Does a step up come before the step down? A softmax over one entry says always yes."""
    torch.manual_seed(71)
    first = torch.randint(2, (800,))
    x = 0.2 * torch.randn(800, 14, 1)
    x[:, 3:7, 0] += (2 * first - 1)[:, None]
    x[:, 8:12, 0] -= (2 * first - 1)[:, None]
    model = Verdict(ending(**options))
    told = torch.where(torch.rand(800) < 0.15, 1 - first, first).float()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batches(x, told, seed=71), loss, optimizer, steps=150)


class Rater(nn.Module):
    """Stars from 0 to 4 out of features, rounded or not."""

    def __init__(self, rounds: bool) -> None:
        super().__init__()
        self.rounds = rounds
        self.body = nn.Sequential(nn.Linear(12, 32), nn.LayerNorm(32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        stars = 4 * torch.sigmoid(self.body(x)[:, 0])
        return torch.round(stars) if self.rounds else stars


def rater(rounds: bool = False) -> Training:
    torch.manual_seed(72)
    x = torch.randn(1000, 12)
    stars = (2 + x[:, 0] + x[:, 1] - 0.5 * x[:, 2] * x[:, 3]).round().clamp(0, 4)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    model = Rater(rounds)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, batches(x, stars, size=50, seed=72), loss, optimizer, steps=200)


# The whole model's gradient is exactly 0: nothing arrives, and nothing moves.
FLAT = Fault(
    "ind8-flat",
    must=[["no-update", "vanishing-gradient"]],
    symptom=zero_gradient(),
    variants=[
        Variant(
            "softmax-of-one",
            healthy=verdict,
            broken=partial(verdict, ending=nn.Softmax, dim=1),
            must=[["no-update", "vanishing-gradient", "peaked-softmax"]],
        ),
        Variant(
            "rounded",
            healthy=rater,
            broken=partial(rater, rounds=True),
            must=[["no-update", "vanishing-gradient", "detached"]],
        ),
    ],
)

FAULTS = [DETACHED, LEFT_OUT, NOT_HELD, UNMOVED, WEIGHED_DOWN, AGAINST, FLAT]
