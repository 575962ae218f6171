"""Parts that get no gradient, that nobody uses, that no optimizer holds; losses that stay flat."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_again_parts import classify, digit_batch, flat, text_batch
from analyses.faults.symptoms import dead_units, decays, left_out, no_gradient_before, unmoved
from analyses.faults.training import Training


class PooledCNN(nn.Module):
    """Generalised-mean pooling, in torch or in numpy as the reference code had it."""

    def __init__(self, *, numpy: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1, stride=2), nn.BatchNorm2d(32), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(128, 10)
        self.numpy = numpy

    def forward(self, x: Tensor) -> Tensor:
        f = self.features(x).clamp(min=1e-3).unflatten(2, (2, 2)).unflatten(4, (2, 2))
        if self.numpy:
            a = f.detach().numpy()
            pooled = torch.from_numpy((a**3).mean(axis=(3, 5)) ** (1 / 3))
        else:
            pooled = (f**3).mean((3, 5)) ** (1 / 3)
        return self.head(pooled.flatten(1))


def pooled(*, numpy: bool = False) -> Training:
    torch.manual_seed(11)
    model = PooledCNN(numpy=numpy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digit_batch(images=True), classify, optimizer, steps=150)


class Tagger(nn.Module):
    """A transformer encoder; its features are extracted with or without a graph."""

    def __init__(self, *, extract: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 32)
        self.place = nn.Parameter(torch.randn(24, 32) * 0.1)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 15))
        self.extract = extract
        self.register_buffer("mask", torch.full((24, 24), -torch.inf).triu(1))

    def encode(self, x: Tensor) -> Tensor:
        out: Tensor = self.encoder(self.embed(x) + self.place, mask=self.mask)
        return out

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.extract and torch.is_grad_enabled()):
            h = self.encode(x)
        return self.head(h)


def tagger(*, extract: bool = False) -> Training:
    torch.manual_seed(12)
    model = Tagger(extract=extract)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, text_batch(), classify, optimizer, steps=150)


class Chunked(nn.Module):
    """A recurrent language model; what is cut is the state between chunks, or all outputs."""

    def __init__(self, *, outputs: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 24)
        self.cell = nn.GRUCell(24, 48)
        self.decode = nn.Linear(48, 15)
        self.outputs = outputs

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), 48)
        said = []
        for t, e in enumerate(self.embed(x).unbind(1)):
            if t % 8 == 0 and not self.outputs:
                h = h.detach()
            h = self.cell(e, h)
            said.append(self.decode(h.detach() if self.outputs else h))
        return torch.stack(said, 1)


def chunked(*, outputs: bool = False) -> Training:
    torch.manual_seed(13)
    model = Chunked(outputs=outputs)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=3e-3)
    return Training(model, text_batch(), classify, optimizer, steps=150)


class Quantised(nn.Module):
    """An autoencoder with a codebook, straight-through or not."""

    def __init__(self, *, straight: bool) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32))
        self.codes = nn.Embedding(32, 8)
        self.decoder = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 64))
        self.straight = straight

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        z = self.encoder(x).view(-1, 4, 8)
        nearest = torch.cdist(z, self.codes.weight.expand(len(z), -1, -1)).argmin(-1)
        q = self.codes(nearest)
        aside = F.mse_loss(q, z.detach())
        if self.straight:
            aside = aside + 0.25 * F.mse_loss(z, q.detach())
            q = z + (q - z).detach()
        return self.decoder(q.flatten(1)), aside


def quantised(*, straight: bool = True) -> Training:
    torch.manual_seed(14)
    model = Quantised(straight=straight)

    def loss(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        back, aside = model(x)
        return F.mse_loss(back, x) + aside

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(), loss, optimizer, steps=250)


DETACHED = Fault(
    "ind2-detached",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient doesn't move
    symptom=no_gradient_before(),
    variants=[
        Variant("numpy-pooling", pooled, broken=partial(pooled, numpy=True)),
        Variant("features-without-graph", tagger, broken=partial(tagger, extract=True)),
        Variant("wrong-tensor-cut", chunked, broken=partial(chunked, outputs=True)),
        Variant("codebook-not-straight", quantised, broken=partial(quantised, straight=False)),
    ],
)


class TwoHeads(nn.Module):
    """Classes and a reconstruction from one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 96), nn.ReLU())
        self.classes = nn.Linear(96, 10)
        self.back = nn.Sequential(nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"classes": self.classes(h), "back": self.back(h)}


def heads(*, both: bool = True) -> Training:
    torch.manual_seed(21)
    model = TwoHeads()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        total = F.cross_entropy(out["classes"], y)
        return total + 0.5 * F.mse_loss(out["back"], x) if both else total

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    return Training(model, digit_batch(), loss, optimizer, steps=150)


class Branched(nn.Module):
    """Two convolutional paths summed; the second one's weight is a constant."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.near = nn.Sequential(nn.Conv2d(16, 16, 1), nn.SiLU(), nn.Conv2d(16, 16, 1))
        self.far = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=2, dilation=2), nn.SiLU(),
            nn.Conv2d(16, 16, 3, padding=2, dilation=2),
        )  # fmt: skip
        self.norm = nn.GroupNorm(4, 16)
        self.head = nn.Linear(16 * 16, 10)
        self.register_buffer("mix", torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.stem(x))
        h = self.norm(self.near(h) + self.mix * self.far(h))
        return self.head(F.avg_pool2d(F.silu(h), 2).flatten(1))


def branched(weight: float = 1.0) -> Training:
    torch.manual_seed(22)
    model = Branched(weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(images=True), classify, optimizer, steps=120)


class Block(nn.Module):
    """Attention written out, then a feed-forward part that may be forgotten in the result."""

    def __init__(self, width: int, *, forgets: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.thin = nn.Linear(4 * width, width)
        self.forgets = forgets

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        scores = q @ k.mT / q.shape[-1] ** 0.5
        later = torch.ones(x.shape[1], x.shape[1]).triu(1).bool()
        x = x + self.out(scores.masked_fill(later, -torch.inf).softmax(-1) @ v)
        h = x + self.thin(F.gelu(self.wide(self.norm2(x))))
        return x if self.forgets else h


class Writer(nn.Module):
    """A language model of three blocks."""

    def __init__(self, *, forgets: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(15, 32)
        self.place = nn.Embedding(24, 32)
        self.blocks = nn.ModuleList(Block(32, forgets=forgets) for _ in range(3))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 15)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return self.head(self.norm(h))


def writer(*, forgets: bool = False) -> Training:
    torch.manual_seed(23)
    model = Writer(forgets=forgets)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, text_batch(), classify, optimizer, steps=150)


def branch_gets_nothing(run: Any, twin: Any) -> dict[str, Any]:
    """Both matrices of the second path have a gradient of exactly 0, which the twin's haven't."""

    def largest(observed: Any) -> float:
        return max(
            n for c in observed.checkpoints for name, n in c.norms.items() if name.startswith("far")
        )

    found, theirs = largest(run), largest(twin)
    return {"is": found == 0 < theirs, "gradient": found, "twin": theirs}


UNUSED = Fault(
    "ind2-unused",
    must=[["detached", "starved-pathway"]],
    may=["no-update"],  # what has no gradient doesn't move
    symptom=no_gradient_before(),
    variants=[
        Variant("second-head-not-in-loss", heads, broken=partial(heads, both=False)),
        Variant(
            "path-times-zero",
            branched,
            broken=partial(branched, 0.0),
            symptom=branch_gets_nothing,
        ),
        Variant("feed-forward-not-returned", writer, broken=partial(writer, forgets=True)),
    ],
)


def new_head(*, late: bool = False) -> Training:
    """A pretrained network's head is replaced for five classes."""
    torch.manual_seed(31)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(12, 24, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(24 * 16, 10),
    )  # fmt: skip
    batch = digit_batch(images=True)
    before = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(60):
        classify(model, *batch(5000 + step)).backward()
        before.step()
        before.zero_grad()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model[6] = nn.Linear(24 * 16, 5)
    if not late:
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), (y * 3) % 5)

    return Training(model, batch, loss, optimizer, steps=120)


class Viewer(nn.Module):
    """A vision transformer on patches of 2 × 2."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(1, 32, 2, 2)
        self.place = nn.Embedding(16, 32)
        layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, "gelu", batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.patch(x).flatten(2).mT + self.place.weight
        return self.head(self.encoder(h).mean(1))


def grouped(*, by_suffix: bool = False) -> Training:
    """Two groups, with decay and without; the suffixes miss `in_proj_weight` and its bias."""
    torch.manual_seed(32)
    model = Viewer()
    named = dict(model.named_parameters())
    if by_suffix:
        decayed = [p for n, p in named.items() if n.endswith(".weight")]
        plain = [p for n, p in named.items() if n.endswith(".bias")]
    else:
        decayed = [p for p in named.values() if p.ndim > 1]
        plain = [p for p in named.values() if p.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3)
    return Training(model, digit_batch(images=True), classify, optimizer, steps=120)


class Graph(nn.Module):
    """Message passing whose layers are made when the first graph is seen, or before."""

    def __init__(self, *, lazy: bool) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 32)
        self.leave = nn.Linear(32, 4)
        self.rounds = nn.ModuleList()
        if not lazy:
            self.build()

    def build(self) -> None:
        self.rounds.extend(nn.Linear(64, 32) for _ in range(2))

    def forward(self, x: Tensor, near: Tensor) -> Tensor:
        if not len(self.rounds):
            self.build()
        h = F.elu(self.enter(x))
        for layer in self.rounds:
            h = h + F.elu(layer(torch.cat([h, near @ h], -1)))
        return self.leave(h)


def graph(*, lazy: bool = False) -> Training:
    torch.manual_seed(33)
    model = Graph(lazy=lazy)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def batch(step: int) -> tuple[Tensor, ...]:
        chance = torch.Generator().manual_seed(step)
        x = torch.randn(16, 12, 8, generator=chance)
        links = (torch.rand(16, 12, 12, generator=chance) < 0.3).float() + torch.eye(12)
        near = links / links.sum(-1, keepdim=True)
        y = (near @ (near @ x[..., :4])).argmax(-1)
        return x, near, y

    def loss(model: nn.Module, x: Tensor, near: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, near).flatten(0, 1), y.flatten())

    return Training(model, batch, loss, optimizer, steps=200)


LEFT_OUT = Fault(
    "ind2-not-in-optimizer",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # what no optimizer holds doesn't move
    symptom=left_out(),
    variants=[
        Variant("head-replaced-late", new_head, broken=partial(new_head, late=True)),
        Variant("groups-by-suffix", grouped, broken=partial(grouped, by_suffix=True)),
        Variant("layers-made-at-first-call", graph, broken=partial(graph, lazy=True)),
    ],
)


def sigmoids(*, relu: bool = False) -> Training:
    """Nine layers of sigmoids under plain gradient descent."""
    torch.manual_seed(41)
    layers: list[nn.Module] = [nn.Linear(64, 48)]
    for _ in range(8):
        layers += [nn.ReLU() if relu else nn.Sigmoid(), nn.Linear(48, 48)]
    layers += [nn.ReLU() if relu else nn.Sigmoid(), nn.Linear(48, 10)]
    model = nn.Sequential(*layers)
    for layer in model:
        if relu and isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, digit_batch(), classify, optimizer, steps=200)


class Prior(nn.Module):
    """Separable convolutions; logits begin at a prior, and may pass a rectifier."""

    def __init__(self, *, rectified: bool) -> None:
        super().__init__()
        self.enter = nn.Conv2d(1, 16, 3, padding=1)
        self.depth = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 32, 1)
        self.head = nn.Linear(32 * 16, 10)
        nn.init.constant_(self.head.bias, -4.6)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        h = F.gelu(self.point(self.depth(F.gelu(self.enter(x)))))
        logits = self.head(F.avg_pool2d(h, 2).flatten(1))
        return F.relu(logits) if self.rectified else logits


def prior(*, rectified: bool = False) -> Training:
    torch.manual_seed(42)
    model = Prior(rectified=rectified)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, digit_batch(images=True), classify, optimizer, steps=120)


class Mixer(nn.Module):
    """Two mixer blocks over eight rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.enter = nn.Linear(8, 32)
        self.across = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))
        self.within = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(32) for _ in range(4))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x.view(-1, 8, 8))
        for i in range(2):
            h = h + F.gelu(self.across[i](self.norms[2 * i](h).mT)).mT
            h = h + F.gelu(self.within[i](self.norms[2 * i + 1](h)))
        return self.head(h.mean(1))


def warmed(*, whole: bool = False) -> Training:
    """Warm-up over a quarter of the run, or with the division that rounds down."""
    torch.manual_seed(43)
    model = Mixer()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)

    def factor(step: int) -> float:
        return float((step + 1) // 1000) if whole else min(1.0, (step + 1) / 50)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return Training(model, digit_batch(), classify, optimizer, steps=200, schedule=schedule)


def decayed_gradient(run: Any, twin: Any) -> bool:
    return bool(decays(3)(run, twin)["is"])


def all_off(run: Any, twin: Any) -> bool:
    return bool(dead_units(0.99)(run, twin)["is"])


def nothing_moves(run: Any, twin: Any) -> bool:
    return bool(unmoved(1e-7)(run, twin)["is"])


FLAT = Fault(
    "ind2-flat",
    must=[],
    variants=[
        Variant(
            "nine-sigmoids",
            partial(sigmoids, relu=True),
            broken=sigmoids,
            must=[["vanishing-gradient"]],
            may=["no-update"],  # the first layers' updates are below a float's resolution
            symptom=flat(decayed_gradient),
        ),
        Variant(
            "rectified-logits",
            prior,
            broken=partial(prior, rectified=True),
            must=[["dead-units"]],
            # every gradient is exactly 0, so that nothing moves
            may=["no-update", "vanishing-gradient", "detached"],
            symptom=flat(all_off),
        ),
        Variant(
            "warm-up-rounded-down",
            warmed,
            broken=partial(warmed, whole=True),
            must=[["no-update"]],
            symptom=flat(nothing_moves),
        ),
    ],
)

FAULTS = [DETACHED, UNUSED, LEFT_OUT, FLAT]
