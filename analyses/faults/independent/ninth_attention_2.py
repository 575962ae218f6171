"""Attention branches that are all but closed, and attention that little passes on from."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_ninth_a import (
    branch_share,
    digit_images,
    digit_patches,
    few_pass,
    grammar,
    marked,
    next_word,
    recall,
    repeats,
    reversal,
    stories,
)
from analyses.faults.training import Batch, Training


def _labels(model: nn.Module, image: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(model(image), label)


def _predict(model: nn.Module, text: Tensor, following: Tensor) -> Tensor:
    return next_word(model(text), following)


# ---- a char model with a fixed gain on its branches ----------------------------------------------


class Attend(nn.Module):
    """Causal attention by matmul and softmax."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q, k, v = (
            f(x).view(B, T, self.heads, C // self.heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(C // self.heads)
        future = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
        weights = torch.softmax(scores.masked_fill(future, -math.inf), dim=-1)
        return self.out(torch.matmul(weights, v).transpose(1, 2).reshape(B, T, C))


class Letters(nn.Module):
    """Pre-norm decoder over letters whose attention is added with a constant gain."""

    def __init__(self, vocabulary: int, length: int, width: int, layers: int, gain: float) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.attend = nn.ModuleList(Attend(width, 2) for _ in range(layers))
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _ in range(layers))
        self.feed = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
            for _ in range(layers)
        )
        self.final, self.head = nn.LayerNorm(width), nn.Linear(width, vocabulary)
        self.register_buffer("gain", torch.full((width,), gain))

    def forward(self, text: Tensor) -> Tensor:
        x = self.letter(text) + self.place(torch.arange(text.shape[1]))
        for attend, n1, n2, feed in zip(
            self.attend, self.norm1, self.norm2, self.feed, strict=True
        ):
            x = x + self.gain * attend(n1(x))
            x = x + feed(n2(x))
        return self.head(self.final(x))


def letters(gain: float = 1.0) -> Training:
    torch.manual_seed(21)
    model = Letters(16, 30, 48, 2, gain)
    return Training(
        model=model,
        batch=partial(grammar, length=30),
        loss=_predict,
        optimizer=torch.optim.AdamW(model.parameters(), 3e-3),
        steps=200,
        every=5,
    )


# ---- a memory beside a recurrent reader, let in by a gate ----------------------------------------


class Gated(nn.Module):
    """A GRU reads on; what its states find in the past comes in through a sigmoid gate."""

    def __init__(self, words: int, width: int, bias: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.reader = nn.GRU(width, width, batch_first=True)
        self.look = nn.MultiheadAttention(width, 2, batch_first=True)
        self.gate = nn.Linear(2 * width, width)
        nn.init.constant_(self.gate.bias, bias)
        self.head = nn.Linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        h, _ = self.reader(self.embed(text))
        T = text.shape[1]
        mask = torch.ones(T, T, dtype=torch.bool).triu(1)
        found, _ = self.look(h, h, h, attn_mask=mask, need_weights=False)
        g = torch.sigmoid(self.gate(torch.cat([h, found], -1)))
        return self.head((1 - g) * torch.tanh(h) + g * found)


def gated(bias: float = 0.0) -> Training:
    torch.manual_seed(22)
    model = Gated(16, 48, bias)
    return Training(
        model=model,
        batch=partial(repeats, half=6, batch=24),
        loss=_predict,
        optimizer=torch.optim.Adam(model.parameters(), 4e-3),
        steps=350,
        every=10,
        clip=1.0,
    )


# ---- questions about a picture -------------------------------------------------------------------


def _asked(step: int) -> Batch:
    """An image, one of three questions about its digit, the answer."""
    image, label = digit_images(step, 48)
    question = torch.randint(0, 3, (48,), generator=torch.Generator().manual_seed(step))
    answers = torch.stack([label % 2, 2 + label // 5, 4 + label % 3], 1)
    return image, question, answers.gather(1, question[:, None])[:, 0]


class Questions(nn.Module):
    """The question's vector gathers what it needs from the rows and columns of an image."""

    def __init__(self, width: int, unit: float) -> None:
        super().__init__()
        self.cells = nn.Conv2d(1, width, 3, stride=1)
        self.place = nn.Parameter(torch.randn(36, width) * 0.3)
        self.question = nn.Embedding(3, width)
        self.to_q = nn.Linear(width, width)
        self.to_kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)
        self.classify = nn.Sequential(nn.Linear(width, 64), nn.GELU(), nn.Linear(64, 7))
        self.unit = unit

    def forward(self, image: Tensor, question: Tensor) -> Tensor:
        seen = self.cells(image.unsqueeze(1)).flatten(2).transpose(1, 2) + self.place
        k, v = self.to_kv(F.gelu(seen)).chunk(2, -1)
        x = self.question(question)
        heads = 4
        q = self.to_q(x).unflatten(-1, (heads, -1)).unsqueeze(2)
        k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in (k, v))
        read = F.scaled_dot_product_attention(q, k, v).flatten(1)
        x = x + self.out(read) * self.unit
        return self.classify(self.norm(x))


def _vqa(model: nn.Module, image: Tensor, question: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(image, question), answer)


def questions(unit: float = 1.0) -> Training:
    torch.manual_seed(23)
    model = Questions(32, unit)
    return Training(
        model=model,
        batch=_asked,
        loss=_vqa,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


# ---- a mixture of a convolution and attention ----------------------------------------------------


class Mixed(nn.Module):
    """Every block weighs a local and a global branch by a softmax over two learned numbers."""

    def __init__(self, words: int, width: int, lead: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(12, width) * 0.5)
        self.local = nn.ModuleList(nn.Conv1d(width, width, 3, padding=1) for _ in range(2))
        self.all = nn.ModuleList(
            nn.MultiheadAttention(width, 4, batch_first=True) for _ in range(2)
        )
        self.norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.weigh = nn.ParameterList(nn.Parameter(torch.tensor([lead, 0.0])) for _ in range(2))
        self.head = nn.Linear(width, words)

    def forward(self, text: Tensor) -> Tensor:
        x = self.embed(text) + self.place[: text.shape[1]]
        for local, everywhere, norm, weigh in zip(
            self.local, self.all, self.norm, self.weigh, strict=False
        ):
            h = norm(x)
            w = torch.softmax(weigh, 0)
            near = F.gelu(local(h.transpose(1, 2)).transpose(1, 2))
            x = x + w[0] * near + w[1] * everywhere(h, h, h, need_weights=False)[0]
        return self.head(self.norm[-1](x))


def _backwards(step: int) -> Batch:
    source, _, target = reversal(step, length=12, words=12)
    return source, target


def mixed(lead: float = 0.0) -> Training:
    torch.manual_seed(24)
    model = Mixed(12, 32, lead)
    return Training(
        model=model,
        batch=_backwards,
        loss=_predict,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=250,
        every=10,
    )


# ---- a network with a non-local block ------------------------------------------------------------


class NonLocal(nn.Module):
    """Attention over the cells of a feature map, behind a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 2, 1)
        self.phi = nn.Conv2d(channels, channels // 2, 1)
        self.g = nn.Conv2d(channels, channels // 2, 1)
        self.back = nn.Conv2d(channels // 2, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (f(x).flatten(2) for f in (self.theta, self.phi, self.g))
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(q.shape[1]), -1)
        y = (weights @ v.transpose(1, 2)).transpose(1, 2)
        return self.back(y.unflatten(2, x.shape[2:]))


class Matching(nn.Module):
    """Are two far parts of a strip the same? Small convolutions and one non-local block."""

    def __init__(self, gamma: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(2, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.GELU())
        self.block = NonLocal(24)
        self.gamma = nn.Parameter(torch.tensor(gamma))
        self.top = nn.Sequential(nn.Conv2d(24, 24, 1), nn.GELU())
        self.head = nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.gamma * self.block(x)
        return self.head(self.top(x))[:, 0]


def _carried(step: int) -> Batch:
    """One cell holds a number and is marked; every cell has to tell this number plus its own."""
    x, y = marked(step, 24, 36)
    planes = x.transpose(1, 2).reshape(24, 2, 6, 6)
    return planes, planes[:, 0] + y[:, :, None]


def _squares(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x), y)


def matching(gamma: float = 1.0, frozen: bool = False) -> Training:
    torch.manual_seed(25)
    model = Matching(gamma)
    model.gamma.requires_grad_(not frozen)
    held = [p for p in model.parameters() if p.requires_grad]
    return Training(
        model=model,
        batch=_carried,
        loss=_squares,
        optimizer=torch.optim.AdamW(held, 4e-3),
        steps=300,
        every=10,
    )


STARVED = Fault(
    "ind9-attention-starved",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "constant-layer-scale",
            healthy=letters,
            broken=partial(letters, gain=1e-6),
            symptom=branch_share(partial(letters, gain=1e-6), ("norm1.0", "norm1.1")),
        ),
        Variant(
            "gate-bias-shuts-memory",
            healthy=gated,
            broken=partial(gated, bias=-16.0),
            must=[["starved-pathway", "saturated-activation"]],
            symptom=branch_share(partial(gated, bias=-16.0), ("look",)),
        ),
        Variant(
            "visual-branch-scaled-away",
            healthy=questions,
            broken=partial(questions, unit=1e-7),
            # The whole image is that branch: all that is before its scale gets next to nothing.
            must=[["starved-pathway", "vanishing-gradient"]],
            symptom=branch_share(partial(questions, unit=1e-7), ("to_q",)),
        ),
        Variant(
            "mixture-starts-one-sided",
            healthy=mixed,
            broken=partial(mixed, lead=16.0),
            must=[["starved-pathway", "peaked-softmax"]],
            symptom=branch_share(partial(mixed, lead=16.0), ("all.0", "all.1")),
        ),
        Variant(
            "frozen-gamma-of-non-local-block",
            healthy=matching,
            broken=partial(matching, gamma=1e-6, frozen=True),
            symptom=branch_share(partial(matching, gamma=1e-6, frozen=True), ("block",)),
        ),
    ],
)


# ---- little passes: backwards with library layers ------------------------------------------------


class Backwards(nn.Module):
    """Two encoder layers, with something between them."""

    def __init__(self, words: int, length: int, width: int, pooled: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, width), nn.Embedding(length, width)
        self.first = nn.TransformerEncoderLayer(
            width, 2, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.second = nn.TransformerEncoderLayer(
            width, 2, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.head = nn.Linear(width, words)
        self.pooled = pooled

    def forward(self, text: Tensor) -> Tensor:
        places = self.place(torch.arange(text.shape[1]))
        x = self.first(self.embed(text) + places)
        if self.pooled:
            x = x.mean(dim=1, keepdim=True).expand_as(x) + places
        return self.head(self.second(x))


def backwards(pooled: bool = False) -> Training:
    torch.manual_seed(26)
    model = Backwards(12, 12, 32, pooled)
    return Training(
        model=model,
        batch=_backwards,
        loss=_predict,
        optimizer=torch.optim.Adam(model.parameters(), 2e-3),
        steps=250,
        every=10,
    )


# ---- little passes: an encoder's ends only -------------------------------------------------------


class Translator(nn.Module):
    """nn.TransformerEncoder and nn.TransformerDecoder."""

    def __init__(self, words: int, length: int, width: int, ends: bool) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(words, width), nn.Embedding(words, width)
        self.place = nn.Parameter(torch.randn(length, width))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(width, 2, 48, dropout=0.0, batch_first=True), 1
        )
        self.decoder = nn.TransformerDecoder(
            nn.TransformerDecoderLayer(width, 2, 48, dropout=0.0, batch_first=True), 1
        )
        self.words = nn.Linear(width, words)
        self.ends = ends

    def forward(self, source: Tensor, so_far: Tensor) -> Tensor:
        T = source.shape[1]
        memory = self.encoder(self.source(source) + self.place[:T])
        if self.ends:
            memory = torch.stack([memory[:, 0], memory[:, -1]], 1)
        mask = nn.Transformer.generate_square_subsequent_mask(T)
        y = self.decoder(self.target(so_far) + self.place[:T], memory, tgt_mask=mask)
        return self.words(y)


def _translate(model: nn.Module, source: Tensor, so_far: Tensor, target: Tensor) -> Tensor:
    return next_word(model(source, so_far), target)


def translator(ends: bool = False) -> Training:
    torch.manual_seed(27)
    model = Translator(12, 14, 24, ends)
    return Training(
        model=model,
        batch=partial(reversal, length=14),
        loss=_translate,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


# ---- little passes: one number for each position -------------------------------------------------


class Hourglass(nn.Module):
    """Attention, a narrow projection and back, attention; no connection around it."""

    def __init__(self, keys: int, values: int, width: int, waist: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, width), nn.Embedding(values, width)
        self.ask = nn.Embedding(keys, width)
        self.one = nn.MultiheadAttention(width, 4, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.waist = nn.Sequential(nn.Linear(width, waist), nn.Linear(waist, width))
        self.two = nn.MultiheadAttention(width, 4, batch_first=True)
        self.head = nn.Linear(width, values)

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        x = torch.cat([self.ask(asked)[:, None], self.key(key) + self.value(value)], 1)
        x = self.norm(x + self.one(x, x, x, need_weights=False)[0])
        x = self.waist(x)
        x = self.two(x, x, x, need_weights=False)[0]
        return self.head(x[:, 0])


def _answer(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(key, value, asked), answer)


def hourglass(waist: int = 40) -> Training:
    torch.manual_seed(28)
    model = Hourglass(12, 8, 40, waist)
    return Training(
        model=model,
        batch=partial(recall, pairs=8, keys=12),
        loss=_answer,
        optimizer=torch.optim.Adam(model.parameters(), 3e-3),
        steps=300,
        every=10,
    )


# ---- little passes: too few latents --------------------------------------------------------------


class Latents(nn.Module):
    """Latents read patches, talk, and are read by one query for each patch to be filled in."""

    def __init__(self, latents: int, inner: int, width: int = 24) -> None:
        super().__init__()
        self.patch = nn.Linear(4, width)
        self.place = nn.Parameter(torch.randn(16, width) * 0.5)
        self.latents = nn.Parameter(torch.randn(latents, inner) * 0.5)
        self.q1, self.kv1 = nn.Linear(inner, width), nn.Linear(width, 2 * width)
        self.o1 = nn.Linear(width, inner)
        self.q2, self.kv2 = nn.Linear(width, width), nn.Linear(inner, 2 * width)
        self.o2 = nn.Linear(width, width)
        self.out = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 4))

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.place
        z = self.latents.expand(len(x), -1, -1)
        k, v = self.kv1(x).chunk(2, -1)
        z = self.o1(F.scaled_dot_product_attention(self.q1(z), k, v))
        k, v = self.kv2(z).chunk(2, -1)
        q = self.q2(self.place).expand(len(x), -1, -1)
        return self.out(self.o2(F.scaled_dot_product_attention(q, k, v)))


def _restore(model: nn.Module, patches: Tensor, label: Tensor) -> Tensor:
    return F.mse_loss(model(patches), patches)


def latents(latents: int = 12, inner: int = 24) -> Training:
    torch.manual_seed(29)
    model = Latents(latents, inner)
    return Training(
        model=model,
        batch=digit_patches,
        loss=_restore,
        optimizer=torch.optim.AdamW(model.parameters(), 4e-3),
        steps=300,
        every=10,
    )


# ---- little passes: the mean over the wrong dimension --------------------------------------------


class Find(nn.Module):
    """One head of cross attention."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))

    def forward(self, u: Tensor, h: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(self.q(u), self.k(h), self.v(h))


class Twice(nn.Module):
    """Words to sentences by attention, a summary of each, then attention over sentences."""

    def __init__(self, words: int, places: int, width: int, dim: int | None) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, width)
        self.ask = nn.Embedding(words, width)
        self.inner = Attend(width, 2)
        self.summary = nn.Linear(1 if dim == -1 else width, width)
        self.outer = Find(width)
        self.head = nn.Linear(2 * width, places)
        self.dim = dim

    def forward(self, sentences: Tensor, asked: Tensor) -> Tensor:
        B, N, W = sentences.shape
        x = self.inner(self.embed(sentences).flatten(0, 1))
        if self.dim == -1:  # (B·N, W, 1): nearly nothing of a word is left
            x = x.mean(dim=-1, keepdim=True)
        h = F.gelu(self.summary(x)).view(B, N * W, -1)
        u = self.ask(asked)[:, None]
        found = self.outer(u, h)
        return self.head(torch.cat([found, u], -1)[:, 0])


def twice(dim: int | None = None) -> Training:
    torch.manual_seed(30)
    model = Twice(12, 6, 32, dim)
    return Training(
        model=model,
        batch=stories,
        loss=lambda m, sentences, asked, place: F.cross_entropy(m(sentences, asked), place),
        optimizer=torch.optim.Adam(model.parameters(), 4e-3),
        steps=300,
        every=10,
    )


NARROW = Fault(
    "ind9-attention-narrow",
    must=[["information-bottleneck"]],
    variants=[
        Variant(
            "mean-copied-to-all-positions",
            healthy=backwards,
            broken=partial(backwards, pooled=True),
            symptom=few_pass(
                partial(backwards, pooled=True), backwards, "first.self_attn", "second.self_attn"
            ),
        ),
        Variant(
            "decoder-sees-the-ends-only",
            healthy=translator,
            broken=partial(translator, ends=True),
            symptom=few_pass(
                partial(translator, ends=True),
                translator,
                "encoder.layers.0.self_attn",
                "decoder.layers.0.multihead_attn",
            ),
        ),
        Variant(
            "waist-of-one",
            healthy=hourglass,
            broken=partial(hourglass, waist=1),
            symptom=few_pass(partial(hourglass, waist=1), hourglass, "one", "two"),
        ),
        Variant(
            "two-small-latents",
            healthy=latents,
            broken=partial(latents, latents=2, inner=3),
            symptom=few_pass(partial(latents, latents=2, inner=3), latents, "o1", "o2"),
        ),
        Variant(
            "mean-over-features",
            healthy=twice,
            broken=partial(twice, dim=-1),
            symptom=few_pass(partial(twice, dim=-1), twice, "inner", "outer"),
        ),
    ],
)

FAULTS = [STARVED, NARROW]
