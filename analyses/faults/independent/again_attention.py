"""Attention that is too sharp, too flat, starved, cancelled or too narrow; and sound attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_again_attend import (
    Block,
    Heads,
    digits,
    marked,
    recall,
)
from analyses.faults.observe import Observed
from analyses.faults.symptoms import peaked
from analyses.faults.training import Training

SPLITS = ("test",)


def _classify(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross entropy of what the model says of all but the last tensor of a batch."""
    return F.cross_entropy(model(*batch[:-1]), batch[-1])


# Peaked.


class Lookup(nn.Module):
    """Looks a key up among pairs by attention with several heads."""

    def __init__(self, pairs: int, width: int, spread: float | None) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(pairs, width), nn.Embedding(8, width)
        self.norm = nn.LayerNorm(width)
        self.asked = nn.LayerNorm(width)
        self.read = Heads(width, 2, scale=1.0 if spread else None)
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 8))
        if spread:
            nn.init.normal_(self.read.q.weight, std=spread)
            nn.init.normal_(self.read.k.weight, std=spread)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        memory = self.norm(self.key(keys) + self.value(values))
        question = self.asked(self.key(asked))[:, None]
        return self.out((question + self.read(question, memory))[:, 0])


def lookup(*, spread: float | None = None) -> Training:
    """Recall among 16 pairs; `spread`: std of the projections' weights, and no scaling."""
    torch.manual_seed(3)
    model = Lookup(16, 32, spread)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, partial(recall, pairs=16), _classify, optimizer, 240, 6)


class Rows(nn.Module):
    """A token asks the rows of an image, in PyTorch's encoder layers."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(0.5 * torch.randn(9, width))
        self.first = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True)
        self.second = nn.TransformerEncoderLayer(width, 4, 64, 0.0, "gelu", batch_first=True)
        self.out = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.view(-1, 8, 8))
        x = torch.cat([torch.zeros_like(x[:, :1]), x], 1) + self.place
        return self.out(self.second(self.first(x))[:, 0])


def rows(*, times: float = 1.0) -> Training:
    """Digits by rows; queries and keys so many times as large."""
    torch.manual_seed(4)
    model = Rows()
    with torch.no_grad():
        for layer in (model.first, model.second):
            layer.self_attn.in_proj_weight[:64] *= times
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, digits, _classify, optimizer, 160, 5)


class Cosine(nn.Module):
    """A memory read by the cosine of question and keys."""

    def __init__(self, pairs: int, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.key, self.value = nn.Embedding(pairs, 24), nn.Embedding(8, 24)
        self.ask, self.hold = nn.Linear(24, 24, bias=False), nn.Linear(24, 24, bias=False)
        self.out = nn.Linear(24, 8)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        q = F.normalize(self.ask(self.key(asked)), dim=-1)[:, None]
        k = F.normalize(self.hold(self.key(keys)), dim=-1)
        weights = F.softmax(self.sharpness * (q @ k.transpose(1, 2)), dim=-1)
        return self.out((weights @ self.value(values))[:, 0])


def cosine(*, sharpness: float = 10.0, pairs: int = 40) -> Training:
    """Recall among so many pairs."""
    torch.manual_seed(6)
    model = Cosine(pairs, sharpness)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return Training(model, partial(recall, pairs=pairs, size=64), _classify, optimizer, 300, 6)


PEAKED = Fault(
    "ind2-peaked",
    must=[["peaked-softmax"]],
    symptom=peaked(0.1),
    variants=[
        Variant("unscaled-lookup", lookup, broken=partial(lookup, spread=1.0)),
        Variant("encoder-layers", rows, broken=partial(rows, times=80.0)),
        Variant(
            "cosine-temperature",
            partial(cosine, pairs=24),
            broken=partial(cosine, pairs=24, sharpness=3000.0),
            # The keys' embedding has no way to the loss but through the scores.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # likewise
        ),
    ],
)


# Diffuse.


def flat(entropy: float) -> Symptom:
    """The last softmax called stays above it to the end; the twin's doesn't, and learns more."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None, "needs a twin"
        found = min(max(c.entropies) for c in run.checkpoints)
        lowest = min(min(c.entropies) for c in run.checkpoints)
        theirs = min(twin.last.entropies)
        worse = run.loss_last - twin.loss_last > 0.1 * twin.loss_first
        return {
            "is": found >= entropy > theirs and worse,
            "entropy": found,
            "lowest": lowest,
            "twin": theirs,
            "loss": run.loss_last,
            "twin_loss": twin.loss_last,
        }

    return symptom


class Listener(nn.Module):
    """A GRU reads, additive attention picks."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.gru = nn.GRU(7, 32, batch_first=True)
        self.hidden, self.score = nn.Linear(32, 32), nn.Linear(32, 1)
        self.out = nn.Linear(32, 6)

    def forward(self, bag: Tensor) -> Tensor:
        states, _ = self.gru(bag)
        weights = torch.softmax(self.score(torch.tanh(self.hidden(states)))[..., 0], dim=-1)
        if self.twice:
            weights = torch.softmax(weights, dim=-1)
        return self.out((weights[:, None] @ states)[:, 0])


def listener(*, twice: bool = False) -> Training:
    """The marked one of 40 steps is to be told; `twice`: the weights go through softmax again."""
    torch.manual_seed(7)
    model = Listener(twice)
    optimizer = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, partial(marked, length=40), _classify, optimizer, 200, 5)


class Searcher(nn.Module):
    """Two blocks read pairs of key and value and a question."""

    def __init__(self, pairs: int, scale: float | None) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(pairs, 48), nn.Embedding(8, 48)
        self.role = nn.Parameter(torch.randn(48))
        self.one, self.two = Block(48, 2, scale), Block(48, 2, scale)
        self.norm, self.out = nn.LayerNorm(48), nn.Linear(48, 8)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        question = self.key(asked)[:, None] + self.role
        x = torch.cat([question, self.key(keys) + self.value(values)], 1)
        return self.out(self.norm(self.two(self.one(x))[:, 0]))


def searcher(*, scale: float | None = None) -> Training:
    """Recall among 24 pairs; `scale`: of the scores."""
    torch.manual_seed(8)
    model = Searcher(24, scale)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    return Training(model, partial(recall, pairs=24, size=32), _classify, optimizer, 240, 6)


DIFFUSE = Fault(
    "ind2-diffuse",
    must=[["diffuse-softmax"]],
    symptom=flat(0.98),
    variants=[
        Variant(
            "cosine",
            cosine,
            broken=partial(cosine, sharpness=1.0),
            may=["softmax-borne"],  # the keys' embedding has no other way to the loss
            healthy_may=["softmax-borne"],  # likewise
        ),
        Variant(
            "softmax-twice",
            listener,
            broken=partial(listener, twice=True),
            # The first softmax is driven to point, late, to make up for the second.
            may=["vanishing-gradient", "peaked-softmax"],
        ),
        Variant(
            "scale-cubed",
            searcher,
            broken=partial(searcher, scale=24.0**-3),
            may=["starved-pathway"],  # queries and keys beside values
        ),
    ],
)


FAULTS = [PEAKED, DIFFUSE]
