"""Stacks of attention through which the gradient fades or grows; library models gone wrong."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_a import (
    digit_images,
    digit_patches,
    grammar,
    marked,
    next_word,
    recall,
    wave,
)
from analyses.faults.symptoms import decays, grows
from analyses.faults.training import Training


def _labels(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(image), label)


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


def _squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


# ---- rows of digits through attention after attention --------------------------------------------


class Plain(nn.Module):
    """Self-attention layers one on the other; with or without what goes around them."""

    def __init__(self, width: int, layers: int, around: bool) -> None:
        super().__init__()
        self.row = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.3)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 10)
        self.around = around

    def forward(self, image: Tensor) -> Tensor:
        x = self.row(image) + self.place
        for qkv, out in zip(self.qkv, self.out, strict=True):
            q, k, v = qkv(x).chunk(3, dim=-1)
            y = out(F.scaled_dot_product_attention(q, k, v))
            x = x + y if self.around else y
        return self.head(x.mean(1))


def plain(around: bool = True, layers: int = 7) -> Training:
    torch.manual_seed(61)
    model = Plain(32, layers, around)
    return Training(
        model=model,
        batch=digit_images,
        loss=_labels,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=200,
        every=5,
    )


# ---- residual connections that shrink ------------------------------------------------------------


class Averaged(nn.Module):
    """Each sub-layer's output and its input are summed, or averaged with a weight."""

    def __init__(self, words: int, width: int, layers: int, keep: float) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(40, width)
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(layers)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, words)
        self.keep = keep

    def forward(self, text: Tensor) -> Tensor:
        T = text.shape[1]
        x = self.embed(text) + self.place(torch.arange(T))
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        for attend, feed in zip(self.attend, self.feed, strict=True):
            x = self.keep * (x + attend(x, x, x, attn_mask=future, need_weights=False)[0])
            x = self.keep * (x + feed(x))
        return self.head(x)


def averaged(keep: float = 1.0) -> Training:
    torch.manual_seed(62)
    model = Averaged(16, 32, 5, keep)
    return Training(
        model=model,
        batch=partial(grammar, length=20),
        loss=_predict,
        optimizer=torch.optim.SGD(model.parameters(), 0.05, momentum=0.9),
        steps=250,
        every=5,
    )


# ---- a sigmoid network between layers of attention -----------------------------------------------


class Squashed(nn.Module):
    """Attention, then two dense layers with an activation, several times; nothing goes around."""

    def __init__(self, width: int, layers: int, activation: type[nn.Module], skip: bool) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.5)
        self.attend = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(layers)
        )
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), activation(), nn.Linear(width, width))
            for _ in range(layers)
        )
        self.head = nn.Linear(width, 10)
        self.skip = skip

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.place
        for attend, feed in zip(self.attend, self.feed, strict=True):
            y = feed(attend(x, x, x)[0])
            x = F.layer_norm(x + y, x.shape[-1:]) if self.skip else y
        return self.head(x.flatten(1).unflatten(1, (16, -1)).mean(1))


def squashed(skip: bool = True) -> Training:
    torch.manual_seed(63)
    model = Squashed(24, 3, nn.Sigmoid, skip)
    return Training(
        model=model,
        batch=digit_patches,
        loss=_labels,
        optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=300,
        every=5,
    )


VANISHING = Fault(
    "ind9-attention-vanishing",
    must=[["vanishing-gradient"]],
    # What comes to a deep layer is the same at all positions: its softmax is uniform, its queries
    # and keys get a millionth of what its values get, and under SGD nothing there moves.
    may=["diffuse-softmax", "starved-pathway", "no-update"],
    variants=[
        Variant(
            "no-residual-connections",
            healthy=plain,
            broken=partial(plain, around=False),
            symptom=decays(2.5, "qkv"),
        ),
        Variant(
            "residuals-averaged",
            healthy=averaged,
            broken=partial(averaged, keep=0.3),
            symptom=decays(2.0, "feed"),
        ),
        Variant(
            "sigmoids-and-no-way-around",
            healthy=squashed,
            broken=partial(squashed, skip=False),
            symptom=decays(2.0, "feed"),
        ),
    ],
)


# ---- attention without a softmax -----------------------------------------------------------------


class Linear(nn.Module):
    """φ(q)·(φ(k)ᵀ v), divided by the sum of its weights, or by the width only."""

    def __init__(self, width: int, normalised: bool) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.o = nn.Linear(width, width), nn.Linear(width, width)
        self.normalised = normalised

    def forward(self, x: Tensor) -> Tensor:
        h = F.layer_norm(x, x.shape[-1:])
        q, k = F.elu(self.q(h)) + 1, F.elu(self.k(h)) + 1
        y = q @ (k.transpose(1, 2) @ self.v(x))
        y = y / (q @ k.sum(1).unsqueeze(-1)) if self.normalised else y / q.shape[-1]
        return self.o(y)


class Series(nn.Module):
    """Layers of it over a series, with residual connections."""

    def __init__(self, width: int, layers: int, normalised: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.time = nn.Parameter(torch.randn(48, width) * 0.3)
        self.layers = nn.ModuleList(Linear(width, normalised) for _ in range(layers))
        self.out = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.time
        for layer in self.layers:
            h = h + layer(h)
        return self.out(h[:, -1])


def series(normalised: bool = True) -> Training:
    torch.manual_seed(64)
    model = Series(24, 4, normalised)
    return Training(
        model=model,
        batch=wave,
        loss=_squares,
        optimizer=torch.optim.SGD(model.parameters(), 0.02, momentum=0.9),
        steps=200,
        every=5,
        clip=0.1,
    )


# ---- weights drawn too large ---------------------------------------------------------------------


class Lookup(nn.Module):
    """Questions look at boxes in several rounds of attention over everything."""

    def __init__(self, keys: int, values: int, width: int, layers: int, gain: float) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, width), nn.Embedding(values, width)
        self.kind = nn.Parameter(torch.randn(2, width))
        self.qk = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.v = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.o = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, values)
        for m in [*self.v, *self.o]:
            nn.init.xavier_normal_(m.weight, gain=gain)

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        boxes = self.key(key) + self.value(value) + self.kind[0]
        x = torch.cat([(self.key(asked) + self.kind[1])[:, None], boxes], 1)
        for qk, v, o in zip(self.qk, self.v, self.o, strict=True):
            q, k = F.layer_norm(qk(x), (2 * x.shape[-1],)).chunk(2, -1)
            weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1)
            x = x + o(weights @ v(x))
        return self.head(x[:, 0])


def _answer(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, asked), answer)


def lookup(gain: float = 0.5) -> Training:
    torch.manual_seed(65)
    model = Lookup(8, 8, 48, 6, gain)
    return Training(
        model=model,
        batch=partial(recall, pairs=5, keys=8),
        loss=_answer,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        steps=250,
        every=10,
        clip=1.0,
    )


# ---- one block applied again and again -----------------------------------------------------------


class Universal(nn.Module):
    """One block of attention, ten times over the same sequence."""

    def __init__(self, width: int, rounds: int, gain: float) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.first = nn.Linear(width, width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        turns = [nn.Linear(width, width) for _ in range(rounds)]
        self.turn = nn.ModuleList(turns)
        self.head = nn.Linear(width, 1)
        for t in turns:
            nn.init.orthogonal_(t.weight, gain=gain)
        self.gain = gain

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.gelu(self.embed(x)))
        for turn in self.turn:
            y = F.layer_norm(h, h.shape[-1:])
            h = turn(h + 0.5 * self.attend(y, y, y, need_weights=False)[0])
        return self.head(h[:, 0])


def universal(gain: float = 1.0) -> Training:
    torch.manual_seed(66)
    model = Universal(32, 8, gain)
    return Training(
        model=model,
        batch=partial(marked, length=8),
        loss=_squares,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
        every=5,
        clip=1.0,
    )


EXPLODING = Fault(
    "ind9-attention-exploding",
    must=[["exploding-gradient"]],
    variants=[
        Variant(
            "linear-attention-not-normalised",
            healthy=series,
            broken=partial(series, normalised=False),
            symptom=grows(2.0),
        ),
        Variant(
            "value-and-output-drawn-large",
            healthy=lookup,
            broken=partial(lookup, gain=3.0),
            # The mean over all boxes grows fastest: late layers see the same everywhere.
            # The last one's queries and keys get a ten-thousandth of the gradient.
            may=["diffuse-softmax", "starved-pathway"],
            symptom=grows(2.0),
        ),
        Variant(
            "turns-that-stretch",
            healthy=universal,
            broken=partial(universal, gain=4.0),
            symptom=grows(2.0),
        ),
    ],
)

FAULTS = [VANISHING, EXPLODING]
