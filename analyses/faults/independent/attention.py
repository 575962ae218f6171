"""Attention that points before it has learned where to, and attention that never points."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Make, Variant
from analyses.faults.independent.kit_attention import (
    cross_entropy,
    dice,
    events,
    grids,
    looks_nowhere,
    lookups,
    mlp,
    points_blindly,
    strings,
)
from analyses.faults.training import Batch, Training

# --- peaked ---------------------------------------------------------------------------------


class WideBlock(nn.Module):
    """Pre-norm block with one wide head."""

    def __init__(self, dim: int, scale: float) -> None:
        super().__init__()
        self.before = nn.LayerNorm(dim)
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        for projection in (self.query, self.key):
            nn.init.xavier_uniform_(projection.weight)
        self.out = nn.Linear(dim, dim)
        self.between = nn.LayerNorm(dim)
        self.feed = mlp(dim, 2 * dim, dim)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        y = self.before(x)
        logits = torch.matmul(self.query(y), self.key(y).transpose(-2, -1)) * self.scale
        weights = torch.softmax(logits, dim=-1)
        x = x + self.out(torch.matmul(weights, self.value(y)))
        return x + self.feed(self.between(x))


class WideReader(nn.Module):
    """Reads (key, value) tokens and a question, answers at the question's token."""

    def __init__(self, keys: int, values: int, dim: int, layers: int, scale: float) -> None:
        super().__init__()
        self.keys = nn.Embedding(keys, dim)
        self.values = nn.Embedding(values + 1, dim)
        self.blocks = nn.Sequential(*(WideBlock(dim, scale) for _ in range(layers)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)
        self.unknown = values

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        none = torch.full_like(asked, self.unknown)
        x = self.keys(torch.cat([key, asked], 1)) + self.values(torch.cat([value, none], 1))
        return self.head(self.norm(self.blocks(x))[:, key.shape[1] :])


def lookup_loss(model: nn.Module, key: Tensor, value: Tensor, asked: Tensor, a: Tensor) -> Tensor:
    return cross_entropy(model(key, value, asked), a)


def wide_head(scale: float = 192**-0.5) -> Training:
    """A head of 192 features; broken, its logits aren't divided by the root of that."""
    torch.manual_seed(1)
    model = WideReader(16, 8, 192, 1, scale)
    return Training(
        model,
        lookups(24, 10, 16, 8, salt=1, questions=4),
        lookup_loss,
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        steps=200,
    )


class FusedBlock(nn.Module):
    """Pre-norm block with fused attention."""

    def __init__(self, dim: int, heads: int, scale: float | None, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.scale, self.causal = heads, scale, causal
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.mlp = mlp(dim, 2 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(self.norm1(x)).view(b, n, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale, is_causal=self.causal)
        x = x + self.proj(y.transpose(1, 2).reshape(b, n, d))
        return x + self.mlp(self.norm2(x))


class GridViT(nn.Module):
    """A vision transformer that is asked which digit is in a cell."""

    def __init__(self, dim: int, cells: int, layers: int, heads: int, scale: float | None) -> None:
        super().__init__()
        self.patch = nn.Linear(64, dim)
        self.position = nn.Parameter(torch.randn(cells, dim))
        self.question = nn.Embedding(cells, dim)
        self.blocks = nn.ModuleList(FusedBlock(dim, heads, scale) for _ in range(layers))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 10)

    def forward(self, patches: Tensor, cell: Tensor) -> Tensor:
        x = self.patch(patches) + self.position
        x = torch.cat([self.question(cell)[:, None], x], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def grid_loss(model: nn.Module, patches: Tensor, cell: Tensor, answer: Tensor) -> Tensor:
    return F.cross_entropy(model(patches, cell), answer)


def multiplied(scale: float | None = None) -> Training:
    """Fused attention; broken, its scale is the root of the head's size, not one over it."""
    torch.manual_seed(2)
    model = GridViT(64, 9, 2, 1, scale)
    return Training(
        model,
        grids(64, 3, salt=2),
        grid_loss,
        torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.05),
        steps=250,
    )


class Mirror(nn.Module):
    """A post-norm encoder of PyTorch's that writes its input backwards."""

    def __init__(self, tokens: int, length: int, dim: int, heads: int, layers: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, dim)
        self.position = nn.Embedding(length, dim)
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.head = nn.Linear(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1])
        return self.head(self.encoder(self.tokens(x) + self.position(positions)))


def mirror_loss(model: nn.Module, x: Tensor) -> Tensor:
    return cross_entropy(model(x), x.flip(1))


def in_projections(std: float = 0.0) -> Training:
    """`nn.TransformerEncoder`; broken, query and key projections are drawn with a std of 1."""
    torch.manual_seed(3)
    model = Mirror(20, 24, 96, 2, 2)
    if std:
        for layer in model.encoder.layers:
            weight = layer.self_attn.in_proj_weight
            nn.init.normal_(weight[: 2 * 96], std=std)
    return Training(
        model,
        strings(24, 24, 20, salt=3),
        mirror_loss,
        torch.optim.Adam(model.parameters(), lr=5e-4),
        steps=220,
    )


class EventPool(nn.Module):
    """Convolutions over frames, and additive attention that pools them."""

    def __init__(self, features: int, classes: int, dim: int, temperature: float = 1.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(features, dim, 3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)
        self.hidden = nn.Linear(dim, dim)
        self.score = nn.Linear(dim, 1, bias=False)
        self.head = nn.Linear(dim, classes)
        self.temperature = temperature

    def forward(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        x = F.gelu(self.conv1(frames.transpose(1, 2)))
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        logits = self.score(torch.tanh(self.hidden(x)))[..., 0] / self.temperature
        weights = F.softmax(logits, dim=1)
        return self.head((weights[..., None] * x).sum(1)), weights


def pooled_loss(
    model: nn.Module, frames: Tensor, kind: Tensor, *, entropy_weight: float = 0.0
) -> Tensor:
    scores, weights = model(frames)
    entropy = torch.special.entr(weights).sum(1).mean()
    return F.cross_entropy(scores, kind) + entropy_weight * entropy


def entropy_sign(weight: float = -0.01) -> Training:
    """A bonus for even attention early on; broken, it is a strong penalty, its sign is wrong."""
    torch.manual_seed(4)
    model = EventPool(7, 6, 48)
    return Training(
        model,
        events(64, 40, 6, salt=4),
        partial(pooled_loss, entropy_weight=weight),
        torch.optim.RMSprop(model.parameters(), lr=1e-3),
        steps=300,
    )


class Memory(nn.Module):
    """Two reads of a memory that is addressed by its content."""

    def __init__(self, keys: int, values: int, dim: int, sharpness: float) -> None:
        super().__init__()
        self.keys = nn.Embedding(keys, dim)
        self.asked = nn.Embedding(keys, dim)
        self.values = nn.Embedding(values, dim)
        self.address = nn.Linear(dim, dim)
        self.controller = nn.GRUCell(dim, dim)
        self.emit = nn.ModuleList(nn.Linear(dim, dim) for _ in range(2))
        self.head = nn.Linear(dim, values)
        self.sharpness = sharpness

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        where = self.address(self.keys(key))
        what = self.values(value) + where
        state = self.asked(asked[:, 0])
        for emit in self.emit:
            similar = F.cosine_similarity(emit(state)[:, None], where, dim=-1)
            weights = (self.sharpness * similar).softmax(dim=-1)
            state = self.controller(torch.einsum("bn,bnd->bd", weights, what), state)
        return self.head(state)[:, None]


def sharpness(beta: float = 4.0) -> Training:
    """Content addressing by cosine; broken, its sharpness is 500."""
    torch.manual_seed(5)
    model = Memory(24, 10, 64, beta)
    return Training(
        model,
        lookups(64, 12, 24, 10, salt=5),
        lookup_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=400,
        every=10,
    )


class Distance(nn.Module):
    """Causal attention with a penalty for distance, per head."""

    def __init__(self, dim: int, slopes: Tensor) -> None:
        super().__init__()
        self.heads = len(slopes)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.register_buffer("slopes", slopes)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        parts = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        steps = torch.arange(t)
        back = (steps[:, None] - steps).float()
        logits = q @ k.transpose(-2, -1) / math.sqrt(d // self.heads)
        logits = logits - self.slopes[:, None, None] * back  # type: ignore[index]
        logits = logits.masked_fill(back < 0, -torch.inf)
        y = logits.softmax(dim=-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, t, d))


class DistanceLM(nn.Module):
    """A causal transformer with RMS norms; distances and positions tell where things are."""

    def __init__(self, tokens: int, length: int, dim: int, layers: int, slopes: Tensor) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, dim)
        self.position = nn.Embedding(length, dim)
        self.attention = nn.ModuleList(Distance(dim, slopes) for _ in range(layers))
        self.feed = nn.ModuleList(mlp(dim, 2 * dim, dim) for _ in range(layers))
        self.norms = nn.ModuleList(nn.RMSNorm(dim) for _ in range(2 * layers + 1))
        self.head = nn.Linear(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        y = self.tokens(x) + self.position(torch.arange(x.shape[1]))
        for i, (attend, feed) in enumerate(zip(self.attention, self.feed, strict=True)):
            y = y + attend(self.norms[2 * i](y))
            y = y + feed(self.norms[2 * i + 1](y))
        return self.head(self.norms[-1](y))


def echo_loss(model: nn.Module, x: Tensor, *, delay: int) -> Tensor:
    """Every token is what was there some steps before."""
    return cross_entropy(model(x)[:, delay:], x[:, :-delay])


def slopes(factor: float = 1.0) -> Training:
    """A bias by distance; broken, its slopes are 80 times too steep."""
    torch.manual_seed(6)
    gentle = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    model = DistanceLM(10, 24, 64, 2, factor * gentle)
    return Training(
        model,
        strings(32, 24, 10, salt=6),
        partial(echo_loss, delay=5),
        torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95)),
        steps=260,
    )


class Bilinear(nn.Module):
    """LSTM encoder and decoder, the decoder attending by a bilinear form."""

    def __init__(self, tokens: int, dim: int, std: float) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens + 1, dim)
        self.encoder = nn.LSTM(dim, dim // 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTMCell(dim, dim)
        self.memory_norm, self.state_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.form = nn.Parameter(std * torch.randn(dim, dim))
        self.mix = nn.Linear(2 * dim, dim)
        self.head = nn.Linear(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        memory = self.memory_norm(self.encoder(self.tokens(x))[0])
        h = memory.new_zeros(len(x), memory.shape[-1])
        c = h
        given = torch.full_like(x[:, :1], self.tokens.num_embeddings - 1)
        outs = []
        for word in torch.cat([given, x.flip(1)[:, :-1]], 1).unbind(1):
            h, c = self.decoder(self.tokens(word), (h, c))
            logits = torch.einsum("bd,de,bne->bn", self.state_norm(h), self.form, memory)
            context = torch.einsum("bn,bne->be", F.softmax(logits, dim=-1), memory)
            outs.append(torch.tanh(self.mix(torch.cat([context, h], 1))))
        return self.head(torch.stack(outs, 1))


def bilinear(std: float = 0.01) -> Training:
    """Luong's general attention; broken, its form is drawn with a std of 1."""
    torch.manual_seed(7)
    model = Bilinear(10, 64, std)
    return Training(
        model,
        strings(48, 10, 10, salt=7),
        mirror_loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=220,
        clip=1.0,
    )


class GraphLayer(nn.Module):
    """Attention over a graph's neighbours, by cosine with a learned scale."""

    def __init__(self, dim: int, heads: int, log_scale: float) -> None:
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.o = nn.Linear(dim, dim)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), log_scale))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        def split(y: Tensor) -> Tensor:
            return y.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k = F.normalize(split(self.q(x)), dim=-1), F.normalize(split(self.k(x)), dim=-1)
        logits = self.log_scale.exp() * (q @ k.transpose(-2, -1))
        weights = F.softmax(logits.masked_fill(~near[:, None], -1e9), dim=-1)
        y = (weights @ split(self.v(x))).transpose(1, 2).flatten(2)
        return x + F.silu(self.o(y))


class GraphNet(nn.Module):
    """Every node finds the neighbour of its colour and tells that one's shade."""

    def __init__(self, colours: int, dim: int, layers: int, log_scale: float) -> None:
        super().__init__()
        self.colour = nn.Embedding(colours, dim)
        self.shade = nn.Linear(1, dim)
        self.layers = nn.ModuleList(GraphLayer(dim, 2, log_scale) for _ in range(layers))
        self.head = mlp(dim, dim, 1)

    def forward(self, colour: Tensor, shade: Tensor, near: Tensor) -> Tensor:
        x = self.colour(colour) + self.shade(shade[..., None])
        for layer in self.layers:
            x = layer(x, near)
        return self.head(x)[..., 0]


def graphs(size: int, colours: int) -> partial[Batch]:
    return partial(_graphs, size, colours)


def _graphs(size: int, colours: int, step: int) -> Batch:
    g = dice(step, 8)
    nodes = 2 * colours
    order = torch.rand(size, nodes, generator=g).argsort(1)
    colour = order % colours
    shade = torch.randn(size, nodes, generator=g)
    same = colour[:, :, None] == colour[:, None]
    other = same & ~torch.eye(nodes, dtype=torch.bool)
    near = (torch.rand(size, nodes, nodes, generator=g) < 0.6) & ~same | other
    target = (other.float() @ shade[..., None])[..., 0]
    return colour, shade, near, target


def graph_loss(model: nn.Module, colour: Tensor, shade: Tensor, near: Tensor, t: Tensor) -> Tensor:
    return F.mse_loss(model(colour, shade, near), t)


def cosine(log_scale: float = 2.0) -> Training:
    """Cosine attention on graphs; broken, the logarithm of its scale begins at 7, not at 2."""
    torch.manual_seed(8)
    model = GraphNet(14, 64, 2, log_scale)
    return Training(
        model,
        graphs(24, 14),
        graph_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=180,
    )


# --- diffuse --------------------------------------------------------------------------------


class Decoder(nn.Module):
    """A causal transformer over keys and values in turn, that ends with questions."""

    def __init__(self, keys: int, values: int, dim: int, scale: float | None) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(keys, dim), nn.Embedding(values, dim)
        self.kind = nn.Embedding(2, dim)
        self.blocks = nn.ModuleList(FusedBlock(dim, 4, scale, causal=True) for _ in range(3))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, values)

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        facts = self.keys(key) + self.values(value) + self.kind.weight[0]
        x = torch.cat([facts, self.keys(asked) + self.kind.weight[1]], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, key.shape[1] :]))


def divided_twice(scale: float | None = None) -> Training:
    """Fused causal attention; broken, its scale is one over the square of the model's size."""
    torch.manual_seed(11)
    model = Decoder(16, 8, 64, scale)
    return Training(
        model,
        lookups(24, 10, 16, 8, salt=11, questions=4),
        lookup_loss,
        torch.optim.Adam(model.parameters(), lr=1e-3),
        steps=220,
    )


class LongReader(nn.Module):
    """One question to a long list, by cosine of two-layer projections."""

    def __init__(self, keys: int, values: int, dim: int, scale: float) -> None:
        super().__init__()
        self.keys, self.values = nn.Embedding(keys, dim), nn.Embedding(values, dim)
        self.project_key, self.project_query = mlp(dim, dim, dim), mlp(dim, dim, dim)
        self.project_value = nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)
        self.head = mlp(dim, dim, values)
        self.scale = scale

    def forward(self, key: Tensor, value: Tensor, asked: Tensor) -> Tensor:
        items = self.keys(key) + self.values(value)
        k = F.normalize(self.project_key(items), dim=-1)
        q = F.normalize(self.project_query(self.keys(asked)), dim=-1)
        weights = torch.softmax(self.scale * torch.bmm(q, k.transpose(1, 2)), dim=-1)
        return self.head(self.norm(torch.bmm(weights, self.project_value(items))))


def no_temperature(scale: float = 20.0) -> Training:
    """Cosine attention over 64 items; broken, cosines aren't multiplied by a scale."""
    torch.manual_seed(12)
    model = LongReader(64, 5, 48, scale)
    return Training(
        model,
        lookups(24, 64, 64, 5, salt=12, questions=12),
        lookup_loss,
        torch.optim.Adam(model.parameters(), lr=3e-3),
        steps=300,
    )


class SmallMirror(nn.Module):
    """`nn.MultiheadAttention` with a residual, once, and a feed-forward network."""

    def __init__(self, tokens: int, length: int, dim: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(tokens, dim)
        self.position = nn.Parameter(torch.randn(length, dim))
        self.norm = nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.feed = mlp(dim, 2 * dim, dim)
        self.head = nn.Linear(dim, tokens)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.tokens(x) + self.position)
        y = y + self.attention(y, y, y, need_weights=False)[0]
        return self.head(y + self.feed(y))


def tiny_projections(std: float = 0.0) -> Training:
    """`nn.MultiheadAttention` with SGD; broken, queries and keys begin at a ten-thousandth."""
    torch.manual_seed(13)
    model = SmallMirror(8, 12, 64, 2)
    if std:
        nn.init.normal_(model.attention.in_proj_weight[:128], std=std)
    return Training(
        model,
        strings(64, 12, 8, salt=13),
        mirror_loss,
        torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9),
        steps=300,
    )


class Glimpse(nn.Module):
    """Reads numbers with an LSTM and takes glimpses at them, with logits between ±C."""

    def __init__(self, features: int, classes: int, dim: int, limit: float) -> None:
        super().__init__()
        self.embed = nn.Linear(features, dim)
        self.read = nn.LSTM(dim, dim, batch_first=True)
        self.ref, self.ask = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim)
        self.v = nn.Linear(dim, 1, bias=False)
        self.head = nn.Linear(dim, classes)
        self.limit = limit

    def forward(self, frames: Tensor) -> Tensor:
        x = self.embed(frames)
        _, (h, _) = self.read(x)
        u = self.v(torch.tanh(self.ref(x) + self.ask(h[0])[:, None]))[..., 0]
        weights = torch.softmax(self.limit * torch.tanh(u), dim=1)
        return self.head((weights[..., None] * x).sum(1))


def glimpse_loss(model: nn.Module, frames: Tensor, kind: Tensor) -> Tensor:
    return F.cross_entropy(model(frames), kind)


def clipped(limit: float = 10.0) -> Training:
    """Logits are C·tanh; broken, C is 0.1, not 10."""
    torch.manual_seed(14)
    model = Glimpse(7, 6, 48, limit)
    return Training(
        model,
        events(48, 24, 6, salt=14),
        glimpse_loss,
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=260,
    )


class Latents(nn.Module):
    """Latents that read a grid of digits by cross-attention."""

    def __init__(self, dim: int, cells: int) -> None:
        super().__init__()
        self.patch = nn.Linear(64, dim)
        self.position = nn.Parameter(torch.randn(cells, dim))
        self.question = nn.Embedding(cells, dim)
        self.latents = nn.Parameter(0.5 * torch.randn(3, dim))
        self.q, self.k, self.v = (nn.Linear(dim, dim) for _ in range(3))
        self.mix = mlp(dim, dim, dim)
        self.norm = nn.LayerNorm(3 * dim)
        self.head = mlp(3 * dim, dim, 10)

    def forward(self, patches: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
        x = self.patch(patches) + self.position
        asking = self.latents + self.question(cell)[:, None]
        logits = self.q(asking) @ self.k(x).transpose(1, 2) / math.sqrt(x.shape[-1])
        y = F.softmax(logits, dim=-1) @ self.v(x)
        return self.head(self.norm((y + self.mix(y)).flatten(1))), logits


def latents_loss(
    model: nn.Module, patches: Tensor, cell: Tensor, answer: Tensor, *, penalty: float
) -> Tensor:
    scores, logits = model(patches, cell)
    return F.cross_entropy(scores, answer) + penalty * logits.square().mean()


def logit_penalty(penalty: float = 1e-4) -> Training:
    """A penalty for large logits; broken, it is a hundred thousand times too strong."""
    torch.manual_seed(15)
    model = Latents(64, 16)
    return Training(
        model,
        grids(64, 4, salt=15),
        partial(latents_loss, penalty=penalty),
        torch.optim.Adam(model.parameters(), lr=2e-3),
        steps=260,
    )


def hot_pooling(temperature: float = 1.0) -> Training:
    """Additive attention over 100 frames; broken, its temperature is 200."""
    torch.manual_seed(16)
    model = EventPool(5, 4, 32, temperature)
    return Training(
        model,
        events(32, 100, 4, salt=16, noise=1.5),
        pooled_loss,
        torch.optim.Adam(model.parameters(), lr=4e-3),
        steps=220,
    )


def peaked_variant(name: str, healthy: Make, fault: Make, may: tuple[str, ...] = ()) -> Variant:
    return Variant(name, healthy, broken=fault, may=may, symptom=points_blindly(fault, 0.2))


def diffuse_variant(
    name: str,
    healthy: Make,
    fault: Make,
    may: tuple[str, ...] = (),
    healthy_may: tuple[str, ...] = (),
) -> Variant:
    return Variant(
        name,
        healthy,
        broken=fault,
        may=may,
        healthy_may=healthy_may,
        symptom=looks_nowhere(fault, 0.97),
    )


# Projections that only choose get all of their gradient through the softmax that is ill.
BORNE = ("softmax-borne",)

PEAKED = Fault(
    "ind-peaked",
    must=[["peaked-softmax"]],
    variants=[
        peaked_variant("wide-head", wide_head, partial(wide_head, scale=1.0), BORNE),
        peaked_variant("multiplied", multiplied, partial(multiplied, scale=8.0)),
        peaked_variant("in-projections", in_projections, partial(in_projections, std=1.0)),
        # The penalty drives the scores' tanh to its ends.
        peaked_variant(
            "entropy-sign",
            entropy_sign,
            partial(entropy_sign, weight=3.0),
            (*BORNE, "saturated-activation"),
        ),
        peaked_variant("sharpness", sharpness, partial(sharpness, beta=500.0), BORNE),
        peaked_variant("slopes", slopes, partial(slopes, factor=80.0)),
        peaked_variant("bilinear", bilinear, partial(bilinear, std=1.0), BORNE),
        peaked_variant("cosine", cosine, partial(cosine, log_scale=7.0), BORNE),
    ],
)

DIFFUSE = Fault(
    "ind-diffuse",
    must=[["diffuse-softmax"]],
    variants=[
        # Queries and keys get a thousandth of the values' gradient.
        diffuse_variant(
            "divided-twice",
            divided_twice,
            partial(divided_twice, scale=64.0**-2),
            ("starved-pathway",),
        ),
        # The question's and the keys' networks serve attention alone: by design, all of
        # their gradient comes through its softmax, in the healthy run, too.
        diffuse_variant(
            "no-temperature",
            no_temperature,
            partial(no_temperature, scale=1.0),
            BORNE,
            healthy_may=BORNE,
        ),
        # As long as queries and keys are that small, no gradient goes through them.
        diffuse_variant(
            "tiny-projections",
            tiny_projections,
            partial(tiny_projections, std=1e-4),
            ("starved-pathway",),
        ),
        # The LSTM serves attention alone, in the healthy run, too; logits that are clipped
        # at a tenth are driven to their ends.
        diffuse_variant(
            "clipped",
            clipped,
            partial(clipped, limit=0.1),
            (*BORNE, "saturated-activation"),
            healthy_may=BORNE,
        ),
        # What the latents ask serves attention alone; broken, the penalty is what they hear.
        diffuse_variant(
            "logit-penalty",
            logit_penalty,
            partial(logit_penalty, penalty=10.0),
            healthy_may=BORNE,
        ),
        # Each of 100 frames gets a hundredth of what the pooled vector gets.
        diffuse_variant(
            "hot-pooling",
            hot_pooling,
            partial(hot_pooling, temperature=200.0),
            (*BORNE, "vanishing-gradient"),
        ),
    ],
)

FAULTS = [PEAKED, DIFFUSE]
