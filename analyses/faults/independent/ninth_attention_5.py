"""Models with attention that are as they should be."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from analyses.faults.case import Healthy
from analyses.faults.independent.kit_ninth_a import (
    digit_bags,
    digit_images,
    grammar,
    largest,
    next_word,
    recall,
    reversal,
    seeded,
    stories,
    wave,
)
from analyses.faults.training import Batch, Training


def _class(model: nn.Module, x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(x), label)


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


# ---- library models ------------------------------------------------------------------------------


class Logits(nn.Module):
    """A library model that returns logits alone."""

    def __init__(self, inner: nn.Module, argument: str) -> None:
        super().__init__()
        self.inner, self.argument = inner, argument

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(**{self.argument: x}).logits


def llama() -> Training:
    torch.manual_seed(81)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=0,
    )
    model = Logits(LlamaForCausalLM(config), "input_ids")
    return Training(
        model=model,
        batch=partial(grammar, batch=12, length=24),
        loss=_predict,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3, betas=(0.9, 0.95)),
        steps=150,
        every=5,
    )


def vit() -> Training:
    torch.manual_seed(82)
    config = ViTConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=8,
        patch_size=2,
        num_channels=1,
        num_labels=10,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        initializer_range=0.1,
    )
    model = Logits(ViTForImageClassification(config), "pixel_values")

    def batch(step: int) -> Batch:
        images, labels = digit_images(step, 24)
        return images.unsqueeze(1), labels

    return Training(
        model=model,
        batch=batch,
        loss=_class,
        optimizer=torch.optim.AdamW(model.parameters(), 2e-3),
        steps=160,
        every=5,
    )


class Seq2Seq(nn.Module):
    """T5 in small; it shifts the labels itself."""

    def __init__(self) -> None:
        super().__init__()
        config = T5Config(
            vocab_size=14,
            d_model=32,
            d_kv=16,
            d_ff=64,
            num_layers=1,
            num_decoder_layers=1,
            num_heads=2,
            dropout_rate=0.0,
            decoder_start_token_id=0,
            pad_token_id=0,
        )
        self.t5 = T5ForConditionalGeneration(config)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        return self.t5(input_ids=source, labels=target).loss


def _own_loss(model: nn.Module, source: Tensor, so_far: Tensor, target: Tensor) -> Tensor:
    return model(source, target)


def _forwards(step: int) -> Batch:
    source, _, _ = reversal(step, length=7, words=13)
    target = (source * 4) % 13
    return source, target, target


def t5() -> Training:
    torch.manual_seed(83)
    model = Seq2Seq()
    return Training(
        model=model,
        batch=_forwards,
        loss=_own_loss,
        optimizer=torch.optim.Adam(model.parameters(), 5e-3),
        steps=160,
        every=5,
    )


def distilbert() -> Training:
    torch.manual_seed(84)
    config = DistilBertConfig(
        vocab_size=24,
        dim=32,
        n_layers=2,
        n_heads=2,
        hidden_dim=64,
        max_position_embeddings=32,
        num_labels=4,
        dropout=0.0,
        attention_dropout=0.0,
        seq_classif_dropout=0.0,
        initializer_range=0.1,
        pad_token_id=23,
    )
    model = Logits(DistilBertForSequenceClassification(config), "input_ids")

    def batch(step: int) -> Batch:
        g = seeded(step, 85)
        text = torch.randint(0, 22, (32, 12), generator=g)
        text[:, 0] = 22
        return text, ((text[:, 1:] < 4).sum(1)).clamp(max=3)

    return Training(
        model=model,
        batch=batch,
        loss=_class,
        optimizer=torch.optim.AdamW(model.parameters(), 1e-3),
        steps=200,
        every=10,
    )


LIBRARY = Healthy(
    "ind9-attention-library",
    runs={"llama": llama, "vit": vit, "t5": t5, "distilbert": distilbert},
)


# ---- a pointer network ---------------------------------------------------------------------------


class Pointer(nn.Module):
    """The answer is a place of the input: the scores are the output."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.encoder = nn.LSTM(1, width, batch_first=True, bidirectional=True)
        self.keys = nn.Linear(2 * width, width)
        self.query = nn.Linear(2 * width, width)
        self.v = nn.Linear(width, 1, bias=False)

    def forward(self, numbers: Tensor) -> Tensor:
        states, (h, _) = self.encoder(numbers)
        query = self.query(torch.cat([h[0], h[1]], -1))
        return self.v(torch.tanh(self.keys(states) + query.unsqueeze(1))).squeeze(-1)


def pointer() -> Training:
    torch.manual_seed(86)
    model = Pointer(24)
    return Training(
        model=model,
        batch=largest,
        loss=_class,
        optimizer=torch.optim.Adam(model.parameters(), 5e-3),
        steps=220,
        every=10,
    )


# ---- a memory read three times -------------------------------------------------------------------


class Hops(nn.Module):
    """End-to-end memory network with adjacent weight tying."""

    def __init__(self, words: int, places: int, width: int, hops: int) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(words, width) for _ in range(hops + 1))
        self.answer = nn.Linear(width, places)
        for t in self.tables:
            nn.init.normal_(t.weight, std=0.3)  # type: ignore[arg-type]

    def forward(self, sentences: Tensor, asked: Tensor) -> Tensor:
        u = self.tables[0](asked)
        for a, c in zip(self.tables, list(self.tables)[1:], strict=False):
            p = F.softmax(torch.einsum("bnd,bd->bn", a(sentences).sum(2), u), dim=-1)
            u = u + torch.einsum("bn,bnd->bd", p, c(sentences).sum(2))
        return self.answer(u)


def _asked(model: nn.Module, sentences: Tensor, asked: Tensor, place: Tensor) -> Tensor:
    return F.cross_entropy(model(sentences, asked), place)


def hops() -> Training:
    torch.manual_seed(87)
    model = Hops(12, 6, 24, 3)
    return Training(
        model=model,
        batch=stories,
        loss=_asked,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        steps=250,
        every=10,
        clip=40.0,
    )


# ---- uniform by right ----------------------------------------------------------------------------


class Average(nn.Module):
    """A set's mean is asked for: attention that stays even is the solution."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(2, width), nn.GELU(), nn.Linear(width, width))
        self.query = nn.Parameter(torch.randn(1, width) * 0.3)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Linear(width, 2)

    def forward(self, points: Tensor) -> Tensor:
        h = self.embed(points)
        scores = self.key(h) @ self.query.T / math.sqrt(h.shape[-1])
        return self.head((scores.softmax(1) * self.value(h)).sum(1))


def _points(step: int) -> Batch:
    g = seeded(step, 88)
    points = torch.randn(32, 1, 2, generator=g) + torch.randn(32, 20, 2, generator=g)
    return points, points.mean(1)


def _squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def average() -> Training:
    torch.manual_seed(89)
    model = Average(24)
    return Training(
        model=model,
        batch=_points,
        loss=_squares,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=200,
        every=10,
    )


# ---- rectified attention beside two losses -------------------------------------------------------


class Slots(nn.Module):
    """Slots compete for the rows of an image; they are decoded, and classified."""

    def __init__(self, slots: int, width: int) -> None:
        super().__init__()
        self.rows = nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, width))
        self.place = nn.Parameter(torch.randn(8, width) * 0.3)
        self.slots = nn.Parameter(torch.randn(slots, width))
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.decode = nn.Linear(slots * width, 64)
        self.classify = nn.Linear(slots * width, 10)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        h = self.rows(image) + self.place
        scores = self.q(self.slots) @ self.k(h).transpose(1, 2) / math.sqrt(h.shape[-1])
        shares = scores.softmax(dim=1) + 1e-6
        z = (shares / shares.sum(-1, keepdim=True)) @ self.v(h)
        z = (z + self.slots).flatten(1)
        return {"image": self.decode(z).view_as(image), "class": self.classify(z)}


def _both(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    out = model(image)
    return F.cross_entropy(out["class"], label) + 0.5 * F.mse_loss(out["image"], image)


def slots() -> Training:
    torch.manual_seed(90)
    model = Slots(5, 24)
    return Training(
        model=model,
        batch=digit_images,
        loss=_both,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3),
        steps=220,
        every=10,
    )


# ---- multi-query attention with a relative bias --------------------------------------------------


class Forecast(nn.Module):
    """A decoder-only forecaster: many queries, one key, a bias for each distance."""

    def __init__(self, width: int, heads: int, length: int) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width // heads)
        self.bias = nn.Parameter(torch.zeros(heads, length))
        self.o = nn.Linear(width, width)
        self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(3))
        self.feed = nn.Sequential(
            nn.Linear(width, 3 * width), nn.SiLU(), nn.Linear(3 * width, width)
        )
        self.out = nn.Linear(width, 1)
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        B, T, C = h.shape
        n = self.norms[0](h)
        q = self.q(n).view(B, T, self.heads, -1).transpose(1, 2)
        k, v = self.kv(n).unsqueeze(1).chunk(2, -1)
        distance = torch.arange(T)[:, None] - torch.arange(T)[None, :]
        bias = self.bias[:, distance.clamp(min=0)].masked_fill(distance < 0, -math.inf)
        y = F.softmax(q @ k.mT / math.sqrt(q.shape[-1]) + bias, dim=-1) @ v
        h = h + self.o(y.transpose(1, 2).reshape(B, T, C))
        h = h + self.feed(self.norms[1](h))
        return self.out(self.norms[2](h)).squeeze(-1)


def _one_ahead(step: int) -> Batch:
    series, _ = wave(step, 12, 33)
    return series[:, :-1], series[:, 1:, 0]


def forecast() -> Training:
    torch.manual_seed(91)
    model = Forecast(32, 4, 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(
        model=model,
        batch=_one_ahead,
        loss=_squares,
        optimizer=optimizer,
        steps=220,
        every=10,
        schedule=torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 220),
    )


# ---- cross attention between a set and its summary, two optimizers -------------------------------


class SetNet(nn.Module):
    """Set transformer: induced points, then pooling by attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(64, width)
        self.points = nn.Parameter(torch.randn(1, 6, width) * 0.5)
        self.seed = nn.Parameter(torch.randn(1, 1, width) * 0.5)
        self.induce, self.back, self.pool = (Cross(width) for _ in range(3))
        self.head = nn.Linear(width, 2)

    def forward(self, bag: Tensor) -> Tensor:
        x = F.gelu(self.embed(bag))
        inner = self.induce(self.points.expand(len(x), -1, -1), x)
        x = self.back(x, inner)
        return self.head(self.pool(self.seed.expand(len(x), -1, -1), x)[:, 0])


class Cross(nn.Module):
    """Attention block: residual, norm, feed-forward, norm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.feed = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, -1)).transpose(1, 2)
        k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.kv(y).chunk(2, -1))
        read = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        h = self.n1(x + read)
        return self.n2(h + self.feed(h))


def setnet() -> Training:
    torch.manual_seed(92)
    model = SetNet(32)
    top = [*model.pool.parameters(), *model.head.parameters(), model.seed]
    rest = [p for p in model.parameters() if all(p is not t for t in top)]
    first = torch.optim.Adam(rest, 1e-3)
    second = torch.optim.Adam(top, 2e-3)

    def step(training: Training, number: int) -> dict[str, Any]:
        for optimizer in (first, second):
            optimizer.zero_grad()
        loss = training.loss_at(number)
        loss.backward()
        first.step()
        second.step()
        return {"loss": loss.detach()}

    return Training(
        model=model,
        batch=partial(digit_bags, size=8),
        loss=_class,
        optimizer=first,
        others=[second],
        steps=200,
        every=10,
        step=step,
    )


# ---- graph attention -----------------------------------------------------------------------------


class Graph(nn.Module):
    """Two layers of attention over neighbours, given as a dense mask."""

    def __init__(self, features: int, width: int, classes: int, edges: Tensor) -> None:
        super().__init__()
        self.lin = nn.ModuleList([nn.Linear(features, width), nn.Linear(width, width)])
        self.left = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(2))
        self.right = nn.ModuleList(nn.Linear(width, 1, bias=False) for _ in range(2))
        self.out = nn.Linear(width, classes)
        self.register_buffer("edges", edges)

    def forward(self, nodes: Tensor) -> Tensor:
        x = nodes
        for lin, left, right in zip(self.lin, self.left, self.right, strict=True):
            h = lin(x)
            e = F.leaky_relu(left(h) + right(h).transpose(-1, -2), 0.2)
            e = e.masked_fill(~self.edges, -1e9)  # type: ignore[operator]
            x = F.elu(torch.softmax(e, dim=-1) @ h) + (h if x is nodes else x)
        return self.out(x)


def graph() -> Training:
    torch.manual_seed(93)
    classes = torch.arange(60) % 4
    alike = classes[:, None] == classes[None, :]
    edges = (torch.rand(60, 60) < torch.where(alike, 0.3, 0.03)) | torch.eye(60, dtype=torch.bool)
    centres = torch.randn(4, 10)
    model = Graph(10, 24, 4, edges)

    def batch(step: int) -> Batch:
        noise = torch.randn(60, 10, generator=seeded(step, 94))
        return centres[classes] * 0.5 + noise, classes

    return Training(
        model=model,
        batch=batch,
        loss=_class,
        optimizer=torch.optim.Adam(model.parameters(), 5e-3, weight_decay=5e-4),
        steps=150,
        every=5,
    )


# ---- retrieval with many keys, learned to be sharp -----------------------------------------------


class Sharp(nn.Module):
    """A temperature that is learned makes the look-up exact."""

    def __init__(self, keys: int, values: int, width: int) -> None:
        super().__init__()
        self.key = nn.Embedding(keys, width)
        self.question = nn.Embedding(keys, width)
        self.value = nn.Embedding(values, width)
        self.log_scale = nn.Parameter(torch.tensor(1.5))
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, values))

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        k, q = F.normalize(self.key(key), dim=-1), F.normalize(self.question(asked), dim=-1)
        scores = self.log_scale.exp() * (k @ q.unsqueeze(-1)).squeeze(-1)
        return self.head((scores.softmax(-1).unsqueeze(-1) * self.value(value)).sum(1))


def _answer(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, asked), answer)


def sharp() -> Training:
    torch.manual_seed(95)
    model = Sharp(16, 8, 24)
    return Training(
        model=model,
        batch=recall,
        loss=_answer,
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        steps=300,
        every=10,
    )


OWN = Healthy(
    "ind9-attention-own-models",
    runs={
        "pointer-network": pointer,
        "three-hops": hops,
        "even-by-right": average,
        "slots": slots,
        "multi-query-forecast": forecast,
        "set-transformer": setnet,
        "graph-attention": graph,
        "learned-temperature": sharp,
    },
    may={
        # From hop to hop one vector passes, by construction; the first table is only looked up by.
        "three-hops": ["information-bottleneck", "softmax-borne"],
        # Keys and questions are only looked up by.
        "learned-temperature": ["softmax-borne"],
    },
)

THEMES = [LIBRARY, OWN]
