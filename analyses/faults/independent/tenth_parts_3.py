"""Branches that get next to none of the gradient, and branches that take each other's away."""

from __future__ import annotations

import copy
from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_tenth_d import digits, draw, source, waves
from analyses.faults.observe import Observed
from analyses.faults.symptoms import branch_starved
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


def classes(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


class Scaled(nn.Module):
    """A depthwise block whose branch has a fixed scale for each channel."""

    gamma: Tensor

    def __init__(self, wide: int, scale: float) -> None:
        super().__init__()
        self.mix = nn.Conv2d(wide, wide, 3, padding=1, groups=wide)
        self.norm = nn.GroupNorm(1, wide)
        self.up, self.down = nn.Conv2d(wide, 2 * wide, 1), nn.Conv2d(2 * wide, wide, 1)
        self.register_buffer("gamma", torch.full((wide, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gamma * self.down(F.gelu(self.up(self.norm(self.mix(x)))))


def scaled_blocks(scale: float = 1.0) -> Training:
    """The scales are a buffer: what they start with is what they stay."""
    torch.manual_seed(51)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 2, stride=2),
        Scaled(24, scale),
        Scaled(24, scale),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    x, y = digits()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, draw(32, x.view(-1, 1, 8, 8), y, seed=1), classes, optimizer, steps=150)


class Fused(nn.Module):
    """A narrow and a wide reading of the same features, the second behind a gate."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.stem = nn.Linear(1, 16)
        self.first = nn.Sequential(nn.Conv1d(16, 24, 3, padding=1), nn.SiLU())
        self.second = nn.Sequential(nn.Conv1d(16, 24, 9, padding=4), nn.SiLU())
        self.gate = nn.Linear(16, 24)
        nn.init.constant_(self.gate.bias, bias)
        self.head = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        opened = torch.sigmoid(self.gate(h)).transpose(1, 2)
        h = h.transpose(1, 2)
        both = opened * self.second(h) + self.first(h)
        return self.head(both.mean(2))


def fused(bias: float = 0.0) -> Training:
    """The gate starts half open, or so far closed that it hardly can be opened."""
    torch.manual_seed(52)
    model = Fused(bias)
    x, kind, _ = waves(800, 24, 6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, draw(48, x, kind, seed=2), classes, optimizer, steps=300, every=10)


class Grammar(nn.Module):
    """A small causal transformer: the next word, and of which of three kinds the text is."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(9, 32), nn.Embedding(16, 32)
        self.layer = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True)
        self.next, self.kind = nn.Linear(32, 9), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1])
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        h = self.layer(h, src_mask=mask)
        kind = self.kind(h)
        return self.next(h), kind


def texts(step: int) -> Batch:
    """Words that go round by 1, 2 or 4 of 9, with some slips."""
    g = source(step, 53)
    kind = torch.randint(3, (32,), generator=g)
    start = torch.randint(9, (32, 1), generator=g)
    x = (start + (2 ** kind[:, None]) * torch.arange(13)) % 9
    slips = torch.rand(32, 13, generator=g) < 0.1
    return torch.where(slips, torch.randint(9, (32, 13), generator=g), x), kind


def next_and_kind(net: Grammar, x: Tensor, kind: Tensor, *, weight: float) -> Tensor:
    following, guess = net(x[:, :-1])
    main = F.cross_entropy(following.transpose(1, 2), x[:, 1:])
    return main + weight * F.cross_entropy(guess[:, -1], kind)


def side_task(weight: float = 0.5) -> Training:
    """The kind of text counts for half as much as the words, or for next to nothing."""
    torch.manual_seed(53)
    model = Grammar()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    loss = partial(next_and_kind, weight=weight)
    return Training(model, texts, loss, optimizer, steps=250)


class Sketch(nn.Module):
    """An image's code, from which the image is redrawn and its class is told."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16), nn.LayerNorm(16)
        )
        self.redraw = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64))
        self.tell = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 10))


def drawn_and_told(net: Sketch, x: Tensor, y: Tensor, *, pixels: float, reduction: str) -> Tensor:
    code = net.encode(x)
    told = F.cross_entropy(net.tell(code), y)
    return told + F.mse_loss(net.redraw(code), pixels * x, reduction=reduction)


def redrawing(pixels: float = 1.0, reduction: str = "mean") -> Training:
    """Errors of pixels in 0..1 on average; or of pixels in 0..255, summed over the batch."""
    torch.manual_seed(54)
    model = Sketch()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    loss = partial(drawn_and_told, pixels=pixels, reduction=reduction)
    return Training(model, draw(128, *digits(), seed=4), loss, optimizer, steps=250)


class Mixed(nn.Module):
    """Four experts, all asked, weighted by a router."""

    def __init__(self, favour: float) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(64, 48), nn.LayerNorm(48), nn.GELU())
        self.router = nn.Linear(48, 4)
        with torch.no_grad():
            self.router.bias[-1] += favour
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 10)) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        weights = F.softmax(self.router(h), -1)
        return torch.einsum("be,ebc->bc", weights, torch.stack([e(h) for e in self.experts]))


def mixture(favour: float = 0.0) -> Training:
    """No expert is preferred at the start, or the last one is, beyond measure."""
    torch.manual_seed(55)
    model = Mixed(favour)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return Training(model, draw(64, *digits(), seed=5), classes, optimizer, steps=200)


STARVED = Fault(
    "ind10-parts-starved",
    must=[["starved-pathway"]],
    symptom=branch_starved(1e-4),
    variants=[
        Variant("scales-in-a-buffer", scaled_blocks, broken=partial(scaled_blocks, scale=1e-6)),
        Variant(
            "gate-closed",
            fused,
            broken=partial(fused, bias=-16.0),
            must=[["starved-pathway", "saturated-activation"]],
            # What is behind the gate does not move.
            may=["no-update"],
        ),
        Variant("side-task-forgotten", side_task, broken=partial(side_task, weight=1e-6)),
        Variant(
            "sum-against-mean",
            redrawing,
            broken=partial(redrawing, pixels=255.0, reduction="sum"),
        ),
        Variant(
            "one-expert-favoured",
            mixture,
            broken=partial(mixture, favour=30.0),
            must=[["starved-pathway", "peaked-softmax"]],
            # The router and the other experts stay where they were.
            may=["no-update"],
        ),
    ],
)


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *given: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * given[0], None


class Reverse(nn.Module):
    """Turns the gradient round."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        out = _Reverse.apply(x, self.by)
        assert isinstance(out, Tensor)
        return out


class Domains(nn.Module):
    """Digits from two cameras; an adversary behind a gradient reversal."""

    def __init__(self, by: float, copied: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 32), nn.GELU())
        self.head = nn.Sequential(nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 10))
        self.reverse = Reverse(by)
        small = nn.Sequential(nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 2))
        self.adversary = copy.deepcopy(self.head) if copied else small

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        told = self.adversary(self.reverse(h))
        return self.head(h), told


def adversarial(net: Domains, x: Tensor, y: Tensor, camera: Tensor) -> Tensor:
    guess, told = net(x)
    return F.cross_entropy(guess, y) + F.cross_entropy(told, camera)


def cameras(mistaken: bool = False) -> Training:
    """The adversary guesses the camera; or, a copy of the head, it is given the digits."""
    torch.manual_seed(61)
    model = Domains(0.97 if mistaken else 0.1, mistaken)
    x, y = digits()
    camera = torch.randint(2, y.shape, generator=source(0, 61))
    x = torch.where(camera[:, None] == 1, 1 - x, x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    batch = draw(64, x, y, y if mistaken else camera, seed=6)
    return Training(model, batch, adversarial, optimizer, steps=250)


class Likeness(nn.Module):
    """An embedding and two distances."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.LeakyReLU(0.1),
            nn.Flatten(),
            nn.Linear(256, 16),
        )
        self.near, self.far = nn.PairwiseDistance(), nn.PairwiseDistance()


def triplets(net: Likeness, x: Tensor, other: Tensor, *, shift: int) -> Tensor:
    anchor, positive = net.embed(x), net.embed(other)
    negative = positive.roll(shift, 0)
    gap = net.near(anchor, positive) - net.far(anchor, negative)
    return (gap + 1.0).clamp(min=0).mean()


def same_class(shift: int = 1) -> Training:
    """Two images of each of ten digits; as the negative, another's or, by a slip, one's own."""
    torch.manual_seed(62)
    model = Likeness()
    x, y = digits()
    rows = [torch.nonzero(y == c)[:, 0] for c in range(10)]
    x = x.view(-1, 1, 8, 8)

    def batch(step: int) -> Batch:
        g = source(step, 7)
        pairs = torch.stack([r[torch.randint(len(r), (4, 2), generator=g)] for r in rows], 1)
        first, second = pairs.flatten(0, 1).unbind(-1)
        return x[first], x[second]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, batch, partial(triplets, shift=shift), optimizer, steps=200)


class Steering(nn.Module):
    """Where on a picture the mark is, from -1 on the left to 1 on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.SiLU(),
            nn.AvgPool2d(2),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.SiLU(),
        )
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(288, 24), nn.Tanh(), nn.Linear(24, 1))


def marks(step: int) -> Batch:
    g = source(step, 8)
    y = 2 * torch.rand(48, 1, generator=g) - 1
    across = torch.linspace(-1, 1, 12)
    height = 2 * torch.rand(48, 1, 1, generator=g) - 1
    x = torch.exp(-8 * ((across - y)[:, None, :] ** 2 + (across[:, None] - height) ** 2))
    return (x + 0.1 * torch.randn(48, 12, 12, generator=g))[:, None], y


def mirrored(net: Steering, x: Tensor, y: Tensor, *, turned: bool) -> Tensor:
    features = net.trunk(x)
    other = features.flip(-1) if turned else features
    return F.mse_loss(net.head(features), y) + F.mse_loss(net.head(other), -y)


def steering(turned: bool = True) -> Training:
    """Features and label are mirrored for a second example, or the label alone is."""
    torch.manual_seed(63)
    model = Steering()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, marks, partial(mirrored, turned=turned), optimizer, steps=200)


def take_away(agreement: float) -> Symptom:
    """At a tensor that modules share the sum of gradients is typically that small a part."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        def typical(seen: Observed) -> float:
            return median(min(c.agreement, default=9.0) for c in seen.checkpoints)

        assert twin is not None
        found = {"agreement": typical(run), "twin": typical(twin)}
        worse = run.loss_last > twin.loss_last
        return {"is": worse and found["agreement"] <= agreement < found["twin"], **found}

    return symptom


CANCELLING = Fault(
    "ind10-parts-cancel",
    must=[["cancelling-fork"]],
    symptom=take_away(0.1),
    variants=[
        # What is left for the trunk is far less than what the heads have.
        Variant(
            "adversary-of-itself",
            cameras,
            broken=partial(cameras, mistaken=True),
            may=["vanishing-gradient"],
        ),
        # Nothing at all is left for the embedding, which stays what it was.
        Variant(
            "negative-is-positive",
            same_class,
            broken=partial(same_class, shift=0),
            may=["no-update", "detached"],
        ),
        Variant(
            "label-mirrored-alone",
            steering,
            broken=partial(steering, turned=False),
            may=["vanishing-gradient"],
        ),
    ],
)

FAULTS = [STARVED, CANCELLING]
