"""Softmaxes of attention that hardly choose, or that chose before anything was learned."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_a import (
    LETTERS,
    bags,
    digits,
    fused_peaked,
    fused_uniform,
    letters,
    marked,
    pairs,
    rng,
    sequences,
    uniform,
)
from analyses.faults.symptoms import peaked
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


# ----------------------------------------------------------------- attention that hardly chooses


class CosineBlock(nn.Module):
    """A pre-norm block whose heads compare directions of queries and keys."""

    def __init__(self, width: int, heads: int, scale: float, learned: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        start = torch.full((heads, 1, 1), math.log(scale))
        if learned:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        logits = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = (logits * self.scale.exp()).softmax(-1) @ v
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class MarkReader(nn.Module):
    """Reads the token that is marked, at a place of its own in front."""

    def __init__(self, scale: float, learned: bool, width: int = 48) -> None:
        super().__init__()
        self.token, self.flag = nn.Embedding(12, width), nn.Embedding(2, width)
        self.front = nn.Parameter(torch.randn(width) * 0.5)
        self.block = CosineBlock(width, 2, scale, learned)
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor, flag: Tensor) -> Tensor:
        h = self.token(x) + self.flag(flag)
        h = torch.cat([self.front.expand(len(x), 1, -1), h], 1)
        return self.head(self.block(h)[:, 0])


def mark_loss(model: nn.Module, x: Tensor, flag: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x, flag), y)


def cosine(scale: float = 12.0, learned: bool = True) -> Training:
    torch.manual_seed(3)
    model = MarkReader(scale, learned)
    return Training(
        model,
        lambda step: marked(step, 32, 200, 12),
        mark_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
    )


class Memory(nn.Module):
    """Looks a key up in a memory by similarity over a temperature."""

    def __init__(self, temperature: float, multiply: bool) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(40, 32), nn.Embedding(10, 32)
        self.ask = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        self.file = nn.Linear(32, 32)
        self.answer = nn.Linear(32, 10)
        self.temperature, self.multiply = temperature, multiply

    def forward(self, k: Tensor, v: Tensor, q: Tensor) -> dict[str, Tensor]:
        asked, filed = self.ask(self.key(q)), self.file(self.key(k))
        near = torch.einsum("bd,bnd->bn", F.normalize(asked, dim=-1), F.normalize(filed, dim=-1))
        scores = near * self.temperature if self.multiply else near / self.temperature
        weights = torch.softmax(scores, dim=1)
        read = torch.einsum("bn,bnd->bd", weights, self.value(v))
        return {"logits": self.answer(read), "weights": weights}


def memory_loss(model: nn.Module, k: Tensor, v: Tensor, q: Tensor, y: Tensor) -> Tensor:
    out: dict[str, Tensor] = model(k, v, q)
    return F.cross_entropy(out["logits"], y)


def memory(temperature: float = 0.07, multiply: bool = False) -> Training:
    torch.manual_seed(11)
    model = Memory(temperature, multiply)
    return Training(
        model,
        lambda step: pairs(step, 64, 20, 40, 10),
        memory_loss,
        torch.optim.AdamW(model.parameters(), 4e-3),
        steps=400,
        every=10,
    )


class ScaledTwice(nn.Module):
    """Fused attention; queries and keys may have been scaled before."""

    def __init__(self, width: int, before: bool) -> None:
        super().__init__()
        self.before = before
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 1, -1)).permute(2, 0, 3, 1, 4)
        if self.before:
            q, k = q / q.shape[-1], k / k.shape[-1]
        return self.proj(F.scaled_dot_product_attention(q, k, v).squeeze(1))


class Reverser(nn.Module):
    """An encoder that writes at each place what stands at another."""

    def __init__(self, before: bool, width: int = 64, n: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, width)
        self.place = nn.Parameter(torch.randn(n, width))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.attends = nn.ModuleList(ScaledTwice(width, before) for _ in range(2))
        self.head = nn.Linear(width, 20)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        for norm, attend in zip(self.norms, self.attends, strict=True):
            h = h + attend(norm(h))
        return self.head(h)


def seq_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def reverser(before: bool = False) -> Training:
    torch.manual_seed(5)
    model = Reverser(before)
    return Training(
        model,
        lambda step: sequences(step, 32, 16, 20),
        seq_loss,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=200,
    )


class GatedBag(nn.Module):
    """Attention pooling with a gate, for bags of instances."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(width, 48), nn.ReLU(), nn.Linear(48, 32))
        self.tanh, self.gate = nn.Linear(32, 24), nn.Linear(32, 24)
        self.score = nn.Linear(24, 1)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        s = self.score(torch.tanh(self.tanh(h)) * torch.sigmoid(self.gate(h))).squeeze(-1)
        a = s.softmax(1)
        return self.out((a.unsqueeze(-1) * h).sum(1)).squeeze(-1), a


def bag_loss(weight: float, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logit, a = model(x)
    entropy = torch.special.entr(a).sum(1).mean()
    return F.binary_cross_entropy_with_logits(logit, y) + weight * (math.log(a.shape[1]) - entropy)


def gated(weight: float = 0.0) -> Training:
    torch.manual_seed(2)
    model = GatedBag()
    return Training(
        model,
        lambda step: bags(step, 48, 100, 24),
        partial(bag_loss, weight),
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
    )


def gemma(scalar: int = 16) -> Training:
    torch.manual_seed(4)
    config = Gemma2Config(
        vocab_size=24,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=3,
        head_dim=16,
        query_pre_attn_scalar=scalar,
        attn_implementation="eager",
        max_position_embeddings=64,
        initializer_range=0.08,
        use_cache=False,
    )
    model = Gemma2ForCausalLM(config)

    def batch(step: int) -> Batch:
        x = torch.randint(1, 24, (24, 10), generator=rng(step, 21))
        return (torch.cat([x, torch.zeros(24, 1, dtype=torch.long), x], 1),)

    return Training(
        model, batch, gemma_loss, torch.optim.AdamW(model.parameters(), 3e-3), steps=300
    )


def gemma_loss(model: nn.Module, ids: Tensor) -> Tensor:
    """Only the second half can be known: it repeats the first."""
    logits = model(input_ids=ids).logits[:, 10:-1]
    return F.cross_entropy(logits.flatten(0, 1), ids[:, 11:].flatten())


DIFFUSE = Fault(
    "ind10-attention-diffuse",
    must=[["diffuse-softmax"]],
    variants=[
        Variant(
            "cosine-without-scale",
            cosine,
            broken=partial(cosine, 1.0, False),
            may=["vanishing-gradient"],
            symptom=uniform(0.95, 0.1),
        ),
        Variant(
            "temperature-multiplied",
            memory,
            broken=partial(memory, 0.07, True),
            may=["vanishing-gradient"],
            symptom=uniform(0.95, 0.1),
        ),
        Variant(
            "scaled-three-times",
            reverser,
            broken=partial(reverser, True),
            symptom=fused_uniform(partial(reverser, True), 0.95, 0.1),
        ),
        Variant(
            "entropy-bonus",
            gated,
            broken=partial(gated, 10.0),
            may=["vanishing-gradient"],
            symptom=uniform(0.95, 0.1),
        ),
        Variant(
            "query-scalar",
            gemma,
            broken=partial(gemma, 10**12),
            may=["starved-pathway"],
            symptom=uniform(0.87, 0.1),
        ),
    ],
)


# --------------------------------------------------------- attention that chose before it learned


class OneHead(nn.Module):
    """A single head written with einsum, normal weights of standard deviation 1 or scaled ones."""

    def __init__(self, std: float, scale: float, width: int = 64) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(30, width), nn.Embedding(8, width)
        self.wq = nn.Parameter(torch.randn(width, width) * std)
        self.wk = nn.Parameter(torch.randn(width, width) * std)
        self.wv = nn.Parameter(torch.randn(width, width) * width**-0.5)
        self.scale = scale
        self.head = nn.Linear(width, 8)

    def forward(self, k: Tensor, v: Tensor, q: Tensor) -> Tensor:
        m = self.key(k) + self.value(v)
        s = torch.einsum("bd,bnd->bn", self.key(q) @ self.wq, m @ self.wk)
        return self.head(torch.einsum("bn,bnd->bd", torch.softmax(s * self.scale, -1), m @ self.wv))


def pair_loss(model: nn.Module, k: Tensor, v: Tensor, q: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(k, v, q), y)


def one_head(std: float = 0.125, scale: float = 0.125) -> Training:
    torch.manual_seed(8)
    model = OneHead(std, scale)
    return Training(
        model,
        lambda step: pairs(step, 64, 12, 30, 8),
        pair_loss,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=400,
        every=10,
    )


class WrongWay(nn.Module):
    """Decoder-only blocks on fused attention with a scale that is given."""

    def __init__(self, power: float, width: int = 64, layers: int = 2) -> None:
        super().__init__()
        self.power = power
        self.embed = nn.Embedding(len(LETTERS), width)
        self.place = nn.Embedding(48, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.ff = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 64))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        for qkv, proj, ff in zip(self.qkv, self.proj, self.ff, strict=True):
            q, k, v = (
                qkv(F.layer_norm(h, h.shape[-1:])).unflatten(-1, (3, 2, 32)).permute(2, 0, 3, 1, 4)
            )
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=32**self.power)
            h = h + proj(a.transpose(1, 2).flatten(2))
            h = h + ff(h)
        return self.head(self.norm(h))


def wrong_way(power: float = -0.5) -> Training:
    torch.manual_seed(9)
    model = WrongWay(power)
    return Training(
        model,
        lambda step: letters(step, 16, 40),
        seq_loss,
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=200,
    )


class Columns(nn.Module):
    """Columns of a table as tokens of nn.MultiheadAttention."""

    def __init__(self, columns: int = 10, width: int = 32) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns, width) * 0.5)
        self.bias = nn.Parameter(torch.randn(columns, width) * 0.5)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> Tensor:
        t = x.unsqueeze(-1) * self.weight + self.bias
        a, _ = self.attend(t, t, t, need_weights=False)
        return self.head((t + a).mean(1)).squeeze(-1)


def table(step: int, raw: bool) -> Batch:
    g = rng(step, 22)
    x = torch.randn(64, 10, generator=g)
    y = torch.sin(x[:, 0] * 2) * x[:, 1] + 0.5 * x[:, 2]
    return (x * 300 + 500 if raw else x), y


def regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def columns(raw: bool = False) -> Training:
    torch.manual_seed(10)
    model = Columns()
    return Training(
        model,
        partial(table, raw=raw),
        regress,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
    )


class Episodes(nn.Module):
    """Few-shot classification: labels of the support by attention over cosine similarities."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.GELU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GELU(),
            nn.Flatten(),
            nn.Linear(32 * 16, 32),
        )

    def forward(self, support: Tensor, labels: Tensor, query: Tensor) -> Tensor:
        s, q = (F.normalize(self.net(x.unsqueeze(1)), dim=-1) for x in (support, query))
        weights = F.softmax(q @ s.T / self.temperature, dim=-1)
        return weights @ F.one_hot(labels, 10).float()


def episode(step: int) -> Batch:
    x, y = digits(step, 80)
    x = x + 0.3 * torch.randn(x.shape, generator=rng(step, 23))
    return x[:48], y[:48], x[48:], y[48:]


def episode_loss(model: nn.Module, s: Tensor, labels: Tensor, q: Tensor, y: Tensor) -> Tensor:
    return F.nll_loss(torch.log(model(s, labels, q) + 1e-6), y)


def matching(temperature: float = 0.1) -> Training:
    torch.manual_seed(12)
    model = Episodes(temperature)
    return Training(
        model,
        episode,
        episode_loss,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=150,
    )


class Windowed(nn.Module):
    """Attention by hand within a window: |i − j| ≤ reach."""

    def __init__(self, reach: int, width: int = 40) -> None:
        super().__init__()
        self.reach = reach
        self.embed, self.place = nn.Embedding(10, width), nn.Embedding(24, width)
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 80), nn.SiLU(), nn.Linear(80, 10))

    def forward(self, x: Tensor) -> Tensor:
        i = torch.arange(x.shape[1])
        h = self.embed(x) + self.place(i)
        far = (i[:, None] - i).abs() > self.reach
        s = self.to_q(h) @ self.to_k(h).mT / math.sqrt(h.shape[-1])
        w = torch.softmax(s.masked_fill(far, -1e9), dim=-1)
        return self.head(self.norm(h + w @ self.to_v(h)))


def neighbour(step: int) -> Batch:
    """At each place, the token three places before."""
    x = torch.randint(10, (24, 24), generator=rng(step, 24))
    return x, x.roll(3, 1)


def windowed(reach: int = 24) -> Training:
    torch.manual_seed(13)
    model = Windowed(reach)
    return Training(
        model,
        neighbour,
        seq_loss,
        torch.optim.RMSprop(model.parameters(), 1e-3),
        steps=300,
    )


def gpt(std: float = 0.0) -> Training:
    torch.manual_seed(14)
    model = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(LETTERS),
            n_positions=48,
            n_embd=48,
            n_layer=3,
            n_head=3,
            bos_token_id=0,
            eos_token_id=1,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            attn_implementation="eager",
            use_cache=False,
        )
    )
    if std:
        for block in model.transformer.h:
            nn.init.normal_(block.attn.c_attn.weight[:, :96], std=std)
    return Training(
        model,
        lambda step: letters(step, 16, 36),
        gpt_loss,
        torch.optim.AdamW(model.parameters(), 2e-3),
        steps=150,
    )


def gpt_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).logits.transpose(1, 2), y)


PEAKED = Fault(
    "ind10-attention-peaked",
    must=[["peaked-softmax"]],
    variants=[
        Variant(
            "normal-weights-unscaled",
            one_head,
            broken=partial(one_head, 1.0, 1.0),
            symptom=peaked(0.1),
        ),
        Variant(
            "root-multiplied",
            wrong_way,
            broken=partial(wrong_way, 1.5),
            symptom=fused_peaked(partial(wrong_way, 1.5), 0.15, 0.02),
        ),
        Variant(
            "raw-columns",
            columns,
            broken=partial(columns, True),
            must=[["peaked-softmax", "unscaled-input"]],
            symptom=peaked(0.05),
        ),
        Variant(
            "temperature-thousandth",
            matching,
            broken=partial(matching, 0.0001),
            may=["exploding-gradient"],
            symptom=peaked(0.1),
        ),
        Variant(
            "window-of-one",
            windowed,
            broken=partial(windowed, 0),
            may=["starved-pathway", "no-update"],
            symptom=peaked(0.05),
        ),
        Variant(
            "initialised-wide",
            gpt,
            broken=partial(gpt, 1.0),
            symptom=peaked(0.1),
        ),
    ],
)

FAULTS = [DIFFUSE, PEAKED]
