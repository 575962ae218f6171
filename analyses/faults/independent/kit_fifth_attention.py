"""Tasks and small attention models of several kinds, for `fifth_attention`."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from analyses.faults.training import Batch, Training


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Standardised images of 8 by 8 and their labels."""
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)
    return (x - x.mean()) / x.std(), torch.tensor(data.target)


def digit_batches(size: int) -> Callable[[int], Batch]:
    """Images (n, 8, 8) and labels."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(1000 + step)
        x, y = digits()
        rows = torch.randint(len(x), (size,), generator=g)
        return x[rows], y[rows]

    return batch


def lookups(size: int, items: int, width: int, classes: int) -> Callable[[int], Batch]:
    """Keys (n, items, width), their labels as one-hot, a question; the label of the key it fits.

    The question agrees with the key in a quarter of the places, where all keys are equally
    long, and is noise in the others.
    """

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(7000 + step)
        keys = torch.randn(size, items, width, generator=g)
        part = width // 4
        keys[..., :part] = part**0.5 * F.normalize(keys[..., :part], dim=-1)
        labels = torch.randint(classes, (size, items), generator=g)
        which = torch.randint(items, (size,), generator=g)
        rows = torch.arange(size)
        question = 1.5 * torch.randn(size, width, generator=g)
        question[:, :part] = 2 * keys[rows, which, :part]
        return keys, F.one_hot(labels, classes).float(), question, labels[rows, which]

    return batch


def reversals(size: int, length: int, words: int) -> Callable[[int], Batch]:
    """Token sequences and the same backwards."""

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(3000 + step)
        x = torch.randint(words, (size, length), generator=g)
        return x, x.flip(1)

    return batch


def bags(size: int, items: int, width: int) -> Callable[[int], Batch]:
    """Bags of instances; one of them is marked along a fixed direction, by its class."""
    marks = 3.0 * F.normalize(torch.randn(4, width, generator=torch.Generator().manual_seed(5)))

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(9000 + step)
        x = torch.randn(size, items, width, generator=g)
        y = torch.randint(4, (size,), generator=g)
        x[torch.arange(size), torch.randint(items, (size,), generator=g)] += marks[y]
        return x, y

    return batch


def grammar(size: int, length: int, words: int = 12) -> Callable[[int], Batch]:
    """Sequences whose next token follows from the last two by a fixed table, mostly."""
    table = torch.randint(words, (words, words), generator=torch.Generator().manual_seed(2))

    def batch(step: int) -> Batch:
        g = torch.Generator().manual_seed(4000 + step)
        x = torch.randint(words, (size, length + 1), generator=g)
        for t in range(2, length + 1):
            keep = torch.rand(size, generator=g) < 0.9
            x[:, t] = torch.where(keep, table[x[:, t - 2] % 3, x[:, t - 1]], x[:, t])
        return x[:, :-1], x[:, 1:]

    return batch


def classify(model: nn.Module, *batch: Tensor) -> Tensor:
    """Cross-entropy of the last tensor under the model's logits of the others."""
    *given, target = batch
    out = model(*given)
    return F.cross_entropy(out.reshape(-1, out.shape[-1]), target.reshape(-1))


def adam(
    model: nn.Module, batch: Callable[[int], Batch], *, lr: float = 2e-3, steps: int = 200
) -> Training:
    """Adam on the cross-entropy."""
    return Training(
        model, batch, classify, torch.optim.Adam(model.parameters(), lr=lr), steps=steps
    )


def sgd(
    model: nn.Module, batch: Callable[[int], Batch], *, lr: float = 0.1, steps: int = 200
) -> Training:
    """SGD with momentum on the cross-entropy."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Training(model, batch, classify, optimizer, steps=steps)


class Lookup(nn.Module):
    """One question asked of a memory: scores, softmax, an attended value, a head."""

    def __init__(self, width: int = 24, inner: int = 32, classes: int = 8) -> None:
        super().__init__()
        self.q = nn.Linear(width, inner, bias=False)
        self.k = nn.Linear(width, inner, bias=False)
        self.v = nn.Linear(classes, inner)
        self.head = nn.Sequential(nn.Linear(inner, 64), nn.GELU(), nn.Linear(64, classes))
        self.scale = inner**-0.5

    def forward(self, keys: Tensor, values: Tensor, question: Tensor) -> Tensor:
        q = self.q(question)[:, None]
        scores = q @ self.k(keys).transpose(1, 2) * self.scale
        return self.head((scores.softmax(-1) @ self.v(values))[:, 0])


class Kernel(nn.Module):
    """Nearest-neighbour memory: embedded distances under a Gaussian kernel of some width."""

    def __init__(
        self, width: int = 16, classes: int = 6, bandwidth: float = 1.0, inner: int = 16
    ) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(width, 48), nn.Tanh(), nn.Linear(48, inner))
        self.out = nn.Linear(classes, classes)
        self.bandwidth = bandwidth

    def forward(self, keys: Tensor, values: Tensor, question: Tensor) -> Tensor:
        apart = (self.embed(keys) - self.embed(question)[:, None]).square().sum(-1)
        weights = torch.softmax(-apart / (2 * self.bandwidth**2), dim=-1)
        return self.out((weights[:, None] @ values)[:, 0])


class Cosine(nn.Module):
    """Lookup by cosine similarity, two heads, divided by a temperature."""

    def __init__(self, width: int = 16, classes: int = 6, temperature: float = 0.1) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, 32), nn.Linear(width, 32)
        self.v = nn.Linear(classes, 32)
        self.head = nn.Linear(32, classes)
        self.temperature = temperature

    def forward(self, keys: Tensor, values: Tensor, question: Tensor) -> Tensor:
        n, items, _ = keys.shape
        q = F.normalize(self.q(question).view(n, 2, 1, 16), dim=-1)
        k = F.normalize(self.k(keys).view(n, items, 2, 16).transpose(1, 2), dim=-1)
        v = self.v(values).view(n, items, 2, 16).transpose(1, 2)
        weights = torch.softmax(q @ k.transpose(-2, -1) / self.temperature, -1)
        return self.head((weights @ v).reshape(n, 32))


class Gated(nn.Module):
    """Attention pooling of a bag: a tanh layer gives each instance a score."""

    def __init__(self, width: int = 12, temperature: float = 1.0) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Linear(32, 32))
        self.hidden, self.score = nn.Linear(32, 24), nn.Linear(24, 1)
        self.head = nn.Linear(32, 4)
        self.temperature = temperature

    def weights(self, h: Tensor) -> Tensor:
        scores = self.score(self.hidden(h).tanh()).squeeze(-1)
        return torch.softmax(scores / self.temperature, dim=-1)[..., None]

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        return self.head((self.weights(h) * h).sum(1))


class Heads(nn.Module):
    """Self-attention by hand, with a factor on the scores."""

    def __init__(
        self, width: int, heads: int, scale: float | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.causal = heads, causal
        self.bias: nn.Parameter | None = None  # learned, by the pair of places
        self.scale = (width // heads) ** -0.5 if scale is None else scale

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) * self.scale
        if self.bias is not None:
            scores = scores + self.bias
        if self.causal:
            late = torch.ones(t, t, dtype=torch.bool).triu(1)
            scores = scores.masked_fill(late, -math.inf)
        return self.out((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, d))


class Block(nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(
        self, width: int, heads: int, scale: float | None = None, causal: bool = False
    ) -> None:
        super().__init__()
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attend = Heads(width, heads, scale, causal)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.n1(x))
        return x + self.mlp(self.n2(x))


class Patches(nn.Module):
    """A small vision transformer on patches of 2 by 2, mean-pooled."""

    def __init__(
        self, scale: float | None = None, layers: int = 2, spread: float | None = None
    ) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 32)
        self.place = nn.Parameter(0.1 * torch.randn(16, 32))
        self.blocks = nn.Sequential(*(Block(32, 4, scale) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 10)
        if spread is not None:
            for block in self.blocks:
                assert isinstance(block, Block)
                block.attend.bias = nn.Parameter(spread * torch.randn(4, 16, 16))

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(x), 16, 4)
        h = self.blocks(self.embed(patches) + self.place)
        return self.head(self.norm(h).mean(1))


class Seq2Seq(nn.Module):
    """GRU encoder, GRU decoder that is told places only, dot-product attention between them."""

    def __init__(self, words: int = 10, length: int = 8, slope: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 24)
        self.place = nn.Parameter(torch.randn(length, 24))
        self.encode = nn.GRU(24, 40, batch_first=True)
        self.decode = nn.GRU(24, 40, batch_first=True)
        self.keys = nn.Linear(40, 40)
        self.out = nn.Linear(80, words)
        self.slope, self.factor = slope, 40**-0.5

    def forward(self, x: Tensor) -> Tensor:
        memory, last = self.encode(self.embed(x) + self.place)
        state, _ = self.decode(self.place.expand(len(x), -1, -1), last)
        scores = self.factor * state @ self.keys(memory).transpose(1, 2)
        at = torch.arange(x.shape[1])
        weights = torch.softmax(scores - self.slope * (at[:, None] - at).abs(), -1)
        return self.out(torch.cat([state, weights @ memory], -1))


Ends = list[Tensor]  # what one attention layer returns, and what the next one does


class Coder(nn.Module):
    """Two attention blocks over a sequence; between them all of it, or a code."""

    def __init__(self, words: int = 10, length: int = 12, code: int = 0) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, 32), nn.Parameter(torch.randn(length, 32))
        self.first, self.second = Block(32, 4), Block(32, 4)
        self.squeeze = nn.Linear(32 * length, code) if code else None
        self.widen = nn.Linear(code, 32 * length) if code else None
        self.out = nn.Linear(32, words)
        self.ends: Ends = []

    def forward(self, x: Tensor) -> Tensor:
        h = before = self.first(self.embed(x) + self.place)
        if self.squeeze is not None and self.widen is not None:
            h = self.widen(self.squeeze(h.flatten(1))).view_as(h) + self.place
        h = self.second(h)
        self.ends = [before, h]
        return self.out(h)


class Quarters(nn.Module):
    """Attention among the pixels of each quarter of an image, then across the image."""

    def __init__(self, summary: int = 0) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, 24), nn.Parameter(torch.randn(16, 24))
        self.quarter = nn.Parameter(torch.randn(4, 1, 24))
        self.within, self.across = Block(24, 2), Block(24, 3)
        self.squeeze = nn.Linear(24, summary) if summary else None
        self.widen = nn.Linear(summary, 24) if summary else None
        self.head = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 10))
        self.ends: Ends = []

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        tiles = x.unfold(1, 4, 4).unfold(2, 4, 4).reshape(n * 4, 16, 1)
        h = before = self.within(self.embed(tiles) + self.place).view(n, 4, 16, 24)
        if self.squeeze is not None and self.widen is not None:
            h = self.widen(self.squeeze(h.mean(2, keepdim=True)))
        h = self.across((h + self.quarter).flatten(1, 2))
        self.ends = [before, h]
        return self.head(h.mean(1))


class Latents(nn.Module):
    """Latent vectors that read the pixels of an image three times."""

    def __init__(self, count: int = 32, width: int = 32) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(1, 24), nn.Parameter(torch.randn(64, 24))
        self.start = nn.Parameter(torch.randn(count, width))
        self.q = nn.ModuleList(nn.Linear(width, 24) for _ in range(3))
        self.kv = nn.ModuleList(nn.Linear(24, 48) for _ in range(3))
        self.o = nn.ModuleList(nn.Linear(24, width) for _ in range(3))
        self.head = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, 10))
        self.ends: Ends = []

    def forward(self, x: Tensor) -> Tensor:
        pixels = F.gelu(self.embed(x.reshape(-1, 64, 1)) + self.place)
        z = self.start.expand(len(x), -1, -1)
        states = []
        for q, kv, o in zip(self.q, self.kv, self.o, strict=True):
            k, v = kv(pixels).chunk(2, -1)
            weights = torch.softmax(q(z) @ k.transpose(1, 2) * 24**-0.5, -1)
            z = z + o(weights @ v)
            states.append(z)
        self.ends = states[:2]
        return self.head(z.mean(1))


class Thought(nn.Module):
    """Encoder–decoder; the decoder reads all of the encoder's states, or what one vector says."""

    def __init__(self, words: int = 10, length: int = 10, thought: int = 0) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, 40), nn.Parameter(torch.randn(length, 40))
        self.wanted = nn.Parameter(torch.randn(length, 40))
        self.encode = Block(40, 4)
        self.squeeze = nn.Linear(40, thought) if thought else None
        self.widen = nn.Linear(thought, 5 * 40) if thought else None
        self.q, self.kv, self.o = nn.Linear(40, 40), nn.Linear(40, 80), nn.Linear(40, 40)
        self.out = nn.Sequential(
            nn.LayerNorm(40), nn.Linear(40, 64), nn.GELU(), nn.Linear(64, words)
        )
        self.ends: Ends = []

    def forward(self, x: Tensor) -> Tensor:
        h = memory = self.encode(self.embed(x) + self.place)
        if self.squeeze is not None and self.widen is not None:
            memory = self.widen(self.squeeze(h.mean(1))).view(len(x), 5, 40)
        k, v = self.kv(memory).chunk(2, -1)
        q = self.q(self.wanted).expand(len(x), -1, -1)
        read = self.o(F.scaled_dot_product_attention(q, k, v))
        self.ends = [h, read]
        return self.out(self.wanted + read)


def rank_between(make: Callable[[], Training]) -> int:
    """Rank of the Jacobian of the second end by the first, for one sample."""
    training = make()
    batch = training.batch(0)
    training.model(*(t[:1] for t in batch[:-1]))
    first, second = training.model.ends  # type: ignore[misc]
    rows = [
        torch.autograd.grad(value, first, retain_graph=True)[0].flatten()
        for value in second.flatten()
    ]
    values = torch.linalg.svdvals(torch.stack(rows).double())
    return int((values > 1e-6 * values[0]).sum())


class Plain(nn.Module):
    """Rows of an image through attention layers with a ReLU, with or without a way around."""

    def __init__(self, layers: int, around: bool) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.5 * torch.randn(8, 32))
        self.layers = nn.ModuleList(Heads(32, 4) for _ in range(layers))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(layers))
        self.head = nn.Linear(32, 10)
        self.around = around

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        for layer, norm in zip(self.layers, self.norms, strict=True):
            h = h + F.gelu(layer(norm(h))) if self.around else F.gelu(layer(h))
        return self.head(h.mean(1))


class Scaled(nn.Module):
    """A causal language model without norms whose blocks' sums are multiplied by a factor."""

    def __init__(self, factor: float, layers: int = 6, words: int = 12) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(words, 32), nn.Parameter(0.5 * torch.randn(16, 32))
        self.attend = nn.ModuleList(Heads(32, 2, causal=True) for _ in range(layers))
        self.mlp = nn.ModuleList(
            nn.Sequential(nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)) for _ in range(layers)
        )
        self.out = nn.Linear(32, words)
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        for attend, mlp in zip(self.attend, self.mlp, strict=True):
            h = self.factor * (h + attend(h))
            h = h + mlp(h)
        return self.out(h)


class Even(nn.Module):
    """Linear attention (no softmax) over a bag, residual, with wide or usual value matrices."""

    def __init__(self, layers: int = 5, width: int = 32, times: float = 1.0) -> None:
        super().__init__()
        self.embed = nn.Linear(12, width)
        self.q = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.v = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.o = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.head = nn.Linear(width, 4)
        for v in self.v:
            v.weight.data.mul_(times)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for q, v, o in zip(self.q, self.v, self.o, strict=True):
            f = F.elu(q(h)) + 1
            weights = f @ f.transpose(1, 2)
            h = h + o(weights @ v(h) / weights.sum(-1, keepdim=True)) + o(v(h))
        return self.head(h.amax(1))


class Normed(nn.Module):
    """Images as 64 pixels; attention of unit questions and keys, summed without norms."""

    def __init__(self, layers: int = 6, gain: float = 1.0) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(4, 24), nn.Parameter(0.5 * torch.randn(16, 24))
        self.qk = nn.ModuleList(nn.Linear(24, 48) for _ in range(layers))
        self.vo = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24)) for _ in range(layers)
        )
        for vo in self.vo:
            for p in vo.parameters():
                p.data.mul_(gain)
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x.unfold(1, 2, 2).unfold(2, 2, 2).reshape(len(x), 16, 4)) + self.place
        for qk, vo in zip(self.qk, self.vo, strict=True):
            q, k = (F.normalize(t, dim=-1) for t in qk(h).chunk(2, -1))
            h = h + torch.softmax(8 * q @ k.transpose(1, 2), -1) @ vo(h) + vo(h)
        return self.head(h.mean(1))


class Causal(nn.Module):
    """A small language model of pre-norm blocks, output tied to the embedding."""

    def __init__(self, words: int = 12, length: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(words, 32)
        nn.init.normal_(self.embed.weight, std=0.3)
        self.place = nn.Parameter(0.1 * torch.randn(length, 32))
        self.blocks = nn.Sequential(*(Block(32, 4, causal=True) for _ in range(2)))
        self.norm = nn.LayerNorm(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.blocks(self.embed(x) + self.place)) @ self.embed.weight.T


class Shared(nn.Module):
    """One key and value head for four questions, a local window, and a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Linear(8, 32), nn.Parameter(0.2 * torch.randn(9, 32))
        self.token = nn.Parameter(0.2 * torch.randn(1, 1, 32))
        self.q = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.kv = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.o = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        n = len(x)
        h = torch.cat([self.token.expand(n, -1, -1), self.embed(x)], 1) + self.place
        at = torch.arange(9)
        near = ((at[:, None] - at).abs() <= 3) | (at[:, None] == 0) | (at == 0)
        for q, kv, o, norm in zip(self.q, self.kv, self.o, self.norms, strict=False):
            y = norm(h)
            questions = q(y).view(n, 9, 4, 8).transpose(1, 2)
            k, v = kv(y)[:, None].chunk(2, -1)
            scores = (questions @ k.transpose(-2, -1) * 8**-0.5).masked_fill(~near, -1e4)
            h = h + F.gelu(o((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, 9, 32)))
        return self.head(self.norms[2](h)[:, 0])


class Fused(nn.Module):
    """`nn.TransformerEncoder` over bags, mean-pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 32)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(self.embed(x)).mean(1))
