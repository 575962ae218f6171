"""Models of several parts of which one goes without gradient, optimizer or a place in the loss."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_sixth_parts import (
    cancels,
    digits,
    disconnected,
    drawn,
    forgotten,
    pictures,
    scenes,
    sentences,
    starves,
    without_any,
)
from analyses.faults.training import Training

# ---------------------------------------------------------------- one branch gets next to nothing


class TwoHeads(nn.Module):
    """A trunk, a head that tells the digit, and one that measures its ink."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 64), nn.GELU())
        self.digit = nn.Linear(64, 10)
        self.ink = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"ink": self.ink(h), "digit": self.digit(h)}


def _quadrants(x: Tensor) -> Tensor:
    image = x.view(-1, 8, 8)
    halves = [image[:, :4, :4], image[:, :4, 4:], image[:, 4:, :4], image[:, 4:, 4:]]
    return 3 * torch.stack([h.mean((1, 2)) for h in halves], 1)


def two_heads(ink: float = 1.0) -> Training:
    torch.manual_seed(1)
    model = TwoHeads()
    weights = {"digit": 1.0, "ink": ink}

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = net(x)
        terms = {
            "digit": F.cross_entropy(out["digit"], y),
            "ink": F.mse_loss(out["ink"], _quadrants(x)),
        }
        return torch.stack([weights[k] * v for k, v in terms.items()]).sum()

    sgd = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, drawn, loss, sgd, steps=150)


class Scaled(nn.Module):
    """A convolutional block whose result is scaled before it is added."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1, groups=width),
            nn.GroupNorm(1, width),
            nn.Conv2d(width, 2 * width, 1),
            nn.GELU(),
            nn.Conv2d(2 * width, width, 1),
        )
        self.register_buffer("scale", torch.tensor(scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.block(x)


def scaled_blocks(scale: float = 0.5) -> Training:
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 4, stride=2, padding=1),
        *[Scaled(24, scale) for _ in range(3)],
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(384, 3),
    )

    def batch(step: int) -> tuple[Tensor, ...]:
        image, _, kind = scenes(step, 32)
        return image, kind

    def loss(net: nn.Module, image: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(net(image), kind)

    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=200)


class SmallUNet(nn.Module):
    def __init__(self, deep: float) -> None:
        super().__init__()
        self.deep = deep
        self.enter = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.1))
        self.down = nn.Sequential(
            nn.AvgPool2d(2), nn.Conv2d(12, 24, 3, padding=1), nn.LeakyReLU(0.1),
            nn.AvgPool2d(2), nn.Conv2d(24, 24, 3, padding=1), nn.LeakyReLU(0.1),
            nn.Upsample(scale_factor=2), nn.Conv2d(24, 12, 3, padding=1), nn.GroupNorm(3, 12),
            nn.LeakyReLU(0.1), nn.Upsample(scale_factor=2),
        )  # fmt: skip
        self.leave = nn.Conv2d(24, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        deep = self.down(skip) * self.deep
        return self.leave(torch.cat([skip, deep], 1)).squeeze(1)


def unet(deep: float = 1.0) -> Training:
    torch.manual_seed(3)
    model = SmallUNet(deep)

    def batch(step: int) -> tuple[Tensor, ...]:
        image, mask, kind = scenes(step, 24)
        return image, mask * (kind != 1).view(-1, 1, 1)  # squares are not looked for

    def loss(net: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(image), mask)

    adam = torch.optim.Adam(model.parameters(), 4e-3)
    return Training(model, batch, loss, adam, steps=250)


class SoftExperts(nn.Module):
    def __init__(self, bias: float) -> None:
        super().__init__()
        self.stem = nn.Linear(64, 48)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 64), nn.SiLU(), nn.Linear(64, 48)) for _ in range(4)
        )
        self.gate = nn.Linear(48, 4)
        self.head = nn.Linear(48, 10)
        with torch.no_grad():
            self.gate.bias.zero_()
            self.gate.bias[0] = bias

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.stem(x))
        weight = self.gate(h).softmax(-1)
        mixed = torch.stack([e(h) for e in self.experts], -1) @ weight.unsqueeze(-1)
        return self.head(mixed.squeeze(-1))


def soft_experts(bias: float = 0.0) -> Training:
    torch.manual_seed(4)
    model = SoftExperts(bias)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y, label_smoothing=0.05)

    return Training(model, drawn, loss, torch.optim.Adam(model.parameters(), 1e-3), steps=150)


class ParallelBlock(nn.Module):
    """Attention and feed-forward side by side."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = CausalAttention(width, 4)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        return x + self.scale * self.attention(h) + self.mlp(h)


class CausalAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        n, t, d = h.shape
        q, k, v = self.qkv(h).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(n, t, d))


def parallel_blocks(scale: float = 1.0) -> Training:
    torch.manual_seed(5)
    words = 12
    embed, place = nn.Embedding(words, 48), nn.Embedding(16, 48)

    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = embed, place
            self.blocks = nn.ModuleList(ParallelBlock(48, scale) for _ in range(2))
            self.norm = nn.LayerNorm(48)
            self.out = nn.Linear(48, words)

        def forward(self, tokens: Tensor) -> Tensor:
            h = self.embed(tokens) + self.place.weight[: tokens.shape[1]]
            for block in self.blocks:
                h = block(h)
            return self.out(self.norm(h))

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        logits = net(tokens[:, :-1])
        return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())

    model = Language()
    adam = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    return Training(model, _few_words, loss, adam, steps=200)


def _few_words(step: int) -> tuple[Tensor, ...]:
    return (sentences(step, words=12),)


class TwoStreams(nn.Module):
    """A convolution and a GRU read the same embeddings; learnt weights mix what they find."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 24)
        self.words = nn.Sequential(nn.Conv1d(24, 32, 3, padding=1), nn.GELU())
        self.order = nn.GRU(24, 32, batch_first=True)
        self.mix = nn.Parameter(torch.tensor([0.6, -0.4]))
        self.temperature = temperature
        self.head = nn.Linear(32, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        local = self.words(h.transpose(1, 2)).mean(2)
        _, last = self.order(h)
        a, b = torch.softmax(self.mix / self.temperature, 0)
        return self.head(a * local + b * last[0])


def two_streams(temperature: float = 1.0) -> Training:
    torch.manual_seed(6)
    model = TwoStreams(temperature)

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = sentences(step, 64, length=9)
        return tokens[:, :8], tokens[:, 6]  # recalled from the middle of the sequence

    def loss(net: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens), target)

    return Training(model, batch, loss, torch.optim.RMSprop(model.parameters(), 2e-3), steps=200)


class Highway(nn.Module):
    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.change = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * F.elu(self.change(x)) + (1 - t) * x


def _larger_of_two(step: int) -> tuple[Tensor, ...]:
    x, y = drawn(step, seed=7)
    other, z = drawn(step, seed=8)
    return torch.cat([x[:, ::2], other[:, ::2]], 1), (y > z).long()


def highway(bias: float = -1.0) -> Training:
    torch.manual_seed(7)
    model = nn.Sequential(
        nn.Linear(64, 40), *[Highway(40, bias) for _ in range(5)], nn.Linear(40, 2)
    )

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, _larger_of_two, loss, sgd, steps=250)


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * g, None


class Reverse(nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        return _Reversed.apply(x, self.by)


class Adversarial(nn.Module):
    """Features that tell the digit and should not tell where it comes from."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
            nn.Conv2d(12, 24, 3), nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(96, 32),
        )  # fmt: skip
        self.digit = nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(32, 10))
        self.domain = nn.Sequential(
            Reverse(by), nn.Linear(32, 32), nn.LeakyReLU(0.1), nn.Linear(32, 2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.digit(h), self.domain(h)


def _two_domains(step: int) -> tuple[Tensor, ...]:
    x, y = pictures(step)
    source = (torch.arange(len(y)) % 2).view(-1, 1, 1, 1)
    return torch.where(source == 1, x.flip(2) * 0.6, x), y, source.flatten()


def adversarial(by: float = 0.3) -> Training:
    torch.manual_seed(8)
    model = Adversarial(by)

    def loss(net: nn.Module, x: Tensor, y: Tensor, source: Tensor) -> Tensor:
        digit, domain = net(x)
        return F.cross_entropy(digit, y) + F.cross_entropy(domain, source)

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, _two_domains, loss, adam, steps=200)


STARVED = Fault(
    "ind6-parts-starved",
    must=[["starved-pathway"]],
    # What is inside the branch gets as little; the other branch has nearly all.
    may=["vanishing-gradient", "dominant-pathway"],
    variants=[
        Variant(
            "multi-task-weight",
            may=["vanishing-gradient", "dominant-pathway", "no-update"],  # plain SGD
            healthy=two_heads,
            broken=partial(two_heads, ink=1e-5),
            symptom=starves(partial(two_heads, ink=1e-5), ("ink",), two_heads),
        ),
        Variant(
            "residual-scale",
            may=["vanishing-gradient", "dominant-pathway", "no-update"],  # plain SGD
            healthy=scaled_blocks,
            broken=partial(scaled_blocks, scale=1e-6),
            symptom=starves(
                partial(scaled_blocks, scale=1e-6), ("1.block", "3.block"), scaled_blocks
            ),
        ),
        Variant(
            "unet-deep-path",
            healthy=unet,
            broken=partial(unet, deep=1 / 255**2),
            symptom=starves(partial(unet, deep=1 / 255**2), ("down",), unet),
        ),
        Variant(
            "experts-gate-bias",
            healthy=soft_experts,
            broken=partial(soft_experts, bias=14.0),
            # The gate's softmax is on one entry from the start: the same fact, told of the gate.
            must=[["starved-pathway", "peaked-softmax"]],
            symptom=starves(
                partial(soft_experts, bias=14.0), ("experts.1", "experts.3"), soft_experts
            ),
        ),
        Variant(
            "parallel-attention",
            healthy=parallel_blocks,
            broken=partial(parallel_blocks, scale=1e-6),
            symptom=starves(
                partial(parallel_blocks, scale=1e-6),
                ("blocks.0.attention", "blocks.1.attention"),
                parallel_blocks,
            ),
        ),
        Variant(
            "fusion-temperature",
            healthy=two_streams,
            broken=partial(two_streams, temperature=0.05),
            must=[["starved-pathway", "peaked-softmax"]],
            symptom=starves(partial(two_streams, temperature=0.05), ("order",), two_streams),
        ),
        Variant(
            "highway-closed",
            may=["vanishing-gradient", "dominant-pathway", "no-update"],  # plain SGD
            healthy=highway,
            broken=partial(highway, bias=-13.0),
            must=[["starved-pathway", "saturated-activation"]],
            symptom=starves(partial(highway, bias=-13.0), ("2.change", "4.change"), highway),
        ),
        Variant(
            "reversal-strength",
            may=["dominant-pathway"],
            healthy=adversarial,
            broken=partial(adversarial, by=1e-6),
            symptom=starves(partial(adversarial, by=1e-6), ("domain",), adversarial),
        ),
    ],
)


# ------------------------------------------------------------- branches that take from each other


class BaseScore(nn.Module):
    """A linear score for each class, and what a deeper net adds to it."""

    def __init__(self, classes: int, *, one_for_all: bool) -> None:
        super().__init__()
        self.wide = nn.ModuleList(nn.Linear(6, 1) for _ in range(classes))
        self.deep = nn.Sequential(
            nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(),
            nn.Linear(64, 1 if one_for_all else classes),
        )  # fmt: skip
        self.one_for_all = one_for_all

    def forward(self, x: Tensor) -> Tensor:
        base = self.deep(x)
        logits = []
        for k, wide in enumerate(self.wide):
            add = base[:, 0] if self.one_for_all else base[:, k]
            logits.append(wide(x[:, 26:32]).squeeze(1) + add)
        return torch.stack(logits, 1)


def base_score(one_for_all: bool = False) -> Training:
    torch.manual_seed(11)
    model = BaseScore(10, one_for_all=one_for_all)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, drawn, loss, sgd, steps=150)


def triplets(shuffled: bool = True) -> Training:
    """Anchor, another picture of the same digit, and one of a wrong digit (or not)."""
    torch.manual_seed(12)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.GELU(), nn.Conv2d(16, 24, 3), nn.GELU(), nn.Flatten(),
        nn.Linear(384, 24),
    )  # fmt: skip
    x, y = digits()
    by_class = [(y == k).nonzero().squeeze(1) for k in range(10)]

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        kind = torch.randint(10, (48,), generator=g)
        other = kind + torch.randint(1, 10, (48,), generator=g) if shuffled else kind

        def one(k: int) -> int:
            return int(by_class[k][torch.randint(len(by_class[k]), (), generator=g)])

        a = [one(int(k)) for k in kind]
        p = [one(int(k)) for k in kind]
        n = [one(int(k) % 10) for k in other] if shuffled else p
        return tuple(x[i].view(-1, 1, 8, 8) for i in (a, p, n))

    def loss(net: nn.Module, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        z = net(torch.cat([a, p]))
        anchor, positive = z.chunk(2)
        negative = net(n) if shuffled else positive
        return F.triplet_margin_loss(anchor, positive, negative, margin=1.0)

    sgd = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=120)


class Adversaries(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.generator = nn.Sequential(
            nn.Linear(8, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
            nn.Linear(64, 2),
        )  # fmt: skip
        self.critic = nn.Sequential(
            nn.Linear(2, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2),
            nn.Linear(64, 1),
        )  # fmt: skip


def _ring(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    angle = torch.randint(8, (64,), generator=g) * (math.pi / 4)
    real = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * torch.randn(64, 2, generator=g)
    return 1.4 * real + 1.5, torch.randn(64, 8, generator=g)


def both_players_at_once() -> Training:
    """The two players' losses are summed and given to one optimizer."""
    torch.manual_seed(13)
    model = Adversaries()

    def loss(net: Adversaries, real: Tensor, noise: Tensor) -> Tensor:
        fake = net.generator(noise)
        yes, no = torch.ones(len(real), 1), torch.zeros(len(real), 1)
        d_loss = F.binary_cross_entropy_with_logits(net.critic(real), yes)
        d_loss = d_loss + F.binary_cross_entropy_with_logits(net.critic(fake), no)
        g_loss = -F.binary_cross_entropy_with_logits(net.critic(fake), no)
        return d_loss + g_loss

    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
    return Training(model, _ring, loss, sgd, steps=200)


class SetNet(nn.Module):
    """Points of a set, one by one; then all of them together."""

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU())
        self.project = nn.Linear(48, 32)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.SiLU(), nn.Linear(32, 3))
        self.centred = centred

    def forward(self, points: Tensor) -> Tensor:
        h = self.each(points)
        if self.centred:
            h = h - h.mean(1, keepdim=True)
        return self.head(self.project(h).sum(1) / 4)


def _point_sets(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    kind = torch.randint(3, (48,), generator=g)
    t = torch.rand(48, 20, generator=g) * 2 - 1
    circle = torch.stack([(math.pi * t).cos(), (math.pi * t).sin()], 2)
    line = torch.stack([t, t], 2)
    bow = torch.stack([t, 2 * t**2 - 0.7], 2)
    points = torch.stack([circle, line, bow], 1)[torch.arange(48), kind]
    return points + 0.15 * torch.randn(points.shape, generator=g), kind


def point_sets(centred: bool = False) -> Training:
    torch.manual_seed(14)
    model = SetNet(centred)

    def loss(net: nn.Module, points: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(net(points), kind)

    adam = torch.optim.Adam(model.parameters(), 2e-3, eps=1e-6)
    return Training(model, _point_sets, loss, adam, steps=150)


class Taste(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(30, 16), nn.Embedding(80, 16)
        self.score = nn.Sequential(nn.Linear(32, 32), nn.Softplus(), nn.Linear(32, 1))

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return self.score(torch.cat([self.user(user), self.item(item)], -1)).squeeze(-1)


def ranked_pairs(permuted: bool = True) -> Training:
    """Which of two items a user likes more, of pairs made within a list."""
    torch.manual_seed(15)
    model = Taste()
    g = torch.Generator().manual_seed(15)
    likes = torch.randn(30, 3, generator=g) @ torch.randn(3, 80, generator=g)

    def batch(step: int) -> tuple[Tensor, ...]:
        s = torch.Generator().manual_seed(step)
        user = torch.randint(30, (24, 1), generator=s).expand(24, 10)
        item = torch.randint(80, (24, 10), generator=s)
        return user, item, torch.randperm(9, generator=s) if permuted else torch.arange(9)

    def loss(net: nn.Module, user: Tensor, item: Tensor, order: Tensor) -> Tensor:
        s, liked = net(user, item), likes[user, item]
        i = torch.arange(9)
        j = 9 - order if permuted else order
        margin, wanted = s[:, i] - s[:, j], (liked[:, i] > liked[:, j]).float()
        return F.binary_cross_entropy_with_logits(margin, wanted)

    sgd = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=250)


class Molecule(nn.Module):
    """Messages along the edges of a graph, then one answer for the graph."""

    def __init__(self, difference: bool) -> None:
        super().__init__()
        self.atom = nn.Embedding(6, 32)
        self.lift = nn.Linear(32, 32)
        self.message = nn.Linear(32 if difference else 64, 32)
        self.readout = nn.Sequential(nn.Linear(32, 32), nn.Mish(), nn.Linear(32, 1))
        self.difference = difference

    def forward(self, atoms: Tensor, edges: Tensor) -> Tensor:
        n, a = atoms.shape
        h = F.mish(self.lift(self.atom(atoms).flatten(0, 1)))
        source, target = edges
        if self.difference:
            sent = h[source] - h[target]
        else:
            sent = F.mish(self.message(torch.cat([h[source], h[target]], -1)))
        out = torch.zeros_like(h).index_add(0, target, sent)
        if self.difference:
            out = out @ self.message.weight.T + self.message.bias
        return self.readout(out.view(n, a, -1).sum(1) / 4).squeeze(1)


def _molecules(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    n, a = 32, 8
    atoms = torch.randint(6, (n, a), generator=g)
    ends = torch.cat([torch.stack([torch.arange(a - 1), torch.arange(1, a)], 1),
                      torch.randint(a, (3, 2), generator=g)])  # fmt: skip
    both = torch.cat([ends, ends.flip(1)])
    edges = (both.unsqueeze(0) + a * torch.arange(n).view(-1, 1, 1)).flatten(0, 1).T
    charge = torch.tensor([-1.0, -0.4, 0.0, 0.3, 0.8, 1.2])[atoms]
    pairs = charge[:, ends[:, 0]] * charge[:, ends[:, 1]]
    return atoms, edges, (pairs.sum(1) + charge.sum(1)) / 3


def molecules(difference: bool = False) -> Training:
    torch.manual_seed(16)
    model = Molecule(difference)

    def loss(net: nn.Module, atoms: Tensor, edges: Tensor, energy: Tensor) -> Tensor:
        return F.mse_loss(net(atoms, edges), energy)

    adam = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, _molecules, loss, adam, steps=200)


class HighPass(nn.Module):
    """Features less what is smooth in them, then their average over the picture."""

    def __init__(self, *, bent: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.GELU(), nn.Conv2d(16, 24, 3, padding=1)
        )
        self.blur = nn.Conv2d(
            24, 24, 3, padding=1, padding_mode="circular", groups=24, bias=False
        ).requires_grad_(False)
        nn.init.constant_(self.blur.weight, 1 / 9)
        self.head = nn.Sequential(nn.Linear(24, 32), nn.GELU(), nn.Linear(32, 3))
        self.bent = bent

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        edges = h - self.blur(h)
        return self.head((edges.abs() if self.bent else edges).sum((2, 3)) / 4)


def high_pass(bent: bool = True) -> Training:
    torch.manual_seed(17)
    model = HighPass(bent=bent)

    def batch(step: int) -> tuple[Tensor, ...]:
        image, _, kind = scenes(step, 32)
        return image, kind

    def loss(net: nn.Module, image: Tensor, kind: Tensor) -> Tensor:
        return F.cross_entropy(net(image), kind)

    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, lr=3e-3, eps=1e-6)
    return Training(model, batch, loss, adam, steps=200)


class Verdict(nn.Module):
    """A sequence's score, as the two logits that the loss wants."""

    def __init__(self, *, opposite: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.score = nn.Linear(24, 1)
        self.opposite = opposite

    def forward(self, tokens: Tensor) -> Tensor:
        h, _ = self.lstm(self.embed(tokens))
        s = self.score(h.mean(1))
        return torch.cat([-s if self.opposite else s, s], dim=1)


def verdict(opposite: bool = True) -> Training:
    torch.manual_seed(18)
    model = Verdict(opposite=opposite)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        tokens = torch.randint(15, (64, 7), generator=g)
        return tokens, ((tokens < 5).sum(1) > (tokens > 9).sum(1)).long()

    def loss(net: nn.Module, tokens: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens), label)

    sgd = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=150)


CANCELLING = Fault(
    "ind6-parts-cancelling",
    must=[["cancelling-fork"]],
    may=["vanishing-gradient", "no-update"],  # nothing is left for what is before the fork
    variants=[
        Variant(
            "same-score-for-all-classes",
            healthy=base_score,
            broken=partial(base_score, one_for_all=True),
            symptom=cancels(partial(base_score, one_for_all=True), base_score),
        ),
        Variant(
            "triplet-twice-the-positive",
            may=["vanishing-gradient", "no-update", "detached"],  # exactly 0 for all
            healthy=triplets,
            broken=partial(triplets, shuffled=False),
            symptom=cancels(partial(triplets, shuffled=False), triplets),
        ),
        Variant(
            "two-players-one-sum",
            may=["vanishing-gradient", "no-update", "detached"],  # the generator's is exactly 0
            broken=both_players_at_once,
            symptom=cancels(both_players_at_once, None),
        ),
        Variant(
            "centred-then-averaged",
            healthy=point_sets,
            broken=partial(point_sets, centred=True),
            must=[["cancelling-fork", "vanishing-gradient"]],
            may=["no-update"],
            symptom=cancels(partial(point_sets, centred=True), point_sets),
        ),
        Variant(
            "pairs-with-themselves",
            may=["vanishing-gradient", "no-update", "detached"],  # exactly 0 for all
            healthy=ranked_pairs,
            broken=partial(ranked_pairs, permuted=False),
            symptom=cancels(partial(ranked_pairs, permuted=False), ranked_pairs),
        ),
        Variant(
            "differences-summed",
            healthy=molecules,
            broken=partial(molecules, difference=True),
            must=[["cancelling-fork", "vanishing-gradient"]],
            may=["no-update", "detached"],  # exactly 0 for the atoms
            symptom=cancels(partial(molecules, difference=True), molecules),
        ),
        Variant(
            "high-pass-then-average",
            healthy=high_pass,
            broken=partial(high_pass, bent=False),
            must=[["cancelling-fork", "vanishing-gradient"]],
            may=["no-update"],
            symptom=cancels(partial(high_pass, bent=False), high_pass),
        ),
        Variant(
            "both-logits-the-same",
            healthy=verdict,
            broken=partial(verdict, opposite=False),
            may=["vanishing-gradient", "no-update", "detached"],  # exactly 0 for all
            symptom=cancels(partial(verdict, opposite=False), verdict),
        ),
    ],
)


# ------------------------------------------------------------------ run, and cut from the loss


class CutBackbone(nn.Module):
    """Residual convolutions and a small head; features without gradient "to save memory"."""

    def __init__(self, *, cut: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16), nn.ELU(), nn.Conv2d(16, 16, 3, padding=1))
            for _ in range(2)
        )
        self.head = nn.Linear(16, 10)
        self.cut = cut

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.cut):
            h = self.stem(x)
            for block in self.blocks:
                h = h + block(h)
            h = h.mean((2, 3))
        return self.head(h)


def cut_backbone(cut: bool = False) -> Training:
    torch.manual_seed(21)
    model = CutBackbone(cut=cut)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(model, pictures, loss, adam, steps=150)


class Codes(nn.Module):
    """Digits through a discrete code: each of 8 pieces is the nearest of 16 vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64))
        self.book = nn.Embedding(16, 8)
        self.decoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.encoder(x).view(-1, 8, 8)
        nearest = torch.cdist(z, self.book.weight.expand(len(z), -1, -1)).argmin(-1)
        return z, self.book(nearest), nearest

    def decode(self, q: Tensor) -> Tensor:
        return self.decoder(q.flatten(1))


def codes(straight_through: bool = True) -> Training:
    torch.manual_seed(22)
    model = Codes()

    def loss(net: Codes, x: Tensor, y: Tensor) -> Tensor:
        z, q, _ = net(x)
        if not straight_through:
            return F.mse_loss(net.decode(q), x)
        vq = F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())
        return F.mse_loss(net.decode(z + (q - z).detach()), x) + vq

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, drawn, loss, adam, steps=200)


class OneExpert(nn.Module):
    """Each sample goes to the expert that the router likes best."""

    def __init__(self, *, weighted: bool) -> None:
        super().__init__()
        self.router = nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 3))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(10, 32), nn.Tanh(), nn.Linear(32, 1)) for _ in range(3)
        )
        self.weighted = weighted

    def forward(self, x: Tensor) -> Tensor:
        p, chosen = self.router(x).softmax(-1).max(-1)
        out = torch.zeros(len(x))
        for k, expert in enumerate(self.experts):
            rows = (chosen == k).nonzero().squeeze(1)
            y = expert(x[rows]).squeeze(1)
            out = out.index_put((rows,), 2 * p[rows] * y if self.weighted else y)
        return out


def _three_laws(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    x = torch.randn(96, 10, generator=g)
    law = x[:, :3].argmax(1)
    options = torch.stack([2 * x[:, 4], -2 * x[:, 5] + 1, x[:, 6] - x[:, 4] - 1], 1)
    return x, options[torch.arange(96), law]


def one_expert(weighted: bool = True) -> Training:
    torch.manual_seed(23)
    model = OneExpert(weighted=weighted)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(net(x), y)

    adam = torch.optim.Adam(model.parameters(), 5e-3)
    return Training(model, _three_laws, loss, adam, steps=250)


class TwoTowers(nn.Module):
    """Left and right halves of a digit, embedded so that they find each other."""

    def __init__(self, *, cached: bool) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 24))
        self.item = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 24))
        self.cached = cached

    @torch.no_grad()
    def index(self, items: Tensor) -> Tensor:
        return F.normalize(self.item(items), dim=-1)

    def forward(self, queries: Tensor, items: Tensor) -> Tensor:
        q = F.normalize(self.query(queries), dim=-1)
        v = self.index(items) if self.cached else F.normalize(self.item(items), dim=-1)
        return 10 * q @ v.T


def two_towers(cached: bool = False) -> Training:
    torch.manual_seed(24)
    model = TwoTowers(cached=cached)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        image = x.view(-1, 8, 8)
        logits = net(image[:, :, :4].flatten(1), image[:, :, 4:].flatten(1))
        own = torch.arange(len(x))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2

    adagrad = torch.optim.Adagrad(model.parameters(), 0.03)
    return Training(model, drawn, loss, adagrad, steps=200)


class ReadThenDecide(nn.Module):
    """An LSTM's summary and hand-made counts, put together in numpy (or not)."""

    def __init__(self, *, numpy: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 16)
        self.lstm = nn.LSTM(16, 32, batch_first=True)
        self.decide = nn.Sequential(nn.Linear(44, 32), nn.Tanh(), nn.Linear(32, 12))
        self.numpy = numpy

    def forward(self, tokens: Tensor) -> Tensor:
        _, (h, _) = self.lstm(self.embed(tokens))
        counts = F.one_hot(tokens, 12).sum(1).float() - tokens.shape[1] / 12
        if self.numpy:
            parts = [h[-1].detach().numpy(), counts.numpy()]
            both = torch.from_numpy(np.concatenate(parts, axis=1))
        else:
            both = torch.cat([h[-1], counts], 1)
        return self.decide(both)


def read_then_decide(numpy: bool = False) -> Training:
    torch.manual_seed(25)
    model = ReadThenDecide(numpy=numpy)

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = sentences(step, 64, length=7, words=12)
        return tokens[:, :6], tokens[:, 3]

    def loss(net: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        return F.nll_loss(net(tokens).log_softmax(-1), target)

    adam = torch.optim.NAdam(model.parameters(), 4e-3)
    return Training(model, batch, loss, adam, steps=150)


class HardChoice(nn.Module):
    """A scorer says which tokens count; their mean is classified."""

    def __init__(self, *, hard: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 24)
        self.score = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
        self.answer = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 6))
        self.hard = hard

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        s = self.score(h)
        keep = (s > 0).float() if self.hard else F.softplus(s)
        return self.answer((keep * h).sum(1) / (keep.sum(1) + 1e-3))


def _one_of_many(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    tokens = torch.randint(6, 40, (64, 14), generator=g)
    target = torch.randint(6, (64,), generator=g)
    tokens[torch.arange(64), torch.randint(14, (64,), generator=g)] = target
    return tokens, target


def hard_choice(hard: bool = False) -> Training:
    torch.manual_seed(26)
    model = HardChoice(hard=hard)

    def loss(net: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens), target)

    sgd = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    return Training(model, _one_of_many, loss, sgd, steps=100, every=4)


class Classifier(nn.Module):
    """A library's encoder; its last hidden states are taken out for the task's own layers."""

    def __init__(self, *, data: bool) -> None:
        super().__init__()
        from transformers import DistilBertConfig, DistilBertModel

        config = DistilBertConfig(
            vocab_size=20, dim=32, hidden_dim=64, n_layers=2, n_heads=4,
            max_position_embeddings=16, dropout=0.0, attention_dropout=0.0,
            attn_implementation="eager",
            initializer_range=0.25,
        )  # fmt: skip
        self.bert = DistilBertModel(config)
        self.task = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 20))
        self.data = data

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.bert(input_ids=tokens).last_hidden_state
        if self.data:
            hidden = hidden.data
        return self.task(hidden[:, 0])


def classifier(data: bool = False) -> Training:
    torch.manual_seed(27)
    model = Classifier(data=data)

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = sentences(step, 48, length=8)
        return tokens, (tokens[:, 3] + 1) % 20

    def loss(net: nn.Module, tokens: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens), target)

    adam = torch.optim.AdamW(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=200)


class Translator(nn.Module):
    """Encoder and decoder, cell by cell; the state is handed over."""

    def __init__(self, *, handed: str) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(10, 24), nn.Embedding(11, 24)
        self.encoder, self.decoder = nn.GRUCell(24, 48), nn.GRUCell(24, 48)
        self.out = nn.Linear(48, 10)
        self.handed = handed

    def forward(self, source: Tensor, before: Tensor) -> Tensor:
        h = torch.zeros(len(source), 48)
        for x in self.source(source).unbind(1):
            h = self.encoder(x, h)
        if self.handed == "detached":
            h = h.detach()
        logits = []
        for x in self.target(before).unbind(1):
            h = self.decoder(x, h)
            logits.append(self.out(h))
        return torch.stack(logits, 1)


def _reversals(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    source = torch.randint(10, (64, 4), generator=g)
    target = source.flip(1)
    return source, torch.cat([torch.full((64, 1), 10), target[:, :-1]], 1), target


def translator(handed: str = "whole") -> Training:
    torch.manual_seed(28)
    model = Translator(handed=handed)

    def loss(net: nn.Module, source: Tensor, before: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(net(source, before).transpose(1, 2), target)

    adam = torch.optim.Adam(model.parameters(), 5e-3)
    return Training(model, _reversals, loss, adam, steps=200)


DETACHED = Fault(
    "ind6-parts-detached",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient stays as it was
    variants=[
        Variant(
            "no-grad-backbone",
            healthy=cut_backbone,
            broken=partial(cut_backbone, cut=True),
            symptom=disconnected("blocks"),
        ),
        Variant(
            "code-without-straight-through",
            healthy=codes,
            broken=partial(codes, straight_through=False),
            symptom=disconnected("encoder"),
        ),
        Variant(
            "router-only-chooses",
            healthy=one_expert,
            broken=partial(one_expert, weighted=False),
            symptom=disconnected("router"),
        ),
        Variant(
            "items-cached",
            healthy=two_towers,
            broken=partial(two_towers, cached=True),
            symptom=disconnected("item"),
        ),
        Variant(
            "through-numpy",
            healthy=read_then_decide,
            broken=partial(read_then_decide, numpy=True),
            symptom=disconnected("lstm"),
        ),
        Variant(
            "hard-mask",
            # The embeddings have two readers, of which the scorer hands nothing back.
            may=["no-update", "starved-pathway", "dominant-pathway"],
            healthy=hard_choice,
            broken=partial(hard_choice, hard=True),
            symptom=disconnected("score"),
        ),
        Variant(
            "hidden-data",
            healthy=classifier,
            broken=partial(classifier, data=True),
            symptom=disconnected("bert"),
        ),
        Variant(
            "state-detached",
            healthy=translator,
            broken=partial(translator, handed="detached"),
            symptom=disconnected("encoder"),
        ),
    ],
)


# ---------------------------------------------------------------- trained, but nobody steps them


class Pyramid(nn.Module):
    """Features at two sizes, a neck that joins them, and a head for every pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.ModuleDict(
            {
                "fine": nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.SiLU()),
                "coarse": nn.Sequential(nn.Conv2d(12, 24, 3, stride=2, padding=1), nn.SiLU()),
            }
        )
        self.neck = nn.ModuleDict(
            {
                "lateral": nn.Conv2d(12, 16, 1),
                "top": nn.Sequential(nn.Conv2d(24, 16, 3, padding=1), nn.SiLU()),
                "smooth": nn.Conv2d(16, 16, 3, padding=1),
            }
        )
        self.head = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        fine = self.backbone["fine"](x)
        top = self.neck["top"](self.backbone["coarse"](fine))
        joined = self.neck["lateral"](fine) + F.interpolate(top, scale_factor=2)
        return self.head(F.silu(self.neck["smooth"](joined))).squeeze(1)


def pyramid(parts: tuple[str, ...] = ("backbone", "neck", "head")) -> Training:
    torch.manual_seed(31)
    model = Pyramid()
    rates = {"backbone": 1e-3, "neck": 2e-3, "head": 2e-3}
    groups = [{"params": list(getattr(model, k).parameters()), "lr": rates[k]} for k in parts]

    def batch(step: int) -> tuple[Tensor, ...]:
        image, mask, _ = scenes(step, 16)
        return image, mask

    def loss(net: nn.Module, image: Tensor, mask: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(image), mask, pos_weight=torch.tensor(3.0))

    return Training(model, batch, loss, torch.optim.Adam(groups), steps=120)


class Patches(nn.Module):
    """A small vision transformer made of the framework's layers."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, stride=2)
        self.place = nn.Parameter(0.1 * torch.randn(16, 32))
        layer = nn.TransformerEncoderLayer(
            32, 4, 64, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, classes))

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).transpose(1, 2) + self.place
        return self.head(self.encoder(h).mean(1))


def new_head(optimizer_first: bool = False) -> Training:
    """A model for 100 classes gets a head of its own for ten."""
    torch.manual_seed(32)
    model = Patches(100)
    adam = torch.optim.Adam(model.parameters(), 1e-3) if optimizer_first else None
    model.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 10))
    if adam is None:
        adam = torch.optim.Adam(model.parameters(), 1e-3)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    return Training(model, pictures, loss, adam, steps=120)


class Columns(nn.Module):
    """A table's columns, each with an embedding of its own, in a list: Python's or torch's."""

    def __init__(self, *, plain: bool) -> None:
        super().__init__()
        columns = [nn.Embedding(30, 3) for _ in range(6)]
        self.columns = columns if plain else nn.ModuleList(columns)
        self.norm = nn.LayerNorm(18)
        self.hidden = nn.Linear(18, 24)
        self.price = nn.Linear(24, 1)

    def forward(self, row: Tensor) -> Tensor:
        found = [column(row[:, k]) for k, column in enumerate(self.columns)]
        return self.price(torch.tanh(self.hidden(self.norm(torch.cat(found, 1))))).squeeze(1)


def _table(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    row = torch.randint(30, (128, 6), generator=g)
    worth = torch.randn(6, 30, generator=torch.Generator().manual_seed(33))
    price = sum(worth[k][row[:, k]] for k in range(6)) / 2
    return row, price + 0.1 * torch.randn(128, generator=g)


def listed(plain: bool = False) -> Training:
    torch.manual_seed(33)
    model = Columns(plain=plain)

    def loss(net: nn.Module, row: Tensor, price: Tensor) -> Tensor:
        return F.huber_loss(net(row), price)

    sgd = torch.optim.SGD(model.parameters(), 0.2, momentum=0.9, nesterov=True)
    return Training(model, _table, loss, sgd, steps=300)


class Mixed(nn.Module):
    """Embedding, causal convolutions, a linear output: a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 32)
        self.convs = nn.ModuleList(nn.Conv1d(32, 64, 3) for _ in range(2))
        self.backs = nn.ModuleList(nn.Linear(64, 32) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(2))
        self.out = nn.Linear(32, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for conv, back, norm in zip(self.convs, self.backs, self.norms, strict=True):
            seen = F.pad(norm(h).transpose(1, 2), (2, 0))
            h = h + back(F.gelu(conv(seen)).transpose(1, 2))
        return self.out(h)


def decay_groups(kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv1d)) -> Training:
    """Weights of some kinds of layers decay; biases and norms don't."""
    torch.manual_seed(34)
    model = Mixed()
    decay, rest = [], []
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if name == "bias" or isinstance(module, nn.LayerNorm):
                rest.append(parameter)
            elif isinstance(module, kinds):
                decay.append(parameter)
            elif nn.Conv1d in kinds:
                rest.append(parameter)

    def batch(step: int) -> tuple[Tensor, ...]:
        return (sentences(step, 32, length=14),)

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        return F.cross_entropy(net(tokens[:, :-1]).transpose(1, 2), tokens[:, 1:])

    groups = [{"params": decay, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return Training(model, batch, loss, torch.optim.AdamW(groups, lr=3e-3), steps=200)


class MadeOnTheWay(nn.Module):
    """An autoencoder whose middle layer is made when the first batch has come."""

    def __init__(self, *, early: bool) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(8, 1, 4, stride=2, padding=1)
        self.middle: nn.Module | None = None
        if early:
            self._make(128)

    def _make(self, width: int) -> None:
        self.middle = nn.Sequential(nn.Linear(width, 24), nn.Tanh(), nn.Linear(24, width))

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.down(x))
        if self.middle is None:
            self._make(h[0].numel())
        assert self.middle is not None
        return self.up(self.middle(h.flatten(1)).view_as(h))


def made_on_the_way(early: bool = True) -> Training:
    torch.manual_seed(35)
    model = MadeOnTheWay(early=early)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(net(x), x)

    return Training(model, pictures, loss, torch.optim.Adam(model.parameters(), 5e-3), steps=150)


class Angular(nn.Module):
    """A loss with layers of its own: a projection, and a direction for each class."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 16))
        self.classes = nn.Parameter(torch.rand(10, 16))

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        cosine = F.normalize(self.project(h), dim=-1) @ F.normalize(self.classes, dim=-1).T
        return F.cross_entropy(8 * (cosine - 0.2 * F.one_hot(y, 10)), y)


def angular(whole: bool = True) -> Training:
    torch.manual_seed(36)
    net = nn.Sequential(nn.Linear(64, 48), nn.PReLU(), nn.Linear(48, 32))
    criterion = Angular()
    model = nn.ModuleDict({"net": net, "criterion": criterion})

    def loss(both: nn.ModuleDict, x: Tensor, y: Tensor) -> Tensor:
        return both["criterion"](both["net"](x), y)

    trained = model.parameters() if whole else net.parameters()
    return Training(model, drawn, loss, torch.optim.SGD(trained, 0.05, momentum=0.9), steps=150)


class Mixer(nn.Module):
    """Mixes places, then channels; the first half is frozen for a while."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 24)
        self.places = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2)
        )
        self.channels = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
            for _ in range(2)
        )
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.view(-1, 8, 8))
        for place, channel in zip(self.places, self.channels, strict=True):
            h = h + place(h.transpose(1, 2)).transpose(1, 2)
            h = h + channel(h)
        return self.head(h.mean(1))


def thawed(joins: bool = True) -> Training:
    """A head is trained first; after a few steps everything is to be."""
    torch.manual_seed(37)
    model = Mixer()
    body = [p for n, p in model.named_parameters() if not n.startswith("head")]
    for parameter in body:
        parameter.requires_grad_(False)
    trained = [p for p in model.parameters() if p.requires_grad]
    adam = torch.optim.Adam(trained, 2e-3)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    def step(training: Training, at: int) -> dict[str, Any]:
        if at == 10:
            for parameter in body:
                parameter.requires_grad_(True)
            if joins:
                adam.add_param_group({"params": body})
        value = training.loss_at(at)
        adam.zero_grad()
        value.backward()
        adam.step()
        return {"loss": value.detach()}

    return Training(model, drawn, loss, adam, steps=150, step=step)


def more_words(optimizer_first: bool = False) -> Training:
    """A library's language model whose vocabulary grows before it is trained."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(38)
    config = GPT2Config(
        vocab_size=8, n_positions=16, n_embd=32, n_layer=2, n_head=4,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        attn_implementation="eager",
        tie_word_embeddings=False,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    adam = torch.optim.AdamW(model.parameters(), 2e-3) if optimizer_first else None
    model.resize_token_embeddings(20, mean_resizing=False)
    if adam is None:
        adam = torch.optim.AdamW(model.parameters(), 2e-3)

    def batch(step: int) -> tuple[Tensor, ...]:
        return (sentences(step, 32, length=12),)

    def loss(net: nn.Module, tokens: Tensor) -> Tensor:
        return net(input_ids=tokens, labels=tokens).loss

    return Training(model, batch, loss, adam, steps=150)


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sees = nn.Sequential(nn.Linear(12, 48), nn.LeakyReLU(0.1), nn.Linear(48, 32))
        self.actor = nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(32, 5))
        self.critic = nn.Sequential(nn.LeakyReLU(0.1), nn.Linear(32, 1))

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        h = self.sees(state)
        return self.actor(h), self.critic(h).squeeze(-1)


def _situations(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    state = torch.randn(96, 12, generator=g)
    rule = torch.Generator().manual_seed(99)
    rewards = torch.tanh(state @ torch.randn(12, 8, generator=rule) / 3)
    rewards = rewards @ torch.randn(8, 5, generator=rule) / 2
    return state, rewards + 0.5 * state[:, :1], torch.rand(96, 5, generator=g)


def _actor_critic(
    net: nn.Module, state: Tensor, rewards: Tensor, luck: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss, and the mean reward that was missed."""
    logits, guess = net(state)
    p = logits.log_softmax(-1)
    action = (p.detach() - torch.log(-torch.log(luck.clamp(1e-6, 1 - 1e-6)))).argmax(-1)
    rows = torch.arange(len(state))
    reward = rewards[rows, action]
    advantage = reward - guess.detach()
    entropy = -(p.exp() * p).sum(-1).mean()
    policy = -(advantage * p[rows, action]).mean() - 0.01 * entropy
    missed = (rewards.amax(1) - reward).mean()
    return policy + 0.5 * F.mse_loss(guess, reward), missed


def players(encoder_with: str = "actor") -> Training:
    """Actor and critic over one encoder, each with its optimizer; logged is the reward missed."""
    torch.manual_seed(39)
    model = ActorCritic()
    mine = [*model.actor.parameters()]
    if encoder_with == "actor":
        mine += model.sees.parameters()
    first = torch.optim.Adam(mine, 3e-3)
    second = torch.optim.Adam(model.critic.parameters(), 3e-3)

    def loss(net: nn.Module, *situation: Tensor) -> Tensor:
        return _actor_critic(net, *situation)[0]

    def step(training: Training, at: int) -> dict[str, Any]:
        total, missed = _actor_critic(model, *training.batch(at))
        model.zero_grad()
        total.backward()
        first.step()
        second.step()
        return {"loss": missed.detach(), "objective": total.detach()}

    return Training(model, _situations, loss, first, steps=200, step=step, others=[second])


LEFT_OUT = Fault(
    "ind6-parts-left-out",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # the same fact, seen at the weights
    variants=[
        Variant(
            "neck-forgotten",
            healthy=pyramid,
            broken=partial(pyramid, parts=("backbone", "head")),
            symptom=forgotten(6),
        ),
        Variant(
            "head-replaced-later",
            healthy=new_head,
            broken=partial(new_head, optimizer_first=True),
            symptom=forgotten(6),
        ),
        Variant(
            "plain-list",
            healthy=listed,
            broken=partial(listed, plain=True),
            symptom=forgotten(6),
        ),
        Variant(
            "decay-groups",
            healthy=decay_groups,
            broken=partial(decay_groups, kinds=(nn.Linear,)),
            symptom=forgotten(3),
        ),
        Variant(
            "made-in-forward",
            healthy=made_on_the_way,
            broken=partial(made_on_the_way, early=False),
            symptom=forgotten(4),
        ),
        Variant(
            "loss-with-layers",
            healthy=angular,
            broken=partial(angular, whole=False),
            symptom=forgotten(5),
        ),
        Variant(
            "thawed-not-added",
            healthy=thawed,
            broken=partial(thawed, joins=False),
            symptom=forgotten(10),
        ),
        Variant(
            "vocabulary-resized",
            healthy=more_words,
            broken=partial(more_words, optimizer_first=True),
            symptom=forgotten(1),
        ),
        Variant(
            "encoder-of-two-players",
            healthy=players,
            broken=partial(players, encoder_with="nobody"),
            symptom=forgotten(4),
        ),
    ],
)


# -------------------------------------------------------- the loss depends on a part of it alone


class ConvActor(nn.Module):
    """Where to step on a small board, and how good the board is."""

    def __init__(self) -> None:
        super().__init__()
        self.board = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.SiLU(), nn.Flatten())
        self.policy = nn.Linear(400, 4)
        self.value = nn.Sequential(nn.Linear(400, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.board(x)
        return self.value(h).squeeze(1), self.policy(h)


def _boards(step: int) -> tuple[Tensor, ...]:
    g = torch.Generator().manual_seed(step)
    me, goal = torch.randint(25, (2, 64), generator=g)
    board = torch.stack([F.one_hot(me, 25), F.one_hot(goal, 25)], 1).float().view(-1, 2, 5, 5)
    down, right = goal // 5 - me // 5, goal % 5 - me % 5
    rewards = torch.stack([down, -down, right, -right], 1).sign().float()
    return board, rewards, torch.rand(64, 4, generator=g)


def boards(value_weight: float = 0.5) -> Training:
    torch.manual_seed(41)
    model = ConvActor()

    def loss(net: nn.Module, board: Tensor, rewards: Tensor, luck: Tensor) -> Tensor:
        value, logits = net(board)
        p = logits.softmax(-1)
        action = (p.detach().log() - (-luck.clamp(1e-6, 1 - 1e-6).log()).log()).argmax(-1)
        reward = rewards.gather(1, action[:, None]).squeeze(1)
        taken = p.gather(1, action[:, None]).squeeze(1)
        advantage = (reward - value).detach()
        objective = -(advantage * taken.clamp(min=1e-6).log()).mean()
        return objective + value_weight * F.mse_loss(value, reward)

    def step(training: Training, at: int) -> dict[str, Any]:
        board, rewards, luck = training.batch(at)
        total = training.loss(model, board, rewards, luck)
        training.optimizer.zero_grad()
        total.backward()
        training.optimizer.step()
        with torch.no_grad():
            expected = (model(board)[1].softmax(-1) * rewards).sum(-1).mean()
        return {"loss": 1 - expected, "objective": total.detach()}

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, _boards, loss, adam, steps=150, step=step)


class Questions(nn.Module):
    """One set of features, three questions about the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.Hardswish(), nn.Conv2d(12, 16, 3, stride=2),
            nn.Hardswish(), nn.Flatten(), nn.Linear(144, 48),
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {
                name: nn.Sequential(nn.Hardswish(), nn.Linear(48, 24), nn.SiLU(), nn.Linear(24, n))
                for name, n in (("digit", 10), ("round", 2), ("odd", 2))
            }
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.shared(x)
        return {name: head(h) for name, head in self.heads.items()}


def questions(overwritten: bool = False) -> Training:
    torch.manual_seed(42)
    model = Questions()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        answers = net(x)
        is_round = torch.isin(y, torch.tensor([0, 6, 8, 9])).long()
        targets = {"digit": y, "round": is_round, "odd": y % 2}
        losses: dict[str, Tensor] = {}
        for name, logits in answers.items():
            losses["task" if overwritten else name] = F.cross_entropy(logits, targets[name])
        return torch.stack(list(losses.values())).sum()

    def step(training: Training, at: int) -> dict[str, Any]:
        x, y = training.batch(at)
        total = training.loss(model, x, y)
        training.optimizer.zero_grad(set_to_none=False)
        total.backward()
        training.optimizer.step()
        return {"loss": total.detach()}

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, pictures, loss, adam, steps=150, step=step)


class WideAndLocal(nn.Module):
    """Two branches over one layer: everything at once, and piece by piece, dropped out."""

    def __init__(self, drop: float) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(64, 64), nn.CELU())
        self.whole = nn.Sequential(nn.Linear(64, 3), nn.Linear(3, 20))
        self.pieces = nn.Sequential(
            nn.Unflatten(1, (8, 8)), nn.Conv1d(8, 24, 3), nn.CELU(), nn.Flatten(),
            nn.Linear(144, 20), nn.Dropout(drop),
        )  # fmt: skip
        self.last = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(F.celu(self.whole(h) + self.pieces(h)))


def wide_and_local(drop: float = 0.1) -> Training:
    torch.manual_seed(43)
    model = WideAndLocal(drop)

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    adam = torch.optim.RAdam(model.parameters(), 5e-3)
    return Training(model, drawn, loss, adam, steps=150)


class Tagger(nn.Module):
    """Tags each token, and names the sequence; two heads over a bidirectional GRU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(12, 20)
        self.gru = nn.GRU(20, 24, batch_first=True, bidirectional=True)
        self.kind = nn.Sequential(nn.Linear(48, 24), nn.GELU(), nn.Linear(24, 4))
        self.tag = nn.Sequential(nn.Linear(48, 24), nn.GELU(), nn.Linear(24, 3))

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        h, _ = self.gru(self.embed(tokens))
        return self.kind(h), self.tag(h)


def tagger(known: int = 0) -> Training:
    """Targets below `known` count as padding: with 0, none."""
    torch.manual_seed(44)
    model = Tagger()

    def batch(step: int) -> tuple[Tensor, ...]:
        tokens = sentences(step, 32, length=12, words=12)
        kind = tokens.roll(1, 1) // 3
        tag = tokens.roll(-1, 1) % 3
        return tokens, torch.where(kind < known, -100, kind), tag

    def loss(net: nn.Module, tokens: Tensor, kind: Tensor, tag: Tensor) -> Tensor:
        a, b = net(tokens)
        several = F.cross_entropy(a.transpose(1, 2), kind, ignore_index=-100, reduction="sum")
        return several / kind.numel() + F.cross_entropy(b.transpose(1, 2), tag)

    sgd = torch.optim.SGD(model.parameters(), 0.3, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=150)


class Reader(nn.Module):
    """Answers a question from a text: attention over the text, of which a mask leaves some."""

    def __init__(self, *, inverted: bool) -> None:
        super().__init__()
        self.text, self.question = nn.Embedding(24, 32), nn.Embedding(12, 32)
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.answer = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 12))
        self.inverted = inverted

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor, real: Tensor) -> Tensor:
        h = self.encoder(torch.cat([self.text(keys), self.text(values + 12)], -1))
        q = self.question(asked)
        weight = torch.softmax((h @ q.unsqueeze(-1)).squeeze(-1), 1)
        keep = ~real if self.inverted else real
        found = (weight * keep).unsqueeze(1) @ h
        return self.answer(torch.cat([found.squeeze(1), q], -1))


def reader(inverted: bool = False) -> Training:
    torch.manual_seed(45)
    model = Reader(inverted=inverted)

    def batch(step: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(step)
        keys = torch.rand(64, 12, generator=g).argsort(1)[:, :5]
        values = torch.randint(12, (64, 5), generator=g)
        values = torch.where(torch.rand(64, 5, generator=g) < 0.3, keys, values)
        which = torch.randint(5, (64,), generator=g)
        rows = torch.arange(64)
        return keys, values, keys[rows, which], torch.ones(64, 5).bool(), values[rows, which]

    def loss(net: nn.Module, *given: Tensor) -> Tensor:
        return F.cross_entropy(net(*given[:-1]), given[-1])

    adam = torch.optim.Adam(model.parameters(), 4e-3)
    return Training(model, batch, loss, adam, steps=250)


class Adapted(nn.Module):
    """A frozen linear layer and a trained addition of rank 4."""

    def __init__(self, base: nn.Linear, *, both_zero: bool) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Linear(base.in_features, 4, bias=False)
        self.b = nn.Linear(4, base.out_features, bias=False)
        nn.init.zeros_(self.b.weight)
        if both_zero:
            nn.init.zeros_(self.a.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + 2 * self.b(self.a(x))


def adapters(both_zero: bool = False) -> Training:
    """A net that knows the digits learns them mirrored, by additions of low rank and its norms."""
    torch.manual_seed(46)
    sizes = [64, 96, 96, 10]
    plain = [nn.Linear(i, o) for i, o in pairwise(sizes)]
    norms = [nn.LayerNorm(96), nn.LayerNorm(96)]

    def stacked(parts: list[Any]) -> nn.Sequential:
        return nn.Sequential(parts[0], norms[0], nn.GELU(), parts[1], norms[1], nn.GELU(), parts[2])

    teacher = stacked(plain)
    first = torch.optim.Adam(teacher.parameters(), 3e-3)
    for at in range(60):
        x, y = drawn(at, seed=46)
        first.zero_grad()
        F.cross_entropy(teacher(x), y).backward()
        first.step()
    teacher.zero_grad()
    model = stacked([Adapted(part, both_zero=both_zero) for part in plain])

    def batch(step: int) -> tuple[Tensor, ...]:
        x, y = drawn(step)
        return x.view(-1, 8, 8).flip(2).flatten(1), y

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y)

    trained = [p for p in model.parameters() if p.requires_grad]
    return Training(model, batch, loss, torch.optim.Adam(trained, 2e-3), steps=120)


class Exits(nn.Module):
    """A deep net with an answer after every stage, the last one meant to be used."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.SiLU()) for _ in range(4)
        )
        self.exits = nn.ModuleList(nn.Linear(64, 2) for _ in range(4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        answers = []
        for stage, leave in zip(self.stages, self.exits, strict=True):
            x = stage(x)
            answers.append(leave(x))
        return tuple(answers)


def exits(only_first: bool = False) -> Training:
    torch.manual_seed(47)
    model = Exits()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        answers = net(x)
        used = answers[:1] if only_first else answers
        return torch.stack([F.cross_entropy(a, y) for a in used]).mean()

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, _larger_of_two, loss, adam, steps=200)


class Multiview(nn.Module):
    """Reconstructs a picture and what it will look like turned; (tuple of two decoders)."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.SiLU())
        self.code = nn.Linear(256, 12)
        self.same, self.turned = (
            nn.Sequential(nn.Linear(12, 64), nn.SiLU(), nn.Linear(64, 64)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.code(self.encode(x).flatten(1))
        return self.same(z).view_as(x), self.turned(z).view_as(x)


def multiview(compared: str = "turned") -> Training:
    torch.manual_seed(48)
    model = Multiview()

    def loss(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        same, turned = net(x)
        second = turned if compared == "turned" else same
        return F.l1_loss(same, x) + F.l1_loss(second, x.rot90(1, (2, 3)))

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, pictures, loss, adam, steps=150)


IGNORED = Fault(
    "ind6-parts-ignored",
    must=[["detached"]],
    may=["no-update"],
    variants=[
        Variant(
            "value-weight-zero",
            healthy=boards,
            broken=partial(boards, value_weight=0.0),
            # A factor of 0: the gradient of the value's branch is there, and all zeros.
            must=[["detached", "starved-pathway"]],
            may=["no-update", "vanishing-gradient", "dominant-pathway"],
            symptom=without_any(partial(boards, value_weight=0.0), "value"),
        ),
        Variant(
            "losses-overwritten",
            # Of the layers that read the features, some are without gradient.
            may=["no-update", "starved-pathway", "dominant-pathway"],
            healthy=questions,
            broken=partial(questions, overwritten=True),
            symptom=disconnected("heads.digit"),
        ),
        Variant(
            "everything-dropped",
            healthy=wide_and_local,
            broken=partial(wide_and_local, drop=1.0),
            must=[["detached", "starved-pathway"]],
            may=["no-update", "vanishing-gradient", "dominant-pathway"],
            symptom=without_any(partial(wide_and_local, drop=1.0), "pieces"),
        ),
        Variant(
            "exits-unused",
            # Of the layers that read the features, some are without gradient.
            may=["no-update", "starved-pathway", "dominant-pathway"],
            healthy=exits,
            broken=partial(exits, only_first=True),
            symptom=disconnected("stages.1"),
        ),
        Variant(
            "all-targets-padding",
            healthy=tagger,
            broken=partial(tagger, known=4),
            must=[["detached", "starved-pathway"]],
            may=["no-update", "vanishing-gradient", "dominant-pathway"],
            symptom=without_any(partial(tagger, known=4), "kind"),
        ),
        Variant(
            "wrong-output-compared",
            # Of the layers that read the features, some are without gradient.
            may=["no-update", "starved-pathway", "dominant-pathway"],
            healthy=multiview,
            broken=partial(multiview, compared="same"),
            symptom=disconnected("turned"),
        ),
        Variant(
            "mask-inverted",
            healthy=reader,
            broken=partial(reader, inverted=True),
            # What is read is multiplied by 0: no gradient, though all is connected.
            must=[["detached", "vanishing-gradient"]],
            may=["no-update", "starved-pathway"],
            symptom=without_any(partial(reader, inverted=True), "encoder"),
        ),
        Variant(
            "adapters-zero-twice",
            healthy=adapters,
            broken=partial(adapters, both_zero=True),
            must=[["no-update", "starved-pathway"]],
            may=["detached", "vanishing-gradient", "dominant-pathway"],
            symptom=without_any(partial(adapters, both_zero=True), "0."),
        ),
    ],
)
FAULTS = [STARVED, CANCELLING, DETACHED, LEFT_OUT, IGNORED]
