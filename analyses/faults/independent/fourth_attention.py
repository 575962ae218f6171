"""Attention that doesn't get a gradient to its scores, or lets next to nothing through."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_fourth_attention import (
    CLASSES,
    KEY,
    WIDTH,
    Attend,
    Block,
    Tokens,
    adam,
    digits,
    generator,
    lookup,
    per_sample,
    per_token,
    recall,
    reverse,
)
from analyses.faults.symptoms import peaked
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


# Scores so far apart that a softmax takes one entry before anything is learnt.


def raw_scores(faulty: bool) -> Training:
    """A transformer whose scores are not divided and whose projections are drawn far too wide."""
    torch.manual_seed(1)
    width = 48
    layers = [Attend(width, 2, scale=1.0 if faulty else None) for _ in range(2)]
    if faulty:
        for a in layers:
            nn.init.normal_(a.q.weight, std=2.0)
            nn.init.normal_(a.k.weight, std=2.0)
    body = nn.Sequential(*(Block(a, width) for a in layers))
    return adam(Tokens(WIDTH, width, body), lookup, per_token)


class Matching(nn.Module):
    """A query takes the classes of the labelled images that look like it."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(12, 16, 3, stride=2, padding=1),
            nn.Flatten(),
            nn.Linear(64, 32),
        )
        self.sharpness = sharpness

    def forward(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        known = F.normalize(self.embed(support), dim=-1)
        asked = F.normalize(self.embed(query), dim=-1)
        weights = torch.softmax(self.sharpness * asked @ known.T, -1)
        share: Tensor = weights @ F.one_hot(labels, 10).float()
        return torch.log(share + 1e-4)


def few_shots(step: int) -> Batch:
    """Labelled images and asked ones, all noisy."""
    (a, b), (c, d) = digits(2 * step, 40), digits(2 * step + 1, 24)
    g = generator(step, 9)
    return (
        (a + 0.7 * torch.randn(a.shape, generator=g))[:, None],
        b,
        (c + 0.7 * torch.randn(c.shape, generator=g))[:, None],
        d,
    )


def nll(model: nn.Module, *batch: Tensor) -> Tensor:
    """Negative log-likelihood of what is a logarithm already."""
    *given, target = batch
    return F.nll_loss(model(*given), target)


def matching(sharpness: float) -> Training:
    torch.manual_seed(2)
    return adam(Matching(sharpness), few_shots, nll, lr=2e-3)


class Encoder(nn.Module):
    """The library's encoder layers over tokens of a look-up."""

    def __init__(self, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Linear(WIDTH, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 2 * width, dropout=0.0, batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.encoder(self.embed(x)))
        return answers


def big_projection(factor: float) -> Training:
    """Queries and keys of the fused projection are that much too large."""
    torch.manual_seed(3)
    model = Encoder(32, 2, 2)
    with torch.no_grad():
        for layer in model.encoder.layers:
            layer.self_attn.in_proj_weight[:64] *= factor  # type: ignore[index,operator,union-attr]
    return adam(model, partial(lookup, n=12), per_token)


class Translator(nn.Module):
    """Recurrent encoder and decoder; the decoder's states ask the encoder's (Luong)."""

    def __init__(self, width: int, std: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.decoder = nn.GRU(width, width, batch_first=True)
        self.general = nn.Linear(width, width, bias=False)
        nn.init.normal_(self.general.weight, std=std)
        self.head = nn.Linear(2 * width, 11)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        states, _ = self.encoder(self.embed(x))
        asking, _ = self.decoder(self.embed(shifted))
        scores = self.general(asking) @ states.transpose(1, 2)
        read = torch.softmax(scores, -1) @ states
        answers: Tensor = self.head(torch.cat([asking, read], -1))
        return answers


def reversed_pair(step: int) -> Batch:
    """Symbols, their reversal moved by one, and the reversal."""
    x, y = reverse(step)
    return x, F.pad(y[:, :-1], (1, 0), value=10), y


def translator(std: float) -> Training:
    torch.manual_seed(4)
    return adam(Translator(64, std), reversed_pair, per_token, lr=5e-3, steps=250)


class GraphAttention(nn.Module):
    """Nodes weigh their neighbours by two learnt vectors (GAT)."""

    def __init__(self, given: int, width: int, std: float) -> None:
        super().__init__()
        self.project = nn.Linear(given, width)
        self.mine, self.theirs = nn.Linear(width, 1), nn.Linear(width, 1)
        nn.init.normal_(self.mine.weight, std=std)
        nn.init.normal_(self.theirs.weight, std=std)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        h = self.project(x)
        scores = F.leaky_relu(self.mine(h) + self.theirs(h).transpose(-2, -1), 0.2)
        scores = scores.masked_fill(graph == 0, -math.inf)
        read: Tensor = torch.softmax(scores, -1) @ h
        return read


class GraphNet(nn.Module):
    def __init__(self, given: int, width: int, std: float, classes: int) -> None:
        super().__init__()
        self.first = GraphAttention(given, width, std)
        self.second = GraphAttention(width, width, std)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        x = F.elu(self.first(x, graph))
        answers: Tensor = self.head(F.elu(self.second(x, graph)))
        return answers


def communities(step: int, nodes: int = 64) -> Batch:
    """Nodes of four groups, mostly joined within; features so noisy that one tells little."""
    g = generator(step, 5)
    group = torch.arange(nodes) % 4
    same = group[:, None] == group
    fixed = generator(0, 6)
    chance = torch.where(same, 0.7, 0.03)
    graph = (torch.rand(nodes, nodes, generator=fixed) < chance).float()
    graph = ((graph + graph.T + torch.eye(nodes)) > 0).float()
    centre = torch.randn(4, 10, generator=fixed)
    x = centre[group] + 2.5 * torch.randn(nodes, 10, generator=g)
    return x, graph, group


def graph_net(std: float) -> Training:
    torch.manual_seed(5)
    return adam(GraphNet(10, 24, std, 4), communities, per_sample, lr=5e-3)


class KeyValueMemory(nn.Module):
    """One read by a sharpened address; values and keys have encoders of their own."""

    def __init__(self, width: int, sharpening: float) -> None:
        super().__init__()
        self.ask = nn.Linear(KEY, width)
        self.keys = nn.Linear(KEY, width)
        self.values = nn.Linear(CLASSES, width)
        self.answer = nn.Sequential(nn.Linear(width, 32), nn.Tanh(), nn.Linear(32, CLASSES))
        self.sharpening = sharpening

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        keys, values = memory.split([KEY, CLASSES], -1)
        scores = (self.keys(keys) @ self.ask(question)[..., None])[..., 0]
        address = F.softmax(self.sharpening * scores, -1)
        answers: Tensor = self.answer((address[..., None] * self.values(values)).sum(1))
        return answers


def key_value_memory(sharpening: float) -> Training:
    torch.manual_seed(6)
    return adam(KeyValueMemory(20, sharpening), recall, per_sample, lr=5e-3)


class Sloped(Attend):
    """Causal attention with a penalty for distance (ALiBi)."""

    slope = 0.1

    def scores(self, x: Tensor, memory: Tensor) -> Tensor:
        at = torch.arange(x.shape[1])
        return super().scores(x, memory) - self.slope * (at[:, None] - at).abs()


class SlopedModel(nn.Module):
    def __init__(self, width: int, slope: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, width)
        self.places = nn.Parameter(0.3 * torch.randn(16, width))
        blocks = []
        for _ in range(2):
            attend = Sloped(width, 4, causal=True)
            attend.slope = slope
            blocks.append(Block(attend, width))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.blocks(self.embed(x) + self.places))
        return answers


def echoes(step: int) -> Batch:
    """Symbols; each position must tell the one three places before (its own at the start)."""
    x = torch.randint(12, (24, 16), generator=generator(step, 7))
    return x, torch.cat([x[:, :3], x[:, :-3]], 1)


def sloped(slope: float) -> Training:
    torch.manual_seed(7)
    return adam(SlopedModel(32, slope), echoes, per_token, steps=250)


def bert(spread: float) -> Training:
    """The library's BERT; every answer is a look-up away. `spread` is initializer_range."""
    from transformers import BertConfig

    torch.manual_seed(8)
    config = BertConfig(
        vocab_size=24,
        hidden_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=16,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=spread,
        attn_implementation="eager",
    )
    return adam(BertTagger(config), mirrored, per_token)


class BertTagger(nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        from transformers import BertModel

        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, 12)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.bert(input_ids=x).last_hidden_state)
        return answers


def mirrored(step: int) -> Batch:
    """Symbols, and the one on the other side of the row's middle."""
    x = torch.randint(12, (24, 12), generator=generator(step, 8))
    return x, x.flip(1)


PEAKED = Fault(
    "ind4-peaked",
    must=[["peaked-softmax"]],
    symptom=peaked(0.1),
    variants=[
        Variant(
            "raw-scores",
            healthy=partial(raw_scores, False),
            broken=partial(raw_scores, True),
        ),
        Variant(
            "matching-sharp",
            healthy=partial(matching, 8.0),
            broken=partial(matching, 2500.0),
            # The whole gradient passes the softmax, by construction.
            may=["softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "fused-projection",
            healthy=partial(big_projection, 1.0),
            broken=partial(big_projection, 50.0),
        ),
        Variant(
            "luong-general",
            healthy=partial(translator, 0.1),
            broken=partial(translator, 60.0),
        ),
        Variant(
            "graph-attention",
            healthy=partial(graph_net, 0.2),
            broken=partial(graph_net, 60.0),
            # The two vectors that score read what the values read, and get nothing.
            may=["starved-pathway"],
        ),
        Variant(
            "sharpened-memory",
            healthy=partial(key_value_memory, 0.5),
            broken=partial(key_value_memory, 200.0),
            # Keys and questions have no way to the loss but the closed softmax.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],
        ),
        Variant(
            "steep-slope",
            healthy=partial(sloped, 0.05),
            broken=partial(sloped, 60.0),
            # Each place sees itself alone; queries and keys have a gradient of exactly 0.
            may=["starved-pathway", "no-update"],
        ),
        Variant(
            "initial-range",
            healthy=partial(bert, 0.05),
            broken=partial(bert, 6.0),
        ),
    ],
)

FAULTS = [PEAKED]
