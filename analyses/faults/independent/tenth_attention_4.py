"""Healthy runs of models with attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_tenth_a import (
    LETTERS,
    digits,
    letters,
    rng,
    sequences,
    waves,
)
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def seq_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class CharModel(nn.Module):
    """A small decoder-only model in the usual way: pre-norm, fused attention, tied weights."""

    def __init__(self, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(len(LETTERS), width), nn.Embedding(48, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width, bias=False) for _ in range(layers))
        self.proj = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(layers))
        self.ln1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width),
                nn.Linear(width, 4 * width),
                nn.GELU(),
                nn.Linear(4 * width, width),
            )
            for _ in range(layers)
        )
        self.ln = nn.LayerNorm(width)
        nn.init.normal_(self.wte.weight, std=0.1)
        nn.init.normal_(self.wpe.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for ln, qkv, proj, mlp in zip(self.ln1, self.qkv, self.proj, self.mlp, strict=True):
            q, k, v = qkv(ln(h)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + proj(a.transpose(1, 2).flatten(2))
            h = h + mlp(h)
        return self.ln(h) @ self.wte.weight.T


def char_model() -> Training:
    torch.manual_seed(1)
    model = CharModel()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.95), weight_decay=0.1)
    return Training(
        model,
        lambda step: letters(step, 12, 40),
        seq_loss,
        optimizer,
        steps=150,
        clip=1.0,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 150),
    )


class Bahdanau(nn.Module):
    """GRU encoder, GRU decoder with additive attention, teacher forcing."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(14, width)
        self.encoder = nn.GRU(width, width, batch_first=True, bidirectional=True)
        self.bridge = nn.Linear(2 * width, width)
        self.cell = nn.GRUCell(3 * width, width)
        self.wk, self.wq = nn.Linear(2 * width, width), nn.Linear(width, width, bias=False)
        self.v = nn.Linear(width, 1, bias=False)
        self.out = nn.Linear(3 * width, 14)

    def forward(self, x: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        memory, last = self.encoder(self.embed(x))
        h = torch.tanh(self.bridge(torch.cat([last[0], last[1]], -1)))
        keys = self.wk(memory)
        logits, maps = [], []
        for token in self.embed(before).unbind(1):
            a = self.v(torch.tanh(keys + self.wq(h).unsqueeze(1))).squeeze(-1).softmax(-1)
            context = torch.einsum("bn,bnd->bd", a, memory)
            h = self.cell(torch.cat([token, context], -1), h)
            logits.append(self.out(torch.cat([h, context], -1)))
            maps.append(a)
        return torch.stack(logits, 1), torch.stack(maps, 1)


def forced(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    logits, _ = model(x, F.pad(y[:, :-1], (1, 0), value=1))
    return F.cross_entropy(logits.transpose(1, 2), y)


def bahdanau() -> Training:
    torch.manual_seed(2)
    model = Bahdanau()
    return Training(
        model,
        lambda step: sequences(step, 32, 8, 14),
        forced,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=200,
        clip=5.0,
    )


class VisionEncoder(nn.Module):
    """Convolutional stem, library encoder, class token."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, width, 2, 2),
        )
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.place = nn.Parameter(torch.randn(1, 17, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, 4, 96, dropout=0.1, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x.unsqueeze(1)).flatten(2).mT
        h = torch.cat([self.cls.expand(len(h), -1, -1), h], 1) + self.place
        return self.head(self.encoder(h)[:, 0])


def vision() -> Training:
    torch.manual_seed(3)
    model = VisionEncoder()
    return Training(
        model,
        lambda step: digits(step, 32),
        classify,
        torch.optim.AdamW(model.parameters(), 2e-3, weight_decay=0.05),
        steps=150,
    )


class Pointer(nn.Module):
    """Points at the largest of the numbers given."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.read = nn.LSTM(1, width, batch_first=True)
        self.w1, self.w2 = nn.Linear(width, width), nn.Linear(width, width)
        self.v = nn.Parameter(torch.randn(width) * 0.3)

    def forward(self, x: Tensor) -> Tensor:
        states, (h, _) = self.read(x.unsqueeze(-1))
        return torch.tanh(self.w2(h[0]).unsqueeze(1) + self.w1(states)) @ self.v


def point(model: nn.Module, x: Tensor) -> Tensor:
    return F.nll_loss(torch.log_softmax(model(x), -1), x.argmax(1))


def pointer() -> Training:
    torch.manual_seed(4)
    model = Pointer()
    return Training(
        model,
        lambda step: (torch.rand(64, 10, generator=rng(step, 41)) * 2 - 1,),
        point,
        torch.optim.Adam(model.parameters(), 5e-3),
        steps=300,
    )


class Forecaster(nn.Module):
    """Asks for what comes next, by cross attention over an encoded series."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.lift = nn.Conv1d(1, width, 5, padding=2)
        self.place = nn.Parameter(torch.randn(32, width) * 0.2)
        self.ask = nn.Parameter(torch.randn(4, width) * 0.2)
        self.mine = nn.MultiheadAttention(width, 4, batch_first=True)
        self.cross = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.out = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x.unsqueeze(1)).mT + self.place
        h = self.norms[0](h + self.mine(h, h, h, need_weights=False)[0])
        q = self.ask.expand(len(x), -1, -1)
        q = self.norms[1](q + self.cross(q, h, h, need_weights=False)[0])
        return self.out(q).squeeze(-1)


def squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def forecaster() -> Training:
    torch.manual_seed(5)
    model = Forecaster()
    return Training(
        model,
        lambda step: waves(step, 48, 32),
        squares,
        torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
    )


def llama() -> Training:
    torch.manual_seed(6)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(LETTERS),
            hidden_size=48,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.1,
            bos_token_id=0,
            eos_token_id=1,
            use_cache=False,
        )
    )

    def batch(step: int) -> Batch:
        return (letters(step, 12, 40)[0],)

    return Training(
        model, batch, llama_loss, torch.optim.AdamW(model.parameters(), 2e-3), steps=150
    )


def llama_loss(model: nn.Module, x: Tensor) -> Tensor:
    return model(input_ids=x, labels=x)["loss"]


def masked() -> Training:
    torch.manual_seed(7)
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=16,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=24,
            initializer_range=0.08,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )
    )

    def batch(step: int) -> Batch:
        """Two equal halves; a tenth of all tokens is hidden, behind token 0."""
        x = torch.randint(1, 16, (24, 8), generator=rng(step, 42)).repeat(1, 2)
        hidden = torch.rand(24, 16, generator=rng(step, 43)) < 0.1
        return x.masked_fill(hidden, 0), x.masked_fill(~hidden, -100)

    return Training(model, batch, mlm_loss, torch.optim.AdamW(model.parameters(), 3e-3), steps=300)


def mlm_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return model(input_ids=x, labels=y).loss


class SetMean(nn.Module):
    """Attention over a set whose mean is asked for: uniform is right."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.lift = nn.Sequential(nn.Linear(3, width), nn.ReLU(), nn.Linear(width, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.down = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lift(x)
        w = torch.softmax(self.q(h) @ self.k(h).mT / 24**0.5, dim=-1)
        return self.down((h + w @ self.v(h)).mean(1))


def mean_of(step: int) -> Batch:
    g = rng(step, 44)
    x = torch.randn(48, 12, 3, generator=g) + torch.randn(48, 1, 3, generator=g)
    return x, x.mean(1)


def set_mean() -> Training:
    torch.manual_seed(8)
    model = SetMean()
    return Training(model, mean_of, squares, torch.optim.Adam(model.parameters(), 3e-3), steps=150)


class GraphAttention(nn.Module):
    """Two layers of additive graph attention on one graph with communities."""

    def __init__(self, adjacency: Tensor, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.register_buffer("missing", ~adjacency)
        self.missing: Tensor
        self.w = nn.ModuleList([nn.Linear(8, width * heads), nn.Linear(width * heads, 4 * heads)])
        self.left = nn.ParameterList(torch.randn(heads, d) * 0.3 for d in (width, 4))
        self.right = nn.ParameterList(torch.randn(heads, d) * 0.3 for d in (width, 4))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        for i, w in enumerate(self.w):
            h = w(x).unflatten(-1, (self.heads, -1)).transpose(0, 1)
            s = (h * self.left[i].unsqueeze(1)).sum(-1)
            t = (h * self.right[i].unsqueeze(1)).sum(-1)
            e = F.leaky_relu(s.unsqueeze(-1) + t.unsqueeze(-2), 0.2)
            a = e.masked_fill(self.missing, -1e9).softmax(-1) @ h
            x = F.elu(a.transpose(0, 1).flatten(1)) if i == 0 else a.mean(0)
        return x


def graph() -> Training:
    torch.manual_seed(9)
    labels = torch.arange(120) % 4
    same = labels[:, None] == labels
    near = torch.rand(120, 120) < torch.where(same, 0.15, 0.02)
    adjacency = near | near.T | torch.eye(120, dtype=torch.bool)
    x = F.one_hot(labels, 8).float() + 1.5 * torch.randn(120, 8)
    model = GraphAttention(adjacency)

    return Training(
        model,
        lambda step: (x, labels),
        classify,
        torch.optim.Adam(model.parameters(), 1e-2, weight_decay=5e-4),
        steps=150,
    )


class Reader(nn.Module):
    """Latents that read pixels once and think about them with self-attention."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.pixel = nn.Linear(1, width)
        self.place = nn.Parameter(torch.randn(64, width) * 0.5)
        self.latents = nn.Parameter(torch.randn(16, width) * 0.5)
        self.cross = nn.MultiheadAttention(width, 2, batch_first=True)
        self.think = nn.TransformerEncoderLayer(width, 2, 80, dropout=0.0, batch_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        p = self.pixel(x.flatten(1).unsqueeze(-1)) + self.place
        z = self.latents.expand(len(x), -1, -1)
        z = z + self.cross(z, p, p, need_weights=False)[0]
        return self.head(self.think(z).mean(1))


def reader() -> Training:
    torch.manual_seed(10)
    model = Reader()
    return Training(
        model,
        lambda step: digits(step, 32),
        classify,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=200,
    )


SOUND = Healthy(
    "ind10-attention-sound",
    runs={
        "char-model": char_model,
        "translation-with-additive-attention": bahdanau,
        "vision-encoder": vision,
        "pointer-to-the-largest": pointer,
        "forecast-by-cross-attention": forecaster,
        "llama": llama,
        "masked-bert": masked,
        "mean-of-a-set": set_mean,
        "graph-attention": graph,
        "latents-read-pixels": reader,
    },
)

THEMES = [SOUND]
