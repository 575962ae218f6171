"""One part too narrow, one in which the gradient fades, one that takes too large steps."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_tenth_d import digits, draw, source, tokens
from analyses.faults.observe import Observed
from analyses.faults.symptoms import decays, learns_less
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


class Attention(nn.Module):
    """Self-attention by hand, with a residual and a small network."""

    def __init__(self, wide: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.after = nn.LayerNorm(wide), nn.LayerNorm(wide)
        self.q, self.k = nn.Linear(wide, wide), nn.Linear(wide, wide)
        self.v, self.o = nn.Linear(wide, wide), nn.Linear(wide, wide)
        self.mlp = nn.Sequential(nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (
            f(h).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.q, self.k, self.v)
        )
        p = torch.softmax(torch.matmul(q, k.transpose(-1, -2)) / q.shape[-1] ** 0.5, dim=-1)
        x = x + self.o(torch.matmul(p, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.after(x))


class Mirror(nn.Module):
    """Two attention layers that write a sequence backwards, pooled in between or not."""

    def __init__(self, pooled: bool) -> None:
        super().__init__()
        self.pooled = pooled
        self.words = nn.Embedding(10, 32)
        self.places = nn.Parameter(torch.randn(16, 32))
        self.lower, self.upper = Attention(32, 2), Attention(32, 2)
        self.out = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lower(self.words(x) + self.places)
        if self.pooled:
            h = h.mean(1, keepdim=True) + self.places
        return self.out(self.upper(h))


def flipped(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x).flatten(0, 1), x.flip(1).flatten())


def mirror(pooled: bool = False) -> Training:
    """All positions go on to the second layer, or their mean only."""
    torch.manual_seed(71)
    model = Mirror(pooled)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, tokens(32, 16, 10, 1), flipped, optimizer, steps=250)


class Facts(nn.Module):
    """Facts (name, value) are read by an encoder; questions attend to what it hands on."""

    def __init__(self, squeezed: bool) -> None:
        super().__init__()
        self.names, self.values = nn.Embedding(12, 32), nn.Embedding(8, 32)
        self.read = nn.MultiheadAttention(32, 2, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.squeeze = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 12 * 32)) if squeezed else None
        self.ask = nn.MultiheadAttention(32, 2, batch_first=True)
        self.out = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))

    def forward(self, values: Tensor, asked: Tensor) -> Tensor:
        h = self.names.weight + self.values(values)
        h = self.norm(h + self.read(h, h, h, need_weights=False)[0])
        if self.squeeze is not None:
            h = self.squeeze(h.mean(1)).unflatten(-1, (12, 32))
        return self.out(self.ask(self.names(asked), h, h, need_weights=False)[0])


def facts(step: int) -> Batch:
    g = source(step, 72)
    values = torch.randint(8, (48, 12), generator=g)
    asked = torch.randint(12, (48, 6), generator=g)
    return values, asked, values.gather(1, asked)


def answers(model: nn.Module, values: Tensor, asked: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(values, asked).flatten(0, 1), y.flatten())


def asking(squeezed: bool = False) -> Training:
    """The memory is what the encoder made of each fact, or twelve slots from four numbers."""
    torch.manual_seed(72)
    model = Facts(squeezed)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, facts, answers, optimizer, steps=300, every=10)


NARROW = Fault(
    "ind10-parts-narrow",
    must=[["information-bottleneck"]],
    # The layer above has nothing to choose from: its attention stays nearly uniform.
    may=["diffuse-softmax"],
    symptom=learns_less(0.2),
    variants=[
        Variant("mean-between-layers", mirror, broken=partial(mirror, pooled=True)),
        Variant("slots-from-four", asking, broken=partial(asking, squeezed=True)),
    ],
)


def tower(depth: int, kind: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i in range(depth):
        linear = nn.Linear(32 if i == 0 else 48, 48)
        if kind == "leaky":
            nn.init.kaiming_normal_(linear.weight, a=0.1)
        layers += [linear, nn.Sigmoid() if kind == "sigmoid" else nn.LeakyReLU(0.1)]
    return nn.Sequential(*layers, nn.Linear(48, 12))


class Halves(nn.Module):
    """The upper and the lower half of an image, a tower each."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.shallow = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 12))
        self.deep = tower(8, kind)
        self.out = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([self.shallow(x[:, :32]), self.deep(x[:, 32:])], -1))


def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def halves(kind: str = "leaky") -> Training:
    """The deep tower has leaky rectifiers and weights for them, or is a pile of sigmoids."""
    torch.manual_seed(81)
    model = Halves(kind)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, draw(32, *digits(), seed=2), classes, optimizer, steps=250)


class Advised(nn.Module):
    """A sequence whose first entries matter, and a few numbers beside it."""

    def __init__(self, recurrent: float) -> None:
        super().__init__()
        self.beside = nn.Sequential(nn.Linear(3, 16), nn.GELU(), nn.Linear(16, 16))
        self.encoder = nn.RNN(2, 32, batch_first=True)
        for name, p in self.encoder.named_parameters():
            if name.startswith("weight_hh"):
                nn.init.orthogonal_(p, gain=recurrent)
        self.out = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, beside: Tensor) -> Tensor:
        return self.out(torch.cat([self.encoder(x)[0][:, -1], self.beside(beside)], -1))


def advised_data(step: int) -> Batch:
    g = source(step, 82)
    x = 0.2 * torch.randn(48, 25, 2, generator=g)
    told = 2.0 * torch.randint(2, (48, 1), generator=g) - 1
    x[:, :3, 0] = told
    beside = torch.randn(48, 3, generator=g)
    return x, beside, 2 * told + 0.5 * beside[:, :1] * beside[:, 1:2]


def told_error(model: nn.Module, x: Tensor, beside: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(x, beside), y)


def advised(recurrent: float = 1.0) -> Training:
    """Recurrent weights that keep a state's size, or far smaller ones."""
    torch.manual_seed(82)
    model = Advised(recurrent)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, advised_data, told_error, optimizer, steps=300, every=10, clip=1.0)


FADES = Fault(
    "ind10-parts-fades",
    must=[["vanishing-gradient"]],
    variants=[
        Variant(
            "pile-of-sigmoids",
            halves,
            broken=partial(halves, kind="sigmoid"),
            # Under SGD the layers furthest down stand still.
            may=["no-update"],
            symptom=decays(3, like="deep"),
        ),
        Variant(
            "small-recurrence",
            advised,
            broken=partial(advised, recurrent=0.2),
            symptom=decays(3, like="encoder"),
        ),
    ],
)


class Scene(nn.Module):
    """A convolutional trunk, two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.GELU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Flatten(),
        )
        self.ink = nn.Linear(256, 1)
        self.digit = nn.Sequential(nn.Linear(256, 48), nn.LeakyReLU(0.1), nn.Linear(48, 10))


def digit_and_ink(net: Scene, x: Tensor, y: Tensor) -> Tensor:
    h = net.trunk(x)
    ink = F.mse_loss(net.ink(h)[:, 0], x.mean((1, 2, 3)))
    return F.cross_entropy(net.digit(h), y) + ink


def groups_of_rates(rate: float = 3e-3) -> Training:
    """The digit's head has a learning rate of its own."""
    torch.manual_seed(91)
    model = Scene()
    rest = [p for n, p in model.named_parameters() if not n.startswith("digit")]
    groups: list[dict[str, Any]] = [
        {"params": rest},
        {"params": list(model.digit.parameters()), "lr": rate},
    ]
    optimizer = torch.optim.Adam(groups, lr=1e-3)
    x, y = digits()
    batch = draw(32, x.view(-1, 1, 8, 8), y, seed=3)
    return Training(model, batch, digit_and_ink, optimizer, steps=150)


class Ratings(nn.Module):
    """Who likes what: embeddings of both, and a small network."""

    def __init__(self) -> None:
        super().__init__()
        self.who = nn.Embedding(60, 16)
        self.what = nn.Embedding(40, 16)
        self.score = nn.Sequential(nn.Linear(48, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, who: Tensor, what: Tensor) -> Tensor:
        u, v = self.who(who), self.what(what)
        return self.score(torch.cat([u, v, u * v], -1))[:, 0]


def liked(model: nn.Module, who: Tensor, what: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(model(who, what), y)


def rating(rate: float = 2e-2) -> Training:
    """Embeddings with an optimizer, and a learning rate, of their own."""
    torch.manual_seed(92)
    model = Ratings()
    g = source(0, 92)
    likes = torch.randn(60, 3, generator=g) @ torch.randn(3, 40, generator=g)

    def batch(step: int) -> Batch:
        g = source(step, 93)
        who = torch.randint(60, (64,), generator=g)
        what = torch.randint(40, (64,), generator=g)
        return who, what, likes[who, what]

    network = torch.optim.Adam(model.score.parameters(), lr=3e-3)
    tables = [model.who.weight, model.what.weight]
    rest = torch.optim.Adam(tables, lr=rate)

    def step(training: Training, step: int) -> dict[str, Any]:
        loss = training.loss_at(step)
        loss.backward()
        for optimizer in (training.optimizer, *training.others):
            optimizer.step()
            optimizer.zero_grad()
        return {"loss": loss.detach()}

    return Training(model, batch, liked, network, steps=300, step=step, others=[rest])


def leaps(like: str) -> Symptom:
    """Matrices called so move by a multiple of their size, and the loss ends far above."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        moved = min(m for n, m in run.moved.items() if like in n)
        worse = learns_less(0.1)(run, twin)
        return {**worse, "is": worse["is"] and moved > 3, "moved": moved, "first": run.loss_first}

    return symptom


JUMPS = Fault(
    "ind10-parts-jumps",
    must=[["update-too-large"]],
    variants=[
        Variant(
            "rate-of-a-head",
            groups_of_rates,
            broken=partial(groups_of_rates, rate=1.0),
            # The head's large weights make the trunk's gradient large, beside which that
            # of the other head is next to nothing.
            may=["exploding-gradient", "starved-pathway"],
            symptom=leaps("digit"),
        ),
        Variant(
            "rate-of-the-tables",
            rating,
            broken=partial(rating, rate=30.0),
            # Gradients are 10⁵ times what they were at the start.
            may=["exploding-gradient"],
            symptom=leaps("wh"),
        ),
    ],
)

FAULTS = [NARROW, FADES, JUMPS]
