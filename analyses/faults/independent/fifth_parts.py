"""Networks of several parts that are wired wrongly, and ones that are wired well."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Healthy, Variant
from analyses.faults.independent.kit_fifth_parts import digits, fit, pictures, table
from analyses.faults.symptoms import (
    branch_starved,
    edges_cancel,
    left_out,
    no_gradient_before,
    unmoved,
)
from analyses.faults.training import Training


def classify(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Cross entropy of a classifier."""
    return F.cross_entropy(model(x), y)


# ---------------------------------------------------------------- detached


class Towers(nn.Module):
    """Two towers, one for the upper half of a digit and one for the lower, matched in a batch."""

    def __init__(self, cached: bool) -> None:
        super().__init__()
        self.cached = cached
        self.upper = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))
        self.lower = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x: Tensor) -> Tensor:
        a = self.upper(x[:, :32])
        if self.cached:  # the "index" is computed as if for serving
            with torch.no_grad():
                b = self.lower(x[:, 32:])
        else:
            b = self.lower(x[:, 32:])
        return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T / 0.1


def match(model: nn.Module, x: Tensor) -> Tensor:
    """The right half among those of the batch."""
    return F.cross_entropy(model(x), torch.arange(len(x)))


def towers(fault: bool = False) -> Training:
    """Matching halves of digits."""
    torch.manual_seed(1)
    model = Towers(fault)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(model, digits()[:1], match, optimizer, steps=200)


class Codebook(nn.Module):
    """An autoencoder of digits that writes four code words."""

    def __init__(self, straight: bool) -> None:
        super().__init__()
        self.straight = straight
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU(), nn.Linear(96, 4 * 12))
        self.words = nn.Linear(12, 10, bias=False)
        self.decoder = nn.Sequential(nn.Linear(40, 96), nn.SiLU(), nn.Linear(96, 64))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.encoder(x).view(-1, 4, 12)
        hard = F.one_hot(logits.argmax(-1), 12).float()
        if self.straight:
            soft = logits.softmax(-1)
            hard = hard + soft - soft.detach()
        out: Tensor = self.decoder(self.words(hard).flatten(1))
        return out


def restore(model: nn.Module, x: Tensor) -> Tensor:
    """Mean squared error to the input."""
    return F.mse_loss(model(x), x)


def codebook(fault: bool = False) -> Training:
    """Digits through discrete code words."""
    torch.manual_seed(2)
    model = Codebook(not fault)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    return fit(model, digits()[:1], restore, optimizer, steps=200)


class Reader(nn.Module):
    """A convolution reads each row of a digit; a GRU reads the rows."""

    def __init__(self, stored: bool) -> None:
        super().__init__()
        self.stored = stored
        self.rows = nn.Sequential(
            nn.Conv1d(1, 8, 3, padding=1), nn.ELU(), nn.Conv1d(8, 8, 3, padding=1), nn.ELU()
        )
        self.gru = nn.GRU(64, 48, batch_first=True)
        self.head = nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.rows(x.view(-1, 1, 8)).flatten(1)
        if self.stored:  # through a numpy buffer, as a feature store does it
            features = torch.from_numpy(features.detach().numpy().copy())
        out, _ = self.gru(features.view(-1, 8, 64))
        scores: Tensor = self.head(out[:, -1])
        return scores


def reader(fault: bool = False) -> Training:
    """Digits, row by row."""
    torch.manual_seed(3)
    model = Reader(fault)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=1e-3)
    return fit(model, digits(), classify, optimizer, steps=150)


DETACHED = Fault(
    "ind5-detached",
    must=[["detached"]],
    may=["no-update"],  # what has no gradient doesn't move
    symptom=no_gradient_before(),
    variants=[
        Variant("towers-cached", partial(towers), broken=partial(towers, fault=True)),
        Variant("codes-argmax", partial(codebook), broken=partial(codebook, fault=True)),
        Variant(
            "rows-through-numpy",
            partial(reader),
            broken=partial(reader, fault=True),
            symptom=unmoved(0.0, "rows"),
        ),
    ],
)


# ---------------------------------------------------------------- not in the optimizer


class Tasks(nn.Module):
    """A trunk and a head for each target, added by name."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())
        self.heads = nn.ModuleDict({"first": nn.Linear(64, 1)})

    def add(self) -> None:
        """The second task's head."""
        self.heads["second"] = nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 1))


def both(model: Tasks, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Sum of the two tasks' errors."""
    h = model.trunk(x)
    a = F.mse_loss(model.heads["first"](h), first)
    return a + F.mse_loss(model.heads["second"](h), second)


def late_head(fault: bool = False) -> Training:
    """Two tasks on a table; the second head comes before or after the optimizer."""
    torch.manual_seed(4)
    model = Tasks()
    if not fault:
        model.add()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    if fault:
        model.add()
    return fit(model, table(), both, optimizer, steps=200)


class Fill(nn.Module):
    """A convolutional encoder and decoder that fill in a digit's missing quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.SiLU(), nn.Conv2d(16, 32, 3, padding=1)
        )
        self.decoder = nn.Sequential(
            nn.SiLU(),
            nn.ConvTranspose2d(32, 16, 4, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        given = x.clone()
        given[:, :, 4:, 4:] = 0
        out: Tensor = self.decoder(self.encoder(given))
        return out


def filling(fault: bool = False) -> Training:
    """Filling in digits; the optimizer gets all, or the decoder only."""
    torch.manual_seed(5)
    model = Fill()
    held = model.decoder.parameters() if fault else model.parameters()
    optimizer = torch.optim.Adam(held, lr=2e-3)
    return fit(model, pictures()[:1], restore, optimizer, steps=150, size=32)


class Mixer(nn.Module):
    """Two mixer blocks over a digit's rows."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 32)
        self.across = nn.ModuleList([nn.Linear(8, 8) for _ in range(2)])
        self.along = nn.ModuleList([nn.Linear(32, 32) for _ in range(2)])
        self.norms = nn.ModuleList([nn.LayerNorm(32) for _ in range(2)])
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x.view(-1, 8, 8))
        for across, along, norm in zip(self.across, self.along, self.norms, strict=True):
            h = h + F.gelu(across(norm(h).transpose(1, 2))).transpose(1, 2)
            h = h + F.gelu(along(h))
        out: Tensor = self.head(h.mean(1))
        return out


def mixer(fault: bool = False) -> Training:
    """Digits by a mixer, whose new head is put in before or after the optimizer is made."""
    torch.manual_seed(6)
    model = Mixer()
    if not fault:
        model.head = nn.Linear(32, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if fault:
        model.head = nn.Linear(32, 10)
    return fit(model, digits(), classify, optimizer, steps=200)


NOT_HELD = Fault(
    "ind5-not-in-optimizer",
    must=[["not-in-optimizer"]],
    may=["no-update"],  # what isn't held doesn't move
    symptom=left_out(),
    variants=[
        Variant("late-head", partial(late_head), broken=partial(late_head, fault=True)),
        Variant("decoder-only", partial(filling), broken=partial(filling, fault=True)),
        Variant("mixer-head-swapped", partial(mixer), broken=partial(mixer, fault=True)),
    ],
)


# ---------------------------------------------------------------- starved


class Plain(nn.Module):
    """A small residual network without normalisation, its branches times a constant."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1)
                )
                for _ in range(3)
            ]
        )
        self.head = nn.Linear(16 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + self.scale * block(h)
        out: Tensor = self.head(F.avg_pool2d(F.relu(h), 2).flatten(1))
        return out


def plain(scale: float = 0.5) -> Training:
    """Digits by a residual network."""
    torch.manual_seed(7)
    model = Plain(scale)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(model, pictures(), classify, optimizer, steps=150, size=32)


class WideDeep(nn.Module):
    """A linear part and a deep part that read the same columns."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.wide = nn.Linear(16, 1)
        self.deep = nn.Sequential(
            nn.Linear(16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1)
        )
        self.norm = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        deep = self.deep(h) / self.unit
        out: Tensor = self.wide(h) + deep
        return out


def first_only(model: nn.Module, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """The first target's squared error."""
    return F.mse_loss(model(x), first)


def wide_deep(unit: float = 1.0) -> Training:
    """A table's first target, wide and deep."""
    torch.manual_seed(8)
    model = WideDeep(unit)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return fit(model, table(), first_only, optimizer, steps=250)


class Highway(nn.Module):
    """Highway layers; `bias` is where the gates begin."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 48)
        self.transform = nn.ModuleList([nn.Linear(48, 48) for _ in range(4)])
        self.gate = nn.ModuleList([nn.Linear(48, 48) for _ in range(4)])
        self.head = nn.Linear(48, 10)
        for gate in self.gate:
            assert isinstance(gate, nn.Linear)
            nn.init.constant_(gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        for transform, gate in zip(self.transform, self.gate, strict=True):
            t = torch.sigmoid(gate(h))
            h = t * F.gelu(transform(h)) + (1 - t) * h
        out: Tensor = self.head(h)
        return out


def highway(bias: float = -1.0) -> Training:
    """Digits by a highway network."""
    torch.manual_seed(9)
    model = Highway(bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(model, digits(), classify, optimizer, steps=150)


class Unet(nn.Module):
    """A U-Net of one level for 8×8 pictures; the skip comes in times `skip`."""

    def __init__(self, skip: float) -> None:
        super().__init__()
        self.scale = skip
        self.enter = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.SiLU())
        self.down = nn.Sequential(nn.Conv2d(12, 16, 4, stride=4), nn.SiLU())
        self.up = nn.ConvTranspose2d(16, 12, 4, stride=4)
        self.skip = nn.Conv2d(12, 12, 1)
        self.out = nn.Sequential(
            nn.Conv2d(24, 16, 3, padding=1), nn.SiLU(), nn.Conv2d(16, 1, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        low = self.up(self.down(h))
        out: Tensor = self.out(torch.cat([low, self.skip(h) * self.scale], 1))
        return out


def denoise(model: nn.Module, x: Tensor, noise: Tensor) -> Tensor:
    """Mean squared error to the clean picture."""
    return F.mse_loss(model(x + 0.4 * noise), x)


def unet(skip: float = 1.0) -> Training:
    """Cleaning noisy digits."""
    torch.manual_seed(10)
    x, _ = pictures()
    model = Unet(skip)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    return fit(model, (x, torch.randn_like(x)), denoise, optimizer, steps=150, size=32)


class Shared(nn.Module):
    """A convolutional trunk that a classifier and a decoder read."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 16, 3, stride=2, padding=1), nn.ELU(), nn.Flatten(), nn.Linear(256, 48),
            nn.ELU(),
        )  # fmt: skip
        self.classes = nn.Linear(48, 10)
        self.decoder = nn.Sequential(nn.Linear(48, 64), nn.ELU(), nn.Linear(64, 64))


def weighed(model: Shared, x: Tensor, y: Tensor, *, weight: float) -> Tensor:
    """Cross entropy and weighed reconstruction."""
    h = model.trunk(x)
    error = F.mse_loss(model.decoder(h), x.flatten(1))
    return F.cross_entropy(model.classes(h), y) + weight * error


def shared(weight: float = 1.0) -> Training:
    """Classes and pictures out of one trunk."""
    torch.manual_seed(12)
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(model, pictures(), partial(weighed, weight=weight), optimizer, steps=200)


class Search(nn.Module):
    """Cells whose operations are mixed by a softmax over learnt scores."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        self.stem = nn.Conv2d(1, 12, 3, padding=1)
        self.cells = nn.ModuleList(
            [
                nn.ModuleList(
                    [
                        nn.Conv2d(12, 12, 1),
                        nn.Conv2d(12, 12, 3, padding=1),
                        nn.Conv2d(12, 12, 3, padding=2, dilation=2),
                    ]
                )
                for _ in range(2)
            ]
        )
        self.scores = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]))
        self.head = nn.Linear(12 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for cell, scores in zip(self.cells, self.scores, strict=True):
            assert isinstance(cell, nn.ModuleList)
            mix = torch.softmax(scores / self.temperature, -1)
            h = F.gelu(sum((p * op(h) for p, op in zip(mix, cell, strict=True)), h))
        out: Tensor = self.head(F.avg_pool2d(h, 2).flatten(1))
        return out


def search(temperature: float = 1.0) -> Training:
    """Digits by cells with mixed operations."""
    torch.manual_seed(13)
    model = Search(temperature)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(model, pictures(), classify, optimizer, steps=120, size=32)


# What gets next to none of the gradient has a gradient that has vanished, and under plain SGD
# next to no update: 1e-5 of its weights and less over the run.
STARVED = Fault(
    "ind5-starved",
    must=[["starved-pathway"]],
    may=["vanishing-gradient", "no-update"],
    symptom=branch_starved(1e-3),
    variants=[
        Variant("residual-constant", partial(plain), broken=partial(plain, scale=1e-5)),
        Variant("deep-beside-wide", partial(wide_deep), broken=partial(wide_deep, unit=1e5)),
        Variant("skip-of-unet", partial(unet), broken=partial(unet, skip=1e-5)),
        Variant("task-weight", partial(shared), broken=partial(shared, weight=1e-6)),
        Variant(
            "highway-shut",  # the gates' sigmoids are at their end: the same, said otherwise
            partial(highway),
            broken=partial(highway, bias=-14.0),
            must=[["starved-pathway", "saturated-activation"]],
        ),
        Variant(
            "mixed-operations",  # the mix's softmax is on one operation from the start
            partial(search),
            broken=partial(search, temperature=0.05),
            must=[["starved-pathway", "peaked-softmax"]],
        ),
    ],
)


# ---------------------------------------------------------------- cancelling


class Turn(torch.autograd.Function):
    """Nothing forward; the gradient's sign backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, by: float) -> Tensor:
        ctx.by = by
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * g, None


class Reversal(nn.Module):
    """Gradient reversal."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = Turn.apply(x, self.by)
        return out


class Domains(nn.Module):
    """A trunk, a classifier, and an adversary behind a reversal."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 12, 3, padding=1), nn.SiLU(), nn.Conv2d(12, 12, 3, stride=2, padding=1),
            nn.Tanh(), nn.Flatten(),
        )  # fmt: skip
        self.classes = nn.Linear(192, 10)
        self.reversal = Reversal(by)
        self.adversary = copy.deepcopy(self.classes)


def opposed(model: Domains, x: Tensor, y: Tensor, domain: Tensor) -> Tensor:
    """The classes' cross entropy and the domains'."""
    h = model.trunk(x)
    a = F.cross_entropy(model.classes(h), y)
    return a + F.cross_entropy(model.adversary(model.reversal(h)), domain)


def adversarial(fault: bool = False) -> Training:
    """Digits without their writers; by mistake the classes are given as the domains."""
    torch.manual_seed(14)
    x, y = pictures()
    writers = torch.arange(len(x)) * 10 // len(x)
    model = Domains(0.9999 if fault else 0.05)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    data = (x, y, y.clone() if fault else writers)
    return fit(model, data, opposed, optimizer, steps=150, size=32)


class Ears(nn.Module):
    """One trunk and two heads with the same weights, for two sensors of one quantity."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Linear(16, 48), nn.LayerNorm(48), nn.GELU(), nn.Linear(48, 48), nn.GELU()
        )
        self.left = nn.Linear(48, 1)
        self.right = nn.Linear(48, 1)
        nn.init.normal_(self.left.weight, std=0.01)
        nn.init.zeros_(self.left.bias)
        self.right.weight, self.right.bias = self.left.weight, self.left.bias


def sensors(model: Ears, x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Both sensors' squared errors."""
    h = model.trunk(x)
    return F.mse_loss(model.left(h), left) + F.mse_loss(model.right(h), right)


def ears(sign: float = 1.0) -> Training:
    """Two sensors of one quantity; `sign` is the second one's convention."""
    torch.manual_seed(15)
    x, first, _ = table()
    first = first - first.mean()
    model = Ears()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return fit(model, (x, first, sign * first), sensors, optimizer, steps=200, size=256)


class Jitter(nn.Module):
    """Adds a little noise, always the same for a batch."""

    def forward(self, x: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return x + 0.002 * torch.randn(x.shape, generator=generator)


class Distance(nn.Module):
    """Mean squared distance of rows."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return (a - b).square().mean(-1)


class Triplets(nn.Module):
    """Embeds anchors, positives and negatives; negatives may be made of the positives."""

    def __init__(self, made: bool) -> None:
        super().__init__()
        self.made = made
        self.embed = nn.Sequential(
            nn.Linear(64, 80), nn.SiLU(), nn.Linear(80, 80), nn.SiLU(), nn.Linear(80, 24)
        )
        self.near, self.far, self.jitter = Distance(), Distance(), Jitter()

    def forward(self, a: Tensor, p: Tensor, n: Tensor) -> Tensor:
        a, p = self.embed(a), self.embed(p)
        n = self.jitter(p) if self.made else self.embed(n)
        return F.softplus(8 * (self.near(p, a) - self.far(n, a))).mean()


def ranked(model: nn.Module, *three: Tensor) -> Tensor:
    """The triplets' loss is what the model returns."""
    out: Tensor = model(*three)
    return out


def triplets(fault: bool = False) -> Training:
    """Digits of a class near each other; by mistake the negatives are positives with noise."""
    torch.manual_seed(16)
    x, y = digits()
    order = torch.argsort(y, stable=True)
    x, y = x[order], y[order]
    near = torch.arange(len(x)).roll(1)
    near = torch.where(y[near] == y, near, torch.arange(len(x)))
    data = (x, x[near], x.roll(700, 0))
    model = Triplets(fault)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(model, data, ranked, optimizer, steps=150)


class Motion(nn.Module):
    """What changes between two frames: one trunk, the later frame's view less the earlier's."""

    def __init__(self, same: bool) -> None:
        super().__init__()
        self.same = same
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 64), nn.Tanh()
        )
        self.later = nn.Linear(64, 32)
        self.earlier = nn.Linear(64, 32)
        self.earlier.weight, self.earlier.bias = self.later.weight, self.later.bias
        self.head = nn.Sequential(nn.Tanh(), nn.Linear(32, 2))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        h = self.trunk(second)
        before = h if self.same else self.trunk(first)
        view = self.later(h) - 0.999 * self.earlier(before)
        out: Tensor = self.head(view)
        return out


def moved(model: nn.Module, first: Tensor, second: Tensor, shift: Tensor) -> Tensor:
    """The shift's squared error."""
    return F.mse_loss(model(first, second), shift)


def motion(fault: bool = False) -> Training:
    """By how much a digit was shifted; by mistake the second frame is taken twice."""
    torch.manual_seed(17)
    x, _ = pictures()
    shift = torch.randint(-1, 2, (len(x), 2))
    frames = zip(x, shift.tolist(), strict=True)
    second = torch.stack([torch.roll(f, (a, b), (1, 2)) for f, (a, b) in frames])
    model = Motion(fault)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return fit(model, (x, second, shift.float()), moved, optimizer, steps=200)


# Before the fork there is about a thousandth of the gradient that the twins have, and less, and
# the weights there move by less than a thousandth.
CANCELLING = Fault(
    "ind5-cancelling",
    must=[["cancelling-fork"]],
    may=["vanishing-gradient", "no-update"],
    symptom=edges_cancel(0.1),
    variants=[
        Variant("adversary-of-classes", partial(adversarial), broken=partial(adversarial, True)),
        Variant("sensor-signs", partial(ears), broken=partial(ears, sign=-1.0)),
        Variant("negatives-of-positives", partial(triplets), broken=partial(triplets, True)),
        Variant(
            "frame-twice",  # here they do move, by a hundredth
            partial(motion),
            broken=partial(motion, True),
            may=["vanishing-gradient"],
        ),
    ],
)


# ---------------------------------------------------------------- healthy


class Residual(nn.Module):
    """Three residual blocks with batch normalisation; the second halves the picture."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())
        sizes = [(12, 12, 1), (12, 20, 2), (20, 20, 1)]
        self.main = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(a, b, 3, stride=s, padding=1, bias=False), nn.BatchNorm2d(b),
                    nn.ReLU(), nn.Conv2d(b, b, 3, padding=1, bias=False), nn.BatchNorm2d(b),
                )
                for a, b, s in sizes
            ]
        )  # fmt: skip
        self.short = nn.ModuleList(
            [nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride=s) for a, b, s in sizes]
        )
        self.head = nn.Linear(20, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for main, short in zip(self.main, self.short, strict=True):
            h = F.relu(main(h) + short(h))
        out: Tensor = self.head(h.mean((2, 3)))
        return out


def residual() -> Training:
    """Digits by a residual network."""
    torch.manual_seed(21)
    model = Residual()
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4, nesterov=True
    )
    return fit(model, pictures(), classify, optimizer, steps=150, size=32)


class Experts(nn.Module):
    """A soft mixture of four experts."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(16, 4)
        self.experts = nn.ModuleList(
            [nn.Sequential(nn.Linear(16, 32), nn.SiLU(), nn.Linear(32, 1)) for _ in range(4)]
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.router(x), -1)
        return torch.stack([e(x) for e in self.experts], -1).mul(weights[:, None]).sum(-1)


def experts() -> Training:
    """A table's first target by a mixture of experts."""
    torch.manual_seed(22)
    model = Experts()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(model, table(), first_only, optimizer, steps=250)


class Variational(nn.Module):
    """A variational autoencoder with eight latent numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 96), nn.SiLU())
        self.mean = nn.Linear(96, 8)
        self.spread = nn.Linear(96, 8)
        self.decoder = nn.Sequential(nn.Linear(8, 96), nn.SiLU(), nn.Linear(96, 64))


def evidence(model: Variational, x: Tensor) -> Tensor:
    """Reconstruction and divergence, per picture."""
    h = model.encoder(x)
    mean, spread = model.mean(h), model.spread(h)
    z = mean + torch.randn_like(mean) * (0.5 * spread).exp()
    error = (model.decoder(z) - x).square().sum(-1).mean()
    divergence = 0.5 * (mean.square() + spread.exp() - 1 - spread).sum(-1).mean()
    return error + 0.5 * divergence


def variational() -> Training:
    """Digits by a variational autoencoder."""
    torch.manual_seed(23)
    model = Variational()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return fit(model, digits()[:1], evidence, optimizer, steps=250)


class Opening(nn.Module):
    """Six residual blocks whose gates are 0 at the start and are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(64, 40)
        self.blocks = nn.ModuleList(
            [nn.Sequential(nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 40)) for _ in range(6)]
        )
        self.gates = nn.Parameter(torch.zeros(6))
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inner(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            h = h + gate * block(h)
        out: Tensor = self.head(h)
        return out


def opening() -> Training:
    """Digits by gated residual blocks that open."""
    torch.manual_seed(24)
    model = Opening()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return fit(model, digits(), classify, optimizer, steps=200)


class Pupil(nn.Module):
    """A network and a frozen one to learn from."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 20))
        self.student = nn.Sequential(
            nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 20)
        )
        self.teacher.requires_grad_(False)


def distil(model: Pupil, x: Tensor) -> Tensor:
    """Squared error to what the teacher says of the cleaner picture."""
    with torch.no_grad():
        said = model.teacher(x)
    return F.mse_loss(model.student(x + 0.1 * torch.randn_like(x)), said)


def pupil() -> Training:
    """Learning from a frozen network."""
    torch.manual_seed(25)
    model = Pupil()
    optimizer = torch.optim.AdamW(model.student.parameters(), lr=3e-3)
    return fit(model, digits()[:1], distil, optimizer, steps=200)


class Tied(nn.Module):
    """A GRU over letters whose output weights are the embedding's."""

    def __init__(self) -> None:
        super().__init__()
        self.letters = nn.Embedding(20, 32)
        self.gru = nn.GRU(32, 32, batch_first=True)
        self.out = nn.Linear(32, 20)
        nn.init.normal_(self.letters.weight, std=0.2)
        self.out.weight = self.letters.weight

    def forward(self, x: Tensor) -> Tensor:
        h, _ = self.gru(self.letters(x))
        out: Tensor = self.out(h)
        return out


def following(model: nn.Module, text: Tensor) -> Tensor:
    """Cross entropy of the next letter."""
    return F.cross_entropy(model(text[:, :-1]).flatten(0, 1), text[:, 1:].flatten())


def tied() -> Training:
    """A made-up language whose next letter mostly depends on the last two."""
    torch.manual_seed(26)
    text = torch.randint(20, (600, 17))
    for t in range(2, 17):
        rule = (3 * text[:, t - 1] + text[:, t - 2] // 5) % 20
        text[:, t] = torch.where(torch.rand(600) < 0.9, rule, text[:, t])
    model = Tied()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    return fit(model, (text,), following, optimizer, steps=200, size=32)


class Tastes(nn.Module):
    """Users and things as sparse embeddings, with biases."""

    def __init__(self) -> None:
        super().__init__()
        self.users = nn.Embedding(300, 8, sparse=True)
        self.things = nn.Embedding(200, 8, sparse=True)
        self.bias = nn.Embedding(200, 1, sparse=True)
        for e in (self.users, self.things, self.bias):
            nn.init.normal_(e.weight, std=0.3)

    def forward(self, user: Tensor, thing: Tensor) -> Tensor:
        return (self.users(user) * self.things(thing)).sum(-1) + self.bias(thing)[:, 0]


def rating(model: nn.Module, user: Tensor, thing: Tensor, stars: Tensor) -> Tensor:
    """Squared error of a rating."""
    return F.mse_loss(model(user, thing), stars)


def tastes() -> Training:
    """Ratings by factors, with the optimizer for sparse gradients."""
    torch.manual_seed(27)
    user, thing = torch.randint(300, (8000,)), torch.randint(200, (8000,))
    a, b, c = torch.randn(300, 3), torch.randn(200, 3), torch.randn(200)
    stars = (a[user] * b[thing]).sum(-1) / 2 + 1.5 * c[thing]
    model = Tastes()
    optimizer = torch.optim.SparseAdam(list(model.parameters()), lr=0.03)
    return fit(model, (user, thing, stars), rating, optimizer, steps=250, size=256)


class Uncertain(nn.Module):
    """Two tasks whose weights are learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(16, 96), nn.LayerNorm(96), nn.SiLU())
        self.tasks = nn.ModuleList(
            [nn.Sequential(nn.Linear(96, 32), nn.SiLU(), nn.Linear(32, 1)) for _ in range(2)]
        )
        self.weights = nn.Parameter(torch.zeros(2))


def balanced(model: Uncertain, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Errors weighed by learnt precisions; moved up, so that it stays above 0."""
    h = model.trunk(x)
    errors = [F.mse_loss(task(h), y) for task, y in zip(model.tasks, (first, second), strict=True)]
    return (torch.stack(errors) * (-model.weights).exp() + model.weights).sum() + 5


def uncertain() -> Training:
    """A table's two targets with learnt weights."""
    torch.manual_seed(28)
    model = Uncertain()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return fit(model, table(), balanced, optimizer, steps=250)


PARTS = Healthy(
    "ind5-parts",
    {
        "residual-network": residual,
        "mixture-of-experts": experts,
        "variational": variational,
        "gates-that-open": opening,
        "frozen-teacher": pupil,
        "tied-letters": tied,
        "sparse-factors": tastes,
        "weighed-tasks": uncertain,
    },
)


FAULTS = [DETACHED, NOT_HELD, STARVED, CANCELLING]
THEMES = [PARTS]
