"""Attention that cannot do its work: too sharp, too even, too narrow, cut off or starved."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_sixth_attention import (
    choosing,
    community,
    dice,
    digits,
    edge_starved,
    marked,
    passes,
    patches,
    recall,
    repeated,
    reversed_pairs,
)
from analyses.faults.symptoms import some_without_gradient
from analyses.faults.training import Training

# Too sharp.


class Reader(nn.Module):
    """Looks a key up among pairs: one query, content-based."""

    def __init__(self, scale: float, width: int = 64) -> None:
        super().__init__()
        self.keys = nn.Embedding(64, width)
        self.values = nn.Embedding(10, width)
        self.q = nn.Linear(width, width, bias=False)
        self.k = nn.Linear(width, width, bias=False)
        self.out = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 10))
        self.scale = scale

    def forward(self, k: Tensor, v: Tensor, asked: Tensor) -> Tensor:
        query = self.q(self.keys(asked)).unsqueeze(1)
        scores = torch.matmul(query, self.k(self.keys(k)).transpose(1, 2)) * self.scale
        read = torch.softmax(scores, dim=-1) @ self.values(v)
        return self.out(read.squeeze(1))


def _answer(model: nn.Module, k: Tensor, v: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(k, v, asked), answer)


def reader(scale: float) -> Training:
    """Multiplying by the root of the width in place of dividing, and then some."""
    torch.manual_seed(1)
    model = Reader(scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall, _answer, optimizer, steps=250)


class Patchwork(nn.Module):
    """A vision transformer written by hand, with separate projections."""

    def __init__(self, width: int = 48, heads: int = 3, depth: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(4, width)
        self.where = nn.Parameter(0.5 * torch.randn(1, 16, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "norm1": nn.LayerNorm(width),
                    "q": nn.Linear(width, width),
                    "k": nn.Linear(width, width),
                    "v": nn.Linear(width, width),
                    "o": nn.Linear(width, width),
                    "norm2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 2 * width),
                    "down": nn.Linear(2 * width, width),
                }
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.where
        b, n, w = x.shape
        for block in self.blocks:
            layer: Any = block
            y = layer["norm1"](x)
            q, k, v = (layer[c](y).view(b, n, self.heads, -1).transpose(1, 2) for c in "qkv")
            a = (q @ k.transpose(-1, -2) / math.sqrt(w // self.heads)).softmax(-1)
            x = x + layer["o"]((a @ v).transpose(1, 2).reshape(b, n, w))
            x = x + layer["down"](F.gelu(layer["up"](layer["norm2"](x))))
        return self.head(self.norm(x)[:, 0])


def _classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def patchwork(std: float | None = None) -> Training:
    """Somebody fills queries' and keys' weights from a normal distribution and forgets its width.

    The first token is what is classified, so that the others' content has to come to it.
    """
    torch.manual_seed(2)
    model = Patchwork()
    if std is not None:
        for name, p in model.named_parameters():
            if name.endswith(("q.weight", "k.weight")):
                nn.init.normal_(p, std=std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digits, _classify, optimizer, steps=200)


class Store(nn.Module):
    """A learnt memory of slots, addressed by the cosine with what a network makes of the input."""

    def __init__(self, temperature: float, slots: int = 40, width: int = 24) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, width))
        self.address = nn.Parameter(torch.randn(slots, width))
        self.content = nn.Parameter(0.3 * torch.randn(slots, 10))
        self.temperature = temperature

    def forward(self, images: Tensor) -> Tensor:
        asked = F.normalize(self.encode(images.flatten(1)), dim=-1)
        close = asked @ F.normalize(self.address, dim=-1).t()
        return F.softmax(close / self.temperature, dim=-1) @ self.content


def store(temperature: float) -> Training:
    """A temperature of 1e-4, written as somebody else's epsilon."""
    torch.manual_seed(3)
    model = Store(temperature)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, digits, _classify, optimizer, steps=250)


class Bag(nn.Module):
    """Multiple-instance learning: attention that pools a bag of measurements, Luong's score."""

    def __init__(self, width: int = 17, classes: int = 4) -> None:
        super().__init__()
        self.score = nn.Linear(width, 32)
        self.query = nn.Parameter(torch.randn(32) / 6)
        self.judge = nn.Linear(width, classes)

    def forward(self, bag: Tensor) -> Tensor:
        weight = torch.softmax(self.score(bag) @ self.query, dim=1)
        return self.judge(torch.einsum("bt,btd->bd", weight, bag))


def bag(unit: float) -> Training:
    """Measurements in a thousandth of the unit that they should be in."""
    torch.manual_seed(4)
    model = Bag()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = marked(step, length=16)
        return x * unit, y

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, batch, _classify, optimizer, steps=250)


class Kernel(nn.Module):
    """Nadaraya–Watson regression in a learnt space: softmax over minus squared distances."""

    def __init__(self, bandwidth: float) -> None:
        super().__init__()
        self.warp = nn.Sequential(nn.Linear(6, 48), nn.ReLU(), nn.Linear(48, 8))
        self.bandwidth = bandwidth

    def forward(self, known: Tensor, heights: Tensor, asked: Tensor) -> Tensor:
        distance = torch.cdist(self.warp(asked), self.warp(known)).square()
        weights = torch.softmax(-distance / (2 * self.bandwidth**2), dim=-1)
        return (weights @ heights.unsqueeze(-1)).squeeze(-1)


def _heights(model: nn.Module, known: Tensor, heights: Tensor, asked: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(known, heights, asked), y)


def kernel(bandwidth: float) -> Training:
    """A bandwidth far below the distance to the nearest neighbour."""
    torch.manual_seed(5)
    model = Kernel(bandwidth)
    slope = torch.randn(6, generator=dice(0, 8))

    def batch(step: int) -> tuple[Tensor, ...]:
        g = dice(step, 9)
        x = torch.randn(4, 80, 6, generator=g)
        y = torch.sin(2 * x[..., 0]) + (x[..., :2] @ slope[:2])
        known = y[:, :60] + 0.3 * torch.randn(4, 60, generator=g)
        return x[:, :60], known, x[:, 60:], y[:, 60:]

    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    return Training(model, batch, _heights, optimizer, steps=300)


class Finder(nn.Module):
    """PyTorch's encoder over a sequence with a token in front that reads it."""

    def __init__(self, width: int = 32, inputs: int = 17, norm_first: bool = True) -> None:
        super().__init__()
        self.embed = nn.Linear(inputs, width)
        self.token = nn.Parameter(torch.randn(1, 1, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=norm_first
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        return self.head(self.encoder(x)[:, 0])


def finder(gain: float | None = None) -> Training:
    """The packed projection of nn.MultiheadAttention, initialised anew with a large gain."""
    torch.manual_seed(6)
    model = Finder()
    if gain is not None:
        for module in model.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_normal_(module.in_proj_weight[:64], gain=gain)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, partial(marked, length=24), _classify, optimizer, steps=120)


class Slanted(nn.Module):
    """A causal language model with a bias by distance on its logits, fused attention."""

    def __init__(self, slope: float, vocab: int = 12, width: int = 48, heads: int = 2) -> None:
        super().__init__()
        self.heads, self.slope = heads, slope
        self.words = nn.Embedding(vocab, width)
        self.places = nn.Embedding(16, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.back = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(2))
        self.thin = nn.ModuleList(nn.Linear(2 * width, width) for _ in range(2))
        self.say = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> Tensor:
        n = tokens.shape[1]
        x = self.words(tokens) + self.places(torch.arange(n))
        distance = torch.arange(n)[:, None] - torch.arange(n)[None]
        bias = (-self.slope * distance).masked_fill(distance < 0, -torch.inf)
        for i in range(2):
            parts = self.mix[i](self.norms[2 * i](x)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in parts)
            read = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + self.back[i](read.transpose(1, 2).flatten(2))
            x = x + self.thin[i](F.silu(self.wide[i](self.norms[2 * i + 1](x))))
        return self.say(x)


def _second_half(model: nn.Module, tokens: Tensor) -> Tensor:
    half = tokens.shape[1] // 2
    logits = model(tokens[:, :-1])[:, half - 1 :]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, half:].flatten())


def slanted(slope: float) -> Training:
    """A slope so steep that every token sees itself alone."""
    torch.manual_seed(7)
    model = Slanted(slope)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Training(model, partial(repeated, half=6), _second_half, optimizer, steps=250)


def t5(std: float | None = None) -> Training:
    """T5 doesn't divide its logits: its queries need a small start, overwritten here."""
    torch.manual_seed(8)
    config = T5Config(
        vocab_size=12,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=1,
        num_decoder_layers=1,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=11,
        eos_token_id=10,
        relative_attention_num_buckets=8,
    )
    model = T5ForConditionalGeneration(config)
    if std is not None:
        for name, p in model.named_parameters():
            if name.endswith((".q.weight", ".k.weight")):
                nn.init.normal_(p, std=std)

    def loss(net: nn.Module, source: Tensor, target: Tensor) -> Tensor:
        return net(input_ids=source, labels=target).loss

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = partial(reversed_pairs, length=6, rows=32)
    return Training(model, batch, loss, optimizer, steps=250)


class Neighbours(nn.Module):
    """A graph attention network of two layers, logits as in the paper."""

    def __init__(self, start: float, width: int = 24) -> None:
        super().__init__()
        self.into = nn.Linear(8, width, bias=False)
        self.again = nn.Linear(width, width, bias=False)
        self.source = nn.Parameter(start * torch.randn(2, width))
        self.target = nn.Parameter(start * torch.randn(2, width))
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        for i, layer in enumerate((self.into, self.again)):
            h = layer(x)
            e = F.leaky_relu((h @ self.target[i])[:, None] + (h @ self.source[i])[None], 0.2)
            a = torch.softmax(e.masked_fill(~adjacency, -1e9), dim=1)
            x = F.elu(a @ h)
        return self.head(x)


def _nodes(model: nn.Module, x: Tensor, adjacency: Tensor, kind: Tensor) -> Tensor:
    return F.cross_entropy(model(x, adjacency), kind)


def neighbours(start: float) -> Training:
    """Attention vectors that start at two hundred times their usual size."""
    torch.manual_seed(9)
    model = Neighbours(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=5e-4)
    return Training(model, community, _nodes, optimizer, steps=300)


PEAKED = Fault(
    "ind6-attention-peaked",
    must=[["peaked-softmax"]],
    variants=[
        Variant(
            "reader",
            partial(reader, 64**-0.5),
            broken=partial(reader, 64.0),
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # what is looked up by is trained through it alone
            symptom=choosing(partial(reader, 64.0), below=0.1, handed=1e-3),
        ),
        Variant(
            "patchwork",
            patchwork,
            broken=partial(patchwork, 2.0),
            symptom=choosing(partial(patchwork, 2.0), below=0.1, handed=1e-3),
        ),
        Variant(
            "store",
            partial(store, 0.1),
            broken=partial(store, 1e-4),
            may=["vanishing-gradient", "no-update", "softmax-borne"],
            healthy_may=["softmax-borne"],  # what is looked up by is trained through it alone
            symptom=choosing(partial(store, 1e-4), below=0.1, handed=1e-3),
        ),
        Variant(
            "bag",
            partial(bag, 1.0),
            broken=partial(bag, 1000.0),
            must=[["peaked-softmax", "unscaled-input"]],
            may=["vanishing-gradient"],
            symptom=choosing(partial(bag, 1000.0), below=0.1, handed=1e-3),
        ),
        Variant(
            "kernel",
            partial(kernel, 0.5),
            broken=partial(kernel, 0.005),
            may=["vanishing-gradient", "no-update", "softmax-borne"],
            healthy_may=["softmax-borne"],  # what is looked up by is trained through it alone
            symptom=choosing(partial(kernel, 0.005), below=0.1, handed=1e-3),
        ),
        Variant(
            "finder",
            finder,
            broken=partial(finder, 40.0),
            symptom=choosing(partial(finder, 40.0), below=0.1, handed=1e-3),
        ),
        Variant(
            "slanted",
            partial(slanted, 0.0),
            broken=partial(slanted, 40.0),
            symptom=choosing(partial(slanted, 40.0), below=0.1, handed=1e-3),
        ),
        Variant(
            "t5",
            t5,
            broken=partial(t5, 4.0),
            may=["starved-pathway", "vanishing-gradient"],
            symptom=choosing(partial(t5, 4.0), below=0.2, handed=1e-3),
        ),
        Variant(
            "neighbours",
            partial(neighbours, 0.2),
            broken=partial(neighbours, 40.0),
            may=["vanishing-gradient"],
            symptom=choosing(partial(neighbours, 40.0), below=0.1, handed=1e-3, layer=0),
        ),
    ],
)

# Too even.


class Library(nn.Module):
    """Pairs looked up by key, with a softmax that is taken again of what a softmax gave."""

    def __init__(self, again: bool, keys: int = 64, width: int = 32) -> None:
        super().__init__()
        self.again = again
        self.key = nn.Embedding(keys, width)
        self.value = nn.Embedding(10, width)
        self.refine = nn.Linear(width, width)
        self.read = nn.Linear(width, 10)

    def attention(self, query: Tensor, keys: Tensor) -> Tensor:
        scores = torch.einsum("bd,bnd->bn", query, keys) / keys.shape[-1] ** 0.5
        return F.softmax(scores, dim=-1)

    def forward(self, k: Tensor, v: Tensor, asked: Tensor) -> Tensor:
        weights = self.attention(self.refine(self.key(asked)), self.refine(self.key(k)))
        if self.again:
            weights = F.softmax(weights, dim=-1)
        return self.read(torch.einsum("bn,bnd->bd", weights, self.value(v)))


def library(again: bool) -> Training:
    """A helper returns weights already, and its caller takes them for scores."""
    torch.manual_seed(11)
    model = Library(again)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, partial(recall, pairs=40), _answer, optimizer, steps=250)


class Gallery(nn.Module):
    """Images that are told by the labelled images that they resemble: cosine, then softmax."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(24 * 16, 32),
        )
        self.temperature = temperature

    def forward(self, shown: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
        both = F.normalize(self.net(torch.cat([shown, asked]).unsqueeze(1)), dim=1)
        close = both[len(shown) :] @ both[: len(shown)].T
        mass = torch.softmax(close / self.temperature, 1) @ F.one_hot(labels, 10).float()
        return (mass + 1e-6).log()


def _match(model: nn.Module, shown: Tensor, labels: Tensor, asked: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(model(shown, labels, asked), y)


def gallery(temperature: float) -> Training:
    """Matching network; the cosine is divided by 100 where it should have been multiplied."""
    torch.manual_seed(12)
    model = Gallery(temperature)

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = digits(step, rows=120)
        return x[:100], y[:100], x[100:], y[100:]

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, _match, optimizer, steps=120)


class Gap(nn.Module):
    """Fills in tokens that are hidden; post-norm blocks, fused attention."""

    def __init__(
        self, scale: float | None, width: int = 32, heads: int = 2, depth: int = 2
    ) -> None:
        super().__init__()
        self.scale, self.heads = scale, heads
        self.words = nn.Embedding(13, width)
        self.places = nn.Parameter(torch.randn(16, width) * 0.5)
        self.qkv = nn.ModuleList([nn.Linear(width, 3 * width) for _ in range(depth)])
        self.out = nn.ModuleList([nn.Linear(width, width) for _ in range(depth)])
        self.mlp = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
                for _ in range(depth)
            ]
        )
        self.norm = nn.ModuleList([nn.LayerNorm(width) for _ in range(2 * depth)])
        self.head = nn.Linear(width, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        for i, (qkv, out, mlp) in enumerate(zip(self.qkv, self.out, self.mlp, strict=True)):
            q, k, v = qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
            x = self.norm[2 * i](x + out(y.transpose(1, 2).flatten(-2)))
            x = self.norm[2 * i + 1](x + mlp(x))
        return self.head(x)


def gap(scale: float | None = None) -> Training:
    """`scale=` gets what the logits were meant to be divided by, wrongly inverted twice."""
    torch.manual_seed(13)
    model = Gap(scale)

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        (tokens,) = repeated(step, rows=32, half=8)
        hidden = torch.rand(tokens.shape, generator=dice(step, 14)) < 0.2
        hidden &= ~hidden.roll(8, 1)  # the other copy stays to be seen
        return torch.where(hidden, 12, tokens), tokens, hidden

    def loss(net: nn.Module, seen: Tensor, tokens: Tensor, hidden: Tensor) -> Tensor:
        return F.cross_entropy(net(seen)[hidden], tokens[hidden])

    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.01)
    return Training(model, batch, loss, optimizer, steps=350)


class Jury(nn.Module):
    """Gated attention pooling of a bag, as in Ilse et al.; tells its weights, too."""

    def __init__(self, inputs: int = 17, width: int = 24) -> None:
        super().__init__()
        self.features = nn.Linear(inputs, width)
        self.tanh = nn.Linear(width, 16)
        self.gate = nn.Linear(width, 16)
        self.vote = nn.Linear(16, 1)
        self.classify = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.features(x)
        votes = self.vote(torch.tanh(self.tanh(h)) * torch.sigmoid(self.gate(h)))
        weights = torch.softmax(votes.squeeze(-1), dim=1)
        pooled = torch.bmm(weights.unsqueeze(1), h).squeeze(1)
        return {"logits": self.classify(pooled), "weights": weights}


def jury(bonus: float = 0.0) -> Training:
    """A term meant to sharpen attention, whose sign rewards entropy instead, and far too much."""
    torch.manual_seed(14)
    model = Jury()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = net(x)
        entropy = torch.special.entr(out["weights"]).sum(1).mean()
        return F.cross_entropy(out["logits"], y) - bonus * (entropy - math.log(x.shape[1]))

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, partial(marked, length=30), loss, optimizer, steps=200)


class Interpreter(nn.Module):
    """A GRU encoder, and a decoder's cell that attends to its states."""

    def __init__(self, mistaken: bool, vocab: int = 10, width: int = 32) -> None:
        super().__init__()
        self.mistaken = mistaken
        self.embed = nn.Embedding(vocab, width)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.keys = nn.Linear(2 * width, width, bias=False)
        self.values = nn.Linear(2 * width, width)
        self.cell = nn.GRUCell(2 * width, width)
        self.say = nn.Linear(2 * width, vocab)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        states, _ = self.encoder(self.embed(source))
        values = self.values(states)
        keys = self.keys(states)
        if self.mistaken:
            keys = self.keys(states.mean(1, keepdim=True)).expand_as(values)
        h = values.new_zeros(values.shape[0], values.shape[2])
        told = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
        out = []
        context = torch.zeros_like(h)
        for word in self.embed(told).unbind(1):
            h = self.cell(torch.cat([word, context], 1), h)
            scores = (keys @ h.unsqueeze(2)).squeeze(2)
            context = (F.softmax(scores, 1).unsqueeze(1) @ values).squeeze(1)
            out.append(self.say(torch.cat([h, context], 1)))
        return torch.stack(out, 1)


def _translate(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(model(source, target).transpose(1, 2), target)


def interpreter(mistaken: bool) -> Training:
    """Keys that are made of the mean of the states: the same key for every position."""
    torch.manual_seed(15)
    model = Interpreter(mistaken)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, reversed_pairs, _translate, optimizer, steps=200)


class Chorus(nn.Module):
    """A learnt query per class over a sequence, heads by hand; each class has its own verdict."""

    def __init__(self, inputs: int = 17, width: int = 32) -> None:
        super().__init__()
        self.lift = nn.Linear(inputs, width)
        self.query = nn.Parameter(torch.randn(4, width) * 0.3)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.verdict = nn.Linear(width, 1)
        nn.init.normal_(self.verdict.weight, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        weights = (self.query @ self.k(h).mT * 32**-0.5).softmax(-1)
        return self.verdict(weights @ self.v(h)).squeeze(-1)


def chorus(decay: float) -> Training:
    """A weight decay of 80 for the group that holds queries and keys, in place of 0.08."""
    torch.manual_seed(16)
    model = Chorus()
    matching = [model.query, *model.k.parameters()]
    ids = {id(p) for p in matching}
    others = [p for p in model.parameters() if id(p) not in ids]
    optimizer = torch.optim.AdamW(
        [{"params": matching, "weight_decay": decay}, {"params": others, "weight_decay": 0.01}],
        lr=1e-2,
    )
    return Training(model, partial(marked, length=24), _classify, optimizer, steps=160)


class Panel(nn.Module):
    """nn.MultiheadAttention twice over, its output read at a token; post-norm, no dropout."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.embed = nn.Linear(17, width)
        self.first = nn.MultiheadAttention(width, 1, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.pool = nn.Parameter(torch.randn(1, 1, width))
        self.second = nn.MultiheadAttention(width, 1, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = self.norm(x + self.first(x, x, x, need_weights=False)[0])
        query = self.pool.expand(len(x), -1, -1)
        x = torch.cat([query, x], 1)
        pooled = self.second(x, x, x, need_weights=False)[0][:, 0]
        return self.head(pooled)


def panel(std: float | None = None) -> Training:
    """Projections that start at a hundred-thousandth, and SGD that can't lift them."""
    torch.manual_seed(17)
    model = Panel()
    if std is not None:
        for module in (model.first, model.second):
            nn.init.normal_(module.in_proj_weight[:48], std=std)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.8)
    return Training(model, partial(marked, length=14), _classify, optimizer, steps=200)


def llama(scaling: float | None = None) -> Training:
    """The library's model; a sweep over `scaling` sets it to the norm's epsilon by a slip."""
    torch.manual_seed(18)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        max_position_embeddings=32,
        rope_theta=100.0,
        initializer_range=0.15,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config)
    if scaling is not None:
        for layer in model.model.layers:
            layer.self_attn.scaling = scaling

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        labels = tokens.clone()
        labels[:, : tokens.shape[1] // 2] = -100
        return net(input_ids=tokens, labels=labels).loss

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, partial(repeated, half=6), loss, optimizer, steps=250, clip=1.0)


class Tape(nn.Module):
    """Additive attention, as Bahdanau's, of what was read last to the cells of a long tape."""

    def __init__(self, averaged: bool, width: int = 24) -> None:
        super().__init__()
        self.cell = nn.Linear(17, width)
        self.question = nn.Linear(17, width, bias=False)
        if not averaged:
            self.v = nn.Parameter(torch.randn(width))
        self.content = nn.Linear(17, 40)
        self.answer = nn.Linear(40, 4)

    def forward(self, tape: Tensor) -> Tensor:
        mixed = torch.tanh(self.cell(tape) + self.question(tape[:, -1:]))
        scores = mixed @ self.v if hasattr(self, "v") else mixed.mean(-1)
        weights = scores.softmax(1)
        return self.answer((weights.unsqueeze(-1) * self.content(tape)).sum(1))


def tape(averaged: bool) -> Training:
    """The vector that turns features into a score is forgotten, and a mean put in its place.

    The mean of values in [-1, 1] can't tell one cell of 150 from the others, whatever is learnt.
    """
    torch.manual_seed(19)
    model = Tape(averaged)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return Training(model, partial(marked, length=150), _classify, optimizer, steps=200)


DIFFUSE = Fault(
    "ind6-attention-diffuse",
    must=[["diffuse-softmax"]],
    variants=[
        Variant(
            "library",
            partial(library, False),
            broken=partial(library, True),
            may=["peaked-softmax", "vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # what is looked up by is trained through it alone
            symptom=choosing(partial(library, True), above=0.98, layer=1),
        ),
        Variant(
            "gallery",
            partial(gallery, 0.1),
            broken=partial(gallery, 100.0),
            may=["softmax-borne"],
            healthy_may=["softmax-borne"],  # what is looked up by is trained through it alone
            symptom=choosing(partial(gallery, 100.0), above=0.98),
        ),
        Variant(
            "gap",
            gap,
            broken=partial(gap, 16.0**-2.5),
            symptom=choosing(partial(gap, 16.0**-2.5), above=0.98),
        ),
        Variant(
            "jury",
            jury,
            broken=partial(jury, 30.0),
            may=["vanishing-gradient"],
            symptom=choosing(partial(jury, 30.0), above=0.98),
        ),
        Variant(
            "interpreter",
            partial(interpreter, False),
            broken=partial(interpreter, True),
            may=["vanishing-gradient", "starved-pathway", "cancelling-fork"],
            symptom=choosing(partial(interpreter, True), above=0.98),
        ),
        Variant(
            "chorus",
            partial(chorus, 0.08),
            broken=partial(chorus, 80.0),
            must=[["diffuse-softmax", "update-too-large"]],  # the decay takes 0.8 in a step
            may=["vanishing-gradient"],
            symptom=choosing(partial(chorus, 80.0), above=0.98),
        ),
        Variant(
            "panel",
            panel,
            broken=partial(panel, 1e-5),
            symptom=choosing(partial(panel, 1e-5), above=0.98),
        ),
        Variant(
            "llama",
            llama,
            broken=partial(llama, 1e-6),
            may=["starved-pathway", "vanishing-gradient"],
            symptom=choosing(partial(llama, 1e-6), above=0.98),
        ),
        Variant(
            "tape",
            partial(tape, False),
            broken=partial(tape, True),
            may=["vanishing-gradient", "saturated-activation"],
            # Each of 150 cells gets a 150th of what the answer gets: their weights' sum is fine.
            healthy_may=["vanishing-gradient"],
            symptom=choosing(partial(tape, True), above=0.98),
        ),
    ],
)

# Too narrow in between.


class Digest(nn.Module):
    """Two of PyTorch's encoder layers; what goes from one to the other may be one mean."""

    def __init__(self, pooled: bool, width: int = 24, length: int = 32) -> None:
        super().__init__()
        self.pooled = pooled
        self.words = nn.Embedding(10, width)
        self.places = nn.Parameter(torch.randn(2, length, width))
        self.below = nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=True)
        self.above = nn.TransformerEncoderLayer(width, 2, 48, 0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.below(self.words(tokens) + self.places[0])
        if self.pooled:
            x = x.mean(1, keepdim=True).expand_as(x)
        return self.head(self.above(x + self.places[1]))


def _each(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def digest(pooled: bool) -> Training:
    """Every token is to be said again, but half-way there is only their mean."""
    torch.manual_seed(21)
    model = Digest(pooled)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = reversed_pairs(step, rows=16, length=32)
        return x, x.roll(1, 1)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, _each, optimizer, steps=200)


class Strait(nn.Module):
    """Attention by hand, a projection to a few channels and back, attention again."""

    def __init__(self, channels: int, width: int = 48, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(10, width)
        self.places = nn.Embedding(16, width)
        self.one = nn.Linear(width, 3 * width)
        self.squeeze = nn.Linear(width, channels)
        self.widen = nn.Linear(channels, width)
        self.two = nn.Linear(width, 3 * width)
        self.out = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def attend(self, packed: Tensor) -> Tensor:
        q, k, v = (
            t.reshape(*t.shape[:2], self.heads, -1).transpose(1, 2) for t in packed.chunk(3, -1)
        )
        a = torch.softmax(q @ k.transpose(2, 3) / q.shape[-1] ** 0.5, -1)
        return (a @ v).transpose(1, 2).flatten(2)

    def forward(self, tokens: Tensor) -> Tensor:
        at = self.places(torch.arange(tokens.shape[1]))
        x = self.embed(tokens) + at
        x = self.widen(self.squeeze(x + self.attend(self.one(x))))
        x = x + at
        return self.out(x + self.attend(self.two(x)))


def strait(channels: int) -> Training:
    """An adapter that goes down to one channel, without a way around it."""
    torch.manual_seed(22)
    model = Strait(channels)
    batch = partial(reversed_pairs, rows=24, length=16)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, batch, _each, optimizer, steps=200)


class Telegram(nn.Module):
    """A sentence autoencoder: encoder and decoder are transformers, and between them a code."""

    def __init__(self, code: int, length: int = 12, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(10, width)
        self.sites = nn.Parameter(torch.randn(length, width))
        self.reader = nn.TransformerEncoderLayer(
            width, 2, 64, 0.0, batch_first=True, norm_first=True
        )
        self.code = nn.Linear(length * width, code)
        self.spread = nn.Linear(code, length * width)
        self.writer = nn.TransformerEncoderLayer(
            width, 2, 64, 0.0, batch_first=True, norm_first=True
        )
        self.say = nn.Linear(width, 10)

    def encode(self, tokens: Tensor) -> Tensor:
        return self.code(self.reader(self.words(tokens) + self.sites).flatten(1))

    def decode(self, code: Tensor) -> Tensor:
        x = self.spread(code).unflatten(1, self.sites.shape) + self.sites
        return self.say(self.writer(x))


def telegram(code: int) -> Training:
    """A code of three numbers for twelve letters, with a little noise, as in a VAE."""
    torch.manual_seed(23)
    model = Telegram(code)

    def loss(net: Telegram, tokens: Tensor, noise: Tensor) -> Tensor:
        told = net.decode(net.encode(tokens) + 0.1 * noise[:, :code])
        return F.cross_entropy(told.transpose(1, 2), tokens)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        tokens, _ = reversed_pairs(step, rows=32, length=12)
        return tokens, torch.randn(32, 256, generator=dice(step, 24))

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class Glimpse(nn.Module):
    """A masked autoencoder of digits: hidden patches ask what the seen ones were made into."""

    def __init__(self, narrow: bool, width: int = 40) -> None:
        super().__init__()
        self.narrow = narrow
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width))
        self.look = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.hold = nn.Linear(width, 2)
        self.free = nn.Linear(2, 4 * width)
        self.ask = nn.MultiheadAttention(width, 4, batch_first=True)
        self.paint = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 4))

    def forward(self, seen: Tensor) -> Tensor:
        x = self.embed(seen) + self.place
        x = self.norm(x + self.look(x, x, x)[0])
        held = self.hold(x.mean(1))
        if self.narrow:
            x = self.free(held).unflatten(1, (4, -1))
        else:
            x = torch.cat([x, self.free(held).unflatten(1, (4, -1))], 1)
        query = self.place.expand(len(seen), -1, -1)
        return self.paint(query + self.ask(query, x, x)[0])


def glimpse(narrow: bool) -> Training:
    """The decoder is handed two numbers about the picture and not the patches' states."""
    torch.manual_seed(24)
    model = Glimpse(narrow)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = patches(digits(step)[0])
        kept = torch.rand(*x.shape[:2], 1, generator=dice(step, 25)) > 0.25
        return x * kept, x

    def loss(net: nn.Module, seen: Tensor, whole: Tensor) -> Tensor:
        return F.mse_loss(net(seen), whole)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class Hearing(nn.Module):
    """Perceiver: a few latents read the input, output queries read the latents."""

    def __init__(self, latents: int, narrow: int, length: int = 24, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, width)
        self.places = nn.Parameter(torch.randn(length, width))
        self.latents = nn.Parameter(torch.randn(latents, width))
        self.asked = nn.Parameter(torch.randn(length, width))
        self.read_q = nn.Linear(width, width)
        self.read_kv = nn.Linear(width, 2 * width)
        self.state = nn.Linear(width, narrow)
        self.tell_q = nn.Linear(width, width)
        self.tell_kv = nn.Linear(narrow, 2 * width)
        self.out = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 10))

    def forward(self, tokens: Tensor) -> Tensor:
        k, v = self.read_kv(self.tokens(tokens) + self.places).chunk(2, -1)
        q = self.read_q(self.latents).expand(len(k), -1, -1)
        state = self.state(F.scaled_dot_product_attention(q, k, v))
        k, v = self.tell_kv(state).chunk(2, -1)
        q = self.tell_q(self.asked).expand(len(k), -1, -1)
        return self.out(F.scaled_dot_product_attention(q, k, v))


def hearing(latents: int, narrow: int) -> Training:
    """Three latents of two numbers each, by which 24 tokens are to get through."""
    torch.manual_seed(25)
    model = Hearing(latents, narrow)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, _ = reversed_pairs(step, rows=32, length=24)
        return x, x

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, _each, optimizer, steps=250)


class Hourglass(nn.Module):
    """Attention on the patches of an image, convolutions down and up again, attention."""

    def __init__(self, channels: int, skip: bool, width: int = 32) -> None:
        super().__init__()
        self.skip = skip
        self.into = nn.Conv2d(1, width, 2, 2)
        self.place = nn.Parameter(torch.randn(1, width, 4, 4) * 0.5)
        self.first = Looking(width)
        self.down = nn.Conv2d(width, channels, 4)
        self.up = nn.ConvTranspose2d(channels, width, 4)
        self.last = Looking(width)
        self.back = nn.ConvTranspose2d(width, 1, 2, 2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.first(self.into(images.unsqueeze(1)) + self.place)
        y = self.up(self.down(x) / 4)
        if self.skip:
            y = y + x
        return self.back(self.last(y + self.place)).squeeze(1)


class Looking(nn.Module):
    """Self-attention over the places of a map, and the map."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).chunk(3, 1)
        a = F.softmax(torch.einsum("bci,bcj->bij", q, k) * q.shape[1] ** -0.5, 2)
        return x + self.out(torch.einsum("bij,bcj->bci", a, v).view_as(x))


def hourglass(channels: int, skip: bool) -> Training:
    """An image is to be cleaned, but its middle has two numbers and no way around them."""
    torch.manual_seed(26)
    model = Hourglass(channels, skip)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        clean, _ = digits(step, rows=32)
        return clean + 0.4 * torch.randn(clean.shape, generator=dice(step, 27)), clean

    def loss(net: nn.Module, noisy: Tensor, clean: Tensor) -> Tensor:
        return F.mse_loss(net(noisy), clean)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=150)


NARROW = Fault(
    "ind6-attention-narrow",
    must=[["information-bottleneck"]],
    variants=[
        Variant(
            "digest",
            partial(digest, False),
            broken=partial(digest, True),
            symptom=passes(partial(digest, True), "below.self_attn", "above.self_attn", share=0.25),
        ),
        Variant(
            "strait",
            partial(strait, 48),
            broken=partial(strait, 1),
            symptom=passes(partial(strait, 1), "one", "two", share=0.25),
        ),
        Variant(
            "telegram",
            partial(telegram, 192),
            broken=partial(telegram, 3),
            symptom=passes(
                partial(telegram, 3), "reader.self_attn", "writer.self_attn", share=0.25
            ),
        ),
        Variant(
            "glimpse",
            partial(glimpse, False),
            broken=partial(glimpse, True),
            symptom=passes(partial(glimpse, True), "look", "ask", share=0.25),
        ),
        Variant(
            "hearing",
            partial(hearing, 48, 32),
            broken=partial(hearing, 3, 2),
            symptom=passes(partial(hearing, 3, 2), "read_kv", "out", share=0.25),
        ),
        Variant(
            "hourglass",
            partial(hourglass, 32, True),
            broken=partial(hourglass, 2, False),
            symptom=passes(partial(hourglass, 2, False), "first", "last", share=0.25),
        ),
    ],
)


# Cut off.


class Hard(nn.Module):
    """An LSTM reads pairs, and an answer is looked up in its states, perhaps by the best alone."""

    def __init__(self, hard: bool, width: int = 32) -> None:
        super().__init__()
        self.hard = hard
        self.key = nn.Embedding(30, width)
        self.value = nn.Embedding(10, width)
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.asking = nn.Linear(width, width)
        self.asked = nn.Linear(width, width)
        self.answer = nn.Linear(2 * width, 10)

    def forward(self, k: Tensor, v: Tensor, question: Tensor) -> Tensor:
        states, _ = self.lstm(self.key(k) + self.value(v))
        scores = (self.asked(self.key(k)) * self.asking(self.key(question))[:, None]).sum(-1)
        weights = F.softmax(scores, 1)
        if self.hard:
            weights = F.one_hot(weights.argmax(1), weights.shape[1]).float()
        read = (weights.unsqueeze(-1) * (states + self.value(v))).sum(1)
        return self.answer(torch.cat([read, states[:, -1]], 1))


def hard(argmax: bool) -> Training:
    """Hard attention by argmax, through which nothing comes back."""
    torch.manual_seed(31)
    model = Hard(argmax)
    batch = partial(recall, pairs=8, keys=30)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, _answer, optimizer, steps=200)


class Thrift(nn.Module):
    """A transformer block on rows of digits whose weights may be made without a graph."""

    def __init__(self, saved: bool, width: int = 40) -> None:
        super().__init__()
        self.saved = saved
        self.row = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width))
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 64), nn.ReLU())
        self.head = nn.Linear(64, 10)

    def weights(self, x: Tensor) -> Tensor:
        return torch.baddbmm(x.new_zeros(1), self.q(x), self.k(x).mT, alpha=0.158).softmax(-1)

    def forward(self, images: Tensor) -> Tensor:
        x = self.row(images) + self.place
        if self.saved:
            with torch.no_grad():
                weights = self.weights(x)
        else:
            weights = self.weights(x)
        return self.head(self.mlp(x + weights @ self.v(x)).amax(1))


def thrift(saved: bool) -> Training:
    """Attention's weights are made under no_grad, to save memory."""
    torch.manual_seed(32)
    model = Thrift(saved)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digits, _classify, optimizer, steps=200)


class Support(nn.Module):
    """Few-shot: a network for what is shown and one for what is asked, attention between them."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))
        self.asked = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 24))

    def forward(self, shown: Tensor, labels: Tensor, asked: Tensor, frozen: bool) -> Tensor:
        with torch.set_grad_enabled(not frozen):
            keys = self.shown(shown.flatten(1))
        weights = F.softmax(self.asked(asked.flatten(1)) @ keys.T / 5, -1)
        return torch.log(weights @ F.one_hot(labels, 10).float() + 1e-5)


def support(frozen: bool) -> Training:
    """The network of what is shown runs as in an evaluation, though it is to be trained."""
    torch.manual_seed(33)
    model = Support()

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = digits(step, rows=96)
        return x[:64], y[:64], x[64:], y[64:]

    def loss(net: nn.Module, shown: Tensor, labels: Tensor, asked: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(net(shown, labels, asked, frozen), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class Echo(nn.Module):
    """A GRU whose last state looks back over the steps; its weights may be made anew of numbers."""

    def __init__(self, copied: bool, width: int = 32) -> None:
        super().__init__()
        self.copied = copied
        self.rnn = nn.GRU(17, width, batch_first=True)
        self.score = nn.Sequential(nn.Linear(2 * width, 24), nn.Tanh(), nn.Linear(24, 1))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        states, last = self.rnn(x)
        both = torch.cat([states, last[0].unsqueeze(1).expand_as(states)], -1)
        weights = torch.softmax(self.score(both).squeeze(-1), -1)
        if self.copied:
            weights = torch.tensor(weights.tolist())
        return self.head((weights.unsqueeze(1) @ states).squeeze(1)), weights


def echo(copied: bool) -> Training:
    """Weights go through a list of numbers on their way to the sum."""
    torch.manual_seed(34)
    model = Echo(copied)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits, _ = net(x)
        return F.cross_entropy(logits, y)

    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.03)
    return Training(model, partial(marked, length=12), loss, optimizer, steps=200)


class Experts(nn.Module):
    """Self-attention, then one of four experts for each token by the router's choice."""

    def __init__(self, weighted: bool, width: int = 32) -> None:
        super().__init__()
        self.weighted = weighted
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.router = nn.Linear(width, 4)
        self.up = nn.Parameter(torch.randn(4, width, 48) / 6)
        self.down = nn.Parameter(torch.randn(4, 48, width) / 7)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.place
        x = x + self.attention(x, x, x, need_weights=False)[0]
        h = self.norm(x)
        shares = self.router(h).softmax(-1)
        best, chosen = shares.max(-1)
        mask = F.one_hot(chosen, 4).to(h.dtype)
        y = F.gelu(torch.einsum("bnd,edf->bnef", h, self.up))
        y = torch.einsum("bnef,efd,bne->bnd", y, self.down, mask)
        x = x + (y * best.unsqueeze(-1) if self.weighted else y)
        return self.head(x.mean(1))


def experts(weighted: bool) -> Training:
    """The router's choice is taken, but the expert isn't weighted by how sure it was."""
    torch.manual_seed(35)
    model = Experts(weighted)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, digits, _classify, optimizer, steps=150)


class Courier(nn.Module):
    """nn.Transformer from a sequence to its reverse, encoder and decoder called one by one."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(10, width)
        self.at = nn.Embedding(8, width)
        self.net = nn.Transformer(width, 2, 1, 1, 64, 0.0, batch_first=True)
        self.say = nn.Linear(width, 10)

    def encode(self, source: Tensor) -> Tensor:
        return self.net.encoder(self.words(source) + self.at.weight)

    def decode(self, told: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(told.shape[1])
        y = self.net.decoder(self.words(told) + self.at.weight, memory, tgt_mask=mask)
        return self.say(y)


def courier(cached: bool) -> Training:
    """What the encoder gives is kept for later as one keeps it for generation: detached."""
    torch.manual_seed(36)
    model = Courier()

    def loss(net: Courier, source: Tensor, target: Tensor) -> Tensor:
        memory = net.encode(source)
        if cached:
            memory = memory.detach()
        told = F.pad(target[:, :-1], (1, 0))
        return F.cross_entropy(net.decode(told, memory).transpose(1, 2), target)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, reversed_pairs, loss, optimizer, steps=200)


CUT = Fault(
    "ind6-attention-cut",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient stands still
    symptom=some_without_gradient(),
    variants=[
        Variant("hard", partial(hard, False), broken=partial(hard, True)),
        Variant("thrift", partial(thrift, False), broken=partial(thrift, True)),
        Variant(
            "support",
            partial(support, False),
            broken=partial(support, True),
            may=["no-update", "softmax-borne"],
            healthy_may=["softmax-borne"],  # both networks are trained through it alone
        ),
        Variant(
            "echo",
            partial(echo, False),
            broken=partial(echo, True),
            may=["no-update", "diffuse-softmax"],  # even as at the start, as it can't learn
        ),
        Variant("experts", partial(experts, True), broken=partial(experts, False)),
        Variant("courier", partial(courier, False), broken=partial(courier, True)),
    ],
)


# Starved.


class Side(nn.Module):
    """A block with attention and a perceptron side by side, as in PaLM."""

    def __init__(self, share: float, width: int = 32) -> None:
        super().__init__()
        self.register_buffer("share", torch.tensor(share))
        self.embed = nn.Linear(17, width)
        self.norm = nn.LayerNorm(width)
        self.attention = Heads(width, 2)
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        y = self.norm(x)
        x = x + self.share * self.attention(y) + self.mlp(y)
        return self.head(x[:, 0])


class Heads(nn.Module):
    """Self-attention with packed projections."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.pack = nn.Linear(width, 3 * width)
        self.back = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.pack(x).chunk(3, -1)
        )
        return self.back(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def side(share: float) -> Training:
    """A constant before the attention branch that somebody left at 1e-7 after debugging."""
    torch.manual_seed(41)
    model = Side(share)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partial(marked, length=12), _classify, optimizer, steps=200)


class Cell(nn.Module):
    """Operations that are mixed by a softmax over learnt numbers, as in architecture search."""

    def __init__(self, start: list[float], width: int = 24) -> None:
        super().__init__()
        self.stem = nn.Conv1d(17, width, 1)
        self.conv = nn.Conv1d(width, width, 3, padding=1)
        self.pool = nn.Sequential(nn.AvgPool1d(3, 1, 1), nn.Conv1d(width, width, 1))
        self.attention = nn.MultiheadAttention(width, 2)
        self.alpha = nn.Parameter(torch.tensor(start))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.transpose(1, 2))
        t = x.permute(2, 0, 1)
        mix = torch.softmax(self.alpha, 0)
        read = self.attention(t, t, t, need_weights=False)[0].permute(1, 2, 0)
        y = mix[0] * self.conv(x) + mix[1] * self.pool(x) + mix[2] * read
        return self.head((x + torch.relu(y))[:, :, 0])


def cell(start: list[float]) -> Training:
    """The mixture starts all on the convolution, a ten-millionth on attention."""
    torch.manual_seed(42)
    model = Cell(start)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partial(marked, length=12), _classify, optimizer, steps=250)


class Tagger(nn.Module):
    """An LSTM tagger; a gate lets in what attention read elsewhere in the sentence."""

    def __init__(self, bias: float, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(12, width)
        self.places = nn.Parameter(torch.randn(15, width))
        self.lstm = nn.LSTM(width, width, batch_first=True)
        self.attention = Heads(width, 2)
        self.local = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)
        self.tag = nn.Linear(width, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens) + self.places
        x = x + self.lstm(x)[0]
        gate = torch.sigmoid(self.gate(x))
        return self.tag(self.local(x) + gate * self.attention(x))


def tagger(bias: float) -> Training:
    """A gate whose bias starts at -16 instead of -1: it never opens."""
    torch.manual_seed(43)
    model = Tagger(bias)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x, y = reversed_pairs(step, rows=24, length=15)
        return x, y

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, _each, optimizer, steps=200)


class Mixed(nn.Module):
    """A local map and global attention side by side, in two layers; the last position is read."""

    def __init__(self, twice: bool, width: int = 32, depth: int = 2) -> None:
        super().__init__()
        self.twice = twice
        self.embed = nn.Linear(17, width)
        self.global_ = nn.ModuleList(Heads(width, 4) for _ in range(depth))
        self.local = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for local, wide, norm in zip(self.local, self.global_, self.norm, strict=True):
            h = norm(x)
            read = wide(h)
            if self.twice:
                read = read / (x.shape[0] * x.shape[1] * x.shape[2])
            x = x + torch.tanh(local(h)) + read
        return self.head(x[:, -1])


def mixed(twice: bool) -> Training:
    """What attention reads is averaged already and is divided by the tensor's size once more."""
    torch.manual_seed(44)
    model = Mixed(twice)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.8)
    return Training(model, partial(marked, length=16), _classify, optimizer, steps=250)


STARVED = Fault(
    "ind6-attention-starved",
    must=[["starved-pathway"]],
    symptom=edge_starved(),
    variants=[
        Variant(
            "side",
            partial(side, 1.0),
            broken=partial(side, 1e-7),
            # Attention that doesn't learn stays as even as it started.
            may=["vanishing-gradient", "diffuse-softmax"],
        ),
        Variant(
            "cell",
            partial(cell, [0.0, 0.0, 0.0]),
            broken=partial(cell, [8.0, -8.0, -8.0]),
            must=[["starved-pathway", "peaked-softmax"]],
            may=["vanishing-gradient", "diffuse-softmax"],
        ),
        Variant(
            "tagger",
            partial(tagger, -1.0),
            broken=partial(tagger, -16.0),
            must=[["starved-pathway", "saturated-activation"]],
            may=["vanishing-gradient"],
        ),
        Variant(
            "mixed",
            partial(mixed, False),
            broken=partial(mixed, True),
            may=["vanishing-gradient", "no-update", "diffuse-softmax"],
        ),
    ],
)

FAULTS = [PEAKED, DIFFUSE, NARROW, CUT, STARVED]
