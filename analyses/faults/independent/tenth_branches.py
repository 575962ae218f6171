"""Deep networks one of whose branches is all but shut."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Symptom, Variant
from analyses.faults.independent.kit_tenth_b import blobs, cross_entropy, curve, digits, he, squares
from analyses.faults.observe import Observed
from analyses.faults.symptoms import Evidence
from analyses.faults.training import Training

SPLITS = ("test",)


class Highway(nn.Module):
    """h = T·H(x) + (1−T)·x."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.plain = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        t = torch.sigmoid(self.gate(x))
        return t * torch.tanh(self.plain(x)) + (1 - t) * x


def highway(bias: float = -1.0) -> Training:
    """A highway network; its gates start a little closed, or so far that they stay shut."""
    torch.manual_seed(31)
    model = nn.Sequential(
        nn.Linear(8, 40), *[Highway(40, bias) for _ in range(6)], nn.Linear(40, 1)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, curve(64), squares, optimizer, steps=300)


class NextBlock(nn.Module):
    """Depthwise convolution, norm, pointwise expansion, a scale for each channel."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.norm = nn.GroupNorm(1, width)
        self.widen = nn.Conv2d(width, 3 * width, 1)
        self.narrow = nn.Conv2d(3 * width, width, 1)
        self.register_buffer("gamma", torch.full((width, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x))
        return x + self.narrow(F.gelu(self.widen(y))) * self.gamma


def convnext(scale: float = 0.3) -> Training:
    """Layer scale that starts at 1e-6 and ought to be learned, but is kept as a buffer."""
    torch.manual_seed(32)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 2, stride=2),
        *[NextBlock(16, scale) for _ in range(5)],
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


class TwoTasks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 48), nn.GELU())
        self.digit = nn.Linear(48, 10)
        self.parts = nn.Sequential(nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 64))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.trunk(x)
        picture = self.parts(z)
        return {"digit": self.digit(z), "picture": picture}


def two_tasks(weight: float = 1.0) -> Training:
    """Two heads on one trunk; the second one's weight in the loss lost its decimals."""
    torch.manual_seed(33)
    model = TwoTasks()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)

    def objective(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        out = model(x)
        terms = {
            "digit": F.cross_entropy(out["digit"], y),
            "picture": weight * F.mse_loss(out["picture"], x),
        }
        return torch.stack(list(terms.values())).sum()

    return Training(model, digits(64), objective, optimizer, steps=250)


class Flow(nn.Module):
    """Euler steps of one field, as a network of shared weights."""

    def __init__(self, dt: float, steps: int = 10) -> None:
        super().__init__()
        self.lift = nn.Linear(8, 32)
        self.field = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 32))
        self.read = nn.Linear(32, 1)
        self.dt, self.steps = dt, steps

    def forward(self, x: Tensor) -> Tensor:
        z = self.lift(x)
        for _ in range(self.steps):
            z = z + self.dt * self.field(z)
        return self.read(z)


def flow(dt: float = 0.15) -> Training:
    """A step size that belongs to a solver with a million steps, used for ten."""
    torch.manual_seed(34)
    model = Flow(dt)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    return Training(model, curve(64), squares, optimizer, steps=300)


class GatedUNet(nn.Module):
    """The way through the bottom is weighted by a gate computed from the skip."""

    def __init__(self, bias: float, width: int = 10) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.SiLU())
        self.bottom = nn.Sequential(
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(2 * width, 2 * width, 3, padding=1),
            nn.SiLU(),
            nn.ConvTranspose2d(2 * width, width, 4, stride=2, padding=1),
        )
        self.gate = nn.Conv2d(width, 1, 1)
        self.leave = nn.Sequential(
            nn.Conv2d(2 * width, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, 1, 1)
        )
        nn.init.constant_(self.gate.bias, bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        skip = self.enter(x)
        low = self.bottom(skip) * torch.sigmoid(self.gate(skip))
        return self.leave(torch.cat([skip, low], 1))


def gated_unet(bias: float = 0.0) -> Training:
    """A gate in front of the decoder that starts half open, or shut."""
    torch.manual_seed(35)
    model = GatedUNet(bias)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def objective(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
        logits = model(x)
        return F.binary_cross_entropy_with_logits(logits, mask, pos_weight=torch.tensor(2.0))

    return Training(model, blobs(12, noise=1.5), objective, optimizer, steps=150)


class Inception(nn.Module):
    """Parallel kernels of several sizes; one branch's result may be divided once too often."""

    def __init__(self, given: int, width: int, divisor: float) -> None:
        super().__init__()
        self.one = nn.Conv2d(given, width, 1)
        self.three = nn.Conv2d(given, width, 3, padding=1)
        self.five = nn.Conv2d(given, width, 5, padding=2)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.one(x), self.three(x), self.five(x) / self.divisor]
        return F.leaky_relu(torch.cat(parts, 1), 0.1)


def inception(divisor: float = 1.0) -> Training:
    """Three branches; the widest kernel's output is scaled like an image of 16 bits."""
    torch.manual_seed(36)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        Inception(8, 8, divisor),
        nn.AvgPool2d(2),
        Inception(24, 8, divisor),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(96, 10),
    )
    he(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    return Training(model, digits(32, image=True), cross_entropy, optimizer, steps=200)


def share_of(small: str, large: str, limit: float) -> Symptom:
    """At the outputs of the branch's last module: its RMS gradient over the other's, typically."""

    def symptom(run: Observed, twin: Observed | None) -> Evidence:
        def found(observed: Observed) -> float:
            shares = []
            for c in observed.checkpoints:
                own = [n for k, n in c.norms.items() if small in k]
                other = [n for k, n in c.norms.items() if large in k]
                shares.append(max(own, default=0.0) / max(other))
            return sorted(shares)[len(shares) // 2]

        evidence = {"share": found(run)}
        if twin:
            evidence["twin"] = found(twin)
        return {"is": evidence["share"] <= limit < evidence.get("twin", 1.0), **evidence}

    return symptom


STARVED = Fault(
    "ind10-depth-starved",
    must=[["starved-pathway"]],
    variants=[
        Variant(
            "highway",
            healthy=highway,
            broken=partial(highway, -14.0),
            may=["no-update"],  # SGD moves the shut branches by 1e-6 of their size
            must=[["starved-pathway", "saturated-activation"]],
            symptom=share_of("plain", "7.", 1e-4),
        ),
        Variant(
            "layer-scale",
            healthy=convnext,
            broken=partial(convnext, 1e-6),
            symptom=share_of("narrow", "8.", 1e-4),
        ),
        Variant(
            "second-head",
            healthy=two_tasks,
            broken=partial(two_tasks, 1e-6),
            may=["no-update"],  # SGD moves the branch by less than 1e-4 of its size
            symptom=share_of("parts", "digit", 1e-4),
        ),
        Variant(
            "euler-step",
            healthy=flow,
            broken=partial(flow, 1e-6),
            may=["no-update"],  # SGD moves the branch by less than 1e-4 of its size
            symptom=share_of("field", "read", 1e-4),
        ),
        Variant(
            "unet-gate",
            healthy=gated_unet,
            broken=partial(gated_unet, -14.0),
            must=[["starved-pathway", "saturated-activation"]],
            symptom=share_of("bottom", "leave", 1e-4),
        ),
        Variant(
            "inception",
            healthy=inception,
            broken=partial(inception, 65535.0),
            may=["no-update"],  # SGD moves the branch by less than 1e-4 of its size
            symptom=share_of("five", "three", 1e-4),
        ),
    ],
)

FAULTS = [STARVED]
