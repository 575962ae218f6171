"""Attention that works: transformers, memories, graphs, readers and writers, library models."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_third_attention import (
    adjacency,
    communities,
    digits,
    fit,
    grammar,
    needles,
    pairs,
    patches,
    periodic,
    reversal,
    squared,
)
from analyses.faults.training import Batch, Training

# Models of the library "transformers", small.


def gpt2() -> Training:
    """GPT-2 on text of a grammar."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=12, n_positions=24, n_embd=48, n_layer=2, n_head=4,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return fit(GPT2LMHeadModel(config), grammar(20, 12, 16), lr=3e-3, steps=120)


def llama() -> Training:
    """Llama with grouped queries on text that repeats itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=8, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32, use_cache=False,
        attn_implementation="eager",
    )  # fmt: skip
    return fit(LlamaForCausalLM(config), periodic(20, 5, 8, 16), lr=4e-3, steps=150)


def bert() -> Training:
    """BERT that tells of each letter which one is at its place from behind."""
    from transformers import BertConfig, BertForTokenClassification

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=10, hidden_size=48, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, max_position_embeddings=16, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, num_labels=8, attn_implementation="eager",
    )  # fmt: skip
    model = BertForTokenClassification(config)
    return fit(model, reversal(10, 8, 24), lr=2e-3, steps=120, kind=torch.optim.AdamW)


def _letters(model: nn.Module, source: Tensor, target: Tensor) -> Tensor:
    start = torch.zeros_like(target[:, :1])
    given = torch.cat([start, target[:, :-1] + 1], 1)
    said: Any = model(input_ids=source + 1, decoder_input_ids=given)
    return F.cross_entropy(said.logits.flatten(0, 1), target.flatten() + 1)


def t5() -> Training:
    """T5 that writes words from behind."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(
        vocab_size=10, d_model=48, d_kv=16, d_ff=96, num_layers=1, num_heads=3, dropout_rate=0.0,
        decoder_start_token_id=0, use_cache=False, tie_word_embeddings=False,
    )  # fmt: skip
    model = T5ForConditionalGeneration(config)
    return fit(model, reversal(7, 8, 24), lr=5e-3, steps=140, loss=_letters)


def vit() -> Training:
    """ViT on digits."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, image_size=8, patch_size=2,
        num_channels=1, num_labels=10,
    )  # fmt: skip
    whole = digits(32)

    def batch(step: int) -> Batch:
        images, target = whole(step)
        return images[:, None], target

    return fit(ViTForImageClassification(config), batch, lr=2e-3, steps=120, clip=1.0)


# By hand.


class Translator(nn.Module):
    """The library's encoder and decoder."""

    def __init__(self, letters: int, length: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters + 1, 40), nn.Embedding(length, 40)
        self.body = nn.Transformer(40, 4, 1, 1, 80, 0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(40, letters)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(length))

    def forward(self, source: Tensor, given: Tensor) -> Tensor:
        a, b = (self.letter(t) + self.place.weight for t in (source, given))
        return self.head(self.body(a, b, tgt_mask=self.mask, tgt_is_causal=True))


def translator() -> Training:
    """Words written from behind."""
    torch.manual_seed(1)
    words = reversal(8, 7, 32)

    def batch(step: int) -> Batch:
        source, target = words(step)
        start = torch.full_like(target[:, :1], 7)
        return source, torch.cat([start, target[:, :-1]], 1), target

    return fit(Translator(7, 8), batch, lr=3e-3, steps=150)


class Additive(nn.Module):
    """A GRU writes letter by letter, with an additive score against what a GRU read."""

    def __init__(self, letters: int) -> None:
        super().__init__()
        self.letter = nn.Embedding(letters, 24)
        self.reader = nn.GRU(24, 20, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(40, 40)
        self.left, self.right = nn.Linear(40, 32), nn.Linear(40, 32, bias=False)
        self.score = nn.Linear(32, 1, bias=False)
        self.head = nn.Linear(80, letters)

    def forward(self, source: Tensor) -> Tensor:
        memory, last = self.reader(self.letter(source))
        state, keys, said = torch.cat([last[0], last[1]], -1), self.left(memory), []
        for _ in range(source.shape[1]):
            logits = self.score(torch.tanh(keys + self.right(state)[:, None]))[..., 0]
            read = (torch.softmax(logits, -1)[:, None] @ memory)[:, 0]
            state = self.cell(read, state)
            said.append(self.head(torch.cat([state, read], -1)))
        return torch.stack(said, 1)


def additive() -> Training:
    """Words of six letters."""
    torch.manual_seed(2)
    return fit(Additive(6), reversal(6, 6, 48), lr=3e-3, steps=220, clip=1.0)


class Linearised(nn.Module):
    """Causal attention without softmax: positive features, summed up as they come."""

    def __init__(self, letters: int, length: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, 48), nn.Embedding(length, 48)
        self.norms = nn.ModuleList(nn.LayerNorm(48) for _ in range(2))
        self.qkv = nn.ModuleList(nn.Linear(48, 144) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(48, 48) for _ in range(2))
        self.head = nn.Linear(48, letters)

    def forward(self, text: Tensor) -> Tensor:
        x = self.letter(text) + self.place.weight[: text.shape[1]]
        for norm, qkv, out in zip(self.norms, self.qkv, self.out, strict=True):
            q, k, v = qkv(norm(x)).chunk(3, -1)
            q, k = F.elu(q) + 1, F.elu(k) + 1
            above = (k[..., None] * v[:, :, None]).cumsum(1)
            below = (q * k.cumsum(1)).sum(-1, keepdim=True)
            x = x + out((q[:, :, None] @ above)[:, :, 0] / below)
        return self.head(x)


def linearised() -> Training:
    """Text of a grammar."""
    torch.manual_seed(3)
    return fit(Linearised(10, 16), grammar(16, 10, 16), lr=3e-3, steps=150)


class Joined(nn.Module):
    """Cells look at each other; the next layer looks at cells and what came of them, joined."""

    def __init__(self, keys: int, values: int, wide: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, wide), nn.Embedding(values, wide)
        self.asked = nn.Embedding(keys, wide)
        self.layers = nn.ModuleList(
            nn.Linear(wide * (n + 1), 3 * wide, bias=False) for n in range(2)
        )
        self.query, self.head = nn.Linear(wide, 3 * wide), nn.Linear(3 * wide, values)

    def forward(self, listed: Tensor, held: Tensor, asked: Tensor) -> Tensor:
        latent = self.key(listed) + self.value(held)
        for layer in self.layers:
            q, k, v = layer(latent).chunk(3, -1)
            p = F.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, dim=-1)
            latent = torch.cat([latent, p @ v], -1)
        query = self.query(self.asked(asked))
        p = torch.softmax((latent @ query[..., None])[..., 0] / query.shape[-1] ** 0.5, -1)
        return self.head((p[:, None] @ latent)[:, 0])


def joined() -> Training:
    """Look-ups among ten pairs; latents are kept and joined, layer by layer."""
    torch.manual_seed(4)
    return fit(Joined(14, 6, 32), pairs(10, 14, 6), lr=4e-3, steps=180)


class Dynamic(nn.Module):
    """Graph attention after a non-linearity, two heads, with residuals."""

    linked: Tensor

    def __init__(self, linked: Tensor, given: int, groups: int) -> None:
        super().__init__()
        self.register_buffer("linked", linked)
        self.embed = nn.Linear(given, 24)
        self.left = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.right = nn.ModuleList(nn.Linear(24, 24) for _ in range(2))
        self.score = nn.ModuleList(nn.Linear(24, 2, bias=False) for _ in range(2))
        self.head = nn.Linear(24, groups)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for left, right, score in zip(self.left, self.right, self.score, strict=True):
            a, b = left(x), right(x)
            logits = score(F.leaky_relu(a[:, None] + b[None], 0.2)).permute(2, 0, 1)
            p = torch.softmax(logits.masked_fill(~self.linked, -math.inf), -1)
            x = x + F.elu((p @ b.unflatten(-1, (2, 12)).transpose(0, 1)).transpose(0, 1).flatten(1))
        return self.head(x)


def dynamic() -> Training:
    """Communities of a graph of eighty nodes."""
    torch.manual_seed(5)
    model = Dynamic(adjacency(80, 4), 10, 4)
    return fit(model, communities(80, 4, 10, 2.5), lr=5e-3, steps=100)


class Resampler(nn.Module):
    """Latents look at the cells and at themselves, joined; twice."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.embed = nn.Linear(given, 32)
        self.latents = nn.Parameter(0.5 * torch.randn(16, 32))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.attend = nn.ModuleList(nn.MultiheadAttention(32, 4, batch_first=True) for _ in "ab")
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
            for _ in range(2)
        )
        self.head = nn.Linear(32, classes)

    def forward(self, cells: Tensor) -> Tensor:
        cells = self.embed(cells)
        x = self.latents.expand(len(cells), -1, -1)
        for norm, attend, mlp in zip(self.norms, self.attend, self.mlp, strict=True):
            h = norm(x)
            both = torch.cat([cells, h], 1)
            x = x + attend(h, both, both)[0]
            x = x + mlp(x)
        return self.head(x.mean(1))


def resampler() -> Training:
    """The class of the marked one of twenty cells."""
    torch.manual_seed(6)
    return fit(Resampler(6, 5), needles(20, 5, 48), lr=3e-3, steps=150, kind=torch.optim.AdamW)


class Documents(nn.Module):
    """Words are pooled to sentences by attention, sentences to a document."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.word, self.sentence = nn.Linear(given, 24), nn.Linear(24, 24)
        self.by_word, self.by_sentence = nn.Linear(24, 1), nn.Linear(24, 1)
        self.head = nn.Linear(24, classes)

    def forward(self, words: Tensor) -> Tensor:
        x = torch.tanh(self.word(words.unflatten(1, (4, 6))))
        x = (torch.softmax(self.by_word(x)[..., 0], -1)[..., None, :] @ x)[..., 0, :]
        x = torch.tanh(self.sentence(x))
        x = (torch.softmax(self.by_sentence(x)[..., 0], -1)[:, None] @ x)[:, 0]
        return self.head(x)


def documents() -> Training:
    """Four sentences of six words, one of which is marked."""
    torch.manual_seed(7)
    return fit(Documents(6, 5), needles(24, 5, 48), lr=1e-2, steps=150)


class Sets(nn.Module):
    """Two layers of attention within a set, and learned queries that pool it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(1, 32)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True) for _ in range(2)
        )
        self.query = nn.Parameter(torch.randn(1, 3, 32))
        self.pool = nn.MultiheadAttention(32, 2, batch_first=True)
        self.head = nn.Linear(96, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.pool(self.query.expand(len(x), -1, -1), x, x)[0].flatten(1))


def sets() -> Training:
    """The largest of ten numbers."""
    torch.manual_seed(8)

    def batch(step: int) -> Batch:
        x = torch.randn(48, 10, 1, generator=torch.Generator().manual_seed(step))
        return x, x.amax(1)

    return fit(Sets(), batch, lr=2e-3, steps=150, loss=squared)


class Pointer(nn.Module):
    """Points at one of the numbers, by an additive score after attention among them."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv = nn.Linear(1, 32), nn.Linear(32, 96)
        self.left, self.right = nn.Linear(32, 32), nn.Linear(32, 32)
        self.score = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.embed(x))
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        ask = self.right(x.mean(1, keepdim=True))
        return self.score(F.gelu(self.left(x) + ask))[..., 0]


def pointer() -> Training:
    """Which of twelve numbers is nearest to their mean?"""
    torch.manual_seed(9)

    def batch(step: int) -> Batch:
        x = torch.randn(64, 12, 1, generator=torch.Generator().manual_seed(step))
        return x, (x - x.mean(1, keepdim=True)).abs()[..., 0].argmin(1)

    return fit(Pointer(), batch, lr=5e-3, steps=200)


class Gated(nn.Module):
    """A bag pooled by gated attention."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.value = nn.Sequential(nn.Linear(given, 32), nn.ReLU())
        self.what, self.gate = nn.Linear(32, 16), nn.Linear(32, 16)
        self.score, self.head = nn.Linear(16, 1), nn.Linear(32, classes)

    def forward(self, bag: Tensor) -> Tensor:
        x = self.value(bag)
        logits = self.score(torch.tanh(self.what(x)) * torch.sigmoid(self.gate(x)))[..., 0]
        return self.head((torch.softmax(logits, -1)[:, None] @ x)[:, 0])


def gated() -> Training:
    """Bags of sixteen, one of which is marked."""
    torch.manual_seed(10)
    return fit(Gated(5, 4), needles(16, 4, 48), lr=5e-3, steps=140)


class NonLocal(nn.Module):
    """Convolutions with a block that looks at all places in between."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.theta, self.phi, self.g = (nn.Conv2d(16, 8, 1) for _ in range(3))
        self.out = nn.Conv2d(8, 16, 1)
        self.after = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.Flatten())
        self.head = nn.Linear(24 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x[:, None])
        a, b, c = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        p = torch.softmax(a.transpose(1, 2) @ b / 8**0.5, -1)
        x = x + self.out((c @ p.transpose(1, 2)).unflatten(2, x.shape[2:]))
        return self.head(self.after(x))


def non_local() -> Training:
    """Digits."""
    torch.manual_seed(11)
    kind = partial(torch.optim.SGD, momentum=0.9)
    return fit(NonLocal(), digits(48), lr=5e-2, steps=120, kind=kind)


class Axial(nn.Module):
    """Attention along rows, then along columns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, 24), nn.Parameter(0.3 * torch.randn(8, 8, 24))
        self.qkv = nn.ModuleList(nn.Linear(24, 72) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(24) for _ in range(3))
        self.mlp = nn.Sequential(nn.Linear(24, 48), nn.SiLU(), nn.Linear(48, 24))
        self.head = nn.Linear(24 * 8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x.unflatten(1, (8, 8))) + self.place
        for qkv, norm in zip(self.qkv, self.norms, strict=False):
            q, k, v = qkv(norm(x)).chunk(3, -1)
            x = (x + torch.softmax(q @ k.transpose(-2, -1) / 24**0.5, -1) @ v).transpose(1, 2)
        x = x + self.mlp(self.norms[2](x))
        return self.head(x.mean(1).flatten(1))


def axial() -> Training:
    """Digits, pixel by pixel."""
    torch.manual_seed(12)
    return fit(Axial(), patches(1, 24), lr=8e-3, steps=120, kind=torch.optim.RAdam)


FINE = Healthy(
    "ind3-attention-fine",
    runs={
        "gpt2": gpt2,
        "llama": llama,
        "bert": bert,
        "t5": t5,
        "vit": vit,
        "translator": translator,
        "additive": additive,
        "linearised": linearised,
        "joined-latents": joined,
        "dynamic-graph": dynamic,
        "resampler": resampler,
        "documents": documents,
        "sets": sets,
        "pointer": pointer,
        "gated-bag": gated,
        "non-local": non_local,
        "axial": axial,
    },
    # Of six words one vector gets on to the attention among sentences, as it is meant to.
    # And one state is all that gets from a read of the memory to the next where a cell writes.
    may={"documents": ["information-bottleneck"], "additive": ["information-bottleneck"]},
)

THEMES = [FINE]
