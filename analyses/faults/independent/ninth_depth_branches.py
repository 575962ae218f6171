"""Residual, gated and dense networks in which a branch is shut off from the gradient."""

from __future__ import annotations

from functools import partial
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_ninth_b import classify, digits, minibatches, products, shapes
from analyses.faults.observe import Observed
from analyses.faults.training import Training


def shut(like: str, beside: str, share: float = 3e-4) -> Symptom:
    """Matrices called `like` have that little gradient (norms) beside the largest of `beside`."""

    def typical(run: Observed) -> float:
        found = []
        for c in run.checkpoints:
            inside = [n for name, n in c.norms.items() if like in name]
            others = [n for name, n in c.norms.items() if beside in name]
            found.append(max(inside) / max(*others, 1e-30))
        return median(found)

    def symptom(run: Observed, twin: Observed | None) -> dict[str, Any]:
        evidence: dict[str, Any] = {"share": typical(run)}
        if twin:
            evidence["twin"] = typical(twin)
        return {"is": evidence["share"] <= share < evidence.get("twin", 1) / 10, **evidence}

    return symptom


class Highway(nn.Module):
    """Highway network: y = t·f(x) + (1 - t)·x."""

    def __init__(self, bias: float, depth: int = 5) -> None:
        super().__init__()
        self.enter = nn.Linear(12, 32)
        self.plain = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.gates = nn.ModuleList(nn.Linear(32, 32) for _ in range(depth))
        self.leave = nn.Linear(32, 4)
        for plain, gate in zip(self.plain, self.gates, strict=True):
            nn.init.kaiming_normal_(plain.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.constant_(gate.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for plain, gate in zip(self.plain, self.gates, strict=True):
            t = torch.sigmoid(gate(x))
            x = t * F.relu(plain(x)) + (1 - t) * x
        return self.leave(x)


def highway(bias: float = -1.0) -> Training:
    """Transform gates that start a little closed (as the paper has it), or shut for good."""
    torch.manual_seed(31)
    model = Highway(bias)
    x, y = products()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=300)


class Scaled(nn.Module):
    """Residual block with pre-norm and a scale on its branch; the scale may be a constant."""

    def __init__(self, width: int, scale: float, learned: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        start = torch.full((width,), scale)
        if learned:
            self.scale = nn.Parameter(start)
        else:
            self.register_buffer("scale", start)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.down(F.silu(self.up(self.norm(x))))


def layer_scale(scale: float = 0.1, learned: bool = True) -> Training:
    """Layer scale that is stored as a buffer of 1e-6 and so can never grow."""
    torch.manual_seed(32)
    blocks = [Scaled(40, scale, learned) for _ in range(6)]
    model = nn.Sequential(nn.Linear(12, 40), *blocks, nn.LayerNorm(40), nn.Linear(40, 4))
    x, y = products()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250)


class Excited(nn.Module):
    """Residual convolutions whose branch is weighted by a squeeze-and-excitation gate."""

    def __init__(self, bias: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
            )
            for _ in range(3)
        )
        self.squeeze = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 16)) for _ in range(3)
        )
        self.head = nn.Linear(16 * 16, 10)
        for gate in self.squeeze:
            nn.init.constant_(gate[2].bias, bias)  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for branch, squeeze in zip(self.branches, self.squeeze, strict=True):
            y = branch(x)
            weight = torch.sigmoid(squeeze(y.mean((2, 3))))
            x = x + weight[..., None, None] * y
        return self.head(F.avg_pool2d(x, 2).flatten(1))


def excited(bias: float = 0.0) -> Training:
    """The bias of the gates starts at -12 instead of 0: the branches are shut."""
    torch.manual_seed(33)
    model = Excited(bias)
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=150)


class Inception(nn.Module):
    """One block: a short branch and a long one read the stem; both are concatenated."""

    def __init__(self, act: type[nn.Module], small: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.short = nn.Sequential(nn.Conv2d(12, 8, 1), nn.ReLU())
        self.long = nn.Sequential()
        for _ in range(6):
            conv = nn.Conv2d(12, 12, 3, padding=1)
            if small:
                nn.init.xavier_uniform_(conv.weight, gain=0.5)
            else:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            self.long.append(conv)
            self.long.append(act())
        self.classifier = nn.Linear(20 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        both = torch.cat([self.short(x), self.long(x)], 1)
        return self.classifier(F.max_pool2d(both, 2).flatten(1))


def inception(act: type[nn.Module] = nn.ReLU, small: bool = False) -> Training:
    """The long branch is six sigmoid convolutions: the stem hears of the short one only."""
    torch.manual_seed(34)
    model = Inception(act, small)
    x, y = digits(1, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, minibatches(x, y, size=32), classify, optimizer, steps=150)


class TwoStreams(nn.Module):
    """Wide and deep: both streams read one embedding, the deep one divides it first."""

    def __init__(self, divide: float) -> None:
        super().__init__()
        self.fields = nn.Embedding(40, 6)
        self.wide = nn.Linear(24, 1)
        self.deep = nn.Sequential(
            nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 1)
        )
        self.divide = divide

    def forward(self, fields: Tensor) -> dict[str, Tensor]:
        x = self.fields(fields).flatten(1)
        return {"logit": (self.wide(x) + self.deep(x / self.divide)).squeeze(1)}


def clicks(model: TwoStreams, fields: Tensor, clicked: Tensor) -> Tensor:
    """Binary cross entropy of a click."""
    return F.binary_cross_entropy_with_logits(model(fields)["logit"], clicked)


def wide_and_deep(divide: float = 1.0) -> Training:
    """Click prediction; the deep stream divides by 255² (a line left from an image model)."""
    torch.manual_seed(35)
    g = torch.Generator().manual_seed(4)
    fields = torch.randint(10, (3000, 4), generator=g)
    # Two fields decide together, two more add a little on their own.
    taste = torch.randn(10, 10, generator=g)
    score = 2 * taste[fields[:, 0], fields[:, 1]] + 0.15 * (fields[:, 2] + fields[:, 3] - 9)
    clicked = (torch.rand(3000, generator=g) < torch.sigmoid(2 * score)).float()
    model = TwoStreams(divide)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    batch = minibatches(fields + 10 * torch.arange(4), clicked, size=128)
    return Training(model, batch, clicks, optimizer, steps=300)


class Net(nn.Module):
    """Small U-Net on 16 × 16 images with a gate on what comes up from below."""

    def __init__(self, gate: float) -> None:
        super().__init__()
        self.down1 = nn.Conv2d(1, 8, 3, padding=1)
        self.down2 = nn.Conv2d(8, 16, 3, padding=1)
        self.bottom = nn.Conv2d(16, 16, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.merge2 = nn.Conv2d(32, 8, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.merge1 = nn.Conv2d(16, 8, 3, padding=1)
        self.mask = nn.Conv2d(8, 3, 1)
        self.gate = nn.Parameter(torch.tensor(gate))
        for conv in self.children():
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        a = F.elu(self.down1(x))
        b = F.elu(self.down2(F.max_pool2d(a, 2)))
        c = F.elu(self.bottom(F.max_pool2d(b, 2)))
        b = F.elu(self.merge2(torch.cat([b, self.up2(c)], 1)))
        from_below = self.up1(b) * self.gate.sigmoid()
        return self.mask(F.elu(self.merge1(torch.cat([a, from_below], 1))))


def segment(model: Net, image: Tensor, kinds: Tensor) -> Tensor:
    """Cross entropy per pixel: background, disc or square."""
    return F.cross_entropy(model(image), kinds)


def unet(gate: float = 1.0) -> Training:
    """Attention-gate-like scalar on the lower half, which starts at sigmoid(-13)."""
    torch.manual_seed(36)
    images, kind, masks = shapes()
    masks = F.max_pool2d(masks, 7, 1, 3)  # the surroundings count: it takes a wide view
    kinds = (masks[:, 0] * (1 + kind[:, None, None])).long()
    model = Net(gate)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, minibatches(images, kinds, size=32), segment, optimizer, steps=250)


class Dense(nn.Module):
    """Densely connected layers: each reads all before it, weighted by a decay per distance."""

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.enter = nn.Linear(12, 24)
        self.layers = nn.ModuleList(nn.Linear(24 + 16 * i, 16) for i in range(5))
        self.leave = nn.Linear(24 + 16 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        kept = [self.enter(x)]
        for layer in self.layers:
            kept.append(self.decay * F.elu(layer(torch.cat(kept, 1))))
        return self.leave(torch.cat(kept, 1))


def dense(decay: float = 1.0) -> Training:
    """What the dense layers add is scaled by 1e-5 ("so that it starts as a linear model")."""
    torch.manual_seed(37)
    model = Dense(decay)
    x, y = products()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Training(model, minibatches(x, y), classify, optimizer, steps=250)


GATE = [["starved-pathway", "saturated-activation"]]

STARVED = Fault(
    "ind9-depth-starved",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "highway-shut",
            healthy=highway,
            broken=partial(highway, bias=-13.0),
            must=GATE,
            may=["no-update"],
            symptom=shut("plain", "leave"),
        ),
        Variant(
            "constant-layer-scale",
            healthy=layer_scale,
            broken=partial(layer_scale, scale=1e-6, learned=False),
            symptom=shut("down", "0."),
        ),
        Variant(
            "excitation-shut",
            healthy=excited,
            broken=partial(excited, bias=-12.0),
            must=GATE,
            may=["no-update"],
            symptom=shut("branches", "stem"),
        ),
        Variant(
            "long-sigmoid-branch",
            healthy=inception,
            broken=partial(inception, act=nn.Sigmoid, small=True),
            must=[["starved-pathway", "vanishing-gradient"]],
            may=["no-update"],
            symptom=shut("long.0.", "stem"),
        ),
        Variant(
            "divided-stream",
            healthy=wide_and_deep,
            broken=partial(wide_and_deep, divide=255.0**2),
            # What the deep stream reads is 0 but for its biases: units are on or off for all data.
            may=["dead-units", "no-update"],
            symptom=shut("deep.0", "wide"),
        ),
        Variant(
            "unet-gate-shut",
            healthy=unet,
            broken=partial(unet, gate=-13.0),
            must=GATE,
            may=["no-update"],
            symptom=shut("bottom", "mask"),
        ),
        Variant(
            "dense-scaled-away",
            healthy=dense,
            broken=partial(dense, decay=1e-5),
            may=["no-update"],
            symptom=shut("layers", "leave"),
        ),
    ],
)

FAULTS = [STARVED]
