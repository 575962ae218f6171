"""Faults of wiring: branches that get no gradient or cancel, and parameters left aside."""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from analyses.faults.case import Fault, Variant
from analyses.faults.independent.kit_third_parts import (
    Causal,
    blobs,
    cancels,
    cross_entropy,
    digits,
    grammar,
    mlp,
    rng,
    starved,
    training,
)
from analyses.faults.training import Batch, Training

SPLITS = ("test",)


# A branch that gets next to none of the gradient.


class ScaledBlock(nn.Module):
    """A convolutional residual block whose branch is scaled by a buffer."""

    scale: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )
        self.shortcut = nn.Identity()
        self.register_buffer("scale", torch.full((width, 1, 1), scale))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x) + self.scale * self.branch(x))


def layer_scale(scale: float = 0.5) -> Training:
    """A small ResNet; the layer scale that should be learned is a buffer."""
    torch.manual_seed(11)
    model = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1),
        nn.BatchNorm2d(12),
        nn.ReLU(),
        *(ScaledBlock(12, scale) for _ in range(3)),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    return training(model, digits(48), cross_entropy, "momentum", 0.03, steps=120)


class TwoTasks(nn.Module):
    """Digits are told and drawn larger from the same code."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(mlp(64, 96, 64), nn.Tanh())
        self.tell = mlp(64, 32, 10)
        self.draw = mlp(64, 96, 256)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x.flatten(1))
        return self.tell(h), self.draw(h)


def task_weights(summed: bool = False) -> Training:
    """Two tasks; the pixels' errors are summed and the other task is weighted down."""
    torch.manual_seed(12)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        told, drawn = model(x)
        large = F.interpolate(x, scale_factor=2).flatten(1)
        if summed:
            return 0.01 * F.cross_entropy(told, y) + F.mse_loss(drawn, large, reduction="sum")
        return F.cross_entropy(told, y) + F.mse_loss(drawn, large)

    return training(TwoTasks(), digits(96), loss, "adam", 1e-3, steps=150)


class Highway(nn.Module):
    """A highway layer."""

    def __init__(self, width: int, bias: float) -> None:
        super().__init__()
        self.transform = nn.Linear(width, width)
        self.gate = nn.Linear(width, width)
        self.carry = nn.Identity()
        nn.init.constant_(self.gate.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        open_ = torch.sigmoid(self.gate(x))
        return open_ * torch.tanh(self.transform(x)) + (1 - open_) * self.carry(x)


def closed_gates(bias: float = -1.0) -> Training:
    """A highway network whose gates start so far closed that they stay so."""
    torch.manual_seed(13)
    model = nn.Sequential(
        nn.Linear(64, 48), nn.Tanh(), *(Highway(48, bias) for _ in range(5)), nn.Linear(48, 10)
    )
    return training(model, digits(64, flat=True), cross_entropy, "sgd", 0.1, steps=200)


class Router(nn.Module):
    """Four experts, mixed by a softmax."""

    def __init__(self, width: int, prior: list[float]) -> None:
        super().__init__()
        self.router = nn.Linear(width, len(prior))
        self.experts = nn.ModuleList(mlp(width, 64, width) for _ in prior)
        with torch.no_grad():
            self.router.bias.copy_(torch.tensor(prior))

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        outputs = torch.stack([expert(x) for expert in self.experts], dim=-1)
        return x + (outputs * shares[:, None]).sum(-1)


def one_expert(prior: float = 0.0) -> Training:
    """A mixture of experts whose router starts with nearly everything on the first."""
    torch.manual_seed(14)
    model = nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), Router(32, [0.0, prior, prior, prior]), nn.Linear(32, 10)
    )
    return training(model, digits(64, flat=True), cross_entropy, "momentum", 0.02, steps=150)


class ParallelBlock(nn.Module):
    """Attention and a feed-forward network side by side."""

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Causal(width)
        self.feed = nn.Sequential(nn.Linear(width, 96), nn.GELU(), nn.Linear(96, width))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        n = self.norm(x)
        return x + self.feed(n) + self.scale * self.attention(n)


class ParallelModel(nn.Module):
    """A small language model of such blocks."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 48)
        self.place = nn.Parameter(0.1 * torch.randn(24, 48))
        self.blocks = nn.Sequential(*(ParallelBlock(48, scale) for _ in range(2)))
        self.out = nn.Linear(48, 20)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(self.blocks(self.embed(x) + self.place))
        return out


def fixed_scale(scale: float = 1.0) -> Training:
    """A layer scale's first value stays as a constant on the attention's output."""
    torch.manual_seed(15)
    return training(ParallelModel(scale), grammar(), cross_entropy, "adamw", 3e-3, steps=150)


class SmallUNet(nn.Module):
    """A U-Net of two levels; its deep path is divided by a number."""

    def __init__(self, divisor: float) -> None:
        super().__init__()
        self.start = nn.Sequential(nn.Conv2d(1, 12, 3, padding=1), nn.ReLU())
        self.skip = nn.Conv2d(12, 12, 1)
        self.deep = nn.Sequential(
            nn.Conv2d(12, 24, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(24, 24, 3, padding=1),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 12, 4, stride=2, padding=1),
        )
        self.end = nn.Sequential(nn.ReLU(), nn.Conv2d(24, 12, 3, padding=1), nn.ReLU())
        self.out = nn.Conv2d(12, 1, 1)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        e = self.start(x)
        both = torch.cat([self.skip(e), self.deep(e) / self.divisor], dim=1)
        out: Tensor = self.out(self.end(both))
        return out


def segmentation(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Binary cross entropy of every pixel."""
    return F.binary_cross_entropy_with_logits(model(x), y)


def deep_path(divisor: float = 1.0) -> Training:
    """The U-Net's features are taken for bytes on their way up, twice."""
    torch.manual_seed(16)
    return training(
        SmallUNet(divisor), blobs(12, noise=1.0), segmentation, "momentum", 0.1, steps=120
    )


STARVED = Fault(
    "ind3-parts-starved",
    must=[["starved-pathway"]],
    symptom=starved(),
    variants=[
        Variant(
            "layer-scale-buffer",
            healthy=layer_scale,
            broken=partial(layer_scale, scale=1e-5),
            may=["no-update"],  # the branches move by 1e-4 of their size at most
        ),
        Variant("summed-task", healthy=task_weights, broken=partial(task_weights, summed=True)),
        Variant(
            "closed-gates",
            healthy=closed_gates,
            broken=partial(closed_gates, bias=-12.0),
            # Gates at the flat end of the sigmoid say the same of the cause.
            must=[["starved-pathway", "saturated-activation"]],
            may=["no-update"],  # gates and transforms move by 1e-5 of their size
        ),
        Variant(
            "one-expert",
            healthy=one_expert,
            broken=partial(one_expert, prior=-14.0),
            # The router's softmax is on one entry before it has learned anything.
            must=[["starved-pathway", "peaked-softmax"]],
            may=["no-update"],  # three experts move by 1e-6 of their size
        ),
        Variant(
            "attention-scale-fixed",
            healthy=fixed_scale,
            broken=partial(fixed_scale, scale=1e-6),
            may=["diffuse-softmax"],  # what gets no gradient stays uniform
        ),
        Variant(
            "deep-path",
            healthy=deep_path,
            broken=partial(deep_path, divisor=255.0**2),
            may=["no-update"],  # the deep path moves by 1e-6 of its size
        ),
    ],
)


# Branches whose gradients cancel.


class TiedViews(nn.Module):
    """One head reads the code twice, for two columns of labels."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = mlp(12, 64, 64, 32)
        self.head = nn.Linear(32, 1)
        with torch.no_grad():
            self.head.weight.mul_(0.02)
            self.head.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.head(h)


def opposite_labels(sign: float = 1.0) -> Training:
    """Two raters' labels of the same quantity; one counts with the other sign."""
    torch.manual_seed(21)
    weights = torch.randn(12)

    def batch(step: int) -> Batch:
        x = torch.randn(64, 12, generator=rng(step, 21))
        y = (x @ weights + 2 * (x[:, 0] * x[:, 1]))[:, None] / 4
        return x, y, sign * y

    def loss(model: nn.Module, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        a, b = model(x)
        return F.mse_loss(a, first) + F.mse_loss(b, second)

    return training(TiedViews(), batch, loss, "sgd", 0.05, steps=150)


class Reverse(torch.autograd.Function):
    """Identity with the gradient's sign turned."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, by: float) -> Tensor:
        ctx.by = by  # type: ignore[attr-defined]
        return x.view_as(x)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, given: Tensor) -> tuple[Tensor, None]:
        return -ctx.by * given, None  # type: ignore[attr-defined]


class Adversary(nn.Module):
    """A head behind a reversed gradient."""

    def __init__(self, head: nn.Module, by: float) -> None:
        super().__init__()
        self.head, self.by = head, by

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(Reverse.apply(x, self.by))
        return out


class Adversarial(nn.Module):
    """A convolutional trunk, a head for the class and an adversary."""

    def __init__(self, by: float, *, copied: bool) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 48),
        )
        self.head = mlp(48, 32, 10)
        self.adversary = Adversary(copy.deepcopy(self.head) if copied else mlp(48, 16, 2), by)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.trunk(x)
        return self.head(h), self.adversary(h)


def adversary(same: bool = False) -> Training:
    """An adversary should make the code blind to contrast; it is given the classes instead."""
    torch.manual_seed(22)

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low = torch.arange(len(x)) % 2
        told, domain = model(x * (1 - 0.5 * low)[:, None, None, None])
        return F.cross_entropy(told, y) + F.cross_entropy(domain, y if same else low)

    model = Adversarial(0.95 if same else 0.1, copied=same)
    return training(model, digits(48), loss, "momentum", 0.02, steps=150)


class Critic(nn.Module):
    """A recurrent critic: values of this and the next moment."""

    def __init__(self, *, stale: bool) -> None:
        super().__init__()
        self.read = nn.GRU(4, 32, batch_first=True)
        self.value = mlp(32, 32, 1)
        self.stale = stale

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        seen = self.read(x)[0]
        now = seen[:, -2]
        following = now if self.stale else seen[:, -1]
        return self.value(now), self.value(following)


def same_moment(stale: bool = False) -> Training:
    """The next moment's value is taken of the same moment, and its gradient isn't stopped."""
    torch.manual_seed(23)

    def batch(step: int) -> Batch:
        g = rng(step, 23)
        phase = 6.3 * torch.rand(48, 1, 2, generator=g) + torch.arange(5)[:, None] * 0.7
        x = torch.cat([phase.sin(), phase.cos()], dim=-1)
        return x, x[:, -2, :1] + 0.5 * x[:, -2, 1:2]

    def loss(model: nn.Module, x: Tensor, reward: Tensor) -> Tensor:
        now, following = model(x)
        return F.mse_loss(now, reward + 0.97 * (following if stale else following.detach() * 0.5))

    return training(Critic(stale=stale), batch, loss, "sgd", 0.05, steps=150)


class Detail(nn.Module):
    """A signal's detail: the features seen by one filter less those seen by another."""

    def __init__(self, *, tied: bool) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 16, 5, padding=2), nn.GELU())
        first = nn.Conv1d(16, 24, 3, padding=1)
        self.filters = nn.ModuleList([first, first if tied else nn.Conv1d(16, 24, 3, padding=1)])
        self.out = nn.Sequential(nn.GELU(), nn.Conv1d(24, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.features(x)
        centre, surround = self.filters
        out: Tensor = self.out(centre(h) - 0.95 * surround(h))
        return out


def one_filter(tied: bool = False) -> Training:
    """A list of two filters is made by multiplying a list of one."""
    torch.manual_seed(24)

    def batch(step: int) -> Batch:
        g = rng(step, 24)
        x = torch.randn(24, 1, 40, generator=g)
        return x, F.avg_pool1d(x.abs(), 3, 1, 1) * 2 - x - 1.6

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.mse_loss(model(x), y)

    return training(Detail(tied=tied), batch, loss, "sgd", 0.05, steps=120)


class Triplets(nn.Module):
    """Distances of anchors to positives and to negatives, in an embedding of images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Conv2d(1, 12, 3, stride=2, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(192, 24)
        )
        self.near = nn.PairwiseDistance()
        self.far = nn.PairwiseDistance()

    def forward(self, x: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        z = self.embed(x)
        return self.near(z, z[positive]), self.far(z, z[negative])


def triplets(same: bool = False) -> Training:
    """Negatives are looked up with the positives' index."""
    torch.manual_seed(25)

    def batch(step: int) -> Batch:
        x, y = digits(64, salt=25)(step)
        alike = (y[:, None] == y).float() - 0.99 * torch.eye(64)
        g = rng(step, 26)
        positive = torch.multinomial(alike.clamp(min=0), 1, generator=g)[:, 0]
        negative = torch.multinomial((y[:, None] != y).float(), 1, generator=g)[:, 0]
        return x, positive, positive if same else negative

    def loss(model: nn.Module, *given: Tensor) -> Tensor:
        near, far = model(*given)
        return (near - far + 0.5).clamp(min=0).mean()

    return training(Triplets(), batch, loss, "sgd", 0.05, steps=150)


CANCELLING = Fault(
    "ind3-parts-cancelling",
    must=[["cancelling-fork"]],
    may=["vanishing-gradient"],  # measured: what cancels leaves a hundredth below the fork
    symptom=cancels(),
    variants=[
        Variant(
            "opposite-labels",
            healthy=opposite_labels,
            broken=partial(opposite_labels, sign=-1.0),
            may=["vanishing-gradient", "no-update"],  # the trunk moves by 1e-5 of its size
        ),
        Variant("adversary", healthy=adversary, broken=partial(adversary, same=True)),
        Variant("same-moment", healthy=same_moment, broken=partial(same_moment, stale=True)),
        Variant("one-filter", healthy=one_filter, broken=partial(one_filter, tied=True)),
        Variant(
            "triplets",
            healthy=triplets,
            broken=partial(triplets, same=True),
            # The gradients cancel to exactly 0: none gets below the embedding, nothing moves.
            may=["no-update", "vanishing-gradient"],
        ),
    ],
)

FAULTS = [STARVED, CANCELLING]
