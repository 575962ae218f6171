"""Attention of many kinds that learns as it should."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_attention import (
    LETTERS,
    cross_entropy,
    dice,
    digit_batches,
    events,
    grids,
    made_up_text,
    mlp,
    strings,
)
from analyses.faults.training import Batch, Training


def heads(x: Tensor, number: int) -> Tensor:
    """(B, T, D) → (B, heads, T, D / heads)."""
    return x.unflatten(-1, (number, -1)).transpose(1, 2)


def class_loss(model: nn.Module, *given: Tensor) -> Tensor:
    """Cross-entropy; the classes come last."""
    return F.cross_entropy(model(*given[:-1]), given[-1])


def own_loss(model: nn.Module, *given: Tensor) -> Tensor:
    """Of a model that gives its loss itself."""
    return model(*given)


def text_loss(model: nn.Module, x: Tensor) -> Tensor:
    return cross_entropy(model(x[:, :-1]), x[:, 1:])


# --- PyTorch's encoder, padded batches ------------------------------------------------------


class PaddedEncoder(nn.Module):
    """Which of two tokens is there more often, in sentences of different lengths?"""

    def __init__(self, tokens: int, length: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, dim, padding_idx=0)
        self.position = nn.Parameter(0.1 * torch.randn(length, dim))
        layer = nn.TransformerEncoderLayer(
            dim, 4, 2 * dim, dropout=0.1, batch_first=True, norm_first=True, activation="gelu"
        )
        self.encoder = nn.TransformerEncoder(
            layer, 3, norm=nn.LayerNorm(dim), enable_nested_tensor=False
        )
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        y = self.encoder(self.tokens(x) + self.position, src_key_padding_mask=padding)
        there = (~padding).float()[..., None]
        return self.head((y * there).sum(1) / there.sum(1))


def _sentences(step: int) -> Batch:
    g = dice(step, 61)
    x = torch.randint(1, 9, (48, 20), generator=g)
    length = torch.randint(8, 21, (48,), generator=g)
    x = x * (torch.arange(20) < length[:, None])
    return x, ((x == 1).sum(1) > (x == 2).sum(1)).long()


def padded_encoder() -> Training:
    torch.manual_seed(61)
    model = PaddedEncoder(9, 20, 48)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, _warm)
    return Training(model, _sentences, class_loss, optimizer, steps=240, schedule=warmup)


def _warm(step: int) -> float:
    return min(1.0, (step + 1) / 30)


# --- causal decoder, rotary positions, grouped queries --------------------------------------


class RotaryBlock(nn.Module):
    """Four query heads share two heads of keys and values; positions are rotations."""

    def __init__(self, dim: int, length: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(dim), nn.RMSNorm(dim)
        self.q = nn.Linear(dim, dim, bias=False)
        self.kv = nn.Linear(dim, dim, bias=False)
        self.o = nn.Linear(dim, dim, bias=False)
        self.gate, self.up = (nn.Linear(dim, 2 * dim, bias=False) for _ in range(2))
        self.down = nn.Linear(2 * dim, dim, bias=False)
        half = dim // 8
        angles = torch.arange(length)[:, None] * 100.0 ** (-torch.arange(half) / half)
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def turn(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=-1)
        t = x.shape[-2]
        cos, sin = self.cos[:t], self.sin[:t]  # type: ignore[index]
        return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm1(x)
        k, v = (heads(part, 2) for part in self.kv(y).chunk(2, dim=-1))
        q = self.turn(heads(self.q(y), 4))
        a = F.scaled_dot_product_attention(q, self.turn(k), v, is_causal=True, enable_gqa=True)
        x = x + self.o(a.transpose(1, 2).flatten(2))
        y = self.norm2(x)
        return x + self.down(F.silu(self.gate(y)) * self.up(y))


class RotaryLM(nn.Module):
    def __init__(self, dim: int, layers: int, length: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, dim)
        self.blocks = nn.Sequential(*(RotaryBlock(dim, length) for _ in range(layers)))
        self.norm = nn.RMSNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.blocks(self.tokens(x)))
        return y @ self.tokens.weight.T / math.sqrt(y.shape[-1])


def rotary() -> Training:
    torch.manual_seed(62)
    model = RotaryLM(64, 3, 28)
    return Training(
        model,
        made_up_text(24, 28, salt=62),
        text_loss,
        torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1),
        steps=220,
        clip=1.0,
    )


# --- encoder–decoder ------------------------------------------------------------------------


class Reverser(nn.Module):
    """`nn.Transformer` that writes a string backwards."""

    def __init__(self, tokens: int, length: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens + 1, dim)
        self.position = nn.Parameter(torch.randn(length, dim))
        self.both = nn.Transformer(dim, 4, 1, 1, 2 * dim, dropout=0.0, batch_first=True)
        self.head = nn.Linear(dim, tokens)
        self.begin = tokens

    def forward(self, x: Tensor) -> Tensor:
        target = x.flip(1)
        given = F.pad(target[:, :-1], (1, 0), value=self.begin)
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        out = self.both(
            self.tokens(x) + self.position,
            self.tokens(given) + self.position,
            tgt_mask=mask,
            tgt_is_causal=True,
        )
        return cross_entropy(self.head(out), target)


def encoder_decoder() -> Training:
    torch.manual_seed(63)
    model = Reverser(10, 10, 48)
    return Training(
        model,
        strings(48, 10, 10, salt=63),
        own_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=240,
    )


# --- vision transformer ---------------------------------------------------------------------


class TinyViT(nn.Module):
    """Patches of 2 × 2, a class token, GELU, dropout."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, dim, 2, stride=2)
        self.kind = nn.Parameter(torch.zeros(1, 1, dim))
        self.position = nn.Parameter(0.02 * torch.randn(1, 17, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))
        self.attention = nn.ModuleList(
            nn.MultiheadAttention(dim, 3, dropout=0.1, batch_first=True) for _ in range(layers)
        )
        self.feed = nn.ModuleList(mlp(dim, 3 * dim, dim) for _ in range(layers))
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        y = self.patches(x[:, None]).flatten(2).transpose(1, 2)
        y = torch.cat([self.kind.expand(len(y), -1, -1), y], dim=1) + self.position
        for i, (attend, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            n = self.norms[2 * i](y)
            y = y + attend(n, n, n)[0]
            y = y + feed(self.norms[2 * i + 1](y))
        return self.head(self.norms[-1](y)[:, 0])


def vit() -> Training:
    torch.manual_seed(64)
    model = TinyViT(48, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 220)
    return Training(
        model, digit_batches(48, salt=64), class_loss, optimizer, steps=220, schedule=cosine
    )


# --- linear attention -----------------------------------------------------------------------


class LinearAttention(nn.Module):
    """φ = elu + 1; no softmax."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.feed = mlp(dim, 2 * dim, dim, activation=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (heads(part, 4) for part in self.qkv(self.norm1(x)).chunk(3, dim=-1))
        q, k = F.elu(q) + 1, F.elu(k) + 1
        kv = torch.einsum("bhnd,bhne->bhde", k, v)
        below = torch.einsum("bhnd,bhd->bhn", q, k.sum(2))
        y = torch.einsum("bhnd,bhde->bhne", q, kv) / below[..., None]
        x = x + self.out(y.transpose(1, 2).flatten(2))
        return x + self.feed(self.norm2(x))


class LinearClassifier(nn.Module):
    """Finds the flagged frame among 64."""

    def __init__(self, features: int, classes: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.blocks = nn.Sequential(LinearAttention(dim), LinearAttention(dim))
        self.head = nn.Linear(dim, classes)

    def forward(self, frames: Tensor) -> Tensor:
        return self.head(self.blocks(self.embed(frames)).amax(1))


def linear_attention() -> Training:
    torch.manual_seed(65)
    model = LinearClassifier(7, 6, 48)
    return Training(
        model,
        events(32, 64, 6, salt=65),
        class_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=200,
    )


# --- latents --------------------------------------------------------------------------------


class Perceiver(nn.Module):
    """Eight latents read 64 pixels, think, and read again."""

    def __init__(self, dim: int, latents: int) -> None:
        super().__init__()
        self.pixel = nn.Linear(1, dim)
        self.place = nn.Parameter(torch.randn(64, dim))
        self.latents = nn.Parameter(torch.randn(latents, dim))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(4))
        self.q = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.kv = nn.ModuleList(nn.Linear(dim, 2 * dim) for _ in range(2))
        self.think = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 2, 2 * dim, 0.0, batch_first=True, norm_first=True)
            for _ in range(2)
        )
        self.head = nn.Linear(dim, 10)

    def forward(self, x: Tensor) -> Tensor:
        given = self.norms[0](self.pixel(x.flatten(1)[..., None]) + self.place)
        z = self.latents.expand(len(x), -1, -1)
        for q, kv, norm, think in zip(self.q, self.kv, self.norms[1:], self.think, strict=False):
            k, v = kv(given).chunk(2, dim=-1)
            asked = heads(q(norm(z)), 2)
            read = F.scaled_dot_product_attention(asked, heads(k, 2), heads(v, 2))
            z = think(z + read.transpose(1, 2).flatten(2))
        return self.head(self.norms[3](z).mean(1))


def perceiver() -> Training:
    torch.manual_seed(66)
    model = Perceiver(48, 8)
    return Training(
        model,
        digit_batches(32, salt=66),
        class_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=220,
    )


# --- two modalities, two tasks --------------------------------------------------------------


class Fusion(nn.Module):
    """Digits on a grid and a spoken question, which attends to them; two tasks."""

    def __init__(self, cells: int, dim: int) -> None:
        super().__init__()
        self.patch, self.place = mlp(64, dim, dim), nn.Parameter(torch.randn(cells, dim))
        self.words = nn.Embedding(cells + 4, dim)
        self.read = nn.GRU(dim, dim, batch_first=True)
        self.to_image = nn.MultiheadAttention(dim, 4, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.kind = mlp(dim, dim, 10)
        self.total = nn.Linear(dim, 1)

    def forward(self, patches: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        image = self.patch(patches) + self.place
        text = self.read(self.words(words))[0]
        seen = self.norm1(text + self.to_image(text, image, image)[0])
        return self.kind(seen[:, -1]), self.total(self.norm2(image.mean(1)))[:, 0]


def _spoken(step: int) -> Batch:
    patches, cell, answer = grids(48, 3, salt=67)(step)
    filler = torch.randint(9, 13, (48, 4), generator=dice(step, 68))
    words = torch.cat([filler[:, :2], cell[:, None], filler[:, 2:]], dim=1)
    return patches, words, answer, patches.mean((1, 2)) * 10


def fusion_loss(
    model: nn.Module, patches: Tensor, words: Tensor, answer: Tensor, ink: Tensor
) -> Tensor:
    kind, total = model(patches, words)
    return F.cross_entropy(kind, answer) + 0.5 * F.mse_loss(total, ink)


def fusion() -> Training:
    torch.manual_seed(67)
    model = Fusion(9, 48)
    return Training(
        model,
        _spoken,
        fusion_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=240,
    )


# --- set transformer ------------------------------------------------------------------------


class SetBlock(nn.Module):
    """MAB: a set attends to another."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.feed = nn.Linear(dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q, k, v = heads(self.q(x), 2), heads(self.k(y), 2), heads(self.v(y), 2)
        p = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), dim=-1)
        h = self.norm1(x + (p @ v).transpose(1, 2).flatten(2))
        return self.norm2(h + F.relu(self.feed(h)))


class SetTransformer(nn.Module):
    """Range and mean of a set of points, by induced points and a pooling seed."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, dim)
        self.induced = nn.Parameter(torch.randn(6, dim))
        self.seed = nn.Parameter(torch.randn(1, dim))
        self.gather, self.spread, self.pool = SetBlock(dim), SetBlock(dim), SetBlock(dim)
        self.head = mlp(dim, dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.embed(x)
        y = self.spread(y, self.gather(self.induced.expand(len(x), -1, -1), y))
        return self.head(self.pool(self.seed.expand(len(x), -1, -1), y)[:, 0])


def _clouds(step: int) -> Batch:
    g = dice(step, 69)
    x = torch.randn(32, 16, 2, generator=g) + torch.randn(32, 1, 2, generator=g)
    return x, torch.cat([x.amax(1) - x.amin(1), x.mean(1)], dim=1)


def regression_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def set_transformer() -> Training:
    torch.manual_seed(69)
    model = SetTransformer(48)
    return Training(
        model,
        _clouds,
        regression_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=240,
    )


# --- pointer network ------------------------------------------------------------------------


class Pointer(nn.Module):
    """Sorts numbers by pointing at them, the smallest first."""

    def __init__(self, dim: int, count: int) -> None:
        super().__init__()
        self.embed = mlp(1, dim, dim)
        self.encoder = nn.LSTM(dim, dim, batch_first=True)
        self.decoder = nn.LSTMCell(dim, dim)
        self.ref, self.ask = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.begin = nn.Parameter(torch.zeros(dim))
        self.count = count

    def forward(self, numbers: Tensor, order: Tensor) -> Tensor:
        x = self.embed(numbers[..., None])
        memory, (h, c) = self.encoder(x)
        refs = self.ref(memory + x)
        h, c = h[0], c[0]
        given = self.begin.expand(len(x), -1)
        loss = x.new_zeros(())
        rows = torch.arange(len(x))
        for k in range(self.count):
            h, c = self.decoder(given, (h, c))
            logits = torch.einsum("bnd,bd->bn", refs, self.ask(h)) / math.sqrt(h.shape[1])
            p = F.softmax(logits, dim=1)
            loss = loss - p[rows, order[:, k]].clamp(min=1e-9).log().mean()
            given = x[rows, order[:, k]]
        return loss / self.count


def _numbers(step: int) -> Batch:
    x = torch.rand(64, 6, generator=dice(step, 70))
    return 4 * x - 2, x.argsort(1)


def pointer() -> Training:
    torch.manual_seed(70)
    model = Pointer(64, 6)
    return Training(
        model,
        _numbers,
        own_loss,
        torch.optim.Adam(model.parameters(), lr=1.5e-3),
        steps=260,
        clip=2.0,
    )


# --- Bahdanau -------------------------------------------------------------------------------


class Bahdanau(nn.Module):
    """GRU encoder and decoder with additive attention; it copies, two steps late."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens + 1, dim)
        self.encoder = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.start = nn.Linear(2 * dim, dim)
        self.decoder = nn.GRUCell(3 * dim, dim)
        self.key, self.query = nn.Linear(2 * dim, dim), nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.head = nn.Linear(3 * dim, tokens)
        self.begin = tokens

    def forward(self, x: Tensor) -> Tensor:
        memory, _ = self.encoder(self.tokens(x))
        h, keys = torch.tanh(self.start(memory.mean(1))), self.key(memory)
        target = x.roll(-2, 1)
        outs = []
        for word in F.pad(target[:, :-1], (1, 0), value=self.begin).unbind(1):
            scores = self.score(torch.tanh(keys + self.query(h)[:, None]))
            context = (F.softmax(scores, dim=1) * memory).sum(1)
            h = self.decoder(torch.cat([self.tokens(word), context], dim=1), h)
            outs.append(self.head(torch.cat([h, context], dim=1)))
        return cross_entropy(torch.stack(outs, dim=1), target)


def bahdanau() -> Training:
    torch.manual_seed(71)
    model = Bahdanau(8, 48)
    return Training(
        model,
        strings(48, 8, 8, salt=71),
        own_loss,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=260,
        clip=1.0,
    )


# --- words, sentences -----------------------------------------------------------------------


class Hierarchical(nn.Module):
    """GRUs and attention over words, and over sentences."""

    def __init__(self, words: int, dim: int, classes: int) -> None:
        super().__init__()
        self.words = nn.Embedding(words, dim)
        self.in_sentence = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)
        self.in_document = nn.GRU(dim, dim // 2, batch_first=True, bidirectional=True)
        self.word_hidden, self.sentence_hidden = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.word_score = nn.Linear(dim, 1, bias=False)
        self.sentence_score = nn.Linear(dim, 1, bias=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, documents: Tensor) -> Tensor:
        b, s, _ = documents.shape
        x, _ = self.in_sentence(self.words(documents.flatten(0, 1)))
        p = F.softmax(self.word_score(torch.tanh(self.word_hidden(x))), dim=1)
        y, _ = self.in_document((p * x).sum(1).view(b, s, -1))
        p = F.softmax(self.sentence_score(torch.tanh(self.sentence_hidden(y))), dim=1)
        return self.head((p * y).sum(1))


def _documents(step: int) -> Batch:
    g = dice(step, 72)
    words = torch.randint(8, 40, (32, 5, 7), generator=g)
    topic = torch.randint(0, 4, (32,), generator=g)
    for _ in range(2):
        s = torch.randint(0, 5, (32,), generator=g)
        w = torch.randint(0, 7, (32,), generator=g)
        words[torch.arange(32), s, w] = 2 * topic + torch.randint(0, 2, (32,), generator=g)
    return words, topic


def hierarchical() -> Training:
    torch.manual_seed(72)
    model = Hierarchical(40, 48, 4)
    return Training(
        model,
        _documents,
        class_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=240,
    )


# --- routed experts -------------------------------------------------------------------------


class Routed(nn.Module):
    """A feed-forward network of four experts, of which a token uses two."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.router = nn.Linear(dim, 4, bias=False)
        self.experts = nn.ModuleList(mlp(dim, 2 * dim, dim) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        p = self.router(x).softmax(dim=-1)
        best, which = p.topk(2, dim=-1)
        gates = torch.zeros_like(p).scatter(-1, which, best / best.sum(-1, keepdim=True))
        outs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        share = (gates > 0).float().mean((0, 1))
        return (outs * gates[..., None, :]).sum(-1), 4 * (share * p.mean((0, 1))).sum()


class RoutedLM(nn.Module):
    """A causal transformer with distance penalties and routed experts."""

    def __init__(self, dim: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(LETTERS, dim)
        self.qkv = nn.ModuleList(nn.Linear(dim, 3 * dim) for _ in range(layers))
        self.out = nn.ModuleList(nn.Linear(dim, dim) for _ in range(layers))
        self.routed = nn.ModuleList(Routed(dim) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in range(2 * layers + 1))
        self.head = nn.Linear(dim, LETTERS)
        self.register_buffer("slopes", torch.tensor([1.0, 0.5, 0.25, 0.125])[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x[:, :-1])
        steps = torch.arange(y.shape[1])
        back = (steps[:, None] - steps).float()
        bias = (-self.slopes * back).masked_fill(back < 0, -torch.inf)  # type: ignore[operator]
        balance = y.new_zeros(())
        for i, (qkv, out, routed) in enumerate(zip(self.qkv, self.out, self.routed, strict=True)):
            q, k, v = (heads(t, 4) for t in qkv(self.norms[2 * i](y)).chunk(3, dim=-1))
            p = torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias, dim=-1)
            y = y + out((p @ v).transpose(1, 2).flatten(2))
            z, uneven = routed(self.norms[2 * i + 1](y))
            y, balance = y + z, balance + uneven
        return cross_entropy(self.head(self.norms[-1](y)), x[:, 1:]) + 0.01 * balance


def routed_experts() -> Training:
    torch.manual_seed(73)
    model = RoutedLM(48, 2)
    return Training(
        model,
        made_up_text(20, 24, salt=73),
        own_loss,
        torch.optim.AdamW(model.parameters(), lr=3e-3),
        steps=220,
    )


# --- from a library -------------------------------------------------------------------------


def library_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(input_ids=x, labels=x).loss


def gpt2() -> Training:
    """A small GPT-2 that learns the made-up language."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(74)
    config = GPT2Config(
        vocab_size=LETTERS, n_embd=64, n_layer=2, n_head=4, n_positions=32,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Training(
        model := GPT2LMHeadModel(config),
        made_up_text(20, 23, salt=74),
        library_loss,
        torch.optim.AdamW(model.parameters(), lr=2e-3),
        steps=200,
    )


# --- pooling, contrast ----------------------------------------------------------------------


class Pooled(nn.Module):
    """Rows of a digit through T5-like attention with biases by distance, pooled by attention."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.rows = nn.Linear(8, dim)
        self.distances = nn.Embedding(15, 4)
        nn.init.zeros_(self.distances.weight)
        self.qkv, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.score = nn.Sequential(nn.Linear(dim, dim), nn.Tanh(), nn.Linear(dim, 4))
        self.code = nn.Linear(4 * dim, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.rows(x)
        at = torch.arange(8)
        bias = self.distances(at[:, None] - at + 7).permute(2, 0, 1)
        q, k, v = (heads(t, 4) for t in self.qkv(y).chunk(3, dim=-1))
        a = F.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]) + bias, dim=-1) @ v
        y = self.norm(y + self.out(a.transpose(1, 2).flatten(2)))
        p = F.softmax(self.score(y), dim=1)
        return F.normalize(self.code(torch.einsum("bnh,bnd->bhd", p, y).flatten(1)), dim=1)


def contrast_loss(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Supervised contrast: digits of a class are alike."""
    code = model(x)
    logits = (code @ code.T / 0.2).masked_fill(torch.eye(len(x), dtype=torch.bool), -1e9)
    same = (classes[:, None] == classes).float().fill_diagonal_(0)
    found = -(same * F.log_softmax(logits, dim=1)).sum(1) / same.sum(1).clamp(min=1)
    return found.mean()


def pooled() -> Training:
    torch.manual_seed(76)
    model = Pooled(48)
    return Training(
        model,
        digit_batches(64, salt=76),
        contrast_loss,
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        steps=240,
    )


ATTENTION = Healthy(
    "ind-attention-healthy",
    runs={
        "padded-encoder": padded_encoder,
        "rotary": rotary,
        "encoder-decoder": encoder_decoder,
        "vit": vit,
        "linear-attention": linear_attention,
        "perceiver": perceiver,
        "fusion": fusion,
        "set-transformer": set_transformer,
        "pointer": pointer,
        "bahdanau": bahdanau,
        "hierarchical": hierarchical,
        "routed-experts": routed_experts,
        "gpt2": gpt2,
        "pooled": pooled,
    },
    # A pointer network's answer is its attention: whatever it learns comes through that.
    may={"pointer": ["softmax-borne"]},
)

THEMES = [ATTENTION]
