"""Networks with attention of many kinds that train as they should."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Healthy
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
    patches,
    per_sample,
    per_token,
    recall,
    reverse,
)
from analyses.faults.training import Batch, Training


class Vit(nn.Module):
    """Patches and a class token through the library's layers."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.places = nn.Parameter(0.1 * torch.randn(17, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images))
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.places
        answers: Tensor = self.head(self.layers(x)[:, 0])
        return answers


def vit() -> Training:
    torch.manual_seed(51)
    model = Vit(32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    return Training(model, digits, per_sample, optimizer, steps=200)


class Fused(nn.Module):
    """Causal attention by the fused kernel, one projection for all three."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1)
        )
        read = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y: Tensor = self.out(read.transpose(1, 2).flatten(2))
        return y


class Language(nn.Module):
    """A small decoder of symbols with tied ends."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(16, width)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.places = nn.Parameter(0.1 * torch.randn(24, width))
        self.layers = nn.Sequential(*(Block(Fused(width, 4), width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers(self.embed(x) + self.places)
        return self.norm(x) @ self.embed.weight.T


def grammar(step: int) -> Batch:
    """Symbols whose successor depends on the last two; one in ten is drawn freely."""
    g = generator(step, 21)
    x = torch.randint(16, (24, 25), generator=g)
    free = torch.rand(24, 25, generator=g) < 0.1
    for t in range(2, 25):
        x[:, t] = torch.where(free[:, t], x[:, t], (3 * x[:, t - 1] + x[:, t - 2] // 8) % 16)
    return x[:, :-1], x[:, 1:]


def language() -> Training:
    torch.manual_seed(52)
    model = Language(48, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    return Training(model, grammar, per_token, optimizer, steps=200, schedule=schedule, clip=1.0)


class Deep(nn.Module):
    """Eight narrow layers, each after a norm."""

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, width)
        self.places = nn.Parameter(torch.randn(8, width))
        self.layers = nn.Sequential(*(Block(Attend(width, 2), width) for _ in range(layers)))
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.layers(self.embed(x) + self.places))
        return answers


def deep() -> Training:
    torch.manual_seed(53)
    return adam(Deep(24, 8), reverse, per_token, lr=3e-3, steps=120)


class Pair(nn.Module):
    """The library's whole transformer, from symbols to symbols."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.places = nn.Parameter(torch.randn(8, width))
        self.transformer = nn.Transformer(width, 2, 1, 1, 2 * width, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 11)

    def forward(self, x: Tensor, shifted: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(8)
        source, target = self.embed(x) + self.places, self.embed(shifted) + self.places
        answers: Tensor = self.head(self.transformer(source, target, tgt_mask=mask))
        return answers


def shifted(step: int) -> Batch:
    x, y = reverse(step)
    return x, F.pad(y[:, :-1], (1, 0), value=10), y


def pair() -> Training:
    torch.manual_seed(54)
    return adam(Pair(32), shifted, per_token, lr=3e-3, steps=150)


class Looking(nn.Module):
    """An LSTM that looks at the source before each symbol, its last look in its input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, width)
        self.encoder = nn.LSTM(width, width // 2, batch_first=True, bidirectional=True)
        self.cell = nn.LSTMCell(2 * width, width)
        self.score = nn.Bilinear(width, width, 1)
        self.head = nn.Linear(2 * width, 11)
        self.width = width

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        memory, _ = self.encoder(self.embed(x))
        h = c = torch.zeros(len(x), self.width)
        read, answers = memory.mean(1), []
        for symbol in self.embed(before).unbind(1):
            h, c = self.cell(torch.cat([symbol, read], -1), (h, c))
            asked = h[:, None].expand(memory.shape).contiguous()
            weights = F.softmax(self.score(memory.contiguous(), asked)[..., 0], -1)
            read = (weights[..., None] * memory).sum(1)
            answers.append(self.head(torch.cat([h, read], -1)))
        return torch.stack(answers, 1)


def looking() -> Training:
    torch.manual_seed(55)
    return adam(Looking(32), shifted, per_token, lr=6e-3, steps=150)


class LinearAttention(nn.Module):
    """Attention without a softmax, divided by the sum of its weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, width), nn.Linear(width, width)
        self.v, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k = F.elu(2 * self.q(x)) + 1, F.elu(2 * self.k(x)) + 1
        read = q @ (k.transpose(1, 2) @ self.v(x)) / (q @ k.sum(1)[..., None])
        y: Tensor = self.out(read)
        return y


def linear_attention() -> Training:
    torch.manual_seed(56)
    body = nn.Sequential(*(Block(LinearAttention(40), 40) for _ in range(2)))
    model = Tokens(WIDTH, 40, body)
    return adam(model, partial(lookup, n=6), per_token, lr=4e-3, steps=250)


class Beside(nn.Module):
    """Latent vectors stand beside the tokens in every layer, and answer in the end."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.latents = nn.Parameter(0.3 * torch.randn(latents, width))
        self.places = nn.Parameter(0.3 * torch.randn(8, width))
        self.layers = nn.Sequential(*(Block(Attend(width, 2), width) for _ in range(2)))
        self.head = nn.Linear(latents * width, 10)

    def forward(self, rows: Tensor) -> Tensor:
        x = self.embed(rows) + self.places
        latent = self.latents.expand(len(x), -1, -1)
        x = self.layers(torch.cat([latent, x], 1))
        answers: Tensor = self.head(x[:, : len(self.latents)].flatten(1))
        return answers


def beside() -> Training:
    torch.manual_seed(57)
    return adam(Beside(24, 6), digits, per_sample, lr=3e-3, steps=150)


class Perceiver(nn.Module):
    """As many latents as tokens read these, think among themselves and answer."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.embed = nn.Linear(4, width)
        self.places = nn.Parameter(0.5 * torch.randn(16, width))
        self.latents = nn.Parameter(0.5 * torch.randn(latents, width))
        self.read = Attend(width, 2)
        self.think = Block(Attend(width, 2), width)
        self.again = Attend(width, 2)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(patches(images)) + self.places
        latent = self.latents.expand(len(x), -1, -1)
        latent = self.think(latent + self.read(latent, x))
        latent = self.norm(latent + self.again(latent, x))
        answers: Tensor = self.head(latent.mean(1))
        return answers


def perceiver() -> Training:
    torch.manual_seed(58)
    return adam(Perceiver(24, 16), digits, per_sample, lr=3e-3, steps=200)


class MemoryNetwork(nn.Module):
    """Reads, adds what it read to the question, and reads again (three hops)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ask = nn.Linear(KEY, width)
        self.keys = nn.ModuleList(nn.Linear(KEY + CLASSES, width) for _ in range(3))
        self.values = nn.ModuleList(nn.Linear(KEY + CLASSES, width) for _ in range(3))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, memory: Tensor, question: Tensor) -> Tensor:
        u = self.ask(question)
        for key, value in zip(self.keys, self.values, strict=True):
            weights = torch.softmax(torch.einsum("bd,bnd->bn", u, key(memory)), -1)
            u = u + torch.einsum("bn,bnd->bd", weights, value(memory))
        answers: Tensor = self.head(u)
        return answers


def memory_network() -> Training:
    torch.manual_seed(59)
    model = MemoryNetwork(20)
    return adam(model, partial(recall, n=8), per_sample, lr=5e-3, steps=250)


class Pointer(nn.Module):
    """Answers with a place: where the largest number of each row's tail is (pointer network)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.encoder = nn.GRU(width, width, batch_first=True)
        self.key, self.query = nn.Linear(width, width), nn.Linear(width, width)
        self.score = nn.Linear(width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        states, last = self.encoder(F.relu(self.embed(x)))
        mixed = torch.tanh(self.key(states) + self.query(last[0])[:, None])
        answers: Tensor = self.score(mixed)[..., 0]
        return answers


def largest(step: int) -> Batch:
    x = torch.rand(32, 10, 2, generator=generator(step, 22))
    return x - 0.5, x.sum(-1).argmax(-1)


def pointer() -> Training:
    torch.manual_seed(60)
    return adam(Pointer(24), largest, per_sample, lr=5e-3, steps=200)


class Bags(nn.Module):
    """Gated attention over the instances of a bag (multiple-instance learning)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Flatten(2), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.left, self.gate = nn.Linear(width, 16), nn.Linear(width, 16)
        self.score = nn.Linear(16, 1)
        self.head = nn.Linear(width, 2)

    def forward(self, bags: Tensor) -> Tensor:
        h = self.encode(bags)
        scores = self.score(torch.tanh(self.left(h)) * torch.sigmoid(self.gate(h)))
        pooled = (torch.softmax(scores, 1) * h).sum(1)
        answers: Tensor = self.head(pooled)
        return answers


def with_a_nine(step: int) -> Batch:
    """Bags of six digits; asked is whether there is a 9 or an 8 among them."""
    images, classes = digits(step, 24 * 6)
    return images.unflatten(0, (24, 6)), (classes.view(24, 6) >= 8).any(1).long()


def bags() -> Training:
    torch.manual_seed(61)
    return adam(Bags(32), with_a_nine, per_sample, lr=3e-3, steps=200)


class Pixels(nn.Module):
    """A small convolutional network with attention among places half-way (non-local)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.start = nn.Sequential(
            nn.Conv2d(1, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )
        self.theta, self.phi = nn.Conv2d(channels, 8, 1), nn.Conv2d(channels, 8, 1)
        self.g = nn.Conv2d(channels, channels, 1)
        nn.init.normal_(self.theta.weight, std=0.8)
        nn.init.normal_(self.phi.weight, std=0.8)
        self.end = nn.Sequential(
            nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.BatchNorm2d(channels),
            nn.ReLU(), nn.Flatten(), nn.Linear(16 * channels, 10),
        )  # fmt: skip

    def forward(self, images: Tensor) -> Tensor:
        x = self.start(images[:, None])
        q, k, v = self.theta(x).flatten(2), self.phi(x).flatten(2), self.g(x).flatten(2)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(8), -1)
        x = x + (v @ weights.transpose(1, 2)).view_as(x)
        answers: Tensor = self.end(x)
        return answers


def pixels() -> Training:
    torch.manual_seed(62)
    model = Pixels(12)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return Training(model, digits, per_sample, optimizer, steps=150)


class Library(nn.Module):
    """A model of the library and a head for each symbol's answer."""

    def __init__(self, body: nn.Module, width: int, answers: int) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(width, answers)

    def forward(self, x: Tensor) -> Tensor:
        answers: Tensor = self.head(self.body(input_ids=x).last_hidden_state)
        return answers


def delayed(step: int) -> Batch:
    """Symbols; asked is the one two places before (the first one's own at the start)."""
    x = torch.randint(1, 12, (24, 16), generator=generator(step, 23))
    return x, torch.cat([x[:, :2], x[:, :-2]], 1)


def gpt2() -> Training:
    from transformers import GPT2Config, GPT2Model

    torch.manual_seed(63)
    config = GPT2Config(
        vocab_size=12, n_positions=16, n_embd=32, n_layer=2, n_head=2, initializer_range=0.1,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return adam(Library(GPT2Model(config), 32, 12), delayed, per_token, lr=3e-3, steps=150)


def llama() -> Training:
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(64)
    config = LlamaConfig(
        vocab_size=12, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=16,
        initializer_range=0.1, use_cache=False, attn_implementation="eager",
        pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return adam(Library(LlamaModel(config), 32, 12), delayed, per_token, lr=3e-3, steps=150)


class T5(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from transformers import T5Config, T5ForConditionalGeneration

        config = T5Config(
            vocab_size=12, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2,
            dropout_rate=0.0, use_cache=False, decoder_start_token_id=0, pad_token_id=0,
        )  # fmt: skip
        self.t5: Any = T5ForConditionalGeneration(config)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        logits: Tensor = self.t5(input_ids=x, decoder_input_ids=before).logits
        return logits


def t5() -> Training:
    torch.manual_seed(65)
    return adam(T5(), shifted, per_token, lr=3e-3, steps=150)


class Windows(nn.Module):
    """Attention within windows of the image, moved by half a window in the second layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(1, width, 3, padding=1)
        self.layers = nn.ModuleList(Block(Attend(width, 2), width) for _ in range(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(4 * width, 10))

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images[:, None]).permute(0, 2, 3, 1)
        for i, layer in enumerate(self.layers):
            x = torch.roll(x, (-2 * i, -2 * i), (1, 2))
            w = x.unflatten(2, (2, 4)).unflatten(1, (2, 4)).transpose(2, 3)
            w = layer(w.reshape(-1, 16, w.shape[-1]))
            x = w.view(len(x), 2, 2, 4, 4, -1).transpose(2, 3).reshape(len(x), 8, 8, -1)
        pooled = F.avg_pool2d(x.permute(0, 3, 1, 2), 4)
        answers: Tensor = self.head(pooled)
        return answers


def windows() -> Training:
    torch.manual_seed(66)
    return adam(Windows(16), partial(digits, batch=16), per_sample, lr=4e-3, steps=150)


THEME = Healthy(
    "ind4-attention-sound",
    {
        "vit": vit,
        "language-fused": language,
        "deep-pre-norm": deep,
        "library-pair": pair,
        "lstm-looking": looking,
        "linear-attention": linear_attention,
        "latents-beside": beside,
        "perceiver": perceiver,
        "memory-network": memory_network,
        "pointer": pointer,
        "bags": bags,
        "non-local": pixels,
        "gpt2": gpt2,
        "llama": llama,
        "t5": t5,
        "windows": windows,
    },
    may={
        # One look follows from the last by the cell's state alone.
        "lstm-looking": ["information-bottleneck"],
        # One vector of 20 numbers ties the reads of 8 entries together.
        "memory-network": ["information-bottleneck"],
    },
)

THEMES = [THEME]
