"""Units that are off for all data, and units at the flat ends of their activation."""

from __future__ import annotations

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_eighth_units import digits, drawn
from analyses.faults.symptoms import dead_units, saturated
from analyses.faults.training import Training

# Dead units


class Dictionary(nn.Module):
    """A sparse autoencoder with more latents than inputs."""

    def __init__(self, width: int, latents: int) -> None:
        super().__init__()
        self.encoder = nn.Linear(width, latents)
        self.decoder = nn.Linear(latents, width, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        code = F.relu(self.encoder(x))
        return self.decoder(code), code


def dictionary(penalty: float) -> Training:
    """Finds the directions that data are sparse sums of."""
    torch.manual_seed(1)
    truth = F.normalize(torch.randn(48, 24), dim=1)
    weights = torch.rand(4000, 48) * (torch.rand(4000, 48) < 0.08)
    x = weights @ truth
    model = Dictionary(24, 192)

    def loss(model: nn.Module, x: Tensor) -> Tensor:
        back, code = model(x)
        return (back - x).pow(2).sum(1).mean() + penalty * code.sum(1).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(x, size=256), loss, optimizer, steps=400, every=10)


def convolved(bias: float) -> Training:
    """A plain CNN on digits; its biases start at the prior of a rare class, all of them."""
    torch.manual_seed(2)
    x, y = digits()
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 16, 10),
    )
    for m in model.modules():
        if isinstance(m, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(m.weight, nonlinearity="relu")
            assert m.bias is not None
            nn.init.constant_(m.bias, bias)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    batch = drawn((x / 16).view(-1, 1, 8, 8), y, size=64)
    return Training(model, batch, loss, optimizer, steps=200)


class Block(nn.Module):
    """Post-norm transformer block; its rectifier opens at `shift`, for sparse activations."""

    def __init__(self, width: int, heads: int, shift: float) -> None:
        super().__init__()
        self.heads = heads
        self.shift = shift
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        a = (q @ k.transpose(-1, -2) / math.sqrt(d // self.heads)).softmax(-1)
        x = self.norm1(x + self.out((a @ v).transpose(1, 2).reshape(b, t, d)))
        return self.norm2(x + self.down(F.relu(self.up(x) - self.shift)))


class Rows(nn.Module):
    """Reads an image row by row."""

    def __init__(self, width: int, shift: float) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.1)
        self.blocks = nn.ModuleList([Block(width, 4, shift) for _ in range(2)])
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x) + self.place
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean(1))


def rows(shift: float) -> Training:
    """A small transformer on the rows of the digits."""
    torch.manual_seed(3)
    x, y = digits()
    model = Rows(32, shift)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    batch = drawn((x / 16).view(-1, 8, 8), y, size=48)
    return Training(model, batch, loss, optimizer, steps=240)


class Critic(nn.Module):
    """Value of a state and an action."""

    def __init__(self) -> None:
        super().__init__()
        self.state = nn.Linear(3, 48)
        self.joint = nn.Linear(48 + 1, 48)
        self.value = nn.Linear(48, 1)

    def forward(self, state: Tensor, action: Tensor) -> Tensor:
        h = torch.relu(self.state(state))
        h = torch.relu(self.joint(torch.cat([h, action], -1)))
        return self.value(h).squeeze(-1)


def critic(scale: float, lr: float) -> Training:
    """Fits the costs of a pendulum's states; `scale` is what the returns are multiplied by."""
    torch.manual_seed(4)
    angle, speed, action = (
        torch.rand(3000) * 2 * math.pi - math.pi,
        torch.randn(3000),
        torch.rand(3000, 1) * 2 - 1,
    )
    state = torch.stack([angle.cos(), angle.sin(), speed], 1)
    returns = -(angle.abs() + 0.3 * speed.abs() + 0.2 * action[:, 0].pow(2)) * scale
    model = Critic()

    def loss(model: nn.Module, s: Tensor, a: Tensor, r: Tensor) -> Tensor:
        return F.mse_loss(model(s, a), r)

    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Training(model, drawn(state, action, returns, size=128), loss, optimizer, steps=300)


class Residual(nn.Module):
    """Fully connected residual block: the branch is normalised and rectified."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)
        self.inner = nn.Linear(width, hidden)
        self.act = nn.ReLU()
        self.outer = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(self.act(self.inner(self.norm(x))))


def tabular(lr: float) -> Training:
    """A residual network for a table of measurements, under Adam."""
    torch.manual_seed(5)
    x = torch.randn(3000, 12)
    y = (x[:, 0] * x[:, 1] + x[:, 2].sin() * 2 + x[:, 3].abs() + 0.1 * torch.randn(3000))[:, None]
    model = nn.Sequential(
        nn.Linear(12, 48), Residual(48, 96), Residual(48, 96), nn.ReLU(), nn.Linear(48, 1)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.smooth_l1_loss(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    return Training(model, drawn(x, y, size=128), loss, optimizer, steps=300)


def plain_mlp(lr: float) -> Training:
    """Rectified layers for digits under SGD with momentum."""
    torch.manual_seed(6)
    x, y = digits()
    model = nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
    )

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    return Training(model, drawn(x / 16, y, size=64), loss, optimizer, steps=300)


# Where a step that is too long has killed the units, the step is as right a name as its effect.
KILLED = [["dead-units", "update-too-large"]]

DEAD = Fault(
    "ind8-dead",
    must=[["dead-units"]],
    symptom=dead_units(0.5),
    variants=[
        Variant("dictionary", partial(dictionary, 0.02), broken=partial(dictionary, 1.2)),
        # nothing passes the dead layers: what is before them gets no gradient and stays
        Variant(
            "prior-bias",
            partial(convolved, 0.0),
            broken=partial(convolved, -4.6),
            may=["vanishing-gradient", "no-update"],
        ),
        # the feed-forward matrices have a gradient of 0 and stay as they are
        Variant("feed-forward", partial(rows, 0.0), broken=partial(rows, 5.0), may=["no-update"]),
        Variant(
            "critic",
            partial(critic, 1.0, 0.01),
            broken=partial(critic, 25.0, 0.01),
            must=KILLED,
        ),
        # the last rectified layer is off as a whole: no gradient, and soon no update
        Variant(
            "table",
            partial(tabular, 1e-3),
            broken=partial(tabular, 0.3),
            must=KILLED,
            may=["vanishing-gradient", "no-update"],
        ),
        Variant(
            "momentum",
            partial(plain_mlp, 0.02),
            broken=partial(plain_mlp, 1.5),
            must=KILLED,
            may=["vanishing-gradient", "no-update"],
        ),
    ],
)


# Flat ends


def tanh_stack(std: float) -> Training:
    """Four layers of tanh; their weights are drawn with one deviation for all."""
    torch.manual_seed(11)
    x, y = digits()
    layers: list[nn.Module] = []
    for width in (64, 100, 100, 100):
        layers += [nn.Linear(width, 100), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(100, 10))
    for m in model.modules():
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=std)
            nn.init.zeros_(m.bias)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.SGD(model.parameters(), lr=0.02)
    return Training(model, drawn((x - 5) / 6, y, size=64), loss, optimizer, steps=300)


class Elman(nn.Module):
    """Simple recurrent network written out, with a rate of recall for its hidden state."""

    def __init__(self, seen: int, width: int, gain: float) -> None:
        super().__init__()
        self.into = nn.Linear(seen, width)
        self.back = nn.Linear(width, width, bias=False)
        self.head = nn.Linear(width, 4)
        nn.init.orthogonal_(self.back.weight, gain=gain)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), self.back.in_features)
        for now in x.unbind(1):
            h = torch.tanh(self.into(now) + self.back(h))
        return self.head(h)


def elman(gain: float) -> Training:
    """Which of four waves is this noisy series?"""
    torch.manual_seed(12)
    kinds = torch.randint(4, (3000,))
    time = torch.arange(10) * (0.3 + 0.5 * kinds[:, None]) + torch.rand(3000, 1) * 6
    x = (time.sin() + 0.2 * torch.randn(3000, 10))[..., None]
    model = Elman(1, 40, gain)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x), y)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(x, kinds, size=64), loss, optimizer, steps=250)


class Hash(nn.Module):
    """Images to short codes; `sharpness` pushes the codes towards signs."""

    def __init__(self, sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.code = nn.Linear(16 * 16, 24)

    def forward(self, x: Tensor) -> Tensor:
        h = F.max_pool2d(F.leaky_relu(self.norm(self.conv(x))), 2).flatten(1)
        return F.tanh(self.sharpness * self.code(h))


def hashed(sharpness: float) -> Training:
    """Codes of the same class shall agree, those of others shall not."""
    torch.manual_seed(16)
    x, y = digits()
    model = Hash(sharpness)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        codes = model(x)
        alike = codes @ codes.T / codes.shape[1]
        wanted = (y[:, None] == y[None]).float()
        return (alike - wanted).pow(2).mean()

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    batch = drawn((x / 16).view(-1, 1, 8, 8), y, size=64)
    return Training(model, batch, loss, optimizer, steps=200)


class Actor(nn.Module):
    """A deterministic policy: actions between −2 and 2."""

    def __init__(self, gain: float) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.mu = nn.Linear(64, 2)
        with torch.no_grad():
            self.mu.weight.mul_(gain)

    def forward(self, state: Tensor) -> Tensor:
        return 2 * torch.tanh(self.mu(self.body(state)))


def actor(gain: float) -> Training:
    """The actor of an actor–critic: climbs the value of its action."""
    torch.manual_seed(13)
    state = torch.randn(3000, 4)
    turn = torch.randn(4, 2) * 0.4

    def value(s: Tensor, a: Tensor) -> Tensor:
        return -(a - torch.sin(s @ turn)).pow(2).sum(-1)

    model = Actor(gain)

    def loss(model: nn.Module, s: Tensor) -> Tensor:
        return -value(s, model(s)).mean()

    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)
    return Training(model, drawn(state, size=128), loss, optimizer, steps=300)


class Pixels(nn.Module):
    """Autoencoder whose output goes through a sigmoid."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Linear(64, 64), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


def pixels(largest: float) -> Training:
    """Digits put back together; `largest` is the value of a black pixel in the targets."""
    torch.manual_seed(14)
    x, _ = digits()
    x = x / 16
    seen = (x - x.mean()) / x.std()
    model = Pixels()

    def loss(model: nn.Module, seen: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(model(seen), target)

    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    return Training(model, drawn(seen, largest * x, size=64), loss, optimizer, steps=300)


class Gated(nn.Module):
    """A gated recurrent unit written out."""

    def __init__(self, seen: int, width: int, update: float, others: float) -> None:
        super().__init__()
        self.width = width
        self.embed = nn.Linear(seen, width)
        self.z = nn.Linear(2 * width, width)
        self.r = nn.Linear(2 * width, width)
        self.c = nn.Linear(2 * width, width)
        self.head = nn.Linear(width, 1)
        nn.init.constant_(self.z.bias, update)
        nn.init.constant_(self.r.bias, others)
        nn.init.constant_(self.c.bias, others)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), self.width)
        for now in self.embed(x).unbind(1):
            both = torch.cat([now, h], -1)
            z, r = torch.sigmoid(self.z(both)), torch.sigmoid(self.r(both))
            c = torch.tanh(self.c(torch.cat([now, r * h], -1)))
            h = (1 - z) * h + z * c
        return self.head(h).squeeze(-1)


def gated(update: float, others: float) -> Training:
    """Adds up the marked entries of a series."""
    torch.manual_seed(15)
    values = torch.rand(3000, 8)
    marks = (torch.rand(3000, 8) < 0.25).float()
    x = torch.stack([values, marks], -1)
    y = (values * marks).sum(1)
    model = Gated(2, 32, update, others)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    optimizer = torch.optim.RMSprop(model.parameters(), lr=2e-3)
    return Training(model, drawn(x, y, size=64), loss, optimizer, steps=200)


FLAT = Fault(
    "ind8-saturated",
    must=[["saturated-activation"]],
    symptom=saturated(0.6),
    variants=[
        Variant("unit-deviation", partial(tanh_stack, 0.1), broken=partial(tanh_stack, 1.0)),
        # the large recurrent weights win over the flat ends: gradients grow a hundredfold
        Variant(
            "elman",
            partial(elman, 1.0),
            broken=partial(elman, 8.0),
            may=["exploding-gradient"],
        ),
        # beside its size the last matrix moves by a 2000th in the whole run
        Variant("actor", partial(actor, 1.0), broken=partial(actor, 300.0), may=["no-update"]),
        Variant("pixels", partial(pixels, 1.0), broken=partial(pixels, 255.0)),
        # a candidate at its end passes next to nothing on
        Variant(
            "gates",
            partial(gated, -1.0, 0.0),
            broken=partial(gated, 5.0, 5.0),
            may=["vanishing-gradient"],
        ),
        # after a first jump all codes are exactly ±1: no gradient, no further update
        Variant(
            "hash",
            partial(hashed, 1.0),
            broken=partial(hashed, 60.0),
            may=["vanishing-gradient", "no-update", "update-too-large"],
        ),
    ],
)

FAULTS = [DEAD, FLAT]
