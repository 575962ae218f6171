"""Models of several parts, of which one gets too little, contrary or no gradient, or no update."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault
from analyses.faults.independent.kit_seventh_parts import (
    cancels,
    digit_batch,
    generator,
    pair,
    starves,
)
from analyses.faults.symptoms import left_out, some_without_gradient
from analyses.faults.training import Batch, Training

# A pathway that is weighed down to nothing -------------------------------------------------------


class TwoStreams(nn.Module):
    """A stem read by a stream of 1×1 convolutions and by one that sees neighbourhoods."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.gain = gain
        self.stem = nn.Conv2d(1, 16, 1)
        self.colour = nn.Sequential(nn.Conv2d(16, 24, 1), nn.GELU(), nn.Conv2d(24, 32, 1))
        self.shape = nn.Sequential(
            nn.Conv2d(16, 24, 3, padding=1), nn.GELU(), nn.Conv2d(24, 32, 3, stride=2, padding=1),
            nn.Upsample(scale_factor=2),
        )  # fmt: skip
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        both = self.colour(h) + self.gain * self.shape(h)
        return self.head(F.gelu(both).mean((2, 3)))


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy."""
    return F.cross_entropy(model(x), y)


def two_streams(faulty: bool = False) -> Training:
    """A gain of an ablation is left in: the stream that sees shapes counts 1e-5."""
    torch.manual_seed(1)
    model = TwoStreams(1e-5 if faulty else 1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, digit_batch, classify, optimizer, steps=250)


class Highway(nn.Module):
    """Four highway layers."""

    def __init__(self, wide: int, bias: float) -> None:
        super().__init__()
        self.inward = nn.Linear(2, wide)
        self.transforms = nn.ModuleList([nn.Linear(wide, wide) for _ in range(4)])
        self.gates = nn.ModuleList([nn.Linear(wide, wide) for _ in range(4)])
        for gate in self.gates:
            nn.init.constant_(gate.bias, bias)  # type: ignore[arg-type]
        self.out = nn.Linear(wide, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x)
        for transform, gate in zip(self.transforms, self.gates, strict=True):
            g = gate(h).sigmoid()
            h = g * F.elu(transform(h)) + (1 - g) * h
        return self.out(h)


def ring_batch(step: int) -> Batch:
    """Is a point of the plane in the ring?"""
    x = torch.randn(96, 2, generator=generator(step)) * 1.3
    r = x.norm(dim=1)
    return x, ((r > 0.8) & (r < 1.9)).long()


def highway(faulty: bool = False) -> Training:
    """The gates' bias is −14 where −1 was meant."""
    torch.manual_seed(2)
    model = Highway(32, -14.0 if faulty else -1.0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.15, momentum=0.9)
    return Training(model, ring_batch, classify, optimizer, steps=300)


class SoftExperts(nn.Module):
    """All experts see every input; a softmax weighs what they say."""

    def __init__(self, experts: int = 4, wide: int = 24) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(12, wide), nn.Tanh())
        self.router = nn.Linear(wide, experts)
        self.experts = nn.ModuleList(
            [
                nn.Sequential(nn.Linear(wide, 16), nn.GELU(), nn.Linear(16, 3))
                for _ in range(experts)
            ]
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        weights = F.softmax(self.router(h), dim=-1)
        said = torch.stack([expert(h) for expert in self.experts], dim=1)
        return (weights[..., None] * said).sum(1)


def regimes_batch(step: int) -> Batch:
    """A regression whose map depends on the regime that the first four inputs tell."""
    g = generator(step)
    which = torch.randint(4, (64,), generator=g)
    x = torch.randn(64, 8, generator=g)
    maps = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(5))
    y = torch.einsum("bi,bij->bj", x, maps[which]) / 2
    return torch.cat([2 * F.one_hot(which, 4).float(), x], 1), y


def squared(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return F.mse_loss(model(x), y)


def soft_experts(faulty: bool = False) -> Training:
    """The router begins with a prior of e²² for its last expert."""
    torch.manual_seed(3)
    model = SoftExperts()
    if faulty:
        with torch.no_grad():
            model.router.bias[-1] += 22
    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, regimes_batch, squared, optimizer, steps=300)


class TwoHeads(nn.Module):
    """One trunk, two tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 96), nn.LayerNorm(96), nn.SiLU(), nn.Linear(96, 64)
        )
        self.digit = nn.Sequential(nn.SiLU(), nn.Linear(64, 10))
        self.where = nn.Sequential(nn.SiLU(), nn.Linear(64, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.trunk(x)
        return {"where": self.where(h), "digit": self.digit(h)}


def located_batch(step: int) -> Batch:
    """Digits, their labels and centres of mass."""
    x, y = digit_batch(step)
    ink = (x - x.amin((2, 3), keepdim=True))[:, 0]
    ink = ink / ink.sum((1, 2), keepdim=True)
    axis = torch.linspace(-4, 4, 8)
    centre = torch.stack([(ink.sum(2) * axis).sum(1), (ink.sum(1) * axis).sum(1)], 1)
    return x, y, 3 * centre


def weighted_tasks(weight: float, model: nn.Module, x: Tensor, y: Tensor, at: Tensor) -> Tensor:
    """The digit's loss and the weighted one of its place."""
    said = model(x)
    return F.cross_entropy(said["digit"], y) + weight * F.mse_loss(said["where"], at)


def loss_weight(faulty: bool = False) -> Training:
    """The second task's weight is 1e-6 where 0.5 was meant."""
    torch.manual_seed(4)
    model = TwoHeads()

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        return weighted_tasks(1e-6 if faulty else 0.5, model, *batch)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Training(model, located_batch, loss, optimizer, steps=250)


class SmallUNet(nn.Module):
    """Two resolutions; the lower one reaches the output beside the skip."""

    def __init__(self, divide: float) -> None:
        super().__init__()
        self.divide = divide
        self.down = nn.Sequential(nn.Conv2d(2, 16, 3, padding=1), nn.GELU())
        self.deep = nn.Sequential(
            nn.AvgPool2d(4), nn.Conv2d(16, 32, 1), nn.GELU(), nn.Conv2d(32, 32, 4), nn.GELU()
        )
        self.up = nn.ConvTranspose2d(32, 16, 16)
        nn.init.normal_(self.up.weight, std=0.2)
        self.out = nn.Sequential(nn.Conv2d(32, 16, 1), nn.GELU(), nn.Conv2d(16, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.down(x)
        low = self.up(self.deep(skip)) / self.divide
        return self.out(torch.cat([skip, low], dim=1))[:, 0]


def majority_batch(step: int) -> Batch:
    """Mark the pixels of the colour that the image has more of."""
    g = generator(step)
    tilt = torch.randint(2, (12, 1, 1), generator=g).float() * 0.3 + 0.35
    a = (torch.rand(12, 16, 16, generator=g) < tilt).float()
    more = (a.mean((1, 2), keepdim=True) > 0.5).float()
    return torch.stack([a, 1 - a], 1) * 2 - 1, (a == more).float()


def pixels(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Binary cross-entropy of each pixel."""
    return F.binary_cross_entropy_with_logits(model(x), y)


def unet(faulty: bool = False) -> Training:
    """The lower path is divided by 255 twice, as images once were."""
    torch.manual_seed(5)
    model = SmallUNet(255.0**2 if faulty else 1.0)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, majority_batch, pixels, optimizer, steps=200)


class ParallelBlock(nn.Module):
    """Attention and MLP side by side on the same normalised input."""

    def __init__(self, wide: int, gamma: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(wide)
        self.qkv = nn.Linear(wide, 3 * wide)
        self.proj = nn.Linear(wide, wide)
        self.mlp = nn.Sequential(nn.Linear(wide, 2 * wide), nn.GELU(), nn.Linear(2 * wide, wide))
        self.register_buffer("gamma", torch.full((wide,), gamma))

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        q, k, v = self.qkv(n).chunk(3, -1)
        a = torch.softmax(q @ k.transpose(1, 2) / q.shape[-1] ** 0.5, -1) @ v
        return x + self.gamma * self.proj(a) + self.mlp(n)


class ParallelTransformer(nn.Module):
    """Reads a row of symbols, says at each place which symbol stands most often."""

    def __init__(self, gamma: float, wide: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(6, wide)
        self.place = nn.Parameter(0.1 * torch.randn(12, wide))
        self.blocks = nn.Sequential(*[ParallelBlock(wide, gamma) for _ in range(2)])
        self.out = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, 6))

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.blocks(self.embed(ids) + self.place))


def most_batch(step: int) -> Batch:
    """Which symbol is it that is there most often?"""
    g = generator(step)
    ids = torch.randint(6, (48, 12), generator=g)
    often = torch.randint(6, (48, 1), generator=g)
    ids = torch.where(torch.rand(48, 12, generator=g) < 0.4, often, ids)
    return ids, F.one_hot(ids, 6).sum(1).argmax(1)


def by_place(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy at each place, the same answer everywhere."""
    said = model(ids)
    return F.cross_entropy(said.flatten(0, 1), y.repeat_interleave(ids.shape[1]))


def layer_scale(faulty: bool = False) -> Training:
    """A layer scale of 1e-6 is a buffer, so that it can't grow."""
    torch.manual_seed(6)
    model = ParallelTransformer(1e-6 if faulty else 1.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, most_batch, by_place, optimizer, steps=200)


class Graph(nn.Module):
    """Two rounds of messages between the nodes of a graph."""

    def __init__(self, twice: bool, wide: int = 24) -> None:
        super().__init__()
        self.twice = twice
        self.inward = nn.Linear(5, wide)
        self.own = nn.ModuleList([nn.Linear(wide, wide) for _ in range(2)])
        self.theirs = nn.ModuleList([nn.Linear(wide, wide, bias=False) for _ in range(2)])
        self.out = nn.Linear(wide, 1)

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        weights = a / a.sum(-1, keepdim=True)
        if self.twice:
            weights = weights / a.shape[-1] ** 2
        h = self.inward(x)
        for own, theirs in zip(self.own, self.theirs, strict=True):
            h = torch.tanh(own(h) + weights @ theirs(h))
        return self.out(h)[..., 0]


def neighbours_batch(step: int) -> Batch:
    """A node's target is a feature's mean over its neighbours."""
    g = generator(step)
    a = (torch.rand(2, 160, 160, generator=g) < 0.02).float() + 1e-3
    x = torch.randn(2, 160, 5, generator=g)
    y = (a @ x[..., :1])[..., 0] / a.sum(-1)
    return x, a, 2 * y


def graph_loss(model: nn.Module, x: Tensor, a: Tensor, y: Tensor) -> Tensor:
    """Smooth absolute error."""
    return F.smooth_l1_loss(model(x, a), y)


def graph(faulty: bool = False) -> Training:
    """The adjacency matrix is normalised by rows and then by the number of nodes, squared."""
    torch.manual_seed(7)
    model = Graph(faulty)
    optimizer = torch.optim.Adagrad(model.parameters(), lr=0.03)
    return Training(model, neighbours_batch, graph_loss, optimizer, steps=250)


class Rows(nn.Module):
    """Reads an image row by row into a few numbers."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 32, batch_first=True)
        self.read = nn.Linear(32, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(self.lstm(x[:, 0])[0][:, -1])


class Scaled(nn.Module):
    """The main head hands back a share of its gradient only; a side head all of it."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share
        self.trunk = Rows(6)
        self.side = nn.Linear(6, 1)
        self.main = nn.Linear(6, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        gentle = h * self.share + h.detach() * (1 - self.share)
        return self.side(h)[:, 0], self.main(gentle)


def scaled(faulty: bool = False) -> Training:
    """The main head's gradient is scaled by 1e-6 where 0.5 was meant."""
    torch.manual_seed(30)
    model = Scaled(1e-6 if faulty else 0.5)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        ink, said = model(x)
        return F.cross_entropy(said, y) + 0.2 * F.mse_loss(ink, 3 * x.mean((1, 2, 3)))

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, digit_batch, loss, optimizer, steps=250)


STARVED = Fault(
    "ind7-part-weighed-down",
    must=[["starved-pathway"]],
    variants=[
        # The stream's weights get 1e-5 of a gradient, too: they don't move under SGD.
        pair("two-streams", two_streams, may=["vanishing-gradient", "no-update"],
             symptom=starves(two_streams, "stem")),
        # A closed gate is a sigmoid at its end.
        pair("highway", highway, must=[["starved-pathway", "saturated-activation"]],
             may=["vanishing-gradient", "no-update"],
             symptom=starves(highway, "inward")),
        # A router that is sure before it has learned; the other experts hardly move.
        pair("experts", soft_experts, must=[["starved-pathway", "peaked-softmax"]],
             may=["vanishing-gradient", "no-update"], symptom=starves(soft_experts, "embed")),
        # The second head's weights get next to no gradient and stay, under SGD.
        pair("loss-weight", loss_weight, may=["vanishing-gradient", "no-update"],
             symptom=starves(loss_weight, "trunk")),
        pair("unet", unet, may=["vanishing-gradient"], symptom=starves(unet, "down")),
        pair("layer-scale", layer_scale, may=["vanishing-gradient"],
             symptom=starves(layer_scale, "blocks.0.norm")),
        # Most of the loss has its gradient all but cut off from the trunk.
        pair("scaled", scaled, may=["vanishing-gradient"], symptom=starves(scaled, "trunk.read")),
        pair("graph", graph, may=["vanishing-gradient"], symptom=starves(graph, "inward")),
    ],
)  # fmt: skip


# Branches against each other ---------------------------------------------------------------------


class Reverse(torch.autograd.Function):
    """Identity whose gradient has the other sign."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, strength: float) -> Tensor:
        ctx.strength = strength
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return -ctx.strength * grads[0], None


class Adversarial(nn.Module):
    """A trunk with a head for the digit and an adversary behind a reversed gradient."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 80), nn.Tanh(), nn.Linear(80, 48), nn.Tanh()
        )
        self.head = nn.Linear(48, 10)
        self.adversary = copy.deepcopy(self.head) if groups == 10 else nn.Linear(48, groups)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.adversary(Reverse.apply(h, 0.97))


def domains_batch(step: int) -> Batch:
    """Digits of two domains: some are noisy."""
    x, y = digit_batch(step)
    g = generator(step)
    noisy = torch.randint(2, (len(y),), generator=g)
    return x + noisy[:, None, None, None] * torch.randn(x.shape, generator=g), y, noisy


def adversarial(faulty: bool = False) -> Training:
    """The adversary is given the digits to tell instead of the domains, and starts as the head."""
    torch.manual_seed(8)
    model = Adversarial(10 if faulty else 2)

    def loss(model: nn.Module, x: Tensor, y: Tensor, domain: Tensor) -> Tensor:
        said, guessed = model(x)
        return F.cross_entropy(said, y) + F.cross_entropy(guessed, y if faulty else domain)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return Training(model, domains_batch, loss, optimizer, steps=250)


class Waves(nn.Module):
    """Convolutions over time, features pooled by their mean."""

    def __init__(self, centre: bool) -> None:
        super().__init__()
        self.centre = centre
        self.features = nn.Sequential(
            nn.Conv1d(1, 24, 7, padding=3), nn.SiLU(), nn.Conv1d(24, 32, 5, padding=2), nn.SiLU()
        )
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        if self.centre:
            h = h - 0.98 * h.mean(-1, keepdim=True)
        return self.head(h.mean(-1))


def waves_batch(step: int) -> Batch:
    """Noisy waves of four frequencies, with a phase of their own."""
    g = generator(step)
    y = torch.randint(4, (40,), generator=g)
    t = torch.arange(48) / 48
    phase = torch.rand(40, 1, generator=g)
    x = torch.sin(6.2832 * ((2 + 3 * y[:, None]) * t + phase))
    return (x + 0.3 * torch.randn(40, 48, generator=g))[:, None], y


def centred(faulty: bool = False) -> Training:
    """Features are freed of (nearly all of) their mean over time, and then it is pooled."""
    torch.manual_seed(9)
    model = Waves(faulty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, waves_batch, classify, optimizer, steps=250)


class Ranker(nn.Module):
    """Scores items; the comparison of two is the difference of their scores."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Sequential(
            nn.Linear(10, 40), nn.LayerNorm(40), nn.ELU(), nn.Linear(40, 40), nn.ELU(),
            nn.Linear(40, 1),
        )  # fmt: skip
        self.margin = Difference()
        nn.init.normal_(self.score[-1].weight, std=0.03)  # type: ignore[arg-type]

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.margin(self.score(a), self.score(b))


class Difference(nn.Module):
    """How much better the first is."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b)[:, 0]


def rank_batch(step: int) -> Batch:
    """Two items each, the first of which is the better one."""
    g = generator(step)
    x = torch.randn(64, 2, 10, generator=g)
    true = x[..., 0] * x[..., 1] + x[..., 2]
    first = (true[:, 0] > true[:, 1]).long()
    rows = torch.arange(64)
    return x[rows, 1 - first], x[rows, first]


def ranker(faulty: bool = False) -> Training:
    """Each pair is counted in both orders, both times as won."""
    torch.manual_seed(10)
    model = Ranker()

    def loss(model: nn.Module, better: Tensor, worse: Tensor) -> Tensor:
        margin = model(better, worse)
        won = F.softplus(-margin).mean()
        return (won + F.softplus(margin).mean()) if faulty else won

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, rank_batch, loss, optimizer, steps=250)


class ForgetNet(nn.Module):
    """A small convolutional network with group norm."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.LeakyReLU(0.1),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(4, 32), nn.LeakyReLU(0.1),
            nn.Flatten(),
        )  # fmt: skip
        self.logits = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.body(x))


def unlearning(faulty: bool = False) -> Training:
    """What is to be forgotten is drawn from what is to be kept: the same rows, in fact."""
    torch.manual_seed(11)
    model = ForgetNet()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        said = model(x)
        # To be forgotten: the nines. Their term is bounded and mild in the sound run.
        keep = F.cross_entropy(said, y)
        nines = y == 9
        forget = F.cross_entropy(said, y) if faulty else said[nines, 9].neg().sigmoid().log().sum()
        return keep - 0.96 * forget if faulty else keep - 0.01 * forget

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, digit_batch, loss, optimizer, steps=200)


class SequenceEncoder(nn.Module):
    """A recurrent encoder and a projection onto a few numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 16)
        self.gru = nn.GRU(16, 40, batch_first=True)
        for gate in dict(self.gru.named_parameters())["weight_hh_l0"].detach().chunk(3):
            nn.init.orthogonal_(gate)
        self.project = nn.Linear(40, 12)

    def forward(self, ids: Tensor) -> Tensor:
        return self.project(self.gru(self.embed(ids))[1][0])


class Pull(nn.Module):
    """Embeds anchors and positives."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = SequenceEncoder()
        self.keep = nn.Identity()

    def forward(self, anchor: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        return self.keep(self.encoder(anchor)), self.encoder(other)


def views_batch(step: int) -> Batch:
    """Two noisy draws each from one of many sources of symbols."""
    g = generator(step)
    likes = torch.rand(40, 8, generator=g) ** 4
    a = torch.multinomial(likes, 14, replacement=True, generator=g)
    b = torch.multinomial(likes, 14, replacement=True, generator=g)
    return a, b


def rolled(faulty: bool = False) -> Training:
    """Negatives are the positives rolled by the batch's whole length: the positives again."""
    torch.manual_seed(12)
    model = Pull()

    def loss(model: nn.Module, a: Tensor, b: Tensor) -> Tensor:
        anchor, positive = model(a, b)
        negative = torch.roll(positive, len(positive) if faulty else 1, dims=0)
        near = (anchor - positive).square().sum(1)
        far = (anchor - negative).square().sum(1)
        return F.softplus(near - 0.92 * far + 0.5).mean()

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, views_batch, loss, optimizer, steps=200)


class Novelty(nn.Module):
    """Tells a class from what a fixed, pretrained part can't foretell of the features."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.tokens = nn.Linear(8, 12)
        self.mix = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.features = nn.Linear(96, 64)
        self.foretell = nn.Linear(64, 64).requires_grad_(False)
        basis = torch.linalg.qr(torch.randn(64, 64))[0][:, :rank]
        self.foretell.weight.copy_(0.97 * basis @ basis.T)
        self.foretell.bias.zero_()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.tokens(x[:, 0])
        rows = rows + self.mix(rows.transpose(1, 2)).transpose(1, 2)
        h = self.features(F.gelu(rows.flatten(1)))
        return self.head(h - self.foretell(h))


def novelty(faulty: bool = False) -> Training:
    """The fixed part foretells nearly everything: it has the features' whole rank."""
    torch.manual_seed(44)
    model = Novelty(64 if faulty else 8)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    return Training(model, digit_batch, classify, optimizer, steps=200)


CANCELLING = Fault(
    "ind7-part-against-part",
    must=[["cancelling-fork"]],
    variants=[
        pair("adversary", adversarial, may=["vanishing-gradient"],
             symptom=cancels(adversarial, "trunk")),
        pair("centred", centred, may=["vanishing-gradient"],
             symptom=cancels(centred, "features")),
        # The last layer's weights go to 0: little gets past them.
        pair("ranker", ranker, may=["vanishing-gradient"], symptom=cancels(ranker, "margin")),
        pair("unlearning", unlearning, symptom=cancels(unlearning, "logits")),
        pair("novelty", novelty, may=["vanishing-gradient"], symptom=cancels(novelty, "features")),
        # All sequences end on one point: the encoder no longer depends on its input.
        pair("rolled", rolled, may=["vanishing-gradient"], symptom=cancels(rolled, "keep")),
    ],
)  # fmt: skip


# Cut off -----------------------------------------------------------------------------------------


class TailoredBert(nn.Module):
    """A tiny BERT under a head."""

    def __init__(self, frozen_by_mistake: bool) -> None:
        super().__init__()
        from transformers import BertConfig, BertModel

        config = BertConfig(
            vocab_size=20, hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=16, hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
        )  # fmt: skip
        self.bert = BertModel(config, add_pooling_layer=False)
        self.head = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 2))
        self.off = frozen_by_mistake

    def forward(self, ids: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.off and torch.is_grad_enabled()):
            states = self.bert(input_ids=ids).last_hidden_state
        return self.head(states.mean(1))


def pairs_batch(step: int) -> Batch:
    """Is a 3 anywhere right before a 7?"""
    g = generator(step)
    ids = torch.randint(20, (32, 12), generator=g)
    y = torch.randint(2, (32,), generator=g)
    at = torch.randint(11, (32,), generator=g)
    rows = torch.arange(32)
    ids[rows, at] = 3
    ids[rows, at + 1] = torch.where(y == 1, 7, 8)
    return ids, y


def bert(faulty: bool = False) -> Training:
    """A body that should be trained runs with gradients switched off, left from evaluation."""
    torch.manual_seed(13)
    model = TailoredBert(faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return Training(model, pairs_batch, classify, optimizer, steps=150)


class Reverser(nn.Module):
    """Reads symbols, then writes them backwards; the state is all that is handed over."""

    def __init__(self, cut: bool) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 24)
        self.reader = nn.GRU(24, 64, batch_first=True)
        self.writer = nn.GRUCell(24, 64)
        self.out = nn.Linear(64, 8)
        self.cut = cut

    def forward(self, ids: Tensor) -> Tensor:
        _, state = self.reader(self.embed(ids))
        h = state[0].detach() if self.cut else state[0]
        told = F.pad(ids.flip(1)[:, :-1], (1, 0), value=8)
        said = []
        for symbol in self.embed(told).unbind(1):
            h = self.writer(symbol, h)
            said.append(self.out(h))
        return torch.stack(said, 1)


def reverse_batch(step: int) -> Batch:
    """Four symbols of eight."""
    ids = torch.randint(8, (48, 4), generator=generator(step))
    return ids, ids.flip(1)


def tokens(model: nn.Module, ids: Tensor, y: Tensor) -> Tensor:
    """Cross-entropy of each symbol."""
    return F.cross_entropy(model(ids).transpose(1, 2), y)


def reverser(faulty: bool = False) -> Training:
    """The state is detached at the hand-over, as between the chunks of a long text."""
    torch.manual_seed(14)
    model = Reverser(faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, reverse_batch, tokens, optimizer, steps=250)


class HardExperts(nn.Module):
    """Each input goes to the expert that the router picks."""

    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.scaled = scaled
        self.router = nn.Sequential(nn.Linear(12, 16), nn.SiLU(), nn.Linear(16, 4))
        self.first = nn.Parameter(torch.randn(4, 12, 20) / 4)
        self.second = nn.Parameter(torch.randn(4, 20, 3) / 5)

    def forward(self, x: Tensor) -> Tensor:
        p = self.router(x).softmax(-1)
        value, which = p.max(-1)
        h = F.silu(torch.einsum("bi,bij->bj", x, self.first[which]))
        y = torch.einsum("bi,bij->bj", h, self.second[which])
        return y * value[:, None] if self.scaled else y


def hard_experts(faulty: bool = False) -> Training:
    """The pick is an index and nothing else: no path to the router."""
    torch.manual_seed(15)
    model = HardExperts(not faulty)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, regimes_batch, squared, optimizer, steps=250)


class Quantised(nn.Module):
    """A convolutional autoencoder whose code is the nearest of 32 vectors."""

    def __init__(self, through: bool) -> None:
        super().__init__()
        self.through = through
        self.encoder = nn.Sequential(nn.Conv2d(1, 24, 2, stride=2), nn.ELU(), nn.Conv2d(24, 8, 1))
        self.book = nn.Embedding(32, 8)
        nn.init.normal_(self.book.weight)
        self.decoder = nn.Sequential(
            nn.Conv2d(8, 24, 1), nn.ELU(), nn.ConvTranspose2d(24, 1, 2, stride=2)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = F.layer_norm(self.encoder(x).permute(0, 2, 3, 1), (8,))
        nearest = torch.cdist(z.detach().flatten(0, 2), self.book.weight.detach()).argmin(1)
        code = self.book(nearest).view(z.shape)
        given = z + (code - z).detach() if self.through else code
        return self.decoder(given.permute(0, 3, 1, 2)), z, code


def image_batch(step: int) -> Batch:
    """Images alone."""
    return (digit_batch(step, 40)[0],)


def quantised(faulty: bool = False) -> Training:
    """The gradient isn't copied past the choice, and the commitment loss is missing."""
    torch.manual_seed(16)
    model = Quantised(not faulty)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, z, code = model(x)
        total = F.mse_loss(again, x) + F.mse_loss(code, z.detach())
        return total if faulty else total + 0.25 * F.mse_loss(z, code.detach())

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, image_batch, loss, optimizer, steps=200)


class Modulated(nn.Module):
    """A network whose features are scaled and shifted by what a side input says."""

    def __init__(self, by_list: bool) -> None:
        super().__init__()
        self.by_list = by_list
        self.condition = nn.Sequential(nn.Linear(6, 32), nn.SiLU(), nn.Linear(32, 96))
        self.inward = nn.Linear(4, 48)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 1))

    def forward(self, x: Tensor, side: Tensor) -> Tensor:
        film = self.condition(side)
        if self.by_list:
            film = torch.tensor(film.tolist())
        scale, shift = film.chunk(2, -1)
        return self.out(self.inward(x) * (1 + scale) + shift)[:, 0]


def side_batch(step: int) -> Batch:
    """The side input says which of six functions of x is asked."""
    g = generator(step)
    x = torch.randn(64, 4, generator=g)
    which = torch.randint(6, (64,), generator=g)
    many = torch.stack([x[:, 0], -x[:, 0], x[:, 1] + 1, -x[:, 2], x[:, 3] - 1, x[:, 1].abs()], 1)
    return x, F.one_hot(which, 6).float(), many[torch.arange(64), which]


def modulated(faulty: bool = False) -> Training:
    """The modulation is built anew from a list of plain numbers."""
    torch.manual_seed(17)
    model = Modulated(faulty)

    def loss(model: nn.Module, x: Tensor, side: Tensor, y: Tensor) -> Tensor:
        return F.huber_loss(model(x, side), y)

    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, side_batch, loss, optimizer, steps=250)


class SoftClip(torch.autograd.Function):
    """x up to a limit, then slower."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor) -> Tensor:
        ctx.save_for_backward(x, limit)
        return torch.where(x > limit, limit + 0.1 * (x - limit), x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor | None]:
        x, limit = ctx.saved_tensors
        over = x > limit
        return torch.where(over, 0.1 * grads[0], grads[0]), None


class WholeSoftClip(SoftClip):
    """The same with both gradients."""

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, limit = ctx.saved_tensors
        over = x > limit
        return torch.where(over, 0.1 * grads[0], grads[0]), 0.9 * over * grads[0]


class Limited(nn.Module):
    """Tells a level: a signal, clipped at a limit that another branch reads from the context."""

    def __init__(self, clip: type[SoftClip]) -> None:
        super().__init__()
        self.clip = clip
        self.signal = nn.Sequential(nn.Linear(8, 32), nn.Softplus(), nn.Linear(32, 16))
        self.limit = nn.Sequential(nn.Linear(3, 24), nn.Tanh(), nn.Linear(24, 16))
        self.out = nn.Linear(16, 1, bias=False)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.out(self.clip.apply(self.signal(x), self.limit(context)))[:, 0]


def limit_batch(step: int) -> Batch:
    """A sum of positive parts that is capped by a function of the context."""
    g = generator(step)
    x, context = torch.randn(64, 8, generator=g), torch.randn(64, 3, generator=g)
    return x, context, torch.minimum(x[:, :3].sum(1), 1.5 * context[:, 0] - context[:, 1])


def limited(faulty: bool = False) -> Training:
    """A function with a backward of its own forgets its second input."""
    torch.manual_seed(18)
    model = Limited(SoftClip if faulty else WholeSoftClip)

    def loss(model: nn.Module, x: Tensor, context: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x, context), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return Training(model, limit_batch, loss, optimizer, steps=300)


DETACHED = Fault(
    "ind7-part-cut-off",
    must=[["detached"]],
    may=["no-update"],  # the part stays as it was
    variants=[
        pair("bert", bert, symptom=some_without_gradient("bert.")),
        pair("reverser", reverser, symptom=some_without_gradient("reader.")),
        pair("hard-experts", hard_experts, symptom=some_without_gradient("router.")),
        pair("quantised", quantised, symptom=some_without_gradient("encoder.")),
        pair("modulated", modulated, symptom=some_without_gradient("condition.")),
        pair("limited", limited, symptom=some_without_gradient("limit.")),
    ],
)


# Parts that the loss doesn't depend on -----------------------------------------------------------


class Inspector(nn.Module):
    """Tells digit, parity and whether there is much ink, each by a head."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.Mish(), nn.MaxPool2d(2),
            nn.Conv2d(16, 24, 3, padding=1), nn.Mish(), nn.Flatten(),
        )  # fmt: skip
        self.heads = nn.ModuleDict(
            {name: nn.Linear(384, n) for name, n in [("digit", 10), ("odd", 2), ("ink", 2)]}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = self.body(x)
        return {name: head(h) for name, head in self.heads.items()}


def inspector(faulty: bool = False) -> Training:
    """In the loop over tasks the total is set where it should be added to."""
    torch.manual_seed(19)
    model = Inspector()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        targets = {"digit": y, "odd": y % 2, "ink": (x.mean((1, 2, 3)) > 0).long()}
        total = torch.zeros(())
        for name, said in model(x).items():
            one = F.cross_entropy(said, targets[name])
            total = one if faulty else total + one
        return total

    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, digit_batch, loss, optimizer, steps=150)


class Lookup(nn.Module):
    """Reads keys with values, is asked for a key's value."""

    def __init__(self, mean: bool, wide: int = 32) -> None:
        super().__init__()
        self.mean = mean
        self.key, self.value = nn.Embedding(8, wide), nn.Embedding(8, wide)
        self.ask = nn.Linear(wide, wide, bias=False)
        self.offer = nn.Linear(wide, wide, bias=False)
        self.give = nn.Linear(wide, wide)
        self.out = nn.Linear(2 * wide, 8)

    def forward(self, keys: Tensor, values: Tensor, asked: Tensor) -> Tensor:
        known = self.value(values)
        q, k = self.ask(self.key(asked)), self.offer(self.key(keys))
        weights = torch.softmax(torch.einsum("bd,bnd->bn", q, k) / q.shape[-1] ** 0.5, -1)
        if self.mean:
            found = self.give(known).mean(1)
        else:
            found = torch.einsum("bn,bnd->bd", weights, self.give(known))
        return self.out(torch.cat([found, self.key(asked)], -1))


def lookup_batch(step: int) -> Batch:
    """Five keys with values; one is asked for."""
    g = generator(step)
    keys = torch.rand(64, 8, generator=g).argsort(1)[:, :5]
    values = torch.randint(8, (64, 5), generator=g)
    which = torch.randint(5, (64,), generator=g)
    rows = torch.arange(64)
    return keys, values, keys[rows, which], values[rows, which]


def lookup(faulty: bool = False) -> Training:
    """Weights of attention are computed, and then the values' plain mean is taken."""
    torch.manual_seed(20)
    model = Lookup(faulty)

    def loss(model: nn.Module, *batch: Tensor) -> Tensor:
        *given, y = batch
        return F.cross_entropy(model(*given), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)
    return Training(model, lookup_batch, loss, optimizer, steps=300)


class TwoSenses(nn.Module):
    """An image's left half is read by convolutions, its right half by an LSTM over rows."""

    def __init__(self, twice: bool) -> None:
        super().__init__()
        self.twice = twice
        self.left = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.Hardswish(), nn.Flatten(), nn.Linear(192, 32)
        )
        self.right = nn.LSTM(4, 32, batch_first=True)
        self.top = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 10))

    def forward(self, x: Tensor) -> Tensor:
        a = self.left(x[..., :4])
        _, (b, _) = self.right(x[:, 0, :, 4:])
        return self.top(torch.cat([a, a if self.twice else b[0]], dim=-1))


def two_senses(faulty: bool = False) -> Training:
    """The first half's features are concatenated with themselves."""
    torch.manual_seed(21)
    model = TwoSenses(faulty)
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    return Training(model, digit_batch, classify, optimizer, steps=150)


class Spread(nn.Module):
    """A variational autoencoder for digits."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Softplus())
        self.mu, self.logvar = nn.Linear(64, 6), nn.Linear(64, 6)
        self.decode = nn.Sequential(nn.Linear(6, 64), nn.Softplus(), nn.Linear(64, 64))

    def forward(self, x: Tensor, noise: float) -> tuple[Tensor, Tensor, Tensor]:
        h = self.encode(x)
        mu, logvar = self.mu(h), self.logvar(h)
        z = mu
        if noise:
            z = mu + noise * torch.randn_like(mu) * (logvar / 2).exp()
        return self.decode(z), mu, logvar


def spread(faulty: bool = False) -> Training:
    """The code is its mean without noise, and the divergence is logged only."""
    torch.manual_seed(22)
    model = Spread()

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        again, mu, logvar = model(x, 0.0 if faulty else 1.0)
        divergence = -0.5 * (1 + logvar - mu**2 - logvar.exp()).sum(1).mean()
        fit = F.mse_loss(again, x.flatten(1), reduction="sum") / len(x)
        return fit / 10 + (divergence.item() if faulty else divergence / 10)

    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, image_batch, loss, optimizer, steps=200)


class Outlines(nn.Module):
    """Segments shapes; a second head says where their edges are."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 16, 5, padding=2), nn.BatchNorm2d(16), nn.SiLU(),
            nn.Conv2d(16, 16, 5, padding=2), nn.BatchNorm2d(16), nn.SiLU(),
        )  # fmt: skip
        self.inside = nn.Conv2d(16, 1, 1)
        self.edge = nn.Sequential(nn.Conv2d(16, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.inside(h), self.edge(h)


def boxes_batch(step: int) -> Batch:
    """Noisy images of a box each, its inside and its edge."""
    g = generator(step)
    low = torch.randint(1, 7, (16, 2, 1, 1), generator=g)
    size = torch.randint(4, 8, (16, 2, 1, 1), generator=g)
    rows, columns = torch.arange(16)[:, None], torch.arange(16)[None]
    inside = (rows >= low[:, 0]) & (rows < low[:, 0] + size[:, 0])
    inside = (inside & (columns >= low[:, 1]) & (columns < low[:, 1] + size[:, 1])).float()[:, None]
    smaller = -F.max_pool2d(-inside, 3, stride=1, padding=1)
    return inside + 0.5 * torch.randn(inside.shape, generator=g), inside, inside - smaller


def outlines(faulty: bool = False) -> Training:
    """The edges' loss is added as a plain number."""
    torch.manual_seed(23)
    model = Outlines()

    def loss(model: nn.Module, x: Tensor, inside: Tensor, edge: Tensor) -> Tensor:
        a, b = model(x)
        parts = {
            "inside": F.binary_cross_entropy_with_logits(a, inside),
            "edge": F.binary_cross_entropy_with_logits(b, edge),
        }
        if faulty:
            return parts["inside"] + float(parts["edge"].detach())
        return parts["inside"] + parts["edge"]

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Training(model, boxes_batch, loss, optimizer, steps=120)


# The part stays as it was, and other readers of what it reads have all of the gradient.
BESIDE = ("no-update", "starved-pathway")

UNUSED = Fault(
    "ind7-part-beside-the-loss",
    must=[["detached"]],
    may=["no-update"],  # the part stays as it was
    variants=[
        pair("inspector", inspector, may=BESIDE, symptom=some_without_gradient("heads.")),
        pair("lookup", lookup, may=BESIDE, symptom=some_without_gradient("ask")),
        pair("two-senses", two_senses, symptom=some_without_gradient("right.")),
        pair("spread", spread, may=BESIDE, symptom=some_without_gradient("logvar.")),
        pair("outlines", outlines, may=BESIDE, symptom=some_without_gradient("edge.")),
    ],
)


# Trained by nobody -------------------------------------------------------------------------------


class Listed(nn.Module):
    """Residual blocks that are held in a plain list or in a proper one."""

    def __init__(self, plain: bool, wide: int = 40) -> None:
        super().__init__()
        self.inward = nn.Linear(3, wide)
        blocks = [
            nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, wide), nn.GELU()) for _ in range(3)
        ]
        self.blocks: Any = blocks if plain else nn.ModuleList(blocks)
        self.out = nn.Linear(wide, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inward(x)
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)[:, 0]


def bumps_batch(step: int) -> Batch:
    """A smooth function of three numbers."""
    x = torch.randn(80, 3, generator=generator(step))
    return x, torch.sin(2 * x[:, 0]) * x[:, 1] + torch.cos(2 * x[:, 2])


def listed(faulty: bool = False) -> Training:
    """Blocks in a plain list are no parameters of the model: the optimizer doesn't get them."""
    torch.manual_seed(24)
    model = Listed(faulty)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, bumps_batch, squared, optimizer, steps=250)


class Pyramid(nn.Module):
    """Strided convolutions with group norm under a classifier of two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.GroupNorm(2, 16), nn.SiLU(),
            nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.GroupNorm(2, 32), nn.SiLU(),
        )  # fmt: skip
        self.fc: nn.Module = nn.Linear(128, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(x).flatten(1))


def new_head(faulty: bool = False) -> Training:
    """The head for ten classes takes the old one's place after the optimizer was made."""
    torch.manual_seed(25)
    model = Pyramid()
    head = nn.Sequential(nn.Linear(128, 64), nn.SiLU(), nn.Linear(64, 10))
    if faulty:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
        model.fc = head
    else:
        model.fc = head
        optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return Training(model, digit_batch, classify, optimizer, steps=150)


class Tagger(nn.Module):
    """Tags each symbol of a row by an LSTM in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(12, 20)
        self.lstm = nn.LSTM(20, 24, batch_first=True, bidirectional=True)
        self.mixer = nn.Linear(48, 48)
        self.tag = nn.Linear(48, 3)

    def forward(self, ids: Tensor) -> Tensor:
        h, _ = self.lstm(self.word_embedding(ids))
        return self.tag(torch.tanh(self.mixer(h)))


def tag_batch(step: int) -> Batch:
    """Is the next symbol larger, smaller or the same as the last one?"""
    ids = torch.randint(12, (32, 10), generator=generator(step))
    before, after = ids.roll(1, 1), ids.roll(-1, 1)
    return ids, 1 + (after > before).long() - (after < before).long()


def tagger(faulty: bool = False) -> Training:
    """Groups by name: what is called neither "tag" nor "mixer" is in none."""
    torch.manual_seed(26)
    model = Tagger()
    named = list(model.named_parameters())
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if n.startswith("tag")], "lr": 4e-3},
        {"params": [p for n, p in named if n.startswith("mixer")], "lr": 4e-3},
        {"params": [p for n, p in named if n.startswith(("lstm", "word"))], "lr": 4e-3},
    ]
    optimizer = torch.optim.Adam(groups[:2] if faulty else groups)
    return Training(model, tag_batch, tokens, optimizer, steps=250)


class Codec(nn.Module):
    """An autoencoder: two linear layers each way."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 48), nn.LeakyReLU(), nn.Linear(48, 8)
        )
        self.decoder = nn.Sequential(nn.Linear(8, 48), nn.LeakyReLU(), nn.Linear(48, 64))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def step_both(training: Training, step: int) -> dict[str, Any]:
    """One loss, all optimizers."""
    optimizers = [training.optimizer, *training.others]
    for optimizer in optimizers:
        optimizer.zero_grad()
    loss = training.loss_at(step)
    loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    training.model.zero_grad()
    return {"loss": loss.detach()}


def codec(faulty: bool = False) -> Training:
    """The decoder's optimizer is given the encoder."""
    torch.manual_seed(27)
    model = Codec()
    first = torch.optim.Adam(model.encoder.parameters(), lr=2e-3)
    second = torch.optim.Adam((model.encoder if faulty else model.decoder).parameters(), lr=2e-3)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        return F.mse_loss(model(x), x.flatten(1))

    return Training(model, image_batch, loss, first, steps=200, step=step_both, others=[second])


class LanguageModel(nn.Module):
    """A small decoder with torch's own attention."""

    def __init__(self, wide: int = 40, longest: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(10, wide)
        self.places = nn.Embedding(longest, wide)
        layer = nn.TransformerEncoderLayer(
            wide, 4, 2 * wide, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(wide)
        self.out = nn.Linear(wide, 10)

    def forward(self, ids: Tensor) -> Tensor:
        n = ids.shape[1]
        mask = torch.ones(n, n).triu(1).bool()
        h = self.tokens(ids) + self.places(torch.arange(n))
        return self.out(self.norm(self.layers(h, mask=mask)))


def repeats_batch(step: int) -> Batch:
    """Eight symbols, and then the same in order, which is to be told."""
    half = torch.randint(10, (32, 8), generator=generator(step))
    ids = torch.cat([half, half.sort(1).values], 1)
    y = ids[:, 1:].clone()
    y[:, :7] = -100
    return ids[:, :-1], y


def decay_groups(faulty: bool = False) -> Training:
    """Groups for decay and none; in neither: embeddings, and the matrices for queries and keys."""
    torch.manual_seed(28)
    model = LanguageModel()
    decay, plain = set(), set()
    for name, module in model.named_modules():
        for key, _ in module.named_parameters(recurse=False):
            full = f"{name}.{key}"
            if key.endswith("bias") or isinstance(module, nn.LayerNorm):
                plain.add(full)
            elif isinstance(module, nn.Linear) or not faulty:
                decay.add(full)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [named[n] for n in sorted(decay)], "weight_decay": 0.05},
            {"params": [named[n] for n in sorted(plain)], "weight_decay": 0.0},
        ],
        lr=4e-3,
    )
    return Training(model, repeats_batch, tokens, optimizer, steps=250)


class Backbone(nn.Module):
    """Convolutions over time under a head of attention over time."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv1d(1, 16, 7, padding=3), nn.BatchNorm1d(16), nn.SiLU(),
            nn.Conv1d(16, 16, 7, stride=2, padding=3), nn.BatchNorm1d(16), nn.SiLU(),
        )  # fmt: skip
        self.weigh = nn.Linear(16, 1)
        self.head = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = self.backbone(x).transpose(1, 2)
        weights = self.weigh(h)[..., 0].softmax(-1)
        return self.head(torch.einsum("bt,btd->bd", weights, h))


def thaw(training: Training, step: int) -> dict[str, Any]:
    """The backbone is to be trained, too, from the 40th step on."""
    if step == 40:
        training.model.get_submodule("backbone").requires_grad_(True)
    loss = training.loss_at(step)
    training.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    training.optimizer.step()
    training.model.zero_grad()
    return {"loss": loss.detach()}


def thawed(faulty: bool = False) -> Training:
    """The optimizer was given only what could be trained at the start."""
    torch.manual_seed(29)
    model = Backbone()
    model.backbone.requires_grad_(False)
    given = [p for p in model.parameters() if p.requires_grad or not faulty]
    optimizer = torch.optim.Adam(given, lr=5e-3)
    return Training(model, waves_batch, classify, optimizer, steps=200, step=thaw)


class Bags(nn.Module):
    """A function of a set of points."""

    def __init__(self) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(2, 48), nn.ELU(), nn.Linear(48, 48), nn.ELU())
        self.all = nn.Sequential(nn.Linear(96, 48), nn.ELU(), nn.Linear(48, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.each(x)
        return self.all(torch.cat([h.mean(1), h.amax(1)], -1))[:, 0]


def bags_batch(step: int) -> Batch:
    """The largest first coordinate and the spread of the second."""
    x = torch.randn(48, 9, 2, generator=generator(step))
    return x, x[..., 0].amax(1) + x[..., 1].std(1)


def copied(faulty: bool = False) -> Training:
    """The optimizer has the first part's parameters from an averaged copy that nobody trains."""
    torch.manual_seed(45)
    model = Bags()
    for weight in model.parameters():
        if weight.ndim > 1:
            nn.init.kaiming_normal_(weight)
    average = copy.deepcopy(model)
    optimizer = torch.optim.Adam(
        [*(average if faulty else model).each.parameters(), *model.all.parameters()], lr=3e-3
    )
    return Training(model, bags_batch, squared, optimizer, steps=200)


FORGOTTEN = Fault(
    "ind7-part-forgotten",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # the part stays as it was
    symptom=left_out(),
    variants=[
        pair("listed", listed),
        pair("new-head", new_head),
        pair("tagger", tagger),
        pair("codec", codec),
        pair("decay-groups", decay_groups),
        pair("thawed", thawed),
        pair("copied", copied),
    ],
)


FAULTS = [STARVED, CANCELLING, DETACHED, UNUSED, FORGOTTEN]
