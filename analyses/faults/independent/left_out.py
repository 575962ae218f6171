"""Parameters that get a gradient and that no optimizer holds."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_parts import (
    Residual,
    bumps,
    classify,
    conv,
    digits,
    fit,
    keywords,
    mlp,
    next_token,
    regress,
    seeded,
    shapes,
    waves,
)
from analyses.faults.symptoms import left_out
from analyses.faults.training import Batch, Training


def new_head(late: bool = False) -> Training:
    """A CNN for three classes gets a head for ten, before or after the optimizer is made."""
    torch.manual_seed(31)
    model = nn.Sequential(
        conv(1, 24), nn.MaxPool2d(2), conv(24, 48), nn.Flatten(), nn.Linear(48 * 16, 3)
    )
    head = nn.Linear(48 * 16, 10)
    if not late:
        model[4] = head
    training = fit(model, digits, classify, steps=100)
    model[4] = head
    return training


class Stages(nn.Module):
    """A residual network of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv(1, 16)
        self.body = nn.Sequential(*[Residual(16) for _ in range(3)])
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


def head_only(only: bool = False) -> Training:
    """A ResNet from scratch whose optimizer is still that of a linear probe."""
    torch.manual_seed(32)
    model = Stages()
    momentum = partial(torch.optim.SGD, momentum=0.9)
    held = model.head.parameters() if only else None
    return fit(model, shapes, classify, lr=0.03, steps=120, how=momentum, held=held)


class Listed(nn.Module):
    """A regressor whose hidden layers are in a list, of Python's or of torch's kind."""

    def __init__(self, plain: bool) -> None:
        super().__init__()
        hidden = [nn.Linear(48, 48) for _ in range(4)]
        self.first = nn.Linear(8, 48)
        self.hidden: Any = hidden if plain else nn.ModuleList(hidden)
        self.last = nn.Linear(48, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.first(x))
        for layer in self.hidden:
            h = F.silu(layer(h))
        return self.last(h)


def listed(plain: bool = False) -> Training:
    """Regression; layers in a plain list are no part of the model's parameters."""
    torch.manual_seed(33)
    return fit(Listed(plain), bumps, regress, lr=2e-3, steps=250)


class Characters(nn.Module):
    """A language model of GRU cells."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, 32)
        self.cell = nn.GRUCell(32, 64)
        self.read = nn.Linear(64, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.read.weight.new_zeros(len(tokens), 64)
        states = []
        for x in self.embed(tokens).unbind(1):
            h = self.cell(x, h)
            states.append(h)
        return self.read(torch.stack(states, 1))


def _enlarge(model: Characters, vocabulary: int) -> None:
    embed, read = nn.Embedding(vocabulary, 32), nn.Linear(64, vocabulary)
    with torch.no_grad():
        embed.weight[: model.embed.num_embeddings] = model.embed.weight
        read.weight[: model.read.out_features] = model.read.weight
    model.embed, model.read = embed, read


def more_tokens(late: bool = False) -> Training:
    """A character model whose vocabulary is enlarged, before or after the optimizer is made."""
    torch.manual_seed(34)
    model = Characters(14)
    if not late:
        _enlarge(model, 20)
    training = fit(model, next_token, classify, lr=3e-3, steps=120)
    if late:
        _enlarge(model, 20)
    return training


class Translator(nn.Module):
    """An LSTM reads numbers, another writes them in rising order."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.LSTM(1, 48, batch_first=True)
        self.decoder = nn.LSTM(1, 48, batch_first=True)
        self.read = nn.Linear(48, 1)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        _, state = self.encoder(x)
        out, _ = self.decoder(before, state)
        return self.read(out)


def _rising(step: int) -> Batch:
    x = torch.rand(64, 6, 1, generator=seeded(step, 31)) * 3 - 1.5
    wanted = x.sort(1).values
    return x, torch.cat([torch.full((64, 1, 1), -2.0), wanted[:, :-1]], 1), wanted


def _write(model: nn.Module, x: Tensor, before: Tensor, wanted: Tensor) -> Tensor:
    return F.mse_loss(model(x, before), wanted)


def second_network(forgotten: bool = False) -> Training:
    """Numbers put in order; the optimizer is given the decoder's and the output's parameters."""
    torch.manual_seed(35)
    model = Translator()
    held = [*model.decoder.parameters(), *model.read.parameters()]
    if not forgotten:
        held += model.encoder.parameters()
    return fit(model, _rising, _write, lr=5e-3, steps=150, held=held)


class Heads(nn.Module):
    """Attention from bare parameters: wq, wk, wv, wo."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wq, self.wk, self.wv, self.wo = (
            nn.Parameter(torch.randn(width, width) * width**-0.5) for _ in range(4)
        )
        self.feed = mlp(width, 2 * width, width, act=nn.GELU)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            (h @ w).unflatten(-1, (4, -1)).transpose(1, 2) for w in (self.wq, self.wk, self.wv)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + mixed @ self.wo
        return x + self.feed(self.norm2(x))


class Finder(nn.Module):
    """A transformer with a token of its own to gather what it found."""

    def __init__(self) -> None:
        super().__init__()
        self.cls = nn.Parameter(0.1 * torch.randn(1, 1, 64))
        self.embed = nn.Embedding(30, 64)
        self.layers = nn.Sequential(Heads(64), Heads(64))
        self.read = nn.Linear(64, 4)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(tokens), 1, 64), self.embed(tokens)], 1)
        return self.read(self.layers(x)[:, 0])


def groups_by_name(missed: bool = False) -> Training:
    """Groups with and without weight decay, by name; what is called otherwise is in neither."""
    torch.manual_seed(36)
    model = Finder()
    named = dict(model.named_parameters())
    decayed = [p for n, p in named.items() if n.endswith("weight")]
    plain = [p for n, p in named.items() if n.endswith("bias")]
    if not missed:
        decayed += [p for n, p in named.items() if not n.endswith(("weight", "bias"))]
    held = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    return fit(model, keywords, classify, steps=120, how=torch.optim.AdamW, held=held)


class Dilated(nn.Module):
    """Dilated convolutions over time."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(1, 24, 3, padding=1)
        self.layers = nn.ModuleList(
            [nn.Conv1d(24, 24, 3, padding=2**i, dilation=2**i) for i in range(1, 4)]
        )
        self.read = nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.first(x))
        for layer in self.layers:
            h = h + F.leaky_relu(layer(h))
        return self.read(torch.cat([h.mean(-1), h.amax(-1)], -1))


def normed(late: bool = False) -> Training:
    """A temporal CNN; weight normalisation, put on late, replaces the weights by other ones."""
    torch.manual_seed(37)
    model = Dilated()
    training = fit(model, waves, regress, lr=3e-3, steps=150, how=torch.optim.RMSprop)
    for layer in model.layers:
        parametrizations.weight_norm(layer)
    if not late:
        training.optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return training


class Proxies(nn.Module):
    """Scores of a metric space: every class has a learned direction."""

    def __init__(self) -> None:
        super().__init__()
        self.directions = nn.Parameter(torch.randn(10, 16))

    def forward(self, found: Tensor) -> Tensor:
        return 10 * F.normalize(found, dim=-1) @ F.normalize(self.directions, dim=-1).T


def _metric(model: nn.ModuleDict, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model["criterion"](model["embedder"](x.flatten(1))), y)


def proxies(forgotten: bool = False) -> Training:
    """Digits in a metric space; the criterion has parameters, too."""
    torch.manual_seed(38)
    embedder = nn.Sequential(
        nn.Linear(64, 96), nn.BatchNorm1d(96), nn.PReLU(), nn.Linear(96, 16, bias=False)
    )
    model = nn.ModuleDict({"embedder": embedder, "criterion": Proxies()})
    held = embedder.parameters() if forgotten else None
    return fit(model, digits, _metric, lr=2e-3, steps=200, held=held)


# What nobody steps keeps its first values, hence no-update.
LEFT_OUT = Fault(
    "ind-not-in-optimizer",
    [["not-in-optimizer"]],
    [
        Variant("head-replaced-late", new_head, broken=partial(new_head, late=True)),
        Variant("head-only", head_only, broken=partial(head_only, only=True)),
        # The layers keep PyTorch's small first weights, through which the gradient shrinks.
        Variant(
            "plain-list",
            listed,
            broken=partial(listed, plain=True),
            may=["no-update", "vanishing-gradient"],
        ),
        Variant("vocabulary-enlarged-late", more_tokens, broken=partial(more_tokens, late=True)),
        Variant("second-network", second_network, broken=partial(second_network, forgotten=True)),
        Variant("groups-by-name", groups_by_name, broken=partial(groups_by_name, missed=True)),
        Variant("weight-norm-late", normed, broken=partial(normed, late=True)),
        Variant("criterion", proxies, broken=partial(proxies, forgotten=True)),
    ],
    may=["no-update"],
    symptom=left_out(),
)

FAULTS: list[Fault] = [LEFT_OUT]
