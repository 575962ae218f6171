"""Attention whose softmax stays uniform, or sits on one entry from the start."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_a import (
    digit_bags,
    digit_images,
    marked,
    next_word,
    one_hot,
    recall,
    repeats,
    reversal,
    stays_uniform,
    stories,
    wave,
)
from analyses.faults.training import Training

# ---- a dictionary that is looked up by cosine ----------------------------------------------------


class Dictionary(nn.Module):
    """Keys and values side by side; the answer is read where the key is like the question."""

    def __init__(self, keys: int, values: int, width: int, sharpness: float) -> None:
        super().__init__()
        self.key = nn.Embedding(keys, width)
        self.value = nn.Embedding(values, width)
        self.ask = nn.Linear(width, width)
        self.head = nn.Linear(width, values)
        self.sharpness = sharpness

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        keys = F.normalize(self.key(key), dim=-1)
        question = F.normalize(self.ask(self.key(asked)), dim=-1)
        alike = torch.einsum("bd,bnd->bn", question, keys)
        weights = torch.softmax(alike * self.sharpness, dim=-1)
        return self.head(torch.einsum("bn,bnd->bd", weights, self.value(value)))


def _answer(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, asked), answer)


def dictionary(sharpness: float = 20.0) -> Training:
    torch.manual_seed(1)
    model = Dictionary(64, 8, 32, sharpness)
    return Training(
        model=model,
        batch=partial(recall, pairs=48, keys=64),
        loss=_answer,
        optimizer=torch.optim.Adam(model.parameters(), 5e-3),
        steps=300,
        every=10,
    )


# ---- additive attention over bags ----------------------------------------------------------------


class Bags(nn.Module):
    """Multiple instances: embed, weigh by a small tanh network, sum up."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(64, 48), nn.LeakyReLU(0.1), nn.Linear(48, 24))
        self.score = nn.Sequential(nn.Linear(24, 16), nn.Tanh(), nn.Linear(16, 1))
        self.classify = nn.Linear(24, 2)
        self.temperature = temperature

    def forward(self, bag: Tensor) -> tuple[Tensor, Tensor]:
        h = self.embed(bag)
        a = F.softmax(self.score(h).squeeze(-1) / self.temperature, dim=1)
        return self.classify((a.unsqueeze(-1) * h).sum(1)), a


def _bag_loss(model: nn.Module, bag: Tensor, label: Tensor) -> Tensor:
    logits, _ = model(bag)
    return F.cross_entropy(logits, label)


def bags(temperature: float = 1.0, size: int = 60) -> Training:
    torch.manual_seed(3)
    model = Bags(temperature)
    return Training(
        model=model,
        batch=partial(digit_bags, batch=24, size=size),
        loss=_bag_loss,
        optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9),
        steps=300,
        every=10,
    )


# ---- a memory network with a regulariser ---------------------------------------------------------


class Stories(nn.Module):
    """Two embeddings of each sentence, one to be found by and one to be read."""

    def __init__(self, words: int, places: int, width: int) -> None:
        super().__init__()
        self.find = nn.Embedding(words, width)
        self.read = nn.Embedding(words, width)
        self.question = nn.Embedding(words, width)
        self.answer = nn.Linear(width, places)

    def forward(self, sentences: Tensor, asked: Tensor) -> dict[str, Tensor]:
        memory = self.find(sentences).sum(2)
        u = self.question(asked)
        p = torch.softmax((memory @ u.unsqueeze(-1)).squeeze(-1), -1)
        o = (p.unsqueeze(1) @ self.read(sentences).sum(2)).squeeze(1)
        return {"answer": self.answer(o + u), "weights": p}


def _stories_loss(
    model: nn.Module, sentences: Tensor, asked: Tensor, place: Tensor, entropy: float = 0.0
) -> Tensor:
    out = model(sentences, asked)
    p = out["weights"]
    spread = -(p * (p + 1e-9).log()).sum(-1).mean()
    return F.cross_entropy(out["answer"], place) - entropy * spread


def _reported(training: Training, step: int) -> dict[str, Any]:
    """Optimize with the regulariser; log the part that is of interest."""
    loss = training.loss_at(step)
    with torch.no_grad():
        sentences, asked, place = training.batch(step)
        plain = _stories_loss(training.model, sentences, asked, place)
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    return {"loss": plain, "objective": loss.detach()}


def told(entropy: float = 0.0) -> Training:
    torch.manual_seed(4)
    model = Stories(30, 6, 20)
    for e in (model.find, model.read, model.question):
        nn.init.normal_(e.weight, std=0.3)
    return Training(
        model=model,
        batch=partial(stories, length=20, people=24),
        loss=partial(_stories_loss, entropy=entropy),
        optimizer=torch.optim.Adam(model.parameters(), 1e-2),
        steps=300,
        every=10,
        step=_reported,
    )


# ---- reading a marked number with the fused call -----------------------------------------------


class Marked(nn.Module):
    """A learned query reads a list, by the fused call."""

    def __init__(self, width: int, scale: float | None) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width)
        self.query = nn.Parameter(torch.randn(1, 1, width))
        self.to_k, self.to_v = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 1))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        q = self.query.expand(len(x), -1, -1)
        pooled = F.scaled_dot_product_attention(q, self.to_k(h), self.to_v(h), scale=self.scale)
        return self.head(pooled[:, 0])


def _regress(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def marks(scale: float | None = None, length: int = 64) -> Training:
    torch.manual_seed(5)
    model = Marked(32, scale)
    return Training(
        model=model,
        batch=partial(marked, length=length),
        loss=_regress,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.01),
        steps=400,
        every=10,
    )


# ---- one pre-norm block that looks something up --------------------------------------------------


class Shelf(nn.Module):
    """Cross attention with several heads from a question to a shelf of labelled boxes."""

    def __init__(self, keys: int, values: int, width: int, heads: int, twice: bool) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, width), nn.Embedding(values, width)
        self.norm = nn.LayerNorm(width)
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(width, 2 * width, bias=False)
        self.mix = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        self.head = nn.Linear(width, values)
        self.heads, self.twice = heads, twice

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        boxes = self.norm(self.key(key) + self.value(value))
        x = self.key(asked).unsqueeze(1)
        B, N, C = boxes.shape
        q = self.q(self.norm(x)).view(B, 1, self.heads, -1).transpose(1, 2)
        k, v = self.kv(boxes).view(B, N, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2) / math.sqrt(C / self.heads)).softmax(dim=-1)
        if self.twice:
            weights = F.softmax(weights, dim=-1)
        x = x + self.mix((weights @ v).transpose(1, 2).reshape(B, 1, C))
        x = x + self.feed(x)
        return self.head(x[:, 0])


def shelf(twice: bool = False) -> Training:
    torch.manual_seed(6)
    model = Shelf(32, 8, 48, 2, twice)
    return Training(
        model=model,
        batch=partial(recall, pairs=30, keys=32),
        loss=_answer,
        optimizer=torch.optim.Adam(model.parameters(), 4e-3),
        steps=250,
        every=10,
    )


# ---- translation, with projections as bare parameters --------------------------------------------


class Projections(nn.Module):
    """Attention with weights made by torch.randn."""

    def __init__(self, width: int, spread: float) -> None:
        super().__init__()
        self.Wq = nn.Parameter(torch.randn(width, width) * spread)
        self.Wk = nn.Parameter(torch.randn(width, width) * spread)
        self.Wv = nn.Parameter(torch.randn(width, width) / math.sqrt(width))

    def forward(self, x: Tensor, memory: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = x @ self.Wq, memory @ self.Wk, memory @ self.Wv
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        if mask is not None:
            scores = scores.masked_fill(mask, -1e9)
        return F.softmax(scores, -1) @ v


class Translator(nn.Module):
    """Post-norm encoder and decoder of one layer each."""

    def __init__(self, words: int, length: int, width: int, spread: float) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(length, width))
        self.encode = Projections(width, spread)
        self.decode = Projections(width, spread)
        self.cross = Projections(width, spread)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(4))
        self.feed = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
        self.words = nn.Linear(width, words)

    def forward(self, source: Tensor, so_far: Tensor) -> Tensor:
        T = source.shape[1]
        memory = self.source(source) + self.place[:T]
        memory = self.norms[0](memory + self.encode(memory, memory))
        y = self.target(so_far) + self.place[:T]
        y = self.norms[1](y + self.decode(y, y, torch.ones(T, T, dtype=torch.bool).triu(1)))
        y = self.norms[2](y + self.cross(y, memory))
        return self.words(self.norms[3](y + self.feed(y)))


def _translate(model: nn.Module, source: Tensor, so_far: Tensor, target: Tensor) -> Tensor:
    return next_word(model(source, so_far), target)


def translator(spread: float = 0.1, width: int = 64) -> Training:
    torch.manual_seed(7)
    model = Translator(14, 10, width, spread)
    return Training(
        model=model,
        batch=partial(reversal, length=10, words=14),
        loss=_translate,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        steps=300,
        every=10,
    )


# ---- a decoder with a penalty on distance --------------------------------------------------------


class Echo(nn.Module):
    """Two layers without places; what tells them is a slope on the scores."""

    def __init__(self, words: int, width: int, slopes: tuple[float, ...]) -> None:
        super().__init__()
        self.word = nn.Embedding(words, width)
        self.places = nn.Embedding(64, width)
        self.qkv = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.proj = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.head = nn.Linear(width, words)
        self.register_buffer("slopes", torch.tensor(slopes).view(1, -1, 1, 1))

    def forward(self, text: Tensor) -> Tensor:
        B, T = text.shape
        x = self.word(text) + self.places(torch.arange(T))
        at = torch.arange(T)
        distance = (at[:, None] - at[None, :]).float()
        bias = -self.slopes * distance  # type: ignore[operator]
        bias = bias.masked_fill(distance < 0, float("-inf"))
        for qkv, proj, norm in zip(self.qkv, self.proj, self.norm, strict=False):
            parts = qkv(norm(x)).view(B, T, 3, self.slopes.shape[1], -1)  # type: ignore[index]
            q, k, v = parts.permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
            x = x + proj(y.transpose(1, 2).reshape(B, T, -1))
        return self.head(self.norm[-1](x))


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


def echo(slopes: tuple[float, ...] = (0.1, 0.03)) -> Training:
    torch.manual_seed(8)
    model = Echo(16, 48, slopes)
    return Training(
        model=model,
        batch=partial(repeats, half=10),
        loss=_predict,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3),
        steps=400,
        every=10,
    )


# ---- rows of an image, attended to as pixels of 0 to 16 ------------------------------------------


class Rows(nn.Module):
    """A query per class looks at the rows of an image, with a learned bias for each row."""

    def __init__(self, start: float, width: int = 32) -> None:
        super().__init__()
        self.row = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.5)
        self.classes = nn.Parameter(torch.randn(10, width))
        self.prior = nn.Parameter(F.one_hot(torch.arange(10) % 8, 8) * start)
        self.key, self.value = nn.Linear(width, width), nn.Linear(width, width)
        self.head = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, image: Tensor) -> Tensor:
        h = torch.tanh(self.row(image)) + self.place
        scores = self.classes @ self.key(h).transpose(1, 2) / math.sqrt(h.shape[-1])
        attention = torch.softmax(scores + self.prior, dim=-1)
        return self.head(attention @ self.value(h)).squeeze(-1)


def _classify(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(image), label)


def rows(start: float = 0.5) -> Training:
    torch.manual_seed(9)
    model = Rows(start)
    return Training(
        model=model,
        batch=partial(digit_images, batch=48),
        loss=_classify,
        optimizer=torch.optim.RMSprop(model.parameters(), 2e-3),
        steps=300,
        every=10,
    )


# ---- forecasting with the library's post-norm layer ----------------------------------------------


class Forecaster(nn.Module):
    """Two encoder layers; the forecast is read at the last step."""

    def __init__(self, ahead: int, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(1, width)
        self.time = nn.Parameter(torch.randn(48, width) * 0.3)
        layer = nn.TransformerEncoderLayer(width, 2, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(width, ahead)

    def forward(self, series: Tensor) -> Tensor:
        return self.out(self.encoder(self.embed(series) + self.time)[:, -1])


def _measured(step: int, unit: float) -> tuple[Tensor, Tensor]:
    series, after = wave(step, batch=12)
    return series * unit, after


def forecaster(unit: float = 1.0) -> Training:
    torch.manual_seed(10)
    model = Forecaster(4)
    return Training(
        model=model,
        batch=partial(_measured, unit=unit),
        loss=_regress,
        optimizer=torch.optim.Adam(model.parameters(), 1e-3),
        steps=250,
        every=10,
    )


DIFFUSE = Fault(
    "ind9-attention-diffuse",
    must=[["diffuse-softmax"]],
    variants=[
        Variant(
            "cosine-without-temperature",
            healthy=dictionary,
            broken=partial(dictionary, sharpness=1.0),
            # Keys and question act through the softmax alone, and get little.
            may=["vanishing-gradient", "softmax-borne"],
            healthy_may=["softmax-borne"],  # by construction: keys are only looked up by
            symptom=stays_uniform(partial(dictionary, sharpness=1.0), 0.95),
        ),
        Variant(
            "softmax-applied-twice",
            healthy=shelf,
            broken=partial(shelf, twice=True),
            may=["peaked-softmax"],  # the inner one goes to one entry to make up for the outer one
            symptom=stays_uniform(partial(shelf, twice=True), 0.97, skip=1),
        ),
        Variant(
            "bags-temperature-left-high",
            healthy=bags,
            broken=partial(bags, temperature=200.0),
            # Sixty instances share the gradient of one sum; the scores add nothing to it.
            may=["vanishing-gradient"],
            healthy_may=["vanishing-gradient"],  # the same sixty, as long as it is undecided
            symptom=stays_uniform(partial(bags, temperature=200.0), 0.97),
        ),
        Variant(
            "entropy-bonus-too-strong",
            healthy=told,
            broken=partial(told, entropy=5.0),
            may=["softmax-borne"],
            healthy_may=["softmax-borne"],  # by construction: one embedding is only looked up by
            symptom=stays_uniform(partial(told, entropy=5.0), 0.95),
        ),
        Variant(
            "scale-by-square-of-width",
            healthy=marks,
            broken=partial(marks, scale=1e-4),
            may=["vanishing-gradient"],  # the numbers share the gradient of their mean
            symptom=stays_uniform(partial(marks, scale=1e-4), 0.98),
        ),
    ],
)

PEAKED = Fault(
    "ind9-attention-peaked",
    must=[["peaked-softmax"]],
    variants=[
        Variant(
            "projections-from-randn",
            healthy=translator,
            broken=partial(translator, spread=1.0),
            symptom=one_hot(partial(translator, spread=1.0)),
        ),
        Variant(
            "slopes-far-too-steep",
            healthy=echo,
            broken=partial(echo, slopes=(40.0, 20.0)),
            may=["starved-pathway"],  # of what is read, queries and keys pass nothing back
            symptom=one_hot(partial(echo, slopes=(40.0, 20.0))),
        ),
        Variant(
            "cosine-temperature-tiny",
            healthy=partial(dictionary, sharpness=12.0),
            broken=partial(dictionary, sharpness=4000.0),
            may=["vanishing-gradient", "softmax-borne"],  # nothing comes back to keys and question
            healthy_may=["softmax-borne"],  # by construction: keys are only looked up by
            symptom=one_hot(partial(dictionary, sharpness=4000.0)),
        ),
        Variant(
            "row-bias-starts-too-large",
            healthy=rows,
            broken=partial(rows, start=40.0),
            # The keys' branch gets nothing at all, so that class queries and biases stay.
            may=["starved-pathway", "no-update"],
            symptom=one_hot(partial(rows, start=40.0)),
        ),
        Variant(
            "series-in-raw-units",
            healthy=forecaster,
            broken=partial(forecaster, unit=1000.0),
            must=[["peaked-softmax", "unscaled-input"]],
            # The normalisation behind the large input makes its layer's gradient small.
            may=["vanishing-gradient"],
            symptom=one_hot(partial(forecaster, unit=1000.0)),
        ),
    ],
)

FAULTS = [DIFFUSE, PEAKED]
