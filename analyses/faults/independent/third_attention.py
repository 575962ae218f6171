"""Attention that doesn't learn where to look, or can't tell what it saw."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_attention import (
    adjacency,
    communities,
    fit,
    needles,
    pairs,
    periodic,
    reversal,
    squared,
    stays_peaked,
)
from analyses.faults.symptoms import peaked
from analyses.faults.training import Training, ordinary

SPLITS = ("test",)


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


def kernel(width: float = 0.5) -> Training:
    """One of four coordinates matters; values are noisy, so that several have to be averaged."""
    torch.manual_seed(4)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        points = torch.randn(24, 48, 4, generator=g)
        clean = points[..., :1] * 1.0
        seen = clean[:, :32] + 0.5 * torch.randn(24, 32, 1, generator=g)
        return points[:, :32], seen, points[:, 32:], clean[:, 32:]

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
            may=["vanishing-gradient"],  # both networks of the address
        ),
        Variant(
            "graph-gain",
            graph,
            broken=partial(graph, 3000.0),
            may=["starved-pathway"],  # the two parts of the score, beside the values
        ),
        Variant(
            "narrow-kernel",
            kernel,
            broken=partial(kernel, 1e-6),
            may=["vanishing-gradient", "no-update"],  # the embedding, which only the kernel reads
        ),
        Variant("scaled-rows", library_pairs, broken=partial(library_pairs, 60.0)),
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

FAULTS = [PEAKED]
