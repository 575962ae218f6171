"""Attention that is shut off, cut from the gradient, or held by no optimizer."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_tenth_a import (
    LETTERS,
    digits,
    letters,
    marked,
    pairs,
    sequences,
)
from analyses.faults.symptoms import branch_starved, left_out, no_gradient_before
from analyses.faults.training import Training

SPLITS = ("test",)


class Gated(nn.Module):
    """Image rows with a gate before the attention is added."""

    def __init__(self, gate: float, width: int = 32) -> None:
        super().__init__()
        self.rows, self.place = nn.Linear(8, width), nn.Parameter(torch.randn(8, width) * 0.3)
        self.norm = nn.LayerNorm(width)
        self.attend = nn.MultiheadAttention(width, 2, batch_first=True)
        self.gate = nn.Parameter(torch.tensor(gate))
        self.ff = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, width))
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.rows(x) + self.place
        n = self.norm(h)
        h = h + torch.sigmoid(self.gate) * self.attend(n, n, n, need_weights=False)[0]
        h = h + self.ff(h)
        return self.head(h.flatten(1))


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def gated(gate: float = 1.0) -> Training:
    torch.manual_seed(1)
    model = Gated(gate)
    return Training(
        model,
        lambda step: digits(step, 32),
        classify,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=150,
    )


class Parallel(nn.Module):
    """Attention and a perceptron side by side in each block, the attention with a scale."""

    def __init__(self, scale: float, layers: int = 2, width: int = 48) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(len(LETTERS), width), nn.Embedding(40, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 96), nn.SiLU(), nn.Linear(96, width))
            for _ in range(layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.scale = scale
        self.head = nn.Linear(width, len(LETTERS))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        for qkv, mlp, norm in zip(self.qkv, self.mlp, self.norms, strict=True):
            n = norm(h)
            q, k, v = qkv(n).unflatten(-1, (3, 3, 16)).permute(2, 0, 3, 1, 4)
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self.scale * a.transpose(1, 2).flatten(2) + mlp(n)
        return self.head(h)


def seq_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), y.flatten())


def parallel(scale: float = 1.0) -> Training:
    torch.manual_seed(2)
    model = Parallel(scale)
    return Training(
        model,
        lambda step: letters(step, 16, 32),
        seq_loss,
        torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=150,
    )


SHUT = Fault(
    "ind10-attention-shut",
    must=[["starved-pathway"]],
    may=["no-update"],
    symptom=branch_starved(1e-4),
    variants=[
        Variant(
            "gate-closed",
            gated,
            broken=partial(gated, -14.0),
            # the gate is a sigmoid at its flat end
            must=[["starved-pathway", "saturated-activation"]],
        ),
        Variant("scale-of-a-millionth", parallel, broken=partial(parallel, 1e-6)),
    ],
)


class Translator(nn.Module):
    """Encoder and decoder of the library; the memory may be cut off."""

    def __init__(self, cut: bool, width: int = 48) -> None:
        super().__init__()
        self.cut = cut
        self.source, self.target = nn.Embedding(14, width), nn.Embedding(14, width)
        self.place = nn.Embedding(12, width)
        self.net = nn.Transformer(
            width, 2, 1, 1, 96, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, 14)

    def forward(self, x: Tensor, before: Tensor) -> Tensor:
        at = self.place(torch.arange(x.shape[1]))
        memory = self.net.encoder(self.source(x) + at)
        if self.cut:
            memory = memory.detach()
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        return self.head(self.net.decoder(self.target(before) + at, memory, tgt_mask=mask))


def translate(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    before = F.pad(y[:, :-1], (1, 0), value=1)
    return F.cross_entropy(model(x, before).flatten(0, 1), y.flatten(), label_smoothing=0.05)


def translator(cut: bool = False) -> Training:
    torch.manual_seed(3)
    model = Translator(cut)
    return Training(
        model,
        lambda step: sequences(step, 24, 12, 14),
        translate,
        torch.optim.Adam(model.parameters(), 2e-3),
        steps=150,
    )


class Frozen(nn.Module):
    """Memory reader whose weights are computed for a picture, too, outside the graph or in it."""

    def __init__(self, outside: bool, width: int = 32) -> None:
        super().__init__()
        self.outside = outside
        self.key, self.value = nn.Embedding(30, width), nn.Embedding(8, width)
        self.to_q, self.to_k = nn.Linear(width, width), nn.Linear(width, width)
        self.answer = nn.Sequential(nn.Linear(width, 32), nn.ELU(), nn.Linear(32, 8))

    def weigh(self, k: Tensor, q: Tensor) -> Tensor:
        s = torch.einsum("bd,bnd->bn", self.to_q(self.key(q)), self.to_k(self.key(k)))
        return torch.softmax(s, -1)

    def forward(self, k: Tensor, v: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
        with torch.set_grad_enabled(not self.outside):
            w = self.weigh(k, q)
        return self.answer(torch.einsum("bn,bnd->bd", w, self.value(v))), w


def read_loss(model: nn.Module, k: Tensor, v: Tensor, q: Tensor, y: Tensor) -> Tensor:
    logits, _ = model(k, v, q)
    return F.cross_entropy(logits, y)


def frozen(outside: bool = False) -> Training:
    torch.manual_seed(4)
    model = Frozen(outside)
    return Training(
        model,
        lambda step: pairs(step, 48, 8, 30, 8),
        read_loss,
        torch.optim.Adam(model.parameters(), 4e-3),
        steps=250,
    )


class Places(nn.Module):
    """Post-norm layers over learned places, which may be read as plain data."""

    def __init__(self, data: bool, width: int = 40) -> None:
        super().__init__()
        self.data = data
        self.embed = nn.Embedding(12, width)
        self.place = nn.Parameter(torch.randn(1, 10, width) * 0.3)
        self.layers = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 80, dropout=0.0, batch_first=True), 2
        )
        self.head = nn.Linear(width, 12)

    def forward(self, x: Tensor) -> Tensor:
        place = self.place.data if self.data else self.place
        return self.head(self.layers(self.embed(x) + place))


def places(data: bool = False) -> Training:
    torch.manual_seed(5)
    model = Places(data)
    return Training(
        model,
        lambda step: sequences(step, 24, 10, 12, "sort"),
        seq_loss,
        torch.optim.Adam(model.parameters(), 1e-3),
        steps=150,
    )


CUT = Fault(
    "ind10-attention-cut",
    must=[["detached"]],
    may=["no-update"],
    symptom=no_gradient_before(),
    variants=[
        Variant("memory-detached", translator, broken=partial(translator, True)),
        Variant("weights-without-grad", frozen, broken=partial(frozen, True)),
        Variant("places-as-data", places, broken=partial(places, True)),
    ],
)


class Rows(nn.Module):
    """An image's rows through attention of the library, with a class token."""

    def __init__(self, width: int = 36) -> None:
        super().__init__()
        self.rows = nn.Linear(8, width)
        self.cls = nn.Parameter(torch.randn(1, 1, width) * 0.2)
        self.place = nn.Parameter(torch.randn(9, width) * 0.2)
        self.first = nn.MultiheadAttention(width, 3, batch_first=True)
        self.second = nn.MultiheadAttention(width, 3, batch_first=True)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.cat([self.cls.expand(len(x), -1, -1), self.rows(x)], 1) + self.place
        h = self.norm1(h + self.first(h, h, h, need_weights=False)[0])
        h = self.norm2(h + self.second(h, h, h, need_weights=False)[0])
        return self.head(h[:, 0])


def chosen(model: nn.Module, ends: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Groups with and without weight decay, told apart by the ends of the names."""
    named = list(model.named_parameters())
    yield {"params": [p for n, p in named if n.endswith(ends)], "weight_decay": 0.01}
    bare = ("bias", "cls", "place")
    yield {"params": [p for n, p in named if n.endswith(bare)], "weight_decay": 0.0}


def rows(ends: tuple[str, ...] = ("weight",)) -> Training:
    torch.manual_seed(6)
    model = Rows()
    return Training(
        model,
        lambda step: digits(step, 32),
        classify,
        torch.optim.AdamW(chosen(model, ends), 3e-3),
        steps=150,
    )


def bert(late: bool = False) -> Training:
    torch.manual_seed(7)
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=12,
            hidden_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=96,
            max_position_embeddings=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            num_labels=12,
            initializer_range=0.1,
            attn_implementation="eager",
        )
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    if late:
        model.classifier = nn.Linear(48, 12)
    return Training(model, lambda step: marked(step, 32, 8, 12), bert_loss, optimizer, steps=150)


def bert_loss(model: nn.Module, x: Tensor, flag: Tensor, y: Tensor) -> Tensor:
    return model(input_ids=x, token_type_ids=flag, labels=y).loss


class Heads(nn.Module):
    """Several heads that are modules of their own."""

    def __init__(self, width: int = 36) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(10, width), nn.Embedding(12, width)
        self.q = nn.ModuleList(nn.Linear(width, 12) for _ in range(3))
        self.k = nn.ModuleList(nn.Linear(width, 12) for _ in range(3))
        self.v = nn.ModuleList(nn.Linear(width, 12) for _ in range(3))
        self.out = nn.Sequential(nn.Linear(width, 72), nn.ReLU(), nn.Linear(72, 10))

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        heads = []
        for q, k, v in zip(self.q, self.k, self.v, strict=True):
            heads.append(F.softmax(q(h) @ k(h).mT / 12**0.5, -1) @ v(h))
        return self.out(torch.cat(heads, -1))


def heads(body: bool = True) -> Training:
    torch.manual_seed(8)
    model = Heads()
    parts: list[nn.Module] = [model.embed, model.place, model.v, model.out]
    if body:
        parts += [model.q, model.k]
    return Training(
        model,
        lambda step: sequences(step, 32, 12, 10),
        seq_loss,
        torch.optim.Adam([p for part in parts for p in part.parameters()], 3e-3),
        steps=200,
    )


FORGOTTEN = Fault(
    "ind10-attention-forgotten",
    must=[["not-in-optimizer"]],
    may=["no-update"],
    symptom=left_out(),
    variants=[
        Variant("ends-with-dot-weight", rows, broken=partial(rows, (".weight",))),
        Variant("classifier-replaced-late", bert, broken=partial(bert, True)),
        Variant("queries-and-keys-not-listed", heads, broken=partial(heads, False)),
    ],
)

FAULTS = [SHUT, CUT, FORGOTTEN]
