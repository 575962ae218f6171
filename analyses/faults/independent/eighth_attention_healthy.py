"""Models with attention that train as they should."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_eighth_attention import (
    ce,
    dice,
    digits,
    join,
    patches,
    recall,
    reversal,
    split,
)
from analyses.faults.training import Batch, Training


def sentences(step: int) -> Batch:
    """Brackets of three kinds, well nested, with letters in between."""
    g = dice(step, 21)
    rows = []
    for _ in range(24):
        row: list[int] = []
        stack: list[int] = []
        draws = torch.rand(32, 2, generator=g).tolist()
        for a, b in draws:
            if stack and (a < 0.35 or len(stack) > 3):
                row.append(stack.pop() + 3)
            elif a < 0.7:
                stack.append(int(b * 3))
                row.append(stack[-1])
            else:
                row.append(6 + (row[-1] if row else 0) % 6)
        rows.append(row)
    return (torch.tensor(rows),)


class Causal(nn.Module):
    """One block of a small language model."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (split(t, self.heads) for t in self.c_attn(self.ln_1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(join(y))
        return x + self.mlp(self.ln_2(x))


class CharModel(nn.Module):
    """A language model with tied embeddings."""

    def __init__(self, width: int = 48, depth: int = 3) -> None:
        super().__init__()
        self.wte = nn.Embedding(12, width)
        self.wpe = nn.Embedding(32, width)
        self.h = nn.Sequential(*(Causal(width, 4) for _ in range(depth)))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, 12, bias=False)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.05)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        return self.lm_head(self.ln_f(self.h(x)))


def next_token(model: nn.Module, ids: Tensor) -> Tensor:
    """Cross-entropy of what comes next."""
    return F.cross_entropy(model(ids)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def char_model() -> Training:
    torch.manual_seed(71)
    model = CharModel()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
        lr=3e-3,
        betas=(0.9, 0.95),
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda i: min((i + 1) / 20, 0.5 + 0.5 * math.cos(math.pi * i / 150))
    )
    return Training(model, sentences, next_token, optimizer, steps=150, schedule=schedule, clip=1.0)


class SmallViT(nn.Module):
    """A class token, the library's pre-norm encoder, dropout."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.proj = nn.Conv2d(1, width, 2, stride=2)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 96, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.proj(images[:, None]).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls.expand(len(x), -1, -1), x], 1) + self.pos
        return self.head(self.encoder(x)[:, 0])


def small_vit() -> Training:
    torch.manual_seed(72)
    model = SmallViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    return Training(model, digits(48), ce, optimizer, steps=150)


class Library(nn.Module):
    """A library model as it comes; returns its own loss."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, **given: Tensor) -> Tensor:
        found: Tensor = self.net(**given).loss
        return found


def llama() -> Training:
    torch.manual_seed(73)
    config = LlamaConfig(
        vocab_size=12,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
        initializer_range=0.1,
    )
    model = Library(LlamaForCausalLM(config))

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        found: Tensor = model(input_ids=ids, labels=ids)
        return found

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, sentences, loss, optimizer, steps=120)


def t5() -> Training:
    torch.manual_seed(74)
    config = T5Config(
        vocab_size=12,
        d_model=32,
        d_kv=16,
        d_ff=64,
        num_layers=2,
        num_heads=2,
        dropout_rate=0.0,
        decoder_start_token_id=11,
        pad_token_id=11,
        relative_attention_num_buckets=16,
        relative_attention_max_distance=24,
    )
    model = Library(T5ForConditionalGeneration(config))

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        found: Tensor = model(input_ids=x, labels=y)
        return found

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, reversal(8), loss, optimizer, steps=200)


class Seq2Seq(nn.Module):
    """nn.Transformer with sines for places."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.width = width
        self.src = nn.Embedding(9, width)
        self.tgt = nn.Embedding(9, width)
        self.core = nn.Transformer(
            width, 4, 2, 2, dim_feedforward=96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.out = nn.Linear(width, 8)
        angle = torch.arange(16)[:, None] / 20 ** (torch.arange(0, width, 2) / width)
        self.register_buffer("sines", torch.stack([angle.sin(), angle.cos()], -1).flatten(1))

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        places = self.get_buffer("sines")[: x.shape[1]]
        mask = nn.Transformer.generate_square_subsequent_mask(given.shape[1])
        return self.out(self.core(self.src(x) + places, self.tgt(given) + places, tgt_mask=mask))


def seq2seq_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Teacher forcing with smoothed labels."""
    logits = model(x, F.pad(y[:, :-1], (1, 0), value=8))
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), label_smoothing=0.05)


def seq2seq() -> Training:
    torch.manual_seed(75)
    model = Seq2Seq()
    optimizer = torch.optim.Adam(model.parameters(), lr=1.5e-3, betas=(0.9, 0.98), eps=1e-9)
    return Training(model, reversal(10), seq2seq_loss, optimizer, steps=200)


class Recurrent(nn.Module):
    """A recurrent encoder, and a recurrent decoder that attends to it additively."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.from_state = nn.Linear(width, width)
        self.from_memory = nn.Linear(width, width, bias=False)
        self.energy = nn.Linear(width, 1, bias=False)
        self.cell = nn.GRUCell(2 * width, width)
        self.out = nn.Linear(2 * width, 8)

    def forward(self, x: Tensor, given: Tensor) -> Tensor:
        memory, last = self.encoder(self.embed(x))
        h, seen = last[0], self.from_memory(memory)
        answers = []
        for token in self.embed(given).unbind(1):
            scores = self.energy(torch.tanh(self.from_state(h)[:, None] + seen)).squeeze(-1)
            context = torch.bmm(scores.softmax(-1)[:, None], memory).squeeze(1)
            h = self.cell(torch.cat([token, context], -1), h)
            answers.append(self.out(torch.cat([h, context], -1)))
        return torch.stack(answers, 1)


def recurrent() -> Training:
    torch.manual_seed(76)
    model = Recurrent()
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, reversal(8), seq2seq_loss, optimizer, steps=250, clip=5.0)


class TwoTowers(nn.Module):
    """Two views of an image, brought together by a contrast with a learned temperature."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.2)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.rows = nn.GRU(8, width, batch_first=True)
        self.project = nn.ModuleDict({"a": nn.Linear(width, 24), "b": nn.Linear(width, 24)})
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.2)))

    def look(self, images: Tensor) -> Tensor:
        x = self.patch(patches(images)) + self.place
        x = self.norm(x + self.attend(x, x, x)[0])
        return F.normalize(self.project["a"](x.mean(1)), dim=-1)

    def scan(self, images: Tensor) -> Tensor:
        return F.normalize(self.project["b"](self.rows(images)[0][:, -1]), dim=-1)


def contrast(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Both directions of the contrast."""
    assert isinstance(model, TwoTowers)
    logits = model.look(images) @ model.scan(images).T * model.log_scale.exp()
    own = torch.arange(len(images))
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def two_towers() -> Training:
    torch.manual_seed(77)
    model = TwoTowers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, digits(48), contrast, optimizer, steps=200)


class SetModel(nn.Module):
    """Attention in a set, then pooling by a learned seed."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift = nn.Linear(2, width)
        self.qkv = nn.Linear(width, 3 * width)
        self.mix = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.seed = nn.Parameter(torch.randn(width) * 0.3)
        self.pool_k = nn.Linear(width, width)
        self.out = nn.Sequential(nn.Linear(width, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, points: Tensor) -> Tensor:
        x = self.lift(points)
        q, k, v = (split(t, 4) for t in self.qkv(x).chunk(3, -1))
        x = x + join((q @ k.mT / math.sqrt(8)).softmax(-1) @ v)
        x = x + self.mix(x)
        weights = torch.softmax(self.pool_k(x) @ self.seed / math.sqrt(32), 1)
        return self.out(torch.einsum("bn,bnd->bd", weights, x))


def point_sets(step: int) -> Batch:
    """Points → the largest of each coordinate."""
    x = torch.randn(64, 10, 2, generator=dice(step, 22))
    return x, x.amax(1)


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def set_model() -> Training:
    torch.manual_seed(78)
    model = SetModel()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, point_sets, squared, optimizer, steps=250)


class SelfAttentionNet(nn.Module):
    """Convolutions, and attention over all places with a factor that starts at zero."""

    def __init__(self, channels: int = 24) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels))
        self.f = nn.Conv2d(channels, 8, 1)
        self.g = nn.Conv2d(channels, 8, 1)
        self.h = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))
        self.down = nn.Conv2d(channels, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(images[:, None]), 0.1)
        f, g, h = (m(x).flatten(2) for m in (self.f, self.g, self.h))
        attended = (h @ (f.mT @ g).softmax(1)).view_as(x)
        x = x + self.gamma * attended
        return self.head(F.leaky_relu(self.down(x), 0.1).mean((2, 3)))


def self_attention_net() -> Training:
    torch.manual_seed(79)
    model = SelfAttentionNet()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, digits(32), ce, optimizer, steps=150)


class Review(nn.Module):
    """A two-way LSTM over padded words, pooled by attention that leaves the padding out."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.words = nn.Embedding(40, width, padding_idx=0)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.score = nn.Sequential(nn.Linear(2 * width, 16), nn.Tanh(), nn.Linear(16, 1))
        self.drop = nn.Dropout(0.1)
        self.out = nn.Linear(2 * width, 2)

    def forward(self, ids: Tensor) -> Tensor:
        states, _ = self.lstm(self.words(ids))
        scores = self.score(states).squeeze(-1).masked_fill(ids == 0, float("-inf"))
        pooled = (scores.softmax(-1)[..., None] * states).sum(1)
        return self.out(self.drop(pooled))


def reviews(step: int) -> Batch:
    """Good and bad words, some negated, among others; how does it end up?"""
    g = dice(step, 23)
    ids = torch.randint(10, 40, (48, 14), generator=g)
    opinion = torch.randint(1, 9, (48,), generator=g)
    length = torch.randint(6, 15, (48,), generator=g)
    at = (torch.rand(48, generator=g) * (length - 1)).long() + 1
    negated = torch.rand(48, generator=g) < 0.3
    row = torch.arange(48)
    ids[row, at] = opinion
    ids[row[negated], at[negated] - 1] = 9
    ids[torch.arange(14) >= length[:, None]] = 0
    return ids, (opinion > 4).long() ^ negated.long()


def review() -> Training:
    torch.manual_seed(80)
    model = Review()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, reviews, ce, optimizer, steps=250)


class Latents(nn.Module):
    """Latents that read all pixels, think, and answer."""

    def __init__(self, width: int = 32, latents: int = 12) -> None:
        super().__init__()
        self.pixel = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(64, width) * 0.5)
        self.latents = nn.Parameter(torch.randn(latents, width) * 0.5)
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.norm = nn.LayerNorm(width)
        self.think = nn.TransformerEncoderLayer(width, 4, 64, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.pixel(images.flatten(1)[..., None]) + self.place
        k, v = (split(t, 2) for t in self.kv(x).chunk(2, -1))
        z = self.latents.expand(len(x), -1, -1)
        read = F.scaled_dot_product_attention(split(self.q(self.norm(z)), 2), k, v)
        return self.head(self.think(z + join(read)).mean(1))


def latents() -> Training:
    torch.manual_seed(81)
    model = Latents()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, digits(48), ce, optimizer, steps=200)


class Citation(nn.Module):
    """Two rounds of graph attention with heads, for the class of every node."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.w1 = nn.Linear(8, width * heads, bias=False)
        self.a1 = nn.Parameter(torch.randn(2, heads, width) * 0.2)
        self.w2 = nn.Linear(width * heads, 3 * heads, bias=False)
        self.a2 = nn.Parameter(torch.randn(2, heads, 3) * 0.2)
        self.skip = nn.Linear(8, 3)

    @staticmethod
    def attend(z: Tensor, a: Tensor, linked: Tensor) -> Tensor:
        left, right = (z * a[0]).sum(-1).transpose(1, 2), (z * a[1]).sum(-1).transpose(1, 2)
        e = F.leaky_relu(left[..., :, None] + right[..., None, :], 0.2)
        alpha = e.masked_fill(~linked[:, None], -1e9).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", alpha, z)

    def forward(self, nodes: Tensor, linked: Tensor) -> Tensor:
        z = self.w1(nodes).unflatten(-1, (self.heads, -1))
        h = F.elu(self.attend(z, self.a1, linked).flatten(2))
        y = self.w2(h).unflatten(-1, (self.heads, 3))
        return self.attend(y, self.a2, linked).mean(2) + self.skip(nodes)


def communities(step: int) -> Batch:
    """Nodes of three groups, linked mostly within them, with noisy features."""
    g = dice(step, 24)
    label = torch.randint(3, (12, 24), generator=g)
    same = label[:, :, None] == label[:, None, :]
    linked = torch.rand(12, 24, 24, generator=g) < torch.where(same, 0.35, 0.05)
    linked = linked | linked.mT | torch.eye(24).bool()
    x = torch.randn(12, 24, 8, generator=g) * 1.2
    x[..., :3] += F.one_hot(label, 3)
    return x, linked, label


def citation() -> Training:
    torch.manual_seed(82)
    model = Citation()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3, weight_decay=5e-4)
    return Training(model, communities, ce, optimizer, steps=200)


class Experts(nn.Module):
    """Retrieval by attention, whose result goes to experts that a gate weighs."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(40, width), nn.Embedding(10, width)
        self.attend = nn.MultiheadAttention(width, 1, batch_first=True)
        self.gate = nn.Linear(width, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, width)) for _ in range(4)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> dict[str, Tensor]:
        pairs = self.key(keys) + self.value(values)
        x = torch.cat([pairs, self.key(asked)[:, None]], 1)
        y = (x + self.attend(x, x, x, need_weights=False)[0])[:, -1]
        weights = self.gate(y).softmax(-1)
        mixed = torch.stack([e(y) for e in self.experts], -1) @ weights[..., None]
        return {"logits": self.head(y + mixed.squeeze(-1)), "weights": weights}


def experts_loss(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross-entropy, and a term that keeps the experts in balance."""
    out: dict[str, Any] = model(*batch[:-1])
    balance = 4 * out["weights"].mean(0).square().sum() - 1
    return F.cross_entropy(out["logits"], batch[-1]) + 0.01 * balance


def experts() -> Training:
    torch.manual_seed(83)
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall(8), experts_loss, optimizer, steps=250)


LANGUAGE = Healthy(
    "ind8-attention-healthy-language",
    runs={
        "char-model": char_model,
        "llama": llama,
        "t5": t5,
        "seq2seq": seq2seq,
        "recurrent-with-attention": recurrent,
        "review": review,
    },
    # The decoder's steps look at the same memory one query at a time; only the state of 40 goes
    # from one look to the next: the structure of all such decoders.
    may={"recurrent-with-attention": ["information-bottleneck"]},
)

VISION = Healthy(
    "ind8-attention-healthy-vision",
    runs={
        "vit": small_vit,
        "two-towers": two_towers,
        "factor-from-zero": self_attention_net,
        "latents": latents,
    },
    # Twelve latents of 32 carry on what was read from 64 pixels of 32: narrow on purpose.
    may={"latents": ["information-bottleneck"]},
)

SETS = Healthy(
    "ind8-attention-healthy-sets",
    runs={"set-model": set_model, "citation": citation, "experts": experts},
)

THEMES = [LANGUAGE, VISION, SETS]
