"""Attention that doesn't learn where to look, or can't tell what it saw."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_attention import (
    adjacency,
    communities,
    fit,
    narrow_between,
    needles,
    pairs,
    patches,
    periodic,
    reversal,
    squared,
    stays_flat,
    stays_peaked,
)
from analyses.faults.symptoms import decays, peaked
from analyses.faults.training import Training, ordinary

# Peaked from the start.


class PairBlock(nn.Module):
    """Attention of several heads in a block that normalises first."""

    def __init__(self, wide: int, heads: int, scale: float) -> None:
        super().__init__()
        self.heads, self.scale = heads, scale
        self.norm1, self.norm2 = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.q, self.k, self.v = (nn.Linear(wide, wide) for _ in range(3))
        self.out = nn.Linear(wide, wide)
        self.mlp = nn.Sequential(nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm1(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        p = torch.softmax(q @ k.transpose(-2, -1) * self.scale, -1)
        x = x + self.out((p @ v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class PairEncoder(nn.Module):
    """Pairs and the question as tokens; the answer is read at the question."""

    def __init__(self, keys: int, values: int, layers: list[nn.Module], wide: int) -> None:
        super().__init__()
        self.key, self.value = nn.Embedding(keys, wide), nn.Embedding(values + 1, wide)
        self.layers = nn.ModuleList(layers)
        self.norm, self.head = nn.LayerNorm(wide), nn.Linear(wide, values)

    def forward(self, listed: Tensor, held: Tensor, asked: Tensor) -> Tensor:
        blank = torch.full_like(asked, self.value.num_embeddings - 1)
        x = torch.cat([self.key(listed) + self.value(held),
                       (self.key(asked) + self.value(blank))[:, None]], 1)  # fmt: skip
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x[:, -1]))


def drawn_pairs(deviation: float = 0.1, scale: float = 32**-0.5) -> Training:
    """Two blocks whose queries and keys start from weights drawn by hand."""
    torch.manual_seed(0)
    blocks = [PairBlock(64, 2, scale) for _ in range(2)]
    for block in blocks:
        nn.init.normal_(block.q.weight, std=deviation)
        nn.init.normal_(block.k.weight, std=deviation)
    model = PairEncoder(16, 6, list(blocks), 64)
    return fit(model, pairs(12, 16, 6), lr=2e-3, steps=180)


class Steep(nn.Module):
    """A causal language model of one block, with a penalty on distance in the logits."""

    def __init__(self, letters: int, length: int, slope: float) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(letters, 48), nn.Embedding(length, 48)
        self.norm = nn.LayerNorm(48)
        self.qkv, self.out = nn.Linear(48, 144), nn.Linear(48, 48)
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, letters))
        at = torch.arange(length)
        back = (at[:, None] - at[None]).float()
        self.register_buffer("bias", (-slope * back).masked_fill(back < 0, -math.inf))

    def forward(self, text: Tensor) -> Tensor:
        x = self.token(text) + self.place.weight[: text.shape[1]]
        q, k, v = (t.unflatten(-1, (3, 16)).transpose(1, 2)
                   for t in self.qkv(self.norm(x)).chunk(3, -1))  # fmt: skip
        p = (q @ k.transpose(-2, -1) / 4 + self.bias).softmax(-1)
        return self.head(x + self.out((p @ v).transpose(1, 2).flatten(2)))


def steep(slope: float = 0.05) -> Training:
    """Text of a period that the penalty lets the model see, or not."""
    torch.manual_seed(1)
    return fit(Steep(8, 24, slope), periodic(24, 6, 8), lr=1e-2, steps=200)


class Addressed(nn.Module):
    """A memory read once by content: cosine similarity, sharpened by a factor."""

    def __init__(self, keys: int, values: int, sharpness: float) -> None:
        super().__init__()
        self.asked = nn.Sequential(nn.Embedding(keys, 40), nn.Linear(40, 40))
        self.listed = nn.Sequential(nn.Embedding(keys, 40), nn.Linear(40, 40))
        self.held = nn.Embedding(values, 32)
        self.head = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, values))
        self.sharpness = sharpness

    def forward(self, listed: Tensor, held: Tensor, asked: Tensor) -> Tensor:
        likeness = F.cosine_similarity(self.asked(asked)[:, None], self.listed(listed), dim=-1)
        p = F.softmax(self.sharpness * likeness, dim=-1)
        return self.head((p[:, None] @ self.held(held))[:, 0])


def addressed(sharpness: float = 8.0, items: int = 10, keys: int = 24) -> Training:
    """Look-ups in such a memory."""
    torch.manual_seed(2)
    return fit(Addressed(keys, 5, sharpness), pairs(items, keys, 5), lr=5e-3, steps=250)


class GraphNet(nn.Module):
    """Graph attention of some heads, as a sum of two parts behind a leaky ReLU; then an MLP."""

    linked: Tensor

    def __init__(self, linked: Tensor, given: int, groups: int, gain: float) -> None:
        super().__init__()
        self.register_buffer("linked", linked)
        self.value = nn.Linear(given, 48)
        self.left, self.right = nn.Linear(48, 3, bias=False), nn.Linear(48, 3, bias=False)
        for part in (self.left, self.right):
            nn.init.xavier_uniform_(part.weight, gain)
        self.head = nn.Sequential(nn.Linear(48, 32), nn.ELU(), nn.Linear(32, groups))

    def forward(self, x: Tensor) -> Tensor:
        h = self.value(x)
        logits = F.leaky_relu(self.left(h).T[:, :, None] + self.right(h).T[:, None], 0.2)
        p = torch.softmax(logits.masked_fill(~self.linked, -math.inf), -1)
        seen = p @ h.unflatten(-1, (3, 16)).transpose(0, 1)
        return self.head(seen.transpose(0, 1).flatten(1))


def graph(gain: float = 1.0) -> Training:
    """Communities of a graph from noisy features: neighbours have to be averaged."""
    torch.manual_seed(3)
    model = GraphNet(adjacency(150, 5), 16, 5, gain)
    return fit(model, communities(150, 5, 16, 3.0), lr=1e-2, steps=150)


class Kernel(nn.Module):
    """Regression by a kernel on the distance between what a network makes of the points."""

    def __init__(self, wide: int, width: float) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(wide, 48), nn.Tanh(), nn.Linear(48, 16))
        self.gain = nn.Linear(1, 1)
        self.width = width

    def forward(self, known: Tensor, seen: Tensor, asked: Tensor) -> Tensor:
        a, b = self.embed(asked), self.embed(known)
        far = (a[:, :, None] - b[:, None]).square().sum(-1)
        return self.gain(torch.softmax(-far / self.width, dim=2) @ seen)


def kernel(width: float = 0.5, descent: bool = False) -> Training:
    """One of four coordinates matters; values are noisy, so that several have to be averaged."""
    torch.manual_seed(4)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        points = torch.randn(24, 48, 4, generator=g)
        clean = points[..., :1] * 1.0
        seen = clean[:, :32] + 0.5 * torch.randn(24, 32, 1, generator=g)
        return points[:, :32], seen, points[:, 32:], clean[:, 32:]

    if descent:
        kind, lr = partial(torch.optim.SGD, momentum=0.9), 3e-2
        return fit(Kernel(4, width), batch, lr=lr, steps=200, loss=squared, kind=kind)
    return fit(Kernel(4, width), batch, lr=1e-2, steps=200, loss=squared)


def library_pairs(gain: float = 1.0) -> Training:
    """Blocks of the library's own, the rows of whose queries and keys are scaled."""
    torch.manual_seed(5)
    layers: list[nn.Module] = []
    for _ in range(2):
        layer = nn.TransformerEncoderLayer(48, 2, 96, 0.0, batch_first=True)
        with torch.no_grad():
            layer.self_attn.in_proj_weight[:96] *= gain
        layers.append(layer)
    return fit(PairEncoder(12, 5, layers, 48), pairs(9, 12, 5, 48), lr=2e-3, steps=180)


class Spelled(nn.Module):
    """GRUs read and write a word; the writer looks back by a bilinear score."""

    def __init__(self, letters: int, wide: int, gain: float) -> None:
        super().__init__()
        self.letter = nn.Embedding(letters + 1, wide)
        self.reader = nn.GRU(wide, wide // 2, batch_first=True, bidirectional=True)
        self.writer = nn.GRU(wide, wide, batch_first=True)
        self.score = nn.Linear(wide, wide, bias=False)
        nn.init.orthogonal_(self.score.weight, gain)
        self.head = nn.Sequential(nn.Linear(2 * wide, wide), nn.Tanh(), nn.Linear(wide, letters))

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        memory, _ = self.reader(self.letter(source))
        start = torch.full_like(target[:, :1], self.letter.num_embeddings - 1)
        states, _ = self.writer(self.letter(torch.cat([start, target[:, :-1]], 1)))
        p = torch.softmax(self.score(states) @ memory.transpose(1, 2), dim=-1)
        return self.head(torch.cat([states, p @ memory], -1))


def spelled(gain: float = 1.0) -> Training:
    """Words written from behind."""
    torch.manual_seed(6)
    words = reversal(8, 6, 48)

    def batch(step: int) -> tuple[Tensor, ...]:
        source, target = words(step)
        return source, target, target

    return fit(Spelled(6, 48, gain), batch, lr=5e-3, steps=220)


class Cooled(nn.Module):
    """Pools cells by a softmax whose temperature falls with every step of training."""

    def __init__(self, given: int, classes: int, factor: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(given, 32), nn.SiLU())
        self.score, self.head = nn.Linear(32, 1), nn.Linear(32, classes)
        self.factor, self.temperature = factor, 1.0

    def forward(self, cells: Tensor) -> Tensor:
        x = self.body(cells)
        p = torch.softmax(self.score(x)[..., 0] / self.temperature, dim=1)
        return self.head((p[..., None] * x).sum(1))


def _cool(training: Training, step: int) -> dict[str, object]:
    model = training.model
    assert isinstance(model, Cooled)
    logged = ordinary(training, step)
    model.temperature = max(model.temperature * model.factor, 1e-6)
    return logged


def cooled(factor: float = 0.998) -> Training:
    """The class of the marked one of sixteen cells."""
    torch.manual_seed(7)
    training = fit(Cooled(6, 5, factor), needles(16, 5), lr=1e-2, steps=200)
    training.step = _cool
    return training


# A network that does nothing but say where to look has all its gradient through the softmax:
# so it is built, and no harm as such.
BEHIND = ("softmax-borne",)

PEAKED = Fault(
    "ind3-attention-peaked",
    must=[["peaked-softmax"]],
    symptom=stays_peaked(0.05),
    variants=[
        Variant("drawn-and-unscaled", drawn_pairs, broken=partial(drawn_pairs, 1.0, 1.0)),
        Variant(
            "steep-distance",
            steep,
            broken=partial(steep, 60.0),
            may=["starved-pathway"],  # queries and keys, beside values
        ),
        Variant(
            "sharp-addressing",
            addressed,
            broken=partial(addressed, 1e5),
            may=["vanishing-gradient", *BEHIND],  # both networks of the address
            healthy_may=BEHIND,
        ),
        Variant(
            "graph-gain",
            graph,
            broken=partial(graph, 3000.0),
            # The two parts of the score, beside the values; they move by millionths.
            may=["starved-pathway", "no-update"],
        ),
        Variant(
            "narrow-kernel",
            kernel,
            broken=partial(kernel, 1e-6),
            # The embedding, which only the kernel reads.
            may=["vanishing-gradient", *BEHIND],
            healthy_may=BEHIND,
        ),
        Variant(
            "scaled-rows",
            library_pairs,
            broken=partial(library_pairs, 60.0),
            may=["starved-pathway"],  # queries and keys, beside values
        ),
        Variant("bilinear-gain", spelled, broken=partial(spelled, 3000.0)),
        Variant(
            "cooled-too-fast",
            cooled,
            broken=partial(cooled, 0.4),
            may=["starved-pathway", "no-update"],  # the score, once it is cold
            symptom=peaked(0.05),
        ),
    ],
)

# Uniform to the end.


class Pooled(nn.Module):
    """Learned scores of several heads pool many cells."""

    def __init__(self, given: int, classes: int, times: int) -> None:
        super().__init__()
        self.score = nn.Sequential(nn.Linear(given, 32), nn.ReLU(), nn.Linear(32, 4))
        self.value = nn.Linear(given, 48)
        self.head = nn.Linear(48, classes)
        self.times = times

    def forward(self, cells: Tensor) -> Tensor:
        value = self.value(cells).unflatten(-1, (4, 12))
        p = self.score(cells).transpose(1, 2)
        for _ in range(self.times):
            p = torch.softmax(p, dim=-1)
        seen = torch.einsum("bhn,bnhd->bhd", p, value)
        return self.head(seen.flatten(1))


def pooled(times: int = 1) -> Training:
    """The class of the marked one of fifty cells; the softmax is applied once, or twice."""
    torch.manual_seed(10)
    return fit(Pooled(6, 5, times), needles(50, 5, 48), lr=5e-3, steps=200)


class CellEncoder(nn.Module):
    """Blocks over cells and a token of its own, at which the answer is read."""

    def __init__(self, given: int, classes: int, layers: list[nn.Module], wide: int) -> None:
        super().__init__()
        self.embed = nn.Linear(given, wide)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, wide))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, classes))

    def forward(self, cells: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(cells), -1, -1), self.embed(cells)], 1)
        for layer in self.layers:
            x = layer(x)
        return self.head(x[:, 0])


def encoded(scale: float = 16**-0.5) -> Training:
    """The class of the marked one of sixty cells, by blocks with logits of some scale."""
    torch.manual_seed(11)
    layers: list[nn.Module] = [PairBlock(32, 2, scale) for _ in range(2)]
    return fit(CellEncoder(6, 5, layers, 32), needles(60, 5, 32), lr=3e-3, steps=150)


class Crowd(nn.Module):
    """A learned query compared by cosine with what an MLP makes of many cells."""

    def __init__(self, given: int, classes: int, sharpness: float) -> None:
        super().__init__()
        self.key = nn.Sequential(nn.Linear(given, 24), nn.Tanh(), nn.Linear(24, 24))
        self.query = nn.Parameter(torch.randn(24))
        self.value = nn.Linear(given, 16)
        self.head = nn.Linear(16, classes)
        self.sharpness = sharpness

    def forward(self, cells: Tensor) -> Tensor:
        value = self.value(cells)
        likeness = F.normalize(self.key(cells), dim=-1) @ F.normalize(self.query, dim=0)
        p = torch.softmax(self.sharpness * likeness, -1)
        return self.head((p[..., None] * value).sum(1))


def crowd(sharpness: float = 15.0) -> Training:
    """The class of the marked one of forty cells."""
    torch.manual_seed(12)
    return fit(Crowd(6, 5, sharpness), needles(40, 5, 48), lr=5e-3, steps=200)


class Listening(nn.Module):
    """Frames pooled by an additive score of what convolutions make of them."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv1d(given, 32, 3, padding=1), nn.ReLU())
        self.score = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
        self.value, self.head = nn.Linear(given, 24), nn.Linear(24, classes)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.body(frames.transpose(1, 2)).transpose(1, 2)
        p = F.softmax(self.score(x).transpose(1, 2), dim=-1)
        return self.head((p @ self.value(frames))[:, 0])


def listening(decay: float = 0.0) -> Training:
    """The class of the marked one of forty frames; the score has a weight decay of its own."""
    torch.manual_seed(13)
    model = Listening(5, 4)
    score = list(model.score.parameters())
    rest = [p for n, p in model.named_parameters() if not n.startswith("score")]
    training = fit(model, needles(40, 4, 48), steps=200)
    groups: list[dict[str, Any]] = [{"params": score, "weight_decay": decay}, {"params": rest}]
    training.optimizer = torch.optim.AdamW(groups, lr=4e-3)
    return training


class Crossing(nn.Module):
    """Letters and places of a word; a writer without recurrence looks across."""

    def __init__(self, letters: int, length: int, wide: int, started: bool) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, wide), nn.Embedding(length, wide)
        self.out_place = nn.Embedding(length, wide)
        self.q, self.k, self.v = (nn.Linear(wide, wide) for _ in range(3))
        if not started:
            for part in (self.q, self.k):
                nn.init.zeros_(part.weight)
                nn.init.zeros_(part.bias)
        self.mix = nn.Sequential(nn.Linear(wide, wide), nn.ReLU(), nn.Linear(wide, letters))

    def forward(self, source: Tensor) -> Tensor:
        memory = self.letter(source) + self.place.weight
        q, k, v = self.q(self.out_place.weight), self.k(memory), self.v(memory)
        p = (q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1)
        return self.mix(p @ v + self.out_place.weight)


def crossing(started: bool = True) -> Training:
    """Words of twenty letters written from behind."""
    torch.manual_seed(14)
    return fit(Crossing(6, 20, 40, started), reversal(20, 6, 48), lr=5e-3, steps=250)


class Heard(nn.Module):
    """Cells pooled by attention that comes of the states of an LSTM."""

    def __init__(self, given: int, classes: int) -> None:
        super().__init__()
        self.body = nn.LSTM(given, 24, batch_first=True)
        self.score, self.value = nn.Linear(24, 1), nn.Linear(given, 24)
        self.head = nn.Linear(24, classes)

    def forward(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        p = torch.softmax(self.score(self.body(cells)[0])[..., 0], -1)
        return self.head((p[..., None] * self.value(cells)).sum(1)), p


def _spread(weight: float, model: nn.Module, cells: Tensor, answer: Tensor) -> Tensor:
    said, p = model(cells)
    missing = math.log(p.shape[1]) - torch.special.entr(p).sum(1).mean()
    return F.cross_entropy(said, answer) + weight * missing


def heard(weight: float = 0.0) -> Training:
    """The class of the marked one of twenty-four; a penalty asks for attention to all."""
    torch.manual_seed(15)
    loss = partial(_spread, weight)
    return fit(Heard(5, 4), needles(24, 4, 48, 0.1), lr=1e-2, steps=200, loss=loss)


class Latents(nn.Module):
    """A few learned latents look at many cells."""

    def __init__(self, given: int, classes: int, squashed: bool) -> None:
        super().__init__()
        self.latents = nn.Parameter(torch.randn(3, 32))
        self.ask, self.key = nn.Linear(32, 32), nn.Linear(given, 32)
        self.value = nn.Linear(given, 32)
        self.head = nn.Sequential(nn.Linear(96, 64), nn.GELU(), nn.Linear(64, classes))
        self.squashed = squashed

    def forward(self, cells: Tensor) -> Tensor:
        logits = self.ask(self.latents) @ self.key(cells).transpose(1, 2) / 32**0.5
        if self.squashed:
            logits = torch.sigmoid(logits)
        return self.head((logits.softmax(dim=-1) @ self.value(cells)).flatten(1))


def latents(squashed: bool = False) -> Training:
    """The class of the marked one of seventy cells."""
    torch.manual_seed(16)
    return fit(Latents(7, 6, squashed), needles(70, 6, 48), lr=3e-3, steps=150)


DIFFUSE = Fault(
    "ind3-attention-diffuse",
    must=[["diffuse-softmax"]],
    symptom=stays_flat(0.98),
    variants=[
        Variant(
            "softmax-twice",
            pooled,
            broken=partial(pooled, 2),
            # The first of the two sharpens all the same, later; the score gets 1/1000.
            may=["vanishing-gradient", "peaked-softmax", *BEHIND],
            healthy_may=BEHIND,
        ),
        Variant(
            "overscaled",
            encoded,
            broken=partial(encoded, 1e-5),
            # Queries and keys, beside values; and the cells' embedding, as all are averaged.
            may=["vanishing-gradient", "starved-pathway"],
        ),
        Variant(
            "cosine-crowd",
            crowd,
            broken=partial(crowd, 24**-0.5),
            may=["vanishing-gradient", *BEHIND],  # the keys
            healthy_may=BEHIND,
        ),
        Variant(
            "decayed-score",
            listening,
            broken=partial(listening, 150.0),
            may=["vanishing-gradient", *BEHIND],  # what only the score reads
            healthy_may=BEHIND,
        ),
        Variant(
            "zero-queries-and-keys",
            crossing,
            broken=partial(crossing, False),
            may=["no-update", "starved-pathway", "vanishing-gradient"],  # exactly 0 for both
        ),
        Variant(
            "wide-kernel",
            partial(kernel, descent=True),
            broken=partial(kernel, 1e4, descent=True),
            may=["vanishing-gradient", "no-update", *BEHIND],  # the embedding
            healthy_may=BEHIND,
        ),
        Variant(
            "asked-for",
            heard,
            broken=partial(heard, 30.0),
            may=["vanishing-gradient", *BEHIND],  # the LSTM
            healthy_may=BEHIND,
        ),
        Variant(
            "squashed-logits",
            latents,
            broken=partial(latents, True),
            may=["vanishing-gradient"],  # the latents and what asks with them
        ),
    ],
)

# Little gets from one layer of attention to the next.


class Hops(nn.Module):
    """A memory read several times; what is read is added to the question of the next time."""

    def __init__(self, keys: int, values: int, wide: int, hops: int) -> None:
        super().__init__()
        self.asked = nn.Embedding(keys, wide)
        self.address, self.held = nn.Embedding(keys, wide), nn.Embedding(values, wide)
        self.between = nn.ModuleList(nn.Linear(wide, wide) for _ in range(hops))
        self.head = nn.Linear(wide, values)

    def forward(self, listed: Tensor, held: Tensor, asked: Tensor) -> Tensor:
        state = self.asked(asked)
        keys, content = self.address(listed), self.held(held)
        for layer in self.between:
            p = torch.softmax((keys @ state[..., None])[..., 0] / keys.shape[-1] ** 0.5, -1)
            state = layer(state) + (p[:, None] @ content)[:, 0]
        return self.head(state)


def hops(count: int = 3) -> Training:
    """Look-ups among thirty pairs."""
    torch.manual_seed(20)
    return fit(Hops(40, 6, 32, count), pairs(30, 40, 6), lr=1e-2, steps=200)


class Thought(nn.Module):
    """Two blocks of attention; between them every letter, or their sum in a few numbers."""

    def __init__(self, letters: int, length: int, wide: int, numbers: int) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, wide), nn.Embedding(length, wide)
        self.back = nn.Embedding(length, wide)
        self.reader, self.writer = PairBlock(wide, 4, 0.3), PairBlock(wide, 4, 0.3)
        self.few = nn.Linear(wide, numbers) if numbers else None
        self.many = nn.Linear(numbers or wide, wide)
        self.head = nn.Linear(wide, letters)

    def forward(self, source: Tensor) -> Tensor:
        x = self.reader(self.letter(source) + self.place.weight)
        if self.few is not None:
            x = self.few(x.mean(1, keepdim=True))
        return self.head(self.writer(self.many(x) + self.back.weight))


def thought(numbers: int = 0) -> Training:
    """Words of twenty-four letters, written from behind."""
    torch.manual_seed(21)
    model = Thought(5, 24, 48, numbers)
    return fit(model, reversal(24, 5, 32), lr=3e-3, steps=150)


class Waisted(nn.Module):
    """Attention by patch, a waist at every patch, and attention again; no way around."""

    def __init__(self, waist: int) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 64), nn.Parameter(0.3 * torch.randn(16, 64))
        self.first, self.second = nn.Linear(64, 192), nn.Linear(64, 192)
        self.waist = nn.Sequential(nn.Linear(64, waist), nn.Linear(waist, 64))
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.place
        x = x + _heads(self.first(x), 4)
        x = self.waist(x)
        x = x + _heads(self.second(x), 4)
        return self.head(x.mean(1))


def _heads(projected: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in projected.chunk(3, -1))
    p = torch.softmax(q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5, dim=-1)
    return (p @ v).transpose(1, 2).flatten(2)


def waisted(waist: int = 64) -> Training:
    """Digits in sixteen patches."""
    torch.manual_seed(22)
    return fit(Waisted(waist), patches(2), lr=2e-3, steps=200)


class Glimpses(nn.Module):
    """Looks at the pixels of a digit some times; only where to look next is handed on."""

    def __init__(self, looks: int, handed: int) -> None:
        super().__init__()
        self.value, self.place = nn.Linear(1, 48), nn.Parameter(torch.randn(64, 48))
        self.start = nn.Parameter(torch.randn(1, 48))
        self.key = nn.Linear(48, 48)
        self.where = nn.ModuleList(nn.Linear(48, handed) for _ in range(looks - 1))
        self.look = nn.ModuleList(nn.Linear(handed, 48) for _ in range(looks - 1))
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.value(x) + 0.5) * self.place
        query, keys = self.start.expand(len(x), -1), self.key(x)
        for where, look in zip(self.where, self.look, strict=True):
            seen = self._read(query, keys, x)
            query = look(torch.tanh(where(seen)))
        return self.head(self._read(query, keys, x))

    def _read(self, query: Tensor, keys: Tensor, x: Tensor) -> Tensor:
        p = F.softmax(torch.einsum("bd,bnd->bn", query, keys) / 48**0.5, dim=-1)
        return torch.einsum("bn,bnd->bd", p, x)


def glimpses(looks: int = 3, handed: int = 2) -> Training:
    """Digits, pixel by pixel."""
    torch.manual_seed(23)
    return fit(Glimpses(looks, handed), patches(1), lr=5e-3, steps=200)


class Summed(nn.Module):
    """A vision transformer's first block, then cross-attention by its class token alone."""

    def __init__(self, all_of_them: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 48), nn.Parameter(0.3 * torch.randn(16, 48))
        self.token = nn.Parameter(torch.randn(1, 1, 48))
        self.first = PairBlock(48, 3, 0.25)
        self.norm, self.q = nn.LayerNorm(48), nn.Linear(48, 48)
        self.k, self.v = nn.Linear(48, 48), nn.Linear(48, 48)
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, 10))
        self.all_of_them = all_of_them

    def forward(self, x: Tensor) -> Tensor:
        cells = self.embed(x) + self.place
        x = self.first(torch.cat([self.token.expand(len(x), -1, -1), cells], 1))
        query = self.q(self.norm(x[:, :1]))
        memory = x[:, 1:] if self.all_of_them else cells
        p = torch.softmax(query @ self.k(memory).transpose(1, 2) / 48**0.5, -1)
        return self.head((x[:, :1] + p @ self.v(memory))[:, 0])


def summed(all_of_them: bool = True) -> Training:
    """Digits in sixteen patches."""
    torch.manual_seed(24)
    return fit(Summed(all_of_them), patches(2, 48), lr=2e-3, steps=150)


NARROW = Fault(
    "ind3-attention-narrow",
    must=[["information-bottleneck"]],
    variants=[
        # Of thirty cells of 32 numbers, only the sum of what was read gets on.
        Variant("hops", broken=hops, may=["softmax-borne"], symptom=narrow_between(hops, 30 * 32)),
        Variant(
            "thought",
            thought,
            broken=partial(thought, 8),
            symptom=narrow_between(partial(thought, 8), 24 * 48),
        ),
        Variant(
            "waist",
            waisted,
            broken=partial(waisted, 1),
            symptom=narrow_between(partial(waisted, 1), 16 * 64),
        ),
        Variant(
            "glimpses",
            broken=glimpses,
            may=["softmax-borne"],
            symptom=narrow_between(glimpses, 64 * 48),
        ),
        Variant(
            "class-token",
            summed,
            broken=partial(summed, False),
            symptom=narrow_between(partial(summed, False), 16 * 48),
        ),
    ],
)

# Deep stacks whose gradient dies on the way.


class Plain(nn.Module):
    """Attention with nothing around it but, if wanted, a residual and a norm."""

    def __init__(self, wide: int, deviation: float, residual: bool) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(wide, 3 * wide), nn.Linear(wide, wide)
        if deviation:
            nn.init.normal_(self.qkv.weight, std=deviation)
            nn.init.normal_(self.out.weight, std=deviation)
        self.norm = nn.LayerNorm(wide) if residual else None

    def forward(self, x: Tensor) -> Tensor:
        if self.norm is None:
            return self.out(_heads(self.qkv(x), 2))
        return x + self.out(_heads(self.qkv(self.norm(x)), 2))


def bare(residual: bool = True) -> Training:
    """Eight layers over pairs, with residuals, or without."""
    torch.manual_seed(30)
    layers: list[nn.Module] = [Plain(32, 0.0, residual) for _ in range(8)]
    model = PairEncoder(12, 5, layers, 32)
    kind = partial(torch.optim.SGD, momentum=0.9)
    return fit(model, pairs(8, 12, 5, 48), lr=5e-2, steps=200, kind=kind)


class Halved(nn.Module):
    """A block whose output is divided, residual and all."""

    def __init__(self, wide: int, factor: float) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(wide, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(wide, wide), nn.GELU(), nn.Linear(wide, wide))
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(x, x, x, need_weights=False)[0]
        return (x + self.mlp(x)) * self.factor


def halved(factor: float = 1.0) -> Training:
    """Six blocks over the patches of digits."""
    torch.manual_seed(31)
    layers: list[nn.Module] = [Halved(32, factor) for _ in range(6)]
    return fit(CellEncoder(4, 10, layers, 32), patches(2, 48), lr=1e-3, steps=120)


class GraphStack(nn.Module):
    """Layers of graph attention, sigmoids between them, with residuals or without."""

    linked: Tensor

    def __init__(self, linked: Tensor, given: int, groups: int, residual: bool) -> None:
        super().__init__()
        self.register_buffer("linked", linked)
        self.embed = nn.Linear(given, 24)
        self.layers = nn.ModuleList(nn.Linear(24, 24) for _ in range(6))
        self.scores = nn.ModuleList(nn.Linear(24, 1, bias=False) for _ in range(6))
        self.head = nn.Linear(24, groups)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer, score in zip(self.layers, self.scores, strict=True):
            h = layer(x)
            logits = score(torch.tanh(h)).T.expand(len(x), -1)
            p = torch.softmax(logits.masked_fill(~self.linked, -math.inf), dim=-1)
            x = x + torch.tanh(p @ h) if self.residual else torch.sigmoid(p @ h)
        return self.head(x)


def graph_stack(residual: bool = True) -> Training:
    """Communities of a graph of a hundred nodes."""
    torch.manual_seed(32)
    model = GraphStack(adjacency(100, 4), 12, 4, residual)
    kind = partial(torch.optim.SGD, momentum=0.9)
    return fit(model, communities(100, 4, 12, 2.0), lr=3e-2, steps=150, kind=kind)


class Word(nn.Module):
    """A stack of attention; with small weights, without residuals."""

    def __init__(self, letters: int, length: int, layers: int, deviation: float) -> None:
        super().__init__()
        self.letter, self.place = nn.Embedding(letters, 40), nn.Embedding(length, 40)
        self.layers = nn.ModuleList(Plain(40, deviation, False) for _ in range(layers))
        self.head = nn.Linear(40, letters)
        self.skip = deviation == 0.0

    def forward(self, source: Tensor) -> Tensor:
        x = self.letter(source) + self.place.weight
        for layer in self.layers:
            x = x + layer(x) if self.skip else torch.tanh(layer(x))
        return self.head(x)


def word(deviation: float = 0.0) -> Training:
    """Words of twelve letters written from behind, by four layers."""
    torch.manual_seed(34)
    kind = partial(torch.optim.SGD, momentum=0.9)
    model = Word(6, 12, 4, deviation)
    return fit(model, reversal(12, 6, 48), lr=5e-2, steps=200, kind=kind)


# With nothing left of their inputs, the logits of the later layers are all alike, and queries and
# keys get far less than values.
ALIKE = ("diffuse-softmax", "starved-pathway")

VANISHED = Fault(
    "ind3-attention-vanished",
    must=[["vanishing-gradient"]],
    may=[*ALIKE, "no-update"],
    symptom=decays(3.0),
    variants=[
        Variant("no-residual", bare, broken=partial(bare, False)),
        Variant("divided", halved, broken=partial(halved, 0.1), may=ALIKE),
        Variant("graph-sigmoids", graph_stack, broken=partial(graph_stack, False)),
        Variant("drawn-small", word, broken=partial(word, 0.02)),
    ],
)

FAULTS = [PEAKED, DIFFUSE, NARROW, VANISHED]
