"""Attention that goes wrong: too sharp, too flat, too narrow, out of reach, cut off."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_eighth_attention import (
    both,
    ce,
    delayed,
    dice,
    digits,
    flat_attention,
    funnel,
    join,
    patches,
    pointers,
    recall,
    reversal,
    split,
)
from analyses.faults.symptoms import (
    branch_starved,
    decays,
    diffuse,
    learns_less,
    no_gradient_before,
    peaked,
)
from analyses.faults.training import Batch, Training

# ---------------------------------------------------------------- too sharp


class PostNormRecall(nn.Module):
    """One post-norm block over pairs and a question; its embeddings are scaled by √width."""

    def __init__(self, slip: bool, width: int = 96, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.root = math.sqrt(width)
        self.key = nn.Embedding(40, width)
        self.value = nn.Embedding(11, width)
        for table in (self.key, self.value):
            nn.init.normal_(table.weight, std=1.0 if slip else width**-0.5)
        self.scale = 1.0 if slip else (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1 = nn.LayerNorm(width)
        self.ff = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, width))
        self.norm2 = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        blank = torch.full_like(asked, 10)
        k = torch.cat([keys, asked[:, None]], 1)
        v = torch.cat([values, blank[:, None]], 1)
        x = (self.key(k) + self.value(v)) * self.root
        q, kk, vv = (split(t, self.heads) for t in self.qkv(x).chunk(3, -1))
        weights = (q @ kk.transpose(-2, -1) * self.scale).softmax(-1)
        x = self.norm1(x + self.out(join(weights @ vv)))
        x = self.norm2(x + self.ff(x))
        return self.head(x[:, -1])


def post_norm(slip: bool) -> Training:
    torch.manual_seed(11)
    model = PostNormRecall(slip)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, recall(), ce, optimizer, steps=150)


class PointerNet(nn.Module):
    """Pre-norm attention of every place to where its pointer points."""

    def __init__(self, scale: str, width: int = 192, heads: int = 1) -> None:
        super().__init__()
        self.scale, self.heads = scale, heads
        self.here = nn.Embedding(16, width)
        self.there = nn.Embedding(16, width)
        self.symbol = nn.Embedding(8, width)
        self.norm = nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        for layer in (self.q, self.k, self.v):
            nn.init.xavier_uniform_(layer.weight)
        self.o = nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, to: Tensor, symbol: Tensor) -> Tensor:
        x = self.here.weight + self.there(to) + self.symbol(symbol)
        y = self.norm(x)
        q, k, v = (split(f(y), self.heads) for f in (self.q, self.k, self.v))
        root = math.sqrt(q.shape[-1])
        scores = q @ k.transpose(-2, -1)
        scores = scores / root if self.scale == "divided" else scores * root
        x = x + self.o(join(F.softmax(scores, dim=-1) @ v))
        return self.head(x)


def pointer_net(scale: str) -> Training:
    torch.manual_seed(12)
    model = PointerNet(scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    return Training(model, pointers(16), ce, optimizer, steps=240)


class ContentMemory(nn.Module):
    """Slots addressed by the cosine with the question, times a strength."""

    def __init__(self, strength: float, width: int = 48) -> None:
        super().__init__()
        self.strength = strength
        self.slot_key = nn.Sequential(nn.Embedding(40, width), nn.Linear(width, width), nn.Tanh())
        self.ask_key = nn.Sequential(nn.Embedding(40, width), nn.Linear(width, width), nn.Tanh())
        self.content = nn.Embedding(10, 24)
        self.answer = nn.Linear(24, 10)

    def address(self, keys: Tensor, asked: Tensor) -> Tensor:
        ask = F.normalize(self.ask_key(asked), dim=-1)
        slots = F.normalize(self.slot_key(keys), dim=-1)
        likeness = torch.einsum("bd,bnd->bn", ask, slots)
        return torch.softmax(self.strength * likeness, dim=1)


def memory_loss(
    model: ContentMemory, keys: Tensor, values: Tensor, asked: Tensor, target: Tensor
) -> Tensor:
    """Address, read, answer."""
    weights = model.address(keys, asked)
    read = torch.einsum("bn,bnd->bd", weights, model.content(values))
    return F.cross_entropy(model.answer(read), target)


def content_memory(strength: float) -> Training:
    torch.manual_seed(13)
    model = ContentMemory(strength)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, recall(), memory_loss, optimizer, steps=400, every=10)


class SensorPool(nn.Module):
    """A bag of sensor readings, pooled by scores of an additive kind."""

    def __init__(self, standard: bool) -> None:
        super().__init__()
        self.standard = standard
        self.score = nn.Linear(6, 1)
        self.features = nn.Sequential(nn.Linear(6, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh())
        self.head = nn.Linear(32, 4)

    def forward(self, readings: Tensor) -> Tensor:
        normal = (readings - 3000.0) / 900.0
        x = normal if self.standard else readings
        weights = torch.softmax(self.score(x).squeeze(-1), dim=1)
        pooled = (weights[..., None] * self.features(normal)).sum(1)
        return self.head(pooled)


def sensor_bags(step: int) -> Batch:
    """Readings in their own units; the class is in the one with the alarm channel up."""
    g = dice(step, 6)
    x = torch.randn(48, 20, 6, generator=g)
    label = torch.randint(4, (48,), generator=g)
    at = torch.randint(20, (48,), generator=g)
    rows = torch.arange(48)
    x[..., 0] = 0.3 * x[..., 0] - 0.5
    x[rows, at, 0] = 2.5
    x[rows, at, 1] = 1.5 * (label % 2).float() * 2 - 1.5
    x[rows, at, 2] = 1.5 * (label // 2).float() * 2 - 1.5
    return 3000.0 + 900.0 * x, label


def sensor_pool(standard: bool) -> Training:
    torch.manual_seed(14)
    model = SensorPool(standard)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, sensor_bags, ce, optimizer, steps=300)


class BiasedByDistance(nn.Module):
    """A causal model whose scores have a penalty that grows with distance, one slope per head."""

    def __init__(self, slopes: list[float], width: int = 48, layers: int = 2) -> None:
        super().__init__()
        self.slopes = slopes
        self.embed = nn.Embedding(8, width)
        self.where = nn.Parameter(torch.randn(24, width) * 0.5)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "n1": nn.LayerNorm(width),
                    "qkv": nn.Linear(width, 3 * width),
                    "o": nn.Linear(width, width),
                    "n2": nn.LayerNorm(width),
                    "up": nn.Linear(width, 2 * width),
                    "down": nn.Linear(2 * width, width),
                }
            )
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.where
        n = tokens.shape[1]
        place = torch.arange(n)
        distance = (place[:, None] - place[None, :]).clamp(min=0)
        bias = -torch.tensor(self.slopes)[:, None, None] * distance
        future = torch.ones(n, n).triu(1).bool()
        for b in self.blocks:
            assert isinstance(b, nn.ModuleDict)
            parts = b["qkv"](b["n1"](x)).chunk(3, -1)
            q, k, v = (split(t, len(self.slopes)) for t in parts)
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias
            x = x + b["o"](join(scores.masked_fill(future, -1e9).softmax(-1) @ v))
            x = x + b["down"](F.gelu(b["up"](b["n2"](x))))
        return self.head(self.norm(x))


def past(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Only where the answer has been seen."""
    return F.cross_entropy(model(x)[:, 6:].flatten(0, 1), y[:, 6:].flatten())


def by_distance(slopes: list[float]) -> Training:
    torch.manual_seed(15)
    model = BiasedByDistance(slopes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    return Training(model, delayed(), past, optimizer, steps=150)


class ConcretePixels(nn.Module):
    """Chooses ten pixels by softmaxes with noise, and rebuilds the image from them."""

    def __init__(self, hot: float, cold: float, steps: int) -> None:
        super().__init__()
        self.hot, self.cold, self.steps = hot, cold, steps
        self.logits = nn.Parameter(torch.randn(10, 64) * 0.1)
        self.rebuild = nn.Sequential(nn.Linear(10, 96), nn.GELU(), nn.Linear(96, 64))

    def forward(self, pixels: Tensor, step: int) -> Tensor:
        temperature = self.hot * (self.cold / self.hot) ** (step / self.steps)
        noise = torch.rand(10, 64, generator=dice(step, 7)).clamp(1e-6, 1 - 1e-6)
        gumbel = -torch.log(-torch.log(noise))
        choice = torch.softmax((self.logits + gumbel) / temperature, dim=-1)
        return self.rebuild(pixels @ choice.T)


def concrete(hot: float, cold: float) -> Training:
    torch.manual_seed(16)
    steps = 400
    model = ConcretePixels(hot, cold, steps)
    images = digits(64)

    def batch(step: int) -> Batch:
        return images(step)[0].flatten(1), torch.tensor(step)

    def loss(model: nn.Module, pixels: Tensor, step: Tensor) -> Tensor:
        return F.mse_loss(model(pixels, int(step)), pixels)

    groups = [
        {"params": [model.logits], "lr": 2e-2},
        {"params": list(model.rebuild.parameters()), "lr": 3e-3},
    ]
    return Training(model, batch, loss, torch.optim.Adam(groups), steps=steps, every=10)


class LibraryPointers(nn.Module):
    """The library's encoder on the pointer task."""

    def __init__(self, width: int = 96) -> None:
        super().__init__()
        self.there = nn.Embedding(12, width)
        self.symbol = nn.Embedding(8, width)
        self.here = nn.Parameter(torch.randn(12, width))
        layer = nn.TransformerEncoderLayer(
            width, 4, dim_feedforward=96, dropout=0.0, batch_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(width, 8)

    def forward(self, to: Tensor, symbol: Tensor) -> Tensor:
        return self.head(self.encoder(self.here + self.there(to) + self.symbol(symbol)))


def library_pointers(init: str) -> Training:
    torch.manual_seed(17)
    model = LibraryPointers()
    for name, p in model.encoder.named_parameters():
        if p.dim() > 1 and "in_proj" in name:
            if init == "normal":
                nn.init.normal_(p)
            else:
                nn.init.xavier_uniform_(p)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, pointers(), ce, optimizer, steps=200)


PEAKED = Fault(
    "ind8-peaked",
    must=[["peaked-softmax"]],
    symptom=peaked(0.02),
    variants=[
        Variant(
            "embeddings-times-root", partial(post_norm, False), broken=partial(post_norm, True)
        ),
        Variant(
            "scores-times-root",
            partial(pointer_net, "divided"),
            broken=partial(pointer_net, "multiplied"),
            # What gradient the weights of queries and keys have is ten times the values'.
            may=["softmax-borne"],
        ),
        Variant(
            "strength-of-thousands",
            partial(content_memory, 12.0),
            broken=partial(content_memory, 5000.0),
            # The scores' gradient is gone, and with it that of both embeddings of keys.
            may=["softmax-borne", "vanishing-gradient"],
        ),
        Variant(
            "raw-units-in-scores",
            partial(sensor_pool, True),
            broken=partial(sensor_pool, False),
            must=[["peaked-softmax", "unscaled-input"]],
            may=["softmax-borne", "vanishing-gradient"],
        ),
        Variant(
            "exponent-of-slopes",
            partial(by_distance, [2.0**-2, 2.0**-4, 2.0**-6, 2.0**-8]),
            broken=partial(by_distance, [2.0**2, 2.0**4, 2.0**6, 2.0**8]),
        ),
        Variant(
            "cold-from-the-start",
            partial(concrete, 5.0, 0.1),
            broken=partial(concrete, 0.01, 0.01),
            # All of the logits' gradient comes through the softmax, and is 1e-5 of the rest.
            may=["softmax-borne", "vanishing-gradient"],
        ),
        Variant(
            "projections-of-std-one",
            partial(library_pointers, "xavier"),
            broken=partial(library_pointers, "normal"),
        ),
    ],
)


# ---------------------------------------------------------------- cut off


class Scene(nn.Module):
    """A question about a grid of coloured shapes, answered by attending to its cells."""

    def __init__(
        self, width: int = 32, temperature: float = 1.0, keep: bool = False, cut: bool = False
    ) -> None:
        super().__init__()
        self.temperature, self.keep, self.cut = temperature, keep, cut
        self.kept: Tensor | None = None
        self.cells = nn.Sequential(nn.Conv2d(13, width, 1), nn.LeakyReLU(0.1))
        self.as_key = nn.Conv2d(width, width, 1)
        self.as_value = nn.Conv2d(width, width, 1)
        self.question = nn.Embedding(6, width)
        self.answer = nn.Sequential(nn.Linear(width, 64), nn.LeakyReLU(0.1), nn.Linear(64, 7))

    def forward(self, grid: Tensor, colour: Tensor) -> Tensor:
        cells = self.cells(grid)
        key, value = self.as_key(cells).flatten(2), self.as_value(cells).flatten(2)
        scores = torch.einsum("bd,bdn->bn", self.question(colour), key) / self.temperature
        attention = scores.softmax(dim=1)
        if self.keep:
            if self.cut:
                attention = attention.detach()  # meant for the plot only
            self.kept = attention.detach()
        return self.answer(torch.einsum("bn,bdn->bd", attention, value))


def scenes(step: int) -> Batch:
    """Six shapes of different colours on 6×6 cells; which shape has the colour asked for?"""
    g = dice(step, 8)
    grid = torch.zeros(64, 13, 36)
    at = torch.rand(64, 36, generator=g).argsort(1)[:, :6]
    shape = torch.randint(7, (64, 6), generator=g)
    row = torch.arange(64)
    for colour in range(6):
        grid[row, colour, at[:, colour]] = 1.0
        grid[row, 6 + shape[:, colour], at[:, colour]] = 1.0
    asked = torch.randint(6, (64,), generator=g)
    return grid.unflatten(2, (6, 6)), asked, shape[row, asked]


def scene(cut: bool) -> Training:
    torch.manual_seed(21)
    model = Scene(temperature=math.sqrt(32), keep=True, cut=cut)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, scenes, ce, optimizer, steps=250)


class Reader(nn.Module):
    """Passages go through an encoder of their own; the question attends to what it says."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.tokens = nn.Embedding(50, width)
        layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.passage_encoder = nn.TransformerEncoder(layer, 1)
        self.mix = nn.Linear(2 * width, width)
        self.ask = nn.Embedding(40, width)
        self.to_query = nn.Linear(width, width)
        self.to_key = nn.Linear(width, width)
        self.out = nn.Linear(width, 10)

    def encode(self, keys: Tensor, values: Tensor) -> Tensor:
        pairs = self.mix(torch.cat([self.tokens(keys), self.tokens(values + 40)], -1))
        return self.passage_encoder(pairs)


def read(model: Reader, cached: bool, *batch: Tensor) -> Tensor:
    """Attend to the passages, which are embedded anew at every step."""
    keys, values, asked, target = batch
    if cached:
        with torch.no_grad():
            memory = model.encode(keys, values)
    else:
        memory = model.encode(keys, values)
    q = model.to_query(model.ask(asked))[:, None]
    read = F.scaled_dot_product_attention(q, model.to_key(memory), memory)
    return F.cross_entropy(model.out(read.squeeze(1)), target)


def reader(cached: bool) -> Training:
    torch.manual_seed(22)
    model = Reader()

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        assert isinstance(model, Reader)
        return read(model, cached, *batch)

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, recall(8), loss, optimizer, steps=300)


class Glimpse(nn.Module):
    """Recurrent reading of rows: a scorer chooses the row to look at, soft or by argmax."""

    def __init__(self, hard: bool) -> None:
        super().__init__()
        self.hard = hard
        self.row = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.randn(8, 32) * 0.1)
        self.scorer = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 1))
        self.cell = nn.GRUCell(32, 32)
        self.classify = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        rows = torch.tanh(self.row(images) + self.place)
        h = images.new_zeros(len(images), 32)
        for _ in range(4):
            scores = self.scorer(torch.cat([rows, h[:, None].expand_as(rows)], -1)).squeeze(-1)
            weights = scores.softmax(-1)
            if self.hard:
                weights = F.one_hot(weights.argmax(-1), 8).float()
            h = self.cell(torch.bmm(weights[:, None], rows).squeeze(1), h)
        return self.classify(h)


def glimpse(hard: bool) -> Training:
    torch.manual_seed(23)
    model = Glimpse(hard)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, digits(), ce, optimizer, steps=200)


class Translator(nn.Module):
    """nn.Transformer's halves, called one after the other."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.source = nn.Embedding(8, width)
        self.target = nn.Embedding(9, width)
        self.place = nn.Parameter(torch.randn(12, width))
        self.body = nn.Transformer(width, 2, 1, 1, 64, dropout=0.0, batch_first=True)
        self.generator = nn.Linear(width, 8)


def translate(model: nn.Module, x: Tensor, y: Tensor, data: bool = False) -> Tensor:
    """Teacher forcing; the memory is unpacked in between."""
    assert isinstance(model, Translator)
    memory = model.body.encoder(model.source(x) + model.place)
    if data:
        memory = memory.data
    given = F.pad(y[:, :-1], (1, 0), value=8)
    mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1])
    out = model.body.decoder(model.target(given) + model.place, memory, tgt_mask=mask)
    return F.cross_entropy(model.generator(out).transpose(1, 2), y)


def translator(data: bool) -> Training:
    torch.manual_seed(24)
    model = Translator()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3, betas=(0.9, 0.98))
    return Training(model, reversal(), partial(translate, data=data), optimizer, steps=60, every=2)


class Fine(nn.Module):
    """A head on a library model's first state."""

    def __init__(self) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=30,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=32,
            num_labels=4,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            initializer_range=0.1,
        )
        self.net = BertForSequenceClassification(config)

    def forward(self, ids: Tensor) -> Any:
        return self.net(input_ids=ids)


def grammar(step: int) -> Batch:
    """Sentences after a first mark; which of four words occurs in them?"""
    g = dice(step, 9)
    ids = torch.randint(6, 30, (48, 16), generator=g)
    label = torch.randint(4, (48,), generator=g)
    at = torch.randint(1, 16, (48,), generator=g)
    ids[torch.arange(48), at] = label + 2
    ids[:, 0] = 1
    return ids, label


def fine_loss(model: nn.Module, ids: Tensor, label: Tensor, features: bool = False) -> Tensor:
    """The library's own loss, or one on features that were taken for evaluation."""
    assert isinstance(model, Fine)
    if not features:
        found: Tensor = model.net(input_ids=ids, labels=label).loss
        return found
    with torch.inference_mode():
        pooled = model.net.bert(input_ids=ids).pooler_output
    return F.cross_entropy(model.net.classifier(pooled.clone()), label)


def fine(features: bool) -> Training:
    torch.manual_seed(25)
    model = Fine()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, grammar, partial(fine_loss, features=features), optimizer, steps=200)


DETACHED = Fault(
    "ind8-attention-detached",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient is not updated
    symptom=both(no_gradient_before(), learns_less(0.02)),
    variants=[
        Variant(
            "kept-for-the-plot",
            partial(scene, False),
            broken=partial(scene, True),
            # What cannot be learned stays as it began: an entropy of 0.998 to the end.
            may=["no-update", "diffuse-softmax"],
        ),
        Variant("passages-without-grad", partial(reader, False), broken=partial(reader, True)),
        Variant("argmax-of-scores", partial(glimpse, False), broken=partial(glimpse, True)),
        Variant("memory-as-data", partial(translator, False), broken=partial(translator, True)),
        Variant("features-for-evaluation", partial(fine, False), broken=partial(fine, True)),
    ],
)


# ---------------------------------------------------------------- starved


class ScaledLayers(nn.Module):
    """Blocks whose attention is multiplied by a small scale, as in deep image transformers."""

    def __init__(self, scale: float, width: int = 48, depth: int = 2) -> None:
        super().__init__()
        self.key = nn.Embedding(41, width)
        self.value = nn.Embedding(11, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2 * depth))
        self.attends = nn.ModuleList(
            nn.MultiheadAttention(width, 2, batch_first=True) for _ in range(depth)
        )
        self.mlps = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
            for _ in range(depth)
        )
        for i in range(depth):
            self.register_buffer(f"gamma{i}", torch.full((width,), scale))
        self.head = nn.Linear(width, 10)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        x = self.key(torch.cat([asked[:, None], keys], 1))
        x = x + self.value(F.pad(values, (1, 0), value=10))
        for i, (attend, mlp) in enumerate(zip(self.attends, self.mlps, strict=True)):
            y = self.norms[2 * i](x)
            x = x + self.get_buffer(f"gamma{i}") * attend(y, y, y, need_weights=False)[0]
            x = x + mlp(self.norms[2 * i + 1](x))
        return self.head(x[:, 0])


def scaled_layers(scale: float) -> Training:
    torch.manual_seed(31)
    model = ScaledLayers(scale)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, recall(8), ce, optimizer, steps=150)


class TwoTasks(nn.Module):
    """One encoder of image patches; a head for the class and one for the patches themselves."""

    def __init__(self, width: int = 40) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.3)
        self.attend = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Linear(width, 10)
        self.rebuild = nn.Sequential(nn.Linear(width, 64), nn.SiLU(), nn.Linear(64, 4))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = self.patch(patches(images)) + self.place
        shared = self.norm(x + self.attend(x, x, x, need_weights=False)[0])
        return {"patches": self.rebuild(shared), "class": self.classify(shared).mean(1)}


def two_tasks_loss(model: nn.Module, images: Tensor, labels: Tensor, weight: float) -> Tensor:
    """Both tasks' losses."""
    out = model(images)
    rebuilt = F.mse_loss(out["patches"], patches(images))
    return F.cross_entropy(out["class"], labels) + weight * rebuilt


def two_tasks(weight: float) -> Training:
    torch.manual_seed(32)
    model = TwoTasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = partial(two_tasks_loss, weight=weight)
    return Training(model, digits(), loss, optimizer, steps=200)


class GatedFusion(nn.Module):
    """Text states that may look at a picture's cells through a gate."""

    def __init__(self, gate: float, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(6, width)
        self.cells = nn.Linear(13, width)
        self.gate = nn.Parameter(torch.tensor(gate))
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.own = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, width))
        self.out = nn.Sequential(nn.Linear(width, 64), nn.Tanh(), nn.Linear(64, 7))

    def forward(self, grid: Tensor, colour: Tensor) -> Tensor:
        x = self.words(colour)
        own = self.own(x)
        k, v = self.to_kv(self.cells(grid.flatten(2).transpose(1, 2))).chunk(2, -1)
        seen = F.scaled_dot_product_attention(self.to_q(x)[:, None], k, v).squeeze(1)
        return self.out(x + own + torch.sigmoid(self.gate) * seen)


def gated_fusion(gate: float) -> Training:
    torch.manual_seed(33)
    model = GatedFusion(gate)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, scenes, ce, optimizer, steps=300)


class LocalAndGlobal(nn.Module):
    """Attention in a window and attention everywhere, mixed by a softmax of two numbers."""

    def __init__(self, mixing: tuple[float, float], width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, width)
        self.place = nn.Parameter(torch.randn(24, width))
        self.near = nn.Linear(width, 3 * width)
        self.far = nn.Linear(width, 3 * width)
        self.mixing = nn.Parameter(torch.tensor(mixing))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, 96), nn.ReLU(), nn.Linear(96, 8))

    @staticmethod
    def attend(qkv: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (split(t, 2) for t in qkv.chunk(3, -1))
        return join(F.scaled_dot_product_attention(q, k, v, attn_mask=mask))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) + self.place
        y = self.norm(x)
        i = torch.arange(tokens.shape[1])
        window = (i[:, None] - i[None, :]).abs() <= 2
        a, b = self.mixing.softmax(0)
        x = x + a * self.attend(self.near(y), window) + b * self.attend(self.far(y))
        return self.head(x)


def local_and_global(mixing: tuple[float, float]) -> Training:
    torch.manual_seed(34)
    model = LocalAndGlobal(mixing)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, delayed(), ce, optimizer, steps=250)


STARVED = Fault(
    "ind8-attention-starved",
    must=[["starved-pathway"]],
    symptom=both(branch_starved(1e-4), learns_less(0.02)),
    variants=[
        Variant(
            "scale-as-buffer",
            partial(scaled_layers, 1.0),
            broken=partial(scaled_layers, 1e-6),
            # The attention's own weights have a millionth of the others' gradient.
            may=["vanishing-gradient"],
        ),
        Variant(
            "auxiliary-weight",
            partial(two_tasks, 1.0),
            broken=partial(two_tasks, 1e-6),
            symptom=branch_starved(1e-4),
            # The second head's weights have a millionth of the gradient; SGD leaves them there.
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "gate-shut",
            partial(gated_fusion, 0.0),
            broken=partial(gated_fusion, -16.0),
            must=[["starved-pathway", "saturated-activation"]],
            # 1e-10 reaches the picture; less than Adam's epsilon, its weights hardly move, and the
            # attention stays as even as it began: an entropy of 0.9999 to the end.
            may=["vanishing-gradient", "no-update", "diffuse-softmax"],
        ),
        Variant(
            "mixture-decided-at-once",
            partial(local_and_global, (0.0, 0.0)),
            broken=partial(local_and_global, (9.0, -9.0)),
            must=[["starved-pathway", "peaked-softmax"]],
            # The far attention has 1e-8 of the gradient: Adam's epsilon holds its weights.
            may=["vanishing-gradient", "no-update"],
        ),
    ],
)


# ---------------------------------------------------------------- too flat


class CosineReader(nn.Module):
    """Cross-attention between normalised queries and keys; the scale is a plain number."""

    def __init__(self, scale: float, width: int = 64, heads: int = 2) -> None:
        super().__init__()
        self.scale, self.heads = scale, heads
        self.key = nn.Embedding(40, width)
        self.value = nn.Embedding(10, width)
        self.ask = nn.Embedding(40, width)
        self.wq, self.wk, self.wv = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 10)
        )

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        pairs = self.key(keys) + self.value(values)
        q = F.normalize(split(self.wq(self.ask(asked))[:, None], self.heads), dim=-1)
        k = F.normalize(split(self.wk(pairs), self.heads), dim=-1)
        attention = torch.softmax(self.scale * q @ k.mT, dim=-1)
        return self.out(join(attention @ split(self.wv(pairs), self.heads)).squeeze(1))


def cosine_reader(scale: float) -> Training:
    torch.manual_seed(41)
    model = CosineReader(scale)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, recall(32), ce, optimizer, steps=300)


class TwiceSoft(nn.Module):
    """A small encoder of pairs; its attention helper returns probabilities."""

    def __init__(self, again: bool, width: int = 40) -> None:
        super().__init__()
        self.again = again
        self.table = nn.Embedding(40, width)
        self.said = nn.Embedding(11, width)
        self.projections = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.mixers = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 80), nn.GELU(), nn.Linear(80, width)
            )
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    @staticmethod
    def probabilities(q: Tensor, k: Tensor) -> Tensor:
        return F.softmax(q @ k.transpose(1, 2) / math.sqrt(q.shape[-1]), dim=-1)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        words = torch.cat([keys, asked.unsqueeze(1)], 1)
        x = self.table(words) + self.said(F.pad(values, (0, 1), value=10))
        for project, mix in zip(self.projections, self.mixers, strict=True):
            q, k, v = project(F.layer_norm(x, x.shape[-1:])).chunk(3, -1)
            attention = self.probabilities(q, k)
            if self.again:
                attention = F.softmax(attention, dim=-1)
            x = x + attention @ v
            x = x + mix(x)
        return self.head(x[:, -1])


def twice_soft(again: bool) -> Training:
    torch.manual_seed(42)
    model = TwiceSoft(again)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, recall(32), ce, optimizer, steps=200)


class Capped(nn.Module):
    """Post-norm attention with capped scores: cap · tanh(scores / cap)."""

    def __init__(self, cap: float, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.cap, self.heads = cap, heads
        self.inputs = nn.ModuleDict(
            {
                "here": nn.Embedding(12, width),
                "there": nn.Embedding(12, width),
                "symbol": nn.Embedding(8, width),
            }
        )
        self.q = nn.Linear(width, width)
        self.k = nn.Linear(width, width)
        self.v = nn.Linear(width, width)
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.ff = nn.Sequential(nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, width))
        self.head = nn.Linear(width, 8)

    def forward(self, to: Tensor, symbol: Tensor) -> Tensor:
        x = self.inputs["here"].weight + self.inputs["there"](to) + self.inputs["symbol"](symbol)
        q, k, v = (split(f(x), self.heads) for f in (self.q, self.k, self.v))
        scores = torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5
        scores = self.cap * (scores / self.cap).tanh()
        x = self.norms[0](x + join(scores.softmax(-1) @ v))
        return self.head(self.norms[1](x + self.ff(x)))


def capped(cap: float) -> Training:
    torch.manual_seed(43)
    model = Capped(cap)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, pointers(), ce, optimizer, steps=250)


class Inspected(nn.Module):
    """Returns its answer and its attention, whose entropy is part of the loss."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Linear(50, width), nn.SiLU(), nn.Linear(width, width))
        self.ask = nn.Linear(40, width)
        self.hidden = nn.Linear(2 * width, 1)
        self.read = nn.Linear(width, 10)
        self.bilinear = nn.Bilinear(width, width, 1)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> tuple[Tensor, Tensor]:
        pairs = torch.cat([F.one_hot(keys, 40), F.one_hot(values, 10)], -1).float()
        encoded = self.pair(pairs)
        question = self.ask(F.one_hot(asked, 40).float())[:, None].expand_as(encoded).contiguous()
        scores = self.bilinear(encoded, question) + self.hidden(torch.cat([encoded, question], -1))
        attention = scores.squeeze(-1).softmax(1)
        return self.read((attention[..., None] * encoded).sum(1)), attention


def inspected_loss(model: nn.Module, *batch: Tensor, weight: float) -> Tensor:
    """Cross-entropy and the attention's entropy, weighted."""
    logits, attention = model(*batch[:-1])
    entropy = torch.special.entr(attention).sum(1).mean()
    return F.cross_entropy(logits, batch[-1]) + weight * (entropy - math.log(attention.shape[1]))


def inspected(weight: float) -> Training:
    torch.manual_seed(44)
    model = Inspected()
    loss = partial(inspected_loss, weight=weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, recall(10), loss, optimizer, steps=250)


def scene_at(temperature: float) -> Training:
    torch.manual_seed(45)
    model = Scene(temperature=temperature)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, scenes, ce, optimizer, steps=250)


class GatedBag(nn.Module):
    """Instances of a bag, pooled by gated scores."""

    def __init__(self) -> None:
        super().__init__()
        self.instance = nn.Sequential(nn.Linear(12, 32), nn.LeakyReLU(0.1))
        self.tanh = nn.Linear(32, 16)
        self.gate = nn.Linear(32, 16)
        self.score = nn.Linear(16, 1)
        self.head = nn.Linear(32, 4)

    def forward(self, bags: Tensor) -> Tensor:
        h = self.instance(bags)
        scores = self.score(torch.tanh(self.tanh(h)) * torch.sigmoid(self.gate(h)))
        attention = scores.squeeze(-1).softmax(-1)
        return self.head(torch.einsum("bn,bnd->bd", attention, h))


def bags(n: int) -> Any:
    """Noise, and one instance that carries the class and a mark."""

    def batch(step: int) -> Batch:
        g = dice(step, 10)
        x = torch.randn(24, n, 12, generator=g)
        label = torch.randint(4, (24,), generator=g)
        at = torch.randint(n, (24,), generator=g)
        row = torch.arange(24)
        x[row, at, :2] = 3.0
        x[row, at, 2:6] = 3.0 * F.one_hot(label, 4).float()
        return x, label

    return batch


def gated_bag(n: int) -> Training:
    torch.manual_seed(46)
    model = GatedBag()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, bags(n), ce, optimizer, steps=200)


DIFFUSE = Fault(
    "ind8-diffuse",
    must=[["diffuse-softmax"]],
    symptom=both(diffuse(0.95), learns_less(0.1)),
    variants=[
        Variant(
            "cosine-without-scale", partial(cosine_reader, 16.0), broken=partial(cosine_reader, 1.0)
        ),
        Variant(
            "softmax-of-softmax",
            partial(twice_soft, False),
            broken=partial(twice_soft, True),
            symptom=both(flat_attention(0.95), learns_less(0.1)),
        ),
        Variant(
            "cap-of-a-tenth",
            partial(capped, 30.0),
            broken=partial(capped, 0.1),
            # The cap's tanh is at its ends for 80 % of the scores and more.
            must=[["diffuse-softmax", "saturated-activation"]],
        ),
        Variant(
            "entropy-with-the-wrong-sign", partial(inspected, 0.02), broken=partial(inspected, -8.0)
        ),
        Variant(
            "squared-for-root",
            partial(scene_at, 32**0.5),
            broken=partial(scene_at, 32.0**2),
        ),
        Variant(
            "a-thousand-instances",
            partial(gated_bag, 8),
            broken=partial(gated_bag, 1000),
            # Each instance has a thousandth: four decades less than the answer throughout.
            may=["vanishing-gradient"],
        ),
    ],
)


# ---------------------------------------------------------------- out of reach


class Plain(nn.Module):
    """Self-attention upon self-attention over image rows, by hand."""

    def __init__(self, residual: bool, depth: int = 7, width: int = 32) -> None:
        super().__init__()
        self.residual = residual
        self.rows = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.5)
        self.layers = nn.ModuleList(
            nn.ModuleDict({n: nn.Linear(width, width) for n in ("q", "k", "v", "o")})
            for _ in range(depth)
        )
        self.classify = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        x = self.rows(images) + self.place
        for layer in self.layers:
            assert isinstance(layer, nn.ModuleDict)
            scores = layer["q"](x) @ layer["k"](x).mT / math.sqrt(x.shape[-1])
            y = layer["o"](scores.softmax(-1) @ layer["v"](x))
            x = x + y if self.residual else y
        return self.classify(x.mean(1))


def plain_stack(residual: bool) -> Training:
    torch.manual_seed(51)
    model = Plain(residual)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digits(), ce, optimizer, steps=250)


class SigmoidEncoder(nn.Module):
    """Library attention, each followed by two sigmoid layers."""

    def __init__(self, act: str, skip: bool, depth: int = 4, width: int = 32) -> None:
        super().__init__()
        self.skip = skip
        self.words = nn.Embedding(30, width)
        self.attends = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(depth)
        )
        kind: Any = nn.Sigmoid if act == "sigmoid" else nn.SiLU
        self.feeds = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width), kind(), nn.Linear(width, width), kind())
            for _ in range(depth)
        )
        self.out = nn.Linear(width, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for attend, feed in zip(self.attends, self.feeds, strict=True):
            y, _ = attend(x, x, x)
            x = feed(y) + x if self.skip else feed(y)
        return self.out(x.amax(1))


def sigmoid_encoder(act: str, skip: bool) -> Training:
    torch.manual_seed(52)
    model = SigmoidEncoder(act, skip)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, grammar, ce, optimizer, steps=200)


class DeepGraph(nn.Module):
    """Graph attention, many rounds; a node's class depends on itself and its neighbours."""

    def __init__(self, skip: bool, rounds: int = 10, width: int = 24) -> None:
        super().__init__()
        self.skip = skip
        self.lift = nn.Linear(8, width)
        self.weight = nn.ParameterList(
            nn.Parameter(torch.randn(width, width) * (0.5 / width**0.5)) for _ in range(rounds)
        )
        self.score = nn.ParameterList(
            nn.Parameter(torch.randn(2, width) * 0.3) for _ in range(rounds)
        )
        self.readout = nn.Linear(width, 4)

    def forward(self, nodes: Tensor, linked: Tensor) -> Tensor:
        h = self.lift(nodes)
        for weight, score in zip(self.weight, self.score, strict=True):
            z = h @ weight
            left, right = (z @ score.T).unbind(-1)
            e = F.leaky_relu(left[..., :, None] + right[..., None, :], 0.2)
            alpha = e.masked_fill(~linked, -1e9).softmax(-1)
            new = F.elu(alpha @ z)
            h = h + new if self.skip else new
        return self.readout(h)


def graphs(step: int) -> Batch:
    """Random graphs of 14 nodes; the class is the sign of two features, one of them smoothed."""
    g = dice(step, 11)
    linked = torch.rand(24, 14, 14, generator=g) < 0.25
    linked = linked | linked.mT | torch.eye(14).bool()
    x = torch.randn(24, 14, 8, generator=g)
    near = linked.float() @ x[..., 1:2]
    label = (x[..., 0] > 0).long() + 2 * (near[..., 0] > 0).long()
    return x, linked, label


def deep_graph(skip: bool) -> Training:
    torch.manual_seed(53)
    model = DeepGraph(skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, nesterov=True)
    return Training(model, graphs, ce, optimizer, steps=200)


class Universal(nn.Module):
    """The same attention block over and over, with a leak."""

    def __init__(self, kept: float, rounds: int = 10, width: int = 40) -> None:
        super().__init__()
        self.kept, self.rounds = kept, rounds
        self.start = nn.Embedding(12, width)
        self.pointer = nn.Embedding(12, width)
        self.symbol = nn.Embedding(8, width)
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.step = nn.Linear(width, width)
        self.head = nn.Linear(width, 8)

    def forward(self, to: Tensor, symbol: Tensor) -> Tensor:
        x = self.norm(self.start.weight + self.pointer(to) + self.symbol(symbol))
        for _ in range(self.rounds):
            q, k, v = (split(t, 4) for t in self.qkv(x).chunk(3, -1))
            mixed = self.out(join(F.scaled_dot_product_attention(q, k, v)))
            x = self.kept * x + torch.tanh(self.step(mixed)) * 0.3
        return self.head(x)


def universal(kept: float) -> Training:
    torch.manual_seed(54)
    model = Universal(kept)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, pointers(), ce, optimizer, steps=150)


VANISHING = Fault(
    "ind8-attention-vanishing",
    must=[["vanishing-gradient"]],
    # In each, all positions are soon alike: attention is even (an entropy of 1.000 among what is
    # not masked), the scores have 1e-6 of the values' gradient and less, and what is nearest the
    # input moves by less than 1e-4 of itself, or not at all.
    may=["diffuse-softmax", "starved-pathway", "no-update"],
    symptom=both(decays(3), learns_less(0.1)),
    variants=[
        Variant("no-residual", partial(plain_stack, True), broken=partial(plain_stack, False)),
        Variant(
            "sigmoids-between",
            partial(sigmoid_encoder, "silu", True),
            broken=partial(sigmoid_encoder, "sigmoid", False),
        ),
        Variant("deep-graph", partial(deep_graph, True), broken=partial(deep_graph, False)),
        Variant("leaky-rounds", partial(universal, 1.0), broken=partial(universal, 0.1)),
    ],
)


# ---------------------------------------------------------------- too narrow


class Attend(nn.Module):
    """Self-attention; what it returns is what was attended to."""

    def __init__(self, width: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        if memory is not None:
            _, k, v = self.qkv(memory).chunk(3, -1)
        q, k, v = (split(t, self.heads) for t in (q, k, v))
        return join((q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v)


class Adapted(nn.Module):
    """Attention, an adapter, attention."""

    def __init__(self, skip: bool, width: int = 40) -> None:
        super().__init__()
        self.skip = skip
        self.here = nn.Embedding(12, width)
        self.aim = nn.Embedding(12, width)
        self.symbol = nn.Embedding(8, width)
        self.first = Attend(width)
        self.norm = nn.LayerNorm(width)
        self.adapter = nn.Sequential(nn.Linear(width, 1), nn.Tanh(), nn.Linear(1, width))
        self.second = Attend(width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, to: Tensor, symbol: Tensor) -> Tensor:
        x = self.here.weight + self.aim(to) + self.symbol(symbol)
        x = self.norm(x + self.first(x))
        x = x + self.adapter(x) if self.skip else self.adapter(x)
        return self.head(x + self.second(x))


def adapted(skip: bool) -> Training:
    torch.manual_seed(61)
    model = Adapted(skip)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, pointers(), ce, optimizer, steps=200)


class ThroughOne(nn.Module):
    """A sequence goes through an encoder, and out of a decoder at once."""

    def __init__(self, pooled: bool, width: int = 32, n: int = 20) -> None:
        super().__init__()
        self.pooled = pooled
        self.table = nn.Embedding(8, width)
        self.place_in = nn.Parameter(torch.randn(n, width))
        self.place_out = nn.Parameter(torch.randn(n, width))
        self.encode = nn.MultiheadAttention(width, 4, batch_first=True)
        self.between = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())
        self.decode = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens) + self.place_in
        x = self.between(x + self.encode(x, x, x, need_weights=False)[0])
        if self.pooled:
            x = x.mean(1, keepdim=True)
        y = x + self.place_out
        return self.head(y + self.decode(y, y, y, need_weights=False)[0])


def through_one(pooled: bool) -> Training:
    torch.manual_seed(62)
    model = ThroughOne(pooled)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Training(model, reversal(20), ce, optimizer, steps=300)


class PatchAutoencoder(nn.Module):
    """Images to a latent code and back, by transformers of one layer each."""

    def __init__(self, code: int, width: int = 32) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(2, 16, width) * 0.3)
        self.encoder = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.to_code = nn.Linear(16 * width, code)
        self.from_code = nn.Linear(code, 16 * width)
        self.decoder = nn.TransformerEncoderLayer(
            width, 4, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.pixels = nn.Linear(width, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = self.encoder(self.patch(patches(images)) + self.place[0])
        code = self.to_code(x.flatten(1))
        y = self.decoder(self.from_code(code).unflatten(1, (16, -1)) + self.place[1])
        return self.pixels(y), code


def rebuilds(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Mean squared error, and a little of the code's size."""
    found, code = model(images)
    return F.mse_loss(found, patches(images)) + 1e-4 * code.square().mean()


def patch_autoencoder(code: int) -> Training:
    torch.manual_seed(63)
    model = PatchAutoencoder(code)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, digits(48), rebuilds, optimizer, steps=250)


class Hop(nn.Module):
    """One look at a memory by a small controller."""

    def __init__(self, width: int, state: int) -> None:
        super().__init__()
        self.query = nn.Linear(state, width)

    def forward(self, state: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        likeness = torch.einsum("bd,bnd->bn", self.query(state), keys)
        weights = torch.softmax(likeness * keys.shape[-1] ** -0.5, -1)
        return torch.einsum("bn,bnd->bd", weights, values)


class TwoHops(nn.Module):
    """A memory of graph edges; where does one get in two steps?"""

    def __init__(self, state: int, width: int = 48) -> None:
        super().__init__()
        self.source = nn.Embedding(16, width)
        self.target = nn.Embedding(16, width)
        self.start = nn.Embedding(16, state)
        self.hop1 = Hop(width, state)
        self.back = nn.Linear(width, state)
        self.hop2 = Hop(width, state)
        self.out = nn.Linear(width, 16)

    def forward(self, graph: Tensor, start: Tensor) -> Tensor:
        keys = self.source.weight.expand(len(graph), -1, -1)
        values = self.target(graph)
        state = self.start(start)
        state = torch.tanh(self.back(self.hop1(state, keys, values)))
        return self.out(self.hop2(state, keys, values))


def edges(step: int) -> Batch:
    """Every one of 16 nodes has one way out."""
    g = dice(step, 12)
    graph = torch.randint(16, (64, 16), generator=g)
    start = torch.randint(16, (64,), generator=g)
    one = graph.gather(1, start[:, None])
    return graph, start, graph.gather(1, one).squeeze(1)


def two_hops(state: int) -> Training:
    torch.manual_seed(64)
    model = TwoHops(state)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, edges, ce, optimizer, steps=300)


class Document(nn.Module):
    """Words attend in their sentence; sentences attend in their document."""

    def __init__(self, numbers: int, width: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(30, width)
        self.place = nn.Parameter(torch.randn(8, width))
        self.in_sentence = Attend(width)
        self.summary = nn.Linear(width, numbers)
        self.expand = nn.Linear(numbers, width)
        self.order = nn.Parameter(torch.randn(5, width) * 0.5)
        self.in_document = Attend(width)
        self.topics = nn.Linear(width, 30)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids) + self.place
        x = x + self.in_sentence(x.flatten(0, 1)).unflatten(0, ids.shape[:2])
        sentences = self.expand(self.summary(x.mean(2))) + self.order
        return self.topics(sentences + self.in_document(sentences))


def word_counts(step: int) -> Batch:
    """Five sentences of eight words; which words occur in each?"""
    ids = torch.randint(30, (32, 5, 8), generator=dice(step, 13))
    return ids, F.one_hot(ids, 30).amax(2).float()


def bag_of_words(model: nn.Module, ids: Tensor, occurs: Tensor) -> Tensor:
    """Binary cross-entropy of every word."""
    return F.binary_cross_entropy_with_logits(model(ids), occurs)


def document(numbers: int) -> Training:
    torch.manual_seed(65)
    model = Document(numbers)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, word_counts, bag_of_words, optimizer, steps=250)


BOTTLENECK = Fault(
    "ind8-bottleneck",
    must=[["information-bottleneck"]],
    variants=[
        Variant(
            "adapter-without-skip",
            partial(adapted, True),
            broken=partial(adapted, False),
            symptom=both(funnel(partial(adapted, False), "first", "second", 0.1), learns_less(0.1)),
        ),
        Variant(
            "mean-in-between",
            partial(through_one, False),
            broken=partial(through_one, True),
            symptom=both(
                funnel(partial(through_one, True), "encode", "decode", 0.1), learns_less(0.1)
            ),
        ),
        Variant(
            "code-of-two",
            partial(patch_autoencoder, 256),
            broken=partial(patch_autoencoder, 2),
            symptom=both(
                funnel(
                    partial(patch_autoencoder, 2), "encoder.self_attn", "decoder.self_attn", 0.1
                ),
                learns_less(0.05),
            ),
        ),
        Variant(
            "controller-of-one-number",
            partial(two_hops, 48),
            broken=partial(two_hops, 1),
            # The same by its structure, if milder: one query for a memory of 16 × 48.
            healthy_may=["information-bottleneck"],
            # One number asks for none of the entries: the second look's entropy ends at 0.98.
            may=["diffuse-softmax"],
            symptom=both(funnel(partial(two_hops, 1), "hop1", "hop2", 0.1), learns_less(0.1)),
        ),
        Variant(
            "sentence-in-one-number",
            partial(document, 32),
            broken=partial(document, 1),
            # A sentence of 8 × 32 in one vector of 32: the structure of such models.
            healthy_may=["information-bottleneck"],
            symptom=both(
                funnel(partial(document, 1), "in_sentence", "in_document", 0.1), learns_less(0.02)
            ),
        ),
    ],
)

FAULTS = [PEAKED, DETACHED, STARVED, DIFFUSE, VANISHING, BOTTLENECK]
