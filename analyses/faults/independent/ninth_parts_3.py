"""Branches that get next to nothing of what their input gets, or that undo each other."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_d import chance, digit_batches, digits, picture_batches
from analyses.faults.observe import Observed
from analyses.faults.training import Batch, Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(model(x), y)


def starved(limit: float = 1e-4) -> Symptom:
    """Of the modules that read one tensor, some module's gradient is typically that small."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        mine, theirs = (
            median(min(c.edge_shares, default=1.0) for c in r.checkpoints) for r in (run, twin)
        )
        return {"is": mine <= limit and theirs > 20 * limit, "share": mine, "twin": theirs}

    return symptom


def cancels(limit: float = 1e-3) -> Symptom:
    """What the modules that read one tensor send back adds up to that little, typically."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        mine, theirs = (
            median(min(c.agreement, default=9.0) for c in r.checkpoints) for r in (run, twin)
        )
        return {"is": mine <= limit and theirs > 0.2, "agreement": mine, "twin": theirs}

    return symptom


def left_alone(like: str) -> Symptom:
    """The gradient of a part's matrices is zero but for rounding, the twin's isn't."""

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        assert twin is not None
        mine, theirs = (
            median(
                max(n for k, n in c.norms.items() if like in k) / max(c.norms.values())
                for c in r.checkpoints
            )
            for r in (run, twin)
        )
        worse = {"loss": run.loss_last, "to": twin.loss_last}
        return {"is": mine <= 1e-6 and theirs > 1e-3, "share": mine, "twin": theirs, **worse}

    return symptom


# --- starved ---


class ScaledBlock(nn.Module):
    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.shortcut = nn.Identity()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.GroupNorm(4, width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.scale * self.body(x)


def scaled_blocks(scale: float = 0.5) -> Training:
    """A ResNet whose residual branches are scaled by a constant."""
    torch.manual_seed(61)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        *(ScaledBlock(16, scale) for _ in range(3)),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, picture_batches(48), classify, adam, steps=120)


class Highway(nn.Module):
    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.gate = nn.Linear(width, width)
        self.change = nn.Linear(width, width)
        self.carry = nn.Identity()
        nn.init.normal_(self.gate.weight, std=0.05)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * F.relu(self.change(x)) + (1 - t) * self.carry(x)


def highway(bias: float = -1.0) -> Training:
    """A highway network; its gates begin at some bias."""
    torch.manual_seed(62)
    model = nn.Sequential(
        nn.Linear(12, 40), *(Highway(40, bias) for _ in range(4)), nn.Linear(40, 1)
    )

    def batch(step: int) -> Batch:
        x = torch.randn(64, 12, generator=chance(step, 31))
        return x, (x[:, 0] * x[:, 1] + x[:, 2].abs() + x[:, 3:6].amax(-1)).unsqueeze(-1)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(x), y)

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, batch, loss, adam, steps=250)


class Season(nn.Module):
    def __init__(self, inputs: int, width: int, out: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(inputs, width)
        self.out = nn.Linear(width, out)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for now in x.unbind(1):
            h = self.cell(now, h)
        return self.out(h)


class Trend(nn.Module):
    def __init__(self, inputs: int, out: int) -> None:
        super().__init__()
        self.out = nn.Linear(2 * inputs, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.cat([x[:, :8].mean(1), x[:, 8:].mean(1)], -1))


class Forecast(nn.Module):
    """A season read by a GRU, a trend read by a linear layer, added up."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.embed = nn.Sequential(nn.Linear(2, 16), nn.SiLU())
        self.season = Season(16, 24, 4)
        self.trend = Trend(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x)
        season = self.season(e)
        return self.trend(e) + self.unit * season


def forecast(unit: float = 1.0) -> Training:
    """Series of a trend and a season; the season's branch gives millionths, or not."""
    torch.manual_seed(63)
    model = Forecast(unit)

    def batch(step: int) -> Batch:
        g = chance(step, 32)
        t = torch.arange(20.0)
        slope, phase = torch.randn(48, 1, generator=g) / 10, 6.3 * torch.rand(48, 1, generator=g)
        speed = 0.3 + torch.rand(48, 1, generator=g)
        y = slope * t + torch.sin(phase + speed * t)
        seen = torch.stack([y[:, :16], y[:, :16] - F.pad(y[:, :15], (1, 0))], -1)
        return seen, y[:, 16:]

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    adam = torch.optim.Adam(model.parameters(), 3e-3)
    return Training(model, batch, loss, adam, steps=200)


class TwoTasks(nn.Module):
    """A trunk of tanh layers, one head for each task."""

    def __init__(self, *outs: int) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 32), nn.Tanh())
        self.heads = nn.ModuleList(nn.Linear(32, n) for n in outs)

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.trunk(x)
        return [head(h) for head in self.heads]


def auxiliary(weight: float = 0.5) -> Training:
    """Parity is the main task, the digit itself the auxiliary one."""
    torch.manual_seed(64)
    model = TwoTasks(10, 2)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        digit, parity = model(x)
        return F.cross_entropy(parity, y % 2) + weight * F.cross_entropy(digit, y)

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, digit_batches(64, 33), loss, sgd, steps=150)


class Listing(nn.Module):
    """Pictures of a house and its price: features, a class, a price."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.AvgPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1), nn.SiLU(), nn.Flatten(),
        )  # fmt: skip
        self.kind = nn.Sequential(nn.Linear(384, 32), nn.SiLU(), nn.Linear(32, 10))
        self.price = nn.Sequential(nn.Linear(384, 32), nn.SiLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        f = self.features(x)
        return self.kind(f), self.price(f).squeeze(-1)


def listing(thousands: float = 1e5) -> Training:
    """A price in units of 100,000, or in single ones, beside a classification."""
    torch.manual_seed(65)
    model = Listing()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        kind, price = model(x)
        asked = 2.5e5 + 1e5 * (y - 4.5) / 4.5 + 1e5 * x.mean((1, 2, 3))
        return F.cross_entropy(kind, y) + F.mse_loss(price, asked / thousands)

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, picture_batches(48, 34), loss, adam, steps=140)


class Mixture(nn.Module):
    """Four experts, mixed by a softmax."""

    def __init__(self, first: float) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 24)
        self.gate = nn.Linear(24, 4)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(24, 6), nn.ELU(), nn.Linear(6, 24)) for _ in range(4)
        )
        self.head = nn.Linear(24, 6)
        with torch.no_grad():
            self.gate.bias.copy_(torch.tensor([first, 0.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        p = self.gate(h).softmax(-1)
        several = torch.stack([expert(h) for expert in self.experts], 1)
        return self.head(torch.matmul(p.unsqueeze(1), several).squeeze(1))


def mixture(first: float = 0.0) -> Training:
    torch.manual_seed(66)
    model = Mixture(first)
    centres = 1.5 * torch.randn(30, 8, generator=chance(0, 35))

    def batch(step: int) -> Batch:
        g = chance(step, 36)
        which = torch.randint(30, (96,), generator=g)
        return centres[which] + 0.5 * torch.randn(96, 8, generator=g), which % 6

    adam = torch.optim.Adam(model.parameters(), 2e-3)
    return Training(model, batch, classify, adam, steps=200)


class GatedUNet(nn.Module):
    """Noise is taken out of pictures; the fine features pass a gate beside the coarse path."""

    def __init__(self, open_at: float) -> None:
        super().__init__()
        self.fine = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.LeakyReLU(0.1))
        self.coarse = nn.Sequential(
            nn.AvgPool2d(2),
            nn.Conv2d(12, 24, 3, padding=1),
            nn.LeakyReLU(0.1),
            nn.ConvTranspose2d(24, 12, 2, 2),
        )
        self.skip = GatedSkip(12, open_at)
        self.out = nn.Conv2d(24, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        e = self.fine(x)
        return self.out(torch.cat([self.coarse(e), self.skip(e)], 1))


class GatedSkip(nn.Module):
    def __init__(self, width: int, open_at: float) -> None:
        super().__init__()
        self.gate = nn.Conv2d(width, 1, 1)
        assert self.gate.bias is not None
        nn.init.constant_(self.gate.bias, open_at)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x).sigmoid()


def gated_unet(open_at: float = 0.0) -> Training:
    torch.manual_seed(67)
    model = GatedUNet(open_at)
    pictures = digits()[0].view(-1, 1, 8, 8)

    def batch(step: int) -> Batch:
        g = chance(step, 37)
        x = pictures[torch.randint(len(pictures), (32,), generator=g)]
        return x + 0.4 * torch.randn(x.shape, generator=g), x

    def loss(model: nn.Module, noisy: Tensor, x: Tensor) -> Tensor:
        return F.l1_loss(model(noisy), x)

    adamw = torch.optim.AdamW(model.parameters(), 2e-3)
    return Training(model, batch, loss, adamw, steps=150)


class Described(nn.Module):
    """An autoencoder of which the code also names the class."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 80), nn.GELU(), nn.Linear(80, 20))
        self.decode = nn.Sequential(nn.Linear(20, 80), nn.GELU(), nn.Linear(80, 64))
        self.name = nn.Linear(20, 10)


def described(summed: bool = False) -> Training:
    """The reconstruction's error is a mean of standardized pixels, or a sum of bytes."""
    torch.manual_seed(68)
    model = Described()

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        assert isinstance(model, Described)
        code = model.encode(x)
        named, pixels = model.name(code), model.decode(code)
        if summed:
            bytes_ = ((x - x.min()) / (x.max() - x.min()) * 255).round()
            parts = {"pixels": F.mse_loss(pixels, bytes_, reduction="sum")}
        else:
            parts = {"pixels": F.mse_loss(pixels, x)}
        parts["named"] = F.cross_entropy(named, y)
        return torch.stack(list(parts.values())).sum()

    adam = torch.optim.Adam(model.parameters(), 1e-3)
    return Training(model, digit_batches(64, 38), loss, adam, steps=200)


STARVED = Fault(
    "ind9-parts-starved",
    must=[["starved-pathway"]],
    symptom=starved(),
    variants=[
        Variant("residual-scale", scaled_blocks, broken=partial(scaled_blocks, scale=1e-6)),
        Variant(
            "highway-closed",
            highway,
            broken=partial(highway, bias=-14.0),
            must=[["starved-pathway", "saturated-activation"]],
        ),
        Variant("season-unit", forecast, broken=partial(forecast, unit=1e-6)),
        Variant(
            "auxiliary-weight",
            auxiliary,
            broken=partial(auxiliary, weight=1e-7),
            may=["no-update"],  # the auxiliary head's own weights stay, too
        ),
        Variant("price-drowns", listing, broken=partial(listing, thousands=1.0)),
        Variant(
            "router-collapsed",
            mixture,
            broken=partial(mixture, first=17.0),
            must=[["starved-pathway", "peaked-softmax"]],
        ),
        Variant(
            "skip-gate",
            gated_unet,
            broken=partial(gated_unet, open_at=-15.0),
            must=[["starved-pathway", "saturated-activation"]],
        ),
        Variant("summed-pixels", described, broken=partial(described, summed=True)),
    ],
)


# --- cancelling ---


class Ranker(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.document = nn.Sequential(nn.Linear(15, 40), nn.SiLU(), nn.Linear(40, 20), nn.SiLU())
        self.score = nn.Linear(20, 1)


def ranker(same: bool = False) -> Training:
    """Pairs of documents, the better one first; or each with itself."""
    torch.manual_seed(71)
    model = Ranker()
    taste = torch.randn(15, generator=chance(0, 41))

    def batch(step: int) -> Batch:
        x = torch.randn(128, 15, generator=chance(step, 42))
        order = (x @ taste + x[:, 0] * x[:, 1]).argsort()
        return x[order[64:]], x[order[:64]]

    def loss(model: nn.Module, better: Tensor, worse: Tensor) -> Tensor:
        assert isinstance(model, Ranker)
        up = model.document(better)
        down = up if same else model.document(worse)
        return -F.logsigmoid(model.score(up) - model.score(down)).mean()

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=200)


class NodesMean(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.mean(1, keepdim=True)


class Graphs(nn.Module):
    """Message passing over dense graphs, pair normalization, a readout."""

    def __init__(self, readout: str) -> None:
        super().__init__()
        self.readout = readout
        self.first, self.second = nn.Linear(6, 32), nn.Linear(32, 32)
        self.same, self.average = nn.Identity(), NodesMean()
        self.head = nn.Linear(32, 3)

    def forward(self, x: Tensor, links: Tensor) -> Tensor:
        h = F.relu(self.first(links @ x))
        h = self.second(links @ h)
        h = self.same(h) - self.average(h)
        return self.head(h.mean(1) if self.readout == "mean" else h.amax(1))


def graphs(readout: str = "max") -> Training:
    """Which kind of node is the most frequent; read from centred nodes."""
    torch.manual_seed(72)
    model = Graphs(readout)

    def batch(step: int) -> Batch:
        g = chance(step, 43)
        y = torch.randint(3, (48,), generator=g)
        x = torch.randn(48, 12, 6, generator=g)
        links = (torch.rand(48, 12, 12, generator=g) < 0.15 + 0.25 * y.view(-1, 1, 1)).float()
        return x + y.view(-1, 1, 1), (links + torch.eye(12)) / 4, y

    def loss(model: nn.Module, x: Tensor, links: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, links), y)

    sgd = torch.optim.SGD(model.parameters(), 0.05)
    return Training(model, batch, loss, sgd, steps=150)


class Reverse(torch.autograd.Function):
    """Hands the gradient on with its sign turned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


class ReversedHead(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(Reverse.apply(x))


class Domains(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 10, 3, 2, 1), nn.ReLU(), nn.Conv2d(10, 20, 3, 2, 1), nn.ReLU(),
            nn.Flatten(),
        )  # fmt: skip
        self.kind, self.domain = nn.Linear(80, 2), ReversedHead(80, 2)
        for head in (self.kind, self.domain):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(x)
        return self.kind(h), self.domain(h)


def domains(swapped: bool = False) -> Training:
    """Small or large digits, in two lights; the domain's label is the class's by mistake."""
    torch.manual_seed(73)
    model = Domains()
    x, y = digits()
    pictures = x.view(-1, 1, 8, 8)

    def batch(step: int) -> Batch:
        g = chance(step, 44)
        index = torch.randint(len(y), (64,), generator=g)
        light = torch.randint(2, (64,), generator=g)
        kind = (y[index] > 4).long()
        lit = pictures[index] + 0.3 * light.view(-1, 1, 1, 1)
        return lit, kind, kind if swapped else light

    def loss(model: nn.Module, x: Tensor, kind: Tensor, domain: Tensor) -> Tensor:
        named, lit = model(x)
        return F.cross_entropy(named, kind) + F.cross_entropy(lit, domain)

    def step(training: Training, step: int) -> dict[str, Any]:
        x, kind, domain = training.batch(step)
        named, lit = model(x)
        own = F.cross_entropy(named, kind)
        training.optimizer.zero_grad()
        (own + F.cross_entropy(lit, domain)).backward()
        training.optimizer.step()
        return {"loss": own.detach()}

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.5)
    return Training(model, batch, loss, sgd, steps=200, step=step)


class Sentences(nn.Module):
    """A transformer encoder, pooled: the embedding of a sentence."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(40, 24)
        self.layer = nn.TransformerEncoderLayer(24, 2, 48, 0.0, batch_first=True)
        self.project = nn.Linear(24, 16)
        self.distance = nn.PairwiseDistance()

    def forward(self, words: Tensor) -> Tensor:
        return self.project(self.layer(self.words(words)).mean(1))


def triplets(same: bool = False) -> Training:
    """Sentences on four topics; the negative example is the positive one by a wrong index."""
    torch.manual_seed(74)
    model = Sentences()

    def batch(step: int) -> Batch:
        g = chance(step, 45)
        topic = torch.randint(4, (48, 1), generator=g)
        other = (topic + torch.randint(1, 4, (48, 1), generator=g)) % 4
        noise = torch.randint(40, (3, 48, 8), generator=g)
        keep = torch.rand(3, 48, 8, generator=g) < 0.5
        topics = torch.stack([topic, topic, other])
        return tuple(torch.where(keep, noise, topics * 10 + noise % 10))

    def loss(model: nn.Module, anchor: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        assert isinstance(model, Sentences)
        embedded = [model(words) for words in (anchor, positive, negative)]
        a, p, n = embedded[0], embedded[1], embedded[1 if same else 2]
        return (model.distance(a, p) - model.distance(a, n) + 1.0).clamp(min=0).mean()

    sgd = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    return Training(model, batch, loss, sgd, steps=200)


class Fusion(nn.Module):
    """A gate chooses, number by number, between the answers of two experts."""

    def __init__(self, repeated: bool) -> None:
        super().__init__()
        self.stem = nn.Linear(9, 32)
        self.gate = nn.Linear(32, 16)
        if repeated:
            self.experts = nn.ModuleList([nn.Linear(32, 16)] * 2)
        else:
            self.experts = nn.ModuleList(nn.Linear(32, 16) for _ in range(2))
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        g = self.gate(h).sigmoid()
        a, b = (expert(h) for expert in self.experts)
        return self.head(g * a + (1 - g) * b)


def fusion(repeated: bool = False) -> Training:
    """Two experts, or one in two places of a list."""
    torch.manual_seed(75)
    model = Fusion(repeated)
    maps = torch.randn(2, 8, 2, generator=chance(0, 46)) / 2

    def batch(step: int) -> Batch:
        g = chance(step, 47)
        x = torch.randn(96, 8, generator=g)
        which = torch.randint(2, (96,), generator=g)
        y = torch.einsum("bi,bio->bo", x, maps[which])
        return torch.cat([x, 2.0 * which.unsqueeze(-1) - 1], -1), y

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    adam = torch.optim.Adam(model.parameters(), 5e-3)
    return Training(model, batch, loss, adam, steps=250)


FAULTS = [STARVED]
CANCELLING = Fault(
    "ind9-parts-cancelling",
    must=[["cancelling-fork"]],
    # nothing is left before the fork: no gradient there, no steps
    may=["vanishing-gradient", "no-update"],
    symptom=cancels(),
    variants=[
        Variant("pair-with-itself", ranker, broken=partial(ranker, same=True)),
        Variant("centred-readout", graphs, broken=partial(graphs, readout="mean")),
        Variant("domain-is-class", domains, broken=partial(domains, swapped=True)),
        Variant("positive-is-negative", triplets, broken=partial(triplets, same=True)),
        Variant(
            "expert-repeated",
            fusion,
            broken=partial(fusion, repeated=True),
            must=[["cancelling-fork", "starved-pathway"]],
            may=["no-update"],
            symptom=left_alone("gate"),
        ),
    ],
)
FAULTS += [CANCELLING]
