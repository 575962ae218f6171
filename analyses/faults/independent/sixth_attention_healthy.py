"""Models with attention of all sorts, in which nothing is wrong."""

from __future__ import annotations

import copy
import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_sixth_attention import (
    causal,
    community,
    dice,
    digits,
    marked,
    patches,
    recall,
    repeated,
    reversed_pairs,
    waves,
)
from analyses.faults.training import Training, ordinary


def _classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class Turning(nn.Module):
    """Rotary attention with grouped keys, normalised queries and a causal mask."""

    def __init__(self, width: int, heads: int = 4, groups: int = 2) -> None:
        super().__init__()
        self.heads, self.groups, self.each = heads, groups, width // heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * groups * self.each, bias=False)
        self.q_norm = nn.RMSNorm(self.each)
        self.k_norm = nn.RMSNorm(self.each)
        self.o = nn.Linear(width, width, bias=False)

    def turn(self, x: Tensor) -> Tensor:
        half = self.each // 2
        angle = torch.arange(x.shape[-2])[:, None] / 50.0 ** (torch.arange(half) / half)
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], -1)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, self.each)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.groups, self.each)).permute(2, 0, 3, 1, 4)
        q, k = self.turn(self.q_norm(q)), self.turn(self.k_norm(k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o(y.transpose(1, 2).flatten(2))


class Scribe(nn.Module):
    """A small language model of the present kind: gated perceptrons, tied ends."""

    def __init__(self, vocab: int = 12, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        nn.init.normal_(self.words.weight, std=0.2)
        self.attention = nn.ModuleList(Turning(width) for _ in range(depth))
        self.gate = nn.ModuleList(nn.Linear(width, 96, bias=False) for _ in range(depth))
        self.up = nn.ModuleList(nn.Linear(width, 96, bias=False) for _ in range(depth))
        self.down = nn.ModuleList(nn.Linear(96, width, bias=False) for _ in range(depth))
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(2 * depth + 1))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.words(tokens)
        for i in range(len(self.attention)):
            x = x + self.attention[i](self.norms[2 * i](x))
            y = self.norms[2 * i + 1](x)
            x = x + self.down[i](F.silu(self.gate[i](y)) * self.up[i](y))
        return self.norms[-1](x) @ self.words.weight.T


def scribe() -> Training:
    """Warm-up and cosine, clipping, weight decay."""
    torch.manual_seed(101)
    model = Scribe()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, weight_decay=0.05)
    steps = 250

    def rate(step: int) -> float:
        return min(1.0, (step + 1) / 20) * (0.55 + 0.45 * math.cos(math.pi * step / steps))

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return Training(
        model,
        partial(repeated, half=8),
        loss,
        optimizer,
        steps=steps,
        schedule=torch.optim.lr_scheduler.LambdaLR(optimizer, rate),
        clip=1.0,
    )


def bert() -> Training:
    """The library's masked language model with dropout."""
    torch.manual_seed(102)
    config = BertConfig(
        vocab_size=14,
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=96,
        max_position_embeddings=16,
        hidden_dropout_prob=0.05,
        attention_probs_dropout_prob=0.05,
        initializer_range=0.1,
        type_vocab_size=1,
    )
    model = BertForMaskedLM(config)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        (tokens,) = repeated(step, rows=32, half=6)
        hidden = torch.rand(tokens.shape, generator=dice(step, 51)) < 0.2
        hidden &= ~hidden.roll(6, 1)
        return torch.where(hidden, 13, tokens), torch.where(hidden, tokens, -100)

    def loss(net: nn.Module, seen: Tensor, labels: Tensor) -> Tensor:
        out: Tensor = net(input_ids=seen, labels=labels).loss
        return out

    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class Friends(nn.Module):
    """GATv2 with three heads and a way around each layer."""

    def __init__(self, width: int = 24, heads: int = 3) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(8, width)
        self.left = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.right = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.a = nn.ParameterList(torch.randn(heads, width // heads) * 0.3 for _ in range(2))
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = torch.relu(self.into(x))
        for left, right, a in zip(self.left, self.right, self.a, strict=True):
            mine = left(x).unflatten(-1, (self.heads, -1))
            theirs = right(x).unflatten(-1, (self.heads, -1))
            e = (F.leaky_relu(mine[:, None] + theirs[None], 0.2) * a).sum(-1)
            e = e.masked_fill(~adjacency[..., None], float("-inf"))
            x = x + F.elu(torch.einsum("ijh,jhd->ihd", e.softmax(1), theirs).flatten(1))
        return self.out(x)


def friends() -> Training:
    """Communities in a graph."""
    torch.manual_seed(103)
    model = Friends()

    def loss(net: nn.Module, x: Tensor, adjacency: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(net(x, adjacency), kind)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, community, loss, optimizer, steps=150)


class Flowing(nn.Module):
    """Linear attention: positive features in place of a softmax."""

    def __init__(self, width: int = 40, heads: int = 2, depth: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(4, width)
        self.register_buffer("at", waves(16, width))
        self.mix = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(depth))
        self.back = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 80), nn.GELU(), nn.Linear(80, width)
            )
            for _ in range(depth)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(depth))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.at
        for mix, back, mlp, norm in zip(self.mix, self.back, self.mlp, self.norm, strict=True):
            q, k, v = mix(norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            top = q @ (k.transpose(-1, -2) @ v)
            read = top / (q @ k.sum(-2, keepdim=True).transpose(-1, -2))
            x = x + back(read.transpose(1, 2).flatten(2))
            x = x + mlp(x)
        return self.head(x.mean(1))


def flowing() -> Training:
    """Digits by linear attention."""
    torch.manual_seed(104)
    model = Flowing()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digits, _classify, optimizer, steps=150)


class Crowd(nn.Module):
    """A set transformer: induced points, then a few seeds that pool."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift = nn.Linear(3, width)
        self.points = nn.Parameter(torch.randn(12, width))
        self.gather = nn.MultiheadAttention(width, 2, batch_first=True)
        self.scatter = nn.MultiheadAttention(width, 2, batch_first=True)
        self.seeds = nn.Parameter(torch.randn(8, width))
        self.pool = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.out = nn.Sequential(nn.Linear(8 * width, 48), nn.GELU(), nn.Linear(48, 2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.lift(x)
        points = self.points.expand(len(x), -1, -1)
        h = self.norms[0](points + self.gather(points, x, x)[0])
        x = self.norms[1](x + self.scatter(x, h, h)[0])
        seeds = self.seeds.expand(len(x), -1, -1)
        return self.out(self.pool(seeds, x, x)[0].flatten(1))


def crowd() -> Training:
    """The largest coordinate and the mean length of twenty points."""
    torch.manual_seed(105)
    model = Crowd()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        x = torch.randn(32, 20, 3, generator=dice(step, 52))
        x = x * (0.5 + torch.rand(32, 1, 1, generator=dice(step, 53)))
        return x, torch.stack([x.flatten(1).amax(1), x.norm(dim=-1).mean(1)], 1)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(net(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, batch, loss, optimizer, steps=150)


class Windows(nn.Module):
    """Attention within windows of 2×2, shifted by one in every second layer; relative bias."""

    def __init__(self, width: int = 32, depth: int = 4, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.stem = nn.Conv2d(1, width, 2, 2)
        self.layers = nn.ModuleList(
            nn.ModuleDict(
                {
                    "a": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "o": nn.Linear(width, width),
                    "b": nn.LayerNorm(width),
                    "f": nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)),
                }
            )
            for _ in range(depth)
        )
        self.bias = nn.Parameter(torch.zeros(depth, heads, 4, 4))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.stem(images.unsqueeze(1)).permute(0, 2, 3, 1)
        b, h, w, c = x.shape
        for i, block in enumerate(self.layers):
            layer: Any = block
            y = layer["a"](x)
            y = y.roll((-1, -1), (1, 2)) if i % 2 else y
            y = y.view(b, h // 2, 2, w // 2, 2, c).transpose(2, 3).reshape(-1, 4, c)
            q, k, v = layer["qkv"](y).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            logits = q @ k.mT / math.sqrt(q.shape[-1]) + self.bias[i]
            y = layer["o"]((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))
            y = y.view(b, h // 2, w // 2, 2, 2, c).transpose(2, 3).reshape(b, h, w, c)
            x = x + (y.roll((1, 1), (1, 2)) if i % 2 else y)
            x = x + layer["f"](layer["b"](x))
        return self.head(x.mean((1, 2)))


def windows() -> Training:
    """Digits by shifted windows."""
    torch.manual_seed(106)
    model = Windows()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    return Training(model, digits, _classify, optimizer, steps=150, clip=2.0)


class Pairing(nn.Module):
    """Pictures and captions, each pooled by attention, and a temperature that is learnt."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width))
        self.see = nn.TransformerEncoderLayer(width, 2, 64, 0.0, batch_first=True)
        self.letter = nn.Embedding(20, width)
        self.listen = nn.Linear(width, width)
        self.pool_image = nn.Linear(width, 1)
        self.pool_text = nn.Linear(width, 1)
        self.scale = nn.Parameter(torch.tensor(math.log(10.0)))

    @staticmethod
    def pool(x: Tensor, scores: Tensor) -> Tensor:
        return F.normalize((torch.softmax(scores, 1) * x).sum(1), dim=-1)

    def image(self, images: Tensor) -> Tensor:
        x = self.see(self.patch(patches(images)) + self.place)
        return self.pool(x, self.pool_image(x))

    def text(self, letters: Tensor) -> Tensor:
        x = torch.tanh(self.listen(self.letter(letters)))
        return self.pool(x, self.pool_text(x))


def pairing() -> Training:
    """Contrastive: a caption has three letters, which tell the digit."""
    torch.manual_seed(107)
    model = Pairing()
    spelling = torch.randint(20, (10, 3), generator=dice(0, 54))

    def batch(step: int) -> tuple[Tensor, Tensor, Tensor]:
        images, labels = digits(step, rows=64)
        first = (labels[:, None] == labels[None]).float().argmax(1).unique()
        return images[first], spelling[labels[first]], labels[first]

    def loss(net: Pairing, images: Tensor, letters: Tensor, _: Tensor) -> Tensor:
        logits = net.scale.exp() * net.image(images) @ net.text(letters).T
        at = torch.arange(len(logits))
        return (F.cross_entropy(logits, at) + F.cross_entropy(logits.T, at)) / 2

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, batch, loss, optimizer, steps=200)


class Excited(nn.Module):
    """A convolutional network with squeeze-and-excitation and one non-local block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.squeeze = nn.Sequential(
            nn.Linear(width, 8), nn.SiLU(), nn.Linear(8, width), nn.Sigmoid()
        )
        self.theta = nn.Conv2d(width, 8, 1)
        self.phi = nn.Conv2d(width, 8, 1)
        self.g = nn.Conv2d(width, 8, 1)
        self.back = nn.Conv2d(8, width, 1)
        self.head = nn.Linear(width * 16, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.relu(self.first(images.unsqueeze(1)))
        y = F.relu(self.norm(self.second(x)))
        x = x + y * self.squeeze(y.mean((2, 3)))[..., None, None]
        x = F.max_pool2d(x, 2)
        q, k, v = (m(x).flatten(2).transpose(1, 2) for m in (self.theta, self.phi, self.g))
        read = torch.softmax(q @ k.transpose(1, 2), -1) @ v
        x = x + self.back(read.transpose(1, 2).unflatten(2, x.shape[2:]))
        return self.head(x.flatten(1))


def excited() -> Training:
    """Digits, SGD with Nesterov's momentum."""
    torch.manual_seed(108)
    model = Excited()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9, nesterov=True)
    return Training(model, digits, _classify, optimizer, steps=100)


class Base(nn.Module):
    """A transformer for digits, whose query and value maps may get a low-rank addition."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.5)
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.mlp = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.place
        x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        x = x + self.mlp(F.layer_norm(x, x.shape[-1:]))
        return self.head(x.mean(1))


class LowRank(nn.Module):
    """A frozen linear map and a product of two thin ones, the second of which starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.linear = linear
        self.a = nn.Parameter(torch.randn(rank, linear.in_features) / rank)
        self.b = nn.Parameter(torch.zeros(linear.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + 2 * (x @ self.a.T) @ self.b.T


def adapted() -> Training:
    """Fine-tuning by low rank: the base, trained on digits, is frozen; the pictures are flipped."""
    torch.manual_seed(109)
    base = Base()
    before = torch.optim.Adam(base.parameters(), lr=3e-3)
    for step in range(150):
        loss = _classify(base, *digits(step))
        before.zero_grad()
        loss.backward()
        before.step()
    base.zero_grad()
    base.requires_grad_(False)
    for name in ("q", "v", "o"):
        setattr(base, name, LowRank(getattr(base, name)))
    base.head.requires_grad_(True)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        images, labels = digits(1000 + step)
        return images.flip(2), labels

    trained = [p for p in base.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=5e-3)
    return Training(base, batch, _classify, optimizer, steps=150)


class Notebook(nn.Module):
    """A GRU that reads a memory by content, with a sharpness that it tells itself."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.key = nn.Embedding(30, width)
        self.value = nn.Embedding(10, width)
        self.cell = nn.GRUCell(width, width)
        self.query = nn.Linear(width, width)
        self.beta = nn.Linear(width, 1)
        self.out = nn.Linear(2 * width, 10)

    def forward(self, k: Tensor, v: Tensor, asked: Tensor) -> Tensor:
        keys, values = self.key(k), self.value(v)
        state = self.cell(self.key(asked), self.cell(self.key(asked)))
        close = F.cosine_similarity(self.query(state).unsqueeze(1), keys, dim=-1)
        weights = F.softmax((1 + F.softplus(self.beta(state)) * 5) * close, dim=-1)
        return self.out(torch.cat([torch.einsum("bn,bnd->bd", weights, values), state], -1))


def notebook() -> Training:
    """Looking up a value, by cosine."""
    torch.manual_seed(110)
    model = Notebook()

    def loss(net: nn.Module, k: Tensor, v: Tensor, asked: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(k, v, asked), y)

    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, partial(recall, pairs=8, keys=30), loss, optimizer, steps=200)


class Pointer(nn.Module):
    """A pointer network that puts numbers in order: its attention is its answer."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.number = nn.Linear(1, width)
        self.encoder = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(width, 2 * width)
        self.start = nn.Parameter(torch.zeros(1, 2 * width))
        self.there = nn.Linear(2 * width, width, bias=False)
        self.here = nn.Linear(2 * width, width)

    def forward(self, numbers: Tensor, order: Tensor) -> Tensor:
        states, _ = self.encoder(self.number(numbers.unsqueeze(-1)))
        there = self.there(states)
        h, c = self.start.expand(len(numbers), -1), torch.zeros_like(states[:, 0])
        last = torch.zeros_like(numbers[:, :1])
        scores = []
        for step in range(numbers.shape[1]):
            h, c = self.cell(self.number(last), (h, c))
            scores.append((there @ self.here(h).unsqueeze(2)).squeeze(-1) / 4)
            last = numbers.gather(1, order[:, step : step + 1])
        return torch.stack(scores, 1)


def pointer() -> Training:
    """Six numbers in order."""
    torch.manual_seed(111)
    model = Pointer()

    def batch(step: int) -> tuple[Tensor, Tensor]:
        numbers = torch.rand(32, 6, generator=dice(step, 55)) * 2 - 1
        return numbers, numbers.argsort(1)

    def loss(net: nn.Module, numbers: Tensor, order: Tensor) -> Tensor:
        return F.cross_entropy(net(numbers, order).flatten(0, 1), order.flatten())

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, batch, loss, optimizer, steps=150, clip=2.0)


class Hops(nn.Module):
    """An end-to-end memory network: the question is asked three times over."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.key = nn.Embedding(40, width)
        self.value = nn.Embedding(10, width)
        nn.init.normal_(self.key.weight, std=0.3)
        nn.init.normal_(self.value.weight, std=0.3)
        self.next = nn.Linear(width, width)
        self.answer = nn.Linear(width, 10)

    def forward(self, k: Tensor, v: Tensor, asked: Tensor) -> Tensor:
        keys, values, u = self.key(k), self.value(v), self.key(asked)
        for _ in range(3):
            p = torch.softmax(torch.bmm(keys, u.unsqueeze(2)).squeeze(2), 1)
            u = self.next(u) + torch.bmm(p.unsqueeze(1), values).squeeze(1)
        return self.answer(u)


def hops() -> Training:
    """Looking up a value in hops."""
    torch.manual_seed(112)
    model = Hops()

    def loss(net: nn.Module, k: Tensor, v: Tensor, asked: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(k, v, asked), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, partial(recall, pairs=20, keys=40), loss, optimizer, steps=200, clip=5.0)


class Routed(nn.Module):
    """A causal block whose perceptron is the best two of four, weighted, with a balance loss."""

    def __init__(self, vocab: int = 12, width: int = 40) -> None:
        super().__init__()
        self.words = nn.Embedding(vocab, width)
        self.places = nn.Embedding(16, width)
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(2)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.router = nn.Linear(width, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width)) for _ in range(4)
        )
        self.say = nn.Linear(width, vocab)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        n = tokens.shape[1]
        x = self.words(tokens) + self.places(torch.arange(n))
        for attention, norm in zip(self.attention, self.norms[:2], strict=True):
            y = norm(x)
            x = x + attention(y, y, y, attn_mask=~causal(n), need_weights=False)[0]
        y = self.norms[2](x)
        shares = torch.softmax(self.router(y), -1)
        best, chosen = shares.topk(2, -1)
        weights = torch.zeros_like(shares).scatter(-1, chosen, best / best.sum(-1, keepdim=True))
        x = x + sum(
            w.unsqueeze(-1) * e(y) for w, e in zip(weights.unbind(-1), self.experts, strict=True)
        )
        used = (weights > 0).float().mean((0, 1))
        return self.say(x), 4 * (used * shares.mean((0, 1))).sum()


def routed() -> Training:
    """Second halves that repeat the first, by a mixture of experts."""
    torch.manual_seed(113)
    model = Routed()

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        logits, balance = net(tokens[:, :-1])
        half = tokens.shape[1] // 2
        told = F.cross_entropy(logits[:, half - 1 :].transpose(1, 2), tokens[:, half:])
        return told + 0.01 * balance

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, partial(repeated, half=6), loss, optimizer, steps=150)


class Pooled(nn.Module):
    """A GRU whose states are pooled by several learnt queries."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.rnn = nn.GRU(17, width, batch_first=True, bidirectional=True)
        self.queries = nn.Parameter(torch.randn(2 * width, 3) * 0.2)
        self.head = nn.Linear(6 * width, 4)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        weights = torch.softmax(states @ self.queries, dim=1)
        return self.head(torch.einsum("btk,btd->bkd", weights, states).flatten(1))


class WithTeacher(nn.Module):
    """A pupil, and a teacher that follows it slowly and isn't trained."""

    def __init__(self) -> None:
        super().__init__()
        self.pupil = Pooled()
        self.teacher = copy.deepcopy(self.pupil).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            told = self.teacher(x)
        return self.pupil(x), told


def teacher() -> Training:
    """Labels, and agreement with the mean of the past; the teacher is moved by hand."""
    torch.manual_seed(114)
    model = WithTeacher()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        mine, told = net(x)
        return F.cross_entropy(mine, y) + 0.1 * F.mse_loss(mine.softmax(-1), told.softmax(-1))

    def step(training: Training, at: int) -> dict[str, Any]:
        logged = ordinary(training, at)
        with torch.no_grad():
            for slow, fast in zip(
                model.teacher.parameters(), model.pupil.parameters(), strict=True
            ):
                slow.lerp_(fast, 0.05)
        return logged

    optimizer = torch.optim.Adam(model.pupil.parameters(), lr=5e-3)
    batch = partial(marked, length=12)
    return Training(model, batch, loss, optimizer, steps=200, step=step)


class Herald(nn.Module):
    """An encoder and decoder by nn.Transformer, with sines for the places."""

    at: Tensor

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.words = nn.Embedding(10, width)
        self.register_buffer("at", waves(10, width))
        self.net = nn.Transformer(width, 4, 2, 2, 80, 0.0, batch_first=True, activation="gelu")
        self.say = nn.Linear(width, 10)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        told = F.pad(target[:, :-1], (1, 0))
        mask = ~causal(told.shape[1])
        return self.say(
            self.net(
                self.words(source) + self.at[: source.shape[1]],
                self.words(told) + self.at[: told.shape[1]],
                tgt_mask=mask,
            )
        )


def _several(training: Training, at: int) -> dict[str, Any]:
    loss = training.loss_at(at)
    loss.backward()
    for optimizer in (training.optimizer, *training.others):
        optimizer.step()
        optimizer.zero_grad()
    return {"loss": loss.detach()}


def herald() -> Training:
    """Words by Adagrad, everything else by AdamW; labels are smoothed."""
    torch.manual_seed(115)
    model = Herald()

    def loss(net: nn.Module, source: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(source, target).transpose(1, 2), target, label_smoothing=0.05)

    rest = [p for n, p in model.named_parameters() if not n.startswith("words")]
    return Training(
        model,
        reversed_pairs,
        loss,
        torch.optim.AdamW(rest, lr=2e-3),
        steps=120,
        step=_several,
        others=[torch.optim.Adagrad(model.words.parameters(), lr=0.05)],
    )


MODELS = Healthy(
    "ind6-attention-sound",
    runs={
        "scribe": scribe,
        "bert": bert,
        "friends": friends,
        "flowing": flowing,
        "crowd": crowd,
        "windows": windows,
        "pairing": pairing,
        "excited": excited,
        "adapted": adapted,
        "notebook": notebook,
        "pointer": pointer,
        "hops": hops,
        "routed": routed,
        "teacher": teacher,
        "herald": herald,
    },
    may={
        # One vector of 32 numbers goes from hop to hop, between attention over 20 × 32: built so.
        "hops": ["information-bottleneck"],
    },
)

THEMES = [MODELS]
